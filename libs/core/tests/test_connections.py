"""Connections between processes of two nodes: what breaks goes on, what is idle is closed, what is dead is forgotten. The protocol alone, driven by hand."""

from __future__ import annotations

import pytest
from shoal._core.driven import KIND_BYTES, Driven
from shoal_base.errors import Code
from shoal_base.frames import HEADER_SIZE, Type, pack_header, unpack_header
from shoal_base.wire import LeaseGrant, LeaseReclaim, LeaseReturn

JOB = 7
SECOND = 1_000_000_000
ALIVE = 1


class Process:
    """One protocol, and the ends of its connections."""

    def __init__(self, net: Net, number: int, node: int) -> None:
        self.worker_id = bytes([number]) * 16
        self.node_id = bytes([node]) * 16
        self.owner = self.worker_id + self.node_id
        self.driven = Driven(worker_id=self.worker_id, node_id=self.node_id, kind=1, job=JOB)
        self.net = net
        net.processes[self.worker_id] = self
        self.driven.set_now(net.now)
        self.raylet = net.raylet_end()
        self.driven.join(self.raylet)
        self.taken: list[bytes] = []

    def run_all(self) -> None:
        """Runs whatever came; each answers with its arguments."""
        while (run := self.driven.next_run()) is not None:
            assert self.driven.begin(run)
            self.taken.append(run.args)
            self.driven.reply(run, 0, [(KIND_BYTES, run.args, [])], 10)

    def lend(self, worker: Process, lease: int) -> None:
        grant = LeaseGrant(0, lease, worker.worker_id, worker.node_id, "there:1").pack()
        assert self.driven.deliver(self.raylet, pack_header(len(grant), Type.LEASE_GRANT, epoch=1) + grant)

    def ask_back(self, worker: Process, lease: int) -> None:
        reclaim = LeaseReclaim(lease, worker.node_id).pack()
        assert self.driven.deliver(self.raylet, pack_header(len(reclaim), Type.LEASE_RECLAIM, epoch=1) + reclaim)

    def returned(self) -> list[tuple[int, bool]]:
        """(lease, whether its worker must not be used again), as its raylet was told."""
        found, data = [], self.net.said.get(self.raylet, b"")
        while data:
            header = unpack_header(data[:HEADER_SIZE])
            payload, data = data[HEADER_SIZE : HEADER_SIZE + header.length], data[HEADER_SIZE + header.length :]
            if header.type == Type.LEASE_RETURN:
                given = LeaseReturn.unpack(payload)
                found.append((given.lease_id, given.discard))
        return found

    def calls(self, actor_id: bytes, *args: bytes) -> list[bytes]:
        return [self.driven.submit_actor(actor_id, one)[0] for one in args]

    def knows_actor(self, actor_id: bytes, where: Process) -> None:
        self.driven.actor_update(actor_id, ALIVE, where.worker_id, where.node_id, 1)


