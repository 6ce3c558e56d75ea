/* bind_data.c - core.data: datasets, loaders, transforms and subsets. Indices and labels count from 0, as class ids do;
 * records asked for by number (ds:image(i)) count from 1, as Lua does. */
#include <string.h>

#include "bind.h"
#include "dataset.h"

typedef struct {
  CabDataset *ds; /* NULL: closed */
} Set;

/* The batch in hand stays pending until its tensors exist: out of memory loses no batch. */
typedef struct {
  CabLoader *loader; /* NULL: closed */
  CabTransform transform;
  int count;
  bool pending;
  const void *images;
  const int32_t *labels;
} Loader;

static CabDataset *check_set(lua_State *L) {
  Set *s = luaL_testudata(L, 1, BIND_DATASET);
  if (!s) bind_arg_error(L, 1, "dataset expected, got %s", bind_type_name(L, 1));
  if (!s->ds) bind_fail(L, CAB_E_LUA, "dataset is closed");
  return s->ds;
}

static Loader *check_loader(lua_State *L) {
  Loader *l = luaL_testudata(L, 1, BIND_LOADER);
  if (!l) bind_arg_error(L, 1, "loader expected, got %s", bind_type_name(L, 1));
  if (!l->loader) bind_fail(L, CAB_E_LUA, "loader is closed");
  return l;
}

/* A list of strings at `key` as an array in a userdata pushed on the stack; NULL (nil pushed) if absent. */
static const char **string_list(lua_State *L, int table, const char *key, int *count) {
  *count = 0;
  if (lua_getfield(L, table, key) == LUA_TNIL) return NULL;
  if (lua_type(L, -1) != LUA_TTABLE)
    bind_fail(L, CAB_E_LUA, "open: '%s': list of strings expected, got %s", key, bind_type_name(L, -1));
  int list = lua_gettop(L);
  lua_Unsigned n = lua_rawlen(L, list);
  if (n < 1 || n > 1 << 20) bind_fail(L, CAB_E_LUA, "open: '%s' has %d items", key, (int)n);
  const char **out = lua_newuserdatauv(L, n * sizeof *out, 0);
  for (lua_Unsigned i = 0; i < n; i++) {
    size_t length;
    if (lua_rawgeti(L, list, (lua_Integer)i + 1) != LUA_TSTRING)
      bind_fail(L, CAB_E_LUA, "open: '%s' item %d: string expected, got %s", key, (int)i + 1, bind_type_name(L, -1));
    out[i] = lua_tolstring(L, -1, &length);
    if (strlen(out[i]) != length || !length) bind_fail(L, CAB_E_LUA, "open: '%s' item %d is empty or holds a NUL byte", key, (int)i + 1);
    lua_pop(L, 1); /* the list keeps it */
  }
  *count = (int)n;
  return out;
}

static const char *needed(lua_State *L, const char *key) {
  const char *s = bind_opt_string(L, 1, key, NULL);
  if (!s || !*s) bind_fail(L, CAB_E_LUA, "open: '%s' is missing", key);
  return s;
}

/* core.data.open{kind="idx", images=path, labels=path} | {kind="cifar", files={..}} | {kind="folder", root=path};
 * names={..} fixes the classes and their order. -> dataset */
