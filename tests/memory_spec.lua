-- Memory that runs out. Each allocation of each workload fails once, and from then on: the error says so, what there was is
-- kept, no tensor is left behind, and the same call works as soon as there is memory again. Needs fault points (make asan).
local core = require "cab.core"
local cab = require "cab"
local lfs = require "lfs"
local op = core.ops

local dir = os.tmpname()
os.remove(dir)
lfs.mkdir(dir)

local function put(name, bytes)
  local f <close> = assert(io.open(dir .. "/" .. name, "wb"))
  f:write(bytes)
  return dir .. "/" .. name
end

local function get(name)
  local f <close> = assert(io.open(name, "rb"))
  return f:read "a"
end

local function seed(name) return "tests/fuzz/seeds/" .. name end

local function sum(t) return op.sum(t:to("f64"):reshape(t:count())):item() end

local function epoch(ds, threads)
  local loader <close> = core.data.loader { dataset = ds, batch = 2, threads = threads, shuffle = true, transform = { size = 2 } }
  local total = 0
  for x in function() return (loader:next()) end do total = total + sum(x) end
  return total
end

local weights, root = dir .. "/w.safetensors", dir .. "/folder"
core.save(weights, { a = core.tensor { 1, 2, 3 }, b = core.tensor({ { 4, 5 } }, "f64"), c = core.zeros({ 0, 3 }, "u8") }, { k = "v" })
local images = put("x", string.pack(">I4I4I4I4", 0x803, 5, 2, 2) .. ("abcd"):rep(5))
local labels = put("y", string.pack(">I4I4", 0x801, 5) .. "\0\1\2\1\0")
lfs.mkdir(root)
for _, class in ipairs { "a", "b" } do
  lfs.mkdir(root .. "/" .. class)
  for i = 1, 2 do core.write_png(("%s/%s/%d.png"):format(root, class, i), core.full({ 2, 2, 3 }, 10 * i, "u8")) end
end

local recipe = cab.recipe {
  data = cab.data.fashion { fraction = 0.01 },
  teacher = cab.models.vit { image = 28, patch = 14, dim = 8, depth = 1, heads = 1 },
  student = cab.models.vim { image = 28, patch = 14, dim = 8, depth = 1, state = 2 },
  stages = { { loss = { soft = 1, align = { "attention_bridge", hidden = 4 } }, steps = 4 } },
  optim = { "adamw", lr = 1e-2, clip = 1, ema = 0.9 }, batch = 4, threads = 1,
}

-- A training step of both models on one batch, as the trainer does it.
local function trainer()
  local job = require "cab.job".build(recipe.resolved)
  job:measure()
  local stepper = require "cab.step".new(job, function() end)
  local pixels, classes = core.uniform({ 4, 1, 28, 28 }, -1, 1, 1, 1), core.tensor({ 0, 1, 2, 3 }, "i32")
  return job, function()
    local scope <close> = core.scope()
    stepper:place(scope, pixels, classes)
    local stage, number = job:stage(1)
    stepper:run(scope, stage, number, { step = 1, lr = 1e-2, clip = 1, keep = 0.5 })
    local loss = stepper:values(1).loss
    job:clear_gradients()
    return loss
  end
end

-- Checkpoint, manifest and metrics in a folder; what is there afterwards is a whole checkpoint.
local function checkpoint(step)
  local folder = require "cab.folder".view(dir)
  lfs.mkdir(dir .. "/checkpoints")
  folder:metric { step = step, loss = 1.5 }
  folder:save(step, { a = core.tensor { step } }, { best = 1 }, 2)
  return (folder:load(false)).a:item()
end

