"""Logs of a service: one rotating file each, as text for people or JSON for machines."""

from __future__ import annotations

import json
import logging
import logging.handlers
import sys
import time
from pathlib import Path
from typing import Literal

# Limits: of one file, and how many older ones are kept.
MAX_BYTES = 64 << 20
BACKUPS = 4

Encoding = Literal["TEXT", "JSON"]

# What every LogRecord has; anything else was given with `extra=`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _timestamp(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


class TextFormatter(logging.Formatter):
    """`time LEVEL component[pid] logger: message key=value`"""

    def __init__(self, component: str) -> None:
        super().__init__()
        self._component = component

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {key}={value}" for key, value in _extra(record).items())
        line = f"{_timestamp(record)} {record.levelname} {self._component}[{record.process}] {record.name}: {record.getMessage()}{fields}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonFormatter(logging.Formatter):
    """One object a line; what was given with `extra=` are its fields."""

    def __init__(self, component: str) -> None:
        super().__init__()
        self._component = component

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            **_extra(record),
            "time": _timestamp(record),
            "level": record.levelname,
            "component": self._component,
            "pid": record.process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str, ensure_ascii=False)


def setup(component: str, directory: Path | str | None, level: str = "INFO", encoding: Encoding = "TEXT") -> logging.Handler:
    """The root logger of this process writes to `directory/component.log`, or to stderr when there is no directory. Again: replaces what it set up before.

    Raises ValueError for an unknown level or encoding."""
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"log level {level!r} is none of {', '.join(logging.getLevelNamesMapping())}")
    if encoding not in ("TEXT", "JSON"):
        raise ValueError(f"log encoding {encoding!r} is neither TEXT nor JSON")
    handler: logging.Handler
    if directory is None:
        handler = logging.StreamHandler(sys.stderr)
    else:
        handler = logging.handlers.RotatingFileHandler(Path(directory) / f"{component}.log", maxBytes=MAX_BYTES, backupCount=BACKUPS, encoding="utf-8")
    handler.setFormatter(JsonFormatter(component) if encoding == "JSON" else TextFormatter(component))
    handler.set_name("shoal")
    root = logging.getLogger()
    for old in [h for h in root.handlers if h.get_name() == "shoal"]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(number)
    return handler
