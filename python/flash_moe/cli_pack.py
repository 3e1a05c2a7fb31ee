"""`flash-moe pack`: writes a folder in the project's own layout."""

from __future__ import annotations

import argparse

from . import _core
from .cli_options import add_common, add_model
from .errors import ConfigError
from .folder import demo_model, resolve_model
from .sizes import format_bytes
from .terminal import ProgressLine, emit_json, say


def add_pack(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of pack."""
    add_model(parser)
    parser.add_argument(
        "--to", required=True, metavar="FOLDER", help="where to write; resumes what stands there"
    )
    parser.add_argument(
        "--bits",
        type=int,
        choices=(2, 3, 4, 5, 6, 8),
        help="quantise 16-bit weights (affine); default: keep the bits of the source",
    )
    parser.add_argument("--group-size", type=int, choices=(32, 64, 128), help="default: 64")
    parser.add_argument(
        "--module-bits",
        action="append",
        default=[],
        metavar="NAME=BITS",
        help='bits of modules whose name ends in NAME ("*": any), e.g. "down_proj=4"; repeatable',
    )
    parser.add_argument(
        "--requantise",
        action="store_true",
        help="allow --bits on weights that are quantised already: LOSSY twice",
    )
    add_common(parser)


def module_bits(entries: list[str]) -> dict[str, int]:
    """Returns bits by module name.

    Raises:
        ConfigError: on an entry that is no NAME=BITS.
    """
    found = {}
    for entry in entries:
        name, equals, bits = entry.partition("=")
        if not (name and equals and bits.isdigit()):
            raise ConfigError(f'--module-bits: wanted NAME=BITS like "down_proj=4", got {entry!r}')
        found[name] = int(bits)
    return found


def run_pack(args: argparse.Namespace) -> int:
    """Writes, resumes and verifies a pack."""
    folder = demo_model() if args.model is None else resolve_model(args.model)
    progress = ProgressLine("packing", unit_bytes=True)
    options = _core.PackOptions()
    options.bits = args.bits or 0
    options.group_size = args.group_size or 0
    options.module_bits = module_bits(args.module_bits)
    options.requantise = args.requantise
    try:
        report = _core.pack_model(str(folder), args.to, options, progress)
    finally:
        progress.clear()
    content = {
        "path": args.to,
        "bytes": report.bytes,
        "files": report.files,
        "resumed": report.resumed,
    }
    if args.json:
        emit_json(content)
    else:
        say(
            f"{args.to}: {format_bytes(report.bytes)} in {report.files} files, "
            "read back and verified"
        )
    return 0
