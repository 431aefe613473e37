"""How workers and driver write their logs."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from typing import Any

_ENCODINGS = ("TEXT", "JSON")


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
