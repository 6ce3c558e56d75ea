/* bind_text.c - core.tokenizer: byte-level BPE for Lua. Ids count from 0. */
#include <string.h>

#include "bind_text.h"

#define META BIND_TOKENIZER
typedef BindTokenizer Tokenizer;

static Tokenizer *check_any(lua_State *L) {
  Tokenizer *k = luaL_testudata(L, 1, META);
  if (!k) bind_arg_error(L, 1, "tokenizer expected, got %s", bind_type_name(L, 1));
  return k;
}

BindTokenizer *bind_check_tokenizer(lua_State *L, int idx) {
  Tokenizer *k = luaL_testudata(L, idx, META);
  if (!k) bind_arg_error(L, idx, "tokenizer expected, got %s", bind_type_name(L, idx));
  if (!k->t) bind_fail(L, CAB_E_LUA, "tokenizer is closed");
  return k;
}

static Tokenizer *check(lua_State *L) { return bind_check_tokenizer(L, 1); }

static int close_it(lua_State *L) {
  Tokenizer *k = check_any(L);
  cab_encoder_free(k->e);
  cab_tokenizer_free(k->t);
  cab_free(k->ids.ids);
  cab_bytes_free(&k->bytes);
  *k = (Tokenizer){0};
  return 0;
}

static const char *opt_path(lua_State *L, const char *key) {
  const char *s = bind_opt_string(L, 1, key, NULL);
  if (s && !*s) bind_fail(L, CAB_E_LUA, "tokenizer: '%s' is empty", key);
  return s;
}

/* core.tokenizer{file=path [, vocab=path, added=path, merges=n]} -> tokenizer */
static int open_it(lua_State *L) {
  static const char *const known[] = {"file", "vocab", "added", "merges", NULL};
  bind_check_table(L, 1);
  bind_unknown_keys(L, 1, known);
  const char *path = opt_path(L, "file"), *vocab = opt_path(L, "vocab"), *added = opt_path(L, "added");
  int64_t limit = bind_opt_int(L, 1, "merges", -1);
  if (!path) bind_fail(L, CAB_E_LUA, "tokenizer: 'file' is missing");
  Tokenizer *k = lua_newuserdatauv(L, sizeof *k, 0);
  *k = (Tokenizer){0};
  luaL_setmetatable(L, META);
  for (int attempt = 0; !k->t; attempt++) {
    k->t = cab_tokenizer_open(path, vocab, added, limit < 0 ? UINT64_MAX : (uint64_t)limit);
    if (!k->t && (attempt || !bind_collect(L))) bind_raise(L, cab_error()->code);
  }
  if (!(k->e = cab_encoder_new(k->t))) bind_raise(L, CAB_E_MEMORY);
  return 1;
}

static bool opt_control(lua_State *L, int idx) { return lua_isnoneornil(L, idx) ? true : bind_check_bool(L, idx); }

/* t:encode(text [, control=true]) -> i32[n]; control: special tokens in the text become their ids */
static int encode(lua_State *L) {
  Tokenizer *k = check(L);
  size_t n;
  const char *text = bind_check_string(L, 2, &n);
  bool control = opt_control(L, 3);
  k->ids.count = 0;
  CabTensor **slot = bind_new_tensor(L);
  BIND_TRY(L, cab_encode(k->e, text, n, control, &k->ids));
  int64_t count = (int64_t)k->ids.count;
  BIND_FILL(L, slot, cab_tensor_new(cab_cpu(), CAB_I32, 1, &count));
  if (count) memcpy(cab_tensor_data(*slot), k->ids.ids, k->ids.count * sizeof(int32_t));
  return 1;
}