static int open_set(lua_State *L) {
  static const char *const kinds[] = {"idx", "cifar", "folder", NULL};
  static const char *const known[3][6] = {{"kind", "images", "labels", "names", NULL}, {"kind", "files", "names", NULL}, {"kind", "root", "names", NULL}};
  int classes, files = 0;
  bind_check_table(L, 1);
  lua_settop(L, 1);
  needed(L, "kind");
  int kind = bind_opt_word(L, 1, "kind", NULL, kinds);
  bind_unknown_keys(L, 1, known[kind]);
  Set *s = lua_newuserdatauv(L, sizeof *s, 0);
  s->ds = NULL;
  luaL_setmetatable(L, BIND_DATASET);
  const char **names = string_list(L, 1, "names", &classes);
  const char *first = kind == 0 ? needed(L, "images") : kind == 2 ? needed(L, "root") : NULL;
  const char *second = kind == 0 ? needed(L, "labels") : NULL;
  const char **paths = kind == 1 ? string_list(L, 1, "files", &files) : NULL;
  if (kind == 1 && !paths) bind_fail(L, CAB_E_LUA, "open: 'files' is missing");
  for (int attempt = 0; !s->ds && attempt < 2; attempt++) {
    if (kind == 0) s->ds = cab_idx_open(first, second, classes, names);
    else if (kind == 1) s->ds = cab_cifar_open(files, paths, classes, names);
    else s->ds = cab_folder_open(first, classes, names);
    if (!s->ds && (attempt || !bind_collect(L))) bind_raise(L, cab_error()->code);
  }
  lua_settop(L, 2);
  return 1;
}

static int set_close(lua_State *L) {
  Set *s = luaL_testudata(L, 1, BIND_DATASET);
  if (!s) bind_arg_error(L, 1, "dataset expected, got %s", bind_type_name(L, 1));
  cab_dataset_release(s->ds);
  s->ds = NULL;
  return 0;
}

static int set_count(lua_State *L) { return lua_pushinteger(L, check_set(L)->count), 1; }
static int set_classes(lua_State *L) { return lua_pushinteger(L, check_set(L)->classes), 1; }
static int set_channels(lua_State *L) { return lua_pushinteger(L, check_set(L)->channels), 1; }
static int set_ignored(lua_State *L) { return lua_pushinteger(L, check_set(L)->ignored), 1; }

/* ds:size() -> height, width; nothing where images differ */
static int set_size(lua_State *L) {
  const CabDataset *ds = check_set(L);
  if (!ds->width) return 0;
  lua_pushinteger(L, ds->height);
  lua_pushinteger(L, ds->width);
  return 2;
}

