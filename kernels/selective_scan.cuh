/* selective_scan.cuh - what the CUDA scans share: the layout of the work, the functions of a token, and the carry between
 * segments of a long sequence.
 *
 * A block owns CHANNELS neighbouring channels of one batch element. Four lanes share a channel, each with 4 of 16 states
 * in registers: lane = 8 q + c holds states 4 q .. 4 q + 3 of channel c of its warp's 8. Other than 16 states go in
 * groups of 16, the last padded with zeros. Tokens go in chunks of SCAN_CHUNK. For each chunk the block
 *   1. turns dt, u, ... into d, d u, ... in shared memory, one thread for a (token, channel): coalesced;
 *   2. marches the states through the chunk, B_t and C_t coming from shared memory too;
 *   3. adds the four lanes' sums over states and writes the tokens' results, one thread for a (token, channel).
 * With a weight, each thread of step 1 makes its x from a row of dt and a column of the weight, both in shared memory.
 * Padding (tokens beyond L, channels beyond E) has d = 0, d u = 0, g = 0: it changes no state and adds nothing.
 *
 * A long sequence of few channels is cut into segments, so that all multiprocessors have work: a light pass takes the
 * states at the ends of the segments from zero, these are joined one after another, and the scan proper starts each
 * segment from its true entry. */
#ifndef CAB_KERNELS_SELECTIVE_SCAN_CUH
#define CAB_KERNELS_SELECTIVE_SCAN_CUH
#include "cuda.cuh"
#include "scan_pair.h"

