/* attention.cu - blocks of queries against blocks of keys, the running maximum and the outputs in registers. Up to 128
 * columns a head the products are those of attention_tile.cuh; else, and for doubles, those of attention_plain.cuh.
 * Backward computes the scores again from lse, once for gq, a block of queries at a time, and once for gk and gv, a block
 * of keys at a time: each gradient has one writer, and the order of its sum is fixed. */
#include "attention.h"

#include <initializer_list>

#include "attention_plain.cuh"
#include "attention_tile.cuh"
#include "vector.cuh"

#define LOG2E 1.4426950408889634f
#define LN2 0.6931471805599453f

/* to[row] = factor[row] o[row] for the rows of this warp that are below `live`. */
template <class T, class E>
__device__ __forceinline__ void write_rows(const E &e, float (&o)[E::R][E::O], const float (&factor)[E::R], T *to,
                                           int64_t ld, int live, int P, bool aligned) {
#pragma unroll
  for (int r = 0; r < E::R; r++) {
    if (e.row(r) >= live) continue;
    T *row = to + e.row(r) * ld;
#pragma unroll
    for (int i = 0; i < E::O; i += E::VW) {
      float pack[E::VW];
#pragma unroll
      for (int w = 0; w < E::VW; w++) pack[w] = o[r][i + w] * factor[r];
      const int c = e.out(i);
      if (aligned && c < P) store<T, E::VW>(row + c, pack);
      else
        for (int w = 0; w < E::VW && c + w < P; w++) row[c + w] = narrow<T>(pack[w]);
    }
  }
}

/* One block of scores s against the running maximum: s becomes 2^(s - max), and what was summed before shrinks to fit. The
 * scores are in units of log 2. Columns from `live` on and, if causal, those of keys after their query are masked; `ahead`
 * is the warp's first query less the first key. With documents, so are columns before from[r]. */
template <class E>
__device__ __forceinline__ void soften(const E &e, float (&s)[E::R][E::C], float scale, int live, bool causal,
                                       int ahead, bool documents, const int (&from)[E::R], float (&max)[E::R],
                                       float (&sum)[E::R], float (&o)[E::R][E::O]) {
  const bool masked = documents || live < E::N || (causal && ahead < E::N - 1);
#pragma unroll
  for (int r = 0; r < E::R; r++) {
    float top = -INFINITY, fresh = 0;
#pragma unroll
    for (int c = 0; c < E::C; c++) {
      s[r][c] *= scale;
      if (masked && (e.col(c) >= live || (causal && e.col(c) > ahead + e.row(r)) || e.col(c) < from[r])) s[r][c] = -INFINITY;
      top = fmaxf(top, s[r][c]);
    }
    top = fmaxf(max[r], E::row_max(top));
    const float shift = top == -INFINITY ? 0 : top; /* nothing seen yet */
    const float kept = exp2_fast(max[r] - shift);
    max[r] = top;
#pragma unroll
    for (int c = 0; c < E::C; c++) {
      s[r][c] = exp2_fast(s[r][c] - shift);
      fresh += s[r][c];
    }
    sum[r] = sum[r] * kept + fresh;
#pragma unroll
    for (int i = 0; i < E::O; i++) o[r][i] *= kept;
  }
}

/* Shared memory: queries [BLOCK,LD], keys [N,LD], values [N,LD], E's own. Keys are fetched while the products with the
 * values run, values while the scores are computed. Blocks are in order of tiles, for the last, shorter ones to fill in. */
