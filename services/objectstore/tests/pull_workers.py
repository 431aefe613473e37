"""Clients that pull, move and free each other's objects while their stores die: owners and askers as core workers are, and what they must find."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter

from msgspec import Struct, field
from shoal_base.errors import Code
from shoal_base.frames import Type
from shoal_base.wire import Free, Keep, Pull, Pulled, Settled
from shoal_objectstore._arena import Arena, NeedExtent, ObjectGone
from store_node import MIB, Client, Node, value

Location = tuple[int, int]
OBJECTS = 60
SIZES = (0, 700, 150_000, MIB + 5, 3 * MIB)
# So many are asked for at once, of those up to this size.
SEVERAL, SMALL = 12, 150_000
# Limit: of a pull. A source that is stopped is asked four times, and a store waits half a minute for room; on a machine that does much else.
PULL_S = 60.0
# An asker that is told one of these asks again; the object is not lost.
FOR_NOW = {Code.UNREACHABLE, Code.SHUTTING_DOWN, Code.FETCH_TIMED_OUT, Code.ARENA_FULL, Code.OUT_OF_DISK}


class Object(Struct, eq=False):
    """What its owner knows of it."""

    number: int
    size: int
    node: int
    location: Location
    copies: set[tuple[int, Location]] = field(default_factory=set)
    freed: bool = False
    busy: bool = False  # somebody frees or moves it

    @property
    def id(self) -> bytes:
        return self.number.to_bytes(20, "little")


class Owner:
    """All objects, and which copies there are of them. Thread-safe."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.objects: dict[int, Object] = {}
        self.done: Counter[str] = Counter()
        self.slowest_s = 0.0
        self._number = 0

    def new(self) -> int:
        with self.lock:
            self._number += 1
            return self._number

    def count(self, what: str) -> None:
        with self.lock:
            self.done[what] += 1

    def any(self, rng: random.Random) -> Object | None:
        with self.lock:
            return self.objects[rng.choice(list(self.objects))] if self.objects else None

    def take(self, known: Object) -> bool:
        """For freeing or moving it: one at a time."""
        with self.lock:
            if known.busy or known.freed:
                return False
            known.busy = True
            return True

    def places(self, known: Object) -> tuple[tuple[int, Location], list[tuple[int, Location]]]:
        """(where it lies, its copies)"""
        with self.lock:
            return (known.node, known.location), sorted(known.copies)


class GivenUp(Exception):
    """The test has failed elsewhere."""


