"""Environments by name: those of `shoal.tune.register_env`, and Gymnasium's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shoal.tune.registry import env_creator, register_env, registered_envs

from ..errors import EnvError, nearest
from .context import EnvContext

__all__ = ["Creator", "find", "register_env"]

Creator = Callable[[EnvContext], Any]


def find(env: Any) -> Creator | str:
    """The function that makes `env`, or its name in Gymnasium.

    Raises:
        EnvError: nothing has this name; names the nearest.
    """
    if not isinstance(env, str):
        return env  # type: ignore[no-any-return]
    here = registered_envs()
    if env not in here:
        import gymnasium

        # A name may say which module registers it: "ale_py:ALE/Pong-v5".
        if env in gymnasium.registry or ":" in env:
            return env
        here += gymnasium.registry
    creator = env_creator(env)
    if creator is not None:
        return creator
    near = nearest(env, here)
    raise EnvError(f"no environment is named {env!r}{near if 'did you mean' in near else ''}; register_env(name, function) makes one known")
