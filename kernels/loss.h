/* loss.h - scalar losses; `out` is one element. Rows are summed in fixed order. partial: scratch of LOSS_BLOCKS. */
#ifndef CAB_KERNELS_LOSS_H
#define CAB_KERNELS_LOSS_H
#include "kernel.h"
#define LOSS_BLOCKS 64
/* Mean over rows of -sum_c target[c] log softmax(x)[c], target = (1-smoothing) onehot(label) + smoothing/n or, with
 * `target` given, that row itself (soft targets). labels of -1 are ignored (rows not counted). lse [rows] is kept. */
TWIN(cross_entropy_forward, int64_t rows, int64_t n, double smoothing, const real *x, const int32_t *labels,
     const wide *target, wide *out, wide *lse, wide *partial);
/* gx = gout/rows_counted * (sum(target) softmax(x) - target). */
TWIN(cross_entropy_backward, int64_t rows, int64_t n, double smoothing, const real *x, const int32_t *labels,
     const wide *target, const wide *lse, const wide *gout, real *gx);
/* T^2/rows * sum_rows sum_c p (log p - log q), p = softmax(teacher/T), q = softmax(student/T). */
TWIN(kl_forward, int64_t rows, int64_t n, double temperature, const real *student, const real *teacher, wide *out,
     wide *partial);
/* gstudent = gout T/rows (q - p); gteacher = gout T/rows p (log p - log q - KL_row). Either may be NULL. */
TWIN(kl_backward, int64_t rows, int64_t n, double temperature, const real *student, const real *teacher,
     const wide *gout, real *gstudent, real *gteacher);
/* mean((a-b)^2); ga = 2 gout (a-b)/n, gb = -ga; either may be NULL. */
TWIN(mse_forward, int64_t n, const real *a, const real *b, wide *out, wide *partial);
TWIN(mse_backward, int64_t n, const real *a, const real *b, const wide *gout, real *ga, real *gb);
/* mean over rows of 1 - a.b / max(|a||b|, eps). */
TWIN(cosine_forward, int64_t rows, int64_t n, double eps, const real *a, const real *b, wide *out, wide *partial);
TWIN(cosine_backward, int64_t rows, int64_t n, double eps, const real *a, const real *b, const wide *gout, real *ga,
     real *gb);
/* mean over `rows` matrices of the Frobenius norm |a-b|_F; the gradient at a = b is 0. */
TWIN(frobenius_forward, int64_t rows, int64_t n, const real *a, const real *b, wide *out, wide *partial);
TWIN(frobenius_backward, int64_t rows, int64_t n, const real *a, const real *b, const wide *gout, real *ga, real *gb);
/* y = (x - mean) / deviation per feature (the "standard" map of map_queries and map_keys); x [rows,n]. Backward: gx = gy / deviation. */
TWIN(standardise_forward, int64_t rows, int64_t n, const real *x, const wide *mean, const wide *deviation, real *y);
TWIN(standardise_backward, int64_t rows, int64_t n, const wide *deviation, const real *gy, real *gx);
#endif
