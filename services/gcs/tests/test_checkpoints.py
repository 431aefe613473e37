"""Checkpoints and arguments that actors leave at the control store for their next life."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from gcs_rig import client, serving
from gcs_states import Rig, actor_id, actor_request, every, node, only, worker_id
from gcs_states import node_id as node_of
from shoal_base.errors import Code
from shoal_gcs.state import Refused, kept
from shoal_gcs.state import effects as do
from shoal_gcs.state import events as on
from shoal_gcs.v1 import gcs_pb2 as pb


def checkpoint(n: int, number: int, state: bytes, incarnation: int = 0) -> on.CheckpointKept:
    return on.CheckpointKept(pb.ActorCheckpoint(actor_id=actor_id(n), incarnation=incarnation, number=number, state=state))


def died(worker: int) -> on.WorkerDied:
    return on.WorkerDied(pb.ReportWorkerDeathRequest(worker_id=worker_id(worker), node_id=node_of(1), code=Code.WORKER_CRASHED, cause="SIGKILL"))


def state_of(rig: Rig, n: int) -> tuple[int, int, bytes]:
    found = rig.cluster.actors.kept.get(actor_id(n))
    return (found.incarnation, found.number, found.state) if found is not None else (0, 0, b"")


def test_the_last_checkpoint_is_there_for_the_next_life_and_after_a_restart_of_the_store() -> None:
    rig = Rig(nodes=1)
    rig.alive_actor(1, max_restarts=2)
    rig(checkpoint(1, 1, b"one"))
    rig(checkpoint(1, 2, b"two"))
    assert only(rig(died(1)), do.StartActor).incarnation == 1
    assert state_of(rig, 1) == (0, 2, b"two")
    assert state_of(rig.restarted(), 1) == (0, 2, b"two")


def test_a_life_that_was_given_up_cannot_undo_what_its_successor_kept() -> None:
    rig = Rig(nodes=1)
    rig.alive_actor(1, max_restarts=2)
    rig(checkpoint(1, 7, b"first life"))
    rig(died(1))
    rig(checkpoint(1, 1, b"second life", incarnation=1))
    with pytest.raises(Refused, match="life 0 .* was given up; life 1 goes on"):
        rig(checkpoint(1, 8, b"too late"))
    assert state_of(rig, 1) == (1, 1, b"second life")


def test_the_same_checkpoint_again_and_an_older_one_change_nothing() -> None:
    rig = Rig(nodes=1)
    rig.alive_actor(1, max_restarts=1)
    rig(checkpoint(1, 2, b"two"))
    assert not every(rig(checkpoint(1, 2, b"two")), do.Persist)
    assert not every(rig(checkpoint(1, 1, b"one")), do.Persist)
    assert state_of(rig, 1) == (0, 2, b"two")


def test_it_goes_with_the_actor() -> None:
    rig = Rig(nodes=1)
    rig.alive_actor(1, max_restarts=1)
    rig(checkpoint(1, 1, b"state"))
    rig(on.ActorKillRequested(actor_id(1), True, True, ""))
    assert state_of(rig, 1) == (0, 0, b"")
    assert not rig.stored["actor_states"]
    assert rig.cluster.actors.kept.size_bytes == 0
    with pytest.raises(Refused, match="no living actor"):
        rig(checkpoint(1, 2, b"state"))


def test_more_than_the_limit_is_refused_with_the_way_out_and_the_former_one_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MAX_STATE_BYTES", 10)
    monkeypatch.setattr(kept, "MAX_STATES_BYTES", 15)
    rig = Rig(nodes=1)
    for n in (1, 2):
        rig.alive_actor(n, max_restarts=1)
    rig(checkpoint(1, 1, bytes(9)))
    with pytest.raises(Refused, match="has 11 bytes; .* at most 10 of one actor.*checkpoint_path"):
        rig(checkpoint(1, 2, bytes(11)))
    with pytest.raises(Refused, match="of which 9 are taken"):
        rig(checkpoint(2, 1, bytes(8)))
    rig(checkpoint(1, 3, bytes(3)))
    rig(checkpoint(2, 1, bytes(8)))
    assert rig.cluster.actors.kept.size_bytes == 11


def test_arguments_by_value_are_what_the_next_life_starts_with() -> None:
    rig = Rig(nodes=1)
    rig.alive_actor(1, max_restarts=1, detached=True)
    rig(on.ActorArgumentsKept(pb.ActorArguments(actor_id=actor_id(1), creation_task=b"whole")))
    again = rig.restarted()
    again(on.NodeRegistered(node(1), live_actors=(actor_id(1),)))
    assert only(again(died(1)), do.StartActor).spec.creation_task == b"whole"
    with pytest.raises(Refused, match="life 0 .* was given up"):
        again(on.ActorArgumentsKept(pb.ActorArguments(actor_id=actor_id(1), creation_task=b"late")))


def test_an_answered_checkpoint_is_there_after_the_store_was_opened_again(tmp_path: Path) -> None:
    async def test() -> None:
        where = f"sqlite:{tmp_path / 'gcs.db'}"
        async with serving(tmp_path, storage=where) as (server, stub):
            await stub.CreateActor(actor_request(1, max_restarts=1))
            kept_now = pb.ActorCheckpoint(actor_id=actor_id(1), number=1, state=b"state")
            await stub.KeepCheckpoint(kept_now)
            assert (await stub.GetCheckpoint(pb.ActorQuery(actor_id=actor_id(1)))) == kept_now
            assert (await stub.GetCheckpoint(pb.ActorQuery(actor_id=actor_id(2)))).number == 0
            async with client(server.address, tmp_path / "secrets", "user") as user:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await user.GetCheckpoint(pb.ActorQuery(actor_id=actor_id(1)))
                assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
        async with serving(tmp_path, storage=where) as (_, stub):
            assert (await stub.GetCheckpoint(pb.ActorQuery(actor_id=actor_id(1)))) == kept_now

    asyncio.run(asyncio.wait_for(test(), 50))
