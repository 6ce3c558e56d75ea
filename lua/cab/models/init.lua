--- Models by name: cab.models.vit{...}, cab.models.vim{...} are descriptions; a recipe holds those, the trainer builds them.
local options = require "cab.options"
local build = require "cab.models.build"

local mamba = require "cab.models.mamba"
local kinds = {
  vit = require "cab.models.vit", vim = require "cab.models.vim", gpt2 = require "cab.models.gpt2", phi = require "cab.models.phi",
  phi_mamba = require "cab.models.phi_mamba", mamba = mamba.mamba, mamba2 = mamba.mamba2,
}

local M = { kinds = kinds }

--- The model of a description or of its plain fields ({kind = "vim", size = "tiny"}).
---@param spec table
---@param extra? table what the data and the run decide: classes, channels, image, seed, dtype
---@return cab.Module
function M.build(spec, extra)
  return build.model(kinds[spec.kind] or options.unknown("model", spec.kind, options.names(kinds)), spec, extra)
end

--- Weights into a model: position embeddings of another grid are resized bicubically.
M.load, M.resize_positions = build.load, build.resize_positions

return setmetatable(M, {
  __index = function(_, name) return kinds[name] or options.unknown("model", name, options.names(kinds)) end,
})
