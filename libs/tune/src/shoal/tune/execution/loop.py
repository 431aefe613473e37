"""The life of all trials of an experiment, as a state machine: events in, effects out. It knows no cluster, no files, no clock, no threads.

A trial is PENDING until it starts, RUNNING while a runner is at work, PAUSED when it gave up its place, and TERMINATED or ERROR in the end. A runner is open
from StartTrial until TrialEnded, TrialFailed or TrialClosed. After each report the runner waits for one answer: ContinueTrial, SaveTrial or StopTrial.

Invariants, which `check` asserts: a trial that is RUNNING has an open runner; a trial has at most one; the ledger holds exactly the open runners; a trial that
has ended never starts again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ..error import MissingMetricError, TuneError
from ..resources import Ledger
from ..schedulers.trial_scheduler import TrialScheduler
from ..search.searcher import Searcher
from ..search.variants import flat_params
from ..stopper import NoopStopper, Stopper
from ..trial import SavedCheckpoint, Trial
from .events import (
    ClusterChanged,
    ContinueTrial,
    DeleteCheckpoint,
    Effect,
    Event,
    Interrupted,
    Record,
    SaveTrial,
    StartTrial,
    StopTrial,
    Tell,
    Tick,
    TrialClosed,
    TrialEnded,
    TrialFailed,
    TrialReported,
    TrialSaved,
)
from .policy import LoopPolicy, Pins, check_metrics, surplus

__all__ = ["TrialLoop"]


class TrialLoop:
    """All trials of one experiment. `handle` is the only door; schedulers get the loop itself as `tune_controller`.

    Args:
        searcher, scheduler, stopper: what decides; `set_search_properties` was called already.
        policy: settings.
        make_trial: a trial from number, id and configuration.
        prefix: of the ids.
        wanted: metrics that every trial must report at once, each with who wants them.
        trials: those of an earlier run of the experiment.
        suggested: how many suggestions the searcher gave in earlier runs.
    """

    def __init__(
        self, searcher: Searcher, scheduler: TrialScheduler, policy: LoopPolicy, make_trial: Callable[[int, str, dict[str, Any]], Trial], *, prefix: str = "t",
        stopper: Stopper | None = None, wanted: Mapping[str, str] | None = None, ledger: Ledger | None = None, trials: Iterable[Trial] = (), suggested: int = 0,
    ) -> None:  # fmt: skip
        self.searcher = searcher
        self.scheduler = scheduler
        self.stopper = stopper or NoopStopper()
        self.policy = policy
        self.ledger = ledger or Ledger()
        self.error: BaseException | None = None
        self.interrupted = False
        self.stopping = False  # by stopper, time budget or fail_fast: nothing new starts
        self._make_trial = make_trial
        self._prefix = prefix
        self._wanted = dict(wanted or {})
        self._total = searcher.total_samples(policy.num_samples)
        self._suggested = suggested
        self._searched_out = False
        self._nothing_since: float | None = None
        self._deadline: float | None = None
        self._need: dict[str, float] | None = None
        self._out: list[Effect] = []
        self._trials: dict[str, Trial] = {}
        self._live: dict[str, Trial] = {}
        # Trials without a runner, that could have one; in the order they came.
        self._waiting: dict[str, dict[str, Trial]] = {Trial.PENDING: {}, Trial.PAUSED: {}}
        self._open: dict[str, Trial] = {}
        self._saving: set[str] = set()
        # Who waits for whose checkpoint.
        self._clones: dict[str, set[str]] = {}
        self._pins = Pins()
        # The checkpoint that a runner makes by copying before it begins, and what it copies.
        self._copying: dict[str, tuple[SavedCheckpoint, SavedCheckpoint]] = {}
        self._first_report: set[str] = set()
        for trial in trials:
            self._trials[trial.trial_id] = trial
            trial.runner_open = trial.closing = False
            if not trial.is_finished():
                trial.status = Trial.PENDING
                self._live[trial.trial_id] = trial
                self._waiting[Trial.PENDING][trial.trial_id] = trial

    # -- what others may ask -------------------------------------------------------------------------------------------

    def get_trials(self) -> list[Trial]:
        return list(self._trials.values())

    def get_live_trials(self) -> list[Trial]:
        """Those that have not ended."""
        return list(self._live.values())

    def get_trial(self, trial_id: str) -> Trial:
        return self._trials[trial_id]

    def waiting_trials(self, status: str) -> Iterator[Trial]:
        """Those that could start now, oldest first."""
        return iter(list(self._waiting[status].values()))

    def has_resources_for_trial(self, trial: Trial) -> bool:
        limit = self.policy.max_concurrent
        return (limit is None or len(self._open) < limit) and self.ledger.fits(trial.placement.required_resources)

    def can_be_copied(self, trial: Trial) -> bool:
        """Whether it has a checkpoint, or is just saving one."""
        return bool(trial.checkpoints) or trial.trial_id in self._saving

    @property
    def finished(self) -> bool:
        """Nothing runs, and nothing will."""
        if self._open:
            return False
        return self.interrupted or (not self._live and (self.stopping or self._no_more_samples()))

    @property
    def running(self) -> int:
        return len(self._open)

    @property
    def total_samples(self) -> int:
        return self._total

    def next_deadline(self) -> float | None:
        """When `Tick` is wanted at the latest."""
        times = [self._deadline, None if self._nothing_since is None else self._nothing_since + self.policy.suggest_patience_s]
        known = [time for time in times if time is not None]
        return min(known) if known else None

    # -- the door ------------------------------------------------------------------------------------------------------

    def handle(self, event: Event) -> list[Effect]:
        """Takes an event; what is to be done now, in order."""
        self._out = []
        if self._deadline is None and self.policy.time_budget_s is not None:
            self._deadline = event.now + self.policy.time_budget_s
        try:
            self._dispatch(event)
        except MissingMetricError as error:
            self._abort(error)
        if not self.stopping and not self.interrupted and (self._out_of_time(event.now) or self.stopper.stop_all()):
            self.stop_all()
        self._fill(event.now)
        out, self._out = self._out, []
        return out

    def _dispatch(self, event: Event) -> None:
        match event:
            case TrialReported():
                self._on_reported(event)
            case TrialSaved():
                self._on_saved(event)
            case TrialClosed():
                self._on_closed(event)
            case TrialEnded():
                self._on_ended(event)
            case TrialFailed():
                self._on_failed(event)
            case ClusterChanged():
                self.ledger.total = dict(event.total)
            case Interrupted():
                self.interrupt()
            case Tick():
                pass

    def _out_of_time(self, now: float) -> bool:
        return self._deadline is not None and now >= self._deadline

    # -- reports -------------------------------------------------------------------------------------------------------

    def _on_reported(self, event: TrialReported) -> None:
        trial = self._trials[event.trial_id]
        self._has_begun(trial)
        if trial.closing and (trial.is_finished() or not self.interrupted):  # stopped meanwhile: what it still says does not count
            return
        flat = flat_params(event.result)
        if trial.closing:  # interrupted: nothing is decided any more, but it goes on from here some day
            self._take_in(trial, event, flat)
            return
        if self.policy.strict_metrics and trial.trial_id not in self._first_report:
            check_metrics(trial, event.result, self._wanted)
            self._first_report.add(trial.trial_id)
        self._take_in(trial, event, flat)
        self._answer(trial, self._decide(trial, event.result, flat))

    def _take_in(self, trial: Trial, event: TrialReported, flat: dict[str, Any]) -> None:
        trial.record(event.result, flat)
        self._out.append(Record({"t": "result", "id": trial.trial_id, "result": event.result}))
        if event.checkpoint is not None:
            self._add_checkpoint(trial, event.checkpoint, event.result)
        self._out.append(Tell("on_trial_result", trial, {"result": event.result}))

    def _decide(self, trial: Trial, result: dict[str, Any], flat: dict[str, Any]) -> str:
        if result.get("done") or self.stopper(trial.trial_id, result):
            self.scheduler.on_trial_complete(self, trial, result)
            self.searcher.on_trial_complete(trial.trial_id, flat)
            return TrialScheduler.STOP
        decision = self.scheduler.on_trial_result(self, trial, result)
        if decision not in (TrialScheduler.CONTINUE, TrialScheduler.PAUSE, TrialScheduler.STOP, TrialScheduler.NOOP):
            raise TuneError(f"{type(self.scheduler).__name__}.on_trial_result returned {decision!r}: CONTINUE, PAUSE, STOP or NOOP is wanted")
        if decision == TrialScheduler.STOP:
            self.searcher.on_trial_complete(trial.trial_id, flat)
        else:
            self.searcher.on_trial_result(trial.trial_id, flat)
        return decision

    def _answer(self, trial: Trial, decision: str) -> None:
        if decision == TrialScheduler.STOP:
            trial.last_result["done"] = True
            self._finish(trial, Trial.TERMINATED)
            self._close(trial, save=self.policy.save_at_end)
        elif decision == TrialScheduler.PAUSE:
            self.pause_trial(trial)
        elif not trial.closing:  # NOOP: the scheduler may have left it as it is
            self._go_on(trial)

    def _go_on(self, trial: Trial) -> None:
        self._out.append(SaveTrial(trial.trial_id) if trial.trial_id in self._saving else ContinueTrial(trial.trial_id))

    def _on_saved(self, event: TrialSaved) -> None:
        trial = self._trials[event.trial_id]
        if trial.closing:
            return
        self._saved(trial, event.checkpoint)
        self._go_on(trial)

    def _saved(self, trial: Trial, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self._add_checkpoint(trial, checkpoint, trial.last_result)
            self._out.append(Tell("on_trial_save", trial, {}))
        self._saving.discard(trial.trial_id)
        for waiting in sorted(self._clones.pop(trial.trial_id, ())):
            clone = self._trials[waiting]
            self._copy_from(clone, trial)
            if not clone.runner_open and not clone.is_finished():
                self._waiting[Trial.PAUSED][waiting] = clone

    # -- ends ----------------------------------------------------------------------------------------------------------

    def _on_closed(self, event: TrialClosed) -> None:
        trial = self._trials[event.trial_id]
        self._has_begun(trial)
        self._saved(trial, event.checkpoint)
        self._runner_gone(trial)
        if trial.is_finished():
            self._forget(trial)
        elif not any(trial.trial_id in waiting for waiting in self._clones.values()):
            self._waiting[Trial.PAUSED][trial.trial_id] = trial

    def _on_ended(self, event: TrialEnded) -> None:
        trial = self._trials[event.trial_id]
        closing = trial.closing
        self._has_begun(trial)
        self._runner_gone(trial)
        if closing:
            self._on_gone_while_closing(trial)
            return
        trial.last_result["done"] = True
        result = flat_params(trial.last_result)
        self.scheduler.on_trial_complete(self, trial, trial.last_result)
        self.searcher.on_trial_complete(trial.trial_id, result if len(result) > 1 else None)
        self._finish(trial, Trial.TERMINATED)
        self._forget(trial)

    def _on_gone_while_closing(self, trial: Trial) -> None:
        """It was asked to stop, and is gone: as it was wanted."""
        self._saved(trial, None)
        if trial.is_finished():
            self._forget(trial)
        else:
            self._waiting[Trial.PAUSED][trial.trial_id] = trial

    def _on_failed(self, event: TrialFailed) -> None:
        trial = self._trials[event.trial_id]
        closing = trial.closing
        self._did_not_begin(trial)
        self._runner_gone(trial)
        if closing:
            self._on_gone_while_closing(trial)
            return
        self._saved(trial, None)
        trial.num_failures += 1
        trial.error, trial.error_text = event.error, event.text
        if self.interrupted or self.policy.max_failures < 0 or trial.num_failures <= self.policy.max_failures:
            self._out.append(Record({"t": "fail", "id": trial.trial_id, "text": event.text}))
            self._out.append(Tell("on_trial_recover", trial, {}))
            trial.error = None
            trial.status = Trial.PENDING
            self._waiting[Trial.PENDING][trial.trial_id] = trial
            return
        self.scheduler.on_trial_error(self, trial)
        self.searcher.on_trial_complete(trial.trial_id, flat_params(trial.last_result) or None, error=True)
        self._finish(trial, Trial.ERROR)
        self._forget(trial)
        if self.policy.fail_fast:
            self.error = event.error if self.policy.fail_fast == "raise" else None
            self.interrupt()

    def _finish(self, trial: Trial, status: str) -> None:
        trial.status = status
        self._live.pop(trial.trial_id, None)
        for waiting in self._waiting.values():
            waiting.pop(trial.trial_id, None)
        entry: dict[str, Any] = {"t": "end", "id": trial.trial_id, "status": status}
        if status == Trial.ERROR:
            entry["text"] = trial.error_text
        self._out.append(Record(entry))
        self._out.append(Tell("on_trial_error" if status == Trial.ERROR else "on_trial_complete", trial, {}))

    def _forget(self, trial: Trial) -> None:
        """What only a trial that lives needs."""
        self._first_report.discard(trial.trial_id)
        self._pins.unpin("copy", trial.trial_id)
        for waiting in self._clones.values():
            waiting.discard(trial.trial_id)

    def _runner_gone(self, trial: Trial) -> None:
        self._pins.unpin("start", trial.trial_id)
        self._open.pop(trial.trial_id)
        self.ledger.give_back(trial.placement.required_resources)
        trial.runner_open = trial.closing = False

    def _close(self, trial: Trial, save: bool) -> None:
        trial.closing = True
        self._out.append(StopTrial(trial.trial_id, save))

    # -- what schedulers and shell may do ------------------------------------------------------------------------------

    def stop_trial(self, trial: Trial) -> None:
        """Ends a trial from outside, as it is."""
        if trial.is_finished():
            return
        self.scheduler.on_trial_remove(self, trial)
        self.searcher.on_trial_complete(trial.trial_id, flat_params(trial.last_result) or None)
        self._finish(trial, Trial.TERMINATED)
        if trial.runner_open and not trial.closing:
            self._close(trial, save=self.policy.save_at_end)
        elif not trial.runner_open:
            self._forget(trial)

    def pause_trial(self, trial: Trial, should_checkpoint: bool = True) -> None:
        """Takes its place away. It goes on from its latest checkpoint when the scheduler chooses it."""
        if trial.status != Trial.RUNNING or trial.closing:
            return
        trial.status = Trial.PAUSED
        self._out.append(Record({"t": "pause", "id": trial.trial_id}))
        self._close(trial, save=should_checkpoint and self.policy.can_save)

    def save_trial(self, trial: Trial) -> None:
        """Asks for a checkpoint now, from trials that can be asked; functions report theirs."""
        if self.policy.can_save and trial.runner_open and not trial.closing:
            self._saving.add(trial.trial_id)

    def exploit(self, trial: Trial, donor: Trial, config: dict[str, Any]) -> None:
        """The trial goes on from a copy of the donor's latest checkpoint, with another configuration."""
        trial.config = config
        self._out.append(Record({"t": "config", "id": trial.trial_id, "config": config}))
        if donor.trial_id in self._saving:
            self._clones.setdefault(donor.trial_id, set()).add(trial.trial_id)
            self._waiting[Trial.PAUSED].pop(trial.trial_id, None)
            self._waiting[Trial.PENDING].pop(trial.trial_id, None)
        else:
            self._copy_from(trial, donor)
        self.pause_trial(trial, should_checkpoint=False)

    def stop_all(self) -> None:
        """Ends all trials, and starts no new ones."""
        self.stopping = True
        for trial in self.get_live_trials():
            self.stop_trial(trial)

    def interrupt(self) -> None:
        """Ends all runners; trials that have not ended stay unfinished, for a later run."""
        if self.interrupted:
            return
        self.interrupted = True
        for trial in list(self._open.values()):
            if not trial.closing:
                trial.status = Trial.PAUSED
                self._close(trial, save=self.policy.can_save)

    def _abort(self, error: BaseException) -> None:
        self.error = error
        self.interrupt()

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def _add_checkpoint(self, trial: Trial, path: str, result: dict[str, Any]) -> None:
        saved = SavedCheckpoint(path, result, trial.checkpoint_count)
        trial.checkpoint_count += 1
        trial.checkpoints.append(saved)
        self._out.append(Record({"t": "ckpt", "id": trial.trial_id, "path": path, "i": saved.index}))
        self._out.append(Tell("on_checkpoint", trial, {"checkpoint": saved}))
        self._drop_surplus(trial)

    def _drop_surplus(self, trial: Trial) -> None:
        gone = surplus(trial.checkpoints, self.policy, self._pins)
        for one in gone:
            trial.checkpoints.remove(one)
            self._out.append(Record({"t": "drop", "id": trial.trial_id, "path": one.path}))
            self._out.append(DeleteCheckpoint(one.path))

    def _copy_from(self, trial: Trial, donor: Trial) -> None:
        trial.restore_from = donor.latest
        if donor.latest is not None:
            self._pins.pin("copy", trial.trial_id, donor.latest.path)

    def _has_begun(self, trial: Trial) -> None:
        """Its runner has spoken: it has read what it began from."""
        self._pins.unpin("start", trial.trial_id)
        self._copying.pop(trial.trial_id, None)

    def _did_not_begin(self, trial: Trial) -> None:
        """Its runner failed; when that was while it copied, the copy is not there."""
        if trial.trial_id in self._copying:
            copied, source = self._copying.pop(trial.trial_id)
            if copied in trial.checkpoints:
                trial.checkpoints.remove(copied)
                self._out.append(Record({"t": "drop", "id": trial.trial_id, "path": copied.path}))
            trial.restore_from = source
            self._pins.pin("copy", trial.trial_id, source.path)

    # -- starts --------------------------------------------------------------------------------------------------------

    def _fill(self, now: float) -> None:
        """Starts what may start."""
        self._start_all(now)
        if not self._open and self._live and not self.interrupted and not self.stopping:
            self.scheduler.on_nothing_runs(self)
            self._start_all(now)
        self._look_for_standstill(now)

    def _start_all(self, now: float) -> None:
        while not self.interrupted and not self.stopping:
            trial = self.scheduler.choose_trial_to_run(self)
            if trial is None:
                if not self._suggest():
                    break
                continue
            if trial.runner_open or trial.is_finished() or not self.has_resources_for_trial(trial):
                raise TuneError(f"{type(self.scheduler).__name__}.choose_trial_to_run chose {trial}, which cannot start: it is {trial.status}")
            self._start(trial, now)

    def _no_more_samples(self) -> bool:
        return self._searched_out or (self._total >= 0 and self._suggested >= self._total)

    def _may_suggest(self) -> bool:
        if self._no_more_samples():
            return False
        limit = self.policy.max_concurrent
        if limit is not None and len(self._open) >= limit:
            return False
        if any(not trial.runner_open for trial in self._waiting[Trial.PENDING].values()):
            return False  # one that does not fit, or that the scheduler does not want yet
        return self.ledger.fits(self._need) if self._need is not None else True

    def _suggest(self) -> bool:
        """A new trial, if the searcher has one."""
        if not self._may_suggest():
            return False
        trial_id = f"{self._prefix}_{self._suggested:05d}"
        config = self.searcher.suggest(trial_id)
        if config is None:
            return False
        if isinstance(config, str):
            if config != Searcher.FINISHED:
                raise TuneError(f"{type(self.searcher).__name__}.suggest returned {config!r}: a dict, None or Searcher.FINISHED is wanted")
            self._searched_out = True
            return False
        trial = self._make_trial(self._suggested, trial_id, config)
        self._suggested += 1
        self._need = trial.placement.required_resources
        self._trials[trial_id] = self._live[trial_id] = trial
        self._waiting[Trial.PENDING][trial_id] = trial
        # First the scheduler: it may fill in what the configuration lacks.
        self.scheduler.on_trial_add(self, trial)
        entry = {"t": "trial", "id": trial_id, "n": trial.number, "config": trial.config, "path": trial.path, "params": trial.evaluated_params}
        if trial.custom_name is not None:
            entry["name"] = trial.custom_name
        self._out.append(Record(entry))
        return True

    def _start(self, trial: Trial, now: float) -> None:
        for waiting in self._waiting.values():
            waiting.pop(trial.trial_id, None)
        restore, copy_to = trial.restore_from or trial.latest, None
        if trial.restore_from is not None:
            source = trial.restore_from
            copy_to = f"{trial.path}/checkpoint_{trial.checkpoint_count:06d}"
            self._pins.unpin("copy", trial.trial_id)
            self._pins.pin("start", trial.trial_id, source.path)
            copied = SavedCheckpoint(copy_to, source.result, trial.checkpoint_count)
            trial.checkpoint_count += 1
            trial.checkpoints.append(copied)
            trial.restore_from = None
            self._copying[trial.trial_id] = (copied, source)
            self._out.append(
                Record({"t": "ckpt", "id": trial.trial_id, "path": copy_to, "i": copied.index, "from": source.path, "result": source.result})
            )
            self._drop_surplus(trial)
        elif restore is not None:
            self._pins.pin("start", trial.trial_id, restore.path)
        again = trial.start_time > 0 or trial.is_restored
        trial.status = Trial.RUNNING
        trial.start_time = trial.start_time or now
        trial.runner_open = True
        self._open[trial.trial_id] = trial
        self.ledger.take(trial.placement.required_resources)
        self._out.append(Record({"t": "start", "id": trial.trial_id}))
        self._out.append(StartTrial(trial, restore, copy_to, trial.checkpoint_count))
        if again and restore is not None:
            self._out.append(Tell("on_trial_restore", trial, {}))
        self._out.append(Tell("on_trial_start", trial, {}))

    def _look_for_standstill(self, now: float) -> None:
        """Nothing runs though there is something to do: with time the searcher or the scheduler may change its mind, but not for ever."""
        if self._open or self.finished:
            self._nothing_since = None
            return
        if self._nothing_since is None:
            self._nothing_since = now
        elif now - self._nothing_since >= self.policy.suggest_patience_s:
            who = f"{type(self.scheduler).__name__} starts none of {len(self._live)} waiting trials" if self._live else (
                f"{type(self.searcher).__name__} suggests nothing, and does not say that it has FINISHED"
            )  # fmt: skip
            self._abort(TuneError(f"the experiment stands still: no trial has run for {self.policy.suggest_patience_s:g} s, and {who}"))

    # -- for tests -----------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Asserts the invariants."""
        for trial in self._trials.values():
            assert trial.runner_open == (trial.trial_id in self._open), trial
            assert trial.status != Trial.RUNNING or trial.runner_open, trial
            assert not trial.closing or trial.runner_open, trial
            assert (trial.trial_id in self._live) == (not trial.is_finished()), trial
            for waiting in self._waiting.values():
                assert trial.trial_id not in waiting or (not trial.runner_open and not trial.is_finished()), trial
        assert self.ledger.holders == len(self._open)
        self._pins.check()
