/* optim.cu - updates of many tensors in few launches. Slices travel as kernel parameters, as many as fit into 4 KB; blocks
 * are dealt to chunks of them by a table of first blocks. Nothing in a launch changes from step to step. */
#include "optim.h"

#include "vector.cuh"

enum {
  THREADS = 256,
  LAST = 1024,          /* threads of the block that adds */
  NORM_CHUNK = 16384,   /* elements of a block */
  UPDATE_CHUNK = 4096,
  NORM_SLICES = 160,    /* of a launch */
  UPDATE_SLICES = 60,
};

/* Slice i of a launch owns blocks first[i] .. first[i+1] - 1. */
template <int SLICES> struct Table {
  int count;
  uint32_t first[SLICES];
  __device__ __forceinline__ int owner(uint32_t block) const {
    int low = 0, high = count - 1;
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (first[middle] <= block) low = middle;
      else high = middle - 1;
    }
    return low;
  }
};

/* ---- the norm --------------------------------------------------------------------------------- */

template <class T> struct NormSlices {
  Table<NORM_SLICES> table;
  int number[NORM_SLICES]; /* in the caller's list, from 1 */
  int64_t n[NORM_SLICES];
  const T *g[NORM_SLICES];
};
static_assert(sizeof(NormSlices<float>) + 16 <= 4096, "kernel parameters");

/* sums[b] = squares of a chunk in double; number[b]: whose chunk it is. */
template <class T>
static __global__ void __launch_bounds__(THREADS)
    gradient_squares(const __grid_constant__ NormSlices<T> s, double *sums, int *number) {
  constexpr int N = 16 / (int)sizeof(T);
  const int i = s.table.owner(blockIdx.x);
  const int64_t from = (int64_t)(blockIdx.x - s.table.first[i]) * NORM_CHUNK, left = s.n[i] - from;
  const int n = left < NORM_CHUNK ? (int)left : (int)NORM_CHUNK;
  const T *g = s.g[i] + from;
  const int whole = (uintptr_t)g % sizeof(Pack<T, N>) == 0 ? n / N * N : 0;
  double sum = 0;
#pragma unroll 4
  for (int j = threadIdx.x * N; j < whole; j += THREADS * N) {
    T v[N];
    load(v, g + j);
#pragma unroll
    for (int k = 0; k < N; k++) sum += (double)v[k] * (double)v[k];
  }
  for (int j = whole + threadIdx.x; j < n; j += THREADS) sum += (double)g[j] * (double)g[j];
  sum = block_sum(sum);
  if (!threadIdx.x) sums[blockIdx.x] = sum, number[blockIdx.x] = s.number[i];
}

static __global__ void __launch_bounds__(LAST) finish_norm(int64_t blocks, const double *sums, const int *number, double *now) {
  __shared__ int bad;
  double sum = 0;
  if (!threadIdx.x) bad = 0;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < blocks; i += LAST) {
    sum += sums[i];
    if (sums[i] - sums[i] != 0) atomicMax(&bad, number[i]);
  }
  sum = block_sum(sum); /* has barriers: bad is complete */
  if (!threadIdx.x) optim_note_norm(now, sqrt(sum), bad);
}

template <class T> static void grad_norm(CabStream *s, int64_t count, const UpdateSlice *list, double *now) {
  int64_t blocks = 0;
  for (int64_t i = 0; i < count; i++)
    if (list[i].g) blocks += (list[i].n + NORM_CHUNK - 1) / NORM_CHUNK;
  const int64_t room = blocks ? blocks : 1;
  Scratch scratch(s, (size_t)room * (sizeof(double) + sizeof(int)));
  if (!scratch.data) return;
  double *sums = (double *)scratch.data;
  int *number = (int *)(sums + room);
  int64_t done = 0;
  for (int64_t i = 0; i < count;) {
    NormSlices<T> p = {};
    uint32_t used = 0;
    for (; i < count && p.table.count < NORM_SLICES; i++) {
      if (!list[i].g || list[i].n <= 0) continue;
      const int k = p.table.count++;
      p.table.first[k] = used, p.number[k] = (int)(i + 1), p.n[k] = list[i].n, p.g[k] = (const T *)list[i].g;
      used += blocks_for(list[i].n, NORM_CHUNK);
    }
    if (used) gradient_squares<T><<<used, THREADS, 0, s->stream>>>(p, sums + done, number + done);
    done += used;
  }
  finish_norm<<<1, LAST, 0, s->stream>>>(blocks, sums, number, now);
}

