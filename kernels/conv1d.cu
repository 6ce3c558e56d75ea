/* conv1d.cu - a thread owns V neighbouring channels and a tile of steps; "step i" is the i-th token in scan order, token
 * i or L-1-i, so the reverse direction is the same code. With W the width:
 *   pre_i = bias + sum_j w_j x_{i-(W-1)+j};  gp = gy act'(pre);  gx_i = sum_j w_j gp_{i+(W-1)-j};
 *   gw_j = sum_i gp_i x_{i-(W-1)+j};  gbias = sum_i gp_i
 * A tile of gx needs gp, and so x, of W-1 steps on either side: they are read and computed again. Kernels exist for
 * W = 4 and W = 8; another width is one of 8 whose first `skip` taps are left out. */
#include "conv1d.h"

#include "vector.cuh"

enum { LANES = 32 }; /* threads side by side over channels; a warp has one tile of steps */

struct Conv {
  int64_t L, E, W, ld, tiles, units; /* units = B tiles: the tiles of steps of the whole batch */
  bool silu, reverse;
  const int32_t *place; /* [B,L] */
};

/* What a thread knows of its place: channel e, its tile's first step, and how to reach a step's rows. */
struct Place {
  int64_t e, first, row; /* row: of step 0 */
  int sign;              /* step i is row + sign i */
  bool inside;
};

template <int V> static __device__ __forceinline__ Place place(const Conv &c, int tile) {
  Place p;
  const int64_t unit = (int64_t)blockIdx.x * blockDim.y + threadIdx.y, b = unit / c.tiles;
  p.e = ((int64_t)blockIdx.y * LANES + threadIdx.x) * V;
  p.first = (unit - b * c.tiles) * tile;
  p.row = b * c.L + (c.reverse ? c.L - 1 : 0);
  p.sign = c.reverse ? -1 : 1;
  p.inside = unit < c.units && p.e < c.E;
  return p;
}

template <class W, int V> static __device__ __forceinline__ void zero(W (&a)[V]) {
#pragma unroll
  for (int v = 0; v < V; v++) a[v] = 0;
}

/* w and bias of V channels; w [W][V], taps left out are zeros. Threads of several channels and W = 4 find them aligned. */
template <class T, int V, int W>
static __device__ __forceinline__ void load_weights(const Conv &c, int64_t e, const Wide<T> *weight, const Wide<T> *bias,
                                                    Wide<T> (&w)[W][V], Wide<T> (&b)[V]) {
  if constexpr (V > 1 && W == 4) {
    const Pack<Wide<T>, V * W> all = *(const Pack<Wide<T>, V * W> *)(weight + e * W);
#pragma unroll
    for (int i = 0; i < V * W; i++) w[i % W][i / W] = all.v[i];
    if (bias) load<Wide<T>, V>(b, bias + e);
    else zero(b);
    return;
  }
  const int skip = W - (int)c.W;
#pragma unroll
  for (int v = 0; v < V; v++) {
    b[v] = bias ? bias[e + v] : Wide<T>(0);
#pragma unroll
    for (int j = 0; j < W; j++) w[j][v] = j >= skip ? weight[(e + v) * c.W + j - skip] : Wide<T>(0);
  }
}
template <class W, int V> static __device__ __forceinline__ void add_product(W (&sum)[V], const W (&a)[V], const W (&b)[V]) {
#pragma unroll
  for (int v = 0; v < V; v++) sum[v] += a[v] * b[v];
}

/* ---- forward -------------------------------------------------------------------------------- */

enum { FORWARD_ROWS = 4, FORWARD_TILE = 8 };

