-- The gradient audit: what each loss term reaches, and the faults that it must not let pass.
local cab = require "cab"
local core = require "cab.core"
local audits = require "cab.audit"
local folder = require "cab.folder"
local jobs = require "cab.job"
local process = require "process"
local refused = require "refused"

local root = process.folder()
teardown(function() os.execute("rm -r " .. root) end)
local count = 0
local function out() count = count + 1 return ("%s/run%d"):format(root, count) end

local BRIDGE = { "attention_bridge", hidden = 8, weight = 2 }
local function recipe(stages, change)
  local r = {
    data = cab.data.fashion { fraction = 0.02 },
    teacher = cab.models.vit { image = 28, patch = 7, dim = 16, depth = 2, heads = 2 },
    student = cab.models.vim { image = 28, patch = 7, dim = 16, depth = 2, state = 4 },
    stages = stages, optim = { lr = 1e-2 }, device = "cpu", batch = 20, log = 1, eval = { batch = 500 },
  }
  for k, v in pairs(change or {}) do r[k] = v end
  return cab.recipe(r)
end

-- The audit of a stage of a job on its first batch.
local function audit(job, number)
  number = number or 1
  job:measure()
  job:enter(job.stages[number])
  local feed = job.data:loader("train", { batch = job.recipe.batch, seed = 0, epoch = 0 })
  local images, labels = feed:next()
  local found = audits.stage(job, number, { images = images, labels = labels })
  feed:close()
  return found
end
local function of(stages, change) return audit(jobs.build(recipe(stages, change).resolved)) end

