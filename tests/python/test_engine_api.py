"""The Python API on real tiny checkpoints: what the fake core cannot show."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import flash_moe
from flash_moe import errors

PROMPT = "Hello world, the user is in on at"


@pytest.fixture(scope="module", params=["hf_bf16", "mlx_4bit_g64", "hf_moe", "hf_next"])
def engine(request, checkpoint):
    with flash_moe.Engine(checkpoint(request.param), threads=1) as engine:
        yield engine


def greedy(engine, count=8, **options):
    return engine.generate(PROMPT, max_tokens=count, temperature=0, ignore_eos=True, **options)


def test_generation_follows_the_logits(engine):
    ids = engine.encode(PROMPT)
    out = greedy(engine)
    for place, token in enumerate(out.token_ids):
        row = engine.logits(ids + out.token_ids[:place])[-1]
        assert int(row[: engine.tokenizer.size].argmax()) == token


def test_logits_do_not_depend_on_how_tokens_are_fed(engine):
    ids = engine.encode(PROMPT)
    whole = engine.logits(ids)
    assert (whole.dtype, whole.shape) == (np.float32, (len(ids), engine.info.vocab))
    with engine.session() as session:
        rows = [session.core.feed([token]) for token in ids]
    assert all((row == want).all() for row, want in zip(rows, whole, strict=True))


def test_a_batch_gives_each_prompt_its_own_answer(engine):
    prompts = ["Hello", "the user", "world in on", "function"]
    options = {"max_tokens": 6, "seed": 9, "temperature": 0.8, "ignore_eos": True, "logprobs": 1}
    alone = [engine.generate(prompt, **options) for prompt in prompts]
    together = engine.generate(prompts, **options)
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    assert [c.logprobs for c in together] == [c.logprobs for c in alone]


def test_a_seed_decides_the_text(engine, checkpoint):
    options = {"max_tokens": 12, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "ignore_eos": True}
    first = engine.generate(PROMPT, seed=5, **options)
    assert engine.generate(PROMPT, seed=5, **options).token_ids == first.token_ids
    assert first.seed == 5
    others = {tuple(engine.generate(PROMPT, seed=seed, **options).token_ids) for seed in range(5)}
    assert len(others) == 5
    drawn = engine.generate(PROMPT, **options)
    again = engine.generate(PROMPT, seed=drawn.seed, **options)
    assert again.token_ids == drawn.token_ids
    with flash_moe.Engine(engine.path, threads=1) as other:
        assert other.generate(PROMPT, seed=5, **options).text == first.text


def test_logprobs_are_those_of_the_logits(engine):
    out = greedy(engine, 5, logprobs=4)
    rows = engine.logits(engine.encode(PROMPT) + out.token_ids)[-6:-1, : engine.tokenizer.size]
    for row, entry in zip(rows.astype(np.float64), out.logprobs, strict=True):
        logprobs = row - row.max() - np.log(np.exp(row - row.max()).sum())
        likeliest = np.argsort(-row, kind="stable")[:4].tolist()
        assert [token for token, _ in entry.top] == likeliest
        assert entry.token_id == likeliest[0]
        assert entry.logprob == pytest.approx(logprobs[entry.token_id], abs=1e-5)
        assert [p for _, p in entry.top] == pytest.approx(logprobs[likeliest], abs=1e-5)


def test_a_stop_string_across_tokens_ends_the_text_before_it(engine):
    whole = greedy(engine, 24)
    with engine.stream(PROMPT, max_tokens=24, temperature=0, ignore_eos=True) as stream:
        texts = [piece.text for piece in stream]
    assert "".join(texts) == whole.text
    borders = np.cumsum([len(text) for text in texts]).tolist()
    # The first stretch of three characters that no piece holds whole and that is new in the text.
    start = next(
        i
        for i in range(len(whole.text) - 2)
        if any(i < border < i + 3 for border in borders)
        and whole.text.find(whole.text[i : i + 3]) == i
    )
    stop = whole.text[start : start + 3]
    out = greedy(engine, 24, stop=["never said", stop])
    assert (out.text, out.finish_reason) == (whole.text[:start], "stop")
    assert out.token_ids == whole.token_ids[: len(out.token_ids)]
    with engine.stream(PROMPT, max_tokens=24, temperature=0, ignore_eos=True, stop=stop) as stream:
        assert "".join(piece.text for piece in stream) == whole.text[:start]


def test_engines_sessions_and_streams_end_with_their_block(checkpoint):
    with flash_moe.Engine(checkpoint("hf_bf16"), threads=1) as engine:
        with engine.session() as session, session.stream(PROMPT, ignore_eos=True) as stream:
            next(stream)
            tokens = len(session)
        assert next(stream, None) is None
        assert stream.completion.finish_reason == "cancelled"
        assert tokens > len(engine.encode(PROMPT))
        with pytest.raises(errors.ConfigError, match="session is closed"):
            session.feed("a")
        with pytest.raises(ZeroDivisionError), engine.stream("Hello") as stream:
            raise ZeroDivisionError
        assert list(stream) == []
    with pytest.raises(errors.ConfigError, match="engine is closed"):
        engine.generate("a")


def test_sessions_fork_and_are_saved_exactly(engine, tmp_path):
    session = engine.session()
    session.feed(PROMPT)
    session.generate(max_tokens=3, temperature=0, ignore_eos=True)
    session.save(tmp_path / "s")
    twin = session.fork()
    loaded = engine.load_session(tmp_path / "s")
    options = {"max_tokens": 6, "temperature": 0, "ignore_eos": True, "logprobs": 3}
    want = session.generate(**options)
    assert twin.generate(**options).logprobs == want.logprobs
    assert loaded.generate(**options).logprobs == want.logprobs
    assert loaded.tokens == session.tokens
    (tmp_path / "s.logits").unlink()
    again = engine.load_session(tmp_path / "s")
    assert again.generate(**options).logprobs == want.logprobs


def test_a_damaged_session_is_refused(engine, tmp_path):
    session = engine.session()
    session.feed("Hello")
    session.save(tmp_path / "s")
    content = bytearray((tmp_path / "s").read_bytes())
    content[len(content) // 2] ^= 0x40
    (tmp_path / "s").write_bytes(content)
    with pytest.raises(errors.FormatError):
        engine.load_session(tmp_path / "s")
    (tmp_path / "s").write_bytes(content[: len(content) // 2])
    with pytest.raises(errors.FormatError):
        engine.load_session(tmp_path / "s")


def test_a_session_of_another_model_is_refused(engine, checkpoint, tmp_path):
    session = engine.session()
    session.feed("Hello")
    session.save(tmp_path / "s")
    with (
        flash_moe.Engine(checkpoint("hf_odd_heads"), threads=1) as other,
        pytest.raises(errors.FormatError, match="another model"),
    ):
        other.load_session(tmp_path / "s")


def test_the_score_is_that_of_the_logits(engine):
    ids = engine.encode(PROMPT)
    logits = engine.logits(ids).astype(np.float64)[:, : engine.tokenizer.size]
    logits -= logits.max(axis=1, keepdims=True)
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    want = [logprobs[i, token] for i, token in enumerate(ids[1:])]
    assert engine.score(PROMPT).logprobs == pytest.approx(want, abs=1e-5)


def test_threads_use_sessions_of_one_engine(engine):
    want = {
        prompt: engine.generate(prompt, max_tokens=8, temperature=0) for prompt in ("Hello", "user")
    }
    got = {}

    def work(prompt):
        for _ in range(3):
            got[prompt] = engine.generate(prompt, max_tokens=8, temperature=0)

    threads = [threading.Thread(target=work, args=(prompt,)) for prompt in want]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {p: c.token_ids for p, c in got.items()} == {p: c.token_ids for p, c in want.items()}


def test_stats_routes_and_traces_tell_what_happened(engine, tmp_path):
    engine.reset_stats()
    with engine.routes() as routes, engine.trace(tmp_path / "t.json"):
        out = greedy(engine, 4)
    stats = engine.stats()
    tokens = out.stats.prompt_tokens + len(out.token_ids) - 1
    assert stats.prefill_tokens + stats.decode_tokens == tokens
    assert sum(phase.ns for phase in stats.phases) == pytest.approx(stats.step_ns, rel=0.01)
    assert len(routes.rows) == tokens * engine.info.moe_layers
    assert routes.logits.shape == (len(routes.rows), engine.info.experts)
    best = np.argsort(-routes.logits, axis=1, kind="stable")[:, : engine.info.experts_per_token]
    assert [row[1:] for row in routes.rows] == best.tolist()
    assert json.loads((tmp_path / "t.json").read_text())["traceEvents"]


def test_fewer_experts_are_told_to_be_lossy(checkpoint):
    with flash_moe.Engine(checkpoint("hf_bf16"), experts_per_token=1) as engine:
        assert "1 of 3" in greedy(engine, 2).stats.lossy
    with flash_moe.Engine(checkpoint("hf_bf16")) as engine:
        assert greedy(engine, 2).stats.lossy == ""


def test_settings_reach_the_core_and_never_change_a_bit(checkpoint):
    folder = checkpoint("hf_bf16")
    with flash_moe.Engine(folder, threads=1) as engine:
        want = engine.logits(PROMPT)
        tokens = greedy(engine).token_ids
    options = {"cache": "slots", "cache_slots": 12, "io": "threads", "queue_depth": 1}
    options |= {"policy": "lru", "prefill_chunk": 3, "prefetch": True, "threads": 2}
    with flash_moe.Engine(folder, **options) as engine:
        assert (engine.logits(PROMPT) == want).all()
        assert greedy(engine).token_ids == tokens
        stats, plan = engine.stats(), engine.memory_plan()
    assert (stats.cache_mode, stats.io_engine, stats.policy) == ("slots", "threads", "lru")
    assert (stats.slots, plan.slots, plan.prefill_chunk) == (12, 12, 3)


def test_automatic_cache_keeps_slots_and_fills_them_through_free_memory(checkpoint):
    folder = checkpoint("hf_bf16")
    modes = {}
    for slots in (12, None):
        with flash_moe.Engine(folder, cache_slots=slots) as engine:
            greedy(engine, 2)
            modes[slots] = (engine.stats().cache_mode, engine.stats().slots)
            every = engine.memory_plan().slots_all
    assert modes == {12: ("both", 12), None: ("slots", every)}


@pytest.mark.parametrize("option", ["prefetch", "cache", "policy", "io", "isa", "kv_dtype", "load"])
def test_an_unknown_value_is_named_with_the_known_ones(checkpoint, option):
    with pytest.raises(errors.ConfigError, match="warp"):
        flash_moe.Engine(checkpoint("hf_bf16"), **{option: "warp"})


def test_memory_can_be_changed_while_it_runs(checkpoint):
    with flash_moe.Engine(checkpoint("hf_bf16"), memory="1GB") as engine:
        want = greedy(engine).token_ids
        before = engine.memory_plan()
        with pytest.raises(errors.ConfigError):
            engine.set_memory(1_000_000)
        assert engine.memory_plan().memory_bytes == before.memory_bytes
        engine.set_memory("2GB")
        assert engine.memory_plan().memory_bytes == 2_000_000_000
        engine.drop_cache()
        assert greedy(engine).token_ids == want


def test_a_prompt_can_be_cancelled_and_the_session_is_as_before(checkpoint):
    with (
        flash_moe.Engine(checkpoint("hf_long"), prefill_chunk=1) as engine,
        engine.session() as session,
    ):
        session.feed("Hello")
        before = session.tokens
        with pytest.raises(errors.CancelledError):
            session.feed("a b " * 1000, progress=lambda done, total: True)
        assert session.tokens == before
        again = session.generate(max_tokens=3, temperature=0, ignore_eos=True, logprobs=1)
    with flash_moe.Engine(checkpoint("hf_long")) as engine:
        want = engine.generate("Hello", max_tokens=3, temperature=0, ignore_eos=True, logprobs=1)
    assert again.logprobs == want.logprobs


def test_ctrl_c_stops_a_prompt_within_a_step(checkpoint):
    with (
        flash_moe.Engine(checkpoint("hf_long"), prefill_chunk=1, threads=1) as engine,
        engine.session() as session,
    ):
        session.feed("Hello")
        before = session.tokens
        seen = []

        def progress(done, total):
            seen.append(done)
            if len(seen) == 1:
                os.kill(os.getpid(), signal.SIGINT)
            return False

        with pytest.raises(KeyboardInterrupt):
            session.feed("a b " * 1000, progress=progress)
        assert len(seen) == 1
        assert session.tokens == before
        assert session.generate(max_tokens=2, temperature=0, ignore_eos=True).token_ids

        watcher = threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT))
        stream = session.stream("more", max_tokens=None, temperature=0, ignore_eos=True)
        next(stream)

        def interrupted():
            watcher.start()
            stream.finish()

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        watcher.join()
        assert session.generate(max_tokens=2, temperature=0, ignore_eos=True).token_ids


def test_an_engine_lives_as_long_as_its_sessions(checkpoint):
    engine = flash_moe.Engine(checkpoint("hf_bf16"))
    session = engine.session()
    session.feed("Hello")
    core = session.core
    engine.close()
    with pytest.raises(errors.ConfigError, match="closed"):
        session.feed("more")
    assert core.position == len(core.tokens)
    core.close()


def command(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "flash_moe", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def test_the_command_line_writes_the_same_text(checkpoint):
    folder = checkpoint("hf_bf16")
    with flash_moe.Engine(folder) as engine:
        want = greedy(engine).text
    process = command(
        "generate", PROMPT, "--model", folder, "--max-tokens", 8, "--temperature", 0, "--ignore-eos"
    )
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, b"")
    assert out.decode() == want + "\n"


def test_ctrl_c_ends_the_command_with_130(checkpoint):
    process = command(
        "generate", PROMPT, "--model", checkpoint("hf_bf16"), "--max-tokens", 4000, "--ignore-eos"
    )
    assert process.stdout is not None
    first = os.read(process.stdout.fileno(), 1)
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, err = process.communicate(timeout=120)
    assert first
    assert process.returncode == 130
    assert err.decode().splitlines() == ["flash-moe: stopped"]
    assert time.monotonic() - started < 60


def test_a_reader_that_leaves_is_no_traceback(checkpoint):
    process = command(
        "generate", PROMPT, "--model", checkpoint("hf_bf16"), "--max-tokens", 3000, "--ignore-eos"
    )
    assert process.stdout is not None
    assert process.stderr is not None
    os.read(process.stdout.fileno(), 1)
    process.stdout.close()
    assert process.wait(timeout=120) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


def test_sampled_tokens_are_decoded_and_prompts_are_not(checkpoint):
    with flash_moe.Engine(checkpoint("hf_bf16"), threads=1) as engine, engine.session() as session:
        session.feed([1, 2, 3])
        session.generate([4, 5], max_tokens=4, temperature=0, ignore_eos=True)
        session.generate([6], max_tokens=2, temperature=0, ignore_eos=True)
        stats = engine.stats()
    # The last token of an answer is decoded when the next one comes.
    assert (stats.prefill_tokens, stats.decode_tokens) == (6, 5)


def test_a_session_is_loaded_beside_weights_that_are_being_read(checkpoint, tmp_path):
    folder, path = checkpoint("hf_bf16"), tmp_path / "session"
    with flash_moe.Engine(folder, load="whole") as engine, engine.session() as session:
        session.feed([5, 6, 7])
        session.save(path)
        want = session.generate(None, max_tokens=4, temperature=0).token_ids
    with (
        flash_moe.Engine(folder, load="background") as engine,
        engine.load_session(path) as session,
    ):
        assert session.generate(None, max_tokens=4, temperature=0).token_ids == want
