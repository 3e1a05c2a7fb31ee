"""MLX's affine quantisation in numpy: packing as stored on disk, and the values it stands for.

A row is one little-endian bit stream of elements, viewed as uint32 words; groups run along the
input dimension; value = q * scale + bias, scale and bias bfloat16.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def to_bfloat16(values: Array) -> Array:
    """Rounds float32 to the nearest bfloat16 (ties to even), still as float32."""
    raw = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = raw + 0x7FFF + ((raw >> 16) & 1)
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)


def quantise(
    weights: Array, bits: int, group: int
) -> tuple[NDArray[np.uint32], Array, Array]:
    """Quantises the last dimension in groups.

    The edge of larger magnitude is hit exactly, as MLX does, and scale and bias are rounded to
    bfloat16 before the integers are chosen, so that the integers fit what will be read back.

    Args:
        weights: [..., inputs] float32, inputs a multiple of the group.
        bits: 2, 3, 4, 5, 6 or 8.
        group: 32, 64 or 128.

    Returns:
        Packed words [..., inputs * bits / 32], scales and biases [..., inputs / group], bfloat16
        values held in float32.
    """
    inputs = weights.shape[-1]
    if inputs % group or inputs * bits % 32:
        raise ValueError(f"want inputs in groups of {group} and whole words, got {inputs} inputs")
    grouped = weights.reshape(*weights.shape[:-1], inputs // group, group).astype(np.float32)
    low, high = grouped.min(-1), grouped.max(-1)
    levels = np.float32(2**bits - 1)
    scale = np.maximum((high - low) / levels, np.float32(1e-7))
    from_low = np.abs(low) > np.abs(high)
    scale = np.where(from_low, scale, -scale)
    edge = np.where(from_low, low, high)
    steps = np.rint(edge / scale)
    scale = np.where(steps != 0, edge / np.where(steps != 0, steps, 1), scale)
    bias = np.where(steps != 0, edge, np.float32(0))
    scale, bias = to_bfloat16(scale), to_bfloat16(bias)
    scale = np.where(scale == 0, to_bfloat16(np.float32(1e-7)), scale)
    codes = np.clip(np.rint((grouped - bias[..., None]) / scale[..., None]), 0, levels)
    codes = codes.astype(np.uint8).reshape(weights.shape)
    return pack(codes, bits), scale, bias


def pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint32]:
    """Packs codes [..., n] to words [..., n * bits / 32]."""
    if bits == 8:
        return np.ascontiguousarray(codes).view("<u4")
    if bits == 4:
        return np.ascontiguousarray(codes[..., 0::2] | codes[..., 1::2] << 4).view("<u4")
    stream = np.unpackbits(codes[..., None], axis=-1, bitorder="little")[..., :bits]
    stream = stream.reshape(*codes.shape[:-1], codes.shape[-1] * bits)
    return np.packbits(stream, axis=-1, bitorder="little").view("<u4")


def unpack(words: NDArray[np.uint32], bits: int) -> NDArray[np.uint8]:
    """The inverse of `pack`."""
    raw = np.ascontiguousarray(words).view(np.uint8)
    stream = np.unpackbits(raw, axis=-1, bitorder="little")
    stream = stream.reshape(*words.shape[:-1], words.shape[-1] * 32 // bits, bits)
    return np.packbits(stream, axis=-1, bitorder="little")[..., 0]


def dequantise(
    words: NDArray[np.uint32],
    scales: Array,
    biases: Array,
    bits: int,
) -> Array:
    """The float32 values that a quantised matrix stands for."""
    codes = unpack(words, bits).astype(np.float32)
    groups = scales.shape[-1]
    grouped = codes.reshape(*codes.shape[:-1], groups, codes.shape[-1] // groups)
    values = grouped * scales[..., None] + biases[..., None]
    return values.reshape(codes.shape)


def round_trip(weights: Array, bits: int, group: int) -> Array:
    """Weights after quantisation."""
    return dequantise(*quantise(weights, bits, group), bits)
