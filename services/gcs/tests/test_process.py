"""The control store as a process: killed, restarted, started wrongly."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import grpc
import pytest
from gcs_process import Process
from gcs_rig import Listener, client, raylets, until, until_told
from gcs_states import actor_id, actor_request, group, group_id
from shoal_gcs.v1 import gcs_pb2 as pb

pytestmark = pytest.mark.timeout(90)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 80))


def test_a_kill_at_any_moment_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    """Killed while it writes, restarted on the same file: everything that was promised is there, also to the second of two who put the same."""
    storage = ("--storage", f"sqlite:{tmp_path}/gcs.db")
    promised: set[bytes] = set()

    async def put_until_the_end(gcs: Any, keys: str) -> None:
        for n in range(1_000_000):
            key = f"{keys}-{n}".encode()
            try:
                await gcs.KvPut(pb.KvPutRequest(namespace="n", key=key, value=b"v" * 100))
            except grpc.aio.AioRpcError:
                return
            promised.add(key)

    async def test() -> None:
        for epoch in (1, 2, 3):
            process = Process(tmp_path, *storage)
            assert process.ready["epoch"] == epoch
            try:
                async with client(process.address, tmp_path / "secrets") as gcs:
                    found = set((await gcs.KvKeys(pb.KvKeysRequest(namespace="n"))).keys)
                    assert promised <= found
                    before = len(promised)
                    putting = [asyncio.ensure_future(put_until_the_end(gcs, f"{epoch}-{keys}")) for keys in "aabb"]
                    await until(lambda before=before: len(promised) >= before + 200, "some writes")  # type: ignore[misc]
                    process.end(signal.SIGKILL)
                    await asyncio.wait_for(asyncio.gather(*putting), 20)
            finally:
                process.end(signal.SIGKILL)

    run(test())


async def read_to_the_end(stream: Any) -> None:
    while await stream.read() is not grpc.aio.EOF:
        pass


def test_after_a_kill_nodes_register_again_and_actors_names_groups_jobs_and_keys_are_there(tmp_path: Path) -> None:
    async def test() -> None:
        storage = ("--storage", f"sqlite:{tmp_path}/gcs.db")
        first = Process(tmp_path, *storage)
        second: Process | None = None
        try:
            async with client(first.address, tmp_path / "secrets") as gcs, raylets(gcs, tmp_path / "secrets", 2, cpus=8) as nodes:
                job = await gcs.AddJob(pb.AddJobRequest(job=pb.Job(entrypoint="x.py")))
                await gcs.CreateActor(actor_request(1, name="kept", max_restarts=3, job_id=job.job_id))
                await gcs.CreateActor(actor_request(2, max_restarts=3))
                await gcs.CreateActor(actor_request(3, cpus=64))
                for n in (1, 2):
                    await until_told(lambda n=n: gcs.GetActor(pb.ActorQuery(actor_id=actor_id(n))), lambda a: a.state == pb.ACTOR_ALIVE, "life")  # type: ignore[misc]
                await gcs.CreatePlacementGroup(pb.CreatePlacementGroupRequest(group=group(1, [1, 1], "STRICT_SPREAD", name="held")))
                await gcs.WaitPlacementGroup(pb.WaitPlacementGroupRequest(placement_group_id=group_id(1), timeout_ms=5000))
                await gcs.KvPut(pb.KvPutRequest(namespace="n", key=b"k", value=b"v"))
                first.end(signal.SIGKILL)
                for node in nodes:
                    await node.silence()
                    node.live.pop(actor_id(2), None)  # died while nobody listened
                    node.bundles[b"unknown group 16", 0] = 0
                second = Process(tmp_path, *storage)
                assert second.ready["epoch"] == 2
                assert second.ready["cluster_id"] == first.ready["cluster_id"]
                async with client(second.address, tmp_path / "secrets") as again:
                    kept = await again.GetActor(pb.ActorQuery(name="kept", namespace="ns"))
                    assert kept.state == pb.ACTOR_ALIVE
                    for node in nodes:
                        assert not (await again.Heartbeat(pb.HeartbeatRequest(node_id=node.node_id))).known
                        node.beat(again)
                    lost = pb.ActorQuery(actor_id=actor_id(2))
                    lives = await until_told(lambda: again.GetActor(lost), lambda a: a.restarts == 1 and a.state == pb.ACTOR_ALIVE, "restart")
                    assert lives.incarnation == 1
                    assert (await again.GetActor(pb.ActorQuery(actor_id=actor_id(1)))).restarts == 0
                    assert (await again.GetActor(pb.ActorQuery(actor_id=actor_id(3)))).state == pb.ACTOR_PENDING
                    held = await again.GetPlacementGroup(pb.PlacementGroupQuery(name="held"))
                    assert held.state == pb.PG_CREATED
                    assert (await again.KvGet(pb.KvGetRequest(namespace="n", key=b"k"))).value == b"v"
                    assert [j.entrypoint for j in (await again.ListJobs(pb.Empty())).jobs] == ["x.py"]
                    assert (await again.AddJob(pb.AddJobRequest(job=pb.Job()))).job_id == b"\2\0\0\0"
                    await until(lambda: all((b"unknown group 16", 0) not in node.bundles for node in nodes), "the unknown group's end")
        finally:
            first.end(signal.SIGKILL)
            if second is not None:
                second.end(signal.SIGKILL)

    run(test())


def test_sigterm_ends_it_cleanly_even_with_subscribers(tmp_path: Path) -> None:
    async def test() -> None:
        process = Process(tmp_path)
        async with client(process.address, tmp_path / "secrets") as gcs:
            listener = Listener(gcs, ["nodes"])
            await gcs.Info(pb.Empty())
            status, said = await asyncio.to_thread(process.end)
            assert status == 0, said
            assert "Traceback" not in said
            await listener.close()

    run(test())


def test_a_subscriber_that_does_not_read_is_cut_and_others_go_on(tmp_path: Path) -> None:
    async def test() -> None:
        process = Process(tmp_path)
        try:
            async with client(process.address, tmp_path / "secrets") as gcs:
                lively = Listener(gcs, ["c"])
                slow = gcs.Subscribe()
                await slow.write(pb.SubscribeRequest(add=["c"]))
                payload = b"x" * (1 << 20)
                while not lively.events:
                    await gcs.Publish(pb.Event(channel="c", payload=b"hello"))
                    await asyncio.sleep(0.01)
                for n in range(1, 151):
                    await gcs.Publish(pb.Event(channel="c", payload=payload))
                    await until(lambda n=n: sum(len(event.payload) > 1000 for event in lively.events) == n, "the event at the lively subscriber")  # type: ignore[misc]
                with pytest.raises(grpc.aio.AioRpcError) as cut:
                    await asyncio.wait_for(read_to_the_end(slow), 20)
                assert cut.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
                assert "subscribe again" in (cut.value.details() or "")
                await lively.close()
        finally:
            process.end(signal.SIGKILL)

    run(test())


@pytest.mark.parametrize("wrong", ["damaged", "future", "redis", "port", "host"])
def test_a_start_that_cannot_be_says_why_once_and_ends_with_one(tmp_path: Path, wrong: str) -> None:
    path = tmp_path / "gcs.db"
    arguments, words = ["--storage", f"sqlite:{path}"], "is damaged"
    if wrong == "damaged":
        path.write_bytes(b"no database" * 1000)
    elif wrong == "future":
        import sqlite3

        db = sqlite3.connect(path)
        db.execute("PRAGMA application_id=1397247820")
        db.execute("PRAGMA user_version=99")
        db.execute("CREATE TABLE records (tbl, key, record)")
        db.close()
        words = "schema version 99"
    elif wrong == "redis":
        arguments, words = ["--storage", "redis://127.0.0.1:1/0"], "is the server running"
    elif wrong == "port":
        arguments, words = ["--port", "70000"], "65535"
    else:
        arguments, words = ["--host", "192.0.2.1"], "cannot be listened on"
    process = Process(tmp_path, *arguments)
    assert words in process.ready["error"]
    status, said = process.ended()
    assert status == 1
    assert "Traceback" not in said


def test_a_taken_port_is_told_and_the_first_goes_on(tmp_path: Path) -> None:
    async def test() -> None:
        first = Process(tmp_path)
        try:
            second = Process(tmp_path, "--port", first.address.rpartition(":")[2])
            assert "is taken; choose another" in second.ready["error"]
            assert second.ended()[0] == 1
            async with client(first.address, tmp_path / "secrets") as gcs:
                assert (await gcs.Info(pb.Empty())).gcs_epoch == 1
        finally:
            first.end()

    run(test())
