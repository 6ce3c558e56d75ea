/* tokens.c - streams of token ids: read by position, so that a file may be larger than memory; written as they come. */
#include <string.h>

#include "rd.h"
#include "text.h"

enum { HEADER = 64, LLMC = 1024, PART = 1 << 16 };
static const char magic[8] = "CABTOKEN";

struct CabTokens {
  CabFile file;  /* fd -1: ids are in memory */
  char *name;
  int32_t *ids;
  uint64_t count, data_at;
  CabTokenFormat format;
  int refs;
};

CabTokens *cab_tokens_retain(CabTokens *t) { return t->refs++, t; }

void cab_tokens_release(CabTokens *t) {
  if (!t || --t->refs > 0) return;
  cab_file_close(&t->file);
  cab_free(t->name), cab_free(t->ids);
  cab_free(t);
}

uint64_t cab_tokens_count(const CabTokens *t) { return t->count; }
CabTokenFormat *cab_tokens_format(CabTokens *t) { return &t->format; }

static CabTokens *make(const char *name) {
  CabTokens *t = cab_calloc(1, sizeof *t);
  size_t n = strlen(name) + 1;
  if (!t) return NULL;
  t->refs = 1, t->file.fd = -1, t->format.ending = -1;
  if (!(t->name = cab_malloc(n, 1))) return cab_free(t), NULL;
  memcpy(t->name, name, n);
  return t;
}

/* ---- headers ---------------------------------------------------------------------------------- */

static CabStatus refuse(const CabTokens *t, const char *id, int64_t at, const char *what) { return cab_fail_file(CAB_E_INPUT, id, t->name, at, "%s", what); }

static CabStatus own_header(CabTokens *t, CabRd *r) {
  rd_slice(r, sizeof magic);
  uint32_t version = rd_u32le(r), width = rd_u32le(r);
  uint64_t count = rd_u64le(r);
  t->format.hash = rd_u64le(r);
  int64_t ending = (int64_t)rd_u64le(r);
  uint64_t vocab = rd_u64le(r);
  if (r->bad) return refuse(t, "tok-header", 0, "the header is cut off");
  if (version != 1) return refuse(t, "tok-header", 8, "an unknown version of the header");
  if (width != 2 && width != 4) return refuse(t, "tok-header", 12, "ids must have 2 or 4 bytes");
  if (vocab > INT32_MAX || ending < -1 || (ending >= 0 && (uint64_t)ending >= vocab)) return refuse(t, "tok-header", 32, "the vocabulary or the id that ends documents is out of range");
  t->format.width = (int)width, t->format.vocab = (int64_t)vocab, t->format.ending = ending;
  t->count = count, t->data_at = HEADER;
  return CAB_OK;
}

static CabStatus read_header(CabTokens *t, int raw) {
  uint8_t bytes[HEADER] = {0};
  uint64_t n = t->file.size < HEADER ? t->file.size : HEADER;
  CAB_TRY(cab_file_read(&t->file, bytes, n, 0));
  CabRd r = rd_open(bytes, n);
  bool own = n >= sizeof magic && !memcmp(bytes, magic, sizeof magic);
  uint32_t first = n >= 12 ? rd_u32le(&r) : 0, version = rd_u32le(&r), count = rd_u32le(&r);
  bool short_ids = first == 20240520 && version == 1, long_ids = first == 20240801 && version == 7;
  if (raw && own) return refuse(t, "tok-header", 0, "has a header, so the width of its ids is not given");
  if (raw) {
    t->format.width = raw, t->count = t->file.size / (unsigned)raw;
  } else if (own) {
    r = rd_open(bytes, n);
    CAB_TRY(own_header(t, &r));
  } else if (short_ids || long_ids) {
    t->format.width = short_ids ? 2 : 4, t->count = count, t->data_at = LLMC;
  } else return refuse(t, "tok-header", 0, "no header of a token file: say whether its ids are u16 or u32");
  uint64_t need = sz_add(t->data_at, sz_mul(t->count, (uint64_t)t->format.width));
  if (need == t->file.size) return CAB_OK;
  char text[120];
  snprintf(text, sizeof text, "%llu ids of %d bytes need %llu bytes, the file has %llu", (unsigned long long)t->count, t->format.width,
           (unsigned long long)need, (unsigned long long)t->file.size);
  return refuse(t, "tok-size", (int64_t)t->data_at, text);
}

CabTokens *cab_tokens_open(const char *path, int raw) {
  CabTokens *t = make(path);
  if (!t) return NULL;
  if (cab_file_open(t->name, &t->file) == CAB_OK && read_header(t, raw) == CAB_OK) return t;
  cab_tokens_release(t);
  return NULL;
}

