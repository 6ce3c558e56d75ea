/* selective_scan.h - Mamba-1 recurrence (arXiv 2312.00752, algorithm 2), channel-last, per channel e and state n:
 *   d = softplus(dt + bias) (softplus optional);  h_t = exp(d_t A[e,n]) h_{t-1} + d_t u_t B_t[n]
 *   y_t = sum_n C_t[n] h_t[n] + D[e] u_t;  with z: y_t *= silu(z_t).
 * reverse: t runs from L-1 down to 0 on the same arrays. A is negative (-exp(A_log)). N <= 256.
 * u, dt: [B,L,E] contiguous; B, C: rows of stride ldb, ldc; z: rows of stride ldz. D, z, bias may be NULL.
 * h keeps the state at the entry of each chunk of SCAN_CHUNK tokens: [B, chunks, N, E], chunks = ceil(L/SCAN_CHUNK),
 * the entry of the first chunk in scan order (all zero) included. */
#ifndef CAB_KERNELS_SELECTIVE_SCAN_H
#define CAB_KERNELS_SELECTIVE_SCAN_H
#include "kernel.h"
#define SCAN_CHUNK 16
typedef struct {
  int64_t B, L, E, N;
  bool softplus, reverse;
  int64_t ldb, ldc, ldz;
} ScanShape;
/* h may be NULL (no gradient wanted). */
TWIN(scan_forward, const ScanShape *s, const real *u, const real *dt, const wide *A, const real *b, const real *c,
     const wide *D, const real *z, const wide *bias, real *y, wide *h);
/* Gradients are overwritten; any may be NULL. gb, gc, gz: rows of stride s->N, s->N, s->E (contiguous).
 * partial: scratch of scan_partial(s) reals, for sums over batch (gA, gD, gbias) and channels (gb, gc) in an order
 * that does not depend on the number of threads, and the adjoint state between chunks; CUDA leaves it alone. */
static inline int64_t scan_partial(const ScanShape *s) {
  return s->B * ((s->E + 15) / 16 * 16) * (3 * s->N + 3); /* whole registers of up to 16 channels */
}
TWIN(scan_backward, const ScanShape *s, const real *u, const real *dt, const wide *A, const real *b, const real *c,
     const wide *D, const real *z, const wide *bias, const wide *h, const real *gy, real *gu, real *gdt, wide *gA,
     real *gb, real *gc, wide *gD, real *gz, wide *gbias, wide *partial);
/* Implicit attention of one direction, mean over channels: m[b,t,s] = 1/E sum_e sum_n C_t[n] (prod_{r=s+1..t}
 * exp(d_r A)) d_s B_s[n] for s <= t (reverse: s >= t), else 0. For pictures; O(L^2). m is [B,L,L]. */
TWIN(scan_matrix, const ScanShape *s, const real *dt, const wide *A, const real *b, const real *c, const wide *bias,
     real *m);
#endif
