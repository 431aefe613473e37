"""A rank: the actor in whose process the training function runs, on a thread of its own, and the session that the function sees.

What the function reports goes into a queue; the controller always has one call of `next_event` waiting at it. So news is pushed, and the end of the process
is noticed at once.
"""

from __future__ import annotations

import importlib
import inspect
import os
import queue
import socket
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import shoal

from ..checkpoint import Checkpoint
from ..errors import NoSessionError, StorageError
from ..reported import ReportedCheckpoint
from ..session import TrainContext, use_session
from ..storage import Folder, LocalFolder
from .manifest import Manifest
from .rendezvous import BARRIER, BROADCAST, REPORT, Call
from .state import Called, Event, Failure, Returned, WorkerFailed
from .store import staging_folder

# Calls that may be in a worker at once: the one that waits for events, an answer, what a backend runs, and one to spare.
WORKER_CONCURRENCY = 4
_OWN_FILES = os.path.dirname(os.path.abspath(__file__))


@dataclass(frozen=True)
class Place:
    """Where a worker is."""

    node_id: str
    node_ip: str
    hostname: str
    pid: int
    gpu_ids: tuple[str, ...]


@dataclass(frozen=True)
class Setup:
    """What a rank is told before it begins."""

    context: TrainContext
    folder: Folder
    staging: str  # differs for each attempt: remains of an earlier one cannot get in between
    next_number: int
    checkpoint: Checkpoint | None
    reported: tuple[ReportedCheckpoint, ...]
    shards: Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """All ranks have come. `error` is raised in the function."""

    data: Any = None
    committed: ReportedCheckpoint | None = None
    deleted: frozenset[str] = frozenset()
    error: Exception | None = None


class WorkerSession:
    """The functions of `shoal.train` in a rank."""

    def __init__(self, setup: Setup, events: queue.SimpleQueue[Event], answers: queue.SimpleQueue[Answer]) -> None:
        self._setup = setup
        self._events = events
        self._answers = answers
        self._checkpoint = setup.checkpoint
        self._reported = list(setup.reported)
        self._next_number = setup.next_number
        # Threads of the function may report; one at a time.
        self._lock = threading.Lock()

    def get_context(self) -> TrainContext:
        return self._setup.context

    def get_checkpoint(self) -> Checkpoint | None:
        return self._checkpoint

    def get_all_reported_checkpoints(self) -> list[ReportedCheckpoint]:
        return list(self._reported)

    def get_dataset_shard(self, name: str | None) -> Any:
        return find_shard(self._setup.shards, name)

    def report(self, metrics: dict[str, Any], checkpoint: Checkpoint | None = None, checkpoint_dir_name: str | None = None) -> None:
        refuse_tensors(metrics)
        with self._lock:
            if checkpoint is not None:
                stage(checkpoint, staging_folder(self._setup.folder, self._setup.staging, self._next_number, checkpoint_dir_name))
            self._call(Call(REPORT, metrics, checkpoint is not None, checkpoint_dir_name))

    def collective(self, kind: str, data: Any) -> Any:
        with self._lock:
            rank = self._setup.context.world_rank
            return self._call(Call(BROADCAST, data=data if rank == 0 else None) if kind == BROADCAST else Call(BARRIER))

    def _call(self, call: Call) -> Any:
        self._events.put(Called(self._setup.context.world_rank, call))
        # The controller bounds how long ranks wait for one another, and ends this process when it gives up or ends itself.
        answer = self._answers.get()
        if answer.error is not None:
            raise answer.error
        if answer.committed is not None:
            self._checkpoint = answer.committed.checkpoint
            self._next_number += 1
            self._reported = [old for old in self._reported if old.checkpoint.path not in answer.deleted] + [answer.committed]
        return answer.data


def find_shard(shards: Mapping[str, Any], name: str | None) -> Any:
    if name is None and len(shards) == 1:
        return next(iter(shards.values()))
    if name is None or name not in shards:
        raise KeyError(f"no dataset {name!r}: the trainer was given {', '.join(map(repr, shards)) or 'none'}")
    return shards[name]


def refuse_tensors(metrics: Mapping[str, Any]) -> None:
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            refuse_tensors(value)
        elif type(value).__module__.partition(".")[0] == "torch":
            raise ValueError(f"metrics[{name!r}] is a {type(value).__name__} of torch, and the process that calls fit() may have none: use .item() or .numpy()")


def stage(checkpoint: Checkpoint, target: Folder) -> None:
    source = checkpoint.folder
    if source.path == target.path and isinstance(source, LocalFolder) == isinstance(target, LocalFolder):
        return  # written into place already
    with checkpoint.as_directory() as directory:
        from pathlib import Path

        target.upload(Path(directory))


