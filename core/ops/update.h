/* update.h - updates in place and the numbers they need; not differentiable. Lists hold `count` tensors each; parameters
 * are contiguous f32 or f64 tensors. All arguments are checked before anything is written. */
#ifndef CAB_OPS_UPDATE_H
#define CAB_OPS_UPDATE_H
#include "tensor.h"

typedef struct {
  double lr, beta1, beta2, eps, decay;
  int64_t step;  /* from 1 */
  double scale;  /* multiplies each gradient first (clipping, loss scale) */
} CabAdamw;
/* AdamW (arXiv 1711.05101) with p->grad; parameters without a gradient are left as they are. m, v: the moments. */
CabStatus cab_adamw(int count, CabTensor **params, CabTensor **m, CabTensor **v, const CabAdamw *options);
/* average += (1 - keep) (param - average) */
CabStatus cab_ema(int count, CabTensor **averages, CabTensor **params, double keep);
/* L2 norm over all gradients, summed in f64; NaN and Inf propagate. 0 if there is none. */
CabStatus cab_grad_norm(int count, CabTensor **params, double *norm);
/* Rows of logits [R,C] whose label (i32 [R], -1: left out) is among the k largest. Ties go to the lower class. */
CabStatus cab_top_k(CabTensor *logits, CabTensor *labels, int64_t k, int64_t *hits);
#endif
