/* unicode.c - classes and NFC come from utf8proc; the scanner of words is GPT-2's pattern written out. */
#include "unicode.h"

#include <pthread.h>
#include <string.h>
#include <utf8proc.h>

static uint8_t class_of[CAB_CHAR_TABLE];
static pthread_once_t once = PTHREAD_ONCE_INIT;

static bool is_space(int c) {
  return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 ||
         c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

/* Letters and numbers of Unicode 15.1 and 16.0, which utf8proc 2.8 does not know: {first, last, class}. */
static const struct { int first, last, kind; } newer[] = {
  {0x1c89, 0x1c8a, 1}, {0xa7cb, 0xa7cd, 1}, {0xa7da, 0xa7dc, 1}, {0x105c0, 0x105f3, 1}, {0x10d40, 0x10d49, 2}, {0x10d4a, 0x10d65, 1},
  {0x10d6f, 0x10d85, 1}, {0x10ec2, 0x10ec4, 1}, {0x11380, 0x11389, 1}, {0x1138b, 0x1138b, 1}, {0x1138e, 0x1138e, 1}, {0x11390, 0x113b5, 1},
  {0x113b7, 0x113b7, 1}, {0x113d1, 0x113d1, 1}, {0x113d3, 0x113d3, 1}, {0x116d0, 0x116e3, 2}, {0x11bc0, 0x11be0, 1}, {0x11bf0, 0x11bf9, 2},
  {0x13460, 0x143fa, 1}, {0x16100, 0x1611d, 1}, {0x16130, 0x16139, 2}, {0x16d40, 0x16d6c, 1}, {0x16d70, 0x16d79, 2}, {0x18cff, 0x18cff, 1},
  {0x1ccf0, 0x1ccf9, 2}, {0x1e5d0, 0x1e5ed, 1}, {0x1e5f0, 0x1e5f0, 1}, {0x1e5f1, 0x1e5fa, 2}, {0x2ebf0, 0x2ee5d, 1},
};

static void fill(void) {
  for (size_t i = 0; i < sizeof newer / sizeof *newer; i++)
    for (int c = newer[i].first; c <= newer[i].last; c++) class_of[c] = (uint8_t)newer[i].kind;
  for (int c = 0; c < CAB_CHAR_TABLE; c++) {
    utf8proc_category_t k = utf8proc_category(c);
    if (k == UTF8PROC_CATEGORY_CN) continue;
    class_of[c] = is_space(c) ? CAB_CHAR_SPACE
                  : k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_LO ? CAB_CHAR_LETTER
                  : k >= UTF8PROC_CATEGORY_ND && k <= UTF8PROC_CATEGORY_NO ? CAB_CHAR_NUMBER : CAB_CHAR_OTHER;
  }
}

void cab_unicode_init(void) { pthread_once(&once, fill); }

size_t cab_utf8_bad(const uint8_t *text, size_t n) {
  for (size_t i = 0; i < n;) {
    uint64_t eight;
    while (n - i >= 8 && (memcpy(&eight, text + i, 8), !(eight & 0x8080808080808080u))) i += 8;
    if (i == n) break;
    int length = rd_utf8(&(CabRd){.base = text, .length = n, .position = i});
    if (!length) return i;
    i += (size_t)length;
  }
  return n;
}

/* The code point of the well-formed sequence at p. */
static inline uint32_t code_point(const uint8_t *p, int *length) {
  if (p[0] < 0x80) return *length = 1, p[0];
  if (p[0] < 0xe0) return *length = 2, (p[0] & 0x1fu) << 6 | (p[1] & 0x3fu);
  if (p[0] < 0xf0) return *length = 3, (p[0] & 0xfu) << 12 | (p[1] & 0x3fu) << 6 | (p[2] & 0x3fu);
  return *length = 4, (p[0] & 7u) << 18 | (p[1] & 0x3fu) << 12 | (p[2] & 0x3fu) << 6 | (p[3] & 0x3fu);
}

static inline int class_at(const uint8_t *p, int *length) {
  uint32_t c = code_point(p, length);
  return c < CAB_CHAR_TABLE ? class_of[c] : CAB_CHAR_OTHER;
}

int cab_char_class(const uint8_t *p, int *length) { return class_at(p, length); }

/* \s+(?!\S)|\s+ : all white space but the last character, which a word may take; all of it at the end of the text. */
static size_t spaces(const uint8_t *p, size_t n) {
  size_t i = 0, last = 0;
  int length;
  while (i < n && class_at(p + i, &length) == CAB_CHAR_SPACE) last = i, i += (size_t)length;
  return i == n || last == 0 ? i : last;
}

/* 's|'t|'re|'ve|'m|'ll|'d : its length, 0 if none. */
static size_t contraction(const uint8_t *p, size_t n) {
  if (n < 2) return 0;
  if (p[1] == 's' || p[1] == 't' || p[1] == 'm' || p[1] == 'd') return 2;
  if (n < 3) return 0;
  return (p[1] == 'r' && p[2] == 'e') || (p[1] == 'v' && p[2] == 'e') || (p[1] == 'l' && p[2] == 'l') ? 3 : 0;
}

size_t cab_gpt2_word(const uint8_t *p, size_t n) {
  size_t i = p[0] == '\'' ? contraction(p, n) : 0;
  if (i) return i;
  if (p[0] == ' ' && n > 1) i = 1;
  int length, kind = class_at(p + i, &length);
  if (kind == CAB_CHAR_SPACE) return spaces(p, n);
  do i += (size_t)length;
  while (i < n && class_at(p + i, &length) == kind);
  return i;
}

/* ---- NFC -------------------------------------------------------------------------------------- */

/* Stable order by combining class of each run of marks: by counting, as a hostile run may be as long as the text. */
static void order_marks(utf8proc_int32_t *c, uint8_t *rank, size_t n, utf8proc_int32_t *room) {
  for (size_t i = 0; i < n;) {
    size_t end = i, count[256] = {0}, at = 0;
    bool sorted = true;
    for (; end < n && rank[end]; end++) count[rank[end]]++, sorted = sorted && (end == i || rank[end - 1] <= rank[end]);
    if (!sorted) {
      for (int k = 0; k < 256; k++) {
        size_t these = count[k];
        count[k] = at, at += these;
      }
      for (size_t k = i; k < end; k++) room[count[rank[k]]++] = c[k];
      memcpy(c + i, room, (end - i) * sizeof *c);
    }
    i = end + 1;
  }
}

typedef struct {
  utf8proc_int32_t *c, *room;
  uint8_t *rank;
  size_t capacity, bytes; /* of the arrays; of out */
  CabBytes *out;
} Nfc;

static CabStatus reserve(Nfc *s, size_t points) {
  if (points > s->capacity) {
    cab_free(s->c), cab_free(s->room), cab_free(s->rank);
    s->capacity = points > 256 ? points : 256;
    s->c = cab_malloc(s->capacity, sizeof *s->c), s->room = cab_malloc(s->capacity, sizeof *s->room), s->rank = cab_malloc(s->capacity, 1);
    if (!s->c || !s->room || !s->rank) return CAB_E_MEMORY;
  }
  size_t need = s->out->length + points * 4;
  if (need <= s->bytes) return CAB_OK;
  uint8_t *data = cab_realloc(s->out->data, need + need / 2, 1);
  if (!data) return CAB_E_MEMORY;
  s->out->data = data, s->bytes = need + need / 2;
  return CAB_OK;
}

/* Appends the NFC of a part: decomposed, ordered, composed. */
static CabStatus normalise(Nfc *s, const uint8_t *text, size_t n) {
  size_t used = 0;
  int length, boundary = 0;
  for (size_t i = 0; i < n; i += (size_t)length)
    used += (size_t)utf8proc_decompose_char((utf8proc_int32_t)code_point(text + i, &length), NULL, 0, UTF8PROC_DECOMPOSE, &boundary);
  CAB_TRY(reserve(s, used));
  used = 0;
  for (size_t i = 0; i < n; i += (size_t)length) {
    utf8proc_int32_t point = (utf8proc_int32_t)code_point(text + i, &length);
    used += (size_t)utf8proc_decompose_char(point, s->c + used, (utf8proc_ssize_t)(s->capacity - used), UTF8PROC_DECOMPOSE, &boundary);
  }
  for (size_t i = 0; i < used; i++) s->rank[i] = (uint8_t)utf8proc_get_property(s->c[i])->combining_class;
  order_marks(s->c, s->rank, used, s->room);
  used = (size_t)utf8proc_normalize_utf32(s->c, (utf8proc_ssize_t)used, UTF8PROC_COMPOSE | UTF8PROC_STABLE);
  for (size_t i = 0; i < used; i++) s->out->length += (size_t)utf8proc_encode_char(s->c[i], s->out->data + s->out->length);
  return CAB_OK;
}

/* Parts begin at ASCII characters: nothing composes into one or is ordered across it. */
static CabStatus parts(Nfc *s, const uint8_t *text, size_t n) {
  for (size_t i = 0, end; i < n; i = end) {
    for (end = i; end < n && text[end] < 0x80;) end++;
    size_t plain = end - i;
    if (end < n && plain) plain--; /* the last one may take the marks that follow */
    CAB_TRY(reserve(s, plain));
    if (plain) memcpy(s->out->data + s->out->length, text + i, plain);
    s->out->length += plain;
    while (end < n && text[end] >= 0x80) end++;
    if (end > i + plain) CAB_TRY(normalise(s, text + i + plain, end - i - plain));
  }
  return CAB_OK;
}

CabStatus cab_nfc(const uint8_t *text, size_t n, CabBytes *out) {
  size_t i = 0;
  *out = (CabBytes){0};
  while (i < n && text[i] < 0xcc) i++; /* below U+0300 all text is in NFC */
  if (i == n) return CAB_OK;
  Nfc s = {.out = out};
  CabStatus status = parts(&s, text, n);
  cab_free(s.c), cab_free(s.room), cab_free(s.rank);
  if (status != CAB_OK) cab_bytes_free(out);
  return status;
}
