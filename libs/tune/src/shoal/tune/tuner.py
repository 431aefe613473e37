"""`Tuner`: an experiment, from what the user says to its results; and `tune.run`, the same as one function."""

from __future__ import annotations

import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import shoal

from .callback import Callback
from .error import JournalError, TuneError
from .execution.experiment import Experiment
from .execution.loop import TrialLoop
from .execution.policy import AUTO_KEYS, LoopPolicy
from .execution.recovery import Recovered, _Bystander, read_experiment, read_snapshot, replay
from .execution.runners import Runners
from .function_trainable import check_trainable, trainable_name
from .journal import FILE, FORMAT, Journal
from .registry import get_trainable
from .reporter import Reporter
from .resources import resources_of, with_resources
from .result_grid import ExperimentAnalysis, ResultGrid
from .run_config import CheckpointConfig, FailureConfig, RunConfig, as_run_config
from .schedulers import FIFOScheduler, TrialScheduler, create_scheduler
from .search import BasicVariantGenerator, Searcher, create_searcher
from .search.basic_variant import check_space
from .search.variants import copy_config, evaluated, leaves
from .stopper import Stopper, as_stopper, wanted_metrics
from .trial import Trial
from .tune_config import ResumeConfig, TuneConfig, check_metric, strict_metrics

__all__ = ["Tuner", "run"]

TUNER_FILE = "tuner.pkl"
_log = logging.getLogger("shoal.tune")
# Limit: of a folder's name.
_MAX_DIRNAME = 100


