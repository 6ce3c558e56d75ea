/* reduce.c - gradients of a backward, summed over the ranks in buckets while the backward goes on.
 *
 * One backward without overlap shows in which order gradients are finished and how often each is added to. From then on they go in
 * that order into one buffer, cut into buckets; a bucket leaves when its last gradient has come, after the one before it, so that
 * all ranks sum the same things in the same order. The gradients that an optimizer sees are parts of the buffer. */
#include <stdlib.h>
#include <string.h>

#include "ranks.h"

typedef struct {
  CabTensor *tensor;
  int64_t at, n;      /* elements of the buffer */
  int bucket;         /* -1: it has no gradient */
  int arrivals, expected;
  int64_t last;       /* number of its last arrival */
} Param;
typedef struct {
  int first, count;   /* in the order of arrival */
  int waiting;        /* parameters whose gradients are not finished */
  int64_t at, n;
  bool sent;
} Bucket;

struct CabReducer {
  int count, ordered, buckets, next;
  Param *param, **order, **by_address;
  Bucket *bucket;
  MpiHandle *request;
  size_t bucket_bytes;
  CabTensor *flat;
  CabPiece *piece;
  CabDevice *device;
  CabDtype dtype;
  CabWire *wire;
  int64_t clock;
  bool learned;
};

static int by_address(const void *a, const void *b) {
  uintptr_t x = (uintptr_t)(*(Param *const *)a)->tensor, y = (uintptr_t)(*(Param *const *)b)->tensor;
  return (x > y) - (x < y);
}
static int by_arrival(const void *a, const void *b) {
  int64_t x = (*(Param *const *)a)->last, y = (*(Param *const *)b)->last;
  return (x > y) - (x < y);
}

CabReducer *cab_reducer_new(int count, CabTensor **params, size_t bucket_bytes) {
  CabReducer *r = cab_calloc(1, sizeof *r);
  size_t n = (size_t)count + 1;
  if (!r) return NULL;
  *r = (CabReducer){.count = count, .bucket_bytes = bucket_bytes, .device = count ? params[0]->storage->device : cab_cpu(),
                    .dtype = count ? params[0]->dtype : CAB_F32};
  r->param = cab_calloc(n, sizeof *r->param), r->order = cab_calloc(n, sizeof *r->order), r->by_address = cab_calloc(n, sizeof *r->order);
  r->bucket = cab_calloc(n, sizeof *r->bucket), r->request = cab_calloc(n, sizeof *r->request), r->piece = cab_calloc(n, sizeof *r->piece);
  CabStatus status = r->param && r->order && r->by_address && r->bucket && r->request && r->piece ? CAB_OK : cab_error()->code;
  for (int i = 0; status == CAB_OK && i < count; i++) {
    if (params[i]->storage->device != r->device || params[i]->dtype != r->dtype || (r->dtype != CAB_F32 && r->dtype != CAB_F64))
      status = cab_fail(CAB_E_LUA, "reducer: parameter %d: expected all on one device, all f32 or all f64", i + 1);
    r->param[i] = (Param){.tensor = cab_tensor_retain(params[i]), .n = cab_tensor_count(params[i])};
    r->by_address[i] = &r->param[i];
  }
  if (status == CAB_OK && r->device != cab_cpu() && !(r->wire = cab_dist_wire(r->device))) status = cab_error()->code;
  if (status == CAB_OK) qsort(r->by_address, (size_t)count, sizeof *r->by_address, by_address);
  if (status == CAB_OK) return r;
  CabError error = *cab_error();
  cab_reducer_free(r);
  *cab_error() = error;
  return NULL;
}

void cab_reducer_free(CabReducer *r) {
  if (!r) return;
  cab_set_leaf_hook(NULL, NULL);
  for (int i = 0; r->param && i < r->count; i++) cab_tensor_release(r->param[i].tensor);
  cab_tensor_release(r->flat);
  cab_free(r->param), cab_free(r->order), cab_free(r->by_address), cab_free(r->bucket), cab_free(r->request), cab_free(r->piece);
  cab_free(r);
}

