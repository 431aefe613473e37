"""Which replicas there should be and which there are: events in, effects out. No cluster, clock or randomness: time comes with the call.

A rolling update starts replicas of the new version first, at most 20 % more than wanted and at least one, and lets old ones leave only as new ones answer.
When an application changes several deployments at once, old ones go on serving until each new version has a replica that was constructed. A version that
fails to construct is given up after a number of attempts; what ran before goes on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .autoscaling import Autoscaler
from .build import ApplicationSpec, DeploymentSpec
from .config import DeploymentConfig
from .exceptions import ServeConfigError
from .overview import (
    ApplicationStatus,
    ApplicationStatusOverview,
    DeploymentStatus,
    DeploymentStatusOverview,
    ReplicaState,
)

SURGE = 0.2
ATTEMPTS_PER_REPLICA = 3
HEALTH_FAILURES = 3
# Pauses between attempts to construct a replica, seconds.
FIRST_RETRY_S, LONGEST_UNPROVEN_RETRY_S, LONGEST_RETRY_S = 0.1, 1.0, 10.0
STABLE = "stable"

Key = tuple[str, str]  # application, deployment


def base_name(app: str) -> str:
    return app.partition("@")[0]


def version_name(app: str) -> str:
    return app.partition("@")[2] or STABLE


# -- effects ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StartReplica:
    replica_id: str
    key: Key
    spec: DeploymentSpec


@dataclass(frozen=True)
class StopReplica:
    """Let it answer what it has, then end it; at the latest after `timeout_s`."""

    replica_id: str
    look_s: float
    timeout_s: float


@dataclass(frozen=True)
class KillReplica:
    replica_id: str


@dataclass(frozen=True)
class Reconfigure:
    replica_id: str
    config: DeploymentConfig
    user_config_changed: bool


@dataclass(frozen=True)
class Publish:
    """The set of replicas that callers may choose from, or the routes when `key` is None."""

    key: Key | None


Effect = StartReplica | StopReplica | KillReplica | Reconfigure | Publish


@dataclass(frozen=True)
class ReplicaSet:
    """What callers of a deployment are told. `gone`: why nobody will ever answer; empty otherwise."""

    replica_ids: tuple[str, ...]
    max_ongoing: int
    max_queued: int
    gone: str = ""
    autoscaled: bool = False


@dataclass(frozen=True)
class Route:
    """`versions`: (weight, application, ingress deployment, whether it is an ASGI application)."""

    prefix: str
    app: str
    versions: tuple[tuple[float, str, str, bool], ...]


# -- state -----------------------------------------------------------------------------------------------------


@dataclass
class Replica:
    replica_id: str
    spec: DeploymentSpec
    state: ReplicaState = ReplicaState.STARTING
    health_failures: int = 0
    told: DeploymentConfig | None = None  # the configuration that it works with
    waits_for: str = ""


@dataclass
class DeploymentState:
    key: Key
    target: DeploymentSpec
    wanted: int
    replicas: dict[str, Replica] = field(default_factory=dict)
    stable: DeploymentSpec | None = None  # the last version of which a replica was constructed
    autoscaler: Autoscaler | None = None
    failures: int = 0
    error: str = ""
    retry_at: float = 0.0
    deleted: bool = False
    was_healthy: bool = False
    scaling: int = 0

    @property
    def constructed(self) -> bool:
        return any(r.state is ReplicaState.RUNNING and r.spec.version == self.target.version for r in self.replicas.values())

    @property
    def proven(self) -> bool:
        return self.stable is not None and self.stable.version == self.target.version

    @property
    def given_up(self) -> bool:
        limit = min(self.target.config.max_constructor_retry_count, ATTEMPTS_PER_REPLICA * max(1, self.wanted))
        return not self.proven and self.failures >= limit

    def of(self, state: ReplicaState, new: bool | None = None) -> list[Replica]:
        return [r for r in self.replicas.values() if r.state is state and (new is None or (r.spec.version == self.target.version) is new)]


@dataclass
class AppState:
    name: str
    route_prefix: str | None
    ingress: str
    deployments: dict[str, DeploymentState]
    deployed_at: float
    open: bool = False  # whether every deployment's target version has been constructed
    deleted: bool = False
    build_error: str = ""


@dataclass
class ServeState:
    """Everything that the controller decides by. Pickled after each change: that is what a restarted controller goes on from."""

    apps: dict[str, AppState] = field(default_factory=dict)
    traffic: dict[str, dict[str, float]] = field(default_factory=dict)
    counter: int = 0
    _published: dict[Key, ReplicaSet] = field(default_factory=dict)
    _routes: tuple[Route, ...] = ()

    # -- events
    def deployed(self, spec: ApplicationSpec, now: float) -> list[Effect]:
        """An application is to be there as described. Raises ServeConfigError for a route prefix that another one has."""
        self._check_prefix(spec)
        app = self.apps.get(spec.name)
        if app is None:
            app = self.apps[spec.name] = AppState(spec.name, spec.route_prefix, spec.ingress, {}, now)
        app.route_prefix, app.ingress, app.deployed_at, app.deleted, app.build_error = spec.route_prefix, spec.ingress, now, False, ""
        app.open = False
        wanted = {one.name: one for one in spec.deployments}
        for name, state in app.deployments.items():
            state.deleted = state.deleted or name not in wanted
        for name, one in wanted.items():
            self._deploy(app, name, one)
        return self.reconcile(now)

    def build_failed(self, name: str, error: str, now: float) -> list[Effect]:
        """The code of an application could not be imported: what ran before goes on, and the status names the error."""
        app = self.apps.get(name)
        if app is None:
            app = self.apps[name] = AppState(name, None, "", {}, now)
        app.build_error, app.deployed_at = error, now
        return self.reconcile(now)

    def _deploy(self, app: AppState, name: str, spec: DeploymentSpec) -> None:
        state = app.deployments.get(name)
        auto = spec.config.autoscaling_config
        if state is None:
            state = app.deployments[name] = DeploymentState((app.name, name), spec, spec.config.start_replicas)
        elif auto is None:
            state.wanted = spec.config.start_replicas
        else:
            state.wanted = min(max(state.wanted, auto.min_replicas), auto.max_replicas)
        if auto is None:
            state.autoscaler = None
        elif state.autoscaler is None:
            state.autoscaler = Autoscaler(auto)
        else:
            state.autoscaler.config = auto
        state.target, state.deleted, state.failures, state.error, state.retry_at, state.was_healthy = spec, False, 0, "", 0.0, False

    def _check_prefix(self, spec: ApplicationSpec) -> None:
        for other in self.apps.values():
            same_base = base_name(other.name) == base_name(spec.name)
            if other.deleted or other.name == spec.name or not other.deployments:
                continue
            if same_base and other.route_prefix != spec.route_prefix:
                raise ServeConfigError(f"application {spec.name!r} has route_prefix {spec.route_prefix!r}, but {other.name!r}, another version of it, has "
                                       f"{other.route_prefix!r}; versions share one prefix")  # fmt: skip
            if not same_base and spec.route_prefix is not None and other.route_prefix == spec.route_prefix:
                raise ServeConfigError(f"route_prefix {spec.route_prefix!r} of application {spec.name!r} is taken by application {other.name!r}; "
                                       "give one of them another route_prefix, or delete one")  # fmt: skip

    def deleted(self, name: str, now: float) -> list[Effect]:
        """An application, or one version of it, is to go; a base name takes all versions along."""
        for app in self.apps.values():
            if app.name == name or ("@" not in name and base_name(app.name) == name):
                app.deleted = True
                for state in app.deployments.values():
                    state.deleted = True
        return self.reconcile(now)

    def traffic_set(self, base: str, weights: dict[str, float], now: float) -> list[Effect]:
        """Raises ServeConfigError naming an unknown version or a bad weight."""
        versions = {version_name(app.name) for app in self.apps.values() if base_name(app.name) == base and not app.deleted}
        if not versions:
            raise ServeConfigError(f"there is no application {base!r}; there are {sorted({base_name(name) for name in self.apps}) or 'none'}")
        for version, weight in weights.items():
            if version not in versions:
                raise ServeConfigError(f"application {base!r} has no version {version!r}; it has {sorted(versions)}")
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
                raise ServeConfigError(f"the weight of version {version!r} must be a number of at least 0, got {weight!r}")
        if sum(weights.values()) <= 0:
            raise ServeConfigError(f"the weights of {base!r} must not all be 0, got {weights}")
        self.traffic[base] = dict(weights)
        return self.reconcile(now)

    def replica_waits(self, replica_id: str, what: str) -> None:
        if found := self._find(replica_id):
            found[1].waits_for = what

    def replica_started(self, replica_id: str, now: float) -> list[Effect]:
        found = self._find(replica_id)
        if found is None:
            return [KillReplica(replica_id)]
        state, replica = found
        if replica.state is ReplicaState.STARTING:
            replica.state = ReplicaState.RUNNING
            replica.told = replica.spec.config
            replica.waits_for = ""
            if replica.spec.version == state.target.version:
                state.stable, state.failures, state.error = state.target, 0, ""
        return self.reconcile(now)

    def replica_failed(self, replica_id: str, error: str, now: float) -> list[Effect]:
        """It could not be constructed."""
        found = self._find(replica_id)
        if found is None:
            return []
        state, replica = found
        del state.replicas[replica_id]
        if replica.spec.version == state.target.version and replica.state is ReplicaState.STARTING:
            state.failures += 1
            state.error = error
            longest = LONGEST_RETRY_S if state.proven else LONGEST_UNPROVEN_RETRY_S
            state.retry_at = now + min(FIRST_RETRY_S * 2 ** min(state.failures - 1, 20), longest)
        return [KillReplica(replica_id), *self.reconcile(now)]

    def replica_died(self, replica_id: str, cause: str, now: float) -> list[Effect]:
        found = self._find(replica_id)
        if found is None:
            return []
        state, replica = found
        if replica.state is ReplicaState.STARTING:
            return self.replica_failed(replica_id, f"the replica ended while it was started: {cause}", now)
        del state.replicas[replica_id]
        if state.autoscaler is not None:
            state.autoscaler.forget(replica_id)
        if replica.state is ReplicaState.RUNNING:
            state.error = f"replica {replica_id} died: {cause}"
        return self.reconcile(now)

    def replica_stopped(self, replica_id: str, now: float) -> list[Effect]:
        return self.replica_died(replica_id, "it was stopped", now)

    def health_checked(self, replica_id: str, error: str, now: float) -> list[Effect]:
        """`error` is empty when it is well."""
        found = self._find(replica_id)
        if found is None or found[1].state is not ReplicaState.RUNNING:
            return []
        state, replica = found
        if not error:
            replica.health_failures = 0
            return []
        replica.health_failures += 1
        if replica.health_failures < HEALTH_FAILURES:
            return []
        del state.replicas[replica_id]
        if state.autoscaler is not None:
            state.autoscaler.forget(replica_id)
        state.error = f"replica {replica_id} failed {HEALTH_FAILURES} health checks: {error}"
        return [KillReplica(replica_id), *self.reconcile(now)]

    def load_reported(self, key: Key, running: dict[str, float], now: float) -> list[Effect]:
        """The requests that each replica has. Followed by the policy's decision."""
        state = self._deployment(key)
        if state is None or state.autoscaler is None or state.deleted:
            return []
        for replica_id, ongoing in running.items():
            if replica_id in state.replicas:
                state.autoscaler.record_running(now, replica_id, ongoing)
        return self._scale(state, now)

    def queue_reported(self, key: Key, caller: str, queued: int, now: float) -> list[Effect]:
        state = self._deployment(key)
        if state is None or state.autoscaler is None or state.deleted:
            return []
        state.autoscaler.record_queued(now, caller, queued)
        return self._scale(state, now) if state.wanted == 0 else []

    def _scale(self, state: DeploymentState, now: float) -> list[Effect]:
        assert state.autoscaler is not None
        wanted = state.autoscaler.decide(now, state.wanted)
        if wanted == state.wanted:
            return []
        state.scaling = 1 if wanted > state.wanted else -1
        state.wanted = wanted
        return self.reconcile(now)

    # -- decisions
    def reconcile(self, now: float) -> list[Effect]:
        """Everything that follows from what is and what should be. Calling it again changes nothing."""
        effects: list[Effect] = []
        # One step makes room for the next: an old replica that leaves lets a new one start.
        while step := self._step(now):
            effects += step
        for app in list(self.apps.values()):
            for name in [name for name, state in app.deployments.items() if state.deleted and not state.replicas]:
                del app.deployments[name]
            if app.deleted and not app.deployments:
                del self.apps[app.name]
        self.traffic = {base: weights for base, weights in self.traffic.items() if any(base_name(name) == base for name in self.apps)}
        return effects + self._publish()

    def _step(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for app in self.apps.values():
            app.open = app.open or all(s.deleted or s.wanted == 0 or s.constructed for s in app.deployments.values())
            for state in app.deployments.values():
                effects += self._reconcile(app, state, now)
        return effects

    def _reconcile(self, app: AppState, state: DeploymentState, now: float) -> Iterable[Effect]:
        if state.deleted:
            return self._stop([*state.of(ReplicaState.STARTING), *state.of(ReplicaState.RUNNING)])
        starting_new, running_new = state.of(ReplicaState.STARTING, True), state.of(ReplicaState.RUNNING, True)
        starting_old, running_old = state.of(ReplicaState.STARTING, False), state.of(ReplicaState.RUNNING, False)
        if len(running_new) == state.wanted and not running_old:
            state.was_healthy, state.scaling = True, 0
        effects = self._tell(state)
        if state.given_up:
            missing = state.wanted - len(running_new) - len(running_old) - len(starting_old)
            if state.stable is not None:
                effects += [self._start(state, state.stable) for _ in range(missing)]
            return effects
        effects += self._stop(starting_old)
        total = len(starting_new) + len(running_new) + len(running_old)
        room = state.wanted + (max(1, math.ceil(SURGE * state.wanted)) if running_old else 0) - total
        if running_old:
            # One of the new version may always be tried, however many are left of earlier ones; and only one until all deployments have theirs.
            first = 1 - len(starting_new) - len(running_new)
            room = max(room, first) if app.open else first
        missing = min(state.wanted - len(starting_new) - len(running_new), room)
        if now >= state.retry_at:
            effects += [self._start(state, state.target) for _ in range(missing)]
        if app.open:
            spare = min(len(running_new) + len(running_old) - state.wanted, len(running_old))
            effects += self._stop(running_old[: max(0, spare)])
        spare = len(starting_new) + len(running_new) - state.wanted
        if spare > 0:
            effects += self._stop([*starting_new, *reversed(running_new)][:spare])
        return effects

    def _start(self, state: DeploymentState, spec: DeploymentSpec) -> StartReplica:
        self.counter += 1
        replica_id = f"{state.key[0]}#{state.key[1]}#{self.counter}"
        state.replicas[replica_id] = Replica(replica_id, spec)
        return StartReplica(replica_id, state.key, spec)

    def _stop(self, replicas: list[Replica]) -> list[Effect]:
        effects: list[Effect] = []
        for replica in replicas:
            was, replica.state = replica.state, ReplicaState.STOPPING
            config = replica.told or replica.spec.config
            wait_s = config.graceful_shutdown_timeout_s if was is ReplicaState.RUNNING else 0.0
            effects.append(StopReplica(replica.replica_id, config.graceful_shutdown_wait_loop_s, wait_s))
        return effects

    def _tell(self, state: DeploymentState) -> list[Effect]:
        """A change that running replicas can take on."""
        effects: list[Effect] = []
        for replica in state.of(ReplicaState.RUNNING, True):
            if replica.told is not None and replica.told != state.target.config:
                effects.append(Reconfigure(replica.replica_id, state.target.config, replica.told.user_config != state.target.config.user_config))
                replica.told = state.target.config
        return effects

    # -- what callers see
    def replica_set(self, key: Key) -> ReplicaSet:
        app = self.apps.get(key[0])
        state = self._deployment(key)
        if app is None or app.deleted:
            return ReplicaSet((), 0, 0, f"there is no application {key[0]!r}")
        if state is None or state.deleted:
            return ReplicaSet((), 0, 0, f"application {key[0]!r} has no deployment {key[1]!r}")
        config = state.target.config
        old = [r.replica_id for r in state.of(ReplicaState.RUNNING, False)]
        new = [r.replica_id for r in state.of(ReplicaState.RUNNING, True)]
        ids = old + new if app.open or not old else old
        gone = "" if ids or not state.given_up or state.stable is not None else f"deployment {key[1]!r} of application {key[0]!r} failed: {state.error}"
        return ReplicaSet(tuple(ids), config.max_ongoing_requests, config.max_queued_requests, gone, state.autoscaler is not None)

    def routes(self) -> tuple[Route, ...]:
        """Longest prefixes first."""
        by_base: dict[str, list[AppState]] = {}
        for app in self.apps.values():
            if not app.deleted and app.deployments and app.ingress:
                by_base.setdefault(base_name(app.name), []).append(app)
        routes = [Route(apps[0].route_prefix or "", base, self._versions(base, apps)) for base, apps in by_base.items()]
        return tuple(sorted(routes, key=lambda route: (-len(route.prefix), route.prefix, route.app)))

    def _versions(self, base: str, apps: list[AppState]) -> tuple[tuple[float, str, str, bool], ...]:
        weights = self.weights(base, apps)
        return tuple((weights[app.name], app.name, app.ingress, app.deployments[app.ingress].target.asgi) for app in apps if weights[app.name] > 0)

    def weights(self, base: str, apps: list[AppState] | None = None) -> dict[str, float]:
        """The share of each version, by its application's full name; they sum to 1."""
        if apps is None:
            apps = [app for app in self.apps.values() if base_name(app.name) == base and not app.deleted]
        given = self.traffic.get(base, {})
        shares = {app.name: float(given.get(version_name(app.name), 0.0)) for app in apps}
        total = sum(shares.values())
        if total <= 0:
            return {app.name: float(app is apps[0]) for app in apps}
        return {name: share / total for name, share in shares.items()}

    def _publish(self) -> list[Effect]:
        effects: list[Effect] = []
        keys = {state.key for app in self.apps.values() for state in app.deployments.values()}
        for key in sorted(keys | self._published.keys()):
            now = self.replica_set(key)
            if self._published.get(key) != now:
                effects.append(Publish(key))
                if key in keys:
                    self._published[key] = now
                else:
                    del self._published[key]
        routes = self.routes()
        if routes != self._routes:
            self._routes = routes
            effects.append(Publish(None))
        return effects

    # -- status
    def next_retry(self, now: float) -> float | None:
        """When `reconcile` has to be called again without an event."""
        times = [s.retry_at for app in self.apps.values() for s in app.deployments.values() if s.retry_at > now and not s.given_up and not s.deleted]
        return min(times, default=None)

    def overview(self) -> dict[str, ApplicationStatusOverview]:
        return {name: self.app_overview(app) for name, app in self.apps.items()}

    def app_overview(self, app: AppState) -> ApplicationStatusOverview:
        deployments = {name: self._deployment_overview(state) for name, state in app.deployments.items() if not state.deleted or app.deleted}
        found = {one.status for one in deployments.values()}
        message = "; ".join(f"deployment {name!r}: {one.message}" for name, one in deployments.items() if one.message)
        if app.deleted:
            status = ApplicationStatus.DELETING
        elif app.build_error:
            status, message = ApplicationStatus.DEPLOY_FAILED, app.build_error
        elif DeploymentStatus.DEPLOY_FAILED in found:
            status = ApplicationStatus.DEPLOY_FAILED
        elif DeploymentStatus.UNHEALTHY in found:
            status = ApplicationStatus.UNHEALTHY
        elif DeploymentStatus.UPDATING in found:
            status = ApplicationStatus.DEPLOYING
        else:
            status = ApplicationStatus.RUNNING
        share = 0.0 if app.deleted else self.weights(base_name(app.name)).get(app.name, 0.0)
        return ApplicationStatusOverview(status, message, app.deployed_at, deployments, app.route_prefix, share)

    def _deployment_overview(self, state: DeploymentState) -> DeploymentStatusOverview:
        counts: dict[ReplicaState, int] = {}
        for replica in state.replicas.values():
            counts[replica.state] = counts.get(replica.state, 0) + 1
        new, old = len(state.of(ReplicaState.RUNNING, True)), len(state.of(ReplicaState.RUNNING, False))
        waits = next((r.waits_for for r in state.replicas.values() if r.waits_for), "")
        message = state.error or waits
        if state.given_up:
            kept = f"; {old} replica(s) of the version before go on serving" if old else ""
            return DeploymentStatusOverview(DeploymentStatus.DEPLOY_FAILED, counts, f"{state.error}{kept}")
        if new == state.wanted and not old:
            return DeploymentStatusOverview(DeploymentStatus.HEALTHY, counts)
        if state.scaling and not old and state.was_healthy and not state.error:
            return DeploymentStatusOverview(DeploymentStatus.UPSCALING if state.scaling > 0 else DeploymentStatus.DOWNSCALING, counts, message)
        if state.was_healthy and state.error and not old:
            return DeploymentStatusOverview(DeploymentStatus.UNHEALTHY, counts, message)
        return DeploymentStatusOverview(DeploymentStatus.UPDATING, counts, message)

    # -- finding
    def _deployment(self, key: Key) -> DeploymentState | None:
        app = self.apps.get(key[0])
        return app.deployments.get(key[1]) if app is not None else None

    def _find(self, replica_id: str) -> tuple[DeploymentState, Replica] | None:
        app, _, rest = replica_id.partition("#")
        state = self._deployment((app, rest.rpartition("#")[0]))
        replica = state.replicas.get(replica_id) if state is not None else None
        return (state, replica) if state is not None and replica is not None else None

    def specs(self) -> Iterable[DeploymentSpec]:
        """All that something may still be started from."""
        for app in self.apps.values():
            for state in app.deployments.values():
                yield state.target
                if state.stable is not None:
                    yield state.stable
                yield from (replica.spec for replica in state.replicas.values())

    def each(self, state: ReplicaState) -> list[tuple[Key, Replica]]:
        return [(one.key, r) for app in self.apps.values() for one in app.deployments.values() for r in one.replicas.values() if r.state is state]

    def autoscaled(self) -> list[tuple[Key, Any]]:
        return [(one.key, one.autoscaler) for app in self.apps.values() for one in app.deployments.values() if one.autoscaler is not None and not one.deleted]
