"""Tells the driver when what it submitted finds no place."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from . import _runtime

_log = logging.getLogger("shoal")

WARN_AFTER_S = 10.0
# What fits no node fails after 10 s, unless an autoscaler works on it: the warning comes before.
WARN_INFEASIBLE_AFTER_S = 5.0
LOOK_EVERY_S = 5.0
# Counting a process's workers goes through all its references: seldom, then.
COUNT_EVERY_S = 60.0
_CALL_TIMEOUT_S = 5.0
# Limit: of the names that were warned of and are remembered.
_MAX_TOLD = 1000


@dataclass(frozen=True)
class Waiting:
    """Tasks of one kind that no node has taken."""

    name: str
    count: int
    waited_s: float
    infeasible: bool
    reason: str


class PendingWatch:
    """Decides of what to warn: once for each name and reason to give up hope; again after it was gone for a look."""

    def __init__(self) -> None:
        self._told: set[tuple[str, bool]] = set()
        self._count_after = 0.0

    def look(self, now: float, waiting: Iterable[Waiting], leases: Callable[[], int]) -> list[str]:
        """Warnings, given what waits; `leases` counts the workers that this process's tasks have.

        Tasks that wait for their turn behind others of this process are nothing to warn of; those that get no worker at all are.
        """
        never = [w for w in waiting if w.infeasible and w.waited_s >= WARN_INFEASIBLE_AFTER_S]
        long = [w for w in waiting if not w.infeasible and w.waited_s >= WARN_AFTER_S]
        if any((w.name, False) not in self._told for w in long):
            long = long if self._stuck(now, leases) else []
        found = never + long
        fresh = [w for w in found if (w.name, w.infeasible) not in self._told]
        keys = {(w.name, w.infeasible) for w in found}
        self._told = keys if len(keys) <= _MAX_TOLD else set()
        return [_text(w) for w in fresh]

    def _stuck(self, now: float, leases: Callable[[], int]) -> bool:
        if now < self._count_after:
            return False
        stuck = leases() == 0
        if not stuck:
            self._count_after = now + COUNT_EVERY_S
        return stuck


def _text(waiting: Waiting) -> str:
    what = f"{waiting.count} task{'s' if waiting.count > 1 else ''} of {waiting.name or 'a function'}"
    if waiting.infeasible:
        return f"{what} cannot run on any node of the cluster, since {waiting.waited_s:.0f} s: {waiting.reason}"
    return (
        f"{what} wait{'' if waiting.count > 1 else 's'} for a node since {waiting.waited_s:.0f} s, while no task of this program runs: {waiting.reason}. "
        "Actors or other programs hold the rest; `shoal list actors` and `shoal status` show them"
    )


def watch(engine: Any) -> None:
    """For a driver: looks while something of it is queued."""
    ended = threading.Event()
    thread = threading.Thread(target=_run, args=(engine, ended), name="shoal-pending", daemon=True)

    def stop() -> None:
        ended.set()
        thread.join(_CALL_TIMEOUT_S)

    _runtime.state.at_disconnect.append(stop)
    thread.start()


def _run(engine: Any, ended: threading.Event) -> None:
    decisions = PendingWatch()
    while not ended.wait(LOOK_EVERY_S) and not engine.closed:
        try:
            warnings = decisions.look(time.monotonic(), _ask(engine) if engine.queued() else (), lambda: int(engine.stats()["leases"]))
        except Exception as error:
            _log.debug("what is pending cannot be had: %s", error)
            continue
        for text in warnings:
            _log.warning("%s", text)


def _ask(engine: Any) -> list[Waiting]:
    from shoal_raylet.v1 import raylet_pb2

    reply = raylet_pb2.PendingReasons.FromString(engine.call("raylet/PendingReasons", b"", _CALL_TIMEOUT_S))
    return [Waiting(r.name, r.count, r.waited_s, r.infeasible, r.reason) for r in reply.reasons]
