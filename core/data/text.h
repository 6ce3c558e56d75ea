/* text.h - documents of text and JSONL files, a part at a time; streams of token ids on disk or in memory, and batches of them. */
#ifndef CAB_TEXT_H
#define CAB_TEXT_H
#include "tokenizer.h"

#define CAB_LINE_MAX (64u << 20)

/* ---- documents -------------------------------------------------------------------------------- */

typedef struct CabDocs CabDocs;
/* Plain or gzip. field: of the JSON object on each line; NULL: the file is text, one document. NULL + error slot on failure. */
CabDocs *cab_docs_open(const char *path, const char *field);
/* The next part of a document, well-formed UTF-8 without NUL; *text NULL at the end of the file. *last: the document ends with it.
 * A text is cut before a space that follows no space, so that the words of its parts are its words; an added token with a space
 * inside it is not seen across such a cut.
 * Errors 65 name byte and line: text-utf8, text-nul, text-line, text-empty, jsonl, jsonl-field, jsonl-depth. */
CabStatus cab_docs_next(CabDocs *d, const char **text, size_t *n, bool *last);
void cab_docs_close(CabDocs *d);
void cab_docs_position(const CabDocs *d, uint64_t *read, uint64_t *size, int64_t *line); /* bytes of the file */

/* ---- token files: raw u16 or u32, little-endian, or behind a header ----------------------------------------------
 * Ours, 64 bytes: "CABTOKEN", u32 1, u32 bytes an id, u64 ids, u64 hash of the tokenizer, i64 id that ends documents (-1: none), u64 size
 * of the vocabulary, zeros. Also llm.c's 1024 bytes: i32 20240520, 1, ids (u16) or 20240801, 7, ids (u32). */

typedef struct {
  int width;        /* bytes an id: 2 or 4 */
  int64_t vocab;    /* ids are below; 0: not known */
  int64_t ending;   /* -1: none */
  uint64_t hash;    /* 0: not known */
} CabTokenFormat;

typedef struct CabTokens CabTokens;
/* raw: 2 or 4 for a file without header, otherwise 0. Errors 65: tok-header, tok-size. */
CabTokens *cab_tokens_open(const char *path, int raw);
/* Takes ids, a cab_malloc array, also on failure. name: for messages. */
CabTokens *cab_tokens_memory(CabIds *ids, CabTokenFormat format, const char *name);
CabTokens *cab_tokens_retain(CabTokens *t);
void cab_tokens_release(CabTokens *t);
uint64_t cab_tokens_count(const CabTokens *t);
CabTokenFormat *cab_tokens_format(CabTokens *t); /* vocab and ending may be set where the file does not say */
/* ids [at, at+n); error tok-id for one outside of the vocabulary: file, byte, place, value. */
CabStatus cab_tokens_read(const CabTokens *t, uint64_t at, size_t n, int32_t *out);

/* Written as it comes; appears under its name, whole, with cab_token_writer_commit. */
typedef struct CabTokenWriter CabTokenWriter;
CabTokenWriter *cab_token_writer_open(const char *path, CabTokenFormat format, bool header);
CabStatus cab_token_writer_add(CabTokenWriter *w, const int32_t *ids, size_t n);
CabStatus cab_token_writer_commit(CabTokenWriter *w); /* frees w, whatever it returns */
void cab_token_writer_abort(CabTokenWriter *w);       /* NULL allowed; nothing is left */

/* ---- batches: windows of equal length, one after another, documents packed --------------------------------------- */

typedef struct {
  int length, batch;
  uint64_t first, windows; /* window k is ids [first + k length, + length) */
  uint64_t seed, epoch;
  bool shuffle, drop_last; /* order: a permutation keyed by (seed, epoch) */
  int64_t start;           /* batches to leave out */
} CabWindowOptions;
typedef struct CabWindows CabWindows;
CabWindows *cab_windows_open(CabTokens *t, const CabWindowOptions *o); /* retains t */
/* ids and segments [*count, length]; *count = 0 at the end. Segments: number of the document in its window, from 0; the id that
 * ends a document belongs to it. Valid until the next call. */
CabStatus cab_windows_next(CabWindows *w, int *count, const int32_t **ids, const int32_t **segments);
void cab_windows_close(CabWindows *w);
int64_t cab_windows_batches(const CabWindows *w);
/* The window of each place of this epoch, from 0: out[windows]. */
void cab_windows_order(const CabWindows *w, int32_t *out);
double cab_windows_wait(const CabWindows *w); /* seconds spent reading */

#endif
