/* misc.c - devices, memory, threads, clock, terminal, text-only chunks. */
#include "bind.h"

#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- devices -------------------------------------------------------------------------------------- */

static void push_chip(lua_State *L, const CabDevice *device) {
  if (device == cab_cpu()) lua_pushfstring(L, "x86-64-%s", cab_cpu_isa());
  else lua_pushstring(L, device->chip);
}

/* core.device(name) -> its full name, its chip; for "auto" also why it is the CPU. "cuda" -> "cuda:0", "NVIDIA H100 (sm_90)" */
static int device_of(lua_State *L) {
  cab_error()->code = CAB_OK;
  CabDevice *device = bind_check_device(L, 1);
  bool fell_back = cab_error()->code != CAB_OK;
  lua_pushstring(L, device->name);
  push_chip(L, device);
  if (fell_back) lua_pushstring(L, cab_error()->message);
  return fell_back ? 3 : 2;
}

/* core.device_available(name) -> true, or false and why not; an unknown name is an error */
static int device_available(lua_State *L) {
  CabDevice *device = cab_device(bind_check_string(L, 1, NULL));
  if (!device && cab_error()->code != CAB_E_DEVICE) bind_raise(L, cab_error()->code);
  lua_pushboolean(L, device != NULL);
  if (!device) lua_pushstring(L, cab_error()->message);
  return device ? 1 : 2;
}

/* core.devices() -> list of {name=, chip=}, the CPU first; why there is no further one */
static int devices(lua_State *L) {
  char name[24] = "cpu";
  CabDevice *device = cab_cpu();
  lua_newtable(L);
  for (int i = 0; device; i++) {
    lua_createtable(L, 0, 2);
    lua_pushstring(L, device->name), lua_setfield(L, -2, "name");
    push_chip(L, device), lua_setfield(L, -2, "chip");
    lua_rawseti(L, -2, i + 1);
    snprintf(name, sizeof name, "cuda:%d", i);
    device = cab_device(name);
  }
  lua_pushstring(L, cab_error()->message);
  return 2;
}

/* core.precision(device, "f32"|"tf32"|"bf16"): how products of f32 matrices are computed there from now on */
static int precision(lua_State *L) {
  CabDevice *device = bind_check_device(L, 1);
  const char *name = bind_check_string(L, 2, NULL);
  char shown[340];
  CabStatus status = CAB_OK;
  if (device->precision) status = device->precision(device, name);
  else if (strcmp(name, "f32"))
    status = cab_fail(CAB_E_LUA, "precision: %s multiplies f32 matrices in f32, not in %s", device->name, cab_escape(name, strlen(name), shown));
  if (status) bind_raise(L, status);
  return 0;
}

/* core.sync([device]): returns when all that was launched there has run */
static int sync_device(lua_State *L) {
  CabDevice *device = bind_opt_device(L, 1);
  CabStatus status = device->sync(device);
  if (status) bind_raise(L, status);
  return 0;
}

/* ---- memory, threads ------------------------------------------------------------------------------ */

/* core.memory([device]) -> {live=, peak=, cached=, size=} bytes: in tensors now, at most, kept for later, of the device */
static int memory(lua_State *L) {
  CabDevice *device = bind_opt_device(L, 1);
  uint64_t size = device == cab_cpu() ? (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE) : device->size;
  lua_createtable(L, 0, 4);
  lua_pushinteger(L, (lua_Integer)device->live), lua_setfield(L, -2, "live");
  lua_pushinteger(L, (lua_Integer)device->peak), lua_setfield(L, -2, "peak");
  lua_pushinteger(L, (lua_Integer)device->cached), lua_setfield(L, -2, "cached");
  lua_pushinteger(L, (lua_Integer)size), lua_setfield(L, -2, "size");
  return 1;
}

static int reset_peak(lua_State *L) {
  CabDevice *device = bind_opt_device(L, 1);
  device->peak = device->live;
  return 0;
}

/* core.trim([device]): cached memory goes back to the system */
static int trim(lua_State *L) {
  cab_device_trim(bind_opt_device(L, 1));
  return 0;
}

/* core.threads([n]) -> the number in use (after setting it) */
static int threads(lua_State *L) {
  if (!lua_isnoneornil(L, 1)) {
    int64_t count = bind_check_int(L, 1);
    if (count < 1 || count > 256) bind_arg_error(L, 1, "1 to 256 expected, got %lld", (long long)count);
    cab_set_threads((int)count);
  }
  lua_pushinteger(L, cab_threads());
  return 1;
}

static int now(lua_State *L) { return lua_pushnumber(L, cab_now()), 1; }

/* core.isatty([0|1|2]) -> bool; standard output without an argument */
static int is_terminal(lua_State *L) {
  int64_t fd = lua_isnoneornil(L, 1) ? 1 : bind_check_int(L, 1);
  if (fd < 0 || fd > 2) bind_arg_error(L, 1, "0, 1 or 2 expected, got %lld", (long long)fd);
  lua_pushboolean(L, isatty((int)fd));
  return 1;
}

/* core.columns() -> columns of the terminal at standard error or output, nil where there is none */
static int columns(lua_State *L) {
  struct winsize size;
  for (int fd = 2; fd > 0; fd--)
    if (ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col) return lua_pushinteger(L, size.ws_col), 1;
  return lua_pushnil(L), 1;
}

