/* sum_middle.cu - sums over a dimension (elementwise.h). Rows are summed by lanes of a warp, or by blocks; columns by
 * threads that read neighbouring ones. Where there are few results, the middle dimension is cut into parts by the sizes
 * alone, and a second launch sums the parts: the order is the same on every device. */
#include "elementwise.h"

#include "vector.cuh"

enum { THREADS = 256, ENOUGH = 256 /* blocks that keep memory busy */, TARGET = 1024 /* blocks aimed at otherwise */ };

/* What V elements of type T may be read or written at, contiguous rows of n behind one another. */
template <class T, int V> static bool fits(const void *p, int64_t n) { return n % V == 0 && packs<T, V>(p, n); }

/* ---- inner = 1: rows ------------------------------------------------------------------------- */

/* y[row] = scale sum_j x[row,j]: 2^shift neighbouring lanes share a row. */
template <class In, class Out, int N>
static __global__ void __launch_bounds__(THREADS)
    sum_short_rows(int64_t rows, int64_t n, int shift, Wide<In> scale, const In *x, Out *y) {
  const int64_t row = (blockIdx.x * (int64_t)THREADS + threadIdx.x) >> shift;
  const int lanes = 1 << shift, lane = threadIdx.x & (lanes - 1);
  Wide<In> sum = 0;
  if (row < rows) {
    const In *from = x + row * n;
#pragma unroll 4
    for (int64_t j = lane * N; j < n; j += lanes * N) {
      Wide<In> v[N];
      load(v, from + j);
#pragma unroll
      for (int k = 0; k < N; k++) sum += v[k];
    }
  }
  for (int m = lanes >> 1; m; m >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, m);
  if (row < rows && !lane) y[row] = narrow<Out>(scale * sum);
}

/* y[row, part] = scale sum of x[row, j] over the part's `step` elements: a block each. */
template <class In, class Out, int N>
static __global__ void __launch_bounds__(THREADS)
    sum_long_rows(int64_t n, int64_t step, unsigned parts, Wide<In> scale, const In *x, Out *y) {
  const unsigned row = blockIdx.x / parts, part = blockIdx.x - row * parts;
  const int64_t first = part * step, last = first + step < n ? first + step : n;
  const In *from = x + row * n;
  Wide<In> sum = 0;
#pragma unroll 4
  for (int64_t j = first + threadIdx.x * N; j < last; j += THREADS * N) {
    Wide<In> v[N];
    load(v, from + j);
#pragma unroll
    for (int k = 0; k < N; k++) sum += v[k];
  }
  sum = block_sum(sum);
  if (!threadIdx.x) y[blockIdx.x] = narrow<Out>(scale * sum);
}

template <class In, class Out, int N>
static void short_rows(CabStream *s, int64_t rows, int64_t n, double scale, const In *x, Out *y) {
  int shift = 0;
  while (shift < 5 && (int64_t)N << shift < n) shift++;
  sum_short_rows<In, Out, N><<<blocks_for(rows, THREADS >> shift), THREADS, 0, s->stream>>>(rows, n, shift, (Wide<In>)scale, x, y);
}

template <class T, int N> static void sum_rows(CabStream *s, int64_t rows, int64_t n, double scale, const T *x, T *y) {
  enum { SHORT = 2048, PART = 8192 };
  if (n <= SHORT || rows > INT32_MAX / 2) {
    short_rows<T, T, N>(s, rows, n, scale, x, y);
    return;
  }
  int64_t parts = rows < ENOUGH ? TARGET / rows : 1;
  if (parts > n / PART) parts = n / PART;
  if (parts <= 1) {
    sum_long_rows<T, T, N><<<(unsigned)rows, THREADS, 0, s->stream>>>(n, n, 1, (Wide<T>)scale, x, y);
    return;
  }
  const int64_t step = ((n + parts - 1) / parts + N - 1) / N * N;
  Scratch sums(s, (size_t)(rows * parts) * sizeof(Wide<T>));
  if (!sums.data) return;
  sum_long_rows<T, Wide<T>, N><<<(unsigned)(rows * parts), THREADS, 0, s->stream>>>(n, step, (unsigned)parts, 1, x, (Wide<T> *)sums.data);
  short_rows<Wide<T>, T, 1>(s, rows, parts, scale, (const Wide<T> *)sums.data, y);
}

/* ---- inner > 1: columns ---------------------------------------------------------------------- */

/* y[o,j] = scale sum_r x[o,r,j]: a thread sums N neighbouring columns. */
template <class T, int N>
static __global__ void __launch_bounds__(THREADS)
    sum_short_columns(int64_t outer, int64_t middle, int64_t inner, Wide<T> scale, const T *x, T *y) {
  const int64_t packs = inner / N, unit = blockIdx.x * (int64_t)THREADS + threadIdx.x, o = outer == 1 ? 0 : unit / packs;
  if (unit >= outer * packs) return;
  const T *from = x + o * middle * inner + (unit - o * packs) * N;
  Wide<T> sum[N] = {};
#pragma unroll 4
  for (int64_t r = 0; r < middle; r++) {
    Wide<T> v[N];
    load(v, from + r * inner);
#pragma unroll
    for (int k = 0; k < N; k++) sum[k] += v[k];
  }
#pragma unroll
  for (int k = 0; k < N; k++) sum[k] *= scale;
  store(y + unit * N, sum);
}

