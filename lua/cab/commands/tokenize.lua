return {
  about = "Make a token file of text and JSONL files, or look at one.",
  examples = {
    { "cab tokenize books.jsonl -o books.bin", "a token file for data.train" },
    { 'cab tokenize --tokenizer phi --text "Hello there"', "its ids" },
    { "cab tokenize books.bin --decode --count 50", "text again" },
  },
  arguments = { { "files", "Texts (.txt, .jsonl, either may be .gz) for --out; token files for --decode.", many = true, of = "file" } },
  options = {
    { "-o --out", "The token file to write.", value = "FILE", of = "file" },
    { "--tokenizer", "gpt2, phi, gpt2:N (its first N merges), a file or a model folder.", value = "T", default = "gpt2", of = { "gpt2", "phi" } },
    { "--field", "Of each JSONL line, the document.", value = "NAME", default = "text" },
    { "--raw", "Without a header: u16 ids, u32 where the vocabulary is larger than 65536." },
    { "--control", "<|endoftext|> and its like in the text become their ids; otherwise they are text." },
    { "--text", "Print the ids of this text.", value = "TEXT" },
    { "--decode", "Print the text of a token file." },
    { "--from", "First id to decode, from 0.", value = "N", kind = "integer", default = 0 },
    { "--count", "How many.", value = "N", kind = "integer", default = 256 },
  },
  common = { "quiet" },
  run = function(o)
    require "cab.tokenize".run(o)
    return 0
  end,
}
