"""Carries out what `state.Run` decides: starts and stops groups, waits for their news, stores what they report."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import shoal
from shoal.exceptions import RayError

from ..backend import Backend, BackendConfig
from ..callbacks import RunContext
from ..checkpoint import Checkpoint
from ..config import RunConfig, ScalingConfig
from ..datasets import DataConfig
from ..errors import ControllerError, StorageError, TrainError, TrainingFailedError
from ..result import Result
from ..session import TrainContext
from . import group as groups
from .group import Group, GroupFailed
from .limits import seconds
from .state import (
    Effect,
    End,
    Event,
    GroupNotStarted,
    GroupReady,
    NotRecorded,
    Record,
    Release,
    Run,
    StartGroup,
    StopGroup,
    TellFailure,
    TimePassed,
    Warn,
    WorkerFailed,
)  # fmt: skip
from .store import RunStore
from .worker import Answer, Setup

log = logging.getLogger("shoal.train")

COLLECTIVE_TIMEOUT_S = 1800.0
WARN_AFTER_S = 60.0


@dataclass(frozen=True)
class Job:
    """What is to be run."""

    function: Callable[..., Any]
    config: dict[str, Any] | None
    backend_config: BackendConfig
    scaling: ScalingConfig
    run_config: RunConfig
    name: str
    datasets: Mapping[str, Any] = field(default_factory=dict)
    data_config: DataConfig = field(default_factory=DataConfig)
    resume_from: Checkpoint | None = None


class Controller:
    """For one `fit()`; lives in the process that calls it."""

    def __init__(self, job: Job, store: RunStore) -> None:
        self._job = job
        self._store = store
        assert job.run_config.failure_config is not None
        self._run = Run(job.run_config.failure_config.max_failures, seconds("SHOAL_TRAIN_COLLECTIVE_TIMEOUT_S", COLLECTIVE_TIMEOUT_S),
                        seconds("SHOAL_TRAIN_COLLECTIVE_WARN_S", WARN_AFTER_S))  # fmt: skip
        self._start_timeout_s = seconds("SHOAL_TRAIN_START_TIMEOUT_S", groups.START_TIMEOUT_S)
        self._backend: Backend = job.backend_config.backend_cls()
        self._context = RunContext(
            job.run_config, job.scaling, job.backend_config, job.config, job.datasets, store.folder.path
        )  # fmt: skip
        self._payload: Any = None
        self._group: Group | None = None
        self._waiting: dict[Any, int] = {}
        self._ended: End | None = None

    def fit(self) -> Result:
        try:
            self._payload = shoal.put((self._job.function, self._job.config, self._job.backend_config.train_func_context))
            self._do(self._run.begin())
            while self._ended is None:
                self._step()
        finally:
            self._drop_group()
        ended = self._ended
        self._store.finish(ended.error)
        return result(self._store, ended.error, ended.value)

    # -- news ----------------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        """Waits for news, and handles all that there is."""
        deadline = self._run.deadline()
        timeout_s = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready, _ = shoal.wait(list(self._waiting), timeout=timeout_s)
        if ready and len(self._waiting) > 1:
            ready, _ = shoal.wait(list(self._waiting), num_returns=len(self._waiting), timeout=0)
        if not ready:
            self._handle(TimePassed())
        for ref in ready:
            rank = self._waiting.pop(ref, None)
            if rank is not None:  # else its group was stopped by what came before
                self._handle(self._event(rank, ref))

    def _event(self, rank: int, ref: Any) -> Event:
        group = self._group
        assert group is not None
        try:
            event: Event = shoal.get(ref)
        except RayError as error:
            return WorkerFailed(rank, groups.failure_of(error, group.place(rank)))
        # The process stays watched also when its function has returned: the others may still need what it holds.
        self._waiting[group.next_event(rank)] = rank
        return event

    def _handle(self, event: Event) -> None:
        self._do(self._run.handle(event, time.monotonic()))

    # -- effects -------------------------------------------------------------------------------------------------------

    def _do(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case StartGroup(attempt, pause_s):
                    time.sleep(pause_s)
                    self._start(attempt)
                case StopGroup(failed):
                    self._stop(failed)
                case Record():
                    self._record(effect)
                case Release(data):
                    self._answer(Answer(data))
                case TellFailure(failures, text, again):
                    if again:  # else the error is raised, and tells it
                        log.warning("%s\nThe workers are started again.", text)
                    for callback in self._job.run_config.callbacks or ():
                        callback.after_exception(self._context, {rank: failure.error for rank, failure in failures.items()})
                case Warn(text):
                    log.warning("%s", text)
                case End():
                    self._ended = effect

    def _start(self, attempt: int) -> None:
        if attempt:
            self._store.roll_back()
        try:
            self._group = group = self._assembled()
        except GroupFailed as failed:
            self._drop_group()
            storage = next((f.error for f in failed.failures.values() if isinstance(f.error, StorageError)), None)
            event: Event = GroupNotStarted(storage) if storage is not None else GroupNotStarted(failed, failed.failures)
        except (TrainError, RayError, TimeoutError, OSError, ValueError) as error:
            self._drop_group()
            event = GroupNotStarted(error.controller_failure if isinstance(error, ControllerError) else error)
        else:
            self._waiting = {group.next_event(rank): rank for rank in range(len(group))}
            event = GroupReady(len(group))
        self._handle(event)

    def _assembled(self) -> Group:
        """A group that runs the function."""
        job, store = self._job, self._store
        self._group = group = groups.start(job.scaling, job.backend_config.imports, job.run_config.worker_runtime_env, self._start_timeout_s)
        shards = job.data_config.configure(made(job.datasets), len(group), [w.actor for w in group.workers], [w.node_id for w in group.workers])
        group.set_up([self._setup(worker, shards[worker.rank]) for worker in group.workers])
        self._backend.on_start(group, job.backend_config)
        group.train(self._payload)
        nodes = len({worker.node_id for worker in group.workers})
        log.info("attempt %d of %s: %d workers on %d nodes, from %s", self._run.attempt, job.name, len(group), nodes, store.latest)
        return group

    def _setup(self, worker: groups.RankedWorker, shards: Mapping[str, Any]) -> Setup:
        store, ranks = self._store, worker.ranks
        assert self._group is not None
        context = TrainContext(
            world_size=len(self._group), world_rank=ranks.world_rank, local_world_size=ranks.local_world_size, local_rank=ranks.local_rank,
            node_rank=ranks.node_rank, experiment_name=self._job.name, storage=store.folder, trial_dir=store.folder.path,
        )  # fmt: skip
        return Setup(context, store.folder, store.staging, store.manifest.next_number, store.latest or self._job.resume_from, tuple(store.kept()), shards)

    def _record(self, record: Record) -> None:
        try:
            committed, deleted = self._store.record(record.metrics[0], bool(record.staged_by), record.dir_name)
        except ValueError as error:
            self._answer(Answer(error=error))
            return
        except OSError as error:
            self._handle(NotRecorded(StorageError(f"the run's folder {self._store.folder.path} refuses a checkpoint or metrics: {error}")))
            return
        for callback in self._job.run_config.callbacks or ():
            callback.after_report(self._context, record.metrics, committed.checkpoint if committed is not None else None)
        self._answer(Answer(None, committed, deleted))

    def _answer(self, answer: Answer) -> None:
        if self._group is not None:
            self._group.answer(answer)

    def _stop(self, failed: bool) -> None:
        if not failed and self._group is not None:
            try:
                self._backend.on_shutdown(self._group, self._job.backend_config)
            except (GroupFailed, RayError, TimeoutError) as error:
                # All functions have returned: the results are there.
                log.warning("the workers did not end well: %s", error)
        self._drop_group()

    def _drop_group(self) -> None:
        group, self._group = self._group, None
        self._waiting.clear()
        if group is not None:
            group.stop()


def made(datasets: Mapping[str, Any]) -> dict[str, Any]:
    """With the datasets that functions make."""
    return {name: data() if callable(data) and not hasattr(data, "streaming_split") else data for name, data in datasets.items()}


def result(store: RunStore, error: TrainingFailedError | None, value: Any) -> Result:
    from ..storage import LocalFolder

    return Result(
        metrics=store.metrics, checkpoint=store.latest, error=error, path=store.folder.path,
        best_checkpoints=[(reported.checkpoint, reported.metrics) for reported in store.kept()],
        _storage_filesystem=None if isinstance(store.folder, LocalFolder) else store.folder.filesystem, return_value=value, history=store.history,
    )  # fmt: skip
