/* selective_scan_still.cuh - the gradients of a scan all of whose decays round to 1, as where decay "identity" starts.
 *
 * Such a scan is a running sum, h_t = h_{t-1} + d_t u_t B_t, and so is its adjoint, so that what sums over channels becomes products of
 * matrices for each chunk, on tensor cores. With G = g and U = d u, both [tokens, channels], H the states that the chunk finds, K
 * their adjoint that it is given, and S = U G^T:
 *   gC = G H + lower(S^T) B;  gB = U K + upper(S) C;  gdt = gx weight;  gweight = gx^T dt.
 * What remains of a token is a channel's own. A lane owns a channel with all its states, a warp 32 channels and room for their
 * matrices in shared memory: nothing is exchanged between warps but, once a chunk, their sums over channels. All orders are fixed.
 *
 * Forward leaves in the first of a tile's states of the first chunk, zero by definition, whether a decay of the tile does not round to
 * 1 (mark_moving): any such makes the scan one of the general kernel. */
#ifndef CAB_KERNELS_SELECTIVE_SCAN_STILL_CUH
#define CAB_KERNELS_SELECTIVE_SCAN_STILL_CUH
#include "bridge_mma.cuh"
#include "selective_scan.cuh"

namespace scan {

enum { STILL_WARPS = 6, STILL_RANK = 16, STILL_PITCH = 20, ROW_SUMS = 3 * GROUP, ROW_PITCH = ROW_SUMS + 8 };

/* One scan of a launch. */
template <class T> struct Adjoint {
  Scan<T> scan;
  const Wide<T> *h, *entries; /* adjoint states at the entry of each segment; NULL: zero */
  const T *gy;
  T *gu, *gdt, *gz;
  Wide<T> *by_tile;  /* gB, gC of a block's channels and gdt of a weight: [tiles, B L (2 N + R)], or NULL */
  Wide<T> *by_batch; /* rows gA[E,N] gD[E] gbias[E] gweight[E,R]: [B, segments, E (N + 2 + R)], or NULL */
  Wide<T> *parked;   /* with several groups, their adjoint states and gA: [blocks, groups, 8, THREADS] */
  int *tiles;        /* of by_tile that were written, set by the kernel whose work it was; NULL: there is one kernel */
};

/* Whether all decays of the scan were 1 in forward. Call by all threads. */
template <class T> __device__ __forceinline__ bool stands_still(const Scan<T> &p, const Wide<T> *h) {
  bool moving = false;
  for (int64_t i = threadIdx.x; i < p.s.B * p.tiles; i += blockDim.x)
    moving |= h[i / p.tiles * p.chunks * p.s.N * p.s.E + i % p.tiles * CHANNELS<Wide<T>>] != 0;
  return !__syncthreads_or(moving);
}

typedef bridge_tile::Swizzled<float, 32> ByChannel; /* [TOKENS][32] */
typedef bridge_tile::Padded<float> ByState;         /* [32][16] */

struct StillWarp {
  char g[TOKENS * ByChannel::ROW], u[TOKENS * ByChannel::ROW]; /* g; u, then d u; then both: the sums over the warp's channels */
  char x[TOKENS * ByChannel::ROW];                             /* dt, then gx */
  char h[32 * ByState::ROW], carry[32 * ByState::ROW], weight[32 * ByState::ROW];
};
static_assert(TOKENS * ROW_PITCH * sizeof(float) <= 2 * TOKENS * ByChannel::ROW, "the sums reuse g and u");
struct StillShared {
  alignas(16) float b[2][TOKENS][STILL_PITCH], c[2][TOKENS][STILL_PITCH], dt[2][TOKENS][STILL_PITCH]; /* of two chunks */
  StillWarp warp[STILL_WARPS];
};
static_assert(STILL_PITCH * sizeof(float) == ByState::ROW, "B, C and dt lie as ByState");

__device__ __forceinline__ float *cell(char *room, int t, int lane) {
  return (float *)(room + bridge_tile::element_at<ByChannel>(t, lane));
}
/* What only products read lies rounded to TF32 there, but for split ones. */
template <bool SPLIT> __device__ __forceinline__ float factor(float x) { return bridge_tile::factor_of<float, SPLIT>(x); }
template <bool SPLIT> __device__ __forceinline__ void put_states(char *room, int lane, const float (&x)[GROUP]) {
#pragma unroll
  for (int q = 0; q < QUADS; q++)
    *(Four<float> *)(room + ByState::at(lane, q)) = {factor<SPLIT>(x[4 * q]), factor<SPLIT>(x[4 * q + 1]), factor<SPLIT>(x[4 * q + 2]),
                                                     factor<SPLIT>(x[4 * q + 3])};
}

/* A fragment: the leading TF32 numbers and, where products are split, the next ones. */
template <bool SPLIT> struct Factor {
  uint32_t high[4], low[4];
  __device__ __forceinline__ void narrow(bool exact) { /* exact: they are TF32 numbers */
    if (SPLIT) bridge_tile::split(high, low);
    else if (!exact)
#pragma unroll
      for (int i = 0; i < 4; i++) high[i] = bridge_tile::tf32(__uint_as_float(high[i]));
  }
};
/* c += a b, b the values x and y of a Factor. */
template <bool SPLIT>
__device__ __forceinline__ void multiply(float (&c)[4], const Factor<SPLIT> &a, const Factor<SPLIT> &b, int x, int y) {
  if (SPLIT) bridge_tile::mma<float>(c, a.low, b.high[x], b.high[y]), bridge_tile::mma<float>(c, a.high, b.low[x], b.low[y]);
  bridge_tile::mma<float>(c, a.high, b.high[x], b.high[y]);
}

/* to += lower or upper part of s, times m [TOKENS][16], whose elements are Ts. s as it comes from a product; its columns are taken in the order in which a
 * thread holds them. */
template <class T, bool SPLIT, bool UPPER>
__device__ __forceinline__ void add_triangle(float (&to)[2][4], const float (&s)[2][4], const float (*m)[STILL_PITCH], int lane) {
  const int row = lane / 4, pair = lane % 4 * 2;
#pragma unroll
  for (int j = 0; j < 2; j++) {
    Factor<SPLIT> a, b;
#pragma unroll
    for (int i = 0; i < 4; i++) { /* rows row, row + 8 of column t, then of t + 1 */
      const int t = 8 * j + pair + i / 2, r = row + i % 2 * 8;
      a.high[i] = __float_as_uint((UPPER ? t >= r : t <= r) ? s[j][i % 2 * 2 + i / 2] : 0.f);
      b.high[i] = __float_as_uint(m[8 * j + pair + i % 2][row + i / 2 * 8]);
    }
    a.narrow(false), b.narrow(sizeof(T) == sizeof(bf16));
#pragma unroll
    for (int i = 0; i < 2; i++) multiply(to[i], a, b, 2 * i, 2 * i + 1);
  }
}

/* The sums of a warp's channels for a chunk, as the warp's rows of [gB | gC | gdt]; adds to gw, the gradient of its weight. */
template <class T, bool SPLIT, bool LOW>
__device__ __forceinline__ void sum_matrices(StillWarp &own, const StillShared &sh, int now, int lane, float (&gw)[2][2][4]) {
  using namespace bridge_tile;
  const auto at = [](const void *p) { return (uint32_t)__cvta_generic_to_shared(p); };
  float gb[2][4] = {}, gc[2][4] = {}, gdt[2][4] = {}, s[2][4] = {}, st[2][4] = {};
#pragma unroll 1 /* or registers do not suffice */
  for (int k = 0; k < 4; k++) { /* 8 channels */
    Factor<SPLIT> g, u, h, carry;
    rows_as_a<ByChannel>(g.high, at(own.g), 0, k, lane);
    rows_as_a<ByChannel>(u.high, at(own.u), 0, k, lane);
    columns_as_b<ByState>(h.high, at(own.h), 0, k, lane);
    columns_as_b<ByState>(carry.high, at(own.carry), 0, k, lane);
    g.narrow(sizeof(T) == sizeof(bf16)), u.narrow(true), h.narrow(true), carry.narrow(true);
#pragma unroll
    for (int i = 0; i < 2; i++) { /* rows i, i + 2 of a fragment of 16 rows are one of 8 columns */
      multiply(s[i], u, g, i, i + 2);
      multiply(st[i], g, u, i, i + 2);
      multiply(gc[i], g, h, 2 * i, 2 * i + 1);
      multiply(gb[i], u, carry, 2 * i, 2 * i + 1);
    }
    if (LOW) {
      Factor<SPLIT> gx, w;
      rows_as_a<ByChannel>(gx.high, at(own.x), 0, k, lane);
      columns_as_b<ByState>(w.high, at(own.weight), 0, k, lane);
      gx.narrow(true), w.narrow(true);
#pragma unroll
      for (int i = 0; i < 2; i++) multiply(gdt[i], gx, w, 2 * i, 2 * i + 1);
    }
  }
  add_triangle<T, SPLIT, false>(gc, st, sh.b[now], lane);
  add_triangle<T, SPLIT, true>(gb, s, sh.c[now], lane);
  if (LOW)
#pragma unroll
    for (int k = 0; k < 2; k++) { /* 8 tokens */
      Factor<SPLIT> dt, gx;
      columns_as_b<ByState>(dt.high, at(sh.dt[now]), 0, k, lane);
      dt.narrow(true);
#pragma unroll
      for (int m = 0; m < 2; m++) {
        columns_as_a<ByChannel>(gx.high, at(own.x), 16 * m, k, lane);
        gx.narrow(true);
#pragma unroll
        for (int i = 0; i < 2; i++) multiply(gw[m][i], gx, dt, 2 * i, 2 * i + 1);
      }
    }
  __syncwarp(); /* g and u are read */
  float *rows = (float *)own.g + lane / 4 * ROW_PITCH + lane % 4 * 2;
#pragma unroll
  for (int half = 0; half < 2; half++)
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      float *to = rows + i / 2 * 8 * ROW_PITCH + 8 * half;
      *(float2 *)to = make_float2(gb[half][i], gb[half][i + 1]);
      *(float2 *)(to + GROUP) = make_float2(gc[half][i], gc[half][i + 1]);
      if (LOW) *(float2 *)(to + 2 * GROUP) = make_float2(gdt[half][i], gdt[half][i + 1]);
    }
}

