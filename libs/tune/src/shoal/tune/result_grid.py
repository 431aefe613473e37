"""What an experiment ended with."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from shoal.train import Checkpoint, Result

from .search.searcher import check_mode
from .search.variants import flat_params
from .trial import Trial, lookup

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ExperimentAnalysis", "ResultGrid"]

SCOPES = ("last", "all", "avg", "last-5-avg", "last-10-avg")


class History(Sequence[Mapping[str, Any]]):
    """A trial's reports, read from its `result.json` when somebody asks."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[dict[str, Any]] | None = None

    def _read(self) -> list[dict[str, Any]]:
        if self._rows is None:
            self._rows = []
            if self._path.exists():
                for line in self._path.read_text(encoding="utf-8").splitlines():
                    try:
                        row = json.loads(line)
                    except ValueError:  # cut off by a crash
                        continue
                    self._rows.append({key: value for key, value in row.items() if key != "config"} | _config(row))
        return self._rows

    def __len__(self) -> int:
        return len(self._read())

    @overload
    def __getitem__(self, index: int) -> Mapping[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Mapping[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return self._read()[index]


def _config(row: Mapping[str, Any]) -> dict[str, Any]:
    return {f"config/{key}": value for key, value in flat_params(row.get("config") or {}).items()}


def result_of(trial: Trial) -> Result:
    """A trial as its result."""
    error = trial.error if trial.status == Trial.ERROR else None
    if error is not None and not isinstance(error, Exception):
        error = RuntimeError(f"{type(error).__name__}: {error}")
    return Result(
        metrics=trial.last_result or {"trial_id": trial.trial_id, "config": trial.config, "done": trial.is_finished()},
        checkpoint=trial.checkpoint, error=error, path=trial.path,
        best_checkpoints=[(Checkpoint(one.path), one.result) for one in trial.checkpoints], history=History(Path(trial.path, "result.json")),
    )  # fmt: skip


class ResultGrid:
    """The results of all trials: a sequence of `Result`, in the order in which the trials were made.

    Example::

        results = Tuner(train, param_space=space, tune_config=TuneConfig(metric="loss", mode="min")).fit()
        best = results.get_best_result()
        print(best.config, best.metrics["loss"], best.checkpoint)
    """

    def __init__(self, trials: Sequence[Trial], experiment_path: str, metric: str | None = None, mode: str | None = None) -> None:
        self._trials = list(trials)
        self._results = [result_of(trial) for trial in trials]
        self._path = experiment_path
        self._metric, self._mode = metric, mode

    @property
    def experiment_path(self) -> str:
        """The experiment's folder: what `Tuner.restore` takes."""
        return self._path

    @property
    def errors(self) -> list[Exception]:
        """Those of the trials that failed. Each is also an instance of what the trial raised, and its text has the traceback."""
        return [result.error for result in self._results if result.error is not None]

    @property
    def num_errors(self) -> int:
        """How many trials failed."""
        return sum(trial.status == Trial.ERROR for trial in self._trials)

    @property
    def num_terminated(self) -> int:
        """How many trials ended well, or were stopped."""
        return sum(trial.status == Trial.TERMINATED for trial in self._trials)

    def __len__(self) -> int:
        return len(self._results)

    def __getitem__(self, index: int) -> Result:
        return self._results[index]

    def __iter__(self) -> Iterator[Result]:
        return iter(self._results)

    def get_best_result(self, metric: str | None = None, mode: str | None = None, scope: str = "last", filter_nan_and_inf: bool = True) -> Result:
        """The result of the best trial.

        Args:
            metric, mode: default: those of `TuneConfig`.
            scope: what of a trial's reports counts: "last", "all" (its best one), "avg", "last-5-avg" or "last-10-avg".
            filter_nan_and_inf: trials with such a value do not count.

        Raises:
            ValueError: no metric or mode, or an unknown scope.
            RuntimeError: no trial has reported the metric; names those that were reported.
        """
        return result_of(best_trial(self._trials, metric or self._metric, mode or self._mode, scope, filter_nan_and_inf))

    def get_dataframe(self, filter_metric: str | None = None, filter_mode: str | None = None) -> pd.DataFrame:
        """A row for each trial: its last report, or with filter_metric and filter_mode its best. Needs pandas.

        Columns are metrics and `config/...`, nested ones joined by `/`.
        """
        import pandas as pd

        if (filter_metric is None) != (filter_mode is None):
            raise ValueError(f"filter_metric={filter_metric!r} and filter_mode={filter_mode!r}: give both or none")
        check_mode(filter_mode)
        rows = []
        for trial, result in zip(self._trials, self._results, strict=True):
            row = flat_params(result.metrics or {})
            if filter_metric is not None:
                known = [flat_params(dict(one)) for one in result.history if lookup(one, filter_metric) is not None]
                if known:
                    row = (max if filter_mode == "max" else min)(known, key=lambda one: one[filter_metric])
            rows.append({**row, "logdir": trial.path})
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        shown = ",\n  ".join(repr(result) for result in self._results[:20])
        more = ",\n  ..." if len(self._results) > 20 else ""
        return f"ResultGrid<[\n  {shown}{more}\n]>"


def best_trial(trials: Sequence[Trial], metric: str | None, mode: str | None, scope: str = "last", filter_nan_and_inf: bool = True) -> Trial:
    """See `ResultGrid.get_best_result`."""
    if not metric or not mode:
        raise ValueError("no metric or mode: give them here or to TuneConfig, for example get_best_result(metric='loss', mode='min')")
    check_mode(mode)
    if scope not in SCOPES:
        raise ValueError(f"scope={scope!r}: one of {', '.join(SCOPES)} is wanted")
    key = {"last": "last", "all": mode}.get(scope, scope)
    best: tuple[float, Trial] | None = None
    for trial in trials:
        known = trial.metric_analysis.get(metric)
        if known is None:
            continue
        value = known[key]
        if filter_nan_and_inf and not math.isfinite(value):
            continue
        if best is None or (value > best[0] if mode == "max" else value < best[0]):
            best = (value, trial)
    if best is None:
        reported = sorted({name for trial in trials for name in trial.metric_analysis})
        if metric in reported:
            raise RuntimeError(f"no best trial found: all values of {metric!r} are NaN or infinite; filter_nan_and_inf=False counts them")
        shown = f"the trials reported {', '.join(reported)}" if reported else "no trial reported any"
        raise RuntimeError(f"no best trial found for the metric {metric!r}: {shown}. Did you pass the correct metric?")
    return best[1]


class ExperimentAnalysis:
    """What `tune.run` returns: the trials, and the best of them by the metric that was given.

    Raises (from the `best_*` properties): as `ResultGrid.get_best_result`.
    """

    def __init__(self, trials: Sequence[Trial], experiment_path: str, default_metric: str | None = None, default_mode: str | None = None) -> None:
        self.trials = list(trials)
        self.experiment_path = experiment_path
        self.default_metric, self.default_mode = default_metric, default_mode

    def get_best_trial(self, metric: str | None = None, mode: str | None = None, scope: str = "last", filter_nan_and_inf: bool = True) -> Trial:
        return best_trial(self.trials, metric or self.default_metric, mode or self.default_mode, scope, filter_nan_and_inf)

    def get_best_config(self, metric: str | None = None, mode: str | None = None, scope: str = "last") -> dict[str, Any]:
        return self.get_best_trial(metric, mode, scope).config

    def get_best_checkpoint(self, trial: Trial, metric: str | None = None, mode: str | None = None) -> Checkpoint | None:
        """Of one trial."""
        metric, mode = metric or self.default_metric, mode or self.default_mode
        if not metric or not mode:
            raise ValueError("no metric or mode: give them here or to tune.run")
        return result_of(trial).get_best_checkpoint(metric, mode)

    def get_last_checkpoint(self, trial: Trial | None = None) -> Checkpoint | None:
        """Of one trial; default: of the best one."""
        return (trial or self.best_trial).checkpoint

    def get_all_configs(self) -> dict[str, dict[str, Any]]:
        """By trial id."""
        return {trial.trial_id: trial.config for trial in self.trials}

    @property
    def best_trial(self) -> Trial:
        return self.get_best_trial()

    @property
    def best_config(self) -> dict[str, Any]:
        return self.best_trial.config

    @property
    def best_result(self) -> dict[str, Any]:
        return self.best_trial.last_result

    @property
    def best_checkpoint(self) -> Checkpoint | None:
        return self.best_trial.checkpoint

    @property
    def best_logdir(self) -> str:
        return self.best_trial.path

    @property
    def results(self) -> dict[str, dict[str, Any]]:
        """The last report of each trial, by its id."""
        return {trial.trial_id: trial.last_result for trial in self.trials}

    @property
    def results_df(self) -> pd.DataFrame:
        """A row for each trial. Needs pandas."""
        return self.dataframe()

    @property
    def trial_dataframes(self) -> dict[str, pd.DataFrame | None]:
        """All reports of each trial, by its folder. Needs pandas."""
        return {trial.path: result_of(trial).metrics_dataframe for trial in self.trials}

    def dataframe(self, metric: str | None = None, mode: str | None = None) -> pd.DataFrame:
        """As `ResultGrid.get_dataframe`."""
        return ResultGrid(self.trials, self.experiment_path).get_dataframe(metric, mode)
