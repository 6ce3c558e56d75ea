/* args.c - arguments and option tables, checked without conversions: "3" is no number and 1 no boolean. */
#include "bind.h"

#include <math.h>
#include <string.h>

const char *bind_type_name(lua_State *L, int idx) {
  int type = lua_type(L, idx);
  if (type != LUA_TUSERDATA) return lua_typename(L, type < 0 ? LUA_TNIL : type);
  const CabTensor *t = bind_test_tensor(L, idx);
  if (t) return t->storage ? cab_dtype_name(t->dtype) : "closed tensor";
  const char *name = "userdata";
  if (luaL_getmetafield(L, idx, "__name") != LUA_TNIL) { /* the metatable keeps the string */
    if (lua_type(L, -1) == LUA_TSTRING) name = lua_tostring(L, -1);
    lua_pop(L, 1);
  }
  return name;
}

int64_t bind_check_int(lua_State *L, int idx) {
  int exact = 0;
  lua_Integer n = lua_type(L, idx) == LUA_TNUMBER ? lua_tointegerx(L, idx, &exact) : 0;
  if (!exact) {
    if (lua_type(L, idx) == LUA_TNUMBER) bind_arg_error(L, idx, "%.14g is not an integer", lua_tonumber(L, idx));
    bind_arg_error(L, idx, "integer expected, got %s", bind_type_name(L, idx));
  }
  return n;
}

double bind_check_number(lua_State *L, int idx) {
  if (lua_type(L, idx) != LUA_TNUMBER) bind_arg_error(L, idx, "number expected, got %s", bind_type_name(L, idx));
  return lua_tonumber(L, idx);
}

bool bind_check_bool(lua_State *L, int idx) {
  if (lua_type(L, idx) != LUA_TBOOLEAN) bind_arg_error(L, idx, "boolean expected, got %s", bind_type_name(L, idx));
  return lua_toboolean(L, idx);
}

const char *bind_check_string(lua_State *L, int idx, size_t *length) {
  if (lua_type(L, idx) != LUA_TSTRING) bind_arg_error(L, idx, "string expected, got %s", bind_type_name(L, idx));
  return lua_tolstring(L, idx, length);
}

const char *bind_check_path(lua_State *L, int idx) {
  size_t length;
  const char *path = bind_check_string(L, idx, &length);
  if (!length) bind_arg_error(L, idx, "empty path");
  if (strlen(path) != length) bind_arg_error(L, idx, "path holds a NUL byte");
  return path;
}

void bind_check_table(lua_State *L, int idx) {
  if (lua_type(L, idx) != LUA_TTABLE) bind_arg_error(L, idx, "table expected, got %s", bind_type_name(L, idx));
}

/* Pushes table[key]; false (nothing pushed) if it is nil. */
static bool option(lua_State *L, int table, const char *key, int type, const char *expected) {
  int got = lua_getfield(L, table, key);
  if (got == LUA_TNIL) return lua_pop(L, 1), false;
  if (got != type)
    bind_fail(L, CAB_E_LUA, "%s: option '%s': %s expected, got %s", bind_function(L), key, expected, bind_type_name(L, -1));
  return true;
}

int64_t bind_opt_int(lua_State *L, int table, const char *key, int64_t initial) {
  if (!option(L, table, key, LUA_TNUMBER, "integer")) return initial;
  int exact;
  lua_Integer n = lua_tointegerx(L, -1, &exact);
  if (!exact)
    bind_fail(L, CAB_E_LUA, "%s: option '%s': %.14g is not an integer", bind_function(L), key, lua_tonumber(L, -1));
  lua_pop(L, 1);
  return n;
}

double bind_opt_number(lua_State *L, int table, const char *key, double initial) {
  if (!option(L, table, key, LUA_TNUMBER, "number")) return initial;
  double n = lua_tonumber(L, -1);
  lua_pop(L, 1);
  return n;
}

bool bind_opt_bool(lua_State *L, int table, const char *key, bool initial) {
  if (!option(L, table, key, LUA_TBOOLEAN, "boolean")) return initial;
  bool b = lua_toboolean(L, -1);
  lua_pop(L, 1);
  return b;
}

const char *bind_opt_string(lua_State *L, int table, const char *key, const char *initial) {
  if (!option(L, table, key, LUA_TSTRING, "string")) return initial;
  const char *s = lua_tostring(L, -1);
  lua_pop(L, 1);
  return s;
}

CabTensor *bind_opt_tensor(lua_State *L, int table, const char *key) {
  if (!option(L, table, key, LUA_TUSERDATA, "tensor")) return NULL;
  CabTensor *t = bind_test_tensor(L, -1);
  if (!t || !t->storage)
    bind_fail(L, CAB_E_LUA, "%s: option '%s': tensor expected, got %s", bind_function(L), key, bind_type_name(L, -1));
  lua_pop(L, 1);
  return t;
}

int bind_opt_word(lua_State *L, int table, const char *key, const char *initial, const char *const *words) {
  const char *word = bind_opt_string(L, table, key, initial);
  char list[256] = "", shown[340];
  for (int i = 0; words[i]; i++) {
    if (!strcmp(words[i], word)) return i;
    size_t used = strlen(list);
    snprintf(list + used, sizeof list - used, "%s%s", i ? ", " : "", words[i]);
  }
  bind_fail(L, CAB_E_LUA, "%s: option '%s' is '%s', expected one of %s", bind_function(L), key,
            cab_escape(word, strlen(word), shown), list);
}

