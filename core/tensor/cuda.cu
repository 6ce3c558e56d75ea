/* cuda.cu - the CUDA device: memory, copies, casts, kernels by name, step capture. The only file that manages the runtime;
 * built with the twins into libcab_cuda.so, which the program opens when a recipe asks for a GPU. */
#include <dlfcn.h>
#include <string.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>
#include <string>
#include <unordered_map>

#include "cuda.cuh"
extern "C" {
#include "tensor.h"
extern CabOpenCuda cab_open_cuda;
}

/* ---- memory: segments from the driver, cut into blocks that merge with free neighbours when released ------------- */

struct Block {
  char *address;
  size_t bytes;
  bool used;
  int pool;
  Block *before, *after; /* neighbours in the segment */
};
struct BySize {
  bool operator()(const Block *a, const Block *b) const {
    return a->bytes != b->bytes ? a->bytes < b->bytes : a->address < b->address;
  }
};
typedef std::set<Block *, BySize> FreeList;

struct CabGraph {
  struct Gpu *gpu;
  cudaGraphExec_t exec;
  int pool;
};

/* Pool 0 serves all but captures; each graph has a pool of its own, since it writes to its memory whenever it runs. */
struct Gpu : CabStream {
  int index, pool, pools;
  std::map<int, FreeList> free_blocks;
  std::unordered_map<void *, Block *> blocks; /* in use */
  char *staging[2]; /* pinned: what travels to the device leaves from here, so the caller's buffer is free at once */
  cudaEvent_t sent[2];
  int turn;
  char name[24];
  bool dead, synchronous;
  int architecture;
};
enum : size_t { GRAIN = 512, SEGMENT = 32u << 20, LARGEST_SEGMENT = 1u << 30, STAGING = 8u << 20, WORKSPACE = 64u << 20 };

static Gpu *gpu_of(CabDevice *device) { return static_cast<Gpu *>(device->stream); }

/* The chips this library was built for, as "sm_80 sm_90". */
static std::string built_for() {
  std::string names;
  for (int arch : {__CUDA_ARCH_LIST__}) names += (names.empty() ? "sm_" : " sm_") + std::to_string(arch / 10);
  return names;
}

static CabStatus gpu_failed(Gpu *gpu, cudaError_t code, const char *doing) {
  cudaGetLastError();
  bool sticky = code != cudaErrorMemoryAllocation && cudaStreamQuery(gpu->stream) == code && code != cudaErrorNotReady;
  gpu->dead |= sticky;
  if (code == cudaErrorNoKernelImageForDevice || code == cudaErrorInvalidDeviceFunction)
    return cab_fail(CAB_E_DEVICE, "%s: %s: built for %s, this chip is sm_%d", gpu->name, doing, built_for().c_str(), gpu->architecture);
  return cab_fail(CAB_E_DEVICE, "%s: %s: %s%s", gpu->name, doing, cudaGetErrorString(code),
                  sticky ? "; the device is lost to this process (CAB_SYNC=1 finds the kernel)" : "");
}
static CabStatus check_alive(Gpu *gpu) {
  return gpu->dead ? cab_fail(CAB_E_DEVICE, "%s: lost after an earlier error", gpu->name) : CAB_OK;
}
#define CUDA_TRY(gpu, call, doing)                                      \
  do {                                                                  \
    cudaError_t cuda_ = (call);                                         \
    if (cuda_ != cudaSuccess) return gpu_failed(gpu, cuda_, doing);     \
  } while (0)

static void unlink_segment(Gpu *gpu, Block *block) {
  gpu->free_blocks[block->pool].erase(block);
  gpu->device->cached -= block->bytes;
  cudaFree(block->address);
  delete block;
}

/* Whole free segments of pool 0: those of a graph are written to whenever it runs. */
static void gpu_trim(CabDevice *device) {
  Gpu *gpu = gpu_of(device);
  if (gpu->dead || device->capturing) return;
  cudaStreamSynchronize(gpu->stream);
  FreeList &list = gpu->free_blocks[0];
  for (auto it = list.begin(); it != list.end();) {
    Block *block = *it++;
    if (!block->before && !block->after) unlink_segment(gpu, block);
  }
}

