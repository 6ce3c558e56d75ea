/* op.c - one Lua function for each op row: f(tensors in signature order, options positionally, {named options}). */
#include "op.h"
#include "bind.h"

#include <string.h>

/* What one call gathers; the tensors are kept alive by the Lua arguments. */
typedef struct {
  const CabSignature *sig;
  CabTensor *in[CAB_MAX_ARGS];
  bool given[CAB_MAX_ARGS], chosen[CAB_MAX_ARGS]; /* inputs and options set positionally */
  double option[CAB_MAX_ARGS];
} Gather;

static _Noreturn void input_error(lua_State *L, const Gather *g, int input, int idx) {
  CabTensor *t = bind_test_tensor(L, idx);
  const char *op = g->sig->op->name, *name = g->sig->in[input].name;
  if (t && !t->storage)
    bind_fail(L, CAB_E_LUA, "%s: '%s': tensor is closed (closed at %s)", op, name, t->closed_at[0] ? t->closed_at : "?");
  bind_fail(L, CAB_E_LUA, "%s: '%s': tensor expected, got %s; the arguments are: %s", op, name, bind_type_name(L, idx),
            g->sig->op->signature);
}

static CabTensor *open_tensor(lua_State *L, const Gather *g, int input, int idx) {
  CabTensor *t = bind_test_tensor(L, idx);
  if (!t || !t->storage) input_error(L, g, input, idx);
  return t;
}

static double word_index(lua_State *L, const Gather *g, const CabOptionSpec *spec, int idx) {
  const char *word = lua_tostring(L, idx);
  char list[160] = "", shown[340];
  for (int i = 0; i < spec->words; i++) {
    if (!strcmp(word, spec->word[i])) return i;
    size_t used = strlen(list);
    snprintf(list + used, sizeof list - used, "%s%s", i ? ", " : "", spec->word[i]);
  }
  bind_fail(L, CAB_E_LUA, "%s: option '%s' is '%s', expected one of %s", g->sig->op->name, spec->name,
            cab_escape(word, strlen(word), shown), list);
}

static double option_value(lua_State *L, const Gather *g, int option, int idx) {
  static const struct { int type; const char *name; } want[] = {
      [CAB_OPTION_NUMBER] = {LUA_TNUMBER, "number"}, [CAB_OPTION_BOOL] = {LUA_TBOOLEAN, "boolean"},
      [CAB_OPTION_WORD] = {LUA_TSTRING, "string"}};
  const CabOptionSpec *spec = &g->sig->option[option];
  if (lua_type(L, idx) != want[spec->kind].type)
    bind_fail(L, CAB_E_LUA, "%s: option '%s': %s expected, got %s", g->sig->op->name, spec->name, want[spec->kind].name,
              bind_type_name(L, idx));
  if (spec->kind == CAB_OPTION_WORD) return word_index(L, g, spec, idx);
  return spec->kind == CAB_OPTION_BOOL ? lua_toboolean(L, idx) : lua_tonumber(L, idx);
}

/* Arguments 1..count: tensors, then options. An optional tensor may be left out before an option. */
static void gather_positional(lua_State *L, Gather *g, int count) {
  const CabSignature *sig = g->sig;
  int input = 0, option = 0;
  for (int idx = 1; idx <= count; idx++) {
    int type = lua_type(L, idx);
    while (input < sig->inputs && type != LUA_TUSERDATA && type != LUA_TNIL && sig->in[input].optional) input++;
    if (input < sig->inputs) {
      if (type != LUA_TNIL) g->in[input] = open_tensor(L, g, input, idx);
      else if (!sig->in[input].optional) input_error(L, g, input, idx);
      g->given[input++] = true;
    } else if (option < sig->options) {
      if (type != LUA_TNIL) g->option[option] = option_value(L, g, option, idx), g->chosen[option] = true;
      option++;
    } else if (type != LUA_TNIL) {
      bind_fail(L, CAB_E_LUA, "%s: argument %d is too many; the arguments are: %s", sig->op->name, idx, sig->op->signature);
    }
  }
}

static _Noreturn void unknown_name(lua_State *L, const Gather *g) {
  const char *names[2 * CAB_MAX_ARGS + 1], *op = g->sig->op->name, *near;
  char shown[340];
  int count = 0;
  if (lua_type(L, -2) != LUA_TSTRING)
    bind_fail(L, CAB_E_LUA, "%s: options have names, but a key is a %s", op, bind_type_name(L, -2));
  for (int i = 0; i < g->sig->options; i++) names[count++] = g->sig->option[i].name;
  for (int i = 0; i < g->sig->inputs; i++) names[count++] = g->sig->in[i].name;
  names[count] = NULL;
  size_t length;
  const char *key = lua_tolstring(L, -2, &length);
  near = bind_nearest(key, names);
  bind_fail(L, CAB_E_LUA, "%s: unknown option '%s'%s%s%s; the arguments are: %s", op, cab_escape(key, length, shown),
            near ? ", did you mean '" : "", near ? near : "", near ? "'?" : "", g->sig->op->signature);
}