namespace scan {

constexpr int TOKENS = SCAN_CHUNK, GROUP = 16, QUADS = 4, LOG_LANES = 3;
constexpr int ROWS = 4, PASSES = TOKENS / ROWS; /* the block's threads cover ROWS tokens x CHANNELS in a pass */
template <class W> constexpr int CHANNELS = 256 / (int)sizeof(W);
template <class W> constexpr int THREADS = ROWS * CHANNELS<W>;
template <class W> constexpr int COLUMNS = CHANNELS<W> + 8; /* row of [QUADS][channel]: the quads fall on other banks */

template <class W> struct alignas(2 * sizeof(W)) Pair { W x, y; };
template <class W> struct alignas(16) Four { W x[4]; };

/* ---- functions of one token ------------------------------------------------------------------------------------ */

constexpr double LOG2E = 1.44269504088896340736, LN2 = 0.69314718055994530942;

/* 2^x: f32 within 2 ulp, results below 2^-126 are 0. */
__device__ __forceinline__ float power2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ double power2(double x) { return exp2(x); }
/* 1 / x for 1 <= x <= 3: f32 within 1 ulp. */
__device__ __forceinline__ float inverse(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ double inverse(double x) { return 1 / x; }
/* log(1 + e) for 0 <= e <= 1: f32 as 2 atanh(s), s = e / (2 + e) <= 1/3, which keeps the relative error of a small e. */
__device__ __forceinline__ float log1p01(float e) {
  float s = e * inverse(e + 2), z = s * s;
  float p = z * (1.f / 13) + 1.f / 11;
  p = p * z + 1.f / 9;
  p = p * z + 1.f / 7;
  p = p * z + 1.f / 5;
  p = p * z + 1.f / 3;
  s += s;
  return s + s * z * p;
}
__device__ __forceinline__ double log1p01(double e) { return log1p(e); }

/* Everything from e^-|x|, which cannot overflow. */
template <class W> __device__ __forceinline__ W sigmoid(W x) {
  W e = power2(-fabs(x) * W(LOG2E));
  return (x >= 0 ? W(1) : e) * inverse(1 + e);
}
/* log(1 + e^x) and its derivative. */
template <class W> __device__ __forceinline__ W softplus(W x, W *slope) {
  W e = power2(-fabs(x) * W(LOG2E));
  *slope = (x >= 0 ? W(1) : e) * inverse(1 + e);
  return fmax(x, W(0)) + log1p01(e);
}

/* ---- the work of a block --------------------------------------------------------------------------------------- */

/* Kernel parameter. Chunks fit an int: 2^31 of them are 2^35 tokens. */
template <class T> struct Scan {
  ScanShape s;
  const T *u, *dt, *b, *c, *z;
  const Wide<T> *A, *D, *bias, *weight;
  int64_t tiles;                          /* blocks of channels */
  int chunks, tail, segments, per_segment; /* tail: tokens of the last chunk; per_segment: chunks */
  int groups;                              /* of 16 states, at least 1 */
  int64_t step_e, step_n, step_b, step_c, step_z, step_t; /* elements to the next token in scan order, in rows of E, N, ... */
};

/* The scans of one launch, blockIdx.y says which. */
template <class F> struct Each { F of[SCAN_PAIR]; };

struct Place {
  int64_t b, tile;
  int segment, first, end; /* chunks first .. end - 1 */
};

template <class T> __device__ __forceinline__ Place place_of(const Scan<T> &p, int64_t block) {
  Place at;
  at.tile = block % p.tiles;
  block /= p.tiles;
  at.segment = (int)(block % p.segments);
  at.b = block / p.segments;
  at.first = at.segment * p.per_segment;
  at.end = min(at.first + p.per_segment, p.chunks);
  return at;
}

template <class T> __device__ __forceinline__ int tokens_of(const Scan<T> &p, int chunk) {
  return chunk + 1 < p.chunks ? TOKENS : p.tail;
}

/* This thread's part: slots row + ROWS i of channel `column` in steps 1 and 3, quad q of `channel` in step 2. Slots are
 * the tokens of a chunk in scan order. */
template <class W> struct Part {
  int row, column, warp, lane, q, channel;
  __device__ __forceinline__ Part()
      : row(threadIdx.x / CHANNELS<W>), column(threadIdx.x % CHANNELS<W>), warp(threadIdx.x / 32),
        lane(threadIdx.x % 32), q(lane >> LOG_LANES), channel((warp << LOG_LANES) + (lane & 7)) {}
};

/* An element of slot `slot` of a chunk, in rows that lie `step` elements apart. */
struct Cursor {
  int64_t offset, step;
  __device__ __forceinline__ Cursor(const ScanShape &s, int64_t b, int chunk, int slot, int64_t row_step, int64_t element) {
    const int64_t t = (int64_t)chunk * TOKENS + slot, ld = s.reverse ? -row_step : row_step;
    offset = (b * s.L + (s.reverse ? s.L - 1 - t : t)) * ld + element;
    step = row_step;
  }
  __device__ __forceinline__ void next_chunk() { offset += TOKENS * step; }
  __device__ __forceinline__ void previous_chunk() { offset -= TOKENS * step; }
  /* f(i, offset) for the slots slot + ROWS i that are below count. The usual case, a whole chunk, does without tests. */
  template <class F> __device__ __forceinline__ void each(int slot, int count, F f) const {
    int64_t at = offset;
    if (count == TOKENS) {
#pragma unroll
      for (int i = 0; i < PASSES; i++, at += ROWS * step) f(i, at);
    } else {
#pragma unroll
      for (int i = 0; i < PASSES; i++, at += ROWS * step)
        if (slot + ROWS * i < count) f(i, at);
    }
  }
};

/* B or C, through shared memory as [TOKENS][copies][16] for each chunk and group of states, 0 beyond N. The second copy,
 * for backward, has even and odd states exchanged. */
template <class T, int copies> struct Feed {
  static constexpr int AT_ONCE = THREADS<Wide<T>> / GROUP; /* slots */
  const T *from;
  Cursor cursor;
  int slot, n;
  __device__ __forceinline__ Feed(const T *rows, const ScanShape &s, int64_t step, int64_t b, int chunk)
      : from(rows), cursor(s, b, chunk, threadIdx.x / GROUP, step, threadIdx.x % GROUP), slot(threadIdx.x / GROUP),
        n(threadIdx.x % GROUP) {}
  __device__ __forceinline__ void stage(int count, int64_t n0, int64_t N, Four<Wide<T>> *to) const {
    Wide<T> *out = reinterpret_cast<Wide<T> *>(to) + slot * copies * GROUP;
    int64_t at = cursor.offset + n0;
#pragma unroll
    for (int j = 0; j < TOKENS; j += AT_ONCE, at += AT_ONCE * cursor.step, out += AT_ONCE * copies * GROUP) {
      const Wide<T> v = slot + j < count && n0 + n < N ? wide_of(from[at]) : Wide<T>(0);
      out[n] = v;
      if (copies == 2) out[GROUP + (n ^ 1)] = v;
    }
  }
};

/* The weight that dt goes through, in shared memory behind the kernel's own: its columns of the block's channels, dt's rows of
 * two chunks, and, backward, the gradient of what bias is added to and the sums of the weight's own gradient. Columns go in
 * fours, the last padded with zeros. */
template <class W> struct Low {
  static constexpr int PITCH = CHANNELS<W> + 4; /* neighbouring columns fall on other banks */
  const int R, quads;
  W *weight, *gx;           /* [4 quads][PITCH], [TOKENS][PITCH] */
  Four<W> *rows, *gweight;  /* [2][blocks of 16 columns][TOKENS][QUADS], [quads][CHANNELS] */
  __host__ __device__ __forceinline__ Low(char *memory, int64_t columns)
      : R((int)columns), quads((R + 3) / 4), weight((W *)memory), gx(weight + 4 * quads * PITCH),
        rows((Four<W> *)(gx + TOKENS * PITCH)), gweight(rows + 2 * half()) {}
  static int bytes(int64_t R) { return R ? (int)((char *)(Low(nullptr, R).gweight + (R + 3) / 4 * CHANNELS<W>) - (char *)nullptr) : 0; }
  __host__ __device__ __forceinline__ int half() const { return (R + GROUP - 1) / GROUP * TOKENS * QUADS; }
  __device__ __forceinline__ const Four<W> *four(int chunk, int slot, int quad) const {
    return rows + chunk % 2 * half() + (quad / QUADS * TOKENS + slot) * QUADS + quad % QUADS;
  }
  /* Takes the weight, once. */
  __device__ __forceinline__ void take(const W *from, int64_t e0, int64_t E) const {
    for (int i = threadIdx.x; i < 4 * quads * CHANNELS<W>; i += THREADS<W>) {
      const int r = i / CHANNELS<W>, c = i % CHANNELS<W>;
      weight[r * PITCH + c] = r < R && e0 + c < E ? from[(e0 + c) * R + r] : W(0);
    }
    for (int i = threadIdx.x; i < quads * CHANNELS<W>; i += THREADS<W>) gweight[i] = {};
  }
  /* Takes dt of a chunk's tokens, those below count. */
  template <class T> __device__ __forceinline__ void stage(const Scan<T> &p, int64_t b, int chunk, int count) const {
    const Feed<T, 1> feed(p.dt, p.s, p.step_t, b, chunk);
    for (int n0 = 0; n0 < R; n0 += GROUP) feed.stage(count, n0, R, rows + chunk % 2 * half() + n0 / GROUP * TOKENS * QUADS);
  }
  /* x of this thread's tokens += weight dt. */
  __device__ __forceinline__ void project(const Part<W> &me, int chunk, W (&x)[PASSES]) const {
    for (int q = 0; q < quads; q++) {
      W w[4];
#pragma unroll
      for (int i = 0; i < 4; i++) w[i] = weight[(4 * q + i) * PITCH + me.column];
#pragma unroll
      for (int pass = 0; pass < PASSES; pass++) {
        const Four<W> dt = *four(chunk, me.row + ROWS * pass, q);
#pragma unroll
        for (int i = 0; i < 4; i++) x[pass] += w[i] * dt.x[i];
      }
    }
  }
  /* gweight += gx dt, this thread's column and every fourth quad. */
  __device__ __forceinline__ void add_weight(const Part<W> &me, int chunk) const {
    for (int q = me.row; q < quads; q += ROWS) {
      Four<W> sum = gweight[q * CHANNELS<W> + me.column];
#pragma unroll
      for (int j = 0; j < TOKENS; j++) {
        const W g = gx[j * PITCH + me.column];
        const Four<W> dt = *four(chunk, j, q);
#pragma unroll
        for (int i = 0; i < 4; i++) sum.x[i] += g * dt.x[i];
      }
      gweight[q * CHANNELS<W> + me.column] = sum;
    }
  }
  /* to[t,r] = the gradient of dt, over the block's channels: by the second half of the threads, two tokens each, since the first
   * half has more of add_weight. step: elements to the next slot. */
  __device__ __forceinline__ void add_channels(int count, W *to, int64_t step) const {
    const int thread = (int)threadIdx.x - THREADS<W> / 2;
    if (thread < 0) return;
    for (int r = thread % GROUP; r < R; r += GROUP)
      for (int j = thread / GROUP * 2; j < count; j += THREADS<W> / GROUP) {
        W sum = 0, next = 0;
#pragma unroll 4
        for (int c = 0; c < CHANNELS<W>; c += 4) {
          const Four<W> w = *(const Four<W> *)&weight[r * PITCH + c];
          const Four<W> g = *(const Four<W> *)&gx[j * PITCH + c], h = *(const Four<W> *)&gx[(j + 1) * PITCH + c];
#pragma unroll
          for (int i = 0; i < 4; i++) sum += w.x[i] * g.x[i], next += w.x[i] * h.x[i];
        }
        to[j * step + r] = sum;
        if (j + 1 < count) to[(j + 1) * step + r] = next;
      }
  }
};

/* d of this thread's tokens, from dt + bias. slope: d' of softplus. */
template <class T>
__device__ __forceinline__ void find_steps(const Scan<T> &p, Wide<T> (&d)[PASSES], Wide<T> (&slope)[PASSES]) {
#pragma unroll
  for (int i = 0; i < PASSES; i++) slope[i] = 1;
  if (p.s.softplus)
#pragma unroll
    for (int i = 0; i < PASSES; i++) d[i] = softplus(d[i], &slope[i]);
}

/* A decay whose exponent is below this rounds to 1. Where all of a chunk do (decay "identity" starts at A = -2e-9), the
 * block leaves the exponentials out, to the same bits but for the error of power2. */
__device__ __forceinline__ bool decays(float exponent) { return !(fabs(exponent) < 0x1p-25f); }
__device__ __forceinline__ bool decays(double exponent) { return !(fabs(exponent) < 0x1p-54); }

/* A[e, n] log2 e, 0 beyond E and N. */
template <class W> __device__ __forceinline__ W rate_at(const W *A, int64_t n, int64_t e, const ScanShape &s) {
  return n < s.N && e < s.E ? A[e * s.N + n] * W(LOG2E) : W(0);
}

/* A lane's 4 states from [N, E], `from` being the first; those from `count` on are 0. odd: 1 exchanges even and odd ones. */
template <class W> __device__ __forceinline__ void load_states(const W *from, int64_t E, int64_t count, int odd, W (&x)[4]) {
  if (count >= 4) {
    const W *even = from + odd * E, *other = from + (1 - odd) * E;
    x[0] = even[0], x[1] = other[0], x[2] = even[2 * E], x[3] = other[2 * E];
  } else {
#pragma unroll
    for (int n = 0; n < 4; n++) x[n] = (n ^ odd) < count ? from[(n ^ odd) * E] : W(0);
  }
}

/* The fastest rate of this thread's column, NaN if there is one. Call by all threads, once. */
template <class W> __device__ __forceinline__ W peak_rate(const W *A, int64_t e, const ScanShape &s, const Part<W> &me) {
  __shared__ W part[ROWS][CHANNELS<W>];
  W peak = 0;
#pragma unroll 4
  for (int64_t n = me.row; n < s.N; n += ROWS) {
    const W rate = fabs(rate_at(A, n, e, s));
    if (rate > peak || rate != rate) peak = rate;
  }
  part[me.row][me.column] = peak;
  __syncthreads();
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    const W rate = part[r][me.column];
    if (rate > peak || rate != rate) peak = rate;
  }
  return peak;
}

/* ---- segments -------------------------------------------------------------------------------------------------- */

template <bool ADJOINT, bool MOVING, class W>
__device__ __forceinline__ void end_march(const Pair<W> (&token)[TOKENS][CHANNELS<W>],
                                          const Four<W> (&states)[TOKENS][QUADS], const Part<W> &me, const W (&rate)[4],
                                          W (&x)[4], W &sum) {
#pragma unroll
  for (int i = 0; i < TOKENS; i++) {
    const int j = ADJOINT ? TOKENS - 1 - i : i;
    const Pair<W> t = token[j][me.channel];
    const Four<W> v = states[j][me.q];
    sum += t.x;
#pragma unroll
    for (int n = 0; n < 4; n++) {
      const W a = MOVING ? power2(t.x * rate[n]) : W(1);
      x[n] = ADJOINT ? a * (x[n] + t.y * v.x[n]) : a * x[n] + t.y * v.x[n];
    }
  }
}

/* One group of states at the end of a segment entered with zero, to ends[B,segments,N,E], and the segment's sum of d to
 * sums[B,segments,E]. Forward: h = a h + d u B. ADJOINT, from the last token to the first: x = a (x + g C) with
 * g = gy silu(z). */
template <class T, bool ADJOINT>
static __global__ void __launch_bounds__(THREADS<Wide<T>>)
    ends_kernel(const Scan<T> p, const T *gy, Wide<T> *ends, Wide<T> *sums) {
  typedef Wide<T> W;
  __shared__ Pair<W> token[TOKENS][CHANNELS<W>]; /* d and d u or g */
  __shared__ Four<W> states[TOKENS][QUADS];
  const ScanShape &s = p.s;
  const Place at = place_of(p, blockIdx.x / p.groups);
  if (at.segment == (ADJOINT ? 0 : p.segments - 1)) return; /* nothing follows */
  const Part<W> me;
  const int64_t n0 = blockIdx.x % p.groups * GROUP, e0 = at.tile * CHANNELS<W>, column = e0 + me.column, e = e0 + me.channel;
  const T *input = ADJOINT ? gy : p.u;
  const W bias = p.bias && column < s.E ? p.bias[column] : W(0), peak = peak_rate(p.A, column, s, me);
  const int start = ADJOINT ? at.end - 1 : at.first;
  Cursor tokens(s, at.b, start, me.row, p.step_e, column), gates(s, at.b, start, me.row, p.step_z, column);
  extern __shared__ __align__(16) char behind[];
  const Low<W> low(behind, s.R);
  if (s.R) low.take(p.weight, e0, s.E);
  Feed<T, 1> feed(ADJOINT ? p.c : p.b, s, ADJOINT ? p.step_c : p.step_b, at.b, start);
  W x[4], rate[4], sum = 0;
#pragma unroll
  for (int i = 0; i < 4; i++) x[i] = 0, rate[i] = rate_at(p.A, n0 + 4 * me.q + i, e, s);
  for (int step = 0; step < at.end - at.first; step++) {
    const int chunk = ADJOINT ? start - step : start + step, count = tokens_of(p, chunk), mine = column < s.E ? count : 0;
    W d[PASSES] = {}, v[PASSES] = {}, slope[PASSES];
    tokens.each(me.row, mine, [&](int i, int64_t o) { d[i] = (s.R ? W(0) : wide_of(p.dt[o])) + bias, v[i] = wide_of(input[o]); });
    if (s.R) {
      low.stage(p, at.b, chunk, count);
      __syncthreads();
      low.project(me, chunk, d);
    }
    if (ADJOINT && p.z)
      gates.each(me.row, mine, [&](int i, int64_t o) {
        const W z = wide_of(p.z[o]);
        v[i] *= z * sigmoid(z);
      });
    find_steps(p, d, slope);
    bool moving = false;
#pragma unroll
    for (int i = 0; i < PASSES; i++) {
      if (me.row + ROWS * i >= mine) d[i] = 0;
      moving |= decays(d[i] * peak);
      token[me.row + ROWS * i][me.column] = {d[i], ADJOINT ? v[i] : d[i] * v[i]};
    }
    feed.stage(count, n0, s.N, states[0]);
    if (ADJOINT) tokens.previous_chunk(), gates.previous_chunk(), feed.cursor.previous_chunk();
    else tokens.next_chunk(), feed.cursor.next_chunk();
    if (__syncthreads_or(moving)) end_march<ADJOINT, true>(token, states, me, rate, x, sum);
    else end_march<ADJOINT, false>(token, states, me, rate, x, sum);
    __syncthreads();
  }
  const int64_t row = at.b * p.segments + at.segment;
  if (e >= s.E) return;
#pragma unroll
  for (int i = 0; i < 4; i++)
    if (n0 + 4 * me.q + i < s.N) ends[(row * s.N + n0 + 4 * me.q + i) * s.E + e] = x[i];
  if (!n0 && !me.q) sums[row * s.E + e] = sum;
}

/* Joins the ends to the entries [B,segments,N,E]: one thread for a (b, n, e). */
template <class W, bool ADJOINT>
static __global__ void entries_kernel(ScanShape s, int64_t segments, const W *A, const W *__restrict__ ends,
                                      const W *__restrict__ sums, W *__restrict__ entries) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, e = i % s.E, n = i / s.E % s.N, b = i / s.E / s.N;
  if (b >= s.B) return;
  const W rate = rate_at(A, n, e, s);
  W x = 0;
#pragma unroll 4
  for (int64_t k = 0; k < segments; k++) {
    const int64_t row = b * segments + (ADJOINT ? segments - 1 - k : k), at = (row * s.N + n) * s.E + e;
    entries[at] = x;
    if (k + 1 < segments) x = power2(rate * sums[row * s.E + e]) * x + ends[at];
  }
}

