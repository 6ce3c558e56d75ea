/* ssd_tile.cuh - what both directions of the SSD scan on a GPU share: matrices in shared memory, products of a block of threads on
 * them, the decays of a tile of tokens.
 *
 * A block of threads has PB channels of one head and goes through the sequence in tiles of T tokens, the states [PB,NB] in the
 * registers of its tensor cores' sums: how long a chunk is changes nothing of the result, so s->chunk is not asked. Factors are bf16, or
 * f32 split in two TF32 numbers (bridge_mma.cuh), or double on the ordinary cores; sums are Wide. Sizes below PB and NB are
 * filled up with zeros. With c_i = l_1 + .. + l_i inside a tile, M_ij = exp(c_i - c_j) for j <= i, e_i = exp(c_i), w_j = exp(c_last - c_j),
 * each 0 where a segment begins in between. */
#ifndef CAB_KERNELS_SSD_TILE_CUH
#define CAB_KERNELS_SSD_TILE_CUH
#include "attention_tile.cuh"
#include "bridge_mma.cuh"
#include "ssd.h"

namespace ssd {

enum { WARPS = 8, THREADS = 32 * WARPS };

/* How a call of element type E is cut: a tile's tokens, channels and states of a block, tiles in flight, blocks wanted on a
 * multiprocessor forward and backward. */
template <class E_, int T_, int PB_, int NB_, int STAGES_, int FORWARD_, int BACKWARD_> struct Cut {
  typedef E_ E;
  typedef Wide<E_> W;
  enum { T = T_, PB = PB_, NB = NB_, STAGES = STAGES_, FORWARD = FORWARD_, BACKWARD = BACKWARD_ };
};

/* A call: its shape, its inputs, and whether their rows can be read 16 bytes at a time. */
template <class E> struct Inputs {
  SsdShape s;
  const E *x, *a, *b, *c, *dt;
  const Wide<E> *D, *start;
  const int32_t *segment;
  bool aligned;
};

/* The channels of a head that a block has: sequence b, head h, the member-th of its group, part of its channels; `first` channel, `live`
 * of PB. */
struct Place {
  int64_t b, h, part, parts, group, member, row; /* row: of the sequence's first token */
  int first, live;
  __device__ __forceinline__ Place(const SsdShape &s, int PB) {
    parts = (s.P + PB - 1) / PB;
    part = blockIdx.x % parts, h = blockIdx.x / parts % s.H, b = blockIdx.x / parts / s.H;
    group = h / (s.H / s.G), member = h % (s.H / s.G), row = b * s.L;
    first = (int)part * PB;
    live = (int)s.P - first < PB ? (int)s.P - first : PB;
  }
};

/* ---- matrices in shared memory ------------------------------------------------------------------ */

template <class E, int COLUMNS> struct Matrix {
  typedef bridge_tile::Swizzled<E, COLUMNS> At;
  static constexpr int PER = At::PER;
  static constexpr int bytes(int rows) { return rows * COLUMNS * (int)sizeof(E); }
  char *room;
  __device__ __forceinline__ uint32_t base() const { return shared_address(room); }
  __device__ __forceinline__ E get(int row, int c) const { return *(const E *)(room + bridge_tile::element_at<At>(row, c)); }
  /* Columns c, c + 1 with c even. */
  __device__ __forceinline__ void get_pair(int row, int c, Wide<E> (&to)[2]) const {
    const Pack<E, 2> p = *(const Pack<E, 2> *)(room + bridge_tile::element_at<At>(row, c));
    to[0] = wide_of(p.v[0]), to[1] = wide_of(p.v[1]);
  }
  __device__ __forceinline__ void put(int row, int c, Wide<E> a, Wide<E> b) const {
    Pack<E, 2> p = {narrow<E>(a), narrow<E>(b)};
    *(Pack<E, 2> *)(room + bridge_tile::element_at<At>(row, c)) = p;
  }
  /* The first `rows` and `columns` of from, zeros up to ROWS and COLUMNS; asynchronous where aligned. */
  template <int ROWS> __device__ __forceinline__ void stage(const E *from, int64_t ld, int rows, int columns, bool aligned) const {
    constexpr int CHUNKS = COLUMNS / PER;
    for (int i = threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
      const int r = i / CHUNKS, c = i % CHUNKS;
      char *to = room + At::at(r, c);
      if (aligned) {
        const bool in = r < rows && c * PER < columns;
        copy16(to, in ? from + r * ld + c * PER : from, in);
      } else {
        for (int e = 0; e < PER; e++) {
          const int column = c * PER + e;
          ((E *)to)[e] = r < rows && column < columns ? from[r * ld + column] : narrow<E>(0);
        }
      }
    }
  }
};

/* A matrix as a factor: [rows, depth], or with TURNED [depth, rows]; with `scale` times scale[depth]. */
template <class E, int COLUMNS, bool TURNED> struct Factor {
  typedef typename Matrix<E, COLUMNS>::At At;
  Matrix<E, COLUMNS> m;
  const E *scale;
  __device__ __forceinline__ void as_a(uint32_t (&f)[4], int row, int k, int lane) const {
    if (TURNED) bridge_tile::columns_as_a<At>(f, m.base(), row, k, lane);
    else bridge_tile::rows_as_a<At>(f, m.base(), row, k, lane);
    if (!scale) return;
    if constexpr (sizeof(E) == 2) {
      const E *s = scale + 16 * k + 2 * (lane % 4);
#pragma unroll
      for (int i = 0; i < 4; i++) *(__nv_bfloat162 *)&f[i] = __hmul2(*(__nv_bfloat162 *)&f[i], *(const __nv_bfloat162 *)(s + i / 2 * 8));
    } else {
#pragma unroll
      for (int i = 0; i < 4; i++) f[i] = __float_as_uint(__uint_as_float(f[i]) * (float)scale[8 * k + lane % 4 + i / 2 * 4]);
    }
  }
  __device__ __forceinline__ void as_b(uint32_t (&f)[4], int row, int k, int lane) const {
    if (TURNED) bridge_tile::columns_as_b<At>(f, m.base(), row, k, lane);
    else bridge_tile::rows_as_b<At>(f, m.base(), row, k, lane);
  }
  __device__ __forceinline__ double element(int row, int k) const {
    const double v = (double)wide_of(TURNED ? m.get(k, row) : m.get(row, k));
    return scale ? v * (double)wide_of(scale[k]) : v;
  }
};
template <class E, int COLUMNS> __device__ __forceinline__ Factor<E, COLUMNS, false> rows(const Matrix<E, COLUMNS> &m) { return {m, nullptr}; }
template <class E, int COLUMNS>
__device__ __forceinline__ Factor<E, COLUMNS, true> turned(const Matrix<E, COLUMNS> &m, const E *scale = nullptr) {
  return {m, scale};
}

/* ---- products of a block ------------------------------------------------------------------------ */

/* A result [R,C] over the warps: warp (wr, wc) has M fragments of 16 rows and N pairs of 8 columns. Warps with wc >= ACTIVE have
 * nothing. Of fragment m a thread has row(m, half) and columns column(n), column(n) + 1: sum[m][n][2 half + which]. */
template <class W_, int R, int C> struct Tiling {
  typedef W_ W;
  enum { WR = R >= 32 ? 2 : 1, WC = WARPS / WR, M = R / 16 / WR, PAIRS = C / 16, N = PAIRS >= WC ? PAIRS / WC : 1, ACTIVE = PAIRS / N };
  typedef W Sum[M][2 * N][4];
  static __device__ __forceinline__ int lane() { return threadIdx.x % 32; }
  static __device__ __forceinline__ int wr() { return threadIdx.x / 32 / WC; }
  static __device__ __forceinline__ int wc() { return threadIdx.x / 32 % WC; }
  static __device__ __forceinline__ bool mine() { return wc() < ACTIVE; }
  static __device__ __forceinline__ bool above() { return 16 * N * wc() >= 16 * M * (wr() + 1); } /* the diagonal, all of it */
  static __device__ __forceinline__ int row(int m, int half) { return 16 * (wr() * M + m) + lane() / 4 + 8 * half; }
  static __device__ __forceinline__ int column(int n) { return 16 * N * wc() + 8 * n + 2 * (lane() % 4); }
  static __device__ __forceinline__ void clear(Sum &c) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int n = 0; n < 2 * N; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) c[m][n][i] = 0;
  }
  /* f(m, half, n): a row's two neighbouring columns. */
  template <class F> static __device__ __forceinline__ void each(F f) {
    if (!mine()) return;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int half = 0; half < 2; half++)
