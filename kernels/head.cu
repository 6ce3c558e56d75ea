/* head.cu - a block to a row of logits: log-sum-exps of both sides in one pass, losses and gradients in one more (two, where a gradient
 * needs a sum over its row first). */
#include "head.h"

#include "attention_tile.cuh"
#include "loss.cuh"

enum { ROW_THREADS = 512 };

/* The target of a row, or -1. */
static __device__ __forceinline__ int32_t target_of(int64_t L, int64_t row, const int32_t *ids, const int32_t *segment) {
  if (row % L == L - 1) return -1;
  if (segment && (segment[row] < 0 || segment[row + 1] != segment[row])) return -1;
  return ids[row + 1];
}

template <class W>
static __global__ void __launch_bounds__(LAST) count_targets(int64_t L, int64_t rows, const int32_t *ids, const int32_t *segment, W *count) {
  int targets = 0, tokens = 0;
  for (int64_t row = threadIdx.x; row < rows; row += LAST) {
    targets += target_of(L, row, ids, segment) >= 0;
    tokens += !segment || segment[row] >= 0;
  }
  targets = block_sum(targets);
  tokens = block_sum(tokens);
  if (!threadIdx.x) count[0] = (W)(targets > 1 ? targets : 1), count[1] = (W)(tokens > 1 ? tokens : 1);
}

template <class T> static void head_count(CabStream *s, int64_t B, int64_t L, const int32_t *ids, const int32_t *segment, void *count) {
  count_targets<<<1, LAST, 0, s->stream>>>(L, B * L, ids, segment, (Wide<T> *)count);
}

/* ---- rows --------------------------------------------------------------------------------------- */

#define LOG2E 1.44269504f
/* e^x, e^(scale x - shift); of a bf16 row by the special function unit. */
template <class T> __device__ __forceinline__ Wide<T> exponential(Wide<T> x) {
  if constexpr (sizeof(T) == 2) return exp2_fast(x * LOG2E);
  else return exp(x);
}
template <class T> __device__ __forceinline__ Wide<T> exponential(Wide<T> x, Wide<T> scale, Wide<T> shift) {
  if constexpr (sizeof(T) == 2) return exp2_fast(fmaf(x, scale * LOG2E, -shift * LOG2E));
  else return exp(x * scale - shift);
}

template <int N> struct Width { enum { value = N }; };
/* f(j, Width) for all j < n: packs of N, and one by one what is left. */
template <int N, class F> __device__ __forceinline__ void each_of_row(int64_t n, F f) {
  const int64_t whole = n / N * N;
#pragma unroll 2
  for (int64_t j = (int64_t)threadIdx.x * N; j < whole; j += (int64_t)blockDim.x * N) f(j, Width<N>());
  for (int64_t j = whole + threadIdx.x; N > 1 && j < n; j += blockDim.x) f(j, Width<1>());
}

/* Max and sum of e^(scale (x - max)) as in Online, with the exponential of T. */
template <class T> struct Sum : Online<Wide<T>> {
  typedef Wide<T> W;
  template <int N> __device__ __forceinline__ void take(const W (&x)[N], W scale) {
    W top = this->max;
#pragma unroll
    for (int k = 0; k < N; k++) top = x[k] > top ? x[k] : top;
    if (top > this->max) this->raise(top, scale);
    const W from = this->shift(this->max);
#pragma unroll
    for (int k = 0; k < N; k++) {
      if constexpr (sizeof(T) == 2) this->sum += exponential<T>(x[k], scale, from * scale);
      else this->sum += exp((x[k] - from) * scale);
    }
  }
  __device__ __forceinline__ W lse(W scale) {
    this->join(scale);
    return this->max * scale + log(this->sum);
  }
};

/* log((p + q) / 2) from log p and log q. */
template <class W> __device__ __forceinline__ W log_mean(W lp, W lq) {
  const W top = lp > lq ? lp : lq;
  return top + log1p(exp(-fabs(lp - lq))) - W(0.69314718055994531);
}

