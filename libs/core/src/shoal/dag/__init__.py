"""Graphs of calls: `.bind()` makes nodes, `execute()` runs them as tasks and calls of actors.

    >>> from shoal.dag import InputNode, MultiOutputNode
    >>> with InputNode() as given:  # doctest: +SKIP
    ...     graph = MultiOutputNode([add.bind(given[0], given.x), add.bind(given[0], 1)])
    >>> shoal.get(graph.execute(1, x=2))  # doctest: +SKIP
    [3, 2]
"""

from .calls import ClassMethodNode, ClassNode, FunctionNode
from .inputs import DAGInputData, InputAttributeNode, InputNode
from .node import DAGNode
from .outputs import MultiOutputNode

__all__ = ["ClassMethodNode", "ClassNode", "DAGInputData", "DAGNode", "FunctionNode", "InputAttributeNode", "InputNode", "MultiOutputNode"]
