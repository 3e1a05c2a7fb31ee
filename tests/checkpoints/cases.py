"""The registry: every tiny checkpoint by name, with its geometry, layout and seed."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from . import huggingface_layout, mlx_layout
from .geometry import Geometry
from .huggingface_layout import HuggingFaceLayout
from .mlx_format import MXFP4, MXFP8, NVFP4, Quantisation
from .mlx_layout import MlxLayout


@dataclass(frozen=True)
class Case:
    """One checkpoint folder. `seed` decides every weight and the golden's prompt."""

    geometry: Geometry
    layout: HuggingFaceLayout | MlxLayout
    seed: int
    tokens: int = 48


SMALL = Geometry()
NEXT = replace(SMALL, model_type="qwen3_next")
MOE = replace(SMALL, model_type="qwen3_moe", layer_types="FFF", rotary_fraction=1.0)
VISION = replace(SMALL, model_type="qwen3_5_moe", mtp_layers=1)
HF = HuggingFaceLayout()
PER_EXPERT = HuggingFaceLayout(fused_experts=False)

ODD = replace(
    SMALL, hidden=80, heads=6, kv_heads=3, head_dim=24, linear_key_heads=3, linear_value_heads=3,
    linear_key_dim=12, linear_value_dim=20, experts=7, inner=40, shared_inner=24,
    layer_types="LLFL",
)  # fmt: skip
EXPERTS_512 = replace(
    SMALL, hidden=32, experts=512, top_k=10, inner=8, shared_inner=8, layer_types="LF"
)
FP8 = replace(
    SMALL, hidden=128, head_dim=32, linear_key_dim=32, linear_value_dim=32, inner=192,
    shared_inner=128,
    layer_types="LF", experts=6, top_k=2,
)  # fmt: skip
LONG = replace(SMALL, hidden=96, head_dim=64, linear_key_dim=32, linear_value_dim=32)

# Input widths are multiples of 128, so that every group size divides them.
MLX = Geometry(
    model_type="qwen3_5_moe", hidden=128, layer_types="LF", linear_key_dim=32, linear_value_dim=32,
    experts=6, top_k=2, inner=128, shared_inner=128,
)  # fmt: skip
MLX_DEEP = replace(MLX, layer_types="LLLF", inner=64, shared_inner=64, experts=8)
MLX_NEXT = replace(MLX, model_type="qwen3_next")
MLX_MOE = replace(MLX, model_type="qwen3_moe", layer_types="FF", rotary_fraction=1.0)

MIXED = {
    "embed_tokens": Quantisation(6, 64),
    "lm_head": Quantisation(8, 32),
    "switch_mlp.down_proj": Quantisation(6, 32),
    "layers.0.mlp.switch_mlp.down_proj": Quantisation(3, 128),
    "self_attn.v_proj": Quantisation(5, 128),
    "self_attn.o_proj": None,
    "linear_attn.in_proj_a": None,
    "linear_attn.in_proj_b": Quantisation(2, 64),
}
ONLY_EXPERTS = {
    "embed_tokens": None, "lm_head": None, "_proj": None, "in_proj_qkv": None, "in_proj_z": None,
    "in_proj_a": None, "in_proj_b": None, "switch_mlp.gate_proj": Quantisation(4, 32),
    "switch_mlp.up_proj": Quantisation(4, 32), "switch_mlp.down_proj": Quantisation(4, 32),
}  # fmt: skip


def _affine(bits: int, group: int, **options: object) -> MlxLayout:
    return MlxLayout(Quantisation(bits, group), **options)


