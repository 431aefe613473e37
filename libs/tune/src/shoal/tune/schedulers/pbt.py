"""Population based training."""

from __future__ import annotations

import copy
import logging
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..search.sample import Domain
from ..search.searcher import check_mode
from ..search.variants import is_grid
from ..trial import Trial, lookup
from .trial_scheduler import TrialScheduler

if TYPE_CHECKING:
    from ..execution.loop import TrialLoop

__all__ = ["PopulationBasedTraining", "explore"]

_log = logging.getLogger("shoal.tune")


@dataclass
class _Member:
    """What the scheduler knows of one trial."""

    score: float | None = None
    time: float = 0.0
    perturbed_at: float = 0.0
    waits: bool = False


class PopulationBasedTraining(TrialScheduler):
    """The worst trials go on from copies of the best ones' checkpoints, with hyperparameters changed a little.

    Jaderberg et al., "Population Based Training of Neural Networks", 2017. The trainable must report checkpoints (a function), or save them (a class); a trial
    is only copied from its latest one.

    Args:
        time_attr: the key that says how far a trial is; it must grow.
        metric, mode: default: those of `TuneConfig`.
        perturbation_interval: how far a trial goes between two looks at it, in units of time_attr. Report a checkpoint at least as often.
        burn_in_period: before that, nothing changes.
        hyperparam_mutations: for each hyperparameter a list of values, a domain (`tune.uniform(...)`) or a function without arguments that draws one; nested
            dicts for nested configurations. Those that `param_space` does not have are drawn at the start.
        quantile_fraction: which share is replaced, and which copied from; at most 0.5.
        resample_probability: how often a hyperparameter is drawn anew rather than changed.
        perturbation_factors: what numbers are multiplied by, one or the other. From a list, a neighbour is taken.
        custom_explore_fn: called with the new configuration, returns it changed.
        log_config: each change is written to the log.
        require_attrs: report without time_attr or metric is an error; False: it is passed over.
        synch: all wait for each other at each interval.

    Example::

        PopulationBasedTraining(time_attr="training_iteration", perturbation_interval=4, hyperparam_mutations={"lr": tune.loguniform(1e-4, 1e-1)})
    """

    needs_metric = True

    def __init__(
        self, time_attr: str = "time_total_s", metric: str | None = None, mode: str | None = None, perturbation_interval: float = 60.0,
        burn_in_period: float = 0.0, hyperparam_mutations: dict[str, Any] | None = None, quantile_fraction: float = 0.25, resample_probability: float = 0.25,
        perturbation_factors: tuple[float, float] = (1.2, 0.8), custom_explore_fn: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        log_config: bool = True, require_attrs: bool = True, synch: bool = False,
    ) -> None:  # fmt: skip
        check_mode(mode)
        if not hyperparam_mutations and custom_explore_fn is None:
            raise ValueError("PopulationBasedTraining needs hyperparam_mutations or custom_explore_fn")
        if not 0 <= quantile_fraction <= 0.5:
            raise ValueError(f"quantile_fraction must be between 0 and 0.5, got {quantile_fraction!r}")
        if not perturbation_interval > 0:
            raise ValueError(f"perturbation_interval must be greater than 0, got {perturbation_interval!r}")
        if not 0 <= resample_probability <= 1:
            raise ValueError(f"resample_probability must be between 0 and 1, got {resample_probability!r}")
        if len(perturbation_factors) != 2:
            raise ValueError(f"perturbation_factors must be two numbers, got {perturbation_factors!r}")
        _check_mutations(hyperparam_mutations or {}, "")
        self._time_attr = time_attr
        self._metric = metric
        self._mode = mode
        self.perturbation_interval = perturbation_interval
        self.burn_in_period = burn_in_period
        self.hyperparam_mutations = hyperparam_mutations or {}
        self.quantile_fraction = quantile_fraction
        self.resample_probability = resample_probability
        self.perturbation_factors = tuple(perturbation_factors)
        self.custom_explore_fn = custom_explore_fn
        self.log_config = log_config
        self.require_attrs = require_attrs
        self.synch = synch
        self.members: dict[str, _Member] = {}
        self.num_perturbations = 0
        self.next_look = max(perturbation_interval, burn_in_period)
        self.rng = random.Random(random.SystemRandom().getrandbits(63))

    # -- events --------------------------------------------------------------------------------------------------------

    def on_trial_add(self, tune_controller: TrialLoop, trial: Trial) -> None:
        self.members[trial.trial_id] = _Member()
        _fill(trial.config, self.hyperparam_mutations, self.rng)

    def on_trial_result(self, tune_controller: TrialLoop, trial: Trial, result: dict[str, Any]) -> str:
        time, value = lookup(result, self._time_attr or ""), self._value(result)
        if time is None or value is None:
            if not self.require_attrs:
                return self.CONTINUE
            missing = self._time_attr if time is None else self._metric
            raise ValueError(f"PopulationBasedTraining needs {missing!r} in every report; reported were {', '.join(sorted(result))}. Pass require_attrs=False "
                             "to pass over reports without it")  # fmt: skip
        member = self.members[trial.trial_id]
        if time < self.burn_in_period or time - member.perturbed_at < self.perturbation_interval:
            return self.CONTINUE
        member.score, member.time = (None if math.isnan(value) else value), time
        return self._at_barrier(tune_controller, trial, member) if self.synch else self._at_interval(tune_controller, trial, member)

    def on_trial_complete(self, tune_controller: TrialLoop, trial: Trial, result: dict[str, Any]) -> None:
        self._leave(tune_controller, trial)

    def on_trial_error(self, tune_controller: TrialLoop, trial: Trial) -> None:
        self._leave(tune_controller, trial)

    def on_trial_remove(self, tune_controller: TrialLoop, trial: Trial) -> None:
        self._leave(tune_controller, trial)

    def _leave(self, controller: TrialLoop, trial: Trial) -> None:
        """A trial that is over is no longer copied from; and nobody waits for it."""
        self.members.pop(trial.trial_id, None)
        if self.synch:
            self._open_barrier(controller)

    # -- asynchronous --------------------------------------------------------------------------------------------------

    def _at_interval(self, controller: TrialLoop, trial: Trial, member: _Member) -> str:
        member.perturbed_at = member.time
        lower, upper = self._quantiles(controller)
        if trial in upper:
            controller.save_trial(trial)
        if trial in lower and self._exploit(controller, trial, upper):
            return self.NOOP
        others_wait = any(other is not trial for status in (Trial.PENDING, Trial.PAUSED) for other in controller.waiting_trials(status))
        return self.PAUSE if others_wait else self.CONTINUE

    # -- synchronous ---------------------------------------------------------------------------------------------------

    def _at_barrier(self, controller: TrialLoop, trial: Trial, member: _Member) -> str:
        member.waits = True
        controller.save_trial(trial)
        controller.pause_trial(trial)
        self._open_barrier(controller)
        return self.NOOP

    def _open_barrier(self, controller: TrialLoop) -> None:
        """When the last one has come, the worst become copies of the best, and all go on."""
        if not self.members or not all(member.waits for member in self.members.values()):
            return
        lower, upper = self._quantiles(controller)
        for member in self.members.values():
            member.waits = False
            member.perturbed_at = member.time
        for trial in lower:
            self._exploit(controller, trial, upper)

    # -- both ----------------------------------------------------------------------------------------------------------

    def _quantiles(self, controller: TrialLoop) -> tuple[list[Trial], list[Trial]]:
        """The worst and the best of those that have a score."""
        scored = sorted(((member.score, name) for name, member in self.members.items() if member.score is not None), key=lambda pair: pair[0])
        trials = [controller.get_trial(name) for _, name in scored]
        if len(trials) <= 1:
            return [], []
        count = min(math.ceil(len(trials) * self.quantile_fraction), len(trials) // 2)
        return (trials[:count], trials[-count:]) if count else ([], [])

    def _exploit(self, controller: TrialLoop, trial: Trial, upper: list[Trial]) -> bool:
        donors = [donor for donor in upper if donor is not trial]
        if not donors:
            return False
        donor = self.rng.choice(donors)
        if not controller.can_be_copied(donor):
            _log.warning("PBT: trial %s is among the best but has no checkpoint, so %s does not become a copy of it. Report a checkpoint at least every "
                         "%g of %s.", donor, trial, self.perturbation_interval, self._time_attr)  # fmt: skip
            return False
        config, changes = explore(
            donor.config, self.hyperparam_mutations, self.resample_probability, self.perturbation_factors, self.custom_explore_fn, self.rng
        )
        if self.log_config:
            _log.info("PBT: %s goes on as a copy of %s: %s", trial, donor, changes)
        self.num_perturbations += 1
        member, source = self.members[trial.trial_id], self.members[donor.trial_id]
        # Its clock is the donor's from now on.
        member.time, member.perturbed_at, member.score = source.time, source.perturbed_at or source.time, None
        controller.exploit(trial, donor, config)
        return True

    def choose_trial_to_run(self, tune_controller: TrialLoop) -> Trial | None:
        """Those that are least far, so that all of the population advance, also when not all of them fit into the cluster at once."""
        best: Trial | None = None
        for status in (Trial.PENDING, Trial.PAUSED):
            for trial in tune_controller.waiting_trials(status):
                member = self.members.get(trial.trial_id)
                if member is None or member.waits or not tune_controller.has_resources_for_trial(trial):
                    continue
                if best is None or member.perturbed_at < self.members[best.trial_id].perturbed_at:
                    best = trial
        return best

    def debug_string(self) -> str:
        return f"Using PopulationBasedTraining: {self.num_perturbations} copies made"


def explore(
    config: dict[str, Any], mutations: Mapping[str, Any], resample_probability: float, factors: tuple[float, ...],
    custom_explore_fn: Callable[[dict[str, Any]], dict[str, Any]] | None, rng: random.Random,
) -> tuple[dict[str, Any], dict[str, str]]:  # fmt: skip
    """A configuration near the given one; and in words what was changed, by name.

    >>> explore({"lr": 1.0}, {"lr": [0.5, 1.0, 2.0]}, 0.0, (1.2, 0.8), None, random.Random(1))[0]["lr"] in (0.5, 2.0)
    True
    """
    new = copy.deepcopy(config)
    changes: dict[str, str] = {}
    for name, mutation in mutations.items():
        if isinstance(mutation, dict) and not is_grid(mutation):
            new[name], inner = explore(new[name], mutation, resample_probability, factors, None, rng)
            changes |= {f"{name}/{key}": text for key, text in inner.items()}
            continue
        old = new[name]
        new[name] = _mutate(old, mutation, resample_probability, factors, rng)
        changes[name] = f"{old!r} -> {new[name]!r}"
    if custom_explore_fn is not None:
        new = custom_explore_fn(new)
        if not isinstance(new, dict):
            raise TypeError(f"custom_explore_fn must return the new configuration, got {type(new).__name__}")
    return new, changes


def _mutate(value: Any, mutation: Any, resample_probability: float, factors: tuple[float, ...], rng: random.Random) -> Any:
    resample = rng.random() < resample_probability
    if isinstance(mutation, list | tuple):
        if resample or value not in mutation:
            return rng.choice(list(mutation))
        index = list(mutation).index(value) + rng.choice((-1, 1))
        return mutation[min(max(index, 0), len(mutation) - 1)]
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    if resample or not numeric:
        return _drawn(mutation, rng)
    changed = value * rng.choice(factors)
    return int(changed) if isinstance(value, int) else changed


def _drawn(mutation: Any, rng: random.Random) -> Any:
    if isinstance(mutation, Domain):
        return mutation.draw(rng)
    return rng.choice(list(mutation)) if isinstance(mutation, list | tuple) else mutation()


def _fill(config: dict[str, Any], mutations: Mapping[str, Any], rng: random.Random) -> None:
    for name, mutation in mutations.items():
        if isinstance(mutation, dict):
            _fill(config.setdefault(name, {}), mutation, rng)
        elif name not in config:
            config[name] = _drawn(mutation, rng)


def _check_mutations(mutations: Mapping[str, Any], prefix: str) -> None:
    for name, mutation in mutations.items():
        if is_grid(mutation):
            raise ValueError(f"hyperparam_mutations: {prefix}{name} must not be a grid; give a list of values")
        if isinstance(mutation, dict):
            _check_mutations(mutation, f"{prefix}{name}/")
        elif isinstance(mutation, list | tuple):
            if not mutation:
                raise ValueError(f"hyperparam_mutations: the list of {prefix}{name} is empty")
        elif not callable(mutation) and not isinstance(mutation, Domain):
            raise ValueError(f"hyperparam_mutations: {prefix}{name} must be a list of values, a domain, or a function, got {mutation!r}")
