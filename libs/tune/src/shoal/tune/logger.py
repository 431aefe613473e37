"""The loggers, under the name at which Ray's users look for them."""

from .callback import CSVLoggerCallback, JsonLoggerCallback, LoggerCallback

__all__ = ["CSVLoggerCallback", "JsonLoggerCallback", "LoggerCallback"]
