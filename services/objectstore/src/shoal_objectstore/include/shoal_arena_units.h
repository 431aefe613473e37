/* The arena's address space and pages, on the store's side: units, what is resident of them, filling, the warm reserve, and lending extents.
 * For one process at a time, client 0. Functions take the store's mutex where they touch its tables; filling pages is done outside of it.
 *
 * Address space is given out in units of 2 MiB. Of a free unit the store knows how many pages from its start are resident ("warm"), so that a new extent can be
 * made of warm pages; the sum of all resident pages never exceeds the capacity.
 */
#ifndef SHOAL_ARENA_UNITS_H
#define SHOAL_ARENA_UNITS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include <fcntl.h>
#include <linux/falloc.h>
#include <time.h>

#include "shoal_arena.h"

#define SHOAL_PAGES_PER_UNIT ((uint32_t)(SHOAL_UNIT / SHOAL_PAGE))
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

#endif /* SHOAL_ARENA_UNITS_H */
