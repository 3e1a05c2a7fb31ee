"""Writes weights as Hugging Face folders do: fused or split experts, 16/32-bit or FP8, shards."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from . import safetensors_file
from .configs import config
from .geometry import Geometry, is_norm, text_weights, vision_weights
from .number_formats import bf16_encode, e4m3_encode
from .safetensors_file import Stored
from .tokenizer_files import write_tokenizer

CONFIG_DTYPE = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
FP8_BLOCK = 128
FP8_MAX = 448.0
FP8_NEVER = (
    "lm_head",
    "embed_tokens",
    "in_proj_a",
    "in_proj_b",
    "in_proj_ba",
    "mlp.gate.",
    "expert_gate",
)


@dataclass(frozen=True)
class HuggingFaceLayout:
    """How the same weights are laid down in files."""

    dtype: str = "BF16"
    fused_experts: bool = True
    f32_state: bool = True  # A_log and linear_attn.norm in F32 (3.5 releases) or in `dtype` (3.6)
    shards: int = 1
    fp8: bool = False
    fp8_scale_dtype: str = "BF16"


def store(values: np.ndarray, dtype: str) -> Stored:
    """Rounds float32 to a stored dtype."""
    if dtype == "BF16":
        return Stored(dtype, bf16_encode(values))
    return Stored(dtype, values.astype({"F16": "<f2", "F32": "<f4"}[dtype]))


def split_experts(name: str, values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yields per-expert tensors of a fused one, and any other tensor as it is."""
    stem, _, leaf = name.rpartition(".")
    if leaf not in ("gate_up_proj", "down_proj"):
        yield name, values
        return
    for expert, matrix in enumerate(values):
        if leaf == "down_proj":
            yield f"{stem}.{expert}.down_proj.weight", matrix
            continue
        half = matrix.shape[0] // 2
        yield f"{stem}.{expert}.gate_proj.weight", matrix[:half]
        yield f"{stem}.{expert}.up_proj.weight", matrix[half:]


def fp8_quantise(weight: np.ndarray, scale_dtype: str) -> tuple[Stored, Stored]:
    """Returns F8_E4M3 codes and one scale a 128 x 128 block (the last ones are partial)."""
    rows, columns = weight.shape
    row_blocks, column_blocks = -(-rows // FP8_BLOCK), -(-columns // FP8_BLOCK)
    padded = np.zeros((row_blocks * FP8_BLOCK, column_blocks * FP8_BLOCK), np.float32)
    padded[:rows, :columns] = np.abs(weight)
    largest = padded.reshape(row_blocks, FP8_BLOCK, column_blocks, FP8_BLOCK).max(axis=(1, 3))
    scale = store((largest / np.float32(FP8_MAX)).astype(np.float32), scale_dtype)
    full = as_float32(scale).repeat(FP8_BLOCK, axis=0).repeat(FP8_BLOCK, axis=1)[:rows, :columns]
    return Stored("F8_E4M3", e4m3_encode(weight / full)), scale


def as_float32(stored: Stored) -> np.ndarray:
    """Returns BF16, F16 or F32 as float32."""
    if stored.dtype == "BF16":
        return (stored.data.astype(np.uint32) << 16).view(np.float32)
    return stored.data.astype(np.float32)


def _stored_dtype(name: str, layout: HuggingFaceLayout) -> str:
    state = name.endswith(("A_log", "linear_attn.norm.weight"))
    return "F32" if state and layout.f32_state else layout.dtype


def _is_fp8(name: str, values: np.ndarray) -> bool:
    return values.ndim == 2 and not is_norm(name) and not any(word in name for word in FP8_NEVER)


def tensors(g: Geometry, seed: int, layout: HuggingFaceLayout) -> dict[str, Stored]:
    """Returns every tensor of the folder under its full name."""
    prefix = "model.language_model." if g.model_type == "qwen3_5_moe" else "model."
    out: dict[str, Stored] = {}
    for name, values in text_weights(g, seed):
        full = name if name.startswith(("lm_head", "mtp.")) else prefix + name
        parts = [(full, values)] if layout.fused_experts else split_experts(full, values)
        for part, matrix in parts:
            if layout.fp8 and _is_fp8(part, matrix):
                out[part], scale = fp8_quantise(matrix, layout.fp8_scale_dtype)
                out[f"{part}_scale_inv"] = scale
            else:
                out[part] = store(matrix, _stored_dtype(part, layout))
    if g.model_type == "qwen3_5_moe":
        for name, values in vision_weights(g, seed):
            out[f"model.visual.{name}"] = store(values, layout.dtype)
    return out


def write_shards(folder: Path, all_tensors: dict[str, Stored], shards: int, metadata: dict) -> None:
    """Writes one file, or dealt-out shards with an index (neighbours land in different files)."""
    if shards == 1:
        safetensors_file.write(folder / "model.safetensors", all_tensors, metadata)
        return
    names = list(all_tensors)
    weight_map = {}
    for shard in range(shards):
        file_name = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        mine = {name: all_tensors[name] for name in names[shard::shards]}
        weight_map.update(dict.fromkeys(mine, file_name))
        safetensors_file.write(folder / file_name, mine, metadata)
    total = sum(stored.data.nbytes for stored in all_tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_config(folder: Path, content: dict) -> None:
    """Writes config.json."""
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n")


def write_folder(folder: Path, g: Geometry, seed: int, layout: HuggingFaceLayout) -> None:
    """Writes a whole checkpoint folder."""
    if layout.fp8:
        layout = replace(layout, fused_experts=False)
    content = config(g, CONFIG_DTYPE[layout.dtype])
    if layout.fp8:
        content["quantization_config"] = {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "modules_to_not_convert": ["lm_head", "model.embed_tokens"],
            "quant_method": "fp8",
            "weight_block_size": [FP8_BLOCK, FP8_BLOCK],
        }
    write_config(folder, content)
    write_shards(folder, tensors(g, seed, layout), layout.shards, {"format": "pt"})
    write_tokenizer(folder, g.model_type)
