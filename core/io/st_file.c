/* st_file.c - safetensors files: headers in, tensors out. The data is little-endian, as is every machine this builds for. */
#include <stdlib.h>
#include <string.h>

#include "safetensors.h"

CabStatus cab_st_open(const CabFile *file, CabSafetensors *out) {
  uint8_t first[8], *header = NULL;
  uint64_t length = 0;
  *out = (CabSafetensors){0};
  uint64_t head = file->size < 8 ? file->size : 8;
  CAB_TRY(cab_file_read(file, first, head, 0));
  CAB_TRY(cab_st_header_length(first, head, file->size, file->path, &length));
  if (!(header = cab_malloc(length, 1))) return CAB_E_MEMORY;
  CabStatus status = cab_file_read(file, header, length, 8);
  if (status == CAB_OK) status = cab_st_parse(header, length, file->size, file->path, out);
  cab_free(header);
  return status;
}

/* ---- writing ------------------------------------------------------------------------------- */

typedef struct {
  char *text;
  size_t used, room;
} Text;

static CabStatus put(Text *t, const char *bytes, size_t count) {
  if (t->room - t->used < count) {
    uint64_t room = sz_add(sz_mul(t->room, 2), sz_add(count, 4096));
    char *grown = cab_realloc(t->text, room, 1);
    if (!grown) return CAB_E_MEMORY;
    t->text = grown;
    t->room = room;
  }
  memcpy(t->text + t->used, bytes, count);
  t->used += count;
  return CAB_OK;
}

/* A JSON string. Bytes above 0x7f go through: the header is parsed once more before it is written, which checks UTF-8. */
static CabStatus put_string(Text *t, const char *s) {
  CAB_TRY(put(t, "\"", 1));
  for (; *s; s++) {
    char code[8] = "";
    unsigned char c = (unsigned char)*s;
    if (c == '"' || c == '\\') CAB_TRY(put(t, (char[2]){'\\', *s}, 2));
    else if (c < 0x20) {
      snprintf(code, sizeof code, "\\u%04x", c);
      CAB_TRY(put(t, code, 6));
    } else CAB_TRY(put(t, s, 1));
  }
  return put(t, "\"", 1);
}

static CabStatus put_tensor(Text *t, const CabStEntry *e, uint64_t *offset) {
  char text[96];
  CAB_TRY(put_string(t, e->name));
  CAB_TRY(put(t, text, (size_t)snprintf(text, sizeof text, ":{\"dtype\":\"%s\",\"shape\":[", cab_stored[e->tensor->dtype].safetensors)));
  for (int i = 0; i < e->tensor->rank; i++)
    CAB_TRY(put(t, text, (size_t)snprintf(text, sizeof text, i ? ",%lld" : "%lld", (long long)e->tensor->shape[i])));
  uint64_t begin = *offset;
  *offset = sz_add(begin, sz_mul((uint64_t)cab_tensor_count(e->tensor), cab_dtype_size(e->tensor->dtype)));
  return put(t, text, (size_t)snprintf(text, sizeof text, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)begin,
                                       (unsigned long long)*offset));
}

static CabStatus put_header(Text *t, int count, const CabStEntry *entries, int metadata_count, const CabStMeta *metadata,
                            uint64_t *data_bytes) {
  CAB_TRY(put(t, "{", 1));
  if (metadata_count) CAB_TRY(put(t, "\"__metadata__\":{", 16));
  for (int i = 0; i < metadata_count; i++) {
    if (i) CAB_TRY(put(t, ",", 1));
    CAB_TRY(put_string(t, metadata[i].key));
    CAB_TRY(put(t, ":", 1));
    CAB_TRY(put_string(t, metadata[i].value));
  }
  if (metadata_count) CAB_TRY(put(t, "}", 1));
  for (int i = 0; i < count; i++) {
    if (i || metadata_count) CAB_TRY(put(t, ",", 1));
    CAB_TRY(put_tensor(t, &entries[i], data_bytes));
  }
  CAB_TRY(put(t, "}", 1));
  while (t->used % 8) CAB_TRY(put(t, " ", 1));
  return CAB_OK;
}

typedef struct {
  Text header;
  int count;
  const CabStEntry *entries;
} Save;

static CabStatus write_tensor(CabSink *sink, CabTensor *t) {
  CabTensor *host = t->storage->device == cab_cpu() ? cab_tensor_retain(t) : cab_tensor_to(t, cab_cpu(), t->dtype);
  CabTensor *plain = host ? cab_tensor_contiguous_copy(host) : NULL;
  CabStatus status = plain ? cab_sink_write(sink, cab_tensor_data(plain), (uint64_t)cab_tensor_count(plain) * cab_dtype_size(plain->dtype))
                           : cab_error()->code;
  cab_tensor_release(plain);
  cab_tensor_release(host);
  return status;
}

static CabStatus write_save(void *ctx, CabSink *sink) {
  const Save *s = ctx;
  uint8_t length[8];
  for (int i = 0; i < 8; i++) length[i] = (uint8_t)((uint64_t)s->header.used >> (8 * i));
  CAB_TRY(cab_sink_write(sink, length, 8));
  CAB_TRY(cab_sink_write(sink, s->header.text, s->header.used));
  for (int i = 0; i < s->count; i++) CAB_TRY(write_tensor(sink, s->entries[i].tensor));
  return CAB_OK;
}

static int entry_order(const void *a, const void *b) { return strcmp(((const CabStEntry *)a)->name, ((const CabStEntry *)b)->name); }
static int meta_order(const void *a, const void *b) { return strcmp(((const CabStMeta *)a)->key, ((const CabStMeta *)b)->key); }

CabStatus cab_st_save(const char *path, int count, CabStEntry *entries, int metadata_count, CabStMeta *metadata) {
  if (count) qsort(entries, (size_t)count, sizeof *entries, entry_order);
  if (metadata_count) qsort(metadata, (size_t)metadata_count, sizeof *metadata, meta_order);
  for (int i = 0; i < count; i++) {
    if (!entries[i].tensor->storage) return cab_fail(CAB_E_LUA, "save: tensor '%s' is closed", entries[i].name);
    if (!strcmp(entries[i].name, "__metadata__")) return cab_fail(CAB_E_LUA, "save: a tensor must not be named __metadata__");
  }
  Save s = {.count = count, .entries = entries};
  uint64_t data_bytes = 0;
  CabSafetensors check = {0};
  CabStatus status = put_header(&s.header, count, entries, metadata_count, metadata, &data_bytes);
  /* What cannot be read back (equal names, bad UTF-8, a header too long) is not written. */
  if (status == CAB_OK)
    status = cab_st_parse((const uint8_t *)s.header.text, s.header.used, sz_add(8 + s.header.used, data_bytes), path, &check);
  cab_st_free(&check);
  if (status == CAB_OK) status = cab_write_atomic(path, write_save, &s);
  cab_free(s.header.text);
  return status;
}
