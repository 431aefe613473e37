"""A real server over gRPC, with fake raylets."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import grpc
import pytest
from gcs_rig import BOUND_S, CPU, FakeRaylet, Listener, client, raylets, serving, until, until_told
from gcs_states import actor_id, actor_request, group, group_id
from shoal_base.auth import Secrets, make_secret_file, read_secret
from shoal_base.errors import Code
from shoal_gcs.config import Config
from shoal_gcs.server import CannotStart, Server
from shoal_gcs.v1 import gcs_pb2 as pb
from shoal_raylet.v1 import raylet_pb2 as raylet

pytestmark = pytest.mark.timeout(60)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 50))


def query(n: int) -> pb.PlacementGroupQuery:
    return pb.PlacementGroupQuery(placement_group_id=group_id(n))


def test_nodes_register_beat_and_leave(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as (_server, gcs), raylets(gcs, tmp_path / "secrets", 2) as nodes:
            reply = nodes[1].registered
            assert reply is not None
            assert (reply.heartbeat_ms, reply.lease_ms, reply.gcs_epoch, len(reply.nodes)) == (1000, 10_000, 1, 2)
            beat = await gcs.Heartbeat(pb.HeartbeatRequest(node_id=nodes[0].node_id))
            assert (beat.known, beat.gcs_epoch) == (True, 1)
            await gcs.UnregisterNode(pb.UnregisterNodeRequest(node_id=nodes[0].node_id, reason="stopped"))
            await nodes[0].silence()
            states = {node.node_id: node.alive for node in (await gcs.ListNodes(pb.Empty())).nodes}
            assert states == {nodes[0].node_id: False, nodes[1].node_id: True}
            assert not (await gcs.Heartbeat(pb.HeartbeatRequest(node_id=b"?" * 16))).known

    run(test())


def test_a_node_with_another_minor_version_of_python_is_refused_by_name(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as (_server, gcs):
            node = pb.Node(node_id=b"n" * 16, address="127.0.0.1:1", python="3.99.0")
            with pytest.raises(grpc.aio.AioRpcError, match=r"the node at 127\.0\.0\.1:1 Python 3\.99\.0"):
                await gcs.RegisterNode(pb.RegisterNodeRequest(node=node))

    run(test())


def test_a_raylet_that_is_gone_is_dead_quickly_because_its_host_refuses(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as (server, gcs), raylets(gcs, tmp_path / "secrets", 1) as (node,):
            listener = Listener(gcs, ["nodes"], node.node_id)
            await until(lambda: listener.payloads("nodes"), "the snapshot")
            await node.end()
            began = time.monotonic()
            await listener.close()  # its stream breaks, as with a killed process
            await until(lambda: not server.service.cluster.nodes.living, "the node's death")  # type: ignore[union-attr]
            assert time.monotonic() - began < 3

    run(test())


def test_a_silent_node_dies_with_its_lease_and_a_busy_host_is_not_taken_for_dead(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path, lease_s=1.0) as (_server, gcs), raylets(gcs, tmp_path / "secrets", 2) as (quiet, loud):
            await quiet.silence()
            await until_told(lambda: gcs.ListNodes(pb.Empty()), lambda told: [n.alive for n in told.nodes].count(True) == 1, "the lease's end")
            assert (await gcs.Heartbeat(pb.HeartbeatRequest(node_id=loud.node_id))).known

    run(test())


def test_two_hundred_actors_are_started_at_once_and_alive_well_under_two_seconds(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path, storage=f"sqlite:{tmp_path}/gcs.db") as (_server, gcs), raylets(gcs, tmp_path / "secrets", 2) as nodes:
            for node in nodes:
                node.hold = asyncio.Event()
            listener = Listener(gcs, ["actors"])
            began = time.monotonic()
            await asyncio.gather(*(gcs.CreateActor(actor_request(n)) for n in range(200)))
            await until(lambda: sum(len(node.starts) for node in nodes) == 200, "all StartActor calls to be under way")
            for node in nodes:
                assert node.hold is not None
                node.hold.set()
            alive = lambda: {a.actor_id for a in map(pb.Actor.FromString, listener.payloads("actors")) if a.state == pb.ACTOR_ALIVE}  # noqa: E731
            await until(lambda: len(alive()) == 200, "200 living actors")
            assert time.monotonic() - began < 2
            await listener.close()

    run(test())


def test_an_actor_lives_is_found_by_name_is_restarted_and_killed(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as (_server, gcs), raylets(gcs, tmp_path / "secrets", 1) as (node,):
            made = await gcs.CreateActor(actor_request(1, name="one", max_restarts=1))
            assert made.state in (pb.ACTOR_PENDING, pb.ACTOR_ALIVE)
            by_name = pb.ActorQuery(name="one", namespace="ns")
            alive = await until_told(lambda: gcs.GetActor(by_name), lambda a: a.state == pb.ACTOR_ALIVE, "its life")
            assert (alive.pid, alive.address, alive.node_id) == (4242, node.address, node.node_id)
            request = node.starts[0]
            assert (request.creation_task, dict(request.placement.resources), request.placement.name) == (b"task", {"CPU": CPU}, "Class1")
            await gcs.ReportWorkerDeath(pb.ReportWorkerDeathRequest(worker_id=alive.worker_id, node_id=node.node_id, code=Code.WORKER_CRASHED, cause="SIGSEGV"))
            again = await until_told(lambda: gcs.GetActor(by_name), lambda a: a.state == pb.ACTOR_ALIVE, "its second life")
            assert (again.incarnation, again.restarts) == (1, 1)
            await gcs.KillActor(pb.KillActorRequest(actor_id=actor_id(1), no_restart=True, force=True, reason="test"))
            await until(lambda: any(kill.worker_id == again.worker_id for kill in node.kills), "KillWorker")
            dead = await gcs.GetActor(pb.ActorQuery(actor_id=actor_id(1)))
            assert (dead.state, dead.death_code, dead.death_cause) == (pb.ACTOR_DEAD, Code.KILLED_BY_USER, "test")
            with pytest.raises(grpc.aio.AioRpcError, match="no living actor is named 'one'"):
                await gcs.GetActor(by_name)
            assert [a.actor_id for a in (await gcs.ListActors(pb.ListActorsRequest(all_namespaces=True))).actors] == [actor_id(1)]
            assert not (await gcs.ListActors(pb.ListActorsRequest(named_only=True))).actors

    run(test())


def test_refused_requests_have_a_status_and_a_message(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as (_server, gcs), raylets(gcs, tmp_path / "secrets", 1):
            await gcs.CreateActor(actor_request(1, name="one"))
            cases = [
                (gcs.CreateActor(actor_request(2, name="one")), grpc.StatusCode.ALREADY_EXISTS, "taken"),
                (gcs.KillActor(pb.KillActorRequest(actor_id=actor_id(9))), grpc.StatusCode.NOT_FOUND, "no actor"),
                (gcs.CreatePlacementGroup(pb.CreatePlacementGroupRequest(group=group(1, [1], "X"))), grpc.StatusCode.INVALID_ARGUMENT, "'X'"),
                (gcs.FinishJob(pb.FinishJobRequest(job_id=b"\x09\0\0\0")), grpc.StatusCode.NOT_FOUND, "no job"),
                (gcs.GetPlacementGroup(query(9)), grpc.StatusCode.NOT_FOUND, "no placement group"),
            ]
            for call, code, text in cases:
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await call
                assert error.value.code() == code
                assert text in (error.value.details() or "")

    run(test())


def test_a_raylet_that_fails_a_start_gets_a_kill_and_the_actor_goes_elsewhere(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as (_server, gcs), raylets(gcs, tmp_path / "secrets", 2) as nodes:
            def broken(request: raylet.StartActorRequest) -> raylet.StartActorReply:
                raise RuntimeError("a bug in the raylet")

            nodes[0].answer = broken
            count = 0
            while count < 6 or not nodes[0].starts:  # either node may be chosen, by chance
                assert count < 60, "the one that fails was never chosen"
                await gcs.CreateActor(actor_request(count, cpus=3))
                count += 1
            for n in range(count):
                await until_told(lambda n=n: gcs.GetActor(pb.ActorQuery(actor_id=actor_id(n))), lambda a: a.state == pb.ACTOR_ALIVE, "life on the other node")  # type: ignore[misc]
            assert len(nodes[1].live) == count
            await until(lambda: nodes[0].kills, "the kill of what may have started")

    run(test())


def test_placement_groups_are_made_waited_for_and_removed(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as (_server, gcs), raylets(gcs, tmp_path / "secrets", 2) as nodes:
            await gcs.CreatePlacementGroup(pb.CreatePlacementGroupRequest(group=group(1, [2, 2], "STRICT_SPREAD")))
            made = await gcs.WaitPlacementGroup(pb.WaitPlacementGroupRequest(placement_group_id=group_id(1), timeout_ms=5000))
            assert made.state == pb.PG_CREATED
            assert {bundle.node_id for bundle in made.bundles} == {node.node_id for node in nodes}
            assert [node.free for node in nodes] == [2 * CPU, 2 * CPU]
            await gcs.RemovePlacementGroup(query(1))
            await until(lambda: [node.free for node in nodes] == [4 * CPU, 4 * CPU], "cancelled bundles")
            assert (await gcs.GetPlacementGroup(query(1))).state == pb.PG_REMOVED

    run(test())


def test_waiting_for_a_group_ends_with_the_time_with_its_removal_and_with_its_making(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as (server, gcs), raylets(gcs, tmp_path / "secrets", 1):
            await gcs.CreatePlacementGroup(pb.CreatePlacementGroupRequest(group=group(1, [64])))
            pending = await gcs.WaitPlacementGroup(pb.WaitPlacementGroupRequest(placement_group_id=group_id(1), timeout_ms=50))
            assert pending.state == pb.PG_PENDING
            assert "CPU 64" in pending.pending_reason
            waiting = asyncio.ensure_future(gcs.WaitPlacementGroup(pb.WaitPlacementGroupRequest(placement_group_id=group_id(1), timeout_ms=20_000)))
            await until(lambda: server.service._group_waiters, "the waiter")  # type: ignore[union-attr]
            await gcs.RemovePlacementGroup(query(1))
            assert (await asyncio.wait_for(waiting, BOUND_S)).state == pb.PG_REMOVED
            assert not server.service._group_waiters  # type: ignore[union-attr]

    run(test())


def test_many_groups_cost_a_raylet_few_calls(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as (_server, gcs), raylets(gcs, tmp_path / "secrets", 1, cpus=100) as (node,):
            await asyncio.gather(*(gcs.CreatePlacementGroup(pb.CreatePlacementGroupRequest(group=group(n, [1]))) for n in range(100)))
            await asyncio.gather(*(gcs.WaitPlacementGroup(pb.WaitPlacementGroupRequest(placement_group_id=group_id(n), timeout_ms=5000)) for n in range(100)))
            await asyncio.gather(*(gcs.RemovePlacementGroup(query(n)) for n in range(100)))
            await until(lambda: node.free == 100 * CPU, "all removed")
            assert node.calls < len(node.changes) == 200

    run(test())


def test_a_group_that_waits_for_tasks_keeps_no_other_waiting_and_its_own_steps_in_order(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as (server, gcs), raylets(gcs, tmp_path / "secrets", 1) as (node,):
            node.room, node.free, node.lent = asyncio.Event(), 1 * CPU, 2 * CPU
            await until(lambda: server.service.cluster.nodes.living[node.node_id].lent, "the report")  # type: ignore[union-attr]
            await gcs.CreatePlacementGroup(pb.CreatePlacementGroupRequest(group=group(1, [3])))
            await until(lambda: node.calls == 1, "the call that waits")
            await gcs.RemovePlacementGroup(query(1))
            await gcs.CreatePlacementGroup(pb.CreatePlacementGroupRequest(group=group(2, [1])))
            made = await gcs.WaitPlacementGroup(pb.WaitPlacementGroupRequest(placement_group_id=group_id(2), timeout_ms=5000))
            assert made.state == pb.PG_CREATED
            node.free, node.lent = 3 * CPU, 0
            node.room.set()
            await until(lambda: len(node.changes) == 3, "the removal, behind what it removes")
            assert [(change.placement_group_id, change.step) for change in node.changes] == [
                (group_id(2), raylet.PREPARE_AND_COMMIT), (group_id(1), raylet.PREPARE_AND_COMMIT), (group_id(1), raylet.CANCEL),
            ]  # fmt: skip
            assert node.free == 3 * CPU

    run(test())


def test_jobs_get_ids_and_end_everywhere(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as (_server, gcs), raylets(gcs, tmp_path / "secrets", 1) as (node,):
            job = await gcs.AddJob(pb.AddJobRequest(job=pb.Job(entrypoint="x.py", namespace="n")))
            assert job.job_id == b"\1\0\0\0"
            await gcs.CreateActor(actor_request(1, job_id=job.job_id))
            await until(lambda: node.live, "the actor")
            await gcs.FinishJob(pb.FinishJobRequest(job_id=job.job_id))
            await until(lambda: node.finished_jobs == [job.job_id] and not node.live, "the job's end at the raylet")
            assert (await gcs.GetJob(pb.JobQuery(job_id=job.job_id))).finished
            assert [j.job_id for j in (await gcs.ListJobs(pb.Empty())).jobs] == [job.job_id]

    run(test())


def test_a_get_waits_for_its_key(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as (server, gcs):
            waiting = asyncio.ensure_future(gcs.KvGet(pb.KvGetRequest(namespace="n", key=b"k", wait_ms=20_000)))
            await until(lambda: server.service._key_waiters, "the waiter")  # type: ignore[union-attr]
            assert (await gcs.KvPut(pb.KvPutRequest(namespace="n", key=b"k", value=b"v"))).added
            assert (await asyncio.wait_for(waiting, BOUND_S)).value == b"v"
            assert not (await gcs.KvGet(pb.KvGetRequest(namespace="n", key=b"other", wait_ms=30))).found
            assert list((await gcs.KvKeys(pb.KvKeysRequest(namespace="n"))).keys) == [b"k"]
            assert (await gcs.KvDelete(pb.KvDeleteRequest(namespace="n", key=b"k"))).deleted == 1
            assert not server.service._key_waiters  # type: ignore[union-attr]

    run(test())


def test_subscribers_get_a_snapshot_then_changes_in_order_and_can_change_their_wishes(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as (server, gcs), raylets(gcs, tmp_path / "secrets", 1):
            await gcs.CreateActor(actor_request(1))
            channel = f"actor:{actor_id(1).hex()}"
            await until_told(lambda: gcs.GetActor(pb.ActorQuery(actor_id=actor_id(1))), lambda a: a.state == pb.ACTOR_ALIVE, "life")
            listener = Listener(gcs, [channel, "mine"])
            await until(lambda: listener.payloads(channel), "the snapshot")
            for n in range(100):
                await gcs.Publish(pb.Event(channel="mine", payload=bytes([n])))
            await gcs.KillActor(pb.KillActorRequest(actor_id=actor_id(1), no_restart=True))
            states = lambda: [pb.Actor.FromString(p).state for p in listener.payloads(channel)]  # noqa: E731
            await until(lambda: states() == [pb.ACTOR_ALIVE, pb.ACTOR_DEAD], "the death")
            assert listener.payloads("mine") == [bytes([n]) for n in range(100)]
            sequences = [event.sequence for event in listener.events]
            assert sequences == sorted(set(sequences))
            listener.wish(pb.SubscribeRequest(remove=["mine"], add=["jobs"]))
            await until(lambda: "mine" not in server.service.hub._channels, "the removal")  # type: ignore[union-attr]
            await gcs.AddJob(pb.AddJobRequest(job=pb.Job()))
            await until(lambda: listener.payloads("jobs"), "the job")
            await listener.finish()
            assert listener.code is None
            await until(lambda: not server.service.hub.subscribers, "the end of the subscription")  # type: ignore[union-attr]

    run(test())


def test_resource_changes_come_in_batches_of_at_most_ten_a_second(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as (_server, gcs), raylets(gcs, tmp_path / "secrets", 1) as (node,):
            await node.silence()
            listener = Listener(gcs, ["resources"])
            await until(lambda: listener.payloads("resources"), "the snapshot")
            began = time.monotonic()
            for n in range(200):
                await gcs.Heartbeat(pb.HeartbeatRequest(node_id=node.node_id, resources_changed=True, available={"CPU": n}))
            await until(lambda: pb.NodeList.FromString(listener.payloads("resources")[-1]).nodes[0].available["CPU"] == 199, "the last change")
            ticks = (time.monotonic() - began) / 0.1
            assert len(listener.payloads("resources")) <= ticks + 3
            await listener.close()

    run(test())


def test_info_and_metrics(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path, http_address="127.0.0.1:1") as (_server, gcs), raylets(gcs, tmp_path / "secrets", 1):
            info = await gcs.Info(pb.Empty())
            assert (len(info.cluster_id), info.gcs_epoch, info.storage, info.http_address) == (16, 1, "memory", "127.0.0.1:1")
            text = (await gcs.Metrics(pb.Empty())).text
            assert "shoal_gcs_nodes" in text

    run(test())


def test_draining_reaches_the_raylet(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as (_server, gcs), raylets(gcs, tmp_path / "secrets", 1) as (node,):
            await gcs.DrainNode(pb.DrainNodeRequest(node_id=node.node_id, reason="maintenance"))
            await until(lambda: node.drained == ["maintenance"], "Drain")

    run(test())


def test_calls_to_a_raylet_that_is_away_for_a_moment_are_made_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as (_server, gcs), raylets(gcs, tmp_path / "secrets", 1) as (node,):
            # A listener that answers nothing holds the port, so that the node is not taken for dead.
            port = int(node.address.rpartition(":")[2])
            await node._server.stop(None)
            with socket.create_server(("127.0.0.1", port)):
                await gcs.CreateActor(actor_request(1))
            await node.serve(Secrets(node=read_secret(tmp_path / "secrets" / "node.secret")), port)
            await until_told(lambda: gcs.GetActor(pb.ActorQuery(actor_id=actor_id(1))), lambda a: a.state == pb.ACTOR_ALIVE, "life in the end")

    run(test())


# -- who may come in


def test_a_wrong_secret_and_no_secret_are_refused_and_a_users_token_may_only_look(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as (server, _):
            for name in ("node.secret", "user.token"):
                make_secret_file(tmp_path / "others" / name)
            for kind in ("node", "user"):
                async with client(server.address, tmp_path / "others", kind) as stranger:
                    with pytest.raises(grpc.aio.AioRpcError) as refused:
                        await stranger.Info(pb.Empty())
                    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
            async with grpc.aio.insecure_channel(server.address) as bare:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await bare.unary_unary("/shoal.gcs.v1.Gcs/Info")(b"")
                assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
            async with client(server.address, tmp_path / "secrets", "user") as user:
                assert (await user.Info(pb.Empty())).gcs_epoch == 1
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await user.KvPut(pb.KvPutRequest(namespace="n", key=b"k"))
                assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED

    run(test())


def test_a_taken_port_and_a_bad_host_are_told_in_one_sentence(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as (server, _):
            port = int(server.address.rpartition(":")[2])
            cases: list[tuple[dict[str, Any], str]] = [
                ({"port": port}, f"port {port} on 127.0.0.1 is taken; choose another"),
                ({"host": "no.such.host.invalid"}, "is not known"),
                ({"port": 99_999}, "65535"),
            ]
            for options, match in cases:
                with pytest.raises(CannotStart, match=match):
                    await Server(Config(secrets_dir=tmp_path / "secrets", **options)).start()

    run(test())


def test_a_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    async def test() -> None:
        (tmp_path / "node.secret").write_text("ab" * 32)
        (tmp_path / "node.secret").chmod(0o644)
        with pytest.raises(CannotStart, match=r"node.secret"):
            await Server(Config(secrets_dir=tmp_path)).start()

    run(test())


def test_without_the_raylets_contract_actors_wait_and_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal_gcs.server.installed_contract", lambda: None)

    async def test() -> None:
        async with serving(tmp_path) as (_server, gcs):
            node = FakeRaylet(b"n" * 16)
            await node.register(gcs)
            await gcs.CreateActor(actor_request(1))
            shown = await until_told(lambda: gcs.GetActor(pb.ActorQuery(actor_id=actor_id(1))), lambda a: a.pending_reason, "the reason")
            assert "install shoal-raylet" in shown.pending_reason

    run(test())
