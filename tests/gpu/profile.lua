-- profile.lua step PRECISION BATCH     one eager training step of Vim-Tiny with the bridge, to be run under ncu
-- profile.lua table FILE [KERNELS=40]  what ncu wrote (--csv --metrics gpu__time_duration.sum): time by kernel, largest first
package.path = "./tests/?.lua;" .. package.path

local function step(precision, batch)
  local cab, synthetic = require "cab", require "synthetic"
  local t = synthetic.new {
    image = 224, channels = 3, classes = 1000, batch = tonumber(batch), device = "cuda", precision = precision, capture = false,
    student = cab.models.vim { size = "tiny", decay = "identity" }, teacher = cab.models.vit { size = "tiny" },
    loss = { soft = 1, align = { "attention_bridge", weight = 3 } }, optim = { ema = 0.9999 },
  }
  t:step(1, true)
  t:close()
end

-- "void name<args>(types)" -> "name<args>", cut.
local function short(name)
  name = name:gsub("%(%w+%)", ""):gsub("^void ", ""):gsub("%(.*", "")
  return #name > 90 and name:sub(1, 90) or name
end

local function summary(path, most)
  local columns, by, all, launches = nil, {}, 0, 0
  for line in io.lines(path) do
    local fields = {}
    for field in line:gmatch '"([^"]*)"' do fields[#fields + 1] = field end
    if fields[1] == "ID" then
      columns = {}
      for i, name in ipairs(fields) do columns[name] = i end
    elseif columns and tonumber(fields[1]) then
      local name, value = short(fields[columns["Kernel Name"]]), fields[columns["Metric Value"]]:gsub(",", "")
      local unit = ({ ns = 1e-3, nsecond = 1e-3, us = 1, usecond = 1, ms = 1e3, msecond = 1e3 })[fields[columns["Metric Unit"]]]
      local k = by[name] or { name = name, count = 0, us = 0 }
      local us = tonumber(value) * assert(unit, line)
      by[name], k.count, k.us = k, k.count + 1, k.us + us
      all, launches = all + us, launches + 1
    end
  end
  local list = {}
  for _, k in pairs(by) do list[#list + 1] = k end
  table.sort(list, function(a, b) return a.us > b.us end)
  print(("%d launches, %.2f ms"):format(launches, all / 1e3))
  for i = 1, math.min(#list, most) do
    local k = list[i]
    print(("%8.3f ms %5.1f %% %5d x %8.1f us  %s"):format(k.us / 1e3, 100 * k.us / all, k.count, k.us / k.count, k.name))
  end
end

if arg[1] == "step" then step(arg[2], arg[3]) else summary(arg[2], tonumber(arg[3]) or 40) end
