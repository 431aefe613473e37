"""Drives a plan's operators: moves bundles on, starts tasks as the budget lets, waits for what comes next.

It runs in the thread of whoever takes its output, a step at a time: a consumer that takes nothing holds everything back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import shoal

from .._block.meta import Bundle
from ..context import DataContext
from .budget import Budget
from .operators import InputOperator, Operator, PoolOperator, Running, TaskOperator

logger = logging.getLogger("shoal.data")
# How long one wait for outputs lasts; and how long nothing may come before it is told what is waited for.
WAIT_S = 1.0
TELL_AFTER_S = 60.0
# A plan moves at least one bundle from operator to operator in each round, or it is stuck.
MAX_IDLE_ROUNDS = 1000


def cluster_budget(context: DataContext) -> Budget:
    """Of the cluster as it is now and the context's limits."""
    total = shoal.cluster_resources()
    limits = context.execution_options.resource_limits
    cpus = limits.cpu if limits.cpu is not None else float(total.get("CPU", 1.0))
    memory = limits.object_store_memory if limits.object_store_memory is not None else float(total.get("object_store_memory", 0)) * context.memory_fraction
    return Budget(limit_bytes=memory, cpus=max(cpus, 0.1))


class Executor:
    """Iterates over the bundles of the last of `operators`, which stand in the order of data flow."""

    def __init__(self, operators: list[Operator], budget: Budget) -> None:
        self.operators = operators
        self.budget = budget
        self.last = operators[-1]
        self.ports_told: set[int] = set()
        self.quiet_since = time.monotonic()
        self.started_at = time.monotonic()
        self.ended_at: float | None = None
        self.schema: Any = None
        self.idle_rounds = 0

    def __iter__(self) -> Iterator[Bundle]:
        try:
            while True:
                self._move()
                for bundle in self.last.outputs():
                    if bundle.meta.schema is not None and (self.schema is None or (len(self.schema) == 0 < len(bundle.meta.schema))):
                        self.schema = bundle.meta.schema
                    yield bundle
                if self.last.finished():
                    return
                started = self._dispatch()
                if not self._wait(0.0 if started else WAIT_S) and not started:
                    self._tell()
                    self._check_alive()
        finally:
            self.close()

    # -- moving
    def _move(self) -> None:
        for operator in self.operators:
            if operator.consumer is None:
                continue
            consumer, port = operator.consumer
            if consumer.wants_no_more() and not operator.stopped:
                self._stop(operator)
            for bundle in operator.outputs():
                # Empty blocks say what columns there are; a consumer that has seen nothing else needs that.
                consumer.add(bundle, port)
            if operator.finished() and id(operator) not in self.ports_told:
                self.ports_told.add(id(operator))
                consumer.port_done(port)

    def _stop(self, operator: Operator) -> None:
        if isinstance(operator, TaskOperator):
            for running in list(operator.running):
                self.budget.ended(running.estimate_bytes)
            operator.stop()
            operator.running.clear()
        else:
            operator.stop()
        for other in self.operators:
            if other.consumer is not None and other.consumer[0] is operator and not other.stopped:
                self._stop(other)

    # -- starting
    def _dispatch(self) -> bool:
        self._count()
        started = False
        for place in range(len(self.operators) - 1, -1, -1):
            operator = self.operators[place]
            if not isinstance(operator, TaskOperator):
                continue
            while operator.ready() and self._has_cpus(operator):
                estimate = operator.estimate_bytes()
                if not self.budget.admits(estimate):
                    break
                running = operator.start()
                self.budget.started(running.estimate_bytes)
                started = True
        return started

    def _count(self) -> None:
        self.budget.held_bytes = sum(operator.held_bytes() for operator in self.operators)

    def _has_cpus(self, operator: TaskOperator) -> bool:
        if isinstance(operator, PoolOperator):
            return True
        streams = self._streams_into_tasks(operator)
        return len(operator.running) < self.budget.tasks_at_once(operator.cpus_per_task, streams)

    def _streams_into_tasks(self, operator: Operator) -> bool:
        after = operator.consumer
        while after is not None:
            consumer = after[0]
            if isinstance(consumer, TaskOperator) and not isinstance(consumer, PoolOperator) and consumer.counts_inputs and consumer.cpus_per_task > 0:
                return True
            if isinstance(consumer, TaskOperator) and not consumer.counts_inputs:
                return False
            after = consumer.consumer
        return False

    # -- waiting
    def _wait(self, timeout_s: float) -> bool:
        """Takes what is ready; whether anything was."""
        self._count()
        takeable = {}
        for operator in self.operators:
            if isinstance(operator, TaskOperator) and operator.running:
                starves = operator.consumer is None or operator.consumer[0].starves()
                for running in operator.running:
                    first = bool(operator.slots) and operator.slots[0] is running.slot
                    if self.budget.takes(first, starves):
                        takeable[running.stream] = running
        if not takeable:
            # Everything in flight is held back, and nobody can take anything: the oldest is taken, so that something moves.
            for operator in reversed(self.operators):
                if isinstance(operator, TaskOperator) and operator.running:
                    takeable[operator.running[0].stream] = operator.running[0]
                    break
            else:
                return False
        streams = list(takeable)
        ready, _ = shoal.wait(streams, num_returns=1, timeout=timeout_s)
        if ready and len(streams) > 1:
            ready, _ = shoal.wait(streams, num_returns=len(streams), timeout=0)
        for stream in ready:
            self._take(takeable[stream])
        if ready:
            self.quiet_since = time.monotonic()
        return bool(ready)

    def _take(self, running: Running) -> None:
        while True:
            item = next(running.stream, None)
            if item is None:
                if running.block is not None:  # no meta after it: what came was the task's error
                    shoal.get(running.block)
                self.budget.ended(running.estimate_bytes)
                running.operator.ended(running)
                return
            if running.block is None:
                running.block = item
            else:
                block, running.block = running.block, None
                running.operator.produced(running, Bundle(block, shoal.get(item)))
            if not running.stream.next_ready() and not running.stream.is_finished():
                return

    def _check_alive(self) -> None:
        """Nothing runs and nothing starts: then a bundle was just moved, or nothing will ever happen again."""
        if any(isinstance(operator, TaskOperator) and operator.running for operator in self.operators):
            self.idle_rounds = 0
            return
        self.idle_rounds += 1
        if self.idle_rounds > MAX_IDLE_ROUNDS:
            waiting = [f"{one.name}: {len(one.work)} tasks wait, holds {one.holds}" for one in self.operators if isinstance(one, TaskOperator)]
            raise AssertionError(f"the plan is stuck, which is a bug in shoal.data; its operators: {'; '.join(waiting)}")

    def _tell(self) -> None:
        now = time.monotonic()
        if now - self.quiet_since > TELL_AFTER_S:
            self.quiet_since = now
            waiting = {operator.name: len(operator.running) for operator in self.operators if isinstance(operator, TaskOperator) and operator.running}
            logger.warning("no block has come for %d s; tasks that run or wait for resources, by operator: %s", TELL_AFTER_S, waiting)

    def close(self) -> None:
        if self.ended_at is None:
            self.ended_at = time.monotonic()
        for operator in self.operators:
            if not isinstance(operator, InputOperator):
                operator.close()
            if isinstance(operator, TaskOperator):
                operator.running.clear()