/* Block: LANES x FORWARD_ROWS; grid: units / FORWARD_ROWS x channel tiles. All of a thread's rows are loaded first. */
template <class T, int V, int W, bool DOCUMENTS>
static __global__ void __launch_bounds__(LANES *FORWARD_ROWS, W == 4 ? 5 : 4)
    conv_forward(Conv c, const T *x, const Wide<T> *weight, const Wide<T> *bias, T *y) {
  typedef Wide<T> R;
  const Place p = place<V>(c, FORWARD_TILE);
  if (!p.inside) return;
  const int skip = W == 4 ? 0 : W - (int)c.W;
  R xs[FORWARD_TILE + W - 1][V], w[W][V], b[V];
  const int64_t row = p.row + p.sign * p.first, rest = c.L - p.first, dx = p.sign * c.ld, dy = p.sign * c.E;
  const T *from = x + row * c.ld + p.e;
#pragma unroll
  for (int k = 0; k < FORWARD_TILE + W - 1; k++) {
    const int step = k - (W - 1); /* from the tile's first */
    if (p.first + step >= 0 && step < rest) load<T, V>(xs[k], from + step * dx);
    else zero(xs[k]);
  }
  load_weights<T>(c, p.e, weight, bias, w, b);
  T *to = y + row * c.E + p.e;
#pragma unroll
  for (int k = 0; k < FORWARD_TILE; k++) {
    if (k >= rest) break;
    R sum[V];
#pragma unroll
    for (int v = 0; v < V; v++) sum[v] = b[v];
#pragma unroll
    for (int j = 0; j < W; j++)
      if (j >= skip && (!DOCUMENTS || c.place[row + k] >= W - 1 - j)) add_product(sum, w[j], xs[k + j]);
#pragma unroll
    for (int v = 0; v < V; v++) sum[v] *= c.silu ? sigmoid(sum[v]) : R(1);
    store<T, V>(to + k * dy, sum);
  }
}

static Conv conv_of(int64_t B, int64_t L, int64_t E, int64_t W, bool silu, bool reverse, int64_t ld, const int32_t *place, int64_t tile) {
  Conv c;
  c.place = place, c.L = L, c.E = E, c.W = W, c.ld = ld, c.silu = silu, c.reverse = reverse;
  c.tiles = (L + tile - 1) / tile, c.units = B * c.tiles;
  return c;
}
template <class T> struct Width { enum { value = sizeof(T) == 8 ? 2 : 4 }; }; /* channels of a thread, where rows allow it */

/* Does load_weights find the parameters aligned? */
template <class T, int V> static bool packed_weights(const void *weight, const void *bias) {
  return packs<Wide<T>, V * 4>(weight, 0) && packs<Wide<T>, V>(bias, 0);
}

template <class T, int V, int W>
static void run_forward(CabStream *s, const Conv &c, const void *x, const void *weight, const void *bias, void *y) {
  const dim3 grid(blocks_for(c.units, FORWARD_ROWS), blocks_for(c.E, LANES * V)), block(LANES, FORWARD_ROWS);
  (c.place ? conv_forward<T, V, W, true> : conv_forward<T, V, W, false>)<<<grid, block, 0, s->stream>>>(
      c, (const T *)x, (const Wide<T> *)weight, (const Wide<T> *)bias, (T *)y);
}

template <class T>
static void conv1d_forward(CabStream *s, int64_t B, int64_t L, int64_t E, int64_t W, bool silu, bool reverse, const void *x,
                           int64_t ld, const int32_t *place, const void *weight, const void *bias, void *y) {
  constexpr int V = Width<T>::value;
  if (B <= 0 || L <= 0 || E <= 0) return;
  const Conv c = conv_of(B, L, E, W, silu, reverse, ld, place, FORWARD_TILE);
  const bool vector = E % V == 0 && packs<T, V>(x, ld) && packs<T, V>(y, E) && packed_weights<T, V>(weight, bias);
  void (*run)(CabStream *, const Conv &, const void *, const void *, const void *, void *) =
      vector ? W == 4 ? run_forward<T, V, 4> : run_forward<T, V, 8> : W == 4 ? run_forward<T, 1, 4> : run_forward<T, 1, 8>;
  run(s, c, x, weight, bias, y);
}

/* ---- backward ------------------------------------------------------------------------------- */

