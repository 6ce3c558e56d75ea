/* embed.cu - token embedding and image patches. */
#include "embed.h"

#include "vector.cuh"

enum { LANES = 32, ROWS = 8, BLOCKS = 8 }; /* block: LANES x ROWS threads; BLOCKS of them fill a multiprocessor */

static unsigned at_most(int64_t blocks, int64_t most) { return (unsigned)(blocks < most ? blocks : most); }

/* ---- token embedding ------------------------------------------------------------------------ */

/* A warp owns a row of y, V columns a lane. The device cannot report a bad id: its row is NaN. */
template <class T, int V>
static __global__ void __launch_bounds__(LANES *ROWS)
    embed_rows(int64_t count, int64_t dim, int64_t vocab, const int32_t *ids, const Wide<T> *w, T *y) {
  for (int64_t i = (int64_t)blockIdx.x * ROWS + threadIdx.y; i < count; i += (int64_t)gridDim.x * ROWS) {
    const int64_t id = ids[i];
    for (int64_t j = threadIdx.x * V; j < dim; j += LANES * V) {
      Wide<T> row[V];
#pragma unroll
      for (int v = 0; v < V; v++) row[v] = NAN;
      if (id >= 0 && id < vocab) load<Wide<T>, V>(row, w + id * dim + j);
      store<T, V>(y + i * dim + j, row);
    }
  }
}

template <class T>
static void embedding_forward(CabStream *s, int64_t count, int64_t dim, int64_t vocab, const int32_t *ids, const void *w,
                              void *y) {
  if (count <= 0 || dim <= 0) return;
  const unsigned blocks = at_most((count + ROWS - 1) / ROWS, (int64_t)BLOCKS * s->multiprocessors);
  const bool vector = dim % 4 == 0 && packs<Wide<T>, 4>(w, dim) && packs<T, 4>(y, dim);
  void (*run)(int64_t, int64_t, int64_t, const int32_t *, const Wide<T> *, T *) = vector ? embed_rows<T, 4> : embed_rows<T, 1>;
  run<<<blocks, dim3(LANES, ROWS), 0, s->stream>>>(count, dim, vocab, ids, (const Wide<T> *)w, (T *)y);
}

/* The tokens are cut into segments and each segment is sorted by (id, index). A row of gw then finds its tokens in every
 * segment by bisection, in index order. Ids out of range are in no row. */
enum { SEGMENT = 2048, SORT_THREADS = SEGMENT / 2 }; /* a thread compares one pair at a time */

/* Bitonic sort of one segment in shared memory, a block each; what the last segment lacks sorts to its end. */
static __global__ void __launch_bounds__(SORT_THREADS)
    sort_segments(int64_t count, const int32_t *ids, uint32_t *sorted, int32_t *places) {
  __shared__ uint64_t keys[SEGMENT];
  const int64_t first = (int64_t)blockIdx.x * SEGMENT;
  for (int i = threadIdx.x; i < SEGMENT; i += SORT_THREADS)
    keys[i] = first + i < count ? (uint64_t)(uint32_t)ids[first + i] << 32 | (uint32_t)i : ~(uint64_t)0;
  for (int run = 2; run <= SEGMENT; run *= 2)
    for (int apart = run / 2; apart; apart /= 2) {
      __syncthreads();
      const int low = 2 * threadIdx.x - (threadIdx.x & (apart - 1)), high = low + apart;
      const uint64_t a = keys[low], b = keys[high];
      if ((a > b) == ((low & run) == 0)) keys[low] = b, keys[high] = a;
    }
  __syncthreads();
  for (int i = threadIdx.x; i < SEGMENT && first + i < count; i += SORT_THREADS) {
    sorted[first + i] = (uint32_t)(keys[i] >> 32);
    places[first + i] = (int32_t)(uint32_t)keys[i];
  }
}

/* The sorted tokens. */
struct Sorted {
  int64_t count, segments;
  const uint32_t *ids;
  const int32_t *places; /* in their segment */
};

static __device__ __forceinline__ int lower_bound(const uint32_t *ids, int n, uint32_t id) {
  int low = 0;
  while (n > 0) {
    const int half = n / 2;
    if (ids[low + half] < id) low += half + 1, n -= half + 1;
    else n = half;
  }
  return low;
}

/* Tokens of `id` in a segment: how many, and where they start in its sorted order. */
static __device__ __forceinline__ int find(const Sorted &t, int64_t segment, uint32_t id, int *start) {
  const int64_t first = segment * SEGMENT;
  const int n = t.count - first < SEGMENT ? (int)(t.count - first) : SEGMENT;
  *start = lower_bound(t.ids + first, n, id);
  return lower_bound(t.ids + first + *start, n - *start, id + 1);
}

/* Adds gy's rows at `id` to sum, of each segment's tokens every `step`-th from `from`. By a whole warp: 32 segments, then 32
 * tokens, are looked up at once, a lane each. */
