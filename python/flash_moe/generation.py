"""One request from its first logits to its last text: sampling, end tokens, stops, limits."""

from __future__ import annotations

from collections.abc import Sequence

from .completion import Completion, FinishReason, GenerationStats, Piece, ToolCall
from .options import Request
from .reply import ReplyParser
from .sampling import Logits, Sampler, TokenLogprob
from .stops import StopMatcher
from .tokenizer import Detokenizer, Tokenizer


class Answer:
    """The state of one request. Fed with logits, it gives tokens and text. Not thread-safe.

    Attributes:
        token_ids: all tokens sampled so far.
        finish_reason: None while it runs.
    """

    def __init__(
        self,
        request: Request,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        room: int,
        parser: ReplyParser | None = None,
    ) -> None:
        """Starts a request.

        Args:
            request: its options.
            tokenizer: the checkpoint's.
            prompt: every token before the answer.
            room: the most tokens that the context has left for the answer.
            parser: takes a chat's answer apart; None for plain text.
        """
        self._request = request
        self._tokenizer = tokenizer
        self._sampler = Sampler(request.sampling, tokenizer.size, prompt)
        self._limit = room if request.max_tokens is None else min(request.max_tokens, room)
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopMatcher(request.stop)
        self._parser = parser
        self._new_ids: list[int] = []
        self._new_logprobs: list[TokenLogprob] = []
        self._logprobs: list[TokenLogprob] = []
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._calls: list[ToolCall] = []
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None

    def step(self, logits: Logits) -> list[Piece]:
        """Samples one token and returns the pieces that it completes.

        Args:
            logits: [vocab] float32, after the prompt or the last token.
        """
        token = self._sampler.choose(logits)
        self.token_ids.append(token)
        self._new_ids.append(token)
        if self._request.logprobs is not None:
            entry = self._sampler.logprob(logits, token, self._request.logprobs)
            self._logprobs.append(entry)
            self._new_logprobs.append(entry)
        if token in self._request.eos:
            return self.finish("stop")
        pieces = self._read(token)
        if self._stops.stopped:
            return self._give(pieces) + self.finish("stop")
        if len(self.token_ids) >= self._limit:
            return self._give(pieces) + self.finish("length")
        return self._give(pieces)

    def finish(self, reason: FinishReason) -> list[Piece]:
        """Ends the request and returns the text that was held back."""
        if self.finish_reason is not None:
            return []
        text = self._detokenizer.finish()
        if self._parser is None:
            shown = self._stops.push(text)
            pieces = [Piece(shown + self._stops.finish())]
        else:
            pieces = self._filter(self._parser.push(text) + self._parser.finish())
            pieces.append(Piece(self._stops.finish()))
        if self._stops.stopped:
            reason = "stop"
        elif reason == "stop" and self._parser is not None and self._parser.call_count:
            reason = "tool_calls"
        self.finish_reason = reason
        return self._give(pieces, last=True)

    def completion(self, stats: GenerationStats) -> Completion:
        """Returns the answer so far; "cancelled" when it has not ended by itself."""
        self.finish("cancelled")
        return Completion(
            "".join(self._text),
            list(self.token_ids),
            self.finish_reason or "cancelled",
            stats,
            self._sampler.seed,
            list(self._logprobs) if self._request.logprobs is not None else None,
            "".join(self._thinking),
            list(self._calls),
        )

    def _read(self, token: int) -> list[Piece]:
        text = self._detokenizer.push(token)
        if self._parser is None:
            return [Piece(self._stops.push(text))]
        marker = self._parser.marker_ids.get(token)
        if marker is not None:
            text = text.removesuffix(marker)
        return self._filter(self._parser.push(text, marker))

    def _filter(self, pieces: list[Piece]) -> list[Piece]:
        """Looks for stop strings in the text of a chat's answer, not in its thinking and calls."""
        kept: list[Piece] = []
        for piece in pieces:
            if self._stops.stopped:
                break
            if piece.kind == "tool_call":
                kept.append(Piece(self._stops.finish()))
            kept.append(Piece(self._stops.push(piece.text)) if piece.kind == "text" else piece)
        return kept

    def _give(self, pieces: list[Piece], *, last: bool = False) -> list[Piece]:
        """Records pieces and gives the first one the tokens sampled since the last."""
        given: list[Piece] = []
        kept = [piece for piece in pieces if piece.text or piece.kind == "tool_call"]
        if last and not kept and self._new_ids:
            kept = [Piece("")]
        for piece in kept:
            if piece.kind == "thinking":
                self._thinking.append(piece.text)
            elif piece.tool_call is not None:
                self._calls.append(piece.tool_call)
            else:
                self._text.append(piece.text)
            ids, logprobs = tuple(self._new_ids), tuple(self._new_logprobs)
            self._new_ids, self._new_logprobs = [], []
            given.append(Piece(piece.text, ids, logprobs, piece.kind, piece.tool_call))
        return given
