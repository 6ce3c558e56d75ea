return {
  about = "Continue a prompt with the best weights of a run on text.",
  examples = { { 'cab generate runs/shakespeare-1/bridge --prompt "She was"', "" } },
  arguments = { { "run", "Run folder.", of = "run" } },
  options = {
    { "--prompt", "Text to go on from.", value = "TEXT", required = true },
    { "--tokens", "At most so many.", value = "N", kind = "integer", default = 200 },
    { "--temperature", "Of the logits; 0: always the likeliest token.", value = "T", kind = "number", default = 0.8 },
    { "--top-k", "Choose among the K likeliest, 0: among all.", value = "K", kind = "integer", default = 0 },
    { "--top-p", "Choose among the likeliest that have this share of the probability.", value = "P", kind = "number", default = 1 },
    { "--seed", "Of the choices.", value = "N", kind = "integer", default = 0 },
  },
  run = function(o) return require "cab.generate".main(o) end,
}
