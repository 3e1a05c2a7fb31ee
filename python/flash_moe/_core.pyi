from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

class Error(Exception): ...
class ConfigError(Error): ...
class FormatError(Error): ...
class IoError(Error): ...
class DeviceError(Error): ...
class CancelledError(Error): ...
class InternalError(Error): ...

class EngineOptions:
    backend: str
    memory_bytes: int
    experts_per_token: int
    thread_count: int
    activations: str
    kv_dtype: str
    isa: str
    cache: str
    policy: str
    io: str
    queue_depth: int
    cache_slots: int
    prefill_chunk: int
    prefetch: bool
    fail_read: int

class LayerInfo:
    full_attention: bool
    is_moe: bool
    mixer_format: str
    experts_format: str
    expert_bits: float
    resident_bytes: int
    expert_bytes: int
    experts: int

class ModelInfo:
    layer_info: list[LayerInfo]
    mtp_tensors: int
    path: str
    architecture: str
    format: str
    quantisation: str
    layers: int
    moe_layers: int
    full_attention_layers: int
    hidden: int
    vocab: int
    context: int
    experts: int
    experts_per_token_trained: int
    experts_per_token: int
    skipped_tensors: int
    resident_bytes: int
    expert_bytes: int
    experts_bytes: int
    slot_bytes: int
    backend: str

class MemoryPlan:
    memory_bytes: int
    process_bytes: int
    resident_bytes: int
    step_bytes: int
    sequence_bytes: int
    slots_bytes: int
    slots: int
    slots_all: int
    slots_min: int
    memory_bytes_min: int
    prefill_chunk: int
    context_tokens: int

class PhaseStats:
    name: str
    ns: int
    calls: int
    bytes: int

class Stats:
    phases: list[PhaseStats]
    step_ns: int
    steps: int
    prefill_tokens: int
    decode_tokens: int
    prefill_ns: int
    decode_ns: int
    expert_hits: int
    expert_joined: int
    expert_misses: int
    read_bytes: int
    read_ns: int
    wait_ns: int
    prefetched: int
    prefetch_used: int
    failed_reads: int
    slots: int
    cache_mode: str
    io_engine: str
    policy: str
    lossy: str

Floats = npt.NDArray[np.float32]

class Session:
    @property
    def position(self) -> int: ...
    @property
    def tokens(self) -> list[int]: ...
    @property
    def bytes(self) -> int: ...
    def feed(self, tokens: Sequence[int], all: bool = False, progress: Callable[[int, int], bool] | None = None) -> Floats: ...
    def fork(self) -> Session: ...
    def save(self, path: str) -> None: ...
    def close(self) -> None: ...

class Engine:
    @staticmethod
    def open(path: str, options: EngineOptions, progress: Callable[[int, int], bool] | None = None) -> Engine: ...
    def info(self) -> ModelInfo: ...
    def memory_plan(self) -> MemoryPlan: ...
    def new_session(self) -> Session: ...
    def load_session(self, path: str) -> Session: ...
    def decode(self, sessions: Sequence[Session], tokens: Sequence[int]) -> Floats: ...
    def set_memory(self, memory_bytes: int) -> None: ...
    def drop_cache(self) -> None: ...
    def stats(self) -> Stats: ...
    def reset_stats(self) -> None: ...
    def trace(self, on: bool) -> None: ...
    def take_trace_json(self) -> str: ...
    def record_routes(self, on: bool) -> None: ...
    def take_routes(self) -> list[list[int]]: ...
    def close(self) -> None: ...

class PackOptions:
    bits: int
    group_size: int
    module_bits: dict[str, int]
    requantise: bool

class PackReport:
    bytes: int
    files: int
    resumed: bool

def pack_model(source: str, target: str, options: PackOptions, progress: Callable[[int, int], bool] | None = None) -> PackReport: ...
def plan_memory(path: str, options: EngineOptions, context_tokens: int = 0) -> MemoryPlan: ...
def inspect(path: str) -> ModelInfo: ...
def cache_sim(rows: Sequence[Sequence[int]], policy: str, capacities: Sequence[int]) -> list[float]: ...
def policy_names() -> list[str]: ...
def backends() -> dict[str, str]: ...
def cpu_isas() -> list[str]: ...
