"""Key-value records, by namespace; those of a job go with it."""

from __future__ import annotations

from ..v1 import gcs_pb2 as pb
from .effects import Answer, DeleteRecord, Persist, WakeKeyWaiters
from .turn import Refusal, Refused, Turn

TABLE = "kv"
MAX_KEY_BYTES = 4_096  # Limit
MAX_REQUEST_ID_BYTES = 64  # Limit
MAX_VALUE_BYTES = 256 << 20  # Limit: a frame's payload can be no larger either


def row_key(namespace: str, key: bytes) -> bytes:
    return namespace.encode() + b"\0" + key


class KeyValues:
    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._values: dict[str, dict[bytes, bytes]] = {}
        self._of_job: dict[bytes, set[tuple[str, bytes]]] = {}
        self._job_of: dict[tuple[str, bytes], bytes] = {}
        self._request_of: dict[tuple[str, bytes], bytes] = {}  # by which a key was added
        self.size_bytes = 0

    def get(self, namespace: str, key: bytes) -> bytes | None:
        values = self._values.get(namespace)
        return None if values is None else values.get(key)

    def keys(self, namespace: str, prefix: bytes) -> list[bytes]:
        return [key for key in self._values.get(namespace, ()) if key.startswith(prefix)]

    def __len__(self) -> int:
        return sum(map(len, self._values.values()))

    def load(self, request: pb.KvPutRequest) -> None:
        self._store(request)

    def put(self, request: pb.KvPutRequest) -> None:
        namespace, key = request.namespace, request.key
        if not key or len(key) > MAX_KEY_BYTES or "\0" in namespace:
            raise Refused(Refusal.INVALID, f"a key has 1 to {MAX_KEY_BYTES} bytes (got {len(key)}) and its namespace no zero character")
        if len(request.value) > MAX_VALUE_BYTES:
            size, most = len(request.value), MAX_VALUE_BYTES
            raise Refused(Refusal.INVALID, f"the value of {key[:80]!r} has {size} bytes; at most {most} are kept here, larger ones belong in the object store")
        if len(request.request_id) > MAX_REQUEST_ID_BYTES:
            raise Refused(Refusal.INVALID, f"a request_id has at most {MAX_REQUEST_ID_BYTES} bytes (got {len(request.request_id)})")
        exists = self.get(namespace, key) is not None
        again = bool(request.request_id) and self._request_of.get((namespace, key)) == request.request_id
        self._turn.emit(Answer(pb.KvPutReply(added=again or not exists)))
        if exists and not request.overwrite:
            return
        self._store(request)
        self._turn.emit(Persist(TABLE, row_key(namespace, key), request.SerializeToString()))
        self._turn.emit(WakeKeyWaiters(namespace, key))

    def delete(self, request: pb.KvDeleteRequest) -> None:
        if request.prefix:
            doomed = self.keys(request.namespace, request.key)
        else:
            doomed = [request.key] if self.get(request.namespace, request.key) is not None else []
        for key in doomed:
            self._drop(request.namespace, key)
        self._turn.emit(Answer(pb.KvDeleteReply(deleted=len(doomed))))

    def job_finished(self, job_id: bytes) -> None:
        for namespace, key in list(self._of_job.get(job_id, ())):
            self._drop(namespace, key)

    def _store(self, request: pb.KvPutRequest) -> None:
        place = (request.namespace, request.key)
        self._leave_job(place)
        self._request_of.pop(place, None)
        if request.request_id and not request.overwrite:
            self._request_of[place] = request.request_id
        values = self._values.setdefault(request.namespace, {})
        self.size_bytes += len(request.value) - len(values.get(request.key, b""))
        values[request.key] = request.value
        if request.job_id:
            self._of_job.setdefault(request.job_id, set()).add(place)
            self._job_of[place] = request.job_id

    def _drop(self, namespace: str, key: bytes) -> None:
        values = self._values[namespace]
        self.size_bytes -= len(values.pop(key))
        if not values:
            del self._values[namespace]
        self._leave_job((namespace, key))
        self._request_of.pop((namespace, key), None)
        self._turn.emit(DeleteRecord(TABLE, row_key(namespace, key)))

    def _leave_job(self, place: tuple[str, bytes]) -> None:
        job = self._job_of.pop(place, None)
        if job is not None:
            keys = self._of_job[job]
            keys.discard(place)
            if not keys:
                del self._of_job[job]
