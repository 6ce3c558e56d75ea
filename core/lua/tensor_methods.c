/* tensor_methods.c - what a tensor tells about itself, conversions, backward, writes in place. */
#include "bind.h"
#include "op.h"

#include <string.h>

static int method_shape(lua_State *L) {
  CabTensor *t = bind_check_tensor(L, 1);
  lua_createtable(L, t->rank, 0);
  for (int i = 0; i < t->rank; i++) {
    lua_pushinteger(L, t->shape[i]);
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

static int method_size(lua_State *L) {
  CabTensor *t = bind_check_tensor(L, 1);
  lua_pushinteger(L, t->shape[bind_check_dim(L, 2, t)]);
  return 1;
}

static int method_rank(lua_State *L) { return lua_pushinteger(L, bind_check_tensor(L, 1)->rank), 1; }
static int method_dtype(lua_State *L) { return lua_pushstring(L, cab_dtype_name(bind_check_tensor(L, 1)->dtype)), 1; }
static int method_device(lua_State *L) { return lua_pushstring(L, bind_check_tensor(L, 1)->storage->device->name), 1; }
static int method_count(lua_State *L) { return lua_pushinteger(L, cab_tensor_count(bind_check_tensor(L, 1))), 1; }

static int method_bytes(lua_State *L) {
  CabTensor *t = bind_check_tensor(L, 1);
  lua_pushinteger(L, cab_tensor_count(t) * (lua_Integer)cab_dtype_size(t->dtype));
  return 1;
}

/* ---- values to Lua --------------------------------------------------------------------------- */

/* Pushes a contiguous f64 copy on the CPU. */
static CabTensor *wide_copy(lua_State *L, CabTensor *t) {
  CabTensor **slot = bind_new_tensor(L);
  BIND_FILL(L, slot, cab_tensor_to(t, cab_cpu(), CAB_F64));
  return *slot;
}

static void push_value(lua_State *L, const CabTensor *t, double value) {
  if (t->dtype == CAB_I32 || t->dtype == CAB_U8) lua_pushinteger(L, (lua_Integer)value);
  else lua_pushnumber(L, value);
}

static int method_item(lua_State *L) {
  CabTensor *t = bind_check_tensor(L, 1);
  char text[160];
  if (cab_tensor_count(t) != 1) bind_fail(L, CAB_E_LUA, "item: %s does not have one element", cab_shape_text(t, text));
  CabTensor *wide = wide_copy(L, t);
  double value = *(double *)cab_tensor_data(wide);
  cab_tensor_close(wide, "");
  push_value(L, t, value);
  return 1;
}

static const double *push_nested(lua_State *L, const CabTensor *t, int dim, const double *p) {
  if (dim == t->rank) {
    push_value(L, t, *p);
    return p + 1;
  }
  lua_createtable(L, t->shape[dim] < 1 << 20 ? (int)t->shape[dim] : 0, 0);
  for (int64_t i = 1; i <= t->shape[dim]; i++) {
    p = push_nested(L, t, dim + 1, p);
    lua_rawseti(L, -2, i);
  }
  return p;
}

static int method_totable(lua_State *L) {
  CabTensor *t = bind_check_tensor(L, 1), *wide = wide_copy(L, t);
  luaL_checkstack(L, CAB_MAX_RANK + 4, "totable");
  push_nested(L, t, 0, cab_tensor_data(wide));
  cab_tensor_close(wide, "");
  return 1;
}

/* t:range() -> {min=, max=, mean=, std=, bad=} */
static int method_range(lua_State *L) {
  BindRange r = bind_range(L, bind_check_tensor(L, 1));
  lua_createtable(L, 0, 5);
  lua_pushnumber(L, r.min), lua_setfield(L, -2, "min");
  lua_pushnumber(L, r.max), lua_setfield(L, -2, "max");
  lua_pushnumber(L, r.mean), lua_setfield(L, -2, "mean");
  lua_pushnumber(L, r.std), lua_setfield(L, -2, "std");
  lua_pushinteger(L, r.bad), lua_setfield(L, -2, "bad");
  return 1;
}

/* ---- history ---------------------------------------------------------------------------------- */

static int method_backward(lua_State *L) {
  CabTensor *t = bind_check_tensor(L, 1), *seed = bind_opt_tensor_arg(L, 2);
  bind_same_device(L, seed, t);
  bind_backward(L, 1, &t, &seed);
  return 0;
}

static int method_detach(lua_State *L) {
  CabTensor *t = bind_check_tensor(L, 1), **slot = bind_new_tensor(L);
  BIND_FILL(L, slot, cab_tensor_detach(t));
  return 1;
}

static bool has_history(const CabTensor *t) { return cab_grad_enabled() && (t->node || t->requires_grad); }

/* New memory, contiguous; the gradient flows through. */
static int method_clone(lua_State *L) {
  CabTensor *t = bind_check_tensor(L, 1), **slot = bind_new_tensor(L);
  if (has_history(t)) BIND_FILL(L, slot, bind_apply("affine", t, NULL, 1, 0));
  else BIND_FILL(L, slot, cab_tensor_to(t, t->storage->device, t->dtype));
  return 1;
}

/* t:to(dtype | device): a copy, without history. */
static int method_to(lua_State *L) {
  CabTensor *t = bind_check_tensor(L, 1);
  const char *name = bind_check_string(L, 2, NULL);
  char shown[340];
  CabDevice *device = t->storage->device;
  CabDtype dtype = t->dtype;
  if (!cab_dtype_parse(name, &dtype) && !(device = cab_device(name))) {
    if (cab_error()->code == CAB_E_LUA) bind_arg_error(L, 2, "unknown dtype or device '%s'", cab_escape(name, strlen(name), shown));
    bind_raise(L, cab_error()->code);
  }
  CabTensor **slot = bind_new_tensor(L);
  BIND_FILL(L, slot, cab_tensor_to(t, device, dtype));
  return 1;
}

/* ---- in place: versions tell backward about it ------------------------------------------------- */

static void begin_write(lua_State *L, CabTensor *t, CabTensor *source) {
  static char where[48];
  if (source && has_history(source))
    bind_fail(L, CAB_E_LUA, "%s: the source has a gradient history, which a write in place would lose; use detach() or no_grad",
              bind_function(L));
  bool part = t->node && (uint64_t)cab_tensor_count(t) * cab_dtype_size(t->dtype) != t->storage->bytes;
  if (part && cab_grad_enabled())
    bind_fail(L, CAB_E_LUA, "%s: this view is part of a tensor with a gradient history; use no_grad", bind_function(L));
  cab_set_current_line(bind_where(L, where));
}

/* replaced: all of t was written, so it is a constant from here on. */
static int written(lua_State *L, CabTensor *t, bool replaced) {
  cab_set_current_line("");
  lua_settop(L, 1);
  if (!replaced || !t->node || !cab_grad_enabled()) return 1;
  CabNode *node = t->node;
  t->node = NULL;
  t->output = 0;
  t->requires_grad = false;
  cab_node_release(node);
  return 1;
}

static int method_fill(lua_State *L) {
  CabTensor *t = bind_check_tensor(L, 1);
  double value = bind_check_number(L, 2);
  begin_write(L, t, NULL);
  bind_fill_value(L, t, value);
  return written(L, t, true);
}

static int method_copy(lua_State *L) {
  CabTensor *t = bind_check_tensor(L, 1), *source = bind_check_tensor(L, 2);
  begin_write(L, t, source);
  BIND_TRY(L, cab_tensor_copy(t, source));
  return written(L, t, true);
}

/* t:add_(x [, alpha=1]): t += alpha x; x is a tensor that broadcasts to t, or a number. */
static int method_add(lua_State *L) {
  CabTensor *t = bind_check_tensor(L, 1), *x = lua_type(L, 2) == LUA_TNUMBER ? NULL : bind_check_tensor(L, 2);
  bind_same_device(L, x, t);
  double alpha = lua_isnoneornil(L, 3) ? 1 : bind_check_number(L, 3);
  begin_write(L, t, x);
  if (!x) {
    CabTensor **one = bind_new_tensor(L);
    BIND_FILL(L, one, cab_tensor_new(t->storage->device, t->dtype, 0, NULL));
    BIND_TRY(L, cab_tensor_fill(*one, lua_tonumber(L, 2)));
    x = *one;
  }
  BIND_TRY(L, cab_tensor_add(t, alpha, x));
  return written(L, t, false);
}

void bind_tensor_methods(lua_State *L) {
  static const luaL_Reg methods[] = {
      {"shape", method_shape},   {"size", method_size},     {"rank", method_rank},       {"dtype", method_dtype},
      {"device", method_device}, {"count", method_count},   {"bytes", method_bytes},     {"item", method_item},
      {"totable", method_totable}, {"range", method_range}, {"backward", method_backward}, {"detach", method_detach},
      {"clone", method_clone},   {"to", method_to},         {"fill", method_fill},       {"copy", method_copy},
      {"add_", method_add},      {NULL, NULL}};
  luaL_setfuncs(L, methods, 0);
}
