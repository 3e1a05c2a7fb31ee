"""Sessions, streams and batches over the fake core: what is fed, what stays after errors."""

import threading

import numpy as np
import pytest
from fake_core import FakeEngine

from flash_moe import errors
from flash_moe.engine import Engine
from flash_moe.options import Defaults, resolve


def likeliest(engine, tokens, count):
    """What greedy decoding must give, computed without a session."""
    tokens = list(tokens)
    for _ in range(count):
        logits = engine.core.logits_of(tokens)[: engine.tokenizer.size]
        tokens.append(int(logits.argmax()))
    return tokens[-count:]


def test_generate_takes_a_text_and_ids_and_is_greedy_at_temperature_0(fake):
    ids = fake.encode("Hello world")
    out = fake.generate("Hello world", max_tokens=6, temperature=0, ignore_eos=True)
    assert out.token_ids == likeliest(fake, ids, 6)
    assert out.text == fake.decode(out.token_ids)
    assert (str(out), out.finish_reason) == (out.text, "length")
    assert (
        fake.generate(ids, max_tokens=6, temperature=0, ignore_eos=True).token_ids == out.token_ids
    )
    array = np.array(ids)
    assert (
        fake.generate(array, max_tokens=6, temperature=0, ignore_eos=True).token_ids
        == out.token_ids
    )


def test_the_same_seed_gives_the_same_text_alone_or_in_a_batch(fake):
    prompts = ["Hello", "the user", "你好", "in on at"] * 4
    options = {"max_tokens": 8, "seed": 5, "temperature": 1.0, "ignore_eos": True}
    alone = [fake.generate(prompt, **options) for prompt in prompts]
    together = fake.generate(prompts, **options)
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    assert [c.text for c in together] == [c.text for c in alone]
    assert max(fake.core.batches) > 1
    assert fake.generate(["Hello"], **options)[0].token_ids == alone[0].token_ids


def test_a_drawn_seed_repeats_the_answer(fake):
    first = fake.generate("Hello", max_tokens=8, temperature=1.0, ignore_eos=True)
    again = fake.generate("Hello", max_tokens=8, temperature=1.0, ignore_eos=True, seed=first.seed)
    assert again.token_ids == first.token_ids


def test_pieces_join_to_the_text_and_carry_every_token(fake):
    stream = fake.stream(
        "Hello", max_tokens=40, temperature=1.0, seed=3, logprobs=2, ignore_eos=True
    )
    pieces = list(stream)
    out = stream.completion
    assert "".join(str(p) for p in pieces) == out.text
    assert [i for p in pieces for i in p.token_ids] == out.token_ids
    assert [e for p in pieces for e in p.logprobs] == out.logprobs
    assert [e.token_id for e in out.logprobs] == out.token_ids
    assert all(len(e.top) == 2 and e.logprob <= e.top[0][1] for e in out.logprobs)
    want = fake.generate("Hello", max_tokens=40, temperature=1.0, seed=3, ignore_eos=True)
    assert out.token_ids == want.token_ids


def script(fake, prompt, answer):
    """The fake core will answer a prompt with a text."""
    ids = fake.encode(answer, control_tokens=True)
    fake.core.answer_with(len(prompt), ids)
    return ids


def test_an_end_token_ends_the_text_and_is_not_in_it(fake):
    prompt = fake.encode("Hello")
    ids = script(fake, prompt, "world<|im_end|>never")
    out = fake.generate(prompt, temperature=0)
    assert (out.text, out.finish_reason) == ("world", "stop")
    assert out.token_ids == ids[: len(out.token_ids)]
    assert fake.tokenizer.is_special(out.token_ids[-1])


def test_a_stop_string_ends_the_text_across_tokens(fake):
    prompt = fake.encode("Hello")
    script(fake, prompt, "one two three four<|im_end|>")
    out = fake.generate(prompt, temperature=0, stop=["o thr", "never"])
    assert (out.text, out.finish_reason) == ("one tw", "stop")
    out = fake.generate(prompt, temperature=0, stop="four!")
    assert (out.text, out.finish_reason) == ("one two three four", "stop")