static void gather_named(lua_State *L, Gather *g, int table) {
  const CabSignature *sig = g->sig;
  for (lua_pushnil(L); lua_next(L, table); lua_pop(L, 1)) {
    const char *key = lua_type(L, -2) == LUA_TSTRING ? lua_tostring(L, -2) : "";
    int i = 0, k = 0;
    while (i < sig->options && strcmp(key, sig->option[i].name)) i++;
    while (k < sig->inputs && strcmp(key, sig->in[k].name)) k++;
    bool twice = (i < sig->options && g->chosen[i]) || (i == sig->options && k < sig->inputs && g->given[k]);
    if (twice) bind_fail(L, CAB_E_LUA, "%s: '%s' is given twice", sig->op->name, key);
    if (i < sig->options) g->option[i] = option_value(L, g, i, lua_gettop(L));
    else if (k < sig->inputs) g->in[k] = open_tensor(L, g, k, lua_gettop(L));
    else unknown_name(L, g);
  }
}

static int call(lua_State *L) {
  Gather g;
  CabTensor *out[CAB_MAX_ARGS] = {NULL}, **slots[CAB_MAX_ARGS];
  g.sig = lua_touserdata(L, lua_upvalueindex(1));
  int count = lua_gettop(L);
  memset(g.in, 0, sizeof g.in);
  memset(g.given, 0, sizeof g.given);
  memset(g.chosen, 0, sizeof g.chosen);
  for (int i = 0; i < g.sig->options; i++) g.option[i] = g.sig->option[i].initial;
  bool named = count && lua_type(L, count) == LUA_TTABLE;
  gather_positional(L, &g, count - named);
  if (named) gather_named(L, &g, count);
  for (int i = 0; i < g.sig->inputs; i++)
    if (!g.in[i] && !g.sig->in[i].optional)
      bind_fail(L, CAB_E_LUA, "%s: '%s' is missing; the arguments are: %s", g.sig->op->name, g.sig->in[i].name,
                g.sig->op->signature);
  for (int i = 0; i < g.sig->outputs; i++) slots[i] = bind_new_tensor(L);
  BIND_TRY(L, cab_apply(g.sig, g.in, g.option, out));
  for (int i = 0; i < g.sig->outputs; i++) *slots[i] = out[i];
  for (int i = 0; i < g.sig->outputs; i++) {
    if (out[i]) bind_charge(L, out[i]);
    else lua_pushnil(L), lua_replace(L, i - g.sig->outputs - 1); /* an output that was not asked for */
  }
  return g.sig->outputs;
}

/* ---- help -------------------------------------------------------------------------------------- */

static _Noreturn void unknown_op(lua_State *L, const char *name, size_t length) {
  const char *names[512], *near;
  char shown[340];
  int count = 0;
  for (; count < cab_op_count() && count < 511; count++) names[count] = cab_op_at(count)->op->name;
  names[count] = NULL;
  near = bind_nearest(name, names);
  bind_fail(L, CAB_E_LUA, "no op '%s'%s%s%s", cab_escape(name, length, shown), near ? "; did you mean '" : "",
            near ? near : "", near ? "'?" : "");
}

/* core.help([name]): the signature and what the op computes; all ops without a name. */
static int help(lua_State *L) {
  if (lua_isnoneornil(L, 1)) {
    luaL_Buffer b;
    luaL_buffinit(L, &b);
    for (int i = 0; i < cab_op_count(); i++) {
      const CabOp *op = cab_op_at(i)->op;
      lua_pushfstring(L, "%s%s  %s", i ? "\n" : "", op->name, op->signature);
      luaL_addvalue(&b);
    }
    luaL_pushresult(&b);
    return 1;
  }
  size_t length;
  const char *name = bind_check_string(L, 1, &length);
  const CabSignature *sig = cab_op_find(name);
  if (!sig) unknown_op(L, name, length);
  lua_pushfstring(L, "%s  %s\n  %s%s", sig->op->name, sig->op->signature, sig->op->source ? sig->op->source : "",
                  sig->op->backward ? "" : "\n  not differentiable");
  return 1;
}

static int missing(lua_State *L) {
  size_t length = 1;
  const char *name = lua_type(L, 2) == LUA_TSTRING ? lua_tolstring(L, 2, &length) : "?";
  unknown_op(L, name, length);
}

void bind_op(lua_State *L) {
  lua_createtable(L, 0, cab_op_count());
  for (int i = 0; i < cab_op_count(); i++) {
    const CabSignature *sig = cab_op_at(i);
    lua_pushlightuserdata(L, (void *)sig);
    lua_pushcclosure(L, call, 1);
    lua_setfield(L, -2, sig->op->name);
  }
  lua_createtable(L, 0, 1); /* op.matmull is an error, not nil */
  lua_pushcfunction(L, missing);
  lua_setfield(L, -2, "__index");
  lua_setmetatable(L, -2);
  lua_setfield(L, -2, "ops");
  lua_pushcfunction(L, help);
  lua_setfield(L, -2, "help");
}
