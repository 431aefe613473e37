"""The controller's decisions, driven without a cluster: events go in, effects come out."""

import pickle
import random

import pytest
from shoal.serve.build import ApplicationSpec, DeploymentSpec
from shoal.serve.config import AutoscalingConfig, DeploymentConfig
from shoal.serve.exceptions import ServeConfigError
from shoal.serve.overview import ReplicaState
from shoal.serve.state import (
    HEALTH_FAILURES,
    KillReplica,
    Publish,
    Reconfigure,
    ServeState,
    StartReplica,
    StopReplica,
)


def deployment(name="d", version="v1", **options):
    return DeploymentSpec(name, DeploymentConfig().changed(options), b"", (), version, False)


def app(*deployments, name="app", prefix="/"):
    return ApplicationSpec(name, prefix, deployments or (deployment(),))


class Driver:
    """Carries effects out as a cluster would, one step at a time, and holds the invariants after each event."""

    def __init__(self):
        self.state = ServeState()
        self.now = 0.0
        self.starting, self.stopping, self.running = {}, set(), {}
        self.reconfigured = []
        self.effects = []

    def do(self, effects):
        self.effects = list(effects)
        for effect in self.effects:
            if isinstance(effect, StartReplica):
                assert effect.replica_id not in self.starting
                self.starting[effect.replica_id] = effect.spec
            elif isinstance(effect, StopReplica):
                self.running.pop(effect.replica_id, None)
                self.starting.pop(effect.replica_id, None)
                self.stopping.add(effect.replica_id)
            elif isinstance(effect, KillReplica):
                self.running.pop(effect.replica_id, None)
                self.starting.pop(effect.replica_id, None)
            elif isinstance(effect, Reconfigure):
                self.reconfigured.append(effect.replica_id)
        assert not self.state.reconcile(self.now), "a second look changes nothing"
        return self.effects

    def deploy(self, *deployments, **options):
        return self.do(self.state.deployed(app(*deployments, **options), self.now))

    def started(self, replica_id=None):
        replica_id = replica_id or next(iter(self.starting))
        self.running[replica_id] = self.starting.pop(replica_id)
        return self.do(self.state.replica_started(replica_id, self.now))

    def failed(self, error="ValueError: no"):
        replica_id = next(iter(self.starting))
        del self.starting[replica_id]
        return self.do(self.state.replica_failed(replica_id, error, self.now))

    def stopped(self):
        replica_id = self.stopping.pop()
        return self.do(self.state.replica_stopped(replica_id, self.now))

    def later(self, seconds):
        self.now += seconds
        return self.do(self.state.reconcile(self.now))

    def settle(self):
        for _ in range(1000):
            if self.starting:
                self.started()
            elif self.stopping:
                self.stopped()
            else:
                return
        raise AssertionError("it does not come to rest")

    def versions(self):
        return sorted(spec.version for spec in self.running.values())

    def seen(self, name="d", of="app"):
        return self.state.replica_set((of, name))

    def status(self, name="app"):
        return self.state.overview()[name]


@pytest.fixture
def driver():
    return Driver()


def test_a_first_deploy_starts_what_is_wanted_and_publishes_each_as_it_comes(driver):
    effects = driver.deploy(deployment(num_replicas=2))
    assert [type(e) for e in effects] == [StartReplica, StartReplica, Publish, Publish]
    assert driver.status().status == "DEPLOYING"
    assert [type(e) for e in driver.started()] == [Publish]
    assert len(driver.seen().replica_ids) == 1
    driver.settle()
    assert driver.status().status == "RUNNING"
    assert driver.status().deployments["d"].replica_states == {ReplicaState.RUNNING: 2}


def test_the_same_deploy_again_changes_nothing(driver):
    driver.deploy(deployment(num_replicas=2))
    driver.settle()
    assert driver.deploy(deployment(num_replicas=2)) == []


def test_an_update_starts_one_more_before_an_old_one_leaves(driver):
    driver.deploy(deployment(num_replicas=3))
    driver.settle()
    effects = driver.deploy(deployment(num_replicas=3, version="v2"))
    assert [type(e) for e in effects] == [StartReplica]
    while driver.starting:
        assert len(driver.running) >= 3
        assert len(driver.running) + len(driver.starting) <= 4
        driver.started()
    driver.settle()
    assert driver.versions() == ["v2"] * 3
    assert driver.status().status == "RUNNING"


def test_several_deployments_switch_together(driver):
    driver.deploy(deployment("a"), deployment("b"))
    driver.settle()
    driver.deploy(deployment("a", "v2"), deployment("b", "v2"))
    old = driver.seen("a").replica_ids
    first = next(iter(driver.starting))
    driver.started(first)
    assert driver.seen("a").replica_ids == old, "a's new version waits for b's"
    driver.settle()
    assert driver.versions() == ["v2", "v2"]