/* ---- the update ------------------------------------------------------------------------------- */

template <class T> struct UpdateSlices {
  Table<UPDATE_SLICES> table;
  int age[UPDATE_SLICES];
  int64_t n[UPDATE_SLICES];
  const T *g[UPDATE_SLICES];
  T *w[UPDATE_SLICES], *m[UPDATE_SLICES], *v[UPDATE_SLICES], *average[UPDATE_SLICES];
  double decay[UPDATE_SLICES];
};
static_assert(sizeof(UpdateSlices<float>) + 16 <= 4096, "kernel parameters");

template <class T> struct Chunk {
  const T *g;
  T *w, *m, *v, *average;
  T scale, b1, b2, c1, c2, rate, root, shrink, eps, share;
  /* Elements j .. j+N-1. */
  template <int N> __device__ __forceinline__ void update(int64_t j) const {
    T x[N], mean[N];
    load(x, w + j);
    if (average) load(mean, average + j);
    if (g) {
      T gradient[N], first[N], second[N];
      load(gradient, g + j), load(first, m + j), load(second, v + j);
#pragma unroll
      for (int k = 0; k < N; k++) {
        const T gk = scale * gradient[k];
        first[k] = b1 * first[k] + c1 * gk, second[k] = b2 * second[k] + c2 * gk * gk;
        x[k] -= rate * first[k] / (sqrt(root * second[k]) + eps) + shrink * x[k];
      }
      store(m + j, first), store(v + j, second), store(w + j, x);
    }
    if (!average) return;
#pragma unroll
    for (int k = 0; k < N; k++) mean[k] += share * (x[k] - mean[k]);
    store(average + j, mean);
  }
};

template <class T>
static __global__ void __launch_bounds__(THREADS)
    update_chunks(const __grid_constant__ UpdateSlices<T> s, const double *now) {
  constexpr int N = 16 / (int)sizeof(T);
  const double scale = now[NOW_SCALE], beta1 = now[NOW_BETA1], beta2 = now[NOW_BETA2];
  if (scale != scale) return;
  const int i = s.table.owner(blockIdx.x);
  const double *age = now + NOW_AGES + 2 * s.age[i];
  const int64_t from = (int64_t)(blockIdx.x - s.table.first[i]) * UPDATE_CHUNK, left = s.n[i] - from;
  const int n = left < UPDATE_CHUNK ? (int)left : (int)UPDATE_CHUNK;
  Chunk<T> c = {s.g[i], s.w[i], s.m[i], s.v[i], s.average[i], (T)scale, (T)beta1, (T)beta2, (T)(1 - beta1), (T)(1 - beta2), 0, 0,
                (T)(now[NOW_LR] * s.decay[i]), (T)now[NOW_EPS], (T)(1 - now[NOW_KEEP])};
  if (c.g) c.rate = (T)age[0], c.root = (T)age[1]; /* lr m^ = rate m */
  const uintptr_t bits = (uintptr_t)c.g | (uintptr_t)c.w | (uintptr_t)c.m | (uintptr_t)c.v | (uintptr_t)c.average;
  const int whole = bits % sizeof(Pack<T, N>) == 0 ? n / N * N : 0;
  for (int j = threadIdx.x * N; j < whole; j += THREADS * N) c.template update<N>(from + j);
  for (int j = whole + threadIdx.x; j < n; j += THREADS) c.template update<1>(from + j);
}

template <class T> static void adamw_average(CabStream *s, int64_t count, const UpdateSlice *list, const double *now) {
  for (int64_t i = 0; i < count;) {
    UpdateSlices<T> p = {};
    uint32_t used = 0;
    for (; i < count && p.table.count < UPDATE_SLICES; i++) {
      const UpdateSlice *from = &list[i];
      if ((!from->g && !from->average) || from->n <= 0) continue;
      const int k = p.table.count++;
      p.table.first[k] = used, p.age[k] = (int)from->age, p.n[k] = from->n, p.decay[k] = from->decay;
      p.g[k] = (const T *)from->g, p.w[k] = (T *)from->w, p.average[k] = (T *)from->average;
      if (from->g) p.m[k] = (T *)from->m, p.v[k] = (T *)from->v;
      used += blocks_for(from->n, UPDATE_CHUNK);
    }
    if (used) update_chunks<T><<<used, THREADS, 0, s->stream>>>(p, now);
  }
}

EXPORT_REAL(grad_norm)
EXPORT_REAL(adamw_average)
