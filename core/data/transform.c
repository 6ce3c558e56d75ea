/* transform.c - one image to f32[C,S,S]: channels, resize, crop, mirror, (x / 255 - mean) / deviation; or to u8, without the
 * last. */
#include <math.h>
#include <string.h>

#include "dataset.h"

/* Draws of one sample: numbers within its block of 64. */
enum { DRAW_FLIP = 60, DRAW_X = 61, DRAW_Y = 62, DRAWS = 64, ATTEMPTS = 10 };

/* A window of an image: the top left may lie outside, where the image is 0. */
typedef struct {
  int x, y, width, height;
} Window;

static CabRng key_of(CabDraw d) { return (CabRng){d.seed, cab_hash_name("augment") + d.epoch * 0x9e3779b97f4a7c15u}; }
static double unit(CabDraw d, int k) { return cab_uniform(key_of(d), d.sample * DRAWS + (uint64_t)k); }
/* 0..n-1 */
static int below(CabDraw d, int k, int n) {
  int v = (int)(unit(d, k) * n);
  return v < n ? v : n - 1;
}

CabStatus cab_transform_check(const CabTransform *t) {
  if (t->size < 1 || t->size > CAB_IMAGE_MAX_SIDE) return cab_fail(CAB_E_LUA, "transform: size is %d, expected 1 to %d", t->size, CAB_IMAGE_MAX_SIDE);
  if (t->resize < 0 || t->resize > CAB_IMAGE_MAX_SIDE) return cab_fail(CAB_E_LUA, "transform: resize is %d, expected 1 to %d", t->resize, CAB_IMAGE_MAX_SIDE);
  if (t->channels != 1 && t->channels != 3) return cab_fail(CAB_E_LUA, "transform: channels is %d, expected 1 or 3", t->channels);
  if (t->pad < 0 || t->pad > CAB_IMAGE_MAX_SIDE) return cab_fail(CAB_E_LUA, "transform: pad is %d", t->pad);
  if (t->pad && t->crop != CAB_CROP_RANDOM) return cab_fail(CAB_E_LUA, "transform: pad needs crop = \"random\"");
  if (t->resize && t->crop == CAB_CROP_RESIZED) return cab_fail(CAB_E_LUA, "transform: resize is no part of crop = \"resized\"");
  for (int c = 0; c < t->channels; c++)
    if (!isfinite(t->mean[c]) || !isfinite(t->deviation[c]) || !(t->deviation[c] > 0))
      return cab_fail(CAB_E_LUA, "transform: mean %g, std %g of channel %d", t->mean[c], t->deviation[c], c + 1);
  if (t->crop == CAB_CROP_RESIZED && !(t->scale[0] > 0 && t->scale[0] <= t->scale[1] && t->scale[1] <= 1))
    return cab_fail(CAB_E_LUA, "transform: scale is {%g, %g}, expected 0 < low <= high <= 1", t->scale[0], t->scale[1]);
  if (t->crop == CAB_CROP_RESIZED && !(t->ratio[0] > 0 && t->ratio[0] <= t->ratio[1] && t->ratio[1] <= 100))
    return cab_fail(CAB_E_LUA, "transform: ratio is {%g, %g}, expected 0 < low <= high", t->ratio[0], t->ratio[1]);
  return CAB_OK;
}

size_t cab_transform_size(const CabTransform *t) {
  return (size_t)t->channels * (size_t)t->size * (size_t)t->size * (t->bytes ? 1 : sizeof(float));
}

/* As in torchvision: ten tries for a window of random area and shape, then the largest central one of allowed shape. */
static Window resized_window(const CabTransform *t, CabDraw d, int width, int height) {
  double area = (double)width * height, low = log(t->ratio[0]), high = log(t->ratio[1]);
  for (int i = 0; i < ATTEMPTS; i++) {
    double target = area * (t->scale[0] + (t->scale[1] - t->scale[0]) * unit(d, 4 * i));
    double ratio = exp(low + (high - low) * unit(d, 4 * i + 1));
    double w = rint(sqrt(target * ratio)), h = rint(sqrt(target / ratio));
    if (w < 1 || h < 1 || w > width || h > height) continue;
    Window win = {.width = (int)w, .height = (int)h};
    win.x = below(d, 4 * i + 2, width - win.width + 1);
    win.y = below(d, 4 * i + 3, height - win.height + 1);
    return win;
  }
  double ratio = (double)width / height;
  Window win = {.width = width, .height = height};
  if (ratio < t->ratio[0]) win.height = (int)fmax(1, rint(width / t->ratio[0]));
  else if (ratio > t->ratio[1]) win.width = (int)fmax(1, rint(height * t->ratio[1]));
  win.x = (width - win.width) / 2, win.y = (height - win.height) / 2;
  return win;
}

