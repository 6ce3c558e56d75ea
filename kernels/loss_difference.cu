/* loss_difference.cu - losses of two arrays element by element or row by row, and standardised features (loss.h). Long
 * rows are cut into parts by the sizes alone. */
#include "loss.cuh"

enum { THREADS = 256, TARGET = 1024 /* blocks of a mean of differences */ };

/* ---- mean squared error, Frobenius distance --------------------------------------------------- */

/* squares[row, part] = sum (a - b)^2 over the part's `step` elements of a row, or its root. Differences and the squares of
 * a pack are summed in W, packs in double. */
template <class T, int N>
static __global__ void __launch_bounds__(THREADS)
    difference_squares(int64_t n, int64_t step, unsigned parts, bool root, const T *a, const T *b, double *squares) {
  typedef Wide<T> W;
  const unsigned row = blockIdx.x / parts, part = blockIdx.x - row * parts;
  const int64_t first = part * step, last = first + step < n ? first + step : n;
  a += row * n, b += row * n;
  double sum = 0;
#pragma unroll 4
  for (int64_t j = first + threadIdx.x * N; j < last; j += THREADS * N) {
    W v[N], u[N], pack = 0;
    load(v, a + j), load(u, b + j);
#pragma unroll
    for (int k = 0; k < N; k++) pack += (v[k] - u[k]) * (v[k] - u[k]);
    sum += (double)pack;
  }
  sum = block_sum(sum);
  if (!threadIdx.x) squares[blockIdx.x] = root ? sqrt(sum) : sum;
}

/* out = factor sum_row sqrt(sum_part squares[row,part]): a warp a row. */
template <class W>
static __global__ void __launch_bounds__(LAST) add_roots(int64_t rows, int parts, const double *squares, double factor, W *out) {
  double total = 0;
  const int lane = threadIdx.x & 31;
  for (int64_t r = threadIdx.x >> 5; r < rows; r += LAST / 32) {
    double sum = 0;
    for (int i = lane; i < parts; i += 32) sum += squares[r * parts + i];
    sum = sqrt(warp_sum(sum));
    if (!lane) total += sum;
  }
  total = block_sum(total);
  if (!threadIdx.x) *out = (W)(factor * total);
}

/* ga = f (a - b), gb = -ga, f = scale gout; with `squares` divided by the row's norm, 0 where that is 0. */
template <class T, int N>
static __global__ void __launch_bounds__(THREADS)
    difference_gradient(int64_t n, int64_t step, unsigned parts, double scale, const Wide<T> *gout, const double *squares,
                        const T *a, const T *b, T *ga, T *gb) {
  typedef Wide<T> W;
  const unsigned row = blockIdx.x / parts, part = blockIdx.x - row * parts;
  const int64_t first = part * step, last = first + step < n ? first + step : n, at = row * n;
  double f = scale * (double)*gout;
  if (squares) {
    double sum = 0;
    for (unsigned i = threadIdx.x; i < parts; i += THREADS) sum += squares[(int64_t)row * parts + i];
    const double norm = sqrt(block_sum(sum));
    f = norm == 0 ? 0 : f / norm;
  }
  const W factor = (W)f;
#pragma unroll 2
  for (int64_t j = first + threadIdx.x * N; j < last; j += THREADS * N) {
    W v[N], u[N];
    load(v, a + at + j), load(u, b + at + j);
#pragma unroll
    for (int k = 0; k < N; k++) v[k] = factor * (v[k] - u[k]), u[k] = -v[k];
    if (ga) store(ga + at + j, v);
    if (gb) store(gb + at + j, u);
  }
}

/* ---- cosine distance of rows ------------------------------------------------------------------ */

struct Dots { double ab, aa, bb; };

template <int N, class T> __device__ __forceinline__ Dots dots_of(int64_t n, const T *a, const T *b) {
  typedef Wide<T> W;
  Dots d = {0, 0, 0};
  each_pack<N>(n, [&](int64_t j) {
    W v[N], u[N];
    load(v, a + j), load(u, b + j);
#pragma unroll
    for (int k = 0; k < N; k++) {
      const double x = (double)v[k], y = (double)u[k];
      d.ab += x * y, d.aa += x * x, d.bb += y * y;
    }
  });
  return {row_sum(d.ab), row_sum(d.aa), row_sum(d.bb)};
}

template <class T, int N>
static __global__ void __launch_bounds__(512)
    cosine_rows(int64_t rows, int64_t n, double eps, const T *a, const T *b, double *sums) {
  double cost = 0;
  for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    const Dots d = dots_of<N>(n, a + r * n, b + r * n);
    const double norms = sqrt(d.aa) * sqrt(d.bb);
    cost += 1 - d.ab / (norms <= eps ? eps : norms);
  }
  if (!threadIdx.x) sums[blockIdx.x] = cost;
}

