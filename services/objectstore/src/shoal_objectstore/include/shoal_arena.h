/* The node's shared-memory arena, as its clients see it: the layout and the client's side of the protocol. Header only, C11 and C++17.
 *
 * The arena is one memfd: header page, client table, pin tables, slot words, slot infos, extent table, then the data. Only the store's process
 * allocates pages of data. There is no lock in shared memory: everything that two processes change is one 64-bit word, changed by compare-and-swap, and
 * whatever instruction a client is killed or stopped at, the words say whose work it was and what is left to do.
 *
 * A slot's word: generation (32 bits), creator (16), state (8).
 *   FREE -> CLAIMED -> CREATED -> SEALED -> DOOMED -> RELEASED -> FREE (generation + 1)
 * CLAIMED and CREATED belong to the creator. SEALED -> DOOMED is the owner's free. DOOMED -> RELEASED is done by whoever finds no pin left: the one who frees,
 * the last one to unpin, or the store's sweep. RELEASED -> FREE, with which the space returns, is done by the one to whom the extent is lent.
 *
 * Pins: each client has a table of counts, one for each slot, that it alone writes (its threads by atomic addition).
 *   get:  add own pin; fence; read the word again; when it changed, drop the pin as unpin does.
 *   free: word to DOOMED; fence; gather all clients' pins; none: word to RELEASED.
 *   unpin: drop own pin; fence; read the word; DOOMED: gather, and none: word to RELEASED.
 * Either the getter sees DOOMED or the one who frees sees the pin; and of several who drop pins at once, the last one in the order of fences sees none left.
 *
 * The store may free an object too, after it has written its bytes elsewhere: it holds a pin meanwhile, and DOOMED and RELEASED then bear SHOAL_EVICTED in the
 * creator's place, so that its successor knows whose free it was. To clients the slot is gone; whoever has a use for the object asks the store.
 *
 * Extents: an extent is lent to one client, whose allocator for it is in its own memory; what is allocated can be derived again from the slots. While a client
 * looks for room in an extent its word says BUSY; at all other times the store may take the extent away by compare-and-swap.
 * "A slot of yours was released" is told by a bit in the lent-to client's mailbox: a hint that may be lost with its sender and that the store's sweep repeats.
 */
#ifndef SHOAL_ARENA_H
#define SHOAL_ARENA_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#ifdef __cplusplus
#define SHOAL_ARENA_ASSERT(condition, text) static_assert(condition, text)
#else
#define SHOAL_ARENA_ASSERT(condition, text) _Static_assert(condition, text)
#endif

#define SHOAL_ARENA_MAGIC 0x616E6572416C6853ull /* "ShlArena" */
#define SHOAL_ARENA_VERSION 2u

#define SHOAL_PAGE 4096ull
#define SHOAL_UNIT (2ull << 20)                    /* address space of extents is given out in these; a huge page */
#define SHOAL_GRANULE 1024ull                      /* allocation inside a shared extent */
#define SHOAL_EXTENT_MAX_SHARED (16ull << 20)      /* larger extents hold one object */
#define SHOAL_MAX_CLIENTS 4096u
#define SHOAL_MAX_SLOTS (1u << 24)
#define SHOAL_PINS_PER_PAGE 1024u
#define SHOAL_WORDS_PER_PAGE 512u
#define SHOAL_STORE_CLIENT 0u                      /* the store's own index in the client table */
#define SHOAL_EVICTED 0xFFFFu                      /* as creator of what is DOOMED or RELEASED: by the store, which has the bytes elsewhere */

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif

enum { SHOAL_OK = 0, SHOAL_NEED_EXTENT = 1, SHOAL_GONE = 2, SHOAL_BAD_STATE = 3, SHOAL_NO_SLOT = 4, SHOAL_MISMATCH = 5, SHOAL_SYS = 6 };

enum { SHOAL_SLOT_FREE = 0, SHOAL_SLOT_CLAIMED = 1, SHOAL_SLOT_CREATED = 2, SHOAL_SLOT_SEALED = 3, SHOAL_SLOT_DOOMED = 4, SHOAL_SLOT_RELEASED = 5 };
enum { SHOAL_EXTENT_ABSENT = 0, SHOAL_EXTENT_HELD = 1, SHOAL_EXTENT_LENT = 2, SHOAL_EXTENT_BUSY = 3 }; /* HELD: by the store, lent to nobody */
enum { SHOAL_EXTENT_SHARED = 0, SHOAL_EXTENT_WHOLE = 1, SHOAL_EXTENT_DRAINING = 2 }; /* DRAINING: nothing new goes in; the store alone has those */
enum { SHOAL_CLIENT_FREE = 0, SHOAL_CLIENT_ATTACHED = 1 };

typedef struct { uint32_t slot; uint32_t generation; } shoal_loc_t;
typedef struct { uint64_t worker[2]; uint64_t node[2]; } shoal_owner_t; /* whose object it is: ids of 16 bytes as they travel. Zeros: nobody whose end would end it */

typedef struct {
  uint64_t magic; /* written last */
  uint32_t version;
  uint32_t header_bytes;
  uint64_t capacity_bytes; /* the limit of allocated pages of data */
  uint64_t file_bytes;
  uint64_t data_offset;
  uint64_t data_bytes; /* address space of the data: more than the capacity, so that gaps between extents do not count */
  uint64_t extent_bytes; /* the usual size of a shared extent */
  uint32_t max_clients;
  uint32_t max_slots;
  uint32_t max_extents;
  uint32_t reserved;
  uint64_t clients_offset;
  uint64_t pin_pages_offset;  /* u8[max_clients][max_slots / 1024]: that page of pins was ever written */
  uint64_t mail_offset;       /* [max_clients]: see shoal_mail_bytes */
  uint64_t pins_offset;       /* u32[max_clients][max_slots] */
  uint64_t word_pages_offset; /* u8[max_slots / 512]: that page of words was ever written */
  uint64_t words_offset;      /* u64[max_slots] */
  uint64_t infos_offset;
  uint64_t extents_offset;
  uint8_t pad[4096 - 4 * 8 - 3 * 8 - 4 * 4 - 8 * 8 + 8 - 64];
  uint32_t clients_used; /* on a cache line of its own: the highest index ever attached, plus one */
  uint32_t clock; /* advanced by the store, about once a second: the time in which `used` of a slot is told */
  uint8_t pad2[48];
} shoal_header_t;

typedef struct { /* written by the client alone, but for `state` */
  uint32_t state;
  uint32_t pid;
  uint64_t pid_namespace; /* inode of its /proc/self/ns/pid */
  uint64_t started;       /* field 22 of its /proc/self/stat, so that a reused pid is not taken for it */
  uint64_t creates;
  uint64_t create_bytes;
  uint64_t gets;
  uint64_t get_bytes;
  uint64_t frees;
} shoal_client_t;

typedef struct { /* written between CLAIMED and CREATED, constant until FREE, but for `used`, `owner` and `primary` */
  uint64_t offset; /* from the start of the data */
  uint64_t bytes;  /* as asked for */
  uint32_t extent;
  uint32_t used; /* the header's clock when it was last created or got; a hint, written by anyone */
  shoal_owner_t owner; /* written by the creator before it seals */
  uint64_t primary; /* the generation in which a copy that the store made became the primary one; written by the store alone. Others of its are droppable */
} shoal_info_t;

typedef struct { /* an extent's number is its offset in units */
  uint64_t word; /* state (8), owner (16), sequence (40) */
  uint64_t bytes;
  uint64_t allocated_bytes; /* pages that the store allocated, from the start */
  uint32_t kind;
  uint32_t pages_epoch; /* changes when pages were punched out: mappings of before are gone */
  uint64_t reserved[4];
} shoal_extent_t;

