"""Tiny checkpoints, and engines over the fake core."""

import signal
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))
sys.path.insert(0, str(TESTS / "python"))
sys.path.insert(0, str(TESTS / "golden"))

from checkpoints import make  # noqa: E402

# Tests started in the background inherit an ignored SIGINT, and so would what they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Returns a function from the name of a case to its folder, which tests must not change."""
    made = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = make(name, tmp_path_factory.mktemp("checkpoints") / name)
        return made[name]

    return get


@pytest.fixture
def fake(checkpoint):
    """An engine of the real Python layer over the fake core."""
    from fake_core import FakeEngine

    from flash_moe.engine import Engine

    with Engine.over(FakeEngine(vocab=320), checkpoint("hf_bf16")) as engine:
        yield engine


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty Hugging Face cache."""
    for name in ("HF_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "hf" / "hub"
