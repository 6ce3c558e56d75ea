/* encode.c - text to ids: added tokens, normalisation, words, merges. A word's ids are the same wherever it stands, so short words
 * go through a cache. */
#include <string.h>

#include "tokenizer_type.h"

#ifndef CACHE_BITS
#define CACHE_BITS 15 /* 2 MiB */
#endif
enum { KEY = 24, IDS = 8 };

/* A cache line: words of at most 24 bytes and 8 ids. */
typedef struct {
  uint64_t key[3]; /* zero-padded */
  uint32_t length, count;
  int32_t id[IDS];
} Cached;

/* Symbols of a word as a linked list; rank of the pair that begins at a symbol. */
typedef struct {
  uint32_t id, previous, next, rank, to;
} Symbol;

struct CabEncoder {
  const CabTokenizer *t;
  Cached *cache;
  Symbol *symbol;
  uint64_t *heap; /* rank << 32 | position: the lowest rank first, then the leftmost */
  size_t room, heap_count, heap_room;
  CabIds *out;
  bool control;
};

CabEncoder *cab_encoder_new(const CabTokenizer *t) {
  CabEncoder *e = cab_calloc(1, sizeof *e);
  if (!e) return NULL;
  e->t = t;
  if (!(e->cache = cab_calloc((size_t)1 << CACHE_BITS, sizeof *e->cache))) return cab_free(e), NULL;
  return e;
}

void cab_encoder_free(CabEncoder *e) {
  if (!e) return;
  cab_free(e->cache), cab_free(e->symbol), cab_free(e->heap);
  cab_free(e);
}

static CabStatus room_for(CabIds *out, size_t more) {
  if (more <= out->room - out->count) return CAB_OK;
  uint64_t room = sz_add(sz_mul(out->room, 2), more);
  int32_t *ids = cab_realloc(out->ids, room, sizeof *ids);
  if (!ids) return CAB_E_MEMORY;
  out->ids = ids, out->room = room;
  return CAB_OK;
}

/* ---- merges ----------------------------------------------------------------------------------- */

static CabStatus heap_push(CabEncoder *e, uint64_t key) {
  if (e->heap_count == e->heap_room) {
    size_t room = e->heap_room ? 2 * e->heap_room : 256;
    uint64_t *heap = cab_realloc(e->heap, room, sizeof *heap);
    if (!heap) return CAB_E_MEMORY;
    e->heap = heap, e->heap_room = room;
  }
  size_t i = e->heap_count++;
  for (; i && e->heap[(i - 1) / 2] > key; i = (i - 1) / 2) e->heap[i] = e->heap[(i - 1) / 2];
  e->heap[i] = key;
  return CAB_OK;
}

static uint64_t heap_pop(CabEncoder *e) {
  uint64_t top = e->heap[0], last = e->heap[--e->heap_count];
  size_t i = 0, n = e->heap_count;
  for (size_t child; (child = 2 * i + 1) < n; i = child) {
    child += child + 1 < n && e->heap[child + 1] < e->heap[child];
    if (e->heap[child] >= last) break;
    e->heap[i] = e->heap[child];
  }
  e->heap[i] = last;
  return top;
}

#define NONE UINT32_MAX

/* What the pair at position i would become. */
static CabStatus look(CabEncoder *e, uint32_t i) {
  Symbol *s = &e->symbol[i];
  const CabPair *p = s->next == NONE ? NULL : cab_pair_find(e->t, s->id, e->symbol[s->next].id);
  s->rank = p ? p->rank : NONE;
  if (!p) return CAB_OK;
  s->to = p->to;
  return heap_push(e, (uint64_t)p->rank << 32 | i);
}

