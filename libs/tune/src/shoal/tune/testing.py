"""For authors of searchers and schedulers: trials without a cluster, and the suites that hold an implementation to its contract.

::

    def test_my_searcher():
        check_searcher(lambda: MySearcher(seed=1), {"x": uniform(0, 1)})

    def test_my_scheduler():
        check_scheduler(lambda: MyScheduler(max_t=9))
"""

from __future__ import annotations

import copy
import heapq
import pickle
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .error import TrialEndedError
from .execution.events import (
    ClusterChanged,
    ContinueTrial,
    DeleteCheckpoint,
    Effect,
    Event,
    Record,
    SaveTrial,
    StartTrial,
    StopTrial,
    Tell,
    TrialClosed,
    TrialEnded,
    TrialFailed,
    TrialReported,
    TrialSaved,
)
from .execution.loop import TrialLoop
from .execution.policy import LoopPolicy
from .resources import Ledger
from .schedulers import FIFOScheduler, TrialScheduler
from .search import BasicVariantGenerator, Searcher
from .search.variants import evaluated, leaves
from .stopper import Stopper
from .trial import Trial

__all__ = ["Simulation", "check_scheduler", "check_searcher", "curve"]


def curve(config: Mapping[str, Any], iteration: int) -> float:
    """A loss that falls with the iterations, towards a value that is best at x = 0.5."""
    return (float(config.get("x", 0.5)) - 0.5) ** 2 + 1.0 / (iteration + 1)


@dataclass
class _Job:
    """What a simulated runner knows of its trial."""

    trial: Trial
    iteration: int
    next_checkpoint: int
    state: float = 0.0


