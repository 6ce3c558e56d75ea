/* softmax.cu - over the middle of [outer, n, inner]. inner = 1: a warp holds a row of up to 1024 in registers, a block
 * goes over longer ones. Else a block takes 32 neighbouring columns, its warps share out the n rows between them. */
#include "softmax.h"

#include "cuda.cuh"

enum { WARPS = 8, THREADS = 32 * WARPS };

template <class W> __device__ __forceinline__ W lowest() { return -(W)INFINITY; }
template <class W> struct Sum {
  static __device__ __forceinline__ W zero() { return 0; }
  static __device__ __forceinline__ W join(W a, W b) { return a + b; }
  static __device__ __forceinline__ W warp(W x) { return warp_sum(x); }
};
template <class W> struct Max {
  static __device__ __forceinline__ W zero() { return lowest<W>(); }
  static __device__ __forceinline__ W join(W a, W b) { return b > a ? b : a; }
  static __device__ __forceinline__ W warp(W x) { return warp_max(x); }
};

/* Over all threads of the block; each has the result. */
template <class Join, class W> __device__ __forceinline__ W over_block(W x) {
  __shared__ W part[WARPS];
  x = Join::warp(x);
  __syncthreads(); /* part may still be read from the last call */
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
  __syncthreads();
  x = part[0];
#pragma unroll
  for (int i = 1; i < WARPS; i++) x = Join::join(x, part[i]);
  return x;
}

/* Over the warps of the block, column by column: threads of one lane. */
template <class Join, class W> __device__ __forceinline__ W over_warps(W x) {
  __shared__ W part[WARPS][32];
  const int lane = threadIdx.x % 32;
  __syncthreads();
  part[threadIdx.x / 32][lane] = x;
  __syncthreads();
  x = part[0][lane];
#pragma unroll
  for (int i = 1; i < WARPS; i++) x = Join::join(x, part[i][lane]);
  return x;
}

/* inner = 1, n <= 32 V: a warp for each row. */
template <class T, int V>
static __global__ void __launch_bounds__(THREADS)
    forward_row(int64_t outer, int n, const T *x, T *y) {
  typedef Wide<T> W;
  const int lane = threadIdx.x % 32;
  for (int64_t i = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32; i < outer; i += (int64_t)gridDim.x * WARPS) {
    W e[V], max = lowest<W>(), sum = 0;
#pragma unroll
    for (int v = 0; v < V; v++) e[v] = v * 32 + lane < n ? wide_of(x[i * n + v * 32 + lane]) : lowest<W>();
#pragma unroll
    for (int v = 0; v < V; v++) max = Max<W>::join(max, e[v]);
    max = warp_max(max);
#pragma unroll
    for (int v = 0; v < V; v++) {
      e[v] = v * 32 + lane < n ? exp(e[v] - max) : 0;
      sum += e[v];
    }
    const W share = 1 / warp_sum(sum);
#pragma unroll
    for (int v = 0; v < V; v++)
      if (v * 32 + lane < n) y[i * n + v * 32 + lane] = narrow<T>(e[v] * share);
  }
}

template <class T, int V>
static __global__ void __launch_bounds__(THREADS)
    backward_row(int64_t outer, int n, const T *y, const T *gy, T *gx) {
  typedef Wide<T> W;
  const int lane = threadIdx.x % 32;
  for (int64_t i = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32; i < outer; i += (int64_t)gridDim.x * WARPS) {
    W p[V], g[V], dot = 0;
#pragma unroll
    for (int v = 0; v < V; v++) {
      const int64_t at = i * n + v * 32 + lane;
      p[v] = v * 32 + lane < n ? wide_of(y[at]) : 0;
      g[v] = v * 32 + lane < n ? wide_of(gy[at]) : 0;
    }
#pragma unroll
    for (int v = 0; v < V; v++) dot += p[v] * g[v];
    dot = warp_sum(dot);
#pragma unroll
    for (int v = 0; v < V; v++)
      if (v * 32 + lane < n) gx[i * n + v * 32 + lane] = narrow<T>(p[v] * (g[v] - dot));
  }
}

/* inner = 1, any n: a block for each row, met three times. */
template <class T>
static __global__ void __launch_bounds__(THREADS)
    forward_long(int64_t outer, int64_t n, const T *x, T *y) {
  typedef Wide<T> W;
  for (int64_t i = blockIdx.x; i < outer; i += gridDim.x) {
    const T *row = x + i * n;
    W max = lowest<W>(), sum = 0;
    for (int64_t j = threadIdx.x; j < n; j += THREADS) max = Max<W>::join(max, wide_of(row[j]));
    max = over_block<Max<W>>(max);
    for (int64_t j = threadIdx.x; j < n; j += THREADS) sum += exp(wide_of(row[j]) - max);
    const W share = 1 / over_block<Sum<W>>(sum);
    for (int64_t j = threadIdx.x; j < n; j += THREADS) y[i * n + j] = narrow<T>(exp(wide_of(row[j]) - max) * share);
  }
}

