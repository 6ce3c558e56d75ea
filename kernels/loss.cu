/* loss.cu - losses of a softmax: cross entropy and KL. The others of loss.h are in loss_difference.cu. */
#include "loss.cuh"

/* ---- cross entropy ---------------------------------------------------------------------------- */

/* Of a row: ignored, wrong (its loss and gradient are NaN), or fine. */
enum Label { IGNORED, WRONG, FINE };
static __device__ __forceinline__ Label check_label(int32_t label, int64_t n) {
  return label == -1 ? IGNORED : label < 0 || label >= n ? WRONG : FINE;
}

/* sums[b]: cost of the block's rows, counts[b]: those that count (labels only). With L = lse of the row:
 * -sum t (x - L) = L sum t - sum t x, or -(1-s) (x[label] - L) - s/n (sum x - n L). */
template <class T, int N>
static __global__ void __launch_bounds__(512)
    entropy_rows(int64_t rows, int64_t n, double smoothing, const T *x, const int32_t *labels, const Wide<T> *target,
                 Wide<T> *lse, double *sums, double *counts) {
  typedef Wide<T> W;
  double cost = 0, counted = 0;
  for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    const T *row = x + r * n;
    Online<W> o;
    double dot = 0, mass = 0;
    each_pack<N>(n, [&](int64_t j) {
      W v[N], t[N];
      load(v, row + j);
      o.add(v, W(1));
      if (target) {
        load(t, target + r * n + j);
#pragma unroll
        for (int k = 0; k < N; k++) {
          mass += (double)t[k];
          if (t[k] != 0) dot += (double)t[k] * (double)v[k]; /* a class of weight 0 costs nothing even at -inf */
        }
      } else if (smoothing != 0) {
#pragma unroll
        for (int k = 0; k < N; k++) dot += (double)v[k];
      }
    });
    o.join(W(1));
    if (target) mass = row_sum(mass);
    if (target || smoothing != 0) dot = row_sum(dot);
    if (threadIdx.x) continue;
    lse[r] = o.max + log(o.sum);
    const double L = (double)o.max + log((double)o.sum);
    const Label state = target ? FINE : check_label(labels[r], n);
    if (state == IGNORED) continue;
    counted++;
    if (state == WRONG) cost = NAN;
    else if (target) cost += L * mass - dot;
    else {
      const double rest = smoothing != 0 ? smoothing / (double)n * (dot - (double)n * L) : 0;
      cost -= (1 - smoothing) * ((double)wide_of(row[labels[r]]) - L) + rest;
    }
  }
  if (!threadIdx.x) sums[blockIdx.x] = cost, counts[blockIdx.x] = counted;
}

/* count = rows that count, at least 1 */
static __global__ void __launch_bounds__(LAST) count_rows(int64_t rows, const int32_t *labels, double *count) {
  double sum = 0;
  for (int64_t r = threadIdx.x; r < rows; r += LAST) sum += labels[r] != -1;
  sum = block_sum(sum);
  if (!threadIdx.x) *count = sum > 0 ? sum : 1;
}

template <class T, int N>
static __global__ void __launch_bounds__(512)
    entropy_gradient(int64_t rows, int64_t n, double smoothing, const T *x, const int32_t *labels, const Wide<T> *target,
                     const Wide<T> *lse, const Wide<T> *gout, const double *count, T *gx) {
  typedef Wide<T> W;
  const double each = (double)*gout / (target ? (double)rows : *count);
  for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    const int32_t label = target ? 0 : labels[r];
    const Label state = target ? FINE : check_label(label, n);
    double mass = 1;
    if (target) {
      mass = 0;
      each_pack<N>(n, [&](int64_t j) {
        W t[N];
        load(t, target + r * n + j);
#pragma unroll
        for (int k = 0; k < N; k++) mass += (double)t[k];
      });
      mass = row_sum(mass);
    }
    const W weight = (W)mass, factor = (W)each, even = (W)(smoothing / (double)n), own = (W)(each * (1 - smoothing));
    const W shift = lse[r], fixed = state == WRONG ? W(NAN) : W(0);
    each_pack<N>(n, [&](int64_t j) {
      W v[N], t[N], g[N];
      load(v, x + r * n + j);
      if (target) load(t, target + r * n + j);
#pragma unroll
      for (int k = 0; k < N; k++) {
        g[k] = factor * (weight * exp(v[k] - shift) - (target ? t[k] : even));
        if (!target && j + k == label) g[k] -= own;
        if (state != FINE) g[k] = fixed;
      }
      store(gx + r * n + j, g);
    });
  }
}

