"""Copies of objects in arenas: which the store is asked for, and how urgently; what it is told until it has done it; what becomes of them at deaths.

The protocol alone, driven by hand.
"""

from __future__ import annotations

import pytest
from shoal._core.driven import Driven
from shoal_base.connection import pack_hello
from shoal_base.frames import HEADER_SIZE, PeerKind, Type, pack_header, unpack_header
from shoal_base.wire import Free, Keep, Pull, Pulled, Settled

SECOND = 1_000_000_000
HERE, THERE, ELSEWHERE, FAR = (bytes([n]) * 16 for n in range(1, 5))
RAYLET, STORE, STORE_AGAIN = 1, 2, 3
GET, WAIT, ARGUMENTS = 0, 1, 2
LINK = 30


class Core:
    """One process's protocol beside a raylet and a store of pretence."""

    def __init__(self, worker_id: bytes = b"w" * 16) -> None:
        self.worker_id, self.owner = worker_id, worker_id + HERE
        self.driven = Driven(worker_id=worker_id, node_id=HERE, kind=1)
        self.links: dict[bytes, int] = {}  # connections to other processes
        self.kept = b""  # frames for the store that were taken with others
        self.driven.set_now(100 * SECOND)
        self.driven.join(RAYLET)
        self.driven.join_store(STORE)
        self.sequence = 0
        for node, address in ((THERE, b"there:1"), (ELSEWHERE, b"elsewhere:1"), (FAR, b"far:1")):
            self.driven.node_address(node, address)
        self.told()

    def told(self, connection: int = STORE) -> list[Free | Pull]:
        """What the store was told since the last call."""
        out: list[Free | Pull] = []
        frames, self.kept = [(STORE, self.kept), *self.driven.take_frames()], b""
        for number, data in frames:
            at = 0
            while number == connection and at < len(data):
                header = unpack_header(data[at : at + HEADER_SIZE])
                payload = data[at + HEADER_SIZE : at + HEADER_SIZE + header.length]
                at += HEADER_SIZE + header.length
                kind = {Type.FREE: Free, Type.KEEP: Keep, Type.PULL: Pull}.get(Type(header.type))
                if kind is not None:
                    out.append(kind.unpack(payload))
        return out

    def deliver(self, message: Pulled | Settled, connection: int = STORE) -> None:
        self.sequence += 1
        payload = message.pack()
        assert self.driven.deliver(connection, pack_header(len(payload), message.TYPE, epoch=1, sequence=self.sequence) + payload)

    def pulled(self, pull: Pull, slot: int) -> None:
        self.deliver(Pulled(pull.id, 0, slot, 1))

    def location(self, object_id: bytes, node: bytes, slot: int) -> None:
        """A borrower on another node has a copy."""
        place = object_id + node + slot.to_bytes(4, "little") + (1).to_bytes(4, "little") + (1000).to_bytes(8, "little")
        number = 50 + slot
        self.driven.accept(number)
        hello = pack_hello(bytes([slot]) * 16, HERE, kind=PeerKind.WORKER)
        assert self.driven.deliver(number, pack_header(len(hello), Type.HELLO, epoch=1, sequence=1) + hello)
        assert self.driven.deliver(number, pack_header(len(place), Type.LOCATION, epoch=1, sequence=2) + place)


def exchange(one: Core, other: Core) -> None:
    """What each has for the other, by the connection that `lend` made."""
    for _ in range(6):
        for source, target in ((one, other), (other, one)):
            for number, data in source.driven.take_frames():
                if number == source.links.get(target.worker_id):
                    assert target.driven.deliver(target.links[source.worker_id], data)
                elif number == STORE:
                    source.kept += data


def lend(owner: Core, borrower: Core, object_id: bytes, *, read: bool = False) -> None:
    """The borrower meets a reference to the owner's object; `read`: and gets it."""
    borrower.driven.borrow(object_id, owner.owner)
    if read:
        borrower.driven.want_here(object_id, GET)
        borrower.driven.get(object_id)
    for token, worker_id, _ in borrower.driven.connects():
        assert worker_id == owner.worker_id
        borrower.links[worker_id], owner.links[borrower.worker_id] = LINK + len(borrower.links), LINK + len(owner.links)
        assert borrower.driven.opened(token, borrower.links[worker_id])
        owner.driven.accept(owner.links[borrower.worker_id])
    exchange(owner, borrower)


@pytest.fixture
def core() -> Core:
    return Core()


