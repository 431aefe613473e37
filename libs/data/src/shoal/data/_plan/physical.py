"""From the logical plan to operators: neighbouring steps are fused into one task, exchanges become an arrangement of blocks and reducers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .._block.meta import Bundle
from .._ops import arrange, grouping, joining, steps
from .._run.budget import Budget, actors_that_fit
from .._run.operators import (
    BarrierOperator,
    InputOperator,
    JoinOperator,
    LimitOperator,
    MapOperator,
    Operator,
    PoolOperator,
    TaskOperator,
    UnionOperator,
    Work,
)  # fmt: skip
from .._run.tasks import Chain, Cut
from ..context import DataContext
from ..exceptions import NotEnoughResourcesError, SchemaMismatchError
from . import logical
from .logical import Node

# Blocks of any size.
UNCUT = 1 << 62


class Planner:
    """Makes the operators of one execution, in the order of data flow."""

    def __init__(self, context: DataContext, budget: Budget) -> None:
        self.context = context
        self.budget = budget
        self.target_bytes = budget.block_bytes(context.target_max_block_size)
        self.operators: list[Operator] = []

    def plan(self, node: Node) -> list[Operator]:
        self._plan(node)
        self._fit_pools()
        return self.operators

    # -- single nodes
    def _plan(self, node: Node) -> Operator:
        method = getattr(self, f"_plan_{type(node).__name__.lower()}")
        operator: Operator = method(node)
        return operator

    def _append(self, operator: Operator, *inputs: Operator) -> Operator:
        for port, before in enumerate(inputs):
            before.consumer = (operator, port)
        self.operators.append(operator)
        return operator

    def _chain(self) -> Chain:
        return Chain(target_bytes=self.target_bytes)

    def _plan_read(self, node: logical.Read) -> Operator:
        parallelism = node.parallelism or self.context.read_op_min_num_blocks or max(1, math.ceil(self.budget.cpus * 2))
        reads = node.source.reads(parallelism, self.context, node.parallelism is not None)
        options: dict[str, Any] = {"remote_args": node.remote_args, "max_tasks": node.concurrency}
        return self._append(MapOperator(node.name, self._chain(), reads, **options))

    def _plan_blocks(self, node: logical.Blocks) -> Operator:
        return self._append(InputOperator(node.name, node.bundles))

    def _plan_map(self, node: logical.Map) -> Operator:
        before = self._plan(node.input)
        if node.pool is not None:
            return self._plan_pool(node, before)
        if self._fuses(before, node):
            assert isinstance(before, TaskOperator)
            self._fuse(before, node)
            return before
        chain = self._chain()
        chain.add(node.step)
        return self._append(MapOperator(node.name, chain, min_rows=node.min_rows, remote_args=node.remote_args, max_tasks=node.concurrency), before)

    def _fuses(self, before: Operator, node: logical.Map) -> bool:
        if not isinstance(before, TaskOperator) or isinstance(before, (LimitOperator, JoinOperator)) or before.chain.finish is not None:
            return False
        if not self._runs_all_in_tasks(before) or isinstance(node.step, steps.Gather):
            return False
        if isinstance(before, PoolOperator):
            return not node.remote_args and not before.remote_args.get("num_gpus") and node.concurrency is None and not node.min_rows
        if node.min_rows and isinstance(before, MapOperator) and before.open_ports and (before.min_rows or 0) < node.min_rows:
            return False
        return (before.remote_args == node.remote_args or not before.remote_args) and (before.max_tasks is None or before.max_tasks == node.concurrency)

    def _fuse(self, before: TaskOperator, node: logical.Map) -> None:
        before.chain.add(node.step)
        before.chain.target_bytes = self.target_bytes
        before.name = before.stats.name = f"{before.name}->{node.name}"
        before.remote_args = before.remote_args or node.remote_args
        before.max_tasks = before.max_tasks or node.concurrency

    def _plan_pool(self, node: logical.Map, before: Operator) -> Operator:
        assert node.pool is not None
        pool: dict[str, Any] = {
            "low": node.pool.low,
            "high": node.pool.high,
            "in_flight": node.pool.in_flight,
            "remote_args": node.remote_args,
            "min_rows": node.min_rows,
        }
        # The actors read and map themselves what comes before, unless that wants resources of its own or the actors hold a GPU.
        plain = (
            type(before) is MapOperator and not before.remote_args and before.max_tasks is None and before.chain.finish is None and before is self.operators[-1]
        )
        if plain and not node.remote_args.get("num_gpus") and (not before.open_ports or (before.min_rows or 0) == (node.min_rows or 0)):  # type: ignore[attr-defined]
            assert isinstance(before, MapOperator)
            before.chain.add(node.step)
            fused = PoolOperator(f"{before.name}->{node.name}", before.chain, **pool)
            fused.open_ports, fused.work = before.open_ports, before.work
            self.operators.pop()
            for operator in self.operators:
                if operator.consumer is not None and operator.consumer[0] is before:
                    operator.consumer = (fused, operator.consumer[1])
            return self._append(fused)
        chain = self._chain()
        chain.add(node.step)
        return self._append(PoolOperator(node.name, chain, **pool), before)

    def _plan_finished(self, node: logical.Finished) -> Operator:
        return self._finish(self._plan(node.input), node.finish, node.label)

    def _finish(self, before: Operator, finish: Any, label: str) -> TaskOperator:
        """Gives `before` a last act on its blocks; fused where that is possible."""
        if (
            isinstance(before, TaskOperator)
            and not isinstance(before, (LimitOperator, JoinOperator))
            and before.chain.finish is None
            and self._runs_all_in_tasks(before)
        ):
            before.chain.finish = finish
            before.name = before.stats.name = f"{before.name}->{label}"
            return before
        chain = self._chain()
        chain.finish = finish
        operator = MapOperator(label, chain)
        self._append(operator, before)
        return operator

    def _runs_all_in_tasks(self, operator: TaskOperator) -> bool:
        # A barrier may let blocks pass without a task, so nothing can be added to what it does with them.
        return not isinstance(operator, BarrierOperator) or getattr(operator, "always_tasks", False)

    def _plan_limit(self, node: logical.Limit) -> Operator:
        return self._append(LimitOperator(node.name, node.limit), self._plan(node.input))

    def _plan_union(self, node: logical.Union) -> Operator:
        return self._append(UnionOperator(node.name, len(node.inputs)), *[self._plan(one) for one in node.inputs])

    # -- exchanges
    def _barrier(self, name: str, plan: Any, *inputs: Operator, always_tasks: bool = True) -> Operator:
        operator = BarrierOperator(name, self._chain(), len(inputs), plan)
        operator.always_tasks = always_tasks  # type: ignore[attr-defined]
        return self._append(operator, *inputs)

    def _plan_sort(self, node: logical.Sort) -> Operator:
        before = self._finish(self._plan(node.input), arrange.Sorted(node.key, node.limit), "SortBlocks")
        return self._barrier(node.name, lambda inputs: self._sort_work(node, inputs[0]), before)

    def _sort_work(self, node: logical.Sort, bundles: list[Bundle]) -> list[Work]:
        bundles = with_rows(bundles)
        parts = 1 if node.limit is not None else self._parts(bundles)
        cuts = arrange.boundaries([bundle.meta.extra for bundle in bundles], node.key, parts) if parts > 1 else []
        edges = [None, *cuts, None]
        whole = [[Cut(None)] * len(bundles)]
        share = sum(bundle.meta.size_bytes for bundle in bundles) / max(1, len(edges) - 1)
        return [
            Work(bundles, reducer=arrange.MergeSorted(node.key, start, end, node.limit), cuts=whole, estimate_bytes=share)
            for start, end in itertools.pairwise(edges)
        ]

    def _plan_shuffle(self, node: logical.Shuffle) -> Operator:
        by = arrange.ByChance(node.seed)
        before = self._finish(self._plan(node.input), by, "ShuffleBlocks")

        def plan(inputs: list[list[Bundle]]) -> list[Work]:
            places = [bundle.meta.extra for bundle in with_rows(inputs[0])]

            def reducer(part: int, first: int, end: int) -> arrange.Permuted:
                return arrange.Permuted(node.seed, part, [one[first : end + 1] - one[first] for one in places])

            return self._bucket_work(inputs, node.blocks, reducer, by)

        return self._barrier(node.name, plan, before)

    def _plan_grouprows(self, node: logical.GroupRows) -> Operator:
        by = arrange.ByHash(list(node.keys))
        before = self._finish(self._plan(node.input), by, "HashBlocks")
        operator = self._barrier(node.name, lambda inputs: self._bucket_work(inputs, node.partitions, lambda *_: arrange.Whole(), by), before)
        assert isinstance(operator, TaskOperator)
        operator.chain.target_bytes = UNCUT  # a group must not end up in two blocks
        return operator

    def _plan_aggregate(self, node: logical.Aggregate) -> Operator:
        keys, aggregations = list(node.keys), list(node.aggregations)
        before = self._plan_map(logical.Map((node.input,), grouping.PartialAggregate(keys, aggregations)))
        # Few groups need no partitions; blocks of many are arranged, in case there are too many for one task.
        by = arrange.ByHash(keys or [grouping.ALL], min_rows=1 << 16)
        arranged = self._finish(before, by, "Partition") if keys else before
        reducer = grouping.FinishAggregate(keys, aggregations)
        return self._barrier(node.name, lambda inputs: self._bucket_work(inputs, node.partitions if keys else 1, lambda *_: reducer, by), arranged)

    def _plan_join(self, node: logical.Join) -> Operator:
        spec = node.spec
        before = len(self.operators)
        left = self._plan(node.inputs[0])
        # The left side waits: what its tasks do depends on how large the right side is, and its blocks would only fill memory meanwhile.
        waits = [operator for operator in self.operators[before:] if isinstance(operator, TaskOperator)]
        right = self._plan(node.inputs[1])
        sides = [arrange.ByHash(keys, where=f"{spec.name}, {side} side") for keys, side in ((spec.left_on, "left"), (spec.right_on, "right"))]
        arranged_right = self._finish(right, sides[1], "HashBlocks")
        held = MapOperator(f"{spec.name}: left side", self._chain())
        self._append(held, left)
        for operator in [*waits, held]:
            operator.holds += 1
        held.chain.finish = sides[0]

        def decide(bundles: list[Bundle]) -> bool:
            small = sum(bundle.meta.size_bytes for bundle in bundles) <= self.context.broadcast_join_threshold and spec.kind in joining.BROADCAST
            if small:
                held.chain.finish = None
                held.chain.add(joining.BroadcastJoin(spec, [bundle.ref for bundle in bundles]))
            for operator in [*waits, held]:
                operator.holds -= 1
            return small

        plan = lambda inputs: self._bucket_work(inputs, node.partitions, lambda *_: joining.JoinPartitions(spec), sides[0], keep_empty=True)  # noqa: E731
        return self._append(JoinOperator(node.name, self._chain(), plan, decide), held, arranged_right)

    def _bucket_work(
        self, inputs: list[list[Bundle]], partitions: int | None, reducer: Callable[[int, int, int], Any], by: arrange.InBuckets, keep_empty: bool = False
    ) -> list[Work]:
        """A piece of work for each partition. `reducer`: made of the partition's number, its first bucket, and the one after its last."""
        groups = [with_rows(bundles) for bundles in inputs] if not keep_empty else [with_rows(bundles) or bundles for bundles in inputs]
        everything = [bundle for group in groups for bundle in group]
        parts = min(arrange.BUCKETS, partitions) if partitions else self._parts(everything)
        edges = even_edges(everything, parts)
        size = sum(bundle.meta.size_bytes for bundle in everything)
        return [
            Work(
                everything,
                reducer=reducer(part, first, end),
                cuts=[[bucket_cut(bundle, first, end, by) for bundle in group] for group in groups],
                estimate_bytes=size / len(edges),
            )
            for part, (first, end) in enumerate(itertools.pairwise(edges))
        ]

    def _parts(self, bundles: Sequence[Bundle]) -> int:
        """How many reducers: blocks of the target size, and one for each CPU unless there is little to do."""
        size = sum(bundle.meta.size_bytes for bundle in bundles)
        if size <= self.context.single_task_threshold:
            return 1
        return min(arrange.BUCKETS, max(math.ceil(size / self.target_bytes), math.ceil(self.budget.cpus)))

    # -- rows in the order they have
    def _plan_repartition(self, node: logical.Repartition) -> Operator:
        before = self._plan(node.input)
        if node.keys:
            by = arrange.ByHash(list(node.keys), where="repartition")
            key = arrange.SortKey(node.keys, (False,) * len(node.keys))
            reducer = arrange.SortedWhole(key) if node.sort else arrange.Whole()
            return self._barrier(
                node.name, lambda inputs: self._bucket_work(inputs, node.blocks, lambda *_: reducer, by), self._finish(before, by, "HashBlocks")
            )
        return self._barrier(node.name, lambda inputs: row_work(inputs[0], row_edges(inputs[0], node.blocks, node.rows_per_block)), before, always_tasks=False)

    def _plan_randomizeblocks(self, node: logical.RandomizeBlocks) -> Operator:
        def plan(inputs: list[list[Bundle]]) -> list[Work]:
            order = np.random.default_rng(node.seed).permutation(len(inputs[0]))
            return [Work([inputs[0][i]], passes=True) for i in order]

        return self._barrier(node.name, plan, self._plan(node.input), always_tasks=False)

    def _plan_zip(self, node: logical.Zip) -> Operator:
        return self._barrier(node.name, zip_work, *[self._plan(one) for one in node.inputs])

    # -- resources
    def _fit_pools(self) -> None:
        """Pools that would take every CPU from the tasks they depend on are made smaller."""
        pools = [operator for operator in self.operators if isinstance(operator, PoolOperator)]
        others = [operator for operator in self.operators if isinstance(operator, TaskOperator) and operator not in pools and operator.cpus_per_task > 0]
        for pool in pools:
            reserved = (1.0 if others else 0.0) + sum(other.cpus_per_task for other in pools if other is not pool)
            fit = actors_that_fit(pool.high, pool.cpus_per_task, self.budget.cpus, reserved)
            if fit == 0 and "num_cpus" not in pool.remote_args:
                # Nobody asked for a whole CPU, so the actors run beside the other stages.
                pool.remote_args = {**pool.remote_args, "num_cpus": 0}
            elif fit == 0:
                raise NotEnoughResourcesError(
                    f"operator {pool.name}: an actor holds {pool.cpus_per_task:g} CPUs for as long as the pipeline runs, "
                    f"its other stages need {reserved:g}, and there are {self.budget.cpus:g}; "
                    "give the actors a smaller num_cpus, or the cluster more CPUs"
                )
            else:
                pool.high = fit
                pool.low = min(pool.low, fit)