enum { BACKWARD_ROWS = 4, CHUNK = 4, BACKWARD_TILE = 5 * CHUNK };

/* Adds a block's sums of gw (gw[W]: gbias) in order of its rows and writes them: partial [block, W+1, E]. */
template <class T, int V, int W>
static __device__ void write_partial(const Conv &c, const Place &p, const Wide<T> (&gw)[W + 1][V], Wide<T> *partial) {
  __shared__ Wide<T> rows[BACKWARD_ROWS - 1][(W + 1) * V][LANES];
  const int row = threadIdx.y, lane = threadIdx.x, skip = W - (int)c.W;
  if (row) {
#pragma unroll
    for (int j = 0; j <= W; j++)
#pragma unroll
      for (int v = 0; v < V; v++) rows[row - 1][j * V + v][lane] = gw[j][v];
  }
  __syncthreads();
  if (row || p.e >= c.E) return;
#pragma unroll
  for (int j = 0; j <= W; j++) {
    if (j < skip) continue;
#pragma unroll
    for (int v = 0; v < V; v++) {
      Wide<T> sum = gw[j][v];
#pragma unroll
      for (int r = 0; r < BACKWARD_ROWS - 1; r++) sum += rows[r][j * V + v][lane];
      partial[(blockIdx.x * (c.W + 1) + j - skip) * c.E + p.e + v] = sum;
    }
  }
}

/* The registers of a thread. xs and gp are windows that slide by CHUNK steps: element W-1+k belongs to step i+k. */
template <class R, int V, int W> struct March {
  R w[W][V], b[V], xs[W - 1 + CHUNK][V], gp[W - 1 + CHUNK][V], gw[W + 1][V];
  int place[W - 1 + CHUNK]; /* of the steps of gp in their documents; unused without */
};

/* One step once its x and gy are there: gp, what it adds to gw, and the gx that is complete with it, that of W-1 steps
 * earlier. OWN: the step belongs to the tile, not to the next one. */
template <bool OWN, bool DOCUMENTS, class R, int V, int W>
static __device__ __forceinline__ void march(March<R, V, W> &m, int k, int skip, bool silu, const R (&gy)[V], R (&gx)[V]) {
  R pre[V], (&gp)[V] = m.gp[W - 1 + k];
#pragma unroll
  for (int v = 0; v < V; v++) pre[v] = m.b[v];
#pragma unroll
  for (int j = 0; j < W; j++)
    if (j >= skip && (!DOCUMENTS || m.place[W - 1 + k] >= W - 1 - j)) add_product(pre, m.w[j], m.xs[k + j]);
#pragma unroll
  for (int v = 0; v < V; v++) {
    gp[v] = gy[v] * (silu ? silu_slope(pre[v], sigmoid(pre[v])) : R(1));
    gx[v] = 0;
    if (OWN) m.gw[W][v] += gp[v];
  }
#pragma unroll
  for (int j = 0; j < W; j++) {
    if (j < skip) continue;
    if (OWN && (!DOCUMENTS || m.place[W - 1 + k] >= W - 1 - j)) add_product(m.gw[j], gp, m.xs[k + j]);
    if (!DOCUMENTS || m.place[W - 1 + k - j] >= W - 1 - j) add_product(gx, m.w[j], m.gp[W - 1 + k - j]);
  }
}

/* Steps i .. i+CHUNK-1 of a tile of `steps`; `left` steps have an x and a gradient, the others count as zeros. The
 * pointers are at step i: x and gy are read there, gx is written W-1 steps back. */