/* d(a.b / |a||b|)/da = b / |a||b| - (a.b / |a||b|) a / a.a; where eps is the denominator, b / eps. */
template <class T, int N>
static __global__ void __launch_bounds__(512)
    cosine_gradient(int64_t rows, int64_t n, double eps, const T *a, const T *b, const Wide<T> *gout, T *ga, T *gb) {
  typedef Wide<T> W;
  const double factor = -(double)*gout / (double)rows;
  for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    const int64_t at = r * n;
    const Dots d = dots_of<N>(n, a + at, b + at);
    const double norms = sqrt(d.aa) * sqrt(d.bb);
    const bool tiny = norms <= eps;
    const double cosine = tiny ? 0 : factor * d.ab / norms;
    const W cross = (W)(factor / (tiny ? eps : norms)), own_a = (W)(tiny ? 0 : cosine / d.aa), own_b = (W)(tiny ? 0 : cosine / d.bb);
    each_pack<N>(n, [&](int64_t j) {
      W v[N], u[N], gv[N], gu[N];
      load(v, a + at + j), load(u, b + at + j);
#pragma unroll
      for (int k = 0; k < N; k++) gv[k] = cross * u[k] - own_a * v[k], gu[k] = cross * v[k] - own_b * u[k];
      if (ga) store(ga + at + j, gv);
      if (gb) store(gb + at + j, gu);
    });
  }
}

/* ---- standardised features -------------------------------------------------------------------- */

/* y[r,c] = (x[r,c] - mean[c]) / deviation[c]; no mean: 0. */
template <class T, int N>
static __global__ void __launch_bounds__(THREADS)
    standardise(int64_t packs, int64_t units, const T *x, const Wide<T> *mean, const Wide<T> *deviation, T *y) {
  const int64_t unit = blockIdx.x * (int64_t)THREADS + threadIdx.x, column = unit % packs * N;
  if (unit >= units) return;
  Wide<T> v[N], m[N] = {}, d[N];
  load(v, x + unit * N);
  if (mean) load(m, mean + column);
  load(d, deviation + column);
#pragma unroll
  for (int k = 0; k < N; k++) v[k] = (v[k] - m[k]) / d[k];
  store(y + unit * N, v);
}

/* ---- twins ------------------------------------------------------------------------------------ */

/* How rows of n are cut for blocks: parts of `step` elements, a multiple of 16. */
struct Cut { int64_t parts, step; };
static Cut cut(int64_t rows, int64_t n) {
  enum { LEAST = 4096 };
  int64_t parts = rows < TARGET / 2 ? TARGET / rows : 1;
  if (parts > n / LEAST) parts = n / LEAST;
  if (parts < 1) parts = 1;
  return {parts, ((n + parts - 1) / parts + 15) / 16 * 16};
}

template <class T>
static void squares_of(CabStream *s, int64_t rows, int64_t n, Cut c, bool root, const void *a, const void *b, double *squares) {
  constexpr int N = PACK<T>;
  LAUNCH((fits<T, N>(n, a) && fits<T, N>(n, b)), difference_squares, (unsigned)(rows * c.parts), THREADS, n, c.step,
         (unsigned)c.parts, root, (const T *)a, (const T *)b, squares);
}
template <class T>
static void gradient_of(CabStream *s, int64_t rows, int64_t n, Cut c, double scale, const void *gout, const double *squares,
                        const void *a, const void *b, void *ga, void *gb) {
  constexpr int N = PACK<T>;
  LAUNCH((fits<T, N>(n, a) && fits<T, N>(n, b) && fits<T, N>(n, ga) && fits<T, N>(n, gb)), difference_gradient,
         (unsigned)(rows * c.parts), THREADS, n, c.step, (unsigned)c.parts, scale, (const Wide<T> *)gout, squares, (const T *)a,
         (const T *)b, (T *)ga, (T *)gb);
}

template <class T> static void mse_forward(CabStream *s, int64_t n, const void *a, const void *b, void *out, void *) {
  const Cut c = cut(1, n);
  Scratch squares(s, (size_t)c.parts * sizeof(double));
  if (!squares.data) return;
  squares_of<T>(s, 1, n, c, false, a, b, (double *)squares.data);
  add_blocks<<<1, LAST, 0, s->stream>>>(c.parts, (const double *)squares.data, (const double *)NULL, n > 0 ? 1 / (double)n : 0,
                                        (Wide<T> *)out);
}
template <class T>
static void mse_backward(CabStream *s, int64_t n, const void *a, const void *b, const void *gout, void *ga, void *gb) {
  if (n > 0) gradient_of<T>(s, 1, n, cut(1, n), 2 / (double)n, gout, NULL, a, b, ga, gb);
}

