/* bind_data.h - what the two halves of core.data share. */
#ifndef CAB_BIND_DATA_H
#define CAB_BIND_DATA_H
#include "bind.h"
#include "dataset.h"

typedef struct {
  CabDataset *ds; /* NULL: closed */
} BindSet;

/* Owns what a call holds while Lua may raise. */
typedef struct {
  CabImage image;
  void *memory;
  CabTensor *plain;
} BindHold;
BindHold *bind_new_hold(lua_State *L); /* pushed */

void bind_push_ints(lua_State *L, const int32_t *values, int64_t count); /* i32[count] */
void bind_data_class(lua_State *L, const char *meta, const char *shown, lua_CFunction close, const luaL_Reg *methods);
bool bind_holds(const CabTensor *t, CabDtype dtype, int rank, const int64_t *shape); /* this shape, contiguous */
void bind_write(lua_State *L, CabTensor *t, const void *from, size_t bytes);         /* host memory to a tensor on any device */
void bind_loader(lua_State *L); /* bind_loader.c: adds to the table on top */

#endif
