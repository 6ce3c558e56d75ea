--- The devices that specs run on: those that CAB_TEST_DEVICE names ("cuda", "cpu,cuda"; one that is absent is then an error),
--- else the CPU and the first GPU, if there is one.
local core = require "cab.core"
local M = { names = {} }

local wish = os.getenv "CAB_TEST_DEVICE" or ""
local found, why = core.device_available "cuda"
M.cuda = found
M.reason = why -- of there being no GPU

for name in (wish ~= "" and wish or found and "cpu,cuda" or "cpu"):gmatch "[^,]+" do
  core.zeros({ 1 }, "f32", name)
  M.names[#M.names + 1] = name
end

--- Calls f(device, text) for each; text is "" on the CPU and " on cuda" elsewhere, for the names of tests.
---@param f fun(device: string, text: string)
function M.each(f)
  for _, name in ipairs(M.names) do f(name, name == "cpu" and "" or " on " .. name) end
end

return M
