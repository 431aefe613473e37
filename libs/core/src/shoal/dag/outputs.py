"""The end of a graph that has several results."""

from __future__ import annotations

from typing import Any

from .node import DAGNode


class MultiOutputNode(DAGNode):
    """Several nodes' results as a list."""

    def __init__(self, args: list[Any] | tuple[Any, ...], other_args_to_resolve: dict[str, Any] | None = None) -> None:
        if not isinstance(args, list | tuple):
            raise ValueError(f"MultiOutputNode takes a list or tuple of nodes, got {type(args).__name__}")
        super().__init__(args, {}, {}, other_args_to_resolve)

    def _run(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return list(self._bound_args)
