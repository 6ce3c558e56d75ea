"""Every strategy's loss and gradients on the golden models, by float64 PyTorch autograd and nothing of this project.

usage: python tests/reference/strategies.py tests/fixtures/goldens tests/fixtures/strategies.safetensors tests/fixtures/bf16.safetensors
(needs torch, numpy, safetensors). The last file says what bf16 storage alone does to the golden gradients.
Own parameters of a strategy are 0.3 sin(0.7 i + sum of the bytes of the name), i the flat index from 0. Of each gradient g the file has
its norm and its product with cos(0.3 i + 1): NAME.grad [n,2] by the sorted names of NAME.names; NAME.loss. Cases: tests/strategies_spec.lua.
"""
import json
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

torch.set_default_dtype(torch.float64)
folder, target, noise = sys.argv[1:4]
V = {k: v.double() if v.is_floating_point() else v for k, v in load_file(f"{folder}/vision_tiny_params.safetensors").items()}
T = {k: v.double() if v.is_floating_point() else v for k, v in load_file(f"{folder}/lang_tiny_params.safetensors").items()}
out, meta = {}, {}


def drawn(name, *shape):
    return (0.3 * torch.sin(0.7 * torch.arange(torch.Size(shape).numel()) + sum(name.encode()))).view(shape)


class Own:
    """Parameters of a strategy, made when first asked for, in the layout of the product."""

    def __init__(self):
        self.p = {}

    def __call__(self, name, *shape):
        if name not in self.p:
            self.p[name] = drawn(name, *shape).requires_grad_()
        return self.p[name]


def record(case, loss, *groups):
    loss.backward()
    rows = {n: t for g in groups for n, t in g.items() if t.requires_grad}
    names = sorted(n for n in rows if rows[n].grad is not None and rows[n].grad.abs().max() > 0)
    out[case + ".loss"] = loss.detach().view(1)
    out[case + ".grad"] = torch.stack([torch.stack([rows[n].grad.norm(), (rows[n].grad.flatten()
                                      * torch.cos(0.3 * torch.arange(rows[n].numel()) + 1)).sum()]) for n in names])
    meta[case] = names
    for t in rows.values():
        t.grad = None


def rms(x, w):
    return x * (x * x).mean(-1, keepdim=True).add(1e-5).rsqrt() * w


def layer_norm(p, name, x, eps):
    return F.layer_norm(x, x.shape[-1:], p[name + ".weight"], p[name + ".bias"], eps)


def linear(p, name, x):
    return F.linear(x, p[name + ".weight"], p.get(name + ".bias"))


def heads_of(x, h):
    return x.view(*x.shape[:2], h, -1).transpose(1, 2)


def joined(x):
    return x.transpose(1, 2).flatten(2)


# ---- vision -----------------------------------------------------------------------------------------------------------------

