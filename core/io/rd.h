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

/* Length of the well-formed UTF-8 sequence at the position (RFC 3629), 0 if none. There is a byte left. */
static inline int rd_utf8(const CabRd *r) {
  const uint8_t *p = r->base + r->position;
  uint64_t left = rd_left(r);
  int n = p[0] < 0x80 ? 1 : p[0] < 0xc2 ? 0 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : p[0] < 0xf5 ? 4 : 0;
  if (n == 0 || left < (uint64_t)n) return 0;
  for (int i = 1; i < n; i++)
    if ((p[i] & 0xc0) != 0x80) return 0;
  bool overlong = (p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xf0 && p[1] < 0x90);
  bool outside = (p[0] == 0xed && p[1] > 0x9f) || (p[0] == 0xf4 && p[1] > 0x8f);
  return overlong || outside ? 0 : n;
}

static inline bool rd_is_utf8(const void *text, uint64_t length) {
  for (CabRd r = rd_open(text, length); rd_left(&r);) {
    int n = rd_utf8(&r);
    if (!n) return false;
    r.position += (uint64_t)n;
  }
  return true;
}

#endif
