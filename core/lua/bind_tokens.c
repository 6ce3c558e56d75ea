/* bind_tokens.c - core.documents, core.token_writer, core.tokens: text to streams of ids, streams to batches. Positions count from 0. */
#include <stdlib.h>
#include <string.h>

#include "bind_text.h"

#define META_DOCS "cab.documents"
#define META_WRITER "cab.token_writer"
#define META_TOKENS "cab.tokens"
#define META_WINDOWS "cab.windows"

static void *check_open(lua_State *L, int idx, const char *meta, const char *what) {
  void **u = luaL_testudata(L, idx, meta); /* the first field of each: NULL once closed */
  if (!u) bind_arg_error(L, idx, "%s expected, got %s", what, bind_type_name(L, idx));
  if (!*u) bind_fail(L, CAB_E_LUA, "%s is closed", what);
  return u;
}

static void *check_any(lua_State *L, const char *meta, const char *what) {
  void *u = luaL_testudata(L, 1, meta);
  if (!u) bind_arg_error(L, 1, "%s expected, got %s", what, bind_type_name(L, 1));
  return u;
}

static void *new_object(lua_State *L, size_t size, const char *meta) {
  void *u = lua_newuserdatauv(L, size, 0);
  memset(u, 0, size);
  luaL_setmetatable(L, meta);
  return u;
}

/* ---- documents -------------------------------------------------------------------------------- */

typedef struct {
  CabDocs *d;
  char path[256];
} Docs;

/* core.documents(path [, field]) -> documents of a text file (one), or of a JSONL file (a line each) */
static int open_docs(lua_State *L) {
  const char *path = bind_check_path(L, 1), *field = lua_isnoneornil(L, 2) ? NULL : bind_check_path(L, 2);
  Docs *k = new_object(L, sizeof *k, META_DOCS);
  snprintf(k->path, sizeof k->path, "%s", path);
  if (!(k->d = cab_docs_open(path, field)) && bind_collect(L)) k->d = cab_docs_open(path, field);
  if (!k->d) bind_raise(L, cab_error()->code);
  return 1;
}

static int close_docs(lua_State *L) {
  Docs *k = check_any(L, META_DOCS, "documents");
  cab_docs_close(k->d);
  k->d = NULL;
  return 0;
}

/* d:next() -> text, last; nil at the end. last: the document ends with this part */
static int next_docs(lua_State *L) {
  Docs *k = check_open(L, 1, META_DOCS, "documents");
  const char *text;
  size_t n;
  bool last;
  CabStatus status = cab_docs_next(k->d, &text, &n, &last);
  if (status) bind_raise(L, status);
  if (!text) return lua_pushnil(L), 1;
  lua_pushlstring(L, text, n);
  return lua_pushboolean(L, last), 2;
}

/* d:position() -> bytes of the file read, its size, line */
static int position(lua_State *L) {
  Docs *k = check_open(L, 1, META_DOCS, "documents");
  uint64_t read, size;
  int64_t line;
  cab_docs_position(k->d, &read, &size, &line);
  lua_pushinteger(L, (lua_Integer)read), lua_pushinteger(L, (lua_Integer)size), lua_pushinteger(L, line);
  return 3;
}

/* ---- streams ---------------------------------------------------------------------------------- */

typedef struct {
  CabTokens *t;
} Tokens;

static CabTokens *check_tokens(lua_State *L) { return ((Tokens *)check_open(L, 1, META_TOKENS, "tokens"))->t; }

/* vocab and ending of the options at `table`, over what format says. */
static void read_format(lua_State *L, int table, CabTokenFormat *format) {
  int64_t vocab = bind_opt_int(L, table, "vocab", format->vocab), ending = bind_opt_int(L, table, "ending", format->ending);
  if (vocab < 0 || vocab > INT32_MAX) bind_fail(L, CAB_E_LUA, "%s: 'vocab' is %lld", bind_function(L), (long long)vocab);
  if (ending < -1 || (vocab && ending >= vocab)) bind_fail(L, CAB_E_LUA, "%s: 'ending' is %lld of %lld ids", bind_function(L), (long long)ending, (long long)vocab);
  format->vocab = vocab, format->ending = ending;
}

