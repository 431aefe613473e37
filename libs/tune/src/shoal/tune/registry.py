"""Trainables by name."""

from __future__ import annotations

import threading
from typing import Any

__all__ = ["get_trainable", "register_trainable"]

_known: dict[str, Any] = {}
_lock = threading.Lock()


def register_trainable(name: str, trainable: Any) -> None:
    """Makes a trainable known by name, in this process: `Tuner("name")`.

    Raises:
        TypeError: it is no trainable.
    """
    from .function_trainable import check_trainable

    check_trainable(trainable)
    with _lock:
        _known[name] = trainable


def get_trainable(trainable: Any) -> Any:
    """By name; anything else as it is.

    Raises:
        ValueError: nobody registered the name.
    """
    if not isinstance(trainable, str):
        return trainable
    with _lock:
        if trainable not in _known:
            known = ", ".join(sorted(_known)) or "none"
            raise ValueError(f"no trainable {trainable!r} was registered; there are: {known}. register_trainable(name, trainable) makes one known")
        return _known[trainable]