def test_a_pull_names_the_owner_and_the_urgency(core: Core) -> None:
    one = core.driven.put_at(THERE, 7, 1, 1000)
    core.driven.want_here(one, WAIT)
    [pull] = core.told()
    assert isinstance(pull, Pull)
    assert (pull.object_id, pull.size, pull.node_id, pull.slot, pull.generation, pull.address) == (one, 1000, THERE, 7, 1, "there:1")
    assert (pull.priority, pull.others, pull.owner) == (WAIT, (), b"w" * 16 + HERE)


def test_an_argument_that_somebody_gets_meanwhile_is_asked_for_once_more_and_no_more_often(core: Core) -> None:
    one = core.driven.put_at(THERE, 7, 1, 1000)
    core.driven.want_as_argument(one)
    core.driven.want_here(one, GET)
    core.driven.want_here(one, WAIT)
    core.driven.want_here(one, GET)
    pulls = core.told()
    assert [p.priority for p in pulls if isinstance(p, Pull)] == [ARGUMENTS, GET]
    for pull in pulls:
        assert isinstance(pull, Pull)
        core.pulled(pull, 9)
    core.driven.want_here(one, GET)
    assert core.told() == []


def test_further_copies_are_named_but_those_of_dead_nodes(core: Core) -> None:
    one = core.driven.put_at(THERE, 7, 1, 1000)
    core.location(one, ELSEWHERE, 8)
    core.location(one, FAR, 9)
    core.driven.want_here(one, GET)
    [pull] = core.told()
    assert isinstance(pull, Pull)
    assert sorted(pull.others) == [(ELSEWHERE, 8, 1, "elsewhere:1"), (FAR, 9, 1, "far:1")]
    core.deliver(Pulled(pull.id, 44, text="later"))  # FETCH_TIMED_OUT: an error of the moment
    core.driven.node_died(ELSEWHERE)
    core.driven.want_here(one, GET)
    core.driven.want_as_argument(one)
    assert all(not isinstance(p, Pull) or p.others == ((FAR, 9, 1, "far:1"),) for p in core.told())


def test_a_copy_that_becomes_the_primary_one_is_kept(core: Core) -> None:
    one = core.driven.put_at(THERE, 7, 1, 1000)
    core.location(one, ELSEWHERE, 8)
    core.driven.node_died(THERE)
    assert core.driven.place(one) == (ELSEWHERE, 8, 1)
    [keep] = core.told()
    assert isinstance(keep, Keep)
    assert (keep.node_id, keep.slots, keep.address) == (ELSEWHERE, ((8, 1),), "elsewhere:1")
    core.driven.node_died(ELSEWHERE)
    assert core.driven.place(one) is None


def test_the_copy_on_the_owners_node_is_kept_when_the_other_one_is_lost(core: Core) -> None:
    one = core.driven.put_at(THERE, 7, 1, 1000)
    core.driven.want_here(one, GET)
    [pull] = core.told()
    assert isinstance(pull, Pull)
    core.pulled(pull, 9)
    core.driven.node_died(THERE)
    assert core.driven.place(one) == (HERE, 9, 1)
    [keep] = core.told()
    assert isinstance(keep, Keep)
    assert (keep.node_id, keep.slots, keep.address) == (HERE, ((9, 1),), "")


def test_a_pull_from_a_node_that_died_goes_on_from_the_copy_that_took_its_place(core: Core) -> None:
    one = core.driven.put_at(THERE, 7, 1, 1000)
    core.driven.want_here(one, GET)
    [first] = core.told()
    core.location(one, ELSEWHERE, 8)
    core.driven.node_died(THERE)
    second = next(p for p in core.told() if isinstance(p, Pull))
    assert (second.node_id, second.slot, second.address) == (ELSEWHERE, 8, "elsewhere:1")
    assert isinstance(first, Pull)
    core.deliver(Pulled(first.id, 40, text="unreachable"))
    assert core.driven.place(one) == (ELSEWHERE, 8, 1)
    core.pulled(second, 9)
    core.driven.want_here(one, GET)
    assert core.told() == []


def test_frees_are_told_again_to_a_store_that_did_not_say_that_they_are_done(core: Core) -> None:
    objects = [core.driven.put_at(THERE, slot, 1, 1000) for slot in range(3)]
    for one in objects[:2]:
        core.driven.drop(one)
    first, second = core.told()
    assert isinstance(first, Free)
    assert isinstance(second, Free)
    core.deliver(Settled(first.number))
    core.driven.closed(STORE)
    core.driven.drop(objects[2])
    assert core.told(STORE_AGAIN) == []
    core.driven.join_store(STORE_AGAIN)
    core.sequence = 0
    again = core.told(STORE_AGAIN)
    assert sorted(f.slots for f in again if isinstance(f, Free)) == [((1, 1),), ((2, 1),)]
    for free in again:
        assert isinstance(free, Free)
        core.deliver(Settled(free.number), STORE_AGAIN)
    core.driven.closed(STORE_AGAIN)
    core.driven.join_store(4)
    assert core.told(4) == []