/* ds:names() -> list of class names, or nil */
static int set_names(lua_State *L) {
  const CabDataset *ds = check_set(L);
  if (!ds->names) return lua_pushnil(L), 1;
  lua_createtable(L, ds->classes, 0);
  for (int i = 0; i < ds->classes; i++) {
    lua_pushstring(L, ds->names[i]);
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

static void push_ints(lua_State *L, const int32_t *values, int64_t count) {
  CabTensor **slot = bind_new_tensor(L);
  BIND_FILL(L, slot, cab_tensor_new(cab_cpu(), CAB_I32, 1, &count));
  if (count) memcpy(cab_tensor_data(*slot), values, (size_t)count * sizeof *values);
}

/* ds:labels() -> i32[count] */
static int set_labels(lua_State *L) {
  const CabDataset *ds = check_set(L);
  push_ints(L, ds->labels, ds->count);
  return 1;
}

/* Owns what a call holds while Lua may raise. */
typedef struct {
  CabImage image;
  int32_t *ints;
  CabTensor *plain;
} Hold;
static int hold_gc(lua_State *L) {
  Hold *h = luaL_testudata(L, 1, "cab.hold");
  if (!h) return 0;
  cab_image_free(&h->image);
  cab_free(h->ints);
  cab_tensor_release(h->plain);
  h->ints = NULL, h->plain = NULL;
  return 0;
}
static Hold *new_hold(lua_State *L) {
  Hold *h = lua_newuserdatauv(L, sizeof *h, 0);
  *h = (Hold){0};
  luaL_setmetatable(L, "cab.hold");
  return h;
}

/* ds:image(i) -> u8[H,W,C], label */
static int set_image(lua_State *L) {
  CabDataset *ds = check_set(L);
  int64_t i = bind_check_int(L, 2);
  if (i < 1 || i > ds->count) bind_arg_error(L, 2, "record %lld of %lld", (long long)i, (long long)ds->count);
  Hold *h = new_hold(L);
  CabTensor **slot = bind_new_tensor(L);
  BIND_TRY(L, ds->kind->fetch(ds, i - 1, NULL, &h->image));
  int64_t shape[3] = {h->image.height, h->image.width, h->image.channels};
  BIND_FILL(L, slot, cab_tensor_new(cab_cpu(), CAB_U8, 3, shape));
  memcpy(cab_tensor_data(*slot), h->image.pixels, (size_t)(shape[0] * shape[1] * shape[2]));
  cab_image_free(&h->image);
  lua_pushinteger(L, ds->labels[i - 1]);
  return 2;
}

/* ---- transforms ------------------------------------------------------------------------------ */

/* Numbers at `key`: a list of `count` (or of one, repeated), or one number. Absent: out unchanged. */
static void number_list(lua_State *L, int table, const char *key, int count, bool repeat, double *out) {
  int type = lua_getfield(L, table, key);
  if (type == LUA_TNUMBER && repeat) {
    for (int i = 0; i < count; i++) out[i] = lua_tonumber(L, -1);
  } else if (type == LUA_TTABLE) {
    lua_Unsigned n = lua_rawlen(L, -1);
    if (n != (lua_Unsigned)count && !(repeat && n == 1))
      bind_fail(L, CAB_E_LUA, "transform: '%s' has %d numbers, expected %d", key, (int)n, count);
    for (int i = 0; i < count; i++) {
      if (lua_rawgeti(L, -1, n == 1 ? 1 : i + 1) != LUA_TNUMBER)
        bind_fail(L, CAB_E_LUA, "transform: '%s' item %d: number expected, got %s", key, i + 1, bind_type_name(L, -1));
      out[i] = lua_tonumber(L, -1);
      lua_pop(L, 1);
    }
  } else if (type != LUA_TNIL)
    bind_fail(L, CAB_E_LUA, "transform: '%s': list of numbers expected, got %s", key, bind_type_name(L, -1));
  lua_pop(L, 1);
}

static int small_int(lua_State *L, int table, const char *key, int initial) {
  int64_t v = bind_opt_int(L, table, key, initial);
  if (v < 0 || v > 1 << 20) bind_fail(L, CAB_E_LUA, "%s: '%s' is %lld", bind_function(L), key, (long long)v);
  return (int)v;
}

/* {dtype = "f32"|"u8", size, resize, crop = "center"|"random"|"resized", pad, flip, mean, std, channels, interpolation, scale, ratio} at idx or nil */
static CabTransform read_transform(lua_State *L, int idx, int size, int channels) {
  static const char *const known[] = {"size", "resize", "crop", "pad", "flip", "mean", "std", "channels", "interpolation", "scale", "ratio", "dtype", NULL};
  static const char *const dtypes[] = {"f32", "u8", NULL};
  static const char *const crops[] = {"none", "center", "random", "resized", NULL};
  static const char *const filters[] = {"bicubic", "bilinear", NULL};
  CabTransform t = {.size = size, .channels = channels, .deviation = {1, 1, 1}, .scale = {0.08, 1}, .ratio = {3.0 / 4, 4.0 / 3}};
  double mean[3] = {0}, deviation[3] = {1, 1, 1};
  if (!lua_isnoneornil(L, idx)) {
    bind_check_table(L, idx);
    bind_unknown_keys(L, idx, known);
    t.size = small_int(L, idx, "size", size);
    t.channels = small_int(L, idx, "channels", channels);
    t.resize = small_int(L, idx, "resize", 0);
    t.pad = small_int(L, idx, "pad", 0);
    t.flip = bind_opt_bool(L, idx, "flip", false);
    t.bytes = bind_opt_word(L, idx, "dtype", "f32", dtypes) == 1;
    t.crop = (CabCrop)bind_opt_word(L, idx, "crop", "none", crops);
    t.filter = (CabFilter)bind_opt_word(L, idx, "interpolation", "bicubic", filters);
    if (t.channels != 1 && t.channels != 3) bind_fail(L, CAB_E_LUA, "transform: 'channels' is %d, expected 1 or 3", t.channels);
    number_list(L, idx, "mean", t.channels, true, mean);
    number_list(L, idx, "std", t.channels, true, deviation);
    number_list(L, idx, "scale", 2, false, t.scale);
    number_list(L, idx, "ratio", 2, false, t.ratio);
    for (int c = 0; c < 3; c++) t.mean[c] = (float)mean[c], t.deviation[c] = (float)deviation[c];
  }
  if (!t.size) bind_fail(L, CAB_E_LUA, "transform: 'size' is missing: images differ in size");
  return t;
}

/* core.data.transform(image u8[H,W] or [H,W,C], {...} [, seed=0, epoch=0, sample=0]) -> f32[C,S,S], or u8 with dtype = "u8":
 * pixels that are not normalised */
static int transform(lua_State *L) {
  CabTensor *t = bind_check_tensor(L, 1);
  char text[160];
  CabDraw draw = {0};
  lua_settop(L, 5);
  if (!lua_isnil(L, 3)) draw.seed = (uint64_t)bind_check_int(L, 3);
  if (!lua_isnil(L, 4)) draw.epoch = (uint64_t)bind_check_int(L, 4);
  if (!lua_isnil(L, 5)) draw.sample = (uint64_t)bind_check_int(L, 5);
  int channels = t->rank == 3 ? (int)t->shape[2] : 1;
  if (t->dtype != CAB_U8 || t->rank < 2 || t->rank > 3 || (channels != 1 && channels != 3) || t->shape[0] < 1 || t->shape[1] < 1 ||
      t->shape[0] > CAB_IMAGE_MAX_SIDE || t->shape[1] > CAB_IMAGE_MAX_SIDE)
    bind_arg_error(L, 1, "expected u8[H,W] or u8[H,W,3], got %s", cab_shape_text(t, text));
  CabTransform how = read_transform(L, 2, t->shape[0] == t->shape[1] ? (int)t->shape[0] : 0, channels);
  BIND_TRY(L, cab_transform_check(&how));
  Hold *h = new_hold(L);
  CabTensor **slot = bind_new_tensor(L);
  int64_t shape[3] = {how.channels, how.size, how.size};
  BIND_FILL(L, slot, cab_tensor_new(cab_cpu(), how.bytes ? CAB_U8 : CAB_F32, 3, shape));
  BIND_FILL(L, &h->plain, t->storage->device == cab_cpu() ? cab_tensor_contiguous_copy(t) : cab_tensor_to(t, cab_cpu(), CAB_U8));
  CabImage image = {(int)t->shape[1], (int)t->shape[0], channels, cab_tensor_data(h->plain), NULL};
  BIND_TRY(L, cab_transform_apply(&how, draw, &image, cab_tensor_data(*slot)));
  return 1;
}

/* ---- loader ---------------------------------------------------------------------------------- */

/* core.data.loader{dataset=, indices=i32[n], batch=, seed=0, epoch=0, shuffle=false, threads=2, transform={..}, start=0,
 * on_bad="error"|"skip", tolerant=false, drop_last=false} -> loader */
static int open_loader(lua_State *L) {
  static const char *const known[] = {"dataset", "indices", "batch", "seed", "epoch", "shuffle", "threads", "transform", "start",
                                      "on_bad", "tolerant", "drop_last", NULL};
  static const char *const bad[] = {"error", "skip", NULL};
  static const int32_t nothing; /* an empty list is not an absent one */
  char text[160];
  bind_check_table(L, 1);
  lua_settop(L, 1);
  bind_unknown_keys(L, 1, known);
  lua_getfield(L, 1, "dataset");
  Set *s = luaL_testudata(L, 2, BIND_DATASET);
  if (!s || !s->ds) bind_fail(L, CAB_E_LUA, "loader: 'dataset': dataset expected, got %s", s ? "a closed one" : bind_type_name(L, 2));
  lua_getfield(L, 1, "transform");
  bool square = s->ds->width == s->ds->height;
  CabLoaderOptions o = {.dataset = s->ds, .transform = read_transform(L, 3, square ? s->ds->width : 0, s->ds->channels)};
  if (!(o.batch = small_int(L, 1, "batch", 0))) bind_fail(L, CAB_E_LUA, "loader: 'batch' is missing");
  o.threads = small_int(L, 1, "threads", 2);
  o.seed = (uint64_t)bind_opt_int(L, 1, "seed", 0);
  o.epoch = (uint64_t)bind_opt_int(L, 1, "epoch", 0);
  o.start = bind_opt_int(L, 1, "start", 0);
  o.shuffle = bind_opt_bool(L, 1, "shuffle", false);
  o.tolerant = bind_opt_bool(L, 1, "tolerant", false);
  o.drop_last = bind_opt_bool(L, 1, "drop_last", false);
  o.skip_bad = bind_opt_word(L, 1, "on_bad", "error", bad) == 1;
  CabTensor *indices = bind_opt_tensor(L, 1, "indices");
  if (indices && (indices->dtype != CAB_I32 || indices->rank != 1 || indices->storage->device != cab_cpu() || !cab_tensor_contiguous(indices)))
    bind_fail(L, CAB_E_LUA, "loader: 'indices' is %s, expected contiguous i32[n] on the cpu", cab_shape_text(indices, text));
  if (indices) o.count = indices->shape[0], o.indices = o.count ? cab_tensor_data(indices) : &nothing;
  Loader *l = lua_newuserdatauv(L, sizeof *l, 0);
  *l = (Loader){.transform = o.transform};
  luaL_setmetatable(L, BIND_LOADER);
  if (!(l->loader = cab_loader_open(&o)) && bind_collect(L)) l->loader = cab_loader_open(&o);
  if (!l->loader) bind_raise(L, cab_error()->code);
  return 1;
}

static void await_batch(lua_State *L, Loader *l) {
  if (l->pending) return;
  BIND_TRY(L, cab_loader_next(l->loader, &l->count, &l->images, &l->labels));
  l->pending = true;
}

/* loader:next() -> f32[b,C,S,S] (u8 where the transform says so), i32[b]; nil at the end */
static int loader_next(lua_State *L) {
  Loader *l = check_loader(L);
  CabTensor **images = bind_new_tensor(L), **labels = bind_new_tensor(L);
  await_batch(L, l);
  if (l->count == 0) return lua_pushnil(L), 1;
  const CabTransform *t = &l->transform;
  int64_t shape[4] = {l->count, t->channels, t->size, t->size};
  BIND_FILL(L, images, cab_tensor_new(cab_cpu(), t->bytes ? CAB_U8 : CAB_F32, 4, shape));
  BIND_FILL(L, labels, cab_tensor_new(cab_cpu(), CAB_I32, 1, shape));
  memcpy(cab_tensor_data(*images), l->images, (size_t)l->count * cab_transform_size(t));
  memcpy(cab_tensor_data(*labels), l->labels, (size_t)l->count * sizeof(int32_t));
  l->pending = false;
  return 2;
}

static bool holds(const CabTensor *t, CabDtype dtype, int rank, const int64_t *shape) {
  return t->dtype == dtype && t->rank == rank && !memcmp(t->shape, shape, (size_t)rank * sizeof *shape) && cab_tensor_contiguous(t);
}

static void write_batch(lua_State *L, CabTensor *t, const void *from, size_t bytes) {
  CabDevice *device = t->storage->device;
  char where[48];
  CabStatus status = device->copy(device, cab_tensor_data(t), from, bytes, 1);
  if (status) bind_raise(L, status);
  cab_tensor_touch(t, bind_where(L, where));
}

/* loader:into(images, labels) -> true: the next batch lies there, on whatever device; false: it has another shape, or there is
 * none: next() tells. */
static int loader_into(lua_State *L) {
  Loader *l = check_loader(L);
  CabTensor *images = bind_check_tensor(L, 2), *labels = bind_check_tensor(L, 3);
  const CabTransform *t = &l->transform;
  await_batch(L, l);
  int64_t shape[4] = {l->count, t->channels, t->size, t->size};
  bool fits = l->count && holds(images, t->bytes ? CAB_U8 : CAB_F32, 4, shape) && holds(labels, CAB_I32, 1, shape);
  if (fits) {
    write_batch(L, images, l->images, (size_t)l->count * cab_transform_size(t));
    write_batch(L, labels, l->labels, (size_t)l->count * sizeof(int32_t));
    l->pending = false;
  }
  return lua_pushboolean(L, fits), 1;
}

static int loader_close(lua_State *L) {
  Loader *l = luaL_testudata(L, 1, BIND_LOADER);
  if (!l) bind_arg_error(L, 1, "loader expected, got %s", bind_type_name(L, 1));
  CabLoader *loader = l->loader;
  l->loader = NULL;
  cab_loader_close(loader);
  return 0;
}

static int loader_batches(lua_State *L) { return lua_pushinteger(L, cab_loader_batches(check_loader(L)->loader)), 1; }
static int loader_wait(lua_State *L) { return lua_pushnumber(L, cab_loader_wait(check_loader(L)->loader)), 1; }
static int loader_skipped(lua_State *L) { return lua_pushinteger(L, cab_loader_skipped(check_loader(L)->loader)), 1; }
static int loader_warnings(lua_State *L) { return lua_pushinteger(L, cab_loader_warnings(check_loader(L)->loader)), 1; }

/* core.data.subset(labels i32[n], fraction, seed) -> i32 indices, sorted; smaller fractions of a seed lie in larger ones */
static int subset(lua_State *L) {
  char text[160];
  CabTensor *labels = bind_check_tensor(L, 1);
  double fraction = bind_check_number(L, 2);
  int64_t seed = lua_isnoneornil(L, 3) ? 0 : bind_check_int(L, 3), count;
  if (labels->dtype != CAB_I32 || labels->rank != 1 || labels->storage->device != cab_cpu() || !cab_tensor_contiguous(labels))
    bind_arg_error(L, 1, "expected contiguous i32[n] on the cpu, got %s", cab_shape_text(labels, text));
  Hold *h = new_hold(L);
  BIND_TRY(L, cab_subset(cab_tensor_data(labels), labels->shape[0], fraction, (uint64_t)seed, &h->ints, &count));
  push_ints(L, h->ints, count);
  cab_free(h->ints);
  h->ints = NULL;
  return 1;
}

static void make_class(lua_State *L, const char *meta, const char *shown, lua_CFunction close, const luaL_Reg *methods) {
  if (luaL_newmetatable(L, meta)) {
    lua_pushcfunction(L, close), lua_setfield(L, -2, "__gc");
    lua_pushcfunction(L, close), lua_setfield(L, -2, "__close");
    lua_newtable(L);
    luaL_setfuncs(L, methods, 0);
    lua_setfield(L, -2, "__index");
    lua_pushstring(L, shown), lua_setfield(L, -2, "__metatable");
  }
  lua_pop(L, 1);
}

void bind_data(lua_State *L) {
  static const luaL_Reg set[] = {{"count", set_count}, {"classes", set_classes}, {"channels", set_channels}, {"size", set_size},
                                 {"names", set_names}, {"labels", set_labels}, {"image", set_image}, {"ignored", set_ignored},
                                 {"close", set_close}, {NULL, NULL}};
  static const luaL_Reg loader[] = {{"next", loader_next}, {"into", loader_into}, {"close", loader_close}, {"batches", loader_batches}, {"wait", loader_wait},
                                    {"skipped", loader_skipped}, {"warnings", loader_warnings}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"open", open_set}, {"loader", open_loader}, {"subset", subset}, {"transform", transform}, {NULL, NULL}};
  make_class(L, BIND_DATASET, "dataset", set_close, set);
  make_class(L, BIND_LOADER, "loader", loader_close, loader);
  if (luaL_newmetatable(L, "cab.hold")) lua_pushcfunction(L, hold_gc), lua_setfield(L, -2, "__gc");
  lua_pop(L, 1);
  lua_newtable(L);
  luaL_setfuncs(L, functions, 0);
  lua_setfield(L, -2, "data");
}
