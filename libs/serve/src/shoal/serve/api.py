"""`serve.run` and what else is done to a whole application or the whole of Serve."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import shoal
from shoal.exceptions import RayActorError, RayTaskError

from .build import ApplicationSpec, build, check_app_name
from .config import HTTPOptions, ProxyLocation, nearest
from .context import CONTROLLER_NAME, NAMESPACE, PROXY_NAME
from .deployments import Application
from .exceptions import DeploymentFailedError, RayServeException, ServeConfigError
from .handle import DeploymentHandle
from .overview import ApplicationStatus, ServeStatus

_log = logging.getLogger("shoal.serve")

DEFAULT_APP = "default"
# Limit: each question to the controller.
ASK_TIMEOUT_S = 60.0
# How often `run` says what it waits for.
TELL_S = 10.0
DELETE_TIMEOUT_S = 60.0
_MAX_CALLS = 100_000


@dataclass(frozen=True)
class RunTarget:
    """One of several applications for `run_many`."""

    target: Application
    name: str = DEFAULT_APP
    route_prefix: str | None = "/"


def start(
    proxy_location: ProxyLocation | str | None = None, http_options: HTTPOptions | Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Starts Serve on the cluster; `run` does it too. If it runs already, options that differ from its own are refused.

    Args:
        proxy_location: on which nodes HTTP proxies run: "EveryNode", "HeadOnly" or "Disabled".
        http_options: `HTTPOptions` or a dict of its fields.

    Raises:
        ServeConfigError: an option is wrong, or Serve runs with another one.
        RayServeException: the port is in use.
    """
    options = HTTPOptions.of(http_options)
    where = _location(proxy_location, options)
    if not shoal.is_initialized():
        shoal.init()
    controller = _find_controller()
    if controller is None:
        controller = _create_controller(options, where)
    elif http_options is not None or proxy_location is not None:
        running, running_where = _ask(controller.options.remote())
        _check_same(running, options if http_options is not None else running)
        if proxy_location is not None and running_where is not where:
            raise ServeConfigError(f"Serve runs with proxy_location={running_where.value}; call serve.shutdown() before starting it with {where.value}")
    try:
        _ask(controller.start_proxy.remote())
    except RayServeException:
        _kill_controller_if_idle(controller)
        raise


def _location(proxy_location: ProxyLocation | str | None, options: HTTPOptions) -> ProxyLocation:
    try:
        return ProxyLocation(proxy_location or options.location or ProxyLocation.EveryNode)
    except ValueError:
        raise ServeConfigError(f"proxy_location must be one of {[one.value for one in ProxyLocation]}, got {proxy_location!r}") from None


def _check_same(running: HTTPOptions, wanted: HTTPOptions) -> None:
    for name, value in wanted.to_dict().items():
        if name != "location" and running.to_dict()[name] != value:
            raise ServeConfigError(f"Serve runs with http_options {name}={running.to_dict()[name]!r}; call serve.shutdown() before starting it with {value!r}")


def _create_controller(options: HTTPOptions, where: ProxyLocation) -> Any:
    from shoal.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from .controller import Controller, head_node

    return (
        shoal.remote(Controller)
        .options(
            name=CONTROLLER_NAME, namespace=NAMESPACE, lifetime="detached", get_if_exists=True, max_restarts=-1, num_cpus=0, max_concurrency=_MAX_CALLS,
            scheduling_strategy=NodeAffinitySchedulingStrategy(head_node(), soft=True),
        )
        .remote(options, where)
    )  # fmt: skip


def _kill_controller_if_idle(controller: Any) -> None:
    """Serve could not start: nothing of it stays, unless somebody else uses it."""
    if not _ask(controller.find.remote("", ""))[0]:
        shutdown()


def run(
    target: Application, blocking: bool = False, name: str = DEFAULT_APP, route_prefix: str | None = "/",
) -> DeploymentHandle:  # fmt: skip
    """Deploys an application and waits until it serves. A running one of the same name is updated in place, without a gap.

    Args:
        target: what `Deployment.bind()` returned.
        blocking: stay until Ctrl-C, then end Serve.
        name: of the application; "name@version" deploys a further version beside the others, see `set_traffic`.
        route_prefix: where the proxies serve it; None: only handles reach it.

    Returns:
        A handle to the bound deployment.

    Raises:
        DeploymentFailedError: naming the deployment and its error; if another version ran before, it goes on serving.
        ServeConfigError: a bad name, or a route prefix that another application has.

    Example::

        @serve.deployment
        async def hello(request):
            return "hello"

        serve.run(hello.bind())       # http://127.0.0.1:8000/
    """
    return run_many([RunTarget(target, name, route_prefix)], blocking=blocking)[0]


def run_many(targets: Sequence[RunTarget], blocking: bool = False) -> list[DeploymentHandle]:
    """Deploys several applications at once; see `run`."""
    if not targets:
        raise ServeConfigError("run_many was given no application")
    specs = [build(one.target, one.name, one.route_prefix) for one in targets]
    start()
    deploy(specs)
    handles = [DeploymentHandle(spec.ingress, spec.name) for spec in specs]
    for handle in handles:
        _prepare(handle)
    if blocking:
        _block()
    return handles


def deploy(specs: list[ApplicationSpec], wait: bool = True) -> None:
    """Sends built applications to the controller. Raises as `run` does."""
    controller = _controller()
    _ask(controller.deploy.remote(specs))
    for spec in specs if wait else ():
        _wait_deployed(controller, spec.name)


def _wait_deployed(controller: Any, name: str) -> None:
    while True:
        status, message = _ask(controller.wait_deployed.remote(name, TELL_S))
        if status is ApplicationStatus.RUNNING:
            return
        if status is ApplicationStatus.DEPLOYING or (status is ApplicationStatus.UNHEALTHY):
            _log.warning("application %r is not running yet: %s", name, message or "its replicas start")
            continue
        raise DeploymentFailedError(f"Deploying application {name!r} failed: {message}")