/* core.tokens{file=path [, raw="u16"|"u32", vocab=, ending=]} -> tokens. raw: a file without header; vocab, ending: where it does not say */
static int open_tokens(lua_State *L) {
  static const char *const known[] = {"file", "raw", "vocab", "ending", NULL};
  static const char *const raws[] = {"no", "u16", "u32", NULL};
  static const int widths[] = {0, 2, 4};
  bind_check_table(L, 1);
  bind_unknown_keys(L, 1, known);
  const char *path = bind_opt_string(L, 1, "file", NULL);
  int raw = bind_opt_word(L, 1, "raw", "no", raws);
  if (!path || !*path) bind_fail(L, CAB_E_LUA, "tokens: 'file' is missing");
  Tokens *k = new_object(L, sizeof *k, META_TOKENS);
  if (!(k->t = cab_tokens_open(path, widths[raw])) && bind_collect(L)) k->t = cab_tokens_open(path, widths[raw]);
  if (!k->t) bind_raise(L, cab_error()->code);
  read_format(L, 1, cab_tokens_format(k->t));
  return 1;
}

static int close_tokens(lua_State *L) {
  Tokens *k = check_any(L, META_TOKENS, "tokens");
  cab_tokens_release(k->t);
  k->t = NULL;
  return 0;
}

static int tokens_count(lua_State *L) { return lua_pushinteger(L, (lua_Integer)cab_tokens_count(check_tokens(L))), 1; }

/* t:format() -> {width=, vocab=, ending=, hash=}; what is not known is left out */
static int tokens_format(lua_State *L) {
  CabTokenFormat *f = cab_tokens_format(check_tokens(L));
  char text[20];
  lua_createtable(L, 0, 4);
  lua_pushinteger(L, f->width), lua_setfield(L, -2, "width");
  if (f->vocab) lua_pushinteger(L, f->vocab), lua_setfield(L, -2, "vocab");
  if (f->ending >= 0) lua_pushinteger(L, f->ending), lua_setfield(L, -2, "ending");
  snprintf(text, sizeof text, "%016llx", (unsigned long long)f->hash);
  if (f->hash) lua_pushstring(L, text), lua_setfield(L, -2, "hash");
  return 1;
}

/* t:read(at, n) -> i32[n] */
static int tokens_read(lua_State *L) {
  CabTokens *t = check_tokens(L);
  int64_t at = bind_check_int(L, 2), n = bind_check_int(L, 3);
  if (at < 0 || n < 0) bind_arg_error(L, at < 0 ? 2 : 3, "is negative");
  CabTensor **slot = bind_new_tensor(L);
  if ((uint64_t)n > cab_tokens_count(t)) bind_arg_error(L, 3, "%lld of %lld ids", (long long)n, (long long)cab_tokens_count(t));
  BIND_FILL(L, slot, cab_tensor_new(cab_cpu(), CAB_I32, 1, &n));
  CabStatus status = cab_tokens_read(t, (uint64_t)at, (size_t)n, cab_tensor_data(*slot));
  if (status) bind_raise(L, status);
  return 1;
}

/* ---- writer ----------------------------------------------------------------------------------- */

typedef struct {
  bool *open; /* &yes, NULL once closed */
  bool yes;
  CabTokenWriter *w; /* NULL: ids stay in memory */
  CabIds ids;
  CabTokenFormat format;
  uint64_t count, documents;
} Writer;

/* core.token_writer{path=, vocab=, ending=, hash=, raw=false} -> writer; without path the stream is kept in memory. raw: no header */
static int open_writer(lua_State *L) {
  static const char *const known[] = {"path", "vocab", "ending", "hash", "raw", NULL};
  bind_check_table(L, 1);
  bind_unknown_keys(L, 1, known);
  const char *path = bind_opt_string(L, 1, "path", NULL), *hash = bind_opt_string(L, 1, "hash", "0");
  bool raw = bind_opt_bool(L, 1, "raw", false);
  Writer *k = new_object(L, sizeof *k, META_WRITER);
  k->format.ending = -1;
  read_format(L, 1, &k->format);
  if (!k->format.vocab) bind_fail(L, CAB_E_LUA, "token_writer: 'vocab' is missing");
  k->format.width = k->format.vocab <= 1 << 16 ? 2 : 4;
  k->format.hash = strtoull(hash, NULL, 16);
  if (path && !(k->w = cab_token_writer_open(path, k->format, !raw))) bind_raise(L, cab_error()->code);
  k->open = &k->yes;
  return 1;
}

static int close_writer(lua_State *L) {
  Writer *k = check_any(L, META_WRITER, "token writer");
  cab_token_writer_abort(k->w);
  cab_free(k->ids.ids);
  *k = (Writer){0};
  return 0;
}

/* Encoding knows neither file nor line. */
static CabStatus name_place(const Docs *docs, CabStatus status) {
  uint64_t read, size;
  int64_t line;
  if (status != CAB_E_INPUT) return status;
  CabError e = *cab_error();
  cab_docs_position(docs->d, &read, &size, &line);
  return cab_fail_file(CAB_E_INPUT, "tok-text", docs->path, -1, "line %lld: %s", (long long)line, e.message);
}

