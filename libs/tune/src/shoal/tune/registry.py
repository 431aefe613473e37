"""Trainables and environments by name.

A trainable's name is one that this process registered, or an entry point of an installed distribution, in the group `shoal.trainables`: `Tuner("PPO")` works
where shoal-rl is installed, and nothing of it is imported before somebody asks. An environment's name is told to the whole cluster, since trials run in other
processes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

import shoal
from shoal import ext

__all__ = ["GROUP", "env_creator", "get_trainable", "publish_env", "register_env", "register_trainable", "registered_envs"]

# Entry points of this group are trainables, by the names that users give to `Tuner`.
GROUP = "shoal.trainables"
_ENVS = "shoal.tune.envs"

_trainables: dict[str, Any] = {}
_envs: dict[str, Callable[..., Any]] = {}
_lock = threading.Lock()


# -- trainables --------------------------------------------------------------------------------------------------------


def register_trainable(name: str, trainable: Any) -> None:
    """Makes a trainable known by name, in this process: `Tuner("name")`. It goes before an installed one of the same name.

    Args:
        name: what it will be called.
        trainable: a function of the configuration, or a subclass of `Trainable`.

    Raises:
        TypeError: the name is no text, or `trainable` is no trainable.

    >>> register_trainable("square", lambda config: {"y": config["x"] ** 2})
    """
    from .function_trainable import check_trainable

    _check_name("register_trainable", name)
    check_trainable(trainable)
    with _lock:
        _trainables[name] = trainable


def get_trainable(trainable: Any) -> Any:
    """By name; anything else as it is.

    Raises:
        ValueError: nobody has registered the name.
        ImportError: a distribution has one of this name, which cannot be imported.
    """
    if not isinstance(trainable, str):
        return trainable
    with _lock:
        if trainable in _trainables:
            return _trainables[trainable]
    for point in entry_points(group=GROUP, name=trainable):
        try:
            return point.load()
        except (ImportError, AttributeError) as error:
            raise ImportError(f"the trainable {trainable!r} is {point.value} of an installed package, which cannot be imported: {error}") from error
    with _lock:
        known = ", ".join(sorted({*_trainables, *entry_points(group=GROUP).names})) or "none"
    raise ValueError(f"no trainable {trainable!r} was registered; there are: {known}. register_trainable(name, trainable) makes one known")


# -- environments ------------------------------------------------------------------------------------------------------


def register_env(name: str, env_creator: Callable[..., Any]) -> None:
    """Makes an environment known by name to algorithms: in this process and, while one is connected, in the cluster, for its job.

    Args:
        name: what it will be called.
        env_creator: a function of the `env_config`, a dict that also knows which worker asks, that returns an environment.

    Raises:
        TypeError: the name is no text, or `env_creator` cannot be called.

    >>> register_env("short_pole", lambda config: __import__("gymnasium").make("CartPole-v1", max_episode_steps=config.get("steps", 50)))
    """
    _check_name("register_env", name)
    if not callable(env_creator):
        raise TypeError(f"register_env({name!r}): {env_creator!r} is not callable; it must be a function of the env_config that returns an environment")
    with _lock:
        _envs[name] = env_creator
    publish_env(name)


def publish_env(name: object) -> None:
    """Tells the cluster of an environment, if it was registered in this process: before a trial looks for it in another one."""
    with _lock:
        creator = _envs.get(name) if isinstance(name, str) else None
    if creator is not None and shoal.is_initialized():
        import cloudpickle

        ext.kv_put(str(name).encode(), cloudpickle.dumps(creator), namespace=_ENVS, with_job=True)


def env_creator(name: str) -> Callable[..., Any] | None:
    """What was registered as `name`, here or elsewhere in the cluster; None: nothing was."""
    with _lock:
        if name in _envs:
            return _envs[name]
    pickled = ext.kv_get(name.encode(), namespace=_ENVS) if shoal.is_initialized() else None
    if pickled is None:
        return None
    import pickle

    creator: Callable[..., Any] = pickle.loads(pickled)
    return creator


def registered_envs() -> list[str]:
    """Names that this process has registered."""
    with _lock:
        return sorted(_envs)


def _check_name(function: str, name: object) -> None:
    if not isinstance(name, str) or not name:
        raise TypeError(f"{function}(): the name must be a text, not {name!r}")
