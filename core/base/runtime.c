/* runtime.c - settings that OpenBLAS and libgomp read only while they are being loaded: the program sets the missing ones
 * and starts itself once more. What the user has set is left alone.
 *
 * OPENBLAS_CORETYPE: OpenBLAS 0.3.21 takes processors newer than itself for older ones. A "Prescott" (SSE3) had 79 instead
 * of 392 GFLOP/s for an f32 product of 1024^3 on two Sapphire Rapids cores; on an EPYC with AVX-512 that it takes for a
 * "Haswell" (AVX2) the products of a Vim-Tiny step took 1.09 s instead of 0.50 s on one core.
 * GOMP_SPINCOUNT: by default threads spin about a millisecond at each barrier; with one other busy program on the machine
 * that was 60 % of a training step's time. Short spins keep the speed of an idle machine. */
#include <stdlib.h>
#include <strings.h>
#include <unistd.h>
#include "base.h"

char *openblas_get_corename(void);

int cab_cpu_level(void) {
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl"))
    return 4;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? 3 : 2;
}

/* The best of OpenBLAS's cores for this processor, NULL if it chose one as good. */
static const char *better_core(void) {
  static const char *const sse[] = {"Prescott", "Core2", "Penryn", "Dunnington", "Nehalem", "Sandybridge", "Unknown"};
  static const char *const avx512[] = {"SkylakeX", "Cooperlake", "Sapphirerapids"};
  const char *chosen = openblas_get_corename();
  int level = cab_cpu_level();
  if (level == 4) {
    for (size_t i = 0; i < sizeof avx512 / sizeof *avx512; i++)
      if (!strcasecmp(chosen, avx512[i])) return NULL;
    return "SkylakeX";
  }
  for (size_t i = 0; level == 3 && i < sizeof sse / sizeof *sse; i++)
    if (!strcasecmp(chosen, sse[i])) return "Haswell";
  return NULL;
}

void cab_tune_runtime(char **argv) {
  const char *core = getenv("OPENBLAS_CORETYPE") ? NULL : better_core();
  bool spins = !getenv("GOMP_SPINCOUNT") && !getenv("OMP_WAIT_POLICY");
  if (!core && !spins) return;
  if (core) setenv("OPENBLAS_CORETYPE", core, 1);
  if (spins) setenv("GOMP_SPINCOUNT", "10000", 1);
  execv("/proc/self/exe", argv); /* on failure: slower, but as right */
}
