"""The store's process: its parts, made, connected and ended. What it decides lies in `space`, `pulls`, `copies`, `away` and `owners`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from msgspec.structs import replace
from shoal_base.auth import KIND_NODE, STORE_TARGET, connect_authenticated, read_secret
from shoal_base.connection import listen_unix
from shoal_base.errors import Code
from shoal_base.wire import Free, NodeDied, Pull, Pulled, WorkerDied

from .clients import Client
from .config import Config
from .disk import Disk
from .events import Subscriptions
from .frees import Frees
from .join import Raylet
from .keeper import Keeper
from .neighbours import Neighbours
from .peer import CONNECT_S, Peers
from .pulling import Pulling
from .pulls import MAX_RUNNING
from .spiller import NO_SPILLING, Spiller, recover
from .transfer import MAX_STREAMS
from .watching import watch

_log = logging.getLogger(__name__)

# Limit: threads that bring objects here, a stream each. Enough for all, since one that waits for a part that is on its way to its source keeps its thread.
MAX_BRINGING = MAX_RUNNING * MAX_STREAMS


class ObjectStore:
    """One node's store."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.node_id = config.node_id
        self.keeper: Keeper
        self.pulling: Pulling
        self.neighbours: Neighbours
        self._clients: set[Client] = set()
        self.spiller: Spiller | None = None
        self._subscribed = asyncio.Event()
        self.subscriptions = Subscriptions(self._subscribed.set)
        self._early_deaths: list[WorkerDied | NodeDied] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._pool = ThreadPoolExecutor(MAX_BRINGING, thread_name_prefix="shoal-pull")
        self._stopped: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._secret = b""
        self._peers: Peers | None = None
        self._arena_fd = -1
        self._raylet: Raylet | None = None
        self._listener: Any = None
        self._grpc: Any = None

    # -- life -----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Raises OSError, JoinFailed, ArenaError, AuthenticationFailed."""
        self._loop = asyncio.get_running_loop()
        self._secret = read_secret(self.config.secrets_dir / "node.secret")
        self._raylet = Raylet(self._routed, lambda reason: self.stop(f"the raylet has gone: {reason}"), self._died)
        self._arena_fd = await self._raylet.join(self.config.raylet_path, self.node_id)
        self._peers = Peers(self.node_id, self._connect, self._raylet.address)
        self._open()
        self._spawn(self.keeper.warming())  # before anybody can ask
        self._listener = await listen_unix(self.config.node_dir / "store.sock", self._connected)
        from .rpc import start_grpc

        self._grpc = await start_grpc(self, self._secret, self.config.node_dir / "store.grpc.sock")
        self._begin_rounds()

    def _begin_rounds(self) -> None:
        self._spawn(self.keeper.rounds())
        if self.spiller is not None:
            self._spawn(self.spiller.write_ahead())
            self._spawn(self.spiller.tidy_far_away())
        self._spawn(watch(self.keeper.store, self.subscriptions, self._subscribed))
        self._spawn(self.frees.rounds())

    def _open(self) -> None:
        """Raises OSError, ArenaError."""
        disk = Disk(self.config.spill_dirs, self.config.node_dir, self.node_id, self.config.spill_local_bytes) if self.config.spill else None
        records = recover(disk, self._arena_fd) if disk is not None else []
        config, publish = self.config, self.subscriptions.publish
        self.keeper = Keeper(
            self._arena_fd, warm_bytes=config.warm_bytes, full_wait_s=config.full_wait_s,
            drop_copies=lambda missing: self.pulling.drop_copies(missing), after_sweep=self._swept,
        )  # fmt: skip
        if disk is not None:
            self.spiller = Spiller(self.keeper.store, self.keeper.own, disk, config.spill_threshold, self._primary_bytes, publish)
            self.spiller.adopt(records)
            self.keeper.spill_with(self.spiller.make_room, self.spiller.slow)
        self.pulling = Pulling(self.node_id, self.keeper, self.spiller, self._peers, self._pool, self.subscriptions, self._spawn)
        self.pulling.adopt()
        self.frees = Frees(self.node_id, self.keeper, self.spiller, self._peers, self.pulling.disk_copy, self.pulling.promote, config.owner_grace_s)
        self.neighbours = Neighbours(self.node_id, self._arena_fd, self.keeper, self.spiller, self.pulling, self.frees)
        for who in self._early_deaths:
            self._died(who)

    def _primary_bytes(self) -> int:
        s = self.keeper.stats
        return s["sealed_bytes"] + s["created_bytes"] + s["doomed_bytes"] - self.pulling.copies.bytes

    def _swept(self) -> None:
        self.pulling.look_round()
        if self.spiller is not None:
            self.spiller.look_round()

    def _connect(self, address: str) -> socket.socket:
        return connect_authenticated(address, KIND_NODE, self._secret, STORE_TARGET, CONNECT_S)

    def stop(self, reason: str) -> None:
        if not self._stopped.done():
            self._stopped.set_result(reason)

    async def stopped(self) -> str:
        return await self._stopped

    async def close(self) -> None:
        if self._listener is not None:
            self._listener.close()
        if hasattr(self, "pulling"):
            self.pulling.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if hasattr(self, "neighbours"):
            self.neighbours.close()
        for client in list(self._clients):
            client.close("the object store ends")
        if self._raylet is not None:
            self._raylet.close()
        if self._grpc is not None:
            await self._grpc.stop(0.2)
            with contextlib.suppress(OSError):
                os.unlink(self.config.node_dir / "store.grpc.sock")
        if hasattr(self, "frees"):
            await self.frees.close()
        if self._peers is not None:
            self._peers.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        if hasattr(self, "pulling"):
            self.pulling.grace.close()
        if hasattr(self, "keeper"):
            await self.keeper.close()  # before the spiller, which it asks for room
        if self.spiller is not None:
            await self.spiller.close()
        if self._arena_fd >= 0:
            os.close(self._arena_fd)
            self._arena_fd = -1

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("a part of the store failed", exc_info=task.exception())

    # -- clients ----------------------------------------------------------------------------------------

    def _connected(self, sock: socket.socket) -> None:
        self._clients.add(Client(sock, self.node_id, self, self._clients.discard))

    def client_number(self, pid: int) -> int | None:
        """The client that attached from this process. In a process with several, the latest number."""
        numbers = [number for number, row in self.keeper.store.clients().items() if number and row[0] == pid]
        return numbers[-1] if numbers else None

    def identity(self, client: int) -> tuple[int, int]:
        return self.keeper.store.identity(client)

    def extent_wanted(self, client: Client, request: int, size_bytes: int) -> None:
        number = client.number
        if number is None:
            client.refuse(request, Code.BAD_FRAME, "EXTENT_REQUEST by a process that has not attached the arena")
            return
        self.keeper.ask(number, size_bytes, lambda extent: client.grant(request, extent), lambda code, text: client.refuse(request, code, text))

    def free_or_keep(self, client: Client, message: Free) -> None:
        self.frees.wanted(client, message)

    def _died(self, who: WorkerDied | NodeDied) -> None:
        if not hasattr(self, "frees"):
            self._early_deaths.append(who)  # told before the arena is open
        elif isinstance(who, NodeDied):
            self.pulling.node_died(who.node_id)
            self.neighbours.node_died(who.node_id)
            self.frees.node_died(who.node_id)
        else:
            self.frees.worker_died(who.worker_id)

    def client_left(self, client: Client) -> bool:
        """Its connection ended. Whether another one that did watches the same process already."""
        self.pulling.asker_left(client)
        return any(c is not client and c.conn.closed and c.identity == client.identity for c in self._clients)

    def process_died(self, client: Client) -> None:
        self.pulling.asker_left(client)
        if client.number is not None:
            self._spawn(self.keeper.reclaim(client.number, *client.identity))

    # -- other nodes --------------------------------------------------------------------------------------

    def _routed(self, sock: socket.socket) -> None:
        if hasattr(self, "neighbours"):
            self.neighbours.connected(sock)
        else:
            sock.close()  # before the arena is open: it tries again

    def pull_wanted(self, client: Client, pull: Pull) -> None:
        self.pulling.wanted(client, pull)

    async def push(self, pull: Pull, to: str, timeout_s: float) -> Pulled:
        """Has another node's store bring a copy there. Raises PeerFailed."""
        assert self._peers is not None and self._raylet is not None
        return await self._loop.run_in_executor(self._pool, self._peers.push, to, replace(pull, address=self._raylet.address), timeout_s)

    # -- seen from outside ----------------------------------------------------------------------------------

    def figures(self) -> dict[str, int]:
        keeper, stats = self.keeper, cast(dict[str, int], dict(self.keeper.stats))
        rows = keeper.store.clients().values()
        return {
            **stats,
            "resident_bytes": keeper.store.resident_bytes,
            "free_warm_bytes": keeper.store.free_warm_bytes,
            "puts": sum(r[1] for r in rows),
            "put_bytes": sum(r[2] for r in rows),
            "gets": sum(r[3] for r in rows),
            "get_bytes": sum(r[4] for r in rows),
            **self.pulling.figures(),
            "pushed": self.neighbours.pushed,
            "pushed_bytes": self.neighbours.pushed_bytes,
            "waiting": keeper.space.waiting,
            "waiting_bytes": keeper.space.waiting_bytes,
            "reclaimed": keeper.reclaimed,
            "orphans": self.frees.orphans,
            "told_elsewhere": self.frees.waiting_elsewhere,
            **(self.spiller.figures() if self.spiller is not None else NO_SPILLING),
        }
