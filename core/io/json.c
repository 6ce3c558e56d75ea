/* json.c - the lexer of json.h. */
#include <string.h>

#include "json.h"

uint64_t cab_json_at(const CabJson *j) { return j->shift + j->rd.position; }

int cab_json_peek(CabJson *j) {
  int c;
  while ((c = rd_peek(&j->rd)) == ' ' || c == '\n' || c == '\r' || c == '\t') j->rd.position++;
  return c;
}

CabStatus cab_json_fail(CabJson *j, const char *expected) {
  int c = rd_peek(&j->rd);
  int64_t at = (int64_t)cab_json_at(j);
  if (c < 0) return cab_fail_file(CAB_E_INPUT, j->id, j->file, at, "expected %s, got the end of the text", expected);
  if (c > 0x20 && c < 0x7f) return cab_fail_file(CAB_E_INPUT, j->id, j->file, at, "expected %s, got '%c'", expected, c);
  return cab_fail_file(CAB_E_INPUT, j->id, j->file, at, "expected %s, got byte 0x%02x", expected, (unsigned)c);
}

CabStatus cab_json_expect(CabJson *j, char wanted) {
  char text[4] = {'\'', wanted, '\'', 0};
  if (cab_json_peek(j) != wanted) return cab_json_fail(j, text);
  j->rd.position++;
  return CAB_OK;
}

CabStatus cab_json_next(CabJson *j, char close, bool first, bool *more) {
  int c = cab_json_peek(j);
  *more = c != close;
  if (c == close) {
    j->rd.position++;
    return CAB_OK;
  }
  return first ? CAB_OK : cab_json_expect(j, ',');
}

static int hex4(CabRd *r) {
  const uint8_t *p = rd_slice(r, 4);
  int v = 0;
  for (int i = 0; p && i < 4; i++) {
    int c = p[i] | 0x20, d = p[i] >= '0' && p[i] <= '9' ? p[i] - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
    if (d < 0) return -1;
    v = v << 4 | d;
  }
  return p ? v : -1;
}

static void put_utf8(CabJson *j, int c) {
  uint8_t *p = (uint8_t *)j->arena + j->used;
  int n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
  static const uint8_t lead[5] = {0, 0, 0xc0, 0xe0, 0xf0};
  for (int i = n; i-- > 1; c >>= 6) p[i] = (uint8_t)(0x80 | (c & 0x3f));
  p[0] = (uint8_t)(n == 1 ? c : lead[n] | c);
  j->used += (uint64_t)n;
}

/* The part of an escape after the backslash. */
static CabStatus escape(CabJson *j) {
  static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
  uint64_t at = j->rd.position;
  int c = rd_u8(&j->rd);
  const char *simple = c ? strchr(from, c) : NULL;
  if (simple && !j->rd.bad) {
    j->arena[j->used++] = to[simple - from];
    return CAB_OK;
  }
  int v = c == 'u' ? hex4(&j->rd) : -1;
  if (v >= 0xd800 && v < 0xdc00) {
    const uint8_t *p = rd_slice(&j->rd, 2);
    int low = p && p[0] == '\\' && p[1] == 'u' ? hex4(&j->rd) : -1;
    v = low >= 0xdc00 && low < 0xe000 ? 0x10000 + ((v - 0xd800) << 10) + (low - 0xdc00) : -1;
  } else if (v >= 0xdc00 && v < 0xe000) v = -1;
  if (v <= 0) {
    j->rd.bad = false;
    j->rd.position = at;
    return cab_fail_file(CAB_E_INPUT, j->id, j->file, (int64_t)cab_json_at(j),
                         v == 0 ? "a string must not hold NUL" : "bad escape in a string");
  }
  put_utf8(j, v);
  return CAB_OK;
}

CabStatus cab_json_string(CabJson *j, CabJsonString *out) {
  cab_json_peek(j);
  uint64_t at = cab_json_at(j), start = j->used;
  CAB_TRY(cab_json_expect(j, '"'));
  for (;;) {
    int c = rd_peek(&j->rd);
    if (c == '"') break;
    if (c < 0x20) return cab_json_fail(j, "the end of a string");
    if (c == '\\') {
      j->rd.position++;
      CAB_TRY(escape(j));
      continue;
    }
    int n = rd_utf8(&j->rd);
    if (!n) return cab_fail_file(CAB_E_INPUT, j->id, j->file, (int64_t)cab_json_at(j), "bad UTF-8 in a string");
    memcpy(j->arena + j->used, rd_slice(&j->rd, (uint64_t)n), (size_t)n);
    j->used += (uint64_t)n;
  }
  j->rd.position++;
  j->arena[j->used++] = 0;
  *out = (CabJsonString){j->arena + start, j->used - 1 - start, at};
  return CAB_OK;
}

/* Takes a whole JSON number, so that what follows is checked by the caller. */
CabStatus cab_json_integer(CabJson *j, bool *whole, bool *fits, uint64_t *out) {
  int c = cab_json_peek(j);
  uint64_t v = 0, digits = 0, start = j->rd.position;
  *whole = *fits = true;
  *out = 0;
  if (c == '-') *whole = false, j->rd.position++;
  bool zero = rd_peek(&j->rd) == '0';
  for (; (c = rd_peek(&j->rd)) >= '0' && c <= '9'; digits++, j->rd.position++)
    v = sz_add(sz_mul(v, 10), (uint64_t)(c - '0'));
  if (digits == 0 && *whole) { /* no number at all */
    *whole = false;
    return CAB_OK;
  }
  if (digits == 0) return cab_json_fail(j, "a digit");
  if (zero && digits > 1) {
    j->rd.position = start;
    return cab_fail_file(CAB_E_INPUT, j->id, j->file, (int64_t)cab_json_at(j), "a number must not start with 0");
  }
  if (c == '.' || c == 'e' || c == 'E') *whole = false;
  *fits = v != SZ_BAD;
  *out = v;
  return CAB_OK;
}
