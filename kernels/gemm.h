/* gemm.h - C = alpha op(A) op(B) + beta C, row-major, leading dimensions in elements; `batch` products at fixed
 * strides (a stride of 0 shares the matrix): what matmul runs. The CPU twins are OpenBLAS, for linear layers product.h.
 * k = 0 gives beta C. */
#ifndef CAB_KERNELS_GEMM_H
#define CAB_KERNELS_GEMM_H
#include "kernel.h"
TWIN(gemm, bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, double alpha, const real *a, int64_t lda,
     const real *b, int64_t ldb, double beta, real *c, int64_t ldc);
/* The same with a wide C. */
TWIN(gemm_wide, bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, double alpha, const real *a, int64_t lda,
     const real *b, int64_t ldb, double beta, wide *c, int64_t ldc);
TWIN(gemm_batched, bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, double alpha, const real *a,
     int64_t lda, int64_t stride_a, const real *b, int64_t ldb, int64_t stride_b, double beta, real *c, int64_t ldc,
     int64_t stride_c, int64_t batch);
/* y[rows,outs] = x w^T + b; x has row stride ldx, w [outs,ins], b may be NULL. */
TWIN(linear_forward, int64_t rows, int64_t outs, int64_t ins, const real *x, int64_t ldx, const wide *w, const wide *b, real *y);
/* gx[rows,ins] = gy w (add_gx: += ), gw = gy^T x;  gb = sum of the rows of gy. Any may be NULL. */
TWIN(linear_backward, int64_t rows, int64_t outs, int64_t ins, const real *gy, const real *x, int64_t ldx, const wide *w, real *gx,
     bool add_gx, wide *gw, wide *gb);
/* out[j] = sum_r x[r,j], x with row stride ld. Fixed order, whatever the number of threads. */
TWIN(column_sum, int64_t rows, int64_t n, const real *x, int64_t ld, wide *out);
#endif
