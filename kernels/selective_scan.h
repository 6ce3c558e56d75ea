/* selective_scan.h - Mamba-1 recurrence (arXiv 2312.00752, algorithm 2), channel-last, per channel e and state n:
 *   d = softplus(x + bias) (softplus optional), x_t[e] = dt_t[e], or with a weight sum_r weight[e,r] dt_t[r];
 *   h_t = exp(d_t A[e,n]) h_{t-1} + d_t u_t B_t[n];
 *   y_t = sum_n C_t[n] h_t[n] + D[e] u_t;  with z: y_t *= silu(z_t).
 * The weight is the last step of a low-rank projection: computed here, neither x nor its gradient reaches memory.
 * reverse: t runs from L-1 down to 0 on the same arrays. A is negative (-exp(A_log)). N <= 256.
 * u: [B,L,E] contiguous; dt, B, C, z: rows of stride ldt, ldb, ldc, ldz. D, z, bias, weight may be NULL.
 * h keeps the state at the entry of each chunk of SCAN_CHUNK tokens: [B, chunks, N, E], chunks = ceil(L/SCAN_CHUNK),
 * the entry of the first chunk in scan order (all zero) included. */
#ifndef CAB_KERNELS_SELECTIVE_SCAN_H
#define CAB_KERNELS_SELECTIVE_SCAN_H
#include "kernel.h"
#define SCAN_CHUNK 16
#define SCAN_RANK 64 /* columns of a weight at most */
typedef struct {
  int64_t B, L, E, N;
  int64_t R; /* columns of the weight, 0 without one */
  bool softplus, reverse;
  int64_t ldt, ldb, ldc, ldz;
} ScanShape;
/* dt [B,L,R] (without a weight [B,L,E]), weight [E,R], A [E,N], b and c [B,L,N], z [B,L,E], D and bias [E]. */
typedef struct { const void *u, *dt, *A, *b, *c, *D, *z, *bias, *weight; } ScanInputs;
/* Any may be NULL. dt, b, c: rows of their own strides; the others are contiguous. Overwritten, but for b and c where add_b and
 * add_c say that they hold a sum. */
typedef struct {
  void *u, *dt, *A, *b, *c, *D, *z, *bias, *weight;
  int64_t ldt, ldb, ldc;
  bool add_b, add_c;
} ScanGradients;
/* h may be NULL (no gradient wanted). */
TWIN(scan_forward, const ScanShape *s, const ScanInputs *in, real *y, wide *h);
/* partial: scratch of scan_partial(s) wides, for sums over batch (A, D, bias, weight) and channels (b, c, dt of a weight) in an
 * order that does not depend on the number of threads, and the adjoint state between chunks; CUDA leaves it alone. */
static inline int64_t scan_partial(const ScanShape *s) {
  return s->B * ((s->E + 15) / 16 * 16) * (3 * s->N + 3 + 2 * s->R); /* whole registers of up to 16 channels */
}
TWIN(scan_backward, const ScanShape *s, const ScanInputs *in, const wide *h, const real *gy, const ScanGradients *to, wide *partial);
/* Implicit attention of one direction, mean over channels: m[b,t,s] = 1/E sum_e sum_n C_t[n] (prod_{r=s+1..t}
 * exp(d_r A)) d_s B_s[n] for s <= t (reverse: s >= t), else 0. For pictures; O(L^2). m is [B,L,L]; dt [B,L,E] contiguous. */
TWIN(scan_matrix, const ScanShape *s, const real *dt, const wide *A, const real *b, const real *c, const wide *bias,
     real *m);
#endif
