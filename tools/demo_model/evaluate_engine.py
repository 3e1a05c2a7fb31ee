"""Task accuracy and perplexity of a model folder as flash_moe itself runs it, on held-out data.

The cases are those of `evaluate.py`, in its order, so that the first N of both can be compared.
Works in rounds and stops after --seconds, because a CPU is slow; the counts are in the result, and
a further call with the same --out goes on from it.

Usage: python evaluate_engine.py --out results.json [--model DIR] [--seconds 900] [--windows 4]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import corpus
import numpy as np
from evaluate import (
    HELD_OUT_SEED,
    after_thought,
    json_right,
    number_right,
    parse_calls,
    task_cases,
    tool_cases,
)
from lexicon import Pools

import flash_moe


@dataclass
class Kind:
    """One kind of task: its cases, how many a round answers, and what came of them."""

    cases: list[tuple[str, Any, bool]]
    share: int
    limit: int
    done: int = 0
    right: int = 0
    valid: int = 0
    failures: list[str] = field(default_factory=list)

    def resume(self, before: dict[str, Any] | None) -> None:
        """Goes on from an earlier result."""
        if before is not None:
            self.done, self.right, self.valid = before["count"], before["right"], before["valid"]
            self.failures = before["failures"]

    def result(self) -> dict[str, Any]:
        """Counts so far."""
        return {"count": self.done, "right": self.right, "valid": self.valid,
                "failures": self.failures}  # fmt: skip


def judge(kind: str, answer: str, wanted: Any) -> tuple[bool, bool, Any]:  # noqa: ANN401
    """Whether an answer is well formed, whether it is right, and what was wanted."""
    if kind == "tools":
        calls = parse_calls(answer)
        return calls is not None, calls == wanted, wanted
    if kind == "json":
        valid, right = json_right(answer, wanted.expected)
        return valid, right, wanted.answer
    right = number_right(answer, wanted.expected)
    return right, right, wanted.plain


def answer_some(engine: flash_moe.Engine, name: str, kind: Kind) -> None:
    """Answers the next cases of a kind greedily, in one batch."""
    batch = kind.cases[kind.done : kind.done + kind.share]
    if not batch:
        return
    prompts = [engine.prompt_ids(case[0], control_tokens=True) for case in batch]
    answers = engine.generate(prompts, max_tokens=kind.limit, temperature=0)
    for (_, wanted, thinking), completion in zip(batch, answers, strict=True):
        answer = after_thought(completion.text, thinking)
        valid, right, shown = judge(name, answer, wanted)
        kind.done, kind.right = kind.done + 1, kind.right + right
        kind.valid += valid
        if not right:
            kind.failures.append(f"want {shown!r}, got {answer!r}")


def perplexity(engine: flash_moe.Engine, windows: np.ndarray) -> float:
    """Exp of the mean loss over all tokens of the windows."""
    total, count = 0.0, 0
    for row in windows[:, 0].astype(np.int64):
        logits = engine.logits(row[:-1].tolist()).astype(np.float64)
        top = logits.max(-1)
        normaliser = top + np.log(np.exp(logits - top[:, None]).sum(-1))
        total += float((normaliser - logits[np.arange(len(row) - 1), row[1:]]).sum())
        count += len(row) - 1
    return math.exp(total / count)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=flash_moe.demo_model())
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=900)
    parser.add_argument("--windows", type=int, default=0)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--activations", default="auto")
    args = parser.parse_args()
    kinds = {
        "arithmetic": Kind(task_cases("arithmetic", args.count), 20, 110),
        "json": Kind(task_cases("json", args.count), 10, 160),
        "tools": Kind(tool_cases(args.count), 10, 160),
    }
    end = time.monotonic() + args.seconds
    result: dict[str, Any] = {"model": args.model.name}
    if args.out.exists():
        result = json.loads(args.out.read_text())
        for name, kind in kinds.items():
            kind.resume(result.get(name))
    options = {"threads": args.threads, "activations": args.activations}
    with flash_moe.Engine(args.model, **options) as engine:
        while time.monotonic() < end and any(k.done < len(k.cases) for k in kinds.values()):
            for name, kind in kinds.items():
                answer_some(engine, name, kind)
                result[name] = kind.result()
                args.out.write_text(json.dumps(result, indent=1) + "\n")
            print({n: f"{k.right}/{k.done}" for n, k in kinds.items()}, flush=True)
        if args.windows:
            packer = corpus.Packer(args.model, 510)
            windows = packer.windows(Random(HELD_OUT_SEED + 3), args.windows, Pools(True))
            result["perplexity"] = round(perplexity(engine, windows), 4)
            print(result["perplexity"])
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
