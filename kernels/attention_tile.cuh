/* attention_tile.cuh - the two products of blockwise attention on a warp's rows, in two ways with one interface:
 *   Fma: f32 on the ordinary cores;  Mma: bf16 or TF32 on the tensor cores, sums in f32.
 * Tiles in shared memory are rows of PAD >= P columns, zero beyond P, LD = PAD + 16 bytes apart, so that 8 rows fall on
 * different banks. A block has TILE_WARPS * ROWS rows. Those of a warp stand from base() on, within SPAN; a thread has R of
 * them, C scores and O outputs in each:
 *   scores(s, x, y, live)    s[r][c] = x_row(r) . y_col(c): the warp's rows of x against N rows of y
 *   products(o, s, y, live)  o[r][o] += sum over c of s[r][c] y_col(c)[out(o)]
 * Rows of y from `live` on count for nothing: scores may leave their s at 0, products takes their s to be 0. */
#ifndef CAB_KERNELS_ATTENTION_TILE_CUH
#define CAB_KERNELS_ATTENTION_TILE_CUH
#include "cuda.cuh"

enum { TILE_WARPS = 4, TILE_THREADS = 32 * TILE_WARPS };

/* The special function unit's 2^x: 2 ulp, results under 2^-126 are 0. */
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/* ---- staging: global memory to shared memory, asynchronously ----------------------------------- */

__device__ __forceinline__ unsigned shared_address(const void *p) { return (unsigned)__cvta_generic_to_shared(p); }
/* 16 bytes; zeros if not `live`, and nothing is read. */
__device__ __forceinline__ void copy16(void *to, const void *from, bool live) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(live ? 16 : 0)
               : "memory");
}
/* Ends a group of copies; all but the last PENDING groups of this thread have landed. */
__device__ __forceinline__ void copies_end() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING> __device__ __forceinline__ void copies_landed() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

/* to[i] = from[i] for i < live, zeros up to ROWS; `aligned` as in AttentionHeads. */
template <int ROWS, int PAD, class T>
__device__ __forceinline__ void stage(T *to, const T *from, int64_t ld, int live, int P, bool aligned) {
  constexpr int N = 16 / sizeof(T), LD = PAD + N, CHUNKS = PAD / N, STEP = TILE_THREADS / CHUNKS;
  static_assert(TILE_THREADS % CHUNKS == 0 && ROWS % STEP == 0, "a thread stays in its columns");
  const int r = threadIdx.x / CHUNKS, c = threadIdx.x % CHUNKS * N;
  to += r * LD + c;
  if (aligned) {
    const T *at = from + r * ld + c;
#pragma unroll
    for (int i = 0; i < ROWS; i += STEP) {
      const bool in = r + i < live && c < P;
      copy16(to + i * LD, in ? at + i * ld : from, in);
    }
  } else {
#pragma unroll 1
    for (int i = 0; i < ROWS; i += STEP)
#pragma unroll 1
      for (int e = 0; e < N; e++)
        to[i * LD + e] = r + i < live && c + e < P ? from[(r + i) * ld + c + e] : narrow<T>(0);
  }
}

/* ---- f32 on the ordinary cores ------------------------------------------------------------------ */

/* A warp is 4 x 8 threads: thread (ty, tx) has rows ty + STRIDE r, columns tx + 8 c, outputs in packs of VW. Neighbouring
 * lanes share ty and lanes 2 apart share tx: only so does a half warp read 16-byte words in one go. With STRIDE 4 a warp's
 * rows are adjacent, and it rests if all are past the end; with 4 * TILE_WARPS all warps share the last block's rows. */
