/* selective_scan_still_forward.cuh - the scan forward where all decays round to 1 (selective_scan_still.cuh) and dt goes through a weight.
 *
 * In a chunk that finds the states H, with U = d u, Y = H C^T + U upper(B C^T) + D u, and H + U B is what the next finds: all of it on
 * tensor cores, with channels as rows. A warp owns 32 channels; a lane has rows of 4 neighbouring ones, so tokens come and go in
 * packs of 4, d is found where the product left dt, and the states stay in the registers of a product's result.
 *
 * Whether decays round to 1 must be known before: a block compares its fastest rates with a bound of d, |weight| |dt| + bias. A block
 * where the bound does not do leaves its channels to forward_kernel, which comes after. */
#ifndef CAB_KERNELS_SELECTIVE_SCAN_STILL_FORWARD_CUH
#define CAB_KERNELS_SELECTIVE_SCAN_STILL_FORWARD_CUH
#include "selective_scan_still.cuh"

namespace scan {

/* One scan of a launch. entries: states at the entry of each segment, NULL: zero. parked: with several groups of states, room
 * for [blocks, groups, 4, THREADS] while another group marches. h may be NULL. */
template <class T> struct Forward {
  Scan<T> scan;
  const Wide<T> *entries;
  Wide<T> *parked;
  T *y;
  Wide<T> *h;
  int *done; /* of still_forward_kernel, [B, done_tiles] of done_width channels: whether it has done them; NULL: nothing */
  int64_t done_tiles, done_width;
};

/* Whether a decay of the block's channels may not round to 1. Call by all threads, one for each channel. */
template <class T> __device__ __forceinline__ bool may_move(const Scan<T> &p, int64_t b, int64_t e) {
  __shared__ float part[STILL_WARPS];
  const ScanShape &s = p.s;
  float most = 0, own = 0, peak = 0;
  bool moving = false;
  for (int64_t t = threadIdx.x; t < s.L; t += blockDim.x) {
    const T *row = p.dt + (b * s.L + t) * s.ldt;
    float sum = 0;
    for (int r = 0; r < s.R; r++) sum += wide_of(row[r]) * wide_of(row[r]);
    moving |= sum != sum;
    most = fmaxf(most, sum);
  }
  most = warp_max(most);
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = most;
  __syncthreads();
  for (int w = 0; w < (int)blockDim.x / 32; w++) most = fmaxf(most, part[w]);
  if (e < s.E) {
    for (int r = 0; r < s.R; r++) own += p.weight[e * s.R + r] * p.weight[e * s.R + r];
    for (int n = 0; n < s.N; n++) {
      const float rate = fabs(rate_at(p.A, (int64_t)n, e, s));
      moving |= rate != rate;
      peak = fmaxf(peak, rate);
    }
    const float bias = p.bias ? p.bias[e] : 0, x = sqrtf(own) * sqrtf(most);
    const float d = s.softplus ? fmaxf(bias + x, 0) + float(LN2) : fabs(bias) + x; /* softplus(x) <= max(x, 0) + log 2 */
    moving |= bias != bias || decays(1.001f * d * peak);
  }
  return __syncthreads_or(moving);
}

/* Grid: (batch elements x tiles) x scans; a tile has a channel for each thread. */
template <class T, bool SPLIT>
static __global__ void __launch_bounds__(32 * STILL_WARPS, 2) still_forward_kernel(const __grid_constant__ Each<Forward<T>> each, int tiles) {
  using namespace bridge_tile;
  enum { STAGED = 2 }; /* elements of B, C and dt for a thread */
  __shared__ alignas(16) float sb[2][TOKENS][STILL_PITCH], sc[2][TOKENS][STILL_PITCH], st[2][TOKENS][STILL_PITCH];
  const Forward<T> &f = each.of[blockIdx.y];
  const Scan<T> &p = f.scan;
  const ScanShape &s = p.s;
  const int64_t b = blockIdx.x / tiles, e0 = blockIdx.x % tiles * (int64_t)blockDim.x, N = s.N;
  const bool moving = may_move(p, b, e0 + threadIdx.x);
  if (!threadIdx.x) f.done[blockIdx.x] = !moving;
  if (moving) return;
  const int lane = threadIdx.x % 32, row = lane / 4, pair = lane % 4 * 2;
  const int64_t e = e0 + threadIdx.x / 32 * 32 + 4 * row; /* channels e .. e + 3: rows row, row + 8 of two fragments */
  const bool inside = e < s.E;
  const auto at = [](const void *q) { return (uint32_t)__cvta_generic_to_shared(q); };
  float D[4] = {}, bias[4] = {}, state[2][2][4] = {};
  Factor<SPLIT> weight[2][2];
#pragma unroll
  for (int c = 0; c < 4; c++) {
    if (p.D && inside) D[c] = p.D[e + c];
    if (p.bias && inside) bias[c] = p.bias[e + c];
#pragma unroll
    for (int k = 0; k < 2; k++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int64_t r = 8 * k + 4 * half + lane % 4;
        weight[c / 2][k].high[c % 2 + 2 * half] = inside && r < s.R ? __float_as_uint(p.weight[(e + c) * s.R + r]) : 0;
      }
  }
#pragma unroll
  for (int i = 0; i < 4; i++) weight[i / 2][i % 2].narrow(false);
  Cursor tokens(s, b, 0, pair, p.step_e, e);
  Pack<T, 4> u[2][2]; /* of tokens 8 i + pair + q */
  const auto fetch = [&](int count) {
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int q = 0; q < 2; q++)
        if (inside && 8 * i + pair + q < count) u[i][q] = *(const Pack<T, 4> *)(p.u + tokens.offset + (8 * i + q) * tokens.step);
        else u[i][q] = Pack<T, 4>{};
  };
  float staged[STAGED][3];
  const auto take = [&](int chunk) { /* B, C and dt of a chunk */
    const int count = tokens_of(p, chunk);
    const Cursor in_b(s, b, chunk, 0, p.step_b, 0), in_c(s, b, chunk, 0, p.step_c, 0), in_t(s, b, chunk, 0, p.step_t, 0);
#pragma unroll
    for (int v = 0; v < STAGED; v++) {
      const int i = threadIdx.x + v * blockDim.x, j = i / GROUP, n = i % GROUP;
      const bool there = j < count;
      staged[v][0] = there && n < N ? wide_of(p.b[in_b.offset + j * in_b.step + n]) : 0;
      staged[v][1] = there && n < N ? wide_of(p.c[in_c.offset + j * in_c.step + n]) : 0;
      staged[v][2] = there && n < s.R ? wide_of(p.dt[in_t.offset + j * in_t.step + n]) : 0;
    }
  };
  const auto put = [&](int now) { /* all three are read by products alone */
#pragma unroll
    for (int v = 0; v < STAGED; v++) {
      const int i = threadIdx.x + v * blockDim.x, j = i / GROUP, n = i % GROUP;
      if (j >= TOKENS) continue;
      sb[now][j][n] = factor<SPLIT>(staged[v][0]), sc[now][j][n] = factor<SPLIT>(staged[v][1]), st[now][j][n] = factor<SPLIT>(staged[v][2]);
    }
  };
  take(0), put(0), fetch(tokens_of(p, 0));
  __syncthreads();
  for (int k = 0; k < p.chunks; k++) {
    const int count = tokens_of(p, k), now = k % 2;
    if (k + 1 < p.chunks) take(k + 1);
    float y[2][2][4] = {};
    Factor<SPLIT> du[2][2];
#pragma unroll
    for (int j = 0; j < 2; j++) {
      Factor<SPLIT> dt;
      rows_as_b<ByState>(dt.high, at(st[now]), 0, j, lane);
      dt.narrow(true);
#pragma unroll
      for (int m = 0; m < 2; m++)
#pragma unroll
        for (int i = 0; i < 2; i++) multiply(y[m][i], weight[m][j], dt, 2 * i, 2 * i + 1);
    }
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int v = 0; v < 4; v++) { /* channel 2 m + v / 2 of token v % 2 */
          const int c = 2 * m + v / 2;
          const float x = wide_of(u[i][v % 2].v[c]);
          float d = y[m][i][v] + bias[c], slope;
          if (s.softplus) d = softplus(d, &slope);
          du[m][i].high[v / 2 + v % 2 * 2] = __float_as_uint(d * x); /* columns in the order in which a thread holds them */
          y[m][i][v] = D[c] * x;
        }
        du[m][i].narrow(false);
      }
    const int64_t here = tokens.offset;
    tokens.next_chunk();
    if (k + 1 < p.chunks) fetch(tokens_of(p, k + 1));
    if (f.h && inside)