SHOAL_ARENA_ASSERT(sizeof(shoal_header_t) == 4096, "header page");
SHOAL_ARENA_ASSERT(offsetof(shoal_header_t, clients_used) == 4096 - 56, "header page: clients_used");
SHOAL_ARENA_ASSERT(offsetof(shoal_header_t, clients_offset) == 72, "header page: table offsets");
SHOAL_ARENA_ASSERT(sizeof(shoal_client_t) == 64, "client record");
SHOAL_ARENA_ASSERT(sizeof(shoal_info_t) == 64, "slot info");
SHOAL_ARENA_ASSERT(offsetof(shoal_info_t, owner) == 24, "slot info: owner");
SHOAL_ARENA_ASSERT(offsetof(shoal_info_t, primary) == 56, "slot info: primary");
SHOAL_ARENA_ASSERT(sizeof(shoal_extent_t) == 64, "extent record");
SHOAL_ARENA_ASSERT(sizeof(shoal_loc_t) == 8, "location");
SHOAL_ARENA_ASSERT(__atomic_always_lock_free(8, 0) && __atomic_always_lock_free(4, 0), "atomics without locks");
SHOAL_ARENA_ASSERT(sizeof(void*) == 8, "64-bit platforms only");

/* A test may stop or kill the process at each instrumented point; elsewhere the points cost nothing. */
#ifdef SHOAL_ARENA_CRASH_POINTS
enum { SHOAL_POINTS = 39 }; /* 21 and beyond are the store's */
static int shoal_crash_point = 0, shoal_crash_after = 0, shoal_crash_signal = 0;
static uint64_t shoal_crash_passed[SHOAL_POINTS];
static inline void shoal_crash_check(int point) {
  shoal_crash_passed[point]++;
  if (shoal_crash_point == point && __atomic_sub_fetch(&shoal_crash_after, 1, __ATOMIC_SEQ_CST) == 0) { shoal_crash_point = 0; kill(getpid(), shoal_crash_signal); }
}
#define SHOAL_POINT(n) shoal_crash_check(n)
#else
#define SHOAL_POINT(n) ((void)0)
#endif

typedef struct { /* this process's view of an extent that is lent to it */
  uint32_t id;
  uint32_t kind;
  uint64_t offset;
  uint64_t bytes;
  uint64_t word; /* as we wrote it last: another value means that the store took the extent, and perhaps lent it again since */
  uint32_t granules;
  uint32_t free_granules;
  uint32_t longest; /* no run longer than this is free */
  uint64_t* bits;   /* of a shared extent: 1 allocated. Of others: null, `free_granules` says it */
} shoal_local_extent_t;

typedef struct { uint32_t pages_epoch; uint32_t known; uint64_t bytes; } shoal_mapped_t; /* how much of an extent this process has page-table entries for */

typedef struct shoal_arena {
  volatile uint64_t* alive; /* a page that is wiped in a forked child: zero there, so that a child never touches the tables */
  uint32_t client;
  int detached;
  uint8_t* base; /* the whole file, read-write */
  uint64_t map_bytes;
  const uint8_t* readonly; /* the data, read-only */
  int memfd; /* for private views; and which file it is */
  uint64_t device, inode;
  shoal_header_t* header;
  shoal_client_t* clients;
  uint8_t* own_pin_pages;
  uint32_t* own_pins;
  uint64_t* words;
  uint8_t* word_pages;
  shoal_info_t* infos;
  shoal_extent_t* extents;
  uint8_t* data;
  uint32_t max_slots;
  uint32_t max_extents;
  pthread_mutex_t mutex; /* the allocator below; never held across a wait */
  shoal_local_extent_t* local;
  uint32_t local_count, local_size;
  uint32_t* local_index; /* extent -> position in `local` + 1 */
  shoal_mapped_t* mapped;
  uint32_t slot_cursor;
  uint32_t hints[64]; /* slots that were free a moment ago, last in first out */
  uint32_t hint_count;
} shoal_arena_t;

static inline uint64_t shoal_word(uint32_t generation, uint32_t creator, uint32_t state) { return ((uint64_t)generation << 32) | ((uint64_t)creator << 8) | state; }
static inline uint32_t shoal_word_generation(uint64_t w) { return (uint32_t)(w >> 32); }
static inline uint32_t shoal_word_creator(uint64_t w) { return (uint32_t)(w >> 8) & 0xFFFFu; }
static inline uint32_t shoal_word_state(uint64_t w) { return (uint32_t)w & 0xFFu; }
static inline uint64_t shoal_word_with(uint64_t w, uint32_t state) { return (w & ~0xFFull) | state; }
static inline uint64_t shoal_word_freed(uint64_t w) { return shoal_word(shoal_word_generation(w) + 1, 0, SHOAL_SLOT_FREE); }

static inline uint64_t shoal_extent_word(uint64_t sequence, uint32_t owner, uint32_t state) { return (sequence << 24) | ((uint64_t)owner << 8) | state; }
static inline uint32_t shoal_extent_owner(uint64_t w) { return (uint32_t)(w >> 8) & 0xFFFFu; }
static inline uint32_t shoal_extent_state(uint64_t w) { return (uint32_t)w & 0xFFu; }
static inline uint64_t shoal_extent_next(uint64_t w, uint32_t owner, uint32_t state) { return shoal_extent_word((w >> 24) + 1, owner, state); }

