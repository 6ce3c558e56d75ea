/* elementwise.h - maps over contiguous arrays, and over strided ones where shapes broadcast. */
#ifndef CAB_KERNELS_ELEMENTWISE_H
#define CAB_KERNELS_ELEMENTWISE_H
#include "kernel.h"
typedef enum {
  UNARY_NEG, UNARY_EXP, UNARY_LOG, UNARY_SQRT, UNARY_SQUARE, UNARY_ABS, UNARY_RECIPROCAL, UNARY_RELU,
  UNARY_SIGMOID, UNARY_TANH, UNARY_SOFTPLUS, UNARY_SILU,
  UNARY_GELU,      /* x Phi(x), erf form */
  UNARY_GELU_TANH, /* 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) */
} UnaryKind;
typedef enum { BINARY_ADD, BINARY_SUB, BINARY_MUL, BINARY_DIV } BinaryKind;

/* y[i] = f(x[i]); f32 within 2e-6 relative of libm for exp, silu, gelu, ... */
TWIN(unary, UnaryKind kind, int64_t n, const real *x, real *y);
/* gx[i] = gy[i] f'(x[i]); always from the input x. relu'(0) = 0, abs'(0) = 0. */
TWIN(unary_backward, UnaryKind kind, int64_t n, const real *x, const real *gy, real *gx);
/* y[contiguous shape] = a (op) b, strides in elements, 0 where broadcast; rank <= 8; fast when both are contiguous
 * and when b is broadcast over leading or trailing dims. */
TWIN(binary, BinaryKind kind, int rank, const int64_t *shape, const real *a, const int64_t *stride_a, const real *b,
     const int64_t *stride_b, real *y);
/* ga, gb (contiguous, full broadcast shape; NULL to skip) of y = a (op) b. */
TWIN(binary_backward, BinaryKind kind, int rank, const int64_t *shape, const real *a, const int64_t *stride_a,
     const real *b, const int64_t *stride_b, const real *gy, real *ga, real *gb);
/* y = scale x + shift, contiguous. */
TWIN(affine, int64_t n, double scale, double shift, const real *x, real *y);
/* y += alpha x, contiguous. */
TWIN(axpy, int64_t n, double alpha, const real *x, real *y);
TWIN(fill, int64_t n, double value, real *y);
/* dst = src (accumulate: dst += src) elementwise over `shape` with any strides (0 in src broadcasts; negative allowed). */
TWIN(copy_strided, int rank, const int64_t *shape, const real *src, const int64_t *stride_src, real *dst,
     const int64_t *stride_dst, bool accumulate);
/* y[outer,inner] = sum over middle of x[outer,middle,inner] times scale. Contiguous, fixed order. */
TWIN(sum_middle, int64_t outer, int64_t middle, int64_t inner, double scale, const real *x, real *y);
/* gx[outer,middle,inner] = scale gy[outer,inner]. */
TWIN(sum_middle_backward, int64_t outer, int64_t middle, int64_t inner, double scale, const real *gy, real *gx);
#endif