/* ---- KL with a temperature -------------------------------------------------------------------- */

/* Both softmaxes of a row. log p - log q = (a - b) scale - offset: exact where student and teacher agree. */
template <class W> struct Softmaxes {
  W scale, max_p, max_q, inverse_p, inverse_q, offset;
  __device__ __forceinline__ W p(W a) const { return exp((a - max_p) * scale) * inverse_p; }
  __device__ __forceinline__ W q(W b) const { return exp((b - max_q) * scale) * inverse_q; }
  __device__ __forceinline__ W excess(W a, W b) const { return (a - b) * scale - offset; }
};
template <int N, class T>
__device__ __forceinline__ Softmaxes<Wide<T>> softmaxes(int64_t n, double temperature, const T *a, const T *b) {
  typedef Wide<T> W;
  const W scale = (W)(1 / temperature);
  Online<W> p, q;
  each_pack<N>(n, [&](int64_t j) {
    W v[N], u[N];
    load(v, a + j), load(u, b + j);
    p.add(v, scale), q.add(u, scale);
  });
  p.join(scale), q.join(scale);
  return {scale, p.max, q.max, 1 / p.sum, 1 / q.sum, (p.max - q.max) * scale + log(p.sum / q.sum)};
}
/* sum p (log p - log q) over the row; p = 0 adds 0 even where log p is -inf. */
template <int N, class T>
__device__ __forceinline__ double divergence(const Softmaxes<Wide<T>> &s, int64_t n, const T *a, const T *b) {
  typedef Wide<T> W;
  double sum = 0;
  each_pack<N>(n, [&](int64_t j) {
    W v[N], u[N], part = 0;
    load(v, a + j), load(u, b + j);
#pragma unroll
    for (int k = 0; k < N; k++) {
      const W share = s.p(v[k]);
      part += share == 0 ? W(0) : share * s.excess(v[k], u[k]);
    }
    sum += (double)part;
  });
  return row_sum(sum);
}

template <class T, int N>
static __global__ void __launch_bounds__(512)
    kl_rows(int64_t rows, int64_t n, double temperature, const T *student, const T *teacher, double *sums) {
  double cost = 0;
  for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    const T *a = teacher + r * n, *b = student + r * n;
    cost += divergence<N>(softmaxes<N>(n, temperature, a, b), n, a, b);
  }
  if (!threadIdx.x) sums[blockIdx.x] = cost;
}

template <class T, int N>
static __global__ void __launch_bounds__(512)
    kl_gradient(int64_t rows, int64_t n, double temperature, const T *student, const T *teacher, const Wide<T> *gout,
                T *gstudent, T *gteacher) {
  typedef Wide<T> W;
  const W factor = (W)((double)*gout * temperature / (double)rows);
  for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    const T *a = teacher + r * n, *b = student + r * n;
    const Softmaxes<W> s = softmaxes<N>(n, temperature, a, b);
    const W kl = gteacher ? (W)divergence<N>(s, n, a, b) : W(0);
    each_pack<N>(n, [&](int64_t j) {
      W v[N], u[N], gs[N], gt[N];
      load(v, a + j), load(u, b + j);
#pragma unroll
      for (int k = 0; k < N; k++) {
        const W share = s.p(v[k]);
        gs[k] = factor * (s.q(u[k]) - share);
        gt[k] = factor * share * (share == 0 ? W(0) : s.excess(v[k], u[k]) - kl);
      }
      if (gstudent) store(gstudent + r * n + j, gs);
      if (gteacher) store(gteacher + r * n + j, gt);
    });
  }
}

