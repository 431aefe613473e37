# distutils: language = c++
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The core worker's shell: sockets, threads, the arena and Python objects around the protocol.

One mutex guards the protocol. It is taken for microseconds, with or without the GIL, and nothing that could run Python code (an allocation may
run the collector, and that a reference's end) happens while it is held.

Polling is a token: a thread that waits serves the sockets itself; when nobody waits, a background thread does, a millisecond later.

As in the protocol, `Engine` is told in chapters (`shell/`), each a class above those before it.
"""
import threading

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from cython.operator cimport dereference as deref, preincrement as inc
from libc.string cimport memcpy, memset
from posix.time cimport nanosleep, timespec
from posix.unistd cimport close as close_fd, getpid
from shoal._core.arena cimport *
from shoal._core.history cimport map_history, remember_task
from shoal._core.protocol cimport *
from shoal._core.sockets cimport *
from shoal._core.state cimport *
from shoal._core.std cimport deque, shared_ptr, string, unordered_map, vector

import asyncio
import concurrent.futures
import logging
import os
import sys

from shoal._core import protocol as _protocol

if _protocol.records() != layout():
    raise ImportError("shoal._core.engine and shoal._core.protocol were built from different sources: build shoal-core anew")

KIND_PICKLE = 0
KIND_BYTES = 1
KIND_NONE = 2
KIND_ERROR = 3
TASK_STREAMING = 1
TASK_RETRY_EXCEPTIONS = 2
TASK_TIMED = 16
TASK_UNRECORDED = 32
REPLY_OK = 0
REPLY_RAISED = 1
REPLY_CANCELLED = 2
REPLY_LEAVING = 3
REPLY_REJECTED = 4
REPLY_RAISED_RETRY = 5
# In the order of system_calls.h.
SYSTEM_CALLS = ("sends", "receives", "polls", "sleeps", "parks", "wakes", "kicks", "drains")

cdef enum:
    SCRATCH_BYTES = 256 << 10
    SPIN_NS = 50_000              # a sleeping virtual CPU takes longer than this to wake
    TOKEN_NS = 1_000_000          # how long the token stays with whoever waited last
    SLICE_NS = 100_000_000        # a waiting thread looks for signals this often
    TICK_NS = 5_000_000           # timers are looked at no more often
    STEADY_SUBMISSIONS = 16       # so many a millisecond: a program that fills its queue, and waits for no single answer
    LAZY_BYTES = 16 << 10         # frames to a busy peer gather up to this
    LOOP_GRACE_NS = 10_000_000    # an event loop that has not polled for this long is busy: the background thread serves
    ARGS_AS_OBJECT = 0xFFFF       # position of a dependency that is the whole value of (args, kwargs)
    SPEC_FIXED_BYTES = 96         # a Task without its texts and arguments
    LEAVING = 2                   # a flag of OWNS
    NOT_FOUND = 5                 # of gRPC, as `CallError.code`
    KEY_KICK = 1
    KEY_LISTENER = 2

cdef enum Served:
    TIMED_OUT = 0
    FIRED = 1
    LOOK = 2
    ENDED = 3

cdef uint64_t STORE_RETURN_NS = 30_000_000_000ULL  # a restarted store is back within a second; one that died several times in a row is started after a pause of up to 5 s
cdef int64_t IDLE_SLICE_NS = 5_000_000_000LL  # what idles is woken by its sockets, by events and by signals; this is for a signal that came just before it slept
cdef uint64_t TELL_FULL_NS = 10_000_000_000ULL  # whoever waits for room is told again after so long
cdef double ALLOWANCE_TIMEOUT_S = 30.0  # the control store may be started again meanwhile
cdef uint64_t ASK_AGAIN_NS = 100_000_000  # how often a driver at its job's limit asks whether tasks of other processes have ended
cdef uint64_t REFUSAL_HOLDS_NS = 10_000_000  # an error says what was so as long ago at most
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


class ArenaFull(Exception):
    """The store has no room, and none came within its time."""


class DiskFull(ArenaFull):
    """What would make room in the store fits no disk."""


def lineage_limit():
    """What SHOAL_MAX_LINEAGE_BYTES says; 1 GiB by default."""
    text = os.environ.get("SHOAL_MAX_LINEAGE_BYTES", "")
    if not text:
        return 1 << 30
    if not text.isdecimal():
        raise ValueError(f"SHOAL_MAX_LINEAGE_BYTES={text!r}: a number of bytes is wanted; 0 keeps nothing")
    return int(text)


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

include "shell/ids.pxi"
include "shell/values.pxi"
include "shell/object_ref.pxi"
include "shell/task.pxi"
include "shell/sockets.pxi"
include "shell/polling.pxi"
include "shell/allowance.pxi"
include "shell/arena.pxi"
include "shell/refs.pxi"
include "shell/reading.pxi"
include "shell/callbacks.pxi"
include "shell/submitting.pxi"
include "shell/calling.pxi"
include "shell/streaming.pxi"
include "shell/control.pxi"
include "shell/explaining.pxi"
include "shell/executing.pxi"


cdef class Engine(Executing):
    def __cinit__(self):
        self.mutex = new Mutex()
        self.ready_user = new Ready()
        self.ready_loop = new Ready()
        self.ready_background = new Ready()
        self.scratch = <char*> scratch_new(SCRATCH_BYTES)
        self.arena = NULL
        self.record = NULL
        self.granted = NULL
        self.epoll = self.kicker = self.loop_kicker = self.listener = -1

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
        self.p.peer_numbers = KEY_LISTENER
        self.p.most_lineage_bytes = lineage_limit()
        self.node_dir = node_dir
        self.inline_limit = inline_limit
        self.directory = from_bytes(os.fsencode(node_dir))
        self.done_callbacks = {}
        self.spin_ns = SPIN_NS
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        self.kicker = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        self.loop_kicker = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
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
            del self.ready_loop
            del self.ready_background
            scratch_free(self.scratch)
        # Views of objects keep the engine, so nobody looks at the arena any more; as long as it is mapped its pages stay, though its cluster has ended.
        if self.arena != NULL and not self.forked:
            shoal_arena_detach(self.arena)
        # A program may begin and end a thousand clusters. (The lease and the history are a worker's, and a worker has one.)
        unmap_control(self.record)
        unmap_control(self.granted)

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
            self.p.most_adopted_bytes = answer.arena_bytes // 4
            close_fd(self.registered_fds[0])
        if self.registered_fds.size() >= 2:
            self.record = <ControlRecord*> map_control(self.registered_fds[1], 256 * <size_t> answer.control_record)
            if self.p.kind == 1:
                self.p.node_lease = map_lease(self.registered_fds[1])
            self.granted = <Allowance*> map_allowance(self.registered_fds[1], answer.control_record)
            close_fd(self.registered_fds[1])
            if self.record != NULL:
                memset(self.record, 0, sizeof(ControlRecord))
                self.record.pid = self.p.pid
                self.record.magic = CONTROL_MAGIC
        if self.registered_fds.size() >= 3:
            self.history = map_history(self.registered_fds[2], answer.control_record, self.p.pid, self.p.me.worker)
            close_fd(self.registered_fds[2])
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
        held = self.p.entries.begin()
        while held != self.p.entries.end():
            if deref(held).second.held.get() != NULL:
                self.unpin(deref(held).second.held.get()[0])
                deref(held).second.held.reset()
            inc(held)
        self.p.store = NULL
        self.mutex.unlock()
        if self.arena != NULL:
            shoal_arena_close_fd(self.arena)
        for fd in (self.listener, self.epoll, self.kicker, self.loop_kicker):
            if fd >= 0:
                close_fd(fd)
        self.listener = self.epoll = self.kicker = self.loop_kicker = -1
        try:
            os.unlink(os.path.join(self.node_dir, "w", self.worker_id.hex() + ".sock"))
        except OSError:
            pass  # the node's directory went first
        self.end_callbacks()

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
        for fd in (self.listener, self.epoll, self.kicker, self.loop_kicker):
            if fd >= 0:
                close_fd(fd)
        self.listener = self.epoll = self.kicker = self.loop_kicker = -1
