/* attention_plain.cuh - attention for any type and head size: 32 queries against 32 keys at a time, 256 threads of 2 x 2
 * scores each, products over chunks of columns. The scores are computed again for each chunk of 64 output columns, so
 * nothing grows with the head size. */
#ifndef CAB_KERNELS_ATTENTION_PLAIN_CUH
#define CAB_KERNELS_ATTENTION_PLAIN_CUH
#include "cuda.cuh"

template <class T> struct AttentionHeads {
  int64_t heads, L, H, P, ld; /* heads: B*H */
  Wide<T> scale;
  bool causal, aligned; /* every row of every tensor starts at 16 bytes and is a whole number of them */
  const T *q, *k, *v;
  const int32_t *place; /* [B,L]: of a token in its document, or NULL */
  /* Element (b, l = 0, h, p = 0) of rows with stride ld; head = b*H + h. */
  __device__ __forceinline__ int64_t at(int64_t head, int64_t stride) const {
    return head / H * L * stride + head % H * P;
  }
  /* The first key that a query below L sees. */
  __device__ __forceinline__ int64_t first_key(int64_t head, int64_t query) const {
    if (!place) return 0;
    const int64_t first = query - place[head / H * L + query];
    return first > 0 ? first : 0;
  }
  __device__ __forceinline__ bool seen(int64_t head, int64_t query, int64_t key) const {
    return query < L && key < L && (!causal || key <= query) && key >= first_key(head, query);
  }
};
template <class T> struct AttentionForward : AttentionHeads<T> {
  T *out;
  Wide<T> *lse;
  T *map;
};
template <class T> struct AttentionBackward : AttentionHeads<T> {
  const T *out, *gout, *gmap;
  const Wide<T> *lse;
  Wide<T> *dots; /* [heads, L]: D_i = sum_j A_ij dA_ij */
  T *gq, *gk, *gv;
  int64_t gld;
};

namespace plain {

enum { TILE = 32, CHUNK = 64, THREADS = 256 };

static __device__ __forceinline__ int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static __device__ __forceinline__ int row_of(int i) { return threadIdx.x / 16 + 16 * i; } /* of element i of a thread */
static __device__ __forceinline__ int col_of(int j) { return threadIdx.x % 16 + 16 * j; }

/* The 16 threads of a row are half a warp. */
template <class W> __device__ __forceinline__ W row_sum(W x) {
  for (int m = 8; m; m >>= 1) x += __shfl_xor_sync(0xffffffffu, x, m);
  return x;
}
template <class W> __device__ __forceinline__ W row_max(W x) {
  for (int m = 8; m; m >>= 1) {
    W y = __shfl_xor_sync(0xffffffffu, x, m);
    x = x > y ? x : y;
  }
  return x;
}

/* dot[i][j] = a_i . b_j over P columns, for na rows of a and nb of b; zero beyond them. */
template <class T>
__device__ void products(const T *a, int64_t lda, int64_t na, const T *b, int64_t ldb, int64_t nb, int64_t P,
                         Wide<T> (&dot)[2][2]) {
  __shared__ Wide<T> sa[TILE][TILE + 1], sb[TILE][TILE + 1];
  dot[0][0] = dot[0][1] = dot[1][0] = dot[1][1] = 0;
  for (int64_t p0 = 0; p0 < P; p0 += TILE) {
    __syncthreads();
    for (int i = threadIdx.x; i < TILE * TILE; i += THREADS) {
      const int r = i / TILE, p = i % TILE;
      const bool in = p0 + p < P;
      sa[r][p] = in && r < na ? wide_of(a[r * lda + p0 + p]) : 0;
      sb[r][p] = in && r < nb ? wide_of(b[r * ldb + p0 + p]) : 0;
    }
    __syncthreads();
    for (int p = 0; p < TILE; p++)
      for (int i = 0; i < 2; i++)
        for (int j = 0; j < 2; j++) dot[i][j] += sa[row_of(i)][p] * sb[col_of(j)][p];
  }
}

/* acc[i][c] += sum over nb rows j of value_ij b_jc, for `width` columns of b. */
template <class T>
__device__ void accumulate(const Wide<T> (&value)[2][2], const T *b, int64_t ldb, int64_t nb, int64_t width,
                           Wide<T> (&acc)[2][4]) {
  __shared__ Wide<T> sv[TILE][TILE + 1], sb[TILE][CHUNK + 1];
  __syncthreads();
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 2; j++) sv[row_of(i)][col_of(j)] = value[i][j];
  for (int i = threadIdx.x; i < TILE * CHUNK; i += THREADS) {
    const int r = i / CHUNK, c = i % CHUNK;
    sb[r][c] = r < nb && c < width ? wide_of(b[r * ldb + c]) : 0;
  }
  __syncthreads();
  for (int j = 0; j < TILE; j++)
    for (int i = 0; i < 2; i++)
      for (int c = 0; c < 4; c++) acc[i][c] += sv[row_of(i)][j] * sb[j][col_of(c)];
}

