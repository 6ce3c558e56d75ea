/* selective_scan.cu - the scan forward, and its matrix for pictures (layout: selective_scan.cuh).
 *
 * Per token and state one exponential and four multiplications or additions; per token and lane three vector loads from
 * shared memory and one store. The next chunk's tokens are fetched from memory while the states march. What still_forward_kernel can do
 * it has done before. */
#include "scan_pair.h"
#include "selective_scan_still_forward.cuh"

namespace scan {

template <class T> struct Raw { T u, dt, z; };

template <class W> struct ForwardShared {
  Pair<W> token[TOKENS][CHANNELS<W>]; /* d, d u */
  W y[TOKENS][QUADS][COLUMNS<W>];     /* sums over 4 states */
  Four<W> b[TOKENS][QUADS], c[TOKENS][QUADS];
};

/* Reads this thread's tokens of a chunk, those below count; the others are 0. */
template <bool LOW, class T>
__device__ __forceinline__ void fetch(const Scan<T> &p, const Cursor &tokens, const Cursor &gates, int row, int count,
                                      Raw<T> (&raw)[PASSES]) {
#pragma unroll
  for (int i = 0; i < PASSES; i++) raw[i] = {T(0.f), T(0.f), T(0.f)};
  tokens.each(row, count, [&](int i, int64_t o) { raw[i].u = p.u[o], raw[i].dt = LOW ? T(0.f) : p.dt[o]; });
  if (p.z) gates.each(row, count, [&](int i, int64_t o) { raw[i].z = p.z[o]; });
}

/* 4 states through a chunk. */
template <bool MOVING, class W>
__device__ __forceinline__ void march(ForwardShared<W> &sh, const Part<W> &me, const W (&rate)[4], W (&state)[4]) {
#pragma unroll
  for (int j = 0; j < TOKENS; j++) {
    const Pair<W> t = sh.token[j][me.channel];
    const Four<W> b = sh.b[j][me.q], c = sh.c[j][me.q];
    W sum = 0;
#pragma unroll
    for (int n = 0; n < 4; n++) {
      state[n] = (MOVING ? power2(t.x * rate[n]) * state[n] : state[n]) + t.y * b.x[n];
      sum += state[n] * c.x[n];
    }
    sh.y[j][me.q][me.channel] = sum;
  }
}

/* Grid: blocks x scans. ONE: there is one group of states. LOW: dt goes through a weight. */
template <class T, bool ONE, bool LOW>
static __global__ void __launch_bounds__(THREADS<Wide<T>>, 3) forward_kernel(const __grid_constant__ Each<Forward<T>> each) {
  typedef Wide<T> W;
  const Forward<T> &f = each.of[blockIdx.y];
  const Scan<T> &p = f.scan;
  const W *const entries = f.entries;
  W *const parked = f.parked, *h = f.h;
  T *const y = f.y;
  __shared__ ForwardShared<W> sh;
  extern __shared__ __align__(16) char behind[];
  const ScanShape &s = p.s;
  const Place at = place_of(p, blockIdx.x);
  const Part<W> me;
  const int64_t e0 = at.tile * CHANNELS<W>, column = e0 + me.column, e = e0 + me.channel;
  if (f.done && f.done[at.b * f.done_tiles + e0 / f.done_width]) return;
  const bool inside = column < s.E;
  const W D = p.D && inside ? p.D[column] : W(0), bias = p.bias && inside ? p.bias[column] : W(0);
  const Low<W> low(behind, s.R);
  if (LOW) low.take(p.weight, e0, s.E), low.stage(p, at.b, at.first, tokens_of(p, at.first));
  const W peak = peak_rate(p.A, column, s, me); /* synchronises */
  Cursor tokens(s, at.b, at.first, me.row, p.step_e, column), gates(s, at.b, at.first, me.row, p.step_z, column);
  Feed<T, 1> feed_b(p.b, s, p.step_b, at.b, at.first), feed_c(p.c, s, p.step_c, at.b, at.first);
  Raw<T> raw[PASSES];
  W state[4], rate[4];
  fetch<LOW>(p, tokens, gates, me.row, inside ? tokens_of(p, at.first) : 0, raw);
  bool moved = p.segments > 1;
  if (h) h += ((at.b * p.chunks + at.first) * s.N + 4 * me.q) * s.E + e;
  for (int k = at.first; k < at.end; k++) {
    const int count = tokens_of(p, k), mine = inside ? count : 0;
    W d[PASSES], sum[PASSES], gate[PASSES], slope[PASSES];
#pragma unroll
    for (int i = 0; i < PASSES; i++) d[i] = wide_of(raw[i].dt) + bias, gate[i] = 1;
    if (LOW) low.project(me, k, d);
    find_steps(p, d, slope);
    bool moving = false;
#pragma unroll
    for (int i = 0; i < PASSES; i++) {
      const W u = wide_of(raw[i].u);
      if (me.row + ROWS * i >= mine) d[i] = 0;
      moving |= decays(d[i] * peak);
      sh.token[me.row + ROWS * i][me.column] = {d[i], d[i] * u};
      sum[i] = D * u;
    }
    if (p.z)
#pragma unroll
      for (int i = 0; i < PASSES; i++) gate[i] = wide_of(raw[i].z) * sigmoid(wide_of(raw[i].z));
    const Cursor here = tokens;
    tokens.next_chunk(), gates.next_chunk();
    for (int g = 0; g < (ONE ? 1 : p.groups); g++) {
      const int n0 = g * GROUP + 4 * me.q, states = e < s.E ? (int)s.N - n0 : 0;
      W *park = parked + ((int64_t)blockIdx.x * p.groups + g) * 4 * THREADS<W> + threadIdx.x;
      feed_b.stage(count, g * GROUP, s.N, sh.b[0]);
      feed_c.stage(count, g * GROUP, s.N, sh.c[0]);
      if (k == at.first || !ONE)
#pragma unroll
        for (int n = 0; n < 4; n++) {
          rate[n] = rate_at(p.A, n0 + n, e, s);
          state[n] = k > at.first ? park[n * THREADS<W>] : W(0);
        }
      if (k == at.first && entries)
        load_states(entries + ((at.b * p.segments + at.segment) * s.N + n0) * s.E + e, s.E, states, 0, state);
      if (g) __syncthreads();
      else moving = __syncthreads_or(moving), moved |= moving;
      if (g == 0) {
        fetch<LOW>(p, tokens, gates, me.row, inside && k + 1 < at.end ? tokens_of(p, k + 1) : 0, raw);
        if (LOW && k + 1 < at.end) low.stage(p, at.b, k + 1, tokens_of(p, k + 1));
      }
      if (h) {
        W *to = h + g * GROUP * s.E;
        if (states >= 4) to[0] = state[0], to[s.E] = state[1], to[2 * s.E] = state[2], to[3 * s.E] = state[3];
        else
#pragma unroll
          for (int n = 0; n < 3; n++)
            if (n < states) to[n * s.E] = state[n];
      }
      if (moving) march<true>(sh, me, rate, state);
      else march<false>(sh, me, rate, state);
      if (!ONE)
#pragma unroll
        for (int n = 0; n < 4; n++) park[n * THREADS<W>] = state[n];
      __syncthreads();
#pragma unroll
      for (int i = 0; i < PASSES; i++)
#pragma unroll
        for (int q = 0; q < QUADS; q++) sum[i] += sh.y[me.row + ROWS * i][q][me.column];
    }
    feed_b.cursor.next_chunk(), feed_c.cursor.next_chunk();
    if (h) h += s.N * s.E;
    here.each(me.row, mine, [&](int i, int64_t o) { y[o] = narrow<T>(sum[i] * gate[i]); });
  }
  if (f.h && s.N && !at.first && !threadIdx.x) f.h[at.b * p.chunks * s.N * s.E + e0] = moved; /* see selective_scan_still.cuh */
}

/* Column `from` of m[b], one warp for each: d_s B_s at the token `from`, carried on; lanes are channels. sum is m, or its
 * wide stand-in, zeroed. */
template <class T> static __global__ void __launch_bounds__(128) matrix_kernel(const Scan<T> p, Wide<T> *m) {
  typedef Wide<T> W;
  const ScanShape &s = p.s;
  const int64_t index = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / 32, b = index / s.L, from = index % s.L;
  const int lane = threadIdx.x % 32;
  if (b >= s.B) return;
  for (int64_t e0 = 0; e0 < s.E; e0 += 32) {
    const int64_t e = e0 + lane, readable = min(e, s.E - 1);
    const W bias = p.bias ? p.bias[readable] : W(0);
    for (int64_t n0 = 0; n0 < s.N; n0 += GROUP) {
      const int64_t count = min(s.N - n0, (int64_t)GROUP);
      W state[GROUP], rate[GROUP];
#pragma unroll
      for (int n = 0; n < GROUP; n++) rate[n] = rate_at(p.A, n0 + n, e, s);
      for (int64_t t = from; t >= 0 && t < s.L; t += s.reverse ? -1 : 1) {
        const int64_t row = b * s.L + t;
        const W before = lane ? W(0) : m[row * s.L + from]; /* asked for early */
        W d = wide_of(p.dt[row * s.E + readable]) + bias, slope, sum = 0;
        if (s.softplus) d = softplus(d, &slope);
        const T *pb = p.b + row * s.ldb + n0, *pc = p.c + row * s.ldc + n0;
#pragma unroll
        for (int n = 0; n < GROUP; n++) {
          if (t == from) state[n] = e < s.E && n < count ? d * wide_of(pb[n]) : W(0);
          else state[n] *= power2(d * rate[n]);
          if (n < count) sum += state[n] * wide_of(pc[n]);
        }
        sum = warp_sum(sum);
        if (!lane) m[row * s.L + from] = before + sum / (W)s.E;
      }
    }
  }
}

template <class T> static __global__ void narrow_kernel(int64_t count, const Wide<T> *from, T *to) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) to[i] = narrow<T>(from[i]);
}

} // namespace scan

