/* tensor.h - tensors, views, scopes, devices and the tape. Knows no op and no Lua.
 * A tensor is a strided view of a reference-counted storage. Functions that make one return it with one reference for
 * the caller; on failure they return NULL (or a status) with the error slot filled. Single-threaded by design. */
#ifndef CAB_TENSOR_H
#define CAB_TENSOR_H
#include "base.h"

#define CAB_MAX_RANK 8

typedef enum { CAB_F32, CAB_F64, CAB_I32, CAB_U8, CAB_BF16, CAB_DTYPES } CabDtype;
size_t cab_dtype_size(CabDtype dtype);
const char *cab_dtype_name(CabDtype dtype); /* "f32" */
bool cab_dtype_parse(const char *name, CabDtype *out);

/* ---- devices: a small struct a backend fills; kernels are looked up by name ---------------- */
struct CabStream;
typedef struct CabGraph CabGraph;
typedef struct CabDevice {
  const char *name; /* "cpu", "cuda:0" */
  void *(*alloc)(struct CabDevice *, size_t bytes); /* NULL: error slot filled */
  void (*release)(struct CabDevice *, void *, size_t bytes);
  void (*trim)(struct CabDevice *);                 /* give cached memory back */
  CabStatus (*copy)(struct CabDevice *, void *dst, const void *src, size_t bytes, int kind); /* 0 within, 1 from host, 2 to host */
  /* dst = src over shape, both here, casting; strides in elements. */
  CabStatus (*cast)(struct CabDevice *, int rank, const int64_t *shape, CabDtype from, const void *src, const int64_t *stride_src,
                    CabDtype to, void *dst, const int64_t *stride_dst);
  CabStatus (*sync)(struct CabDevice *);
  void *(*kernel)(struct CabDevice *, const char *twin, CabDtype dtype); /* "scan_forward" -> function or NULL */
  /* The rest is NULL on the CPU. */
  CabStatus (*launched)(struct CabDevice *, const char *twin); /* errors of the launches since the last call */
  CabStatus (*precision)(struct CabDevice *, const char *name); /* of f32 products: "f32", "tf32", "bf16" */
  CabStatus (*capture)(struct CabDevice *, bool begin, CabGraph **out); /* launches between begin and end make a graph; *out
                                                                           NULL at the end: dropped */
  CabStatus (*replay)(CabGraph *);
  void (*drop)(CabGraph *);
  struct CabStream *stream;
  bool capturing;
  uint64_t live, peak, cached; /* bytes in tensors now and at most; held by the cache for later */
  uint64_t size;               /* bytes of memory that the device has */
  char chip[96];               /* "NVIDIA H100 (sm_90)", empty on the CPU */
} CabDevice;
CabDevice *cab_cpu(void);                     /* caching allocator; best ISA chosen once */
const char *cab_cpu_isa(void);                /* "v4", "v3", "v2"; the variable CAB_ISA may lower it */
/* "cpu", "cuda", "cuda:1", or "auto": the first GPU if there is one, else the CPU. NULL + error for unknown or absent ones. */
CabDevice *cab_device(const char *name);
void cab_device_trim(CabDevice *device);      /* give cached memory back */
void cab_devices_trim(void);                  /* of all devices opened so far */
/* libcab_cuda.so has one entry: fills *out for a GPU or says why there is none. */
typedef CabStatus CabOpenCuda(int index, CabDevice *out);

/* ---- capture: the launches of a step, kept as one graph -------------------------------------- */
/* Between begin and end nothing runs. Memory that the launches use stays theirs until the graph is freed. Reading a value
 * on the host, or bringing one from it, cannot be captured and fails with id "capture". */
CabStatus cab_capture_begin(CabDevice *device);
CabGraph *cab_capture_end(CabDevice *device); /* NULL + error: nothing is left of it */
void cab_capture_abandon(CabDevice *device);  /* after an error in between; harmless otherwise */
CabStatus cab_graph_replay(CabDevice *device, CabGraph *graph);
void cab_graph_free(CabDevice *device, CabGraph *graph);