template <class W> struct Pieces { /* of a row: all that the last pass needs */
  W scale, ce, even, own, kl; /* 1/T; weights: of softmax, of each entry, of the target, of the divergence */
  W lse, student, teacher;    /* log-sum-exps at 1, and of both sides at 1/T */
  double slope;
};

/* Of an entry, both log-probabilities. FORWARD and CROSS: what it adds to the divergence; p = 0 costs nothing even where log q is
 * infinite. */
template <class W> __device__ __forceinline__ W forward_share(HeadDivergence kind, W p, W lp, W lq) {
  return p == 0 ? p : p * (kind == HEAD_CROSS ? -lq : lp - lq);
}
/* REVERSE and JSD: that, and what it adds to the slope. */
template <class T> __device__ __forceinline__ void other_share(HeadDivergence kind, Wide<T> lp, Wide<T> lq, double &sum, double &slope) {
  typedef Wide<T> W;
  const W p = exponential<T>(lp), q = exponential<T>(lq), lm = kind == HEAD_REVERSE ? lp : log_mean(lp, lq);
  const double of_q = q == 0 ? (double)q : (double)(q * (lq - lm));
  slope += of_q;
  sum += kind == HEAD_REVERSE ? of_q : 0.5 * ((p == 0 ? (double)p : (double)(p * (lp - lm))) + of_q);
}
template <class W> __device__ __forceinline__ W other_slope(HeadDivergence kind, W q, W lp, W lq, W slope) {
  if (q == 0) return q;
  return (kind == HEAD_REVERSE ? W(1) : W(0.5)) * q * (lq - (kind == HEAD_REVERSE ? lp : log_mean(lp, lq)) - slope);
}

template <class T> struct Rows {
  HeadShape s;
  int64_t first;
  const int32_t *ids, *segment, *top;
  const Wide<T> *count, *bias, *teacher_bias;
  T *logits, *teacher;
  Wide<T> *losses;
  bool gradient;
};

/* x = v = v + bias, as x holds it. */
template <class T, int M> __device__ __forceinline__ void add_bias(Wide<T> (&v)[M], const Wide<T> *bias, T *x) {
  Wide<T> b[M];
  load<Wide<T>, M>(b, bias);
#pragma unroll
  for (int k = 0; k < M; k++) v[k] = wide_of(narrow<T>(v[k] + b[k]));
  store<T, M>(x, v);
}

/* The teacher's list of a row becomes probabilities; returns the divergence. */
template <class T>
static __device__ double top_divergence(const Rows<T> &a, const Pieces<Wide<T>> &r, T *t, const int32_t *top, const T *x) {
  typedef Wide<T> W;
  Sum<T> all;
  for (int64_t k = threadIdx.x; k < a.s.K; k += blockDim.x) {
    const W v[1] = {wide_of(t[k])};
    all.take(v, r.scale);
  }
  const W lse = all.lse(r.scale);
  double sum = 0;
  for (int64_t k = threadIdx.x; k < a.s.K; k += blockDim.x) {
    const double lp = (double)(r.scale * wide_of(t[k]) - lse), lq = (double)(r.scale * wide_of(x[top[k]]) - r.student), p = exp(lp);
    if (p > 0) sum += p * ((a.s.divergence == HEAD_CROSS ? 0 : lp) - lq);
    t[k] = narrow<T>((W)p);
  }
  return block_sum(sum);
}

