/* loss.cuh - what the losses share: a block takes rows b, b + blocks, ... (a warp, where rows are short), sums their costs
 * in double and writes one number; a last block adds these in a fixed order. `partial`, the scratch of the CPU twins, is
 * too small for that and left alone. */
#ifndef CAB_KERNELS_LOSS_CUH
#define CAB_KERNELS_LOSS_CUH
#include "loss.h"
#include "vector.cuh"

enum { LAST = 1024 /* threads of the last block */ };
template <class T> constexpr int PACK = 16 / (int)sizeof(T); /* elements of one access */

/* Threads that share a row of n, and blocks that share the rows: about 2000 threads a multiprocessor. */
static int threads_for(int64_t n) {
  int threads = 32;
  while (threads < 512 && threads * 8 < n) threads *= 2;
  return threads;
}
static unsigned blocks_of_rows(int64_t rows, int threads) {
  const int64_t most = (1 << 18) / threads;
  return (unsigned)(rows < 1 ? 1 : rows < most ? rows : most);
}

/* Sum and maximum over the block; every thread has the result. */
template <class W> __device__ __forceinline__ W row_sum(W x) { return blockDim.x == 32 ? warp_sum(x) : block_sum(x); }
template <class W> __device__ __forceinline__ W row_max(W x) {
  __shared__ W part[16];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  x = warp_max(x);
  if (warps == 1) return x;
  __syncthreads(); /* part may still be read from the last call */
  if (!lane) part[warp] = x;
  __syncthreads();
  return warp_max(lane < warps ? part[lane] : part[0]);
}

/* max and sum of e^((x - max) scale) of the numbers seen so far. A NaN among them makes the sum NaN. */
template <class W> struct Online {
  W max, sum;
  __device__ __forceinline__ Online() : max(-INFINITY), sum(0) {}
  static __device__ __forceinline__ W shift(W max) { return max > W(-INFINITY) ? max : W(0); } /* -inf - -inf is no 0 */
  __device__ __forceinline__ void raise(W top, W scale) {
    sum = sum == 0 ? W(0) : sum * exp((max - top) * scale);
    max = top;
  }
  template <int N> __device__ __forceinline__ void add(const W (&x)[N], W scale) {
    W top = max;
#pragma unroll
    for (int k = 0; k < N; k++) top = x[k] > top ? x[k] : top;
    if (top > max) raise(top, scale);
    const W from = shift(max);
#pragma unroll
    for (int k = 0; k < N; k++) sum += exp((x[k] - from) * scale);
  }
  /* Over the block. Nothing but -inf has no softmax: NaN. */
  __device__ __forceinline__ void join(W scale) {
    const W top = row_max(max);
    if (top > max) raise(top, scale);
    sum = row_sum(sum);
    if (max == W(-INFINITY)) sum = NAN;
  }
};

/* out = factor sum / counted, counted (or 1 where it is 0 or `counts` is NULL) in a fixed order. */
template <class W>
static __global__ void __launch_bounds__(LAST) add_blocks(int64_t n, const double *sums, const double *counts, double factor, W *out) {
  double sum = 0, count = 0;
  for (int64_t i = threadIdx.x; i < n; i += LAST) {
    sum += sums[i];
    if (counts) count += counts[i];
  }
  sum = block_sum(sum);
  count = block_sum(count);
  if (!threadIdx.x) *out = (W)(factor * sum / (count > 0 ? count : 1));
}

template <int N, class F> __device__ __forceinline__ void each_pack(int64_t n, F f) {
#pragma unroll 2
  for (int64_t j = threadIdx.x * N; j < n; j += blockDim.x * N) f(j);
}

/* Rows of n at p can be read as packs of N. */
template <class T, int N> static bool fits(int64_t n, const void *p) { return n % N == 0 && packs<T, N>(p, n); }
/* kernel<T, N>, the rows of all arrays being read as packs of 16 bytes if `vector`, else element by element. */
#define LAUNCH(vector, kernel, blocks, threads, ...)                                               \
  do {                                                                                             \
    if (vector) kernel<T, PACK<T>><<<blocks, threads, 0, s->stream>>>(__VA_ARGS__);                \
    else kernel<T, 1><<<blocks, threads, 0, s->stream>>>(__VA_ARGS__);                             \
  } while (0)
#endif
