/* tensor.c - tensors are strided views of counted storages. */
#include <string.h>

#include "elementwise.h"
#include "internal.h"

/* ---- storage -------------------------------------------------------------------------------------------------- */

static CabStorage *storage_new(CabDevice *device, size_t bytes) {
  CabStorage *s = cab_calloc(1, sizeof *s);
  if (!s) return NULL;
  s->data = bytes ? device->alloc(device, bytes) : NULL;
  if (bytes && !s->data) return cab_free(s), NULL;
  s->device = device;
  s->bytes = bytes;
  s->refs = 1;
  return s;
}

static void storage_release(CabStorage *s) {
  if (!s || --s->refs) return;
  s->device->release(s->device, s->data, s->bytes);
  cab_free(s);
}

/* ---- birth and death ------------------------------------------------------------------------------------------ */

void cab_strides(int rank, const int64_t *shape, int64_t *stride) {
  int64_t step = 1;
  for (int d = rank - 1; d >= 0; d--) {
    stride[d] = step;
    step *= shape[d] > 1 ? shape[d] : 1;
  }
}

CabTensor *cab_tensor_make(CabStorage *storage, CabDtype dtype, int rank, const int64_t *shape, const int64_t *stride,
                           int64_t offset, bool scoped) {
  CabTensor *t = cab_calloc(1, sizeof *t);
  if (!t) return NULL;
  t->storage = storage;
  storage->refs++;
  t->dtype = dtype;
  t->rank = rank;
  for (int d = 0; d < rank; d++) t->shape[d] = shape[d], t->stride[d] = stride[d];
  t->offset = offset;
  t->refs = 1;
  if (scoped) cab_scope_link(t);
  return t;
}

/* Dims of 0 count as 1 here, so that strides cannot overflow either. */
static CabStatus checked_bytes(CabDtype dtype, int rank, const int64_t *shape, size_t *bytes) {
  char text[160];
  if (rank < 0 || rank > CAB_MAX_RANK) return cab_fail(CAB_E_LUA, "a tensor of rank %d: at most %d dims", rank, CAB_MAX_RANK);
  uint64_t size = cab_dtype_size(dtype);
  bool empty = false;
  for (int d = 0; d < rank; d++) {
    if (shape[d] < 0) return cab_fail(CAB_E_LUA, "a tensor of shape %s: negative size", cab_dims_text(rank, shape, text));
    empty |= shape[d] == 0;
    size = sz_mul(size, shape[d] ? (uint64_t)shape[d] : 1);
  }
  if (size > INT64_MAX) return cab_fail(CAB_E_MEMORY, "a tensor of shape %s: too large", cab_dims_text(rank, shape, text));
  *bytes = empty ? 0 : (size_t)size;
  return CAB_OK;
}

CabTensor *cab_tensor_new(CabDevice *device, CabDtype dtype, int rank, const int64_t *shape) {
  size_t bytes = 0;
  int64_t stride[CAB_MAX_RANK];
  if (checked_bytes(dtype, rank, shape, &bytes)) return NULL;
  CabStorage *storage = storage_new(device, bytes);
  if (!storage) return NULL;
  cab_strides(rank, shape, stride);
  CabTensor *t = cab_tensor_make(storage, dtype, rank, shape, stride, 0, true);
  storage_release(storage); /* t has its own reference, if there is a t */
  return t;
}

CabTensor *cab_tensor_zeros(CabDevice *device, CabDtype dtype, int rank, const int64_t *shape) {
  CabTensor *t = cab_tensor_new(device, dtype, rank, shape);
  if (!t || !t->storage->data) return t;
  if (device == cab_cpu()) return memset(t->storage->data, 0, t->storage->bytes), t;
  if (cab_tensor_fill(t, 0)) return cab_tensor_release(t), NULL;
  t->storage->version = 0;
  return t;
}

CabTensor *cab_tensor_retain(CabTensor *t) {
  if (t) t->refs++;
  return t;
}

/* A gradient may have a gradient: a loop. Nodes free their inputs from a list of their own (tape.c). */
void cab_tensor_release(CabTensor *t) {
  while (t && --t->refs == 0) {
    CabTensor *grad = t->grad;
    cab_scope_unlink(t);
    storage_release(t->storage);
    cab_node_release(t->node);
    cab_free(t);
    t = grad;
  }
}