-- name, a function that gives a number or text, and what must not change when it fails
local workloads = {
  { "loads safetensors", function() local t = core.load(weights) return sum(t.a) + sum(t.b) end },
  { "inspects safetensors", function() return core.inspect(weights)[1].max end },
  { "saves safetensors", function()
    core.save(dir .. "/s", { a = core.tensor { 1, 2 }, v = core.tensor { { 1, 2 }, { 3, 4 } }:transpose(1, 2) }, { k = "v" })
    return get(dir .. "/s")
  end, function() return lfs.attributes(dir .. "/s.tmp", "mode") or "no temporary file" end },
  { "writes and reads PNG", function()
    core.write_png(dir .. "/p.png", core.tensor({ { 1, 2 }, { 3, 4 } }, "u8"))
    return sum(core.read_image(dir .. "/p.png"))
  end },
  { "reads JPEG", function() return sum(core.read_image(seed "image/progressive.jpg")) end },
  { "reads IDX", function()
    local ds <close> = core.data.open { kind = "idx", images = images, labels = labels, names = { "p", "q", "r" } }
    return sum(ds:image(2)) + sum(ds:labels())
  end },
  { "reads gzipped CIFAR", function()
    local ds <close> = core.data.open { kind = "cifar", files = { seed "cifar/gzip" } }
    return sum(ds:image(2))
  end },
  { "reads a folder, without threads", function()
    local ds <close> = core.data.open { kind = "folder", root = root }
    return epoch(ds, 0)
  end },
  { "reads a folder, with threads", function()
    local ds <close> = core.data.open { kind = "folder", root = root }
    return epoch(ds, 2)
  end },
  { "makes tensors and views", function()
    local t = core.arange(12):reshape(3, 4)
    return sum(core.concat({ t:transpose(1, 2):slice(1, 2, 3), t:flip(2):slice(2, 1, 3) }, 1)) + #tostring(t)
  end },
  { "goes forward and backward", function()
    local x, w = core.uniform({ 3, 4 }, -1, 1, 1, 1), core.uniform({ 4, 5 }, -1, 1, 1, 2)
    w.requires_grad = true
    op.mean(op.layer_norm(op.matmul(x, w), core.ones { 5 }, core.zeros { 5 }) * op.softmax(op.matmul(x, w))):backward()
    return sum(w.grad)
  end },
  { "goes through a custom op", function()
    local x = core.tensor { 1, 2 }
    x.requires_grad = true
    local twice = core.custom { name = "twice", forward = function(_, a) return a * 2 end, backward = function(_, g) return g * 2 end }
    op.sum(twice(x)):backward()
    return sum(x.grad)
  end },
  { "codes JSON", function() return core.json_encode(core.json_decode('{"a":[1,2.5,{"b":"c"}],"d":null}')) end },
  { "resolves a recipe with overrides", function()
    local start = recipe.resolved
    recipe:override { "optim.lr=2e-2", "student.depth=2" }
    local lr = recipe.resolved.optim.lr
    recipe.resolved = start
    return lr
  end, function() return recipe.resolved.optim.lr end },
  { "runs a line at the prompt", function()
    local said = {}
    require "cab.repl".line("cab.tensor{1,2}:sum()", require "cab.repl".environment(), function(text) said[#said + 1] = text end)
    if said[1]:find "memory" then error(said[1], 0) end
    return said[1]
  end },
  { "writes a checkpoint and loads it", function() return checkpoint(7) end },
  { "builds models", function()
    local model = cab.models.vim { dim = 8, depth = 1, state = 2, patch = 14 }:build { image = 28, classes = 10 }
    return model:size()
  end },
}

do
  local job, step = trainer()
  local start = {} -- every step begins with the same weights and moments
  for name, t in pairs(job:state()) do start[name] = t:detach():clone() end
  local function total()
    local all = 0
    for _, t in pairs(job:state()) do all = all + sum(t) end
    return all
  end
  local function reset()
    job:clear_gradients()
    core.no_grad(function()
      for name, t in pairs(job:state()) do t:copy(start[name]) end
    end)
  end
  local before = total()
  step()
  local after = total()
  reset()
  workloads[#workloads + 1] = { "takes a training step", step, function()
    local now = total()
    reset()
    return (now == before or now == after) and "as before or after the whole step" or "torn"
  end }
end

local function says_memory(e)
  return type(e) == "table" and e.code == 71 and tostring(e):find("memory", 1, true) ~= nil
    or type(e) == "string" and (e:find("not enough memory", 1, true) or e:find("out of memory", 1, true)) ~= nil
end

local function live()
  collectgarbage()
  collectgarbage()
  return core.memory().live
end

-- Every call of a point, or `most` of them evenly spread; once and sticky.
local function sweep(point, most, run, kept)
  local want = run()
  local state = kept and kept()
  local calls = core.fault(point, 0, false, run)
  if kept then kept() end
  local before, failed = live(), 0
  local step = math.max(1, calls // most)
  for _, sticky in ipairs { false, true } do
    for n = 1, calls, step do
      local label = ("%s %d of %d%s"):format(point, n, calls, sticky and " and all after" or "")
      local _, ok, result = core.fault(point, n, sticky, run)
      if not ok then
        failed = failed + 1
        assert(says_memory(result), label .. ": " .. tostring(result))
      else
        assert.equal(want, result, label)
      end
      if kept then assert.equal(state, kept(), label) end
      if n % 16 < step then assert.equal(before, live(), label .. ": tensors left behind") end
    end
  end
  assert.equal(before, live(), point .. ": tensors left behind")
  assert.equal(want, run(), "again, with memory")
  if kept then kept() end
  return calls, failed
end

describe("out of memory", function()
  teardown(function() os.execute("rm -r " .. dir) end)
  if not core.fault then return it("at any allocation", function() pending "needs a build with fault points (make asan)" end) end
  for _, w in ipairs(workloads) do
    local name, run, kept = table.unpack(w)
    for _, point in ipairs { "malloc", "device_alloc", "lua_alloc" } do
      it(("at any %s of what %s"):format(point, name), function()
        local calls, failed = sweep(point, point == "lua_alloc" and 40 or 400, run, kept)
        assert.is_true(calls == 0 or failed > 0)
      end)
    end
  end
end)
