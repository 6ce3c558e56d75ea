/* norm.cu - every row is read once. Rows of up to 8 vectors a lane live in the registers of half a warp or a warp; longer
 * or unaligned ones take a block each and are met again in the cache. In backward each block sums its rows' gweight and
 * gbias, and a second kernel adds the blocks in order.
 * With xhat = (s - mean) rstd and g = gy w:  gs = rstd (g - mean(g) - xhat mean(g xhat)) + gsum  (RMS: no mean(g)). */
#include "norm.h"

#include <initializer_list>

#include "vector.cuh"

enum { FORWARD = 128, BACKWARD = 256, WIDE = 512 }; /* threads a block */

/* What a lane moves at once: 16 bytes of the wide type. */
template <class T> struct VectorOf { enum { N = 16 / sizeof(Wide<T>) }; };

/* Sum over aligned groups of G lanes; all 32 lanes of the warp call it. */
template <int G, class W> __device__ __forceinline__ W group_sum(W x) {
#pragma unroll
  for (int m = G / 2; m; m >>= 1) x += __shfl_xor_sync(0xffffffffu, x, m);
  return x;
}

template <class T> struct NormForward {
  typedef Wide<T> W;
  bool rms;
  W eps;
  int64_t rows, n;
  const T *x;
  const W *residual, *weight, *bias;
  T *y;
  W *sum, *mean, *rstd;
  __device__ void statistics(int64_t row, W center, W scale) const {
    if (mean) mean[row] = center;
    if (rstd) rstd[row] = scale;
  }
};

template <class T> struct NormBackward {
  typedef Wide<T> W;
  bool rms;
  int64_t rows, n;
  const W *sum, *weight, *mean, *rstd;
  const T *gy;
  const W *gsum;
  T *gx;
  W *gresidual, *partial; /* partial [gridDim.x, 2, n]: gweight and gbias of each block; may be NULL */
};

/* G lanes hold a row, V vectors each. */
template <class T, int G, int V>
static __global__ void __launch_bounds__(FORWARD, V <= 3 ? 12 : 6) forward_rows(NormForward<T> a) {
  typedef Wide<T> W;
  constexpr int N = VectorOf<T>::N;
  const int lane = threadIdx.x % G;
  const int64_t step = (int64_t)gridDim.x * (FORWARD / G);
  const W inverse = 1 / (W)a.n;
  /* The first row of a warp decides whether it goes on, so that all its lanes meet in group_sum. */
  for (int64_t first = ((int64_t)blockIdx.x * FORWARD + (threadIdx.x & ~31)) / G; first < a.rows; first += step) {
    const int64_t row = first + threadIdx.x % 32 / G;
    const bool live = row < a.rows;
    W s[V][N], total = 0, squares = 0;
#pragma unroll
    for (int v = 0; v < V; v++) {
      const int64_t c = (v * G + lane) * N, at = row * a.n + c;
      W r[N] = {};
#pragma unroll
      for (int k = 0; k < N; k++) s[v][k] = 0;
      if (live && c < a.n) load(s[v], a.x + at);
      if (live && c < a.n && a.residual) load(r, a.residual + at);
#pragma unroll
      for (int k = 0; k < N; k++) s[v][k] += r[k];
    }
#pragma unroll
    for (int v = 0; v < V; v++) {
      const int64_t c = (v * G + lane) * N, at = row * a.n + c;
      if (live && c < a.n && a.sum) store(a.sum + at, s[v]);
#pragma unroll
      for (int k = 0; k < N; k++) total += s[v][k];
    }
    const W center = a.rms ? 0 : group_sum<G>(total) * inverse;
#pragma unroll
    for (int v = 0; v < V; v++)
#pragma unroll
      for (int k = 0; k < N; k++)
        if ((v * G + lane) * N < a.n) squares += (s[v][k] - center) * (s[v][k] - center);
    const W scale = 1 / sqrt(group_sum<G>(squares) * inverse + a.eps);
    if (!live) continue;
#pragma unroll
    for (int v = 0; v < V; v++) {
      const int64_t c = (v * G + lane) * N;
      if (c >= a.n) continue;
      W w[N], b[N] = {};
      load(w, a.weight + c);
      if (a.bias) load(b, a.bias + c);
#pragma unroll
      for (int k = 0; k < N; k++) s[v][k] = (s[v][k] - center) * scale * w[k] + b[k];
      store(a.y + row * a.n + c, s[v]);
    }
    if (lane == 0) a.statistics(row, center, scale);
  }
}

