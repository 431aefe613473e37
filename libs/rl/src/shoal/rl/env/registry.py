"""Environments by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import shoal
from shoal import ext

from ..errors import EnvError, nearest
from .context import EnvContext

Creator = Callable[[EnvContext], Any]
_NAMESPACE = "shoal.rl.envs"
_creators: dict[str, Creator] = {}


def register_env(name: str, env_creator: Creator) -> None:
    """Makes `env_creator` known as `name`, in this process and, while one is connected, in the cluster.

    >>> import gymnasium
    >>> register_env("short_pole", lambda config: gymnasium.make("CartPole-v1", max_episode_steps=config.get("steps", 50)))
    """
    if not isinstance(name, str) or not name:
        raise EnvError(f"register_env(): the name must be a text, not {name!r}")
    if not callable(env_creator):
        raise EnvError(f"register_env({name!r}): {env_creator!r} is not callable; it must be a function of the env_config that returns an environment")
    _creators[name] = env_creator
    publish(name)


def publish(name: object) -> None:
    """Tells the cluster of `name`, if it was registered here: a trial runs in another process."""
    if isinstance(name, str) and name in _creators and shoal.is_initialized():
        import cloudpickle

        ext.kv_put(name.encode(), cloudpickle.dumps(_creators[name]), namespace=_NAMESPACE, with_job=True)


def find(env: Any) -> Creator | str:
    """The function that makes `env`, or its name in Gymnasium.

    Raises:
        EnvError: nothing has this name; names the nearest.
    """
    if not isinstance(env, str):
        return env  # type: ignore[no-any-return]
    if env in _creators:
        return _creators[env]
    import gymnasium

    # A name may say which module registers it: "ale_py:ALE/Pong-v5".
    if env in gymnasium.registry or ":" in env:
        return env
    if shoal.is_initialized():
        pickled = ext.kv_get(env.encode(), namespace=_NAMESPACE)
        if pickled is not None:
            import pickle

            creator: Creator = pickle.loads(pickled)
            return creator
    known = [*_creators, *gymnasium.registry]
    near = nearest(env, known)
    raise EnvError(f"no environment is named {env!r}{near if 'did you mean' in near else ''}; register_env(name, function) makes one known")
