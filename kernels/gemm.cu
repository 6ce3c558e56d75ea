/* gemm.cu - matrix products by cuBLASLt, the bias that goes with them, and row sums; products with a small side are in
 * narrow.cuh.
 *
 * cuBLAS is column-major: row-major C = op(A) op(B) is its C^T = op(B)^T op(A)^T, the same memory with the operands
 * swapped. Only split-K through the workspace, in the compute type, is admitted: no sums in C's own type. */
#include "gemm.h"

#include <stdlib.h>
#include <string.h>

#include "narrow.cuh"

/* ---- plans ---------------------------------------------------------------------------------- */

/* Products as the twins state them: row-major C[m,n] = op(A)[m,k] op(B)[k,n], `batch` of them. All that a plan depends on;
 * hashed and compared as bytes, so it is born as zeros, padding included. */
struct Problem {
  const struct CabDevice *device;
  int64_t m, n, k, lda, ldb, ldc, stride_a, stride_b, stride_c, batch;
  int32_t trans_a, trans_b, in, out, compute, bias, align_a, align_b, align_c;
};

/* Asking cuBLASLt for an algorithm takes far longer than launching it, so the answers are kept, in place: a slot is
 * found by linear probing, and a full neighbourhood gives up its first slot. One thread drives the devices. */
struct Plan {
  Problem problem;
  bool used, found; /* found: cuBLASLt knows an algorithm */
  cublasLtMatmulDescOpaque_t product;
  cublasLtMatrixLayoutOpaque_t a, b, c;
  cublasLtMatmulAlgo_t algo;
};
enum { PLANS = 1024, PROBES = 8 };
static Plan plans[PLANS];

static bool succeeded(CabStream *s, const char *call, cublasStatus_t status) {
  if (status != CUBLAS_STATUS_SUCCESS) s->failed = 1, s->failed_call = call, s->failed_code = (int)status;
  return status == CUBLAS_STATUS_SUCCESS;
}

template <class T> static cublasStatus_t set(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t name, T value) {
  return cublasLtMatmulDescSetAttribute(d, name, &value, sizeof value);
}
template <class T>
static cublasStatus_t set(cublasLtMatmulPreference_t p, cublasLtMatmulPreferenceAttributes_t name, T value) {
  return cublasLtMatmulPreferenceSetAttribute(p, name, &value, sizeof value);
}

/* A row-major matrix rows x columns is a column-major one of columns x rows. */
static cublasStatus_t set_layout(cublasLtMatrixLayout_t layout, int32_t type, int64_t rows, int64_t columns, int64_t ld,
                                 int64_t stride, int64_t batch) {
  int32_t count = (int32_t)batch;
  cublasStatus_t status = cublasLtMatrixLayoutInit(layout, (cudaDataType)type, (uint64_t)columns, (uint64_t)rows, ld);
  if (status || batch == 1) return status;
  status = cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count);
  if (status) return status;
  return cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride, sizeof stride);
}

