/* tokenizer.c - tables of a checked vocabulary, decode, and the compact file. */
#include <string.h>
#include <xxhash.h>

#include "tokenizer_type.h"

/* ---- merges ----------------------------------------------------------------------------------- */

static CabStatus make_pairs(CabTokenizer *t) {
  uint64_t size = 16;
  while (size < 2 * t->v.merges) size *= 2;
  t->mask = size - 1;
  if (!(t->pair = cab_malloc(size, sizeof *t->pair))) return CAB_E_MEMORY;
  memset(t->pair, 0xff, size * sizeof *t->pair);
  for (uint64_t i = 0; i < t->v.merges; i++) {
    const CabMerge *m = &t->v.merge[i];
    uint64_t at = cab_pair_place(m->left, m->right, t->mask);
    if (cab_pair_find(t, m->left, m->right))
      return cab_fail_file(CAB_E_INPUT, "tok-duplicate", t->v.merge_file ? t->v.merge_file : t->v.file, (int64_t)m->at,
                           "model.merges[%llu]: the same two tokens as before", (unsigned long long)i);
    while (t->pair[at].rank != UINT32_MAX) at = (at + 1) & t->mask;
    t->pair[at] = (CabPair){m->left, m->right, m->to, (uint32_t)i};
  }
  return CAB_OK;
}

/* ---- added tokens ----------------------------------------------------------------------------- */

static uint32_t add_child(CabTrie *t, uint32_t node, uint8_t byte) {
  uint32_t child = cab_trie_child(t, node, byte);
  if (child) return child;
  child = ++t->nodes;
  if (node == 0) return t->root[byte] = child;
  uint64_t key = ((uint64_t)node << 8 | byte) + 1, at = key * 0x9e3779b97f4a7c15u >> 20 & t->mask;
  while (t->edge[at].key) at = (at + 1) & t->mask;
  t->edge[at].key = key, t->edge[at].node = child;
  return child;
}

static CabStatus add_token(CabTrie *trie, const CabToken *t, bool nfc) {
  CabBytes form = {0};
  if (nfc) CAB_TRY(cab_nfc((const uint8_t *)t->bytes, t->length, &form));
  const char *bytes = form.data ? (const char *)form.data : t->bytes;
  size_t n = form.data ? form.length : t->length;
  uint32_t node = 0;
  for (size_t i = 0; i < n; i++) node = add_child(trie, node, (uint8_t)bytes[i]);
  if (trie->id[node] < 0) trie->id[node] = t->id; /* two of one normal form: the first */
  cab_bytes_free(&form);
  return CAB_OK;
}

static bool belongs(const CabToken *t, int after) {
  return t->flags & CAB_TOKEN_ADDED && !(t->flags & CAB_TOKEN_NORMALIZED) == !after;
}

static CabStatus make_trie(CabTokenizer *t, int after) {
  CabTrie *trie = &t->trie[after];
  uint64_t bytes = 1, size = 16;
  for (uint64_t i = 0; i < t->v.tokens; i++)
    if (belongs(&t->v.token[i], after)) bytes += t->v.token[i].length * 3; /* NFC may be three times as long */
  while (size < 2 * bytes) size *= 2;
  trie->mask = size - 1;
  trie->edge = cab_calloc(size, sizeof *trie->edge);
  trie->id = cab_malloc(bytes, sizeof *trie->id);
  if (!trie->edge || !trie->id) return CAB_E_MEMORY;
  memset(trie->id, 0xff, bytes * sizeof *trie->id);
  for (uint64_t i = 0; i < t->v.tokens; i++)
    if (belongs(&t->v.token[i], after)) CAB_TRY(add_token(trie, &t->v.token[i], after && t->v.nfc));
  return CAB_OK;
}

/* ---- the tokenizer ---------------------------------------------------------------------------- */

void cab_tokenizer_free(CabTokenizer *t) {
  if (!t) return;
  for (int i = 0; i < 2; i++) cab_free(t->trie[i].edge), cab_free(t->trie[i].id);
  cab_free(t->pair);
  cab_vocab_free(&t->v);
  cab_free(t);
}

CabTokenizer *cab_tokenizer_new(CabVocab *v) {
  CabTokenizer *t = cab_calloc(1, sizeof *t);
  if (!t) return cab_vocab_free(v), NULL;
  t->v = *v;
  *v = (CabVocab){0};
  cab_unicode_init();
  for (int b = 0; b < 256; b++) {
    char byte = (char)b;
    const CabToken *found = cab_vocab_find(&t->v, &byte, 1, 0);
    t->byte_id[b] = found ? (int32_t)found->id : -1;
  }
  CabStatus status = make_pairs(t);
  for (int after = 0; status == CAB_OK && after < 2; after++) status = make_trie(t, after);
  t->v.file = t->v.merge_file = t->v.added_file = NULL; /* the caller's */
  if (status == CAB_OK) return t;
  cab_tokenizer_free(t);
  return NULL;
}

