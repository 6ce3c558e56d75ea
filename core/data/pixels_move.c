/* pixels_move.c - affine maps. Pixel (x, y) of the result is the image at A (x + 1/2, y + 1/2), the fill where that is outside;
 * neighbours beyond the border are those on it. */
#include <math.h>
#include <string.h>

#include "pixels.h"
#include "vectors.h"

typedef double Quad __attribute__((vector_size(32))); /* the channels of a pixel */
typedef int32_t Words __attribute__((vector_size(16)));
typedef struct {
  double xx, xy, x0, yx, yy, y0;
} Map;

static inline __attribute__((always_inline)) int inside(int v, int n) { return v < 0 ? 0 : v >= n ? n - 1 : v; }

/* Four bytes from a pixel on: the last pixel of a canvas has room behind it. */
static inline __attribute__((always_inline)) Words spread(const uint8_t *p) {
  int32_t word;
  memcpy(&word, p, 4);
  return (Words){word, word, word, word} >> (Words){0, 8, 16, 24} & 255;
}
#define LOAD(x) __builtin_convertvector(spread(row + (ptrdiff_t)inside(x, n) * step), Quad)
#define CUBIC(a, b, c, d, t) ((b) + (t) * (((c) - (a)) + (t) * ((2 * ((a) - (b)) + (c) - (d)) + (t) * ((b) - (a) - (c) + (d)))))

/* The taps of one row: cubic around x and x + 1, or linear between them. */
#define ROW(y, out)                                                                             \
  do {                                                                                          \
    const uint8_t *row = in + (ptrdiff_t)(y) * n * step;                                        \
    if (cubic) {                                                                                \
      Quad b_ = LOAD(x);                                                                        \
      if (dx != 0) { Quad a_ = LOAD(x - 1), c_ = LOAD(x + 1), d_ = LOAD(x + 2); b_ = CUBIC(a_, b_, c_, d_, dx); } \
      out = b_;                                                                                 \
    } else {                                                                                    \
      Quad a_ = LOAD(x), b_ = LOAD(x + 1);                                                      \
      out = a_ + (b_ - a_) * dx;                                                                \
    }                                                                                           \
  } while (0)

/* What of a stack of rows lies in the image: the first stands in for one above it, the one before for one below. */
CAB_VECTORS static void move_row(const uint8_t *in, int n, int step, int line, const Map *m, bool cubic, const uint8_t *fill, uint8_t *out) {
  for (int column = 0; column < n; column++, out += step) {
    double px = column + 0.5, py = line + 0.5;
    double fx = m->xx * px + m->xy * py + m->x0, fy = m->yx * px + m->yy * py + m->y0;
    if (!(fx >= 0 && fx < n && fy >= 0 && fy < n)) {
      memcpy(out, fill, (size_t)step);
      continue;
    }
    fx -= 0.5, fy -= 0.5;
    int x = (int)floor(fx), y = (int)floor(fy);
    double dx = fx - x, dy = fy - y;
    Quad v, a, b, c, d;
    if (dy == 0) {
      ROW(y, v);
    } else if (cubic) {
      ROW(inside(y - 1, n), a);
      b = a, c = a;
      if (y >= 0) ROW(y, b);
      c = b;
      if (y + 1 < n) ROW(y + 1, c);
      d = c;
      if (y + 2 < n) ROW(y + 2, d);
      v = CUBIC(a, b, c, d, dy);
    } else {
      ROW(inside(y, n), a);
      b = a;
      if (y + 1 < n) ROW(y + 1, b);
      v = a + (b - a) * dy;
    }
    for (int k = 0; k < step; k++) out[k] = (uint8_t)(v[k] <= 0 ? 0 : v[k] >= 255 ? 255 : v[k]);
  }
}

static void move(CabCanvas *c, const CabPaint *paint, Map m) {
  size_t row = (size_t)c->size * (size_t)c->channels;
  for (int y = 0; y < c->size; y++)
    move_row(c->pixels, c->size, c->channels, y, &m, paint->filter == CAB_BICUBIC, paint->fill, c->spare + (size_t)y * row);
  uint8_t *old = c->pixels;
  c->pixels = c->spare, c->spare = old;
}

/* Rounded to 15 digits, so that quarter turns are exact. */
static double digits(double v) { return rint(v * 1e15) / 1e15; }

void pixels_rotate(CabCanvas *c, double value, const CabPaint *paint) {
  double angle = -value * (3.14159265358979323846 / 180), half = c->size / 2.0;
  double cosine = digits(cos(angle)), sine = digits(sin(angle));
  if (value == 0) return;
  move(c, paint, (Map){cosine, sine, cosine * -half + sine * -half + half, -sine, cosine, -sine * -half + cosine * -half + half});
}
void pixels_shear_x(CabCanvas *c, double value, const CabPaint *paint) { move(c, paint, (Map){1, value, 0, 0, 1, 0}); }
void pixels_shear_y(CabCanvas *c, double value, const CabPaint *paint) { move(c, paint, (Map){1, 0, 0, value, 1, 0}); }
void pixels_translate_x(CabCanvas *c, double value, const CabPaint *paint) { move(c, paint, (Map){1, 0, value * c->size, 0, 1, 0}); }
void pixels_translate_y(CabCanvas *c, double value, const CabPaint *paint) { move(c, paint, (Map){1, 0, 0, 0, 1, value * c->size}); }
