"""Applications that change while they serve: updates, versions, autoscaling, deletion."""

import asyncio
import os

import pytest
from shoal import serve
from shoal.serve.exceptions import DeploymentFailedError, DeploymentUnavailableError, ServeConfigError

pytestmark = pytest.mark.usefixtures("applications")


@serve.deployment(num_replicas=2, max_ongoing_requests=20, graceful_shutdown_wait_loop_s=0.05)
class Version:
    def __init__(self, version):
        if version == "broken":
            raise ValueError("weights are missing")
        self.version = version

    async def __call__(self, request=None):
        await asyncio.sleep(0.002)
        return self.version

    async def pid(self):
        return os.getpid()


def test_a_rolling_update_under_load_fails_no_request(wait_until, under_load):
    serve.run(Version.bind("one"))
    with under_load() as load:
        wait_until(lambda: load.seen("one") > 20, what="answers of the first version")
        serve.run(Version.bind("two"))
        before = load.seen("two")
        wait_until(lambda: load.seen("two") > before + 20, what="answers of the second version")
        ones = load.seen("one")
        serve.run(Version.options(num_replicas=3).bind("three"))
        wait_until(lambda: load.seen("three") > 20, what="answers of the third version")
    assert load.failed == 0
    # From the moment that run() returned, at most what was on its way then came from the first version.
    assert load.seen("one") <= ones + load.connections
    assert serve.status().applications["default"].deployments["Version"].replica_states["RUNNING"] == 3


def test_a_version_that_cannot_be_constructed_leaves_the_old_one_serving(client):
    handle = serve.run(Version.bind("one"))
    pids = {handle.pid.remote().result() for _ in range(20)}
    with pytest.raises(DeploymentFailedError, match=r"(?s)'Version'.*weights are missing.*version before go on serving"):
        serve.run(Version.bind("broken"))
    status = serve.status().applications["default"]
    assert status.status == "DEPLOY_FAILED"
    assert "weights are missing" in status.message
    assert {client.get("/").text for _ in range(20)} == {"one"}
    assert {handle.pid.remote().result() for _ in range(20)} == pids
    serve.run(Version.bind("two"))
    assert client.get("/").text == "two"
    assert serve.status().applications["default"].status == "RUNNING"


def test_user_config_is_taken_on_without_a_restart():
    @serve.deployment(user_config={"factor": 2})
    class Factor:
        async def reconfigure(self, config):
            if config["factor"] < 0:
                raise ValueError("negative")
            self.factor = config["factor"]

        async def __call__(self, x):
            return x * self.factor, os.getpid()

    handle = serve.run(Factor.bind(), route_prefix=None)
    result, pid = handle.remote(5).result()
    assert result == 10
    serve.run(Factor.options(user_config={"factor": 3}).bind(), route_prefix=None)
    assert handle.remote(5).result() == (15, pid)

    @serve.deployment(user_config=1)
    class Deaf:
        pass

    with pytest.raises(DeploymentFailedError, match="has no method reconfigure"):
        serve.run(Deaf.bind(), name="deaf", route_prefix=None)


def test_two_versions_share_the_requests_by_weight(client):
    serve.run(Version.bind("one"), name="app")
    serve.run(Version.options(num_replicas=1).bind("two"), name="app@v2")
    assert {client.get("/").text for _ in range(20)} == {"one"}
    serve.set_traffic("app", {"stable": 1, "v2": 1})
    assert {client.get("/").text for _ in range(60)} == {"one", "two"}
    assert serve.status().applications["app@v2"].traffic == 0.5
    handle = serve.get_app_handle("app")
    assert {handle.remote().result() for _ in range(60)} == {"one", "two"}
    assert {serve.get_app_handle("app@v2").remote().result() for _ in range(10)} == {"two"}
    serve.set_traffic("app", {"v2": 1})
    assert {client.get("/").text for _ in range(20)} == {"two"}
    with pytest.raises(ServeConfigError, match=r"no version 'v3'; it has \['stable', 'v2'\]"):
        serve.set_traffic("app", {"v3": 1})
    with pytest.raises(ServeConfigError, match="must not all be 0"):
        serve.set_traffic("app", {"v2": 0})
    with pytest.raises(ServeConfigError, match="there is no application 'nothing'"):
        serve.set_traffic("nothing", {"v2": 1})
    with pytest.raises(ServeConfigError, match="versions share one prefix"):
        serve.run(Version.bind("three"), name="app@v3", route_prefix="/three")
    serve.delete("app@v2")
    assert {client.get("/").text for _ in range(20)} == {"one"}


def test_scales_up_under_load_and_down_again_to_zero(wait_until, under_load):
    @serve.deployment(
        max_ongoing_requests=4,
        autoscaling_config={
            "min_replicas": 0, "max_replicas": 3, "target_ongoing_requests": 2, "metrics_interval_s": 0.1, "look_back_period_s": 0.3, "upscale_delay_s": 0.1,
            "downscale_delay_s": 0.4,
        },
    )  # fmt: skip
    class Scaled:
        async def __call__(self, request=None):
            await asyncio.sleep(0.05)
            return "done"

    def running():
        return serve.status().applications["default"].deployments["Scaled"].replica_states.get("RUNNING", 0)

    handle = serve.run(Scaled.bind())
    assert running() == 0
    assert handle.remote().result(timeout_s=30) == "done"
    with under_load(connections=12) as load:
        wait_until(lambda: running() == 3, what="three replicas")
    assert load.failed == 0
    wait_until(lambda: running() == 0, what="no replica")


def test_calls_to_what_was_deleted_say_so(wait_until):
    handle = serve.run(Version.bind("one"), route_prefix=None)
    assert handle.remote().result() == "one"
    serve.delete("default")

    def refused():
        try:
            handle.remote().result(timeout_s=10)
        except DeploymentUnavailableError as error:
            return str(error)
        return ""

    assert "there is no application 'default'" in wait_until(refused, what="the refusal")
    assert serve.status().applications == {}


def test_a_deployment_that_waits_for_room_says_what_it_needs(wait_until):
    from shoal.serve import api
    from shoal.serve.build import build

    spec = build(Version.options(ray_actor_options={"num_cpus": 15}).bind("large"), "large", None)
    api.deploy([spec], wait=False)
    message = wait_until(lambda: serve.status().applications["large"].message, what="the reason")
    assert "needs {CPU: 15}" in message


def test_several_applications_at_once():
    targets = [serve.RunTarget(Version.bind(str(i)), name=f"app{i}", route_prefix=f"/{i}") for i in range(3)]
    handles = serve.run_many(targets)
    assert [handle.remote().result() for handle in handles] == ["0", "1", "2"]
