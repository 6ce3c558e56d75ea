/* rd.h - bounded reader over bytes in memory. Reading past the end sets `bad` (sticky) and yields zeros, so a parser
 * reads a whole header and checks once. No parser does pointer arithmetic of its own. */
#ifndef CAB_RD_H
#define CAB_RD_H
#include "base.h"

typedef struct {
  const uint8_t *base;
  uint64_t length, position;
  bool bad;
} CabRd;

static inline CabRd rd_open(const void *base, uint64_t length) { return (CabRd){.base = base, .length = length}; }

static inline uint64_t rd_left(const CabRd *r) { return r->bad ? 0 : r->length - r->position; }

/* The next n bytes, NULL if there are fewer. */
static inline const uint8_t *rd_slice(CabRd *r, uint64_t n) {
  if (n > rd_left(r)) {
    r->bad = true;
    return NULL;
  }
  const uint8_t *p = r->base + r->position;
  r->position += n;
  return p;
}

/* The next byte without taking it, -1 at the end. */
static inline int rd_peek(const CabRd *r) { return rd_left(r) ? r->base[r->position] : -1; }

static inline uint64_t rd_le(CabRd *r, int bytes) {
  const uint8_t *p = rd_slice(r, (uint64_t)bytes);
  uint64_t v = 0;
  for (int i = bytes; p && i-- > 0;) v = v << 8 | p[i];
  return v;
}
static inline uint64_t rd_be(CabRd *r, int bytes) {
  const uint8_t *p = rd_slice(r, (uint64_t)bytes);
  uint64_t v = 0;
  for (int i = 0; p && i < bytes; i++) v = v << 8 | p[i];
  return v;
}

static inline uint8_t rd_u8(CabRd *r) { return (uint8_t)rd_le(r, 1); }
static inline uint16_t rd_u16le(CabRd *r) { return (uint16_t)rd_le(r, 2); }
static inline uint32_t rd_u32le(CabRd *r) { return (uint32_t)rd_le(r, 4); }
static inline uint64_t rd_u64le(CabRd *r) { return rd_le(r, 8); }
static inline uint16_t rd_u16be(CabRd *r) { return (uint16_t)rd_be(r, 2); }
static inline uint32_t rd_u32be(CabRd *r) { return (uint32_t)rd_be(r, 4); }

#endif