def test_a_free_waits_for_its_nodes_address_and_is_never_meant_for_this_node(core: Core) -> None:
    unknown = b"u" * 16
    for slot in range(3):
        core.driven.drop(core.driven.put_at(unknown, slot, 1, 1000))
    assert core.told() == []
    asked = [event for event in core.driven.events() if event[2] == unknown]
    assert len(asked) == 1
    core.driven.node_address(unknown, b"found:1")
    assert sorted((f.node_id, f.slots, f.address) for f in core.told() if isinstance(f, Free)) == [(unknown, ((n, 1),), "found:1") for n in range(3)]


def test_nothing_is_told_of_a_node_that_died(core: Core) -> None:
    one = core.driven.put_at(b"u" * 16, 1, 1, 1000)
    core.driven.drop(one)
    core.driven.node_died(b"u" * 16)
    core.driven.node_address(b"u" * 16, b"found:1")
    assert core.told() == []


def test_what_lies_here_is_freed_by_this_process(core: Core) -> None:
    core.driven.drop(core.driven.put_at(HERE, 5, 2, 1000))
    assert core.driven.arena_effects() == ([(5, 2)], [], [])
    assert core.told() == []


def test_a_borrower_is_told_of_further_copies_and_pulls_from_them_too(core: Core) -> None:
    one = core.driven.put_at(THERE, 7, 1, 1000)
    core.location(one, ELSEWHERE, 8)
    core.location(one, HERE, 9)  # where the borrower is: its own store knows of that one
    borrower = Core(b"b" * 16)
    borrower.driven.borrow(one, b"w" * 16 + HERE)
    borrower.driven.want_here(one, WAIT)
    assert borrower.driven.get(one) is None
    [(token, worker_id, _)] = borrower.driven.connects()
    assert worker_id == b"w" * 16
    assert borrower.driven.opened(token, 30)
    core.driven.accept(40)
    for _ in range(3):
        for number, data in borrower.driven.take_frames():
            if number == 30:
                assert core.driven.deliver(40, data)
            elif number == STORE:
                borrower.kept += data
        for number, data in core.driven.take_frames():
            if number == 40:
                assert borrower.driven.deliver(30, data)
    assert borrower.driven.place(one) == (THERE, 7, 1)
    [pull] = [p for p in borrower.told() if isinstance(p, Pull)]
    assert (pull.node_id, pull.others, pull.priority, pull.owner) == (THERE, ((ELSEWHERE, 8, 1, "elsewhere:1"),), WAIT, b"w" * 16 + HERE)


def test_what_lies_here_of_an_owner_that_died_is_held(core: Core) -> None:
    one = core.driven.put_at(HERE, 7, 1, 1000)
    borrower = Core(b"b" * 16)
    lend(core, borrower, one)
    assert borrower.driven.place(one) == (HERE, 7, 1)
    borrower.driven.worker_died(b"o" * 16, HERE)
    assert borrower.driven.arena_effects() == ([], [], [])
    borrower.driven.worker_died(core.worker_id, HERE)
    assert borrower.driven.arena_effects() == ([], [one], [])
    borrower.driven.held(one, True)
    borrower.driven.drop(one)
    assert borrower.driven.arena_effects() == ([], [], [(7, 1)])


def test_a_borrower_asks_before_it_reads_and_a_small_value_outlives_its_owner(core: Core) -> None:
    one = core.driven.put(b"small")
    borrower = Core(b"b" * 16)
    lend(core, borrower, one)
    borrower.driven.worker_died(core.worker_id, HERE)
    ok, _, value, _ = borrower.driven.get(one) or ()
    assert (ok, value) == (True, b"small")


def test_what_lies_elsewhere_is_brought_here_when_its_owner_dies_and_held(core: Core) -> None:
    one = core.driven.put_at(THERE, 7, 1, 1000)
    borrower = Core(b"b" * 16)
    lend(core, borrower, one)
    assert borrower.told() == [], "nobody reads it, and its owner keeps it"
    borrower.driven.worker_died(core.worker_id, HERE)
    [pull] = borrower.told()
    assert isinstance(pull, Pull)
    assert (pull.node_id, pull.slot) == (THERE, 7)
    borrower.pulled(pull, 3)
    assert borrower.driven.arena_effects() == ([], [one], [])
    borrower.driven.held(one, True)
    assert borrower.driven.place(one) == (HERE, 3, 1), "who borrows it from here finds it here"
    borrower.driven.drop(one)
    assert borrower.driven.arena_effects() == ([], [], [(3, 1)])


