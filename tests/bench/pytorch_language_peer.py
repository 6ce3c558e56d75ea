"""CPU peer: one CE + KL + bridge training step of a Phi-Mamba student under a GPT-2 teacher in plain PyTorch (own code).
usage: pytorch_language_peer.py chunk|loop D DEPTH HEADS STATE VOCAB TOKENS BATCH STEPS    prints ms a step and peak resident memory"""
import resource, sys, time
import torch, torch.nn as nn, torch.nn.functional as F

mode = sys.argv[1]
D, depth, H, N, V, L, batch, steps = map(int, sys.argv[2:10])
torch.manual_seed(0)
P, CHUNK = D // H, 64


def loop(x, la, B, C):  # x (b,l,H,P), la (b,l,H) log decay, B, C (b,l,H,N)
    h, ys = x.new_zeros(x.shape[0], H, P, N), []
    a = la.exp()
    for t in range(x.shape[1]):
        h = a[:, t, :, None, None] * h + x[:, t, :, :, None] * B[:, t, :, None, :]
        ys.append((h @ C[:, t, :, :, None])[..., 0])
    return torch.stack(ys, 1)


def chunked(x, la, B, C):  # the block decomposition of arXiv 2405.21060, heads outermost so that each product is one batched GEMM
    b, l = x.shape[:2]
    n = l // CHUNK
    x, B, C = (t.transpose(1, 2).reshape(b, H, n, CHUNK, -1) for t in (x, B, C))
    cum = la.transpose(1, 2).reshape(b, H, n, CHUNK).cumsum(-1)
    decay = (cum[..., :, None] - cum[..., None, :]).masked_fill(torch.ones(CHUNK, CHUNK, dtype=torch.bool).triu(1), -torch.inf).exp()
    y = ((C @ B.transpose(-1, -2)) * decay) @ x
    states = ((cum[..., -1:] - cum).exp()[..., None] * x).transpose(-1, -2) @ B
    total, h, entry = cum[..., -1].exp(), x.new_zeros(b, H, P, N), []
    for i in range(n):
        entry.append(h)
        h = total[:, :, i, None, None] * h + states[:, :, i]
    y = y + cum.exp()[..., None] * (C @ torch.stack(entry, 2).transpose(-1, -2))
    return y.reshape(b, H, l, P).transpose(1, 2)


class MLP(nn.Module):
    def __init__(s):
        super().__init__(); s.a, s.b = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)
    def forward(s, x): return s.b(F.gelu(s.a(x), approximate="tanh"))


class Mixer(nn.Module):
    def __init__(s):
        super().__init__(); E = D + 2 * H * N
        s.i, s.o, s.conv = nn.Linear(D, 2 * D + 2 * H * N + H, bias=False), nn.Linear(D, D, bias=False), nn.Conv1d(E, E, 4, padding=3, groups=E)
        s.zb, s.D = nn.Parameter(torch.zeros(D)), nn.Parameter(torch.ones(H))
    def forward(s, y):
        b, l, _ = y.shape; u, z, a = s.i(y).split([D + 2 * H * N, D, H], -1)
        x, B, C = s.conv(u.transpose(1, 2))[..., :l].transpose(1, 2).split([D, H * N, H * N], -1)
        xh = x.reshape(b, l, H, P); scan = loop if mode == "loop" else chunked
        out = scan(xh, -F.softplus(a), B.reshape(b, l, H, N), C.reshape(b, l, H, N)) + s.D[:, None] * xh
        return s.o(out.reshape(b, l, D) * F.silu(z + s.zb)), B, C


class Student(nn.Module):
    def __init__(s):
        super().__init__(); s.e, s.f, s.h = nn.Embedding(V, D), nn.LayerNorm(D), nn.Linear(D, V)
        s.n, s.m, s.p = (nn.ModuleList(c() for _ in range(depth)) for c in (lambda: nn.LayerNorm(D), Mixer, MLP))
    def forward(s, ids):
        x, taps = s.e(ids), []
        for n, m, p in zip(s.n, s.m, s.p):
            y = n(x); o, B, C = m(y); x = x + o + p(y); taps.append((B, C))
        return s.h(s.f(x)), taps


class Teacher(nn.Module):
    def __init__(s):
        super().__init__(); s.e, s.w, s.f = nn.Embedding(V, D), nn.Embedding(L, D), nn.LayerNorm(D)
        s.n1, s.n2, s.qkv, s.o, s.p = (nn.ModuleList(c() for _ in range(depth)) for c in (
            lambda: nn.LayerNorm(D), lambda: nn.LayerNorm(D), lambda: nn.Linear(D, 3 * D), lambda: nn.Linear(D, D), MLP))
    @torch.no_grad()
    def forward(s, ids):
        b, l = ids.shape; x, taps = s.e(ids) + s.w(torch.arange(l)), []
        for n1, n2, qkv, o, p in zip(s.n1, s.n2, s.qkv, s.o, s.p):
            q, k, v = qkv(n1(x)).split(D, -1); taps.append((q, k))
            a = F.scaled_dot_product_attention(*(t.view(b, l, H, P).transpose(1, 2) for t in (q, k, v)), is_causal=True)
            x = x + o(a.transpose(1, 2).reshape(b, l, D)); x = x + p(n2(x))
        return s.f(x) @ s.e.weight.T, taps


S, T = Student(), Teacher()
bridge = nn.ModuleList(nn.ModuleList(nn.Sequential(nn.Linear(H * N, 128), nn.SiLU(), nn.Linear(128, D)) for _ in range(2)) for _ in range(depth))
opt = torch.optim.AdamW(list(S.parameters()) + list(bridge.parameters()), 5e-4, weight_decay=.05, fused=True)
ids, times = torch.randint(0, V, (batch, L)), []
for _ in range(steps + 1):
    t0 = time.perf_counter(); tl, tt = T(ids); sl, st = S(ids)
    align = sum(F.mse_loss(br[0](B), k) + F.mse_loss(br[1](C), q) for br, (B, C), (q, k) in zip(bridge, st, tt)) / depth
    kl = F.kl_div(sl.log_softmax(-1).flatten(0, 1), tl.log_softmax(-1).flatten(0, 1), reduction="batchmean", log_target=True)
    loss = F.cross_entropy(sl[:, :-1].flatten(0, 1), ids[:, 1:].flatten()) + kl + align
    opt.zero_grad(); loss.backward(); opt.step(); times.append(time.perf_counter() - t0)
t = sorted(times[1:])[len(times[1:]) // 2]
print(f"{mode} torch {torch.__version__} threads {torch.get_num_threads()}: {t * 1e3:.1f} ms/step, {batch * L / t:.0f} tokens/s, "
      f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB, loss {loss.item():.3f}")
