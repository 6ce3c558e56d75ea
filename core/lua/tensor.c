/* tensor.c - the tensor userdata: one pointer, owner of one reference. Views and gradients share by references. */
#include "bind.h"

#include <string.h>

static char meta_key; /* registry key of the metatable: a light pointer is found faster than a name */

CabTensor **bind_new_tensor(lua_State *L) {
  CabTensor **slot = lua_newuserdatauv(L, sizeof *slot, 0);
  *slot = NULL;
  lua_rawgetp(L, LUA_REGISTRYINDEX, &meta_key);
  lua_setmetatable(L, -2);
  return slot;
}

void bind_push_tensor(lua_State *L, CabTensor *t) {
  if (!t) {
    lua_pushnil(L);
    return;
  }
  CabTensor **slot = bind_new_tensor(L);
  *slot = cab_tensor_retain(t);
}

/* The slot of a tensor userdata, or NULL. */
static CabTensor **slot_at(lua_State *L, int idx) {
  CabTensor **slot = lua_touserdata(L, idx);
  if (!slot || !lua_getmetatable(L, idx)) return NULL;
  lua_rawgetp(L, LUA_REGISTRYINDEX, &meta_key);
  bool same = lua_rawequal(L, -1, -2);
  lua_pop(L, 2);
  return same ? slot : NULL;
}

CabTensor *bind_test_tensor(lua_State *L, int idx) {
  CabTensor **slot = slot_at(L, idx);
  return slot ? *slot : NULL;
}

CabTensor *bind_check_tensor(lua_State *L, int idx) {
  CabTensor *t = bind_test_tensor(L, idx);
  if (t && t->storage) return t;
  if (t) bind_arg_error(L, idx, "tensor is closed (closed at %s)", t->closed_at[0] ? t->closed_at : "?");
  bind_arg_error(L, idx, "tensor expected, got %s", bind_type_name(L, idx));
}

CabTensor *bind_opt_tensor_arg(lua_State *L, int idx) {
  return lua_isnoneornil(L, idx) ? NULL : bind_check_tensor(L, idx);
}

CabTensor **bind_check_tensors(lua_State *L, int idx, int *count) {
  bind_check_table(L, idx);
  lua_Unsigned n = lua_rawlen(L, idx);
  if (n > 1000000) bind_arg_error(L, idx, "a list of %llu tensors", n);
  CabTensor **list = lua_newuserdatauv(L, n ? n * sizeof *list : 1, 0);
  for (lua_Unsigned i = 0; i < n; i++) {
    lua_rawgeti(L, idx, (lua_Integer)i + 1);
    list[i] = bind_test_tensor(L, -1); /* the table keeps it alive */
    if (list[i] && !list[i]->storage)
      bind_arg_error(L, idx, "item %llu: tensor is closed (closed at %s)", i + 1, list[i]->closed_at[0] ? list[i]->closed_at : "?");
    if (!list[i])
      bind_arg_error(L, idx, "item %llu: tensor expected, got %s", i + 1, bind_type_name(L, -1));
    lua_pop(L, 1);
  }
  *count = (int)n;
  return list;
}

void bind_same_device(lua_State *L, const CabTensor *a, const CabTensor *b) {
  if (!a || a->storage->device == b->storage->device) return;
  bind_fail(L, CAB_E_LUA, "%s: a tensor on %s with one on %s: bring them together with t:to(device)", bind_function(L),
            a->storage->device->name, b->storage->device->name);
}

/* ---- the collector sees only small userdata, so it is told about their bytes ------------------ */

enum { GROWTH = 256 << 20 };
static uint64_t born;

void bind_charge(lua_State *L, const CabTensor *t) {
  if (t->scope || !t->storage || t->storage->refs > 1) return; /* a scope frees it; a view owns nothing */
  born += t->storage->bytes;
  if (born < GROWTH) return;
  born = 0;
  lua_gc(L, LUA_GCCOLLECT);
}

static int tensor_gc(lua_State *L) {
  CabTensor **slot = slot_at(L, 1);
  if (!slot) return 0;
  CabTensor *t = *slot;
  *slot = NULL;
  cab_tensor_release(t);
  return 0;
}

/* t:close() and __close: drops the bytes now; again is no error. */
static int tensor_close(lua_State *L) {
  CabTensor *t = bind_test_tensor(L, 1);
  char where[48];
  if (!t) bind_arg_error(L, 1, "tensor expected, got %s", bind_type_name(L, 1));
  if (t->storage) cab_tensor_close(t, bind_where(L, where));
  return 0;
}

static int tensor_equal(lua_State *L) {
  CabTensor *a = bind_test_tensor(L, 1), *b = bind_test_tensor(L, 2);
  lua_pushboolean(L, a && a == b);
  return 1;
}

/* ---- fields --------------------------------------------------------------------------------- */

static const char *const fields[] = {"grad", "requires_grad", NULL};

