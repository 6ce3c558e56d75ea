-- What stands in README.md and docs/*.md is true: snippets are run, quotations stand where they are from, links lead somewhere.
local core = require "cab.core"
local docs = require "docs"
local lfs = require "lfs"
local recipes = require "cab.recipe"
local compare = require "cab.compare"

local function read(path)
  local f <close> = assert(io.open(path))
  return f:read "a"
end

local pages = { "README.md" }
for name in lfs.dir "docs" do
  if name:find "%.md$" then pages[#pages + 1] = "docs/" .. name end
end
table.sort(pages)

local RUN = { lua = true, console = true, repl = true, sh = true, c = true }
local FIGURE = { text = true, [""] = true } -- drawings, tables, signatures

local helps = {} -- command -> its help text
local function help_of(command)
  if not helps[command] then
    local code, text = require "process".sh(("'%s' %s --help"):format(require "process".program, command))
    assert.equal(0, code, "cab has no command " .. command .. "\n" .. text)
    helps[command] = text
  end
  return helps[command]
end

-- A command that stands in an indented block is not run: its command and options must be those of the program, the recipe must
-- be there and take the overrides.
local function check_call(line)
  local words = {}
  for word in line:gsub("%s#.*", ""):gmatch "%S+" do words[#words + 1] = word:gsub("^[\"']", ""):gsub("[\"']$", "") end
  local program = words[1]
  if program == "make" then
    for i = 2, #words do
      assert(words[i]:find "=" or read "Makefile":find("\n" .. words[i] .. ":"), "Makefile has no target " .. words[i])
    end
  elseif program == "build/cab" or program == "cab" then
    local help = help_of(words[2])
    for i = 3, #words do
      local flag = words[i]:match "^%-%-?[%a-]+"
      assert(not flag or help:find(flag, 1, true), ("cab %s has no option %s"):format(words[2], flag or ""))
    end
    if words[2] == "run" and lfs.attributes(words[3]) then
      local value, overrides = core.loadfile(words[3])(), {}
      for i = 4, #words do if words[i]:find "^[%w_.]+=" then overrides[#overrides + 1] = words[i] end end
      assert(recipes.is(value) or compare.is(value) or #overrides == 0, words[3] .. " is no recipe")
      if #overrides > 0 then value:override(overrides) end
    elseif words[2] == "run" then
      assert(not words[3]:find "^recipes/" and not words[3]:find "^examples/", words[3] .. " is not there")
    end
  else
    assert(lfs.attributes(program), "nothing known of the command " .. program)
  end
end

local function differs(what, expected, got)
  return ("%s prints\n%s\nbut the page has\n%s"):format(what, got, expected)
end

local run = {}

function run.sh(s)
  for line in s.text:gmatch "[^\n]+" do check_call(line) end
end

function run.console(s, dir)
  local commands = docs.commands(s.text)
  assert(#commands > 0, "a console snippet has no line that begins with '$ '")
  for i, c in ipairs(commands) do
    local code, out = docs.run(dir, c.text, s.notes.with)
    local expected = i == #commands and math.tointeger(tonumber(s.notes.exits)) or 0
    assert(code == expected, ("%s exits with %d\n%s"):format(c.text, code, out))
    assert(docs.same(c.output, out, s.notes.numbers ~= "vary" and not s.notes.with and 0.02 or nil), differs(c.text, c.output, out))
  end
end

function run.lua(s, dir, page)
  docs.write(s, dir)
  local out = docs.lua(s.text, dir, s.notes["goes on"] and page.text)
  page.text = s.notes["goes on"] and page.text .. s.text or s.text
  local expected = s.output or ""
  assert(docs.same(expected, out, 0.02), differs("the snippet", expected, out))
end

function run.c() error "a C snippet needs <!-- from: FILE -->" end

function run.repl(s)
  local mark = s.text:match "^%a*> "
  local out = docs.prompt(s.text, mark)
  assert(docs.same(s.text, out, 0.02), differs("the prompt", s.text, out))
end

for _, path in ipairs(pages) do
  describe(path, function()
    local page, dir = {}, nil
    setup(function() dir = docs.folder() end)
    teardown(function() os.execute(("rm -rf '%s'"):format(dir)) end)
    for _, s in ipairs(docs.snippets(path)) do
      local title = ("%s snippet of line %d"):format(s.lang, s.line)
      if s.notes["not run"] then
        pending(title .. ": " .. s.notes["not run"])
      elseif s.notes.from then
        it(title .. " stands in " .. s.notes.from, function()
          local ok, part = docs.quoted(s.text, read(s.notes.from))
          assert(ok, ("%s:%d: not in %s:\n%s"):format(path, s.line, s.notes.from, part or ""))
        end)
      elseif RUN[s.lang] then
        it(title .. (s.lang == "sh" and " is understood" or s.notes.with and " is run, shortened" or " is run"), function()
          run[s.lang](s, dir, page)
        end)
      elseif not FIGURE[s.lang] then
        it(title, function() error("unknown language of a snippet: " .. s.lang) end)
      end
    end
    it("leads to files that are there", function()
      local text, folder = ("\n" .. read(path)):gsub("\n```.-\n```", ""), path:match "^(.*/)" or ""
      for target in text:gmatch "%]%(([^)#]+)[^)]*%)" do
        assert(target:find "^https?:" or lfs.attributes(folder .. target), "no " .. target)
      end
      for file, name in text:gmatch "`([%w_/-]+%.%a+):([%w_.:]+)`" do
        assert(lfs.attributes(file) and read(file):find(name, 1, true), ("no %s in %s"):format(name, file))
      end
      for name in text:gmatch "`([%w_./-]+)`" do
        local first = name:match "^(%a+)/"
        local ours = first == "lua" or first == "core" or first == "kernels" or first == "recipes" or first == "examples" or first == "tests"
          or first == "docs"
        assert(not ours or name:find "NAME" or lfs.attributes(name), "no file " .. name)
      end
    end)
  end)
