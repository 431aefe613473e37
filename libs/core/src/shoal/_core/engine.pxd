from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from shoal._core.arena cimport shoal_arena_t, shoal_loc_t
from shoal._core.history cimport HistoryRing
from shoal._core.protocol cimport *
from shoal._core.sockets cimport Ready
from shoal._core.state cimport *
from shoal._core.std cimport shared_ptr, string, vector

cdef enum Poller:
    NOBODY = 0
    USER = 1
    BACKGROUND = 2


cdef class Payload:
    cdef readonly uint8_t kind
    cdef readonly bytes inband
    cdef readonly object buffers, refs
    cdef readonly uint64_t nbytes

    cdef int write(self, char* to) except -1
    cdef int append_to(self, string& out) except -1


cdef class Holder:
    cdef Bytes value
    cdef Engine engine
    cdef shoal_loc_t place
    cdef bint pinned


cdef class View:
    cdef Holder holder
    cdef const char* data
    cdef Py_ssize_t size


cdef class Private:
    cdef object keep
    cdef void* data
    cdef Py_ssize_t size
    cdef void* mapping
    cdef uint64_t mapped


cdef class Value:
    cdef readonly uint8_t kind
    cdef readonly object inband
    cdef readonly list buffers
    cdef bint troubled  # an error of the moment, not of the object


cdef class ObjectRef:
    cdef ObjectId id
    cdef Owner who
    cdef Engine engine
    # Safety: an entry lives as long as it is counted, and this reference is one of its counts.
    cdef Entry* entry
    cdef object __weakref__


cdef class Task:
    cdef shared_ptr[RunTask] run
    cdef Engine engine
    cdef object args_value, deps_list

    cdef tuple load(self)


cdef class Sockets:
    cdef Protocol p
    cdef Mutex* mutex
    cdef shoal_arena_t* arena
    cdef int epoll, kicker, loop_kicker, listener
    cdef string directory
    cdef char* scratch
    cdef uint64_t released, timers_at
    # joining
    cdef Waiter* registered
    cdef string registered_raw
    cdef vector[int] registered_fds
    # the polling token: who serves the sockets
    cdef Poller poller
    cdef int32_t background_word
    cdef bint background_deep
    cdef bint background_waiting  # in epoll_wait, or about to be: whoever takes the token from it may drain the kick that was to wake it
    cdef bint background_kicked  # one kick is enough: on a busy machine thousands of calls go by before it runs
    cdef size_t open_callbacks  # nobody waits for them in get(), so the background does without a pause
    # whose thread lies in epoll_wait with the token: only a kick wakes it, which nobody else may take away
    cdef Waiter* asleep
    cdef bint asleep_kicked
    # an event loop that watches the sockets
    cdef bint loop_mode, loop_polling, loop_kicked

    cdef void opened(self, Peer* peer, int fd) noexcept nogil
    cdef void shut(self, Peer* peer) noexcept nogil
    cdef void connect_store(self) noexcept nogil
    cdef void connect_peers(self) noexcept nogil
    cdef void write_peer(self, Peer* peer) noexcept nogil
    cdef bint write_greeting(self, Peer* peer) noexcept nogil
    cdef bint write_out(self, Peer* peer) noexcept nogil
    cdef bint try_later(self, Peer* peer, long problem) noexcept nogil
    cdef void move_socket(self, Peer* peer, const char* data, size_t size) noexcept nogil
    cdef void hold_borrowed(self) noexcept nogil
    cdef void unpin(self, const Place& held) noexcept nogil
    cdef void close_peers(self) noexcept nogil
    cdef void flush(self) noexcept nogil
    cdef void read_peer(self, Peer* peer) noexcept nogil
    cdef size_t parse(self, Peer* peer, const char* data, size_t size) noexcept nogil
    cdef void on_descriptors(self, Peer* peer, uint8_t type, const char* data, size_t size) noexcept nogil
    cdef void accept_peers(self) noexcept nogil
    cdef void handle(self, Ready* ready, int n) noexcept nogil
    cdef void after(self) noexcept nogil
    cdef void wake_all(self) noexcept nogil
    cdef void soon(self, Peer* peer, size_t ahead) noexcept nogil
    cdef void stir(self) noexcept nogil