#pragma unroll
      for (int g = 0; g < 2; g++)
#pragma unroll
        for (int q = 0; q < 2; q++)
          if (8 * g + pair + q < N)
            *(Four<float> *)(f.h + ((b * p.chunks + k) * N + 8 * g + pair + q) * s.E + e) = {state[0][g][q], state[0][g][2 + q], state[1][g][q],
                                                                                             state[1][g][2 + q]};
    float both[2][4] = {}; /* C B^T, [tokens of y, tokens of u] */
#pragma unroll
    for (int j = 0; j < 2; j++) { /* 8 states */
      Factor<SPLIT> c, rows_c, rows_b, h[2];
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const float2 pick = *(const float2 *)&sc[now][8 * i + row][8 * j + pair];
        c.high[2 * i] = __float_as_uint(pick.x), c.high[2 * i + 1] = __float_as_uint(pick.y);
      }
      rows_as_a<ByState>(rows_c.high, at(sc[now]), 0, j, lane);
      rows_as_b<ByState>(rows_b.high, at(sb[now]), 0, j, lane);
      c.narrow(true), rows_c.narrow(true), rows_b.narrow(true);
#pragma unroll
      for (int i = 0; i < 2; i++) multiply(both[i], rows_c, rows_b, 2 * i, 2 * i + 1);
