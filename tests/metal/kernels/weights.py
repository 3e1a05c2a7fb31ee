"""Random weight matrices in every stored format, their values in float64, and bounds of rounding errors."""

from dataclasses import dataclass

import numpy as np
from rig.gpu import bf16, from_bf16

EPS = 2.0**-24  # half a unit in the last place of 1.0f: the relative error of one rounding
KINDS = {
    "f32": 0, "f16": 1, "bf16": 2, "affine": 3, "mxfp4": 4, "nvfp4": 5, "mxfp8": 6, "fp8_block": 7
}  # fmt: skip
FLOAT_CODES = ["mxfp4", "nvfp4", "mxfp8", "fp8-f32", "fp8-bf16", "fp8-f16"]
AFFINE = [(bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)]
LANES = 32


def weight_format(kind: str, bits: int = 0, group: int = 0, scale_kind: str = "f32") -> np.uint32:
    """As weight_format in metal/args.h."""
    return np.uint32(KINDS[kind] | bits << 4 | KINDS[scale_kind] << 8 | group << 12)


@dataclass
class Matrix:
    format: np.uint32
    data: np.ndarray  # bytes
    scales: np.ndarray
    biases: np.ndarray
    values: np.ndarray  # float64 [rows, cols]: what the stored bits mean
    magnitude: np.ndarray  # |q scale| + |bias|, or |value|: what its rounding errors scale with

    def buffers(self, prefix: str = "") -> dict[str, np.ndarray]:
        return {
            f"{prefix}data": self.data,
            f"{prefix}scales": self.scales,
            f"{prefix}biases": self.biases,
        }

    def product(self, x: np.ndarray) -> np.ndarray:
        return x.astype(np.float64) @ self.values.T

    def product_bound(self, x: np.ndarray) -> np.ndarray:
        """Of |kernel - product|: every element is rounded four times (scale x, bias x, fma, sum), a lane
        adds cols / 32 of them (a unit may be 32 long), and five additions join the lanes."""
        cols = self.values.shape[1]
        chain = -(-cols // LANES) + 32 + 5 + 4
        return chain * EPS * (np.abs(x).astype(np.float64) @ self.magnitude.T)

    def tile_bound(self, x: np.ndarray) -> np.ndarray:
        """As product_bound where a weight is rounded once and a sum is one chain over the columns."""
        size = np.abs(x).astype(np.float64) @ np.abs(self.values).T
        return (self.values.shape[1] + 2) * EPS * size


def store(values: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Stored elements, and the float64 values that they then have."""
    if kind == "f32":
        stored = values.astype(np.float32)
        return stored, stored.astype(np.float64)
    if kind == "f16":
        stored = values.astype(np.float16)
        return stored, stored.astype(np.float64)
    stored = bf16(values)
    return stored, from_bf16(stored).astype(np.float64)


def pack_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """MLX's packing: a little-endian bit stream a row."""
    rows = codes.shape[0]
    stream = np.unpackbits(codes.astype(np.uint8)[..., None], axis=2, bitorder="little")
    return np.packbits(stream[:, :, :bits].reshape(rows, -1), axis=1, bitorder="little")


def affine(rng, rows: int, cols: int, bits: int, group: int, scale_kind: str = "bf16") -> Matrix:
    codes = rng.integers(0, 1 << bits, (rows, cols))
    spread = 0.1 / (1 << bits)
    scales, s = store(rng.normal(size=(rows, cols // group)) * spread, scale_kind)
    biases, b = store(rng.normal(size=(rows, cols // group)) * 0.1, scale_kind)
    s, b = np.repeat(s, group, axis=1), np.repeat(b, group, axis=1)
    values = codes * s + b
    form = weight_format("affine", bits, group, scale_kind)
    return Matrix(
        form, pack_codes(codes, bits), scales, biases, values, np.abs(codes * s) + np.abs(b)
    )


def plain(rng, rows: int, cols: int, kind: str) -> Matrix:
    data, values = store(rng.normal(size=(rows, cols)) * 0.1, kind)
    return Matrix(weight_format(kind), data, data, data, values, np.abs(values))


def small_float_values(exponent_bits: int, mantissa_bits: int) -> np.ndarray:
    """What every code of a sign, an exponent and a mantissa means, with subnormals and without infinities."""
    codes = np.arange(1 << (1 + exponent_bits + mantissa_bits))
    exponent = codes >> mantissa_bits & ((1 << exponent_bits) - 1)
    mantissa = (codes & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    bias = (1 << (exponent_bits - 1)) - 1
    size = np.where(
        exponent == 0, mantissa * 2.0 ** (1 - bias), (1 + mantissa) * 2.0 ** (exponent - bias)
    )
    return np.where(codes >> (exponent_bits + mantissa_bits), -size, size)


E2M1, E4M3 = small_float_values(2, 1), small_float_values(4, 3)
E4M3_NUMBERS = np.array([code for code in range(256) if code & 127 != 127])  # the others are NaN


def float_codes(rng, rows: int, cols: int, form: str) -> Matrix:
    """mxfp4, nvfp4 and mxfp8 as MLX stores them; fp8 in blocks of 128 x 128, all numbers among the codes."""
    kind, _, scale_kind = form.replace("fp8-", "fp8_block-").partition("-")
    if kind in ("mxfp4", "nvfp4"):
        codes = np.resize(np.arange(16), rows * cols)
        values, bits = E2M1, 4
    else:
        codes = np.resize(E4M3_NUMBERS, rows * cols)
        values, bits = E4M3, 8
    codes = rng.permutation(codes).reshape(rows, cols)
    group = {"mxfp4": 32, "nvfp4": 16, "mxfp8": 32, "fp8_block": 128}[kind]
    if kind == "fp8_block":
        blocks = rng.normal(size=(-(-rows // group), -(-cols // group))) * 0.001
        scales, s = store(blocks, scale_kind)
        s = np.repeat(np.repeat(s, group, axis=0)[:rows], group, axis=1)[:, :cols]
    elif kind == "nvfp4":
        small = np.flatnonzero((E4M3 >= 0) & (E4M3 < 0.1))
        scales = rng.choice(small, (rows, cols // group)).astype(np.uint8)
        s = np.repeat(E4M3[scales], group, axis=1)
    else:
        largest = 120 if bits == 8 else 126
        scales = rng.integers(largest - 15, largest, (rows, cols // group)).astype(np.uint8)
        s = np.repeat(2.0 ** (scales.astype(int) - 127), group, axis=1)
    exact = values[codes] * s
    data = pack_codes(codes, bits)
    form_number = weight_format(kind, bits, group, scale_kind or "f32")
    return Matrix(form_number, data, scales, data, exact, np.abs(exact))


def random_matrix(rng, rows: int, cols: int, form) -> Matrix:
    """`form`: an element kind, one of FLOAT_CODES, or (bits, group) or (bits, group, scale kind)."""
    if form in FLOAT_CODES:
        return float_codes(rng, rows, cols, form)
    if isinstance(form, str):
        return plain(rng, rows, cols, form)
    return affine(rng, rows, cols, *form)
