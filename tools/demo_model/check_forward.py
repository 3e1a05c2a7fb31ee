"""Compares the training forward with transformers' own on random weights; exits 1 on a difference.

Usage: python check_forward.py
"""

from __future__ import annotations

import sys

import fast_forward
import torch
import torch.nn.functional as F
from shape import demo_config
from transformers import Qwen3_5MoeForCausalLM

TOLERANCE = 2e-4  # float32 sums in another order through eight layers


def main() -> int:
    """Runs the comparison; returns the exit status."""
    fast_forward.USE_COMPILE = False
    torch.manual_seed(7)
    config = demo_config()
    model = Qwen3_5MoeForCausalLM(config).eval()
    mtp = fast_forward.MtpHead(config)
    for parameter in mtp.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "conv" not in name:
                parameter.normal_(std=0.06)
    ids = torch.randint(0, config.vocab_size, (2, 194))
    rotary = fast_forward.rotary_table(config, 192, "cpu")
    ours = fast_forward.forward_losses(model, mtp, ids, rotary, torch.float32)["main"]
    logits = model(ids[:, :192]).logits
    theirs = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:193], reduction="none")
    worst = (ours - theirs).abs().max().item()
    grad_ours = torch.autograd.grad(ours.mean(), list(model.parameters()))
    grad_theirs = torch.autograd.grad(theirs.mean(), list(model.parameters()))
    grad_worst = max(
        ((a - b).norm() / (b.norm() + 1e-9)).item()
        for a, b in zip(grad_ours, grad_theirs, strict=True)
    )
    print(f"loss difference {worst:.2e}, worst relative gradient difference {grad_worst:.2e}")
    return 0 if worst < TOLERANCE and grad_worst < 1e-2 else 1


if __name__ == "__main__":
    sys.exit(main())
