/* optim.h - AdamW with moving averages over many tensors at once, the norm of their gradients, and counts.
 *
 * What changes from step to step stands in `now`, doubles in the memory of the tensors, so that a step's launches are alike
 * and can be captured once. The list of slices is host memory, read during the call. */
#ifndef CAB_KERNELS_OPTIM_H
#define CAB_KERNELS_OPTIM_H
#include <math.h>

#include "kernel.h"

enum {
  /* written by grad_norm */
  NOW_NORM,
  NOW_SCALE,     /* multiplies the gradients: 1, or clip / norm where that is less. NaN: the norm is not finite, and the
                    update leaves everything as it is */
  NOW_SKIPPED,   /* counts those steps, */
  NOW_BAD_STEP,  /* the first of them (while SKIPPED was 0) */
  NOW_BAD_SLICE, /* and its last slice whose squares do not have a finite sum, from 1; 0: only the sum of all has none */
  /* set by the caller */
  NOW_STEP,
  NOW_CLIP,      /* 0: off */
  NOW_LR,
  NOW_BETA1,
  NOW_BETA2,
  NOW_EPS,
  NOW_KEEP,
  NOW_AGES,      /* for each age: lr / (1 - beta1^t), 1 / (1 - beta2^t), t the steps since its parameters began */
};
typedef struct {
  int64_t n;
  const real *g; /* NULL: w, m and v are left as they are */
  real *w, *m, *v;
  real *average; /* NULL: none */
  double decay;
  int64_t age;   /* index into NOW_AGES */
} UpdateSlice;

/* now[NORM, SCALE, SKIPPED, BAD_*]: the L2 norm over all g, squares summed in f64 in fixed order, and what follows. */
TWIN(grad_norm, int64_t count, const UpdateSlice *list, double *now);
/* AdamW (arXiv 1711.05101) and the moving averages, by now[]; g counts times SCALE:
 *   m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2; w -= lr (m/(1-b1^t) / (sqrt(v/(1-b2^t)) + eps) + decay w)
 *   average += (1 - keep) (w - average) */
TWIN(adamw_average, int64_t count, const UpdateSlice *list, const double *now);
/* Number of non-finite values. On the CPU only, as is range: people look at values there. */
TWIN(count_bad, int64_t n, const real *x, int64_t *out);
/* out = {min, max, sum, sum of squares} of finite values; 0 elements: {inf,-inf,0,0}. */
TWIN(range, int64_t n, const real *x, double out[4]);

#ifdef __CUDACC__
#define OPTIM_FN static inline __host__ __device__
#else
#define OPTIM_FN static inline
#endif
/* What follows from the norm; bad: as BAD_SLICE. */
OPTIM_FN void optim_note_norm(double *now, double norm, double bad) {
  const double clip = now[NOW_CLIP], least = norm > 1e-30 ? norm : 1e-30;
  now[NOW_NORM] = norm;
  now[NOW_SCALE] = norm - norm != 0 ? norm - norm : clip > 0 && clip < least ? clip / least : 1; /* x - x is NaN unless finite */
  if (norm - norm == 0) return;
  if (now[NOW_SKIPPED]++ != 0) return;
  now[NOW_BAD_STEP] = now[NOW_STEP];
  now[NOW_BAD_SLICE] = bad;
}
#endif
