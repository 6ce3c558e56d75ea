/* philox.h - Philox 4x32-10 (Salmon et al. 2011) and the draws made from it, for C and CUDA alike.
 *
 * Counter words: (counter low, counter high, stream low, stream high); key words: (seed low, seed high). Draw i of a
 * (seed, stream) is a pure function of i: uniforms take word i % 4 of block i / 4, normals half of block i / 2. */
#ifndef CAB_KERNELS_PHILOX_H
#define CAB_KERNELS_PHILOX_H
#include <math.h>
#include <stdint.h>

#ifdef __CUDACC__
#define PHILOX_FN static inline __host__ __device__
#else
#define PHILOX_FN static inline
#endif

PHILOX_FN void philox_block(uint64_t seed, uint64_t stream, uint64_t counter, uint32_t out[4]) {
  uint32_t x0 = (uint32_t)counter, x1 = (uint32_t)(counter >> 32);
  uint32_t x2 = (uint32_t)stream, x3 = (uint32_t)(stream >> 32);
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
  for (int round = 0; round < 10; round++) {
    uint64_t p0 = (uint64_t)0xD2511F53u * x0, p1 = (uint64_t)0xCD9E8D57u * x2;
    x0 = (uint32_t)(p1 >> 32) ^ x1 ^ k0;
    x1 = (uint32_t)p1;
    x2 = (uint32_t)(p0 >> 32) ^ x3 ^ k1;
    x3 = (uint32_t)p0;
    k0 += 0x9E3779B9u; /* golden ratio */
    k1 += 0xBB67AE85u; /* sqrt(3) - 1 */
  }
  out[0] = x0, out[1] = x1, out[2] = x2, out[3] = x3;
}

/* A word as a number in [0, 1). */
PHILOX_FN double philox_unit(uint32_t word) { return word * 0x1p-32; }

/* Box-Muller on block j: normal 2j is the cosine half, 2j+1 the sine half. `attempt` < 2^16 picks a redraw from the
 * top of the counter, where no first draw reaches. */
PHILOX_FN void philox_normal_pair(uint64_t seed, uint64_t stream, uint64_t block, uint32_t attempt, double z[2]) {
  uint32_t w[4];
  philox_block(seed, stream, block + ((uint64_t)attempt << 48), w);
  /* u in (0, 1), 52 bits, never 0; the angle in [0, 2 pi). */
  double u = ((double)(((uint64_t)w[0] << 32 | w[1]) >> 12) + 0.5) * 0x1p-52;
  double angle = 6.283185307179586476925 * ((double)(((uint64_t)w[2] << 32 | w[3]) >> 11) * 0x1p-53);
  double radius = sqrt(-2 * log(u));
  z[0] = radius * cos(angle);
  z[1] = radius * sin(angle);
}
PHILOX_FN double philox_normal(uint64_t seed, uint64_t stream, uint64_t index, uint32_t attempt) {
  double z[2];
  philox_normal_pair(seed, stream, index / 2, attempt, z);
  return z[index & 1];
}

#endif
