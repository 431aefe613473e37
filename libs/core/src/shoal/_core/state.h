// The records of the core worker's protocol. Plain data: every transition is in protocol.pyx.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace shoal {

struct Id16 {
  uint64_t low = 0, high = 0;
  bool operator==(const Id16& o) const noexcept { return low == o.low && high == o.high; }
  bool nil() const noexcept { return !low && !high; }
};

struct ObjectId {
  Id16 task;
  uint32_t index = 0;
  bool operator==(const ObjectId& o) const noexcept { return task == o.task && index == o.index; }
};

struct Owner {
  Id16 worker, node;
};

struct ContainedRef {
  ObjectId id;
  Owner owner;
};

inline uint64_t mix(uint64_t x) noexcept {  // splitmix64's finaliser
  x ^= x >> 30; x *= 0xbf58476d1ce4e5b9ull;
  x ^= x >> 27; x *= 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}
struct Id16Hash {
  size_t operator()(const Id16& id) const noexcept { return mix(id.low ^ (id.high * 0x9e3779b97f4a7c15ull)); }
};
struct ObjectIdHash {
  size_t operator()(const ObjectId& id) const noexcept {
    return mix(id.task.low ^ (id.task.high * 0x9e3779b97f4a7c15ull) ^ (uint64_t(id.index) << 40));
  }
};

// What a borrower was counted for, and where it lives: its node's death is its own.
struct Row {
  int32_t sum = 0;
  Id16 node;
};

// Bytes that several entries, frames and views share.
using Bytes = std::shared_ptr<std::string>;

struct Place {  // in an arena
  Id16 node;
  uint32_t slot = 0, generation = 0;
  uint64_t size = 0;
};

// One thread that waits for something. Lives on that thread's stack.
struct Waiter {
  int32_t fired = 0;    // futex word: 1 when what it waits for has come
  int32_t wake = 0;     // futex word: 1 to look again (fired, or: become the poller)
  int64_t remaining = 1;
  bool parked = false;
};

enum EntryState : uint8_t { PENDING = 0, INLINE = 1, IN_ARENA = 2, FAILED = 3 };

struct TaskState;
struct RunTask;
struct Peer;

// How soon a copy is needed, as PULL tells it.
constexpr uint8_t URGENT_GET = 0, URGENT_WAIT = 1, URGENT_ARGUMENTS = 2, NOT_URGENT = 255;

struct EntryWaiter {
  Waiter* waiter;
  bool need_local;
  uint8_t urgency = URGENT_GET;
  bool until_lost = false;  // it also wakes when what was there is there no more
};

// What the store was told of a place, and has not done yet.
struct Telling {
  uint8_t frame = 0;  // FREE or KEEP
  bool sent = false;  // to the store of now
  Place place;
};

struct Failure {
  uint16_t code = 0;
  std::string message;
  std::string name;
};

// Where an object was last, and why it is not there any more.
struct Missed {
  Place place;
  std::string why;
};

// Whether an object can be made again when its last copy is gone, and why not.
enum Remake : uint8_t {
  REMAKE_NEVER = 0,      // a put, or a value that lies with its owner
  REMAKE_KEPT = 1,       // its task is kept in the lineage
  REMAKE_EVICTED = 2,    // it was, until older tasks had to go
  REMAKE_DISABLED = 3,   // it was called without retries
  REMAKE_EXHAUSTED = 4,  // it has had all of them
};

// A vector of what most objects have none of: a word while it is empty. A million objects are a gigabyte otherwise.
template <typename T>
class Few {
 public:
  size_t size() const noexcept { return items_ ? items_->size() : 0; }
  bool empty() const noexcept { return !items_ || items_->empty(); }
  void clear() noexcept { items_.reset(); }
  void push_back(const T& item) { own().push_back(item); }
  void pop_back() { items_->pop_back(); }
  T& operator[](size_t i) { return (*items_)[i]; }
  T& back() { return items_->back(); }
  void swap(std::vector<T>& other) {
    if (!items_ && other.empty()) return;
    own().swap(other);
    if (items_->empty()) items_.reset();
  }
  std::vector<T>& own() {
    if (!items_) items_ = std::make_unique<std::vector<T>>();
    return *items_;
  }

 private:
  std::unique_ptr<std::vector<T>> items_;
};

// An object as this process knows it, owned or borrowed.

