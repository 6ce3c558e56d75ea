/* augment.c - what is drawn for an image: RandAugment (arXiv:1909.13719) with the increasing set of operations and levels that
 * DeiT trains with, 3-Augment (arXiv:2204.07118), colour jitter, random erasing (arXiv:1708.04896). */
#include <math.h>
#include <string.h>

#include "augment.h"
#include "pixels.h"

CabRng cab_draw_key(CabDraw d, const char *stream) {
  return (CabRng){d.seed, cab_hash_name(stream) + d.epoch * 0x9e3779b97f4a7c15u + d.repeat * 0xbf58476d1ce4e5b9u};
}
double cab_draw(CabDraw d, const char *stream, int k) {
  return cab_uniform(cab_draw_key(d, stream), d.sample * CAB_DRAWS + (uint64_t)k);
}
int cab_draw_below(CabDraw d, const char *stream, int k, int n) {
  int v = (int)(cab_draw(d, stream, k) * n);
  return v < n ? v : n - 1;
}

/* ---- RandAugment ----------------------------------------------------------------------------- */

/* Values of an operation at a level 0..10; `sign` is -1 or 1. */
static double level_none(double level, double sign) { return (void)level, (void)sign, 0; }
static double level_degrees(double level, double sign) { return sign * level / 10 * 30; }
static double level_shear(double level, double sign) { return sign * level / 10 * 0.3; }
static double level_share(double level, double sign) { return sign * level / 10 * 0.45; }
static double level_factor(double level, double sign) { return fmax(0.1, 1 + sign * level / 10 * 0.9); }
static double level_bits(double level, double sign) { return (void)sign, 4 - trunc(level / 10 * 4); }
static double level_threshold(double level, double sign) { return (void)sign, 256 - fmin(256, trunc(level / 10 * 256)); }
static double level_addition(double level, double sign) { return (void)sign, fmin(128, trunc(level / 10 * 110)); }

/* The first RAND_OPS are RandAugment's, in the order in which they are numbered. */
enum { RAND_OPS = 15 };
static const struct {
  const char *name;
  double (*level)(double level, double sign);
  void (*apply)(CabCanvas *c, double value, const CabPaint *paint);
} ops[] = {
  {"auto_contrast", level_none, pixels_auto_contrast}, {"equalize", level_none, pixels_equalize}, {"invert", level_none, pixels_invert},
  {"rotate", level_degrees, pixels_rotate}, {"posterize", level_bits, pixels_posterize}, {"solarize", level_threshold, pixels_solarize},
  {"solarize_add", level_addition, pixels_solarize_add}, {"color", level_factor, pixels_color}, {"contrast", level_factor, pixels_contrast},
  {"brightness", level_factor, pixels_brightness}, {"sharpness", level_factor, pixels_sharpness}, {"shear_x", level_shear, pixels_shear_x},
  {"shear_y", level_shear, pixels_shear_y}, {"translate_x", level_share, pixels_translate_x}, {"translate_y", level_share, pixels_translate_y},
  {"grey", NULL, pixels_grey}, {"blur", NULL, pixels_blur},
};

/* Draws of layer l: 16 l + 0 which, + 1 whether, + 2 sign; its level is normal number l. */
static void rand_augment(const CabAugment *a, CabDraw d, const CabPaint *paint, CabCanvas *c) {
  for (int l = 0; l < a->layers; l++) {
    int op = cab_draw_below(d, "randaugment", 16 * l, RAND_OPS);
    if (cab_draw(d, "randaugment", 16 * l + 1) >= a->chance) continue;
    double level = a->magnitude + a->spread * cab_normal(cab_draw_key(d, "magnitude"), d.sample * CAB_DRAWS + (uint64_t)l);
    level = fmin(10, fmax(0, level));
    ops[op].apply(c, ops[op].level(level, cab_draw(d, "randaugment", 16 * l + 2) < 0.5 ? -1 : 1), paint);
  }
}

static void three_augment(CabDraw d, const CabPaint *paint, CabCanvas *c) {
  int which = cab_draw_below(d, "three", 0, 3);
  if (which == 0) pixels_grey(c, 0, paint);
  else if (which == 1) pixels_solarize(c, 128, paint);
  else pixels_blur(c, 0.1 + 1.9 * cab_draw(d, "three", 1), paint);
}