def test_max_tokens_cuts_and_releases_what_was_held_back(fake):
    prompt = fake.encode("Hello")
    ids = script(fake, prompt, "one two")
    out = fake.generate(prompt, temperature=0, stop=["two!"], max_tokens=len(ids))
    assert (out.text, out.finish_reason) == ("one two", "length")


def test_half_a_character_at_the_end_is_a_replacement(fake):
    prompt = fake.encode("Hello")
    ids = script(fake, prompt, "a👩")
    out = fake.generate(prompt, temperature=0, max_tokens=len(ids) - 1)
    assert out.text.startswith("a")
    assert out.text.endswith("\ufffd")


def test_a_session_goes_on_where_it_stood(fake):
    with fake.session() as session:
        session.feed("Hello")
        first = session.generate(max_tokens=3, temperature=0, ignore_eos=True)
        second = session.generate(max_tokens=3, temperature=0, ignore_eos=True)
        ids = fake.encode("Hello")
        assert first.token_ids + second.token_ids == likeliest(fake, ids, 6)
        assert session.tokens == ids + first.token_ids + second.token_ids
        assert len(session) == session.position == len(session.tokens)
        third = session.generate(" world", max_tokens=2, temperature=0, ignore_eos=True)
        before = ids + first.token_ids + second.token_ids + fake.encode(" world")
        assert third.token_ids == likeliest(fake, before, 2)


def test_a_fork_goes_its_own_way(fake):
    session = fake.session()
    session.feed("Hello")
    session.generate(max_tokens=2, temperature=0, ignore_eos=True)
    twin = session.fork()
    assert twin.tokens == session.tokens
    twin.feed(" world")
    one = session.generate(max_tokens=3, temperature=0, ignore_eos=True)
    assert one.token_ids == likeliest(fake, session.tokens[:-3], 3)
    assert twin.tokens != session.tokens


def test_a_saved_session_goes_on_exactly(fake, tmp_path):
    session = fake.session()
    session.feed("Hello")
    session.generate(max_tokens=3, temperature=0, ignore_eos=True)
    session.save(tmp_path / "s")
    loaded = fake.load_session(tmp_path / "s")
    fed = len(fake.core.fed)
    want = session.generate(max_tokens=4, temperature=0, ignore_eos=True).token_ids
    assert loaded.generate(max_tokens=4, temperature=0, ignore_eos=True).token_ids == want
    assert max(fake.core.fed[fed:]) == 1, "the logits came with the file"


@pytest.mark.parametrize("damage", ["missing", "short", "changed", "other tokens"])
def test_lost_logits_are_computed_again(fake, tmp_path, damage):
    session = fake.session()
    session.feed("Hello")
    session.save(tmp_path / "s")
    beside = tmp_path / "s.logits"
    if damage == "missing":
        beside.unlink()
    elif damage == "short":
        beside.write_bytes(beside.read_bytes()[:-1])
    elif damage == "changed":
        content = bytearray(beside.read_bytes())
        content[-1] ^= 1
        beside.write_bytes(content)
    else:
        other = fake.session()
        other.feed("Hellp")
        other.save(tmp_path / "t")
        (tmp_path / "t.logits").replace(beside)
    want = session.generate(max_tokens=4, temperature=0, ignore_eos=True).token_ids
    loaded = fake.load_session(tmp_path / "s")
    assert loaded.generate(max_tokens=4, temperature=0, ignore_eos=True).token_ids == want


def test_a_missing_session_file_is_named(fake, tmp_path):
    with pytest.raises(errors.IoError, match="no such session file"):
        fake.load_session(tmp_path / "none")


def test_a_failed_read_leaves_the_session_as_it_was(fake):
    session = fake.session()
    session.feed("Hello")
    before = session.tokens
    fake.core.fail_at = fake.core.feeds + 1
    with pytest.raises(errors.IoError, match="read failed"):
        session.feed(" world")
    assert session.tokens == before
    session.feed(" world")
    assert session.tokens == before + fake.encode(" world")


