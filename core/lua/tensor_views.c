/* tensor_views.c - views: dims are 1-based, negative ones count from the end; gradients flow through. */
#include "bind.h"

#include <string.h>

static int method_reshape(lua_State *L) {
  CabTensor *t = bind_check_tensor(L, 1);
  int64_t shape[CAB_MAX_RANK];
  int rank = bind_check_shape(L, 2, shape);
  CabTensor **slot = bind_new_tensor(L);
  BIND_FILL(L, slot, cab_reshape(t, rank, shape));
  return 1;
}

/* t:permute(1, 3, 2): dim i of the result is dim order[i] of t. */
static int method_permute(lua_State *L) {
  CabTensor *t = bind_check_tensor(L, 1);
  int64_t dims[CAB_MAX_RANK];
  int order[CAB_MAX_RANK];
  unsigned seen = 0;
  int count = t->rank == 0 && lua_gettop(L) == 1 ? 0 : bind_check_shape(L, 2, dims);
  char text[160];
  if (count != t->rank) bind_arg_error(L, 2, "%d dims for %s", count, cab_shape_text(t, text));
  for (int i = 0; i < count; i++) {
    int64_t dim = dims[i] > 0 ? dims[i] - 1 : t->rank + dims[i];
    if (dims[i] == 0 || dim < 0 || dim >= t->rank || seen >> dim & 1)
      bind_arg_error(L, 2, "dims 1 to %d expected once each, got %lld", t->rank, (long long)dims[i]);
    seen |= 1u << dim;
    order[i] = (int)dim;
  }
  CabTensor **slot = bind_new_tensor(L);
  BIND_FILL(L, slot, cab_permute(t, order));
  return 1;
}

static int method_transpose(lua_State *L) {
  CabTensor *t = bind_check_tensor(L, 1);
  int a = bind_check_dim(L, 2, t), b = bind_check_dim(L, 3, t), order[CAB_MAX_RANK];
  for (int i = 0; i < t->rank; i++) order[i] = i;
  order[a] = b;
  order[b] = a;
  CabTensor **slot = bind_new_tensor(L);
  BIND_FILL(L, slot, cab_permute(t, order));
  return 1;
}

/* t:slice(dim, first [, last=-1]): both ends included; last = first - 1 is empty. */
static int method_slice(lua_State *L) {
  CabTensor *t = bind_check_tensor(L, 1);
  int dim = bind_check_dim(L, 2, t);
  int64_t size = t->shape[dim], first = bind_check_int(L, 3), last = lua_isnoneornil(L, 4) ? size : bind_check_int(L, 4);
  char text[160];
  int64_t from = first < 0 ? size + first + 1 : first, to = last < 0 ? size + last + 1 : last;
  if (from < 1 || to > size || to < from - 1)
    bind_fail(L, CAB_E_LUA, "slice: %lld to %lld of dim %d of %s", (long long)first, (long long)last, dim + 1,
              cab_shape_text(t, text));
  CabTensor **slot = bind_new_tensor(L);
  BIND_FILL(L, slot, cab_slice(t, dim, from - 1, to));
  return 1;
}

/* -1 keeps the size; dims are matched from the right. */
static int method_expand(lua_State *L) {
  CabTensor *t = bind_check_tensor(L, 1);
  int64_t shape[CAB_MAX_RANK];
  int rank = bind_check_shape(L, 2, shape);
  for (int i = 0; i < rank; i++)
    if (shape[i] == -1 && i >= rank - t->rank) shape[i] = t->shape[i - (rank - t->rank)];
  CabTensor **slot = bind_new_tensor(L);
  BIND_FILL(L, slot, cab_expand(t, rank, shape));
  return 1;
}

static int method_flip(lua_State *L) {
  CabTensor *t = bind_check_tensor(L, 1);
  int dim = bind_check_dim(L, 2, t);
  CabTensor **slot = bind_new_tensor(L);
  BIND_FILL(L, slot, cab_flip(t, dim));
  return 1;
}

enum { MAX_PARTS = 64 };

/* t:split(dim, {sizes}) -> as many views */
static int method_split(lua_State *L) {
  CabTensor *t = bind_check_tensor(L, 1), *parts[MAX_PARTS] = {NULL}, **slots[MAX_PARTS];
  int dim = bind_check_dim(L, 2, t);
  int64_t sizes[MAX_PARTS];
  bind_check_table(L, 3);
  lua_Unsigned count = lua_rawlen(L, 3);
  if (count < 1 || count > MAX_PARTS) bind_arg_error(L, 3, "1 to %d sizes expected, got %llu", MAX_PARTS, count);
  luaL_checkstack(L, MAX_PARTS + 8, "split");
  for (lua_Unsigned i = 0; i < count; i++) {
    int exact;
    lua_rawgeti(L, 3, (lua_Integer)i + 1);
    sizes[i] = lua_tointegerx(L, -1, &exact);
    if (!exact || lua_type(L, -1) != LUA_TNUMBER || sizes[i] < 0)
      bind_arg_error(L, 3, "size %llu must be an integer >= 0, got %s", i + 1, bind_type_name(L, -1));
    lua_pop(L, 1);
  }
  for (lua_Unsigned i = 0; i < count; i++) slots[i] = bind_new_tensor(L);
  BIND_TRY(L, cab_split(t, dim, (int)count, sizes, parts));
  for (lua_Unsigned i = 0; i < count; i++) *slots[i] = parts[i];
  return (int)count;
}

/* core.concat({a, b, ...} [, dim=1]) */
static int concat(lua_State *L) {
  int count;
  lua_settop(L, 2);
  CabTensor **parts = bind_check_tensors(L, 1, &count);
  if (!count) bind_arg_error(L, 1, "no tensors");
  int dim = lua_isnil(L, 2) ? 0 : bind_check_dim(L, 2, parts[0]);
  for (int i = 1; i < count; i++) bind_same_device(L, parts[i], parts[0]);
  CabTensor **slot = bind_new_tensor(L);
  BIND_FILL(L, slot, cab_concat(count, parts, dim));
  return 1;
}

void bind_tensor_views(lua_State *L) {
  static const luaL_Reg methods[] = {
      {"reshape", method_reshape}, {"permute", method_permute}, {"transpose", method_transpose}, {"slice", method_slice},
      {"expand", method_expand},   {"flip", method_flip},       {"split", method_split},         {NULL, NULL}};
  luaL_setfuncs(L, methods, 0);
}

void bind_concat(lua_State *L) {
  lua_pushcfunction(L, concat);
  lua_setfield(L, -2, "concat");
}
