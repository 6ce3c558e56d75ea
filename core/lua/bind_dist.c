/* bind_dist.c - core.dist: the ranks of a job and what they do together. */
#include "bind.h"
#include "dist.h"

#include <string.h>
#include <xxhash.h>

/* dist.open(timeout) -> rank (from 0), ranks, number among those of this host, the MPI library's name ("" where there is one rank) */
static int dist_open(lua_State *L) {
  double timeout = bind_check_number(L, 1);
  if (!(timeout > 0)) bind_arg_error(L, 1, "seconds above 0 expected, got %g", timeout);
  cab_dist_on_stop(bind_stops);
  CabStatus status = cab_dist_open(timeout);
  if (status) bind_raise(L, status);
  lua_pushinteger(L, cab_dist_rank());
  lua_pushinteger(L, cab_dist_size());
  lua_pushinteger(L, cab_dist_local());
  lua_pushstring(L, cab_dist_about());
  return 4;
}

/* dist.close(): waits for all ranks and leaves MPI. */
static int dist_close(lua_State *L) {
  CabStatus status = cab_dist_close();
  if (status) bind_raise(L, status);
  return 0;
}

/* dist.meet(name, value=0, flag=false, bytes=0) -> sum of the values of all ranks, true if any gave the flag */
static int dist_meet(lua_State *L) {
  const char *name = bind_check_string(L, 1, NULL);
  double value = lua_isnoneornil(L, 2) ? 0 : bind_check_number(L, 2), sum;
  int flag = lua_toboolean(L, 3), all;
  int64_t bytes = lua_isnoneornil(L, 4) ? 0 : bind_check_int(L, 4);
  CabStatus status = cab_dist_meet(name, bytes, value, flag, &sum, &all);
  if (status) bind_raise(L, status);
  lua_pushnumber(L, sum);
  lua_pushboolean(L, all);
  return 2;
}

/* dist.sum(name, {numbers}) -> the sums over all ranks, in a new table */
static int dist_sum(lua_State *L) {
  const char *name = bind_check_string(L, 1, NULL);
  bind_check_table(L, 2);
  int n = (int)lua_rawlen(L, 2);
  double *values = lua_newuserdatauv(L, ((size_t)n + 1) * sizeof *values, 0);
  for (int i = 0; i < n; i++) {
    if (lua_rawgeti(L, 2, i + 1) != LUA_TNUMBER) bind_arg_error(L, 2, "item %d: number expected, got %s", i + 1, bind_type_name(L, -1));
    values[i] = lua_tonumber(L, -1);
    lua_pop(L, 1);
  }
  CabStatus status = cab_dist_sum(name, n, values);
  if (status) bind_raise(L, status);
  lua_createtable(L, n, 0);
  for (int i = 0; i < n; i++) lua_pushnumber(L, values[i]), lua_rawseti(L, -2, i + 1);
  return 1;
}

/* dist.text(name, text) -> rank 0's, on all ranks; what others give is not looked at */
static int dist_text(lua_State *L) {
  const char *name = bind_check_string(L, 1, NULL);
  size_t size = 0;
  const char *text = cab_dist_rank() == 0 ? bind_check_string(L, 2, &size) : NULL;
  int64_t length = (int64_t)size;
  CabStatus status = cab_dist_bytes(name, &length, sizeof length, 0);
  if (status) bind_raise(L, status);
  char *bytes = lua_newuserdatauv(L, (size_t)length + 1, 0);
  if (text) memcpy(bytes, text, size);
  status = cab_dist_bytes(name, bytes, (size_t)length, 0);
  if (status) bind_raise(L, status);
  lua_pushlstring(L, bytes, (size_t)length);
  return 1;
}

/* dist.send(name, tensor, root=0): the tensor of that rank, on all ranks, in place */
static int dist_send(lua_State *L) {
  const char *name = bind_check_string(L, 1, NULL);
  CabTensor *t = bind_check_tensor(L, 2);
  int64_t root = lua_isnoneornil(L, 3) ? 0 : bind_check_int(L, 3);
  if (root < 0 || root >= cab_dist_size()) bind_arg_error(L, 3, "rank 0 to %d expected, got %lld", cab_dist_size() - 1, (long long)root);
  CabStatus status = cab_dist_send_tensor(name, t, (int)root);
  if (status) bind_raise(L, status);
  return 0;
}

