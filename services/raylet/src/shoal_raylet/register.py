"""REGISTER: who may be a client, and what each kind of client leaves behind."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError
from shoal_base import __version__
from shoal_base.errors import Code
from shoal_base.frames import PeerKind, Type
from shoal_base.wire import WorkerDied

from . import events as on
from .death import session_running
from .memory import arena_is_formatted
from .pool import ORPHAN_GRACE_S, Process
from .rpc import RpcFailed
from .sessions import Session
from .v1 import raylet_pb2 as pb

if TYPE_CHECKING:
    from .server import Raylet

_log = logging.getLogger(__name__)
STORE_TOKEN = "store"
_POLL_S = 0.002
# How long clients wait for the store to lay the arena out, and for the GCS to take this node.
ENTER_TIMEOUT_S = 30.0


class Registrar:
    def __init__(self, raylet: Raylet) -> None:
        self._raylet = raylet
        self._waiting: list[tuple[Session, pb.RegisterWorker]] = []
        self._waiting_since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._processes: dict[int, Session] = {}  # by fork
        self._lingering: dict[int, Session] = {}  # by pidfd: drivers that closed their socket and live on

    def register(self, session: Session, payload: bytes) -> None:
        try:
            message = pb.RegisterWorker.FromString(payload)
        except DecodeError as wrong:
            self._refuse(session, f"REGISTER is no RegisterWorker: {wrong}")
            return
        error = self._check(session, message)
        if error:
            self._refuse(session, error)
        elif session.is_store:
            self._accept_store(session)
        elif not self._may_enter():
            self._wait(session, message)
        else:
            self._accept(session, message)

    def _check(self, session: Session, message: pb.RegisterWorker) -> str:
        if session.mismatch:
            return session.mismatch
        if message.version and message.version.split(".")[:2] != __version__.split(".")[:2]:
            return f"shoal {message.version} cannot join a node of shoal {__version__}: install the same version on both"
        if session.is_store:
            return "" if message.start_token == STORE_TOKEN else "the store's start token is wrong"
        if message.worker_id != session.worker_id:
            return "HELLO and REGISTER name different workers"
        if session.worker_id in self._raylet.sessions:
            return f"worker {session.worker_id.hex()} is registered already"
        if session.kind not in (PeerKind.DRIVER, PeerKind.WORKER) or message.driver != session.is_driver:
            return f"HELLO says kind {session.kind}, REGISTER says driver={message.driver}"
        return ""

    def _refuse(self, session: Session, why: str) -> None:
        _log.warning("refused a client (pid %d): %s", session.pid, why)
        session.conn.send(Type.REGISTERED, pb.Registered(error=why).SerializeToString())
        session.conn.close(Code.UNAUTHENTICATED if not session.mismatch else Code.WIRE_MISMATCH, why)

    # -- before this node is whole ---------------------------------------------------------------------

    def _may_enter(self) -> bool:
        return self._raylet.joined and (not self._raylet.config.wait_for_store or arena_is_formatted(self._raylet.arena))

    def _wait(self, session: Session, message: pb.RegisterWorker) -> None:
        if not self._waiting:
            self._waiting_since = self._raylet.loop.time()
            self._timer = self._raylet.loop.call_later(_POLL_S, self._look)
        self._waiting.append((session, message))

    def _look(self) -> None:
        self._timer = None
        waiting = self._waiting
        if self._may_enter():
            self._waiting = []
            for session, message in waiting:
                if not session.closed:
                    self._accept(session, message)
        elif self._raylet.loop.time() - self._waiting_since > ENTER_TIMEOUT_S:
            self._waiting = []
            missing = "object store did not start" if self._raylet.joined else "control store did not answer"
            for session, _message in waiting:
                self._refuse(session, f"the node's {missing} within {ENTER_TIMEOUT_S:g} s; see the logs in {self._raylet.logs_dir}")
        else:
            self._timer = self._raylet.loop.call_later(_POLL_S, self._look)

    # -- acceptance ----------------------------------------------------------------------------------

    def _accept_store(self, session: Session) -> None:
        old = self._raylet.store_session
        if old is not None and not old.closed:
            old.conn.close(Code.FENCED, "another store process has registered")
        session.registered = True
        self._raylet.store_session = session
        self._send_registered(session, pb.Registered())
        self._raylet.dead_owners.store_began(session.conn)

    def _accept(self, session: Session, message: pb.RegisterWorker) -> None:
        if session.is_driver:
            self._raylet.spawn(self._accept_driver(session, message))
            return
        process = self._raylet.pool.register(message.start_token, session.worker_id)
        if process is None:
            self._refuse(session, "its start token is not one this raylet gave out, or it came too late")
            return
        if not self._take_numbers(session):
            return
        session.process = process
        session.pid = process.pid or session.pid
        self._processes[process.fork] = session
        self._finish(session, pb.Registered())
        self._raylet.tail.add(session.worker_id)
        self._raylet.feed(on.WorkerRegistered(process.fork, session.worker_id, session.pid))

    async def _accept_driver(self, session: Session, message: pb.RegisterWorker) -> None:
        raylet = self._raylet
        namespace = message.namespace
        session.job = message.job_id
        if not message.job_id:
            try:
                session.job, namespace = await raylet.jobs.add(message, session.worker_id, raylet.node_id, session.pid)
            except RpcFailed as error:
                self._refuse(session, f"the control store did not make a job: {error.text}")
                return
        if session.closed:  # it went while the GCS was asked
            raylet.jobs.finish(session.job)
            return
        if not self._take_numbers(session):
            raylet.jobs.finish(session.job)
            return
        try:
            session.pidfd = os.pidfd_open(session.pid)
        except OSError:
            session.conn.close(Code.WORKER_CRASHED, "its process is gone")
            return
        # A forked child may hold the socket open: the process itself is watched.
        raylet.loop.add_reader(session.pidfd, self._driver_gone, session)
        self._finish(session, pb.Registered(job_id=session.job, namespace=namespace))

    def _take_numbers(self, session: Session) -> bool:
        record, client = self._raylet.control.take(), self._raylet.store_clients.take()
        if record is None or client is None:
            if record is not None:
                self._raylet.control.give_back(record)
            if client is not None:
                self._raylet.store_clients.gone(client)
            self._refuse(session, "this node has as many workers and drivers as it can have (4095): end some, or add a node")
            return False
        session.record, session.store_client = record, client
        return True

    def _finish(self, session: Session, reply: pb.Registered) -> None:
        session.registered = True
        self._raylet.sessions[session.worker_id] = session
        self._send_registered(session, reply)
        self._raylet.cluster.tell_of_draining(session)

    def _send_registered(self, session: Session, reply: pb.Registered) -> None:
        raylet, config = self._raylet, self._raylet.config
        reply.MergeFrom(
            pb.Registered(
                node_id=raylet.node_id, node_address=raylet.address, node_dir=str(config.node_dir), session=raylet.cluster_id.hex(),
                control_record=max(session.record, 0), store_client=max(session.store_client, 0), arena_bytes=config.object_store_bytes,
                gcs_address=raylet.gcs.address, node_resources=config.resources, node_labels=config.labels, http_address=config.http_address,
                node_ip=config.host,
            )
        )  # fmt: skip
        fds = (raylet.arena, raylet.control.fd) if session.process is None else (raylet.arena, raylet.control.fd, raylet.history.fd)
        session.conn.send(Type.REGISTERED, reply.SerializeToString(), fds=fds)

    # -- ends ----------------------------------------------------------------------------------------

    def of_process(self, process: Process) -> Session | None:
        return self._processes.get(process.fork)

    def closed(self, session: Session, reason: str) -> None:
        """Its connection has ended."""
        raylet = self._raylet
        if raylet.store_session is session:
            raylet.store_session = None
        if not session.registered or session.is_store:
            return
        running = session_running(raylet, session)
        raylet.sessions.pop(session.worker_id, None)
        raylet.feed(on.ClientGone(session.worker_id, running))
        if session.process is not None:
            raylet.pool.kill_after(session.worker_id, ORPHAN_GRACE_S)
            return
        _log.info("driver of job %s (pid %d) went: %s", session.job.hex(), session.pid, reason)
        raylet.jobs.finish(session.job)
        raylet.job_finished(session.job)
        raylet.dead_owners.died(Type.WORKER_DIED, WorkerDied(session.worker_id, raylet.node_id, bytes(16), Code.JOB_FINISHED, reason).pack())
        if session.pidfd >= 0:
            # It may live on and read views of the arena: its pins go with its process.
            self._lingering[session.pidfd] = session

    def _driver_gone(self, session: Session) -> None:
        self._raylet.loop.remove_reader(session.pidfd)
        os.close(session.pidfd)
        self._lingering.pop(session.pidfd, None)
        session.pidfd = -1
        if not session.closed:
            session.conn.abort("its process has ended")
            session.closed = True
            self._raylet.connections.pop(session.conn, None)
            self._raylet.channels.drop(session)
            self.closed(session, "its process has ended")
        self.release(session)

    def clients(self) -> Iterator[Session]:
        """Whose processes live, connected or not."""
        seen = set()
        for session in (*self._raylet.sessions.values(), *self._processes.values(), *self._lingering.values()):
            if session.worker_id not in seen:
                seen.add(session.worker_id)
                yield session

    def release(self, session: Session) -> None:
        """Its process has ended: nobody writes its record or touches the arena for it any more."""
        if session.process is not None:
            self._processes.pop(session.process.fork, None)
        self._raylet.control.give_back(session.record)
        self._raylet.store_clients.gone(session.store_client)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for session in [*self._raylet.sessions.values(), *self._lingering.values()]:
            if session.pidfd >= 0:
                self._raylet.loop.remove_reader(session.pidfd)
                os.close(session.pidfd)
                session.pidfd = -1