template <bool OWN, bool ADD, bool DOCUMENTS, class T, int V, int W>
static __device__ __forceinline__ void march_chunk(const Conv &c, March<Wide<T>, V, W> &m, int i, int steps, int left,
                                                   const int32_t *place, const T *x, int64_t dx, const T *gy, int64_t dgy, T *gx, int64_t dgx) {
  Wide<T> gys[CHUNK][V], sum[V];
#pragma unroll
  for (int k = 0; k < CHUNK; k++) {
    if (i + k < left) load<T, V>(m.xs[W - 1 + k], x + k * dx), load<T, V>(gys[k], gy + k * dgy);
    else zero(m.xs[W - 1 + k]), zero(gys[k]);
    if (DOCUMENTS) m.place[W - 1 + k] = i + k < left ? place[i + k] : 0;
  }
#pragma unroll
  for (int k = 0; k < CHUNK; k++) {
    march<OWN, DOCUMENTS>(m, k, W == 4 ? 0 : W - (int)c.W, c.silu, gys[k], sum);
    const int done = i + k - (W - 1);
    if (!gx || (unsigned)done >= (unsigned)steps) continue;
    if (ADD) {
      Wide<T> old[V];
      load<T, V>(old, gx + (k - (W - 1)) * dgx);
#pragma unroll
      for (int v = 0; v < V; v++) sum[v] += old[v];
    }
    store<T, V>(gx + (k - (W - 1)) * dgx, sum);
  }
#pragma unroll
  for (int k = 0; k < W - 1; k++) {
    if (DOCUMENTS) m.place[k] = m.place[k + CHUNK];
#pragma unroll
    for (int v = 0; v < V; v++) m.xs[k][v] = m.xs[k + CHUNK][v], m.gp[k][v] = m.gp[k + CHUNK][v];
  }
}

/* Block: LANES x BACKWARD_ROWS; grid: units / BACKWARD_ROWS x channel tiles. gx and partial may be NULL. ADD: to gx. Whole chunks make
 * a tile, so a step after its end in a chunk that starts inside is beyond the last token and adds zeros. */
template <class T, int V, int W, bool ADD, bool DOCUMENTS>
static __global__ void __launch_bounds__(LANES *BACKWARD_ROWS, sizeof(T) == 8 ? 3 : 4)
    conv_backward(Conv c, const T *x, const Wide<T> *weight, const Wide<T> *bias, const T *gy, T *gx, int64_t gld,
                  Wide<T> *partial) {
  const Place p = place<V>(c, BACKWARD_TILE);
  March<Wide<T>, V, W> m;
#pragma unroll
  for (int j = 0; j <= W; j++) zero(m.gw[j]);
  if (p.inside) {
    const int64_t rest = c.L - p.first, row = p.row + p.sign * p.first;
    const int steps = rest < BACKWARD_TILE ? (int)rest : BACKWARD_TILE;
    const int left = rest < BACKWARD_TILE + W - 1 ? (int)rest : BACKWARD_TILE + W - 1;
    const int64_t dx = p.sign * c.ld, dgy = p.sign * c.E, dgx = p.sign * gld;
    x += row * c.ld + p.e, gy += row * c.E + p.e;
    if (gx) gx += row * gld + p.e;
    load_weights<T>(c, p.e, weight, bias, m.w, m.b);
#pragma unroll
    for (int k = 0; k < W - 1; k++) {
      if (p.first + k >= W - 1) load<T, V>(m.xs[k], x + (k - (W - 1)) * dx);
      else zero(m.xs[k]);
      zero(m.gp[k]); /* of the tile before: reaches no gx of this one */
      m.place[k] = 0;
    }
    const int32_t *place = DOCUMENTS ? c.place + row : nullptr;
    for (int i = 0; i < steps + W - 1; i += CHUNK) {
      if (i < steps) march_chunk<true, ADD, DOCUMENTS>(c, m, i, steps, left, place, x, dx, gy, dgy, gx, dgx);
      else march_chunk<false, ADD, DOCUMENTS>(c, m, i, steps, left, place, x, dx, gy, dgy, gx, dgx);
      x += CHUNK * dx, gy += CHUNK * dgy;
      if (gx) gx += CHUNK * dgx;
    }
  }
  if (partial) write_partial<T, V, W>(c, p, m.gw, partial);
}

enum { SUM_ROWS = 8 };

