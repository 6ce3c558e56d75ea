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

local own = {} -- kinds that users defined

--- A model of one's own for images, in recipes as cab.models.KIND{...} from then on. `new` makes the module of the options o (those of
--- every image model and its own) and sets on it: depth, width, taps (cab.taps.declare), tap_size, tokens, side, class_positions,
--- place_class(patches), of a student state_size and directions; docs/models-howto.md. A kind may be defined again, as a file that is
--- read twice does; one of the program's own may not: code 2.
---@param def {kind: string, new: fun(o: table): cab.Module, options?: table, sizes?: table<string, table>}
---@return table the kind
function M.define(def)
  local check = require "cab.check"
  def = check.options({ kind = { "string", required = true }, new = { "function", required = true }, options = { "table", default = {} },
    sizes = { "table", default = {} } }, def, "cab.models.define")
  local kind = def.kind
  if not kind:find "^[%a_][%w_]*$" then options.fail(2, "model", ("cab.models.define: kind '%s' is no name"):format(require "cab.core".escape(kind))) end
  if rawget(M, kind) or kinds[kind] and not own[kind] then options.fail(2, "model", ("cab.models.define: there is '%s' already"):format(kind)) end
  if not next(def.sizes) then def.sizes = { tiny = {} } end
  def.options = build.schema(def.sizes, def.options)
  if not def.sizes.tiny then def.options.size.default = options.names(def.sizes)[1] end
  own[kind], kinds[kind] = true, build.described(def)
  return kinds[kind]
end

--- What models share, for those of one's own: enter(model, images) checks images, side(o) counts patches.
M.enter, M.side = build.enter, build.side

return setmetatable(M, {
  __index = function(_, name) return kinds[name] or options.unknown("model", name, options.names(kinds)) end,
})
