/* map.cuh - y = f(x...) over strided operands of one shape. Dimensions that are contiguous for all operands are merged; a
 * thread then takes units of N neighbouring elements of the last one: 16 bytes where every operand is contiguous or
 * constant along it and aligned, else one element. Offsets take one multiplication a dimension instead of a division. */
#ifndef CAB_KERNELS_MAP_CUH
#define CAB_KERNELS_MAP_CUH
#include "vector.cuh"

enum { RANK = 8, THREADS = 256, UNROLL = 2 /* units a thread loads before it stores */ };
template <class T> constexpr int PACK = 16 / (int)sizeof(T); /* elements of one access */

/* ---- shapes ------------------------------------------------------------------------------------------------------ */

/* A shape and the strides of O operands over it, in elements; operand 0 is the output. */
template <int O> struct Walk {
  int rank;
  int64_t shape[RANK], stride[O][RANK];
};

template <int O> static int64_t size_of(const Walk<O> &w) {
  int64_t n = 1;
  for (int d = 0; d < w.rank; d++) n *= w.shape[d];
  return n;
}

/* Drops dimensions of size 1 and merges d, d+1 where every operand's stride[d] = shape[d+1] stride[d+1]. Rank >= 1. */
template <int O> static Walk<O> merged(const Walk<O> &from) {
  Walk<O> w = {};
  for (int d = 0; d < from.rank; d++) {
    const int64_t size = from.shape[d];
    if (size == 1) continue;
    bool merge = w.rank > 0;
    for (int o = 0; o < O; o++) merge = merge && w.stride[o][w.rank - 1] == size * from.stride[o][d];
    const int at = merge ? w.rank - 1 : w.rank++;
    w.shape[at] = merge ? w.shape[at] * size : size;
    for (int o = 0; o < O; o++) w.stride[o][at] = from.stride[o][d];
  }
  if (!w.rank) w.rank = 1, w.shape[0] = 1;
  return w;
}

/* n / d for n < 2^31, 1 <= d <= 2^31: (n + high word of n magic) >> shift (Granlund and Montgomery 1994). */
struct Divider {
  uint32_t d, magic, shift;
};
static Divider divider(int64_t d) {
  uint32_t shift = 0;
  while ((int64_t)1 << shift < d) shift++;
  const uint64_t excess = ((uint64_t)1 << shift) - (uint64_t)d;
  return {(uint32_t)d, (uint32_t)((excess << 32) / (uint64_t)d + 1), shift};
}
__device__ __forceinline__ uint32_t quotient(Divider by, uint32_t n) { return (__umulhi(n, by.magic) + n) >> by.shift; }

/* A walk counted in units of N elements of its last dimension. tail: elements of a single dimension after the last. */
template <int O> struct Units {
  uint32_t count;
  int rank, tail;
  Divider by[RANK];
  int64_t stride[O][RANK];
  __device__ __forceinline__ void seek(uint32_t unit, int64_t (&at)[O]) const {
#pragma unroll
    for (int o = 0; o < O; o++) at[o] = 0;
    for (int d = rank - 1; d > 0; d--) {
      const uint32_t q = quotient(by[d], unit), i = unit - q * by[d].d;
#pragma unroll
      for (int o = 0; o < O; o++) at[o] += i * stride[o][d];
      unit = q;
    }
#pragma unroll
    for (int o = 0; o < O; o++) at[o] += unit * stride[o][0];
  }
};
template <int O> static Units<O> units_of(const Walk<O> &w, int n) {
  Units<O> u = {};
  const int last = w.rank - 1;
  u.rank = w.rank;
  u.count = (uint32_t)(size_of(w) / n);
  u.tail = (int)(w.shape[last] % n);
  for (int d = 0; d < w.rank; d++) {
    u.by[d] = divider(d < last ? w.shape[d] : w.shape[d] >= n ? w.shape[d] / n : 1);
    for (int o = 0; o < O; o++) u.stride[o][d] = d < last ? w.stride[o][d] : n * w.stride[o][d];
  }
  return u;
}

/* ---- maps -------------------------------------------------------------------------------------------------------- */

/* What a map does with the inputs x of an element. LEAST: the fewest bytes of a unit worth a kernel of their own. */
struct Ordinary { static constexpr int LEAST = 16; };

/* Inputs that are NULL read as 0; outputs that are NULL are not written. All outputs stand alike. */
template <class T, int IN, int OUT> struct Operands {
  const T *in[IN];
  T *out[OUT];
};

template <class T, int N, int IN, int OUT, class F>
__device__ __forceinline__ void apply(const Operands<T, IN, OUT> &p, int64_t at, const Wide<T> (&x)[IN][N], const F &f) {
  Wide<T> y[OUT][N];
#pragma unroll
  for (int k = 0; k < N; k++) {
    Wide<T> from[IN], to[OUT];
#pragma unroll
    for (int i = 0; i < IN; i++) from[i] = x[i][k];
    f(from, to);
#pragma unroll
    for (int i = 0; i < OUT; i++) y[i][k] = to[i];
  }
#pragma unroll
  for (int i = 0; i < OUT; i++)
    if (p.out[i]) store(p.out[i] + at, y[i]);
}