template <class T, int V>
static __device__ __forceinline__ void add_rows(const Sorted &t, uint32_t id, int from, int step, int64_t dim, const T *gy,
                                                bool inside, Wide<T> (&sum)[V]) {
  const int lane = threadIdx.x;
  for (int64_t s0 = 0; s0 < t.segments; s0 += LANES) {
    int start = 0, mine = s0 + lane < t.segments ? find(t, s0 + lane, id, &start) : 0;
    for (unsigned found = __ballot_sync(~0u, mine > from); found; found &= found - 1) {
      const int owner = __ffs(found) - 1, n = __shfl_sync(~0u, mine, owner), at = __shfl_sync(~0u, start, owner);
      const int64_t first = (s0 + owner) * SEGMENT;
      for (int k0 = from; k0 < n; k0 += LANES * step) {
        const int k = k0 + lane * step, left = (n - k0 + step - 1) / step;
        const int place = k < n ? t.places[first + at + k] : 0;
#pragma unroll 8
        for (int o = 0; o < (left < LANES ? left : LANES); o++) {
          const int64_t row = first + __shfl_sync(~0u, place, o);
          Wide<T> g[V];
          if (inside) {
            load<T, V>(g, gy + row * dim);
#pragma unroll
            for (int v = 0; v < V; v++) sum[v] += g[v];
          }
        }
      }
    }
  }
}

enum { LONG = 64 }; /* tokens of a row from which on the warps of a block share it */

/* A warp owns a row of gw: its block's rows with many tokens are then summed by all warps, whose sums are added in order. */
template <class T, int V>
static __global__ void __launch_bounds__(LANES *ROWS, 5)
    sum_tokens(Sorted t, int64_t dim, int64_t vocab, const T *gy, Wide<T> *gw) {
  __shared__ Wide<T> part[ROWS][V][LANES];
  __shared__ bool is_long[ROWS];
  const int lane = threadIdx.x, warp = threadIdx.y;
  const int64_t first = (int64_t)blockIdx.x * ROWS, id = first + warp;
  int tokens = 0, start;
  if (id < vocab) {
    for (int64_t s = lane; s < t.segments; s += LANES) tokens += find(t, s, (uint32_t)id, &start);
    tokens = warp_sum(tokens);
    for (int64_t j0 = 0; j0 < dim && tokens <= LONG; j0 += LANES * V) {
      const int64_t j = j0 + lane * V;
      Wide<T> sum[V] = {};
      if (tokens) add_rows<T, V>(t, (uint32_t)id, 0, 1, dim, gy + j, j < dim, sum);
      if (j < dim) store<Wide<T>, V>(gw + id * dim + j, sum);
    }
  }
  if (!lane) is_long[warp] = tokens > LONG;
  __syncthreads();
  for (int row = 0; row < ROWS; row++) {
    if (!is_long[row]) continue;
    for (int64_t j0 = 0; j0 < dim; j0 += LANES * V) {
      const int64_t j = j0 + lane * V;
      Wide<T> sum[V] = {};
      add_rows<T, V>(t, (uint32_t)(first + row), warp, ROWS, dim, gy + j, j < dim, sum);
#pragma unroll
      for (int v = 0; v < V; v++) part[warp][v][lane] = sum[v];
      __syncthreads();
      if (!warp && j < dim) {
#pragma unroll
        for (int v = 0; v < V; v++)
          for (int w = 1; w < ROWS; w++) sum[v] += part[w][v][lane];
        store<Wide<T>, V>(gw + (first + row) * dim + j, sum);
      }
      __syncthreads();
    }
  }
}

template <class T>
static void embedding_backward(CabStream *s, int64_t count, int64_t dim, int64_t vocab, const int32_t *ids, const void *gy,
                               void *gw) {
  if (vocab <= 0 || dim <= 0) return;
  Scratch scratch(s, (size_t)count * 2 * sizeof(int32_t));
  if (count && !scratch.data) return;
  Sorted t;
  t.count = count, t.segments = (count + SEGMENT - 1) / SEGMENT;
  t.ids = (const uint32_t *)scratch.data, t.places = (const int32_t *)scratch.data + count;
  if (count)
    sort_segments<<<(unsigned)t.segments, SORT_THREADS, 0, s->stream>>>(count, ids, (uint32_t *)scratch.data,
                                                                        (int32_t *)scratch.data + count);
  const bool vector = dim % 4 == 0 && packs<T, 4>(gy, dim) && packs<Wide<T>, 4>(gw, dim);
  void (*run)(Sorted, int64_t, int64_t, const T *, Wide<T> *) = vector ? sum_tokens<T, 4> : sum_tokens<T, 1>;
  run<<<blocks_for(vocab, ROWS), dim3(LANES, ROWS), 0, s->stream>>>(t, dim, vocab, (const T *)gy, (Wide<T> *)gw);
}

/* ---- image patches -------------------------------------------------------------------------- */