struct Entry {
  ObjectId id;
  Owner owner;
  EntryState state = PENDING;
  bool owned = false;
  bool asked = false;         // borrowed: GET is on its way to the owner
  bool pulling = false;       // the store was asked for a copy on this node
  bool has_copy = false;      // `copy` is a copy on this node, of what lies on another or on disk
  bool moved = false;         // `place` is on this node, and the store has its bytes on disk alone: a copy must be asked for, as from another node
  bool is_actor_handle = false;
  uint8_t pull_urgency = NOT_URGENT;  // of the pull under way
  bool gone = false;          // owned and pending: nobody makes it, until somebody wants it
  bool asked_lender = false;  // borrowed, and its owner died: whoever passed it on was asked
  bool adopted = false;       // borrowed, and its owner died: a copy is brought here, and its bytes are counted
  Remake remake = REMAKE_NEVER;
  int32_t local = 0;          // ObjectRefs in Python
  int32_t holds = 0;          // tasks in flight, containing objects, streams
  int32_t lineage = 0;        // finished tasks that would need it to run again: they keep the entry, and not the value
  uint64_t mark = 0;          // of the last call that met it: finds duplicates
  int32_t registrations = 0;  // borrowed: how often somebody registered us with the owner
  Bytes value;
  Place place;
  Place copy;
  std::unique_ptr<Failure> failure;
  std::unique_ptr<Failure> trouble;  // why the last pull brought nothing, though the object is not lost; the next read asks again
  std::unique_ptr<Missed> missed;
  Few<ContainedRef> contains;
  Few<EntryWaiter> waiters;
  Few<uint64_t> callbacks;
  Few<std::shared_ptr<TaskState>> dependants;     // tasks to submit, that need it
  Few<std::shared_ptr<RunTask>> run_dependants;   // tasks to run here, that need it
  Few<Peer*> getters;                             // GETs to answer
  std::unique_ptr<std::unordered_map<Id16, Row, Id16Hash>> rows;  // owned: signed sums by borrower
  std::unique_ptr<Place> held;                    // borrowed, and its owner died: pinned here for as long as it is counted
  std::unique_ptr<Owner> lender;                  // borrowed: who passed it on, when that was not its owner
  Few<Place> copies;                              // owned: secondary copies elsewhere; borrowed: those that the owner told of
  Bytes creator;                                          // name of the task, for messages
};

// An object as a frame describes it, before it meets its entry.
struct Arrived {
  EntryState state = PENDING;
  Bytes value;
  Place place;
  std::vector<Place> copies;
  uint16_t code = 0;
  std::string message, name;
  std::vector<ContainedRef> contains;
};

struct Dependency {
  uint16_t position;
  ObjectId id;
};

enum TaskPhase : uint8_t { WAITING = 0, QUEUED = 1, SENT = 2, DONE = 3 };

struct Lease;

// A task this process submitted.
struct TaskState {
  Id16 id;
  uint8_t kind = 0, flags = 0;
  TaskPhase phase = WAITING;
  bool cancelled = false;
  uint16_t num_returns = 1;
  uint16_t starved = 0;  // how often it was ended because its node was short of memory
  uint32_t attempt = 0;
  int32_t retries_left = 0;
  uint32_t lease_class = 0;
  uint32_t missing = 0;
  // lineage, once it has ended well with results in a store
  bool kept = false;
  bool lost_more = false;    // items of it were lost since its last start
  bool holds_actor = false;
  uint32_t items = 0;        // streaming: how many it gave when it ended first
  uint32_t stored = 0;       // entries of results that rely on it
  uint32_t held = 0;         // the first `held` of `holds` it keeps alive while it is kept, ...
  uint32_t counted = 0;      // ... the next `counted` can be made again, and only their entries are kept
  uint64_t lineage_bytes = 0;
  Id16 actor;
  uint64_t incarnation = 0;
  Id16 parent;
  std::string spec;   // the Task up to n_deps; attempt, lease and sequence are patched in
  std::string extra;
  Bytes name;
  std::vector<Dependency> deps;
  std::vector<ObjectId> holds;  // every reference it keeps alive: dependencies and nested ones
  Lease* lease = nullptr;
};

