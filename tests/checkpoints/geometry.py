"""Model geometries: from a few numbers to config.json values and named float32 weights.

Names are those of a text-only checkpoint without the leading "model.":
"layers.0.linear_attn.conv1d.weight". The layout modules add prefixes, split or stack experts, move
axes and choose number formats.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .random_numbers import normal, uniform

CONV_KERNEL = 4
ROPE_THETA = 1e7
NORM_EPS = 1e-6
ROUTER_STD = 2.5  # of a router logit: spread enough that near ties are rare
LOGIT_STD = 2.0
VOCAB = 320


@dataclass(frozen=True)
class Geometry:
    """Every dimension of a tiny model; unequal on purpose where the format allows it."""

    model_type: str = "qwen3_5_moe_text"
    hidden: int = 64
    layer_types: str = "LLLF"  # L linear attention (GatedDeltaNet), F full attention
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    linear_key_heads: int = 2
    linear_value_heads: int = 4
    linear_key_dim: int = 16
    linear_value_dim: int = 16
    experts: int = 8
    top_k: int = 3
    inner: int = 32
    shared_inner: int = 48
    rotary_fraction: float = 0.25
    max_positions: int = 4096
    tied: bool = False
    norm_topk_prob: bool = True
    mtp_layers: int = 0
    vocab: int = VOCAB

    @property
    def key_width(self) -> int:
        """Rows of the linear layers' q, and of k."""
        return self.linear_key_heads * self.linear_key_dim

    @property
    def value_width(self) -> int:
        """Rows of the linear layers' v, and of z."""
        return self.linear_value_heads * self.linear_value_dim

    @property
    def zero_centred_norms(self) -> bool:
        """True where the Hugging Face norm weight w means a factor of 1 + w."""
        return self.model_type != "qwen3_moe"


Shape = tuple[int, ...]


def full_attention_shapes(g: Geometry) -> Iterator[tuple[str, Shape]]:
    """Yields the tensors of one full-attention mixer."""
    gates = 1 if g.model_type == "qwen3_moe" else 2
    yield "self_attn.q_proj.weight", (gates * g.heads * g.head_dim, g.hidden)
    yield "self_attn.k_proj.weight", (g.kv_heads * g.head_dim, g.hidden)
    yield "self_attn.v_proj.weight", (g.kv_heads * g.head_dim, g.hidden)
    yield "self_attn.o_proj.weight", (g.hidden, g.heads * g.head_dim)
    yield "self_attn.q_norm.weight", (g.head_dim,)
    yield "self_attn.k_norm.weight", (g.head_dim,)


def linear_attention_shapes(g: Geometry) -> Iterator[tuple[str, Shape]]:
    """Yields the tensors of one GatedDeltaNet mixer."""
    qkv = 2 * g.key_width + g.value_width
    if g.model_type == "qwen3_next":
        yield "linear_attn.in_proj_qkvz.weight", (qkv + g.value_width, g.hidden)
        yield "linear_attn.in_proj_ba.weight", (2 * g.linear_value_heads, g.hidden)
    else:
        yield "linear_attn.in_proj_qkv.weight", (qkv, g.hidden)
        yield "linear_attn.in_proj_z.weight", (g.value_width, g.hidden)
        yield "linear_attn.in_proj_b.weight", (g.linear_value_heads, g.hidden)
        yield "linear_attn.in_proj_a.weight", (g.linear_value_heads, g.hidden)
    yield "linear_attn.conv1d.weight", (qkv, 1, CONV_KERNEL)
    yield "linear_attn.A_log", (g.linear_value_heads,)
    yield "linear_attn.dt_bias", (g.linear_value_heads,)
    yield "linear_attn.norm.weight", (g.linear_value_dim,)
    yield "linear_attn.out_proj.weight", (g.hidden, g.value_width)


def moe_shapes(g: Geometry) -> Iterator[tuple[str, Shape]]:
    """Yields the tensors of one MoE block, experts fused as [experts, rows, columns]."""
    yield "mlp.gate.weight", (g.experts, g.hidden)
    yield "mlp.experts.gate_up_proj", (g.experts, 2 * g.inner, g.hidden)
    yield "mlp.experts.down_proj", (g.experts, g.hidden, g.inner)
    if g.model_type == "qwen3_moe":
        return
    yield "mlp.shared_expert.gate_proj.weight", (g.shared_inner, g.hidden)
    yield "mlp.shared_expert.up_proj.weight", (g.shared_inner, g.hidden)
    yield "mlp.shared_expert.down_proj.weight", (g.hidden, g.shared_inner)
    yield "mlp.shared_expert_gate.weight", (1, g.hidden)


