local tools = require "cab.weight_tools"
return {
  about = "Write a weight file as safetensors, its names in another layout.",
  examples = { { "cab convert deit_tiny.pth deit_tiny.safetensors --to hf", "layouts of timm, Hugging Face, Vim, Mamba, GPT-2, Phi" } },
  arguments = { { "input", tools.formats .. ".", of = "file" }, { "output", "The safetensors file to write.", of = "file" } },
  options = {
    { "--to", "Layout of the names; hf: that of Hugging Face for the model; same: names stay.", value = "LAYOUT", required = true, of = tools.layouts() },
    { "--from", "Layout of the input. Default: told by its names.", value = "LAYOUT", of = tools.layouts() },
    tools.key,
    { "--dtype", "f32, f64 or bf16: of all numbers that are not integers.", value = "DTYPE", of = { "f32", "f64", "bf16" } },
    { "--force", "Replace OUTPUT if it exists." },
  },
  common = { "quiet" },
  notes = ("layouts:\n%s\nHalf and quarter floats become f32, integers i32, bool u8.\n%s"):format(tools.layout_lines(), tools.codes),
  run = tools.convert,
}