# -- work over rows -------------------------------------------------------------------------------------------


def with_rows(bundles: list[Bundle]) -> list[Bundle]:
    """Without those that are empty, but for one if all are."""
    return [bundle for bundle in bundles if bundle.meta.rows] or bundles[:1]


def even_edges(bundles: Sequence[Bundle], parts: int) -> list[int]:
    """Buckets at which the partitions begin, so that these have about equal bytes; and the last end."""
    weights = np.zeros(arrange.BUCKETS)
    for bundle in bundles:
        if bundle.meta.rows and isinstance(bundle.meta.extra, np.ndarray):
            weights += np.diff(bundle.meta.extra) * (bundle.meta.size_bytes / bundle.meta.rows)
    weights += max(weights.sum(), 1.0) / arrange.BUCKETS / 1000  # so that empty buckets are spread, too
    reached = np.cumsum(weights) / weights.sum()
    edges = [0, *(int(np.searchsorted(reached, part / parts)) + 1 for part in range(1, parts)), arrange.BUCKETS]
    for i in range(1, parts):  # every partition has a bucket at least
        edges[i] = min(max(edges[i], edges[i - 1] + 1), arrange.BUCKETS - (parts - i))
    return edges


def bucket_cut(bundle: Bundle, first: int, end: int, by: arrange.InBuckets) -> Cut:
    places = bundle.meta.extra
    if isinstance(places, np.ndarray):
        return Cut((int(places[first]), int(places[end])))
    return Cut(None, first, end, by)