/* ---- tensors ------------------------------------------------------------------------------ */
typedef struct CabStorage {
  CabDevice *device;
  void *data;
  size_t bytes;
  int refs;
  uint32_t version;      /* bumped by each in-place write */
  char written_at[48];   /* "train.lua:7" of the last in-place write from Lua */
} CabStorage;

struct CabNode;
typedef struct CabTensor {
  CabStorage *storage; /* NULL once closed */
  CabDtype dtype;
  int rank;
  int64_t shape[CAB_MAX_RANK], stride[CAB_MAX_RANK]; /* strides in elements, 0 (broadcast) and negative allowed */
  int64_t offset;      /* elements from storage->data */
  bool requires_grad;
  struct CabTensor *grad;  /* leaf: accumulated gradient, NULL before */
  struct CabNode *node;    /* the op that made it, NULL for a leaf */
  int output;              /* which output of node */
  int refs;
  char closed_at[48];
  struct CabScope *scope;  /* intrusive list of the scope it was born in */
  struct CabTensor *scope_next, *scope_prev;
} CabTensor;

CabTensor *cab_tensor_new(CabDevice *device, CabDtype dtype, int rank, const int64_t *shape); /* uninitialised */
CabTensor *cab_tensor_zeros(CabDevice *device, CabDtype dtype, int rank, const int64_t *shape);
CabTensor *cab_tensor_retain(CabTensor *t);
void cab_tensor_release(CabTensor *t); /* NULL allowed; frees without recursion */
void cab_tensor_close(CabTensor *t, const char *where); /* drops storage, grad and node now; idempotent */
int64_t cab_tensor_count(const CabTensor *t);
void *cab_tensor_data(const CabTensor *t); /* first element of the view */
bool cab_tensor_contiguous(const CabTensor *t);
/* Last dim has stride 1 and leading dims collapse to rows of one stride: *ld (= shape[rank-1] if only one row). */
bool cab_tensor_rows(const CabTensor *t, int64_t *ld);
CabTensor *cab_tensor_contiguous_copy(CabTensor *t); /* retained t if it already is; no gradient */
CabTensor *cab_tensor_detach(CabTensor *t);          /* same storage, no history */
CabTensor *cab_tensor_alias(CabTensor *t);                 /* the same, in no scope */
CabTensor *cab_tensor_to(CabTensor *t, CabDevice *device, CabDtype dtype); /* copies and casts; no gradient */
CabStatus cab_tensor_copy(CabTensor *dst, CabTensor *src); /* in place, broadcast src, casts; bumps version */
CabStatus cab_tensor_move(CabTensor *t, CabTensor *home, int64_t at); /* t's values lie in home from element `at` on; no view of t may be alive */
CabStatus cab_tensor_fill(CabTensor *t, double value);     /* in place, any dtype and strides */
CabStatus cab_tensor_add(CabTensor *t, double alpha, CabTensor *x); /* t += alpha x, in place, broadcast x; f32, f64 */
void cab_tensor_touch(CabTensor *t, const char *where);    /* note an in-place write */
const char *cab_shape_text(const CabTensor *t, char out[160]); /* "f32[2,3]" */

/* ---- views (differentiable) ---------------------------------------------------------------- */
typedef enum { CAB_VIEW_RESHAPE, CAB_VIEW_PERMUTE, CAB_VIEW_SLICE, CAB_VIEW_EXPAND, CAB_VIEW_FLIP } CabViewKind;
CabTensor *cab_reshape(CabTensor *t, int rank, const int64_t *shape); /* one -1 allowed; copies if it must */
CabTensor *cab_permute(CabTensor *t, const int *order);
CabTensor *cab_slice(CabTensor *t, int dim, int64_t start, int64_t stop); /* half open, 0-based */
CabTensor *cab_expand(CabTensor *t, int rank, const int64_t *shape);      /* broadcasting */
CabTensor *cab_flip(CabTensor *t, int dim);
/* Parts along dim as views; the backward joins their gradients in one buffer. sizes sum to shape[dim]. */
CabStatus cab_split(CabTensor *t, int dim, int count, const int64_t *sizes, CabTensor **out);
CabTensor *cab_concat(int count, CabTensor **parts, int dim);

