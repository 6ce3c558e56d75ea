/* narrow.cuh - products over many rows with one small side S, which cuBLAS pads to its tiles: as the inner dimension
 * (short_product), as the width of the result (narrow_product) and as one side of a weight gradient (outer_sums). Plain f32
 * arithmetic; x, y, gy are T (float or bf16), parameters and their gradients f32. */
#ifndef CAB_KERNELS_NARROW_CUH
#define CAB_KERNELS_NARROW_CUH
#include "vector.cuh"

enum { NARROW_LANES = 32, NARROW_MOST = 48 }; /* the largest S */

/* Element (k, n) of a parameter: w[k * k_stride + n * n_stride], one of the strides being 1. */
struct Weight {
  const float *w;
  int64_t k_stride, n_stride;
};

/* ---- y[r,n] = b[n] + sum_{k<S} x[r,k] w(k,n); ADD: added to y ---------------------------------- */

enum { SHORT_WARPS = 8, SHORT_ROWS = 64 };

/* A thread keeps w of C columns in registers, S padded to KP with zeros; a row of x comes from shared memory, the same for
 * all lanes. Grid: row blocks x column tiles. */
template <class T, int KP, int C, bool ADD>
static __global__ void __launch_bounds__(NARROW_LANES *SHORT_WARPS, 2)
    short_product(int64_t rows, int64_t N, int S, const T *x, int64_t ldx, Weight w, const float *b, T *y) {
  constexpr int WIDTH = NARROW_LANES * C, THREADS = NARROW_LANES * SHORT_WARPS;
  __shared__ alignas(16) float xs[SHORT_ROWS][KP], ws[KP][WIDTH];
  const int lane = threadIdx.x, warp = threadIdx.y, thread = warp * NARROW_LANES + lane;
  const int64_t row0 = (int64_t)blockIdx.x * SHORT_ROWS, n0 = (int64_t)blockIdx.y * WIDTH, n = n0 + lane * C;
  for (int i = thread; i < SHORT_ROWS * KP; i += THREADS) {
    const int r = i / KP, k = i % KP;
    xs[r][k] = row0 + r < rows && k < S ? wide_of(x[(row0 + r) * ldx + k]) : 0;
  }
  for (int i = thread; i < KP * WIDTH; i += THREADS) { /* along the stride of 1 */
    const int k = w.k_stride == 1 ? i % KP : i / WIDTH, c = w.k_stride == 1 ? i / KP : i % WIDTH;
    ws[k][c] = k < S && n0 + c < N ? w.w[k * w.k_stride + (n0 + c) * w.n_stride] : 0;
  }
  __syncthreads();
  if (n >= N) return;
  float own[KP][C], bias[C];
#pragma unroll
  for (int k = 0; k < KP; k++) load<float, C>(own[k], &ws[k][lane * C]);
#pragma unroll
  for (int c = 0; c < C; c++) bias[c] = b ? b[n + c] : 0;
  float old[C] = {};
  if (ADD && row0 + warp < rows) load<T, C>(old, y + (row0 + warp) * N + n);
  for (int r = warp; r < SHORT_ROWS && row0 + r < rows; r += SHORT_WARPS) {
    float sum[C], xk[4];
#pragma unroll
    for (int c = 0; c < C; c++) sum[c] = bias[c] + old[c];
    if (ADD && r + SHORT_WARPS < SHORT_ROWS && row0 + r + SHORT_WARPS < rows) /* the next row's, a product ahead */
      load<T, C>(old, y + (row0 + r + SHORT_WARPS) * N + n);
#pragma unroll
    for (int k = 0; k < KP; k += 4) {
      load<float, 4>(xk, &xs[r][k]);
#pragma unroll
      for (int q = 0; q < 4; q++)
#pragma unroll
        for (int c = 0; c < C; c++) sum[c] += xk[q] * own[k + q][c];
    }
    store<T, C>(y + (row0 + r) * N + n, sum);
  }
}

/* ---- y[r,s] = b[s] + sum_{k<K} x[r,k] w(k,s), s < S; ADD: added to y --------------------------- */

enum { DOT_WARPS = 4, DOT_ROWS = 32, DOT_CHUNK = 32, DOT_PITCH = DOT_CHUNK + 4 }; /* pitch: no bank twice in a load */

