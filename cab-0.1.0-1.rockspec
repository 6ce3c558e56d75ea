rockspec_format = "3.0"
package = "cab"
version = "0.1.0-1"
source = { url = "git+file://." }
description = {
  summary = "Distils transformers into state space models",
  detailed = "Tensors, training and recipes under Lua 5.4. Needs the libraries that packaging/control lists. The embedded images and texts come with make install only.",
  license = "MIT",
}
dependencies = { "lua == 5.4", "argparse >= 0.7", "luafilesystem >= 1.8" }
build = {
  type = "make",
  build_target = "module",
  install_target = "install-rock",
  install_variables = { ROCK_LUADIR = "$(LUADIR)", ROCK_LIBDIR = "$(LIBDIR)" },
}
