"""Writes weights as mlx-lm's conversions do: stacked experts, 1 + w norms, conv1d [C, 4, 1]."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .configs import config
from .geometry import Geometry, is_norm, text_weights, vision_weights
from .huggingface_layout import CONFIG_DTYPE, store, write_config, write_shards
from .mlx_format import Quantisation, quantise
from .random_numbers import random_bytes
from .safetensors_file import Stored
from .tokenizer_files import write_tokenizer

FOUR_BITS = Quantisation(4, 64)
EIGHT_BITS = Quantisation(8, 64)
ROUTERS = ("mlp.gate", "mlp.shared_expert_gate")


@dataclass(frozen=True)
class MlxLayout:
    """Formats of an MLX folder.

    `overrides` maps the end of a module's name to its quantisation, None for not quantised; the
    longest match wins and entries go to config.json per module. Routers are 8-bit, group 64, as in
    today's conversions.
    """

    default: Quantisation | None = FOUR_BITS  # None: nothing is quantised
    overrides: dict[str, Quantisation | None] = field(default_factory=dict)
    dtype: str = "BF16"  # scales, biases and whatever is not quantised
    routers: Quantisation | None = EIGHT_BITS
    shards: int = 1
    vision: bool = False  # vision_tower.* tensors, as other converters leave them

    def of(self, module: str) -> Quantisation | None:
        """Returns how a module is stored."""
        if self.default is None:
            return None
        rules = {**dict.fromkeys(ROUTERS, self.routers), **self.overrides}
        matches = [suffix for suffix in rules if module.endswith(suffix)]
        return rules[max(matches, key=len)] if matches else self.default


def mlx_names(g: Geometry, name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """Returns MLX's modules for one Hugging Face tensor, in MLX's axes and norm convention."""
    prefix = "language_model." if g.model_type == "qwen3_5_moe" else ""
    full = prefix + (name if name.startswith("lm_head") else f"model.{name}")
    if name.endswith("conv1d.weight"):
        return {full: np.moveaxis(values, 2, 1)}
    if is_norm(name) and g.zero_centred_norms:
        return {full: values + np.float32(1)}
    stem = full.rpartition(".experts.")[0]
    if name.endswith("experts.gate_up_proj"):
        half = values.shape[1] // 2
        return {
            f"{stem}.switch_mlp.gate_proj.weight": values[:, :half],
            f"{stem}.switch_mlp.up_proj.weight": values[:, half:],
        }
    if name.endswith("experts.down_proj"):
        return {f"{stem}.switch_mlp.down_proj.weight": values}
    return {full: values}


def _quantised_module(name: str, values: np.ndarray, layout: MlxLayout) -> Quantisation | None:
    """How the tensor's module is quantised; None where it does not divide."""
    if not name.endswith(".weight") or values.ndim < 2 or "conv1d" in name:
        return None
    how = layout.of(name.removesuffix(".weight"))
    return None if how is None or values.shape[-1] % how.group else how


def _shuffled(tensors: dict[str, Stored]) -> dict[str, Stored]:
    """MLX files have their tensors in no particular order."""
    return dict(sorted(tensors.items(), key=lambda item: random_bytes(0, item[0], 8)))


def write_folder(folder: Path, g: Geometry, seed: int, layout: MlxLayout) -> None:
    """Writes a whole checkpoint folder."""
    tensors: dict[str, Stored] = {}
    settings: dict[str, object] = dict(layout.default.json()) if layout.default else {}
    for hf_name, hf_values in text_weights(g, seed):
        if hf_name.startswith("mtp."):
            continue  # mlx-lm's conversions drop the head
        for name, values in mlx_names(g, hf_name, hf_values).items():
            how = _quantised_module(name, values, layout)
            if how is None:
                keep = name.endswith("A_log")
                tensors[name] = store(values, "F32" if keep else layout.dtype)
                continue
            module = name.removesuffix(".weight")
            for leaf, stored in quantise(values, how, layout.dtype).items():
                tensors[f"{module}.{leaf}"] = stored
            if how != layout.default:
                settings[module] = how.json()
    if layout.vision:
        for name, values in vision_weights(g, seed):
            tensors[f"vision_tower.{name}"] = store(values, layout.dtype)
    content = config(g, CONFIG_DTYPE[layout.dtype])
    if settings:
        content["quantization"] = settings
        content["quantization_config"] = settings
    write_config(folder, content)
    write_shards(folder, _shuffled(tensors), layout.shards, {"format": "mlx"})
    write_tokenizer(folder, g.model_type)