struct Patches {
  int64_t B, C, H, W, P, stride, down, across; /* down x across patches in an image */
};
static int64_t patches(int64_t size, int64_t P, int64_t stride) { return size < P ? 0 : (size - P) / stride + 1; }
static Patches patches_of(int64_t B, int64_t C, int64_t H, int64_t W, int64_t P, int64_t stride) {
  Patches p;
  p.B = B, p.C = C, p.H = H, p.W = W, p.P = P, p.stride = stride;
  p.down = patches(H, P, stride), p.across = patches(W, P, stride);
  return p;
}

/* May V pixels of a row be moved together? Then they start on a multiple of V in the image and in every patch. */
template <class T, int V> static bool pixel_packs(const Patches &p, const void *image, const void *col) {
  return p.P % V == 0 && p.stride % V == 0 && packs<T, V>(image, p.W) && packs<T, V>(col, p.P);
}

/* A block copies one patch of one image; its threads are V pixels x rows of the patch. Grid: patches x images. */
template <class T, int V>
static __global__ void __launch_bounds__(LANES *ROWS) gather_patches(Patches p, const T *x, T *col) {
  const int64_t down = blockIdx.x / (unsigned)p.across, across = blockIdx.x % (unsigned)p.across;
  for (int64_t b = blockIdx.y; b < p.B; b += gridDim.y) {
    const T *image = x + (b * p.C * p.H + down * p.stride) * p.W + across * p.stride;
    T *to = col + (b * gridDim.x + blockIdx.x) * p.C * p.P * p.P;
    for (int64_t c = 0; c < p.C; c++, image += p.H * p.W, to += p.P * p.P)
      for (int64_t i = threadIdx.y; i < p.P; i += blockDim.y)
        for (int64_t j = threadIdx.x * V; j < p.P; j += blockDim.x * V) {
          Wide<T> pixels[V];
          load<T, V>(pixels, image + i * p.W + j);
          store<T, V>(to + i * p.P + j, pixels);
        }
  }
}

template <class T>
static void patch_gather(CabStream *s, int64_t B, int64_t C, int64_t H, int64_t W, int64_t P, int64_t stride, const void *x,
                         void *col) {
  constexpr int V = 16 / sizeof(T);
  const Patches p = patches_of(B, C, H, W, P, stride);
  const int64_t each = p.down * p.across;
  if (B <= 0 || C <= 0 || P <= 0 || each == 0) return;
  const bool vector = pixel_packs<T, V>(p, x, col);
  const unsigned wide = at_most(vector ? P / V : P, LANES), high = at_most(P, LANES * ROWS / wide);
  (vector ? gather_patches<T, V> : gather_patches<T, 1>)<<<dim3((unsigned)each, at_most(B, 65535)), dim3(wide, high), 0,
                                                           s->stream>>>(p, (const T *)x, (T *)col);
}

/* A warp owns a row of pixels and adds, patch by patch in their order, what covers them. */
template <class T, int V>
static __global__ void __launch_bounds__(LANES *ROWS) scatter_patches(Patches p, const T *col, T *gx) {
  const int64_t row = (int64_t)blockIdx.x * ROWS + threadIdx.y, plane = row / p.H, b = plane / p.C, c = plane % p.C;
  if (row >= p.B * p.C * p.H) return;
  const int64_t y = row % p.H, top = y < p.P ? 0 : (y - p.P) / p.stride + 1;
  const int64_t bottom = y / p.stride < p.down ? y / p.stride : p.down - 1;
  for (int64_t x = threadIdx.x * V; x < p.W; x += LANES * V) {
    const int64_t left = x < p.P ? 0 : (x - p.P) / p.stride + 1;
    const int64_t right = x / p.stride < p.across ? x / p.stride : p.across - 1;
    Wide<T> sum[V] = {}, part[V];
    for (int64_t i = top; i <= bottom; i++)
      for (int64_t j = left; j <= right; j++) {
        const int64_t patch = (b * p.down + i) * p.across + j;
        load<T, V>(part, col + ((patch * p.C + c) * p.P + y - i * p.stride) * p.P + x - j * p.stride);
#pragma unroll
        for (int v = 0; v < V; v++) sum[v] += part[v];
      }
    store<T, V>(gx + row * p.W + x, sum);
  }
}

template <class T>
static void patch_scatter(CabStream *s, int64_t B, int64_t C, int64_t H, int64_t W, int64_t P, int64_t stride, const void *col,
                          void *gx) {
  constexpr int V = 16 / sizeof(T);
  const Patches p = patches_of(B, C, H, W, P, stride);
  if (B * C * H * W <= 0) return;
  (pixel_packs<T, V>(p, gx, col) ? scatter_patches<T, V> : scatter_patches<T, 1>)<<<
      blocks_for(B * C * H, ROWS), dim3(LANES, ROWS), 0, s->stream>>>(p, (const T *)col, (T *)gx);
}

EXPORT_REAL(embedding_forward) /* a table is a parameter, so never bf16: cast the rows */
EXPORT_REAL(embedding_backward)
EXPORT(patch_gather)
EXPORT(patch_scatter)
