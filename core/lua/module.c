/* module.c - the table of require "cab.core". */
#include "bind.h"
#include "cab.h"

int luaopen_cab_core(lua_State *L) {
  lua_newtable(L);
  if (bind_find_library()) lua_pushstring(L, bind_library), lua_setfield(L, -2, "library");
  lua_pushliteral(L, CAB_VERSION), lua_setfield(L, -2, "version");
  bind_error(L);
  bind_tensor(L);
  bind_tensor_make(L);
  bind_concat(L);
  bind_op(L);
  bind_custom(L);
  bind_scope(L);
  bind_capture(L);
  bind_optim(L);
  bind_misc(L);
  bind_file(L);
  bind_signal(L);
  bind_json(L);
  bind_doctor(L);
  bind_edit(L);
  bind_io(L);
  bind_data(L);
  bind_text(L);
  bind_dist(L);
  bind_rows(L);
  return 1;
}
