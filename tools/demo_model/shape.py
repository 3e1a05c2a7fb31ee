"""The demo model's shape: one function that builds the transformers configuration.

Owns every number of the architecture; training, export and evaluation read them from here or from
the saved ``config.json``, never from a literal of their own.
"""

from __future__ import annotations

from transformers import Qwen3_5MoeTextConfig

VOCAB_SIZE = 4096


def demo_config(special_ids: dict[str, int] | None = None) -> Qwen3_5MoeTextConfig:
    """Builds the configuration of the demo model.

    Every width is a multiple of 64, so that quantisation groups of 32 and 64 fit each matrix. 48
    experts instead of a power of two keep the 4-bit folder under 20 MB with everything that is not
    an expert at 8 bits.

    Args:
        special_ids: Ids of ``<|endoftext|>`` and ``<|im_end|>``, by content, when known.

    Returns:
        The configuration, with eager-independent defaults only.
    """
    special_ids = special_ids or {}
    return Qwen3_5MoeTextConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=8192,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 100000.0,
            "partial_rotary_factor": 0.25,
            "mrope_section": [3, 3, 2],
            "mrope_interleaved": True,
        },
        linear_conv_kernel_dim=4,
        linear_key_head_dim=64,
        linear_value_head_dim=64,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        moe_intermediate_size=64,
        shared_expert_intermediate_size=64,
        num_experts=48,
        num_experts_per_tok=8,
        layer_types=["full_attention" if (i + 1) % 4 == 0 else "linear_attention" for i in range(8)],
        initializer_range=0.02,
        pad_token_id=special_ids.get("<|endoftext|>"),
        eos_token_id=special_ids.get("<|im_end|>"),
    )
