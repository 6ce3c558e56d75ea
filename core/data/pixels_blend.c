/* pixels_blend.c - operations between an image and a poorer one, and blurring. */
#include <math.h>
#include <string.h>

#include "pixels.h"
#include "vectors.h"

static size_t bytes_of(const CabCanvas *c) { return (size_t)c->size * (size_t)c->size * (size_t)c->channels; }

static void swap(CabCanvas *c) {
  uint8_t *old = c->pixels;
  c->pixels = c->spare, c->spare = old;
}

/* pixels = poor + factor (pixels - poor); within 0..1 no cut is needed, beyond it is the same. */
CAB_VECTORS static void blend(uint8_t *restrict pixels, const uint8_t *restrict poor, size_t n, float factor) {
  for (size_t i = 0; i < n; i++) {
    float v = (float)poor[i] + factor * (float)((int)pixels[i] - (int)poor[i]);
    v = v < 0 ? 0 : v > 255 ? 255 : v;
    pixels[i] = (uint8_t)(int)v;
  }
}

static uint8_t luma(const uint8_t *p) { return (uint8_t)((p[0] * 19595u + p[1] * 38470u + p[2] * 7471u + 0x8000u) >> 16); }

/* The luma of each pixel in all its channels, to c->spare. */
static void grey_to_spare(const CabCanvas *c) {
  size_t n = bytes_of(c);
  if (c->channels == 1) memcpy(c->spare, c->pixels, n);
  else
    for (size_t i = 0; i < n; i += 3) c->spare[i] = c->spare[i + 1] = c->spare[i + 2] = luma(c->pixels + i);
}

void pixels_grey(CabCanvas *c, double value, const CabPaint *paint) {
  (void)value, (void)paint;
  grey_to_spare(c);
  swap(c);
}

void pixels_color(CabCanvas *c, double value, const CabPaint *paint) {
  (void)paint;
  grey_to_spare(c);
  blend(c->pixels, c->spare, bytes_of(c), (float)value);
}

void pixels_contrast(CabCanvas *c, double value, const CabPaint *paint) {
  size_t n = bytes_of(c), channels = (size_t)c->channels;
  uint64_t sum = 0;
  (void)paint;
  for (size_t i = 0; i < n; i += channels) sum += channels == 1 ? c->pixels[i] : luma(c->pixels + i);
  memset(c->spare, (int)((double)sum / (double)(n / channels) + 0.5), n);
  blend(c->pixels, c->spare, n, (float)value);
}

void pixels_brightness(CabCanvas *c, double value, const CabPaint *paint) {
  (void)paint;
  memset(c->spare, 0, bytes_of(c));
  blend(c->pixels, c->spare, bytes_of(c), (float)value);
}

/* A row of sums over 3 x 3 with the middle five times, over 13; never halfway between two numbers. */
CAB_VECTORS static void smooth_row(const uint8_t *restrict in, size_t row, size_t step, uint8_t *restrict out) {
  for (size_t i = step; i < row - step; i++) {
    int sum = 4 * in[i];
    for (ptrdiff_t y = -1; y <= 1; y++)
      for (ptrdiff_t x = -1; x <= 1; x++) sum += in[(ptrdiff_t)i + y * (ptrdiff_t)row + x * (ptrdiff_t)step];
    out[i] = (uint8_t)((2 * sum + 13) / 26);
  }
}

void pixels_sharpness(CabCanvas *c, double value, const CabPaint *paint) {
  size_t n = bytes_of(c), step = (size_t)c->channels, row = (size_t)c->size * step;
  (void)paint;
  memcpy(c->spare, c->pixels, n);
  if (c->size > 2)
    for (size_t y = 1; y + 1 < (size_t)c->size; y++) smooth_row(c->pixels + y * row, row, step, c->spare + y * row);
  blend(c->pixels, c->spare, n, (float)value);
}

/* ---- blur ------------------------------------------------------------------------------------- */

/* Three boxes of this radius (a fraction: its last pixels count in part) have the variance of the Gaussian. */
static float box_radius(float deviation) {
  float variance = deviation * deviation / 3, length = sqrtf(12.0f * variance + 1.0f), whole = floorf((length - 1.0f) / 2.0f);
  float part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) * (whole + 1)));
  return whole + part;
}

static int inside(int x, int n) { return x < 0 ? 0 : x >= n ? n - 1 : x; }

/* n samples, `step` bytes apart; the border is repeated. Weights have 24 bits. */
static void box_line(const uint8_t *in, uint8_t *out, int n, size_t step, int radius, uint32_t full, uint32_t part) {
  uint32_t sum = 0;
  for (int d = -radius; d <= radius; d++) sum += in[(size_t)inside(d, n) * step];
  for (int x = 0; x < n; x++) {
    uint32_t ends = (uint32_t)in[(size_t)inside(x - radius - 1, n) * step] + in[(size_t)inside(x + radius + 1, n) * step];
    out[(size_t)x * step] = (uint8_t)((sum * full + ends * part + (1u << 23)) >> 24);
    sum += in[(size_t)inside(x + radius + 1, n) * step];
    sum -= in[(size_t)inside(x - radius, n) * step];
  }
}

void pixels_blur(CabCanvas *c, double value, const CabPaint *paint) {
  float r = box_radius((float)value);
  int radius = (int)r;
  size_t step = (size_t)c->channels, row = (size_t)c->size * step;
  uint32_t full = (uint32_t)((float)(1u << 24) / (r * 2 + 1)), part = ((1u << 24) - (uint32_t)(radius * 2 + 1) * full) / 2;
  (void)paint;
  for (int pass = 0; pass < 6; pass++) {
    for (size_t i = 0; i < (size_t)c->size; i++)
      for (size_t k = 0; k < step; k++) {
        size_t from = (pass < 3 ? i * row : i * step) + k;
        box_line(c->pixels + from, c->spare + from, c->size, pass < 3 ? step : row, radius, full, part);
      }
    swap(c);
  }
}