class Net:
    """Sockets of pretence: a pair of numbers each. What is sent waits until `deliver`; a cut loses it."""

    def __init__(self) -> None:
        self.now = 100 * SECOND
        self.processes: dict[bytes, Process] = {}
        self.other: dict[int, tuple[Process, int]] = {}
        self.on_the_way: list[tuple[int, bytes]] = []
        self.said: dict[int, bytes] = {}  # to a raylet
        self.refusing = False
        self.dials = 0
        self._ends = 0

    def raylet_end(self) -> int:
        self._ends += 1
        return self._ends

    def pairs(self) -> list[tuple[int, int]]:
        return sorted((one, end) for one, (_, end) in self.other.items() if one < end)

    def gather(self) -> None:
        for process in self.processes.values():
            for token, worker_id, _ in process.driven.connects():
                self.dials += 1
                if self.refusing:
                    process.driven.refused(token, "nobody is there")
                    continue
                target = self.processes[worker_id]
                self._ends += 2
                mine, theirs = self._ends - 1, self._ends
                self.other[mine], self.other[theirs] = (target, theirs), (process, mine)
                assert process.driven.opened(token, mine)
                target.driven.accept(theirs, process.node_id != target.node_id)
            for number, data in process.driven.take_frames():
                if number == process.raylet:
                    self.said[number] = self.said.get(number, b"") + data
                elif number in self.other:
                    self.on_the_way.append((number, data))
            for number in process.driven.closes():
                self.end(number)

    def end(self, number: int) -> None:
        if number in self.other:
            process, end = self.other.pop(number)
            self.other.pop(end, None)
            process.driven.closed(end)

    def deliver(self, most: int = 1_000_000) -> int:
        done = 0
        self.gather()
        while self.on_the_way and done < most:
            number, data = self.on_the_way.pop(0)
            if number in self.other:
                process, end = self.other[number]
                assert process.driven.deliver(end, data)
                done += 1
            self.gather()
        return done

    def settle(self) -> None:
        """Until nobody has anything to say or to run."""
        while True:
            moved = self.deliver()
            for process in self.processes.values():
                process.run_all()
            self.gather()
            if not moved and not self.on_the_way:
                return

    def cut(self) -> None:
        """Every connection between nodes breaks; both sides see it."""
        self.on_the_way = []
        for one, end in self.pairs():
            (far, _), (near, _) = self.other[one], self.other[end]
            if near.node_id != far.node_id:
                del self.other[one], self.other[end]
                near.driven.closed(one)
                far.driven.closed(end)

    def wait(self, seconds: float, step: float = 0.25) -> None:
        for _ in range(int(seconds / step)):
            self.now += int(step * SECOND)
            for process in self.processes.values():
                process.driven.set_now(self.now)
                process.driven.timer()
            self.settle()


@pytest.fixture
def net() -> Net:
    return Net()


def connected(net: Net) -> tuple[Process, Process, bytes]:
    """A caller and an actor on two nodes, of which a first call has been answered."""
    caller, actor = Process(net, 1, 1), Process(net, 2, 2)
    actor_id = caller.driven.new_actor_id()
    caller.knows_actor(actor_id, actor)
    caller.calls(actor_id, b"a")
    net.settle()
    return caller, actor, actor_id


def test_what_was_lost_with_a_connection_is_sent_again_and_nothing_runs_twice(net: Net) -> None:
    caller, actor = Process(net, 1, 1), Process(net, 2, 2)
    actor_id = caller.driven.new_actor_id()
    caller.knows_actor(actor_id, actor)
    sent = [bytes([n]) for n in range(40)]
    refs = []
    for n, one in enumerate(sent):
        refs += caller.calls(actor_id, one)
        if n % 3 == 0:
            net.deliver(1)
        if n % 5 == 0:
            actor.run_all()  # its answers may be on their way when the next cut comes
            net.gather()
        if n % 4 == 3:
            net.cut()
            net.deliver(2)  # the two HELLOs
    net.settle()
    assert actor.taken == sent
    assert [caller.driven.get(ref)[2] for ref in refs] == sent
    assert caller.driven.counts()["resumed"] >= 5
    assert len(net.pairs()) == 1


def test_a_side_that_had_not_noticed_the_break_goes_on_as_well(net: Net) -> None:
    caller, actor, actor_id = connected(net)
    [(one, end)] = net.pairs()
    caller.calls(actor_id, b"b")
    net.gather()
    net.on_the_way = []
    del net.other[one], net.other[end]
    caller.driven.closed(one)
    net.settle()
    assert actor.taken == [b"a", b"b"]
    assert caller.driven.counts()["resumed"] == actor.driven.counts()["resumed"] == 1


def test_a_connection_that_breaks_again_while_it_goes_on_is_dialled_again_and_nothing_runs_twice(net: Net) -> None:
    caller, actor, actor_id = connected(net)
    [ref] = caller.calls(actor_id, b"b")
    for hellos in (0, 1, 2):
        net.cut()
        net.deliver(hellos)
    net.cut()
    net.wait(1)
    assert actor.taken == [b"a", b"b"] and caller.driven.get(ref)[2] == b"b"
    assert len(net.pairs()) == 1


def test_counts_of_references_survive_a_cut(net: Net) -> None:
    owner, borrower = Process(net, 1, 1), Process(net, 2, 2)
    ref = owner.driven.put(b"x")
    borrower.driven.borrow(ref, owner.owner)
    net.gather()
    net.cut()  # with the registration on its way
    net.settle()
    owner.driven.drop(ref)
    assert owner.driven.entry(ref)[5] == {borrower.worker_id: 1}
    borrower.driven.drop(ref)
    net.gather()
    net.cut()
    net.settle()
    assert owner.driven.entry(ref) is None


