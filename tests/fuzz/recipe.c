/* Bytes are override texts, one a line, for the recipe in recipe.lua, which says what must hold. Lines of Lua that run are
 * the fuzzer's counters. Started where lua/ and tests/ are. */
#include <stdlib.h>
#include <string.h>

#include "bind.h"

enum { COUNTERS = 1 << 14 };
__attribute__((section("__libfuzzer_extra_counters"))) static uint8_t reached[COUNTERS];
static lua_State *state;

static void on_line(lua_State *L, lua_Debug *ar) {
  lua_getinfo(L, "S", ar);
  reached[((uintptr_t)ar->source * 31 + (unsigned)ar->currentline * 7919u) % COUNTERS]++;
}

static void stop(const char *what) {
  fprintf(stderr, "%s: %s\n", what, luaL_tolstring(state, -1, NULL));
  abort();
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
  (void)argc, (void)argv;
  state = luaL_newstate();
  luaL_openlibs(state);
  luaL_getsubtable(state, LUA_REGISTRYINDEX, LUA_PRELOAD_TABLE);
  lua_pushcfunction(state, luaopen_cab_core), lua_setfield(state, -2, "cab.core");
  if (luaL_dostring(state, "package.path = 'lua/?.lua;lua/?/init.lua;' .. package.path") || luaL_dofile(state, "tests/fuzz/recipe.lua"))
    stop("start");
  lua_sethook(state, on_line, LUA_MASKLINE, 0);
  return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  lua_pushvalue(state, -1);
  lua_pushlstring(state, (const char *)data, size);
  if (lua_pcall(state, 1, 0, 0)) stop("does not hold");
  return 0;
}
