/* device.c - the CPU device: a caching allocator and the kernel variants of the instruction set at hand. */
#include <stdlib.h>
#include <string.h>

#include "internal.h"

/* ---- memory: blocks of a few sizes, kept in lists when released ----------------------------------------------- */

enum { ALIGNMENT = 64, CLASSES = 64 * 4 };

/* Classes are 2^k (1 + j/4), j = 0..3, from 64 bytes: at most a quarter is lost. 0 if there is no such size. */
static size_t round_to_class(size_t bytes, int *class) {
  if (bytes > PTRDIFF_MAX / 2) return 0;
  if (bytes < ALIGNMENT) bytes = ALIGNMENT;
  int k = 63 - __builtin_clzll(bytes);
  size_t quarter = (size_t)1 << (k - 2), j = (bytes - ((size_t)1 << k) + quarter - 1) / quarter;
  *class = 4 * k + (int)j; /* j = 4 is the next power's j = 0 */
  size_t size = ((size_t)1 << k) + j * quarter;
  return (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

typedef struct Block {
  struct Block *next;
  size_t size;
} Block;
static Block *cache[CLASSES];

static void *fresh_block(CabDevice *device, size_t size) {
  if (cab_fault("device_alloc")) return NULL;
  void *p = aligned_alloc(ALIGNMENT, size);
  if (p || !device->cached) return p;
  cab_device_trim(device);
  return aligned_alloc(ALIGNMENT, size);
}

static void *cpu_alloc(CabDevice *device, size_t bytes) {
  if (bytes == 0) return NULL;
  int class = 0;
  size_t size = round_to_class(bytes, &class);
  void *p = NULL;
  if (size && cache[class]) {
    p = cache[class];
    cache[class] = cache[class]->next;
    device->cached -= size;
  } else if (size) {
    p = fresh_block(device, size);
  }
  if (!p) return cab_fail(CAB_E_MEMORY, "out of memory on %s: a tensor of %zu bytes, %llu bytes live", device->name, bytes,
                          (unsigned long long)device->live), NULL;
  device->live += size;
  if (device->live > device->peak) device->peak = device->live;
  return p;
}

static void cpu_release(CabDevice *device, void *p, size_t bytes) {
  if (!p) return;
  int class = 0;
  size_t size = round_to_class(bytes, &class);
  device->live -= size;
#ifdef CAB_NO_CACHE
  free(p);
#else
  Block *block = p;
  block->size = size;
  block->next = cache[class];
  cache[class] = block;
  device->cached += size;
#endif
}

void cab_device_trim(CabDevice *device) {
  if (device != cab_cpu()) return;
  for (int i = 0; i < CLASSES; i++)
    while (cache[i]) {
      Block *block = cache[i];
      cache[i] = block->next;
      device->cached -= block->size;
      free(block);
    }
}

static CabStatus cpu_copy(CabDevice *device, void *dst, const void *src, size_t bytes, int kind) {
  (void)device, (void)kind;
  if (bytes) memmove(dst, src, bytes);
  return CAB_OK;
}

static CabStatus cpu_sync(CabDevice *device) { return (void)device, CAB_OK; }

/* ---- kernels -------------------------------------------------------------------------------------------------- */

enum { V2, V3, V4, NO_ISA };
static const char *const isa_names[] = {"v2", "v3", "v4"};

/* build/twins.c, made from the TWIN lines of kernels/; a row without a name ends it. */
extern const struct {
  const char *name;
  void *variant[2][3];
} cab_twins[];

static int best_isa(void) { return cab_cpu_level() - 2 + V2; }

static int chosen_isa(void) {
  static int isa = -1;
  if (isa >= 0) return isa;
  int best = best_isa();
  const char *wish = getenv("CAB_ISA");
  if (!wish || !*wish) return isa = best;
  for (int i = V2; i <= best; i++)
    if (!strcmp(wish, isa_names[i])) return isa = i;
  return isa = NO_ISA;
}

const char *cab_cpu_isa(void) {
  int isa = chosen_isa();
  return isa_names[isa == NO_ISA ? best_isa() : isa];
}

static void *cpu_kernel(CabDevice *device, const char *name, CabDtype dtype) {
  (void)device;
  int isa = chosen_isa();
  if (isa == NO_ISA || (dtype != CAB_F32 && dtype != CAB_F64)) return NULL;
  for (int i = 0; cab_twins[i].name; i++)
    if (!strcmp(cab_twins[i].name, name)) return cab_twins[i].variant[dtype == CAB_F64][isa];
  return NULL;
}

void *cab_twin(CabDevice *device, CabDtype dtype, const char *name) {
  void *kernel = device->kernel(device, name, dtype);
  if (!kernel && device == cab_cpu() && chosen_isa() == NO_ISA)
    cab_fail(CAB_E_USAGE, "CAB_ISA=%s: this CPU has v2 to %s", getenv("CAB_ISA"), isa_names[best_isa()]);
  else if (!kernel)
    cab_fail(CAB_E_DEVICE, "no kernel '%s' for %s on %s", name, cab_dtype_name(dtype), device->name);
  return kernel;
}

/* ---- devices -------------------------------------------------------------------------------------------------- */

CabDevice *cab_cpu(void) {
  static CabDevice cpu = {.name = "cpu", .alloc = cpu_alloc, .release = cpu_release, .copy = cpu_copy, .sync = cpu_sync,
                          .kernel = cpu_kernel};
  return &cpu;
}

CabDevice *cab_device(const char *name) {
  char text[340];
  if (!strcmp(name, "cpu")) return cab_cpu();
  if (!strcmp(name, "cuda") || !strncmp(name, "cuda:", 5))
    cab_fail(CAB_E_DEVICE, "device '%s' is not available: this build has only cpu", cab_escape(name, strlen(name), text));
  else cab_fail(CAB_E_LUA, "unknown device '%s': want cpu or cuda:N", cab_escape(name, strlen(name), text));
  return NULL;
}
