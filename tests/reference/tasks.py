"""Scores of a small fixed model on made-up documents of each task: tests/fixtures/tasks/NAME.jsonl and expected.json.

  python3 tests/reference/tasks.py          (needs tokenizers and numpy)

The model knows the last token only: logits(u)[v] = sum_k a[u,k] b[v,k], and 6 more for one v, over GPT-2's first 743 merges. Requests, acc,
acc_norm and standard errors are computed here from the task definitions of lm-evaluation-harness 0.4.13, in float64.
"""
import json
import math
import os
import re

import numpy as np

import tokenizer as reference
from tokenizers import Tokenizer, models, pre_tokenizers

FOLDER = os.path.dirname(os.path.abspath(__file__)) + "/../fixtures/tasks/"
MERGES, VOCAB, MOST = 743, 1000, 48


def small_gpt2():
    merges = reference.gpt2_merges()[:MERGES]
    tokens = reference.alphabet() + [a + b for a, b in merges]
    t = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return t


TOKENIZER = small_gpt2()
u = np.arange(VOCAB)
A = np.stack([(u * (7 + 2 * k) % 97) / 48 - 1 for k in range(4)], 1)
B = np.stack([(u * (11 + 3 * k) % 89) / 44 - 1 for k in range(4)], 1)
LOGITS = A @ B.T
LOGITS[u, (37 * u + 5) % VOCAB] += 6


def encode(text):
    return TOKENIZER.encode(text).ids


def score(context, continuation):
    spaces = len(context) - len(context.rstrip())
    if spaces:
        continuation, context = context[-spaces:] + continuation, context[:-spaces]
    if context:
        before, whole = encode(context), encode(context + continuation)
        follow = whole[len(before):]
    else:
        before, follow = [VOCAB - 1], encode(continuation)
    row = (before + follow)[-(MOST + 1):]
    total, greedy = 0.0, True
    for i in range(len(row) - len(follow), len(row)):
        x = LOGITS[row[i - 1]]
        total += x[row[i]] - x.max() - math.log(np.exp(x - x.max()).sum())
        greedy &= int(x.argmax()) == row[i]
    return total, greedy


def choose(contexts, choices, gold):
    lls = [score(context, " " + choice)[0] for context, choice in zip(contexts, choices)]
    return int(np.argmax(lls)) == gold, int(np.argmax([ll / len(c) for ll, c in zip(lls, choices)])) == gold


def preprocess(text):
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def piqa(d):
    if "query" in d:
        return choose([d["query"].rstrip() + "\nAnswer:"] * len(d["choices"]), d["choices"], d["gold"])
    return choose([f"Question: {d['goal']}\nAnswer:"] * 2, [d["sol1"], d["sol2"]], d["label"])


def arc(d):
    texts = d["choices"]["text"]
    return choose([f"Question: {d['question']}\nAnswer:"] * len(texts), texts, d["choices"]["label"].index(d["answerKey"]))


def hellaswag(d):
    endings = [preprocess(e) for e in d["endings"]]
    context = preprocess(d["activity_label"] + ": " + d["ctx_a"] + " " + d["ctx_b"].capitalize())
    return choose([context] * len(endings), endings, int(d["label"]))


def winogrande(d):
    at = d["sentence"].index("_")
    target = d["sentence"][at + 1:].strip()
    return choose([d["sentence"][:at] + d[o] for o in ("option1", "option2")], [target, target], int(d["answer"]) - 1)


def lambada(d):
    words = d["text"].split(" ")
    return score(" ".join(words[:-1]), " " + words[-1])


WORDS = "water the ice boil pan with salt slowly cut wood saw a sharp naïve café “quoted” then stir paint wall brush dog runs home night".split()


def documents(rng):
    def words(low, high):
        return " ".join(rng.choice(WORDS, rng.integers(low, high)))

    def choices(n):
        return [words(1, 9) for _ in range(n)]

    for i in range(40):
        a, b = choices(2)
        yield "piqa", {"goal": words(3, 12) + "?" * (i % 2) + " " * (i % 3), "sol1": a, "sol2": b, "label": int(rng.integers(2))}
        yield "piqa", {"query": "Question: " + words(3, 60) + "\n", "choices": choices(2), "gold": int(rng.integers(2))}
        labels = list("ABCDE" if i % 2 else "12345")[:int(rng.integers(3, 6))]
        yield "arc_easy", {"question": words(4, 14) + "?", "choices": {"text": choices(len(labels)), "label": labels}, "answerKey": str(rng.choice(labels))}
        yield "hellaswag", {"activity_label": words(1, 3), "ctx_a": words(4, 9) + ".", "ctx_b": ["", "Then SHE", "the Man"][i % 3],
                            "endings": [c + [" [step] x", " [title] y", "  z", ""][i % 4] for c in choices(4)], "label": str(rng.integers(4))}
        yield "winogrande", {"sentence": f"{words(2, 6)} _ {words(2, 6)}.", "option1": words(1, 2), "option2": words(1, 2), "answer": str(rng.integers(1, 3))}
        context = words(5, 60)
        guess = certain(rng) if i % 3 else None
        yield "lambada", {"text": f"{context} {guess[0]} {guess[1]}" if guess else f"{context} {words(1, 2)}"}


def certain(rng):
    """A word and the one that the model says after it."""
    names = {i: name for name, i in TOKENIZER.get_vocab().items()}
    while True:
        one = int(rng.integers(300, 999))
        two = int(LOGITS[one].argmax())
        if names[one][0] == "Ġ" and names[two][0] == "Ġ" and (names[one] + names[two]).replace("Ġ", "").isalpha():
            return names[one][1:], names[two][1:]


def stderr(hits):
    p, n = sum(hits) / len(hits), len(hits)
    return p, math.sqrt(p * (1 - p) / (n - 1))


def main():
    rng, docs, expected = np.random.default_rng(5), {}, {}
    for name, doc in documents(rng):
        docs.setdefault(name, []).append(doc)
    for name, some in docs.items():
        with open(FOLDER + name + ".jsonl", "w", encoding="utf8") as f:
            f.writelines(json.dumps(d, ensure_ascii=False) + "\n" for d in some)
        got = [dict(piqa=piqa, arc_easy=arc, hellaswag=hellaswag, winogrande=winogrande, lambada=lambada)[name](d) for d in some]
        row = expected[name] = {"task": name, "documents": len(some)}
        if name == "lambada":
            row["acc"], row["acc_stderr"] = stderr([greedy for _, greedy in got])
            row["perplexity"] = math.exp(-sum(ll for ll, _ in got) / len(got))
            continue
        row["acc"], row["acc_stderr"] = stderr([a for a, _ in got])
        if name != "winogrande":
            row["acc_norm"], row["acc_norm_stderr"] = stderr([n for _, n in got])
    json.dump(expected, open(FOLDER + "expected.json", "w"), indent=1)


main()