/* w:take(documents, tokenizer [, control=false]) -> bytes of text; nil at the end: the next part is encoded and written, and behind
 * a document the id that ends documents */
static int take(lua_State *L) {
  Writer *k = check_open(L, 1, META_WRITER, "token writer");
  Docs *docs = check_open(L, 2, META_DOCS, "documents");
  BindTokenizer *t = bind_check_tokenizer(L, 3);
  bool control = lua_isnoneornil(L, 4) ? false : bind_check_bool(L, 4), last;
  const char *text;
  size_t n, before = k->ids.count;
  CabStatus status = cab_docs_next(docs->d, &text, &n, &last);
  if (status == CAB_OK && text) status = name_place(docs, cab_encode(t->e, text, n, control, &k->ids));
  int32_t ending = (int32_t)k->format.ending;
  if (status) bind_raise(L, status);
  if (!text) return lua_pushnil(L), 1;
  k->count += k->ids.count - before;
  if (k->w) {
    status = cab_token_writer_add(k->w, k->ids.ids, k->ids.count);
    if (status == CAB_OK && last && ending >= 0) status = cab_token_writer_add(k->w, &ending, 1);
    k->ids.count = 0;
  } else if (last && ending >= 0) status = cab_ids_push(&k->ids, ending);
  if (status) bind_raise(L, status);
  k->count += last && ending >= 0;
  k->documents += last;
  return lua_pushinteger(L, (lua_Integer)n), 1;
}

/* w:commit() -> ids, documents [, tokens]: the file appears under its name; a stream in memory is returned as tokens */
static int commit(lua_State *L) {
  Writer *k = check_open(L, 1, META_WRITER, "token writer");
  lua_settop(L, 1);
  lua_pushinteger(L, (lua_Integer)k->count), lua_pushinteger(L, (lua_Integer)k->documents);
  CabTokenWriter *w = k->w;
  CabStatus status = CAB_OK;
  if (w) {
    k->w = NULL;
    status = cab_token_writer_commit(w);
  } else {
    Tokens *t = new_object(L, sizeof *t, META_TOKENS);
    t->t = cab_tokens_memory(&k->ids, k->format, "text in memory");
    status = t->t ? CAB_OK : CAB_E_MEMORY;
  }
  k->open = NULL;
  if (status) bind_raise(L, status);
  return lua_gettop(L) - 1;
}

static int written(lua_State *L) {
  Writer *k = check_open(L, 1, META_WRITER, "token writer");
  lua_pushinteger(L, (lua_Integer)k->count), lua_pushinteger(L, (lua_Integer)k->documents);
  return 2;
}

/* ---- windows ---------------------------------------------------------------------------------- */

/* The batch in hand stays pending until its tensors exist. */
typedef struct {
  CabWindows *w;
  int length, count;
  int64_t windows;
  bool pending;
  const int32_t *ids, *segments;
} Windows;

static int small(lua_State *L, const char *key, int64_t initial) {
  int64_t v = bind_opt_int(L, 2, key, initial);
  if (v < 1 || v > 1 << 24) bind_fail(L, CAB_E_LUA, "windows: '%s' is %lld", key, (long long)v);
  return (int)v;
}

/* t:windows{length=, batch=, first=0, count=, seed=0, epoch=0, shuffle=false, drop_last=false, start=0} -> windows: count of them from
 * id `first` on, default as many as there are */
static int open_windows(lua_State *L) {
  static const char *const known[] = {"length", "batch", "first", "count", "seed", "epoch", "shuffle", "drop_last", "start", NULL};
  CabTokens *t = check_tokens(L);
  bind_check_table(L, 2);
  bind_unknown_keys(L, 2, known);
  CabWindowOptions o = {.length = small(L, "length", 0), .batch = small(L, "batch", 0)};
  int64_t first = bind_opt_int(L, 2, "first", 0), total = (int64_t)cab_tokens_count(t);
  if (first < 0 || first > total) bind_fail(L, CAB_E_LUA, "windows: 'first' is %lld of %lld ids", (long long)first, (long long)total);
  int64_t count = bind_opt_int(L, 2, "count", (total - first) / o.length);
  if (count < 0) bind_fail(L, CAB_E_LUA, "windows: 'count' is %lld", (long long)count);
  o.first = (uint64_t)first, o.windows = (uint64_t)count;
  o.seed = (uint64_t)bind_opt_int(L, 2, "seed", 0), o.epoch = (uint64_t)bind_opt_int(L, 2, "epoch", 0);
  o.shuffle = bind_opt_bool(L, 2, "shuffle", false), o.drop_last = bind_opt_bool(L, 2, "drop_last", false);
  o.start = bind_opt_int(L, 2, "start", 0);
  Windows *k = new_object(L, sizeof *k, META_WINDOWS);
  k->length = o.length, k->windows = count;
  if (!(k->w = cab_windows_open(t, &o)) && bind_collect(L)) k->w = cab_windows_open(t, &o);
  if (!k->w) bind_raise(L, cab_error()->code);
  return 1;
}

