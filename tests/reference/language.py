"""Reference values of the ops of language models, in float64 PyTorch, as ops.py makes them for the others.

usage: python tests/reference/language.py tests/fixtures/language.safetensors        (needs torch, numpy, safetensors)
"""
import json
import sys

import numpy as np
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


def case(op, inputs, reference, label="", frozen=(), **options):
    """inputs: name -> tensor (the op's argument names); frozen: names without a gradient. The loss is the sum of outputs times
    random weights."""
    key = f"{op}.{len(cases):03d}"
    leaves = {n: t.detach().clone().requires_grad_(t.is_floating_point() and n not in frozen) for n, t in inputs.items()}
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



def rotary(x, heads=1, width=0, base=10000.0, start=0):
    b, l, d = x.shape
    x = x.view(b, l, heads, d // heads)
    w = width or d // heads
    angle = (start + torch.arange(l))[:, None] * base ** (-torch.arange(0, w, 2) / w)
    c, s = (torch.cat([f(angle)] * 2, -1)[:, None] for f in (torch.cos, torch.sin))
    turned, rest = x[..., :w], x[..., w:]
    half = torch.cat([-turned[..., w // 2:], turned[..., :w // 2]], -1)
    return torch.cat([turned * c + half * s, rest], -1).reshape(b, l, d)


for options in [dict(heads=3, width=4), dict(heads=3, start=7, base=500.0), dict(heads=1, width=2)]:
    case("rotary", dict(x=rnd(2, 5, 18)), lambda x, o=options: rotary(x, **o), str(options), **options)


def head_loss(x, w, ids, b=None, segment=None, tx=None, tw=None, tb=None, top=None, top_logits=None, ce=1.0, kl=0.0,
              divergence="forward", temperature=1.0, smoothing=0.0, vocab=0, rows=256):
    n = vocab or w.shape[0]
    logits = F.linear(x, w, b)[..., :n]
    keep = torch.ones_like(ids, dtype=torch.bool) if segment is None else segment >= 0
    target = torch.full_like(ids, -1)
    target[:, :-1] = ids[:, 1:]
    if segment is not None:
        target[:, :-1][(segment[:, 1:] != segment[:, :-1]) | ~keep[:, :-1]] = -1
    total = 0
    if ce:
        total = ce * F.cross_entropy(logits.flatten(0, 1), target.long().flatten(), ignore_index=-1, label_smoothing=smoothing)
    if kl:
        q = (logits / temperature).log_softmax(-1)
        if top is not None:
            p = torch.full_like(q, -torch.inf).scatter(-1, top.long(), (top_logits / temperature).log_softmax(-1))
        else:
            p = (F.linear(tx, tw, tb)[..., :n] / temperature).log_softmax(-1)
        m = torch.logaddexp(p, q) - np.log(2)
        term = dict(forward=lambda: p.exp() * torch.where(p.isinf(), 0, p - q), cross=lambda: -p.exp() * q,
                    reverse=lambda: q.exp() * (q - p), jsd=lambda: (p.exp() * (p - m) + q.exp() * (q - m)) / 2)[divergence]()
        total = total + kl * temperature ** 2 * term.sum(-1)[keep].mean()
    return total


def head(**options):
    """Options are the op's; `with_` says which optional arguments are there."""
    with_ = options.pop("with_", "")
    args = dict(x=rnd(2, 9, 6), w=rnd(13, 6), ids=ids(2, 9, low=0, high=options.get("vocab") or 13))
    fixed = {}
    if "bias" in with_:
        args["b"] = rnd(13)
    if "segment" in with_:
        args["segment"] = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, -1], [2, 3, 3, 3, 3, 3, 4, 4, 4]], dtype=torch.int32)
    if "teacher" in with_:
        fixed = dict(tx=rnd(2, 9, 5), tw=rnd(15 if options.get("vocab") else 13, 5), tb=rnd(15 if options.get("vocab") else 13))
    if "top" in with_:
        chosen = torch.stack([torch.randperm(13)[:4] for _ in range(18)]).view(2, 9, 4).int()
        fixed = dict(top=chosen, top_logits=rnd(2, 9, 4))
    case("head_loss", args | fixed, lambda **a: head_loss(**a, **options), f"{with_} {options}", frozen=list(fixed), **options)


head()
head(with_="bias", rows=5, smoothing=0.1)
head(with_="bias segment", vocab=11, rows=7)
for divergence in ("forward", "cross", "reverse", "jsd"):
    head(with_="bias teacher", ce=0, kl=1, divergence=divergence)
    head(with_="bias teacher segment", ce=0.7, kl=1.5, divergence=divergence, temperature=2.5, vocab=12, rows=4)
for divergence in ("forward", "cross"):
    head(with_="bias top segment", ce=0.5, kl=2, divergence=divergence, temperature=1.5, rows=8)


def places(segment):
    b, l = segment.shape
    place = torch.zeros_like(segment)
    for t in range(1, l):
        place[:, t] = torch.where(segment[:, t] == segment[:, t - 1], place[:, t - 1] + 1, 0)
    return place


def attention(q, k, v, place, heads):
    b, l, d = q.shape
    q, k, v = (t.view(b, l, heads, d // heads).transpose(1, 2) for t in (q, k, v))
    query, key = torch.arange(l)[:, None], torch.arange(l)[None]
    seen = (key <= query) & (key >= query - place[..., None])
    s = (q @ k.transpose(-1, -2) * (d // heads) ** -0.5).masked_fill(~seen[:, None], float("-inf"))
    return (s.softmax(-1) @ v).transpose(1, 2).reshape(b, l, d)


def conv(x, w, place, b=None, silu=True):
    l, width = x.shape[1], w.shape[-1]
    y = 0 if b is None else b
    for back in range(width):
        earlier = F.pad(x, (0, 0, back, 0))[:, :l] * (place >= back)[..., None]
        y = y + w[:, 0, width - 1 - back] * earlier
    return F.silu(y) if silu else y


packed = torch.tensor([[0] * 5 + [1] * 41 + [2] * 1 + [0] * 23, [3] * 1 + [1] * 2 + [3] * 66 + [-1] * 1], dtype=torch.int32)
key = f"places.{len(cases):03d}"
tensors[f"{key}.in.segment"], tensors[f"{key}.out.1"] = packed, places(packed).double()
cases.append(dict(key=key, op="places", label="", options={}, inputs=["segment"], outputs=1, grads=[]))
place = places(packed)
for heads in (1, 2):
    case("attention", dict(q=rnd(2, 70, 8), k=rnd(2, 70, 8), v=rnd(2, 70, 8), place=place), lambda h=heads, **a: attention(heads=h, **a),
         "documents", heads=heads, causal=True)
for width in (4, 3):
    case("conv1d", dict(x=rnd(2, 70, 5), w=rnd(5, 1, width), b=rnd(5), place=place), conv, f"documents, width {width}")
    case("conv1d", dict(x=rnd(2, 70, 8), w=rnd(8, 1, width), place=place), lambda **a: conv(silu=False, **a), f"documents, width {width}, plain",
         silu=False)

packed = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, -1], [2, 3, 3, 3, 3, 3, 4, 4, 4]], dtype=torch.int32) # 12 targets
case("head_loss", dict(x=rnd(2, 9, 6), w=rnd(13, 6), ids=ids(2, 9, low=0, high=13), segment=packed, tx=rnd(2, 9, 5), tw=rnd(13, 5),
                       targets=torch.tensor([37.5], dtype=torch.float64)),
     lambda targets, **a: head_loss(**a, ce=12 / targets[0], kl=0.5), "part of a batch", frozen=["tx", "tw", "targets"], ce=1.0, kl=0.5)

save_file({n: t.contiguous() for n, t in tensors.items()}, sys.argv[1], metadata=dict(cases=json.dumps(cases)))
print(len(cases), "cases,", len(tensors), "tensors")