template <class T, int N> static __global__ void __launch_bounds__(ROW_THREADS) head_row(Rows<T> a) {
  typedef Wide<T> W;
  __shared__ W at_target;
  const int64_t i = blockIdx.x, row = a.first + i, n = a.s.vocab;
  const int32_t target = target_of(a.s.L, row, a.ids, a.segment);
  const bool has_ce = a.s.ce != 0 && target >= 0, has_kl = a.s.kl != 0 && (!a.segment || a.segment[row] >= 0), whole = has_kl && !a.s.K;
  const HeadDivergence kind = a.s.divergence;
  T *x = a.logits + i * a.s.V, *t = a.teacher ? a.teacher + i * (a.s.K ? a.s.K : a.s.U) : nullptr;
  const double each_ce = has_ce ? a.s.ce / (double)a.count[0] : 0, temperature = a.s.temperature;
  Pieces<W> r = {(W)(1 / temperature), (W)each_ce, (W)(each_ce * a.s.smoothing / (double)n), (W)(each_ce * (1 - a.s.smoothing)),
                 has_kl ? (W)(a.s.kl * temperature / (double)a.count[1]) : W(0)};
  const bool two = has_kl && temperature != 1, one = has_ce || (has_kl && !two);
  Sum<T> plain, soft, taught;
  double mean = 0, kl = 0;
  if (has_ce || has_kl)
    each_of_row<N>(n, [&](int64_t j, auto width) {
      constexpr int M = decltype(width)::value;
      W v[M];
      load<T, M>(v, x + j);
      if (a.bias) add_bias<T, M>(v, a.bias + j, x + j);
      if (one) plain.take(v, W(1));
      if (two) soft.take(v, r.scale);
#pragma unroll
      for (int k = 0; k < M; k++) {
        if (j + k == target) at_target = v[k];
        if (a.s.smoothing != 0) mean += (double)v[k];
      }
      if (!whole) return;
      load<T, M>(v, t + j);
      if (a.teacher_bias) add_bias<T, M>(v, a.teacher_bias + j, t + j);
      taught.take(v, r.scale);
    });
  if (one) r.lse = plain.lse(W(1));
  if (has_kl) r.student = two ? soft.lse(r.scale) : r.lse;
  if (whole) r.teacher = taught.lse(r.scale);
  if (a.s.smoothing != 0) mean = block_sum(mean) / (double)n;
  __syncthreads();
  double slope = 0;
  const bool forward = kind <= HEAD_CROSS; /* its divergence is summed while the gradient is made */
  if (whole && (!forward || !a.gradient))
    each_of_row<N>(n, [&](int64_t j, auto width) {
      constexpr int M = decltype(width)::value;
      W v[M], p[M], share = 0;
      load<T, M>(v, x + j);
      load<T, M>(p, t + j);
#pragma unroll
      for (int k = 0; k < M; k++) {
        const W lp = r.scale * p[k] - r.teacher, lq = r.scale * v[k] - r.student;
        if (forward) share += forward_share(kind, exponential<T>(lp), lp, lq);
        else other_share<T>(kind, lp, lq, kl, slope);
      }
      kl += (double)share;
    });
  if (whole && !forward) slope = block_sum(slope);
  if (has_kl && a.s.K) kl = top_divergence(a, r, t, a.top + i * a.s.K, x);
  __syncthreads(); /* the list of the teacher was read by all */
  if (a.gradient)
    each_of_row<N>(n, [&](int64_t j, auto width) {
      constexpr int M = decltype(width)::value;
      W v[M], p[M], g[M], share = 0;
      load<T, M>(v, x + j);
      if (whole) load<T, M>(p, t + j);
#pragma unroll
      for (int k = 0; k < M; k++) {
        const W q = has_kl ? exponential<T>(v[k], r.scale, r.student) : W(0);
        g[k] = -r.even;
        if (has_ce) g[k] += r.ce * (one && has_kl && !two ? q : exponential<T>(v[k], W(1), r.lse));
        if (j + k == target && has_ce) g[k] -= r.own;
        if (whole) {
          const W lp = r.scale * p[k] - r.teacher, lq = r.scale * v[k] - r.student;
          if (forward) {
            const W own = exponential<T>(lp);
            share += forward_share(kind, own, lp, lq);
            g[k] += r.kl * (q - own);
          } else {
            g[k] += r.kl * other_slope(kind, q, lp, lq, (W)slope);
          }
        } else if (has_kl) {
          g[k] += r.kl * q;
        }
      }
      if (forward) kl += (double)share;
      store<T, M>(x + j, g);
    });
  if (whole) kl = block_sum(kl);
  if (!threadIdx.x) {
    const double ce = has_ce ? (double)r.lse - (1 - a.s.smoothing) * (double)at_target - a.s.smoothing * mean : 0;
    a.losses[row] = (W)(ce / (double)a.count[0]);
    a.losses[a.s.B * a.s.L + row] = has_kl ? (W)(temperature * temperature * kl / (double)a.count[1]) : W(0);
  }
  if (!a.gradient) return;
  for (int64_t j = n + threadIdx.x; j < a.s.V; j += blockDim.x) x[j] = narrow<T>(0);
  if (!has_kl || !a.s.K) return;
  __syncthreads();
  for (int64_t k = threadIdx.x; k < a.s.K; k += blockDim.x) {
    T *g = x + a.top[i * a.s.K + k];
    *g = narrow<T>(wide_of(*g) - r.kl * wide_of(t[k]));
  }
}

