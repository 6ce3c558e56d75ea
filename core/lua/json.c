/* json.c - JSON <-> Lua. Integers and floats stay what they are (%.17g, 1.0 keeps its point), keys are sorted, null is
 * core.null. An empty table is {} unless core.json_array marked it, as decoding does for []. */
#include "bind.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_DEPTH = 128 };
#define ARRAY_META "cab.json_array"
#define TREE_META "cab.json_tree"

/* ---- encode: pieces are collected in a table at stack index 2 and joined at the end --------------------- */

typedef struct {
  lua_Integer count;
  const char *indent; /* NULL: one line */
} Out;

static void put(lua_State *L, Out *out, const char *text, size_t length) {
  lua_pushlstring(L, text, length);
  lua_rawseti(L, 2, ++out->count);
}
#define PUT(text) put(L, out, text, sizeof(text) - 1)

static void new_line(lua_State *L, Out *out, int depth) {
  if (!out->indent) return;
  PUT("\n");
  for (int i = 0; i < depth; i++) put(L, out, out->indent, strlen(out->indent));
}

/* Length of the UTF-8 sequence at p, 0 if it is none. */
static size_t sequence(const unsigned char *p, size_t left) {
  if (p[0] < 0x80) return 1;
  size_t n = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : 2;
  if (p[0] < 0xc2 || p[0] > 0xf4 || left < n) return 0;
  for (size_t i = 1; i < n; i++)
    if ((p[i] & 0xc0) != 0x80) return 0;
  if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xf0 && p[1] < 0x90)) return 0;
  if ((p[0] == 0xed && p[1] > 0x9f) || (p[0] == 0xf4 && p[1] > 0x8f)) return 0;
  return n;
}

static void put_string(lua_State *L, Out *out, const char *text, size_t length) {
  luaL_Buffer b;
  const unsigned char *p = (const unsigned char *)text;
  char code[8];
  luaL_buffinit(L, &b);
  luaL_addchar(&b, '"');
  for (size_t i = 0, n; i < length; i += n) {
    n = sequence(p + i, length - i);
    if (!n) bind_fail(L, CAB_E_LUA, "json_encode: a string is not UTF-8 at byte %zu", i);
    if (n > 1) luaL_addlstring(&b, text + i, n);
    else if (p[i] == '"' || p[i] == '\\') luaL_addchar(&b, '\\'), luaL_addchar(&b, text[i]);
    else if (p[i] >= 0x20 && p[i] != 0x7f) luaL_addchar(&b, text[i]);
    else snprintf(code, sizeof code, "\\u%04x", p[i]), luaL_addstring(&b, code);
  }
  luaL_addchar(&b, '"');
  luaL_pushresult(&b);
  lua_rawseti(L, 2, ++out->count);
}

static void put_number(lua_State *L, Out *out, int idx) {
  char text[40];
  if (lua_isinteger(L, idx)) {
    snprintf(text, sizeof text, "%lld", (long long)lua_tointeger(L, idx));
  } else {
    double v = lua_tonumber(L, idx);
    if (!isfinite(v)) bind_fail(L, CAB_E_LUA, "json_encode: %g is no JSON number; write it as a string", v);
    snprintf(text, sizeof text - 2, "%.17g", v);
    for (char *p = text; *p; p++)
      if (*p == ',') *p = '.'; /* whatever the locale */
    if (!strpbrk(text, ".e")) strcat(text, ".0");
  }
  put(L, out, text, strlen(text));
}

static bool is_array(lua_State *L, int idx) {
  lua_Unsigned length = lua_rawlen(L, idx), count = 0;
  if (length == 0) {
    bool marked = lua_getmetatable(L, idx) && (luaL_getmetatable(L, ARRAY_META), lua_rawequal(L, -1, -2));
    lua_settop(L, idx);
    lua_pushnil(L);
    if (!marked || !lua_next(L, idx)) return lua_settop(L, idx), marked;
    bind_fail(L, CAB_E_LUA, "json_encode: an array with keys");
  }
  for (lua_pushnil(L); lua_next(L, idx); lua_pop(L, 1)) {
    if (!lua_isinteger(L, -2) || lua_tointeger(L, -2) < 1 || lua_tointeger(L, -2) > (lua_Integer)length)
      bind_fail(L, CAB_E_LUA, "json_encode: a table is both a list and a map");
    count++;
  }
  if (count != length) bind_fail(L, CAB_E_LUA, "json_encode: a list has holes");
  return true;
}

