/* tensor_operators.c - + - * / and unary minus between tensors and numbers. */
#include "bind.h"
#include "op.h"

CabTensor *bind_apply(const char *op, CabTensor *a, CabTensor *b, double first, double second) {
  const CabSignature *sig = cab_op_find(op);
  if (!sig) return cab_fail(CAB_E_BUG, "no op '%s'", op), NULL;
  CabTensor *in[CAB_MAX_ARGS] = {a, b}, *out[CAB_MAX_ARGS] = {NULL};
  double option[CAB_MAX_ARGS] = {first, second};
  return cab_apply(sig, in, option, out) == CAB_OK ? out[0] : NULL;
}

/* NULL for a number. */
static CabTensor *operand(lua_State *L, int idx) {
  if (lua_type(L, idx) == LUA_TNUMBER) return NULL;
  if (bind_test_tensor(L, idx)) return bind_check_tensor(L, idx);
  bind_arg_error(L, idx, "tensor or number expected, got %s", bind_type_name(L, idx));
}

/* y = scale x + shift */
static int affine(lua_State *L, CabTensor *x, double scale, double shift) {
  CabTensor **slot = bind_new_tensor(L);
  BIND_FILL(L, slot, bind_apply("affine", x, NULL, scale, shift));
  return 1;
}

static int binary(lua_State *L, const char *op, CabTensor *a, CabTensor *b) {
  CabTensor **slot = bind_new_tensor(L);
  BIND_FILL(L, slot, bind_apply(op, a, b, 0, 0));
  return 1;
}

static int tensor_add(lua_State *L) {
  CabTensor *a = operand(L, 1), *b = operand(L, 2);
  if (a && b) return binary(L, "add", a, b);
  return affine(L, a ? a : b, 1, lua_tonumber(L, a ? 2 : 1));
}

static int tensor_sub(lua_State *L) {
  CabTensor *a = operand(L, 1), *b = operand(L, 2);
  if (a && b) return binary(L, "sub", a, b);
  return a ? affine(L, a, 1, -lua_tonumber(L, 2)) : affine(L, b, -1, lua_tonumber(L, 1));
}

static int tensor_mul(lua_State *L) {
  CabTensor *a = operand(L, 1), *b = operand(L, 2);
  if (a && b) return binary(L, "mul", a, b);
  return affine(L, a ? a : b, lua_tonumber(L, a ? 2 : 1), 0);
}

static int tensor_div(lua_State *L) {
  CabTensor *a = operand(L, 1), *b = operand(L, 2);
  if (a && b) return binary(L, "div", a, b);
  if (a) return affine(L, a, 1 / lua_tonumber(L, 2), 0);
  CabTensor **inverse = bind_new_tensor(L);
  BIND_FILL(L, inverse, bind_apply("reciprocal", b, NULL, 0, 0));
  return affine(L, *inverse, lua_tonumber(L, 1), 0);
}

static int tensor_unm(lua_State *L) { return binary(L, "neg", bind_check_tensor(L, 1), NULL); }

void bind_tensor_operators(lua_State *L) {
  static const luaL_Reg operators[] = {{"__add", tensor_add}, {"__sub", tensor_sub}, {"__mul", tensor_mul},
                                       {"__div", tensor_div}, {"__unm", tensor_unm}, {NULL, NULL}};
  luaL_setfuncs(L, operators, 0);
}
