"""The nucleus by each of its ways, against its definition in float64 with a sort of everything."""

from types import SimpleNamespace

import numpy as np
import pytest

from flash_moe import sampling
from flash_moe.sampling import (
    Sampler,
    SamplingParams,
    bracket_nucleus,
    draw_index,
    few_of_nucleus,
)

# float32 weights and their sums may end a nucleus a token earlier or later than float64.
TOLERANCE = 1e-6
# From 8192 tokens on the sample is not everything.
VOCABS = [1, 2, 5, 63, 64, 65, 256, 257, 5000, 20000, 50021]
TOP_PS = [0.0, 1e-6, 0.3, 0.5, 0.9, 0.95, 0.9999, 1 - 1e-9]
DRAWS = 500


def normal(random, vocab, scale=1.0):
    return scale * random.standard_normal(vocab)


def ranked(random, vocab, slope=1.0):
    return random.permutation(-slope * np.log(np.arange(1, vocab + 1)))


def with_infinities(random, vocab):
    logits = normal(random, vocab)
    logits[random.random(vocab) < 0.7] = -np.inf
    logits[random.integers(vocab)] = 0.5
    return logits


def alone(random, vocab, lead=60.0):
    logits = normal(random, vocab)
    logits[random.integers(vocab)] = lead
    return logits


SHAPES = {
    "flat": lambda random, vocab: normal(random, vocab, 0.05),
    "normal": normal,
    "wide": lambda random, vocab: normal(random, vocab, 8.0),
    "uniform": lambda random, vocab: random.random(vocab) * 5,
    "equal": lambda random, vocab: np.full(vocab, 3.0),
    "two values": lambda random, vocab: random.integers(0, 2, vocab) * 0.5,
    "few values": lambda random, vocab: random.integers(-4, 5, vocab) * 0.25,
    "ranks": ranked,
    "steep ranks": lambda random, vocab: ranked(random, vocab, 1.5),
    "ascending": lambda random, vocab: np.linspace(-3, 3, vocab),
    "infinities": with_infinities,
    "alone": alone,
    "alone, all others gone": lambda random, vocab: alone(random, vocab, 500.0),
    "far from zero": lambda random, vocab: normal(random, vocab) - 300,
}


def float32(logits):
    return logits.astype(np.float32)