describe("the audit", function()
  local both = { { loss = { soft = 1, align = BRIDGE }, steps = 2 } }

  it("has no fault to find in a sound recipe; shares are those of job:shares", function()
    local job = jobs.build(recipe(both).resolved)
    local found = audit(job)
    assert.same({}, found.faults)
    assert.same({}, found.warnings)
    local feed = job.data:loader("train", { batch = 20, seed = 0, epoch = 0 })
    local images, labels = feed:next()
    assert.equal(20 // 3, found.count) -- two terms, and a pass of both
    local shares = job:shares(job.stages[1], images:slice(1, 1, found.count), labels:slice(1, 1, found.count))
    feed:close()
    for name, s in pairs(shares) do
      assert.is_true(math.abs(s.share - found.terms[name].share) < 1e-9)
      assert.is_true(math.abs(s.all - found.terms[name].norm) <= 1e-6 * s.all)
      local square = 0
      for _, norm in pairs(found.terms[name].groups) do square = square + norm ^ 2 end
      assert.is_true(math.abs(square ^ 0.5 - s.all) <= 1e-5 * s.all) -- groups are all of the gradient
    end
    assert.same({ "B", "B_b", "C", "C_b" }, cab.options.names(found.terms.align.taps))
    assert.equal(0, found.terms.soft.groups["aligner.proj_B"])
    assert.is_true(found.terms.align.groups["aligner.proj_B"] > 0)
    assert.matches("8 of 8 taps, at the cost of %d+%.%d steps", audits.line(found))
  end)

  it("finds the norm of a tap's gradient that finite differences have", function()
    local job = jobs.build(recipe({ { loss = { align = { "attention_bridge", hidden = 8 } }, steps = 1 } }).resolved)
    local found = audit(job)
    local feed = job.data:loader("train", { batch = 20, seed = 0, epoch = 0 })
    local images, labels = feed:next()
    feed:close()
    local noise
    local function loss(h) -- of the tap B of layer 1, moved by h * noise
      local step = job.pairs.step
      rawset(job.pairs, "step", function(self, taps, ...)
        noise = noise or core.normal(taps.B[1]:shape(), 0, 1, 3, "noise")
        taps.B[1] = taps.B[1] + noise * h
        return step(self, taps, ...)
      end)
      local value = core.no_grad(function() return job:losses(job.stages[1], images, labels)[1].value:item() end)
      rawset(job.pairs, "step", nil)
      return value
    end
    local slope = (loss(0.5) - loss(-0.5)) -- |noise . gradient|, at most |noise| |gradient|, about |gradient| in the mean
    assert.is_true(math.abs(slope) > 0)
    assert.is_true(math.abs(slope) < 5 * found.terms.align.taps.B[1])
    assert.is_true(math.abs(slope) > 0.01 * found.terms.align.taps.B[1])
  end)

  it("names a detached tap", function()
    local job = jobs.build(recipe(both).resolved)
    local forward = job.student.forward
    rawset(job.student, "forward", function(self, images, wanted)
      local logits, taps = forward(self, images, wanted)
      if taps.C then taps.C[2] = taps.C[2]:detach() end
      return logits, taps
    end)
    local found = audit(job)
    assert.equal(1, #found.faults)
    assert.equal("stage 1: loss term 'align': tap 'C' of the student's layer 2 is detached: its gradient goes nowhere", found.faults[1])
  end)

  it("names a tap that a strategy declares and then detaches", function()
    local half = cab.strategy { needs = { student = { "B", "C" } } }
    function half:loss(pairs) -- luacheck: ignore self
      return pairs:mean(function(_, s) return cab.op.mean(cab.op.square(s.B)) + cab.op.mean(cab.op.square(s.C:detach())) end)
    end
    local found = of { { loss = { half = { half } }, steps = 1 } }
    assert.same({ "stage 1: loss term 'half': no gradient reaches tap 'C', which its strategy declares in needs.student",
      "stage 1: loss term 'half': no gradient reaches tap 'C_b', which its strategy declares in needs.student" }, found.faults)
  end)

  it("names a bridge that is left out of the optimizer", function()
    local loose = cab.strategy { needs = { student = { "B" }, teacher = { "k" } } }
    function loose:build(pairs)
      self.lifts = {} -- a plain list: nobody registers its modules
      for i = 1, #pairs do self.lifts[i] = cab.nn.linear(pairs:size "B", pairs.dim) end
    end
    function loose:loss(pairs)
      return pairs:mean(function(i, s, t) return self:fit(self.lifts[i](s.B), t:keys "none") end)
    end
    local found = of { { loss = { align = { loose } }, steps = 1 } }
    assert.is_true(#found.faults > 0)
    for _, text in ipairs(found.faults) do assert.matches("parameter 'lifts.%d.%a+' of its strategy is not in the optimizer: assign", text) end
    local e = refused(2, function() recipe({ { loss = { align = { loose } }, steps = 1 } }):run { out = out(), quiet = true } end)
    assert.matches("not in the optimizer", e.message)
  end)

  it("names own parameters that get no gradient", function()
    local idle = cab.strategy { needs = {} }
    function idle:build() self.head = cab.nn.linear(4, 4) end
    function idle:loss(_, batch) -- luacheck: ignore self
      return cab.op.mean(cab.op.square(batch.logits))
    end
    local found = of { { loss = { idle = { idle } }, steps = 1 } }
    assert.same({ "stage 1: loss term 'idle': its own parameters 'idle.head' get no gradient" }, found.faults)
  end)

  it("names a loss of weight 0", function()
    local text = "stage 1: loss term 'align' has weight 0: it does nothing; leave it out, or give it a weight"
    local stages = { { loss = { soft = 1, align = { "attention_bridge", hidden = 8, weight = 0 } }, steps = 1 } }
    assert.same({ text }, of(stages).faults)
    local path = out()
    local e = refused(2, function() recipe(stages):run { out = path, quiet = true } end)
    assert.equal(text, e.message)
    assert.is_nil(io.open(path .. "/recipe.json")) -- a run that fails before its first step leaves no folder
  end)

  it("names a stage that trains nothing", function()
    local found = of { { loss = { soft = 1 }, steps = 1, lr = 0 } }
    assert.same({ "stage 1 trains nothing: its learning rate is 0" }, found.faults)
    local job = jobs.build(recipe({ { loss = { soft = 1, align = BRIDGE }, steps = 1 },
      { loss = { soft = 1 }, train = { "aligner.*" }, steps = 1 } }).resolved)
    assert.same({ "stage 2: loss term 'soft' reaches no parameter" }, audit(job, 2).faults)
    local e = refused(2, jobs.build, recipe({ { loss = { soft = 1 }, train = { "student.layres.*" }, steps = 1 } }).resolved)
    assert.matches("stages.1.train.1: unknown parameter 'student.layres.%*'", e.message)
  end)

  it("costs at most two steps, whatever the number of terms", function()
    local many, seen = {}, 0
    for i = 1, 5 do
      local one = cab.strategy { needs = {} }
      function one:loss(_, batch) -- luacheck: ignore self
        seen = seen + (i == 1 and batch.logits:size(1) or 0)
        return cab.op.mean(cab.op.square(batch.logits)) * i
      end
      many["t" .. i] = { one }
    end
    local found = of { { loss = many, steps = 1 } }
    assert.equal(6 * (20 // 6), seen) -- a pass a term and one of all: a step
    assert.is_true(math.abs(found.terms.t5.share - 5 / 15) < 1e-5)
  end)

  it("leaves no tensor and no gradient behind, and the run as it would be without it", function()
    local job = jobs.build(recipe(both).resolved)
    audit(job)
    collectgarbage() collectgarbage()
    local live = core.memory().live
    audit(job)
    collectgarbage() collectgarbage()
    assert.equal(live, core.memory().live)
    for _, p in ipairs(job.params) do assert.is_nil(p.tensor.grad) end
    local path = out()
    recipe(both):run { out = path, quiet = true }
    local log = folder.read(path .. "/log.txt")
    assert.matches("audit of stage 1: align %d+ %% of the student's gradient", log)
    assert.matches("plan: %S+ %S+ of %S+ %S+ at hand, fits; ", log)
  end)
end)

describe("a stage's train patterns", function()
  it("leave all other parameters as they were", function()
    local stages = { { loss = { align = BRIDGE }, steps = 3, train = { "aligner.*", "student.layers.*.mixer.x_proj.*" } } }
    local job = jobs.build(recipe(stages).resolved)
    local before = {}
    for _, p in ipairs(job.params) do before[(p.student and "student." or "") .. p.name] = p.tensor:detach():clone() end
    local path = out()
    recipe(stages):run { out = path, quiet = true }
    local after, moved = core.load(path .. "/checkpoints/step-3.safetensors"), 0
    for name, t in pairs(before) do
      local range = (after[name] - t):range()
      local changed = range.min ~= 0 or range.max ~= 0
      assert.equal(name:find "^aligner%." ~= nil or name:find "^student%.layers%.%d+%.mixer%.x_proj%." ~= nil, changed, name)
      moved = moved + (changed and 1 or 0)
    end
    assert.is_true(moved > 4)
  end)
end)

describe("cab check", function()
  local head = [[
local cab = require "cab"
return cab.recipe {
  data = cab.data.fashion { fraction = 0.02 }, device = "cpu", batch = 20,
  teacher = cab.models.vit { image = 28, patch = 7, dim = 16, depth = 2, heads = 2 },
  student = cab.models.vim { image = 28, patch = 7, dim = 16, depth = 2, state = 4 },
  stages = { { loss = { soft = 1, align = { "attention_bridge", hidden = 8 } }, steps = 3 } },
}]]
  local function cab_check(text, more)
    return process.sh(("'%s' check '%s' %s"):format(process.program, process.put(root .. "/r.lua", text), more or ""))
  end
  it("prints the audit, the memory by class and the time, and makes no run", function()
    local code, text = cab_check(head)
    assert.equal(0, code, text)
    for _, wanted in ipairs { "stage 1: align %d+ %%", "aligner.proj_B ", "tap B_b.2 ", "moments ", "activations ", "teacher ", "at hand, fits; ",
      "s a step, about %d+:%d+ of training", "batches of up to %d+ fit" } do assert.matches(wanted, text) end
    assert.is_nil(io.open "runs/r-1")
  end)
  it("gives one JSON value", function()
    local code, text = cab_check(head, "--json batch=10")
    assert.equal(0, code, text)
    local list = core.json_decode(text)
    assert.equal(1, #list)
    assert.is_true(list[1].plan.fits)
    local sum = 0
    for _, row in ipairs(list[1].plan.rows) do sum = sum + row[2] end
    assert.equal(list[1].plan.bytes, sum)
    local job = jobs.build(recipe { { loss = { soft = 1 }, steps = 1 } }.resolved)
    assert.equal(4 * job.student:size(), list[1].plan.rows[1][2])
  end)
  it("faults with 2 at a misspelt mode, a weight of 0, and a file that is no recipe", function()
    for more, wanted in pairs { ["stages.1.loss.align.map=standrd"] = "did you mean 'standard'",
      ["stages.1.loss.align.strategy=atention_bridge"] = "attention_bridge",
      ["stages.1.loss.align=0"] = "'align' has weight 0", ["stages.1.lr=0"] = "trains nothing" } do
      local code, text = cab_check(head, more)
      assert.equal(2, code, more .. text)
      assert.matches(wanted, text)
    end
    local code, text = cab_check "return {}"
    assert.equal(2, code)
    assert.matches("returns neither cab.recipe", text)
  end)
end)
