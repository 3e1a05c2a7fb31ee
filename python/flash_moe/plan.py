"""What a model will need and how fast it can be, from its headers and measured rates."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from . import _core
from .engine import engine_options
from .folder import demo_model, resolve_model

if TYPE_CHECKING:
    from ._core import MemoryPlan, ModelInfo


def plan_memory(
    path: str | os.PathLike[str] | None = None,
    *,
    memory: str | int | None = None,
    context_tokens: int = 4096,
    backend: str = "auto",
    experts_per_token: int | None = None,
    kv_dtype: str = "auto",
    activations: str = "auto",
    prefill_chunk: int | None = None,
    cache_slots: int | None = None,
) -> MemoryPlan:
    """Returns how memory would be divided, without loading the model.

    Args:
        path: a model folder or hub id; None is the bundled model.
        memory: bound on the process; None chooses from what is free.
        context_tokens: length of the one sequence that is planned for.
        backend: as for `Engine`, as are the further arguments.
        experts_per_token: as for `Engine`.
        kv_dtype: as for `Engine`.
        activations: as for `Engine`.
        prefill_chunk: as for `Engine`.
        cache_slots: as for `Engine`.

    Raises:
        ConfigError: when the bound is below the least that works; the message says that.
        FormatError: when a file is not what it should be.
    """
    folder = demo_model() if path is None else resolve_model(path)
    options = engine_options(
        backend=backend,
        memory=memory,
        experts_per_token=experts_per_token,
        kv_dtype=kv_dtype,
        activations=activations,
        prefill_chunk=prefill_chunk,
        cache_slots=cache_slots,
    )
    return _core.plan_memory(str(folder), options, context_tokens)


def inspect(path: str | os.PathLike[str] | None = None) -> ModelInfo:
    """Returns what a model folder holds, without loading the model.

    Args:
        path: a model folder or hub id; None is the bundled model.

    Raises:
        ConfigError: when there is no such folder.
        FormatError: when a file is not what it should be.
    """
    return _core.inspect(str(demo_model() if path is None else resolve_model(path)))


# The share of a token's experts that the token before it used as well, in models of this family
# (docs/DESIGN.md).
OVERLAP_HIGH = 0.43


@dataclass(frozen=True)
class Speed:
    """Bounds on decoding, from measured rates.

    Attributes:
        expert_bytes_per_token: routed experts that a token touches.
        hit_rate_low: when routing is even: the share of experts that are cached.
        hit_rate_high: when neighbouring tokens share as many experts as they do at best.
        drive_bytes_per_second: measured.
        memory_bytes_per_second: measured.
        tokens_per_second_low: reads and arithmetic one after the other, at the low hit rate.
        tokens_per_second_high: reads hidden behind arithmetic or the other way round, at the high
            hit rate.
    """

    expert_bytes_per_token: int
    hit_rate_low: float
    hit_rate_high: float
    drive_bytes_per_second: float
    memory_bytes_per_second: float
    tokens_per_second_low: float
    tokens_per_second_high: float

    def to_dict(self) -> dict[str, float]:
        """Returns the fields."""
        return asdict(self)


def expected_speed(
    info: ModelInfo, plan: MemoryPlan, top_k: int, drive_rate: float, memory_rate: float
) -> Speed:
    """Returns bounds on decoding with warm caches.

    Args:
        info: of the model.
        plan: of its memory.
        top_k: experts of a token in a layer.
        drive_rate: bytes a second.
        memory_rate: bytes a second.
    """
    asked = info.moe_layers * top_k
    expert_bytes = asked * info.expert_bytes
    low = min(1.0, plan.slots / plan.slots_all) if plan.slots_all else 1.0
    # Overlap with the token before helps only if the cache still holds all of that token's experts.
    high = low + (1 - low) * OVERLAP_HIGH if plan.slots >= 2 * asked else low
    compute_s = (info.resident_bytes + expert_bytes) / memory_rate

    def read_s(hit_rate: float) -> float:
        return expert_bytes * (1 - hit_rate) / drive_rate

    return Speed(
        expert_bytes,
        low,
        high,
        drive_rate,
        memory_rate,
        1 / (compute_s + read_s(low)),
        1 / max(compute_s, read_s(high)),
    )
