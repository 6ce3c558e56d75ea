-- Pictures and the report of runs.
local cab = require "cab"
local core = require "cab.core"
local charts = require "cab.charts"
local folder = require "cab.folder"
local insight = require "cab.insight"
local page = require "cab.page"
local plot = require "cab.plot"
local process = require "process"
local refused = require "refused"
local report = require "cab.report"

local dir = process.folder()
teardown(function() os.execute("rm -r " .. dir) end)

local function recipe(loss, change)
  local r = { data = cab.data.fashion { fraction = 0.01 }, student = cab.models.vim { image = 28, patch = 7, dim = 8, depth = 2, state = 2 },
    teacher = cab.models.vit { image = 28, patch = 7, dim = 8, depth = 3, heads = 2 },
    stages = { { loss = loss, steps = 20 } }, batch = 10, log = 2, eval = { batch = 2000, every = "5 steps" }, checkpoint = { every = 0 } }
  for k, v in pairs(change or {}) do r[k] = v end
  return cab.recipe(r)
end
local function run(name, loss, change) return recipe(loss, change):run { out = dir .. "/runs/" .. name, quiet = true }.path end
local bridge = run("bridge", { soft = 1, align = { "attention_bridge", hidden = 4, weight = { "adaptive", to = 2, watch = "cosine", cosine = -1 } } })
local soft = run("soft", { soft = 1 })
local gnuplot = plot.gnuplot()
local function size(path)
  local image = core.read_image(path)
  return image:size(2), image:size(1)
end

