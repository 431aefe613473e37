from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from shoal._core.state cimport *
from shoal._core.std cimport NumberHash, StringHash, deque, ordered_map, shared_ptr, string, unordered_map, unordered_set, vector

cdef enum Frame:
    HELLO = 1
    ACK = 2
    PING = 3
    PONG = 4
    BYE = 5
    TASK = 10
    REPLY = 11
    HANDBACK = 12
    CANCEL = 13
    ITEM = 14
    ITEM_ACK = 15
    GET = 20
    GOT = 21
    REF_DELTA = 22
    LOCATION = 23
    LOST = 24
    REGISTER = 40
    REGISTERED = 41
    LEASE_DEMAND = 42
    LEASE_GRANT = 43
    LEASE_REFUSED = 44
    LEASE_RETURN = 45
    LEASE_RECLAIM = 46
    LEASE_BEGIN = 47
    WORKER_DIED = 48
    NODE_DIED = 49
    ROUTED = 50
    ACTOR_CREATE = 51
    ACTOR_CREATED = 52
    EXIT = 53
    OWNS = 54
    NODE_DRAINS = 55
    CALL = 60
    RESULT = 61
    EVENT = 62
    EXTENT_REQUEST = 70
    EXTENT_GRANT = 71
    PULL = 72
    PULLED = 73
    FREE = 74
    KEEP = 77
    SETTLED = 78

cdef enum Status:
    STATUS_OK = 0
    STATUS_RAISED = 1
    STATUS_CANCELLED = 2
    STATUS_LEAVING = 3
    STATUS_REJECTED = 4
    STATUS_RAISED_RETRY = 5

cdef enum TaskFlag:
    STREAMING = 1
    RETRY_EXCEPTIONS = 2
    RESTARTABLE = 64  # of an actor's creation: another life of it may begin elsewhere

# The codes of shoal_base.errors that the protocol itself uses; a test holds the two together.
cdef enum Code:
    CODE_OK = 0
    CODE_WORKER_CRASHED = 1
    CODE_WORKER_EXITED = 2
    CODE_OUT_OF_MEMORY = 3
    CODE_NODE_DIED = 4
    CODE_OWNER_DIED = 7
    CODE_CANCELLED = 30
    CODE_ACTOR_DIED = 33
    CODE_ACTOR_UNAVAILABLE = 34
    CODE_OBJECT_LOST = 40
    CODE_ARENA_FULL = 41
    CODE_OUT_OF_DISK = 42
    CODE_OBJECT_FREED = 43
    CODE_FETCH_TIMED_OUT = 44
    CODE_OBJECT_WAS_PUT = 50
    CODE_RETRIES_EXHAUSTED = 51
    CODE_RETRIES_DISABLED = 52
    CODE_LINEAGE_EVICTED = 53
    CODE_LINEAGE_BROKEN = 54
    CODE_UNREACHABLE = 63
    CODE_SHUTTING_DOWN = 65
    CODE_BAD_FRAME = 66

# What the control thread is told.
cdef enum EventKind:
    EVENT_CHANNEL = 1
    EVENT_SUBSCRIBE = 2
    EVENT_CONNECT = 3
    EVENT_LEASE_BEGIN = 4
    EVENT_EXIT = 5
    EVENT_ACTOR_OUT_OF_SCOPE = 6
    EVENT_RAYLET_LOST = 7
    EVENT_CALL_FAILED = 8
    EVENT_NODE_ADDRESS = 9
    EVENT_CANCEL = 10
    EVENT_PUT_OFF = 11

ctypedef deque[shared_ptr[RunTask]] RunQueue
ctypedef vector[Waiter*] WaiterList
ctypedef ActorState* ActorPointer
ctypedef Stream* StreamPointer
ctypedef Peer* PeerPointer
ctypedef RunQueue* RunQueuePointer
ctypedef WaiterList* WaiterListPointer