#pragma unroll
        for (int n = 0; n < 2 * N; n++) f(m, half, n);
  }
};

/* c += a b^T, DEPTH deep. Called by all warps; LOWER: what lies above the diagonal is not asked for. */
template <class X, int DEPTH, bool LOWER = false, class E, int CA, bool TA, int CB, bool TB>
__device__ __forceinline__ void multiply(typename X::Sum &c, const Factor<E, CA, TA> &a, const Factor<E, CB, TB> &b) {
  if (!X::mine() || (LOWER && X::above())) return;
  const int lane = X::lane();
  if constexpr (sizeof(E) == 8) {
#pragma unroll 1
    for (int k = 0; k < DEPTH; k++)
      X::each([&](int m, int half, int n) {
        const double v = a.element(X::row(m, half), k);
        c[m][n][2 * half] += v * b.element(X::column(n), k);
        c[m][n][2 * half + 1] += v * b.element(X::column(n) + 1, k);
      });
  } else {
    const int row = 16 * X::wr() * X::M, column = 16 * X::N * X::wc();
    bridge_tile::product<E, sizeof(E) == 4, DEPTH * (int)sizeof(E) / 32, X::M, X::N>(
        c, [&](uint32_t(&f)[4], int m, int k) { a.as_a(f, row + 16 * m, k, lane); },
        [&](uint32_t(&f)[4], int n, int k) { b.as_b(f, column + 16 * n, k, lane); });
  }
}

