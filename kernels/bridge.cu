/* bridge.cu - the bridge of any size, tap by tap: products by the twins of gemm.h, between them kernels that take silu,
 * compare with the target and come down again, so that two hidden layers and the error are all that is ever stored, for one tap at a time. For the
 * sizes of bridge_tile.cuh all of that is one kernel. */
#include "bridge.h"

#include "bridge_tile.cuh"
#include "gemm.h"
#include "vector.cuh"

extern "C" {
extern linear_forward_fn *const linear_forward_cuda[3];
extern linear_backward_fn *const linear_backward_cuda[3];
extern column_sum_fn *const column_sum_cuda[3];
}

namespace {
template <class T> struct TypeIndex;
template <> struct TypeIndex<float> { enum { value = 0 }; };
template <> struct TypeIndex<double> { enum { value = 1 }; };
template <> struct TypeIndex<bf16> { enum { value = 2 }; };
} // namespace

enum { THREADS = 256, CHUNK = 64 /* rows of a block of `compare` */ };

/* ---- first layer ------------------------------------------------------------------------------ */

/* h = silu(v), DOWN: h *= silu'(v). */
template <class T, int V, bool DOWN> static __global__ void __launch_bounds__(THREADS) lift(int64_t n, const T *v, T *h) {
  for (int64_t i = (blockIdx.x * (int64_t)THREADS + threadIdx.x) * V; i < n; i += gridDim.x * (int64_t)THREADS * V) {
    Wide<T> x[V], y[V];
    load<T, V>(x, v + i);
    if (DOWN) load<T, V>(y, h + i);
#pragma unroll
    for (int k = 0; k < V; k++) {
      const Wide<T> sig = sigmoid(x[k]);
      y[k] = DOWN ? y[k] * silu_slope(x[k], sig) : x[k] * sig;
    }
    store<T, V>(h + i, y);
  }
}

/* ---- error ------------------------------------------------------------------------------------ */

template <class W> static __device__ __forceinline__ W mapped(BridgeMap map, W x, W mean, W deviation) {
  switch (map) {
    case BRIDGE_RELU: return x < 0 ? W(0) : x; /* NaN stays */
    case BRIDGE_EXP: return exp(x);
    case BRIDGE_STANDARD: return (x - mean) / deviation;
    default: return x;
  }
}

/* p has b2 in it. errors: sum of (p - map(target))^2 over the block. With sums: p = factor (p - map(target)), and
 * sums[blockIdx.x, j] its sum over the block's rows. A block has CHUNK rows and `lanes` threads of V columns on each of
 * THREADS / lanes rows at a time. Grid: chunks x column blocks. */
template <class T, int V>
static __global__ void __launch_bounds__(THREADS)
    compare(BridgeShape s, BridgeTap t, int lanes, Wide<T> factor, T *p, Wide<T> *errors, Wide<T> *sums) {
  typedef Wide<T> W;
  __shared__ W part[THREADS * V];
  const int lane = threadIdx.x % lanes, group = threadIdx.x / lanes, groups = THREADS / lanes;
  const int64_t D = s.D, rows = s.B * s.L, j = (blockIdx.y * (int64_t)lanes + lane) * V;
  const int64_t first = blockIdx.x * (int64_t)CHUNK, last = first + CHUNK < rows ? first + CHUNK : rows;
  W sum[V] = {}, error = 0;
  if (group < groups && j < D) {
    W mean[V] = {}, deviation[V] = {};
    for (int v = 0; v < V && s.map == BRIDGE_STANDARD; v++)
      mean[v] = ((const W *)t.mean)[j + v], deviation[v] = ((const W *)t.deviation)[j + v];
    int64_t image = (first + group) / s.L, l = (first + group) % s.L;
    for (int64_t r = first + group; r < last; r += groups) {
      W a[V], b[V];
      load(a, p + r * D + j);
      load(b, (const T *)t.target + (image * s.T + bridge_token(&s, l)) * t.ld_target + j);
#pragma unroll
      for (int v = 0; v < V; v++) {
        const W e = a[v] - mapped(s.map, b[v], mean[v], deviation[v]);
        error += e * e;
        sum[v] += a[v] = factor * e;
      }
      if (sums) store(p + r * D + j, a);
      for (l += groups; l >= s.L; l -= s.L) image++;
    }
  }
#pragma unroll
  for (int v = 0; v < V; v++) part[threadIdx.x * V + v] = sum[v];
  error = block_sum(error); /* a barrier, too */
  if (!threadIdx.x) errors[blockIdx.y * gridDim.x + blockIdx.x] = error;
  if (!sums || group || j >= D) return;
#pragma unroll
  for (int v = 0; v < V; v++) {
    W total = 0;
    for (int g = 0; g < groups; g++) total += part[(g * lanes + lane) * V + v];
    sums[blockIdx.x * D + j + v] = total;
  }
}