void cab_reducer_forget(CabReducer *r) { r->learned = false; }
int cab_reducer_buckets(const CabReducer *r) { return r->buckets; }

/* ---- one bucket ------------------------------------------------------------------------------------------------- */

static CabStatus send_bucket(CabReducer *r, Bucket *b) {
  size_t size = cab_dtype_size(r->dtype);
  char *flat = cab_tensor_data(r->flat);
  b->sent = true;
  for (int i = 0; i < b->count; i++) {
    Param *p = r->order[b->first + i];
    CabTensor *g = p->tensor->grad;
    if (g && (!g->storage || !cab_tensor_contiguous(g))) return cab_fail(CAB_E_BUG, "reducer: a gradient is closed or not contiguous");
    r->piece[i] = (CabPiece){g ? cab_tensor_data(g) : NULL, p->at - b->at, p->n};
  }
  if (r->wire) return r->wire->reduce(r->wire, b->count, r->piece, flat + (size_t)b->at * size, b->n, r->dtype);
  for (int i = 0; i < b->count; i++) {
    char *to = flat + (size_t)(b->at + r->piece[i].at) * size;
    if (!r->piece[i].from) memset(to, 0, (size_t)r->piece[i].n * size);
    else if (to != r->piece[i].from) memcpy(to, r->piece[i].from, (size_t)r->piece[i].n * size);
  }
  if (cab_dist_size() == 1) return CAB_OK;
  int64_t bytes = b->n * (int64_t)size;
  int code = cab_mpi.iallreduce(cab_mpi.in_place, flat + (size_t)b->at * size, (int)b->n, r->dtype == CAB_F32 ? cab_mpi.f32 : cab_mpi.f64,
                                cab_mpi.sum, cab_mpi.world, &r->request[b - r->bucket]);
  return cab_dist_check(code, "gradients", bytes);
}

/* Buckets that are full, as far as none before them is missing. */
static CabStatus send_full(CabReducer *r) {
  while (r->next < r->buckets && r->bucket[r->next].waiting == 0) {
    CAB_TRY(send_bucket(r, &r->bucket[r->next]));
    r->next++;
  }
  if (!r->wire) cab_dist_progress(r->next, r->request);
  return CAB_OK;
}

/* A gradient has come to a leaf. */
static CabStatus arrived(void *ctx, CabTensor *leaf) {
  CabReducer *r = ctx;
  Param key = {.tensor = leaf}, *at = &key, **found = bsearch(&at, r->by_address, (size_t)r->count, sizeof *r->by_address, by_address);
  if (!found) return CAB_OK;
  Param *p = *found;
  p->arrivals++, p->last = ++r->clock;
  if (!r->learned || p->bucket < 0 || p->arrivals < p->expected) return CAB_OK;
  if (p->arrivals > p->expected)
    return cab_fail(CAB_E_BUG, "reducer: a gradient was added to after its bucket had left (%d times, expected %d)", p->arrivals, p->expected);
  r->bucket[p->bucket].waiting--;
  return send_full(r);
}

/* ---- the order -------------------------------------------------------------------------------------------------- */

/* Takes t; gives the same in no scope. */
static CabTensor *unscoped(CabTensor *t) {
  CabTensor *alias = t ? cab_tensor_alias(t) : NULL;
  cab_tensor_release(t);
  return alias;
}