static cublasStatus_t describe(Plan *plan, const void *bias) {
  const Problem *p = &plan->problem;
  cudaDataType scale = p->compute == CUBLAS_COMPUTE_64F ? CUDA_R_64F : CUDA_R_32F;
  cublasStatus_t status = cublasLtMatmulDescInit(&plan->product, (cublasComputeType_t)p->compute, scale);
  if (!status) status = set(&plan->product, CUBLASLT_MATMUL_DESC_TRANSA, (int32_t)(p->trans_b ? CUBLAS_OP_T : CUBLAS_OP_N));
  if (!status) status = set(&plan->product, CUBLASLT_MATMUL_DESC_TRANSB, (int32_t)(p->trans_a ? CUBLAS_OP_T : CUBLAS_OP_N));
  if (!status && bias) status = set(&plan->product, CUBLASLT_MATMUL_DESC_EPILOGUE, (uint32_t)CUBLASLT_EPILOGUE_BIAS);
  if (!status && bias) status = set(&plan->product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
  if (!status)
    status = set_layout(&plan->a, p->in, p->trans_a ? p->k : p->m, p->trans_a ? p->m : p->k, p->lda, p->stride_a, p->batch);
  if (!status)
    status = set_layout(&plan->b, p->in, p->trans_b ? p->n : p->k, p->trans_b ? p->k : p->n, p->ldb, p->stride_b, p->batch);
  if (!status) status = set_layout(&plan->c, p->out, p->m, p->n, p->ldc, p->stride_c, p->batch);
  return status;
}

/* The first algorithm of the heuristic: timing them here would make runs differ. */
static void choose(CabStream *s, Plan *plan) {
  const Problem *p = &plan->problem;
  cublasLtMatmulPreferenceOpaque_t wish;
  cublasLtMatmulHeuristicResult_t answer;
  int answers = 0;
  cublasStatus_t status = cublasLtMatmulPreferenceInit(&wish);
  if (!status) status = set(&wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (uint64_t)s->workspace_bytes);
  if (!status)
    status = set(&wish, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, (uint32_t)CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);
  if (!status) status = set(&wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, (uint32_t)p->align_b);
  if (!status) status = set(&wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, (uint32_t)p->align_a);
  if (!status) status = set(&wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, (uint32_t)p->align_c);
  if (!status) status = set(&wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, (uint32_t)p->align_c);
  if (!status)
    status = cublasLtMatmulAlgoGetHeuristic(s->lt, &plan->product, &plan->b, &plan->a, &plan->c, &plan->c, &wish, 1, &answer,
                                            &answers);
  plan->found = !status && answers > 0 && !answer.state;
  if (plan->found) plan->algo = answer.algo;
}

static Plan *plan_for(CabStream *s, const Problem *problem, const void *bias) {
  uint64_t hash = 0xcbf29ce484222325u; /* FNV-1a */
  for (size_t i = 0; i < sizeof *problem; i++) hash = (hash ^ ((const unsigned char *)problem)[i]) * 0x100000001b3u;
  size_t home = (size_t)(hash % PLANS);
  Plan *plan = &plans[home];
  for (size_t i = 0; i < PROBES; i++) {
    Plan *slot = &plans[(home + i) % PLANS];
    if (slot->used && !memcmp(&slot->problem, problem, sizeof *problem)) return slot;
    if (slot->used) continue;
    plan = slot;
    break;
  }
  memcpy(&plan->problem, problem, sizeof *problem);
  plan->used = true;
  plan->found = false;
  if (!describe(plan, bias)) choose(s, plan);
  return plan;
}

/* ---- products ------------------------------------------------------------------------------- */

template <class T> struct TypeOf;
template <> struct TypeOf<float> { enum { value = CUDA_R_32F }; };
template <> struct TypeOf<double> { enum { value = CUDA_R_64F }; };
template <> struct TypeOf<bf16> { enum { value = CUDA_R_16BF }; };

template <class In, class Out>
static Problem problem_of(const CabStream *s, bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, int64_t lda,
                          int64_t ldb, int64_t ldc) {
  Problem p;
  memset(&p, 0, sizeof p);
  p.device = s->device;
  p.trans_a = trans_a, p.trans_b = trans_b;
  p.m = m, p.n = n, p.k = k, p.lda = lda, p.ldb = ldb, p.ldc = ldc, p.batch = 1;
  p.in = TypeOf<In>::value, p.out = TypeOf<Out>::value;
  bool tf32 = p.in == CUDA_R_32F && s->precision != PRECISION_F32;
  p.compute = p.in == CUDA_R_64F ? CUBLAS_COMPUTE_64F : tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
  return p;
}

/* Bytes, up to the 256 that cuBLASLt would assume. */
static int32_t alignment(const void *pointer) {
  uintptr_t bits = (uintptr_t)pointer | 256;
  return (int32_t)(bits & -bits);
}

/* For compute-sanitizer's initcheck, with CAB_INITCHECK in the environment: zeros where a product is about to write. The tool does not
 * see what cuBLAS stores in bulk, and would report every read of it; that products write all of C is tested in tests/cuda_spec.lua. */
static void clear_for_initcheck(CabStream *s, const Problem &p, void *c) {
  static const bool asked = getenv("CAB_INITCHECK") != NULL;
  const size_t size = p.out == CUDA_R_64F ? 8 : p.out == CUDA_R_16BF ? 2 : 4;
  for (int64_t i = 0; asked && i < (p.stride_c ? p.batch : 1); i++)
    cudaMemset2DAsync((char *)c + (size_t)(i * p.stride_c) * size, (size_t)p.ldc * size, 0, (size_t)p.n * size, (size_t)p.m, s->stream);
}

/* False: cuBLASLt has no algorithm for this, nothing was launched. */
static bool multiply_lt(CabStream *s, Problem p, const void *alpha, const void *a, const void *b, const void *beta, void *c,
                        const void *bias) {
  p.bias = bias != NULL;
  p.align_a = alignment(a), p.align_b = alignment(b), p.align_c = alignment(c);
  Plan *plan = plan_for(s, &p, bias);
  if (!plan->found) return false;
  if (bias && !succeeded(s, "cublasLtMatmulDescSetAttribute", set(&plan->product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias)))
    return true;
  succeeded(s, "cublasLtMatmul",
            cublasLtMatmul(s->lt, &plan->product, alpha, b, &plan->b, a, &plan->a, beta, c, &plan->c, c, &plan->c, &plan->algo,
                           s->workspace, s->workspace_bytes, s->stream));
  return true;
}

static void multiply(CabStream *s, const Problem &p, double alpha, const void *a, const void *b, double beta, void *c) {
  float narrow_alpha = (float)alpha, narrow_beta = (float)beta;
  bool in_double = p.compute == CUBLAS_COMPUTE_64F;
  const void *pa = in_double ? (const void *)&alpha : &narrow_alpha, *pb = in_double ? (const void *)&beta : &narrow_beta;
  if (multiply_lt(s, p, pa, a, b, pb, c, NULL)) return;
  succeeded(s, "cublasGemmStridedBatchedEx",
            cublasGemmStridedBatchedEx(s->blas, p.trans_b ? CUBLAS_OP_T : CUBLAS_OP_N, p.trans_a ? CUBLAS_OP_T : CUBLAS_OP_N,
                                       (int)p.n, (int)p.m, (int)p.k, pa, b, (cudaDataType)p.in, (int)p.ldb, p.stride_b, a,
                                       (cudaDataType)p.in, (int)p.lda, p.stride_a, pb, c, (cudaDataType)p.out, (int)p.ldc,
                                       p.stride_c, (int)p.batch, (cublasComputeType_t)p.compute, CUBLAS_GEMM_DEFAULT));
}

enum { THREADS = 256 };

/* C = beta C for a batch; beta = 0 overwrites, so that an unset C (NaN) does not survive. */
template <class T>
static __global__ void __launch_bounds__(THREADS)
    scale_matrices(int64_t m, int64_t n, int64_t batch, Wide<T> beta, T *c, int64_t ldc, int64_t stride) {
  for (int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x; i < batch * m * n; i += gridDim.x * (int64_t)THREADS) {
    T *at = c + i / n / m * stride + i / n % m * ldc + i % n;
    *at = narrow<T>(beta == 0 ? Wide<T>(0) : beta * wide_of(*at));
  }
}

/* All products of p, in order where they share C. A grid has at most 65535 blocks along a batch. */
template <class In, class Out>
static void products(CabStream *s, Problem p, double alpha, const In *a, const In *b, double beta, Out *c) {
  const int64_t batch = p.batch, most = p.stride_c ? 32768 : 1;
  if (p.m <= 0 || p.n <= 0) return;
  for (int64_t i = 0; i < batch; i += most) {
    p.batch = batch - i < most ? batch - i : most;
    Out *to = c + i * p.stride_c;
    if (p.k) {
      if (beta == 0) clear_for_initcheck(s, p, to);
      multiply(s, p, alpha, a + i * p.stride_a, b + i * p.stride_b, beta, to);
      continue;
    }
    int64_t blocks = (p.batch * p.m * p.n + THREADS - 1) / THREADS;
    scale_matrices<Out><<<blocks < 4096 ? (unsigned)blocks : 4096, THREADS, 0, s->stream>>>(p.m, p.n, p.batch, (Wide<Out>)beta,
                                                                                           to, p.ldc, p.stride_c);
  }
}

template <class T>
static void gemm(CabStream *s, bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, double alpha, const void *a,
                 int64_t lda, const void *b, int64_t ldb, double beta, void *c, int64_t ldc) {
  products(s, problem_of<T, T>(s, trans_a, trans_b, m, n, k, lda, ldb, ldc), alpha, (const T *)a, (const T *)b, beta, (T *)c);
}

template <class T>
static void gemm_wide(CabStream *s, bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, double alpha, const void *a,
                      int64_t lda, const void *b, int64_t ldb, double beta, void *c, int64_t ldc) {
  products(s, problem_of<T, Wide<T>>(s, trans_a, trans_b, m, n, k, lda, ldb, ldc), alpha, (const T *)a, (const T *)b, beta, (Wide<T> *)c);
}

template <class T>
static void gemm_batched(CabStream *s, bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, double alpha,
                         const void *a, int64_t lda, int64_t stride_a, const void *b, int64_t ldb, int64_t stride_b,
                         double beta, void *c, int64_t ldc, int64_t stride_c, int64_t batch) {
  Problem p = problem_of<T, T>(s, trans_a, trans_b, m, n, k, lda, ldb, ldc);
  p.stride_a = stride_a, p.stride_b = stride_b, p.stride_c = stride_c, p.batch = batch;
  products(s, p, alpha, (const T *)a, (const T *)b, beta, (T *)c);
}

/* ---- parameters in the element type --------------------------------------------------------- */

/* Elements i .. i+7 of n; `to` is on a multiple of 16 bytes. */
static __device__ __forceinline__ void cast8(const float *from, bf16 *to, int64_t n, int64_t i) {
  if (i + 8 <= n && ((uintptr_t)from & 15) == 0) {
    float4 u = ((const float4 *)(from + i))[0], v = ((const float4 *)(from + i))[1];
    alignas(16) __nv_bfloat162 pairs[4] = {__floats2bfloat162_rn(u.x, u.y), __floats2bfloat162_rn(u.z, u.w),
                                           __floats2bfloat162_rn(v.x, v.y), __floats2bfloat162_rn(v.z, v.w)};
    *(uint4 *)(to + i) = *(const uint4 *)pairs;
  } else {
    for (int64_t j = i; j < n && j < i + 8; j++) to[j] = __float2bfloat16(from[j]);
  }
}

/* A thread casts 8 elements of w or, beyond its `chunks` chunks, of b. */
static __global__ void __launch_bounds__(THREADS)
    cast_parameters(const float *w, int64_t n, int64_t chunks, const float *b, int64_t m, bf16 *to) {
  int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x;
  if (i < chunks) cast8(w, to, n, 8 * i);
  else cast8(b, to + 8 * chunks, m, 8 * (i - chunks));
}

/* w [n] and b [m] of a linear layer: themselves, or for bf16 copies in scratch. */
namespace {
template <class T> struct Parameters {
  const T *w, *b;
  Parameters(CabStream *, const void *weight, int64_t, const void *bias, int64_t) : w((const T *)weight), b((const T *)bias) {}
  bool ready() const { return true; }
};
template <> struct Parameters<bf16> {
  int64_t chunks, all; /* of 8 elements */
  Scratch copy;
  const bf16 *w, *b;
  Parameters(CabStream *s, const void *weight, int64_t n, const void *bias, int64_t m)
      : chunks((n + 7) / 8), all(chunks + (m + 7) / 8), copy(s, (size_t)all * 8 * sizeof(bf16)), w((const bf16 *)copy.data),
        b(bias && w ? w + 8 * chunks : NULL) {
    if (w)
      cast_parameters<<<blocks_for(all, THREADS), THREADS, 0, s->stream>>>((const float *)weight, n, chunks, (const float *)bias,
                                                                         m, (bf16 *)copy.data);
  }
  bool ready() const { return !all || copy.data; }
};
} // namespace

/* ---- linear layer --------------------------------------------------------------------------- */

template <class T>
static __global__ void __launch_bounds__(THREADS) bias_rows(int64_t rows, int64_t n, const T *b, T *y) {
  for (int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x; i < rows * n; i += gridDim.x * (int64_t)THREADS) y[i] = b[i % n];
}

/* The largest small side for which plain arithmetic is taken: tensor cores, where allowed, win earlier. */
static int small_side(const CabStream *s, bool f32) { return f32 && s->precision == PRECISION_F32 ? NARROW_MOST : 16; }

/* The bias rides in the product's epilogue, which wants it on a multiple of 16 bytes; otherwise y starts as the bias and
 * the product adds to it. */
template <class T>
static void linear_forward(CabStream *s, int64_t rows, int64_t O, int64_t I, const void *x, int64_t ldx, const void *w,
                           const void *b, void *y) {
  if (rows <= 0 || O <= 0) return;
  if constexpr (sizeof(T) != sizeof(double)) {
    const Weight columns = {(const float *)w, 1, I};
    if (small_product(s, rows, O, I, small_side(s, sizeof(T) == 4), (const T *)x, ldx, columns, (const float *)b, (T *)y, false))
      return;
  }
  Parameters<T> p(s, w, O * I, b, b ? O : 0);
  if (!p.ready()) return;
  const Wide<T> one = 1, zero = 0;
  Problem product = problem_of<T, T>(s, false, true, rows, O, I, ldx, I, O);
  if (b && I) clear_for_initcheck(s, product, y);
  if (b && I && alignment(p.b) >= 16 && multiply_lt(s, product, &one, x, p.w, &zero, y, p.b)) return;
  if (b) {
    int64_t blocks = (rows * O + THREADS - 1) / THREADS;
    bias_rows<<<blocks < 4096 ? (unsigned)blocks : 4096, THREADS, 0, s->stream>>>(rows, O, p.b, (T *)y);
  }
  products(s, product, 1, (const T *)x, p.w, b ? 1 : 0, (T *)y);
}

/* ---- sums over rows ------------------------------------------------------------------------- */

enum { SUM_LANES = 32, SUM_ROWS = 8, SLAB_ROWS = 128, SLABS = 512 };

/* out[slab, j] = sum of x[r, j] over the rows of a slab. Block: 32 lanes of V columns x SUM_ROWS rows; a thread sums every
 * SUM_ROWS-th row of its slab, then the SUM_ROWS sums of a column are added in order. Grid: column tiles x slabs. */
template <class T, int V>
static __global__ void __launch_bounds__(SUM_LANES *SUM_ROWS)
    slab_sums(int64_t rows, int64_t n, int64_t per_slab, const T *x, int64_t ld, Wide<T> *out) {
  constexpr int WIDTH = SUM_LANES * V;
  __shared__ Wide<T> part[SUM_ROWS][WIDTH];
  const int lane = threadIdx.x, group = threadIdx.y;
  const int64_t first = (int64_t)blockIdx.y * per_slab, last = first + per_slab < rows ? first + per_slab : rows;
  const int64_t tile = (int64_t)blockIdx.x * WIDTH, j = tile + lane * V;
  Wide<T> sum[V] = {};
  if (j < n) {
#pragma unroll 4
    for (int64_t r = first + group; r < last; r += SUM_ROWS) {
      Wide<T> next[V];
      load<T, V>(next, x + r * ld + j);
#pragma unroll
      for (int v = 0; v < V; v++) sum[v] += next[v];
    }
  }
#pragma unroll
  for (int v = 0; v < V; v++) part[group][lane * V + v] = sum[v];
  __syncthreads();
  const int column = group * SUM_LANES + lane;
  if (column >= WIDTH || tile + column >= n) return;
  Wide<T> total = 0;
#pragma unroll
  for (int g = 0; g < SUM_ROWS; g++) total += part[g][column];
  out[blockIdx.y * n + tile + column] = total;
}

template <class T>
static void sum_slabs(CabStream *s, int64_t rows, int64_t n, int64_t per_slab, int64_t slabs, const T *x, int64_t ld,
                      Wide<T> *out) {
  constexpr int V = 4;
  const dim3 block(SUM_LANES, SUM_ROWS);
  if (n % V == 0 && n > SUM_LANES && packs<T, V>(x, ld))
    slab_sums<T, V><<<dim3(blocks_for(n, SUM_LANES * V), (unsigned)slabs), block, 0, s->stream>>>(rows, n, per_slab, x, ld, out);
  else
    slab_sums<T, 1><<<dim3(blocks_for(n, SUM_LANES), (unsigned)slabs), block, 0, s->stream>>>(rows, n, per_slab, x, ld, out);
}

/* Slabs of rows first, then the slabs; their number depends on the sizes alone. */
template <class T> static void column_sum(CabStream *s, int64_t rows, int64_t n, const void *x, int64_t ld, void *out) {
  if (n <= 0) return;
  int64_t per_slab = (rows + SLABS - 1) / SLABS;
  if (per_slab < SLAB_ROWS) per_slab = SLAB_ROWS;
  int64_t slabs = (rows + per_slab - 1) / per_slab;
  if (slabs <= 1) {
    sum_slabs(s, rows, n, per_slab, 1, (const T *)x, ld, (Wide<T> *)out);
    return;
  }
  Scratch partial(s, (size_t)(slabs * n) * sizeof(Wide<T>));
  if (!partial.data) return;
  sum_slabs(s, rows, n, per_slab, slabs, (const T *)x, ld, (Wide<T> *)partial.data);
  sum_slabs(s, slabs, n, slabs, 1, (const Wide<T> *)partial.data, n, (Wide<T> *)out);
}

/* ---- gradients of the linear layer ---------------------------------------------------------- */

template <class T>
static void linear_input_gradient(CabStream *s, int64_t rows, int64_t O, int64_t I, const void *gy, const void *w, void *gx, bool add) {
  if constexpr (sizeof(T) != sizeof(double)) {
    const Weight rows_of_w = {(const float *)w, I, 1};
    if (small_product(s, rows, I, O, small_side(s, sizeof(T) == 4), (const T *)gy, O, rows_of_w, NULL, (T *)gx, add))
      return;
  }
  Parameters<T> p(s, w, O * I, NULL, 0);
  if (p.ready()) products(s, problem_of<T, T>(s, false, false, rows, I, O, O, I, I), 1, (const T *)gy, p.w, add, (T *)gx);
}

/* g[S,N] or, transposed, [N,S] = small^T wide over the rows, S small. False where something does not fit. */
template <class T, int SP, int C>
static bool small_gradient(CabStream *s, int64_t rows, int S, int64_t N, const T *small, int64_t ld_small, const T *wide,
                           int64_t ld_wide, bool transposed, float *g) {
  if (N % C || N < NARROW_LANES || !packs<T, C>(wide, ld_wide)) return false;
  int64_t least = SP <= 16 ? SLAB_ROWS : 2 * SLAB_ROWS, per_slab = (rows + SLABS - 1) / SLABS;
  if (per_slab < least) per_slab = least;
  const int64_t slabs = (rows + per_slab - 1) / per_slab;
  Scratch partial(s, (size_t)(slabs * S * N) * sizeof(float));
  if (!partial.data) return true;
  const dim3 grid((unsigned)slabs, blocks_for(N, NARROW_LANES * C)), block(NARROW_LANES, OUTER_WARPS);
  outer_sums<T, SP, C><<<grid, block, 0, s->stream>>>(rows, per_slab, S, N, small, ld_small, wide, ld_wide, (float *)partial.data);
  outer_total<<<blocks_for(S * N, NARROW_LANES), dim3(NARROW_LANES, TOTAL_ROWS), 0, s->stream>>>(
      slabs, S, N, (const float *)partial.data, transposed, g);
  return true;
}

template <class T>
static void linear_weight_gradient(CabStream *s, int64_t rows, int64_t O, int64_t I, const T *gy, const T *x, int64_t ldx,
                                   Wide<T> *gw) {
  if constexpr (sizeof(T) != sizeof(double)) {
    const bool by_x = I <= O; /* x is the small side */
    const int64_t S = by_x ? I : O, most = small_side(s, sizeof(T) == 4);
    auto *run = S <= 8    ? small_gradient<T, 8, 4>
                : S <= 12 ? small_gradient<T, 12, 4>
                : S <= 16 ? small_gradient<T, 16, 4>
                : S <= 32 ? small_gradient<T, 32, 2>
                          : small_gradient<T, 48, 2>;
    if (S > 0 && S <= most && rows >= NARROW_ROWS &&
        run(s, rows, (int)S, by_x ? O : I, by_x ? x : gy, by_x ? ldx : O, by_x ? gy : x, by_x ? O : ldx, by_x, gw))
      return;
  }
  products(s, problem_of<T, Wide<T>>(s, true, false, O, I, rows, O, ldx, I), 1, gy, x, 0, gw);
}

template <class T>
static void linear_backward(CabStream *s, int64_t rows, int64_t O, int64_t I, const void *gy, const void *x, int64_t ldx,
                            const void *w, void *gx, bool add_gx, void *gw, void *gb) {
  if (gx) linear_input_gradient<T>(s, rows, O, I, gy, w, gx, add_gx);
  if (gw) linear_weight_gradient(s, rows, O, I, (const T *)gy, (const T *)x, ldx, (Wide<T> *)gw);
  if (gb) column_sum<T>(s, rows, O, gy, O, gb);
}

EXPORT(gemm)
EXPORT(gemm_wide)
EXPORT(gemm_batched)
EXPORT(linear_forward)
EXPORT(linear_backward)
EXPORT(column_sum)
