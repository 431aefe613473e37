/* The store's side of the arena: taking back what the dead held and what lies idle, eviction, opening, verifying it all; lending is in shoal_arena_units.h.
 *
 * An extent that its client lost with objects in it DRAINS: it keeps the pages that they touch and, but for the first, only the units that they touch.
 * Nothing here is needed to rebuild: units, residence and live objects follow from the extent table, the slots and the file's holes.
 */
#ifndef SHOAL_ARENA_STORE_H
#define SHOAL_ARENA_STORE_H

#include "shoal_arena_units.h"

#define SHOAL_GRACE_NS 100000000ull /* for so long a lent extent is not taken back before its client has used it */

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
