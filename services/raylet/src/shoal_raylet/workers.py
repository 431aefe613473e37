"""Workers as the scheduler sees them: phases, no processes."""

from __future__ import annotations

import enum
import json
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec
from shoal_base.resources import UNIT

if TYPE_CHECKING:
    from .leases import ActorStart, Lease


# A key of an environment's key beside those of a runtime_env.
_MEMORY = "memory_bytes"
# Limit: what a worker may always use. The interpreter and the runtime alone need most of it.
LEAST_MEMORY_BYTES = 32 << 20


def environment_key(runtime_env: str, memory_units: int = 0) -> str:
    """Workers with different runtime environments are not exchanged, nor those with different limits of memory; an empty one is the zygote's own.

    >>> environment_key("{}"), environment_key('{"env_vars": {"A": "1"}}'), environment_key("", (300 << 20) * UNIT)
    ('', '{"env_vars":{"A":"1"}}', '{"memory_bytes":314572800}')
    """
    if runtime_env in ("", "{}") and not memory_units:
        return ""
    try:
        value = json.loads(runtime_env or "{}")
    except ValueError as error:
        raise ValueError(f"runtime_env is no JSON: {error}: {runtime_env[:200]!r}") from error
    if not isinstance(value, dict):
        raise ValueError(f"runtime_env must be an object, got {type(value).__name__}")
    if memory_units:
        value[_MEMORY] = max(LEAST_MEMORY_BYTES, memory_units // UNIT)
    return json.dumps(value, sort_keys=True, separators=(",", ":")) if value else ""


def environment_variables(key: str) -> dict[str, str]:
    """What the zygote sets in the forked child."""
    if not key:
        return {}
    variables = json.loads(key).get("env_vars") or {}
    return {str(name): str(value) for name, value in variables.items()}


def memory_limit(key: str) -> int:
    """Bytes that a worker of this environment may use; 0: any."""
    return int(json.loads(key).get(_MEMORY, 0)) if _MEMORY in key else 0


class Phase(enum.Enum):
    STARTING = "STARTING"
    IDLE = "IDLE"
    LEASED = "LEASED"
    ACTOR = "ACTOR"
    ENDING = "ENDING"


class Worker(msgspec.Struct, eq=False):
    fork: int
    environment: str
    started_at: float
    id: bytes = b""
    pid: int = 0
    phase: Phase = Phase.STARTING
    job: bytes = b""  # bound at the first lease
    lease: Lease | None = None
    actor: ActorStart | None = None
    blocked: bool = False
    idle_since: float = 0.0
    owns: bool = False  # others hold references to objects of it: they would be lost with it
    leaving: bool = False  # it ends by itself when that is over, and takes no more tasks
    patient: bool = False  # was asked to end after its task, however long that takes
    migrating: bool = False  # it ends so that its actor may start elsewhere
    ending_code: int = 0
    ending_reason: str = ""


class WorkerTable:
    """All workers of the node, and who of them can take work at once."""

    def __init__(self) -> None:
        self.by_id: dict[bytes, Worker] = {}
        self.starting: dict[int, Worker] = {}
        self._idle: dict[tuple[bytes, str], deque[Worker]] = {}
        self.idle_count = 0
        self.leased_count = 0
        self._starting_of: dict[str, int] = {}

    def start(self, worker: Worker) -> None:
        self.starting[worker.fork] = worker
        self._starting_of[worker.environment] = self._starting_of.get(worker.environment, 0) + 1

    def started(self, fork: int) -> Worker | None:
        worker = self.starting.pop(fork, None)
        if worker is not None:
            self._starting_of[worker.environment] -= 1
            if not self._starting_of[worker.environment]:
                del self._starting_of[worker.environment]
        return worker

    def starting_with(self, environment: str) -> int:
        return self._starting_of.get(environment, 0)

    def set_phase(self, worker: Worker, phase: Phase, now: float = 0.0) -> None:
        if worker.phase is Phase.IDLE:
            self._leave_idle(worker)
        elif worker.phase is Phase.LEASED:
            self.leased_count -= 1
        worker.phase = phase
        if phase is Phase.IDLE:
            worker.idle_since = now
            self._idle.setdefault((worker.job, worker.environment), deque()).append(worker)
            self.idle_count += 1
        elif phase is Phase.LEASED:
            self.leased_count += 1

    def _leave_idle(self, worker: Worker) -> None:
        key = (worker.job, worker.environment)
        stack = self._idle[key]
        if stack[-1] is worker:
            stack.pop()
        else:
            stack.remove(worker)
        if not stack:
            del self._idle[key]
        self.idle_count -= 1

    def find_idle(self, job: bytes, environment: str) -> Worker | None:
        """The one that worked last: its caches are warm. One of the same job before an unbound one."""
        stack = self._idle.get((job, environment)) or self._idle.get((b"", environment))
        return stack[-1] if stack else None

    def oldest_idle(self) -> Worker | None:
        """Of those that nobody needs for their objects."""
        return min((worker for stack in self._idle.values() for worker in stack if not worker.owns), key=lambda worker: worker.idle_since, default=None)

    def idle(self) -> list[Worker]:
        """Longest idle first."""
        return sorted((worker for stack in self._idle.values() for worker in stack), key=lambda worker: worker.idle_since)

    def remove(self, worker: Worker) -> None:
        self.set_phase(worker, Phase.ENDING)
        self.by_id.pop(worker.id, None)

    def of_job(self, job: bytes) -> list[Worker]:
        return [worker for worker in self.by_id.values() if worker.job == job]

    def __iter__(self) -> Iterator[Worker]:
        return iter(self.by_id.values())