cdef class Peers:
    cdef Owner me
    cdef uint32_t job
    cdef uint64_t now
    cdef bint closing
    cdef uint8_t kind, python_major, python_minor
    cdef uint32_t pid
    cdef unordered_map[Id16, PeerPointer, Id16Hash] peers
    cdef vector[Peer*] all_peers, dirty, to_connect, awaiting_address, closed, retired
    cdef vector[Peer*] to_connect_later
    cdef unordered_map[Id16, Undialled, Id16Hash] undialled
    cdef unordered_map[uint64_t, PeerPointer, NumberHash] numbered
    cdef uint64_t peer_numbers, looked_idle, resumed
    cdef uint32_t epochs, dialled
    cdef vector[uint64_t] to_close
    cdef Peer* raylet
    cdef Peer* store
    cdef unordered_map[Id16, string, Id16Hash] addresses
    cdef unordered_map[Id16, uint64_t, Id16Hash] address_asked
    cdef unordered_map[Id16, string, Id16Hash] dead_workers
    cdef deque[Id16] dead_in_order
    cdef unordered_map[Id16, string, Id16Hash] dead_nodes
    # effects for the shell
    cdef deque[Event] events
    cdef WaiterList event_waiters
    cdef vector[Waiter*] woken

    cdef Peer* new_peer(self) noexcept nogil
    cdef Peer* numbered_peer(self, uint64_t number) noexcept nogil
    cdef Peer* peer_to(self, const Owner& who) noexcept nogil
    cdef Allowance* allowance  # of the job's limits; never NULL
    cdef Allowance unlimited

    cdef bint is_dead(self, const Owner& who) noexcept nogil
    cdef void remember_death(self, const Id16& worker, const string& cause) noexcept nogil
    cdef void unmap(self, Peer* peer) noexcept nogil
    cdef void pass_on(self, Peer* peer, uint64_t size_bytes) noexcept nogil
    cdef void on_pong(self, Peer* peer, uint64_t size_bytes) noexcept nogil
    cdef void retire(self, Peer* peer) noexcept nogil
    cdef void free_retired(self) noexcept nogil
    cdef void touch(self, Peer* peer) noexcept nogil
    cdef void done(self, Peer* peer, size_t start) noexcept nogil
    cdef void flush_deltas(self, Peer* peer) noexcept nogil
    cdef void put_hello(self, string& out) noexcept nogil
    cdef void hello(self, Peer* peer) noexcept nogil
    cdef void greet(self, Peer* peer) noexcept nogil
    cdef bint admit(self, Peer* peer, const char* header) noexcept nogil
    cdef void acknowledge(self, Peer* peer) noexcept nogil
    cdef void on_acknowledged(self, Peer* peer, uint64_t sequence) noexcept nogil
    cdef void fire(self, Waiter* waiter) noexcept nogil
    cdef void fire_all(self, WaiterList& waiters) noexcept nogil
    cdef void ask_address(self, const Id16& node) noexcept nogil
    cdef void dial(self, Peer* peer) noexcept nogil
    cdef void dial_due(self) noexcept nogil
    cdef void ask_addresses(self) noexcept nogil
    cdef void on_ping(self, Peer* peer, Reader& r) noexcept nogil
    cdef void emit(self, uint8_t kind, uint64_t number, const Id16& a, const string& text, const string& payload) noexcept nogil


cdef class Calls(Peers):
    cdef unordered_map[uint64_t, Call, NumberHash] calls
    cdef uint64_t call_counter

    cdef void on_result(self, Reader& r) noexcept nogil
    cdef void on_extent(self, Reader& r) noexcept nogil


