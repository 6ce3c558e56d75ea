"""Every third head, from the second on, of one decode step of a published Mamba-2 130M layer (24 heads x 64 channels x 128 states, fp16 as hex).

usage: python tests/reference/mamba2_step.py FOLDER tests/fixtures/mamba2_step.safetensors      (needs numpy, torch, safetensors)
"""
import sys

import numpy as np
import torch
from safetensors.torch import save_file

heads, channels, states = 24, 64, 128


def read(name):
    words = [int(line, 16) for line in open(f"{sys.argv[1]}/0_{name}.hex").read().split()]
    return torch.tensor(np.array(words, dtype=np.uint16).view(np.float16).astype(np.float32))


out = {n: read(n).reshape(heads, *shape)[1::3].contiguous() for n, shape in
       dict(dA=(), dt=(), D=(), x=(channels,), y=(channels,), ssm_state=(channels, states)).items()}
out |= dict(B=read("B"), C=read("C"))
save_file(out, sys.argv[2])
state = out["dA"][:, None, None] * out["ssm_state"] + (out["dt"][:, None] * out["x"])[..., None] * out["B"]
y = state @ out["C"] + out["D"][:, None] * out["x"]
print("largest error over largest value", ((y - out["y"]).abs().max() / out["y"].abs().max()).item())
