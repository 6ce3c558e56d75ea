"""Reference values of every op, in float64 PyTorch: outputs and gradients of sum(output * weight).

usage: python tests/reference/ops.py tests/fixtures/ops.safetensors        (needs torch, numpy, safetensors)
The file's metadata lists the cases; tests/ops_spec.lua replays each one through the op of the same name.
"""
import json
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

torch.manual_seed(20261019)
torch.set_default_dtype(torch.float64)
tensors, cases = {}, []


def rnd(*shape, scale=1.0):
    return torch.randn(*shape) * scale


def case(op, inputs, reference, label="", fixed=(), **options):
    """inputs: name -> tensor (the op's argument names); fixed: names that get no gradient."""
    key = f"{len(cases):03d}.{op}"
    leaves = {n: t.detach().clone().requires_grad_(t.is_floating_point() and n not in fixed) for n, t in inputs.items()}
    outputs = reference(**leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    weights = [torch.randn(o.shape) for o in outputs]
    sum((o * w).sum() for o, w in zip(outputs, weights)).backward()
    for n, t in leaves.items():
        tensors[f"{key}.in.{n}"] = t.detach().contiguous()
        if t.requires_grad:
            tensors[f"{key}.grad.{n}"] = t.grad.contiguous()
    for i, (o, w) in enumerate(zip(outputs, weights)):
        tensors[f"{key}.out.{i + 1}"] = o.detach().contiguous()
        tensors[f"{key}.weight.{i + 1}"] = w.contiguous()
    cases.append(dict(key=key, op=op, label=label, options=options, inputs=sorted(inputs), outputs=len(outputs),
                      grads=sorted(n for n, t in leaves.items() if t.requires_grad)))


def scan(u, dt, A, B, C, D=None, z=None, bias=None, weight=None, softplus=True, reverse=False):
    flip = (lambda t: t.flip(1)) if reverse else (lambda t: t)
    dt = F.linear(dt, weight) if weight is not None else dt
    d = dt + bias if bias is not None else dt
    d = F.softplus(d) if softplus else d
    us, ds, Bs, Cs = map(flip, (u, d, B, C))
    h, ys = torch.zeros(u.shape[0], u.shape[2], A.shape[1]), []
    for t in range(u.shape[1]):
        h = torch.exp(ds[:, t, :, None] * A) * h + (ds[:, t] * us[:, t])[..., None] * Bs[:, t, None, :]
        ys.append((h * Cs[:, t, None, :]).sum(-1))
    y = flip(torch.stack(ys, 1))
    y = y + D * u if D is not None else y
    return y * F.silu(z) if z is not None else y


def matrix(dt, A, B, C, bias=None, softplus=True, reverse=False):
    """Implicit attention through the scan itself: column s is the response to a unit input at s, mean over channels."""
    columns = []
    for s in range(dt.shape[1]):
        u = torch.zeros_like(dt)
        u[:, s] = 1
        columns.append(scan(u, dt, A, B, C, bias=bias, softplus=softplus, reverse=reverse).mean(-1))
    return torch.stack(columns, -1)


def conv(x, w, b=None, silu=True, reverse=False):
    x = x.flip(1) if reverse else x
    y = F.conv1d(F.pad(x.transpose(1, 2), (w.shape[-1] - 1, 0)), w, b, groups=w.shape[0]).transpose(1, 2)
    y = F.silu(y) if silu else y
    return y.flip(1) if reverse else y


def attention(q, k, v, heads=1, causal=False, map=False):
    b, l, d = q.shape
    q, k, v = (t.view(b, l, heads, d // heads).transpose(1, 2) for t in (q, k, v))
    s = q @ k.transpose(-1, -2) * (d // heads) ** -0.5
    if causal:
        s = s.masked_fill(torch.ones(l, l, dtype=torch.bool).triu(1), float("-inf"))
    p = s.softmax(-1)
    y = (p @ v).transpose(1, 2).reshape(b, l, d)
    return (y, p) if map else y


for op, f in dict(neg=torch.neg, exp=torch.exp, square=torch.square, abs=torch.abs, relu=torch.relu, sigmoid=torch.sigmoid,
                  tanh=torch.tanh, softplus=F.softplus, silu=F.silu).items():
    case(op, dict(x=rnd(3, 5, scale=3)), lambda x, f=f: f(x))
for op, f in dict(log=torch.log, sqrt=torch.sqrt, reciprocal=torch.reciprocal).items():
    case(op, dict(x=rnd(4, 3).abs() + 0.3), lambda x, f=f: f(x))
case("gelu", dict(x=rnd(5, 7, scale=2)), lambda x: F.gelu(x), approx="none")
case("gelu", dict(x=rnd(5, 7, scale=2)), lambda x: F.gelu(x, approximate="tanh"), approx="tanh")
case("affine", dict(x=rnd(7)), lambda x: 2.5 * x - 1, scale=2.5, shift=-1)
for shapes in [((2, 3), (2, 3)), ((2, 1, 4), (3, 1)), ((5,), (4, 5)), ((2, 3, 4), (1,))]:
    for op, f in dict(add=torch.add, sub=torch.sub, mul=torch.mul).items():
        case(op, dict(a=rnd(*shapes[0]), b=rnd(*shapes[1])), lambda a, b, f=f: f(a, b), str(shapes))
    case("div", dict(a=rnd(*shapes[0]), b=rnd(*shapes[1]).abs() + 0.5), lambda a, b: a / b, str(shapes))
case("matmul", dict(a=rnd(3, 5), b=rnd(5, 2)), lambda a, b: a @ b)
case("matmul", dict(a=rnd(2, 4, 3, 5), b=rnd(2, 4, 5, 6)), lambda a, b: a @ b)
for op, f in dict(sum=torch.sum, mean=torch.mean).items():
    case(op, dict(x=rnd(3, 4, 5)), lambda x, f=f: f(x))
    for dim in (1, 2, 3):
        case(op, dict(x=rnd(3, 4, 5)), lambda x, f=f, dim=dim: f(x, dim - 1), dim=dim)
for dim in (-1, 2, 1):
    case("softmax", dict(x=rnd(3, 4, 5, scale=4)), lambda x, dim=dim: x.softmax(dim if dim < 0 else dim - 1), dim=dim)

case("linear", dict(x=rnd(2, 3, 5), w=rnd(4, 5), b=rnd(4)), lambda x, w, b: F.linear(x, w, b))
case("linear", dict(x=rnd(7, 5), w=rnd(4, 5)), lambda x, w: F.linear(x, w))
case("layer_norm", dict(x=rnd(2, 3, 9, scale=3), w=rnd(9), b=rnd(9)),
     lambda x, w, b: (F.layer_norm(x, (9,), w, b, 1e-6), x + 0), eps=1e-6)
case("layer_norm", dict(x=rnd(3, 8), w=rnd(8), b=rnd(8), residual=rnd(3, 8)),
     lambda x, w, b, residual: (F.layer_norm(x + residual, (8,), w, b, 1e-5), x + residual), eps=1e-5)
case("rms_norm", dict(x=rnd(4, 3, 17), w=rnd(17)), lambda x, w: (F.rms_norm(x, (17,), w, 1e-5), x + 0), eps=1e-5)
case("rms_norm", dict(x=rnd(5, 16), w=rnd(16), residual=rnd(5, 16)),
     lambda x, w, residual: (F.rms_norm(x + residual, (16,), w, 1e-5), x + residual), eps=1e-5)
for causal in (False, True):
    qkv = dict(q=rnd(2, 7, 12), k=rnd(2, 7, 12), v=rnd(2, 7, 12))
    case("attention", qkv, lambda q, k, v, c=causal: attention(q, k, v, 3, c), heads=3, causal=causal)
    case("attention", qkv, lambda q, k, v, c=causal: attention(q, k, v, 3, c, True), heads=3, causal=causal, map=True)
case("attention", dict(q=rnd(1, 70, 16), k=rnd(1, 70, 16), v=rnd(1, 70, 16)), lambda q, k, v: attention(q, k, v, 1), heads=1)
case("patch_embed", dict(x=rnd(2, 3, 8, 8), w=rnd(5, 3, 4, 4), b=rnd(5)),
     lambda x, w, b: F.conv2d(x, w, b, stride=4).flatten(2).transpose(1, 2))
case("patch_embed", dict(x=rnd(2, 1, 9, 9), w=rnd(5, 1, 4, 4), b=rnd(5)),
     lambda x, w, b: F.conv2d(x, w, b, stride=2).flatten(2).transpose(1, 2), stride=2)
for silu in (True, False):
    for reverse in (True, False):
        case("conv1d", dict(x=rnd(2, 6, 5), w=rnd(5, 1, 4), b=rnd(5)),
             lambda x, w, b, s=silu, r=reverse: conv(x, w, b, s, r), silu=silu, reverse=reverse)
case("conv1d", dict(x=rnd(1, 2, 3), w=rnd(3, 1, 4)), conv, "shorter than the kernel")
case("embedding", dict(ids=torch.tensor([[3, 0, 3], [1, 6, 2]], dtype=torch.int32), w=rnd(7, 4)), lambda ids, w: F.embedding(ids.long(), w))

for B, L, E, N in [(2, 5, 3, 4), (1, 17, 5, 8), (2, 37, 18, 16), (1, 1, 1, 1), (1, 33, 2, 5)]:
    for reverse in (False, True):
        full = dict(u=rnd(B, L, E), dt=rnd(B, L, E), A=-rnd(E, N).abs() - 0.1, B=rnd(B, L, N), C=rnd(B, L, N))
        case("selective_scan", full, lambda r=reverse, **a: scan(reverse=r, **a), f"{B},{L},{E},{N}", reverse=reverse)
        full = dict(full, D=rnd(E), z=rnd(B, L, E), bias=rnd(E))
        case("selective_scan", full, lambda r=reverse, **a: scan(reverse=r, **a), f"{B},{L},{E},{N} all", reverse=reverse)
case("selective_scan", dict(u=rnd(2, 9, 4), dt=rnd(2, 9, 4).abs(), A=-rnd(4, 3).abs(), B=rnd(2, 9, 3), C=rnd(2, 9, 3)),
     lambda **a: scan(softplus=False, **a), "no softplus", softplus=False)
for reverse in (False, True):
    args = dict(dt=rnd(2, 6, 3), A=-rnd(3, 4).abs(), B=rnd(2, 6, 4), C=rnd(2, 6, 4), bias=rnd(3))
    with torch.no_grad():
        key = f"{len(cases):03d}.scan_matrix"
        for n, t in args.items():
            tensors[f"{key}.in.{n}"] = t
        tensors[f"{key}.out.1"] = matrix(reverse=reverse, **args)
        cases.append(dict(key=key, op="scan_matrix", label="", options=dict(reverse=reverse), inputs=sorted(args), outputs=1, grads=[]))
case("gate", dict(a=rnd(2, 3, 7), z=rnd(2, 3, 7), b=rnd(2, 3, 7)), lambda a, z, b: 0.5 * (a + b) * F.silu(z), scale=0.5)
case("gate", dict(a=rnd(4, 5), z=rnd(4, 5)), lambda a, z: a * F.silu(z))

for name, axis in dict(map_queries=2, map_keys=1).items():
    x = rnd(2, 5, 6)
    for kind, f in dict(none=lambda x: x * 1, softmax=lambda x, a=axis: x.softmax(a), relu=torch.relu, exp=torch.exp).items():
        case(name, dict(x=x), lambda x, f=f: f(x), kind, map=kind)
    case(name, dict(x=x, mean=rnd(6), deviation=rnd(6).abs() + 0.5), lambda x, mean, deviation: (x - mean) / deviation, "standard",
         fixed=("mean", "deviation"), map="standard")

labels = torch.tensor([2, 0, -1, 4, 1], dtype=torch.int32)
for smoothing in (0.0, 0.1):
    case("cross_entropy", dict(x=rnd(5, 6, scale=3), labels=labels), lambda x, labels, s=smoothing: F.cross_entropy(
        x, labels.long(), ignore_index=-1, label_smoothing=s), smoothing=smoothing)
case("cross_entropy", dict(x=rnd(5, 6, scale=3), target=rnd(5, 6).softmax(-1)), lambda x, target: F.cross_entropy(x, target), fixed=("target",))
for temperature in (1.0, 2.5):
    case("kl", dict(student=rnd(5, 7, scale=3), teacher=rnd(5, 7, scale=3)), lambda student, teacher, T=temperature: T * T * F.kl_div(
        (student / T).log_softmax(-1), (teacher / T).log_softmax(-1), reduction="batchmean", log_target=True), temperature=temperature)
case("mse", dict(a=rnd(3, 4, 5), b=rnd(3, 4, 5)), lambda a, b: F.mse_loss(a, b))
case("cosine", dict(a=rnd(4, 5), b=rnd(4, 5)), lambda a, b: (1 - F.cosine_similarity(a, b, -1)).mean())
case("frobenius", dict(a=rnd(3, 4, 5), b=rnd(3, 4, 5)), lambda a, b: (a - b).flatten(1).norm(dim=1).mean())

# Optimisers: five AdamW steps with a fixed gradient sequence, and an EMA of the weights.
w = torch.nn.Parameter(rnd(3, 4))
tensors["adamw.start"] = w.detach().clone()
optimiser = torch.optim.AdamW([w], lr=0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05)
average, grads = w.detach().clone(), []
for _ in range(5):
    grads.append(rnd(3, 4))
    w.grad = grads[-1].clone()
    optimiser.step()
    average = 0.9 * average + 0.1 * w.detach()
tensors["adamw.grads"], tensors["adamw.end"], tensors["adamw.average"] = torch.stack(grads), w.detach().clone(), average

# After all others, so that their random numbers stay theirs. Rounded to the dtype and taken back to f64; so is the gradient.
for to, dtype in dict(f32=torch.float32, f64=torch.float64, bf16=torch.bfloat16).items():
    case("cast", dict(x=rnd(3, 4, 5)), lambda x, d=dtype: x.to(d).double().clone(), to, to=to)

for B, L, E, N in [(2, 37, 18, 16), (1, 5, 3, 4), (2, 33, 2, 17)]:
    args = {}
    for back in ("", "_b"):
        args |= {n + back: t for n, t in dict(u=rnd(B, L, E), dt=rnd(B, L, E), A=-rnd(E, N).abs() - 0.1, B=rnd(B, L, N), C=rnd(B, L, N),
                                              D=rnd(E), bias=rnd(E)).items()}
    case("scan_pair", args, lambda **a: (scan(**{n: t for n, t in a.items() if not n.endswith("_b")}),
                                         scan(reverse=True, **{n[:-2]: t for n, t in a.items() if n.endswith("_b")})), f"{B},{L},{E},{N}")

for rows, width, k in ((3, 7, 3), (5, 40, 40), (2, 1, 1)):
    x = rnd(rows, width)
    key, y = f"{len(cases):03d}.largest", x.topk(k).values
    tensors |= {f"{key}.in.x": x, f"{key}.out.1": y}  # columns: tests/strategies_spec.lua
    cases.append(dict(key=key, op="largest", label=f"{rows},{width},{k}", options=dict(k=k), inputs=["x"], outputs=1, grads=[]))

# The step from fewer columns, through a weight.
for B, L, E, N, R in [(1, 37, 18, 16, 12), (1, 5, 3, 4, 1), (2, 17, 5, 5, 7)]:
    args = {}
    for back in ("", "_b"):
        args |= {n + back: t for n, t in dict(u=rnd(B, L, E), dt=rnd(B, L, R), A=-rnd(E, N).abs() - 0.1, B=rnd(B, L, N), C=rnd(B, L, N),
                                              D=rnd(E), bias=rnd(E), weight=rnd(E, R, scale=R ** -0.5)).items()}
    both = (lambda **a: (scan(**{n: t for n, t in a.items() if not n.endswith("_b")}),
                         scan(reverse=True, **{n[:-2]: t for n, t in a.items() if n.endswith("_b")})))
    case("scan_pair", args, both, f"{B},{L},{E},{N} weight of {R}")
    one = {n: t for n, t in args.items() if not n.endswith("_b")}
    case("selective_scan", dict(one, z=rnd(B, L, E)), lambda r=R < 12, **a: scan(reverse=r, **a), f"{B},{L},{E},{N} weight of {R}",
         reverse=R < 12)
case("selective_scan", dict(u=rnd(1, 19, 4), dt=rnd(1, 19, 64), A=-rnd(4, 3).abs(), B=rnd(1, 19, 3), C=rnd(1, 19, 3),
                            weight=rnd(4, 64, scale=0.1)), lambda **a: scan(softplus=False, **a), "weight of 64, no softplus", softplus=False)

save_file({n: t.contiguous() for n, t in tensors.items()}, sys.argv[1], metadata=dict(cases=json.dumps(cases)))
print(len(cases), "cases,", len(tensors), "tensors")
