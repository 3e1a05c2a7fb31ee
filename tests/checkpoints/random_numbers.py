"""Random weights that never change: the same bits on every machine, numpy version and language.

The stream is SHAKE-256 over "seed/name", so that a tensor does not depend on which others are
made. Only IEEE-exact operations follow (no log, sin or exp), so the recorded goldens hold on every
platform.
"""

import hashlib

import numpy as np

UNIFORMS_PER_NORMAL = 4
# Standard deviation of the sum of four uniform integers in [0, 65535].
SUM_STD = float(np.sqrt(UNIFORMS_PER_NORMAL * (65536.0**2 - 1.0) / 12.0))
SUM_MEAN = UNIFORMS_PER_NORMAL * 65535 // 2


def random_bytes(seed: int, name: str, count: int) -> bytes:
    """Returns `count` bytes that depend on seed and name only."""
    return hashlib.shake_256(f"{seed}/{name}".encode()).digest(count)


def normal(seed: int, name: str, shape: tuple[int, ...], std: float) -> np.ndarray:
    """Nearly normal float32 numbers (the sum of four uniform ones; never beyond 3.5 std)."""
    count = int(np.prod(shape))
    raw = np.frombuffer(random_bytes(seed, name, 2 * UNIFORMS_PER_NORMAL * count), dtype="<u2")
    total = raw.reshape(count, UNIFORMS_PER_NORMAL).astype(np.int64).sum(axis=1) - SUM_MEAN
    return (total * (std / SUM_STD)).astype(np.float32).reshape(shape)


def uniform(seed: int, name: str, shape: tuple[int, ...], low: float, high: float) -> np.ndarray:
    """Uniform float32 numbers in [low, high)."""
    count = int(np.prod(shape))
    raw = np.frombuffer(random_bytes(seed, name, 4 * count), dtype="<u4")
    return (low + (high - low) * (raw / 2.0**32)).astype(np.float32).reshape(shape)


def token_ids(seed: int, name: str, count: int, vocab: int) -> np.ndarray:
    """Token ids in [0, vocab), int32."""
    raw = np.frombuffer(random_bytes(seed, name, 4 * count), dtype="<u4")
    return (raw % np.uint32(vocab)).astype(np.int32)
