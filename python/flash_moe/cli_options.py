"""Options that several commands share, and what becomes of them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from .engine import Engine
from .errors import ConfigError
from .options import GenerateOptions
from .terminal import ProgressLine, decode_utf8, read_stdin

Run = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the arguments."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with exit code 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def add_common(parser: argparse.ArgumentParser) -> None:
    """Adds --json."""
    parser.add_argument("--json", action="store_true", help="print JSON on stdout")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds --model."""
    parser.add_argument(
        "--model",
        metavar="PATH",
        help="model folder, or hub id of one that is downloaded (default: the bundled model)",
    )


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Adds --model and the options of `Engine`."""
    add_model(parser)
    group = parser.add_argument_group("engine")
    group.add_argument("--memory", metavar="SIZE", help='bound on the whole process, e.g. "12GB"')
    group.add_argument("--backend", default="auto", metavar="NAME", help="auto, cpu, metal or cuda")
    group.add_argument("--threads", type=int, metavar="N", help="default: one for each core")
    group.add_argument(
        "--experts-per-token", type=int, metavar="N", help="fewer than trained: faster and LOSSY"
    )
    group.add_argument("--activations", default="auto", metavar="KIND", help="auto or float32")
    group.add_argument(
        "--kv-dtype", default="auto", metavar="KIND", help="auto, float32 or bfloat16"
    )
    group.add_argument("--isa", default="auto", metavar="NAME", help="CPU kernels by name")
    group.add_argument("--cache", default="auto", metavar="KIND", help="auto, slots, both or os")
    group.add_argument("--policy", default="auto", metavar="NAME", help="eviction policy")
    group.add_argument("--io", default="auto", metavar="KIND", help="auto, threads, uring or gcd")
    group.add_argument("--queue-depth", type=int, metavar="N", help="reads in flight")
    group.add_argument("--cache-slots", type=int, metavar="N", help="experts held in memory")
    group.add_argument("--prefill-chunk", type=int, metavar="N", help="tokens of a prefill step")
    group.add_argument(
        "--prefetch",
        default="auto",
        metavar="KIND",
        help="auto, on or off: read ahead by the next layer's router",
    )
    group.add_argument(
        "--load",
        default="auto",
        metavar="KIND",
        help="auto, whole, or background: begin while dense weights are being read",
    )
    group.add_argument("--fail-read", type=int, default=0, help=argparse.SUPPRESS)


def add_sampling(parser: argparse.ArgumentParser, max_tokens: str) -> None:
    """Adds the options of `GenerateOptions`; `max_tokens` describes the default limit."""
    group = parser.add_argument_group(
        "sampling (defaults: the checkpoint's generation_config.json)"
    )
    group.add_argument("--max-tokens", type=int, metavar="N", help=f"default: {max_tokens}")
    group.add_argument("--temperature", type=float, metavar="T", help="0 is greedy")
    group.add_argument("--top-k", type=int, metavar="K", help="0 is off")
    group.add_argument("--top-p", type=float, metavar="P", help="1 is off")
    group.add_argument("--min-p", type=float, metavar="P", help="0 is off")
    group.add_argument("--repetition-penalty", type=float, metavar="X", help="1 is off")
    group.add_argument("--presence-penalty", type=float, metavar="X", help="0 is off")
    group.add_argument("--frequency-penalty", type=float, metavar="X", help="0 is off")
    group.add_argument(
        "--logit-bias", metavar="JSON", help="added to logits by token id, e.g. '{\"42\": -5}'"
    )
    group.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same text")
    group.add_argument(
        "--stop",
        action="append",
        metavar="TEXT",
        help="ends the answer; may be given several times",
    )


ENGINE_OPTIONS = [
    "memory",
    "backend",
    "threads",
    "experts_per_token",
    "activations",
    "kv_dtype",
    "isa",
    "cache",
    "policy",
    "io",
    "queue_depth",
    "cache_slots",
    "prefill_chunk",
    "prefetch",
    "load",
    "fail_read",
]
_SAMPLING = [
    "max_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
]


def open_engine(args: argparse.Namespace) -> Engine:
    """Loads the model that the arguments name, with a progress line."""
    progress = ProgressLine("loading", unit_bytes=True)
    options: dict[str, Any] = {name: getattr(args, name) for name in ENGINE_OPTIONS}
    try:
        return Engine(args.model, progress=progress, **options)
    finally:
        progress.clear()


def sampling_options(args: argparse.Namespace) -> GenerateOptions:
    """Returns what the arguments say about sampling; what they do not say is left out."""
    given = {name: getattr(args, name) for name in _SAMPLING if getattr(args, name) is not None}
    if args.logit_bias is not None:
        try:
            given["logit_bias"] = {int(k): float(v) for k, v in json.loads(args.logit_bias).items()}
        except (ValueError, AttributeError, TypeError) as error:
            raise ConfigError(
                f'--logit-bias: wanted JSON like {{"42": -5}}, got {args.logit_bias!r}'
            ) from error
    options: GenerateOptions = given  # type: ignore[assignment] # names and kinds are those of add_sampling
    return options


def read_text_argument(text: str | None, file: str | None, what: str) -> str:
    """Returns a text given as an argument, in a file, or ("-") on stdin.

    Raises:
        ConfigError: when there is none, or two; when the file cannot be read or is not UTF-8.
    """
    if (text is None) == (file is None):
        raise ConfigError(f"give {what} either as an argument or with --file")
    if file is not None and file != "-":
        try:
            return decode_utf8(Path(file).read_bytes(), file)
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    return read_stdin() if file == "-" or text == "-" else str(text)


def read_tools(path: str | None) -> list[dict[str, Any]] | None:
    """Returns the JSON schemas in a file, None without one.

    Raises:
        ConfigError: when it is no JSON list of objects.
    """
    if path is None:
        return None
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--tools {path}: {error}") from error
    if not isinstance(content, list) or not all(isinstance(tool, dict) for tool in content):
        raise ConfigError(f"--tools {path}: wanted a JSON list of function schemas")
    return content
