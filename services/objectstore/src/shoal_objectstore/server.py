"""The store's process: sockets, timers, threads. What it decides lies in `space` and `pulls`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from shoal_base.auth import KIND_NODE, STORE_TARGET, connect_authenticated, read_secret
from shoal_base.connection import listen_unix
from shoal_base.errors import Code
from shoal_base.wire import Free, Pull

from ._arena import ArenaError, Buffer, ObjectGone
from .clients import Client
from .config import Config
from .join import Raylet
from .keeper import Full, Keeper
from .peer import CONNECT_S, PeerFailed, Peers, Serving
from .pulls import Answer, AskerLeft, CopyGone, Origin, PullEnded, Pulls, PullWanted, StartPull

_log = logging.getLogger(__name__)

# Transfers to here at once; more wait for a thread.
MAX_PULLING = 8
# Limit: connections of other stores served at once, each by a thread. Every other node keeps at most peer.MAX_IDLE and those in use.
MAX_SERVING = 512
# A copy is pinned for so long after it came: its asker must be able to get it.
GRACE_S = 10.0
# FREE for another node is tried so often; then it is that node's loss, or the node is gone.
FREE_TRIES = 3
FREE_PAUSE_S = 1.0
# Limit: frees on their way to other nodes.
MAX_FREES_AWAY = 100_000


class ObjectStore:
    """One node's store."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.node_id = config.node_id
        self.keeper: Keeper
        self.pulled_bytes = self.pushed_bytes = self.pulled = self.pushed = 0
        self._pulls = Pulls()
        self._clients: set[Client] = set()
        self._serving: set[Serving] = set()
        self._grace: deque[tuple[float, Buffer]] = deque()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._frees_away = 0
        self._pool = ThreadPoolExecutor(MAX_PULLING, thread_name_prefix="shoal-pull")
        self._messages = ThreadPoolExecutor(2, thread_name_prefix="shoal-free")
        self._stopped: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._secret = b""
        self._arena_fd = -1
        self._raylet: Raylet | None = None
        self._listener: Any = None
        self._grpc: Any = None

    # -- life -----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Raises OSError, JoinFailed, ArenaError, AuthenticationFailed."""
        self._loop = asyncio.get_running_loop()
        self._secret = read_secret(self.config.secrets_dir / "node.secret")
        self._peers = Peers(self.node_id, self._connect)
        self._raylet = Raylet(self._routed, lambda reason: self.stop(f"the raylet has gone: {reason}"))
        self._arena_fd = await self._raylet.join(self.config.raylet_path, self.node_id)
        self.keeper = Keeper(self._arena_fd, warm_bytes=self.config.warm_bytes, full_wait_s=self.config.full_wait_s, drop_copies=self._drop_copies)
        self._listener = await listen_unix(self.config.node_dir / "store.sock", self._connected)
        from .rpc import start_grpc

        self._grpc = await start_grpc(self, self._secret, self.config.node_dir / "store.grpc.sock")
        self._spawn(self.keeper.rounds())
        self._spawn(self.keeper.warming())
        self._spawn(self._grace_rounds())

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
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for serving in list(self._serving):
            serving.stop()
        for client in list(self._clients):
            client.close("the object store ends")
        if self._raylet is not None:
            self._raylet.close()
        if self._grpc is not None:
            await self._grpc.stop(0.2)
            with contextlib.suppress(OSError):
                os.unlink(self.config.node_dir / "store.grpc.sock")
        if hasattr(self, "_peers"):
            self._peers.close()
        for pool in (self._pool, self._messages):
            pool.shutdown(wait=False, cancel_futures=True)
        self._grace.clear()
        if hasattr(self, "keeper"):
            await self.keeper.close()
        if self._arena_fd >= 0:
            os.close(self._arena_fd)
            self._arena_fd = -1

    def _spawn(self, work: Any) -> None:
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
        self.keeper.ask(number, size_bytes, lambda extent: client.grant(request, extent), lambda text: client.refuse(request, Code.ARENA_FULL, text))

    def free(self, free: Free) -> None:
        if not free.address or free.node_id == self.node_id:
            self.free_here(free.slots)
        elif self._frees_away + len(free.slots) <= MAX_FREES_AWAY:
            self._frees_away += len(free.slots)
            self._spawn(self._free_away(free))
        else:
            _log.warning("%d frees for other nodes wait already: %d for %s are dropped", self._frees_away, len(free.slots), free.address)

    def free_here(self, slots: tuple[tuple[int, int], ...]) -> None:
        for slot, generation in slots:
            with contextlib.suppress(ArenaError):
                self.keeper.own.free(slot, generation)

    async def _free_away(self, free: Free) -> None:
        try:
            for attempt in range(FREE_TRIES):
                try:
                    await self._loop.run_in_executor(self._messages, self._peers.free, free.address, free.node_id, free.slots)
                    return
                except (PeerFailed, OSError) as error:
                    if attempt + 1 == FREE_TRIES:
                        _log.info("%d frees for the node at %s are dropped: %s", len(free.slots), free.address, error)
                    else:
                        await asyncio.sleep(FREE_PAUSE_S * (attempt + 1))
        finally:
            self._frees_away -= len(free.slots)

    def client_left(self, client: Client) -> None:
        for effect in self._pulls.handle(AskerLeft(client)):
            self._perform(effect)

    def process_died(self, client: Client) -> None:
        if client.number is not None:
            self._spawn(self.keeper.reclaim(client.number, *client.identity))

    # -- pulling ----------------------------------------------------------------------------------------

    def pull_wanted(self, client: Client, pull: Pull) -> None:
        self._pull(client, pull.id, Origin(pull.node_id, pull.slot, pull.generation), pull.object_id, pull.size, pull.address)

    async def pull(self, origin: Origin, object_id: bytes, size_bytes: int, address: str) -> Answer:
        """For callers without a connection: the gRPC contract."""
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._pull(future, 0, origin, object_id, size_bytes, address)
        return await future

    def _pull(self, asker: Client | asyncio.Future[Answer], request: int, origin: Origin, object_id: bytes, size_bytes: int, address: str) -> None:
        if origin.node_id == self.node_id:
            here = self._still_here((origin.slot, origin.generation))
            gone = f"object {object_id.hex()} is here no more (slot {origin.slot}, generation {origin.generation})"
            code, text = (Code.OK, "") if here else (Code.OBJECT_FREED, gone)
            self._answer(Answer(asker, request, code, origin.slot, origin.generation, text))
            return
        copy = self._pulls.copy(origin)
        if copy is not None and not self._still_here(copy):
            self._pulls.handle(CopyGone(origin))
        for effect in self._pulls.handle(PullWanted(asker, request, origin, object_id, size_bytes, address)):
            self._perform(effect)

    def _still_here(self, location: tuple[int, int]) -> bool:
        """Whether it is; if so it stays for a moment, so that the asker can get it."""
        try:
            buffer = self.keeper.own.get(*location)
        except ArenaError:
            return False
        self._grace.append((self._loop.time() + GRACE_S, buffer))
        return True

    def _perform(self, effect: Any) -> None:
        match effect:
            case StartPull():
                self._spawn(self._run_pull(effect))
            case Answer():
                self._answer(effect)

    def _answer(self, answer: Answer) -> None:
        if isinstance(answer.asker, Client):
            answer.asker.pulled(answer.request, answer.code, answer.slot, answer.generation, answer.text)
        elif isinstance(answer.asker, asyncio.Future) and not answer.asker.done():
            answer.asker.set_result(answer)

    async def _run_pull(self, start: StartPull) -> None:
        ended = PullEnded(start.origin, Code.SHUTTING_DOWN, text="the object store ends")
        try:
            ended = await self._transfer(start)
        except Full as error:
            ended = PullEnded(start.origin, error.code, text=str(error))
        except PeerFailed as error:
            ended = PullEnded(start.origin, error.code, text=str(error))
        except (OSError, ArenaError) as error:
            ended = PullEnded(start.origin, Code.OBJECT_LOST, text=f"object {start.object_id.hex()} could not be brought from {start.address}: {error}")
        finally:
            for effect in self._pulls.handle(ended):
                self._perform(effect)

    async def _transfer(self, start: StartPull) -> PullEnded:
        writable = await self.keeper.create(start.size_bytes)
        view = memoryview(writable)
        try:
            await asyncio.shield(
                fetching := self._loop.run_in_executor(
                    self._pool, self._peers.fetch, start.address, start.object_id, start.origin.slot, start.origin.generation, view
                )
            )
        except asyncio.CancelledError:
            # The thread writes into the object until it has noticed; the process ends, and its successor takes the object back.
            fetching.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise
        except BaseException:
            view.release()
            writable.abort()
            raise
        view.release()
        location = writable.seal()
        self.pulled += 1
        self.pulled_bytes += start.size_bytes
        self._still_here(location)
        return PullEnded(start.origin, Code.OK, *location)

    def _drop_copies(self, missing: int) -> int:
        """Frees copies that nobody reads, the longest unused first. Returns how many."""
        self._end_grace(self._loop.time())
        dropped = 0
        for origin, (slot, generation) in self._pulls.copies():
            if missing <= 0:
                break
            size = self.keeper.store.unpinned_size(slot, generation)
            if size is None:
                continue
            with contextlib.suppress(ObjectGone):
                self.keeper.own.free(slot, generation)
                missing -= size
                dropped += 1
            self._pulls.handle(CopyGone(origin))
        return dropped

    def _end_grace(self, now: float) -> None:
        while self._grace and self._grace[0][0] <= now:
            self._grace.popleft()

    async def _grace_rounds(self) -> None:
        while True:
            await asyncio.sleep(GRACE_S / 10)
            self._end_grace(self._loop.time())

    # -- serving other stores -----------------------------------------------------------------------------

    def _routed(self, sock: socket.socket) -> None:
        if len(self._serving) >= MAX_SERVING:
            _log.error("%d connections of other stores are open: one more is refused", len(self._serving))
            sock.close()
            return
        serving = Serving(sock, self.node_id, self)
        self._serving.add(serving)
        # A daemon: it lies in recv, and nothing of it matters once the process ends.
        threading.Thread(target=self._serve, args=(serving,), name="shoal-serve", daemon=True).start()

    def _serve(self, serving: Serving) -> None:
        try:
            serving.run()
        finally:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._serving.discard, serving)

    @contextlib.contextmanager
    def pinned(self, slot: int, generation: int) -> Iterator[tuple[int, int, int] | None]:
        try:
            pin = self.keeper.own.get(slot, generation)
        except ArenaError:
            yield None
            return
        offset, size = self.keeper.store.location(slot, generation)
        yield self._arena_fd, offset, size
        del pin

    def sent(self, size_bytes: int) -> None:
        self.pushed += 1
        self.pushed_bytes += size_bytes

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
            "pulled": self.pulled,
            "pulled_bytes": self.pulled_bytes,
            "pulling": self._pulls.running,
            "pushed": self.pushed,
            "pushed_bytes": self.pushed_bytes,
            "waiting": keeper.space.waiting,
            "waiting_bytes": keeper.space.waiting_bytes,
            "reclaimed": keeper.reclaimed,
        }
