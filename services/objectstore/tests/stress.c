/* Many clients as threads of one process, with a lender that sweeps, squeezes and reclaims all the while. For ThreadSanitizer, AddressSanitizer and plain builds.
 * stress ROUNDS SEED: ends with 0 when all bytes read were right, nothing is left and the table verifies. */
#include "shoal_arena_store.h"

enum { CLIENTS = 6, PARTNERS = 3, SHARED_CLIENT = CLIENTS + 1, SHELF = 64, MIB = 1 << 20 };

typedef struct { uint64_t loc; uint32_t byte; uint32_t pad; } shelf_t; /* objects that any client may get and free */

static shoal_store_t* store;
static uint64_t shelf[SHELF]; /* slot and generation, 0: none */
static uint64_t rounds;
static int ended, failed;

static uint64_t next(uint64_t* s) { *s ^= *s << 13; *s ^= *s >> 7; *s ^= *s << 17; return *s; }
static shoal_loc_t unpack(uint64_t v) { shoal_loc_t l; l.slot = (uint32_t)v; l.generation = (uint32_t)(v >> 32); return l; }
static uint64_t pack(shoal_loc_t l) { return ((uint64_t)l.generation << 32) | l.slot; }

/* Where one of several threads of a client was granted an extent, another runs first now and then: for longer than the store's grace. */
static int grant(shoal_arena_t* a, uint64_t bytes, uint32_t late_us) {
  uint32_t extent;
  uint64_t missing;
  uint32_t kind = bytes > store->a->header->extent_bytes / 4 ? SHOAL_EXTENT_WHOLE : SHOAL_EXTENT_SHARED;
  if (shoal_store_reserve(store, kind == SHOAL_EXTENT_WHOLE ? bytes : store->a->header->extent_bytes, kind, &extent, &missing) != SHOAL_OK) return 0;
  for (uint32_t part = 0; part < 2; part++)
    if (shoal_store_fill(store, extent, part, 2) != SHOAL_OK) { shoal_store_abandon(store, extent); return 0; }
  if (shoal_store_lend(store, extent, a->client) != SHOAL_OK) return 0;
  if (late_us) usleep(late_us);
  return shoal_arena_add_extent(a, extent) == SHOAL_OK;
}

/* The first and last word and one in between say size and generation. */
static void stamp(uint8_t* data, uint64_t n, shoal_loc_t loc) { memset(data, (int)(loc.generation * 31 + loc.slot), n); }
static int stamped(const uint8_t* data, uint64_t n, shoal_loc_t loc) {
  uint8_t want = (uint8_t)(loc.generation * 31 + loc.slot);
  for (uint64_t i = 0; i < n; i += 509) if (data[i] != want) return 0;
  return !n || data[n - 1] == want;
}

static void put_one(shoal_arena_t* a, uint64_t* rng, int may_be_late) {
  uint64_t r = next(rng), n = r % 16 ? r % 20000 : r % (2 * MIB), old;
  shoal_loc_t loc;
  void* data;
  int code = shoal_arena_create(a, n, &loc, &data);
  if (code == SHOAL_NEED_EXTENT) { if (grant(a, n, may_be_late && r / 7 % 8 == 0 ? 120000 : 0)) code = shoal_arena_create(a, n, &loc, &data); }
  if (code != SHOAL_OK) return;
  stamp((uint8_t*)data, n, loc);
  if (r % 11 == 0) { if (shoal_arena_abort(a, loc) != SHOAL_OK) failed = 1; return; }
  if (shoal_arena_seal(a, loc) != SHOAL_OK) { failed = 2; return; }
  old = __atomic_exchange_n(&shelf[r / 64 % SHELF], pack(loc), __ATOMIC_SEQ_CST);
  if (old && shoal_arena_free(a, unpack(old)) != SHOAL_OK) failed = 3;
}

static void get_one(shoal_arena_t* a, uint64_t* rng) {
  uint64_t v = __atomic_load_n(&shelf[next(rng) % SHELF], __ATOMIC_SEQ_CST), n;
  const void* data;
  void* mapping;
  uint8_t* own;
  uint64_t mapped;
  if (!v || shoal_arena_get(a, unpack(v), &data, &n) != SHOAL_OK) return;
  /* Through a private view now and then, which is written to afterwards. */
  if (n && next(rng) % 4 == 0 && (own = (uint8_t*)shoal_arena_private(a, data, n, &mapping, &mapped))) {
    if (!stamped(own, n, unpack(v))) failed = 4;
    memset(own, ~own[0], n);
    munmap(mapping, mapped);
  }
  if (!stamped((const uint8_t*)data, n, unpack(v))) failed = 4;
  if (shoal_arena_unpin(a, unpack(v)) != SHOAL_OK) failed = 5;
}