cdef class Polling(Sockets):
    cdef ControlRecord* record
    cdef HistoryRing* history
    cdef Ready* ready_user
    cdef Ready* ready_loop
    cdef Ready* ready_background
    cdef uint64_t poll_since
    cdef vector[Waiter*] parked
    cdef object background
    cdef uint64_t spin_ns, spin_tries
    cdef uint64_t loop_polled
    cdef uint32_t blocked

    cdef int serve(self, Waiter* w, uint64_t deadline, int64_t slice_ns) noexcept nogil
    cdef int poll_until(self, Waiter* w, uint64_t deadline, int64_t slice_ns) noexcept nogil
    cdef void run_background(self) noexcept nogil
    cdef int wait_in_background(self, int timeout_ms) noexcept nogil
    cdef void sleep_background(self, bint deep, int64_t ns) noexcept nogil
    cdef int wait_for(self, Waiter* w, double timeout, what) except -1
    cdef int wait_until(self, Waiter* w, uint64_t deadline) except -1
    cdef void park(self, Waiter* w, int64_t ns) noexcept nogil
    cdef void block(self, bint on) noexcept nogil


cdef class Allowances(Polling):
    cdef Allowance* granted  # of the control pages, where the raylet writes what it allows; NULL: it keeps none
    cdef uint64_t asked  # so often this process has asked for more
    cdef uint64_t refused_ns  # when the job's limit of tasks was said to be reached, and how
    cdef str refusal

    cdef int set_aside(self, uint64_t size_bytes) except -1
    cdef void settle(self, uint64_t size_bytes) noexcept
    cdef int ask_allowance(self, bint of_tasks, uint64_t more) except -1


cdef class Arena(Allowances):
    cdef int reserve(self, uint64_t nbytes, shoal_loc_t* loc, void** data) except -1
    cdef tuple ask_store(self, uint64_t nbytes)
    cdef int write_arena(self, Payload payload, const Owner& owner, Place& place) except -1
    cdef void free_places(self, vector[Place]& places) noexcept nogil


cdef class Refs(Arena):
    cdef readonly uint64_t inline_limit
    cdef readonly bint forked, closed

    cdef check(self)
    cdef void release(self, const ObjectId& id) noexcept nogil
    cdef ObjectRef new_ref(self, const ObjectId& id, const Owner& owner, Entry* entry)
    cdef void go_out(self) noexcept nogil
    cdef int contained(self, Payload payload, vector[ContainedRef]& out) except -1


cdef class Reading(Refs):
    cdef object error_factory
    cdef uint64_t marks

    cdef Value value_of(self, const ObjectId& id, uint64_t deadline)
    cdef Value value_here(self, const ObjectId& id, uint64_t deadline)
    cdef void not_here(self, const ObjectId& id, const shoal_loc_t& place) noexcept nogil
    cdef bint is_here(self, Entry* e) noexcept nogil
    cdef int get_ready(self, const ObjectId& id, uint64_t deadline) except -1
    cdef Value failure_value(self, uint16_t code, const string& message, const string& name, const ObjectId& id)
    cdef size_t watch_refs(self, list refs, Waiter* w, bint local, uint8_t urgency) noexcept
    cdef void unwatch_refs(self, list refs, Waiter* w) noexcept
    cdef Py_ssize_t mark_ready(self, list wanted, list ready, Py_ssize_t most, bint local) noexcept


cdef class Callbacks(Reading):
    cdef object callback_thread
    cdef dict done_callbacks
    cdef uint64_t callback_counter

    cdef run_callbacks(self)
    cdef bint near(self, ObjectRef ref) noexcept
    cdef call_on(self, loop, fn, ref)
    cdef uint64_t new_callback(self, ref, loop, fn) except 0
    cdef void expect_callback(self) noexcept nogil
    cdef add_callback(self, ObjectRef ref, loop, fn)
    cdef end_callbacks(self)


cdef class Submitting(Callbacks):
    cdef uint64_t told_full_ns
    cdef str last_name
    cdef Bytes last_name_bytes

    cdef int begin_spec(self, TaskState* t, uint32_t job, const Id16& function, uint32_t depth, uint32_t backpressure, str name, str method, str group,
                        Payload args, deps) except -1
    cdef int name_task(self, TaskState* t, str name) except -1
    cdef int wait_for_room(self, str name) except -1
    cdef str why_full(self, uint64_t holds_ns)
    cdef list make_returns(self, TaskState* t, uint32_t backpressure)
    cdef ObjectId args_object(self, TaskState* t) noexcept nogil


cdef class Calling(Submitting):
    pass


cdef class Streaming(Calling):
    cdef int await_lease(self) except -1


cdef class Control(Streaming):
    cdef object cancel_handler

    cdef uint64_t send_call(self, bytes method, bytes payload, uint32_t timeout_ms, Waiter* w) noexcept


cdef class Explaining(Control):
    pass


cdef class Executing(Explaining):
    cdef int64_t nudged


cdef class Engine(Executing):
    cdef readonly str node_dir
    cdef object __weakref__
