--- The mixer of Mamba for text: projection, causal convolution, selective scan, gate. Parameter names of the published
--- checkpoints. Source: arXiv:2312.00752.
local core = require "cab.core"
local nn = require "cab.nn"
local build = require "cab.models.build"
local documents = require "cab.models.documents"
local mixing = require "cab.mixing"
local options = require "cab.options"
local recurrent = require "cab.models.recurrent"
local op = core.ops
local M = {}

--- b_dt with softplus(b_dt) = exp(U(log 1e-3, log 1e-1)): x + log(1 - exp(-x)), in f64.
function M.dt_bias(shape, seed, name, dtype)
  local dt = op.exp(core.uniform(shape, math.log(1e-3), math.log(1e-1), seed, name, "f64"))
  return (dt + op.log(1 - op.exp(-dt))):to(dtype)
end

--- A_log [E,N] by name: -20 (A near 0, exp(delta A) near the identity) or log(1..N) in each row (S4D-real).
M.decays = { identity = nn.constant(-20) }
function M.decays.s4d(shape, _, _, dtype)
  return op.log(core.arange(shape[2]):to("f64") + 1):expand(shape):clone():to(dtype)
end

local Mixer = {}

-- The scan of one token after the other from state h [b,E,N], which takes the last one's place. t: as for `scan`.
local function steps(h, t)
  local E, N, ys = t.A:size(1), t.A:size(2), {}
  local dt = t.softplus and op.softplus(t.dt + build.cast(t.bias, t.dt:dtype())) or t.dt
  for i = 1, t.u:size(2) do
    local function at(x, ...) return x:slice(2, i, i):reshape(x:size(1), ...) end
    local d, x = at(dt, E, 1), at(t.u, E, 1)
    local S = op.exp(d * t.A) * h + (d * x) * at(t.B, 1, N)
    h:copy(S)
    ys[i] = (op.sum(S * at(t.C, 1, N), { dim = 3 }) + at(t.u, E) * t.D):reshape(h:size(1), 1, E)
  end
  return core.concat(ys, 2)
end

-- The scan of whole sequences, of packed documents, or from a cache. t: what op.selective_scan reads, by name.
local function scan(t, layer, run)
  local cache = recurrent.cached(run, layer)
  if cache then return steps(cache.state, t) end
  return documents.each(run, function(u, dt, B, C)
    return op.selective_scan(u, dt, t.A, B, C, t.D, nil, t.bias, { softplus = t.softplus })
  end, t.u, t.dt, t.B, t.C)
end

--- h [b,l,D] -> [b,l,D]
function Mixer:forward(h, put, wanted, layer, run)
  local x, z = self.in_proj(h):split(3, { self.E, self.E })
  local u = recurrent.conv(self.conv1d, x, true, run, layer)
  local low, B, C = self.x_proj(u):split(3, { self.rank, self.N, self.N })
  local dt, bias, softplus = op.linear(low, self.dt_proj.weight), self.dt_proj.bias, true
  if wanted and wanted.dt then dt, bias, softplus = op.softplus(dt + build.cast(bias, dt:dtype())), nil, false end
  local A = -op.exp(self.A_log)
  put("x", layer, u) put("B", layer, B) put("C", layer, C) put("dt", layer, dt) put("z", layer, z)
  if wanted and wanted.matrix then put("matrix", layer, op.scan_matrix(dt, A, B, C, bias, { softplus = softplus })) end
  if wanted and wanted.mixing then
    if run.documents then options.fail(1, "model-mixing", "mamba: mixing matrices are for rows of one document each") end
    put("mixing", layer, mixing.scan { dt = dt, A = A, B = B, C = C, bias = bias, softplus = softplus })
  end
  local y = scan({ u = u, dt = dt, A = A, B = B, C = C, D = self.D, bias = bias, softplus = softplus }, layer, run)
  return self.out_proj(op.gate(y, z))
end

--- What generation keeps of b sequences.
function Mixer:cache(b, _, dtype, device)
  return { tail = core.zeros({ b, self.width - 1, self.E }, dtype, device), state = core.zeros({ b, self.E, self.N }, dtype, device) }
end

--- @param o table dim, expand, state, conv, rank?, decay, depth
function M.new(o)
  local D, E, N = o.dim, o.dim * o.expand, o.state
  local R = o.rank or math.ceil(D / 16)
  local m = nn.module("mixer", Mixer)
  m.E, m.N, m.rank, m.width = E, N, R, o.conv
  m.in_proj = nn.linear(D, 2 * E, { bias = false })
  m.conv1d = nn.conv1d(E, o.conv)
  m.x_proj = nn.linear(E, R + 2 * N, { bias = false })
  m.dt_proj = nn.linear(R, E, { bias_init = M.dt_bias })
  m.A_log = nn.param({ E, N }, M.decays[o.decay], false)
  m.D = nn.param({ E }, nn.constant(1), false)
  m.out_proj = nn.linear(E, D, { bias = false, init = nn.kaiming(E, o.depth ^ -0.5) })
  return m
end

return M
