"""Sampling against plain definitions in float64, on vocabularies with many blocks."""

from itertools import cycle
from types import SimpleNamespace

import numpy as np
import pytest

from flash_moe import errors
from flash_moe.sampling import (
    Sampler,
    SamplingParams,
    block_sums,
    draw_index,
    log_normaliser,
    top_ids,
)

VOCAB = 5000
# float32 weights err by 1e-7 each, in either direction.
LOGPROB_TOLERANCE = 1e-6
DRAWS = 1000


def logits_of(seed, scale=3.0, vocab=VOCAB):
    return (scale * np.random.default_rng(seed).standard_normal(vocab)).astype(np.float32)


def softmax(logits):
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def expected(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """Probabilities by the definitions, with sorts over everything."""
    probability = softmax(logits.astype(np.float64) / temperature)
    order = np.argsort(-logits, kind="stable")
    if top_k:
        probability[order[top_k:]] = 0
        probability /= probability.sum()
    if top_p < 1:
        sums = np.cumsum(probability[order])
        keep = int(np.searchsorted(sums, top_p)) + 1
        probability[order[keep:]] = 0
        probability /= probability.sum()
    if min_p:
        probability[probability < min_p * probability.max()] = 0
        probability /= probability.sum()
    return probability


@pytest.mark.parametrize("count", [1, 2, 20, 100, 4999, 5000, 9000])
@pytest.mark.parametrize("vocab", [1, 255, 256, 257, 5000])
def test_top_ids_are_those_of_a_full_sort(count, vocab):
    for seed in range(3):
        logits = logits_of(seed, vocab=vocab)
        assert (
            top_ids(logits, count).tolist() == np.argsort(-logits, kind="stable")[:count].tolist()
        )


def test_ties_go_to_the_lower_id():
    logits = np.zeros(1000, dtype=np.float32)
    logits[[700, 30, 999]] = 1
    assert top_ids(logits, 5).tolist() == [30, 700, 999, 0, 1]


def test_greedy_takes_the_likeliest_and_never_padding():
    logits = logits_of(1)
    logits[4000:] = 1000
    sampler = Sampler(SamplingParams(temperature=0), 4000)
    assert sampler.choose(logits) == int(logits[:4000].argmax())


CASES = [
    {},
    {"temperature": 0.7},
    {"top_k": 20},
    {"min_p": 0.05},
    {"top_k": 20, "top_p": 0.8, "temperature": 0.7},
    {"top_k": 50, "top_p": 0.95, "min_p": 0.1},
    {"top_k": 1},
    {"top_p": 0.0},
    {"min_p": 1.0},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_draws_follow_the_definition(case):
    logits = logits_of(5)
    want = expected(logits, **case)
    sampler = Sampler(SamplingParams(seed=1, **case), VOCAB)
    # Evenly spaced instead of random: every token gets its share of the draws, give or take one.
    places = cycle((np.arange(DRAWS) + 0.5) / DRAWS)
    sampler._random = SimpleNamespace(random=lambda: float(next(places)))
    drawn = np.bincount([sampler.choose(logits) for _ in range(DRAWS)], minlength=VOCAB)
    assert (drawn[want == 0] == 0).all(), "a token that should be cut off was drawn"
    assert np.abs(drawn - DRAWS * want).max() <= 1.01


def test_a_flat_distribution_has_its_whole_nucleus():
    logits = np.zeros(VOCAB, dtype=np.float32)
    sampler = Sampler(SamplingParams(seed=3, top_p=0.5), VOCAB)
    drawn = {sampler.choose(logits) for _ in range(600)}
    assert max(drawn) < VOCAB // 2
    assert len(drawn) > 400


def test_the_same_seed_gives_the_same_tokens():
    def tokens(seed):
        sampler = Sampler(SamplingParams(seed=seed, top_p=0.95), VOCAB)
        return [sampler.choose(logits_of(step)) for step in range(50)]

    assert tokens(11) == tokens(11)
    assert tokens(11) != tokens(12)


def test_a_drawn_seed_is_told_and_repeats():
    first = Sampler(SamplingParams(), VOCAB)
    again = Sampler(SamplingParams(seed=first.seed), VOCAB)
    for step in range(20):
        assert first.choose(logits_of(step)) == again.choose(logits_of(step))


def test_logits_are_not_changed():
    logits = logits_of(9)
    before = logits.copy()
    params = SamplingParams(
        repetition_penalty=1.3,
        presence_penalty=1,
        frequency_penalty=1,
        logit_bias={3: 5.0},
        top_k=5,
    )
    sampler = Sampler(params, VOCAB, prompt=[1, 2, 3])
    for _ in range(5):
        sampler.choose(logits)
    assert (logits == before).all()


def greedy(logits, prompt=(), steps=1, **penalties):
    sampler = Sampler(SamplingParams(temperature=0, **penalties), logits.shape[0], prompt)
    return [sampler.choose(logits) for _ in range(steps)]


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits():
    logits = np.array([2.0, 1.5, -1.0], dtype=np.float32)
    assert greedy(logits, prompt=[0], repetition_penalty=1.25) == [0]  # 1.6 is still first
    assert greedy(logits, prompt=[0], repetition_penalty=1.5) == [1]  # 1.33
    negative = np.array([-1.0, -1.2, -9.0], dtype=np.float32)
    assert greedy(negative, prompt=[0], repetition_penalty=1.5) == [1]  # -1.5


def test_repetition_penalty_counts_generated_tokens_too():
    logits = np.array([2.0, 1.5, 1.2], dtype=np.float32)
    assert greedy(logits, steps=3, repetition_penalty=10.0) == [0, 1, 2]


def test_repetition_penalty_is_paid_once_and_not_for_padding():
    logits = np.array([2.0, 1.5, 1.2, 9.0], dtype=np.float32)
    sampler = Sampler(SamplingParams(temperature=0, repetition_penalty=1.25), 3, [3, 0, 0, 0])
    assert sampler.choose(logits) == 0  # 1.6
    assert [sampler.choose(logits) for _ in range(3)] == [0, 0, 0]


def test_presence_penalty_is_paid_once_frequency_penalty_each_time():
    logits = np.array([3.0, 1.9, 0.5], dtype=np.float32)
    assert greedy(logits, steps=3, presence_penalty=1.0) == [0, 0, 0]
    assert greedy(logits, steps=4, frequency_penalty=1.0) == [0, 0, 1, 0]
    assert greedy(logits, prompt=[0, 0, 0], steps=2, frequency_penalty=1.0) == [0, 0]


def test_logit_bias_is_added():
    logits = np.array([3.0, 1.9, 0.5], dtype=np.float32)
    assert greedy(logits, logit_bias={2: 2.6}) == [2]
    assert greedy(logits, logit_bias={0: -100.0}) == [1]
    with pytest.raises(errors.ConfigError, match="token id 3"):
        greedy(logits, logit_bias={3: 1.0})


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_no_numbers_are_an_error(bad, temperature):
    logits = logits_of(2)
    logits[17] = bad
    with pytest.raises(errors.FormatError, match="not finite"):
        Sampler(SamplingParams(temperature=temperature, seed=1), VOCAB).choose(logits)


def test_logprobs_are_those_of_the_model_itself():
    logits = logits_of(4)
    sampler = Sampler(SamplingParams(temperature=0.1, repetition_penalty=2.0), 4000, prompt=[1])
    entry = sampler.logprob(logits, 17, 3)
    want = np.log(softmax(logits[:4000]))
    assert entry.token_id == 17
    assert entry.logprob == pytest.approx(want[17], abs=1e-5)
    assert [i for i, _ in entry.top] == np.argsort(-logits[:4000], kind="stable")[:3].tolist()
    assert [p for _, p in entry.top] == pytest.approx(want[[i for i, _ in entry.top]], abs=1e-5)
    assert sampler.logprob(logits, 17, 0).top == ()


@pytest.mark.parametrize("offset", [0, 40, -40, 49, 51, -51, 80, 300, -300])
@pytest.mark.parametrize("scale", [0.01, 1, 4])
@pytest.mark.parametrize("top", [0, 5])
def test_logprobs_are_those_of_float64(offset, scale, top):
    for seed in range(3):
        logits = logits_of(seed, scale, vocab=50021) + np.float32(offset)
        logits[seed] = -np.inf
        entry = Sampler(SamplingParams(temperature=0), 50021).logprob(logits, 100, top)
        want = np.log(np.maximum(softmax(logits), 1e-300))
        got = [(100, entry.logprob), *entry.top]
        assert len(got) == 1 + top
        assert all(abs(p - want[i]) <= LOGPROB_TOLERANCE for i, p in got)


def test_log_normaliser_neither_overflows_nor_underflows():
    for offset in (-1e4, 0, 1e4):
        logits = np.full(100, offset, dtype=np.float32)
        assert log_normaliser(logits) == pytest.approx(offset + np.log(100), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", "hot"),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 1.01),
        ("min_p", -0.5),
        ("repetition_penalty", 0),
        ("presence_penalty", 1000),
        ("frequency_penalty", None),
        ("seed", -1),
        ("seed", True),
    ],
)
def test_values_out_of_range_are_named(name, value):
    with pytest.raises(errors.ConfigError, match=name):
        SamplingParams(**{name: value})


@pytest.mark.parametrize("count", [1, 255, 256, 257, 5000])
def test_block_sums_count_what_is_kept(count):
    random = np.random.default_rng(count)
    weights = random.random(count).astype(np.float32)
    kept = random.random(count) < 0.5
    begins = np.arange(0, count, 256)
    assert block_sums(weights) == pytest.approx(np.add.reduceat(weights, begins), rel=1e-6)
    want = np.add.reduceat(weights * kept, begins)
    assert block_sums(weights, kept) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 511, 512, 513, 5000])
def test_drawn_indices_are_those_of_one_running_sum(count):
    random = np.random.default_rng(count)
    for _ in range(50):
        weights = random.random(count).astype(np.float32) * (random.random(count) < 0.5)
        weights[random.integers(count)] = 1
        share = random.random()
        sums = np.cumsum(weights, dtype=np.float64)
        index = draw_index(weights, share)
        assert weights[index] > 0
        assert sums[index] >= share * sums[-1] * (1 - 1e-6)
        assert index == 0 or sums[index - 1] <= share * sums[-1] * (1 + 1e-6)


def test_rounding_never_draws_a_weight_of_zero():
    """Sums of blocks are float32 and end beside the running sum; blocks begin and end in zeros."""
    weights = np.random.default_rng(3).random(20 * 256).astype(np.float32)
    weights.reshape(20, 256)[:, [*range(50), *range(200, 256)]] = 0
    ends = np.cumsum(weights, dtype=np.float64)[255::256] / weights.sum(dtype=np.float64)
    for end in ends:
        for ulps in range(-40, 41):
            share = min(max(end + ulps * 2e-9, 0.0), float(np.nextafter(1.0, 0.0)))
            assert weights[draw_index(weights, share)] > 0
