"""Options: of a deployment, of its autoscaling, of the HTTP proxies. Checked where they are given."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from .exceptions import ServeConfigError

# `num_replicas="auto"` stands for these.
AUTO_MIN_REPLICAS, AUTO_MAX_REPLICAS = 1, 100
# Limit: a request's body is held in memory until it is passed on.
DEFAULT_MAX_BODY_BYTES = 256 << 20


class ProxyLocation(enum.StrEnum):
    """Where HTTP proxies run."""

    Disabled = "Disabled"
    HeadOnly = "HeadOnly"
    EveryNode = "EveryNode"


def nearest(name: str, known: Any) -> str:
    """A hint for a word that is not known."""
    import difflib

    found = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {found[0]!r}?" if found else f"; known are {', '.join(sorted(known))}"


def _check_number(what: str, value: Any, low: float, *, integer: bool = False, above: bool = False) -> None:
    kinds: tuple[type, ...] = (int,) if integer else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise ServeConfigError(f"{what} must be {'a whole number' if integer else 'a number'}, got {value!r}")
    assert isinstance(value, int | float)
    if value < low or (above and value == low) or value != value:
        raise ServeConfigError(f"{what} must be {'more than' if above else 'at least'} {low:g}, got {value!r}")


@dataclass(frozen=True)
class AutoscalingConfig:
    """When a deployment gets more or fewer replicas.

    Args:
        min_replicas: 0 lets it scale to zero; a request then starts the first replica.
        initial_replicas: at the first deploy; `min_replicas` if not given.
        target_ongoing_requests: requests, running or queued, that each replica should have on average.
        metrics_interval_s: how often replicas are asked.
        look_back_period_s: over how long their answers are averaged.
        upscale_delay_s, downscale_delay_s: how long the wish must last before it is followed, seconds.
        downscale_to_zero_delay_s: the same for the last replica; `downscale_delay_s` if not given.
        upscaling_factor, downscaling_factor: multiply the relative difference: below 1 is gentler.
        aggregation_function: of the look-back period: "mean", "max" or "min".
    """

    min_replicas: int = 1
    initial_replicas: int | None = None
    max_replicas: int = 1
    target_ongoing_requests: float = 2
    metrics_interval_s: float = 10.0
    look_back_period_s: float = 30.0
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    downscale_to_zero_delay_s: float | None = None
    upscaling_factor: float | None = None
    downscaling_factor: float | None = None
    aggregation_function: str = "mean"

    def __post_init__(self) -> None:
        _check_number("autoscaling_config.min_replicas", self.min_replicas, 0, integer=True)
        _check_number("autoscaling_config.max_replicas", self.max_replicas, 1, integer=True)
        if self.min_replicas > self.max_replicas:
            raise ServeConfigError(f"autoscaling_config: min_replicas={self.min_replicas} is more than max_replicas={self.max_replicas}")
        if self.initial_replicas is not None:
            _check_number("autoscaling_config.initial_replicas", self.initial_replicas, 0, integer=True)
            if not self.min_replicas <= self.initial_replicas <= self.max_replicas:
                raise ServeConfigError(f"autoscaling_config: initial_replicas={self.initial_replicas} does not lie between min_replicas={self.min_replicas} "
                                       f"and max_replicas={self.max_replicas}")  # fmt: skip
        _check_number("autoscaling_config.target_ongoing_requests", self.target_ongoing_requests, 0, above=True)
        for name in ("metrics_interval_s", "look_back_period_s"):
            _check_number(f"autoscaling_config.{name}", getattr(self, name), 0, above=True)
        for name in ("upscale_delay_s", "downscale_delay_s"):
            _check_number(f"autoscaling_config.{name}", getattr(self, name), 0)
        for name in ("downscale_to_zero_delay_s", "upscaling_factor", "downscaling_factor"):
            if getattr(self, name) is not None:
                _check_number(f"autoscaling_config.{name}", getattr(self, name), 0, above=name != "downscale_to_zero_delay_s")
        if self.aggregation_function not in ("mean", "max", "min"):
            raise ServeConfigError(f"autoscaling_config.aggregation_function must be mean, max or min, got {self.aggregation_function!r}")

    @property
    def start_replicas(self) -> int:
        return self.min_replicas if self.initial_replicas is None else self.initial_replicas


def _from_mapping(kind: type, given: Any, what: str) -> Any:
    if isinstance(given, kind):
        return given
    if not isinstance(given, Mapping):
        raise ServeConfigError(f"{what} must be a dict or {kind.__name__}, got {given!r}")
    known = {one.name for one in fields(kind)}
    for name in given:
        if name not in known:
            raise ServeConfigError(f"{what} has no field {name!r}{nearest(name, known)}")
    return kind(**given)


@dataclass(frozen=True)
class HTTPOptions:
    """How the HTTP proxies listen.

    Args:
        host, port: port 0 takes a free one (see `serve.http_address`).
        location: where proxies run; given to `serve.start(proxy_location=...)` as well.
        root_path: a prefix that a proxy in front has cut off; told to applications.
        request_timeout_s: a request that has no answer by then gets 408; None: no limit.
        keep_alive_timeout_s: how long an idle connection stays.
        ssl_keyfile, ssl_certfile, ssl_keyfile_password, ssl_ca_certs: PEM files: HTTPS.
        max_body_bytes: a longer request body gets 413.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    location: ProxyLocation | str | None = None
    root_path: str = ""
    request_timeout_s: float | None = None
    keep_alive_timeout_s: int = 90
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile_password: str | None = None
    ssl_ca_certs: str | None = None
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES

    def __post_init__(self) -> None:
        if not isinstance(self.host, str):
            raise ServeConfigError(f"http_options.host must be text, got {self.host!r}")
        _check_number("http_options.port", self.port, 0, integer=True)
        if self.port > 65535:
            raise ServeConfigError(f"http_options.port must be at most 65535, got {self.port}")
        if self.root_path and (not self.root_path.startswith("/") or self.root_path.endswith("/")):
            raise ServeConfigError(f"http_options.root_path must start with '/' and not end with it, got {self.root_path!r}")
        if self.request_timeout_s is not None:
            _check_number("http_options.request_timeout_s", self.request_timeout_s, 0, above=True)
        _check_number("http_options.keep_alive_timeout_s", self.keep_alive_timeout_s, 1)
        _check_number("http_options.max_body_bytes", self.max_body_bytes, 1, integer=True)
        if bool(self.ssl_keyfile) != bool(self.ssl_certfile):
            raise ServeConfigError("http_options: ssl_keyfile and ssl_certfile are needed together")
        if self.location is not None:
            # Ray has both words for no proxy.
            named = ProxyLocation.Disabled if self.location == "NoServer" else self.location
            try:
                object.__setattr__(self, "location", ProxyLocation(named))
            except ValueError:
                raise ServeConfigError(f"http_options.location must be one of {[one.value for one in ProxyLocation]}, got {self.location!r}") from None

    @classmethod
    def of(cls, given: HTTPOptions | Mapping[str, Any] | None) -> HTTPOptions:
        """From what a user gave. Raises ServeConfigError naming the field."""
        made: HTTPOptions = _from_mapping(cls, given or {}, "http_options")
        return made

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "location": self.location.value if isinstance(self.location, ProxyLocation) else None}


