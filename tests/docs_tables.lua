-- Pages that are made from the program: build/cab run tests/docs_tables.lua recipe > docs/recipe.md
local made = {
  recipe = function() return require "cab.reference".markdown() end,
}
local make = made[arg[1] or ""]
if not make then
  io.stderr:write "usage: build/cab run tests/docs_tables.lua recipe\n"
  return 2
end
io.write(make())
