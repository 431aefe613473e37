# distutils: language = c++
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The core worker's shell: sockets, threads, the arena and Python objects around the protocol.

One mutex guards the protocol. It is taken for microseconds, with or without the GIL, and nothing that could run Python code (an allocation may
run the collector, and that a reference's end) happens while it is held.

Polling is a token: a thread that waits serves the sockets itself; when nobody waits, a background thread does, a millisecond later.
"""
import threading

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from cython.operator cimport dereference as deref, preincrement as inc
from libc.string cimport memcpy, memset
from posix.unistd cimport close as close_fd, getpid
from shoal._core.protocol cimport *
from shoal._core.state cimport *
from shoal._core.std cimport deque, shared_ptr, string, unordered_map, vector

import asyncio
import concurrent.futures
import os
import sys

cdef extern from "sockets.h" namespace "shoal" nogil:
    int unix_connect(const char*)
    int unix_listen(const char*)
    int unix_accept(int)
    long send_some(int, const char*, size_t)
    long receive_some(int, char*, size_t, vector[int]&)
    long receive_bytes(int, char*, size_t)
    int watch(int, int, uint64_t, bint, bint)
    cdef cppclass Ready:
        uint64_t key(int)
        uint32_t what(int)
    int wait_ready(int, Ready&, int)
    void kick(int)
    void drain(int)
    void* map_control(int, size_t)
cdef extern from "sockets.h" nogil:
    int EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP
    int epoll_create1(int)
    int eventfd(unsigned int, int)
    int EPOLL_CLOEXEC, EFD_CLOEXEC, EFD_NONBLOCK
    int EAGAIN, EINTR

cdef extern from "shoal_arena.h" nogil:
    ctypedef struct shoal_loc_t:
        uint32_t slot
        uint32_t generation
    ctypedef struct shoal_arena_t:
        pass
    int SHOAL_OK, SHOAL_NEED_EXTENT, SHOAL_GONE
    int shoal_arena_attach(int, uint32_t, shoal_arena_t**, char*, size_t)
    int shoal_arena_create(shoal_arena_t*, uint64_t, shoal_loc_t*, void**)
    int shoal_arena_add_extent(shoal_arena_t*, uint32_t)
    int shoal_arena_seal(shoal_arena_t*, shoal_loc_t)
    int shoal_arena_get(shoal_arena_t*, shoal_loc_t, const void**, uint64_t*)
    int shoal_arena_unpin(shoal_arena_t*, shoal_loc_t)
    int shoal_arena_free(shoal_arena_t*, shoal_loc_t)
    int shoal_arena_abort(shoal_arena_t*, shoal_loc_t)
    void shoal_arena_fork_child(shoal_arena_t*)
    void shoal_arena_detach(shoal_arena_t*)

from shoal._core import protocol as _protocol

if _protocol.records() != layout():
    raise ImportError("shoal._core.engine and shoal._core.protocol were built from different sources: build shoal-core anew")

KIND_PICKLE = 0
KIND_BYTES = 1
KIND_NONE = 2
KIND_ERROR = 3
TASK_STREAMING = 1
TASK_RETRY_EXCEPTIONS = 2
REPLY_OK = 0
REPLY_RAISED = 1
REPLY_CANCELLED = 2
REPLY_LEAVING = 3
REPLY_REJECTED = 4
REPLY_RAISED_RETRY = 5

cdef enum:
    SCRATCH_BYTES = 256 << 10
    SPIN_NS = 50_000              # a sleeping virtual CPU takes longer than this to wake
    TOKEN_NS = 1_000_000          # how long the token stays with whoever waited last
    SLICE_NS = 100_000_000        # a waiting thread looks for signals this often
    TICK_NS = 5_000_000           # timers are looked at no more often
    LAZY_BYTES = 16 << 10         # frames to a busy peer gather up to this
    LOOP_GRACE_NS = 10_000_000    # an event loop that has not polled for this long is busy: the background thread serves
    ARGS_AS_OBJECT = 0xFFFF       # position of a dependency that is the whole value of (args, kwargs)
    KEY_KICK = 1
    KEY_LISTENER = 2

cdef enum Poller:
    NOBODY = 0
    USER = 1
    BACKGROUND = 2

cdef enum Served:
    TIMED_OUT = 0
    FIRED = 1
    LOOK = 2
    ENDED = 3

cdef uint64_t STORE_RETURN_NS = 5_000_000_000ULL  # a restarted store is back within a second
cdef int64_t IDLE_SLICE_NS = 5_000_000_000LL  # an idle worker is woken by its sockets and by signals; this is for a signal that came just before it slept
cdef uint64_t FOREVER = 0xFFFFFFFFFFFFFFFFULL
cdef Id16 NIL
cdef string EMPTY


class CallError(Exception):
    """A CALL that the raylet or the control store refused. `code` is a gRPC status code."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code
        self.message = message


class TaskCancelled(Exception):
    """Raised in a producer whose stream was cancelled."""


cdef bytes id_bytes(const Id16& id):
    cdef char raw[16]
    store_id(raw, id)
    return PyBytes_FromStringAndSize(raw, 16)


cdef bytes object_id_bytes(const ObjectId& id):
    cdef char raw[20]
    store_object_id(raw, id)
    return PyBytes_FromStringAndSize(raw, 20)


cdef Id16 to_id(bytes raw) except *:
    if PyBytes_GET_SIZE(raw) != 16:
        raise ValueError(f"an id of 16 bytes is needed, got {len(raw)}")
    return load_id(PyBytes_AS_STRING(raw))


cdef bytes to_bytes(const string& s):
    return PyBytes_FromStringAndSize((<string*> &s).data(), (<string*> &s).size())


cdef str to_str(const string& s):
    return to_bytes(s).decode("utf-8", "replace")


cdef string from_bytes(bytes raw):
    return string(PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw))


cdef string from_str(str text) except *:
    cdef Py_ssize_t n
    cdef const char* p = PyUnicode_AsUTF8AndSize(text, &n)
    return string(p, n)


# -- values -----------------------------------------------------------------------------------------------------------------------

cdef class Payload:
    """A serialised value before it has a place."""

    cdef readonly uint8_t kind
    cdef readonly bytes inband
    cdef readonly object buffers, refs
    cdef readonly uint64_t nbytes

    def __init__(self, uint8_t kind, bytes inband, buffers=(), refs=()):
        cdef uint64_t at
        self.kind = kind
        self.inband = inband
        self.buffers = [memoryview(b).cast("B") if not isinstance(b, bytes) else b for b in buffers] if buffers else ()
        self.refs = refs
        at = sizeof(ValueHeader) + PyBytes_GET_SIZE(inband)
        if self.buffers:
            at += 16 * len(self.buffers)
            for b in self.buffers:
                at = ((at + 63) & ~63ULL) + len(b)
        self.nbytes = at

    def to_bytes(self):
        cdef bytes out = PyBytes_FromStringAndSize(NULL, self.nbytes)
        self.write(PyBytes_AS_STRING(out))
        return out

    cdef int write(self, char* to) except -1:
        """Writes the value; `to` has room for nbytes. Copies large buffers without the GIL."""
        cdef ValueHeader header
        cdef uint64_t at, offset
        cdef uint64_t n = PyBytes_GET_SIZE(self.inband)
        cdef Py_buffer view
        cdef char* table = to + sizeof(ValueHeader)
        memset(&header, 0, sizeof(header))
        header.kind = self.kind
        header.n_buffers = <uint32_t> len(self.buffers)
        header.inband_size = n
        memcpy(to, &header, sizeof(header))
        at = sizeof(ValueHeader) + 16 * <uint64_t> header.n_buffers
        memcpy(to + at, PyBytes_AS_STRING(self.inband), n)
        at += n
        for b in self.buffers:
            PyObject_GetBuffer(b, &view, PyBUF_SIMPLE)
            offset = (at + 63) & ~63ULL
            memset(to + at, 0, offset - at)
            at = view.len
            memcpy(table, &offset, 8)
            memcpy(table + 8, &at, 8)
            table += 16
            if view.len > 65536:
                with nogil:
                    memcpy(to + offset, view.buf, view.len)
            else:
                memcpy(to + offset, view.buf, view.len)
            at = offset + view.len
            PyBuffer_Release(&view)
        return 0

    cdef int append_to(self, string& out) except -1:
        cdef size_t at = out.size()
        out.resize(at + self.nbytes)
        self.write(out.data() + at)
        return 0


cdef class Holder:
    """Keeps the bytes behind a view alive: a shared inline value, or a pin in the arena."""

    cdef Bytes value
    cdef Engine engine
    cdef shoal_loc_t place
    cdef bint pinned

    def __dealloc__(self):
        if self.pinned and self.engine is not None and self.engine.arena != NULL and not self.engine.forked:
            shoal_arena_unpin(self.engine.arena, self.place)


cdef class View:
    """A read-only buffer into a value. NumPy arrays, Arrow buffers and memoryviews keep it, and with it the value."""

    cdef Holder holder
    cdef const char* data
    cdef Py_ssize_t size

    def __getbuffer__(self, Py_buffer* view, int flags):
        if flags & PyBUF_WRITABLE:
            raise BufferError("an object in the store is shared and read-only: copy it to change it")
        PyBuffer_FillInfo(view, self, <void*> self.data, self.size, 1, flags)

    def __len__(self):
        return self.size


cdef class Value:
    cdef readonly uint8_t kind
    cdef readonly object inband
    cdef readonly list buffers


cdef Value parse_value(Holder holder, const char* data, uint64_t size):
    """A Value over bytes that `holder` keeps alive."""
    cdef Value value = Value.__new__(Value)
    cdef ValueHeader header
    cdef uint64_t at, offset, length
    cdef uint32_t i
    cdef View view
    if size < sizeof(ValueHeader):
        raise ValueError(f"a value of {size} bytes is too short")
    memcpy(&header, data, sizeof(header))
    value.kind = header.kind
    at = sizeof(ValueHeader) + 16 * <uint64_t> header.n_buffers
    if at + header.inband_size > size:
        raise ValueError("a value's in-band part reaches past its end")
    value.inband = PyBytes_FromStringAndSize(data + at, header.inband_size)
    value.buffers = []
    for i in range(header.n_buffers):
        memcpy(&offset, data + sizeof(ValueHeader) + 16 * i, 8)
        memcpy(&length, data + sizeof(ValueHeader) + 16 * i + 8, 8)
        if offset + length > size:
            raise ValueError("a value's buffer reaches past its end")
        view = View.__new__(View)
        view.holder = holder
        view.data = data + offset
        view.size = length
        value.buffers.append(view)
    return value


