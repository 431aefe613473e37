"""Jobs: one for each driver."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from ..v1 import gcs_pb2 as pb
from .effects import Answer, DeleteRecord, Persist, Publish
from .history import History
from .turn import Refusal, Refused, Turn

TABLE = "jobs"
META = "meta"
NEXT_JOB = b"next_job"
TOLD_AGAIN_MS = 600_000  # jobs that ended so lately are told to a raylet that registers: it may have missed it


class Jobs:
    def __init__(self, turn: Turn, history: History | None = None) -> None:
        self._turn = turn
        self._history = history or History()
        self._jobs: dict[bytes, pb.Job] = {}
        self._finished: OrderedDict[bytes, None] = OrderedDict()
        self._next = 1

    def __iter__(self) -> Iterator[pb.Job]:
        return iter(self._jobs.values())

    def get(self, job_id: bytes) -> pb.Job | None:
        return self._jobs.get(job_id)

    def max_actors(self, job_id: bytes) -> int:
        """0: no limit."""
        job = self._jobs.get(job_id)
        return job.max_actors if job is not None else 0

    def running(self) -> list[pb.Job]:
        return [job for job in self._jobs.values() if not job.finished]

    def load(self, job: pb.Job) -> None:
        self._jobs[job.job_id] = job
        if job.finished:
            self._finished[job.job_id] = None
        self._next = max(self._next, int.from_bytes(job.job_id, "little") + 1)

    def load_next(self, record: bytes) -> None:
        self._next = max(self._next, int.from_bytes(record, "little"))

    def add(self, job: pb.Job) -> None:
        """A driver has one job: a request that comes again, since its answer was lost with a connection or a control store, gets the same one."""
        made = next((known for known in self._jobs.values() if known.driver_worker_id == job.driver_worker_id), None) if job.driver_worker_id else None
        if made is not None:
            self._turn.emit(Answer(made))
            return
        job.job_id = self._next.to_bytes(4, "little")
        job.start_ms, job.end_ms, job.finished = self._turn.at.unix_ms, 0, False
        self._next += 1
        self._jobs[job.job_id] = job
        self._turn.emit(Persist(META, NEXT_JOB, self._next.to_bytes(4, "little")))
        self._changed(job)
        self._turn.emit(Answer(job))

    def finish(self, job_id: bytes) -> bool:
        """False: it had ended before."""
        job = self._jobs.get(job_id)
        if job is None:
            raise Refused(Refusal.NOT_FOUND, f"no job {job_id.hex()}")
        if job.finished:
            return False
        job.finished, job.end_ms = True, self._turn.at.unix_ms
        self._finished[job_id] = None
        self._changed(job)
        self.forget()
        return True

    def forget(self) -> None:
        """Those that have ended for too long, or too many."""
        before = self._turn.at.unix_ms - self._history.age_ms
        while self._finished:
            oldest = next(iter(self._finished))
            if len(self._finished) <= self._history.finished_jobs and self._jobs[oldest].end_ms >= before:
                return
            del self._finished[oldest], self._jobs[oldest]
            self._turn.emit(DeleteRecord(TABLE, oldest))

    def settle_after_load(self) -> None:
        self._finished = OrderedDict((job_id, None) for job_id in sorted(self._finished, key=lambda job_id: self._jobs[job_id].end_ms))

    def finished_lately(self) -> list[bytes]:
        since = self._turn.at.unix_ms - TOLD_AGAIN_MS
        return [job_id for job_id in self._finished if self._jobs[job_id].end_ms >= since]

    def of_driver(self, worker_id: bytes) -> list[bytes]:
        return [job.job_id for job in self._jobs.values() if not job.finished and job.driver_worker_id == worker_id]

    def of_driver_node(self, node_id: bytes) -> list[bytes]:
        return [job.job_id for job in self._jobs.values() if not job.finished and job.driver_node_id == node_id]

    def _changed(self, job: pb.Job) -> None:
        record = job.SerializeToString()
        self._turn.emit(Persist(TABLE, job.job_id, record))
        self._turn.emit(Publish(("jobs",), record))
