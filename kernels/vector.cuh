/* vector.cuh - neighbouring elements moved together, and the SiLU of the kernels that stream over memory. */
#ifndef CAB_KERNELS_VECTOR_CUH
#define CAB_KERNELS_VECTOR_CUH
#include "cuda.cuh"

/* Largest power of two that divides n, up to 16: what one load or store can move. */
constexpr size_t pack_alignment(size_t n) { return (n & (~n + 1)) < 16 ? (n & (~n + 1)) : 16; }

/* V neighbouring elements. */
template <class T, int V> struct alignas(pack_alignment(sizeof(T) * V)) Pack { T v[V]; };

/* May `p`, the first of rows with stride ld, be read as packs? NULL may. */
template <class T, int V> static inline bool packs(const void *p, int64_t ld) {
  constexpr size_t align = alignof(Pack<T, V>);
  return (uintptr_t)p % align == 0 && (size_t)ld * sizeof(T) % align == 0;
}

template <class T, int V> __device__ __forceinline__ void load(Wide<T> (&to)[V], const T *from) {
  Pack<T, V> p = *(const Pack<T, V> *)from;
#pragma unroll
  for (int v = 0; v < V; v++) to[v] = wide_of(p.v[v]);
}
/* A plain store of N bytes to global memory. Spelled out, because nvcc would often write the elements of a pack one by one. */
template <int N> __device__ __forceinline__ void store_bytes(void *to, const void *from) {
  const size_t at = __cvta_generic_to_global(to);
  if constexpr (N == 16) {
    const uint4 p = *(const uint4 *)from;
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(at), "r"(p.x), "r"(p.y), "r"(p.z), "r"(p.w) : "memory");
  } else if constexpr (N == 8) {
    const uint2 p = *(const uint2 *)from;
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(at), "r"(p.x), "r"(p.y) : "memory");
  } else if constexpr (N == 4) {
    *(unsigned *)to = *(const unsigned *)from;
  } else {
    *(unsigned short *)to = *(const unsigned short *)from;
  }
}
template <class T, int V> __device__ __forceinline__ void store(T *to, const Wide<T> (&from)[V]) {
  constexpr int N = alignof(Pack<T, V>);
  Pack<T, V> p;
#pragma unroll
  for (int v = 0; v < V; v++) p.v[v] = narrow<T>(from[v]);
#pragma unroll
  for (int i = 0; i < (int)(sizeof p / N); i++) store_bytes<N>((char *)to + i * N, (const char *)&p + i * N);
}

/* 1 / (1 + e^-x); in f32 on the special function unit: the rounding of x log2 e costs |x| 1e-7, the two functions 2 and 1
 * ulp as documented. */
__device__ __forceinline__ float sigmoid(float x) {
  float e, r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(-1.44269504089f * x));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(1 + e));
  return r;
}
__device__ __forceinline__ double sigmoid(double x) { return 1 / (1 + exp(-x)); }
/* d/dx x sigmoid(x), given s = sigmoid(x) */
template <class W> __device__ __forceinline__ W silu_slope(W x, W s) { return s + x * s * (1 - s); }
#endif