end

describe("pages made from the program", function()
  local process = require "process"
  local function made(word) -- by a process of its own: this one may have maps and models of other specs
    local command = "run tests/docs_tables.lua " .. word
    local code, text = process.sh(("'%s' %s"):format(process.program, command))
    assert.equal(0, code, text)
    return text, command
  end
  for path, word in pairs { ["docs/recipe.md"] = "recipe", ["docs/api.md"] = "api", ["lua/types/op.lua"] = "types",
    ["lua/types/recipe.lua"] = "recipe_types" } do
    it("are as it is now: " .. path, function()
      local text, command = made(word)
      assert(text == read(path), ("%s is old: build/cab %s > %s"):format(path, command, path))
      if path:find "%.lua$" then assert(load(text, path, "t")) end
    end)
  end
  it("say of every key of a recipe what it means, of every public function what it takes and returns", function()
    assert.equal("", made "gaps")
  end)
  it("have types whose names and arguments are those of the ops", function()
    local types = read "lua/types/op.lua"
    for name in pairs(core.ops) do assert(types:find(("\nfunction op.%s("):format(name), 1, true), "no type of op." .. name) end
  end)
end)

describe("snippets of docs", function()
  it("are compared word by word, numbers within a tolerance", function()
    assert.is_true(docs.same("a 1.00 b\n", "a   1.01 b\n", 0.02))
    assert.is_false(docs.same("a 1.00 b\n", "a 1.10 b\n", 0.02))
    assert.is_false(docs.same("a 1.00 b\n", "a 1.00 c\n"))
    assert.is_true(docs.same("a\n...\nz 3\n", "a\nb\nc\nz 4\n"))
    assert.is_false(docs.same("a\n...\nz\n", "a\nb\n"))
    assert.is_false(docs.same("a\n", "a\nb\n"))
    assert.is_false(docs.same("a\nb\n", "a\n"))
  end)
  it("are quoted with gaps, in order", function()
    assert.is_true(docs.quoted("one\n...\nthree\n", "one\ntwo\nthree\n"))
    assert.is_false(docs.quoted("three\n...\none\n", "one\ntwo\nthree\n"))
    assert.is_false(docs.quoted("one\nthree\n", "one\ntwo\nthree\n"))
  end)
  it("that name what is not there are found", function()
    for _, line in ipairs { "build/cab rnu x", "build/cab run recipes/none.lua", "build/cab run recipes/quickstart.lua optim.lrr=1", "make nothing",
      "build/cab eval runs/a --nothing", "nothing at all" } do
      assert.is_false(pcall(check_call, line), line)
    end
  end)
end)
