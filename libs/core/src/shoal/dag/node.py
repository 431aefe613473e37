"""What all nodes share: their arguments, their order, and how a graph is run."""

from __future__ import annotations

import copy
import uuid
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self, TypeVar

from . import nested

T = TypeVar("T")


class DAGNode:
    """A call that is not made yet. Its arguments may be other nodes, also inside containers.

    Args:
        args, kwargs: of the call.
        options: of the call.
        other_args_to_resolve: what else the node depends on; nodes in it run before.
    """

    def __init__(self, args: Sequence[Any], kwargs: dict[str, Any], options: dict[str, Any], other_args_to_resolve: dict[str, Any] | None = None) -> None:
        self._bound_args = tuple(args or ())
        self._bound_kwargs = dict(kwargs or {})
        self._bound_options = dict(options or {})
        self._bound_other_args_to_resolve = dict(other_args_to_resolve or {})
        self._stable_uuid = uuid.uuid4().hex
        self._last_results: dict[str, Any] = {}
        self._downstream: list[weakref.ref[DAGNode]] = []
        self._tell_children()

    def _tell_children(self) -> None:
        for child in {id(node): node for node in self._found()}.values():
            # Of a child that is just being unpickled, nothing else is there yet.
            child.__dict__.setdefault("_downstream", []).append(weakref.ref(self))

    # -- what it is made of
    def get_args(self) -> tuple[Any, ...]:
        return self._bound_args

    def get_kwargs(self) -> dict[str, Any]:
        return self._bound_kwargs.copy()

    def get_options(self) -> dict[str, Any]:
        return self._bound_options.copy()

    def get_other_args_to_resolve(self) -> dict[str, Any]:
        return self._bound_other_args_to_resolve.copy()

    def get_stable_uuid(self) -> str:
        """Stays the same for copies and through pickling."""
        return self._stable_uuid

    def _children(self) -> list[DAGNode]:
        """The nodes it depends on at once, each one time."""
        return list({node._stable_uuid: node for node in self._found()}.values())

    def _found(self) -> Iterator[DAGNode]:
        return nested.find([self._bound_args, self._bound_kwargs, self._bound_other_args_to_resolve], DAGNode)

    def _filled(self, values: dict[str, Any]) -> Self:
        """A copy in which the value of each child stands in its place."""
        made = copy.copy(self)
        made._bound_args, made._bound_kwargs, made._bound_other_args_to_resolve = nested.replace(
            (self._bound_args, self._bound_kwargs, self._bound_other_args_to_resolve), DAGNode, lambda node: values[node._stable_uuid]
        )
        return made

    # -- walking
    def _bottom_up(self) -> list[DAGNode]:
        """This node and all it depends on, each after those that it depends on itself."""
        order: dict[str, DAGNode] = {}
        entered: set[str] = set()
        waiting: list[tuple[DAGNode, bool]] = [(self, False)]
        while waiting:
            node, children_done = waiting.pop()
            if children_done:
                order.setdefault(node._stable_uuid, node)
            elif node._stable_uuid not in entered:
                entered.add(node._stable_uuid)
                waiting.append((node, True))
                waiting.extend((child, False) for child in reversed(node._children()))
        return list(order.values())

    def apply_recursive(self, fn: Callable[[Any], T]) -> T:
        """Calls `fn` once for each node, those first on which others depend, with a copy in which the results of `fn` stand in the place of nodes."""
        return self._apply(fn)[self._stable_uuid]

    def _apply(self, fn: Callable[[Any], T]) -> dict[str, T]:
        done: dict[str, T] = {}
        for node in self._bottom_up():
            done[node._stable_uuid] = fn(node._filled(done))
        return done

    def traverse_and_apply(self, fn: Callable[[Any], Any]) -> None:
        """Calls `fn` once for each node that is connected with this one, in either direction."""
        seen = {self._stable_uuid}
        waiting: list[DAGNode] = [self]
        for node in waiting:  # grows while it is walked
            fn(node)
            later = [found for found in (ref() for ref in node._downstream) if found is not None]
            for other in (*later, *node._children()):
                if other._stable_uuid not in seen:
                    seen.add(other._stable_uuid)
                    waiting.append(other)

    def apply_functional(self, source_input_list: Any, predicate_fn: Callable[[DAGNode], bool], apply_fn: Callable[[DAGNode], Any]) -> Any:
        """`source_input_list` with `apply_fn(node)` in the place of each node in it for which `predicate_fn` holds. No node is changed."""
        done: dict[str, Any] = {}

        def applied(node: DAGNode) -> Any:
            if not predicate_fn(node):
                return node
            if node._stable_uuid not in done:
                done[node._stable_uuid] = apply_fn(node)
            return done[node._stable_uuid]

        return nested.replace(source_input_list, DAGNode, applied)

    # -- running
    def execute(self, *args: Any, _ray_cache_refs: bool = False, **kwargs: Any) -> Any:
        """Runs the graph that ends here, each node once.

        Args:
            args, kwargs: the input, which an InputNode stands for.
            _ray_cache_refs: keeps the result of each node for `get_object_refs_from_last_execute`.

        Returns:
            What the last node's call returns: an ObjectRef, a list of them, or an actor's handle.
        """
        inputs = {node._stable_uuid for node in self._bottom_up() if node._is_input()}
        if len(inputs) > 1:
            raise ValueError(f"the graph has {len(inputs)} InputNodes, and there is one input: use node[0], node['name'] or node.name of the same one")
        done = self._apply(lambda node: node._run(args, kwargs))
        if _ray_cache_refs:
            self._last_results = done
        return done[self._stable_uuid]

    def _is_input(self) -> bool:
        return False

    def _run(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        raise TypeError(f"a {type(self).__name__} cannot be executed")

    async def get_object_refs_from_last_execute(self) -> dict[str, Any]:
        """What each node returned when `execute(_ray_cache_refs=True)` was last called, by the node's `get_stable_uuid()`."""
        return dict(self._last_results)

    def clear_cache(self) -> None:
        """Lets go of what `get_object_refs_from_last_execute` would return."""
        self._last_results = {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_downstream"} | {"_last_results": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__dict__.setdefault("_downstream", [])
        self._tell_children()

    def __copy__(self) -> Self:
        made = type(self).__new__(type(self))
        made.__dict__.update(self.__dict__)
        return made

    def __getattr__(self, name: str) -> Any:
        if name == "bind":
            raise AttributeError(f".bind() cannot be used again on a {type(self).__name__}: it is bound already")
        if name == "remote":
            raise AttributeError(f".remote() cannot be used on a {type(self).__name__}: run the graph with .execute()")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
