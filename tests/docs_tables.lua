-- Pages and types that are made from the program: build/cab run tests/docs_tables.lua recipe > docs/recipe.md
package.path = "./tests/?.lua;" .. package.path
local made = {
  recipe = function() return require "cab.reference".markdown() end,
  api = function() return require "api".markdown() end,
  types = function() return require "types_table".ops() end,
  recipe_types = function() return require "types_table".recipes() end,
  gaps = function()
    local list = {}
    for _, gaps in ipairs { require "cab.reference".gaps(), require "api".gaps() } do
      for _, line in ipairs(gaps) do list[#list + 1] = line .. "\n" end
    end
    return table.concat(list)
  end,
}
local make = made[arg[1] or ""]
if not make then
  io.stderr:write "usage: build/cab run tests/docs_tables.lua recipe | api | types | recipe_types | gaps\n"
  return 2
end
io.write(make())