static void put_value(lua_State *L, Out *out, int depth);

static void put_array(lua_State *L, Out *out, int idx, int depth) {
  lua_Integer count = (lua_Integer)lua_rawlen(L, idx);
  PUT("[");
  for (lua_Integer i = 1; i <= count; i++) {
    if (i > 1) PUT(",");
    new_line(L, out, depth + 1);
    lua_rawgeti(L, idx, i);
    put_value(L, out, depth + 1);
  }
  if (count) new_line(L, out, depth);
  PUT("]");
}

/* Pushes the list of keys, sorted by bytes: by Lua's own table.sort, kept as upvalue 1. */
static lua_Integer sorted_keys(lua_State *L, int idx) {
  lua_Integer count = 0;
  lua_newtable(L);
  int list = lua_gettop(L);
  for (lua_pushnil(L); lua_next(L, idx); lua_pop(L, 1)) {
    if (lua_type(L, -2) != LUA_TSTRING)
      bind_fail(L, CAB_E_LUA, "json_encode: a key is a %s, string expected", bind_type_name(L, -2));
    lua_pushvalue(L, -2);
    lua_rawseti(L, list, ++count);
  }
  lua_pushvalue(L, lua_upvalueindex(1));
  lua_pushvalue(L, list);
  lua_call(L, 1, 0);
  return count;
}

static void put_object(lua_State *L, Out *out, int idx, int depth) {
  lua_Integer count = sorted_keys(L, idx);
  int list = lua_gettop(L);
  PUT("{");
  for (lua_Integer i = 1; i <= count; i++) {
    size_t length;
    if (i > 1) PUT(",");
    new_line(L, out, depth + 1);
    lua_rawgeti(L, list, i);
    const char *key = lua_tolstring(L, -1, &length);
    put_string(L, out, key, length);
    if (out->indent) PUT(": ");
    else PUT(":");
    lua_rawget(L, idx); /* key -> value */
    put_value(L, out, depth + 1);
  }
  if (count) new_line(L, out, depth);
  PUT("}");
  lua_pop(L, 1);
}

/* Takes the value at the top. */
static void put_value(lua_State *L, Out *out, int depth) {
  int idx = lua_gettop(L);
  size_t length;
  const char *text;
  if (depth > MAX_DEPTH) bind_fail(L, CAB_E_LUA, "json_encode: nested deeper than %d (or a cycle)", MAX_DEPTH);
  luaL_checkstack(L, 12, "json_encode");
  switch (lua_type(L, idx)) {
    case LUA_TBOOLEAN:
      if (lua_toboolean(L, idx)) PUT("true");
      else PUT("false");
      break;
    case LUA_TNUMBER: put_number(L, out, idx); break;
    case LUA_TSTRING:
      text = lua_tolstring(L, idx, &length);
      put_string(L, out, text, length);
      break;
    case LUA_TTABLE:
      if (is_array(L, idx)) put_array(L, out, idx, depth);
      else put_object(L, out, idx, depth);
      break;
    default:
      if (lua_type(L, idx) != LUA_TLIGHTUSERDATA || lua_touserdata(L, idx))
        bind_fail(L, CAB_E_LUA, "json_encode: a %s has no JSON form", bind_type_name(L, idx));
      PUT("null");
  }
  lua_settop(L, idx - 1);
}

/* core.json_encode(value [, pretty]) */
static int encode(lua_State *L) {
  Out state = {0}, *out = &state;
  if (lua_isnone(L, 1)) bind_arg_error(L, 1, "value expected, got nothing");
  if (!lua_isnoneornil(L, 2) && bind_check_bool(L, 2)) out->indent = "  ";
  lua_settop(L, 1);
  lua_newtable(L);
  lua_pushvalue(L, 1);
  put_value(L, out, 0);
  luaL_Buffer b;
  luaL_buffinit(L, &b);
  for (lua_Integer i = 1; i <= out->count; i++) {
    lua_rawgeti(L, 2, i);
    luaL_addvalue(&b);
  }
  luaL_pushresult(&b);
  return 1;
}

/* ---- decode: jansson's tree hangs on a userdata, so an error does not leak it ------------------------------ */