static void* client(void* arg) {
  uint32_t number = (uint32_t)(uintptr_t)arg & 0xFFFF;
  uint64_t rng = (uintptr_t)arg * 0x9E3779B97F4A7C15ull | 1;
  char err[300];
  shoal_arena_t* a;
  if (shoal_arena_attach(store->fd, number, &a, err, sizeof err) != SHOAL_OK) { fprintf(stderr, "%s\n", err); failed = 6; return NULL; }
  for (uint64_t i = 0; i < rounds && !failed; i++) {
    if (next(&rng) % 3) get_one(a, &rng); else put_one(a, &rng, 0);
    /* As if the process had died and another came. */
    if (next(&rng) % 2000 == 0) {
      shoal_arena_detach(a);
      if (shoal_store_reclaim(store, number) < 0) failed = 7;
      if (shoal_arena_attach(store->fd, number, &a, err, sizeof err) != SHOAL_OK) { fprintf(stderr, "%s\n", err); failed = 6; return NULL; }
    }
  }
  shoal_arena_detach(a);
  if (shoal_store_reclaim(store, number) < 0) failed = 7;
  return NULL;
}

/* Several threads of one process. */
static void* partner(void* arg) {
  shoal_arena_t* a = (shoal_arena_t*)((void**)arg)[0];
  uint64_t rng = (uintptr_t)arg * 0x9E3779B97F4A7C15ull | 1;
  for (uint64_t i = 0; i < rounds / 20 && !failed; i++) {
    if (next(&rng) % 3) get_one(a, &rng); else put_one(a, &rng, 1);
  }
  return NULL;
}

static void* lender(void* arg) {
  uint64_t rng = 88172645463325252ull, n = 0;
  shoal_stats_t stats;
  (void)arg;
  while (!__atomic_load_n(&ended, __ATOMIC_SEQ_CST)) {
    if (shoal_store_sweep(store, (uint32_t)(next(&rng) % 3), next(&rng) % 4 == 0, &stats) != SHOAL_OK) failed = 8;
    if (next(&rng) % 8 == 0 && shoal_store_warm(store, 8 * MIB, 2) < 0) failed = 10;
    if (n++ % 16 == 0) shoal_store_trim(store, next(&rng) % 2 ? 0 : 8 * MIB);
    if (n % 8 == 0) shoal_store_touch(store, 8 * MIB, 1000000);
    usleep(500);
  }
  return NULL;
}

static void fault(void* to, const char* text) { fprintf(stderr, "%s\n", text); (*(int*)to)++; }

int main(int argc, char** argv) {
  pthread_t threads[CLIENTS], partners[PARTNERS], sweeper;
  shoal_arena_t* shared;
  void* arguments[PARTNERS];
  char err[300];
  int fd = memfd_create("stress", 0), faults = 0;
  uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
  shoal_stats_t stats;
  rounds = argc > 1 ? strtoull(argv[1], NULL, 10) : 20000;
  if (shoal_arena_format(fd, 48 * MIB, 16, 4096, err, sizeof err) != SHOAL_OK || shoal_store_open(fd, &store, err, sizeof err) != SHOAL_OK) { fprintf(stderr, "%s\n", err); return 2; }
  pthread_create(&sweeper, NULL, lender, NULL);
  for (uint64_t i = 0; i < CLIENTS; i++) pthread_create(&threads[i], NULL, client, (void*)(uintptr_t)(i + 1 + (seed << 16)));
  if (shoal_arena_attach(fd, SHARED_CLIENT, &shared, err, sizeof err) != SHOAL_OK) { fprintf(stderr, "%s\n", err); return 2; }
  for (int i = 0; i < PARTNERS; i++) {
    arguments[i] = shared;
    pthread_create(&partners[i], NULL, partner, &arguments[i]);
  }
  for (int i = 0; i < CLIENTS; i++) pthread_join(threads[i], NULL);
  for (int i = 0; i < PARTNERS; i++) pthread_join(partners[i], NULL);
  shoal_arena_detach(shared);
  if (shoal_store_reclaim(store, SHARED_CLIENT) < 0) failed = 7;
  __atomic_store_n(&ended, 1, __ATOMIC_SEQ_CST);
  pthread_join(sweeper, NULL);
  for (int i = 0; i < SHELF; i++) if (shelf[i] && shoal_arena_free(store->a, unpack(shelf[i])) != SHOAL_OK) failed = 9;
  shoal_store_sweep(store, 0, 0, &stats);
  shoal_store_sweep(store, 0, 0, &stats);
  shoal_store_check(store, 1, fault, &faults);
  shoal_store_trim(store, 0);
  if (store->resident_bytes || shoal_store_file_resident(store)) { fprintf(stderr, "%llu bytes are left, %llu in the file\n", (unsigned long long)store->resident_bytes, (unsigned long long)shoal_store_file_resident(store)); faults++; }
  if (failed) fprintf(stderr, "failed: %d\n", failed);
  shoal_store_close(store);
  close(fd);
  return failed || faults;
}
