"""Logits of every tiny checkpoint equal what transformers and mlx-lm gave for it in float32."""

from pathlib import Path

import numpy as np
import pytest
from golden_file import load, relative_difference

import flash_moe
from flash_moe import _core

GOLDENS = sorted((Path(__file__).resolve().parents[1] / "golden").glob("*.*.npz"))
# Of the logits' range. The oracles differ from each other by up to 6e-5 absolute.
TOLERANCE = 1e-4


def open_exact(folder: Path, **settings: object) -> _core.Engine:
    """Opens the C++ engine in the reference precision."""
    options = _core.EngineOptions()
    options.activations = "float32"
    for name, value in settings.items():
        setattr(options, name, value)
    return _core.Engine.open(str(folder), options)


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.name.removesuffix(".npz"))
def test_prefill_equals_the_oracle(path: Path, checkpoint) -> None:
    golden = load(path)
    engine = open_exact(checkpoint(path.name.split(".")[0]))
    logits = engine.new_session().feed(golden.tokens.tolist(), all=True)[golden.rows]
    assert relative_difference(logits, golden.logits) <= TOLERANCE
    assert (logits.argmax(axis=1) == golden.logits.argmax(axis=1)).all()


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.name.removesuffix(".npz"))
def test_greedy_continuation_equals_the_oracle(path: Path, checkpoint) -> None:
    golden = load(path)
    session = open_exact(checkpoint(path.name.split(".")[0])).new_session()
    logits = session.feed(golden.tokens.tolist())
    told = []
    for _ in golden.greedy:
        told.append(int(logits.argmax()))
        logits = session.feed([told[-1]])
    assert told == golden.greedy.tolist()


@pytest.mark.parametrize("isa", _core.cpu_isas())
@pytest.mark.parametrize("case", ["hf_bf16", "mlx_4bit_g64", "hf_next"])
def test_every_instruction_set_equals_the_oracle(case: str, isa: str, checkpoint) -> None:
    golden = load(next(path for path in GOLDENS if path.name.startswith(f"{case}.")))
    if isa not in exact_isas(checkpoint(case)):
        # A table that exists for the fast precision only has no float32 kernels to compare.
        with pytest.raises(flash_moe.ConfigError, match="this machine has"):
            open_exact(checkpoint(case), isa=isa)
        return
    engine = open_exact(checkpoint(case), isa=isa)
    logits = engine.new_session().feed(golden.tokens.tolist(), all=True)[golden.rows]
    assert relative_difference(logits, golden.logits) <= TOLERANCE


def exact_isas(folder: Path) -> list[str]:
    """The tables of the float32 precision, as the error for an unknown name lists them."""
    with pytest.raises(flash_moe.ConfigError) as error:
        open_exact(folder, isa="none of these")
    names = str(error.value).split("this machine has ")[1].removesuffix(" and auto")
    return names.split(", ")


@pytest.mark.parametrize("case", ["mlx_4bit_g64", "mlx_8bit_g64", "mlx_2bit_g32"])
def test_fast_activations_stay_within_their_stated_divergence(case: str, checkpoint) -> None:
    golden = load(next(path for path in GOLDENS if path.name.startswith(f"{case}.")))
    tokens = golden.tokens.tolist()
    exact = open_exact(checkpoint(case)).new_session().feed(tokens, all=True)
    fast = open_exact(checkpoint(case), activations="auto", kv_dtype="float32")
    logits = fast.new_session().feed(tokens, all=True)
    p, q = (log_softmax(rows.astype(np.float64)) for rows in (exact, logits))
    divergence = (np.exp(p) * (p - q)).sum(axis=1)
    assert divergence.mean() <= 1e-5


def log_softmax(rows: np.ndarray) -> np.ndarray:
    """Row-wise log-softmax."""
    shifted = rows - rows.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
