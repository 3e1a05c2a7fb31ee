"""From logits to a token.

Order of operations: repetition, presence and frequency penalties -> logit bias -> temperature ->
top-k -> top-p -> min-p -> one uniform random number. Log-probabilities are those of the model
itself, before any of these.

Source: the definitions of transformers' logits processors (penalty by division or multiplication;
    nucleus as the smallest set whose probability reaches top_p; min_p relative to the likeliest
    token) and of OpenAI's presence and frequency penalties, which count generated tokens only.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .errors import ConfigError, FormatError

Logits = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

# Weights are summed by this many at a time.
_BLOCK = 256
# The largest of so many entries tells whether candidates are among them.
_COLUMN = 64
# With a maximum up to this, exp() of all logits that matter is a normal float32 without a shift.
_SHIFT_FREE = 50.0
# Below, float32 would divide by zero; only logits that are equal share what this leaves.
_TEMPERATURE_MIN = 1e-30
# A nucleus is looked for among those that weigh at least exp(-8) / vocab of the first, if these
# are a small share; then among the likeliest, if so many are enough; then with a sample of about
# so many weights.
_FEW_TAIL = 8.0
_FEW_SHARE = 1 / 32
_LIKELIEST = 512
_SAMPLE = 4096


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen. Every default leaves the model's distribution alone.

    Attributes:
        temperature: 0 is greedy.
        top_k: 0 is off.
        top_p: 1 is off.
        min_p: 0 is off.
        repetition_penalty: above 1 makes tokens of prompt and answer less likely; 1 is off.
        presence_penalty: subtracted from the logits of tokens generated before.
        frequency_penalty: subtracted once for each time that a token was generated before.
        logit_bias: added to the logits, by token id.
        seed: None draws one, which the sampler then tells.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError on a value out of range."""
        _check("temperature", self.temperature, 0.0, 100.0)
        _check("top_k", self.top_k, 0, 2**31)
        _check("top_p", self.top_p, 0.0, 1.0)
        _check("min_p", self.min_p, 0.0, 1.0)
        _check("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        _check("presence_penalty", self.presence_penalty, -100.0, 100.0)
        _check("frequency_penalty", self.frequency_penalty, -100.0, 100.0)
        if self.seed is not None:
            _check("seed", self.seed, 0, 2**64 - 1)


def _check(name: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigError(f"{name}: wanted a number from {low:g} to {high:g}, got {value!r}")
    if isinstance(low, int) and not isinstance(value, int):
        raise ConfigError(f"{name}: wanted a whole number, got {value!r}")


@dataclass(frozen=True)
class TokenLogprob:
    """A token's log-probability by the model, and the likeliest tokens at its place.

    Attributes:
        token_id: the token that was chosen.
        logprob: its natural log-probability.
        top: (token id, log-probability), likeliest first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def top_ids(logits: Logits, count: int, maxima: Logits | None = None) -> Ids:
    """Returns the ids of the `count` largest logits, largest first, ties by lower id.

    Args:
        logits: [vocab] float32.
        count: at most vocab.
        maxima: their `column_maxima`, where those are known.
    """
    size = logits.shape[0]
    if count >= size:
        return np.argsort(-logits, kind="stable")
    width = size // _COLUMN
    if count < width:
        # At least `count` entries reach the count-th largest maximum.
        maxima = column_maxima(logits) if maxima is None else maxima
        bound = np.partition(maxima, -count)[-count]
        near = np.flatnonzero(maxima >= bound)
        whole = width * _COLUMN
        row, column = np.nonzero(logits[:whole].reshape(_COLUMN, width)[:, near] >= bound)
        found = row * width + near[column]
        if whole < size:
            found = np.append(found, whole + np.flatnonzero(logits[whole:] >= bound))
    else:
        bound = np.partition(logits, -count)[-count]
        found = np.flatnonzero(logits >= bound)
    order = np.argsort(-logits[found], kind="stable")[:count]
    ids: Ids = found[order]
    return ids


def column_maxima(logits: Logits) -> Logits:
    """Returns the largest of each 64 logits that lie vocab // 64 apart; what is left has none.

    Neighbours would be slower: maxima of columns are maxima of whole rows.
    """
    width = logits.shape[0] // _COLUMN
    maxima: Logits = logits[: width * _COLUMN].reshape(_COLUMN, width).max(axis=0)
    return maxima


def block_sums(weights: npt.NDArray[np.floating], kept: Flags | None = None) -> Floats:
    """Returns the sums of weights by 256 neighbours, the last of them of what is left.

    Args:
        weights: [n].
        kept: [n], which of them count; None for all.
    """
    whole = weights.shape[0] - weights.shape[0] % _BLOCK
    grid, rest = weights[:whole].reshape(-1, _BLOCK), weights[whole:]
    if kept is None:
        sums: Floats = np.einsum("ij->i", grid).astype(np.float64)
    else:
        # einsum converts the flags piece by piece: a product of whole arrays takes twice as long.
        sums = np.einsum("ij,ij->i", grid, kept[:whole].reshape(-1, _BLOCK)).astype(np.float64)
        rest = rest[kept[whole:]]
    if whole == weights.shape[0]:
        return sums
    return np.append(sums, rest.sum(dtype=np.float64))


def exp_shift(highest: float, temperature: float) -> float:
    """Returns what to subtract for `exp_weights`: 0 saves a pass where it is as exact."""
    return 0.0 if temperature == 1 and abs(highest) <= _SHIFT_FREE else highest


def exp_weights(logits: Logits, shift: float, temperature: float, out: Logits) -> Logits:
    """Returns exp((logits - shift) / temperature) in `out`, all of them [n] float32."""
    scaled = logits
    if shift != 0:
        scaled = np.subtract(scaled, np.float32(shift), out=out)
    if temperature != 1:
        scaled = np.divide(scaled, np.float32(temperature), out=out)
    return np.exp(scaled, out=out)


def log_normaliser(
    logits: Logits, scratch: Logits | None = None, highest: float | None = None
) -> float:
    """Returns log(sum(exp(logits))).

    Args:
        logits: [vocab] float32.
        scratch: [vocab] float32, saves allocating as much.
        highest: the maximum, where it is known.
    """
    shift = exp_shift(float(logits.max()) if highest is None else highest, 1.0)
    out = np.empty_like(logits) if scratch is None else scratch
    weights = exp_weights(logits, shift, 1.0, out)
    return shift + math.log(np.add.reduce(block_sums(weights)))


def _weights(logits: Logits, temperature: float, highest: float) -> Floats:
    scaled = (logits.astype(np.float64) - highest) / temperature
    weights: Floats = np.exp(scaled)
    return weights


def _nucleus_length(weights: npt.NDArray[np.floating], total: float, top_p: float) -> int:
    """Returns how many of the leading weights reach top_p of the total; 0 when all do not."""
    sums = np.cumsum(weights, dtype=np.float64)
    if sums[-1] < top_p * total:
        return 0
    length = int(np.searchsorted(sums, top_p * total)) + 1
    return min(length, len(weights))


class Candidates(NamedTuple):
    """Tokens of which one is drawn.

    Attributes:
        weights: [n], none below 0.
        ids: [n], whose weights those are; None when the index is the id.
        kept: [n], which of them count; None for all.
        sums: of those that count, by block, where they are known.
    """

    weights: npt.NDArray[np.floating]
    ids: Ids | None = None
    kept: Flags | None = None
    sums: Floats | None = None

    def at_least(self, min_p: float) -> Candidates:
        """Returns those that have min_p of the largest weight."""
        kept = self.weights >= min_p * self.weights.max()
        if self.ids is None:
            return Candidates(self.weights, kept=kept if self.kept is None else kept & self.kept)
        return Candidates(self.weights[kept], self.ids[kept])

    def draw(self, share: float) -> int:
        """Returns the id at which the running sum of weights passes `share` of their total."""
        index = draw_index(self.weights, share, self.kept, self.sums)
        return index if self.ids is None else int(self.ids[index])


def _sample_step(size: int) -> int:
    # Odd: what repeats in a vocabulary repeats by powers of two.
    return (size // _SAMPLE) | 1


def few_of_nucleus(
    scores: Logits, highest: float, temperature: float, top_p: float
) -> Candidates | None:
    """Returns a nucleus of few tokens, likeliest first, ties by lower id.

    None where it would have to look at many tokens, or at all of them to be sure.

    Args:
        scores: [n] float32.
        highest: their maximum.
        temperature: above 0.
        top_p: from 0 to 1.
    """
    size = scores.shape[0]
    bound = np.float32(highest - temperature * (math.log(size) + _FEW_TAIL))
    sample = scores[:: _sample_step(size)]
    if np.count_nonzero(sample >= bound) > _FEW_SHARE * sample.shape[0]:
        return None
    ids = np.flatnonzero(scores >= bound)
    found = scores[ids]
    ordered = np.sort(found)[::-1]
    weights = exp_weights(ordered, highest, temperature, np.empty_like(ordered))
    sums = np.cumsum(weights, dtype=np.float64)
    # The others weigh less than as many at the bound: is the nucleus the same with those?
    others = (size - ids.shape[0]) * math.exp((float(bound) - highest) / temperature)
    length = int(np.searchsorted(sums, top_p * sums[-1])) + 1
    if top_p * (sums[-1] + others) > sums[length - 1]:
        return None
    near = np.flatnonzero(found >= ordered[length - 1])
    order = np.argsort(-found[near], kind="stable")[:length]
    return Candidates(weights[:length], ids[near[order]])


def bracket_nucleus(weights: Logits, total: float, top_p: float) -> Candidates:
    """Returns the nucleus of any distribution, ties by lower id.

    Sorting all weights is slow. A sample says about where the nucleus ends; what lies above is
    summed, and only what lies between this guess and the end is sorted. Where that does not hold
    the end, the bracket becomes wider: the sample decides the time, never the answer.

    Args:
        weights: [n] float32, none below 0.
        total: their sum.
        top_p: from 0 to 1.
    """
    step = _sample_step(weights.shape[0])
    sample = np.sort(weights[::step])
    below = step * np.cumsum(sample, dtype=np.float64)
    rank = min(int(np.searchsorted(below, (1 - top_p) * total)), sample.shape[0] - 1)
    kept = weights >= sample[rank]
    sums = block_sums(weights, kept)
    missing = top_p * total - float(np.add.reduce(sums))
    upwards = missing <= 0
    # In ranks of the sample: as many as would be enough if they weighed the same, and a margin.
    reach = abs(missing) / max(step * float(sample[rank]), 1e-9 * total)
    reach += 3 * math.sqrt(reach) + 3
    while True:
        end = rank + int(reach) if upwards else rank - int(reach)
        edge = 0.0 if end < 0 else math.inf if end >= sample.shape[0] else float(sample[end])
        ids = np.flatnonzero((weights >= edge) ^ kept)
        found = weights[ids]
        ordered = np.sort(found)[::-1]
        reached = np.cumsum(ordered, dtype=np.float64)
        within = float(reached[-1]) if ids.shape[0] else 0.0
        wanted = missing + within if upwards else missing
        if edge in (0.0, math.inf) or 0 < wanted <= within:
            break
        reach *= 4
    if ids.shape[0]:
        length = min(int(np.searchsorted(reached, wanted)) + 1, ids.shape[0])
        last = ordered[length - 1]
        among = found > last
        among[np.flatnonzero(found == last)[: length - np.count_nonzero(among)]] = True
        changes = found * (among - np.float32(1) if upwards else among)
        sums += np.bincount(ids // _BLOCK, weights=changes, minlength=sums.shape[0])
        kept[ids] = among
    if -missing > top_p * total:
        # More was taken away than is left, and so was its rounding.
        return Candidates(weights, kept=kept)
    return Candidates(weights, kept=kept, sums=sums)


def draw_index(
    weights: npt.NDArray[np.floating],
    share: float,
    kept: Flags | None = None,
    sums: Floats | None = None,
) -> int:
    """Returns the index at which the running sum of the weights passes `share` of their total.

    Args:
        weights: [n], none below 0.
        share: from 0 to below 1.
        kept: [n], which of them count; None for all.
        sums: what `block_sums` says of those, where it is known.
    """
    begin, before, total = 0, 0.0, 0.0
    if weights.shape[0] > _BLOCK:
        # Sums of blocks first: running sums of a whole vocabulary are megabytes.
        running = np.cumsum(block_sums(weights, kept) if sums is None else sums)
        total = float(running[-1])
        block = min(int(np.searchsorted(running, share * total, side="right")), len(running) - 1)
        begin = block * _BLOCK
        before = float(running[block - 1]) if block else 0.0
    near = weights[begin : begin + _BLOCK]
    if kept is not None:
        near = near * kept[begin : begin + _BLOCK]
    inside = np.cumsum(near, dtype=np.float64)
    if sums is not None and inside[-1] == 0:
        # A block of which all was taken away again: its sum was rounding.
        return draw_index(weights, share, kept)
    target = share * (total or float(inside[-1])) - before
    # Below the end, where the running sum grows: rounding must not choose a weight of 0.
    target = min(target, float(np.nextafter(inside[-1], 0.0)))
    return begin + int(np.searchsorted(inside, target, side="right"))


class Sampler:
    """Chooses the tokens of one request. Not thread-safe.

    The same seed gives the same choices, whatever runs beside.

    Attributes:
        seed: the seed in use.
    """

    def __init__(self, params: SamplingParams, vocab: int, prompt: Sequence[int] = ()) -> None:
        """Starts a request.

        Args:
            params: how to choose.
            vocab: ids from here on are padding and never chosen.
            prompt: ids before the first choice, for the repetition penalty.

        Raises:
            ConfigError: when logit_bias names an id that does not exist.
        """
        self._params = params
        self._temperature = max(params.temperature, _TEMPERATURE_MIN)
        self._vocab = vocab
        self.seed = secrets.randbits(53) if params.seed is None else params.seed
        self._random = np.random.Generator(np.random.PCG64(self.seed))
        for token_id in params.logit_bias:
            if not 0 <= token_id < vocab:
                raise ConfigError(
                    f"logit_bias: token id {token_id}: the tokenizer has ids 0 to {vocab - 1}"
                )
        self._bias_ids = np.array(list(params.logit_bias), dtype=np.int64)
        self._bias = np.array(list(params.logit_bias.values()), dtype=np.float32)
        self._counts: dict[int, int] = {}
        seen = np.unique(np.array(prompt if params.repetition_penalty != 1.0 else (), np.int64))
        self._seen = seen[seen < vocab]
        # Megabytes that are the same for every token: fresh ones would be faulted in page by page.
        self._scratch = np.empty(0, dtype=np.float32)

    def choose(self, logits: Logits) -> int:
        """Returns the next token.

        Args:
            logits: [rows] float32 with rows >= vocab; not changed.

        Raises:
            FormatError: when they are no numbers (a damaged weight or scale).
        """
        scores = self._penalised(logits[: self._vocab])
        best = int(scores.argmax())
        highest = float(scores[best])
        if not np.isfinite(highest):
            raise FormatError(
                f"the model's logits are not finite (token id {best}: {highest}): "
                "a weight or scale of the checkpoint is NaN or infinite"
            )
        token = best if self._params.temperature == 0 else self._draw(scores, highest)
        self._counts[token] = self._counts.get(token, 0) + 1
        if self._params.repetition_penalty != 1.0:
            self._seen = np.append(self._seen, token)
        return token

    def _penalised(self, logits: Logits) -> Logits:
        params = self._params
        counted = bool(self._counts) and bool(params.presence_penalty or params.frequency_penalty)
        if not (self._seen.shape[0] or counted or params.logit_bias):
            return logits
        scores = logits.copy()
        if self._seen.shape[0]:
            seen = scores[self._seen]
            penalty = np.float32(params.repetition_penalty)
            scores[self._seen] = np.where(seen < 0, seen * penalty, seen / penalty)
        if counted:
            ids = np.fromiter(self._counts.keys(), dtype=np.int64)
            times = np.fromiter(self._counts.values(), dtype=np.float32)
            scores[ids] -= params.presence_penalty + params.frequency_penalty * times
        if params.logit_bias:
            scores[self._bias_ids] += self._bias
        return scores

    def _draw(self, scores: Logits, highest: float) -> int:
        candidates = self._candidates(scores, highest)
        if self._params.min_p > 0:
            candidates = candidates.at_least(self._params.min_p)
        return candidates.draw(self._random.random())

    def _candidates(self, scores: Logits, highest: float) -> Candidates:
        """Returns what top-k and top-p leave; min-p is applied afterwards."""
        params, temperature = self._params, self._temperature
        if params.top_k:
            ids = top_ids(scores, min(params.top_k, scores.shape[0]))
            weights = _weights(scores[ids], temperature, highest)
            if params.top_p == 1:
                return Candidates(weights, ids)
            keep = _nucleus_length(weights, float(weights.sum()), params.top_p)
            return Candidates(weights[: keep or None], ids[: keep or None])
        if params.top_p < 1:
            return self._nucleus(scores, highest)
        if params.min_p > 0:  # which leaves few: the others need no weight
            ids = np.flatnonzero(scores >= highest + temperature * math.log(params.min_p))
            return Candidates(_weights(scores[ids], temperature, highest), ids)
        return Candidates(self._exp(scores, exp_shift(highest, temperature)))

    def _nucleus(self, scores: Logits, highest: float) -> Candidates:
        temperature, top_p = self._temperature, self._params.top_p
        few = few_of_nucleus(scores, highest, temperature, top_p)
        if few is not None:
            return few
        shift = exp_shift(highest, temperature)
        weights = self._exp(scores, shift)
        total = float(np.add.reduce(block_sums(weights)))
        if _LIKELIEST * math.exp((highest - shift) / temperature) >= top_p * total:
            maxima = column_maxima(scores)
            # The largest maxima weigh no more than as many of the likeliest tokens.
            ordered = np.sort(maxima)[: -_LIKELIEST - 1 : -1]
            least = exp_weights(ordered, shift, temperature, np.empty_like(ordered))
            if ordered.shape[0] and (count := _nucleus_length(least, total, top_p)):
                ids = top_ids(scores, count, maxima)
                ids = ids[: _nucleus_length(weights[ids], total, top_p) or None]
                return Candidates(weights[ids], ids)
        return bracket_nucleus(weights, total, top_p)

    def _exp(self, scores: Logits, shift: float) -> Logits:
        return exp_weights(scores, shift, self._temperature, self._scratch_like(scores))

    def _scratch_like(self, scores: Logits) -> Logits:
        if self._scratch.shape != scores.shape:
            self._scratch = np.empty(scores.shape, dtype=np.float32)
        return self._scratch

    def logprob(self, logits: Logits, token_id: int, top: int) -> TokenLogprob:
        """Returns what the model itself said about a token.

        Args:
            logits: [rows] float32, as given to `choose`.
            token_id: the chosen token.
            top: how many of the likeliest tokens to list.
        """
        real = logits[: self._vocab]
        likeliest = top_ids(real, min(top, self._vocab)) if top else np.empty(0, dtype=np.int64)
        highest = float(real[likeliest[0]]) if top else None
        normaliser = log_normaliser(real, self._scratch_like(real), highest)
        return TokenLogprob(
            token_id,
            float(real[token_id]) - normaliser,
            tuple((int(i), float(real[i]) - normaliser) for i in likeliest),
        )
