"""The engine: a loaded model with its tokenizer, templates and defaults."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack, overload

import numpy as np
import numpy.typing as npt

from . import _core, session_file
from .batch import generate_batch
from .chat_template import ChatTemplates, Message
from .completion import Completion, Score
from .conversation import Conversation
from .errors import ConfigError, FormatError, IoError
from .folder import demo_model, read_json_if_present, resolve_model
from .options import Defaults, GenerateOptions, Progress, resolve
from .reply import ReplyParser, opens_thinking
from .routes import Routes
from .sampling import Logits, log_normaliser
from .session import Session, Stream
from .sizes import parse_bytes
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from ._core import Engine as CoreEngine
    from ._core import EngineOptions, MemoryPlan, ModelInfo, Stats

Prompt = str | Sequence[int] | npt.NDArray[np.integer]
# Logits of a chunk of a scored text take at most this share of the memory bound, and at least so
# many bytes.
_SCORE_SHARE, _SCORE_BYTES_MIN = 0.01, 64 << 20


def engine_options(
    *,
    backend: str = "auto",
    memory: str | int | None = None,
    experts_per_token: int | None = None,
    threads: int | None = None,
    activations: str = "auto",
    kv_dtype: str = "auto",
    isa: str = "auto",
    cache: str = "auto",
    policy: str = "auto",
    io: str = "auto",
    queue_depth: int | None = None,
    cache_slots: int | None = None,
    prefill_chunk: int | None = None,
    prefetch: str | bool = "auto",
    load: str = "auto",
    fail_read: int = 0,
) -> EngineOptions:
    """Returns the core's options for the keyword arguments of `Engine`.

    Raises:
        ConfigError: on a number that is not above zero, or a size that is none.
    """
    options = _core.EngineOptions()
    options.backend = backend
    options.memory_bytes = 0 if memory is None else parse_bytes(memory)
    counts = {
        "experts_per_token": experts_per_token,
        "thread_count": threads,
        "queue_depth": queue_depth,
        "cache_slots": cache_slots,
        "prefill_chunk": prefill_chunk,
    }
    for name, value in counts.items():
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or value < 1
        ):
            raise ConfigError(f"{name}: wanted a whole number above 0, got {value!r}")
        setattr(options, name, value or 0)
    options.activations = activations
    options.kv_dtype = kv_dtype
    options.isa = isa
    options.cache = cache
    options.policy = policy
    options.io = io
    if isinstance(prefetch, bool):
        prefetch = "on" if prefetch else "off"
    options.prefetch = prefetch
    options.load = load
    options.fail_read = fail_read
    return options


def vocab_size(folder: Path) -> int | None:
    """Returns vocab_size of config.json, None where it states none (the core will say so)."""
    config = read_json_if_present(folder / "config.json")
    nested = config.get("text_config")
    for where in (nested if isinstance(nested, dict) else {}, config):
        if isinstance(size := where.get("vocab_size"), int):
            return size
    return None


class Engine:
    """A loaded model. A context manager; thread-safe.

    Attributes:
        path: the model folder.
        tokenizer: the checkpoint's.
        defaults: sampling values and end tokens of the checkpoint.
        info: what the folder holds and how it runs.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        backend: str = "auto",
        memory: str | int | None = None,
        experts_per_token: int | None = None,
        threads: int | None = None,
        activations: str = "auto",
        kv_dtype: str = "auto",
        isa: str = "auto",
        cache: str = "auto",
        policy: str = "auto",
        io: str = "auto",
        queue_depth: int | None = None,
        cache_slots: int | None = None,
        prefill_chunk: int | None = None,
        prefetch: str | bool = "auto",
        load: str = "auto",
        fail_read: int = 0,
        progress: Progress | None = None,
    ) -> None:
        """Opens a model.

        Args:
            path: a model folder, or the hub id of one that is already downloaded; None is the
                bundled model.
            backend: "auto", "cpu", "metal" or "cuda".
            memory: bound on the whole process, "12GB" or bytes; None chooses from what is free.
            experts_per_token: fewer than the model was trained with is faster and lossy.
            threads: None is one for each core.
            activations: "auto", or "float32", the reference precision.
            kv_dtype: "auto", "float32" or "bfloat16".
            isa: CPU kernels by name.
            cache: "auto", "slots" (own memory, direct reads), "both" (own memory, read through
                the page cache) or "os" (the page cache keeps experts).
            policy: eviction policy by name.
            io: "auto", "threads", "uring" or "gcd".
            queue_depth: reads in flight.
            cache_slots: experts held; None is what the memory bound leaves.
            prefill_chunk: tokens of a prefill step.
            prefetch: "on" or True reads ahead by the next layer's router, "auto" where steps
                with it have been faster than steps without.
            load: when this returns: "whole" once all dense weights are read, "background" while
                they are being read, so that a read that fails is an error of the first call that
                needs it; "auto" is background from 256 MiB of them on.
            fail_read: for tests, the read that fails.
            progress: called with bytes loaded and in all; True cancels. With it, "auto" of `load`
                is "whole".

        Raises:
            ConfigError: when the folder does not exist, or an option cannot be.
            FormatError: when a file is not what it should be.
            IoError: when a file cannot be read.
            DeviceError: when the backend is not in this build or machine.
        """
        options = engine_options(
            backend=backend,
            memory=memory,
            experts_per_token=experts_per_token,
            threads=threads,
            activations=activations,
            kv_dtype=kv_dtype,
            isa=isa,
            cache=cache,
            policy=policy,
            io=io,
            queue_depth=queue_depth,
            cache_slots=cache_slots,
            prefill_chunk=prefill_chunk,
            prefetch=prefetch,
            load="whole" if load == "auto" and progress is not None else load,
            fail_read=fail_read,
        )
        folder = demo_model() if path is None else resolve_model(path)
        # The tokenizer comes first: it is quick to read, and its memory counts when the core sizes
        # its cache.
        tokenizer = Tokenizer(folder)
        if vocab := vocab_size(folder):
            tokenizer.check_vocab(vocab)
        defaults = Defaults.read(folder, tokenizer)
        templates = ChatTemplates(folder, tokenizer)
        core = _core.Engine.open(str(folder), options, progress)
        self._set(core, folder, tokenizer, defaults, templates)

    @classmethod
    def over(cls, core: CoreEngine, folder: Path) -> Engine:
        """Returns an engine over a core that is already open, with the tokenizer of a folder."""
        engine = cls.__new__(cls)
        tokenizer = Tokenizer(folder)
        templates = ChatTemplates(folder, tokenizer)
        engine._set(core, folder, tokenizer, Defaults.read(folder, tokenizer), templates)
        return engine

    def _set(
        self,
        core: CoreEngine,
        folder: Path,
        tokenizer: Tokenizer,
        defaults: Defaults,
        templates: ChatTemplates,
    ) -> None:
        self._core: CoreEngine | None = core
        self.path = folder
        self.tokenizer = tokenizer
        self.defaults = defaults
        self.templates = templates
        self.info: ModelInfo = core.info()
        self.lossy = core.stats().lossy
        tokenizer.check_vocab(self.info.vocab)

    @property
    def core(self) -> CoreEngine:
        """The engine of the core.

        Raises:
            ConfigError: when the engine is closed.
        """
        if self._core is None:
            raise ConfigError("the engine is closed")
        return self._core

    # --- Tokens -----------------------------------------------------------------------------

    def encode(self, text: str, *, control_tokens: bool = False) -> list[int]:
        """Returns the ids of a text; control tokens spelled in it count only when asked for."""
        return self.tokenizer.encode(text, control_tokens=control_tokens)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Returns the text of ids."""
        return self.tokenizer.decode(ids, skip_special=skip_special)

    def prompt_ids(self, prompt: Prompt, *, control_tokens: bool = False) -> list[int]:
        """Returns a prompt as ids.

        Raises:
            ConfigError: when it is empty, no valid text, or has an id that the model does not know.
        """
        if isinstance(prompt, str):
            ids = self.tokenizer.encode(prompt, control_tokens=control_tokens)
        else:
            try:
                ids = [int(token) for token in prompt]
            except (TypeError, ValueError) as error:
                raise ConfigError(
                    f"prompt: wanted text or token ids, got {prompt!r:.80}"
                ) from error
            for token in ids:
                if not 0 <= token < self.info.vocab:
                    raise ConfigError(
                        f"prompt: token id {token}: the model has ids 0 to {self.info.vocab - 1}"
                    )
        if not ids:
            raise ConfigError("the prompt is empty: give at least one token")
        return ids

    def chat_prompt(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, object]] | None = None,
        *,
        add_generation_prompt: bool = True,
        enable_thinking: bool | None = None,
        **variables: object,
    ) -> list[int]:
        """Returns the ids of a conversation by the checkpoint's template; see `chat`."""
        if enable_thinking is not None:
            variables["enable_thinking"] = enable_thinking
        template = self.templates.choose(tools=bool(tools))
        return template.encode(
            messages, tools, add_generation_prompt=add_generation_prompt, **variables
        )

    # --- Generation -------------------------------------------------------------------------

    # A str is a sequence of str, too; the first overload is the one that is meant.
    @overload
    def generate(  # type: ignore[overload-overlap]
        self, prompt: Prompt, **options: Unpack[GenerateOptions]
    ) -> Completion: ...

    @overload
    def generate(
        self, prompt: Sequence[Prompt], **options: Unpack[GenerateOptions]
    ) -> list[Completion]: ...

    def generate(
        self, prompt: Prompt | Sequence[Prompt], **options: Unpack[GenerateOptions]
    ) -> Completion | list[Completion]:
        """Continues a prompt.

        Args:
            prompt: a text; token ids; or a list of such, which decode together, each as if it were
                alone. **options: of `GenerateOptions`.

        Returns:
            A completion, or one for each prompt.

        Raises:
            ConfigError: when a prompt is empty or longer than the context, or an option cannot be.
            IoError: when a read failed. The engine answers the next call rightly.
        """
        if (
            not isinstance(prompt, str)
            and len(prompt)
            and isinstance(prompt[0], str | Sequence | np.ndarray)
        ):
            request = resolve(options, self.defaults)
            prompts = [self.prompt_ids(p, control_tokens=request.control_tokens) for p in prompt]  # type: ignore[arg-type]
            return generate_batch(self, prompts, request)
        with self.session() as session:
            return session.generate(prompt, **options)  # type: ignore[arg-type]

    def stream(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Stream:
        """Like `generate` for one prompt, in pieces as they come."""
        session = self.session()
        return session.stream(prompt, **options).on_close(session.close)

    def chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, object]] | None = None,
        *,
        enable_thinking: bool | None = None,
        template_variables: Mapping[str, object] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Completion:
        """Answers a conversation, by the checkpoint's own chat template.

        Args:
            messages: dicts with role and content, as `Completion.message` gives them.
            tools: JSON schemas of functions that the model may call.
            enable_thinking: passed to the template; None leaves it to the template.
            template_variables: further ones.
            **options: of `GenerateOptions`; without max_tokens, as many as the context holds.

        Returns:
            The answer, with text, thinking and tool_calls apart.

        Raises:
            ConfigError: as `generate`; or when there is no template, or it refuses the
                conversation.
        """
        with self.chat_stream(
            messages,
            tools,
            enable_thinking=enable_thinking,
            template_variables=template_variables,
            **options,
        ) as stream:
            return stream.finish()

    def chat_stream(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, object]] | None = None,
        *,
        enable_thinking: bool | None = None,
        template_variables: Mapping[str, object] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Stream:
        """Like `chat`, in pieces of kind "thinking", "text" and "tool_call" as they come."""
        options.setdefault("max_tokens", self.defaults.max_tokens)
        request = resolve(options, self.defaults)
        variables: dict[str, Any] = dict(template_variables or {})
        ids = self.chat_prompt(messages, tools, enable_thinking=enable_thinking, **variables)
        session = self.session()
        parser = self.reply_parser(ids, tools)
        return session.answer(request, ids, parser).on_close(session.close)

    def reply_parser(
        self, prompt: Sequence[int], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> ReplyParser:
        """Returns a parser for the answer to a chat prompt."""
        thinking = opens_thinking(self.tokenizer, prompt)
        return ReplyParser(self.tokenizer, thinking=thinking, tools=tools)

    def conversation(
        self,
        system: str | None = None,
        tools: Sequence[Mapping[str, object]] | None = None,
        *,
        enable_thinking: bool | None = None,
    ) -> Conversation:
        """Returns a chat that remembers its messages and feeds each of them once."""
        return Conversation(self, system, tools, enable_thinking=enable_thinking)

    def session(self) -> Session:
        """Returns a new, empty session."""
        return Session(self, self.core.new_session())

    def load_session(self, path: str | os.PathLike[str]) -> Session:
        """Returns a session that `Session.save` wrote.

        Raises:
            FormatError: when it is damaged or of another model.
            IoError: when it cannot be read.
        """
        if not Path(path).is_file():
            raise IoError(f"{os.fspath(path)}: no such session file")
        core = self.core.load_session(os.fspath(path))
        logits = session_file.read_logits(Path(path), core.tokens, self.info.vocab)
        return Session(self, core, logits)

    # --- Evaluation -------------------------------------------------------------------------

    def logits(self, prompt: Prompt, *, progress: Progress | None = None) -> Logits:
        """Returns the logits after every token, for evaluation.

        Args:
            prompt: text or ids.
            progress: called with tokens done and in all; True cancels.

        Returns:
            float32 [tokens, vocab], padding rows of the vocabulary included.
        """
        ids = self.prompt_ids(prompt)
        with self.session() as session:
            session.check_room(len(ids))
            logits: Logits = session.core.feed(ids, all=True, progress=progress)
            return logits

    def score(self, prompt: Prompt, *, progress: Progress | None = None) -> Score:
        """Returns the log-probability of each token of a text after the first, and the perplexity.

        Raises:
            ConfigError: when it is less than two tokens, or longer than the context.
            FormatError: when the logits are no numbers.
        """
        ids = self.prompt_ids(prompt)
        if len(ids) < 2:
            raise ConfigError("score: wanted at least two tokens; the first has nothing before it")
        budget = max(_SCORE_BYTES_MIN, int(_SCORE_SHARE * self.memory_plan().memory_bytes))
        chunk = max(1, budget // (4 * self.info.vocab))
        logprobs: list[float] = []
        with self.session() as session:
            session.check_room(len(ids))
            for start in range(0, len(ids) - 1, chunk):
                fed = ids[start : min(start + chunk, len(ids) - 1)]
                rows = session.core.feed(fed, all=True)
                for row, wanted in zip(rows, ids[start + 1 :], strict=False):
                    real = row[: self.tokenizer.size]
                    logprobs.append(float(row[wanted]) - log_normaliser(real))
                if progress is not None and progress(start + len(fed), len(ids)):
                    raise _core.CancelledError("score: cancelled")
        if not np.all(np.isfinite(logprobs)):
            raise FormatError(
                f"{self.path}: the model's logits are not finite: a weight or scale is NaN"
            )
        return Score(ids, logprobs)

    # --- Memory and measurement -------------------------------------------------------------

    def memory_plan(self) -> MemoryPlan:
        """Returns what counts towards the memory bound, in bytes."""
        return self.core.memory_plan()

    def set_memory(self, memory: str | int) -> None:
        """Changes the memory bound while the engine runs; returns when the process is within it.

        Raises:
            ConfigError: when it is less than what works; then nothing has changed.
        """
        self.core.set_memory(parse_bytes(memory))

    def drop_cache(self) -> None:
        """Forgets all cached experts, to measure from cold."""
        self.core.drop_cache()

    def stats(self) -> Stats:
        """Returns what was counted since the last reset: phases, hits, bytes."""
        return self.core.stats()

    def reset_stats(self) -> None:
        """Starts counting anew."""
        self.core.reset_stats()

    @contextmanager
    def trace(self, path: str | os.PathLike[str]) -> Iterator[None]:
        """Writes a Perfetto trace of the block to a file.

        Raises:
            IoError: after the block, when the file cannot be written.
        """
        with self._recording(self.core.trace):
            yield
            trace = self.core.take_trace_json()
        try:
            Path(path).write_text(trace, encoding="utf-8")
        except OSError as error:
            raise IoError(f"{os.fspath(path)}: cannot be written: {error.strerror}") from error

    @contextmanager
    def routes(self) -> Iterator[Routes]:
        """Records which experts the block asks for.

        Yields:
            An empty trace that is filled when the block ends.
        """
        trace = Routes([])
        with self._recording(self.core.record_routes):
            yield trace
            trace.rows, trace.logits = self.core.take_routes()

    @contextmanager
    def _recording(self, switch: Callable[[bool], None]) -> Iterator[None]:
        switch(True)
        try:
            yield
        finally:
            switch(False)

    def close(self) -> None:
        """Frees the model. Closing twice is no error; a call still running finishes first."""
        core, self._core = self._core, None
        if core is not None:
            core.close()

    def __enter__(self) -> Self:
        """Returns the engine, which closes at the end of the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the engine."""
        self.close()