cdef class References(Calls):
    cdef EntryMap entries
    cdef vector[ObjectId] drops
    cdef bint dropping
    cdef vector[Place] arena_frees
    # objects of this process that others hold, and what the raylet was told of them
    cdef uint64_t lent, lent_ns
    cdef uint8_t told_owns
    # what the store was told and has not done yet, by number
    cdef unordered_map[uint64_t, Telling, NumberHash] tellings
    # pins that objects of dead owners held here
    cdef vector[Place] arena_unpins
    # of objects of dead owners that were brought here
    cdef uint64_t adopted_bytes, most_adopted_bytes

    cdef void drop_local(self, const ObjectId& id) noexcept nogil
    cdef void drop_hold(self, const ObjectId& id) noexcept nogil
    cdef void settle_drops(self) noexcept nogil
    cdef void free_entry(self, Entry* e) noexcept nogil
    cdef void put_down(self, Entry* e) noexcept nogil
    cdef void free_places(self, Entry* e) noexcept nogil
    cdef void free_place(self, const Place& place) noexcept nogil
    cdef void tell_free(self, const Place& place) noexcept nogil
    cdef void tell_store(self, uint8_t frame, const Place& place) noexcept nogil
    cdef void send_telling(self, uint64_t number, Telling& telling) noexcept nogil
    cdef void tell_again(self) noexcept nogil
    cdef void tellings_lost(self) noexcept nogil
    cdef void on_settled(self, Reader& r) noexcept nogil
    cdef void register(self, const ObjectId& id, const Owner& owner, const Owner& receiver, int32_t delta) noexcept nogil
    cdef void rows_changed(self, Entry* e, bint before) noexcept nogil
    cdef void tell_owns(self, uint8_t flags) noexcept nogil
    cdef void on_ref_delta(self, Peer* peer, Reader& r) noexcept nogil


cdef class Objects(References):
    cdef vector[uint64_t] callbacks
    cdef WaiterList callback_waiters

    cdef Entry* own(self, const ObjectId& id) noexcept nogil
    cdef Entry* borrow(self, const ObjectId& id, const Owner& owner) noexcept nogil
    cdef void put_contains(self, string& out, vector[ContainedRef]& refs, const Owner& receiver) noexcept nogil
    cdef void put_contained(self, string& out, const ContainedRef& ref, const Owner& receiver) noexcept nogil
    cdef void put_object(self, string& out, Entry* e, const Owner& receiver) noexcept nogil
    cdef void read_object(self, Reader& r, Arrived& a) noexcept nogil
    cdef void discard(self, Arrived& a) noexcept nogil
    cdef void apply(self, Entry* e, Arrived& a) noexcept nogil
    cdef void fail_object(self, Entry* e, uint16_t code, const string& message, const string& name) noexcept nogil
    cdef bint is_local(self, Entry* e) noexcept nogil
    cdef void on_ready(self, Entry* e) noexcept nogil
    cdef void fail_owner_died(self, Entry* e) noexcept nogil
    cdef string name_of_owner(self, Entry* e) noexcept nogil
    cdef string death_of_owner(self, Entry* e) noexcept nogil
    cdef void ask(self, Entry* e) noexcept nogil
    cdef void ask_anew(self, Entry* e) noexcept nogil
    cdef void ask_at(self, Entry* e, const Owner& who) noexcept nogil
    cdef void on_get(self, Peer* peer, Reader& r) noexcept nogil
    cdef void on_got(self, Peer* peer, Reader& r) noexcept nogil


cdef class Copies(Objects):
    cdef vector[ObjectId] interrupted_pulls
    # borrowed objects whose owner died: to be pinned where they are here
    cdef vector[ObjectId] to_hold
    # of objects whose nodes could not be reached: which to pull again at what time, and since when each could not
    cdef vector[ObjectId] later_pulls
    cdef uint64_t later_pulls_ns
    cdef unordered_map[ObjectId, uint64_t, ObjectIdHash] unreached
    # nodes that are to go, by when that was told
    cdef unordered_map[Id16, uint64_t, Id16Hash] draining

    cdef void pull_later(self, Entry* e, const string& why) noexcept nogil
    cdef void pull_again(self) noexcept nogil
    cdef bint needs_copy(self, Entry* e) noexcept nogil
    cdef bint is_to_move(self, Entry* e) noexcept nogil
    cdef void node_drains(self, const Id16& node) noexcept nogil
    cdef void bring_here(self, Entry* e) noexcept nogil
    cdef void move_here(self, Entry* e) noexcept nogil
    cdef void node_found(self, const Id16& node, const string& address) noexcept nogil
    cdef void pull(self, Entry* e) noexcept nogil
    cdef void put_sources(self, Entry* e) noexcept nogil
    cdef void on_pulled(self, Reader& r) noexcept nogil
    cdef void know_copy(self, Entry* e, const Place& place) noexcept nogil
    cdef void on_location(self, Peer* peer, Reader& r) noexcept nogil
    cdef void store_lost(self) noexcept nogil
    cdef void store_found(self) noexcept nogil


