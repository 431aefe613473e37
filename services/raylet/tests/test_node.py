"""One real raylet: clients, leases, workers, actors, logs, calls."""

import contextlib
import json
import os
import signal
import socket
import time
from pathlib import Path

import grpc
import pytest
from raylet_node import DriverProcess, alive, wait_for
from shoal_base.auth import AuthenticationFailed, HandshakeRefused, connect_authenticated
from shoal_base.errors import Code
from shoal_base.frames import HELLO, PeerKind, Type
from shoal_base.wire import Event, LeaseReclaim, LeaseRefused, WorkerDied
from shoal_gcs.v1 import gcs_pb2 as gcs
from shoal_raylet.v1 import raylet_pb2 as pb

pytestmark = pytest.mark.timeout(90)


# What is to be soon is so at least once in so many tries: a virtual machine may stand still for a second.
TRIES = 3


def start_actor(node, number, do="ok", job=b"\1\0\0\0", **fields):
    actor = b"actor%011d" % number
    task = json.dumps({"actor": actor.hex(), "do": do}).encode()
    placement = pb.LeaseClass(resources={"CPU": 10_000}, job_id=job)
    return node.stub.StartActor.future(pb.StartActorRequest(actor_id=actor, creation_task=task, placement=placement, name="A", **fields), timeout=30)


def test_a_driver_gets_a_job_two_descriptors_and_a_worker(place):
    node = place.node()
    driver = place.client(node, entrypoint="main.py", log_to_driver=True)
    assert driver.registered.error == "" and driver.job and driver.registered.namespace
    assert driver.registered.node_id == node.node_id and driver.registered.node_address == node.address
    assert len(driver.fds) == 2 and os.fstat(driver.fds[1]).st_size == 4096 * 256 + 4096 + 4096 * 64
    assert place.gcs.jobs[driver.job].driver_pid == os.getpid()
    driver.demand()
    grant = driver.grant()
    assert grant.node_id == node.node_id
    assert node.order(grant.worker_id, "leases") == [grant.lease_id], "the worker knew before the driver"


def test_a_worker_that_is_killed_is_told_with_its_task_and_last_words_within_100_ms(place):
    node = place.node()
    driver = place.client(node)
    times: list[float] = []
    while min(times, default=1.0) >= 0.1 and len(times) < TRIES:
        driver.demand()
        worker = driver.grant().worker_id
        task = os.urandom(16)
        node.order(worker, "words", "about to divide")
        node.order(worker, "task", task.hex(), "mymodule.work")
        pid = next(info.pid for info in node.state().workers if info.worker_id == worker)
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        died = WorkerDied.unpack(driver.expect(Type.WORKER_DIED))
        times.append(time.monotonic() - began)
        assert (died.worker_id, died.node_id, died.task_id, died.code) == (worker, node.node_id, task, Code.WORKER_CRASHED)
        assert "SIGKILL" in died.cause or "signal 9" in died.cause
        assert "mymodule.work" in died.cause and task.hex() in died.cause and "about to divide" in died.cause
        report = wait_for(lambda task=task: [death for death in place.gcs.deaths if death.started_task_id == task], "the report to the GCS")
        assert not report[0].intended
    assert min(times) < 0.1, times


def test_200_actors_start_in_under_two_seconds_and_end_with_their_job(place):
    node = place.node()
    times: list[float] = []
    while min(times, default=9.0) >= 2.0 and len(times) < TRIES:
        job = place.client(node).job
        began = time.monotonic()
        replies = [future.result() for future in [start_actor(node, n, job=job) for n in range(200)]]
        times.append(time.monotonic() - began)
        assert {reply.status for reply in replies} == {pb.STARTED} and len({reply.worker_id for reply in replies}) == 200
        pids = [reply.pid for reply in replies]
        node.stub.FinishJob(pb.FinishJobRequest(job_id=job))
        wait_for(lambda pids=pids: not any(map(alive, pids)), "the end of all actors", 5.0)
    assert min(times) < 2.0, times


