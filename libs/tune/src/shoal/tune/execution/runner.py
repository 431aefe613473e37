"""What runs one trial in its process: says what came of the next piece of work, then waits to be told to go on.

Every call answers with a tuple `(kind, result, checkpoint path)`: REPORT, SAVED, CLOSED or END. What the user's code raised is raised by the call.
"""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime
from queue import SimpleQueue
from typing import Any

from ..trainable import Trainable

__all__ = ["Runner", "TrialSpec"]

REPORT, SAVED, CLOSED, END, RAISED = "report", "saved", "closed", "end", "raised"
Message = tuple[str, Any, str | None]

# A function that was told to stop has so long for its `finally` blocks.
STOP_S = 5.0


@dataclass
class TrialSpec:
    """What a runner must know of its trial. `restore`: the folder to go on from; `progress`: how far it was there; `copy_to`: copy it there first."""

    trial_id: str
    trial_name: str
    experiment_name: str
    trial_dir: str
    config: dict[str, Any]
    experiment_tag: str = ""
    restore: str | None = None
    progress: dict[str, Any] = field(default_factory=dict)
    copy_to: str | None = None
    next_checkpoint: int = 0
    checkpoint_frequency: int = 0
    resources: Any = None


class Counter:
    """Fills in what Tune adds to each report."""

    def __init__(self, spec: TrialSpec, node_ip: str) -> None:
        self.spec = spec
        self.iteration = int(spec.progress.get("training_iteration", 0))
        self.time_total_s = float(spec.progress.get("time_total_s", 0.0))
        self.timesteps_total = spec.progress.get("timesteps_total")
        self.episodes_total = spec.progress.get("episodes_total")
        self.since_restore_s = 0.0
        self.iterations_since_restore = 0
        self.fixed = {"trial_id": spec.trial_id, "pid": os.getpid(), "hostname": socket.gethostname(), "node_ip": node_ip,
                      "experiment_tag": spec.experiment_tag}  # fmt: skip
        self.last = time.perf_counter()

    def fill(self, metrics: dict[str, Any], checkpoint: str | None) -> dict[str, Any]:
        now = time.perf_counter()
        taken = metrics.get("time_this_iter_s", now - self.last)
        self.last = now
        self.iteration += 1
        self.iterations_since_restore += 1
        self.time_total_s += taken
        self.since_restore_s += taken
        for kind in ("timesteps", "episodes"):
            total = f"{kind}_total"
            if metrics.get(total) is not None:
                setattr(self, total, metrics[total])
            elif metrics.get(f"{kind}_this_iter") is not None:
                setattr(self, total, (getattr(self, total) or 0) + metrics[f"{kind}_this_iter"])
        wall = time.time()
        filled = {
            "timesteps_total": self.timesteps_total, "episodes_total": self.episodes_total, "training_iteration": self.iteration, "done": False,
            "time_this_iter_s": taken, "time_total_s": self.time_total_s, "time_since_restore": self.since_restore_s,
            "iterations_since_restore": self.iterations_since_restore, "timestamp": int(wall),
            "date": datetime.fromtimestamp(wall).strftime("%Y-%m-%d_%H-%M-%S"),
        }  # fmt: skip
        result = {**filled, **metrics, **self.fixed, "config": self.spec.config}
        if checkpoint is not None:
            result["checkpoint_dir_name"] = os.path.basename(checkpoint)
        return result


def plain(value: Any) -> Any:
    """Numbers of numpy, and tensors with one element, as numbers."""
    if value is None or isinstance(value, str | int | float):
        # numpy.float64 is a float: pickled, it would bring numpy along.
        return float(value) if isinstance(value, float) and type(value) is not float else value
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return value.item()
    return value


class Runner:
    """An actor. One trial at a time; `start` may be called again when the last one is over."""

    def __init__(self) -> None:
        self._work: FunctionWork | ClassWork | None = None
        self._object: Trainable | None = None
        self._ip = ""

    def start(self, trainable: Any, spec: TrialSpec) -> Message:
        """Begins a trial; answers as `next`."""
        if not self._ip:
            from shoal.util import get_node_ip_address

            self._ip = get_node_ip_address()
        os.makedirs(spec.trial_dir, exist_ok=True)
        if spec.copy_to is not None and spec.restore is not None:
            copy_folder(spec.restore, spec.copy_to)
            spec.restore = spec.copy_to
        if isinstance(trainable, type):
            work = ClassWork(trainable, spec, self._ip, self._object)
            self._object = work.trainable
            self._work = work
        else:
            self._work = FunctionWork(trainable, spec, self._ip)
        return self._work.next()

    def next(self) -> Message:
        """The next report; END when there is none."""
        return self._working().next()

    def save(self) -> Message:
        """A checkpoint now. Only of classes."""
        work = self._working()
        if not isinstance(work, ClassWork):
            raise TypeError("a function reports its checkpoints itself")
        return SAVED, None, work.save()

    def stop(self, save: bool, keep: bool = False) -> Message:
        """Ends the trial where it is. `save`: after a last checkpoint; `keep`: an object may serve the next trial."""
        work, self._work = self._working(), None
        path = work.stop(save, keep)
        if not keep:
            self._object = None
        return CLOSED, None, path

    def ready(self) -> int:
        """The process."""
        return os.getpid()

    def _working(self) -> FunctionWork | ClassWork:
        if self._work is None:
            raise RuntimeError("no trial runs here")
        return self._work


