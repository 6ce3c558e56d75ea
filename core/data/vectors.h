/* vectors.h - loops that are compiled three times, for AVX-512, AVX2 and neither; the loader picks at start. No fused multiply-add:
 * the variants give the same bits. */
#ifndef CAB_VECTORS_H
#define CAB_VECTORS_H

#if defined(__x86_64__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define CAB_VECTORS __attribute__((optimize("O3", "fp-contract=off"), target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CAB_VECTORS
#endif

#endif
