--- The prompt: expressions are printed, errors never end it, SIGINT stops a running line, TAB completes names.
local core = require "cab.core"
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

--- Completions of the word before the cursor: "cab.da" -> {"cab.data"}, "t:sh" -> {"t:shape"}.
---@param word string
---@param env table
---@return string[]
function M.complete(word, env)
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

--- help(): the ops. help "matmul" or help(cab.op.matmul): signature. help(table): its fields.
local function help(x)
  if x == nil then return core.help() end
  if type(x) == "function" then
    for name, f in pairs(core.ops) do if f == x then return core.help(name) end end
    local info = debug.getinfo(x, "S")
    return ("function of %s:%d"):format(info.short_src, info.linedefined)
  end
  if type(x) == "table" then
    local names, list = {}, {}
    fields(x, names)
    for name in pairs(names) do list[#list + 1] = name end
    table.sort(list)
    return table.concat(list, " ")
  end
  return core.help(x)
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
  if #out > 0 then write(table.concat(out, "\t")) end
  return false
end

--- The environment of the prompt: globals, cab, op, nn, help.
function M.environment()
  local cab = require "cab"
  return setmetatable({ cab = cab, op = cab.op, nn = cab.nn, help = function(x) print(help(x)) end }, { __index = _G })
end

--- The prompt until end of input.
---@return integer exit code
function M.run()
  local env = M.environment()
  local editor = core.editline and core.isatty(0) and core.editline.available() and core.editline or nil
  local function write(text) print(text) io.stdout:flush() end
  if core.isatty(1) then write "cab: Lua 5.4 prompt. help() lists the ops, help \"matmul\" explains one; end with Ctrl-D." end
  if editor then
    editor.complete(function(word) return M.complete(word, env) end)
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
      pending = M.line(whole, env, write) and whole or nil
    end
  end
  core.catch_signals(false)
  if pending then write("stdin: unfinished: " .. clean(pending)) end
  return 0
end

return M
