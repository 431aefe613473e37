"""The raylet: sockets, processes and timers around the scheduler. What it decides is in `state`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import random
import socket
import time
from pathlib import Path
from typing import Any

from shoal_base import __version__
from shoal_base.addresses import format_address
from shoal_base.auth import STORE_TARGET, Secrets, read_secret
from shoal_base.connection import FrameConnection, Server, listen_unix
from shoal_base.errors import Code
from shoal_base.frames import Type
from shoal_base.wire import Bye, NodeDied
from shoal_gcs.v1 import gcs_pb2 as gcs

from . import effects as do
from . import events as on
from .blocked import BlockedPoll
from .calls import Calls
from .cgroups import MemoryGroups
from .channels import Channels
from .cluster import Cluster
from .config import Config
from .death import Deaths
from .drain import Drain
from .functions import Functions
from .gcs_client import GcsClient
from .heads import Heads
from .heartbeat import Heartbeat, Report
from .history import TaskHistory
from .jobs import Jobs
from .leases import LeaseSpec, Wish
from .listener import Listener
from .logs import LogTail
from .memory import ControlPages, make_arena
from .memory_watch import MemoryWatch
from .outbox import Outbox
from .peers import Peers
from .pool import EXIT_GRACE_S, Process, WorkerPool
from .publish import LogPublisher
from .register import Registrar
from .rpc import RawChannel, RpcFailed
from .service import Service, make_server
from .sessions import MAX_SPECS, Session, on_frame
from .show import metrics_text, pending_reason, pending_reasons, state_reply
from .state import Scheduler, Settings
from .store import DeadOwners, StoreClients
from .term import Term
from .unreturned import Unreturned
from .waits import Waits
from .workers import Phase

_log = logging.getLogger(__name__)
OWN_CHANNELS = ("jobs", "nodes", "pgs", "resources", "workers")
# A client that has connected and says nothing is sent away after this.
GREETING_TIMEOUT_S = 30.0
_REPORT_S = 0.02
_STALE_HEAD_PAUSE_S = 0.2
_TICK_WAITING_S, _TICK_S = 0.05, 0.5


def _another_cluster(address: str, mine: bytes, theirs: bytes) -> str:
    return (
        f"the control store at {address} is of cluster {theirs.hex()}, and this node of {mine.hex()}: "
        "its records are gone, or the address is another cluster's now"
    )


class Fenced(Exception):
    """The cluster has declared this node dead, or this node cannot know that it has not."""


class Raylet:
    def __init__(self, config: Config) -> None:
        self.config = config
        self.node_id = config.node_id
        self.logs_dir = Path(config.node_dir) / "logs"
        settings = Settings(
            config.node_id, config.worker_limit, prestart=config.prestart, infeasible_timeout_s=config.infeasible_timeout_s, autoscaler=config.autoscaler
        )
        self.scheduler = Scheduler(settings, config.resources, config.labels, config.gpus())
        self.sessions: dict[bytes, Session] = {}  # registered ones, by worker id
        self.connections: dict[FrameConnection, Session] = {}
        self.store_session: Session | None = None
        self.cluster_id = b""
        self.epoch = 0
        self.lease_s = 10.0
        self.exit_error = ""
        self.started_at = time.time()
        self._specs: dict[bytes, LeaseSpec] = {}
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._next_answer = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._report_timer: asyncio.TimerHandle | None = None
        self._tick_timer: asyncio.TimerHandle | None = None
        self._stop: asyncio.Future[str] | None = None
        self.heartbeat: Heartbeat | None = None
        self._hot: Server | None = None
        self.closing = False

    @property
    def address(self) -> str:
        return format_address(self.config.host, self.listener.port)

    @property
    def joined(self) -> bool:
        return self.heartbeat is not None

    @property
    def nodes(self) -> dict[bytes, gcs.Node]:
        return self.cluster.nodes

    # -- life -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Serves when it returns. Raises OSError, RpcFailed or Fenced naming what is wrong; then `close()` cleans up."""
        config = self.config
        self.loop = asyncio.get_running_loop()
        self._stop = self.loop.create_future()
        directory = Path(config.node_dir)
        for path in (directory, self.logs_dir, directory / "w"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        node_secret = read_secret(Path(config.secrets_dir) / "node.secret")
        self.secrets = Secrets.read(config.secrets_dir)
        watching = config.watch_settings()
        self.pool = WorkerPool(
            config.zygote_command(), str(directory), self._worker_exited, config.worker_start_timeout_s, self._worker_forked, config.zygote_timeout_s(),
            config.zygote,
        )
        self.pool.start()  # first: it imports while the rest is set up
        self.memory = MemoryWatch(self, watching, MemoryGroups(self.node_id.hex()[:12], directory, watching.cgroup))
        self.control = ControlPages()
        self.term = Term(self.control.lend_until)
        self.history = TaskHistory()
        self.arena = make_arena()
        self.outbox = Outbox(self.loop)
        self.heads = Heads(config.gcs)
        self.gcs = GcsClient(self.heads, node_secret, self.node_id, self._gcs_event)
        self.peers = Peers(node_secret)
        self.store = RawChannel(f"unix:{directory / 'store.grpc.sock'}", node_secret)
        self.store_clients = StoreClients(self.store)
        self.dead_owners = DeadOwners()
        self.functions = Functions(self.gcs)
        self.jobs = Jobs(self.gcs)
        self.calls = Calls(self)
        self.waits = Waits(self)
        self.service = Service(self)
        self.cluster = Cluster(self)
        self.deaths = Deaths(self)
        self.drain = Drain(self)
        self.unreturned = Unreturned()
        self.registrar = Registrar(self)
        self.publisher = LogPublisher(self)
        self.tail = LogTail(self.logs_dir, self.publisher.deliver, config.log_file_bytes, config.log_files_kept, config.log_kept_s)
        self.channels = Channels(self.gcs, OWN_CHANNELS, self.cluster.on_event)
        self.blocked = BlockedPoll(self)
        self.listener = Listener(config.host, config.port, self.secrets, str(directory / "raylet.grpc.sock"), self._find_target)
        self._grpc = make_server(self, self.secrets, str(directory / "raylet.grpc.sock"))
        await self._grpc.start()
        os.chmod(directory / "raylet.grpc.sock", 0o600)
        self._hot = await listen_unix(directory / "raylet.sock", self._connected)
        self.listener.start()
        self.feed(on.Started())  # workers come up while the GCS is asked; they are let in after it has answered
        await self.join()
        self.gcs.start()
        self.memory.start()
        self._tick()

    async def join(self) -> None:
        """Registers this node: at the start, and again with a GCS that has forgotten it."""
        node = gcs.Node(
            node_id=self.node_id, address=self.address, hostname=socket.gethostname(), resources=self.config.resources,
            available=self.scheduler.available(), labels=self.config.labels, alive=True, draining=bool(self.scheduler.draining), is_head=self.config.head,
            start_ms=int(self.started_at * 1000),
            node_dir=str(self.config.node_dir), object_store_bytes=self.config.object_store_bytes, name=self.config.name, version=__version__, pid=os.getpid(),
            python=platform.python_version(),
        )  # fmt: skip
        request = gcs.RegisterNodeRequest(node=node, live_actors=self.scheduler.live_actors(), live_groups=self.scheduler.live_groups())
        end = self.loop.time() + self.config.register_timeout_s
        await self.gcs.reachable(self.config.register_timeout_s)
        while True:
            asked_s, turn = time.monotonic(), self.heads.turn
            try:
                reply = await self.gcs.call("RegisterNode", request, gcs.RegisterNodeReply, max(1.0, end - self.loop.time()))
            except RpcFailed as error:
                if not error.unavailable or self.loop.time() > end:
                    raise
                continue
            if reply.gcs_epoch >= self.epoch:
                break
            self.heads.failed(self.heads.current, turn)  # it was replaced, and does not know it yet
            await asyncio.sleep(_STALE_HEAD_PAUSE_S)
        if self.cluster_id not in (b"", reply.cluster_id):
            self.fence(_another_cluster(self.gcs.address, self.cluster_id, reply.cluster_id))
            return
        self.cluster_id, self.epoch = reply.cluster_id, reply.gcs_epoch
        self.lease_s = reply.lease_ms / 1000 or self.lease_s
        self.term.answered(asked_s, self.lease_s)
        self.cluster.update(list(reply.nodes))
        if self.heartbeat is None:
            period_s = reply.heartbeat_ms / 1000 or 1.0
            assert self.secrets.node is not None
            self.heartbeat = Heartbeat(
                self.heads, self.secrets.node, self.node_id, self.config.resources, period_s, self.epoch, self._heard_from_thread,
                lambda asked_s: self.term.answered(asked_s, self.lease_s), lambda asked_s: self.term.refused(asked_s, time.monotonic(), self.lease_s),
            )  # fmt: skip
            self.heartbeat.offer(Report(self.scheduler.available()))
            self.heartbeat.start()
        else:
            self.heartbeat.resend()

    def stop(self, reason: str, error: str = "") -> None:
        if self._stop is not None and not self._stop.done():
            self.exit_error = error
            self._stop.set_result(reason)

    async def stopped(self) -> str:
        assert self._stop is not None
        return await self._stop

    async def close(self, reason: str = "the raylet ended") -> None:
        """Ends workers, says goodbye, leaves nothing behind. May be called however far `start()` came."""
        for timer in (self._report_timer, self._tick_timer):
            if timer is not None:
                timer.cancel()
        self._report_timer = self._tick_timer = None
        if self.heartbeat is not None:
            self.heartbeat.stop()
        self.closing = True
        if self._hot is not None:
            self._hot.close()
            for session in self.sessions.values():
                if session.process is not None:
                    session.conn.send(Type.EXIT, b"\1" + reason.encode())
        if hasattr(self, "pool"):
            await asyncio.gather(self.pool.stop(), self._leave(reason))
        for conn in list(self.connections):
            conn.close(Code.SHUTTING_DOWN, reason)
        for name in (
            "drain", "memory", "blocked", "registrar", "deaths", "publisher", "calls", "functions", "jobs", "listener", "store_clients", "gcs", "peers",
            "store",
        ):  # fmt: skip
            part = getattr(self, name, None)
            if part is not None:
                ended = part.close()
                if ended is not None:
                    await ended
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if hasattr(self, "_grpc"):
            await self._grpc.stop(0.2)
        if hasattr(self, "tail"):
            self.tail.close()
        if self.heartbeat is not None:
            await asyncio.to_thread(self.heartbeat.join, 2.0)
        for conn in list(self.connections):
            conn.abort(reason)
        if hasattr(self, "arena"):
            self.control.close()
            self.history.close()
            os.close(self.arena)
        for name in ("raylet.sock", "raylet.grpc.sock"):
            with contextlib.suppress(OSError):
                os.unlink(Path(self.config.node_dir) / name)

    async def _leave(self, reason: str) -> None:
        if self.heartbeat is None or self.exit_error:
            return
        request = gcs.UnregisterNodeRequest(node_id=self.node_id, reason=reason)
        with contextlib.suppress(RpcFailed):  # the GCS will see the node's lease end
            await self.gcs.call("UnregisterNode", request, gcs.Empty, 1.0)

    def spawn(self, coroutine: Any) -> None:
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- the scheduler ------------------------------------------------------------------------------

    def feed(self, event: on.Event) -> None:
        version = self.scheduler.core.version
        effects = self.scheduler.handle(event, self.loop.time())
        for effect in effects:
            _EFFECTS[type(effect)](self, effect)
        # A tick in which nothing happened is no news.
        news = effects or self.scheduler.waiting or self.scheduler.core.version != version or type(event) is not on.Ticked
        if news and self._report_timer is None and self.heartbeat is not None:
            self._report_timer = self.loop.call_later(_REPORT_S, self._report)
        if self.scheduler.waiting:
            self.blocked.start()

    def _report(self) -> None:
        self._report_timer = None
        if self.heartbeat is not None:
            now = self.scheduler
            self.heartbeat.offer(Report(now.available(), now.reclaimable(self.loop.time()), now.queued_leases(), now.pending_totals()))

    def _tick(self) -> None:
        self.feed(on.Ticked())
        busy = self.scheduler.waiting or self.scheduler.core.guests
        self._tick_timer = self.loop.call_later(_TICK_WAITING_S if busy else _TICK_S, self._tick)
        self.cluster.check_silence()
        self.drain.look()
        self._look_for_idle_leases()
        self.tail.forget()

    def _look_for_idle_leases(self) -> None:
        now = self.loop.time()
        if not self.unreturned.is_due(now):
            return
        idle = []
        for lease, worker, asked_back in self.scheduler.doubtful():
            session = self.sessions.get(worker)
            if session is not None and session.record >= 0 and not self.control.runs_a_task(session.record):
                idle.append((lease, self.control.read(session.record).started, asked_back))
        for lease in self.unreturned.late(now, idle):
            self.feed(on.LeaseIdle(lease))

    def parse_spec(self, raw: bytes) -> LeaseSpec:
        """Raises ValueError."""
        spec = self._specs.get(raw)
        if spec is None:
            spec = LeaseSpec.parse(raw)
            if len(self._specs) >= MAX_SPECS:
                self._specs.pop(next(iter(self._specs)))
            self._specs[raw] = spec
        return spec

    def refresh_blocked(self) -> None:
        """Before somebody gets lent CPUs: who goes on again has them back."""
        if self.scheduler.core.blocked:
            self.blocked.look()

    def runs_a_task(self, worker_id: bytes) -> bool:
        session = self.sessions.get(worker_id)
        return session is not None and session.record >= 0 and self.control.runs_a_task(session.record)

    # -- answers to calls ------------------------------------------------------------------------------

    def expect(self) -> tuple[int, asyncio.Future[Any]]:
        self._next_answer += 1
        future = self._answers[self._next_answer] = self.loop.create_future()
        return self._next_answer, future

    async def answer(self, number: int, future: asyncio.Future[Any], timeout_s: float | None) -> Any:
        if future.done():  # most are answered at once
            return future.result()
        try:
            return await asyncio.wait_for(future, timeout_s)
        finally:
            self._answers.pop(number, None)

    def _resolve(self, number: int, value: Any) -> bool:
        future = self._answers.pop(number, None)
        if future is None or future.done():
            return False
        future.set_result(value)
        return True

    # -- effects --------------------------------------------------------------------------------------

    def _do_fork(self, effect: do.ForkWorker) -> None:
        self.pool.fork(effect.fork, effect.environment)

    def _do_begin(self, effect: do.BeginLease) -> None:
        session = self.sessions.get(effect.worker_id)
        if session is not None:
            self.outbox.begin(session.conn, effect)

    def _do_grant(self, effect: do.GrantLease) -> None:
        session = self.sessions.get(effect.client)
        if session is not None:
            self.outbox.grant(session.conn, effect)

    def _do_refuse(self, effect: do.RefuseLease) -> None:
        session = self.sessions.get(effect.client)
        if session is not None:
            self.outbox.refuse(session.conn, effect)

    def _do_reclaim(self, effect: do.ReclaimLease) -> None:
        if effect.client_node in (b"", self.node_id):
            session = self.sessions.get(effect.client)
            if session is not None:
                self.outbox.reclaim(session.conn, effect)
        else:
            self.cluster.reclaim_lease(effect)

    def _do_answer_lease(self, effect: do.AnswerLease) -> None:
        address = effect.address or (self.address if effect.lease_id else "")
        if not self._resolve(effect.request, self.outbox.lease_reply(effect, address, self.scheduler.available())) and effect.lease_id:
            # Whoever asked has given up: nobody would ever return this lease.
            self.loop.call_soon(self.feed, on.LeaseReturned(effect.lease_id, effect.node_id))

    def _do_request_remote(self, effect: do.RequestRemoteLease) -> None:
        self.spawn(self.cluster.request_lease(effect))

    def _do_return_remote(self, effect: do.ReturnRemoteLease) -> None:
        self.cluster.return_lease(effect)

    def _do_create_actor(self, effect: do.CreateActorOn) -> None:
        session = self.sessions.get(effect.worker_id)
        if session is not None:
            session.conn.send(Type.ACTOR_CREATE, effect.creation_task)

    def _do_answer_actor(self, effect: do.AnswerActor) -> None:
        self._resolve(effect.request, self.outbox.actor_reply(effect))

    def _do_answer_bundles(self, effect: do.AnswerBundles) -> None:
        self._resolve(effect.request, effect.reason)

    def _do_exit(self, effect: do.ExitWorker) -> None:
        session = self.sessions.get(effect.worker_id)
        if session is not None:
            self.outbox.exit(session.conn, effect)
        if not effect.patient:
            self.pool.kill_after(effect.worker_id, EXIT_GRACE_S)

    def _do_kill(self, effect: do.KillWorker) -> None:
        self.pool.kill(effect.worker_id)

    def _do_tell_died(self, effect: do.TellWorkerDied) -> None:
        self.deaths.tell(effect)

    # -- connections ------------------------------------------------------------------------------------

    def _connected(self, sock: socket.socket) -> None:
        conn = FrameConnection(sock, self._on_frame, self._on_closed)
        session = self.connections[conn] = Session(self, conn)
        self.loop.call_later(GREETING_TIMEOUT_S, self._still_silent, session)

    def _still_silent(self, session: Session) -> None:
        if not session.registering and not session.closed:
            session.conn.close(Code.UNREACHABLE, f"no REGISTER came within {GREETING_TIMEOUT_S:g} s")

    def _on_frame(self, conn: FrameConnection, type_: int, payload: bytes, fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)
        session = self.connections.get(conn)
        if session is not None:
            on_frame(session, type_, payload)

    def _on_closed(self, conn: FrameConnection, reason: str) -> None:
        session = self.connections.pop(conn, None)
        if session is None or session.closed:
            return
        session.closed = True
        self.channels.drop(session)
        self.registrar.closed(session, reason)

    def register(self, session: Session, payload: bytes) -> None:
        self.registrar.register(session, payload)

    def broadcast(self, type_: int, payload: bytes) -> None:
        """To every client that will live on: at a job's end, hundreds would tell hundreds. One that may end in its own time waits for others until then."""
        workers = self.scheduler.core.workers.by_id
        for session in self.sessions.values():
            worker = workers.get(session.worker_id)
            if worker is None or worker.phase is not Phase.ENDING or worker.patient:
                session.conn.send(type_, payload)

    def _find_target(self, target: bytes) -> FrameConnection | str:
        if target == STORE_TARGET:
            return self.store_session.conn if self.store_session else f"node {self.node_id.hex()[:12]} has no object store at the moment"
        session = self.sessions.get(target)
        return session.conn if session else f"no worker {target.hex()} is on node {self.node_id.hex()[:12]}"

    def _worker_forked(self, process: Process) -> None:
        self.memory.forked(process)

    def _worker_exited(self, process: Process, status: int | None, text: str) -> None:
        self.deaths.exited(process, status, text)

    # -- the cluster --------------------------------------------------------------------------------------

    def _gcs_event(self, channel: str, payload: bytes) -> None:
        try:
            self.channels.publish(channel, payload)
        except Exception:
            _log.exception("an event of channel %s could not be taken", channel)

    def _heard_from_thread(self, reply: gcs.HeartbeatReply, address: str) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self.loop.call_soon_threadsafe(self._heard, reply, address)

    def _heard(self, reply: gcs.HeartbeatReply, address: str) -> None:
        if reply.cluster_id not in (b"", self.cluster_id):
            self.fence(_another_cluster(address, self.cluster_id, reply.cluster_id))
        else:
            self.cluster.heard(reply.known, reply.gcs_epoch, address)

    def head_changed(self, address: str, epoch: int) -> None:
        """A control store says that it leads: its heartbeat's answer proves it."""
        if self.heartbeat is not None and epoch > self.epoch:
            _log.info("the head at %s says that it leads, epoch %d", address, epoch)
            self.cluster.head_began()
            self.heartbeat.go_to(address)

    def owner_died(self, type_: int, payload: bytes) -> None:
        """WORKER_DIED or NODE_DIED, for everybody here, the store included."""
        self.broadcast(type_, payload)
        self.dead_owners.died(type_, payload)

    def node_lost(self, node_id: bytes, cause: str) -> None:
        self.feed(on.NodeLost(node_id, cause))
        self.owner_died(Type.NODE_DIED, NodeDied(node_id, cause).pack())

    def job_finished(self, job_id: bytes) -> None:
        self.feed(on.JobFinished(job_id))
        self.functions.forget_job(job_id)
        self.jobs.forget(job_id)

    def fence(self, why: str) -> None:
        """Ends the workers now: what they do no longer counts, and their actors may live elsewhere already."""
        if self.closing:  # our own goodbye comes back as news
            return
        _log.error("this node is fenced: %s", why)
        for process in list(self.pool.by_worker.values()):
            self.pool.kill(process.worker_id)
        self.broadcast(Type.BYE, Bye(Code.FENCED, why).pack())
        self.stop(why, error=why)

    # -- seen from outside ----------------------------------------------------------------------------------

    def state_reply(self) -> Any:
        return state_reply(self)

    def pending_reason(self, wish: Wish) -> Any:
        return pending_reason(self, wish)

    def pending_reasons(self, client: bytes) -> Any:
        return pending_reasons(self, client)

    def metrics_text(self) -> str:
        return metrics_text(self)

    def pick_peers(self, count: int) -> list[gcs.Node]:
        others = [node for node in self.nodes.values() if node.alive and node.node_id != self.node_id]
        return random.sample(others, min(count, len(others)))


_EFFECTS: dict[type, Any] = {
    do.ForkWorker: Raylet._do_fork,
    do.BeginLease: Raylet._do_begin,
    do.GrantLease: Raylet._do_grant,
    do.RefuseLease: Raylet._do_refuse,
    do.ReclaimLease: Raylet._do_reclaim,
    do.AnswerLease: Raylet._do_answer_lease,
    do.RequestRemoteLease: Raylet._do_request_remote,
    do.ReturnRemoteLease: Raylet._do_return_remote,
    do.CreateActorOn: Raylet._do_create_actor,
    do.AnswerActor: Raylet._do_answer_actor,
    do.AnswerBundles: Raylet._do_answer_bundles,
    do.ExitWorker: Raylet._do_exit,
    do.KillWorker: Raylet._do_kill,
    do.TellWorkerDied: Raylet._do_tell_died,
}