/* mse[i] = sum(errors) / n, y = mse[0] + .. + mse[i] */
template <class W>
static __global__ void __launch_bounds__(THREADS) finish(int64_t count, const W *errors, double n, int i, W *mse, W *y) {
  double sum = 0;
  for (int64_t k = threadIdx.x; k < count; k += THREADS) sum += (double)errors[k];
  sum = block_sum(sum);
  if (threadIdx.x) return;
  W total = W(sum / n);
  mse[i] = total;
  for (int k = 0; k < i; k++) total += mse[k];
  *y = total;
}

/* ---- one tap ---------------------------------------------------------------------------------- */

/* Launches `compare`; returns the number of errors it leaves. */
template <class T, int V>
static int64_t compare_by(CabStream *s, const BridgeShape &b, const BridgeTap &t, T *p, Wide<T> *errors, Wide<T> *sums) {
  const int64_t rows = b.B * b.L, packs = (b.D + V - 1) / V;
  const int lanes = packs < THREADS ? (int)packs : THREADS;
  const dim3 grid(blocks_for(rows, CHUNK), blocks_for(packs, lanes));
  if (rows)
    compare<T, V><<<grid, THREADS, 0, s->stream>>>(b, t, lanes, Wide<T>(2 / ((double)rows * (double)b.D)), p, errors, sums);
  return rows ? (int64_t)grid.x * grid.y : 0;
}

template <class T, bool DOWN> static void lift_rows(CabStream *s, int64_t n, const T *v, T *h) {
  constexpr int V = 16 / sizeof(T);
  if (n <= 0) return;
  const bool vector = n % V == 0 && packs<T, V>(v, V) && packs<T, V>(h, V);
  const int64_t blocks = (n / (vector ? V : 1) + THREADS - 1) / THREADS;
  (vector ? lift<T, V, DOWN> : lift<T, 1, DOWN>)<<<(unsigned)(blocks < 8192 ? blocks : 8192), THREADS, 0, s->stream>>>(n, v, h);
}

/* v, the argument of silu, and h, then p and from it the gradient of p, then gw2, gb2, the gradient of h and through the first layer. */
template <class T> static void run_tap(CabStream *s, const BridgeShape &b, const BridgeTap *taps, int i, Wide<T> *mse, Wide<T> *y) {
  typedef Wide<T> W;
  enum { TYPE = TypeIndex<T>::value, WIDE = TypeIndex<W>::value };
  const BridgeTap &t = taps[i];
  const int64_t rows = b.B * b.L, H = b.H, D = b.D, chunks = blocks_for(rows, CHUNK);
  const bool gradient = t.gx || t.gw1;
  Scratch vs(s, (size_t)(rows * H + 1) * sizeof(T)), hs(s, (size_t)(rows * H + 1) * sizeof(T)), ps(s, (size_t)(rows * D + 1) * sizeof(T));
  Scratch dhs(s, gradient ? (size_t)(rows * H + 1) * sizeof(T) : 0);
  Scratch partial(s, (size_t)(chunks * (D + (D + THREADS - 1) / THREADS) + 1) * sizeof(W));
  if (!vs.data || !hs.data || !ps.data || (gradient && !dhs.data) || !partial.data) return;
  T *v = (T *)vs.data, *h = (T *)hs.data, *p = (T *)ps.data, *dh = (T *)dhs.data;
  W *sums = (W *)partial.data, *errors = sums + chunks * D;
  linear_forward_cuda[TYPE](s, rows, H, b.N, t.x, t.ldx, t.w1, t.b1, v);
  lift_rows<T, false>(s, rows * H, v, h);
  linear_forward_cuda[TYPE](s, rows, D, H, h, H, t.w2, t.b2, p);
  const bool vector = D % 4 == 0 && packs<T, 4>(t.target, t.ld_target);
  const int64_t count = (vector ? compare_by<T, 4> : compare_by<T, 1>)(s, b, t, p, errors, gradient ? sums : NULL);
  finish<<<1, THREADS, 0, s->stream>>>(count, errors, rows ? (double)rows * (double)D : 1.0, i, mse, y);
  if (!gradient) return;
  linear_backward_cuda[TYPE](s, rows, D, H, p, h, H, t.w2, dh, false, t.gw2, NULL);
  if (t.gb2) column_sum_cuda[WIDE](s, chunks, D, sums, D, t.gb2);
  lift_rows<T, true>(s, rows * H, v, dh);
  linear_backward_cuda[TYPE](s, rows, H, b.N, dh, t.x, t.ldx, t.w1, t.gx, false, t.gw1, t.gb1);
}

