# distutils: language = c++
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The core worker's protocol, driven by hand: no sockets, no threads, no clock, no arena. For simulations.

What `engine.pyx` does around the protocol is done here by the caller: connections are numbers, bytes are delivered, the time is set.
Values are raw bytes or errors that travel inline, or lie at a place (slot, generation, size) of a store of pretence: what is there is the caller's affair.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from cython.operator cimport dereference as deref, preincrement as inc
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy
from shoal._core.protocol cimport *
from shoal._core.state cimport *
from shoal._core.std cimport deque, shared_ptr, string, unordered_map, vector

from shoal._core import protocol as _protocol

if _protocol.records() != layout():
    raise ImportError("shoal._core.driven and shoal._core.protocol were built from different sources: build shoal-core anew")

cdef extern from *:
    """
    #include "wire.h"
    static void read_rows(const shoal::Entry& e, std::vector<shoal::Id16>& workers, std::vector<int32_t>& sums) {
      if (!e.rows) return;
      for (const auto& [worker, row] : *e.rows) { workers.push_back(worker); sums.push_back(row.sum); }
    }
    """
    void read_rows(const Entry&, vector[Id16]&, vector[int32_t]&)

KIND_BYTES = 1
KIND_ERROR = 3
KIND_STORED = 255  # get(): the value lies in this node's store, at (slot, generation)

cdef Id16 NIL
cdef string NOTHING


include "shell/ids.pxi"


cdef bytes owner_bytes(const Owner& owner):
    return id_bytes(owner.worker) + id_bytes(owner.node)


cdef ObjectId to_object_id(bytes raw) except *:
    if PyBytes_GET_SIZE(raw) != 20:
        raise ValueError(f"an object's id of 20 bytes is needed, got {len(raw)}")
    return load_object_id(PyBytes_AS_STRING(raw))


cdef Owner to_owner(bytes raw) except *:
    cdef Owner owner
    if PyBytes_GET_SIZE(raw) != 32:
        raise ValueError(f"an owner of 32 bytes is needed, got {len(raw)}")
    owner.worker = load_id(PyBytes_AS_STRING(raw))
    owner.node = load_id(PyBytes_AS_STRING(raw) + 16)
    return owner


cdef string make_value(uint8_t kind, bytes inband):
    """A value without buffers, as ARCHITECTURE.md lays it out."""
    cdef string out
    put8(out, kind)
    put8(out, 0)
    put16(out, 0)
    put32(out, 0)
    put64(out, <uint64_t> PyBytes_GET_SIZE(inband))
    out.append(PyBytes_AS_STRING(inband), PyBytes_GET_SIZE(inband))
    return out


cdef tuple read_value(const char* data, size_t size):
    """(kind, in-band bytes)"""
    cdef uint64_t n
    if size < 16:
        return (2, b"")
    memcpy(&n, data + 8, 8)
    return (<uint8_t> data[0], PyBytes_FromStringAndSize(data + 16, <Py_ssize_t> min(n, <uint64_t> size - 16)))


cdef class Run:
    """A task that somebody sent here."""

    cdef shared_ptr[RunTask] task

    @property
    def task_id(self):
        return id_bytes(self.task.get().id)

    @property
    def kind(self):
        return self.task.get().kind

    @property
    def attempt(self):
        return self.task.get().attempt

    @property
    def actor_id(self):
        return id_bytes(self.task.get().actor)

    @property
    def sequence(self):
        return self.task.get().sequence

    @property
    def lease_id(self):
        return self.task.get().lease_id

    @property
    def name(self):
        return to_str(self.task.get().name)

    @property
    def caller(self):
        return owner_bytes(self.task.get().caller)

    @property
    def cancelled(self):
        return bool(self.task.get().cancelled)

    @property
    def args(self):
        return read_value(self.task.get().args.data(), self.task.get().args.size())[1]


include "shell/driven_connections.pxi"
include "shell/driven_places.pxi"