cdef class ObjectRef:
    """A counted reference to an object: a value that may not exist yet, perhaps in another process."""

    cdef ObjectId id
    cdef Owner who
    cdef Engine engine
    # Safety: an entry lives as long as it is counted, and this reference is one of its counts.
    cdef Entry* entry
    cdef object __weakref__

    def __init__(self):
        raise TypeError("an ObjectRef comes from .remote() or put()")

    def __dealloc__(self):
        if self.engine is not None:
            self.engine.release(self.id)

    def binary(self):
        return object_id_bytes(self.id)

    def hex(self):
        return object_id_bytes(self.id).hex()

    def task_id(self):
        return id_bytes(self.id.task)

    def owner(self):
        return id_bytes(self.who.worker) + id_bytes(self.who.node)

    def job_id(self):
        from shoal._ids import JobID

        return JobID(self.engine.job_id)

    def is_nil(self):
        return False

    def __hash__(self):
        return <Py_hash_t> ((self.id.task.low ^ (self.id.task.high * 0x9e3779b97f4a7c15ULL) ^ (<uint64_t> self.id.index << 40)) >> 2)

    def __eq__(self, other):
        return isinstance(other, ObjectRef) and (<ObjectRef> other).id == self.id

    def __repr__(self):
        return f"ObjectRef({self.hex()})"

    @classmethod
    def __class_getitem__(cls, item):
        import types

        return types.GenericAlias(cls, item)

    def __reduce__(self):
        from shoal import _serialization

        _serialization.record_ref(self)
        return _serialization.rebuild_ref, (self.binary(), self.owner())

    def future(self):
        """A concurrent.futures.Future of the value."""
        from shoal import _serialization

        future = concurrent.futures.Future()

        def settle(ref):
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(_serialization.load(self.engine.get([ref])[0]))
            except BaseException as error:
                future.set_exception(error)

        self.engine.add_done_callback(self, settle)
        return future

    def as_future(self, _internal=False):
        """An asyncio.Future of the value, on the running loop."""
        from shoal import _serialization

        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def deliver(ref):
            if future.done():
                return
            try:
                future.set_result(_serialization.load(self.engine.get([ref])[0]))
            except BaseException as error:
                future.set_exception(error if not isinstance(error, StopIteration) else RuntimeError(str(error)))

        self.engine.add_loop_callback(self, loop, deliver)
        return future

    def __await__(self):
        return self.as_future().__await__()


cdef class Task:
    """What an executor got to run."""

    cdef shared_ptr[RunTask] run
    cdef Engine engine
    cdef object args_value, deps_list

    @property
    def task_id(self):
        return id_bytes(self.run.get().id)

    @property
    def kind(self):
        return self.run.get().kind

    @property
    def flags(self):
        return self.run.get().flags

    @property
    def num_returns(self):
        return self.run.get().num_returns

    @property
    def attempt(self):
        return self.run.get().attempt

    @property
    def lease_id(self):
        return self.run.get().lease_id

    @property
    def job_id(self):
        return PyBytes_FromStringAndSize(<char*> &self.run.get().job, 4)

    @property
    def function_id(self):
        return id_bytes(self.run.get().function)

    @property
    def actor_id(self):
        return id_bytes(self.run.get().actor)

    @property
    def depth(self):
        return self.run.get().depth

    @property
    def backpressure(self):
        return self.run.get().backpressure

    @property
    def name(self):
        return to_str(self.run.get().name)

    @property
    def method(self):
        return to_str(self.run.get().method)

    @property
    def group(self):
        return to_str(self.run.get().group)

    @property
    def extra(self):
        return to_bytes(self.run.get().extra)

    @property
    def caller(self):
        return id_bytes(self.run.get().caller.worker) + id_bytes(self.run.get().caller.node)

    def cancelled(self):
        return self.run.get().cancelled

    cdef tuple load(self):
        """(args value, deps): what the dependencies hold is read once, before the references in it could be let go."""
        cdef RunTask* t = self.run.get()
        cdef size_t i
        cdef RunDependency dep
        cdef Holder holder
        cdef object whole = None
        cdef list deps = []
        if self.deps_list is not None:
            return self.args_value, self.deps_list
        for i in range(t.deps.size()):
            dep = t.deps[i]
            if dep.entry:
                value = self.engine.value_of(dep.id)
            else:
                holder = Holder.__new__(Holder)
                holder.value = dep.value
                value = parse_value(holder, dep.value.get().data(), dep.value.get().size())
            if dep.position == ARGS_AS_OBJECT:
                whole = value
            else:
                deps.append((dep.position, value))
        if whole is None and not t.args.empty():
            holder = Holder.__new__(Holder)
            holder.value = make_bytes(t.args.data(), t.args.size())
            whole = parse_value(holder, holder.value.get().data(), holder.value.get().size())
        self.args_value = whole
        self.deps_list = deps
        return whole, deps

    def args(self):
        return self.load()[0]

    def deps(self):
        return self.load()[1]


# -- the engine -------------------------------------------------------------------------------------------------------------------

