"""What users may hang into an experiment, and the loggers that every experiment has."""

from __future__ import annotations

import csv
import json
import math
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from .search.variants import flat_params

if TYPE_CHECKING:
    from shoal.train import Checkpoint

    from .stopper import Stopper
    from .trial import Trial

__all__ = ["CSVLoggerCallback", "Callback", "JsonLoggerCallback", "LoggerCallback"]

HOOKS = (
    "on_step_begin", "on_step_end", "on_trial_start", "on_trial_restore", "on_trial_save", "on_trial_result", "on_trial_complete", "on_trial_recover",
    "on_trial_error", "on_checkpoint", "on_experiment_end",
)  # fmt: skip


class Callback:
    """Called in the process that called `fit()`, one call at a time. To be subclassed; every hook may be left out. What a hook raises ends the experiment.

    Example::

        class Print(Callback):
            def on_trial_result(self, iteration, trials, trial, result, **info):
                print(trial, result["loss"])
    """

    def setup(self, stop: Stopper | None = None, num_samples: int | None = None, total_num_samples: int | None = None, **info: Any) -> None:
        """Before anything else."""

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Before news of trials are worked on."""

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """After that."""

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial starts, or starts again."""

    def on_trial_restore(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial goes on from a checkpoint."""

    def on_trial_save(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial has saved a checkpoint because the tuner asked it to."""

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any) -> None:
        """A report."""

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial has ended well, or was stopped."""

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial has failed and will be started again."""

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial has failed for good."""

    def on_checkpoint(self, iteration: int, trials: list[Trial], trial: Trial, checkpoint: Checkpoint, **info: Any) -> None:
        """A trial has a new checkpoint."""

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """After everything else."""

    def get_state(self) -> dict[str, Any] | None:
        """What `set_state` needs after a restore; None: nothing."""
        return None

    def set_state(self, state: dict[str, Any]) -> None:
        """From `get_state`."""


class LoggerCallback(Callback):
    """A callback of few words. To be subclassed."""

    def log_trial_start(self, trial: Trial) -> None:
        """Before the first result."""

    def log_trial_restore(self, trial: Trial) -> None:
        """It goes on from a checkpoint."""

    def log_trial_save(self, trial: Trial) -> None:
        """It has a new checkpoint."""

    def log_trial_result(self, iteration: int, trial: Trial, result: dict[str, Any]) -> None:
        """A report."""

    def log_trial_end(self, trial: Trial, failed: bool = False) -> None:
        """It has ended."""

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.log_trial_start(trial)

    def on_trial_restore(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.log_trial_restore(trial)

    def on_trial_save(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.log_trial_save(trial)

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any) -> None:
        self.log_trial_result(iteration, trial, result)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.log_trial_end(trial, failed=False)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.log_trial_end(trial, failed=True)


def as_json(value: Any) -> Any:
    """For what JSON does not know."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)


class _Files(LoggerCallback):
    """One open file for each trial that runs."""

    FILE = ""

    def __init__(self) -> None:
        self._files: dict[str, TextIO] = {}

    def _open(self, trial: Trial) -> TextIO:
        file = self._files.get(trial.trial_id)
        if file is None:
            Path(trial.path).mkdir(parents=True, exist_ok=True)
            file = self._files[trial.trial_id] = open(Path(trial.path, self.FILE), "a", encoding="utf-8", newline="")  # noqa: SIM115
        return file

    def log_trial_end(self, trial: Trial, failed: bool = False) -> None:
        file = self._files.pop(trial.trial_id, None)
        if file is not None:
            file.close()

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        for file in self._files.values():
            file.flush()

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        self.close()

    def close(self) -> None:
        """All files; also after a run that was broken off."""
        for file in self._files.values():
            file.close()
        self._files.clear()


class JsonLoggerCallback(_Files):
    """`result.json`: each report a line; `params.json` and `params.pkl`: the trial's configuration."""

    FILE = "result.json"

    def log_trial_start(self, trial: Trial) -> None:
        folder = Path(trial.path)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "params.json").write_text(json.dumps(trial.config, indent=2, sort_keys=True, default=as_json))
        try:
            pickled = pickle.dumps(trial.config)
        except Exception:
            import cloudpickle

            pickled = cloudpickle.dumps(trial.config)
        (folder / "params.pkl").write_bytes(pickled)

    def log_trial_result(self, iteration: int, trial: Trial, result: dict[str, Any]) -> None:
        self._open(trial).write(json.dumps(result, default=as_json) + "\n")


class CSVLoggerCallback(_Files):
    """`progress.csv`: each report a row; its columns are those of the first report."""

    FILE = "progress.csv"

    def __init__(self) -> None:
        super().__init__()
        self._writers: dict[str, Any] = {}

    def log_trial_result(self, iteration: int, trial: Trial, result: dict[str, Any]) -> None:
        row = flat_params(result)
        writer = self._writers.get(trial.trial_id)
        if writer is None:
            file = self._open(trial)
            columns = _header(Path(trial.path, self.FILE)) or list(row)
            writer = self._writers[trial.trial_id] = csv.DictWriter(file, columns, extrasaction="ignore")
            if file.tell() == 0:
                writer.writeheader()
        writer.writerow({key: "" if value is None or (isinstance(value, float) and math.isnan(value)) else value for key, value in row.items()})

    def log_trial_end(self, trial: Trial, failed: bool = False) -> None:
        self._writers.pop(trial.trial_id, None)
        super().log_trial_end(trial, failed)


def _header(path: Path) -> list[str] | None:
    with path.open(newline="", encoding="utf-8") as file:
        return next(csv.reader(file), None)
