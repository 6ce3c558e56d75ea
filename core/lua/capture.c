/* capture.c - core.capture(device, f): what f launches, kept as a graph that runs again without Lua. */
#include "bind.h"

#include <string.h>

typedef struct Graph {
  CabDevice *device;
  CabGraph *graph;
  struct Graph *next;
} Graph;

static CabDevice *capturing;
static Graph *waiting; /* closed or collected during a capture, which freeing one would break */

CabDevice *bind_capturing(void) { return capturing; }

void bind_refuse_capture(lua_State *L, const char *what) {
  char where[48];
  if (!capturing) return;
  cab_fail(CAB_E_DEVICE, "%s: %s cannot be captured (%s)", capturing->name, what, bind_where(L, where));
  snprintf(cab_error()->id, sizeof cab_error()->id, "capture");
  bind_raise(L, CAB_E_DEVICE);
}

static void free_graph(Graph *g) {
  cab_graph_free(g->device, g->graph);
  cab_free(g);
}

static void free_waiting(void) {
  while (waiting) {
    Graph *g = waiting;
    waiting = g->next;
    free_graph(g);
  }
}

static Graph **check_graph(lua_State *L) {
  Graph **slot = luaL_testudata(L, 1, BIND_GRAPH);
  if (!slot) bind_arg_error(L, 1, "graph expected, got %s", bind_type_name(L, 1));
  return slot;
}

/* Runs f with its launches going into the graph; an error in it leaves nothing behind and arrives unchanged. */
static void record(lua_State *L, Graph *g, int f) {
  CabDevice *device = g->device;
  CabStatus status = cab_capture_begin(device);
  if (status) {
    snprintf(cab_error()->id, sizeof cab_error()->id, "capture");
    bind_raise(L, status);
  }
  capturing = device;
  lua_pushvalue(L, f);
  int failed = lua_pcall(L, 0, 0, 0);
  capturing = NULL;
  if (failed) cab_capture_abandon(device);
  else g->graph = cab_capture_end(device);
  CabError error = *cab_error();
  free_waiting();
  if (failed) lua_error(L);
  *cab_error() = error;
  if (!g->graph) bind_raise(L, error.code);
}

/* core.capture(device, f) -> graph. f runs once and its launches do not: the graph's first replay is their first run.
 * What f keeps (scope:keep) is written anew by each replay. Errors with id "capture": f read a value, brought one from the
 * host or drew random numbers, or the device (the CPU) runs things as they come. */
static int capture(lua_State *L) {
  CabDevice *device = bind_check_device(L, 1);
  if (lua_type(L, 2) != LUA_TFUNCTION) bind_arg_error(L, 2, "function expected, got %s", bind_type_name(L, 2));
  bind_refuse_capture(L, "another capture");
  lua_settop(L, 2);
  Graph **slot = lua_newuserdatauv(L, sizeof *slot, 0);
  *slot = NULL;
  luaL_setmetatable(L, BIND_GRAPH);
  Graph *g = cab_calloc(1, sizeof *g);
  if (!g) bind_raise(L, cab_error()->code);
  g->device = device;
  *slot = g;
  record(L, g, 2);
  return 1;
}

/* graph:replay(): everything again, in the order of the device's other work; returns before it is done. */
static int graph_replay(lua_State *L) {
  Graph *g = *check_graph(L);
  if (!g || !g->graph) bind_fail(L, CAB_E_LUA, "replay: the graph is closed");
  bind_refuse_capture(L, "a replay");
  CabStatus status = cab_graph_replay(g->device, g->graph);
  if (status) bind_raise(L, status);
  return 0;
}

/* graph:close(), __close, __gc: its memory goes back; again is no error. */
static int graph_close(lua_State *L) {
  Graph **slot = check_graph(L), *g = *slot;
  *slot = NULL;
  if (!g) return 0;
  if (capturing) g->next = waiting, waiting = g;
  else free_graph(g);
  return 0;
}

void bind_capture(lua_State *L) {
  static const luaL_Reg meta[] = {{"__gc", graph_close}, {"__close", graph_close}, {NULL, NULL}};
  static const luaL_Reg methods[] = {{"replay", graph_replay}, {"close", graph_close}, {NULL, NULL}};
  if (luaL_newmetatable(L, BIND_GRAPH)) {
    luaL_setfuncs(L, meta, 0);
    luaL_newlib(L, methods);
    lua_setfield(L, -2, "__index");
    lua_pushliteral(L, "graph");
    lua_setfield(L, -2, "__metatable");
  }
  lua_pop(L, 1);
  lua_pushcfunction(L, capture);
  lua_setfield(L, -2, "capture");
}
