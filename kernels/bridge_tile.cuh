/* bridge_tile.cuh - the whole bridge in one kernel on tensor cores, for hidden width 128, up to 16 states and teachers of
 * width 64, 128 or 192. A block keeps w2 in shared memory and takes 64 rows at a time through both layers, the error and back;
 * the gradients of w1 and w2 stay in registers until its rows are done. What goes through memory is x, the targets, gx, and one
 * set of parameter gradients for each block, which a second kernel adds up in order. */
#ifndef CAB_KERNELS_BRIDGE_TILE_CUH
#define CAB_KERNELS_BRIDGE_TILE_CUH
#include "bridge.h"
#include "bridge_mma.cuh"

namespace bridge_tile {

enum { ROWS = 64, HIDDEN = 128, STATES = 16, WARPS = 8, BLOCK = 32 * WARPS };

/* ---- a block's work --------------------------------------------------------------------------- */

struct Taps { BridgeTap tap[BRIDGE_TAPS]; };

/* Where things lie in a block's shared memory, in bytes. */
template <class E, int D> struct Room {
  static constexpr int W2 = 0, H = W2 + D * HIDDEN * (int)sizeof(E), P = H + ROWS * HIDDEN * (int)sizeof(E),
                       SLOPE = P + ROWS * D * (int)sizeof(E), X = SLOPE + ROWS * HIDDEN * 4, W1 = X + ROWS * Padded<E>::ROW,
                       B1 = W1 + HIDDEN * Padded<E>::ROW, B2 = B1 + HIDDEN * 4, MEAN = B2 + D * 4, RATE = MEAN + D * 4,
                       LOOK = RATE + D * 4, BYTES = LOOK + ROWS * 8;
};

/* Number of parameters, in the order gw1, gb1, gw2, gb2. */
template <int D> static __host__ __device__ __forceinline__ int parameters(int64_t N) { return HIDDEN * (int)N + HIDDEN + D * HIDDEN + D; }

template <class T, bool SPLIT, int D> struct Block {
  typedef T E;
  typedef Room<E, D> R;
  typedef Swizzled<E, HIDDEN> Wide128; /* w2, h and the gradient of h */
  typedef Swizzled<E, D> Target;       /* targets, then the gradient of p */
  typedef Padded<E> States;            /* x, w1 */
  static constexpr int STEP = 32 / (int)sizeof(E); /* depth of a step */
  static constexpr int PN = D / 64, WM = D / 64;   /* pairs of column fragments of p, row fragments of gw2, of a warp */
  static constexpr int XS = ROWS * STATES / BLOCK;

  char *room;
  uint32_t base;
  int lane, warp, wm, wn, g, t; /* a warp has rows 32 wm + .., a quarter wn of the columns */
  float gw2[WM][8][4], gw1[1][2][4], gb2[2 * PN][2], gb1[4][2], error;
  float x[XS];                  /* of the next tile */

  __device__ __forceinline__ Block(char *memory)
      : room(memory), base((uint32_t)__cvta_generic_to_shared(memory)), lane(threadIdx.x % 32), warp(threadIdx.x / 32), wm(warp % 2),
        wn(warp / 2), g(lane / 4), t(lane % 4), gw2{}, gw1{}, gb2{}, gb1{}, error(0), x{} {}

  /* w1, w2 and the vectors, once. */
  __device__ __forceinline__ void load_parameters(const BridgeShape &s, const BridgeTap &p) {
    const float *w1 = (const float *)p.w1, *w2 = (const float *)p.w2;
    const int N = (int)s.N;
    for (int i = threadIdx.x; i < HIDDEN * STATES; i += BLOCK) {
      const int row = i / STATES, k = i % STATES;
      *(E *)(room + R::W1 + element_at<States>(row, k)) = factor_of<E, SPLIT>(k < N ? w1[row * N + k] : 0.f);
    }
#pragma unroll 8
    for (int i = threadIdx.x; i < D * HIDDEN / 4; i += BLOCK) {
      const int row = i / (HIDDEN / 4), c = i % (HIDDEN / 4) * 4;
      const float4 w = ((const float4 *)w2)[i];
      put_pair<Wide128, SPLIT>(room + R::W2, row, c, w.x, w.y);
      put_pair<Wide128, SPLIT>(room + R::W2, row, c + 2, w.z, w.w);
    }
    for (int i = threadIdx.x; i < HIDDEN; i += BLOCK) vector(R::B1)[i] = ((const float *)p.b1)[i];
    for (int i = threadIdx.x; i < D; i += BLOCK) {
      const bool standard = s.map == BRIDGE_STANDARD;
      vector(R::B2)[i] = ((const float *)p.b2)[i];
      vector(R::MEAN)[i] = standard ? ((const float *)p.mean)[i] : 0.f;
      vector(R::RATE)[i] = standard ? 1 / ((const float *)p.deviation)[i] : 1.f;
    }
  }
  __device__ __forceinline__ float *vector(int at) const { return (float *)(room + at); }
  __device__ __forceinline__ float2 vector_pair(int at, int c) const { return *(const float2 *)(room + at + 4 * c); }

  __device__ __forceinline__ void fetch_x(const BridgeShape &s, const BridgeTap &p, int64_t from) {
    const int64_t rows = s.B * s.L;
#pragma unroll
    for (int i = 0; i < XS; i++) {
      const int at = threadIdx.x + i * BLOCK, k = at % STATES;
      const int64_t r = from + at / STATES;
      x[i] = r < rows && k < s.N ? wide_of(((const T *)p.x)[r * p.ldx + k]) : 0.f;
    }
  }
  __device__ __forceinline__ void store_x() {
#pragma unroll
    for (int i = 0; i < XS; i++) {
      const int at = threadIdx.x + i * BLOCK;
      *(E *)(room + R::X + element_at<States>(at / STATES, at % STATES)) = factor_of<E, SPLIT>(x[i]);
    }
  }

  /* Where the target of each row begins, -1 beyond the last row. */
  __device__ __forceinline__ void look_up(const BridgeShape &s, const BridgeTap &p, int64_t from) {
    if (threadIdx.x >= ROWS) return;
    const int64_t r = from + threadIdx.x;
    ((int64_t *)(room + R::LOOK))[threadIdx.x] =
        r < s.B * s.L ? (r / s.L * s.T + bridge_token(&s, r % s.L)) * p.ld_target : (int64_t)-1;
  }
  __device__ __forceinline__ void fetch_targets(const BridgeTap &p) {
    constexpr int CHUNKS = D / Target::PER;
#pragma unroll 4
    for (int i = threadIdx.x; i < ROWS * CHUNKS; i += BLOCK) {
      const int row = i / CHUNKS, chunk = i % CHUNKS;
      const int64_t at = ((const int64_t *)(room + R::LOOK))[row];
      const T *from = (const T *)p.target + (at < 0 ? 0 : at + chunk * Target::PER);
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(base + R::P + Target::at(row, chunk)),
                   "l"(__cvta_generic_to_global(from)), "r"(at < 0 ? 0 : 16) : "memory");
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  }

  /* h and silu' */
  __device__ __forceinline__ void lift() {
    float v[2][4][4];
#pragma unroll
    for (int n = 0; n < 4; n++) {
      const float2 b = vector_pair(R::B1, 32 * wn + 8 * n + 2 * t);
#pragma unroll
      for (int m = 0; m < 2; m++) v[m][n][0] = v[m][n][2] = b.x, v[m][n][1] = v[m][n][3] = b.y;
    }
    product<E, SPLIT, STATES / STEP, 2, 2>(
        v, [&](uint32_t (&a)[4], int m, int k) { rows_as_a<States>(a, base + R::X, 32 * wm + 16 * m, k, lane); },
        [&](uint32_t (&b)[4], int n, int k) { rows_as_b<States>(b, base + R::W1, 32 * wn + 16 * n, k, lane); });
    float2 *slopes = (float2 *)(room + R::SLOPE) + threadIdx.x;
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
      for (int n = 0; n < 4; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
          const float p = v[m][n][2 * i], q = v[m][n][2 * i + 1], sp = sigmoid(p), sq = sigmoid(q);
          slopes[((m * 4 + n) * 2 + i) * BLOCK] = make_float2(silu_slope(p, sp), silu_slope(q, sq));
          put_pair<Wide128, SPLIT>(room + R::H, 32 * wm + 16 * m + 8 * i + g, 32 * wn + 8 * n + 2 * t, p * sp, q * sq);
        }
  }

  /* LINEAR: without a map or standardised; the two others are told apart in the loop. */
  template <bool LINEAR> static __device__ __forceinline__ float mapped(BridgeMap map, float x, float mean, float rate) {
    if (LINEAR) return (x - mean) * rate;
    return map == BRIDGE_EXP ? expf(x) : x < 0 ? 0.f : x;
  }

  /* Over the target the gradient of p; valid: rows of this tile. */
  template <bool LINEAR> __device__ __forceinline__ void errors(const float (&p)[2][2 * PN][4], BridgeMap map, int valid, float factor) {
#pragma unroll
    for (int n = 0; n < 2 * PN; n++) {
      const int c = D / 4 * wn + 8 * n + 2 * t;
      const float2 mean = vector_pair(R::MEAN, c), rate = vector_pair(R::RATE, c);
#pragma unroll
      for (int m = 0; m < 2; m++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
          const int row = 32 * wm + 16 * m + 8 * i + g;
          const float2 target = get_pair<Target>(room + R::P, row, c);
          const bool in = row < valid;
          const float e = in ? p[m][n][2 * i] - mapped<LINEAR>(map, target.x, mean.x, rate.x) : 0.f;
          const float f = in ? p[m][n][2 * i + 1] - mapped<LINEAR>(map, target.y, mean.y, rate.y) : 0.f;
          error += e * e + f * f;
          gb2[n][0] += factor * e, gb2[n][1] += factor * f;
          put_pair<Target, SPLIT>(room + R::P, row, c, factor * e, factor * f);
        }
    }
  }

  __device__ __forceinline__ void compare(BridgeMap map, int valid, float factor) {
    constexpr int WIDTH = D / 4;
    float p[2][2 * PN][4];
#pragma unroll
    for (int n = 0; n < 2 * PN; n++) {
      const float2 b = vector_pair(R::B2, WIDTH * wn + 8 * n + 2 * t);
#pragma unroll
      for (int m = 0; m < 2; m++) p[m][n][0] = p[m][n][2] = b.x, p[m][n][1] = p[m][n][3] = b.y;
    }
    product<E, SPLIT, HIDDEN / STEP, 2, PN>(
        p, [&](uint32_t (&a)[4], int m, int k) { rows_as_a<Wide128>(a, base + R::H, 32 * wm + 16 * m, k, lane); },
        [&](uint32_t (&b)[4], int n, int k) { rows_as_b<Wide128>(b, base + R::W2, WIDTH * wn + 16 * n, k, lane); });
    if (map == BRIDGE_NONE || map == BRIDGE_STANDARD) errors<true>(p, map, valid, factor);
    else errors<false>(p, map, valid, factor);
  }

  /* gw2 += dp^T h, then the gradient of the first layer over h. Holds a barrier. */
  __device__ __forceinline__ void descend(bool parameters) {
    if (parameters)
      product<E, SPLIT, ROWS / STEP, WM, 4>(
          gw2, [&](uint32_t (&a)[4], int m, int k) { columns_as_a<Target>(a, base + R::P, D / 4 * (warp % 4) + 16 * m, k, lane); },
          [&](uint32_t (&b)[4], int n, int k) { columns_as_b<Wide128>(b, base + R::H, 64 * (warp / 4) + 16 * n, k, lane); });
    float v[2][4][4] = {};
    product<E, SPLIT, D / STEP, 2, 2>(
        v, [&](uint32_t (&a)[4], int m, int k) { rows_as_a<Target>(a, base + R::P, 32 * wm + 16 * m, k, lane); },
        [&](uint32_t (&b)[4], int n, int k) { columns_as_b<Wide128>(b, base + R::W2, 32 * wn + 16 * n, k, lane); });
    __syncthreads(); /* all have read h */
    const float2 *slopes = (const float2 *)(room + R::SLOPE) + threadIdx.x;
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
      for (int n = 0; n < 4; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
          const float2 slope = slopes[((m * 4 + n) * 2 + i) * BLOCK];
          const float p = slope.x * v[m][n][2 * i], q = slope.y * v[m][n][2 * i + 1];
          gb1[n][0] += p, gb1[n][1] += q;
          put_pair<Wide128, SPLIT>(room + R::H, 32 * wm + 16 * m + 8 * i + g, 32 * wn + 8 * n + 2 * t, p, q);
        }
  }

  /* gw1 += dh^T x;  gx = dh w1, by the first four warps. */
  __device__ __forceinline__ void leave(const BridgeShape &s, const BridgeTap &p, int64_t from, int valid) {
    if (p.gw1)
      product<E, SPLIT, ROWS / STEP, 1, 1>(
          gw1, [&](uint32_t (&a)[4], int, int k) { columns_as_a<Wide128>(a, base + R::H, 16 * warp, k, lane); },
          [&](uint32_t (&b)[4], int, int k) { columns_as_b<States>(b, base + R::X, 0, k, lane); });
    if (!p.gx || warp >= ROWS / 16) return;
    float v[1][2][4] = {};
    product<E, SPLIT, HIDDEN / STEP, 1, 1>(
        v, [&](uint32_t (&a)[4], int, int k) { rows_as_a<Wide128>(a, base + R::H, 16 * warp, k, lane); },
        [&](uint32_t (&b)[4], int, int k) { columns_as_b<States>(b, base + R::W1, 0, k, lane); });
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int row = 16 * warp + g + i / 2 * 8, k = 8 * n + 2 * t + i % 2;
        if (row < valid && k < s.N) ((T *)p.gx)[(from + row) * s.N + k] = narrow<T>(v[0][n][i]);
      }
  }

