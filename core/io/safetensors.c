/* safetensors.c - header bytes to a checked description. */
#include <stdlib.h>
#include <string.h>

#include "json.h"
#include "safetensors.h"

typedef struct {
  CabJson json;
  CabSafetensors *st;
  uint64_t data_bytes, tensor_room, metadata_room;
  bool metadata_seen;
} Parse;

#define REFUSE(id, at, ...) cab_fail_file(CAB_E_INPUT, id, p->json.file, (int64_t)(at), __VA_ARGS__)
#define NAME(text) cab_escape((text), strlen(text), (char[340]){0})
typedef unsigned long long ull;

CabStatus cab_st_header_length(const uint8_t *first, uint64_t count, uint64_t file_size, const char *file, uint64_t *out) {
  CabRd rd = rd_open(first, count);
  uint64_t n = rd_u64le(&rd);
  if (rd.bad || file_size < 8)
    return cab_fail_file(CAB_E_INPUT, "st-header-size", file, 0, "the length field needs 8 bytes, the file has %llu", (ull)file_size);
  if (n > CAB_ST_MAX_HEADER)
    return cab_fail_file(CAB_E_INPUT, "st-header-size", file, 0, "the length field says %llu bytes, at most %u are allowed",
                         (ull)n, CAB_ST_MAX_HEADER);
  if (n > file_size - 8)
    return cab_fail_file(CAB_E_INPUT, "st-header-size", file, 0, "the length field says %llu bytes, %llu follow it", (ull)n,
                         (ull)(file_size - 8));
  if (n < 2) return cab_fail_file(CAB_E_INPUT, "st-header-size", file, 0, "the length field says %llu bytes, \"{}\" needs 2", (ull)n);
  *out = n;
  return CAB_OK;
}

/* One more element in an array that doubles. */
static CabStatus more_room(void **array, uint64_t *room, int count, size_t size) {
  if ((uint64_t)count < *room) return CAB_OK;
  uint64_t want = *room ? sz_mul(*room, 2) : 16;
  void *grown = want > INT32_MAX ? NULL : cab_realloc(*array, want, size);
  if (!grown) return cab_fail(CAB_E_MEMORY, "out of memory: %llu header entries", (ull)want);
  *array = grown;
  *room = want;
  return CAB_OK;
}

static CabStatus parse_dtype(Parse *p, CabStTensor *t) {
  static const char *const other[] = {"F8_E8M0", "C64", "F4", "F6_E2M3", "F6_E3M2"};
  CabJsonString s;
  if (cab_json_peek(&p->json) != '"')
    return REFUSE("st-dtype", cab_json_at(&p->json), "tensor \"%s\": \"dtype\" must be a string", NAME(t->name));
  CAB_TRY(cab_json_string(&p->json, &s));
  for (t->stored = 0; t->stored < CAB_STORED; t->stored++)
    if (!strcmp(cab_stored[t->stored].safetensors, s.text)) return CAB_OK;
  for (size_t i = 0; i < sizeof other / sizeof *other; i++)
    if (!strcmp(other[i], s.text)) return REFUSE("st-dtype", s.at, "tensor \"%s\": dtype %s is not supported", NAME(t->name), s.text);
  return REFUSE("st-dtype", s.at, "tensor \"%s\": unknown dtype \"%s\", expected F32, F64, F16, BF16, I64, ...", NAME(t->name), NAME(s.text));
}