/* False: not one of its sizes, nothing was launched. */
template <class T> static bool run_tiles(CabStream *s, const BridgeShape &b, const BridgeTap *tap, void *mse, void *y) {
  using bridge_tile::launch_by_width;
  constexpr size_t size = sizeof(T);
  if constexpr (size == sizeof(double)) return false;
  else if (size == sizeof(bf16) || s->precision != PRECISION_F32) return launch_by_width<T, false>(s, b, tap, (float *)mse, (float *)y);
  else return launch_by_width<T, size == sizeof(float)>(s, b, tap, (float *)mse, (float *)y);
}

template <class T>
static void bridge_forward(CabStream *s, const BridgeShape *b, const BridgeTap *tap, void *mse, void *y, void *) {
  if (run_tiles<T>(s, *b, tap, mse, y)) return;
  for (int i = 0; i < b->taps; i++) run_tap<T>(s, *b, tap, i, (Wide<T> *)mse, (Wide<T> *)y);
}

/* ---- backward --------------------------------------------------------------------------------- */

namespace {
enum { PIECES = 5 }; /* of a tap: gx, gw1, gb1, gw2, gb2 */
struct Pieces {
  const void *from[BRIDGE_TAPS][PIECES];
  void *to[BRIDGE_TAPS][PIECES];
  int64_t n[PIECES];
};
} // namespace

template <class E, class W> static __device__ __forceinline__ void scale_piece(int64_t n, W factor, const E *from, E *to) {
  for (int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x; i < n; i += gridDim.x * (int64_t)THREADS)
    to[i] = narrow<E>(factor * wide_of(from[i]));
}

/* Grid: blocks x pieces x taps. */
template <class T> static __global__ void __launch_bounds__(THREADS) scale_pieces(Pieces p, const Wide<T> *gy, const Wide<T> *gmse) {
  typedef Wide<T> W;
  const int piece = blockIdx.y, tap = blockIdx.z;
  const W factor = (gy ? *gy : W(0)) + (gmse ? gmse[tap] : W(0));
  const void *from = p.from[tap][piece];
  void *to = p.to[tap][piece];
  if (!to) return;
  if (piece == 0) scale_piece(p.n[piece], factor, (const T *)from, (T *)to);
  else scale_piece(p.n[piece], factor, (const W *)from, (W *)to);
}

template <class T>
static void bridge_backward(CabStream *s, const BridgeShape *b, const BridgeTap *tap, const void *gy, const void *gmse,
                            const BridgeTap *to) {
  Pieces p = {};
  const int64_t n[PIECES] = {b->B * b->L * b->N, b->H * b->N, b->H, b->D * b->H, b->D};
  int64_t most = 0;
  for (int i = 0; i < b->taps; i++) {
    const void *from[PIECES] = {tap[i].gx, tap[i].gw1, tap[i].gb1, tap[i].gw2, tap[i].gb2};
    void *where[PIECES] = {to[i].gx, to[i].gw1, to[i].gb1, to[i].gw2, to[i].gb2};
    for (int k = 0; k < PIECES; k++) {
      p.from[i][k] = from[k], p.to[i][k] = where[k], p.n[k] = n[k];
      if (where[k] && n[k] > most) most = n[k];
    }
  }
  if (!most) return;
  const int64_t blocks = (most + 4 * THREADS - 1) / (4 * THREADS);
  scale_pieces<T><<<dim3(blocks < 1024 ? (unsigned)blocks : 1024, PIECES, (unsigned)b->taps), THREADS, 0, s->stream>>>(
      p, (const Wide<T> *)gy, (const Wide<T> *)gmse);
}

EXPORT(bridge_forward)
EXPORT(bridge_backward)
