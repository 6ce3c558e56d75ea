-- learns.lua [EPOCHS at 10 %]: the three methods of recipes/quickstart.lua on 5 % and 10 % of the embedded training images,
-- three seeds each, the same number of steps. Prints mean and spread (sample standard deviation) of top-1 as Markdown.
local epochs = tonumber(arg[1]) or 20
local results = {}
local function out(percent, seed) return ("runs/learns-%d-%d"):format(percent, seed) end
local function command(percent, seed)
  return ("rm -rf %s; OMP_NUM_THREADS=1 build/cab run recipes/quickstart.lua --out %s data.fraction=%g stages.1.epochs=%d seed=%d eval.every=0 >%s.log 2>&1"):format(
    out(percent, seed), out(percent, seed), percent / 100, epochs * 10 // percent, seed, out(percent, seed))
end
os.execute "mkdir -p runs"
for seed = 0, 2 do -- two at a time, one thread each: the bits do not depend on it
  os.execute(("(%s) & (%s) & wait"):format(command(5, seed), command(10, seed)))
  for _, percent in ipairs { 5, 10 } do
    for line in io.lines(out(percent, seed) .. "/table.txt") do
      local name, top1 = line:match "^(%a+)%s+([%d.]+)"
      if name and top1 then
        local key = name .. percent
        results[key] = results[key] or {}
        table.insert(results[key], tonumber(top1))
      end
    end
  end
  print(("seed %d done"):format(seed))
end

local function text(list)
  local mean, square = 0, 0
  for _, v in ipairs(list) do mean = mean + v / #list end
  for _, v in ipairs(list) do square = square + (v - mean) ^ 2 / math.max(1, #list - 1) end
  return ("%.1f ± %.1f"):format(mean, square ^ 0.5)
end
print "| top-1 on the 2000 test images | 5 % (500 images) | 10 % (1000 images) |\n|---|---|---|"
for _, name in ipairs { "vanilla", "soft", "bridge" } do
  print(("| %s | %s | %s |"):format(name, text(results[name .. 5]), text(results[name .. 10])))
end