@shoal.remote(max_restarts=0, max_concurrency=WORKER_CONCURRENCY)
class TrainWorker:
    """The actor."""

    def __init__(self, imports: Sequence[str], environment: Mapping[str, str]) -> None:
        for name, value in environment.items():
            os.environ.setdefault(name, value)
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._setup: Setup | None = None
        self._imports = threading.Thread(target=_import, args=(tuple(imports),), name="imports", daemon=True)
        self._imports.start()

    def describe(self) -> Place:
        context = shoal.get_runtime_context()
        from shoal.util import get_node_ip_address

        gpus = tuple(str(gpu) for gpu in context.get_accelerator_ids().get("GPU", ()))
        return Place(context.get_node_id(), get_node_ip_address(), socket.gethostname(), os.getpid(), gpus)

    def set_up(self, setup: Setup) -> None:
        if not setup.folder.exists(Manifest.FILE):
            raise StorageError(
                f"the run's folder {setup.folder.path} is not visible on node {shoal.get_runtime_context().get_node_id()} ({socket.gethostname()}): "
                "workers on several nodes need a storage_path that all of them share"
            )
        # Whatever comes next may import the same modules; PyTorch's import in two threads at once ends the process.
        self._imports.join()
        self._setup = setup
        _become(setup.context)

    def execute(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return function(*args, **kwargs)

    def train(self, payload: tuple[Callable[..., Any], Any, Callable[[], Any]]) -> None:
        """Begins; what comes of it comes as events."""
        setup = self._setup
        assert setup is not None
        function, config, context = payload
        threading.Thread(target=self._train, args=(setup, function, config, context), name="train", daemon=True).start()

    def _train(self, setup: Setup, function: Callable[..., Any], config: Any, context: Callable[[], Any]) -> None:
        rank = setup.context.world_rank
        session = WorkerSession(setup, self._events, self._answers)
        try:
            with use_session(session), context():
                value = call(function, config)
            self._events.put(Returned(rank, value if rank == 0 else None))
        except BaseException as error:
            self._events.put(WorkerFailed(rank, describe_failure(error)))

    def next_event(self) -> Event:
        """Waits for it."""
        event = self._events.get()
        return portable(event)

    def answer(self, answer: Answer) -> None:
        self._answers.put(answer)


# This process's rank, if it is a worker's.
_context: TrainContext | None = None


def _become(context: TrainContext) -> None:
    # The class of an actor travels by value and has globals of its own; the module that others import is found by its name.
    module: Any = importlib.import_module(__name__)
    module._context = context


def in_worker() -> bool:
    """Whether this process is a worker of a trainer."""
    return _context is not None


def context_of_process() -> TrainContext:
    """For backends, whose functions run beside the training function. Raises NoSessionError outside of workers."""
    if _context is None:
        raise NoSessionError("this process is no worker of a trainer")
    return _context


def _import(names: tuple[str, ...]) -> None:
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            return  # whoever needs it will say so


def call(function: Callable[..., Any], config: Any) -> Any:
    return function(config) if takes_config(function) else function()


def takes_config(function: Callable[..., Any]) -> bool:
    """Whether it takes one argument. Raises ValueError if it needs more than that."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of something written in C
        return True
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)]
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(needed) > 1:
        raise ValueError(f"train_loop_per_worker must take no argument or one (its config), but it needs {len(needed)}: {', '.join(needed)}")
    return bool(positional)


def describe_failure(error: BaseException) -> Failure:
    """With the function's own traceback, without the frames of this library around it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None and os.path.abspath(trace.tb_frame.f_code.co_filename).startswith(_OWN_FILES):
        trace = trace.tb_next
    text = "".join(traceback.format_exception(type(error), error, trace)).strip()
    place = f"{type(error).__name__} in process {os.getpid()} on {socket.gethostname()}"
    carried = error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")
    return Failure(carried.with_traceback(None), f"{place}\n{text}")


def portable(event: Event) -> Event:
    """One that the controller can read: an exception or a value that cannot travel is replaced by its text."""
    import cloudpickle

    if isinstance(event, WorkerFailed):
        try:
            import pickle

            pickle.loads(cloudpickle.dumps(event.failure.error))
        except Exception:
            error = event.failure.error
            told = RuntimeError(f"{type(error).__name__}: {error} (the exception itself cannot be pickled)")
            return WorkerFailed(event.rank, Failure(told, event.failure.text, event.failure.lost))
    elif isinstance(event, Returned) and event.value is not None:
        try:
            cloudpickle.dumps(event.value)
        except Exception as error:
            failure = TypeError(f"what the training function returned cannot be pickled: {type(event.value).__name__}: {error}")
            return WorkerFailed(event.rank, Failure(failure, str(failure)))
    return event