/* to[i][c] = factor acc[i][c] for `rows` rows and `width` columns. */
template <class T>
__device__ void write(const Wide<T> (&acc)[2][4], Wide<T> factor, T *to, int64_t ld, int64_t rows, int64_t width) {
  for (int i = 0; i < 2; i++)
    for (int c = 0; c < 4; c++)
      if (row_of(i) < rows && col_of(c) < width) to[row_of(i) * ld + col_of(c)] = narrow<T>(factor * acc[i][c]);
}

/* Scores of queries i0.. against keys j0.. of one head: scale q.k, -infinity where masked. */
template <class T>
__device__ void scores(const AttentionHeads<T> &a, int64_t head, int64_t i0, int64_t j0, Wide<T> (&s)[2][2]) {
  const int64_t at = a.at(head, a.ld);
  products(a.q + at + i0 * a.ld, a.ld, a.L - i0, a.k + at + j0 * a.ld, a.ld, a.L - j0, a.P, s);
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 2; j++)
      s[i][j] = a.seen(head, i0 + row_of(i), j0 + col_of(j)) ? s[i][j] * a.scale : -(Wide<T>)INFINITY;
}

/* p = exp(score - lse) */
template <class T>
__device__ void probabilities(const AttentionHeads<T> &a, const Wide<T> *lse, int64_t head, int64_t i0, int64_t j0,
                              Wide<T> (&p)[2][2]) {
  scores(a, head, i0, j0, p);
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 2; j++)
      p[i][j] = a.seen(head, i0 + row_of(i), j0 + col_of(j)) ? exp(p[i][j] - lse[head * a.L + i0 + row_of(i)]) : 0;
}

/* First the log-sum-exp of 32 rows, then their outputs, a chunk of columns at a time. */
template <class T> static __global__ void __launch_bounds__(THREADS) forward(AttentionForward<T> a) {
  typedef Wide<T> W;
  const int64_t tiles = (a.L + TILE - 1) / TILE, out_ld = a.H * a.P;
  for (int64_t job = blockIdx.x; job < a.heads * tiles; job += gridDim.x) {
    const int64_t head = job / tiles, i0 = job % tiles * TILE, keys = a.causal ? least(a.L, i0 + TILE) : a.L;
    W max[2] = {-(W)INFINITY, -(W)INFINITY}, sum[2] = {0, 0}, s[2][2];
    for (int64_t j0 = 0; j0 < keys; j0 += TILE) {
      scores(a, head, i0, j0, s);
      for (int i = 0; i < 2; i++) {
        const W top = row_max(s[i][0] > s[i][1] ? s[i][0] : s[i][1]), more = top > max[i] ? top : max[i];
        const W from = more == -(W)INFINITY ? W(0) : more; /* nothing seen yet */
        sum[i] = sum[i] * exp(max[i] - from) + row_sum(exp(s[i][0] - from) + exp(s[i][1] - from));
        max[i] = more;
      }
    }
    for (int i = 0; i < 2; i++)
      if (threadIdx.x % 16 == 0 && i0 + row_of(i) < a.L) a.lse[head * a.L + i0 + row_of(i)] = max[i] + log(sum[i]);
    __syncthreads(); /* lse is read by the other threads */
    for (int64_t p0 = 0; p0 < a.P; p0 += CHUNK) {
      W o[2][4] = {};
      for (int64_t j0 = 0; j0 < keys; j0 += TILE) {
        probabilities(a, a.lse, head, i0, j0, s);
        accumulate(s, a.v + a.at(head, a.ld) + j0 * a.ld + p0, a.ld, a.L - j0, a.P - p0, o);
      }
      write(o, W(1), a.out + a.at(head, out_ld) + i0 * out_ld + p0, out_ld, a.L - i0, a.P - p0);
    }
  }
}

/* The map from lse, 0 where masked. */
template <class T> static __global__ void __launch_bounds__(THREADS) map(AttentionForward<T> a) {
  const int64_t tiles = (a.L + TILE - 1) / TILE;
  for (int64_t job = blockIdx.x; job < a.heads * tiles * tiles; job += gridDim.x) {
    const int64_t head = job / tiles / tiles, i0 = job / tiles % tiles * TILE, j0 = job % tiles * TILE;
    Wide<T> p[2][2];
    probabilities(a, a.lse, head, i0, j0, p);
    for (int i = 0; i < 2; i++)
      for (int j = 0; j < 2; j++)
        if (i0 + row_of(i) < a.L && j0 + col_of(j) < a.L)
          a.map[(head * a.L + i0 + row_of(i)) * a.L + j0 + col_of(j)] = narrow<T>(p[i][j]);
  }
}

