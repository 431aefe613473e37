"""What a scheduler of trials must be: the contract, and the simplest one."""

from __future__ import annotations

import os
import pickle
from typing import TYPE_CHECKING, Any, ClassVar

from ..search.searcher import check_mode
from ..trial import Trial, lookup

if TYPE_CHECKING:
    from ..execution.loop import TrialLoop

__all__ = ["FIFOScheduler", "TrialScheduler"]


class TrialScheduler:
    """Decides after each report whether a trial goes on, and which waiting trial is next. To be subclassed.

    The contract, which `shoal.tune.testing.check_scheduler` holds a subclass to:

    - All calls come from one thread, one at a time, and must not wait.
    - Each trial gets `on_trial_add` first, and then `on_trial_result` for its reports. In the end it gets exactly one of: `on_trial_complete` (it ended by
      itself or by a stopper), `on_trial_error`, or `on_trial_remove` (stopped from outside, such as by a time budget); nothing after an answer of STOP.
    - `on_trial_result` returns CONTINUE, PAUSE (the trial gives up its place; `choose_trial_to_run` may choose it again), STOP, or NOOP when the scheduler
      did something with the trial itself, by `tune_controller`.
    - `choose_trial_to_run` returns a trial that is PENDING or PAUSED, or None. It is asked again after each event, until it returns None.
    - Schedulers are pickled with the experiment's state.

    `tune_controller` has `get_trials()`, `get_live_trials()`, `get_trial(trial_id)`, `has_resources_for_trial(trial)`, `stop_trial(trial)`,
    `pause_trial(trial)` and `exploit(trial, donor, config)`.
    """

    CONTINUE: ClassVar[str] = "CONTINUE"
    PAUSE: ClassVar[str] = "PAUSE"
    STOP: ClassVar[str] = "STOP"
    NOOP: ClassVar[str] = "NOOP"

    _metric: str | None = None
    _mode: str | None = None
    _time_attr: str | None = None
    # Whether it makes no sense without a metric.
    needs_metric: ClassVar[bool] = False

    @property
    def metric(self) -> str | None:
        return self._metric

    @property
    def mode(self) -> str | None:
        return self._mode

    @property
    def time_attr(self) -> str | None:
        """The key by which it measures how far a trial is."""
        return self._time_attr

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Metric and mode of the `Tuner`. False: the scheduler has its own, and these are others."""
        if (self._metric and metric and metric != self._metric) or (self._mode and mode and mode != self._mode):
            return False
        check_mode(mode)
        self._metric = self._metric or metric
        self._mode = self._mode or mode
        return True

    def on_trial_add(self, tune_controller: TrialLoop, trial: Trial) -> None:
        """A new trial."""

    def on_trial_result(self, tune_controller: TrialLoop, trial: Trial, result: dict[str, Any]) -> str:
        """A report: what now? CONTINUE, PAUSE, STOP or NOOP."""
        return self.CONTINUE

    def on_trial_complete(self, tune_controller: TrialLoop, trial: Trial, result: dict[str, Any]) -> None:
        """The trial has ended as it should."""

    def on_trial_error(self, tune_controller: TrialLoop, trial: Trial) -> None:
        """The trial has failed for good."""

    def on_trial_remove(self, tune_controller: TrialLoop, trial: Trial) -> None:
        """The trial was stopped from outside."""

    def on_nothing_runs(self, tune_controller: TrialLoop) -> None:
        """Trials wait, none runs, and no new ones come: the last chance to let some go on."""

    def choose_trial_to_run(self, tune_controller: TrialLoop) -> Trial | None:
        """Which waiting trial is next."""
        for status in (Trial.PENDING, Trial.PAUSED):
            for trial in tune_controller.waiting_trials(status):
                if tune_controller.has_resources_for_trial(trial):
                    return trial
        return None

    def debug_string(self) -> str:
        """One line for the table."""
        return f"Using {type(self).__name__}"

    def save(self, checkpoint_path: str | os.PathLike[str]) -> None:
        """The scheduler's state, in a file."""
        with open(checkpoint_path, "wb") as file:
            pickle.dump(self.get_state(), file)

    def restore(self, checkpoint_path: str | os.PathLike[str]) -> None:
        """From a file of `save`. Only files that you trust: it is unpickled."""
        with open(checkpoint_path, "rb") as file:
            self.set_state(pickle.load(file))

    def get_state(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def set_state(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def _value(self, result: dict[str, Any]) -> float | None:
        """The metric so that larger is better; None when it was not reported."""
        value = lookup(result, self._metric or "")
        return None if value is None else float(value) if self._mode == "max" else -float(value)


class FIFOScheduler(TrialScheduler):
    """In the order of arrival, each to its end."""