class Tuner:
    """Searches configurations: runs the trainable with many of them.

    Args:
        trainable: a function of the configuration that calls `tune.report`, or a subclass of `Trainable`; or the name of one given to `register_trainable`.
        param_space: the search space.
        tune_config: how it is searched.
        run_config: name, place and policies.

    Raises:
        TypeError: the trainable is none. ValueError: the space or a setting is wrong.

    Example::

        def train(config):
            for step in range(10):
                tune.report({"loss": (config["x"] - 3) ** 2 / (step + 1)})

        tuner = Tuner(train, param_space={"x": tune.uniform(0, 10)}, tune_config=TuneConfig(metric="loss", mode="min", num_samples=20))
        print(tuner.fit().get_best_result().config)
    """

    def __init__(
        self, trainable: Any = None, *, param_space: dict[str, Any] | None = None, tune_config: TuneConfig | None = None, run_config: Any = None,
    ) -> None:  # fmt: skip
        if trainable is None:
            raise TypeError("Tuner needs a trainable: a function of the configuration, or a subclass of shoal.tune.Trainable")
        self._trainable = get_trainable(trainable)
        check_trainable(self._trainable)
        if tune_config is not None and not isinstance(tune_config, TuneConfig):
            raise ValueError(f"tune_config must be a shoal.tune.TuneConfig, got {type(tune_config).__name__}")
        check_space(param_space or {})
        self._space = dict(param_space or {})
        self._tune_config = tune_config or TuneConfig()
        self._run_config = as_run_config(run_config)
        self._resume: tuple[Path, ResumeConfig] | None = None
        self._results: ResultGrid | None = None

    @classmethod
    def restore(
        cls, path: str | os.PathLike[str], trainable: Any, resume_unfinished: bool = True, resume_errored: bool = False, restart_errored: bool = False,
        param_space: dict[str, Any] | None = None, *, _resume_config: ResumeConfig | None = None,
    ) -> Tuner:  # fmt: skip
        """The tuner of an earlier run, to `fit()` on. Trials that have ended do not run again.

        Args:
            path: the experiment's folder. Only one that you trust: things in it are unpickled.
            trainable: the same as then.
            resume_unfinished: trials that ran or waited go on, from their last checkpoints.
            resume_errored: trials that failed go on from their last checkpoints.
            restart_errored: trials that failed begin anew.
            param_space: the same as then, when objects in it did not survive.

        Raises:
            JournalError: there is no experiment, or its journal is damaged.
            ValueError: both resume_errored and restart_errored.
        """
        if resume_errored and restart_errored:
            raise ValueError("resume_errored and restart_errored exclude each other")
        import cloudpickle

        folder = _absolute(path)
        if not cls.can_restore(folder):
            raise JournalError(f"there is no experiment in {folder}: it has no {FILE}")
        try:
            state = cloudpickle.loads((folder / TUNER_FILE).read_bytes())
        except Exception as error:
            raise JournalError(f"{folder / TUNER_FILE} cannot be read: {type(error).__name__}: {error}") from error
        run_config = replace(state["run_config"], name=folder.name, storage_path=str(folder.parent))
        made = cls(trainable, param_space=param_space if param_space is not None else state["param_space"], tune_config=state["tune_config"],
                   run_config=run_config)  # fmt: skip
        policy = _resume_config or ResumeConfig(
            unfinished="resume" if resume_unfinished else "skip", errored="resume" if resume_errored else "restart" if restart_errored else "skip"
        )
        made._resume = (folder, policy)
        return made

    @classmethod
    def can_restore(cls, path: str | os.PathLike[str]) -> bool:
        """Whether there is an experiment in the folder."""
        folder = Path(path).expanduser()
        return (folder / FILE).is_file() and (folder / TUNER_FILE).is_file()

    def get_results(self) -> ResultGrid:
        """Of the last `fit()`, or of the experiment that was restored.

        Raises:
            RuntimeError: there are none yet.
        """
        if self._results is not None:
            return self._results
        if self._resume is not None:
            return load_results(self._resume[0])
        raise RuntimeError("there are no results yet: call fit() first")

    def fit(self) -> ResultGrid:
        """Runs the experiment. Trials that fail do not raise here: see `ResultGrid.errors`.

        After Ctrl-C the trials that run are ended and what there is is returned; `Tuner.restore` goes on from there.

        Raises:
            TuneError: the experiment cannot go on: a missing metric (MissingMetricError), a scheduler without metric and mode, a journal that cannot be
                written.
            SpaceError: a configuration cannot be drawn.
        """
        plan = self._plan()
        experiment = self._experiment(plan)
        stopper = experiment.loop.stopper
        experiment.run({"stop": stopper, "num_samples": self._tune_config.num_samples, "total_num_samples": experiment.loop.total_samples})
        if experiment.loop.interrupted and experiment.interrupted:
            experiment.reporter.say(f"Tuner.restore({str(plan.folder)!r}, trainable) goes on from here")
        self._results = ResultGrid(experiment.loop.get_trials(), str(plan.folder), self._tune_config.metric, self._tune_config.mode)
        return self._results

    # -- from settings to an experiment --------------------------------------------------------------------------------

    def _plan(self) -> _Plan:
        config, run_config = self._tune_config, self._run_config
        name = run_config.name or new_name(Path(run_config.storage_path or ""), self._trainable)
        folder = Path(run_config.storage_path or "", name)
        # Copies: what a run leaves in searcher and scheduler must not come back in the next fit() of the same settings.
        searcher, scheduler = _fresh(config.search_alg, "search_alg"), _fresh(config.scheduler, "scheduler")
        if searcher is None:
            searcher = BasicVariantGenerator()
        return _Plan(name, folder, searcher, scheduler or FIFOScheduler(), as_stopper(_fresh(run_config.stop, "stop")))

    def _experiment(self, plan: _Plan) -> Experiment:
        config, run_config = self._tune_config, self._run_config
        self._introduce(plan)
        shoal.init(ignore_reinit_error=True) if not shoal.is_initialized() else None
        found = self._prepare_folder(plan)
        callbacks = list(run_config.callbacks or ())
        if found is not None:
            _restore_state(found, plan, callbacks, self._resume[1] if self._resume else ResumeConfig())
        prefix = found.header["prefix"] if found else uuid.uuid4().hex[:5]
        loop = TrialLoop(
            plan.searcher, plan.scheduler, self._policy(), self._maker(plan), prefix=prefix, stopper=plan.stopper, wanted=self._wanted(plan),
            trials=found.trials.values() if found else (), suggested=found.suggested if found else 0,
        )  # fmt: skip
        trainable = shoal.put(self._trainable)  # before the journal: when it cannot be pickled, there is no experiment
        journal = Journal(plan.folder / FILE, found.length if found else None)
        journal.entries = len(found.entries) if found else 0
        if found is None:
            journal.append({
                "t": "experiment", "format": FORMAT, "name": plan.name, "prefix": prefix, "metric": config.metric, "mode": config.mode,
                "folder": str(plan.folder), "trainable": trainable_name(self._trainable), "num_samples": config.num_samples, "created": time.time(),
            })  # fmt: skip
        for entry in plan.again:
            journal.append(entry)
        journal.sync()
        checkpoints = run_config.checkpoint_config
        frequency = checkpoints.checkpoint_frequency if isinstance(checkpoints, CheckpointConfig) else 0
        runners = Runners(trainable, plan.name, reuse=config.reuse_actors, checkpoint_frequency=frequency)
        reporter = Reporter(plan.name, str(plan.folder), config.metric, config.mode, run_config.verbose)
        return Experiment(loop, runners, journal, plan.folder, callbacks, reporter)

    def _introduce(self, plan: _Plan) -> None:
        """Searcher and scheduler learn metric, mode and space."""
        metric, mode = self._tune_config.metric, self._tune_config.mode
        if not plan.scheduler.set_search_properties(metric, mode):
            raise TuneError(f"{type(plan.scheduler).__name__} has metric={plan.scheduler.metric!r} and mode={plan.scheduler.mode!r}, TuneConfig {metric!r} and "
                            f"{mode!r}: give them in one of the two places")  # fmt: skip
        if plan.scheduler.needs_metric:
            check_metric(plan.scheduler.metric, plan.scheduler.mode, type(plan.scheduler).__name__)
        plan.space_taken = plan.searcher.set_search_properties(metric, mode, self._space, num_samples=self._tune_config.num_samples)
        if not plan.space_taken and any(True for _ in leaves(self._space)):
            raise TuneError(f"{type(plan.searcher).__name__} does not search param_space: give the space to it, and only constants to Tuner")

    def _policy(self) -> LoopPolicy:
        config, failures, checkpoints = self._tune_config, self._run_config.failure_config, self._run_config.checkpoint_config
        assert failures is not None and checkpoints is not None
        is_class = isinstance(self._trainable, type)
        if not is_class and (getattr(checkpoints, "checkpoint_frequency", None) or getattr(checkpoints, "checkpoint_at_end", None)):
            raise ValueError("checkpoint_frequency and checkpoint_at_end are for class trainables: a function reports its checkpoints itself")
        return LoopPolicy(
            num_samples=config.num_samples, max_concurrent=config.max_concurrent_trials or None, time_budget_s=config.budget_s,
            max_failures=failures.max_failures, fail_fast=getattr(failures, "fail_fast", False), can_save=is_class,
            save_at_end=bool(getattr(checkpoints, "checkpoint_at_end", False)), keep=checkpoints.num_to_keep,
            score_attribute=checkpoints.checkpoint_score_attribute, score_order=checkpoints.checkpoint_score_order, strict_metrics=strict_metrics(),
        )  # fmt: skip

    def _wanted(self, plan: _Plan) -> dict[str, str]:
        wanted: dict[str, str] = {}
        if self._tune_config.metric:
            wanted[self._tune_config.metric] = "TuneConfig(metric=...)"
        searched = plan.searcher.metric
        for name in searched if isinstance(searched, list) else [searched]:
            if name:
                wanted.setdefault(name, type(plan.searcher).__name__)
        for one in (plan.scheduler.metric if plan.scheduler.needs_metric else None, plan.scheduler.time_attr):
            if one:
                wanted.setdefault(one, type(plan.scheduler).__name__)
        for name in wanted_metrics(plan.stopper):
            wanted.setdefault(name, "RunConfig(stop=...)")
        return {name: who for name, who in wanted.items() if name not in AUTO_KEYS or name in ("timesteps_total", "episodes_total")}

    def _maker(self, plan: _Plan) -> Callable[[int, str, dict[str, Any]], Trial]:
        name, config, space, folder = trainable_name(self._trainable), self._tune_config, self._space, plan.folder

        def make(number: int, trial_id: str, suggested: dict[str, Any]) -> Trial:
            full = copy_config(suggested if plan.space_taken else {**space, **suggested})
            drawn = evaluated(space, full) if plan.space_taken else dict(suggested)
            trial = Trial(trial_id, full, trainable_name=name, number=number, evaluated_params=drawn, placement=resources_of(self._trainable, full))
            trial.experiment_tag = _tag(number, drawn)
            if config.trial_name_creator is not None:
                trial.custom_name = str(config.trial_name_creator(trial))
            if config.trial_dirname_creator is not None:
                dirname = str(config.trial_dirname_creator(trial))
                if not dirname or "/" in dirname:
                    raise TuneError(f"trial_dirname_creator returned {dirname!r}: the name of a folder is wanted")
            else:
                dirname = f"{_safe(str(trial))}_{trial.experiment_tag}"[:_MAX_DIRNAME]
            trial.path = str(folder / dirname)
            return trial

        return make

    def _prepare_folder(self, plan: _Plan) -> Recovered | None:
        """The folder is there; what an earlier run left in it, if this one goes on with it."""
        if self._resume is not None:
            return read_experiment(plan.folder, self._maker(plan))
        try:
            plan.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TuneError(f"the experiment's folder {plan.folder} cannot be made: {error}") from error
        old = plan.folder / FILE
        if old.exists():
            kept = old.with_name(f"{old.name}.{datetime.fromtimestamp(old.stat().st_mtime):%Y-%m-%d_%H-%M-%S}")
            old.replace(kept)
            _log.warning("there was an experiment in %s already; its journal is now %s", plan.folder, kept.name)
        (plan.folder / TUNER_FILE).write_bytes(self._pickled())
        return None

    def _pickled(self) -> bytes:
        """The settings, for `restore`; callbacks that hold what cannot be pickled (files, connections) are left out."""
        import cloudpickle

        state = {"param_space": self._space, "tune_config": self._tune_config, "run_config": self._run_config}
        try:
            return bytes(cloudpickle.dumps(state))
        except Exception as error:
            why: Exception = error
        if self._run_config.callbacks:
            try:
                without = bytes(cloudpickle.dumps({**state, "run_config": replace(self._run_config, callbacks=None)}))
            except Exception as error:
                why = error
            else:
                _log.warning("the callbacks cannot be pickled (%s): a restored experiment will be without them", why)
                return without
        raise TuneError(f"param_space, tune_config or run_config cannot be pickled, so that the experiment could not be restored: {why}") from why


