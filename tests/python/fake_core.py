"""A core without a model: logits are a fixed function of the tokens fed so far.

It has the interface of flash_moe._core's Engine and Session, and none of its meaning: what the
model computes is tested with real checkpoints.
"""

from __future__ import annotations

import zlib
from types import SimpleNamespace

import numpy as np

from flash_moe import errors


def fake_logits(tokens: list[int], vocab: int) -> np.ndarray:
    """Any change of any token changes all of them."""
    seed = zlib.crc32(np.asarray(tokens, dtype="<i4").tobytes())
    return (3 * np.random.default_rng(seed).standard_normal(vocab)).astype(np.float32)


class FakeSession:
    def __init__(self, engine: FakeEngine, tokens: list[int] | None = None) -> None:
        self.engine = engine
        self.tokens = list(tokens or [])
        self.closed = False

    @property
    def position(self) -> int:
        return len(self.tokens)

    @property
    def bytes(self) -> int:
        return 4 * len(self.tokens)

    def feed(self, tokens, all=False, progress=None):
        assert len(tokens) > 0, "the core takes at least one token"
        assert not self.closed
        if len(self.tokens) + len(tokens) > self.engine.context:
            raise errors.ConfigError("context is full")
        self.engine.before_feed(list(tokens))
        if progress is not None and progress(0, len(tokens)):
            raise errors.CancelledError("cancelled")
        rows = []
        before = list(self.tokens)
        for token in tokens:
            before.append(int(token))
            rows.append(self.engine.logits_of(before))
        self.tokens = before
        self.engine.fed.append(len(tokens))
        return np.stack(rows) if all else rows[-1]

    def fork(self):
        return FakeSession(self.engine, self.tokens)

    def save(self, path):
        with open(path, "wb") as file:  # noqa: PTH123 - the core takes a string
            file.write(np.asarray(self.tokens, dtype="<i4").tobytes())

    def close(self):
        self.closed = True


class FakeEngine:
    """Answers follow `script` where one is set: the wanted token gets the highest logit.

    Tokens of `never` get the lowest one.
    """

    def __init__(self, vocab: int, context: int = 1 << 16) -> None:
        self.vocab = vocab
        self.context = context
        self.fed: list[int] = []
        self.batches: list[int] = []
        self.script: list[int] | None = None
        self.script_start = 0
        self.never: list[int] = []
        self.fail_at: int | None = None
        self.feeds = 0
        self.error: BaseException = errors.IoError("read failed")
        self.closed = False

    def logits_of(self, tokens: list[int]) -> np.ndarray:
        logits = fake_logits(tokens, self.vocab)
        logits[self.never] = -100.0
        if self.script is not None:
            place = len(tokens) - self.script_start
            if 0 <= place < len(self.script):
                logits[self.script[place]] = 100.0
        return logits

    def answer_with(self, prompt_tokens: int, script: list[int]) -> None:
        """After a prompt of so many tokens, the likeliest tokens are those of the script."""
        self.script, self.script_start = script, prompt_tokens

    def before_feed(self, tokens: list[int]) -> None:
        self.feeds += 1
        if self.feeds == self.fail_at:
            raise self.error

    def info(self):
        return SimpleNamespace(vocab=self.vocab, context=self.context, path="fake", experts=8)

    def memory_plan(self):
        return SimpleNamespace(memory_bytes=1 << 30)

    def new_session(self):
        return FakeSession(self)

    def load_session(self, path):
        return FakeSession(self, np.fromfile(path, dtype="<i4").tolist())

    def decode(self, sessions, tokens):
        self.batches.append(len(sessions))
        return np.stack([s.feed([t]) for s, t in zip(sessions, tokens, strict=True)])

    def stats(self):
        return SimpleNamespace(lossy="", phases=[], step_ns=0)

    def reset_stats(self):
        self.feeds = 0

    def close(self):
        self.closed = True
