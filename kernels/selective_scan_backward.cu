/* selective_scan_backward.cu - the gradients of the scan (layout: selective_scan.cuh).
 *
 * Chunks go from the last to the first. A chunk is replayed from its stored entry state, h_t of all its tokens staying in
 * registers (where all its decays are 1 it needs neither: march_still); then the adjoint runs backwards, with g_t = gy_t silu(z_t):
 *   gh_t = g_t C_t + a_{t+1} gh_{t+1};  gC_t = g_t h_t;  gB_t = gh_t d_t u_t;  q_t = a_t gh_t h_{t-1};
 *   gA = sum_t q_t d_t;  gd_t = sum_n q_t A + u_t sum_n gh_t B_t;  gu_t = d_t sum_n gh_t B_t + D g_t.
 * a_t is computed again: a second exponential costs less than 64 more registers.
 *
 * Sums over states go through shared memory, those over channels (gB, gC) through shuffles to one row per warp, through
 * shared memory to one per block, and through scratch to one; sums over tokens stay in registers to the end and meet over
 * the batch in scratch. With a weight, gx_t = gd_t softplus'; gdt_t = sum_e gx_t weight takes the way of gB, and gweight =
 * sum_t gx_t dt_t that of gA, but for staying in shared memory. All orders are fixed.
 *
 * A scan all of whose decays are 1 is left to still_kernel: forward has said which, and the other kernel ends at once. */
#include "selective_scan_still.cuh"

