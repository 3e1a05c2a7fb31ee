"""Run mixture-of-experts language models that are larger than memory: experts stream from the SSD.

import flash_moe

with flash_moe.Engine("models/Qwen3.5-35B-A3B-4bit", memory="12GB") as engine:
    print(engine.generate("Once upon a time", max_tokens=100))
"""

from ._version import __version__
from .completion import Completion, GenerationStats, Piece, Score, ToolCall
from .conversation import Conversation
from .engine import Engine
from .errors import (
    CancelledError,
    ConfigError,
    DeviceError,
    Error,
    FormatError,
    InternalError,
    IoError,
)
from .folder import demo_model
from .options import GenerateOptions
from .plan import inspect, plan_memory
from .sampling import SamplingParams, TokenLogprob
from .session import Session, Stream
from .tokenizer import Tokenizer

__all__ = [
    "CancelledError",
    "Completion",
    "ConfigError",
    "Conversation",
    "DeviceError",
    "Engine",
    "Error",
    "FormatError",
    "GenerateOptions",
    "GenerationStats",
    "InternalError",
    "IoError",
    "Piece",
    "SamplingParams",
    "Score",
    "Session",
    "Stream",
    "TokenLogprob",
    "Tokenizer",
    "ToolCall",
    "__version__",
    "demo_model",
    "inspect",
    "plan_memory",
]
