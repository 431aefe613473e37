"""Runtime environments: what a task's process must have beyond the node's own Python."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

SUPPORTED = ("env_vars", "working_dir", "py_modules", "excludes", "config")


class RuntimeEnvConfig(dict[str, Any]):
    """`setup_timeout_seconds` (default 600; -1: no limit), `eager_install`, `log_files`."""

    known_fields = frozenset({"setup_timeout_seconds", "eager_install", "log_files"})

    def __init__(self, setup_timeout_seconds: int = 600, eager_install: bool = True, log_files: list[str] | None = None) -> None:
        if not isinstance(setup_timeout_seconds, int):
            raise TypeError(f"setup_timeout_seconds must be an int, got {type(setup_timeout_seconds)}")
        if setup_timeout_seconds <= 0 and setup_timeout_seconds != -1:
            raise ValueError(f"setup_timeout_seconds must be positive or -1, got {setup_timeout_seconds}")
        super().__init__(setup_timeout_seconds=setup_timeout_seconds, eager_install=eager_install, log_files=log_files or [])

    def to_dict(self) -> dict[str, Any]:
        return dict(self)


class RuntimeEnv(dict[str, Any]):
    """A checked runtime environment; a plain dict is taken everywhere too.

    Args:
        env_vars: variables of the environment, set in the worker. `${NAME}` in a value is what the node's processes have for it.
        working_dir: a directory, or a zip file, whose files the workers get, and in which they run; or the URI of one uploaded before.
        py_modules: directories of packages, put on the workers' path.

    >>> RuntimeEnv(env_vars={"A": "1"})
    {'env_vars': {'A': '1'}}
    """

    known_fields = frozenset(SUPPORTED)

    def __init__(self, *, env_vars: Mapping[str, str] | None = None, working_dir: str | None = None, py_modules: list[Any] | None = None,
                 excludes: list[str] | None = None, config: Mapping[str, Any] | None = None, **kwargs: Any) -> None:  # fmt: skip
        kwargs.pop("_validate", None)
        given = {"env_vars": env_vars, "working_dir": working_dir, "py_modules": py_modules, "excludes": excludes, "config": config, **kwargs}
        super().__init__(check_runtime_env({k: v for k, v in given.items() if v is not None}))

    def to_dict(self) -> dict[str, Any]:
        return dict(self)

    def serialize(self) -> str:
        return canonical(self)

    @classmethod
    def deserialize(cls, serialized_runtime_env: str) -> RuntimeEnv:
        return cls(**json.loads(serialized_runtime_env or "{}"))

    def has_working_dir(self) -> bool:
        return bool(self.get("working_dir"))

    def working_dir_uri(self) -> str | None:
        return self.get("working_dir")

    def working_dir(self) -> str:
        """Empty where there is none."""
        return str(self.get("working_dir") or "")

    def py_modules(self) -> list[str]:
        return list(self.get("py_modules") or [])

    py_modules_uris = py_modules

    def env_vars(self) -> dict[str, str]:
        return dict(self.get("env_vars") or {})

    def set(self, name: str, value: Any) -> None:
        """Sets one field, checked as a whole environment with it is; None takes it away.

        Raises:
            ValueError, TypeError: naming the field. Nothing has changed then.

        >>> env = RuntimeEnv(env_vars={"A": "1"})
        >>> env.set("env_vars", {"A": "2"})
        >>> env
        {'env_vars': {'A': '2'}}
        """
        fields = {key: item for key, item in self.items() if key != name}
        if value is not None:
            fields[name] = value
        checked = check_runtime_env(fields)
        self.clear()
        self.update(checked)


def expanded(value: str) -> str:
    """A value of `env_vars` with the variables that it names, as they are here; `${NAME}` of what is not set is nothing.

    >>> import os; os.environ["HERE"] = "/lib"
    >>> expanded("/mine:${HERE}${NOWHERE}")
    '/mine:/lib'
    """
    return re.sub(r"\$\{\w+\}", "", os.path.expandvars(value)) if "$" in value else value


def check_runtime_env(env: Mapping[str, Any]) -> dict[str, Any]:
    """Raises TypeError or ValueError that names the field."""
    if not isinstance(env, Mapping):
        raise TypeError(f"runtime_env must be dict or RuntimeEnv, but got: {type(env)}")
    for field, value in env.items():
        if field not in SUPPORTED and value:
            raise ValueError(f"runtime_env[{field!r}] is not supported; supported fields are {', '.join(SUPPORTED)}")
    variables = env.get("env_vars") or {}
    if not isinstance(variables, Mapping):
        raise TypeError(f"runtime_env['env_vars'] must be of type Dict[str, str], got {type(variables)}")
    for key, value in variables.items():
        if not isinstance(key, str):
            raise TypeError(f"runtime_env['env_vars']: keys must be of type str, but got {key!r} of type {type(key)}")
        if not isinstance(value, str):
            raise TypeError(f"runtime_env['env_vars'][{key!r}] must be of type str, but got {value!r} of type {type(value)}")
    working_dir = env.get("working_dir")
    if working_dir is not None and not isinstance(working_dir, str | os.PathLike):
        raise TypeError(f"runtime_env['working_dir'] must be a path, got {type(working_dir)}")
    modules = env.get("py_modules") or []
    if not isinstance(modules, list):
        raise TypeError(f"runtime_env['py_modules'] must be a list, got {type(modules)}")
    return {k: v for k, v in env.items() if v}


def canonical(env: Mapping[str, Any] | None) -> str:
    """One text for equal environments; empty for none."""
    return json.dumps(env, sort_keys=True, separators=(",", ":"), default=os.fspath) if env else ""


def inherited(parent: str, own: Mapping[str, Any] | None) -> dict[str, Any]:
    """A child's environment: its own fields over its parent's, variables merged one by one."""
    base: dict[str, Any] = json.loads(parent) if parent else {}
    if not own:
        return base
    merged = {**base, **own}
    if base.get("env_vars") or own.get("env_vars"):
        merged["env_vars"] = {**(base.get("env_vars") or {}), **(own.get("env_vars") or {})}
    return merged
