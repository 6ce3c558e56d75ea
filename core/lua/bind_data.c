/* bind_data.c - core.data: datasets and subsets. Indices and labels count from 0, as class ids do; records asked for by number
 * (ds:image(i)) count from 1, as Lua does. */
#include <limits.h>
#include <string.h>

#include "bind_data.h"

typedef BindSet Set;

static CabDataset *check_set(lua_State *L) {
  Set *s = luaL_testudata(L, 1, BIND_DATASET);
  if (!s) bind_arg_error(L, 1, "dataset expected, got %s", bind_type_name(L, 1));
  if (!s->ds) bind_fail(L, CAB_E_LUA, "dataset is closed");
  return s->ds;
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

/* core.data.open{kind="idx", images=path, labels=path} | {kind="cifar", files={..}} | {kind="folder", root=path [, index=path]};
 * names={..} fixes the classes and their order. -> dataset */
static int open_set(lua_State *L) {
  static const char *const kinds[] = {"idx", "cifar", "folder", NULL};
  static const char *const known[3][6] = {{"kind", "images", "labels", "names", NULL}, {"kind", "files", "names", NULL}, {"kind", "root", "index", "names", NULL}};
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
  const char *index = kind == 2 ? bind_opt_string(L, 1, "index", NULL) : NULL;
  const char **paths = kind == 1 ? string_list(L, 1, "files", &files) : NULL;
  if (kind == 1 && !paths) bind_fail(L, CAB_E_LUA, "open: 'files' is missing");
  for (int attempt = 0; !s->ds && attempt < 2; attempt++) {
    if (kind == 0) s->ds = cab_idx_open(first, second, classes, names);
    else if (kind == 1) s->ds = cab_cifar_open(files, paths, classes, names);
    else s->ds = cab_folder_open(first, index, classes, names);
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

static int set_scanned(lua_State *L) { return lua_pushinteger(L, check_set(L)->scanned), 1; }

/* ds:note() -> what a run should say about it, or nil */
static int set_note(lua_State *L) {
  const char *note = check_set(L)->note;
  return lua_pushstring(L, note && *note ? note : NULL), 1;
}

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

void bind_push_ints(lua_State *L, const int32_t *values, int64_t count) {
  CabTensor **slot = bind_new_tensor(L);
  BIND_FILL(L, slot, cab_tensor_new(cab_cpu(), CAB_I32, 1, &count));
  if (count) memcpy(cab_tensor_data(*slot), values, (size_t)count * sizeof *values);
}

/* ds:labels() -> i32[count] */
static int set_labels(lua_State *L) {
  const CabDataset *ds = check_set(L);
  bind_push_ints(L, ds->labels, ds->count);
  return 1;
}

typedef BindHold Hold;
static int hold_gc(lua_State *L) {
  Hold *h = luaL_testudata(L, 1, "cab.hold");
  if (!h) return 0;
  cab_image_free(&h->image);
  cab_free(h->memory);
  cab_tensor_release(h->plain);
  h->memory = NULL, h->plain = NULL;
  return 0;
}
BindHold *bind_new_hold(lua_State *L) {
  Hold *h = lua_newuserdatauv(L, sizeof *h, 0);
  *h = (Hold){0};
  luaL_setmetatable(L, "cab.hold");
  return h;
}

/* Sooner than the collector would. */
static void hold_release(BindHold *h) {
  cab_free(h->memory);
  h->memory = NULL;
}

static int64_t check_record(lua_State *L, const CabDataset *ds) {
  int64_t i = bind_check_int(L, 2);
  if (i < 1 || i > ds->count) bind_arg_error(L, 2, "record %lld of %lld", (long long)i, (long long)ds->count);
  return i - 1;
}

/* ds:name(i) -> its name in lists: "CLASS/IMAGE" in a folder, else the number */
static int set_name(lua_State *L) {
  const CabDataset *ds = check_set(L);
  char room[PATH_MAX];
  lua_pushstring(L, ds->kind->record(ds, check_record(L, ds), room));
  return 1;
}

/* ds:image(i) -> u8[H,W,C], label */
static int set_image(lua_State *L) {
  CabDataset *ds = check_set(L);
  int64_t i = check_record(L, ds);
  Hold *h = bind_new_hold(L);
  CabTensor **slot = bind_new_tensor(L);
  BIND_TRY(L, ds->kind->fetch(ds, i, NULL, NULL, &h->image));
  int64_t shape[3] = {h->image.height, h->image.width, h->image.channels};
  BIND_FILL(L, slot, cab_tensor_new(cab_cpu(), CAB_U8, 3, shape));
  memcpy(cab_tensor_data(*slot), h->image.pixels, (size_t)(shape[0] * shape[1] * shape[2]));
  cab_image_free(&h->image);
  lua_pushinteger(L, ds->labels[i]);
  return 2;
}

/* core.data.subset(labels i32[n], fraction, seed, hold?) -> i32 indices, sorted, and those held out of them; smaller fractions of a
 * seed lie in larger ones, both parts */
static int subset(lua_State *L) {
  char text[160];
  CabTensor *labels = bind_check_tensor(L, 1);
  double fraction = bind_check_number(L, 2);
  double hold = lua_isnoneornil(L, 4) ? 0 : bind_check_number(L, 4);
  int64_t seed = lua_isnoneornil(L, 3) ? 0 : bind_check_int(L, 3), count, held;
  if (labels->dtype != CAB_I32 || labels->rank != 1 || labels->storage->device != cab_cpu() || !cab_tensor_contiguous(labels))
    bind_arg_error(L, 1, "expected contiguous i32[n] on the cpu, got %s", cab_shape_text(labels, text));
  Hold *h = bind_new_hold(L);
  int32_t *chosen;
  BIND_TRY(L, cab_subset(cab_tensor_data(labels), labels->shape[0], fraction, hold, (uint64_t)seed, &chosen, &count, &held));
  h->memory = chosen;
  bind_push_ints(L, chosen, count);
  bind_push_ints(L, chosen + count, held);
  hold_release(h);
  return 2;
}

void bind_data_class(lua_State *L, const char *meta, const char *shown, lua_CFunction close, const luaL_Reg *methods) {
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
                                 {"names", set_names}, {"labels", set_labels}, {"image", set_image}, {"ignored", set_ignored}, {"scanned", set_scanned},
                                 {"note", set_note}, {"name", set_name},
                                 {"close", set_close}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"open", open_set}, {"subset", subset}, {NULL, NULL}};
  bind_data_class(L, BIND_DATASET, "dataset", set_close, set);
  if (luaL_newmetatable(L, "cab.hold")) lua_pushcfunction(L, hold_gc), lua_setfield(L, -2, "__gc");
  lua_pop(L, 1);
  lua_newtable(L);
  luaL_setfuncs(L, functions, 0);
  bind_loader(L);
  lua_setfield(L, -2, "data");
}
