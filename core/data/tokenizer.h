/* tokenizer.h - byte-level BPE (GPT-2, Phi, GPT-NeoX): a vocabulary read from files, checked as a whole; then encode, decode. */
#ifndef CAB_TOKENIZER_H
#define CAB_TOKENIZER_H
#include "file.h"
#include "unicode.h"

#define CAB_TOKENIZER_MAX_FILE (256u << 20)
#define CAB_TOKEN_MAX_ADDED 256        /* bytes of an added token: bounds the work at each place of a text */
#define CAB_WORD_MAX (16u << 20)       /* bytes of a word; the work grows as n log n */

enum {
  CAB_TOKEN_ADDED = 1,      /* found in the text before anything else */
  CAB_TOKEN_SPECIAL = 2,    /* a control token: left out by decode if asked */
  CAB_TOKEN_NORMALIZED = 4, /* looked for after normalisation */
  CAB_TOKEN_LSTRIP = 8,     /* takes the white space before it */
  CAB_TOKEN_RSTRIP = 16,    /* and behind it */
  CAB_TOKEN_RAW = 32,       /* of the model, but not written in the byte alphabet: nothing merges into it */
};

typedef struct {
  const char *bytes;
  uint32_t length, id;
  uint32_t flags;
  uint64_t at; /* file offset, for messages */
} CabToken;

typedef struct {
  const char *a, *b; /* in the byte alphabet; unused where the ids are known */
  uint32_t a_length, b_length;
  uint32_t left, right, to; /* ids */
  uint64_t at;
} CabMerge;

/* What the files say. Parsers fill it, cab_vocab_check makes sense of it. */
typedef struct {
  CabToken *token;
  uint64_t tokens, token_room;
  CabMerge *merge; /* by rank */
  uint64_t merges, merge_room;
  uint64_t count;  /* largest id + 1 */
  uint32_t *by_id; /* [count] token number + 1, 0: no token; an added token goes before one of the model */
  uint32_t *index; /* hash of (bytes, kind) -> token number + 1 */
  uint64_t mask;
  bool nfc, prefix_space;
  const char *file, *merge_file, *added_file; /* for messages, the caller's; NULL: as file */
  CabBytes arena[3];
} CabVocab;

/* Pure; out is filled as far as it got and must be freed either way. Errors 65, see tests/tokenizer_spec.lua. */
CabStatus cab_vocab_json(const uint8_t *bytes, size_t n, const char *file, CabVocab *out);
/* merges.txt or vocab.bpe. vocab: vocab.json or encoder.json, NULL: GPT-2's ids (bytes, merges in order, <|endoftext|>).
 * added: {"text": id}, may be NULL. limit: merges to read at most; the rest of the file is left out. */
typedef struct {
  const uint8_t *bytes;
  size_t n;
  const char *file;
} CabSource;
CabStatus cab_vocab_files(CabSource merges, uint64_t limit, const CabSource *vocab, const CabSource *added, CabVocab *out);
/* The compact form that cab_tokenizer_save writes. */
CabStatus cab_vocab_compact(const uint8_t *bytes, size_t n, const char *file, CabVocab *out);
bool cab_vocab_is_compact(const uint8_t *bytes, size_t n);
void cab_vocab_free(CabVocab *v);

/* {"token": id, ...} as a file of its own. path: in messages. */
CabStatus cab_vocab_id_map(const CabSource *s, const char *path, uint32_t flags, CabVocab *v, CabBytes *arena);
/* For parsers: append; names are as in the file. */
CabStatus cab_vocab_token(CabVocab *v, CabToken token);
CabStatus cab_vocab_merge(CabVocab *v, CabMerge merge);
/* Ids, duplicates, gaps, merges. spelled: tokens and merges are in the byte alphabet still (Ġ for a space). */
CabStatus cab_vocab_check(CabVocab *v, bool spelled);
/* The token of these bytes; kind: its flags of CAB_TOKEN_ADDED and CAB_TOKEN_RAW. NULL if there is none. */
const CabToken *cab_vocab_find(const CabVocab *v, const char *bytes, size_t n, uint32_t kind);

typedef struct CabTokenizer CabTokenizer; /* does not change; any number of threads */
/* A tokenizer.json, a compact file or merges, told apart by the first bytes; any of them may be gzip. vocab and added only with
 * merges, or else NULL. NULL + error slot on failure. */
CabTokenizer *cab_tokenizer_open(const char *path, const char *vocab, const char *added, uint64_t limit);
CabTokenizer *cab_tokenizer_new(CabVocab *v); /* takes what v owns, also on failure (NULL + error slot) */
void cab_tokenizer_free(CabTokenizer *t);
int64_t cab_tokenizer_count(const CabTokenizer *t);   /* largest id + 1 */
uint64_t cab_tokenizer_hash(const CabTokenizer *t);   /* of all that decides what ids a text gets */
/* NULL for an id that no token has; *flags may be NULL. */
const char *cab_tokenizer_token(const CabTokenizer *t, int64_t id, size_t *length, uint32_t *flags);
int64_t cab_tokenizer_find(const CabTokenizer *t, const char *bytes, size_t n); /* added tokens first; -1 */
CabStatus cab_tokenizer_save(const CabTokenizer *t, const char *path);
/* bytes of the ids one after another; errors name the id and its place. control: special tokens too. */
CabStatus cab_tokenizer_decode(const CabTokenizer *t, const int32_t *ids, size_t count, bool control, CabBytes *out);

/* Encoding keeps a cache of words: one encoder for each thread. */
typedef struct CabEncoder CabEncoder;
typedef struct {
  int32_t *ids;
  size_t count, room;
} CabIds;
CabStatus cab_ids_push(CabIds *ids, int32_t id);
CabEncoder *cab_encoder_new(const CabTokenizer *t);
void cab_encoder_free(CabEncoder *e);
/* Appends to *out (on failure it keeps what it had). control: special tokens in the text become their ids; otherwise they are
 * text like any other. Errors 65: tok-utf8, tok-byte, tok-word. */
CabStatus cab_encode(CabEncoder *e, const char *text, size_t n, bool control, CabIds *out);

#endif
