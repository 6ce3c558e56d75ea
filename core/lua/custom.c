/* custom.c - ops written in Lua. A node of the tape holds a registry reference to {ctx, backward, Custom}; what a call
 * returns are aliases of what `forward` returned, so a ctx that keeps its output makes no cycle through the node. */
#include "bind.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
  int reference; /* registry: {ctx, backward, this} */
  struct {
    CabDevice *device;
    CabDtype dtype;
    int rank;
    int64_t shape[CAB_MAX_RANK];
  } out[CAB_MAX_ARGS];
} Custom;

static lua_State *main_state, *running; /* running: whose backward is on the way */
static bool pending;                    /* an error object of a callback waits under pending_key */
static char pending_key, context_key;

lua_State *bind_main_state(lua_State *L) {
  lua_rawgeti(L, LUA_REGISTRYINDEX, LUA_RIDX_MAINTHREAD);
  lua_State *state = lua_tothread(L, -1);
  lua_pop(L, 1);
  return state;
}

void bind_closed(void) { main_state = NULL; }

/* Names outlive the nodes that point to them: a spent node still tells its name. */
static const char *intern(const char *name) {
  static struct Name { struct Name *next; char text[64]; } *names;
  struct Name *n = names;
  while (n && strncmp(n->text, name, sizeof n->text - 1)) n = n->next;
  if (n) return n->text;
  n = cab_calloc(1, sizeof *n);
  if (!n) return NULL;
  snprintf(n->text, sizeof n->text, "%s", name);
  n->next = names;
  names = n;
  return n->text;
}

/* ---- backward ---------------------------------------------------------------------------------- */

typedef struct {
  CabNode *node;
  CabTensor **gout, **gin;
} Call;

/* Of the callback's scope, so that its userdata holds no memory afterwards. */
static void push_alias(lua_State *L, CabTensor *t) {
  CabTensor **slot = bind_new_tensor(L);
  BIND_FILL(L, slot, cab_tensor_detach(t));
}

static void push_saved(lua_State *L, CabNode *node) {
  lua_createtable(L, node->saved_count, 0);
  for (int i = 0; i < node->saved_count; i++) {
    if (!node->saved[i]) continue;
    push_alias(L, node->saved[i]);
    lua_rawseti(L, -2, i + 1);
  }
}

static void push_gradient(lua_State *L, const Custom *custom, CabTensor *g, int i) {
  if (g) {
    push_alias(L, g);
    return;
  }
  CabTensor **zeros = bind_new_tensor(L);
  BIND_FILL(L, zeros, cab_tensor_zeros(custom->out[i].device, custom->out[i].dtype, custom->out[i].rank, custom->out[i].shape));
}

/* Protected: (light Call). Gradients get their aliases at the end, where nothing raises any more. */
static int run_backward(lua_State *L) {
  Call *call = lua_touserdata(L, 1);
  CabNode *node = call->node;
  Custom *custom = node->ctx;
  CabTensor *g[CAB_MAX_ARGS] = {NULL};
  luaL_checkstack(L, CAB_MAX_ARGS + 8, "backward");
  lua_rawgeti(L, LUA_REGISTRYINDEX, custom->reference);
  lua_rawgeti(L, 2, 1); /* ctx at 3 */
  push_saved(L, node);
  lua_pushliteral(L, "saved"), lua_insert(L, -2);
  lua_rawset(L, 3);
  lua_rawgeti(L, 2, 2);
  lua_pushvalue(L, 3);
  for (int i = 0; i < node->outputs; i++) push_gradient(L, custom, call->gout[i], i);
  lua_call(L, 1 + node->outputs, LUA_MULTRET);
  int count = lua_gettop(L) - 3;
  if (count > node->inputs)
    bind_fail(L, CAB_E_LUA, "%s: backward returned %d values for %d tensor arguments", node->name, count, node->inputs);
  for (int i = 0; i < count; i++) {
    g[i] = bind_test_tensor(L, 4 + i);
    if (!lua_isnil(L, 4 + i) && (!g[i] || !g[i]->storage))
      bind_fail(L, CAB_E_LUA, "%s: backward: gradient %d: tensor or nil expected, got %s", node->name, i + 1,
                bind_type_name(L, 4 + i));
  }
  for (int i = 0; i < count; i++)
    if (g[i] && !(call->gin[i] = cab_tensor_alias(g[i]))) bind_raise(L, cab_error()->code);
  return 0;
}

static CabStatus backward(CabNode *node, CabTensor **gout, CabTensor **gin) {
  Call call = {node, gout, gin};
  lua_State *L = running;
  if (!L || !lua_checkstack(L, 4)) return cab_fail(CAB_E_MEMORY, "%s: backward: no room on the Lua stack", node->name);
  CabScope *scope = cab_scope_open();
  if (!scope) return cab_error()->code;
  lua_pushcfunction(L, run_backward); /* neither push allocates */
  lua_pushlightuserdata(L, &call);
  int failed = lua_pcall(L, 1, 0, 0);
  cab_scope_close(scope, "the end of a custom backward");
  cab_scope_free(scope);
  if (!failed) return CAB_OK;
  if (lua_isnil(L, -1)) lua_pop(L, 1), lua_pushboolean(L, false);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &pending_key); /* the key exists: no allocation */
  pending = true;
  return cab_fail(CAB_E_LUA, "%s: error in backward", node->name);
}