template <class T>
static void head_rows(CabStream *s, const HeadShape *shape, int64_t first, int64_t rows, const int32_t *ids, const int32_t *segment,
                      const void *count, void *logits, const void *bias, void *teacher, const void *teacher_bias, const int32_t *top,
                      bool gradient, void *losses) {
  constexpr int N = PACK<T>;
  if (rows <= 0) return;
  const Rows<T> a = {*shape, first, ids, segment, top, (const Wide<T> *)count, (const Wide<T> *)bias, (const Wide<T> *)teacher_bias,
                     (T *)logits, (T *)teacher, (Wide<T> *)losses, gradient};
  const bool vector = packs<T, N>(logits, shape->V) && packs<Wide<T>, N>(bias, N) && packs<Wide<T>, N>(teacher_bias, N) && (!teacher || shape->K || packs<T, N>(teacher, shape->U));
  const int threads = shape->vocab > 4096 ? ROW_THREADS : 128;
  if (vector) head_row<T, N><<<(unsigned)rows, threads, 0, s->stream>>>(a);
  else head_row<T, 1><<<(unsigned)rows, threads, 0, s->stream>>>(a);
}

/* ---- the factor that arrives ---------------------------------------------------------------------- */

template <class T, int N> static __global__ void __launch_bounds__(256) scale_all(int64_t n, const T *x, const Wide<T> *factor, T *y) {
  const Wide<T> f = *factor;
  for (int64_t j = (blockIdx.x * (int64_t)256 + threadIdx.x) * N; j < n; j += gridDim.x * (int64_t)256 * N) {
    Wide<T> v[N];
    load<T, N>(v, x + j);
#pragma unroll
    for (int k = 0; k < N; k++) v[k] *= f;
    store<T, N>(y + j, v);
  }
}

template <class T> static void head_scaled(CabStream *s, int64_t n, const void *x, const void *factor, void *y) {
  constexpr int N = PACK<T>;
  if (n <= 0) return;
  const bool vector = n % N == 0 && packs<T, N>(x, N) && packs<T, N>(y, N);
  const int64_t blocks = (n / (vector ? N : 1) + 255) / 256;
  const unsigned grid = (unsigned)(blocks < 4096 ? blocks : 4096);
  if (vector) scale_all<T, N><<<grid, 256, 0, s->stream>>>(n, (const T *)x, (const Wide<T> *)factor, (T *)y);
  else scale_all<T, 1><<<grid, 256, 0, s->stream>>>(n, (const T *)x, (const Wide<T> *)factor, (T *)y);
}

EXPORT(head_count)
EXPORT(head_rows)
EXPORT(head_scaled)
