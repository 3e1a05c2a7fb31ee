"""The command line, `flash-moe`: which command runs, and what becomes of its errors."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ._version import __version__
from .cli_bench import add_bench, run_bench
from .cli_chat import add_chat, run_chat
from .cli_generate import add_generate, add_score, run_generate, run_score
from .cli_info import add_info, add_plan, run_info, run_plan
from .cli_options import Parser, Run
from .cli_pack import add_pack, run_pack
from .cli_synth import add_synth, run_synth
from .cli_tools import add_cache_sim, add_pull, run_cache_sim, run_pull
from .errors import CancelledError, Error, InternalError
from .terminal import emit, say

EXIT_DEFECT, EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 1, 2, 130, 141

Add = Callable[[argparse.ArgumentParser], None]
COMMANDS: dict[str, tuple[str, Add, Run]] = {
    "generate": ("continue a text", add_generate, run_generate),
    "chat": ("talk with the model", add_chat, run_chat),
    "info": ("what a model folder holds; what the machine is", add_info, run_info),
    "plan": ("memory and speed to expect, before anything is loaded", add_plan, run_plan),
    "pack": ("write a folder as a pack: faster layout, smaller bits", add_pack, run_pack),
    "bench": ("speed here, as shares of the machine's bounds", add_bench, run_bench),
    "synth": ("write a model of a real size with random weights", add_synth, run_synth),
    "pull": ("download a model from the hub", add_pull, run_pull),
    "score": ("log-probabilities and perplexity of a text", add_score, run_score),
    "cache-sim": ("hit rates of cache policies on recorded routes", add_cache_sim, run_cache_sim),
}


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands."""
    parser = Parser(
        prog="flash-moe", description="Run mixture-of-experts models larger than memory."
    )
    parser.add_argument("--version", action="version", version=f"flash-moe {__version__}")
    parser.add_argument(
        "--cmake-dir", action="store_true", help="print the folder of the CMake package"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (summary, add, run) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        add(command)
        command.set_defaults(run=run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: arguments without the program's name; None is those of the process.

    Returns:
        Exit code: 0, 2 for bad input, 1 for a defect of flash_moe, 130 after Ctrl-C.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.cmake_dir:
        emit(str(Path(__file__).parent / "lib" / "cmake" / "flash_moe"))
        return 0
    if args.command is None:
        parser.print_help(sys.stderr)
        return EXIT_BAD_INPUT
    run: Run = args.run
    try:
        return run(args)
    except (KeyboardInterrupt, CancelledError):
        say("flash-moe: stopped")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader has gone. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except InternalError as error:
        say(f"flash-moe: {_one_line(error)} (a defect of flash_moe: please report it)")
        return EXIT_DEFECT
    except Error as error:
        say(f"flash-moe: {_one_line(error)}")
        return EXIT_BAD_INPUT


def _one_line(error: Error) -> str:
    return " ".join(str(error).split())
