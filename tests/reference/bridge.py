"""Reference values of op.bridge, in float64 PyTorch: outputs and gradients of sum(output * weight).

usage: python tests/reference/bridge.py tests/fixtures/bridge.safetensors        (needs torch, numpy, safetensors)
The file is laid out as that of ops.py; tests/fixture.lua reads both.
"""
import json
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

torch.manual_seed(20251019)
torch.set_default_dtype(torch.float64)
tensors, cases = {}, []
MAPS = dict(none=lambda x, mean, deviation: x, relu=lambda x, mean, deviation: x.relu(), exp=lambda x, mean, deviation: x.exp(),
            standard=lambda x, mean, deviation: (x - mean) / deviation)


def order(x, first, second):
    """[b,T,D] with the teacher's class token in front -> the student's order; its class tokens at 1-based places, 0: none."""
    length, at = x.shape[1] - 1 + (first > 0) + (second > 0), {first - 1, second - 1}
    rows, patch = [], 1
    for token in range(length):
        rows.append(0 if token in at else patch)
        patch += token not in at
    return x[:, rows]


def bridge(taps, map, first, second):
    """taps: x, w1, b1, w2, b2, target, mean, deviation of each."""
    errors = []
    for x, w1, b1, w2, b2, target, mean, deviation in taps:
        p = F.linear(F.silu(F.linear(x, w1, b1)), w2, b2)
        errors.append(F.mse_loss(p, order(MAPS[map](target, mean, deviation), first, second)))
    return sum(errors), torch.stack(errors)


def case(label, b, length, n, h, d, map="none", first=1, second=0, taps=2):
    key = f"{len(cases):03d}.bridge"
    inputs, parts = {}, []
    for name, onto in (("B", "k"), ("C", "q"))[:taps]:
        grown = {name: torch.randn(b, length, n), f"{name}_w1": torch.randn(h, n) * n ** -0.5, f"{name}_b1": torch.randn(h),
                 f"{name}_w2": torch.randn(d, h) * h ** -0.5, f"{name}_b2": torch.randn(d)}
        fixed = {onto: torch.randn(b, length + 1 - (first > 0) - (second > 0), d)}
        if map == "standard":
            fixed |= {f"{onto}_mean": torch.randn(d), f"{onto}_deviation": torch.rand(d) + 0.5}
        for t in grown.values():
            t.requires_grad_()
        inputs |= grown | fixed
        values = [*grown.values(), *fixed.values()]
        parts.append(values + [None] * (8 - len(values)))
    outputs = bridge(parts, map, first, second)
    weights = [torch.randn(o.shape) for o in outputs]
    sum((o * w).sum() for o, w in zip(outputs, weights)).backward()
    for name, t in inputs.items():
        tensors[f"{key}.in.{name}"] = t.detach()
        if t.requires_grad:
            tensors[f"{key}.grad.{name}"] = t.grad
    for i, (o, w) in enumerate(zip(outputs, weights), 1):
        tensors[f"{key}.out.{i}"], tensors[f"{key}.weight.{i}"] = o.detach(), w
    cases.append(dict(key=key, op="bridge", label=label, options=dict(map=map, first=first, second=second), inputs=sorted(inputs),
                      outputs=2, grads=sorted(n for n, t in inputs.items() if t.requires_grad)))


for kind in MAPS:
    case(kind, 2, 5, 4, 6, 7, map=kind, first=3)
case("one tap", 1, 3, 2, 5, 3, taps=1)
case("two class tokens", 2, 6, 3, 4, 5, map="standard", first=1, second=6)
case("no class token", 1, 4, 2, 3, 5, first=0)
case("several blocks of rows", 9, 65, 5, 19, 18, map="standard", first=33)
case("one of everything", 1, 1, 1, 1, 1)
save_file({n: t.contiguous() for n, t in tensors.items()}, sys.argv[1], metadata=dict(cases=json.dumps(cases)))
print(len(cases), "cases,", len(tensors), "tensors")
