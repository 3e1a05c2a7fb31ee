"""`flash-moe pull`, `flash-moe cache-sim`."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import _core, routes
from .cli_options import add_common
from .errors import ConfigError, IoError
from .folder import find_download
from .terminal import emit, emit_json, say, table


def add_pull(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of pull."""
    parser.add_argument("id", help='hub id, e.g. "Qwen/Qwen3.5-35B-A3B", with @REVISION if wanted')
    parser.add_argument(
        "--to", metavar="FOLDER", help="download here instead of into the hub's cache"
    )
    add_common(parser)


def run_pull(args: argparse.Namespace) -> int:
    """Downloads a model with huggingface_hub."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise ConfigError(
            "pull needs huggingface_hub, which is not installed: pip install 'flash-moe[pull]'"
        ) from error
    name, _, revision = args.id.partition("@")
    try:
        path = huggingface_hub.snapshot_download(
            name,
            revision=revision or None,
            local_dir=args.to,
            allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt", "LICENSE*", "README.md"],
        )
    except OSError as error:
        raise IoError(f"{args.id}: cannot be downloaded: {error}") from error
    except ValueError as error:  # huggingface_hub's errors about ids derive from it
        raise ConfigError(f"{args.id}: {error}") from error
    if args.json:
        emit_json(
            {"id": args.id, "path": str(path), "in_cache": find_download(args.id) is not None}
        )
    else:
        say(f"{args.id} is at:")
        emit(str(path))
    return 0


def add_cache_sim(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of cache-sim."""
    parser.add_argument("routes", help="trace of `generate --record-routes` (.npz, .tsv, .jsonl)")
    parser.add_argument(
        "--policy", action="append", metavar="NAME", help="may be given several times; default: all"
    )
    parser.add_argument(
        "--slots",
        metavar="LIST",
        help='cache sizes in experts, e.g. "64,128"; default: shares of all experts',
    )
    add_common(parser)


def capacities(text: str | None, rows: routes.Rows) -> list[int]:
    """Returns cache sizes: those asked for, else shares of the experts that the trace touches.

    Raises:
        ConfigError: when the text is no list of numbers above zero.
    """
    if text is not None:
        try:
            sizes = [int(part) for part in text.split(",")]
        except ValueError as error:
            raise ConfigError(f'--slots: wanted numbers like "64,128", got {text!r}') from error
        if min(sizes) < 1:
            raise ConfigError(f"--slots: wanted numbers above 0, got {text!r}")
        return sizes
    touched = len({(row[0], expert) for row in rows for expert in row[1:]})
    widest = max(len(row) - 1 for row in rows)
    return sorted(
        {max(widest, round(touched * share)) for share in (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)}
    )


def run_cache_sim(args: argparse.Namespace) -> int:
    """Prints hit rates of eviction policies, with Belady's optimum beside them."""
    trace = routes.load_routes(Path(args.routes))
    rows = trace.rows
    if not rows:
        raise ConfigError(f"{args.routes}: holds no routes")
    sizes = capacities(args.slots, rows)
    names = args.policy or [*(name for name in _core.policy_names() if name != "auto"), "belady"]
    rates = {name: _core.cache_sim(rows, trace.logits, name, sizes) for name in names}
    asked = sum(len(row) - 1 for row in rows)
    if args.json:
        emit_json({"lookups": asked, "slots": sizes, "hit_rates": rates})
        return 0
    lines = [
        {"slots": str(size), **{name: f"{100 * rates[name][i]:.2f} %" for name in names}}
        for i, size in enumerate(sizes)
    ]
    emit(table(lines))
    say(f"{asked} lookups in {len(rows)} rows")
    return 0
