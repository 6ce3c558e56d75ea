/* optim.c - updates in place and the numbers they need, over lists of tensors; the optimizer of a training step. */
#include "update.h"
#include "bind.h"

#include <math.h>
#include <string.h>

/* A list at idx of exactly `expected` tensors (or any number if negative). */
static CabTensor **list_at(lua_State *L, int idx, int expected, int *count) {
  CabTensor **list = bind_check_tensors(L, idx, count);
  if (expected >= 0 && *count != expected) bind_arg_error(L, idx, "%d tensors, expected %d", *count, expected);
  return list;
}

/* core.adamw(params, scale, m, v, {lr=, beta1=0.9, beta2=0.999, eps=1e-8, decay=0, step=}): scale multiplies the gradients */
static int adamw(lua_State *L) {
  static const char *const keys[] = {"lr", "beta1", "beta2", "eps", "decay", "step", NULL};
  int count, n;
  CabTensor **params = list_at(L, 1, -1, &count);
  CabAdamw o = {.scale = bind_check_number(L, 2)};
  CabTensor **m = list_at(L, 3, count, &n), **v = list_at(L, 4, count, &n);
  bind_check_table(L, 5);
  bind_unknown_keys(L, 5, keys);
  o.lr = bind_opt_number(L, 5, "lr", NAN);
  o.beta1 = bind_opt_number(L, 5, "beta1", 0.9);
  o.beta2 = bind_opt_number(L, 5, "beta2", 0.999);
  o.eps = bind_opt_number(L, 5, "eps", 1e-8);
  o.decay = bind_opt_number(L, 5, "decay", 0);
  o.step = bind_opt_int(L, 5, "step", 0);
  if (isnan(o.lr)) bind_fail(L, CAB_E_LUA, "adamw: option 'lr' is missing or NaN");
  if (o.step < 1) bind_fail(L, CAB_E_LUA, "adamw: option 'step' must count from 1, got %lld", (long long)o.step);
  CabStatus status = cab_adamw(count, params, m, v, &o); /* not to be tried again: it may have written */
  if (status) bind_raise(L, status);
  return 0;
}

/* core.ema(averages, params, keep): average += (1 - keep) (param - average) */
static int ema(lua_State *L) {
  int count, n;
  CabTensor **averages = list_at(L, 1, -1, &count), **params = list_at(L, 2, count, &n);
  double keep = bind_check_number(L, 3);
  if (!(keep >= 0 && keep <= 1)) bind_arg_error(L, 3, "0 to 1 expected, got %g", keep);
  CabStatus status = cab_ema(count, averages, params, keep);
  if (status) bind_raise(L, status);
  return 0;
}

/* core.grad_norm(params) -> L2 norm over all gradients */
static int grad_norm(lua_State *L) {
  int count;
  double norm;
  CabTensor **params = list_at(L, 1, -1, &count);
  BIND_TRY(L, cab_grad_norm(count, params, &norm));
  lua_pushnumber(L, norm);
  return 1;
}

/* ---- the optimizer ----------------------------------------------------------------------------- */

static const char *const metatable = "cab.optimizer";

static CabOptimizer *check_optimizer(lua_State *L) {
  CabOptimizer **slot = luaL_testudata(L, 1, metatable);
  if (!slot) bind_arg_error(L, 1, "optimizer expected, got %s", bind_type_name(L, 1));
  if (!*slot) bind_fail(L, CAB_E_LUA, "the optimizer is closed");
  return *slot;
}

/* Pushes the list at `key`, which has `count` items; false if it is absent and may be. */
static bool list_field(lua_State *L, const char *key, int count, bool optional) {
  int type = lua_getfield(L, 1, key);
  if (type == LUA_TNIL && optional) return false;
  if (type != LUA_TTABLE) bind_fail(L, CAB_E_LUA, "optimizer: '%s': list expected, got %s", key, bind_type_name(L, -1));
  if (lua_rawlen(L, -1) == (lua_Unsigned)count) return true;
  bind_fail(L, CAB_E_LUA, "optimizer: '%s' has %d items, expected %d", key, (int)lua_rawlen(L, -1), count);
}

/* The tensors at `key`, in a userdata pushed after the list; false stands for none where holes are allowed. */
static CabTensor **tensors_of(lua_State *L, const char *key, int count, bool holes) {
  bool given = list_field(L, key, count, holes);
  CabTensor **list = lua_newuserdatauv(L, (size_t)count * sizeof *list + 1, 0);
  memset(list, 0, (size_t)count * sizeof *list);
  for (int i = 0; given && i < count; i++) {
    lua_rawgeti(L, -2, i + 1);
    list[i] = bind_test_tensor(L, -1); /* the table keeps it alive */
    if (!list[i] && !(holes && lua_isboolean(L, -1) && !lua_toboolean(L, -1)))
      bind_fail(L, CAB_E_LUA, "optimizer: '%s' item %d: tensor expected, got %s", key, i + 1, bind_type_name(L, -1));
    lua_pop(L, 1);
  }
  return list;
}

