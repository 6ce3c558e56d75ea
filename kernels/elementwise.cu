/* elementwise.cu - functions of one or two elements, and fills; map.cuh runs them. */
#include "elementwise.h"

#include "map.cuh"

/* ---- functions of one element ------------------------------------------------------------------------------------ */

template <class W> struct Gelu { /* 2k (x + c x^3), k = sqrt(2/pi): (1 + tanh v)/2 = sigmoid(2v) */
  static constexpr W K = W(0.797884560802865355879892), C = W(0.044715);
  static __device__ __forceinline__ W argument(W x) { return x * (x * x * (2 * K * C) + 2 * K); }
};
/* From e^-|x|, which cannot overflow. */
template <class W> __device__ __forceinline__ W logistic(W x) {
  W e = exp(-fabs(x));
  return (x >= 0 ? W(1) : e) / (1 + e);
}
/* e^(-x^2/2) / sqrt(2 pi); what x^2 loses by rounding, times x^2/2 of relative error, is put back. */
template <class W> __device__ __forceinline__ W normal_density(W x) {
  W square = x * x, lost = fma(x, x, -square), bell = exp(W(-0.5) * square);
  return W(0.398942280401432677939946) * (bell - (bell > 0 ? W(0.5) * lost * bell : W(0)));
}

template <UnaryKind KIND, class W> __device__ __forceinline__ W unary_value(W x) {
  switch (KIND) {
    case UNARY_NEG: return -x;
    case UNARY_EXP: return exp(x);
    case UNARY_LOG: return log(x);
    case UNARY_SQRT: return sqrt(x);
    case UNARY_SQUARE: return x * x;
    case UNARY_ABS: return fabs(x);
    case UNARY_RECIPROCAL: return 1 / x;
    case UNARY_RELU: return x < 0 ? W(0) : x; /* NaN stays */
    case UNARY_SIGMOID: return logistic(x);
    case UNARY_TANH: return tanh(x);
    case UNARY_SOFTPLUS: return (x > 0 ? x : W(0)) + log1p(exp(-fabs(x)));
    case UNARY_SILU: return x * logistic(x);
    case UNARY_GELU: return x * normcdf(x);
    case UNARY_GELU_TANH: return x * logistic(Gelu<W>::argument(x));
  }
  return x;
}

template <UnaryKind KIND, class W> __device__ __forceinline__ W unary_slope(W x) {
  W s;
  switch (KIND) {
    case UNARY_NEG: return -1;
    case UNARY_EXP: return exp(x);
    case UNARY_LOG: return 1 / x;
    case UNARY_SQRT: return W(0.5) / sqrt(x);
    case UNARY_SQUARE: return x + x;
    case UNARY_ABS: return x > 0 ? W(1) : x < 0 ? W(-1) : x; /* 0, or NaN */
    case UNARY_RECIPROCAL: return -1 / (x * x);
    case UNARY_RELU: return x > 0 ? W(1) : x <= 0 ? W(0) : x;
    case UNARY_SIGMOID: s = logistic(x); return s * (1 - s);
    case UNARY_TANH: s = tanh(x); return 1 - s * s;
    case UNARY_SOFTPLUS: return logistic(x);
    case UNARY_SILU: s = logistic(x); return s + x * s * (1 - s);
    case UNARY_GELU: return normcdf(x) + x * normal_density(x);
    case UNARY_GELU_TANH:
      s = logistic(Gelu<W>::argument(x));
      return s + x * s * (1 - s) * (2 * Gelu<W>::K + 6 * Gelu<W>::K * Gelu<W>::C * x * x);
  }
  return x;
}

template <UnaryKind KIND> struct Unary : Ordinary {
  template <class W> __device__ void operator()(const W (&x)[1], W (&y)[1]) const { y[0] = unary_value<KIND>(x[0]); }
};
template <UnaryKind KIND> struct UnaryBackward : Ordinary {
  template <class W> __device__ void operator()(const W (&x)[2], W (&y)[1]) const { y[0] = x[1] * unary_slope<KIND>(x[0]); }
};
template <BinaryKind KIND> struct Binary : Ordinary {
  template <class W> __device__ void operator()(const W (&x)[2], W (&y)[1]) const {
    const W a = x[0], b = x[1];
    y[0] = KIND == BINARY_ADD ? a + b : KIND == BINARY_SUB ? a - b : KIND == BINARY_MUL ? a * b : a / b;
  }
};
template <BinaryKind KIND> struct BinaryBackward : Ordinary {
  template <class W> __device__ void operator()(const W (&x)[3], W (&y)[2]) const {
    const W a = x[0], b = x[1], g = x[2];
    y[0] = KIND == BINARY_MUL ? g * b : KIND == BINARY_DIV ? g / b : g;
    y[1] = KIND == BINARY_ADD ? g : KIND == BINARY_SUB ? -g : KIND == BINARY_MUL ? g * a : -g * a / (b * b);
  }
};
template <class W> struct Affine : Ordinary {
  W scale, shift;
  __device__ void operator()(const W (&x)[1], W (&y)[1]) const { y[0] = scale * x[0] + shift; }
};
template <class W> struct Axpy : Ordinary {
  W alpha;
  __device__ void operator()(const W (&x)[2], W (&y)[1]) const { y[0] = x[1] + alpha * x[0]; }
};
template <class W> struct Constant : Ordinary {
  W value;
  __device__ void operator()(const W (&)[1], W (&y)[1]) const { y[0] = value; }
};

/* ---- twins ------------------------------------------------------------------------------------------------------- */

