/* bind_io.c - weight files and images for Lua. */
#include <string.h>

#include "bind.h"
#include "image.h"
#include "weights.h"

#define META_FILE "cab.safetensors"
#define META_IMAGE "cab.image"

/* An open weight file; the collector closes it when an error passes by. */
static int open_gc(lua_State *L) {
  CabWeights *w = luaL_testudata(L, 1, META_FILE);
  if (w) cab_weights_close(w);
  return 0;
}

/* The file of (path [, key]), above them on the stack. */
static CabWeights *open_file(lua_State *L) {
  const char *path = bind_check_path(L, 1), *key = lua_isnoneornil(L, 2) ? NULL : bind_check_path(L, 2);
  lua_settop(L, 2);
  CabWeights *w = lua_newuserdatauv(L, sizeof *w, 0);
  *w = (CabWeights){.file = {.fd = -1}};
  luaL_setmetatable(L, META_FILE);
  BIND_TRY(L, cab_weights_open(path, key, w));
  return w;
}

/* Pushes the metadata and closes the file. */
static void finish_file(lua_State *L, CabWeights *w) {
  BIND_TRY(L, cab_file_unchanged(&w->file));
  lua_createtable(L, 0, w->metadata_count < 1 << 16 ? w->metadata_count : 0);
  for (int i = 0; i < w->metadata_count; i++) {
    lua_pushstring(L, w->metadata[i].value);
    lua_setfield(L, -2, w->metadata[i].key);
  }
  cab_weights_close(w);
}

/* core.load(path [, key]) -> {name = tensor}, {key = string}: all of the file or an error. key: weights.h */
static int load(lua_State *L) {
  CabWeights *w = open_file(L);
  lua_createtable(L, 0, w->count < 1 << 16 ? w->count : 0);
  for (int i = 0; i < w->count; i++) {
    CabTensor **slot = bind_new_tensor(L);
    BIND_FILL(L, slot, cab_weights_read(w, w->order[i]));
    lua_setfield(L, 4, w->weight[w->order[i]].name);
  }
  finish_file(L, w);
  return 2;
}

static void push_weight(lua_State *L, const CabWeight *v, const CabRange *range) {
  lua_createtable(L, 0, 8);
  lua_pushstring(L, v->name), lua_setfield(L, -2, "name");
  lua_pushstring(L, cab_stored[v->stored].safetensors), lua_setfield(L, -2, "stored");
  lua_pushstring(L, cab_dtype_name(cab_stored[v->stored].dtype)), lua_setfield(L, -2, "dtype");
  lua_pushnumber(L, range->min), lua_setfield(L, -2, "min");
  lua_pushnumber(L, range->max), lua_setfield(L, -2, "max");
  lua_pushinteger(L, (lua_Integer)range->nan), lua_setfield(L, -2, "nan");
  lua_pushinteger(L, (lua_Integer)range->infinite), lua_setfield(L, -2, "infinite");
  lua_createtable(L, v->rank, 0);
  for (int d = 0; d < v->rank; d++) {
    lua_pushinteger(L, v->shape[d]);
    lua_rawseti(L, -2, d + 1);
  }
  lua_setfield(L, -2, "shape");
}

/* core.inspect(path [, key]) -> list by name of {name, stored: format in the file, dtype: what it loads as, shape, min, max (of
 * finite values as stored), nan, infinite}, {key = string} */
static int inspect(lua_State *L) {
  CabWeights *w = open_file(L);
  lua_createtable(L, w->count < 1 << 16 ? w->count : 0, 0);
  for (int i = 0; i < w->count; i++) {
    CabRange range;
    BIND_TRY(L, cab_weights_range(w, w->order[i], &range));
    push_weight(L, &w->weight[w->order[i]], &range);
    lua_rawseti(L, 4, w->order[i] + 1);
  }
  finish_file(L, w);
  return 2;
}

/* A string key or value without NUL at idx; `what` for the message. The table at `arg` holds it. */
static const char *plain_string(lua_State *L, int idx, int arg, const char *what) {
  size_t length;
  if (lua_type(L, idx) != LUA_TSTRING) bind_arg_error(L, arg, "%s: string expected, got %s", what, bind_type_name(L, idx));
  const char *s = lua_tolstring(L, idx, &length);
  if (strlen(s) != length) bind_arg_error(L, arg, "%s holds a NUL byte", what);
  return s;
}

static int pairs_in(lua_State *L, int table) {
  int count = 0;
  for (lua_pushnil(L); lua_next(L, table); lua_pop(L, 1)) count++;
  return count;
}

