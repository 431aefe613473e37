"""Nodes that make calls: of remote functions, of actor classes, of actors' methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .inputs import InputAttributeNode, InputNode
from .node import DAGNode

if TYPE_CHECKING:
    from ..actor import ActorClass, ActorMethod
    from ..remote_function import RemoteFunction

# Under these names the nodes that a call of an actor's method depends on stand among `get_other_args_to_resolve()`.
_ACTOR = "parent_class_node"
_CALL_BEFORE = "prev_class_method_call"


class FunctionNode(DAGNode):
    """A task.

    Args:
        func_body: a remote function, or a plain one, which becomes one with `func_options`.
        func_args, func_kwargs: what it is called with.
        func_options: as of `@remote`.
    """

    def __init__(
        self,
        func_body: RemoteFunction[Any, Any] | Callable[..., Any],
        func_args: Sequence[Any],
        func_kwargs: dict[str, Any],
        func_options: dict[str, Any],
        other_args_to_resolve: dict[str, Any] | None = None,
    ) -> None:
        from .._api import make_remote
        from ..remote_function import RemoteFunction

        self._remote: RemoteFunction[Any, Any] = func_body if isinstance(func_body, RemoteFunction) else make_remote(func_body, func_options)
        super().__init__(func_args, func_kwargs, func_options, other_args_to_resolve)

    def _run(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return self._remote.remote(*self._bound_args, **self._bound_kwargs)


class ClassNode(DAGNode):
    """An actor that each `execute()` makes anew: its state begins with the graph's run, and the actor goes with its results.

    Args:
        cls: an actor class, or a plain one, which becomes one with `cls_options`.
        cls_args, cls_kwargs: of its creation; nothing that depends on the input.
        cls_options: as of `@remote`.
    """

    def __init__(
        self,
        cls: ActorClass[Any] | type,
        cls_args: Sequence[Any],
        cls_kwargs: dict[str, Any],
        cls_options: dict[str, Any],
        other_args_to_resolve: dict[str, Any] | None = None,
    ) -> None:
        from .._api import make_remote
        from ..actor import ActorClass

        self._class: ActorClass[Any] = cls if isinstance(cls, ActorClass) else make_remote(cls, cls_options)
        self._last_call: ClassMethodNode | None = None
        super().__init__(cls_args, cls_kwargs, cls_options, other_args_to_resolve)
        if any(isinstance(node, InputNode | InputAttributeNode) for node in self._bottom_up()):
            raise ValueError(f"the input of a graph cannot be an argument of {self._class!r}: actors are made before there is any. Pass it to a method")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in ("bind", "remote"):
            return super().__getattr__(name)
        getattr(self._class._cls, name)  # an unknown method is an AttributeError here
        return _UnboundMethod(self, name, {})

    def _run(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return self._class.remote(*self._bound_args, **self._bound_kwargs)


class _UnboundMethod:
    """A method of an actor that the graph will make, before its arguments are bound."""

    def __init__(self, node: ClassNode, name: str, options: dict[str, Any]) -> None:
        self._node = node
        self._name = name
        self._options = options

    def options(self, **options: Any) -> _UnboundMethod:
        return _UnboundMethod(self._node, self._name, {**self._options, **options})

    def bind(self, *args: Any, **kwargs: Any) -> ClassMethodNode:
        # The calls that were bound before this one run before it, also those whose result nobody uses: they may change the actor's state.
        other = {_ACTOR: self._node, _CALL_BEFORE: self._node._last_call}
        made = ClassMethodNode(self._name, args, kwargs, self._options, other)
        self._node._last_call = made
        return made


class ClassMethodNode(DAGNode):
    """A call of an actor: of one that the graph makes, or of one that lives. Or one of the results of a call that has several."""

    def __init__(
        self,
        method_name: str,
        method_args: Sequence[Any],
        method_kwargs: dict[str, Any],
        method_options: dict[str, Any],
        other_args_to_resolve: dict[str, Any],
    ) -> None:
        self._method_name = method_name
        self._call: ClassMethodNode | None = None
        self._index: int | None = None
        super().__init__(method_args, method_kwargs, method_options, other_args_to_resolve)

    def get_method_name(self) -> str:
        return self._method_name

    @property
    def num_returns(self) -> int:
        """How many results the call has."""
        given = self._bound_options.get("num_returns")
        return given if isinstance(given, int) else 1

    @property
    def is_class_method_call(self) -> bool:
        return self._call is None

    @property
    def is_class_method_output(self) -> bool:
        return self._call is not None

    @property
    def class_method_call(self) -> ClassMethodNode | None:
        """Of a result: the call that it comes from."""
        return self._call

    @property
    def output_idx(self) -> int | None:
        """Of a result: which one it is."""
        return self._index

    def _outputs(self) -> tuple[ClassMethodNode, ...]:
        return tuple(_output(self, i) for i in range(self.num_returns))

    def _run(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if self._index is not None:
            return self._bound_args[0][self._index]
        method: Any = getattr(self._bound_other_args_to_resolve[_ACTOR], self._method_name)
        if self._bound_options:
            method = method.options(**self._bound_options)
        return method.remote(*self._bound_args, **self._bound_kwargs)


def _output(call: ClassMethodNode, index: int) -> ClassMethodNode:
    made = ClassMethodNode(call.get_method_name(), (call,), {}, call.get_options(), {})
    made._call, made._index = call, index
    return made


class _LivingActorsMethod(ClassMethodNode):
    """The options of the method are in the method that was bound."""

    def __init__(self, method: ActorMethod[Any, Any], name: str, args: Sequence[Any], kwargs: dict[str, Any], options: dict[str, Any]) -> None:
        self._method = method
        super().__init__(name, args, kwargs, options, {})

    def _run(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return self._method.remote(*self._bound_args, **self._bound_kwargs)


def bind_method(method: ActorMethod[Any, Any], name: str, num_returns: int, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """A call of a living actor's method; a tuple of its results' nodes where it has several."""
    call = _LivingActorsMethod(method, name, args, kwargs, {"num_returns": num_returns})
    return call._outputs() if num_returns > 1 else call
