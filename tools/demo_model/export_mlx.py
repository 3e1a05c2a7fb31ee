"""Writes the demo model as an MLX-format quantised folder.

Usage: python export_mlx.py --master DIR_OR_FILE --out DIR [--expert-bits 4] [--bits 8]
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fake_quant import quantise
from safetensors.torch import load_file, save_file

GROUP = 64
PREFIX = "language_model."
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json",
)  # fmt: skip
KEEP = ("norm", "conv1d", "A_log", "dt_bias")


def mlx_tensors(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames to MLX's names, splits and stacks experts, moves conv1d, adds 1 to norms.

    Args:
        tensors: float32 by transformers' names, the MTP head under ``mtp.``.

    Returns:
        float32 by MLX's names.
    """
    out: dict[str, np.ndarray] = {}
    for name, value in tensors.items():
        base = name.replace("mlp.experts.gate_up_proj", "mlp.switch_mlp.gate_up_proj.weight")
        base = base.replace("mlp.experts.down_proj", "mlp.switch_mlp.down_proj.weight")
        base = PREFIX + base
        if "gate_up_proj" in base:
            half = value.shape[1] // 2
            out[base.replace("gate_up_proj", "gate_proj")] = value[:, :half]
            out[base.replace("gate_up_proj", "up_proj")] = value[:, half:]
        elif "conv1d" in base:
            out[base] = np.moveaxis(value, 1, 2)
        elif "norm" in base and "linear_attn.norm" not in base:
            out[base] = value + np.float32(1)
        else:
            out[base] = value
    return out


def bits_of(module: str, expert_bits: int, other_bits: int) -> int:
    """Bits of a module: experts of the main layers few, everything else many."""
    return expert_bits if "switch_mlp" in module and ".mtp." not in module else other_bits


def load(path: Path) -> dict[str, np.ndarray]:
    """Reads a safetensors file as float32."""
    return {n: t.float().numpy() for n, t in load_file(path).items()}


def export(
    master: Path, out: Path, expert_bits: int, other_bits: int, tokenizer: Path
) -> dict[str, Any]:
    """Writes the folder; returns its quantisation table.

    Args:
        master: Folder with config.json and model.safetensors (bf16).
        out: Folder to write.
        expert_bits: Bits of the main layers' routed experts.
        other_bits: Bits of every other matrix.
        tokenizer: Folder that holds the tokenizer's files.
    """
    out.mkdir(parents=True, exist_ok=True)
    stored: dict[str, torch.Tensor] = {}
    quantization: dict[str, Any] = {"group_size": GROUP, "bits": expert_bits, "mode": "affine"}
    for name, value in sorted(mlx_tensors(load(master / "model.safetensors")).items()):
        module = name.removesuffix(".weight")
        if any(part in name for part in KEEP):
            kept = torch.float32 if "A_log" in name else torch.bfloat16
            stored[name] = torch.from_numpy(np.ascontiguousarray(value)).to(kept)
            continue
        bits = bits_of(module, expert_bits, other_bits)
        words, scales, biases = quantise(value, bits, GROUP)
        stored[f"{module}.weight"] = torch.from_numpy(words)
        stored[f"{module}.scales"] = torch.from_numpy(scales).bfloat16()
        stored[f"{module}.biases"] = torch.from_numpy(biases).bfloat16()
        if bits != expert_bits:
            quantization[module] = {"group_size": GROUP, "bits": bits}
    save_file(stored, out / "model.safetensors", metadata={"format": "mlx"})
    text_config = json.loads((master / "config.json").read_text())
    config = {
        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
        "model_type": "qwen3_5_moe",
        "text_config": text_config,
        "tie_word_embeddings": text_config["tie_word_embeddings"],
        "eos_token_id": text_config["eos_token_id"],
        "quantization": quantization,
        "quantization_config": quantization,
    }
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    for file in TOKENIZER_FILES:
        if tokenizer.resolve() != out.resolve():
            shutil.copyfile(tokenizer / file, out / file)
    return quantization


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--master", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--expert-bits", type=int, default=4)
    parser.add_argument("--bits", type=int, default=8)
    args = parser.parse_args()
    export(args.master, args.out, args.expert_bits, args.bits, args.tokenizer)
    total = sum(p.stat().st_size for p in args.out.iterdir())
    print(f"{total / 1e6:.2f} MB in {args.out.name}")


if __name__ == "__main__":
    main()
