--- Training steps on random images or random ids: the trainer's own job and step, without files.
local cab = require "cab"
local core = require "cab.core"
local steps = require "cab.step"
local M = {}

local BATCHES = 4 -- made once

local Images = {}
Images.__index = Images

-- u8 [b,C,S,S] and i32[b] on the CPU, as a loader's; batch number n is always the same.
function Images:batch(b, n)
  return core.uniform({ b, self.channels, self.size, self.size }, 0, 256, n, "images", "f64"):to "u8",
    core.uniform({ b }, 0, self.classes, n, "labels", "f64"):to "i32"
end

function Images.batches() return 1000 end
function Images.normalise(_, images) return images:to "f32" * (1 / 64) - 2 end

-- Batches that are made once, handed out as a loader's.
local Feed = {}
Feed.__index = Feed

function Feed:raw()
  self.n = self.n + 1
  return table.unpack(self.batches[(self.n - 1) % #self.batches + 1])
end

function Feed:into(images, labels)
  local from, to = self:raw()
  images:copy(from)
  labels:copy(to)
  return true
end

function Feed:next()
  local images, labels = self:raw()
  return self.data:normalise(images:to(self.data.device)), labels:to(self.data.device)
end

function Feed.close() end

function Images:loader(_, o)
  local feed = setmetatable({ data = self, batches = {}, n = 0 }, Feed)
  for n = 1, BATCHES do feed.batches[n] = { self:batch(o.batch, n) } end
  return feed
end

local Text = { batches = Images.batches, loader = Images.loader }
Text.__index = Text

-- ids i32 [b,l] and the numbers of their documents, three to a row unless it is one, on the CPU.
function Text:batch(b, n)
  local l, rows = self.length, {}
  for i = 1, b do
    local row, borders = {}, self.packed and { (i * 7 + n) % l, (i * 13 + 5 * n) % l } or { l, l }
    for t = 1, l do row[t] = (t > borders[1] and 1 or 0) + (t > borders[2] and 1 or 0) end
    rows[i] = row
  end
  return core.uniform({ b, l }, 0, self.vocab, n, "ids", "f64"):to "i32", core.tensor(rows, "i32")
end

function Text.normalise(_, ids) return ids end

local function ids_of(o, device)
  return setmetatable({ notes = {}, vocab = o.vocab, length = o.length, packed = o.packed, device = core.device(device),
    count = { train = 1000 * o.batch, test = o.batch } }, Text)
end

local function images(o, device)
  return setmetatable({ notes = {}, classes = o.classes, channels = o.channels, size = o.image, device = core.device(device),
    count = { train = 1000 * o.batch, test = o.batch } }, Images)
end

---@class Training
---@field job Job
---@field stepper Step
local Training = {}
Training.__index = Training

--- o: image, channels, classes or, of text, vocab, length, packed (rows of several documents); batch; student, teacher (descriptions);
--- loss (a stage's terms); device, precision, capture; optim. @return Training
function M.new(o)
  local recipe = cab.recipe.resolve {
    data = o.vocab and cab.data.text {} or cab.data.fashion {}, student = o.student, teacher = o.teacher, batch = o.batch, device = o.device or "cpu",
    precision = o.precision, capture = o.capture, optim = o.optim, dist = o.dist, stages = { { loss = o.loss, steps = 100000 } },
  }
  local build = cab.data.build
  cab.data.build = function(_, device) return (o.vocab and ids_of or images)(o, device) end
  local ok, job = pcall(cab.job.build, recipe)
  cab.data.build = build
  if not ok then error(job, 0) end
  if job.measures then job:measure() end
  local self = setmetatable({ job = job, messages = {}, feed = job.data:loader("train", { batch = o.batch }) }, Training)
  self.stepper = steps.new(job, function(text) table.insert(self.messages, text) end)
  return self
end

--- Step n as the trainer makes it, on one of a few batches that follow from n. values: read the loss back.
---@return table? values {loss, terms, norm}
function Training:step(n, values)
  local scope <close> = core.scope()
  local stage, number = self.job:stage(n)
  self.feed.n = n - 1
  self.stepper:take(scope, self.feed)
  self.stepper:run(scope, stage, number, { step = n, lr = 5e-4, clip = 1, keep = 0.9 })
  local v = values and self.stepper:values(n) or nil
  self.job:clear_gradients()
  return v
end

function Training:captured() return self.stepper.graph ~= nil end
function Training:close() self.stepper:close() end

--- A small Vision Mamba with the bridge under a small ViT, a ViT alone, and a small Phi-Mamba with the bridge under a small GPT-2.
function M.tiny(kind, o)
  if kind == "phi_mamba" then
    local t = { vocab = 67, length = 37, packed = true, batch = 3, optim = { clip = 1 }, loss = { soft = { weight = 1, hard = 1 },
      align = { "attention_bridge", hidden = 7, map = "none" } } }
    t.student = cab.models.phi_mamba { dim = 24, depth = 2, heads = 3, state = 5 }
    t.teacher = cab.models.gpt2 { dim = 24, depth = 2, heads = 3, positions = 37 }
    for k, v in pairs(o or {}) do t[k] = v end
    return M.new(t)
  end
  local t = { image = 8, channels = 3, classes = 5, batch = 3, optim = { ema = 0.9, clip = 1 } }
  if kind == "vim" then
    t.student = cab.models.vim { dim = 24, depth = 2, patch = 4, state = 5 }
    t.teacher = cab.models.vit { dim = 24, depth = 2, heads = 3, patch = 4 }
    t.loss = { soft = 1, align = { "attention_bridge", hidden = 7, weight = 3 } }
  else
    t.student = cab.models.vit { dim = 24, depth = 2, heads = 3, patch = 4 }
    t.loss = { vanilla = 1 }
  end
  for k, v in pairs(o or {}) do t[k] = v end
  return M.new(t)
end

return M
