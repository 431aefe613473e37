"""How workers and driver write their logs."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field
from typing import Any

_ENCODINGS = ("TEXT", "JSON")
# The key of a job's metadata under which its workers find this.
LOGGING_CONFIG = "logging_config"
_TEXT = "%(asctime)s\t%(levelname)s %(filename)s:%(lineno)s -- %(message)s"


@dataclass
class LoggingConfig:
    """
    Args:
        encoding: "TEXT" or "JSON".
        log_level: a level's name.
        additional_log_standard_attrs: attributes of `logging.LogRecord` to write as well.
    """

    encoding: str = "TEXT"
    log_level: str = "INFO"
    additional_log_standard_attrs: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.encoding not in _ENCODINGS:
            raise ValueError(f"encoding={self.encoding!r}: one of {', '.join(_ENCODINGS)} is wanted")
        if not isinstance(logging.getLevelName(self.log_level.upper()), int):
            raise ValueError(f"log_level={self.log_level!r} is no level of the logging module")
        known = vars(logging.makeLogRecord({}))
        for name in self.additional_log_standard_attrs:
            if name not in known:
                raise ValueError(f"additional_log_standard_attrs: {name!r} is no attribute of logging.LogRecord")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> LoggingConfig:
        return cls(**d)


class _JsonFormatter(logging.Formatter):
    """One JSON object a line, with where it was written: job, node, worker, task and actor."""

    def __init__(self, attributes: list[str]) -> None:
        super().__init__()
        self._attributes = attributes

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "asctime": self.formatTime(record), "levelname": record.levelname, "message": record.getMessage(), "filename": record.filename,
            "lineno": record.lineno, **_where(), **{name: getattr(record, name, None) for name in self._attributes},
        }  # fmt: skip
        if record.exc_info:
            fields["exc_text"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


class _TextFormatter(logging.Formatter):
    def __init__(self, attributes: list[str]) -> None:
        super().__init__(_TEXT)
        self._attributes = attributes

    def format(self, record: logging.LogRecord) -> str:
        extra = {**_where(), **{name: getattr(record, name, None) for name in self._attributes}}
        return " ".join([super().format(record), *(f"{k}={v}" for k, v in extra.items())])


def _where() -> dict[str, str]:
    from . import _runtime

    state = _runtime.state
    if state.engine is None:
        return {}
    found = {"job_id": state.job_id.hex(), "worker_id": state.worker_id.hex(), "node_id": state.node_id.hex()}
    now = _runtime.current()
    if now is not None:
        found |= {"task_id": now.task_id.hex(), "task_name": now.name}
        if any(now.task.actor_id):
            found["actor_id"] = now.task.actor_id.hex()
    return found


def configure(config: LoggingConfig) -> None:
    """Sets the root logger of this process."""
    formatter = _JsonFormatter if config.encoding == "JSON" else _TextFormatter
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(config.additional_log_standard_attrs))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(config.log_level.upper())