def test_who_does_not_come_back_is_given_up(net: Net) -> None:
    caller, actor, actor_id = connected(net)
    [lost] = caller.calls(actor_id, b"b")
    net.gather()
    net.refusing = True
    net.cut()
    net.wait(2)
    ok, _code, why, _ = caller.driven.get(lost)
    assert not ok and "connection to its node broke" in why
    net.refusing = False
    [fresh] = caller.calls(actor_id, b"c")
    net.settle()
    assert caller.driven.get(fresh)[2] == b"c"
    assert actor.taken == [b"a", b"c"]
    net.wait(12)
    assert actor.driven.counts()["peers"] == 2  # the raylet and the caller


def test_a_lease_of_a_worker_that_cannot_be_reached_is_given_back_and_not_forgotten(net: Net) -> None:
    caller, worker = Process(net, 1, 1), Process(net, 2, 2)
    kind = caller.driven.lease_class(b"class")
    caller.driven.submit(kind, b"a")
    caller.lend(worker, 1)
    net.settle()
    net.wait(0.5)
    assert (worker.taken, caller.returned()) == ([b"a"], [(1, False)])
    net.refusing = True
    net.cut()
    net.settle()
    net.wait(0.75)  # dialled again in vain; whether the worker is dead is judged a second after the break
    caller.driven.submit(kind, b"b")
    caller.lend(worker, 2)
    net.settle()
    assert caller.driven.leases() == [] and caller.returned() == [(1, False), (2, True)]


def test_an_epoch_that_has_ended_on_the_other_side_is_not_gone_on_with(net: Net) -> None:
    caller, actor, actor_id = connected(net)
    [lost] = caller.calls(actor_id, b"b")
    net.gather()
    net.cut()
    actor.driven.set_now(net.now + 11 * SECOND)
    actor.driven.timer()  # it waited for its bound
    net.settle()
    net.wait(2)
    assert not caller.driven.get(lost)[0]
    [fresh] = caller.calls(actor_id, b"c")
    net.settle()
    assert caller.driven.get(fresh)[2] == b"c"


@pytest.mark.parametrize("node", [1, 2])
def test_an_idle_connection_is_closed_by_agreement_and_opened_again_on_demand(net: Net, node: int) -> None:
    caller, actor = Process(net, 1, 1), Process(net, 2, node)
    actor_id = caller.driven.new_actor_id()
    caller.knows_actor(actor_id, actor)
    caller.calls(actor_id, b"a")
    net.settle()
    assert len(net.pairs()) == 1
    net.wait(90, step=1)
    assert net.pairs() == []
    assert caller.driven.counts()["peers"] == actor.driven.counts()["peers"] == 1  # the raylet
    caller.calls(actor_id, b"b")
    net.settle()
    assert actor.taken == [b"a", b"b"]
    assert net.dials == 2


def test_a_connection_with_an_open_question_is_not_idle(net: Net) -> None:
    owner, borrower = Process(net, 1, 1), Process(net, 2, 2)
    actor_id = owner.driven.new_actor_id()
    [pending] = owner.calls(actor_id, b"")  # no life of that actor is known, so it waits
    borrower.driven.borrow(pending, owner.owner)
    assert borrower.driven.get(pending) is None
    net.settle()
    net.wait(200, step=5)
    assert len(net.pairs()) == 1
    owner.driven.actor_update(actor_id, 3, b"", b"", 1, 33, "gone")
    net.settle()
    assert borrower.driven.get(pending)[0] is False


def test_a_question_that_crosses_the_bye_keeps_the_connection(net: Net) -> None:
    caller, actor = Process(net, 1, 1), Process(net, 2, 2)
    actor_id, back = caller.driven.new_actor_id(), actor.driven.new_actor_id()
    caller.knows_actor(actor_id, actor)
    actor.knows_actor(back, caller)
    caller.calls(actor_id, b"a")
    net.settle()
    net.now += 80 * SECOND
    caller.driven.set_now(net.now)
    caller.driven.timer()  # says BYE
    actor.calls(back, b"b")  # before it heard
    net.settle()
    assert caller.taken == [b"b"]
    assert len(net.pairs()) == 1
    caller.calls(actor_id, b"c")
    net.settle()
    assert net.dials == 1