def test_what_is_on_disk_here_is_restored_when_its_owner_dies_and_held(core: Core) -> None:
    one = core.driven.put_at(HERE, 7, 1, 1000)
    borrower = Core(b"b" * 16)
    lend(core, borrower, one)
    borrower.driven.worker_died(core.worker_id, HERE)
    borrower.driven.arena_effects()
    borrower.driven.held(one, False)
    [pull] = borrower.told()
    assert isinstance(pull, Pull)
    borrower.pulled(pull, 9)
    assert borrower.driven.arena_effects()[1] == [one]


def drain(core: Core, node: bytes) -> None:
    core.sequence += 1
    assert core.driven.deliver(RAYLET, pack_header(16, Type.NODE_DRAINS, epoch=1, sequence=core.sequence) + node)


def test_what_lies_on_a_node_that_drains_is_brought_here_kept_here_and_freed_there(core: Core) -> None:
    one, here = core.driven.put_at(THERE, 7, 1, 1000), core.driven.put_at(HERE, 5, 1, 1000)
    drain(core, THERE)
    [pull] = core.told()
    assert isinstance(pull, Pull)
    assert (pull.object_id, pull.node_id) == (one, THERE)
    core.pulled(pull, 3)
    keep, free = core.told()
    assert isinstance(keep, Keep) and (keep.node_id, keep.slots) == (HERE, ((3, 1),))
    assert isinstance(free, Free) and (free.node_id, free.slots) == (THERE, ((7, 1),))
    assert (core.driven.place(one), core.driven.place(here)) == ((HERE, 3, 1), (HERE, 5, 1))
    late = core.driven.put_at(THERE, 8, 1, 1000)
    drain(core, THERE)
    assert core.told() == [], "told twice"
    core.driven.drop(late)


def test_a_move_for_which_there_is_no_room_is_tried_again_and_nobody_hears_of_it(core: Core) -> None:
    one = core.driven.put_at(THERE, 7, 1, 1000)
    drain(core, THERE)
    [pull] = core.told()
    assert isinstance(pull, Pull)
    core.deliver(Pulled(pull.id, 41, 0, 0, "the arena is full"))
    assert core.told() == []
    core.driven.set_now(102 * SECOND)
    core.driven.timer()
    [again] = core.told()
    assert isinstance(again, Pull) and again.slot == 7
    core.pulled(again, 3)
    assert core.driven.place(one) == (HERE, 3, 1)


def test_no_more_is_brought_here_than_fits_beside_the_work(core: Core) -> None:
    large, small = core.driven.put_at(THERE, 7, 1, 1 << 30), core.driven.put_at(THERE, 8, 1, 1000)
    borrower = Core(b"b" * 16)
    for one in (large, small):
        lend(core, borrower, one)
    borrower.driven.worker_died(core.worker_id, HERE)
    assert len(borrower.told()) == 1


def test_who_borrowed_from_a_borrower_asks_it_once_the_owner_is_dead(core: Core) -> None:
    lender, last = Core(b"l" * 16), Core(b"x" * 16)
    one = core.driven.put(b"small")
    lend(core, lender, one)
    outer = lender.driven.put(b"list", [(one, core.owner)])
    last.driven.worker_died(core.worker_id, HERE)
    lend(lender, last, outer, read=True)
    [(_, _, _, inside)] = [last.driven.get(outer) or ()]
    assert inside == [(one, core.owner)]
    ok, _, value, _ = last.driven.get(one) or ()
    assert (ok, value) == (True, b"small")


def test_a_lender_that_has_let_go_or_died_is_the_end_of_it_and_nobody_waits_in_a_circle(core: Core) -> None:
    one = core.driven.new_actor_id() + bytes(4)
    lender, last = Core(b"l" * 16), Core(b"x" * 16)
    for borrower in (lender, last):
        borrower.driven.borrow(one, core.owner)  # of an owner that never answers
    outer = lender.driven.put(b"list", [(one, core.owner)])
    last.driven.worker_died(core.worker_id, HERE)
    lend(lender, last, outer, read=True)
    lender.driven.worker_died(core.worker_id, HERE, cause="pid 7: killed")
    exchange(lender, last)
    for borrower in (lender, last):
        ok, code, text, _ = borrower.driven.get(one) or ()
        assert (ok, code) == (False, 7) and "its owner, worker" in str(text)
