--- The prompt: expressions are printed, errors never end it, SIGINT stops a running line, TAB completes names, fields and files,
--- ?name says what something is, _ is the last result.
local core = require "cab.core"
local lfs = require "lfs"
local manual = require "cab.manual"
local term = require "cab.term"
local M = {}

local LONGEST = 1000 -- bytes of a string that are shown
local history = (os.getenv "HOME" or ".") .. "/.cab_history"

-- Fields of a value that completion may offer: of tables and of what their __index tables hold.
local function fields(value, names)
  local seen = 0
  while value ~= nil and seen < 8 do
    seen = seen + 1
    local ok = pcall(function()
      if type(value) == "table" then
        for k in next, value do if type(k) == "string" then names[k] = true end end
      end
    end)
    if not ok then return end
    local meta = debug.getmetatable(value)
    value = type(meta) == "table" and rawget(meta, "__index") or nil
    if type(value) == "function" then -- methods behind a C function: its first upvalue
      local _, methods = debug.getupvalue(value, 1)
      value = methods
    end
    if type(value) ~= "table" then return end
  end
end

-- Files that go on with an unfinished string: the word is its last piece, `line` all before it.
local function files(word, line)
  local open = (line .. word):match "[\"']([^\"']*)$" or ""
  local dir, last = open:match "^(.*/)([^/]*)$"
  dir, last = dir or "", last or open
  local out, before = {}, open:sub(1, #open - #word) -- of the string, what stands before the word
  if lfs.attributes(dir == "" and "." or dir, "mode") ~= "directory" then return out end
  for name in lfs.dir(dir == "" and "." or dir) do
    if name:sub(1, #last) == last and (name:sub(1, 1) ~= "." or last:sub(1, 1) == ".") then
      local path = dir .. name .. (lfs.attributes(dir .. name, "mode") == "directory" and "/" or "")
      out[#out + 1] = path:sub(#before + 1)
    end
  end
  table.sort(out)
  return out
end

-- True where a line ends inside a string.
local function in_string(line)
  local quote
  for c in line:gsub("\\.", ""):gmatch "[\"']" do
    if not quote then quote = c elseif quote == c then quote = nil end
  end
  return quote ~= nil
end

--- Completions of the word before the cursor: "cab.da" -> {"cab.data"}, "t:sh" -> {"t:shape"}; of files inside a string.
---@param word string
---@param env table
---@param line? string what stands before the word
---@return string[]
function M.complete(word, env, line)
  if line and in_string(line) then return files(word, line) end
  local path, mark, last = word:match("^(.-)([.:]?)([%w_]*)$")
  local names, value = {}, env
  if mark ~= "" then
    for part in path:gmatch("[%w_]+") do
      local ok, v = pcall(function() return value[part] end)
      if not ok or v == nil then return {} end
      value = v
    end
  end
  fields(value, names)
  if mark == "" then fields(_G, names) end
  if mark ~= "" and rawequal(value, env.cab) then require "cab".fields(names) end
  if type(value) == "table" and getmetatable(value) and getmetatable(value).__name == "cab.session" then
    fields(require "cab.session".methods, names)
    names.student, names.teacher = true, true
  end
  local out = {}
  for name in pairs(names) do
    if name:sub(1, #last) == last and name:sub(1, 2) ~= "__" then out[#out + 1] = path .. mark .. name end
  end
  table.sort(out)
  return out
end

local function show(value)
  if type(value) == "string" then
    local text = ("%q"):format(value:sub(1, LONGEST)):gsub("\\\n", "\\n")
    return #value > LONGEST and ("%s... (%d bytes)"):format(text, #value) or text
  end
  if type(value) == "table" and not (getmetatable(value) or {}).__tostring then
    local parts, count = {}, 0
    for _, v in ipairs(value) do
      if count >= 20 then break end
      count = count + 1
      parts[count] = type(v) == "table" and "{...}" or tostring(v)
    end
    for k, v in pairs(value) do
      if count >= 20 then parts[count + 1] = "..."; break end
      if not (math.type(k) == "integer" and k >= 1 and k <= #value) then
        count = count + 1
        parts[count] = tostring(k) .. "=" .. (type(v) == "table" and "{...}" or tostring(v))
      end
    end
    return "{" .. table.concat(parts, ", ") .. "}"
  end
  return tostring(value)
end

-- Text from outside may hold escape sequences and be long: line by line, printable, cut.
local function clean(text)
  local function code(c) return (c == "\n" or c == "\t") and c or (c:gsub(".", function(b) return ("\\x%02X"):format(b:byte()) end)) end
  if #text > 8 * LONGEST then text = ("%s... (%d bytes)"):format(text:sub(1, 8 * LONGEST), #text) end
  if not utf8.len(text) then text = text:gsub("[\x80-\xff]", code) end
  return (text:gsub("%c", code):gsub("\xc2[\x80-\x9f]", code)) -- C0, DEL, C1
end

local function compile(text, env)
  local chunk = load("return " .. text, "=stdin", "t", env)
  if chunk then return chunk end
  return load(text, "=stdin", "t", env)
end

local interruptible = core.interruptible or function(f, ...) return f(...) end

--- Runs one complete chunk and writes what it returns or its error.
---@param text string
---@param env table
---@param write fun(text: string)
---@return boolean more true if the chunk is not complete yet
function M.line(text, env, write)
  local asked = text:match "^%s*%?%s*(.-)%s*$"
  if asked then
    local ok, said = pcall(manual.about, asked ~= "" and asked or nil, env)
    write(clean(ok and said or "error: " .. tostring(said)))
    return false
  end
  local chunk, why = compile(text:gsub("^%s*=", "return "), env)
  if not chunk then
    if why:find("<eof>", 1, true) then return true end
    write(clean(why))
    return false
  end
  local results = table.pack(pcall(interruptible, chunk))
  if not results[1] then
    local e = results[2]
    local ok, message = pcall(tostring, e)
    write("error: " .. clean(ok and message or "error object without a message"))
    return false
  end
  local out = {}
  for i = 2, results.n do
    local ok, s = pcall(show, results[i])
    out[#out + 1] = clean(ok and s or "?")
  end
  if results.n > 1 and results[2] ~= nil then
    env.___, env.__, env._ = rawget(env, "__"), rawget(env, "_"), results[2]
  end
  if #out > 0 then write(table.concat(out, "\t")) end
  return false
end

-- time(f, ...): what f returns, and how long it took.
local function time(f, ...)
  local begun = core.now()
  local results = table.pack(f(...))
  print(("%.3g s"):format(core.now() - begun))
  return table.unpack(results, 1, results.n)
end

--- The environment of the prompt: globals, cab, op, nn, help, time, plot, show; _, __ and ___ are the last results.
---@return table
function M.environment()
  local cab = require "cab"
  local function drawn(name)
    return function(...) print(require "cab.show"[name](...)) end
  end
  return setmetatable({ cab = cab, op = cab.op, nn = cab.nn, time = time,
    plot = drawn "plot", show = drawn "show" }, { __index = _G })
end

--- The prompt until end of input.
---@return integer exit code
function M.run()
  local env = M.environment()
  env.help = function(x) print(manual.about(x, env)) end
  local editor = core.editline and core.isatty(0) and core.editline.available() and core.editline or nil
  local function write(text) print(text) io.stdout:flush() end
  if core.isatty(1) then write "cab: Lua 5.4 prompt. ? lists what there is, ?matmul explains; recipe = cab.open \"FILE\" is a run; end with Ctrl-D." end
  if editor then
    editor.complete(function(word, line) return M.complete(word, env, line) end)
    editor.load(history)
  end
  core.catch_signals(true) -- at the prompt SIGINT drops the line, twice within 2 s it ends the program with 130
  local signals = 0
  local pending
  while true do
    local prompt = pending and ">> " or "> "
    local text
    if editor then
      text = editor.readline(prompt)
    else
      if core.isatty(0) then io.write(prompt) io.stdout:flush() end
      text = io.read("l")
    end
    local now, last = core.interrupted()
    if not text and not (now > signals and last == "SIGINT") then break end
    signals = now
    if not text then
      write ""
      pending, text = nil, ""
    end
    if editor and text:find("%S") then
      editor.add(text)
      editor.save(history)
    end
    if pending and text == "" and #pending > 4096 then pending = nil end
    local whole = pending and pending .. "\n" .. text or text
    if whole:find("%S") then
      local begun = core.now()
      pending = M.line(whole, env, write) and whole or nil
      local spent = core.now() - begun
      if spent > 1 and core.isatty(1) then write(term.paint(("%.1f s"):format(spent), "dim")) end
    end
  end
  core.catch_signals(false)
  if pending then write("stdin: unfinished: " .. clean(pending)) end
  return 0
end

return M
