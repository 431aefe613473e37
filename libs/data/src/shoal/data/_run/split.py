"""One execution dealt out to several consumers, in whatever processes they are.

An actor runs the plan and hands out parts of blocks. An epoch begins when all consumers ask for it; nobody's data can be taken twice or be missed.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import shoal

from .._block.meta import Bundle
from .._plan.logical import Node
from ..context import DataContext
from ..exceptions import DataError
from ..iterator import DataIterator
from .execution import Execution

logger = logging.getLogger("shoal.data")
# How long a call of the actor waits before it says that there is nothing yet.
CALL_S = 5.0
TELL_EVERY = 12
# Parts that wait for one consumer; and that are handed out by one call.
PARTS_WAITING = 4
PARTS_AT_ONCE = 2


class Part(NamedTuple):
    """Rows of a block."""

    ref: Any
    start: int
    rows: int


class Deal:
    """Who gets which rows. Pure.

    Equal: every block is cut into as many parts, what does not divide waits for the next block; at the end up to n - 1 rows are left out.
    Otherwise each block goes whole to a consumer that asks for one, to one on its node if hints say where consumers are.
    """

    def __init__(self, n: int, equal: bool) -> None:
        self.n = n
        self.equal = equal
        self.rest: list[Part] = []
        self.turn = 0

    def parts(self, ref: Any, rows: int) -> list[list[Part]]:
        """For each consumer its parts of a block."""
        dealt: list[list[Part]] = [[] for _ in range(self.n)]
        each = rows // self.n
        if each:
            for i in range(self.n):
                dealt[i].append(Part(ref, i * each, each))
        if rows % self.n:
            self.rest.append(Part(ref, each * self.n, rows % self.n))
        while sum(part.rows for part in self.rest) >= self.n:
            for i in range(self.n):
                dealt[i].append(self._one_row())
        return dealt

    def _one_row(self) -> Part:
        ref, start, rows = self.rest[0]
        if rows == 1:
            self.rest.pop(0)
        else:
            self.rest[0] = Part(ref, start + 1, rows - 1)
        return Part(ref, start, 1)


class SplitCoordinator:
    """The actor."""

    def __init__(self, plan: Node, context: DataContext, n: int, equal: bool, hints: list[Any] | None) -> None:
        self.plan = plan
        self.context = context
        self.n = n
        self.equal = equal
        self.hints = hints
        self.changed = threading.Condition()
        self.epoch = 0
        self.arrived: set[int] = set()
        self.queues: list[deque[Part]] = []
        self.common: deque[Part] = deque()
        self.done = True
        self.error: BaseException | None = None
        self.last_stats = "nothing was executed yet"

    def begin(self, index: int, wanted: int) -> tuple[int, list[int]]:
        """The epoch that has begun for consumer `index`, or 0 and whom it waits for. `wanted`: 0, or the epoch that an earlier call was told to wait for."""
        with self.changed:
            if wanted and self.epoch >= wanted:
                return self.epoch, []
            self.arrived.add(index)
            wanted = self.epoch + 1
            if len(self.arrived) == self.n:
                self._start()
            else:
                self.changed.wait_for(lambda: self.epoch >= wanted, CALL_S)
            if self.epoch >= wanted:
                return self.epoch, []
            return -wanted, sorted(set(range(self.n)) - self.arrived)

    def _start(self) -> None:
        self.epoch += 1
        self.arrived = set()
        self.queues = [deque() for _ in range(self.n)]
        self.common = deque()
        self.done = False
        self.error = None
        threading.Thread(target=self._run, args=(self.epoch,), daemon=True).start()
        self.changed.notify_all()

    def _run(self, epoch: int) -> None:
        error: BaseException | None = None
        try:
            execution = Execution(self.plan, self.context)
            deal = Deal(self.n, self.equal)
            for bundle in execution:
                if bundle.meta.rows and not self._hand_over(epoch, deal, bundle):
                    return
            self.last_stats = stats_text(execution)
        except BaseException as caught:
            error = caught
        with self.changed:
            if self.epoch == epoch:
                self.done = True
                self.error = error
                self.changed.notify_all()

    def _hand_over(self, epoch: int, deal: Deal, bundle: Bundle) -> bool:
        """False when the epoch is over."""
        with self.changed:
            self.changed.wait_for(lambda: self.epoch != epoch or self._room())
            if self.epoch != epoch:
                return False
            if self.equal:
                for queue, parts in zip(self.queues, deal.parts(bundle.ref, bundle.meta.rows), strict=True):
                    queue.extend(parts)
            else:
                self.common.append(Part(bundle.ref, 0, bundle.meta.rows))
            self.changed.notify_all()
        return True

    def _room(self) -> bool:
        if self.equal:
            return max(map(len, self.queues)) < PARTS_WAITING
        return len(self.common) < PARTS_WAITING * self.n

    def next(self, index: int, epoch: int) -> tuple[bool, list[Part]]:
        """Whether there may be more, and parts."""
        with self.changed:
            self.changed.wait_for(lambda: self.epoch != epoch or self.done or self._queue(index), CALL_S)
            if self.epoch != epoch:
                raise DataError(f"streaming_split: consumer {index} asks for epoch {epoch}, and all consumers have begun epoch {self.epoch}")
            queue = self._queue(index)
            taken = [self._pick(queue, index) for _ in range(min(PARTS_AT_ONCE, len(queue)))]
            if taken:
                self.changed.notify_all()
            elif self.error is not None:
                raise self.error
            return bool(taken) or not self.done, taken

    def _queue(self, index: int) -> deque[Part]:
        return self.queues[index] if self.equal else self.common

    def _pick(self, queue: deque[Part], index: int) -> Part:
        if self.hints and not self.equal:
            from shoal.ext import object_places

            places = object_places([part.ref for part in queue])
            for i, nodes in enumerate(places):
                if any(place.node_id == self.hints[index] for place in nodes):
                    part = queue[i]
                    del queue[i]
                    return part
        return queue.popleft()

    def stats(self) -> str:
        return self.last_stats


class SplitIterator(DataIterator):
    """One consumer's part."""

    def __init__(self, coordinator: Any, index: int, n: int, dataset: Any) -> None:
        self._coordinator = coordinator
        self._index = index
        self._n = n
        self._dataset = dataset

    def __repr__(self) -> str:
        return f"DataIterator(part {self._index} of {self._n})"

    def _tables(self) -> Iterator[pa.Table]:
        epoch = self._begin()
        ask = self._coordinator.next
        more = True
        answer = ask.remote(self._index, epoch)
        while more:
            more, parts = shoal.get(answer)
            if more:
                answer = ask.remote(self._index, epoch)  # the next parts come while these are used
            for part in parts:
                yield shoal.get(part.ref).slice(part.start, part.rows)

    def _begin(self) -> int:
        wanted, calls = 0, 0
        while True:
            epoch, missing = shoal.get(self._coordinator.begin.remote(self._index, wanted))
            if epoch > 0:
                return int(epoch)
            wanted, calls = -epoch, calls + 1
            if calls % TELL_EVERY == 0:
                logger.warning(
                    "streaming_split: part %d waits for parts %s of %d to begin an epoch; all must be consumed at the same time", self._index, missing, self._n
                )

    def schema(self) -> Any:
        return self._dataset.schema()

    def stats(self) -> str:
        return str(shoal.get(self._coordinator.stats.remote()))

    def get_context(self) -> DataContext:
        return self._dataset.context  # type: ignore[no-any-return]


def stats_text(execution: Execution) -> str:
    """What each operator of an execution did."""
    lines = []
    for i, stats in enumerate(execution.stats):
        lines.append(
            f"Operator {i} {stats.name}: {stats.tasks} tasks executed, {stats.blocks} blocks produced in {stats.ran_s():.2f} s\n"
            f"* Task time: {stats.task_seconds:.3f} s total\n"
            f"* Output: {stats.rows} rows, {stats.size_bytes} bytes"
        )
    lines.append(f"Dataset: {execution.wall_s:.2f} s")
    return "\n\n".join(lines)