static size_t whole_pages(size_t bytes) { return (bytes + (2u << 20) - 1) >> 21 << 21; }

/* Segments grow with what is held: in few large ones less is lost at the ends. */
static Block *new_segment(Gpu *gpu, size_t bytes) {
  const size_t share = (gpu->device->live + gpu->device->cached) / 16;
  size_t size = share < SEGMENT ? SEGMENT : share < LARGEST_SEGMENT ? share : LARGEST_SEGMENT;
  size = whole_pages(bytes < size ? size : bytes);
  void *p = nullptr;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed; /* an allocation is no part of a captured step */
  cudaThreadExchangeStreamCaptureMode(&mode);
  if (cab_fault("cuda_malloc") || cudaMalloc(&p, size) != cudaSuccess) {
    cudaGetLastError();
    gpu_trim(gpu->device);
    size = whole_pages(bytes);
    if (cab_fault("cuda_malloc") || cudaMalloc(&p, size) != cudaSuccess) p = nullptr, cudaGetLastError();
  }
  cudaThreadExchangeStreamCaptureMode(&mode);
  if (!p) return nullptr;
  gpu->device->cached += size;
  return new Block{(char *)p, size, false, gpu->pool, nullptr, nullptr};
}

static void *out_of_memory(Gpu *gpu, size_t bytes) {
  size_t free_bytes = 0, total = 0, largest[5] = {0};
  cudaMemGetInfo(&free_bytes, &total);
  for (auto &entry : gpu->blocks) {
    size_t size = entry.second->bytes;
    for (int i = 0; i < 5; i++)
      if (size > largest[i]) { size_t t = largest[i]; largest[i] = size; size = t; }
  }
  const double MIB = 1 << 20;
  cab_fail(CAB_E_MEMORY, "out of memory on %s: %.1f MiB requested, %.1f free of %.1f, %.1f in tensors; the five largest: %.1f %.1f %.1f %.1f %.1f MiB",
           gpu->name, bytes / MIB, free_bytes / MIB, total / MIB, gpu->device->live / MIB, largest[0] / MIB, largest[1] / MIB,
           largest[2] / MIB, largest[3] / MIB, largest[4] / MIB);
  return nullptr;
}

static void *gpu_alloc(CabDevice *device, size_t bytes) {
  Gpu *gpu = gpu_of(device);
  if (!bytes) return nullptr;
  if (check_alive(gpu)) return nullptr;
  if (bytes > SIZE_MAX / 2) return out_of_memory(gpu, bytes);
  size_t size = (bytes + GRAIN - 1) / GRAIN * GRAIN;
  FreeList &list = gpu->free_blocks[gpu->pool];
  Block key{nullptr, size, false, 0, nullptr, nullptr}, *block;
  auto found = list.lower_bound(&key);
  if (found != list.end()) block = *found, list.erase(found);
  else block = new_segment(gpu, size);
  if (!block) return out_of_memory(gpu, bytes);
  if (block->bytes >= size + GRAIN) {
    Block *rest = new Block{block->address + size, block->bytes - size, false, block->pool, block, block->after};
    if (rest->after) rest->after->before = rest;
    block->after = rest, block->bytes = size;
    list.insert(rest);
  }
  block->used = true;
  gpu->blocks[block->address] = block;
  device->cached -= size;
  device->live += size;
  if (device->live > device->peak) device->peak = device->live;
  return block->address;
}

