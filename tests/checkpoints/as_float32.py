"""Turns any checkpoint folder into a float32 Hugging Face folder with exactly the same weights.

The way by which transformers, which knows neither MLX files nor float32 use of FP8 ones, becomes
their oracle.
"""

import json
import shutil
from pathlib import Path

import numpy as np

from . import safetensors_file
from .huggingface_layout import FP8_BLOCK, as_float32, write_config
from .mlx_format import Quantisation, dequantise
from .number_formats import e4m3_decode
from .safetensors_file import Stored

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
)


def _mlx_modules(tensors: dict[str, Stored], settings: dict) -> dict[str, np.ndarray]:
    """Dequantises every module that has scales; the rest is widened."""
    out = {}
    for name, stored in tensors.items():
        module, _, leaf = name.rpartition(".")
        if f"{module}.scales" not in tensors:
            out[name] = as_float32(stored)
        elif leaf == "weight":
            entry = settings.get(module, settings)
            how = Quantisation(entry["bits"], entry["group_size"], entry.get("mode", "affine"))
            parts = {part: tensors[f"{module}.{part}"] for part in ("weight", "scales")}
            if how.mode == "affine":
                parts["biases"] = tensors[f"{module}.biases"]
            out[name] = dequantise(parts, how)
    return out


def _up_of(modules: dict[str, np.ndarray], stem: str) -> np.ndarray:
    """Returns the up_proj that belongs to the Hugging Face stem of a gate_proj."""
    mlx_stem = stem.replace("model.language_model.", "language_model.model.", 1)
    name = f"{mlx_stem}.switch_mlp.up_proj.weight"
    return modules[name] if name in modules else modules[f"language_model.{name}"]  # MTP head


def _huggingface_names(modules: dict[str, np.ndarray], zero_centred: bool) -> dict[str, np.ndarray]:
    """Undoes MLX's names, axes and 1 + w norms."""
    out = {}
    norms = ("input_layernorm.weight", "post_attention_layernorm.weight", "model.norm.weight")
    for name, values in modules.items():
        if name.startswith("vision_tower."):
            continue
        if name.startswith("language_model.model."):
            name = name.replace("language_model.model.", "model.language_model.", 1)
        name = name.removeprefix("language_model.")
        if name.endswith("conv1d.weight"):
            values = np.moveaxis(values, 1, 2)
        is_norm = name.endswith(
            (*norms, "language_model.norm.weight", "q_norm.weight", "k_norm.weight")
        )
        if zero_centred and is_norm:
            values = values - np.float32(1)
        stem, middle, leaf = name.partition(".switch_mlp.")
        if not middle:
            out[name] = values
        elif leaf == "down_proj.weight":
            out[f"{stem}.experts.down_proj"] = values
        elif leaf == "gate_proj.weight":
            both = [values, _up_of(modules, stem)]
            out[f"{stem}.experts.gate_up_proj"] = np.concatenate(both, axis=1)
    return out


def _fp8_modules(tensors: dict[str, Stored]) -> dict[str, np.ndarray]:
    """Multiplies FP8 blocks by their scales, in float32."""
    out = {}
    for name, stored in tensors.items():
        if name.endswith("_scale_inv"):
            continue
        if stored.dtype != "F8_E4M3":
            out[name] = as_float32(stored)
            continue
        scale = as_float32(tensors[f"{name}_scale_inv"])
        rows, columns = stored.data.shape
        full = scale.repeat(FP8_BLOCK, axis=0).repeat(FP8_BLOCK, axis=1)[:rows, :columns]
        out[name] = e4m3_decode(stored.data) * full
    return out


def convert(source: Path, target: Path) -> Path:
    """Writes the float32 twin of `source` into the folder `target`."""
    target.mkdir(parents=True, exist_ok=True)
    content = json.loads((source / "config.json").read_text())
    tensors = safetensors_file.read_folder(source)
    settings = content.pop("quantization", {})
    content.pop("quantization_config", None)
    is_mlx = any(".switch_mlp." in name for name in tensors)
    if not is_mlx:
        weights = _fp8_modules(tensors)
    else:
        modules = _mlx_modules(tensors, settings)
        weights = _huggingface_names(modules, content["model_type"] != "qwen3_moe")
    for level in (content, content.get("text_config", {})):
        if "dtype" in level:
            level["dtype"] = "float32"
    stored = {name: Stored("F32", values.astype("<f4")) for name, values in weights.items()}
    safetensors_file.write(target / "model.safetensors", stored, {"format": "pt"})
    write_config(target, content)
    for name in TOKENIZER_FILES:
        shutil.copyfile(source / name, target / name)
    return target
