"""Synchronous successive halving, in brackets."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..search.searcher import check_mode
from ..trial import Trial, lookup
from .trial_scheduler import TrialScheduler

if TYPE_CHECKING:
    from ..execution.loop import TrialLoop

__all__ = ["HyperBandScheduler"]


@dataclass
class _Bracket:
    """So many trials that go to a milestone and wait there for each other; then the best go on to the next."""

    size: int
    milestone: float
    live: dict[str, float | None] = field(default_factory=dict)  # the value at the milestone, once it is reached
    added: int = 0
    closed: bool = False  # no new trials any more

    @property
    def open(self) -> bool:
        return not self.closed and self.added < self.size

    @property
    def all_wait(self) -> bool:
        return bool(self.live) and all(value is not None for value in self.live.values())


class HyperBandScheduler(TrialScheduler):
    """Brackets of trials that are halved together: few trials that may go far, and many that must be good early.

    Li et al., "Hyperband", JMLR 2018. Trials wait for the others of their bracket, so they must report checkpoints to go on from; `ASHAScheduler` does without.

    Args:
        time_attr: the key that says how far a trial is; it must grow.
        metric, mode: default: those of `TuneConfig`.
        max_t: a trial that is so far is stopped.
        reduction_factor: of a bracket's trials one in so many goes on, so many times as far.
        stop_last_trials: False: trials that are `max_t` far go on.
    """

    needs_metric = True

    def __init__(self, time_attr: str = "training_iteration", metric: str | None = None, mode: str | None = None, max_t: int = 81,
                 reduction_factor: float = 3, stop_last_trials: bool = True) -> None:  # fmt: skip
        check_mode(mode)
        if not max_t > 0:
            raise ValueError(f"max_t must be greater than 0, got {max_t!r}")
        if not reduction_factor > 1:
            raise ValueError(f"reduction_factor must be greater than 1, got {reduction_factor!r}")
        self._time_attr = time_attr
        self._metric = metric
        self._mode = mode
        self.max_t = max_t
        self.reduction_factor = reduction_factor
        self.stop_last_trials = stop_last_trials
        # A hair of room: log(81) / log(3) in floats.
        self._most_halvings = int(math.log(max_t) / math.log(reduction_factor) + 1e-9)
        self.brackets: list[_Bracket] = []
        self.bracket_of: dict[str, int] = {}
        self.num_stopped = 0

    def _new_bracket(self) -> _Bracket:
        """The most halvings first, then one less each, then from the start again."""
        halvings = self._most_halvings - len(self.brackets) % (self._most_halvings + 1)
        size = math.ceil((self._most_halvings + 1) / (halvings + 1) * self.reduction_factor**halvings - 1e-9)
        return _Bracket(size, self.max_t / self.reduction_factor**halvings)

    # -- events --------------------------------------------------------------------------------------------------------

    def on_trial_add(self, tune_controller: TrialLoop, trial: Trial) -> None:
        if not self.brackets or not self.brackets[-1].open:
            self.brackets.append(self._new_bracket())
        bracket = self.brackets[-1]
        bracket.live[trial.trial_id] = None
        bracket.added += 1
        self.bracket_of[trial.trial_id] = len(self.brackets) - 1

    def on_trial_result(self, tune_controller: TrialLoop, trial: Trial, result: dict[str, Any]) -> str:
        time, value = lookup(result, self._time_attr or ""), self._value(result)
        if time is None or value is None:
            return self.CONTINUE
        if time >= self.max_t:
            if not self.stop_last_trials:
                return self.CONTINUE
            self._leave(tune_controller, trial)
            return self.STOP
        bracket = self.brackets[self.bracket_of[trial.trial_id]]
        if time < bracket.milestone:
            return self.CONTINUE
        bracket.live[trial.trial_id] = -math.inf if math.isnan(value) else value
        if not bracket.all_wait or bracket.open:
            return self.PAUSE
        self._halve(tune_controller, bracket, trial)
        if trial.trial_id in bracket.live:
            return self.CONTINUE
        self.num_stopped += 1
        return self.STOP

    def on_trial_complete(self, tune_controller: TrialLoop, trial: Trial, result: dict[str, Any]) -> None:
        self._leave(tune_controller, trial)

    def on_trial_error(self, tune_controller: TrialLoop, trial: Trial) -> None:
        self._leave(tune_controller, trial)

    def on_trial_remove(self, tune_controller: TrialLoop, trial: Trial) -> None:
        self._leave(tune_controller, trial)

    def on_nothing_runs(self, tune_controller: TrialLoop) -> None:
        """No more trials come: brackets that did not become full are halved as they are."""
        for bracket in self.brackets:
            if bracket.all_wait:
                self._halve(tune_controller, bracket, None)

    # -- halving -------------------------------------------------------------------------------------------------------

    def _leave(self, controller: TrialLoop, trial: Trial) -> None:
        index = self.bracket_of.pop(trial.trial_id, None)
        if index is None:
            return
        bracket = self.brackets[index]
        bracket.live.pop(trial.trial_id, None)
        if bracket.all_wait and not bracket.open:
            self._halve(controller, bracket, None)

    def _halve(self, controller: TrialLoop, bracket: _Bracket, current: Trial | None) -> None:
        """The best go on to the next milestone; the others end, `current` by the answer to its report."""
        bracket.closed = True
        values = {trial_id: value for trial_id, value in bracket.live.items() if value is not None}
        ordered = sorted(values, key=lambda trial_id: values[trial_id], reverse=True)
        keep = max(1, int(len(ordered) / self.reduction_factor))
        bracket.milestone = min(bracket.milestone * self.reduction_factor, self.max_t)
        bracket.live = dict.fromkeys(ordered[:keep])
        for trial_id in ordered[keep:]:
            del self.bracket_of[trial_id]
            if current is None or trial_id != current.trial_id:
                self.num_stopped += 1
                controller.stop_trial(controller.get_trial(trial_id))

    def choose_trial_to_run(self, tune_controller: TrialLoop) -> Trial | None:
        """Those that may go on before new ones."""
        for status in (Trial.PAUSED, Trial.PENDING):
            for trial in tune_controller.waiting_trials(status):
                index = self.bracket_of.get(trial.trial_id)
                waits = index is not None and self.brackets[index].live.get(trial.trial_id) is not None
                if not waits and tune_controller.has_resources_for_trial(trial):
                    return trial
        return None

    def debug_string(self) -> str:
        return f"Using HyperBand: {len(self.brackets)} brackets, {self.num_stopped} stopped"
