/* embed.h - token embedding and image patches. */
#ifndef CAB_KERNELS_EMBED_H
#define CAB_KERNELS_EMBED_H
#include "kernel.h"
/* y[i,:] = w[ids[i],:]; ids are checked by the caller where it can; elsewhere (a captured step)
 * one outside [0, vocab) gives a row of NaN and no gradient. */
TWIN(embedding_forward, int64_t count, int64_t dim, int64_t vocab, const int32_t *ids, const wide *w, real *y);
/* gw[V,dim] (overwritten) = sum over i with ids[i] = v of gy[i,:], in index order. */
TWIN(embedding_backward, int64_t count, int64_t dim, int64_t vocab, const int32_t *ids, const real *gy, wide *gw);
/* patch_embed: rows of patches for a convolution as a GEMM: image x[B,C,H,W] -> col[B*th*tw, C*P*P], th = (H-P)/stride + 1,
 * columns in the order (c, y, x) of a PyTorch Conv2d weight [D,C,P,P]. */
TWIN(patch_gather, int64_t B, int64_t C, int64_t H, int64_t W, int64_t P, int64_t stride, const real *x, real *col);
/* gx (overwritten) = sum of the patches that cover each pixel. */
TWIN(patch_scatter, int64_t B, int64_t C, int64_t H, int64_t W, int64_t P, int64_t stride, const real *col, real *gx);
#endif
