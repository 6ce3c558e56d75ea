"""GPU peer: the kernels of a Vision Mamba step in PyTorch as a user without mamba-ssm would write them, at Vim-Tiny shapes (batch 64,
197 tokens). Each is captured as a CUDA graph over buffers that the cache cannot hold and replayed: only the GPU's time counts.
usage: pytorch_gpu_peer.py     prints "name<TAB>milliseconds" with the row names of tests/bench/kernels.lua
The scan is the recurrence as a Triton kernel: a program per image and block of channels, states in registers; its backward reads
the states that the forward kept in memory and adds dB and dC over channels by atomics. `pytorch_gpu_peer.py check` compares it
with a loop on a small shape."""
import statistics
import sys
import time

import torch
import torch.nn.functional as F

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

B, L, E, N, D, HEADS = 64, 197, 384, 16, 192, 3
CACHE, COUNT = 200e6, 20
DTYPES = dict(f32=torch.float32, bf16=torch.bfloat16)


def replayed(graph):
    """Median seconds of a replay."""
    def once(replays):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        for _ in range(replays):
            graph.replay()
        torch.cuda.synchronize()
        return (time.perf_counter() - begun) / replays

    once(2)
    replays = max(1, int(0.01 / once(1)) + 1)
    return statistics.median(once(replays) for _ in range(11))