static int tree_gc(lua_State *L) {
  json_t **tree = luaL_testudata(L, 1, TREE_META);
  if (tree) json_decref(*tree), *tree = NULL;
  return 0;
}

static void push_value(lua_State *L, const json_t *value, int depth) {
  const char *key;
  size_t index;
  json_t *item;
  if (depth > MAX_DEPTH) bind_fail(L, CAB_E_INPUT, "json_decode: nested deeper than %d", MAX_DEPTH);
  luaL_checkstack(L, 6, "json_decode");
  switch (json_typeof(value)) {
    case JSON_TRUE: lua_pushboolean(L, 1); break;
    case JSON_FALSE: lua_pushboolean(L, 0); break;
    case JSON_INTEGER: lua_pushinteger(L, json_integer_value(value)); break;
    case JSON_REAL: lua_pushnumber(L, json_real_value(value)); break;
    case JSON_STRING: lua_pushlstring(L, json_string_value(value), json_string_length(value)); break;
    case JSON_ARRAY:
      lua_createtable(L, json_array_size(value) < 1 << 20 ? (int)json_array_size(value) : 0, 0);
      json_array_foreach(value, index, item) {
        push_value(L, item, depth + 1);
        lua_rawseti(L, -2, (lua_Integer)index + 1);
      }
      if (!json_array_size(value)) luaL_setmetatable(L, ARRAY_META);
      break;
    case JSON_OBJECT:
      lua_newtable(L);
      json_object_foreach((json_t *)value, key, item) {
        lua_pushstring(L, key);
        push_value(L, item, depth + 1);
        lua_rawset(L, -3);
      }
      break;
    default: lua_pushlightuserdata(L, NULL);
  }
}

/* jansson's error says nothing of memory. */
static bool starved;
static void *allocate(size_t size) {
  void *p = cab_malloc(size, 1);
  if (!p) starved = true;
  return p;
}

/* core.json_decode(text [, file name for messages]) -> value; 65 with line and byte, duplicate keys refused */
static int decode(lua_State *L) {
  size_t length;
  const char *text = bind_check_string(L, 1, &length), *file = lua_isnoneornil(L, 2) ? NULL : bind_check_string(L, 2, NULL);
  json_error_t error;
  json_t **tree = lua_newuserdatauv(L, sizeof *tree, 0);
  *tree = NULL;
  luaL_setmetatable(L, TREE_META);
  starved = false;
  *tree = json_loadb(text, length, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY | JSON_ALLOW_NUL, &error);
  if (!*tree && starved) bind_fail(L, CAB_E_MEMORY, "json_decode: out of memory");
  if (!*tree) {
    char shown[340];
    cab_escape(error.text, strlen(error.text), shown);
    if (!file) bind_fail(L, CAB_E_INPUT, "json_decode: line %d, byte %d: %s", error.line, error.position, shown);
    cab_fail_file(CAB_E_INPUT, "json", file, error.position, "line %d: %s", error.line, shown);
    bind_raise(L, CAB_E_INPUT);
  }
  push_value(L, *tree, 0);
  json_decref(*tree);
  *tree = NULL;
  return 1;
}

/* core.json_array(t) -> t, which is [] also when empty */
static int mark_array(lua_State *L) {
  bind_check_table(L, 1);
  lua_settop(L, 1);
  luaL_setmetatable(L, ARRAY_META);
  return 1;
}

void bind_json(lua_State *L) {
  static const luaL_Reg functions[] = {{"json_decode", decode}, {"json_array", mark_array}, {NULL, NULL}};
  json_set_alloc_funcs(allocate, cab_free);
  luaL_newmetatable(L, ARRAY_META);
  lua_pop(L, 1);
  if (luaL_newmetatable(L, TREE_META)) {
    lua_pushcfunction(L, tree_gc);
    lua_setfield(L, -2, "__gc");
  }
  lua_pop(L, 1);
  luaL_setfuncs(L, functions, 0);
  luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
  lua_getfield(L, -1, "table");
  lua_getfield(L, -1, "sort");
  lua_pushcclosure(L, encode, 1);
  lua_setfield(L, -4, "json_encode");
  lua_pop(L, 2);
  lua_pushlightuserdata(L, NULL);
  lua_setfield(L, -2, "null");
}
