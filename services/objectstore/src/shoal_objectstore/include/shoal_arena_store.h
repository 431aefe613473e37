/* The store's side of the arena: which address space and pages there are, lending extents, taking back what the dead held, verifying it all.
 * For one process at a time, client 0. Functions take the store's mutex where they touch its tables; filling pages is done outside of it.
 *
 * Address space is given out in units of 2 MiB. Of a free unit the store knows how many pages from its start are resident ("warm"), so that a new extent can be
 * made of warm pages; the sum of all resident pages never exceeds the capacity.
 * An extent that its client lost with objects in it DRAINS: it keeps the pages that they touch and, but for the first, only the units that they touch.
 * Nothing here is needed to rebuild: units, residence and live objects follow from the extent table, the slots and the file's holes.
 */
#ifndef SHOAL_ARENA_STORE_H
#define SHOAL_ARENA_STORE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include <fcntl.h>
#include <linux/falloc.h>
#include <time.h>

#include "shoal_arena.h"

#define SHOAL_PAGES_PER_UNIT ((uint32_t)(SHOAL_UNIT / SHOAL_PAGE))
#define SHOAL_GRACE_NS 100000000ull /* for so long a lent extent is not taken back before its client has used it */
#define SHOAL_FILL_STEP (32ull << 20) /* pages are filled in steps, so that one large object does not hold up the kernel's locks */
#define SHOAL_HUGE_TRIES 3            /* so many refusals, one after another, and the kernel is not asked for huge pages again */
#ifndef SHOAL_SMALL_COST_NS
#define SHOAL_SMALL_COST_NS 2000000ull /* about what the small pages of a unit cost; whoever is waited for takes them when its huge page costs more */
#endif

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

typedef struct {
  shoal_arena_t* a;
  int fd;
  pthread_mutex_t mutex;
  pthread_mutex_t house; /* one sweep or reclaim at a time */
  uint32_t* holder;    /* by unit: its extent + 1; 0: free */
  uint16_t* resident;  /* by unit: pages from its start; of those in extents only while they are filled */
  uint64_t* last_word; /* by extent: for finding those that lie idle */
  uint32_t* last_seen; /* sweeps in which it did not change */
  uint64_t* lent_word; /* by extent: as it was lent, and when */
  uint64_t* lent_at;
  uint32_t* kept; /* by slot: a generation that is not to be chosen for eviction */
  uint32_t huge_refused;
  uint32_t touch_at; /* the unit with which the next touch begins; of one thread at a time */
  uint64_t huge_cost_ns; /* of a unit's, lately */
  uint32_t filling; /* threads that make the pages of extents resident: somebody waits for those */
  uint64_t resident_bytes; /* all of it: extents and free units */
  uint64_t free_warm_bytes;
  uint64_t warming_bytes; /* of units that are being filled in the background */
} shoal_store_t;

typedef struct {
  uint64_t capacity_bytes, resident_bytes, free_warm_bytes, sealed_bytes, created_bytes, doomed_bytes, lent_bytes, lent_free_bytes;
  uint32_t sealed, created, doomed, released, claimed, clients, extents, extents_idle;
} shoal_stats_t;

typedef struct { uint64_t start, bytes; } shoal_span_t; /* inside an extent */

static inline int shoal_span_order(const void* x, const void* y) {
  const shoal_span_t *a = (const shoal_span_t*)x, *b = (const shoal_span_t*)y;
  return a->start < b->start ? -1 : a->start > b->start;
}

/* Calls for each slot that is not FREE. What it reads of the info belongs to the word it passes, or the slot is skipped. */
#define SHOAL_EACH_SLOT(a, slot, word, info)                                                                                          \
  for (uint32_t page_ = 0; page_ < (a)->max_slots / SHOAL_WORDS_PER_PAGE; page_++)                                                    \
    if (__atomic_load_n(&(a)->word_pages[page_], __ATOMIC_SEQ_CST))                                                                   \
      for (uint32_t slot = page_ * SHOAL_WORDS_PER_PAGE; slot < (page_ + 1) * SHOAL_WORDS_PER_PAGE; slot++)                           \
        if (shoal_read_slot((a), slot, &word, &info))

static inline int shoal_read_slot(shoal_arena_t* a, uint32_t slot, uint64_t* word, shoal_info_t* info) {
  for (;;) {
    uint64_t w = shoal_load(&a->words[slot]);
    if (shoal_word_state(w) == SHOAL_SLOT_FREE) return 0;
    info->offset = shoal_relaxed(&a->infos[slot].offset);
    info->bytes = shoal_relaxed(&a->infos[slot].bytes);
    info->extent = shoal_relaxed32(&a->infos[slot].extent);
    shoal_fence();
    if (shoal_load(&a->words[slot]) != w) continue;
    *word = w;
    return 1;
  }
}

static inline int shoal_live(uint64_t word) {
  uint32_t state = shoal_word_state(word);
  return state == SHOAL_SLOT_CREATED || state == SHOAL_SLOT_SEALED || state == SHOAL_SLOT_DOOMED;
}

/* A client may read them just then; it looks at the word again afterwards. */
static inline void shoal_extent_set(shoal_extent_t* e, uint64_t bytes, uint32_t kind) {
  __atomic_store_n(&e->bytes, bytes, __ATOMIC_RELAXED);
  __atomic_store_n(&e->kind, kind, __ATOMIC_RELAXED);
}

static inline uint32_t shoal_units(uint64_t bytes) { return (uint32_t)((bytes + SHOAL_UNIT - 1) / SHOAL_UNIT); }

/* -- pages -------------------------------------------------------------------------------------------------------------------------- */

static inline int shoal_punch(shoal_store_t* s, uint64_t offset, uint64_t bytes) {
  return bytes ? fallocate(s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(s->a->header->data_offset + offset), (off_t)bytes) : 0;
}

