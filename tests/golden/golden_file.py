"""What a golden is: one .npz a case and oracle, with all that is needed to remake it.

Arrays: tokens [T] i32; rows [R] i32 (which positions' logits are kept); logits [R, vocab] f32 (or
log-probabilities, where the metadata's "values" says so); greedy [16] i32 (continuation after the
prompt); metadata, a JSON string (oracle, versions, seed, model_sha256, margins).
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from checkpoints import Case
from checkpoints.random_numbers import token_ids
from checkpoints.tokenizer_files import TOKEN_COUNT

FOLDER = Path(__file__).resolve().parent
LOG_PROBABILITIES = "log_probabilities"  # in "values": an oracle that does not tell its logits
GREEDY_TOKENS = 16
# Below these an honest engine could differ from the oracle by rounding alone: choose another seed.
ROUTER_MARGIN_MIN = 1e-4
GREEDY_MARGIN_MIN = 1e-2


class Golden(NamedTuple):
    """One oracle's answers for one case."""

    tokens: np.ndarray
    rows: np.ndarray
    logits: np.ndarray
    greedy: np.ndarray
    metadata: dict[str, Any]


def prompt_of(case: Case) -> np.ndarray:
    """Returns the case's prompt: random ids over the tokenizer's whole vocabulary."""
    return token_ids(case.seed, "prompt", case.tokens, TOKEN_COUNT)


def kept_rows(token_count: int) -> np.ndarray:
    """All rows of a short prompt; every 100th and the last 20 of a long one."""
    if token_count <= 128:
        return np.arange(token_count, dtype=np.int32)
    rows = {*range(0, token_count, 100), *range(token_count - 20, token_count)}
    return np.array(sorted(rows), dtype=np.int32)


def save(path: Path, golden: Golden) -> None:
    """Writes a golden; identical answers give identical array bytes."""
    np.savez_compressed(
        path,
        tokens=golden.tokens.astype(np.int32),
        rows=golden.rows.astype(np.int32),
        logits=golden.logits.astype(np.float32),
        greedy=golden.greedy.astype(np.int32),
        metadata=np.array(json.dumps(golden.metadata, sort_keys=True)),
    )


def load(path: Path) -> Golden:
    """Reads a golden."""
    with np.load(path) as file:
        return Golden(
            file["tokens"],
            file["rows"],
            file["logits"],
            file["greedy"],
            json.loads(str(file["metadata"])),
        )


def relative_difference(a: np.ndarray, b: np.ndarray) -> float:
    """Returns max |a - b| over the range of a."""
    return float(np.abs(a - b).max() / (a.max() - a.min()))


def log_softmax(rows: np.ndarray) -> np.ndarray:
    """Row-wise log-softmax, computed in float64."""
    shifted = rows.astype(np.float64) - rows.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Returns each row's KL divergence of q from p; logits or log-probabilities [rows, vocab]."""
    p, q = log_softmax(p), log_softmax(q)
    return (np.exp(p) * (p - q)).sum(axis=1)


def tells_logits(golden: Golden) -> bool:
    """False where the golden holds log-probabilities."""
    return golden.metadata.get("values") != LOG_PROBABILITIES


def decided_rows(logits: np.ndarray, tolerance: float) -> np.ndarray:
    """Returns which rows' best token leads by more than two logits, each off by tolerance x range,
    can undo."""
    best = np.sort(logits, axis=1)
    return best[:, -1] - best[:, -2] > 2 * tolerance * (logits.max() - logits.min())