int64_t cab_tokenizer_count(const CabTokenizer *t) { return (int64_t)t->v.count; }

static const CabToken *token_of(const CabTokenizer *t, int64_t id) {
  return id < 0 || (uint64_t)id >= t->v.count || !t->v.by_id[id] ? NULL : &t->v.token[t->v.by_id[id] - 1];
}

const char *cab_tokenizer_token(const CabTokenizer *t, int64_t id, size_t *length, uint32_t *flags) {
  const CabToken *token = token_of(t, id);
  if (!token) return NULL;
  *length = token->length;
  if (flags) *flags = token->flags;
  return token->bytes;
}

int64_t cab_tokenizer_find(const CabTokenizer *t, const char *bytes, size_t n) {
  const CabToken *found = cab_vocab_find(&t->v, bytes, n, CAB_TOKEN_ADDED);
  if (!found) found = cab_vocab_find(&t->v, bytes, n, 0);
  if (!found) found = cab_vocab_find(&t->v, bytes, n, CAB_TOKEN_RAW);
  return found ? (int64_t)found->id : -1;
}

CabStatus cab_tokenizer_decode(const CabTokenizer *t, const int32_t *ids, size_t count, bool control, CabBytes *out) {
  *out = (CabBytes){0};
  uint64_t total = 0;
  for (size_t i = 0; i < count; i++) {
    const CabToken *token = token_of(t, ids[i]);
    if (!token)
      return cab_fail(CAB_E_LUA, "decode: id %d at position %zu: %s", ids[i], i + 1,
                      ids[i] < 0 || (uint64_t)ids[i] >= t->v.count ? "out of range" : "no token has it");
    total = sz_add(total, token->length);
  }
  if (!(out->data = cab_malloc(total, 1))) return CAB_E_MEMORY;
  for (size_t i = 0; i < count; i++) {
    const CabToken *token = token_of(t, ids[i]);
    if (token->flags & CAB_TOKEN_SPECIAL && !control) continue;
    memcpy(out->data + out->length, token->bytes, token->length);
    out->length += token->length;
  }
  return CAB_OK;
}

/* ---- compact form: "CABTOK1\n", u32 options, u64 tokens, u64 merges; tokens by id {u32 id, u32 flags, u32 length, bytes}; merges
 * by rank {u32 left, right, to}; XXH64 of all before. Numbers little-endian. ------------------------------------------ */

static const char magic[8] = "CABTOK1\n";
enum { NFC = 1, PREFIX_SPACE = 2 };

typedef struct {
  uint8_t *p; /* NULL: only count */
  size_t used;
} Out;

static void put(Out *o, const void *bytes, size_t n) {
  if (o->p) memcpy(o->p + o->used, bytes, n);
  o->used += n;
}
static void put_le(Out *o, uint64_t v, int n) {
  uint8_t b[8];
  for (int i = 0; i < n; i++) b[i] = (uint8_t)(v >> 8 * i);
  put(o, b, (size_t)n);
}

/* keep: flags to write. */
static void put_all(const CabTokenizer *t, uint32_t keep, Out *o) {
  uint64_t present = 0;
  for (uint64_t i = 0; i < t->v.count; i++) present += t->v.by_id[i] != 0;
  put(o, magic, sizeof magic);
  put_le(o, (t->v.nfc ? NFC : 0) | (t->v.prefix_space ? PREFIX_SPACE : 0), 4);
  put_le(o, present, 8), put_le(o, t->v.merges, 8);
  for (uint64_t i = 0; i < t->v.count; i++) {
    const CabToken *k = token_of(t, (int64_t)i);
    if (!k) continue;
    put_le(o, i, 4), put_le(o, k->flags & keep, 4), put_le(o, k->length, 4);
    put(o, k->bytes, k->length);
  }
  for (uint64_t i = 0; i < t->v.merges; i++) {
    const CabMerge *m = &t->v.merge[i];
    put_le(o, m->left, 4), put_le(o, m->right, 4), put_le(o, m->to, 4);
  }
}

