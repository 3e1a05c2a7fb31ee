"""Prints the table of benchmarks/peer_llama.sh from the JSON that its runs left in a folder."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flash_moe import __version__
from flash_moe.bench import machine_text, source_version

KINDS = ("prefill", "decode")


def runs_of(folder: Path, who: str) -> list[dict[str, Any]]:
    """Returns one engine's runs, without the first."""
    paths = sorted(folder.glob(f"{who}.*.json"), key=lambda path: int(path.name.split(".")[1]))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths[1:]]


def ours_of(run: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the table needs of one run of `flash-moe bench --json`."""
    out: dict[str, Any] = {"memory": max(run["machine"]["memory_bytes_per_second"].values())}
    for one in run["results"]:
        out[one["kind"]] = one["tokens_per_second"]["median"]
        out[f"{one['kind']} missed"] = one["missed_bytes_per_token"]
        out[f"{one['kind']} touched"] = one["touched_bytes_per_token"]
        out["rss"] = max(out.get("rss", 0), one["rss_bytes"])
    return out


def peer_of(run: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the table needs of one run of peer_llama.py."""
    out: dict[str, Any] = {"rss": sum(run["rss_at_end"].values())}
    for kind in KINDS:
        out[kind] = run[kind]["tokens_per_second"]
        out[f"{kind} missed"] = run[kind]["read_bytes_per_token"]
    return out


def row(name: str, runs: Sequence[Mapping[str, Any]], bytes_of_bound: float, rate: float) -> str:
    """Returns one line: medians, and the least and the most.

    Args:
        name: of the engine.
        runs: of it.
        bytes_of_bound: that a decoded token must read from memory.
        rate: of memory, bytes a second.
    """

    def speed(kind: str) -> str:
        values = [run[kind] for run in runs]
        middle = statistics.median(values)
        return f"{middle:.2f} ({min(values):.2f}..{max(values):.2f})"

    decode = statistics.median(run["decode"] for run in runs)
    rss = statistics.median(run["rss"] for run in runs)
    missed = statistics.median(run["decode missed"] for run in runs)
    cells = [
        name, speed("decode"), speed("prefill"), f"{100 * decode * bytes_of_bound / rate:.0f} %",
        f"{rss / 1e9:.2f} GB", f"{missed / 1e6:.1f} MB",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def main() -> int:
    """Prints the table."""
    folder = Path(sys.argv[1])
    raw_ours, raw_peer = runs_of(folder, "ours"), runs_of(folder, "peer")
    if not raw_ours or len(raw_ours) != len(raw_peer):
        print(f"{folder}: wanted as many runs of either, and more than one", file=sys.stderr)
        return 2
    ours, peer = [ours_of(run) for run in raw_ours], [peer_of(run) for run in raw_peer]
    rate = statistics.median(run["memory"] for run in ours)
    touched = ours[0]["decode touched"]
    about = raw_peer[0]
    buffers = "; ".join(about["buffers"])
    print(f"{machine_text()}, {about['threads']} threads; memory {rate / 1e9:.1f} GB/s (median)")
    print(f"flash_moe {__version__}, commit {' '.join(source_version())}")
    print(
        f"llama.cpp {about['llama_cpp']} (ggml {about['ggml_commit']}), {about['cpu_library']}, "
        f"load mode {about['load_mode']}, repacking {'on' if about['repack'] else 'off'}: {buffers}"
    )
    print(f"{about['experts_per_token']} experts a token")
    print(f"{len(ours)} runs of each, in turn: median (least..most), tokens/s\n")
    print("| | decode | prefill | of the memory bound | RSS | read a token |")
    print("|---|---|---|---|---|---|")
    print(row("flash_moe", ours, touched, rate))
    print(row("llama.cpp", peer, touched, rate))
    for kind in KINDS:
        ratios = [a[kind] / b[kind] for a, b in zip(ours, peer, strict=True)]
        text = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})"
        print(f"\n{kind}, flash_moe over llama.cpp, pair by pair: {text}", end="")
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
