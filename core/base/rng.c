/* rng.c - scalar draws; the fills of kernels/random.c give the same numbers. */
#include "base.h"
#include "../../kernels/philox.h"

void cab_philox(CabRng key, uint64_t counter, uint32_t out[4]) { philox_block(key.seed, key.stream, counter, out); }

double cab_uniform(CabRng key, uint64_t index) {
  uint32_t w[4];
  philox_block(key.seed, key.stream, index / 4, w);
  return philox_unit(w[index % 4]);
}

double cab_normal(CabRng key, uint64_t index) { return philox_normal(key.seed, key.stream, index, 0); }

void cab_normals(CabRng key, uint64_t first, double *out, size_t count) {
  for (size_t i = 0; i < count;) {
    double pair[2];
    uint64_t index = first + i;
    philox_normal_pair(key.seed, key.stream, index / 2, 0, pair);
    if (index % 2 == 0) out[i++] = pair[0];
    if (i < count) out[i++] = pair[1];
  }
}

uint64_t cab_below(CabRng key, uint64_t index, uint64_t n) {
  uint32_t w[4];
  philox_block(key.seed, key.stream, index, w);
  uint64_t bits = (uint64_t)w[0] << 32 | w[1];
  return (uint64_t)((unsigned __int128)bits * n >> 64);
}

void cab_permutation(CabRng key, uint32_t *order, uint32_t count) {
  for (uint32_t i = 0; i < count; i++) order[i] = i;
  for (uint32_t i = count; i > 1; i--) {
    uint32_t j = (uint32_t)cab_below(key, i - 1, i), swapped = order[i - 1];
    order[i - 1] = order[j];
    order[j] = swapped;
  }
}

uint64_t cab_hash_name(const char *name) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const unsigned char *p = (const unsigned char *)name; *p; p++) hash = (hash ^ *p) * 0x100000001b3u;
  return hash;
}
