/* dtype.c - element types and strided copies between them. */
#include <math.h>
#include <string.h>

#include "elementwise.h"
#include "internal.h"

static const struct {
  const char *name;
  size_t size;
} dtypes[CAB_DTYPES] = {
    [CAB_F32] = {"f32", 4}, [CAB_F64] = {"f64", 8}, [CAB_I32] = {"i32", 4}, [CAB_U8] = {"u8", 1}, [CAB_BF16] = {"bf16", 2},
};

size_t cab_dtype_size(CabDtype dtype) { return dtypes[dtype].size; }
const char *cab_dtype_name(CabDtype dtype) { return dtypes[dtype].name; }

bool cab_dtype_parse(const char *name, CabDtype *out) {
  for (int i = 0; i < CAB_DTYPES; i++)
    if (!strcmp(name, dtypes[i].name)) return *out = (CabDtype)i, true;
  return false;
}

static float widen(uint16_t half) {
  uint32_t bits = (uint32_t)half << 16;
  float x;
  return memcpy(&x, &bits, 4), x;
}

/* To nearest, ties to even; NaN stays NaN. */
static uint16_t narrow(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if (x != x) return (uint16_t)(bits >> 16 | 0x40);
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* Towards zero, out of range to the nearest bound, NaN to 0. */
static double clamp(double x, double low, double high) { return x != x ? 0 : x < low ? low : x > high ? high : x; }

/* f64 holds every value of the other types exactly, so casts go through a short f64 row. */
static void load_row(CabDtype dtype, const void *src, int64_t stride, int64_t n, double *row) {
#define LOAD(type, expression)                                \
  {                                                           \
    const type *p = src;                                      \
    for (int64_t i = 0; i < n; i++, p += stride) row[i] = expression; \
  }                                                           \
  break
  switch (dtype) {
    case CAB_F32: LOAD(float, *p);
    case CAB_F64: LOAD(double, *p);
    case CAB_I32: LOAD(int32_t, *p);
    case CAB_U8: LOAD(uint8_t, *p);
    case CAB_BF16: LOAD(uint16_t, widen(*p));
    default: break;
  }
#undef LOAD
}

static void store_row(CabDtype dtype, void *dst, int64_t stride, int64_t n, const double *row) {
#define STORE(type, expression)                               \
  {                                                           \
    type *p = dst;                                            \
    for (int64_t i = 0; i < n; i++, p += stride) *p = (type)(expression); \
  }                                                           \
  break
  switch (dtype) {
    case CAB_F32: STORE(float, row[i]);
    case CAB_F64: STORE(double, row[i]);
    case CAB_I32: STORE(int32_t, clamp(row[i], INT32_MIN, INT32_MAX));
    case CAB_U8: STORE(uint8_t, clamp(row[i], 0, 255));
    case CAB_BF16: STORE(uint16_t, narrow((float)row[i]));
    default: break;
  }
#undef STORE
}

static void cast_row(CabDtype from, const char *src, int64_t stride_src, CabDtype to, char *dst, int64_t stride_dst, int64_t n) {
  enum { ROW = 256 };
  double row[ROW];
  int64_t step_src = stride_src * (int64_t)cab_dtype_size(from), step_dst = stride_dst * (int64_t)cab_dtype_size(to);
  for (int64_t done = 0; done < n; done += ROW) {
    int64_t part = n - done < ROW ? n - done : ROW;
    load_row(from, src + done * step_src, stride_src, part, row);
    store_row(to, dst + done * step_dst, stride_dst, part, row);
  }
}

static void move_row(size_t size, const void *src, int64_t stride_src, void *dst, int64_t stride_dst, int64_t n) {
  if (stride_src == 1 && stride_dst == 1) {
    memcpy(dst, src, (size_t)n * size);
    return;
  }
  const char *from = src;
  char *to = dst;
  for (int64_t i = 0; i < n; i++) memcpy(to + i * stride_dst * (int64_t)size, from + i * stride_src * (int64_t)size, size);
}

/* Rows along the last dim, the others counted like an odometer. */
CabStatus cab_cast_elements(CabDevice *device, int rank, const int64_t *shape, CabDtype from, const void *src,
                            const int64_t *stride_src, CabDtype to, void *dst, const int64_t *stride_dst) {
  (void)device;
  int64_t index[CAB_MAX_RANK] = {0}, size_src = (int64_t)cab_dtype_size(from), size_dst = (int64_t)cab_dtype_size(to);
  int last = rank - 1;
  int64_t n = rank ? shape[last] : 1, step_src = rank ? stride_src[last] : 1, step_dst = rank ? stride_dst[last] : 1;
  for (;;) {
    int64_t at_src = 0, at_dst = 0;
    for (int d = 0; d < last; d++) at_src += index[d] * stride_src[d], at_dst += index[d] * stride_dst[d];
    const char *row_src = (const char *)src + at_src * size_src;
    char *row_dst = (char *)dst + at_dst * size_dst;
    if (from == to) move_row((size_t)size_src, row_src, step_src, row_dst, step_dst, n);
    else cast_row(from, row_src, step_src, to, row_dst, step_dst, n);
    int d = last - 1;
    while (d >= 0 && ++index[d] == shape[d]) index[d--] = 0;
    if (d < 0) return CAB_OK;
  }
}

static bool dense(int rank, const int64_t *shape, const int64_t *stride) {
  int64_t expected[CAB_MAX_RANK];
  cab_strides(rank, shape, expected);
  for (int d = 0; d < rank; d++)
    if (shape[d] != 1 && stride[d] != expected[d]) return false;
  return true;
}

CabStatus cab_copy_elements(CabDevice *device, int rank, const int64_t *shape, CabDtype from, const void *src,
                            const int64_t *stride_src, CabDtype to, void *dst, const int64_t *stride_dst) {
  int64_t count = 1;
  for (int d = 0; d < rank; d++) count *= shape[d];
  if (count == 0) return CAB_OK;
  if (from == to && dense(rank, shape, stride_src) && dense(rank, shape, stride_dst))
    return device->copy(device, dst, src, (size_t)count * cab_dtype_size(from), 0);
  if (from == to && (from == CAB_F32 || from == CAB_F64 || (from == CAB_BF16 && device != cab_cpu()))) {
    copy_strided_fn *copy = (copy_strided_fn *)cab_twin(device, from, "copy_strided");
    if (!copy) return cab_error()->code;
    copy(device->stream, rank, shape, src, stride_src, dst, stride_dst, false);
    return cab_launched(device, "copy_strided");
  }
  return device->cast(device, rank, shape, from, src, stride_src, to, dst, stride_dst);
}