void cab_tensor_close(CabTensor *t, const char *where) {
  if (!t || !t->storage) return;
  CabStorage *storage = t->storage;
  CabTensor *grad = t->grad;
  struct CabNode *node = t->node;
  cab_scope_unlink(t);
  t->storage = NULL;
  t->grad = NULL;
  t->node = NULL;
  cab_note_place(t->closed_at, where);
  storage_release(storage);
  cab_tensor_release(grad);
  cab_node_release(node); /* last: it may free tensors of the same scope */
}

CabTensor *cab_tensor_alias(CabTensor *t) {
  return cab_tensor_make(t->storage, t->dtype, t->rank, t->shape, t->stride, t->offset, false);
}

CabTensor *cab_tensor_detach(CabTensor *t) {
  if (cab_check_open("detach", t)) return NULL;
  return cab_tensor_make(t->storage, t->dtype, t->rank, t->shape, t->stride, t->offset, true);
}

CabStatus cab_tensor_move(CabTensor *t, CabTensor *home, int64_t at) {
  char text[160];
  CAB_TRY(cab_check_open("move", t));
  if (t->node || t->storage->refs != 1 || t->dtype != home->dtype || !cab_tensor_contiguous(t) || t->storage->device != home->storage->device)
    return cab_fail(CAB_E_BUG, "move: %s is computed, shared or not alike", cab_shape_text(t, text));
  CabTensor *place = cab_tensor_make(home->storage, t->dtype, t->rank, t->shape, t->stride, home->offset + at, false);
  if (!place) return cab_error()->code;
  CabStatus status = cab_tensor_copy(place, t);
  if (status == CAB_OK) {
    CabStorage *old = t->storage;
    t->storage = place->storage, t->offset = place->offset, place->storage = old;
  }
  cab_tensor_release(place);
  return status;
}

/* ---- questions ------------------------------------------------------------------------------------------------ */

CabStatus cab_check_open(const char *what, const CabTensor *t) {
  char text[160];
  if (t->storage) return CAB_OK;
  return cab_fail(CAB_E_LUA, "%s: the tensor %s is closed%s%s%s", what, cab_shape_text(t, text), t->closed_at[0] ? " (at " : "",
                  t->closed_at, t->closed_at[0] ? ")" : "");
}

int64_t cab_tensor_count(const CabTensor *t) {
  int64_t count = 1;
  for (int d = 0; d < t->rank; d++) count *= t->shape[d];
  return count;
}

void *cab_tensor_data(const CabTensor *t) {
  if (!t->storage || !t->storage->data) return NULL;
  return (char *)t->storage->data + t->offset * (int64_t)cab_dtype_size(t->dtype);
}

bool cab_tensor_contiguous(const CabTensor *t) {
  int64_t expected[CAB_MAX_RANK];
  cab_strides(t->rank, t->shape, expected);
  if (cab_tensor_count(t) == 0) return true;
  for (int d = 0; d < t->rank; d++)
    if (t->shape[d] != 1 && t->stride[d] != expected[d]) return false;
  return true;
}

/* Rows must not overlap, so a broadcast or reversed leading dim is none. */
bool cab_tensor_rows(const CabTensor *t, int64_t *ld) {
  int64_t width = t->rank ? t->shape[t->rank - 1] : 1, next = -1;
  *ld = width;
  if (cab_tensor_count(t) == 0 || t->rank == 0) return true;
  if (width != 1 && t->stride[t->rank - 1] != 1) return false;
  for (int d = t->rank - 2; d >= 0; d--) {
    if (t->shape[d] == 1) continue;
    if (next < 0) *ld = t->stride[d];
    else if (t->stride[d] != next) return false;
    if (*ld < width) return false;
    next = t->stride[d] * t->shape[d];
  }
  return true;
}

const char *cab_dims_text(int rank, const int64_t *shape, char out[160]) {
  size_t used = (size_t)snprintf(out, 160, "[");
  for (int d = 0; d < rank && d <= CAB_MAX_RANK && used < 150; d++)
    used += (size_t)snprintf(out + used, 160 - used, "%s%lld", d ? "," : "", (long long)shape[d]);
  if (used < 159) snprintf(out + used, 160 - used, "]");
  return out;
}