cdef class Adoption(Copies):
    cdef void came_inside(self, vector[ContainedRef]& refs, const Owner& lender) noexcept nogil
    cdef void take_over(self, Entry* e, const Owner& lender) noexcept nogil
    cdef void adopt(self, Entry* e) noexcept nogil
    cdef void held_here(self, Entry* e, uint32_t slot, uint32_t generation) noexcept nogil
    cdef void not_held(self, Entry* e) noexcept nogil


cdef class Streams(Adoption):
    cdef unordered_map[Id16, StreamPointer, Id16Hash] streams

    cdef void on_item(self, Peer* peer, Reader& r) noexcept nogil
    cdef void stream_moved(self, Stream* s) noexcept nogil
    cdef void acknowledge_items(self, Peer* peer, const Id16& id, uint32_t consumed) noexcept nogil
    cdef void end_stream(self, TaskState* t, uint8_t status, uint32_t items, Arrived* error) noexcept nogil


cdef class Tasks(Streams):
    cdef uint64_t reverted  # how often an object that was there had to be made again, or asked for
    cdef uint64_t task_prefix, task_counter
    cdef Table[Id16, shared_ptr[TaskState], Id16Hash] tasks
    cdef unordered_map[Id16, ActorPointer, Id16Hash] actors
    cdef uint64_t submitted, completed, retried
    # what may wait at most, and who waits for room
    cdef uint64_t most_tasks, most_spec_bytes, spec_bytes
    cdef WaiterList room_waiters

    cdef Id16 new_task_id(self) noexcept nogil
    cdef ActorState* actor(self, const Id16& id) noexcept nogil
    cdef void send_task(self, Peer* peer, TaskState* t, uint64_t lease_id, uint64_t sequence) noexcept nogil
    cdef void untell(self, TaskState* t, const Owner& receiver) noexcept nogil
    cdef bint has_room(self) noexcept nogil
    cdef bint is_within(self) noexcept nogil
    cdef void finish(self, shared_ptr[TaskState] task) noexcept nogil
    cdef void fail_task(self, shared_ptr[TaskState] task, uint16_t code, const string& message) noexcept nogil
    cdef bint failed_dependency(self, TaskState* t) noexcept nogil
    cdef bint waits_again(self, shared_ptr[TaskState] task) noexcept nogil


cdef class Leases(Tasks):
    cdef vector[LeaseClass*] classes
    cdef unordered_map[string, uint32_t, StringHash] class_numbers
    cdef vector[Later] later
    cdef int32_t oom_retries        # how often a task is tried again that was ended because its node was short of memory; -1: always

    cdef uint32_t class_of(self, const string& spec) noexcept nogil
    cdef uint32_t depth(self, LeaseClass* c) noexcept nogil
    cdef void pump(self, LeaseClass* c) noexcept nogil
    cdef Lease* least_served(self, LeaseClass* c, uint32_t depth) noexcept nogil
    cdef void join_share(self, LeaseClass* c, Lease* lease, uint32_t over) noexcept nogil
    cdef void leave_share(self, LeaseClass* c, Lease* lease) noexcept nogil
    cdef void demand(self, LeaseClass* c) noexcept nogil
    cdef void on_grant(self, Reader& r) noexcept nogil
    cdef void on_refused(self, Reader& r) noexcept nogil
    cdef void on_reclaim(self, Reader& r) noexcept nogil
    cdef void lease_progress(self, Lease* lease) noexcept nogil
    cdef void return_lease(self, Lease* lease, bint discard) noexcept nogil
    cdef void give_up_lease(self, Lease* lease) noexcept nogil
    cdef void tell_return(self, uint64_t id, const Id16& node, bint discard) noexcept nogil
    cdef void return_idle(self) noexcept nogil
    cdef void lose_lease(self, Lease* lease, const Id16& started, bint known, uint16_t code, const string& cause) noexcept nogil
    cdef void put_off(self, shared_ptr[TaskState] task, const string& cause) noexcept nogil
    cdef void resume_later(self) noexcept nogil


