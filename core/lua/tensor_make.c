/* tensor_make.c - core.tensor, zeros, ones, full, empty, arange, uniform, normal, trunc_normal. */
#include "bind.h"

#include <math.h>
#include "op.h"
#include "random.h"

#include <string.h>

/* ---- nested tables --------------------------------------------------------------------------- */

static int64_t elements(int rank, const int64_t *shape) {
  uint64_t n = 1;
  for (int i = 0; i < rank; i++) n = sz_mul(n, (uint64_t)shape[i]);
  return n > INT64_MAX ? -1 : (int64_t)n;
}

/* Shape along the first items; the value is at the top of the stack. */
static int measure(lua_State *L, int64_t *shape) {
  int rank = 0, top = lua_gettop(L);
  while (lua_type(L, -1) == LUA_TTABLE) {
    if (rank == CAB_MAX_RANK) bind_fail(L, CAB_E_LUA, "tensor: nested deeper than %d tables", CAB_MAX_RANK);
    shape[rank++] = (int64_t)lua_rawlen(L, -1);
    lua_rawgeti(L, -1, 1);
    if (shape[rank - 1] == 0) break;
  }
  lua_settop(L, top);
  return rank;
}

typedef struct {
  int rank;
  int64_t shape[CAB_MAX_RANK], at[CAB_MAX_RANK];
  CabDtype dtype;
  double *next;
} Filler;

static _Noreturn void fill_error(lua_State *L, const Filler *f, int depth, const char *text) {
  char place[200] = "";
  for (int i = 0; i < depth; i++) {
    size_t used = strlen(place);
    snprintf(place + used, sizeof place - used, "[%lld]", (long long)f->at[i]);
  }
  bind_fail(L, CAB_E_LUA, "%s: %s%s%s", bind_function(L), place, depth ? ": " : "", text);
}

static double checked(lua_State *L, const Filler *f) {
  double v = lua_tonumber(L, -1);
  char text[80];
  if (f->dtype != CAB_I32 && f->dtype != CAB_U8) return v;
  double low = f->dtype == CAB_I32 ? INT32_MIN : 0, high = f->dtype == CAB_I32 ? INT32_MAX : 255;
  if (v >= low && v <= high && v == floor(v)) return v;
  snprintf(text, sizeof text, "%.14g does not fit %s", v, cab_dtype_name(f->dtype));
  fill_error(L, f, f->rank, text);
}

static void fill(lua_State *L, Filler *f, int depth) {
  char text[120];
  bool leaf = depth == f->rank;
  if (lua_type(L, -1) != (leaf ? LUA_TNUMBER : LUA_TTABLE)) {
    snprintf(text, sizeof text, "%s expected, got %s", leaf ? "number" : "table", bind_type_name(L, -1));
    fill_error(L, f, depth, text);
  }
  if (leaf) {
    *f->next++ = checked(L, f);
    return;
  }
  int64_t n = (int64_t)lua_rawlen(L, -1);
  if (n != f->shape[depth]) {
    snprintf(text, sizeof text, "%lld items, expected %lld", (long long)n, (long long)f->shape[depth]);
    fill_error(L, f, depth, text);
  }
  for (int64_t i = 1; i <= n; i++) {
    f->at[depth] = i;
    lua_rawgeti(L, -1, i);
    fill(L, f, depth + 1);
    lua_pop(L, 1);
  }
}

/* core.tensor(data [, dtype="f32" [, device]]): numbers in tables of equal lengths, or one number. */
static int make_tensor(lua_State *L) {
  Filler f = {.dtype = bind_opt_dtype(L, 2, CAB_F32)};
  CabDevice *device = bind_opt_device(L, 3);
  if (lua_type(L, 1) != LUA_TTABLE && lua_type(L, 1) != LUA_TNUMBER)
    bind_arg_error(L, 1, "number or nested tables expected, got %s", bind_type_name(L, 1));
  luaL_checkstack(L, 2 * CAB_MAX_RANK + 8, "tensor");
  lua_settop(L, 1);
  f.rank = measure(L, f.shape);
  CabTensor **result = bind_new_tensor(L), **wide = bind_new_tensor(L);
  BIND_FILL(L, wide, cab_tensor_new(cab_cpu(), CAB_F64, f.rank, f.shape));
  f.next = cab_tensor_data(*wide);
  lua_pushvalue(L, 1);
  fill(L, &f, 0);
  lua_settop(L, 3);
  if (f.dtype == CAB_F64 && device == cab_cpu()) return 1;
  BIND_FILL(L, result, cab_tensor_to(*wide, device, f.dtype));
  cab_tensor_close(*wide, "");
  lua_settop(L, 2);
  return 1;
}

/* ---- constants -------------------------------------------------------------------------------- */

/* Shape at 1, dtype and device from `next`. Pushes the result. */
static CabTensor *allocate(lua_State *L, int next, CabDtype initial, bool zeros) {
  int64_t shape[CAB_MAX_RANK];
  if (lua_type(L, 1) != LUA_TTABLE && lua_type(L, 1) != LUA_TNUMBER)
    bind_arg_error(L, 1, "shape expected, got %s", bind_type_name(L, 1));
  CabDtype dtype = bind_opt_dtype(L, next, initial);
  CabDevice *device = bind_opt_device(L, next + 1);
  if (lua_gettop(L) > next + 1) bind_fail(L, CAB_E_LUA, "%s: too many arguments", bind_function(L));
  int rank = 1;
  if (lua_type(L, 1) == LUA_TTABLE) rank = bind_check_shape(L, 1, shape);
  else shape[0] = bind_check_int(L, 1);
  for (int i = 0; i < rank; i++)
    if (shape[i] < 0) bind_arg_error(L, 1, "shape: size %d is %lld", i + 1, (long long)shape[i]);
  if (elements(rank, shape) < 0) bind_arg_error(L, 1, "shape: too many elements");
  CabTensor **slot = bind_new_tensor(L);
  if (zeros) BIND_FILL(L, slot, cab_tensor_zeros(device, dtype, rank, shape));
  else BIND_FILL(L, slot, cab_tensor_new(device, dtype, rank, shape));
  return *slot;
}