/* A block for a row of any length; a thread meets the same columns in each pass. */
template <class T> static __global__ void __launch_bounds__(WIDE) forward_wide(NormForward<T> a) {
  typedef Wide<T> W;
  const W inverse = 1 / (W)a.n;
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    const T *x = a.x + row * a.n;
    const W *residual = a.residual ? a.residual + row * a.n : nullptr;
    W total = 0, squares = 0;
    for (int64_t c = threadIdx.x; c < a.n; c += blockDim.x) {
      const W s = residual ? wide_of(x[c]) + residual[c] : wide_of(x[c]);
      if (a.sum) a.sum[row * a.n + c] = s;
      total += s;
    }
    const W center = a.rms ? 0 : block_sum(total) * inverse;
    for (int64_t c = threadIdx.x; c < a.n; c += blockDim.x) {
      const W s = (residual ? wide_of(x[c]) + residual[c] : wide_of(x[c])) - center;
      squares += s * s;
    }
    const W scale = 1 / sqrt(block_sum(squares) * inverse + a.eps);
    for (int64_t c = threadIdx.x; c < a.n; c += blockDim.x) {
      const W s = (residual ? wide_of(x[c]) + residual[c] : wide_of(x[c])) - center;
      a.y[row * a.n + c] = narrow<T>(s * scale * a.weight[c] + (a.bias ? a.bias[c] : 0));
    }
    if (threadIdx.x == 0) a.statistics(row, center, scale);
  }
}

/* A lane sees the same columns of all its rows and sums their gweight and gbias in registers. The warps then add theirs
 * one after the other in shared memory [2, n]. */
template <class T, int G, int V>
static __global__ void __launch_bounds__(BACKWARD, V <= 4 ? 2 : 1) backward_rows(NormBackward<T> a) {
  typedef Wide<T> W;
  constexpr int N = VectorOf<T>::N;
  extern __shared__ __align__(16) unsigned char shared[];
  const int lane = threadIdx.x % G;
  const int64_t step = (int64_t)gridDim.x * (BACKWARD / G);
  const W inverse = 1 / (W)a.n;
  W gw[V][N] = {}, gb[V][N] = {};
  for (int64_t first = ((int64_t)blockIdx.x * BACKWARD + (threadIdx.x & ~31)) / G; first < a.rows; first += step) {
    const int64_t row = first + threadIdx.x % 32 / G;
    const bool live = row < a.rows;
    const W center = live && !a.rms ? a.mean[row] : 0, scale = live ? a.rstd[row] : 0;
    W hat[V][N], g[V][N], more[V][N], dot = 0, total = 0;
#pragma unroll
    for (int v = 0; v < V; v++) {
      const int64_t c = (v * G + lane) * N, at = row * a.n + c;
#pragma unroll
      for (int k = 0; k < N; k++) hat[v][k] = g[v][k] = more[v][k] = 0;
      if (!live || c >= a.n) continue;
      load(hat[v], a.sum + at);
      load(g[v], a.gy + at);
      if (a.gsum) load(more[v], a.gsum + at);
    }
#pragma unroll
    for (int v = 0; v < V; v++) {
      const int64_t c = (v * G + lane) * N;
      if (!live || c >= a.n) continue;
      W w[N];
      load(w, a.weight + c);
#pragma unroll
      for (int k = 0; k < N; k++) {
        hat[v][k] = (hat[v][k] - center) * scale;
        gw[v][k] += g[v][k] * hat[v][k];
        gb[v][k] += g[v][k];
        g[v][k] *= w[k];
        dot += g[v][k] * hat[v][k];
        total += g[v][k];
      }
    }
    const W slope = group_sum<G>(dot) * inverse, shift = a.rms ? 0 : group_sum<G>(total) * inverse;
#pragma unroll
    for (int v = 0; v < V; v++) {
      const int64_t c = (v * G + lane) * N, at = row * a.n + c;
      if (!live || c >= a.n) continue;
#pragma unroll
      for (int k = 0; k < N; k++) g[v][k] = (g[v][k] - shift - hat[v][k] * slope) * scale + more[v][k];
      if (a.gx) store(a.gx + at, g[v]);
      if (a.gresidual) store(a.gresidual + at, g[v]);
    }
  }
  if (!a.partial) return;
  W *sums = reinterpret_cast<W *>(shared);
  for (int turn = 0; turn < BACKWARD / 32; turn++) {
#pragma unroll
    for (int v = 0; v < V; v++)
#pragma unroll
      for (int k = 0; k < N; k++) {
        const int c = (v * G + lane) * N + k;
        if (threadIdx.x / 32 != turn) continue;
        const W pair_w = G == 32 ? gw[v][k] : gw[v][k] + __shfl_down_sync(0xffffffffu, gw[v][k], 16);
        const W pair_b = G == 32 ? gb[v][k] : gb[v][k] + __shfl_down_sync(0xffffffffu, gb[v][k], 16);
        if (threadIdx.x % 32 >= G || c >= a.n) continue;
        sums[c] = turn ? sums[c] + pair_w : pair_w;
        sums[a.n + c] = turn ? sums[a.n + c] + pair_b : pair_b;
      }
    __syncthreads();
  }
  for (int c = threadIdx.x; c < 2 * a.n; c += BACKWARD) a.partial[blockIdx.x * 2 * a.n + c] = sums[c];
}

