"""Which version of an application gets a request, by weight."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from typing import Any

import shoal

from .context import CONTROLLER_NAME, NAMESPACE
from .exceptions import DeploymentUnavailableError

# A handle to all versions of an application asks for the weights again after so long.
FRESH_S = 1.0
ASK_TIMEOUT_S = 30.0

_known: dict[str, tuple[float, Any]] = {}
_lock = threading.Lock()


def pick(versions: Sequence[tuple[float, str, str, bool]], draw: float) -> tuple[float, str, str, bool]:
    """The version where `draw`, from [0, 1), falls.

    >>> pick([(0.9, "a", "main", False), (0.1, "a@v2", "main", False)], 0.95)[1]
    'a@v2'
    """
    for version in versions:
        draw -= version[0]
        if draw < 0:
            return version
    return versions[-1]


def choose_version(base: str) -> tuple[str, str]:
    """(application, ingress deployment) for a handle that names a base alone. Raises DeploymentUnavailableError."""
    versions = _fresh(base)
    if versions is None:
        versions = _keep(base, shoal.get(_ask(base), timeout=ASK_TIMEOUT_S))
    return _picked(base, versions)


async def choose_version_async(base: str) -> tuple[str, str]:
    """The same on an event loop."""
    versions = _fresh(base)
    if versions is None:
        versions = _keep(base, await _ask(base))
    return _picked(base, versions)


def _ask(base: str) -> Any:
    return shoal.get_actor(CONTROLLER_NAME, NAMESPACE).versions.remote(base)


def _fresh(base: str) -> Any:
    with _lock:
        known = _known.get(base)
    return known[1] if known is not None and time.monotonic() - known[0] <= FRESH_S else None


def _keep(base: str, versions: Any) -> Any:
    with _lock:
        _known[base] = (time.monotonic(), versions)
    return versions


def _picked(base: str, versions: Any) -> tuple[str, str]:
    if not versions:
        raise DeploymentUnavailableError(f"there is no application {base!r}")
    _, app, ingress, _ = pick(versions, random.random())
    return app, ingress