static CabStatus pack(const CabTokenizer *t, uint32_t keep, CabBytes *out) {
  Out o = {0};
  put_all(t, keep, &o);
  if (!(out->data = cab_malloc(o.used, 1)) || !(out->length = o.used)) return CAB_E_MEMORY;
  o = (Out){.p = out->data};
  put_all(t, keep, &o);
  return CAB_OK;
}

uint64_t cab_tokenizer_hash(const CabTokenizer *t) {
  CabBytes bytes = {0};
  uint32_t keep = t->v.nfc ? ~0u : ~(uint32_t)CAB_TOKEN_NORMALIZED; /* without normalisation that flag decides nothing */
  if (pack(t, keep, &bytes) != CAB_OK) return 0;
  uint64_t hash = XXH64(bytes.data, bytes.length, 0);
  cab_bytes_free(&bytes);
  return hash;
}

static CabStatus write_compact(void *ctx, CabSink *sink) {
  const CabBytes *bytes = ctx;
  uint8_t tail[8];
  Out o = {.p = tail};
  put_le(&o, XXH64(bytes->data, bytes->length, 0), 8);
  CAB_TRY(cab_sink_write(sink, bytes->data, bytes->length));
  return cab_sink_write(sink, tail, sizeof tail);
}

CabStatus cab_tokenizer_save(const CabTokenizer *t, const char *path) {
  CabBytes bytes = {0};
  CabStatus status = pack(t, ~0u, &bytes);
  if (status == CAB_OK) status = cab_write_atomic(path, write_compact, &bytes);
  cab_bytes_free(&bytes);
  return status;
}

bool cab_vocab_is_compact(const uint8_t *bytes, size_t n) { return n >= sizeof magic && !memcmp(bytes, magic, sizeof magic); }

static CabStatus cut(const CabRd *r, const char *file) {
  return cab_fail_file(CAB_E_INPUT, "tok-compact", file, (int64_t)r->position, "ends early or has a count that is too large");
}

static CabStatus read_compact(CabRd *r, const char *file, CabVocab *out) {
  static const uint32_t flags = CAB_TOKEN_ADDED | CAB_TOKEN_SPECIAL | CAB_TOKEN_NORMALIZED | CAB_TOKEN_LSTRIP | CAB_TOKEN_RSTRIP | CAB_TOKEN_RAW;
  rd_slice(r, sizeof magic);
  uint32_t options = rd_u32le(r);
  uint64_t tokens = rd_u64le(r), merges = rd_u64le(r);
  out->nfc = options & NFC, out->prefix_space = options & PREFIX_SPACE;
  if (tokens > rd_left(r) / 12 || merges > rd_left(r) / 12) return cut(r, file);
  for (uint64_t i = 0; i < tokens; i++) {
    CabToken t = {.at = r->position};
    t.id = rd_u32le(r), t.flags = rd_u32le(r), t.length = rd_u32le(r);
    t.bytes = (const char *)rd_slice(r, t.length);
    if (r->bad) return cut(r, file);
    if (t.id > INT32_MAX - 1 || t.flags & ~flags || cab_utf8_bad((const uint8_t *)t.bytes, t.length) < (t.flags & CAB_TOKEN_ADDED ? t.length : 0))
      return cab_fail_file(CAB_E_INPUT, "tok-compact", file, (int64_t)t.at, "token %llu is damaged", (unsigned long long)i);
    CAB_TRY(cab_vocab_token(out, t));
  }
  for (uint64_t i = 0; i < merges; i++) {
    CabMerge m = {.at = r->position};
    m.left = rd_u32le(r), m.right = rd_u32le(r), m.to = rd_u32le(r);
    CAB_TRY(cab_vocab_merge(out, m));
  }
  return r->bad || rd_left(r) ? cut(r, file) : CAB_OK;
}

CabStatus cab_vocab_compact(const uint8_t *bytes, size_t n, const char *file, CabVocab *out) {
  *out = (CabVocab){.file = file};
  CabRd tail = rd_open(n >= 8 ? bytes + n - 8 : bytes, n >= 8 ? 8 : 0);
  if (n < 36 || rd_u64le(&tail) != XXH64(bytes, n - 8, 0))
    return cab_fail_file(CAB_E_INPUT, "tok-compact", file, n < 8 ? 0 : (int64_t)n - 8, "is cut off or damaged: its check sum differs");
  if (!(out->arena[0].data = cab_malloc(n - 8, 1))) return CAB_E_MEMORY; /* tokens point into it */
  memcpy(out->arena[0].data, bytes, n - 8);
  CabRd r = rd_open(out->arena[0].data, n - 8);
  CAB_TRY(read_compact(&r, file, out));
  return cab_vocab_check(out, false);
}
