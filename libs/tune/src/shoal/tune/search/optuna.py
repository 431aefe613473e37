"""Optuna's samplers as a searcher. Optuna is imported on first use: pip install 'shoal-tune[optuna]'."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .sample import Categorical, Domain, Float, Integer
from .searcher import Searcher
from .variants import SpaceError, dotted, flat_params, has_conditions, is_grid, leaves, plain, set_at

__all__ = ["OptunaSearch"]


class OptunaSearch(Searcher):
    """Suggestions of an Optuna study, by default of its TPE sampler (Bergstra et al., NeurIPS 2011).

    Args:
        space: what to search: None (default) for the Tuner's `param_space`; a dict of names to Optuna distributions; or a function of an Optuna trial that
            calls its `suggest_*` and may return a dict of constants.
        metric: name or list of names; a list means several objectives.
        mode: "min" or "max", or a list with one for each metric.
        points_to_evaluate: configurations that come first; nested keys joined by `/`.
        sampler: an Optuna sampler.
        study_name: of the Optuna study.
        storage: an Optuna storage; default: in memory, saved with the experiment.
        seed: of the default sampler.
        evaluated_rewards: values of points_to_evaluate that are known already: they are told to the study in place of being tried.

    Raises:
        ImportError: Optuna is not installed.
        SpaceError: the space has grids, functions, normal distributions or conditions, which Optuna's distributions cannot say; use a function as `space`.

    Example::

        Tuner(train, param_space={"lr": tune.loguniform(1e-4, 1e-1)}, tune_config=TuneConfig(metric="loss", mode="min", search_alg=OptunaSearch(seed=1)))
    """

    def __init__(
        self, space: Mapping[str, Any] | Callable[[Any], Mapping[str, Any] | None] | None = None, metric: str | list[str] | None = None,
        mode: str | list[str] | None = None, points_to_evaluate: Sequence[dict[str, Any]] | None = None, sampler: Any = None, study_name: str | None = None,
        storage: Any = None, seed: int | None = None, evaluated_rewards: Sequence[Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(metric, mode)
        _optuna()
        if sampler is not None and seed is not None:
            raise ValueError("OptunaSearch: seed is of the default sampler; give your sampler its seed itself")
        if evaluated_rewards is not None and len(evaluated_rewards) != len(points_to_evaluate or []):
            raise ValueError(f"OptunaSearch: {len(evaluated_rewards)} evaluated_rewards for {len(points_to_evaluate or [])} points_to_evaluate")
        self._space: Any = None
        self._constants: dict[str, Any] = {}
        self._paths: dict[str, Any] = {}
        self._sampler = sampler
        self._study_name = study_name
        self._storage = storage
        self._seed = seed
        self._points = [dict(point) for point in points_to_evaluate or []]
        self._rewards = list(evaluated_rewards or [])
        self._study: Any = None
        self._trials: dict[str, Any] = {}
        self._steps: dict[str, int] = {}
        if space is not None:
            self._set_space(space)

    def _set_space(self, space: Any) -> None:
        if callable(space):
            self._space = space
            return
        optuna = _optuna()
        if all(isinstance(value, optuna.distributions.BaseDistribution) for value in space.values()) and space:
            self._space = dict(space)
            return
        self._space = convert_search_space(space)
        self._constants = plain(space)
        self._paths = {dotted(path): path for path, _ in leaves(space)}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        own_space = self._space is not None
        if own_space and any(True for _ in leaves(config)):
            raise SpaceError("OptunaSearch has a space of its own: param_space may then only hold constants")
        if not own_space:
            self._set_space(config)
        self._metric = self._metric or metric
        self._mode = self._mode or mode
        self._start()
        return not own_space

    def _start(self) -> None:
        if self._study is not None:
            return
        if self._metric is None or self._mode is None:
            raise ValueError("OptunaSearch needs metric and mode: give them to TuneConfig or to OptunaSearch")
        optuna = _optuna()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        modes = self._mode if isinstance(self._mode, list) else [self._mode]
        self._study = optuna.create_study(
            storage=self._storage, sampler=self._sampler or optuna.samplers.TPESampler(seed=self._seed), study_name=self._study_name,
            directions=["minimize" if mode == "min" else "maximize" for mode in modes], load_if_exists=True,
        )  # fmt: skip
        for index, point in enumerate(self._points):
            if index < len(self._rewards):
                self.add_evaluated_point(point, self._rewards[index])
            else:
                self._study.enqueue_trial(flat_params(point))

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        self._start()
        if self._space is None:
            raise SpaceError("OptunaSearch has no space: give one to it, or a param_space to the Tuner")
        if callable(self._space):
            trial = self._study.ask()
            constants = self._space(trial)
            if constants is not None and not isinstance(constants, Mapping):
                raise SpaceError(f"the function given to OptunaSearch as space must return None or a dict of constants, not {type(constants).__name__}")
            self._trials[trial_id] = trial
            return _unflatten({**trial.params, **(constants or {})})
        trial = self._study.ask(fixed_distributions=self._space)
        self._trials[trial_id] = trial
        return self._config(trial.params)

    def _config(self, params: Mapping[str, Any]) -> dict[str, Any]:
        if not self._paths:
            return _unflatten({**self._constants, **params})
        config: dict[str, Any] = plain(self._constants)
        for name, value in params.items():
            set_at(config, self._paths[name], value)
        return config

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if isinstance(self._metric, list) or trial_id not in self._trials or self._metric not in result:
            return
        # Steps count reports: Optuna ignores a step that it knows.
        step = self._steps[trial_id] = self._steps.get(trial_id, 0) + 1
        value = result[self._metric]
        if _finite(value):
            self._trials[trial_id].report(float(value), step)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        trial = self._trials.pop(trial_id, None)
        self._steps.pop(trial_id, None)
        if trial is None:
            return
        names = self._metric if isinstance(self._metric, list) else [str(self._metric)]
        values: list[Any] = [(result or {}).get(name) for name in names]
        optuna = _optuna()
        if error or any(value is None or math.isnan(value) for value in values):
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(trial, [float(value) for value in values])

    def on_trial_restore(self, trial_id: str, config: dict[str, Any]) -> None:
        self._start()
        if callable(self._space):
            flat = flat_params(config)
            self._study.enqueue_trial(flat)
            trial = self._study.ask()
            self._space(trial)
        else:
            flat = flat_params(config)
            found = {name: flat[name] for name in self._space if name in flat}
            for name, path in self._paths.items():
                value: Any = config
                for key in path:
                    value = value[key]
                found[name] = value
            self._study.enqueue_trial(found)
            trial = self._study.ask(fixed_distributions=self._space)
        self._trials[trial_id] = trial

    def add_evaluated_point(
        self, parameters: dict[str, Any], value: Any, error: bool = False, pruned: bool = False, intermediate_values: list[float] | None = None,
    ) -> None:  # fmt: skip
        self._start()
        if callable(self._space) or self._space is None:
            raise ValueError("OptunaSearch takes evaluated points only when its space is no function")
        optuna = _optuna()
        state = optuna.trial.TrialState.FAIL if error else optuna.trial.TrialState.PRUNED if pruned else optuna.trial.TrialState.COMPLETE
        params = flat_params(parameters)
        self._study.add_trial(
            optuna.trial.create_trial(
                state=state, params=params, distributions={name: self._space[name] for name in params},
                values=None if error else list(value) if isinstance(value, list | tuple) else [value],
                intermediate_values=dict(enumerate(intermediate_values or [])),
            )
        )  # fmt: skip

    def get_state(self) -> dict[str, Any]:
        if self._study is not None and self._storage is None:
            study: bytes | None = pickle.dumps(self._study)
        else:
            study = None
        return {"study": study, "numbers": {trial_id: trial.number for trial_id, trial in self._trials.items()}, "steps": dict(self._steps)}

    def set_state(self, state: dict[str, Any]) -> None:
        if state["study"] is not None:
            self._study = pickle.loads(state["study"])
        else:
            self._start()
        optuna = _optuna()
        by_number = {trial.number: trial for trial in self._study.get_trials(deepcopy=False)}
        self._trials = {trial_id: optuna.trial.Trial(self._study, by_number[number]._trial_id) for trial_id, number in state["numbers"].items()}
        self._steps = dict(state["steps"])


def convert_search_space(space: Mapping[str, Any]) -> dict[str, Any]:
    """Optuna's distributions of a space, by dotted name.

    Raises:
        SpaceError: a domain that Optuna's distributions cannot say.
    """
    if has_conditions(space):
        raise SpaceError("OptunaSearch cannot search a space with domains inside of choices: give it a function as space, which asks with if")
    return {dotted(path): _distribution(dotted(path), leaf) for path, leaf in leaves(space)}


def _distribution(name: str, domain: Domain | dict[str, Any]) -> Any:
    distributions = _optuna().distributions
    if is_grid(domain):
        raise SpaceError(f"{name}: OptunaSearch cannot go through a grid; use tune.choice, or leave search_alg out")
    if isinstance(domain, Float) and domain.sd is None:
        if domain.log and domain.q is not None:
            raise SpaceError(f"{name}: Optuna has no distribution that is both logarithmic and rounded; use tune.loguniform or tune.quniform")
        return distributions.FloatDistribution(domain.lower, domain.upper, log=domain.log, step=domain.q)
    if isinstance(domain, Integer):
        if domain.log and domain.q != 1:
            raise SpaceError(f"{name}: Optuna has no distribution that is both logarithmic and rounded; use tune.lograndint or tune.qrandint")
        return distributions.IntDistribution(domain.lower, domain.last, log=domain.log, step=domain.q)
    if isinstance(domain, Categorical):
        return distributions.CategoricalDistribution(domain.categories)
    raise SpaceError(f"{name}: OptunaSearch cannot search {domain!r}")


def _unflatten(params: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in params.items():
        *folders, last = name.split("/")
        inner = nested
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[last] = value
    return nested


def _finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except TypeError:
        return False


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ImportError("OptunaSearch takes Optuna: pip install 'shoal-tune[optuna]'", name="optuna") from error
    return optuna
