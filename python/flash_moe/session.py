"""A session: one timeline of tokens, which can be fed, continued, forked and saved."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack

from . import session_file
from .completion import Completion, GenerationStats, Piece
from .errors import ConfigError, FormatError
from .generation import Answer
from .options import GenerateOptions, Progress, Request, resolve
from .reply import ReplyParser
from .sampling import Logits

if TYPE_CHECKING:
    from ._core import Session as CoreSession
    from .engine import Engine, Prompt


class Session:
    """One timeline of tokens.

    A session does one thing at a time: a call from another thread waits. Different sessions of an
    engine may be used from different threads.
    """

    def __init__(self, engine: Engine, core: CoreSession, logits: Logits | None = None) -> None:
        """Wraps a session of the core; use `Engine.session`."""
        self._engine = engine
        self._core: CoreSession | None = core
        self._logits = logits
        # Sampled but not fed: the last token of an answer needs no logits until something follows
        # it.
        self._pending: list[int] = []
        self._lock = threading.RLock()

    @property
    def tokens(self) -> list[int]:
        """Every token so far, generated ones included."""
        return [*self.core.tokens, *self._pending]

    @property
    def position(self) -> int:
        """Count of tokens."""
        return self.core.position + len(self._pending)

    @property
    def memory_bytes(self) -> int:
        """Bytes of the state: KV cache and DeltaNet state."""
        return self.core.bytes

    @property
    def lossy(self) -> str:
        """What the engine gives up; empty when it is exact."""
        return self._engine.lossy

    @property
    def core(self) -> CoreSession:
        """The session of the core.

        Raises:
            ConfigError: when the session is closed.
        """
        if self._core is None:
            raise ConfigError("the session is closed")
        self._engine.core  # noqa: B018 - raises when the engine is closed
        return self._core

    def feed(
        self, prompt: Prompt, *, control_tokens: bool = False, progress: Progress | None = None
    ) -> None:
        """Appends a text or tokens.

        Args:
            prompt: text, or token ids; at least one token.
            control_tokens: whether control tokens spelled in a text count as such.
            progress: called with tokens done and in all; True cancels.

        Raises:
            ConfigError: when it is empty, longer than the context has room for, or no valid text.
            CancelledError: when cancelled; the session is then as before.
            IoError: when a read failed; the session is then as before.
        """
        ids = self._engine.prompt_ids(prompt, control_tokens=control_tokens)
        with self._lock:
            self._feed(ids, progress)

    def generate(
        self, prompt: Prompt | None = None, **options: Unpack[GenerateOptions]
    ) -> Completion:
        """Continues the session, after feeding a prompt if there is one.

        Args:
            prompt: text or token ids to feed first.
            **options: of `GenerateOptions`.

        Returns:
            The answer. Its tokens stand in the session.

        Raises:
            ConfigError: as `feed`; or when nothing has been fed yet.
        """
        with self.stream(prompt, **options) as stream:
            return stream.finish()

    def stream(self, prompt: Prompt | None = None, **options: Unpack[GenerateOptions]) -> Stream:
        """Like `generate`, in pieces; the work is done while they are asked for."""
        request = resolve(options, self._engine.defaults)
        ids: Sequence[int] = ()
        if prompt is not None:
            ids = self._engine.prompt_ids(prompt, control_tokens=request.control_tokens)
        return self.answer(request, ids)

    def answer(
        self,
        request: Request,
        ids: Sequence[int],
        parser: ReplyParser | None = None,
        prefill: Callable[[], Logits] | None = None,
    ) -> Stream:
        """Returns the stream of an answer (for stream and chat).

        Args:
            request: complete options.
            ids: tokens to feed first.
            parser: takes a chat's answer apart.
            prefill: feeds them in the caller's own way.
        """
        before = self.tokens
        if not before and not len(ids):
            raise ConfigError("the prompt is empty: give at least one token")
        self.check_room(len(ids))
        room = self._engine.info.context - len(before) - len(ids) + 1
        prompt = [*before, *ids]
        answer = Answer(request, self._engine.tokenizer, prompt, room, parser)
        if prefill is None:
            prefill = functools.partial(self.first_logits, ids, request.progress)
        return Stream(self, answer, len(ids), prefill)

    def fork(self) -> Session:
        """Returns a second session with the same past; each goes on by itself."""
        with self._lock:
            twin = Session(self._engine, self.core.fork(), self._logits)
            twin._pending = list(self._pending)
            return twin

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the session to a file, beside it first: a full disk leaves the old file.

        Raises:
            IoError: when the file cannot be written.
        """
        with self._lock:
            if self._pending:
                self._feed([], None)
            session_file.save(self.core, self._logits, Path(path))

    def close(self) -> None:
        """Frees the state. Closing twice is no error."""
        with self._lock:
            core, self._core, self._logits = self._core, None, None
            if core is not None:
                core.close()

    def __enter__(self) -> Self:
        """Returns the session, which closes at the end of the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the session."""
        self.close()

    def __len__(self) -> int:
        """Count of tokens."""
        return self.position

    def check_room(self, count: int) -> None:
        """Raises ConfigError when the context has no room for so many tokens more."""
        context, position = self._engine.info.context, self.position
        if position + count > context:
            after = f" after {position}" if position else ""
            raise ConfigError(
                f"the prompt is {count} tokens{after}, the model's context holds {context}"
            )

    def _feed(self, ids: Sequence[int], progress: Progress | None) -> Logits:
        self.check_room(len(ids))
        if self._pending:  # a sampled token is decoded, whatever comes after it
            self._logits = self._engine.core.decode([self.core], self._pending)[0]
            self._pending = []
        if len(ids) or self._logits is None:
            self._logits = self.core.feed(ids, progress=progress)
        return self._logits

    def first_logits(self, ids: Sequence[int], progress: Progress | None) -> Logits:
        """Returns the logits from which an answer starts, after feeding what is to be fed."""
        with self._lock:
            if len(ids) or self._pending:
                return self._feed(ids, progress)
            return self._recompute() if self._logits is None else self._logits

    def _recompute(self) -> Logits:
        """Logits of a loaded session whose last logits were not saved with it."""
        twin = self._engine.core.new_session()
        try:
            self._logits = twin.feed(self.core.tokens)
        finally:
            twin.close()
        return self._logits

    def step(self, answer: Answer, logits: Logits) -> list[Piece]:
        """Samples a token into the session."""
        with self._lock:
            try:
                pieces = answer.step(logits)
            except FormatError as error:
                raise FormatError(f"{self._engine.path}: {error}") from error
            self._pending = [answer.token_ids[-1]]
            return pieces

    def fed_by_batch(self, logits: Logits) -> None:
        """Notes that the sampled token was fed in a step of several sessions."""
        self._pending = []
        self._logits = logits

    def next_logits(self) -> Logits:
        """Feeds the sampled token and returns the logits after it."""
        with self._lock:
            return self._feed([], None)