/* dist.same(name, what, number): 69 naming the ranks whose number is another */
static int dist_same(lua_State *L) {
  const char *name = bind_check_string(L, 1, NULL), *what = bind_check_string(L, 2, NULL);
  double value = bind_check_number(L, 3);
  CabStatus status = cab_dist_same(name, what, value);
  if (status) bind_raise(L, status);
  return 0;
}

/* dist.checksum({tensors}) -> 52 bits of the xxh64 of their bytes, as a number */
static int dist_checksum(lua_State *L) {
  int n;
  CabTensor **list = bind_check_tensors(L, 1, &n);
  XXH64_state_t *state = XXH64_createState();
  if (!state) bind_fail(L, CAB_E_MEMORY, "checksum: out of memory");
  XXH64_reset(state, 0);
  CabStatus status = CAB_OK;
  for (int i = 0; status == CAB_OK && i < n; i++) {
    CabTensor *t = cab_tensor_to(list[i], cab_cpu(), list[i]->dtype);
    if (t) XXH64_update(state, cab_tensor_data(t), (size_t)cab_tensor_count(t) * cab_dtype_size(t->dtype));
    status = t ? CAB_OK : cab_error()->code;
    cab_tensor_release(t);
  }
  uint64_t hash = XXH64_digest(state);
  XXH64_freeState(state);
  if (status) bind_raise(L, status);
  lua_pushnumber(L, (double)(hash >> 12));
  return 1;
}

/* dist.watch(name): the program waits for the device from now on, with the same timeout; nil: no longer */
static int dist_watch(lua_State *L) {
  cab_dist_watch(lua_isnoneornil(L, 1) ? NULL : bind_check_string(L, 1, NULL), 0);
  return 0;
}

/* ---- reducers -------------------------------------------------------------------------------------------------------- */

static const char *const metatable = "cab.reducer";

static CabReducer *check_reducer(lua_State *L) {
  CabReducer **slot = luaL_testudata(L, 1, metatable);
  if (!slot) bind_arg_error(L, 1, "reducer expected, got %s", bind_type_name(L, 1));
  if (!*slot) bind_fail(L, CAB_E_LUA, "the reducer is closed");
  return *slot;
}

/* dist.reducer({tensors}, bucket) -> reducer: sums their gradients over all ranks in buckets of so many bytes */
static int reducer_new(lua_State *L) {
  int n;
  CabTensor **params = bind_check_tensors(L, 1, &n);
  int64_t bytes = bind_check_int(L, 2);
  if (bytes < 1) bind_arg_error(L, 2, "bytes of a bucket expected, got %lld", (long long)bytes);
  CabReducer **slot = lua_newuserdatauv(L, sizeof *slot, 0);
  *slot = NULL;
  luaL_setmetatable(L, metatable);
  if (!(*slot = cab_reducer_new(n, params, (size_t)bytes))) bind_raise(L, cab_error()->code);
  return 1;
}

/* r:begin(): before a backward, whose gradients then leave as they are finished */
static int reducer_begin(lua_State *L) {
  CabStatus status = cab_reducer_begin(check_reducer(L));
  if (status) bind_raise(L, status);
  return 0;
}

/* r:finish(): each gradient is the sum over all ranks from here on */
static int reducer_finish(lua_State *L) {
  CabStatus status = cab_reducer_finish(check_reducer(L));
  if (status) bind_raise(L, status);
  return 0;
}

/* r:forget(): the backwards to come are others */
static int reducer_forget(lua_State *L) { return cab_reducer_forget(check_reducer(L)), 0; }
/* r:buckets() -> how many; 0 before the first finish */
static int reducer_buckets(lua_State *L) { return lua_pushinteger(L, cab_reducer_buckets(check_reducer(L))), 1; }

static int reducer_close(lua_State *L) {
  CabReducer **slot = luaL_testudata(L, 1, metatable);
  if (!slot) bind_arg_error(L, 1, "reducer expected, got %s", bind_type_name(L, 1));
  CabReducer *r = *slot;
  *slot = NULL;
  cab_reducer_free(r);
  return 0;
}

