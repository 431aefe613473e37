"""The history of tasks: bounded, by job, in memory only."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from ..v1 import gcs_pb2 as pb

MAX_TASKS = 100_000  # Limit: the oldest of the job with the most go first, and are counted as dropped
DEFAULT_LISTED = 10_000

Key = tuple[bytes, int]


class Tasks:
    def __init__(self, limit: int = MAX_TASKS) -> None:
        self._limit = limit
        self._by_job: dict[bytes, OrderedDict[Key, pb.TaskRecord]] = {}
        self._count = 0
        self.dropped = 0

    def __len__(self) -> int:
        return self._count

    def report(self, request: pb.ReportTasksRequest) -> None:
        self.dropped += request.dropped
        for record in request.tasks:
            history = self._by_job.setdefault(record.job_id, OrderedDict())
            key = (record.task_id, record.attempt)
            known = history.get(key)
            if known is None:
                history[key] = record
                self._count += 1
            elif not known.end_ms:  # a report that was overtaken by the end does not undo it
                known.MergeFrom(record)
        while self._count > self._limit:
            self._drop_oldest()

    def select(self, request: pb.ListTasksRequest) -> pb.TaskList:
        """The newest first."""
        limit = request.limit or DEFAULT_LISTED
        chosen = pb.TaskList(dropped=self.dropped)
        total = 0
        for record in self._newest_first(request.job_id):
            if request.state and record.state != request.state:
                continue
            total += 1
            if total <= limit:
                chosen.tasks.append(record)
        chosen.total = total
        return chosen

    def _newest_first(self, job_id: bytes) -> Iterator[pb.TaskRecord]:
        jobs = [job_id] if job_id else list(reversed(self._by_job))
        for job in jobs:
            yield from reversed(self._by_job.get(job, OrderedDict()).values())

    def _drop_oldest(self) -> None:
        job = max(self._by_job, key=lambda job: len(self._by_job[job]))
        history = self._by_job[job]
        history.popitem(last=False)
        if not history:
            del self._by_job[job]
        self._count -= 1
        self.dropped += 1