struct Lease {
  uint64_t id = 0;
  Id16 node;
  Peer* peer = nullptr;
  uint32_t lease_class = 0;
  uint64_t idle_since_ns = 0;
  bool reclaimed = false;   // somebody else waits for it
  bool stalled = false;     // it handed tasks back: nothing more until it answers
  bool used = false;        // of a class that is to spread: it has had a task
  uint32_t share = 0;       // of such a class: its node's number
  std::deque<std::shared_ptr<TaskState>> in_flight;
};

// A task that waits for its next try.
struct Later {
  uint64_t due_ns = 0;
  std::shared_ptr<TaskState> task;
};

// What one node has had of a class that is to spread.
struct Share {
  Id16 node;
  uint64_t sent = 0;
  uint32_t leases = 0;
  bool answered = false;  // since it began to lend
};

struct LeaseClass {
  uint32_t id = 0;
  std::string spec;
  bool announced = false;
  uint32_t want = 0;
  double mean_us = -1, deviation_us = 0;
  std::deque<std::shared_ptr<TaskState>> ready;
  std::vector<Lease*> leases;
  uint32_t spread_over = 0;  // nodes; 0: it is not to spread
  uint32_t present = 0;      // nodes that have lent to it now
  uint32_t answering = 0;    // of those, nodes that have answered a task
  uint64_t apart_since_ns = 0;
  std::vector<Share> shares;
};

enum ActorPhase : uint8_t { ACTOR_PENDING = 0, ACTOR_ALIVE = 1, ACTOR_RESTARTING = 2, ACTOR_DEAD = 3 };

// An actor this process calls.
struct ActorState {
  Id16 id, worker, node;
  ActorPhase phase = ACTOR_PENDING;
  bool ordered = true;
  bool subscribed = false;
  bool broken = false;           // its worker's connection ended; the next event decides
  int64_t max_pending = -1;
  int64_t pending = 0;
  uint64_t incarnation = 0, sequence = 0;
  uint16_t code = 0;
  std::string cause;
  Bytes error;                   // a value of kind 3, when __init__ raised
  std::deque<std::shared_ptr<TaskState>> queue;      // not sent yet, in order
  std::deque<std::shared_ptr<TaskState>> in_flight;
  std::vector<ObjectId> creation_holds;
};

constexpr uint32_t NO_END = 0xffffffffu;

struct Stream {
  uint32_t received = 0;   // highest index that came
  uint32_t consumed = 0;
  uint32_t end = NO_END;  // number of items, once known
  uint32_t backpressure = 0;
  bool dropped = false;    // the consumer has gone
  std::unordered_set<uint32_t> held;  // items that came and were not taken
  std::vector<Waiter*> waiters;
  std::vector<uint64_t> callbacks;  // of those who await the next item on an event loop
  Peer* producer = nullptr;
};

// A dependency of a task to run here.
struct RunDependency {
  uint16_t position = 0;
  ObjectId id;
  Bytes value;         // inline
  bool entry = false;  // else: held in the table of entries
};

enum RunPhase : uint8_t { RUN_WAITING = 0, RUN_QUEUED = 1, RUN_STARTED = 2, RUN_ENDED = 3 };

// A task somebody sent us.
struct RunTask {
  Id16 id;
  uint8_t kind = 0, flags = 0;
  RunPhase phase = RUN_WAITING;
  bool cancelled = false;
  uint16_t num_returns = 1;
  uint32_t attempt = 0, depth = 0, backpressure = 0;
  uint64_t lease_id = 0, sequence = 0, received_ns = 0, started_ns = 0;
  uint64_t answered_by = 0, answered_at = 0;  // the number of the connection that its REPLY went by, and the frame's there
  uint32_t job = 0;
  Id16 function, actor;
  std::string name, method, group, extra, args;
  Peer* from = nullptr;
  Owner caller;
  uint32_t missing = 0;
  uint32_t consumed = 0;               // streaming: acknowledged by the consumer
  std::vector<Waiter*> item_waiters;
  std::vector<RunDependency> deps;
  std::vector<ObjectId> introduced;    // borrowed references that its arguments brought in
};

struct Call {
  bool done = false;
  uint16_t code = 0;
  std::string payload;
  std::string method;
  Waiter* waiter = nullptr;
};

// BROKEN: a network connection ended and its epoch goes on, if both sides meet again.
enum PeerPhase : uint8_t { UNCONNECTED = 0, CONNECTING = 1, OPEN = 2, CLOSED = 3, BROKEN = 4 };

