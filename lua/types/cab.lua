---@meta
-- luacheck: ignore
--- Types for editors of what C gives to Lua: tensors, and the functions that `cab` has from the core. Not loaded by the program.
--- Modules written in Lua carry their own comments; ops are in op.lua, recipes in recipe.lua, both made from the program's tables.

---@alias cab.dtype "f32"|"f64"|"bf16"|"i32"|"u8"
---@alias cab.device "cpu"|"cuda"|"cuda:0"|"auto"|string

---@class cab.Tensor
---@field requires_grad boolean set it on a leaf before the forward pass
---@field grad cab.Tensor? added up by backward; nil: none yet, or set to nil
---@operator add(cab.Tensor|number): cab.Tensor
---@operator sub(cab.Tensor|number): cab.Tensor
---@operator mul(cab.Tensor|number): cab.Tensor
---@operator div(cab.Tensor|number): cab.Tensor
---@operator unm: cab.Tensor
local Tensor = {}

--- Sizes of all dimensions.
---@return integer[]
function Tensor:shape() end

--- Size of a dimension, from 1, negative from the end. Faults on one that is none.
---@param dim integer
---@return integer
function Tensor:size(dim) end

--- Number of dimensions.
---@return integer
function Tensor:rank() end

---@return cab.dtype
function Tensor:dtype() end

---@return string "cpu", "cuda:0"
function Tensor:device() end

--- Number of elements.
---@return integer
function Tensor:count() end

--- Bytes of the elements.
---@return integer
function Tensor:bytes() end

--- The element of a tensor that has one; waits for the device. Faults where there are more.
---@return number
function Tensor:item() end

--- Elements as nested tables of numbers.
---@return number|table
function Tensor:totable() end

--- Smallest, largest, mean and deviation of the finite elements; bad: how many are NaN or infinite.
---@return {min: number, max: number, mean: number, std: number, bad: integer}
function Tensor:range() end

--- Gradients of this scalar to every leaf that wants one, added to their `grad`. Faults where nothing wants one.
function Tensor:backward() end

--- The same memory without history.
---@return cab.Tensor
function Tensor:detach() end

--- New memory, contiguous; the gradient flows through.
---@return cab.Tensor
function Tensor:clone() end

--- A copy in another dtype or on another device, without history; op.cast keeps the gradient.
---@param where cab.dtype|cab.device
---@return cab.Tensor
function Tensor:to(where) end

--- Sets all elements in place. Faults on tensors that backward still needs.
---@param value number
---@return cab.Tensor itself
function Tensor:fill(value) end

--- Takes the elements of a tensor of the same shape, of any dtype and device, in place.
---@param from cab.Tensor
---@return cab.Tensor itself
function Tensor:copy(from) end

--- Adds alpha x in place; x broadcasts.
---@param x cab.Tensor|number
---@param alpha? number default 1
---@return cab.Tensor itself
function Tensor:add_(x, alpha) end

--- The same elements in another shape; one size may be -1. Faults where the counts differ.
---@param ... integer|integer[] the shape
---@return cab.Tensor
function Tensor:reshape(...) end

--- Dimension i of the result is dimension order[i]: x:permute(1, 3, 2). A view.
---@param ... integer
---@return cab.Tensor
function Tensor:permute(...) end

--- Two dimensions exchanged. A view.
---@param a integer
---@param b integer
---@return cab.Tensor
function Tensor:transpose(a, b) end

--- Elements first .. last of a dimension, both included. A view.
---@param dim integer
---@param first integer
---@param last? integer default -1
---@return cab.Tensor
function Tensor:slice(dim, first, last) end

--- Dimensions of size 1 repeated without memory; -1 keeps a size. A view.
---@param ... integer|integer[] the shape
---@return cab.Tensor
function Tensor:expand(...) end

--- A dimension in reverse order.
---@param dim integer
---@return cab.Tensor
function Tensor:flip(dim) end

--- Views of these sizes along a dimension. Faults where their sum is not its size.
---@param dim integer
---@param sizes integer[]
---@return cab.Tensor ...
function Tensor:split(dim, sizes) end

