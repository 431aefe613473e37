"""The processes of the trials: actors started, asked and ended as the loop says, and their answers as its events."""

from __future__ import annotations

import contextlib
import os
import time
import traceback
from dataclasses import dataclass, field
from typing import Any

import shoal
from shoal.exceptions import RayActorError, RayTaskError

from ..error import TrialEndedError
from ..resources import PlacementGroupFactory
from ..trial import SavedCheckpoint, Trial
from .events import Event, StartTrial, TrialClosed, TrialEnded, TrialFailed, TrialReported, TrialSaved
from .runner import CLOSED, END, REPORT, SAVED, Runner, TrialSpec

__all__ = ["Runners"]

# A trial that is to stop has so long to come to its next report; then it is killed. One that is to save is worth waiting for.
BUSY_GRACE_S = 2.0
SAVE_GRACE_S = 20.0
# So long it may then save and clean up.
STOP_GRACE_S = 60.0
# Limit: actors that wait for a trial to run.
MAX_IDLE = 64


@dataclass(eq=False)
class _Place:
    """An actor and what it holds."""

    actor: Any
    placement: PlacementGroupFactory
    group: Any = None


@dataclass(eq=False)
class _Run:
    """A trial in its place. `asked`: the answer that is awaited; `stop`: whether it is to stop, and with a checkpoint; `until`: then it is killed."""

    trial: Trial
    place: _Place
    asked: Any = None
    # Ready when the process is there; and since when that is awaited.
    ready: Any = None
    since: float = 0.0
    stop: bool | None = None
    until: float | None = None
    stop_sent: bool = False


