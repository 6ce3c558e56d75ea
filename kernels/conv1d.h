/* conv1d.h - causal depthwise convolution over tokens, channel-last, with optional SiLU:
 *   y[b,t,e] = act(bias[e] + sum_{j<W} w[e,j] x[b, t-(W-1)+j, e]);  reverse: t+(W-1)-j instead (anti-causal: what one
 * gets by flipping, convolving, flipping back). x rows have stride ld. W <= 8. With place [B,L] of the tokens in their documents
 * (or NULL; not reverse), taps before a document's first token read zeros too. */
#ifndef CAB_KERNELS_CONV1D_H
#define CAB_KERNELS_CONV1D_H
#include "kernel.h"
TWIN(conv1d_forward, int64_t B, int64_t L, int64_t E, int64_t W, bool silu, bool reverse, const real *x, int64_t ld,
     const int32_t *place, const wide *weight, const wide *bias, real *y);
/* bias, gx, gweight, gbias may be NULL. gx rows have stride gld; add_gx: they are added to. partial: scratch of CONV1D_BLOCKS * E * (W + 1). */
#define CONV1D_BLOCKS 16
TWIN(conv1d_backward, int64_t B, int64_t L, int64_t E, int64_t W, bool silu, bool reverse, const real *x, int64_t ld,
     const int32_t *place, const wide *weight, const wide *bias, const real *gy, real *gx, int64_t gld, bool add_gx, wide *gweight,
     wide *gbias, wide *partial);
#endif
