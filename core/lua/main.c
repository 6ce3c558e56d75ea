/* main.c - the program: a Lua state with cab.core in it that runs require("cab.cli").main(arg). */
#include <errno.h>
#include <locale.h>
#include <lualib.h>
#include <stdlib.h>
#include <string.h>

#include "bind.h"
#include "dist.h"

/* ---- memory of the state: counted, limited on demand ------------------------------------------------------ */

static struct { size_t used, limit; } heap;

static void *allocate(void *ud, void *old, size_t old_size, size_t size) {
  (void)ud;
  if (!old) old_size = 0;
  if (size == 0) {
    heap.used -= old_size;
    free(old);
    return NULL;
  }
  bool grows = size > old_size;
  if (grows && ((heap.limit && heap.used + (size - old_size) > heap.limit) || cab_fault("lua_alloc"))) return NULL;
  void *p = realloc(old, size);
  if (!p) return grows ? NULL : old; /* shrinking must not fail */
  heap.used += size - old_size;
  return p;
}

/* core.heap_limit([bytes]) -> bytes in use by Lua; beyond the limit "not enough memory". 0: no limit. */
static int heap_limit(lua_State *L) {
  if (!lua_isnoneornil(L, 1)) {
    int64_t limit = bind_check_int(L, 1);
    if (limit < 0) bind_arg_error(L, 1, "negative limit");
    heap.limit = (size_t)limit;
  }
  lua_pushinteger(L, (lua_Integer)heap.used);
  return 1;
}

/* ---- only text chunks ---------------------------------------------------------------------------------------- */

/* load(chunk, name, mode, env) or loadfile(path, mode, env), with mode "t"; upvalues: Lua's function, the place of mode */
static int text_only(lua_State *L) {
  int mode = (int)lua_tointeger(L, lua_upvalueindex(2)), count = lua_gettop(L);
  if (count < mode) lua_settop(L, count = mode);
  lua_pushliteral(L, "t");
  lua_replace(L, mode);
  lua_pushvalue(L, lua_upvalueindex(1));
  lua_insert(L, 1);
  lua_call(L, count, LUA_MULTRET);
  return lua_gettop(L);
}

static int text_dofile(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  lua_settop(L, 1);
  if (luaL_loadfilex(L, path, "t")) lua_error(L);
  lua_call(L, 0, LUA_MULTRET);
  return lua_gettop(L) - 1;
}

/* package.searchers[2]: upvalue 1 is package */
static int text_searcher(lua_State *L) {
  const char *name = luaL_checkstring(L, 1);
  lua_getfield(L, lua_upvalueindex(1), "searchpath");
  lua_pushvalue(L, 1);
  lua_getfield(L, lua_upvalueindex(1), "path");
  lua_call(L, 2, 2);
  if (lua_isnil(L, -2)) return 1; /* the list of places */
  const char *path = lua_tostring(L, -2);
  if (luaL_loadfilex(L, path, "t"))
    luaL_error(L, "error loading module '%s' from file '%s':\n\t%s", name, path, lua_tostring(L, -1));
  lua_pushvalue(L, 2);
  return 2; /* the chunk, its path */
}

static void refuse_bytecode(lua_State *L) {
  lua_getglobal(L, "load"), lua_pushinteger(L, 3), lua_pushcclosure(L, text_only, 2), lua_setglobal(L, "load");
  lua_getglobal(L, "loadfile"), lua_pushinteger(L, 2), lua_pushcclosure(L, text_only, 2), lua_setglobal(L, "loadfile");
  lua_pushcfunction(L, text_dofile), lua_setglobal(L, "dofile");
  lua_getglobal(L, "package");
  lua_getfield(L, -1, "searchers");
  lua_pushvalue(L, -2);
  lua_pushcclosure(L, text_searcher, 1);
  lua_rawseti(L, -2, 2);
  lua_pop(L, 2);
}

/* ---- run ----------------------------------------------------------------------------------------------------- */

static int open_core(lua_State *L) {
  luaopen_cab_core(L);
  lua_pushcfunction(L, heap_limit), lua_setfield(L, -2, "heap_limit");
  return 1;
}

/* Keeps error tables as they are; bugs in scripts get a traceback. */
static int on_error(lua_State *L) {
  lua_settop(L, 1);
  if (lua_type(L, 1) == LUA_TTABLE) {
    lua_pushliteral(L, "code");
    lua_rawget(L, 1);
    lua_Integer code = lua_tointeger(L, -1);
    if (code != CAB_E_LUA && code != CAB_E_BUG) return lua_settop(L, 1), 1;
    luaL_traceback(L, L, NULL, 1);
    lua_setfield(L, 1, "traceback");
    return lua_settop(L, 1), 1;
  }
  const char *text = luaL_tolstring(L, 1, NULL);
  bool memory = !strcmp(text, "not enough memory"); /* Lua's own, caught and raised again */
  lua_newtable(L);
  lua_pushinteger(L, memory ? CAB_E_MEMORY : CAB_E_LUA), lua_setfield(L, -2, "code");
  lua_pushstring(L, text), lua_setfield(L, -2, "message"); /* has its position already */
  luaL_traceback(L, L, NULL, 1), lua_setfield(L, -2, "traceback");
  luaL_setmetatable(L, BIND_ERROR);
  return 1;
}

