/* stored.c - the formats of stored.h. Files are little-endian, as is every machine this builds for. */
#include <math.h>
#include <string.h>

#include "stored.h"

const CabStoredRow cab_stored[CAB_STORED] = {
    [CAB_S_F32] = {"F32", "float32", "f4", 4, CAB_F32},
    [CAB_S_F64] = {"F64", "float64", "f8", 8, CAB_F64},
    [CAB_S_I32] = {"I32", "int32", "i4", 4, CAB_I32},
    [CAB_S_U8] = {"U8", "uint8", "u1", 1, CAB_U8},
    [CAB_S_BF16] = {"BF16", "bfloat16", "", 2, CAB_BF16},
    [CAB_S_F16] = {"F16", "float16", "f2", 2, CAB_F32},
    [CAB_S_F8_E4M3] = {"F8_E4M3", "float8_e4m3fn", "", 1, CAB_F32},
    [CAB_S_F8_E5M2] = {"F8_E5M2", "float8_e5m2", "", 1, CAB_F32},
    [CAB_S_BOOL] = {"BOOL", "bool", "b1", 1, CAB_U8},
    [CAB_S_I8] = {"I8", "int8", "i1", 1, CAB_I32},
    [CAB_S_I16] = {"I16", "int16", "i2", 2, CAB_I32},
    [CAB_S_I64] = {"I64", "int64", "i8", 8, CAB_I32},
    [CAB_S_U16] = {"U16", "uint16", "u2", 2, CAB_I32},
    [CAB_S_U32] = {"U32", "uint32", "u4", 4, CAB_I32},
    [CAB_S_U64] = {"U64", "uint64", "u8", 8, CAB_I32},
};

static float from_bits(uint32_t bits) {
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

/* IEEE 754 binary16: 1 sign, 5 exponent (bias 15), 10 fraction bits. */
static float from_half(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 1023;
  if (exponent == 31) return from_bits(sign | 0x7f800000 | fraction << 13);
  if (exponent) return from_bits(sign | (exponent + 112) << 23 | fraction << 13);
  float small = (float)fraction * 0x1p-24f;
  return sign ? -small : small;
}

/* E4M3 (arXiv:2209.05433): bias 7, no infinity, all bits set is NaN. */
static float from_e4m3(uint8_t b) {
  int exponent = b >> 3 & 15, fraction = b & 7;
  if ((b & 127) == 127) return NAN;
  float v = exponent ? ldexpf((float)(8 + fraction), exponent - 10) : ldexpf((float)fraction, -9);
  return b & 128 ? -v : v;
}

static uint64_t word(const uint8_t *p, int bytes) {
  uint64_t v = 0;
  memcpy(&v, p, (size_t)bytes);
  return v;
}

double cab_stored_value(CabStored stored, const uint8_t *p) {
  double d;
  switch (stored) {
    case CAB_S_F64: memcpy(&d, p, 8); return d;
    case CAB_S_F32: return from_bits((uint32_t)word(p, 4));
    case CAB_S_BF16: return from_bits((uint32_t)word(p, 2) << 16);
    case CAB_S_F16: return from_half((uint16_t)word(p, 2));
    case CAB_S_F8_E4M3: return from_e4m3(*p);
    case CAB_S_F8_E5M2: return from_half((uint16_t)(*p << 8));
    case CAB_S_BOOL: return *p != 0;
    case CAB_S_I8: return (int8_t)*p;
    case CAB_S_I16: return (int16_t)word(p, 2);
    case CAB_S_I32: return (int32_t)word(p, 4);
    case CAB_S_I64: return (double)(int64_t)word(p, 8);
    case CAB_S_U16: return (double)word(p, 2);
    case CAB_S_U32: return (double)word(p, 4);
    case CAB_S_U64: return (double)word(p, 8);
    default: return *p;
  }
}

uint64_t cab_stored_convert(CabStored stored, const uint8_t *from, void *to, uint64_t count) {
  const CabStoredRow *row = &cab_stored[stored];
  if ((int)stored == (int)row->dtype) {
    memcpy(to, from, count * row->size);
    return count;
  }
  for (uint64_t i = 0; i < count; i++) {
    double v = cab_stored_value(stored, from + i * row->size);
    if (row->dtype == CAB_F32) ((float *)to)[i] = (float)v;
    else if (row->dtype == CAB_U8) ((uint8_t *)to)[i] = (uint8_t)v;
    else if (v < INT32_MIN || v > INT32_MAX) return i;
    else ((int32_t *)to)[i] = (int32_t)v;
  }
  return count;
}