/* Adds the rows of a chunk's warps, in order, two columns a thread. part: of by_tile. */
template <class T>
__device__ __forceinline__ void add_warps(const Scan<T> &p, const StillShared &sh, float *part, int64_t b, int chunk, int count, int warps) {
  const ScanShape &s = p.s;
  const int64_t rows = s.B * s.L, t = (int64_t)chunk * TOKENS, row = b * s.L + (s.reverse ? s.L - 1 - t : t);
  for (int i = threadIdx.x; i < count * (ROW_SUMS / 2); i += blockDim.x) {
    const int j = i / (ROW_SUMS / 2), column = i % (ROW_SUMS / 2) * 2, n = column % GROUP, kind = column / GROUP;
    const int width = kind == 2 ? (int)s.R : (int)s.N;
    float2 sum = {0, 0};
#pragma unroll 2
    for (int w = 0; w < warps; w++) {
      const float2 x = *(const float2 *)((const float *)sh.warp[w].g + j * ROW_PITCH + column);
      sum.x += x.x, sum.y += x.y;
    }
    float *to = part + kind * rows * s.N + (row + (s.reverse ? -j : j)) * width + n;
    if (n < width) to[0] = sum.x;
    if (n + 1 < width) to[1] = sum.y;
  }
}

/* Grid: (batch elements x tiles) x scans; a block has at most STILL_WARPS warps, a tile 32 channels for each. Gradients of z, segments
 * and more than 16 states or columns of a weight are the general kernel's. */