def test_a_broken_version_is_given_up_and_the_old_one_stays(driver):
    driver.deploy(deployment(num_replicas=1))
    driver.settle()
    old = driver.seen().replica_ids
    driver.deploy(deployment(version="v2"))
    for _ in range(3):
        assert len(driver.starting) == 1
        driver.failed("ValueError: no weights")
        assert not driver.starting, "not again at once"
        driver.later(60)
    assert not driver.starting
    assert driver.seen().replica_ids == old
    assert driver.status().status == "DEPLOY_FAILED"
    assert "ValueError: no weights; 1 replica(s) of the version before go on serving" in driver.status().message
    del driver.running[old[0]]
    driver.do(driver.state.replica_died(old[0], "killed", driver.now))
    assert [spec.version for spec in driver.starting.values()] == ["v1"], "what dies now is replaced by the version that works"
    driver.settle()
    driver.deploy(deployment(version="v3"))
    driver.settle()
    assert driver.versions() == ["v3"]


def test_a_first_version_that_fails_leaves_callers_an_error(driver):
    driver.deploy(deployment())
    for _ in range(3):
        driver.failed("ImportError: no module")
        driver.later(60)
    assert "ImportError: no module" in driver.seen().gone
    driver.deploy(deployment(version="v2"))
    assert not driver.seen().gone


def test_a_proven_version_is_tried_again_without_end(driver):
    driver.deploy(deployment())
    driver.settle()
    driver.do(driver.state.replica_died(next(iter(driver.running)), "killed", driver.now))
    for _ in range(30):
        driver.failed()
        driver.later(60)
        assert driver.starting
    assert driver.status().status == "UNHEALTHY"
    driver.settle()
    assert driver.status().status == "RUNNING"


def test_a_dead_replica_is_replaced_and_unpublished_at_once(driver):
    driver.deploy(deployment(num_replicas=2))
    driver.settle()
    victim = driver.seen().replica_ids[0]
    driver.running.pop(victim)
    effects = driver.do(driver.state.replica_died(victim, "killed", 0.0))
    assert [type(e) for e in effects] == [StartReplica, Publish]
    assert victim not in driver.seen().replica_ids
    assert driver.status().status == "UNHEALTHY"


def test_health_checks_that_fail_in_a_row_replace_a_replica(driver):
    driver.deploy(deployment())
    driver.settle()
    (replica,) = driver.running
    for _ in range(HEALTH_FAILURES - 1):
        assert driver.state.health_checked(replica, "bad", 0.0) == []
    assert driver.state.health_checked(replica, "", 0.0) == []
    for _ in range(HEALTH_FAILURES - 1):
        assert driver.state.health_checked(replica, "bad", 0.0) == []
    effects = driver.do(driver.state.health_checked(replica, "bad", 0.0))
    assert [type(e) for e in effects] == [KillReplica, StartReplica, Publish]


def test_another_user_config_is_told_and_restarts_nothing(driver):
    driver.deploy(deployment(user_config={"a": 1}))
    driver.settle()
    effects = driver.deploy(deployment(user_config={"a": 2}, max_ongoing_requests=9))
    (change,) = [e for e in effects if isinstance(e, Reconfigure)]
    assert change.user_config_changed
    assert not driver.starting
    assert driver.seen().max_ongoing == 9
    (change,) = [e for e in driver.deploy(deployment(user_config={"a": 2}, max_ongoing_requests=8)) if isinstance(e, Reconfigure)]
    assert not change.user_config_changed


def test_fewer_and_more_replicas(driver):
    driver.deploy(deployment(num_replicas=3))
    driver.settle()
    driver.deploy(deployment(num_replicas=1))
    driver.settle()
    assert len(driver.running) == 1
    driver.deploy(deployment(num_replicas=4))
    driver.settle()
    assert len(driver.running) == 4


def test_deletion_stops_everything_and_forgets_it(driver):
    driver.deploy(deployment(num_replicas=2))
    driver.started()
    effects = driver.do(driver.state.deleted("app", 0.0))
    assert sum(isinstance(e, StopReplica) for e in effects) == 2
    assert driver.seen().gone == "there is no application 'app'"
    assert driver.state.routes() == ()
    assert driver.status().status == "DELETING"
    driver.settle()
    assert driver.state.apps == {}


def test_a_deployment_that_is_no_longer_named_goes(driver):
    driver.deploy(deployment("a"), deployment("b"))
    driver.settle()
    driver.deploy(deployment("b"))
    driver.settle()
    assert list(driver.state.apps["app"].deployments) == ["b"]


def test_a_replica_that_starts_after_its_deployment_has_gone_is_killed(driver):
    assert driver.state.replica_started("app#d#7", 0.0) == [KillReplica("app#d#7")]


