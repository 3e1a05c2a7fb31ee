"""Writes the weights of a folder of `flash-moe synth` as GGUF, for llama.cpp at equal weights.

    python benchmarks/write_gguf.py MODEL OUT.gguf [--type q4_k|q4_1]

For MLX checkpoints of qwen3_5_moe with 4 bits (and 8, below). Matrices of 4 bits become Q4_K (or
Q4_1: also where 256 does not divide a row); the router, the shared expert's gate and matrices of 8
bits become F32, dequantised, and so do vectors. Head order and signs are llama.cpp's: gguf_blocks
has the order of V heads; ssm_a is -exp(A_log); norms have their 1 already in MLX's layout. There is
no tokenizer in the file, and no MTP head.

Needs numpy and flash_moe; of the experts a fraction of one tensor is in memory at a time.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf_blocks as blocks
import gguf_file
import numpy as np
import numpy.typing as npt

from flash_moe.errors import ConfigError, FormatError
from flash_moe.geometry import Geometry, Json, geometry_of, load_config

ARCHITECTURE = "qwen35moe"
TYPE_IDS = {"f32": 0, "q4_1": 3, "q4_k": 12}
BLOCKS = {
    "q4_k": (256, blocks.Q4_K_BYTES, blocks.q4_k),
    "q4_1": (32, blocks.Q4_1_BYTES, blocks.q4_1),
}
FILE_TYPES = {"q4_1": 3, "q4_k": 14}  # what llama.cpp prints as the file's type
CHUNK_WEIGHTS = 1 << 18  # packed at a time: small enough for a cache and malloc's heap
DTYPES = {"U32": np.uint32, "BF16": np.uint16, "F32": np.float32, "F16": np.float16}
FULL_PRECISION = ("mlp.gate", "mlp.shared_expert_gate")
SECTIONS_DEFAULT = [11, 11, 10]

# Modules of a layer: name in the checkpoint, name in GGUF.
MATRICES = {
    "linear_attn.in_proj_qkv": "attn_qkv.weight",
    "linear_attn.in_proj_z": "attn_gate.weight",
    "linear_attn.in_proj_b": "ssm_beta.weight",
    "linear_attn.in_proj_a": "ssm_alpha.weight",
    "linear_attn.out_proj": "ssm_out.weight",
    "self_attn.q_proj": "attn_q.weight",
    "self_attn.k_proj": "attn_k.weight",
    "self_attn.v_proj": "attn_v.weight",
    "self_attn.o_proj": "attn_output.weight",
    "mlp.gate": "ffn_gate_inp.weight",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp.weight",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp.weight",
    "mlp.shared_expert.up_proj": "ffn_up_shexp.weight",
    "mlp.shared_expert.down_proj": "ffn_down_shexp.weight",
    "mlp.switch_mlp.gate_proj": "ffn_gate_exps.weight",
    "mlp.switch_mlp.up_proj": "ffn_up_exps.weight",
    "mlp.switch_mlp.down_proj": "ffn_down_exps.weight",
}
VECTORS = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "linear_attn.conv1d.weight": "ssm_conv1d.weight",
    "linear_attn.A_log": "ssm_a",
    "linear_attn.dt_bias": "ssm_dt.bias",
    "linear_attn.norm.weight": "ssm_norm.weight",
}

Array = npt.NDArray[Any]


def floats_of(values: Array) -> blocks.Floats:
    """Returns values of a checkpoint, bfloat16 as uint16, as float32."""
    return blocks.float32_of(values) if values.dtype == np.uint16 else values.astype(np.float32)


class Checkpoint:
    """The tensors of a folder, mapped, not read."""

    def __init__(self, folder: Path) -> None:
        """Reads the headers.

        Raises:
            FormatError: when a header is damaged, or there is none.
        """
        self._places: dict[str, tuple[Path, int, Any]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            try:
                with path.open("rb") as file:
                    (length,) = struct.unpack("<Q", file.read(8))
                    header = json.loads(file.read(length))
            except (struct.error, ValueError) as error:
                raise FormatError(f"{path}: header: {error}") from error
            header.pop("__metadata__", None)
            for name, entry in header.items():
                self._places[name] = (path, 8 + length, entry)
        if not self._places:
            raise FormatError(f"{folder}: there are no *.safetensors")

    def __getitem__(self, name: str) -> Array:
        """Returns a tensor, bfloat16 as uint16.

        Raises:
            FormatError: when it is missing, or of a type that MLX's conversions do not have.
        """
        if name not in self._places:
            raise FormatError(f"there is no tensor {name}: is this an MLX checkpoint of 4 bits?")
        path, start, entry = self._places[name]
        if entry["dtype"] not in DTYPES:
            raise FormatError(f"{name}: wanted one of {', '.join(DTYPES)}, got {entry['dtype']}")
        place = start + entry["data_offsets"][0]
        mapped = np.memmap(path, DTYPES[entry["dtype"]], "r", place, tuple(entry["shape"]))
        return mapped.view(np.ndarray)

    def floats(self, name: str) -> blocks.Floats:
        """Returns a tensor as float32."""
        return floats_of(self[name])


@dataclass(frozen=True)
class Tensor:
    """One tensor of the file; `shape` is numpy's, GGUF's is the other way round."""

    name: str
    shape: tuple[int, ...]
    kind: str
    data: Callable[[], Iterator[Array]]  # in chunks

    @property
    def size(self) -> int:
        """Its bytes, without padding."""
        count = math.prod(self.shape)
        if self.kind == "f32":
            return 4 * count
        weights, size, _ = BLOCKS[self.kind]
        return count // weights * size


class Converter:
    """Yields the GGUF tensors of one checkpoint."""

    def __init__(self, checkpoint: Checkpoint, config: Json, kind: str) -> None:
        """Keeps what every tensor needs; `kind` is that of matrices of 4 bits."""
        self._checkpoint, self._geometry, self._kind = checkpoint, geometry_of(config), kind
        self._settings: Json = config.get("quantization") or {}

    def tensors(self) -> Iterator[Tensor]:
        """Yields them all."""
        prefix = self._geometry.prefix
        yield self._matrix(f"{prefix}model.embed_tokens", "token_embd.weight")
        yield self._vector(f"{prefix}model.norm.weight", "output_norm.weight")
        if not self._geometry.tied:
            yield self._matrix(f"{prefix}lm_head", "output.weight")
        for layer, full in enumerate(self._geometry.full_attention):
            before, after = f"{prefix}model.layers.{layer}.", f"blk.{layer}."
            other_mixer = "linear_attn." if full else "self_attn."
            for names, convert in ((VECTORS, self._vector), (MATRICES, self._matrix)):
                for name, gguf_name in names.items():
                    if not name.startswith(other_mixer):
                        yield convert(before + name, after + gguf_name)

    def _order(self, name: str, rows: int) -> Array | None:
        """The order of a tensor's rows, None where it stays."""
        g, leaf = self._geometry, name.rsplit("linear_attn.", 1)[-1]
        if leaf in ("in_proj_z", "in_proj_qkv", "conv1d.weight"):
            values = blocks.tiled(g.linear_key_heads, g.linear_value_heads, g.linear_value_dim)
            keys = rows - len(values)
            return np.concatenate([np.arange(keys), keys + values])
        if leaf in ("in_proj_a", "in_proj_b", "A_log", "dt_bias"):
            return blocks.tiled(g.linear_key_heads, g.linear_value_heads, 1)
        return None

    def _vector(self, name: str, gguf_name: str) -> Tensor:
        shape = tuple(self._checkpoint[name].shape)
        if name.endswith("conv1d.weight"):  # [channels, taps, 1] in MLX's layout
            shape = shape[:2]

        def data() -> Iterator[Array]:
            values = self._checkpoint.floats(name).reshape(shape)
            order = self._order(name, shape[0])
            values = values if order is None else values[order]
            yield -np.exp(values) if name.endswith("A_log") else values

        return Tensor(gguf_name, shape, "f32", data)

    def _matrix(self, name: str, gguf_name: str) -> Tensor:
        leaves = [self._checkpoint[f"{name}.{leaf}"] for leaf in ("weight", "scales", "biases")]
        bits = self._bits(name)
        columns = leaves[0].shape[-1] * 32 // bits
        shape = (*leaves[0].shape[:-1], columns)
        kind = self._kind if columns % BLOCKS[self._kind][0] == 0 else "q4_1"
        if bits != 4 or name.endswith(FULL_PRECISION):
            kind = "f32"
        if name.endswith("shared_expert_gate"):
            shape = (columns,)

        def data() -> Iterator[Array]:
            parts = [leaf.reshape(-1, leaf.shape[-1]) for leaf in leaves]
            order = self._order(name, len(parts[0]))
            if order is not None:
                parts = [part[order] for part in parts]
            if name.endswith("linear_attn.out_proj"):
                parts = [self._in_tiles(name, part) for part in parts]
            step = max(1, CHUNK_WEIGHTS // columns)
            for start in range(0, len(parts[0]), step):
                words, scales, biases = (part[start : start + step] for part in parts)
                yield packed(words, floats_of(scales), floats_of(biases))

        def packed(words: Array, scales: blocks.Floats, biases: blocks.Floats) -> Array:
            if kind == "f32":
                return blocks.dequantised(blocks.codes_of(words, bits), scales, biases)
            return BLOCKS[kind][2](words.view(np.uint8), scales, biases)

        return Tensor(gguf_name, shape, kind, data)

    def _bits(self, name: str) -> int:
        own = self._settings.get(name, self._settings)
        if own.get("mode", "affine") != "affine" or own.get("bits") not in (4, 8):
            raise FormatError(f"{name}: wanted affine weights of 4 or 8 bits, got {own!r:.80}")
        return int(own["bits"])

    def _in_tiles(self, name: str, part: Array) -> Array:
        """Orders the columns of out_proj, which are V channels, in units of one head."""
        g = self._geometry
        if part.shape[-1] % g.linear_value_heads:
            raise FormatError(f"{name}: a scale is shared by V heads that GGUF keeps apart")
        heads = part.reshape(len(part), g.linear_value_heads, -1)
        order = blocks.tiled(g.linear_key_heads, g.linear_value_heads, 1)
        return heads[:, order].reshape(part.shape)


def metadata_of(config: Json, geometry: Geometry, kind: str) -> Json:
    """Returns the key-value pairs: ints become uint32, floats float32, lists arrays of int32.

    Raises:
        ConfigError: when full attention comes in no fixed interval.
    """
    text, g = config.get("text_config", config), geometry
    rope = text.get("rope_parameters") or {}
    intervals = [
        i
        for i in range(1, g.layers + 2)
        if g.full_attention == tuple((layer + 1) % i == 0 for layer in range(g.layers))
    ]
    if not intervals:
        raise ConfigError("layer_types: wanted full attention in a fixed interval")
    own = {
        "block_count": g.layers,
        "context_length": int(text.get("max_position_embeddings", 32768)),
        "vocab_size": g.vocab,
        "embedding_length": g.hidden,
        "attention.head_count": g.heads,
        "attention.head_count_kv": g.kv_heads,
        "attention.key_length": g.head_dim,
        "attention.value_length": g.head_dim,
        "attention.layer_norm_rms_epsilon": float(text.get("rms_norm_eps", 1e-6)),
        "rope.freq_base": float(g.rope_theta),
        "rope.dimension_count": g.rotary_dim,
        "rope.dimension_sections": [*rope.get("mrope_section", SECTIONS_DEFAULT), 0],
        "expert_count": g.experts,
        "expert_used_count": g.top_k,
        "expert_feed_forward_length": g.inner,
        "expert_shared_feed_forward_length": g.shared_inner,
        "ssm.conv_kernel": g.conv_kernel,
        "ssm.state_size": g.linear_key_dim,
        "ssm.group_count": g.linear_key_heads,
        "ssm.time_step_rank": g.linear_value_heads,
        "ssm.inner_size": g.value_width,
        "full_attention_interval": intervals[-1],
    }
    return {
        "general.architecture": ARCHITECTURE,
        "general.name": "the weights of a flash_moe benchmark",
        "general.file_type": FILE_TYPES[kind],
        "general.quantization_version": 2,
        **{f"{ARCHITECTURE}.{key}": value for key, value in own.items()},
        "tokenizer.ggml.model": "no_vocab",
    }


def write_gguf(folder: Path, out: Path, kind: str = "q4_k") -> int:
    """Writes the file (".part" until it is whole) and returns its bytes.

    Raises:
        ConfigError: for another family than qwen3_5_moe.
        FormatError: when the checkpoint is not what this writes.
    """
    config = load_config(str(folder))
    geometry = geometry_of(config)
    if geometry.model_type not in ("qwen3_5_moe", "qwen3_5_moe_text"):
        raise ConfigError(f"{folder}: wanted qwen3_5_moe, got {geometry.model_type}")
    metadata = metadata_of(config, geometry, kind)
    tensors = list(Converter(Checkpoint(folder), config, kind).tensors())
    part = out.with_name(out.name + ".part")
    try:
        with part.open("wb") as file:
            places = [(t.name, t.shape, TYPE_IDS[t.kind], t.size) for t in tensors]
            file.write(gguf_file.header_of(metadata, places))
            for tensor in tensors:
                begin = file.tell()
                for chunk in tensor.data():
                    file.write(np.ascontiguousarray(chunk))
                if file.tell() - begin != tensor.size:
                    raise AssertionError(f"{tensor.name}: not {tensor.size} bytes")
                file.write(gguf_file.padding(tensor.size))
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return out.stat().st_size


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(description="Writes a folder of flash-moe synth as GGUF.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--type", choices=tuple(BLOCKS), default="q4_k", help="default: q4_k")
    args = parser.parse_args()
    try:
        size = write_gguf(args.folder, args.out, args.type)
    except (ConfigError, FormatError, OSError) as error:
        print(f"write_gguf.py: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {size / 1e9:.2f} GB", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
