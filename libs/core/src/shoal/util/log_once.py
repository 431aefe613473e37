"""Messages that should not repeat."""

from __future__ import annotations

import time

# In periodic mode a key may log again after this.
_PERIOD_S = 60.0
_seen: dict[str, float] = {}
_disabled = False
_periodic = False


def log_once(key: str) -> bool:
    """Whether the message of this key is to be logged: True the first time."""
    if _disabled:
        return False
    now = time.monotonic()
    last = _seen.get(key)
    if last is None or (_periodic and now - last > _PERIOD_S):
        _seen[key] = now
        return True
    return False


def disable_log_once_globally() -> None:
    """`log_once` answers False from now on."""
    global _disabled
    _disabled = True


def enable_periodic_logging() -> None:
    """A key may log again once a minute."""
    global _periodic
    _periodic = True
