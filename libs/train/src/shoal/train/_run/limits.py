"""Limits that the environment may set."""

from __future__ import annotations

import os


def seconds(name: str, default: float) -> float:
    """Raises ValueError that names the variable."""
    text = os.environ.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value > 0:
        raise ValueError(f"{name}={text!r}: a number of seconds above 0 is wanted")
    return value
