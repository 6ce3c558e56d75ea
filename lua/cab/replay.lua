--- A step of a run computed again, twice, from the checkpoint before it: are its numbers those of data and recipe, or of a passing fault
--- of the hardware? `cab resume RUN --replay-step N`.
local core = require "cab.core"
local check = require "cab.check"
local folders = require "cab.folder"
local lfs = require "lfs"
local M = {}

local function shown(x) return type(x) == "number" and ("%.17g"):format(x) or tostring(x) end

-- loss, grad_norm of steps first+1 .. last from a checkpoint: step -> {loss, norm} as text, so that NaN equals NaN.
local function compute(path, first, last)
  local scope <close> = core.scope() -- luacheck: ignore scope
  local session = require "cab.session".of(require "cab.runs".recipe(path).resolved, path)
  session:restore(path, first)
  local out = {}
  for step = first + 1, last do
    local row = session:one()
    out[step] = { loss = shown(row.loss), grad_norm = shown(row.grad_norm) }
  end
  session:close()
  return out
end

-- What the run itself found: of logged steps, and of the one in nan-report.json.
local function told(path)
  local out = {}
  for _, row in ipairs((folders.metrics(path .. "/metrics.jsonl"))) do
    if row.loss and not row.eval then out[row.step] = { loss = shown(row.loss), grad_norm = shown(row.grad_norm) } end
  end
  local report = lfs.attributes(path .. "/nan-report.json") and check.decode(folders.read(path .. "/nan-report.json"))
  if report and report.step then out[report.step] = { grad_norm = shown(report.grad_norm), bad = report.first_bad } end
  return out
end

local function same(a, b)
  for _, key in ipairs { "loss", "grad_norm" } do
    local x, y = a[key], b[key]
    if x and y and x ~= y and not (x:find "nan" and y:find "nan") then return false end
  end
  return true
end

--- The verdict on a step.
---@param path string run folder
---@param step integer
---@return {equal: boolean, finite: boolean, text: string, from: integer, seen: table, now: table}
function M.step(path, step)
  local from
  for _, s in ipairs(folders.view(path):checkpoints()) do if s < step then from = s end end
  if not from then
    check.fail(2, ("%s: no checkpoint before step %d; there are those of %s"):format(path, step,
      table.concat((folders.view(path):checkpoints()), ", ")), { id = "replay" })
  end
  local seen, first, second = told(path), compute(path, from, step), compute(path, from, step)
  local out = { from = from, seen = seen[step], now = first[step], equal = true }
  out.finite = not (first[step].loss .. first[step].grad_norm):find "[nN]" -- nan, inf
  local compared = 0
  for s = from + 1, step do
    if not same(first[s], second[s]) then
      out.equal = false
      out.text = ("step %d is not the same twice (loss %s and %s): this machine does not repeat itself, hardware or a race"):format(s,
        first[s].loss, second[s].loss)
      return out
    end
    if seen[s] then
      compared = compared + 1
      if not same(seen[s], first[s]) then
        out.equal = false
        out.text = ("step %d was loss %s, gradient %s, and is loss %s, gradient %s now: a passing fault, hardware or a race"):format(s,
          seen[s].loss or "unknown", seen[s].grad_norm, first[s].loss, first[s].grad_norm)
        return out
      end
    end
  end
  if compared == 0 then
    check.fail(2, ("%s: none of the steps %d to %d was logged: nothing to compare with"):format(path, from + 1, step), { id = "replay" })
  end
  out.text = ("steps %d to %d are the same again, twice (%d of them logged)%s"):format(from + 1, step, compared,
    out.finite and "" or ": the numbers that are not finite are of the data or the recipe")
  return out
end

--- `cab resume RUN --replay-step N`: 0 where all is equal and finite, else 76.
---@param path string
---@param step integer
---@param o table json, quiet
---@return integer
function M.main(path, step, o)
  local r = M.step(path, step)
  local good = r.equal and r.finite
  if not good and not o.json then
    check.fail(76, ("%s: replay: %s"):format(path, r.text), { id = r.equal and "replay-equal" or "replay-differs" })
  end
  if o.json then print(core.json_encode(require "cab.runs".plain(r))) elseif not o.quiet then print(r.text) end
  return good and 0 or 76
end

return M