void bind_backward(lua_State *L, int count, CabTensor **roots, CabTensor **seeds) {
  lua_State *outer = running;
  running = L;
  CabStatus status = cab_backward(count, roots, seeds);
  running = outer;
  if (status == CAB_OK) return;
  if (!pending) bind_raise(L, status);
  pending = false;
  lua_rawgetp(L, LUA_REGISTRYINDEX, &pending_key);
  lua_pushboolean(L, false);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &pending_key);
  lua_error(L);
}

static void destroy(CabNode *node) {
  Custom *custom = node->ctx;
  if (main_state && custom && lua_checkstack(main_state, 4)) luaL_unref(main_state, LUA_REGISTRYINDEX, custom->reference);
}

/* ---- forward ------------------------------------------------------------------------------------ */

/* ctx:save(t, ...): tensors (or nil) that backward finds in ctx.saved; changing one in place is then noticed. */
static int context_save(lua_State *L) {
  bind_check_table(L, 1);
  int count = lua_gettop(L) - 1;
  if (count > 2 * CAB_MAX_ARGS) bind_fail(L, CAB_E_LUA, "save: more than %d tensors", 2 * CAB_MAX_ARGS);
  lua_createtable(L, count, 1);
  for (int i = 1; i <= count; i++) {
    bind_opt_tensor_arg(L, i + 1);
    lua_pushvalue(L, i + 1);
    lua_rawseti(L, -2, i);
  }
  lua_pushinteger(L, count);
  lua_setfield(L, -2, "n");
  lua_pushliteral(L, "saved"), lua_insert(L, -2);
  lua_rawset(L, 1);
  return 0;
}

/* Takes ctx.saved out of the ctx at `context`; the list stays on the stack and keeps the tensors alive. */
static int take_saved(lua_State *L, int context, CabTensor **saved) {
  lua_pushliteral(L, "saved");
  if (lua_rawget(L, context) != LUA_TTABLE) return 0;
  lua_getfield(L, -1, "n");
  lua_Integer count = lua_isinteger(L, -1) ? lua_tointeger(L, -1) : (lua_Integer)lua_rawlen(L, -2);
  lua_pop(L, 1);
  if (count < 0 || count > 2 * CAB_MAX_ARGS) bind_fail(L, CAB_E_LUA, "ctx.saved holds more than %d tensors", 2 * CAB_MAX_ARGS);
  for (int i = 0; i < count; i++) {
    lua_rawgeti(L, -1, i + 1);
    saved[i] = bind_test_tensor(L, -1);
    if (!saved[i] && !lua_isnil(L, -1))
      bind_fail(L, CAB_E_LUA, "ctx.saved: tensor expected, got %s; keep other values in ctx.NAME", bind_type_name(L, -1));
    lua_pop(L, 1);
  }
  lua_pushliteral(L, "saved"), lua_pushnil(L);
  lua_rawset(L, context);
  return (int)count;
}

/* Pushes the record; ctx at `context`, backward is upvalue 2. */
static Custom *new_record(lua_State *L, int context, int outputs, CabTensor **out) {
  lua_createtable(L, 3, 0);
  lua_pushvalue(L, context), lua_rawseti(L, -2, 1);
  lua_pushvalue(L, lua_upvalueindex(2)), lua_rawseti(L, -2, 2);
  Custom *custom = lua_newuserdatauv(L, sizeof *custom, 0);
  for (int i = 0; i < outputs; i++) {
    custom->out[i].device = out[i]->storage->device;
    custom->out[i].dtype = out[i]->dtype;
    custom->out[i].rank = out[i]->rank;
    memcpy(custom->out[i].shape, out[i]->shape, sizeof out[i]->shape);
  }
  lua_rawseti(L, -2, 3);
  custom->reference = LUA_NOREF;
  return custom;
}

/* No Lua from here on. Fails before any output is attached. */
static CabStatus record(CabNode *node, Custom *custom, int saves, CabTensor **saved, int outputs, CabTensor **out) {
  node->backward = backward;
  node->destroy = destroy;
  node->ctx = custom;
  for (int i = 0; i < saves; i++)
    if (cab_node_save(node, saved[i]) < 0) return cab_error()->code;
  for (int i = 0; i < outputs; i++) cab_node_attach(node, i, out[i]);
  return CAB_OK;
}

static int collect_tensors(lua_State *L, int first, int last, CabTensor **list) {
  int count = 0;
  for (int i = first; i <= last; i++) {
    if (!bind_test_tensor(L, i)) continue;
    if (count == CAB_MAX_ARGS) bind_fail(L, CAB_E_LUA, "a custom op has at most %d tensors", CAB_MAX_ARGS);
    list[count++] = bind_check_tensor(L, i);
  }
  return count;
}

