"""Objects that are lost and made again: the protocol alone, driven by hand. Raylets and stores are what the tests say in their place."""

from __future__ import annotations

import itertools

import pytest
from shoal._core.driven import EVENT_KINDS, KIND_BYTES, KIND_STORED, Driven
from shoal_base.errors import Code
from shoal_base.frames import HEADER_SIZE, Type, pack_header, unpack_header
from shoal_base.wire import Free, LeaseGrant, NodeDied, Pull, Pulled, WorkerDied

SECOND = 1_000_000_000
ALIVE, DEAD = 1, 3
NODE_ADDRESS = next(kind for kind, name in EVENT_KINDS.items() if name == "node_address")


def node_id(number: int) -> bytes:
    return bytes([number]) * 16


class Process:
    def __init__(self, net: Net, number: int, node: int) -> None:
        self.net = net
        self.node = node
        self.worker_id = bytes([100 + number]) * 16
        self.owner = self.worker_id + node_id(node)
        self.driven = Driven(worker_id=self.worker_id, node_id=node_id(node), kind=1, job=7)
        self.raylet, self.store = net.number(), net.number()
        self.asked: list[Pull] = []
        self.freed: list[tuple[int, int, int]] = []  # node, slot, generation
        self.ran: list[tuple[bytes, int]] = []  # arguments, attempt
        net.processes[self.worker_id] = self
        self.driven.set_now(net.now)
        self.driven.join(self.raylet)
        self.driven.join_store(self.store)

    def hear(self, type_: Type, payload: bytes, *, store: bool = False) -> None:
        """From its raylet, or its store."""
        assert self.driven.deliver(self.store if store else self.raylet, pack_header(len(payload), type_, epoch=1) + payload)

    def told(self, number: int, data: bytes) -> None:
        """What it says to its store."""
        while number == self.store and data:
            header = unpack_header(data[:HEADER_SIZE])
            payload, data = data[HEADER_SIZE : HEADER_SIZE + header.length], data[HEADER_SIZE + header.length :]
            if header.type == Type.PULL:
                self.asked.append(Pull.unpack(payload))
            elif header.type == Type.FREE:
                free = Free.unpack(payload)
                self.freed += [(free.node_id[0], *slot) for slot in free.slots]

    def lend(self, worker: Process, lease: int = 1) -> None:
        address = "" if worker.node == self.node else f"host-{worker.node}:1"
        self.hear(Type.LEASE_GRANT, LeaseGrant(0, lease, worker.worker_id, node_id(worker.node), address).pack())

    def submit(self, args: bytes, *deps: bytes, returns: int = 1, retries: int = 3) -> list[bytes]:
        return self.driven.submit(self.driven.lease_class(b"class"), args, deps, (), returns, retries, "f")

    def run(self, most: int = 1000) -> int:
        """Runs what came; each result lies in this node's store."""
        for n in range(most):
            run = self.driven.next_run()
            if run is None:
                return n
            assert self.driven.begin(run)
            self.ran.append((run.args, run.attempt))
            self.driven.reply(run, 0, [(KIND_BYTES, self.net.place(), []) for _ in range(self.net.returns)], 10)
        return most

    def want(self, ref: bytes) -> None:
        """Asks for it until its store was asked."""
        for _ in range(5):
            assert self.driven.get(ref) is None
            self.net.settle()
            if self.asked:
                return

    def bring(self, code: int = Code.OK, text: str = "") -> Pull:
        """Its store answers the oldest question."""
        pull = self.asked.pop(0)
        slot, generation, _ = self.net.place() if not code else (0, 0, 0)
        self.hear(Type.PULLED, Pulled(pull.id, code, slot, generation, text).pack(), store=True)
        self.net.settle(run=False)
        return pull

    def entries(self) -> int:
        return self.driven.counts()["entries"]


