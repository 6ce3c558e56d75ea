/* ssd.h - the state space duality scan of Mamba-2 (arXiv 2405.21060, listing 1), channel-last, per head h (P channels, N
 * states, state S [P,N]) with B and C of its group g = h / (H/G):
 *   S_t = exp(l_t) S_{t-1} + dt_t x_t (outer) B_t;   y_t = S_t C_t + D x_t
 *   l_t = -softplus(a_t), or a_t itself where `log`; without dt: 1.
 * In chunks of `chunk` tokens, with c_i = l_1 + .. + l_i inside a chunk and S its entry state:
 *   y_i = sum_{j<=i} exp(c_i - c_j) (C_i.B_j) dt_j x_j + exp(c_i) S C_i + D x_i
 * A token whose segment is not that of the one before begins with an empty state: nothing of the tokens before reaches it.
 * x: rows of ldx, head h at h*P; B, C: rows of ldb, ldc, group g at g*N; a, dt: [B,L,H]. P, N <= 256. */
#ifndef CAB_KERNELS_SSD_H
#define CAB_KERNELS_SSD_H
#include "kernel.h"
#define SSD_MOST 256 /* chunk, P and N at most */
typedef struct {
  int64_t B, L, H, P, G, N, chunk;
  bool log;
  int64_t ldx, ldb, ldc;
} SsdShape;
/* start [B,H,P,N] may be NULL (zeros), and so may dt, D [H], segment [B,L]. state [B,H,P,N]: after the last token. h keeps
 * the entry state of each chunk, [B,chunks,H,P,N]; NULL: no gradient wanted. A GPU keeps none and goes forward again from `start`. */
TWIN(ssd_forward, const SsdShape *s, const real *x, const real *a, const real *b, const real *c, const real *dt, const wide *D,
     const wide *start, const int32_t *segment, real *y, wide *state, wide *h);
/* Gradients are overwritten, contiguous; gdt, gD may be NULL where dt, D are. carry [B,H,P,N]: gradient of the last state on
 * entry (zeros: none), of the start on return. partial: scratch of B*H, for gD. */
TWIN(ssd_backward, const SsdShape *s, const real *x, const real *a, const real *b, const real *c, const real *dt, const wide *D,
     const wide *start, const int32_t *segment, const wide *h, const real *gy, wide *carry, real *gx, real *ga, real *gb, real *gc, real *gdt,
     wide *gD, wide *partial);
#endif
