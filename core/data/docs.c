/* docs.c - documents of text and JSONL files in bounded memory. */
#include <string.h>
#include <zlib.h>

#include "json.h"
#include "text.h"

#ifndef BLOCK
#define BLOCK (1 << 20)
#endif
enum { DEPTH = 128 };

struct CabDocs {
  CabFile file;
  char *path, *field;
  uint64_t offset;      /* bytes of the file taken */
  uint64_t shift;       /* offset of room[0] in the text, for messages */
  int64_t line;         /* of the last line looked at */
  bool gz, end, ended;  /* end: no more bytes; ended: the document's last part is out */
  z_stream z;
  uint8_t *packed;      /* [BLOCK] of a gzip file */
  uint8_t *room;        /* [capacity] bytes [from, to) are waiting */
  size_t from, to, capacity;
  char *arena;          /* strings of a line */
  size_t arena_size;
};

void cab_docs_close(CabDocs *d) {
  if (!d) return;
  if (d->gz) inflateEnd(&d->z);
  cab_file_close(&d->file);
  cab_free(d->path), cab_free(d->field), cab_free(d->packed), cab_free(d->room), cab_free(d->arena);
  cab_free(d);
}

static char *copy(const char *text) {
  size_t n = strlen(text) + 1;
  char *out = cab_malloc(n, 1);
  if (out) memcpy(out, text, n);
  return out;
}

static CabStatus begin(CabDocs *d, const char *path, const char *field) {
  uint8_t magic[2] = {0};
  d->file.fd = -1;
  if (!(d->path = copy(path)) || (field && !(d->field = copy(field)))) return CAB_E_MEMORY;
  CAB_TRY(cab_file_open(d->path, &d->file));
  CAB_TRY(cab_file_read(&d->file, magic, d->file.size < 2 ? d->file.size : 2, 0));
  if (magic[0] == 0x1f && magic[1] == 0x8b) {
    if (!(d->packed = cab_malloc(BLOCK, 1)) || inflateInit2(&d->z, 15 + 16) != Z_OK) return cab_fail(CAB_E_MEMORY, "out of memory in inflate");
    d->gz = true;
  }
  return CAB_OK;
}

CabDocs *cab_docs_open(const char *path, const char *field) {
  CabDocs *d = cab_calloc(1, sizeof *d);
  if (!d) return NULL;
  if (begin(d, path, field) == CAB_OK) return d;
  cab_docs_close(d);
  return NULL;
}

void cab_docs_position(const CabDocs *d, uint64_t *read, uint64_t *size, int64_t *line) {
  *read = d->offset, *size = d->file.size, *line = d->line;
}

static CabStatus refuse(const CabDocs *d, const char *id, size_t at, int64_t line, const char *what) {
  return cab_fail_file(CAB_E_INPUT, id, d->path, (int64_t)(d->shift + at), "line %lld: %s", (long long)line, what);
}

/* ---- bytes ------------------------------------------------------------------------------------ */

static CabStatus take(CabDocs *d, uint8_t *to, size_t *n) {
  uint64_t left = d->file.size - d->offset, count = left < BLOCK ? left : BLOCK;
  CAB_TRY(cab_file_read(&d->file, to, count, d->offset));
  d->offset += count, *n = count;
  if (d->offset == d->file.size) CAB_TRY(cab_file_unchanged(&d->file));
  return CAB_OK;
}

static CabStatus unpack(CabDocs *d, uint8_t *to, size_t *n) {
  d->z.next_out = to, d->z.avail_out = BLOCK;
  while (d->z.avail_out) {
    if (!d->z.avail_in && d->offset < d->file.size) {
      size_t count;
      CAB_TRY(take(d, d->packed, &count));
      d->z.next_in = d->packed, d->z.avail_in = (uInt)count;
    }
    int code = inflate(&d->z, Z_NO_FLUSH);
    if (code == Z_STREAM_END) {
      if (!d->z.avail_in && d->offset == d->file.size) {
        d->end = true;
        break;
      }
      inflateReset(&d->z); /* another member follows, or what follows is no gzip data */
    } else if (code == Z_BUF_ERROR)
      return cab_fail_file(CAB_E_INPUT, "gz-truncated", d->path, (int64_t)d->offset, "the gzip data is cut off");
    else if (code != Z_OK)
      return cab_fail_file(CAB_E_INPUT, "gz-data", d->path, (int64_t)(d->offset - d->z.avail_in), "bad gzip data: %s", d->z.msg ? d->z.msg : "unknown");
  }
  *n = BLOCK - d->z.avail_out;
  return CAB_OK;
}