template <class T>
static __global__ void __launch_bounds__(THREADS)
    backward_long(int64_t outer, int64_t n, const T *y, const T *gy, T *gx) {
  typedef Wide<T> W;
  for (int64_t i = blockIdx.x; i < outer; i += gridDim.x) {
    const T *p = y + i * n, *g = gy + i * n;
    W dot = 0;
    for (int64_t j = threadIdx.x; j < n; j += THREADS) dot += wide_of(p[j]) * wide_of(g[j]);
    dot = over_block<Sum<W>>(dot);
    for (int64_t j = threadIdx.x; j < n; j += THREADS) gx[i * n + j] = narrow<T>(wide_of(p[j]) * (wide_of(g[j]) - dot));
  }
}

/* A job is 32 columns of one outer index; dead lanes of the last stay to meet the barriers. */
struct Columns {
  int64_t at; /* of row 0 */
  bool live;
  __device__ Columns(int64_t job, int64_t n, int64_t inner) {
    const int64_t tiles = (inner + 31) / 32, c = job % tiles * 32 + threadIdx.x % 32;
    at = job / tiles * n * inner + c;
    live = c < inner;
  }
};

template <class T>
static __global__ void __launch_bounds__(THREADS)
    forward_columns(int64_t jobs, int64_t n, int64_t inner, const T *x, T *y) {
  typedef Wide<T> W;
  const int first = threadIdx.x / 32;
  for (int64_t job = blockIdx.x; job < jobs; job += gridDim.x) {
    const Columns c(job, n, inner);
    const int64_t stop = c.live ? n : 0;
    W max = lowest<W>(), sum = 0;
    for (int64_t j = first; j < stop; j += WARPS) max = Max<W>::join(max, wide_of(x[c.at + j * inner]));
    max = over_warps<Max<W>>(max);
    for (int64_t j = first; j < stop; j += WARPS) sum += exp(wide_of(x[c.at + j * inner]) - max);
    const W share = 1 / over_warps<Sum<W>>(sum);
    for (int64_t j = first; j < stop; j += WARPS)
      y[c.at + j * inner] = narrow<T>(exp(wide_of(x[c.at + j * inner]) - max) * share);
  }
}

template <class T>
static __global__ void __launch_bounds__(THREADS)
    backward_columns(int64_t jobs, int64_t n, int64_t inner, const T *y, const T *gy, T *gx) {
  typedef Wide<T> W;
  const int first = threadIdx.x / 32;
  for (int64_t job = blockIdx.x; job < jobs; job += gridDim.x) {
    const Columns c(job, n, inner);
    const int64_t stop = c.live ? n : 0;
    W dot = 0;
    for (int64_t j = first; j < stop; j += WARPS) dot += wide_of(y[c.at + j * inner]) * wide_of(gy[c.at + j * inner]);
    dot = over_warps<Sum<W>>(dot);
    for (int64_t j = first; j < stop; j += WARPS) {
      const int64_t at = c.at + j * inner;
      gx[at] = narrow<T>(wide_of(y[at]) * (wide_of(gy[at]) - dot));
    }
  }
}

static unsigned grid(int64_t blocks) { return (unsigned)(blocks < INT32_MAX ? blocks : INT32_MAX); }

template <class T>
static void softmax_forward(CabStream *s, int64_t outer, int64_t n, int64_t inner, const void *from, void *to) {
  const T *x = (const T *)from;
  T *y = (T *)to;
  if (outer <= 0 || n <= 0 || inner <= 0) return;
  const unsigned rows = grid((outer + WARPS - 1) / WARPS);
  const int64_t jobs = (inner + 31) / 32 * outer;
  if (inner > 1) forward_columns<T><<<grid(jobs), THREADS, 0, s->stream>>>(jobs, n, inner, x, y);
  else if (n <= 64) forward_row<T, 2><<<rows, THREADS, 0, s->stream>>>(outer, (int)n, x, y);
  else if (n <= 256) forward_row<T, 8><<<rows, THREADS, 0, s->stream>>>(outer, (int)n, x, y);
  else if (n <= 1024) forward_row<T, 32><<<rows, THREADS, 0, s->stream>>>(outer, (int)n, x, y);
  else forward_long<T><<<grid(outer), THREADS, 0, s->stream>>>(outer, n, x, y);
}

/* gx = y (gy - sum(y gy)) */
template <class T>
static void softmax_backward(CabStream *s, int64_t outer, int64_t n, int64_t inner, const void *output,
                             const void *gradient, void *to) {
  const T *y = (const T *)output, *gy = (const T *)gradient;
  T *gx = (T *)to;
  if (outer <= 0 || n <= 0 || inner <= 0) return;
  const unsigned rows = grid((outer + WARPS - 1) / WARPS);
  const int64_t jobs = (inner + 31) / 32 * outer;
  if (inner > 1) backward_columns<T><<<grid(jobs), THREADS, 0, s->stream>>>(jobs, n, inner, y, gy, gx);
  else if (n <= 64) backward_row<T, 2><<<rows, THREADS, 0, s->stream>>>(outer, (int)n, y, gy, gx);
  else if (n <= 256) backward_row<T, 8><<<rows, THREADS, 0, s->stream>>>(outer, (int)n, y, gy, gx);
  else if (n <= 1024) backward_row<T, 32><<<rows, THREADS, 0, s->stream>>>(outer, (int)n, y, gy, gx);
  else backward_long<T><<<grid(outer), THREADS, 0, s->stream>>>(outer, n, y, gy, gx);
}

EXPORT(softmax_forward)
EXPORT(softmax_backward)