namespace scan {

template <class T>
static void forward(CabStream *stream, int count, const ScanShape *s, const ScanInputs *in, void *const *y, void *const *h) {
  typedef Wide<T> W;
  if (!s->B || !s->L || !s->E) return;
  Each<Forward<T>> each = {};
  Room room(stream);
  bool still = true;
  for (int i = 0; i < count; i++) {
    const Scan<T> p = plan<T>(stream, &s[i], in[i], 3, count);
    const W *entries = find_entries<false>(stream, p, nullptr, room.get(entries_bytes(p)));
    W *parked = (W *)room.get(p.groups > 1 ? (size_t)(blocks_of(p) * p.groups * 4 * THREADS<W>) * sizeof(W) : 0);
    each.of[i] = Forward<T>{p, entries, parked, (T *)y[i], (W *)h[i]};
    still = still && still_forward_fits(each.of[i]);
  }
  if constexpr (sizeof(T) != sizeof(double))
    if (still) forward_still(stream, room, count, each);
  if (stream->failed) return;
  const Scan<T> &p = each.of[0].scan;
  const bool one = p.groups == 1;
  auto kernel = s->R ? one ? forward_kernel<T, true, true> : forward_kernel<T, false, true>
                     : one ? forward_kernel<T, true, false> : forward_kernel<T, false, false>;
  const int bytes = Low<W>::bytes(s->R);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  kernel<<<dim3((unsigned)blocks_of(p), count), THREADS<W>, bytes, stream->stream>>>(each);
}

} // namespace scan

