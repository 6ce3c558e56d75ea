/* mix.c - mixup (arXiv:1710.09412) and cutmix (arXiv:1905.04899) of two images, one share for a whole batch. */
#include <math.h>

#include "dataset.h"

enum { ONE = 1 << 16 };

CabStatus cab_mix_check(const CabMix *m) {
  if (!(m->mixup >= 0 && m->mixup <= 100)) return cab_fail(CAB_E_LUA, "loader: mixup is %g, expected 0 to 100", m->mixup);
  if (!(m->cutmix >= 0 && m->cutmix <= 100)) return cab_fail(CAB_E_LUA, "loader: cutmix is %g, expected 0 to 100", m->cutmix);
  if (!(m->change >= 0 && m->change <= 1)) return cab_fail(CAB_E_LUA, "loader: switch is %g, expected 0 to 1", m->change);
  return CAB_OK;
}

/* Gamma(shape, 1), number `which` of the batch: Marsaglia and Tsang 2000; below 1 by Gamma(shape + 1) u^(1 / shape). */
static double gamma_draw(CabDraw d, int which, double shape) {
  enum { TRIES = 15 };
  double a = (shape < 1 ? shape + 1 : shape) - 1.0 / 3, c = 1 / sqrt(9 * a), v = 1;
  for (int i = 0; i < TRIES; i++) {
    double x = cab_normal(cab_draw_key(d, "mix.normal"), d.sample * CAB_DRAWS + (uint64_t)(16 * which + i));
    v = (1 + c * x) * (1 + c * x) * (1 + c * x);
    if (v > 0 && log(cab_draw(d, "mix", 16 * which + i)) < x * x / 2 + a - a * v + a * log(v)) break;
    v = 1;
  }
  return a * v * (shape < 1 ? pow(cab_draw(d, "mix", 16 * which + TRIES), 1 / shape) : 1);
}

static double beta_draw(CabDraw d, double alpha) {
  double x = gamma_draw(d, 0, alpha), y = gamma_draw(d, 1, alpha);
  return x + y > 0 ? x / (x + y) : 0.5;
}

static int clip(int v, int size) { return v < 0 ? 0 : v > size ? size : v; }

/* Draws 32: which of the two; 33, 34: the middle of the window. What the border cuts off counts for the first image. */
CabMixing cab_mix_draw(const CabMix *m, CabDraw d, int size) {
  CabMixing out = {.cut = m->cutmix > 0 && (m->mixup <= 0 || cab_draw(d, "mix", 32) < m->change)};
  out.share = beta_draw(d, out.cut ? m->cutmix : m->mixup);
  if (!out.cut) {
    out.share = rint(out.share * ONE) / ONE;
    return out;
  }
  int half = (int)(size * sqrt(1 - out.share)) / 2;
  int y = cab_draw_below(d, "mix", 33, size), x = cab_draw_below(d, "mix", 34, size);
  out.window = (CabWindow){clip(x - half, size), clip(y - half, size), 0, 0};
  out.window.width = clip(x + half, size) - out.window.x, out.window.height = clip(y + half, size) - out.window.y;
  out.share = 1 - (double)out.window.width * out.window.height / ((double)size * size);
  return out;
}

static void exchange(uint8_t *restrict a, uint8_t *restrict b, size_t n) {
  for (size_t i = 0; i < n; i++) {
    uint8_t old = a[i];
    a[i] = b[i], b[i] = old;
  }
}

static void average(uint8_t *restrict a, uint8_t *restrict b, size_t n, uint32_t share) {
  for (size_t i = 0; i < n; i++) {
    uint32_t x = a[i], y = b[i];
    a[i] = (uint8_t)((x * share + y * (ONE - share) + ONE / 2) / ONE);
    b[i] = (uint8_t)((y * share + x * (ONE - share) + ONE / 2) / ONE);
  }
}

void cab_mix_pair(const CabMixing *m, int channels, int size, uint8_t *a, uint8_t *b) {
  size_t plane = (size_t)size * (size_t)size;
  if (!m->cut) {
    average(a, b, plane * (size_t)channels, (uint32_t)(m->share * ONE));
    return;
  }
  for (int c = 0; c < channels; c++)
    for (int y = m->window.y; y < m->window.y + m->window.height; y++) {
      size_t at = (size_t)c * plane + (size_t)y * (size_t)size + (size_t)m->window.x;
      exchange(a + at, b + at, (size_t)m->window.width);
    }
}