@dataclass
class Simulation:
    """Runs a `TrialLoop` on a virtual clock. Every step of a trial takes a second, or what `duration` says.

    Args:
        space, searcher, scheduler, stopper, policy: of the experiment.
        metric, mode: told to searcher and scheduler.
        cpus: of the virtual cluster; a trial takes one.
        iterations: after so many reports a trial ends by itself.
        score: the metric of a configuration at an iteration.
        duration: seconds of a step.
        checkpoints: whether each report comes with a checkpoint.
        fails: whether a trial's process dies at an iteration: called with trial and iteration.
        check_every: the loop's invariants are asserted after so many events; 0: never.

    Attributes:
        loop, now, effects (a count by kind), records (of the journal), reports (of each trial), deleted (checkpoints).
    """

    space: dict[str, Any] = field(default_factory=dict)
    searcher: Searcher | None = None
    scheduler: TrialScheduler | None = None
    stopper: Stopper | None = None
    policy: LoopPolicy = field(default_factory=LoopPolicy)
    metric: str = "loss"
    mode: str = "min"
    cpus: int = 4
    iterations: int = 10
    score: Callable[[Mapping[str, Any], int], float] = curve
    duration: Callable[[Trial, int], float] = lambda trial, iteration: 1.0
    checkpoints: bool = True
    fails: Callable[[Trial, int], bool] = lambda trial, iteration: False
    check_every: int = 1
    known_trials: list[Trial] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.now = 0.0
        self.effects: Counter[str] = Counter()
        self.records: list[dict[str, Any]] = []
        self.reports: dict[str, list[dict[str, Any]]] = {}
        self.deleted: set[str] = set()
        self.existing: set[str] = set()
        self.started: list[str] = []
        self.steps = 0
        self.max_running = 0
        self._jobs: dict[str, _Job] = {}
        self._events: list[tuple[float, int, Event]] = []
        self._number = 0
        self.searcher = self.searcher or BasicVariantGenerator(random_state=0)
        self.scheduler = self.scheduler or FIFOScheduler()
        self.searcher.set_search_properties(self.metric, self.mode, self.space, num_samples=self.policy.num_samples)
        self.scheduler.set_search_properties(self.metric, self.mode)
        self.loop = TrialLoop(
            self.searcher, self.scheduler, self.policy, self._make_trial, stopper=self.stopper, ledger=Ledger({"CPU": self.cpus}), trials=self.known_trials,
            suggested=len(self.known_trials),
        )  # fmt: skip

    def _make_trial(self, number: int, trial_id: str, config: dict[str, Any]) -> Trial:
        return Trial(trial_id, config, number=number, path=f"/virtual/{trial_id}", evaluated_params=evaluated(self.space, config))

    def run(self, until: float = float("inf")) -> list[Trial]:
        """To the end, or until a virtual time; all trials.

        Raises:
            AssertionError: the loop stands still, or an invariant does not hold.
        """
        self.send(ClusterChanged({"CPU": self.cpus}, self.now))
        while self._events and self.now < until:
            self.now, _, event = heapq.heappop(self._events)
            if self._is_current(event):
                self.send(event)
        if until == float("inf"):
            assert self.loop.finished, f"nothing happens any more, but the loop has not finished: {[(str(t), t.status) for t in self.loop.get_live_trials()]}"
            self.loop.check()
        return self.loop.get_trials()

    def send(self, event: Event) -> list[Effect]:
        """One event now."""
        self.steps += 1
        if isinstance(event, TrialEnded | TrialFailed | TrialClosed):
            self._jobs.pop(event.trial_id, None)
        effects = self.loop.handle(event)
        for effect in effects:
            self.effects[type(effect).__name__] += 1
            self._do(effect)
        self.max_running = max(self.max_running, self.loop.running)
        if self.check_every and self.steps % self.check_every == 0:
            self.loop.check()
        return effects

    def _is_current(self, event: Event) -> bool:
        # A trial that was stopped in the middle of a step does not report.
        trial_id = getattr(event, "trial_id", None)
        return trial_id is None or trial_id in self._jobs

    def _later(self, delay: float, make: Callable[[float], Event]) -> None:
        self._number += 1
        heapq.heappush(self._events, (self.now + delay, self._number, make(self.now + delay)))

    def _do(self, effect: Effect) -> None:
        match effect:
            case StartTrial():
                self._start(effect)
            case ContinueTrial():
                self._step(self._jobs[effect.trial_id])
            case SaveTrial():
                path = self._save(self._jobs[effect.trial_id])
                self._later(0.1, lambda now: TrialSaved(effect.trial_id, path, now))
            case StopTrial():
                self._stop(effect)
            case Record():
                self.records.append(copy.deepcopy(effect.entry))
            case DeleteCheckpoint():
                assert effect.path in self.existing, f"{effect.path} is deleted, but does not exist"
                self.existing.discard(effect.path)
                self.deleted.add(effect.path)
            case Tell():
                pass

    def _start(self, effect: StartTrial) -> None:
        trial = effect.trial
        assert trial.trial_id not in self._jobs, f"{trial} is started twice"
        iteration = 0
        if effect.restore is not None:
            assert effect.restore.path in self.existing, f"{trial} is to go on from {effect.restore.path}, which is gone"
            iteration = int(effect.restore.progress["training_iteration"])
        if effect.copy_to is not None:
            self.existing.add(effect.copy_to)
        self.started.append(trial.trial_id)
        job = self._jobs[trial.trial_id] = _Job(trial, iteration, effect.next_checkpoint)
        self._step(job)

    def _step(self, job: _Job) -> None:
        trial_id = job.trial.trial_id
        if job.iteration >= self.iterations:
            self._later(0.0, lambda now: TrialEnded(trial_id, now))
            return
        delay = self.duration(job.trial, job.iteration + 1)
        if self.fails(job.trial, job.iteration + 1):
            error = TrialEndedError("the simulated process died")
            self._later(delay, lambda now: TrialFailed(trial_id, error, str(error), now))
            return
        job.iteration += 1
        path = self._save(job) if self.checkpoints and not self.policy.can_save else None
        result = {self.metric: self.score(job.trial.config, job.iteration), "training_iteration": job.iteration, "time_total_s": float(job.iteration)}
        self.reports.setdefault(trial_id, []).append(result)
        self._later(delay, lambda now: TrialReported(trial_id, result, now, path))

    def _save(self, job: _Job) -> str:
        path = f"{job.trial.path}/checkpoint_{job.next_checkpoint:06d}"
        job.next_checkpoint += 1
        self.existing.add(path)
        return path

    def _stop(self, effect: StopTrial) -> None:
        path = self._save(self._jobs[effect.trial_id]) if effect.save else None
        # What it would have reported is dropped: this is its last word. Under way at most once for each trial that runs.
        self._events = [entry for entry in self._events if getattr(entry[2], "trial_id", None) != effect.trial_id]
        heapq.heapify(self._events)
        self._later(0.0, lambda now: TrialClosed(effect.trial_id, now, path))


