/* transform.c - one image to f32[C,S,S]: resize, crop, mirror, channels, augmentation, (x / 255 - mean) / deviation; or to u8,
 * without the last. */
#include <math.h>
#include <string.h>

#include "dataset.h"
#include "vectors.h"

enum { ATTEMPTS = 10 };
/* Draws of the stream "augment": four for each attempt at a window, then these. */
enum { DRAW_FLIP = 60, DRAW_X = 61, DRAW_Y = 62 };

/* A stretch of the image becomes width x height pixels, of which the window is taken: it may reach outside, where all is 0. */
typedef struct {
  CabWindow from;
  int width, height;
  bool resample; /* otherwise `from` is all of the image and already has that size */
  int x, y;      /* of the window; its side is the transform's */
} Plan;

static double unit(CabDraw d, int k) { return cab_draw(d, "augment", k); }
static int below(CabDraw d, int k, int n) { return cab_draw_below(d, "augment", k, n); }

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
  return cab_augment_check(&t->augment);
}

size_t cab_transform_size(const CabTransform *t) {
  return (size_t)t->channels * (size_t)t->size * (size_t)t->size * (t->bytes ? 1 : sizeof(float));
}

/* ---- which pixels ----------------------------------------------------------------------------- */

/* As in torchvision: ten tries for a window of random area and shape, then the largest central one of allowed shape. */
static CabWindow resized_window(const CabTransform *t, CabDraw d, int width, int height) {
  double area = (double)width * height, low = log(t->ratio[0]), high = log(t->ratio[1]);
  for (int i = 0; i < ATTEMPTS; i++) {
    double target = area * (t->scale[0] + (t->scale[1] - t->scale[0]) * unit(d, 4 * i));
    double ratio = exp(low + (high - low) * unit(d, 4 * i + 1));
    double w = rint(sqrt(target * ratio)), h = rint(sqrt(target / ratio));
    if (w < 1 || h < 1 || w > width || h > height) continue;
    CabWindow win = {.width = (int)w, .height = (int)h};
    win.x = below(d, 4 * i + 2, width - win.width + 1);
    win.y = below(d, 4 * i + 3, height - win.height + 1);
    return win;
  }
  double ratio = (double)width / height;
  CabWindow win = {.width = width, .height = height};
  if (ratio < t->ratio[0]) win.height = (int)fmax(1, rint(width / t->ratio[0]));
  else if (ratio > t->ratio[1]) win.width = (int)fmax(1, rint(height * t->ratio[1]));
  win.x = (width - win.width) / 2, win.y = (height - win.height) / 2;
  return win;
}

static CabStatus choose_window(const CabTransform *t, CabDraw d, Plan *p) {
  int spare_x = p->width - t->size, spare_y = p->height - t->size;
  if (t->crop == CAB_CROP_CENTER) { /* rint: half to even, as Python rounds */
    p->x = (int)rint(spare_x / 2.0), p->y = (int)rint(spare_y / 2.0);
  } else if (t->crop == CAB_CROP_RANDOM) {
    if (spare_x + 2 * t->pad < 0 || spare_y + 2 * t->pad < 0)
      return cab_fail(CAB_E_INPUT, "image of %d x %d pixels with pad %d is smaller than the crop of %d", p->width, p->height, t->pad, t->size);
    p->x = below(d, DRAW_X, spare_x + 2 * t->pad + 1) - t->pad;
    p->y = below(d, DRAW_Y, spare_y + 2 * t->pad + 1) - t->pad;
  } else if (spare_x || spare_y)
    return cab_fail(CAB_E_INPUT, "image of %d x %d pixels, expected %d x %d (no crop was asked for)", p->width, p->height, t->size, t->size);
  return CAB_OK;
}

/* For an image of w x h pixels. With `resize` the shorter side becomes that; the longer one is cut to an integer as in torchvision. */
static CabStatus make_plan(const CabTransform *t, CabDraw d, int w, int h, Plan *p) {
  *p = (Plan){.from = {0, 0, w, h}, .width = w, .height = h, .resample = t->resize > 0};
  if (t->crop == CAB_CROP_RESIZED) {
    p->from = resized_window(t, d, w, h);
    p->width = p->height = t->size;
    p->resample = true;
    return CAB_OK;
  }
  if (t->resize) {
    int64_t r = t->resize, width = w <= h ? r : r * w / h, height = w <= h ? r * h / w : r;
    if (width > CAB_IMAGE_MAX_SIDE || height > CAB_IMAGE_MAX_SIDE)
      return cab_fail(CAB_E_INPUT, "%d x %d pixels would be resized to %lld x %lld", w, h, (long long)width, (long long)height);
    p->width = (int)width, p->height = (int)height;
  }
  return choose_window(t, d, p);
}

