--- A run folder: recipe.json (resolved), source.lua (its file), manifest.json (what it ran on), metrics.jsonl (a function of the
--- recipe), speed.jsonl (of the machine), log.txt, result.json, checkpoints/step-N.safetensors with a manifest each, best.safetensors.
--- Every file appears whole or not at all; the newest whole checkpoint wins.
local lfs = require "lfs"
local core = require "cab.core"
local check = require "cab.check"
local M = {}

---@class Folder
---@field path string
local Folder = {}
Folder.__index = Folder

local function exists(path) return lfs.attributes(path, "mode") ~= nil end

--- Makes a folder and those above it that are not there.
---@param path string
local function make_folder(path)
  local at = path:sub(1, 1) == "/" and "/" or ""
  for name in path:gmatch("[^/]+") do
    at = at .. name
    if not exists(at) then
      local ok, why = lfs.mkdir(at)
      if not ok and not exists(at) then check.fail(74, ("%s: mkdir: %s"):format(at, why), { file = at }) end
    end
    at = at .. "/"
  end
end

M.make = make_folder

--- The folder of a new run, runs/NAME-N with the first free N; or the newest one to resume.
---@param name string
---@param resume boolean
---@return string path
function M.choose(name, resume)
  local last = 0
  if exists("runs") then
    for entry in lfs.dir("runs") do
      local n = entry:sub(1, #name + 1) == name .. "-" and math.tointeger(tonumber(entry:sub(#name + 2)))
      if n and n > last then last = n end
    end
  end
  if resume and last == 0 then check.fail(2, ("nothing to resume: there is no runs/%s-N"):format(name)) end
  return ("runs/%s-%d"):format(name, resume and last or last + 1)
end

--- Opens and locks a run folder. A folder that holds a run already is refused unless it is resumed.
---@param path string
---@param resume any falsy: a new run
---@return Folder
function M.open(path, resume)
  if not resume and exists(path .. "/recipe.json") then
    check.fail(2, ("%s holds a run already: resume it with --resume, or give another --out"):format(path))
  end
  if resume and not exists(path .. "/recipe.json") then check.fail(2, ("nothing to resume in %s"):format(path)) end
  local fresh = not exists(path)
  make_folder(path .. "/checkpoints")
  local self = setmetatable({ path = path, fresh = fresh, lines = {}, speeds = {} }, Folder)
  self.lock = core.lock(path)
  return self
end

--- A run folder of a rank that writes nothing: whatever is done to it does nothing.
---@param path string
---@return table
function M.none(path)
  local function nothing() return {} end
  return setmetatable({ path = path, lines = {}, speeds = {} }, { __index = function() return nothing end })
end

--- A run folder for reading only: no lock.
---@param path string
---@return Folder
function M.view(path) return setmetatable({ path = path, lines = {}, speeds = {} }, Folder) end

--- The run folders at a path: itself, or those in it, by name.
---@param path string
---@return string[]
function M.runs(path)
  if exists(path .. "/recipe.json") then return { path } end
  local list = {}
  if lfs.attributes(path, "mode") == "directory" then
    for name in lfs.dir(path) do
      if name:sub(1, 1) ~= "." and exists(path .. "/" .. name .. "/recipe.json") then list[#list + 1] = path .. "/" .. name end
    end
  end
  table.sort(list)
  return list
end

function Folder:close()
  if self.lock then
    self:flush()
    local lock = self.lock
    self.lock = nil
    lock:close()
  end
end

local function read(path)
  local f, why = io.open(path, "rb")
  if not f then check.fail(74, why, { file = path }) end
  local text = f:read("a")
  f:close()
  return text
end
M.read = read

--- What manifest.json of a run folder says; empty for a run that has none.
---@param path string
---@return table
function M.manifest(path)
  local at = path .. "/manifest.json"
  if not exists(at) then return {} end
  local m = check.decode(read(at))
  if type(m) ~= "table" then check.fail(65, at .. ": no JSON object", { file = at, id = "manifest" }) end
  return m
end

--- Appends a line to metrics.jsonl (kept in memory until `flush`).
---@param row table
function Folder:metric(row) self.lines[#self.lines + 1] = core.json_encode(row) .. "\n" end

--- The same for speed.jsonl.
---@param row table
function Folder:speed(row) self.speeds[#self.speeds + 1] = core.json_encode(row) .. "\n" end

function Folder:flush()
  for name, key in pairs { metrics = "lines", speed = "speeds" } do
    if #self[key] > 0 then core.append_file(("%s/%s.jsonl"):format(self.path, name), table.concat(self[key])) end
    self[key] = {} -- after a fault they are still there for the next time
  end
end

--- Takes back what `open` made: of a run that never did a step.
function Folder:remove()
  self.lines, self.speeds = {}, {}
  for _, name in ipairs { "recipe.json", "manifest.json", "source.lua", "log.txt", "metrics.jsonl", "speed.jsonl" } do os.remove(self.path .. "/" .. name) end
  lfs.rmdir(self.path .. "/checkpoints")
  self:close()
  if self.fresh then
    os.remove(self.path .. "/lock")
    lfs.rmdir(self.path)
  end
end

--- A line of log.txt. It is worth no run: a disk that is full is told by what must be written.
---@param text string
function Folder:log(text)
  local ok, e = pcall(core.append_file, self.path .. "/log.txt", os.date("!%Y-%m-%dT%H:%M:%SZ ") .. text .. "\n")
  if not ok and check.code(e) ~= 74 then error(e, 0) end
end

--- The rows of a metrics file. A torn last line is left out; a bad line before it is a fault (65).
---@param path string
---@return table[] rows
---@return boolean torn
function M.metrics(path)
  if not exists(path) then return {}, false end
  local text, rows, number, torn = read(path), {}, 0, false
  local start = 1
  while start <= #text do
    local stop = text:find("\n", start, true)
    number = number + 1
    local row = stop and check.decode(text:sub(start, stop - 1))
    if type(row) ~= "table" and (not stop or stop == #text) then torn = true; break end
    if type(row) ~= "table" then
      check.fail(65, ("%s: byte %d: line %d is no JSON object"):format(path, start - 1, number), { file = path, offset = start - 1, id = "metrics" })
    end
    rows[#rows + 1] = row
    start = stop + 1
  end
  return rows, torn
end

-- speed.jsonl goes the way of the metrics; it is worth no fault.
local function cut_speed(self, step)
  local path, text = self.path .. "/speed.jsonl", {}
  if not exists(path) then return end
  for line in read(path):gmatch "[^\n]+\n" do
    local row = check.decode(line)
    if type(row) == "table" and (row.step or math.huge) <= step then text[#text + 1] = line end
  end
  core.write_file(path, table.concat(text))
end

--- Cuts metrics.jsonl to what happened up to a step.
---@param step integer
---@return table[] rows kept
function Folder:cut(step)
  cut_speed(self, step)
  local path = self.path .. "/metrics.jsonl"
  local rows, torn = M.metrics(path)
  local kept, text = {}, {}
  for _, row in ipairs(rows) do
    if (row.step or 0) <= step then
      kept[#kept + 1] = row
      text[#text + 1] = core.json_encode(row) .. "\n"
    end
  end
  if torn or #kept < #rows then core.write_file(path, table.concat(text)) end
  return kept
end

---@param row table
---@param name string file in the folder
function Folder:json(name, row) core.write_file(self.path .. "/" .. name, core.json_encode(row) .. "\n") end

--- Writes a checkpoint and then its manifest; drops all but the newest `keep`.
---@param step integer
---@param tensors table name -> tensor
---@param meta table what is not a tensor, JSON
---@param keep integer
function Folder:save(step, tensors, meta, keep)
  self:flush()
  local name = ("step-%d"):format(step)
  local path = ("%s/checkpoints/%s.safetensors"):format(self.path, name)
  core.save(path, tensors, { step = tostring(step) })
  self:json("checkpoints/" .. name .. ".json",
    { step = step, file = name .. ".safetensors", size = lfs.attributes(path, "size"), xxh64 = core.hash(path), meta = meta })
  local steps = self:checkpoints()
  for i = 1, #steps - keep do
    local old = ("%s/checkpoints/step-%d"):format(self.path, steps[i])
    os.remove(old .. ".json")
    os.remove(old .. ".safetensors")
  end
end

--- Steps with a manifest, oldest first. A manifest is written last, so its checkpoint was whole.
---@return integer[]
function Folder:checkpoints()
  local steps, whole = {}, {}
  local dir = self.path .. "/checkpoints"
  if lfs.attributes(dir, "mode") ~= "directory" then return steps, whole end
  for entry in lfs.dir(dir) do
    local n = math.tointeger(tonumber(entry:match("^step%-(%d+)%.json$")))
    if n then steps[#steps + 1] = n; whole[n] = true end
  end
  table.sort(steps)
  return steps, whole
end

--- Leftovers of a write that was cut off: weights without a manifest and temporary files.
function Folder:sweep()
  local dir = self.path .. "/checkpoints"
  local _, whole = self:checkpoints()
  for entry in lfs.dir(dir) do
    local n = math.tointeger(tonumber(entry:match("^step%-(%d+)%.safetensors$")))
    if (n and not whole[n]) or entry:find("%.tmp$") then os.remove(dir .. "/" .. entry) end
  end
  for entry in lfs.dir(self.path) do
    if entry:find "%.tmp$" then os.remove(self.path .. "/" .. entry) end
  end
end

local function verify(path, manifest_path)
  local m = check.decode(read(manifest_path))
  if type(m) ~= "table" or type(m.xxh64) ~= "string" then
    check.fail(65, ("%s: not a checkpoint manifest"):format(manifest_path), { file = manifest_path, id = "manifest" })
  end
  local size = lfs.attributes(path, "size")
  if not size then check.fail(65, ("%s: missing, expected %d bytes"):format(path, m.size), { file = path, id = "checkpoint" }) end
  if size ~= m.size then
    check.fail(65, ("%s: %d bytes, expected %d"):format(path, size, m.size), { file = path, id = "checkpoint" })
  end
  local hash = core.hash(path)
  if hash ~= m.xxh64 then
    check.fail(65, ("%s: damaged, xxh64 %s, expected %s"):format(path, hash, m.xxh64), { file = path, id = "checkpoint" })
  end
  return m
end

--- The newest checkpoint, checked against its manifest. A damaged one is a fault (65); with `latest_good`
--- an older whole one is taken and `warn` told.
---@param latest_good boolean
---@param warn fun(text: string)
---@return table? tensors
---@return table? manifest
function Folder:load(latest_good, warn)
  local steps = self:checkpoints()
  local first
  for i = #steps, 1, -1 do
    local base = ("%s/checkpoints/step-%d"):format(self.path, steps[i])
    local ok, found, manifest = pcall(function()
      local m = verify(base .. ".safetensors", base .. ".json")
      return core.load(base .. ".safetensors"), m
    end)
    if ok then return found, manifest end
    first = first or found
    local damaged = check.code(found) == 65 or check.code(found) == 74
    if not latest_good or not damaged then error(found, 0) end
    warn(("%s; trying an older checkpoint"):format(tostring(found)))
  end
  if first then error(first, 0) end
end

--- The checkpoint of one step, checked.
---@param step integer
---@return table tensors
---@return table manifest
function Folder:at(step)
  local base = ("%s/checkpoints/step-%d"):format(self.path, step)
  local m = verify(base .. ".safetensors", base .. ".json")
  return core.load(base .. ".safetensors"), m
end

return M
