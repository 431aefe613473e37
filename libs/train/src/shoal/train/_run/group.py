"""The workers of one attempt: their placement group, their processes, and calls to all of them."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import shoal
from shoal.exceptions import RayActorError, RayError, RayTaskError
from shoal.util import PlacementGroup, placement_group, remove_placement_group
from shoal.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ..config import ScalingConfig
from ..errors import ControllerError, TrainError, WorkerEndedError
from .ranks import Rank, assign
from .state import Failure
from .worker import Answer, Place, Setup, TrainWorker

log = logging.getLogger("shoal.train")

START_TIMEOUT_S = 600.0
TELL_AFTER_S = 5.0
# A group whose size is a range waits so long for room before it begins with fewer workers.
ELASTIC_PATIENCE_S = 2.0
# When one rank failed, others that wait for it are not waited for.
GRACE_S = 0.5


class GroupFailed(TrainError):
    """Ranks failed while the group was put together."""

    def __init__(self, failures: Mapping[int, Failure]) -> None:
        super().__init__("; ".join(f"rank {rank}: {failure.text}" for rank, failure in failures.items()))
        self.failures = dict(failures)


@dataclass(frozen=True)
class RankedWorker:
    """A worker with its place and its ranks."""

    actor: Any
    place: Place
    ranks: Rank

    @property
    def rank(self) -> int:
        return self.ranks.world_rank

    @property
    def local_rank(self) -> int:
        return self.ranks.local_rank

    @property
    def node_rank(self) -> int:
        return self.ranks.node_rank

    @property
    def node_id(self) -> str:
        return self.place.node_id

    @property
    def node_ip(self) -> str:
        return self.place.node_ip

    @property
    def pid(self) -> int:
        return self.place.pid

    @property
    def gpu_ids(self) -> Sequence[str]:
        return self.place.gpu_ids


class Group:
    """Made by `start`. A `shoal.train.backend.WorkerGroup`."""

    def __init__(self, reserved: PlacementGroup, workers: Sequence[RankedWorker], timeout_s: float) -> None:
        self._reserved = reserved
        self._workers = list(workers)
        self._timeout_s = timeout_s

    @property
    def workers(self) -> Sequence[RankedWorker]:
        return self._workers

    def __len__(self) -> int:
        return len(self._workers)

    def execute(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        return self._gather("execute()", [worker.actor.execute.remote(function, args, kwargs) for worker in self._workers])

    def execute_single(self, rank: int, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        worker = self._workers[rank]
        return gather({rank: worker.actor.execute.remote(function, args, kwargs)}, {rank: worker.place}, self._timeout_s, "execute_single()")[rank]

    def set_up(self, setups: Sequence[Setup]) -> None:
        self._gather("the set-up", [worker.actor.set_up.remote(setup) for worker, setup in zip(self._workers, setups, strict=True)])

    def train(self, payload: Any) -> None:
        """`payload`: a reference to (function, config, context)."""
        self._gather("the training function's arrival", [worker.actor.train.remote(payload) for worker in self._workers])

    def next_event(self, rank: int) -> Any:
        return self._workers[rank].actor.next_event.remote()

    def answer(self, answer: Answer) -> None:
        for worker in self._workers:
            worker.actor.answer.remote(answer)

    def place(self, rank: int) -> Place:
        return self._workers[rank].place

    def _gather(self, what: str, refs: Sequence[Any]) -> list[Any]:
        values = gather(dict(enumerate(refs)), {worker.rank: worker.place for worker in self._workers}, self._timeout_s, what)
        return [values[rank] for rank in range(len(refs))]

    def stop(self) -> None:
        """Ends all processes, whatever they do, and gives the resources back."""
        for worker in self._workers:
            with contextlib.suppress(RayError):
                shoal.kill(worker.actor)
        with contextlib.suppress(RayError):
            remove_placement_group(self._reserved)


def gather(refs: Mapping[int, Any], places: Mapping[int, Place], timeout_s: float, what: str) -> dict[int, Any]:
    """Values by rank. The first failure ends the wait, but for a moment in which others tell theirs.

    Raises:
        GroupFailed: ranks failed. TimeoutError: not all answered in time.
    """
    waiting = {ref: rank for rank, ref in refs.items()}
    values: dict[int, Any] = {}
    failures: dict[int, Failure] = {}
    deadline = time.monotonic() + timeout_s
    while waiting:
        ready, _ = shoal.wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            if failures:
                break
            raise TimeoutError(f"{what}: rank(s) {', '.join(map(str, sorted(waiting.values())))} did not answer within {timeout_s:g} s")
        for ref in ready:
            rank = waiting.pop(ref)
            try:
                values[rank] = shoal.get(ref)
            except RayError as error:
                if not failures:
                    deadline = time.monotonic() + GRACE_S
                failures[rank] = failure_of(error, places.get(rank))
    if failures:
        raise GroupFailed(failures)
    return values


def failure_of(error: RayError, place: Place | None) -> Failure:
    """What a call of a worker ended with."""
    where = f" (process {place.pid} on {place.hostname}, node {place.node_id[:12]})" if place is not None else ""
    if isinstance(error, RayTaskError):
        cause = error.cause if isinstance(error.cause, Exception) else error
        return Failure(cause, f"{type(cause).__name__}{where}\n{error.traceback_str}")
    if isinstance(error, RayActorError) and not error.actor_init_failed:
        ended = WorkerEndedError(f"the worker's process{where} ended: {error}")
        return Failure(ended, str(ended), lost=True)
    return Failure(error, f"{type(error).__name__}{where}: {error}")


# -- putting it together -----------------------------------------------------------------------------------------------


def start(scaling: ScalingConfig, imports: Sequence[str], runtime_env: dict[str, Any] | None, timeout_s: float) -> Group:
    """Reserves the resources, starts the processes, gives them their ranks.

    Raises:
        ControllerError: the resources were not free in time.
        GroupFailed: processes did not come up.
    """
    reserved = _reserve(scaling, timeout_s)
    actors: list[Any] = []
    try:
        threads = {"OMP_NUM_THREADS": str(max(1, int(scaling.num_cpus_per_worker)))}
        worker: Any = TrainWorker
        actors.extend(
            worker.options(**_options(scaling, reserved, index, runtime_env)).remote(list(imports), threads) for index in range(reserved.bundle_count)
        )
        places = gather({index: actor.describe.remote() for index, actor in enumerate(actors)}, {}, timeout_s, "the workers' start")
        ranks = assign([(places[index].node_id, places[index].gpu_ids) for index in range(len(actors))])
        return Group(reserved, [RankedWorker(actors[rank.index], places[rank.index], rank) for rank in ranks], timeout_s)
    except BaseException:
        for actor in actors:
            with contextlib.suppress(RayError):
                shoal.kill(actor)
        remove_placement_group(reserved)
        raise


def _options(scaling: ScalingConfig, reserved: PlacementGroup, index: int, runtime_env: dict[str, Any] | None) -> dict[str, Any]:
    extra = dict(scaling.additional_resources_per_worker)
    options: dict[str, Any] = {
        "num_cpus": scaling.num_cpus_per_worker, "num_gpus": scaling.num_gpus_per_worker, "memory": extra.pop("memory", None), "resources": extra,
        "scheduling_strategy": PlacementGroupSchedulingStrategy(reserved, index, placement_group_capture_child_tasks=False), "runtime_env": runtime_env,
    }  # fmt: skip
    return {name: value for name, value in options.items() if value is not None}


def _reserve(scaling: ScalingConfig, timeout_s: float) -> PlacementGroup:
    if scaling.elasticity_enabled:
        # First what the nodes would hold: what an earlier attempt held may be on its way back. Then what is free now.
        for resources in (shoal.cluster_resources, shoal.available_resources):
            count = min(scaling.max_workers, _room(scaling, resources()))
            if count <= scaling.min_workers:
                break
            group = _bundles(scaling, count)
            if group.wait(ELASTIC_PATIENCE_S):
                return group
            remove_placement_group(group)
    group = _bundles(scaling, scaling.min_workers)
    try:
        _wait_for(group, scaling, timeout_s)
    except BaseException:
        remove_placement_group(group)
        raise
    return group


def _room(scaling: ScalingConfig, resources: Mapping[str, float]) -> int:
    # A little more, for 0.3 / 0.1 is a little less than 3.
    return min(int(resources.get(name, 0) / amount + 1e-7) for name, amount in scaling.resources_of_a_worker.items())


def _bundles(scaling: ScalingConfig, count: int) -> PlacementGroup:
    selector = scaling.label_selector
    selectors = None if selector is None else [dict(one) for one in (selector if isinstance(selector, list) else [selector] * count)]
    return placement_group([dict(scaling.resources_of_a_worker) for _ in range(count)], strategy=scaling.placement_strategy, bundle_label_selector=selectors)


def _wait_for(group: PlacementGroup, scaling: ScalingConfig, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    tell_after_s = TELL_AFTER_S
    while not group.wait(max(0.0, min(tell_after_s, deadline - time.monotonic()))):
        told = (
            f"{scaling.min_workers} worker(s) of {_show(scaling.resources_of_a_worker)} each, placed {scaling.placement_strategy}"
            f"{f', on nodes with {scaling.label_selector}' if scaling.label_selector else ''}. The cluster has {_show(shoal.cluster_resources())}; "
            f"free: {_show(shoal.available_resources())}"
        )
        if time.monotonic() >= deadline:
            raise ControllerError(TimeoutError(f"within {timeout_s:g} s there was no room for {told}"))
        log.warning("training waits for room for %s", told)
        tell_after_s *= 2


def _show(resources: Mapping[str, float]) -> str:
    return "{" + ", ".join(f"{name}: {amount:g}" for name, amount in sorted(resources.items()) if not name.startswith("node:")) + "}"