CASES: dict[str, Case] = {
    "hf_bf16": Case(SMALL, HF, seed=1),
    "hf_f32": Case(SMALL, HuggingFaceLayout(dtype="F32"), seed=2),
    "hf_f16": Case(SMALL, HuggingFaceLayout(dtype="F16"), seed=3),
    "hf_per_expert": Case(SMALL, PER_EXPERT, seed=4),
    "hf_sharded": Case(SMALL, HuggingFaceLayout(shards=3), seed=5),
    "hf_vision_mtp": Case(VISION, HF, seed=6),
    "hf_vision_mtp_per_expert": Case(
        VISION, replace(PER_EXPERT, f32_state=False, shards=2), seed=7
    ),
    "hf_next": Case(NEXT, PER_EXPERT, seed=8),
    "hf_next_mtp": Case(replace(NEXT, mtp_layers=1, linear_value_heads=8), HF, seed=9),
    "hf_moe": Case(MOE, PER_EXPERT, seed=10),
    "hf_moe_tied_unnormalised": Case(
        replace(MOE, tied=True, norm_topk_prob=False), PER_EXPERT, seed=11
    ),
    "hf_tied": Case(replace(SMALL, tied=True), HF, seed=112),
    "hf_odd_heads": Case(ODD, HF, seed=13),
    "hf_experts_512": Case(EXPERTS_512, HF, seed=14),
    "hf_full_attention": Case(replace(SMALL, layer_types="FFF"), HF, seed=15),
    "hf_linear_attention": Case(replace(SMALL, layer_types="LLL"), HF, seed=16),
    "hf_heads_ratio_1": Case(replace(SMALL, linear_value_heads=2), HF, seed=17),
    "hf_heads_ratio_4": Case(replace(SMALL, linear_value_heads=8, kv_heads=1), HF, seed=18),
    "hf_top_1": Case(replace(SMALL, top_k=1), HF, seed=119),
    "hf_top_all": Case(replace(SMALL, top_k=8), HF, seed=20),
    "hf_fp8": Case(FP8, HuggingFaceLayout(fp8=True), seed=21),
    "hf_fp8_f32_scales": Case(FP8, HuggingFaceLayout(fp8=True, fp8_scale_dtype="F32"), seed=22),
    "hf_long": Case(LONG, HF, seed=23, tokens=3000),
    "mlx_4bit_g64": Case(MLX_DEEP, _affine(4, 64), seed=31),
    "mlx_2bit_g32": Case(MLX, _affine(2, 32), seed=232),
    "mlx_2bit_g128": Case(MLX, _affine(2, 128), seed=33),
    "mlx_3bit_g64": Case(MLX, _affine(3, 64), seed=34),
    "mlx_4bit_g32": Case(MLX, _affine(4, 32), seed=35),
    "mlx_4bit_g128": Case(MLX, _affine(4, 128), seed=36),
    "mlx_5bit_g32": Case(MLX, _affine(5, 32), seed=137),
    "mlx_6bit_g128": Case(MLX, _affine(6, 128), seed=38),
    "mlx_8bit_g64": Case(MLX, _affine(8, 64), seed=39),
    "mlx_mixed": Case(MLX, _affine(4, 64, overrides=MIXED), seed=40),
    "mlx_only_experts": Case(MLX, _affine(4, 64, overrides=ONLY_EXPERTS, routers=None), seed=41),
    "mlx_low_bit_routers": Case(MLX, _affine(4, 64, routers=Quantisation(4, 64)), seed=242),
    "mlx_f16": Case(MLX, _affine(4, 64, dtype="F16"), seed=43),
    "mlx_f32": Case(MLX, _affine(3, 32, dtype="F32"), seed=44),
    "mlx_vision_sharded": Case(MLX, _affine(4, 64, vision=True, shards=2), seed=45),
    "mlx_tied": Case(replace(MLX, tied=True), _affine(6, 64), seed=46),
    "mlx_bf16": Case(replace(MLX, inner=64), MlxLayout(default=None), seed=47),
    "mlx_next": Case(MLX_NEXT, _affine(4, 64), seed=48),
    "mlx_moe": Case(MLX_MOE, _affine(4, 64), seed=49),
    "mlx_moe_tied_unnormalised": Case(
        replace(MLX_MOE, tied=True, norm_topk_prob=False), _affine(5, 64), seed=50
    ),
    "mlx_mxfp4": Case(MLX, MlxLayout(MXFP4), seed=51),
    "mlx_mxfp8": Case(MLX, MlxLayout(MXFP8), seed=52),
    "mlx_nvfp4": Case(MLX, MlxLayout(NVFP4), seed=353),
}


def make(name: str, folder: Path | str) -> Path:
    """Writes the case's checkpoint into `folder` (made if absent) and returns it."""
    case = CASES[name]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    is_mlx = isinstance(case.layout, MlxLayout)
    writer = mlx_layout.write_folder if is_mlx else huggingface_layout.write_folder
    writer(folder, case.geometry, case.seed, case.layout)
    return folder


def model_hash(folder: Path) -> str:
    """Returns sha256 over the names and bytes of config.json, the index and the weight files."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors" or path.name in (
            "config.json",
            "model.safetensors.index.json",
        ):
            data = path.read_bytes()
            digest.update(f"{path.name}\0{len(data)}\0".encode())
            digest.update(data)
    return digest.hexdigest()
