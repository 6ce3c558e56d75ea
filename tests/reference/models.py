"""Small language models with random weights in float64 PyTorch: logits, taps, and every gradient of the next-token loss.

usage: python tests/reference/models.py tests/fixtures/models.safetensors        (needs torch, numpy, safetensors)
Parameter names are those of the published checkpoints. Names in the file: MODEL.ids, MODEL.param.*, MODEL.grad.*, MODEL.logits.
"""
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

torch.manual_seed(20261128)
torch.set_default_dtype(torch.float64)
out = {}


def gelu(x):
    return F.gelu(x, approximate="tanh")


def layer_norm(p, name, x):
    return F.layer_norm(x, x.shape[-1:], p[name + ".weight"], p[name + ".bias"], 1e-5)


def rms(x, w):
    return x * (x * x).mean(-1, keepdim=True).add(1e-5).rsqrt() * w


def linear(p, name, x):
    return F.linear(x, p[name + ".weight"], p.get(name + ".bias"))


def turned(x, width, base=10000.0):
    """x [b,l,H,P]: rotary position embedding of the first `width` elements of each head, halves rotated."""
    angle = torch.arange(x.shape[1])[:, None] * base ** (-torch.arange(0, width, 2) / width)
    c, s = torch.cat([angle.cos()] * 2, -1)[:, None], torch.cat([angle.sin()] * 2, -1)[:, None]
    head, rest = x[..., :width], x[..., width:]
    half = torch.cat([-head[..., width // 2:], head[..., :width // 2]], -1)
    return torch.cat([head * c + half * s, rest], -1)


def phi(p, ids, heads, width, depth):
    x = p["model.embed_tokens.weight"][ids]
    b, l, d = x.shape
    for i in range(depth):
        n = f"model.layers.{i}."
        y = layer_norm(p, n + "input_layernorm", x)
        q, k, v = (linear(p, n + f"self_attn.{c}_proj", y).view(b, l, heads, -1) for c in "qkv")
        q, k = turned(q, width), turned(k, width)
        out[f"phi.q.{i + 1}"], out[f"phi.k.{i + 1}"] = q.reshape(b, l, d), k.reshape(b, l, d)
        a = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), is_causal=True).transpose(1, 2).reshape(b, l, d)
        x = x + linear(p, n + "self_attn.dense", a) + linear(p, n + "mlp.fc2", gelu(linear(p, n + "mlp.fc1", y)))
    return linear(p, "lm_head", layer_norm(p, "model.final_layernorm", x))


def conv(p, name, x):
    w = p[name + ".weight"]
    y = F.conv1d(F.pad(x.transpose(1, 2), (w.shape[-1] - 1, 0)), w, p[name + ".bias"], groups=w.shape[0])
    return F.silu(y.transpose(1, 2))


def mamba(p, ids, depth, rank, state):
    x = p["backbone.embedding.weight"][ids]
    for i in range(depth):
        n = f"backbone.layers.{i}.mixer."
        u, z = linear(p, n + "in_proj", rms(x, p[f"backbone.layers.{i}.norm.weight"])).chunk(2, -1)
        u = conv(p, n + "conv1d", u)
        low, B, C = linear(p, n + "x_proj", u).split([rank, state, state], -1)
        dt, A = F.softplus(linear(p, n + "dt_proj", low)), -p[n + "A_log"].exp()
        h, ys = torch.zeros(u.shape[0], u.shape[2], state), []
        for t in range(u.shape[1]):
            h = (dt[:, t, :, None] * A).exp() * h + (dt[:, t] * u[:, t])[..., None] * B[:, t, None]
            ys.append((h * C[:, t, None]).sum(-1) + p[n + "D"] * u[:, t])
        x = x + linear(p, n + "out_proj", torch.stack(ys, 1) * F.silu(z))
    return F.linear(rms(x, p["backbone.norm_f.weight"]), p["backbone.embedding.weight"])


def mamba2(p, ids, depth, heads, groups, state):
    x = p["backbone.embedding.weight"][ids]
    b, l, _ = x.shape
    for i in range(depth):
        n = f"backbone.layers.{i}.mixer."
        E = p[n + "out_proj.weight"].shape[1]
        z, mixed, raw = linear(p, n + "in_proj", rms(x, p[f"backbone.layers.{i}.norm.weight"])).split(
            [E, E + 2 * groups * state, heads], -1)
        u, B, C = conv(p, n + "conv1d", mixed).split([E, groups * state, groups * state], -1)
        u = u.view(b, l, heads, -1)
        B, C = (t.view(b, l, groups, state).repeat_interleave(heads // groups, 2) for t in (B, C))
        dt = F.softplus(raw + p[n + "dt_bias"])
        h, ys = torch.zeros(b, heads, u.shape[-1], state), []
        for t in range(l):
            keep = (dt[:, t] * -p[n + "A_log"].exp()).exp()[..., None, None]
            h = keep * h + (dt[:, t, :, None] * u[:, t])[..., None] * B[:, t, :, None]
            ys.append((h * C[:, t, :, None]).sum(-1) + p[n + "D"][:, None] * u[:, t])
        y = torch.stack(ys, 1).reshape(b, l, E) * F.silu(z)
        y = rms(y.view(b, l, groups, -1), 1).reshape(b, l, E) * p[n + "norm.weight"]
        x = x + linear(p, n + "out_proj", y)
    return F.linear(rms(x, p["backbone.norm_f.weight"]), p["backbone.embedding.weight"])


def shapes_phi(vocab, D, depth):
    s = {"model.embed_tokens.weight": (vocab, D), "lm_head.weight": (vocab, D), "lm_head.bias": (vocab,)}
    norms = ["model.final_layernorm"] + [f"model.layers.{i}.input_layernorm" for i in range(depth)]
    for n in norms:
        s |= {n + ".weight": (D,), n + ".bias": (D,)}
    for i in range(depth):
        for name, (o, d) in {"self_attn.q_proj": (D, D), "self_attn.k_proj": (D, D), "self_attn.v_proj": (D, D),
                             "self_attn.dense": (D, D), "mlp.fc1": (4 * D, D), "mlp.fc2": (D, 4 * D)}.items():
            s |= {f"model.layers.{i}.{name}.weight": (o, d), f"model.layers.{i}.{name}.bias": (o,)}
    return s


def shapes_mamba(vocab, D, E, depth, mixer):
    s = {"backbone.embedding.weight": (vocab, D), "backbone.norm_f.weight": (D,)}
    for i in range(depth):
        s[f"backbone.layers.{i}.norm.weight"] = (D,)
        s |= {f"backbone.layers.{i}.mixer.{n}": shape for n, shape in mixer.items()}
        s[f"backbone.layers.{i}.mixer.out_proj.weight"] = (D, E)
    return s


def record(model, shapes, vocab, forward):
    params = {n: (torch.randn(s) * 0.3 + (1 if n.endswith("norm.weight") or n.endswith(".D") else 0)).requires_grad_()
              for n, s in shapes.items()}
    ids = torch.randint(0, vocab, (2, 11))
    logits = forward(params, ids)
    F.cross_entropy(logits[:, :-1, :vocab].flatten(0, 1), ids[:, 1:].flatten()).backward()
    out[f"{model}.ids"], out[f"{model}.logits"] = ids.int(), logits[..., :vocab]
    for n, t in params.items():
        out[f"{model}.param.{n}"], out[f"{model}.grad.{n}"] = t, t.grad


D, V = 16, 23
record("phi", shapes_phi(V, D, 2), V, lambda p, ids: phi(p, ids, 2, 4, 2))
E, R, N = 32, 1, 4
record("mamba", shapes_mamba(24, D, E, 2, {
    "in_proj.weight": (2 * E, D), "conv1d.weight": (E, 1, 4), "conv1d.bias": (E,), "x_proj.weight": (R + 2 * N, E),
    "dt_proj.weight": (E, R), "dt_proj.bias": (E,), "A_log": (E, N), "D": (E,)}), V, lambda p, ids: mamba(p, ids, 2, R, N))
H = 4
for G in (1, 2):
    record(f"mamba2.{G}", shapes_mamba(24, D, E, 2, {
        "in_proj.weight": (2 * E + 2 * G * N + H, D), "conv1d.weight": (E + 2 * G * N, 1, 4), "conv1d.bias": (E + 2 * G * N,),
        "dt_bias": (H,), "A_log": (H,), "D": (H,), "norm.weight": (E,)}), V, lambda p, ids, G=G: mamba2(p, ids, 2, H, G, N))

save_file({n: t.detach().contiguous() for n, t in out.items()}, sys.argv[1])
print(len(out), "tensors")
