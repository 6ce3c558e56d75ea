/* vocab.c - what the parsers of tokenizers share: tokens and merges collected, then checked as a whole. */
#include <string.h>
#include <xxhash.h>

#include "tokenizer.h"

enum { KIND = CAB_TOKEN_ADDED | CAB_TOKEN_RAW };

void cab_vocab_free(CabVocab *v) {
  cab_free(v->token), cab_free(v->merge), cab_free(v->by_id), cab_free(v->index);
  for (int i = 0; i < 3; i++) cab_bytes_free(&v->arena[i]);
  *v = (CabVocab){0};
}

static CabStatus grow(void **list, uint64_t count, uint64_t *room, size_t size) {
  if (count < *room) return CAB_OK;
  uint64_t want = *room ? sz_mul(*room, 2) : 1024;
  void *more = cab_realloc(*list, want, size);
  if (!more) return CAB_E_MEMORY;
  *list = more, *room = want;
  return CAB_OK;
}

CabStatus cab_vocab_token(CabVocab *v, CabToken token) {
  CAB_TRY(grow((void **)&v->token, v->tokens, &v->token_room, sizeof token));
  v->token[v->tokens++] = token;
  return CAB_OK;
}

CabStatus cab_vocab_merge(CabVocab *v, CabMerge merge) {
  CAB_TRY(grow((void **)&v->merge, v->merges, &v->merge_room, sizeof merge));
  v->merge[v->merges++] = merge;
  return CAB_OK;
}

static CabStatus refuse_token(const CabVocab *v, const CabToken *t, const char *id, const char *what) {
  char shown[340];
  bool added = t->flags & CAB_TOKEN_ADDED;
  return cab_fail_file(CAB_E_INPUT, id, added && v->added_file ? v->added_file : v->file, (int64_t)t->at, "%s[\"%s\"]: %s",
                       added ? "added_tokens" : "model.vocab", cab_escape(t->bytes, t->length, shown), what);
}

/* ---- the byte alphabet: 188 bytes stand for themselves, the other 68 for U+0100 and on, in order -------- */

static bool itself(int b) { return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174; }

/* Bytes of a spelling, which may be written over itself. False if it has other characters; then out is undefined. */
static bool unspell(const char *text, uint32_t n, char *out, uint32_t *length) {
  static uint8_t other[68];
  const uint8_t *p = (const uint8_t *)text;
  if (!other[1])
    for (int b = 0, k = 0; b < 256; b++)
      if (!itself(b)) other[k++] = (uint8_t)b;
  uint32_t used = 0;
  for (uint32_t i = 0; i < n;) {
    int c = p[i], k = 1;
    if (c >= 0x80) c = (c & 0x1f) << 6 | (i + 1 < n ? p[i + 1] & 0x3f : 0), k = p[i] < 0xe0 ? 2 : 3;
    if (k == 3 || c >= 256 + 68 || (c < 256 && !itself(c))) return false;
    out[used++] = (char)(c < 256 ? c : other[c - 256]);
    i += (uint32_t)k;
  }
  *length = used;
  return true;
}

/* Model tokens and merges as bytes. A token with other characters stays as it is. */
static CabStatus unspell_all(CabVocab *v) {
  for (uint64_t i = 0; i < v->tokens; i++) {
    CabToken *t = &v->token[i];
    char room[4 * CAB_TOKEN_MAX_ADDED], *out = t->length <= sizeof room ? room : cab_malloc(t->length, 1);
    uint32_t n;
    if (!out) return CAB_E_MEMORY;
    if (!(t->flags & CAB_TOKEN_ADDED)) {
      if (unspell(t->bytes, t->length, out, &n)) memcpy((char *)(uintptr_t)t->bytes, out, t->length = n);
      else t->flags |= CAB_TOKEN_RAW;
    }
    if (out != room) cab_free(out);
  }
  return CAB_OK;
}

/* ---- index and ids ---------------------------------------------------------------------------- */

static uint64_t place(const CabVocab *v, const char *bytes, size_t n, uint32_t kind) {
  return (XXH3_64bits(bytes, n) + kind * 0x9e3779b97f4a7c15u) & v->mask;
}

const CabToken *cab_vocab_find(const CabVocab *v, const char *bytes, size_t n, uint32_t kind) {
  for (uint64_t at = place(v, bytes, n, kind); v->index[at]; at = (at + 1) & v->mask) {
    const CabToken *t = &v->token[v->index[at] - 1];
    if (t->length == n && (t->flags & KIND) == kind && !memcmp(t->bytes, bytes, n)) return t;
  }
  return NULL;
}

static CabStatus index_all(CabVocab *v) {
  uint64_t size = 16;
  while (size < 2 * v->tokens) size *= 2;
  v->mask = size - 1;
  if (!(v->index = cab_calloc(size, sizeof *v->index))) return CAB_E_MEMORY;
  for (uint64_t i = 0; i < v->tokens; i++) {
    const CabToken *t = &v->token[i];
    if (!t->length) return refuse_token(v, t, "tok-empty", "a token must not be empty");
    if (t->flags & CAB_TOKEN_ADDED && t->length > CAB_TOKEN_MAX_ADDED) return refuse_token(v, t, "tok-long", "an added token has at most 256 bytes");
    if (cab_vocab_find(v, t->bytes, t->length, t->flags & KIND)) return refuse_token(v, t, "tok-duplicate", "stands here twice");
    uint64_t at = place(v, t->bytes, t->length, t->flags & KIND);
    while (v->index[at]) at = (at + 1) & v->mask;
    v->index[at] = (uint32_t)i + 1;
  }
  return CAB_OK;
}