  /* The sums of this block to `to`, in the order gw1, gb1, gw2, gb2. */
  __device__ __forceinline__ void store_sums(int N, float *to) {
    float *sums = (float *)(room + R::SLOPE); /* [2,HIDDEN + D]: of the warps of each half of the rows */
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int row = 16 * warp + g + i / 2 * 8, k = 8 * n + 2 * t + i % 2;
        if (k < N) to[row * N + k] = gw1[0][n][i];
      }
    float *second = to + HIDDEN * N + HIDDEN;
#pragma unroll
    for (int m = 0; m < WM; m++)
#pragma unroll
      for (int n = 0; n < 8; n++)
#pragma unroll
        for (int i = 0; i < 2; i++)
          *(float2 *)(second + (D / 4 * (warp % 4) + 16 * m + 8 * i + g) * HIDDEN + 64 * (warp / 4) + 8 * n + 2 * t) =
              make_float2(gw2[m][n][2 * i], gw2[m][n][2 * i + 1]);
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
      for (int n = 0; n < 4; n++) {
        const float sum = over_rows(gb1[n][i]);
        if (!g) sums[wm * (HIDDEN + D) + 32 * wn + 8 * n + 2 * t + i] = sum;
      }
#pragma unroll
      for (int n = 0; n < 2 * PN; n++) {
        const float sum = over_rows(gb2[n][i]);
        if (!g) sums[wm * (HIDDEN + D) + HIDDEN + D / 4 * wn + 8 * n + 2 * t + i] = sum;
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < HIDDEN + D; i += BLOCK)
      (i < HIDDEN ? to + HIDDEN * N : second + D * HIDDEN - HIDDEN)[i] = sums[i] + sums[HIDDEN + D + i];
  }
  /* Over the 8 rows of a fragment. */
  static __device__ __forceinline__ float over_rows(float x) {
#pragma unroll
    for (int m = 4; m < 32; m <<= 1) x += __shfl_xor_sync(0xffffffffu, x, m);
    return x;
  }
};