/* The numbers at `key` likewise, zeros if there is no list. */
static double *numbers_of(lua_State *L, const char *key, int count) {
  bool given = list_field(L, key, count, true);
  double *list = lua_newuserdatauv(L, (size_t)count * sizeof *list + 1, 0);
  memset(list, 0, (size_t)count * sizeof *list);
  for (int i = 0; given && i < count; i++) {
    if (lua_rawgeti(L, -2, i + 1) != LUA_TNUMBER)
      bind_fail(L, CAB_E_LUA, "optimizer: '%s' item %d: number expected, got %s", key, i + 1, bind_type_name(L, -1));
    list[i] = lua_tonumber(L, -1);
    lua_pop(L, 1);
  }
  return list;
}

static int64_t *steps_of(lua_State *L, const char *key, int count) {
  const double *given = numbers_of(L, key, count);
  int64_t *list = lua_newuserdatauv(L, (size_t)count * sizeof *list + 1, 0);
  for (int i = 0; i < count; i++) {
    if (!(given[i] >= 0 && given[i] < 9e15 && given[i] == floor(given[i])))
      bind_fail(L, CAB_E_LUA, "optimizer: '%s' item %d is %g, expected 0 or a step", key, i + 1, given[i]);
    list[i] = (int64_t)given[i];
  }
  return list;
}

/* core.optimizer{params=, m=, v=, average=, decay=, born=, from=, beta1=0.9, beta2=0.999, eps=1e-8} -> optimizer
 * Lists alike in length: tensors (average: or false), decay and born (step of the first gradient, 0: none yet) numbers. from: of several ranks, the numbers of the
 * elements (from 0) of each parameter where m, v and average begin, which are flat, or false where nothing of it is updated here. */
static int optimizer_new(lua_State *L) {
  static const char *const keys[] = {"params", "m", "v", "average", "decay", "born", "from", "beta1", "beta2", "eps", NULL};
  bind_check_table(L, 1);
  lua_settop(L, 1);
  bind_unknown_keys(L, 1, keys);
  CabOptimizer **slot = lua_newuserdatauv(L, sizeof *slot, 0);
  *slot = NULL;
  luaL_setmetatable(L, metatable);
  luaL_checkstack(L, 40, NULL);
  lua_Unsigned count = lua_getfield(L, 1, "params") == LUA_TTABLE ? lua_rawlen(L, -1) : 0;
  if (count > 1000000) bind_fail(L, CAB_E_LUA, "optimizer: 'params': a list of %llu tensors", count);
  int n = (int)count;
  CabOptimizerSpec spec = {.count = n, .beta1 = bind_opt_number(L, 1, "beta1", 0.9), .beta2 = bind_opt_number(L, 1, "beta2", 0.999),
                           .eps = bind_opt_number(L, 1, "eps", 1e-8)};
  spec.params = tensors_of(L, "params", n, false);
  bool sharded = lua_getfield(L, 1, "from") != LUA_TNIL;
  spec.m = tensors_of(L, "m", n, sharded);
  spec.v = tensors_of(L, "v", n, sharded);
  spec.averages = tensors_of(L, "average", n, true);
  spec.decay = numbers_of(L, "decay", n);
  spec.born = steps_of(L, "born", n);
  spec.from = sharded ? steps_of(L, "from", n) : NULL;
  if (!(*slot = cab_optimizer_new(&spec)) && bind_collect(L)) *slot = cab_optimizer_new(&spec);
  if (!*slot) bind_raise(L, cab_error()->code);
  lua_settop(L, 2);
  return 1;
}

/* o:set{step=, lr=, clip=0, keep=0}: for the steps from now on. clip bounds the gradients' norm (0: off), keep is the
 * share that averages keep. Not inside a capture. */
static int optimizer_set(lua_State *L) {
  static const char *const keys[] = {"step", "lr", "clip", "keep", NULL};
  CabOptimizer *o = check_optimizer(L);
  bind_check_table(L, 2);
  bind_unknown_keys(L, 2, keys);
  int64_t step = bind_opt_int(L, 2, "step", 0);
  double lr = bind_opt_number(L, 2, "lr", NAN), clip = bind_opt_number(L, 2, "clip", 0), keep = bind_opt_number(L, 2, "keep", 0);
  if (isnan(lr)) bind_fail(L, CAB_E_LUA, "optimizer: option 'lr' is missing or NaN");
  if (!(clip >= 0)) bind_fail(L, CAB_E_LUA, "optimizer: 'clip' is %g, expected 0 or more", clip);
  if (!(keep >= 0 && keep <= 1)) bind_fail(L, CAB_E_LUA, "optimizer: 'keep' is %g, expected 0 to 1", keep);
  BIND_TRY(L, cab_optimizer_set(o, step, lr, clip, keep));
  return 0;
}