/* A warp's rows of x in a chunk of K: 4 elements of rows 4 q + lane / 8. */
template <class T> struct XChunk {
  float v[DOT_ROWS / 4][4];
  __device__ __forceinline__ void fetch(int64_t rows, int64_t K, const T *x, int64_t ldx, int64_t k0) {
    const int row = threadIdx.x / 8, k4 = threadIdx.x % 8 * 4;
#pragma unroll
    for (int q = 0; q < DOT_ROWS / 4; q++) {
#pragma unroll
      for (int i = 0; i < 4; i++) v[q][i] = 0;
      if (4 * q + row < rows && k0 + k4 < K) load<T, 4>(v[q], x + (4 * q + row) * ldx + k0 + k4);
    }
  }
  __device__ __forceinline__ void put(float (*xs)[DOT_PITCH]) const {
    const int row = threadIdx.x / 8, k4 = threadIdx.x % 8 * 4;
#pragma unroll
    for (int q = 0; q < DOT_ROWS / 4; q++) *(float4 *)&xs[4 * q + row][k4] = make_float4(v[q][0], v[q][1], v[q][2], v[q][3]);
  }
};

/* w's columns of a chunk, along k. */
template <int SP>
static __device__ __forceinline__ void load_weights(int64_t K, int S, const Weight &w, int64_t k0, float (*ws)[DOT_PITCH]) {
  const int lane = threadIdx.x, k4 = lane % 8 * 4;
  if (w.k_stride == 1) {
#pragma unroll
    for (int q = 0; q < SP / 4; q++) {
      const int s = q * 4 + lane / 8;
      float v[4] = {};
      if (s < S && k0 + k4 < K) load<float, 4>(v, w.w + s * w.n_stride + k0 + k4);
      *(float4 *)&ws[s][k4] = make_float4(v[0], v[1], v[2], v[3]);
    }
  } else {
#pragma unroll 4
    for (int i = lane; i < DOT_CHUNK * SP; i += NARROW_LANES) {
      const int k = i / SP, s = i % SP;
      ws[s][k] = s < S && k0 + k < K ? w.w[(k0 + k) * w.k_stride + s] : 0;
    }
  }
}

/* A block computes DOT_ROWS rows; its warps share the chunks of K and add their sums in order. A lane has 4 rows x SP / 4
 * columns: rows lane / 4 + 8 i, columns lane % 4 + 4 j. The next chunk is on its way while one is multiplied. */
template <class T, int SP, bool ADD>
static __global__ void __launch_bounds__(NARROW_LANES *DOT_WARPS)
    narrow_product(int64_t rows, int64_t K, int S, const T *x, int64_t ldx, Weight w, const float *b, T *y) {
  constexpr int J = SP / 4;
  __shared__ alignas(16) float pool[DOT_WARPS][DOT_ROWS + SP][DOT_PITCH];
  static_assert(4 * J * NARROW_LANES <= (DOT_ROWS + SP) * DOT_PITCH, "the sums reuse the pool");
  const int lane = threadIdx.x, warp = threadIdx.y;
  const int64_t row0 = (int64_t)blockIdx.x * DOT_ROWS;
  float(*xs)[DOT_PITCH] = pool[warp], (*ws)[DOT_PITCH] = pool[warp] + DOT_ROWS;
  float sum[4][J] = {};
  XChunk<T> next;
  next.fetch(rows - row0, K, x + row0 * ldx, ldx, warp * DOT_CHUNK);
  for (int64_t k0 = warp * DOT_CHUNK; k0 < K; k0 += DOT_WARPS * DOT_CHUNK) {
    next.put(xs);
    load_weights<SP>(K, S, w, k0, ws);
    next.fetch(rows - row0, K, x + row0 * ldx, ldx, k0 + DOT_WARPS * DOT_CHUNK);
    __syncwarp();
#pragma unroll 2 /* whole, it would not fit the instruction cache */
    for (int k = 0; k < DOT_CHUNK; k += 4) {
      float xk[4][4], wk[4];
#pragma unroll
      for (int i = 0; i < 4; i++) load<float, 4>(xk[i], &xs[lane / 4 + 8 * i][k]);
#pragma unroll
      for (int j = 0; j < J; j++) {
        load<float, 4>(wk, &ws[lane % 4 + 4 * j][k]);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
          for (int q = 0; q < 4; q++) sum[i][j] += xk[i][q] * wk[q];
      }
    }
    __syncwarp();
  }
  __syncthreads();
  float *mine = &pool[warp][0][0];
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int j = 0; j < J; j++) mine[(i * J + j) * NARROW_LANES + lane] = sum[i][j];
  __syncthreads();
  const int64_t row = row0 + lane / 4 + 8 * warp; /* warp i ends the rows of sum[i] */
  if (row >= rows) return;