--- Frees the memory now; the tensor must not be used any more.
function Tensor:close() end

---@class cab.Scope
local Scope = {}

--- Takes tensors out of the scope, so that they outlive it.
---@param ... cab.Tensor
---@return cab.Tensor ...
function Scope:keep(...) end

--- Frees what was born in it and not kept; the end of `local s <close> = cab.scope()` does.
function Scope:close() end

---@class cab
local cab = {}

--- Numbers in nested tables of equal lengths, or one number.
---@param data number|table
---@param dtype? cab.dtype default "f32"
---@param device? cab.device default "cpu"
---@return cab.Tensor
function cab.tensor(data, dtype, device) end

---@param shape integer[]
---@param dtype? cab.dtype
---@param device? cab.device
---@return cab.Tensor
function cab.zeros(shape, dtype, device) end

---@param shape integer[]
---@param dtype? cab.dtype
---@param device? cab.device
---@return cab.Tensor
function cab.ones(shape, dtype, device) end

---@param shape integer[]
---@param value number
---@param dtype? cab.dtype
---@param device? cab.device
---@return cab.Tensor
function cab.full(shape, value, dtype, device) end

--- Memory as it comes.
---@param shape integer[]
---@param dtype? cab.dtype
---@param device? cab.device
---@return cab.Tensor
function cab.empty(shape, dtype, device) end

--- 0, 1, .. n - 1.
---@param n integer
---@param dtype? cab.dtype default "i32"
---@return cab.Tensor
function cab.arange(n, dtype) end

--- U(low, high): a function of (seed, stream) and the element's place alone.
---@param shape integer[]
---@param low number
---@param high number
---@param seed? integer
---@param stream? string a name
---@param dtype? cab.dtype
---@return cab.Tensor
function cab.uniform(shape, low, high, seed, stream, dtype) end

--- N(mean, deviation): a function of (seed, stream) and the element's place alone.
---@param shape integer[]
---@param mean number
---@param deviation number
---@param seed? integer
---@param stream? string a name
---@param dtype? cab.dtype
---@return cab.Tensor
function cab.normal(shape, mean, deviation, seed, stream, dtype) end

--- N(mean, deviation) cut at low and high.
---@param shape integer[]
---@param mean number
---@param deviation number
---@param low number
---@param high number
---@param seed? integer
---@param stream? string a name
---@param dtype? cab.dtype
---@return cab.Tensor
function cab.trunc_normal(shape, mean, deviation, low, high, seed, stream, dtype) end

--- Tensors one after another along a dimension; the gradient flows through.
---@param list cab.Tensor[]
---@param dim? integer default 1
---@return cab.Tensor
function cab.concat(list, dim) end

--- Tensors born from here to its end are freed with it: local s <close> = cab.scope().
---@return cab.Scope
function cab.scope() end

--- f without a record for backward.
---@param f function
---@param ... any its arguments
---@return any ... what f returns
function cab.no_grad(f, ...) end

--- An op of one's own: forward(ctx, ...) -> outputs, backward(ctx, gradients of the outputs...) -> gradients of the inputs. ctx:save(...)
--- keeps tensors for backward, where they are ctx.saved.
---@param o {name: string, forward: function, backward: function}
---@return fun(...: cab.Tensor): cab.Tensor
function cab.custom(o) end

--- Writes tensors as safetensors: the old or the new file, never a part. Faults: 74.
---@param path string
---@param tensors table<string, cab.Tensor>
---@param metadata? table<string, string>
function cab.save(path, tensors, metadata) end

--- Bytes on a device: in tensors now, at most so far, kept for later.
---@param device? cab.device
---@return {live: integer, peak: integer, cached: integer}
function cab.memory(device) end

--- What this machine offers, as `cab doctor` prints it.
---@return any
function cab.doctor() end

--- Devices there are, the CPU first; and why there is no further one.
---@return {name: string, chip: string}[]
---@return string?
function cab.devices() end

--- Returns when all that was launched on a device has run.
---@param device? cab.device
function cab.sync(device) end