/* o:step(): norm of the gradients, clipping, AdamW, averages. Launches only, so it can be captured. */
static int optimizer_step(lua_State *L) {
  CabOptimizer *o = check_optimizer(L);
  BIND_TRY(L, cab_optimizer_step(o));
  return 0;
}

/* o:norm() -> the gradients' norm in the last step, nil or {count, step, parameter}: steps since the last call whose norm was
 * not finite and that changed nothing; of the first, its number and the last parameter with such a gradient (or nil). Waits. */
static int optimizer_norm(lua_State *L) {
  CabOptimizer *o = check_optimizer(L);
  CabOptimizerReport report;
  BIND_TRY(L, cab_optimizer_report(o, &report));
  lua_pushnumber(L, report.norm);
  if (!report.skipped) return lua_pushnil(L), 2;
  lua_createtable(L, 0, 3);
  lua_pushinteger(L, report.skipped);
  lua_setfield(L, -2, "count");
  lua_pushinteger(L, report.step);
  lua_setfield(L, -2, "step");
  if (report.parameter) {
    lua_pushinteger(L, report.parameter);
    lua_setfield(L, -2, "parameter");
  }
  return 2;
}

/* o:born() -> list of the steps in which the parameters got their first gradient, 0 for none yet; goes into checkpoints. */
static int optimizer_born(lua_State *L) {
  int count;
  const int64_t *born = cab_optimizer_born(check_optimizer(L), &count);
  lua_createtable(L, count, 0);
  for (int i = 0; i < count; i++) {
    lua_pushinteger(L, born[i]);
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

static int optimizer_close(lua_State *L) {
  CabOptimizer **slot = luaL_testudata(L, 1, metatable);
  if (!slot) bind_arg_error(L, 1, "optimizer expected, got %s", bind_type_name(L, 1));
  CabOptimizer *o = *slot;
  *slot = NULL;
  cab_optimizer_free(o);
  return 0;
}

static void make_metatable(lua_State *L) {
  static const luaL_Reg meta[] = {{"__gc", optimizer_close}, {"__close", optimizer_close}, {NULL, NULL}};
  static const luaL_Reg methods[] = {{"set", optimizer_set}, {"step", optimizer_step}, {"norm", optimizer_norm},
                                     {"born", optimizer_born}, {"close", optimizer_close}, {NULL, NULL}};
  if (luaL_newmetatable(L, metatable)) {
    luaL_setfuncs(L, meta, 0);
    luaL_newlib(L, methods);
    lua_setfield(L, -2, "__index");
    lua_pushliteral(L, "optimizer");
    lua_setfield(L, -2, "__metatable");
  }
  lua_pop(L, 1);
}

/* core.top_k(logits, labels, k) -> number of rows whose label is among the k largest */
static int top_k(lua_State *L) {
  CabTensor *logits = bind_check_tensor(L, 1), *labels = bind_check_tensor(L, 2);
  int64_t k = bind_check_int(L, 3), hits;
  BIND_TRY(L, cab_top_k(logits, labels, k, &hits));
  lua_pushinteger(L, hits);
  return 1;
}

/* core.token_scores(logits [R,V], targets i32[R]) -> log probabilities f64[R], greedy i32[R]; target -1: 0, 0 */
static int token_scores(lua_State *L) {
  CabTensor *logits = bind_check_tensor(L, 1), *targets = bind_check_tensor(L, 2);
  CabTensor **score = bind_new_tensor(L), **greedy = bind_new_tensor(L);
  int64_t rows = logits->rank ? logits->shape[0] : 0;
  BIND_FILL(L, score, cab_tensor_new(cab_cpu(), CAB_F64, 1, &rows));
  BIND_FILL(L, greedy, cab_tensor_new(cab_cpu(), CAB_I32, 1, &rows));
  BIND_TRY(L, cab_token_scores(logits, targets, *score, *greedy));
  return 2;
}

void bind_optim(lua_State *L) {
  static const luaL_Reg functions[] = {
      {"adamw", adamw}, {"ema", ema}, {"grad_norm", grad_norm}, {"top_k", top_k}, {"token_scores", token_scores}, {"optimizer", optimizer_new}, {NULL, NULL}};
  make_metatable(L);
  luaL_setfuncs(L, functions, 0);
}