def ids_of(candidates):
    """Their ids, ascending, and that what they say about themselves is true."""
    if candidates.kept is None:
        ids, weights = candidates.ids, candidates.weights
        assert (np.diff(weights) <= 0).all()
    else:
        ids = np.flatnonzero(candidates.kept)
        if candidates.sums is not None:
            blocks = -(-candidates.kept.shape[0] // 256)
            sums = np.bincount(ids // 256, weights=candidates.weights[ids], minlength=blocks)
            assert np.abs(candidates.sums - sums).sum() <= TOLERANCE * sums.sum()
    assert np.unique(ids).shape == ids.shape
    return np.sort(ids)


def check(ids, logits, temperature, top_p):
    """The smallest set that reaches top_p, ties by lower id."""
    scaled = logits.astype(np.float64) / temperature
    probability = np.exp(scaled - scaled.max())
    probability /= probability.sum()
    inside = np.zeros(logits.shape, dtype=bool)
    inside[ids] = True
    last = probability[inside].min()
    assert inside[probability > last * (1 + TOLERANCE)].all(), "a likelier token is left out"
    assert probability[inside].sum() >= top_p - TOLERANCE, "it does not reach top_p"
    assert probability[inside].sum() - last <= top_p + TOLERANCE, "it is too large"
    end = np.flatnonzero(logits == logits[inside].min())
    assert (np.diff(inside[end].astype(int)) <= 0).all(), "ties do not go to the lower id"


def weights_of(logits, temperature=1.0):
    weights = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    return weights.astype(np.float32)


def bracketed(weights, top_p):
    return bracket_nucleus(weights, float(weights.sum(dtype=np.float64)), top_p)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("vocab", VOCABS)
def test_a_nucleus_is_the_smallest_set_that_reaches_top_p(shape, vocab):
    for seed in range(3):
        logits = float32(SHAPES[shape](np.random.default_rng(seed), vocab))
        for temperature in (0.1, 0.7, 1.0, 2.5):
            for top_p in TOP_PS:
                sampler = Sampler(SamplingParams(temperature=temperature, top_p=top_p), vocab)
                ids = ids_of(sampler._nucleus(logits, float(logits.max())))
                check(ids, logits, temperature, top_p)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("vocab", VOCABS)
def test_a_bracket_finds_every_nucleus(shape, vocab):
    for seed in range(3):
        logits = float32(SHAPES[shape](np.random.default_rng(seed), vocab))
        for top_p in TOP_PS:
            check(ids_of(bracketed(weights_of(logits), top_p)), logits, 1.0, top_p)


@pytest.mark.parametrize("vocab", [8192, 20000, 50021])
@pytest.mark.parametrize("sampled", [-9.0, -1.0, 1.0, 9.0])
@pytest.mark.parametrize("top_p", TOP_PS)
def test_a_sample_that_misleads_costs_time_only(vocab, sampled, top_p):
    """All sampled tokens are less likely than all others, or likelier."""
    logits = float32(normal(np.random.default_rng(vocab), vocab, 0.1))
    logits[:: sampling._sample_step(vocab)] += np.float32(sampled)
    check(ids_of(bracketed(weights_of(logits), top_p)), logits, 1.0, top_p)


def test_a_bracket_that_does_not_hold_the_end_becomes_wider(monkeypatch):
    vocab = 20000
    logits = float32(normal(np.random.default_rng(1), vocab, 0.1))
    logits[:: sampling._sample_step(vocab)] += np.float32(1)
    searched = []

    def flatnonzero(flags):
        searched.append(flags.shape[0])
        return np.nonzero(flags)[0]

    monkeypatch.setattr(np, "flatnonzero", flatnonzero)
    kept = bracketed(weights_of(logits), 0.5).kept
    assert searched.count(vocab) > 1
    check(np.nonzero(kept)[0], logits, 1.0, 0.5)


@pytest.mark.parametrize("top_p", [0.2, 0.5, 0.95])
def test_ties_at_the_edges_of_a_bracket_stay_together(top_p):
    """A few values, so that the guess, the edge and the end are all one of many equals."""
    for seed in range(20):
        random = np.random.default_rng(seed)
        logits = float32(random.choice([0.0, 1e-3, 2e-3, 3e-3], 20000))
        check(ids_of(bracketed(weights_of(logits), top_p)), logits, 1.0, top_p)


def test_few_tokens_are_found_without_the_others():
    for seed in range(20):
        logits = float32(normal(np.random.default_rng(seed), 50021, 4.0))
        for temperature, top_p in ((0.2, 0.95), (0.3, 0.5), (0.3, 0.0)):
            few = few_of_nucleus(logits, float(logits.max()), temperature, top_p)
            assert few is not None
            check(ids_of(few), logits, temperature, top_p)


def test_few_tokens_are_not_trusted_when_the_others_could_matter():
    """Tokens just below what is looked at weigh a 3000th of the first: enough at an edge."""
    logits = np.full(50021, -18.9, dtype=np.float32)
    logits[:3] = [0.0, -1.0, -3.0]
    assert few_of_nucleus(logits, 0.0, 1.0, 0.5) is not None
    reached = np.cumsum(weights_of(logits[:3]), dtype=np.float64)
    edge = (1 - 1e-5) * float(reached[1] / reached[2])
    assert few_of_nucleus(logits, 0.0, 1.0, edge) is None
    assert few_of_nucleus(logits, 0.0, 1.0, 1 - 1e-9) is None


def test_few_tokens_go_by_likelihood_then_by_id():
    logits = np.full(20000, -100, dtype=np.float32)
    logits[[900, 30, 19000, 7]] = [5, 4, 5, 4]
    few = few_of_nucleus(logits, 5.0, 1.0, 0.8)
    assert few is not None
    assert few.ids.tolist() == [900, 19000, 7]


@pytest.mark.parametrize("slope", [1.2, 1.5, 2.0])
def test_nuclei_of_some_hundred_tokens_need_no_bracket(slope, monkeypatch):
    monkeypatch.delattr(sampling, "bracket_nucleus")
    for seed in range(5):
        logits = float32(ranked(np.random.default_rng(seed), 50021, slope))
        sampler = Sampler(SamplingParams(top_p=0.75), 50021)
        ids = ids_of(sampler._nucleus(logits, float(logits.max())))
        check(ids, logits, 1.0, 0.75)


CASES = [
    {"top_p": 0.95},
    {"top_p": 0.5, "temperature": 0.7},
    {"top_p": 0.9, "temperature": 0.3},
    {"top_p": 0.95, "min_p": 0.05},
    {"top_p": 0.6, "min_p": 0.001},
    {"min_p": 0.05},
    {"top_k": 600, "top_p": 0.9},
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_draws_from_a_large_vocabulary_follow_the_definition(case, scale):
    vocab = 20000
    logits = float32(normal(np.random.default_rng(7), vocab, scale))
    probability = np.exp(logits.astype(np.float64) / case.get("temperature", 1.0))
    order = np.argsort(-logits, kind="stable")
    if "top_k" in case:
        probability[order[case["top_k"] :]] = 0
    if "top_p" in case:
        sums = np.cumsum(probability[order])
        probability[order[int(np.searchsorted(sums, case["top_p"] * sums[-1])) + 1 :]] = 0
    probability[probability < case.get("min_p", 0.0) * probability.max()] = 0
    want = DRAWS * probability / probability.sum()
    sampler = Sampler(SamplingParams(seed=1, **case), vocab)
    places = iter((np.arange(DRAWS) + 0.5) / DRAWS)
    sampler._random = SimpleNamespace(random=lambda: float(next(places)))
    drawn = np.bincount([sampler.choose(logits) for _ in range(DRAWS)], minlength=vocab)
    assert (drawn[want == 0] == 0).all(), "a token that should be cut off was drawn"
    assert np.abs(drawn - want).max() <= 1.01


@pytest.mark.parametrize("temperature", [1e-46, 1e-39, 1e-20, 1e-3])
@pytest.mark.parametrize("case", [{}, {"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}], ids=str)
def test_a_temperature_of_almost_zero_is_greedy(temperature, case):
    logits = float32(normal(np.random.default_rng(3), 5000))
    sampler = Sampler(SamplingParams(temperature=temperature, seed=1, **case), 5000)
    assert {sampler.choose(logits) for _ in range(20)} == {int(logits.argmax())}


@pytest.mark.parametrize("top_p", [0.5, 0.95, 1.0])
@pytest.mark.parametrize("vocab", [300, 20000])
def test_tokens_without_probability_are_never_drawn(top_p, vocab):
    for seed in range(10):
        logits = float32(with_infinities(np.random.default_rng(seed), vocab))
        sampler = Sampler(SamplingParams(top_p=top_p, seed=seed), vocab)
        assert np.isfinite(logits[[sampler.choose(logits) for _ in range(20)]]).all()


@pytest.mark.parametrize("vocab", [300, 5000, 20001])
def test_only_kept_weights_are_drawn(vocab):
    random = np.random.default_rng(vocab)
    weights = random.random(vocab).astype(np.float32)
    kept = random.random(vocab) < 0.3
    kept[: vocab // 2] = False
    sums = np.cumsum(weights * kept, dtype=np.float64)
    for share in [0.0, *random.random(50), float(np.nextafter(1.0, 0.0))]:
        index = draw_index(weights, share, kept)
        assert kept[index]
        assert sums[index] >= share * sums[-1] * (1 - 1e-6)
        assert sums[index] - weights[index] <= share * sums[-1] * (1 + 1e-6)


def test_what_rounding_left_of_a_block_is_not_drawn():
    weights = np.ones(5 * 256, dtype=np.float32)
    kept = np.repeat([False, False, True, False, True], 256)
    sums = np.array([1e-5, 0.0, 256.0, -1e-5, 256.0])
    for share in (0.0, 1e-9, 0.5, 0.5 + 1e-9, float(np.nextafter(1.0, 0.0))):
        assert kept[draw_index(weights, share, kept, sums)]