/* ---- host ------------------------------------------------------------------------------------------------------ */

/* Scratch for the time of one launch, as many pieces as it takes. */
struct Room {
  CabStream *s;
  int count = 0;
  struct { void *data; size_t bytes; } block[5 * SCAN_PAIR];
  explicit Room(CabStream *stream) : s(stream) {}
  Room(const Room &) = delete;
  ~Room() { while (count--) s->release(s->device, block[count].data, block[count].bytes); }
  void *get(size_t bytes) { /* as take_scratch */
    void *p = take_scratch(s, bytes);
    if (p) block[count++] = {p, bytes};
    return p;
  }
};

/* per_processor: blocks of the scan proper that a multiprocessor holds; scans: in the launch. A segment repeats half the
 * arithmetic of a scan, so it takes a half empty device to make segments worth while; shorter ones than 8 chunks are not. */
template <class T>
static Scan<T> plan(const CabStream *stream, const ScanShape *s, const ScanInputs &in, int per_processor, int scans) {
  typedef Wide<T> W;
  Scan<T> p = {};
  p.s = *s;
  p.u = (const T *)in.u, p.dt = (const T *)in.dt, p.b = (const T *)in.b, p.c = (const T *)in.c, p.z = (const T *)in.z;
  p.A = (const W *)in.A, p.D = (const W *)in.D, p.bias = (const W *)in.bias, p.weight = (const W *)in.weight;
  p.tiles = (s->E + CHANNELS<W> - 1) / CHANNELS<W>;
  p.chunks = (int)((s->L + TOKENS - 1) / TOKENS);
  p.tail = (int)(s->L - (p.chunks - 1) * (int64_t)TOKENS);
  p.groups = s->N > GROUP ? (int)((s->N + GROUP - 1) / GROUP) : 1;
  const int64_t sign = s->reverse ? -1 : 1, blocks = s->B * p.tiles * scans;
  p.step_e = sign * s->E, p.step_n = sign * s->N;
  p.step_b = sign * s->ldb, p.step_c = sign * s->ldc, p.step_z = sign * s->ldz, p.step_t = sign * s->ldt;
  int wanted = 1;
  if (2 * blocks <= stream->multiprocessors) wanted = (int)(per_processor * stream->multiprocessors / blocks);
  if (wanted > p.chunks / 8) wanted = p.chunks / 8;
  if (wanted < 3) wanted = 1;
  p.per_segment = (p.chunks + wanted - 1) / wanted;
  p.segments = (p.chunks + p.per_segment - 1) / p.per_segment;
  return p;
}

