--- The metrics of runs as event files of TensorBoard: records of length, masked CRC-32C, bytes of a protocol buffer (event.proto).
local core = require "cab.core"
local folders = require "cab.folder"
local options = require "cab.options"
local M = {}

local crc_table = {}
for i = 0, 255 do
  local c = i
  for _ = 1, 8 do c = c & 1 == 1 and (c >> 1) ~ 0x82f63b78 or c >> 1 end
  crc_table[i] = c
end

--- CRC-32C (Castagnoli) of bytes.
function M.crc(bytes)
  local c = 0xffffffff
  for i = 1, #bytes do c = crc_table[(c ~ bytes:byte(i)) & 255] ~ (c >> 8) end
  return c ~ 0xffffffff
end

local function masked(bytes)
  local c = M.crc(bytes)
  return (((c >> 15) | (c << 17)) + 0xa282ead8) & 0xffffffff
end

local function varint(n)
  local out = {}
  repeat
    local low = n & 127
    n = n >> 7
    out[#out + 1] = string.char(n > 0 and low | 128 or low)
  until n == 0
  return table.concat(out)
end
local function bytes_field(number, bytes) return varint(number << 3 | 2) .. varint(#bytes) .. bytes end

local function record(event)
  local head = ("<I8"):pack(#event)
  return head .. ("<I4"):pack(masked(head)) .. event .. ("<I4"):pack(masked(event))
end

-- Event: wall_time = 1 (double), step = 2, file_version = 3, summary = 5 {value = 1 {tag = 1, simple_value = 2 (float)}}
local function event(time, step, scalars)
  local values = {}
  for _, tag in ipairs(options.names(scalars)) do
    values[#values + 1] = bytes_field(1, bytes_field(1, tag) .. "\x15" .. ("<f"):pack(scalars[tag]))
  end
  return record("\x09" .. ("<d"):pack(time) .. "\x10" .. varint(step) .. bytes_field(5, table.concat(values)))
end

-- Numbers of a row by tag: "loss/align", "eval/top1".
local function scalars(row, prefix, out)
  for k, v in pairs(row) do
    local tag = prefix .. tostring(k):gsub("%.", "/")
    if type(v) == "table" then scalars(v, tag .. "/", out)
    elseif type(v) == "number" and tag ~= "step" then out[tag] = v end
  end
  return out
end

--- Writes DIR/RUN/events.out.tfevents.0.cab for each run.
---@param runs NamedRun[]
---@param dir string
function M.write(runs, dir)
  for _, run in ipairs(runs) do
    local out = { record("\x09" .. ("<d"):pack(0) .. bytes_field(3, "brain.Event:2")) }
    for _, name in ipairs { "metrics", "speed" } do
      for _, row in ipairs((folders.metrics(("%s/%s.jsonl"):format(run.path, name)))) do
        if row.step then out[#out + 1] = event(row.step, row.step, scalars(row, "", {})) end
      end
    end
    local folder = ("%s/%s"):format(dir, (run.name:gsub("/", "-")))
    folders.make(folder)
    core.write_file(folder .. "/events.out.tfevents.0.cab", table.concat(out))
  end
end

return M
