"""Blocks of GGUF from MLX's affine weights, by numpy alone: Q4_K, Q4_1, and the order of V heads.

MLX: a weight is `code * scale + bias`, a scale and a bias for each group of a row; scales have both
signs. Q4_K: 256 weights `d * s * code - dmin * m`, with s and m of 6 bits for each 32 of them and d
and dmin float16, nothing negative; 4.5 bits a weight, as MLX's 4 bits with groups of 64. Q4_1: 32
weights `d * code + m`, both float16; 5 bits a weight.

Codes are kept. A negative scale is made positive by code -> 15 - code. Where all weights of a group
are above 0, which Q4_K cannot say, its codes are rounded anew over a range that starts at 0.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

SUPER_BLOCK, SUB_BLOCK = 256, 32
Q4_K_BYTES, Q4_1_BYTES = 144, 20
CODE_MAX, SIX_BITS_MAX = 15, 63
SIX_BITS_LEAST = 56  # the largest of a super-block's scales gets one of 56 to 63, the best


def codes_of(words: npt.NDArray[np.uint32], bits: int) -> Bytes:
    """Returns one code a byte.

    Args:
        words: [..., columns * bits / 32] of MLX's `.weight`.
        bits: 4 or 8.

    Raises:
        ValueError: on other bits.
    """
    packed = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return packed
    if bits != 4:
        raise ValueError(f"wanted codes of 4 or 8 bits, got {bits}")
    codes = np.empty((*packed.shape[:-1], 2 * packed.shape[-1]), dtype=np.uint8)
    codes[..., 0::2] = packed & 15
    codes[..., 1::2] = packed >> 4
    return codes


def float32_of(bits: npt.NDArray[np.uint16]) -> Floats:
    """Returns bfloat16, given as its bits, as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def dequantised(codes: Bytes, scales: Floats, biases: Floats) -> Floats:
    """Returns the weights [rows, columns] of codes [rows, columns], scales [rows, groups]."""
    groups = codes.reshape(*scales.shape, -1).astype(np.float32)
    return (groups * scales[..., None] + biases[..., None]).reshape(codes.shape)


def positive(packed: Bytes, scales: Floats, biases: Floats) -> tuple[Bytes, Floats, Floats]:
    """Returns the same weights as `scale * code - minimum` with neither below 0.

    Args:
        packed: [rows, columns / 2], two codes of 4 bits a byte, the first in its low bits.
        scales: [rows, groups].
        biases: [rows, groups].

    Returns:
        packed [rows, groups, width / 2], scales and minima [rows, groups].
    """
    grouped = packed.reshape(*scales.shape, -1)
    flipped = scales < 0
    grouped = grouped ^ (flipped * np.uint8(0xFF))[..., None]  # each code to 15 - code
    biases = np.where(flipped, biases + CODE_MAX * scales, biases)
    scales = np.abs(scales)
    above = np.nonzero(biases > 0)
    if len(above[0]):
        old, low = scales[above], biases[above]
        new = old + low / CODE_MAX
        values = codes_of(grouped[above].view(np.uint32), 4) * old[:, None] + low[:, None]
        codes = np.rint(values / new[:, None]).astype(np.uint8)
        grouped[above] = codes[:, 0::2] | codes[:, 1::2] << 4
        scales[above], biases[above] = new, 0
    return grouped, scales, -biases


