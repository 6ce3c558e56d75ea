--- A page of HTML in one file: no script, nothing from elsewhere; readable on a phone, in print and in the dark.
local M = {}
local Page = {}
Page.__index = Page

local css = [[
:root{color-scheme:light dark;--back:#fff;--text:#1c2024;--soft:#60686f;--line:#d8dde2;--card:#f6f8fa;--strong:#0b57a4}
@media (prefers-color-scheme:dark){:root{--back:#14171a;--text:#e3e6e8;--soft:#9aa3ab;--line:#333a41;--card:#1c2126;--strong:#7db8f0}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:76rem;padding:1rem 1.2rem 3rem;background:var(--back);color:var(--text);font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.6rem;margin:.6rem 0}h2{font-size:1.2rem;margin:2rem 0 .6rem;border-bottom:1px solid var(--line);padding-bottom:.2rem}
p{margin:.4rem 0;max-width:48rem}.soft{color:var(--soft)}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .7rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}th{color:var(--soft);font-weight:600}tr.best td{font-weight:700;color:var(--strong)}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,27rem),1fr));gap:1rem}
figure{margin:0;padding:.7rem;background:var(--card);border:1px solid var(--line);border-radius:.5rem;break-inside:avoid}
figure.full{grid-column:1/-1}figcaption{font-size:.92rem;font-weight:600;margin-bottom:.4rem}
svg{width:100%;height:auto;display:block}img{max-width:100%;height:auto;display:block;background:#fff;padding:.4rem;border-radius:.3rem}
.marked{max-width:none;white-space:pre-wrap;print-color-adjust:exact}.marked b{display:block;font-size:.85rem;color:var(--soft)}
details{margin:.4rem 0}pre{overflow-x:auto;background:var(--card);border:1px solid var(--line);padding:.7rem;border-radius:.5rem;font-size:.8rem;
white-space:pre-wrap;word-break:break-word}
@media print{:root{--back:#fff;--text:#000;--soft:#444;--card:#fff;--line:#bbb;font-size:10px}body{max-width:none;padding:0;font-size:1rem}
h2{break-after:avoid;margin-top:1rem}.grid{display:block;orphans:1;widows:1}.grid figure{display:inline-block;vertical-align:top;width:49%;margin:0 0 .6rem}
.grid figure.full{width:100%}img{max-height:22cm;padding:0}.wide{overflow:visible}table{font-size:.8rem}th,td{padding:.15rem .3rem;white-space:normal}}
]]