def test_route_prefixes_are_unique_and_routes_sorted(driver):
    driver.deploy(name="one", prefix="/a")
    driver.deploy(name="two", prefix="/a/b")
    driver.deploy(name="three", prefix=None)
    assert [route.prefix for route in driver.state.routes()] == ["/a/b", "/a", ""]
    with pytest.raises(ServeConfigError, match="'/a' of application 'four' is taken by application 'one'"):
        driver.deploy(name="four", prefix="/a")
    assert "four" not in driver.state.apps


def test_traffic_is_split_by_weight_and_follows_the_versions(driver):
    driver.deploy(name="m")
    driver.deploy(name="m@v2")
    driver.settle()
    (route,) = driver.state.routes()
    assert [(weight, name) for weight, name, _, _ in route.versions] == [(1.0, "m")]
    driver.do(driver.state.traffic_set("m", {"stable": 3, "v2": 1}, 0.0))
    (route,) = driver.state.routes()
    assert [(weight, name) for weight, name, _, _ in route.versions] == [(0.75, "m"), (0.25, "m@v2")]
    driver.do(driver.state.deleted("m@v2", 0.0))
    (route,) = driver.state.routes()
    assert [(weight, name) for weight, name, _, _ in route.versions] == [(1.0, "m")]
    driver.do(driver.state.deleted("m", 0.0))
    driver.settle()
    assert driver.state.traffic == {}


def test_autoscaling_follows_the_load(driver):
    auto = AutoscalingConfig(min_replicas=0, max_replicas=5, target_ongoing_requests=1, upscale_delay_s=0, downscale_delay_s=10, look_back_period_s=1)
    driver.deploy(deployment(num_replicas=None, autoscaling_config=auto))
    assert not driver.starting
    assert driver.status().status == "RUNNING"
    driver.do(driver.state.queue_reported(("app", "d"), "caller", 2, 0.0))
    assert len(driver.starting) == 2
    driver.settle()
    driver.do(driver.state.queue_reported(("app", "d"), "caller", 0, 0.0))
    driver.now = 1.0
    driver.do(driver.state.load_reported(("app", "d"), dict.fromkeys(driver.running, 2.0), 1.0))
    assert driver.status().deployments["d"].status == "UPSCALING"
    driver.settle()
    assert len(driver.running) == 4
    for now in (3.0, 8.0, 13.5):
        driver.now = now
        driver.do(driver.state.load_reported(("app", "d"), dict.fromkeys(driver.running, 0.0), now))
    driver.settle()
    assert not driver.running


def test_a_failed_import_keeps_what_runs(driver):
    driver.deploy()
    driver.settle()
    driver.do(driver.state.build_failed("app", "SyntaxError: line 3", 0.0))
    assert driver.status().status == "DEPLOY_FAILED"
    assert driver.status().message == "SyntaxError: line 3"
    assert len(driver.seen().replica_ids) == 1
    driver.deploy()
    assert driver.status().status == "RUNNING"


def test_the_state_survives_pickling(driver):
    driver.deploy(deployment(num_replicas=2))
    driver.started()
    copy = pickle.loads(pickle.dumps(driver.state))
    assert copy.overview() == driver.state.overview()
    assert copy.reconcile(0.0) == []


@pytest.mark.parametrize("seed", range(60))
def test_any_story_comes_to_rest_at_what_was_deployed_last(seed):
    """Deploys, deaths, failures and stops in any order: at the end the last version runs, as often as wanted, and nothing else."""
    dice = random.Random(seed)
    driver = Driver()
    driver.deploy(deployment("a", num_replicas=2), deployment("b"))
    wanted = {"a": ("v1", 2), "b": ("v1", 1)}
    for _ in range(80):
        driver.now += dice.random()
        step = dice.randrange(7)
        if step == 0:
            wanted = {name: (f"v{dice.randrange(4)}", dice.randrange(4)) for name in ("a", "b")}
            driver.deploy(*(deployment(name, version, num_replicas=count) for name, (version, count) in wanted.items()))
        elif step == 1 and driver.running:
            victim = dice.choice(sorted(driver.running))
            del driver.running[victim]
            driver.do(driver.state.replica_died(victim, "killed", driver.now))
        elif step == 2 and driver.starting:
            driver.failed()
        elif step == 3 and driver.stopping:
            driver.stopped()
        elif driver.starting:
            driver.started(dice.choice(sorted(driver.starting)))
    driver.deploy(*(deployment(name, version + "-last", num_replicas=count) for name, (version, count) in wanted.items()))
    driver.settle()
    driver.later(100)
    driver.settle()
    expected = sorted(f"{version}-last" for version, count in wanted.values() for _ in range(count))
    assert driver.versions() == expected
    assert driver.status().status == "RUNNING"