def test_an_actor_whose_init_raises_dies_or_never_comes_is_answered_once(place):
    node = place.node()
    raised = start_actor(node, 1, "raise").result()
    assert (raised.status, raised.error, raised.code) == (pb.INIT_RAISED, b"its error", Code.INIT_RAISED)
    died = start_actor(node, 2, "die").result()
    assert died.status == pb.WORKER_DIED and died.code == Code.WORKER_CRASHED
    hanging = start_actor(node, 3, "hang")
    wait_for(lambda: any(worker.actor_id == b"actor%011d" % 3 for worker in node.state().workers), "the third worker")
    node.stub.KillWorker(pb.KillWorkerRequest(actor_id=b"actor%011d" % 3, force=True, reason="killed by test"))
    killed = hanging.result()
    assert (killed.status, killed.code, killed.reason) == (pb.WORKER_DIED, Code.KILLED_BY_USER, "killed by test")


def test_a_driver_that_goes_takes_its_job_along(place):
    node = place.node()
    driver = place.client(node)
    driver.demand(want=2)
    workers = [driver.grant().worker_id for _ in range(2)]
    pids = {info.worker_id: info.pid for info in node.state().workers}
    node.order(workers[0], "task", os.urandom(16).hex(), "busy")
    driver.close()
    wait_for(lambda: place.gcs.jobs[driver.job].finished, "the job's end", 5.0)
    wait_for(lambda: not any(alive(pids[worker]) for worker in workers), "the workers' end", 5.0)


def test_a_killed_driver_is_noticed_though_its_child_holds_the_socket(place):
    driver = DriverProcess(place.node())
    try:
        wait_for(lambda: place.gcs.jobs, "the job")
        driver.kill()
        wait_for(lambda: next(iter(place.gcs.jobs.values())).finished, "the job's end", 5.0)
        assert alive(driver.child)
    finally:
        driver.close()


def test_a_blocked_worker_lends_its_cpu_within_milliseconds(place):
    node = place.node(cpus=1)
    driver = place.client(node)
    driver.demand()
    parent = driver.grant()
    driver.demand(class_id=2, depth=1)
    assert LeaseReclaim.unpack(driver.expect(Type.LEASE_RECLAIM)).lease_id == parent.lease_id
    node.order(parent.worker_id, "block")
    assert driver.grant(2.0).worker_id != parent.worker_id


def test_an_environment_that_cannot_start_fails_its_class_with_the_exit_code(place):
    node = place.node()
    driver = place.client(node)
    driver.demand(runtime_env='{"env_vars":{"FAIL_AT_START":"1"}}')
    refused = LeaseRefused.unpack(driver.expect(Type.LEASE_REFUSED))
    assert refused.code == Code.ENVIRONMENT_FAILED and "3" in refused.text
    driver.demand(class_id=2, runtime_env='{"env_vars":{"COLOUR":"blue"}}')
    assert node.order(driver.grant().worker_id, "env", "COLOUR") == "blue"


def test_what_nobody_can_run_is_refused_by_name(place):
    node = place.node(infeasible_timeout_s=0.3)
    driver = place.client(node)
    driver.demand(cpus=64, name="mymodule.huge")
    refused = LeaseRefused.unpack(driver.expect(Type.LEASE_REFUSED))
    assert refused.code == Code.UNSCHEDULABLE and "mymodule.huge needs CPU 64" in refused.text and "CPU 2" in refused.text
    driver.demand(class_id=2, label_selector={"zone": "in("})
    assert "zone" in LeaseRefused.unpack(driver.expect(Type.LEASE_REFUSED)).text


@pytest.mark.parametrize(
    ("wire", "python", "message"), [((9, 9), (3, 11), "wire"), ((1, 1), (3, 1), "Python")], ids=["another wire version", "another minor Python"]
)
def test_who_does_not_match_is_refused_by_name(place, wire, python, message):
    node = place.node()
    hello = HELLO.pack(bytes(16), bytes(16), bytes(4), os.getpid(), *wire, *python, PeerKind.DRIVER)
    assert message in place.client(node, hello=hello).registered.error