#pragma unroll
      for (int m = 0; m < 2; m++) {
#pragma unroll
        for (int v = 0; v < 4; v++) h[m].high[v / 2 + v % 2 * 2] = __float_as_uint(state[m][j][v]);
        h[m].narrow(false);
#pragma unroll
        for (int i = 0; i < 2; i++) multiply(y[m][i], h[m], c, 2 * i, 2 * i + 1);
      }
    }
#pragma unroll
    for (int j = 0; j < 2; j++) { /* 8 tokens of u */
      Factor<SPLIT> mask, in;
#pragma unroll
      for (int i = 0; i < 2; i++)
#pragma unroll
        for (int q = 0; q < 2; q++) {
          mask.high[2 * i + q] = 8 * j + pair + q <= 8 * i + row ? __float_as_uint(both[j][2 * i + q]) : 0;
          in.high[2 * i + q] = __float_as_uint(sb[now][8 * j + pair + q][8 * i + row]);
        }
      mask.narrow(false), in.narrow(true);
#pragma unroll
      for (int m = 0; m < 2; m++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
          if (i >= j) multiply(y[m][i], du[m][j], mask, 2 * i, 2 * i + 1);
          multiply(state[m][i], du[m][j], in, 2 * i, 2 * i + 1);
        }
    }
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int q = 0; q < 2; q++)
        if (inside && 8 * i + pair + q < count) {
          const float out[4] = {y[0][i][q], y[0][i][2 + q], y[1][i][q], y[1][i][2 + q]};
          store<T, 4>(f.y + here + (8 * i + q) * tokens.step, out);
        }
    if (k + 1 < p.chunks) put(1 - now);
    __syncthreads();
  }
}

template <class T> static bool still_forward_fits(const Forward<T> &f) {
  const Scan<T> &p = f.scan;
  const ScanShape &s = p.s;
  return sizeof(T) != sizeof(double) && !p.z && p.groups == 1 && p.segments == 1 && s.N >= 1 && s.R >= 1 && s.R <= STILL_RANK &&
         packs<T, 4>(p.u, s.E) && packs<T, 4>(f.y, s.E) && packs<Wide<T>, 4>(f.h, s.E) && s.E % 4 == 0;
}

/* Launches still_forward_kernel; tells forward_kernel where to look. */
template <class T> static void forward_still(CabStream *stream, Room &room, int count, Each<Forward<T>> &each) {
  const ScanShape &s = each.of[0].scan.s;
  const int64_t all = (s.E + 31) / 32;
  const int warps = s.B * count * ((all + STILL_WARPS - 1) / STILL_WARPS) < 2 * stream->multiprocessors ? 4 : STILL_WARPS; /* whole tiles of the other */
  const int64_t tiles = (all + warps - 1) / warps;
  for (int i = 0; i < count; i++) {
    Forward<T> &f = each.of[i];
    f.done = (int *)room.get((size_t)(s.B * tiles) * sizeof(int)), f.done_tiles = tiles, f.done_width = 32 * warps;
  }
  if (stream->failed) return;
  auto kernel = sizeof(T) == sizeof(float) && stream->precision == PRECISION_F32 ? still_forward_kernel<T, sizeof(T) == sizeof(float)>
                                                                                 : still_forward_kernel<T, false>;
  kernel<<<dim3((unsigned)(s.B * tiles), count), 32 * warps, 0, stream->stream>>>(each, (int)tiles);
}

} // namespace scan
#endif
