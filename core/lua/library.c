/* library.c - the Lua files: where they are, and a state that finds them (cab.h). */
#include "bind.h"
#include "cab.h"

#include <dlfcn.h>
#include <lualib.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static bool library_at(const char *dir, const char *below) {
  char cli[sizeof bind_library + 32], path[sizeof bind_library];
  struct stat info;
  if ((size_t)snprintf(path, sizeof path, "%s/%s", dir, below) >= sizeof path) return false;
  if (!realpath(path, bind_library)) return bind_library[0] = 0, false;
  snprintf(cli, sizeof cli, "%s/cab", bind_library);
  return stat(cli, &info) == 0 && S_ISDIR(info.st_mode);
}

/* build/cab -> lua/, PREFIX/bin/cab and PREFIX/lib/libcab.so -> PREFIX/share/cab/lua; of LuaRocks TREE/lib/lua/5.4/cab/core.so ->
 * TREE/share/lua/5.4 */
bool bind_find_library(void) {
  static char self[4096];
  if (bind_library[0]) return true;
  if (!cab_self(self)) return false;
  if (strstr(strrchr(self, '/'), ".so")) dlopen(self, RTLD_NOW | RTLD_NOLOAD | RTLD_GLOBAL); /* libcab_cuda.so needs its symbols */
  *strrchr(self, '/') = 0;
  return library_at(self, "../lua") || library_at(self, "../share/cab/lua") || library_at(self, "../../../../share/lua/5.4");
}

void bind_set_paths(lua_State *L) {
  lua_getglobal(L, "package");
  lua_getfield(L, -1, "path");
  lua_pushfstring(L, "%s/?.lua;%s/?/init.lua;%s", bind_library, bind_library, lua_tostring(L, -1));
  lua_setfield(L, -3, "path");
  lua_pop(L, 2);
}

const char *cab_version(void) { return CAB_VERSION; }

static int prepare(lua_State *L) {
  luaL_openlibs(L);
  bind_set_paths(L);
  luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_PRELOAD_TABLE);
  lua_pushcfunction(L, luaopen_cab_core), lua_setfield(L, -2, "cab.core");
  return 0;
}

lua_State *cab_open(void) {
  if (!bind_find_library()) return NULL;
  lua_State *L = luaL_newstate();
  if (!L) return NULL;
  lua_pushcfunction(L, prepare);
  if (lua_pcall(L, 0, 0, 0)) return lua_close(L), NULL;
  return L;
}

static const char message_key;

/* message, code of an error value; the value is on top. */
static int keep_message(lua_State *L) {
  luaL_tolstring(L, 1, NULL);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &message_key);
  int code = CAB_E_LUA;
  if (lua_istable(L, 1) && lua_getfield(L, 1, "code") == LUA_TNUMBER) code = (int)lua_tointeger(L, -1);
  lua_pushinteger(L, code);
  return 1;
}

int cab_run(lua_State *L, const char *text) {
  int top = lua_gettop(L), code = CAB_OK;
  lua_pushnil(L), lua_rawsetp(L, LUA_REGISTRYINDEX, &message_key);
  int failed = luaL_loadbufferx(L, text, strlen(text), "=cab_run", "t");
  if (!failed) failed = lua_pcall(L, 0, 0, 0);
  if (failed) {
    lua_pushcfunction(L, keep_message);
    lua_insert(L, -2);
    code = lua_pcall(L, 1, 1, 0) ? CAB_E_MEMORY : (int)lua_tointeger(L, -1);
  }
  lua_settop(L, top);
  return code;
}

const char *cab_message(lua_State *L) {
  if (!L) return "no memory, or no Lua files beside the library";
  const char *text = lua_rawgetp(L, LUA_REGISTRYINDEX, &message_key) == LUA_TSTRING ? lua_tostring(L, -1) : "";
  lua_pop(L, 1); /* the registry keeps it */
  return text;
}
