/* rows.c - rows of activations, coded. Little-endian, as all formats here. */
#include "rows.h"

#include <math.h>
#include <string.h>
#include <xxhash.h>

const char *const cab_row_codings[] = {"f32", "f16", "bf16", "int8", NULL};

enum { CHECKSUM = 8 };

uint64_t cab_row_bytes(const CabRowForm *f) {
  if (f->tokens < 1 || f->width < 1) return SZ_BAD;
  uint64_t tokens = (uint64_t)f->tokens, width = (uint64_t)f->width;
  uint64_t token = f->coding == CAB_ROWS_INT8 ? sz_add(width, 4) : sz_mul(width, f->coding == CAB_ROWS_F32 ? 4 : 2);
  return sz_add(sz_mul(tokens, token), CHECKSUM);
}

static uint32_t bits_of(float x) {
  uint32_t u;
  return memcpy(&u, &x, 4), u;
}

static float float_of(uint32_t u) {
  float x;
  return memcpy(&x, &u, 4), x;
}

/* Halves to nearest, ties to even. Below 2^-14 the sum with 1/2 rounds where the half's last bit stands. */
static uint16_t half_of(float x) {
  uint32_t u = bits_of(x), sign = u >> 16 & 0x8000;
  u &= 0x7fffffff;
  if (u < 0x38800000) return (uint16_t)(sign | (bits_of(float_of(u) + 0.5f) - 0x3f000000));
  u += 0xc8000fff + (u >> 13 & 1);
  return (uint16_t)(sign | u >> 13);
}

/* The exponent is moved by 112; below 2^-14 it is 1 more than the field says, and the leading 1 is taken off. No infinities are stored. */
static float of_half(uint16_t h) {
  uint32_t u = (uint32_t)(h & 0x7fff) << 13, sign = (uint32_t)(h & 0x8000) << 16;
  float normal = float_of(u + 0x38000000), below = float_of(u + 0x38800000) - 0x1p-14f;
  return float_of((u >> 23 ? bits_of(normal) : bits_of(below)) | sign);
}

static uint16_t bf16_of(float x) {
  uint32_t u = bits_of(x);
  return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static void encode_int8(const float *x, int64_t width, uint8_t *out) {
  float largest = 0;
  for (int64_t i = 0; i < width; i++) largest = fmaxf(largest, fabsf(x[i]));
  float scale = largest / 127, inverse = scale > 0 ? 1 / scale : 0;
  if (!isfinite(inverse)) inverse = 0, scale = 0; /* a token below every normal number is 0 */
  memcpy(out, &scale, 4);
  for (int64_t i = 0; i < width; i++) out[4 + i] = (uint8_t)(int8_t)fmaxf(-127, fminf(127, rintf(x[i] * inverse)));
}

CabStatus cab_row_encode(const CabRowForm *f, uint64_t number, const float *x, uint8_t *out) {
  int64_t n = f->tokens * f->width;
  float limit = f->coding == CAB_ROWS_F16 ? 65519.996f : f->coding == CAB_ROWS_BF16 ? 0x1.fep127f : INFINITY;
  for (int64_t i = 0; i < n; i++)
    if (!(fabsf(x[i]) < limit)) return cab_fail(CAB_E_NUMERIC, "row %llu: %g cannot be stored as %s", (unsigned long long)number, (double)x[i], cab_row_codings[f->coding]);
  uint8_t *to = out;
  switch (f->coding) {
    case CAB_ROWS_F32: memcpy(to, x, (size_t)n * 4), to += n * 4; break;
    case CAB_ROWS_INT8:
      for (int64_t t = 0; t < f->tokens; t++, x += f->width, to += 4 + f->width) encode_int8(x, f->width, to);
      break;
    default:
      for (int64_t i = 0; i < n; i++, to += 2) {
        uint16_t h = f->coding == CAB_ROWS_F16 ? half_of(x[i]) : bf16_of(x[i]);
        memcpy(to, &h, 2);
      }
  }
  uint64_t sum = XXH64(out, (size_t)(to - out), number);
  return memcpy(to, &sum, CHECKSUM), CAB_OK;
}

bool cab_row_decode(const CabRowForm *f, uint64_t number, const uint8_t *row, float *x) {
  int64_t n = f->tokens * f->width;
  size_t payload = (size_t)cab_row_bytes(f) - CHECKSUM;
  uint64_t sum;
  memcpy(&sum, row + payload, CHECKSUM);
  if (sum != XXH64(row, payload, number)) return false;
  switch (f->coding) {
    case CAB_ROWS_F32: memcpy(x, row, (size_t)n * 4); break;
    case CAB_ROWS_INT8:
      for (int64_t t = 0; t < f->tokens; t++, x += f->width, row += 4 + f->width) {
        float scale;
        memcpy(&scale, row, 4);
        for (int64_t i = 0; i < f->width; i++) x[i] = scale * (float)(int8_t)row[4 + i];
      }
      break;
    default:
      for (int64_t i = 0; i < n; i++, row += 2) {
        uint16_t h;
        memcpy(&h, row, 2);
        x[i] = f->coding == CAB_ROWS_F16 ? of_half(h) : float_of((uint32_t)h << 16);
      }
  }
  return true;
}
