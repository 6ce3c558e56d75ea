-- profile.lua step KIND                training steps, most of them replayed as a graph: of Vim-Tiny with the bridge, batch 64, in a
--                                      precision (f32, tf32, bf16), or of a stage of language (align, kl), batch 8, in bf16
-- profile.lua table FILE [KERNELS=40]  what profile.cu noted meanwhile: time of one replay by kernel, largest first
package.path = "./tests/?.lua;" .. package.path
local REPLAYS <const> = 10

local function step(kind)
  local steps = require "bench.steps"
  local language = kind == "align" or kind == "kl"
  local t = language and steps.language_step(kind, 8) or steps.training(kind, 64, true)
  local n, replayed = 0, 0
  while replayed < REPLAYS do
    n = n + 1
    assert(n < 10 * REPLAYS, "the step is not captured")
    t:step(n, true)
    if t:captured() then replayed = replayed + 1 end
  end
  t:close()
end

-- Names of kernels without return type, arguments and what is written the same everywhere.
local function short(name)
  name = name:gsub("^void ", ""):gsub("%(anonymous namespace%)::", ""):gsub("__nv_bfloat16", "bf16"):gsub("%(%w+%)", "")
  name = name:gsub("%(.*", "")
  return #name > 100 and name:sub(1, 100) .. ".." or name
end

local function summary(path, most)
  local by, list, all, launches = {}, {}, 0, 0
  for line in io.lines(path) do
    local name, count, ns = line:match "^(.*)\t(%d+)\t(%d+)$"
    name = short(name)
    if not by[name] then
      by[name] = { name = name, count = 0, us = 0 }
      list[#list + 1] = by[name]
    end
    local k, us = by[name], ns / 1e3 / REPLAYS
    k.count, k.us = k.count + count / REPLAYS, k.us + us
    all, launches = all + us, launches + count / REPLAYS
  end
  table.sort(list, function(a, b) return a.us > b.us end)
  print(("%.0f launches, %.2f ms"):format(launches, all / 1e3))
  for i = 1, math.min(#list, most) do
    local k = list[i]
    print(("%8.3f ms %5.1f %% %5.0f x %8.1f us  %s"):format(k.us / 1e3, 100 * k.us / all, k.count, k.us / k.count, k.name))
  end
end

if arg[1] == "step" then step(arg[2]) else summary(arg[2], tonumber(arg[3]) or 40) end
