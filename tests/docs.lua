--- Pages of documentation as tests: snippets with what stands about them in the comments before them, and how what they print is
--- compared. A comment is one of
---   <!-- file: my/a.lua -->     the snippet is written to that file of the page's folder before it is run
---   <!-- from: kernels/a.h -->  the snippet stands word for word in that file; a line "..." is a gap
---   <!-- with: a=1 b=2 -->      a shortened form: these words follow every `build/cab` of the snippet
---   <!-- exits: 2 -->           the exit code of its last command
---   <!-- numbers: vary -->      those that a console snippet prints are of one machine or follow on a shortened snippet: words alone are compared
---   <!-- goes on -->            it follows the page's snippet before it, whose locals it sees
---   <!-- not run: reason -->
--- build/cab run tests/docs.lua docs/PAGE.md writes into a page what its snippets print.
local core = require "cab.core"
local lfs = require "lfs"
if not package.path:find("./tests/", 1, true) then package.path = "./tests/?.lua;" .. package.path end -- run as a program
local process = require "process"
local M = {}

local KEYS = { file = true, from = true, with = true, exits = true, numbers = true, ["goes on"] = true, ["not run"] = true }

--- Snippets of a page, in order: {page, line, lang, text, notes, output?}. Indented ones have the language "sh". An ```output
--- fence belongs to the one before it.
---@param path string
---@return table[]
function M.snippets(path)
  local list, notes, open, number, blank = {}, {}, nil, 0, true
  for line in io.lines(path) do
    number = number + 1
    local key, value
    if line:find "^<!%-%- goes on %-%->$" then key, value = "goes on", "" else key, value = line:match "^<!%-%- ([%a ]+): (.-) %-%->$" end
    if open and open.fence and line:find "^```%s*$" then
      open.text = table.concat(open, "\n") .. "\n"
      open.last = number
      if open.lang == "output" then list[#list].output, list[#list].printed = open.text, open else list[#list + 1] = open end
      open = nil
    elseif open and open.fence then open[#open + 1] = line
    elseif key then
      assert(KEYS[key], ("%s:%d: unknown note '%s'"):format(path, number, key))
      notes[key] = value
    elseif line:find "^```" then
      open = { page = path, line = number, lang = line:match "^```(%w*)", notes = notes, fence = true }
      notes = {}
    elseif line:find "^    %S" and (blank or open) then
      if not open then
        open = { page = path, line = number, lang = "sh", notes = notes }
        list[#list + 1], notes = open, {}
      end
      open[#open + 1] = line:sub(5)
      open.text = table.concat(open, "\n") .. "\n"
    else open = nil end
    blank = line == ""
  end
  assert(not open or not open.fence, path .. ": a fence is not closed")
  return list
end

-- Text without what may differ: blanks at ends of lines and runs of them; its numbers.
local function bare(text)
  return (text:gsub("[ \t]+", " "):gsub(" ?\n", "\n"):gsub("%-?%d[%d.,]*e[+-]?%d+", "#"):gsub("%-?%d[%d.,]*", "#"))
end

local function lines_of(text)
  local list = {}
  for line in text:gmatch "([^\n]*)\n" do list[#list + 1] = line end
  return list
end

local function numbers_of(text)
  local list = {}
  for n in text:gmatch "%-?%d+%.?%d*e?[+-]?%d*" do list[#list + 1] = tonumber(n) or false end
  return list
end

local function near(expected, got, tolerance)
  if bare(expected .. "\n") ~= bare(got .. "\n") then return false end
  local e, g = numbers_of(expected), numbers_of(got)
  if not tolerance then return true end
  for i, x in ipairs(e) do
    if x and g[i] and math.abs(x - g[i]) > tolerance * math.abs(x) + 1e-6 then return false end
  end
  return #e == #g
end

--- Whether `got` is as `expected`: the same words; numbers within `tolerance` of each other (nil: any). A line "..." of what is
--- expected stands for any lines.
---@param expected string
---@param got string
---@param tolerance? number
---@return boolean
function M.same(expected, got, tolerance)
  local e, g = lines_of(expected), lines_of(got:find "\n$" and got or got ~= "" and got .. "\n" or "")
  local function match(i, j)
    if not e[i] then return not g[j] end
    if e[i] == "..." then
      for k = j, #g + 1 do if match(i + 1, k) then return true end end
      return false
    end
    return g[j] ~= nil and near(e[i], g[j], tolerance) and match(i + 1, j + 1)
  end
  return match(1, 1)
end

--- Whether a quotation stands in a text, line after line; its lines "..." are gaps.
function M.quoted(quotation, text)
  local at = 1
  for part in ("\n" .. quotation):gsub("\n%s*%.%.%.%f[\n]", "\0"):gmatch "[^%z]+" do
    part = part:gsub("^\n", ""):gsub("\n$", "")
    local from, to = text:find(part, at, true)
    if not from then return false, part end
    at = to + 1
  end
  return true
end

--- A folder that looks like the repository, for the runs of a page.
---@return string
function M.folder()
  local dir, here = process.folder(), lfs.currentdir()
  lfs.mkdir(dir .. "/build")
  lfs.link(process.program, dir .. "/build/cab", true)
  for name in lfs.dir(here) do
    if not name:find "^%." and not name:find "^build" and name ~= "runs" then lfs.link(here .. "/" .. name, dir .. "/" .. name, true) end
  end
  return dir
end

--- Commands of a console snippet: {text, output}.
function M.commands(text)
  local list = {}
  for line in text:gmatch "([^\n]*)\n" do
    local last = list[#list]
    if line:find "^%$ " then list[#list + 1] = { text = line:sub(3), output = "" }
    elseif last and last.output == "" and last.text:find "\\$" then last.text = last.text:sub(1, -2) .. line
    else last.output = last.output .. line .. "\n" end
  end
  return list
end

--- Runs a command line in a folder. @return integer code, string output
function M.run(dir, line, with)
  if with then line = line:gsub("(build/cab %a+ [^|>&;]+)", function(call) return call:gsub("%s+$", "") .. " " .. with .. " " end) end
  return process.sh(("cd '%s' && export HOME='%s' OMP_NUM_THREADS=1 && %s"):format(dir, dir, line))
end

--- Writes a snippet that has a file's name to that file of a folder.
function M.write(s, dir)
  local name = s.notes.file
  if not name then return end
  for i in name:gmatch "()/" do lfs.mkdir(dir .. "/" .. name:sub(1, i - 1)) end
  core.write_file(dir .. "/" .. name, s.text)
end

--- Runs Lua text as a page's reader would, in `dir`; what a text before it on the page printed is dropped.
---@param text string
---@param dir string
---@param before? string
---@return string printed
function M.lua(text, dir, before)
  local out = {}
  local function say(...)
    local parts = table.pack(...)
    for i = 1, parts.n do parts[i] = tostring(parts[i]) end
    out[#out + 1] = table.concat(parts, "\t") .. "\n"
  end
  local env = setmetatable({ print = say, mark_of_docs = function() out = {} end }, { __index = _G })
  local chunk = assert(load((before and before .. " mark_of_docs() " or "") .. text, "=snippet", "t", env))
  local here = lfs.currentdir()
  assert(lfs.chdir(dir))
  local ok, value = pcall(chunk)
  assert(lfs.chdir(here))
  if not ok then error(tostring(value), 0) end
  return table.concat(out), value
end

--- Runs the lines of a prompt. @return string what it would show, prompts included
function M.prompt(text, mark)
  local repl, out = require "cab.repl", {}
  local function write(line) out[#out + 1] = line .. "\n" end
  local env = repl.environment()
  env.print = function(...) write(table.concat({ ... }, "\t")) end
  env.help = function(x) write(repl.help and repl.help(x) or core.help(type(x) == "string" and x or M.name_of(x))) end
  for line in text:gmatch "([^\n]*)\n" do
    if line:sub(1, #mark) == mark then
      write(line)
      repl.line(line:sub(#mark + 1), env, write)
    end
  end
  return table.concat(out)
end

--- The name of an op's function.
function M.name_of(f)
  for name, g in pairs(core.ops) do if g == f then return name end end
end

--- Writes into a page what its snippets print, where that is not as it stands there; runs them in full.
function M.fill(path)
  local dir, page, lines, edits = M.folder(), "", {}, {}
  for line in io.lines(path) do lines[#lines + 1] = line end
  local function put(from, to, text) table.insert(edits, 1, { from, to, text }) end
  for _, s in ipairs(M.snippets(path)) do
    local lang = not (s.notes["not run"] or s.notes.from) and s.lang
    if lang == "console" then
      local out = {}
      for _, c in ipairs(M.commands(s.text)) do
        local _, got = M.run(dir, c.text)
        out[#out + 1] = "$ " .. c.text .. "\n" .. (M.same(c.output, got) and c.output or got)
      end
      put(s.line + 1, s.last - 1, table.concat(out))
    elseif lang == "repl" then
      put(s.line + 1, s.last - 1, M.prompt(s.text, s.text:match "^%a*> "))
    elseif lang == "lua" then
      M.write(s, dir)
      local got = M.lua(s.text, dir, s.notes["goes on"] and page)
      page = s.notes["goes on"] and page .. s.text or s.text
      if s.printed and not M.same(s.output, got, 0.02) then put(s.printed.line + 1, s.printed.last - 1, got)
      elseif not s.printed and got ~= "" then put(s.last + 1, s.last, "```output\n" .. got .. "```\n") end
    end
  end
  for _, e in ipairs(edits) do -- from the last one to the first
    local new = table.move(lines, 1, e[1] - 1, 1, {})
    for _, line in ipairs(lines_of(e[3])) do new[#new + 1] = line end
    lines = table.move(lines, e[2] + 1, #lines, #new + 1, new)
  end
  os.execute(("rm -rf '%s'"):format(dir))
  return table.concat(lines, "\n") .. "\n"
end

if arg and arg[0] and arg[0]:find "docs%.lua$" then
  for _, path in ipairs(arg) do core.write_file(path, M.fill(path)) end
  return 0
end
return M