/* y[o,part,j] = scale sum of x[o,r,j] over the part's `step` rows. A block has 2^shift lanes of N columns each and as many
 * groups as fill it; a group takes every groups-th row, then the groups are added as a tree. Blocks: [o, tile, part]. */
template <class In, class Out, int N>
static __global__ void __launch_bounds__(THREADS)
    sum_long_columns(int64_t middle, int64_t inner, int64_t step, unsigned parts, unsigned tiles, int shift, Wide<In> scale,
                     const In *x, Out *y) {
  typedef Wide<In> W;
  __shared__ W shared[N][THREADS];
  const unsigned o = blockIdx.x / parts / tiles, tile = blockIdx.x / parts % tiles, part = blockIdx.x % parts;
  const int lanes = 1 << shift, lane = threadIdx.x & (lanes - 1), group = threadIdx.x >> shift, groups = THREADS >> shift;
  const int64_t j = ((int64_t)tile * lanes + lane) * N, first = part * step, last = first + step < middle ? first + step : middle;
  W sum[N] = {};
  if (j < inner) {
    const In *from = x + o * middle * inner + j;
#pragma unroll 4
    for (int64_t r = first + group; r < last; r += groups) {
      W v[N];
      load(v, from + r * inner);
#pragma unroll
      for (int k = 0; k < N; k++) sum[k] += v[k];
    }
  }
#pragma unroll
  for (int k = 0; k < N; k++) shared[k][threadIdx.x] = sum[k];
  for (int half = groups >> 1; half; half >>= 1) {
    __syncthreads();
    if (group >= half) continue;
#pragma unroll
    for (int k = 0; k < N; k++) shared[k][threadIdx.x] = sum[k] += shared[k][threadIdx.x + half * lanes];
  }
  if (group || j >= inner) return;
#pragma unroll
  for (int k = 0; k < N; k++) sum[k] *= scale;
  Wide<Out> out[N];
#pragma unroll
  for (int k = 0; k < N; k++) out[k] = sum[k];
  store(y + ((int64_t)o * parts + part) * inner + j, out);
}

/* Lanes of a block: the multiple of inner / N that wastes fewest, 8 to 32; all where there are fewer. */
static int lane_shift(int64_t packs) {
  int best = 5;
  while (best && packs <= 1 << (best - 1)) best--;
  if (packs < 8) return best;
  for (int shift = best - 1; shift >= 3; shift--) {
    const int64_t waste = -packs & ((1 << shift) - 1), least = -packs & ((1 << best) - 1);
    if (waste < least) best = shift;
  }
  return best;
}

template <class In, class Out, int N>
static void long_columns(CabStream *s, int64_t outer, int64_t middle, int64_t inner, int64_t parts, double scale, const In *x, Out *y) {
  const int64_t packs = inner / N, step = (middle + parts - 1) / parts;
  const int shift = lane_shift(packs);
  const unsigned tiles = blocks_for(packs, 1 << shift);
  sum_long_columns<In, Out, N><<<(unsigned)(outer * tiles * parts), THREADS, 0, s->stream>>>(middle, inner, step, (unsigned)parts, tiles,
                                                                                        shift, (Wide<In>)scale, x, y);
}

template <class T, int N>
static void sum_columns(CabStream *s, int64_t outer, int64_t middle, int64_t inner, double scale, const T *x, T *y) {
  enum { SHORT = 32, MANY = 1 << 17 };
  typedef Wide<T> W;
  const int64_t packs = inner / N;
  if (middle <= SHORT || outer * packs >= MANY) {
    sum_short_columns<T, N><<<blocks_for(outer * packs, THREADS), THREADS, 0, s->stream>>>(outer, middle, inner, (W)scale, x, y);
    return;
  }
  const int shift = lane_shift(packs);
  const int64_t blocks = outer * blocks_for(packs, 1 << shift), rows = (THREADS >> shift) * 4;
  int64_t parts = blocks < ENOUGH / 2 ? TARGET / blocks : 1;
  if (parts > middle / rows) parts = middle / rows;
  if (parts <= 1) {
    long_columns<T, T, N>(s, outer, middle, inner, 1, scale, x, y);
    return;
  }
  Scratch sums(s, (size_t)(outer * parts * inner) * sizeof(W));
  if (!sums.data) return;
  long_columns<T, W, N>(s, outer, middle, inner, parts, 1, x, (W *)sums.data);
  constexpr int M = N > 4 ? 4 : N;
  long_columns<W, T, M>(s, outer, parts, inner, 1, scale, (const W *)sums.data, y);
}

template <class T>
static void sum_middle(CabStream *s, int64_t outer, int64_t middle, int64_t inner, double scale, const void *x, void *y) {
  constexpr int N = 16 / (int)sizeof(T);
  const T *from = (const T *)x;
  T *to = (T *)y;
  if (outer <= 0 || inner <= 0) return;
  if (inner == 1 && fits<T, N>(x, middle)) sum_rows<T, N>(s, outer, middle, scale, from, to);
  else if (inner == 1) sum_rows<T, 1>(s, outer, middle, scale, from, to);
  else if (fits<T, N>(x, inner) && fits<T, N>(y, inner)) sum_columns<T, N>(s, outer, middle, inner, scale, from, to);
  else sum_columns<T, 1>(s, outer, middle, inner, scale, from, to);
}

EXPORT(sum_middle)
