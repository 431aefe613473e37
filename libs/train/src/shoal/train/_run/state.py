"""The life of a run as a state machine: events in, effects out. No I/O; the time comes in with each event.

::

    STARTING ──GroupReady──▶ TRAINING ──all Returned──▶ ENDED
       ▲  │                      │ WorkerFailed, a mismatch
       │  └─GroupNotStarted──┐   ▼
       │                     ▼ FAILING (for a moment: whose failure was first?)
       └──── another attempt ◀───┴──── no more attempts ──▶ ENDED
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from ..errors import CollectiveMismatchError, ControllerError, TrainingFailedError, WorkerEndedError, WorkerGroupError
from .rendezvous import BROADCAST, REPORT, Call, Mismatch, Rendezvous

# The rank that dies makes others fail in their collectives, and their news may come first: so long is waited for the cause.
FAILURE_GRACE_S = 1.0
# Pauses between attempts that reach no checkpoint grow from the first to the last of these.
FIRST_PAUSE_S, LAST_PAUSE_S = 0.1, 10.0
MOST_FAILURES_TOLD = 8


class Phase(Enum):
    STARTING = auto()
    TRAINING = auto()
    FAILING = auto()
    ENDED = auto()


# -- events ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GroupReady:
    """All workers run the function."""

    world_size: int


@dataclass(frozen=True, slots=True)
class GroupNotStarted:
    """The workers could not be started. `failures`: of which ranks, if it was theirs."""

    error: Exception
    failures: Mapping[int, Failure] | None = None


@dataclass(frozen=True, slots=True)
class Called:
    """A rank called something that all must call, and waits."""

    rank: int
    call: Call


@dataclass(frozen=True, slots=True)
class Returned:
    """A rank's function returned."""

    rank: int
    value: Any


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong in a rank. `lost`: its process is gone; `text`: traceback, place."""

    error: Exception
    text: str
    lost: bool = False


@dataclass(frozen=True, slots=True)
class WorkerFailed:
    rank: int
    failure: Failure


@dataclass(frozen=True, slots=True)
class NotRecorded:
    """A report could not be stored. `fatal`: nor could the next one."""

    error: Exception


@dataclass(frozen=True, slots=True)
class TimePassed:
    """Nothing else happened."""


Event = GroupReady | GroupNotStarted | Called | Returned | WorkerFailed | NotRecorded | TimePassed


# -- effects -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartGroup:
    """After a pause."""

    attempt: int
    pause_s: float


@dataclass(frozen=True, slots=True)
class StopGroup:
    """`failed`: the processes are killed, else they have time to end well."""

    failed: bool


@dataclass(frozen=True, slots=True)
class Record:
    """Store what was reported, commit the checkpoint, then let all ranks go on."""

    metrics: list[dict[str, Any]]
    dir_name: str | None
    staged_by: frozenset[int]


@dataclass(frozen=True, slots=True)
class Release:
    """Let all ranks go on, with this value."""

    data: Any


@dataclass(frozen=True, slots=True)
class TellFailure:
    """Workers failed; whether there will be another attempt or not."""

    failures: Mapping[int, Failure]
    text: str
    again: bool


@dataclass(frozen=True, slots=True)
class Warn:
    text: str


@dataclass(frozen=True, slots=True)
class End:
    error: TrainingFailedError | None
    value: Any = None


Effect = StartGroup | StopGroup | Record | Release | TellFailure | Warn | End


class Run:
    """One `fit()`.

    Args:
        max_failures: attempts after the first one; -1: no limit.
        collective_timeout_s: how long ranks wait for one another.
        warn_after_s: after how long a wait is told of, and again each time that it has lasted so much longer.
    """

    def __init__(self, max_failures: int, collective_timeout_s: float = 1800.0, warn_after_s: float = 60.0) -> None:
        self._max_failures = max_failures
        self._collective_timeout_s = collective_timeout_s
        self._warn_after_s = warn_after_s
        self.phase = Phase.STARTING
        self.attempt = 0
        self.failures = 0
        self._idle_failures = 0  # since the last checkpoint
        self._rendezvous = Rendezvous(0)
        self._values: dict[int, Any] = {}
        self._failed: dict[int, Failure] = {}
        self._failing_until = 0.0
        self._waits_since = 0.0
        self._warn_at = 0.0

    def begin(self) -> list[Effect]:
        return [StartGroup(0, 0.0)]

    def deadline(self) -> float | None:
        """When TimePassed must come at the latest."""
        if self.phase is Phase.FAILING:
            return self._failing_until
        if self.phase is Phase.TRAINING and self._rendezvous.waiting:
            return min(self._warn_at, self._waits_since + self._collective_timeout_s)
        return None

    def handle(self, event: Event, now: float) -> list[Effect]:
        if self.phase is Phase.ENDED:
            return []
        match event:
            case GroupReady(world_size):
                self.phase = Phase.TRAINING
                self._rendezvous = Rendezvous(world_size)
                self._values, self._failed = {}, {}
                return []
            case GroupNotStarted(error, failures):
                return self._not_started(error, failures or {})
            case WorkerFailed(rank, failure):
                return self._worker_failed(rank, failure, now)
            case NotRecorded(error):
                return self._end(ControllerError(error))
            case Called(rank, call):
                return self._called(rank, call, now)
            case Returned(rank, value):
                return self._returned(rank, value)
            case TimePassed():
                return self._time_passed(now)

    # -- training ------------------------------------------------------------------------------------------------------

    def _called(self, rank: int, call: Call, now: float) -> list[Effect]:
        if self.phase is not Phase.TRAINING:
            return []  # it waits in vain: its group is about to be stopped
        first = not self._rendezvous.waiting
        try:
            together = self._rendezvous.called(rank, call)
        except Mismatch as mismatch:
            return self._mismatch(str(mismatch))
        if together is None:
            if first:
                self._waits_since, self._warn_at = now, now + self._warn_after_s
            return []
        if call.kind == REPORT:
            return self._report(together)
        return [Release(together[0].data if call.kind == BROADCAST else None)]

    def _report(self, calls: Mapping[int, Call]) -> list[Effect]:
        staged = frozenset(rank for rank, call in calls.items() if call.staged)
        names = {rank: calls[rank].dir_name for rank in sorted(staged)}
        if len(set(names.values())) > 1:
            told = ", ".join(f"rank {rank}: {name!r}" for rank, name in names.items())
            return self._mismatch(f"all ranks that report a checkpoint must give the same checkpoint_dir_name, but they gave {told}")
        if staged:
            self._idle_failures = 0
        name = next(iter(names.values()), None)
        return [Record([calls[rank].metrics or {} for rank in sorted(calls)], name, staged)]

    def _returned(self, rank: int, value: Any) -> list[Effect]:
        if self.phase is not Phase.TRAINING:
            self._values[rank] = value
            return []
        self._values[rank] = value
        try:
            self._rendezvous.returned(rank)
        except Mismatch as mismatch:
            return self._mismatch(str(mismatch))
        if len(self._values) < self._rendezvous.world_size:
            return []
        self.phase = Phase.ENDED
        return [StopGroup(failed=False), End(None, self._values[0])]

    def _mismatch(self, text: str) -> list[Effect]:
        # A mistake in the function: another attempt would only repeat it.
        error = WorkerGroupError(text, {rank: CollectiveMismatchError(text) for rank in sorted(self._rendezvous.waiting)})
        return self._end(error)

    def _time_passed(self, now: float) -> list[Effect]:
        if self.phase is Phase.FAILING and now >= self._failing_until:
            return self._after_failures()
        if self.phase is not Phase.TRAINING or not self._rendezvous.waiting:
            return []
        waited_s = now - self._waits_since
        if waited_s >= self._collective_timeout_s:
            return self._mismatch(f"after {waited_s:.0f} s {self._rendezvous.missing()} All ranks must make the same calls.")
        if now >= self._warn_at:
            self._warn_at = now + self._warn_after_s
            return [Warn(f"for {waited_s:.0f} s {self._rendezvous.missing()}")]
        return []

    # -- failures ------------------------------------------------------------------------------------------------------

    def _worker_failed(self, rank: int, failure: Failure, now: float) -> list[Effect]:
        self._failed.setdefault(rank, failure)
        if self.phase is Phase.TRAINING:
            self.phase = Phase.FAILING
            self._failing_until = now + FAILURE_GRACE_S
        settled = self._failed.keys() | self._values.keys() | self._rendezvous.waiting
        if failure.lost or len(settled) == self._rendezvous.world_size:
            return self._after_failures()
        return []

    def _after_failures(self) -> list[Effect]:
        failures = in_order_of_blame(self._failed)
        text = _told(failures)
        return self._failed_attempt(WorkerGroupError(text, {rank: failure.error for rank, failure in failures.items()}), failures)

    def _not_started(self, error: Exception, failures: Mapping[int, Failure]) -> list[Effect]:
        if not failures:
            return self._end(ControllerError(error))
        failures = in_order_of_blame(failures)
        return self._failed_attempt(WorkerGroupError(_told(failures), {rank: failure.error for rank, failure in failures.items()}), failures)

    def _failed_attempt(self, error: WorkerGroupError, failures: Mapping[int, Failure]) -> list[Effect]:
        self.failures += 1
        again = self._max_failures < 0 or self.failures <= self._max_failures
        tell = TellFailure(failures, error.error_message, again)
        if not again:
            limit = f"\nThis was failure {self.failures}, FailureConfig(max_failures={self._max_failures}) allows {self._max_failures}."
            first = next(iter(failures.values()))
            made = WorkerGroupError(error.error_message + limit, error.worker_failures)
            made.__cause__ = first.error
            return [tell, *self._end(made)]
        self.attempt += 1
        self.phase = Phase.STARTING
        pause_s = 0.0 if self._idle_failures == 0 else min(FIRST_PAUSE_S * 2 ** min(self._idle_failures - 1, 20), LAST_PAUSE_S)
        self._idle_failures += 1
        return [tell, StopGroup(failed=True), StartGroup(self.attempt, pause_s)]

    def _end(self, error: TrainingFailedError) -> list[Effect]:
        self.phase = Phase.ENDED
        return [StopGroup(failed=True), End(error)]


def in_order_of_blame(failures: Mapping[int, Failure]) -> dict[int, Failure]:
    """Processes that ended come first: what others raised afterwards is mostly that they missed them."""
    return dict(sorted(failures.items(), key=lambda item: not (item[1].lost or isinstance(item[1].error, WorkerEndedError))))


def _told(failures: Mapping[int, Failure]) -> str:
    shown = list(failures.items())[:MOST_FAILURES_TOLD]
    (rank, first), *others = shown
    text = f"rank {rank} failed: {first.text.strip()}"
    if others:
        text += "\nAlso failed: " + "; ".join(f"rank {rank}: {type(failure.error).__name__}: {_first_line(failure.error)}" for rank, failure in others)
    if len(failures) > len(shown):
        text += f"; and {len(failures) - len(shown)} more"
    return text


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else ""