class Worker:
    """A client of a node: an owner, and an asker."""

    def __init__(self, nodes: list[Node], n: int, arena: Arena, owner: Owner, rng: random.Random) -> None:
        self.nodes = nodes
        self.n = n
        self.node = nodes[n]
        self.arena = arena
        self.owner = owner
        self.rng = rng
        self.client: Client | None = None
        self.unsettled: dict[int, Free] = {}
        self.number = 0
        self.view: tuple[Object, memoryview] | None = None
        self.stopping = threading.Event()
        self.given_up = False

    # -- the connection ---------------------------------------------------------------------------------

    def connected(self) -> Client:
        end = time.monotonic() + PULL_S
        while self.client is None:
            assert time.monotonic() < end, f"no store serves at node {self.n}"
            if self.given_up:
                raise GivenUp
            with contextlib.suppress(OSError, EOFError):
                self.client = Client(self.node, 1, self.arena)
                break
            time.sleep(0.02)  # until its successor is there
        return self.client

    def leave(self) -> None:
        if self.client is not None:
            self.client.close()
        self.client = None

    # -- what a core worker does --------------------------------------------------------------------------

    def put(self) -> None:
        number = self.owner.new()
        size = self.rng.choice(SIZES)
        data = value(number, size)
        while True:
            try:
                location = self.arena.put(data)
                break
            except NeedExtent:
                pass
            try:
                grant = self.connected().extent(size, PULL_S)
            except (EOFError, OSError):
                self.leave()
                continue
            if grant.code:
                assert grant.code in FOR_NOW, grant.text
                self.owner.count(f"put: {Code(grant.code).name}")
                return
            self.arena.add_extent(grant.extent)
        with self.owner.lock:
            self.owner.objects[number] = Object(number, size, self.n, location)

    def ask(self, known: Object) -> Pulled | None:
        """None: this node's own store died over it."""
        answers = self.ask_all([known])
        return answers[0] if answers else None

    def ask_all(self, objects: list[Object]) -> list[Pulled]:
        """PULL for each, with all places that are known, before any is answered. Empty: this node's own store died over it."""
        client = self.connected()
        asked: dict[int, tuple[Object, tuple[int, Location]]] = {}
        answers: dict[int, Pulled] = {}
        began = time.monotonic()
        try:
            for known in objects:
                (at, location), copies = self.owner.places(known)
                there = self.nodes[at]
                # Small ones of one place share a question to it.
                others = tuple((self.nodes[n].node_id, *place, self.nodes[n].raylet.address) for n, place in copies if n not in (self.n, at))
                client.id += 1
                client.frames.send(Type.PULL, Pull(client.id, known.id, known.size, there.node_id, *location, there.raylet.address, others=others).pack())
                asked[client.id] = known, (at, location)
            while len(answers) < len(asked):
                answer = Pulled.unpack(client.expect(Type.PULLED, PULL_S))
                answers[answer.id] = answer
        except TimeoutError:
            late = [(asked[n][0].number, asked[n][1]) for n in asked.keys() - answers.keys()]
            raise AssertionError(f"node {self.n} has not answered within {PULL_S:g} s: objects and their places {late}") from None
        except (EOFError, OSError):
            self.leave()
            return []
        finally:
            self.owner.slowest_s = max(self.owner.slowest_s, time.monotonic() - began)
        assert answers.keys() == asked.keys()
        for n, (known, place) in asked.items():
            self.check(known, place, answers[n])
        return [answers[n] for n in asked]

    def check(self, known: Object, place: tuple[int, Location], answer: Pulled) -> None:
        if answer.code in (Code.OBJECT_FREED, Code.OBJECT_LOST):
            with self.owner.lock:
                still = not known.freed and (known.node, known.location) == place
            assert not still, f"object {known.number} ({known.size} bytes) lives at {place}; node {self.n} is told: {answer.text}"
        else:
            assert not answer.code or answer.code in FOR_NOW, answer

    def read_several(self) -> None:
        """Small ones, asked for at once."""
        small = {known.number: known for _ in range(SEVERAL) if (known := self.owner.any(self.rng)) is not None and known.size <= SMALL}
        objects = [known for known in small.values() if not self.here(known)]
        for known, answer in zip(objects, self.ask_all(objects), strict=False):
            self.owner.count(Code(answer.code).name if answer.code else "read with others")
            if not answer.code:
                place = (answer.slot, answer.generation)
                view = self.see(known, place)
                if view is not None:
                    self.hold(known, view)
                self.told(known, place)

    def see(self, known: Object, place: Location) -> memoryview | None:
        """Its bytes, which must be its own; None: they are not here (any more)."""
        try:
            view = memoryview(self.arena.get(*place))
        except ObjectGone:
            return None
        if bytes(view) != value(known.number, known.size):
            raise AssertionError(f"object {known.number} of {known.size} bytes at {place} of node {self.n} holds {len(view)} others: {bytes(view[:16])!r}")
        return view

    def here(self, known: Object) -> list[Location]:
        home, copies = self.owner.places(known)
        return [place for n, place in (home, *copies) if n == self.n]

    def read(self, known: Object) -> str:
        """Why not, a named error of the moment; empty if it is here."""
        end = time.monotonic() + 2 * PULL_S
        places = self.here(known)
        while True:
            for place in places:
                view = self.see(known, place)
                if view is not None:
                    self.hold(known, view)
                    return ""
            assert time.monotonic() < end, f"object {known.number} was brought to node {self.n} and gone again each time"
            answer = self.ask(known)
            if answer is not None and answer.code:
                return Code(answer.code).name
            places = [] if answer is None else [(answer.slot, answer.generation)]
            for place in places:
                self.told(known, place)

    def hold(self, known: Object, view: memoryview) -> None:
        """Some are mapped for a while, whatever becomes of their store."""
        if self.view is None:
            self.view = known, view
        elif self.rng.random() < 0.2:
            (known, view), self.view = self.view, None
            assert bytes(view) == value(known.number, known.size), f"object {known.number} of {known.size} bytes changed while node {self.n} mapped it"

    def told(self, known: Object, place: Location) -> None:
        with self.owner.lock:
            late = known.freed
            if (self.n, place) != (known.node, known.location):
                known.copies.add((self.n, place))
        if late:
            self.end([(self.n, place)])

    def forget(self, known: Object) -> None:
        """An asker that leaves and has told nobody what it got."""
        self.ask(known)
        self.leave()

    # -- ends and moves -----------------------------------------------------------------------------------

    def end(self, places: list[tuple[int, Location]]) -> None:
        for at in range(len(self.nodes)):
            slots = [place for n, place in places if n == at]
            if at == self.n:
                slots = [place for place in slots if not self.freed_here(place)]
            if slots:
                self.number += 1
                address = "" if at == self.n else self.nodes[at].raylet.address
                self.unsettled[self.number] = Free(self.nodes[at].node_id, tuple(slots), address, self.number)
        self.settle()

    def freed_here(self, place: Location) -> bool:
        try:
            self.arena.free(*place)
        except ObjectGone:
            return False
        return True

    def settle(self) -> None:
        """Until everything said is carried out, by whichever store that takes."""
        end = time.monotonic() + 2 * PULL_S
        while self.unsettled:
            assert time.monotonic() < end, f"not settled: {self.unsettled}"
            client = self.connected()
            try:
                for message in self.unsettled.values():
                    client.frames.send(message.TYPE, message.pack())
                while self.unsettled:
                    del self.unsettled[Settled.unpack(client.expect(Type.SETTLED, PULL_S)).number]
            except TimeoutError:
                raise AssertionError(f"node {self.n} has not settled within {PULL_S:g} s: {self.unsettled}") from None
            except (EOFError, OSError):
                self.leave()

    def free(self, known: Object) -> None:
        if not self.owner.take(known):
            return
        with self.owner.lock:
            known.freed = True
            del self.owner.objects[known.number]
            places = [(known.node, known.location), *known.copies]
        self.end(places)

    def move(self, known: Object) -> None:
        """The copy here becomes the primary one; the one where it came from goes."""
        if self.owner.places(known)[0][0] == self.n or self.read(known) or not self.owner.take(known):
            return
        for place in self.here(known):
            pin = self.see(known, place)
            if pin is None:
                continue
            self.number += 1
            self.unsettled[self.number] = Keep(self.node.node_id, (place,), "", self.number)
            self.settle()
            with self.owner.lock:
                old = (known.node, known.location)
                known.node, known.location = self.n, place
                known.copies.discard((self.n, place))
            pin.release()
            self.end([old])
            self.owner.count("moved")
            break
        with self.owner.lock:
            known.busy = False

    def step(self) -> None:
        rng = self.rng
        what = rng.random()
        if len(self.owner.objects) < OBJECTS and what < 0.3:
            self.put()
            return
        known = self.owner.any(rng)
        if known is None:
            return
        if what < 0.65:
            self.owner.count(self.read(known) or "read")
        elif what < 0.8:
            self.read_several()
        elif what < 0.85:
            self.forget(known)
        elif what < 0.94:
            self.move(known)
        elif len(self.owner.objects) > OBJECTS // 2:
            self.free(known)

    def work(self) -> None:
        with contextlib.suppress(GivenUp):
            while len(self.owner.objects) < OBJECTS // 2:
                self.put()
            while not self.stopping.is_set():
                self.step()

    # -- the end ------------------------------------------------------------------------------------------

    def finds(self, objects: list[Object]) -> None:
        """Nothing is killed any more, so all of it can be had."""
        for known in objects:
            end = time.monotonic() + 2 * PULL_S
            while why := self.read(known):
                assert time.monotonic() < end, f"object {known.number} cannot be had at node {self.n}: {why}"
                time.sleep(0.05)
        self.view = None
