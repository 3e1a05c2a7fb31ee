"""Logits of every tiny checkpoint equal what transformers, mlx-lm and llama.cpp gave in float32.

Held against their recorded answers; against a live llama.cpp too, where xllamacpp is installed.
"""

from pathlib import Path

import numpy as np
import pytest
from checkpoints import CASES
from golden_file import (
    FOLDER,
    Golden,
    divergence,
    load,
    log_softmax,
    relative_difference,
    tells_logits,
)

import flash_moe
from flash_moe import _core

GOLDENS = sorted(FOLDER.glob("*.*.npz"))
# Of the logits' range. The oracles differ from each other by up to 6e-5 absolute.
TOLERANCE = 1e-4
# Of llama.cpp's log-probabilities: seen 1.2e-4 in 3000 tokens and 3.9e-5 in short prompts, where
# transformers is up to 1.2e-4 and 8.7e-5 from it, and a divergence of 9e-10, which goes by the
# square. Five times that is for other machines; one norm weight off by 1e-3 makes 9e-4.
LOG_PROBABILITY_TOLERANCE = 6e-4
DIVERGENCE_TOLERANCE = 2e-8
# Live, llama.cpp computes every prefix of a prompt anew: every 6th, and none of the long prompt.
LIVE_ROW_STEP, LIVE_TOKENS_MAX = 6, 128
LIVE = [
    name
    for path in FOLDER.glob("*.llama_cpp.npz")
    if CASES[name := path.name.split(".")[0]].tokens <= LIVE_TOKENS_MAX
]


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
    logits = prefill(checkpoint(path.name.split(".")[0]), golden)
    if tells_logits(golden):
        assert relative_difference(logits, golden.logits) <= TOLERANCE
    else:
        assert_same_distributions(logits, golden.logits)
    assert (logits.argmax(axis=1) == golden.logits.argmax(axis=1)).all()


def prefill(folder: Path, golden: Golden) -> np.ndarray:
    """Logits of the golden's rows, from its whole prompt at once."""
    session = open_exact(folder).new_session()
    return session.feed(golden.tokens.tolist(), all=True)[golden.rows]


def assert_same_distributions(logits: np.ndarray, log_probabilities: np.ndarray) -> None:
    """Holds next-token distributions against those of an oracle that tells no logits."""
    assert np.abs(log_softmax(logits) - log_probabilities).max() <= LOG_PROBABILITY_TOLERANCE
    assert np.abs(divergence(log_probabilities, logits)).max() <= DIVERGENCE_TOLERANCE


@pytest.mark.oracle
@pytest.mark.parametrize("name", sorted(LIVE))
def test_distributions_equal_a_live_llama_cpp(name: str, checkpoint, tmp_path) -> None:
    pytest.importorskip("xllamacpp")
    from golden import gguf_twin
    from golden.llama_oracle import Llama

    golden, case = load(FOLDER / f"{name}.llama_cpp.npz"), CASES[name]
    golden = golden._replace(rows=golden.rows[LIVE_ROW_STEP - 1 :: LIVE_ROW_STEP])
    twin = gguf_twin.convert(checkpoint(name), case, tmp_path)
    llama = Llama(twin, case.geometry.vocab, len(golden.tokens))
    live = llama.rows(golden.tokens, golden.rows)
    logits = prefill(checkpoint(name), golden)
    assert_same_distributions(logits, live)
    assert (logits.argmax(axis=1) == live.argmax(axis=1)).all()


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
    golden = load(FOLDER / f"{case}.transformers.npz")
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
    golden = load(FOLDER / f"{case}.transformers.npz")
    tokens = golden.tokens.tolist()
    exact = open_exact(checkpoint(case)).new_session().feed(tokens, all=True)
    fast = open_exact(checkpoint(case), activations="auto", kv_dtype="float32")
    logits = fast.new_session().feed(tokens, all=True)
    assert divergence(exact, logits).mean() <= 1e-5
