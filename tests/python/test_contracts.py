"""Speed settings never change a bit; a failed read changes nothing at all."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import flash_moe
from flash_moe import _core

TOKENS = [(7 * i * i + 3 * i) % 250 + 1 for i in range(70)]


@pytest.fixture(scope="module", params=["hf_bf16", "mlx_4bit_g64", "hf_moe"])
def folder(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint(request.param)


def open_core(folder: Path, **settings: object) -> _core.Engine:
    options = _core.EngineOptions()
    for name, value in settings.items():
        setattr(options, name, value)
    return _core.Engine.open(str(folder), options)


def answers(engine: _core.Engine) -> np.ndarray:
    """Logits of a prompt in one call and of the tokens after it, one by one."""
    session = engine.new_session()
    rows = [session.feed(TOKENS[:60], all=True)]
    rows += [engine.decode([session], [token]) for token in TOKENS[60:]]
    return np.concatenate(rows)


@pytest.fixture(scope="module", params=["auto", "float32"])
def reference(request: pytest.FixtureRequest, folder: Path) -> tuple[str, np.ndarray]:
    return request.param, answers(open_core(folder, activations=request.param, thread_count=1))


SPEED_SETTINGS = [
    {"cache_slots": 1},
    {"cache_slots": 9},
    {"cache_slots": 40},
    {"thread_count": 2},
    {"thread_count": 5},
    {"prefill_chunk": 1},
    {"prefill_chunk": 7},
    {"prefill_chunk": 64, "cache_slots": 12},
    {"prefetch": "on", "cache_slots": 24},
    {"prefetch": "off", "cache_slots": 24},
    {"cache": "os"},
    {"cache": "both", "cache_slots": 16},
    {"cache": "slots", "cache_slots": 16},
    {"io": "threads", "queue_depth": 1, "cache_slots": 16},
    {"io": "threads", "queue_depth": 32, "cache_slots": 16},
    {"io": "uring", "cache_slots": 16},
    {"load": "background", "cache_slots": 16},
    {"policy": "clock", "cache_slots": 16},
    {"policy": "lru", "cache_slots": 16},
]


@pytest.mark.parametrize("settings", SPEED_SETTINGS, ids=str)
def test_speed_settings_change_no_bit(
    folder: Path, reference: tuple[str, np.ndarray], settings: dict[str, object]
) -> None:
    activations, expected = reference
    engine = open_core(folder, activations=activations, **settings)
    assert np.array_equal(answers(engine), expected)


def test_a_prompt_reads_ahead(folder: Path) -> None:
    read = {}
    for prefetch in ("off", "auto"):
        engine = open_core(folder, prefetch=prefetch, cache_slots=40)
        engine.new_session().feed(TOKENS[:10])
        read[prefetch] = engine.stats()
    assert read["off"].prefetched == 0
    hinted = read["auto"]
    assert hinted.prefetched > 8  # of more than one layer
    assert hinted.prefetch_used >= hinted.prefetched - 1  # ten rows name few in vain
    assert hinted.prefetch_used + hinted.expert_misses == read["off"].expert_misses


def test_a_prompt_asks_for_nothing_that_is_there(folder: Path) -> None:
    engine = open_core(folder, cache_slots=40)
    engine.new_session().feed(TOKENS)
    before = engine.stats().prefetched
    engine.new_session().feed(TOKENS)
    assert engine.stats().prefetched == before


def test_a_batch_of_any_size_reads_ahead(folder: Path) -> None:
    engine = open_core(folder, prefetch="on", cache_slots=16)
    sessions = [engine.new_session() for _ in range(6)]
    for i, session in enumerate(sessions):
        session.feed(TOKENS[i : i + 1])
    engine.reset_stats()
    for token in TOKENS[:4]:
        engine.decode(sessions, [token] * 6)
    assert engine.stats().prefetched > 0


def test_company_in_a_batch_changes_no_bit(folder: Path, reference: tuple[str, np.ndarray]) -> None:
    activations, expected = reference
    engine = open_core(folder, activations=activations, cache_slots=20)
    sessions = [engine.new_session() for _ in range(3)]
    sessions[0].feed(TOKENS[:60])
    sessions[1].feed(TOKENS[5:9])
    sessions[2].feed(TOKENS[::-1])
    for i, token in enumerate(TOKENS[60:]):
        rows = engine.decode(sessions, [token, 3 + i, 9])
        assert np.array_equal(rows[0], expected[60 + i])


@pytest.mark.parametrize("reference", ["float32"], indirect=True)
@pytest.mark.parametrize(("prefetch", "step"), [("off", 1), ("on", 3)])
def test_every_failing_read_is_an_error_and_the_next_call_is_right(
    folder: Path, reference: tuple[str, np.ndarray], prefetch: str, step: int
) -> None:
    activations, expected = reference
    settings = {"activations": activations, "cache_slots": 12, "thread_count": 1}
    number, failed = 1, 0
    while True:
        engine = open_core(folder, fail_read=number, prefetch=prefetch, **settings)
        session = engine.new_session()
        message = ""
        try:
            session.feed(TOKENS[:5])
            for i in range(5, 7):
                (last,) = engine.decode([session], [TOKENS[i]])
        except flash_moe.IoError as error:
            message = str(error)
        if engine.stats().failed_reads == 0:
            break
        assert engine.stats().failed_reads == 1
        number += step
        if message:
            failed += 1
            assert re.search(r"wanted \d+ bytes, got \d+", message)
            assert session.position in (0, 5, 6)
            last = session.feed(TOKENS[session.position : 7], all=True)[-1]
        else:
            assert prefetch == "on"  # a hint failed, which is nobody's error
        assert np.array_equal(last, expected[6]), f"after read {number - step} failed"
    assert not message
    assert (engine.stats().prefetched > 0) == (prefetch == "on")
    assert failed > 20 // step
    assert prefetch == "on" or failed >= engine.stats().expert_misses


def test_a_forked_session_goes_its_own_way(folder: Path, reference: tuple[str, np.ndarray]) -> None:
    activations, expected = reference
    session = open_core(folder, activations=activations).new_session()
    session.feed(TOKENS[:40])
    copy = session.fork()
    copy.feed([5, 6, 7])
    assert np.array_equal(session.feed(TOKENS[40:50]), expected[49])


def test_a_saved_session_goes_on_with_the_same_bits(
    folder: Path, reference: tuple[str, np.ndarray], tmp_path: Path
) -> None:
    activations, expected = reference
    path = str(tmp_path / "session")
    session = open_core(folder, activations=activations).new_session()
    session.feed(TOKENS[:40])
    session.save(path)
    loaded = open_core(folder, activations=activations).load_session(path)
    assert loaded.tokens == TOKENS[:40]
    assert np.array_equal(loaded.feed(TOKENS[40:50]), expected[49])


def test_a_damaged_session_file_is_refused(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "session"
    engine = open_core(folder)
    session = engine.new_session()
    session.feed(TOKENS[:5])
    session.save(str(path))
    whole = path.read_bytes()
    for damaged in (whole[:-9], whole[:40], b"", whole[:200] + b"\x55" + whole[201:], whole + b"x"):
        path.write_bytes(damaged)
        with pytest.raises(flash_moe.FormatError):
            engine.load_session(str(path))


def test_a_session_of_another_model_is_refused(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    path = str(tmp_path / "session")
    one = open_core(checkpoint("hf_bf16"))
    session = one.new_session()
    session.feed(TOKENS[:5])
    session.save(path)
    other = open_core(checkpoint("hf_f32"))
    with pytest.raises(flash_moe.FormatError, match="another model"):
        other.load_session(path)