def row_edges(bundles: list[Bundle], blocks: int | None, rows_per_block: int | None) -> list[int]:
    total = sum(bundle.meta.rows for bundle in bundles)
    if rows_per_block is not None:
        return [*range(0, total, rows_per_block), total] if total else [0, 0]
    assert blocks is not None
    return [total * i // blocks for i in range(blocks + 1)]


def row_cuts(bundles: list[Bundle], start: int, end: int) -> tuple[list[Bundle], list[Cut]]:
    """The blocks with the rows from `start` to `end` of all, and which of theirs those are."""
    taken, cuts = [], []
    row = 0
    for bundle in bundles:
        low, high = max(start - row, 0), min(end - row, bundle.meta.rows)
        if low < high:
            taken.append(bundle)
            cuts.append(Cut((low, high)))
        row += bundle.meta.rows
    if not taken and bundles:
        return [bundles[0]], [Cut((0, 0))]
    return taken, cuts


def row_work(bundles: list[Bundle], edges: list[int]) -> list[Work]:
    work = []
    for start, end in itertools.pairwise(edges):
        taken, cuts = row_cuts(bundles, start, end)
        whole = len(taken) == 1 and cuts[0].rows == (0, taken[0].meta.rows)
        work.append(Work(taken, passes=True) if whole else Work(taken, reducer=arrange.Whole(), cuts=[cuts]))
    return work


def zip_work(inputs: list[list[Bundle]]) -> list[Work]:
    counts = [sum(bundle.meta.rows for bundle in bundles) for bundles in inputs]
    if len(set(counts)) > 1:
        raise SchemaMismatchError(f"zip: the datasets have different numbers of rows: {', '.join(map(str, counts))}")
    edges = [0]
    for bundle in with_rows(inputs[0]):
        edges.append(edges[-1] + bundle.meta.rows)
    work = []
    for start, end in itertools.pairwise(edges):
        taken: list[Bundle] = []
        cuts = []
        for bundles in inputs:
            blocks, rows = row_cuts(bundles, start, end)
            taken += blocks
            cuts.append(rows)
        work.append(Work(taken, reducer=arrange.Zipped(), cuts=cuts))
    return work
