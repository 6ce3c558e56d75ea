/* bridge.h - the Attention Bridge (arXiv 2510.19266) of one or two taps: an MLP lifts a student's tap x onto a teacher's
 * tap under a kernel map, and the mean squared error is all that leaves; neither prediction nor target is stored.
 *   h = silu(x w1^T + b1);  p = h w2^T + b2;  mse = mean((p - map(target))^2)
 * x [B,L,N] has rows of stride ldx, target [B,T,D] rows of stride ld_target, in the teacher's token order: its class token
 * first. Student token l looks at teacher token bridge_token(s, l). All sizes but B and L are at least 1. */
#ifndef CAB_KERNELS_BRIDGE_H
#define CAB_KERNELS_BRIDGE_H
#include "kernel.h"
#define BRIDGE_TAPS 2
typedef enum { BRIDGE_NONE, BRIDGE_RELU, BRIDGE_EXP, BRIDGE_STANDARD /* (target - mean) / deviation */ } BridgeMap;
typedef struct {
  int64_t B, L, T, N, H, D;
  int64_t first, second; /* student tokens that look at the teacher's class token, L: none; T = L + 1 - their number */
  int taps;
  BridgeMap map;
} BridgeShape;
typedef struct {
  const real *x;
  int64_t ldx;
  const wide *w1, *b1, *w2, *b2; /* [H,N] [H] [D,H] [D] */
  const real *target;
  int64_t ld_target;
  const wide *mean, *deviation;  /* [D], of BRIDGE_STANDARD */
  real *gx;                      /* [B,L,N] contiguous, or NULL */
  wide *gw1, *gb1, *gw2, *gb2;   /* all or none */
} BridgeTap;

#ifdef __CUDACC__
__host__ __device__
#endif
static inline int64_t bridge_token(const BridgeShape *s, int64_t l) {
  return l == s->first || l == s->second ? 0 : l + 1 - (l > s->first) - (l > s->second);
}

/* On the CPU the rows are cut into slabs of about 400 with sums of their own, a slab into blocks of at most BRIDGE_ROWS, which
 * stay in the cache. Both depend on the sizes alone; the slabs are even in number, so that 2 threads get alike. */
enum { BRIDGE_ROWS = 256, BRIDGE_SLABS = 16 };
static inline int64_t bridge_slabs(const BridgeShape *s) {
  int64_t slabs = (s->B * s->L / 400 + 1) / 2 * 2;
  return slabs < 1 ? 1 : slabs > BRIDGE_SLABS ? BRIDGE_SLABS : slabs;
}
static inline int64_t bridge_parameters(const BridgeShape *s) { return s->H * s->N + s->H + s->D * s->H + s->D; } /* of one MLP */
static inline int64_t bridge_scratch(const BridgeShape *s) { /* reals; of the CPU twin, the CUDA twin has its own */
  return bridge_slabs(s) * (BRIDGE_ROWS * (2 * s->H + s->D) + s->D + bridge_parameters(s) + 1);
}

/* mse [taps], y = their sum; gradients of y where a tap asks for them: they are linear in the gradient that y will get,
 * so they are taken while h and p are at hand. */
TWIN(bridge_forward, const BridgeShape *s, const BridgeTap *tap, wide *mse, wide *y, real *scratch);
/* Scales what bridge_forward left to what the gradients gy of y and gmse [taps] of mse ask for (NULL: none arrived):
 * to[i].gx = (gy + gmse[i]) tap[i].gx, and so on for the parameters. NULL in `to`: not wanted. */
TWIN(bridge_backward, const BridgeShape *s, const BridgeTap *tap, const wide *gy, const wide *gmse, const BridgeTap *to);
#endif