/* More bytes behind those that wait; sets d->end where there are none. */
static CabStatus more(CabDocs *d) {
  if (d->from) {
    memmove(d->room, d->room + d->from, d->to - d->from);
    d->shift += d->from, d->to -= d->from, d->from = 0;
  }
  if (d->capacity - d->to < BLOCK) {
    size_t want = d->to + BLOCK > 2 * d->capacity ? d->to + BLOCK : 2 * d->capacity;
    uint8_t *room = cab_realloc(d->room, want, 1);
    if (!room) return CAB_E_MEMORY;
    d->room = room, d->capacity = want;
  }
  size_t n = 0;
  if (d->gz) CAB_TRY(unpack(d, d->room + d->to, &n));
  else {
    CAB_TRY(take(d, d->room + d->to, &n));
    d->end = d->offset == d->file.size;
  }
  d->to += n;
  return CAB_OK;
}

/* UTF-8 without NUL; counts lines from d->line on. */
static CabStatus check(CabDocs *d, size_t from, size_t n, int64_t *line) {
  const uint8_t *p = d->room + from, *zero = memchr(p, 0, n);
  size_t bad = cab_utf8_bad(p, n), end = zero && (size_t)(zero - p) < bad ? (size_t)(zero - p) : bad;
  char text[40];
  for (const uint8_t *q = p; (q = memchr(q, '\n', end - (size_t)(q - p))); q++) ++*line;
  if (zero && end == (size_t)(zero - p)) return refuse(d, "text-nul", from + end, *line, "a NUL byte");
  if (bad == n) return CAB_OK;
  snprintf(text, sizeof text, "bad UTF-8: 0x%02x", p[bad]);
  return refuse(d, "text-utf8", from + bad, *line, text);
}

/* ---- text ------------------------------------------------------------------------------------- */

static bool is_blank(uint8_t c) { return c == ' ' || (c >= 9 && c <= 13) || c >= 0x80; } /* other white space is not ASCII */

/* Last place in [from, to) of a space behind an ASCII character that is none; `from` if there is no such place. */
static size_t cut_at(const CabDocs *d, size_t from, size_t to) {
  for (size_t i = to; --i > from;)
    if (d->room[i] == ' ' && !is_blank(d->room[i - 1])) return i;
  return from;
}

static CabStatus next_text(CabDocs *d, const char **text, size_t *n, bool *last) {
  size_t cut = d->from;
  while (!d->end) {
    if (d->to - d->from > CAB_LINE_MAX) return refuse(d, "text-line", d->from, d->line + 1, "64 MiB without a space");
    CAB_TRY(more(d));
    if (!d->end && (cut = cut_at(d, d->from, d->to)) > d->from) break;
  }
  if (d->end) cut = d->to; /* all that is left */
  *last = d->end;
  *n = cut - d->from;
  if (!*n && !d->shift && !d->from) return refuse(d, "text-empty", 0, 1, "an empty document");
  int64_t line = d->line + 1;
  CAB_TRY(check(d, d->from, *n, &line));
  *text = (const char *)d->room + d->from;
  d->line = line - 1, d->from = cut, d->ended = d->end;
  return CAB_OK;
}

/* ---- JSONL ------------------------------------------------------------------------------------ */

static CabStatus here(CabJson *j, const char *id, const char *what) {
  return cab_fail_file(CAB_E_INPUT, id, j->file, (int64_t)cab_json_at(j), "%s", what);
}

/* Skips a value; brackets are matched by a stack of bits. */
static CabStatus skip(CabJson *j) {
  bool square[DEPTH];
  int depth = 0;
  CabJsonString ignored;
  do {
    int c = cab_json_peek(j);
    if (c == '{' || c == '[') {
      if (depth == DEPTH) return here(j, "jsonl-depth", "nested deeper than 128");
      square[depth++] = c == '[';
      j->rd.position++;
    } else if (c == '}' || c == ']') {
      if (!depth || square[depth - 1] != (c == ']')) return cab_json_fail(j, "a value");
      depth--;
      j->rd.position++;
    } else if (c == '"') {
      CAB_TRY(cab_json_string(j, &ignored));
    } else if (c == ',' || c == ':') {
      if (!depth) return cab_json_fail(j, "a value");
      j->rd.position++;
    } else {
      uint64_t before = j->rd.position;
      while ((c = rd_peek(&j->rd)) == '-' || c == '+' || c == '.' || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || c == 'E') j->rd.position++;
      if (j->rd.position == before) return cab_json_fail(j, "a value");
    }
  } while (depth);
  return CAB_OK;
}