/* Grid: blocks of a tap x taps. Block b of a tap takes tiles b, b + gridDim.x, ...; partial [taps,blocks,parameters],
 * errors [taps,blocks]. */
template <class T, bool SPLIT, int D>
static __global__ void __launch_bounds__(BLOCK, 1) bridge_tiles(BridgeShape s, Taps taps, float factor, float *partial, float *errors) {
  extern __shared__ __align__(128) char memory[];
  const BridgeTap &p = taps.tap[blockIdx.y];
  const int64_t rows = s.B * s.L, tiles = (rows + ROWS - 1) / ROWS, block = blockIdx.y * (int64_t)gridDim.x + blockIdx.x;
  const bool gradient = p.gx || p.gw1;
  Block<T, SPLIT, D> b(memory);
  b.load_parameters(s, p);
  b.fetch_x(s, p, blockIdx.x * (int64_t)ROWS);
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t from = tile * ROWS;
    const int valid = rows - from < ROWS ? (int)(rows - from) : (int)ROWS;
    __syncthreads(); /* the last tile's x, h and targets have been read */
    b.store_x();
    b.look_up(s, p, from);
    __syncthreads();
    b.fetch_targets(p);
    b.lift();
    b.fetch_x(s, p, from + gridDim.x * (int64_t)ROWS);
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
    b.compare(s.map, valid, factor);
    if (!gradient) continue;
    __syncthreads();
    b.descend(p.gw1 != NULL);
    __syncthreads();
    b.leave(s, p, from, valid);
  }
  const float error = block_sum(b.error);
  if (!threadIdx.x) errors[block] = error;
  if (p.gw1) b.store_sums((int)s.N, partial + block * parameters<D>(s.N));
}