class Net:
    def __init__(self) -> None:
        self.now = 100 * SECOND
        self.returns = 1
        self.processes: dict[bytes, Process] = {}
        self.other: dict[int, tuple[Process, int]] = {}
        self._numbers = itertools.count(1)
        self._slots = itertools.count(1)

    def number(self) -> int:
        return next(self._numbers)

    def place(self) -> tuple[int, int, int]:
        return next(self._slots), 1, 300_000

    def _move(self) -> bool:
        moved = False
        for process in list(self.processes.values()):
            for token, worker_id, _ in process.driven.connects():
                if worker_id not in self.processes:
                    process.driven.refused(token, "nobody is there")
                    continue
                target, mine, theirs = self.processes[worker_id], self.number(), self.number()
                self.other[mine], self.other[theirs] = (target, theirs), (process, mine)
                assert process.driven.opened(token, mine)
                target.driven.accept(theirs, process.node != target.node)
            for number, data in process.driven.take_frames():
                moved = True
                if number in (process.raylet, process.store):
                    process.told(number, data)
                elif number in self.other and self.other[number][0].worker_id in self.processes:
                    process_there, end = self.other[number]
                    assert process_there.driven.deliver(end, data)
            for _number in process.driven.closes():
                moved = True
            for kind, _n, wanted, _text, _payload in process.driven.events():
                if kind == NODE_ADDRESS:
                    moved = True
                    process.driven.node_address(wanted, f"host-{wanted[0]}:1".encode())
        return moved

    def settle(self, run: bool = True) -> None:
        while self._move() or (run and sum(process.run() for process in list(self.processes.values()))):
            pass
        for process in self.processes.values():
            counted, found = process.driven.holdings()
            assert counted == found  # what job limits are held against

    def end_node(self, number: int, *who: Process) -> None:
        """A node and its processes are gone; these are told."""
        for process in [one for one in self.processes.values() if one.node == number]:
            del self.processes[process.worker_id]
        for process in who:
            process.hear(Type.NODE_DIED, NodeDied(node_id(number), "its lease ended").pack())
        self.settle(run=False)

    def wait(self, seconds: float, step: float = 0.25) -> None:
        for _ in range(int(seconds / step)):
            self.now += int(step * SECOND)
            for process in self.processes.values():
                process.driven.set_now(self.now)
                process.driven.timer()
            self.settle(run=False)


@pytest.fixture
def net() -> Net:
    return Net()


@pytest.fixture
def three(net: Net) -> tuple[Process, Process, Process]:
    """An owner and two workers, on three nodes."""
    return Process(net, 1, 1), Process(net, 2, 2), Process(net, 3, 3)


def made(net: Net, owner: Process, worker: Process, *refs: bytes, lease: int = 1) -> None:
    owner.lend(worker, lease)
    net.settle()
    assert all(owner.driven.entry(ref)[1] == 2 for ref in refs)  # in an arena


def test_a_lost_result_is_made_again_and_counted_once(net: Net, three: tuple[Process, Process, Process]) -> None:
    owner, first, second = three
    [ref] = owner.submit(b"x")
    made(net, owner, first, ref)
    assert owner.driven.counts()["lineage"] == 1
    net.end_node(2, owner)
    assert owner.driven.get(ref) is None
    owner.lend(second, 2)
    net.settle()
    assert second.ran == [(b"x", 1)]
    assert owner.driven.get(ref) is None  # it lies on another node
    net.settle()
    assert owner.bring().node_id == node_id(3)
    assert owner.driven.get(ref)[:2] == (True, KIND_STORED)
    owner.driven.drop(ref)
    net.settle()
    assert len(owner.freed) == 1
    assert owner.freed[0][0] == 3
    assert len(owner.driven.arena_effects()[0]) == 1  # the copy here
    counts = owner.driven.counts()
    assert counts["entries"] == counts["lineage"] == counts["lineage_bytes"] == counts["tasks"] == 0