def check_searcher(make: Callable[[], Searcher], space: dict[str, Any], metric: str = "loss", mode: str = "min", trials: int = 12) -> None:
    """Holds a searcher to the contract of `Searcher`: suggestions, their ends, failures, state, and the order of calls that the trial loop makes.

    Args:
        make: a fresh searcher, always with the same arguments.
        space: a search space that it understands; {} if it has its own.

    Raises:
        AssertionError: naming what does not hold.
    """
    _check_suggestions(make(), space, metric, mode, trials)
    _check_state(make, space, metric, mode, trials)
    simulation = Simulation(
        space=space, searcher=make(), metric=metric, mode=mode, policy=LoopPolicy(num_samples=trials), iterations=3, fails=lambda trial, at: trial.number == 2,
    )  # fmt: skip
    done = simulation.run()
    assert len(done) > 0, "no trial was suggested in a whole experiment"
    assert all(trial.is_finished() for trial in done)


def _check_suggestions(searcher: Searcher, space: dict[str, Any], metric: str, mode: str, trials: int) -> None:
    taken = searcher.set_search_properties(metric, mode, space, num_samples=trials)
    assert taken in (True, False), f"set_search_properties must return True or False, not {taken!r}"
    before = copy.deepcopy({key: repr(value) for key, value in space.items()})
    given = 0
    for number in range(trials):
        trial_id = f"check_{number:03d}"
        config = searcher.suggest(trial_id)
        if config is None or config == Searcher.FINISHED:
            break
        assert isinstance(config, dict), f"suggest must return a dict, None or FINISHED, not {type(config).__name__}"
        assert not list(leaves(config)), f"a suggestion still has domains in it: {config}"
        given += 1
        for step in range(number % 3):
            searcher.on_trial_result(trial_id, {metric: 1.0 / (step + 1), "training_iteration": step + 1})
        if number % 4 == 3:
            searcher.on_trial_complete(trial_id, None, error=True)
        elif number % 4 == 2:
            searcher.on_trial_complete(trial_id, None)
        else:
            searcher.on_trial_complete(trial_id, {metric: curve(config, number), "training_iteration": 3})
    assert given, "the searcher suggested nothing"
    assert before == {key: repr(value) for key, value in space.items()}, "the searcher changed the space"
    searcher.on_trial_complete("unknown", {metric: 0.0})


def _check_state(make: Callable[[], Searcher], space: dict[str, Any], metric: str, mode: str, trials: int) -> None:
    first = make()
    first.set_search_properties(metric, mode, space, num_samples=trials)
    names = []
    for number in range(min(4, trials)):
        config = first.suggest(f"state_{number}")
        if isinstance(config, dict):
            names.append(f"state_{number}")
    state = first.get_state()
    pickled = pickle.dumps(state)
    for name in names:
        first.on_trial_complete(name, {metric: 1.0, "training_iteration": 1})
    second = make()
    second.set_search_properties(metric, mode, space, num_samples=trials)
    second.set_state(pickle.loads(pickled))
    for name in names:  # those that ran at the time of the snapshot end now
        second.on_trial_complete(name, {metric: 1.0, "training_iteration": 1})
    further = second.suggest("state_further")
    assert further is None or further == Searcher.FINISHED or isinstance(further, dict), f"after set_state, suggest returned {further!r}"
    third = make()
    third.set_search_properties(metric, mode, space, num_samples=trials)
    again = third.suggest("probe")
    if isinstance(again, dict):
        fourth = make()
        fourth.set_search_properties(metric, mode, space, num_samples=trials)
        fourth.on_trial_restore("probe", again)
        fourth.on_trial_complete("probe", {metric: 1.0, "training_iteration": 1})


