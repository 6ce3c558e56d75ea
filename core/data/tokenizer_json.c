/* tokenizer_json.c - tokenizer.json as Hugging Face's tokenizers write it: byte-level BPE, with or without NFC. What would change
 * ids in a way that is not implemented here is refused by name, never passed over. */
#include <string.h>

#include "json.h"
#include "tokenizer.h"

typedef struct {
  CabJson j;
  CabVocab *v;
} Parser;

/* ---- scalars ---------------------------------------------------------------------------------- */

typedef enum { NUL, NO, YES, NUMBER, STRING } Kind;
typedef struct {
  Kind kind;
  CabJsonString string;
  uint64_t number; /* whole and below 2^64, or else `fits` is false */
  bool fits;
  uint64_t at;
} Value;

static bool literal(CabJson *j, const char *text) {
  size_t n = strlen(text);
  if (rd_left(&j->rd) < n || memcmp(j->rd.base + j->rd.position, text, n)) return false;
  j->rd.position += n;
  return true;
}

static CabStatus read_value(CabJson *j, Value *out) {
  int c = cab_json_peek(j);
  *out = (Value){.at = cab_json_at(j), .fits = true};
  if (c == '"') {
    out->kind = STRING;
    return cab_json_string(j, &out->string);
  }
  if (literal(j, "null")) return out->kind = NUL, CAB_OK;
  if (literal(j, "false")) return out->kind = NO, CAB_OK;
  if (literal(j, "true")) return out->kind = YES, CAB_OK;
  if (c != '-' && (c < '0' || c > '9')) return cab_json_fail(j, "null, true, false, a number or a string");
  bool whole, fits;
  out->kind = NUMBER;
  CAB_TRY(cab_json_integer(j, &whole, &fits, &out->number));
  out->fits = whole && fits;
  while ((c = rd_peek(&j->rd)) == '.' || c == '+' || c == '-' || c == 'e' || c == 'E' || (c >= '0' && c <= '9')) j->rd.position++;
  return CAB_OK;
}

/* "PATH: WHAT" at a place of the file; the value is shown as it stands there. */
static CabStatus refuse(Parser *p, uint64_t at, const char *id, const char *path, const char *expected) {
  const uint8_t *text = p->j.rd.base + at;
  uint64_t n = p->j.rd.position > at ? p->j.rd.position - at : 0;
  char shown[340];
  return cab_fail_file(CAB_E_INPUT, id, p->j.file, (int64_t)at, "%s is %s, expected %s", path, cab_escape((const char *)text, n, shown), expected);
}

static CabStatus expect(Parser *p, const char *path, const char *id, unsigned kinds, const char *expected, Value *out) {
  int c = cab_json_peek(&p->j);
  if (c == '{' || c == '[') {
    uint64_t at = cab_json_at(&p->j);
    p->j.rd.position++;
    return refuse(p, at, id, path, expected);
  }
  CAB_TRY(read_value(&p->j, out));
  return kinds >> out->kind & 1 ? CAB_OK : refuse(p, out->at, id, path, expected);
}

static bool is(const Value *v, const char *text) { return v->kind == STRING && v->string.length == strlen(text) && !strcmp(v->string.text, text); }

/* ---- objects of known keys -------------------------------------------------------------------- */

/* The next key of an object: its number in `known`; *more is false at the end. Unknown and repeated keys are refused. */
static CabStatus next_key(Parser *p, const char *path, const char *const *known, unsigned *seen, int *which, bool *more) {
  CabJsonString key;
  char shown[340];
  CAB_TRY(cab_json_next(&p->j, '}', !(*seen & 1u << 31), more));
  *seen |= 1u << 31;
  if (!*more) return CAB_OK;
  CAB_TRY(cab_json_string(&p->j, &key));
  CAB_TRY(cab_json_expect(&p->j, ':'));
  for (*which = 0; known[*which] && strcmp(known[*which], key.text); ++*which) {}
  const char *what = !known[*which] ? "unknown" : *seen >> *which & 1 ? "twice" : NULL;
  if (what) return cab_fail_file(CAB_E_INPUT, "tok-field", p->j.file, (int64_t)key.at, "%s[\"%s\"]: %s", path, cab_escape(key.text, key.length, shown), what);
  *seen |= 1u << *which;
  return CAB_OK;
}

