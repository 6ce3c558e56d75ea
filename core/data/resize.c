/* resize.c - separable resampling with a filter widened by the scale (antialiasing), bit-equal to Pillow's: f64 weights
 * rounded to 22 bits, u8 between the passes. out[i] = sum_k w[i,k] in[first[i] + k]. */
#include <math.h>

#include "dataset.h"

enum { BITS = 32 - 8 - 2 };

typedef struct {
  int taps;    /* room for each output */
  int *first, *used;
  int32_t *weight; /* [size, taps] */
} Weights;

static void free_weights(Weights *w) {
  cab_free(w->first), cab_free(w->used), cab_free(w->weight);
}

static double bicubic(double x) {
  const double a = -0.5;
  x = fabs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}
static double bilinear(double x) {
  x = fabs(x);
  return x < 1 ? 1 - x : 0;
}

static CabStatus make_weights(int in, int out, CabFilter filter, Weights *w) {
  double scale = (double)in / out, wide = scale < 1 ? 1 : scale, support = (filter == CAB_BICUBIC ? 2 : 1) * wide;
  w->taps = (int)ceil(support) * 2 + 1;
  w->first = cab_malloc((size_t)out, sizeof *w->first);
  w->used = cab_malloc((size_t)out, sizeof *w->used);
  w->weight = cab_malloc(sz_mul((uint64_t)out, (uint64_t)w->taps), sizeof *w->weight);
  double *k = cab_malloc((size_t)w->taps, sizeof *k);
  if (!w->first || !w->used || !w->weight || !k) {
    cab_free(k);
    return CAB_E_MEMORY;
  }
  for (int i = 0; i < out; i++) {
    double centre = (i + 0.5) * scale, sum = 0, inverse = 1 / wide;
    int first = (int)(centre - support + 0.5), last = (int)(centre + support + 0.5);
    if (first < 0) first = 0;
    if (last > in) last = in;
    for (int x = first; x < last; x++) {
      double at = (x - centre + 0.5) * inverse;
      sum += k[x - first] = filter == CAB_BICUBIC ? bicubic(at) : bilinear(at);
    }
    for (int x = 0; x < last - first; x++) {
      double v = (sum != 0 ? k[x] / sum : k[x]) * (1 << BITS);
      w->weight[(size_t)i * (size_t)w->taps + (size_t)x] = (int32_t)(v < 0 ? v - 0.5 : v + 0.5);
    }
    w->first[i] = first, w->used[i] = last - first;
  }
  cab_free(k);
  return CAB_OK;
}

static uint8_t clip(int32_t sum) {
  sum >>= BITS;
  return (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

/* One pass over `lines` lines: element i of a line is `step` bytes after the one before, lines are `line` bytes apart. */
static void pass(const Weights *w, const uint8_t *in, size_t in_line, size_t in_step, uint8_t *out, size_t out_line, size_t out_step,
                 int lines, int size, int channels) {
  for (int y = 0; y < lines; y++)
    for (int i = 0; i < size; i++) {
      const int32_t *weight = w->weight + (size_t)i * (size_t)w->taps;
      const uint8_t *from = in + (size_t)y * in_line + (size_t)w->first[i] * in_step;
      for (int c = 0; c < channels; c++) {
        int32_t sum = 1 << (BITS - 1);
        for (int k = 0; k < w->used[i]; k++) sum += from[(size_t)k * in_step + (size_t)c] * weight[k];
        out[(size_t)y * out_line + (size_t)i * out_step + (size_t)c] = clip(sum);
      }
    }
}

/* Vertical pass as sums of rows: runs along memory. O3: as vectors, 2300 -> 3600 images a second enlarged to
 * 224 pixels. */
__attribute__((optimize("O3"))) static CabStatus vertical(const Weights *w, const uint8_t *in, size_t row, uint8_t *out, int height) {
  int32_t *sum = cab_malloc(row, sizeof *sum);
  if (!sum) return CAB_E_MEMORY;
  for (int y = 0; y < height; y++) {
    const int32_t *weight = w->weight + (size_t)y * (size_t)w->taps;
    for (size_t x = 0; x < row; x++) sum[x] = 1 << (BITS - 1);
    for (int k = 0; k < w->used[y]; k++) {
      const uint8_t *from = in + (size_t)(w->first[y] + k) * row;
      for (size_t x = 0; x < row; x++) sum[x] += from[x] * weight[k];
    }
    for (size_t x = 0; x < row; x++) out[(size_t)y * row + x] = clip(sum[x]);
  }
  cab_free(sum);
  return CAB_OK;
}

CabStatus cab_resize(const CabImage *image, size_t stride, int width, int height, CabFilter filter, CabImage *out) {
  Weights across = {0}, down = {0};
  size_t channels = (size_t)image->channels, row = (size_t)width * channels;
  *out = (CabImage){0};
  uint8_t *between = cab_malloc(sz_mul(row, (uint64_t)image->height), 1), *pixels = cab_malloc(sz_mul(row, (uint64_t)height), 1);
  CabStatus status = between && pixels ? CAB_OK : CAB_E_MEMORY;
  if (status == CAB_OK) status = make_weights(image->width, width, filter, &across);
  if (status == CAB_OK) status = make_weights(image->height, height, filter, &down);
  if (status == CAB_OK) {
    pass(&across, image->pixels, stride, channels, between, row, channels, image->height, width, image->channels);
    status = vertical(&down, between, row, pixels, height);
  }
  free_weights(&across), free_weights(&down);
  cab_free(between);
  if (status == CAB_OK) *out = (CabImage){width, height, image->channels, pixels, pixels};
  else cab_free(pixels);
  return status;
}
