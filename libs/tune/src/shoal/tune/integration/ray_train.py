"""The name under which programs written for Ray look for `shoal_train`."""

from .shoal_train import CHECKPOINT_PATH, TuneReportCallback

__all__ = ["CHECKPOINT_PATH", "TuneReportCallback"]
