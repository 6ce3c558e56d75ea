"""Texts and the ids that Hugging Face's tokenizers give them, for tests/tokenizer_spec.lua.

  python3 tests/reference/tokenizer.py                 writes tests/fixtures/tokenizer/{small.json, cases.jsonl}
  python3 tests/reference/tokenizer.py 50000 7 DIR     writes so many cases of seed 7 for each kind to DIR, with whole
                                                       tokenizer.json files, for tests/tokenizer_compare.lua

Kinds: gpt2 and phi (data/gpt2), strip (tokens that take white space, a prefix space), small (trained here, NFC, as GPT-NeoX).
Needs the package tokenizers; made with 0.22.
"""
import gzip
import json
import os
import random
import sys

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

ROOT = os.path.dirname(os.path.abspath(__file__)) + "/../.."
PIECES = ["'s", "'re", "'ve", "'ll", "'d", "'T", " '", "<|endoftext|>", "  ", "   ", "\t\t", "<m>", "[x]", "aa", "aaa", "ab a", " é", "é", "ガ"]


def alphabet():
    """GPT-2's 256 byte symbols in the order of their ids."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(c) for c in plain] + [chr(256 + i) for i in range(256 - len(plain))]


def gpt2_merges():
    lines = gzip.open(ROOT + "/data/gpt2/vocab.bpe.gz", "rt", encoding="utf8").read().split("\n")[1:]
    return [tuple(line.split(" ")) for line in lines if line]


def gpt2(prefix=False):
    merges = gpt2_merges()
    tokens = alphabet() + [a + b for a, b in merges] + ["<|endoftext|>"]
    t = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    t.decoder = decoders.ByteLevel()
    return t


def kinds():
    t = gpt2()
    t.add_special_tokens(["<|endoftext|>"])
    yield "gpt2", t
    t = gpt2()
    t.add_special_tokens(["<|endoftext|>"])
    added = json.load(open(ROOT + "/data/gpt2/phi_added_tokens.json"))
    t.add_tokens([AddedToken(text, normalized=True, special=False) for text, _ in sorted(added.items(), key=lambda item: item[1])])
    yield "phi", t
    t = small(None)
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    t.add_special_tokens([AddedToken("<|endoftext|>", lstrip=True), AddedToken("<m>", rstrip=True), AddedToken("[x]", lstrip=True, rstrip=True)])
    t.add_tokens(["aa", "aaa", "ab a", " é"])
    yield "strip", t
    t = small(normalizers.NFC())
    t.add_tokens([AddedToken(" " * n, normalized=True) for n in range(24, 1, -1)] + [AddedToken("é́x", normalized=True)])
    yield "small", t


def small(normalizer):
    t = Tokenizer(models.BPE())
    if normalizer:
        t.normalizer = normalizer
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<|endoftext|>", "<|padding|>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    lines = ["naïve café élève über größe “quoted” — dash 日本語 テキスト ガ", "The quick brown fox, who's there? we'll see 1234 567  and  more"]
    t.train_from_iterator(lines * 20 + [open(__file__, encoding="utf8").read()], trainer)
    return t


def text(rng):
    out = []
    for _ in range(rng.randint(0, 40)):
        r = rng.random()
        if r < .25:
            out.append(rng.choice(" abcdetsmrvl'"))
        elif r < .35:
            out.append(rng.choice(" \n\t\r\u00a0\u2003\u3000\u0085\x1c\x0b\u180e\u200b\ufeff"))
        elif r < .5:
            out.append(rng.choice(PIECES))
        else:
            low, high = rng.choice([(0x20, 0x7e), (0xa0, 0x24f), (0x300, 0x34e), (0x370, 0x33ff), (0xac00, 0xd7a3), (0x1100, 0x11ff), (1, 0x10ffff)])
            c = rng.randint(low, high)
            out.append(chr(c if not 0xd800 <= c < 0xe000 else 0x4e00))
    return "".join(out)


def main():
    count, seed, folder = (int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]) if len(sys.argv) > 1 else (150, 0, ROOT + "/tests/fixtures/tokenizer")
    rng = random.Random(seed)
    with open(folder + "/cases.jsonl", "w", encoding="utf8") as cases:
        for name, t in kinds():
            if len(sys.argv) > 1 or name in ("small", "strip"):
                t.save(f"{folder}/{name}.json", pretty=False)
            for _ in range(count):
                s = text(rng)
                cases.write(json.dumps({"kind": name, "text": s, "ids": t.encode(s).ids}) + "\n")


if __name__ == "__main__":
    main()
