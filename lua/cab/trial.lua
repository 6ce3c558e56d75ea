--- A strategy's or a model's file tried at once by `cab run FILE`: forty steps on the embedded images, and what came of it.
local check = require "cab.check"
local M = {}

--- True if a value is what a strategy's or a model's file returns.
---@param value any
function M.is(value) return type(value) == "table" and (value.is_strategy or type(value.kind) == "string" and type(value.new) == "function") or false end

--- The recipe of the trial: a strategy aligns a small Vim with the embedded teacher; a model is the student of that teacher's soft labels.
---@param value table
---@param path string its file, for messages
---@return table recipe
function M.recipe(value, path)
  local cab = require "cab"
  local loss, student = { soft = 1 }, cab.models.vim { image = 28, patch = 4, dim = 32, depth = 2, state = 8 }
  if value.is_strategy then
    value.name = value.name or path:match "([^/]+)%.lua$" or path
    loss.align = { value, weight = 1 }
  else
    if not value.options.image then check.fail(2, path .. ": only models of images are tried here", { id = "recipe" }) end
    student = value { patch = 4, dim = 32, depth = 2 }
  end
  return cab.recipe {
    data = cab.data.fashion { fraction = 0.05 },
    teacher = cab.models.vit { image = 28, patch = 4, dim = 64, depth = 6, heads = 4, weights = "data/teacher_fashion.safetensors" },
    student = student, stages = { { loss = loss, steps = 40 } },
    optim = { "adamw", lr = 2e-3, warmup = "4 steps", clip = 1 }, batch = 25, log = 5, eval = { every = "20 steps" }, checkpoint = { every = 0 },
  }
end

return M
