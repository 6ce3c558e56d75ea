--- How much each loss term pulls, and whether two pull against each other.
local core = require "cab.core"
local dist = require "cab.dist"
local M = {}

--- Copies of the student's gradients, kept beyond a scope.
---@param job Job
---@param scope any
---@return table<integer, cab.Tensor> by place in job.params
function M.gradients(job, scope)
  local out = {}
  for i, p in ipairs(job.params) do
    if p.student and p.tensor.grad then out[i] = scope:keep(p.tensor.grad:clone()) end
  end
  return out
end

-- The cosine of two sets of gradients.
local function cosine(a, b)
  local ab, aa, bb = 0, 0, 0
  local scope <close> = core.scope()
  local function dot(x, y) return x and y and core.ops.sum(x:to "f64" * y:to "f64"):item() or 0 end
  core.no_grad(function()
    for i in pairs(a) do ab, aa = ab + dot(a[i], b[i]), aa + dot(a[i], a[i]) end
    for i in pairs(b) do bb = bb + dot(b[i], b[i]) end
  end)
  return aa > 0 and bb > 0 and ab / math.sqrt(aa * bb) or nil
end

--- The gradient norm of each term alone, by a pass of its own each: on the student, and on all parameters. Of two terms that both
--- reach the student, also the cosine of their gradients on it: below 0 they pull against each other.
---@param job Job
---@param stage table
---@param images any as for Job:losses, or bytes as a loader has them
---@param labels any
---@param target? any
---@return table name -> {student, all, share: of the student's sum}
---@return table<string, number> conflict "align, soft" -> cosine
function M.of(job, stage, images, labels, target)
  local out, sum, kept, conflict = {}, 0, {}, {}
  local batch = { images = images, labels = labels, targets = target }
  for i, term in ipairs(stage.terms) do
    local scope <close> = core.scope()
    local norm, weight = { student = 0, all = 0 }, nil
    job:clear_gradients()
    dist.backward(job, batch, function(p)
      local one = job:losses(stage, job.data:normalise(p.images), p.labels, p.targets)[i]
      weight = one.weight
      return one.value.requires_grad and one.value or nil
    end)
    norm.student = weight * core.grad_norm(job:tensors(true))
    norm.all = weight * core.grad_norm(job:tensors())
    if norm.all > 0 then kept[#kept + 1] = { term.name, M.gradients(job, scope) } end
    job:clear_gradients()
    sum = sum + norm.student
    out[term.name] = norm
  end
  for _, norm in pairs(out) do norm.share = sum > 0 and norm.student / sum or 0 end
  for i, a in ipairs(kept) do
    for j = i + 1, #kept do conflict[("%s, %s"):format(a[1], kept[j][1])] = cosine(a[2], kept[j][2]) end
  end
  for _, a in ipairs(kept) do for _, t in pairs(a[2]) do t:close() end end
  return out, conflict
end

return M
