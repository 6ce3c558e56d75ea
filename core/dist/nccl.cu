/* nccl.cu - sums of GPU tensors over ranks by NCCL, which is opened when it is needed: nothing is linked, and only a few calls of it
 * are used. Reductions run on a stream of their own, behind the gradients they read and beside the rest of the backward; inside a
 * captured step they become part of its graph. */
#include <dlfcn.h>
#include <string.h>

#include <cstdio>

#include "cuda.cuh"
extern "C" {
#include "dist.h"
extern CabOpenWire cab_open_wire;
}

typedef struct { char internal[128]; } Id;
typedef void *Comm;
enum { NCCL_FLOAT = 7, NCCL_DOUBLE = 8, NCCL_SUM = 0 };

struct Nccl {
  int (*get_id)(Id *);
  int (*init)(Comm *, int, Id, int);
  int (*all_reduce)(const void *, void *, size_t, int, int, Comm, cudaStream_t);
  int (*broadcast)(const void *, void *, size_t, int, int, Comm, cudaStream_t);
  int (*group_start)(void), (*group_end)(void);
  int (*version)(int *);
  const char *(*text)(int);
  Comm comm;
  CabDevice *device;
  cudaStream_t stream;
  cudaEvent_t ready, done;
};

static CabStatus nccl_failed(Nccl *n, const char *doing, int code) {
  return cab_fail(CAB_E_DEVICE, "NCCL: %s: %s", doing, n->text ? n->text(code) : "?");
}
static CabStatus cuda_failed(const char *doing, cudaError_t code) {
  cudaGetLastError();
  return cab_fail(CAB_E_DEVICE, "NCCL: %s: %s", doing, cudaGetErrorString(code));
}
#define NCCL_TRY(n, call, doing)                     \
  do {                                               \
    int code_ = (call);                              \
    if (code_) return nccl_failed(n, doing, code_);  \
  } while (0)
#define CUDA_TRY(call, doing)                             \
  do {                                                    \
    cudaError_t code_ = (call);                           \
    if (code_ != cudaSuccess) return cuda_failed(doing, code_); \
  } while (0)

static Nccl *of(CabWire *w) { return (Nccl *)w->self; }

static bool find(void *library, const char *name, void *slot) {
  void *symbol = dlsym(library, name);
  memcpy(slot, &symbol, sizeof symbol);
  if (!symbol) cab_fail(CAB_E_DEVICE, "libnccl.so.2 has no %s", name);
  return symbol;
}

/* ---- gathering: a bucket's gradients in one launch for each 120 ---------------------------------------------------- */

enum { PIECES = 120, CHUNK = 4096 };
template <class T> struct Pieces {
  const T *from[PIECES];
  T *to[PIECES];
  int64_t n[PIECES];
};
static_assert(sizeof(Pieces<float>) <= 4000, "kernel parameters");

template <class T> static __global__ void __launch_bounds__(256) gather(const __grid_constant__ Pieces<T> p) {
  const T *from = p.from[blockIdx.y];
  T *to = p.to[blockIdx.y];
  for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < p.n[blockIdx.y]; i += (int64_t)gridDim.x * blockDim.x)
    to[i] = from ? from[i] : T(0);
}

template <class T> static CabStatus gather_all(Nccl *n, int count, const CabPiece *pieces, T *flat) {
  for (int first = 0; first < count; first += PIECES) {
    Pieces<T> p;
    int64_t most = 1;
    int m = count - first < PIECES ? count - first : (int)PIECES;
    for (int i = 0; i < m; i++) {
      const CabPiece *from = &pieces[first + i];
      p.from[i] = (const T *)from->from, p.to[i] = flat + from->at, p.n[i] = from->n;
      if (from->n > most) most = from->n;
    }
    unsigned blocks = (unsigned)((most + CHUNK - 1) / CHUNK < 64 ? (most + CHUNK - 1) / CHUNK : 64);
    gather<T><<<dim3(blocks, (unsigned)m), 256, 0, n->stream>>>(p);
    CUDA_TRY(cudaPeekAtLastError(), "gathering gradients");
  }
  return CAB_OK;
}

/* ---- the wire ------------------------------------------------------------------------------------------------------ */

static CabStatus behind_the_device(Nccl *n) {
  cudaStream_t main = n->device->stream->stream;
  CUDA_TRY(cudaEventRecord(n->ready, main), "waiting for gradients");
  CUDA_TRY(cudaStreamWaitEvent(n->stream, n->ready, 0), "waiting for gradients");
  return CAB_OK;
}

