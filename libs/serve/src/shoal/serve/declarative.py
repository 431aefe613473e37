"""Bringing a cluster to what a file describes."""

from __future__ import annotations

import json
from typing import Any

import shoal
from shoal import ext
from shoal.exceptions import RayTaskError

from . import api
from .controller import KV_NAMESPACE
from .exceptions import DeploymentFailedError
from .schema import ApplicationConfig, ServeConfig, build_application

CONFIG_KEY = b"config"
BUILD_TIMEOUT_S = 300.0


def apply(config: ServeConfig, wait: bool = True) -> list[str]:
    """Deploys what the file names, in place; deletes the applications that it does not name any more. Returns the names.

    Raises:
        DeploymentFailedError: naming each application that could not be imported or started; the others are deployed.
    """
    options = None if config.http_options is None else config.http_options
    api.start(config.proxy_location, options)
    failed: list[str] = []
    specs = []
    for app, ref in [(app, _built(app)) for app in config.applications]:
        try:
            specs.append(shoal.get(ref, timeout=BUILD_TIMEOUT_S))
        except Exception as error:
            told = _told(app, error)
            failed.append(told)
            shoal.get(api._controller().build_failed.remote(app.name, told), timeout=api.ASK_TIMEOUT_S)
    ext.kv_put(CONFIG_KEY, json.dumps(config.data).encode(), namespace=KV_NAMESPACE)
    _delete_others({app.name for app in config.applications})
    if specs:
        api.deploy(specs, wait=False)
    for base, weights in config.traffic.items():
        deployed = {spec.name for spec in specs}
        known = {version: weight for version, weight in weights.items() if (base if version == "stable" else f"{base}@{version}") in deployed}
        if sum(known.values()) > 0:
            api.set_traffic(base, known)
    for spec in specs if wait else ():
        try:
            api._wait_deployed(api._controller(), spec.name)
        except DeploymentFailedError as error:
            failed.append(str(error))
    if failed:
        raise DeploymentFailedError("\n".join(failed))
    return [app.name for app in config.applications]


def _delete_others(wanted: set[str]) -> None:
    for name in api.status().applications:
        if name not in wanted and name.partition("@")[0] not in wanted:
            api.delete(name)




def _built(app: ApplicationConfig) -> Any:
    """Imported by a task: in the environment that the application asks for, and not in this process."""
    return shoal.remote(build_application).options(num_cpus=0, max_retries=0, runtime_env=app.runtime_env or None).remote(app)


def _told(app: ApplicationConfig, error: BaseException) -> str:
    cause: Any = error.cause if isinstance(error, RayTaskError) and error.cause is not None else error
    trace = f"\n{error.traceback_str}" if isinstance(error, RayTaskError) else ""
    return f"application {app.name!r} could not be imported from {app.import_path!r}: {type(cause).__name__}: {cause}{trace}".rstrip()


def deployed_config() -> dict[str, Any]:
    """The file that was deployed last; empty if none was."""
    found = ext.kv_get(CONFIG_KEY, namespace=KV_NAMESPACE)
    return dict(json.loads(found)) if found is not None else {}
