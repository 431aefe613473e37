"""What stands for the arguments of `execute()`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Self

from .node import DAGNode


class InputNode(DAGNode, AbstractContextManager["InputNode"]):
    """Stands for what `execute` is given: the argument itself if there is one, else all of them. `node[0]`, `node["name"]` and `node.name` are parts of it.

    Args:
        input_type: which type is wanted, or for each part of the input its type; for those who show or check the graph, see `get_result_type`.
    """

    def __init__(
        self,
        *args: Any,
        input_type: type | dict[int | str, type] | None = None,
        _other_args_to_resolve: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if args or kwargs:
            raise ValueError("InputNode takes no arguments but input_type: what it stands for is given to execute()")
        self._input_type = input_type
        self._parts: dict[tuple[str, int | str], InputAttributeNode] = {}
        super().__init__((), {}, {}, _other_args_to_resolve)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __getitem__(self, key: int | str) -> InputAttributeNode:
        if not isinstance(key, int | str):
            raise TypeError(f"a part of the input is named by an int or a str, got {key!r}")
        return self._part("__getitem__", key)

    def __getattr__(self, name: str) -> InputAttributeNode:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._part("__getattr__", name)

    def _part(self, accessor: str, key: int | str) -> InputAttributeNode:
        if (accessor, key) not in self._parts:
            types = self._input_type if isinstance(self._input_type, dict) else {}
            self._parts[accessor, key] = InputAttributeNode(self, key, accessor, _name_of(types.get(key)))
        return self._parts[accessor, key]

    def get_result_type(self) -> str | None:
        """The name of `input_type`; None where none was given, or one for each part."""
        return _name_of(self._input_type) if isinstance(self._input_type, type) else None

    def set_context(self, key: str, val: Any) -> None:
        """Notes something at this node, for `get_other_args_to_resolve`."""
        self._bound_other_args_to_resolve[key] = val

    def _is_input(self) -> bool:
        return True

    def _run(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return inputs[0] if len(inputs) == 1 and not named else DAGInputData(*inputs, **named)


class InputAttributeNode(DAGNode):
    """One part of the input."""

    def __init__(self, dag_input_node: InputNode, key: int | str, accessor_method: str, input_type: str | None = None) -> None:
        self._key = key
        self._accessor = accessor_method
        self._result_type = input_type
        super().__init__((), {}, {}, {"dag_input_node": dag_input_node})

    @property
    def key(self) -> int | str:
        return self._key

    def get_result_type(self) -> str | None:
        """The name of the type that the InputNode was given for this part."""
        return self._result_type

    def _run(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        whole = self._bound_other_args_to_resolve["dag_input_node"]
        if self._accessor == "__getattr__" and not isinstance(whole, DAGInputData):
            return getattr(whole, str(self._key))
        try:
            return whole[self._key]
        except (KeyError, IndexError, TypeError) as error:
            given = f"{len(inputs)} positional and {sorted(named)} named ones" if isinstance(whole, DAGInputData) else f"one of type {type(whole).__name__}"
            raise type(error)(f"the graph uses input {self._key!r}, and execute() was given {given}: {error}") from error


class DAGInputData:
    """The arguments of `execute()` where there are several: by number those without a name, the others by their names."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._args = args
        self._kwargs = kwargs

    def __getitem__(self, key: int | str) -> Any:
        return self._args[key] if isinstance(key, int) else self._kwargs[key]


def _name_of(kind: type | None) -> str | None:
    if kind is None:
        return None
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