def test_records_of_closed_connections_are_freed(net: Net) -> None:
    one = Process(net, 1, 1)
    for number in range(2, 60):
        other = Process(net, number, 2)
        actor_id = one.driven.new_actor_id()
        one.knows_actor(actor_id, other)
        one.calls(actor_id, b"a")
        net.settle()
        one.driven.worker_died(other.worker_id, other.node_id)
        for pair in net.pairs():
            net.end(pair[1])
            net.end(pair[0])
        del net.processes[other.worker_id]
    net.wait(1)
    assert one.driven.counts()["peers"] == 1


def test_deaths_are_remembered_within_a_bound(net: Net) -> None:
    one = Process(net, 1, 1)
    for number in range(12_000):
        one.driven.worker_died(number.to_bytes(16, "little"), b"n" * 16)
    assert one.driven.counts()["dead"] == 10_000


def test_rows_go_with_the_node_of_processes_that_were_never_spoken_with(net: Net) -> None:
    owner, middle, far = Process(net, 1, 1), Process(net, 2, 2), Process(net, 3, 3)
    ref = owner.driven.put(b"x")
    actor_id, passing = owner.driven.new_actor_id(), middle.driven.new_actor_id()
    owner.knows_actor(actor_id, middle)
    middle.driven.borrow(ref, owner.owner)
    net.settle()
    # `middle` passes the reference on, and so registers `far` with the owner, which has no connection with it.
    inside = middle.driven.put(b"", [(ref, owner.owner)])
    far.driven.borrow(inside, middle.owner)
    assert far.driven.get(inside) is None
    net.settle()
    assert owner.driven.entry(ref)[5] == {middle.worker_id: 1, far.worker_id: 1}
    assert passing
    owner.driven.node_died(far.node_id)
    assert owner.driven.entry(ref)[5] == {middle.worker_id: 1}
    owner.driven.node_died(middle.node_id)
    owner.driven.drop(ref)
    assert owner.driven.entry(ref) is None


def test_a_dial_that_nobody_answers_is_no_death_and_costs_no_retry(net: Net) -> None:
    caller, worker, other = Process(net, 1, 1), Process(net, 2, 2), Process(net, 3, 3)
    kind = caller.driven.lease_class(b"class")
    [ref] = caller.driven.submit(kind, b"a", max_retries=0)
    net.refusing = True
    caller.lend(worker, 1)
    net.deliver()
    assert caller.driven.leases() == [] and caller.returned() == [(1, False)]  # whole: it has seen nothing of the task
    assert caller.driven.counts()["dead"] == 0 and caller.driven.get(ref) is None
    net.refusing = False
    caller.lend(other, 2)
    net.settle()
    assert caller.driven.get(ref)[2] == b"a"
    [again] = caller.driven.submit(kind, b"b", max_retries=0)
    caller.ask_back(other, 2)
    caller.lend(worker, 3)  # by the same raylet, a moment later
    net.wait(1)
    assert caller.driven.get(again)[2] == b"b"


def test_a_process_that_its_node_says_has_ended_is_dead(net: Net) -> None:
    caller, worker = Process(net, 1, 1), Process(net, 2, 2)
    kind = caller.driven.lease_class(b"class")
    [ref] = caller.driven.submit(kind, b"a", max_retries=0)
    caller.lend(worker, 1)
    [(token, _, _)] = caller.driven.connects()
    caller.driven.refused(token, "no such worker is on that node", True)
    assert caller.driven.counts()["dead"] == 1
    assert not caller.driven.get(ref)[0] and "no such worker" in caller.driven.get(ref)[2]