#define ANY_BOOL (1u << NO | 1u << YES)
#define NAME_OR_NULL (1u << STRING | 1u << NUL)

/* {"type": "ByteLevel", "add_prefix_space", "trim_offsets", "use_regex"}; also as decoder and post_processor, where only the type
 * counts: offsets are not kept here. `before`: the pre_tokenizer, which must split by GPT-2's pattern. */
static CabStatus byte_level(Parser *p, const char *path, const char *id, bool before) {
  static const char *const known[] = {"type", "add_prefix_space", "trim_offsets", "use_regex", NULL};
  char full[80];
  unsigned seen = 0;
  int which;
  Value v;
  if (cab_json_peek(&p->j) != '{') {
    CAB_TRY(expect(p, path, id, before ? 0 : 1u << NUL, before ? "a \"ByteLevel\" object" : "null or a \"ByteLevel\" object", &v));
    return CAB_OK;
  }
  CAB_TRY(cab_json_expect(&p->j, '{'));
  for (bool more;;) {
    CAB_TRY(next_key(p, path, known, &seen, &which, &more));
    if (!more) break;
    snprintf(full, sizeof full, "%s.%s", path, known[which]);
    CAB_TRY(expect(p, full, id, which ? ANY_BOOL : 1u << STRING, which ? "true or false" : "\"ByteLevel\"", &v));
    if (which == 0 && !is(&v, "ByteLevel")) return refuse(p, v.at, id, full, "\"ByteLevel\", the only kind read here");
    if (before && which == 1) p->v->prefix_space = v.kind == YES;
    if (before && which == 3 && v.kind == NO) return refuse(p, v.at, id, full, "true: GPT-2's pattern is the only one known");
  }
  return seen & 1 ? CAB_OK : cab_fail_file(CAB_E_INPUT, id, p->j.file, (int64_t)cab_json_at(&p->j), "%s.type is missing", path);
}

static CabStatus normalizer(Parser *p) {
  static const char *const known[] = {"type", NULL};
  unsigned seen = 0;
  int which;
  bool more;
  Value v;
  if (cab_json_peek(&p->j) != '{') return expect(p, "normalizer", "tok-normalizer", 1u << NUL, "null or {\"type\": \"NFC\"}", &v);
  CAB_TRY(cab_json_expect(&p->j, '{'));
  for (;;) {
    CAB_TRY(next_key(p, "normalizer", known, &seen, &which, &more));
    if (!more) break;
    CAB_TRY(expect(p, "normalizer.type", "tok-normalizer", 1u << STRING, "\"NFC\"", &v));
    if (!is(&v, "NFC")) return refuse(p, v.at, "tok-normalizer", "normalizer.type", "\"NFC\", the only kind read here");
  }
  p->v->nfc = seen & 1;
  return seen & 1 ? CAB_OK : cab_fail_file(CAB_E_INPUT, "tok-normalizer", p->j.file, (int64_t)cab_json_at(&p->j), "normalizer.type is missing");
}

/* ---- tokens and merges ------------------------------------------------------------------------ */

static CabStatus read_id(Parser *p, const char *path, uint32_t *out) {
  Value v;
  CAB_TRY(expect(p, path, "tok-id", 1u << NUMBER, "an id", &v));
  if (!v.fits || v.number > INT32_MAX - 1) return refuse(p, v.at, "tok-id", path, "an id: a whole number from 0 to 2147483646");
  *out = (uint32_t)v.number;
  return CAB_OK;
}

/* {"token": id, ...} */
static CabStatus id_map(Parser *p, const char *path, uint32_t flags) {
  CabJsonString key;
  char full[400], shown[340];
  CAB_TRY(cab_json_expect(&p->j, '{'));
  for (bool first = true, more;; first = false) {
    CabToken t = {.flags = flags};
    CAB_TRY(cab_json_next(&p->j, '}', first, &more));
    if (!more) return CAB_OK;
    CAB_TRY(cab_json_string(&p->j, &key));
    CAB_TRY(cab_json_expect(&p->j, ':'));
    snprintf(full, sizeof full, "%s[\"%s\"]", path, cab_escape(key.text, key.length, shown));
    CAB_TRY(read_id(p, full, &t.id));
    t.bytes = key.text, t.length = (uint32_t)key.length, t.at = key.at;
    CAB_TRY(cab_vocab_token(p->v, t));
  }
}