static CabStatus load(CabEncoder *e, const uint8_t *word, size_t n) {
  if (n > CAB_WORD_MAX) return cab_fail(CAB_E_INPUT, "a word of %zu bytes, at most %u are encoded", n, CAB_WORD_MAX);
  if (n > e->room) {
    Symbol *symbol = cab_realloc(e->symbol, n + 64, sizeof *symbol);
    if (!symbol) return CAB_E_MEMORY;
    e->symbol = symbol, e->room = n + 64;
  }
  for (size_t i = 0; i < n; i++) {
    if (e->t->byte_id[word[i]] < 0) return cab_fail(CAB_E_INPUT, "no token for byte 0x%02x", word[i]);
    e->symbol[i] = (Symbol){(uint32_t)e->t->byte_id[word[i]], (uint32_t)i - 1, i + 1 < n ? (uint32_t)i + 1 : NONE, NONE, 0};
  }
  e->heap_count = 0;
  for (size_t i = 0; i + 1 < n; i++) CAB_TRY(look(e, (uint32_t)i));
  return CAB_OK;
}

/* The lowest rank merges first, the leftmost of equal ones; n log n. */
static CabStatus merge(CabEncoder *e, const uint8_t *word, size_t n) {
  CAB_TRY(load(e, word, n));
  while (e->heap_count) {
    uint64_t top = heap_pop(e);
    uint32_t i = (uint32_t)top;
    Symbol *s = &e->symbol[i];
    if (s->rank != top >> 32) continue; /* an older pair */
    uint32_t gone = s->next;
    s->id = s->to, s->next = e->symbol[gone].next;
    e->symbol[gone].rank = NONE;
    if (s->next != NONE) e->symbol[s->next].previous = i;
    CAB_TRY(look(e, i));
    if (s->previous != NONE) CAB_TRY(look(e, s->previous));
  }
  CAB_TRY(room_for(e->out, n));
  for (uint32_t i = 0; i != NONE; i = e->symbol[i].next) e->out->ids[e->out->count++] = (int32_t)e->symbol[i].id;
  return CAB_OK;
}

/* ---- words ------------------------------------------------------------------------------------ */

/* `left`: readable bytes from p on, at least n. */
static CabStatus word(CabEncoder *e, const uint8_t *p, size_t n, size_t left) {
  if (n > KEY) return merge(e, p, n);
  uint64_t k[3] = {0};
  if (left >= KEY) {
    memcpy(k, p, KEY);
    k[0] &= n < 8 ? (1ull << 8 * n) - 1 : ~0ull;
    k[1] &= n <= 8 ? 0 : n < 16 ? (1ull << 8 * (n - 8)) - 1 : ~0ull;
    k[2] &= n <= 16 ? 0 : n < 24 ? (1ull << 8 * (n - 16)) - 1 : ~0ull;
  } else memcpy(k, p, n);
  uint64_t h = (k[0] ^ k[1] * 0xff51afd7ed558ccdu ^ k[2] * 0xc4ceb9fe1a85ec53u ^ n) * 0x9e3779b97f4a7c15u;
  Cached *c = &e->cache[h >> (64 - CACHE_BITS)];
  if (c->key[0] == k[0] && c->key[1] == k[1] && c->key[2] == k[2] && c->length == n) {
    CAB_TRY(room_for(e->out, IDS));
    memcpy(e->out->ids + e->out->count, c->id, sizeof c->id);
    e->out->count += c->count;
    return CAB_OK;
  }
  size_t before = e->out->count;
  CAB_TRY(merge(e, p, n));
  size_t count = e->out->count - before;
  if (count > IDS) return CAB_OK;
  *c = (Cached){.key = {k[0], k[1], k[2]}, .length = (uint32_t)n, .count = (uint32_t)count};
  memcpy(c->id, e->out->ids + before, count * sizeof *c->id);
  return CAB_OK;
}

static CabStatus words(CabEncoder *e, const uint8_t *p, size_t n) {
  CAB_TRY(room_for(e->out, n / 4));
  for (size_t i = 0, length; i < n; i += length) {
    length = cab_gpt2_word(p + i, n - i);
    CAB_TRY(word(e, p + i, length, n - i));
  }
  return CAB_OK;
}