static inline uint32_t shoal_granules(uint64_t bytes) { return bytes ? (uint32_t)((bytes + SHOAL_GRANULE - 1) / SHOAL_GRANULE) : 1; }
static inline uint64_t shoal_round(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }
static inline uint64_t shoal_load(const uint64_t* p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
static inline int shoal_cas(uint64_t* p, uint64_t from, uint64_t to) { return __atomic_compare_exchange_n(p, &from, to, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); }
static inline uint64_t shoal_relaxed(const uint64_t* p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline uint32_t shoal_relaxed32(const uint32_t* p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline void shoal_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

/* A mailbox: bits for slots, above them bits for non-zero words, above those again, and one top level of at most 64 words. */
static inline uint64_t shoal_mail_words(uint32_t slots) { return slots / 64; }
static inline uint64_t shoal_mail_bytes(uint32_t slots) {
  uint64_t bits = shoal_mail_words(slots) * 8, middle = shoal_round(shoal_mail_words(slots) / 64 + 1, 8) * 8, top = 64 * 8;
  return shoal_round(top + middle + bits, SHOAL_PAGE);
}
static inline uint64_t* shoal_mail_top(const shoal_arena_t* a, uint32_t client) {
  return (uint64_t*)(void*)(a->base + a->header->mail_offset + (uint64_t)client * shoal_mail_bytes(a->max_slots));
}
static inline uint64_t* shoal_mail_middle(const shoal_arena_t* a, uint32_t client) { return shoal_mail_top(a, client) + 64; }
static inline uint64_t* shoal_mail_bits(const shoal_arena_t* a, uint32_t client) {
  return shoal_mail_middle(a, client) + shoal_round(shoal_mail_words(a->max_slots) / 64 + 1, 8);
}
static inline void shoal_mail_post(const shoal_arena_t* a, uint32_t client, uint32_t slot) {
  uint32_t word = slot / 64, middle = word / 64;
  __atomic_fetch_or(&shoal_mail_bits(a, client)[word], 1ull << (slot % 64), __ATOMIC_SEQ_CST);
  SHOAL_POINT(1);
  __atomic_fetch_or(&shoal_mail_middle(a, client)[middle], 1ull << (word % 64), __ATOMIC_SEQ_CST);
  SHOAL_POINT(2);
  __atomic_fetch_or(&shoal_mail_top(a, client)[middle / 64], 1ull << (middle % 64), __ATOMIC_SEQ_CST);
}

static inline int shoal_error(char* err, size_t n, int code, const char* what, const char* detail) {
  if (err && n) snprintf(err, n, "%s%s%s", what, detail && *detail ? ": " : "", detail ? detail : "");
  return code;
}

/* Fills in a header for these limits; the same computation for the one who formats and for tests. */
static inline void shoal_arena_plan(uint64_t capacity, uint32_t max_clients, uint32_t max_slots, shoal_header_t* h) {
  uint64_t at = sizeof(shoal_header_t);
  memset(h, 0, sizeof *h);
  h->version = SHOAL_ARENA_VERSION;
  h->header_bytes = sizeof *h;
  h->capacity_bytes = shoal_round(capacity, SHOAL_PAGE);
  h->max_clients = max_clients;
  h->max_slots = max_slots;
  h->data_bytes = shoal_round(capacity, SHOAL_UNIT) * 4 + 32 * SHOAL_UNIT;
  h->max_extents = (uint32_t)(h->data_bytes / SHOAL_UNIT);
  h->extent_bytes = capacity / 64 / SHOAL_UNIT * SHOAL_UNIT;
  if (h->extent_bytes < SHOAL_UNIT) h->extent_bytes = SHOAL_UNIT;
  if (h->extent_bytes > SHOAL_EXTENT_MAX_SHARED) h->extent_bytes = SHOAL_EXTENT_MAX_SHARED;
#define SHOAL_PLACE(field, size) do { h->field = at; at = shoal_round(at + (size), SHOAL_PAGE); } while (0)
  SHOAL_PLACE(clients_offset, (uint64_t)max_clients * sizeof(shoal_client_t));
  SHOAL_PLACE(pin_pages_offset, (uint64_t)max_clients * (max_slots / SHOAL_PINS_PER_PAGE));
  SHOAL_PLACE(mail_offset, (uint64_t)max_clients * shoal_mail_bytes(max_slots));
  SHOAL_PLACE(pins_offset, (uint64_t)max_clients * max_slots * 4);
  SHOAL_PLACE(word_pages_offset, max_slots / SHOAL_WORDS_PER_PAGE);
  SHOAL_PLACE(words_offset, (uint64_t)max_slots * 8);
  SHOAL_PLACE(infos_offset, (uint64_t)max_slots * sizeof(shoal_info_t));
  SHOAL_PLACE(extents_offset, (uint64_t)h->max_extents * sizeof(shoal_extent_t));
#undef SHOAL_PLACE
  h->data_offset = shoal_round(at, SHOAL_UNIT);
  h->file_bytes = h->data_offset + h->data_bytes;
}

/* Writes the layout into an empty memfd. Everything else of it is zero, which means free. */
static inline int shoal_arena_format(int memfd, uint64_t capacity_bytes, uint32_t max_clients, uint32_t max_slots, char* err, size_t errlen) {
  shoal_header_t h;
  struct stat st;
  uint64_t magic = SHOAL_ARENA_MAGIC;
  if (max_clients < 2 || max_clients > SHOAL_MAX_CLIENTS || max_slots < 4096 || max_slots > SHOAL_MAX_SLOTS || max_slots % 4096 || capacity_bytes < SHOAL_UNIT) {
    char text[200];
    snprintf(text, sizeof text, "capacity %llu (at least %llu), max_clients %u (2 to %u), max_slots %u (a multiple of 4096 up to %u)", (unsigned long long)capacity_bytes,
             (unsigned long long)SHOAL_UNIT, max_clients, SHOAL_MAX_CLIENTS, max_slots, SHOAL_MAX_SLOTS);
    return shoal_error(err, errlen, SHOAL_MISMATCH, "impossible limits for an arena", text);
  }
  if (fstat(memfd, &st) != 0) return shoal_error(err, errlen, SHOAL_SYS, "fstat of the arena", strerror(errno));
  if (st.st_size != 0) return shoal_error(err, errlen, SHOAL_BAD_STATE, "the arena's memfd is not empty", "");
  shoal_arena_plan(capacity_bytes, max_clients, max_slots, &h);
  if (ftruncate(memfd, (off_t)h.file_bytes) != 0) return shoal_error(err, errlen, SHOAL_SYS, "ftruncate of the arena", strerror(errno));
  if (pwrite(memfd, &h, sizeof h, 0) != (ssize_t)sizeof h || pwrite(memfd, &magic, sizeof magic, 0) != (ssize_t)sizeof magic)
    return shoal_error(err, errlen, SHOAL_SYS, "writing the arena's header", strerror(errno));
  return SHOAL_OK;
}

static inline int shoal_arena_check_header(const shoal_header_t* h, const struct stat* st, char* err, size_t errlen) {
  shoal_header_t plan;
  char text[200];
  if (h->magic != SHOAL_ARENA_MAGIC) return shoal_error(err, errlen, SHOAL_MISMATCH, "this descriptor is no Shoal arena", "the magic number is missing");
  if (h->version != SHOAL_ARENA_VERSION || h->header_bytes != sizeof(shoal_header_t)) {
    snprintf(text, sizeof text, "the arena has layout %u, this program was built for layout %u: install the same shoal-objectstore on both sides", h->version, SHOAL_ARENA_VERSION);
    return shoal_error(err, errlen, SHOAL_MISMATCH, "arena layout", text);
  }
  if (h->max_clients < 2 || h->max_clients > SHOAL_MAX_CLIENTS || h->max_slots < 4096 || h->max_slots > SHOAL_MAX_SLOTS || h->max_slots % 4096)
    return shoal_error(err, errlen, SHOAL_MISMATCH, "the arena's header is damaged", "limits out of range");
  shoal_arena_plan(h->capacity_bytes, h->max_clients, h->max_slots, &plan);
  if (memcmp(&plan.capacity_bytes, &h->capacity_bytes, offsetof(shoal_header_t, pad) - offsetof(shoal_header_t, capacity_bytes)) != 0)
    return shoal_error(err, errlen, SHOAL_MISMATCH, "the arena's header is damaged", "offsets do not follow from its limits");
  if ((uint64_t)st->st_size != h->file_bytes) return shoal_error(err, errlen, SHOAL_MISMATCH, "the arena's file has another size than its header says", "");
  return SHOAL_OK;
}

#ifdef SHOAL_ARENA_ONE_MAPPING
/* For a race detector, which knows addresses and not pages: all clients of this process share one mapping of the one arena. */
static uint8_t* shoal_one_mapping;
#endif

/* Maps `bytes` of the file so that huge pages can be mapped as such: the address a multiple of 2 MiB, as the offset is. */
static inline void* shoal_map(int memfd, uint64_t offset, uint64_t bytes, int protection) {
  uint8_t* reserved = (uint8_t*)mmap(NULL, bytes + SHOAL_UNIT, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  uint8_t* at;
#ifdef SHOAL_ARENA_ONE_MAPPING
  if (shoal_one_mapping) {
    munmap(reserved, bytes + SHOAL_UNIT);
    return shoal_one_mapping + offset;
  }
#endif
  if (reserved == MAP_FAILED) return NULL;
  at = (uint8_t*)(uintptr_t)shoal_round((uint64_t)(uintptr_t)reserved, SHOAL_UNIT);
  if (mmap(at, bytes, protection, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, memfd, (off_t)offset) == MAP_FAILED) { munmap(reserved, bytes + SHOAL_UNIT); return NULL; }
  if (at > reserved) munmap(reserved, (size_t)(at - reserved));
  if (at + bytes < reserved + bytes + SHOAL_UNIT) munmap(at + bytes, (size_t)(reserved + SHOAL_UNIT - at));
#ifdef SHOAL_ARENA_ONE_MAPPING
  shoal_one_mapping = at;
#endif
  return at;
}

static inline void shoal_arena_unmap(shoal_arena_t* a) {
#ifndef SHOAL_ARENA_ONE_MAPPING
  if (a->base) munmap(a->base, a->map_bytes);
  if (a->readonly) munmap((void*)(uintptr_t)a->readonly, a->map_bytes - (uint64_t)(a->data - a->base));
#endif
  if (a->alive) munmap((void*)(uintptr_t)a->alive, SHOAL_PAGE);
}

/* Whether the descriptor is still what it was: a process may close and reuse what it knows nothing of. `mutex` held. */
static inline int shoal_arena_has_fd(const shoal_arena_t* a) {
  struct stat st;
  return a->memfd >= 0 && fstat(a->memfd, &st) == 0 && (uint64_t)st.st_dev == a->device && (uint64_t)st.st_ino == a->inode;
}

/* No private views from now on; what is mapped stays so. */
static inline void shoal_arena_close_fd(shoal_arena_t* a) {
  int alone = !*a->alive; /* a forked child: its mutex may be one that a thread of the parent held */
  if (!alone) pthread_mutex_lock(&a->mutex);
  if (shoal_arena_has_fd(a)) close(a->memfd);
  a->memfd = -1;
  if (!alone) pthread_mutex_unlock(&a->mutex);
}

static inline void shoal_local_clear(shoal_arena_t* a) {
  for (uint32_t i = 0; i < a->local_count; i++) free(a->local[i].bits);
  free(a->local);
  free(a->local_index);
  free(a->mapped);
}

/* When the process started, in clock ticks since boot; 0 when /proc does not say, and errno why. */
static inline uint64_t shoal_process_started(uint32_t pid) {
  char path[40], text[1024], *at;
  FILE* f;
  size_t n;
  snprintf(path, sizeof path, "/proc/%u/stat", pid);
  f = fopen(path, "re");
  if (!f) return 0;
  n = fread(text, 1, sizeof text - 1, f);
  fclose(f);
  text[n] = 0;
  at = strrchr(text, ')'); /* the name before it may hold anything */
  for (int field = 2; at && field < 22; field++) at = strchr(at + 1, ' ');
  return at ? strtoull(at + 1, NULL, 10) : 0;
}

/* Whether the process that started then has surely ended. No descriptor left to look with, or no /proc, is no death. */
static inline int shoal_process_gone(uint32_t pid, uint64_t started) {
  uint64_t found;
  errno = 0;
  found = shoal_process_started(pid);
  if (found) return started && found != started;
  return (errno == ENOENT || errno == ESRCH) && access("/proc/self/stat", R_OK) == 0;
}

static inline uint64_t shoal_pid_namespace(void) {
  struct stat st;
  return stat("/proc/self/ns/pid", &st) == 0 ? (uint64_t)st.st_ino : 0;
}

static inline int shoal_arena_attach_state(shoal_arena_t* a, uint32_t expected_free, char* err, size_t errlen) {
  shoal_client_t* me = &a->clients[a->client];
  uint32_t state = SHOAL_CLIENT_FREE, used = __atomic_load_n(&a->header->clients_used, __ATOMIC_SEQ_CST);
  /* Before the state: whoever gathers pins must look at this client from its first pin on. */
  while (used < a->client + 1 && !__atomic_compare_exchange_n(&a->header->clients_used, &used, a->client + 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {}
  if (!__atomic_compare_exchange_n(&me->state, &state, (uint32_t)SHOAL_CLIENT_ATTACHED, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST) && expected_free) {
    char text[120];
    snprintf(text, sizeof text, "client %u belongs to process %u until the store has taken it back", a->client, me->pid);
    return shoal_error(err, errlen, SHOAL_BAD_STATE, "the place in the arena is taken", text);
  }
  __atomic_store_n(&me->started, shoal_process_started((uint32_t)getpid()), __ATOMIC_RELAXED);
  __atomic_store_n(&me->pid_namespace, shoal_pid_namespace(), __ATOMIC_RELAXED);
  __atomic_store_n(&me->pid, (uint32_t)getpid(), __ATOMIC_SEQ_CST);
  return SHOAL_OK;
}

/* Attaches this process as `client`, whose place must be free (fresh, or taken back with reclaim). The descriptor may be closed afterwards. */
static inline int shoal_arena_attach(int memfd, uint32_t client, shoal_arena_t** out, char* err, size_t errlen) {
  shoal_header_t h;
  struct stat st;
  shoal_arena_t* a;
  int code;
  *out = NULL;
  if (fstat(memfd, &st) != 0) return shoal_error(err, errlen, SHOAL_SYS, "fstat of the arena", strerror(errno));
  if (pread(memfd, &h, sizeof h, 0) != (ssize_t)sizeof h) return shoal_error(err, errlen, SHOAL_MISMATCH, "this descriptor is no Shoal arena", "it is too short");
  code = shoal_arena_check_header(&h, &st, err, errlen);
  if (code != SHOAL_OK) return code;
  if (client >= h.max_clients) return shoal_error(err, errlen, SHOAL_MISMATCH, "client index out of range", "");
  a = (shoal_arena_t*)calloc(1, sizeof *a);
  if (!a) return shoal_error(err, errlen, SHOAL_SYS, "attaching the arena", "out of memory");
  a->client = client;
  a->memfd = fcntl(memfd, F_DUPFD_CLOEXEC, 3);
  a->device = (uint64_t)st.st_dev;
  a->inode = (uint64_t)st.st_ino;
  a->max_slots = h.max_slots;
  a->max_extents = h.max_extents;
  a->map_bytes = h.file_bytes;
  a->base = (uint8_t*)shoal_map(memfd, 0, h.file_bytes, PROT_READ | PROT_WRITE);
  a->readonly = (const uint8_t*)shoal_map(memfd, h.data_offset, h.data_bytes, PROT_READ);
  a->alive = (volatile uint64_t*)mmap(NULL, SHOAL_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (a->alive == (volatile uint64_t*)MAP_FAILED) a->alive = NULL;
  a->local_index = (uint32_t*)calloc(h.max_extents, sizeof(uint32_t));
  a->mapped = (shoal_mapped_t*)calloc(h.max_extents, sizeof(shoal_mapped_t));
  if (a->base) a->data = a->base + h.data_offset;
  if (!a->base || !a->readonly || !a->alive || !a->local_index || !a->mapped) {
    code = errno;
    if (a->memfd >= 0) close(a->memfd);
    shoal_arena_unmap(a);
    shoal_local_clear(a);
    free(a);
    return shoal_error(err, errlen, SHOAL_SYS, "mapping the arena", strerror(code));
  }
  madvise((void*)(uintptr_t)a->alive, SHOAL_PAGE, MADV_WIPEONFORK);
  /* Cores of a process need not hold the node's objects. */
  madvise(a->base, h.file_bytes, MADV_DONTDUMP);
  madvise((void*)(uintptr_t)a->readonly, h.data_bytes, MADV_DONTDUMP);
  a->header = (shoal_header_t*)(void*)a->base;
  a->clients = (shoal_client_t*)(void*)(a->base + h.clients_offset);
  a->own_pin_pages = a->base + h.pin_pages_offset + (uint64_t)client * (h.max_slots / SHOAL_PINS_PER_PAGE);
  a->own_pins = (uint32_t*)(void*)(a->base + h.pins_offset + (uint64_t)client * h.max_slots * 4);
  a->word_pages = a->base + h.word_pages_offset;
  a->words = (uint64_t*)(void*)(a->base + h.words_offset);
  a->infos = (shoal_info_t*)(void*)(a->base + h.infos_offset);
  a->extents = (shoal_extent_t*)(void*)(a->base + h.extents_offset);
  /* Each client begins to look for slots in a place of its own, so that they seldom meet. */
  a->slot_cursor = (uint32_t)((uint64_t)client * h.max_slots / h.max_clients);
  pthread_mutex_init(&a->mutex, NULL);
  code = shoal_arena_attach_state(a, client != SHOAL_STORE_CLIENT, err, errlen);
  if (code != SHOAL_OK) {
    if (a->memfd >= 0) close(a->memfd);
    shoal_arena_unmap(a);
    shoal_local_clear(a);
    free(a);
    return code;
  }
  *a->alive = 1;
  *out = a;
  return SHOAL_OK;
}

static inline int shoal_arena_usable(const shoal_arena_t* a) { return *a->alive != 0; }

/* For a forked child; it is also noticed without this call. */
static inline void shoal_arena_fork_child(shoal_arena_t* a) { *a->alive = 0; }

static inline uint8_t* shoal_map_private(int memfd, uint64_t offset, uint64_t bytes) {
  uint64_t around = bytes < SHOAL_UNIT ? 0 : 2 * SHOAL_UNIT;
  uint8_t *reserved, *at;
  if (!around) {
    at = (uint8_t*)mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, memfd, (off_t)offset);
    return at == MAP_FAILED ? NULL : at;
  }
  /* As far from a multiple of 2 MiB as in the file, so that huge pages are mapped as such. */
  reserved = (uint8_t*)mmap(NULL, bytes + around, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) return NULL;
  at = (uint8_t*)(uintptr_t)shoal_round((uint64_t)(uintptr_t)reserved, SHOAL_UNIT) + offset % SHOAL_UNIT;
  if (mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE | MAP_FIXED, memfd, (off_t)offset) == MAP_FAILED) {
    munmap(reserved, bytes + around);
    return NULL;
  }
  if (at > reserved) munmap(reserved, (size_t)(at - reserved));
  if (at + bytes < reserved + bytes + around) munmap(at + bytes, (size_t)(reserved + around - at));
  return at;
}

/* A copy-on-write view of bytes at `data`, which lie in an object that this process pins as long as it uses the view: reading needs no copy, and what is written is
 * this process's own. The kernel maps pages, so the mapping begins and ends in what may be other objects; it belongs to nobody but the reader of these bytes.
 * NULL: there is none (a forked child, bytes of no arena, no more mappings), and a copy does as well. To be ended by munmap(*mapping, *mapped). */
static inline void* shoal_arena_private(shoal_arena_t* a, const void* data, uint64_t bytes, void** mapping, uint64_t* mapped) {
  uint64_t data_bytes = a->map_bytes - (uint64_t)(a->data - a->base), offset, start, length;
  uint8_t* at;
  if (!shoal_arena_usable(a) || (const uint8_t*)data < a->readonly || (const uint8_t*)data >= a->readonly + data_bytes) return NULL;
  offset = (uint64_t)((const uint8_t*)data - a->readonly);
  if (!bytes || bytes > data_bytes - offset) return NULL;
  start = offset / SHOAL_PAGE * SHOAL_PAGE;
  length = shoal_round(offset + bytes, SHOAL_PAGE) - start;
  pthread_mutex_lock(&a->mutex);
  at = shoal_arena_has_fd(a) ? shoal_map_private(a->memfd, (uint64_t)(a->data - a->base) + start, length) : NULL;
  pthread_mutex_unlock(&a->mutex);
  if (!at) return NULL;
  (void)madvise(at, length, MADV_DONTDUMP);
  *mapping = at;
  *mapped = length;
  return at + (offset - start);
}

/* Unmaps. What the client still holds stays its own until the store takes it back (reclaim); views become invalid. */
static inline void shoal_arena_detach(shoal_arena_t* a) {
  if (!a) return;
  shoal_arena_close_fd(a);
  shoal_arena_unmap(a);
  shoal_local_clear(a);
  free(a);
}

/* -- pins and words ------------------------------------------------------------------------------------------------------------------ */

static inline int shoal_pinned_by(const shoal_arena_t* a, uint32_t client, uint32_t slot) {
  const uint8_t* pages = a->base + a->header->pin_pages_offset + (uint64_t)client * (a->max_slots / SHOAL_PINS_PER_PAGE);
  const uint32_t* pins = (const uint32_t*)(const void*)(a->base + a->header->pins_offset) + (uint64_t)client * a->max_slots;
  /* The page of marks first: reading a pin would allocate its page. */
  return __atomic_load_n(&pages[slot / SHOAL_PINS_PER_PAGE], __ATOMIC_SEQ_CST) && __atomic_load_n(&pins[slot], __ATOMIC_SEQ_CST) != 0;
}

static inline int shoal_pinned(const shoal_arena_t* a, uint32_t slot) {
  uint32_t used = __atomic_load_n(&a->header->clients_used, __ATOMIC_SEQ_CST);
  for (uint32_t c = 0; c < used; c++)
    if (shoal_pinned_by(a, c, slot)) return 1;
  return 0;
}

static inline void shoal_extent_return(shoal_arena_t* a, uint32_t slot, uint64_t word);

/* DOOMED and without pins: RELEASED, and tell the one whose extent it is. Anyone may do it, any number at once; one wins. */
static inline int shoal_try_release(shoal_arena_t* a, uint32_t slot, uint64_t doomed, int locked) {
  uint32_t extent, owner;
  uint64_t released = shoal_word_with(doomed, SHOAL_SLOT_RELEASED);
  if (shoal_pinned(a, slot)) return 0;
  SHOAL_POINT(3);
  extent = shoal_relaxed32(&a->infos[slot].extent); /* before the swap: afterwards the slot may be another object's at once */
  if (!shoal_cas(&a->words[slot], doomed, released)) return 0;
  SHOAL_POINT(4);
  if (extent >= a->max_extents) return 1;
  owner = shoal_extent_owner(shoal_load(&a->extents[extent].word));
  if (owner != a->client) {
    shoal_mail_post(a, owner, slot);
  } else if (locked) {
    shoal_extent_return(a, slot, released);
  } else {
    pthread_mutex_lock(&a->mutex);
    shoal_extent_return(a, slot, released);
    pthread_mutex_unlock(&a->mutex);
  }
  return 1;
}

static inline int shoal_drop_pin(shoal_arena_t* a, uint32_t slot) {
  uint64_t word;
  uint32_t left = __atomic_sub_fetch(&a->own_pins[slot], 1, __ATOMIC_SEQ_CST);
  SHOAL_POINT(5);
  if (left) return SHOAL_OK;
  shoal_fence();
  word = shoal_load(&a->words[slot]);
  if (shoal_word_state(word) == SHOAL_SLOT_DOOMED) shoal_try_release(a, slot, word, 0);
  return SHOAL_OK;
}

static inline int shoal_gone(uint64_t word, shoal_loc_t loc) {
  if (shoal_word_generation(word) != loc.generation) return SHOAL_GONE;
  return shoal_word_state(word) == SHOAL_SLOT_CREATED || shoal_word_state(word) == SHOAL_SLOT_CLAIMED ? SHOAL_BAD_STATE : SHOAL_GONE;
}

static inline void shoal_owner_set(shoal_arena_t* a, uint32_t slot, const shoal_owner_t* owner) {
  shoal_owner_t* to = &a->infos[slot].owner;
  for (int i = 0; i < 2; i++) {
    __atomic_store_n(&to->worker[i], owner->worker[i], __ATOMIC_RELAXED);
    __atomic_store_n(&to->node[i], owner->node[i], __ATOMIC_RELAXED);
  }
}

static inline shoal_owner_t shoal_owner_get(const shoal_arena_t* a, uint32_t slot) {
  const shoal_owner_t* from = &a->infos[slot].owner;
  shoal_owner_t owner;
  for (int i = 0; i < 2; i++) {
    owner.worker[i] = __atomic_load_n(&from->worker[i], __ATOMIC_RELAXED);
    owner.node[i] = __atomic_load_n(&from->node[i], __ATOMIC_RELAXED);
  }
  return owner;
}

/* It was used now. Written once a tick of the clock, so that many readers of one object do not take its cache line from each other. */
static inline void shoal_touch(shoal_arena_t* a, uint32_t slot) {
  uint32_t now = shoal_relaxed32(&a->header->clock);
  if (shoal_relaxed32(&a->infos[slot].used) != now) __atomic_store_n(&a->infos[slot].used, now, __ATOMIC_RELAXED);
}

/* Pins the object for this client and says where its bytes are, in the read-only mapping. Each get wants one unpin. */
static inline int shoal_arena_get(shoal_arena_t* a, shoal_loc_t loc, const void** data, uint64_t* nbytes) {
  uint64_t word;
  if (!shoal_arena_usable(a)) return SHOAL_BAD_STATE;
  if (loc.slot >= a->max_slots) return SHOAL_GONE;
  word = shoal_load(&a->words[loc.slot]);
  if (shoal_word_generation(word) != loc.generation || shoal_word_state(word) != SHOAL_SLOT_SEALED) return shoal_gone(word, loc);
  if (!__atomic_load_n(&a->own_pin_pages[loc.slot / SHOAL_PINS_PER_PAGE], __ATOMIC_RELAXED))
    __atomic_store_n(&a->own_pin_pages[loc.slot / SHOAL_PINS_PER_PAGE], (uint8_t)1, __ATOMIC_SEQ_CST);
  SHOAL_POINT(6);
  __atomic_add_fetch(&a->own_pins[loc.slot], 1, __ATOMIC_SEQ_CST);
  SHOAL_POINT(7);
  shoal_fence();
  word = shoal_load(&a->words[loc.slot]);
  if (shoal_word_generation(word) != loc.generation || shoal_word_state(word) != SHOAL_SLOT_SEALED) {
    shoal_drop_pin(a, loc.slot);
    return SHOAL_GONE;
  }
  SHOAL_POINT(8);
  *data = a->readonly + shoal_relaxed(&a->infos[loc.slot].offset);
  *nbytes = shoal_relaxed(&a->infos[loc.slot].bytes);
  shoal_touch(a, loc.slot);
  __atomic_fetch_add(&a->clients[a->client].gets, 1, __ATOMIC_RELAXED);
  __atomic_fetch_add(&a->clients[a->client].get_bytes, *nbytes, __ATOMIC_RELAXED);
  return SHOAL_OK;
}

/* Whether a get would find it, just now. */
static inline int shoal_arena_has(const shoal_arena_t* a, shoal_loc_t loc) {
  uint64_t word = loc.slot < a->max_slots ? shoal_load(&a->words[loc.slot]) : 0;
  return shoal_word_generation(word) == loc.generation && shoal_word_state(word) == SHOAL_SLOT_SEALED;
}

static inline int shoal_arena_unpin(shoal_arena_t* a, shoal_loc_t loc) {
  if (!shoal_arena_usable(a)) return SHOAL_OK; /* the parent's pins are the parent's */
  if (loc.slot >= a->max_slots || !a->own_pin_pages[loc.slot / SHOAL_PINS_PER_PAGE] || !__atomic_load_n(&a->own_pins[loc.slot], __ATOMIC_SEQ_CST)) return SHOAL_BAD_STATE;
  return shoal_drop_pin(a, loc.slot);
}

/* The owner's word that the object is wanted no more. New gets fail from now on; the space returns with the last pin. */
static inline int shoal_arena_free(shoal_arena_t* a, shoal_loc_t loc) {
  uint64_t word, doomed;
  if (!shoal_arena_usable(a)) return SHOAL_BAD_STATE;
  if (loc.slot >= a->max_slots) return SHOAL_GONE;
  word = shoal_load(&a->words[loc.slot]);
  if (shoal_word_generation(word) != loc.generation || shoal_word_state(word) != SHOAL_SLOT_SEALED) return shoal_gone(word, loc);
  doomed = shoal_word_with(word, SHOAL_SLOT_DOOMED);
  SHOAL_POINT(9);
  if (!shoal_cas(&a->words[loc.slot], word, doomed)) return SHOAL_GONE;
  SHOAL_POINT(10);
  __atomic_fetch_add(&a->clients[a->client].frees, 1, __ATOMIC_RELAXED);
  shoal_fence();
  shoal_try_release(a, loc.slot, doomed, 0);
  return SHOAL_OK;
}

/* -- this process's allocator; `mutex` held -------------------------------------------------------------------------------------------- */

static inline shoal_local_extent_t* shoal_local_find(shoal_arena_t* a, uint32_t extent) {
  uint32_t at = extent < a->max_extents ? a->local_index[extent] : 0;
  return at ? &a->local[at - 1] : NULL;
}

static inline void shoal_local_drop(shoal_arena_t* a, uint32_t position) {
  a->local_index[a->local[position].id] = 0;
  free(a->local[position].bits);
  a->local_count--;
  memmove(&a->local[position], &a->local[position + 1], (a->local_count - position) * sizeof *a->local);
  for (uint32_t i = position; i < a->local_count; i++) a->local_index[a->local[i].id] = i + 1;
}

static inline void shoal_bits_set(uint64_t* bits, uint32_t from, uint32_t n, int value) {
  while (n) {
    uint32_t shift = from % 64, take = 64 - shift < n ? 64 - shift : n;
    uint64_t mask = (take == 64 ? ~0ull : ((1ull << take) - 1)) << shift;
    if (value) bits[from / 64] |= mask; else bits[from / 64] &= ~mask;
    from += take;
    n -= take;
  }
}

/* The first run of n zeros, or `granules`; *longest becomes the longest run met on the way. */
static inline uint32_t shoal_bits_find(const uint64_t* bits, uint32_t granules, uint32_t n, uint32_t* longest) {
  uint32_t at = 0, run = 0, best = 0;
  while (at < granules) {
    uint64_t rest = bits[at / 64] >> (at % 64);
    uint32_t room = 64 - at % 64, zeros, ones;
    if (room > granules - at) room = granules - at;
    zeros = rest ? (uint32_t)__builtin_ctzll(rest) : 64;
    if (zeros >= room) {
      run += room;
      at += room;
      if (run >= n) return at - run;
      continue;
    }
    run += zeros;
    at += zeros;
    if (run >= n) return at - run;
    if (run > best) best = run;
    run = 0;
    rest = bits[at / 64] >> (at % 64);
    ones = ~rest ? (uint32_t)__builtin_ctzll(~rest) : 64;
    room = 64 - at % 64;
    if (ones > room) ones = room;
    at += ones;
  }
  *longest = run > best ? run : best;
  return granules;
}

/* A released slot in an extent that is, or was, lent to us: its space is free again, then its slot. */
static inline void shoal_extent_return(shoal_arena_t* a, uint32_t slot, uint64_t released) {
  uint64_t offset = shoal_relaxed(&a->infos[slot].offset);
  uint32_t n = shoal_granules(shoal_relaxed(&a->infos[slot].bytes)), extent = shoal_relaxed32(&a->infos[slot].extent);
  shoal_local_extent_t* e;
  if (extent >= a->max_extents || shoal_extent_owner(shoal_load(&a->extents[extent].word)) != a->client) return;
  /* The swap decides whose the space is: only its winner frees the range, so that a second hint does no harm. */
  if (!shoal_cas(&a->words[slot], released, shoal_word_freed(released))) return;
  SHOAL_POINT(11);
  if (a->hint_count < 64) a->hints[a->hint_count++] = slot;
  e = shoal_local_find(a, extent);
  /* What we know of an extent that was taken from us and came back otherwise is worth nothing. */
  if (!e || e->word != shoal_load(&a->extents[extent].word)) return;
  if (e->bits) shoal_bits_set(e->bits, (uint32_t)((offset - e->offset) / SHOAL_GRANULE), n, 0);
  e->free_granules = e->kind == SHOAL_EXTENT_WHOLE ? e->granules : e->free_granules + n;
  e->longest = e->free_granules;
}

static inline void shoal_collect(shoal_arena_t* a) {
  uint64_t *top = shoal_mail_top(a, a->client), *middle = shoal_mail_middle(a, a->client), *bits = shoal_mail_bits(a, a->client);
  uint32_t tops = (uint32_t)(shoal_mail_words(a->max_slots) / 64 / 64 + 1);
  for (uint32_t t = 0; t < tops && t < 64; t++) {
    uint64_t level1 = __atomic_load_n(&top[t], __ATOMIC_SEQ_CST);
    if (!level1) continue;
    level1 = __atomic_exchange_n(&top[t], 0, __ATOMIC_SEQ_CST);
    while (level1) {
      uint32_t m = t * 64 + (uint32_t)__builtin_ctzll(level1);
      uint64_t level2 = __atomic_exchange_n(&middle[m], 0, __ATOMIC_SEQ_CST);
      level1 &= level1 - 1;
      while (level2) {
        uint32_t w = m * 64 + (uint32_t)__builtin_ctzll(level2);
        uint64_t level3 = __atomic_exchange_n(&bits[w], 0, __ATOMIC_SEQ_CST);
        level2 &= level2 - 1;
        SHOAL_POINT(12);
        while (level3) {
          uint32_t slot = w * 64 + (uint32_t)__builtin_ctzll(level3);
          uint64_t word = shoal_load(&a->words[slot]);
          level3 &= level3 - 1;
          if (shoal_word_state(word) == SHOAL_SLOT_RELEASED) shoal_extent_return(a, slot, word);
        }
      }
    }
  }
}

static inline int shoal_claim_at(shoal_arena_t* a, uint32_t slot, uint64_t* word) {
  uint64_t w = shoal_load(&a->words[slot]), claimed;
  if (shoal_word_state(w) != SHOAL_SLOT_FREE) return 0;
  /* No object has generation 0, so that a location of zeros names none. */
  claimed = shoal_word(shoal_word_generation(w) ? shoal_word_generation(w) : 1, a->client, SHOAL_SLOT_CLAIMED);
  if (!shoal_cas(&a->words[slot], w, claimed)) return 0;
  *word = claimed;
  return 1;
}

/* A free slot becomes ours. Returns max_slots when the table is full. */
static inline uint32_t shoal_claim(shoal_arena_t* a, uint64_t* word) {
  while (a->hint_count) {
    uint32_t slot = a->hints[--a->hint_count];
    if (shoal_claim_at(a, slot, word)) return slot;
  }
  for (uint32_t i = 0, slot = a->slot_cursor; i < a->max_slots; i++) {
    uint8_t* page = &a->word_pages[slot / SHOAL_WORDS_PER_PAGE];
    if (!__atomic_load_n(page, __ATOMIC_RELAXED)) __atomic_store_n(page, (uint8_t)1, __ATOMIC_SEQ_CST);
    if (shoal_claim_at(a, slot, word)) {
      a->slot_cursor = slot + 1 == a->max_slots ? 0 : slot + 1;
      return slot;
    }
    slot = slot + 1 == a->max_slots ? 0 : slot + 1;
  }
  return a->max_slots;
}

/* Room in an extent that we hold BUSY, or UINT64_MAX. */
static inline uint64_t shoal_local_room(shoal_local_extent_t* e, uint32_t n) {
  uint32_t at;
  if (e->kind == SHOAL_EXTENT_WHOLE) return e->free_granules == e->granules && n <= e->granules ? e->offset : UINT64_MAX;
  at = shoal_bits_find(e->bits, e->granules, n, &e->longest);
  return at == e->granules ? UINT64_MAX : e->offset + (uint64_t)at * SHOAL_GRANULE;
}

static inline void shoal_local_take(shoal_local_extent_t* e, uint64_t offset, uint32_t n) {
  if (e->kind == SHOAL_EXTENT_WHOLE) {
    e->free_granules = e->longest = 0;
  } else {
    shoal_bits_set(e->bits, (uint32_t)((offset - e->offset) / SHOAL_GRANULE), n, 1);
    e->free_granules -= n;
  }
}

static inline int shoal_local_fits(const shoal_local_extent_t* e, uint32_t n) {
  /* A whole extent takes one object that fills at least half of it. */
  return e->longest >= n && e->kind != SHOAL_EXTENT_DRAINING && (e->kind == SHOAL_EXTENT_SHARED || n >= e->granules / 2);
}

/* One attempt in the local extent at this position. SHOAL_NEED_EXTENT: no room here. SHOAL_GONE: the store has taken it; it was dropped. */
static inline int shoal_create_in(shoal_arena_t* a, uint32_t position, uint64_t nbytes, uint32_t n, shoal_loc_t* loc, uint64_t* offset) {
  shoal_local_extent_t* e = &a->local[position];
  shoal_extent_t* shared = &a->extents[e->id];
  uint64_t busy = shoal_extent_next(e->word, a->client, SHOAL_EXTENT_BUSY), slot_word;
  shoal_owner_t nobody = {{0, 0}, {0, 0}};
  uint32_t slot;
  int code = SHOAL_OK;
  if (!shoal_cas(&shared->word, e->word, busy)) {
    shoal_local_drop(a, position);
    return SHOAL_GONE;
  }
  SHOAL_POINT(13);
  *offset = shoal_local_room(e, n);
  if (*offset == UINT64_MAX) {
    code = SHOAL_NEED_EXTENT;
  } else if ((slot = shoal_claim(a, &slot_word)) == a->max_slots) {
    code = SHOAL_NO_SLOT;
  } else {
    SHOAL_POINT(14);
    __atomic_store_n(&a->infos[slot].offset, *offset, __ATOMIC_RELAXED);
    __atomic_store_n(&a->infos[slot].bytes, nbytes, __ATOMIC_RELAXED);
    __atomic_store_n(&a->infos[slot].extent, e->id, __ATOMIC_RELAXED);
    shoal_owner_set(a, slot, &nobody);
    shoal_touch(a, slot);
    SHOAL_POINT(15);
    /* Ours alone: nobody else changes CLAIMED while we live. */
    __atomic_store_n(&a->words[slot], shoal_word_with(slot_word, SHOAL_SLOT_CREATED), __ATOMIC_SEQ_CST);
    SHOAL_POINT(16);
    shoal_local_take(e, *offset, n);
    loc->slot = slot;
    loc->generation = shoal_word_generation(slot_word);
  }
  e->word = shoal_extent_next(busy, a->client, SHOAL_EXTENT_LENT);
  __atomic_store_n(&shared->word, e->word, __ATOMIC_SEQ_CST);
  SHOAL_POINT(17);
  return code;
}

/* Which part of the extent, up to `end` bytes in it, has no page-table entries here yet. Page-exact: pages beyond the object may have been punched out. */
static inline uint64_t shoal_unmapped(shoal_arena_t* a, uint32_t extent, uint64_t end, uint64_t* bytes) {
  shoal_mapped_t* m = &a->mapped[extent];
  uint32_t epoch = __atomic_load_n(&a->extents[extent].pages_epoch, __ATOMIC_SEQ_CST);
  uint64_t from;
  if (!m->known || m->pages_epoch != epoch) { m->known = 1; m->pages_epoch = epoch; m->bytes = 0; }
  from = m->bytes;
  end = shoal_round(end, SHOAL_PAGE);
  *bytes = end > from ? end - from : 0;
  if (*bytes) m->bytes = end;
  return from;
}

/* Room for an object, to be written and then sealed or aborted. SHOAL_NEED_EXTENT: ask the store for an extent for nbytes (EXTENT_REQUEST), shoal_arena_add_extent, again. */
static inline int shoal_arena_create(shoal_arena_t* a, uint64_t nbytes, shoal_loc_t* loc, void** data) {
  uint64_t offset = 0, fresh = 0, fresh_bytes = 0;
  uint32_t granules;
  int code = SHOAL_NEED_EXTENT;
  if (!shoal_arena_usable(a)) return SHOAL_BAD_STATE;
  if (nbytes > a->header->data_bytes) return SHOAL_NEED_EXTENT; /* the store says why not */
  granules = shoal_granules(nbytes);
  pthread_mutex_lock(&a->mutex);
  shoal_collect(a);
  /* The latest first: its pages are the warmest. */
  for (uint32_t i = a->local_count; i-- > 0;) {
    if (!shoal_local_fits(&a->local[i], granules)) continue;
    code = shoal_create_in(a, i, nbytes, granules, loc, &offset);
    if (code == SHOAL_OK) {
      fresh = a->local[i].offset + shoal_unmapped(a, a->local[i].id, offset + nbytes - a->local[i].offset, &fresh_bytes);
      break;
    }
    if (code == SHOAL_NO_SLOT) break;
    code = SHOAL_NEED_EXTENT;
  }
  pthread_mutex_unlock(&a->mutex);
  if (code != SHOAL_OK) return code;
  /* Page-table entries in one call: a fault for each page costs several times the copy. What fails here (an old kernel) happens page by page on writing. */
  if (fresh_bytes > 2 * SHOAL_PAGE) (void)madvise(a->data + fresh, fresh_bytes, MADV_POPULATE_WRITE);
  *data = a->data + offset;
  __atomic_fetch_add(&a->clients[a->client].creates, 1, __ATOMIC_RELAXED);
  __atomic_fetch_add(&a->clients[a->client].create_bytes, nbytes, __ATOMIC_RELAXED);
  return SHOAL_OK;
}

/* The extent, which is lent to us and not known to the allocator, joins it. Extents are lent empty. `mutex` held. */
static inline int shoal_local_join(shoal_arena_t* a, uint32_t extent, uint64_t word) {
  shoal_local_extent_t e;
  memset(&e, 0, sizeof e);
  e.id = extent;
  e.word = word;
  e.kind = shoal_relaxed32(&a->extents[extent].kind);
  e.offset = (uint64_t)extent * SHOAL_UNIT;
  e.bytes = shoal_relaxed(&a->extents[extent].bytes);
  shoal_fence();
  if (shoal_load(&a->extents[extent].word) != word) return SHOAL_OK; /* taken back while we read */
  e.granules = e.free_granules = e.longest = (uint32_t)(e.bytes / SHOAL_GRANULE);
  if (a->local_count == a->local_size) {
    uint32_t size = a->local_size ? a->local_size * 2 : 16;
    shoal_local_extent_t* grown = (shoal_local_extent_t*)realloc(a->local, size * sizeof *grown);
    if (!grown) return SHOAL_SYS;
    a->local = grown;
    a->local_size = size;
  }
  if (e.kind == SHOAL_EXTENT_SHARED && !(e.bits = (uint64_t*)calloc((e.granules + 63) / 64 + 1, 8))) return SHOAL_SYS;
  a->local[a->local_count++] = e;
  a->local_index[extent] = a->local_count;
  return SHOAL_OK;
}

/* An extent that the store granted to this client joins its allocator. The grant may be acted on late: the store may have taken the extent back meanwhile (it was
 * not used for long, and somebody was in need), and may have lent it once more, to us for another of our threads, which has objects in it by now. So an extent
 * that we know is left as it is, and one that is not ours is no error: the next create says SHOAL_NEED_EXTENT. */
static inline int shoal_arena_add_extent(shoal_arena_t* a, uint32_t extent) {
  uint64_t word;
  shoal_local_extent_t* known;
  int code = SHOAL_OK;
  if (!shoal_arena_usable(a) || extent >= a->max_extents) return SHOAL_BAD_STATE;
  pthread_mutex_lock(&a->mutex);
  word = shoal_load(&a->extents[extent].word);
  known = shoal_local_find(a, extent);
  if (known && known->word != word) {
    shoal_local_drop(a, (uint32_t)(known - a->local)); /* taken back */
    known = NULL;
  }
  if (!known && shoal_extent_owner(word) == a->client && shoal_extent_state(word) == SHOAL_EXTENT_LENT) code = shoal_local_join(a, extent, word);
  pthread_mutex_unlock(&a->mutex);
  return code;
}

/* Whose object it is, said before it is sealed: when the owner's process or node dies, the store frees what it left. `worker` and `node` are 16 bytes each. */
static inline int shoal_arena_own(shoal_arena_t* a, shoal_loc_t loc, const void* worker, const void* node) {
  shoal_owner_t owner;
  if (!shoal_arena_usable(a) || loc.slot >= a->max_slots) return SHOAL_BAD_STATE;
  if (shoal_load(&a->words[loc.slot]) != shoal_word(loc.generation, a->client, SHOAL_SLOT_CREATED)) return SHOAL_BAD_STATE;
  memcpy(owner.worker, worker, 16);
  memcpy(owner.node, node, 16);
  shoal_owner_set(a, loc.slot, &owner);
  return SHOAL_OK;
}

/* The object is whole: readers may get it, its bytes change no more. */
static inline int shoal_arena_seal(shoal_arena_t* a, shoal_loc_t loc) {
  uint64_t word = shoal_word(loc.generation, a->client, SHOAL_SLOT_CREATED);
  if (!shoal_arena_usable(a) || loc.slot >= a->max_slots) return SHOAL_BAD_STATE;
  SHOAL_POINT(18);
  if (!shoal_cas(&a->words[loc.slot], word, shoal_word_with(word, SHOAL_SLOT_SEALED))) return SHOAL_BAD_STATE;
  SHOAL_POINT(19);
  return SHOAL_OK;
}

/* Gives up an object that was created and not sealed. */
static inline int shoal_arena_abort(shoal_arena_t* a, shoal_loc_t loc) {
  uint64_t word = shoal_word(loc.generation, a->client, SHOAL_SLOT_CREATED), doomed = shoal_word_with(word, SHOAL_SLOT_DOOMED);
  if (!shoal_arena_usable(a) || loc.slot >= a->max_slots) return SHOAL_BAD_STATE;
  if (!shoal_cas(&a->words[loc.slot], word, doomed)) return SHOAL_BAD_STATE;
  SHOAL_POINT(20);
  shoal_fence();
  shoal_try_release(a, loc.slot, doomed, 0);
  return SHOAL_OK;
}

#endif /* SHOAL_ARENA_H */
