/* bad.cu - kernels that break on purpose. faults.lua loads them into the program (package.loadlib): their errors arrive in the
 * context that the program's device shares, as those of a broken kernel of its own would. */
#undef NDEBUG
#include <cassert>

__global__ static void write_nowhere(int *p) { *p = 1; }
__global__ static void fail_assertion(int x) { assert(x == 0); }

/* Lua functions without arguments and results. */
extern "C" int bad_address(void *) {
  write_nowhere<<<1, 1>>>((int *)16);
  return 0;
}
extern "C" int bad_assertion(void *) {
  fail_assertion<<<1, 1>>>(1);
  return 0;
}
