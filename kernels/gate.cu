/* gate.cu - y = scale (a + b) silu(z), and its gradient. A thread owns V neighbouring columns and walks down the rows, so
 * z's row stride costs no division. */
#include "gate.h"

#include "vector.cuh"

enum { LANES = 32, ROWS = 8, BLOCKS = 8 }; /* block: LANES x ROWS threads; BLOCKS of them fill a multiprocessor */

/* Where a thread starts: column j, row i; rows `step` apart. */
struct Walk {
  int64_t j, i, step;
};
template <int V> static __device__ __forceinline__ Walk walk() {
  return {((int64_t)blockIdx.y * LANES + threadIdx.x) * V, (int64_t)blockIdx.x * ROWS + threadIdx.y, (int64_t)gridDim.x * ROWS};
}

template <class T, int V>
static __global__ void __launch_bounds__(LANES *ROWS)
    gate_values(int64_t rows, int64_t n, Wide<T> scale, const T *a, const T *b, const T *z, int64_t ldz, T *y) {
  const Walk at = walk<V>();
  if (at.j >= n) return;
  for (int64_t i = at.i; i < rows; i += at.step) {
    const int64_t k = i * n + at.j;
    Wide<T> x[V], other[V], gate[V];
    load<T, V>(x, a + k);
    load<T, V>(gate, z + i * ldz + at.j);
    if (b) load<T, V>(other, b + k);
#pragma unroll
    for (int v = 0; v < V; v++) {
      if (b) x[v] += other[v];
      x[v] = scale * x[v] * (gate[v] * sigmoid(gate[v]));
    }
    store<T, V>(y + k, x);
  }
}

/* ga = scale silu(z) gy;  gz = scale (a + b) silu'(z) gy */
template <class T, int V>
static __global__ void __launch_bounds__(LANES *ROWS)
    gate_gradients(int64_t rows, int64_t n, Wide<T> scale, const T *a, const T *b, const T *z, int64_t ldz, const T *gy, T *ga,
                   T *gz, int64_t ldgz) {
  const Walk at = walk<V>();
  if (at.j >= n) return;
  for (int64_t i = at.i; i < rows; i += at.step) {
    const int64_t k = i * n + at.j;
    Wide<T> g[V], gate[V], s[V];
    load<T, V>(g, gy + k);
    load<T, V>(gate, z + i * ldz + at.j);
#pragma unroll
    for (int v = 0; v < V; v++) g[v] *= scale, s[v] = sigmoid(gate[v]);
    if (gz) {
      Wide<T> x[V], other[V];
      load<T, V>(x, a + k);
      if (b) load<T, V>(other, b + k);
#pragma unroll
      for (int v = 0; v < V; v++) {
        if (b) x[v] += other[v];
        x[v] *= g[v] * silu_slope(gate[v], s[v]);
      }
      store<T, V>(gz + i * ldgz + at.j, x);
    }
    if (!ga) continue;
#pragma unroll
    for (int v = 0; v < V; v++) g[v] *= gate[v] * s[v];
    store<T, V>(ga + k, g);
  }
}

template <class T> struct Width { enum { value = 16 / sizeof(T) }; };

static dim3 grid_of(const CabStream *s, int64_t rows, int64_t n, int V) {
  const unsigned columns = blocks_for(n, LANES * V), all = blocks_for(rows, ROWS);
  const unsigned most = blocks_for((int64_t)BLOCKS * s->multiprocessors, columns);
  return dim3(all < most ? all : most, columns);
}

template <class T>
static void gate_forward(CabStream *s, int64_t rows, int64_t n, double scale, const void *a, const void *b, const void *z,
                         int64_t ldz, void *y) {
  constexpr int V = Width<T>::value;
  if (rows <= 0 || n <= 0) return;
  const bool vector = n % V == 0 && packs<T, V>(a, n) && packs<T, V>(b, n) && packs<T, V>(z, ldz) && packs<T, V>(y, n);
  void (*run)(int64_t, int64_t, Wide<T>, const T *, const T *, const T *, int64_t, T *) =
      vector ? gate_values<T, V> : gate_values<T, 1>;
  run<<<grid_of(s, rows, n, vector ? V : 1), dim3(LANES, ROWS), 0, s->stream>>>(rows, n, (Wide<T>)scale, (const T *)a, (const T *)b,
                                                                             (const T *)z, ldz, (T *)y);
}

template <class T>
static void gate_backward(CabStream *s, int64_t rows, int64_t n, double scale, const void *a, const void *b, const void *z,
                          int64_t ldz, const void *gy, void *ga, void *gz, int64_t ldgz) {
  constexpr int V = Width<T>::value;
  if (rows <= 0 || n <= 0 || (!ga && !gz)) return;
  const bool vector = n % V == 0 && packs<T, V>(a, n) && packs<T, V>(b, n) && packs<T, V>(z, ldz) && packs<T, V>(gy, n) &&
                      packs<T, V>(ga, n) && packs<T, V>(gz, ldgz);
  void (*run)(int64_t, int64_t, Wide<T>, const T *, const T *, const T *, int64_t, const T *, T *, T *, int64_t) =
      vector ? gate_gradients<T, V> : gate_gradients<T, 1>;
  run<<<grid_of(s, rows, n, vector ? V : 1), dim3(LANES, ROWS), 0, s->stream>>>(
      rows, n, (Wide<T>)scale, (const T *)a, (const T *)b, (const T *)z, ldz, (const T *)gy, (T *)ga, (T *)gz, ldgz);
}

EXPORT(gate_forward)
EXPORT(gate_backward)
