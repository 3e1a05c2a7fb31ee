"""Holds checkpoints/mlx_format.py against mlx itself: every bit width, group and mode.

`python -m golden.check_mlx_format` in an environment with mlx. Our words through mx.dequantize and
mlx's words through our dequantise must give the same float32 values (mlx may fuse the
multiplication with the addition: 1 ulp of the bias).
"""

import sys

import mlx.core as mx
import numpy as np
from checkpoints.mlx_format import MXFP4, MXFP8, NVFP4, Quantisation, dequantise, quantise
from checkpoints.number_formats import bf16_decode, e2m1_encode, e4m3_encode
from checkpoints.random_numbers import normal
from checkpoints.safetensors_file import Stored

from golden.golden_file import relative_difference

ROUNDING = 2e-7
AFFINE = [Quantisation(bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)]


def to_mlx(stored: Stored) -> mx.array:
    """Returns a stored tensor as an mlx array, 16-bit floats widened to float32."""
    if stored.dtype == "BF16":
        return mx.array(bf16_decode(stored.data))
    return mx.array(stored.data.astype(np.float32) if stored.dtype == "F16" else stored.data)


def ours_through_mlx(weight: np.ndarray, how: Quantisation, scale_dtype: str) -> float:
    """Our quantiser and packing, read by mlx and by us."""
    parts = quantise(weight, how, scale_dtype)
    arrays = [to_mlx(parts[leaf]) for leaf in ("weight", "scales", "biases") if leaf in parts]
    read = mx.dequantize(
        *arrays, group_size=how.group, bits=how.bits, mode=how.mode, dtype=mx.float32
    )
    return relative_difference(dequantise(parts, how), np.array(read))


def mlx_through_ours(weight: np.ndarray, how: Quantisation) -> float:
    """mlx's quantiser and packing, read by mlx and by us."""
    arrays = mx.quantize(mx.array(weight), group_size=how.group, bits=how.bits, mode=how.mode)
    read = mx.dequantize(
        *arrays, group_size=how.group, bits=how.bits, mode=how.mode, dtype=mx.float32
    )
    parts = {"weight": Stored("U32", np.array(arrays[0]))}
    parts["scales"] = Stored("F32" if how.mode == "affine" else "U8", np.array(arrays[1]))
    if how.mode == "affine":
        parts["biases"] = Stored("F32", np.array(arrays[2]))
    return relative_difference(dequantise(parts, how), np.array(read))


def quantiser_error(weight: np.ndarray, how: Quantisation) -> tuple[float, float]:
    """Root mean square error of our quantiser and of mlx's."""
    ours = dequantise(quantise(weight, how, "F32"), how)
    arrays = mx.quantize(mx.array(weight), group_size=how.group, bits=how.bits, mode=how.mode)
    theirs = np.array(
        mx.dequantize(*arrays, group_size=how.group, bits=how.bits, mode=how.mode, dtype=mx.float32)
    )
    return float(np.sqrt(np.mean((ours - weight) ** 2))), float(
        np.sqrt(np.mean((theirs - weight) ** 2))
    )


def main() -> int:
    """Checks every format; prints one line each."""
    mx.set_default_device(mx.cpu)
    weight = normal(7, "check_mlx_format", (3, 24, 384), 1.0)
    failures = 0
    for how in [*AFFINE, MXFP4, MXFP8, NVFP4]:
        dtypes = ("BF16", "F16", "F32") if how.mode == "affine" else ("BF16",)
        worst = max(ours_through_mlx(weight, how, dtype) for dtype in dtypes)
        back = mlx_through_ours(weight, how)
        ours, theirs = quantiser_error(weight, how)
        failures += max(worst, back) > ROUNDING
        print(
            f"{how.mode:6s} {how.bits} bits g{how.group:<3d}: ours by mlx {worst:.1e}, "
            f"mlx's by us {back:.1e}, rms error ours {ours:.4f} mlx {theirs:.4f}"
        )
    values = np.array([0.25, 0.75, 1.25, 2.5, 3.5, 5.0, 7.0, -0.6], np.float32)
    same = np.array(mx.to_fp8(mx.array(values)))
    failures += not np.array_equal(e4m3_encode(values), same)
    print(
        f"FP8 codes {e4m3_encode(values).tolist()} mlx {same.tolist()}; "
        f"FP4 codes {e2m1_encode(values).tolist()}"
    )
    print(f"{failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