def _prepare(handle: DeploymentHandle) -> None:
    """Lets this process know the replicas of now."""
    from .context import process
    from .thread_router import thread_router

    if process.loop is None:
        thread_router((handle.app_name, handle.deployment_name)).refresh()


def _block() -> None:
    """Until SIGINT or SIGTERM; then Serve ends."""
    ended = threading.Event()
    before = {number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not ended.wait(0.5):
            if not shoal.is_initialized():
                raise RayServeException("the connection to the cluster was lost")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        shutdown()


def status() -> ServeStatus:
    """Of all applications, with what is wrong with them; empty when Serve does not run."""
    controller = _find_controller()
    if controller is None:
        return ServeStatus()
    found: ServeStatus = _ask(controller.status.remote())
    return found


def http_address() -> str:
    """Where this cluster's head serves HTTP, for example http://127.0.0.1:8000; empty without proxies."""
    address: str = _ask(_controller().start_proxy.remote())
    return address


def delete(name: str, _blocking: bool = True) -> None:
    """Ends an application: what is being answered is, then its replicas go. "name" takes all versions, "name@version" one.

    Raises:
        RayServeException: it is still there after a minute.
    """
    check_app_name(name)
    left = _ask(_controller().delete.remote([name], DELETE_TIMEOUT_S if _blocking else 0.0), ASK_TIMEOUT_S + DELETE_TIMEOUT_S)
    if left and _blocking:
        raise RayServeException(f"application {name!r} was not gone after {DELETE_TIMEOUT_S:g} s; serve.status() says what is left of it")


def set_traffic(name: str, weights: Mapping[str, float]) -> None:
    """Splits the requests to an application among its versions, by weight. Our own addition to Ray's interface.

    A version is deployed as "name@version"; what is deployed as "name" alone is the version "stable". The first one deployed has all requests until this is
    called; a version that is not named here gets none.

    Args:
        name: without a version.
        weights: by version; relative to their sum.

    Raises:
        ServeConfigError: naming an unknown application or version.

    Example::

        serve.run(Model.bind("new.pt"), name="model@v2")
        serve.set_traffic("model", {"stable": 0.9, "v2": 0.1})
    """
    check_app_name(name)
    _ask(_controller().set_traffic.remote(name, dict(weights)))


def get_app_handle(name: str) -> DeploymentHandle:
    """A handle to an application's ingress; for several versions one that splits as `set_traffic` says.

    Raises:
        RayServeException: there is no such application.
    """
    controller = _controller()
    versions = _ask(controller.versions.remote(name)) if "@" not in name else ()
    if len(versions) > 1 or (versions and versions[0][1] != name):
        return DeploymentHandle("", name)
    apps, deployments = _ask(controller.find.remote(name, ""))
    if not deployments:
        raise RayServeException(f"there is no application {name!r}{nearest(name, apps) if apps else '; none is deployed'}")
    return DeploymentHandle(deployments[-1], name)


def get_deployment_handle(deployment_name: str, app_name: str | None = None) -> DeploymentHandle:
    """A handle to one deployment. `app_name`: in a replica its own application if not given.

    Raises:
        RayServeException: there is no such deployment.
    """
    if app_name is None:
        from .context import process

        if process.replica is None:
            raise RayServeException("get_deployment_handle() needs app_name outside of a replica")
        return DeploymentHandle(deployment_name, process.replica.app_name)
    apps, deployments = _ask(_controller().find.remote(app_name, deployment_name))
    if deployment_name not in deployments:
        known = f"application {app_name!r} has no deployment {deployment_name!r}{nearest(deployment_name, deployments)}" if deployments else (
            f"there is no application {app_name!r}{nearest(app_name, apps) if apps else '; none is deployed'}")  # fmt: skip
        raise RayServeException(known)
    return DeploymentHandle(deployment_name, app_name)


def shutdown() -> None:
    """Ends all applications, proxies and Serve itself. Does nothing when it does not run."""
    if not shoal.is_initialized():
        return
    controller = _find_controller()
    if controller is None:
        return
    # A controller that is being restarted answers a little later.
    for attempt in range(3):
        try:
            _ask(controller.shutdown.remote(), ASK_TIMEOUT_S + DELETE_TIMEOUT_S)
            break
        except RayActorError:
            if attempt == 2:
                raise
            time.sleep(0.5)
    shoal.kill(controller)
    for node in shoal.nodes():
        with contextlib.suppress(ValueError):  # there is none
            shoal.kill(shoal.get_actor(f"{PROXY_NAME}::{node['NodeID']}", NAMESPACE))


async def shutdown_async() -> None:
    """`shutdown` for async code."""
    await asyncio.get_running_loop().run_in_executor(None, shutdown)


def _find_controller() -> Any:
    """None when Serve does not run. Connects to a running cluster if this process has not yet."""
    if not shoal.is_initialized():
        if not os.environ.get("SHOAL_ADDRESS"):
            return None
        shoal.init()
    try:
        return shoal.get_actor(CONTROLLER_NAME, NAMESPACE)
    except ValueError:
        return None


def _controller() -> Any:
    controller = _find_controller()
    if controller is None:
        raise RayServeException("Serve does not run on this cluster: call serve.run(...) or serve.start() first")
    return controller


def _ask(ref: Any, timeout_s: float = ASK_TIMEOUT_S) -> Any:
    try:
        return shoal.get(ref, timeout=timeout_s)
    except RayTaskError as error:
        if isinstance(error.cause, RayServeException):
            raise error.cause from None
        raise
