"""What an algorithm that suggests configurations must be: the contract, and two that wrap others."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Mapping
from typing import Any, ClassVar

__all__ = ["ConcurrencyLimiter", "Repeater", "Searcher"]

MODES = ("min", "max")


def check_mode(mode: Any) -> None:
    for one in mode if isinstance(mode, list | tuple) else [mode]:
        if one is not None and one not in MODES:
            raise ValueError(f"mode must be 'min' or 'max', got {one!r}")


class Searcher:
    """Suggests configurations, and is told what came of them. To be subclassed.

    The contract, which `shoal.tune.testing.check_searcher` holds a subclass to:

    - All calls come from one thread, one at a time, in the process that called `fit()`. They must not wait: what takes long delays all trials.
    - `suggest` is called with an id that is new. It returns a configuration, which from then on belongs to the trial; None for "not now, ask again when a
      trial has reported or ended"; or `Searcher.FINISHED` for "never again".
    - Every id for which a configuration was returned gets `on_trial_result` for each report but the last, and `on_trial_complete` exactly once, in the end:
      with the last result; with `result=None` when there was none; with `error=True` when the trial failed.
    - `get_state` returns what `set_state` of a fresh object, made with the same arguments, needs in order to go on. It can be pickled, and later calls do not
      change it.

    Args:
        metric: the name in the reported results; `a/b` is key b of the dict at key a. None: the one of `TuneConfig`.
        mode: "min" or "max".

    Example::

        class Halving(Searcher):
            def __init__(self, metric=None, mode=None):
                super().__init__(metric, mode)
                self.lr = 1.0
            def suggest(self, trial_id):
                self.lr /= 2
                return {"lr": self.lr}
            def on_trial_complete(self, trial_id, result=None, error=False):
                pass
            def get_state(self):
                return {"lr": self.lr}
            def set_state(self, state):
                self.lr = state["lr"]
    """

    FINISHED: ClassVar[str] = "FINISHED"

    def __init__(self, metric: str | list[str] | None = None, mode: str | list[str] | None = None) -> None:
        check_mode(mode)
        if metric is not None and isinstance(metric, list) != isinstance(mode, list):
            raise ValueError(f"metric and mode must both be lists or both be single, got {metric!r} and {mode!r}")
        self._metric = metric
        self._mode = mode

    @property
    def metric(self) -> str | list[str] | None:
        return self._metric

    @property
    def mode(self) -> str | list[str] | None:
        return self._mode

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Metric, mode and space of the `Tuner`, once, before the first suggestion. False: this searcher has its own already; the space is then
        merged into its suggestions as constants."""
        return False

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The configuration of a new trial; None: not now; FINISHED: never again."""
        raise NotImplementedError(f"{type(self).__name__} must define suggest(trial_id)")

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A report of a trial that goes on. `result` is flat: nested keys are joined by `/`."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The trial is over."""
        raise NotImplementedError(f"{type(self).__name__} must define on_trial_complete(trial_id, result, error)")

    def on_trial_restore(self, trial_id: str, config: dict[str, Any]) -> None:
        """A trial that was suggested after the last saved state and is known from the journal: the searcher may take it in as its own. Its results follow."""

    def add_evaluated_point(
        self, parameters: dict[str, Any], value: float, error: bool = False, pruned: bool = False, intermediate_values: list[float] | None = None,
    ) -> None:  # fmt: skip
        """Tells of a configuration that was evaluated elsewhere."""
        raise NotImplementedError(f"{type(self).__name__} takes no evaluated points")

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Whether the searcher limits the trials that run at once by itself."""
        return False

    def total_samples(self, num_samples: int) -> int:
        """How many trials there will be for `num_samples`; -1: unlimited."""
        return num_samples

    def get_state(self) -> dict[str, Any]:
        raise NotImplementedError(f"{type(self).__name__} must define get_state()")

    def set_state(self, state: dict[str, Any]) -> None:
        raise NotImplementedError(f"{type(self).__name__} must define set_state(state)")

    def save(self, checkpoint_path: str | os.PathLike[str]) -> None:
        """The state, in a file."""
        with open(checkpoint_path, "wb") as file:
            pickle.dump(self.get_state(), file)

    def restore(self, checkpoint_path: str | os.PathLike[str]) -> None:
        """From a file of `save`. Only files that you trust: it is unpickled."""
        with open(checkpoint_path, "rb") as file:
            self.set_state(pickle.load(file))


class _Wrapper(Searcher):
    """A searcher around another one."""

    def __init__(self, searcher: Searcher) -> None:
        if not isinstance(searcher, Searcher):
            raise TypeError(f"{type(self).__name__} wraps a Searcher, got {type(searcher).__name__}")
        super().__init__(searcher.metric, searcher.mode)
        self.searcher = searcher

    @property
    def metric(self) -> str | list[str] | None:
        return self.searcher.metric

    @property
    def mode(self) -> str | list[str] | None:
        return self.searcher.mode

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return self.searcher.set_search_properties(metric, mode, config, **spec)

    def add_evaluated_point(
        self, parameters: dict[str, Any], value: float, error: bool = False, pruned: bool = False, intermediate_values: list[float] | None = None,
    ) -> None:  # fmt: skip
        self.searcher.add_evaluated_point(parameters, value, error, pruned, intermediate_values)

    def total_samples(self, num_samples: int) -> int:
        return self.searcher.total_samples(num_samples)


class ConcurrencyLimiter(_Wrapper):
    """At most so many trials of the searcher at once.

    Args:
        max_concurrent: how many.
        batch: the results of a batch are told to the searcher only when all of its trials have ended.
    """

    def __init__(self, searcher: Searcher, max_concurrent: int, batch: bool = False) -> None:
        super().__init__(searcher)
        if not isinstance(max_concurrent, int) or isinstance(max_concurrent, bool) or max_concurrent < 1:
            raise ValueError(f"max_concurrent must be at least 1, got {max_concurrent!r}")
        self.max_concurrent = max_concurrent
        self.batch = batch
        self.live: set[str] = set()
        self._waiting: dict[str, tuple[dict[str, Any] | None, bool]] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if len(self.live) >= self.max_concurrent:
            return None
        config = self.searcher.suggest(trial_id)
        if config is not None and config != Searcher.FINISHED:
            self.live.add(trial_id)
        return config

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self.searcher.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if trial_id not in self.live:
            return
        if not self.batch:
            self.live.discard(trial_id)
            self.searcher.on_trial_complete(trial_id, result, error)
            return
        self._waiting[trial_id] = (result, error)
        if len(self._waiting) == len(self.live):
            for one, (its_result, its_error) in self._waiting.items():
                self.searcher.on_trial_complete(one, its_result, its_error)
            self._waiting.clear()
            self.live.clear()

    def on_trial_restore(self, trial_id: str, config: dict[str, Any]) -> None:
        self.live.add(trial_id)
        self.searcher.on_trial_restore(trial_id, config)

    def get_state(self) -> dict[str, Any]:
        return {"live": sorted(self.live), "waiting": dict(self._waiting), "searcher": self.searcher.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        self.live = set(state["live"])
        self._waiting = dict(state["waiting"])
        self.searcher.set_state(state["searcher"])


class Repeater(_Wrapper):
    """Each configuration is tried several times; the searcher is told the mean.

    Args:
        repeat: how often.
        set_index: the configuration says which repetition it is, at key `__trial_index__`.
    """

    INDEX = "__trial_index__"

    def __init__(self, searcher: Searcher, repeat: int = 1, set_index: bool = True) -> None:
        super().__init__(searcher)
        if not isinstance(repeat, int) or isinstance(repeat, bool) or repeat < 1:
            raise ValueError(f"repeat must be at least 1, got {repeat!r}")
        self.repeat = repeat
        self.set_index = set_index
        # Of the first trial of each group: its configuration, its members, the values of those that have ended.
        self._groups: dict[str, dict[str, Any]] = {}
        self._group_of: dict[str, str] = {}
        self._open: str | None = None

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self._open is None:
            config = self.searcher.suggest(trial_id)
            if config is None or isinstance(config, str):
                return config
            self._groups[trial_id] = {"config": config, "members": 0, "ended": 0, "results": []}
            self._open = trial_id
        return self._next_of(self._open, trial_id)

    def _next_of(self, first: str, trial_id: str) -> dict[str, Any]:
        group = self._groups[first]
        config: dict[str, Any] = copy.deepcopy(group["config"])
        if self.set_index:
            config[self.INDEX] = group["members"]
        group["members"] += 1
        self._group_of[trial_id] = first
        if group["members"] == self.repeat:
            self._open = None
        return config

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        first = self._group_of.pop(trial_id, None)
        if first is None:
            return
        group = self._groups[first]
        group["ended"] += 1
        if result is not None and not error:
            group["results"].append(result)
        if group["ended"] < self.repeat:
            return
        del self._groups[first]
        self.searcher.on_trial_complete(first, self._mean(group["results"]), error=not group["results"])

    def _mean(self, results: list[dict[str, Any]]) -> dict[str, Any] | None:
        if not results:
            return None
        mean = dict(results[-1])
        names = self.metric if isinstance(self.metric, list) else [self.metric]
        for name in names:
            values = [result[name] for result in results if name in result]
            if values:
                mean[str(name)] = sum(values) / len(values)
        return mean

    def on_trial_restore(self, trial_id: str, config: dict[str, Any]) -> None:
        if self._open is None:
            shared = {key: value for key, value in config.items() if key != self.INDEX}
            self.searcher.on_trial_restore(trial_id, shared)
            self._groups[trial_id] = {"config": shared, "members": 0, "ended": 0, "results": []}
            self._open = trial_id
        self._next_of(self._open, trial_id)

    def total_samples(self, num_samples: int) -> int:
        # As in Ray: num_samples counts repetitions too.
        return self.searcher.total_samples(num_samples)

    def get_state(self) -> dict[str, Any]:
        return {"groups": copy.deepcopy(self._groups), "group_of": dict(self._group_of), "open": self._open, "searcher": self.searcher.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        self._groups = copy.deepcopy(state["groups"])
        self._group_of = dict(state["group_of"])
        self._open = state["open"]
        self.searcher.set_state(state["searcher"])


def merge_constants(space: Mapping[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """A searcher's suggestion, with what the Tuner's space says beside it."""
    return {**space, **config}