cdef class Engine:
    cdef Protocol p
    cdef Mutex* mutex
    cdef readonly str node_dir
    cdef readonly uint64_t inline_limit
    cdef readonly bint forked, closed
    cdef shoal_arena_t* arena
    cdef ControlRecord* record
    cdef int epoll, kicker, listener
    cdef string directory
    cdef char* scratch
    cdef Ready* ready_user
    cdef Ready* ready_background
    # the polling token
    cdef Poller poller
    cdef uint64_t poll_since, released, timers_at
    cdef vector[Waiter*] parked
    cdef int32_t background_word
    cdef bint background_deep
    cdef object background
    cdef uint64_t spin_ns, spin_tries
    cdef bint loop_mode
    cdef uint64_t loop_polled
    # joining
    cdef Waiter* registered
    cdef bytes registered_payload
    cdef string registered_raw
    cdef vector[int] registered_fds
    cdef vector[PeerPointer] awaiting_address
    # Python's side
    cdef object error_factory, cancel_handler, callback_thread
    cdef dict done_callbacks
    cdef uint64_t callback_counter, marks
    cdef uint32_t blocked
    cdef object __weakref__

    def __cinit__(self):
        self.mutex = new Mutex()
        self.ready_user = new Ready()
        self.ready_background = new Ready()
        self.scratch = <char*> scratch_new(SCRATCH_BYTES)
        self.arena = NULL
        self.record = NULL
        self.epoll = self.kicker = self.listener = -1

    def __init__(self, *, bytes worker_id, str node_dir, int kind, uint64_t inline_limit=100 * 1024):
        cdef int fd
        self.p = Protocol()
        self.p.me.worker = to_id(worker_id)
        self.p.kind = <uint8_t> kind
        self.p.pid = getpid()
        self.p.python_major = sys.version_info[0]
        self.p.python_minor = sys.version_info[1]
        self.p.task_prefix = self.p.me.worker.low ^ self.p.me.worker.high
        self.p.now = now_ns()
        self.node_dir = node_dir
        self.inline_limit = inline_limit
        self.directory = from_bytes(os.fsencode(node_dir))
        self.done_callbacks = {}
        self.spin_ns = SPIN_NS
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        self.kicker = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        path = os.path.join(node_dir, "w", worker_id.hex() + ".sock")
        fd = unix_listen(os.fsencode(path))
        if fd < 0:
            raise OSError(-fd, f"cannot listen on {path}: {os.strerror(-fd)}")
        os.chmod(path, 0o600)
        self.listener = fd
        watch(self.epoll, self.kicker, KEY_KICK, False, True)
        watch(self.epoll, self.listener, KEY_LISTENER, False, True)

    def __dealloc__(self):
        if self.mutex != NULL:
            del self.mutex
            del self.ready_user
            del self.ready_background
            scratch_free(self.scratch)

    @property
    def worker_id(self):
        return id_bytes(self.p.me.worker)

    @property
    def node_id(self):
        return id_bytes(self.p.me.node)

    @property
    def job_id(self):
        return PyBytes_FromStringAndSize(<char*> &self.p.job, 4)

    @job_id.setter
    def job_id(self, bytes value):
        memcpy(&self.p.job, PyBytes_AS_STRING(value), 4)

    def connect(self, bytes register, double timeout):
        """Joins the raylet; returns its answer."""
        from shoal_raylet.v1 import raylet_pb2

        cdef Peer* peer
        cdef size_t start
        cdef Waiter w
        cdef bytes path = os.fsencode(os.path.join(self.node_dir, "raylet.sock"))
        cdef int fd = unix_connect(path)
        cdef char problem[256]
        if fd < 0:
            raise ConnectionError(f"cannot reach the raylet at {path.decode()}: {os.strerror(-fd)}")
        self.mutex.lock()
        peer = self.p.new_peer()
        peer.kind = 2
        peer.identified = True
        self.p.raylet = peer
        self.opened(peer, fd)
        self.p.hello(peer)
        start = begin_frame(peer[0], REGISTER)
        peer.out.append(PyBytes_AS_STRING(register), PyBytes_GET_SIZE(register))
        self.p.done(peer, start)
        self.registered = &w
        self.mutex.unlock()
        try:
            self.wait_for(&w, timeout, "the raylet's answer to REGISTER")
        finally:
            self.registered = NULL
        answer = raylet_pb2.Registered.FromString(to_bytes(self.registered_raw))
        if answer.error:
            raise ConnectionError(answer.error)
        self.p.me.node = to_id(answer.node_id)
        if answer.job_id:
            self.job_id = answer.job_id
        if self.registered_fds.size() >= 1:
            if shoal_arena_attach(self.registered_fds[0], answer.store_client, &self.arena, problem, 256) != SHOAL_OK:
                raise ConnectionError(f"cannot map the object store's arena: {problem.decode('utf-8', 'replace')}")
            close_fd(self.registered_fds[0])
        if self.registered_fds.size() >= 2:
            self.record = <ControlRecord*> map_control(self.registered_fds[1], 256 * <size_t> answer.control_record)
            close_fd(self.registered_fds[1])
            if self.record != NULL:
                memset(self.record, 0, sizeof(ControlRecord))
                self.record.pid = self.p.pid
                self.record.magic = CONTROL_MAGIC
        if self.arena != NULL:
            self.mutex.lock()
            self.connect_store()
            self.mutex.unlock()
        self.background = threading.Thread(target=self._background, name="shoal-io", daemon=True)
        self.background.start()
        return to_bytes(self.registered_raw)

    def close(self):
        """Ends every connection. Waiting calls end with an error."""
        cdef size_t i
        cdef Peer* peer
        cdef int fd
        if self.closed or self.forked:
            return
        self.closed = True
        self.mutex.lock()
        self.p.now = now_ns()
        self.flush()
        self.p.raylet_lost()
        self.p.closing = True
        self.wake_all()
        kick(self.kicker)
        self.background_deep = False
        store_release(&self.background_word, 1)
        futex_wake(&self.background_word, 1)
        self.mutex.unlock()
        if self.background is not None and self.background is not threading.current_thread():
            self.background.join(5)
        self.mutex.lock()
        for i in range(self.p.all_peers.size()):
            peer = self.p.all_peers[i]
            if peer.fd >= 0:
                fd = peer.fd
                peer.fd = -1
                peer.phase = CLOSED
                close_fd(fd)
        self.p.store = NULL
        self.mutex.unlock()
        for fd in (self.listener, self.epoll, self.kicker):
            if fd >= 0:
                close_fd(fd)
        self.listener = self.epoll = self.kicker = -1
        try:
            os.unlink(os.path.join(self.node_dir, "w", self.worker_id.hex() + ".sock"))
        except OSError:
            pass  # the node's directory went first

    def fork_child(self):
        """In a forked child: close our sockets there, and let every release be a no-op."""
        cdef size_t i
        self.forked = True
        if self.arena != NULL:
            shoal_arena_fork_child(self.arena)
        for i in range(self.p.all_peers.size()):
            if self.p.all_peers[i].fd >= 0:
                close_fd(self.p.all_peers[i].fd)
                self.p.all_peers[i].fd = -1
        for fd in (self.listener, self.epoll, self.kicker):
            if fd >= 0:
                close_fd(fd)
        self.listener = self.epoll = self.kicker = -1

    # -- sockets ----------------------------------------------------------------------------------------------------------------

    cdef void opened(self, Peer* peer, int fd) noexcept nogil:
        peer.fd = fd
        peer.phase = OPEN
        watch(self.epoll, fd, <uint64_t> peer, False, True)
        self.p.touch(peer)

    cdef void shut(self, Peer* peer) noexcept nogil:
        cdef size_t i
        if peer.fd >= 0:
            close_fd(peer.fd)
            peer.fd = -1
        for i in range(peer.descriptors.size()):
            close_fd(peer.descriptors[i])
        peer.descriptors.clear()
        peer.in_.clear()
        self.p.on_closed(peer)

    cdef void connect_store(self) noexcept nogil:
        cdef string path = self.directory + string(b"/store.sock")
        cdef int fd = unix_connect(path.c_str())
        cdef Peer* peer
        if fd < 0:
            return
        peer = self.p.new_peer()
        peer.kind = 3
        peer.identified = True
        self.p.store = peer
        self.opened(peer, fd)
        self.p.hello(peer)
        self.p.store_found()

    cdef void connect_peers(self) noexcept nogil:
        cdef vector[PeerPointer] wanted
        cdef Peer* peer
        cdef string path
        cdef char text[32]
        cdef int fd
        cdef size_t i, k
        wanted.swap(self.p.to_connect)
        for i in range(wanted.size()):
            peer = wanted[i]
            if peer.phase != UNCONNECTED:
                continue
            if peer.remote:
                address = self.p.addresses.find(peer.who.node)
                if address == self.p.addresses.end():
                    self.awaiting_address.push_back(peer)
                    self.p.emit(EVENT_NODE_ADDRESS, 0, peer.who.node, EMPTY, EMPTY)
                else:
                    peer.phase = CONNECTING
                    self.p.emit(EVENT_CONNECT, <uint64_t> peer, peer.who.worker, deref(address).second, EMPTY)
                continue
            path = self.directory + string(b"/w/")
            append_hex(path, peer.who.worker)
            path = path + string(b".sock")
            fd = unix_connect(path.c_str())
            if fd < 0:
                self.p.on_closed(peer)
            else:
                self.opened(peer, fd)

    cdef void write_peer(self, Peer* peer) noexcept nogil:
        cdef size_t size, allowed
        cdef long n
        if peer.phase == CLOSED:
            peer.out.clear()
            peer.out_start = 0
            return
        if peer.phase != OPEN:
            return
        self.p.flush_deltas(peer)
        while True:
            size = peer.out.size() - peer.out_start
            if not size:
                break
            # Invariant: never more than the peer's credit unacknowledged.
            if peer.out_offset + peer.out_start >= peer.acked_offset + peer.credit_bytes:
                break
            allowed = peer.acked_offset + peer.credit_bytes - peer.out_offset - peer.out_start
            n = send_some(peer.fd, peer.out.data() + peer.out_start, size if size < allowed else allowed)
            if n < 0:
                if n == -EAGAIN:
                    if not peer.want_write:
                        peer.want_write = True
                        watch(self.epoll, peer.fd, <uint64_t> peer, True, False)
                    return
                if n == -EINTR:
                    continue
                self.shut(peer)
                return
            peer.out_start += n
        if peer.out_start == peer.out.size():
            peer.out_offset += peer.out_start
            peer.out.clear()
            peer.out_start = 0
        elif peer.out_start > (4 << 20):
            peer.out.erase(0, peer.out_start)
            peer.out_offset += peer.out_start
            peer.out_start = 0
        if peer.want_write and peer.out.empty():
            peer.want_write = False
            watch(self.epoll, peer.fd, <uint64_t> peer, False, False)

    cdef void flush(self) noexcept nogil:
        cdef size_t i = 0
        cdef Peer* peer
        while i < self.p.dirty.size():  # writing may make more
            peer = self.p.dirty[i]
            peer.dirty = False
            self.write_peer(peer)
            i += 1
        self.p.dirty.clear()

    cdef void read_peer(self, Peer* peer) noexcept nogil:
        cdef long n
        cdef size_t used
        cdef bint more = True
        while more and peer.fd >= 0:
            if peer == self.p.raylet:
                n = receive_some(peer.fd, self.scratch, SCRATCH_BYTES, peer.descriptors)
            else:
                n = receive_bytes(peer.fd, self.scratch, SCRATCH_BYTES)
            if n <= 0:
                if n == -EAGAIN:
                    return
                if n == -EINTR:
                    continue
                self.shut(peer)
                return
            more = n == SCRATCH_BYTES
            if peer.in_.empty():
                used = self.parse(peer, self.scratch, n)
                if used < <size_t> n and peer.fd >= 0:
                    peer.in_.append(self.scratch + used, n - used)
            else:
                peer.in_.append(self.scratch, n)
                used = self.parse(peer, peer.in_.data(), peer.in_.size())
                if used:
                    peer.in_.erase(0, used)

    cdef size_t parse(self, Peer* peer, const char* data, size_t size) noexcept nogil:
        """Takes whole frames off `data`; returns how many bytes they were."""
        cdef size_t used = 0
        cdef uint32_t length, credit
        cdef uint64_t sequence, acknowledgement
        cdef uint8_t type
        cdef const char* h
        cdef size_t start
        while size - used >= HEADER_SIZE and peer.fd >= 0:
            h = data + used
            memcpy(&length, h, 4)
            if <uint8_t> h[6] != WIRE_VERSION or length > MAX_PAYLOAD:
                self.shut(peer)
                return size
            if size - used < HEADER_SIZE + length:
                if peer.in_.size() and length > (1 << 20):
                    peer.in_.reserve(HEADER_SIZE + length + SCRATCH_BYTES)
                break
            type = <uint8_t> h[4]
            memcpy(&credit, h + 12, 4)
            memcpy(&sequence, h + 16, 8)
            memcpy(&acknowledgement, h + 24, 8)
            used += HEADER_SIZE + length
            peer.credit_bytes = <uint64_t> credit << 10
            self.p.on_acknowledged(peer, acknowledgement)
            if sequence:
                if sequence <= peer.sequence_in:
                    continue
                peer.sequence_in = sequence
            peer.received_since_ack += HEADER_SIZE + length
            if type == REGISTERED or type == ROUTED:
                if peer == self.p.raylet:
                    self.on_descriptors(peer, type, h + HEADER_SIZE, length)
            elif self.p.on_frame(peer, type, h + HEADER_SIZE, length) < 0:
                self.shut(peer)
                return size
            if peer.received_since_ack >= ACK_EVERY_BYTES:
                start = begin_frame(peer[0], ACK)
                self.p.done(peer, start)
        return used

    cdef void on_descriptors(self, Peer* peer, uint8_t type, const char* data, size_t size) noexcept nogil:
        cdef Peer* routed
        cdef int fd
        if type == REGISTERED:
            self.registered_raw = string(data, size)
            self.registered_fds.swap(peer.descriptors)
            if self.registered != NULL:
                self.p.fire(self.registered)
        elif not peer.descriptors.empty():
            fd = peer.descriptors[0]
            peer.descriptors.clear()
            routed = self.p.new_peer()
            routed.remote = True
            self.opened(routed, set_nonblocking(fd))
            self.p.hello(routed)

    cdef void accept_peers(self) noexcept nogil:
        cdef int fd
        cdef Peer* peer
        while True:
            fd = unix_accept(self.listener)
            if fd == -EAGAIN or (fd < 0 and fd != -EINTR):
                return
            if fd < 0:
                continue
            peer = self.p.new_peer()
            self.opened(peer, fd)
            self.p.hello(peer)

    cdef void handle(self, Ready* ready, int n) noexcept nogil:
        """What epoll told. The raylet first: what it lends must be known before tasks under it come."""
        cdef int i
        cdef uint64_t key
        cdef Peer* peer
        self.p.now = now_ns()
        for i in range(n):
            if ready.key(i) == <uint64_t> self.p.raylet:
                self.read_peer(self.p.raylet)
                break
        for i in range(n):
            key = ready.key(i)
            if key == KEY_KICK:
                drain(self.kicker)
                continue
            if key == KEY_LISTENER:
                self.accept_peers()
                continue
            peer = <Peer*> key
            if peer.fd < 0:
                continue
            if ready.what(i) & EPOLLOUT:
                peer.want_write = True
                self.p.touch(peer)
            if peer != self.p.raylet and ready.what(i) & (EPOLLIN | EPOLLERR | EPOLLHUP):
                self.read_peer(peer)
        self.after()

    cdef void after(self) noexcept nogil:
        """The effects of whatever the protocol was just told."""
        cdef size_t i
        cdef Waiter* w
        cdef shoal_loc_t place
        if self.p.now - self.timers_at >= TICK_NS:
            self.timers_at = self.p.now
            self.p.on_timer()
            if self.p.store == NULL and self.arena != NULL and not self.p.closing:
                self.connect_store()
        if not self.p.to_connect.empty():
            self.connect_peers()
        if not self.p.arena_frees.empty():
            for i in range(self.p.arena_frees.size()):
                place.slot = self.p.arena_frees[i].slot
                place.generation = self.p.arena_frees[i].generation
                if self.arena != NULL:
                    shoal_arena_free(self.arena, place)
            self.p.arena_frees.clear()
        if not self.p.dirty.empty():
            self.flush()
        self.wake_all()

    cdef void wake_all(self) noexcept nogil:
        cdef size_t i
        for i in range(self.p.woken.size()):
            if self.p.woken[i].parked:
                futex_wake(&self.p.woken[i].wake, 1)
        self.p.woken.clear()

    cdef void soon(self, Peer* peer, size_t ahead) noexcept nogil:
        """After an own frame: at once to a peer that may be idle; to a busy one in batches, a millisecond late at most."""
        self.p.now = now_ns()
        if ahead <= 2 or peer == NULL or peer.out.size() - peer.out_start >= LAZY_BYTES or not self.p.to_connect.empty():
            self.after()
        else:
            self.wake_all()
            self.stir()

    cdef void stir(self) noexcept nogil:
        """Makes sure that the background thread looks within a millisecond."""
        if self.poller == BACKGROUND:
            self.released = now_ns()
            kick(self.kicker)
            self.poller = NOBODY
        elif self.background_deep and self.poller == NOBODY:
            self.background_deep = False
            store_release(&self.background_word, 1)
            futex_wake(&self.background_word, 1)

    # -- the polling token ------------------------------------------------------------------------------------------------------

    cdef int serve(self, Waiter* w, uint64_t deadline, int64_t slice_ns) noexcept nogil:
        """Waits until w fires, serving the sockets meanwhile. The mutex is held at entry and at exit."""
        cdef uint64_t now
        cdef int r
        cdef int64_t left
        cdef int result
        while True:
            if w.fired:
                return FIRED
            if self.p.closing:
                return ENDED
            now = now_ns()
            if now >= deadline:
                return TIMED_OUT
            if self.poller == USER:
                store_release(&w.wake, 0)
                w.parked = True
                self.parked.push_back(w)
                left = slice_ns if deadline - now > <uint64_t> slice_ns else <int64_t> (deadline - now)
                self.mutex.unlock()
                r = futex_wait(&w.wake, 0, left)
                self.mutex.lock()
                w.parked = False
                forget_waiter_in(self.parked, w)
                if not w.fired and self.poller == USER:
                    return LOOK
                continue
            if self.poller == BACKGROUND:
                kick(self.kicker)
            self.poller = USER
            self.poll_since = now
            result = self.poll_until(w, deadline, slice_ns)
            self.poller = NOBODY
            self.released = now_ns()
            if not self.parked.empty():
                store_release(&self.parked[0].wake, 1)
                futex_wake(&self.parked[0].wake, 1)
            elif self.background_deep:
                self.background_deep = False
                store_release(&self.background_word, 1)
                futex_wake(&self.background_word, 1)
            return result

    cdef int poll_until(self, Waiter* w, uint64_t deadline, int64_t slice_ns) noexcept nogil:
        cdef uint64_t now, spin_end, started
        cdef int64_t timeout, timer
        cdef int n
        cdef bint spun = False
        self.p.now = now_ns()
        self.after()
        while True:
            if w.fired:
                return FIRED
            if self.p.closing:
                return ENDED
            now = now_ns()
            if now >= deadline:
                return TIMED_OUT
            n = 0
            if not spun:
                spun = True
                self.spin_tries += 1
                started = now
                spin_end = now + (self.spin_ns if self.spin_ns or self.spin_tries % 16 else 20_000)
                while now < spin_end and n == 0:
                    self.mutex.unlock()
                    n = wait_ready(self.epoll, self.ready_user[0], 0)
                    self.mutex.lock()
                    if n == 0:
                        now = now_ns()
                if n > 0:
                    self.spin_ns = SPIN_NS if self.spin_ns > 5_000 else 25_000
                elif n == 0:
                    self.spin_ns = self.spin_ns // 2 if self.spin_ns > 4_000 else 0
            if n == 0:
                timeout = slice_ns if deadline - now > <uint64_t> slice_ns else <int64_t> (deadline - now)
                timer = self.p.next_timer_ns()
                if timer >= 0 and timer < timeout:
                    timeout = timer
                self.mutex.unlock()
                n = wait_ready(self.epoll, self.ready_user[0], <int> ((timeout + 999_999) // 1_000_000))
                self.mutex.lock()
            if n > 0:
                self.handle(self.ready_user, n)
                spun = False
            elif n < 0:
                return LOOK  # a signal
            else:
                self.p.now = now_ns()
                self.after()
                if self.p.now - self.poll_since >= <uint64_t> slice_ns:
                    self.poll_since = self.p.now
                    return LOOK if not w.fired else FIRED

    def _background(self):
        with nogil:
            self.run_background()

    cdef void run_background(self) noexcept nogil:
        cdef uint64_t now
        cdef int64_t timer
        cdef int n, timeout
        self.mutex.lock()
        while not self.p.closing:
            now = now_ns()
            if self.loop_mode:
                # The loop serves. Look after it while it runs tasks, and has not polled for a while.
                if now - self.loop_polled >= LOOP_GRACE_NS:
                    if self.p.started or not self.p.dirty.empty() or self.p.next_timer_ns() >= 0:
                        self.poller = BACKGROUND
                        self.mutex.unlock()
                        n = wait_ready(self.epoll, self.ready_background[0], 0)
                        self.mutex.lock()
                        if self.poller == BACKGROUND:
                            self.poller = NOBODY
                            if n > 0:
                                self.handle(self.ready_background, n)
                            else:
                                self.p.now = now_ns()
                                self.after()
                            if self.p.runs.size() > <size_t> self.p.started:
                                kick(self.kicker)  # the loop, to take what came meanwhile: nothing is left to read for it
                    else:
                        self.sleep_background(True, 0)
                        continue
                elif not self.p.dirty.empty():
                    self.p.now = now
                    self.after()
                self.sleep_background(False, LOOP_GRACE_NS if self.p.dirty.empty() else TOKEN_NS)
                continue
            if self.poller == USER:
                if now - self.poll_since > 2 * TOKEN_NS:
                    self.sleep_background(True, 0)
                else:
                    self.sleep_background(False, TOKEN_NS)
                continue
            if not self.p.dirty.empty():
                self.p.now = now
                self.after()
            if now - self.released < TOKEN_NS:
                self.sleep_background(False, TOKEN_NS)
                continue
            self.poller = BACKGROUND
            timer = self.p.next_timer_ns()
            timeout = -1 if timer < 0 else <int> ((timer + 999_999) // 1_000_000)
            if self.p.store == NULL and self.arena != NULL:
                timeout = 50
            self.mutex.unlock()
            n = wait_ready(self.epoll, self.ready_background[0], timeout)
            self.mutex.lock()
            if self.poller == BACKGROUND:
                self.poller = NOBODY
                if n > 0:
                    self.handle(self.ready_background, n)
                else:
                    self.p.now = now_ns()
                    self.after()
        self.mutex.unlock()

    cdef void sleep_background(self, bint deep, int64_t ns) noexcept nogil:
        store_release(&self.background_word, 0)
        self.background_deep = deep
        self.mutex.unlock()
        futex_wait(&self.background_word, 0, -1 if deep else ns)
        self.mutex.lock()
        self.background_deep = False

    cdef int wait_for(self, Waiter* w, double timeout, what) except -1:
        """Waits with signals looked after. Raises TimeoutError naming `what`."""
        cdef uint64_t deadline = FOREVER if timeout < 0 else now_ns() + <uint64_t> (timeout * 1e9)
        cdef int r
        while True:
            with nogil:
                self.mutex.lock()
                r = self.serve(w, deadline, SLICE_NS)
                self.mutex.unlock()
            if r == FIRED:
                return 1
            if r == TIMED_OUT:
                if what is None:
                    return 0
                raise TimeoutError(f"{what} did not come within {timeout:g} s")
            if r == ENDED:
                if w.fired:
                    return 1
                raise ConnectionError("Shoal was shut down while this call waited")
            PyErr_CheckSignals()

    def fileno(self):
        self.mutex.lock()
        self.loop_mode = True
        self.loop_polled = now_ns()
        if self.poller == BACKGROUND:
            kick(self.kicker)
            self.poller = NOBODY
        self.mutex.unlock()
        return self.epoll

    def poll(self):
        """Serves what is ready, without waiting; runs callbacks that are due. For the loop that watches fileno()."""
        cdef int n
        self.mutex.lock()
        n = wait_ready(self.epoll, self.ready_user[0], 0)
        self.loop_polled = now_ns()
        if n > 0:
            self.handle(self.ready_user, n)
        else:
            self.p.now = self.loop_polled
            self.after()
        if self.background_deep and self.p.runs.size():
            self.background_deep = False
            store_release(&self.background_word, 1)
            futex_wake(&self.background_word, 1)
        self.mutex.unlock()
        self.run_callbacks()

    # -- objects ----------------------------------------------------------------------------------------------------------------

    cdef void release(self, const ObjectId& id) noexcept nogil:
        if self.forked or self.closed:
            return
        self.mutex.lock()
        self.p.now = now_ns()
        self.p.drop_local(id)
        if not self.p.arena_frees.empty() or not self.p.to_connect.empty():
            self.after()
        else:
            self.wake_all()
            if not self.p.dirty.empty():
                self.stir()
        self.mutex.unlock()

    cdef ObjectRef new_ref(self, const ObjectId& id, const Owner& owner, Entry* entry):
        """The caller has counted it."""
        cdef ObjectRef ref = ObjectRef.__new__(ObjectRef)
        ref.id = id
        ref.who = owner
        ref.entry = entry
        ref.engine = self
        return ref

    def ref_from_binary(self, bytes object_id, bytes owner):
        cdef ObjectId id
        cdef Owner who
        cdef Entry* e
        cdef RunTask* run
        if len(object_id) != 20 or len(owner) != 32:
            raise ValueError("a reference needs 20 bytes of id and 32 of owner")
        id = load_object_id(PyBytes_AS_STRING(object_id))
        who.worker = load_id(PyBytes_AS_STRING(owner))
        who.node = load_id(PyBytes_AS_STRING(owner) + 16)
        self.mutex.lock()
        self.p.now = now_ns()
        e = self.p.borrow(id, who)
        e.local += 1
        if not e.owned and e.registrations == 0:
            run = current_run().get()
            if run != NULL and run.phase == RUN_STARTED:
                run.introduced.push_back(id)
            elif e.local == 1 and e.holds == 0:
                # It came by no task and inside no object: nobody registered this process but itself.
                e.registrations = 1
                self.p.register(id, who, self.p.me, 1)
                self.after()
        self.mutex.unlock()
        return self.new_ref(id, who, e)

    cdef int contained(self, Payload payload, vector[ContainedRef]& out) except -1:
        cdef ContainedRef c
        for ref in payload.refs:
            c.id = (<ObjectRef?> ref).id
            c.owner = (<ObjectRef> ref).who
            out.push_back(c)
        return 0

    cdef int reserve(self, uint64_t nbytes, shoal_loc_t* loc, void** data) except -1:
        """Room for an object, asking the store for an extent when this process has none. Waits; raises what the store answers."""
        cdef int r
        cdef Waiter w
        cdef uint32_t extent
        cdef uint16_t code
        cdef bytes answer
        cdef uint64_t give_up = now_ns() + STORE_RETURN_NS
        while True:
            with nogil:
                r = shoal_arena_create(self.arena, nbytes, loc, data)
            if r == SHOAL_OK:
                return 0
            if r != SHOAL_NEED_EXTENT:
                raise MemoryError(f"the object store has no room for one more object (arena error {r})")
            code, answer = self.ask_store(nbytes)
            if code == CODE_UNREACHABLE:
                if now_ns() > give_up:
                    raise ConnectionError(f"the node's object store did not come back within {STORE_RETURN_NS // 1_000_000_000} s")
                memset(&w, 0, sizeof(Waiter))
                w.remaining = 1
                self.wait_for(&w, 0.05, None)  # the sockets are served meanwhile, and with them the store's return
                continue
            if code:
                raise ArenaFull(answer[4:].decode("utf-8", "replace") or "the object store is full")
            memcpy(&extent, PyBytes_AS_STRING(answer), 4)
            shoal_arena_add_extent(self.arena, extent)
            give_up = now_ns() + STORE_RETURN_NS

    cdef tuple ask_store(self, uint64_t nbytes):
        """(code, answer) of an EXTENT_REQUEST; UNREACHABLE while the store is away."""
        cdef Waiter w
        cdef Call call
        cdef uint64_t number
        cdef size_t start
        cdef uint16_t code = CODE_UNREACHABLE
        cdef string answer
        self.mutex.lock()
        if self.p.store == NULL:
            self.connect_store()
        if self.p.store == NULL:
            self.mutex.unlock()
            return code, b""
        self.p.call_counter += 1
        number = self.p.call_counter
        call.waiter = &w
        self.p.calls[number] = call
        start = begin_frame(self.p.store[0], EXTENT_REQUEST)
        put64(self.p.store.out, number)
        put64(self.p.store.out, nbytes)
        self.p.done(self.p.store, start)
        self.flush()
        self.mutex.unlock()
        try:
            self.wait_for(&w, 40.0, f"space for an object of {nbytes} bytes")
        finally:
            self.mutex.lock()
            it = self.p.calls.find(number)
            if it != self.p.calls.end():
                code = deref(it).second.code
                answer = deref(it).second.payload
                self.p.calls.erase(number)
            self.mutex.unlock()
        return code, to_bytes(answer)

    cdef int write_arena(self, Payload payload, Place& place) except -1:
        """Copies a value into the arena and seals it."""
        cdef shoal_loc_t loc
        cdef void* data
        if self.arena == NULL:
            raise RuntimeError("this process has no object store")
        self.reserve(payload.nbytes, &loc, &data)
        try:
            payload.write(<char*> data)
        except BaseException:
            shoal_arena_abort(self.arena, loc)
            raise
        shoal_arena_seal(self.arena, loc)
        place.node = self.p.me.node
        place.slot = loc.slot
        place.generation = loc.generation
        place.size = payload.nbytes
        return 0

    def put(self, Payload payload):
        cdef vector[ContainedRef] contains
        cdef Place place
        cdef Bytes value
        cdef Entry* e
        cdef Entry* inner
        cdef ObjectId id
        cdef size_t i
        self.check()
        self.contained(payload, contains)
        if payload.nbytes > self.inline_limit:
            self.write_arena(payload, place)
        else:
            value = make_bytes(NULL, 0)
            payload.append_to(value.get()[0])
        self.mutex.lock()
        self.p.now = now_ns()
        id = object_id(self.p.new_task_id(), 0)
        e = self.p.own(id)
        e.local = 1
        if value.get() == NULL:
            e.state = IN_ARENA
            e.place = place
        else:
            e.state = INLINE
            e.value = value
        for i in range(contains.size()):
            inner = find_entry(self.p.entries, contains[i].id)
            if inner != NULL:
                inner.holds += 1
        e.contains.swap(contains)
        self.mutex.unlock()
        return self.new_ref(id, self.p.me, e)

    cdef check(self):
        if self.forked:
            from shoal import exceptions

            raise exceptions.ForkedProcessError("this process was forked from one that uses Shoal: call init() anew in it, or start it with the spawn method")
        if self.closed:
            raise ConnectionError("Shoal was shut down")

    cdef Value value_of(self, const ObjectId& id):
        """The value of an entry that is ready and near."""
        cdef Entry* e
        cdef Holder holder
        cdef Bytes value
        cdef shoal_loc_t place
        cdef const void* data = NULL
        cdef uint64_t size = 0
        cdef int r
        cdef EntryState state
        cdef uint16_t code = CODE_OBJECT_FREED
        cdef string message, name
        cdef ObjectId oid = id
        self.mutex.lock()
        e = find_entry(self.p.entries, oid)
        state = e.state if e != NULL else FAILED
        if state == INLINE:
            value = e.value
        elif state == IN_ARENA:
            place.slot = e.copy.slot if e.has_copy else e.place.slot
            place.generation = e.copy.generation if e.has_copy else e.place.generation
        elif e != NULL and e.failure.get() != NULL:
            code = e.failure.get().code
            message = e.failure.get().message
            name = e.failure.get().name
        self.mutex.unlock()
        if state == INLINE:
            holder = Holder.__new__(Holder)
            holder.value = value
            return parse_value(holder, value.get().data(), value.get().size())
        if state == IN_ARENA:
            r = shoal_arena_get(self.arena, place, &data, &size)
            if r == SHOAL_OK:
                holder = Holder.__new__(Holder)
                holder.engine = self
                holder.place = place
                holder.pinned = True
                return parse_value(holder, <const char*> data, size)
            if self.forget_copy(oid, place):
                self.get_ready(oid)
                return self.value_of(oid)
            code = CODE_OBJECT_LOST
            message = string(b"its bytes are no longer in this node's object store")
        return self.failure_value(code, message, name, oid)

    cdef bint forget_copy(self, const ObjectId& id, const shoal_loc_t& place) noexcept nogil:
        """The store dropped this node's copy of what lies elsewhere, to make room. True: it can be pulled again."""
        cdef Entry* e
        cdef bint again = False
        self.mutex.lock()
        e = find_entry(self.p.entries, id)
        if e != NULL and e.state == IN_ARENA and not (e.place.node == self.p.me.node):
            again = True
            if e.has_copy and e.copy.slot == place.slot and e.copy.generation == place.generation:
                e.has_copy = False
        self.mutex.unlock()
        return again

    cdef int get_ready(self, const ObjectId& id) except -1:
        cdef Waiter w
        cdef EntryWaiter ew
        cdef Entry* e
        cdef bint wait = False
        ew.waiter = &w
        ew.need_local = True
        self.mutex.lock()
        self.p.now = now_ns()
        e = find_entry(self.p.entries, id)
        if e != NULL and not self.p.is_local(e):
            e.waiters.push_back(ew)
            self.p.pull(e)
            self.after()
            wait = True
        self.mutex.unlock()
        if wait:
            try:
                self.wait_for(&w, -1, None)
            finally:
                self.mutex.lock()
                e = find_entry(self.p.entries, id)
                if e != NULL:
                    forget_waiter(e[0], &w)
                self.mutex.unlock()
        return 0

    def locations(self, ObjectRef ref):
        """[(node id, bytes, whether inline)] of what this process knows of an object; empty while it is not ready."""
        cdef Entry* e
        cdef vector[Place] places
        cdef size_t i
        cdef int64_t inline_bytes = -1
        self.mutex.lock()
        e = find_entry(self.p.entries, ref.id)
        if e != NULL and e.state == INLINE:
            inline_bytes = e.value.get().size()
        elif e != NULL and e.state == IN_ARENA:
            places.push_back(e.place)
            for i in range(e.copies.size()):
                places.push_back(e.copies[i])
            if e.has_copy and not e.owned:
                places.push_back(e.copy)
        self.mutex.unlock()
        if inline_bytes >= 0:
            return [(id_bytes(ref.who.node), inline_bytes, True)]
        return [(id_bytes(places[i].node), places[i].size, False) for i in range(places.size())]

    cdef Value failure_value(self, uint16_t code, const string& message, const string& name, const ObjectId& id):
        cdef bytes raw
        cdef Holder holder = Holder.__new__(Holder)
        cdef Id16 actor
        if self.error_factory is None:
            raise RuntimeError(f"{to_str(message)} (code {code})")
        raw = self.error_factory(code, to_str(message), id_bytes(id.task), to_str(name), b"")
        holder.value = make_bytes(PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw))
        return parse_value(holder, holder.value.get().data(), holder.value.get().size())

    cdef size_t watch_refs(self, list refs, Waiter* w, bint local) noexcept:
        """Registers w with each reference that is not ready; the mutex is held. Returns how many."""
        cdef size_t n = 0
        cdef EntryWaiter ew
        cdef Entry* e
        cdef Py_ssize_t i
        ew.waiter = w
        ew.need_local = local
        for i in range(len(refs)):
            e = (<ObjectRef> refs[i]).entry
            if self.p.is_local(e) or (not local and e.state != PENDING):
                continue
            e.waiters.push_back(ew)
            n += 1
            if e.state == IN_ARENA:
                self.p.pull(e)
            else:
                self.p.ask(e)
        return n

    cdef void unwatch_refs(self, list refs, Waiter* w) noexcept:
        cdef Entry* e
        cdef Py_ssize_t i
        for i in range(len(refs)):
            e = (<ObjectRef> refs[i]).entry
            if not e.waiters.empty():
                forget_waiter(e[0], w)

    cdef void block(self, bint on) noexcept nogil:
        """Says on the control page that this process waits, or goes on. The mutex is held."""
        if on:
            self.blocked += 1
            if self.record != NULL and self.blocked == 1:
                self.record.blocked_since_ns = now_ns()
        else:
            self.blocked -= 1
            if self.record != NULL and self.blocked == 0:
                self.record.blocked_since_ns = 0

    def get(self, refs, double timeout=-1.0):
        cdef list wanted = refs if type(refs) is list else list(refs)
        cdef Waiter w
        cdef size_t n
        cdef Py_ssize_t i
        cdef int r = 1
        self.check()
        for ref in wanted:
            if not isinstance(ref, ObjectRef):
                raise TypeError(f"get() takes references, got {type(ref).__name__}")
        self.mutex.lock()
        self.p.now = now_ns()
        n = self.watch_refs(wanted, &w, True)
        if n:
            w.remaining = <int64_t> n
            self.block(True)
        self.after()
        self.mutex.unlock()
        if n:
            try:
                r = self.wait_for(&w, timeout, None)
            finally:
                self.mutex.lock()
                self.block(False)
                if not w.fired:
                    self.unwatch_refs(wanted, &w)
                self.mutex.unlock()
            if not r:
                raise TimeoutError(f"{w.remaining} of {len(wanted)} objects were not ready after {timeout:g} s")
        out = []
        for i in range(len(wanted)):
            out.append(self.value_of((<ObjectRef> wanted[i]).id))
        return out

    def split(self, list refs, Py_ssize_t num_returns, double timeout=-1.0, bint fetch_local=True):
        """wait() as (ready, rest), for a list of references alone: None when something else is in it. Raises ValueError for duplicates."""
        cdef Py_ssize_t i, n = len(refs)
        cdef bint twice = False
        cdef Entry* e
        cdef list flags, ready, rest
        for i in range(n):
            if type(refs[i]) is not ObjectRef:
                return None
        self.mutex.lock()
        self.marks += 1
        for i in range(n):
            e = (<ObjectRef> refs[i]).entry
            if e.mark == self.marks:
                twice = True
                break
            e.mark = self.marks
        self.mutex.unlock()
        if twice:
            raise ValueError("Wait requires a list of unique object refs.")
        flags = self.wait(refs, num_returns, timeout, fetch_local)
        ready = []
        rest = []
        for i in range(n):
            if len(ready) == num_returns:
                rest.extend(refs[i:])
                break
            if flags[i]:
                ready.append(refs[i])
            else:
                rest.append(refs[i])
        return ready, rest

    def wait(self, refs, Py_ssize_t num_returns, double timeout=-1.0, bint fetch_local=True):
        cdef list wanted = list(refs)
        cdef list ready
        cdef Waiter w
        cdef size_t n = 0
        cdef Py_ssize_t have
        self.check()
        ready = [False] * len(wanted)
        self.mutex.lock()
        self.p.now = now_ns()
        have = self.mark_ready(wanted, ready, num_returns, fetch_local)
        if have < num_returns and timeout != 0:
            self.watch_refs(wanted, &w, fetch_local)
            w.remaining = num_returns - have
            self.block(True)
            n = 1
        self.after()
        self.mutex.unlock()
        if n:
            try:
                self.wait_for(&w, timeout, None)
            finally:
                self.mutex.lock()
                self.block(False)
                self.unwatch_refs(wanted, &w)
                self.mutex.unlock()
            self.mutex.lock()
            self.mark_ready(wanted, ready, num_returns, fetch_local)
            self.mutex.unlock()
        return ready

    cdef Py_ssize_t mark_ready(self, list wanted, list ready, Py_ssize_t most, bint local) noexcept:
        cdef Py_ssize_t i, n = 0
        cdef Entry* e
        for i in range(len(wanted)):
            if n >= most:
                break
            e = (<ObjectRef> wanted[i]).entry
            if self.p.is_local(e) or (not local and e.state != PENDING):
                ready[i] = True
                n += 1
            else:
                ready[i] = False
        return n

    def ready(self, ObjectRef ref):
        cdef Entry* e
        self.mutex.lock()
        e = find_entry(self.p.entries, ref.id)
        result = e == NULL or e.state != PENDING
        self.mutex.unlock()
        return result

    # -- callbacks --------------------------------------------------------------------------------------------------------------

    def add_done_callback(self, ObjectRef ref, fn):
        self.add_callback(ref, None, fn)

    def add_loop_callback(self, ObjectRef ref, loop, fn):
        self.add_callback(ref, loop, fn)

    cdef add_callback(self, ObjectRef ref, loop, fn):
        cdef Entry* e
        cdef uint64_t token
        cdef bint now
        self.check()
        self.callback_counter += 1
        token = self.callback_counter
        self.done_callbacks[token] = (ref, loop, fn)
        if self.callback_thread is None and not self.loop_mode:
            self.callback_thread = threading.Thread(target=self._run_callbacks, name="shoal-callbacks", daemon=True)
            self.callback_thread.start()
        self.mutex.lock()
        self.p.now = now_ns()
        e = find_entry(self.p.entries, ref.id)
        now = e == NULL or self.p.is_local(e)
        if not now:
            e.callbacks.push_back(token)
            if e.state == IN_ARENA:
                self.p.pull(e)
            else:
                self.p.ask(e)
            self.after()
            self.stir()
        self.mutex.unlock()
        if now:
            del self.done_callbacks[token]
            if loop is not None:
                loop.call_soon(fn, ref)
            else:
                fn(ref)

    cdef run_callbacks(self):
        cdef vector[uint64_t] due
        cdef size_t i
        cdef Entry* e
        if self.p.callbacks.empty():
            return
        self.mutex.lock()
        due.swap(self.p.callbacks)
        self.mutex.unlock()
        for i in range(due.size()):
            item = self.done_callbacks.pop(due[i], None)
            if item is None:
                continue
            ref, loop, fn = item
            # Ready, but perhaps on another node: once more, for the copy.
            self.mutex.lock()
            e = find_entry(self.p.entries, (<ObjectRef> ref).id)
            near = e == NULL or self.p.is_local(e)
            self.mutex.unlock()
            if not near:
                self.add_callback(ref, loop, fn)
            elif loop is None:
                fn(ref)
            elif self.loop_mode and loop is asyncio._get_running_loop():
                fn(ref)
            else:
                try:
                    loop.call_soon_threadsafe(fn, ref)
                except RuntimeError:
                    pass  # that loop has ended, and with it whoever awaited

    def _run_callbacks(self):
        cdef Waiter w
        while not self.closed:
            memset(&w, 0, sizeof(Waiter))
            w.remaining = 1
            self.mutex.lock()
            if self.p.callbacks.empty():
                self.p.callback_waiters.push_back(&w)
            else:
                w.fired = 1
            self.mutex.unlock()
            try:
                # Parked and not polling: this thread would keep the token for ever.
                while not w.fired and not self.closed:
                    with nogil:
                        self.park(&w, SLICE_NS)
            finally:
                self.mutex.lock()
                forget_waiter_in(self.p.callback_waiters, &w)
                self.mutex.unlock()
            self.run_callbacks()

    cdef void park(self, Waiter* w, int64_t ns) noexcept nogil:
        """Waits without taking the token."""
        self.mutex.lock()
        if not w.fired and not self.p.closing:
            store_release(&w.wake, 0)
            w.parked = True
            self.mutex.unlock()
            futex_wait(&w.wake, 0, ns)
            self.mutex.lock()
            w.parked = False
        self.mutex.unlock()

    # -- submitting -------------------------------------------------------------------------------------------------------------

    def lease_class(self, bytes spec):
        self.mutex.lock()
        number = self.p.class_of(string(PyBytes_AS_STRING(spec), PyBytes_GET_SIZE(spec)))
        self.mutex.unlock()
        return number

    cdef int begin_spec(self, TaskState* t, uint32_t job, const Id16& function, uint32_t depth, uint32_t backpressure, str name, str method, str group,
                        Payload args, deps) except -1:
        """Writes the Task up to its dependencies, and notes what it keeps alive."""
        cdef ContainedRef c
        cdef Dependency d
        cdef ObjectRef ref
        cdef Py_ssize_t n
        cdef const char* text
        put_id(t.spec, t.id)
        put8(t.spec, t.kind)
        put8(t.spec, t.flags)
        put16(t.spec, t.num_returns)
        put32(t.spec, 0)
        put64(t.spec, 0)
        put32(t.spec, job)
        put_id(t.spec, function)
        put_id(t.spec, t.actor)
        put64(t.spec, 0)
        put32(t.spec, depth)
        put32(t.spec, backpressure)
        text = PyUnicode_AsUTF8AndSize(name, &n)
        t.name = make_bytes(text, n)
        put_str16(t.spec, t.name.get()[0])
        text = PyUnicode_AsUTF8AndSize(method, &n)
        put16(t.spec, <uint16_t> n)
        t.spec.append(text, n)
        text = PyUnicode_AsUTF8AndSize(group, &n)
        put16(t.spec, <uint16_t> n)
        t.spec.append(text, n)
        if args is None:
            put32(t.spec, 0)
        elif args.nbytes > self.inline_limit:
            put32(t.spec, 0)
            ref = self.put(args)
            self.mutex.lock()
            find_entry(self.p.entries, ref.id).holds += 1  # the task's own, counted before the reference here goes
            self.mutex.unlock()
            d.position = ARGS_AS_OBJECT
            d.id = ref.id
            t.deps.push_back(d)
        else:
            put32(t.spec, <uint32_t> args.nbytes)
            args.append_to(t.spec)
            for r in args.refs:
                t.holds.push_back((<ObjectRef?> r).id)
        for position, r in deps:
            d.position = <uint16_t> position
            d.id = (<ObjectRef?> r).id
            t.deps.push_back(d)
            t.holds.push_back(d.id)
        return 0

    cdef list make_returns(self, TaskState* t):
        """The entries of the results, each with one local count, and their references."""
        cdef uint32_t i
        cdef uint32_t first = 0 if t.flags & STREAMING else 1
        cdef uint32_t last = 0 if t.flags & STREAMING else t.num_returns
        cdef Stream* s
        cdef Entry* e
        cdef vector[Entry*] entries
        cdef list out = []
        self.mutex.lock()
        for i in range(first, last + 1):
            e = self.p.own(object_id(t.id, i))
            e.local = 1
            entries.push_back(e)
        if t.flags & STREAMING:
            s = make_stream()
            self.p.streams[t.id] = s
        self.mutex.unlock()
        for i in range(first, last + 1):
            out.append(self.new_ref(object_id(t.id, i), self.p.me, entries[i - first]))
        return out

    cdef ObjectId args_object(self, TaskState* t) noexcept nogil:
        """Large arguments are an object of the task's own. It is counted by the task from here on; begin_spec's count is dropped once the task counts."""
        cdef ObjectId id
        if not t.deps.empty() and t.deps[0].position == ARGS_AS_OBJECT:
            id = t.deps[0].id
            t.holds.push_back(id)
        return id

    def submit(self, uint32_t lease_class, bytes function_id, str name, Payload args, deps, uint32_t num_returns=1, int32_t max_retries=3,
               uint8_t flags=0, uint32_t depth=0, uint32_t backpressure=0, bytes extra=b""):
        cdef shared_ptr[TaskState] task = new_task()
        cdef TaskState* t = task.get()
        cdef ObjectId args_id
        cdef list out
        cdef size_t ahead
        cdef Peer* peer
        if self.closed or self.forked:
            self.check()
        t.kind = 0
        t.flags = flags
        t.num_returns = <uint16_t> num_returns
        t.retries_left = max_retries
        t.lease_class = lease_class
        self.mutex.lock()
        t.id = self.p.new_task_id()
        self.mutex.unlock()
        if current_run().get() != NULL:
            t.parent = current_run().get().id
        self.begin_spec(t, self.p.job, to_id(function_id), depth, backpressure, name, "", "", args, deps)
        if extra:
            t.extra = from_bytes(extra)
        out = self.make_returns(t)
        self.mutex.lock()
        self.p.now = now_ns()
        args_id = self.args_object(t)
        self.p.submit(task)
        if not args_id.task.nil():
            self.p.drop_hold(args_id)
        ahead = 0
        peer = NULL
        if t.lease != NULL:
            ahead = t.lease.in_flight.size()
            peer = t.lease.peer
        elif t.phase == QUEUED and self.p.dirty.empty():
            ahead = 3
            peer = self.p.raylet
        self.soon(peer, ahead)
        self.mutex.unlock()
        return out

    def attach_actor(self, bytes actor_id, bint ordered, int64_t max_pending=-1):
        cdef ActorState* a
        cdef Id16 id = to_id(actor_id)
        cdef string channel
        self.mutex.lock()
        self.p.now = now_ns()
        a = self.p.actor(id)
        if not a.subscribed:
            a.subscribed = True
            a.ordered = ordered
            channel = string(b"actor:")
            append_hex(channel, id)
            self.p.emit(EVENT_SUBSCRIBE, 0, id, channel, EMPTY)
            self.wake_all()
        if max_pending > 0:
            a.max_pending = max_pending
        self.mutex.unlock()

    def submit_actor(self, bytes actor_id, str method, str name, Payload args, deps, uint32_t num_returns=1, int32_t max_retries=0, uint8_t flags=0,
                     str group="", uint32_t backpressure=0, bytes extra=b""):
        cdef shared_ptr[TaskState] task = new_task()
        cdef TaskState* t = task.get()
        cdef ActorState* a
        cdef ObjectId args_id
        cdef list out
        cdef Peer* peer = NULL
        cdef size_t ahead
        if self.closed or self.forked:
            self.check()
        t.kind = 2
        t.flags = flags
        t.num_returns = <uint16_t> num_returns
        t.retries_left = max_retries
        t.actor = to_id(actor_id)
        self.mutex.lock()
        a = self.p.actor(t.actor)
        t.id = self.p.new_task_id()
        if a.max_pending > 0 and a.pending >= a.max_pending:
            self.mutex.unlock()
            from shoal.exceptions import PendingCallsLimitExceeded

            raise PendingCallsLimitExceeded(f"{a.pending} calls of {name} are pending; max_pending_calls is {a.max_pending}")
        self.mutex.unlock()
        if current_run().get() != NULL:
            t.parent = current_run().get().id
        self.begin_spec(t, self.p.job, NIL, 0, backpressure, name, method, group, args, deps)
        if extra:
            t.extra = from_bytes(extra)
        out = self.make_returns(t)
        self.mutex.lock()
        self.p.now = now_ns()
        args_id = self.args_object(t)
        self.p.submit(task)
        if not args_id.task.nil():
            self.p.drop_hold(args_id)
        ahead = a.in_flight.size()
        if t.phase == SENT:
            it = self.p.peers.find(a.worker)
            if it != self.p.peers.end():
                peer = deref(it).second
        self.soon(peer, ahead)
        self.mutex.unlock()
        return out

    def creation_task(self, bytes actor_id, bytes function_id, str name, Payload args, deps, bytes extra=b""):
        cdef shared_ptr[TaskState] task = new_task()
        cdef TaskState* t = task.get()
        cdef ActorState* a
        cdef ObjectId args_id
        cdef Entry* e
        cdef size_t i
        cdef string out
        self.check()
        t.kind = 1
        t.actor = to_id(actor_id)
        self.mutex.lock()
        t.id = self.p.new_task_id()
        self.mutex.unlock()
        self.begin_spec(t, self.p.job, to_id(function_id), 0, 0, name, "", "", args, deps)
        self.mutex.lock()
        a = self.p.actor(t.actor)
        args_id = self.args_object(t)
        for i in range(t.holds.size()):
            e = find_entry(self.p.entries, t.holds[i])
            if e != NULL:
                e.holds += 1
                a.creation_holds.push_back(t.holds[i])
        if not args_id.task.nil():
            self.p.drop_hold(args_id)
        out = t.spec
        put16(out, <uint16_t> t.deps.size())
        for i in range(t.deps.size()):
            put16(out, t.deps[i].position)
            put_object_id(out, t.deps[i].id)
            e = find_entry(self.p.entries, t.deps[i].id)
            put_owner(out, e.owner if e != NULL else self.p.me)
            put8(out, 1)
        put32(out, <uint32_t> PyBytes_GET_SIZE(extra))
        out.append(PyBytes_AS_STRING(extra), PyBytes_GET_SIZE(extra))
        self.mutex.unlock()
        return to_bytes(out)

    def new_actor_id(self):
        cdef Id16 id
        self.mutex.lock()
        id = self.p.new_task_id()
        self.mutex.unlock()
        return id_bytes(id)

    def actor_handle_ref(self, bytes actor_id):
        cdef ObjectId id = object_id(to_id(actor_id), 0xFFFFFFFFU)
        cdef Entry* e
        self.mutex.lock()
        e = self.p.own(id)
        e.local += 1
        e.is_actor_handle = True
        e.state = INLINE
        e.value = none_value()
        self.mutex.unlock()
        return self.new_ref(id, self.p.me, e)

    def actor_update(self, bytes actor_id, int state, bytes worker_id, bytes node_id, str address, uint64_t incarnation, int code, str cause,
                     bytes error=b""):
        cdef Id16 worker = to_id(worker_id) if worker_id else NIL
        cdef Id16 node = to_id(node_id) if node_id else NIL
        cdef Id16 id = to_id(actor_id)
        cdef string why = from_str(cause)
        cdef string failure = from_bytes(error)
        cdef string where = from_str(address)
        self.mutex.lock()
        self.p.now = now_ns()
        if not where.empty() and not node.nil() and not (node == self.p.me.node):
            self.p.addresses[node] = where
        self.p.on_actor(self.p.actor(id), <uint8_t> state, worker, node, incarnation, <uint16_t> code, why, failure)
        self.after()
        self.mutex.unlock()

    def node_address(self, bytes node_id, str address):
        """Where a node listens; empty: there is no such node any more."""
        cdef Id16 node = to_id(node_id)
        cdef string where = from_str(address)
        cdef vector[PeerPointer] waiting
        cdef size_t i
        cdef Entry* e
        cdef vector[ObjectId] wanted
        self.mutex.lock()
        self.p.now = now_ns()
        waiting.swap(self.awaiting_address)
        if where.empty():
            self.p.node_died(node, string(b"its node is not known to the cluster any more"))
        else:
            self.p.addresses[node] = where
            it = self.p.entries.begin()
            while it != self.p.entries.end():
                e = &deref(it).second
                if e.state == IN_ARENA and not e.pulling and e.place.node == node and (not e.waiters.empty() or not e.run_dependants.empty()):
                    wanted.push_back(e.id)
                inc(it)
            for i in range(wanted.size()):
                self.p.pull(find_entry(self.p.entries, wanted[i]))
        for i in range(waiting.size()):
            if waiting[i].who.node == node and not where.empty():
                self.p.to_connect.push_back(waiting[i])
            elif not (waiting[i].who.node == node):
                self.awaiting_address.push_back(waiting[i])
        self.after()
        self.mutex.unlock()

    def adopt_connection(self, uint64_t token, int fd, str error=""):
        cdef Peer* peer = <Peer*> token
        cdef string why = from_str(error)
        self.mutex.lock()
        self.p.now = now_ns()
        if fd >= 0 and peer.phase == CONNECTING:
            self.opened(peer, set_nonblocking(fd))
        else:
            if fd >= 0:
                close_fd(fd)
            self.p.worker_died(peer.who.worker, NIL, False, CODE_UNREACHABLE, why)
        self.after()
        self.mutex.unlock()

    def cancel(self, bytes task_id, bint force, bint recursive):
        cdef Id16 id = to_id(task_id)
        cdef bint of_actor = False
        self.mutex.lock()
        self.p.now = now_ns()
        it = self.p.tasks.find(id)
        if force and it != self.p.tasks.end():
            of_actor = deref(it).second.get().kind == 2
        if of_actor:
            self.mutex.unlock()
            raise ValueError("force=True is not supported for actor tasks: cancel without it, or kill() the actor")
        self.p.cancel(id, force, recursive)
        self.after()
        self.mutex.unlock()

    def next_item(self, bytes task_id, uint32_t index, double timeout=-1.0):
        cdef Id16 id = to_id(task_id)
        cdef ObjectId oid = object_id(id, index)
        cdef Waiter w
        cdef Stream* s
        cdef Entry* e
        cdef size_t start
        cdef int state
        self.check()
        while True:
            memset(&w, 0, sizeof(Waiter))
            w.remaining = 1
            state = 0
            self.mutex.lock()
            self.p.now = now_ns()
            it = self.p.streams.find(id)
            if it == self.p.streams.end():
                state = 2
            else:
                s = deref(it).second
                if index <= s.received:
                    state = 1
                    e = find_entry(self.p.entries, oid)
                    if e == NULL:
                        state = 2
                    else:
                        e.local += 1
                        if s.held.erase(index):
                            e.holds -= 1
                        if index > s.consumed:
                            s.consumed = index
                            if s.producer != NULL and s.producer.phase != CLOSED:
                                start = begin_frame(s.producer[0], ITEM_ACK)
                                put_id(s.producer.out, id)
                                put32(s.producer.out, index)
                                self.p.done(s.producer, start)
                                self.soon(s.producer, 3)
                elif index > s.end:
                    state = 2
                else:
                    s.waiters.push_back(&w)
                    self.block(True)
            self.mutex.unlock()
            if state == 1:
                return self.new_ref(oid, self.p.me, e)
            if state == 2:
                return None
            try:
                done = self.wait_for(&w, timeout, None)
            finally:
                self.mutex.lock()
                self.block(False)
                it = self.p.streams.find(id)
                if it != self.p.streams.end():
                    forget_waiter_in(deref(it).second.waiters, &w)
                self.mutex.unlock()
            if not done:
                raise TimeoutError(f"item {index} did not come within {timeout:g} s")

    def stream_state(self, bytes task_id):
        """(items received, number of items or None while unknown)."""
        cdef Id16 id = to_id(task_id)
        cdef uint32_t received = 0, end = 0
        self.mutex.lock()
        it = self.p.streams.find(id)
        if it != self.p.streams.end():
            received = deref(it).second.received
            end = deref(it).second.end
        self.mutex.unlock()
        return received, (None if end == NO_END else end)

    def stream_done(self, bytes task_id):
        cdef Id16 id
        if self.closed or self.forked:
            return
        id = to_id(task_id)
        self.mutex.lock()
        self.p.now = now_ns()
        self.p.drop_stream(id)
        self.after()
        self.mutex.unlock()

    def stats(self):
        """Counts for tests and the state API."""
        cdef size_t i
        cdef uint64_t owned = 0, borrowed = 0, pending = 0, inline_bytes = 0, leases = 0, queued = 0, in_flight = 0, connections = 0, arena_bytes = 0
        cdef Entry* e
        self.mutex.lock()
        it = self.p.entries.begin()
        while it != self.p.entries.end():
            e = &deref(it).second
            if e.owned:
                owned += 1
            else:
                borrowed += 1
            if e.state == PENDING:
                pending += 1
            elif e.state == INLINE and e.value.get() != NULL:
                inline_bytes += e.value.get().size()
            elif e.state == IN_ARENA and e.owned:
                arena_bytes += e.place.size
            inc(it)
        for i in range(self.p.classes.size()):
            leases += self.p.classes[i].leases.size()
            queued += self.p.classes[i].ready.size()
        for i in range(self.p.all_peers.size()):
            if self.p.all_peers[i].phase == OPEN:
                connections += 1
        in_flight = self.p.tasks.size()
        submitted, completed, retried, runs = self.p.submitted, self.p.completed, self.p.retried, self.p.runs.size()
        self.mutex.unlock()
        return {"owned": owned, "borrowed": borrowed, "pending": pending, "inline_bytes": inline_bytes, "arena_bytes": arena_bytes, "leases": leases,
                "queued": queued, "tasks": in_flight, "connections": connections, "submitted": submitted, "completed": completed, "retried": retried,
                "running": runs}

    # -- control ----------------------------------------------------------------------------------------------------------------

    cdef uint64_t send_call(self, bytes method, bytes payload, uint32_t timeout_ms, Waiter* w) noexcept:
        cdef Call call
        cdef uint64_t number
        cdef size_t start
        cdef Peer* raylet = self.p.raylet
        if raylet == NULL:
            return 0
        self.p.call_counter += 1
        number = self.p.call_counter
        call.waiter = w
        call.method = string(PyBytes_AS_STRING(method), PyBytes_GET_SIZE(method))
        self.p.calls[number] = call
        start = begin_frame(raylet[0], CALL)
        put64(raylet.out, number)
        put32(raylet.out, timeout_ms)
        put_str16(raylet.out, call.method)
        raylet.out.append(PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))
        self.p.done(raylet, start)
        self.after()
        return number

    def call(self, str method, bytes payload, double timeout=30.0):
        cdef Waiter w
        cdef uint64_t number
        cdef uint16_t code
        cdef string answer
        cdef bytes name = method.encode()
        self.check()
        self.mutex.lock()
        self.p.now = now_ns()
        number = self.send_call(name, payload, <uint32_t> (timeout * 1000) if timeout > 0 else 0, &w)
        if number:
            self.block(True)
        self.mutex.unlock()
        if not number:
            raise ConnectionError("the connection to this node's raylet has ended")
        try:
            self.wait_for(&w, timeout + 1 if timeout >= 0 else -1, f"the answer to {method}")
        finally:
            self.mutex.lock()
            self.block(False)
            it = self.p.calls.find(number)
            if it != self.p.calls.end():
                code = deref(it).second.code
                answer = deref(it).second.payload
                self.p.calls.erase(number)
            else:
                code = 14
            self.mutex.unlock()
        if code:
            raise CallError(code, to_str(answer))
        return to_bytes(answer)

    def call_async(self, str method, bytes payload):
        cdef bytes name = method.encode()
        self.check()
        self.mutex.lock()
        self.p.now = now_ns()
        self.send_call(name, payload, 30000, NULL)
        self.mutex.unlock()

    def next_event(self, double timeout=-1.0):
        cdef Waiter w
        cdef Event e
        cdef bint got = False
        cdef uint64_t deadline = FOREVER if timeout < 0 else now_ns() + <uint64_t> (timeout * 1e9)
        while True:
            memset(&w, 0, sizeof(Waiter))
            w.remaining = 1
            self.mutex.lock()
            if not self.p.events.empty():
                e = self.p.events.front()
                self.p.events.pop_front()
                got = True
            elif not self.p.closing:
                self.p.event_waiters.push_back(&w)
            self.mutex.unlock()
            if got:
                break
            if self.closed or self.p.closing:
                return None
            with nogil:
                self.park(&w, SLICE_NS * 10)
            self.mutex.lock()
            forget_waiter_in(self.p.event_waiters, &w)
            self.mutex.unlock()
            if now_ns() >= deadline:
                return None
        if e.kind == EVENT_CHANNEL:
            return "event", to_str(e.text), to_bytes(e.payload)
        if e.kind == EVENT_SUBSCRIBE:
            return "subscribe", to_str(e.text)
        if e.kind == EVENT_CONNECT:
            return "connect", e.number, to_str(e.text), id_bytes(e.a)
        if e.kind == EVENT_LEASE_BEGIN:
            return "lease_begin", e.number, to_bytes(e.payload)
        if e.kind == EVENT_EXIT:
            return "exit", bool(e.number), to_str(e.text)
        if e.kind == EVENT_ACTOR_OUT_OF_SCOPE:
            return "actor_out_of_scope", id_bytes(e.a)
        if e.kind == EVENT_RAYLET_LOST:
            return "raylet_lost", to_str(e.text)
        if e.kind == EVENT_NODE_ADDRESS:
            return "node_address", id_bytes(e.a)
        if e.kind == EVENT_CANCEL:
            return "cancel", id_bytes(e.a), bool(e.number)
        return "call_failed", to_str(e.text), e.number, to_str(e.payload)

    def set_error_factory(self, fn):
        self.error_factory = fn

    def set_cancel_handler(self, fn):
        self.cancel_handler = fn

    @property
    def on_cancel(self):
        return self.cancel_handler

    # -- executing --------------------------------------------------------------------------------------------------------------

    def set_ordered(self, bint ordered):
        """Whether actor calls run in the order of their arrival, each waiting for its predecessors' arguments. Before the first call."""
        self.p.ordered_runs = ordered

    def lease_context(self, uint64_t lease_id, double timeout=5.0):
        """The LeaseContext under which a task came. It was written before the lease was granted, so it is here or on its way."""
        cdef Waiter w
        cdef string context
        cdef bint found = False
        self.mutex.lock()
        it = self.p.lease_contexts.find(lease_id)
        if it != self.p.lease_contexts.end():
            context = deref(it).second
            found = True
        else:
            self.p.lease_waiters.push_back(&w)
        self.mutex.unlock()
        if not found:
            try:
                self.wait_for(&w, timeout, f"the context of lease {lease_id}")
            finally:
                self.mutex.lock()
                forget_waiter_in(self.p.lease_waiters, &w)
                self.mutex.unlock()
            return self.lease_context(lease_id, timeout)
        self.mutex.lock()
        if self.p.lease_contexts.size() > 64:
            # Only the latest matter: a worker has one lease at a time.
            self.p.lease_contexts.clear()
            self.p.lease_contexts[lease_id] = context
        self.mutex.unlock()
        return to_bytes(context)

    def next_task(self, str group="", double timeout=-1.0):
        cdef string name = from_str(group)
        cdef Waiter w
        cdef Task task
        cdef shared_ptr[RunTask] run
        cdef uint64_t deadline = FOREVER if timeout < 0 else now_ns() + <uint64_t> (timeout * 1e9)
        cdef int r
        while True:
            memset(&w, 0, sizeof(Waiter))
            w.remaining = 1
            r = FIRED
            self.mutex.lock()
            run = self.p.pop_run(name)
            if run.get() == NULL:
                if self.p.closing:
                    self.mutex.unlock()
                    return None
                it = self.p.task_waiters.find(name)
                if it == self.p.task_waiters.end():
                    self.p.task_waiters[name] = make_waiters()
                    it = self.p.task_waiters.find(name)
                deref(it).second.push_back(&w)
            self.mutex.unlock()
            if run.get() != NULL:
                task = Task.__new__(Task)
                task.run = run
                task.engine = self
                return task
            with nogil:
                self.mutex.lock()
                r = self.serve(&w, deadline, IDLE_SLICE_NS)
                forget_waiter_in(deref(self.p.task_waiters.find(name)).second[0], &w)
                self.mutex.unlock()
            if r == TIMED_OUT or r == ENDED:
                return None
            if r == LOOK:
                PyErr_CheckSignals()

    def take_tasks(self, str group=""):
        """What is queued now, without waiting. For an event loop."""
        cdef string name = from_str(group)
        cdef Task task
        cdef shared_ptr[RunTask] run
        out = []
        while True:
            self.mutex.lock()
            run = self.p.pop_run(name)
            self.mutex.unlock()
            if run.get() == NULL:
                return out
            task = Task.__new__(Task)
            task.run = run
            task.engine = self
            out.append(task)

    def begin(self, Task task):
        cdef RunTask* t = task.run.get()
        cdef bint ok
        cdef shared_ptr[RunTask] mine
        self.mutex.lock()
        ok = t.phase == RUN_QUEUED or t.phase == RUN_WAITING
        if ok:
            t.phase = RUN_STARTED
            self.p.started += 1
            self.p.started_at = now_ns()
            if self.record != NULL:
                self.record.started += 1
                store_id(self.record.task, t.id)
                self.record.started_at_ns = self.p.started_at
                copy_text(self.record.name, 96, t.name.data(), t.name.size())
                if t.kind == 1:
                    store_id(self.record.actor, t.actor)
        self.mutex.unlock()
        if ok:
            mine = task.run
            current_run().swap(mine)
        return ok

    def set_current(self, Task task):
        """For an event loop, whose calls interleave on one thread: the task that runs from here on, or None."""
        cdef shared_ptr[RunTask] mine
        if task is not None:
            mine = task.run
        current_run().swap(mine)

    cdef void free_places(self, vector[Place]& places) noexcept nogil:
        """Results that nobody will be told of."""
        cdef size_t i
        self.mutex.lock()
        self.p.now = now_ns()
        for i in range(places.size()):
            if places[i].size:
                self.p.free_place(places[i])
        self.after()
        self.mutex.unlock()

    def reply(self, Task task, int status, results, uint32_t duration_us=0, uint32_t items=0):
        cdef RunTask* t = task.run.get()
        cdef Payload payload
        cdef size_t start, i, at
        cdef Peer* peer
        cdef Py_ssize_t n = len(results)
        cdef vector[Place] places
        cdef vector[vector[ContainedRef]] contains
        cdef Place place
        cdef Place nowhere
        cdef string body
        cdef size_t waiting
        cdef vector[uint64_t] sizes
        contains.resize(<size_t> n)
        for i in range(<size_t> n):
            payload = results[i]
            sizes.push_back(payload.nbytes)
            if payload.refs:
                self.contained(payload, contains[i])
            if t.kind != 1 and payload.nbytes > self.inline_limit:
                try:
                    self.write_arena(payload, place)
                except BaseException:
                    self.free_places(places)
                    raise
                places.push_back(place)
            else:
                places.push_back(nowhere)
        for i in range(<size_t> n):
            # Bytes and references are gathered before the mutex: reading a Python buffer may run Python, and an iterator's allocation the collector.
            if not places[i].size:
                payload = results[i]
                at = body.size()
                body.resize(at + payload.nbytes)
                payload.write(body.data() + at)
        at = 0
        self.mutex.lock()
        self.p.now = now_ns()
        if t.phase != RUN_STARTED:
            self.mutex.unlock()
            self.free_places(places)
            return
        peer = t.from_
        if t.kind == 1:
            if self.p.raylet != NULL:
                start = begin_frame(self.p.raylet[0], ACTOR_CREATED)
                put_id(self.p.raylet.out, t.actor)
                put8(self.p.raylet.out, 1 if status == STATUS_OK else 0)
                if status != STATUS_OK:
                    self.p.raylet.out.append(body)
                self.p.done(self.p.raylet, start)
            peer = self.p.raylet
        elif peer != NULL and peer.phase != CLOSED:
            start = begin_frame(peer[0], REPLY)
            put_id(peer.out, t.id)
            put32(peer.out, t.attempt)
            put8(peer.out, <uint8_t> status)
            put32(peer.out, duration_us)
            put32(peer.out, <uint32_t> n)
            for i in range(<size_t> n):
                if places[i].size:
                    put8(peer.out, 1)
                    put_id(peer.out, places[i].node)
                    put32(peer.out, places[i].slot)
                    put32(peer.out, places[i].generation)
                    put64(peer.out, places[i].size)
                else:
                    put8(peer.out, 0)
                    put32(peer.out, <uint32_t> sizes[i])
                    peer.out.append(body.data() + at, sizes[i])
                    at += sizes[i]
                self.p.put_contains(peer.out, contains[i], peer.who)
            self.p.put_borrowed(peer.out, t)
            put32(peer.out, items)
            self.p.done(peer, start)
        else:
            for i in range(places.size()):
                if places[i].size:
                    self.p.free_place(places[i])
        self.p.started -= 1
        if self.record != NULL:
            memset(self.record.task, 0, 16)
        self.p.end_run(task.run)
        waiting = self.p.runs.size()
        self.soon(peer, 0 if waiting == 0 else 3)
        self.mutex.unlock()
        if current_run().get() == t:
            current_run().reset()

    def item(self, Task task, uint32_t index, Payload payload):
        cdef RunTask* t = task.run.get()
        cdef Waiter w
        cdef Place place
        cdef Peer* peer
        cdef size_t start
        cdef string body
        cdef vector[ContainedRef] contains
        cdef bint wait
        while True:
            memset(&w, 0, sizeof(Waiter))
            w.remaining = 1
            self.mutex.lock()
            cancelled = t.cancelled
            wait = not cancelled and t.backpressure and index > t.consumed + t.backpressure
            if wait:
                t.item_waiters.push_back(&w)
                self.block(True)
            self.mutex.unlock()
            if cancelled:
                raise TaskCancelled(f"{task.name} was cancelled")
            if not wait:
                break
            try:
                self.wait_for(&w, -1, None)
            finally:
                self.mutex.lock()
                self.block(False)
                forget_waiter_in(t.item_waiters, &w)
                self.mutex.unlock()
        if payload.nbytes > self.inline_limit:
            self.write_arena(payload, place)
        else:
            payload.append_to(body)
        self.contained(payload, contains)
        self.mutex.lock()
        self.p.now = now_ns()
        peer = t.from_
        if peer != NULL and peer.phase != CLOSED:
            start = begin_frame(peer[0], ITEM)
            put_id(peer.out, t.id)
            put32(peer.out, t.attempt)
            put32(peer.out, index)
            if place.size:
                put8(peer.out, 1)
                put_id(peer.out, place.node)
                put32(peer.out, place.slot)
                put32(peer.out, place.generation)
                put64(peer.out, place.size)
            else:
                put8(peer.out, 0)
                put_str32(peer.out, body)
            self.p.put_contains(peer.out, contains, peer.who)
            self.p.done(peer, start)
            self.soon(peer, 3 if index > 2 else 0)
        elif place.size:
            self.p.free_place(place)
        self.mutex.unlock()

    def running(self):
        cdef vector[Id16] ids
        cdef size_t i
        self.mutex.lock()
        it = self.p.runs.begin()
        while it != self.p.runs.end():
            if deref(it).second.get().phase == RUN_STARTED:
                ids.push_back(deref(it).first)
            inc(it)
        self.mutex.unlock()
        return [id_bytes(ids[i]) for i in range(ids.size())]

    def set_last_words(self, str text):
        cdef string words = from_str(text)
        if self.record != NULL:
            copy_text(self.record.last_words, 96, words.data(), words.size())


class ArenaFull(Exception):
    """The store has no room, and none came within its time."""


cdef extern from *:
    """
    #include <cstdlib>
    static void* scratch_new(size_t n) { return std::malloc(n); }
    static void scratch_free(void* p) { std::free(p); }
    static int set_nonblocking(int fd) { fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK); return fd; }
    static void append_hex(std::string& s, const shoal::Id16& id) {
      char raw[16];
      shoal::store_id(raw, id);
      for (unsigned char c : raw) { s.push_back("0123456789abcdef"[c >> 4]); s.push_back("0123456789abcdef"[c & 15]); }
    }
    """
    void* scratch_new(size_t) nogil
    void scratch_free(void*) nogil
    int set_nonblocking(int) nogil
    void append_hex(string&, const Id16&) nogil
