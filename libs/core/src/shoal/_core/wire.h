// Little-endian writing and reading of frames. The layouts are in ARCHITECTURE.md.
#pragma once
#include <cstdint>
#include <cstring>
#include <string>

#include "state.h"
#include "table.h"

namespace shoal {

constexpr size_t HEADER_SIZE = 32;
constexpr uint8_t WIRE_VERSION = 1;
constexpr uint32_t MAX_PAYLOAD = 256u << 20;
constexpr uint32_t WINDOW_KIB = 64u << 10;
constexpr uint64_t ACK_EVERY_BYTES = 4u << 20;

// Where the fields that change at each sending lie in a Task.
constexpr size_t TASK_ATTEMPT = 20, TASK_LEASE = 24, TASK_SEQUENCE = 68;

template <typename T>
inline void put_raw(std::string& s, T v) { s.append(reinterpret_cast<const char*>(&v), sizeof v); }
inline void put8(std::string& s, uint8_t v) { s.push_back(char(v)); }
inline void put16(std::string& s, uint16_t v) { put_raw(s, v); }
inline void put32(std::string& s, uint32_t v) { put_raw(s, v); }
inline void put64(std::string& s, uint64_t v) { put_raw(s, v); }
inline void put_id(std::string& s, const Id16& id) { put_raw(s, id.low); put_raw(s, id.high); }
inline void put_object_id(std::string& s, const ObjectId& id) { put_id(s, id.task); put_raw(s, id.index); }
inline void put_owner(std::string& s, const Owner& o) { put_id(s, o.worker); put_id(s, o.node); }
inline void put_str16(std::string& s, const std::string& v) { put16(s, uint16_t(v.size() > 0xffff ? 0xffff : v.size())); s.append(v, 0, 0xffff); }
inline void put_str32(std::string& s, const std::string& v) { put32(s, uint32_t(v.size())); s.append(v); }
inline void put_place(std::string& s, const Place& p) { put_id(s, p.node); put32(s, p.slot); put32(s, p.generation); }
inline void patch32(std::string& s, size_t at, uint32_t v) { std::memcpy(&s[at], &v, 4); }
inline void patch64(std::string& s, size_t at, uint64_t v) { std::memcpy(&s[at], &v, 8); }

inline Id16 load_id(const char* p) { Id16 id; std::memcpy(&id.low, p, 8); std::memcpy(&id.high, p + 8, 8); return id; }
inline ObjectId load_object_id(const char* p) { ObjectId id; id.task = load_id(p); std::memcpy(&id.index, p + 16, 4); return id; }
inline void store_id(char* p, const Id16& id) { std::memcpy(p, &id.low, 8); std::memcpy(p + 8, &id.high, 8); }
inline void store_object_id(char* p, const ObjectId& id) { store_id(p, id.task); std::memcpy(p + 16, &id.index, 4); }
inline ObjectId object_id(const Id16& task, uint32_t index) { ObjectId id; id.task = task; id.index = index; return id; }

// Reads with bounds; after a short read everything is zero and ok is false.
struct Reader {
  const char* p;
  const char* end;
  bool ok = true;
  Reader() : p(nullptr), end(nullptr) {}
  Reader(const char* data, size_t size) : p(data), end(data + size) {}
  template <typename T>
  T raw() {
    T v{};
    if (size_t(end - p) < sizeof v) { ok = false; p = end; return v; }
    std::memcpy(&v, p, sizeof v);
    p += sizeof v;
    return v;
  }
  uint8_t u8() { return raw<uint8_t>(); }
  uint16_t u16() { return raw<uint16_t>(); }
  uint32_t u32() { return raw<uint32_t>(); }
  int32_t i32() { return raw<int32_t>(); }
  uint64_t u64() { return raw<uint64_t>(); }
  Id16 id() { Id16 v; v.low = u64(); v.high = u64(); return v; }
  ObjectId oid() { ObjectId v; v.task = id(); v.index = u32(); return v; }
  Owner owner() { Owner v; v.worker = id(); v.node = id(); return v; }
  size_t left() const { return size_t(end - p); }
  std::string bytes(size_t n) {
    if (left() < n) { ok = false; p = end; return std::string(); }
    std::string v(p, n);
    p += n;
    return v;
  }
  std::string str16() { return bytes(u16()); }
  std::string str32() { return bytes(u32()); }
  std::string rest() { return bytes(left()); }
};

inline size_t begin_frame(Peer& peer, uint8_t type) {
  size_t start = peer.out.size();
  peer.out.append(HEADER_SIZE, '\0');
  peer.out[start + 4] = char(type);
  peer.out[start + 6] = char(WIRE_VERSION);
  return start;
}

inline void end_frame(Peer& peer, size_t start) {
  char* h = &peer.out[start];
  uint32_t length = uint32_t(peer.out.size() - start - HEADER_SIZE);
  std::memcpy(h, &length, 4);
  std::memcpy(h + 8, &peer.epoch, 4);
  uint32_t credit = WINDOW_KIB;
  std::memcpy(h + 12, &credit, 4);
  uint64_t sequence = h[4] == 2 /* ACK */ ? 0 : ++peer.sequence_out;
  std::memcpy(h + 16, &sequence, 8);
  std::memcpy(h + 24, &peer.sequence_in, 8);
  peer.acked_in = peer.sequence_in;
  peer.received_since_ack = 0;
  if (sequence) peer.marks.emplace_back(sequence, peer.out_offset + peer.out.size());
}

// A HELLO with this flag goes on with the epoch in its header: what was not acknowledged is sent again.
constexpr uint8_t CONTINUES = 1;

inline void make_greeting(Peer& peer, const std::string& hello) {
  char h[HEADER_SIZE] = {};
  uint32_t length = uint32_t(hello.size()), credit = WINDOW_KIB;
  std::memcpy(h, &length, 4);
  h[4] = 1;
  h[5] = char(CONTINUES);
  h[6] = char(WIRE_VERSION);
  std::memcpy(h + 8, &peer.epoch, 4);
  std::memcpy(h + 12, &credit, 4);
  std::memcpy(h + 24, &peer.sequence_in, 8);
  peer.greeting.assign(h, HEADER_SIZE);
  peer.greeting.append(hello);
}

// A network connection keeps what it has written until the other side has it. Moved in large pieces: a byte is moved twice at most.
inline void forget_acknowledged(Peer& peer) {
  size_t n = size_t(peer.acked_offset - peer.out_offset);
  if (n > peer.out_start) n = peer.out_start;
  if (n < 65536 ? n != peer.out.size() : n * 2 < peer.out.size()) return;
  peer.out.erase(0, n);
  peer.out_start -= n;
  peer.out_offset += n;
}

inline uint32_t load32(const char* p) { uint32_t v; std::memcpy(&v, p, 4); return v; }
inline uint64_t load64(const char* p) { uint64_t v; std::memcpy(&v, p, 8); return v; }

inline Bytes make_bytes(const char* p, size_t n) { return std::make_shared<std::string>(p, n); }
inline Bytes make_bytes(std::string&& s) { return std::make_shared<std::string>(std::move(s)); }

// Table access without exceptions or copies.
using EntryMap = Table<ObjectId, Entry, ObjectIdHash>;
using RowMap = std::unordered_map<Id16, Row, Id16Hash>;
inline Entry* find_entry(EntryMap& m, const ObjectId& id) { auto it = m.find(id); return it == m.end() ? nullptr : &it->second; }
inline Entry* make_entry(EntryMap& m, const ObjectId& id) { Entry& e = m[id]; e.id = id; return &e; }
inline void change_row(Entry& e, const Owner& borrower, int32_t delta) {
  if (!e.rows) e.rows = std::make_unique<RowMap>();
  Row& row = (*e.rows)[borrower.worker];
  row.sum += delta;
  row.node = borrower.node;
  if (!row.sum) e.rows->erase(borrower.worker);
  if (e.rows->empty()) e.rows.reset();
}
inline bool drop_rows_of_node(Entry& e, const Id16& node) {
  if (!e.rows) return false;
  bool any = false;
  for (auto it = e.rows->begin(); it != e.rows->end();) {
    if (it->second.node == node) {
      it = e.rows->erase(it);
      any = true;
    } else {
      ++it;
    }
  }
  if (e.rows->empty()) e.rows.reset();
  return any;
}
inline bool drop_row(Entry& e, const Id16& worker) {
  if (!e.rows || !e.rows->erase(worker)) return false;
  if (e.rows->empty()) e.rows.reset();
  return true;
}
inline bool has_rows(const Entry& e) { return bool(e.rows); }
// A pull that brought nothing, while the object is still where it was.
inline void trouble_entry(Entry& e, uint16_t code, const std::string& message) {
  e.trouble = std::make_unique<Failure>();
  e.trouble->code = code;
  e.trouble->message = message;
}

// One further copy for each node. What lies beside the primary copy goes with it, so it stands first: the last one is who may take its place. True: `old` was there before.
inline bool add_copy(Entry& e, const Place& place, Place& old) {
  for (auto& known : e.copies.own()) {
    if (!(known.node == place.node)) continue;
    old = known;
    known = place;
    return old.slot != place.slot || old.generation != place.generation;
  }
  if (place.node == e.place.node) e.copies.own().insert(e.copies.own().begin(), place);
  else e.copies.push_back(place);
  return false;
}

// Up to three further copies beside the primary one and off `but`, others at each `turn`, so that many readers do not all read from one node.
constexpr size_t FURTHER_SOURCES = 3;
inline void choose_copies(Entry& e, const Id16& but, uint64_t turn, std::vector<Place>& out) {
  size_t n = e.copies.size();
  for (size_t i = 0; i < n && out.size() < FURTHER_SOURCES; ++i) {
    const Place& copy = e.copies[size_t((turn + i) % n)];
    if (!(copy.node == e.place.node) && !(copy.node == but)) out.push_back(copy);
  }
}
inline void drop_copies_of_node(Entry& e, const Id16& node) {
  for (size_t i = e.copies.size(); i-- > 0;)
    if (e.copies[i].node == node) e.copies.own().erase(e.copies.own().begin() + long(i));
}
inline uint8_t urgency_of(Entry& e) {
  uint8_t most = e.callbacks.empty() ? URGENT_ARGUMENTS : URGENT_GET;
  for (size_t i = 0; i < e.waiters.size(); ++i)
    if (e.waiters[i].need_local && e.waiters[i].urgency < most) most = e.waiters[i].urgency;
  return most;
}
inline void hold_entry(Entry& e, uint32_t slot, uint32_t generation) {
  e.held = std::make_unique<Place>();
  e.held->slot = slot;
  e.held->generation = generation;
}
inline void lend_entry(Entry& e, const Owner& lender) { e.lender = std::make_unique<Owner>(lender); }

inline bool same_place(const Place& a, const Place& b) { return a.node == b.node && a.slot == b.slot && a.generation == b.generation; }
inline void drop_copy(Entry& e, const Place& place) {
  if (e.copies.empty()) return;
  auto& v = e.copies.own();
  for (size_t i = v.size(); i-- > 0;)
    if (same_place(v[i], place)) v.erase(v.begin() + long(i));
}
inline void miss_entry(Entry& e, const Place& place, const std::string& why) {
  e.missed = std::make_unique<Missed>();
  e.missed->place = place;
  e.missed->why = why;
}
inline bool is_wanted(const Entry& e) {
  return !e.waiters.empty() || !e.callbacks.empty() || !e.dependants.empty() || !e.run_dependants.empty() || !e.getters.empty();
}
// A task whose arguments are too large to travel inside it has them as an object of its own.
constexpr uint16_t WHOLE_ARGUMENTS = 0xffff;
inline bool is_whole_arguments(const TaskState& t, const ObjectId& id) { return !t.deps.empty() && t.deps[0].position == WHOLE_ARGUMENTS && t.deps[0].id == id; }

inline std::string hex_of(const char* raw, size_t n) {
  std::string s;
  for (size_t i = 0; i < n; ++i) {
    s.push_back("0123456789abcdef"[uint8_t(raw[i]) >> 4]);
    s.push_back("0123456789abcdef"[raw[i] & 15]);
  }
  return s;
}
// For messages: nodes and workers by their first twelve digits, objects in full.
inline std::string hex_text(const Id16& id) {
  char raw[16];
  store_id(raw, id);
  return hex_of(raw, 6);
}
inline std::string hex_text(const ObjectId& id) {
  char raw[20];
  store_object_id(raw, id);
  return hex_of(raw, 20);
}

inline void fail_entry(Entry& e, uint16_t code, const std::string& message, const std::string& name) {
  e.state = FAILED;
  e.failure = std::make_unique<Failure>();
  e.failure->code = code;
  e.failure->message = message;
  e.failure->name = name;
}
inline void forget_waiter(Entry& e, Waiter* w) {
  if (e.waiters.empty()) return;
  auto& v = e.waiters.own();
  for (size_t i = v.size(); i-- > 0;)
    if (v[i].waiter == w) v.erase(v.begin() + long(i));
}
inline void forget_waiter_in(std::vector<Waiter*>& v, Waiter* w) {
  for (size_t i = v.size(); i-- > 0;)
    if (v[i] == w) v.erase(v.begin() + long(i));
}
template <typename T>
inline bool erase_value(std::deque<T>& d, const T& v) {
  for (size_t i = 0; i < d.size(); ++i)
    if (d[i] == v) { d.erase(d.begin() + long(i)); return true; }
  return false;
}
template <typename T>
inline bool erase_value(std::vector<T*>& d, T* v) {
  for (size_t i = 0; i < d.size(); ++i)
    if (d[i] == v) { d.erase(d.begin() + long(i)); return true; }
  return false;
}

inline bool forget_number(std::vector<uint64_t>& v, uint64_t number) {
  for (size_t i = 0; i < v.size(); ++i)
    if (v[i] == number) { v.erase(v.begin() + long(i)); return true; }
  return false;
}

template <typename T>
inline bool erase_value(Few<T*>& d, T* v) {
  return !d.empty() && erase_value(d.own(), v);
}

// The task that this thread runs: parent of what it submits, and to blame for the references that its arguments bring in.
inline std::shared_ptr<RunTask>& current_run() {
  static thread_local std::shared_ptr<RunTask> run;
  return run;
}

struct ValueHeader {
  uint8_t kind, zero;
  uint16_t zeros;
  uint32_t n_buffers;
  uint64_t inband_size;
};
static_assert(sizeof(ValueHeader) == 16, "the value's header is 16 bytes on the wire");

// The control page's record. Written by its worker alone, read by the raylet.
struct ControlRecord {
  uint32_t magic, pid;
  uint64_t started;
  char task[16];
  uint64_t blocked_since_ns, started_at_ns;
  char actor[16];
  char name[96];
  char last_words[96];
};
static_assert(sizeof(ControlRecord) == 256, "a control record is 256 bytes");
constexpr uint32_t CONTROL_MAGIC = 0x4c4f4853;  // "SHOL"

// What a process holds of what its job may hold, behind the control records, one for each. The process writes the first words, the raylet `allowed_`.
struct Allowance {
  uint32_t job, zero;
  uint64_t tasks;          // that this process submitted and that have not ended
  uint64_t held_bytes;     // in stores, of objects that this process owns
  uint64_t writing_bytes;  // of objects that it writes now
  uint64_t passed_bytes;   // of results that it wrote and others own and count, ever
  uint64_t allowed_tasks;
  uint64_t allowed_bytes;  // for all of these together
  uint64_t leaving_bytes;  // of results that it wrote, on their way to their owners
};
static_assert(sizeof(Allowance) == 64, "an allowance is one line of the cache");
constexpr uint64_t WITHOUT_LIMIT = ~0ull;
inline void fence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

// Of the control pages: another process writes it at any moment.
inline uint64_t load_word(const uint64_t* word) { return __atomic_load_n(word, __ATOMIC_RELAXED); }

inline void copy_text(char* to, size_t room, const char* from, size_t n) {
  if (n >= room) n = room - 1;
  std::memcpy(to, from, n);
  to[n] = 0;
}

}  // namespace shoal