/* ---- twins ------------------------------------------------------------------------------------ */

template <class T>
static void cross_entropy_forward(CabStream *s, int64_t rows, int64_t n, double smoothing, const void *x, const int32_t *labels,
                                  const void *target, void *out, void *lse, void *) {
  typedef Wide<T> W;
  constexpr int N = PACK<T>;
  const int threads = threads_for(n);
  const unsigned blocks = blocks_of_rows(rows, threads);
  const bool vector = fits<T, N>(n, x) && fits<W, N>(n, target);
  Scratch sums(s, 2 * blocks * sizeof(double));
  if (!sums.data) return;
  double *costs = (double *)sums.data;
  LAUNCH(vector, entropy_rows, blocks, threads, rows, n, smoothing, (const T *)x, labels, (const W *)target, (W *)lse, costs,
         costs + blocks);
  add_blocks<<<1, LAST, 0, s->stream>>>(blocks, costs, costs + blocks, 1, (W *)out);
}

template <class T>
static void cross_entropy_backward(CabStream *s, int64_t rows, int64_t n, double smoothing, const void *x, const int32_t *labels,
                                   const void *target, const void *lse, const void *gout, void *gx) {
  typedef Wide<T> W;
  constexpr int N = PACK<T>;
  const int threads = threads_for(n);
  const bool vector = fits<T, N>(n, x) && fits<T, N>(n, gx) && fits<W, N>(n, target);
  if (rows <= 0 || n <= 0) return;
  Scratch count(s, sizeof(double));
  if (!count.data) return;
  if (!target) count_rows<<<1, LAST, 0, s->stream>>>(rows, labels, (double *)count.data);
  LAUNCH(vector, entropy_gradient, blocks_of_rows(rows, threads), threads, rows, n, smoothing, (const T *)x, labels,
         (const W *)target, (const W *)lse, (const W *)gout, (const double *)count.data, (T *)gx);
}

template <class T>
static void kl_forward(CabStream *s, int64_t rows, int64_t n, double temperature, const void *student, const void *teacher,
                       void *out, void *) {
  constexpr int N = PACK<T>;
  const int threads = threads_for(n);
  const unsigned blocks = blocks_of_rows(rows, threads);
  Scratch sums(s, blocks * sizeof(double));
  if (!sums.data) return;
  LAUNCH((fits<T, N>(n, student) && fits<T, N>(n, teacher)), kl_rows, blocks, threads, rows, n, temperature, (const T *)student,
         (const T *)teacher, (double *)sums.data);
  add_blocks<<<1, LAST, 0, s->stream>>>(blocks, (const double *)sums.data, (const double *)NULL,
                                        rows > 0 ? temperature * temperature / (double)rows : 0, (Wide<T> *)out);
}

template <class T>
static void kl_backward(CabStream *s, int64_t rows, int64_t n, double temperature, const void *student, const void *teacher,
                        const void *gout, void *gstudent, void *gteacher) {
  constexpr int N = PACK<T>;
  const int threads = threads_for(n);
  const bool vector = fits<T, N>(n, student) && fits<T, N>(n, teacher) && fits<T, N>(n, gstudent) && fits<T, N>(n, gteacher);
  if (rows <= 0 || n <= 0) return;
  LAUNCH(vector, kl_gradient, blocks_of_rows(rows, threads), threads, rows, n, temperature, (const T *)student, (const T *)teacher,
         (const Wide<T> *)gout, (T *)gstudent, (T *)gteacher);
}

EXPORT(cross_entropy_forward)
EXPORT(cross_entropy_backward)
EXPORT(kl_forward)
EXPORT(kl_backward)
