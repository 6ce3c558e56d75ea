/* thread.c - the number of compute threads, and the clock. */
#include <omp.h>
#include <stdatomic.h>
#include <time.h>

#include "base.h"

/* OpenBLAS has no header of its own for these on every system. */
extern void openblas_set_num_threads(int count);

/* OpenMP keeps its number for each thread; this one is the program's. 0: nobody has set it yet. */
static atomic_int chosen;

int cab_threads(void) {
  int count = atomic_load(&chosen);
  return count ? count : omp_get_max_threads();
}

void cab_set_threads(int count) {
  count = count < 1 ? 1 : count > 256 ? 256 : count;
  atomic_store(&chosen, count);
  omp_set_num_threads(count);
  openblas_set_num_threads(count);
}

double cab_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
