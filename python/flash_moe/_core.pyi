"""C++ core of flash_moe. Import names from flash_moe, not from here."""

from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy
from numpy.typing import NDArray


class Error(Exception):
    """Base of every error flash_moe raises on purpose."""

class ConfigError(Error):
    """
    The caller asked for something that cannot be: an option, a budget, a prompt.
    """

class FormatError(Error):
    """
    A file is not what it should be; the message names the file, the field and what was expected.
    """

class IoError(Error):
    """
    A file could not be opened, or a read did not give every byte asked for.
    """

class DeviceError(Error):
    """
    A GPU failed, or the backend asked for is not in this build or machine.
    """

class CancelledError(Error):
    """The call was stopped by its owner; nothing was changed."""

class InternalError(Error):
    """A defect in flash_moe itself: please report it."""

class EngineOptions:
    """How an engine is opened; see flash_moe.Engine for the meaning."""

    def __init__(self) -> None: ...

    @property
    def backend(self) -> str: ...

    @backend.setter
    def backend(self, arg: str, /) -> None: ...

    @property
    def memory_bytes(self) -> int: ...

    @memory_bytes.setter
    def memory_bytes(self, arg: int, /) -> None: ...

    @property
    def experts_per_token(self) -> int: ...

    @experts_per_token.setter
    def experts_per_token(self, arg: int, /) -> None: ...

    @property
    def thread_count(self) -> int: ...

    @thread_count.setter
    def thread_count(self, arg: int, /) -> None: ...

    @property
    def activations(self) -> str: ...

    @activations.setter
    def activations(self, arg: str, /) -> None: ...

    @property
    def kv_dtype(self) -> str: ...

    @kv_dtype.setter
    def kv_dtype(self, arg: str, /) -> None: ...

    @property
    def isa(self) -> str: ...

    @isa.setter
    def isa(self, arg: str, /) -> None: ...

    @property
    def cache(self) -> str: ...

    @cache.setter
    def cache(self, arg: str, /) -> None: ...

    @property
    def policy(self) -> str: ...

    @policy.setter
    def policy(self, arg: str, /) -> None: ...

    @property
    def io(self) -> str: ...

    @io.setter
    def io(self, arg: str, /) -> None: ...

    @property
    def queue_depth(self) -> int: ...

    @queue_depth.setter
    def queue_depth(self, arg: int, /) -> None: ...

    @property
    def cache_slots(self) -> int: ...

    @cache_slots.setter
    def cache_slots(self, arg: int, /) -> None: ...

    @property
    def prefill_chunk(self) -> int: ...

    @prefill_chunk.setter
    def prefill_chunk(self, arg: int, /) -> None: ...

    @property
    def prefetch(self) -> str: ...

    @prefetch.setter
    def prefetch(self, arg: str, /) -> None: ...

    @property
    def load(self) -> str: ...

    @load.setter
    def load(self, arg: str, /) -> None: ...

    @property
    def fail_read(self) -> int: ...

    @fail_read.setter
    def fail_read(self, arg: int, /) -> None: ...

class LayerInfo:
    """Formats and bytes of one layer."""

    @property
    def full_attention(self) -> bool: ...

    @property
    def is_moe(self) -> bool: ...

    @property
    def mixer_format(self) -> str: ...

    @property
    def experts_format(self) -> str: ...

    @property
    def expert_bits(self) -> float: ...

    @property
    def resident_bytes(self) -> int: ...

    @property
    def expert_bytes(self) -> int: ...

    @property
    def experts(self) -> int: ...

class ModelInfo:
    """What a model folder holds and how it runs; bytes are of storage."""

    @property
    def path(self) -> str: ...

    @property
    def architecture(self) -> str: ...

    @property
    def format(self) -> str: ...

    @property
    def quantisation(self) -> str: ...

    @property
    def layers(self) -> int: ...

    @property
    def moe_layers(self) -> int: ...

    @property
    def full_attention_layers(self) -> int: ...

    @property
    def hidden(self) -> int: ...

    @property
    def vocab(self) -> int: ...

    @property
    def context(self) -> int: ...

    @property
    def experts(self) -> int: ...

    @property
    def experts_per_token_trained(self) -> int: ...

    @property
    def experts_per_token(self) -> int: ...

    @property
    def skipped_tensors(self) -> int: ...

    @property
    def resident_bytes(self) -> int: ...

    @property
    def expert_bytes(self) -> int: ...

    @property
    def experts_bytes(self) -> int: ...

    @property
    def slot_bytes(self) -> int: ...

    @property
    def mtp_tensors(self) -> int: ...

    @property
    def layer_info(self) -> list[LayerInfo]: ...

    @property
    def backend(self) -> str: ...

class MemoryPlan:
    """How a memory bound is divided, in bytes, slots and tokens."""

    @property
    def memory_bytes(self) -> int: ...

    @property
    def process_bytes(self) -> int: ...

    @property
    def resident_bytes(self) -> int: ...

    @property
    def step_bytes(self) -> int: ...

    @property
    def sequence_bytes(self) -> int: ...

    @property
    def slots_bytes(self) -> int: ...

    @property
    def slots(self) -> int: ...

    @property
    def slots_all(self) -> int: ...

    @property
    def slots_min(self) -> int: ...

    @property
    def memory_bytes_min(self) -> int: ...

    @property
    def prefill_chunk(self) -> int: ...

    @property
    def context_tokens(self) -> int: ...

class PhaseStats:
    """Wall time, calls and bytes touched of one phase of a step."""

    @property
    def name(self) -> str: ...

    @property
    def ns(self) -> int: ...

    @property
    def calls(self) -> int: ...

    @property
    def bytes(self) -> int: ...

