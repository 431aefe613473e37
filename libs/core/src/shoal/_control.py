"""The thread that serves a process's control events: what the engine wants looked up, subscribed or connected, and what the cluster tells it."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shoal_base.errors import Code

_log = logging.getLogger("shoal")

CONNECT_TIMEOUT_S = 10.0
# How long a close waits for the thread; it only ever waits inside the engine, which close() wakes.
_JOIN_S = 5.0

EventHandler = Callable[[str, bytes], None]


class Control:
    """Drains `engine.next_event()` until the engine is closed."""

    def __init__(self, engine: Any, node_dir: str, node_id: bytes, *,
                 on_exit: Callable[[bool, str], None] | None = None, on_raylet_lost: Callable[[str], None] | None = None,
                 on_cancel: Callable[[bytes, bool], None] | None = None) -> None:  # fmt: skip
        self._engine = engine
        self._node_dir = node_dir
        self._node_id = node_id
        self._on_exit = on_exit
        self._on_raylet_lost = on_raylet_lost
        self._on_cancel = on_cancel
        self._channels: dict[str, EventHandler] = {}
        self._thread = threading.Thread(target=self._run, name="shoal-control", daemon=True)
        self._handlers: dict[str, Callable[..., None]] = {
            "event": self._event, "subscribe": self._subscribe, "connect": self._connect, "lease_begin": self._lease_begin, "exit": self._exit,
            "actor_out_of_scope": self._actor_out_of_scope, "raylet_lost": self._raylet_lost, "call_failed": self._call_failed,
            "node_address": self._node_address, "cancel": self._cancel, "put_off": self._put_off,
        }  # fmt: skip

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        if threading.current_thread() is not self._thread:
            self._thread.join(_JOIN_S)

    def listen(self, channel: str, handler: EventHandler) -> None:
        """handler(channel, payload) for each event of the channel, on this thread: it must not wait."""
        self._channels[channel] = handler
        self._subscribe(channel)

    def stop_listening(self, channel: str) -> None:
        if self._channels.pop(channel, None) is not None:
            from shoal_raylet.v1 import raylet_pb2

            self._engine.call_async("raylet/Subscribe", raylet_pb2.SubscribeChannels(remove=[channel]).SerializeToString())

    def _run(self) -> None:
        next_event = self._engine.next_event
        while True:
            event = next_event()
            if event is None:
                return
            handler = self._handlers.get(event[0])
            if handler is None:
                _log.error("the engine reported %r, which this version does not know", event[0])
                continue
            try:
                handler(*event[1:])
            except Exception:
                if self._engine.closed:
                    continue  # shutdown() overtook the event; next_event() ends this thread
                # One bad event must not end the thread that serves all others.
                _log.exception("handling the control event %r failed", event[0])

    # -- one for each kind of event
    def _event(self, channel: str, payload: bytes) -> None:
        if channel == "waits":  # the raylet's question: it is on no channel that one subscribes to
            self._tell_waits(payload)
            return
        if channel.startswith("actor:"):
            self._actor_changed(payload)
        handler = self._channels.get(channel)
        if handler is not None:
            handler(channel, payload)

    def _actor_changed(self, payload: bytes) -> None:
        from shoal_gcs.v1 import gcs_pb2

        from . import _actor_creation as creation

        record = gcs_pb2.Actor.FromString(payload)
        creation.pending_creations.pop(record.actor_id, None)
        self._engine.actor_update(
            record.actor_id, record.state, record.worker_id or bytes(16), record.node_id or bytes(16),
            "" if record.node_id == self._node_id else record.address, record.incarnation, record.death_code, record.death_cause, record.death_error,
        )  # fmt: skip

    def _tell_waits(self, payload: bytes) -> None:
        from shoal_raylet.v1 import raylet_pb2

        query = raylet_pb2.TaskQuery.FromString(payload)
        answer = raylet_pb2.TaskWaitsReply(number=query.number)
        facts = self._engine.waits(query.task_id)
        if facts is not None:
            for object_id, worker_id, node_id in facts.pop("arguments"):
                answer.arguments.add(object_id=object_id, owner_worker_id=worker_id, owner_node_id=node_id)
            for field, value in facts.items():
                setattr(answer, field, value)
        self._engine.call_async("raylet/TellWaits", answer.SerializeToString())

    def _subscribe(self, channel: str) -> None:
        from shoal_raylet.v1 import raylet_pb2

        self._engine.call_async("raylet/Subscribe", raylet_pb2.SubscribeChannels(add=[channel]).SerializeToString())

    def _connect(self, token: int, address: str, target: bytes) -> None:
        # A peer that does not answer must not hold up the events behind it.
        threading.Thread(target=self._open, args=(token, address, target), name="shoal-connect", daemon=True).start()

    def _open(self, token: int, address: str, target: bytes) -> None:
        from shoal_base.auth import HandshakeRefused, connect_authenticated

        try:
            kind, secret = peer_secret(self._node_dir)
            sock = connect_authenticated(address, kind, secret, target, CONNECT_TIMEOUT_S)
        except Exception as error:
            # That it has ended is what its own node says, and nobody else: a node that does not answer may be stopped, or cut off for a moment.
            self._engine.adopt_connection(token, -1, f"{address}: {type(error).__name__}: {error}", isinstance(error, HandshakeRefused))
            return
        self._engine.adopt_connection(token, sock.detach())

    def _lease_begin(self, lease_id: int, context: bytes) -> None:
        """The executor asks the engine for the context when the lease's first task comes."""

    def _cancel(self, task_id: bytes, force: bool) -> None:
        if self._on_cancel is not None:
            self._on_cancel(task_id, force)

    def _put_off(self, pause_s: int, name: str, cause: str) -> None:
        # Who waits for it must know why it takes longer.
        _log.warning("%s is tried again in %d s, at no charge to its max_retries: %s", name, pause_s, cause)

    def _exit(self, force: bool, reason: str) -> None:
        if self._on_exit is not None:
            self._on_exit(force, reason)

    def _actor_out_of_scope(self, actor_id: bytes) -> None:
        from shoal_gcs.v1 import gcs_pb2

        if self._engine.closed:
            return  # the job ends with this process, and its actors with the job
        self._engine.call_async("gcs/ActorOutOfScope", gcs_pb2.ActorOutOfScopeRequest(actor_id=actor_id).SerializeToString())

    def _raylet_lost(self, why: str) -> None:
        # The engine's own close ends this connection as well.
        if self._on_raylet_lost is not None and not self._engine.closed:
            self._on_raylet_lost(why)

    def _node_address(self, node_id: bytes) -> None:
        threading.Thread(target=self._look_up, args=(node_id,), name="shoal-lookup", daemon=True).start()

    def _look_up(self, node_id: bytes) -> None:
        from shoal_raylet.v1 import raylet_pb2

        try:
            reply = self._engine.call("raylet/NodeAddress", raylet_pb2.NodeQuery(node_id=node_id).SerializeToString(), CONNECT_TIMEOUT_S)
        except Exception as error:
            _log.warning("the address of node %s cannot be had, and is asked for again: %s", node_id.hex(), error)
            return
        self._engine.node_address(node_id, raylet_pb2.NodeAddress.FromString(reply).address)

    def _call_failed(self, method: str, code: int, text: str, *_: Any) -> None:
        if method == "gcs/CreateActor":
            # Which of them it was is not said; the control store knows who exists. On a thread: it waits for answers.
            threading.Thread(target=self._check_creations, args=(code, text), name="shoal-creations", daemon=True).start()
        elif method in ("gcs/ActorOutOfScope", "gcs/KillActor"):
            _log.debug("%s failed: %s", method, text)
        else:
            _log.warning("%s failed (code %d): %s", method, code, text)

    def _check_creations(self, refusal: int, text: str) -> None:
        from shoal_gcs.v1 import gcs_pb2

        from . import _actor_creation as creation
        from ._calls import NOT_FOUND, RESOURCE_EXHAUSTED, CallFailed, call

        code = Code.LIMIT_REACHED if refusal == RESOURCE_EXHAUSTED else Code.ACTOR_DIED
        for actor_id in list(creation.pending_creations):
            try:
                call(self._engine, "gcs/GetActor", gcs_pb2.ActorQuery(actor_id=actor_id))
            except CallFailed as error:
                if error.code != NOT_FOUND:
                    continue
                creation.pending_creations.pop(actor_id, None)
                self._engine.actor_update(actor_id, creation.DEAD, bytes(16), bytes(16), "", 0, code, f"it could not be registered: {text}")
            except Exception as error:
                _log.warning("whether actor %s was registered cannot be told: %s", actor_id.hex(), error)


def peer_secret(node_dir: str) -> tuple[int, bytes]:
    """(kind, secret) for connections to other nodes: the node's secret if it may be read, else the user's token."""
    from shoal_base.auth import read_secret

    described = json.loads((Path(node_dir) / "node.json").read_text())
    directory = Path(described["secrets_dir"])
    node = directory / "node.secret"
    if node.exists():
        return 0, read_secret(node)
    return 1, read_secret(directory / "user.token")


def error_factory(code: int, message: str, object_id: bytes, task_name: str, actor_id: bytes) -> bytes:
    """The value (kind 3) for a failure that the engine found."""
    from ._failures import failure
    from ._serialization import serialize_error

    return serialize_error(failure(code, message, object_id, task_name, actor_id)).to_bytes()