cdef class Actors(Leases):
    cdef void drain_actor(self, ActorState* a) noexcept nogil
    cdef void on_actor(self, ActorState* a, uint8_t phase, const Id16& worker, const Id16& node, uint64_t incarnation, uint16_t code,
                       const string& cause, const string& error) noexcept nogil
    cdef void unsend(self, ActorState* a) noexcept nogil
    cdef void settle_in_flight(self, ActorState* a, const string& cause) noexcept nogil
    cdef void fail_actor_task(self, ActorState* a, shared_ptr[TaskState] task, uint16_t code, const string& cause) noexcept nogil


cdef class Submission(Actors):
    cdef void submit(self, shared_ptr[TaskState] task) noexcept nogil
    cdef void dependency_ready(self, shared_ptr[TaskState] task) noexcept nogil
    cdef void enqueue(self, shared_ptr[TaskState] task) noexcept nogil
    cdef void on_reply(self, Peer* peer, Reader& r) noexcept nogil
    cdef void retry(self, shared_ptr[TaskState] task) noexcept nogil
    cdef void on_handback(self, Peer* peer, Reader& r) noexcept nogil
    cdef void cancel(self, const Id16& task_id, bint force, bint recursive) noexcept nogil
    cdef void drop_stream(self, const Id16& task_id) noexcept nogil


cdef class Lineage(Submission):
    # finished tasks that can run again, by the number in their ids: the oldest first
    cdef ordered_map[uint64_t, shared_ptr[TaskState]] lineage
    cdef uint64_t lineage_bytes, most_lineage_bytes, remade
    cdef vector[ObjectId] wanted
    cdef bint making

    cdef uint32_t results_of(self, TaskState* t) noexcept nogil
    cdef void keep(self, shared_ptr[TaskState] task) noexcept nogil
    cdef void sort_holds(self, TaskState* t) noexcept nogil
    cdef void forget(self, shared_ptr[TaskState] task, Remake why) noexcept nogil
    cdef void result_freed(self, const ObjectId& id) noexcept nogil
    cdef void let_go(self, Entry* e) noexcept nogil
    cdef void make_pending(self, Entry* e) noexcept nogil
    cdef void want(self, Entry* e) noexcept nogil
    cdef void remake(self, Entry* e) noexcept nogil
    cdef string obstacle(self, TaskState* t) noexcept nogil
    cdef void fail_lost(self, Entry* e, const string& obstacle) noexcept nogil
    cdef void settle_items(self, TaskState* t, uint8_t status, Arrived* error, uint32_t items) noexcept nogil
    cdef void want_items(self, TaskState* t) noexcept nogil


cdef class Losses(Lineage):
    cdef string death_of(self, const Id16& node) noexcept nogil
    cdef void not_found(self, Entry* e, uint16_t code, const string& why) noexcept nogil
    cdef void place_lost(self, Entry* e, const Place& at, bint sure, const string& why) noexcept nogil
    cdef void promote(self, Entry* e) noexcept nogil
    cdef void lose(self, Entry* e, const string& why) noexcept nogil
    cdef void miss(self, Entry* e, uint16_t code, const string& why) noexcept nogil
    cdef void tell_lost(self, Peer* peer, const ObjectId& id, const Place& place, uint16_t code, const string& why) noexcept nogil
    cdef void on_lost(self, Peer* peer, Reader& r) noexcept nogil
    cdef void give_back_runs(self, Entry* e, const Place& place, const string& why) noexcept nogil
    cdef void leave_node(self, Entry* e, const Id16& node) noexcept nogil