/* Errors in finalizers end up here. */
static void warning(void *ud, const char *text, int continues) {
  static bool inside;
  (void)ud;
  if (!inside && text[0] == '@') return; /* control messages */
  fprintf(stderr, "%s%s%s", inside ? "" : "cab: warning: ", text, continues ? "" : "\n");
  inside = continues;
}

static int run(lua_State *L) {
  int argc = (int)lua_tointeger(L, 1);
  char **argv = lua_touserdata(L, 2);
  luaL_openlibs(L);
  refuse_bytecode(L);
  bind_set_paths(L);
  luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_PRELOAD_TABLE);
  lua_pushcfunction(L, open_core), lua_setfield(L, -2, "cab.core");
  lua_createtable(L, argc, 1);
  for (int i = 0; i < argc; i++) lua_pushstring(L, argv[i]), lua_rawseti(L, -2, i);
  lua_pushvalue(L, -1), lua_setglobal(L, "arg");
  lua_getglobal(L, "require"), lua_pushliteral(L, "cab.core"), lua_call(L, 1, 0);
  lua_getglobal(L, "require"), lua_pushliteral(L, "cab.cli"), lua_call(L, 1, 1);
  lua_getfield(L, -1, "main");
  lua_pushvalue(L, -3);
  lua_call(L, 1, 1);
  return 1;
}

/* Messages may hold text from outside: control bytes but line ends and tabs are shown, not sent. */
static void print_line(const char *text) {
  for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
    bool c1 = p[0] == 0xc2 && p[1] >= 0x80 && p[1] < 0xa0;
    if (c1) fprintf(stderr, "\\x%02X\\x%02X", p[0], p[1]), p++;
    else if ((*p < 0x20 && *p != '\n' && *p != '\t') || *p == 0x7f) fprintf(stderr, "\\x%02X", *p);
    else fputc(*p, stderr);
  }
  fputc('\n', stderr);
}

/* "cab: error[E65-st-overlap]: FILE: ..." and the exit code. */
static int report(lua_State *L, int failed) {
  setvbuf(stderr, NULL, _IOFBF, BUFSIZ); /* in one piece: other ranks write too */
  if (failed == LUA_ERRMEM || lua_type(L, -1) != LUA_TTABLE) {
    bool memory = failed == LUA_ERRMEM;
    fprintf(stderr, "cab: error[E%d]: ", memory ? CAB_E_MEMORY : CAB_E_LUA);
    print_line(lua_isstring(L, -1) ? lua_tostring(L, -1) : "?");
    return memory ? CAB_E_MEMORY : CAB_E_LUA;
  }
  const char *names[] = {"id", "where", "message", "detail", "traceback"}, *field[5];
  lua_pushliteral(L, "code");
  lua_rawget(L, -2);
  int code = lua_isinteger(L, -1) ? (int)lua_tointeger(L, -1) : CAB_E_LUA;
  lua_pop(L, 1);
  for (int i = 0; i < 5; i++) {
    lua_pushstring(L, names[i]);
    lua_rawget(L, -2 - i);
    field[i] = lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : "";
  }
  if (code < 1 || code > 255) code = CAB_E_LUA;
  bool script = (code == CAB_E_LUA || code == CAB_E_BUG) && field[1][0];
  fprintf(stderr, "cab: error[E%d%s%s]: %s%s", code, field[0][0] ? "-" : "", field[0], script ? field[1] : "", script ? ": " : "");
  print_line(field[2][0] ? field[2] : "error object without a message");
  for (int i = 3; i < 5; i++)
    if (field[i][0]) print_line(field[i]);
  return code;
}

/* nil, true: 0; false: 1; an integer: itself. */
static int exit_code(lua_State *L) {
  if (lua_isinteger(L, -1)) return (int)lua_tointeger(L, -1) & 255;
  return lua_isboolean(L, -1) && !lua_toboolean(L, -1) ? 1 : 0;
}

int main(int argc, char **argv) {
  cab_tune_runtime(argv);
  setlocale(LC_ALL, "C"); /* numbers have a point everywhere */
  setlocale(LC_CTYPE, "C.UTF-8");
  if (!bind_find_library()) {
    fprintf(stderr, "cab: error[E74]: the Lua library is neither in ../lua nor in ../share/cab/lua beside the program\n");
    return CAB_E_IO;
  }
  lua_State *L = lua_newstate(allocate, NULL);
  if (!L) return fprintf(stderr, "cab: error[E71]: not enough memory\n"), CAB_E_MEMORY;
  lua_setwarnf(L, warning, NULL);
  lua_pushcfunction(L, on_error);
  lua_pushcfunction(L, run);
  lua_pushinteger(L, argc);
  lua_pushlightuserdata(L, argv);
  int failed = lua_pcall(L, 2, 1, 1);
  heap.limit = 0;
  int code = failed ? report(L, failed) : exit_code(L);
  fflush(stderr);
  lua_settop(L, 0);
  lua_close(L);
  bind_closed();
  if ((!code || code == CAB_E_STOPPED) && cab_dist_close()) {
    fprintf(stderr, "cab: error[E69]: %s\n", cab_error()->message);
    code = CAB_E_DEVICE;
  }
  if (fflush(stdout) || ferror(stdout)) {
    fprintf(stderr, "cab: error[E74]: standard output: %s\n", strerror(errno));
    if (!code) code = CAB_E_IO;
  }
  return code;
}
