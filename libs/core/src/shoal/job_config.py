"""What holds for a whole job: a driver and all that it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from .exceptions import JobLimitExceeded

_MOST = 2**31 - 1


@dataclass
class JobConfig:
    """For `init(job_config=...)`; a dict with these keys will do as well.

    Limits keep a runaway program from taking a cluster with it; None: none. What they refuse says which limit it was.

    Attributes:
        runtime_env: of all tasks and actors of the job.
        ray_namespace: of its named actors.
        max_pending_tasks: how many tasks and calls the job may have that did not end, whoever submitted them. At the limit `.remote()` of the driver waits,
            and says so; inside a task, or on an event loop, it raises PendingCallsLimitExceeded.
        max_object_bytes: how many bytes the job's objects may have in the nodes' stores, on disk included. `put()` of more raises JobStoreLimitExceeded, and so
            does the `get()` of a result that did not fit. Values under 100 KiB lie with their owner and are not counted; nor are copies on further nodes.
        max_actors: how many living actors the job may have, detached ones included. More fail with JobLimitExceeded: a named one where it is created, another
            one at its calls.
        max_nesting_depth: how deep tasks and actors may be nested. 1: only the driver starts any. `.remote()` raises JobLimitExceeded.

    Example::

        shoal.init(job_config=shoal.job_config.JobConfig(max_actors=100, max_nesting_depth=10))
    """

    runtime_env: dict[str, Any] | None = None
    ray_namespace: str | None = None
    max_pending_tasks: int | None = None
    max_actors: int | None = None
    max_nesting_depth: int | None = None
    max_object_bytes: int | None = None

    def __post_init__(self) -> None:
        for name, most in (("max_pending_tasks", _MOST), ("max_actors", _MOST), ("max_nesting_depth", _MOST), ("max_object_bytes", 2**62)):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"JobConfig({name}={value!r}): an integer or None is wanted")
            if not 1 <= value <= most:
                raise ValueError(f"JobConfig({name}={value}): at least 1 is wanted, and at most {most}; None is no limit")

    @classmethod
    def of(cls, given: JobConfig | Mapping[str, Any] | None) -> JobConfig:
        """Raises ValueError or TypeError that names what is wrong."""
        if given is None:
            return cls()
        if isinstance(given, cls):
            return given
        if not isinstance(given, Mapping):
            raise TypeError(f"job_config must be a JobConfig or a dict, got {type(given).__name__}")
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(given) - known):
            raise ValueError(f"job_config has no field {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        return cls(**given)


class Limits:
    """A job's limits in one of its processes; 0: none."""

    __slots__ = ("depth", "object_bytes", "pending_tasks")

    def __init__(self, config: Any = None) -> None:
        self.pending_tasks: int = config.max_pending_tasks if config is not None else 0
        self.object_bytes: int = config.max_object_bytes if config is not None else 0
        self.depth: int = config.max_nesting_depth if config is not None else 0

    def check_depth(self, depth: int, what: str) -> None:
        """`depth`: of the task or actor that is to be started, 0 for those of the driver. Raises JobLimitExceeded."""
        if self.depth and depth >= self.depth:
            raise JobLimitExceeded(f"{what} would be nested {depth + 1} deep, and the job's JobConfig(max_nesting_depth={self.depth}) allows {self.depth}")

    def apply(self, engine: Any) -> None:
        engine.limit_job(bool(self.pending_tasks), bool(self.object_bytes))
