/* random.cu - Philox fills, computed in double and rounded once, as on the CPU; log, sin and cos are the device's own. */
#include "random.h"

#include "cuda.cuh"
#include "philox.h"

enum { THREADS = 256, MAX_DRAWS = 1024 /* as in random.c */ };

template <class T>
static __global__ void __launch_bounds__(THREADS)
    uniform_kernel(int64_t n, uint64_t seed, uint64_t stream, double low, double high, T *y) {
  const int64_t block = blockIdx.x * (int64_t)THREADS + threadIdx.x;
  if (4 * block >= n) return;
  uint32_t w[4];
  philox_block(seed, stream, (uint64_t)block, w);
#pragma unroll
  for (int j = 0; j < 4; j++)
    if (4 * block + j < n) y[4 * block + j] = (T)(low + (high - low) * philox_unit(w[j]));
}

template <class T>
static __global__ void __launch_bounds__(THREADS)
    normal_kernel(int64_t n, uint64_t seed, uint64_t stream, double mean, double deviation, T *y) {
  const int64_t block = blockIdx.x * (int64_t)THREADS + threadIdx.x;
  if (2 * block >= n) return;
  double z[2];
  philox_normal_pair(seed, stream, (uint64_t)block, 0, z);
  y[2 * block] = (T)(mean + deviation * z[0]);
  if (2 * block + 1 < n) y[2 * block + 1] = (T)(mean + deviation * z[1]);
}

template <class T>
static __global__ void __launch_bounds__(THREADS)
    trunc_normal_kernel(int64_t n, uint64_t seed, uint64_t stream, double mean, double deviation, double low, double high, T *y) {
  const int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x;
  if (i >= n) return;
  double value = mean;
  for (uint32_t draw = 0; draw < MAX_DRAWS; draw++) {
    value = mean + deviation * philox_normal(seed, stream, (uint64_t)i, draw);
    if (value >= low && value <= high) break;
  }
  y[i] = (T)(value < low ? low : value > high ? high : value);
}

template <class T>
static void random_uniform(CabStream *s, int64_t n, uint64_t seed, uint64_t stream, double low, double high, void *y) {
  if (n > 0) uniform_kernel<<<blocks_for(n, 4 * THREADS), THREADS, 0, s->stream>>>(n, seed, stream, low, high, (T *)y);
}
template <class T>
static void random_normal(CabStream *s, int64_t n, uint64_t seed, uint64_t stream, double mean, double deviation, void *y) {
  if (n > 0) normal_kernel<<<blocks_for(n, 2 * THREADS), THREADS, 0, s->stream>>>(n, seed, stream, mean, deviation, (T *)y);
}
template <class T>
static void random_trunc_normal(CabStream *s, int64_t n, uint64_t seed, uint64_t stream, double mean, double deviation,
                                double low, double high, void *y) {
  if (n > 0)
    trunc_normal_kernel<<<blocks_for(n, THREADS), THREADS, 0, s->stream>>>(n, seed, stream, mean, deviation, low, high, (T *)y);
}

EXPORT_REAL(random_uniform)
EXPORT_REAL(random_normal)
EXPORT_REAL(random_trunc_normal)
