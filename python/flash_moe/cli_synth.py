"""`flash-moe synth`: a checkpoint of a real geometry with random weights."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from . import _core
from .cli_options import add_common
from .errors import ConfigError
from .geometry import geometry_names
from .sizes import format_bytes
from .synth import BITS, GROUPS, Report, synthesise
from .synth_weights import LOCALITY_DEFAULT, Routing
from .terminal import ProgressLine, emit_json, say


def add_synth(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of synth."""
    parser.add_argument("config", help=f"a config.json, or one of {', '.join(geometry_names())}")
    parser.add_argument("out", help="folder to write; completes an interrupted one")
    parser.add_argument("--layers", type=int, metavar="N", help="default: all of the config's")
    parser.add_argument("--bits", type=int, default=4, choices=BITS, help="default: 4")
    parser.add_argument("--group", type=int, default=64, choices=GROUPS, help="default: 64")
    parser.add_argument(
        "--skew",
        type=float,
        default=0.0,
        metavar="S",
        help="constant part of router logits against the changing one (0: all experts alike)",
    )
    parser.add_argument(
        "--locality",
        type=float,
        default=LOCALITY_DEFAULT,
        metavar="L",
        help="share of routing that depends on the last tokens, 0 to 0.98 "
        f"({LOCALITY_DEFAULT}: hit rates near published ones)",
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument(
        "--format", default="mlx", choices=("mlx", "pack"), help="default: mlx, as on the hub"
    )
    parser.add_argument(
        "--hollow",
        action="store_true",
        help="routed experts as holes in the files, read as zeros: for start and memory of models "
        "that this drive cannot hold, not for speed",
    )
    add_common(parser)


def run_synth(args: argparse.Namespace) -> int:
    """Writes a synthetic model."""
    progress = ProgressLine("writing", unit_bytes=True)
    routing = Routing(args.skew, args.locality, args.seed)
    packed = args.format == "pack"
    if packed and args.hollow:
        raise ConfigError("--hollow: wanted --format mlx, got pack: a pack has no holes")
    target = Path(args.out).expanduser()
    if packed and target.exists() and not target.is_dir():
        raise ConfigError(f"{target}: is a file: name a folder to write")
    folder = target.with_name(target.name + ".mlx") if packed else target
    try:
        report = synthesise(
            args.config,
            folder,
            layers=args.layers,
            bits=args.bits,
            group=args.group,
            routing=routing,
            hollow=args.hollow,
            progress=progress,
        )
        if packed:
            report = _pack(folder, target, report)
    finally:
        progress.clear()
    if args.json:
        emit_json(report.to_dict())
    else:
        say(
            f"{report.path}: {format_bytes(report.bytes)} in {report.files} files, "
            f"{report.layers} layers of random weights"
        )
    return 0


def _pack(folder: Path, target: Path, report: Report) -> Report:
    """Turns the finished MLX folder into a pack; it stays until that is done."""
    progress = ProgressLine("packing", unit_bytes=True)
    try:
        packed = _core.pack_model(str(folder), str(target), _core.PackOptions(), progress)
    finally:
        progress.clear()
    shutil.rmtree(folder)
    return Report(str(target), packed.bytes, packed.files, report.layers, packed.resumed)
