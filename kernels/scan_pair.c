/* scan_pair.c - CPU twin: one scan after the other, each with all threads. */
#include "scan_pair.h"

void K(scan_pair_forward)(CabStream *stream, const ScanShape *s, const ScanInputs *in, void *const *y, void *const *h) {
  for (int i = 0; i < SCAN_PAIR; i++) {
    const ScanInputs *t = &in[i];
    K(scan_forward)(stream, &s[i], t->u, t->dt, t->A, t->b, t->c, t->D, t->z, t->bias, y[i], h[i]);
  }
}

void K(scan_pair_backward)(CabStream *stream, const ScanShape *s, const ScanInputs *in, const void *const *h,
                           const void *const *gy, const ScanGradients *to, real *partial) {
  for (int i = 0; i < SCAN_PAIR; i++) {
    const ScanInputs *t = &in[i];
    const ScanGradients *g = &to[i];
    K(scan_backward)(stream, &s[i], t->u, t->dt, t->A, t->b, t->c, t->D, t->z, t->bias, h[i], gy[i], g->u, g->dt, g->A, g->b,
                     g->c, g->D, g->z, g->bias, partial);
  }
}
