"""The Metal backend on a real GPU says what the CPU backend in float32 says. on_a_mac.sh runs this with validation on."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

flash_moe = pytest.importorskip("flash_moe", reason="flash_moe is not installed: pip install .")
from flash_moe import _core  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from checkpoints import CASES, make  # noqa: E402

reason = _core.backends()["metal"]
if reason and os.environ.get("FLASH_MOE_REQUIRE_METAL") != "1":
    pytest.skip(f"no Metal here: {reason}", allow_module_level=True)

TOKENS = [(7 * i * i + 3 * i) % 250 + 1 for i in range(70)]
# Largest difference of a logit, against the spread of its row: sums run in another order, and exp has another last bit.
FLOAT32_TOLERANCE = 2e-4
# Simdgroup matrices, which prompts go through, sum in yet another order, but in f32 too.
FAST_TOLERANCE = 1e-3


def logits(folder: Path, **settings: object) -> np.ndarray:
    options = _core.EngineOptions()
    for name, value in settings.items():
        setattr(options, name, value)
    session = _core.Engine.open(str(folder), options).new_session()
    rows = [session.feed(TOKENS[:60], all=True)]
    rows += [session.feed([token])[None] for token in TOKENS[60:]]
    return np.concatenate(rows)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float((np.abs(a - b).max(axis=-1) / (b.max(axis=-1) - b.min(axis=-1))).max())


@pytest.fixture(scope="module", params=sorted(CASES))
def folder(request, tmp_path_factory):
    return make(request.param, tmp_path_factory.mktemp("checkpoints") / request.param)


def test_checkpoints_give_the_cpu_s_logits(folder):
    cpu = logits(folder, backend="cpu", activations="float32")
    metal = logits(folder, backend="metal", activations="float32", cache_slots=6)
    assert difference(metal, cpu) < FLOAT32_TOLERANCE
    assert np.array_equal(metal.argmax(axis=-1), cpu.argmax(axis=-1))


def test_wide_steps_stay_within_their_tolerance(folder):
    cpu = logits(folder, backend="cpu", activations="float32")
    assert difference(logits(folder, backend="metal", activations="auto"), cpu) < FAST_TOLERANCE


@pytest.mark.parametrize("settings", [{"prefill_chunk": 7}, {"cache_slots": 40}, {"prefetch": "on", "cache_slots": 24}], ids=str)
def test_speed_settings_change_no_bit_in_float32(settings, tmp_path):
    path = make("mlx_4bit_g64", tmp_path / "model")
    plain = logits(path, backend="metal", activations="float32", cache_slots=9)
    assert np.array_equal(plain, logits(path, backend="metal", activations="float32", **({"cache_slots": 9} | settings)))


def test_the_bundled_model_tells_the_cpu_s_story():
    stories = [
        flash_moe.Engine(backend=backend, activations="float32").generate(
            "Once upon a time", max_tokens=60, temperature=0
        )
        for backend in ("metal", "cpu")
    ]
    assert stories[0].text == stories[1].text
