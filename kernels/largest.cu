/* largest.cu - a warp for each row, once over it for each entry found: the largest behind the last one in the order of values and columns. */
#include "largest.h"

#include "cuda.cuh"

enum { WARPS = 8, THREADS = 32 * WARPS };

template <class T> static __global__ void __launch_bounds__(THREADS)
    find_largest(int64_t rows, int64_t C, int64_t count, const T *x, T *y, int32_t *place) {
  typedef Wide<T> W;
  const int lane = threadIdx.x % 32;
  for (int64_t i = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32; i < rows; i += (int64_t)gridDim.x * WARPS) {
    W last = (W)INFINITY;
    int64_t last_at = -1;
    for (int64_t k = 0; k < count; k++) {
      W best = -(W)INFINITY;
      int64_t at = C; /* nothing yet */
      for (int64_t c = lane; c < C; c += 32) {
        const W v = wide_of(x[i * C + c]);
        const bool behind = v < last || (v == last && c > last_at);
        if (behind && (at == C || v > best)) best = v, at = c;
      }
      for (int step = 16; step > 0; step /= 2) {
        const W other = __shfl_xor_sync(~0u, best, step);
        const int64_t other_at = __shfl_xor_sync(~0u, (long long)at, step);
        if (other_at < C && (at == C || other > best || (other == best && other_at < at))) best = other, at = other_at;
      }
      if (lane == 0) {
        y[i * count + k] = at < C ? x[i * C + at] : narrow<T>((W)NAN); /* what is left of the row is NaN */
        place[i * count + k] = (int32_t)(at < C ? at : C - 1);
      }
      last = best, last_at = at;
    }
  }
}

template <class T> static void largest(CabStream *stream, int64_t rows, int64_t C, int64_t count, const void *x, void *y, int32_t *place) {
  if (rows * count == 0) return;
  const int64_t blocks = (rows + WARPS - 1) / WARPS;
  find_largest<<<(unsigned)(blocks < 65535 ? blocks : 65535), THREADS, 0, stream->stream>>>(rows, C, count, (const T *)x, (T *)y, place);
}

EXPORT(largest)