@dataclass(eq=False)
class Runners:
    """All of an experiment.

    Args:
        trainable: the trainable, as a reference.
        experiment_name: for the trials' context.
        reuse: whether places serve one trial after the other.
        checkpoint_frequency: of classes.
    """

    trainable: Any
    experiment_name: str
    reuse: bool = False
    checkpoint_frequency: int = 0
    # Whether a KeyboardInterrupt may come now: nothing is lost when a wait is broken off.
    in_wait: bool = False
    _runs: dict[str, _Run] = field(default_factory=dict)
    _by_ref: dict[Any, _Run] = field(default_factory=dict)
    _idle: list[_Place] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._actor_class = shoal.remote(Runner)

    @property
    def count(self) -> int:
        return len(self._runs)

    # -- effects -------------------------------------------------------------------------------------------------------

    def start(self, effect: StartTrial) -> None:
        trial = effect.trial
        restore = effect.restore
        spec = TrialSpec(
            trial_id=trial.trial_id, trial_name=str(trial), experiment_name=self.experiment_name, trial_dir=trial.path, config=trial.config,
            experiment_tag=trial.experiment_tag, restore=restore.path if restore else None, progress=_progress(restore), copy_to=effect.copy_to,
            next_checkpoint=effect.next_checkpoint, checkpoint_frequency=self.checkpoint_frequency, resources=trial.placement,
        )  # fmt: skip
        run = _Run(trial, self._place(trial.placement), since=time.monotonic())
        run.ready = run.place.actor.ready.remote()
        self._runs[trial.trial_id] = run
        self._ask(run, run.place.actor.start.remote(self.trainable, spec))

    def go_on(self, trial_id: str) -> None:
        run = self._runs[trial_id]
        self._ask(run, run.place.actor.next.remote())

    def save(self, trial_id: str) -> None:
        run = self._runs[trial_id]
        self._ask(run, run.place.actor.save.remote())

    def stop(self, trial_id: str, save: bool) -> None:
        run = self._runs[trial_id]
        run.stop = save
        run.until = time.monotonic() + (SAVE_GRACE_S if save else BUSY_GRACE_S)
        if run.asked is None:
            self._send_stop(run)

    def _send_stop(self, run: _Run) -> None:
        run.stop_sent = True
        run.until = time.monotonic() + STOP_GRACE_S
        self._ask(run, run.place.actor.stop.remote(bool(run.stop), self.reuse))

    def _ask(self, run: _Run, ref: Any) -> None:
        run.asked = ref
        self._by_ref[ref] = run

    def waiting_for_a_place(self, longer_than_s: float) -> list[Trial]:
        """Trials that have been told to start, but the cluster has had no room for their process for so long."""
        now = time.monotonic()
        late = [run for run in self._runs.values() if run.ready is not None and now - run.since > longer_than_s]
        for run in late:
            if shoal.wait([run.ready], timeout=0)[0]:
                run.ready = None
        return [run.trial for run in late if run.ready is not None]

    # -- places --------------------------------------------------------------------------------------------------------

    def _place(self, placement: PlacementGroupFactory) -> _Place:
        for place in self._idle:
            if place.placement == placement:
                self._idle.remove(place)
                return place
        while self._idle:  # they hold what this one may need
            self._end_place(self._idle.pop())
        options: dict[str, Any] = _actor_options(placement.head)
        group = None
        if placement.needs_group:
            from shoal.util import placement_group
            from shoal.util.scheduling_strategies import PlacementGroupSchedulingStrategy

            group = placement_group(placement.bundles, strategy=placement.strategy)
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(group, 0, placement_group_capture_child_tasks=True)
        return _Place(self._actor_class.options(**options).remote(), placement, group)

    def _end_place(self, place: _Place) -> None:
        with contextlib.suppress(RayActorError):
            shoal.kill(place.actor)
        if place.group is not None:
            from shoal.util import remove_placement_group

            remove_placement_group(place.group)

    def _leave(self, run: _Run, keep: bool) -> None:
        del self._runs[run.trial.trial_id]
        if keep and self.reuse and len(self._idle) < MAX_IDLE:
            self._idle.append(run.place)
        else:
            self._end_place(run.place)

    # -- events --------------------------------------------------------------------------------------------------------

    def poll(self, timeout_s: float) -> list[Event]:
        """Waits for news, at most so long."""
        over = self._kill_overdue()
        if over:
            return over
        refs = list(self._by_ref)
        if not refs:
            if timeout_s > 0:
                time.sleep(min(timeout_s, 0.05))
            return []
        deadlines = [run.until for run in self._runs.values() if run.until is not None]
        if deadlines:
            timeout_s = max(0.0, min(timeout_s, min(deadlines) - time.monotonic()))
        self.in_wait = True
        try:
            ready, _ = shoal.wait(refs, num_returns=1, timeout=timeout_s)
        finally:
            self.in_wait = False
        if ready and len(refs) > 1:
            ready, _ = shoal.wait(refs, num_returns=len(refs), timeout=0)
        return [self._answered(ref) for ref in ready]

    def _kill_overdue(self) -> list[Event]:
        now = time.monotonic()
        late = [run for run in self._runs.values() if run.until is not None and run.until <= now]
        for run in late:
            self._by_ref.pop(run.asked, None)
            self._leave(run, keep=False)
        return [TrialClosed(run.trial.trial_id, now) for run in late]

    def _answered(self, ref: Any) -> Event:
        run = self._by_ref.pop(ref)
        run.asked = run.ready = None
        trial_id, now = run.trial.trial_id, time.monotonic()
        try:
            kind, result, checkpoint = shoal.get(ref)
        except Exception as error:
            self._leave(run, keep=isinstance(error, RayTaskError))
            if run.stop_sent:  # it ended on the way out; what was saved before counts
                return TrialClosed(trial_id, now)
            return TrialFailed(trial_id, *_told(error), now)
        if kind == END:
            self._leave(run, keep=True)
            return TrialEnded(trial_id, now)
        if kind == CLOSED:
            self._leave(run, keep=True)
            return TrialClosed(trial_id, now, checkpoint)
        if run.stop is not None:
            self._send_stop(run)
        if kind == REPORT:
            return TrialReported(trial_id, result, now, checkpoint)
        assert kind == SAVED
        return TrialSaved(trial_id, checkpoint, now)

    # -- the end -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Ends all processes at once."""
        for run in list(self._runs.values()):
            with contextlib.suppress(Exception):
                self._leave(run, keep=False)
        for place in self._idle:
            with contextlib.suppress(Exception):
                self._end_place(place)
        self._runs.clear()
        self._by_ref.clear()
        self._idle.clear()


def _progress(restore: SavedCheckpoint | None) -> dict[str, Any]:
    """How far the trial was at the checkpoint; it is there, or this is where the trial fails."""
    return restore.progress if restore is not None else {}


def _actor_options(resources: dict[str, float]) -> dict[str, Any]:
    rest = {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU", "memory")}
    options: dict[str, Any] = {"num_cpus": resources.get("CPU", 0)}
    if resources.get("GPU"):
        options["num_gpus"] = resources["GPU"]
    if resources.get("memory"):
        options["memory"] = resources["memory"]
    if rest:
        options["resources"] = rest
    return options


def _told(error: BaseException) -> tuple[BaseException, str]:
    """The error that the trial has, and its text."""
    if isinstance(error, RayTaskError):
        return error, str(error)
    if isinstance(error, RayActorError):
        ended = TrialEndedError(f"the trial's process is gone: {error}")
        ended.__cause__ = error
        return ended, str(ended)
    return error, "".join(traceback.format_exception(error)) if os.environ.get("SHOAL_TRACEBACK") else f"{type(error).__name__}: {error}"
