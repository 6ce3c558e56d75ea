/* bind_loader.c - core.data: transforms and loaders. */
#include <string.h>

#include "bind_data.h"

/* The batch in hand stays pending until its tensors exist: out of memory loses no batch. */
typedef struct {
  CabLoader *loader; /* NULL: closed */
  CabTransform transform;
  int classes;
  bool pending;
  CabBatch batch;
} Loader;

static Loader *check_loader(lua_State *L) {
  Loader *l = luaL_testudata(L, 1, BIND_LOADER);
  if (!l) bind_arg_error(L, 1, "loader expected, got %s", bind_type_name(L, 1));
  if (!l->loader) bind_fail(L, CAB_E_LUA, "loader is closed");
  return l;
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

/* {layers, magnitude, spread, chance: RandAugment; three: 3-Augment; jitter = {brightness, contrast, saturation}; erase} in `table` */
static CabAugment read_augment(lua_State *L, int table) {
  static const char *const known[] = {"layers", "magnitude", "spread", "chance", "three", "jitter", "erase", NULL};
  CabAugment a = {.chance = 0.5};
  if (lua_getfield(L, table, "augment") != LUA_TNIL) {
    int at = lua_gettop(L);
    bind_check_table(L, at);
    bind_unknown_keys(L, at, known);
    a.layers = small_int(L, at, "layers", 0);
    a.magnitude = bind_opt_number(L, at, "magnitude", 0);
    a.spread = bind_opt_number(L, at, "spread", 0);
    a.chance = bind_opt_number(L, at, "chance", 0.5);
    a.three = bind_opt_bool(L, at, "three", false);
    number_list(L, at, "jitter", 3, true, a.jitter);
    a.erase = bind_opt_number(L, at, "erase", 0);
  }
  lua_pop(L, 1);
  return a;
}

/* {dtype = "f32"|"u8", size, resize, crop = "center"|"random"|"resized", pad, flip, mean, std, channels, interpolation, scale,
 * ratio, draft, augment = {...}} at idx or nil */
static CabTransform read_transform(lua_State *L, int idx, int size, int channels) {
  static const char *const known[] = {"size", "resize", "crop", "pad", "flip", "mean", "std", "channels", "interpolation", "scale", "ratio",
                                      "dtype", "draft", "augment", NULL};
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
    t.draft = bind_opt_bool(L, idx, "draft", false);
    t.bytes = bind_opt_word(L, idx, "dtype", "f32", dtypes) == 1;
    t.crop = (CabCrop)bind_opt_word(L, idx, "crop", "none", crops);
    t.filter = (CabFilter)bind_opt_word(L, idx, "interpolation", "bicubic", filters);
    if (t.channels != 1 && t.channels != 3) bind_fail(L, CAB_E_LUA, "transform: 'channels' is %d, expected 1 or 3", t.channels);
    number_list(L, idx, "mean", t.channels, true, mean);
    number_list(L, idx, "std", t.channels, true, deviation);
    number_list(L, idx, "scale", 2, false, t.scale);
    number_list(L, idx, "ratio", 2, false, t.ratio);
    t.augment = read_augment(L, idx);
    for (int c = 0; c < 3; c++) t.mean[c] = (float)mean[c], t.deviation[c] = (float)deviation[c];
  }
  if (!t.size) bind_fail(L, CAB_E_LUA, "transform: 'size' is missing: images differ in size");
  return t;
}

/* u8[H,W] or u8[H,W,1|3] on any device as an image; h->plain keeps the pixels. */
static CabImage image_of(lua_State *L, CabTensor *t, BindHold *h) {
  BIND_FILL(L, &h->plain, t->storage->device == cab_cpu() ? cab_tensor_contiguous_copy(t) : cab_tensor_to(t, cab_cpu(), CAB_U8));
  return (CabImage){.width = (int)t->shape[1], .height = (int)t->shape[0], .channels = t->rank == 3 ? (int)t->shape[2] : 1,
                    .pixels = cab_tensor_data(h->plain)};
}

/* The channels of an image in argument 1. */
static int check_image(lua_State *L, const CabTensor *t) {
  char text[160];
  int channels = t->rank == 3 ? (int)t->shape[2] : 1;
  if (t->dtype != CAB_U8 || t->rank < 2 || t->rank > 3 || (channels != 1 && channels != 3) || t->shape[0] < 1 || t->shape[1] < 1 ||
      t->shape[0] > CAB_IMAGE_MAX_SIDE || t->shape[1] > CAB_IMAGE_MAX_SIDE)
    bind_arg_error(L, 1, "expected u8[H,W] or u8[H,W,3], got %s", cab_shape_text(t, text));
  return channels;
}

