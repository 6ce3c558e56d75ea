--- Times of a GPU's kernels: launches captured as a graph over buffers that the cache cannot hold, replayed, median of many.
local core = require "cab.core"
local M = { device = "cuda" }

local CACHE = 200e6 -- bytes that inputs in turn must reach
local COUNT = 20    -- launches in a graph

local function median(times)
  table.sort(times)
  return times[(#times + 1) // 2]
end

--- Median seconds of f(), with everything that it launches.
function M.wall(f, repeats)
  local times = {}
  f()
  core.sync(M.device)
  for i = 1, repeats or 11 do
    local begun = core.now()
    f()
    core.sync(M.device)
    times[i] = core.now() - begun
  end
  return median(times)
end

--- Seconds of a graph, replayed as often as fills 10 ms.
function M.replay(graph)
  local once = M.wall(function() graph:replay() end, 3)
  local replays = math.max(1, math.ceil(0.01 / once))
  return M.wall(function() for _ = 1, replays do graph:replay() end end) / replays
end

-- Gradients (and what else must not be overwritten at once) stay alive until the graph is whole, so that no launch finds its
-- output in the cache.
local kept

function M.keep(t) kept[#kept + 1] = t end

local hook
local through = core.custom { name = "source", forward = function(_, _, x) return x end,
  backward = function(_, g) M.keep(g) end }

--- Makes what source() and keep() need; outside of scopes and captures.
function M.begin()
  kept = {}
  if hook then return end
  hook = core.zeros({ 1 }, "f32", M.device)
  hook.requires_grad = true
end

--- x as the output of an op whose backward launches nothing: the gradient that reaches it is written and nothing else is.
function M.source(x) return through(hook, x) end

--- Seconds of one f(i), i = 1 .. COUNT, captured as a graph.
---@param f fun(i: integer)
---@param count? integer
function M.seconds(f, count)
  count, kept = count or COUNT, {}
  do
    local scope <close> = core.scope()
    for i = 1, 2 do f(i) end
  end
  core.sync(M.device)
  kept = {}
  local graph <close> = core.capture(M.device, function()
    local scope <close> = core.scope()
    for i = 1, count do f(i) end
  end)
  kept = {}
  return M.replay(graph) / count
end

--- Seconds of forward and of backward of y = f(set), where `sets` are taken in turn and every tensor of a set is a source.
---@param sets table[] lists of tensors
---@param f fun(...): cab.Tensor what it is given are the tensors of a set
---@return number forward alone, without a gradient
---@return number forward that keeps what backward needs
---@return number backward
function M.pass(sets, f)
  M.begin()
  local function set(i) return sets[(i - 1) % #sets + 1] end
  local function sources(i)
    local list = {}
    for k, x in ipairs(set(i)) do list[k] = M.source(x) end
    return table.unpack(list)
  end
  local value = M.seconds(function(i) M.keep(core.no_grad(f, table.unpack(set(i)))) end)
  local forward = M.seconds(function(i) M.keep((f(sources(i)))) end)
  local seed = {}
  local y = core.no_grad(f, table.unpack(sets[1]))
  for i = 1, #sets do seed[i] = M.random(y:dtype(), table.unpack(y:shape())) end
  y:close()
  local both = M.seconds(function(i)
    local out = f(sources(i))
    M.keep(out)
    out:backward(seed[(i - 1) % #sets + 1])
  end)
  return value, forward, math.max(both - forward, 1e-9)
end

--- Normal numbers on the device; drawn once for each count, then copied.
local drawn = {}
function M.random(dtype, ...)
  local shape, n = { ... }, 1
  for _, s in ipairs(shape) do n = n * s end
  drawn[n] = drawn[n] or core.normal({ n }, 0, 1, 0, "bench"):to(M.device)
  return (dtype == "f32" and drawn[n]:clone() or drawn[n]:to(dtype)):reshape(table.unpack(shape))
end

--- Gives the memory of what was measured so far back.
function M.forget()
  drawn = {}
  collectgarbage()
  core.trim(M.device)
end

--- make() as often as its tensors need to fill the cache, at least twice. @return table[] lists
function M.sets(make)
  local sets, bytes = { make() }, 0
  for _, t in ipairs(sets[1]) do bytes = bytes + t:bytes() end
  while #sets < 2 or #sets * bytes < CACHE do sets[#sets + 1] = make() end
  return sets
end

return M
