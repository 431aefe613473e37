"""What the stores of other nodes may ask of this one: its objects, its frees, copies that are to be here. One thread for each of their connections."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future
from operator import itemgetter
from typing import TYPE_CHECKING

from shoal_base.errors import Code
from shoal_base.wire import Fetched, Free, Pull, Pulled

from ._arena import ArenaError, Buffer
from .journal import Location
from .peer import Bytes, Serving
from .pulls import ARGUMENTS, Answer, Origin
from .spread import Spread, Turn

if TYPE_CHECKING:
    from .frees import Frees
    from .keeper import Keeper
    from .pulling import Pulling
    from .spiller import Spiller

_log = logging.getLogger(__name__)

# How long a peer's FETCH waits for what is on disk here.
RESTORE_S = 25.0
# How long a peer's FETCH waits for a part that is on its way here. Who wants it asks again, and elsewhere, too.
PART_S = 1.0
# How long another store's thread waits until what it wants to be here is here.
PUSH_S = 60.0
# Limit: connections of other stores, each served by a thread. Every other node keeps at most peer.MAX_IDLE and those in use; the one longest idle makes room
# for a new one, and who wants it again opens another.
MAX_SERVING = 512


class Neighbours:
    """Every method but `connected`, `node_died` and `close` is for any thread."""

    def __init__(self, node_id: bytes, arena_fd: int, keeper: Keeper, spiller: Spiller | None, pulling: Pulling, frees: Frees) -> None:
        self.pushed = self.pushed_bytes = 0
        self._node_id = node_id
        self._arena_fd = arena_fd
        self._keeper = keeper
        self._spiller = spiller
        self._pulling = pulling
        self._frees = frees
        self._loop = asyncio.get_running_loop()
        self._serving: set[Serving] = set()
        self._spread = Spread()
        self._spreading = threading.Lock()

    def __len__(self) -> int:
        """How many connections are open."""
        return len(self._serving)

    def connected(self, sock: socket.socket) -> None:
        if len(self._serving) >= MAX_SERVING:
            idle = min(((since, serving) for serving in self._serving if (since := serving.idle_since) is not None), key=itemgetter(0), default=None)
            if idle is None:
                _log.error("%d connections of other stores are at work: one more is refused", len(self._serving))
                sock.close()
                return
            self._serving.discard(idle[1])
            idle[1].stop()
        serving = Serving(sock, self._node_id, self)
        self._serving.add(serving)
        # A daemon: it lies in recv, and nothing of it matters once the process ends.
        threading.Thread(target=self._serve, args=(serving,), name="shoal-serve", daemon=True).start()

    def node_died(self, node_id: bytes) -> None:
        """What it was reading is not pinned for it any longer. On the event loop."""
        for serving in list(self._serving):
            if serving.reader == node_id:
                serving.stop()

    def _serve(self, serving: Serving) -> None:
        try:
            serving.run()
        finally:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._serving.discard, serving)

    def close(self) -> None:
        for serving in list(self._serving):
            serving.stop()

    # -- peer.Objects -------------------------------------------------------------------------------------

    def for_peer(self, message: Free) -> None:
        self._frees.for_peer(message)

    def soon(self, objects: Sequence[tuple[bytes, Origin]]) -> None:
        here = [(object_id, origin) for object_id, origin in objects if origin.node_id == self._node_id]
        sealed = self._keeper.store.sealed([(origin.slot, origin.generation) for _, origin in here])
        for (object_id, origin), in_memory in zip(here, sealed, strict=True):
            if not in_memory:
                self._pull(origin, object_id, 0, "", ARGUMENTS)

    def _pull(self, origin: Origin, object_id: bytes, size: int, address: str, priority: int) -> Future[Answer]:
        """On the loop; cancelled if that has ended."""
        pulling = self._pulling.pull(origin, object_id, size, address, priority)
        try:
            return asyncio.run_coroutine_threadsafe(pulling, self._loop)
        except RuntimeError:
            pulling.close()
            ended: Future[Answer] = Future()
            ended.cancel()
            return ended

    @contextlib.contextmanager
    def pinned(self, object_id: bytes, origin: Origin) -> Iterator[Bytes | Fetched]:
        """What is on disk is brought back first: its checksum is that of the whole, and others may want it. What is on its way here is sent as it comes."""
        arriving = self._pulling.arriving(origin)
        if arriving is not None:
            location, parts = arriving
            place = self._place(location)
            if place is not None:  # it was not given up just now
                yield Bytes(self._arena_fd, *place, lambda offset, length: parts.wait_for(offset, length, PART_S), lambda: self._place(location) is not None)
                return
        if origin.node_id == self._node_id:
            found = self._pin(origin.slot, origin.generation) or self._pin_restored(object_id, origin.slot, origin.generation)
        else:
            # Of another node, which has sent the peer here; or that node had this address before.
            copy = self._pulling.pulls.copy(origin)
            found = (self._pin(*copy) if copy is not None else None) or Fetched(Code.OBJECT_FREED, 0)
        if isinstance(found, Fetched):
            yield found
            return
        pin, slot, generation = found
        offset, size = self._keeper.store.location(slot, generation)
        yield Bytes(self._arena_fd, offset, size)
        del pin, found

    def _place(self, location: Location) -> tuple[int, int] | None:
        try:
            return self._keeper.store.location(*location)
        except ArenaError:
            return None

    def _pin(self, slot: int, generation: int) -> tuple[Buffer, int, int] | None:
        try:
            return self._keeper.own.get(slot, generation), slot, generation
        except ArenaError:
            return None

    def _pin_restored(self, object_id: bytes, slot: int, generation: int) -> tuple[Buffer, int, int] | Fetched:
        """Whether the disk has it is asked on the loop: evicting, it takes the slot a moment before its books say so."""
        origin, until = Origin(self._node_id, slot, generation), time.monotonic() + RESTORE_S
        while True:
            restoring = self._pull(origin, object_id, 0, "", ARGUMENTS)
            try:
                answer = restoring.result(max(0.0, until - time.monotonic()))
            except TimeoutError:
                restoring.cancel()
                return Fetched(Code.FETCH_TIMED_OUT, 0, f"object {object_id.hex()} did not come from disk within {RESTORE_S:g} s")
            except CancelledError:
                return Fetched(Code.SHUTTING_DOWN, 0, "the object store ends")
            if answer.code:
                return Fetched(answer.code, 0, answer.text)
            pin = self._pin(answer.slot, answer.generation)
            if pin is not None:
                return pin
            # This thread came too late, and room lacked: it was dropped already.

    def bring(self, pull: Pull) -> Pulled:
        origin = Origin(pull.node_id, pull.slot, pull.generation)
        bringing = self._pull(origin, pull.object_id, pull.size, pull.address, pull.priority)
        try:
            answer = bringing.result(PUSH_S)
        except TimeoutError:
            bringing.cancel()
            return Pulled(pull.id, Code.FETCH_TIMED_OUT, text=f"object {pull.object_id.hex()} did not come within {PUSH_S:g} s")
        except CancelledError:
            return Pulled(pull.id, Code.SHUTTING_DOWN, text="the object store ends")
        return Pulled(pull.id, answer.code, answer.slot, answer.generation, answer.text)

    def turn(self, origin: Origin, size_bytes: int, reader: bytes, address: str) -> Turn:
        with self._spreading:
            return self._spread.ask(origin, size_bytes, reader, address, time.monotonic())

    def sent(self, origin: Origin, size_bytes: int, reader: bytes, part_bytes: int, last: bool) -> None:
        with self._spreading:
            self._spread.brought(origin, size_bytes, reader, part_bytes)
            self.pushed += last
            self.pushed_bytes += part_bytes
