"""The loggers, under the name at which Ray's users look for them."""

from .callback import CSVLoggerCallback, JsonLoggerCallback, LoggerCallback
from .tensorboard import TBXLoggerCallback

__all__ = ["CSVLoggerCallback", "JsonLoggerCallback", "LoggerCallback", "TBXLoggerCallback"]