/* core.save(path, {name = tensor} [, {key = string}]): atomic */
static int save(lua_State *L) {
  const char *path = bind_check_path(L, 1);
  bind_check_table(L, 2);
  lua_settop(L, 3);
  bool has_metadata = !lua_isnil(L, 3);
  if (has_metadata) bind_check_table(L, 3);
  int count = pairs_in(L, 2), metadata_count = has_metadata ? pairs_in(L, 3) : 0, n = 0, m = 0;
  CabStEntry *entries = lua_newuserdatauv(L, ((size_t)count + 1) * sizeof *entries, 0);
  CabStMeta *metadata = lua_newuserdatauv(L, ((size_t)metadata_count + 1) * sizeof *metadata, 0);
  for (lua_pushnil(L); n < count && lua_next(L, 2); lua_pop(L, 1)) {
    char shown[340];
    const char *name = plain_string(L, -2, 2, "tensor name");
    CabTensor *t = bind_test_tensor(L, -1);
    if (!t || !t->storage)
      bind_arg_error(L, 2, "'%s': tensor expected, got %s", cab_escape(name, strlen(name), shown), bind_type_name(L, -1));
    entries[n++] = (CabStEntry){name, t};
  }
  lua_settop(L, 5);
  for (lua_pushnil(L); m < metadata_count && lua_next(L, 3); lua_pop(L, 1))
    metadata[m++] = (CabStMeta){plain_string(L, -2, 3, "metadata key"), plain_string(L, -1, 3, "metadata value"), 0};
  BIND_TRY(L, cab_st_save(path, n, entries, m, metadata));
  return 0;
}

/* ---- images ---------------------------------------------------------------------------------- */

/* Owns a decoded image, file bytes or an encoded image until its call ends. */
typedef struct {
  CabImage image;
  CabBytes bytes;
  CabTensor *plain;
} Work;

static int work_gc(lua_State *L) {
  Work *w = luaL_testudata(L, 1, META_IMAGE);
  if (!w) return 0;
  cab_image_free(&w->image);
  cab_bytes_free(&w->bytes);
  cab_tensor_release(w->plain);
  w->plain = NULL;
  return 0;
}

static Work *new_work(lua_State *L) {
  Work *w = lua_newuserdatauv(L, sizeof *w, 0);
  *w = (Work){0};
  luaL_setmetatable(L, META_IMAGE);
  return w;
}

/* u8 [H,W] or [H,W,3] as an image; w->plain keeps the pixels. */
static void image_of(lua_State *L, int arg, CabTensor *t, Work *w) {
  char text[160];
  bool fits = t->dtype == CAB_U8 && (t->rank == 2 || (t->rank == 3 && (t->shape[2] == 3 || t->shape[2] == 1)));
  for (int i = 0; fits && i < 2; i++) fits = t->shape[i] > 0 && t->shape[i] <= CAB_IMAGE_MAX_SIDE;
  if (!fits) bind_arg_error(L, arg, "expected u8[H,W] or u8[H,W,3], sides up to %d, got %s", CAB_IMAGE_MAX_SIDE, cab_shape_text(t, text));
  BIND_FILL(L, &w->plain, t->storage->device == cab_cpu() ? cab_tensor_contiguous_copy(t) : cab_tensor_to(t, cab_cpu(), CAB_U8));
  w->image = (CabImage){.width = (int)t->shape[1], .height = (int)t->shape[0], .channels = t->rank == 3 ? (int)t->shape[2] : 1,
                        .pixels = cab_tensor_data(w->plain)};
}

/* core.write_png(path, tensor): u8 [H,W] or [H,W,3]; atomic */
static int write_png(lua_State *L) {
  const char *path = bind_check_path(L, 1);
  CabTensor *t = bind_check_tensor(L, 2);
  Work *w = new_work(L);
  image_of(L, 2, t, w);
  BIND_TRY(L, cab_png_encode(&w->image, &w->bytes));
  BIND_TRY(L, cab_write_file(path, w->bytes.data, w->bytes.length));
  cab_bytes_free(&w->bytes);
  return 0;
}

/* core.read_image(path [, {tolerant = false}]) -> u8 [H,W,C], number of tolerated warnings */
static int read_image(lua_State *L) {
  static const char *const known[] = {"tolerant", NULL};
  const char *path = bind_check_path(L, 1);
  bool tolerant = false;
  int warnings = 0;
  if (!lua_isnoneornil(L, 2)) {
    bind_check_table(L, 2);
    bind_unknown_keys(L, 2, known);
    tolerant = bind_opt_bool(L, 2, "tolerant", false);
  }
  Work *w = new_work(L);
  CabTensor **slot = bind_new_tensor(L);
  BIND_TRY(L, cab_read_file(path, CAB_IMAGE_MAX_FILE, &w->bytes));
  BIND_TRY(L, cab_image_decode(w->bytes.data, w->bytes.length, path, tolerant ? &warnings : NULL, &w->image));
  cab_bytes_free(&w->bytes);
  int64_t shape[3] = {w->image.height, w->image.width, w->image.channels};
  BIND_FILL(L, slot, cab_tensor_new(cab_cpu(), CAB_U8, 3, shape));
  memcpy(cab_tensor_data(*slot), w->image.pixels, (size_t)(shape[0] * shape[1] * shape[2]));
  cab_image_free(&w->image);
  lua_pushinteger(L, warnings);
  return 2;
}

void bind_io(lua_State *L) {
  static const luaL_Reg functions[] = {{"load", load}, {"save", save}, {"inspect", inspect}, {"write_png", write_png},
                                       {"read_image", read_image}, {NULL, NULL}};
  if (luaL_newmetatable(L, META_FILE)) {
    lua_pushcfunction(L, open_gc);
    lua_setfield(L, -2, "__gc");
  }
  lua_pop(L, 1);
  if (luaL_newmetatable(L, META_IMAGE)) {
    lua_pushcfunction(L, work_gc);
    lua_setfield(L, -2, "__gc");
  }
  lua_pop(L, 1);
  luaL_setfuncs(L, functions, 0);
}