def block_shapes(g: Geometry, layer_type: str) -> Iterator[tuple[str, Shape]]:
    """Yields the tensors of one layer."""
    yield "input_layernorm.weight", (g.hidden,)
    yield "post_attention_layernorm.weight", (g.hidden,)
    yield from (full_attention_shapes if layer_type == "F" else linear_attention_shapes)(g)
    yield from moe_shapes(g)


def text_shapes(g: Geometry) -> Iterator[tuple[str, Shape]]:
    """Yields every tensor of the text model, lm_head included unless tied; "mtp." ones last."""
    yield "embed_tokens.weight", (g.vocab, g.hidden)
    for index, layer_type in enumerate(g.layer_types):
        for name, shape in block_shapes(g, layer_type):
            yield f"layers.{index}.{name}", shape
    yield "norm.weight", (g.hidden,)
    if not g.tied:
        yield "lm_head.weight", (g.vocab, g.hidden)
    if g.mtp_layers:
        yield "mtp.fc.weight", (g.hidden, 2 * g.hidden)
        yield "mtp.pre_fc_norm_embedding.weight", (g.hidden,)
        yield "mtp.pre_fc_norm_hidden.weight", (g.hidden,)
        yield "mtp.norm.weight", (g.hidden,)
    for index in range(g.mtp_layers):
        for name, shape in block_shapes(g, "F"):
            yield f"mtp.layers.{index}.{name}", shape


def is_norm(name: str) -> bool:
    """True for the norms that qwen3_5_moe and qwen3_next store zero-centred."""
    if "linear_attn" in name:
        return False
    return "norm" in name.rsplit(".", 2)[-2]


def random_weight(g: Geometry, seed: int, name: str, shape: Shape) -> np.ndarray:
    """Returns float32 weights whose scale keeps activations and logits near 1."""
    if name.endswith("A_log"):
        return uniform(seed, name, shape, -3.0, 1.5)
    if name.endswith("dt_bias"):
        return uniform(seed, name, shape, -2.0, 1.0)
    if name.endswith("linear_attn.norm.weight"):
        return 1 + normal(seed, name, shape, 0.2)
    if is_norm(name):
        return normal(seed, name, shape, 0.2) + np.float32(0 if g.zero_centred_norms else 1)
    if name.endswith("conv1d.weight"):
        return normal(seed, name, shape, 0.6)
    fan_in = float(shape[-1])
    gain = 1.0
    if name.endswith("mlp.gate.weight"):
        gain = ROUTER_STD
    elif name == "lm_head.weight" or (g.tied and name == "embed_tokens.weight"):
        gain = LOGIT_STD
    elif name == "embed_tokens.weight":
        gain = float(np.sqrt(fan_in))
    return normal(seed, name, shape, gain / float(np.sqrt(fan_in)))


def text_weights(g: Geometry, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, float32 array) of every tensor in file order."""
    for name, shape in text_shapes(g):
        yield name, random_weight(g, seed, name, shape)


def vision_weights(g: Geometry, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yields a one-block vision tower under real names; text engines skip it."""
    width, inner = 32, 64
    merged = 4 * width
    shapes = {
        "patch_embed.proj.weight": (width, 3, 2, 4, 4),
        "patch_embed.proj.bias": (width,),
        "pos_embed.weight": (16, width),
        "blocks.0.norm1.weight": (width,),
        "blocks.0.norm1.bias": (width,),
        "blocks.0.norm2.weight": (width,),
        "blocks.0.norm2.bias": (width,),
        "blocks.0.attn.qkv.weight": (3 * width, width),
        "blocks.0.attn.qkv.bias": (3 * width,),
        "blocks.0.attn.proj.weight": (width, width),
        "blocks.0.attn.proj.bias": (width,),
        "blocks.0.mlp.linear_fc1.weight": (inner, width),
        "blocks.0.mlp.linear_fc1.bias": (inner,),
        "blocks.0.mlp.linear_fc2.weight": (width, inner),
        "blocks.0.mlp.linear_fc2.bias": (width,),
        "merger.norm.weight": (width,),
        "merger.norm.bias": (width,),
        "merger.linear_fc1.weight": (merged, merged),
        "merger.linear_fc1.bias": (merged,),
        "merger.linear_fc2.weight": (g.hidden, merged),
        "merger.linear_fc2.bias": (g.hidden,),
    }
    for name, shape in shapes.items():
        yield name, normal(seed, f"visual.{name}", shape, 0.1)
