"""Writes the GGUF twin of any tiny checkpoint: float32, exactly the same weights, numpy alone.

What llama.cpp reads. Names, order and signs are those of llama.cpp's own converter, to which
make_llama.py holds this file tensor by tensor: GGUF stores norms as 1 + w, ssm_a as -exp(A_log),
one tensor for all experts, and for qwen3_5_moe the V heads tiled (all first heads of the key heads,
then all second ones). No MTP head, no vision tower.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import Case, as_float32
from checkpoints.geometry import CONV_KERNEL, NORM_EPS, Geometry, block_shapes, is_norm
from checkpoints.huggingface_layout import write_config
from checkpoints.safetensors_file import Stored, read_folder, write
from checkpoints.tokenizer_files import CONTROL_TOKENS, IM_END

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import gguf_blocks
import gguf_file

Arrays = dict[str, np.ndarray]

ARCHITECTURES = {
    "qwen3_5_moe": "qwen35moe",
    "qwen3_5_moe_text": "qwen35moe",
    "qwen3_next": "qwen3next",
    "qwen3_moe": "qwen3moe",
}
FLOAT32 = 0  # ggml's type id
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # types of tokens
LEAVES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "linear_attn.in_proj_qkv": "attn_qkv",
    "linear_attn.in_proj_z": "attn_gate",
    "linear_attn.in_proj_b": "ssm_beta",
    "linear_attn.in_proj_a": "ssm_alpha",
    "linear_attn.in_proj_ba": "ssm_ba",
    "linear_attn.conv1d": "ssm_conv1d",
    "linear_attn.norm": "ssm_norm",
    "linear_attn.out_proj": "ssm_out",
    "mlp.gate": "ffn_gate_inp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
}
OUTSIDE = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}


def with_both_layer_types(folder: Path, case: Case, target: Path) -> Path:
    """Returns the folder, or a copy with one layer more, which adds exactly 0 to the hidden state.

    llama.cpp aborts on a hybrid model without a layer of both kinds: one of its caches has no
    bytes. The layer is of the kind that lacks, and all its weights are 0.
    """
    g = case.geometry
    if g.model_type == "qwen3_moe" or {"L", "F"} <= set(g.layer_types):
        return folder
    letter, name = ("L", "linear_attention") if "F" in g.layer_types else ("F", "full_attention")
    config = json.loads((folder / "config.json").read_text())
    tensors = read_folder(folder)
    for leaf, shape in block_shapes(g, letter):
        zeros = np.zeros(shape, "<f4")
        tensors[f"model.layers.{config['num_hidden_layers']}.{leaf}"] = Stored("F32", zeros)
    config["num_hidden_layers"] += 1
    config["layer_types"].append(name)
    config.pop("full_attention_interval", None)
    target.mkdir(parents=True)
    write(target / "model.safetensors", tensors, {"format": "pt"})
    write_config(target, config)
    for file_name in as_float32.TOKENIZER_FILES:
        shutil.copyfile(folder / file_name, target / file_name)
    return target


def _tiled(values: np.ndarray, g: Geometry, axis: int = 0) -> np.ndarray:
    """Moves V heads, which share an axis with their channels, from grouped to tiled order."""
    if g.model_type == "qwen3_next":
        return values
    width = values.shape[axis] // g.linear_value_heads
    order = gguf_blocks.tiled(g.linear_key_heads, g.linear_value_heads, width)
    return values.take(order, axis)


def _split_qkvz(values: np.ndarray, g: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Returns Qwen3-Next's in_proj_qkvz, which goes by key head, as all of q, k, v; and z."""
    width = g.linear_value_heads // g.linear_key_heads * g.linear_value_dim
    heads = values.reshape(g.linear_key_heads, -1, g.hidden)
    ends = np.cumsum([g.linear_key_dim, g.linear_key_dim, width])
    q, k, v, z = (part.reshape(-1, g.hidden) for part in np.split(heads, ends, axis=1))
    return np.concatenate([q, k, v]), z