/* ---- scopes: every tensor born while a scope is open is closed with it unless kept ---------- */
typedef struct CabScope CabScope;
CabScope *cab_scope_open(void);                        /* becomes the current one */
void cab_scope_close(CabScope *scope, const char *where); /* closes inner scopes first; idempotent */
void cab_scope_free(CabScope *scope);                     /* closes it if it is open, frees the struct; NULL allowed */
void cab_scope_keep(CabTensor *t);                     /* moves t to the enclosing scope (or to none) */

/* ---- tape ---------------------------------------------------------------------------------- */
#define CAB_MAX_ARGS 16
typedef struct CabEdge {   /* where the gradient of one input goes */
  struct CabNode *node;    /* producer, or NULL */
  int output;
  CabTensor *leaf;         /* leaf that requires grad, or NULL; both NULL: no gradient wanted */
  CabDevice *device;
  CabDtype dtype;
  int rank;
  int64_t shape[CAB_MAX_RANK];
} CabEdge;
typedef struct CabNode {
  const char *name;        /* op name for messages */
  /* gout[i] is contiguous, a part of `joint`, or NULL (no gradient arrived). Fill gin[i] with new references for wanted inputs (NULL: zero). */
  CabStatus (*backward)(struct CabNode *, CabTensor **gout, CabTensor **gin);
  void (*destroy)(struct CabNode *); /* frees ctx; may be NULL */
  /* For nodes whose outputs are parts of in[0]: a view of `joint`, made here the first time, where the gradient of `output`
   * belongs, row-strided. NULL: no such place; with an error in the slot, no memory. May be NULL. */
  CabTensor *(*place)(struct CabNode *, int output);
  CabTensor *joint;
  void *ctx;
  uint64_t sequence;
  int refs, inputs, outputs, saved_count;
  bool spent;              /* backward ran: saved values are gone */
  CabEdge in[CAB_MAX_ARGS];
  CabTensor *saved[CAB_MAX_ARGS * 2]; /* aliases without history */
  uint32_t saved_version[CAB_MAX_ARGS * 2];
  int out_rank[CAB_MAX_ARGS];
  char where[48];          /* "recipe.lua:12" that applied it, if known */
} CabNode;
bool cab_grad_enabled(void);
bool cab_set_grad_enabled(bool on); /* returns the old value */
/* NULL with cab_error()->code == CAB_OK when no input requires grad or grad is disabled; NULL with another code on
 * failure. The node has one reference: attach its outputs, then release it. */
CabNode *cab_node_new(const char *name, int inputs, CabTensor **in, int outputs);
/* Save for backward: stores an alias and its version, returns the slot; -1 on failure. A NULL t takes an empty slot. */
int cab_node_save(CabNode *node, CabTensor *t);
void cab_node_attach(CabNode *node, int output, CabTensor *t); /* t becomes output of node */
bool cab_node_wants(const CabNode *node, int input);
/* Within backward: where the gradient of in[input] is to be written and then given. *add: it holds a sum already, to be added to;
 * only if the caller `adds`. It may be row-strided, a part of a larger gradient, if the caller writes `rows`. NULL: error slot. */
CabTensor *cab_node_gradient(CabNode *node, int input, bool adds, bool rows, bool *add);
void cab_node_release(CabNode *node);
/* From scalars (one element; seed NULL), or with seed gradients. Sums into leaf->grad; frees saved values as it goes. May run
 * within the backward of a node, on nodes that the outer walk does not reach. Errors: not scalar, no history, spent graph, saved
 * value changed in place (names op, versions, line). */
CabStatus cab_backward(int count, CabTensor **roots, CabTensor **seeds);
/* Told of each gradient that reaches a leaf, behind it; NULL: nobody. An error ends the backward. */
typedef CabStatus CabLeafHook(void *ctx, CabTensor *leaf);
void cab_set_leaf_hook(CabLeafHook *hook, void *ctx);
void cab_set_current_line(const char *where); /* set by the bindings around calls: for messages */
const char *cab_current_line(void);
#endif
