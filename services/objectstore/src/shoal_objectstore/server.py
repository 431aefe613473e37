"""The store's process: sockets, timers, threads. What it decides lies in `space` and `pulls`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any, cast

import msgspec
from msgspec.structs import replace
from shoal_base.auth import KIND_NODE, STORE_TARGET, connect_authenticated, read_secret
from shoal_base.connection import listen_unix
from shoal_base.errors import Code
from shoal_base.wire import Fetched, Free, NodeDied, Pull, Pulled, WorkerDied

from ._arena import ArenaError, Buffer, ObjectGone, Writable
from .clients import Client
from .config import Config
from .disk import Disk
from .events import Kind, Subscriptions
from .frees import Frees
from .join import Raylet
from .journal import Damaged, Location, OutOfReach
from .keeper import Full, Keeper
from .peer import CONNECT_S, PeerFailed, Peers, Serving
from .pulls import ARGUMENTS, GET, Answer, AskerLeft, CopyGone, Forget, Origin, Place, PullEnded, Pulls, PullWanted, StartPull
from .spiller import NO_SPILLING, Spiller, recover
from .spread import Spread, Turn
from .transfer import bring
from .watching import watch

_log = logging.getLogger(__name__)

# Limit: threads that bring objects here, a stream each.
MAX_STREAMS = 24
# Limit: of the capacity, this part is on its way here at once.
PULL_SHARE = 4
# How long a peer's FETCH waits for what is on disk here.
RESTORE_S = 25.0
# How long another store's thread waits until what it wants to be here is here.
PUSH_S = 60.0
# Limit: connections of other stores served at once, each by a thread. Every other node keeps at most peer.MAX_IDLE and those in use.
MAX_SERVING = 512
# A copy is pinned for so long after it came, since its asker must be able to get it; when room lacks, for so long.
GRACE_S, SHORT_GRACE_S = 10.0, 1.0


class _Grace(msgspec.Struct):
    """A pin for somebody who was told of an object and has not got it yet."""

    since: float
    pin: Buffer
    asker: int  # client; 0: not known
    gets: int  # how many objects it had read then


class ObjectStore:
    """One node's store."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.node_id = config.node_id
        self.keeper: Keeper
        self.pulled_bytes = self.pushed_bytes = self.pulled = self.pushed = 0
        self._clients: set[Client] = set()
        self._serving: set[Serving] = set()
        self._grace: deque[_Grace] = deque()
        self._grace_timer: asyncio.TimerHandle | None = None
        self._copies: dict[Location, tuple[Origin, int]] = {}
        self._copies_bytes = 0
        self.spiller: Spiller | None = None
        self._subscribed = asyncio.Event()
        self.subscriptions = Subscriptions(self._subscribed.set)
        self._spread = Spread()
        self._spreading = threading.Lock()
        self._early_deaths: list[WorkerDied | NodeDied] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._pool = ThreadPoolExecutor(MAX_STREAMS, thread_name_prefix="shoal-pull")
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
        self.keeper = Keeper(
            self._arena_fd, warm_bytes=self.config.warm_bytes, full_wait_s=self.config.full_wait_s, drop_copies=self._drop_copies, after_sweep=self._swept
        )
        self._pulls = Pulls(self.keeper.store.capacity_bytes // PULL_SHARE)
        if disk is not None:
            self.spiller = Spiller(self.keeper.store, self.keeper.own, disk, self.config.spill_threshold, self._primary_bytes, self.subscriptions.publish)
            self.spiller.adopt(records)
            self.keeper.spill_with(self.spiller.make_room, self.spiller.slow)
        self.frees = Frees(self.node_id, self.keeper, self.spiller, self._peers, self._forget_disk_copy, self._promote, self.config.owner_grace_s)
        for who in self._early_deaths:
            self._died(who)

    def _primary_bytes(self) -> int:
        s = self.keeper.stats
        return s["sealed_bytes"] + s["created_bytes"] + s["doomed_bytes"] - self._copies_bytes

    def _swept(self) -> None:
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
        if hasattr(self, "frees"):
            await self.frees.close()
        if self._peers is not None:
            self._peers.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._grace.clear()
        if self._grace_timer is not None:
            self._grace_timer.cancel()
        if self.spiller is not None:
            await self.spiller.close()
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
        self.keeper.ask(number, size_bytes, lambda extent: client.grant(request, extent), lambda code, text: client.refuse(request, code, text))

    def free_or_keep(self, client: Client, message: Free) -> None:
        self.frees.wanted(client, message)

    def for_peer(self, message: Free) -> None:
        self.frees.for_peer(message)

    def _died(self, who: WorkerDied | NodeDied) -> None:
        if not hasattr(self, "frees"):
            self._early_deaths.append(who)  # told before the arena is open
        elif isinstance(who, NodeDied):
            self.frees.node_died(who.node_id)
        else:
            self.frees.worker_died(who.worker_id)

    def _forget_disk_copy(self, location: Location) -> Location | None:
        origin = Origin(self.node_id, *location)
        copy = self._pulls.copy(origin)
        if copy is not None:
            self._copy_gone(origin)
        return copy

    def _promote(self, location: Location) -> None:
        """A copy here is the primary one from now on: it goes to disk when room lacks, as any other."""
        known = self._copies.get(location)
        if known is not None:
            self._copy_gone(known[0])

    def client_left(self, client: Client) -> bool:
        """Its connection ended. Whether another one that did watches the same process already."""
        for effect in self._pulls.handle(AskerLeft(client)):
            self._perform(effect)
        return any(c is not client and c.conn.closed and c.identity == client.identity for c in self._clients)

    def process_died(self, client: Client) -> None:
        if client.number is not None:
            self._spawn(self.keeper.reclaim(client.number, *client.identity))

    # -- pulling ----------------------------------------------------------------------------------------

    def pull_wanted(self, client: Client, pull: Pull) -> None:
        others = tuple(Place(Origin(node, slot, generation), address) for node, slot, generation, address in pull.others if node != self.node_id)
        origin = Origin(pull.node_id, pull.slot, pull.generation)
        self._pull(PullWanted(client, pull.id, origin, pull.object_id, pull.size, pull.address, pull.priority, others, pull.owner))

    async def pull(self, origin: Origin, object_id: bytes, size_bytes: int, address: str, priority: int = GET) -> Answer:
        """For callers without a connection: the gRPC contract."""
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._pull(PullWanted(future, 0, origin, object_id, size_bytes, address, priority))
        return await future

    def _pull(self, want: PullWanted) -> None:
        asker, origin = want.asker, want.origin
        location = (origin.slot, origin.generation)
        if origin.node_id == self.node_id and (self.spiller is None or self.spiller.evicted(location) is None):
            [here] = self.keeper.store.sealed([location])
            gone = f"object {want.object_id.hex()} is here no more (slot {origin.slot}, generation {origin.generation})"
            code, text = (Code.OK, "") if here else (Code.OBJECT_FREED, gone)
            self._answer(Answer(asker, want.request, code, origin.slot, origin.generation, text))
            return
        copy = self._pulls.copy(origin)
        if copy is not None and not self.keeper.store.sealed([copy])[0]:
            self._copy_gone(origin)
        for effect in self._pulls.handle(want):
            self._perform(effect)

    def _stay(self, location: Location, asker: int) -> None:
        """It stays for a moment, so that the asker can get it. One that has gone is asked for again."""
        with contextlib.suppress(ArenaError):
            self._grace.append(_Grace(self._loop.time(), self.keeper.own.get(*location), asker, self.keeper.store.gets(asker)))
            self._plan_end_of_grace()

    def _perform(self, effect: Any) -> None:
        match effect:
            case StartPull():
                self._spawn(self._run_pull(effect))
            case Answer():
                self._answer(effect)
            case Forget(slot, generation):
                self._forget_copy((slot, generation))

    def _answer(self, answer: Answer) -> None:
        if not answer.code:
            self._stay((answer.slot, answer.generation), answer.asker.number or 0 if isinstance(answer.asker, Client) else 0)
        if isinstance(answer.asker, Client):
            answer.asker.pulled(answer.request, answer.code, answer.slot, answer.generation, answer.text)
        elif isinstance(answer.asker, asyncio.Future) and not answer.asker.done():
            answer.asker.set_result(answer)

    async def _run_pull(self, start: StartPull) -> None:
        ended = PullEnded(start.origin, Code.SHUTTING_DOWN, text="the object store ends")
        try:
            ended = await (self._restore(start) if start.origin.node_id == self.node_id else self._transfer(start))
        except Damaged as error:
            ended = PullEnded(start.origin, Code.OBJECT_LOST, text=f"object {start.object_id.hex()} is lost: {error}")
            _log.error("%s", ended.text)
            self.subscriptions.publish(Kind.DAMAGED, (start.origin.slot, start.origin.generation), start.size_bytes, str(error))
        except OutOfReach as error:
            ended = PullEnded(start.origin, Code.FETCH_TIMED_OUT, text=f"object {start.object_id.hex()}: {error}")
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
        assert self._peers is not None
        try:
            await bring(self._peers, self._pool, start.places, start.object_id, view)
        except asyncio.CancelledError:
            # Its threads write into the object until they have noticed; the process ends, and its successor takes the object back.
            raise
        except BaseException:
            view.release()
            writable.abort()
            raise
        view.release()
        self.pulled += 1
        self.pulled_bytes += start.size_bytes
        return self._copy_made(start, writable, start.owner, Kind.PULLED)

    async def _restore(self, start: StartPull) -> PullEnded:
        assert self.spiller is not None
        location = (start.origin.slot, start.origin.generation)
        record = self.spiller.evicted(location)
        gone = PullEnded(start.origin, Code.OBJECT_FREED, text=f"object {start.object_id.hex()} was freed while it was read from disk")
        if record is None:
            return gone
        writable = await self.keeper.create(record.size)
        try:
            await self.spiller.restore(record, writable)
        except (Damaged, OutOfReach):
            writable.abort()
            # What was freed meanwhile has no bytes any more, and nobody asks for them.
            if self.spiller.evicted(location) is None:
                return gone
            raise
        if self.spiller.evicted(location) is None:
            writable.abort()
            return gone
        return self._copy_made(start, writable, record.owner, Kind.RESTORED)

    def _copy_made(self, start: StartPull, writable: Writable, owner: bytes, how: Kind) -> PullEnded:
        if owner:
            writable.own(owner)
        location = writable.seal()
        # It can be dropped at no cost, so it is not to be spilled.
        self.keeper.store.keep(*location)
        self._copies[location] = (start.origin, writable.nbytes)
        self._copies_bytes += writable.nbytes
        self.subscriptions.publish(how, (start.origin.slot, start.origin.generation), writable.nbytes, "slot {} generation {}".format(*location))
        return PullEnded(start.origin, Code.OK, *location)

    def _copy_gone(self, origin: Origin) -> None:
        location = self._pulls.copy(origin)
        if location is not None:
            self._forget_copy(location)
        self._pulls.handle(CopyGone(origin))

    def _forget_copy(self, location: Location) -> None:
        self._copies_bytes -= self._copies.pop(location, (None, 0))[1]
        self.keeper.store.keep_no_more(*location)

    def _drop_copies(self, missing: int) -> int:
        """Frees copies that nobody reads, the longest unused first. Returns how many."""
        self._end_grace(self._loop.time(), short=True)
        dropped = 0
        for origin, (slot, generation) in self._pulls.copies():
            if missing <= 0:
                break
            size = self.keeper.store.unpinned_size(slot, generation)
            if size is None:
                if not self.keeper.store.sealed([(slot, generation)])[0]:
                    self._copy_gone(origin)  # its owner freed it
                continue
            with contextlib.suppress(ObjectGone):
                self.keeper.own.free(slot, generation)
                missing -= size
                dropped += 1
            self._copy_gone(origin)
        return dropped

    def _end_grace(self, now: float, short: bool = False) -> None:
        while self._grace and self._grace[0].since <= now - GRACE_S:
            self._grace.popleft()
        if short:
            self._grace = deque(g for g in self._grace if not self._served(g, now))

    def _served(self, grace: _Grace, now: float) -> bool:
        """Whether its asker has it, as far as that can be seen: somebody pins it, or the asker has read something since. Who did not get it asks again."""
        store = self.keeper.store
        return grace.since <= now - SHORT_GRACE_S or store.pinned_by_others(grace.pin.location[0]) or (grace.asker > 0 and store.gets(grace.asker) > grace.gets)

    def _plan_end_of_grace(self) -> None:
        if self._grace and self._grace_timer is None:
            self._grace_timer = self._loop.call_later(GRACE_S / 10, self._grace_passed)

    def _grace_passed(self) -> None:
        self._grace_timer = None
        self._end_grace(self._loop.time())
        self._plan_end_of_grace()

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
    def pinned(self, object_id: bytes, origin: Origin) -> Iterator[tuple[int, int, int] | Fetched]:
        """For a peer's thread. What is on disk is brought back first: its checksum is that of the whole, and others may ask for it, too."""
        if origin.node_id == self.node_id:
            found = self._pin(origin.slot, origin.generation) or self._pin_restored(object_id, origin.slot, origin.generation)
        else:
            # Of another node, which has sent the peer here; or that node had this address before.
            copy = self._pulls.copy(origin)
            found = (self._pin(*copy) if copy is not None else None) or Fetched(Code.OBJECT_FREED, 0)
        if isinstance(found, Fetched):
            yield found
            return
        pin, slot, generation = found
        offset, size = self.keeper.store.location(slot, generation)
        yield self._arena_fd, offset, size
        del pin, found

    def _pin(self, slot: int, generation: int) -> tuple[Buffer, int, int] | None:
        try:
            return self.keeper.own.get(slot, generation), slot, generation
        except ArenaError:
            return None

    def _pin_restored(self, object_id: bytes, slot: int, generation: int) -> tuple[Buffer, int, int] | Fetched:
        freed = Fetched(Code.OBJECT_FREED, 0)
        if self.spiller is None or self.spiller.evicted((slot, generation)) is None:
            return freed
        record = self.spiller.evicted((slot, generation))
        size = record.size if record is not None else 0
        restoring = asyncio.run_coroutine_threadsafe(self.pull(Origin(self.node_id, slot, generation), object_id, size, "", ARGUMENTS), self._loop)
        try:
            answer = restoring.result(RESTORE_S)
        except TimeoutError:
            restoring.cancel()
            return Fetched(Code.FETCH_TIMED_OUT, 0, f"object {object_id.hex()} did not come from disk within {RESTORE_S:g} s")
        except CancelledError:
            return Fetched(Code.SHUTTING_DOWN, 0, "the object store ends")
        if answer.code:
            return Fetched(answer.code, 0, answer.text)
        return self._pin(answer.slot, answer.generation) or freed

    def bring(self, pull: Pull) -> Pulled:
        """For a peer's thread, which wants a copy to be here."""
        origin = Origin(pull.node_id, pull.slot, pull.generation)
        bringing = asyncio.run_coroutine_threadsafe(self.pull(origin, pull.object_id, pull.size, pull.address, pull.priority), self._loop)
        try:
            answer = bringing.result(PUSH_S)
        except TimeoutError:
            bringing.cancel()
            return Pulled(pull.id, Code.FETCH_TIMED_OUT, text=f"object {pull.object_id.hex()} did not come within {PUSH_S:g} s")
        except CancelledError:
            return Pulled(pull.id, Code.SHUTTING_DOWN, text="the object store ends")
        return Pulled(pull.id, answer.code, answer.slot, answer.generation, answer.text)

    async def push(self, pull: Pull, to: str, timeout_s: float) -> Pulled:
        """Has another node's store bring a copy there. Raises PeerFailed."""
        assert self._peers is not None and self._raylet is not None
        return await self._loop.run_in_executor(self._pool, self._peers.push, to, replace(pull, address=self._raylet.address), timeout_s)

    def turn(self, origin: Origin, size_bytes: int, reader: bytes, address: str) -> Turn:
        with self._spreading:
            return self._spread.ask(origin, size_bytes, reader, address, time.monotonic())

    def sent(self, origin: Origin, size_bytes: int, reader: bytes, part_bytes: int, last: bool) -> None:
        with self._spreading:
            self._spread.brought(origin, size_bytes, reader, part_bytes)
            self.pushed += last
            self.pushed_bytes += part_bytes

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
            "pulling_bytes": self._pulls.running_bytes,
            "pulls_queued": self._pulls.queued,
            "copies": self._pulls.known_copies,
            "copies_bytes": self._copies_bytes,
            "pushed": self.pushed,
            "pushed_bytes": self.pushed_bytes,
            "waiting": keeper.space.waiting,
            "waiting_bytes": keeper.space.waiting_bytes,
            "reclaimed": keeper.reclaimed,
            "orphans": self.frees.orphans,
            "told_elsewhere": self.frees.waiting_elsewhere,
            **(self.spiller.figures() if self.spiller is not None else NO_SPILLING),
        }