def copy_folder(source: str, target: str) -> None:
    """All or nothing: a copy that is broken off has another name."""
    half = f"{target}.part"
    shutil.rmtree(half, ignore_errors=True)
    shutil.copytree(source, half)
    shutil.rmtree(target, ignore_errors=True)
    os.rename(half, target)


class FunctionWork:
    """A function, in a thread of its own; the session that it reports to."""

    def __init__(self, function: Any, spec: TrialSpec, node_ip: str) -> None:
        self.spec = spec
        self._counter = Counter(spec, node_ip)
        self._latest = spec.restore
        self._next_checkpoint = spec.next_checkpoint
        self._said: SimpleQueue[Message] = SimpleQueue()
        self._go_on: SimpleQueue[bool] = SimpleQueue()
        self._one_at_a_time = threading.Lock()
        self._ended = False
        self._thread = threading.Thread(target=self._run, args=(function,), name=f"trial {spec.trial_id}", daemon=True)

    # -- the actor's side ----------------------------------------------------------------------------------------------

    def next(self) -> Message:
        if self._ended:
            return END, None, None
        if not self._thread.is_alive():
            self._thread.start()
        else:
            self._go_on.put(True)
        said = self._said.get()
        if said[0] == RAISED:
            self._ended = True
            raise said[1]
        if said[0] == END:
            self._ended = True
        return said

    def stop(self, save: bool, keep: bool) -> str | None:
        if self._thread.is_alive():
            self._go_on.put(False)
            self._thread.join(STOP_S)
        self._ended = True
        return None

    # -- the function's side -------------------------------------------------------------------------------------------

    def _run(self, function: Any) -> None:
        from shoal.train.session import use_session

        try:
            with use_session(self):
                returned = function(self.spec.config)
            if isinstance(returned, dict):
                self.report(returned)
            elif returned is not None:
                raise TypeError(f"the trainable returned {type(returned).__name__}: a dict of metrics, or nothing, is wanted")
            said: Message = (END, None, None)
        except SystemExit as error:
            said = (END, None, None) if not error.code else (RAISED, RuntimeError(f"the trainable left with SystemExit({error.code!r})"), None)
        except BaseException as error:
            said = (RAISED, error, None)
        self._said.put(said)

    def report(self, metrics: dict[str, Any], checkpoint: Any = None, checkpoint_dir_name: str | None = None) -> None:
        with self._one_at_a_time:
            path = None
            if checkpoint is not None:
                path = os.path.join(self.spec.trial_dir, checkpoint_dir_name or f"checkpoint_{self._next_checkpoint:06d}")
                self._next_checkpoint += 1
                with checkpoint.as_directory() as folder:
                    if os.path.abspath(folder) != os.path.abspath(path):
                        copy_folder(folder, path)
                self._latest = path
            self._said.put((REPORT, self._counter.fill(plain(metrics), path), path))
            if not self._go_on.get():
                raise SystemExit

    def get_checkpoint(self) -> Any:
        from shoal.train import Checkpoint

        return Checkpoint(self._latest) if self._latest is not None else None

    def get_context(self) -> Any:
        from shoal.train.session import TrainContext
        from shoal.train.storage import open_folder

        spec = self.spec
        return TrainContext(
            experiment_name=spec.experiment_name, trial_id=spec.trial_id, trial_name=spec.trial_name, trial_dir=spec.trial_dir,
            trial_resources=spec.resources, storage=open_folder(os.path.dirname(spec.trial_dir)),
        )  # fmt: skip


class ClassWork:
    """A Trainable object, asked for its steps."""

    def __init__(self, kind: type[Trainable], spec: TrialSpec, node_ip: str, old: Trainable | None) -> None:
        self.spec = spec
        names = {"trial_id": spec.trial_id, "trial_name": spec.trial_name, "logdir": spec.trial_dir}
        if old is not None and type(old) is kind and old.reset(spec.config, **names):
            self.trainable = old
        else:
            if old is not None:
                old.stop()
            self.trainable = kind(spec.config, resources=spec.resources, **names)
        if spec.restore is not None:
            self.trainable.restore(spec.restore)
        self._counter = Counter(spec, node_ip)
        self._next_checkpoint = spec.next_checkpoint
        self._fresh: str | None = None  # a checkpoint of right now

    def next(self) -> Message:
        self._fresh = None
        metrics = plain(self.trainable.train())
        for own in ("training_iteration", "time_total_s"):
            metrics.pop(own, None)
        path = None
        frequency = self.spec.checkpoint_frequency
        if frequency and (self._counter.iteration + 1) % frequency == 0:
            path = self.save()
        return REPORT, self._counter.fill(metrics, path), path

    def save(self) -> str | None:
        """None: the one that was saved with the last report is as good."""
        if self._fresh is not None:
            return None
        path = os.path.join(self.spec.trial_dir, f"checkpoint_{self._next_checkpoint:06d}")
        half = f"{path}.part"
        shutil.rmtree(half, ignore_errors=True)
        os.makedirs(half)
        self.trainable.save(half)
        shutil.rmtree(path, ignore_errors=True)
        os.rename(half, path)
        self._next_checkpoint += 1
        self._fresh = path
        return path

    def stop(self, save: bool, keep: bool) -> str | None:
        path = self.save() if save else None
        if not keep:
            self.trainable.stop()
        return path
