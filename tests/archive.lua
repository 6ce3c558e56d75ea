--- Zip archives, pickles and PyTorch checkpoints as bytes, right or wrong in one place. For specs.
local M = {}

local crcs = {}
for i = 0, 255 do
  local c = i
  for _ = 1, 8 do c = c & 1 == 1 and c >> 1 ~ 0xedb88320 or c >> 1 end
  crcs[i] = c
end

--- CRC-32 of a string.
function M.crc(bytes)
  local c = 0xffffffff
  for i = 1, #bytes do c = crcs[(c ~ bytes:byte(i)) & 255] ~ c >> 8 end
  return c ~ 0xffffffff
end

-- Each field of a zip structure under its name, so that a case can give another value.
local function local_header(e)
  return string.pack("<c4I2I2I2I4I4I4I4I2I2", e.mark, 20, e.flags, e.method, 0, e.crc, e.packed, e.size, #e.name, #e.extra) .. e.name .. e.extra
end
local function directory_entry(e)
  return string.pack("<c4I2I2I2I2I4I4I4I4I2I2I2I2I2I4I4", e.mark, 20, 20, e.flags, e.method, 0, e.crc, e.packed, e.size, #e.name, #e.extra, 0, e.disk,
    0, 0, e.at) .. e.name .. e.extra
end

--- An archive. entries: list of {name=, data=, [packed bytes: data_packed=, size=], method=, flags=, local_=, central=: fields
--- that differ there, gap=: bytes after it, descriptor=}; o: {first=, ending=: fields, tail=, between=: bytes, zip64=}.
---@return string bytes, integer[] offsets of the entries, integer offset of the directory
function M.zip(entries, o)
  o = o or {}
  local parts, offsets, directory, at = { o.first or "" }, {}, {}, #(o.first or "")
  local function add(s)
    parts[#parts + 1] = s
    at = at + #s
  end
  for i, e in ipairs(entries) do
    offsets[i] = at
    local base = { name = e.name, flags = e.flags or 0, method = e.method or 0, crc = M.crc(e.data), size = #e.data,
      packed = #(e.data_packed or e.data), extra = "", disk = 0, at = at }
    local function with(mark, changes)
      local t = setmetatable({ mark = mark }, { __index = base })
      for k, v in pairs(changes or {}) do t[k] = v end
      return t
    end
    add(local_header(with("PK\3\4", e.local_)))
    add(e.data_packed or e.data)
    add(e.gap or "")
    directory[i] = directory_entry(with("PK\1\2", e.central))
  end
  add(o.between or "")
  local start = at
  for _, d in ipairs(directory) do add(d) end
  local ending = { count = #entries, here = #entries, size = at - start, at = start, disk = 0, first = 0, comment = 0 }
  for k, v in pairs(o.ending or {}) do ending[k] = v end
  if o.zip64 then
    local z = { mark = "PK\6\6", size = 44, disk = 0, here = #entries, count = #entries, bytes = at - start, start = start, locator = at, lmark = "PK\6\7",
      disks = 1 }
    for k, v in pairs(o.zip64) do z[k] = v end
    add(string.pack("<c4I8I2I2I4I4I8I8I8I8", z.mark, z.size, 45, 45, z.disk, 0, z.here, z.count, z.bytes, z.start))
    add(string.pack("<c4I4I8I4", z.lmark, 0, z.locator, z.disks))
  end
  add(string.pack("<c4I2I2I2I2I4I4I2", "PK\5\6", ending.disk, ending.first, ending.here, ending.count, ending.size, ending.at, ending.comment))
  add(o.tail or "")
  return table.concat(parts), offsets, start
end

-- Pickle: opcodes with arguments, protocol 2.
function M.text(s) return "X" .. string.pack("<s4", s) end
function M.int(n)
  if n >= 0 and n < 256 then return "K" .. string.char(n) end
  if n >= -2147483648 and n < 2147483648 then return "J" .. string.pack("<i4", n) end
  return "\x8a" .. string.pack("<s1", string.pack("<i8", n))
end
function M.global(module, name) return "c" .. module .. "\n" .. name .. "\n" end
function M.tuple(...) return "(" .. table.concat { ... } .. "t" end
function M.pickle(body) return "\x80\2" .. body .. "." end

--- A tensor of a storage. t: {key="0", type="FloatStorage", count=4, offset=0, shape={4}, stride={1}}
function M.tensor(t)
  local function ints(list)
    local out = {}
    for i, n in ipairs(list) do out[i] = M.int(n) end
    return M.tuple(table.unpack(out))
  end
  local storage = M.tuple(M.text "storage", M.global("torch", t.type or "FloatStorage"), M.text(t.key or "0"), M.text "cpu", M.int(t.count or 4)) .. "Q"
  return M.global("torch._utils", t.rebuild or "_rebuild_tensor_v2") .. M.tuple(storage, M.int(t.offset or 0), ints(t.shape or { 4 }), ints(t.stride or { 1 }),
    "\x89", M.global("collections", "OrderedDict") .. ")R", t.dtype or "") .. "R"
end

--- A dict of {key, value, key, value ...}, each of them pickle code.
function M.dict(list) return "}(" .. table.concat(list) .. "u" end

--- A checkpoint: pickle code (without PROTO and STOP) and storages by key.
function M.checkpoint(body, storages, o)
  local entries = { { name = "a/data.pkl", data = M.pickle(body) } }
  local keys = {}
  for key in pairs(storages or {}) do keys[#keys + 1] = key end
  table.sort(keys)
  for _, key in ipairs(keys) do entries[#entries + 1] = { name = "a/data/" .. key, data = storages[key] } end
  for _, e in ipairs(o or {}) do entries[#entries + 1] = e end
  return M.zip(entries)
end

return M