/* core.data.augment(image u8[S,S] or [S,S,C], operation, value [, {mean=0, interpolation="bicubic"}]) -> u8[S,S,C]: one operation */
static int augment(lua_State *L) {
  static const char *const filters[] = {"bicubic", "bilinear", NULL};
  CabTensor *t = bind_check_tensor(L, 1);
  const char *name = luaL_checkstring(L, 2);
  double value = bind_check_number(L, 3), mean[3] = {0};
  int filter = 0, channels = check_image(L, t), size = (int)t->shape[0];
  if (t->shape[0] != t->shape[1]) bind_arg_error(L, 1, "image of %d x %d pixels, expected a square", (int)t->shape[1], size);
  if (!lua_isnoneornil(L, 4)) {
    bind_check_table(L, 4);
    filter = bind_opt_word(L, 4, "interpolation", "bicubic", filters);
    number_list(L, 4, "mean", channels, true, mean);
  }
  float means[3] = {(float)mean[0], (float)mean[1], (float)mean[2]};
  BindHold *h = bind_new_hold(L);
  CabTensor **slot = bind_new_tensor(L);
  int64_t shape[3] = {size, size, channels};
  size_t bytes = (size_t)(size * size * channels), room = bytes + 4;
  BIND_FILL(L, slot, cab_tensor_new(cab_cpu(), CAB_U8, 3, shape));
  CabImage image = image_of(L, t, h);
  if (!(h->memory = cab_calloc(2, room))) bind_raise(L, CAB_E_MEMORY);
  CabCanvas canvas = {size, channels, h->memory, (uint8_t *)h->memory + room};
  memcpy(canvas.pixels, image.pixels, bytes);
  BIND_TRY(L, cab_augment_one(name, value, (CabFilter)filter, means, &canvas));
  memcpy(cab_tensor_data(*slot), canvas.pixels, bytes);
  return 1;
}

/* core.data.transform(image u8[H,W] or [H,W,C], {...} [, seed=0, epoch=0, sample=0]) -> f32[C,S,S], or u8 with dtype = "u8":
 * pixels that are not normalised */
static int transform(lua_State *L) {
  CabTensor *t = bind_check_tensor(L, 1);
  CabDraw draw = {0};
  lua_settop(L, 5);
  if (!lua_isnil(L, 3)) draw.seed = (uint64_t)bind_check_int(L, 3);
  if (!lua_isnil(L, 4)) draw.epoch = (uint64_t)bind_check_int(L, 4);
  if (!lua_isnil(L, 5)) draw.sample = (uint64_t)bind_check_int(L, 5);
  int channels = check_image(L, t);
  CabTransform how = read_transform(L, 2, t->shape[0] == t->shape[1] ? (int)t->shape[0] : 0, channels);
  BIND_TRY(L, cab_transform_check(&how));
  BindHold *h = bind_new_hold(L);
  CabTensor **slot = bind_new_tensor(L);
  int64_t shape[3] = {how.channels, how.size, how.size};
  BIND_FILL(L, slot, cab_tensor_new(cab_cpu(), how.bytes ? CAB_U8 : CAB_F32, 3, shape));
  CabImage image = image_of(L, t, h);
  BIND_TRY(L, cab_transform_apply(&how, draw, &image, cab_tensor_data(*slot)));
  return 1;
}

/* ---- loader ---------------------------------------------------------------------------------- */

/* core.data.loader{dataset=, indices=i32[n], batch=, seed=0, epoch=0, shuffle=false, threads=2, transform={..}, start=0,
 * on_bad="error"|"skip", tolerant=false, drop_last=false, repeats=1, mixup=0, cutmix=0, switch=0.5, part=0, parts=0} -> loader */
static int open_loader(lua_State *L) {
  static const char *const known[] = {"dataset", "indices", "batch", "seed", "epoch", "shuffle", "threads", "transform", "start",
                                      "on_bad", "tolerant", "drop_last", "repeats", "mixup", "cutmix", "switch", "part", "parts", NULL};
  static const char *const bad[] = {"error", "skip", NULL};
  static const int32_t nothing; /* an empty list is not an absent one */
  char text[160];
  bind_check_table(L, 1);
  lua_settop(L, 1);
  bind_unknown_keys(L, 1, known);
  lua_getfield(L, 1, "dataset");
  BindSet *s = luaL_testudata(L, 2, BIND_DATASET);
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
  o.repeats = small_int(L, 1, "repeats", 1);
  o.part = small_int(L, 1, "part", 0);
  o.parts = small_int(L, 1, "parts", 0);
  o.mix = (CabMix){bind_opt_number(L, 1, "mixup", 0), bind_opt_number(L, 1, "cutmix", 0), bind_opt_number(L, 1, "switch", 0.5)};
  o.skip_bad = bind_opt_word(L, 1, "on_bad", "error", bad) == 1;
  CabTensor *indices = bind_opt_tensor(L, 1, "indices");
  if (indices && (indices->dtype != CAB_I32 || indices->rank != 1 || indices->storage->device != cab_cpu() || !cab_tensor_contiguous(indices)))
    bind_fail(L, CAB_E_LUA, "loader: 'indices' is %s, expected contiguous i32[n] on the cpu", cab_shape_text(indices, text));
  if (indices) o.count = indices->shape[0], o.indices = o.count ? cab_tensor_data(indices) : &nothing;
  Loader *l = lua_newuserdatauv(L, sizeof *l, 0);
  *l = (Loader){.transform = o.transform, .classes = s->ds->classes};
  luaL_setmetatable(L, BIND_LOADER);
  if (!(l->loader = cab_loader_open(&o)) && bind_collect(L)) l->loader = cab_loader_open(&o);
  if (!l->loader) bind_raise(L, cab_error()->code);
  return 1;
}

