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

import numpy as np
import numpy.typing as npt

from .errors import ConfigError, FormatError

Logits = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

# Candidates are searched, and weights summed, by this many at a time.
_BLOCK = 256
# A nucleus is looked for among this many likeliest tokens, then among more, then among all.
_NUCLEUS_FIRST = (64, 2048)


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
    # A column of the grid is a block: the maxima of all of them are maxima of rows, which are fast.
    width = size // _BLOCK
    grid = logits[: width * _BLOCK].reshape(_BLOCK, width)
    if count < width:
        # At least `count` entries reach the count-th largest maximum.
        maxima = grid.max(axis=0)
        bound = np.partition(maxima, -count)[-count]
        near = np.flatnonzero(maxima >= bound)
        row, column = np.nonzero(grid[:, near] >= bound)
        behind = width * _BLOCK + np.flatnonzero(logits[width * _BLOCK :] >= bound)
        found = np.concatenate([row * width + near[column], behind])
    else:
        bound = np.partition(logits, -count)[-count]
        found = np.flatnonzero(logits >= bound)
    order = np.argsort(-logits[found], kind="stable")[:count]
    ids: Ids = found[order]
    return ids


def block_sums(weights: npt.NDArray[np.floating]) -> Floats:
    """Returns the sums of [n] weights by 256 neighbours, the last of them of what is left."""
    whole = weights.shape[0] - weights.shape[0] % _BLOCK
    sums: Floats = np.einsum("ij->i", weights[:whole].reshape(-1, _BLOCK)).astype(np.float64)
    if whole == weights.shape[0]:
        return sums
    return np.append(sums, weights[whole:].sum(dtype=np.float64))


def exp_weights(logits: Logits, highest: float, temperature: float, out: Logits) -> Logits:
    """Returns exp((logits - highest) / temperature) in `out`, all of them [n] float32."""
    np.subtract(logits, np.float32(highest), out=out)
    if temperature != 1:
        np.divide(out, np.float32(temperature), out=out)
    return np.exp(out, out=out)


def log_normaliser(logits: Logits, scratch: Logits | None = None) -> float:
    """Returns log(sum(exp(logits))) over [vocab]; `scratch` saves allocating as much."""
    highest = float(logits.max())
    out = np.empty_like(logits) if scratch is None else scratch
    weights = exp_weights(logits, highest, 1.0, out)
    return highest + math.log(block_sums(weights).sum())


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


def draw_index(weights: npt.NDArray[np.floating], share: float) -> int:
    """Returns the index at which the running sum of the weights passes `share` of their total.

    Args:
        weights: [n], none below 0.
        share: from 0 to below 1.
    """
    begin = 0
    if weights.shape[0] > _BLOCK:
        # Sums of blocks first: running sums of a whole vocabulary are megabytes.
        sums = np.cumsum(block_sums(weights))
        target = share * float(sums[-1])
        block = min(int(np.searchsorted(sums, target, side="right")), len(sums) - 1)
        begin = block * _BLOCK
        target -= float(sums[block - 1]) if block else 0.0
        inside = np.cumsum(weights[begin : begin + _BLOCK], dtype=np.float64)
    else:
        inside = np.cumsum(weights, dtype=np.float64)
        target = share * float(inside[-1])
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
        self._seen = (
            {token for token in prompt if token < vocab}
            if params.repetition_penalty != 1.0
            else set()
        )
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
            self._seen.add(token)
        return token

    def _penalised(self, logits: Logits) -> Logits:
        params = self._params
        counted = bool(self._counts) and bool(params.presence_penalty or params.frequency_penalty)
        if not (self._seen or counted or params.logit_bias):
            return logits
        scores = logits.copy()
        if self._seen:
            seen = np.fromiter(self._seen, dtype=np.int64)
            penalty = np.float32(params.repetition_penalty)
            scores[seen] = np.where(
                scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty
            )
        if counted:
            ids = np.fromiter(self._counts.keys(), dtype=np.int64)
            times = np.fromiter(self._counts.values(), dtype=np.float32)
            scores[ids] -= params.presence_penalty + params.frequency_penalty * times
        if params.logit_bias:
            scores[self._bias_ids] += self._bias
        return scores

    def _draw(self, scores: Logits, highest: float) -> int:
        params = self._params
        ids: Ids | None = None
        weights: npt.NDArray[np.floating]
        if params.top_k:
            ids = top_ids(scores, min(params.top_k, scores.shape[0]))
            weights = _weights(scores[ids], params.temperature, highest)
            if params.top_p < 1:
                keep = _nucleus_length(weights, float(weights.sum()), params.top_p)
                ids, weights = ids[: keep or None], weights[: keep or None]
        elif params.top_p < 1:
            ids, weights = self._nucleus(scores, highest)
        elif params.min_p > 0:
            ids = np.flatnonzero(scores >= highest + params.temperature * math.log(params.min_p))
            weights = _weights(scores[ids], params.temperature, highest)
        else:
            weights = exp_weights(scores, highest, params.temperature, self._scratch_like(scores))
        if params.min_p > 0 and ids is not None:
            kept = np.flatnonzero(weights >= params.min_p * weights.max())
            ids, weights = ids[kept], weights[kept]
        index = draw_index(weights, self._random.random())
        return index if ids is None else int(ids[index])

    def _scratch_like(self, scores: Logits) -> Logits:
        if self._scratch.shape != scores.shape:
            self._scratch = np.empty(scores.shape, dtype=np.float32)
        return self._scratch

    def _nucleus(self, scores: Logits, highest: float) -> tuple[Ids, npt.NDArray[np.floating]]:
        params = self._params
        weights = exp_weights(scores, highest, params.temperature, self._scratch_like(scores))
        total = float(block_sums(weights).sum())
        for count in _NUCLEUS_FIRST:
            if scores.shape[0] <= count:
                break
            ids = top_ids(scores, count)
            if length := _nucleus_length(weights[ids], total, params.top_p):
                return ids[:length], weights[ids[:length]]
        # Sorting values alone is several times faster than sorting ids by value.
        ordered = np.sort(weights)[::-1]
        length = _nucleus_length(ordered, total, params.top_p) or ordered.shape[0]
        last = ordered[length - 1]
        ids = np.flatnonzero(weights > last)
        ids = np.concatenate([ids, np.flatnonzero(weights == last)[: length - ids.shape[0]]])
        return ids, weights[ids]

    def logprob(self, logits: Logits, token_id: int, top: int) -> TokenLogprob:
        """Returns what the model itself said about a token.

        Args:
            logits: [rows] float32, as given to `choose`.
            token_id: the chosen token.
            top: how many of the likeliest tokens to list.
        """
        real = logits[: self._vocab]
        normaliser = log_normaliser(real, self._scratch_like(real))
        likeliest = top_ids(real, min(top, self._vocab)) if top else np.empty(0, dtype=np.int64)
        return TokenLogprob(
            token_id,
            float(real[token_id]) - normaliser,
            tuple((int(i), float(real[i]) - normaliser) for i in likeliest),
        )