template <class T, bool SPLIT, bool LOW>
static __global__ void __launch_bounds__(32 * STILL_WARPS, 2) still_kernel(const __grid_constant__ Each<Adjoint<T>> each, int tiles) {
  using namespace bridge_tile;
  extern __shared__ __align__(16) char memory[];
  StillShared &sh = *reinterpret_cast<StillShared *>(memory);
  const Adjoint<T> &a = each.of[blockIdx.y];
  const Scan<T> &p = a.scan;
  const ScanShape &s = p.s;
  if (!stands_still(p, a.h)) return;
  if (!blockIdx.x && !threadIdx.x) *a.tiles = tiles;
  const int lane = threadIdx.x % 32, warps = blockDim.x / 32, last = p.chunks - 1;
  const int64_t b = blockIdx.x / tiles, tile = blockIdx.x % tiles, e = tile * blockDim.x + threadIdx.x, N = s.N;
  const bool inside = e < s.E;
  StillWarp &own = sh.warp[threadIdx.x / 32];
  const float D = p.D && inside ? p.D[e] : 0, bias = p.bias && inside ? p.bias[e] : 0;
  float rate[GROUP], h[GROUP] = {}, carry[GROUP] = {}, gA[GROUP] = {}, gD = 0, gbias = 0, gw[2][2][4] = {};
  Cursor tokens(s, b, last, 0, p.step_e, e);
  T u[TOKENS] = {}, gy[TOKENS] = {}, dt[LOW ? 1 : TOKENS] = {};
  const auto fetch = [&](int j, const T *&from_u, const T *&from_gy, const T *&from_dt) { /* of token j, and on to the next */
    u[j] = *from_u, gy[j] = *from_gy;
    from_u += tokens.step, from_gy += tokens.step;
    if (!LOW) dt[LOW ? 0 : j] = *from_dt, from_dt += tokens.step;
  };
  const auto fetch_chunk = [&](int count) { /* tokens beyond count stay 0 */
    const T *from_u = p.u + tokens.offset, *from_gy = a.gy + tokens.offset, *from_dt = LOW ? nullptr : p.dt + tokens.offset;
    if (inside && count == TOKENS)
#pragma unroll
      for (int j = 0; j < TOKENS; j++) fetch(j, from_u, from_gy, from_dt);
    else if (inside)
#pragma unroll
      for (int j = 0; j < TOKENS; j++)
        if (j < count) fetch(j, from_u, from_gy, from_dt);
  };
  const auto fetch_states = [&](int chunk) { /* at its entry */
    const float *from = a.h + (b * p.chunks + chunk) * N * s.E + e;
    if (inside && N == GROUP)
#pragma unroll
      for (int n = 0; n < GROUP; n++, from += s.E) h[n] = *from;
    else if (inside)
#pragma unroll
      for (int n = 0; n < GROUP; n++, from += s.E)
        if (n < N) h[n] = *from;
  };
  const auto stage = [&](int chunk) { /* B, C and columns of dt */
    const int count = tokens_of(p, chunk), now = chunk % 2;
    const Cursor in_b(s, b, chunk, 0, p.step_b, 0), in_c(s, b, chunk, 0, p.step_c, 0), in_t(s, b, chunk, 0, p.step_t, 0);
    for (int i = threadIdx.x; i < TOKENS * GROUP; i += blockDim.x) {
      const int j = i / GROUP, n = i % GROUP;
      const bool there = j < count;
      sh.b[now][j][n] = there && n < N ? wide_of(p.b[in_b.offset + j * in_b.step + n]) : 0;
      sh.c[now][j][n] = there && n < N ? wide_of(p.c[in_c.offset + j * in_c.step + n]) : 0;
      if (LOW) sh.dt[now][j][n] = there && n < s.R ? factor<SPLIT>(wide_of(p.dt[in_t.offset + j * in_t.step + n])) : 0;
    }
  };
  const auto step_of = [&](float x, int j, int count, float *slope) { /* d of token j */
    float d = x + bias;
    *slope = 1;
    if (s.softplus) d = softplus(d, slope);
    return j < count && inside ? d : 0.f;
  };
#pragma unroll
  for (int n = 0; n < GROUP; n++) {
    rate[n] = rate_at(p.A, (int64_t)n, e, s);
    if (LOW) *(float *)(own.weight + element_at<ByState>(lane, n)) = inside && n < s.R ? factor<SPLIT>(p.weight[e * s.R + n]) : 0;
  }
  stage(last);
  fetch_chunk(tokens_of(p, last));
  if (last) fetch_states(last);
  __syncthreads();
  for (int k = last; k >= 0; k--) {
    const int count = tokens_of(p, k), now = k % 2;
#pragma unroll
    for (int j = 0; j < TOKENS; j++) {
      *cell(own.g, j, lane) = wide_of(gy[j]), *cell(own.u, j, lane) = wide_of(u[j]);
      if (!LOW) *cell(own.x, j, lane) = wide_of(dt[LOW ? 0 : j]);
    }
    if (LOW) {
      float x[1][4][4] = {};
      product<float, SPLIT, 2, 1, 2>(
          x, [&](uint32_t (&f)[4], int, int i) { rows_as_a<ByState>(f, (uint32_t)__cvta_generic_to_shared(sh.dt[now]), 0, i, lane); },
          [&](uint32_t (&f)[4], int n, int i) { rows_as_b<ByState>(f, (uint32_t)__cvta_generic_to_shared(own.weight), 16 * n, i, lane); });
#pragma unroll
      for (int i = 0; i < 4; i++) {
        put_pair<ByChannel, true>(own.x, lane / 4, 8 * i + lane % 4 * 2, x[0][i][0], x[0][i][1]);
        put_pair<ByChannel, true>(own.x, lane / 4 + 8, 8 * i + lane % 4 * 2, x[0][i][2], x[0][i][3]);
      }
    }
    put_states<SPLIT>(own.carry, lane, carry);
    __syncwarp();
    if (k == last) /* the states that it leaves */
#pragma unroll 1
      for (int j = 0; j < count; j++) {
        float slope;
        const float d = step_of(*cell(own.x, j, lane), j, count, &slope), du = d * *cell(own.u, j, lane);
#pragma unroll
        for (int n = 0; n < GROUP; n++) h[n] += du * sh.b[now][j][n];
      }
    const int64_t end = tokens.offset + (TOKENS - 1) * tokens.step;
    T *gu = a.gu + end, *gdt = LOW ? nullptr : a.gdt + end;
#pragma unroll 2
    for (int j = TOKENS - 1; j >= 0; j--, gu -= tokens.step) {
      float slope, gd = 0, gdu = 0;
      const float g = *cell(own.g, j, lane), v = *cell(own.u, j, lane), d = step_of(*cell(own.x, j, lane), j, count, &slope), du = d * v;
#pragma unroll
      for (int q = 0; q < QUADS; q++) {
        const Four<float> bq = *(const Four<float> *)&sh.b[now][j][4 * q], cq = *(const Four<float> *)&sh.c[now][j][4 * q];
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int n = 4 * q + i;
          carry[n] += g * cq.x[i];
          gdu += carry[n] * bq.x[i];
          h[n] -= du * bq.x[i];
          const float both = carry[n] * h[n];
          gd += both * rate[n];
          gA[n] += both * d;
        }
      }
      const bool mine = j < count && inside;
      const float gx = mine ? (gd * float(LN2) + gdu * v) * slope : 0; /* the rates carry log2 e */
      gD += g * v, gbias += gx;
      *cell(own.u, j, lane) = factor<SPLIT>(du), *cell(own.x, j, lane) = factor<SPLIT>(gx);
      if (mine && a.gu) *gu = narrow<T>(gdu * d + D * g);
      if (!LOW && mine && a.gdt) *gdt = narrow<T>(gx);
      if (!LOW) gdt -= tokens.step;
    }
    put_states<SPLIT>(own.h, lane, h);
    tokens.previous_chunk();
    if (k) fetch_chunk(TOKENS); /* on their way while matrices are multiplied */
    __syncwarp();
    sum_matrices<T, SPLIT, LOW>(own, sh, now, lane, gw);
    if (k) fetch_states(k);
    __syncthreads();
    if (a.by_tile) add_warps(p, sh, a.by_tile + tile * (2 * N + s.R) * s.B * s.L, b, k, count, warps);
    if (k) stage(k - 1);
    __syncthreads();
  }
  if (!a.by_batch) return;
  float *totals = a.by_batch + b * s.E * (N + 2 + s.R), *weights = totals + s.E * (N + 2);
  if (inside) {
#pragma unroll
    for (int n = 0; n < GROUP; n++)
      if (n < N) totals[e * N + n] = gA[n];
    totals[s.E * N + e] = gD, totals[s.E * (N + 1) + e] = gbias;
  }
  if (LOW)
