"""An assistant's answer taken apart while it streams: thinking, text, tool calls.

DESIGN: where the vocabulary has `<think>` or `<tool_call>` as a token, only that token counts: a
    model that quotes the characters out of a user's text starts nothing. Where it has no such
    token, the characters count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from .completion import Piece
from .tokenizer import Tokenizer
from .tool_calls import parameter_schemas, parse_tool_call

MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>")


class ReplyParser:
    """Takes text and markers in order, gives pieces of each kind. Not thread-safe.

    Attributes:
        marker_ids: ids that are markers, with their text.
        call_count: tool calls found so far.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        thinking: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Starts an answer.

        Args:
            tokenizer: the checkpoint's.
            thinking: whether the prompt has opened `<think>` already.
            tools: the tools of the conversation.
        """
        ids = {marker: tokenizer.control_id(marker) for marker in MARKERS}
        self.marker_ids = {i: marker for marker, i in ids.items() if i is not None}
        self._spelled = [marker for marker, i in ids.items() if i is None]
        self._schemas = parameter_schemas(tools)
        self._mode: Literal["thinking", "text", "call"] = "thinking" if thinking else "text"
        self._started = False  # of the current mode: blank lines before its first word are dropped
        self._blank = ""  # blanks that are dropped if the mode ends here
        self._held = ""  # may be the start of a spelled marker
        self._call = ""
        self.call_count = 0

    def push(self, text: str, marker: str | None = None) -> list[Piece]:
        """Returns the pieces that some text, and then a marker, complete."""
        pieces = self._text(text) if not self._spelled else self._text_with_spelled(text)
        if marker is not None:
            pieces += self._marker(marker)
        return pieces

    def finish(self) -> list[Piece]:
        """Returns what was held back, at the end of the answer; a call cut short is text."""
        text, self._held = self._held, ""
        pieces = self._text(text)
        if self._mode == "call":
            unfinished, self._mode, self._call = "<tool_call>" + self._call, "text", ""
            return [*pieces, Piece(unfinished)]
        if self._mode == "text" and self._started and self._blank:
            pieces.append(Piece(self._blank))
            self._blank = ""
        return pieces

    def _text_with_spelled(self, text: str) -> list[Piece]:
        pieces: list[Piece] = []
        text = self._held + text
        while True:
            found = [(place, m) for m in self._spelled if (place := text.find(m)) >= 0]
            if not found:
                break
            place, marker = min(found)
            pieces += self._text(text[:place]) + self._marker(marker)
            text = text[place + len(marker) :]
        held = 0
        for marker in self._spelled:
            for length in range(min(len(marker) - 1, len(text)), held, -1):
                if text.endswith(marker[:length]):
                    held = length
                    break
        cut = len(text) - held
        self._held = text[cut:]
        return pieces + self._text(text[:cut])

    def _text(self, text: str) -> list[Piece]:
        if self._mode == "call":
            self._call += text
            return []
        text = self._blank + text
        if not self._started:
            text = text.lstrip("\n")
        shown = text.rstrip()
        self._blank = text[len(shown) :]
        if not shown:
            return []
        self._started = True
        return [Piece(shown, kind=self._mode)]

    def _marker(self, marker: str) -> list[Piece]:
        if self._mode == "call":
            if marker != "</tool_call>":
                self._call += marker
                return []
            call = parse_tool_call(self._call, self._schemas, f"call_{self.call_count}")
            raw, self._call = f"<tool_call>{self._call}</tool_call>", ""
            self._enter("text")
            if call is None:
                # Nothing that the model wrote is lost.
                self._started = True
                return [Piece(raw)]
            self.call_count += 1
            return [Piece("", kind="tool_call", tool_call=call)]
        if marker == "<think>" and not (self._mode == "text" and self._started):
            self._enter("thinking")
        elif marker == "</think>" and self._mode == "thinking":
            self._enter("text")
        elif marker == "<tool_call>":
            self._enter("call")
        else:
            return self._text(marker)
        return []

    def _enter(self, mode: Literal["thinking", "text", "call"]) -> None:
        self._mode, self._started, self._blank = mode, False, ""


def opens_thinking(tokenizer: Tokenizer, prompt: Sequence[int]) -> bool:
    """True when the last `<think>` of a prompt is not closed: the answer starts inside it."""
    opened, closed = tokenizer.control_id("<think>"), tokenizer.control_id("</think>")
    if opened is None:
        return tokenizer.decode(prompt[-16:]).rstrip().endswith("<think>")
    for token in reversed(prompt):
        if token in (opened, closed):
            return token == opened
    return False