def test_results_that_are_left_stay_what_they_are_when_their_task_runs_again(net: Net, three: tuple[Process, Process, Process]) -> None:
    owner, first, second = three
    net.returns = 2
    kept, lost = owner.submit(b"x", returns=2)
    made(net, owner, first, kept, lost)
    assert owner.driven.get(kept) is None
    net.settle()
    owner.bring()
    before = owner.driven.get(kept)
    net.end_node(2, owner)
    assert owner.driven.get(kept) == before  # the copy here steps in
    owner.lend(second, 2)
    net.settle()
    assert owner.driven.get(kept) == before
    assert [freed[0] for freed in owner.freed] == [3]  # what came a second time
    assert owner.driven.get(lost) is None
    net.settle()
    owner.bring()
    assert owner.driven.get(lost)[0]
    for ref in (kept, lost):
        owner.driven.drop(ref)
    net.settle()
    assert owner.entries() == 0


def test_several_lost_results_of_one_task_cost_one_run(net: Net, three: tuple[Process, Process, Process]) -> None:
    owner, first, second = three
    net.returns = 3
    refs = owner.submit(b"x", returns=3, retries=1)
    made(net, owner, first, *refs)
    net.end_node(2, owner)
    owner.lend(second, 2)
    net.settle()
    assert second.ran == [(b"x", 1)]
    assert [owner.driven.entry(ref)[1] for ref in refs] == [2, 2, 2]
    assert owner.driven.counts()["remade"] == 1


def test_arguments_that_were_let_go_are_made_again_first(net: Net, three: tuple[Process, Process, Process]) -> None:
    owner, first, second = three
    [a] = owner.submit(b"a")
    [b] = owner.submit(b"b", a)
    [c] = owner.submit(b"c", b)
    made(net, owner, first, c)
    owner.driven.drop(a)
    owner.driven.drop(b)
    net.settle()
    assert [freed[0] for freed in owner.freed] == [2, 2]  # their values are gone, and only their names are kept
    net.end_node(2, owner)
    owner.lend(second, 2)
    net.settle()
    while second.asked:
        second.bring()
        net.settle()
    assert [args for args, _ in second.ran] == [b"a", b"b", b"c"]
    assert owner.driven.entry(c)[1] == 2
    assert [freed[0] for freed in owner.freed] == [2, 2, 3, 3]  # let go again
    owner.driven.drop(c)
    net.settle()
    assert owner.entries() == 0


def test_a_chain_of_thousands_is_made_again_without_recursion(net: Net, three: tuple[Process, Process, Process]) -> None:
    owner, first, second = three
    refs = owner.submit(b"0")
    for _ in range(3000):
        refs += owner.submit(b"n", refs[-1])
    made(net, owner, first, refs[-1])
    for ref in refs[:-1]:
        owner.driven.drop(ref)
    net.settle()
    net.end_node(2, owner)
    owner.lend(second, 2)
    net.settle()
    assert len(second.ran) == 3001
    owner.driven.drop(refs[-1])
    net.settle()
    assert owner.entries() == 0


def test_a_borrower_that_finds_nothing_tells_the_owner_and_gets_what_is_made_again(net: Net, three: tuple[Process, Process, Process]) -> None:
    owner, first, second = three
    reader = Process(net, 4, 4)
    [ref] = owner.submit(b"x")
    made(net, owner, first, ref)
    reader.driven.borrow(ref, owner.owner)
    reader.want(ref)
    reader.bring(Code.OBJECT_FREED, "it has it no more")
    assert reader.driven.get(ref) is None
    net.settle()
    assert second.ran == []
    assert first.ran == [(b"x", 0), (b"x", 1)]  # its node lives, and its lease is still good
    reader.want(ref)
    reader.bring()
    assert reader.driven.get(ref)[:2] == (True, KIND_STORED)


def test_a_borrower_that_hears_of_a_death_first_is_believed(net: Net, three: tuple[Process, Process, Process]) -> None:
    owner, first, second = three
    reader = Process(net, 4, 4)
    [ref] = owner.submit(b"x")
    made(net, owner, first, ref)
    reader.driven.borrow(ref, owner.owner)
    assert reader.driven.get(ref) is None
    net.settle()
    net.end_node(2, reader)
    assert reader.driven.get(ref) is None
    net.settle()
    assert owner.driven.entry(ref)[1] == 0  # pending
    net.end_node(2, owner)
    owner.lend(second, 2)
    net.settle()
    reader.want(ref)
    reader.bring()
    assert reader.driven.get(ref)[0]