static CabStatus parse_shape(Parse *p, CabStTensor *t) {
  CabJson *j = &p->json;
  if (cab_json_peek(j) != '[')
    return REFUSE("st-shape", cab_json_at(j), "tensor \"%s\": \"shape\" must be a list of integers", NAME(t->name));
  j->rd.position++;
  for (bool more, first = true;; first = false) {
    CAB_TRY(cab_json_next(j, ']', first, &more));
    if (!more) return CAB_OK;
    cab_json_peek(j);
    uint64_t at = cab_json_at(j), v;
    bool whole, fits;
    CAB_TRY(cab_json_integer(j, &whole, &fits, &v));
    if (!whole) return REFUSE("st-shape", at, "tensor \"%s\": size %d is no non-negative integer", NAME(t->name), t->rank + 1);
    if (!fits || v > INT64_MAX) return REFUSE("st-overflow", at, "tensor \"%s\": size %d is above 2^63", NAME(t->name), t->rank + 1);
    if (t->rank == CAB_MAX_RANK) return REFUSE("st-shape", at, "tensor \"%s\": more than %d dimensions", NAME(t->name), CAB_MAX_RANK);
    t->shape[t->rank++] = (int64_t)v;
  }
}

static CabStatus parse_offsets(Parse *p, CabStTensor *t) {
  CabJson *j = &p->json;
  cab_json_peek(j);
  uint64_t at = cab_json_at(j), v[2];
  if (rd_peek(&j->rd) != '[') return REFUSE("st-field", at, "tensor \"%s\": \"data_offsets\" must be [begin, end]", NAME(t->name));
  j->rd.position++;
  int n = 0;
  for (bool more, first = true;; first = false) {
    CAB_TRY(cab_json_next(j, ']', first, &more));
    if (!more) break;
    cab_json_peek(j);
    uint64_t here = cab_json_at(j);
    bool whole, fits;
    if (n == 2) return REFUSE("st-field", here, "tensor \"%s\": \"data_offsets\" has more than two numbers", NAME(t->name));
    CAB_TRY(cab_json_integer(j, &whole, &fits, &v[n]));
    if (!whole) return REFUSE("st-field", here, "tensor \"%s\": \"data_offsets\" must be two non-negative integers", NAME(t->name));
    if (!fits) return REFUSE("st-overflow", here, "tensor \"%s\": an offset is above 2^64", NAME(t->name));
    n++;
  }
  if (n != 2) return REFUSE("st-field", at, "tensor \"%s\": \"data_offsets\" has %d numbers, expected 2", NAME(t->name), n);
  t->begin = v[0], t->end = v[1];
  return CAB_OK;
}

/* The offsets fit the file, and the shape fills them. */
static CabStatus check_bytes(Parse *p, const CabStTensor *t) {
  const char *dtype = cab_stored[t->stored].safetensors;
  uint64_t need = cab_stored[t->stored].size;
  char shape[200] = "";
  int used = 0;
  for (int i = 0; i < t->rank; i++)
    used += snprintf(shape + used, sizeof shape - (size_t)used, "%s%lld", i ? "," : "", (long long)t->shape[i]);
  /* 0 x 2^40 x 2^40 is an overflow too: kernels multiply sizes in any order. */
  for (int i = 0; i < t->rank; i++)
    if (t->shape[i]) need = sz_mul(need, (uint64_t)t->shape[i]);
  if (need > INT64_MAX)
    return REFUSE("st-overflow", t->at, "tensor \"%s\": %s [%s] is 2^63 bytes or more", NAME(t->name), dtype, shape);
  for (int i = 0; i < t->rank; i++)
    if (!t->shape[i]) need = 0;
  if (t->begin > t->end)
    return REFUSE("st-size", t->at, "tensor \"%s\": offsets [%llu,%llu) run backwards", NAME(t->name), (ull)t->begin, (ull)t->end);
  if (t->end - t->begin != need)
    return REFUSE("st-size", t->at, "tensor \"%s\": %s [%s] needs %llu bytes, offsets [%llu,%llu) hold %llu", NAME(t->name),
                  dtype, shape, (ull)need, (ull)t->begin, (ull)t->end, (ull)(t->end - t->begin));
  if (t->end > p->data_bytes)
    return REFUSE("st-missing", t->at, "tensor \"%s\": offsets [%llu,%llu) pass the %llu bytes of data", NAME(t->name),
                  (ull)t->begin, (ull)t->end, (ull)p->data_bytes);
  return CAB_OK;
}

