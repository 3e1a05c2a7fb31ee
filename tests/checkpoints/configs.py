"""config.json as each family's releases write it (key sets differ between families and tools)."""

from typing import Any

from .geometry import CONV_KERNEL, NORM_EPS, ROPE_THETA, Geometry
from .tokenizer_files import CONTROL_ID, END_OF_TEXT

Json = dict[str, Any]
LAYER_TYPE_NAMES = {"L": "linear_attention", "F": "full_attention"}
ARCHITECTURES = {
    "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration",
    "qwen3_5_moe_text": "Qwen3_5MoeForCausalLM",
    "qwen3_next": "Qwen3NextForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}


def _common(g: Geometry, dtype: str) -> Json:
    return {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": dtype,
        "eos_token_id": END_OF_TEXT,
        "head_dim": g.head_dim,
        "hidden_act": "silu",
        "hidden_size": g.hidden,
        "initializer_range": 0.02,
        "max_position_embeddings": g.max_positions,
        "moe_intermediate_size": g.inner,
        "num_attention_heads": g.heads,
        "num_experts": g.experts,
        "num_experts_per_tok": g.top_k,
        "num_hidden_layers": len(g.layer_types),
        "num_key_value_heads": g.kv_heads,
        "output_router_logits": False,
        "rms_norm_eps": NORM_EPS,
        "router_aux_loss_coef": 0.001,
        "tie_word_embeddings": g.tied,
        "use_cache": True,
        "vocab_size": g.vocab,
    }


def _linear(g: Geometry) -> Json:
    return {
        "linear_conv_kernel_dim": CONV_KERNEL,
        "linear_key_head_dim": g.linear_key_dim,
        "linear_num_key_heads": g.linear_key_heads,
        "linear_num_value_heads": g.linear_value_heads,
        "linear_value_head_dim": g.linear_value_dim,
        "shared_expert_intermediate_size": g.shared_inner,
    }


def _mrope_section(g: Geometry) -> list[int]:
    """Splits the rotary pairs among time, height and width (releases: 11 + 11 + 10)."""
    pairs = int(g.head_dim * g.rotary_fraction) // 2
    rest = pairs // 3
    return [pairs - 2 * rest, rest, rest]


def _interval(g: Geometry) -> int | None:
    """Returns n where every nth layer, and no other, has full attention."""
    interval = g.layer_types.find("F") + 1
    if interval == 0:
        return None
    letters = "".join("L" if (i + 1) % interval else "F" for i in range(len(g.layer_types)))
    return interval if letters == g.layer_types else None


def _qwen3_5_text(g: Geometry, dtype: str) -> Json:
    interval = {} if _interval(g) is None else {"full_attention_interval": _interval(g)}
    return {
        **_common(g, dtype),
        **_linear(g),
        **interval,
        "attn_output_gate": True,
        "layer_types": [LAYER_TYPE_NAMES[letter] for letter in g.layer_types],
        "mamba_ssm_dtype": "float32",
        "model_type": "qwen3_5_moe_text",
        "mtp_num_hidden_layers": g.mtp_layers,
        "mtp_use_dedicated_embeddings": False,
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": _mrope_section(g),
            "partial_rotary_factor": g.rotary_fraction,
            "rope_theta": ROPE_THETA,
            "rope_type": "default",
        },
    }


def _qwen3_next(g: Geometry, dtype: str) -> Json:
    """The release states the pattern as an interval and the rope settings at top level."""
    if _interval(g) is None:
        raise ValueError(f"qwen3_next states its layers as an interval, not as {g.layer_types}")
    return {
        **_common(g, dtype),
        **_linear(g),
        "decoder_sparse_step": 1,
        "full_attention_interval": _interval(g),
        "intermediate_size": 4 * g.hidden,
        "mlp_only_layers": [],
        "norm_topk_prob": g.norm_topk_prob,
        "partial_rotary_factor": g.rotary_fraction,
        "rope_scaling": None,
        "rope_theta": ROPE_THETA,
    }


def _qwen3_moe(g: Geometry, dtype: str) -> Json:
    return {
        **_common(g, dtype),
        "decoder_sparse_step": 1,
        "intermediate_size": 4 * g.hidden,
        "max_window_layers": len(g.layer_types),
        "mlp_only_layers": [],
        "norm_topk_prob": g.norm_topk_prob,
        "rope_scaling": None,
        "rope_theta": 1e6,
        "sliding_window": None,
        "use_sliding_window": False,
    }


def _vision(g: Geometry) -> Json:
    return {
        "depth": 1,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 32,
        "in_channels": 3,
        "intermediate_size": 64,
        "model_type": "qwen3_5_moe",
        "num_heads": 2,
        "num_position_embeddings": 16,
        "out_hidden_size": g.hidden,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }


def config(g: Geometry, dtype: str) -> Json:
    """Returns config.json; `dtype` is what the config claims, e.g. "bfloat16"."""
    head = {"architectures": [ARCHITECTURES[g.model_type]], "model_type": g.model_type}
    if g.model_type == "qwen3_5_moe":
        return {
            **head,
            "image_token_id": CONTROL_ID["<|image_pad|>"],
            "text_config": _qwen3_5_text(g, dtype),
            "tie_word_embeddings": g.tied,
            "video_token_id": CONTROL_ID["<|image_pad|>"],
            "vision_config": _vision(g),
            "vision_end_token_id": CONTROL_ID["<|vision_end|>"],
            "vision_start_token_id": CONTROL_ID["<|vision_start|>"],
        }
    body = {
        "qwen3_5_moe_text": _qwen3_5_text,
        "qwen3_next": _qwen3_next,
        "qwen3_moe": _qwen3_moe,
    }[g.model_type](g, dtype)
    return {**body, **head}
