"""A searcher whose configurations are tried several times."""

from __future__ import annotations

import copy
from typing import Any

from .searcher import Searcher, SearcherWrapper

__all__ = ["Repeater"]


class Repeater(SearcherWrapper):
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