static CabStatus parse_tensor(Parse *p, const CabJsonString *name) {
  static const char *const field[3] = {"dtype", "shape", "data_offsets"};
  static CabStatus (*const parse[3])(Parse *, CabStTensor *) = {parse_dtype, parse_shape, parse_offsets};
  CabSafetensors *st = p->st;
  CAB_TRY(more_room((void **)&st->tensor, &p->tensor_room, st->count, sizeof *st->tensor));
  CabStTensor *t = &st->tensor[st->count];
  *t = (CabStTensor){.name = name->text, .at = name->at};
  if (cab_json_peek(&p->json) != '{')
    return REFUSE("st-field", cab_json_at(&p->json), "tensor \"%s\" must be an object", NAME(t->name));
  p->json.rd.position++;
  unsigned seen = 0;
  for (bool more, first = true;; first = false) {
    CabJsonString key;
    CAB_TRY(cab_json_next(&p->json, '}', first, &more));
    if (!more) break;
    CAB_TRY(cab_json_string(&p->json, &key));
    CAB_TRY(cab_json_expect(&p->json, ':'));
    int i = 0;
    while (i < 3 && strcmp(field[i], key.text)) i++;
    if (i == 3) return REFUSE("st-field", key.at, "tensor \"%s\": unknown field \"%s\"", NAME(t->name), NAME(key.text));
    if (seen & 1u << i) return REFUSE("st-duplicate", key.at, "tensor \"%s\": field \"%s\" twice", NAME(t->name), field[i]);
    seen |= 1u << i;
    CAB_TRY(parse[i](p, t));
  }
  for (int i = 0; i < 3; i++)
    if (!(seen & 1u << i)) return REFUSE("st-field", t->at, "tensor \"%s\": field \"%s\" is missing", NAME(t->name), field[i]);
  st->count++;
  return check_bytes(p, t);
}

static CabStatus parse_metadata(Parse *p, uint64_t at) {
  CabSafetensors *st = p->st;
  CabJson *j = &p->json;
  if (p->metadata_seen) return REFUSE("st-duplicate", at, "\"__metadata__\" twice");
  p->metadata_seen = true;
  if (cab_json_peek(j) != '{') return REFUSE("st-field", cab_json_at(j), "\"__metadata__\" must be an object of strings");
  j->rd.position++;
  for (bool more, first = true;; first = false) {
    CabJsonString key, value;
    CAB_TRY(cab_json_next(j, '}', first, &more));
    if (!more) return CAB_OK;
    CAB_TRY(cab_json_string(j, &key));
    CAB_TRY(cab_json_expect(j, ':'));
    if (cab_json_peek(j) != '"')
      return REFUSE("st-field", cab_json_at(j), "metadata \"%s\" must be a string", NAME(key.text));
    CAB_TRY(cab_json_string(j, &value));
    CAB_TRY(more_room((void **)&st->metadata, &p->metadata_room, st->metadata_count, sizeof *st->metadata));
    st->metadata[st->metadata_count++] = (CabStMeta){key.text, value.text, key.at};
  }
}

/* Ties by position: the later of two equal names is the one to report. */
static int by_name(const void *a, const void *b) {
  const CabStTensor *x = a, *y = b;
  int order = strcmp(x->name, y->name);
  return order ? order : x->at < y->at ? -1 : x->at > y->at;
}
static int by_key(const void *a, const void *b) {
  const CabStMeta *x = a, *y = b;
  int order = strcmp(x->key, y->key);
  return order ? order : x->at < y->at ? -1 : x->at > y->at;
}
static int by_place(const void *a, const void *b) {
  const CabStTensor *x = a, *y = b;
  if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
  if (x->end != y->end) return x->end < y->end ? -1 : 1;
  return by_name(a, b);
}