namespace scan {

template <class W> struct alignas(16) Slot { W d, du, g, u; };

template <class W, bool GATE> struct BackwardShared {
  Slot<W> slot[TOKENS][CHANNELS<W>];
  Pair<W> sums[TOKENS][QUADS][COLUMNS<W>];                 /* over 4 states: q A log2 e, gh B */
  W y[GATE ? TOKENS : 1][QUADS][COLUMNS<W>];               /* and C h */
  W slope[TOKENS][CHANNELS<W>];                            /* of d */
  W slope_z[GATE ? TOKENS : 1][CHANNELS<W>];               /* gy silu'(z) */
  Four<W> b[TOKENS][2][QUADS], c[TOKENS][2][QUADS];
  W rows[THREADS<W> / 32][TOKENS][2 * GROUP];              /* gB, gC summed over the channels of a warp */
};

template <class T> struct RawAdjoint { T u, dt, gy, z; };

/* Reads this thread's tokens of a chunk, those below count; the others are 0. */
template <bool GATE, bool LOW, class T>
__device__ __forceinline__ void fetch(const Scan<T> &p, const T *gy, const Cursor &tokens, const Cursor &gates, int row,
                                      int count, RawAdjoint<T> (&raw)[PASSES]) {
#pragma unroll
  for (int i = 0; i < PASSES; i++) raw[i] = {T(0.f), T(0.f), T(0.f), T(0.f)};
  tokens.each(row, count, [&](int i, int64_t o) { raw[i].u = p.u[o], raw[i].dt = LOW ? T(0.f) : p.dt[o], raw[i].gy = gy[o]; });
  if (GATE) gates.each(row, count, [&](int i, int64_t o) { raw[i].z = p.z[o]; });
}

/* Sums over the 8 channels of a warp, of gB and gC for 4 states. Lanes of odd channels hold even and odd states exchanged,
 * so the first exchange needs no selection. Lane 8 q + c gets gC (c & 2) or gB of state 4 q + 2 (c >> 2) + (c & 1). */
template <class W> __device__ __forceinline__ W sum_channels(const W (&b)[4], const W (&c)[4], int lane) {
  const unsigned all = 0xffffffffu;
  const W b0 = b[0] + __shfl_xor_sync(all, b[1], 1), b2 = b[2] + __shfl_xor_sync(all, b[3], 1);
  const W c0 = c[0] + __shfl_xor_sync(all, c[1], 1), c2 = c[2] + __shfl_xor_sync(all, c[3], 1);
  const bool is_c = lane & 2, high = lane & 4;
  const W x0 = (is_c ? c0 : b0) + __shfl_xor_sync(all, is_c ? b0 : c0, 2);
  const W x2 = (is_c ? c2 : b2) + __shfl_xor_sync(all, is_c ? b2 : c2, 2);
  return (high ? x2 : x0) + __shfl_xor_sync(all, high ? x0 : x2, 4);
}

/* What one token gives, but for the carry. before, h: the states that it finds and leaves; gh: their adjoint. */
template <bool GATE, class W> struct Token {
  BackwardShared<W, GATE> &sh;
  const Part<W> &me;
  const bool later; /* sums of other states are there already */
  const int odd, place;
  __device__ __forceinline__ Token(BackwardShared<W, GATE> &shared, const Part<W> &part, bool other)
      : sh(shared), me(part), later(other), odd(part.lane & 1), place((part.lane & 2) * 8 + 4 * part.q + (part.lane & 4) / 2 + (part.lane & 1)) {}
  __device__ __forceinline__ Slot<W> slot(int j) const { return sh.slot[j][me.channel]; }
  __device__ __forceinline__ Four<W> b(int j) const { return sh.b[j][odd][me.q]; }
  __device__ __forceinline__ Four<W> c(int j) const { return sh.c[j][odd][me.q]; }
  __device__ __forceinline__ void put(int j, W gd, W gdu, W y, const W (&gb)[4], const W (&gc)[4]) const {
    if (later) gd += sh.sums[j][me.q][me.channel].x, gdu += sh.sums[j][me.q][me.channel].y;
    sh.sums[j][me.q][me.channel] = {gd, gdu};
    if (GATE) sh.y[j][me.q][me.channel] = later ? y + sh.y[j][me.q][me.channel] : y;
    sh.rows[me.warp][j][place] = sum_channels(gb, gc, me.lane);
  }
};

/* 4 states through a chunk and back. entry: the states at its entry. */
template <bool GATE, class W>
__device__ __forceinline__ void march(const Token<GATE, W> &token, const W (&rate)[4], const W (&entry)[4], W (&carry)[4], W (&gA)[4]) {
  W h[TOKENS + 1][4];
#pragma unroll
  for (int n = 0; n < 4; n++) h[0][n] = entry[n];
#pragma unroll
  for (int j = 0; j < TOKENS; j++) {
    const W d = token.slot(j).d, du = token.slot(j).du;
    const Four<W> b = token.b(j);
#pragma unroll
    for (int n = 0; n < 4; n++) h[j + 1][n] = power2(d * rate[n]) * h[j][n] + du * b.x[n];
  }
  asm volatile("" ::: "memory"); /* or the compiler keeps the exponentials, and spills */
#pragma unroll
  for (int j = TOKENS - 1; j >= 0; j--) {
    const Slot<W> x = token.slot(j);
    const Four<W> b = token.b(j), c = token.c(j);
    W gd = 0, gdu = 0, y = 0, gb[4], gc[4];
#pragma unroll
    for (int n = 0; n < 4; n++) {
      const W gh = carry[n] + x.g * c.x[n];
      gc[n] = x.g * h[j + 1][n];
      gb[n] = x.du * gh;
      gdu += gh * b.x[n];
      if (GATE) y += c.x[n] * h[j + 1][n];
      carry[n] = gh * power2(x.d * rate[n]);
      const W q = carry[n] * h[j][n];
      gd += q * rate[n];
      gA[n] += q * x.d;
    }
    token.put(j, gd, gdu, y, gb, gc);
  }
}

/* The same where every decay of the chunk is 1. No states are kept: each token's share is taken out of those at the exit
 * again. entry and no exit: it is found first. */
template <bool GATE, class W>
__device__ __forceinline__ void march_still(const Token<GATE, W> &token, const W (&rate)[4], bool exit_known, const W (&entry)[4],
                                            const W (&exit)[4], W (&carry)[4], W (&gA)[4]) {
  W h[4];
#pragma unroll
  for (int n = 0; n < 4; n++) h[n] = exit_known ? exit[n] : entry[n];
  if (!exit_known)
#pragma unroll 4
    for (int j = 0; j < TOKENS; j++) {
      const W du = token.slot(j).du;
      const Four<W> b = token.b(j);
#pragma unroll
      for (int n = 0; n < 4; n++) h[n] += du * b.x[n];
    }
#pragma unroll 4
  for (int j = TOKENS - 1; j >= 0; j--) {
    const Slot<W> x = token.slot(j);
    const Four<W> b = token.b(j), c = token.c(j);
    W gd = 0, gdu = 0, y = 0, gb[4], gc[4];
#pragma unroll
    for (int n = 0; n < 4; n++) {
      carry[n] += x.g * c.x[n];
      gc[n] = x.g * h[n];
      gb[n] = x.du * carry[n];
      gdu += carry[n] * b.x[n];
      if (GATE) y += c.x[n] * h[n];
      h[n] -= x.du * b.x[n];
      const W q = carry[n] * h[n];
      gd += q * rate[n];
      gA[n] += q * x.d;
    }
    token.put(j, gd, gdu, y, gb, gc);
  }
}

/* gB, gC of a block's channels: adds the warps' rows of a chunk. at: of slot threadIdx.x / GROUP in a row of by_tile. */
template <bool GATE, class T>
__device__ __forceinline__ void add_warps(const BackwardShared<Wide<T>, GATE> &sh, const Scan<T> &p, const Cursor &at,
                                          int count, int group, Wide<T> *by_tile) {
  typedef Wide<T> W;
  constexpr int AT_ONCE = THREADS<W> / GROUP;
  const int slot = threadIdx.x / GROUP, v = threadIdx.x % GROUP * 2;
  const int64_t left = p.s.N - group * GROUP - v % GROUP;
  W *to = by_tile + at.offset + group * GROUP;
#pragma unroll
  for (int j = slot; j < slot + TOKENS; j += AT_ONCE, to += AT_ONCE * at.step) {
    Pair<W> sum = {0, 0};
#pragma unroll
    for (int w = 0; w < THREADS<W> / 32; w++) {
      const Pair<W> part = *reinterpret_cast<const Pair<W> *>(&sh.rows[w][j][v]);
      sum.x += part.x, sum.y += part.y;
    }
    if (j < count && left > 0) to[0] = sum.x;
    if (j < count && left > 1) to[1] = sum.y;
  }
}

/* What a chunk gives through its gx to dt and to the weight. */
template <class T>
__device__ __forceinline__ void project_back(const Adjoint<T> &a, const Low<Wide<T>> &low, const Part<Wide<T>> &me, const Place &at,
                                             int chunk, int count) {
  const ScanShape &s = a.scan.s;
  if (a.by_batch) low.add_weight(me, chunk);
  if (!a.by_tile) return;
  const int64_t rows = s.B * s.L, t = (int64_t)chunk * TOKENS, row = at.b * s.L + (s.reverse ? s.L - 1 - t : t);
  low.add_channels(count, a.by_tile + (at.tile * (2 * s.N + s.R) + 2 * s.N) * rows + row * s.R, s.reverse ? -s.R : s.R);
}

/* Grid: blocks x scans. */
template <class T, bool GATE, bool ONE, bool LOW>
static __global__ void __launch_bounds__(THREADS<Wide<T>>, sizeof(Wide<T>) == 4 ? 2 : 1)
    backward_kernel(const __grid_constant__ Each<Adjoint<T>> each) {
  typedef Wide<T> W;
  extern __shared__ __align__(16) char memory[];
  BackwardShared<W, GATE> &sh = *reinterpret_cast<BackwardShared<W, GATE> *>(memory);
  const Low<W> low(memory + sizeof sh, each.of[0].scan.s.R);
  const Adjoint<T> &a = each.of[blockIdx.y];
  const Scan<T> &p = a.scan;
  const ScanShape &s = p.s;
  if (a.tiles && stands_still(p, a.h)) return; /* still_kernel's */
  if (a.tiles && !blockIdx.x && !threadIdx.x) *a.tiles = (int)p.tiles;
  const Place at = place_of(p, blockIdx.x);
  const Part<W> me;
  const int odd = me.lane & 1, last = at.end - 1;
  const int64_t e0 = at.tile * CHANNELS<W>, column = e0 + me.column, e = e0 + me.channel;
  const int64_t segment = at.b * p.segments + at.segment, wide_row = s.E * (s.N + 2 + s.R);
  const bool inside = column < s.E;
  const W D = p.D && inside ? p.D[column] : W(0), bias = p.bias && inside ? p.bias[column] : W(0);
  if (LOW) low.take(p.weight, e0, s.E), low.stage(p, at.b, last, tokens_of(p, last));
  const W peak = peak_rate(p.A, column, s, me); /* synchronises */
  Cursor tokens(s, at.b, last, me.row, p.step_e, column), gates(s, at.b, last, me.row, p.step_z, column);
  const int pair = threadIdx.x % GROUP * 2;
  Cursor rows(s, at.b, last, threadIdx.x / GROUP, p.step_n,
              s.B * s.L * (at.tile * (2 * s.N + s.R) + pair / GROUP * s.N) + pair % GROUP);
  Feed<T, 2> feed_b(p.b, s, p.step_b, at.b, last), feed_c(p.c, s, p.step_c, at.b, last);
  RawAdjoint<T> raw[PASSES];
  W rate[4], entry[4], exit[4], carry[4], gA[4], gD = 0, gbias = 0; /* exit: of chunk k, unless it is the last of all */
  const int64_t states = e < s.E ? s.N - 4 * me.q : 0; /* from this lane's first on */
  const W *h = a.h + ((at.b * p.chunks + last) * s.N + 4 * me.q) * s.E + e;
  const W *entries = a.entries + (segment * s.N + 4 * me.q) * s.E + e;
  W *totals = a.by_batch + segment * wide_row;
  fetch<GATE, LOW>(p, a.gy, tokens, gates, me.row, inside ? tokens_of(p, last) : 0, raw);
  if (ONE) {
    load_states(h, s.E, last ? states : 0, odd, entry);
    load_states(h + s.N * s.E, s.E, last + 1 < p.chunks ? states : 0, odd, exit);
#pragma unroll
    for (int n = 0; n < 4; n++) rate[n] = rate_at(p.A, 4 * me.q + (n ^ odd), e, s), carry[n] = gA[n] = 0;
    if (a.entries) load_states(entries, s.E, states, odd, carry);
  }
  for (int k = last; k >= at.first; k--) {
    const int count = tokens_of(p, k), mine = inside ? count : 0;
    W d[PASSES], slope[PASSES];
    bool moving = false;
#pragma unroll
    for (int i = 0; i < PASSES; i++) d[i] = wide_of(raw[i].dt) + bias;
    if (LOW) low.project(me, k, d);
    find_steps(p, d, slope);
#pragma unroll
    for (int i = 0; i < PASSES; i++) {
      const int j = me.row + ROWS * i;
      const W u = wide_of(raw[i].u);
      W g = wide_of(raw[i].gy);
      if (j >= mine) d[i] = 0;
      moving |= decays(d[i] * peak);
      if (GATE) {
        const W z = wide_of(raw[i].z), sig = sigmoid(z);
        sh.slope_z[j][me.column] = g * (sig + z * sig * (1 - sig));
        g *= z * sig;
      }
      sh.slot[j][me.column] = {d[i], d[i] * u, g, u};
      sh.slope[j][me.column] = slope[i];
    }
    for (int group = 0; group < (ONE ? 1 : p.groups); group++) {
      const int64_t n0 = group * GROUP;
      W *park = a.parked + ((int64_t)blockIdx.x * p.groups + group) * 8 * THREADS<W> + threadIdx.x;
      feed_b.stage(count, n0, s.N, sh.b[0][0]);
      feed_c.stage(count, n0, s.N, sh.c[0][0]);
      if (!ONE) {
        load_states(h + n0 * s.E, s.E, k ? states - n0 : 0, odd, entry);
        load_states(h + (s.N + n0) * s.E, s.E, k + 1 < p.chunks ? states - n0 : 0, odd, exit);
#pragma unroll
        for (int n = 0; n < 4; n++) {
          rate[n] = rate_at(p.A, n0 + 4 * me.q + (n ^ odd), e, s);
          carry[n] = k < last ? park[n * THREADS<W>] : W(0);
          gA[n] = k < last ? park[(n + 4) * THREADS<W>] : W(0);
        }
        if (k == last && a.entries) load_states(entries + n0 * s.E, s.E, states - n0, odd, carry);
      }
      if (group) __syncthreads();
      else moving = __syncthreads_or(moving);
      if (LOW && !group && k > at.first) low.stage(p, at.b, k - 1, TOKENS);
      const Token<GATE, W> token(sh, me, group > 0);
      if (moving) march(token, rate, entry, carry, gA);
      else march_still(token, rate, k + 1 < p.chunks, entry, exit, carry, gA);
#pragma unroll
      for (int n = 0; n < 4; n++) {
        if (!ONE) park[n * THREADS<W>] = carry[n], park[(n + 4) * THREADS<W>] = gA[n];
        if (k == at.first && a.by_batch && (n ^ odd) < states - n0) totals[e * s.N + n0 + 4 * me.q + (n ^ odd)] = gA[n];
      }
      __syncthreads();
      if (a.by_tile) add_warps<GATE>(sh, p, rows, count, group, a.by_tile);
    }
    const Cursor here = tokens;
    tokens.previous_chunk(), gates.previous_chunk(), rows.previous_chunk();
    feed_b.cursor.previous_chunk(), feed_c.cursor.previous_chunk();
    h -= s.N * s.E;
    fetch<GATE, LOW>(p, a.gy, tokens, gates, me.row, inside && k > at.first ? TOKENS : 0, raw);
    if (LOW)
#pragma unroll
      for (int i = 0; i < PASSES; i++)
        if (me.row + ROWS * i >= mine) low.gx[(me.row + ROWS * i) * low.PITCH + me.column] = 0;
    here.each(me.row, mine, [&](int i, int64_t o) {
      const int j = me.row + ROWS * i;
      const Slot<W> x = sh.slot[j][me.column];
      W gd = 0, gdu = 0, y = D * x.u;
#pragma unroll
      for (int q = 0; q < QUADS; q++) {
        gd += sh.sums[j][q][me.column].x, gdu += sh.sums[j][q][me.column].y;
        if (GATE) y += sh.y[j][q][me.column];
      }
      const W gx = (gd * W(LN2) + gdu * x.u) * sh.slope[j][me.column]; /* the rates carry log2 e */
      gbias += gx;
      gD += x.g * x.u;
      if (LOW) low.gx[j * low.PITCH + me.column] = gx;
      else if (a.gdt) a.gdt[o] = narrow<T>(gx);
      if (a.gu) a.gu[o] = narrow<T>(gdu * x.d + D * x.g);
      if (GATE && a.gz) a.gz[o] = narrow<T>(sh.slope_z[j][me.column] * y);
    });
    if (LOW) {
      __syncthreads();
      project_back(a, low, me, at, k, count);
    }
    if (ONE) {
#pragma unroll
      for (int n = 0; n < 4; n++) exit[n] = entry[n];
      load_states(h, s.E, k > at.first && k > 1 ? states : 0, odd, entry);
    }
  }
  if (!a.by_batch) return;
  if (LOW && inside)
    for (int q = me.row; q < low.quads; q += ROWS)
#pragma unroll
      for (int i = 0; i < 4; i++)
        if (4 * q + i < low.R) totals[s.E * (s.N + 2) + column * low.R + 4 * q + i] = low.gweight[q * CHANNELS<W> + me.column].x[i];
  __syncthreads();
  sh.sums[me.row][0][me.column] = {gD, gbias};
  __syncthreads();
  if (me.row || !inside) return;
#pragma unroll
  for (int r = 1; r < ROWS; r++) gD += sh.sums[r][0][me.column].x, gbias += sh.sums[r][0][me.column].y;
  W *to = totals + s.E * s.N + column;
  to[0] = gD, to[s.E] = gbias;
}

/* Columns of a sum that go to several arrays, one after another. */
template <class O> struct Output {
  O *to; /* may be NULL */
  int64_t columns, width, ld; /* of them `width` to a row, rows of stride ld */
  bool add;
};
/* The sum of the rows of from[rows, columns], or of the first *fewer of them. from NULL: nothing is asked for. */
template <class O> struct Sum {
  int64_t rows, columns;
  const int *fewer;
  const Wide<O> *from;
  Output<O> to[4];
};

/* SPLIT threads to a column. Grid: columns x scans. */
template <class O, int SPLIT> static __global__ void __launch_bounds__(256) add_rows_kernel(const __grid_constant__ Each<Sum<O>> each) {
  typedef Wide<O> W;
  constexpr int WIDTH = 256 / SPLIT;
  __shared__ W part[SPLIT][WIDTH];
  const Sum<O> &s = each.of[blockIdx.y];
  if (!s.from) return;
  const int64_t rows = s.fewer ? *s.fewer : s.rows;
  const int x = threadIdx.x % WIDTH, y = threadIdx.x / WIDTH;
  int64_t i = (int64_t)blockIdx.x * WIDTH + x;
  W sum = 0;
  if (i < s.columns)
#pragma unroll 8
    for (int64_t r = y; r < rows; r += SPLIT) sum += s.from[r * s.columns + i];
  if constexpr (SPLIT > 1) {
    part[y][x] = sum;
    __syncthreads();
    if (y) return;
#pragma unroll
    for (int r = 1; r < SPLIT; r++) sum += part[r][x];
  }
#pragma unroll
  for (int k = 0; k < 4; k++) {
    const Output<O> &o = s.to[k];
    if (i >= 0 && i < o.columns && o.to) {
      O *to = o.to + (o.width == o.ld ? i : i / o.width * o.ld + i % o.width);
      *to = narrow<O>(o.add ? wide_of(*to) + sum : sum);
    }
    i -= o.columns;
  }
}

template <class T, bool GATE, bool ONE, bool LOW> static void launch(CabStream *s, int count, const Each<Adjoint<T>> &each) {
  typedef Wide<T> W;
  auto kernel = backward_kernel<T, GATE, ONE, LOW>;
  const int bytes = (int)sizeof(BackwardShared<W, GATE>) + Low<W>::bytes(each.of[0].scan.s.R);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  kernel<<<dim3((unsigned)blocks_of(each.of[0].scan), count), THREADS<W>, bytes, s->stream>>>(each);
}

template <bool GATE, bool ONE, class T> static void launch(CabStream *s, int count, const Each<Adjoint<T>> &each) {
  each.of[0].scan.s.R ? launch<T, GATE, ONE, true>(s, count, each) : launch<T, GATE, ONE, false>(s, count, each);
}

static void clear(CabStream *s, void *to, int64_t bytes) {
  if (to && bytes) cudaMemsetAsync(to, 0, (size_t)bytes, s->stream);
}

/* A gradient in rows of stride ld that nothing adds to. */
template <class T> static void clear_rows(CabStream *s, void *to, int64_t rows, int64_t n, int64_t ld) {
  if (to && rows && n) cudaMemset2DAsync(to, (size_t)ld * sizeof(T), 0, (size_t)n * sizeof(T), (size_t)rows, s->stream);
}

/* Sums of nothing. */
template <class T> static void clear_sums(CabStream *stream, const ScanShape *s, const ScanGradients &to) {
  typedef Wide<T> W;
  const int64_t E = s->E * sizeof(W), rows = s->B * s->L;
  clear(stream, to.A, s->N * E), clear(stream, to.D, E), clear(stream, to.bias, E), clear(stream, to.weight, s->R * E);
  if (!to.add_b) clear_rows<T>(stream, to.b, rows, s->N, to.ldb);
  if (!to.add_c) clear_rows<T>(stream, to.c, rows, s->N, to.ldc);
  if (s->R) clear_rows<T>(stream, to.dt, rows, s->R, to.ldt);
}

template <class T>
static Adjoint<T> prepare(CabStream *stream, Room &room, const Scan<T> &p, const void *h, const void *gy, const ScanGradients &to,
                          bool still) {
  typedef Wide<T> W;
  const ScanShape &s = p.s;
  const bool tiled = ((to.b || to.c) && s.N) || (to.dt && s.R), batched = to.A || to.D || to.bias || to.weight;
  W *by_tile = (W *)room.get(tiled ? (size_t)(p.tiles * s.B * s.L * (2 * s.N + s.R)) * sizeof(W) : 0);
  W *by_batch = (W *)room.get(batched ? (size_t)(s.B * p.segments * s.E * (s.N + 2 + s.R)) * sizeof(W) : 0);
  W *parked = (W *)room.get(p.groups > 1 ? (size_t)(blocks_of(p) * p.groups * 8 * THREADS<W>) * sizeof(W) : 0);
  const W *entries = find_entries<true>(stream, p, gy, room.get(entries_bytes(p)));
  if (!p.z) clear(stream, to.z, s.B * s.L * s.E * sizeof(T));
  return {p, (const W *)h, entries, (const T *)gy, (T *)to.u, (T *)to.dt, (T *)to.z, by_tile, by_batch, parked,
          still ? (int *)room.get(sizeof(int)) : nullptr};
}

template <class T> static void add_up(CabStream *stream, int count, const Each<Adjoint<T>> &each, const ScanGradients *to) {
  typedef Wide<T> W;
  const ScanShape &s = each.of[0].scan.s;
  const int64_t rows = s.B * s.L, tiled = rows * (2 * s.N + s.R), columns = s.E * (s.N + 2 + s.R);
  Each<Sum<T>> by_tile = {};
  Each<Sum<W>> by_batch = {};
  bool tile = false, batch = false;
  for (int i = 0; i < count; i++) {
    const Adjoint<T> &a = each.of[i];
    const ScanGradients &g = to[i];
    tile |= a.by_tile != nullptr, batch |= a.by_batch != nullptr;
    by_tile.of[i] = {a.scan.tiles, tiled, a.tiles, a.by_tile,
                     {{(T *)g.b, rows * s.N, s.N, g.ldb, g.add_b}, {(T *)g.c, rows * s.N, s.N, g.ldc, g.add_c}, {(T *)g.dt, rows * s.R, s.R, g.ldt, false}}};
    by_batch.of[i] = {s.B * a.scan.segments, columns, nullptr, a.by_batch,
                      {{(W *)g.A, s.E * s.N}, {(W *)g.D, s.E}, {(W *)g.bias, s.E}, {(W *)g.weight, s.E * s.R}}};
  }
  if (tile) add_rows_kernel<T, 1><<<dim3(blocks_for(tiled, 256), count), 256, 0, stream->stream>>>(by_tile);
  if (batch) add_rows_kernel<W, 8><<<dim3(blocks_for(columns, 32), count), 256, 0, stream->stream>>>(by_batch);
}

template <class T>
static void backward(CabStream *stream, int count, const ScanShape *s, const ScanInputs *in, const void *const *h,
                     const void *const *gy, const ScanGradients *to) {
  if (!s->B || !s->L || !s->E) {
    for (int i = 0; i < count; i++) clear_sums<T>(stream, &s[i], to[i]);
    return;
  }
  Room room(stream);
  Each<Adjoint<T>> each = {};
  const bool gate = in->z;
  int tiles = 0, warps = 0;
  for (int i = 0; i < count; i++) {
    const Scan<T> p = plan<T>(stream, &s[i], in[i], 2, count);
    const bool still = still_scan(stream, s, p, gate, count, &tiles, &warps);
    each.of[i] = prepare<T>(stream, room, p, h[i], gy[i], to[i], still);
  }
  if (stream->failed) return;
  const bool one = each.of[0].scan.groups == 1;
  if (one) gate ? launch<true, true>(stream, count, each) : launch<false, true>(stream, count, each);
  else gate ? launch<true, false>(stream, count, each) : launch<false, false>(stream, count, each);
  if constexpr (sizeof(T) != sizeof(double))
    if (tiles) launch_still(stream, count, each, tiles, warps);
  add_up(stream, count, each, to);
}

} // namespace scan

template <class T>
static void scan_backward(CabStream *stream, const ScanShape *s, const ScanInputs *in, const void *h, const void *gy,
                          const ScanGradients *to, void * /* of the CPU */) {
  scan::backward<T>(stream, 1, s, in, &h, &gy, to);
}

template <class T>
static void scan_pair_backward(CabStream *stream, const ScanShape *s, const ScanInputs *in, const void *const *h,
                               const void *const *gy, const ScanGradients *to, void *) {
  scan::backward<T>(stream, SCAN_PAIR, s, in, h, gy, to);
}

EXPORT(scan_backward)
EXPORT(scan_pair_backward)