def test_what_one_reader_cannot_read_and_nobody_can_make_is_lost_to_it_alone(net: Net) -> None:
    owner, reader = Process(net, 1, 1), Process(net, 2, 2)
    ref = owner.driven.put(net.place())
    reader.driven.borrow(ref, owner.owner)
    reader.want(ref)
    reader.bring(Code.OBJECT_LOST, "the disk says no")
    assert reader.driven.get(ref) is None
    net.settle()
    assert reader.driven.get(ref)[:3] == (False, Code.OBJECT_LOST, "the disk says no")
    assert owner.driven.get(ref)[:2] == (True, KIND_STORED)


def test_a_lost_put_names_who_made_it(net: Net) -> None:
    owner = Process(net, 1, 1)
    ref = owner.driven.put(net.place())
    owner.driven.not_here(ref)
    assert owner.driven.get(ref) is None
    net.settle()
    owner.bring(Code.OBJECT_LOST, "the file is damaged")
    ok, code, why, _ = owner.driven.get(ref)
    assert not ok
    assert code == Code.OBJECT_WAS_PUT
    assert "the file is damaged. It was made by put() in the driver" in why


def test_an_executor_hands_back_a_task_whose_argument_is_lost(net: Net, three: tuple[Process, Process, Process]) -> None:
    owner, first, second = three
    [part] = owner.submit(b"part")
    made(net, owner, first, part)
    net.wait(0.25)  # the idle lease goes back
    net.end_node(2, second)  # the owner has not heard of it
    [whole] = owner.submit(b"whole", part)
    net.settle(run=False)
    owner.lend(second, 2)
    net.settle()
    # The one worker that is left makes the argument first, though it had the other task already.
    while second.asked:
        second.bring()
        net.settle()
    assert [args for args, _ in second.ran] == [b"part", b"whole"]
    assert owner.driven.entry(whole)[1] == 2
    assert second.ran[1] == (b"whole", 0)  # never started, so at no charge


def test_retries_are_used_up_by_making_again(net: Net, three: tuple[Process, Process, Process]) -> None:
    owner, first, second = three
    [ref] = owner.submit(b"x", retries=1)
    made(net, owner, first, ref)
    net.end_node(2, owner)
    made(net, owner, second, ref, lease=2)
    assert owner.driven.counts()["lineage"] == 0  # it will not run a third time
    net.end_node(3, owner)
    ok, code, why, _ = owner.driven.get(ref)
    assert not ok
    assert code == Code.RETRIES_EXHAUSTED
    assert "the node 030303030303 that held it died: its lease ended. It was returned by f, which has used all of its max_retries" in why


def test_the_oldest_goes_first_where_lineage_is_bounded(net: Net, three: tuple[Process, Process, Process]) -> None:
    owner, first, second = three
    owner.driven.limit_lineage(4000)
    refs = [owner.submit(b"x" * 100)[0] for _ in range(10)]
    made(net, owner, first, *refs)
    counts = owner.driven.counts()
    assert counts["lineage_bytes"] <= 4000
    assert 0 < counts["lineage"] < 10
    net.end_node(2, owner)
    made(net, owner, second, *refs[-counts["lineage"] :], lease=2)
    assert {owner.driven.get(ref)[1] for ref in refs[: -counts["lineage"]]} == {Code.LINEAGE_EVICTED}


def test_a_small_argument_is_kept_and_a_put_one_that_is_let_go_is_named(net: Net, three: tuple[Process, Process, Process]) -> None:
    owner, first, second = three
    small, stored = owner.driven.put(b"small"), owner.driven.put(net.place())
    [with_small] = owner.submit(b"s", small)
    [with_stored] = owner.submit(b"p", stored)
    owner.lend(first)
    net.settle()
    while first.asked:
        first.bring()
        net.settle()
    for ref in (small, stored):
        owner.driven.drop(ref)
    net.settle()
    net.end_node(2, owner)
    made(net, owner, second, with_small, lease=2)
    ok, code, why, _ = owner.driven.get(with_stored)
    assert not ok
    assert code == Code.LINEAGE_BROKEN
    assert f"its argument {stored.hex()}" in why


