"""Reference values of the ops of language models, in float64 PyTorch, as ops.py makes them for the others.

usage: python tests/reference/language.py tests/fixtures/language.safetensors        (needs torch, numpy, safetensors)
"""
import json
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

torch.manual_seed(20261127)
torch.set_default_dtype(torch.float64)
tensors, cases = {}, []


def rnd(*shape, scale=1.0):
    return torch.randn(*shape) * scale


def ids(*shape, low, high):
    return torch.randint(low, high, shape, dtype=torch.int32)


def case(op, inputs, reference, label="", **options):
    """inputs: name -> tensor (the op's argument names); the loss is the sum of outputs times random weights."""
    key = f"{op}.{len(cases):03d}"
    leaves = {n: t.detach().clone().requires_grad_(t.is_floating_point()) for n, t in inputs.items()}
    outputs = reference(**leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    weights = [torch.randn(o.shape) for o in outputs]
    sum((o * w).sum() for o, w in zip(outputs, weights)).backward()
    grads = sorted(n for n, t in leaves.items() if t.grad is not None)
    for n, t in leaves.items():
        tensors[f"{key}.in.{n}"] = t.detach().contiguous()
        if n in grads:
            tensors[f"{key}.grad.{n}"] = t.grad.contiguous()
    for i, (o, w) in enumerate(zip(outputs, weights)):
        tensors[f"{key}.out.{i + 1}"] = o.detach().contiguous()
        tensors[f"{key}.weight.{i + 1}"] = w.contiguous()
    cases.append(dict(key=key, op=op, label=label, options=options, inputs=sorted(inputs), outputs=len(outputs), grads=grads))


def ssd(x, a, B, C, dt=None, D=None, start=None, segment=None, groups=1, decay="softplus"):
    """One token after the other."""
    b, l, _ = x.shape
    h = a.shape[-1]
    p, n = x.shape[-1] // h, B.shape[-1] // groups
    X = x.view(b, l, h, p)
    Bh, Ch = (t.view(b, l, groups, n).repeat_interleave(h // groups, 2) for t in (B, C))
    log = -F.softplus(a) if decay == "softplus" else a
    state = start if start is not None else torch.zeros(b, h, p, n)
    ys = []
    for t in range(l):
        keep = log[:, t].exp()[..., None, None]
        if segment is not None and t > 0:
            keep = keep * (segment[:, t] == segment[:, t - 1]).double()[:, None, None, None]
        step = X[:, t] * (dt[:, t, :, None] if dt is not None else 1)
        state = keep * state + step[..., None] * Bh[:, t, :, None, :]
        ys.append((state * Ch[:, t, :, None, :]).sum(-1))
    y = torch.stack(ys, 1)
    if D is not None:
        y = y + D[:, None] * X
    return y.reshape(b, l, h * p), state


def ssd_inputs(b, l, h, p, g, n, everything):
    args = dict(x=rnd(b, l, h * p), a=rnd(b, l, h), B=rnd(b, l, g * n), C=rnd(b, l, g * n))
    if everything:
        args |= dict(dt=rnd(b, l, h).abs(), D=rnd(h), start=rnd(b, h, p, n))
    return args


for b, l, h, p, g, n, chunk in [(2, 7, 4, 3, 4, 5, 1), (1, 37, 2, 4, 1, 3, 16), (2, 48, 2, 5, 2, 4, 48), (1, 1, 1, 1, 1, 1, 64),
                                (1, 150, 2, 2, 1, 3, 100)]:
    for everything in (False, True):
        args = ssd_inputs(b, l, h, p, g, n, everything)
        case("ssd", args, lambda g=g, **a: ssd(groups=g, **a), f"{b},{l},{h}x{p},{g}x{n}{' all' if everything else ''}", groups=g,
             chunk=chunk)
args = ssd_inputs(2, 33, 2, 3, 2, 4, True)
args["a"] = -args["a"].abs() * 0.3
case("ssd", args, lambda **a: ssd(groups=2, decay="log", **a), "log decay", groups=2, chunk=8, decay="log")
segment = torch.tensor([[0] * 5 + [1] * 11 + [2] * 5, [3] * 16 + [1] * 1 + [3] * 4], dtype=torch.int32)
for chunk in (1, 6, 16, 64):
    args = dict(ssd_inputs(2, 21, 2, 3, 1, 4, True), segment=segment)
    case("ssd", args, lambda **a: ssd(**a), f"segments, chunk {chunk}", chunk=chunk)

save_file({n: t.contiguous() for n, t in tensors.items()}, sys.argv[1], metadata=dict(cases=json.dumps(cases)))
print(len(cases), "cases,", len(tensors), "tensors")
