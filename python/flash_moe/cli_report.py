"""--timing, --trace and --record-routes: what a run did and where its time went."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import machine, routes
from .cli_options import open_engine
from .engine import Engine
from .sizes import format_bytes
from .terminal import say, table

if TYPE_CHECKING:
    from ._core import Stats

OUTSIDE = "python (sampling, text)"


def add_report(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    group = parser.add_argument_group("reports")
    group.add_argument("--timing", action="store_true", help="table of phases on stderr")
    group.add_argument("--trace", metavar="FILE", help="write a trace for ui.perfetto.dev")
    group.add_argument(
        "--record-routes",
        metavar="FILE",
        help="write which experts were asked for (.npz, .tsv, .jsonl)",
    )


def timing(stats: Stats, wall_s: float, peak: float) -> dict[str, Any]:
    """Returns the phases of a run as JSON data.

    Args:
        stats: of the engine, counted over the run.
        wall_s: seconds that the run took.
        peak: bytes a second that memory gives, 0 when not measured.
    """
    tokens = stats.prefill_tokens + stats.decode_tokens
    wall_ns = wall_s * 1e9
    rows = [(p.name, float(p.ns), p.calls, p.bytes) for p in stats.phases]
    # Steps of the core lie within the run; what is left of it is this side's.
    rows.append((OUTSIDE, max(0.0, wall_ns - stats.step_ns), 0, 0))
    asked = stats.expert_hits + stats.expert_joined + stats.expert_misses
    return {
        "wall_seconds": wall_s,
        "prefill_tokens": stats.prefill_tokens,
        "decode_tokens": stats.decode_tokens,
        "peak_bytes_per_second": peak,
        "phases": [
            {
                "name": name,
                "ns": round(ns),
                "calls": calls,
                "bytes": count,
                "ms_per_token": ns / 1e6 / tokens if tokens else 0.0,
                "share": ns / wall_ns if wall_ns else 0.0,
                "bytes_per_second": count / ns * 1e9 if ns else 0.0,
            }
            for name, ns, calls, count in rows
        ],
        "experts": {
            "asked": asked,
            "hits": stats.expert_hits,
            "joined": stats.expert_joined,
            "misses": stats.expert_misses,
            "hit_rate": stats.expert_hits / asked if asked else 0.0,
            "read_bytes": stats.read_bytes,
            "read_bytes_per_token": stats.read_bytes / tokens if tokens else 0.0,
            "slots": stats.slots,
            "cache": stats.cache_mode,
            "io": stats.io_engine,
            "policy": stats.policy,
        },
        "lossy": stats.lossy,
    }


def timing_table(report: dict[str, Any]) -> str:
    """Returns `timing` as text."""
    peak = report["peak_bytes_per_second"]
    rows = []
    for phase in report["phases"]:
        rate = phase["bytes_per_second"]
        rows.append(
            {
                "phase": phase["name"],
                "ms/token": f"{phase['ms_per_token']:.3f}",
                "share": f"{100 * phase['share']:.1f} %",
                "bytes": format_bytes(phase["bytes"]) if phase["bytes"] else "-",
                "GB/s": f"{rate / 1e9:.2f}" if rate else "-",
                "of peak": f"{100 * rate / peak:.0f} %" if rate and peak else "-",
            }
        )
    experts = report["experts"]
    tokens = report["prefill_tokens"] + report["decode_tokens"]
    lines = [
        table(rows, left=("phase",)),
        f"{tokens} tokens ({report['prefill_tokens']} prefill, {report['decode_tokens']} decode) "
        f"in {report['wall_seconds']:.3f} s",
        f"experts: {experts['asked']} asked for, {100 * experts['hit_rate']:.1f} % hits, "
        f"{format_bytes(experts['read_bytes_per_token'])} read a token, {experts['slots']} slots "
        f"({experts['cache']}, {experts['policy']}, {experts['io']})",
    ]
    if peak:
        lines.append(f"memory peak measured on {machine.cores()} cores: {peak / 1e9:.1f} GB/s")
    if report["lossy"]:
        lines.append(f"LOSSY: {report['lossy']}")
    return "\n".join(lines)


@contextmanager
def reported_engine(args: argparse.Namespace) -> Iterator[tuple[Engine, dict[str, Any]]]:
    """Opens the model of the arguments, and measures what the block does with it.

    Yields:
        The engine; and a dict that holds, after the block, "timing" when that was asked for.
        Without --json the table is said at once.
    """
    report: dict[str, Any] = {}
    if args.record_routes:
        routes.check_routes_path(Path(args.record_routes))
    # Before the model is there, so that this memory is none of its bound.
    peak = machine.measure_memory() if args.timing else 0.0
    with open_engine(args) as engine:
        with ExitStack() as stack:
            if args.trace:
                stack.enter_context(engine.trace(args.trace))
            trace = stack.enter_context(engine.routes()) if args.record_routes else None
            engine.reset_stats()
            started = time.perf_counter()
            yield engine, report
            wall_s = time.perf_counter() - started
            stats = engine.stats()
        if trace is not None:
            routes.save_routes(Path(args.record_routes), trace)
    if args.timing:
        report["timing"] = timing(stats, wall_s, peak)
        if not args.json:
            say(timing_table(report["timing"]))
