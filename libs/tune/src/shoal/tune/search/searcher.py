"""What an algorithm that suggests configurations must be: the contract."""

from __future__ import annotations

import os
import pickle
from typing import Any, ClassVar

__all__ = ["SearcherWrapper", "Searcher"]

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


class SearcherWrapper(Searcher):
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
