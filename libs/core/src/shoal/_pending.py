"""Tells the driver when what it submitted finds no place."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from . import _runtime

_log = logging.getLogger("shoal")

WARN_AFTER_S = 10.0
# What fits no node fails after 10 s, unless an autoscaler works on it: the warning comes before.
WARN_INFEASIBLE_AFTER_S = 5.0
LOOK_EVERY_S = 5.0
# While something waits: an idle driver wakes seldom.
LOOK_AGAIN_S = 1.0
# Counting a process's workers goes through all its references: seldom, then.
COUNT_EVERY_S = 60.0
_CALL_TIMEOUT_S = 5.0
# Limit: of the names that were warned of and are remembered.
_MAX_TOLD = 1000
# Limit: actors and placement groups whose reason is asked for at a look.
_MAX_ASKED = 20


@dataclass(frozen=True)
class Waiting:
    """Tasks of one kind that no node has taken."""

    name: str
    count: int
    waited_s: float
    infeasible: bool
    reason: str
    group: bytes = b""  # of a placement group: it tells why it is not placed


class PendingWatch:
    """Decides of what to warn: once for each name and reason to give up hope; again after it was gone for a look."""

    def __init__(self) -> None:
        self._told: set[tuple[str, bool]] = set()
        self._count_after = 0.0
        self._actors: dict[bytes, float] = {}
        self._told_actors: set[bytes] = set()

    def look_at_actors(self, now: float, calls: Mapping[bytes, int], ask: Callable[[bytes], tuple[str, str] | None]) -> list[str]:
        """Warnings of actors that this process calls and that find no place; `ask` tells an actor's class and why it is not placed.

        Without a reason it has its place, and its `__init__` takes as long as it likes. Those of one class and reason are told together.
        """
        self._actors = {actor_id: self._actors.get(actor_id, now) for actor_id in calls}
        self._told_actors &= calls.keys()
        long = [actor_id for actor_id, since in self._actors.items() if now - since >= WARN_AFTER_S and actor_id not in self._told_actors]
        groups: dict[tuple[str, str], list[bytes]] = {}
        for actor_id in long[:_MAX_ASKED]:
            told = ask(actor_id)
            if told is None or not told[1]:
                self._actors[actor_id] = now
            else:
                groups.setdefault(told, []).append(actor_id)
        for ids in groups.values():
            self._told_actors.update(ids)
        return [_actor_text(name, reason, ids, now - self._actors[ids[0]], sum(calls[i] for i in ids)) for (name, reason), ids in groups.items()]

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
    if waiting.group:
        return f"{what} wait{'' if waiting.count > 1 else 's'} since {waiting.waited_s:.0f} s: {waiting.reason}"
    return (
        f"{what} wait{'' if waiting.count > 1 else 's'} for a node since {waiting.waited_s:.0f} s, while no task of this program runs: {waiting.reason}. "
        "Actors or other programs hold the rest; `shoal list actors` and `shoal status` show them"
    )


def _actor_text(name: str, reason: str, ids: list[bytes], waited_s: float, calls: int) -> str:
    what = f"actor {name} ({ids[0].hex()}) has" if len(ids) == 1 else f"{len(ids)} actors {name} (one is {ids[0].hex()}) have"
    return f"{what} no place since {waited_s:.0f} s, and {calls} call{' waits' if calls == 1 else 's wait'}: {reason}"


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
    pause_s = LOOK_EVERY_S
    while not ended.wait(pause_s) and not engine.closed:
        now = time.monotonic()
        queued, calls = engine.queued(), engine.unready_actors()
        pause_s = min(LOOK_EVERY_S, LOOK_AGAIN_S) if queued or calls else LOOK_EVERY_S
        try:
            warnings = decisions.look(now, _ask(engine) if queued else (), lambda: int(engine.stats()["leases"]))
            warnings += decisions.look_at_actors(now, calls, lambda actor_id: _ask_of_actor(engine, actor_id))
        except Exception as error:
            _log.debug("what is pending cannot be had: %s", error)
            continue
        for text in warnings:
            _log.warning("%s", text)


def _ask(engine: Any) -> list[Waiting]:
    from shoal_raylet.v1 import raylet_pb2

    reply = raylet_pb2.PendingReasons.FromString(engine.call("raylet/PendingReasons", b"", _CALL_TIMEOUT_S))
    waiting = [Waiting(r.name, r.count, r.waited_s, r.infeasible, r.reason, r.placement_group_id) for r in reply.reasons]
    long = [w.group for w in waiting if w.group and w.waited_s >= WARN_AFTER_S]
    reasons = {group: _ask_of_group(engine, group) for group in dict.fromkeys(long[:_MAX_ASKED])}
    return [replace(w, reason=f"{w.reason}: {reasons[w.group]}") if reasons.get(w.group) else w for w in waiting]


def _ask_of_group(engine: Any, group_id: bytes) -> str:
    from shoal_gcs.v1 import gcs_pb2

    from ._core.engine import CallError

    query = gcs_pb2.PlacementGroupQuery(placement_group_id=group_id)
    try:
        reply = engine.call("gcs/GetPlacementGroup", query.SerializeToString(), _CALL_TIMEOUT_S)
    except CallError:  # removed meanwhile, or the control store is started again: the rest is still to be told
        return ""
    return str(gcs_pb2.PlacementGroup.FromString(reply).pending_reason)


def _ask_of_actor(engine: Any, actor_id: bytes) -> tuple[str, str] | None:
    from shoal_gcs.v1 import gcs_pb2

    from ._core.engine import CallError

    try:
        reply = engine.call("gcs/GetActor", gcs_pb2.ActorQuery(actor_id=actor_id).SerializeToString(), _CALL_TIMEOUT_S)
    except CallError:
        return None
    record = gcs_pb2.Actor.FromString(reply)
    return record.class_name, record.pending_reason