template <class T, class E, int BLOCKS>
static __global__ void __launch_bounds__(TILE_THREADS, BLOCKS) tiled_forward(AttentionForward<T> a) {
  enum { BLOCK = TILE_WARPS * E::ROWS, N = E::N, LD = E::LD };
  extern __shared__ __align__(16) unsigned char shared[];
  T *q = (T *)shared, *k = q + BLOCK * LD, *v = k + N * LD;
  const E e((float *)(v + N * LD));
  const int L = (int)a.L, P = (int)a.P, heads = (int)a.heads, head = blockIdx.x % heads, tile = blockIdx.x / heads;
  const int i0 = (a.causal ? (int)gridDim.x / heads - 1 - tile : tile) * BLOCK; /* the longest first */
  const int mine = e.base(), first = i0 + mine, keys = a.causal && i0 + BLOCK < L ? i0 + BLOCK : L;
  const int start = (int)a.first_key(head, i0) / N * N;
  const int64_t at = a.at(head, a.ld) + start * a.ld, out_ld = a.H * a.P;
  const float scale = a.scale * LOG2E;
  float o[E::R][E::O] = {}, s[E::R][E::C], max[E::R], sum[E::R] = {};
  int from[E::R] = {};
#pragma unroll
  for (int r = 0; r < E::R; r++) {
    max[r] = -INFINITY;
    if (a.place && first + e.row(r) < L) from[r] = (int)a.first_key(head, first + e.row(r)) - start;
  }
  stage<BLOCK, E::PAD>(q, a.q + a.at(head, a.ld) + i0 * a.ld, a.ld, L - i0, P, a.aligned);
  stage<N, E::PAD>(k, a.k + at, a.ld, keys - start, P, a.aligned);
  copies_end();
  stage<N, E::PAD>(v, a.v + at, a.ld, keys - start, P, a.aligned);
  copies_end();
  for (int j0 = start; j0 < keys; j0 += N) {
    const int left = keys - j0, live = left < N ? left : N;
    const int64_t next = at + (int64_t)(j0 - start + N) * a.ld;
    const bool work = first < L && (!a.causal || j0 < first + E::SPAN);
    copies_landed<1>();
    __syncthreads();
    if (work) e.scores(s, q + mine * LD, k, live);
    __syncthreads();
    if (left > N) stage<N, E::PAD>(k, a.k + next, a.ld, left - N, P, a.aligned);
    copies_end();
    if (work) soften(e, s, scale, live, a.causal, first - j0, a.place != nullptr, from, max, sum, o);
#pragma unroll
    for (int r = 0; r < E::R; r++) from[r] -= N;
    copies_landed<1>();
    __syncthreads();
    if (work) e.products(o, s, v, live);
    __syncthreads();
    if (left > N) stage<N, E::PAD>(v, a.v + next, a.ld, left - N, P, a.aligned);
    copies_end();
  }
#pragma unroll
  for (int r = 0; r < E::R; r++) {
    sum[r] = E::row_sum(sum[r]);
    const float lse = max[r] * LN2 + logf(sum[r]);
    sum[r] = 1 / sum[r];
    if (e.col(0) == 0 && first + e.row(r) < L) a.lse[head * a.L + first + e.row(r)] = lse;
  }
  write_rows(e, o, sum, a.out + a.at(head, out_ld) + first * out_ld, out_ld, L - first, P, a.aligned);
}

/* s becomes A = exp(scale s - lse) and g = gout v^T becomes dS = A (g + gmap - D), both 0 where masked. Rows from `row` and
 * `live` columns from `col`; with KEYS the rows are keys. */
template <bool KEYS, class T, class E>
__device__ __forceinline__ void slopes(const E &e, const AttentionBackward<T> &a, int head, int row, int col, int live,
                                       float (&s)[E::R][E::C], float (&g)[E::R][E::C]) {
  constexpr int QUERIES = KEYS ? E::C : E::R;
  const int L = (int)a.L;
  const float scale = a.scale * LOG2E;
  float lse[QUERIES], dots[QUERIES];
  int from[QUERIES];
#pragma unroll
  for (int i = 0; i < QUERIES; i++) {
    const int query = KEYS ? col + e.col(i) : row + e.row(i);
    from[i] = a.place && query < L ? (int)a.first_key(head, query) : 0;
    lse[i] = query < L ? a.lse[head * a.L + query] * LOG2E : 0;
    dots[i] = query < L ? a.dots[head * a.L + query] : 0;
  }
#pragma unroll
  for (int r = 0; r < E::R; r++)
#pragma unroll
    for (int c = 0; c < E::C; c++) {
      const int query = KEYS ? col + e.col(c) : row + e.row(r), key = KEYS ? row + e.row(r) : col + e.col(c);
      const bool seen = e.col(c) < live && (!a.causal || key <= query) && key >= from[KEYS ? c : r];
      if (a.gmap && query < L && key < L) g[r][c] += wide_of(a.gmap[(head * a.L + query) * a.L + key]);
      s[r][c] = seen ? exp2_fast(s[r][c] * scale - lse[KEYS ? c : r]) : 0;
      g[r][c] = seen ? s[r][c] * (g[r][c] - dots[KEYS ? c : r]) : 0;
    }
}