@pytest.mark.parametrize("failing", range(1, 6))
def test_after_a_failed_read_the_next_call_is_right(fake, failing):
    want = fake.generate("Hello", max_tokens=4, temperature=0, ignore_eos=True).token_ids
    fake.core.fail_at = fake.core.feeds + failing
    if failing <= 4:
        with pytest.raises(errors.IoError):
            fake.generate("Hello", max_tokens=4, temperature=0, ignore_eos=True)
    again = fake.generate("Hello", max_tokens=4, temperature=0, ignore_eos=True)
    assert again.token_ids == want


def test_ctrl_c_keeps_what_was_generated_and_the_session_goes_on(fake):
    session = fake.session()
    session.feed("Hello")
    fake.core.error = KeyboardInterrupt()
    fake.core.fail_at = fake.core.feeds + 3
    stream = session.stream(max_tokens=9, temperature=0, ignore_eos=True)
    with pytest.raises(KeyboardInterrupt):
        list(stream)
    out = stream.completion
    ids = fake.encode("Hello")
    assert (out.token_ids, out.finish_reason) == (likeliest(fake, ids, 3), "cancelled")
    assert session.tokens == ids + out.token_ids
    more = session.generate(max_tokens=2, temperature=0, ignore_eos=True)
    assert more.token_ids == likeliest(fake, ids + out.token_ids, 2)


def test_a_stream_left_early_stops_working(fake):
    with fake.stream("Hello", max_tokens=50, temperature=0, ignore_eos=True) as stream:
        next(stream)
        fed = len(fake.core.fed)
    assert list(stream) == []
    assert len(fake.core.fed) == fed
    assert stream.completion.finish_reason == "cancelled"


def test_progress_can_cancel_the_prompt(fake):
    session = fake.session()
    with pytest.raises(errors.CancelledError):
        session.feed("Hello", progress=lambda done, total: True)
    assert session.tokens == []
    with pytest.raises(errors.CancelledError):
        fake.generate("Hello", progress=lambda done, total: True)


@pytest.mark.parametrize("prompt", ["", [], np.array([], dtype=np.int64)])
def test_an_empty_prompt_is_refused(fake, prompt):
    with pytest.raises(errors.ConfigError, match="prompt is empty"):
        fake.generate(prompt)


def test_an_empty_session_has_nothing_to_continue(fake):
    with pytest.raises(errors.ConfigError, match="prompt is empty"):
        fake.session().generate()


@pytest.mark.parametrize("ids", [[1, 320], [-1], [1.5, "x"], [None]])
def test_ids_that_do_not_exist_are_refused(fake, ids):
    with pytest.raises(errors.ConfigError, match="prompt"):
        fake.generate(ids)


def small_context(checkpoint, context):
    return Engine.over(FakeEngine(vocab=320, context=context), checkpoint("hf_bf16"))


def test_a_prompt_longer_than_the_context_is_refused(checkpoint):
    engine = small_context(checkpoint, 8)
    with pytest.raises(errors.ConfigError, match="prompt is 9 tokens, the model's context holds 8"):
        engine.generate(list(range(9)))
    with pytest.raises(errors.ConfigError, match="context holds 8"):
        engine.generate([[1], list(range(9))])
    with pytest.raises(errors.ConfigError, match="context holds 8"):
        engine.logits(list(range(9)))
    session = engine.session()
    session.feed([1, 2, 3, 4, 5])
    with pytest.raises(errors.ConfigError, match="prompt is 4 tokens after 5"):
        session.feed([1, 2, 3, 4])


def test_generation_ends_with_the_context(checkpoint):
    engine = small_context(checkpoint, 8)
    out = engine.generate([1, 2, 3, 4, 5], max_tokens=None, ignore_eos=True, temperature=0)
    assert (len(out.token_ids), out.finish_reason) == (4, "length")
    full = engine.generate(list(range(8)), max_tokens=None, ignore_eos=True, temperature=0)
    assert len(full.token_ids) == 1


def test_control_tokens_of_a_prompt_count_only_when_asked_for(fake):
    session = fake.session()
    session.feed("a<|im_end|>")
    assert not any(fake.tokenizer.is_special(i) for i in session.tokens)
    session.feed("a<|im_end|>", control_tokens=True)
    assert fake.tokenizer.is_special(session.tokens[-1])