static CabStatus plan(CabReducer *r) {
  size_t size = cab_dtype_size(r->dtype);
  int64_t total = 0;
  r->ordered = r->buckets = 0;
  for (int i = 0; i < r->count; i++) {
    Param *p = &r->param[i];
    p->bucket = -1, p->expected = p->arrivals;
    if (p->tensor->grad) r->order[r->ordered++] = p;
  }
  qsort(r->order, (size_t)r->ordered, sizeof *r->order, by_arrival);
  for (int i = 0; i < r->ordered; i++) {
    Param *p = r->order[i];
    Bucket *b = r->buckets ? &r->bucket[r->buckets - 1] : NULL;
    if (!b || (size_t)b->n * size >= r->bucket_bytes || b->n + p->n > INT32_MAX) {
      b = &r->bucket[r->buckets++];
      *b = (Bucket){.first = i, .at = total};
    }
    p->bucket = r->buckets - 1, p->at = total;
    b->count++, b->n = total + p->n - b->at;
    total += (p->n + 31) / 32 * 32; /* each begins at a cache line */
    if (total > b->at + b->n) b->n = total - b->at;
  }
  cab_tensor_release(r->flat);
  r->flat = unscoped(cab_tensor_zeros(r->device, r->dtype, 1, &total));
  if (!r->flat) return cab_error()->code;
  r->learned = true;
  return CAB_OK;
}

/* What all ranks must agree on: shapes in the order of arrival, as a number. */
static double fingerprint(const CabReducer *r) {
  uint64_t hash = 1469598103934665603u;
  for (int i = 0; i < r->ordered; i++) {
    const CabTensor *t = r->order[i]->tensor;
    hash = (hash ^ (uint64_t)(r->order[i] - r->param)) * 1099511628211u;
    for (int d = 0; d < t->rank; d++) hash = (hash ^ (uint64_t)t->shape[d]) * 1099511628211u;
  }
  return (double)(hash >> 12);
}

CabStatus cab_reducer_begin(CabReducer *r) {
  r->clock = 0, r->next = 0;
  for (int i = 0; i < r->count; i++) r->param[i].arrivals = 0;
  for (int i = 0; i < r->buckets; i++) {
    r->bucket[i].waiting = r->bucket[i].count;
    r->bucket[i].sent = false;
    r->request[i] = 0;
  }
  cab_set_leaf_hook(arrived, r);
  return CAB_OK;
}

/* param->grad becomes its part of the buffer. */
static CabStatus hand_out(Param *p, CabTensor *flat) {
  CabTensor *part = cab_slice(flat, 0, p->at, p->at + p->n), *view = part ? cab_reshape(part, p->tensor->rank, p->tensor->shape) : NULL;
  cab_tensor_release(part);
  view = unscoped(view);
  if (!view) return cab_error()->code;
  cab_tensor_release(p->tensor->grad);
  p->tensor->grad = view;
  return CAB_OK;
}

static CabStatus finish(CabReducer *r) {
  if (!r->learned) {
    int64_t elements = 0;
    CAB_TRY(plan(r));
    for (int i = 0; i < r->ordered; i++) elements += r->order[i]->n;
    CAB_TRY(cab_dist_meet("gradients", elements * (int64_t)cab_dtype_size(r->dtype), 0, 0, NULL, NULL));
    CAB_TRY(cab_dist_same("order of gradients", "parameters, or the order of their gradients,", fingerprint(r)));
  }
  for (int i = 0; i < r->count; i++)
    if (r->param[i].bucket < 0 && r->param[i].tensor->grad)
      return cab_fail(CAB_E_BUG, "reducer: parameter %d has a gradient for the first time in the middle of a stage", i + 1);
  for (; r->next < r->buckets; r->next++) CAB_TRY(send_bucket(r, &r->bucket[r->next]));
  if (r->wire) CAB_TRY(r->wire->join(r->wire));
  for (int i = 0; !r->wire && cab_dist_size() > 1 && i < r->buckets; i++)
    CAB_TRY(cab_dist_wait(1, &r->request[i], "gradients", r->bucket[i].n * (int64_t)cab_dtype_size(r->dtype)));
  for (int i = 0; i < r->ordered; i++)
    if (r->order[i]->tensor->grad) CAB_TRY(hand_out(r->order[i], r->flat));
  return CAB_OK;
}

CabStatus cab_reducer_finish(CabReducer *r) {
  cab_set_leaf_hook(NULL, NULL);
  bool old = cab_set_grad_enabled(false);
  CabStatus status = finish(r);
  cab_set_grad_enabled(old);
  return status;
}