template <class T>
static void frobenius_forward(CabStream *s, int64_t rows, int64_t n, const void *a, const void *b, void *out, void *) {
  const Cut c = cut(rows > 0 ? rows : 1, n);
  const double factor = rows > 0 ? 1 / (double)rows : 0;
  Scratch squares(s, (size_t)((rows > 0 ? rows : 1) * c.parts) * sizeof(double));
  if (!squares.data) return;
  const double *sums = (const double *)squares.data;
  if (rows > 0) squares_of<T>(s, rows, n, c, c.parts == 1, a, b, (double *)squares.data);
  if (c.parts == 1) add_blocks<<<1, LAST, 0, s->stream>>>(rows, sums, (const double *)NULL, factor, (Wide<T> *)out);
  else add_roots<<<1, LAST, 0, s->stream>>>(rows, (int)c.parts, sums, factor, (Wide<T> *)out);
}
template <class T>
static void frobenius_backward(CabStream *s, int64_t rows, int64_t n, const void *a, const void *b, const void *gout, void *ga,
                               void *gb) {
  if (rows <= 0 || n <= 0) return;
  const Cut c = cut(rows, n);
  Scratch squares(s, (size_t)(rows * c.parts) * sizeof(double));
  if (!squares.data) return;
  squares_of<T>(s, rows, n, c, false, a, b, (double *)squares.data);
  gradient_of<T>(s, rows, n, c, 1 / (double)rows, gout, (const double *)squares.data, a, b, ga, gb);
}

template <class T>
static void cosine_forward(CabStream *s, int64_t rows, int64_t n, double eps, const void *a, const void *b, void *out, void *) {
  constexpr int N = PACK<T>;
  const int threads = threads_for(n);
  const unsigned blocks = blocks_of_rows(rows, threads);
  Scratch sums(s, blocks * sizeof(double));
  if (!sums.data) return;
  LAUNCH((fits<T, N>(n, a) && fits<T, N>(n, b)), cosine_rows, blocks, threads, rows, n, eps, (const T *)a, (const T *)b,
         (double *)sums.data);
  add_blocks<<<1, LAST, 0, s->stream>>>(blocks, (const double *)sums.data, (const double *)NULL, rows > 0 ? 1 / (double)rows : 0,
                                        (Wide<T> *)out);
}
template <class T>
static void cosine_backward(CabStream *s, int64_t rows, int64_t n, double eps, const void *a, const void *b, const void *gout,
                            void *ga, void *gb) {
  constexpr int N = PACK<T>;
  const int threads = threads_for(n);
  if (rows <= 0 || n <= 0) return;
  LAUNCH((fits<T, N>(n, a) && fits<T, N>(n, b) && fits<T, N>(n, ga) && fits<T, N>(n, gb)), cosine_gradient,
         blocks_of_rows(rows, threads), threads, rows, n, eps, (const T *)a, (const T *)b, (const Wide<T> *)gout, (T *)ga, (T *)gb);
}

template <class T>
static void standardise_rows(CabStream *s, int64_t rows, int64_t n, const void *x, const void *mean, const void *deviation, void *y) {
  typedef Wide<T> W;
  constexpr int N = PACK<T>;
  const bool vector = fits<T, N>(n, x) && fits<T, N>(n, y) && fits<W, N>(n, mean) && fits<W, N>(n, deviation);
  const int64_t packs = vector ? n / N : n;
  if (rows <= 0 || n <= 0) return;
  LAUNCH(vector, standardise, blocks_for(rows * packs, THREADS), THREADS, packs, rows * packs, (const T *)x, (const W *)mean,
         (const W *)deviation, (T *)y);
}
template <class T>
static void standardise_forward(CabStream *s, int64_t rows, int64_t n, const void *x, const void *mean, const void *deviation, void *y) {
  standardise_rows<T>(s, rows, n, x, mean, deviation, y);
}
template <class T>
static void standardise_backward(CabStream *s, int64_t rows, int64_t n, const void *deviation, const void *gy, void *gx) {
  standardise_rows<T>(s, rows, n, gy, NULL, deviation, gx);
}

EXPORT(mse_forward)
EXPORT(mse_backward)
EXPORT(cosine_forward)
EXPORT(cosine_backward)
EXPORT(frobenius_forward)
EXPORT(frobenius_backward)
EXPORT(standardise_forward)
EXPORT(standardise_backward)
