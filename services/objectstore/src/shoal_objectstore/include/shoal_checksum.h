/* CRC-32C (Castagnoli): by the processor's instruction where there is one, at about the speed of memory; elsewhere by tables, with the same result. */
#ifndef SHOAL_CHECKSUM_H
#define SHOAL_CHECKSUM_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

static uint32_t shoal_crc_table[8][256];
static pthread_once_t shoal_crc_once = PTHREAD_ONCE_INIT;

static void shoal_crc_fill(void) {
  for (uint32_t i = 0; i < 256; i++) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >> 1) ^ 0x82F63B78u : crc >> 1;
    shoal_crc_table[0][i] = crc;
  }
  for (uint32_t i = 0; i < 256; i++)
    for (int t = 1; t < 8; t++) shoal_crc_table[t][i] = (shoal_crc_table[t - 1][i] >> 8) ^ shoal_crc_table[0][shoal_crc_table[t - 1][i] & 0xFF];
}

static inline uint32_t shoal_crc32c_portable(uint32_t crc, const uint8_t* at, size_t n) {
  pthread_once(&shoal_crc_once, shoal_crc_fill);
  crc = ~crc;
  for (; n >= 8; n -= 8, at += 8) { /* eight tables, eight bytes at a time; byte by byte read, so that the order of bytes does not matter */
    uint32_t low = crc ^ ((uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24);
    crc = shoal_crc_table[7][low & 0xFF] ^ shoal_crc_table[6][(low >> 8) & 0xFF] ^ shoal_crc_table[5][(low >> 16) & 0xFF] ^ shoal_crc_table[4][low >> 24] ^
          shoal_crc_table[3][at[4]] ^ shoal_crc_table[2][at[5]] ^ shoal_crc_table[1][at[6]] ^ shoal_crc_table[0][at[7]];
  }
  for (; n; n--, at++) crc = (crc >> 8) ^ shoal_crc_table[0][(crc ^ *at) & 0xFF];
  return ~crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static inline uint32_t shoal_crc32c_sse(uint32_t crc, const uint8_t* at, size_t n) {
  uint64_t state = (uint32_t)~crc, word;
  for (; n >= 8; n -= 8, at += 8) {
    memcpy(&word, at, 8);
    state = __builtin_ia32_crc32di(state, word);
  }
  for (; n; n--, at++) state = __builtin_ia32_crc32qi((uint32_t)state, *at);
  return ~(uint32_t)state;
}
#endif

static inline uint32_t shoal_crc32c(uint32_t crc, const uint8_t* at, size_t n) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("sse4.2")) return shoal_crc32c_sse(crc, at, n);
#endif
  return shoal_crc32c_portable(crc, at, n);
}

#endif /* SHOAL_CHECKSUM_H */
