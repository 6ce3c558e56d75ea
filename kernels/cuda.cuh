/* cuda.cuh - what the CUDA files share: element types, launches, reductions, scratch memory.
 *
 * A twin is a host function template<class T> over the element type (float, double, bf16) with the signature of its TWIN
 * line; it launches kernels on s->stream and returns. It never synchronises, never allocates but through Scratch, and
 * reports nothing: the device layer asks for launch errors after each twin. Arithmetic is done in Wide<T>. Reductions have
 * a fixed order and use no atomics on reals, so the same call gives the same bits. Sizes may be 0: launch nothing then. */
#ifndef CAB_KERNELS_CUDA_CUH
#define CAB_KERNELS_CUDA_CUH
#include <cublasLt.h>
#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "kernel.h"

typedef __nv_bfloat16 bf16;

enum { PRECISION_F32, PRECISION_TF32, PRECISION_BF16 }; /* of f32 matrix products; bf16 ones are always bf16 */

struct CabStream {
  cudaStream_t stream;
  cublasHandle_t blas; /* bound to stream, host pointer mode */
  cublasLtHandle_t lt;
  void *workspace;     /* for cuBLAS */
  size_t workspace_bytes;
  int precision, multiprocessors;
  struct CabDevice *device;
  void *(*allocate)(struct CabDevice *, size_t); /* NULL: the error slot is filled */
  void (*release)(struct CabDevice *, void *, size_t);
  int failed;          /* a twin could not get scratch memory or a library call failed: the device layer reports it */
  const char *failed_call; /* "cublasLtMatmul", for that report */
  int failed_code;
};

/* Parameters, statistics and states: f32 where the elements are bf16. */
template <class T> struct WideOf { typedef float type; };
template <> struct WideOf<double> { typedef double type; };
template <class T> using Wide = typename WideOf<T>::type;

/* Conversions between an element and its wide value: wide(x), narrow<T>(w). */
__device__ __forceinline__ float wide_of(float x) { return x; }
__device__ __forceinline__ double wide_of(double x) { return x; }
__device__ __forceinline__ float wide_of(bf16 x) { return __bfloat162float(x); }
template <class T> __device__ __forceinline__ T narrow(Wide<T> x) { return x; }
template <> __device__ __forceinline__ bf16 narrow<bf16>(float x) { return __float2bfloat16(x); }

/* Memory of the device; NULL for 0 bytes, or out of memory: then s->failed is set, launch nothing. */
static inline void *take_scratch(CabStream *s, size_t bytes) {
  void *p = bytes ? s->allocate(s->device, bytes) : nullptr;
  if (bytes && !p) s->failed = 1, s->failed_call = "scratch memory", s->failed_code = 0;
  return p;
}

/* Memory for the time of one twin: given back when it returns, which is safe because one stream runs in order. */
struct Scratch {
  CabStream *s;
  size_t bytes;
  void *data; /* of take_scratch */
  Scratch(CabStream *stream, size_t size) : s(stream), bytes(size), data(take_scratch(stream, size)) {}
  ~Scratch() { if (data) s->release(s->device, data, bytes); }
  Scratch(const Scratch &) = delete;
};

static inline unsigned blocks_for(int64_t n, int64_t per_block) { return (unsigned)((n + per_block - 1) / per_block); }

/* Sum and maximum over a warp; every lane has the result. */
template <class W> __device__ __forceinline__ W warp_sum(W x) {
#pragma unroll
  for (int m = 16; m; m >>= 1) x += __shfl_xor_sync(0xffffffffu, x, m);
  return x;
}
template <class W> __device__ __forceinline__ W warp_max(W x) {
#pragma unroll
  for (int m = 16; m; m >>= 1) {
    W y = __shfl_xor_sync(0xffffffffu, x, m);
    x = x > y ? x : y;
  }
  return x;
}
/* Sum over a block of up to 1024 threads (a multiple of 32); every thread has the result. Call by all threads. */
template <class W> __device__ __forceinline__ W block_sum(W x) {
  __shared__ W part[32];
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = (blockDim.x + 31) >> 5;
  x = warp_sum(x);
  __syncthreads(); /* part may still be read from the last call */
  if (!lane) part[warp] = x;
  __syncthreads();
  x = warp_sum(lane < warps ? part[lane] : W(0));
  return x;
}

/* At the end of NAME.cu: publishes the instantiations, checked against the TWIN line. */
#define EXPORT(name)                                                              \
  extern "C" {                                                                    \
  extern name##_fn *const name##_cuda[3];                                         \
  name##_fn *const name##_cuda[3] = {name<float>, name<double>, name<bf16>};      \
  }
#define EXPORT_REAL(name) /* no bf16 */                                           \
  extern "C" {                                                                    \
  extern name##_fn *const name##_cuda[3];                                         \
  name##_fn *const name##_cuda[3] = {name<float>, name<double>, nullptr};         \
  }
#endif
