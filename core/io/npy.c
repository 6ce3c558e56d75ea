/* npy.c - NumPy's .npy (format 1.0 to 3.0) and .npz, a zip of them. The header is a literal of Python:
 * {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), } and blanks. Errors 65: npy-header, npy-dtype, npy-size. */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "rd.h"
#include "weights.h"

enum { HEAD = 12 + 10000 }; /* as much as NumPy itself accepts */
typedef unsigned long long ull;

typedef struct {
  CabRd rd;
  const char *file, *name;
  uint64_t shift;
  CabWeight *v;
  bool fortran;
} Npy;

#define REFUSE(id, ...) refuse(p, id, __VA_ARGS__)
__attribute__((format(printf, 3, 4))) static CabStatus refuse(Npy *p, const char *id, const char *fmt, ...) {
  char text[300], name[340];
  va_list args;
  va_start(args, fmt);
  vsnprintf(text, sizeof text, fmt, args);
  va_end(args);
  return cab_fail_file(CAB_E_INPUT, id, p->file, (int64_t)sz_add(p->shift, p->rd.position), "\"%s\": %s",
                       cab_escape(p->name, strlen(p->name), name), text);
}

static void blanks(Npy *p) {
  while (rd_peek(&p->rd) == ' ') p->rd.position++;
}
static bool have(Npy *p, const char *text) {
  blanks(p);
  size_t n = strlen(text);
  if (rd_left(&p->rd) < n || memcmp(p->rd.base + p->rd.position, text, n)) return false;
  p->rd.position += n;
  return true;
}

static CabStatus parse_dtype(Npy *p) {
  static const char *const order = "<|=";
  char text[8] = "";
  blanks(p);
  uint64_t start = p->rd.position;
  if (rd_u8(&p->rd) != '\'') return p->rd.position = start, REFUSE("npy-dtype", "no plain dtype: structured arrays are not read");
  int n = 0, c;
  while ((c = rd_peek(&p->rd)) > 0 && c != '\'' && n < 7) text[n++] = (char)c, p->rd.position++;
  if (!have(p, "'")) return REFUSE("npy-dtype", "a dtype of more than 7 letters");
  for (int i = 0; i < CAB_STORED; i++)
    if (*cab_stored[i].numpy && n && !strcmp(text + 1, cab_stored[i].numpy)) {
      p->v->stored = (CabStored)i;
      if (strchr(order, text[0]) || cab_stored[i].size == 1) return CAB_OK;
    }
  p->rd.position = start;
  char shown[340];
  return REFUSE("npy-dtype", "dtype '%s' is not read: expected little-endian numbers as '<f4'", cab_escape(text, strlen(text), shown));
}

static CabStatus parse_shape(Npy *p) {
  if (!have(p, "(")) return REFUSE("npy-header", "expected a shape, as (3, 4)");
  while (!have(p, ")")) {
    uint64_t size = 0, digits = 0;
    int c;
    if (p->v->rank == CAB_MAX_RANK) return REFUSE("npy-header", "more than %d dimensions", CAB_MAX_RANK);
    for (; (c = rd_peek(&p->rd)) >= '0' && c <= '9'; digits++, p->rd.position++) size = sz_add(sz_mul(size, 10), (uint64_t)(c - '0'));
    if (!digits || size > INT64_MAX) return REFUSE("npy-header", "size %d of the shape is no integer below 2^63", p->v->rank + 1);
    p->v->shape[p->v->rank++] = (int64_t)size;
    if (!have(p, ",") && (blanks(p), rd_peek(&p->rd)) != ')') return REFUSE("npy-header", "expected ',' or ')' in the shape");
  }
  return CAB_OK;
}

static CabStatus parse_fields(Npy *p) {
  unsigned seen = 0;
  if (!have(p, "{")) return REFUSE("npy-header", "expected '{'");
  while (!have(p, "}")) {
    unsigned field = have(p, "'descr'") ? 1 : have(p, "'fortran_order'") ? 2 : have(p, "'shape'") ? 4 : 0;
    if (!field) return REFUSE("npy-header", "expected 'descr', 'fortran_order' or 'shape'");
    if (seen & field) return REFUSE("npy-header", "a field stands twice");
    seen |= field;
    if (!have(p, ":")) return REFUSE("npy-header", "expected ':'");
    if (field == 1) CAB_TRY(parse_dtype(p));
    else if (field == 4) CAB_TRY(parse_shape(p));
    else if (have(p, "True")) p->fortran = true;
    else if (!have(p, "False")) return REFUSE("npy-header", "fortran_order is neither True nor False");
    if (!have(p, ",") && (blanks(p), rd_peek(&p->rd)) != '}') return REFUSE("npy-header", "expected ',' or '}'");
  }
  if (seen != 7) return REFUSE("npy-header", "descr, fortran_order or shape is missing");
  have(p, "\n");
  blanks(p);
  return rd_left(&p->rd) ? REFUSE("npy-header", "something follows the header's '}'") : CAB_OK;
}