def test_calls_that_were_never_sent_go_by_a_later_dial_and_are_counted_once(net: Net) -> None:
    caller, actor = Process(net, 1, 1), Process(net, 2, 2)
    actor_id = caller.driven.new_actor_id()
    caller.knows_actor(actor_id, actor)
    inner = caller.driven.put(b"inner")
    outer = caller.driven.put(b"outer", [(inner, caller.owner)])
    net.refusing = True
    refs = [caller.driven.submit_actor(actor_id, bytes([n]), deps=[outer])[0] for n in range(3)]
    net.wait(3)
    assert [caller.driven.get(ref) for ref in refs] == [None] * 3
    assert 5 < net.dials < 20  # four a second
    net.refusing = False
    net.wait(1)
    assert actor.taken == [b"\0", b"\1", b"\2"]
    assert [caller.driven.get(ref)[2] for ref in refs] == actor.taken
    for ref in refs:
        caller.driven.drop(ref)
    caller.driven.drop(outer)
    net.settle()
    assert caller.driven.entry(inner)[5] in (None, {})  # nobody else holds it


def test_who_is_dialled_for_in_vain_for_ten_seconds_cannot_be_reached_and_may_be_later(net: Net) -> None:
    owner, borrower, actor = Process(net, 1, 1), Process(net, 2, 2), Process(net, 3, 3)
    ref = owner.driven.put(b"x")
    actor_id = borrower.driven.new_actor_id()
    borrower.knows_actor(actor_id, actor)
    net.refusing = True
    borrower.driven.borrow(ref, owner.owner)
    assert borrower.driven.get(ref) is None
    [call] = borrower.calls(actor_id, b"a")
    net.wait(9)
    assert borrower.driven.get(ref) is None and borrower.driven.get(call) is None
    net.wait(3)
    ok, code, why, _ = borrower.driven.get(ref)
    assert not ok and code == Code.OWNER_DIED and "cannot be reached: nobody is there" in why
    assert not borrower.driven.get(call)[0] and "cannot be reached" in borrower.driven.get(call)[2]
    net.refusing = False
    [later] = borrower.calls(actor_id, b"b")
    net.wait(1)
    assert borrower.driven.get(later)[2] == b"b"


def two_with_actors_at_each_other(net: Net) -> tuple[Process, bytes, Process, bytes]:
    one, other = Process(net, 1, 1), Process(net, 2, 2)
    mine, theirs = one.driven.new_actor_id(), other.driven.new_actor_id()
    one.knows_actor(mine, other)
    other.knows_actor(theirs, one)
    return one, mine, other, theirs


def test_a_dial_in_vain_uses_the_connection_that_the_other_side_has_opened(net: Net) -> None:
    one, mine, other, theirs = two_with_actors_at_each_other(net)
    [ref] = one.calls(mine, b"a")
    [(token, _, _)] = one.driven.connects()
    other.calls(theirs, b"b")
    net.settle()
    one.driven.refused(token, "it does not answer")
    net.settle()
    assert one.driven.get(ref)[2] == b"a" and net.dials == 1


def test_a_dial_in_vain_that_nobody_repeated_does_not_count_towards_the_ten_seconds_of_a_later_one(net: Net) -> None:
    owner, borrower = Process(net, 1, 1), Process(net, 2, 2)
    kind = borrower.driven.lease_class(b"class")
    borrower.driven.submit(kind, b"a")
    net.refusing = True
    borrower.lend(owner, 1)
    net.settle()
    assert net.dials == 1 and borrower.returned() == [(1, False)]  # the task waits for another lease: nobody dials
    net.refusing = False
    net.wait(12)
    net.refusing = True
    ref = owner.driven.put(b"x")
    borrower.driven.borrow(ref, owner.owner)
    assert borrower.driven.get(ref) is None
    net.wait(9)
    assert borrower.driven.get(ref) is None and net.dials > 30
    net.refusing = False
    net.wait(1)
    assert borrower.driven.get(ref)[2] == b"x"


def test_who_has_connected_to_this_process_can_be_reached_however_long_it_was_dialled_for(net: Net) -> None:
    one, mine, other, theirs = two_with_actors_at_each_other(net)
    net.refusing = True
    ref = other.driven.put(b"x")
    one.driven.borrow(ref, other.owner)
    assert one.driven.get(ref) is None
    [call] = one.calls(mine, b"a")
    net.wait(9.5)
    net.now += SECOND // 2
    one.driven.set_now(net.now)
    one.driven.timer()
    [(token, _, _)] = one.driven.connects()  # takes its time
    net.refusing = False
    other.calls(theirs, b"b")
    net.wait(1)
    one.driven.refused(token, "it does not answer")
    net.settle()
    assert one.driven.get(ref)[2] == b"x" and one.driven.get(call)[2] == b"a"


