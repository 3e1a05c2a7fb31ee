"""A case: one dispatch, what it must give, and how far it may be off."""

from dataclasses import dataclass, field

import numpy as np
from rig.gpu import Dispatch

STRUCT_FIELD = {int: np.uint32, float: np.float32}


def args(*fields) -> np.ndarray:
    """The bytes of an argument struct of 32-bit fields: ints are uint32, floats f32."""
    return np.frombuffer(
        b"".join(STRUCT_FIELD[type(f)](f).tobytes() for f in fields), dtype=np.uint8
    ).copy()


def f32(rng, *shape: int, scale: float = 1.0) -> np.ndarray:
    return (rng.normal(size=shape) * scale).astype(np.float32)


def unwritten(*shape: int, dtype=np.float32) -> np.ndarray:
    """NaN, or -1: what a kernel forgets to write is seen."""
    return np.full(shape, np.nan if dtype == np.float32 else -1, dtype)


@dataclass
class Case:
    name: str
    image: str  # stem of the .metal file
    kernel: str
    grid: tuple[int, ...]
    threads: tuple[int, ...]
    buffers: dict[str, np.ndarray]
    # buffer name -> (float64 expectation, bound); bound 0: equal. NaN expected: must be untouched.
    expected: dict[str, tuple[np.ndarray, np.ndarray | float]]
    constants: dict[int, np.generic] = field(default_factory=dict)
    grid_is_threads: bool = False
    large: bool = False  # too slow for the sanitizers

    def dispatch(self, image) -> Dispatch:
        copies = {name: np.array(a, copy=True) for name, a in self.buffers.items()}
        return image.dispatch(
            self.kernel, self.grid, self.threads, self.constants, self.grid_is_threads, **copies
        )

    def check(self, image, work: Dispatch) -> None:
        indices = image.buffer_indices(self.kernel)
        for name, (want, bound) in self.expected.items():
            got = work.buffers[indices[name]].astype(np.float64).reshape(want.shape)
            untouched = np.isnan(want)
            assert np.isnan(got[untouched]).all(), f"{self.name}: {name} is written beyond its rows"
            with np.errstate(invalid="ignore"):
                error = np.where(untouched | (got == want), 0.0, np.abs(got - want))
            too_far = ~(error <= bound) & ~untouched  # a NaN is too far
            if too_far.any():
                at = np.unravel_index(int(np.argmax(too_far)), want.shape)
                limit = np.broadcast_to(bound, want.shape)[at]
                raise AssertionError(
                    f"{self.name}: {name}{list(map(int, at))} is {got[at]!r}, wanted {want[at]!r} within "
                    f"{limit:.3g}; {int(too_far.sum())} of {want.size} are off"
                )