local function escaped(text)
  text = tostring(text):gsub("[%c\127]", function(c) return c == "\n" and c or "" end)
  if not utf8.len(text) then text = text:gsub("[\128-\255]", "?") end
  return (text:gsub("[&<>\"']", { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;", ['"'] = "&quot;", ["'"] = "&#39;" }))
end
M.escaped = escaped

--- Bytes in base 64 (RFC 4648).
---@param bytes string
---@return string
function M.base64(bytes)
  local letters, out = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", {}
  for i = 1, #bytes, 3 do
    local a, b, c = bytes:byte(i, i + 2)
    local n = a << 16 | (b or 0) << 8 | (c or 0)
    local function letter(shift)
      local k = (n >> shift & 63) + 1
      return letters:sub(k, k)
    end
    out[#out + 1] = letter(18) .. letter(12) .. (b and letter(6) or "=") .. (c and letter(0) or "=")
  end
  return table.concat(out)
end

---@param title string
function M.new(title) return setmetatable({ title = title, parts = {} }, Page) end

function Page:add(text) self.parts[#self.parts + 1] = text end
function Page:section(title) self:add(("<h2>%s</h2>"):format(escaped(title))) end
function Page:text(text) self:add(("<p>%s</p>"):format(escaped(text))) end

--- The best run, and what it has of its teacher.
---@param runs table[] read
---@param better fun(metric: string, a: number, b: number): boolean
function Page:summary(runs, better)
  local best, value, metric
  for _, run in ipairs(runs) do
    local last = run.evals[#run.evals]
    local m = last and (last.eval.perplexity and "perplexity" or "top1")
    if m and last.eval[m] and (not value or (m == metric and better(m, last.eval[m], value))) then best, value, metric = run, last.eval[m], m end
  end
  local words = ("%d run%s."):format(#runs, #runs == 1 and "" or "s")
  if best then
    words = ("%s At their ends the best is %s: %s %.2f%s."):format(words, best.name, metric == "top1" and "top-1" or metric, value, metric == "top1" and " %" or "")
    local goal = best.teacher and best.teacher[metric]
    if goal then words = ("%s Its teacher has %.2f%s."):format(words, goal, metric == "top1" and " %" or "") end
    self.best = best.name
  end
  self:text(words)
end

--- A table; the row of the best run stands out.
---@param header string[]
---@param rows string[][]
function Page:table(header, rows)
  local out = { '<div class="wide"><table><thead><tr>' }
  for _, h in ipairs(header) do out[#out + 1] = ("<th>%s</th>"):format(escaped(h)) end
  out[#out + 1] = "</tr></thead><tbody>"
  for _, row in ipairs(rows) do
    out[#out + 1] = row[1] == self.best and '<tr class="best">' or "<tr>"
    for _, cell in ipairs(row) do out[#out + 1] = ("<td>%s</td>"):format(escaped(cell)) end
    out[#out + 1] = "</tr>"
  end
  out[#out + 1] = "</tbody></table></div>"
  self:add(table.concat(out))
end

--- Figures side by side where there is room. @param list table[] {caption, svg?, why it is not there?, png?}
function Page:figures(list)
  local out = { '<div class="grid">' }
  for i, f in ipairs(list) do
    local svg = f[2] and f[2]:gsub('id="', ('id="f%d-%d-'):format(#self.parts, i)):gsub("url%(#", ("url(#f%d-%d-"):format(#self.parts, i))
      :gsub("href='#", ("href='#f%d-%d-"):format(#self.parts, i)):gsub("id='", ("id='f%d-%d-"):format(#self.parts, i))
    local body = f[4] and ('<img alt="%s" src="data:image/png;base64,%s">'):format(escaped(f[1]), M.base64(f[4]))
      or svg or ('<p class="soft">Not drawn: %s</p>'):format(escaped(f[3] or ""))
    out[#out + 1] = ("<figure%s><figcaption>%s</figcaption>%s</figure>"):format(f[4] and ' class="full"' or "", escaped(f[1]), body)
  end
  out[#out + 1] = "</div>"
  self:add(table.concat(out, "\n"))
end

--- A text with weights of 0 .. 1 behind its tokens, once a line. @param lines table[] {name, weights}
function Page:marked(caption, tokens, lines)
  local out = { ('<figure class="full"><figcaption>%s</figcaption>'):format(escaped(caption)) }
  for _, line in ipairs(lines) do
    out[#out + 1] = ('<p class="marked"><b>%s</b> '):format(escaped(line[1]))
    for i, token in ipairs(tokens) do
      out[#out + 1] = ('<span style="background:rgba(213,94,0,%.2f)">%s</span>'):format(0.85 * line[2][i], escaped((token:gsub("%s", " "))))
    end
    out[#out + 1] = "</p>"
  end
  out[#out + 1] = "</figure>"
  self:add(table.concat(out))
end

function Page:details(title, text) self:add(("<details><summary>%s</summary><pre>%s</pre></details>"):format(escaped(title), escaped(text))) end

---@return string
function Page:html()
  return table.concat({ "<!DOCTYPE html>", '<html lang="en"><head><meta charset="utf-8">', '<meta name="viewport" content="width=device-width,initial-scale=1">',
    '<link rel="icon" href="data:,">', ("<title>%s</title>"):format(escaped(self.title)), "<style>" .. css .. "</style></head><body>",
    ("<h1>%s</h1>"):format(escaped(self.title)), table.concat(self.parts, "\n"),
    ('<p class="soft">Written by cab report, %s UTC.</p>'):format(os.date "!%Y-%m-%d %H:%M"), "</body></html>" }, "\n") .. "\n"
end

return M