cdef class Driven(Places):
    """One process's protocol. Every call but the readers may leave frames, connections to open and events: take them afterwards."""

    cdef Allowance allowance_words

    def __init__(self, *, bytes worker_id, bytes node_id, int kind, uint32_t job=0):
        self.p = Protocol()
        self.p.me.worker = to_id(worker_id)
        self.p.me.node = to_id(node_id)
        self.p.kind = <uint8_t> kind
        self.p.job = job
        self.p.task_prefix = self.p.me.worker.low ^ (self.p.me.worker.high * 0x9E3779B97F4A7C15U)

    # -- references ---------------------------------------------------------------------------------------------------------------

    cdef vector[ContainedRef] _contained(self, refs) except *:
        cdef vector[ContainedRef] out
        cdef ContainedRef c
        for ref in refs:
            c.id = to_object_id(ref[0])
            c.owner = to_owner(ref[1])
            out.push_back(c)
        return out

    cdef Place _place(self, at) except *:
        cdef Place place
        place.node = self.p.me.node
        place.slot, place.generation, place.size = at
        return place

    def put(self, value, refs=()):
        """An object of this process, with one local count; `refs`: (object id, owner) of those inside it. The value as bytes, or as its place on this node."""
        cdef vector[ContainedRef] contains = self._contained(refs)
        cdef string raw
        cdef ObjectId id = object_id(self.p.new_task_id(), 0)
        cdef Entry* e = self.p.own(id)
        cdef Entry* inner
        cdef size_t i
        e.local = 1
        if isinstance(value, tuple):
            e.state = IN_ARENA
            e.place = self._place(value)
            self.p.allowance.held_bytes += e.place.size
        else:
            raw = make_value(KIND_BYTES, value)
            e.state = INLINE
            e.value = make_bytes(raw.data(), raw.size())
        for i in range(contains.size()):
            inner = find_entry(self.p.entries, contains[i].id)
            if inner != NULL:
                inner.holds += 1
        find_entry(self.p.entries, id).contains.swap(contains)
        return object_id_bytes(id)

    def borrow(self, bytes object_id, bytes owner, Run run=None):
        """One more local count on a reference that was met in a value; `run`: the task that brought it."""
        cdef ObjectId id = to_object_id(object_id)
        cdef Owner who = to_owner(owner)
        cdef Entry* e = self.p.borrow(id, who)
        e.local += 1
        if not e.owned and e.registrations == 0:
            if run is not None and run.task.get().phase == RUN_STARTED:
                self.p.met(run.task.get(), e)
            elif e.local == 1 and e.holds == 0:
                e.registrations = 1
                self.p.register(id, who, self.p.me, 1)
                self.p.take_over(e, who)
        elif not e.owned and e.state == PENDING and not e.asked:
            self.p.take_over(e, who)

    def drop(self, bytes object_id):
        """One local count less."""
        self.p.drop_local(to_object_id(object_id))

    def get(self, bytes object_id):
        """None while it is not here, and then its owner or the store is asked; else (ok, kind, bytes, place or failure's text, [(id, owner)] inside)."""
        cdef ObjectId id = to_object_id(object_id)
        cdef Entry* e = find_entry(self.p.entries, id)
        cdef size_t i
        if e == NULL:
            raise KeyError(f"no entry of object {object_id.hex()} is here")
        if e.state == IN_ARENA and not self.p.is_local(e):
            self.p.pull(e)
        if e.state == PENDING:
            self.p.ask(e)
        if not self.p.is_local(e):
            return None
        inside = [(object_id_bytes(e.contains[i].id), owner_bytes(e.contains[i].owner)) for i in range(e.contains.size())]
        if e.state == IN_ARENA and e.trouble.get() != NULL:
            return (False, e.trouble.get().code, to_str(e.trouble.get().message), inside)
        if e.state == IN_ARENA:
            return (True, KIND_STORED, (e.copy.slot, e.copy.generation) if e.has_copy else (e.place.slot, e.place.generation), inside)
        if e.state == FAILED:
            return (False, e.failure.get().code, to_str(e.failure.get().message), inside)
        kind, inband = read_value(e.value.get().data(), e.value.get().size())
        return (kind != KIND_ERROR, kind, inband, inside)

    def entry(self, bytes object_id):
        """(owned, state, local, holds, registrations, rows by worker), or None."""
        cdef Entry* e = find_entry(self.p.entries, to_object_id(object_id))
        cdef dict rows = {}
        cdef vector[Id16] workers
        cdef vector[int32_t] sums
        cdef size_t i
        if e == NULL:
            return None
        read_rows(deref(e), workers, sums)
        for i in range(workers.size()):
            rows[id_bytes(workers[i])] = sums[i]
        return (bool(e.owned), <int> e.state, e.local, e.holds, e.registrations, rows)

    def not_here(self, bytes object_id):
        """This node's store does not have the object at its place any more: it may have it on disk."""
        cdef Entry* e = find_entry(self.p.entries, to_object_id(object_id))
        if e != NULL and e.has_copy:
            e.has_copy = False
        elif e != NULL:
            e.moved = True

    def holdings(self):
        """(unfinished tasks, bytes in stores) as they are counted for the job's limits, and the same as they are found by looking at everything."""
        cdef uint64_t found = 0
        it = self.p.entries.begin()
        while it != self.p.entries.end():
            if deref(it).second.owned and deref(it).second.state == IN_ARENA:
                found += deref(it).second.place.size
            inc(it)
        return (self.p.allowance.tasks, self.p.allowance.held_bytes), (self.p.tasks.size(), found)

    def limit_job(self):
        """The job has a limit of bytes in stores, which allows all."""
        self.allowance_words = self.p.allowance[0]
        self.p.allowance = &self.allowance_words

    def allowance(self):
        """What it counts of bytes in stores."""
        return {"held": self.p.allowance.held_bytes, "leaving": self.p.allowance.leaving_bytes, "passed": self.p.allowance.passed_bytes}

    def limit_lineage(self, uint64_t size_bytes):
        self.p.most_lineage_bytes = size_bytes

    def entries(self):
        """[(object id, owner)] of all that is known here."""
        cdef list out = []
        it = self.p.entries.begin()
        while it != self.p.entries.end():
            out.append((object_id_bytes(deref(it).second.id), owner_bytes(deref(it).second.owner)))
            inc(it)
        return out

    # -- submitting -----------------------------------------------------------------------------------------------------------------

    cdef int _fill(self, TaskState* t, bytes name, bytes args, deps, refs) except -1:
        cdef string value = make_value(KIND_BYTES, args)
        cdef Dependency d
        cdef uint16_t position = 0
        put_id(t.spec, t.id)
        put8(t.spec, t.kind)
        put8(t.spec, t.flags)
        put16(t.spec, t.num_returns)
        put32(t.spec, 0)
        put64(t.spec, 0)
        put32(t.spec, self.p.job)
        put_id(t.spec, NIL)
        put_id(t.spec, t.actor)
        put64(t.spec, 0)
        put32(t.spec, 0)
        put32(t.spec, 0)
        t.name = make_bytes(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))
        put_str16(t.spec, t.name.get()[0])
        put_str16(t.spec, NOTHING)
        put_str16(t.spec, NOTHING)
        put_str32(t.spec, value)
        for ref in refs:
            t.holds.push_back(to_object_id(ref))
        for ref in deps:
            d.position = position
            d.id = to_object_id(ref)
            position += 1
            t.deps.push_back(d)
            t.holds.push_back(d.id)
        return 0

    cdef list _returns(self, TaskState* t):
        cdef uint32_t i
        for i in range(1, <uint32_t> t.num_returns + 1):
            self.p.own(object_id(t.id, i)).local = 1
        return [object_id_bytes(object_id(t.id, i)) for i in range(1, <uint32_t> t.num_returns + 1)]

    def lease_class(self, bytes spec):
        return self.p.class_of(from_bytes(spec))

    def submit(self, uint32_t lease_class, bytes args=b"", deps=(), refs=(), uint16_t num_returns=1, int32_t max_retries=3, str name="f", Run parent=None):
        """The ids of the results, each with one local count. `deps`: ids of top-level arguments; `refs`: ids of those named inside `args`."""
        cdef shared_ptr[TaskState] task = new_task()
        cdef TaskState* t = task.get()
        t.kind = 0
        t.num_returns = num_returns
        t.retries_left = max_retries
        t.lease_class = lease_class
        t.id = self.p.new_task_id()
        if parent is not None:
            t.parent = parent.task.get().id
        self._fill(t, name.encode(), args, deps, refs)
        out = self._returns(t)
        self.p.submit(task)
        return out

    def cancel(self, bytes task_id, bint force=False, bint recursive=True):
        self.p.cancel(to_id(task_id), force, recursive)

    # -- actors -----------------------------------------------------------------------------------------------------------------------

    def new_actor_id(self):
        return id_bytes(self.p.new_task_id())

    def actor_handle(self, bytes actor_id):
        """The reference that counts the handles: made once, by the creator, with one local count."""
        cdef ObjectId id = object_id(to_id(actor_id), 0xFFFFFFFFU)
        cdef Entry* e = self.p.own(id)
        e.local += 1
        e.is_actor_handle = True
        e.state = INLINE
        e.value = none_value()
        return object_id_bytes(id)

    def creation_task(self, bytes actor_id, bytes args=b"", refs=(), str name="A", bint restartable=False):
        """The Task of kind 1; its references are held until the actor is dead."""
        cdef shared_ptr[TaskState] task = new_task()
        cdef TaskState* t = task.get()
        cdef ActorState* a
        cdef Entry* e
        cdef size_t i
        cdef string out
        t.kind = 1
        t.flags = RESTARTABLE if restartable else 0
        t.actor = to_id(actor_id)
        t.id = self.p.new_task_id()
        self._fill(t, name.encode(), args, (), refs)
        a = self.p.actor(t.actor)
        for i in range(t.holds.size()):
            e = find_entry(self.p.entries, t.holds[i])
            if e != NULL:
                e.holds += 1
                a.creation_holds.push_back(t.holds[i])
        out = t.spec
        put16(out, 0)
        put32(out, 0)
        return to_bytes(out)

    def attach_actor(self, bytes actor_id):
        """True the first time: then its channel must be subscribed to."""
        cdef ActorState* a = self.p.actor(to_id(actor_id))
        if a.subscribed:
            return False
        a.subscribed = True
        return True

    def submit_actor(self, bytes actor_id, bytes args=b"", deps=(), refs=(), uint16_t num_returns=1, int32_t max_retries=0, str name="A.f", Run parent=None):
        cdef shared_ptr[TaskState] task = new_task()
        cdef TaskState* t = task.get()
        t.kind = 2
        t.num_returns = num_returns
        t.retries_left = max_retries
        t.actor = to_id(actor_id)
        t.id = self.p.new_task_id()
        if parent is not None:
            t.parent = parent.task.get().id
        self._fill(t, name.encode(), args, deps, refs)
        out = self._returns(t)
        self.p.submit(task)
        return out

    def actor_update(self, bytes actor_id, int state, bytes worker_id, bytes node_id, uint64_t incarnation, int code=0, str cause="", bytes error=b""):
        cdef Id16 worker = to_id(worker_id) if worker_id else NIL
        cdef Id16 node = to_id(node_id) if node_id else NIL
        self.p.on_actor(self.p.actor(to_id(actor_id)), <uint8_t> state, worker, node, incarnation, <uint16_t> code, from_bytes(cause.encode()), from_bytes(error))

    # -- executing ----------------------------------------------------------------------------------------------------------------------

    def set_lease_until(self, uint64_t ns):
        """When this node's lease is over; 0: it has none yet."""
        self.lease_word = ns
        self.p.node_lease = &self.lease_word

    def next_run(self):
        """The next task that may start, or None."""
        cdef Run run = Run.__new__(Run)
        if self.p.lease_is_over(self.p.now):
            return None
        run.task = self.p.pop_run(NOTHING)
        return None if run.task.get() == NULL else run

    def begin(self, Run run):
        """False: it was cancelled or handed back meanwhile."""
        cdef RunTask* t = run.task.get()
        if t.phase != RUN_QUEUED and t.phase != RUN_WAITING:
            return False
        t.phase = RUN_STARTED
        self.p.started += 1
        self.p.started_at = self.p.now
        return True

    def deps(self, Run run):
        """[(position, ok, kind, bytes or failure's text, object id, [(id, owner)] inside)] of the top-level arguments."""
        cdef RunTask* t = run.task.get()
        cdef size_t i
        cdef list out = []
        for i in range(t.deps.size()):
            if t.deps[i].entry:
                out.append((t.deps[i].position, *self.get(object_id_bytes(t.deps[i].id))))
            else:
                kind, inband = read_value(t.deps[i].value.get().data(), t.deps[i].value.get().size())
                out.append((t.deps[i].position, kind != KIND_ERROR, kind, inband, []))
        return out

    def stored_deps(self, Run run):
        """The ids of those top-level arguments that may lie in a store."""
        return [object_id_bytes(run.task.get().deps[i].id) for i in range(run.task.get().deps.size()) if run.task.get().deps[i].entry]

    def reply(self, Run run, int status, results, uint32_t duration_us=0):
        """Ends a task. `results`: (kind, bytes or a place on this node, refs) each, with refs as (object id, owner); one error when the status is not 0."""
        cdef RunTask* t = run.task.get()
        cdef Peer* peer = t.from_
        cdef vector[ContainedRef] contains
        cdef string value
        cdef Place place
        cdef size_t start
        cdef uint64_t written = 0
        if t.phase != RUN_STARTED:
            return
        if t.kind == 1:
            if self.p.raylet != NULL:
                start = begin_frame(self.p.raylet[0], ACTOR_CREATED)
                put_id(self.p.raylet.out, t.actor)
                put8(self.p.raylet.out, 1 if status == STATUS_OK else 0)
                for kind, inband, refs in results if status != STATUS_OK else ():
                    value = make_value(kind, inband)
                    self.p.raylet.out.append(value)
                self.p.done(self.p.raylet, start)
        elif peer != NULL and peer.phase != CLOSED:
            start = begin_frame(peer[0], REPLY)
            put_id(peer.out, t.id)
            put32(peer.out, t.attempt)
            put8(peer.out, <uint8_t> status)
            put32(peer.out, duration_us)
            put32(peer.out, <uint32_t> len(results))
            for kind, inband, refs in results:
                if isinstance(inband, tuple):
                    place = self._place(inband)
                    put8(peer.out, 1)
                    put_id(peer.out, place.node)
                    put32(peer.out, place.slot)
                    put32(peer.out, place.generation)
                    put64(peer.out, place.size)
                    written += place.size
                else:
                    value = make_value(kind, inband)
                    put8(peer.out, 0)
                    put_str32(peer.out, value)
                contains = self._contained(refs)
                self.p.put_contains(peer.out, contains, peer.who)
            self.p.put_borrowed(peer.out, t)
            put32(peer.out, 0)
            self.p.done(peer, start)
            if written:
                self.p.pass_on(peer, written)
        self.p.started -= 1
        self.p.end_run(run.task)

    # -- effects and counts ---------------------------------------------------------------------------------------------------------------

    def events(self):
        """(kind, number, id, text, payload) since the last call."""
        cdef list out = []
        cdef Event event
        while not self.p.events.empty():
            event = self.p.events.front()
            self.p.events.pop_front()
            out.append((event.kind, event.number, id_bytes(event.a), to_bytes(event.text), to_bytes(event.payload)))
        return out

    def worker_died(self, bytes worker_id, bytes node_id, int code=CODE_WORKER_CRASHED, str cause="it died", bytes started=None):
        """What the raylet tells: which task the process had started, if any."""
        self.p.worker_died(to_id(worker_id), NIL if started is None else to_id(started), True, <uint16_t> code, from_bytes(cause.encode()))

    def limit_oom_retries(self, int32_t count):
        self.p.oom_retries = count

    def node_died(self, bytes node_id, str cause="the node died"):
        self.p.node_died(to_id(node_id), from_bytes(cause.encode()))

    def counts(self):
        cdef size_t leases = 0, rows = 0, ready = 0, i
        for i in range(self.p.classes.size()):
            leases += self.p.classes[i].leases.size()
            ready += self.p.classes[i].ready.size()
        it = self.p.entries.begin()
        while it != self.p.entries.end():
            rows += has_rows(deref(it).second)
            inc(it)
        return {
            "entries": self.p.entries.size(), "rows": rows, "lent": self.p.lent, "tasks": self.p.tasks.size(), "ready": ready, "leases": leases,
            "runs": self.p.runs.size(), "peers": self.p.all_peers.size(), "dead": self.p.dead_workers.size(), "resumed": self.p.resumed,
            "submitted": self.p.submitted, "completed": self.p.completed, "retried": self.p.retried,
            "lineage": self.p.lineage.size(), "lineage_bytes": self.p.lineage_bytes, "remade": self.p.remade,
        }

    def leases(self):
        """[(lease id, node id, worker id, tasks in flight)]"""
        cdef list out = []
        cdef size_t i, k
        for i in range(self.p.classes.size()):
            for k in range(self.p.classes[i].leases.size()):
                lease = self.p.classes[i].leases[k]
                out.append((lease.id, id_bytes(lease.node), id_bytes(lease.peer.who.worker), lease.in_flight.size()))
        return out


EVENT_KINDS = {
    EVENT_CHANNEL: "channel", EVENT_SUBSCRIBE: "subscribe", EVENT_LEASE_BEGIN: "lease_begin", EVENT_EXIT: "exit",
    EVENT_ACTOR_OUT_OF_SCOPE: "actor_out_of_scope", EVENT_RAYLET_LOST: "raylet_lost", EVENT_CALL_FAILED: "call_failed",
    EVENT_NODE_ADDRESS: "node_address", EVENT_CANCEL: "cancel", EVENT_PUT_OFF: "put_off",
}
