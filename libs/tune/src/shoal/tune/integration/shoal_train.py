"""A trainer of `shoal.train` that runs inside of a trial tells its reports to the tuner."""

from __future__ import annotations

from typing import Any

from shoal.train import Checkpoint, UserCallback
from shoal.train.callbacks import RunContext
from shoal.train.session import Session, current_session

__all__ = ["CHECKPOINT_PATH", "TuneReportCallback"]

CHECKPOINT_PATH = "checkpoint_path"


class TuneReportCallback(UserCallback):
    """Hands what the trainer's first worker reports on to the trial; the path of a checkpoint comes as metric `checkpoint_path`. To be made inside of a trial.

    Raises:
        NoSessionError: outside of a trial.

    Example::

        def trial(config):
            TorchTrainer(loop, train_loop_config=config, scaling_config=ScalingConfig(num_workers=2),
                         run_config=RunConfig(callbacks=[TuneReportCallback()])).fit()

        Tuner(trial, param_space={"lr": tune.loguniform(1e-4, 1e-1)}, tune_config=TuneConfig(max_concurrent_trials=2)).fit()
    """

    def __init__(self) -> None:
        # Of the trial: while the trainer runs, there may be one of its own in this process.
        self._session: Session = current_session("TuneReportCallback()")

    def after_report(self, run_context: RunContext, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        report = dict(metrics[0])
        if checkpoint is not None:
            report[CHECKPOINT_PATH] = checkpoint.path
        self._session.report(report)