/* A block for a row of any length; its threads own the columns of `partial` that they add to. */
template <class T> static __global__ void __launch_bounds__(WIDE) backward_wide(NormBackward<T> a) {
  typedef Wide<T> W;
  const W inverse = 1 / (W)a.n;
  W *gw = a.partial ? a.partial + (int64_t)blockIdx.x * 2 * a.n : nullptr;
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    const W *s = a.sum + row * a.n, center = a.rms ? 0 : a.mean[row], scale = a.rstd[row];
    const T *gy = a.gy + row * a.n;
    const bool fresh = row == blockIdx.x;
    W dot = 0, total = 0;
    for (int64_t c = threadIdx.x; c < a.n; c += blockDim.x) {
      const W hat = (s[c] - center) * scale, gc = wide_of(gy[c]), g = gc * a.weight[c];
      dot += g * hat;
      total += g;
      if (!gw) continue;
      gw[c] = fresh ? gc * hat : gw[c] + gc * hat;
      gw[a.n + c] = fresh ? gc : gw[a.n + c] + gc;
    }
    const W slope = block_sum(dot) * inverse, shift = a.rms ? 0 : block_sum(total) * inverse;
    if (!a.gx && !a.gresidual) continue;
    for (int64_t c = threadIdx.x; c < a.n; c += blockDim.x) {
      const W hat = (s[c] - center) * scale;
      W v = (wide_of(gy[c]) * a.weight[c] - shift - hat * slope) * scale;
      if (a.gsum) v += a.gsum[row * a.n + c];
      if (a.gx) a.gx[row * a.n + c] = narrow<T>(v);
      if (a.gresidual) a.gresidual[row * a.n + c] = v;
    }
  }
}

