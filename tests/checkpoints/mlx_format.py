"""MLX's quantised storage in numpy, both directions: affine, mxfp4, mxfp8 and nvfp4.

Rows are quantised in groups along the last axis. Element i of a row is bits [i * b, (i + 1) * b)
of one little-endian stream that is viewed as uint32 words. tests/golden/check_mlx_format.py holds
this file against mlx.
"""

from dataclasses import dataclass

import numpy as np

from .number_formats import (
    bf16_decode,
    bf16_encode,
    e2m1_decode,
    e2m1_encode,
    e4m3_decode,
    e4m3_encode,
    e8m0_decode,
    e8m0_encode_up,
)
from .safetensors_file import Stored

E2M1_MAX = 6.0
E4M3_MAX = 448.0


@dataclass(frozen=True)
class Quantisation:
    """One module's entry of config.json "quantization"."""

    bits: int = 4
    group: int = 64
    mode: str = "affine"

    def json(self) -> dict[str, int | str]:
        """Returns the entry as config.json writes it."""
        return {"group_size": self.group, "bits": self.bits, "mode": self.mode}


MXFP4 = Quantisation(4, 32, "mxfp4")
MXFP8 = Quantisation(8, 32, "mxfp8")
NVFP4 = Quantisation(4, 16, "nvfp4")


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Packs uint8 codes [..., n] into uint32 words [..., n * bits / 32]."""
    stream = np.unpackbits(codes[..., None], axis=-1, bitorder="little")[..., :bits]
    stream = stream.reshape(*codes.shape[:-1], codes.shape[-1] * bits)
    return np.packbits(stream, axis=-1, bitorder="little").view("<u4")


def unpack(words: np.ndarray, bits: int) -> np.ndarray:
    """Returns the uint8 codes [..., n] of packed uint32 words."""
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=-1, bitorder="little")
    stream = stream.reshape(*words.shape[:-1], -1, bits)
    return np.packbits(stream, axis=-1, bitorder="little")[..., 0]


def _store_scale(values: np.ndarray, dtype: str) -> tuple[Stored, np.ndarray]:
    """Rounds to a scale dtype; returns the stored tensor and its value in float64."""
    if dtype == "BF16":
        bits = bf16_encode(values)
        return Stored(dtype, bits), bf16_decode(bits).astype(np.float64)
    data = values.astype({"F16": "<f2", "F32": "<f4"}[dtype])
    return Stored(dtype, data), data.astype(np.float64)


def _quantise_affine(
    groups: np.ndarray, bits: int, scale_dtype: str
) -> tuple[np.ndarray, Stored, Stored]:
    """As in MLX the end of larger size is the bias, so that scales have both signs."""
    low, high = groups.min(axis=-1), groups.max(axis=-1)
    from_low = np.abs(low) > np.abs(high)
    step = np.maximum((high - low) / (2**bits - 1), 1e-7)
    scales, scale = _store_scale(np.where(from_low, step, -step), scale_dtype)
    biases, bias = _store_scale(np.where(from_low, low, high), scale_dtype)
    codes = np.rint((groups - bias[..., None]) / scale[..., None])
    return np.clip(codes, 0, 2**bits - 1).astype(np.uint8), scales, biases


def _quantise_float(groups: np.ndarray, mode: str) -> tuple[np.ndarray, Stored]:
    """value = element * scale with a small-float element and a U8 scale."""
    largest = np.abs(groups).max(axis=-1)
    element_max = E4M3_MAX if mode == "mxfp8" else E2M1_MAX
    wanted = np.maximum(largest / element_max, 2.0**-126)
    if mode == "nvfp4":
        scales = np.maximum(e4m3_encode(wanted), 1)  # code 0 would divide by zero
        scale = e4m3_decode(scales).astype(np.float64)
    else:
        scales = e8m0_encode_up(wanted)
        scale = e8m0_decode(scales).astype(np.float64)
    encode = e4m3_encode if mode == "mxfp8" else e2m1_encode
    return encode(groups / scale[..., None]), Stored("U8", scales)


def quantise(weight: np.ndarray, how: Quantisation, scale_dtype: str) -> dict[str, Stored]:
    """Returns the module's tensors by leaf name: weight, scales and, when affine, biases.

    Args:
        weight: [..., columns] f32; columns must be a multiple of the group.
        how: bits, group and mode.
        scale_dtype: BF16, F16 or F32, for affine scales and biases.
    """
    groups = weight.astype(np.float64).reshape(*weight.shape[:-1], -1, how.group)
    out = {}
    if how.mode == "affine":
        codes, out["scales"], out["biases"] = _quantise_affine(groups, how.bits, scale_dtype)
    else:
        codes, out["scales"] = _quantise_float(groups, how.mode)
    return {"weight": Stored("U32", pack(codes.reshape(weight.shape), how.bits)), **out}


def dequantise(parts: dict[str, Stored], how: Quantisation) -> np.ndarray:
    """Returns float32 weights [..., columns]; each value is rounded once, from float64."""
    codes = unpack(parts["weight"].data, how.bits)
    scales = parts["scales"]
    if how.mode == "affine":
        elements = codes.astype(np.float64)
        scale, bias = (float_values(parts[leaf]) for leaf in ("scales", "biases"))
    else:
        elements = (e4m3_decode if how.mode == "mxfp8" else e2m1_decode)(codes).astype(np.float64)
        scale = (e4m3_decode if how.mode == "nvfp4" else e8m0_decode)(scales.data).astype(
            np.float64
        )
        bias = np.zeros_like(scale)
    groups = elements.reshape(*codes.shape[:-1], -1, how.group)
    values = groups * scale[..., None] + bias[..., None]
    return values.reshape(codes.shape).astype(np.float32)


def float_values(stored: Stored) -> np.ndarray:
    """Returns BF16, F16 or F32 as float64."""
    if stored.dtype == "BF16":
        return bf16_decode(stored.data).astype(np.float64)
    return stored.data.astype(np.float64)
