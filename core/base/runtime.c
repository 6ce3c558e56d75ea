/* runtime.c - settings that OpenBLAS and libgomp read only while they are being loaded: the program sets the missing ones
 * and starts itself once more. What the user has set is left alone.
 *
 * OPENBLAS_CORETYPE: OpenBLAS 0.3.21 takes processors newer than itself for a "Prescott" (SSE3): 79 instead of 392 GFLOP/s
 * for an f32 product of 1024^3 on two Sapphire Rapids cores.
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

static const char *better_core(void) {
  static const char *const old[] = {"Prescott", "Core2", "Penryn", "Dunnington", "Nehalem", "Sandybridge", "Unknown"};
  int level = cab_cpu_level();
  if (level < 3) return NULL;
  for (size_t i = 0; i < sizeof old / sizeof *old; i++)
    if (!strcasecmp(openblas_get_corename(), old[i])) return level == 4 ? "SkylakeX" : "Haswell";
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
