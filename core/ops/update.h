/* update.h - updates in place and the numbers they need; not differentiable. Lists hold `count` tensors each; parameters
 * are contiguous tensors on one device, all f32 or all f64. All arguments are checked before anything is written. */
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

/* The same for a training step, in launches that can be captured: norm, clipping, AdamW, averages. What differs from step
 * to step is brought to the device by cab_optimizer_set, outside a capture. The bias correction of a parameter counts from
 * its first step with a gradient; its average moves in every step. A norm that is not finite leaves all as it is. */
typedef struct CabOptimizer CabOptimizer;
typedef struct {
  int count;
  CabTensor **params, **m, **v;
  CabTensor **averages;  /* NULL where a parameter has none */
  const int64_t *from;   /* NULL, or: m, v and averages are flat and of the elements of each parameter from here on, which alone are
                            updated; where m is NULL, none. The norm is that of whole gradients */
  const double *decay;   /* of each parameter */
  const int64_t *born;   /* step of its first gradient, 0: none yet */
  double beta1, beta2, eps;
} CabOptimizerSpec;
CabOptimizer *cab_optimizer_new(const CabOptimizerSpec *spec); /* retains the tensors; NULL + error */
void cab_optimizer_free(CabOptimizer *o);                      /* NULL allowed */
/* For the steps from now on. step counts from 1; clip: bound of the norm, 0: off; keep: of the averages. */
CabStatus cab_optimizer_set(CabOptimizer *o, int64_t step, double lr, double clip, double keep);
CabStatus cab_optimizer_step(CabOptimizer *o); /* launches only */
typedef struct {
  double norm;      /* of the last step */
  int64_t skipped;  /* steps without a finite norm since the last report, */
  int64_t step;     /* the first of them, */
  int parameter;    /* and the last parameter whose own gradient had none then, from 1 (0: none alone) */
} CabOptimizerReport;
CabStatus cab_optimizer_report(CabOptimizer *o, CabOptimizerReport *out); /* waits for the device */
const int64_t *cab_optimizer_born(const CabOptimizer *o, int *count);

/* Rows of logits [R,C] whose label (i32 [R], -1: left out) is among the k largest. Ties go to the lower class. */
CabStatus cab_top_k(CabTensor *logits, CabTensor *labels, int64_t k, int64_t *hits);
/* log softmax of each row of logits [R,V] at its target (i32 [R], -1: 0 comes out) in score, f64 [R] on the CPU; greedy, i32 [R]:
 * 1 where the target is the first of the largest logits. */
CabStatus cab_token_scores(CabTensor *logits, CabTensor *targets, CabTensor *score, CabTensor *greedy);
#endif
