--- Images a second of the loader, and of Pillow in as many processes where python3 (or $CAB_PYTHON) has it: JPEG of 500 x 375
--- decoded, RandomResizedCrop 224 bicubic, mirrored; then the whole augmentation of DeiT. Runs alternate; medians of nine. Processor
--- time an image is the steadier number where the machine has other work.
local core = require "cab.core"
local lfs = require "lfs"

local source = "../shared/data/images/imagenet-sample-100"
local python = os.getenv "CAB_PYTHON" or "python3"
local COPIES, ROUNDS, THREADS, BATCH = 10, 9, 2, 24

print(("\n-- loader: JPEG to 3 x 224 x 224, %d threads"):format(THREADS))
if not lfs.attributes(source) then return print("skipped: " .. source .. " is not there") end

-- The photographs of 500 x 375 pixels, each under several names.
local root = os.tmpname()
os.remove(root)
lfs.mkdir(root)
lfs.mkdir(root .. "/a")
local links, photos = {}, 0
for name in lfs.dir(source) do
  if name:find "%.JPEG$" then
    local size = core.read_image(source .. "/" .. name):shape()
    if size[1] == 375 and size[2] == 500 then
      photos = photos + 1
      for i = 1, COPIES do
        links[#links + 1] = ("%s/a/%d-%s"):format(root, i, name)
        lfs.link(lfs.currentdir() .. "/" .. source .. "/" .. name, links[#links], true)
      end
    end
  end
end

local set = core.data.open { kind = "folder", root = root }
local deit = { layers = 2, magnitude = 9, spread = 0.5, erase = 0.25 }
local images = { u8 = core.empty({ BATCH, 3, 224, 224 }, "u8"), f32 = core.empty { BATCH, 3, 224, 224 } }
local labels, targets = core.empty({ BATCH }, "i32"), core.empty { BATCH, 1 }
local function ours(augment, epoch, dtype)
  local begun, busy, count = core.now(), os.clock(), 0
  local loader <close> = core.data.loader { dataset = set, batch = BATCH, threads = THREADS, shuffle = true, epoch = epoch, mixup = augment and 0.8 or 0,
    cutmix = augment and 1 or 0, transform = { size = 224, crop = "resized", flip = true, draft = true, dtype = dtype, augment = augment,
      mean = { 0.485, 0.456, 0.406 }, std = { 0.229, 0.224, 0.225 } } }
  while loader:into(images[dtype], labels, augment and targets or nil) do count = count + BATCH end -- as the trainer takes them
  assert(count == #links, "batches are missing")
  return { count / (core.now() - begun), 1e3 * (os.clock() - busy) / count }
end

local have = os.execute(python .. " -c 'import PIL, numpy' 2>/dev/null")
local function pillow(kind)
  if not have then return nil end
  local pipe <close> = io.popen(("%s tests/bench/pillow_peer.py %s %s %d 2>&1"):format(python, root .. "/a", kind, THREADS))
  local text = pipe:read "a"
  local rate, busy = text:match "([%d.]+) images/s, ([%d.]+) ms"
  return rate and { tonumber(rate), tonumber(busy) } or error("Pillow failed: " .. text)
end

local function median(list, i)
  table.sort(list, function(a, b) return a[i] < b[i] end)
  return list[(#list + 1) // 2][i]
end

print(("%d photographs, %d files"):format(photos, #links))
local first = ours(nil, 0, "u8")
print(("%-42s %6.0f images/s, %.2f ms of processor time   files not seen before, read to their end"):format("first epoch: bytes", first[1], first[2]))
for _, case in ipairs { { "decode, crop, resize, mirror: bytes", nil, "plain", "u8" }, { "the same, normalised", nil, nil, "f32" },
  { "with RandAugment, erasing, mixing: bytes", deit, "deit", "u8" } } do
  local a, b = {}, {}
  for round = 1, ROUNDS do
    a[round] = ours(case[2], round, case[4])
    if case[3] then b[round] = pillow(case[3]) end
  end
  local mine, busy, text = median(a, 1), median(a, 2), case[3] and ("Pillow: skipped, %s has none (set CAB_PYTHON)"):format(python) or ""
  if #b > 0 then
    local peer, theirs = median(b, 1), median(b, 2)
    text = ("Pillow %.0f images/s, %.2f ms: %.2fx as many, %.2fx the processor time"):format(peer, theirs, mine / peer, theirs / busy)
  end
  print(("%-42s %6.0f images/s, %.2f ms of processor time   %s"):format(case[1], mine, busy, text))
end
for _, path in ipairs(links) do os.remove(path) end
lfs.rmdir(root .. "/a")
lfs.rmdir(root)