def test_results_of_actors_are_made_again_where_the_caller_allowed_it_and_the_actor_lives(net: Net, three: tuple[Process, Process, Process]) -> None:
    owner, first, second = three
    actor = owner.driven.new_actor_id()
    owner.driven.actor_update(actor, ALIVE, first.worker_id, node_id(2), 1)
    again, once = owner.driven.submit_actor(actor, b"again", max_retries=1), owner.driven.submit_actor(actor, b"once")
    net.settle()
    net.end_node(2, owner)
    assert owner.driven.get(once[0])[1] == Code.RETRIES_DISABLED
    assert owner.driven.get(again[0]) is None
    owner.driven.actor_update(actor, ALIVE, second.worker_id, node_id(3), 2)
    net.settle()
    assert second.ran == [(b"again", 1)]
    assert owner.driven.entry(again[0])[1] == 2
    [late] = owner.driven.submit_actor(actor, b"late", max_retries=3)
    net.settle()
    net.end_node(3, owner)
    owner.driven.actor_update(actor, DEAD, b"", b"", 2, Code.ACTOR_DIED, "it had its restarts")
    net.settle()
    assert not owner.driven.get(late)[0]
    assert "it had its restarts" in owner.driven.get(late)[2]


def test_a_node_that_cannot_be_reached_is_asked_again_until_it_is_dead(net: Net, three: tuple[Process, Process, Process]) -> None:
    owner, first, second = three
    [ref] = owner.submit(b"x")
    made(net, owner, first, ref)
    net.wait(0.25)  # the idle lease goes back
    [user] = owner.submit(b"u", ref)
    owner.lend(second, 2)
    net.settle()
    for _ in range(5):
        second.bring(Code.UNREACHABLE, "no route")
        assert second.asked == []
        net.wait(0.5)
        assert len(second.asked) == 1
    second.bring()
    net.settle()
    assert owner.driven.entry(user)[1] == 2
    assert owner.driven.counts()["remade"] == 0


def test_only_the_task_that_had_started_pays_for_its_workers_death(net: Net, three: tuple[Process, Process, Process]) -> None:
    owner, first, second = three
    refs = [owner.submit(bytes([n]), retries=0)[0] for n in range(5)]
    owner.driven.set_now(net.now)
    owner.lend(first)
    net.settle(run=False)
    first.run(1)  # measured now, so that the others come together
    net.settle(run=False)
    poison = first.driven.next_run()
    assert first.driven.begin(poison)
    assert owner.driven.leases()[0][3] == 4  # the poison and three behind it
    del net.processes[first.worker_id]
    owner.hear(Type.WORKER_DIED, WorkerDied(first.worker_id, node_id(2), poison.task_id, Code.WORKER_CRASHED, "signal 11 (SIGSEGV)").pack())
    net.settle(run=False)
    assert owner.driven.get(refs[1])[:2] == (False, Code.WORKER_CRASHED)
    made(net, owner, second, *refs[2:], lease=2)
    assert [(args[0], attempt) for args, attempt in second.ran] == [(2, 0), (3, 0), (4, 0)]


def test_a_result_counts_with_its_writer_until_its_owner_has_it_or_is_dead(net: Net, three: tuple[Process, Process, Process]) -> None:
    """Of a job with a limit."""
    owner, worker, third = three
    worker.driven.limit_job()
    [ref] = owner.submit(b"x")
    owner.lend(worker)
    net.settle(run=False)
    assert worker.run() == 1
    assert worker.driven.allowance() == {"held": 0, "leaving": 300_000, "passed": 0}
    net.settle()
    assert owner.driven.holdings()[0] == (0, 300_000)
    assert worker.driven.allowance() == {"held": 0, "leaving": 0, "passed": 300_000}
    owner.submit(b"y")
    net.settle(run=False)
    assert worker.run() == 1
    net.end_node(1, worker, third)
    net.wait(12)
    assert worker.driven.allowance() == {"held": 0, "leaving": 0, "passed": 600_000}
    assert ref
