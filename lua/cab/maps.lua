--- Kernel maps: what a teacher's tap becomes before a student's is fitted to it. Softmax of keys runs over tokens, of everything
--- else over features (arXiv 1812.01243); either axis can be named. "learned" is the feature map of a linear attention (pairs:features).
local core = require "cab.core"
local options = require "cab.options"
local op = core.ops
local M = {}

--- Those that op.bridge applies itself, as it reads the teacher's tap.
M.fused = { none = true, relu = true, exp = true, standard = true }

local maps = {}
function maps.none(x) return x end
function maps.relu(x) return op.relu(x) end
function maps.exp(x) return op.exp(x) end
--- elu(x) + 1 (arXiv 2006.16236)
function maps.elu(x) return op.relu(x) + op.exp(-op.relu(-x)) end
function maps.softmax_features(x) return op.softmax(x, { dim = 3 }) end
function maps.softmax_tokens(x) return op.softmax(x, { dim = 2 }) end
function maps.softmax(x, tap) return op.softmax(x, { dim = tap == "k" and 2 or 3 }) end
function maps.standard(x, _, s) return op.map_keys(x, s.mean, s.deviation, { map = "standard" }) end
function maps.learned() options.fail(2, "map-learned", "map 'learned' is of q and k, of a strategy that has pairs:features") end

--- Names of all maps, those of users among them; grows with define.
M.names = options.names(maps)

--- A map of one's own: fn(x [b,l,D], tap) -> [b,l,D], without gradient, once a step and layer; `map = name` in a recipe then.
---@param name string
---@param fn fun(x: cab.Tensor, tap: string): cab.Tensor
function M.define(name, fn)
  if type(name) ~= "string" or type(fn) ~= "function" then options.fail(1, "map", "cab.maps.define: expected a name and a function") end
  if maps[name] then options.fail(1, "map", ("cab.maps.define: there is a map '%s' already"):format(core.escape(name))) end
  maps[name], M.names[#M.names + 1] = fn, name
end

--- x under a map.
---@param name string
---@param x cab.Tensor [b,l,D]
---@param tap string "k", "q", ...
---@param statistics? {mean: cab.Tensor, deviation: cab.Tensor} of "standard"
---@return cab.Tensor
function M.apply(name, x, tap, statistics)
  local y = maps[options.choice(name, M.names, "map")](x, tap, statistics)
  if type(y) ~= "userdata" or table.concat(y:shape(), ",") ~= table.concat(x:shape(), ",") then
    options.fail(1, "map", ("map '%s' gives another shape than it takes, [%s]"):format(name, table.concat(x:shape(), ",")))
  end
  return y
end

return M
