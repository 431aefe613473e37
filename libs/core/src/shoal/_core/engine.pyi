"""The core worker: one Engine per process, in Cython. Everything here may be called from any thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Generator, Sequence
from typing import Any, Generic, TypeVar

T = TypeVar("T")

KIND_PICKLE: int  # 0
KIND_BYTES: int  # 1
KIND_NONE: int  # 2
KIND_ERROR: int  # 3

TASK_STREAMING: int  # 1
TASK_RETRY_EXCEPTIONS: int  # 2
TASK_TIMED: int  # 16: TaskExtra.timeout_s is set
TASK_UNRECORDED: int  # 32: not kept in the node's history
REPLY_OK: int  # 0
REPLY_RAISED: int  # 1
REPLY_CANCELLED: int  # 2
REPLY_LEAVING: int  # 3
REPLY_REJECTED: int  # 4
REPLY_RAISED_RETRY: int  # 5: raised, and worth a retry

class ObjectRef(Generic[T]):
    """A counted reference. Made by the engine alone; pickling needs the engine (``__reduce__`` records it with the running serialisation)."""

    def binary(self) -> bytes: ...  # 20 bytes
    def hex(self) -> str: ...
    def task_id(self) -> bytes: ...
    def job_id(self) -> Any: ...  # JobID
    def owner(self) -> bytes: ...  # worker id + node id, 32 bytes
    def is_nil(self) -> bool: ...
    def future(self) -> concurrent.futures.Future[T]: ...
    def as_future(self, _internal: bool = False) -> asyncio.Future[T]: ...
    def __await__(self) -> Generator[Any, Any, T]: ...
    def __hash__(self) -> int: ...
    def __eq__(self, other: object) -> bool: ...

class Payload:
    """A serialised value before it has a place. ``buffers`` are contiguous buffer objects, ``refs`` the references met inside."""

    kind: int
    inband: bytes
    buffers: Sequence[Any]
    refs: Sequence[ObjectRef[Any]]
    nbytes: int
    def __init__(self, kind: int, inband: bytes, buffers: Sequence[Any] = (), refs: Sequence[ObjectRef[Any]] = ()) -> None: ...
    def to_bytes(self) -> bytes: ...

class Value:
    """A value that arrived. ``inband`` is bytes or a memoryview; ``buffers`` are read-only, zero-copy, and pin the object while they live."""

    kind: int
    inband: Any
    buffers: list[Any]

class Task:
    """What an executor got to run."""

    task_id: bytes
    kind: int  # 0 task, 1 actor creation, 2 actor call
    flags: int
    num_returns: int
    attempt: int
    lease_id: int
    job_id: bytes
    function_id: bytes
    actor_id: bytes
    depth: int
    backpressure: int
    name: str
    method: str
    group: str
    extra: bytes
    caller: bytes  # worker id + node id
    def args(self) -> Value | None: ...  # value of (args list, kwargs dict); None: no arguments
    def deps(self) -> list[tuple[int, Value]]: ...  # (position, value): see "Task" in ARCHITECTURE.md; a Value of KIND_ERROR means: fail with it
    def cancelled(self) -> bool: ...

class Engine:
    worker_id: bytes
    node_id: bytes
    job_id: bytes
    node_dir: str
    inline_limit: int  # 100 KiB
    closed: bool
    forked: bool
    on_cancel: Any

    def __init__(self, *, worker_id: bytes, node_dir: str, kind: int, inline_limit: int = 100 * 1024) -> None:
        """kind: 0 driver, 1 worker. Listens on node_dir/w/<worker id>.sock."""
    def connect(self, register: bytes, timeout: float) -> bytes:
        """Joins the raylet with a RegisterWorker; returns the Registered (bytes). Maps the arena and the control page."""
    def close(self) -> None: ...
    def fork_child(self) -> None:
        """In a forked child: our sockets are closed there, releases become no-ops, calls raise ForkedProcessError."""
    def fileno(self) -> int:
        """The one epoll descriptor, for a process whose event loop polls."""
    def loop_fileno(self) -> int:
        """Readable when another thread has received or settled what the loop waits for: poll() then."""
    def poll(self) -> None:
        """Serves what is ready, without waiting."""
    # -- submitting
    def limit_lineage(self, size_bytes: int) -> None:
        """How many bytes may be kept of what finished tasks were called with, to run them again. 0: nothing lost is made again."""
    def limit_job(self, tasks: bool, object_bytes: bool) -> None: ...
    def limit_submission(self, tasks: int, spec_bytes: int = 0) -> None:
        """How many tasks this process may have that did not end, and bytes of arguments in them (0: as before): above, .remote() waits, or raises
        PendingCallsLimitExceeded."""
    def limit_oom_retries(self, count: int) -> None:
        """How often a task is tried again that was ended because its node was short of memory; -1: always."""
    def lease_class(self, spec: bytes) -> int:
        """A LeaseClass (serialised deterministically) to a small number; the same bytes give the same number."""
    def submit(self, lease_class: int, function_id: bytes, name: str, args: Payload | None, deps: Sequence[tuple[int, ObjectRef]],
               num_returns: int = 1, max_retries: int = 3, flags: int = 0, depth: int = 0, backpressure: int = 0, extra: bytes = b"",
               ) -> list[ObjectRef]:
        """Returns num_returns references; for a streaming task one: its id (index 0) names the stream for next_item."""
    def submit_actor(self, actor_id: bytes, method: str, name: str, args: Payload | None, deps: Sequence[tuple[int, ObjectRef]],
                     num_returns: int = 1, max_retries: int = 0, flags: int = 0, group: str = "", backpressure: int = 0, extra: bytes = b"",
                     ) -> list[ObjectRef]:
        """Raises PendingCallsLimitExceeded when the handle's limit is reached."""
    def creation_task(self, actor_id: bytes, function_id: bytes, name: str, args: Payload | None, deps: Sequence[tuple[int, ObjectRef]],
                      extra: bytes = b"", restartable: bool = False) -> bytes:
        """The Task of kind 1 for CreateActorRequest; its references are held until the actor is dead."""
    def new_actor_id(self) -> bytes: ...
    def actor_handle_ref(self, actor_id: bytes) -> ObjectRef:
        """The reference that counts handles; made once by the creator, then travels inside pickled handles."""
    def attach_actor(self, actor_id: bytes, ordered: bool, max_pending: int = -1) -> None:
        """Idempotent; before the first submit_actor. Makes the engine ask for `actor:<hex>` events (see next_event: ("subscribe", channel))."""
    def locations(self, ref: ObjectRef[Any]) -> list[tuple[bytes, int, bool]]:
        """(node id, bytes, whether inline) of each place that this process knows; empty while the object is not ready."""
    def actor_update(self, actor_id: bytes, state: int, worker_id: bytes, node_id: bytes, address: str, incarnation: int, code: int, cause: str,
                     error: bytes = b"") -> None:
        """From an Actor event. DEAD fails what is queued and in flight: with `error` (a value of kind 3) if given, else one made by the
        function set with set_error_factory."""
    def node_address(self, node_id: bytes, address: str) -> None: ...
    # -- objects
    def private(self, source: Any) -> Any:
        """A writable buffer over the bytes of a read-only view into the arena: copy on write, so that nobody else sees what is written. None: copy instead."""
    def put(self, payload: Payload) -> ObjectRef: ...
    def get(self, refs: Sequence[ObjectRef], timeout: float = -1.0) -> list[Value]:
        """Waits for all; timeout < 0: for ever. Raises TimeoutError (plain). Interruptible by signals."""
    def wait(self, refs: Sequence[ObjectRef], num_returns: int, timeout: float = -1.0, fetch_local: bool = True) -> list[bool]:
        """One flag for each reference: ready. At most num_returns are True."""
    def split(self, refs: list[Any], num_returns: int, timeout: float = -1.0, fetch_local: bool = True) -> tuple[list[Any], list[Any]] | None:
        """wait() as (ready, rest), for references alone; None when something else is in the list. Raises ValueError for duplicates."""
    def ready(self, ref: ObjectRef) -> bool: ...
    def add_done_callback(self, ref: ObjectRef, fn: Any) -> None:
        """fn(ref) once ready, on the engine's callback thread."""
    def add_loop_callback(self, ref: ObjectRef[Any], loop: asyncio.AbstractEventLoop, fn: Any) -> None:
        """fn(ref) once ready, on that loop."""
    def cancel(self, task_id: bytes, force: bool, recursive: bool) -> None: ...
    def next_item(self, task_id: bytes, index: int, timeout: float = -1.0) -> ObjectRef | None:
        """Item `index` (from 1) of a stream, or None at its end; the reference of the final error comes as the last item."""
    def watch_stream(self, task_id: bytes, index: int, loop: asyncio.AbstractEventLoop, fn: Any) -> int:
        """fn(None) on that loop once next_item(task_id, index) would answer at once; a number for unwatch_stream()."""
    def unwatch_stream(self, task_id: bytes, token: int) -> None: ...
    def stream_state(self, task_id: bytes) -> tuple[int, int | None]:
        """(items received, their number once known)."""
    def stream_done(self, task_id: bytes) -> None:
        """The consumer has gone: cancel the producer, drop what was not taken."""
    def ref_from_binary(self, object_id: bytes, owner: bytes) -> ObjectRef:
        """For unpickling: a borrowed reference, registered as the rules say."""
    def system_calls(self) -> dict[str, int]:
        """Of this process's engine so far, by kind: sends, receives, polls (epoll_wait without sleeping), sleeps (with), parks and wakes (futex), kicks and
        drains (eventfd)."""
    def queued(self) -> int:
        """Tasks that wait for a worker."""
    def waits(self, task_id: bytes) -> dict[str, Any] | None:
        """Where a task of this process stands that has not ended, as TaskWaits of the raylet's contract; `arguments` are (object id, owner's worker and node)
        of the first that are not ready. None: it has ended, or is not of this process."""
    def unready_actors(self) -> dict[bytes, int]:
        """Of each actor that is not alive yet, or not again: how many calls of this process wait for it."""
    def stats(self) -> dict[str, Any]:
        """Counts of references, tasks by state, leases, connections, bytes: what tests and the state API read."""
    # -- control
    def call(self, method: str, payload: bytes, timeout: float = 30.0) -> bytes:
        """CALL to the raylet. Raises CallError(code, message), TimeoutError."""
    def call_async(self, method: str, payload: bytes) -> None:
        """Sent in order; an error comes as event ("call_failed", method, code, text)."""
    def next_event(self) -> tuple[Any, ...] | None:
        """For the control thread: ("event", channel, payload) | ("subscribe", channel) | ("connect", token, address, target worker id) |
        ("lease_begin", lease_id, context) | ("exit", force, reason) | ("actor_out_of_scope", actor_id) | ("raylet_lost", why) |
        ("call_failed", ...) | ("node_address", node_id): look it up and call node_address() | ("put_off", seconds, task's name, cause): its node was
        short of memory. None after close()."""
    def adopt_connection(self, token: int, fd: int, error: str = "", ended: bool = False) -> None:
        """The answer to ("connect", ...): an authenticated socket to that worker, or why there is none. `ended`: its node says that it is not there (any more);
        else it is dialled again, for 10 s at least."""
    def set_error_factory(self, fn: Any) -> None:
        """fn(code: int, message: str, task_id: bytes, task_name: str, actor_id: bytes) -> bytes: a value of kind 3 for failures that the
        engine itself finds (worker died, lease refused, cancelled, owner died). Called with the GIL from the thread that gets."""
    # -- executing
    @property
    def nudges(self) -> int: ...
    def nudge(self) -> None:
        """Whoever waits in next_task() with the former `nudges` gets None."""
    def next_task(self, group: str = "", timeout: float = -1.0, nudges: int = -1) -> Task | None:
        """The next one to run; None at timeout, at close, or when `nudges` are no longer what they were. ACTOR_CREATE comes here too."""
    def take_tasks(self, group: str = "") -> list[Task]:
        """What is queued now, without waiting: for an event loop."""
    def set_ordered(self, ordered: bool) -> None:
        """Whether actor calls run in the order of their arrival. Before the first call."""
    def set_current(self, task: Task | None) -> None:
        """For an event loop, whose calls interleave on one thread: the task that runs from here on."""
    def lease_context(self, lease_id: int, timeout: float = 5.0) -> bytes:
        """The LeaseContext under which a task came."""
    def begin(self, task: Task) -> bool:
        """Marks it started (control page). False: it was cancelled or handed back meanwhile, do not run it."""
    def reply(self, task: Task, status: int, results: Sequence[Payload], duration_us: int = 0, items: int = 0) -> None:
        """Ends a task: results (status 0) or one error payload. For an actor's creation: ACTOR_CREATED."""
    def answer_mark(self, task: Task) -> tuple[int, int]:
        """Where the answer of a call went, for `arrived`."""
    def arrived(self, caller: bytes, connection: int, number: int) -> bool:
        """Whether that answer is certain to have reached its caller (worker id + node id), or the caller is dead."""
    def by_value(self, task: Task) -> bytes:
        """A creation's Task with its arguments inside it, whoever owned them; empty when they were inside it before."""
    def item(self, task: Task, index: int, payload: Payload) -> None:
        """One item of a stream; waits while `backpressure` items are unconsumed; raises TaskCancelled... when cancelled meanwhile."""
    def lent(self) -> int:
        """How many objects of this process others hold."""
    def leave(self) -> None:
        """Tells the raylet that this worker takes no more tasks, and ends when nobody holds its objects."""
    def cancel_children(self, task_id: bytes) -> None:
        """Cancels what a task that runs here has started, recursively."""
    def keep_no_history(self) -> None:
        """From now on nothing that this process runs is recorded."""
    def running(self) -> list[bytes]: ...
    def set_cancel_handler(self, fn: Any) -> None:
        """fn(task_id: bytes, force: bool) for a CANCEL that hits a started task; called on the control thread."""
    def set_last_words(self, text: str) -> None: ...

class CallError(Exception):
    code: int
    message: str

class ArenaFull(Exception):
    """The store has no room, and none came within its time."""

class DiskFull(ArenaFull):
    """What would make room in the store fits no disk."""

class TaskCancelled(Exception):
    """Raised in a producer whose stream was cancelled."""
