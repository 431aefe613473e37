"""The controller: one detached actor that carries out what `state.ServeState` decides.

Its state lies in the cluster's key-value store, written before anything is done about a change, so that a controller that was killed goes on where it was.
Requests do not pass here, and go on meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import pickle
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import shoal
from shoal import ext
from shoal.exceptions import RayTaskError
from shoal.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from .build import DEFAULT_NUM_CPUS, ApplicationSpec, DeploymentSpec
from .config import HTTPOptions, ProxyLocation
from .context import NAMESPACE, PROXY_NAME, new_request_id
from .exceptions import RayServeException
from .overview import ApplicationStatus, ProxyStatus, ReplicaState, ServeStatus
from .proxy import Proxy, addresses
from .replica import Replica
from .state import Effect, Key, KillReplica, Publish, Reconfigure, ServeState, StartReplica, StopReplica, base_name

_log = logging.getLogger("shoal.serve")

STATE_KEY, OPTIONS_KEY, CODE_PREFIX = b"state", b"http_options", b"code/"
KV_NAMESPACE = "shoal.serve"
# Limit: calls at a time; long polls are calls as well.
MAX_CALLS = 100_000
# A replica that has no place yet is mentioned in the status after so long.
WAITS_S = 3.0
TICK_S = 0.1
# How long a replica may take to be found again after the controller's own restart.
RECOVER_TIMEOUT_S = 30.0
PROXY_TIMEOUT_S = 30.0
STOP_SLACK_S = 5.0
# How often proxies are looked after.
PROXY_PERIOD_S = 5.0


class Controller:
    """The actor."""

    def __init__(self, http_options: HTTPOptions, location: ProxyLocation) -> None:
        self._state = ServeState()
        self._options, self._location = http_options, location
        self._boot = new_request_id()
        self._handles: dict[str, Any] = {}
        self._actor_ids: dict[str, str] = {}
        self._journals: dict[str, tuple[str, int, int]] = {}
        self._versions: dict[Key | None, int] = {}
        self._changed: dict[Key | None, asyncio.Event] = {}
        self._status_changed = asyncio.Event()
        self._proxies: dict[str, tuple[Any, ProxyStatus, tuple[str, int] | None]] = {}
        self._proxy_errors: dict[str, str] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._checks: dict[str, float] = {}
        self._asked: dict[Key, float] = {}
        self._proxy_due = asyncio.Event()
        self._codes: dict[bytes, bytes] = {}
        self._unsaved = False
        self._ended = False
        self._loop = asyncio.get_running_loop()
        self._recovered = self._spawn(self._recover())
        self._watch = ext.watch_actors(self._on_actor)
        self._spawn(self._tick())

    def _spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("a task of Serve's controller failed", exc_info=task.exception())

    # -- state
    async def _recover(self) -> None:
        saved = ext.kv_get(STATE_KEY, namespace=KV_NAMESPACE)
        options = ext.kv_get(OPTIONS_KEY, namespace=KV_NAMESPACE)
        if options is not None:
            self._options, self._location = pickle.loads(options)
        else:
            ext.kv_put(OPTIONS_KEY, pickle.dumps((self._options, self._location)), namespace=KV_NAMESPACE)
        if saved is not None:
            self._state = pickle.loads(saved)
            await self._find_replicas()
        self._spawn(self._look_after_proxies())

    async def _find_replicas(self) -> None:
        """After a restart: which replicas of the stored state are still there."""
        for state in ReplicaState:
            for _, replica in self._state.each(state):
                replica_id = replica.replica_id
                try:
                    handle = shoal.get_actor(replica_id, NAMESPACE)
                except ValueError as error:
                    self._do(self._state.replica_died(replica_id, str(error), time.monotonic()))
                    continue
                self._remember(replica_id, handle)
                if state is ReplicaState.RUNNING:
                    with contextlib.suppress(Exception):  # a replica that does not answer now is found out by its health checks
                        self._journals[replica_id] = await asyncio.wait_for(_value(handle.initialize.remote()), RECOVER_TIMEOUT_S)
                elif state is ReplicaState.STARTING:
                    self._spawn(self._await_start(replica_id, handle))
                elif state is ReplicaState.STOPPING:
                    self._spawn(self._stop(StopReplica(replica_id, 1.0, replica.spec.config.graceful_shutdown_timeout_s)))
        # Times of a process that has gone mean nothing here.
        for app in self._state.apps.values():
            for deployment in app.deployments.values():
                deployment.retry_at = 0.0
        self._do(self._state.reconcile(time.monotonic()))

    def _do(self, effects: Iterable[Effect]) -> None:
        effects = list(effects)
        self._status_changed.set()
        self._status_changed = asyncio.Event()
        if effects:
            self._save()
        for effect in effects:
            if isinstance(effect, Publish):
                self._publish(effect.key)
            elif isinstance(effect, StartReplica):
                self._start(effect)
            elif isinstance(effect, StopReplica):
                self._spawn(self._stop(effect))
            elif isinstance(effect, KillReplica):
                self._kill(effect.replica_id)
            elif isinstance(effect, Reconfigure):
                self._spawn(self._reconfigure(effect))

    def _save(self) -> None:
        try:
            ext.kv_put(STATE_KEY, pickle.dumps(self._state), namespace=KV_NAMESPACE)
            used = {spec.code for spec in self._state.specs()}
            for key in [key for key in self._codes if key not in used]:
                ext.kv_delete(CODE_PREFIX + key, namespace=KV_NAMESPACE)
                del self._codes[key]
            self._unsaved = False
        except Exception as error:  # the control store is being started again: what runs goes on, and the next tick saves
            self._unsaved = True
            _log.warning("Serve's state was not saved, and will be: %s", error)

    def _kept(self, spec: ApplicationSpec) -> ApplicationSpec:
        """With hashes in place of the code, which is stored once: the state is written at every change."""
        deployments = []
        for one in spec.deployments:
            key = hashlib.blake2b(one.code, digest_size=16).digest()
            if key not in self._codes:
                ext.kv_put(CODE_PREFIX + key, one.code, namespace=KV_NAMESPACE)
                self._codes[key] = one.code
            deployments.append(replace(one, code=key))
        return replace(spec, deployments=tuple(deployments))

    def _code(self, key: bytes) -> bytes:
        if key not in self._codes:
            stored = ext.kv_get(CODE_PREFIX + key, namespace=KV_NAMESPACE)
            if stored is None:
                raise RayServeException("the code of this deployment is not in the cluster's key-value store any more: deploy it again")
            self._codes[key] = stored
        return self._codes[key]

    def _publish(self, key: Key | None) -> None:
        self._versions[key] = self._versions.get(key, 0) + 1
        event = self._changed.pop(key, None)
        if event is not None:
            event.set()

    # -- replicas
    def _remember(self, replica_id: str, handle: Any) -> None:
        self._handles[replica_id] = handle
        self._actor_ids[handle._actor_id.hex()] = replica_id

    def _start(self, effect: StartReplica) -> None:
        spec = effect.spec
        options = {"num_cpus": DEFAULT_NUM_CPUS, **spec.config.ray_actor_options}
        try:
            handle = (
                shoal.remote(Replica)
                .options(name=effect.replica_id, namespace=NAMESPACE, lifetime="detached", max_restarts=0, max_concurrency=MAX_CALLS, **options)
                .remote(effect.replica_id, effect.key[0], effect.key[1], self._code(spec.code), spec.config, spec.sys_path)
            )
        except Exception as error:
            self._loop.call_soon(self._failed, effect.replica_id, error)
            return
        self._remember(effect.replica_id, handle)
        self._spawn(self._await_start(effect.replica_id, handle, spec))

    def _failed(self, replica_id: str, error: BaseException) -> None:
        self._do(self._state.replica_failed(replica_id, _told(error), time.monotonic()))

    async def _await_start(self, replica_id: str, handle: Any, spec: DeploymentSpec | None = None) -> None:
        started = asyncio.ensure_future(_value(handle.initialize.remote()))
        done, _ = await asyncio.wait([started], timeout=WAITS_S)
        if not done:
            self._state.replica_waits(replica_id, await self._why_waiting(replica_id, handle, spec))
            self._do(())
        try:
            self._journals[replica_id] = await started
        except Exception as error:
            self._failed(replica_id, error)
        else:
            self._checks[replica_id] = time.monotonic()
            self._do(self._state.replica_started(replica_id, time.monotonic()))

    async def _why_waiting(self, replica_id: str, handle: Any, spec: DeploymentSpec | None) -> str:
        options = {"num_cpus": DEFAULT_NUM_CPUS, **(spec.config.ray_actor_options if spec is not None else {})}
        needs = {"CPU": options.get("num_cpus"), "GPU": options.get("num_gpus"), **(options.get("resources") or {})}
        wanted = ", ".join(f"{name}: {amount:g}" for name, amount in needs.items() if amount)
        free = {name: amount for name, amount in shoal.available_resources().items() if name in needs}
        left = ", ".join(f"{name}: {amount:g}" for name, amount in free.items())
        return (f"replica {replica_id} has not started after {WAITS_S:g} s: its constructor runs, or it waits for a node with room; "
                f"it needs {{{wanted}}}, free in the cluster: {{{left}}}")  # fmt: skip

    async def _stop(self, effect: StopReplica) -> None:
        handle = self._handles.get(effect.replica_id)
        if handle is not None:
            with contextlib.suppress(Exception):  # it died, or its code hangs: it is killed below either way
                await asyncio.wait_for(_value(handle.drain.remote(effect.look_s, effect.timeout_s)), effect.timeout_s + STOP_SLACK_S)
        self._kill(effect.replica_id)
        self._do(self._state.replica_stopped(effect.replica_id, time.monotonic()))

    def _kill(self, replica_id: str) -> None:
        handle = self._handles.pop(replica_id, None)
        self._checks.pop(replica_id, None)
        self._journals.pop(replica_id, None)
        if handle is not None:
            self._actor_ids.pop(handle._actor_id.hex(), None)
            with contextlib.suppress(Exception):  # it has gone already
                shoal.kill(handle)

    async def _reconfigure(self, effect: Reconfigure) -> None:
        handle = self._handles.get(effect.replica_id)
        if handle is None:
            return
        try:
            await _value(handle.reconfigure.remote(effect.config, effect.user_config_changed))
        except Exception as error:
            self._do(self._state.replica_died(effect.replica_id, f"reconfigure() failed: {_told(error)}", time.monotonic()))
            self._kill(effect.replica_id)

    def _on_actor(self, change: ext.ActorChange) -> None:
        # On a thread of the runtime.
        if change.state == "DEAD":
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._actor_died, change.actor_id, change.cause)

    def _actor_died(self, actor_id: str, cause: str) -> None:
        replica_id = self._actor_ids.pop(actor_id, None)
        if replica_id is not None and self._handles.pop(replica_id, None) is not None:
            self._journals.pop(replica_id, None)
            self._checks.pop(replica_id, None)
            self._do(self._state.replica_died(replica_id, cause, time.monotonic()))
        if any(handle._actor_id.hex() == actor_id for handle, _, _ in self._proxies.values()):
            self._proxy_due.set()

    # -- what has to be done by time
    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            try:
                self._look(time.monotonic())
            except Exception:
                _log.exception("Serve's controller goes on after an error")

    def _look(self, now: float) -> None:
        if self._unsaved:
            self._save()
        for _, replica in self._state.each(ReplicaState.RUNNING):
            config = replica.told or replica.spec.config
            if now - self._checks.get(replica.replica_id, now) >= config.health_check_period_s:
                self._checks[replica.replica_id] = now + config.health_check_timeout_s  # not again while this one runs
                self._spawn(self._check(replica.replica_id, config.health_check_timeout_s))
        for key, autoscaler in self._state.autoscaled():
            if now - self._asked.get(key, 0.0) >= autoscaler.config.metrics_interval_s:
                self._asked[key] = now
                self._spawn(self._ask_load(key, autoscaler.config.metrics_interval_s))
        if any(s.retry_at and s.retry_at <= now for app in self._state.apps.values() for s in app.deployments.values()):
            effects = self._state.reconcile(now)
            if effects:
                self._do(effects)

    async def _check(self, replica_id: str, timeout_s: float) -> None:
        handle = self._handles.get(replica_id)
        if handle is None:
            return
        error = ""
        try:
            await asyncio.wait_for(_value(handle.check_health.remote()), timeout_s)
        except TimeoutError:
            error = f"no answer within {timeout_s:g} s"
        except Exception as raised:
            error = _told(raised)
        if replica_id in self._handles:
            self._checks[replica_id] = time.monotonic()
            effects = self._state.health_checked(replica_id, error, time.monotonic())
            if effects:
                self._do(effects)

    async def _ask_load(self, key: Key, timeout_s: float) -> None:
        app = self._state.apps.get(key[0])
        deployment = app.deployments.get(key[1]) if app is not None else None
        if deployment is None:
            return
        handles = {r.replica_id: self._handles[r.replica_id] for r in deployment.of(ReplicaState.RUNNING) if r.replica_id in self._handles}
        answers = await asyncio.gather(*(asyncio.wait_for(_value(h.load.remote()), max(timeout_s, 1.0)) for h in handles.values()), return_exceptions=True)
        running = {replica_id: float(load) for replica_id, load in zip(handles, answers, strict=True) if isinstance(load, int)}
        effects = self._state.load_reported(key, running, time.monotonic())
        if effects:
            self._do(effects)

    # -- proxies
    async def _look_after_proxies(self) -> None:
        while not self._ended:
            self._proxy_due.clear()
            for node_id in self._proxy_nodes():
                await self._ensure_proxy(node_id)
            await _either(self._proxy_due, PROXY_PERIOD_S)

    def _proxy_nodes(self) -> list[str]:
        if self._location is ProxyLocation.Disabled:
            return []
        head = head_node()
        if self._location is ProxyLocation.HeadOnly:
            return [head]
        others = [node["NodeID"] for node in shoal.nodes() if node["Alive"] and node["NodeID"] != head]
        return [head, *others]

    async def _ensure_proxy(self, node_id: str) -> None:
        known = self._proxies.get(node_id)
        handle = known[0] if known is not None else None
        try:
            if handle is not None and known is not None and known[2] is not None:
                with contextlib.suppress(Exception):
                    if await asyncio.wait_for(_value(handle.check_health.remote()), PROXY_TIMEOUT_S):
                        self._proxies[node_id] = (handle, ProxyStatus.HEALTHY, known[2])
                        return
                self._proxies[node_id] = (handle, ProxyStatus.UNHEALTHY, None)
                with contextlib.suppress(Exception):  # it has gone already
                    shoal.kill(handle)
            handle = (
                shoal.remote(Proxy)
                .options(
                    name=f"{PROXY_NAME}::{node_id}", namespace=NAMESPACE, lifetime="detached", get_if_exists=True, num_cpus=0, max_concurrency=MAX_CALLS,
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
                )
                .remote(self._options)
            )  # fmt: skip
            self._proxies[node_id] = (handle, ProxyStatus.STARTING, None)
            address = await asyncio.wait_for(_value(handle.start.remote()), PROXY_TIMEOUT_S)
            self._proxies[node_id] = (handle, ProxyStatus.HEALTHY, tuple(address))
            self._proxy_errors.pop(node_id, None)
        except Exception as error:
            self._proxy_errors[node_id] = _told(error)
            self._proxies.pop(node_id, None)
            if handle is not None:
                with contextlib.suppress(Exception):  # it has gone already
                    shoal.kill(handle)
        finally:
            self._status_changed.set()
            self._status_changed = asyncio.Event()

    async def start_proxy(self) -> str:
        """The address of the head's proxy once it listens; empty without proxies. Raises RayServeException when it cannot."""
        await self._recovered
        if self._location is ProxyLocation.Disabled:
            return ""
        node_id = head_node()
        deadline = time.monotonic() + PROXY_TIMEOUT_S
        while time.monotonic() < deadline:
            known = self._proxies.get(node_id)
            if known is not None and known[2] is not None:
                return next(addresses(*known[2]))
            if node_id in self._proxy_errors:
                raise RayServeException(self._proxy_errors[node_id])
            await _either(self._status_changed, 0.05)
        raise RayServeException(f"the HTTP proxy did not start within {PROXY_TIMEOUT_S:g} s")

    # -- for users
    async def options(self) -> tuple[HTTPOptions, ProxyLocation]:
        await self._recovered
        return self._options, self._location

    async def deploy(self, specs: list[ApplicationSpec]) -> None:
        """All or none: raises ServeConfigError before anything has begun."""
        await self._recovered
        trial = pickle.loads(pickle.dumps(self._state))
        for spec in specs:
            trial.deployed(spec, 0.0)
        specs = [self._kept(spec) for spec in specs]
        effects: list[Effect] = []
        for spec in specs:
            effects += self._state.deployed(spec, time.monotonic())
        self._do(effects)
        now = time.time()
        for spec in specs:
            self._state.apps[spec.name].deployed_at = now

    async def _proxies_know(self, app: str = "") -> None:
        """Waits until all proxies have the routes of now."""
        handles = [handle for handle, _, address in self._proxies.values() if address is not None]
        version = self._version_of(None)
        await asyncio.gather(*(_value(handle.ready.remote(version, app)) for handle in handles), return_exceptions=True)

    def _version_of(self, key: Key | None) -> str:
        return f"{self._boot}-{self._versions.get(key, 0)}"

    async def build_failed(self, name: str, error: str) -> None:
        await self._recovered
        self._do(self._state.build_failed(name, error, time.monotonic()))
        self._save()

    async def wait_deployed(self, name: str, wait_s: float) -> tuple[ApplicationStatus, str]:
        """The status once it is no longer DEPLOYING, or after the wait."""
        await self._recovered
        deadline = time.monotonic() + wait_s
        while True:
            app = self._state.apps.get(name)
            if app is None:
                return ApplicationStatus.NOT_STARTED, "it was deleted meanwhile"
            overview = self._state.app_overview(app)
            if overview.status is ApplicationStatus.RUNNING and app.route_prefix is not None:
                await self._proxies_know(name if self._state.replica_set((name, app.ingress)).replica_ids else "")
            if overview.status not in (ApplicationStatus.DEPLOYING, ApplicationStatus.NOT_STARTED) or time.monotonic() >= deadline:
                return overview.status, overview.message
            await _either(self._status_changed, deadline - time.monotonic())

    async def delete(self, names: list[str], wait_s: float) -> list[str]:
        """Returns those that are still there after the wait."""
        await self._recovered
        for name in names:
            self._do(self._state.deleted(name, time.monotonic()))
        self._save()
        await self._proxies_know()
        deadline = time.monotonic() + wait_s
        while (left := [app for app in self._state.apps if app in names or base_name(app) in names]) and time.monotonic() < deadline:
            await _either(self._status_changed, deadline - time.monotonic())
        return left

    async def set_traffic(self, base: str, weights: dict[str, float]) -> None:
        await self._recovered
        self._do(self._state.traffic_set(base, weights, time.monotonic()))
        await self._proxies_know()

    async def status(self) -> ServeStatus:
        await self._recovered
        proxies = {node_id: status for node_id, (_, status, _) in self._proxies.items()}
        return ServeStatus(proxies | dict.fromkeys(self._proxy_errors, ProxyStatus.UNHEALTHY), self._state.overview())

    async def versions(self, base: str) -> tuple[tuple[float, str, str, bool], ...]:
        """(weight, application, ingress, ASGI) of each version of an application that gets requests."""
        await self._recovered
        return next((route.versions for route in self._state.routes() if route.app == base), ())

    async def find(self, app: str, deployment: str) -> tuple[list[str], list[str]]:
        """The names of the applications that are there, and of this one's deployments, its ingress last."""
        await self._recovered
        known = self._state.apps.get(app)
        names = [] if known is None or known.deleted else [name for name in known.deployments if name != known.ingress] + [known.ingress]
        return sorted(self._state.apps), names

    async def shutdown(self) -> None:
        """Everything ends but this actor, which its caller kills."""
        await self._recovered
        self._ended = True
        apps = list(self._state.apps)
        slowest = max((s.target.config.graceful_shutdown_timeout_s for a in self._state.apps.values() for s in a.deployments.values()), default=0.0)
        await self.delete(apps, slowest + STOP_SLACK_S)
        for handle, _, _ in self._proxies.values():
            with contextlib.suppress(Exception):  # it has gone already
                await asyncio.wait_for(_value(handle.stop.remote()), PROXY_TIMEOUT_S)
            with contextlib.suppress(Exception):
                shoal.kill(handle)
        for replica_id in list(self._handles):
            self._kill(replica_id)
        self._watch.close()
        ext.kv_delete(b"", namespace=KV_NAMESPACE, prefix=True)

    # -- for callers' routers
    async def listen(self, key: Key | None, version: str, wait_s: float) -> tuple[str, Any]:
        """(version, payload) once the version is another than the given one; (version, None) after the wait."""
        await self._recovered
        deadline = time.monotonic() + wait_s
        while (now := self._version_of(key)) == version:
            left = deadline - time.monotonic()
            if left <= 0:
                return version, None
            event = self._changed.get(key)
            if event is None:
                event = self._changed[key] = asyncio.Event()
            await _either(event, left)
        if key is None:
            return now, (now, self._state.routes())
        replicas = self._state.replica_set(key)
        return now, (replicas, {one: (self._handles[one], self._journals.get(one)) for one in replicas.replica_ids if one in self._handles})

    async def report_queue(self, key: Key, caller: str, queued: int) -> None:
        effects = self._state.queue_reported(key, caller, queued, time.monotonic())
        if effects:
            self._do(effects)


def head_node() -> str:
    """Where the cluster's control store is; the controller and the proxy whose address is told live there."""
    nodes = [node for node in shoal.nodes() if node["Alive"]]
    return str(next((node["NodeID"] for node in nodes if node.get("IsHead")), shoal.get_runtime_context().get_node_id()))


async def _value(ref: Any) -> Any:
    return await ref


async def _either(event: asyncio.Event, timeout_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), max(0.0, timeout_s))


def _told(error: BaseException) -> str:
    """What a person needs to know of an error: the user's own, without the runtime's frames around it."""
    if isinstance(error, RayTaskError) and error.cause is not None:
        return f"{type(error.cause).__name__}: {error.cause}\n{error.traceback_str}".rstrip()
    return f"{type(error).__name__}: {error}"