static int close_windows(lua_State *L) {
  Windows *k = check_any(L, META_WINDOWS, "windows");
  cab_windows_close(k->w);
  k->w = NULL;
  return 0;
}

static Windows *await(lua_State *L) {
  Windows *k = check_open(L, 1, META_WINDOWS, "windows");
  if (k->pending) return k;
  CabStatus status = cab_windows_next(k->w, &k->count, &k->ids, &k->segments);
  if (status) bind_raise(L, status);
  k->pending = true;
  return k;
}

/* w:next() -> ids i32[b,l], segments i32[b,l]; nil at the end */
static int next_windows(lua_State *L) {
  CabTensor **ids = bind_new_tensor(L), **segments = bind_new_tensor(L);
  Windows *k = await(L);
  if (!k->count) return lua_pushnil(L), 1;
  int64_t shape[2] = {k->count, k->length};
  BIND_FILL(L, ids, cab_tensor_new(cab_cpu(), CAB_I32, 2, shape));
  BIND_FILL(L, segments, cab_tensor_new(cab_cpu(), CAB_I32, 2, shape));
  size_t bytes = (size_t)k->count * (size_t)k->length * sizeof(int32_t);
  memcpy(cab_tensor_data(*ids), k->ids, bytes);
  memcpy(cab_tensor_data(*segments), k->segments, bytes);
  k->pending = false;
  return 2;
}

/* w:into(ids, segments) -> true: the next batch lies there, on whatever device; false: another shape, or none: next() tells */
static int into(lua_State *L) {
  CabTensor *ids = bind_check_tensor(L, 2), *segments = bind_check_tensor(L, 3);
  Windows *k = await(L);
  int64_t shape[2] = {k->count, k->length};
  bool fits = k->count && bind_holds(ids, CAB_I32, 2, shape) && bind_holds(segments, CAB_I32, 2, shape);
  if (fits) {
    size_t bytes = (size_t)k->count * (size_t)k->length * sizeof(int32_t);
    bind_write(L, ids, k->ids, bytes);
    bind_write(L, segments, k->segments, bytes);
    k->pending = false;
  }
  return lua_pushboolean(L, fits), 1;
}

/* w:order() -> i32[windows]: the windows, from 0, in the order of the epoch */
static int windows_order(lua_State *L) {
  Windows *k = check_open(L, 1, META_WINDOWS, "windows");
  if (k->windows > INT32_MAX) bind_fail(L, CAB_E_LUA, "order: %lld windows", (long long)k->windows);
  CabTensor **slot = bind_new_tensor(L);
  BIND_FILL(L, slot, cab_tensor_new(cab_cpu(), CAB_I32, 1, &k->windows));
  if (k->windows) cab_windows_order(k->w, cab_tensor_data(*slot));
  return 1;
}

static int windows_batches(lua_State *L) { return lua_pushinteger(L, cab_windows_batches(((Windows *)check_open(L, 1, META_WINDOWS, "windows"))->w)), 1; }
static int windows_wait(lua_State *L) { return lua_pushnumber(L, cab_windows_wait(((Windows *)check_open(L, 1, META_WINDOWS, "windows"))->w)), 1; }

void bind_tokens(lua_State *L) {
  static const luaL_Reg docs[] = {{"next", next_docs}, {"position", position}, {"close", close_docs}, {NULL, NULL}};
  static const luaL_Reg tokens[] = {{"count", tokens_count}, {"format", tokens_format}, {"read", tokens_read}, {"windows", open_windows},
                                    {"close", close_tokens}, {NULL, NULL}};
  static const luaL_Reg writer[] = {{"take", take}, {"written", written}, {"commit", commit}, {"close", close_writer}, {NULL, NULL}};
  static const luaL_Reg windows[] = {{"next", next_windows}, {"into", into}, {"order", windows_order}, {"batches", windows_batches}, {"wait", windows_wait},
                                     {"close", close_windows}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"documents", open_docs}, {"tokens", open_tokens}, {"token_writer", open_writer}, {NULL, NULL}};
  bind_data_class(L, META_DOCS, "documents", close_docs, docs);
  bind_data_class(L, META_TOKENS, "tokens", close_tokens, tokens);
  bind_data_class(L, META_WRITER, "token writer", close_writer, writer);
  bind_data_class(L, META_WINDOWS, "windows", close_windows, windows);
  luaL_setfuncs(L, functions, 0);
}
