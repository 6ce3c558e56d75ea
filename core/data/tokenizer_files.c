/* tokenizer_files.c - vocab.bpe or merges.txt, with encoder.json or vocab.json and added_tokens.json; and opening files of any kind. */
#include <string.h>

#include "tokenizer.h"

/* Lines "a b" behind an optional "#version". UTF-8 is checked, as in JSON. */
static CabStatus merge_lines(const CabSource *s, uint64_t limit, CabVocab *v, CabBytes *arena) {
  uint64_t line = 0;
  if (!(arena->data = cab_malloc(s->n, 1))) return CAB_E_MEMORY;
  if (s->n) memcpy(arena->data, s->bytes, s->n);
  size_t bad = cab_utf8_bad(s->bytes, s->n);
  if (bad < s->n) return cab_fail_file(CAB_E_INPUT, "tok-utf8", s->file, (int64_t)bad, "bad UTF-8");
  for (size_t at = 0, end; at < s->n && v->merges < limit; at = end + 1) {
    const char *text = (const char *)arena->data + at, *stop = memchr(text, '\n', s->n - at);
    end = stop ? at + (size_t)(stop - text) : s->n;
    size_t n = end - at - (end > at && arena->data[end - 1] == '\r');
    line++;
    if (!n || (line == 1 && n >= 8 && !memcmp(text, "#version", 8))) continue;
    const char *space = memchr(text, ' ', n);
    if (!space || space == text || space + 1 == text + n || memchr(space + 1, ' ', n - (size_t)(space + 1 - text)))
      return cab_fail_file(CAB_E_INPUT, "tok-merge", s->file, (int64_t)at, "line %llu: expected two tokens with one space between", (unsigned long long)line);
    CAB_TRY(cab_vocab_merge(v, (CabMerge){.a = text, .a_length = (uint32_t)(space - text), .b = space + 1, .b_length = (uint32_t)(n - (size_t)(space + 1 - text)), .at = at}));
  }
  return CAB_OK;
}

/* GPT-2's numbers: bytes that stand for themselves, the other bytes, merges in order, <|endoftext|>. The arena: 2 bytes a byte,
 * then both halves of each merge without the space. */
static CabStatus gpt2_tokens(CabVocab *v, CabBytes *arena) {
  uint64_t need = 512;
  for (uint64_t i = 0; i < v->merges; i++) need = sz_add(need, (uint64_t)v->merge[i].a_length + v->merge[i].b_length);
  char *at = (char *)(arena->data = cab_malloc(need, 1));
  uint32_t id = 0;
  if (!at) return CAB_E_MEMORY;
  for (int c = 33; c < 256 + 68; c++) {
    if ((c > 126 && c < 161) || c == 173) continue;
    CabToken t = {.bytes = at, .id = id, .length = c < 0x80 ? 1 : 2};
    id++;
    if (c < 0x80) *at++ = (char)c;
    else *at++ = (char)(0xc0 | c >> 6), *at++ = (char)(0x80 | (c & 0x3f));
    CAB_TRY(cab_vocab_token(v, t));
  }
  for (uint64_t i = 0; i < v->merges; i++) {
    const CabMerge *m = &v->merge[i];
    CabToken t = {.bytes = at, .id = id, .length = m->a_length + m->b_length, .at = m->at};
    id++;
    memcpy(at, m->a, m->a_length), memcpy(at + m->a_length, m->b, m->b_length);
    at += t.length;
    CAB_TRY(cab_vocab_token(v, t));
  }
  return CAB_OK;
}

/* <|endoftext|> of the added tokens or else of the vocabulary is a control token; `make`: it comes behind all others. */
static CabStatus control_token(CabVocab *v, bool make) {
  static const char text[] = "<|endoftext|>";
  CabToken t = {.bytes = text, .length = sizeof text - 1, .id = (uint32_t)(256 + v->merges), .flags = CAB_TOKEN_ADDED | CAB_TOKEN_SPECIAL};
  bool found = make;
  for (uint64_t i = 0; i < v->tokens; i++) {
    CabToken *k = &v->token[i];
    if (k->length != t.length || memcmp(k->bytes, text, t.length)) continue;
    if (k->flags & CAB_TOKEN_ADDED) return k->flags = t.flags, CAB_OK;
    t.id = k->id, t.at = k->at, found = true;
  }
  return found ? cab_vocab_token(v, t) : CAB_OK;
}

CabStatus cab_vocab_files(CabSource merge, uint64_t limit, const CabSource *vocab, const CabSource *added, CabVocab *out) {
  *out = (CabVocab){.file = vocab ? vocab->file : merge.file, .merge_file = merge.file, .added_file = added ? added->file : NULL};
  CAB_TRY(merge_lines(&merge, limit, out, &out->arena[0]));
  if (vocab) CAB_TRY(cab_vocab_id_map(vocab, "model.vocab", 0, out, &out->arena[1]));
  else CAB_TRY(gpt2_tokens(out, &out->arena[1]));
  if (added) CAB_TRY(cab_vocab_id_map(added, "added_tokens", CAB_TOKEN_ADDED | CAB_TOKEN_NORMALIZED, out, &out->arena[2]));
  CAB_TRY(control_token(out, vocab == NULL));
  return cab_vocab_check(out, true);
}

/* ---- opening ---------------------------------------------------------------------------------- */

static CabStatus parse(const CabSource *s, uint64_t limit, const CabSource *vocab, const CabSource *added, CabVocab *v) {
  bool compact = cab_vocab_is_compact(s->bytes, s->n), json = s->n && s->bytes[0] == '{';
  if ((compact || json) && (vocab || added || limit != UINT64_MAX))
    return cab_fail(CAB_E_LUA, "%s holds a whole tokenizer: vocab, added and merges go with a list of merges only", s->file);
  return compact ? cab_vocab_compact(s->bytes, s->n, s->file, v) : json ? cab_vocab_json(s->bytes, s->n, s->file, v)
                 : cab_vocab_files(*s, limit, vocab, added, v);
}

CabTokenizer *cab_tokenizer_open(const char *path, const char *vocab, const char *added, uint64_t limit) {
  const char *name[3] = {path, vocab, added};
  CabBytes bytes[3] = {0};
  CabSource source[3];
  CabVocab v = {0};
  CabTokenizer *t = NULL;
  CabStatus status = CAB_OK;
  for (int i = 0; i < 3 && status == CAB_OK; i++) {
    if (name[i]) status = cab_read_maybe_gz(name[i], CAB_TOKENIZER_MAX_FILE, &bytes[i]);
    source[i] = (CabSource){bytes[i].data, bytes[i].length, name[i]};
  }
  if (status == CAB_OK) status = parse(source, limit, vocab ? &source[1] : NULL, added ? &source[2] : NULL, &v);
  if (status == CAB_OK) t = cab_tokenizer_new(&v);
  for (int i = 0; i < 3; i++) cab_bytes_free(&bytes[i]);
  cab_vocab_free(&v);
  return t;
}