class Stats:
    """
    What the engine counted since the last reset; times are wall time in ns.
    """

    @property
    def phases(self) -> list[PhaseStats]: ...

    @property
    def step_ns(self) -> int: ...

    @property
    def steps(self) -> int: ...

    @property
    def prefill_tokens(self) -> int: ...

    @property
    def decode_tokens(self) -> int: ...

    @property
    def prefill_ns(self) -> int: ...

    @property
    def decode_ns(self) -> int: ...

    @property
    def expert_hits(self) -> int: ...

    @property
    def expert_joined(self) -> int: ...

    @property
    def expert_misses(self) -> int: ...

    @property
    def read_bytes(self) -> int: ...

    @property
    def read_ns(self) -> int: ...

    @property
    def wait_ns(self) -> int: ...

    @property
    def prefetched(self) -> int: ...

    @property
    def prefetch_used(self) -> int: ...

    @property
    def prefetch_late(self) -> int: ...

    @property
    def failed_reads(self) -> int: ...

    @property
    def slots(self) -> int: ...

    @property
    def cache_mode(self) -> str: ...

    @property
    def io_engine(self) -> str: ...

    @property
    def policy(self) -> str: ...

    @property
    def lossy(self) -> str: ...

class Session:
    """One timeline of tokens of an Engine."""

    @property
    def position(self) -> int:
        """Tokens fed so far."""

    @property
    def tokens(self) -> list[int]:
        """Every token fed, in order."""

    @property
    def bytes(self) -> int:
        """Memory of its state."""

    def feed(self, tokens: Sequence[int], all: bool = False, progress: object | None = None) -> Annotated[NDArray[numpy.float32], dict(order='C')]:
        """
        Feed tokens; float32 logits [vocab] after the last, or [tokens, vocab] after every one.

        On any error the session is as it was before the call.
        """

    def fork(self) -> Session:
        """A copy that goes its own way from here."""

    def save(self, path: str) -> None:
        """Write the session's tokens and state to a file."""

    def close(self) -> None:
        """Free the session's memory."""

class Engine:
    """A loaded model. Use flash_moe.Engine, which adds text to it."""

    @staticmethod
    def open(path: str, options: EngineOptions, progress: object | None = None) -> Engine:
        """Open a model folder."""

    def info(self) -> ModelInfo:
        """What the folder holds and how it runs."""

    def memory_plan(self) -> MemoryPlan:
        """How memory is divided now."""

    def new_session(self) -> Session:
        """An empty session."""

    def load_session(self, path: str) -> Session:
        """A session saved by Session.save."""

    def decode(self, sessions: Sequence[Session], tokens: Sequence[int]) -> Annotated[NDArray[numpy.float32], dict(order='C')]:
        """
        One token for each session, as one step; float32 logits [sessions, vocab].
        """

    def set_memory(self, memory_bytes: int) -> None:
        """Change the memory bound while running."""

    def drop_cache(self) -> None:
        """Forget cached experts."""

    def stats(self) -> Stats:
        """Counters since the last reset."""

    def reset_stats(self) -> None:
        """Zero the counters."""

    def trace(self, on: bool) -> None:
        """Start or stop collecting trace events."""

    def take_trace_json(self) -> str:
        """Trace events as Chrome/Perfetto JSON."""

    def record_routes(self, on: bool) -> None:
        """Start or stop recording the experts of every token."""

    def take_routes(self) -> tuple[list[list[int]], Annotated[NDArray[numpy.float32], dict(order='C')] | None]:
        """
        Since record_routes(True): rows of layer and expert ids in rank order; router logits, float32 [rows, experts].
        """

    def close(self) -> None:
        """Free the engine once its sessions are gone."""

def plan_memory(path: str, options: EngineOptions, context_tokens: int = 0) -> MemoryPlan:
    """The division of memory, from the headers alone."""

def inspect(path: str) -> ModelInfo:
    """What a folder holds, from the headers alone."""

class PackOptions:
    """What a pack is made of; see `flash-moe pack --help`."""

    def __init__(self) -> None: ...

    @property
    def bits(self) -> int: ...

    @bits.setter
    def bits(self, arg: int, /) -> None: ...

    @property
    def group_size(self) -> int: ...

    @group_size.setter
    def group_size(self, arg: int, /) -> None: ...

    @property
    def module_bits(self) -> dict[str, int]: ...

    @module_bits.setter
    def module_bits(self, arg: Mapping[str, int], /) -> None: ...

    @property
    def requantise(self) -> bool: ...

    @requantise.setter
    def requantise(self, arg: bool, /) -> None: ...

class PackReport:
    """What a finished pack holds."""

    @property
    def bytes(self) -> int: ...

    @property
    def files(self) -> int: ...

    @property
    def resumed(self) -> bool: ...

def pack_model(source: str, target: str, options: PackOptions, progress: object | None = None) -> PackReport:
    """
    Write a model folder as a pack, resuming an unfinished one, and read it back.
    """

def cache_sim(rows: Sequence[Sequence[int]], logits: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)] | None, policy: str, capacities: Sequence[int]) -> list[float]:
    """
    Hit rates of a policy ("belady" is the optimum) over rows of layer and expert ids, and router logits [rows, experts].
    """

def measure_memory(threads: int, seconds: float = 0.3) -> float:
    """Bytes a second that memory gives to so many reading threads."""

def measure_drive(path: str, depths: Sequence[int], record_bytes: int, direct: bool = True, io: str = 'auto', seconds_max: float = 1.0) -> list[float]:
    """
    Bytes a second of reading records at random places of a file, by number of reads in flight.
    """

def policy_names() -> list[str]:
    """Eviction policies by name."""

def backends() -> dict[str, str]:
    """Backends by name: empty when usable here, else the reason why not."""

def cpu_isas() -> list[str]:
    """Names of the CPU kernels that this machine can run, the fastest last."""