/* Parameter gradients: the sum over blocks, in order. The first block also does mse and y. Grid: parameters x taps. */
template <int D>
static __global__ void __launch_bounds__(BLOCK) add_blocks(BridgeShape s, Taps taps, int blocks, const float *partial,
                                                           const float *errors, float *mse, float *y) {
  const int count = parameters<D>(s.N), first = HIDDEN * (int)s.N, second = first + HIDDEN, third = second + D * HIDDEN;
  if (blockIdx.x == 0 && blockIdx.y == 0) {
    double total = 0;
    for (int k = 0; k < s.taps; k++) {
      double sum = 0;
      for (int i = threadIdx.x; i < blocks; i += BLOCK) sum += (double)errors[k * blocks + i];
      sum = block_sum(sum) / ((double)(s.B * s.L) * D);
      total += sum;
      if (!threadIdx.x) mse[k] = (float)sum;
    }
    if (!threadIdx.x) *y = (float)total;
  }
  const BridgeTap &p = taps.tap[blockIdx.y];
  const int i = blockIdx.x * BLOCK + threadIdx.x;
  if (!p.gw1 || i >= count) return;
  const float *from = partial + blockIdx.y * (int64_t)blocks * count + i;
  float sum = 0;
#pragma unroll 8
  for (int b = 0; b < blocks; b++) sum += from[b * (int64_t)count];
  float *to = (float *)(i < first ? p.gw1 : i < second ? p.gb1 : i < third ? p.gw2 : p.gb2);
  to[i - (i < first ? 0 : i < second ? first : i < third ? second : third)] = sum;
}