static void gpu_release(CabDevice *device, void *p, size_t) {
  Gpu *gpu = gpu_of(device);
  auto found = p ? gpu->blocks.find(p) : gpu->blocks.end();
  if (found == gpu->blocks.end()) return;
  Block *block = found->second;
  gpu->blocks.erase(found);
  FreeList &list = gpu->free_blocks[block->pool];
  block->used = false;
  device->live -= block->bytes;
  device->cached += block->bytes;
  if (Block *next = block->after; next && !next->used) {
    list.erase(next);
    block->bytes += next->bytes, block->after = next->after;
    if (block->after) block->after->before = block;
    delete next;
  }
  if (Block *last = block->before; last && !last->used) {
    list.erase(last);
    last->bytes += block->bytes, last->after = block->after;
    if (last->after) last->after->before = last;
    delete block;
    block = last;
  }
  list.insert(block);
}

/* ---- copies and casts --------------------------------------------------------------------------------------------- */

static CabStatus refuse_in_capture(Gpu *gpu, const char *what) {
  cab_fail(CAB_E_DEVICE, "%s: %s cannot be captured (%s)", gpu->name, what, cab_current_line());
  strcpy(cab_error()->id, "capture");
  return CAB_E_DEVICE;
}

static CabStatus to_device(Gpu *gpu, char *dst, const char *src, size_t bytes) {
  for (size_t done = 0; done < bytes; done += STAGING, gpu->turn ^= 1) {
    size_t part = bytes - done < STAGING ? bytes - done : (size_t)STAGING;
    int i = gpu->turn;
    CUDA_TRY(gpu, cudaEventSynchronize(gpu->sent[i]), "copy to the device");
    memcpy(gpu->staging[i], src + done, part);
    CUDA_TRY(gpu, cudaMemcpyAsync(dst + done, gpu->staging[i], part, cudaMemcpyHostToDevice, gpu->stream), "copy to the device");
    CUDA_TRY(gpu, cudaEventRecord(gpu->sent[i], gpu->stream), "copy to the device");
  }
  return CAB_OK;
}

static CabStatus gpu_copy(CabDevice *device, void *dst, const void *src, size_t bytes, int kind) {
  Gpu *gpu = gpu_of(device);
  CAB_TRY(check_alive(gpu));
  if (!bytes) return CAB_OK;
  if (kind && device->capturing) return refuse_in_capture(gpu, kind == 1 ? "a value from the host" : "a value read back");
  if (kind == 1) return to_device(gpu, (char *)dst, (const char *)src, bytes);
  CUDA_TRY(gpu, cudaMemcpyAsync(dst, src, bytes, kind ? cudaMemcpyDeviceToHost : cudaMemcpyDeviceToDevice, gpu->stream), "copy");
  if (kind) CUDA_TRY(gpu, cudaStreamSynchronize(gpu->stream), "copy from the device");
  return CAB_OK;
}

static CabStatus gpu_sync(CabDevice *device) {
  Gpu *gpu = gpu_of(device);
  CAB_TRY(check_alive(gpu));
  if (device->capturing) return refuse_in_capture(gpu, "waiting");
  CUDA_TRY(gpu, cudaStreamSynchronize(gpu->stream), "synchronise");
  return CAB_OK;
}

static CabStatus gpu_launched(CabDevice *device, const char *name);

/* Through double, as the CPU does; integers are cut towards zero and to their range, NaN to 0. */
struct Strides { int rank; int64_t shape[CAB_MAX_RANK], src[CAB_MAX_RANK], dst[CAB_MAX_RANK]; };
template <class T> __device__ double load_as(const T *p) { return (double)*p; }
__device__ double load_as(const bf16 *p) { return (double)__bfloat162float(*p); }
template <class T> __device__ T store_as(double x) { return (T)x; }
template <> __device__ bf16 store_as<bf16>(double x) { return __float2bfloat16((float)x); }
__device__ double clamped(double x, double low, double high) { return x != x ? 0 : x < low ? low : x > high ? high : x; }
template <> __device__ int32_t store_as<int32_t>(double x) { return (int32_t)clamped(x, -2147483648.0, 2147483647.0); }
template <> __device__ uint8_t store_as<uint8_t>(double x) { return (uint8_t)clamped(x, 0, 255); }

