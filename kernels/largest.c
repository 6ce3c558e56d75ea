/* largest.c - a sorted list of the K best so far: most entries of a long row are refused by one comparison. */
#include "largest.h"

enum { PARALLEL = 16384 };

static void row(int64_t C, int64_t count, const real *x, real *y, int32_t *place) {
  int64_t held = 0;
  for (int64_t c = 0; c < C; c++) {
    if (held == count && !(x[c] > y[count - 1])) continue;
    int64_t at = held < count ? held++ : count - 1;
    for (; at > 0 && x[c] > y[at - 1]; at--) {
      y[at] = y[at - 1];
      place[at] = place[at - 1];
    }
    y[at] = x[c];
    place[at] = (int32_t)c;
  }
}

void K(largest)(CabStream *stream, int64_t rows, int64_t C, int64_t count, const real *x, real *y, int32_t *place) {
  (void)stream;
#pragma omp parallel for schedule(static) if (rows * C > PARALLEL)
  for (int64_t i = 0; i < rows; i++) row(C, count, x + i * C, y + i * count, place + i * count);
}
