/* error.c - the one place where C errors become Lua errors. Nothing that must be freed is held while it raises. */
#include "bind.h"

#include <stdarg.h>
#include <string.h>

char bind_library[4096];

/* Chunk names of files start with '@'. Lines of the library are skipped: the user's line is wanted. */
static bool in_library(const char *source) {
  size_t length = strlen(bind_library);
  return length && source[0] == '@' && !strncmp(source + 1, bind_library, length);
}

/* "train.lua:7" from a frame that is Lua; false for C frames and stripped chunks. */
static bool line_of(lua_State *L, lua_Debug *ar, char out[48]) {
  lua_getinfo(L, "Sl", ar);
  if (ar->currentline <= 0) return false;
  size_t length = strlen(ar->short_src);
  const char *name = length > 36 ? ar->short_src + length - 36 : ar->short_src; /* the end tells more */
  snprintf(out, 48, "%s:%d", name, ar->currentline);
  return true;
}

const char *bind_where(lua_State *L, char out[48]) {
  lua_Debug ar;
  char line[48];
  out[0] = 0;
  for (int level = 0; level < 100 && lua_getstack(L, level, &ar); level++) {
    if (!line_of(L, &ar, line)) continue;
    if (!out[0]) memcpy(out, line, sizeof line); /* nearest at all, if no user frame follows */
    if (in_library(ar.source)) continue;
    memcpy(out, line, sizeof line);
    break;
  }
  return out;
}

/* A caller that is C (pcall) leaves no name; the core table has it. Its keys live as long as the table. */
static const char *name_in_core(lua_State *L, lua_Debug *ar) {
  const char *name = "?";
  int top = lua_gettop(L);
  luaL_checkstack(L, 6, "error");
  lua_getinfo(L, "f", ar);
  luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
  if (lua_getfield(L, -1, "cab.core") == LUA_TTABLE)
    for (lua_pushnil(L); lua_next(L, top + 3); lua_pop(L, 1))
      if (lua_rawequal(L, -1, top + 1) && lua_type(L, -2) == LUA_TSTRING) {
        name = lua_tostring(L, -2);
        break;
      }
  lua_settop(L, top);
  return name;
}

const char *bind_function(lua_State *L) {
  lua_Debug ar;
  if (!lua_getstack(L, 0, &ar)) return "?";
  lua_getinfo(L, "n", &ar);
  return ar.name ? ar.name : name_in_core(L, &ar);
}

_Noreturn int bind_raise(lua_State *L, CabStatus status) {
  CabError e = *cab_error(); /* collecting below may change the slot */
  char where[48];
  bind_where(L, where);
  luaL_checkstack(L, 4, "error");
  lua_createtable(L, 0, 6);
  lua_pushinteger(L, status ? (lua_Integer)status : CAB_E_BUG), lua_setfield(L, -2, "code");
  lua_pushstring(L, e.message), lua_setfield(L, -2, "message");
  lua_pushstring(L, where), lua_setfield(L, -2, "where");
  if (e.id[0]) lua_pushstring(L, e.id), lua_setfield(L, -2, "id");
  if (e.file[0]) lua_pushstring(L, e.file), lua_setfield(L, -2, "file");
  if (e.offset >= 0) lua_pushinteger(L, e.offset), lua_setfield(L, -2, "offset");
  luaL_setmetatable(L, BIND_ERROR);
  lua_error(L);
  __builtin_unreachable();
}

_Noreturn int bind_fail(lua_State *L, CabStatus code, const char *fmt, ...) {
  char text[sizeof cab_error()->message];
  va_list args;
  va_start(args, fmt);
  vsnprintf(text, sizeof text, fmt, args);
  va_end(args);
  cab_fail(code, "%s", text);
  bind_raise(L, code);
}

_Noreturn int bind_arg_error(lua_State *L, int arg, const char *fmt, ...) {
  char text[512];
  lua_Debug ar;
  va_list args;
  va_start(args, fmt);
  vsnprintf(text, sizeof text, fmt, args);
  va_end(args);
  const char *name = bind_function(L), *prefix = "";
  if (lua_getstack(L, 0, &ar)) {
    lua_getinfo(L, "n", &ar);
    if (ar.namewhat && !strcmp(ar.namewhat, "method") && arg > 0 && --arg == 0) prefix = "self: ";
  }
  if (arg > 0) bind_fail(L, CAB_E_LUA, "%s: argument %d: %s", name, arg, text);
  bind_fail(L, CAB_E_LUA, "%s: %s%s", name, prefix, text);
}

bool bind_collect(lua_State *L) {
  if (cab_error()->code != CAB_E_MEMORY) return false;
  lua_gc(L, LUA_GCCOLLECT);
  cab_devices_trim();
  return true;
}

/* ---- the class of errors: prints as one line, joins with strings ----------------------------- */

static int error_tostring(lua_State *L) {
  lua_getfield(L, 1, "where");
  lua_getfield(L, 1, "message");
  const char *where = lua_tostring(L, -2), *message = lua_tostring(L, -1);
  if (where && where[0]) lua_pushfstring(L, "%s: %s", where, message ? message : "error");
  else lua_pushstring(L, message ? message : "error");
  return 1;
}

static int error_concat(lua_State *L) {
  luaL_tolstring(L, 1, NULL);
  luaL_tolstring(L, 2, NULL);
  lua_concat(L, 2);
  return 1;
}

/* core.error{code=, message=, ...} makes such a table for library code to raise; not for a string: use error(). */
static int error_new(lua_State *L) {
  static const char *const keys[] = {"code", "id", "message", "file", "offset", "where", NULL};
  bind_check_table(L, 1);
  bind_unknown_keys(L, 1, keys);
  char where[48];
  if (lua_getfield(L, 1, "message") != LUA_TSTRING) bind_fail(L, CAB_E_LUA, "error: 'message' must be a string");
  if (lua_getfield(L, 1, "code") == LUA_TNIL) lua_pushinteger(L, CAB_E_LUA), lua_setfield(L, 1, "code");
  if (lua_getfield(L, 1, "where") == LUA_TNIL) lua_pushstring(L, bind_where(L, where)), lua_setfield(L, 1, "where");
  lua_settop(L, 1);
  luaL_setmetatable(L, BIND_ERROR);
  return 1;
}

/* core.is_error(v): true for tables made here. */
static int error_is(lua_State *L) {
  lua_settop(L, 1);
  bool is = lua_getmetatable(L, 1) && (luaL_getmetatable(L, BIND_ERROR), lua_rawequal(L, -1, -2));
  lua_pushboolean(L, is);
  return 1;
}

void bind_error(lua_State *L) {
  static const luaL_Reg meta[] = {{"__tostring", error_tostring}, {"__concat", error_concat}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"error", error_new}, {"is_error", error_is}, {NULL, NULL}};
  if (luaL_newmetatable(L, BIND_ERROR)) luaL_setfuncs(L, meta, 0);
  lua_pop(L, 1);
  luaL_setfuncs(L, functions, 0);
}