template <int PAD_, int R_, int STRIDE> struct Fma {
  enum { R = R_, ROWS = 4 * R, SPAN = STRIDE * (R - 1) + 4, N = 32, C = N / 8 };
  enum { PAD = PAD_, LD = PAD + 4, O = PAD / 8, VW = 4 };
  enum { SHARE_LD = N + 8, SHARE = ROWS * SHARE_LD }; /* scores on their way to other lanes, in floats a warp */
  float *share;
  int tx, ty;
  __device__ __forceinline__ Fma(float *shares) {
    const int lane = threadIdx.x % 32;
    tx = (lane & 1) | (lane >> 1 & 6);
    ty = (lane >> 1 & 1) | (lane >> 3 & 2);
    share = shares + threadIdx.x / 32 * SHARE + ty * SHARE_LD;
  }
  static __device__ __forceinline__ int base() { return threadIdx.x / 32 * (STRIDE == 4 ? ROWS : 4); }
  __device__ __forceinline__ int row(int r) const { return ty + STRIDE * r; }
  __device__ __forceinline__ int col(int c) const { return tx + 8 * c; }
  __device__ __forceinline__ int out(int o) const { return (o / VW * 8 + tx) * VW + o % VW; }
  static __device__ __forceinline__ float row_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    x += __shfl_xor_sync(0xffffffffu, x, 4);
    return x + __shfl_xor_sync(0xffffffffu, x, 8);
  }
  static __device__ __forceinline__ float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 4));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 8));
  }

  /* The first `COLUMNS` of the C columns. */
  template <int COLUMNS> __device__ __forceinline__ void dot(float (&s)[R][C], const float *x, const float *y) const {
#pragma unroll 4
    for (int p = 0; p < PAD; p += 4) {
      float4 b[COLUMNS];
#pragma unroll
      for (int c = 0; c < COLUMNS; c++) b[c] = *(const float4 *)(y + col(c) * LD + p);
#pragma unroll
      for (int r = 0; r < R; r++) {
        const float4 a = *(const float4 *)(x + row(r) * LD + p);
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
          s[r][c] = fmaf(a.x, b[c].x, s[r][c]);
          s[r][c] = fmaf(a.y, b[c].y, s[r][c]);
          s[r][c] = fmaf(a.z, b[c].z, s[r][c]);
          s[r][c] = fmaf(a.w, b[c].w, s[r][c]);
        }
      }
    }
  }
  __device__ __forceinline__ void scores(float (&s)[R][C], const float *x, const float *y, int live) const {
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
      for (int c = 0; c < C; c++) s[r][c] = 0;
    if (live > N / 2) dot<C>(s, x, y);
    else if (live > N / 4) dot<C / 2>(s, x, y);
    else dot<C / 4>(s, x, y);
  }

  __device__ __forceinline__ void products(float (&o)[R][O], const float (&s)[R][C], const float *y, int live) const {
    __syncwarp();
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
      for (int c = 0; c < C; c++) share[4 * r * SHARE_LD + col(c)] = s[r][c];
    __syncwarp();
#pragma unroll 1
    for (int j = 0; j < live; j += 4) {
      float a[R][4];
#pragma unroll
      for (int r = 0; r < R; r++) *(float4 *)a[r] = *(const float4 *)(share + 4 * r * SHARE_LD + j);
#pragma unroll
      for (int e = 0; e < 4; e++) {
        float b[O];
#pragma unroll
        for (int i = 0; i < O; i += VW) *(float4 *)(b + i) = *(const float4 *)(y + (j + e) * LD + out(i));
#pragma unroll
        for (int r = 0; r < R; r++)
#pragma unroll
          for (int i = 0; i < O; i++) o[r][i] = fmaf(a[r][e], b[i], o[r][i]);
      }
    }
  }
};

/* ---- bf16 or TF32 on the tensor cores ----------------------------------------------------------- */