/* upvalues: forward, backward, name (light, interned) */
static int custom_call(lua_State *L) {
  const char *name = lua_touserdata(L, lua_upvalueindex(3));
  CabTensor *in[CAB_MAX_ARGS], *out[CAB_MAX_ARGS], *saved[2 * CAB_MAX_ARGS];
  int args = lua_gettop(L), inputs = collect_tensors(L, 1, args, in), context = args + 1;
  luaL_checkstack(L, args + CAB_MAX_ARGS + 16, name);
  lua_newtable(L);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &context_key);
  lua_setmetatable(L, -2);
  lua_pushvalue(L, lua_upvalueindex(1));
  lua_pushvalue(L, context);
  for (int i = 1; i <= args; i++) lua_pushvalue(L, i);
  bool old = cab_set_grad_enabled(false);
  int failed = lua_pcall(L, args + 1, LUA_MULTRET, 0);
  cab_set_grad_enabled(old);
  if (failed) lua_error(L);
  int outputs = lua_gettop(L) - context, first = lua_gettop(L) + 1;
  if (outputs > CAB_MAX_ARGS) bind_fail(L, CAB_E_LUA, "%s: forward returned more than %d values", name, CAB_MAX_ARGS);
  luaL_checkstack(L, outputs + 16, name);
  for (int i = 0; i < outputs; i++) {
    out[i] = bind_test_tensor(L, context + 1 + i);
    if (!out[i] || !out[i]->storage)
      bind_fail(L, CAB_E_LUA, "%s: forward: result %d: tensor expected, got %s", name, i + 1, bind_type_name(L, context + 1 + i));
  }
  for (int i = 0; i < outputs; i++) {
    CabTensor **slot = bind_new_tensor(L);
    BIND_FILL(L, slot, cab_tensor_detach(out[i]));
    out[i] = *slot;
  }
  int saves = take_saved(L, context, saved);
  Custom *custom = new_record(L, context, outputs, out);
  custom->reference = luaL_ref(L, LUA_REGISTRYINDEX); /* may raise, so before the node */
  CabNode *node = cab_node_new(name, inputs, in, outputs);
  CabStatus status = node ? record(node, custom, saves, saved, outputs, out) : cab_error()->code;
  if (node) cab_node_release(node);
  else luaL_unref(L, LUA_REGISTRYINDEX, custom->reference);
  if (status) bind_raise(L, status);
  lua_settop(L, first + outputs - 1);
  return outputs;
}

/* core.custom{name=, forward=function(ctx, ...) return out... end, backward=function(ctx, gout...) return gin... end}:
 * backward returns one gradient (or nil) for each tensor argument, in order; other tensors that it makes are closed then. */
static int custom_new(lua_State *L) {
  static const char *const keys[] = {"name", "forward", "backward", NULL};
  bind_check_table(L, 1);
  bind_unknown_keys(L, 1, keys);
  const char *name = bind_opt_string(L, 1, "name", "custom");
  lua_settop(L, 1);
  for (int i = 1; i <= 2; i++)
    if (lua_getfield(L, 1, keys[i]) != LUA_TFUNCTION)
      bind_fail(L, CAB_E_LUA, "custom: '%s' must be a function, got %s", keys[i], bind_type_name(L, -1));
  const char *kept = intern(name);
  if (!kept) bind_raise(L, CAB_E_MEMORY);
  lua_pushlightuserdata(L, (void *)kept);
  lua_pushcclosure(L, custom_call, 3);
  return 1;
}

/* core.backward({t, ...}, {gradient, ...}): from several tensors at once, each with its gradient. */
static int backward_all(lua_State *L) {
  CabTensor *roots[CAB_MAX_ARGS], *seeds[CAB_MAX_ARGS];
  bind_check_table(L, 1);
  bind_check_table(L, 2);
  lua_Integer count = luaL_len(L, 1);
  if (count > CAB_MAX_ARGS) bind_fail(L, CAB_E_LUA, "backward: more than %d tensors", CAB_MAX_ARGS);
  luaL_checkstack(L, 2 * (int)count + 8, "backward");
  for (int i = 0; i < count; i++) {
    lua_rawgeti(L, 1, i + 1);
    roots[i] = bind_check_tensor(L, -1);
    lua_rawgeti(L, 2, i + 1);
    seeds[i] = bind_check_tensor(L, -1);
    bind_same_device(L, seeds[i], roots[i]);
  }
  bind_backward(L, (int)count, roots, seeds);
  return 0;
}

void bind_custom(lua_State *L) {
  main_state = bind_main_state(L);
  lua_pushboolean(L, false);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &pending_key);
  lua_createtable(L, 0, 1); /* metatable of ctx: methods only */
  lua_createtable(L, 0, 1);
  lua_pushcfunction(L, context_save);
  lua_setfield(L, -2, "save");
  lua_setfield(L, -2, "__index");
  lua_rawsetp(L, LUA_REGISTRYINDEX, &context_key);
  lua_pushcfunction(L, custom_new);
  lua_setfield(L, -2, "custom");
  lua_pushcfunction(L, backward_all);
  lua_setfield(L, -2, "backward");
}