/* The first `length` bytes of an array of `total` bytes. */
static CabStatus parse(const uint8_t *head, uint64_t length, uint64_t total, const char *file, uint64_t shift, CabWeight *v) {
  Npy npy = {.rd = rd_open(head, length), .file = file, .name = v->name, .shift = shift, .v = v}, *p = &npy;
  const uint8_t *magic = rd_slice(&p->rd, 6);
  if (!magic || memcmp(magic, "\x93NUMPY", 6)) return p->rd.position = 0, REFUSE("npy-header", "no NumPy array here");
  unsigned major = rd_u8(&p->rd), minor = rd_u8(&p->rd);
  if (major < 1 || major > 3 || minor) return REFUSE("npy-header", "format %u.%u, expected 1.0 to 3.0", major, minor);
  uint64_t size = major == 1 ? rd_u16le(&p->rd) : rd_u32le(&p->rd);
  if (p->rd.bad || size > rd_left(&p->rd))
    return p->rd.bad = false, REFUSE("npy-header", "a header of %llu bytes, at most 10000 and the file are read", (ull)size);
  uint64_t data_at = p->rd.position + size;
  p->rd.length = data_at;
  CAB_TRY(parse_fields(p));
  int64_t step = 1;
  for (int i = 0; i < v->rank; i++) {
    int d = p->fortran ? i : v->rank - 1 - i;
    v->stride[d] = step;
    if (__builtin_mul_overflow(step, v->shape[d] ? v->shape[d] : 1, &step)) return REFUSE("npy-size", "the shape is 2^63 elements or more");
  }
  uint64_t need = sz_mul(cab_shape_count(v->rank, v->shape), cab_stored[v->stored].size);
  if (need != total - data_at)
    return REFUSE("npy-size", "the shape needs %llu bytes, %llu are there", (ull)need, (ull)(total - data_at));
  v->offset += data_at;
  return CAB_OK;
}

CabStatus cab_npy_open(CabWeights *w) {
  uint8_t *head = cab_malloc(HEAD, 1);
  uint64_t n = w->file.size < HEAD ? w->file.size : HEAD;
  w->weight = cab_calloc(1, sizeof *w->weight);
  if (!head || !w->weight) return cab_free(head), CAB_E_MEMORY;
  w->weight[0] = (CabWeight){.name = "arr_0", .entry = -1};
  CabStatus status = cab_file_read(&w->file, head, n, 0);
  if (status == CAB_OK) status = parse(head, n, w->file.size, w->file.path, 0, w->weight);
  if (status == CAB_OK) w->count = 1;
  cab_free(head);
  return status;
}

static int by_name(const void *a, const void *b) { return strcmp(((const CabWeight *)a)->name, ((const CabWeight *)b)->name); }

/* Names are those of the entries without ".npy". */
CabStatus cab_npz_open(CabWeights *w) {
  uint8_t *head = cab_malloc(HEAD, 1);
  w->weight = cab_calloc((size_t)w->zip.count, sizeof *w->weight);
  CabStatus status = head && w->weight ? CAB_OK : CAB_E_MEMORY;
  if (status == CAB_OK && w->zip.count > CAB_WEIGHTS_MAX)
    status = cab_fail_file(CAB_E_INPUT, "npy-size", w->file.path, -1, "%d arrays, at most %d are read", w->zip.count, CAB_WEIGHTS_MAX);
  for (int i = 0; status == CAB_OK && i < w->zip.count; i++) {
    CabZipEntry *e = &w->zip.entry[i];
    uint64_t got = 0;
    w->weight[i] = (CabWeight){.name = e->name, .entry = i};
    status = cab_zip_head(&w->file, e, head, HEAD, &got);
    if (status == CAB_OK) status = parse(head, got, e->bytes, w->file.path, e->data_at, &w->weight[i]);
  }
  for (int i = 0; status == CAB_OK && i < w->zip.count; i++) { /* the zip is not searched by name from here on */
    char *end = (char *)(uintptr_t)w->zip.entry[i].name + strlen(w->zip.entry[i].name) - 4;
    *end = 0;
    w->count++;
  }
  if (status == CAB_OK && w->count) qsort(w->weight, (size_t)w->count, sizeof *w->weight, by_name);
  cab_free(head);
  return status;
}
