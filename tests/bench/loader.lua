--- Images a second of the loader, and of Pillow in as many processes where python3 (or $CAB_PYTHON) has it: JPEG of 500 x 375
--- decoded, RandomResizedCrop 224 bicubic, mirrored; then the whole augmentation of DeiT. Runs alternate; medians of five.
local core = require "cab.core"
local lfs = require "lfs"

local source = "../shared/data/images/imagenet-sample-100"
local python = os.getenv "CAB_PYTHON" or "python3"
local COPIES, ROUNDS, THREADS = 10, 5, 2

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
local function ours(augment, epoch, dtype)
  local begun = core.now()
  local loader <close> = core.data.loader { dataset = set, batch = 24, threads = THREADS, shuffle = true, epoch = epoch, mixup = augment and 0.8 or 0,
    cutmix = augment and 1 or 0, transform = { size = 224, crop = "resized", flip = true, draft = true, dtype = dtype, augment = augment,
      mean = { 0.485, 0.456, 0.406 }, std = { 0.229, 0.224, 0.225 } } }
  while loader:next() do end
  return #links / (core.now() - begun)
end

local have = os.execute(python .. " -c 'import PIL, numpy' 2>/dev/null")
local function pillow(kind)
  if not have then return nil end
  local pipe <close> = io.popen(("%s tests/bench/pillow_peer.py %s %s %d 2>&1"):format(python, root .. "/a", kind, THREADS))
  local text = pipe:read "a"
  return tonumber(text:match "([%d.]+) images/s") or error("Pillow failed: " .. text)
end

local function median(list)
  table.sort(list)
  return list[(#list + 1) // 2]
end

print(("%d photographs, %d files"):format(photos, #links))
for _, case in ipairs { { "decode, crop, resize, mirror: bytes", nil, "plain", "u8" }, { "the same, normalised", nil, nil, "f32" },
  { "with RandAugment, erasing, mixing: bytes", deit, "deit", "u8" } } do
  local a, b = {}, {}
  for round = 1, ROUNDS do
    a[round] = ours(case[2], round, case[4])
    if case[3] then b[round] = pillow(case[3]) end
  end
  local mine, peer = median(a), #b > 0 and median(b)
  print(("%-46s %8.0f images/s   %s"):format(case[1], mine, peer and ("Pillow %.0f images/s: %.2fx"):format(peer, mine / peer)
    or case[3] and ("Pillow: skipped, %s has none (set CAB_PYTHON)"):format(python) or ""))
end
for _, path in ipairs(links) do os.remove(path) end
lfs.rmdir(root .. "/a")
lfs.rmdir(root)
