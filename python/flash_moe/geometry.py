"""Dimensions of a checkpoint, from a config.json or one of the named geometries of the package.

The named ones (models/geometries/*.json) state sizes only. Their source: the published model cards
and config.json files of the four releases; for Qwen3.5-35B-A3B and Qwen3-Next-80B-A3B the defaults
of transformers' `Qwen3_5MoeTextConfig` and `Qwen3NextConfig` say the same, for Qwen3.5-397B-A17B
and Qwen3-235B-A22B the model cards' tables do. Not checked against a file: rope theta and context
length of 35B and 80B, the dense width of 80B, the context length of 235B. No speed hangs on them.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ConfigError

Json = dict[str, Any]
_FAMILIES = ("qwen3_5_moe", "qwen3_5_moe_text", "qwen3_next", "qwen3_moe")
_FOLDER = Path(__file__).parent / "models" / "geometries"


def geometry_names() -> list[str]:
    """Returns the names that `load_config` knows."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


def load_config(name_or_path: str) -> Json:
    """Returns the content of a config.json.

    Args:
        name_or_path: a name of `geometry_names`, a config.json, or a folder that holds one.

    Raises:
        ConfigError: when there is none, or it is no JSON object.
    """
    path = _FOLDER / f"{name_or_path}.json"
    if name_or_path not in geometry_names():
        path = Path(name_or_path).expanduser()
        if path.is_dir():
            path = path / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{name_or_path}: wanted a config.json or one of {', '.join(geometry_names())}: "
            f"{error.strerror}"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{path}: not a JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: wanted a JSON object, got {type(content).__name__}")
    return content


@dataclass(frozen=True)
class Geometry:
    """Every dimension that decides a tensor's shape; names as in tests and docs/MODEL.md."""

    model_type: str
    hidden: int
    vocab: int
    full_attention: tuple[bool, ...]  # by layer
    heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int
    rope_theta: float
    experts: int
    top_k: int
    inner: int
    shared_inner: int  # 0 without a shared expert
    linear_key_heads: int
    linear_value_heads: int
    linear_key_dim: int
    linear_value_dim: int
    conv_kernel: int
    tied: bool

    @property
    def layers(self) -> int:
        """Count of layers."""
        return len(self.full_attention)

    @property
    def key_width(self) -> int:
        """Rows of a linear layer's q, and of its k."""
        return self.linear_key_heads * self.linear_key_dim

    @property
    def value_width(self) -> int:
        """Rows of a linear layer's v, and of its z."""
        return self.linear_value_heads * self.linear_value_dim

    @property
    def gated_attention(self) -> bool:
        """Whether q_proj has a gate beside each query."""
        return self.model_type != "qwen3_moe"

    @property
    def prefix(self) -> str:
        """Of every tensor's name, as mlx-lm's conversions write it."""
        return "language_model." if self.model_type == "qwen3_5_moe" else ""


class _Reader:
    """Reads numbers of a config and says what is wrong with them."""

    def __init__(self, config: Json) -> None:
        nested = config.get("text_config")
        self.text: Json = nested if isinstance(nested, dict) else config

    def count(self, key: str, default: int | None = None) -> int:
        value = self.text.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"config: {key}: wanted a whole number above 0, got {value!r}")
        return value

    def rope(self, key: str, default: float) -> float:
        nested = self.text.get("rope_parameters") or self.text.get("rope_scaling") or {}
        value = nested.get(key, self.text.get(key, default)) if isinstance(nested, dict) else None
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ConfigError(f"config: {key}: wanted a number above 0, got {value!r}")
        return float(value)


def _full_attention(reader: _Reader, family: str, layers: int) -> tuple[bool, ...]:
    if family == "qwen3_moe":
        return (True,) * layers
    types = reader.text.get("layer_types")
    if types is None:
        interval = reader.count("full_attention_interval", 4)
        return tuple((i + 1) % interval == 0 for i in range(layers))
    if not isinstance(types, list) or len(types) != layers:
        raise ConfigError(f"config: layer_types: wanted {layers} entries, got {types!r:.80}")
    return tuple(kind == "full_attention" for kind in types)


def geometry_of(config: Json) -> Geometry:
    """Returns the dimensions that a config.json states.

    Raises:
        ConfigError: when a number is missing or senseless, or the family is not known.
    """
    family = config.get("model_type")
    if family not in _FAMILIES:
        raise ConfigError(f"config: model_type: wanted one of {', '.join(_FAMILIES)}: {family!r}")
    reader = _Reader(config)
    if reader.text.get("mlp_only_layers") or reader.text.get("decoder_sparse_step", 1) != 1:
        raise ConfigError("config: dense layers (mlp_only_layers, decoder_sparse_step): not here")
    layers, hidden = reader.count("num_hidden_layers"), reader.count("hidden_size")
    heads = reader.count("num_attention_heads")
    head_dim = reader.count("head_dim", max(1, hidden // heads))
    hybrid = family != "qwen3_moe"
    rotary = head_dim * reader.rope("partial_rotary_factor", 0.25 if hybrid else 1.0)
    geometry = Geometry(
        model_type=family,
        hidden=hidden,
        vocab=reader.count("vocab_size"),
        full_attention=_full_attention(reader, family, layers),
        heads=heads,
        kv_heads=reader.count("num_key_value_heads"),
        head_dim=head_dim,
        rotary_dim=int(rotary),
        rope_theta=reader.rope("rope_theta", 1e6),
        experts=reader.count("num_experts"),
        top_k=reader.count("num_experts_per_tok"),
        inner=reader.count("moe_intermediate_size"),
        shared_inner=reader.count("shared_expert_intermediate_size") if hybrid else 0,
        linear_key_heads=reader.count("linear_num_key_heads") if hybrid else 1,
        linear_value_heads=reader.count("linear_num_value_heads") if hybrid else 1,
        linear_key_dim=reader.count("linear_key_head_dim") if hybrid else 1,
        linear_value_dim=reader.count("linear_value_head_dim") if hybrid else 1,
        conv_kernel=reader.count("linear_conv_kernel_dim") if hybrid else 1,
        tied=bool(config.get("tie_word_embeddings", False)),
    )
    if geometry.top_k > geometry.experts:
        raise ConfigError(
            f"config: num_experts_per_tok: {geometry.top_k} of {geometry.experts} experts"
        )
    return geometry


def with_layers(config: Json, layers: int | None) -> Json:
    """Returns a copy of a config cut or extended to so many layers; None changes nothing.

    Layers beyond the config's repeat its pattern from the start.

    Raises:
        ConfigError: when it is not above zero.
    """
    out = copy.deepcopy(config)
    reader = _Reader(out)
    reader.text["mtp_num_hidden_layers"] = 0  # the head is not written
    if layers is None:
        return out
    if layers < 1:
        raise ConfigError(f"--layers: wanted a number above 0, got {layers}")
    types = reader.text.get("layer_types")
    if isinstance(types, list) and types:
        reader.text["layer_types"] = [types[i % len(types)] for i in range(layers)]
    reader.text["num_hidden_layers"] = layers
    return out
