"""The YAML of `shoal serve deploy`, in Ray's schema; every mistake is told with file, line, key and the nearest known key.

Beside Ray's keys an application may have `versions`, a list of `name`, `import_path`, `args`, `deployments` and `weight`: see `serve.set_traffic`.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from shoal.util.yaml_config import Place, YamlConfig, YamlConfigError, load

from .build import ApplicationSpec, build, check_app_name, check_route_prefix
from .config import ACTOR_OPTIONS, DEPLOYMENT_OPTIONS, AutoscalingConfig, DeploymentConfig, HTTPOptions, ProxyLocation
from .deployments import Application
from .exceptions import ServeConfigError
from .state import STABLE

_TOP = frozenset({"proxy_location", "http_options", "applications"})
_HTTP = frozenset(one.name for one in fields(HTTPOptions)) - {"location"}
_VERSION = frozenset({"name", "import_path", "args", "deployments", "weight"})
_APPLICATION = frozenset({"name", "route_prefix", "import_path", "args", "runtime_env", "deployments", "versions"})
_DEPLOYMENT = DEPLOYMENT_OPTIONS | {"name"}
_AUTOSCALING = frozenset(one.name for one in fields(AutoscalingConfig))
# As in Ray: a file is for a cluster that others reach, a call in Python for one's own machine.
YAML_HOST = "0.0.0.0"


@dataclass(frozen=True)
class ApplicationConfig:
    """One application, or one version of it, as a file describes it."""

    name: str
    import_path: str
    route_prefix: str | None = "/"
    args: dict[str, Any] = field(default_factory=dict)
    runtime_env: dict[str, Any] = field(default_factory=dict)
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class ServeConfig:
    """A whole file. `http_options` is None when it says nothing of them; `traffic`: weights by application and version."""

    applications: tuple[ApplicationConfig, ...]
    http_options: HTTPOptions | None = None
    proxy_location: ProxyLocation | None = None
    traffic: dict[str, dict[str, float]] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)


def read(path: str) -> ServeConfig:
    """Raises YamlConfigError naming file, line and key; OSError."""
    return parse(load(path))


def parse(config: YamlConfig) -> ServeConfig:
    """As `read`, of a document that was read already."""
    config.check_keys((), _TOP, {"applications"})
    http = config.value(("http_options",), dict, {})
    config.check_keys(("http_options",), _HTTP)
    options = _checked(config, ("http_options",), lambda: HTTPOptions.of({"host": YAML_HOST, **http})) if http else None
    location = config.value(("proxy_location",), str, "")
    where = _checked(config, ("proxy_location",), lambda: _location(location)) if location else None
    apps: list[ApplicationConfig] = []
    traffic: dict[str, dict[str, float]] = {}
    for index in range(len(config.value(("applications",), list))):
        apps += _application(config, ("applications", index), traffic)
    if not apps:
        raise config.error(("applications",), "names no application")
    _check_unique(config, apps)
    return ServeConfig(tuple(apps), options, where, traffic, dict(config.data))


def _location(value: str) -> ProxyLocation:
    try:
        return ProxyLocation(value)
    except ValueError:
        raise ServeConfigError(f"must be one of {[one.value for one in ProxyLocation]}, not {value!r}") from None


def _checked(config: YamlConfig, place: Place, make: Any) -> Any:
    try:
        return make()
    except YamlConfigError:
        raise
    except ValueError as error:
        named = next((key for key in config.value(place, dict, {}) if str(key) in str(error)), None) if isinstance(_at(config, place), dict) else None
        raise config.error((*place, named) if named is not None else place, str(error)) from error


def _at(config: YamlConfig, place: Place) -> Any:
    found = config.data
    for step in place:
        found = found[step]
    return found


def _application(config: YamlConfig, place: Place, traffic: dict[str, dict[str, float]]) -> list[ApplicationConfig]:
    config.check_keys(place, _APPLICATION)
    name = config.value((*place, "name"), str, "default")
    _checked(config, (*place, "name"), lambda: check_app_name(name))
    given = config.value(place, dict)
    prefix = config.value((*place, "route_prefix"), str, "/") if given.get("route_prefix", "/") is not None else None
    _checked(config, (*place, "route_prefix"), lambda: check_route_prefix(prefix))
    env = dict(config.value((*place, "runtime_env"), dict, {}))
    if "versions" not in given:
        return [_one(config, place, name, prefix, env)]
    for key in ("import_path", "args", "deployments"):
        if key in given:
            raise config.error((*place, key), "belongs into each of the versions, since there are versions")
    found = []
    for index in range(len(config.value((*place, "versions"), list))):
        at = (*place, "versions", index)
        config.check_keys(at, _VERSION, {"name", "import_path"})
        version = config.value((*at, "name"), str)
        full = name if version == STABLE else f"{name}@{version}"
        _checked(config, (*at, "name"), lambda full=full: check_app_name(full))
        weight = config.value((*at, "weight"), float, 1.0)
        if weight < 0:
            raise config.error((*at, "weight"), f"{weight:g} is less than 0")
        traffic.setdefault(name, {})[version] = weight
        found.append(_one(config, at, full, prefix, env))
    if not found or sum(traffic[name].values()) <= 0:
        raise config.error((*place, "versions"), "no version has a weight of more than 0")
    return found


def _one(config: YamlConfig, place: Place, name: str, prefix: str | None, env: dict[str, Any]) -> ApplicationConfig:
    import_path = config.value((*place, "import_path"), str)
    _checked(config, (*place, "import_path"), lambda: split_import_path(import_path))
    overrides: dict[str, dict[str, Any]] = {}
    for index in range(len(config.value((*place, "deployments"), list, []))):
        at = (*place, "deployments", index)
        config.check_keys(at, _DEPLOYMENT, {"name"})
        config.check_keys((*at, "autoscaling_config"), _AUTOSCALING)
        config.check_keys((*at, "ray_actor_options"), ACTOR_OPTIONS)
        options = dict(config.value(at, dict))
        deployment = config.value((*at, "name"), str)
        options.pop("name")
        _checked(config, at, lambda options=options: DeploymentConfig().changed(options))
        overrides[deployment] = options
    return ApplicationConfig(name, import_path, prefix, dict(config.value((*place, "args"), dict, {})), env, overrides)


def _check_unique(config: YamlConfig, apps: list[ApplicationConfig]) -> None:
    names: set[str] = set()
    prefixes: dict[str, str] = {}
    for index, app in enumerate(apps):
        base = app.name.partition("@")[0]
        if app.name in names:
            raise config.error(("applications", min(index, len(config.data["applications"]) - 1)), f"application {app.name!r} stands twice")
        names.add(app.name)
        if app.route_prefix is not None and prefixes.setdefault(app.route_prefix, base) != base:
            other = prefixes[app.route_prefix]
            raise config.error(("applications",), f"applications {other!r} and {base!r} have the same route_prefix {app.route_prefix!r}")


# -- importing --------------------------------------------------------------------------------------------------------


def split_import_path(path: str) -> tuple[str, str]:
    """
    >>> split_import_path("package.module:app")
    ('package.module', 'app')
    """
    module, _, attribute = path.partition(":") if ":" in path else path.rpartition(".")
    if not module or not attribute:
        raise ServeConfigError(f"{path!r} is no import path: module:application is wanted, for example examples.serve_iris:app")
    return module, attribute


def import_application(path: str, args: Mapping[str, Any]) -> Application:
    """The application at `module:attribute`; a function there is a builder, and called with the arguments as a dict.

    Raises:
        ServeConfigError: there is no application. ImportError and whatever else the module raises.
    """
    module_name, attribute = split_import_path(path)
    found = importlib.import_module(module_name)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ServeConfigError(f"module {module_name!r} has no {attribute!r}; it has {', '.join(n for n in vars(found) if not n.startswith('_'))}")
        found = getattr(found, part)
    if isinstance(found, Application):
        if args:
            raise ServeConfigError(f"{path} is an application, not a builder function, so it takes no arguments; got {sorted(args)}")
        return found
    if not inspect.isfunction(found):
        raise ServeConfigError(f"{path} is {type(found).__name__}, and an application (what .bind() returns) or a function that builds one is wanted")
    made = found(*_builder_arguments(found, args))
    if not isinstance(made, Application):
        raise ServeConfigError(f"the builder {path} returned {type(made).__name__}, and an application (what .bind() returns) is wanted")
    return made


def _builder_arguments(builder: Any, args: Mapping[str, Any]) -> tuple[Any, ...]:
    parameters = list(inspect.signature(builder, eval_str=True).parameters.values())
    if not parameters:
        if args:
            raise ServeConfigError(f"the builder {builder.__name__}() takes no arguments; got {sorted(args)}")
        return ()
    if len(parameters) > 1:
        raise ServeConfigError(f"the builder {builder.__name__}() must take one argument, a dict or a pydantic model; it takes {len(parameters)}")
    model = parameters[0].annotation
    if inspect.isclass(model) and hasattr(model, "model_validate"):
        return (model.model_validate(dict(args)),)
    return (dict(args),)


def build_application(config: ApplicationConfig) -> ApplicationSpec:
    """Imports the code and makes what the controller is sent."""
    app = import_application(config.import_path, config.args)
    overrides = {name: dict(options) for name, options in config.overrides.items()}
    spec = build(app, config.name, config.route_prefix, overrides)
    if not config.runtime_env:
        return spec
    for one in spec.deployments:
        options = dict(one.config.ray_actor_options)
        options["runtime_env"] = {**config.runtime_env, **options.get("runtime_env", {})}
        overrides.setdefault(one.name, {})["ray_actor_options"] = options
    return build(app, config.name, config.route_prefix, overrides)
