/* optim.c - updates in place and the numbers they need, over lists of tensors. */
#include "update.h"
#include "bind.h"

#include <math.h>

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

/* core.top_k(logits, labels, k) -> number of rows whose label is among the k largest */
static int top_k(lua_State *L) {
  CabTensor *logits = bind_check_tensor(L, 1), *labels = bind_check_tensor(L, 2);
  int64_t k = bind_check_int(L, 3), hits;
  BIND_TRY(L, cab_top_k(logits, labels, k, &hits));
  lua_pushinteger(L, hits);
  return 1;
}

void bind_optim(lua_State *L) {
  static const luaL_Reg functions[] = {
      {"adamw", adamw}, {"ema", ema}, {"grad_norm", grad_norm}, {"top_k", top_k}, {NULL, NULL}};
  luaL_setfuncs(L, functions, 0);
}