def _layer_tensors(leaf: str, values: np.ndarray, g: Geometry) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the GGUF tensors of one tensor of a layer."""
    stem, _, _ = leaf.rpartition(".")
    if leaf == "linear_attn.A_log":
        yield "ssm_a", _tiled(-np.exp(values), g)
    elif leaf == "linear_attn.dt_bias":
        yield "ssm_dt.bias", _tiled(values, g)
    elif stem == "linear_attn.in_proj_qkvz":
        yield from zip(("attn_qkv.weight", "attn_gate.weight"), _split_qkvz(values, g), strict=True)
    elif leaf == "mlp.experts.gate_up_proj":
        half = values.shape[1] // 2
        yield "ffn_gate_exps.weight", values[:, :half]
        yield "ffn_up_exps.weight", values[:, half:]
    elif leaf == "mlp.experts.down_proj":
        yield "ffn_down_exps.weight", values
    elif stem == "post_attention_layernorm":
        before = "ffn" if g.model_type == "qwen3_moe" else "post_attention"
        yield f"{before}_norm.weight", values
    else:
        if stem in ("linear_attn.in_proj_qkv", "linear_attn.conv1d"):
            values = values.reshape(len(values), -1)
            keys = 2 * g.key_width
            values = np.concatenate([values[:keys], _tiled(values[keys:], g)])
        elif stem in ("linear_attn.in_proj_z", "linear_attn.in_proj_a", "linear_attn.in_proj_b"):
            values = _tiled(values, g)
        elif stem == "linear_attn.out_proj":
            values = _tiled(values, g, axis=1)
        yield f"{LEAVES[stem]}.weight", values


def _stacked_experts(tensors: Arrays, experts: int) -> Arrays:
    """Returns the tensors with experts fused, which some folders keep apart."""
    out = {name: values for name, values in tensors.items() if ".mlp.experts." not in name}
    for name, values in tensors.items():
        stem, found, rest = name.partition(".mlp.experts.")
        if found and not rest[0].isdigit():
            out[name] = values
        elif found and rest == "0.gate_proj.weight":
            parts = {
                leaf: [tensors[f"{stem}{found}{i}.{leaf}.weight"] for i in range(experts)]
                for leaf in ("gate_proj", "up_proj", "down_proj")
            }
            both = [np.stack(parts[leaf]) for leaf in ("gate_proj", "up_proj")]
            out[f"{stem}{found}gate_up_proj"] = np.concatenate(both, axis=1)
            out[f"{stem}{found}down_proj"] = np.stack(parts["down_proj"])
    return out


def tensors_of(folder: Path, g: Geometry) -> Arrays:
    """Returns the GGUF tensors of a float32 Hugging Face folder, shapes as numpy has them."""
    named = {
        name.replace("model.language_model.", "model.", 1).removeprefix("model."): stored.data
        for name, stored in read_folder(folder).items()
        if not name.startswith(("mtp.", "model.visual."))
    }
    out: Arrays = {}
    for name, values in _stacked_experts(named, g.experts).items():
        if is_norm(name) and g.zero_centred_norms:
            values = values + np.float32(1)
        if not name.startswith("layers."):
            out[f"{OUTSIDE[name.removesuffix('.weight')]}.weight"] = values
            continue
        _, layer, leaf = name.split(".", 2)
        for gguf_name, part in _layer_tensors(leaf, values, g):
            out[f"blk.{layer}.{gguf_name}"] = np.ascontiguousarray(part, "<f4")
    return out


def _model_metadata(config: dict[str, Any], g: Geometry) -> dict[str, Any]:
    """Returns the keys that describe the model, without the architecture's prefix."""
    text = config.get("text_config", config)
    rope = text.get("rope_parameters") or {}
    out = {
        "block_count": text["num_hidden_layers"],
        "context_length": g.max_positions,
        "embedding_length": g.hidden,
        "attention.head_count": g.heads,
        "attention.head_count_kv": g.kv_heads,
        "attention.key_length": g.head_dim,
        "attention.value_length": g.head_dim,
        "attention.layer_norm_rms_epsilon": NORM_EPS,
        "rope.freq_base": float(rope.get("rope_theta") or text["rope_theta"]),
        "expert_count": g.experts,
        "expert_used_count": g.top_k,
        "expert_feed_forward_length": g.inner,
    }
    if "intermediate_size" in text:
        out["feed_forward_length"] = text["intermediate_size"]
    if g.model_type == "qwen3_moe":
        return out
    interval = text.get("full_attention_interval", 4)
    types = text.get("layer_types")
    recurrent = [(layer + 1) % interval != 0 for layer in range(text["num_hidden_layers"])]
    if types:
        recurrent = [name == "linear_attention" for name in types]
    if "mrope_section" in rope:
        out["rope.dimension_sections"] = [*rope["mrope_section"], 0]
    return {
        **out,
        "rope.dimension_count": int(g.head_dim * g.rotary_fraction),
        "expert_shared_feed_forward_length": g.shared_inner,
        "ssm.conv_kernel": CONV_KERNEL,
        "ssm.state_size": g.linear_key_dim,
        "ssm.group_count": g.linear_key_heads,
        "ssm.time_step_rank": g.linear_value_heads,
        "ssm.inner_size": g.value_width,
        "attention.recurrent_layers": recurrent,
    }


def metadata_of(folder: Path, g: Geometry) -> dict[str, Any]:
    """Returns the file's key-value pairs, the tokenizer's among them (llama.cpp wants one)."""
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    ids = {token: index for token, index in tokenizer["model"]["vocab"].items()}
    ids |= {added["content"]: added["id"] for added in tokenizer["added_tokens"]}
    tokens = [f"[PAD{index}]" for index in range(g.vocab)]
    types = [UNUSED] * g.vocab
    for token, index in ids.items():
        tokens[index] = token
        types[index] = NORMAL
        if token in CONTROL_TOKENS:
            types[index] = CONTROL if CONTROL_TOKENS[token] else USER_DEFINED
    architecture = ARCHITECTURES[g.model_type]
    described = _model_metadata(config, g)
    return {
        "general.architecture": architecture,
        **{f"{architecture}.{key}": value for key, value in described.items()},
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in tokenizer["model"]["merges"]],
        "tokenizer.ggml.eos_token_id": IM_END,
    }


def write_gguf(path: Path, metadata: dict[str, Any], tensors: Arrays) -> None:
    """Writes a GGUF file of version 3; all tensors are float32."""
    places = [(name, values.shape, FLOAT32, 4 * values.size) for name, values in tensors.items()]
    with path.open("wb") as file:
        file.write(gguf_file.header_of(metadata, places))
        for values in tensors.values():
            file.write(np.ascontiguousarray(values, "<f4"))
            file.write(gguf_file.padding(4 * values.size))


def convert(source: Path, case: Case, scratch: Path) -> Path:
    """Writes the GGUF twin of the folder `source` somewhere in `scratch` and returns its path."""
    folder = as_float32.convert(source, scratch / "float32")
    folder = with_both_layer_types(folder, case, scratch / "both")
    path = scratch / "twin.gguf"
    write_gguf(path, metadata_of(folder, case.geometry), tensors_of(folder, case.geometry))
    return path