template <class From, class To> __global__ void cast_kernel(Strides s, int64_t n, const From *src, To *dst) {
  for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x) {
    int64_t rest = i, at_src = 0, at_dst = 0;
    for (int d = s.rank - 1; d >= 0; d--) {
      int64_t k = rest % s.shape[d];
      rest /= s.shape[d];
      at_src += k * s.src[d], at_dst += k * s.dst[d];
    }
    dst[at_dst] = store_as<To>(load_as(src + at_src));
  }
}
template <class From, class To> __global__ void cast_dense(int64_t n, const From *src, To *dst) {
  for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x)
    dst[i] = store_as<To>(load_as(src + i));
}
template <> __global__ void cast_dense(int64_t n, const float *src, bf16 *dst) { /* the common ones without the detour */
  for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x) dst[i] = __float2bfloat16(src[i]);
}
template <> __global__ void cast_dense(int64_t n, const bf16 *src, float *dst) {
  for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x) dst[i] = __bfloat162float(src[i]);
}

static bool dense(int rank, const int64_t *shape, const int64_t *stride) {
  int64_t expected = 1;
  for (int d = rank - 1; d >= 0; expected *= shape[d--])
    if (shape[d] != 1 && stride[d] != expected) return false;
  return true;
}

template <class From, class To> static void cast_to(cudaStream_t stream, const Strides &s, int64_t n, const void *src, void *dst) {
  unsigned blocks = blocks_for(n, 256) < 4096 ? blocks_for(n, 256) : 4096;
  if (dense(s.rank, s.shape, s.src) && dense(s.rank, s.shape, s.dst))
    cast_dense<From, To><<<blocks, 256, 0, stream>>>(n, (const From *)src, (To *)dst);
  else
    cast_kernel<From, To><<<blocks, 256, 0, stream>>>(s, n, (const From *)src, (To *)dst);
}
template <class From> static void cast_from(cudaStream_t stream, const Strides &s, int64_t n, const void *src, CabDtype to, void *dst) {
  switch (to) {
    case CAB_F32: return cast_to<From, float>(stream, s, n, src, dst);
    case CAB_F64: return cast_to<From, double>(stream, s, n, src, dst);
    case CAB_I32: return cast_to<From, int32_t>(stream, s, n, src, dst);
    case CAB_U8: return cast_to<From, uint8_t>(stream, s, n, src, dst);
    default: return cast_to<From, bf16>(stream, s, n, src, dst);
  }
}

static CabStatus gpu_cast(CabDevice *device, int rank, const int64_t *shape, CabDtype from, const void *src, const int64_t *stride_src,
                          CabDtype to, void *dst, const int64_t *stride_dst) {
  Strides s = {rank};
  int64_t n = 1;
  for (int d = 0; d < rank; d++) s.shape[d] = shape[d], s.src[d] = stride_src[d], s.dst[d] = stride_dst[d], n *= shape[d];
  if (!n) return CAB_OK;
  cudaStream_t stream = device->stream->stream;
  switch (from) {
    case CAB_F32: cast_from<float>(stream, s, n, src, to, dst); break;
    case CAB_F64: cast_from<double>(stream, s, n, src, to, dst); break;
    case CAB_I32: cast_from<int32_t>(stream, s, n, src, to, dst); break;
    case CAB_U8: cast_from<uint8_t>(stream, s, n, src, to, dst); break;
    default: cast_from<bf16>(stream, s, n, src, to, dst);
  }
  return gpu_launched(device, "cast");
}

/* ---- kernels ------------------------------------------------------------------------------------------------------ */

