"""What others are told, or do, is kept before: a kill of the control store undoes nothing that anybody knows of."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from gcs_rig import FakeRaylet, Listener, client, raylets, until
from gcs_states import actor_id, actor_request, group, group_id
from shoal_gcs.config import Config
from shoal_gcs.server import Server
from shoal_gcs.storage.backend import Batch
from shoal_gcs.storage.sqlite import SqliteBackend
from shoal_gcs.v1 import gcs_pb2 as pb
from shoal_gcs.v1 import gcs_pb2_grpc as rpc

pytestmark = pytest.mark.timeout(60)
# Longer than anything takes that is not held up.
QUIET_S = 0.4


class Gated(SqliteBackend):
    """Its disk takes as long as the test wants."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.open_gate = threading.Event()
        self.open_gate.set()

    def apply(self, batch: Batch) -> None:
        assert self.open_gate.wait(20)
        super().apply(batch)


@contextlib.asynccontextmanager
async def gated(tmp_path: Path) -> AsyncIterator[tuple[Gated, rpc.GcsStub, FakeRaylet]]:
    disk = Gated(str(tmp_path / "gcs.db"))
    server = Server(Config(secrets_dir=tmp_path / "secrets"), backend=disk)
    await server.start()
    try:
        async with client(server.address, tmp_path / "secrets") as stub, raylets(stub, tmp_path / "secrets") as [node]:
            try:
                yield disk, stub, node
            finally:
                disk.open_gate.set()
    finally:
        await server.close()


def test_an_actor_is_started_named_and_published_once_it_is_kept(tmp_path: Path) -> None:
    async def test() -> None:
        async with gated(tmp_path) as (disk, stub, node):
            listener = Listener(stub, ["actors"])
            disk.open_gate.clear()
            created = asyncio.ensure_future(stub.CreateActor(actor_request(1, name="counter")))
            await asyncio.sleep(QUIET_S)
            found = asyncio.ensure_future(stub.GetActor(pb.ActorQuery(name="counter", namespace="ns")))
            listed = asyncio.ensure_future(stub.ListActors(pb.ListActorsRequest(all_namespaces=True)))
            late = Listener(stub, ["actors"])
            await asyncio.sleep(QUIET_S)
            assert not node.starts
            assert not listener.events
            assert not late.events
            assert not (created.done() or found.done() or listed.done())
            disk.open_gate.set()
            assert (await created).actor_id == (await found).actor_id == actor_id(1)
            assert [actor.actor_id for actor in (await listed).actors] == [actor_id(1)]
            await until(lambda: node.starts and listener.events and late.events, "it is told")
            states = [pb.Actor.FromString(event.payload).state for event in listener.events]
            assert states == sorted(states)
            await until(lambda: pb.Actor.FromString(listener.events[-1].payload).state == pb.ACTOR_ALIVE, "it lives")
            for one in (listener, late):
                await one.close()

    asyncio.run(asyncio.wait_for(test(), 50))


def test_a_death_and_a_group_are_told_once_they_are_kept_and_in_the_order_of_the_decisions(tmp_path: Path) -> None:
    async def test() -> None:
        async with gated(tmp_path) as (disk, stub, node):
            await stub.CreateActor(actor_request(1))
            await until(lambda: node.live, "it was started")
            listener = Listener(stub, ["actors", "pgs"])
            await until(lambda: listener.events, "the snapshot")
            before = len(listener.events)
            disk.open_gate.clear()
            made = asyncio.ensure_future(stub.CreatePlacementGroup(pb.CreatePlacementGroupRequest(group=group(1, [1]))))
            killed = asyncio.ensure_future(stub.KillActor(pb.KillActorRequest(actor_id=actor_id(1), no_restart=True, force=True)))
            await asyncio.sleep(QUIET_S)
            with pytest.raises(grpc.aio.AioRpcError) as waiting:
                await stub.GetPlacementGroup(pb.PlacementGroupQuery(placement_group_id=group_id(1)), timeout=QUIET_S)
            assert waiting.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            assert not node.kills
            assert not node.changes
            assert len(listener.events) == before
            disk.open_gate.set()
            await asyncio.gather(made, killed)
            assert node.kills, "who has called kill() may call the actor at once, and must not reach it"
            await until(lambda: node.kills and node.changes and len(listener.events) >= before + 2, "all is told")
            sequences = [event.sequence for event in listener.events]
            assert sequences == sorted(sequences)
            await listener.close()

    asyncio.run(asyncio.wait_for(test(), 50))
