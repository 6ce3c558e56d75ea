/* cab.h - CAB in a program of one's own: a Lua 5.4 state that has it. cc x.c $(pkg-config --cflags --libs cab)
 *
 *   lua_State *L = cab_open();
 *   if (!L || cab_run(L, "cab = require 'cab'; print(cab.op.sum(cab.tensor { 1, 2 }):item())")) fprintf(stderr, "%s\n", cab_message(L));
 *   lua_close(L);
 *
 * A plain Lua 5.4 finds the same by require "cab". All calls from one thread at a time. */
#ifndef CAB_H
#define CAB_H
#include <lua.h>

#define CAB_VERSION "0.1.0"

#ifdef __cplusplus
extern "C" {
#endif

/* CAB_VERSION of the library. */
const char *cab_version(void);
/* A state with Lua's own libraries, in which require "cab" works. NULL: no memory, or no Lua files beside the library. */
lua_State *cab_open(void);
/* Runs a chunk of text. 0, or the exit code of the fault (1 Lua error, 2 usage, 65 input, 69 device, 71 memory, 74 I/O, 76 numerics). */
int cab_run(lua_State *L, const char *text);
/* The last fault of cab_run as one line; "" if there was none. Valid until the next call. */
const char *cab_message(lua_State *L);
/* For a loader of C modules: the table of require "cab.core". */
int luaopen_cab_core(lua_State *L);

#ifdef __cplusplus
}
#endif
#endif
