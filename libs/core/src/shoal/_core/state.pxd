from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from shoal._core.std cimport deque, pair, shared_ptr, string, unique_ptr, unordered_map, unordered_set, vector

cdef extern from "state.h" namespace "shoal" nogil:
    cdef cppclass Id16:
        uint64_t low, high
        bint operator==(const Id16&)
        bint nil()
    cdef cppclass Id16Hash:
        pass
    cdef cppclass ObjectId:
        Id16 task
        uint32_t index
        bint operator==(const ObjectId&)
    cdef cppclass ObjectIdHash:
        size_t operator()(const ObjectId&)
    cdef cppclass Owner:
        Id16 worker, node
    cdef cppclass ContainedRef:
        ObjectId id
        Owner owner
    ctypedef shared_ptr[string] Bytes
    cdef cppclass Place:
        Id16 node
        uint32_t slot, generation
        uint64_t size
    cdef cppclass Waiter:
        int32_t fired, wake
        int64_t remaining
        bint parked
    const uint8_t URGENT_GET, URGENT_WAIT, URGENT_ARGUMENTS, NOT_URGENT
    ctypedef enum EntryState:
        PENDING, INLINE, IN_ARENA, FAILED
    cdef cppclass EntryWaiter:
        Waiter* waiter
        bint need_local, until_lost
        uint8_t urgency
    cdef cppclass Telling:
        uint8_t frame
        bint sent
        Place place
    cdef cppclass Failure:
        uint16_t code
        string message, name
    cdef cppclass Missed:
        Place place
        string why
    ctypedef enum Remake:
        REMAKE_NEVER, REMAKE_KEPT, REMAKE_EVICTED, REMAKE_DISABLED, REMAKE_EXHAUSTED
    cdef cppclass Few[T]:
        size_t size()
        bint empty()
        void clear()
        void push_back(const T&)
        void pop_back()
        T& operator[](size_t)
        T& back()
        void swap(vector[T]&)
    cdef cppclass Entry:
        ObjectId id
        Owner owner
        EntryState state
        bint owned, asked, pulling, has_copy, moved, is_actor_handle, gone, asked_lender, adopted
        Remake remake
        uint8_t pull_urgency
        uint64_t mark
        int32_t local, holds, lineage, registrations
        Bytes value
        Place place, copy
        unique_ptr[Failure] failure
        unique_ptr[Failure] trouble
        unique_ptr[Missed] missed
        Few[ContainedRef] contains
        Few[EntryWaiter] waiters
        Few[uint64_t] callbacks
        Few[shared_ptr[TaskState]] dependants
        Few[shared_ptr[RunTask]] run_dependants
        Few[Peer*] getters
        unique_ptr[Place] held
        unique_ptr[Owner] lender
        Few[Place] copies
        Bytes creator
    cdef cppclass Arrived:
        EntryState state
        Bytes value
        Place place
        vector[Place] copies
        uint16_t code
        string message, name
        vector[ContainedRef] contains
    cdef cppclass Dependency:
        uint16_t position
        ObjectId id
    ctypedef enum TaskPhase:
        WAITING, QUEUED, SENT, DONE
    cdef cppclass TaskState:
        Id16 id
        uint8_t kind, flags
        TaskPhase phase
        bint cancelled
        uint16_t num_returns, starved
        uint32_t attempt
        int32_t retries_left
        uint32_t lease_class, missing
        bint kept, lost_more, holds_actor
        uint32_t items, stored, held, counted
        uint64_t lineage_bytes
        Id16 actor
        uint64_t incarnation
        Id16 parent
        string spec, extra
        Bytes name
        vector[Dependency] deps
        vector[ObjectId] holds
        Lease* lease
    cdef cppclass Lease:
        uint64_t id
        Id16 node
        Peer* peer
        uint32_t lease_class
        uint64_t idle_since_ns
        bint reclaimed, stalled, used
        uint32_t share
        deque[shared_ptr[TaskState]] in_flight
    cdef cppclass Share:
        Id16 node
        uint64_t sent
        uint32_t leases
        bint answered
    cdef cppclass Later:
        uint64_t due_ns
        shared_ptr[TaskState] task
    cdef cppclass LeaseClass:
        uint32_t id
        string spec
        bint announced
        uint32_t want
        double mean_us, deviation_us
        deque[shared_ptr[TaskState]] ready
        vector[Lease*] leases
        uint32_t spread_over, present, answering
        uint64_t apart_since_ns
        vector[Share] shares
    ctypedef enum ActorPhase:
        ACTOR_PENDING, ACTOR_ALIVE, ACTOR_RESTARTING, ACTOR_DEAD
    cdef cppclass ActorState:
        Id16 id, worker, node
        ActorPhase phase
        bint ordered, subscribed, broken
        int64_t max_pending, pending
        uint64_t incarnation, sequence
        uint16_t code
        string cause
        Bytes error
        deque[shared_ptr[TaskState]] queue, in_flight
        vector[ObjectId] creation_holds
    const uint32_t NO_END
    cdef cppclass Stream:
        uint32_t received, consumed, end, backpressure
        bint dropped
        unordered_set[uint32_t] held
        vector[Waiter*] waiters
        vector[uint64_t] callbacks
        Peer* producer
    cdef cppclass RunDependency:
        uint16_t position
        ObjectId id
        Bytes value
        bint entry
    ctypedef enum RunPhase:
        RUN_WAITING, RUN_QUEUED, RUN_STARTED, RUN_ENDED
    cdef cppclass RunTask:
        Id16 id
        uint8_t kind, flags
        RunPhase phase
        bint cancelled
        uint16_t num_returns
        uint32_t attempt, depth, backpressure
        uint64_t lease_id, sequence, received_ns, started_ns, answered_by, answered_at
        uint32_t job
        Id16 function, actor
        string name, method, group, extra, args
        Peer* from_ "from"
        Owner caller
        uint32_t missing, consumed
        vector[Waiter*] item_waiters
        vector[RunDependency] deps
        vector[ObjectId] introduced
    cdef cppclass Call:
        bint done
        uint16_t code
        string payload, method
        Waiter* waiter
    ctypedef enum PeerPhase:
        UNCONNECTED, CONNECTING, OPEN, CLOSED, BROKEN
    cdef cppclass Peer:
        uint64_t number
        Owner who
        bint resuming, leaving
        uint8_t redials
        Peer* successor
        uint32_t questions
        uint64_t leaving_bytes
        uint64_t used_ns, retired_ns
        string greeting
        uint8_t kind
        PeerPhase phase
        int fd
        bint identified, dirty, want_write, outgoing, remote, gone
        uint32_t epoch
        string out
        size_t out_start
        uint64_t out_offset, acked_offset, credit_bytes, sequence_out, sequence_in, acked_in, received_since_ack
        deque[pair[uint64_t, uint64_t]] marks
        string in_ "in"
        size_t in_start
        string deltas, delta_nodes
        uint32_t n_deltas
        vector[int] descriptors
        uint64_t closed_ns
    cdef cppclass Undialled:
        uint64_t first_ns, due_ns
    cdef cppclass Event:
        uint8_t kind
        uint64_t number
        Id16 a, b
        string text, payload

    uint64_t layout()
    Peer* make_peer()
    void free_peer(Peer*)
    Lease* make_lease()
    void free_lease(Lease*)
    LeaseClass* make_class()
    void free_class(LeaseClass*)
    ActorState* make_actor()
    Stream* make_stream()
    void free_stream(Stream*)
    shared_ptr[RunTask] new_run()
    shared_ptr[TaskState] new_task()
    deque[shared_ptr[RunTask]]* make_queue()
    vector[Waiter*]* make_waiters()
    Owner actor_owner(const ActorState*)
    const Bytes& none_value()

