--- The best of the other studies put together, on fresh seeds. Their arms were compared on seeds 0 to 2 and the test images; here the
--- seeds are 3 to 5, and nothing was chosen after them. The candidate is alone-30-all: all four pairs of taps, weight 10, first and alone
--- for 30 % of the steps, then soft labels. What it must beat: all and alone-30. The adaptive arm gives up a tenth of its training images,
--- which decide; all-90 gives up the same. 81 runs of one to two minutes on two cores, of seconds on a GPU.
local cab = require "cab"
local function taps(weight) return { "attention_bridge", weight = weight, onto = { B = "k", C = "q", x = "v", hidden = "hidden" } } end
local function stage(steps, align, soft) return { loss = { soft = soft, align = align }, steps = steps } end
local function alone(align, after) return { stage(300, align), stage(700, after, 1) } end
local held = { "data.validation=0.1" }
return cab.study {
  about = "The best combination, on fresh seeds",
  base  = "recipes/vim_fashion.lua",
  arms = {
    { name = "soft", stages = { stage(1000, nil, 1) } },
    { name = "bridge" },
    { name = "all", stages = { stage(1000, taps(10), 1) } },
    { name = "alone-30", stages = alone { "attention_bridge", weight = 3 } },
    { name = "alone-30-exp", stages = alone { "attention_bridge", weight = 3, map = "exp" } },
    { name = "alone-30-all", stages = alone(taps(10)) },
    { name = "alone-30-all-on", stages = alone(taps(10), taps(10)) },
    { name = "all-90", stages = { stage(1000, taps(10), 1) }, set = held },
    { name = "adaptive", stages = { stage(1000, taps { "adaptive", to = 10 }, 1) }, set = { "eval.every=10 %", held[1] } },
  },
  vary = { ["data.fraction"] = { 0.01, 0.1, 1 } }, seeds = { 3, 4, 5 }, against = "soft",
}