#define UNARY_KINDS(CASE)                                                                                      \
  CASE(UNARY_NEG) CASE(UNARY_EXP) CASE(UNARY_LOG) CASE(UNARY_SQRT) CASE(UNARY_SQUARE) CASE(UNARY_ABS)          \
  CASE(UNARY_RECIPROCAL) CASE(UNARY_RELU) CASE(UNARY_SIGMOID) CASE(UNARY_TANH) CASE(UNARY_SOFTPLUS)            \
  CASE(UNARY_SILU) CASE(UNARY_GELU) CASE(UNARY_GELU_TANH)
#define BINARY_KINDS(CASE) CASE(BINARY_ADD) CASE(BINARY_SUB) CASE(BINARY_MUL) CASE(BINARY_DIV)

template <class T> static void unary(CabStream *s, UnaryKind kind, int64_t n, const void *x, void *y) {
  const Operands<T, 1, 1> p = {{(const T *)x}, {(T *)y}};
  switch (kind) {
#define CASE(k) case k: map_flat(s, n, p, Unary<k>()); break;
    UNARY_KINDS(CASE)
#undef CASE
  }
}

template <class T>
static void unary_backward(CabStream *s, UnaryKind kind, int64_t n, const void *x, const void *gy, void *gx) {
  const Operands<T, 2, 1> p = {{(const T *)x, (const T *)gy}, {(T *)gx}};
  switch (kind) {
#define CASE(k) case k: map_flat(s, n, p, UnaryBackward<k>()); break;
    UNARY_KINDS(CASE)
#undef CASE
  }
}

/* Contiguous strides for operand o. */
template <int O> static void contiguous(Walk<O> &w, int o) {
  int64_t step = 1;
  for (int d = w.rank - 1; d >= 0; step *= w.shape[d--]) w.stride[o][d] = step;
}

template <class T>
static void binary(CabStream *s, BinaryKind kind, int rank, const int64_t *shape, const void *a, const int64_t *stride_a,
                   const void *b, const int64_t *stride_b, void *y) {
  const Operands<T, 2, 1> p = {{(const T *)a, (const T *)b}, {(T *)y}};
  Walk<3> w = {};
  w.rank = rank;
  for (int d = 0; d < rank; d++) w.shape[d] = shape[d], w.stride[1][d] = stride_a[d], w.stride[2][d] = stride_b[d];
  contiguous(w, 0);
  switch (kind) {
#define CASE(k) case k: map(s, w, p, Binary<k>()); break;
    BINARY_KINDS(CASE)
#undef CASE
  }
}

/* An operand that the wanted gradients do not need is not read. */
template <class T>
static void binary_backward(CabStream *s, BinaryKind kind, int rank, const int64_t *shape, const void *a,
                            const int64_t *stride_a, const void *b, const int64_t *stride_b, const void *gy, void *ga,
                            void *gb) {
  const bool product = kind == BINARY_MUL || kind == BINARY_DIV, needs_a = product && gb,
             needs_b = kind == BINARY_MUL ? ga != NULL : kind == BINARY_DIV;
  const Operands<T, 3, 2> p = {{(const T *)(needs_a ? a : NULL), (const T *)(needs_b ? b : NULL), (const T *)gy},
                               {(T *)ga, (T *)gb}};
  if (!ga && !gb) return;
  Walk<4> w = {};
  w.rank = rank;
  for (int d = 0; d < rank; d++) {
    w.shape[d] = shape[d];
    w.stride[1][d] = needs_a ? stride_a[d] : 0;
    w.stride[2][d] = needs_b ? stride_b[d] : 0;
  }
  contiguous(w, 0), contiguous(w, 3);
  if (!needs_a) contiguous(w, 1);
  if (!needs_b) contiguous(w, 2);
  switch (kind) {
#define CASE(k) case k: map(s, w, p, BinaryBackward<k>()); break;
    BINARY_KINDS(CASE)
#undef CASE
  }
}

template <class T> static void affine(CabStream *s, int64_t n, double scale, double shift, const void *x, void *y) {
  Affine<Wide<T>> f;
  f.scale = (Wide<T>)scale, f.shift = (Wide<T>)shift;
  map_flat(s, n, Operands<T, 1, 1>{{(const T *)x}, {(T *)y}}, f);
}
template <class T> static void axpy(CabStream *s, int64_t n, double alpha, const void *x, void *y) {
  Axpy<Wide<T>> f;
  f.alpha = (Wide<T>)alpha;
  map_flat(s, n, Operands<T, 2, 1>{{(const T *)x, (const T *)y}, {(T *)y}}, f);
}
template <class T> static void fill(CabStream *s, int64_t n, double value, void *y) {
  Constant<Wide<T>> f;
  f.value = (Wide<T>)value;
  map_flat(s, n, Operands<T, 1, 1>{{NULL}, {(T *)y}}, f);
}

template <class T>
static void sum_middle_backward(CabStream *s, int64_t outer, int64_t middle, int64_t inner, double scale, const void *gy,
                                void *gx) {
  Affine<Wide<T>> f;
  f.scale = (Wide<T>)scale, f.shift = 0;
  Walk<2> w = {3, {outer, middle, inner}, {{middle * inner, inner, 1}, {inner, 0, 1}}};
  map(s, w, Operands<T, 1, 1>{{(const T *)gy}, {(T *)gx}}, f);
}

EXPORT(unary)
EXPORT(unary_backward)
EXPORT(binary)
EXPORT(binary_backward)
EXPORT(affine)
EXPORT(axpy)
EXPORT(fill)
EXPORT(sum_middle_backward)