static CabStatus wire_reduce(CabWire *w, int count, const CabPiece *pieces, void *flat, int64_t elements, CabDtype dtype) {
  Nccl *n = of(w);
  CAB_TRY(behind_the_device(n));
  if (dtype == CAB_F32) CAB_TRY(gather_all(n, count, pieces, (float *)flat));
  else CAB_TRY(gather_all(n, count, pieces, (double *)flat));
  NCCL_TRY(n, n->all_reduce(flat, flat, (size_t)elements, dtype == CAB_F32 ? NCCL_FLOAT : NCCL_DOUBLE, NCCL_SUM, n->comm, n->stream), "all-reduce");
  return CAB_OK;
}

static CabStatus wire_share(CabWire *w, void *flat, int ranks, const int64_t *border, CabDtype dtype) {
  Nccl *n = of(w);
  const size_t size = cab_dtype_size(dtype);
  int code = 0;
  CAB_TRY(behind_the_device(n));
  NCCL_TRY(n, n->group_start(), "a group");
  for (int r = 0; r < ranks && !code; r++) {
    char *part = (char *)flat + (size_t)border[r] * size;
    const size_t count = (size_t)(border[r + 1] - border[r]);
    if (count) code = n->broadcast(part, part, count, dtype == CAB_F32 ? NCCL_FLOAT : NCCL_DOUBLE, r, n->comm, n->stream);
  }
  const int end = n->group_end();
  NCCL_TRY(n, code ? code : end, "broadcast");
  return CAB_OK;
}

static CabStatus wire_join(CabWire *w) {
  Nccl *n = of(w);
  CUDA_TRY(cudaEventRecord(n->done, n->stream), "joining");
  CUDA_TRY(cudaStreamWaitEvent(n->device->stream->stream, n->done, 0), "joining");
  return CAB_OK;
}

static CabStatus wire_open(CabWire *w, CabDevice *device, const char id[128], int rank, int size) {
  Nccl *n = of(w);
  Id unique;
  memcpy(unique.internal, id, sizeof unique.internal);
  n->device = device;
  int least, greatest; /* ahead of the backward, so that a bucket leaves when it can */
  CUDA_TRY(cudaDeviceGetStreamPriorityRange(&least, &greatest), "a stream");
  CUDA_TRY(cudaStreamCreateWithPriority(&n->stream, cudaStreamNonBlocking, greatest), "a stream");
  CUDA_TRY(cudaEventCreateWithFlags(&n->ready, cudaEventDisableTiming), "an event");
  CUDA_TRY(cudaEventCreateWithFlags(&n->done, cudaEventDisableTiming), "an event");
  NCCL_TRY(n, n->init(&n->comm, size, unique, rank), "start (NCCL_DEBUG=INFO says more)");
  return CAB_OK;
}

static Nccl the; /* one communicator a process */

static CabStatus wire_unique(char id[128]) {
  Id unique;
  NCCL_TRY(&the, the.get_id(&unique), "id");
  memcpy(id, unique.internal, sizeof unique.internal);
  return CAB_OK;
}

CabStatus cab_open_wire(CabWire *out) {
  void *library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
  if (!library) library = dlopen("libnccl.so", RTLD_NOW | RTLD_LOCAL);
  const char *why = library ? nullptr : dlerror();
  if (!library)
    return cab_fail(CAB_E_DEVICE, "several ranks on GPUs need NCCL: %s; install it, or set LD_LIBRARY_PATH to the folder of libnccl.so.2", why ? why : "?");
  Nccl *n = &the;
  int version = 0;
  if (!find(library, "ncclGetUniqueId", &n->get_id) || !find(library, "ncclCommInitRank", &n->init) ||
      !find(library, "ncclAllReduce", &n->all_reduce) ||
      !find(library, "ncclBroadcast", &n->broadcast) || !find(library, "ncclGroupStart", &n->group_start) ||
      !find(library, "ncclGroupEnd", &n->group_end) || !find(library, "ncclGetVersion", &n->version) || !find(library, "ncclGetErrorString", &n->text))
    return CAB_E_DEVICE;
  n->version(&version);
  *out = CabWire{n, wire_unique, wire_open, wire_reduce, wire_share, wire_join, ""};
  snprintf(out->about, sizeof out->about, "NCCL %d.%d.%d", version / 10000, version / 100 % 100, version % 100);
  return CAB_OK;
}