CabTokens *cab_tokens_memory(CabIds *ids, CabTokenFormat format, const char *name) {
  CabTokens *t = make(name);
  if (!t) cab_free(ids->ids);
  else t->ids = ids->ids, t->count = ids->count, t->format = format;
  *ids = (CabIds){0};
  return t;
}

/* ---- reading ---------------------------------------------------------------------------------- */

static CabStatus outside(const CabTokens *t, uint64_t at, int64_t id) {
  int64_t byte = t->ids ? -1 : (int64_t)(t->data_at + at * (unsigned)t->format.width);
  return cab_fail_file(CAB_E_INPUT, "tok-id", t->name, byte, "id %lld at position %llu, the vocabulary has %lld", (long long)id,
                       (unsigned long long)at, (long long)t->format.vocab);
}

/* At most PART ids of the file. */
static CabStatus read_part(const CabTokens *t, uint64_t at, size_t n, int32_t *out) {
  uint8_t bytes[PART];
  size_t width = (size_t)t->format.width;
  CAB_TRY(cab_file_read(&t->file, bytes, n * width, t->data_at + at * width));
  for (size_t i = 0; i < n; i++) {
    const uint8_t *p = bytes + i * width;
    uint32_t id = width == 2 ? (uint32_t)(p[0] | p[1] << 8) : (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
    if (id > INT32_MAX) return outside(t, at + i, id);
    out[i] = (int32_t)id;
  }
  return CAB_OK;
}

CabStatus cab_tokens_read(const CabTokens *t, uint64_t at, size_t n, int32_t *out) {
  if (at > t->count || n > t->count - at)
    return cab_fail(CAB_E_LUA, "%s: ids %llu to %llu of %llu", t->name, (unsigned long long)at, (unsigned long long)(at + n), (unsigned long long)t->count);
  if (t->ids && n) memcpy(out, t->ids + at, n * sizeof *out);
  for (size_t done = 0, part; !t->ids && done < n; done += part) {
    part = n - done < PART / 4 ? n - done : PART / 4;
    CAB_TRY(read_part(t, at + done, part, out + done));
  }
  for (size_t i = 0; t->format.vocab && i < n; i++)
    if (out[i] >= t->format.vocab) return outside(t, at + i, out[i]);
  return CAB_OK;
}

/* ---- writing ---------------------------------------------------------------------------------- */

struct CabTokenWriter {
  CabSink *sink;
  CabTokenFormat format;
  bool header;
  uint64_t count;
};

static CabStatus put_header(CabTokenWriter *w) {
  uint8_t bytes[HEADER] = {0};
  const uint64_t field[] = {1 | (uint64_t)w->format.width << 32, w->count, w->format.hash, (uint64_t)w->format.ending, (uint64_t)w->format.vocab};
  memcpy(bytes, magic, sizeof magic);
  for (int i = 0; i < 5; i++)
    for (int b = 0; b < 8; b++) bytes[8 + 8 * i + b] = (uint8_t)(field[i] >> 8 * b);
  return w->count ? cab_sink_patch(w->sink, bytes, HEADER, 0) : cab_sink_write(w->sink, bytes, HEADER);
}

CabTokenWriter *cab_token_writer_open(const char *path, CabTokenFormat format, bool header) {
  CabTokenWriter *w = cab_calloc(1, sizeof *w);
  if (!w) return NULL;
  w->format = format, w->header = header;
  if ((w->sink = cab_sink_open(path)) && (!header || put_header(w) == CAB_OK)) return w;
  cab_token_writer_abort(w);
  return NULL;
}

CabStatus cab_token_writer_add(CabTokenWriter *w, const int32_t *ids, size_t n) {
  uint8_t bytes[PART];
  size_t width = (size_t)w->format.width;
  for (size_t done = 0, part; done < n; done += part) {
    part = n - done < PART / 4 ? n - done : PART / 4;
    for (size_t i = 0; i < part; i++) {
      uint32_t id = (uint32_t)ids[done + i];
      if (width == 2 && id > UINT16_MAX) return cab_fail(CAB_E_LUA, "id %u does not fit u16", id);
      for (size_t b = 0; b < width; b++) bytes[i * width + b] = (uint8_t)(id >> 8 * b);
    }
    CAB_TRY(cab_sink_write(w->sink, bytes, part * width));
  }
  w->count += n;
  return CAB_OK;
}

CabStatus cab_token_writer_commit(CabTokenWriter *w) {
  CabStatus status = w->header && w->count ? put_header(w) : CAB_OK;
  if (status == CAB_OK) status = cab_sink_commit(w->sink);
  else cab_sink_abort(w->sink);
  cab_free(w);
  return status;
}

void cab_token_writer_abort(CabTokenWriter *w) {
  if (!w) return;
  CabError kept = *cab_error(); /* what made the caller give up */
  cab_sink_abort(w->sink);
  *cab_error() = kept;
  cab_free(w);
}