/* EXPORT in cuda.cuh publishes NAME_cuda[3]. Looked up once: a step asks hundreds of times. */
static void *gpu_kernel(CabDevice *device, const char *name, CabDtype dtype) {
  static std::map<const char *, void **> seen; /* by the address of the literal */
  int column = dtype == CAB_F32 ? 0 : dtype == CAB_F64 ? 1 : dtype == CAB_BF16 ? 2 : -1;
  if (column < 0 || check_alive(gpu_of(device))) return nullptr;
  auto found = seen.find(name);
  if (found != seen.end()) return found->second ? found->second[column] : nullptr;
  char symbol[80];
  Dl_info self;
  snprintf(symbol, sizeof symbol, "%s_cuda", name);
  void *library = dladdr((void *)gpu_kernel, &self) ? dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD) : nullptr;
  void **table = library ? (void **)dlsym(library, symbol) : nullptr;
  if (library) dlclose(library);
  seen[name] = table;
  return table ? table[column] : nullptr;
}

static CabStatus gpu_launched(CabDevice *device, const char *name) {
  Gpu *gpu = gpu_of(device);
  cudaError_t code = cudaPeekAtLastError();
  if (code != cudaSuccess) return gpu_failed(gpu, code, name);
  if (gpu->failed) {
    gpu->failed = 0;
    if (!strcmp(gpu->failed_call, "scratch memory")) return cab_error()->code;
    return cab_fail(CAB_E_DEVICE, "%s: %s: %s failed with code %d", gpu->name, name, gpu->failed_call, gpu->failed_code);
  }
  if (gpu->synchronous && !device->capturing) CUDA_TRY(gpu, cudaStreamSynchronize(gpu->stream), name);
  return CAB_OK;
}

static CabStatus gpu_precision(CabDevice *device, const char *name) {
  int precision = !strcmp(name, "f32") ? PRECISION_F32 : !strcmp(name, "tf32") ? PRECISION_TF32 : !strcmp(name, "bf16") ? PRECISION_BF16 : -1;
  if (precision < 0) return cab_fail(CAB_E_LUA, "unknown precision '%s': want f32, tf32 or bf16", name);
  device->stream->precision = precision;
  return CAB_OK;
}

/* ---- capture ------------------------------------------------------------------------------------------------------ */

/* A graph's memory goes back to pool 0 as a whole: free parts now, tensors that still live when they are released. */
static void dissolve_pool(Gpu *gpu, int pool) {
  FreeList &own = gpu->free_blocks[pool], &common = gpu->free_blocks[0];
  for (Block *block : own) block->pool = 0, common.insert(block);
  for (auto &entry : gpu->blocks)
    if (entry.second->pool == pool) entry.second->pool = 0;
  gpu->free_blocks.erase(pool);
}

static CabStatus end_capture(Gpu *gpu, CabGraph **out) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  int pool = gpu->pool;
  gpu->device->capturing = false;
  gpu->pool = 0;
  cudaError_t code = cudaStreamEndCapture(gpu->stream, &graph);
  if (code == cudaSuccess && out) code = cudaGraphInstantiate(&exec, graph, 0);
  if (graph) cudaGraphDestroy(graph);
  if (!out || code != cudaSuccess) dissolve_pool(gpu, pool);
  if (!out) return cudaGetLastError(), CAB_OK;
  if (code != cudaSuccess) return gpu_failed(gpu, code, "end of a captured step");
  *out = new CabGraph{gpu, exec, pool};
  return CAB_OK;
}

static CabStatus gpu_capture(CabDevice *device, bool begin, CabGraph **out) {
  Gpu *gpu = gpu_of(device);
  CAB_TRY(check_alive(gpu));
  if (!begin) return end_capture(gpu, out);
  CUDA_TRY(gpu, cudaStreamBeginCapture(gpu->stream, cudaStreamCaptureModeThreadLocal), "begin of a captured step");
  device->capturing = true;
  gpu->pool = ++gpu->pools;
  return CAB_OK;
}

static CabStatus gpu_replay(CabGraph *graph) {
  CAB_TRY(check_alive(graph->gpu));
  CUDA_TRY(graph->gpu, cudaGraphLaunch(graph->exec, graph->gpu->stream), "captured step");
  return CAB_OK;
}