/* Sums over the columns of each row: to[wc][row], for wc < ACTIVE. v(m, half): this thread's share. */
template <class X, int T, class F> __device__ __forceinline__ void row_sums(typename X::W (*to)[T], F v) {
  if (!X::mine()) return;
#pragma unroll
  for (int m = 0; m < X::M; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      typename X::W sum = v(m, half);
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      if (X::lane() % 4 == 0) to[X::wc()][X::row(m, half)] = sum;
    }
}

/* ---- decays ------------------------------------------------------------------------------------- */

__device__ __forceinline__ float power(float x) { return exp2_fast(x); }
__device__ __forceinline__ double power(double x) { return exp2(x); }
__device__ __forceinline__ double softplus(float x) { return (double)(fmaxf(x, 0.f) + log1pf(expf(-fabsf(x)))); }
__device__ __forceinline__ double softplus(double x) { return fmax(x, 0.0) + log1p(exp(-fabs(x))); }

/* Of a tile, in units of log 2. c_i is kept as the sum of two numbers: differences of neighbours are then exact enough. */
template <class E, int T> struct Decays {
  typedef Wide<E> W;
  alignas(16) E enters[T];
  E carries[T];                                              /* e_i, w_j dt_j to scale factors with */
  W high[T], low[T], enter[T], leave[T], step[T], carry[T]; /* c_i; e_i, w_j; dt_j (1 without, 0 past the end); w_j dt_j */
  W value[T];                                                /* a_i */
  int part[T];                                               /* segments begun since the tile's entry, by token */
  W keep;                                                    /* e_last */
};

/* M_ij for the places of a thread in X, a tiling of [T,T]: all that it takes is in registers. */
template <class X, class D> struct Mask {
  typedef typename X::W W;
  W row_high[X::M][2], row_low[X::M][2], high[2 * X::N][2], low[2 * X::N][2];
  int row_part[X::M][2], part[2 * X::N][2];
  __device__ __forceinline__ Mask(const D &d) {
#pragma unroll
    for (int k = 0; k < 2; k++) {
#pragma unroll
      for (int m = 0; m < X::M; m++) {
        const int i = X::row(m, k);
        row_high[m][k] = d.high[i], row_low[m][k] = d.low[i], row_part[m][k] = d.part[i];
      }
#pragma unroll
      for (int n = 0; n < 2 * X::N; n++) {
        const int j = X::column(n) + k;
        high[n][k] = d.high[j], low[n][k] = d.low[j], part[n][k] = d.part[j];
      }
    }
  }
  __device__ __forceinline__ W at(int m, int half, int n, int k) const {
    const bool seen = X::column(n) + k <= X::row(m, half) && row_part[m][half] == part[n][k];
    return seen ? power((row_high[m][half] - high[n][k]) + (row_low[m][half] - low[n][k])) : W(0);
  }
};