/* Four 8 x 16-byte matrices; lane i gives the address of row i%8 of matrix i/8. */
__device__ __forceinline__ void load_matrices(unsigned (&r)[4], const void *p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(p))
               : "memory");
}
__device__ __forceinline__ void load_transposed(unsigned (&r)[4], const void *p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(p))
               : "memory");
}
__device__ __forceinline__ unsigned tf32(float x) {
  unsigned y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ unsigned pair(float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return *(const unsigned *)&both;
}

/* d [16,8] += a b for a [16,STEP], b [STEP,8]; STEP is 32 bytes of T. */
__device__ __forceinline__ void multiply(bf16, float *d, float *e, const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(e[0]), "+f"(e[1])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void multiply(float, float *d, float *e, const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(e[0]), "+f"(e[1])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* The lanes of a warp are 8 x 4, (g, t): lane has rows g and g + 8, columns 8 n + 2 t and the next. */
template <class T, int PAD_, int N_> struct Mma {
  enum { R = 2, ROWS = 16, SPAN = 16, N = N_, C = N / 4, SHARE = 0 };
  enum { PAD = PAD_, LD = PAD + 16 / sizeof(T), O = PAD / 4, VW = 2 };
  enum { HALF = 16 / sizeof(T), STEP = 2 * HALF };
  int lane;
  __device__ __forceinline__ Mma(float *) : lane(threadIdx.x % 32) {}
  static __device__ __forceinline__ int base() { return threadIdx.x / 32 * ROWS; }
  __device__ __forceinline__ int row(int r) const { return lane / 4 + 8 * r; }
  __device__ __forceinline__ int col(int c) const { return c / 2 * 8 + lane % 4 * 2 + c % 2; }
  __device__ __forceinline__ int out(int o) const { return col(o); }
  static __device__ __forceinline__ float row_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
  }
  static __device__ __forceinline__ float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
  }
  /* f32 operands as they lie in memory are rounded to TF32. */
  static __device__ __forceinline__ void round(unsigned (&r)[4]) {
    if (sizeof(T) == 4)
#pragma unroll
      for (int i = 0; i < 4; i++) r[i] = tf32(__uint_as_float(r[i]));
  }

  __device__ __forceinline__ void scores(float (&s)[R][C], const T *x, const T *y, int live) const {
    const T *a_at = x + lane % 16 * LD + lane / 16 * HALF;
    const T *b_at = y + (lane / 16 * 8 + lane % 8) * LD + lane / 8 % 2 * HALF;
#pragma unroll
    for (int c = 0; c < C; c++) s[0][c] = s[1][c] = 0;
#pragma unroll
    for (int p = 0; p < PAD; p += STEP) {
      unsigned a[4], b[4];
      load_matrices(a, a_at + p);
      round(a);
#pragma unroll
      for (int n = 0; n < N; n += 16) {
        if (n >= live) break;
        load_matrices(b, b_at + n * LD + p);
        round(b);
        multiply(T(), s[0] + n / 4, s[1] + n / 4, a, b[0], b[1]);
        multiply(T(), s[0] + n / 4 + 2, s[1] + n / 4 + 2, a, b[2], b[3]);
      }
    }
  }

  /* The scores are the left operand as they are; TF32 takes column t from 2 t and t + 4 from 2 t + 1. */
  __device__ __forceinline__ void products(float (&o)[R][O], const float (&s)[R][C], const bf16 *y, int live) const {
    const bf16 *b_at = y + (lane / 8 % 2 * 8 + lane % 8) * LD + lane / 16 * 8;
#pragma unroll
    for (int j = 0; j < N; j += 16) {
      if (j >= live) break;
      const int c = j / 4;
      const unsigned a[4] = {pair(s[0][c], s[0][c + 1]), pair(s[1][c], s[1][c + 1]), pair(s[0][c + 2], s[0][c + 3]),
                             pair(s[1][c + 2], s[1][c + 3])};
#pragma unroll
      for (int n = 0; n < PAD; n += 16) {
        unsigned b[4];
        load_transposed(b, b_at + j * LD + n);
        multiply(T(), o[0] + n / 4, o[1] + n / 4, a, b[0], b[1]);
        multiply(T(), o[0] + n / 4 + 2, o[1] + n / 4 + 2, a, b[2], b[3]);
      }
    }
  }
  __device__ __forceinline__ void products(float (&o)[R][O], const float (&s)[R][C], const float *y, int live) const {
    const float *b_at = y + lane % 4 * 2 * LD + lane / 4;
#pragma unroll
    for (int j = 0; j < N; j += 8) {
      if (j >= live) break;
      const int c = j / 4;
      const unsigned a[4] = {tf32(s[0][c]), tf32(s[1][c]), tf32(s[0][c + 1]), tf32(s[1][c + 1])};
#pragma unroll
      for (int n = 0; n < PAD; n += 8)
        multiply(T(), o[0] + n / 4, o[1] + n / 4, a, tf32(b_at[j * LD + n]), tf32(b_at[(j + 1) * LD + n]));
    }
  }
};
#endif
