/* blas.c - makes OpenBLAS use this processor.
 * OpenBLAS 0.3.21 takes processors newer than itself for a "Prescott" (SSE3): 79 instead of 392 GFLOP/s for an f32
 * product of 1024^3 on two Sapphire Rapids cores. It reads OPENBLAS_CORETYPE only while it is being loaded, so the
 * program sets the variable and starts itself once more. A value set by the user is left alone. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base.h"

char *openblas_get_corename(void);

void cab_tune_blas(char **argv) {
  static const char *const old[] = {"Prescott", "Core2", "Penryn", "Dunnington", "Nehalem", "Sandybridge", "Unknown"};
  if (getenv("OPENBLAS_CORETYPE")) return;
  bool outdated = false;
  for (size_t i = 0; i < sizeof old / sizeof *old; i++) outdated |= !strcasecmp(openblas_get_corename(), old[i]);
  if (!outdated || !__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return;
  bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  setenv("OPENBLAS_CORETYPE", wide ? "SkylakeX" : "Haswell", 1);
  execv("/proc/self/exe", argv); /* on failure: slower, as right */
}
