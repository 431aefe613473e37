"""What an experiment may do, checked: the settings of the trial loop."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..error import MissingMetricError
from ..trial import SavedCheckpoint, Trial, lookup

# Filled in by the runner, and so never missing.
AUTO_KEYS = frozenset({
    "training_iteration", "time_total_s", "time_this_iter_s", "time_since_restore", "iterations_since_restore", "timestamp", "date", "trial_id", "done",
    "config", "pid", "hostname", "node_ip", "experiment_tag", "timesteps_total", "episodes_total", "checkpoint_dir_name",
})  # fmt: skip


@dataclass(frozen=True)
class LoopPolicy:
    """Settings of the loop.

    Attributes:
        num_samples: as the user gave it; -1: until the time budget or a stopper ends it.
        max_concurrent: trials at once; None: what the cluster can hold.
        time_budget_s: after so long all are stopped.
        max_failures: how often a trial is started again after a failure; -1: always.
        fail_fast: the first trial that fails for good ends the experiment; "raise": and its error is raised.
        can_save: whether trials can be asked for a checkpoint (classes), or only report them (functions).
        save_at_end: whether they are.
        keep, score_attribute, score_order: which checkpoints stay.
        strict_metrics: whether the first report of a trial must have all metrics that somebody needs.
        suggest_patience_s: how long a searcher may have nothing to suggest while nothing runs.
    """

    num_samples: int = 1
    max_concurrent: int | None = None
    time_budget_s: float | None = None
    max_failures: int = 0
    fail_fast: bool | Literal["raise"] = False
    can_save: bool = False
    save_at_end: bool = False
    keep: int | None = None
    score_attribute: str | None = None
    score_order: str = "max"
    strict_metrics: bool = True
    suggest_patience_s: float = 60.0


def check_metrics(trial: Trial, result: Mapping[str, Any], wanted: Mapping[str, str]) -> None:
    """That a report has what is wanted: names of metrics, each with who wants it. Raises MissingMetricError."""
    for name, by in wanted.items():
        if lookup(result, name) is None:
            raise MissingMetricError(trial, name, by, sorted(key for key in result if key not in AUTO_KEYS))


def surplus(checkpoints: list[SavedCheckpoint], policy: LoopPolicy, pinned: Container[str]) -> list[SavedCheckpoint]:
    """Which checkpoints go: not the best `keep`, nor the latest, nor one that a trial is being started from.

    >>> one, two = SavedCheckpoint("a", {"x": 1}, 0), SavedCheckpoint("b", {"x": 0}, 1)
    >>> surplus([one, two], LoopPolicy(keep=1), {}) == [one]
    True
    """
    if policy.keep is None or len(checkpoints) <= policy.keep:
        return []
    latest = checkpoints[-1]
    if policy.score_attribute is None:
        best = checkpoints[-policy.keep :]
    else:
        sign = 1.0 if policy.score_order == "max" else -1.0

        def score(checkpoint: SavedCheckpoint) -> tuple[float, int]:
            value = lookup(checkpoint.result, policy.score_attribute or "")
            return (float("-inf") if value is None or value != value else sign * value), checkpoint.index

        best = heapq.nlargest(policy.keep, checkpoints, key=score)
    return [one for one in checkpoints if one not in best and one is not latest and one.path not in pinned]


class Pins:
    """Checkpoints that must stay, because a trial reads them, or will: by path, each with why and for whom."""

    def __init__(self) -> None:
        self._count: Counter[str] = Counter()
        self._paths: dict[tuple[str, str], str] = {}

    def pin(self, why: str, trial_id: str, path: str) -> None:
        """In place of an earlier one of the same trial for the same reason."""
        self.unpin(why, trial_id)
        self._count[path] += 1
        self._paths[why, trial_id] = path

    def unpin(self, why: str, trial_id: str) -> None:
        path = self._paths.pop((why, trial_id), None)
        if path is not None:
            self._count[path] -= 1
            if not self._count[path]:
                del self._count[path]

    def __contains__(self, path: object) -> bool:
        return path in self._count

    def check(self) -> None:
        """Asserts that both books agree."""
        assert +self._count == Counter(self._paths.values())