describe("charts of runs", function()
  it("have a series a run, or one a term", function()
    local runs = charts.runs { dir .. "/runs" }
    assert.equal(2, #runs)
    assert.equal(2, #charts.chart("loss", runs).series)
    local names = {}
    for i, s in ipairs(charts.chart("terms", runs).series) do names[i] = s.name end
    assert.same({ "bridge: align", "bridge: soft", "soft: soft" }, names)
    assert.same({ 5, 10, 15, 20 }, (function() local t = {} for i, p in ipairs(charts.chart("accuracy", runs).series[1].points) do t[i] = p[1] end return t end)())
    assert.equal("align, soft", charts.chart("conflict", { runs[1] }).series[1].name)
    assert.is_nil(charts.chart("perplexity", runs))
    assert.truthy(select(2, charts.chart("fraction", runs)):find "data.fraction")
    refused(2, charts.chart, "acuracy", runs)
  end)
  it("of accuracy against the share of the data take the mean over seeds", function()
    for _, f in ipairs { 0.01, 0.02 } do
      for seed = 1, 2 do run(("f%g-%d"):format(f, seed), { vanilla = 1 }, { data = cab.data.fashion { fraction = f }, seed = seed }) end
    end
    local list, tops = {}, {}
    for _, f in ipairs { 0.01, 0.02 } do for seed = 1, 2 do list[#list + 1] = ("%s/runs/f%g-%d"):format(dir, f, seed) end end
    local c = charts.chart("fraction", charts.runs(list))
    for i, path in ipairs(list) do tops[i] = core.json_decode(folder.read(path .. "/result.json")).top1 end
    assert.equal("vanilla", c.series[1].name)
    assert.is_true(math.abs((tops[1] + tops[2]) / 2 - c.series[1].points[1][2]) < 1e-9)
    assert.same({ 2, math.min(tops[3], tops[4]), math.max(tops[3], tops[4]) }, c.series[1].band[2])
    if gnuplot then assert.is_true(size(charts.draw("fraction", list, dir .. "/fraction.png")) > 200) end
  end)
  if not gnuplot then
    pending "are drawn: no gnuplot here"
    return
  end
  it("are drawn as PNG and SVG, all of them", function()
    for _, what in ipairs(charts.names()) do
      local of = (what == "map" or what == "perplexity" or what == "lengths") and { bridge } or { bridge, soft }
      if what ~= "perplexity" and what ~= "lengths" and what ~= "fraction" then
        local path = ("%s/%s.png"):format(dir, what)
        assert.equal(0, charts.main { runs = of, what = what, out = path, quiet = true, images = 4 })
        assert.is_true(size(path) > 200, what)
        if what == "map" or what == "attention" or what == "conflict" then -- the same at the prompt and from Lua
          local shown = ("%s/%s-prompt.png"):format(dir, what)
          assert.equal(shown, require "cab.show".plot(bridge, shown, what))
          charts.draw(what, bridge, path)
          assert.same({ size(path) }, { size(shown) })
        end
      end
    end
    assert.equal(0, charts.main { runs = { bridge }, what = "loss", out = dir .. "/loss.svg", quiet = true })
    assert.matches("^<%?xml.*</svg>%s*$", folder.read(dir .. "/loss.svg"))
    refused(2, charts.main, { runs = { bridge }, what = "loss", out = dir .. "/loss.gif" })
    refused(2, charts.main, { runs = { bridge }, what = "attention", out = dir .. "/a.svg" })
    refused(2, charts.main, { runs = { dir .. "/none" }, what = "loss" })
  end)
  it("are drawn at the end of a run that asks for them; one that cannot be is a warning", function()
    local path = run("drawn", { soft = 1 }, { draw = { "loss", "similarity", "attention", "fraction" }, stages = { { loss = { soft = 1 }, steps = 2 } } })
    for _, what in ipairs { "loss", "similarity", "attention" } do assert.is_true(size(("%s/%s.png"):format(path, what)) > 100) end
    assert.matches("warning: fraction is not drawn: it needs runs with at least two values", folder.read(path .. "/log.txt"))
    os.execute("rm -r " .. path)
  end)
  it("hold names that gnuplot would read otherwise", function()
    local c = { title = "a'b `id` \"c\" $x {/=20 y}", x = "x", y = "y", series = { { name = "it's \27[31m", points = { { 1, 0 / 0 }, { 2, 1 }, { 3, 2 } } } } }
    assert.equal(dir .. "/odd.png", (plot.chart(dir .. "/odd.png", c)))
    local svg = plot.svg { series = { { name = "it's", points = { { 1, 1 }, { 2, 2 } } } } }
    assert.truthy(svg:find "it&apos;s" or svg:find "it's" or svg:find "it&#39;s")
    assert.is_nil(svg:find "black")
    svg = plot.svg { logx = true, xtics = { "'1 %%' 1", "'2 %%' 2", "'5 %%' 5" },
      series = { { name = "attention_bridge", points = { { 1, 1 }, { 2, 2 }, { 5, 3 } } } } }
    for _, word in ipairs { "attention_bridge", "1 %", "2 %", "5 %" } do assert.truthy(svg:find(word, 1, true), word) end -- no subscript, all ticks
  end)
  it("tell 32 series apart by colour and dash, none as the dashed one, and draw every band below every line", function()
    local list, seen = {}, {}
    for i = 1, 32 do list[i] = { name = "arm " .. i, points = { { 0, i }, { 1, i } }, band = { { 0, i - 1, i + 1 }, { 1, i - 1, i + 1 } } } end
    list[33] = { name = "teacher", colour = plot.colours[1], dashed = true, points = { { 0, 0 }, { 1, 0 } } }
    local svg = plot.svg { series = list }
    for stroke in svg:gmatch "<path stroke='([^>]-)%s*d='M[^>]-/>%s*<use" do
      assert.is_nil(seen[stroke], stroke)
      seen[stroke], seen[#seen + 1] = true, stroke
    end
    assert.equal(33, #seen)
    assert.truthy(svg:find "fill%-opacity")
    assert.is_nil(svg:find("fill%-opacity", (svg:find("<text>arm 1</text>", 1, true))))
  end)
end)

describe("conflict", function()
  it("is the cosine of the gradients of two terms on the student", function()
    local function term(name, sign)
      local s = cab.strategy { name = name, needs = {}, options = {} }
      function s:loss(_, batch) return sign * cab.op.cross_entropy(batch.logits, batch.labels) end
      return { s }
    end
    local scope <close> = core.scope() -- luacheck: ignore scope
    local job = require "cab.job".build(recipe({ up = term("up", 1), down = term("down", -1), same = term("same", 2) }).resolved)
    local images, labels = insight.batch(job, 10)
    local _, conflict = job:shares(job.stages[1], images, labels)
    for pair, expected in pairs { ["down, up"] = -1, ["same, up"] = 1, ["down, same"] = -1 } do
      assert.is_true(math.abs(conflict[pair] - expected) < 1e-6, pair)
    end
  end)
end)

describe("attention", function()
  it("of the teacher stands in the student's token order, and both directions of the student are summed", function()
    local scope <close> = core.scope() -- luacheck: ignore scope
    local job = require "cab.evaluate".open(bridge)
    local images = insight.batch(job, 2)
    local maps = insight.maps(job, images)
    assert.equal(2, #maps)
    local _, t = core.no_grad(job.teacher.forward, job.teacher, images, { attention = true })
    local _, s = core.no_grad(job.student.forward, job.student, images, { matrix = true })
    local at = job.student.class_positions[1] -- the teacher's class token is its first
    local raw, placed = t.attention[maps[2].teacher_layer]:totable()[1][2], maps[2].teacher:totable()[1][2]
    assert.equal(raw[1][1], placed[at][at])
    assert.equal(raw[2][1], placed[1][at])
    local sum = (s.matrix[2] + s.matrix_b[2]):totable()
    assert.equal(sum[2][3][5], maps[2].student:totable()[2][1][3][5])
    -- the cosine by hand
    local found, ab, aa, bb = insight.cosines(job, 2)[2].values[2], 0, 0, 0
    local teacher = core.ops.mean(maps[2].teacher, { dim = 2 }):totable()[2]
    for i, row in ipairs(sum[2]) do
      for j, v in ipairs(row) do ab, aa, bb = ab + math.abs(v) * teacher[i][j], aa + v * v, bb + teacher[i][j] ^ 2 end
    end
    assert.is_true(math.abs(ab / math.sqrt(aa * bb) - found) < 1e-5)
  end)
  it("of a run without a teacher is refused with the reason", function()
    local vanilla = recipe { vanilla = 1 }.given
    vanilla.teacher = nil
    local path = cab.recipe(vanilla):run { out = dir .. "/alone", quiet = true }.path
    for _, what in ipairs { "attention", "similarity", "map" } do
      assert.truthy(refused(2, charts.main, { runs = { path }, what = what, out = dir .. "/no.png" }).message:find "teacher", what)
    end
    refused(2, charts.main, { runs = { bridge }, what = "attention", layer = 3, out = dir .. "/no.png" })
  end)
end)

describe("runs on text", function()
  local words, text = { "the", "cat", "sat", "on", "a", "mat", "and", "saw", "dogs" }, {}
  for i = 1, 3000 do text[i] = words[(i * i + i // 7) % #words + 1] end
  local file = process.put(dir .. "/text.txt", table.concat(text, " "))
  local path = cab.recipe {
    data = cab.data.text { train = file, tokenizer = "gpt2:100", length = 16, holdout = 0.2 },
    teacher = cab.models.gpt2 { dim = 16, depth = 2, heads = 2, positions = 16 },
    student = cab.models.phi_mamba { dim = 16, depth = 2, heads = 2, state = 4 },
    stages = { { loss = { soft = 1, align = { "attention_bridge", hidden = 4 } }, steps = 6 } }, batch = 4, log = 1, eval = { every = "3 steps" } }
    :run { out = dir .. "/text", quiet = true }.path
  local runs = charts.runs { path }
  it("say what the last token looks at: weights for each token, the largest 1", function()
    local tokens, lines = insight.last_token(runs, 10)
    assert.equal(10, #tokens)
    assert.equal(2, #lines)
    for _, line in ipairs(lines) do
      assert.equal(10, #line[2])
      assert.equal(1, math.max(table.unpack(line[2])))
    end
  end)
  it("have similarity, perplexity and a curve of lengths", function()
    for _, b in ipairs(charts.chart("similarity", runs, { images = 4 }).boxes) do
      for _, v in ipairs(b.values) do assert.is_true(v > 0 and v <= 1 + 1e-6) end
    end
    assert.equal(2, #charts.chart("perplexity", runs).series[1].points)
    local c = charts.chart("lengths", runs, { times = 2 })
    assert.same({ 16, 32 }, { c.series[1].points[1][1], c.series[1].points[2][1] })
    if gnuplot then assert.equal(dir .. "/t.png", (insight.attention(runs, dir .. "/t.png", { tokens = 8 }))) end
  end)
  it("have a report", function()
    local page_path = report.write(runs, dir .. "/text.html", { images = 4 })
    local html = folder.read(page_path)
    assert.truthy(html:find "What the last token" and html:find "perplexity")
    assert.is_nil(html:find "<script")
  end)
end)

describe("a report", function()
  local path = dir .. "/report.html"
  it("is one page that asks for nothing else", function()
    report.write(charts.runs { bridge, soft }, path, { images = 4, title = "<b>&" })
    local html = folder.read(path)
    for _, what in ipairs { "<script", "src=\"http", "href=\"http", "@import", "url%(http", "<link rel=\"stylesheet" } do assert.is_nil(html:find(what), what) end
    assert.truthy(html:find("<title>&lt;b&gt;&amp;</title>", 1, true))
    for _, word in ipairs { "bridge", "soft", "Cost to reach", "Environment", "stages.1.loss", "prefers%-color%-scheme", "@media print", "viewport" } do
      assert.truthy(html:find(word), word)
    end
    if gnuplot then assert.is_true(select(2, html:gsub("<svg", "")) >= 10) end
    local ids = {}
    for id in html:gmatch "%sid=[\"']([^\"']+)" do
      assert(not ids[id], id .. " twice")
      ids[id] = true
    end
    for id in html:gmatch "href=[\"']#([^\"']+)" do assert(ids[id], id .. " is not there") end
  end)
  it("of a run that has not ended, and lost its weights, has what there is and says why the rest is not", function()
    local old = dir .. "/old"
    folder.make(old)
    core.write_file(old .. "/recipe.json", folder.read(bridge .. "/recipe.json"))
    core.write_file(old .. "/metrics.jsonl", folder.read(bridge .. "/metrics.jsonl"):sub(1, 900))
    report.write(charts.runs { old }, dir .. "/old.html")
    local html = folder.read(dir .. "/old.html")
    assert.truthy(html:find("not ended", 1, true))
    assert.truthy(html:find "Not drawn: [^<]*best.safetensors" or not gnuplot)
    refused(74, charts.main, { runs = { old }, what = "similarity", out = dir .. "/x.png" })
  end)
  it("tells the cost to reach the teacher's quality", function()
    local function a(name, tops, goal, metric)
      local r = { name = name, evals = {}, seconds = { { 10, 1 }, { 20, 2.5 }, { 30, 4 } }, teacher = { [metric or "top1"] = goal } }
      for i, v in ipairs(tops) do r.evals[i] = { step = 10 * i, eval = { [metric or "top1"] = v } } end
      return r
    end
    local _, rows = report.cost({ a("x", { 50, 80, 90 }, 88), a("y", { 10, 20, 70 }, 88), a("z", { 50, 20, 12 }, 10, "perplexity") }, { 0.9, 1 })
    assert.same({ { "x", "88.00", "90.00", "step 20, 2 s", "step 30, 4 s" }, { "y", "88.00", "70.00", "not reached", "not reached" },
      { "z", "10.00", "12.00", "not reached", "not reached" } }, rows)
  end)
  if os.execute "command -v chromium >/dev/null 2>&1" then
    it("renders in a browser without an error or a request", function()
      local code, said = process.sh(("timeout 60 chromium --headless=new --no-sandbox --disable-gpu --window-size=390,900 --screenshot=%s/shot.png "
        .. "--enable-logging=stderr --v=0 --log-net-log=%s/net.json file://%s"):format(dir, dir, path))
      assert.equal(0, code, said)
      assert.is_nil(said:find "CONSOLE", said)
      assert.equal(390, (size(dir .. "/shot.png")))
      for url in folder.read(dir .. "/net.json"):gmatch '"url":"(https?://[^"]+)' do
        assert(url:find "google" or url:find "gstatic" or url:find "gvt1%.com", url) -- the browser's own
      end
    end)
  else
    pending "renders in a browser: no chromium here"
  end
end)

describe("bytes", function()
  it("in base 64 are those of RFC 4648", function()
    for text, coded in pairs { [""] = "", f = "Zg==", fo = "Zm8=", foo = "Zm9v", foobar = "Zm9vYmFy", ["\0\255\16"] = "AP8Q" } do
      assert.equal(coded, page.base64(text))
    end
  end)
  it("of event files are framed and checked as TensorBoard reads them", function()
    local board = require "cab.tensorboard"
    assert.equal(0xe3069283, board.crc "123456789")
    board.write(charts.runs { soft }, dir .. "/events")
    local bytes, at, count, tags = folder.read(dir .. "/events/soft/events.out.tfevents.0.cab"), 1, 0, {}
    local function masked(s) local c = board.crc(s) return (((c >> 15) | (c << 17)) + 0xa282ead8) & 0xffffffff end
    while at <= #bytes do
      local length, check = ("<I8I4"):unpack(bytes, at)
      assert.equal(masked(bytes:sub(at, at + 7)), check)
      local event = bytes:sub(at + 12, at + 11 + length)
      assert.equal(masked(event), (("<I4"):unpack(bytes, at + 12 + length)))
      for tag in event:gmatch "loss/%a+" do tags[tag] = true end
      at, count = at + 16 + length, count + 1
    end
    assert.equal(1 + #folder.metrics(soft .. "/metrics.jsonl") + #folder.metrics(soft .. "/speed.jsonl"), count)
    assert.is_true(tags["loss/soft"])
  end)
end)

describe("the terminal's chart", function()
  it("has the highest dots where the values are highest", function()
    assert.same({ "⠉⣀ 2" }, require "cab.term".chart({ 2, 2, 1, 1 }, 2, 1))
    local lines = require "cab.term".chart({ 4, 4, 1, 1, 0 / 0, 1, 2, 4 }, 4, 2)
    assert.same({ "⠉⠀⠀⠈ 4", "⠀⣀⢀⠂ 1" }, lines)
    assert.same({}, require "cab.term".chart({ 0 / 0 }, 4, 2))
  end)
end)