/* What a lane of the warp that makes a tile's decays reads of its EACH tokens, from EACH lane on. */
template <class W, int T> struct Ahead {
  enum { EACH = (T + 31) / 32 };
  W a[EACH], step[EACH];
  int begins[EACH];
  template <class E> __device__ __forceinline__ void load(const Inputs<E> &in, const Place &at, int64_t first) {
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      const int token = EACH * (threadIdx.x % 32) + i;
      const int64_t t = first + token;
      const bool live = t < in.s.L && token < T;
      const int64_t cell = (at.row + t) * in.s.H + at.h;
      a[i] = live ? wide_of(in.a[cell]) : W(0);
      step[i] = !live ? W(0) : in.dt ? wide_of(in.dt[cell]) : W(1);
      begins[i] = live && in.segment && t > 0 && in.segment[at.row + t] != in.segment[at.row + t - 1];
      if (!live) a[i] = in.s.log ? W(0) : W(-INFINITY); /* l = 0 */
    }
  }
};

/* By one warp. */
template <class E, int T> __device__ __forceinline__ void make_decays(const Ahead<Wide<E>, T> &from, bool log, Decays<E, T> &to) {
  typedef Wide<E> W;
  enum { EACH = (T + 31) / 32 };
  const int lane = threadIdx.x % 32;
  double sum[EACH], before = 0; /* of the lane's tokens up to i; of the lanes up to this one */
  int part[EACH], begun = 0;
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    sum[i] = before += (log ? (double)from.a[i] : -softplus(from.a[i])) * 1.4426950408889634;
    part[i] = begun += from.begins[i];
  }
  const double own = before;
  const int owned = begun;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const double other = __shfl_up_sync(0xffffffffu, before, d);
    const int others = __shfl_up_sync(0xffffffffu, begun, d);
    if (lane >= d) before += other, begun += others;
  }
#pragma unroll
  for (int i = 0; i < EACH; i++) sum[i] += before - own, part[i] += begun - owned;
  before = __shfl_sync(0xffffffffu, before, 31), begun = __shfl_sync(0xffffffffu, begun, 31); /* of the tile */
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int t = EACH * lane + i;
    if (t >= T) continue;
    const W high = (W)sum[i], leave = part[i] == begun ? power((W)(before - sum[i])) : W(0);
    to.high[t] = high, to.low[t] = (W)(sum[i] - (double)high), to.part[t] = part[i];
    to.enter[t] = part[i] ? W(0) : power(high);
    to.leave[t] = leave, to.step[t] = from.step[i], to.carry[t] = leave * from.step[i], to.value[t] = from.a[i];
    to.enters[t] = narrow<E>(to.enter[t]), to.carries[t] = narrow<E>(to.carry[t]);
  }
  if (lane == 0) to.keep = begun ? W(0) : power((W)before);
}

/* ---- results ------------------------------------------------------------------------------------ */

/* Two neighbouring columns, those below `live`; both at once if `even`: rows and columns begin on multiples of two. */
template <class E> __device__ __forceinline__ void write_pair(E *to, int c, int live, bool even, Wide<E> a, Wide<E> b) {
  if (even && c + 1 < live) {
    const Wide<E> both[2] = {a, b};
    store<E, 2>(to + c, both);
  } else {
    if (c < live) to[c] = narrow<E>(a);
    if (c + 1 < live) to[c + 1] = narrow<E>(b);
  }
}

/* to[i] = sum over k of from[k n + i], in order; V at a time. */
template <class E, int V> static __global__ void __launch_bounds__(256) add_parts(int64_t n, int64_t parts, const E *from, E *to) {
  for (int64_t i = (blockIdx.x * (int64_t)256 + threadIdx.x) * V; i < n; i += gridDim.x * (int64_t)256 * V) {
    Wide<E> sum[V] = {};
#pragma unroll 4
    for (int64_t k = 0; k < parts; k++) {
      Wide<E> v[V];
      load<E, V>(v, from + k * n + i);
#pragma unroll
      for (int e = 0; e < V; e++) sum[e] += v[e];
    }
    store<E, V>(to + i, sum);
  }
}