/* upvalue 1: methods */
static _Noreturn void unknown_field(lua_State *L, const char *verb) {
  char shown[340];
  const char *names[128];
  int count = 0;
  for (; fields[count]; count++) names[count] = fields[count];
  for (lua_pushnil(L); lua_next(L, lua_upvalueindex(1)) && count < 127; lua_pop(L, 1)) names[count++] = lua_tostring(L, -2);
  names[count] = NULL;
  if (lua_type(L, 2) != LUA_TSTRING)
    bind_fail(L, CAB_E_LUA, "a tensor is not %s with a %s; use t:slice or t:totable", verb, bind_type_name(L, 2));
  size_t length;
  const char *key = lua_tolstring(L, 2, &length), *near = bind_nearest(key, names);
  bind_fail(L, CAB_E_LUA, "tensor has no field '%s'%s%s%s", cab_escape(key, length, shown),
            near ? "; did you mean '" : "", near ? near : "", near ? "'?" : "");
}

static int tensor_index(lua_State *L) {
  lua_pushvalue(L, 2);
  if (lua_rawget(L, lua_upvalueindex(1)) != LUA_TNIL) return 1;
  const char *key = lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "";
  bool grad = !strcmp(key, "grad");
  if (!grad && strcmp(key, "requires_grad")) unknown_field(L, "indexed");
  CabTensor *t = bind_check_tensor(L, 1);
  if (grad) bind_push_tensor(L, t->grad);
  else lua_pushboolean(L, t->requires_grad || t->node);
  return 1;
}

static void set_grad(lua_State *L, CabTensor *t) {
  CabTensor *grad = bind_opt_tensor_arg(L, 3);
  char a[160], b[160];
  if (grad) {
    if (grad->storage->device != t->storage->device)
      bind_fail(L, CAB_E_LUA, "grad is on %s, its tensor on %s", grad->storage->device->name, t->storage->device->name);
    bool same = grad->rank == t->rank && grad->dtype == t->dtype && grad != t;
    for (int i = 0; same && i < t->rank; i++) same = grad->shape[i] == t->shape[i];
    if (!same) bind_fail(L, CAB_E_LUA, "grad is %s, expected %s", cab_shape_text(grad, a), cab_shape_text(t, b));
    if (t->node || !t->requires_grad) bind_fail(L, CAB_E_LUA, "grad: only leaves with requires_grad hold one");
    grad = cab_tensor_detach(grad); /* no cycle through its history */
    if (!grad) bind_raise(L, cab_error()->code);
  }
  CabTensor *old = t->grad;
  t->grad = grad;
  cab_tensor_release(old);
}

static int tensor_newindex(lua_State *L) {
  const char *key = lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "";
  CabTensor *t = bind_check_tensor(L, 1);
  if (!strcmp(key, "grad")) return set_grad(L, t), 0;
  if (strcmp(key, "requires_grad")) unknown_field(L, "assigned");
  if (lua_type(L, 3) != LUA_TBOOLEAN)
    bind_fail(L, CAB_E_LUA, "requires_grad: boolean expected, got %s", bind_type_name(L, 3));
  bool on = lua_toboolean(L, 3);
  if (t->node) bind_fail(L, CAB_E_LUA, "requires_grad: only leaves can be set; this is an output of %s: use detach()", t->node->name);
  if (on && t->dtype != CAB_F32 && t->dtype != CAB_F64 && t->dtype != CAB_BF16)
    bind_fail(L, CAB_E_LUA, "requires_grad: f32, f64 or bf16 expected, this is %s", cab_dtype_name(t->dtype));
  t->requires_grad = on;
  return 0;
}

static int is_tensor(lua_State *L) {
  lua_settop(L, 1);
  lua_pushboolean(L, bind_test_tensor(L, 1) != NULL);
  return 1;
}

void bind_tensor(lua_State *L) {
  static const luaL_Reg meta[] = {{"__gc", tensor_gc}, {"__close", tensor_close}, {"__eq", tensor_equal}, {NULL, NULL}};
  if (luaL_newmetatable(L, BIND_TENSOR)) {
    lua_pushvalue(L, -1);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &meta_key);
    luaL_setfuncs(L, meta, 0);
    bind_tensor_print(L);
    bind_tensor_operators(L);
    lua_pushliteral(L, "tensor");
    lua_setfield(L, -2, "__metatable"); /* getmetatable(t) == "tensor": scripts cannot call __gc */
    lua_newtable(L);
    bind_tensor_methods(L);
    bind_tensor_views(L);
    lua_pushcfunction(L, tensor_close);
    lua_setfield(L, -2, "close");
    lua_pushvalue(L, -1);
    lua_pushcclosure(L, tensor_index, 1);
    lua_setfield(L, -3, "__index");
    lua_pushcclosure(L, tensor_newindex, 1);
    lua_setfield(L, -2, "__newindex");
  }
  lua_pop(L, 1);
  lua_pushcfunction(L, is_tensor);
  lua_setfield(L, -2, "is_tensor");
}