static CabStatus check_range(CabVocab *v) {
  if (!v->tokens) return cab_fail_file(CAB_E_INPUT, "tok-empty", v->file, -1, "model.vocab: there are no tokens");
  const CabToken *last = v->token;
  for (uint64_t i = 0; i < v->tokens; i++)
    if (v->token[i].id >= last->id) last = &v->token[i];
  v->count = (uint64_t)last->id + 1;
  char text[96];
  snprintf(text, sizeof text, "id %u with only %llu tokens: at most 4 times as many ids", last->id, (unsigned long long)v->tokens);
  return last->id > 4 * v->tokens ? refuse_token(v, last, "tok-gap", text) : CAB_OK;
}

/* The token of the model that an added one is: of the same text. */
static const CabToken *twin(const CabVocab *v, const CabToken *t) {
  char bytes[CAB_TOKEN_MAX_ADDED];
  uint32_t n;
  return unspell(t->bytes, t->length, bytes, &n) ? cab_vocab_find(v, bytes, n, 0) : cab_vocab_find(v, t->bytes, t->length, CAB_TOKEN_RAW);
}

static CabStatus assign(CabVocab *v, bool spelled) {
  if (!(v->by_id = cab_calloc(v->count, sizeof *v->by_id))) return CAB_E_MEMORY;
  for (int added = 0; added < 2; added++)
    for (uint64_t i = 0; i < v->tokens; i++) {
      const CabToken *t = &v->token[i];
      char text[480], shown[340];
      if ((t->flags & CAB_TOKEN_ADDED) != (uint32_t)added) continue;
      const CabToken *other = v->by_id[t->id] ? &v->token[v->by_id[t->id] - 1] : NULL, *same = added && spelled ? twin(v, t) : NULL;
      if (same && same->id != t->id) {
        snprintf(text, sizeof text, "id %u, but in model.vocab it has id %u", t->id, same->id);
        return refuse_token(v, t, "tok-id", text);
      }
      if (other && other != same) {
        snprintf(text, sizeof text, "id %u belongs to \"%s\" already", t->id, cab_escape(other->bytes, other->length, shown));
        return refuse_token(v, t, "tok-duplicate", text);
      }
      v->by_id[t->id] = (uint32_t)i + 1;
    }
  return CAB_OK;
}

/* ---- merges ----------------------------------------------------------------------------------- */

static CabStatus refuse_merge(const CabVocab *v, uint64_t rank, const char *id, const char *bytes, size_t n, const char *what) {
  char shown[340];
  const char *file = v->merge_file ? v->merge_file : v->file;
  return cab_fail_file(CAB_E_INPUT, id, file, (int64_t)v->merge[rank].at, "model.merges[%llu]: \"%s\" %s", (unsigned long long)rank,
                       cab_escape(bytes, n, shown), what);
}

static CabStatus part(const CabVocab *v, uint64_t rank, const char *text, uint32_t length, char *out, uint32_t *n, uint32_t *id) {
  const CabToken *t = unspell(text, length, out, n) ? cab_vocab_find(v, out, *n, 0) : NULL;
  if (!t) return refuse_merge(v, rank, "tok-merge", text, length, "is no token of model.vocab");
  *id = t->id;
  return CAB_OK;
}

static CabStatus resolve(CabVocab *v, uint64_t rank, char *room) {
  CabMerge *m = &v->merge[rank];
  uint32_t left, right;
  CAB_TRY(part(v, rank, m->a, m->a_length, room, &left, &m->left));
  CAB_TRY(part(v, rank, m->b, m->b_length, room + left, &right, &m->right));
  const CabToken *t = cab_vocab_find(v, room, (size_t)left + right, 0);
  if (!t) return refuse_merge(v, rank, "tok-merge", room, (size_t)left + right, "is no token of model.vocab, so nothing can merge into it");
  m->to = t->id;
  return CAB_OK;
}

static CabStatus check_known(const CabVocab *v, uint64_t rank) {
  const CabMerge *m = &v->merge[rank];
  const uint32_t id[3] = {m->left, m->right, m->to};
  const CabToken *t[3];
  for (int i = 0; i < 3; i++) {
    if (id[i] >= v->count || !v->by_id[id[i]]) return cab_fail_file(CAB_E_INPUT, "tok-merge", v->file, (int64_t)m->at, "merge %llu: no token has id %u", (unsigned long long)rank, id[i]);
    t[i] = &v->token[v->by_id[id[i]] - 1];
  }
  if (t[0]->length + t[1]->length != t[2]->length || memcmp(t[2]->bytes, t[0]->bytes, t[0]->length) ||
      memcmp(t[2]->bytes + t[0]->length, t[1]->bytes, t[1]->length))
    return cab_fail_file(CAB_E_INPUT, "tok-merge", v->file, (int64_t)m->at, "merge %llu: tokens %u and %u do not make %u", (unsigned long long)rank, id[0], id[1], id[2]);
  return CAB_OK;
}

static CabStatus merge_all(CabVocab *v, bool spelled) {
  uint64_t longest = 1;
  for (uint64_t i = 0; spelled && i < v->merges; i++) {
    uint64_t n = (uint64_t)v->merge[i].a_length + v->merge[i].b_length;
    if (n > longest) longest = n;
  }
  char *room = cab_malloc(longest, 1);
  CabStatus status = room ? CAB_OK : CAB_E_MEMORY;
  for (uint64_t i = 0; status == CAB_OK && i < v->merges; i++) status = spelled ? resolve(v, i, room) : check_known(v, i);
  cab_free(room);
  return status;
}

CabStatus cab_vocab_check(CabVocab *v, bool spelled) {
  if (spelled) CAB_TRY(unspell_all(v));
  CAB_TRY(check_range(v));
  CAB_TRY(index_all(v));
  CAB_TRY(assign(v, spelled));
  return merge_all(v, spelled);
}