/* The state that a sequence begins with, as it lies in the sums of X. */
template <class X, class E>
__device__ __forceinline__ void load_state(typename X::Sum &S, const Inputs<E> &in, const Place &at, const Wide<E> *from) {
  X::clear(S);
  if (!from) return;
  X::each([&](int m, int half, int n) {
    const int p = X::row(m, half), c = X::column(n);
    const Wide<E> *row = from + ((at.b * in.s.H + at.h) * in.s.P + at.first + p) * in.s.N;
#pragma unroll
    for (int i = 0; i < 2; i++)
      if (p < at.live && c + i < in.s.N) S[m][n][2 * half + i] = row[c + i];
  });
}
template <class X, class E>
__device__ __forceinline__ void store_state(const typename X::Sum &S, const Inputs<E> &in, const Place &at, Wide<E> *to) {
  X::each([&](int m, int half, int n) {
    const int p = X::row(m, half), c = X::column(n);
    Wide<E> *row = to + ((at.b * in.s.H + at.h) * in.s.P + at.first + p) * in.s.N;
#pragma unroll
    for (int i = 0; i < 2; i++)
      if (p < at.live && c + i < in.s.N) row[c + i] = S[m][n][2 * half + i];
  });
}

template <class X, class E, int COLUMNS> __device__ __forceinline__ void put_all(const typename X::Sum &S, const Matrix<E, COLUMNS> &to) {
  X::each([&](int m, int half, int n) { to.put(X::row(m, half), X::column(n), S[m][n][2 * half], S[m][n][2 * half + 1]); });
}

/* Can all rows be read 16 bytes at a time? */
template <class E> static bool reads_packs(const SsdShape *s, const void *x, const void *b, const void *c) {
  constexpr int64_t PER = 16 / sizeof(E);
  return s->P % PER == 0 && s->N % PER == 0 && packs<E, (int)PER>(x, s->ldx) && packs<E, (int)PER>(b, s->ldb) && packs<E, (int)PER>(c, s->ldc);
}

/* The states S_t before each tile, [block, tile, PB, NB] in E, for backward. */
template <class C> static size_t kept_bytes(const SsdShape *s) {
  const int64_t tiles = (s->L + C::T - 1) / C::T, parts = (s->P + C::PB - 1) / C::PB;
  return (size_t)(s->B * s->H * parts * tiles * C::PB * C::NB) * sizeof(typename C::E);
}

/* f(Cut) for the sizes of a call. */
template <class F> static void with_cut(float, int64_t N, F f) {
  if (N <= 64) f(Cut<float, 64, 64, 64, 1, 2, 1>());
  else f(Cut<float, 32, 32, 256, 1, 1, 1>());
}
template <class F> static void with_cut(double, int64_t, F f) { f(Cut<double, 16, 16, 256, 1, 1, 1>()); }
template <class F> static void with_cut(bf16, int64_t N, F f) {
  if (N <= 64) f(Cut<bf16, 64, 64, 64, 2, 2, 2>());
  else if (N <= 128) f(Cut<bf16, 64, 64, 128, 2, 1, 1>());
  else f(Cut<bf16, 64, 64, 256, 1, 1, 1>());
}

/* A kernel may use `bytes` of shared memory; false, and the call has failed, if the device has less. */
template <class K> static bool allow(CabStream *s, K kernel, int bytes) {
  const cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (e != cudaSuccess) s->failed = 1, s->failed_call = "ssd: shared memory", s->failed_code = (int)e, (void)cudaGetLastError();
  return e == cudaSuccess;
}

} // namespace ssd

/* Writes ssd::kept_bytes of them (ssd.cu). */
template <class E>
void ssd_states(CabStream *s, const SsdShape *shape, const void *x, const void *a, const void *b, const void *dt, const void *start,
                const int32_t *segment, void *kept);
#endif
