"""One run of an experiment: carries out what the loop wants, keeps the journal, and calls the callbacks."""

from __future__ import annotations

import contextlib
import logging
import pickle
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import shoal

from ..callback import Callback, CSVLoggerCallback, JsonLoggerCallback
from ..error import TuneError
from ..journal import Journal
from ..reporter import Reporter
from ..trial import Trial
from .events import ClusterChanged, ContinueTrial, DeleteCheckpoint, Effect, Event, Interrupted, Record, SaveTrial, StartTrial, StopTrial, Tell, Tick
from .loop import TrialLoop
from .recovery import write_snapshot
from .runners import Runners

__all__ = ["Experiment"]

_log = logging.getLogger("shoal.tune")
# The cluster's size is asked for again after so long.
_CLUSTER_EVERY_S = 5.0
# Snapshots of searcher and scheduler: not more often, and at most this share of the time.
_SNAPSHOT_EVERY_S = 1.0
_SNAPSHOT_SHARE = 0.05
# A trial that has waited so long for its process is worth a word, once in a while.
_PLACE_AFTER_S = 10.0
_PLACE_EVERY_S = 30.0
# How long a wait lasts when nothing happens.
_WAIT_S = 5.0


class Experiment:
    """Runs a loop to its end.

    Args:
        loop: fresh, or with trials of an earlier run.
        runners: for its trials.
        journal: open.
        folder: of the experiment.
        callbacks: the user's.
        reporter: what is printed.
    """

    def __init__(self, loop: TrialLoop, runners: Runners, journal: Journal, folder: Path, callbacks: list[Callback], reporter: Reporter) -> None:
        self.loop = loop
        self.runners = runners
        self.journal = journal
        self.folder = folder
        self.reporter = reporter
        self._loggers = [JsonLoggerCallback(), CSVLoggerCallback()]
        self.callbacks: list[Callback] = [*self._loggers, *callbacks]
        self.user_callbacks = callbacks
        self.interrupted = False
        self._step = 0
        self._tells: list[Tell] = []
        self._cluster_at = 0.0
        self._place_at = 0.0
        self._snapshot_at = 0.0
        self._snapshot_cost_s = 0.0
        self._snapshot_entries = 0
        self._deleter: ThreadPoolExecutor | None = None

    def run(self, setup: dict[str, Any]) -> None:
        """Until the loop has finished, or the user interrupts.

        Raises:
            TuneError: the experiment cannot go on; what a callback, searcher or scheduler raised.
        """
        try:
            for callback in self.callbacks:
                callback.setup(**setup)
            with self._sigint():
                self.reporter.begin(time.monotonic())
                self._look_at_cluster(time.monotonic())
                while not self.loop.finished:
                    self._turn()
                self.reporter.end(self.loop)
            for callback in self.callbacks:
                callback.on_experiment_end(self.loop.get_trials())
        finally:
            self.runners.close()
            for logger in self._loggers:
                logger.close()
            self._snapshot()
            self.journal.close()
            if self._deleter is not None:
                self._deleter.shutdown(wait=True)
        if self.loop.error is not None:
            raise self.loop.error

    # -- one turn ------------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        self._step += 1
        events = self._wait()
        now = time.monotonic()
        if self.interrupted and not self.loop.interrupted:
            self.reporter.say("interrupted: ending the trials that run; press again to leave at once")
            events.insert(0, Interrupted(now))
        if now - self._cluster_at >= _CLUSTER_EVERY_S:
            self._look_at_cluster(now)
        if not events:
            events.append(Tick(now))
        for event in events:
            self._handle(event)
        self._tell()
        self.journal.flush()
        self._snapshot_if_due(now)
        self._say_who_waits(now)
        self.reporter.turn(self.loop, now)

    def _wait(self) -> list[Event]:
        timeout = _WAIT_S
        now = time.monotonic()
        for until in (self.loop.next_deadline(), self.reporter.next_at(), self._cluster_at + _CLUSTER_EVERY_S):
            if until is not None:
                timeout = min(timeout, max(0.0, until - now))
        left = self.loop.stopper.remaining_s()
        if left is not None:
            timeout = min(timeout, max(0.0, left))
        if self.interrupted and not self.loop.interrupted:
            timeout = 0.0
        try:
            return self.runners.poll(timeout)
        except KeyboardInterrupt:
            if self.loop.interrupted or not self.interrupted:  # not the first one
                raise
            return []

    def _look_at_cluster(self, now: float) -> None:
        self._cluster_at = now
        total = shoal.cluster_resources()
        if total != self.loop.ledger.total:
            self._handle(ClusterChanged(total, now))

    def _say_who_waits(self, now: float) -> None:
        """A trial without a process is no silence: others may hold what it needs."""
        if now - self._place_at < _PLACE_EVERY_S:
            return
        waiting = self.runners.waiting_for_a_place(_PLACE_AFTER_S)
        if not waiting:
            self._place_at = now - _PLACE_EVERY_S + _PLACE_AFTER_S
            return
        self._place_at = now
        need = waiting[0].placement.required_resources
        free = {name: amount for name, amount in shoal.available_resources().items() if name in need}
        text = f"{len(waiting)} trials wait for resources: {waiting[0]} needs {need}, free are {free}"
        _log.warning("%s", text)
        self.reporter.say(text)

    def _handle(self, event: Event) -> None:
        effects = self.loop.handle(event)
        # Written down before it is done: what a crash cuts off never happened, or is known.
        for effect in effects:
            if isinstance(effect, Record):
                self.journal.append(_without_config(effect.entry))
        self.journal.flush()
        for effect in effects:
            self._do(effect)

    def _do(self, effect: Effect) -> None:
        match effect:
            case ContinueTrial():
                self.runners.go_on(effect.trial_id)
            case StartTrial():
                self.runners.start(effect)
            case StopTrial():
                self.runners.stop(effect.trial_id, effect.save)
            case SaveTrial():
                self.runners.save(effect.trial_id)
            case DeleteCheckpoint():
                self._delete(effect.path)
            case Tell():
                self._tells.append(effect)

    def _delete(self, path: str) -> None:
        # Aside: a large folder must not hold up the trials.
        if self._deleter is None:
            self._deleter = ThreadPoolExecutor(1, thread_name_prefix="tune-delete")
        self._deleter.submit(shutil.rmtree, path, ignore_errors=True)

    def _tell(self) -> None:
        """Callbacks, after the trials have their answers."""
        tells, self._tells = self._tells, []
        trials = self.loop.get_trials() if tells and self.user_callbacks else []
        for callback in self.user_callbacks:
            callback.on_step_begin(self._step, trials)
        for tell in tells:
            if tell.hook == "on_trial_error":
                _write_error(tell.trial)
            info = {"checkpoint": tell.trial.checkpoint} if tell.hook == "on_checkpoint" else tell.info
            for callback in self.callbacks:
                getattr(callback, tell.hook)(iteration=self._step, trials=trials, trial=tell.trial, **info)
            self.reporter.told(tell)
        if tells or self.user_callbacks:
            for callback in self.callbacks:
                callback.on_step_end(self._step, trials)

    # -- snapshots -----------------------------------------------------------------------------------------------------

    def _snapshot_if_due(self, now: float) -> None:
        pause = max(_SNAPSHOT_EVERY_S, self._snapshot_cost_s / _SNAPSHOT_SHARE)
        if now - self._snapshot_at >= pause:
            self._snapshot()

    def _snapshot(self) -> None:
        if self.journal.entries == self._snapshot_entries:
            return
        start = time.monotonic()
        self.journal.flush()
        state = {
            "entries": self.journal.entries, "searcher": self.loop.searcher.get_state(), "scheduler": self.loop.scheduler.get_state(),
            "stopper": self.loop.stopper, "callbacks": [callback.get_state() for callback in self.user_callbacks],
        }  # fmt: skip
        try:
            write_snapshot(self.folder, state)
        except (TypeError, AttributeError, pickle.PicklingError) as error:
            raise TuneError(f"the state of searcher, scheduler, stopper or callbacks cannot be pickled: {error}") from error
        self._snapshot_entries = self.journal.entries
        self._snapshot_at = time.monotonic()
        self._snapshot_cost_s = self._snapshot_at - start

    # -- Ctrl-C --------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _sigint(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: Callable[..., Any] | int | None = signal.getsignal(signal.SIGINT)

        def on_sigint(_number: int, _frame: Any) -> None:
            signal.signal(signal.SIGINT, before or signal.SIG_DFL)
            self.interrupted = True
            if self.runners.in_wait:
                raise KeyboardInterrupt

        signal.signal(signal.SIGINT, on_sigint)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before or signal.SIG_DFL)


def _without_config(entry: dict[str, Any]) -> dict[str, Any]:
    """Without the configuration, which is the trial's."""
    if entry["t"] in ("result", "ckpt") and "config" in (entry.get("result") or ()):
        return {**entry, "result": {key: value for key, value in entry["result"].items() if key != "config"}}
    return entry


def _write_error(trial: Trial) -> None:
    import cloudpickle

    folder = Path(trial.path)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "error.txt").open("a", encoding="utf-8") as file:
        file.write(f"{trial.error_text}\n")
    with contextlib.suppress(Exception):  # an error that cannot be pickled has its text
        (folder / "error.pkl").write_bytes(cloudpickle.dumps(trial.error))