/* D_i = gout_i . out_i: a warp for each row. */
template <class T> static __global__ void __launch_bounds__(THREADS) row_dots(AttentionBackward<T> a) {
  const int64_t ld = a.H * a.P;
  for (int64_t row = ((int64_t)blockIdx.x * THREADS + threadIdx.x) / 32; row < a.heads * a.L;
       row += (int64_t)gridDim.x * (THREADS / 32)) {
    const int64_t at = a.at(row / a.L, ld) + row % a.L * ld;
    Wide<T> sum = 0;
    for (int64_t p = threadIdx.x % 32; p < a.P; p += 32) sum += wide_of(a.gout[at + p]) * wide_of(a.out[at + p]);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) a.dots[row] = sum;
  }
}

/* D_i += (A gmap^T)_ii */
template <class T> static __global__ void __launch_bounds__(THREADS) map_dots(AttentionBackward<T> a) {
  typedef Wide<T> W;
  const int64_t tiles = (a.L + TILE - 1) / TILE;
  for (int64_t job = blockIdx.x; job < a.heads * tiles; job += gridDim.x) {
    const int64_t head = job / tiles, i0 = job % tiles * TILE, keys = a.causal ? least(a.L, i0 + TILE) : a.L;
    W sum[2] = {0, 0}, p[2][2];
    for (int64_t j0 = 0; j0 < keys; j0 += TILE) {
      probabilities(a, a.lse, head, i0, j0, p);
      for (int i = 0; i < 2; i++)
        for (int j = 0; j < 2; j++)
          if (a.seen(head, i0 + row_of(i), j0 + col_of(j)))
            sum[i] += p[i][j] * wide_of(a.gmap[(head * a.L + i0 + row_of(i)) * a.L + j0 + col_of(j)]);
    }
    for (int i = 0; i < 2; i++) {
      const W all = row_sum(sum[i]);
      if (threadIdx.x % 16 == 0 && i0 + row_of(i) < a.L) a.dots[head * a.L + i0 + row_of(i)] += all;
    }
  }
}

/* dS = A (dA - D) with dA = gout v^T + gmap. For 32 queries: gq = scale dS k. With KEYS for 32 keys:
 * gk = scale dS^T q, gv = A^T gout. A job is a chunk of columns. */
template <class T, bool KEYS> static __global__ void __launch_bounds__(THREADS) backward(AttentionBackward<T> a) {
  typedef Wide<T> W;
  const int64_t tiles = (a.L + TILE - 1) / TILE, chunks = (a.P + CHUNK - 1) / CHUNK, out_ld = a.H * a.P;
  for (int64_t job = blockIdx.x; job < a.heads * tiles * chunks; job += gridDim.x) {
    const int64_t head = job / chunks / tiles, r0 = job / chunks % tiles * TILE, p0 = job % chunks * CHUNK;
    const T *q = a.q + a.at(head, a.ld), *k = a.k + a.at(head, a.ld), *v = a.v + a.at(head, a.ld);
    const T *gout = a.gout + a.at(head, out_ld);
    W first[2][4] = {}, second[2][4] = {}; /* dS against k or q;  A against gout */
    const int64_t start = KEYS && a.causal ? r0 : 0, stop = !KEYS && a.causal ? least(a.L, r0 + TILE) : a.L;
    for (int64_t c0 = start; c0 < stop; c0 += TILE) {
      const int64_t i0 = KEYS ? c0 : r0, j0 = KEYS ? r0 : c0, rows = a.L - r0, columns = a.L - c0;
      W p[2][2], ds[2][2];
      products((KEYS ? k : q) + r0 * a.ld, a.ld, rows, (KEYS ? q : k) + c0 * a.ld, a.ld, columns, a.P, p);
      if (KEYS) products(v + r0 * a.ld, a.ld, rows, gout + c0 * out_ld, out_ld, columns, a.P, ds);
      else products(gout + r0 * out_ld, out_ld, rows, v + c0 * a.ld, a.ld, columns, a.P, ds);
      for (int i = 0; i < 2; i++)
        for (int j = 0; j < 2; j++) {
          const int64_t query = i0 + (KEYS ? col_of(j) : row_of(i)), key = j0 + (KEYS ? row_of(i) : col_of(j));
          const bool seen = a.seen(head, query, key);
          const int64_t row = head * a.L + query;
          if (seen && a.gmap) ds[i][j] += wide_of(a.gmap[row * a.L + key]);
          p[i][j] = seen ? exp(p[i][j] * a.scale - a.lse[row]) : 0;
          ds[i][j] = seen ? p[i][j] * (ds[i][j] - a.dots[row]) : 0;
        }
      if (KEYS && a.gv) accumulate(p, gout + c0 * out_ld + p0, out_ld, columns, a.P - p0, second);
      if (KEYS ? a.gk : a.gq) accumulate(ds, (KEYS ? q : k) + c0 * a.ld + p0, a.ld, columns, a.P - p0, first);
    }
    const int64_t at = a.at(head, a.gld) + r0 * a.gld + p0;
    if (KEYS && a.gv) write(second, W(1), a.gv + at, a.gld, a.L - r0, a.P - p0);
    if (KEYS ? a.gk : a.gq) write(first, a.scale, (KEYS ? a.gk : a.gq) + at, a.gld, a.L - r0, a.P - p0);
  }
}

} // namespace plain
#endif
