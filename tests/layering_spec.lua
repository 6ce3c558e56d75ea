-- Arrows point down: recipes -> lua/cab -> core/lua -> core -> kernels. Greps includes and requires, and fails on an upward one.
local lfs = require "lfs"

local function files(dir, pattern, into)
  into = into or {}
  for name in lfs.dir(dir) do
    local path = dir .. "/" .. name
    if name:sub(1, 1) ~= "." then
      if lfs.attributes(path, "mode") == "directory" then files(path, pattern, into)
      elseif name:match(pattern) then into[#into + 1] = path end
    end
  end
  table.sort(into)
  return into
end

local function read(path)
  local f <close> = assert(io.open(path))
  return f:read "a"
end

local function includes(path)
  local list = {}
  for name in read(path):gmatch '#%s*include%s*[<"]([^>"]+)[>"]' do list[#list + 1] = name end
  return list
end

local rank = { base = 1, tensor = 2, ops = 3, io = 2, data = 3, dist = 3, lua = 4 }
local home = {} -- header -> core folder
for folder in pairs(rank) do
  for _, path in ipairs(files("core/" .. folder, "%.h$")) do home[path:match "[^/]+$"] = folder end
end

describe("layering", function()
  it("keeps kernels free of everything above", function()
    for _, path in ipairs(files("kernels", "%.[ch]$")) do
      for _, name in ipairs(includes(path)) do
        assert(not home[name] or name == "base.h", path .. " includes " .. name)
        assert(not name:match "^l?u?a.*lua", path .. " includes " .. name)
      end
      assert(not read(path):match "%f[%w]malloc%f[%W]", path .. " allocates")
    end
  end)
  it("lets no core folder include one above it", function()
    for folder, level in pairs(rank) do
      for _, path in ipairs(files("core/" .. folder, "%.[ch]$")) do
        for _, name in ipairs(includes(path)) do
          local other = home[name]
          assert(not other or rank[other] <= level, path .. " includes " .. name)
          if name:match "^lua" or name == "lauxlib.h" then assert.equal("lua", folder, path .. " includes " .. name) end
        end
      end
    end
  end)
  it("keeps strategies, recipes and examples on the public API", function()
    for _, dir in ipairs { "lua/cab/strategies", "recipes", "examples" } do
      for _, path in ipairs(files(dir, "%.lua$")) do
        for name in read(path):gmatch "require%s*%(?%s*[\"']([^\"']+)" do
          assert.equal("cab", name, path .. " requires " .. name)
        end
      end
    end
  end)
  it("keeps strategies within 25 lines", function()
    for _, path in ipairs(files("lua/cab/strategies", "%.lua$")) do
      local _, lines = read(path):gsub("\n", "")
      assert(lines <= 25, path .. " has " .. lines .. " lines")
    end
  end)
  it("keeps files within 500 lines", function()
    for _, dir in ipairs { "core", "kernels", "lua", "recipes", "examples", "tests" } do
      for _, path in ipairs(files(dir, "%.[chlp][uy]?[ah]?$")) do
        local text = read(path)
        local _, lines = text:gsub("\n", "")
        assert(lines <= 500 or text:match "[Oo]ver 500 lines because", path .. " has " .. lines .. " lines and gives no reason")
      end
    end
  end)
end)

describe("an op by its name", function()
  local table_of_ops = require "ops_table"
  it("stands in a row, a kernel's header, the PyTorch reference and the docs", function()
    for name, places in pairs(table_of_ops.places()) do
      for _, what in ipairs { "row", "kernel", "reference", "help" } do assert(places[what], name .. " has no " .. what) end
    end
  end)
  it("stands in docs/ops.md as it is", function()
    assert(table_of_ops.text() == read "docs/ops.md", "docs/ops.md is old: build/cab run tests/ops_table.lua > docs/ops.md")
  end)
end)
