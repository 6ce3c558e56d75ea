-- gpu.lua [ceilings] [kernels] [ssd] [bridge] [step] [align] [step128] [forward] [language] [peer]: the GPU's part of make bench; all of it without arguments.
-- Measures what the machine can do, then ours as shares of that, next to the published code (on an H100) and our goals; then the
-- same kernels in PyTorch, if python3 (or $CAB_PYTHON) has it with CUDA.
package.path = "./tests/?.lua;" .. package.path
local core = require "cab.core"
local kernels = require "bench.kernels"
local steps = require "bench.steps"

local wanted, named = {}, arg and #arg > 0 and arg[0]:find "gpu%.lua$"
for _, name in ipairs(named and arg or { "ceilings", "kernels", "ssd", "bridge", "step", "align", "step128", "forward",
  "language", "peer" }) do wanted[name] = true end

-- Ratios to the peer, which prints "name<TAB>milliseconds" with the names of our rows.
local function peer()
  local python = os.getenv "CAB_PYTHON" or "python3"
  if not os.execute(python .. " -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null") then
    return print("\nPyTorch: skipped, " .. python .. " has none with CUDA (set CAB_PYTHON)")
  end
  print "\n-- the same in PyTorch, as graphs over buffers that the cache cannot hold"
  core.trim "cuda"
  local pipe <close> = assert(io.popen(python .. " tests/bench/pytorch_gpu_peer.py 2>&1"))
  for line in pipe:lines() do
    local name, ms = line:match "^([^\t]+)\t([%d.e+-]+)$"
    local ours = name and kernels.results[name]
    if not name then print(line)
    elseif ours then print(("%-42s %9.4f ms   ours %9.4f ms   %6.2fx"):format(name, ms, 1e3 * ours, ms / 1e3 / ours))
    else print(("%-42s %9.4f ms"):format(name, ms)) end
  end
end

local _, chip = core.device "cuda"
print(("\n== %s"):format(chip))
if wanted.ceilings or wanted.kernels or wanted.ssd then kernels.run(wanted) end
if wanted.bridge then steps.bridge(kernels.results) end
if wanted.step or wanted.step128 then steps.vision { [64] = wanted.step, [128] = wanted.step128 } end
if wanted.align then steps.alignment(64) end
if wanted.forward then steps.forward() end
if wanted.language then steps.language() end
if wanted.peer then peer() end