def test_a_worker_without_a_token_is_refused(place):
    node = place.node()
    assert "start token" in place.client(node, kind=PeerKind.WORKER, start_token="guessed").registered.error


def test_calls_reach_the_gcs_and_its_errors_come_back(place):
    node = place.node()
    driver = place.client(node)
    found = driver.call("gcs/GetJob", gcs.JobQuery(job_id=driver.job).SerializeToString())
    assert found.code == 0 and gcs.Job.FromString(found.payload).driver_worker_id == driver.id
    missing = driver.call("gcs/GetJob", gcs.JobQuery(job_id=b"none").SerializeToString())
    assert missing.code == grpc.StatusCode.NOT_FOUND.value[0] and "no job" in missing.text
    assert driver.call("gcs/Nonsense").code == grpc.StatusCode.UNIMPLEMENTED.value[0]
    assert driver.call("other/Thing").code == grpc.StatusCode.UNIMPLEMENTED.value[0]
    address = driver.call("raylet/NodeAddress", pb.NodeQuery(node_id=node.node_id).SerializeToString())
    assert pb.NodeAddress.FromString(address.payload) == pb.NodeAddress(address=node.address, alive=True)
    assert driver.call("raylet/NodeAddress", b"\xff\xff").code == grpc.StatusCode.INVALID_ARGUMENT.value[0]


def test_functions_are_stored_once_and_waited_for(place):
    node, other = place.node(), place.node()
    driver, late = place.client(node), place.client(other)
    record = pb.FunctionRecord(job_id=driver.job, function_id=b"f" * 16, pickled=b"code" * 1000)
    late._calls += 1
    from shoal_base.wire import Call, Result

    late.frames.send(Type.CALL, Call(1, 10_000, "raylet/FunctionGet", pb.FunctionRecord(job_id=driver.job, function_id=b"f" * 16).SerializeToString()).pack())
    assert driver.call("raylet/FunctionPut", record.SerializeToString()).code == 0
    assert pb.FunctionRecord.FromString(Result.unpack(late.expect(Type.RESULT)).payload) == record
    missing = driver.call("raylet/FunctionGet", pb.FunctionRecord(job_id=driver.job, function_id=b"g" * 16).SerializeToString(), timeout=0.2)
    assert missing.code == grpc.StatusCode.NOT_FOUND.value[0] and (b"g" * 16).hex() in missing.text


def test_events_reach_every_subscriber_also_late_ones(place):
    node = place.node()
    first, second = place.client(node), place.client(node)
    channel = "actor:" + "ab" * 16

    def subscribe(client):
        return client.call("raylet/Subscribe", pb.SubscribeChannels(add=[channel]).SerializeToString())

    assert subscribe(first).code == 0
    wait_for(lambda: any(channel in channels for channels, _ in place.gcs._subscribers), "the subscription")
    place.gcs.publish(channel, b"alive")
    assert Event.unpack(first.expect(Type.EVENT)) == Event(channel, b"alive")
    subscribe(second)
    assert Event.unpack(second.expect(Type.EVENT)) == Event(channel, b"alive")
    for client in (first, second):
        client.close()
    wait_for(lambda: not any(channel in channels for channels, _ in place.gcs._subscribers), "its end")