@dataclass
class _Plan:
    """One run's own searcher, scheduler and stopper, and where it lies."""

    name: str
    folder: Path
    searcher: Searcher
    scheduler: TrialScheduler
    stopper: Stopper
    space_taken: bool = True
    again: Sequence[dict[str, Any]] = ()


def _fresh(thing: Any, what: str) -> Any:
    if thing is None or isinstance(thing, Mapping):
        return thing
    import cloudpickle

    try:
        return cloudpickle.loads(cloudpickle.dumps(thing))
    except Exception as error:
        raise TuneError(f"{what} {type(thing).__name__} cannot be pickled, so that the experiment could not be restored: {error}") from error


def _restore_state(found: Recovered, plan: _Plan, callbacks: list[Callback], policy: ResumeConfig) -> None:
    """Searcher, scheduler, stopper and callbacks as they were; and trials that are to run once more."""
    snapshot = read_snapshot(plan.folder)
    since = 1
    if snapshot is not None:
        since = snapshot["entries"]
        plan.searcher.set_state(snapshot["searcher"])
        plan.scheduler.set_state(snapshot["scheduler"])
        plan.stopper = snapshot["stopper"]
        for callback, state in zip(callbacks, snapshot["callbacks"], strict=False):
            if state is not None:
                callback.set_state(state)
    replay(found, since, plan.searcher, plan.scheduler)
    again: list[dict[str, Any]] = []
    controller: Any = _Bystander(found.trials)
    for trial in found.trials.values():
        fate = policy.errored if trial.status == Trial.ERROR else policy.finished if trial.status == Trial.TERMINATED else policy.unfinished
        if fate == "skip":
            if not trial.is_finished():
                trial.status = Trial.TERMINATED
            continue
        if trial.is_finished():
            plan.scheduler.on_trial_add(controller, trial)
            trial.num_failures = 0
            trial.error = None
            trial.last_result.pop("done", None)
        if fate == "restart":
            trial.checkpoints.clear()
        if trial.is_finished() or fate == "restart":
            again.append({"t": "again", "id": trial.trial_id, "restart": fate == "restart"})
        trial.status = Trial.PENDING
    plan.again = again