def vit(p, images, pre, lent=None, heads=2, depth=2):
    b = images.shape[0]
    x = F.conv2d(images, p[pre + "patch_embed.proj.weight"], p[pre + "patch_embed.proj.bias"], stride=8).flatten(2).transpose(1, 2)
    x = torch.cat([p[pre + "cls_token"].expand(b, -1, -1), x], 1) + p[pre + "pos_embed"]
    taps = {n: [] for n in ("q", "k", "v", "attention", "input", "hidden")}
    for i in range(depth):
        n = f"{pre}blocks.{i}."
        taps["input"].append(x)
        q, k, v = linear(p, n + "attn.qkv", layer_norm(p, n + "norm1", x, 1e-6)).chunk(3, -1)
        if lent:
            q, k, v = (lent[c][i] if c in lent else own for c, own in zip("qkv", (q, k, v)))
        a = (heads_of(q, heads) @ heads_of(k, heads).transpose(-1, -2) * (q.shape[-1] // heads) ** -0.5).softmax(-1)
        if lent and "attention" in lent:
            a = lent["attention"][i]
        x = x + linear(p, n + "attn.proj", joined(a @ heads_of(v, heads)))
        x = x + linear(p, n + "mlp.fc2", F.gelu(linear(p, n + "mlp.fc1", layer_norm(p, n + "norm2", x, 1e-6))))
        for name, t in zip(taps, (q, k, v, a)):
            taps[name].append(t)
        taps["hidden"].append(x)
    return linear(p, pre + "head", layer_norm(p, pre + "norm", x, 1e-6)[:, 0]), taps


def conv(p, name, x):
    w = p[name + ".weight"]
    return F.conv1d(F.pad(x.transpose(1, 2), (w.shape[-1] - 1, 0)), w, p[name + ".bias"], groups=w.shape[0]).transpose(1, 2)


def vim_layer(p, i, x, pre="student."):
    """x [b,l,D] -> the stream after layer i; taps of both directions in natural order, mixing matrices [b,l,l]."""
    n, taps = f"{pre}layers.{i}.mixer.", {}
    xz = F.linear(rms(x, p[f"{pre}layers.{i}.norm.weight"]), p[n + "in_proj.weight"])
    u0, z = xz.chunk(2, -1)
    taps["z"], y, maps = z, 0, []
    for d in ("", "_b"):
        def turn(t, dims=(1,)):
            return t.flip(*dims) if d else t
        u = F.silu(conv(p, n + "conv1d" + d, turn(u0)))
        A = -p[n + ("A_b_log" if d else "A_log")].exp()
        low, B, C = F.linear(u, p[n + f"x_proj{d}.weight"]).split([2, A.shape[1], A.shape[1]], -1)
        dt = F.softplus(linear(p, n + "dt_proj" + d, low))
        h, ys = torch.zeros(*u.shape[::2], A.shape[1]), []
        for t in range(u.shape[1]):
            h = (dt[:, t, :, None] * A).exp() * h + (dt[:, t] * u[:, t])[..., None] * B[:, t, None]
            ys.append((h * C[:, t, None]).sum(-1) + p[n + "D" + d] * u[:, t])
        y = y + turn(torch.stack(ys, 1))
        S = dt.cumsum(1)                                     # [b,l,E]
        decay = ((S[:, :, None] - S[:, None]).clamp(min=0)[..., None] * A).exp()  # [b,t,s,E,N]
        m = torch.einsum("btn,btsen,bse,bsn->bts", C, decay, dt, B).tril() / u.shape[-1]
        maps.append(turn(m, (1, 2)))
        for name, t in dict(B=B, C=C, x=u).items():
            taps[name + d] = turn(t)
    x = x + F.linear(0.5 * y * F.silu(z), p[n + "out_proj.weight"])
    return x, dict(taps, hidden=x, mixing=0.5 * sum(maps)[:, None])


def vim(p, images, pre="student."):
    b = images.shape[0]
    x = F.conv2d(images, p[pre + "patch_embed.proj.weight"], p[pre + "patch_embed.proj.bias"], stride=8).flatten(2).transpose(1, 2)
    x = torch.cat([x[:, :8], p[pre + "cls_token"].expand(b, -1, -1), x[:, 8:]], 1) + p[pre + "pos_embed"]
    taps = []
    for i in range(4):
        x, t = vim_layer(p, i, x, pre)
        taps.append(t)
    return linear(p, pre + "head", rms(x, p[pre + "norm_f.weight"])[:, 8]), taps


def middle(t, *dims):
    order = [*range(1, 9), 0, *range(9, 17)]
    for d in dims or (1,):
        t = t.index_select(d, torch.tensor(order))
    return t


# ---- text -------------------------------------------------------------------------------------------------------------------

def gelu(x):
    return F.gelu(x, approximate="tanh")


def gpt2(p, ids, pre="teacher.", heads=4, depth=2):
    x = p[pre + "transformer.wte.weight"][ids] + p[pre + "transformer.wpe.weight"][: ids.shape[1]]
    mask = torch.full((ids.shape[1],) * 2, -torch.inf).triu(1)
    taps = {n: [] for n in ("q", "k", "v", "attention", "input", "hidden")}
    for i in range(depth):
        n = f"{pre}transformer.h.{i}."
        taps["input"].append(x)
        y = layer_norm(p, n + "ln_1", x, 1e-5) @ p[n + "attn.c_attn.weight"] + p[n + "attn.c_attn.bias"]
        q, k, v = y.chunk(3, -1)
        a = (heads_of(q, heads) @ heads_of(k, heads).transpose(-1, -2) * (q.shape[-1] // heads) ** -0.5 + mask).softmax(-1)
        x = x + joined(a @ heads_of(v, heads)) @ p[n + "attn.c_proj.weight"] + p[n + "attn.c_proj.bias"]
        y = gelu(layer_norm(p, n + "ln_2", x, 1e-5) @ p[n + "mlp.c_fc.weight"] + p[n + "mlp.c_fc.bias"])
        x = x + y @ p[n + "mlp.c_proj.weight"] + p[n + "mlp.c_proj.bias"]
        for name, t in zip(taps, (q, k, v, a)):
            taps[name].append(t)
        taps["hidden"].append(x)
    return layer_norm(p, pre + "transformer.ln_f", x, 1e-5) @ p[pre + "transformer.wte.weight"].T, taps


def phi_layer(p, i, x, pre="student.", H=4):
    n = f"{pre}backbone.layers.{i}."
    m, y = n + "mixer.", layer_norm(p, n + "input_layernorm", x, 1e-5)
    b, l, E = y.shape
    mixed, z, a = F.linear(y, p[m + "in_proj.weight"]).split([3 * E, E, H], -1)
    u, B, C = conv(p, m + "conv1d", mixed).chunk(3, -1)
    S = -F.softplus(a).cumsum(1).transpose(1, 2)             # [b,H,l]
    decay = (S[..., :, None] - S[..., None, :]).tril().exp().tril()
    M = heads_of(C, H) @ heads_of(B, H).transpose(-1, -2) * decay + torch.diag_embed(p[m + "D"][:, None].expand(H, l))
    out_ = F.linear(joined(M @ heads_of(u, H)) * F.silu(z + p[m + "z_bias"]), p[m + "out_proj.weight"])
    x = x + out_ + linear(p, n + "mlp.fc2", gelu(linear(p, n + "mlp.fc1", y)))
    return x, dict(B=B, C=C, x=u, hidden=x, mixing=M)


def phi_mamba(p, ids, pre="student."):
    x, taps = p[pre + "backbone.embedding.weight"][ids], []
    for i in range(2):
        x, t = phi_layer(p, i, x, pre)
        taps.append(t)
    return linear(p, pre + "lm_head", layer_norm(p, pre + "backbone.final_layernorm", x, 1e-5)), taps


def trained(p, pre="student."):
    return {n: (t.detach().clone().requires_grad_() if n.startswith(pre) and t.is_floating_point() else t) for n, t in p.items()}


# ---- parts of strategies ----------------------------------------------------------------------------------------------------

def standard(t):
    flat = t.flatten(0, 1)
    return (t - flat.mean(0)) / (flat.var(0, unbiased=False).sqrt() + 1e-6)


MAPS = {"none": lambda t, tap: t, "standard": lambda t, tap: standard(t), "elu": lambda t, tap: F.elu(t) + 1,
        "relu": lambda t, tap: t.relu(), "exp": lambda t, tap: t.exp(), "softmax_tokens": lambda t, tap: t.softmax(1),
        "softmax": lambda t, tap: t.softmax(1 if tap == "k" else 2)}
ACT = dict(silu=F.silu, relu=torch.relu, gelu=F.gelu, tanh=torch.tanh)


def mlp(own, name, x, d, hidden=16, depth=2, activation="silu"):
    for i in range(depth):
        o = d if i == depth - 1 else hidden
        x = F.linear(ACT[activation](x) if i else x, own(f"{name}.{2 * i}.weight", o, x.shape[-1]), own(f"{name}.{2 * i}.bias", o))
    return x


def head_mlp(own, name, x, d, heads, groups, hidden=16, depth=2, activation="silu"):
    y = x.view(*x.shape[:2], groups, -1).repeat_interleave(heads // groups, 2).permute(2, 0, 1, 3).flatten(1, 2)
    for i in range(depth):
        o = d // heads if i == depth - 1 else hidden
        y = (ACT[activation](y) if i else y) @ own(f"{name}.weight{i + 1}", heads, y.shape[-1], o) + own(f"{name}.bias{i + 1}", heads, 1, o)
    return y.view(heads, *x.shape[:2], -1).permute(1, 2, 0, 3).flatten(2)


def ridge(x, t, lam):
    X = torch.cat([x.flatten(0, 1), torch.ones(x[..., 0].numel(), 1)], 1).detach()
    n, I = X.shape[0], x.shape[-1]
    G = X.T @ X / n
    D = torch.eye(I + 1) * (lam * G.diagonal()[:I].mean() + 1e-12)
    D[I, I] = 1e-12
    W = torch.linalg.solve(G + D, X.T @ t.flatten(0, 1).detach() / n)
    return x @ W[:I] + W[I]


def bridge(own, taps, teacher, place, dims, onto=None, map="standard", control="none", kind="mlp", lam=1e-3, share=None, heads=None,
           groups=1, mix=None, directions=("", "_b"), pick=lambda i, L, Tn: i * Tn // L, prefix="aligner.proj_", detach=False, **o):
    total = 0
    for i, s in enumerate(taps):
        for tap, its in (onto or dict(B="k", C="q")).items():
            for d in directions if tap in ("B", "C", "x") else ("",):
                def one(t):
                    y = teacher[its][t].detach()
                    y = place(MAPS[map](y.roll(-1, 0) if control == "other_image" else y, its))
                    name = f"{prefix}{tap}{d}.{i}" if share is None else f"{prefix}{share}"
                    x = s[tap + d].detach() if detach else s[tap + d]
                    p = (ridge(x, y, lam) if kind == "ridge" else head_mlp(own, name, x, y.shape[-1], heads, groups, **o) if heads
                         else mlp(own, name, x, y.shape[-1], **o))
                    return F.mse_loss(p, y)
                n = len(teacher[its])
                total = total + (one(pick(i, len(taps), n)) if mix is None else (mix[i] * torch.stack([one(t) for t in range(n)])).sum())
    return total / len(taps)


def divergence(s, t, kind="forward", temperature=1.0, top=0):
    q, p = (s / temperature).log_softmax(-1), t / temperature
    if top:
        least = p.topk(top, -1).values[..., -1:]
        p = p.masked_fill(p < least, -torch.inf)
    p = p.log_softmax(-1)
    zero = torch.zeros(())
    if kind == "forward":
        d = torch.where(p.exp() > 0, p.exp() * (p - q), zero)
    elif kind == "reverse":
        d = q.exp() * (q - p)
    else:
        m = ((p.exp() + q.exp()) / 2).log()
        d = (p.exp() * (p - m) + q.exp() * (q - m)) / 2
    return temperature ** 2 * d.sum(-1).mean()


def frobenius(m, a):
    if m.shape[1] != a.shape[1]:
        m, a = m.mean(1, keepdim=True), a.mean(1, keepdim=True)
    return torch.linalg.matrix_norm(m - a).mean()


def map_distance(m, a, kind):
    if m.shape[1] != a.shape[1]:
        m, a = m.mean(1, keepdim=True), a.mean(1, keepdim=True)
    if kind == "cosine":
        return (1 - F.cosine_similarity(m, a, -1)).mean()
    if kind == "mse":
        return F.mse_loss(m, a)
    w = m.abs() / m.abs().sum(-1, keepdim=True)
    return -(a * w.log()).sum(-1).mean()


def features(own, taps, used, kind, distance, heads, F_, causal, prefix):
    total = 0
    for i in used:
        q, k, v = (heads_of(taps[c][i].detach(), heads) for c in "qkv")
        n = F_ // 2 if kind == "hedgehog" else F_
        fq, fk = (t @ own(f"{prefix}layer{i + 1}.{c}", heads, t.shape[-1], n) for c, t in (("q", q), ("k", k)))
        if kind == "hedgehog":
            fq, fk = (torch.cat([t.softmax(-1), (-t).softmax(-1)], -1) for t in (fq, fk))
        rows = fq @ fk.transpose(-1, -2)
        rows = rows.tril() if causal else rows
        a = taps["attention"][i].detach()
        if distance == "cosine":
            total = total + (1 - F.cosine_similarity(rows @ v, a @ v, -1)).mean()
        else:
            total = total - (a * (rows / rows.sum(-1, keepdim=True)).clamp(min=1e-300).log()).sum(-1).mean()
    return total / len(used)


# ---- cases: images ----------------------------------------------------------------------------------------------------------

images = V["input.images"]
labels = torch.tensor([1, 4, 7])
with torch.no_grad():
    v_logits, v_taps = vit(V, images, "teacher.")


def vision(case, loss, p=None):
    """loss(own, logits, taps, p)"""
    own, p = Own(), trained(V) if p is None else p
    record(case, loss(own, *vim(p, images), p), own.p, {n: t for n, t in p.items() if n.startswith("student.")})


def align(**o):
    return lambda own, _, taps, __: bridge(own, taps, v_taps, middle, 32, **o)


vision("vanilla", lambda own, y, *_: F.cross_entropy(y, labels, label_smoothing=0.1))
for name, o in dict(forward=dict(temperature=2.0, hard=0.5), reverse=dict(kind="reverse", temperature=1.5), jsd=dict(kind="jsd", temperature=2.0),
                    top=dict(top=3)).items():
    hard = o.pop("hard", 0)
    vision("soft." + name, lambda own, y, *_, o=o, hard=hard: divergence(y, v_logits, **o) + hard * F.cross_entropy(y, labels))
for name, o in {
    "standard": {}, "linear": dict(depth=1, map="none"), "deep": dict(depth=3, activation="relu", map="elu"), "tanh": dict(activation="tanh"),
    "heads": dict(heads=2, activation="gelu"), "shared": dict(share="B.0"), "exp": dict(map="exp"), "tokens": dict(map="softmax_tokens"),
    "hidden": dict(onto=dict(B="hidden", C="hidden")), "B": dict(onto=dict(B="k")), "xz": dict(onto=dict(x="v", z="q"), map="none"),
    "other": dict(control="other_image"), "ridge": dict(kind="ridge"), "last": dict(pick=lambda i, L, n: 0 if i < 2 else 1),
    "detach": dict(detach=True),
}.items():
    vision("bridge." + name, align(**o))
vision("bridge.learned_layers", lambda own, _, taps, p: bridge(own, taps, v_taps, middle, 32, mix=own("layer_map.weight", 4, 2).softmax(-1)))


def learned_map(own, _, taps, p):
    total = 0
    for i, s in enumerate(taps):
        for tap, c in dict(B="k", C="q").items():
            y = heads_of(v_taps[c][i // 2], 2) @ drawn(f"aligner.features.layer{i // 2 + 1}.{c}", 2, 16, 8)
            y = middle(joined(torch.cat([y.softmax(-1), (-y).softmax(-1)], -1)))
            for d in ("", "_b"):
                total = total + F.mse_loss(mlp(own, f"aligner.proj_{tap}{d}.{i}", s[tap + d], 32), y)
    return total / 4 + features(own, v_taps, (0, 1), "hedgehog", "cosine", 2, 16, False, "aligner.features.")


vision("bridge.learned_map", learned_map)


def hidden_state(own, taps, f, map):
    return sum(f(mlp(own, f"aligner.projector.{i}", s["hidden"], 32, depth=1), middle(MAPS[map](v_taps["hidden"][i // 2], "hidden")))
               for i, s in enumerate(taps)) / 4


vision("hidden_state.mse", lambda own, _, taps, p: hidden_state(own, taps, F.mse_loss, "standard"))
vision("hidden_state.cosine", lambda own, _, taps, p: hidden_state(own, taps, lambda a, b: (1 - F.cosine_similarity(a, b, -1)).mean(), "none"))
vision("mohawk_orientation.vim", lambda own, _, taps, p: sum(
    frobenius(vim_layer(p, i, middle(v_taps["input"][i // 2]))[1]["mixing"], middle(v_taps["attention"][i // 2], 2, 3)) for i in range(4)) / 4)
vision("mohawk_hidden.vim", lambda own, _, taps, p: sum(
    (vim_layer(p, i, middle(v_taps["input"][i // 2]))[0] - middle(v_taps["hidden"][i // 2])).norm(dim=-1).mean() for i in range(4)) / 4)
for kind in ("cosine", "cross_entropy", "mse"):
    vision("matrix_distill." + kind, lambda own, _, taps, p, kind=kind: sum(
        map_distance(s["mixing"], middle(v_taps["attention"][i // 2], 2, 3), kind) for i, s in enumerate(taps)) / 4)
for name, kind, distance in (("hedgehog", "hedgehog", "cosine"), ("weights", "hedgehog", "cross_entropy"), ("linear", "linear", "cosine")):
    vision("linear_attention." + name, lambda own, *_, k=kind, d=distance: features(own, v_taps, (0, 1), k, d, 2, 16, False, "aligner.features."))

reused = dict(V)
for i in range(4):
    n, s = f"teacher.blocks.{i // 2}.", f"student.layers.{i}."
    x = V[s + "mixer.in_proj.weight"].clone()
    v = V[n + "attn.qkv.weight"][64:]
    x[:32], x[32:64] = v, v
    reused[s + "mixer.in_proj.weight"] = x
    reused[s + "mixer.out_proj.weight"] = torch.cat([V[n + "attn.proj.weight"] / 2] * 2, 1)
    reused[s + "norm.weight"] = V[n + "norm1.weight"]
for n in ("patch_embed.proj.weight", "patch_embed.proj.bias", "cls_token", "head.weight", "head.bias"):
    reused["student." + n] = V["teacher." + n]
reused |= {"student.norm_f.weight": V["teacher.norm.weight"], "student.pos_embed": middle(V["teacher.pos_embed"])}
vision("weight_reuse.vim", lambda own, y, *_: divergence(y, v_logits), trained(reused))

vit_student = {n.replace("teacher.", "student."): drawn(n.replace("teacher.", "student."), *t.shape) for n, t in V.items() if n.startswith("teacher.")}


def vit_case(case, loss, lent=None):
    p = {n: t.clone().requires_grad_() for n, t in vit_student.items()}
    record(case, loss(*vit(p, images, "student.", lent)), p)


vit_case("attention_distill.vit", lambda y, taps: sum(map_distance(a, v_taps["attention"][i], "cross_entropy") for i, a in enumerate(taps["attention"])) / 2)
vit_case("attention_distill.leave", lambda y, taps: map_distance(taps["attention"][0], v_taps["attention"][0], "cross_entropy") / 2)
for what in ("attention", "q", "k", "v"):
    vit_case("attention_copy." + what, lambda y, taps: divergence(y, v_logits), {what: v_taps[what]})

# ---- cases: text ------------------------------------------------------------------------------------------------------------

ids = T["input.ids"].long()
with torch.no_grad():
    t_logits, t_taps = gpt2(T, ids)


def next_token(y):
    return F.cross_entropy(y[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def text(case, loss, p=None):
    own, p = Own(), trained(T) if p is None else p
    record(case, loss(own, *phi_mamba(p, ids), p), own.p, {n: t for n, t in p.items() if n.startswith("student.")})


def text_align(**o):
    return lambda own, _, taps, __: bridge(own, taps, t_taps, lambda y, *_: y, 64, directions=("",), **o)


text("text.soft.top", lambda own, y, *_: divergence(y, t_logits, top=5, temperature=2.0) + 0.5 * next_token(y))
text("text.bridge.standard", text_align())
text("text.bridge.heads", text_align(heads=4, groups=4, depth=1))
text("text.mohawk_orientation.each", lambda own, _, __, p: sum(frobenius(phi_layer(p, i, t_taps["input"][i])[1]["mixing"], t_taps["attention"][i])
                                                               for i in range(2)) / 2)
text("text.mohawk_orientation.mean", lambda own, _, __, p: sum(
    frobenius(phi_layer(p, i, t_taps["input"][i])[1]["mixing"].mean(1, keepdim=True), t_taps["attention"][i].mean(1, keepdim=True)) for i in range(2)) / 2)
text("text.mohawk_hidden", lambda own, _, __, p: sum((phi_layer(p, i, t_taps["input"][i])[0] - t_taps["hidden"][i]).norm(dim=-1).mean()
                                                     for i in range(2)) / 2)
text("text.linear_attention", lambda own, *_: features(own, t_taps, (0, 1), "linear", "cosine", 4, 16, True, "aligner.features."))


def reuse(parts, maps=False):
    p = dict(T)
    te, st = "teacher.transformer.", "student.backbone."
    for i in range(2):
        a, s = f"{te}h.{i}.", f"{st}layers.{i}."
        if "mixer" in parts:
            q, k, v = T[a + "attn.c_attn.weight"].T.chunk(3)
            bq, bk, bv = T[a + "attn.c_attn.bias"].chunk(3)
            w = T[s + "mixer.in_proj.weight"].clone()
            if maps:
                fq, fk = (torch.block_diag(*drawn(f"aligner.features.layer{i + 1}.{c}", 4, 16, 16)) for c in "qk")
                q, k, bq, bk = fq.T @ q, fk.T @ k, bq @ fq, bk @ fk
                w[192:256] = 0
                p[s + "mixer.z_bias"] = torch.full((64,), 1.278464542761074)
                c = torch.zeros(192, 1, 4)
                c[:, :, 3] = 1
                p |= {s + "mixer.conv1d.weight": c, s + "mixer.conv1d.bias": torch.cat([bv, bk, bq])}
            w[:192] = torch.cat([v, k, q])
            p[s + "mixer.in_proj.weight"], p[s + "mixer.out_proj.weight"] = w, T[a + "attn.c_proj.weight"].T
        p |= {f"{s}input_layernorm.{n}": T[f"{a}ln_1.{n}"] for n in ("weight", "bias")}
        for mine, its in (("fc1", "c_fc"), ("fc2", "c_proj")):
            p |= {f"{s}mlp.{mine}.weight": T[f"{a}mlp.{its}.weight"].T, f"{s}mlp.{mine}.bias": T[f"{a}mlp.{its}.bias"]}
    p |= {f"{st}final_layernorm.{n}": T[f"{te}ln_f.{n}"] for n in ("weight", "bias")}
    p |= {st + "embedding.weight": T[te + "wte.weight"], "student.lm_head.weight": T[te + "wte.weight"], "student.lm_head.bias": torch.zeros(211)}
    return trained(p)


text("text.weight_reuse", lambda own, y, *_: divergence(y, t_logits), reuse(("mixer",)))
text("text.mohawk_transfer", lambda own, y, *_: divergence(y, t_logits) + next_token(y), reuse(()))
text("text.linearised", lambda own, y, *_: divergence(y, t_logits), reuse(("mixer",), maps=True))

# ---- what bf16 alone does to the golden gradients ---------------------------------------------------------------------------

class Stored(torch.autograd.Function):
    """A value and its gradient kept in bf16, after a dither of half a unit in the last place."""

    @staticmethod
    def round(x):
        return (x * (1 + (torch.rand_like(x) - 0.5) * 2 ** -8)).bfloat16().double()

    @staticmethod
    def forward(_, x):
        return Stored.round(x)

    @staticmethod
    def backward(_, g):
        return Stored.round(g)


def error_of_bf16(seeds):
    """Of each golden gradient the relative L2 error, rms over seeds, when operands and results of linear layers (dt_proj, which the scan
    takes along, apart), norms and activations are stored in bf16, and all else is float64."""
    golden = {n[21:]: g for n, g in load_file(f"{folder}/vision_tiny_ref_fp64.safetensors").items() if n.startswith("grad_connected_total.")}
    kept, plain, store = (F.linear, F.silu, F.gelu, F.layer_norm, rms), F.linear, Stored.apply
    F.linear = lambda x, w, b=None: plain(x, w, b) if w.shape == (64, 2) else store(plain(store(x), store(w), b))
    F.silu, F.gelu, F.layer_norm, globals()["rms"] = [lambda *a, f=f: store(f(*a)) for f in kept[1:]]
    sums = dict.fromkeys(golden, 0)
    for seed in range(seeds):
        torch.manual_seed(seed)
        p = {n: t.clone().requires_grad_() if n in golden else t for n, t in V.items()}
        y, taps = vim(p, images)
        (divergence(y, v_logits) + 3 * bridge(lambda n, *_: p[n], taps, v_taps, middle, 32, map="softmax")).backward()
        for n, g in golden.items():
            sums[n] += ((p[n].grad - g).norm() / g.norm()) ** 2 / seeds
    F.linear, F.silu, F.gelu, F.layer_norm, globals()["rms"] = kept
    return {n: s.sqrt() for n, s in sums.items()}


error = error_of_bf16(16)
save_file({"error": torch.stack([error[n] for n in sorted(error)])}, noise, metadata=dict(names=json.dumps(sorted(error))))
save_file({n: t.detach().contiguous() for n, t in out.items()}, target, metadata=dict(names=json.dumps(meta)))
print(len(meta), "cases")
