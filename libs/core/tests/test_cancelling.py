"""Cancelling, when it meets something else on its way. The protocol alone, driven by hand: an owner and a worker, whose frames the tests carry."""

from __future__ import annotations

from shoal._core.driven import KIND_BYTES, Driven
from shoal_base.errors import Code
from shoal_base.frames import Type, pack_header
from shoal_base.wire import LeaseGrant

MILLISECOND = 1_000_000
NODE, OWNER, WORKER = b"n" * 16, b"o" * 16, b"w" * 16
RAYLET, PEER = 1, 2  # connections: to the raylet, to each other


class Pair:
    def __init__(self) -> None:
        self.now = 100_000 * MILLISECOND
        self.owner, self.worker = (Driven(worker_id=who, node_id=NODE, kind=kind, job=1) for who, kind in ((OWNER, 0), (WORKER, 1)))
        self.wait(0)
        self.owner.join(RAYLET)
        self.worker.join(RAYLET)
        self.lease_class = self.owner.lease_class(b"class")
        self.lend(1)
        self.carry()

    def lend(self, lease: int) -> None:
        payload = LeaseGrant(0, lease, WORKER, NODE, "").pack()
        assert self.owner.deliver(RAYLET, pack_header(len(payload), Type.LEASE_GRANT, epoch=1) + payload)
        for token, _, _ in self.owner.connects():
            assert self.owner.opened(token, PEER)
            self.worker.accept(PEER, False)

    def submit(self) -> bytes:
        return self.owner.submit(self.lease_class, b"x", (), (), 1, 3, "f")[0]

    def wait(self, milliseconds: int) -> None:
        self.now += milliseconds * MILLISECOND
        for one in (self.owner, self.worker):
            one.set_now(self.now)

    def carry(self) -> None:
        """What both have written so far arrives: neither had read the other's."""
        under_way = [(there, data) for here, there in ((self.owner, self.worker), (self.worker, self.owner)) for end, data in here.take_frames() if end == PEER]
        for there, data in under_way:
            assert there.deliver(PEER, data)

    def run(self) -> None:
        """The next task, at once."""
        run = self.worker.next_run()
        assert self.worker.begin(run)
        self.worker.reply(run, 0, [(KIND_BYTES, b"done", [])], 1)
        self.carry()


def test_a_task_that_is_cancelled_while_it_is_handed_back_fails_and_never_runs() -> None:
    pair = Pair()
    pair.submit()
    pair.carry()
    pair.run()  # short: others are sent ahead from now on
    first, second = pair.submit(), pair.submit()
    pair.carry()
    assert pair.worker.begin(pair.worker.next_run())
    pair.wait(20)
    pair.worker.timer()  # the second goes back
    pair.owner.cancel(second[:16], False, False)
    pair.carry()
    pair.carry()
    assert pair.owner.get(second)[:2] == (False, Code.CANCELLED)
    assert pair.owner.get(first) is None
    pair.lend(2)
    pair.carry()
    assert pair.worker.next_run() is None
    assert pair.owner.counts()["tasks"] == 1