void bind_fill_value(lua_State *L, CabTensor *t, double value) {
  Filler f = {.dtype = t->dtype};
  lua_pushnumber(L, value);
  checked(L, &f);
  lua_pop(L, 1);
  BIND_TRY(L, cab_tensor_fill(t, value));
}

static int make_zeros(lua_State *L) { return allocate(L, 2, CAB_F32, true), 1; }
static int make_empty(lua_State *L) { return allocate(L, 2, CAB_F32, false), 1; }
static int make_ones(lua_State *L) { return bind_fill_value(L, allocate(L, 2, CAB_F32, false), 1), 1; }
static int make_full(lua_State *L) {
  double value = bind_check_number(L, 2);
  return bind_fill_value(L, allocate(L, 3, CAB_F32, false), value), 1;
}

/* core.arange(n [, dtype="i32"]): 0, 1, ... n-1. */
static int make_arange(lua_State *L) {
  int64_t n = bind_check_int(L, 1);
  CabDtype dtype = bind_opt_dtype(L, 2, CAB_I32);
  CabDevice *device = bind_opt_device(L, 3);
  int64_t limit = dtype == CAB_U8 ? 256 : dtype == CAB_BF16 ? 257 : dtype == CAB_F32 ? (1 << 24) + 1 : INT32_MAX;
  if (n < 0 || n > limit) bind_arg_error(L, 1, "0 to %lld expected, got %lld", (long long)limit, (long long)n);
  CabTensor **result = bind_new_tensor(L), **wide = bind_new_tensor(L);
  BIND_FILL(L, wide, cab_tensor_new(cab_cpu(), CAB_F64, 1, &n));
  double *p = cab_tensor_data(*wide);
  for (int64_t i = 0; i < n; i++) p[i] = (double)i;
  BIND_FILL(L, result, cab_tensor_to(*wide, device, dtype));
  cab_tensor_close(*wide, "");
  lua_pop(L, 1);
  return 1;
}

/* ---- random: element i depends on (seed, stream, i) alone; between devices the last digits may differ ---- */

static CabRng rng_at(lua_State *L, int idx) {
  CabRng rng = {.seed = (uint64_t)bind_check_int(L, idx)};
  if (lua_type(L, idx + 1) == LUA_TSTRING) rng.stream = cab_hash_name(bind_check_path(L, idx + 1));
  else rng.stream = (uint64_t)bind_check_int(L, idx + 1);
  return rng;
}

enum { UNIFORM, NORMAL, TRUNCATED };

/* t is fresh, so contiguous. p = {low, high}, {mean, deviation} or {mean, deviation, low, high}. */
static CabStatus random_fill(CabTensor *t, int kind, CabRng rng, const double *p) {
  static const char *const names[] = {"random_uniform", "random_normal", "random_trunc_normal"};
  void *twin = cab_twin(t->storage->device, t->dtype, names[kind]), *y = cab_tensor_data(t);
  struct CabStream *stream = t->storage->device->stream;
  int64_t n = cab_tensor_count(t);
  if (!twin) return cab_error()->code;
  if (n == 0) return CAB_OK;
  if (kind == UNIFORM) ((random_uniform_fn *)twin)(stream, n, rng.seed, rng.stream, p[0], p[1], y);
  else if (kind == NORMAL) ((random_normal_fn *)twin)(stream, n, rng.seed, rng.stream, p[0], p[1], y);
  else ((random_trunc_normal_fn *)twin)(stream, n, rng.seed, rng.stream, p[0], p[1], p[2], p[3], y);
  return cab_launched(t->storage->device, names[kind]);
}

static int make_random(lua_State *L, int kind, int parameters) {
  double p[4] = {0};
  bind_refuse_capture(L, "drawing random numbers"); /* each replay would have the same */
  for (int i = 0; i < parameters; i++) {
    p[i] = bind_check_number(L, 2 + i);
    if (!isfinite(p[i])) bind_arg_error(L, 2 + i, "finite number expected, got %g", p[i]);
  }
  if (kind == TRUNCATED && !(p[2] < p[3])) bind_arg_error(L, 4, "low %g is not below high %g", p[2], p[3]);
  CabRng rng = rng_at(L, 2 + parameters);
  CabTensor *t = allocate(L, 4 + parameters, CAB_F32, false);
  if (t->dtype != CAB_F32 && t->dtype != CAB_F64)
    bind_fail(L, CAB_E_LUA, "%s: f32 or f64 expected, got %s", bind_function(L), cab_dtype_name(t->dtype));
  BIND_TRY(L, random_fill(t, kind, rng, p));
  return 1;
}

static int make_uniform(lua_State *L) { return make_random(L, UNIFORM, 2); }
static int make_normal(lua_State *L) { return make_random(L, NORMAL, 2); }
static int make_trunc_normal(lua_State *L) { return make_random(L, TRUNCATED, 4); }

void bind_tensor_make(lua_State *L) {
  static const luaL_Reg functions[] = {
      {"tensor", make_tensor}, {"zeros", make_zeros},     {"empty", make_empty},   {"ones", make_ones},
      {"full", make_full},     {"arange", make_arange},   {"uniform", make_uniform}, {"normal", make_normal},
      {"trunc_normal", make_trunc_normal}, {NULL, NULL}};
  luaL_setfuncs(L, functions, 0);
}
