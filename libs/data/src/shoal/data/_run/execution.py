"""One execution of a plan: optimized, planned, run."""

from __future__ import annotations

from collections.abc import Iterator

import shoal

from .._block.meta import Bundle
from .._plan.logical import Node
from .._plan.optimizer import optimize
from .._plan.physical import Planner
from ..context import DataContext
from .executor import Executor, cluster_budget
from .operators import OperatorStats


class Execution:
    """Iterates over a plan's bundles, once; afterwards it knows what was done.

    Attributes:
        schema: of the first block that had columns.
        stats: of each operator.
    """

    def __init__(self, plan: Node, context: DataContext) -> None:
        if not shoal.is_initialized():
            shoal.init()
        budget = cluster_budget(context)
        self._executor = Executor(Planner(context, budget).plan(optimize(plan)), budget)

    def __iter__(self) -> Iterator[Bundle]:
        return iter(self._executor)

    @property
    def schema(self) -> object:
        return self._executor.schema

    @property
    def stats(self) -> list[OperatorStats]:
        return [operator.stats for operator in self._executor.operators]

    @property
    def wall_s(self) -> float:
        return (self._executor.ended_at or self._executor.started_at) - self._executor.started_at
