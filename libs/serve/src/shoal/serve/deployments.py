"""Deployments and applications as users write them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .config import AutoscalingConfig, DeploymentConfig
from .exceptions import ServeConfigError


class _Default:
    """Stands for an option that was not given: None has meanings of its own."""

    def __repr__(self) -> str:
        return "<default>"


DEFAULT: Any = _Default()


@dataclass(frozen=True)
class Deployment:
    """A class or function with how it is to be served. Made by `@serve.deployment`."""

    func_or_class: Callable[..., Any]
    name: str
    config: DeploymentConfig

    def options(
        self, func_or_class: Callable[..., Any] | None = None, *, name: str = DEFAULT, num_replicas: int | str | None = DEFAULT,
        ray_actor_options: dict[str, Any] | None = DEFAULT, user_config: Any = DEFAULT, max_ongoing_requests: int = DEFAULT,
        max_queued_requests: int = DEFAULT, autoscaling_config: AutoscalingConfig | dict[str, Any] | None = DEFAULT, health_check_period_s: float = DEFAULT,
        health_check_timeout_s: float = DEFAULT, graceful_shutdown_wait_loop_s: float = DEFAULT, graceful_shutdown_timeout_s: float = DEFAULT,
        max_constructor_retry_count: int = DEFAULT,
    ) -> Deployment:  # fmt: skip
        """The same deployment with other options. Raises ServeConfigError naming the option."""
        given = _given(locals())
        new_name = given.pop("name", self.name)
        _check_name(new_name)
        return Deployment(func_or_class or self.func_or_class, new_name, self.config.changed(given))

    def bind(self, *args: Any, **kwargs: Any) -> Application:
        """With the arguments of its constructor. Other applications among them arrive as handles.

        Raises:
            TypeError: the arguments do not fit the constructor.
        """
        target = self.func_or_class
        if inspect.isclass(target):
            signature = inspect.signature(target.__init__)
            try:
                signature.bind(None, *args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{self.name}.bind(): {error}; the constructor takes {signature}") from None
        elif args or kwargs:
            raise TypeError(f"{self.name}.bind(): a deployment that is a function takes no arguments here; requests bring them")
        return Application(self, args, kwargs)

    @property
    def num_replicas(self) -> int | None:
        return self.config.num_replicas

    @property
    def user_config(self) -> Any:
        return self.config.user_config

    @property
    def max_ongoing_requests(self) -> int:
        return self.config.max_ongoing_requests

    @property
    def max_queued_requests(self) -> int:
        return self.config.max_queued_requests

    @property
    def ray_actor_options(self) -> dict[str, Any]:
        return dict(self.config.ray_actor_options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"Deployments cannot be constructed directly. Use {self.name}.bind(...), and serve.run(...) or a handle's .remote(...).")

    def __repr__(self) -> str:
        return f"Deployment(name={self.name!r})"


@dataclass(frozen=True, eq=False)
class Application:
    """A bound deployment, with all that it was bound to. `serve.run` takes it."""

    deployment: Deployment
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __repr__(self) -> str:
        return f"Application(name={self.deployment.name!r})"


def deployment(
    _func_or_class: Callable[..., Any] | None = None, name: str = DEFAULT, num_replicas: int | str | None = DEFAULT,
    ray_actor_options: dict[str, Any] | None = DEFAULT, user_config: Any = DEFAULT, max_ongoing_requests: int = DEFAULT, max_queued_requests: int = DEFAULT,
    autoscaling_config: AutoscalingConfig | dict[str, Any] | None = DEFAULT, health_check_period_s: float = DEFAULT, health_check_timeout_s: float = DEFAULT,
    graceful_shutdown_wait_loop_s: float = DEFAULT, graceful_shutdown_timeout_s: float = DEFAULT, max_constructor_retry_count: int = DEFAULT,
) -> Any:  # fmt: skip
    """Makes a deployment of a class or a function. With or without parentheses.

    Args:
        name: the class's name if not given.
        num_replicas: how many processes (1), or "auto": see `AutoscalingConfig`.
        ray_actor_options: num_cpus (1), num_gpus, memory, resources, accelerator_type, runtime_env of each replica.
        user_config: passed to the method `reconfigure` at the start, and again when only this changes, without a restart.
        max_ongoing_requests: that one replica has at a time (5). The others wait where they were sent from.
        max_queued_requests: that wait at one handle or proxy; the next gets BackPressureError, over HTTP 503. -1: no limit.
        autoscaling_config: `AutoscalingConfig` or a dict of its fields.
        health_check_period_s, health_check_timeout_s: of the method `check_health` (10, 30); three failures in a row replace the replica.
        graceful_shutdown_wait_loop_s, graceful_shutdown_timeout_s: a leaving replica takes no new requests and ends when it has answered the others, looked at
            this often (2), and at the latest after the timeout (20).
        max_constructor_retry_count: after so many failures of the constructor a deploy has failed (20, and at most 3 for each replica).

    Raises:
        ServeConfigError: naming the option.

    Example::

        @serve.deployment(num_replicas=2)
        class Doubler:
            def __call__(self, x: int) -> int:
                return 2 * x

        handle = serve.run(Doubler.bind(), route_prefix=None)
        assert handle.remote(4).result() == 8
    """
    given = _given(locals())
    given_name = given.pop("name", None)
    if given_name is not None:
        _check_name(given_name)
    config = DeploymentConfig().changed(given)

    def make(func_or_class: Callable[..., Any]) -> Deployment:
        if isinstance(func_or_class, Deployment):
            raise TypeError(f"{func_or_class!r} is a deployment already; use .options(...) for other options")
        if not (inspect.isclass(func_or_class) or inspect.isfunction(func_or_class)):
            raise TypeError(f"@serve.deployment takes a class or a function, got {func_or_class!r}")
        return Deployment(func_or_class, given_name or func_or_class.__name__, config)

    return make(_func_or_class) if _func_or_class is not None else make


def _given(arguments: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in arguments.items() if value is not DEFAULT and key not in ("self", "func_or_class", "_func_or_class")}


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not name:
        raise ServeConfigError(f"the name of a deployment must be text, got {name!r}")
    if "#" in name:
        raise ServeConfigError(f"the name of a deployment must not contain '#', got {name!r}")