/* A list of ids, or a tensor i32[n], in k->ids. */
static void read_ids(lua_State *L, Tokenizer *k) {
  char text[160];
  CabTensor *t = bind_test_tensor(L, 2) ? bind_check_tensor(L, 2) : NULL;
  if (t && (t->dtype != CAB_I32 || t->rank != 1 || t->storage->device != cab_cpu() || !cab_tensor_contiguous(t)))
    bind_arg_error(L, 2, "expected contiguous i32[n] on the cpu, got %s", cab_shape_text(t, text));
  if (!t) bind_check_table(L, 2);
  size_t n = t ? (size_t)t->shape[0] : lua_rawlen(L, 2);
  if (n > k->ids.room) {
    int32_t *ids = cab_realloc(k->ids.ids, n, sizeof *ids);
    if (!ids) bind_raise(L, CAB_E_MEMORY);
    k->ids.ids = ids, k->ids.room = n;
  }
  for (size_t i = 0; !t && i < n; i++) {
    lua_rawgeti(L, 2, (lua_Integer)i + 1);
    int64_t id = lua_isinteger(L, -1) ? lua_tointeger(L, -1) : INT64_MIN;
    if (id == INT64_MIN) bind_arg_error(L, 2, "position %d: integer expected, got %s", (int)i + 1, bind_type_name(L, -1));
    k->ids.ids[i] = id < 0 || id > INT32_MAX ? -1 : (int32_t)id;
    lua_pop(L, 1);
  }
  if (t && n) memcpy(k->ids.ids, cab_tensor_data(t), n * sizeof(int32_t));
  k->ids.count = n;
}

/* t:decode(ids [, control=true]) -> bytes, which need not be UTF-8 where a character is cut; control: special tokens too */
static int decode(lua_State *L) {
  Tokenizer *k = check(L);
  bool control = opt_control(L, 3);
  read_ids(L, k);
  cab_bytes_free(&k->bytes);
  BIND_TRY(L, cab_tokenizer_decode(k->t, k->ids.ids, k->ids.count, control, &k->bytes));
  lua_pushlstring(L, (const char *)k->bytes.data, k->bytes.length);
  cab_bytes_free(&k->bytes);
  return 1;
}

/* t:token(id) -> bytes, {added=, special=}; nil where no token has the id */
static int token(lua_State *L) {
  Tokenizer *k = check(L);
  size_t n;
  uint32_t flags;
  const char *bytes = cab_tokenizer_token(k->t, bind_check_int(L, 2), &n, &flags);
  if (!bytes) return lua_pushnil(L), 1;
  lua_pushlstring(L, bytes, n);
  lua_createtable(L, 0, 2);
  lua_pushboolean(L, !!(flags & CAB_TOKEN_ADDED)), lua_setfield(L, -2, "added");
  lua_pushboolean(L, !!(flags & CAB_TOKEN_SPECIAL)), lua_setfield(L, -2, "special");
  return 2;
}

/* t:id(bytes) -> id or nil */
static int id_of(lua_State *L) {
  Tokenizer *k = check(L);
  size_t n;
  const char *bytes = bind_check_string(L, 2, &n);
  int64_t id = cab_tokenizer_find(k->t, bytes, n);
  if (id < 0) return lua_pushnil(L), 1;
  return lua_pushinteger(L, id), 1;
}

static int count(lua_State *L) { return lua_pushinteger(L, cab_tokenizer_count(check(L)->t)), 1; }

/* t:hash() -> 16 hex digits: equal for tokenizers that give equal ids */
static int hash(lua_State *L) {
  char text[20];
  uint64_t h = cab_tokenizer_hash(check(L)->t);
  if (!h) bind_raise(L, CAB_E_MEMORY);
  snprintf(text, sizeof text, "%016llx", (unsigned long long)h);
  return lua_pushstring(L, text), 1;
}

/* t:save(path): the compact form, atomically */
static int save(lua_State *L) {
  Tokenizer *k = check(L);
  BIND_TRY(L, cab_tokenizer_save(k->t, bind_check_path(L, 2)));
  return 0;
}

void bind_text(lua_State *L) {
  static const luaL_Reg methods[] = {{"encode", encode}, {"decode", decode}, {"token", token}, {"id", id_of}, {"count", count},
                                     {"hash", hash}, {"save", save}, {"close", close_it}, {NULL, NULL}};
  bind_data_class(L, META, "tokenizer", close_it, methods);
  lua_pushcfunction(L, open_it), lua_setfield(L, -2, "tokenizer");
  bind_tokens(L);
}
