"""Ends of objects: their owners want them no more, here or on other nodes, or the owners are dead. And copies that have become primary ones, which travel
the same way.

Whoever asks is answered with SETTLED when it is certain, and not before: in the arena's words, in the journal of the disk, or acknowledged by the other node's
store. What was not answered is asked again of this store's successor.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from shoal_base.wire import Free, Keep

from ._arena import ArenaError
from .away import Answer, Away, Delivered, Errand, Failed, NodeDied, Send, Ticked, Wanted
from .journal import Location
from .owners import Owners
from .peer import PeerFailed, Peers
from .rounds import next_round

if TYPE_CHECKING:
    from .away import Event
    from .clients import Client
    from .keeper import Keeper
    from .spiller import Spiller

_log = logging.getLogger(__name__)

ROUND_S = 1.0
# Every so many rounds what is on disk is looked through for dead owners, though none has died since.
DISK_ROUNDS = 10
# Messages to other stores at once.
SENDERS = 4
# How long another store's thread waits for the journal here.
WAIT_S = 25.0


class Frees:
    def __init__(
        self, node_id: bytes, keeper: Keeper, spiller: Spiller | None, peers: Peers | None,
        disk_copy: Callable[[Location], Location | None], promote: Callable[[Location], None], owner_grace_s: float,
    ) -> None:  # fmt: skip
        """`disk_copy`: forgets the copy of what was on disk and says where it is; `promote`: makes an object of a copy. `peers`: None in a store alone."""
        self.owners = Owners(owner_grace_s)
        self.orphans = self.orphan_bytes = 0
        self._node_id = node_id
        self._keeper = keeper
        self._spiller = spiller
        self._peers = peers
        self._disk_copy = disk_copy
        self._promote = promote
        self._away = Away()
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._senders = ThreadPoolExecutor(SENDERS, thread_name_prefix="shoal-tell")

    @property
    def waiting_elsewhere(self) -> int:
        return self._away.objects

    # -- what is asked ------------------------------------------------------------------------------------

    def wanted(self, client: Client, message: Free) -> None:
        """FREE or KEEP, by a client."""
        keep = isinstance(message, Keep)
        if message.node_id != self._node_id:
            if not message.address:
                _log.warning("%s names no address of node %s: it is not done", "KEEP" if keep else "FREE", message.node_id.hex()[:12])
                return
            errand = Errand.KEEP if keep else Errand.FREE
            self._handle(Wanted(client, message.number, message.node_id, message.address, errand, message.slots))
        elif keep:
            self._keep(message.slots)
            client.settled(message.number)
        else:
            on_disk = self._free_in_arena(message.slots)
            if on_disk and self._spiller is not None:
                self._spawn(self._free_and_answer(on_disk, client, message.number))
            else:
                client.settled(message.number)

    async def _free_and_answer(self, locations: Sequence[Location], client: Client, number: int) -> None:
        await self._free_on_disk(locations)
        client.settled(number)

    def here(self, slots: Sequence[Location]) -> None:
        """Frees what is here. From any thread; waits for nothing."""
        on_disk = self._free_in_arena(slots)
        if on_disk and self._spiller is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._spawn_free, on_disk)

    def for_peer(self, message: Free) -> None:
        """The same for another store, whose thread this is: returns when it is certain. Raises OSError."""
        keep = isinstance(message, Keep)
        on_disk = message.slots if keep else self._free_in_arena(message.slots)
        if not on_disk:
            return
        work = self._kept(on_disk) if keep else self._free_on_disk(on_disk)
        try:
            asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_S)
        except (RuntimeError, CancelledError) as error:
            work.close()
            raise OSError("the object store ends") from error

    def _spawn_free(self, locations: Sequence[Location]) -> None:
        self._spawn(self._free_on_disk(locations))

    def _free_in_arena(self, slots: Sequence[Location]) -> list[Location]:
        """Returns those that the arena has not: perhaps they are on disk."""
        gone = []
        for location in slots:
            try:
                self._keeper.own.free(*location)
            except ArenaError:
                gone.append(location)
        return gone

    async def _free_on_disk(self, locations: Sequence[Location]) -> None:
        if self._spiller is None:
            return
        found, dropped = self._spiller.freed(locations)
        for location in found:
            copy = self._disk_copy(location)
            if copy is not None:
                with contextlib.suppress(ArenaError):
                    self._keeper.own.free(*copy)
        if dropped is not None:
            await asyncio.shield(dropped)

    def _keep(self, slots: Sequence[Location]) -> None:
        for location in slots:
            self._promote(location)

    async def _kept(self, slots: Sequence[Location]) -> None:
        self._keep(slots)

    # -- other nodes --------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        for effect in self._away.handle(event):
            match effect:
                case Send():
                    self._spawn(self._send(effect))
                case Answer(asker, number):
                    asker.settled(number)  # type: ignore[attr-defined]

    async def _send(self, send: Send) -> None:
        assert self._peers is not None
        message = (Free if send.errand is Errand.FREE else Keep)(send.node_id, send.slots)
        delivered = False
        try:
            await self._loop.run_in_executor(self._senders, self._peers.tell, send.address, message)
            delivered = True
        except (PeerFailed, OSError) as error:
            _log.info("%d objects of the node at %s: %s was not told yet: %s", len(send.slots), send.address, send.errand.value, error)
        finally:
            self._handle(Delivered(send.node_id) if delivered else Failed(send.node_id, self._loop.time()))

    # -- the dead -----------------------------------------------------------------------------------------

    def worker_died(self, worker_id: bytes) -> None:
        self.owners.worker_died(worker_id, self._loop.time())

    def node_died(self, node_id: bytes) -> None:
        self.owners.node_died(node_id, self._loop.time())
        self._handle(NodeDied(node_id))

    async def rounds(self) -> None:
        """Frees what the dead left, and goes on with what could not be told, until cancelled."""
        known: tuple[frozenset[bytes], frozenset[bytes]] = frozenset(), frozenset()
        number = 0
        while True:
            await next_round(ROUND_S)
            number += 1
            self._handle(Ticked(self._loop.time()))
            dead = self.owners.dead(self._loop.time())
            if any(dead):
                await self.free_owned(*dead, on_disk=dead != known or number % DISK_ROUNDS == 0)
                known = dead

    async def free_owned(self, workers: frozenset[bytes], nodes: frozenset[bytes], on_disk: bool = True) -> None:
        """What nobody pins of what these had owned."""
        count, nbytes = await asyncio.to_thread(self._keeper.store.free_owned, workers, nodes)
        spilled = self._spiller.owned(workers, nodes) if on_disk and self._spiller is not None else []
        if spilled:
            await self._free_on_disk(spilled)
        if count or spilled:
            _log.info("%d objects in memory (%d bytes) and %d on disk were freed: their owners are dead", count, nbytes, len(spilled))
        self.orphans += count + len(spilled)
        self.orphan_bytes += nbytes

    # -- the end ------------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("freeing failed", exc_info=task.exception())

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._senders.shutdown(wait=False, cancel_futures=True)
