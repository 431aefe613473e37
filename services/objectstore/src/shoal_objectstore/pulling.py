"""Brings objects here, from other nodes or from this node's disk, and looks after the copies: the shell of `pulls` and `copies`. On the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace
from shoal_base.errors import Code
from shoal_base.wire import Pull

from ._arena import ArenaError, NoSlot, Writable
from .clients import Client
from .copies import Copies
from .events import Kind, Subscriptions
from .grace import Grace
from .journal import Damaged, Location, OutOfReach
from .keeper import Full, Keeper
from .peer import PeerFailed, Peers
from .pulls import GET, Answer, AskerLeft, CopyGone, Effect, Forget, Origin, Place, PullEnded, Pulls, PullWanted, StartPull
from .transfer import Parts, Together, bring

if TYPE_CHECKING:
    from .spiller import Spiller

_log = logging.getLogger(__name__)

# Limit: of the capacity, this part is on its way here at once from other nodes, and as much from disk.
PULL_SHARE = 4
# A copy of which nobody may know is dropped once nobody has read it for so long.
IDLE_S = 30


class Pulling:
    def __init__(
        self, node_id: bytes, keeper: Keeper, spiller: Spiller | None, peers: Peers | None, pool: ThreadPoolExecutor, subscriptions: Subscriptions,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:  # fmt: skip
        """`pool`: threads that bring parts. `peers`: None in a store alone."""
        self.pulls = Pulls(keeper.store.capacity_bytes // PULL_SHARE, node_id)
        self.copies = Copies()
        self.grace = Grace(keeper.store, keeper.own)
        self.pulled = self.pulled_bytes = self.forgotten = 0
        self._node_id = node_id
        self._keeper = keeper
        self._spiller = spiller
        self._peers = peers
        self._pool = pool
        self._together = Together(peers, pool) if peers is not None else None
        self._subscriptions = subscriptions
        self._spawn = spawn
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._arriving: dict[Origin, tuple[Location, Parts]] = {}

    def close(self) -> None:
        """Whoever waits is told that the store ends, and so is whoever asks from now on."""
        self._closed = True
        for origin in self.pulls.wanted:
            self._handle(_store_ends(origin))

    def adopt(self) -> None:
        """What a predecessor made: of what, and who knows of it, nobody can say."""
        for location, size in self._keeper.store.copies().items():
            self._made(location, size)

    # -- asked for --------------------------------------------------------------------------------------

    def wanted(self, client: Client, pull: Pull) -> None:
        others = tuple(Place(Origin(node, slot, generation), address) for node, slot, generation, address in pull.others if node != self._node_id)
        origin = Origin(pull.node_id, pull.slot, pull.generation)
        self._want(PullWanted(client, pull.id, origin, pull.object_id, pull.size, pull.address, pull.priority, others, pull.owner))

    async def pull(self, origin: Origin, object_id: bytes, size_bytes: int, address: str, priority: int = GET) -> Answer:
        """For callers without a connection: the gRPC contract, and other stores."""
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._want(PullWanted(future, 0, origin, object_id, size_bytes, address, priority))
        return await future

    def _want(self, want: PullWanted) -> None:
        asker, origin = want.asker, want.origin
        location = (origin.slot, origin.generation)
        record = self._spiller.evicted(location) if origin.node_id == self._node_id and self._spiller is not None else None
        if record is not None:
            want = replace(want, size_bytes=record.size)
        elif origin.node_id == self._node_id:
            [here] = self._keeper.store.sealed([location])
            gone = f"object {want.object_id.hex()} is here no more (slot {origin.slot}, generation {origin.generation})"
            code, text = (Code.OK, "") if here else (Code.OBJECT_FREED, gone)
            self._answer(Answer(asker, want.request, code, origin.slot, origin.generation, text))
            return
        copy = self.pulls.copy(origin)
        if copy is not None and not self._keeper.store.sealed([copy])[0]:
            self._gone(copy)
        self._handle(want)

    def asker_left(self, client: Client) -> None:
        """Its connection ended, or its process."""
        self._handle(AskerLeft(client))
        if client.number:
            self.copies.asker_left(client.number, self._keeper.store.gets(client.number), self._loop.time())

    def node_died(self, node_id: bytes) -> None:
        """What comes from there fails now, and not when its silence has lasted: those who wait know of the death, and ask for another place."""
        if self._peers is None:
            return
        gone: set[str] = set()
        for _, parts in self._arriving.values():
            gone |= parts.give_up(node_id)
        self._peers.cut(node_id, gone)
        for origin in self.pulls.waiting_for(node_id):
            self._handle(PullEnded(origin, Code.UNREACHABLE, text=f"node {node_id.hex()} died"))

    def arriving(self, origin: Origin) -> tuple[Location, Parts] | None:
        """Where it is written to, and what of it is there. For any thread: once there is none, its copy is known, if it came."""
        return self._arriving.get(origin)

    def _handle(self, event: PullWanted | PullEnded | AskerLeft) -> None:
        for effect in self.pulls.handle(event):
            self._perform(effect)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case StartPull() if self._closed:
                self._loop.call_soon(self._handle, _store_ends(effect.origin))
            case StartPull():
                self._spawn(self._run(effect))
            case Answer():
                self._answer(effect)
            case Forget(slot, generation):
                self.promote((slot, generation))

    def _answer(self, answer: Answer) -> None:
        if not answer.code:
            location, asker = (answer.slot, answer.generation), answer.asker.number or 0 if isinstance(answer.asker, Client) else 0
            self.copies.told(location, asker, self._keeper.store.gets(asker), self._loop.time())
            self.grace.begin(location, asker)
        if isinstance(answer.asker, Client):
            answer.asker.pulled(answer.request, answer.code, answer.slot, answer.generation, answer.text)
        elif isinstance(answer.asker, asyncio.Future) and not answer.asker.done():
            answer.asker.set_result(answer)

    # -- brought ----------------------------------------------------------------------------------------

    async def _run(self, start: StartPull) -> None:
        ended = _store_ends(start.origin)
        try:
            ended = await (self._restore(start) if start.origin.node_id == self._node_id else self._transfer(start))
        except Damaged as error:
            ended = PullEnded(start.origin, Code.OBJECT_LOST, text=f"object {start.object_id.hex()} is lost: {error}")
            _log.error("%s", ended.text)
            self._subscriptions.publish(Kind.DAMAGED, (start.origin.slot, start.origin.generation), start.size_bytes, str(error))
        except OutOfReach as error:
            ended = PullEnded(start.origin, Code.FETCH_TIMED_OUT, text=f"object {start.object_id.hex()}: {error}")
        except Full as error:
            ended = PullEnded(start.origin, error.code, text=str(error))
        except PeerFailed as error:
            ended = PullEnded(start.origin, error.code, text=str(error))
        except NoSlot as error:
            ended = PullEnded(start.origin, Code.ARENA_FULL, text=f"object {start.object_id.hex()} cannot be brought here now: {error}")
        except (OSError, ArenaError) as error:
            ended = PullEnded(start.origin, Code.OBJECT_LOST, text=f"object {start.object_id.hex()} could not be brought from {start.address}: {error}")
        finally:
            self._handle(ended)
            if (arriving := self._arriving.pop(start.origin, None)) is not None:
                arriving[1].end()

    async def _transfer(self, start: StartPull) -> PullEnded:
        writable = await self._keeper.create(start.size_bytes)
        view = memoryview(writable)
        assert self._peers is not None
        parts = Parts(len(view), start.places)
        self._arriving[start.origin] = writable.location, parts
        try:
            await bring(self._peers, self._pool, parts, start.object_id, view, self._together)
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
        return self._copied(start, writable, start.owner, Kind.PULLED)

    async def _restore(self, start: StartPull) -> PullEnded:
        assert self._spiller is not None
        location = (start.origin.slot, start.origin.generation)
        record = self._spiller.evicted(location)
        gone = PullEnded(start.origin, Code.OBJECT_FREED, text=f"object {start.object_id.hex()} was freed while it was read from disk")
        if record is None:
            return gone
        writable = await self._keeper.create(record.size)
        try:
            await self._spiller.restore(record, writable)
        except (Damaged, OutOfReach):
            writable.abort()
            # What was freed meanwhile has no bytes any more, and nobody asks for them.
            if self._spiller.evicted(location) is None:
                return gone
            raise
        if self._spiller.evicted(location) is None:
            writable.abort()
            return gone
        return self._copied(start, writable, record.owner, Kind.RESTORED)

    def _copied(self, start: StartPull, writable: Writable, owner: bytes, how: Kind) -> PullEnded:
        if owner:
            writable.own(owner)
        location = writable.seal()
        self._made(location, writable.nbytes, start.origin)
        self._subscriptions.publish(how, (start.origin.slot, start.origin.generation), writable.nbytes, "slot {} generation {}".format(*location))
        return PullEnded(start.origin, Code.OK, *location)

    # -- copies -----------------------------------------------------------------------------------------

    def _made(self, location: Location, size_bytes: int, origin: Origin | None = None) -> None:
        # It can be dropped at no cost, so it is not to be spilled.
        self._keeper.store.keep(*location)
        self.copies.made(location, size_bytes, origin)

    def _gone(self, location: Location) -> None:
        origin = self.copies.origin(location)
        if origin is not None and self.pulls.copy(origin) == location:
            self.pulls.handle(CopyGone(origin))
        self.copies.gone([location])
        self._keeper.store.keep_no_more(*location)

    def disk_copy(self, location: Location) -> Location | None:
        """The copy of what was on disk there, which its owner wants no more; forgotten now."""
        copy = self.pulls.copy(Origin(self._node_id, *location))
        if copy is not None:
            self._gone(copy)
        return copy

    def promote(self, location: Location) -> None:
        """A copy here is an object like any other from now on, to a successor, too: it goes to disk when room lacks, and ends with its owner's word."""
        self._keeper.store.make_primary(*location)
        self._gone(location)

    def drop_copies(self, missing: int) -> int:
        """Frees copies that nobody reads until so many bytes are free: those of which nobody may know, then the longest unused first. Returns how many."""
        self.grace.end(self._loop.time(), short=True)
        dropped = 0
        for location in [*self.copies.doubtful, *(location for _, location in self.pulls.copies())]:
            if missing <= 0:
                break
            size = self._keeper.store.unpinned_size(*location)
            if size is not None:
                self._drop(location)
                missing -= size
                dropped += 1
        return dropped

    def _drop(self, location: Location) -> None:
        with contextlib.suppress(ArenaError):
            self._keeper.own.free(*location)
        self._gone(location)

    def look_round(self) -> None:
        """Once a second: forgets what owners have freed, and drops what nobody may know of and nobody reads."""
        copies = self.copies.locations
        for location in itertools.compress(copies, (not sealed for sealed in self._keeper.store.sealed(copies))):
            self._gone(location)
        for location in self.copies.doubtful:
            idle_s = self._keeper.store.idle_s(*location)
            if idle_s is not None and idle_s >= IDLE_S:
                self._drop(location)
                self.forgotten += 1

    # -- seen from outside ------------------------------------------------------------------------------

    def figures(self) -> dict[str, int]:
        return {
            "pulled": self.pulled,
            "pulled_bytes": self.pulled_bytes,
            "pulling": self.pulls.running,
            "pulling_bytes": self.pulls.running_bytes,
            "pulls_queued": self.pulls.queued,
            "copies": len(self.copies),
            "copies_bytes": self.copies.bytes,
            "copies_forgotten": self.forgotten,
        }


def _store_ends(origin: Origin) -> PullEnded:
    return PullEnded(origin, Code.SHUTTING_DOWN, text="the object store ends")
