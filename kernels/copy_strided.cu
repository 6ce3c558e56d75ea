/* copy_strided.cu - strided copies of elementwise.h: transposes in tiles, all others as maps over the order of dst. */
#include <cstdlib>

#include "elementwise.h"
#include "map.cuh"

struct Copy {
  static constexpr int LEAST = 4; /* rows of 12 or 20 bf16 are common */
  template <class W> __device__ void operator()(const W (&x)[1], W (&y)[1]) const { y[0] = x[0]; }
};
struct Accumulate {
  static constexpr int LEAST = 4;
  template <class W> __device__ void operator()(const W (&x)[2], W (&y)[1]) const { y[0] = x[1] + x[0]; }
};

/* dst[i,j] = src[i,j], src contiguous along i (rows), dst along j: a tile goes through shared memory, so that both sides
 * are read and written in lines. Its width is odd in banks. */
template <class T> struct Tile {
  static constexpr int SIZE = sizeof(T) == 2 ? 64 : 32, WIDTH = SIZE + (sizeof(T) == 2 ? 2 : 1);
};
template <class T, bool ADD>
static __global__ void __launch_bounds__(THREADS)
    transpose_kernel(const __grid_constant__ Units<2> batch, int64_t rows, int64_t columns, int64_t dst_row, int64_t src_column,
                     Divider tiles_down, Divider tiles_across, const T *src, T *dst) {
  constexpr int SIZE = Tile<T>::SIZE, STEP = THREADS / 32;
  __shared__ T tile[SIZE][Tile<T>::WIDTH]; /* [column][row] */
  const uint32_t strip = quotient(tiles_across, blockIdx.x), across = blockIdx.x - strip * tiles_across.d;
  const uint32_t unit = quotient(tiles_down, strip), down = strip - unit * tiles_down.d;
  const int64_t row0 = (int64_t)down * SIZE, column0 = (int64_t)across * SIZE;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  int64_t at[2];
  batch.seek(unit, at);
  dst += at[0], src += at[1];
#pragma unroll
  for (int j = warp; j < SIZE; j += STEP)
#pragma unroll
    for (int i = lane; i < SIZE; i += 32)
      if (row0 + i < rows && column0 + j < columns) tile[j][i] = src[row0 + i + (column0 + j) * src_column];
  __syncthreads();
#pragma unroll
  for (int i = warp; i < SIZE; i += STEP)
#pragma unroll
    for (int j = lane; j < SIZE; j += 32)
      if (row0 + i < rows && column0 + j < columns) {
        T *to = dst + (row0 + i) * dst_row + column0 + j;
        *to = ADD ? narrow<T>(wide_of(*to) + wide_of(tile[j][i])) : tile[j][i];
      }
}

/* The dimension along which src is contiguous if w is a batch of transposes worth tiling, else -1. */
static int transposed(const Walk<2> &w) {
  const int last = w.rank - 1;
  if (w.stride[0][last] != 1 || std::llabs(w.stride[1][last]) <= 1 || w.shape[last] < 16) return -1;
  for (int d = 0; d < last; d++)
    if (w.stride[1][d] == 1 && w.shape[d] >= 16) return d;
  return -1;
}

template <class T, bool ADD> static bool transpose(CabStream *s, const Walk<2> &w, const T *src, T *dst) {
  const int across = transposed(w), last = w.rank - 1;
  if (across < 0) return false;
  const int64_t rows = w.shape[across], columns = w.shape[last], size = Tile<T>::SIZE;
  const int64_t down = (rows + size - 1) / size, wide = (columns + size - 1) / size;
  Walk<2> batch = {};
  for (int d = 0; d < last; d++) {
    if (d == across) continue;
    batch.shape[batch.rank] = w.shape[d];
    for (int o = 0; o < 2; o++) batch.stride[o][batch.rank] = w.stride[o][d];
    batch.rank++;
  }
  batch = merged(batch);
  const int64_t count = size_of(batch);
  if (count > INT32_MAX / down / wide) return false;
  transpose_kernel<T, ADD><<<(unsigned)(count * down * wide), THREADS, 0, s->stream>>>(
      units_of(batch, 1), rows, columns, w.stride[0][across], w.stride[1][last], divider(down), divider(wide), src, dst);
  return true;
}

/* Largest strides of dst first: its last dimension is then the one to run along. */
static Walk<2> sorted(int rank, const int64_t *shape, const int64_t *stride_src, const int64_t *stride_dst) {
  int order[RANK];
  for (int d = 0; d < rank; d++) {
    int at = d;
    for (; at > 0 && std::llabs(stride_dst[order[at - 1]]) < std::llabs(stride_dst[d]); at--) order[at] = order[at - 1];
    order[at] = d;
  }
  Walk<2> w = {};
  w.rank = rank;
  for (int d = 0; d < rank; d++) {
    w.shape[d] = shape[order[d]];
    w.stride[0][d] = stride_dst[order[d]], w.stride[1][d] = stride_src[order[d]];
  }
  return w;
}

template <class T>
static void copy_strided(CabStream *s, int rank, const int64_t *shape, const void *src, const int64_t *stride_src, void *dst,
                         const int64_t *stride_dst, bool accumulate) {
  const T *from = (const T *)src;
  T *to = (T *)dst;
  const Walk<2> w = merged(sorted(rank, shape, stride_src, stride_dst));
  if (size_of(w) <= 0) return;
  if (accumulate ? transpose<T, true>(s, w, from, to) : transpose<T, false>(s, w, from, to)) return;
  if (!accumulate) {
    map(s, w, Operands<T, 1, 1>{{from}, {to}}, Copy());
    return;
  }
  Walk<3> both = {};
  both.rank = w.rank;
  for (int d = 0; d < w.rank; d++) {
    both.shape[d] = w.shape[d];
    both.stride[0][d] = both.stride[2][d] = w.stride[0][d], both.stride[1][d] = w.stride[1][d];
  }
  map(s, both, Operands<T, 2, 1>{{from, to}, {to}}, Accumulate());
}

EXPORT(copy_strided)
