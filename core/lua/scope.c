/* scope.c - scopes and no_grad. The boxes mirror the chain of open scopes, so keep() can tell inner from outer ones. */
#include "bind.h"

typedef struct Box {
  CabScope *scope; /* NULL once freed */
  bool open;
  struct Box *outer;
} Box;
static Box *innermost;

static Box *check_scope(lua_State *L) {
  Box *box = luaL_testudata(L, 1, BIND_SCOPE);
  if (!box) bind_arg_error(L, 1, "scope expected, got %s", bind_type_name(L, 1));
  return box;
}

static void close_box(Box *box, const char *where) {
  if (!box->open) return;
  while (box->open) { /* inner ones first */
    innermost->open = false;
    innermost = innermost->outer;
  }
  cab_scope_close(box->scope, where);
}

/* core.scope(): tensors born from here to its end are closed with it, unless kept: local s <close> = core.scope() */
static int scope_new(lua_State *L) {
  Box *box = lua_newuserdatauv(L, sizeof *box, 0);
  *box = (Box){0};
  luaL_setmetatable(L, BIND_SCOPE);
  box->scope = cab_scope_open();
  if (!box->scope && bind_collect(L)) box->scope = cab_scope_open();
  if (!box->scope) bind_raise(L, cab_error()->code);
  box->open = true;
  box->outer = innermost;
  innermost = box;
  return 1;
}

/* scope:close(), also __close(scope, error); again is no error. */
static int scope_close(lua_State *L) {
  char where[48];
  Box *box = check_scope(L);
  if (box->open) close_box(box, bind_where(L, where));
  return 0;
}

static int scope_gc(lua_State *L) {
  Box *box = check_scope(L);
  close_box(box, "the end of a scope that no variable held: use <close>");
  cab_scope_free(box->scope);
  box->scope = NULL;
  return 0;
}

/* Moves t out of `box` if it was born in it or in a scope inside it. */
static void keep(Box *box, CabTensor *t) {
  for (Box *b = innermost; b; b = b->outer) {
    if (t->scope == b->scope) cab_scope_keep(t);
    if (b == box) return;
  }
}

/* scope:keep(t, ...) -> t, ... */
static int scope_keep(lua_State *L) {
  Box *box = check_scope(L);
  int count = lua_gettop(L);
  if (!box->open) bind_fail(L, CAB_E_LUA, "keep: the scope is closed");
  for (int i = 2; i <= count; i++) bind_check_tensor(L, i);
  for (int i = 2; i <= count; i++) keep(box, bind_check_tensor(L, i));
  return count - 1;
}

/* ---- gradients off and on ------------------------------------------------------------------------ */

/* core.no_grad(f, ...) -> what f returns; the old mode comes back on errors too. */
static int no_grad(lua_State *L) {
  if (lua_type(L, 1) != LUA_TFUNCTION && luaL_getmetafield(L, 1, "__call") == LUA_TNIL)
    bind_arg_error(L, 1, "function expected, got %s", bind_type_name(L, 1));
  if (lua_type(L, 1) != LUA_TFUNCTION) lua_pop(L, 1);
  bool old = cab_set_grad_enabled(false);
  int failed = lua_pcall(L, lua_gettop(L) - 1, LUA_MULTRET, 0);
  cab_set_grad_enabled(old);
  if (failed) lua_error(L);
  return lua_gettop(L);
}

/* core.grad_enabled([on]) -> the old mode */
static int grad_enabled(lua_State *L) {
  if (lua_isnoneornil(L, 1)) lua_pushboolean(L, cab_grad_enabled());
  else lua_pushboolean(L, cab_set_grad_enabled(bind_check_bool(L, 1)));
  return 1;
}

void bind_scope(lua_State *L) {
  static const luaL_Reg meta[] = {{"__gc", scope_gc}, {"__close", scope_close}, {NULL, NULL}};
  static const luaL_Reg methods[] = {{"close", scope_close}, {"keep", scope_keep}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"scope", scope_new}, {"no_grad", no_grad}, {"grad_enabled", grad_enabled}, {NULL, NULL}};
  if (luaL_newmetatable(L, BIND_SCOPE)) {
    luaL_setfuncs(L, meta, 0);
    luaL_newlib(L, methods);
    lua_setfield(L, -2, "__index");
    lua_pushliteral(L, "scope");
    lua_setfield(L, -2, "__metatable");
  }
  lua_pop(L, 1);
  luaL_setfuncs(L, functions, 0);
}
