/* bridge_mma.cuh - products of tensor cores on matrices in shared memory, for bridge_tile.cuh.
 *
 * Factors are bf16, or TF32 (f32 rounded to 11 bits), or, for f32 products, split in two TF32 numbers: ab = a_hi b_hi + a_hi b_lo +
 * a_lo b_hi, which leaves out 2^-24 of it. Sums are f32. */
#ifndef CAB_KERNELS_BRIDGE_MMA_CUH
#define CAB_KERNELS_BRIDGE_MMA_CUH
#include "vector.cuh"

namespace bridge_tile {

/* ---- matrices in shared memory ---------------------------------------------------------------- */

/* Rows of 16-byte chunks, permuted so that neither 8 rows of one chunk nor, in f32, 4 rows of 8 columns meet in a bank. */
template <class E, int COLUMNS> struct Swizzled {
  typedef E Element;
  static constexpr int ROW = COLUMNS * (int)sizeof(E), PER = 16 / (int)sizeof(E);
  static __device__ __forceinline__ uint32_t at(int row, int chunk) {
    const int fold = sizeof(E) == 4 ? (row & 3) << 1 | (row >> 2 & 1) : row & 7;
    return (uint32_t)(row * ROW + ((chunk ^ fold) << 4));
  }
};
/* Rows that are a chunk longer than their 16 columns. */
template <class E> struct Padded {
  typedef E Element;
  static constexpr int ROW = 16 * (int)sizeof(E) + 16, PER = 16 / (int)sizeof(E);
  static __device__ __forceinline__ uint32_t at(int row, int chunk) { return (uint32_t)(row * ROW + (chunk << 4)); }
};
template <class M> static __device__ __forceinline__ uint32_t element_at(int row, int column) {
  return M::at(row, column / M::PER) + (uint32_t)(column % M::PER) * (uint32_t)sizeof(typename M::Element);
}

static __device__ __forceinline__ uint32_t tf32(float x) {
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return y;
}
/* A factor as it lies in shared memory. SPLIT: whole, taken apart when it is used. */
template <class E, bool SPLIT> static __device__ __forceinline__ E factor_of(float x) {
  if constexpr (sizeof(E) == 2) return __float2bfloat16(x);
  else return SPLIT ? x : __uint_as_float(tf32(x));
}
/* Columns c, c + 1 with c even. */
template <class M, bool SPLIT> static __device__ __forceinline__ void put_pair(char *room, int row, int c, float a, float b) {
  typedef typename M::Element E;
  Pack<E, 2> p = {factor_of<E, SPLIT>(a), factor_of<E, SPLIT>(b)};
  *(Pack<E, 2> *)(room + element_at<M>(row, c)) = p;
}
template <class M> static __device__ __forceinline__ float2 get_pair(const char *room, int row, int c) {
  Pack<typename M::Element, 2> p = *(const Pack<typename M::Element, 2> *)(room + element_at<M>(row, c));
  return make_float2(wide_of(p.v[0]), wide_of(p.v[1]));
}

/* ---- fragments -------------------------------------------------------------------------------- */

static __device__ __forceinline__ void ldmatrix(uint32_t (&r)[4], uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at));
}
static __device__ __forceinline__ void ldmatrix_trans(uint32_t (&r)[4], uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at));
}
template <class M> static __device__ __forceinline__ uint32_t word(uint32_t base, int row, int column) {
  uint32_t x;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(x) : "r"(base + element_at<M>(row, column)));
  return x;
}

/* A step of a product is 2 chunks deep: 16 bf16 or 8 f32. `a` is a fragment of 16 rows, `b` are two of 8 columns each.
 * The matrix that lies in M is [rows, depth] (rows_*) or [depth, rows] (columns_*). */
template <class M> static __device__ __forceinline__ void rows_as_a(uint32_t (&a)[4], uint32_t base, int row, int k, int lane) {
  ldmatrix(a, base + M::at(row + (lane & 15), 2 * k + (lane >> 4)));
}
template <class M> static __device__ __forceinline__ void rows_as_b(uint32_t (&b)[4], uint32_t base, int row, int k, int lane) {
  ldmatrix(b, base + M::at(row + (lane & 7) + (lane >> 4 << 3), 2 * k + (lane >> 3 & 1)));
}
template <class M> static __device__ __forceinline__ void columns_as_a(uint32_t (&a)[4], uint32_t base, int column, int k, int lane) {
  if constexpr (sizeof(typename M::Element) == 2) {
    ldmatrix_trans(a, base + M::at(16 * k + (lane & 7) + (lane >> 4 << 3), column / 8 + (lane >> 3 & 1)));
  } else {
    const int row = 8 * k + (lane & 3), c = column + (lane >> 2);
    a[0] = word<M>(base, row, c), a[1] = word<M>(base, row, c + 8);
    a[2] = word<M>(base, row + 4, c), a[3] = word<M>(base, row + 4, c + 8);
  }
}
template <class M> static __device__ __forceinline__ void columns_as_b(uint32_t (&b)[4], uint32_t base, int column, int k, int lane) {
  if constexpr (sizeof(typename M::Element) == 2) {
    ldmatrix_trans(b, base + M::at(16 * k + (lane & 15), column / 8 + (lane >> 4)));
  } else {
    const int row = 8 * k + (lane & 3), c = column + (lane >> 2);
    b[0] = word<M>(base, row, c), b[1] = word<M>(base, row + 4, c);
    b[2] = word<M>(base, row, c + 8), b[3] = word<M>(base, row + 4, c + 8);
  }
}

template <class E> static __device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (sizeof(E) == 2)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* x becomes its leading TF32 number, low the next one. */
static __device__ __forceinline__ void split(uint32_t (&x)[4], uint32_t (&low)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float whole = __uint_as_float(x[i]);
    x[i] = tf32(whole);
    low[i] = tf32(whole - __uint_as_float(x[i]));
  }
}

/* c += A B of a warp: M fragments of 16 rows by N pairs of 8 columns, STEPS deep. Of a fragment a thread has c[0], c[1] in
 * row lane / 4 and columns 2 (lane % 4) and the next, c[2], c[3] 8 rows below. */
template <class E, bool SPLIT, int STEPS, int M, int N, class LoadA, class LoadB>
static __device__ __forceinline__ void product(float (&c)[M][2 * N][4], LoadA load_a, LoadB load_b) {
#pragma unroll 2
  for (int k = 0; k < STEPS; k++) {
    uint32_t a[M][4], b[N][4];
#pragma unroll
    for (int m = 0; m < M; m++) load_a(a[m], m, k);
#pragma unroll
    for (int n = 0; n < N; n++) load_b(b[n], n, k);
    uint32_t a_low[SPLIT ? M : 1][4], b_low[4];
#pragma unroll
    for (int m = 0; SPLIT && m < M; m++) split(a[m], a_low[SPLIT ? m : 0]);
#pragma unroll
    for (int n = 0; n < N; n++) {
      if (SPLIT) split(b[n], b_low);
#pragma unroll
      for (int i = 0; i < 2; i++)
#pragma unroll
        for (int m = 0; m < M; m++) {
          if (SPLIT) mma<E>(c[m][2 * n + i], a_low[SPLIT ? m : 0], b[n][2 * i], b[n][2 * i + 1]);
          if (SPLIT) mma<E>(c[m][2 * n + i], a[m], b_low[2 * i], b_low[2 * i + 1]);
          mma<E>(c[m][2 * n + i], a[m], b[n][2 * i], b[n][2 * i + 1]);
        }
    }
  }
}

} // namespace bridge_tile
#endif
