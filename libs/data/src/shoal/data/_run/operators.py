"""Operators of a running plan: what waits, what runs, and what is ready, in order. They start tasks; the executor decides when."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import shoal

from .._block.meta import Bundle
from .entry import MapWorker, map_task, reduce_task
from .tasks import Chain, Cut, Reads

# How often a call of a pool's actor is tried again when its process died; a task has the same number by default.
MAX_RETRIES = 3
# A task that is this many items (block, meta, block, meta) ahead of the driver waits.
ITEMS_AHEAD = 2


@dataclass
class OperatorStats:
    """What an operator did."""

    name: str
    tasks: int = 0
    blocks: int = 0
    rows: int = 0
    size_bytes: int = 0
    task_seconds: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None

    def ran_s(self) -> float:
        return (self.ended_at or 0.0) - (self.started_at or 0.0) if self.started_at is not None and self.ended_at is not None else 0.0


@dataclass
class Work:
    """One task to be: what it reads, or the blocks it takes; or blocks that pass as they are."""

    bundles: list[Bundle] = field(default_factory=list)
    read: Reads | None = None
    reducer: Any = None
    cuts: list[list[Cut]] | None = None
    passes: bool = False
    estimate_bytes: float | None = None

    def size_bytes(self) -> int:
        return sum(bundle.meta.size_bytes for bundle in self.bundles)


@dataclass
class Slot:
    """The outputs of one piece of work; slots stand in the order of the inputs."""

    outputs: deque[Bundle] = field(default_factory=deque)
    done: bool = False


@dataclass
class Running:
    """A task in flight."""

    operator: TaskOperator
    slot: Slot
    work: Work
    index: int
    stream: Any
    estimate_bytes: float
    block: Any = None
    actor: Any = None


class Operator:
    """Base: gets bundles at its ports, gives bundles in order."""

    def __init__(self, name: str, ports: int) -> None:
        self.name = name
        self.open_ports = set(range(ports))
        self.consumer: tuple[Operator, int] | None = None
        self.stopped = False
        self.stats = OperatorStats(name)

    def add(self, bundle: Bundle, port: int) -> None:
        raise TypeError(f"{self.name} takes no input")

    def port_done(self, port: int) -> None:
        self.open_ports.discard(port)

    def outputs(self) -> Iterator[Bundle]:
        """What is ready, taken away."""
        return iter(())

    def finished(self) -> bool:
        return self.stopped or not self.open_ports

    def wants_no_more(self) -> bool:
        """Whether what is before this may stop."""
        return self.stopped

    def starves(self) -> bool:
        """Whether it has nothing to do without another input."""
        return True

    def held_bytes(self) -> int:
        return 0

    def stop(self) -> None:
        self.stopped = True

    def close(self) -> None:
        """Ends what it holds outside of this process."""


class InputOperator(Operator):
    """Blocks that are there already. They belong to a dataset, and are not counted as held."""

    def __init__(self, name: str, bundles: Iterable[Bundle]) -> None:
        super().__init__(name, 0)
        self.bundles = deque(bundles)

    def outputs(self) -> Iterator[Bundle]:
        while self.bundles and not self.stopped:
            yield self.bundles.popleft()

    def finished(self) -> bool:
        return self.stopped or not self.bundles


class TaskOperator(Operator):
    """Runs tasks; base of the following."""

    # Whether its inputs count against the budget: a barrier has to hold them all.
    counts_inputs = True

    def __init__(self, name: str, chain: Chain, ports: int, remote_args: dict[str, Any] | None = None, max_tasks: int | None = None) -> None:
        super().__init__(name, ports)
        self.chain = chain
        self.remote_args = remote_args or {}
        self.max_tasks = max_tasks
        self.work: deque[Work] = deque()
        self.slots: deque[Slot] = deque()
        self.running: list[Running] = []
        self.queued_bytes = 0
        self.output_bytes = 0
        self.started = 0
        self.ended_tasks = 0
        # What has to happen elsewhere in the plan before tasks may start.
        self.holds = 0
        self._chain_ref: Any = None
        self._remotes: dict[Any, Any] = {}

    @property
    def cpus_per_task(self) -> float:
        return float(self.remote_args.get("num_cpus", 1.0 if not self.remote_args.get("num_gpus") else 0.0))

    def push(self, work: Work) -> None:
        if work.passes:
            self.slots.append(Slot(deque(work.bundles), True))
            self.output_bytes += work.size_bytes()
            return
        self.work.append(work)
        if self.counts_inputs:
            self.queued_bytes += work.size_bytes()

    def starves(self) -> bool:
        return not self.work and not self.running

    def finished(self) -> bool:
        return self.stopped or (not self.open_ports and not self.work and not self.slots)

    def held_bytes(self) -> int:
        return self.queued_bytes + self.output_bytes

    def ready(self) -> bool:
        """Whether a task could start, but for the budget."""
        return bool(self.work) and not self.holds and not self.stopped and (self.max_tasks is None or len(self.running) < self.max_tasks)

    def estimate_bytes(self) -> float:
        """Of what the next task will hold at a time."""
        full = self.chain.target_bytes * 2.0
        if self.ended_tasks:
            return min(full, self.stats.size_bytes / self.ended_tasks)
        work = self.work[0]
        return min(full, work.estimate_bytes if work.estimate_bytes is not None else (work.size_bytes() or full))

    def start(self) -> Running:
        work = self.work.popleft()
        estimate = self.estimate_bytes() if self.work else self._last_estimate(work)
        slot = Slot()
        self.slots.append(slot)
        running = Running(self, slot, work, self.started, None, estimate)
        running.stream = self._submit(running)
        self.started += 1
        self.stats.tasks += 1
        if self.stats.started_at is None:
            self.stats.started_at = time.monotonic()
        self.running.append(running)
        return running

    def _last_estimate(self, work: Work) -> float:
        self.work.append(work)
        try:
            return self.estimate_bytes()
        finally:
            self.work.pop()

    def _submit(self, running: Running) -> Any:
        work, index = running.work, running.index
        if self._chain_ref is None:
            self._chain_ref = shoal.put(self.chain)
        refs = [bundle.ref for bundle in work.bundles]
        if work.cuts is None:
            return self._remote(map_task).remote(self._chain_ref, index, work.read, *refs)
        return self._remote(reduce_task).remote(self._chain_ref, index, work.reducer, work.cuts, *refs)

    def _remote(self, function: Callable[..., Any]) -> Any:
        if function not in self._remotes:
            options = {"num_returns": "streaming", "_generator_backpressure_num_objects": ITEMS_AHEAD, "name": self.name, **self.remote_args}
            self._remotes[function] = shoal.remote(function).options(**options)
        return self._remotes[function]

    def produced(self, running: Running, bundle: Bundle) -> None:
        self.stats.blocks += 1
        self.stats.rows += bundle.meta.rows
        self.stats.size_bytes += bundle.meta.size_bytes
        self.stats.task_seconds += bundle.meta.seconds
        running.slot.outputs.append(bundle)
        self.output_bytes += bundle.meta.size_bytes

    def ended(self, running: Running) -> None:
        running.slot.done = True
        self.running.remove(running)
        self.ended_tasks += 1
        if self.counts_inputs:
            self.queued_bytes -= running.work.size_bytes()
        running.work.bundles = []
        self.stats.ended_at = time.monotonic()

    def outputs(self) -> Iterator[Bundle]:
        while self.slots:
            head = self.slots[0]
            while head.outputs:
                bundle = head.outputs.popleft()
                self.output_bytes -= bundle.meta.size_bytes
                yield bundle
            if not head.done:
                return
            self.slots.popleft()

    def stop(self) -> None:
        super().stop()
        for running in self.running:
            running.stream.close()
        self.work.clear()
        self.slots.clear()
        self.queued_bytes = self.output_bytes = 0

    def close(self) -> None:
        self.stop()
        self._chain_ref = None


class MapOperator(TaskOperator):
    """A task for each input, or for as many as have `min_rows` rows; or one for each of `reads`."""

    def __init__(self, name: str, chain: Chain, reads: list[tuple[Reads, float | None]] | None = None, min_rows: int | None = None, **options: Any) -> None:
        super().__init__(name, chain, ports=0 if reads is not None else 1, **options)
        self.min_rows = min_rows
        self.gathered: list[Bundle] = []
        self.empty: Bundle | None = None
        self.pushed = False
        for read, estimate in reads or []:
            self.push(Work(read=read, estimate_bytes=estimate))

    def add(self, bundle: Bundle, port: int) -> None:
        if bundle.meta.rows == 0:
            self.empty = bundle
            return
        self.gathered.append(bundle)
        if sum(one.meta.rows for one in self.gathered) >= (self.min_rows or 0):
            self._flush()

    def port_done(self, port: int) -> None:
        if not self.gathered and not self.pushed and self.empty is not None and not self.stopped:
            self.gathered.append(self.empty)  # so that the columns are known though there are no rows
        if self.gathered:
            self._flush()
        super().port_done(port)

    def _flush(self) -> None:
        self.push(Work(bundles=self.gathered))
        self.gathered = []
        self.pushed = True


@dataclass
class PoolActor:
    handle: Any
    in_flight: int = 0


class PoolOperator(MapOperator):
    """As MapOperator, in a pool of actors that grows from `low` to `high` while work waits."""

    def __init__(self, name: str, chain: Chain, low: int, high: int, in_flight: int, **options: Any) -> None:
        super().__init__(name, chain, **options)
        self.low = low
        self.high = high
        self.in_flight = in_flight
        self.actors: list[PoolActor] = []

    def ready(self) -> bool:
        return super().ready() and (len(self.actors) < self.high or any(actor.in_flight < self.in_flight for actor in self.actors))

    def _submit(self, running: Running) -> Any:
        if self._chain_ref is None:
            self._chain_ref = shoal.put(self.chain)
        idle = [actor for actor in self.actors if actor.in_flight == 0]
        if len(self.actors) < self.low or (not idle and len(self.actors) < self.high):
            options: dict[str, Any] = {"max_restarts": -1, "max_task_retries": MAX_RETRIES, **self.remote_args}
            options.setdefault("num_cpus", self.cpus_per_task)
            self.actors.append(PoolActor(shoal.remote(MapWorker).options(**options).remote(self._chain_ref)))
        actor = min(self.actors, key=lambda one: one.in_flight)
        actor.in_flight += 1
        running.actor = actor
        method = actor.handle.run.options(num_returns="streaming", _generator_backpressure_num_objects=ITEMS_AHEAD, name=self.name)
        return method.remote(running.index, running.work.read, *[bundle.ref for bundle in running.work.bundles])

    def ended(self, running: Running) -> None:
        running.actor.in_flight -= 1
        super().ended(running)

    def close(self) -> None:
        super().close()
        for actor in self.actors:
            shoal.kill(actor.handle)
        self.actors = []


class BarrierOperator(TaskOperator):
    """Waits for all its inputs, then plans its tasks."""

    counts_inputs = False

    def __init__(self, name: str, chain: Chain, ports: int, plan: Callable[[list[list[Bundle]]], list[Work]], **options: Any) -> None:
        super().__init__(name, chain, ports, **options)
        self.inputs: list[list[Bundle]] = [[] for _ in range(ports)]
        self.plan = plan

    def add(self, bundle: Bundle, port: int) -> None:
        self.inputs[port].append(bundle)

    def port_done(self, port: int) -> None:
        super().port_done(port)
        if not self.open_ports and not self.stopped:
            inputs, self.inputs = self.inputs, [[] for _ in self.inputs]
            for work in self.plan(inputs):
                self.push(work)


class LimitOperator(TaskOperator):
    """The first rows; what is before it stops when they are there."""

    def __init__(self, name: str, rows: int) -> None:
        super().__init__(name, Chain(), ports=1)
        self.left = rows

    def add(self, bundle: Bundle, port: int) -> None:
        if self.left <= 0:
            return
        if bundle.meta.rows <= self.left:
            self.push(Work([bundle], passes=True))
        else:
            from .._ops.arrange import Whole

            self.push(Work([bundle], reducer=Whole(), cuts=[[Cut((0, self.left))]]))
        self.left -= bundle.meta.rows

    def starves(self) -> bool:
        return self.left > 0

    def wants_no_more(self) -> bool:
        return self.stopped or self.left <= 0


class UnionOperator(Operator):
    """All of the first input, then all of the second, …"""

    def __init__(self, name: str, ports: int) -> None:
        super().__init__(name, ports)
        self.waiting: list[deque[Bundle]] = [deque() for _ in range(ports)]
        self.at = 0

    def add(self, bundle: Bundle, port: int) -> None:
        self.waiting[port].append(bundle)

    def outputs(self) -> Iterator[Bundle]:
        while self.at < len(self.waiting):
            while self.waiting[self.at]:
                yield self.waiting[self.at].popleft()
            if self.at in self.open_ports:
                return
            self.at += 1

    def finished(self) -> bool:
        return self.stopped or (not self.open_ports and self.at >= len(self.waiting))

    def held_bytes(self) -> int:
        return sum(bundle.meta.size_bytes for queue in self.waiting for bundle in queue)


class JoinOperator(BarrierOperator):
    """A join whose right side is there first: small, it is sent whole to the tasks of the left side, and what those give passes; else both are partitioned."""

    def __init__(
        self, name: str, chain: Chain, plan: Callable[[list[list[Bundle]]], list[Work]], decide: Callable[[list[Bundle]], bool], **options: Any
    ) -> None:
        super().__init__(name, chain, 2, plan, **options)
        self.decide = decide
        self.broadcast = False

    def add(self, bundle: Bundle, port: int) -> None:
        if self.broadcast and port == 0:
            self.push(Work([bundle], passes=True))
        else:
            super().add(bundle, port)

    def port_done(self, port: int) -> None:
        if port == 1:
            self.broadcast = self.decide(self.inputs[1])
            if self.broadcast:
                self.inputs[1] = []
                self.plan = lambda _inputs: []
        super().port_done(port)
