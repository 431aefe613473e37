"""From a bound application to what the controller is sent: one `DeploymentSpec` for each deployment, its code pickled."""

from __future__ import annotations

import hashlib
import importlib.machinery
import io
import os
import pickle
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import cloudpickle

from .class_routes import is_asgi
from .config import DEPLOYMENT_OPTIONS, DeploymentConfig, nearest
from .deployments import Application
from .exceptions import ServeConfigError

# The default of each replica, as in Ray.
DEFAULT_NUM_CPUS = 1


@dataclass(frozen=True)
class DeploymentSpec:
    """A deployment as it travels and is stored.

    `version` changes whenever running replicas cannot take the change on: other code, arguments or resources."""

    name: str
    config: DeploymentConfig
    code: bytes  # pickled: (class or function, args, kwargs)
    sys_path: tuple[str, ...]
    version: str
    asgi: bool


@dataclass(frozen=True)
class ApplicationSpec:
    """What `serve.run` sends. The ingress is the last of the deployments."""

    name: str
    route_prefix: str | None
    deployments: tuple[DeploymentSpec, ...]

    @property
    def ingress(self) -> str:
        return self.deployments[-1].name


class _Pickler(cloudpickle.Pickler):
    """Bound applications become handles; each is noted."""

    def __init__(self, file: io.BytesIO, app_name: str, names: _Names) -> None:
        super().__init__(file, protocol=5)
        self._app_name = app_name
        self._names = names

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Application):
            from .handle import DeploymentHandle

            return DeploymentHandle, (self._names.of(obj), self._app_name)
        if type(obj).__name__ == "State" and type(obj).__module__ == "starlette.datastructures":
            # A FastAPI application holds one, and its __getattr__ looks for its own first attribute without end while it is unpickled.
            return type(obj), (dict(obj._state),)
        return super().reducer_override(obj)


class _Names:
    """One name for each bound deployment: the same object bound twice is one deployment, another of the same name gets a number."""

    def __init__(self) -> None:
        self._by_id: dict[int, str] = {}
        self._taken: set[str] = set()
        self.found: list[Application] = []

    def of(self, app: Application) -> str:
        known = self._by_id.get(id(app))
        if known is not None:
            return known
        name, number = app.deployment.name, 1
        while name in self._taken:
            name, number = f"{app.deployment.name}_{number}", number + 1
        self._taken.add(name)
        self._by_id[id(app)] = name
        self.found.append(app)
        return name


def build(app: Application, name: str, route_prefix: str | None, overrides: Mapping[str, Mapping[str, Any]] | None = None) -> ApplicationSpec:
    """Raises ServeConfigError for a bad name or prefix, TypeError for what cannot be pickled (naming the deployment)."""
    if not isinstance(app, Application):
        hint = "; bind it first: .bind(...)" if type(app).__name__ == "Deployment" else ""
        raise TypeError(f"serve.run takes an application, what Deployment.bind() returns, got {app!r}{hint}")
    check_app_name(name)
    check_route_prefix(route_prefix)
    names = _Names()
    names.of(app)
    specs: list[DeploymentSpec] = []
    done = 0
    while done < len(names.found):
        specs.append(_spec(names.found[done], names, name))
        done += 1
    specs = [_overridden(spec, (overrides or {}).get(spec.name, {})) for spec in specs]
    for wanted in overrides or {}:
        if wanted not in {spec.name for spec in specs}:
            raise ServeConfigError(f"application {name!r} has no deployment {wanted!r}{nearest(wanted, [spec.name for spec in specs])}")
    return ApplicationSpec(name, route_prefix, tuple(reversed(specs)))


def _spec(app: Application, names: _Names, app_name: str) -> DeploymentSpec:
    target = app.deployment.func_or_class
    _by_value_if_not_importable(target)
    file = io.BytesIO()
    try:
        _Pickler(file, app_name, names).dump((target, app.args, app.kwargs))
    except (TypeError, pickle.PicklingError, AttributeError) as error:
        raise TypeError(f"deployment {app.deployment.name!r} cannot be pickled, its code or an argument of bind(): {error}") from error
    code = file.getvalue()
    spec = DeploymentSpec(names.of(app), app.deployment.config, code, tuple(os.path.abspath(path) for path in sys.path), "", is_asgi(target))
    return replace(spec, version=_version(spec))


def _version(spec: DeploymentSpec) -> str:
    options = sorted(spec.config.ray_actor_options.items(), key=lambda item: item[0])
    return hashlib.blake2b(spec.code + repr(options).encode(), digest_size=8).hexdigest()


def _overridden(spec: DeploymentSpec, options: Mapping[str, Any]) -> DeploymentSpec:
    given = {key: value for key, value in options.items() if key != "name"}
    for key in given:
        if key not in DEPLOYMENT_OPTIONS:
            raise ServeConfigError(f"deployment {spec.name!r} has no option {key!r}{nearest(key, DEPLOYMENT_OPTIONS)}")
    changed = replace(spec, config=spec.config.changed(given))
    return replace(changed, version=_version(changed))


def check_app_name(name: Any) -> None:
    if not isinstance(name, str) or not name or "#" in name or "/" in name or name.count("@") > 1 or name.startswith("@") or name.endswith("@"):
        raise ServeConfigError(f"the name of an application must be text without '#' and '/', with at most one '@' before a version's name, got {name!r}")


def check_route_prefix(prefix: Any) -> None:
    if prefix is None:
        return
    if not isinstance(prefix, str) or not prefix.startswith("/"):
        raise ServeConfigError(f"route_prefix must start with '/', got {prefix!r}")
    if prefix != "/" and prefix.endswith("/"):
        raise ServeConfigError(f"route_prefix must not end with '/', got {prefix!r}")
    if "{" in prefix or "}" in prefix:
        raise ServeConfigError(f"route_prefix must not contain wildcards, got {prefix!r}")


def _by_value_if_not_importable(target: Any) -> None:
    """A module that a replica could not import by its name (a test, a script run by its path) travels by value."""
    name = getattr(target, "__module__", None)
    module = sys.modules.get(name or "")
    if not name or name == "__main__" or module is None:
        return
    origin = getattr(module, "__file__", None)
    if origin is None:
        return
    path: Any = None
    parts = name.split(".")
    for index in range(len(parts)):
        part = ".".join(parts[: index + 1])
        found = importlib.machinery.PathFinder.find_spec(part, path)
        if found is None:
            break
        path = getattr(sys.modules.get(part), "__path__", None) or found.submodule_search_locations
        if index == len(parts) - 1 and found.origin == origin:
            return
    if "site-packages" not in origin:
        cloudpickle.register_pickle_by_value(module)