/* One of added_tokens. */
static CabStatus added_token(Parser *p, uint64_t number) {
  static const char *const known[] = {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special", NULL};
  static const uint32_t flag[] = {0, 0, 0, CAB_TOKEN_LSTRIP, CAB_TOKEN_RSTRIP, CAB_TOKEN_NORMALIZED, CAB_TOKEN_SPECIAL};
  CabToken t = {.flags = CAB_TOKEN_ADDED, .at = cab_json_at(&p->j)};
  char path[80];
  unsigned seen = 0;
  int which;
  Value v;
  CAB_TRY(cab_json_expect(&p->j, '{'));
  for (bool more;;) {
    snprintf(path, sizeof path, "added_tokens[%llu]", (unsigned long long)number);
    CAB_TRY(next_key(p, path, known, &seen, &which, &more));
    if (!more) break;
    snprintf(path, sizeof path, "added_tokens[%llu].%s", (unsigned long long)number, known[which]);
    if (which == 0) {
      CAB_TRY(read_id(p, path, &t.id));
      continue;
    }
    CAB_TRY(expect(p, path, "tok-added", which == 1 ? 1u << STRING : ANY_BOOL, which == 1 ? "a string" : "true or false", &v));
    if (which == 1) t.bytes = v.string.text, t.length = (uint32_t)v.string.length, t.at = v.at;
    else if (which == 2 && v.kind == YES) return refuse(p, v.at, "tok-added", path, "false: whole words only is not implemented");
    else if (v.kind == YES) t.flags |= flag[which];
  }
  if ((seen & 3) != 3) return cab_fail_file(CAB_E_INPUT, "tok-added", p->j.file, (int64_t)t.at, "added_tokens[%llu].%s is missing", (unsigned long long)number, seen & 1 ? "content" : "id");
  return cab_vocab_token(p->v, t);
}

static CabStatus added_tokens(Parser *p) {
  CAB_TRY(cab_json_expect(&p->j, '['));
  for (uint64_t i = 0;; i++) {
    bool more;
    CAB_TRY(cab_json_next(&p->j, ']', i == 0, &more));
    if (!more) return CAB_OK;
    CAB_TRY(added_token(p, i));
  }
}

static CabStatus merge_pair(Parser *p, CabMerge *m) {
  CabJsonString a, b;
  CAB_TRY(cab_json_expect(&p->j, '['));
  CAB_TRY(cab_json_string(&p->j, &a));
  CAB_TRY(cab_json_expect(&p->j, ','));
  CAB_TRY(cab_json_string(&p->j, &b));
  CAB_TRY(cab_json_expect(&p->j, ']'));
  m->a = a.text, m->a_length = (uint32_t)a.length, m->b = b.text, m->b_length = (uint32_t)b.length;
  return CAB_OK;
}

/* ["a b", ...] or [["a", "b"], ...] */
static CabStatus merges(Parser *p) {
  CAB_TRY(cab_json_expect(&p->j, '['));
  for (uint64_t i = 0;; i++) {
    bool more;
    CAB_TRY(cab_json_next(&p->j, ']', i == 0, &more));
    if (!more) return CAB_OK;
    int c = cab_json_peek(&p->j);
    CabMerge m = {.at = cab_json_at(&p->j)};
    if (c == '[') CAB_TRY(merge_pair(p, &m));
    else {
      CabJsonString s;
      CAB_TRY(cab_json_string(&p->j, &s));
      const char *space = memchr(s.text, ' ', s.length);
      char path[60];
      snprintf(path, sizeof path, "model.merges[%llu]", (unsigned long long)i);
      if (!space || space == s.text || space + 1 == s.text + s.length || strchr(space + 1, ' '))
        return refuse(p, m.at, "tok-merge", path, "two tokens with one space between");
      m.a = s.text, m.a_length = (uint32_t)(space - s.text), m.b = space + 1, m.b_length = (uint32_t)(s.length - m.a_length - 1);
    }
    CAB_TRY(cab_vocab_merge(p->v, m));
  }
}

static CabStatus model(Parser *p) {
  static const char *const known[] = {"type", "vocab", "merges", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
                                      "fuse_unk", "byte_fallback", "ignore_merges", NULL};
  char path[60];
  unsigned seen = 0;
  int which;
  Value v;
  CAB_TRY(cab_json_expect(&p->j, '{'));
  for (bool more;;) {
    CAB_TRY(next_key(p, "model", known, &seen, &which, &more));
    if (!more) break;
    snprintf(path, sizeof path, "model.%s", known[which]);
    if (which == 1) CAB_TRY(id_map(p, "model.vocab", 0));
    else if (which == 2) CAB_TRY(merges(p));
    else if (which == 0) {
      CAB_TRY(expect(p, path, "tok-model", 1u << STRING, "\"BPE\"", &v));
      if (!is(&v, "BPE")) return refuse(p, v.at, "tok-model", path, "\"BPE\", the only model read here");
    } else if (which == 3) CAB_TRY(expect(p, path, "tok-model", 1u << NUL, "null", &v));
    else if (which <= 6) {
      CAB_TRY(expect(p, path, "tok-model", NAME_OR_NULL, "null or a string", &v));
      if (which > 4 && v.kind == STRING && v.string.length) return refuse(p, v.at, "tok-model", path, "null or \"\"");
    } else {
      CAB_TRY(expect(p, path, "tok-model", which == 7 ? ANY_BOOL : 1u << NO, which == 7 ? "true or false" : "false", &v));
    }
  }
  for (which = 0; which < 3; which++)
    if (which != 0 && !(seen >> which & 1)) return cab_fail_file(CAB_E_INPUT, "tok-model", p->j.file, (int64_t)cab_json_at(&p->j), "model.%s is missing", known[which]);
  return CAB_OK;
}

/* ---- the file --------------------------------------------------------------------------------- */

static CabStatus top(Parser *p) {
  static const char *const known[] = {"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor",
                                      "decoder", "model", NULL};
  unsigned seen = 0;
  int which;
  Value v;
  CAB_TRY(cab_json_expect(&p->j, '{'));
  for (bool more;;) {
    CAB_TRY(next_key(p, "", known, &seen, &which, &more));
    if (!more) break;
    switch (which) {
      case 0: CAB_TRY(expect(p, "version", "tok-field", 1u << STRING, "a string", &v)); break;
      case 1:
      case 2: CAB_TRY(expect(p, known[which], "tok-field", 1u << NUL, "null: batches decide lengths", &v)); break;
      case 3: CAB_TRY(added_tokens(p)); break;
      case 4: CAB_TRY(normalizer(p)); break;
      case 5: CAB_TRY(byte_level(p, "pre_tokenizer", "tok-pretokenizer", true)); break;
      case 6: CAB_TRY(byte_level(p, "post_processor", "tok-processor", false)); break;
      case 7: CAB_TRY(byte_level(p, "decoder", "tok-decoder", false)); break;
      default: CAB_TRY(model(p));
    }
  }
  for (which = 0; known[which]; which++)
    if ((which == 5 || which == 8) && !(seen >> which & 1))
      return cab_fail_file(CAB_E_INPUT, "tok-field", p->j.file, (int64_t)cab_json_at(&p->j), "\"%s\" is missing", known[which]);
  return cab_json_peek(&p->j) < 0 ? CAB_OK : cab_json_fail(&p->j, "the end of the file");
}

static CabStatus open_parser(Parser *p, const uint8_t *bytes, size_t n, const char *file, CabVocab *v, CabBytes *arena) {
  if (!(arena->data = cab_malloc(n, 1))) return CAB_E_MEMORY;
  *p = (Parser){.j = {.rd = rd_open(bytes, n), .file = file, .id = "tok-json", .arena = (char *)arena->data}, .v = v};
  return CAB_OK;
}

CabStatus cab_vocab_json(const uint8_t *bytes, size_t n, const char *file, CabVocab *out) {
  Parser p;
  *out = (CabVocab){.file = file};
  CAB_TRY(open_parser(&p, bytes, n, file, out, &out->arena[0]));
  CAB_TRY(top(&p));
  return cab_vocab_check(out, true);
}

CabStatus cab_vocab_id_map(const CabSource *s, const char *path, uint32_t flags, CabVocab *v, CabBytes *arena) {
  Parser p;
  CAB_TRY(open_parser(&p, s->bytes, s->n, s->file, v, arena));
  CAB_TRY(id_map(&p, path, flags));
  return cab_json_peek(&p.j) < 0 ? CAB_OK : cab_json_fail(&p.j, "the end of the file");
}