/* Gradients of a block of rows x1, x2 against all rows y1, y2. Rows are queries (q, gout against k, v): gq = scale dS k; or
 * with KEYS keys (k, v against q, gout): gk = scale dS^T q, gv = A^T gout.
 * Shared memory: x1 [BLOCK,LD], x2 [BLOCK,LD], y1 [N,LD], y2 [N,LD], E's own. */
template <class T, class E, bool KEYS>
static __global__ void __launch_bounds__(TILE_THREADS) tiled_backward(AttentionBackward<T> a) {
  enum { BLOCK = TILE_WARPS * E::ROWS, N = E::N, LD = E::LD };
  extern __shared__ __align__(16) unsigned char shared[];
  T *x1 = (T *)shared, *x2 = x1 + BLOCK * LD, *y1 = x2 + BLOCK * LD, *y2 = y1 + N * LD;
  const E e((float *)(y2 + N * LD));
  const int L = (int)a.L, P = (int)a.P, heads = (int)a.heads, head = blockIdx.x % heads, tile = blockIdx.x / heads;
  const int r0 = (!KEYS && a.causal ? (int)gridDim.x / heads - 1 - tile : tile) * BLOCK; /* the longest first */
  const int mine = e.base(), first = r0 + mine, start = KEYS ? a.causal ? r0 : 0 : (int)a.first_key(head, r0) / N * N;
  const int stop = !KEYS && a.causal && r0 + BLOCK < L ? r0 + BLOCK : L;
  const int64_t out_ld = a.H * a.P, at = a.at(head, a.ld), x2_ld = KEYS ? a.ld : out_ld, y2_ld = KEYS ? out_ld : a.ld;
  const T *gout = a.gout + a.at(head, out_ld), *from1 = (KEYS ? a.q : a.k) + at, *from2 = KEYS ? gout : a.v + at;
  float ds[E::R][E::O] = {}, as[E::R][E::O] = {}, s[E::R][E::C], g[E::R][E::C];
  stage<BLOCK, E::PAD>(x1, (KEYS ? a.k : a.q) + at + r0 * a.ld, a.ld, L - r0, P, a.aligned);
  stage<BLOCK, E::PAD>(x2, (KEYS ? a.v + at : gout) + r0 * x2_ld, x2_ld, L - r0, P, a.aligned);
  for (int c0 = start; c0 < stop; c0 += N) {
    const int live = stop - c0 < N ? stop - c0 : N;
    stage<N, E::PAD>(y1, from1 + c0 * a.ld, a.ld, live, P, a.aligned);
    stage<N, E::PAD>(y2, from2 + c0 * y2_ld, y2_ld, live, P, a.aligned);
    copies_end();
    copies_landed<0>();
    __syncthreads();
    if (first < L && (!a.causal || (KEYS ? first < c0 + N : c0 < first + E::SPAN))) {
      e.scores(s, x1 + mine * LD, y1, live);
      e.scores(g, x2 + mine * LD, y2, live);
      slopes<KEYS>(e, a, head, first, c0, live, s, g);
      if (KEYS) e.products(as, s, y2, live);
      e.products(ds, g, y1, live);
    }
    __syncthreads();
  }
  float scale[E::R], one[E::R];
#pragma unroll
  for (int r = 0; r < E::R; r++) scale[r] = a.scale, one[r] = 1;
  const int64_t to = a.at(head, a.gld) + first * a.gld;
  T *gx = KEYS ? a.gk : a.gq;
  if (gx) write_rows(e, ds, scale, gx + to, a.gld, L - first, P, a.aligned);
  if (KEYS && a.gv) write_rows(e, as, one, a.gv + to, a.gld, L - first, P, a.aligned);
}

