-- Real weights on real images: what published models score here. Skipped where the data is not there.
local core = require "cab.core"
local cab = require "cab"
local lfs = require "lfs"
local op = core.ops
local DATA = "../shared/data/"

-- Numbers of images whose label, times `step`, is among the k largest logits.
local function hits(forward, loader, limit, k, step)
  local count, seen = {}, 0
  for i = 1, #k do count[i] = 0 end
  while seen < limit do
    local scope <close> = core.scope()
    local images, labels = loader:next()
    if not images then break end
    local rows, wanted = core.no_grad(forward, images):totable(), labels:totable()
    for i, row in ipairs(rows) do
      if seen < limit then
        local rank = 1
        for _, v in ipairs(row) do rank = rank + (v > row[wanted[i] * step + 1] and 1 or 0) end
        for j, most in ipairs(k) do count[j] = count[j] + (rank <= most and 1 or 0) end
        seen = seen + 1
      end
    end
  end
  loader:close()
  return count, seen
end

-- A folder tree of links to the images; class n of 1000 is the 10 n-th, as the sample holds every tenth.
local function tree(source)
  local root, names = os.tmpname(), {}
  os.remove(root)
  for _, part in ipairs { "", "/test", "/train" } do lfs.mkdir(root .. part) end
  for name in lfs.dir(source) do
    if name:find "%.JPEG$" then names[#names + 1] = name end
  end
  table.sort(names)
  for i, name in ipairs(names) do
    for _, part in ipairs { "test", "train" } do
      local class = ("%s/%s/%04d"):format(root, part, 10 * (i - 1))
      lfs.mkdir(class)
      assert(lfs.link(lfs.currentdir() .. "/" .. source .. "/" .. name, class .. "/a.jpg", true))
    end
  end
  return root, #names
end

describe("real weights", function()
  it("classify ImageNet: ViT-Tiny, bicubic resize to 248, centre crop of 224", function()
    local weights, source = DATA .. "weights/vit_tiny_patch16_224.safetensors", DATA .. "images/imagenet-sample-100"
    if not lfs.attributes(weights) or not lfs.attributes(source) then return pending("needs " .. weights .. " and " .. source) end
    local root, count = tree(source)
    local data = cab.data.build(cab.data.folder { root = root, size = 224, crop_ratio = 224 / 248, mean = 0.5, std = 0.5, index = "none" })
    local model = cab.models.vit { weights = weights }:build {}
    assert.same({ 12, 192, 3, 16, 224, 1000, 5717416 },
      { model.depth, model.width, model.heads, model.options.patch, model.options.image, model.options.classes, model:size() })
    local found, seen = hits(function(images) return (model:forward(images)) end, data:loader("test", { batch = 20 }), 100, { 1, 5 }, 10)
    os.execute(("rm -r '%s'"):format(root))
    assert.same({ 100, 100 }, { count, seen })
    assert.is_true(found[1] >= 85, "top-1 " .. found[1])
    assert.is_true(found[2] >= 98, "top-5 " .. found[2])
  end)

  -- Pre-norm ViT of another author: patches as rows, no bias of q, k, v, scores times 64^-0.5, a head of two layers.
  local function mnist(t)
    local function block(x, name)
      local h = op.layer_norm(x, t[name .. ".0.fn.norm.weight"], t[name .. ".0.fn.norm.bias"], nil, { eps = 1e-5 })
      local q, k, v = op.linear(h, t[name .. ".0.fn.fn.to_qkv.weight"]):split(3, { 64, 64, 64 })
      local a = op.attention(q, k, v, { heads = 8, scale = 64 ^ -0.5 })
      x = x + op.linear(a, t[name .. ".0.fn.fn.to_out.weight"], t[name .. ".0.fn.fn.to_out.bias"])
      h = op.layer_norm(x, t[name .. ".1.fn.norm.weight"], t[name .. ".1.fn.norm.bias"], nil, { eps = 1e-5 })
      h = op.gelu(op.linear(h, t[name .. ".1.fn.fn.net.0.weight"], t[name .. ".1.fn.fn.net.0.bias"]))
      return x + op.linear(h, t[name .. ".1.fn.fn.net.2.weight"], t[name .. ".1.fn.fn.net.2.bias"])
    end
    return function(images)
      local b = images:size(1)
      local x = images:reshape(b, 4, 7, 4, 7):permute(1, 2, 4, 3, 5):reshape(b, 16, 49)
      x = op.linear(x, t["patch_to_embedding.weight"], t["patch_to_embedding.bias"])
      x = core.concat({ t.cls_token:expand { b, 1, 64 }, x }, 2) + t.pos_embedding
      for i = 0, 5 do x = block(x, "transformer.layers." .. i) end
      local h = op.gelu(op.linear(x:slice(2, 1, 1):reshape(b, 64), t["mlp_head.0.weight"], t["mlp_head.0.bias"]))
      return op.linear(h, t["mlp_head.2.weight"], t["mlp_head.2.bias"])
    end
  end

  it("classify MNIST: a ViT saved by torch.save", function()
    local weights, root = DATA .. "weights/vit_mnist.pth", DATA .. "images/mnist-idx"
    if not lfs.attributes(weights) or not lfs.attributes(root) then return pending("needs " .. weights .. " and " .. root) end
    local data = cab.data.build(cab.data.idx { root = root, train_images = "train-images-idx3-ubyte.gz", train_labels = "train-labels-idx1-ubyte.gz",
      test_images = "t10k-images-idx3-ubyte.gz", test_labels = "t10k-labels-idx1-ubyte.gz", mean = 0.1307, std = 0.3081 })
    local found, seen = hits(mnist(cab.load(weights)), data:loader("test", { batch = 200 }), 2000, { 1 }, 1)
    assert.equal(2000, seen)
    assert.is_true(found[1] >= 1940, "top-1 " .. found[1] / 20)
  end)
end)