static void await_batch(lua_State *L, Loader *l) {
  if (l->pending) return;
  BIND_TRY(L, cab_loader_next(l->loader, &l->batch));
  l->pending = true;
}

/* loader:next() -> f32[b,C,S,S] (u8 where the transform says so), i32[b], and f32[b,classes] where records are mixed, else nil;
 * nil at the end */
static int loader_next(lua_State *L) {
  Loader *l = check_loader(L);
  CabTensor **images = bind_new_tensor(L), **labels = bind_new_tensor(L), **targets;
  await_batch(L, l);
  const CabBatch *b = &l->batch;
  if (b->count == 0) return lua_pushnil(L), 1;
  const CabTransform *t = &l->transform;
  int64_t shape[4] = {b->count, t->channels, t->size, t->size}, flat[2] = {b->count, l->classes};
  BIND_FILL(L, images, cab_tensor_new(cab_cpu(), t->bytes ? CAB_U8 : CAB_F32, 4, shape));
  BIND_FILL(L, labels, cab_tensor_new(cab_cpu(), CAB_I32, 1, shape));
  if (!b->targets) lua_pushnil(L);
  else {
    targets = bind_new_tensor(L);
    BIND_FILL(L, targets, cab_tensor_new(cab_cpu(), CAB_F32, 2, flat));
    memcpy(cab_tensor_data(*targets), b->targets, (size_t)b->count * (size_t)l->classes * sizeof(float));
  }
  memcpy(cab_tensor_data(*images), b->images, (size_t)b->count * cab_transform_size(t));
  memcpy(cab_tensor_data(*labels), b->labels, (size_t)b->count * sizeof(int32_t));
  l->pending = false;
  return 3;
}

bool bind_holds(const CabTensor *t, CabDtype dtype, int rank, const int64_t *shape) {
  return t->dtype == dtype && t->rank == rank && !memcmp(t->shape, shape, (size_t)rank * sizeof *shape) && cab_tensor_contiguous(t);
}

void bind_write(lua_State *L, CabTensor *t, const void *from, size_t bytes) {
  CabDevice *device = t->storage->device;
  char where[48];
  CabStatus status = device->copy(device, cab_tensor_data(t), from, bytes, 1);
  if (status) bind_raise(L, status);
  cab_tensor_touch(t, bind_where(L, where));
}

/* loader:into(images, labels [, targets]) -> true: the next batch lies there, on whatever device; false: it has another shape, or
 * there is none: next() tells. */
static int loader_into(lua_State *L) {
  Loader *l = check_loader(L);
  CabTensor *images = bind_check_tensor(L, 2), *labels = bind_check_tensor(L, 3), *targets = bind_opt_tensor_arg(L, 4);
  const CabTransform *t = &l->transform;
  await_batch(L, l);
  const CabBatch *b = &l->batch;
  int64_t shape[4] = {b->count, t->channels, t->size, t->size}, flat[2] = {b->count, l->classes};
  bool fits = b->count && bind_holds(images, t->bytes ? CAB_U8 : CAB_F32, 4, shape) && bind_holds(labels, CAB_I32, 1, shape) &&
              !targets == !b->targets && (!targets || bind_holds(targets, CAB_F32, 2, flat));
  if (fits) {
    bind_write(L, images, b->images, (size_t)b->count * cab_transform_size(t));
    bind_write(L, labels, b->labels, (size_t)b->count * sizeof(int32_t));
    if (targets) bind_write(L, targets, b->targets, (size_t)b->count * (size_t)l->classes * sizeof(float));
    l->pending = false;
  }
  return lua_pushboolean(L, fits), 1;
}

/* loader:order() -> i32[n]: records (from 0) in the order of the epoch */
static int loader_order(lua_State *L) {
  int64_t count;
  const int32_t *order = cab_loader_order(check_loader(L)->loader, &count);
  bind_push_ints(L, order, count);
  return 1;
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

void bind_loader(lua_State *L) {
  static const luaL_Reg methods[] = {{"next", loader_next}, {"into", loader_into}, {"order", loader_order}, {"close", loader_close},
                                     {"batches", loader_batches}, {"wait", loader_wait}, {"skipped", loader_skipped},
                                     {"warnings", loader_warnings}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"loader", open_loader}, {"transform", transform}, {"augment", augment}, {NULL, NULL}};
  bind_data_class(L, BIND_LOADER, "loader", loader_close, methods);
  luaL_setfuncs(L, functions, 0);
}
