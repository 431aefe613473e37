"""A searcher with a limit of trials at once."""

from __future__ import annotations

from typing import Any

from .searcher import Searcher, SearcherWrapper

__all__ = ["ConcurrencyLimiter"]


class ConcurrencyLimiter(SearcherWrapper):
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