cdef extern from "table.h" namespace "shoal" nogil:
    cdef cppclass Table[K, V, H]:
        cppclass iterator:
            pair[K, V]& operator*()
            iterator operator++()
            bint operator==(iterator)
            bint operator!=(iterator)
        Table()
        size_t size()
        bint empty()
        V& operator[](const K&)
        iterator begin()
        iterator end()
        iterator find(const K&)
        size_t erase(const K&)
        size_t count(const K&)

cdef extern from "wire.h" namespace "shoal" nogil:
    const size_t HEADER_SIZE
    const uint8_t WIRE_VERSION
    const uint32_t MAX_PAYLOAD
    const uint64_t ACK_EVERY_BYTES
    const size_t TASK_ATTEMPT, TASK_LEASE, TASK_SEQUENCE
    void put8(string&, uint8_t)
    void put16(string&, uint16_t)
    void put32(string&, uint32_t)
    void put64(string&, uint64_t)
    void put_id(string&, const Id16&)
    void put_object_id(string&, const ObjectId&)
    void put_owner(string&, const Owner&)
    void put_str16(string&, const string&)
    void put_str32(string&, const string&)
    void patch32(string&, size_t, uint32_t)
    void patch64(string&, size_t, uint64_t)
    Id16 load_id(const char*)
    ObjectId load_object_id(const char*)
    void store_id(char*, const Id16&)
    void store_object_id(char*, const ObjectId&)
    ObjectId object_id(const Id16&, uint32_t)
    cdef cppclass Reader:
        const char* p
        const char* end
        bint ok
        Reader()
        Reader(const char*, size_t)
        uint8_t u8()
        uint16_t u16()
        uint32_t u32()
        int32_t i32()
        uint64_t u64()
        Id16 id()
        ObjectId oid()
        Owner owner()
        size_t left()
        string bytes(size_t)
        string str16()
        string str32()
        string rest()
    size_t begin_frame(Peer&, uint8_t)
    void end_frame(Peer&, size_t)
    const uint8_t CONTINUES
    void make_greeting(Peer&, const string&)
    void forget_acknowledged(Peer&)
    uint32_t load32(const char*)
    uint64_t load64(const char*)
    Bytes make_bytes(const char*, size_t)
    cdef cppclass EntryMap:
        EntryMap()
        cppclass iterator:
            pair[ObjectId, Entry]& operator*()
            iterator operator++()
            bint operator!=(iterator)
        size_t size()
        iterator begin()
        iterator end()
        size_t erase(const ObjectId&)
    Entry* find_entry(EntryMap&, const ObjectId&)
    Entry* make_entry(EntryMap&, const ObjectId&)
    void change_row(Entry&, const Owner&, int32_t)
    bint drop_row(Entry&, const Id16&)
    bint drop_rows_of_node(Entry&, const Id16&)
    bint has_rows(const Entry&)
    void fail_entry(Entry&, uint16_t, const string&, const string&)
    void trouble_entry(Entry&, uint16_t, const string&)
    bint add_copy(Entry&, const Place&, Place&)
    void choose_copies(Entry&, const Id16&, uint64_t, vector[Place]&)
    void drop_copies_of_node(Entry&, const Id16&)
    uint8_t urgency_of(Entry&)
    void hold_entry(Entry&, uint32_t, uint32_t)
    void lend_entry(Entry&, const Owner&)
    void put_place(string&, const Place&)
    bint same_place(const Place&, const Place&)
    void drop_copy(Entry&, const Place&)
    void miss_entry(Entry&, const Place&, const string&)
    bint is_wanted(const Entry&)
    bint is_whole_arguments(const TaskState&, const ObjectId&)
    string hex_text(const Id16&)
    string hex_text(const ObjectId&)
    void forget_waiter(Entry&, Waiter*)
    void forget_waiter_in(vector[Waiter*]&, Waiter*)
    bint forget_number(vector[uint64_t]&, uint64_t)
    bint erase_task "shoal::erase_value"(deque[shared_ptr[TaskState]]&, const shared_ptr[TaskState]&)
    bint erase_run "shoal::erase_value"(deque[shared_ptr[RunTask]]&, const shared_ptr[RunTask]&)
    bint erase_lease "shoal::erase_value"(vector[Lease*]&, Lease*)
    bint erase_peer "shoal::erase_value"(vector[Peer*]&, Peer*)
    bint erase_getter "shoal::erase_value"(Few[Peer*]&, Peer*)

    shared_ptr[RunTask]& current_run()
    cdef cppclass ValueHeader:
        uint8_t kind
        uint32_t n_buffers
        uint64_t inband_size
    cdef cppclass ControlRecord:
        uint32_t magic, pid
        uint64_t started
        char* task
        uint64_t blocked_since_ns, started_at_ns
        char* actor
        char* name
        char* last_words
    const uint32_t CONTROL_MAGIC
    cdef cppclass Allowance:
        uint32_t job, zero
        uint64_t tasks, held_bytes, writing_bytes, passed_bytes, allowed_tasks, allowed_bytes, leaving_bytes
    const uint64_t WITHOUT_LIMIT
    void fence()
    uint64_t load_word(const uint64_t*)
    void copy_text(char*, size_t, const char*, size_t)

cdef extern from "sync.h" namespace "shoal" nogil:
    cdef cppclass Mutex:
        Mutex()
        void lock()
        void unlock()
    uint64_t now_ns()
    int futex_wait(int32_t*, int32_t, int64_t)
    void futex_wake(int32_t*, int32_t)
    void store_release(int32_t*, int32_t)
    int32_t load_acquire(int32_t*)
    void cpu_relax()