template <class T> static int64_t blocks_of(const Scan<T> &p) { return p.s.B * p.tiles * p.segments; }

/* Scratch of the entries: ends, entries, sums. */
template <class T> static size_t entries_bytes(const Scan<T> &p) {
  return p.segments > 1 ? (size_t)(p.s.B * p.segments * p.s.E * (2 * p.s.N + 1)) * sizeof(Wide<T>) : 0;
}

/* Fills scratch of entries_bytes; the entries, or NULL where there is one segment. */
template <bool ADJOINT, class T>
static const Wide<T> *find_entries(CabStream *s, const Scan<T> &p, const void *gy, void *scratch) {
  typedef Wide<T> W;
  const int64_t count = p.s.B * p.s.N * p.s.E;
  if (p.segments == 1 || !count || !scratch) return nullptr;
  W *ends = (W *)scratch, *entries = ends + count * p.segments, *sums = entries + count * p.segments;
  auto kernel = ends_kernel<T, ADJOINT>;
  const int bytes = Low<W>::bytes(p.s.R);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  kernel<<<(unsigned)(blocks_of(p) * p.groups), THREADS<W>, bytes, s->stream>>>(p, (const T *)gy, ends, sums);
  entries_kernel<W, ADJOINT><<<blocks_for(count, 256), 256, 0, s->stream>>>(p.s, p.segments, p.A, ends, sums, entries);
  return entries;
}

} // namespace scan
#endif