/* Samples first .. first + count - 1 of `total` that lie in a window of `size` samples at `at`. */
static void clip_window(int at, int size, int total, int *first, int *count) {
  int last = at + size < total ? at + size : total;
  *first = at > 0 ? at : 0;
  *count = last > *first ? last - *first : 0;
}

/* One direction of the resampling: a stretch of `length` pixels from `from` on of the whole image; the pixels in hand begin at
 * `origin`, are `pixels` many and `scale` times as coarse. */
static CabAxis make_axis(int from, int length, int total, int at, int size, int scale, int origin, int pixels) {
  CabAxis a = {.base = from / scale - origin, .total = total};
  a.start = (double)from / scale - from / scale, a.length = (double)length / scale;
  a.limit = (from + length + scale - 1) / scale - from / scale;
  if (a.limit > pixels - a.base) a.limit = pixels - a.base;
  clip_window(at, size, total, &a.first, &a.count);
  return a;
}

/* What apply will read of an image of this size. Where there is nothing to plan, apply says why. */
CabPart cab_transform_part(const void *call, int width, int height) {
  const CabTransformCall *c = call;
  const CabTransform *t = c->transform;
  CabPart part = {{0, 0, width, height}, 1};
  Plan p;
  if (make_plan(t, c->draw, width, height, &p) != CAB_OK) return part;
  for (int s = 8; t->draft && p.resample && part.scale == 1 && s > 1; s /= 2)
    if (p.from.width >= 2 * s * p.width && p.from.height >= 2 * s * p.height) part.scale = s;
  if (!p.resample || part.scale > 1) {
    part.window = p.from;
    if (!p.resample) {
      clip_window(p.x, t->size, width, &part.window.x, &part.window.width);
      clip_window(p.y, t->size, height, &part.window.y, &part.window.height);
    }
    return part.window.width && part.window.height ? part : (CabPart){{0, 0, 1, 1}, 1};
  }
  CabAxis x = make_axis(p.from.x, p.from.width, p.width, p.x, t->size, 1, 0, width);
  CabAxis y = make_axis(p.from.y, p.from.height, p.height, p.y, t->size, 1, 0, height);
  int first, last;
  if (x.count == 0 || y.count == 0) return (CabPart){{0, 0, 1, 1}, 1};
  cab_axis_reach(&x, t->filter, &first, &last);
  part.window.x = x.base + first, part.window.width = last - first;
  cab_axis_reach(&y, t->filter, &first, &last);
  part.window.y = y.base + first, part.window.height = last - first;
  return part;
}

/* ---- making them ------------------------------------------------------------------------------ */

/* The window by resampling, at its place in `out`: [S,S] pixels of the image's channels, 0 where nothing is written. */
static CabStatus resample(const CabTransform *t, const Plan *p, bool mirror, const CabImage *image, int scale, uint8_t *out) {
  CabAxis x = make_axis(p->from.x, p->from.width, p->width, p->x, t->size, scale, image->x, image->width);
  CabAxis y = make_axis(p->from.y, p->from.height, p->height, p->y, t->size, scale, image->y, image->height);
  size_t step = (size_t)image->channels, row = (size_t)t->size * step;
  int left = x.first - p->x, top = y.first - p->y;
  x.mirror = mirror;
  if (mirror) left = t->size - left - x.count;
  if (x.count == 0 || y.count == 0) return CAB_OK;
  return cab_resize(image, &x, &y, t->filter, out + (size_t)top * row + (size_t)left * step, row);
}

/* The same by copying. */
static void copy_window(const CabTransform *t, const Plan *p, bool mirror, const CabImage *image, uint8_t *out) {
  int first, width, top, height;
  size_t step = (size_t)image->channels, stride = (size_t)image->width * step;
  clip_window(p->x, t->size, p->width, &first, &width);
  clip_window(p->y, t->size, p->height, &top, &height);
  for (int y = top; y < top + height; y++) {
    const uint8_t *from = image->pixels + (size_t)(y - image->y) * stride + (size_t)(first - image->x) * step;
    uint8_t *to = out + ((size_t)(y - p->y) * (size_t)t->size) * step;
    if (!mirror) memcpy(to + (size_t)(first - p->x) * step, from, (size_t)width * step);
    else
      for (int x = 0; x < width; x++) memcpy(to + (size_t)(t->size - 1 - (first - p->x) - x) * step, from + (size_t)x * step, step);
  }
}

