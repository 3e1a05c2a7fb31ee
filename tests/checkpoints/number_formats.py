"""Storage formats that numpy lacks, as integers and back: bfloat16, E4M3, E2M1, E8M0.

Every encoder rounds to nearest, ties to even, and saturates; NaN is not accepted.
"""

import numpy as np


def bf16_encode(values: np.ndarray) -> np.ndarray:
    """Returns float32 as bfloat16 bits, uint16 of the same shape."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32).astype(np.uint64)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)
    return (rounded >> 16).astype(np.uint16)


def bf16_decode(bits: np.ndarray) -> np.ndarray:
    """Returns bfloat16 bits (uint16) as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _minifloat_table(exponent_bits: int, mantissa_bits: int, bias: int) -> np.ndarray:
    codes = np.arange(1 << (exponent_bits + mantissa_bits), dtype=np.int64)
    exponent = codes >> mantissa_bits
    mantissa = (codes & ((1 << mantissa_bits) - 1)) / 2.0**mantissa_bits
    subnormal = mantissa * 2.0 ** (1 - bias)
    return np.where(exponent == 0, subnormal, (1 + mantissa) * 2.0 ** (exponent - bias))


E4M3_POSITIVE = _minifloat_table(4, 3, 7)[:127]  # 0x7F is NaN; the largest number is 448
E2M1_POSITIVE = _minifloat_table(2, 1, 1)  # 0 0.5 1 1.5 2 3 4 6


def _encode(values: np.ndarray, positive: np.ndarray, sign_bit: int) -> np.ndarray:
    """Nearest code of |value| in the rising table `positive`; a tie goes to the even code."""
    size = np.abs(values.astype(np.float64))
    middle = (positive[1:] + positive[:-1]) / 2
    below = np.searchsorted(middle, size, side="left")
    above = np.searchsorted(middle, size, side="right")
    code = np.where(below % 2 == 0, below, above)
    return (code + np.where(np.signbit(values), sign_bit, 0)).astype(np.uint8)


def e4m3_encode(values: np.ndarray) -> np.ndarray:
    """Returns FP8 E4M3 (the variant without infinities) codes, uint8."""
    return _encode(values, E4M3_POSITIVE, 0x80)


def e4m3_decode(codes: np.ndarray) -> np.ndarray:
    """Returns FP8 E4M3 codes as float32; the two NaN codes give NaN."""
    table = np.append(E4M3_POSITIVE, np.nan)
    return np.concatenate([table, -table]).astype(np.float32)[codes]


def e2m1_encode(values: np.ndarray) -> np.ndarray:
    """Returns FP4 E2M1 codes, uint8 in [0, 15]."""
    return _encode(values, E2M1_POSITIVE, 0x8)


def e2m1_decode(codes: np.ndarray) -> np.ndarray:
    """Returns FP4 E2M1 codes as float32."""
    return np.concatenate([E2M1_POSITIVE, -E2M1_POSITIVE]).astype(np.float32)[codes]


def e8m0_encode_up(values: np.ndarray) -> np.ndarray:
    """Returns the smallest power of two >= value as its biased exponent, uint8 (value > 0)."""
    mantissa, exponent = np.frexp(values.astype(np.float64))
    exponent = np.where(mantissa == 0.5, exponent - 1, exponent)
    return np.clip(exponent + 127, 0, 254).astype(np.uint8)


def e8m0_decode(codes: np.ndarray) -> np.ndarray:
    """Returns biased exponents as float32 powers of two."""
    return np.ldexp(np.float32(1), codes.astype(np.int32) - 127).astype(np.float32)