/* gweight (blockIdx.y = 0) and gbias (1): columns of partial [blocks, 2, n], 32 threads down each. */
template <class W>
static __global__ void __launch_bounds__(1024)
    sum_blocks(int blocks, int64_t n, const W *partial, W *gweight, W *gbias) {
  __shared__ W part[32][33];
  W *to = blockIdx.y ? gbias : gweight, sum = 0;
  const int64_t c = (int64_t)blockIdx.x * 32 + threadIdx.x;
  if (!to) return;
  if (c < n)
    for (int64_t i = threadIdx.y; i < blocks; i += 32) sum += partial[(i * 2 + blockIdx.y) * n + c];
  part[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  sum = warp_sum(part[threadIdx.x][threadIdx.y]);
  const int64_t mine = (int64_t)blockIdx.x * 32 + threadIdx.y;
  if (threadIdx.x == 0 && mine < n) to[mine] = sum;
}

static bool aligned(std::initializer_list<const void *> pointers, size_t bytes) {
  for (const void *p : pointers)
    if ((uintptr_t)p % bytes) return false;
  return true;
}

static unsigned wide_threads(int64_t n) { return n < WIDE ? blocks_for(n, 32) * 32 : (unsigned)WIDE; }
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

template <class T, int G, int V> static void launch(CabStream *s, const NormForward<T> &a) {
  const int64_t blocks = (a.rows + FORWARD / G - 1) / (FORWARD / G);
  forward_rows<T, G, V><<<(unsigned)least(blocks, INT32_MAX), FORWARD, 0, s->stream>>>(a);
}
template <class T, int G, int V> static void launch(CabStream *s, const NormBackward<T> &a, int blocks) {
  backward_rows<T, G, V><<<blocks, BACKWARD, 2 * a.n * sizeof(Wide<T>), s->stream>>>(a);
}

/* The narrowest row kernel that holds m vectors; false: none does. */
template <class T, class... Args> static bool rows(int64_t m, Args... args) {
  if (m <= 16) launch<T, 16, 1>(args...);
  else if (m <= 32) launch<T, 16, 2>(args...);
  else if (m <= 48) launch<T, 16, 3>(args...);
  else if (m <= 64) launch<T, 16, 4>(args...);
  else if (m <= 96) launch<T, 32, 3>(args...);
  else if (m <= 128) launch<T, 32, 4>(args...);
  else if (m <= 192) launch<T, 32, 6>(args...);
  else if (m <= 256) launch<T, 32, 8>(args...);
  else return false;
  return true;
}

template <class T>
static void norm_forward(CabStream *s, bool rms, double eps, int64_t n_rows, int64_t n, const void *x,
                         const void *residual, const void *weight, const void *bias, void *y, void *sum, void *mean,
                         void *rstd) {
  typedef Wide<T> W;
  if (n_rows <= 0 || n <= 0) return;
  const NormForward<T> a = {rms, (W)eps, n_rows, n, (const T *)x, (const W *)residual, (const W *)weight,
                            (const W *)bias, (T *)y, (W *)sum, (W *)mean, (W *)rstd};
  const int N = VectorOf<T>::N;
  const bool vectors = n % N == 0 && aligned({residual, weight, bias, sum}, 16) && aligned({x, y}, N * sizeof(T));
  if (vectors && rows<T>(n / N, s, a)) return;
  forward_wide<T><<<(unsigned)least(n_rows, INT32_MAX), wide_threads(n), 0, s->stream>>>(a);
}

/* More blocks than `partial` has room for: they have scratch of their own. */
template <class T>
static void norm_backward(CabStream *s, bool rms, int64_t n_rows, int64_t n, const void *sum, const void *weight,
                          const void *mean, const void *rstd, const void *gy, const void *gsum, void *gx,
                          void *gresidual, void *gweight, void *gbias, void *) {
  typedef Wide<T> W;
  if (n <= 0) return;
  const int blocks = (int)least(n_rows, 2 * s->multiprocessors);
  Scratch scratch(s, gweight || gbias ? (size_t)blocks * 2 * n * sizeof(W) : 0);
  if (scratch.bytes && !scratch.data) return;
  const NormBackward<T> a = {rms, n_rows, n, (const W *)sum, (const W *)weight, (const W *)mean, (const W *)rstd,
                             (const T *)gy, (const W *)gsum, (T *)gx, (W *)gresidual, (W *)scratch.data};
  const int N = VectorOf<T>::N;
  const bool vectors = n % N == 0 && aligned({sum, weight, gsum, gresidual}, 16) && aligned({gy, gx}, N * sizeof(T));
  if (blocks > 0 && !(vectors && rows<T>(n / N, s, a, blocks)))
    backward_wide<T><<<blocks, wide_threads(n), 0, s->stream>>>(a);
  if (gweight || gbias)
    sum_blocks<W><<<dim3(blocks_for(n, 32), 2), dim3(32, 32), 0, s->stream>>>(blocks, n, (const W *)scratch.data,
                                                                             (W *)gweight, (W *)gbias);
}

EXPORT(norm_forward)
EXPORT(norm_backward)
