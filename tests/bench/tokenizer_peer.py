"""python3 tests/bench/tokenizer_peer.py FILE: seconds of processor time that tokenizers and tiktoken take for GPT-2's ids of a text on one thread, as
"NAME SECONDS IDS XXH64". The hash is of the ids as text, for tests/bench/tokenizer.lua; xxhash or else 0."""
import gzip
import os
import sys
import time

ROOT = os.path.dirname(os.path.abspath(__file__)) + "/../.."
text = open(sys.argv[1], encoding="utf8").read()
lines = gzip.open(ROOT + "/data/gpt2/vocab.bpe.gz", "rt", encoding="utf8").read().split("\n")[1:]
merges = [tuple(line.split(" ")) for line in lines if line]
plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
other = [b for b in range(256) if b not in plain]
alphabet = {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(other)}
tokens = list(alphabet) + [a + b for a, b in merges] + ["<|endoftext|>"]


def report(name, encode):
    least = 1e9
    for _ in range(3):
        begun = time.process_time()
        ids = encode()
        least = min(least, time.process_time() - begun)
    try:
        import xxhash
        digest = xxhash.xxh64(",".join(map(str, ids)).encode()).hexdigest()
    except ImportError:
        digest = "0"
    print(name, f"{least:.6f}", len(ids), digest, flush=True)


try:
    from tokenizers import Tokenizer, models, pre_tokenizers
    t = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    report("tokenizers", lambda: t.encode(text).ids)
except ImportError:
    print("no tokenizers")
try:
    import tiktoken
    ranks = {bytes(alphabet[c] for c in token): i for i, token in enumerate(tokens[:-1])}
    pattern = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
    e = tiktoken.Encoding("gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 50256})
    report("tiktoken", lambda: e.encode_ordinary(text))
except ImportError:
    print("no tiktoken")