#pragma unroll
  for (int j = 0; j < J; j++) {
    const int s = lane % 4 + 4 * j;
    float total = (b && s < S ? b[s] : 0) + (ADD && s < S ? wide_of(y[row * S + s]) : 0);
#pragma unroll
    for (int other = 0; other < DOT_WARPS; other++) total += (&pool[other][0][0])[(warp * J + j) * NARROW_LANES + lane];
    if (s < S) y[row * S + s] = narrow<T>(total);
  }
}

/* ---- g[s,n] = sum_r small[r,s] wide[r,n], s < S ---------------------------------------------- */

enum { OUTER_WARPS = 4, OUTER_TILE = 64, OUTER_ROWS = OUTER_TILE / OUTER_WARPS /* of a warp in a tile */ };

/* partial[slab] = the sum over a slab of rows, [S,N]. A thread keeps all S of C columns; rows of
 * `small` come from shared memory a tile at a time. The warps share the rows and add their sums in order. Grid: slabs x
 * column tiles. */
template <class T, int SP, int C>
static __global__ void __launch_bounds__(NARROW_LANES *OUTER_WARPS, SP * C <= 64 ? 4 : 3)
    outer_sums(int64_t rows, int64_t per_slab, int S, int64_t N, const T *small, int64_t ld_small, const T *wide,
               int64_t ld_wide, float *partial) {
  constexpr int THREADS = NARROW_LANES * OUTER_WARPS, AHEAD = OUTER_ROWS / 2;
  __shared__ alignas(16) float xs[OUTER_TILE][SP], sums[OUTER_WARPS / 2][SP * C][NARROW_LANES];
  const int lane = threadIdx.x, warp = threadIdx.y, thread = warp * NARROW_LANES + lane;
  const int64_t first = (int64_t)blockIdx.x * per_slab, last = first + per_slab < rows ? first + per_slab : rows;
  const int64_t n = ((int64_t)blockIdx.y * NARROW_LANES + lane) * C;
  float sum[SP][C] = {};
  for (int64_t t = first; t < last; t += OUTER_TILE) {
    const int left = last - t < OUTER_TILE ? (int)(last - t) : OUTER_TILE;
    float g[AHEAD][C], xk[4];
    const auto fetch = [&](int a0) { /* before `small` is waited for: one trip to memory for both */
#pragma unroll
      for (int a = 0; a < AHEAD; a++) {
        const int r = warp + (a0 + a) * OUTER_WARPS;
#pragma unroll
        for (int c = 0; c < C; c++) g[a][c] = 0;
        if (r < left && n < N) load<T, C>(g[a], wide + (t + r) * ld_wide + n);
      }
    };
    fetch(0);
    __syncthreads();
    for (int i = thread; i < OUTER_TILE * SP; i += THREADS) {
      const int r = i / SP, s = i % SP;
      xs[r][s] = r < left && s < S ? wide_of(small[(t + r) * ld_small + s]) : 0;
    }
    __syncthreads();
#pragma unroll 1
    for (int a0 = 0; a0 < OUTER_ROWS; a0 += AHEAD) {
      if (a0) fetch(a0);
#pragma unroll
      for (int a = 0; a < AHEAD; a++)
#pragma unroll
        for (int s = 0; s < SP; s += 4) {
          load<float, 4>(xk, &xs[warp + (a0 + a) * OUTER_WARPS][s]);
#pragma unroll
          for (int q = 0; q < 4; q++)
#pragma unroll
            for (int c = 0; c < C; c++) sum[s + q][c] += xk[q] * g[a][c];
        }
    }
  }
  for (int half = OUTER_WARPS / 2; half; half /= 2) { /* warp w takes up warp w + half */
    if (warp >= half && warp < 2 * half) {
#pragma unroll
      for (int i = 0; i < SP * C; i++) sums[warp - half][i][lane] = sum[i / C][i % C];
    }
    __syncthreads();
    if (warp < half) {
#pragma unroll
      for (int i = 0; i < SP * C; i++) sum[i / C][i % C] += sums[warp][i][lane];
    }
    __syncthreads();
  }
  if (warp || n >= N) return;
  float *out = partial + blockIdx.x * S * N;
#pragma unroll
  for (int s = 0; s < SP; s++) {
    if (s >= S) break;
    store<float, C>(out + s * N + n, sum[s]);
  }
}

