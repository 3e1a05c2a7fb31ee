"""A chat that remembers: messages, and the state of the tokens that they became.

DESIGN: templates rewrite the past (thinking of earlier answers is dropped), so the tokens after an
    answer often do not begin the next prompt. A fork taken just before the answer does. Each turn
    continues from whichever of the two is the longest true prefix of the new prompt; a wrong guess
    costs time, never a token.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from .chat_template import Message
from .completion import Completion
from .errors import ConfigError, Error, FormatError, IoError
from .folder import read_json
from .options import GenerateOptions, Request, resolve
from .sampling import Logits
from .session import Session, Stream

if TYPE_CHECKING:
    from .engine import Engine


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Returns how many leading tokens are equal."""
    for index, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return index
    return min(len(a), len(b))


class Conversation:
    """Messages and their state. Not thread-safe.

    Attributes:
        messages: all so far, the system's included; may be edited between turns.
        enable_thinking: passed to the template; None leaves it to the template.
    """

    def __init__(
        self,
        engine: Engine,
        system: str | None = None,
        tools: Sequence[Mapping[str, object]] | None = None,
        *,
        enable_thinking: bool | None = None,
    ) -> None:
        """Starts an empty chat."""
        self._engine = engine
        self._tools = list(tools) if tools else None
        self.messages: list[dict[str, Any]] = []
        self.enable_thinking = enable_thinking
        self._session: Session | None = None
        self._before_answer: Session | None = None
        if system is not None:
            self.messages.append({"role": "system", "content": system})

    def ask(self, message: str | Message | None, **options: Unpack[GenerateOptions]) -> Completion:
        """Adds a message and returns the answer, which joins the messages.

        Args:
            message: a user's text; a message (a tool's result); None to answer what stands there.
            **options: of `GenerateOptions`.

        Raises:
            ConfigError: as `Engine.chat`. The message is then taken back.
        """
        with self.stream(message, **options) as stream:
            return stream.finish()

    def stream(self, message: str | Message | None, **options: Unpack[GenerateOptions]) -> Stream:
        """Like `ask`, in pieces. An answer left early joins the messages as far as it came."""
        options.setdefault("max_tokens", self._engine.defaults.max_tokens)
        request = resolve(options, self._engine.defaults)
        kept = len(self.messages)
        if message is not None:
            text = isinstance(message, str)
            self.messages.append({"role": "user", "content": message} if text else dict(message))  # type: ignore[arg-type]
        try:
            return self._start(request, kept)
        except BaseException:
            del self.messages[kept:]
            raise

    def _start(self, request: Request, kept: int) -> Stream:
        ids = self._prompt(add_generation_prompt=True)
        settled = common_prefix(ids, self._prompt(add_generation_prompt=False))
        session = self._continue_from(ids)
        start = session.position

        def prefill() -> Logits:
            if start < settled < len(ids):
                session.feed(ids[start:settled], progress=request.progress)
            self._before_answer = self._fork(session)
            return session.first_logits(ids[session.position :], request.progress)

        stream = session.answer(
            request, ids[start:], self._engine.reply_parser(ids, self._tools), prefill
        )
        return stream.on_close(lambda: self._end(stream, kept))

    def _prompt(self, *, add_generation_prompt: bool, extra: Sequence[Message] = ()) -> list[int]:
        return self._engine.chat_prompt(
            [*self.messages, *extra],
            self._tools,
            add_generation_prompt=add_generation_prompt,
            enable_thinking=self.enable_thinking,
        )

    def _longest(self, ids: Sequence[int]) -> Session | None:
        """Returns the session whose tokens begin `ids` furthest without reaching their end."""
        best: Session | None = None
        for session in (self._session, self._before_answer):
            if session is None or not session.position < len(ids):
                continue
            fits = common_prefix(session.tokens, ids) == session.position
            if fits and (best is None or session.position > best.position):
                best = session
        return best

    def _continue_from(self, ids: Sequence[int]) -> Session:
        best = self._longest(ids)
        for session in (self._session, self._before_answer):
            if session is not None and session is not best:
                session.close()
        self._before_answer = None
        self._session = best if best is not None else self._engine.session()
        return self._session

    @staticmethod
    def _fork(session: Session) -> Session | None:
        if not session.position:
            return None
        try:
            return session.fork()
        except ConfigError:
            return None  # no memory for a second state: the next turn feeds everything again

    def _end(self, stream: Stream, kept: int) -> None:
        stopped = isinstance(stream.error, KeyboardInterrupt) and stream.started
        if stream.error is not None and not stopped:
            del self.messages[kept:]
        else:
            self.messages.append(stream.completion.message)

    def clear(self) -> None:
        """Forgets all messages but the system's."""
        self.messages = [m for m in self.messages[:1] if m["role"] == "system"]
        self._drop_state()

    def set_system(self, text: str) -> None:
        """Sets the system message; the chat goes on."""
        rest = (
            self.messages[1:]
            if self.messages[:1] and self.messages[0]["role"] == "system"
            else self.messages
        )
        self.messages = [*([{"role": "system", "content": text}] if text else []), *rest]

    def _drop_state(self) -> None:
        for session in (self._session, self._before_answer):
            if session is not None:
                session.close()
        self._session = self._before_answer = None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the messages to `path` (JSON), and the state that the next turn can use beside.

        Raises:
            IoError: when the disk fails or is full.
        """
        target = Path(path)
        content = {
            "model": str(self._engine.path),
            "messages": self.messages,
            "tools": self._tools,
            "enable_thinking": self.enable_thinking,
        }
        scratch = target.with_name(target.name + ".new")
        try:
            scratch.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
            scratch.replace(target)
        except OSError as error:
            raise IoError(f"{target}: chat cannot be written: {error.strerror}") from error
        state = target.with_name(target.name + ".state")
        session = self._useful_state()
        if session is None:
            state.unlink(missing_ok=True)
        else:
            session.save(state)

    def _useful_state(self) -> Session | None:
        if self._session is None:
            return None
        try:
            probe: Message = {"role": "user", "content": "x"}
            return self._longest(self._prompt(add_generation_prompt=True, extra=[probe]))
        except ConfigError:
            return self._session

    def load(self, path: str | os.PathLike[str]) -> bool:
        """Replaces this chat by a saved one.

        Returns:
            True when the state came with it, so that the next turn feeds new messages only.

        Raises:
            FormatError: when the file is no saved chat.
        """
        target = Path(path)
        content = read_json(target)
        messages = content.get("messages")
        if not isinstance(messages, list) or not all(
            isinstance(m, dict) and "role" in m for m in messages
        ):
            raise FormatError(f"{target}: is no saved chat: wanted messages with roles")
        self._drop_state()
        self.messages = messages
        self._tools = content.get("tools") or None
        self.enable_thinking = content.get("enable_thinking")
        state = target.with_name(target.name + ".state")
        try:
            self._session = self._engine.load_session(state)
        except Error:
            return False  # of another model, or gone: the messages are fed again
        return True

    def close(self) -> None:
        """Frees the state."""
        self._drop_state()
