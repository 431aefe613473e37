"""Reports as TensorBoard shows them. tensorboardX is imported on first use: pip install 'shoal-tune[tensorboard]'."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .callback import LoggerCallback
from .search.variants import flat_params

if TYPE_CHECKING:
    from .trial import Trial

__all__ = ["TBXLoggerCallback"]

# What names of scalars begin with, as in Ray's.
PREFIX = "ray/tune/"
# Reports may wait so long before they are on disk.
FLUSH_S = 30


class TBXLoggerCallback(LoggerCallback):
    """Each trial's numbers in an event file in its folder, and its configuration beside its last numbers, for TensorBoard's HPARAMS page.

    `tensorboard --logdir FOLDER` on the experiment's folder shows all trials.

    Raises:
        ImportError: tensorboardX is not installed.

    Example::

        Tuner(train, run_config=RunConfig(callbacks=[TBXLoggerCallback()]))
    """

    def __init__(self) -> None:
        self._writers: dict[str, Any] = {}
        self._last: dict[str, dict[str, float]] = {}
        _tensorboardx()

    def _writer(self, trial: Trial) -> Any:
        writer = self._writers.get(trial.trial_id)
        if writer is None:
            Path(trial.path).mkdir(parents=True, exist_ok=True)
            writer = self._writers[trial.trial_id] = _tensorboardx().SummaryWriter(trial.path, flush_secs=FLUSH_S)
        return writer

    def log_trial_result(self, iteration: int, trial: Trial, result: dict[str, Any]) -> None:
        step = result.get("timesteps_total") or result["training_iteration"]
        writer = self._writer(trial)
        numbers = {name: float(value) for name, value in flat_params(result).items() if name.partition("/")[0] != "config" and _is_number(value)}
        for name, value in numbers.items():
            writer.add_scalar(PREFIX + name, value, global_step=step)
        self._last[trial.trial_id] = numbers

    def log_trial_end(self, trial: Trial, failed: bool = False) -> None:
        writer = self._writers.pop(trial.trial_id, None)
        numbers = self._last.pop(trial.trial_id, None)
        if writer is None:
            return
        if numbers:
            from tensorboardX.summary import hparams

            config = {name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in flat_params(trial.config).items()}
            for summary in hparams(config, {PREFIX + name: value for name, value in numbers.items()}):
                writer.file_writer.add_summary(summary)
        writer.close()

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Also after a run that was broken off."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def __getstate__(self) -> dict[str, Any]:
        # With the experiment's settings it is pickled; its files are this process's own.
        return {"_writers": {}, "_last": {}}


def _is_number(value: Any) -> bool:
    if isinstance(value, bool | str | bytes):
        return False
    try:
        return math.isfinite(value)
    except TypeError:
        return False


def _tensorboardx() -> Any:
    try:
        import tensorboardX
    except ImportError as error:
        raise ImportError("TBXLoggerCallback takes tensorboardX: pip install 'shoal-tune[tensorboard]'", name="tensorboardX") from error
    return tensorboardX