/* ---- shards ---------------------------------------------------------------------------------------------------------- */

static const char *const shard_metatable = "cab.shard";

static CabShard **shard_slot(lua_State *L) {
  CabShard **slot = luaL_testudata(L, 1, shard_metatable);
  if (!slot) bind_arg_error(L, 1, "shard expected, got %s", bind_type_name(L, 1));
  return slot;
}

static CabShard *check_shard(lua_State *L) {
  CabShard *s = *shard_slot(L);
  if (!s) bind_fail(L, CAB_E_LUA, "the shard is closed");
  return s;
}

/* dist.shard({parameters}, ranks) -> shard: they move into one buffer, a part of which is each rank's */
static int shard_new(lua_State *L) {
  int n;
  CabTensor **params = bind_check_tensors(L, 1, &n);
  int64_t ranks = bind_check_int(L, 2);
  if (ranks < 1 || ranks > 1 << 20) bind_arg_error(L, 2, "number of ranks expected, got %lld", (long long)ranks);
  CabShard **slot = lua_newuserdatauv(L, sizeof *slot, 0);
  *slot = NULL;
  luaL_setmetatable(L, shard_metatable);
  if (!(*slot = cab_shard_new(n, params, (int)ranks))) bind_raise(L, cab_error()->code);
  return 1;
}

/* s:layout() -> list of where the parameters begin in the buffer, list of where the ranks' parts begin and, last, end; from 0 */
static int shard_layout(lua_State *L) {
  CabShard *s = check_shard(L);
  lua_newtable(L), lua_newtable(L);
  for (int i = 0; i < cab_shard_count(s); i++) lua_pushinteger(L, cab_shard_place(s, i)), lua_rawseti(L, -3, i + 1);
  for (int r = 0; r <= cab_shard_ranks(s); r++) lua_pushinteger(L, cab_shard_border(s, r)), lua_rawseti(L, -2, r + 1);
  return 2;
}

/* s:gather(): each rank's part of the parameters, on all ranks */
static int shard_gather(lua_State *L) {
  CabStatus status = cab_shard_gather(check_shard(L));
  if (status) bind_raise(L, status);
  return 0;
}

static int shard_close(lua_State *L) {
  CabShard **slot = shard_slot(L), *s = *slot;
  *slot = NULL;
  cab_shard_free(s);
  return 0;
}

static void make_class(lua_State *L, const char *name, const luaL_Reg *meta, const luaL_Reg *methods) {
  if (luaL_newmetatable(L, name)) {
    luaL_setfuncs(L, meta, 0);
    lua_newtable(L);
    luaL_setfuncs(L, methods, 0);
    lua_setfield(L, -2, "__index");
    lua_pushstring(L, name + strlen("cab."));
    lua_setfield(L, -2, "__metatable");
  }
  lua_pop(L, 1);
}

void bind_dist(lua_State *L) {
  static const luaL_Reg functions[] = {{"open", dist_open}, {"close", dist_close}, {"meet", dist_meet}, {"sum", dist_sum},
                                       {"text", dist_text}, {"send", dist_send}, {"same", dist_same}, {"checksum", dist_checksum},
                                       {"watch", dist_watch}, {"reducer", reducer_new}, {"shard", shard_new}, {NULL, NULL}};
  static const luaL_Reg meta[] = {{"__gc", reducer_close}, {"__close", reducer_close}, {NULL, NULL}};
  static const luaL_Reg methods[] = {{"begin", reducer_begin}, {"finish", reducer_finish}, {"forget", reducer_forget},
                                     {"buckets", reducer_buckets}, {"close", reducer_close}, {NULL, NULL}};
  static const luaL_Reg shard_meta[] = {{"__gc", shard_close}, {"__close", shard_close}, {NULL, NULL}};
  static const luaL_Reg shard_methods[] = {{"layout", shard_layout}, {"gather", shard_gather}, {"close", shard_close}, {NULL, NULL}};
  make_class(L, metatable, meta, methods);
  make_class(L, shard_metatable, shard_meta, shard_methods);
  luaL_newlib(L, functions);
  lua_setfield(L, -2, "dist");
}