@dataclass(frozen=True)
class DeploymentConfig:
    """What can be said of a deployment beside its code; `num_replicas` is None when it is autoscaled."""

    num_replicas: int | None = 1
    ray_actor_options: dict[str, Any] = field(default_factory=dict)
    user_config: Any = None
    max_ongoing_requests: int = 5
    max_queued_requests: int = -1
    autoscaling_config: AutoscalingConfig | None = None
    health_check_period_s: float = 10.0
    health_check_timeout_s: float = 30.0
    graceful_shutdown_wait_loop_s: float = 2.0
    graceful_shutdown_timeout_s: float = 20.0
    max_constructor_retry_count: int = 20

    @property
    def start_replicas(self) -> int:
        if self.autoscaling_config is not None:
            return self.autoscaling_config.start_replicas
        return self.num_replicas or 0

    def changed(self, given: Mapping[str, Any]) -> DeploymentConfig:
        """With other options, by their public names. Raises ServeConfigError naming the option."""
        made = dict(given)
        if made.get("autoscaling_config") is not None:
            made["autoscaling_config"] = _from_mapping(AutoscalingConfig, made["autoscaling_config"], "autoscaling_config")
        _settle_replicas(made, self)
        for name, value in made.items():
            _CHECKS[name](name, value)
        if "ray_actor_options" in made:
            made["ray_actor_options"] = dict(made["ray_actor_options"] or {})
        return replace(self, **made)


def _settle_replicas(made: dict[str, Any], before: DeploymentConfig) -> None:
    wanted = made.get("num_replicas")
    if isinstance(wanted, str) and wanted != "auto":
        raise ServeConfigError(f'num_replicas must be a whole number or "auto", got {wanted!r}')
    if wanted == "auto":
        auto = made.get("autoscaling_config") or before.autoscaling_config
        if auto is None:
            auto = AutoscalingConfig(min_replicas=AUTO_MIN_REPLICAS, max_replicas=AUTO_MAX_REPLICAS)
        elif auto.max_replicas == 1:
            auto = replace(auto, max_replicas=AUTO_MAX_REPLICAS)
        made["num_replicas"], made["autoscaling_config"] = None, auto
    elif wanted is not None and made.get("autoscaling_config") is not None:
        raise ServeConfigError(f'num_replicas={wanted} and autoscaling_config exclude each other; num_replicas="auto" goes with autoscaling_config')
    elif made.get("autoscaling_config") is not None:
        made["num_replicas"] = None
    elif wanted is not None:
        made["autoscaling_config"] = None
    elif "num_replicas" in made:
        made.pop("num_replicas")


def _count(low: int) -> Any:
    return lambda name, value: None if value is None and name == "num_replicas" else _check_number(name, value, low, integer=True)


def _seconds(above: bool = False) -> Any:
    return lambda name, value: _check_number(name, value, 0, above=above)


def _check_queue(name: str, value: Any) -> None:
    if value != -1:
        _check_number(name, value, 0, integer=True)


def _check_actor_options(name: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, Mapping):
        raise ServeConfigError(f"{name} must be a dict, got {value!r}")
    for key in value:
        if key not in ACTOR_OPTIONS:
            raise ServeConfigError(f"{name} has no key {key!r}{nearest(key, ACTOR_OPTIONS)}")


ACTOR_OPTIONS = frozenset({"num_cpus", "num_gpus", "memory", "resources", "accelerator_type", "runtime_env", "scheduling_strategy", "label_selector"})
_CHECKS: dict[str, Any] = {
    "num_replicas": _count(0),
    "ray_actor_options": _check_actor_options,
    "user_config": lambda name, value: None,
    "max_ongoing_requests": _count(1),
    "max_queued_requests": _check_queue,
    "autoscaling_config": lambda name, value: None,
    "health_check_period_s": _seconds(above=True),
    "health_check_timeout_s": _seconds(above=True),
    "graceful_shutdown_wait_loop_s": _seconds(),
    "graceful_shutdown_timeout_s": _seconds(),
    "max_constructor_retry_count": _count(1),
}
DEPLOYMENT_OPTIONS = frozenset(_CHECKS)
