"""What Python costs a token: sampling, text and calls, beside a vocabulary of 248 320 entries.

Usage: python benchmarks/python_cost.py [--runs 20] [--tokens 64]

A model of one tiny layer with the real vocabulary decodes; what is not inside the engine's steps
is Python's. Its share is stated of a token of 20 ms (50 tokens/s).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import flash_moe
from flash_moe.geometry import load_config
from flash_moe.synth import synthesise

TOKEN_MS = 20.0
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "temperature 0.7, top_p 0.8, top_k 20": {"temperature": 0.7, "top_p": 0.8, "top_k": 20},
    "temperature 1": {"temperature": 1.0, "top_p": 1.0, "top_k": 0},
    "temperature 1, top_p 0.95": {"temperature": 1.0, "top_p": 0.95, "top_k": 0},
    "temperature 0.1, top_p 0.95": {"temperature": 0.1, "top_p": 0.95, "top_k": 0},
    "greedy, 5 logprobs": {"temperature": 0, "logprobs": 5},
}


def tiny_model(folder: Path) -> None:
    """Writes the model: the 35B geometry's vocabulary, everything else as small as it goes."""
    config = load_config("qwen3.5-35b-a3b")
    small = {"moe_intermediate_size": 64, "shared_expert_intermediate_size": 64}
    config["text_config"].update(hidden_size=128, num_experts=16, **small)
    synthesise(config, folder, layers=1)


def costs_ms(engine: flash_moe.Engine, tokens: int, settings: dict[str, Any]) -> list[float]:
    """Milliseconds outside of the engine's steps, of each decoded token."""
    costs: list[float] = []
    stream = engine.stream("Once", max_tokens=tokens, ignore_eos=True, seed=1, **settings)
    with stream:
        next(stream)  # the prompt's tokens are not decoded
        while True:
            engine.reset_stats()
            started = time.perf_counter()
            if (piece := next(stream, None)) is None:
                return costs
            outside_s = time.perf_counter() - started - engine.stats().step_ns / 1e9
            costs.append(1e3 * outside_s / max(1, len(piece.token_ids)))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tiny_model(Path(folder) / "model")
        with flash_moe.Engine(Path(folder) / "model") as engine:
            times: dict[str, list[float]] = {name: [] for name in SETTINGS}
            for _ in range(args.runs):
                for name, settings in SETTINGS.items():
                    times[name] += costs_ms(engine, args.tokens, settings)
            print(f"| {engine.info.vocab} entries | ms a token, quartiles | median's share |")
            print("|---|---|---|")
            for name, ms in times.items():
                low, middle, high = statistics.quantiles(ms, n=4)
                share = 100 * middle / TOKEN_MS
                print(f"| {name} | {middle:.2f} ({low:.2f} to {high:.2f}) | {share:.1f} % |")


if __name__ == "__main__":
    main()
