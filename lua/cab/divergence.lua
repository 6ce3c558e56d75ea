--- Divergences between distributions that are given as logits [R,C] (arXiv 1503.02531, 2306.13649), for images; text has op.head_loss.
local core = require "cab.core"
local options = require "cab.options"
local op = core.ops
local M = {}

local TINY = 1e-30 -- inside logarithms: p log p is 0 at 0

M.kinds = { "forward", "reverse", "jsd" }

--- softmax of each row and its logarithm. x - log p is the same for every entry of a row; its mean under p is log sum e^x.
---@param x cab.Tensor [R,C]
---@return cab.Tensor p
---@return cab.Tensor log_p
function M.log_softmax(x)
  local p = op.softmax(x)
  return p, x - op.sum(p * (x - op.log(p + TINY)), { dim = 2 }):reshape(x:size(1), 1)
end

--- x [R,C] with all but the k largest of each row (and what equals the k-th) at -1e30; k = 0: x. Without gradient.
---@param x cab.Tensor
---@param k integer
---@return cab.Tensor
function M.largest(x, k)
  if k == 0 or k >= x:size(2) then return x end
  return core.no_grad(function()
    local least = op.largest(x, { k = k }):slice(2, k, k)
    local keep = op.relu(1 - op.relu((least - x) * 1e30))
    return x * keep + (keep - 1) * 1e30
  end)
end

--- T^2 times: forward sum p (log p - log q), reverse sum q (log q - log p), jsd their mean against m = (p + q)/2; p the
--- teacher's softmax(teacher/T), q the student's; mean over rows.
---@param student cab.Tensor
---@param teacher cab.Tensor
---@param o {divergence: string, temperature: number}
---@return cab.Tensor
function M.of(student, teacher, o)
  local T = o.temperature
  options.choice(o.divergence, M.kinds, "divergence")
  if o.divergence == "forward" then return op.kl(student, teacher, { temperature = T }) end
  local q, log_q = M.log_softmax(student / T)
  local p, log_p = core.no_grad(M.log_softmax, teacher / T)
  local total
  if o.divergence == "reverse" then
    total = op.sum(q * (log_q - log_p))
  else
    local log_m = op.log((p + q) * 0.5 + TINY)
    total = (op.sum(p * (log_p - log_m)) + op.sum(q * (log_q - log_m))) * 0.5
  end
  return total * (T * T / student:size(1))
end

return M
