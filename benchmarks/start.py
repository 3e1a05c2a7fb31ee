"""How long an engine takes until it is ready, and until its first token.

Usage: python benchmarks/start.py MODEL [--runs 3] [--memory 16GB] [--load background,whole]

Each run is a new process: with nothing of the model in the page cache ("cold"), then with what the
run before has left there ("warm"). `flash-moe synth qwen3.5-397b-a17b MODEL --hollow` writes a
model that is larger than the drive; its experts are zeros that the system makes without it, so its
first token says nothing about the drive.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from flash_moe import _core
from flash_moe.bench import drop_page_cache

RUN = """
import json, sys, time
begin = time.perf_counter()
import flash_moe
imported = time.perf_counter()
with flash_moe.Engine(sys.argv[1], memory=sys.argv[2], load=sys.argv[3]) as engine:
    ready = time.perf_counter()
    engine.generate([5], max_tokens=1, ignore_eos=True)
    first = time.perf_counter()
print(json.dumps([imported - begin, ready - imported, first - ready]))
"""


def measure(model: str, memory: str, load: str) -> list[float]:
    """Seconds of the import, of the opening, of the first token, and of all three."""
    command = [sys.executable, "-c", RUN, model, memory, load]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    seconds: list[float] = json.loads(answer)
    return [*seconds, sum(seconds)]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--memory", default="auto")
    parser.add_argument("--load", default="background")
    args = parser.parse_args()
    info = _core.inspect(args.model)
    resident = info.resident_bytes / 1e9
    total = sum(path.stat().st_size for path in Path(args.model).iterdir()) / 1e9
    print(f"{info.layers} layers, {total:.1f} GB, {resident:.2f} GB of it always resident")
    loads = args.load.split(",")
    runs: dict[tuple[str, str], list[list[float]]] = {}
    for _ in range(args.runs):
        for load in loads:
            drop_page_cache(Path(args.model))
            for state in ("cold", "warm"):
                runs.setdefault((load, state), []).append(measure(args.model, args.memory, load))
    names = ("import", "ready", "first token", "sum")
    print("s, median (least to most)  " + " ".join(f"{name:22}" for name in names))
    for (load, state), seconds in sorted(runs.items()):
        columns = [
            f"{statistics.median(column):.2f} ({min(column):.2f} to {max(column):.2f})"
            for column in zip(*seconds, strict=True)
        ]
        print(f"{load + ', ' + state:26} " + " ".join(f"{column:22}" for column in columns))


if __name__ == "__main__":
    main()
