/* device.c - the CPU device: a caching allocator and the kernel variants of the instruction set at hand. Other devices are
 * opened from a library beside the program. */
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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
  device->trim(device);
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

static void cpu_trim(CabDevice *device) {
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

CabStatus cab_launched(CabDevice *device, const char *name) { return device->launched ? device->launched(device, name) : CAB_OK; }

/* ---- devices -------------------------------------------------------------------------------------------------- */

CabDevice *cab_cpu(void) {
  static CabDevice cpu = {.name = "cpu", .alloc = cpu_alloc, .release = cpu_release, .trim = cpu_trim, .copy = cpu_copy,
                          .cast = cab_cast_elements, .sync = cpu_sync, .kernel = cpu_kernel};
  return &cpu;
}

enum { MAX_GPUS = 16 };
static CabDevice gpus[MAX_GPUS];

/* libcab_cuda.so lies beside the program, or in ../lib/cab where it is installed. */
static void *cuda_library(void) {
  static const char *const places[] = {"", "../lib/cab/"};
  static void *library;
  char self[4096], path[4200], why[400] = "not found beside the program";
  if (!cab_self(self)) self[0] = 0;
  char *slash = strrchr(self, '/');
  if (slash) slash[1] = 0;
  for (int i = 0; i < 2 && !library; i++) {
    snprintf(path, sizeof path, "%s%slibcab_cuda.so", self, places[i]);
    if (access(path, R_OK)) continue;
    library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    const char *text = library ? NULL : dlerror();
    if (text) snprintf(why, sizeof why, "%s", text);
  }
  if (!library) cab_fail(CAB_E_DEVICE, "device 'cuda' is not available: libcab_cuda.so: %s", why);
  return library;
}

static CabDevice *gpu(int index) {
  if (gpus[index].name) return &gpus[index];
  void *library = cuda_library();
  CabOpenCuda *open = library ? (CabOpenCuda *)dlsym(library, "cab_open_cuda") : NULL;
  if (library && !open) cab_fail(CAB_E_DEVICE, "libcab_cuda.so has no cab_open_cuda: it belongs to another version");
  return open && open(index, &gpus[index]) == CAB_OK ? &gpus[index] : NULL;
}

/* Asked first where a GPU is only a wish: libcab_cuda.so brings cuBLAS with it. */
static bool has_driver(void) {
  if (dlopen("libcuda.so.1", RTLD_LAZY)) return true;
  cab_fail(CAB_E_DEVICE, "device 'cuda' is not available: no NVIDIA driver");
  return false;
}

CabDevice *cab_device(const char *name) {
  char text[340], *end;
  if (!strcmp(name, "cpu")) return cab_cpu();
  if (!strcmp(name, "cuda")) return gpu(0);
  if (!strcmp(name, "auto")) {
    CabDevice *first = has_driver() ? gpu(0) : NULL;
    return first ? first : cab_cpu();
  }
  if (!strncmp(name, "cuda:", 5) && name[5] >= '0' && name[5] <= '9') {
    long index = strtol(name + 5, &end, 10);
    if (!*end && index < MAX_GPUS) return gpu((int)index);
  }
  cab_fail(CAB_E_LUA, "unknown device '%s': want auto, cpu, cuda or cuda:N", cab_escape(name, strlen(name), text));
  return NULL;
}

void cab_device_trim(CabDevice *device) { device->trim(device); }
void cab_devices_trim(void) {
  cab_device_trim(cab_cpu());
  for (int i = 0; i < MAX_GPUS; i++)
    if (gpus[i].name) cab_device_trim(&gpus[i]);
}

/* ---- capture -------------------------------------------------------------------------------------------------- */

CabStatus cab_capture_begin(CabDevice *device) {
  if (!device->capture) return cab_fail(CAB_E_DEVICE, "%s runs a step as it comes: nothing to capture", device->name);
  if (device->capturing) return cab_fail(CAB_E_LUA, "a capture is open on %s", device->name);
  return device->capture(device, true, NULL);
}
CabGraph *cab_capture_end(CabDevice *device) {
  CabGraph *graph = NULL;
  return device->capture(device, false, &graph) == CAB_OK ? graph : NULL;
}
void cab_capture_abandon(CabDevice *device) {
  if (device->capturing) device->capture(device, false, NULL);
}
CabStatus cab_graph_replay(CabDevice *device, CabGraph *graph) { return device->replay(graph); }
void cab_graph_free(CabDevice *device, CabGraph *graph) {
  if (graph) device->drop(graph);
}
