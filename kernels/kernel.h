/* kernel.h - the one calling convention of all kernels: pointers, sizes, a stream. No tensors, no Lua,
 * no allocation, no failure. Each op has NAME.h (TWIN declarations and the equation), NAME.c, NAME.cu.
 *
 * A CPU file is compiled once for each (real, instruction set): -DREAL=f32|f64 -DISA=v2|v3|v4; `K(name)` is the
 * symbol of this variant. The device layer picks the variant at run time (cab_twin). `real` is the element type of the
 * call; `wide` that of parameters, statistics and states: f32 where real is bf16, else the same. Outside CPU kernel files
 * both are void, so op rows pass plain data pointers and the signature is still checked.
 *
 * A CUDA file holds templates over the element type; EXPORT(name) at its end publishes `name_cuda`, which the device
 * layer finds in libcab_cuda.so (cuda.cuh). */
#ifndef CAB_KERNEL_H
#define CAB_KERNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct CabStream CabStream; /* opaque: a CUDA stream; NULL on the CPU */

#define CAB_CAT_(a, b) a##b
#define CAB_CAT(a, b) CAB_CAT_(a, b)
#define CAB_CAT4_(a, b, c, d) a##b##_##c##_##d
#define CAB_CAT4(a, b, c, d) CAB_CAT4_(a, b, c, d)

#if defined(REAL) /* inside a CPU kernel file */
#define REAL_f32 float
#define REAL_f64 double
typedef CAB_CAT(REAL_, REAL) real;
typedef real wide;
#define K(name) CAB_CAT4(name, _cpu, REAL, ISA)
#else
typedef void real, wide;
#endif

/* Declares the type of a kernel and all its CPU variants; the same type checks the CUDA twins in NAME.cu. */
#ifdef __CUDACC__
#define TWIN(name, ...) typedef void name##_fn(CabStream *, __VA_ARGS__)
#else
#define TWIN(name, ...)                                                                    \
  typedef void name##_fn(CabStream *, __VA_ARGS__);                                        \
  name##_fn name##_cpu_f32_v2, name##_cpu_f32_v3, name##_cpu_f32_v4, name##_cpu_f64_v2,    \
      name##_cpu_f64_v3, name##_cpu_f64_v4
#endif

#endif