// One connection's ends. `out` holds encoded frames; the engine writes it to the socket.
struct Peer {
  uint64_t number = 0;      // names it where a pointer could outlive it; never used again
  Owner who;
  uint8_t kind = 255;
  PeerPhase phase = UNCONNECTED;
  int fd = -1;
  bool identified = false, dirty = false, want_write = false, outgoing = false, remote = false, gone = false;
  bool resuming = false;    // its epoch is to go on: nothing is written but the greeting until the other side has answered
  bool leaving = false;     // BYE was sent: what is new takes another connection
  uint8_t redials = 0;      // since it broke, beyond the first
  Peer* successor = nullptr;  // the peer whose epoch this connection continues
  uint32_t questions = 0;   // GETs that are not answered yet, both ways
  uint64_t leaving_bytes = 0;  // of results that it owns and has not counted yet, where the job has a limit
  uint64_t used_ns = 0;     // when a frame came or went last
  uint64_t retired_ns = 0;  // since when nothing names it
  uint32_t epoch = 1;
  std::string greeting;     // HELLO on a connection that continues an epoch; goes before `out`
  std::string out;
  size_t out_start = 0;           // bytes of `out` already written
  uint64_t out_offset = 0;        // bytes ever written before `out`
  uint64_t acked_offset = 0;
  uint64_t credit_bytes = 64ull << 20;
  uint64_t sequence_out = 0, sequence_in = 0, acked_in = 0;
  uint64_t received_since_ack = 0;
  std::deque<std::pair<uint64_t, uint64_t>> marks;  // (sequence, end offset) not acknowledged
  std::string in;
  size_t in_start = 0;
  std::string deltas;             // REF_DELTA records not framed yet
  std::string delta_nodes;        // and the nodes of the processes they name
  uint32_t n_deltas = 0;
  std::vector<int> descriptors;   // came by SCM_RIGHTS, in order
  uint64_t closed_ns = 0;
};

// Dials of one process that nobody answered.
struct Undialled {
  uint64_t first_ns = 0;  // the first of them
  uint64_t due_ns = 0;    // the next one
};

// What the control thread is told.
struct Event {
  uint8_t kind = 0;
  uint64_t number = 0;
  Id16 a, b;
  std::string text, payload;
};

// Two extensions share these records: built apart, they must agree on them.
inline uint64_t layout() {
  uint64_t hash = 14695981039346656037ull;
  for (uint64_t size : {sizeof(Entry), sizeof(TaskState), sizeof(RunTask), sizeof(Peer), sizeof(Lease), sizeof(LeaseClass), sizeof(ActorState), sizeof(Stream),
                        sizeof(Call), sizeof(Event), offsetof(Peer, out), offsetof(Peer, in), offsetof(RunTask, deps), offsetof(TaskState, spec)})
    hash = (hash ^ size) * 1099511628211ull;
  return hash;
}

// Making and unmaking, where Cython's `new` would need the GIL to report a failure.
inline Peer* make_peer() { return new Peer(); }
inline void free_peer(Peer* p) { delete p; }
inline Lease* make_lease() { return new Lease(); }
inline void free_lease(Lease* p) { delete p; }
inline LeaseClass* make_class() { return new LeaseClass(); }
inline void free_class(LeaseClass* p) {
  for (Lease* lease : p->leases) delete lease;
  delete p;
}
inline ActorState* make_actor() { return new ActorState(); }
inline Stream* make_stream() { return new Stream(); }
inline void free_stream(Stream* p) { delete p; }
inline std::shared_ptr<RunTask> new_run() { return std::make_shared<RunTask>(); }
inline std::shared_ptr<TaskState> new_task() { return std::make_shared<TaskState>(); }
inline std::deque<std::shared_ptr<RunTask>>* make_queue() { return new std::deque<std::shared_ptr<RunTask>>(); }
inline std::vector<Waiter*>* make_waiters() { return new std::vector<Waiter*>(); }
inline Owner actor_owner(const ActorState* a) {
  Owner owner;
  owner.worker = a->worker;
  owner.node = a->node;
  return owner;
}
inline const Bytes& none_value() {
  static const Bytes value = std::make_shared<std::string>(std::string("\x02", 1) + std::string(15, '\0'));
  return value;
}

}  // namespace shoal