/* ---- choice of kernel --------------------------------------------------------------------------- */

/* Launches a kernel for every TILE_WARPS * E::ROWS rows of each head, with `held` tiles of that many rows and two of N in
 * shared memory; false where the device cannot hold those. */
template <class T, class E, class Args>
static bool launch(CabStream *s, void (*kernel)(Args), int held, const Args &a) {
  constexpr int block = TILE_WARPS * E::ROWS;
  const int64_t blocks = (a.L + block - 1) / block * a.heads; /* no count of rows in the kernel exceeds it * block */
  const int bytes = (int)((held * block + 2 * E::N) * E::LD * sizeof(T) + TILE_WARPS * E::SHARE * sizeof(float));
  if (blocks > INT32_MAX / block) return false;
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) != cudaSuccess) {
    (void)cudaGetLastError(); /* not a fault: the caller has another kernel */
    return false;
  }
  kernel<<<(unsigned)blocks, TILE_THREADS, bytes, s->stream>>>(a);
  return true;
}

template <class T, class E, int BLOCKS> static bool forward_with(CabStream *s, const AttentionForward<T> &a) {
  return launch<T, E>(s, tiled_forward<T, E, BLOCKS>, 1, a);
}
template <class T, class E> static bool backward_with(CabStream *s, const AttentionBackward<T> &a) {
  if (a.gq && !launch<T, E>(s, tiled_backward<T, E, false>, 2, a)) return false;
  return !(a.gk || a.gv) || launch<T, E>(s, tiled_backward<T, E, true>, 2, a);
}

/* How many rows of L a thread of Fma takes, 4 to 8, for least cost: each block costs its rows, those past the end too,
 * and as much as 2 rows more. */
static int rows_for(int64_t L) {
  int best = 8;
  int64_t least = INT64_MAX;
  for (int r = 8; r >= 4; r--) {
    const int64_t block = 4 * TILE_WARPS * r, cost = (L + block - 1) / block * (r + 2);
    if (cost < least) least = cost, best = r;
  }
  return best;
}
template <int PAD, int R> using Spread = Fma<PAD, R, 4 * TILE_WARPS>;

/* The tile kernels of head size PAD; the last number of a forward is the blocks wanted on a multiprocessor. */
template <int PAD> static bool tiled(CabStream *s, const AttentionForward<bf16> &a) {
  return forward_with<bf16, Mma<bf16, PAD, 64>, PAD <= 64 ? 4 : 3>(s, a);
}
template <int PAD> static bool tiled(CabStream *s, const AttentionForward<float> &a) {
  if (s->precision != PRECISION_F32) return forward_with<float, Mma<float, PAD, 64>, PAD <= 64 ? 4 : 2>(s, a);
  if constexpr (PAD > 64) return forward_with<float, Spread<PAD, 4>, 2>(s, a);
  else switch (rows_for(a.L)) {
      case 8: return forward_with<float, Spread<PAD, 8>, 3>(s, a);
      case 7: return forward_with<float, Spread<PAD, 7>, 3>(s, a);
      case 6: return forward_with<float, Spread<PAD, 6>, 3>(s, a);
      case 5: return forward_with<float, Spread<PAD, 5>, 3>(s, a);
      default: return forward_with<float, Spread<PAD, 4>, 3>(s, a);
    }
}
template <int PAD> static bool tiled(CabStream *s, const AttentionBackward<bf16> &a) {
  return backward_with<bf16, Mma<bf16, PAD, 32>>(s, a);
}
template <int PAD> static bool tiled(CabStream *s, const AttentionBackward<float> &a) {
  return s->precision != PRECISION_F32 ? backward_with<float, Mma<float, PAD, 32>>(s, a)
                                       : backward_with<float, Fma<PAD, 4, 4>>(s, a);
}