/* core.escape(text) -> safe to print: control bytes and bad UTF-8 as \xHH, cut at 80 characters */
static int escape(lua_State *L) {
  size_t length;
  char shown[340];
  const char *text = bind_check_string(L, 1, &length);
  lua_pushstring(L, cab_escape(text, length, shown));
  return 1;
}

/* core.nearest(name, {names}) -> the name most like it, or nil */
static int nearest(lua_State *L) {
  const char *name = bind_check_path(L, 1);
  bind_check_table(L, 2);
  lua_Unsigned count = lua_rawlen(L, 2);
  if (count > 100000) bind_arg_error(L, 2, "too many names");
  const char **names = lua_newuserdatauv(L, (count + 1) * sizeof *names, 0);
  for (lua_Unsigned i = 0; i < count; i++) {
    if (lua_rawgeti(L, 2, (lua_Integer)i + 1) != LUA_TSTRING)
      bind_arg_error(L, 2, "item %llu: string expected, got %s", i + 1, bind_type_name(L, -1));
    names[i] = lua_tostring(L, -1); /* the table keeps it */
    lua_pop(L, 1);
  }
  names[count] = NULL;
  lua_pushstring(L, bind_nearest(name, names));
  return 1;
}

/* ---- chunks: text only, since damaged bytecode crashes Lua ---------------------------------------- */

static _Noreturn void chunk_error(lua_State *L, const char *path, int failed) {
  char shown[340];
  const char *text = lua_tostring(L, -1);
  cab_escape(path, strlen(path), shown);
  if (!text) text = "?";
  if (failed == LUA_ERRMEM) bind_fail(L, CAB_E_MEMORY, "%s: not enough memory", shown);
  if (strstr(text, "binary chunk")) {
    cab_fail_file(CAB_E_INPUT, "lua-bytecode", path, -1, "text only: Lua bytecode is refused");
    bind_raise(L, CAB_E_INPUT);
  }
  cab_fail(CAB_E_USAGE, "%s", text); /* "recipe.lua:3: unexpected symbol near 'x'" */
  snprintf(cab_error()->id, sizeof cab_error()->id, "lua-syntax");
  snprintf(cab_error()->file, sizeof cab_error()->file, "%s", shown);
  bind_raise(L, CAB_E_USAGE);
}

/* core.loadfile(path [, env]) -> function; 74 no such file, 65 bytecode, 2 syntax error */
static int load_file(lua_State *L) {
  const char *path = bind_check_path(L, 1);
  struct stat info;
  bool env = !lua_isnoneornil(L, 2);
  if (env) bind_check_table(L, 2);
  if (stat(path, &info)) bind_raise(L, cab_fail_errno(path, "open"));
  if (!S_ISREG(info.st_mode)) {
    cab_fail_file(CAB_E_INPUT, "file-kind", path, -1, "not a regular file");
    bind_raise(L, CAB_E_INPUT);
  }
  if (info.st_size > 64 << 20) {
    cab_fail_file(CAB_E_INPUT, "file-size", path, -1, "a chunk of %lld bytes, at most 64 MiB", (long long)info.st_size);
    bind_raise(L, CAB_E_INPUT);
  }
  if (access(path, R_OK)) bind_raise(L, cab_fail_errno(path, "open"));
  int failed = luaL_loadfilex(L, path, "t");
  if (failed == LUA_ERRFILE) bind_raise(L, cab_fail_errno(path, "read"));
  if (failed) chunk_error(L, path, failed);
  if (env) {
    lua_pushvalue(L, 2);
    lua_setupvalue(L, -2, 1);
  }
  return 1;
}

#ifdef CAB_FAULTS
/* core.fault(point, nth, sticky, f) -> calls of the point in f(), what pcall(f) gives. Call nth fails; 0: none. The point is
 * whole again before Lua goes on, which may need memory for it. */
static int fault(lua_State *L) {
  const char *name = bind_check_path(L, 1);
  int64_t nth = bind_check_int(L, 2);
  bool sticky = bind_check_bool(L, 3);
  lua_settop(L, 4);
  cab_fault_set(name, (uint64_t)nth, sticky);
  int failed = lua_pcall(L, 0, 1, 0);
  uint64_t calls = cab_fault_set(name, 0, false);
  lua_pushinteger(L, (lua_Integer)calls);
  lua_pushboolean(L, !failed);
  lua_pushvalue(L, 4);
  return 3;
}
#endif

void bind_misc(lua_State *L) {
  static const luaL_Reg functions[] = {
      {"device", device_of}, {"device_available", device_available}, {"devices", devices}, {"precision", precision}, {"sync", sync_device},
      {"memory", memory},   {"reset_peak", reset_peak}, {"trim", trim},       {"threads", threads}, {"now", now},
      {"isatty", is_terminal}, {"columns", columns}, {"escape", escape},      {"nearest", nearest}, {"loadfile", load_file}, {NULL, NULL}};
  luaL_setfuncs(L, functions, 0);
#ifdef CAB_FAULTS
  lua_pushcfunction(L, fault), lua_setfield(L, -2, "fault");
#endif
}