cdef class Execution(Losses):
    cdef unordered_map[Id16, shared_ptr[RunTask], Id16Hash] runs
    cdef unordered_map[string, RunQueuePointer, StringHash] queues
    cdef unordered_map[string, WaiterListPointer, StringHash] task_waiters
    cdef unordered_map[uint64_t, string, NumberHash] lease_contexts
    cdef WaiterList lease_waiters
    cdef uint32_t started
    cdef uint64_t started_at
    cdef bint ordered_runs
    cdef bint restartable  # the actor that lives here, or is about to
    cdef const uint64_t* node_lease  # until when it holds; 0: none yet. The raylet's word

    cdef bint lease_is_over(self, uint64_t now) noexcept nogil

    cdef void on_task(self, Peer* peer, Reader& r, bint creation) noexcept nogil
    cdef void run_ready(self, shared_ptr[RunTask] run) noexcept nogil
    cdef void enqueue_run(self, shared_ptr[RunTask] run) noexcept nogil
    cdef bint has_run(self, const string& group) noexcept nogil
    cdef shared_ptr[RunTask] pop_run(self, const string& group) noexcept nogil
    cdef void end_run(self, shared_ptr[RunTask] run) noexcept nogil
    cdef void put_borrowed(self, string& out, RunTask* t) noexcept nogil
    cdef void met(self, RunTask* t, Entry* e) noexcept nogil
    cdef void reply_plain(self, shared_ptr[RunTask] run, uint8_t status, uint16_t code, const string& message) noexcept nogil
    cdef void on_cancel(self, Peer* peer, Reader& r) noexcept nogil
    cdef void cancel_children(self, const Id16& parent, bint force) noexcept nogil
    cdef void hand_back(self) noexcept nogil
    cdef void on_item_ack(self, Reader& r) noexcept nogil
    cdef void on_lease_begin(self, Reader& r) noexcept nogil


cdef class Deaths(Execution):
    cdef void forget_peers(self, const Id16& worker) noexcept nogil
    cdef void forget_producer(self, Peer* peer) noexcept nogil
    cdef void worker_died(self, const Id16& worker, const Id16& started, bint known, uint16_t code, const string& cause) noexcept nogil
    cdef void unanswered(self, Peer* peer, const string& why) noexcept nogil
    cdef void map_accepted(self, const Id16& worker) noexcept nogil
    cdef void unreachable(self, Peer* peer, const string& why) noexcept nogil
    cdef void leases_of(self, Peer* peer, vector[Lease*]& found) noexcept nogil
    cdef void questions_to(self, Peer* peer, vector[ObjectId]& found) noexcept nogil
    cdef void callees_of(self, Peer* peer, vector[ActorPointer]& found) noexcept nogil
    cdef void connection_lost(self, Peer* peer, const string& why) noexcept nogil
    cdef bint was_asked(self, Entry* e, const Id16& worker) noexcept nogil
    cdef void node_died(self, const Id16& node, const string& cause) noexcept nogil
    cdef void raylet_lost(self) noexcept nogil


cdef class Sessions(Deaths):
    cdef unordered_map[Id16, uint32_t, Id16Hash] epochs_seen
    cdef deque[Id16] epochs_in_order

    cdef void on_hello(self, Peer* peer, const char* header, Reader& r) noexcept nogil
    cdef void on_closed(self, Peer* peer) noexcept nogil
    cdef void cut_off(self, Peer* peer) noexcept nogil
    cdef void broke(self, Peer* peer) noexcept nogil
    cdef void reopened(self, Peer* peer) noexcept nogil
    cdef void dial_failed(self, Peer* peer, const string& why, bint ended) noexcept nogil
    cdef void resume_failed(self, Peer* peer) noexcept nogil
    cdef bint hand_over(self, Peer* peer, uint64_t acknowledged) noexcept nogil
    cdef bint is_new(self, Peer* peer) noexcept nogil
    cdef void remember_epoch(self, Peer* peer) noexcept nogil
    cdef void go_on(self, Peer* peer) noexcept nogil
    cdef void end_older(self, Peer* peer) noexcept nogil
    cdef bint is_idle(self, Peer* peer) noexcept nogil
    cdef void leave_idle(self) noexcept nogil
    cdef void say_bye(self, Peer* peer) noexcept nogil
    cdef void on_bye(self, Peer* peer, Reader& r) noexcept nogil
    cdef void stay(self, Peer* peer) noexcept nogil
    cdef void on_timer(self) noexcept nogil
    cdef void judge_closed(self) noexcept nogil
    cdef int64_t next_timer_ns(self) noexcept nogil


cdef class Protocol(Sessions):
    cdef int on_frame(self, Peer* peer, const char* header) noexcept nogil
    cdef void on_raylet_frame(self, Peer* peer, uint8_t type, Reader& r) noexcept nogil
