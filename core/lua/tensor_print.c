/* tensor_print.c - tostring for people: "f32[2,3] cpu, -1 to 2, mean 0.5, std 1" and the values at the edges. */
#include "bind.h"
#include "op.h"
#include "optim.h"

#include <math.h>
#include <string.h>

/* What the range kernels read here: contiguous f32 or f64 on the CPU. Pushes its owner. */
static CabTensor *plain_floats(lua_State *L, CabTensor *t) {
  CabTensor **slot = bind_new_tensor(L);
  bool floats = t->dtype == CAB_F32 || t->dtype == CAB_F64;
  if (floats && t->storage->device == cab_cpu()) BIND_FILL(L, slot, cab_tensor_contiguous_copy(t));
  else BIND_FILL(L, slot, cab_tensor_to(t, cab_cpu(), floats ? t->dtype : CAB_F64));
  return *slot;
}

BindRange bind_range(lua_State *L, CabTensor *t) {
  int64_t n = cab_tensor_count(t), bad = 0;
  double v[4] = {INFINITY, -INFINITY, 0, 0};
  CabTensor *x = plain_floats(L, t);
  CabDevice *device = x->storage->device;
  range_fn *range = (range_fn *)cab_twin(device, x->dtype, "range");
  count_bad_fn *count_bad = range ? (count_bad_fn *)cab_twin(device, x->dtype, "count_bad") : NULL;
  if (!count_bad) bind_raise(L, cab_error()->code);
  if (n) {
    range(device->stream, n, cab_tensor_data(x), v);
    count_bad(device->stream, n, cab_tensor_data(x), &bad);
  }
  if (x != t) cab_tensor_close(x, "");
  lua_pop(L, 1);
  double finite = (double)(n - bad), mean = v[2] / finite, variance = v[3] / finite - mean * mean;
  return (BindRange){v[0], v[1], mean, variance > 0 ? sqrt(variance) : variance < 0 ? 0 : variance, bad};
}

/* ---- values ----------------------------------------------------------------------------------- */

static double element(const CabTensor *t, int64_t at) {
  const void *p = cab_tensor_data(t);
  switch (t->dtype) {
    case CAB_F32: return ((const float *)p)[at];
    case CAB_F64: return ((const double *)p)[at];
    case CAB_I32: return ((const int32_t *)p)[at];
    case CAB_U8: return ((const uint8_t *)p)[at];
    case CAB_BF16: {
      uint32_t bits = (uint32_t)((const uint16_t *)p)[at] << 16;
      float value;
      memcpy(&value, &bits, sizeof value);
      return value;
    }
    default: return NAN;
  }
}

static void add_value(luaL_Buffer *b, const CabTensor *t, int64_t at) {
  char text[40];
  double value = element(t, at);
  snprintf(text, sizeof text, t->dtype == CAB_I32 || t->dtype == CAB_U8 ? "%.0f" : "%.5g", value);
  luaL_addstring(b, text);
}

/* The first and last three of the last two dims, the first and last of the others. */
static void add_values(luaL_Buffer *b, const CabTensor *t, int dim, int64_t at) {
  if (dim == t->rank) {
    add_value(b, t, at);
    return;
  }
  int64_t n = t->shape[dim], edge = dim < t->rank - 2 ? 1 : 3;
  bool rows = dim < t->rank - 1;
  luaL_addchar(b, '[');
  for (int64_t i = 0; i < n; i++) {
    if (i) luaL_addstring(b, rows ? ",\n" : ", ");
    for (int j = 0; i && rows && j <= dim; j++) luaL_addchar(b, ' ');
    if (n > 2 * edge + 1 && i == edge) {
      luaL_addstring(b, "...");
      i = n - edge - 1;
    } else {
      add_values(b, t, dim + 1, at + i * t->stride[dim]);
    }
  }
  luaL_addchar(b, ']');
}

static void add_head(luaL_Buffer *b, CabTensor *t, const BindRange *r) {
  char text[320], shape[160], bad[48] = "";
  const char *grad = t->node ? t->node->name : t->requires_grad ? "requires_grad" : NULL;
  if (r->bad) snprintf(bad, sizeof bad, ", %lld not finite", (long long)r->bad);
  snprintf(text, sizeof text, "%s %s%s%s", cab_shape_text(t, shape), t->storage->device->name, grad ? ", " : "",
           !grad ? "" : t->node ? "from " : "");
  luaL_addstring(b, text);
  if (grad) luaL_addstring(b, grad);
  int64_t n = cab_tensor_count(t);
  if (n > 1 && n > r->bad) {
    snprintf(text, sizeof text, ", %.5g to %.5g, mean %.5g, std %.5g", r->min, r->max, r->mean, r->std);
    luaL_addstring(b, text);
  }
  luaL_addstring(b, bad);
}

static int tensor_tostring(lua_State *L) {
  CabTensor *t = bind_test_tensor(L, 1);
  if (!t) return lua_pushliteral(L, "tensor"), 1;
  if (!t->storage) return lua_pushfstring(L, "closed tensor (closed at %s)", t->closed_at[0] ? t->closed_at : "?"), 1;
  luaL_Buffer b;
  BindRange r = bind_range(L, t);
  CabTensor **near = bind_new_tensor(L); /* where C can read it */
  if (t->storage->device == cab_cpu()) *near = cab_tensor_retain(t);
  else BIND_FILL(L, near, cab_tensor_to(t, cab_cpu(), t->dtype));
  luaL_buffinit(L, &b);
  add_head(&b, t, &r);
  luaL_addchar(&b, '\n');
  add_values(&b, *near, 0, 0);
  luaL_pushresult(&b);
  return 1;
}

void bind_tensor_print(lua_State *L) {
  lua_pushcfunction(L, tensor_tostring);
  lua_setfield(L, -2, "__tostring");
}
