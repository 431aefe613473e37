"""Whom to end when memory is short, and how it is told. No process is looked at here, and none is ended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from .usage import NodeUsage, show_bytes

# Ending a worker that holds less than this would cost a task and bring nothing.
WORTH_BYTES = 32 << 20
# An idle worker that keeps so much is ended before any task is: nobody loses anything.
IDLE_WORTH_BYTES = 64 << 20


class Held(msgspec.Struct, frozen=True):
    """A worker that could be ended. `owner`: the process whose task or actor it runs; empty: it is idle."""

    worker_id: bytes
    pid: int
    name: str
    held: int
    owner: bytes = b""
    retriable: bool = True
    started: float = 0.0  # of its task, any clock


class Victim(msgspec.Struct, frozen=True):
    """`alone`: nothing else of its owner runs here, so that it may well be too large for this node by itself."""

    worker: Held
    alone: bool = False


def choose(workers: Iterable[Held]) -> Victim | None:
    """An idle worker that keeps much; else Ray's policy: tasks are grouped by owner, those that cannot be retried each by themselves. Retriable groups
    go before others, larger before smaller, then the one that began last; the task of it that started last is ended. None: ending nobody would help.
    """
    everybody = list(workers)
    idle = max((worker for worker in everybody if not worker.owner), key=lambda worker: worker.held, default=None)
    if idle is not None and idle.held >= IDLE_WORTH_BYTES:
        return Victim(idle)
    groups: dict[tuple[bytes, bytes], list[Held]] = {}
    for worker in everybody:
        if worker.owner and worker.held >= WORTH_BYTES:
            groups.setdefault((worker.owner, b"" if worker.retriable else worker.worker_id), []).append(worker)
    if not groups:
        return None
    chosen = max(groups.values(), key=lambda group: (group[0].retriable, len(group), min(worker.started for worker in group)))
    worker = max(chosen, key=lambda worker: worker.started)
    return Victim(worker, alone=len(chosen) == 1)


# Limit: memory does not fill faster than this by one core, with pages that nobody has touched before.
FILL_BYTES_S = 4 << 30
# Nor is it left unwatched for longer than this.
MOST_PAUSE_S = 2.0


class Threshold(msgspec.Struct, frozen=True):
    """How much of the node may be in use: a share of it, and if `min_free_bytes` is not negative all but so much, whichever is more."""

    share: float = 0.95
    min_free_bytes: int = -1

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"memory_usage_threshold={self.share:g}: more than 0 and at most 1 is wanted")

    def bytes_of(self, total: int) -> int:
        most = int(total * self.share)
        return most if self.min_free_bytes < 0 else max(most, total - self.min_free_bytes)

    def pause_s(self, usage: NodeUsage, refresh_s: float, cores: int) -> float:
        """Until memory is looked at again: `refresh_s` where it could be short by then, longer where it cannot.

        >>> usage = NodeUsage(8 << 30, 32 << 30, "the machine")
        >>> [round(Threshold().pause_s(usage, 0.25, cores), 2) for cores in (2, 8, 64)]
        [2.0, 0.7, 0.25]
        """
        left = min(self.bytes_of(total) - used for used, total in ((usage.used, usage.total), usage.tightest) if total)
        return max(refresh_s, min(MOST_PAUSE_S, left / (FILL_BYTES_S * cores)))


def shortage_text(victim: Victim, usage: NodeUsage, threshold: int, largest: Sequence[tuple[int, str, int]]) -> str:
    worker = victim.worker
    why = "its owner's newest task" if worker.retriable else "the newest task; none that can be retried was left"
    if not worker.owner:
        why = "idle"
    return (
        f"the node is short of memory: {where(usage)}, more than the {show_bytes(threshold)} allowed. This worker (pid {worker.pid}, {worker.name or 'idle'}) "
        f"held {show_bytes(worker.held)} and was ended, being {why}. Most is held by {show_largest(largest)}. Let fewer such tasks run at once (memory= or "
        "num_cpus= of the task), let each hold less, or use a larger node; SHOAL_MEMORY_USAGE_THRESHOLD moves the limit"
    )


def where(usage: NodeUsage) -> str:
    return f"{show_bytes(usage.used)} of {show_bytes(usage.total)} of {usage.where} are in use"


def show_largest(largest: Sequence[tuple[int, str, int]]) -> str:
    return ", ".join(f"pid {pid} ({name}) {show_bytes(size)}" for pid, name, size in largest) or "nobody"


def limit_text(pid: int, peak: int, limit: int, enforced_by: str) -> str:
    return (
        f"it (pid {pid}) used more than its memory= allows: it held {show_bytes(peak)} at its peak, the limit is {show_bytes(limit)} ({enforced_by}). "
        "Raise memory= of the task or actor, or let it hold less"
    )