/* Edits (insert, delete, replace, swap of neighbours) from a to b; both at most 39 characters. */
static int distance(const char *a, const char *b) {
  int n = (int)strlen(a), m = (int)strlen(b), d[40][40];
  if (n > 39 || m > 39) return 99;
  for (int i = 0; i <= n; i++)
    for (int j = 0; j <= m; j++) {
      if (!i || !j) { d[i][j] = i + j; continue; }
      int best = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
      if (d[i - 1][j] + 1 < best) best = d[i - 1][j] + 1;
      if (d[i][j - 1] + 1 < best) best = d[i][j - 1] + 1;
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && d[i - 2][j - 2] + 1 < best)
        best = d[i - 2][j - 2] + 1;
      d[i][j] = best;
    }
  return d[n][m];
}

const char *bind_nearest(const char *name, const char *const *known) {
  int limit = ((int)strlen(name) + 1) / 3 + 1;
  const char *best = NULL;
  for (; *known; known++) {
    int d = distance(name, *known);
    if (d < limit) limit = d, best = *known;
  }
  return best;
}

void bind_unknown_keys(lua_State *L, int table, const char *const *known) {
  table = lua_absindex(L, table);
  for (lua_pushnil(L); lua_next(L, table); lua_pop(L, 1)) {
    char shown[340];
    if (lua_type(L, -2) != LUA_TSTRING) {
      if (lua_type(L, -2) == LUA_TNUMBER)
        bind_fail(L, CAB_E_LUA, "%s: options have names, but the table holds [%.14g]", bind_function(L), lua_tonumber(L, -2));
      bind_fail(L, CAB_E_LUA, "%s: options have names, but a key is a %s", bind_function(L), bind_type_name(L, -2));
    }
    size_t length;
    const char *key = lua_tolstring(L, -2, &length), *const *k = known;
    while (*k && strcmp(*k, key)) k++;
    if (*k && strlen(*k) == length) continue;
    const char *near = bind_nearest(key, known);
    bind_fail(L, CAB_E_LUA, "%s: unknown option '%s'%s%s%s", bind_function(L), cab_escape(key, length, shown),
              near ? "; did you mean '" : "", near ? near : "", near ? "'?" : "");
  }
}

/* ---- shapes ---------------------------------------------------------------------------------- */

static int64_t size_at(lua_State *L, int arg, int position) {
  int exact = 0;
  lua_Integer n = lua_type(L, -1) == LUA_TNUMBER ? lua_tointegerx(L, -1, &exact) : 0;
  if (!exact) bind_arg_error(L, arg, "shape: size %d must be an integer, got %s", position, bind_type_name(L, -1));
  lua_pop(L, 1);
  return n;
}

int bind_check_shape(lua_State *L, int idx, int64_t shape[CAB_MAX_RANK]) {
  bool table = lua_type(L, idx) == LUA_TTABLE;
  int64_t rank = table ? (int64_t)lua_rawlen(L, idx) : lua_gettop(L) - idx + 1;
  if (!table && rank < 1) bind_arg_error(L, idx, "shape expected, got nothing");
  if (rank > CAB_MAX_RANK) bind_arg_error(L, idx, "shape: at most %d dims, got %lld", CAB_MAX_RANK, (long long)rank);
  if (table && !rank && (lua_pushnil(L), lua_next(L, idx))) bind_arg_error(L, idx, "shape: sizes must be a list");
  for (int i = 0; i < rank; i++) {
    if (table) lua_rawgeti(L, idx, i + 1);
    else lua_pushvalue(L, idx + i);
    shape[i] = size_at(L, idx, i + 1);
  }
  return (int)rank;
}

int bind_check_dim(lua_State *L, int idx, const CabTensor *t) {
  int64_t dim = bind_check_int(L, idx);
  char text[160];
  if (dim == 0 || dim > t->rank || dim < -t->rank)
    bind_arg_error(L, idx, "dim %lld of %s", (long long)dim, cab_shape_text(t, text));
  return (int)(dim > 0 ? dim - 1 : t->rank + dim);
}

CabDtype bind_opt_dtype(lua_State *L, int idx, CabDtype initial) {
  if (lua_isnoneornil(L, idx)) return initial;
  size_t length;
  const char *name = bind_check_string(L, idx, &length);
  CabDtype dtype;
  char shown[340];
  if (!cab_dtype_parse(name, &dtype)) bind_arg_error(L, idx, "unknown dtype '%s'", cab_escape(name, length, shown));
  return dtype;
}

CabDevice *bind_check_device(lua_State *L, int idx) {
  CabDevice *device = cab_device(bind_check_string(L, idx, NULL));
  if (!device) bind_raise(L, cab_error()->code);
  return device;
}

CabDevice *bind_opt_device(lua_State *L, int idx) { return lua_isnoneornil(L, idx) ? cab_cpu() : bind_check_device(L, idx); }
