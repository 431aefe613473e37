"""A node's object store in the simulation: values at places that are never used twice, and copies brought from other nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal_base.errors import Code
from shoal_base.frames import HEADER_SIZE, Type, pack_header, unpack_header
from shoal_base.wire import Free, Keep, Pull, Pulled, Settled
from world import Connection, Link

if TYPE_CHECKING:
    from core_node import CoreNode
    from raylet_node import RayletNode

Slot = tuple[int, int]
OWNER_GRACE_S = 5.0
SWEEP_S = 1.0
COPY_GRACE_S = 10.0  # a copy stays so long for whoever asked for it


class StoreNode:
    def __init__(self, raylet: RayletNode) -> None:
        self.raylet = raylet
        self.world = raylet.world
        self.node_id = raylet.node_id
        self.values: dict[Slot, bytes] = {}
        self._copies: dict[tuple[bytes, Slot], Slot] = {}  # by where they came from
        self._is_copy: set[Slot] = set()
        self._owners: dict[Slot, bytes] = {}
        self._pins: dict[Slot, set[bytes]] = {}  # processes that hold on to what a dead one had owned
        self._dead: set[bytes] = set()  # processes and nodes whose grace is over
        self._made = 0

    @property
    def alive(self) -> bool:
        return self.raylet.alive

    @property
    def host_gone(self) -> bool:
        return self.raylet.host_gone

    # -- what the arena is to processes of the node ------------------------------------------------------

    def create(self, value: bytes, owner: bytes) -> tuple[int, int, int]:
        return (*self._place(value, owner), len(value))

    def _place(self, value: bytes, owner: bytes) -> Slot:
        self._made += 1
        slot = (self._made, self.raylet.number)
        self.values[slot] = value
        self._owners[slot] = owner
        return slot

    def pin(self, slot: Slot, worker_id: bytes) -> bool:
        if slot in self.values:
            self._pins.setdefault(slot, set()).add(worker_id)
        return slot in self.values

    def unpin(self, slot: Slot, worker_id: bytes) -> None:
        self._pins[slot].discard(worker_id)

    def died(self, who: bytes) -> None:
        """A process or a node: what it owned goes a moment later, but for what somebody holds on to."""
        self.world.after(OWNER_GRACE_S, self._bury, who)

    def _bury(self, who: bytes) -> None:
        self._dead.add(who)
        self._sweep()

    def _is_orphan(self, slot: Slot) -> bool:
        owner = self._owners[slot]
        return owner[:16] in self._dead or owner[16:] in self._dead

    def _sweep(self) -> None:
        orphans = [slot for slot in self.values if self._is_orphan(slot)]
        kept = [slot for slot in orphans if any(self.world.cores[one].alive for one in self._pins.get(slot, ()))]
        for slot in set(orphans) - set(kept):
            del self.values[slot]
            self._is_copy.add(slot)
        if kept and self.alive:
            self.world.after(SWEEP_S, self._sweep)

    def has(self, slot: Slot) -> bool:
        """False: it was a copy, and is gone. What was made here is there as long as somebody may read it."""
        self.world.check(slot in self.values or slot in self._is_copy, f"the object at {slot} of node {self.raylet.number} is freed, and somebody reads it")
        return slot in self.values

    def free(self, slot: Slot) -> None:
        self.world.check(slot in self.values or slot in self._is_copy, f"the object at {slot} of node {self.raylet.number} is freed twice")
        self.values.pop(slot, None)

    # -- frames --------------------------------------------------------------------------------------------

    def connect(self, core: CoreNode) -> Connection:
        return Connection(self.world, core, self)

    def on_data(self, connection: Connection, number: int, data: bytes) -> None:
        at = 0
        while at < len(data):
            header = unpack_header(data[at : at + HEADER_SIZE])
            payload = data[at + HEADER_SIZE : at + HEADER_SIZE + header.length]
            at += HEADER_SIZE + header.length
            if header.type == Type.PULL:
                self._pull(connection, number, Pull.unpack(payload))
            elif header.type == Type.FREE:
                free = Free.unpack(payload)
                self._pass_on(free)
                self._say(connection, number, Type.SETTLED, Settled(free.number).pack())
            elif header.type == Type.KEEP:
                self._say(connection, number, Type.SETTLED, Settled(Keep.unpack(payload).number).pack())
            else:
                self.world.check(header.type == Type.HELLO, f"a store got a frame of type {header.type}")

    def on_closed(self, connection: Connection, number: int) -> None:
        """Nothing is kept of a client."""

    def _say(self, connection: Connection, number: int, type_: Type, payload: bytes) -> None:
        if self.alive:
            connection.send(number, pack_header(len(payload), type_, epoch=1) + payload)

    def _pull(self, connection: Connection, number: int, pull: Pull) -> None:
        def answer(pulled: Pulled) -> None:
            self._say(connection, number, Type.PULLED, pulled.pack())

        origin = (pull.slot, pull.generation)

        def bring(value: bytes | None) -> None:
            if value is None:
                answer(Pulled(pull.id, Code.OBJECT_FREED, text="it is not there any more"))
            elif self.alive:
                copy = self._copies.get((pull.node_id, origin))
                if copy not in self.values:
                    copy = self._copies[pull.node_id, origin] = self._place(value, pull.owner)
                    self._is_copy.add(copy)
                    if self._is_orphan(copy):
                        self.world.after(COPY_GRACE_S, self._sweep)
                answer(Pulled(pull.id, Code.OK, *copy))

        source = self.raylet.peers.get(pull.node_id)
        if source is None:
            found = origin in self.values
            answer(Pulled(pull.id, Code.OK, *origin) if found else Pulled(pull.id, Code.OBJECT_FREED, text="it is not there any more"))
            return
        there, back = Link(self.world, self.node_id, source.node_id), Link(self.world, source.node_id, self.node_id)

        def ask() -> None:
            if source.alive:
                back.send(bring, source.store.values.get((pull.slot, pull.generation)))
            else:
                self.world.after(1.0, answer, Pulled(pull.id, Code.UNREACHABLE, text="nobody answers there"))

        there.send(ask)

    def _pass_on(self, free: Free) -> None:
        def arrive(store: StoreNode) -> None:
            for slot in free.slots:
                if store.alive:
                    store.values.pop(slot, None)  # a reader that found nothing may have been wrong, and its owner frees to be sure

        if free.node_id == self.node_id:
            arrive(self)
        elif (target := self.raylet.peers.get(free.node_id)) is not None:
            Link(self.world, self.node_id, target.node_id).send(arrive, target.store)