def test_two_threads_use_two_sessions(fake):
    results = {}

    def work(name):
        results[name] = fake.generate(name, max_tokens=20, temperature=0, ignore_eos=True).token_ids

    names = ["Hello", "the user", "world", "function"]
    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: likeliest(fake, fake.encode(n), 20) for n in names}


def test_closed_things_say_so(checkpoint):
    engine = small_context(checkpoint, 100)
    session = engine.session()
    session.close()
    session.close()
    with pytest.raises(errors.ConfigError, match="session is closed"):
        session.feed("a")
    other = engine.session()
    engine.close()
    engine.close()
    for call in (lambda: engine.generate("a"), lambda: other.feed("a"), engine.memory_plan):
        with pytest.raises(errors.ConfigError, match="engine is closed"):
            call()


def test_logits_are_those_after_every_token(fake):
    ids = fake.encode("Hello world")
    logits = fake.logits("Hello world")
    assert (logits.shape, logits.dtype) == ((len(ids), 320), np.float32)
    for row, length in zip(logits, range(1, len(ids) + 1), strict=True):
        assert (row == fake.core.logits_of(ids[:length])).all()


@pytest.mark.parametrize("chunk_bytes", [1, 4 * 320 * 3, 1 << 30])
def test_a_score_is_the_sum_of_log_probabilities_whatever_the_chunk(fake, monkeypatch, chunk_bytes):
    monkeypatch.setattr("flash_moe.engine._SCORE_BYTES_MIN", chunk_bytes)
    monkeypatch.setattr("flash_moe.engine._SCORE_SHARE", 0.0)
    ids = fake.encode("Hello world, in the user's function")
    want = []
    for length in range(1, len(ids)):
        logits = fake.core.logits_of(ids[:length])[: fake.tokenizer.size].astype(np.float64)
        want.append(logits[ids[length]] - np.log(np.exp(logits).sum()))
    score = fake.score(ids)
    assert score.logprobs == pytest.approx(want, abs=1e-5)
    assert score.perplexity == pytest.approx(np.exp(-np.mean(want)), rel=1e-5)


def test_one_token_has_no_score(fake):
    with pytest.raises(errors.ConfigError, match="at least two tokens"):
        fake.score([5])


def test_options_are_those_of_the_checkpoint_unless_given(fake):
    assert fake.defaults.sampling == {"temperature": 0.6, "top_k": 20, "top_p": 0.95}
    assert len(fake.defaults.eos) == 2
    request = resolve({}, fake.defaults)
    assert (request.sampling.temperature, request.sampling.top_k, request.max_tokens) == (
        0.6,
        20,
        512,
    )
    request = resolve({"temperature": 0, "top_k": None, "max_tokens": None}, fake.defaults)
    assert (request.sampling.temperature, request.sampling.top_k) == (0, 20)
    assert request.max_tokens is None
    assert resolve({"ignore_eos": True}, fake.defaults).eos == frozenset()


def test_a_checkpoint_without_sampling_is_greedy_until_asked():
    assert resolve({}, Defaults()).sampling.temperature == 0
    assert resolve({"top_p": 0.9}, Defaults()).sampling.temperature == 1
    assert resolve({"top_p": 0.9, "temperature": 0.5}, Defaults()).sampling.temperature == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temprature": 1}, "did you mean temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"logprobs": 1000}, "logprobs"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": 3}, "logit_bias"),
        ({"stop": [""]}, "stop"),
        ({"top_p": 2}, "top_p"),
    ],
)
def test_wrong_options_are_named(fake, options, message):
    with pytest.raises(errors.ConfigError, match=message):
        fake.generate("Hello", **options)
    with pytest.raises(errors.ConfigError, match=message):
        fake.generate(["Hello"], **options)


def test_logits_that_are_no_numbers_name_the_model(fake, monkeypatch):
    broken = np.full(320, np.nan, dtype=np.float32)
    monkeypatch.setattr(fake.core, "logits_of", lambda tokens: broken)
    with pytest.raises(errors.FormatError, match=r"hf_bf16.*not finite.*NaN"):
        fake.generate("Hello")
    with pytest.raises(errors.FormatError, match=r"hf_bf16.*not finite"):
        fake.score("Hello")
