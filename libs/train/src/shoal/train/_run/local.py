"""`num_workers=0`: the function runs in the process that calls `fit()`."""

from __future__ import annotations

import time
from typing import Any

from ..backend import BackendConfig
from ..callbacks import RunContext
from ..checkpoint import Checkpoint
from ..errors import TrainingFailedError
from ..reported import ReportedCheckpoint
from ..result import Result
from ..session import TrainContext, use_session
from .controller import Job, made, result
from .rendezvous import BROADCAST
from .state import End, GroupReady, Returned, Run, StartGroup, TellFailure, WorkerFailed
from .store import RunStore, staging_folder
from .worker import call, describe_failure, find_shard, refuse_tensors, stage


class LocalSession:
    """Stores what is reported at once: there is nobody to wait for."""

    def __init__(self, job: Job, store: RunStore, context: RunContext, shards: dict[str, Any]) -> None:
        self._job = job
        self._store = store
        self._run_context = context
        self._shards = shards

    def get_context(self) -> TrainContext:
        folder = self._store.folder
        return TrainContext(experiment_name=self._job.name, storage=folder, trial_dir=folder.path)

    def get_checkpoint(self) -> Checkpoint | None:
        return self._store.latest or self._job.resume_from

    def get_all_reported_checkpoints(self) -> list[ReportedCheckpoint]:
        return self._store.kept()

    def get_dataset_shard(self, name: str | None) -> Any:
        return find_shard(self._shards, name)

    def report(self, metrics: dict[str, Any], checkpoint: Checkpoint | None = None, checkpoint_dir_name: str | None = None) -> None:
        refuse_tensors(metrics)
        if checkpoint is not None:
            store = self._store
            stage(checkpoint, staging_folder(store.folder, store.staging, store.manifest.next_number, checkpoint_dir_name))
        committed, _ = self._store.record(metrics, checkpoint is not None, checkpoint_dir_name)
        for callback in self._job.run_config.callbacks or ():
            callback.after_report(self._run_context, [metrics], committed.checkpoint if committed is not None else None)

    def collective(self, kind: str, data: Any) -> Any:
        return data if kind == BROADCAST else None


def fit(job: Job, store: RunStore) -> Result:
    assert job.run_config.failure_config is not None
    run = Run(job.run_config.failure_config.max_failures)
    context = RunContext(job.run_config, job.scaling, BackendConfig(), job.config, job.datasets, store.folder.path)
    effects = run.begin()
    while True:
        for effect in effects:
            match effect:
                case End(error, value):
                    return _finished(store, error, value)
                case TellFailure(failures):
                    for callback in job.run_config.callbacks or ():
                        callback.after_exception(context, {rank: failure.error for rank, failure in failures.items()})
                case StartGroup(attempt, pause_s):
                    time.sleep(pause_s)
                    if attempt:
                        store.roll_back()
        run.handle(GroupReady(1), time.monotonic())
        session = LocalSession(job, store, context, job.data_config.configure(made(job.datasets), 1)[0])
        try:
            with use_session(session), job.backend_config.train_func_context():
                value = call(job.function, job.config)
        except Exception as error:
            effects = run.handle(WorkerFailed(0, describe_failure(error)), time.monotonic())
        else:
            effects = run.handle(Returned(0, value), time.monotonic())


def _finished(store: RunStore, error: TrainingFailedError | None, value: Any) -> Result:
    store.finish(error)
    return result(store, error, value)
