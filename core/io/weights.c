/* weights.c - which format, and the tensors of a description. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "rd.h"
#include "weights.h"

enum { BLOCK = 1 << 20 };

uint64_t cab_shape_count(int rank, const int64_t *shape) {
  uint64_t count = 1;
  bool empty = false;
  for (int i = 0; i < rank; i++) {
    empty = empty || !shape[i];
    if (shape[i]) count = sz_mul(count, (uint64_t)shape[i]);
  }
  return count > INT64_MAX / 8 ? SZ_BAD : empty ? 0 : count;
}

bool cab_view_fits(int rank, const int64_t *shape, const int64_t *stride, uint64_t offset, uint64_t elements) {
  uint64_t last = offset;
  for (int i = 0; i < rank; i++) {
    if (shape[i] == 0) return offset <= elements;
    last = sz_add(last, sz_mul((uint64_t)shape[i] - 1, (uint64_t)stride[i]));
  }
  return last < elements;
}

/* ---- opening ------------------------------------------------------------------------------- */

static int by_place(const void *a, const void *b) {
  const CabWeight *x = *(CabWeight *const *)a, *y = *(CabWeight *const *)b;
  if (x->entry != y->entry) return x->entry < y->entry ? -1 : 1;
  return x->offset < y->offset ? -1 : x->offset > y->offset;
}

static CabStatus order_by_place(CabWeights *w) {
  const CabWeight **list = cab_malloc((size_t)w->count, sizeof *list);
  w->order = cab_malloc((size_t)w->count, sizeof *w->order);
  if (list && w->order) {
    for (int i = 0; i < w->count; i++) list[i] = &w->weight[i];
    if (w->count) qsort(list, (size_t)w->count, sizeof *list, by_place);
    for (int i = 0; i < w->count; i++) w->order[i] = (int)(list[i] - w->weight);
  }
  bool done = list && w->order;
  cab_free(list);
  return done ? CAB_OK : CAB_E_MEMORY;
}

static CabStatus open_safetensors(CabWeights *w) {
  CAB_TRY(cab_st_open(&w->file, &w->st));
  w->count = w->st.count, w->metadata_count = w->st.metadata_count, w->metadata = w->st.metadata;
  if (!(w->weight = cab_malloc((size_t)w->count, sizeof *w->weight))) return CAB_E_MEMORY;
  for (int i = 0; i < w->count; i++) {
    const CabStTensor *t = &w->st.tensor[i];
    CabWeight *v = &w->weight[i];
    *v = (CabWeight){.name = t->name, .stored = t->stored, .rank = t->rank, .entry = -1, .offset = w->st.data_at + t->begin};
    int64_t step = 1;
    for (int d = t->rank; d-- > 0; step *= t->shape[d] ? t->shape[d] : 1) v->shape[d] = t->shape[d], v->stride[d] = step;
  }
  return CAB_OK;
}

static bool starts(const uint8_t *head, uint64_t length, const char *with, size_t count) { return length >= count && !memcmp(head, with, count); }

static CabStatus open_format(CabWeights *w, const char *key) {
  uint8_t head[264];
  uint64_t n = w->file.size < sizeof head ? w->file.size : sizeof head;
  CAB_TRY(cab_file_read(&w->file, head, n, 0));
  bool zip = starts(head, n, "PK\3\4", 4) || starts(head, n, "PK\5\6", 4);
  CabRd r = rd_open(head, n);
  bool pickle = n >= 8 && head[0] == 0x80 && head[1] >= 2 && head[1] <= 5 && rd_u64le(&r) > CAB_ST_MAX_HEADER;
  if (pickle || (n >= 262 && !memcmp(head + 257, "ustar", 5)))
    return cab_fail_file(CAB_E_INPUT, "pth-legacy", w->file.path, 0, "legacy format: re-save with torch >= 1.6");
  if (zip) {
    CAB_TRY(cab_zip_open(&w->file, &w->zip));
    for (int i = 0; i < w->zip.count; i++) {
      const char *name = w->zip.entry[i].name;
      size_t length = strlen(name);
      if (length < 4 || strcmp(name + length - 4, ".npy")) return cab_pth_open(w, key);
    }
  }
  if (key) return cab_fail_file(CAB_E_USAGE, "key", w->file.path, -1, "key '%s' is for PyTorch checkpoints; this is another format", key);
  if (zip) return cab_npz_open(w);
  return starts(head, n, "\x93NUMPY", 6) ? cab_npy_open(w) : open_safetensors(w);
}

CabStatus cab_weights_open(const char *path, const char *key, CabWeights *out) {
  *out = (CabWeights){.file = {.fd = -1}, .cached = -1};
  CabStatus status = cab_file_open(path, &out->file);
  if (status == CAB_OK) status = open_format(out, key);
  if (status == CAB_OK) status = order_by_place(out);
  if (status != CAB_OK) cab_weights_close(out);
  return status;
}

void cab_weights_close(CabWeights *w) {
  cab_file_close(&w->file);
  cab_bytes_free(&w->cache);
  cab_st_free(&w->st);
  cab_zip_free(&w->zip);
  cab_free(w->weight);
  cab_free(w->order);
  cab_free(w->names);
  cab_free(w->extra);
  *w = (CabWeights){.file = {.fd = -1}, .cached = -1};
}

/* ---- values -------------------------------------------------------------------------------- */

static bool contiguous(const CabWeight *v) {
  int64_t step = 1;
  for (int d = v->rank; d-- > 0; step *= v->shape[d])
    if (v->shape[d] > 1 && v->stride[d] != step) return false;
  return true;
}

typedef CabStatus Take(void *ctx, const uint8_t *values, uint64_t count);