#pragma unroll
    for (int i = 0; i < 16; i++) {
      const int64_t row = e - lane + i / 8 * 16 + i % 4 / 2 * 8 + lane / 4, r = i / 4 % 2 * 8 + lane % 4 * 2 + i % 2;
      if (row < s.E && r < s.R) weights[row * s.R + r] = gw[i / 8][i / 4 % 2][i % 4];
    }
}

/* False: not a scan of this kernel, nothing was launched. */
template <class T> static bool still_scan(CabStream *stream, const ScanShape *s, const Scan<T> &p, bool gate, int count, int *tiles, int *warps) {
  if (sizeof(T) == sizeof(double) || gate || p.groups > 1 || p.segments > 1 || s->N < 1 || s->R > STILL_RANK) return false;
  const int64_t all = (s->E + 31) / 32;
  int most = STILL_WARPS;
  while (most > 2 && s->B * count * ((all + most - 1) / most) < 2 * stream->multiprocessors) most--; /* smaller tiles for a small batch */
  *tiles = (int)((all + most - 1) / most);
  *warps = (int)((all + *tiles - 1) / *tiles);
  return true;
}

template <class T, bool SPLIT, bool LOW> static void launch_still(CabStream *s, int count, const Each<Adjoint<T>> &each, int tiles, int warps) {
  auto kernel = still_kernel<T, SPLIT, LOW>;
  const int bytes = (int)(sizeof(StillShared) - (STILL_WARPS - warps) * sizeof(StillWarp));
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)sizeof(StillShared));
  cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  kernel<<<dim3((unsigned)(each.of[0].scan.s.B * tiles), count), 32 * warps, bytes, s->stream>>>(each, tiles);
}
template <class T> static void launch_still(CabStream *s, int count, const Each<Adjoint<T>> &each, int tiles, int warps) {
  constexpr bool wide = sizeof(T) == sizeof(float);
  const bool low = each.of[0].scan.s.R;
  if (wide && s->precision == PRECISION_F32)
    low ? launch_still<T, wide, true>(s, count, each, tiles, warps) : launch_still<T, wide, false>(s, count, each, tiles, warps);
  else low ? launch_still<T, false, true>(s, count, each, tiles, warps) : launch_still<T, false, false>(s, count, each, tiles, warps);
}

} // namespace scan
#endif