/* The three in one of their six orders. */
static void color_jitter(const CabAugment *a, CabDraw d, const CabPaint *paint, CabCanvas *c) {
  static void (*const change[3])(CabCanvas *, double, const CabPaint *) = {pixels_brightness, pixels_contrast, pixels_color};
  static const int order[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
  const int *chosen = order[cab_draw_below(d, "jitter", 0, 6)];
  for (int i = 0; i < 3; i++) {
    double j = a->jitter[chosen[i]];
    if (j > 0) change[chosen[i]](c, fmax(0, 1 - j) + (1 + j - fmax(0, 1 - j)) * cab_draw(d, "jitter", 1 + chosen[i]), paint);
  }
}

/* ---- erasing: a rectangle of 2 % to a third of the area and a shape of 0.3 to 1/0.3 becomes noise ------ */

static uint8_t noise(double normal, float mean, float deviation) {
  double v = rint(255 * (mean + deviation * normal));
  return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

static void fill_noise(CabDraw d, const float *mean, const float *deviation, CabWindow w, CabCanvas *c) {
  enum { ROOM = 384 };
  size_t channels = (size_t)c->channels, row = (size_t)c->size * channels, n = (size_t)w.width * channels;
  CabRng key = cab_draw_key(d, "noise");
  double normal[ROOM];
  for (int y = w.y; y < w.y + w.height; y++) {
    size_t first = (size_t)y * row + (size_t)w.x * channels;
    for (size_t i = 0; i < n; i++) {
      if (i % ROOM == 0) cab_normals(key, d.sample * row * (uint64_t)c->size + first + i, normal, n - i < ROOM ? n - i : ROOM);
      c->pixels[first + i] = noise(normal[i % ROOM], mean[i % channels], deviation[i % channels]);
    }
  }
}

/* Ten tries for a rectangle that is smaller than the image in both directions. */
static void erase(CabDraw d, const float *mean, const float *deviation, CabCanvas *c) {
  enum { TRIES = 10 };
  double area = (double)c->size * c->size, low = log(0.3), high = log(1 / 0.3);
  for (int i = 0; i < TRIES; i++) {
    double target = area * (0.02 + (1.0 / 3 - 0.02) * cab_draw(d, "erase", 4 * i + 1));
    double shape = exp(low + (high - low) * cab_draw(d, "erase", 4 * i + 2));
    double h = rint(sqrt(target * shape)), w = rint(sqrt(target / shape));
    if (h >= c->size || w >= c->size) continue;
    CabWindow win = {.width = (int)w, .height = (int)h};
    win.y = cab_draw_below(d, "erase", 4 * i + 3, c->size - win.height + 1);
    win.x = cab_draw_below(d, "erase", 4 * i + 4, c->size - win.width + 1);
    fill_noise(d, mean, deviation, win, c);
    return;
  }
}

/* ---- all -------------------------------------------------------------------------------------- */

CabStatus cab_augment_check(const CabAugment *a) {
  if (a->layers < 0 || a->layers > 4) return cab_fail(CAB_E_LUA, "transform: %d operations an image, expected 0 to 4", a->layers);
  if (!(a->magnitude >= 0 && a->magnitude <= 10)) return cab_fail(CAB_E_LUA, "transform: magnitude is %g, expected 0 to 10", a->magnitude);
  if (!(a->spread >= 0 && a->spread <= 10)) return cab_fail(CAB_E_LUA, "transform: spread is %g, expected 0 to 10", a->spread);
  if (!(a->chance >= 0 && a->chance <= 1)) return cab_fail(CAB_E_LUA, "transform: chance is %g, expected 0 to 1", a->chance);
  if (!(a->erase >= 0 && a->erase <= 1)) return cab_fail(CAB_E_LUA, "transform: erase is %g, expected 0 to 1", a->erase);
  for (int i = 0; i < 3; i++)
    if (!(a->jitter[i] >= 0 && a->jitter[i] <= 10)) return cab_fail(CAB_E_LUA, "transform: jitter is %g, expected 0 to 10", a->jitter[i]);
  return CAB_OK;
}

static CabPaint paint_of(CabFilter filter, const float *mean, int channels) {
  CabPaint paint = {.filter = filter};
  for (int c = 0; c < channels; c++) paint.fill[c] = (uint8_t)fmin(255, fmax(0, rint(255 * (double)mean[c])));
  return paint;
}

void cab_augment_apply(const CabAugment *a, CabDraw d, CabFilter filter, const float *mean, const float *deviation, CabCanvas *canvas) {
  CabPaint paint = paint_of(filter, mean, canvas->channels);
  rand_augment(a, d, &paint, canvas);
  if (a->three) three_augment(d, &paint, canvas);
  color_jitter(a, d, &paint, canvas);
  if (cab_draw(d, "erase", 0) < a->erase) erase(d, mean, deviation, canvas);
}

CabStatus cab_augment_one(const char *name, double value, CabFilter filter, const float *mean, CabCanvas *canvas) {
  CabPaint paint = paint_of(filter, mean, canvas->channels);
  for (size_t i = 0; i < sizeof ops / sizeof *ops; i++)
    if (!strcmp(ops[i].name, name)) return ops[i].apply(canvas, value, &paint), CAB_OK;
  return cab_fail(CAB_E_LUA, "augment: unknown operation '%s'", name);
}
