/* file.c - whole files and the run directory's lock. */
#include "bind.h"
#include "file.h"

#include <string.h>
#define XXH_STATIC_LINKING_ONLY /* the state on the stack */
#include <xxhash.h>

/* An open file that the collector closes if an error passes by. */
static int file_gc(lua_State *L) {
  CabFile *file = luaL_testudata(L, 1, "cab.file");
  if (file) cab_file_close(file), file->fd = -1;
  return 0;
}

static CabFile *open_file(lua_State *L, const char *path) {
  CabFile *file = lua_newuserdatauv(L, sizeof *file, 0);
  *file = (CabFile){.fd = -1};
  luaL_setmetatable(L, "cab.file");
  CabStatus status = cab_file_open(path, file);
  if (status) file->fd = -1, bind_raise(L, status);
  return file;
}

/* core.hash(path) -> XXH64 of the bytes as 16 hex digits; or of a string with core.hash(nil, text) */
static int hash(lua_State *L) {
  static unsigned char block[1 << 16];
  XXH64_state_t state;
  char text[20];
  size_t length;
  XXH64_reset(&state, 0);
  if (lua_isnil(L, 1)) {
    const char *bytes = bind_check_string(L, 2, &length);
    XXH64_update(&state, bytes, length);
  } else {
    CabFile *file = open_file(L, bind_check_path(L, 1));
    CabStatus status = CAB_OK;
    for (uint64_t at = 0; at < file->size && !status; at += sizeof block) {
      uint64_t count = file->size - at < sizeof block ? file->size - at : sizeof block;
      status = cab_file_read(file, block, count, at);
      if (!status) XXH64_update(&state, block, count);
    }
    if (!status) status = cab_file_unchanged(file);
    cab_file_close(file), file->fd = -1;
    if (status) bind_raise(L, status);
  }
  snprintf(text, sizeof text, "%016llx", (unsigned long long)XXH64_digest(&state));
  lua_pushstring(L, text);
  return 1;
}

/* core.read_file(path, limit) -> bytes of a regular file; 65 (file-size) if it is longer */
static int read_file(lua_State *L) {
  const char *path = bind_check_path(L, 1);
  int64_t limit = bind_check_int(L, 2);
  CabFile *file = open_file(L, path);
  if (file->size > (uint64_t)limit)
    bind_raise(L, cab_fail_file(CAB_E_INPUT, "file-size", path, -1, "%llu bytes, at most %lld are read", (unsigned long long)file->size, (long long)limit));
  void *bytes = lua_newuserdatauv(L, file->size, 0);
  CabStatus status = cab_file_read(file, bytes, file->size, 0);
  if (!status) status = cab_file_unchanged(file);
  if (status) bind_raise(L, status);
  lua_pushlstring(L, bytes, file->size);
  cab_file_close(file), file->fd = -1;
  return 1;
}

/* core.write_file(path, bytes): the old or the new file, never a part */
static int write_file(lua_State *L) {
  size_t length;
  const char *path = bind_check_path(L, 1), *bytes = bind_check_string(L, 2, &length);
  BIND_TRY(L, cab_write_file(path, bytes, length));
  return 0;
}

/* core.append_file(path, bytes [, sync=false]) */
static int append_file(lua_State *L) {
  size_t length;
  const char *path = bind_check_path(L, 1), *bytes = bind_check_string(L, 2, &length);
  bool sync = !lua_isnoneornil(L, 3) && bind_check_bool(L, 3);
  BIND_TRY(L, cab_append_file(path, bytes, length, sync));
  return 0;
}

/* ---- lock ------------------------------------------------------------------------------------------ */

typedef struct {
  int fd; /* -1: released */
  char dir[4096];
} Lock;

/* core.lock(dir) -> handle with close(), __close and __gc; 74 "locked by pid N on host H" */
static int lock_new(lua_State *L) {
  size_t length;
  const char *dir = bind_check_path(L, 1);
  bind_check_string(L, 1, &length);
  Lock *lock = lua_newuserdatauv(L, sizeof *lock, 0);
  lock->fd = -1;
  luaL_setmetatable(L, BIND_LOCK);
  if (length >= sizeof lock->dir) bind_arg_error(L, 1, "the path is too long");
  memcpy(lock->dir, dir, length + 1);
  CabStatus status = cab_lock_dir(dir, &lock->fd);
  if (status) lock->fd = -1, bind_raise(L, status);
  return 1;
}

static int lock_close(lua_State *L) {
  Lock *lock = luaL_testudata(L, 1, BIND_LOCK);
  if (!lock) bind_arg_error(L, 1, "lock expected, got %s", bind_type_name(L, 1));
  int fd = lock->fd;
  lock->fd = -1;
  if (fd >= 0) cab_unlock_dir(lock->dir, fd);
  return 0;
}

void bind_file(lua_State *L) {
  static const luaL_Reg meta[] = {{"__gc", lock_close}, {"__close", lock_close}, {NULL, NULL}};
  static const luaL_Reg functions[] = {
      {"hash", hash}, {"read_file", read_file}, {"write_file", write_file}, {"append_file", append_file}, {"lock", lock_new}, {NULL, NULL}};
  if (luaL_newmetatable(L, BIND_LOCK)) {
    luaL_setfuncs(L, meta, 0);
    lua_createtable(L, 0, 1);
    lua_pushcfunction(L, lock_close);
    lua_setfield(L, -2, "close");
    lua_setfield(L, -2, "__index");
    lua_pushliteral(L, "lock");
    lua_setfield(L, -2, "__metatable");
  }
  lua_pop(L, 1);
  if (luaL_newmetatable(L, "cab.file")) {
    lua_pushcfunction(L, file_gc);
    lua_setfield(L, -2, "__gc");
  }
  lua_pop(L, 1);
  luaL_setfuncs(L, functions, 0);
}