/* Text between added tokens. */
static CabStatus plain(CabEncoder *e, const uint8_t *p, size_t n) {
  if (!e->t->v.prefix_space || !n || p[0] == ' ') return words(e, p, n);
  uint8_t *copy = cab_malloc(n + 1, 1);
  if (!copy) return CAB_E_MEMORY;
  copy[0] = ' ';
  memcpy(copy + 1, p, n);
  CabStatus status = words(e, copy, n + 1);
  cab_free(copy);
  return status;
}

/* ---- added tokens ----------------------------------------------------------------------------- */

/* The longest added token at p: its id and *length; -1: none. */
static int64_t longest(const CabTrie *t, const uint8_t *p, size_t n, size_t *length) {
  int64_t found = -1;
  uint32_t node = 0;
  for (size_t i = 0; i < n && (node = cab_trie_child(t, node, p[i])); i++)
    if (t->id[node] >= 0) found = t->id[node], *length = i + 1;
  return found;
}

static size_t spaces_before(const uint8_t *p, size_t from, size_t at) {
  int length;
  while (at > from) {
    size_t i = at - 1;
    while (i > from && (p[i] & 0xc0) == 0x80) i--;
    if (cab_char_class(p + i, &length) != CAB_CHAR_SPACE) break;
    at = i;
  }
  return at;
}

static size_t spaces_behind(const uint8_t *p, size_t n, size_t at) {
  int length;
  while (at < n && cab_char_class(p + at, &length) == CAB_CHAR_SPACE) at += (size_t)length;
  return at;
}

typedef CabStatus (*Part)(CabEncoder *e, const uint8_t *p, size_t n);

/* Cuts the added tokens of a trie out of the text, leftmost and longest first; `rest` takes what is between. */
static CabStatus split(CabEncoder *e, int which, const uint8_t *p, size_t n, Part rest) {
  const CabTrie *t = &e->t->trie[which];
  size_t from = 0;
  if (!t->nodes) return n ? rest(e, p, n) : CAB_OK;
  for (size_t at = 0, length = 0; at < n;) {
    int64_t id = t->root[p[at]] ? longest(t, p + at, n - at, &length) : -1;
    if (id < 0) {
      at++;
      continue;
    }
    uint32_t flags;
    size_t ignored, begin = at, end = at + length;
    at = end;
    cab_tokenizer_token(e->t, id, &ignored, &flags);
    if (begin < from || (flags & CAB_TOKEN_SPECIAL && !e->control)) continue; /* white space taken by the one before, or text */
    if (flags & CAB_TOKEN_LSTRIP) begin = spaces_before(p, from, begin);
    if (flags & CAB_TOKEN_RSTRIP) end = spaces_behind(p, n, end);
    if (begin > from) CAB_TRY(rest(e, p + from, begin - from));
    CAB_TRY(room_for(e->out, 1));
    e->out->ids[e->out->count++] = (int32_t)id;
    from = end;
  }
  return from < n ? rest(e, p + from, n - from) : CAB_OK;
}

static CabStatus normal(CabEncoder *e, const uint8_t *p, size_t n) {
  CabBytes form = {0};
  if (e->t->v.nfc) CAB_TRY(cab_nfc(p, n, &form));
  CabStatus status = split(e, 1, form.data ? form.data : p, form.data ? form.length : n, plain);
  cab_bytes_free(&form);
  return status;
}

CabStatus cab_encode(CabEncoder *e, const char *text, size_t n, bool control, CabIds *out) {
  const uint8_t *p = (const uint8_t *)text;
  size_t bad = cab_utf8_bad(p, n), before = out->count;
  if (bad < n) return cab_fail(CAB_E_INPUT, "bad UTF-8 at byte %zu: 0x%02x", bad, p[bad]);
  e->out = out, e->control = control;
  CabStatus status = split(e, 0, p, n, normal);
  if (status != CAB_OK) out->count = before;
  return status;
}

CabStatus cab_ids_push(CabIds *ids, int32_t id) {
  CAB_TRY(room_for(ids, 1));
  ids->ids[ids->count++] = id;
  return CAB_OK;
}
