"""What a worker is told when it is lent: packed once for alike leases, and never another's."""

from __future__ import annotations

import asyncio

import pytest
from raylet_world import spec
from shoal_base.wire import LeaseBegin
from shoal_raylet import effects as do
from shoal_raylet import outbox
from shoal_raylet.v1 import raylet_pb2 as pb

pytestmark = pytest.mark.timeout(30)


class Conn:
    def __init__(self) -> None:
        self.contexts: list[pb.LeaseContext] = []

    def send(self, type_: int, payload: bytes) -> None:
        self.contexts.append(pb.LeaseContext.FromString(LeaseBegin.unpack(payload).context))


@pytest.fixture
def told():
    loop = asyncio.new_event_loop()
    conn, box = Conn(), outbox.Outbox(loop)

    def tell(wish, owner=b"o" * 16, owner_node=b"n" * 16, gpus=(), incarnation=0, resources=None):
        box.begin(conn, do.BeginLease(b"w" * 16, 1, wish, owner, owner_node, wish.resources if resources is None else resources, gpus, incarnation))
        return conn.contexts[-1]

    yield tell
    loop.close()


def test_each_owner_class_and_device_has_its_own_context(told):
    one, other, gpu = spec(depth=1), spec(depth=2), spec(resources={"GPU": 1})
    for _ in range(2):
        assert told(one).depth == 1 and told(other).depth == 2
        assert told(one, owner=b"p" * 16).owner_worker_id == b"p" * 16 and told(one).owner_worker_id == b"o" * 16
        assert told(one, owner_node=b"m" * 16).owner_node_id == b"m" * 16 and told(one).owner_node_id == b"n" * 16
        assert [list(told(gpu, gpus=(device,)).accelerators["GPU"].ids) for device in "01"] == [["0"], ["1"]]
        assert told(one, incarnation=3).incarnation == 3 and told(one).incarnation == 0
        assert dict(told(one, resources={}).resources) == {} and dict(told(one).resources) == {"CPU": 10_000}


def test_of_many_classes_the_latest_are_kept(told, monkeypatch):
    monkeypatch.setattr(outbox, "MAX_CONTEXTS", 4)
    packed = []
    pack = outbox._pack_context
    monkeypatch.setattr(outbox, "_pack_context", lambda effect: packed.append(effect) or pack(effect))
    wishes = [spec(depth=n) for n in range(6)]
    assert [told(wish).depth for wish in wishes] == list(range(6)) and len(packed) == 6
    assert told(wishes[5]).depth == 5 and len(packed) == 6, "it was kept"
    assert told(wishes[0]).depth == 0 and len(packed) == 7, "it was not"