def test_what_a_worker_prints_reaches_a_driver_that_asked_for_it(place):
    node = place.node()
    driver = place.client(node, log_to_driver=True)
    driver.call("raylet/Subscribe", pb.SubscribeChannels(add=[f"logs:{driver.job.hex()}"]).SerializeToString())
    driver.demand()
    worker = driver.grant().worker_id
    node.order(worker, "print", "hello from afar\nand more")
    batch = pb.LogBatch.FromString(Event.unpack(driver.expect(Type.EVENT)).payload)
    assert list(batch.lines) == ["hello from afar", "and more"] and batch.job_id == driver.job and not batch.is_err and batch.pid
    name = f"worker-{worker.hex()}.out"
    assert name in [file.name for file in node.stub.ListLogs(pb.Empty()).files]
    read = b"".join(chunk.data for chunk in node.stub.ReadLog(pb.ReadLogRequest(name=name, tail=1)))
    assert read == b"and more\n"
    with pytest.raises(grpc.RpcError, match="no log"):
        list(node.stub.ReadLog(pb.ReadLogRequest(name="../../secrets/node.secret", tail=-1)))


def test_what_a_dead_worker_had_started_ends(place):
    node = place.node()
    driver = place.client(node)
    driver.demand()
    worker = driver.grant().worker_id
    orphan = node.order(worker, "spawn")
    node.order(worker, "exit", 1)
    wait_for(lambda: not alive(orphan), "the orphan's end")


def test_a_zygote_that_dies_is_replaced_and_its_workers_are_told(place):
    node = place.node()
    driver = place.client(node)
    driver.demand()
    worker = driver.grant().worker_id
    (zygote,) = {int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in node.worker_pids()}
    os.kill(zygote, signal.SIGKILL)
    died = [WorkerDied.unpack(driver.expect(Type.WORKER_DIED)) for _ in node.worker_pids() or [0]]
    assert any(death.worker_id == worker for death in died) or WorkerDied.unpack(driver.expect(Type.WORKER_DIED)).worker_id == worker
    driver.demand()
    assert driver.grant().worker_id != worker


def test_the_end_of_the_raylet_by_signal_leaves_no_process_and_no_socket(place):
    node = place.node()
    driver = place.client(node)
    driver.demand(want=2)
    driver.grant()
    wait_for(lambda: len(node.worker_pids()) >= 2, "two workers")
    left = node.descendants()
    assert len(left) >= 3
    assert node.stop() == 0
    wait_for(lambda: not any(map(alive, left)), "the end of all processes", 5.0)
    assert place.gcs.left == [node.node_id]
    assert not list(node.directory.glob("*.sock"))


def test_a_killed_raylet_leaves_no_process(place):
    node = place.node()
    wait_for(lambda: len(node.worker_pids()) >= 2, "two workers")
    left = node.descendants()
    node.process.kill()
    wait_for(lambda: not any(map(alive, left)), "the end of all processes", 5.0)


def test_a_node_that_was_declared_dead_ends_itself_and_its_workers(place):
    node = place.node()
    wait_for(lambda: len(node.worker_pids()) >= 2, "two workers")
    left = node.descendants()
    place.gcs.fenced.add(node.node_id)
    assert node.process.wait(10) == 1
    wait_for(lambda: not any(map(alive, left)), "the end of all processes", 5.0)
    assert "declared dead" in (node.directory / "logs" / "raylet.log").read_text()


def test_a_gcs_that_forgot_is_told_everything_again(place):
    node = place.node()
    assert start_actor(node, 1).result().status == pb.STARTED
    place.gcs.epoch = 2
    del place.gcs.nodes[node.node_id]
    again = wait_for(lambda: len(place.gcs.registered) > 1 and place.gcs.registered[1], "the second registration")
    assert list(again.live_actors) == [b"actor%011d" % 1]
    assert node.process.poll() is None


def test_a_gcs_that_was_started_again_hears_of_late_deaths_once_more(place):
    node = place.node()
    driver = place.client(node)
    driver.demand()
    worker = driver.grant().worker_id
    os.kill(next(info.pid for info in node.state().workers if info.worker_id == worker), signal.SIGKILL)
    wait_for(lambda: [death for death in place.gcs.deaths if death.worker_id == worker], "the report to the GCS")
    place.gcs.epoch = 2
    wait_for(lambda: len([death for death in place.gcs.deaths if death.worker_id == worker]) > 1, "the report to the GCS that was started again")