def test_who_is_taken_for_dead_and_lives_is_not_left_waiting_on_a_connection_that_nobody_looks_at(net: Net) -> None:
    caller, worker, other = Process(net, 1, 1), Process(net, 2, 2), Process(net, 3, 3)
    kind = caller.driven.lease_class(b"class")
    caller.driven.submit(kind, b"a")
    caller.lend(worker, 1)
    net.settle()
    worker.driven.worker_died(caller.worker_id, caller.node_id)
    [ref] = caller.driven.submit(kind, b"b")
    net.settle()
    assert worker.taken == [b"a"]
    net.wait(4)
    assert caller.returned() == [(1, True)]
    caller.lend(other, 2)
    net.settle()
    assert caller.driven.get(ref)[2] == b"b"


def test_a_lease_that_is_asked_back_and_not_known_goes_back(net: Net) -> None:
    caller, worker = Process(net, 1, 1), Process(net, 2, 2)
    caller.ask_back(worker, 9)
    net.settle()
    assert caller.returned() == [(9, False)]


def test_what_waits_behind_a_running_task_is_handed_back_though_the_last_of_them_was_a_dead_callers(net: Net) -> None:
    caller, worker, late = Process(net, 1, 1), Process(net, 2, 2), Process(net, 3, 3)
    kind = caller.driven.lease_class(b"class")
    for n in range(3):  # so that it is known to be short, and several go at once
        caller.driven.submit(kind, bytes([n]))
    caller.lend(worker, 1)
    net.settle()
    first, second = (caller.driven.submit(kind, one)[0] for one in (b"x", b"y"))
    net.deliver()
    run = worker.driven.next_run()
    assert worker.driven.begin(run)
    late.driven.submit(late.driven.lease_class(b"class"), b"z")
    late.lend(worker, 2)  # its former client did not give it back in time
    net.deliver()
    worker.driven.worker_died(late.worker_id, late.node_id)
    net.now += SECOND // 50
    worker.driven.set_now(net.now)
    worker.driven.timer()
    net.deliver()
    assert caller.driven.counts()["ready"] == 1  # y, which may go elsewhere
    assert worker.driven.next_run() is None
    worker.driven.reply(run, 0, [(KIND_BYTES, run.args, [])], 10)
    net.settle()
    assert [caller.driven.get(ref)[2] for ref in (first, second)] == [b"x", b"y"]


def test_what_had_not_begun_when_its_callers_connection_was_given_up_never_begins(net: Net) -> None:
    caller, worker, other = Process(net, 1, 1), Process(net, 2, 2), Process(net, 3, 3)
    kind = caller.driven.lease_class(b"class")
    [ref] = caller.driven.submit(kind, b"a")
    caller.lend(worker, 1)
    net.deliver()
    net.refusing = True
    net.cut()
    for _ in range(12):
        net.now += SECOND
        for process in net.processes.values():
            process.driven.set_now(net.now)
            process.driven.timer()
        net.deliver()
    assert worker.driven.next_run() is None
    net.refusing = False
    caller.lend(other, 2)
    net.settle()
    assert (worker.taken, other.taken, caller.driven.get(ref)[2]) == ([], [b"a"], b"a")


def test_what_one_worker_of_a_dead_node_loses_does_not_go_to_another_one_there(net: Net) -> None:
    caller, one, two = Process(net, 1, 1), Process(net, 2, 2), Process(net, 3, 2)
    kind = caller.driven.lease_class(b"class")
    first, _second = (caller.driven.submit(kind, args, max_retries=1)[0] for args in (b"a", b"b"))
    caller.lend(one, 1)
    caller.lend(two, 2)
    net.deliver()
    caller.driven.node_died(two.node_id)
    assert caller.driven.leases() == [] and caller.driven.counts()["ready"] == 2
    assert caller.driven.get(first) is None  # one retry paid, not two