/* Sums partial [blocks, W+1, E] over the blocks, every SUM_ROWS-th in one thread, into gweight [E,W] and gbias [E]. */
template <class R>
static __global__ void __launch_bounds__(LANES *SUM_ROWS)
    sum_partials(int64_t blocks, int64_t E, int64_t W, const R *partial, R *gweight, R *gbias) {
  __shared__ R part[SUM_ROWS][LANES];
  const int row = threadIdx.y, lane = threadIdx.x;
  const int64_t columns = (W + 1) * E, at = (int64_t)blockIdx.x * LANES + lane;
  R sum = 0;
  if (at < columns)
    for (int64_t i = row; i < blocks; i += SUM_ROWS) sum += partial[i * columns + at];
  part[row][lane] = sum;
  __syncthreads();
  if (row || at >= columns) return;
#pragma unroll
  for (int r = 1; r < SUM_ROWS; r++) sum += part[r][lane];
  const int64_t j = at / E, e = at % E;
  if (j < W && gweight) gweight[e * W + j] = sum;
  if (j == W && gbias) gbias[e] = sum;
}

template <class T, int V, int W>
static void run_backward(CabStream *s, const Conv &c, const void *x, const void *weight, const void *bias, const void *gy,
                         void *gx, int64_t gld, bool add_gx, void *partial) {
  const dim3 grid(blocks_for(c.units, BACKWARD_ROWS), blocks_for(c.E, LANES * V)), block(LANES, BACKWARD_ROWS);
  const bool add = add_gx && gx;
  auto *kernel = c.place ? add ? conv_backward<T, V, W, true, true> : conv_backward<T, V, W, false, true>
                         : add ? conv_backward<T, V, W, true, false> : conv_backward<T, V, W, false, false>;
  kernel<<<grid, block, 0, s->stream>>>(
      c, (const T *)x, (const Wide<T> *)weight, (const Wide<T> *)bias, (const T *)gy, (T *)gx, gld, (Wide<T> *)partial);
}

/* The caller's `partial`, sized for the CPU's few blocks, is left alone: here there is one partial sum per block. */
template <class T>
static void conv1d_backward(CabStream *s, int64_t B, int64_t L, int64_t E, int64_t W, bool silu, bool reverse, const void *x,
                            int64_t ld, const int32_t *place, const void *weight, const void *bias, const void *gy, void *gx,
                            int64_t gld, bool add_gx, void *gweight, void *gbias, void *) {
  constexpr int V = Width<T>::value;
  if (E <= 0) return;
  const Conv c = conv_of(B, L, E, W, silu, reverse, ld, place, BACKWARD_TILE);
  const bool parameters = gweight || gbias;
  const bool vector = E % V == 0 && packs<T, V>(x, ld) && packs<T, V>(gy, E) && packs<T, V>(gx, gld) &&
                      packed_weights<T, V>(weight, bias);
  const int64_t blocks = blocks_for(c.units, BACKWARD_ROWS);
  Scratch partial(s, parameters ? (size_t)(blocks * (W + 1) * E) * sizeof(Wide<T>) : 0);
  if (parameters && blocks && !partial.data) return;
  void (*run)(CabStream *, const Conv &, const void *, const void *, const void *, const void *, void *, int64_t, bool, void *) =
      vector ? W == 4 ? run_backward<T, V, 4> : run_backward<T, V / 2, 8> : W == 4 ? run_backward<T, 1, 4> : run_backward<T, 1, 8>;
  if (blocks && (gx || parameters)) run(s, c, x, weight, bias, gy, gx, gld, add_gx, partial.data);
  if (parameters)
    sum_partials<<<blocks_for((W + 1) * E, LANES), dim3(LANES, SUM_ROWS), 0, s->stream>>>(
        blocks, E, W, (const Wide<T> *)partial.data, (Wide<T> *)gweight, (Wide<T> *)gbias);
}

EXPORT(conv1d_forward)
EXPORT(conv1d_backward)