static void gpu_drop(CabGraph *graph) {
  Gpu *gpu = graph->gpu;
  if (!gpu->dead) cudaStreamSynchronize(gpu->stream), cudaGraphExecDestroy(graph->exec);
  dissolve_pool(gpu, graph->pool);
  delete graph;
}

/* ---- opening ------------------------------------------------------------------------------------------------------ */

static CabStatus open_stream(Gpu *gpu) {
  CabStream *s = gpu;
  cudaDeviceProp chip;
  CUDA_TRY(gpu, cudaSetDevice(gpu->index), "open");
  CUDA_TRY(gpu, cudaGetDeviceProperties(&chip, gpu->index), "open");
  gpu->architecture = chip.major * 10 + chip.minor;
  if (chip.major < 8)
    return cab_fail(CAB_E_DEVICE, "%s: %s is sm_%d; this build runs on sm_80 and later", gpu->name, chip.name, gpu->architecture);
  snprintf(gpu->device->chip, sizeof gpu->device->chip, "%.60s (sm_%d)", chip.name, gpu->architecture);
  gpu->device->size = chip.totalGlobalMem;
  s->multiprocessors = chip.multiProcessorCount;
  CUDA_TRY(gpu, cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking), "open");
  for (int i = 0; i < 2; i++) {
    CUDA_TRY(gpu, cudaMallocHost((void **)&gpu->staging[i], STAGING), "pinned memory");
    CUDA_TRY(gpu, cudaEventCreateWithFlags(&gpu->sent[i], cudaEventDisableTiming), "open");
  }
  s->workspace_bytes = WORKSPACE;
  CUDA_TRY(gpu, cudaMalloc(&s->workspace, WORKSPACE), "cuBLAS workspace");
  if (cublasCreate(&s->blas) || cublasSetStream(s->blas, s->stream) || cublasSetWorkspace(s->blas, s->workspace, WORKSPACE) ||
      cublasLtCreate(&s->lt))
    return cab_fail(CAB_E_DEVICE, "%s: cuBLAS does not start", gpu->name);
  return CAB_OK;
}

CabStatus cab_open_cuda(int index, CabDevice *out) {
  int driver = 0, count = 0;
  cudaDriverGetVersion(&driver);
  if (!driver) return cab_fail(CAB_E_DEVICE, "device 'cuda' is not available: no NVIDIA driver");
  cudaError_t code = cudaGetDeviceCount(&count);
  if (code == cudaErrorInsufficientDriver)
    return cab_fail(CAB_E_DEVICE, "device 'cuda' is not available: the driver speaks CUDA %d.%d, this build needs %d.%d", driver / 1000,
                    driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
  if (code != cudaSuccess || !count)
    return cab_fail(CAB_E_DEVICE, "device 'cuda' is not available: %s", code ? cudaGetErrorString(code) : "no GPU");
  if (index >= count) return cab_fail(CAB_E_DEVICE, "device 'cuda:%d' is not available: there are %d GPUs, from cuda:0", index, count);
  Gpu *gpu = new Gpu();
  gpu->index = index, gpu->device = out;
  snprintf(gpu->name, sizeof gpu->name, "cuda:%d", index);
  const char *sync = getenv("CAB_SYNC");
  gpu->synchronous = sync && *sync && strcmp(sync, "0");
  gpu->allocate = gpu_alloc, gpu->release = gpu_release;
  CAB_TRY(open_stream(gpu)); /* what it made stays until the process ends */
  char chip[sizeof out->chip];
  memcpy(chip, out->chip, sizeof chip);
  *out = CabDevice{gpu->name, gpu_alloc, gpu_release, gpu_trim, gpu_copy, gpu_cast, gpu_sync, gpu_kernel, gpu_launched, gpu_precision,
                   gpu_capture, gpu_replay, gpu_drop, gpu, false, 0, 0, 0, out->size, ""};
  memcpy(out->chip, chip, sizeof chip);
  return CAB_OK;
}