/* Grey to RGB in place, or RGB to grey: ITU-R 601 luma in 16 bits, as Pillow. */
static void adapt_channels(uint8_t *pixels, size_t count, int from, int to) {
  if (from == 1 && to == 3)
    for (size_t i = count; i-- > 0;) pixels[3 * i] = pixels[3 * i + 1] = pixels[3 * i + 2] = pixels[i];
  else if (from == 3 && to == 1)
    for (size_t i = 0; i < count; i++)
      pixels[i] = (uint8_t)((pixels[3 * i] * 19595u + pixels[3 * i + 1] * 38470u + pixels[3 * i + 2] * 7471u + 0x8000u) >> 16);
}

static void make_table(const CabTransform *t, size_t c, float table[256]) {
  for (int v = 0; v < 256; v++) table[v] = ((float)v / 255.0f - t->mean[c]) / t->deviation[c];
}

/* One channel out of [n,3]. */
CAB_VECTORS static void take_plane(const uint8_t *restrict pixels, size_t n, uint8_t *restrict out) {
  for (size_t i = 0; i < n; i++) out[i] = pixels[3 * i];
}

/* [S,S,C] to planes [C,S,S], through a table of each channel where floats are wanted. */
static void emit(const CabTransform *t, const uint8_t *pixels, void *out) {
  size_t n = (size_t)t->size * (size_t)t->size, step = (size_t)t->channels;
  for (size_t c = 0; c < step; c++) {
    if (t->bytes) {
      uint8_t *bytes = (uint8_t *)out + c * n;
      if (step == 1) memcpy(bytes, pixels, n);
      else take_plane(pixels + c, n, bytes);
      continue;
    }
    float table[256], *floats = (float *)out + c * n;
    make_table(t, c, table);
    for (size_t i = 0; i < n; i++) floats[i] = table[pixels[i * step + c]];
  }
}

void cab_transform_normalise(const CabTransform *t, const uint8_t *bytes, float *out) {
  size_t n = (size_t)t->size * (size_t)t->size;
  for (size_t c = 0; c < (size_t)t->channels; c++) {
    float table[256];
    make_table(t, c, table);
    for (size_t i = 0; i < n; i++) *out++ = table[*bytes++];
  }
}

static bool augments(const CabAugment *a) {
  return a->layers || a->three || a->erase > 0 || a->jitter[0] > 0 || a->jitter[1] > 0 || a->jitter[2] > 0;
}

CabStatus cab_transform_apply(const CabTransform *t, CabDraw draw, const CabImage *image, void *out) {
  enum { SPARE = 4 };
  bool part = image->full_width > 0, mirror = t->flip && unit(draw, DRAW_FLIP) < 0.5;
  size_t count = (size_t)t->size * (size_t)t->size, bytes = count * 3 + SPARE;
  Plan p;
  CAB_TRY(make_plan(t, draw, part ? image->full_width : image->width, part ? image->full_height : image->height, &p));
  bool more = augments(&t->augment), covered = p.x >= 0 && p.y >= 0 && p.x + t->size <= p.width && p.y + t->size <= p.height;
  uint8_t *room = cab_malloc(more ? 2 : 1, bytes);
  if (!room) return CAB_E_MEMORY;
  if (!covered) memset(room, 0, bytes);
  CabCanvas canvas = {t->size, t->channels, room, more ? room + bytes : NULL};
  CabStatus status = CAB_OK;
  if (p.resample) status = resample(t, &p, mirror, image, part ? image->scale : 1, canvas.pixels);
  else copy_window(t, &p, mirror, image, canvas.pixels);
  if (status == CAB_OK) {
    adapt_channels(canvas.pixels, count, image->channels, t->channels);
    if (more) cab_augment_apply(&t->augment, draw, t->filter, t->mean, t->deviation, &canvas);
    emit(t, canvas.pixels, out);
  }
  cab_free(room);
  return status;
}