static CabStatus check_names(Parse *p) {
  CabSafetensors *st = p->st;
  if (st->count) qsort(st->tensor, (size_t)st->count, sizeof *st->tensor, by_name);
  if (st->metadata_count) qsort(st->metadata, (size_t)st->metadata_count, sizeof *st->metadata, by_key);
  for (int i = 1; i < st->count; i++)
    if (!strcmp(st->tensor[i - 1].name, st->tensor[i].name))
      return REFUSE("st-duplicate", st->tensor[i].at, "tensor \"%s\" twice, first at byte %llu", NAME(st->tensor[i].name),
                    (ull)st->tensor[i - 1].at);
  for (int i = 1; i < st->metadata_count; i++)
    if (!strcmp(st->metadata[i - 1].key, st->metadata[i].key))
      return REFUSE("st-duplicate", st->metadata[i].at, "metadata \"%s\" twice", NAME(st->metadata[i].key));
  return CAB_OK;
}

/* In order of place, each tensor starts where the one before ends. An empty one inside another overlaps it. */
static CabStatus check_places(Parse *p) {
  CabSafetensors *st = p->st;
  uint64_t end = 0;
  const CabStTensor *last = NULL;
  if (st->count) qsort(st->tensor, (size_t)st->count, sizeof *st->tensor, by_place);
  for (int i = 0; i < st->count; last = &st->tensor[i++]) {
    const CabStTensor *t = &st->tensor[i];
    if (t->begin < end)
      return REFUSE("st-overlap", t->at, "tensor \"%s\" [%llu,%llu) overlaps \"%s\" [%llu,%llu)", NAME(t->name), (ull)t->begin,
                    (ull)t->end, NAME(last->name), (ull)last->begin, (ull)last->end);
    if (t->begin > end)
      return REFUSE("st-hole", t->at, "bytes [%llu,%llu) before tensor \"%s\" belong to no tensor", (ull)end, (ull)t->begin, NAME(t->name));
    end = t->end;
  }
  if (end < p->data_bytes)
    return REFUSE("st-trailing", st->data_at + end, "%llu bytes after the last tensor", (ull)(p->data_bytes - end));
  if (st->count) qsort(st->tensor, (size_t)st->count, sizeof *st->tensor, by_name);
  return CAB_OK;
}

static CabStatus parse_header(Parse *p) {
  CabJson *j = &p->json;
  if (rd_peek(&j->rd) != '{') return cab_json_fail(j, "'{'");
  j->rd.position++;
  for (bool more, first = true;; first = false) {
    CabJsonString key;
    CAB_TRY(cab_json_next(j, '}', first, &more));
    if (!more) break;
    CAB_TRY(cab_json_string(j, &key));
    CAB_TRY(cab_json_expect(j, ':'));
    if (!strcmp(key.text, "__metadata__")) CAB_TRY(parse_metadata(p, key.at));
    else CAB_TRY(parse_tensor(p, &key));
  }
  if (cab_json_peek(j) >= 0) return cab_json_fail(j, "nothing but padding after the header");
  CAB_TRY(check_names(p));
  return check_places(p);
}

CabStatus cab_st_parse(const uint8_t *header, uint64_t length, uint64_t file_size, const char *file, CabSafetensors *out) {
  *out = (CabSafetensors){.data_at = 8 + length};
  if (length > CAB_ST_MAX_HEADER || file_size < 8 || length > file_size - 8)
    return cab_fail_file(CAB_E_INPUT, "st-header-size", file, 0, "a header of %llu bytes in a file of %llu", (ull)length, (ull)file_size);
  if (!(out->names = cab_malloc(length, 1))) return CAB_E_MEMORY;
  Parse p = {.json = {.rd = rd_open(header, length), .shift = 8, .file = file, .id = "st-json", .arena = out->names},
             .st = out, .data_bytes = file_size - 8 - length};
  CabStatus status = parse_header(&p);
  if (status != CAB_OK) cab_st_free(out);
  return status;
}

void cab_st_free(CabSafetensors *st) {
  cab_free(st->tensor);
  cab_free(st->metadata);
  cab_free(st->names);
  *st = (CabSafetensors){0};
}