template <class T>
static void scan_forward(CabStream *stream, const ScanShape *s, const ScanInputs *in, void *y, void *h) {
  scan::forward<T>(stream, 1, s, in, &y, &h);
}

template <class T>
static void scan_pair_forward(CabStream *stream, const ScanShape *s, const ScanInputs *in, void *const *y, void *const *h) {
  scan::forward<T>(stream, SCAN_PAIR, s, in, y, h);
}

template <class T>
static void scan_matrix(CabStream *stream, const ScanShape *s, const void *dt, const void *A, const void *b, const void *c,
                        const void *bias, void *m) {
  using namespace scan;
  typedef Wide<T> W;
  const int64_t count = s->B * s->L * s->L;
  const bool exact = sizeof(T) == sizeof(W);
  if (!count) return;
  const Scratch sums(stream, exact ? 0 : (size_t)count * sizeof(W));
  if (stream->failed) return;
  W *to = exact ? (W *)m : (W *)sums.data;
  const Scan<T> p = plan<T>(stream, s, {nullptr, dt, A, b, c, nullptr, nullptr, bias, nullptr}, 1, 1);
  cudaMemsetAsync(to, 0, (size_t)count * sizeof(W), stream->stream);
  matrix_kernel<T><<<blocks_for(s->B * s->L * 32, 128), 128, 0, stream->stream>>>(p, to);
  if (!exact) narrow_kernel<T><<<blocks_for(count, 256), 256, 0, stream->stream>>>(count, to, (T *)m);
}

EXPORT(scan_forward)
EXPORT(scan_pair_forward)
EXPORT(scan_matrix)
