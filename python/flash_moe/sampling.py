"""From logits to a token.

Order of operations: repetition, presence and frequency penalties -> logit bias -> temperature ->
top-k -> top-p -> min-p -> a uniform random number (where a nucleus is wide: one for each token
that is tried). Log-probabilities are those of the model itself, before any of these.

Source: the definitions of transformers' logits processors (penalty by division or multiplication;
    nucleus as the smallest set whose probability reaches top_p; min_p relative to the likeliest
    token) and of OpenAI's presence and frequency penalties, which count generated tokens only.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
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
# are a small share of a sample of about so many.
_FEW_TAIL = 8.0
_FEW_SHARE = 1 / 32
_SAMPLE = 1024


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


def top_ids(logits: Logits, count: int) -> Ids:
    """Returns the ids of the `count` largest logits, largest first, ties by lower id.

    Args:
        logits: [vocab] float32.
        count: at most vocab.
    """
    size = logits.shape[0]
    if count >= size:
        return np.argsort(-logits, kind="stable")
    width = size // _COLUMN
    if count < width:
        # At least `count` entries reach the count-th largest maximum.
        maxima = column_maxima(logits)
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
        ids: [n], whose weights those are.
    """

    weights: npt.NDArray[np.floating]
    ids: Ids

    def at_least(self, min_p: float) -> Candidates:
        """Returns those that have min_p of the largest weight."""
        kept = self.weights >= min_p * self.weights.max()
        return Candidates(self.weights[kept], self.ids[kept])

    def draw(self, share: float) -> int:
        """Returns the id at which the running sum of weights passes `share` of their total."""
        return int(self.ids[draw_index(self.weights, share)])


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
    sample = scores[:: (size // _SAMPLE) | 1]  # odd: what repeats, repeats by powers of two
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


class Weighed(NamedTuple):
    """A set of tokens of a vocabulary.

    Attributes:
        weights: [vocab] float32 of all tokens, none below 0.
        sums: of those in the set, by block (`block_sums`).
        kept: [vocab], which are in the set; None for all.
    """

    weights: Logits
    sums: Floats
    kept: Flags | None = None

    @classmethod
    def of(cls, weights: Logits, kept: Flags | None = None) -> Weighed:
        """Returns the set with its sums."""
        return cls(weights, block_sums(weights, kept), kept)

    def total(self) -> float:
        """Returns their weight."""
        return float(np.add.reduce(self.sums))

    def draw(self, share: float) -> int:
        """Returns the id at which the running sum of weights passes `share` of their total."""
        return draw_index(self.weights, share, self.kept, self.sums)


def ahead_of(weights: Logits, total: float, top_p: float, token: int) -> Weighed | None:
    """Returns None for a token of the nucleus, else the tokens ahead of it, which hold the nucleus.

    Ahead is what is likelier, or as likely by a lower id. A token belongs to the nucleus while
    those ahead of it do not reach top_p.

    Args:
        weights: [vocab] float32, none below 0.
        total: their sum.
        top_p: from 0 to 1.
        token: its weight is above 0.
    """
    weight = weights[token]
    # Most tokens have so many behind them that a part of the vocabulary proves it.
    part = weights[: weights.shape[0] // 4]
    behind = float(weight) + Weighed.of(part, part < weight).total()
    if total - behind < top_p * total:
        return None
    kept = weights > weight
    kept[:token] |= weights[:token] == weight
    ahead = Weighed.of(weights, kept)
    reached = ahead.total()
    return ahead if reached > 0 and reached >= top_p * total else None


def draw_of_nucleus(
    weights: Logits, top_p: float, min_p: float, random: Callable[[], float]
) -> int:
    """Returns the id of a token drawn from the nucleus of any distribution, ties by lower id.

    To find where a nucleus ends takes sorting; to tell whether one token lies within takes a sum.
    So tokens are drawn from a set that holds the nucleus until one lies within; one that does not
    leaves those ahead of it. Whatever the set, the tokens of the nucleus have their shares.

    Args:
        weights: [vocab] float32, none below 0.
        top_p: from 0 to 1.
        min_p: tokens below this share of the largest weight are left out.
        random: gives numbers from 0 to below 1.
    """
    drawn_from = Weighed.of(weights)
    total = drawn_from.total()
    if min_p > 0:
        drawn_from = Weighed.of(weights, weights >= min_p * weights.max())
    while True:
        token = drawn_from.draw(random())
        ahead = ahead_of(weights, total, top_p, token)
        if ahead is None:
            return token
        drawn_from = ahead


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
    begin, target = 0, None
    if weights.shape[0] > _BLOCK:
        # Sums of blocks first: running sums of a whole vocabulary are megabytes.
        running = np.cumsum(block_sums(weights, kept) if sums is None else sums)
        target = _at_share(share, running)
        block = int(np.searchsorted(running, target, side="right"))
        begin = block * _BLOCK
        target -= float(running[block - 1]) if block else 0.0
    near = weights[begin : begin + _BLOCK]
    if kept is not None:
        near = near * kept[begin : begin + _BLOCK]
    inside = np.cumsum(near, dtype=np.float64)
    target = min(_at_share(share, inside) if target is None else target, _at_share(1.0, inside))
    return begin + int(np.searchsorted(inside, target, side="right"))


def _at_share(share: float, running: Floats) -> float:
    # Below the end, where the running sum grows: rounding must not choose a weight of 0.
    end = float(running[-1])
    return min(share * end, float(np.nextafter(end, 0.0)))


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
        params, random = self._params, self._random.random
        candidates = self._candidates(scores, highest)
        if candidates is None:
            weights = self._all(scores, highest)
            if params.top_p == 1:
                return draw_index(weights, random())
            return draw_of_nucleus(weights, params.top_p, params.min_p, random)
        if params.min_p > 0:
            candidates = candidates.at_least(params.min_p)
        return candidates.draw(random())

    def _candidates(self, scores: Logits, highest: float) -> Candidates | None:
        """Returns what top-k and top-p leave; None for all, or a nucleus of more than a few."""
        params, temperature = self._params, self._temperature
        if params.top_k:
            ids = top_ids(scores, min(params.top_k, scores.shape[0]))
            weights = _weights(scores[ids], temperature, highest)
            if params.top_p == 1:
                return Candidates(weights, ids)
            keep = _nucleus_length(weights, float(weights.sum()), params.top_p)
            return Candidates(weights[: keep or None], ids[: keep or None])
        if params.top_p < 1:
            return few_of_nucleus(scores, highest, temperature, params.top_p)
        if params.min_p > 0:  # which leaves few: the others need no weight
            ids = np.flatnonzero(scores >= highest + temperature * math.log(params.min_p))
            return Candidates(_weights(scores[ids], temperature, highest), ids)
        return None

    def _all(self, scores: Logits, highest: float) -> Logits:
        shift = exp_shift(highest, self._temperature)
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
