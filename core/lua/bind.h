/* bind.h - shared by the bindings, the only files that see Lua. Rules that keep errors from leaking:
 *   1. Make the result userdata first (payload NULL), then call the core, then fill it; the collector owns it from there.
 *   2. Nothing from the core or malloc is held by a C variable while a Lua function that may raise runs.
 *   3. Errors are raised by bind_raise alone (bind_fail and bind_arg_error end there). */
#ifndef CAB_BIND_H
#define CAB_BIND_H
#include <lauxlib.h>
#include <lua.h>

#include "base.h"
#include "tensor.h"

/* Names in the registry (luaL_newmetatable) and in messages. */
#define BIND_TENSOR "cab.tensor"
#define BIND_ERROR "cab.error"
#define BIND_SCOPE "cab.scope"
#define BIND_LOCK "cab.lock"
#define BIND_DATASET "cab.dataset"
#define BIND_LOADER "cab.loader"
#define BIND_GRAPH "cab.graph"

/* ---- errors (error.c) ---------------------------------------------------------------------- */

/* Raise the error slot as a table {code, id, message, file, offset, where}; tostring is "train.lua:12: op: text". */
_Noreturn int bind_raise(lua_State *L, CabStatus status);
/* cab_fail + bind_raise; strings of the arguments may be anything that stays valid during the call. */
_Noreturn int bind_fail(lua_State *L, CabStatus code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* "FUNCTION: argument 2: TEXT"; counts without self in method calls. */
_Noreturn int bind_arg_error(lua_State *L, int arg, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* "train.lua:7": the nearest Lua line outside the library, or else the nearest at all; "" if none. */
const char *bind_where(lua_State *L, char out[48]);
/* True once if the error slot says out of memory: after a full collection and trimming caches. Then try again. */
bool bind_collect(lua_State *L);
/* status of `call` after at most one retry. */
#define BIND_TRY(L, call)                                                          \
  do {                                                                             \
    CabStatus try_ = (call);                                                       \
    if (try_ == CAB_E_MEMORY && bind_collect(L)) try_ = (call);                    \
    if (try_ != CAB_OK) bind_raise(L, try_);                                       \
  } while (0)
/* *slot = call, where call returns a new reference or NULL; charges new bytes to the collector. */
#define BIND_FILL(L, slot, call)                                                   \
  do {                                                                             \
    CabTensor **slot_ = (slot);                                                    \
    if (!(*slot_ = (call)) && bind_collect(L)) *slot_ = (call);                    \
    if (!*slot_) bind_raise(L, cab_error()->code);                                 \
    bind_charge(L, *slot_);                                                        \
  } while (0)

/* ---- tensors (tensor.c) -------------------------------------------------------------------- */

CabTensor **bind_new_tensor(lua_State *L);              /* pushes userdata with payload NULL: owner of one reference */
void bind_push_tensor(lua_State *L, CabTensor *t);      /* pushes userdata that shares t (retains it); nil for NULL */
CabTensor *bind_check_tensor(lua_State *L, int idx);    /* open tensor, borrowed; anything else is an error */
CabTensor *bind_opt_tensor_arg(lua_State *L, int idx);  /* NULL for nil and none */
CabTensor *bind_test_tensor(lua_State *L, int idx);     /* NULL if not a tensor; closed ones are returned too */
/* A list {t1, t2, ...} as an array that lives in a userdata pushed on the stack; holes are errors. */
CabTensor **bind_check_tensors(lua_State *L, int idx, int *count);
/* "FUNCTION: a tensor on cpu with one on cuda:0": raises unless a (NULL: nothing) is where b is. */
void bind_same_device(lua_State *L, const CabTensor *a, const CabTensor *b);
void bind_charge(lua_State *L, const CabTensor *t);     /* bytes born outside scopes drive the collector */
typedef struct { double min, max, mean, std; int64_t bad; } BindRange; /* of the finite values; bad: number of others */
BindRange bind_range(lua_State *L, CabTensor *t);
CabTensor *bind_apply(const char *op, CabTensor *a, CabTensor *b, double first, double second); /* one output; options in order */
void bind_fill_value(lua_State *L, CabTensor *t, double value); /* in place; refuses what does not fit the dtype */

/* ---- arguments and option tables (args.c): wrong type or missing = error with the argument's number or key ----- */

const char *bind_type_name(lua_State *L, int idx);      /* "tensor", "nil", "number", ... */
int64_t bind_check_int(lua_State *L, int idx);          /* integers and floats with integral value; no strings */
double bind_check_number(lua_State *L, int idx);
bool bind_check_bool(lua_State *L, int idx);
const char *bind_check_string(lua_State *L, int idx, size_t *length); /* no numbers; length may be NULL */
const char *bind_check_path(lua_State *L, int idx);     /* string without NUL, not empty */
void bind_check_table(lua_State *L, int idx);           /* raises unless it is a plain table */
int64_t bind_opt_int(lua_State *L, int table, const char *key, int64_t initial);
double bind_opt_number(lua_State *L, int table, const char *key, double initial);
bool bind_opt_bool(lua_State *L, int table, const char *key, bool initial);
/* Valid as long as the table holds it. */
const char *bind_opt_string(lua_State *L, int table, const char *key, const char *initial);
CabTensor *bind_opt_tensor(lua_State *L, int table, const char *key); /* NULL if absent; the table keeps it alive */
/* Like luaL_checkoption: index into the NULL-ended list; error lists the choices. */
int bind_opt_word(lua_State *L, int table, const char *key, const char *initial, const char *const *words);
/* Error for a key outside the NULL-ended list: "FUNCTION: unknown option 'ep'; did you mean 'eps'?". Also non-string keys. */
void bind_unknown_keys(lua_State *L, int table, const char *const *known);
/* The known name nearest to `name` in edits, or NULL if none is near. */
const char *bind_nearest(const char *name, const char *const *known);
/* A table of integers or integers themselves from idx to the top. */
int bind_check_shape(lua_State *L, int idx, int64_t shape[CAB_MAX_RANK]);
int bind_check_dim(lua_State *L, int idx, const CabTensor *t); /* 1-based, negative from the end -> 0-based */
CabDtype bind_opt_dtype(lua_State *L, int idx, CabDtype initial);
CabDevice *bind_opt_device(lua_State *L, int idx);      /* the CPU for nil and none; absent: an error with code 69 */
CabDevice *bind_check_device(lua_State *L, int idx);
const char *bind_function(lua_State *L);                /* name of the running bound function for messages, "?" if unknown */

/* ---- capture (capture.c) ------------------------------------------------------------------- */

CabDevice *bind_capturing(void);                        /* whose launches go into a graph now, or NULL */
void bind_refuse_capture(lua_State *L, const char *what); /* raises "WHAT cannot be captured", id "capture", if there is one */

/* ---- callbacks (custom.c) ------------------------------------------------------------------ */

/* Run cab_backward with L as the state of Lua callbacks; their errors arrive unchanged. */
void bind_backward(lua_State *L, int count, CabTensor **roots, CabTensor **seeds);
lua_State *bind_main_state(lua_State *L);
void bind_closed(void);                                 /* the state is gone: later node destructors leave it alone */

/* ---- parts of the core table: each adds its fields to the table at the top ------------------ */
void bind_error(lua_State *L);
void bind_tensor(lua_State *L);
void bind_tensor_make(lua_State *L);
void bind_tensor_methods(lua_State *L);  /* table at the top: the methods of tensors */
void bind_tensor_views(lua_State *L);    /* the same */
void bind_tensor_print(lua_State *L);    /* table at the top: the metatable */
void bind_tensor_operators(lua_State *L);/* the same */
void bind_concat(lua_State *L);
void bind_op(lua_State *L);
void bind_custom(lua_State *L);
void bind_scope(lua_State *L);
void bind_capture(lua_State *L);
void bind_optim(lua_State *L);
void bind_misc(lua_State *L);
void bind_file(lua_State *L);
void bind_signal(lua_State *L);
int bind_stops(void);                    /* signals that ask for a stop so far */
void bind_dist(lua_State *L);            /* bind_dist.c */
void bind_json(lua_State *L);
void bind_doctor(lua_State *L);
void bind_edit(lua_State *L);
void bind_io(lua_State *L);   /* bind_io.c */
void bind_data(lua_State *L); /* bind_data.c */
void bind_text(lua_State *L); /* bind_text.c */
void bind_rows(lua_State *L); /* bind_rows.c */
int luaopen_cab_core(lua_State *L);

/* Library directory ("/usr/share/cab/lua"), set by bind_find_library: lines inside it are not the user's. */
extern char bind_library[4096];
bool bind_find_library(void);           /* library.c; false: it is not there */
void bind_set_paths(lua_State *L);      /* package.path begins with it */
#endif