/* ---- host ------------------------------------------------------------------------------------- */

/* False: this GPU has too little shared memory for it, nothing was launched. */
template <class T, bool SPLIT, int D>
static bool launch(CabStream *s, const BridgeShape &b, const BridgeTap *tap, float *mse, float *y) {
  constexpr int BYTES = Room<T, D>::BYTES, STATIC = 512; /* that of block_sum */
  int device = 0, limit = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (limit < BYTES + STATIC) return false;
  cudaFuncSetAttribute(bridge_tiles<T, SPLIT, D>, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES);
  const int64_t rows = b.B * b.L, tiles = (rows + ROWS - 1) / ROWS, most = s->multiprocessors / b.taps;
  const int blocks = (int)(tiles < most ? tiles : most < 1 ? 1 : most), count = tap[0].gw1 ? parameters<D>(b.N) : 0;
  Taps taps = {};
  for (int i = 0; i < b.taps; i++) taps.tap[i] = tap[i];
  Scratch room(s, ((size_t)b.taps * (size_t)blocks * (size_t)(count + 1)) * sizeof(float));
  if (!room.data) return true;
  float *partial = (float *)room.data, *errors = partial + (size_t)b.taps * (size_t)blocks * (size_t)count;
  const float factor = (float)(2 / ((double)rows * D));
  bridge_tiles<T, SPLIT, D><<<dim3((unsigned)blocks, (unsigned)b.taps), BLOCK, BYTES, s->stream>>>(b, taps, factor, partial, errors);
  add_blocks<D><<<dim3(count ? blocks_for(count, BLOCK) : 1, (unsigned)b.taps), BLOCK, 0, s->stream>>>(b, taps, blocks, partial, errors,
                                                                                                     mse, y);
  return true;
}

template <class T, bool SPLIT> static bool launch_by_width(CabStream *s, const BridgeShape &b, const BridgeTap *tap, float *mse, float *y) {
  if (b.H != HIDDEN || b.N > STATES || !b.B || !b.L) return false;
  for (int i = 0; i < b.taps; i++)
    if ((uintptr_t)tap[i].w2 % 16 || (uintptr_t)tap[i].target % 16 || (size_t)tap[i].ld_target * sizeof(T) % 16 ||
        !tap[i].gw1 != !tap[0].gw1)
      return false;
  if (b.D == 64) return launch<T, SPLIT, 64>(s, b, tap, mse, y);
  if (b.D == 128) return launch<T, SPLIT, 128>(s, b, tap, mse, y);
  return b.D == 192 && launch<T, SPLIT, 192>(s, b, tap, mse, y);
}

} // namespace bridge_tile
#endif