def halves_in_bytes(packed: Bytes, width: int) -> Bytes:
    """Returns codes in GGUF's order: a byte has those of channels i and i + width / 2.

    Args:
        packed: bytes with those of channels 2 i and 2 i + 1.
        width: channels that are reordered among themselves.
    """
    parts = packed.reshape(-1, 2, width // 4).astype(np.uint16)
    first, second = parts[:, 0], parts[:, 1]
    even = first & 15 | (second & 15) << 4
    odd = first >> 4 | second & 0xF0
    return (even | odd << 8).view(np.uint8)


def six_bits(values: Floats) -> tuple[npt.NDArray[np.float16], Bytes]:
    """Returns (d, q) with d * q near values: of 8 sizes of d that with the least squared error.

    Args:
        values: [..., n], none below 0; n share a d.
    """
    columns = np.ascontiguousarray(values.reshape(-1, values.shape[-1]).T)  # sums run down
    largest = columns.max(axis=0)
    best_d = np.zeros(largest.shape, dtype=np.float32)
    best_q = np.zeros(columns.shape, dtype=np.float32)
    best_error = np.full(largest.shape, np.inf, dtype=np.float32)
    for top in range(SIX_BITS_MAX, SIX_BITS_LEAST - 1, -1):
        d = (largest / np.float32(top)).astype(np.float16).astype(np.float32)
        q = np.rint(columns / np.where(d > 0, d, np.float32(1)))
        np.minimum(q, SIX_BITS_MAX, out=q)
        error = np.square(q * d - columns).sum(axis=0)
        better = error < best_error
        np.copyto(best_d, d, where=better)
        np.copyto(best_q, q, where=better)
        np.copyto(best_error, error, where=better)
    half = best_d.astype(np.float16).reshape(values.shape[:-1])
    return half, best_q.T.astype(np.uint8).reshape(values.shape)


def packed_scales(scales: Bytes, minima: Bytes) -> Bytes:
    """Returns the 12 bytes that hold 8 scales and 8 minima of 6 bits: [..., 8] each."""
    out = np.empty((*scales.shape[:-1], 12), dtype=np.uint8)
    out[..., 0:4] = scales[..., :4] | (scales[..., 4:] >> 4) << 6
    out[..., 4:8] = minima[..., :4] | (minima[..., 4:] >> 4) << 6
    out[..., 8:12] = (scales[..., 4:] & 15) | (minima[..., 4:] & 15) << 4
    return out


def q4_k(packed: Bytes, scales: Floats, biases: Floats) -> Bytes:
    """Returns rows of Q4_K blocks: [rows, columns / 256 * 144].

    Args:
        packed: [rows, columns / 2] of MLX's codes, columns a multiple of 256.
        scales: [rows, groups], groups of 32 to 256 weights.
        biases: [rows, groups].
    """
    rows, blocks, groups = len(packed), 2 * packed.shape[1] // SUPER_BLOCK, scales.shape[1]
    grouped, steps, minima = positive(packed, scales, biases)
    repeat = SUPER_BLOCK // SUB_BLOCK * blocks // groups

    def shared(values: Floats) -> tuple[npt.NDArray[np.float16], Bytes]:
        d, q = six_bits(values.reshape(rows, blocks, groups // blocks))
        return d, np.repeat(q, repeat, axis=-1)

    out = np.empty((rows, blocks, Q4_K_BYTES), dtype=np.uint8)
    d, step_bits = shared(steps)
    d_min, minimum_bits = shared(minima)
    out[..., 0:2] = d[..., None].view(np.uint8)
    out[..., 2:4] = d_min[..., None].view(np.uint8)
    out[..., 4:16] = packed_scales(step_bits, minimum_bits)
    codes = halves_in_bytes(grouped, 2 * SUB_BLOCK)
    out[..., 16:] = codes.reshape(rows, blocks, SUPER_BLOCK // 2)
    return out.reshape(rows, blocks * Q4_K_BYTES)


def q4_1(packed: Bytes, scales: Floats, biases: Floats) -> Bytes:
    """Returns rows of Q4_1 blocks: [rows, columns / 32 * 20]. Arguments as of `q4_k`."""
    rows, blocks = len(packed), 2 * packed.shape[1] // SUB_BLOCK
    repeat = blocks // scales.shape[1]
    out = np.empty((rows, blocks, Q4_1_BYTES), dtype=np.uint8)
    for place, values in ((0, scales), (2, biases)):
        half = np.repeat(values.astype(np.float16), repeat, axis=1)
        out[..., place : place + 2] = half[..., None].view(np.uint8)
    codes = halves_in_bytes(packed, SUB_BLOCK)
    out[..., 4:] = codes.reshape(rows, blocks, SUB_BLOCK // 2)
    return out.reshape(rows, blocks * Q4_1_BYTES)


def tiled(key_heads: int, value_heads: int, width: int) -> npt.NDArray[np.intp]:
    """Returns where each V channel of GGUF's order stands in the checkpoint's.

    Checkpoints keep the V heads of one K head together; GGUF has the first V head of every K head,
    then the second of every one, because llama.cpp repeats K heads as whole rounds.
    """
    ratio = value_heads // key_heads
    places = np.arange(value_heads * width).reshape(key_heads, ratio, width)
    return places.transpose(1, 0, 2).reshape(-1)
