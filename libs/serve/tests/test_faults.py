"""Killed replicas, killed controllers, killed proxies, and checks that fail."""

import asyncio
import os
import signal

import httpx
import pytest
import shoal
from shoal import ext, serve

pytestmark = pytest.mark.usefixtures("applications")


@serve.deployment(num_replicas=2, max_ongoing_requests=20, graceful_shutdown_wait_loop_s=0.05)
class Echo:
    async def __call__(self, request=None):
        await asyncio.sleep(0.002)
        return "echo"

    async def pid(self):
        return os.getpid()


def pids_of(name_part):
    """The processes of Serve's actors, by a part of their names."""
    found = {}
    with ext.watch_actors(lambda change: found.update({change.actor_id: change})):
        import time

        deadline = time.monotonic() + 5
        while not any(name_part in change.name and change.state == "ALIVE" for change in found.values()) and time.monotonic() < deadline:
            time.sleep(0.01)
    return [change.pid for change in found.values() if name_part in change.name and change.state == "ALIVE"]


def test_a_killed_replica_fails_only_what_it_had(wait_until, under_load):
    handle = serve.run(Echo.bind())
    with under_load(connections=8) as load:
        wait_until(lambda: load.seen("echo") > 50, what="answers")
        victim = handle.pid.remote().result()
        os.kill(victim, signal.SIGKILL)
        before = load.seen("echo")
        wait_until(lambda: load.seen("echo") > before + 200, what="answers after the kill")

        def replaced():
            status = serve.status().applications["default"]
            return status.status == "RUNNING" and status.deployments["Echo"].replica_states.get("RUNNING") == 2

        wait_until(replaced, what="another replica")
    assert load.failed <= load.connections
    assert all(status in (200, 503) for status, _ in load.answers)
    assert victim not in {handle.pid.remote().result() for _ in range(20)}


def test_what_had_not_begun_on_a_killed_replica_is_carried_out_by_another_one(tmp_path, wait_until):
    @serve.deployment(num_replicas=2, max_ongoing_requests=10)
    class Slow:
        """Code that is not async: one call runs, the others that the replica has accepted wait in it."""

        def __call__(self, name, hold):
            with open(tmp_path / f"{name}-{os.getpid()}", "w"):
                pass
            while hold and not os.path.exists(tmp_path / "go"):
                import time

                time.sleep(0.005)
            return os.getpid()

        async def pid(self):
            return os.getpid()

    handle = serve.run(Slow.bind(), route_prefix=None)
    responses = [handle.remote(f"call{i}", hold=True) for i in range(10)]
    wait_until(lambda: len(list(tmp_path.glob("call*"))) == 2, what="a running call on each replica")
    victim = handle.pid.remote().result(timeout_s=20)
    os.kill(victim, signal.SIGKILL)
    (tmp_path / "go").touch()
    lost = 0
    for response in responses:
        try:
            assert response.result(timeout_s=30) != victim
        except shoal.exceptions.ActorDiedError:
            lost += 1
    assert lost == 1, "the one that ran"
    began = [path.name.partition("-")[0] for path in tmp_path.glob("call*")]
    assert len(began) == len(set(began)) == 10, "nothing was carried out twice"


def test_a_killed_replica_of_a_handle(wait_until):
    handle = serve.run(Echo.bind(), route_prefix=None)
    victim = handle.pid.remote().result()
    os.kill(victim, signal.SIGKILL)

    def answers():
        try:
            return [handle.remote().result(timeout_s=20) for _ in range(10)]
        except shoal.exceptions.RayActorError:
            return None

    assert wait_until(answers, what="answers of the other replica") == ["echo"] * 10


def test_requests_are_served_while_the_controller_is_dead_and_it_goes_on_afterwards(wait_until, under_load):
    serve.run(Echo.bind())
    (controller,) = pids_of("SERVE_CONTROLLER_ACTOR")
    with under_load(connections=4) as load:
        wait_until(lambda: load.seen("echo") > 20, what="answers")
        os.kill(controller, signal.SIGKILL)
        before = load.seen("echo")
        wait_until(lambda: load.seen("echo") > before + 100, what="answers without the controller")
        wait_until(lambda: pids_of("SERVE_CONTROLLER_ACTOR") not in ([], [controller]), what="the controller's restart")

        def running():
            try:
                return serve.status().applications["default"].status == "RUNNING"
            except shoal.exceptions.RayActorError:
                return False

        wait_until(running, what="the stored state")
        serve.run(Echo.options(num_replicas=3).bind())
    assert load.failed == 0
    assert serve.status().applications["default"].deployments["Echo"].replica_states["RUNNING"] == 3


def test_a_failed_health_check_replaces_the_replica(wait_until):
    @serve.deployment(health_check_period_s=0.1, health_check_timeout_s=5)
    class Frail:
        def __init__(self):
            self.well = True

        def check_health(self):
            if not self.well:
                raise RuntimeError("out of memory")

        async def fall_ill(self):
            self.well = False
            return os.getpid()

        async def pid(self):
            return os.getpid()

    handle = serve.run(Frail.bind(), route_prefix=None)
    ill = handle.fall_ill.remote().result()

    def other():
        try:
            return handle.pid.remote().result(timeout_s=20) != ill
        except shoal.exceptions.RayActorError:
            return False

    wait_until(other, what="another process")


def test_a_replica_answers_the_controller_while_its_code_blocks(tmp_path, wait_until):
    @serve.deployment(health_check_period_s=0.05, health_check_timeout_s=0.5, max_ongoing_requests=2)
    class Blocking:
        def __call__(self, path):
            import time

            while not os.path.exists(path):
                time.sleep(0.01)
            return os.getpid()

        async def pid(self):
            return os.getpid()

    handle = serve.run(Blocking.bind(), route_prefix=None)
    response = handle.remote(str(tmp_path / "go"))
    pid = handle.pid.remote().result(timeout_s=20)
    with pytest.raises(TimeoutError):
        response.result(timeout_s=1)
    (tmp_path / "go").touch()
    assert response.result(timeout_s=20) == pid


def test_a_killed_proxy_comes_back_at_the_same_port(wait_until):
    port = free_port()
    serve.shutdown()
    serve.start(http_options={"port": port})
    try:
        serve.run(Echo.bind())
        (proxy,) = pids_of("SERVE_PROXY_ACTOR")
        os.kill(proxy, signal.SIGKILL)

        def answers():
            try:
                return httpx.get(f"http://127.0.0.1:{port}/", timeout=10).text == "echo"
            except httpx.HTTPError:
                return False

        wait_until(answers, what="the new proxy")
    finally:
        serve.shutdown()
        serve.start(http_options={"port": 0})


def free_port():
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