/* The shorter side becomes t->resize; the longer one is cut to an integer as torchvision does. */
static CabStatus resize_shorter(const CabTransform *t, const CabImage *image, CabImage *out) {
  int64_t w = image->width, h = image->height, r = t->resize;
  int64_t width = w <= h ? r : r * w / h, height = w <= h ? r * h / w : r;
  if (width > CAB_IMAGE_MAX_SIDE || height > CAB_IMAGE_MAX_SIDE)
    return cab_fail(CAB_E_INPUT, "%lld x %lld pixels would be resized to %lld x %lld", (long long)w, (long long)h, (long long)width, (long long)height);
  return cab_resize(image, (size_t)w * (size_t)image->channels, (int)width, (int)height, t->filter, out);
}

static CabStatus choose_window(const CabTransform *t, CabDraw d, const CabImage *image, Window *out) {
  int spare_x = image->width - t->size, spare_y = image->height - t->size;
  *out = (Window){0, 0, t->size, t->size};
  if (t->crop == CAB_CROP_CENTER) { /* rint: half to even, as Python rounds */
    out->x = (int)rint(spare_x / 2.0), out->y = (int)rint(spare_y / 2.0);
  } else if (t->crop == CAB_CROP_RANDOM) {
    if (spare_x + 2 * t->pad < 0 || spare_y + 2 * t->pad < 0)
      return cab_fail(CAB_E_INPUT, "image of %d x %d pixels with pad %d is smaller than the crop of %d", image->width, image->height, t->pad, t->size);
    out->x = below(d, DRAW_X, spare_x + 2 * t->pad + 1) - t->pad;
    out->y = below(d, DRAW_Y, spare_y + 2 * t->pad + 1) - t->pad;
  } else if (spare_x || spare_y)
    return cab_fail(CAB_E_INPUT, "image of %d x %d pixels, expected %d x %d (no crop was asked for)", image->width, image->height, t->size, t->size);
  return CAB_OK;
}

/* n pixels of channel c, `step` bytes apart, as a line. Grey from RGB: ITU-R 601 luma in 16 bits, as Pillow. */
static void copy_pixels(const CabTransform *t, int channels, const uint8_t *from, ptrdiff_t step, int c, int n, uint8_t *line) {
  if (channels == 3 && t->channels == 1)
    for (int i = 0; i < n; i++, from += step) line[i] = (uint8_t)((from[0] * 19595u + from[1] * 38470u + from[2] * 7471u + 0x8000u) >> 16);
  else
    for (int i = 0; i < n; i++) line[i] = from[i * step + (channels == 3 ? c : 0)];
}

/* Line y of channel c of the window. Black where the image ends. */
static void window_line(const CabTransform *t, const CabImage *image, Window w, bool mirror, int c, int y, uint8_t *line) {
  int n = t->size, sy = w.y + y, low = w.x < 0 ? -w.x : 0, high = image->width - w.x < n ? image->width - w.x : n; /* in the image */
  ptrdiff_t step = image->channels;
  memset(line, 0, (size_t)n);
  if (sy < 0 || sy >= image->height || low >= high) return;
  const uint8_t *row = image->pixels + (size_t)sy * (size_t)image->width * (size_t)step;
  if (mirror) copy_pixels(t, image->channels, row + (w.x + high - 1) * step, -step, c, high - low, line + n - high);
  else copy_pixels(t, image->channels, row + (w.x + low) * step, step, c, high - low, line + low);
}

/* Writes the window as [C,S,S]. */
static void emit(const CabTransform *t, const CabImage *image, Window w, bool mirror, void *out) {
  int n = t->size;
  uint8_t line[CAB_IMAGE_MAX_SIDE] = {0}, *bytes = out;
  float table[256], *floats = out;
  for (int c = 0; c < t->channels; c++) {
    for (int v = 0; v < 256; v++) table[v] = ((float)v / 255.0f - t->mean[c]) / t->deviation[c];
    for (int y = 0; y < n; y++) {
      uint8_t *to = t->bytes ? bytes : line;
      window_line(t, image, w, mirror, c, y, to);
      if (t->bytes) bytes += n;
      else for (int x = 0; x < n; x++) *floats++ = table[to[x]];
    }
  }
}

CabStatus cab_transform_apply(const CabTransform *t, CabDraw draw, const CabImage *image, void *out) {
  CabImage resized = {0};
  Window w = {0, 0, t->size, t->size};
  CabStatus status = CAB_OK;
  if (t->crop == CAB_CROP_RESIZED) {
    Window from = resized_window(t, draw, image->width, image->height);
    size_t stride = (size_t)image->width * (size_t)image->channels;
    CabImage part = {from.width, from.height, image->channels,
                     image->pixels + (size_t)from.y * stride + (size_t)from.x * (size_t)image->channels, NULL};
    status = cab_resize(&part, stride, t->size, t->size, t->filter, &resized);
  } else {
    if (t->resize) status = resize_shorter(t, image, &resized);
    if (status == CAB_OK) status = choose_window(t, draw, resized.pixels ? &resized : image, &w);
  }
  if (status == CAB_OK) emit(t, resized.pixels ? &resized : image, w, t->flip && unit(draw, DRAW_FLIP) < 0.5, out);
  cab_image_free(&resized);
  return status;
}
