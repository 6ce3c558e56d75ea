"""Loads models saved by strict.lua into PyTorch with strict=True, compares logits, and saves the state dicts again.

  build/cab run tests/reference/strict.lua DIR
  for m in vit vit_distilled; do build/cab convert DIR/$m.safetensors DIR/$m.hf.safetensors --to hf; done
  python tests/reference/strict.py DIR          (torch, timm, transformers, safetensors)
  build/cab diff DIR/vim.safetensors DIR/vim.back.safetensors     (and .back.pth; exit code 0: bit-equal)
"""
import sys

import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher, ViTConfig, ViTForImageClassification


class Mixer(nn.Module):
    """Both scan directions of Vim, token by token (arXiv:2401.09417, algorithm 1)."""

    def __init__(self, d, n, expand=2, width=4):
        super().__init__()
        e, r = expand * d, -(-d // 16)
        self.n, self.r = n, r
        self.in_proj = nn.Linear(d, 2 * e, bias=False)
        for s, a in (("", "A_log"), ("_b", "A_b_log")):
            setattr(self, "conv1d" + s, nn.Conv1d(e, e, width, groups=e, padding=width - 1))
            setattr(self, "x_proj" + s, nn.Linear(e, r + 2 * n, bias=False))
            setattr(self, "dt_proj" + s, nn.Linear(r, e))
            setattr(self, a, nn.Parameter(torch.zeros(e, n)))
            setattr(self, "D" + s, nn.Parameter(torch.ones(e)))
        self.out_proj = nn.Linear(e, d, bias=False)

    def scan(self, x, s):
        conv, length = getattr(self, "conv1d" + s), x.shape[1]
        u = F.silu(conv(x.transpose(1, 2))[..., :length]).transpose(1, 2)
        low, b, c = getattr(self, "x_proj" + s)(u).split([self.r, self.n, self.n], -1)
        dt = F.softplus(getattr(self, "dt_proj" + s)(low))
        a = -torch.exp(self.A_b_log if s else self.A_log)
        h, out = 0, []
        for t in range(length):
            h = torch.exp(dt[:, t, :, None] * a) * h + (dt[:, t] * u[:, t])[..., None] * b[:, t, None, :]
            out.append((h * c[:, t, None, :]).sum(-1) + getattr(self, "D" + s) * u[:, t])
        return torch.stack(out, 1)

    def forward(self, x):
        x, z = self.in_proj(x).chunk(2, -1)
        y = self.scan(x, "") + self.scan(x.flip(1), "_b").flip(1)
        return self.out_proj(y / 2 * F.silu(z))


class Block(nn.Module):
    def __init__(self, d, n):
        super().__init__()
        self.mixer, self.norm = Mixer(d, n), nn.RMSNorm(d, eps=1e-5)


class Vim(nn.Module):
    def __init__(self, d=32, depth=4, patch=8, image=32, n=8, classes=10):
        super().__init__()
        self.m = (image // patch) ** 2
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, d, patch, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.m + 1, d))
        self.layers = nn.ModuleList(Block(d, n) for _ in range(depth))
        self.norm_f, self.head = nn.RMSNorm(d, eps=1e-5), nn.Linear(d, classes)

    def forward(self, x):
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        k = self.m // 2
        x = torch.cat([x[:, :k], self.cls_token.expand(x.shape[0], -1, -1), x[:, k:]], 1) + self.pos_embed
        residual = 0
        for layer in self.layers:
            residual = residual + x
            x = layer.mixer(layer.norm(residual))
        return self.head(self.norm_f(residual + x)[:, k])


def check(folder, name, model):
    state = load_file(f"{folder}/{name}.safetensors")
    print(name, model.load_state_dict(state, strict=True), f"{len(state)} tensors", end=", ")
    io = load_file(f"{folder}/{name.split('.')[0]}.io.safetensors")
    with torch.no_grad():
        y = model.eval()(io["images"])
        y = y.logits if hasattr(y, "logits") else y
    print(f"largest difference of logits {(y - io['logits']).abs().max():.2g} of {io['logits'].abs().max():.2g}")
    save_file(model.state_dict(), f"{folder}/{name}.back.safetensors")
    torch.save({"model": model.state_dict()}, f"{folder}/{name}.back.pth")


def main(folder):
    check(folder, "vim", Vim())
    kw = dict(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=10)
    check(folder, "vit", timm.models.VisionTransformer(**kw))
    check(folder, "vit_distilled", timm.models.deit.VisionTransformerDistilled(**kw))
    kw = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, image_size=32, patch_size=8, num_labels=10,
              layer_norm_eps=1e-6)
    for name, config, cls in [("vit", ViTConfig, ViTForImageClassification), ("vit_distilled", DeiTConfig, DeiTForImageClassificationWithTeacher)]:
        state = load_file(f"{folder}/{name}.hf.safetensors")
        model, info = cls.from_pretrained(None, config=config(**kw), state_dict=state, output_loading_info=True)
        bad = {k: v for k, v in info.items() if v}
        io = load_file(f"{folder}/{name}.io.safetensors")
        with torch.no_grad():
            y = model.eval()(io["images"]).logits
        print(f"{name}.hf in {cls.__name__}: problems {bad}, largest difference of logits {(y - io['logits']).abs().max():.2g}")


if __name__ == "__main__":
    main(sys.argv[1])
