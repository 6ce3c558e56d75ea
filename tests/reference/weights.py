"""Writes tests/fixtures/weights/: what PyTorch, timm and transformers make of position embeddings and names.

Run: python tests/reference/weights.py   (torch, timm, transformers, safetensors, numpy)
positions.safetensors   float64: pos_N, and bicubic_N_M, antialias_N_M of it by torch.nn.functional.interpolate
NAME/                   tiny models as the libraries save them, images and their logits
checkpoint_N.pth        a training checkpoint, by pickle protocol, with model, model_ema, optimizer, args; f16, bf16, i64, bool, shared and strided tensors
"""
import argparse
import datetime
import os
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path

import numpy
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import (DeiTConfig, DeiTForImageClassificationWithTeacher, GPT2Config, GPT2LMHeadModel, Mamba2Config,
                          Mamba2ForCausalLM, MambaConfig, MambaForCausalLM, PhiConfig, PhiForCausalLM, ViTConfig,
                          ViTForImageClassification)

OUT = os.path.join(os.path.dirname(__file__), "..", "fixtures", "weights")


def positions():
    torch.manual_seed(0)
    out = {}
    for old, new in [(2, 3), (3, 2), (4, 7), (7, 4), (7, 14), (14, 7), (14, 12), (5, 6)]:
        pos = torch.randn(1, old * old, 3, dtype=torch.float64)
        grid = pos.reshape(1, old, old, 3).permute(0, 3, 1, 2)
        out[f"pos_{old}_{new}"] = pos
        for name, antialias in [("bicubic", False), ("antialias", True)]:
            y = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False, antialias=antialias)
            out[f"{name}_{old}_{new}"] = y.permute(0, 2, 3, 1).reshape(1, new * new, 3)
    save_file({k: v.contiguous() for k, v in out.items()}, os.path.join(OUT, "positions.safetensors"))


def randomise(model):
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.1)
    return model.eval()


def images_model(name, model):
    """The model as saved, the images it was asked and its logits."""
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        y = model(x)
        y = y.logits if hasattr(y, "logits") else y
    folder = os.path.join(OUT, name)
    os.makedirs(folder, exist_ok=True)
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(folder)
        for extra in ("config.json", "generation_config.json"):
            if os.path.exists(os.path.join(folder, extra)):
                os.remove(os.path.join(folder, extra))
    else:
        save_file(model.state_dict(), os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    save_file({"images": x, "logits": y.contiguous()}, os.path.join(folder, "io.safetensors"))


def language_model(name, model):
    """The model as saved, ids and its logits."""
    folder = os.path.join(OUT, name)
    model.save_pretrained(folder)
    for extra in ("config.json", "generation_config.json"):
        if os.path.exists(os.path.join(folder, extra)):
            os.remove(os.path.join(folder, extra))
    ids = torch.randint(0, 11, (2, 7), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        logits = model(ids).logits
    save_file({"ids": ids.int(), "logits": logits.contiguous()}, os.path.join(folder, "io.safetensors"))


def checkpoint():
    torch.manual_seed(3)
    base = torch.randn(6, 4)
    half = torch.tensor([1.0, -2.5, 6e-8, 65504.0, float("inf")], dtype=torch.float16)
    model = OrderedDict([("module.w", base), ("module.t", base.t()), ("module.row", base[2]), ("module.every", base[::2, 1]),
                         ("module.half", half), ("module.bf16", torch.tensor([1.5, -3.0], dtype=torch.bfloat16)),
                         ("module.long", torch.tensor([-7, 2147483647])), ("module.bool", torch.tensor([True, False, True])),
                         ("module.short", torch.tensor([-5, 9], dtype=torch.int16)), ("module.scalar", torch.tensor(2.25)),
                         ("module.expanded", torch.tensor([4.0]).expand(2, 3)), ("module.double", torch.tensor([0.1], dtype=torch.float64)),
                         ("module.empty", torch.zeros(0, 3)), ("module.p", torch.nn.Parameter(torch.ones(2))),
                         ("module.f8", torch.tensor([1.0, -0.5, 448.0]).to(torch.float8_e4m3fn))])
    ema = OrderedDict((k, v * 2 if v.is_floating_point() and v.dtype == torch.float32 else v) for k, v in model.items())
    for protocol in (2, 3, 4, 5):
        torch.save({"model": model, "model_ema": ema, "optimizer": {"state": {0: {"exp_avg": base.clone()}}, "param_groups": [{"lr": 1e-3}]},
                    "args": argparse.Namespace(lr=1e-3, name="x"), "epoch": 3, "best": numpy.float64(0.5),
                    "rng": torch.zeros(3, dtype=torch.uint8), "spectrum": torch.zeros(2, dtype=torch.complex64), "curve": numpy.arange(3),
                    "rest": [{1, 2}, frozenset([1]), range(3), slice(1, 2), Counter("aab"), defaultdict(dict, {"a": {}}), Path("x"), 1 << 100,
                             datetime.timedelta(3), torch.float16, torch.device("cpu"), torch.Size([1, 2]), bytearray(b"x"), 1j]},
                   os.path.join(OUT, f"checkpoint_{protocol}.pth"), pickle_protocol=protocol)
    plain = {k[7:]: v.detach().float().contiguous().clone() for k, v in model.items() if k not in ("module.bf16",)}
    save_file(plain, os.path.join(OUT, "checkpoint_expected.safetensors"))
    numpy.savez_compressed(os.path.join(OUT, "arrays.npz"), a=base.numpy(), b=numpy.asfortranarray(base.numpy()), c=numpy.arange(5),
                           h=half.numpy())


def main():
    os.makedirs(OUT, exist_ok=True)
    positions()
    checkpoint()
    small = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8, num_labels=5)
    images_model("timm_vit", randomise(timm.models.VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2, num_classes=5)))
    images_model("timm_distilled", randomise(timm.models.deit.VisionTransformerDistilled(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2,
                                                                                        mlp_ratio=2, num_classes=5)))
    images_model("hf_vit", randomise(ViTForImageClassification(ViTConfig(layer_norm_eps=1e-6, **small))))
    images_model("hf_deit", randomise(DeiTForImageClassificationWithTeacher(DeiTConfig(layer_norm_eps=1e-6, **small))))
    language_model("hf_gpt2", randomise(GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=11, n_positions=8, bos_token_id=0, eos_token_id=0))))
    language_model("hf_phi", randomise(PhiForCausalLM(PhiConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=11,
                                                               bos_token_id=0, eos_token_id=0))))
    language_model("hf_mamba", randomise(MambaForCausalLM(MambaConfig(hidden_size=8, num_hidden_layers=2, state_size=4, vocab_size=11, tie_word_embeddings=True))))
    language_model("hf_mamba2", randomise(Mamba2ForCausalLM(Mamba2Config(hidden_size=8, num_hidden_layers=2, state_size=4, vocab_size=11, num_heads=4,
                                                                        head_dim=4, n_groups=1, tie_word_embeddings=True))))


if __name__ == "__main__":
    main()