/* False: no tile kernel was launched. */
template <class Args> static bool by_tiles(CabStream *s, const Args &a) {
  if (a.P == 0 || a.P > 128) return false;
  if (a.P <= 32) return tiled<32>(s, a);
  return a.P <= 64 ? tiled<64>(s, a) : tiled<128>(s, a);
}
static bool by_tiles(CabStream *, const AttentionForward<double> &) { return false; }
static bool by_tiles(CabStream *, const AttentionBackward<double> &) { return false; }

static unsigned grid(int64_t jobs) { return (unsigned)(jobs < INT32_MAX ? jobs : INT32_MAX); }

/* Can rows of these strides and sizes, from these pointers, be moved 16 bytes at a time? */
template <class T>
static bool aligned(std::initializer_list<const void *> pointers, std::initializer_list<int64_t> sizes) {
  for (const void *p : pointers)
    if ((uintptr_t)p % 16) return false;
  for (int64_t n : sizes)
    if (n * (int64_t)sizeof(T) % 16) return false;
  return true;
}

template <class T>
static void attention_forward(CabStream *s, int64_t B, int64_t L, int64_t H, int64_t P, double scale, bool causal,
                              const void *q, const void *k, const void *v, int64_t ld, const int32_t *place, void *out, void *lse,
                              void *map) {
  if (B * H <= 0 || L <= 0) return;
  const bool moves = aligned<T>({q, k, v, out}, {ld, P});
  const AttentionHeads<T> heads = {B * H, L, H, P, ld, (Wide<T>)scale, causal, moves,
                                   (const T *)q, (const T *)k, (const T *)v, place};
  const AttentionForward<T> a = {heads, (T *)out, (Wide<T> *)lse, (T *)map};
  const int64_t tiles = (L + plain::TILE - 1) / plain::TILE;
  if (!by_tiles(s, a)) plain::forward<T><<<grid(B * H * tiles), plain::THREADS, 0, s->stream>>>(a);
  if (map) plain::map<T><<<grid(B * H * tiles * tiles), plain::THREADS, 0, s->stream>>>(a);
}

template <class T>
static void attention_backward(CabStream *s, int64_t B, int64_t L, int64_t H, int64_t P, double scale, bool causal,
                               const void *q, const void *k, const void *v, int64_t ld, const int32_t *place, const void *out, const void *lse,
                               const void *gout, const void *gmap, void *gq, void *gk, void *gv, int64_t gld) {
  if (B * H <= 0 || L <= 0 || P <= 0) return;
  Scratch dots(s, B * H * L * sizeof(Wide<T>));
  if (!dots.data) return;
  const bool moves = aligned<T>({q, k, v, gout, gq, gk, gv}, {ld, P, gld});
  const AttentionHeads<T> heads = {B * H, L, H, P, ld, (Wide<T>)scale, causal, moves,
                                   (const T *)q, (const T *)k, (const T *)v, place};
  const AttentionBackward<T> a = {heads, (const T *)out, (const T *)gout, (const T *)gmap, (const Wide<T> *)lse,
                                  (Wide<T> *)dots.data, (T *)gq, (T *)gk, (T *)gv, gld};
  const int64_t tiles = (L + plain::TILE - 1) / plain::TILE, chunks = (P + plain::CHUNK - 1) / plain::CHUNK;
  const unsigned jobs = grid(B * H * tiles * chunks);
  plain::row_dots<T><<<grid((B * H * L + 7) / 8), plain::THREADS, 0, s->stream>>>(a);
  if (gmap) plain::map_dots<T><<<grid(B * H * tiles), plain::THREADS, 0, s->stream>>>(a);
  if (by_tiles(s, a)) return;
  if (gq) plain::backward<T, false><<<jobs, plain::THREADS, 0, s->stream>>>(a);
  if (gk || gv) plain::backward<T, true><<<jobs, plain::THREADS, 0, s->stream>>>(a);
}

EXPORT(attention_forward)
EXPORT(attention_backward)
