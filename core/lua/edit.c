/* edit.c - line editing for the prompt through libedit, loaded when first asked for: without it the prompt reads plainly. */
#include "bind.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

typedef char **(*Completer)(const char *, int, int);
typedef char *(*Generator)(const char *, int);
static struct {
  void *library;
  bool tried;
  char *(*readline)(const char *);
  int (*add_history)(const char *);
  int (*read_history)(const char *);
  int (*write_history)(const char *);
  void (*stifle_history)(int);
  char **(*completion_matches)(const char *, Generator);
  Completer *attempted;
  int *over, *append;
  const char **breaks;
  char **buffer;
} edit;
static lua_State *state; /* while readline runs */
static int completer = LUA_NOREF;

static bool load(void) {
  if (edit.tried) return edit.library != NULL;
  edit.tried = true;
  void *h = dlopen("libedit.so.2", RTLD_NOW | RTLD_LOCAL);
  if (!h) return false;
  const struct { const char *name; void **slot; } symbols[] = {
      {"readline", (void **)&edit.readline}, {"add_history", (void **)&edit.add_history},
      {"read_history", (void **)&edit.read_history}, {"write_history", (void **)&edit.write_history},
      {"stifle_history", (void **)&edit.stifle_history}, {"rl_completion_matches", (void **)&edit.completion_matches},
      {"rl_attempted_completion_function", (void **)&edit.attempted}, {"rl_attempted_completion_over", (void **)&edit.over},
      {"rl_completion_append_character", (void **)&edit.append}, {"rl_basic_word_break_characters", (void **)&edit.breaks},
      {"rl_line_buffer", (void **)&edit.buffer}};
  for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
    if (!(*symbols[i].slot = dlsym(h, symbols[i].name))) return dlclose(h), false;
  }
  edit.library = h;
  edit.stifle_history(2000);
  *edit.breaks = " \t\n\"\\'`@$><=;|&{(+-*/,[]#~%^)}!";
  return true;
}

/* The matches lie in a Lua list on top of the stack while libedit asks for one after the other. */
static char *next_match(const char *text, int first) {
  static lua_Integer at;
  (void)text;
  if (first == 0) at = 0;
  if (lua_geti(state, -1, ++at) != LUA_TSTRING) return lua_pop(state, 1), NULL;
  char *copy = strdup(lua_tostring(state, -1)); /* libedit frees it */
  lua_pop(state, 1);
  return copy;
}

static char **complete_word(const char *text, int start, int end) {
  (void)end;
  *edit.over = 1; /* no file names of libedit's own */
  *edit.append = 0;
  if (completer == LUA_NOREF || !lua_checkstack(state, 8)) return NULL;
  int top = lua_gettop(state);
  lua_rawgeti(state, LUA_REGISTRYINDEX, completer);
  lua_pushstring(state, text);
  const char *line = *edit.buffer ? *edit.buffer : "";
  size_t length = strlen(line);
  lua_pushlstring(state, line, start >= 0 && (size_t)start < length ? (size_t)start : length);
  char **matches = NULL;
  if (lua_pcall(state, 2, 1, 0) == LUA_OK && lua_istable(state, -1)) matches = edit.completion_matches(text, next_match);
  lua_settop(state, top);
  return matches;
}

/* core.editline.available() -> bool */
static int available(lua_State *L) { return lua_pushboolean(L, load()), 1; }

static void need(lua_State *L) {
  if (!load()) bind_fail(L, CAB_E_LUA, "line editing: libedit.so.2 is not here");
}

/* core.editline.readline(prompt) -> line, or nil at the end */
static int read_line(lua_State *L) {
  const char *prompt = bind_check_string(L, 1, NULL);
  need(L);
  lua_State *outer = state;
  state = L;
  *edit.attempted = complete_word;
  char *line = edit.readline(prompt);
  state = outer;
  if (!line) return lua_pushnil(L), 1;
  lua_pushstring(L, line);
  free(line);
  return 1;
}

/* core.editline.complete(f): f(word, line before it) -> list of words */
static int set_completer(lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
  luaL_unref(L, LUA_REGISTRYINDEX, completer);
  lua_settop(L, 1);
  completer = luaL_ref(L, LUA_REGISTRYINDEX);
  return 0;
}

static int add(lua_State *L) {
  const char *line = bind_check_string(L, 1, NULL);
  need(L);
  edit.add_history(line);
  return 0;
}

/* load(path), save(path): the history; false if the file cannot be used */
static int load_history(lua_State *L) {
  const char *path = bind_check_path(L, 1);
  need(L);
  return lua_pushboolean(L, edit.read_history(path) == 0), 1;
}
static int save_history(lua_State *L) {
  const char *path = bind_check_path(L, 1);
  need(L);
  return lua_pushboolean(L, edit.write_history(path) == 0), 1;
}

void bind_edit(lua_State *L) {
  static const luaL_Reg functions[] = {{"available", available},     {"readline", read_line}, {"complete", set_completer},
                                       {"add", add},                 {"load", load_history},  {"save", save_history},
                                       {NULL, NULL}};
  luaL_newlib(L, functions);
  lua_setfield(L, -2, "editline");
}
