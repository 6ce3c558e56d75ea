/* scan_pair.c - CPU twin: one scan after the other, each with all threads. */
#include "scan_pair.h"

void K(scan_pair_forward)(CabStream *stream, const ScanShape *s, const ScanInputs *in, void *const *y, void *const *h) {
  for (int i = 0; i < SCAN_PAIR; i++) K(scan_forward)(stream, &s[i], &in[i], y[i], h[i]);
}

void K(scan_pair_backward)(CabStream *stream, const ScanShape *s, const ScanInputs *in, const void *const *h,
                           const void *const *gy, const ScanGradients *to, real *partial) {
  for (int i = 0; i < SCAN_PAIR; i++) K(scan_backward)(stream, &s[i], &in[i], h[i], gy[i], &to[i], partial);
}
