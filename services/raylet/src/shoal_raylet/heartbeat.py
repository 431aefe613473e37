"""Heartbeats on a thread of their own: a busy loop must not look like a dead node."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping

import grpc
import msgspec
from shoal_base.auth import sync_client_interceptors
from shoal_gcs.v1 import gcs_pb2 as gcs
from shoal_gcs.v1.calls import leader_of

from .heads import Heads
from .rpc import GCS, OPTIONS

_log = logging.getLogger(__name__)
# Limit: reports a second.
_LEAST_PAUSE_S = 0.1
# A change below this part of the total is told with the next heartbeat only.
_CHANGE = 0.05
# Between a head that does not answer and the next one.
_NEXT_HEAD_S = 0.5
# How long a host may take to refuse a connection.
_REFUSAL_S = 0.5


class Report(msgspec.Struct):
    available: Mapping[str, int] = msgspec.field(default_factory=dict)
    lent: Mapping[str, int] = msgspec.field(default_factory=dict)
    queued_leases: int = 0
    pending: list[tuple[Mapping[str, int], int, str]] = msgspec.field(default_factory=list)


def differs(old: Report, new: Report, total: Mapping[str, int]) -> bool:
    """Worth telling before the next heartbeat."""
    if (old.queued_leases == 0) != (new.queued_leases == 0):
        return True
    return _moved(old.available, new.available, total) or _moved(old.lent, new.lent, total)


def _moved(old: Mapping[str, int], new: Mapping[str, int], total: Mapping[str, int]) -> bool:
    for name in {*old, *new}:
        before, units = old.get(name, 0), new.get(name, 0)
        if before != units and (abs(before - units) >= _CHANGE * total.get(name, units) or not before or not units):
            return True
    return False


def refuses(address: str) -> bool:
    """Its host answers for it: no process listens there. One that is cut off, or whose host is gone, says nothing at all."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REFUSAL_S).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


class Heartbeat(threading.Thread):
    """`on_reply(reply, address)` is called on this thread, and `on_known(when it was asked)` when the control store counts this node in,
    `on_refused(when they were asked)` when the hosts of all heads say that none runs there.

    An answer of an epoch before `epoch` is none: that head was replaced, and does not know it yet.
    """

    def __init__(
        self, heads: Heads, secret: bytes, node_id: bytes, total: Mapping[str, int], period_s: float, epoch: int,
        on_reply: Callable[[gcs.HeartbeatReply, str], None], on_known: Callable[[float], None],
        on_refused: Callable[[float], None],
    ) -> None:  # fmt: skip
        super().__init__(name="shoal-heartbeat", daemon=True)
        self.period_s = period_s
        self.epoch = epoch
        self.last_answer = time.monotonic()
        self._heads = heads
        self._channel: grpc.Channel | None = None
        self._secret = secret
        self._node_id = node_id
        self._total = total
        self._on_reply = on_reply
        self._on_known = on_known
        self._on_refused = on_refused
        self._wake = threading.Event()
        self._ended = threading.Event()
        self._latest = Report()
        self._sent = Report()
        self._resend = True

    def offer(self, report: Report) -> None:
        """The loop's current state; sent soon when it differs enough."""
        self._latest = report
        if differs(self._sent, report, self._total):
            self._wake.set()

    def resend(self) -> None:
        """The GCS forgot: tell everything again."""
        self._resend = True
        self._wake.set()

    def go_to(self, address: str) -> None:
        """That head leads now; what waits for another one is given up. From any thread."""
        self._heads.lead(address)
        channel = self._channel
        if channel is not None:
            channel.close()
        self._wake.set()

    def silent_s(self) -> float:
        return time.monotonic() - self.last_answer

    def stop(self) -> None:
        self._ended.set()
        self._wake.set()

    def run(self) -> None:
        while not self._ended.is_set():
            turn, address = self._heads.turn, self._heads.current
            leader = ""
            channel = self._channel = grpc.insecure_channel(address, options=[*OPTIONS, ("grpc.use_local_subchannel_pool", 1)])
            try:
                self._serve(grpc.intercept_channel(channel, *sync_client_interceptors("node", self._secret)), turn, address)
            except grpc.RpcError as error:
                leader = leader_of(error)
                if self._heads.turn == turn:
                    _log.warning("no heartbeat at the GCS %s: %s", address, error.code().name)
            except ValueError:  # the channel was closed between two beats
                pass
            finally:
                channel.close()
            if self._heads.turn == turn and self._heads.current == address:
                if not leader:
                    self._look_for_heads()
                self._heads.failed(address, turn, leader)
                self._ended.wait(_LEAST_PAUSE_S if leader else min(_NEXT_HEAD_S, self.period_s))

    def _look_for_heads(self) -> None:
        asked = time.monotonic()
        if all(refuses(address) for address in self._heads.known):
            self._on_refused(asked)

    def _serve(self, channel: grpc.Channel, turn: int, address: str) -> None:
        """Until that head does not answer, or is not the one to ask any more."""
        beat = channel.unary_unary(
            GCS + "Heartbeat", request_serializer=gcs.HeartbeatRequest.SerializeToString, response_deserializer=gcs.HeartbeatReply.FromString
        )
        while not self._ended.is_set() and self._heads.turn == turn and self._heads.current == address:
            began = time.monotonic()
            reply = beat(self._request(), timeout=max(1.0, self.period_s * 2))
            self._on_reply(reply, address)
            if reply.gcs_epoch < self.epoch:
                _log.warning("the head at %s has epoch %d, and %d has begun elsewhere: its answer does not count", address, reply.gcs_epoch, self.epoch)
                return
            self.epoch = reply.gcs_epoch
            self.last_answer = time.monotonic()
            if reply.known and not reply.term_over:
                self._on_known(began)
            if self._ended.wait(_LEAST_PAUSE_S):
                return
            self._wake.wait(max(0.0, self.period_s - (time.monotonic() - began)))
            self._wake.clear()

    def _request(self) -> gcs.HeartbeatRequest:
        report, self._sent = self._latest, self._latest
        self._resend = False
        request = gcs.HeartbeatRequest(node_id=self._node_id, resources_changed=bool(report.available), queued_leases=report.queued_leases)
        for name, units in report.available.items():
            request.available[name] = units
        for name, units in report.lent.items():
            request.lent[name] = units
        for resources, count, reason in report.pending[:100]:
            row = request.pending.add(count=count, reason=reason)
            for name, units in resources.items():
                row.resources[name] = units
        return request