def seconds(f, count=COUNT):
    """f(i) for i < count as one graph; what f returns stays alive until the graph is whole."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for i in range(2):
            f(i)
    torch.cuda.current_stream().wait_stream(side)
    graph, kept = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph):
        for i in range(count):
            kept.append(f(i))
    del kept
    return replayed(graph) / count


def report(name, f, make, count=COUNT):
    """make() -> list of leaves; f(*leaves) -> y. Times forward without a gradient, and backward as the rest of both."""
    sets = [make()]
    size = sum(t.numel() * t.element_size() for t in sets[0])
    while len(sets) < 2 or len(sets) * size < CACHE:
        sets.append(make())
    with torch.no_grad():
        seeds = [torch.randn_like(f(*s)) for s in sets]
        value = seconds(lambda i: f(*sets[i % len(sets)]), count)
    leaves = [[t.requires_grad_() for t in s] for s in sets]
    forward = seconds(lambda i: f(*leaves[i % len(sets)]), count)
    both = seconds(lambda i: torch.autograd.grad(f(*leaves[i % len(sets)]), leaves[i % len(sets)], seeds[i % len(sets)]), count)
    what, dtype = name
    print(f"{what} forward {dtype}\t{1e3 * value:.5f}", flush=True)
    print(f"{what} backward {dtype}\t{1e3 * (both - forward):.5f}", flush=True)


# ---- the scan -------------------------------------------------------------------------------------------

if triton:
    @triton.jit
    def softplus(x):
        return tl.where(x > 20, x, tl.log(1 + tl.exp(tl.minimum(x, 20.0))))

    @triton.jit
    def scan_forward(u, dt, A, Bm, C, D_, z, bias, y, h, length, E: tl.constexpr, N: tl.constexpr, KEEP: tl.constexpr, BLOCK: tl.constexpr):
        image = tl.program_id(0).to(tl.int64)
        e, n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, N)
        a = tl.load(A + e[:, None] * N + n[None, :])
        d_, shift = tl.load(D_ + e), tl.load(bias + e)
        state = tl.zeros((BLOCK, N), tl.float32)
        for t in range(length):
            row = image * length + t
            x = tl.load(u + row * E + e).to(tl.float32)
            d = softplus(tl.load(dt + row * E + e).to(tl.float32) + shift)
            b, c = tl.load(Bm + row * N + n).to(tl.float32), tl.load(C + row * N + n).to(tl.float32)
            gate = tl.load(z + row * E + e).to(tl.float32)
            state = tl.exp(d[:, None] * a) * state + (d * x)[:, None] * b[None, :]
            if KEEP:
                tl.store(h + (row * E + e[:, None]) * N + n[None, :], state)
            out = (tl.sum(state * c[None, :], 1) + d_ * x) * gate * tl.sigmoid(gate)
            tl.store(y + row * E + e, out.to(y.dtype.element_ty))

    @triton.jit
    def scan_backward(u, dt, A, Bm, C, D_, z, bias, h, gy, gu, gdt, gA, gB, gC, gD, gz, gbias, length, E: tl.constexpr, N: tl.constexpr,
                      BLOCK: tl.constexpr):
        image = tl.program_id(0).to(tl.int64)
        e, n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, N)
        a = tl.load(A + e[:, None] * N + n[None, :])
        d_, shift = tl.load(D_ + e), tl.load(bias + e)
        adjoint, sum_a = tl.zeros((BLOCK, N), tl.float32), tl.zeros((BLOCK, N), tl.float32)
        sum_d, sum_bias = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
        for k in range(length):
            t = length - 1 - k
            row = image * length + t
            x = tl.load(u + row * E + e).to(tl.float32)
            raw = tl.load(dt + row * E + e).to(tl.float32) + shift
            d = softplus(raw)
            b, c = tl.load(Bm + row * N + n).to(tl.float32), tl.load(C + row * N + n).to(tl.float32)
            gate, g = tl.load(z + row * E + e).to(tl.float32), tl.load(gy + row * E + e).to(tl.float32)
            state = tl.load(h + (row * E + e[:, None]) * N + n[None, :])
            before = tl.load(h + ((image * length + tl.maximum(t - 1, 0)) * E + e[:, None]) * N + n[None, :])
            before = tl.where(t > 0, before, 0.0)
            s = tl.sigmoid(gate)
            value = tl.sum(state * c[None, :], 1) + d_ * x
            tl.store(gz + row * E + e, (g * value * s * (1 + gate * (1 - s))).to(gz.dtype.element_ty))
            g = g * gate * s
            adjoint += g[:, None] * c[None, :]
            decay = tl.exp(d[:, None] * a)
            tl.atomic_add(gC + row * N + n, tl.sum(g[:, None] * state, 0))
            tl.atomic_add(gB + row * N + n, tl.sum(adjoint * (d * x)[:, None], 0))
            through = tl.sum(adjoint * b[None, :], 1)
            inner = adjoint * decay * before
            gd = through * x + tl.sum(inner * a, 1)
            sum_a += inner * d[:, None]
            graw = gd * tl.sigmoid(raw)
            sum_bias += graw
            sum_d += g * x
            tl.store(gdt + row * E + e, graw.to(gdt.dtype.element_ty))
            tl.store(gu + row * E + e, (through * d + g * d_).to(gu.dtype.element_ty))
            adjoint = adjoint * decay
        tl.store(gA + (image * E + e[:, None]) * N + n[None, :], sum_a)
        tl.store(gD + image * E + e, sum_d)
        tl.store(gbias + image * E + e, sum_bias)


class Scan(torch.autograd.Function):
    """y = scan(u, dt, A, B, C) gated by z, with D, softplus and bias; u, dt, z (b,l,E), A (E,N), B, C (b,l,N)."""
    BLOCK = 32

    @staticmethod
    def forward(ctx, u, dt, A, Bm, C, D_, z, bias):
        b, length, e = u.shape
        y, keep = torch.empty_like(u), any(ctx.needs_input_grad)
        h = u.new_empty((b, length, e, A.shape[1]) if keep else (1,), dtype=torch.float32)
        scan_forward[(b, e // Scan.BLOCK)](u, dt, A, Bm, C, D_, z, bias, y, h, length, e, A.shape[1], keep, Scan.BLOCK, num_warps=2)
        ctx.save_for_backward(u, dt, A, Bm, C, D_, z, bias, h)
        return y

    @staticmethod
    def backward(ctx, gy):
        u, dt, A, Bm, C, D_, z, bias, h = ctx.saved_tensors
        b, length, e = u.shape
        n = A.shape[1]
        gu, gdt, gz = torch.empty_like(u), torch.empty_like(dt), torch.empty_like(z)
        gB, gC = (torch.zeros(b, length, n, device=u.device) for _ in range(2))
        gA, gD, gbias = (torch.empty(b, *s, device=u.device) for s in ((e, n), (e,), (e,)))
        scan_backward[(b, e // Scan.BLOCK)](u, dt, A, Bm, C, D_, z, bias, h, gy.contiguous(), gu, gdt, gA, gB, gC, gD, gz, gbias, length, e, n,
                                            Scan.BLOCK, num_warps=2)
        return gu, gdt, gA.sum(0), gB.to(Bm.dtype), gC.to(C.dtype), gD.sum(0), gz, gbias.sum(0)


def scan_loop(u, dt, A, Bm, C, D_, z, bias):
    d, h, ys = F.softplus(dt + bias), u.new_zeros(u.shape[0], u.shape[2], A.shape[1]), []
    for t in range(u.shape[1]):
        h = torch.exp(d[:, t, :, None] * A) * h + (d[:, t] * u[:, t])[..., None] * Bm[:, t, None, :]
        ys.append((h * C[:, t, None, :]).sum(-1))
    return (torch.stack(ys, 1) + D_ * u) * F.silu(z)


def scan_inputs(b, length, e, n, dtype, device):
    def rnd(*s, t=dtype):
        return torch.randn(*s, device=device, dtype=t)

    f32 = torch.float32
    return [rnd(b, length, e), rnd(b, length, e), -rnd(e, n, t=f32).abs() - 0.1, rnd(b, length, n), rnd(b, length, n), rnd(e, t=f32),
            rnd(b, length, e), rnd(e, t=f32)]


def check(device):
    torch.manual_seed(0)
    args = [t.requires_grad_() for t in scan_inputs(2, 7, 64, 16, torch.float32, device)]
    ours, theirs = Scan.apply(*args), scan_loop(*args)
    seed = torch.randn_like(theirs)
    for a, b in zip((ours, *torch.autograd.grad(ours, args, seed)), (theirs, *torch.autograd.grad(theirs, args, seed))):
        assert (a - b).norm() <= 1e-5 * b.norm(), (a.shape, (a - b).norm() / b.norm())
    print("the scan agrees with a loop")


# ---- the rest --------------------------------------------------------------------------------------------

def rnd(*shape, dtype="f32"):
    return torch.randn(*shape, device="cuda", dtype=DTYPES[dtype])


def layers(dtype):
    if triton:
        report(("scan", dtype), Scan.apply, lambda: scan_inputs(B, L, E, N, DTYPES[dtype], "cuda"))
        report(("scan b8 l2048 E2048", dtype), Scan.apply, lambda: scan_inputs(8, 2048, 2048, N, DTYPES[dtype], "cuda"), 4)
    else:
        print("scan: skipped, no Triton")
    report(("conv1d + SiLU", dtype), lambda x, w, b: F.silu(F.conv1d(x, w, b, padding=3, groups=E)[..., :L]),
           lambda: [rnd(B, E, L, dtype=dtype), rnd(E, 1, 4, dtype=dtype), rnd(E, dtype=dtype)])
    report(("add + RMSNorm", dtype), lambda x, r, w: F.rms_norm(x + r, (D,), w, 1e-5).to(x.dtype),
           lambda: [rnd(B * L, D, dtype=dtype), rnd(B * L, D), rnd(D)])
    report(("add + LayerNorm", dtype), lambda x, r, w: F.layer_norm(x + r, (D,), w, eps=1e-5).to(x.dtype),
           lambda: [rnd(B * L, D, dtype=dtype), rnd(B * L, D), rnd(D)])
    report(("gate of both directions", dtype), lambda a, b, z: 0.5 * (a + b) * F.silu(z), lambda: [rnd(B, L, E, dtype=dtype) for _ in range(3)])

    def attention(qkv):
        q, k, v = qkv.view(B, L, 3, HEADS, D // HEADS).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, L, D)

    report(("attention, 3 heads of 64", dtype), attention, lambda: [rnd(B, L, 3 * D, dtype=dtype)])


def products(name, ins, outs):
    for precision in ("f32", "tf32", "bf16"):
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        dtype = "bf16" if precision == "bf16" else "f32"
        report((name, precision), F.linear, lambda: [rnd(B * L, ins, dtype=dtype), rnd(outs, ins, dtype=dtype)])
    torch.backends.cuda.matmul.allow_tf32 = False


def optimiser():
    """Norm, clipping, fused AdamW and an average of the weights by foreach, 150 tensors of 100,000."""
    p = [torch.nn.Parameter(rnd(100000)) for _ in range(150)]
    average = [t.detach().clone() for t in p]
    adamw = torch.optim.AdamW(p, lr=1e-9, weight_decay=0.05, fused=True, capturable=True)
    for t in p:
        t.grad = torch.randn_like(t)

    def step(_):
        norm = torch.nn.utils.clip_grad_norm_(p, 1e30, foreach=True)
        adamw.step()
        torch._foreach_lerp_(average, [t.detach() for t in p], 0.01)
        return norm

    print(f"AdamW and average, 150 tensors, 15 M f32\t{1e3 * seconds(step, 1):.5f}")


def bridge(length, dtype):
    """Forward and backward of the loss: B, C -> K, Q by two MLPs. The targets stand ready; ours standardises them on the way."""
    n, d, t = 64, 768, DTYPES[dtype]
    lifts = [torch.nn.Sequential(torch.nn.Linear(n, 128), torch.nn.SiLU(), torch.nn.Linear(128, d)).cuda() for _ in range(2)]
    taps = [rnd(2, length, n, dtype=dtype).requires_grad_() for _ in range(2)]
    targets = [rnd(2, length, d, dtype=dtype) for _ in range(2)]
    leaves = taps + [p for m in lifts for p in m.parameters()]

    def once(_):
        with torch.autocast("cuda", t, enabled=dtype == "bf16", cache_enabled=False):
            loss = sum(F.mse_loss(m(x), y) for m, x, y in zip(lifts, taps, targets))
        return torch.autograd.grad(loss, leaves)

    print(f"bridge loss alone, l {length} {dtype}\t{1e3 * seconds(once, 4):.5f}")


if __name__ == "__main__":
    if sys.argv[1:] == ["check"]:
        check("cuda" if torch.cuda.is_available() else "cpu")
    else:
        torch.manual_seed(0)
        print(f"PyTorch {torch.__version__}, {torch.cuda.get_device_name()}")
        for kind in DTYPES:
            layers(kind)
        for shape in (("in_proj", 192, 768), ("x_proj", 384, 44), ("dt_proj", 12, 384), ("out_proj", 384, 192)):
            products(*shape)
        optimiser()
        for tokens in (197, 1024, 4096):
            for kind in DTYPES:
                bridge(tokens, kind)
