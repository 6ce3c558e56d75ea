/* tokenizer_type.h - inside of a tokenizer, for tokenizer.c and encode.c. */
#ifndef CAB_TOKENIZER_TYPE_H
#define CAB_TOKENIZER_TYPE_H
#include "tokenizer.h"

/* (left, right) -> the token they make and its rank; empty: rank UINT32_MAX. */
typedef struct {
  uint32_t left, right, to, rank;
} CabPair;

/* Added tokens as a tree of bytes. Child of (node, byte): by hash; nodes count from 1, the root is 0. */
typedef struct {
  struct { uint64_t key; uint32_t node; } *edge; /* key: node << 8 | byte, plus 1; 0: empty */
  uint64_t mask;
  int64_t *id;     /* of the token that ends at a node, -1: none */
  uint32_t nodes;
  uint32_t root[256];
} CabTrie;

struct CabTokenizer {
  CabVocab v;
  CabPair *pair;
  uint64_t mask;
  int32_t byte_id[256]; /* -1: no token */
  CabTrie trie[2];      /* looked for before and after normalisation */
};

static inline uint64_t cab_pair_place(uint32_t left, uint32_t right, uint64_t mask) {
  uint64_t h = ((uint64_t)left << 32 | right) * 0x9e3779b97f4a7c15u;
  return (h ^ h >> 29) & mask;
}

/* The merge of two tokens, NULL if there is none. */
static inline const CabPair *cab_pair_find(const CabTokenizer *t, uint32_t left, uint32_t right) {
  for (uint64_t at = cab_pair_place(left, right, t->mask);; at = (at + 1) & t->mask) {
    const CabPair *p = &t->pair[at];
    if (p->rank == UINT32_MAX) return NULL;
    if (p->left == left && p->right == right) return p;
  }
}

static inline uint32_t cab_trie_child(const CabTrie *t, uint32_t node, uint8_t byte) {
  if (node == 0) return t->root[byte];
  uint64_t key = ((uint64_t)node << 8 | byte) + 1;
  for (uint64_t at = key * 0x9e3779b97f4a7c15u >> 20 & t->mask; t->edge[at].key; at = (at + 1) & t->mask)
    if (t->edge[at].key == key) return t->edge[at].node;
  return 0;
}

#endif
