"""What generation returns: pieces while it runs, completions at the end."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from .sampling import TokenLogprob

FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]


@dataclass(frozen=True)
class GenerationStats:
    """Times and counts of one request.

    Attributes:
        prompt_tokens: tokens of the prompt that were fed by this call.
        completion_tokens: tokens that were generated.
        prefill_seconds: until the first logits.
        decode_seconds: from then on, sampling included.
        lossy: empty when the model ran exactly, else what was given up ("4 of 10 experts").
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    lossy: str = ""

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens a second, 0 when none were fed."""
        return self.prompt_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Generated tokens a second, without the first, whose time is the prefill's."""
        steps = self.completion_tokens - 1
        return steps / self.decode_seconds if steps > 0 and self.decode_seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields and rates as JSON data."""
        return {
            **asdict(self),
            "prefill_tokens_per_second": self.prefill_tokens_per_second,
            "decode_tokens_per_second": self.decode_tokens_per_second,
        }


@dataclass(frozen=True)
class ToolCall:
    """One call that the model wants made.

    Attributes:
        name: of the function.
        arguments: by parameter name.
        id: unique within the answer.
    """

    name: str
    arguments: dict[str, Any]
    id: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Returns the call as it stands in a message's tool_calls."""
        inner = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": inner}


@dataclass(frozen=True)
class Piece:
    """A part of an answer, as it streams.

    Attributes:
        text: whole characters; may be empty while text is held back.
        token_ids: the tokens sampled since the last piece.
        logprobs: one for each of them, when asked for.
        kind: "text"; in a chat also "thinking", and "tool_call" for a call that is complete.
        tool_call: the call, for that kind.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    kind: Literal["text", "thinking", "tool_call"] = "text"
    tool_call: ToolCall | None = None

    def __str__(self) -> str:
        """Returns the text."""
        return self.text


@dataclass(frozen=True)
class Completion:
    """An answer.

    Attributes:
        text: without special control tokens, stop strings, thinking and tool calls.
        token_ids: every token that was sampled, the ending one included.
        finish_reason: "stop" (an end token or stop string), "length" (max_tokens or the context),
            "tool_calls", "cancelled".
        stats: times and counts.
        logprobs: one for each token, when asked for.
        seed: repeats this answer.
        thinking: the model's reasoning, in a chat.
        tool_calls: calls that the model wants made, in a chat.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    stats: GenerationStats
    seed: int
    logprobs: list[TokenLogprob] | None = None
    thinking: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)

    def __str__(self) -> str:
        """Returns the text."""
        return self.text

    @property
    def message(self) -> dict[str, Any]:
        """The answer as an assistant's message, to be appended to the conversation."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.thinking:
            message["reasoning_content"] = self.thinking
        if self.tool_calls:
            message["tool_calls"] = [call.to_dict() for call in self.tool_calls]
        return message

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as JSON data."""
        content: dict[str, Any] = {
            "text": self.text,
            "token_ids": self.token_ids,
            "finish_reason": self.finish_reason,
            "seed": self.seed,
            "stats": self.stats.to_dict(),
        }
        if self.logprobs is not None:
            content["logprobs"] = [asdict(entry) for entry in self.logprobs]
        if self.thinking:
            content["thinking"] = self.thinking
        if self.tool_calls:
            content["tool_calls"] = [call.to_dict() for call in self.tool_calls]
        return content

    def to_json(self) -> str:
        """Returns `to_dict` as one line of JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False)


@dataclass(frozen=True)
class Score:
    """How likely a model finds a text.

    Attributes:
        token_ids: of the text, n.
        logprobs: natural log-probability of each token after the first given those before it, n -
            1.
    """

    token_ids: list[int]
    logprobs: list[float]

    @property
    def logprob(self) -> float:
        """Sum over the text, in nats."""
        return sum(self.logprobs)

    @property
    def perplexity(self) -> float:
        """Exp of minus the mean log-probability."""
        return math.exp(-self.logprob / len(self.logprobs))