const char *cab_shape_text(const CabTensor *t, char out[160]) {
  char dims[160];
  snprintf(out, 160, "%s%.150s", cab_dtype_name(t->dtype), cab_dims_text(t->rank, t->shape, dims));
  return out;
}

/* ---- copies --------------------------------------------------------------------------------------------------- */

static CabStatus copy_view(CabTensor *dst, const CabTensor *src, const int64_t *stride_src) {
  return cab_copy_elements(dst->storage->device, dst->rank, dst->shape, src->dtype, cab_tensor_data(src), stride_src,
                           dst->dtype, cab_tensor_data(dst), dst->stride);
}

CabTensor *cab_tensor_contiguous_copy(CabTensor *t) {
  if (cab_check_open("copy", t)) return NULL;
  return cab_tensor_contiguous(t) ? cab_tensor_retain(t) : cab_tensor_to(t, t->storage->device, t->dtype);
}

/* A fresh contiguous tensor on t's device. */
static CabTensor *cast_here(CabTensor *t, CabDtype dtype) {
  CabTensor *out = cab_tensor_new(t->storage->device, dtype, t->rank, t->shape);
  if (out && copy_view(out, t, t->stride)) return cab_tensor_release(out), NULL;
  return out;
}

/* The bytes of a contiguous t, unchanged, on another device; one of the two is the host. */
static CabTensor *transfer(CabTensor *t, CabDevice *device) {
  CabDevice *from = t->storage->device, *worker = device == cab_cpu() ? from : device;
  CabTensor *out = cab_tensor_new(device, t->dtype, t->rank, t->shape);
  if (!out || !out->storage->data) return out;
  CabStatus status = worker->copy(worker, out->storage->data, cab_tensor_data(t), out->storage->bytes, device == cab_cpu() ? 2 : 1);
  if (status) return cab_tensor_release(out), NULL;
  return out;
}

/* Where a host is involved the cast happens there; moves between two other devices go through it. */
CabTensor *cab_tensor_to(CabTensor *t, CabDevice *device, CabDtype dtype) {
  if (cab_check_open("copy", t)) return NULL;
  CabDevice *from = t->storage->device, *host = cab_cpu();
  if (from == device) return cast_here(t, dtype);
  CabTensor *at_host = NULL, *out = NULL;
  if (from == host) {
    at_host = cast_here(t, dtype);
  } else {
    CabTensor *plain = cab_tensor_contiguous_copy(t);
    at_host = plain ? transfer(plain, host) : NULL;
    cab_tensor_release(plain);
    if (at_host && dtype != t->dtype) {
      CabTensor *cast = cast_here(at_host, dtype);
      cab_tensor_release(at_host);
      at_host = cast;
    }
  }
  if (!at_host || device == host) return at_host;
  out = transfer(at_host, device);
  cab_tensor_release(at_host);
  return out;
}

/* Strides that read src as if it had dst's shape. */
static CabStatus broadcast_strides(const char *what, const CabTensor *src, const CabTensor *dst, int64_t *stride) {
  char a[160], b[160];
  int extra = dst->rank - src->rank;
  for (int d = 0; extra >= 0 && d < dst->rank; d++) {
    int64_t size = d < extra ? 1 : src->shape[d - extra];
    if (size != 1 && size != dst->shape[d]) extra = -1;
    else stride[d] = size == 1 ? 0 : src->stride[d - extra];
  }
  if (extra >= 0) return CAB_OK;
  return cab_fail(CAB_E_LUA, "%s: %s does not broadcast to %s", what, cab_shape_text(src, a), cab_shape_text(dst, b));
}

static CabStatus check_writable(const char *what, const CabTensor *t) {
  char text[160];
  CAB_TRY(cab_check_open(what, t));
  for (int d = 0; d < t->rank; d++)
    if (t->shape[d] > 1 && t->stride[d] == 0)
      return cab_fail(CAB_E_LUA, "%s: %s is an expanded view, its elements share memory", what, cab_shape_text(t, text));
  return CAB_OK;
}