static CabStatus no_field(const CabDocs *d, uint64_t at, const char *what) {
  char shown[340];
  return cab_fail_file(CAB_E_INPUT, "jsonl-field", d->path, (int64_t)at, "field \"%s\" %s", cab_escape(d->field, strlen(d->field), shown), what);
}

/* The string at d->field of the object on a line. */
static CabStatus pick(const CabDocs *d, CabJson *j, CabJsonString *out) {
  CabJsonString key;
  size_t want = strlen(d->field);
  bool found = false;
  CAB_TRY(cab_json_expect(j, '{'));
  for (bool first = true, any;; first = false) {
    CAB_TRY(cab_json_next(j, '}', first, &any));
    if (!any) break;
    CAB_TRY(cab_json_string(j, &key));
    CAB_TRY(cab_json_expect(j, ':'));
    if (key.length != want || memcmp(key.text, d->field, want)) {
      CAB_TRY(skip(j));
      continue;
    }
    if (found) return no_field(d, key.at, "stands there twice");
    if (cab_json_peek(j) != '"') return no_field(d, cab_json_at(j), "is no string");
    CAB_TRY(cab_json_string(j, out));
    found = true;
  }
  if (cab_json_peek(j) >= 0) return cab_json_fail(j, "the end of the line");
  if (!found) return no_field(d, j->shift, "is missing");
  return out->length ? CAB_OK : no_field(d, out->at, "is empty");
}

/* "FILE: byte N: TEXT" in the error slot becomes "FILE: byte N: line L: TEXT". */
static CabStatus name_line(const CabDocs *d, CabStatus status) {
  if (status != CAB_E_INPUT) return status;
  CabError e = *cab_error();
  int head = snprintf(NULL, 0, "%s: byte %lld: ", e.file, (long long)e.offset);
  return cab_fail_file(CAB_E_INPUT, e.id, d->path, e.offset, "line %lld: %.900s", (long long)d->line, e.message + head);
}

static CabStatus parse_line(CabDocs *d, size_t n, CabJsonString *out) {
  int64_t line = d->line;
  CAB_TRY(check(d, d->from, n, &line));
  if (n > d->arena_size) {
    cab_free(d->arena);
    d->arena_size = 0;
    if (!(d->arena = cab_malloc(n + n / 2, 1))) return CAB_E_MEMORY;
    d->arena_size = n + n / 2;
  }
  CabJson j = {.rd = rd_open(d->room + d->from, n), .shift = d->shift + d->from, .file = d->path, .id = "jsonl", .arena = d->arena};
  return name_line(d, pick(d, &j, out));
}

/* Bytes of the line at d->from, without its end; SIZE_MAX at the end of the file. */
static CabStatus find_line(CabDocs *d, size_t *n) {
  for (size_t seen = 0;;) {
    const uint8_t *end = d->to > d->from + seen ? memchr(d->room + d->from + seen, '\n', d->to - d->from - seen) : NULL;
    *n = end ? (size_t)(end - d->room) - d->from : d->to - d->from;
    if (*n > CAB_LINE_MAX) return refuse(d, "text-line", d->from, d->line + 1, "longer than 64 MiB");
    if (end) return CAB_OK;
    if (d->end) {
      if (!*n) *n = SIZE_MAX;
      return CAB_OK;
    }
    seen = *n;
    CAB_TRY(more(d));
  }
}

static CabStatus next_line(CabDocs *d, const char **text, size_t *n, bool *last) {
  for (;;) {
    CAB_TRY(find_line(d, n));
    if (*n == SIZE_MAX) return CAB_OK;
    d->line++;
    size_t blank = 0;
    while (blank < *n && (d->room[d->from + blank] == ' ' || d->room[d->from + blank] == '\t' || d->room[d->from + blank] == '\r')) blank++;
    CabJsonString s = {0};
    if (blank < *n) CAB_TRY(parse_line(d, *n, &s));
    d->from += d->from + *n < d->to ? *n + 1 : *n;
    if (blank == *n) continue;
    *text = s.text, *n = s.length, *last = true;
    return CAB_OK;
  }
}

CabStatus cab_docs_next(CabDocs *d, const char **text, size_t *n, bool *last) {
  *text = NULL, *n = 0, *last = true;
  if (d->ended) return CAB_OK;
  return d->field ? next_line(d, text, n, last) : next_text(d, text, n, last);
}