def load_results(path: str | os.PathLike[str], metric: str | None = None, mode: str | None = None) -> ResultGrid:
    """The results of an experiment, from its folder, also while it runs. Only one that you trust: things in it are unpickled.

    Raises:
        JournalError: there is none, or its journal is damaged.
    """
    folder = _absolute(path)
    found = read_experiment(folder)
    for trial in found.trials.values():
        trial.trainable_name = found.header.get("trainable", trial.trainable_name)
    return ResultGrid(list(found.trials.values()), str(folder), metric or found.header.get("metric"), mode or found.header.get("mode"))


def new_name(storage: Path, trainable: Any) -> str:
    """From the trainable's name and the time; two in one second are two."""
    name = f"{_safe(trainable_name(trainable))}_{datetime.now():%Y-%m-%d_%H-%M-%S}"
    number, free = 1, name
    while (storage / free).exists():
        number += 1
        free = f"{name}_{number}"
    return free


def _absolute(path: str | os.PathLike[str]) -> Path:
    """Without `..`: a folder's last part is the experiment's name."""
    return Path(os.path.abspath(os.path.expanduser(path)))


def _tag(number: int, drawn: Mapping[str, Any]) -> str:
    """
    >>> _tag(0, {"lr": 0.12345, "model/layers": 2})
    '1_layers=2,lr=0.1235'
    """
    shown = drawn.items()
    parts = sorted(f"{name.rpartition('/')[2]}={value:.4f}" if isinstance(value, float) else f"{name.rpartition('/')[2]}={value}" for name, value in shown)
    return _safe(f"{number + 1}" + (f"_{','.join(parts)}" if parts else ""))