/* stride: of the last dimension, 0 or N in elements unless N = 1. */
template <class T, int N> __device__ __forceinline__ void fetch(Wide<T> (&x)[N], const T *p, int64_t at, int64_t stride) {
  if (p && (N == 1 || stride)) {
    load(x, p + at);
    return;
  }
  const Wide<T> all = p ? wide_of(p[at]) : Wide<T>(0);
#pragma unroll
  for (int k = 0; k < N; k++) x[k] = all;
}

template <class T, int N, int IN, int OUT, class F>
static __global__ void __launch_bounds__(THREADS)
    map_kernel(const __grid_constant__ Units<IN + 1> u, const __grid_constant__ Operands<T, IN, OUT> p, F f) {
  const int last = u.rank - 1;
  for (uint32_t first = blockIdx.x * (THREADS * UNROLL) + threadIdx.x; first < u.count; first += gridDim.x * (THREADS * UNROLL)) {
    Wide<T> x[UNROLL][IN][N];
    int64_t to[UNROLL];
#pragma unroll
    for (int k = 0; k < UNROLL; k++) {
      const uint32_t unit = first + k * THREADS;
      if (unit >= u.count) continue;
      int64_t at[IN + 1];
      u.seek(unit, at);
      to[k] = at[0];
#pragma unroll
      for (int i = 0; i < IN; i++) fetch<T, N>(x[k][i], p.in[i], at[i + 1], u.stride[i + 1][last]);
    }
#pragma unroll
    for (int k = 0; k < UNROLL; k++)
      if (first + k * THREADS < u.count) apply<T, N>(p, to[k], x[k], f);
  }
  if (N > 1 && blockIdx.x == 0 && threadIdx.x < u.tail) { /* one dimension, strides N or 0 */
    const int64_t i = (int64_t)u.count * N + threadIdx.x;
    Wide<T> x[IN][1];
#pragma unroll
    for (int k = 0; k < IN; k++) fetch<T, 1>(x[k], p.in[k], i * (u.stride[k + 1][0] / N), 1);
    apply<T, 1>(p, i, x, f);
  }
}

/* Whether units of N elements do: contiguous or constant along the last dimension, aligned everywhere, and no rest
 * unless there is one dimension only. */
template <class T, int N, int O> static bool whole(const Walk<O> &w, int o, const void *p, bool output) {
  const int last = w.rank - 1;
  if (!p || (w.stride[o][last] == 0 && !output)) return true;
  bool fits = w.stride[o][last] == 1 && packs<T, N>(p, N);
  for (int d = 0; d < last; d++) fits = fits && w.stride[o][d] % N == 0;
  return fits;
}
template <class T, int N, int IN, int OUT> static bool fits(const Walk<IN + 1> &w, const Operands<T, IN, OUT> &p) {
  const int64_t size = w.shape[w.rank - 1];
  bool all = size >= N && (size % N == 0 || w.rank == 1);
  for (int i = 0; i < IN; i++) all = all && whole<T, N>(w, i + 1, p.in[i], false);
  for (int i = 0; i < OUT; i++) all = all && whole<T, N>(w, 0, p.out[i], true);
  return all;
}

template <class T, int N, int IN, int OUT, class F>
static void launch(CabStream *s, const Walk<IN + 1> &w, const Operands<T, IN, OUT> &p, const F &f) {
  if constexpr (N > 1) {
    if (!fits<T, N>(w, p)) {
      launch<T, (N / 2 * (int)sizeof(T) >= F::LEAST ? N / 2 : 1)>(s, w, p, f);
      return;
    }
  }
  const Units<IN + 1> u = units_of(w, N);
  const unsigned blocks = blocks_for(u.count, THREADS * UNROLL), most = s->multiprocessors * 32;
  map_kernel<T, N><<<blocks < most ? blocks : most, THREADS, 0, s->stream>>>(u, p, f);
}

/* Units are counted in 31 bits: larger maps go in halves of their first dimension. */
template <class T, int IN, int OUT, class F>
static void map(CabStream *s, const Walk<IN + 1> &walk, const Operands<T, IN, OUT> &p, const F &f) {
  const int64_t MOST = (int64_t)1 << 30;
  Walk<IN + 1> w = merged(walk);
  const int64_t total = size_of(w);
  if (total <= 0) return;
  if (total <= MOST) {
    launch<T, PACK<T>>(s, w, p, f);
    return;
  }
  const int64_t half = w.rank == 1 ? w.shape[0] / 32 * 16 : w.shape[0] / 2, rest = w.shape[0] - half;
  Operands<T, IN, OUT> second = p;
  for (int i = 0; i < IN; i++)
    if (p.in[i]) second.in[i] += half * w.stride[i + 1][0];
  for (int i = 0; i < OUT; i++)
    if (p.out[i]) second.out[i] += half * w.stride[0][0];
  w.shape[0] = half;
  map(s, w, p, f);
  w.shape[0] = rest;
  map(s, w, second, f);
}

/* All operands contiguous. */
template <class T, int IN, int OUT, class F>
static void map_flat(CabStream *s, int64_t n, const Operands<T, IN, OUT> &p, const F &f) {
  Walk<IN + 1> w = {};
  w.rank = 1, w.shape[0] = n;
  for (int o = 0; o <= IN; o++) w.stride[o][0] = 1;
  map(s, w, p, f);
}
#endif