def test_a_node_that_joins_again_tells_its_starting_actors_and_its_groups(place):
    node = place.node()
    starting = start_actor(node, 1, do="hang", held={"CPU": 10_000})
    group, removed = os.urandom(16), os.urandom(16)
    bundles = [pb.BundleSpec(index=index, resources={"CPU": 1_000}) for index in range(2)]
    steps = [(pb.PREPARE_AND_COMMIT, group), (pb.PREPARE_AND_COMMIT, removed), (pb.CANCEL, removed)]
    node.stub.ChangeBundles(
        pb.ChangeBundlesRequest(changes=[pb.BundleChange(step=step, placement_group_id=each, bundles=bundles) for step, each in steps])
    )
    wait_for(lambda: node.state().available["CPU"] == 8_000, "the actor's allocation")
    place.gcs.epoch = 2
    again = wait_for(lambda: len(place.gcs.registered) > 1 and place.gcs.registered[1], "the second registration")
    assert list(again.live_actors) == [b"actor%011d" % 1]
    assert list(again.live_groups) == [group]
    starting.cancel()


def test_a_wrong_secret_at_the_port_is_refused_and_a_stranger_does_not_stay(place):
    node = place.node()
    with pytest.raises((AuthenticationFailed, OSError)):
        connect_authenticated(node.address, 0, b"x" * 32, bytes(16), 5.0)
    host, port = node.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), 5.0) as stranger:
        stranger.settimeout(10.0)
        stranger.sendall(b"SH")
        with contextlib.suppress(ConnectionResetError):  # what it said is never read
            assert stranger.recv(1) == b"", "a silent stranger is sent away"


def test_an_authenticated_connection_is_handed_to_the_worker_it_asks_for(place):
    node = place.node()
    driver = place.client(node)
    with connect_authenticated(node.address, 0, place.secrets.node, driver.id, 5.0) as sock:
        frame, _payload, fds = driver.frames.recv()
        assert frame == Type.ROUTED and len(fds) == 1
        with socket.socket(fileno=fds[0]) as routed:
            sock.sendall(b"hello worker")
            assert routed.recv(100) == b"hello worker"
    with pytest.raises(HandshakeRefused, match="no worker"):
        connect_authenticated(node.address, 0, place.secrets.node, os.urandom(16), 5.0)


def test_bundles_change_many_at_a_time_in_order(place):
    node = place.node(cpus=2)
    group = os.urandom(16)
    reply = node.stub.ChangeBundles(
        pb.ChangeBundlesRequest(
            changes=[
                pb.BundleChange(step=pb.PREPARE_AND_COMMIT, placement_group_id=group, bundles=[pb.BundleSpec(index=0, resources={"CPU": 20_000})]),
                pb.BundleChange(step=pb.PREPARE, placement_group_id=os.urandom(16), bundles=[pb.BundleSpec(index=0, resources={"CPU": 10_000})]),
                pb.BundleChange(step=pb.CANCEL, placement_group_id=group),
            ]
        )
    )
    assert [result.prepared for result in reply.results] == [True, False, True] and "CPU 1" in reply.results[1].reason
    assert node.state().available["CPU"] == 20_000


def test_a_worker_command_that_does_not_exist_fails_what_waits_with_its_name(place):
    node = place.node(command=["/does/not/exist"])
    driver = place.client(node)
    driver.demand()
    refused = LeaseRefused.unpack(driver.expect(Type.LEASE_REFUSED, 30))
    assert "/does/not/exist" in refused.text


def test_a_port_that_is_taken_is_an_error_by_name(place):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        node = place.node(port=port)
        assert f"port {port}" in node.ready["error"] and node.process.wait(10) == 1


def test_metrics_are_prometheus_text(place):
    node = place.node()
    assert "# TYPE shoal_raylet_workers gauge" in node.stub.Metrics(pb.Empty()).text