def _safe(text: str) -> str:
    return re.sub(r"[^\w.,=+-]", "_", text)


def run(
    run_or_experiment: Any, *, name: str | None = None, metric: str | None = None, mode: str | None = None, stop: Any = None,
    time_budget_s: float | timedelta | None = None, config: dict[str, Any] | None = None, resources_per_trial: Any = None, num_samples: int = 1,
    storage_path: str | None = None, search_alg: Searcher | str | None = None, scheduler: TrialScheduler | str | None = None,
    checkpoint_config: CheckpointConfig | None = None, verbose: int = 1, trial_name_creator: Callable[[Trial], str] | None = None,
    trial_dirname_creator: Callable[[Trial], str] | None = None, max_failures: int = 0, fail_fast: Any = False, resume: bool | str | None = None,
    resume_config: ResumeConfig | None = None, reuse_actors: bool = False, raise_on_failed_trial: bool = True,
    callbacks: Sequence[Callback] | None = None, max_concurrent_trials: int | None = None,
) -> ExperimentAnalysis:  # fmt: skip
    """`Tuner(...).fit()` as one function. See `Tuner`, `TuneConfig` and `RunConfig`.

    Args:
        resources_per_trial: as in `with_resources`.
        resume: True: goes on with the experiment of this name; "AUTO": if there is one.
        raise_on_failed_trial: whether a trial that failed raises in the end.

    Raises:
        TuneError: trials failed; as `Tuner.fit`.
    """
    trainable = get_trainable(run_or_experiment)
    if resources_per_trial is not None:
        trainable = with_resources(trainable, resources_per_trial)
    if isinstance(search_alg, str):
        search_alg = create_searcher(search_alg)
    if isinstance(scheduler, str):
        scheduler = create_scheduler(scheduler)
    run_config = RunConfig(
        name=name, storage_path=storage_path, failure_config=FailureConfig(max_failures=max_failures, fail_fast=fail_fast),
        checkpoint_config=checkpoint_config, stop=stop, callbacks=callbacks, verbose=verbose,
    )  # fmt: skip
    tune_config = TuneConfig(
        metric=metric, mode=mode, search_alg=search_alg, scheduler=scheduler, num_samples=num_samples, max_concurrent_trials=max_concurrent_trials,
        time_budget_s=time_budget_s, reuse_actors=reuse_actors, trial_name_creator=trial_name_creator, trial_dirname_creator=trial_dirname_creator,
    )  # fmt: skip
    tuner = Tuner(trainable, param_space=config, tune_config=tune_config, run_config=run_config)
    if resume not in (None, False, True, "AUTO"):
        raise ValueError(f"resume={resume!r}: True, False or 'AUTO' is wanted; what happens to which trials is for resume_config")
    if resume or resume_config is not None:
        if name is None:
            raise ValueError("resume needs the experiment's name")
        folder = Path(run_config.storage_path or "", name)
        if Tuner.can_restore(folder):
            tuner._resume = (folder, resume_config or ResumeConfig())
        elif resume != "AUTO":
            raise JournalError(f"resume: there is no experiment in {folder}")
    results = tuner.fit()
    failed = [trial for trial in results._trials if trial.status == Trial.ERROR]
    if failed and raise_on_failed_trial:
        raise TuneError(f"{len(failed)} of {len(results)} trials failed: {', '.join(map(str, failed[:10]))}; the first: {failed[0].error_text}")
    return ExperimentAnalysis(results._trials, results.experiment_path, metric, mode)