class Stream(Iterator[Piece]):
    """An answer on its way: iterate over it for pieces.

    A context manager; leaving early cancels the rest.

    Attributes:
        error: what ended it, when it did not end by itself.
    """

    def __init__(
        self, session: Session, answer: Answer, prompt_tokens: int, prefill: Callable[[], Logits]
    ) -> None:
        """Sets up; the work starts with the first piece asked for.

        Args:
            session: into which tokens are sampled.
            answer: the request's state.
            prompt_tokens: count of tokens that `prefill` feeds.
            prefill: returns the logits from which the answer starts.
        """
        self._answer = answer
        self._on_close: list[Callable[[], None]] = []
        self._prompt_tokens = prompt_tokens
        self._prefill_s = 0.0
        self._decode_s = 0.0
        self._lossy = session.lossy
        self._pieces = self._run(session, prefill)
        self.error: BaseException | None = None

    def _run(self, session: Session, prefill: Callable[[], Logits]) -> Iterator[Piece]:
        started = time.perf_counter()
        logits = prefill()
        self._prefill_s = time.perf_counter() - started
        while True:
            started = time.perf_counter()
            pieces = session.step(self._answer, logits)
            self._decode_s += time.perf_counter() - started
            yield from pieces
            if self._answer.finish_reason is not None:
                return
            started = time.perf_counter()
            logits = session.next_logits()
            self._decode_s += time.perf_counter() - started

    def __iter__(self) -> Self:
        """Returns itself."""
        return self

    def __next__(self) -> Piece:
        """Returns the next piece."""
        try:
            return next(self._pieces)
        except StopIteration:
            self.close()
            raise
        except BaseException as error:
            self.error = error
            self.close()
            raise

    def finish(self) -> Completion:
        """Takes all remaining pieces and returns the completion."""
        for _ in self:
            pass
        return self.completion

    @property
    def completion(self) -> Completion:
        """The answer so far. Asking for it before the end cancels the rest."""
        if self._answer.finish_reason is None:
            self.close()
        return self._answer.completion(
            GenerationStats(
                self._prompt_tokens,
                len(self._answer.token_ids),
                self._prefill_s,
                self._decode_s,
                self._lossy,
            )
        )

    @property
    def started(self) -> bool:
        """True once a token has been sampled."""
        return bool(self._answer.token_ids)

    def on_close(self, action: Callable[[], None]) -> Self:
        """Calls `action` once when the stream ends, in whichever way."""
        self._on_close.append(action)
        return self

    def close(self) -> None:
        """Cancels what has not been generated yet. The session keeps what has."""
        self._pieces = iter(())
        while self._on_close:
            self._on_close.pop()()

    def __enter__(self) -> Self:
        """Returns the stream."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Cancels the rest."""
        self.close()