/* Bytes of the file itself, a block at a time. */
static CabStatus take_file(CabWeights *w, const CabWeight *v, uint64_t count, uint8_t *block, Take *take, void *ctx) {
  uint64_t size = cab_stored[v->stored].size, most = BLOCK / size;
  for (uint64_t done = 0, n; done < count; done += n) {
    n = count - done < most ? count - done : most;
    CAB_TRY(cab_file_read(&w->file, block, n * size, v->offset + done * size));
    CAB_TRY(take(ctx, block, n));
  }
  return CAB_OK;
}

/* A strided view, gathered a block at a time in row-major order. */
static CabStatus take_view(const CabWeight *v, const uint8_t *base, uint64_t count, uint8_t *block, Take *take, void *ctx) {
  uint64_t size = cab_stored[v->stored].size, most = BLOCK / size, at = 0, n = 0;
  int64_t index[CAB_MAX_RANK] = {0};
  for (uint64_t done = 0; done < count; done++) {
    memcpy(block + n * size, base + at * size, size);
    if (++n == most || done + 1 == count) {
      CAB_TRY(take(ctx, block, n));
      n = 0;
    }
    for (int d = v->rank; d-- > 0;) {
      at += (uint64_t)v->stride[d];
      if (++index[d] < v->shape[d]) break;
      at -= (uint64_t)v->shape[d] * (uint64_t)v->stride[d];
      index[d] = 0;
    }
  }
  return CAB_OK;
}

static CabStatus unpacked(CabWeights *w, int entry, const uint8_t **base) {
  if (w->cached != entry) {
    cab_bytes_free(&w->cache);
    w->cached = -1;
    CAB_TRY(cab_zip_read(&w->file, &w->zip.entry[entry], &w->cache));
    w->cached = entry;
  }
  *base = w->cache.data;
  return CAB_OK;
}

/* All values in row-major order, in pieces. */
static CabStatus each(CabWeights *w, const CabWeight *v, Take *take, void *ctx) {
  uint64_t count = cab_shape_count(v->rank, v->shape);
  const uint8_t *base = NULL;
  if (v->entry >= 0) CAB_TRY(unpacked(w, v->entry, &base));
  if (!count) return CAB_OK;
  if (base && contiguous(v)) return take(ctx, base + v->offset, count);
  uint8_t *block = cab_malloc(BLOCK, 1), *whole = NULL;
  CabStatus status = block ? CAB_OK : CAB_E_MEMORY;
  if (status == CAB_OK && !base && !contiguous(v)) { /* .npy in Fortran order */
    uint64_t bytes = count * cab_stored[v->stored].size;
    if (!(whole = cab_malloc(bytes, 1))) status = CAB_E_MEMORY;
    if (status == CAB_OK) status = cab_file_read(&w->file, whole, bytes, v->offset);
    if (status == CAB_OK) status = take_view(v, whole, count, block, take, ctx);
  } else if (status == CAB_OK && base) status = take_view(v, base + v->offset, count, block, take, ctx);
  else if (status == CAB_OK) status = take_file(w, v, count, block, take, ctx);
  cab_free(whole);
  cab_free(block);
  return status;
}

typedef struct {
  CabWeights *w;
  const CabWeight *v;
  CabTensor *tensor;
  uint64_t done;
} Fill;

static CabStatus fill(void *ctx, const uint8_t *values, uint64_t count) {
  Fill *f = ctx;
  uint8_t *to = (uint8_t *)cab_tensor_data(f->tensor) + f->done * cab_dtype_size(f->tensor->dtype);
  uint64_t good = cab_stored_convert(f->v->stored, values, to, count);
  char name[340];
  if (good < count) {
    const CabStoredRow *row = &cab_stored[f->v->stored];
    return cab_fail_file(CAB_E_INPUT, "weights-value", f->w->file.path, -1, "tensor \"%s\": value %.0f (%s) at element %llu does not fit i32",
                         cab_escape(f->v->name, strlen(f->v->name), name), cab_stored_value(f->v->stored, values + good * row->size),
                         row->torch, (unsigned long long)(f->done + good));
  }
  f->done += count;
  return CAB_OK;
}

CabTensor *cab_weights_read(CabWeights *w, int index) {
  const CabWeight *v = &w->weight[index];
  const CabStoredRow *row = &cab_stored[v->stored];
  CabTensor *t = cab_tensor_new(cab_cpu(), row->dtype, v->rank, v->shape);
  if (!t) return NULL;
  Fill f = {w, v, t, 0};
  bool plain = v->entry < 0 && (int)v->stored == (int)row->dtype && contiguous(v);
  CabStatus status = plain ? cab_file_read(&w->file, cab_tensor_data(t), (uint64_t)cab_tensor_count(t) * row->size, v->offset)
                           : each(w, v, fill, &f);
  if (status == CAB_OK) return t;
  cab_tensor_release(t);
  return NULL;
}

typedef struct {
  CabStored stored;
  bool any;
  CabRange *range;
} Look;

static CabStatus look(void *ctx, const uint8_t *values, uint64_t count) {
  Look *l = ctx;
  CabRange *r = l->range;
  for (uint64_t i = 0; i < count; i++, values += cab_stored[l->stored].size) {
    double x = cab_stored_value(l->stored, values);
    if (isnan(x)) r->nan++;
    else if (isinf(x)) r->infinite++;
    else {
      r->min = l->any && r->min < x ? r->min : x;
      r->max = l->any && r->max > x ? r->max : x;
      l->any = true;
    }
  }
  return CAB_OK;
}

CabStatus cab_weights_range(CabWeights *w, int index, CabRange *out) {
  *out = (CabRange){0};
  Look l = {w->weight[index].stored, false, out};
  return each(w, &w->weight[index], look, &l);
}