static inline uint64_t shoal_clock(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static inline uint64_t shoal_now(void) { return shoal_clock(CLOCK_MONOTONIC); }

/* Whole units as huge pages, where the kernel gives them (Linux 6.1; unlike faults, this does not depend on shmem_enabled): several times faster to make than
 * their small pages, and every process that maps them takes one fault for 512. One small page must be there first. Returns whether all units are resident. */
static inline int shoal_fill_huge(shoal_store_t* s, uint64_t offset, uint64_t bytes) {
  uint64_t began = shoal_clock(CLOCK_THREAD_CPUTIME_ID), cost; /* others may have the processor meanwhile */
  if (__atomic_load_n(&s->huge_refused, __ATOMIC_RELAXED) >= SHOAL_HUGE_TRIES) return 0;
  for (uint64_t at = offset; at < offset + bytes; at += SHOAL_UNIT) {
    if (fallocate(s->fd, 0, (off_t)(s->a->header->data_offset + at), (off_t)SHOAL_PAGE) != 0) return 0;
    (void)__atomic_fetch_add((volatile uint8_t*)(s->a->data + at), 0, __ATOMIC_RELAXED);
  }
  if (madvise(s->a->data + offset, bytes, MADV_COLLAPSE) != 0) {
    __atomic_add_fetch(&s->huge_refused, 1, __ATOMIC_RELAXED);
    return 0;
  }
  __atomic_store_n(&s->huge_refused, 0u, __ATOMIC_RELAXED);
  cost = __atomic_load_n(&s->huge_cost_ns, __ATOMIC_RELAXED);
  __atomic_store_n(&s->huge_cost_ns, cost - cost / 4 + (shoal_clock(CLOCK_THREAD_CPUTIME_ID) - began) / (bytes / SHOAL_UNIT) / 4, __ATOMIC_RELAXED);
  return 1;
}

/* Whether who is waited for takes the small pages of a unit instead. On a virtual machine whose host has taken free memory back, that is where huge pages are made of,
 * and those come from there at a tenth of the speed while small ones are at hand. Some tens of small ones, and a huge one is tried again. */
static inline int shoal_small_cost_less(shoal_store_t* s) {
  uint64_t cost = __atomic_load_n(&s->huge_cost_ns, __ATOMIC_RELAXED);
  if (cost < SHOAL_SMALL_COST_NS) return 0;
  __atomic_store_n(&s->huge_cost_ns, cost - cost / 64, __ATOMIC_RELAXED);
  return 1;
}

/* Allocates the pages and touches them; the second is what costs. `urgent`: somebody waits for them. */
static inline int shoal_fill_range(shoal_store_t* s, uint64_t offset, uint64_t bytes, int urgent) {
  while (bytes) {
    uint64_t most = urgent ? SHOAL_UNIT : SHOAL_FILL_STEP, step = bytes < most ? bytes : most;
    int small = urgent && shoal_small_cost_less(s);
    if (offset % SHOAL_UNIT == 0 && step >= SHOAL_UNIT) step = step / SHOAL_UNIT * SHOAL_UNIT;
    if (small || offset % SHOAL_UNIT || step % SHOAL_UNIT || !shoal_fill_huge(s, offset, step)) {
      if (fallocate(s->fd, 0, (off_t)(s->a->header->data_offset + offset), (off_t)step) != 0) {
        if (errno == EINTR) continue;
        return SHOAL_SYS;
      }
      SHOAL_POINT(26);
      if (madvise(s->a->data + offset, step, MADV_POPULATE_WRITE) != 0)
        for (uint64_t at = 0; at < step; at += SHOAL_PAGE) (void)__atomic_fetch_add((volatile uint8_t*)(s->a->data + offset + at), 0, __ATOMIC_RELAXED);
    }
    /* The store's own page-table entries are of no more use. */
    (void)madvise(s->a->data + offset, step, MADV_DONTNEED);
    offset += step;
    bytes -= step;
  }
  return SHOAL_OK;
}

/* Units back to the free ones; `pages` says how many pages from the start of the run are resident. Mutex held. */
static inline void shoal_units_free(shoal_store_t* s, uint32_t unit, uint32_t units, uint64_t resident_bytes) {
  uint64_t pages = resident_bytes / SHOAL_PAGE;
  for (uint32_t u = unit; u < unit + units; u++) {
    uint32_t here = pages > SHOAL_PAGES_PER_UNIT ? SHOAL_PAGES_PER_UNIT : (uint32_t)pages;
    s->holder[u] = 0;
    s->resident[u] = (uint16_t)here;
    s->free_warm_bytes += here * SHOAL_PAGE;
    pages -= here;
  }
}

static inline void shoal_unit_cool(shoal_store_t* s, uint32_t unit, uint32_t keep_pages) {
  uint32_t gone;
  if (s->resident[unit] <= keep_pages) return;
  gone = s->resident[unit] - keep_pages;
  (void)shoal_punch(s, unit * SHOAL_UNIT + keep_pages * SHOAL_PAGE, gone * SHOAL_PAGE);
  SHOAL_POINT(30);
  __atomic_add_fetch(&s->a->extents[unit].pages_epoch, 1, __ATOMIC_SEQ_CST);
  s->resident[unit] = (uint16_t)keep_pages;
  s->free_warm_bytes -= gone * SHOAL_PAGE;
  s->resident_bytes -= gone * SHOAL_PAGE;
}

/* The run of free units with the most warm pages for this many bytes; of equals the lowest. max_extents: none is long enough. Mutex held. */
static inline uint32_t shoal_units_find(shoal_store_t* s, uint32_t units, uint64_t* warm) {
  uint32_t best = s->a->max_extents, run = 0;
  uint64_t sum = 0, most = 0;
  for (uint32_t u = 0; u < s->a->max_extents; u++) {
    if (s->holder[u]) {
      run = 0;
      sum = 0;
      continue;
    }
    sum += s->resident[u];
    if (++run > units) {
      sum -= s->resident[u - units];
      run = units;
    }
    if (run == units && (best == s->a->max_extents || sum > most)) {
      best = u + 1 - units;
      most = sum;
    }
  }
  *warm = most * SHOAL_PAGE;
  return best;
}

/* Punches free warm units until at most `keep` bytes of them are left. What stays lies together, if so much free space does, or half of that, and so on: for one large
 * object. Returns what it gave back. */
static inline uint64_t shoal_trim_locked(shoal_store_t* s, uint64_t keep) {
  uint64_t before = s->free_warm_bytes, warm;
  uint32_t units = shoal_units(keep), first = s->a->max_extents;
  if (before <= keep) return 0;
  while (units && (first = shoal_units_find(s, units, &warm)) == s->a->max_extents) units /= 2;
  for (uint32_t u = s->a->max_extents; u-- > 0 && s->free_warm_bytes > keep;)
    if (!s->holder[u] && (u < first || u >= first + units)) shoal_unit_cool(s, u, 0);
  for (uint32_t u = first + units; u-- > first && s->free_warm_bytes > keep;) shoal_unit_cool(s, u, 0);
  return before - s->free_warm_bytes;
}

static inline uint64_t shoal_store_trim(shoal_store_t* s, uint64_t keep) {
  uint64_t out;
  pthread_mutex_lock(&s->mutex);
  out = shoal_trim_locked(s, keep);
  pthread_mutex_unlock(&s->mutex);
  return out;
}

/* -- giving ------------------------------------------------------------------------------------------------------------------------- */

/* Takes address space and a part of the capacity for an extent of `bytes`. SHOAL_NEED_EXTENT: the capacity is used up, *missing says by how much.
 * The extent is HELD by the store; fill it, then lend it. */
static inline int shoal_store_reserve(shoal_store_t* s, uint64_t bytes, uint32_t kind, uint32_t* extent, uint64_t* missing) {
  uint64_t wanted = shoal_round(bytes ? bytes : 1, SHOAL_PAGE), warm, already = 0;
  uint32_t units = shoal_units(wanted), at;
  shoal_extent_t* e;
  *missing = wanted;
  if (wanted > s->a->header->capacity_bytes) return SHOAL_NEED_EXTENT;
  pthread_mutex_lock(&s->mutex);
  at = shoal_units_find(s, units, &warm);
  if (at == s->a->max_extents) {
    pthread_mutex_unlock(&s->mutex);
    return SHOAL_NEED_EXTENT;
  }
  for (uint32_t u = at; u < at + units; u++) {
    uint64_t part = wanted - (uint64_t)(u - at) * SHOAL_UNIT;
    shoal_unit_cool(s, u, part < SHOAL_UNIT ? (uint32_t)(part / SHOAL_PAGE) : SHOAL_PAGES_PER_UNIT);
    already += s->resident[u] * SHOAL_PAGE;
  }
  if (s->resident_bytes + wanted - already > s->a->header->capacity_bytes) {
    /* Warm pages elsewhere make room, these stay. */
    uint64_t over = s->resident_bytes + wanted - already - s->a->header->capacity_bytes, others = s->free_warm_bytes - already;
    if (over > others) {
      *missing = over - others;
      pthread_mutex_unlock(&s->mutex);
      return SHOAL_NEED_EXTENT;
    }
    for (uint32_t u = at; u < at + units; u++) s->holder[u] = at + 1;
    s->free_warm_bytes -= already;
    shoal_trim_locked(s, others - over);
    s->free_warm_bytes += already;
  }
  for (uint32_t u = at; u < at + units; u++) s->holder[u] = at + 1;
  s->free_warm_bytes -= already;
  s->resident_bytes += wanted - already;
  e = &s->a->extents[at];
  if (already < wanted) __atomic_add_fetch(&e->pages_epoch, 1, __ATOMIC_SEQ_CST);
  shoal_extent_set(e, wanted, kind);
  e->allocated_bytes = wanted;
  SHOAL_POINT(24);
  __atomic_store_n(&e->word, shoal_extent_next(shoal_load(&e->word), SHOAL_STORE_CLIENT, SHOAL_EXTENT_HELD), __ATOMIC_SEQ_CST);
  SHOAL_POINT(25);
  s->last_seen[at] = 0;
  pthread_mutex_unlock(&s->mutex);
  *extent = at;
  return SHOAL_OK;
}

/* Gives a held, empty extent's units back: warm, but for a draining one's, whose pages are unknown. */
static inline void shoal_store_unreserve(shoal_store_t* s, uint32_t extent) {
  shoal_extent_t* e = &s->a->extents[extent];
  uint32_t units = shoal_units(e->bytes);
  pthread_mutex_lock(&s->mutex);
  if (e->kind == SHOAL_EXTENT_DRAINING) {
    s->resident_bytes -= e->allocated_bytes;
    for (uint32_t u = extent; u < extent + units; u++) {
      if (s->holder[u] != extent + 1) continue;
      (void)shoal_punch(s, u * SHOAL_UNIT, SHOAL_UNIT);
      shoal_units_free(s, u, 1, 0);
    }
    __atomic_add_fetch(&e->pages_epoch, 1, __ATOMIC_SEQ_CST);
  } else {
    shoal_units_free(s, extent, units, e->allocated_bytes);
  }
  SHOAL_POINT(28);
  __atomic_store_n(&e->word, shoal_extent_next(shoal_load(&e->word), 0, SHOAL_EXTENT_ABSENT), __ATOMIC_SEQ_CST);
  SHOAL_POINT(29);
  shoal_extent_set(e, 0, e->kind);
  e->allocated_bytes = 0;
  pthread_mutex_unlock(&s->mutex);
}

/* How many bytes of a held extent have no pages yet. */
static inline uint64_t shoal_store_cold(const shoal_store_t* s, uint32_t extent) {
  uint64_t bytes = s->a->extents[extent].bytes, warm = 0;
  for (uint32_t u = 0; u < shoal_units(bytes); u++) warm += s->resident[extent + u] * SHOAL_PAGE;
  return warm < bytes ? bytes - warm : 0;
}

/* Makes the pages of the units [first, last) of a held extent resident. Slow when they are cold; no lock is held, so that threads may share an extent. On failure
 * the extent must be given back. */
static inline int shoal_store_fill_units(shoal_store_t* s, uint32_t extent, uint32_t first, uint32_t last) {
  uint64_t bytes = s->a->extents[extent].bytes;
  uint32_t next;
  for (uint32_t u = first; u < last; u = next) {
    uint64_t from = u * SHOAL_UNIT, warm = s->resident[extent + u] * SHOAL_PAGE, to;
    /* Cold units in one go. */
    for (next = u + 1; !warm && next < last && !s->resident[extent + next] && bytes - next * SHOAL_UNIT >= SHOAL_UNIT;) next++;
    to = next * SHOAL_UNIT < bytes ? next * SHOAL_UNIT : bytes;
    if (from + warm >= to) continue;
    if (shoal_fill_range(s, extent * SHOAL_UNIT + from + warm, to - from - warm, 1) != SHOAL_OK) return SHOAL_SYS;
  }
  return SHOAL_OK;
}

/* The part-th of so many parts of an extent. */
static inline int shoal_store_fill(shoal_store_t* s, uint32_t extent, uint32_t part, uint32_t parts) {
  uint64_t units = shoal_units(s->a->extents[extent].bytes);
  int code;
  __atomic_add_fetch(&s->filling, 1, __ATOMIC_RELAXED);
  code = shoal_store_fill_units(s, extent, (uint32_t)(units * part / parts), (uint32_t)(units * (part + 1) / parts));
  __atomic_sub_fetch(&s->filling, 1, __ATOMIC_RELAXED);
  return code;
}

/* After a failed fill: what is resident of it and what is not is unknown, so all of it goes. */
static inline void shoal_store_abandon(shoal_store_t* s, uint32_t extent) {
  shoal_extent_set(&s->a->extents[extent], s->a->extents[extent].bytes, SHOAL_EXTENT_DRAINING);
  shoal_store_unreserve(s, extent);
}

static inline int shoal_store_lend(shoal_store_t* s, uint32_t extent, uint32_t client) {
  uint64_t word = shoal_load(&s->a->extents[extent].word);
  if (shoal_extent_state(word) != SHOAL_EXTENT_HELD || client >= s->a->header->max_clients) return SHOAL_BAD_STATE;
  s->lent_word[extent] = shoal_extent_next(word, client, SHOAL_EXTENT_LENT);
  s->lent_at[extent] = shoal_now();
  if (!shoal_cas(&s->a->extents[extent].word, word, s->lent_word[extent])) return SHOAL_BAD_STATE;
  SHOAL_POINT(27);
  return SHOAL_OK;
}

/* Which free unit to fill next: below one that is warm; else in the first run of cold ones that is long enough for `units`, or the longest, so that a large object
 * finds them together. Downwards: the unit that is being filled, which no extent may have meanwhile, lies below the warm ones, and never between them and the cold
 * ones that a larger object takes besides. Mutex held; max_extents: none. */
static inline uint32_t shoal_warm_next(const shoal_store_t* s, uint32_t units) {
  uint32_t found = s->a->max_extents, longest = 0;
  for (uint32_t u = 0, first = 0; u < s->a->max_extents; u++) {
    int cold = !s->holder[u] && s->resident[u] < SHOAL_PAGES_PER_UNIT;
    if (!cold) {
      first = u + 1;
      continue;
    }
    if (u + 1 < s->a->max_extents && !s->holder[u + 1] && s->resident[u + 1] == SHOAL_PAGES_PER_UNIT) return u;
    if (longest < units && u + 1 - first > longest) {
      longest = u + 1 - first;
      found = u;
    }
  }
  return found;
}

/* Takes a unit aside to be filled, when fewer than `wanted` bytes are warm and the capacity allows one more. Returns whether there is one. */
static inline int shoal_store_warm_begin(shoal_store_t* s, uint64_t wanted, uint32_t* out) {
  uint32_t unit;
  uint64_t need, have;
  int found = 0;
  pthread_mutex_lock(&s->mutex);
  have = s->free_warm_bytes + s->warming_bytes;
  unit = have < wanted ? shoal_warm_next(s, shoal_units(wanted - have)) : s->a->max_extents;
  if (unit < s->a->max_extents) {
    need = SHOAL_UNIT - s->resident[unit] * SHOAL_PAGE;
    if (have + need <= wanted && s->resident_bytes + need <= s->a->header->capacity_bytes) {
      s->holder[unit] = UINT32_MAX; /* it is in no extent */
      s->free_warm_bytes -= s->resident[unit] * SHOAL_PAGE;
      s->warming_bytes += SHOAL_UNIT;
      s->resident_bytes += need;
      *out = unit;
      found = 1;
    }
  }
  pthread_mutex_unlock(&s->mutex);
  return found;
}

static inline void shoal_store_warm_end(shoal_store_t* s, uint32_t unit, int filled) {
  pthread_mutex_lock(&s->mutex);
  if (!filled) {
    (void)shoal_punch(s, unit * SHOAL_UNIT, SHOAL_UNIT);
    s->resident_bytes -= SHOAL_UNIT;
  }
  s->warming_bytes -= SHOAL_UNIT;
  shoal_units_free(s, unit, 1, filled ? SHOAL_UNIT : 0);
  pthread_mutex_unlock(&s->mutex);
}

/* Fills free units until `wanted` bytes are warm, `most` units at most: for threads of low priority, since no lock is held while a unit is filled. It stops when
 * somebody waits for pages: a virtual machine may get its memory from its host one page after another, whatever the priority of those who touch it. Returns how
 * many it filled; -1 when the system has no memory for one more. */
static inline int shoal_store_warm(shoal_store_t* s, uint64_t wanted, uint32_t most) {
  uint32_t unit, n = 0;
  while (n < most && !__atomic_load_n(&s->filling, __ATOMIC_RELAXED) && shoal_store_warm_begin(s, wanted, &unit)) {
    uint64_t from = s->resident[unit] * SHOAL_PAGE;
    int filled = shoal_fill_range(s, unit * SHOAL_UNIT + from, SHOAL_UNIT - from, 0) == SHOAL_OK;
    SHOAL_POINT(38);
    shoal_store_warm_end(s, unit, filled);
    if (!filled) return -1;
    n++;
  }
  return (int)n;
}

/* Writes into each page of the free warm units, the lowest first, `most` bytes at most; that changes nothing in them, but whoever looks for idle memory to take away
 * (the system that swaps, the host of a virtual machine) finds none here. Only where the kernel gives huge ones: the page-table entries that this needs, and that are dropped again
 * so that the pages stay nobody's, cost ten times as much for small ones. There may be some all the same, where huge ones were slow to come: after `most_ns` of CPU time it
 * ends, and the next time begins where this one ended. Returns how many bytes. */
static inline uint64_t shoal_store_touch(shoal_store_t* s, uint64_t most, uint64_t most_ns) {
  uint64_t touched = 0, began = shoal_clock(CLOCK_THREAD_CPUTIME_ID);
  uint32_t first = s->touch_at, units = s->a->max_extents;
  s->touch_at = 0;
  if (__atomic_load_n(&s->huge_refused, __ATOMIC_RELAXED)) return 0;
  for (uint32_t n = 0; n < units && touched < most; n++) {
    uint32_t u = (first + n) % units;
    uint8_t* at = s->a->data + u * SHOAL_UNIT;
    uint64_t bytes;
    /* For one unit at a time: nobody waits for longer than that takes. */
    pthread_mutex_lock(&s->mutex);
    bytes = s->holder[u] ? 0 : s->resident[u] * SHOAL_PAGE;
    for (uint64_t n = 0; n < bytes; n += SHOAL_PAGE) (void)__atomic_fetch_add((volatile uint8_t*)(at + n), 0, __ATOMIC_RELAXED);
    if (bytes) (void)madvise(at, SHOAL_UNIT, MADV_DONTNEED);
    pthread_mutex_unlock(&s->mutex);
    touched += bytes;
    if (bytes && shoal_clock(CLOCK_THREAD_CPUTIME_ID) - began >= most_ns) {
      s->touch_at = (u + 1) % units;
      break;
    }
  }
  return touched;
}

/* -- taking back ---------------------------------------------------------------------------------------------------------------------- */

/* The live objects of an extent in which nobody allocates, by place. Returns their number; *spans is the caller's to free. Released slots on the way become free. */
static inline int64_t shoal_extent_live(shoal_store_t* s, uint32_t extent, shoal_span_t** spans) {
  shoal_arena_t* a = s->a;
  int64_t n = 0, size = 0;
  uint64_t word, start = extent * SHOAL_UNIT;
  shoal_info_t info;
  if (spans) *spans = NULL;
  SHOAL_EACH_SLOT(a, slot, word, info) {
    if (info.extent != extent || shoal_word_state(word) == SHOAL_SLOT_CLAIMED) continue;
    if (!shoal_live(word)) {
      (void)shoal_cas(&a->words[slot], word, shoal_word_freed(word));
      SHOAL_POINT(32);
      continue;
    }
    if (spans) {
      if (n == size) {
        shoal_span_t* grown = (shoal_span_t*)realloc(*spans, (size_t)(size = size ? size * 2 : 64) * sizeof(shoal_span_t));
        if (!grown) { free(*spans); *spans = NULL; return -1; }
        *spans = grown;
      }
      (*spans)[n].start = info.offset - start;
      (*spans)[n].bytes = shoal_granules(info.bytes) * SHOAL_GRANULE;
    }
    n++;
  }
  if (spans && n) qsort(*spans, (size_t)n, sizeof(shoal_span_t), shoal_span_order);
  return n;
}

/* Of a draining extent, a range in which nothing lives: its pages go, and units that lie in it as a whole. Mutex held. */
static inline void shoal_drain_gap(shoal_store_t* s, uint32_t extent, uint64_t from, uint64_t to) {
  while (from < to) {
    uint32_t unit = extent + (uint32_t)(from / SHOAL_UNIT);
    uint64_t end = (from / SHOAL_UNIT + 1) * SHOAL_UNIT, whole = from % SHOAL_UNIT == 0;
    if (end > to) { end = to; whole = whole && to == s->a->extents[extent].bytes; }
    if (s->holder[unit] == extent + 1) {
      (void)shoal_punch(s, extent * SHOAL_UNIT + from, end - from);
      SHOAL_POINT(31);
      /* Not the first: its number is the extent's. */
      if (whole && unit != extent) {
        __atomic_add_fetch(&s->a->extents[unit].pages_epoch, 1, __ATOMIC_SEQ_CST);
        shoal_units_free(s, unit, 1, 0);
      }
    }
    from = end;
  }
}

/* Gives up what no live object touches in a draining extent. Returns the live objects left. */
static inline int64_t shoal_store_drain(shoal_store_t* s, uint32_t extent) {
  shoal_extent_t* e = &s->a->extents[extent];
  shoal_span_t* spans;
  uint64_t at = 0, kept = 0;
  int64_t n = shoal_extent_live(s, extent, &spans);
  if (n < 0) return n;
  pthread_mutex_lock(&s->mutex);
  for (int64_t i = 0; i <= n; i++) {
    uint64_t until = i < n ? spans[i].start / SHOAL_PAGE * SHOAL_PAGE : e->bytes;
    uint64_t next = i < n ? shoal_round(spans[i].start + spans[i].bytes, SHOAL_PAGE) : e->bytes;
    if (until > at) {
      shoal_drain_gap(s, extent, at, until);
      at = until;
    }
    if (i < n && next > at) {
      kept += next - at;
      at = next;
    }
  }
  s->resident_bytes -= e->allocated_bytes - kept;
  e->allocated_bytes = kept;
  __atomic_add_fetch(&e->pages_epoch, 1, __ATOMIC_SEQ_CST);
  pthread_mutex_unlock(&s->mutex);
  free(spans);
  return n;
}

/* Ours, with what may live in it: free it, or let it drain. Its word is HELD. */
static inline void shoal_store_adopt(shoal_store_t* s, uint32_t extent) {
  shoal_extent_t* e = &s->a->extents[extent];
  int64_t live = shoal_extent_live(s, extent, NULL);
  if (live == 0) {
    shoal_store_unreserve(s, extent);
    return;
  }
  shoal_extent_set(e, e->bytes, SHOAL_EXTENT_DRAINING);
  SHOAL_POINT(33);
  (void)shoal_store_drain(s, extent);
}

static inline int shoal_extent_take(shoal_store_t* s, uint32_t extent, uint64_t word) {
  if (!shoal_cas(&s->a->extents[extent].word, word, shoal_extent_next(word, SHOAL_STORE_CLIENT, SHOAL_EXTENT_HELD))) return 0;
  SHOAL_POINT(34);
  return 1;
}

/* Everything that `client`, whose process is gone, held: pins, unsealed objects, extents. Any number of times. Returns the number of extents taken.
 * Unless it is `anybody`: only while the place belongs to that process (it may have been taken back and given to another since its death was noticed). Pid 0 is
 * a place that was taken back: a notice that was told twice. */
static inline int shoal_store_reclaim_of(shoal_store_t* s, uint32_t client, int anybody, uint32_t pid, uint64_t started) {
  shoal_arena_t* a = s->a;
  uint8_t* pages = a->base + a->header->pin_pages_offset + (uint64_t)client * (a->max_slots / SHOAL_PINS_PER_PAGE);
  uint32_t* pins = (uint32_t*)(void*)(a->base + a->header->pins_offset) + (uint64_t)client * a->max_slots;
  uint32_t* taken = (uint32_t*)calloc(a->max_extents, sizeof *taken);
  uint32_t n = 0;
  uint64_t word;
  shoal_info_t info;
  if (!taken) return -1;
  pthread_mutex_lock(&s->house);
  if (!anybody && (__atomic_load_n(&a->clients[client].pid, __ATOMIC_SEQ_CST) != pid || shoal_relaxed(&a->clients[client].started) != started)) {
    pthread_mutex_unlock(&s->house);
    free(taken);
    return 0;
  }
  for (uint32_t x = 0; x < a->max_extents; x++) {
    word = shoal_load(&a->extents[x].word);
    if (shoal_extent_state(word) >= SHOAL_EXTENT_LENT && shoal_extent_owner(word) == client && shoal_extent_take(s, x, word)) taken[n++] = x;
  }
  for (uint32_t p = 0; p < a->max_slots / SHOAL_PINS_PER_PAGE; p++) {
    if (!__atomic_load_n(&pages[p], __ATOMIC_SEQ_CST)) continue;
    for (uint32_t i = 0; i < SHOAL_PINS_PER_PAGE; i++) __atomic_store_n(&pins[p * SHOAL_PINS_PER_PAGE + i], 0u, __ATOMIC_RELAXED);
    __atomic_store_n(&pages[p], (uint8_t)0, __ATOMIC_SEQ_CST);
  }
  SHOAL_POINT(35);
  shoal_fence();
  SHOAL_EACH_SLOT(a, slot, word, info) {
    uint32_t state = shoal_word_state(word), owner;
    if (state == SHOAL_SLOT_CLAIMED) {
      if (shoal_word_creator(word) == client) (void)shoal_cas(&a->words[slot], word, shoal_word_freed(word));
      continue;
    }
    if (state == SHOAL_SLOT_CREATED && shoal_word_creator(word) == client) {
      uint64_t doomed = shoal_word_with(word, SHOAL_SLOT_DOOMED);
      if (shoal_cas(&a->words[slot], word, doomed)) shoal_try_release(a, slot, doomed, 0);
    } else if (state == SHOAL_SLOT_DOOMED) {
      shoal_try_release(a, slot, word, 0);
    } else if (state == SHOAL_SLOT_RELEASED && info.extent < a->max_extents) {
      /* Its sender may have died before it told. */
      owner = shoal_extent_owner(shoal_load(&a->extents[info.extent].word));
      if (owner != SHOAL_STORE_CLIENT) shoal_mail_post(a, owner, slot);
    }
  }
  SHOAL_POINT(36);
  for (uint32_t i = 0; i < n; i++) shoal_store_adopt(s, taken[i]);
  free(taken);
  if (client != SHOAL_STORE_CLIENT) {
    memset(shoal_mail_top(a, client), 0, 64 * 8);
    __atomic_store_n(&a->clients[client].pid, 0u, __ATOMIC_SEQ_CST);
    SHOAL_POINT(37);
    __atomic_store_n(&a->clients[client].state, (uint32_t)SHOAL_CLIENT_FREE, __ATOMIC_SEQ_CST);
  }
  pthread_mutex_unlock(&s->house);
  return (int)n;
}

static inline int shoal_store_reclaim(shoal_store_t* s, uint32_t client) { return shoal_store_reclaim_of(s, client, 1, 0, 0); }

/* One pass over the slots: what the living left behind (a stopped process, a lost hint), and for each extent the bytes that live in it. */
static inline void shoal_sweep_slots(shoal_store_t* s, uint64_t* live, shoal_stats_t* out) {
  shoal_arena_t* a = s->a;
  uint64_t word;
  shoal_info_t info;
  SHOAL_EACH_SLOT(a, slot, word, info) {
    uint32_t state = shoal_word_state(word);
    if (state == SHOAL_SLOT_DOOMED && shoal_try_release(a, slot, word, 0)) continue;
    if (state == SHOAL_SLOT_CLAIMED) {
      out->claimed++;
      continue;
    }
    if (info.extent >= a->max_extents) continue;
    if (state == SHOAL_SLOT_RELEASED) {
      uint32_t owner = shoal_extent_owner(shoal_load(&a->extents[info.extent].word));
      out->released++;
      if (owner == SHOAL_STORE_CLIENT) {
        pthread_mutex_lock(&a->mutex);
        shoal_extent_return(a, slot, word);
        pthread_mutex_unlock(&a->mutex);
      } else {
        shoal_mail_post(a, owner, slot);
      }
      continue;
    }
    live[info.extent] += shoal_granules(info.bytes) * SHOAL_GRANULE;
    if (state == SHOAL_SLOT_SEALED) { out->sealed++; out->sealed_bytes += info.bytes; }
    if (state == SHOAL_SLOT_CREATED) { out->created++; out->created_bytes += info.bytes; }
    if (state == SHOAL_SLOT_DOOMED) { out->doomed++; out->doomed_bytes += info.bytes; }
  }
}

/* The regular round: releases, drains, and takes back lent extents that are empty: those unchanged for `idle_sweeps` rounds, or all of them (0).
 * With `squeeze`, also those that are not empty: their objects stay, their free pages go. */
static inline int shoal_store_sweep(shoal_store_t* s, uint32_t idle_sweeps, int squeeze, shoal_stats_t* out) {
  shoal_arena_t* a = s->a;
  uint64_t *live = (uint64_t*)calloc(a->max_extents, sizeof *live), now = shoal_now();
  uint32_t used = __atomic_load_n(&a->header->clients_used, __ATOMIC_SEQ_CST);
  memset(out, 0, sizeof *out);
  if (!live) return SHOAL_SYS;
  pthread_mutex_lock(&s->house);
  shoal_sweep_slots(s, live, out);
  for (uint32_t x = 0; x < a->max_extents; x++) {
    shoal_extent_t* e = &a->extents[x];
    uint64_t word = shoal_load(&e->word);
    uint32_t state = shoal_extent_state(word);
    int taken = 0;
    if (state == SHOAL_EXTENT_ABSENT) continue;
    if (state == SHOAL_EXTENT_HELD) {
      if (e->kind != SHOAL_EXTENT_DRAINING) continue; /* on its way to be lent */
      if (live[x] == 0) {
        shoal_store_adopt(s, x);
        continue;
      }
      if (live[x] + (squeeze ? SHOAL_PAGE : SHOAL_UNIT / 2) < e->allocated_bytes) (void)shoal_store_drain(s, x);
    } else if (state == SHOAL_EXTENT_LENT) {
      uint32_t seen = s->last_word[x] == word ? s->last_seen[x] + 1 : 0;
      s->last_word[x] = word;
      s->last_seen[x] = seen;
      if (word == s->lent_word[x] && now - s->lent_at[x] < SHOAL_GRACE_NS) taken = 0;
      else if (live[x] == 0 && seen >= idle_sweeps) taken = shoal_extent_take(s, x, word);
      else if (squeeze && e->kind == SHOAL_EXTENT_SHARED && live[x] + SHOAL_UNIT / 32 < e->allocated_bytes) taken = shoal_extent_take(s, x, word);
      if (taken) {
        out->extents_idle++;
        shoal_store_adopt(s, x);
        continue;
      }
      out->lent_bytes += e->allocated_bytes;
      out->lent_free_bytes += e->allocated_bytes > live[x] ? e->allocated_bytes - live[x] : 0;
    }
    out->extents++;
  }
  pthread_mutex_unlock(&s->house);
  free(live);
  for (uint32_t c = 0; c < used; c++) out->clients += __atomic_load_n(&a->clients[c].state, __ATOMIC_SEQ_CST) == SHOAL_CLIENT_ATTACHED;
  out->capacity_bytes = a->header->capacity_bytes;
  pthread_mutex_lock(&s->mutex);
  out->resident_bytes = s->resident_bytes;
  out->free_warm_bytes = s->free_warm_bytes;
  pthread_mutex_unlock(&s->mutex);
  return SHOAL_OK;
}

/* -- eviction ------------------------------------------------------------------------------------------------------------------------- */

typedef struct { uint32_t slot, generation, age, extent; uint64_t bytes; } shoal_cold_t;

static inline int shoal_cold_order(const void* x, const void* y) {
  const shoal_cold_t *a = (const shoal_cold_t*)x, *b = (const shoal_cold_t*)y;
  if (a->age != b->age) return a->age > b->age ? -1 : 1;
  /* Of one age, extent by extent: space comes back by extents. */
  if (a->extent != b->extent) return a->extent < b->extent ? -1 : 1;
  return a->slot < b->slot ? -1 : a->slot > b->slot;
}

/* Sealed objects that nobody pins, the longest unused first, until they make up `wanted` bytes or `limit`. *out is the caller's to free. Returns their number. */
static inline int64_t shoal_store_coldest(shoal_store_t* s, uint64_t wanted, int64_t limit, shoal_cold_t** out) {
  shoal_arena_t* a = s->a;
  uint32_t now = shoal_relaxed32(&a->header->clock);
  int64_t n = 0, size = 0, chosen = 0;
  uint64_t word, sum = 0;
  shoal_info_t info;
  *out = NULL;
  SHOAL_EACH_SLOT(a, slot, word, info) {
    shoal_cold_t* c;
    if (shoal_word_state(word) != SHOAL_SLOT_SEALED || s->kept[slot] == shoal_word_generation(word) || !info.bytes) continue;
    if (n == size) {
      shoal_cold_t* grown = (shoal_cold_t*)realloc(*out, (size_t)(size = size ? size * 2 : 256) * sizeof(shoal_cold_t));
      if (!grown) { free(*out); *out = NULL; return -1; }
      *out = grown;
    }
    c = &(*out)[n++];
    c->slot = slot;
    c->generation = shoal_word_generation(word);
    c->age = now - shoal_relaxed32(&a->infos[slot].used);
    c->extent = info.extent;
    c->bytes = info.bytes;
  }
  if (n) qsort(*out, (size_t)n, sizeof **out, shoal_cold_order);
  for (int64_t i = 0; i < n && chosen < limit && sum < wanted; i++) {
    if (shoal_pinned(a, (*out)[i].slot)) continue;
    sum += (*out)[i].bytes;
    (*out)[chosen++] = (*out)[i];
  }
  return chosen;
}

/* The store's free of an object that it has elsewhere, and which it has pinned; its space returns when it drops that pin. SHOAL_BAD_STATE: somebody else pins it. */
static inline int shoal_store_evict(shoal_store_t* s, shoal_loc_t loc) {
  shoal_arena_t* a = s->a;
  uint32_t used = __atomic_load_n(&a->header->clients_used, __ATOMIC_SEQ_CST);
  uint64_t word;
  if (loc.slot >= a->max_slots) return SHOAL_GONE;
  word = shoal_load(&a->words[loc.slot]);
  if (shoal_word_generation(word) != loc.generation || shoal_word_state(word) != SHOAL_SLOT_SEALED) return SHOAL_GONE;
  for (uint32_t c = 0; c < used; c++)
    if (c != SHOAL_STORE_CLIENT && shoal_pinned_by(a, c, loc.slot)) return SHOAL_BAD_STATE;
  SHOAL_POINT(21);
  /* A reader may pin it in this moment: its bytes stay until it is done, as with any free. */
  if (!shoal_cas(&a->words[loc.slot], word, shoal_word(loc.generation, SHOAL_EVICTED, SHOAL_SLOT_DOOMED))) return SHOAL_GONE;
  SHOAL_POINT(22);
  return SHOAL_OK;
}

/* -- copies ---------------------------------------------------------------------------------------------------------------------------- */

/* Whether what is sealed there is a copy that can be dropped: made by the store, and not become the primary one. */
static inline int shoal_store_is_copy(const shoal_store_t* s, uint32_t slot, uint64_t word) {
  return shoal_word_state(word) == SHOAL_SLOT_SEALED && shoal_word_creator(word) == SHOAL_STORE_CLIENT &&
         shoal_relaxed(&s->a->infos[slot].primary) != shoal_word_generation(word);
}

/* The copy is the primary one from now on, also to a successor. Whatever else is there is left alone. */
static inline void shoal_store_make_primary(shoal_store_t* s, shoal_loc_t loc) {
  uint64_t word = loc.slot < s->a->max_slots ? shoal_load(&s->a->words[loc.slot]) : 0;
  if (shoal_word_generation(word) == loc.generation && shoal_store_is_copy(s, loc.slot, word))
    __atomic_store_n(&s->a->infos[loc.slot].primary, (uint64_t)loc.generation, __ATOMIC_SEQ_CST);
}

/* -- what the dead owned ------------------------------------------------------------------------------------------------------------ */

static inline int shoal_id_among(const uint64_t id[2], const uint8_t* ids, uint64_t n) {
  uint64_t from = 0, to = n;
  while (from < to) {
    uint64_t middle = from + (to - from) / 2;
    int order = memcmp(id, ids + 16 * middle, 16);
    if (!order) return 1;
    if (order < 0) to = middle; else from = middle + 1;
  }
  return 0;
}

/* Frees the sealed objects whose owner is one of these workers, or was on one of these nodes, and that nobody pins; those that are pinned are for a later call.
 * Ids are 16 bytes each, in the order of memcmp. Returns how many it freed, and their bytes. */
static inline int64_t shoal_store_free_owned(shoal_store_t* s, const uint8_t* workers, uint64_t n_workers, const uint8_t* nodes, uint64_t n_nodes, uint64_t* bytes) {
  shoal_arena_t* a = s->a;
  int64_t freed = 0;
  uint64_t word, doomed;
  shoal_info_t info;
  *bytes = 0;
  SHOAL_EACH_SLOT(a, slot, word, info) {
    shoal_owner_t owner;
    if (shoal_word_state(word) != SHOAL_SLOT_SEALED) continue;
    owner = shoal_owner_get(a, slot);
    shoal_fence();
    if (shoal_load(&a->words[slot]) != word) continue; /* another object's by now */
    if (!owner.worker[0] && !owner.worker[1]) continue;
    if (!shoal_id_among(owner.worker, workers, n_workers) && !shoal_id_among(owner.node, nodes, n_nodes)) continue;
    if (shoal_pinned(a, slot)) continue;
    doomed = shoal_word_with(word, SHOAL_SLOT_DOOMED);
    if (!shoal_cas(&a->words[slot], word, doomed)) continue;
    SHOAL_POINT(23);
    shoal_fence();
    shoal_try_release(a, slot, doomed, 0);
    freed++;
    *bytes += info.bytes;
  }
  return freed;
}

/* -- opening ------------------------------------------------------------------------------------------------------------------------- */

/* What the predecessor of this process left: extents lent to clients stay theirs, those of the store are adopted, pages in no extent go. */
static inline void shoal_store_rebuild(shoal_store_t* s) {
  shoal_arena_t* a = s->a;
  uint64_t hole = 0, word;
  shoal_info_t info;
  for (uint32_t x = 0; x < a->max_extents; x++) {
    shoal_extent_t* e = &a->extents[x];
    if (shoal_extent_state(shoal_load(&e->word)) == SHOAL_EXTENT_ABSENT || !e->bytes) continue;
    s->holder[x] = x + 1;
    for (uint32_t u = x; e->kind != SHOAL_EXTENT_DRAINING && u < x + shoal_units(e->bytes) && u < a->max_extents; u++) s->holder[u] = x + 1;
    s->resident_bytes += e->allocated_bytes;
  }
  SHOAL_EACH_SLOT(a, slot, word, info) {
    if (!shoal_live(word) || info.extent >= a->max_extents || a->extents[info.extent].kind != SHOAL_EXTENT_DRAINING) continue;
    for (uint64_t u = info.offset / SHOAL_UNIT; u * SHOAL_UNIT < info.offset + info.bytes && u < a->max_extents; u++) s->holder[u] = info.extent + 1;
  }
  for (uint32_t u = 0; u <= a->max_extents; u++) {
    if (u < a->max_extents && !s->holder[u]) { hole += SHOAL_UNIT; continue; }
    (void)shoal_punch(s, u * SHOAL_UNIT - hole, hole);
    hole = 0;
  }
  for (uint32_t x = 0; x < a->max_extents; x++) {
    word = shoal_load(&a->extents[x].word);
    if (shoal_extent_state(word) == SHOAL_EXTENT_ABSENT || shoal_extent_state(word) > SHOAL_EXTENT_HELD) continue;
    /* Was on its way to be lent, or ours with objects: some of its pages may be missing, so nothing new goes in. */
    shoal_extent_set(&a->extents[x], a->extents[x].bytes, SHOAL_EXTENT_DRAINING);
    if (shoal_extent_live(s, x, NULL) == 0) shoal_store_unreserve(s, x); else (void)shoal_store_drain(s, x);
  }
}

static inline void shoal_store_close(shoal_store_t* s) {
  if (!s) return;
  shoal_arena_detach(s->a);
  free(s->holder);
  free(s->resident);
  free(s->last_word);
  free(s->last_seen);
  free(s->lent_word);
  free(s->lent_at);
  free(s->kept);
  free(s);
}

/* Attaches as the store and rebuilds what it must know. The descriptor stays the caller's and must stay open. */
static inline int shoal_store_open(int memfd, shoal_store_t** out, char* err, size_t errlen) {
  shoal_store_t* s = (shoal_store_t*)calloc(1, sizeof *s);
  int code;
  *out = NULL;
  if (!s) return shoal_error(err, errlen, SHOAL_SYS, "opening the arena", "out of memory");
  code = shoal_arena_attach(memfd, SHOAL_STORE_CLIENT, &s->a, err, errlen);
  if (code != SHOAL_OK) {
    free(s);
    return code;
  }
  s->fd = memfd;
  pthread_mutex_init(&s->mutex, NULL);
  pthread_mutex_init(&s->house, NULL);
  s->holder = (uint32_t*)calloc(s->a->max_extents + 1, sizeof(uint32_t));
  s->resident = (uint16_t*)calloc(s->a->max_extents + 1, sizeof(uint16_t));
  s->last_word = (uint64_t*)calloc(s->a->max_extents, sizeof(uint64_t));
  s->last_seen = (uint32_t*)calloc(s->a->max_extents, sizeof(uint32_t));
  s->lent_word = (uint64_t*)calloc(s->a->max_extents, sizeof(uint64_t));
  s->lent_at = (uint64_t*)calloc(s->a->max_extents, sizeof(uint64_t));
  s->kept = (uint32_t*)calloc(s->a->max_slots, sizeof(uint32_t));
  if (!s->kept || !s->lent_word || !s->lent_at || !s->holder || !s->resident || !s->last_word || !s->last_seen) {
    shoal_store_close(s);
    return shoal_error(err, errlen, SHOAL_SYS, "opening the arena", "out of memory");
  }
  shoal_store_rebuild(s);
  (void)shoal_store_reclaim(s, SHOAL_STORE_CLIENT);
  *out = s;
  return SHOAL_OK;
}

/* -- verifying ------------------------------------------------------------------------------------------------------------------------ */

typedef void (*shoal_fault_t)(void* to, const char* text);

static inline void shoal_check_slots(shoal_store_t* s, int quiet, shoal_fault_t fault, void* to) {
  shoal_arena_t* a = s->a;
  uint64_t word;
  shoal_info_t info;
  char text[240];
  SHOAL_EACH_SLOT(a, slot, word, info) {
    uint32_t state = shoal_word_state(word), creator = shoal_word_creator(word);
    const char* what = NULL;
    if (state > SHOAL_SLOT_RELEASED) what = "unknown state";
    else if (state <= SHOAL_SLOT_CREATED && (creator >= a->header->max_clients || __atomic_load_n(&a->clients[creator].state, __ATOMIC_SEQ_CST) != SHOAL_CLIENT_ATTACHED)) what = "unsealed, and its creator is not attached";
    else if (state > SHOAL_SLOT_CLAIMED) {
      uint64_t start = info.extent * SHOAL_UNIT;
      if (info.extent >= a->max_extents || shoal_extent_state(shoal_load(&a->extents[info.extent].word)) == SHOAL_EXTENT_ABSENT) what = "its extent does not exist";
      else if (info.offset < start || info.offset + info.bytes > start + a->extents[info.extent].bytes) what = "it reaches beyond its extent";
      else if (quiet && state == SHOAL_SLOT_DOOMED && !shoal_pinned(a, slot)) what = "freed, not pinned, and still there";
    }
    if (quiet && state == SHOAL_SLOT_CLAIMED) what = "claimed, and not created";
    if (!what) continue;
    snprintf(text, sizeof text, "slot %u generation %u state %u creator %u, %llu bytes at %llu in extent %u: %s", slot, shoal_word_generation(word), state, creator,
             (unsigned long long)info.bytes, (unsigned long long)info.offset, info.extent, what);
    fault(to, text);
  }
}

/* Overlaps between objects, and between extents; resident pages against the books. */
static inline void shoal_check_extents(shoal_store_t* s, int quiet, shoal_fault_t fault, void* to) {
  shoal_arena_t* a = s->a;
  char text[240];
  uint64_t sum = 0;
  for (uint32_t x = 0; x < a->max_extents; x++) {
    shoal_extent_t* e = &a->extents[x];
    uint64_t word = shoal_load(&e->word);
    shoal_span_t* spans = NULL;
    uint64_t at = 0;
    int64_t n = 0, size = 0;
    shoal_info_t info;
    if (shoal_extent_state(word) == SHOAL_EXTENT_ABSENT) continue;
    if (shoal_extent_state(word) >= SHOAL_EXTENT_LENT && (shoal_extent_owner(word) >= a->header->max_clients || __atomic_load_n(&a->clients[shoal_extent_owner(word)].state, __ATOMIC_SEQ_CST) != SHOAL_CLIENT_ATTACHED)) {
      snprintf(text, sizeof text, "extent %u is lent to client %u, which is not attached", x, shoal_extent_owner(word));
      fault(to, text);
    }
    for (uint32_t u = x; u < x + shoal_units(e->bytes); u++) {
      if (s->holder[u] == x + 1 || (e->kind == SHOAL_EXTENT_DRAINING && u != x)) continue;
      snprintf(text, sizeof text, "unit %u of extent %u is held by %u", u, x, s->holder[u] - 1);
      fault(to, text);
    }
    sum += e->allocated_bytes;
    if (!quiet) continue;
    SHOAL_EACH_SLOT(a, slot, word, info) {
      if (info.extent != x || !shoal_live(word)) continue;
      if (n == size) {
        shoal_span_t* grown = (shoal_span_t*)realloc(spans, (size_t)(size = size ? size * 2 : 64) * sizeof(shoal_span_t));
        if (!grown) break;
        spans = grown;
      }
      if (s->holder[info.offset / SHOAL_UNIT] != x + 1 || s->holder[(info.offset + (info.bytes ? info.bytes - 1 : 0)) / SHOAL_UNIT] != x + 1) {
        snprintf(text, sizeof text, "slot %u lies in units that its extent %u holds no more", slot, x);
        fault(to, text);
      }
      spans[n].start = info.offset - x * SHOAL_UNIT;
      spans[n++].bytes = shoal_granules(info.bytes) * SHOAL_GRANULE;
    }
    if (n) qsort(spans, (size_t)n, sizeof *spans, shoal_span_order);
    for (int64_t i = 0; i < n; i++) {
      if (spans[i].start < at) { snprintf(text, sizeof text, "extent %u: two objects overlap at %llu", x, (unsigned long long)spans[i].start); fault(to, text); }
      at = spans[i].start + spans[i].bytes;
    }
    free(spans);
  }
  pthread_mutex_lock(&s->mutex);
  if (quiet && sum + s->free_warm_bytes != s->resident_bytes) {
    snprintf(text, sizeof text, "the books say %llu resident bytes, extents have %llu and free units %llu", (unsigned long long)s->resident_bytes, (unsigned long long)sum,
             (unsigned long long)s->free_warm_bytes);
    fault(to, text);
  }
  pthread_mutex_unlock(&s->mutex);
}

static inline uint64_t shoal_store_file_resident(shoal_store_t* s) {
  off_t end = (off_t)s->a->header->file_bytes, at = (off_t)s->a->header->data_offset;
  uint64_t sum = 0;
  while (at < end) {
    off_t data = lseek(s->fd, at, SEEK_DATA), hole;
    if (data < 0) break;
    hole = lseek(s->fd, data, SEEK_HOLE);
    if (hole < 0) break;
    sum += (uint64_t)(hole - data);
    at = hole;
  }
  return sum;
}

static inline void shoal_check_pins(shoal_store_t* s, int quiet, shoal_fault_t fault, void* to) {
  shoal_arena_t* a = s->a;
  char text[200];
  uint32_t used = __atomic_load_n(&a->header->clients_used, __ATOMIC_SEQ_CST);
  for (uint32_t c = 0; c < used; c++) {
    int attached = __atomic_load_n(&a->clients[c].state, __ATOMIC_SEQ_CST) == SHOAL_CLIENT_ATTACHED;
    for (uint32_t slot = 0; slot < a->max_slots; slot++) {
      uint64_t word;
      if (slot % SHOAL_PINS_PER_PAGE == 0 && !(a->base + a->header->pin_pages_offset + (uint64_t)c * (a->max_slots / SHOAL_PINS_PER_PAGE))[slot / SHOAL_PINS_PER_PAGE]) {
        slot += SHOAL_PINS_PER_PAGE - 1;
        continue;
      }
      if (!shoal_pinned_by(a, c, slot)) continue;
      word = shoal_load(&a->words[slot]);
      if (!attached || (quiet && shoal_word_state(word) != SHOAL_SLOT_SEALED && shoal_word_state(word) != SHOAL_SLOT_DOOMED)) {
        snprintf(text, sizeof text, "client %u (%s) pins slot %u, whose state is %u", c, attached ? "attached" : "not attached", slot, shoal_word_state(word));
        fault(to, text);
      }
    }
  }
}

/* Tells each fault. `quiet`: no client is at work, so passing states and the books are checked too. */
static inline void shoal_store_check(shoal_store_t* s, int quiet, shoal_fault_t fault, void* to) {
  char text[160];
  shoal_check_slots(s, quiet, fault, to);
  shoal_check_extents(s, quiet, fault, to);
  shoal_check_pins(s, quiet, fault, to);
  if (quiet && shoal_store_file_resident(s) > s->resident_bytes) {
    snprintf(text, sizeof text, "the file has %llu bytes of pages, the books say %llu", (unsigned long long)shoal_store_file_resident(s), (unsigned long long)s->resident_bytes);
    fault(to, text);
  }
}

#endif /* SHOAL_ARENA_STORE_H */
