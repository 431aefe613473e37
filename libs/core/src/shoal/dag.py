"""Graphs of calls: `.bind()` makes nodes, `execute()` runs them as tasks and actor calls."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Self

_Results = dict[int, Any]


class DAGNode:
    """A call that is not made yet. Its arguments may be other nodes."""

    def __init__(self, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> None:
        self._args = args
        self._kwargs = kwargs or {}

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the graph that ends here, each node once. Returns what the last node's `.remote` returns."""
        return self._resolve({}, args, kwargs)

    def _resolve(self, done: _Results, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if id(self) not in done:
            args = tuple(_fill(a, done, inputs, named) for a in self._args)
            kwargs = {k: _fill(v, done, inputs, named) for k, v in self._kwargs.items()}
            done[id(self)] = self._run(args, kwargs, done, inputs, named)
        return done[id(self)]

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any], done: _Results, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        raise TypeError(f"a {type(self).__name__} cannot be executed")


def _fill(value: Any, done: _Results, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """An argument with every node in it, inside lists, tuples and dicts too, replaced by its result."""
    if isinstance(value, DAGNode):
        return value._resolve(done, inputs, named)
    if type(value) in (list, tuple):
        return type(value)(_fill(item, done, inputs, named) for item in value)
    if type(value) is dict:
        return {k: _fill(item, done, inputs, named) for k, item in value.items()}
    return value


class FunctionNode(DAGNode):
    """A remote function's call."""

    def __init__(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__(args, kwargs)
        self._function = function

    def options(self, **options: Any) -> FunctionNode:
        return FunctionNode(self._function.options(**options), self._args, self._kwargs)

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any], *_: Any) -> Any:
        return self._function.remote(*args, **kwargs)


class ClassNode(DAGNode):
    """An actor that is made when the graph first runs, and kept for its later runs."""

    def __init__(self, actor_class: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__(args, kwargs)
        self._class = actor_class
        self._handle: Any = None

    def __getattr__(self, name: str) -> _UnboundMethod:
        if name.startswith("_"):
            raise AttributeError(name)
        return _UnboundMethod(self, name)

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any], *_: Any) -> Any:
        if self._handle is None:
            self._handle = self._class.remote(*args, **kwargs)
        return self._handle


class _UnboundMethod:
    def __init__(self, node: ClassNode, name: str) -> None:
        self._node = node
        self._name = name

    def bind(self, *args: Any, **kwargs: Any) -> ClassMethodNode:
        return ClassMethodNode(self._node, self._name, args, kwargs)


class ClassMethodNode(DAGNode):
    """A call of an actor that the graph itself makes."""

    def __init__(self, node: ClassNode, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__(args, kwargs)
        self._node = node
        self._name = name

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any], done: _Results, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        handle = self._node._resolve(done, inputs, named)
        return getattr(handle, self._name).remote(*args, **kwargs)


class ActorMethodNode(DAGNode):
    """A call of a living actor."""

    def __init__(self, method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__(args, kwargs)
        self._method = method

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any], *_: Any) -> Any:
        return self._method.remote(*args, **kwargs)


class InputNode(DAGNode, AbstractContextManager["InputNode"]):
    """Stands for what `execute` is given. `node[0]`, `node["name"]` and `node.name` are parts of it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __getitem__(self, key: int | str) -> InputAttributeNode:
        return InputAttributeNode(key)

    def __getattr__(self, name: str) -> InputAttributeNode:
        if name.startswith("_"):
            raise AttributeError(name)
        return InputAttributeNode(name)

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any], done: _Results, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if len(inputs) == 1 and not named:
            return inputs[0]
        raise ValueError(f"the graph takes one input, execute() was given {len(inputs)} positional and {len(named)} named ones: use node[0] or node.name")


class InputAttributeNode(DAGNode):
    """One part of the input."""

    def __init__(self, key: int | str) -> None:
        super().__init__()
        self._key = key

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any], done: _Results, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        key = self._key
        if isinstance(key, str) and key in named:
            return named[key]
        if isinstance(key, int) and (len(inputs) != 1 or named):
            return inputs[key]
        if len(inputs) == 1:
            whole = inputs[0]
            if isinstance(key, str) and not isinstance(whole, dict):
                return getattr(whole, key)
            if isinstance(key, int) and not isinstance(whole, list | tuple | dict):
                return inputs[key]
            return whole[key]
        raise KeyError(f"execute() was given no input {key!r}")


class MultiOutputNode(DAGNode):
    """Several nodes' results as a list."""

    def __init__(self, args: list[DAGNode] | tuple[DAGNode, ...]) -> None:
        super().__init__(tuple(args))

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any], *_: Any) -> Any:
        return list(args)