enum { TOTAL_ROWS = 8 };

/* g[S,N] or, transposed, [N,S] = the sum of the partial sums, every TOTAL_ROWS-th slab in one thread. */
static __global__ void __launch_bounds__(NARROW_LANES *TOTAL_ROWS)
    outer_total(int64_t slabs, int S, int64_t N, const float *partial, bool transposed, float *g) {
  __shared__ float part[TOTAL_ROWS][NARROW_LANES];
  const int row = threadIdx.y, lane = threadIdx.x;
  const int64_t i = (int64_t)blockIdx.x * NARROW_LANES + lane, all = S * N;
  float sum = 0;
  if (i < all)
#pragma unroll 4
    for (int64_t k = row; k < slabs; k += TOTAL_ROWS) sum += partial[k * all + i];
  part[row][lane] = sum;
  __syncthreads();
  if (row || i >= all) return;
#pragma unroll
  for (int r = 1; r < TOTAL_ROWS; r++) sum += part[r][lane];
  g[transposed ? i % N * S + i / N : i] = sum;
}

/* ---- launches: false where a size or an address does not fit --------------------------------- */

enum { NARROW_ROWS = 256 }; /* fewer rows are left to cuBLAS */

template <class T, int KP, int C>
static bool run_short(CabStream *s, int64_t rows, int64_t N, int S, const T *x, int64_t ldx, Weight w, const float *b, T *y, bool add) {
  if (N % C || N < NARROW_LANES || !packs<T, C>(y, N)) return false;
  const dim3 grid(blocks_for(rows, SHORT_ROWS), blocks_for(N, NARROW_LANES * C)), block(NARROW_LANES, SHORT_WARPS);
  (add ? short_product<T, KP, C, true> : short_product<T, KP, C, false>)<<<grid, block, 0, s->stream>>>(rows, N, S, x, ldx, w, b, y);
  return true;
}
template <class T, int SP>
static bool run_narrow(CabStream *s, int64_t rows, int64_t K, int S, const T *x, int64_t ldx, Weight w, const float *b, T *y, bool add) {
  if (K % 4 || !packs<T, 4>(x, ldx) || (w.k_stride == 1 && !packs<float, 4>(w.w, w.n_stride))) return false;
  const dim3 block(NARROW_LANES, DOT_WARPS);
  (add ? narrow_product<T, SP, true> : narrow_product<T, SP, false>)<<<blocks_for(rows, DOT_ROWS), block, 0, s->stream>>>(
      rows, K, S, x, ldx, w, b, y);
  return true;
}

/* y[rows,N] = x[rows,K] w + b for a small K or a small N, at most `most`; add: y += . */
template <class T>
static bool small_product(CabStream *s, int64_t rows, int64_t N, int64_t K, int most, const T *x, int64_t ldx, Weight w,
                          const float *b, T *y, bool add) {
  if (rows < NARROW_ROWS || !N || !K) return false;
  auto *by_inner = K <= 8    ? run_short<T, 8, 4>
                   : K <= 12 ? run_short<T, 12, 4>
                   : K <= 16 ? run_short<T, 16, 4>
                   : K <= 32 ? run_short<T, 32, 2>
                             : run_short<T, 48, 2>;
  auto *by_width = N <= 16 ? run_narrow<T, 16> : N <= 32 ? run_narrow<T, 32> : run_narrow<T, 48>;
  if (K <= most) return by_inner(s, rows, N, (int)K, x, ldx, w, b, y, add);
  if (N <= most) return by_width(s, rows, K, (int)N, x, ldx, w, b, y, add);
  return false;
}
#endif