CabStatus cab_tensor_copy(CabTensor *dst, CabTensor *src) {
  int64_t stride[CAB_MAX_RANK];
  CAB_TRY(check_writable("copy", dst));
  CAB_TRY(cab_check_open("copy", src));
  CAB_TRY(broadcast_strides("copy", src, dst, stride));
  CabDevice *device = dst->storage->device;
  bool elsewhere = src->storage->device != device;
  CabTensor *from = src; /* a copy where the two may overlap, too */
  if (elsewhere || src->storage == dst->storage) {
    from = cab_tensor_to(src, device, dst->dtype);
    if (!from) return cab_error()->code;
    broadcast_strides("copy", from, dst, stride);
  }
  CabStatus status = copy_view(dst, from, stride);
  if (from != src) cab_tensor_release(from);
  cab_tensor_touch(dst, NULL);
  return status;
}

/* bf16 is a storage type on the CPU: it has no kernels there. */
static bool is_real(const CabTensor *t) {
  return t->dtype == CAB_F32 || t->dtype == CAB_F64 || (t->dtype == CAB_BF16 && t->storage->device != cab_cpu());
}

CabStatus cab_tensor_fill(CabTensor *t, double value) {
  CAB_TRY(check_writable("fill", t));
  if (is_real(t) && cab_tensor_contiguous(t)) {
    fill_fn *fill = (fill_fn *)cab_twin(t->storage->device, t->dtype, "fill");
    if (!fill) return cab_error()->code;
    if (cab_tensor_count(t)) fill(t->storage->device->stream, cab_tensor_count(t), value, cab_tensor_data(t));
    cab_tensor_touch(t, NULL);
    return cab_launched(t->storage->device, "fill");
  }
  CabTensor *one = cab_tensor_new(cab_cpu(), CAB_F64, 0, NULL);
  if (!one) return cab_error()->code;
  *(double *)one->storage->data = value;
  CabStatus status = cab_tensor_copy(t, one);
  cab_tensor_release(one);
  return status;
}

/* x with t's shape, dtype and device, contiguous. */
static CabTensor *spread(CabTensor *x, CabTensor *t) {
  if (x->rank == t->rank && !memcmp(x->shape, t->shape, sizeof *x->shape * (size_t)x->rank) && x->dtype == t->dtype &&
      x->storage->device == t->storage->device && cab_tensor_contiguous(x))
    return cab_tensor_retain(x);
  CabTensor *full = cab_tensor_new(t->storage->device, t->dtype, t->rank, t->shape);
  if (full && cab_tensor_copy(full, x)) return cab_tensor_release(full), NULL;
  return full;
}

static CabStatus axpy_into(CabTensor *t, double alpha, CabTensor *x) {
  axpy_fn *axpy = (axpy_fn *)cab_twin(t->storage->device, t->dtype, "axpy");
  if (!axpy) return cab_error()->code;
  if (cab_tensor_count(t)) axpy(t->storage->device->stream, cab_tensor_count(t), alpha, cab_tensor_data(x), cab_tensor_data(t));
  return cab_launched(t->storage->device, "axpy");
}

CabStatus cab_tensor_add(CabTensor *t, double alpha, CabTensor *x) {
  int64_t stride[CAB_MAX_RANK];
  char text[160];
  CAB_TRY(check_writable("add_", t));
  CAB_TRY(cab_check_open("add_", x));
  CAB_TRY(broadcast_strides("add_", x, t, stride));
  if (!is_real(t)) return cab_fail(CAB_E_LUA, "add_: %s is not f32 or f64", cab_shape_text(t, text));
  CabTensor *full = spread(x, t), *sum = full ? cab_tensor_contiguous_copy(t) : NULL;
  CabStatus status = sum ? axpy_into(sum, alpha, full) : cab_error()->code;
  if (!status && sum != t) status = cab_tensor_copy(t, sum);
  else if (!status) cab_tensor_touch(t, NULL);
  cab_tensor_release(sum);
  cab_tensor_release(full);
  return status;
}

void cab_note_place(char out[48], const char *where) {
  if (!where) where = cab_current_line();
  size_t length = strlen(where);
  memmove(out, length > 47 ? where + length - 47 : where, (length > 47 ? 47 : length) + 1);
}

void cab_tensor_touch(CabTensor *t, const char *where) {
  if (!t->storage) return;
  t->storage->version++;
  cab_note_place(t->storage->written_at, where);
}
