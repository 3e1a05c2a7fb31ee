"""The nucleus by each of its ways, against its definition in float64 with a sort of everything."""

from itertools import count, product
from types import SimpleNamespace

import numpy as np
import pytest

from flash_moe.sampling import (
    Sampler,
    SamplingParams,
    Weighed,
    ahead_of,
    draw_index,
    draw_of_nucleus,
    few_of_nucleus,
)

# float32 weights and their sums may end a nucleus a token earlier or later than float64.
TOLERANCE = 1e-6
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


def ids_of(few):
    """Their ids, ascending, and that they come likeliest first."""
    assert (np.diff(few.weights) <= 0).all()
    assert np.unique(few.ids).shape == few.ids.shape
    return np.sort(few.ids)


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


def order_of(weights):
    """Ids, likeliest first, ties by lower id."""
    return np.argsort(-weights, kind="stable")


def nucleus_end(weights, top_p):
    """How many tokens the nucleus has by one sort of everything."""
    sums = np.cumsum(weights[order_of(weights)], dtype=np.float64)
    return min(int(np.searchsorted(sums, top_p * sums[-1])) + 1, np.count_nonzero(weights))


def probed(weights, end):
    """Places in the order to ask about: around a nucleus' end, first and last, and some between."""
    last = np.count_nonzero(weights) - 1
    around = np.arange(end - 3, end + 3)
    between = np.linspace(0, last, 7).astype(int)
    places = np.concatenate([around, between])
    return np.unique(places[(places >= 0) & (places <= last)])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("vocab", VOCABS)
def test_a_token_belongs_to_the_nucleus_or_those_ahead_hold_it(shape, vocab):
    for seed in range(3):
        logits = float32(SHAPES[shape](np.random.default_rng(seed), vocab))
        weights = weights_of(logits)
        order = order_of(weights)
        share = np.cumsum(weights[order], dtype=np.float64)
        share /= share[-1]
        total = Weighed.of(weights).total()
        for top_p in TOP_PS:
            for place in probed(weights, nucleus_end(weights, top_p)):
                ahead = ahead_of(weights, total, top_p, int(order[place]))
                before = share[place - 1] if place else 0.0
                if ahead is None:
                    assert place == 0 or before <= top_p + TOLERANCE, "it lies behind the nucleus"
                    continue
                assert before >= top_p - TOLERANCE, "it lies within the nucleus"
                assert place > 0
                assert np.flatnonzero(ahead.kept).tolist() == sorted(order[:place])
                assert abs(ahead.total() / total - before) <= TOLERANCE


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("vocab", [2, 65, 5000])
@pytest.mark.parametrize("top_p", [0.0, 0.3, 0.95])
@pytest.mark.parametrize("min_p", [0.0, 0.2])
def test_all_that_is_tried_outside_of_a_nucleus_is_passed_over(shape, vocab, top_p, min_p):
    """The least likely token first, and as near to it as can be from then on."""
    weights = weights_of(float32(SHAPES[shape](np.random.default_rng(vocab), vocab)))
    inside = order_of(weights)[: nucleus_end(weights, top_p) + 1]
    for share in (0.0, 0.5, float(np.nextafter(1.0, 0.0))):
        tried = count()

        def random(share=share, tried=tried):
            assert next(tried) < vocab + 1, "it does not end"
            return share

        token = draw_of_nucleus(weights, top_p, min_p, random)
        assert token in inside
        assert weights[token] >= min_p * weights.max()


WIDE = [
    {"top_p": 0.02},
    {"top_p": 0.5, "temperature": 0.7},
    {"top_p": 0.95},
    {"top_p": 0.9999, "temperature": 3.0},
    {"top_p": 0.9, "min_p": 0.02},
    {"top_p": 0.6, "min_p": 0.2},
]


@pytest.mark.parametrize("case", WIDE, ids=str)
@pytest.mark.parametrize("equals", [1, 40])
def test_tokens_of_a_wide_nucleus_have_their_shares(case, equals):
    """Chi-squared over up to 40 classes of tokens, with a seed: 80 is beyond one in 10^4."""
    logits = float32(np.repeat(normal(np.random.default_rng(5), 20000 // equals, 0.8), equals))
    temperature, top_p = case.get("temperature", 1.0), case["top_p"]
    assert few_of_nucleus(logits, float(logits.max()), temperature, top_p) is None
    weights = weights_of(logits, temperature)
    inside = order_of(weights)[: nucleus_end(weights, top_p)]
    inside = inside[weights[inside] >= case.get("min_p", 0.0) * weights.max()]
    probability = np.zeros(20000)
    probability[inside] = weights[inside] / weights[inside].sum(dtype=np.float64)
    classes = np.zeros(20000, dtype=int)
    classes[inside] = np.cumsum(probability[inside]) * 39.999
    sampler = Sampler(SamplingParams(seed=6, **case), 20000)
    tokens = [sampler.choose(logits) for _ in range(4000)]
    assert (probability[tokens] > 0).all(), "a token outside was drawn"
    wanted = len(tokens) * np.bincount(classes, weights=probability, minlength=40)
    found = np.bincount(classes[tokens], minlength=40)[wanted > 0]
    wanted = wanted[wanted > 0]
    assert ((found - wanted) ** 2 / wanted).sum() < 80


@pytest.mark.parametrize("vocab", VOCABS)
def test_a_nucleus_of_few_is_the_smallest_set_that_reaches_top_p(vocab):
    answered = set()
    for shape, seed in product(SHAPES, range(3)):
        logits = float32(SHAPES[shape](np.random.default_rng(seed), vocab))
        for temperature, top_p in product((0.1, 0.7, 1.0, 2.5), TOP_PS):
            few = few_of_nucleus(logits, float(logits.max()), temperature, top_p)
            if few is not None:
                answered.add(shape)
                check(ids_of(few), logits, temperature, top_p)
    assert {"wide", "steep ranks", "alone"} <= answered or vocab < 5000


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


CASES = [
    {"temperature": 0.7},
    {"min_p": 0.05},
    {"min_p": 0.05, "temperature": 0.7},
    {"top_k": 600},
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