class _Watched(TrialScheduler):
    """Passes all on to another scheduler, and asserts that the loop keeps its side of the contract."""

    def __init__(self, inner: TrialScheduler) -> None:
        self.inner = inner
        self.ended: Counter[str] = Counter()
        self.stopped: set[str] = set()

    @property
    def metric(self) -> str | None:
        return self.inner.metric

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return self.inner.set_search_properties(metric, mode, **spec)

    def on_trial_add(self, tune_controller: TrialLoop, trial: Trial) -> None:
        self.inner.on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: TrialLoop, trial: Trial, result: dict[str, Any]) -> str:
        assert trial.trial_id not in self.stopped and not self.ended[trial.trial_id], f"{trial} reports after its end"
        decision = self.inner.on_trial_result(tune_controller, trial, result)
        assert decision in (self.CONTINUE, self.PAUSE, self.STOP, self.NOOP), f"on_trial_result returned {decision!r}"
        if decision == self.STOP:
            self.stopped.add(trial.trial_id)
        return decision

    def on_trial_complete(self, tune_controller: TrialLoop, trial: Trial, result: dict[str, Any]) -> None:
        self._end(trial)
        self.inner.on_trial_complete(tune_controller, trial, result)

    def on_trial_error(self, tune_controller: TrialLoop, trial: Trial) -> None:
        self._end(trial)
        self.inner.on_trial_error(tune_controller, trial)

    def on_trial_remove(self, tune_controller: TrialLoop, trial: Trial) -> None:
        self._end(trial)
        self.inner.on_trial_remove(tune_controller, trial)

    def _end(self, trial: Trial) -> None:
        self.ended[trial.trial_id] += 1
        assert self.ended[trial.trial_id] == 1 and trial.trial_id not in self.stopped, f"{trial} ends twice"

    def on_nothing_runs(self, tune_controller: TrialLoop) -> None:
        self.inner.on_nothing_runs(tune_controller)

    def choose_trial_to_run(self, tune_controller: TrialLoop) -> Trial | None:
        trial = self.inner.choose_trial_to_run(tune_controller)
        assert trial is None or trial.status in (Trial.PENDING, Trial.PAUSED), f"choose_trial_to_run chose {trial}, which is {trial.status}"
        return trial


def check_scheduler(make: Callable[[], TrialScheduler], metric: str = "loss", mode: str = "min", trials: int = 24, iterations: int = 12) -> None:
    """Holds a scheduler to the contract of `TrialScheduler`: whole experiments end, with fewer places than trials, with failures, with a time budget, with
    values that are NaN; and its state can be pickled in the middle.

    Args:
        make: a fresh scheduler, always with the same arguments.

    Raises:
        AssertionError: naming what does not hold.
    """
    from .search.sample import uniform

    space = {"x": uniform(0, 1)}
    shapes: list[dict[str, Any]] = [
        {}, {"cpus": 1}, {"cpus": trials}, {"checkpoints": False}, {"policy": LoopPolicy(num_samples=trials, max_failures=1)},
        {"fails": lambda trial, at: trial.number % 5 == 3 and at == 2}, {"policy": LoopPolicy(num_samples=trials, time_budget_s=7.5)},
        {"score": lambda config, at: float("nan") if config["x"] < 0.3 else curve(config, at)}, {"policy": LoopPolicy(num_samples=trials, can_save=True)},
        {"duration": lambda trial, at: 0.2 + (trial.number * 7 % 5)}, {"policy": LoopPolicy(num_samples=trials, keep=1)},
    ]  # fmt: skip
    for shape in shapes:
        watched = _Watched(make())
        settings: dict[str, Any] = {"policy": LoopPolicy(num_samples=trials), **shape}
        simulation = Simulation(space=space, scheduler=watched, metric=metric, mode=mode, iterations=iterations, **settings)
        done = simulation.run()
        assert all(trial.is_finished() for trial in done), f"{shape}: not all trials ended"
        if settings["policy"].time_budget_s is None:
            assert len(done) == trials, f"{shape}: {len(done)} of {trials} trials were made"
        for trial in done:
            ends = watched.ended[trial.trial_id] + (trial.trial_id in watched.stopped)
            assert ends == 1, f"{shape}: {trial} ended {ends} times"
    _check_scheduler_state(make, space, metric, mode, trials, iterations)


def _check_scheduler_state(make: Callable[[], TrialScheduler], space: dict[str, Any], metric: str, mode: str, trials: int, iterations: int) -> None:
    simulation = Simulation(space=space, scheduler=make(), metric=metric, mode=mode, iterations=iterations, policy=LoopPolicy(num_samples=trials))
    simulation.run(until=5.5)
    scheduler = simulation.scheduler
    assert scheduler is not None
    state = pickle.loads(pickle.dumps(scheduler.get_state()))
    second = make()
    second.set_search_properties(metric, mode)
    second.set_state(state)
    simulation.loop.scheduler = second
    while simulation._events:
        simulation.now, _, event = heapq.heappop(simulation._events)
        if simulation._is_current(event):
            simulation.send(event)
    assert simulation.loop.finished, "with its state set into a fresh scheduler, the experiment does not end"
