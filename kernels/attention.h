/* attention.h - softmax(scale Q K^T + causal mask) V per head. q, k, v are rows of a packed projection: element
 * (b,l,h,p) stands at (b*L + l)*ld + h*P + p, so the three thirds of a qkv projection are used in place.
 * With place [B,L] of the tokens in their documents (or NULL; causal), a query sees no key before its document's first.
 * out is [B,L,H*P] contiguous. Blockwise over queries: nothing of L x L is kept unless `map` [B,H,L,L] is given. */
#ifndef CAB_KERNELS_ATTENTION_H
#define CAB_KERNELS_ATTENTION_H
#include "kernel.h"
/* lse [B,H,L]: log-sum-exp of each score row, kept for backward. map may be NULL. */
TWIN(attention_forward, int64_t B, int64_t L, int64_t H, int64_t P, double scale, bool causal, const real *q,
     const real *k, const real *v, int64_t ld, const int32_t *place, real *out, wide *lse, real *map);
/* gq, gk, gv share the row stride gld (NULL skips all of one). gmap [B,H,L,L] may be NULL (gradient at the map). */
TWIN(attention_backward, int64_t B, int64_t L, int64_t H, int64_t P, double scale, bool causal, const real *q,
     const real *k, const real *v, int64_t ld, const int32_t *place, const real *out, const wide *lse, const real *gout,
     const real *gmap, real *gq, real *gk, real *gv, int64_t gld);
#endif
