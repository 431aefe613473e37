/* Where a large buffer begins in an object: half a page from where its source begins, modulo a page.
 *
 * A memcpy of very large blocks (in glibc: of more than three quarters of the shared cache) writes past the caches, unless the destination begins up to some
 * 500 bytes after the source, modulo a page. Then loads seem to depend on stores just before them, for the low bits of an address are compared first, and the
 * copy takes up to four times as long. Half a page away, neither writing the object is slow nor copying it back to where its source was, modulo a page.
 * `benchmarks/copies.py` measures it. */
#ifndef SHOAL_COPY_H
#define SHOAL_COPY_H

#include <stdint.h>

#define SHOAL_BUFFER_ALIGNMENT 64u
#define SHOAL_LARGE_BUFFER (1u << 20) /* bytes from which on a buffer takes up to a page more */
#define SHOAL_COPY_PAGE 4096u

/* Where a buffer of `n` bytes that is laid at `at` or after it ends, at the latest. */
static inline uint64_t shoal_buffer_end(uint64_t at, uint64_t n) {
  at = (at + SHOAL_BUFFER_ALIGNMENT - 1) & ~(uint64_t)(SHOAL_BUFFER_ALIGNMENT - 1);
  return at + n + (n >= SHOAL_LARGE_BUFFER ? SHOAL_COPY_PAGE - SHOAL_BUFFER_ALIGNMENT : 0);
}

/* Where it begins, in the object at `to`: a multiple of 64. */
static inline uint64_t shoal_buffer_begin(const void* to, uint64_t at, const void* from, uint64_t n) {
  at = (at + SHOAL_BUFFER_ALIGNMENT - 1) & ~(uint64_t)(SHOAL_BUFFER_ALIGNMENT - 1);
  if (n < SHOAL_LARGE_BUFFER) return at;
  return at + (((uintptr_t)from + SHOAL_COPY_PAGE / 2 - ((uintptr_t)to + at)) & (SHOAL_COPY_PAGE - 1) & ~(uint64_t)(SHOAL_BUFFER_ALIGNMENT - 1));
}

#endif /* SHOAL_COPY_H */
