"""Options of a request: what callers may pass, what generation_config.json says otherwise."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from .errors import ConfigError, FormatError
from .folder import Json, read_json_if_present
from .sampling import SamplingParams
from .tokenizer import Tokenizer

# Called with (tokens done, tokens in all) while a prompt is fed; returning True cancels the call.
Progress = Callable[[int, int], bool]
LOGPROBS_MAX = 100
# Where neither the caller nor the checkpoint names a limit: a model that never ends must.
MAX_TOKENS_DEFAULT = 512


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of generate, stream, chat. Defaults come from generation_config.json.

    Attributes:
        max_tokens: the most tokens to generate, 512 where the checkpoint names no limit; None is as
            many as the context holds.
        temperature: 0 is greedy.
        top_k: keeps the k likeliest tokens; 0 is off.
        top_p: keeps the likeliest tokens up to this probability; 1 is off.
        min_p: keeps tokens at least this probable relative to the likeliest; 0 is off.
        repetition_penalty: above 1 discourages tokens of the prompt and answer; 1 is off.
        presence_penalty: subtracted from logits of tokens already generated.
        frequency_penalty: the same, for each time that the token was generated.
        logit_bias: added to logits, by token id.
        seed: the same seed gives the same text; None draws one (`Completion.seed`).
        stop: a string, or strings, at which the text ends. In a chat they are looked for in the
            answer, not in the thinking.
        logprobs: None for none, else how many alternatives to report beside each chosen token.
        ignore_eos: generates past end tokens, for measurements.
        control_tokens: whether control tokens spelled in a prompt string count as such.
        progress: called while the prompt is fed.
    """

    max_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None
    seed: int | None
    stop: str | Sequence[str] | None
    logprobs: int | None
    ignore_eos: bool
    control_tokens: bool
    progress: Progress | None


@dataclass(frozen=True)
class Request:
    """Options of one request, complete and checked."""

    sampling: SamplingParams
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    eos: frozenset[int] = frozenset()
    control_tokens: bool = False
    progress: Progress | None = None


_SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)
_TRUNCATIONS = ("top_k", "top_p", "min_p")


@dataclass(frozen=True)
class Defaults:
    """What a checkpoint's generation_config.json asks for.

    Attributes:
        sampling: values by name; temperature 0 where the checkpoint does not sample.
        eos: ids that end an answer.
        max_tokens: None where the checkpoint names no limit.
    """

    sampling: Mapping[str, float] = field(default_factory=dict)
    eos: frozenset[int] = frozenset()
    max_tokens: int | None = None

    @classmethod
    def read(cls, folder: Path, tokenizer: Tokenizer) -> Defaults:
        """Reads generation_config.json, and the end tokens that other files name.

        Raises:
            FormatError: on values of another kind, or end tokens that the tokenizer does not have.
        """
        path = folder / "generation_config.json"
        config = read_json_if_present(path)
        sampling: dict[str, float] = {}
        for name in _SAMPLING:
            value = config.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise FormatError(f"{path}: {name}: wanted a number, got {value!r}")
            sampling[name] = value
        if not config.get("do_sample", False):
            # Without do_sample the release is meant to be greedy, whatever else stands there.
            sampling = {
                k: v for k, v in sampling.items() if k not in ("temperature", *_TRUNCATIONS)
            }
            sampling["temperature"] = 0.0
        sampling.setdefault("temperature", 1.0)
        limit = config.get("max_new_tokens")
        return cls(
            sampling,
            _end_tokens(folder, config, tokenizer),
            limit if isinstance(limit, int) and limit > 0 else None,
        )


def _end_tokens(folder: Path, generation_config: Json, tokenizer: Tokenizer) -> frozenset[int]:
    found: set[int] = set()
    for name, content in (
        ("generation_config.json", generation_config),
        ("config.json", read_json_if_present(folder / "config.json")),
    ):
        nested = content.get("text_config")
        for where in (content, nested if isinstance(nested, dict) else {}):
            value = where.get("eos_token_id")
            ids = value if isinstance(value, list) else [] if value is None else [value]
            for token_id in ids:
                if not isinstance(token_id, int) or not 0 <= token_id < tokenizer.size:
                    raise FormatError(
                        f"{folder / name}: eos_token_id: wanted ids below {tokenizer.size}, "
                        f"got {token_id!r}"
                    )
                found.add(token_id)
    eos = read_json_if_present(folder / "tokenizer_config.json").get("eos_token")
    text = eos.get("content") if isinstance(eos, dict) else eos
    token = tokenizer.control_id(text) if isinstance(text, str) else None
    return frozenset(found if token is None else found | {token})


def resolve(options: GenerateOptions, defaults: Defaults) -> Request:
    """Completes a caller's options with a checkpoint's.

    Raises:
        ConfigError: on an option that does not exist, or a value out of range.
    """
    for name in options:
        if name not in GenerateOptions.__annotations__:
            near = difflib.get_close_matches(name, GenerateOptions.__annotations__, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"there is no option {name!r}{hint}")
    given: Mapping[str, object] = options
    values = {name: given[name] for name in _SAMPLING if given.get(name) is not None}
    sampling: dict[str, object] = {"temperature": 0.0, **defaults.sampling, **values}
    if "temperature" not in values and any(name in values for name in _TRUNCATIONS):
        # To ask for top_p of a checkpoint that is greedy by default is to ask for sampling.
        sampling["temperature"] = defaults.sampling.get("temperature") or 1.0
    limit = options.get("max_tokens", defaults.max_tokens or MAX_TOKENS_DEFAULT)
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ConfigError(f"max_tokens: wanted a whole number above 0, got {limit!r}")
    logprobs = options.get("logprobs")
    if logprobs is not None and not (isinstance(logprobs, int) and 0 <= logprobs <= LOGPROBS_MAX):
        raise ConfigError(f"logprobs: wanted 0 to {LOGPROBS_MAX} alternatives, got {logprobs!r}")
    stop = options.get("stop") or ()
    return Request(
        SamplingParams(
            **sampling,  # type: ignore[arg-type] # SamplingParams checks each value's kind and range
            logit_bias=_bias(options.get("logit_bias")),
            seed=options.get("seed"),
        ),
        limit,
        (stop,) if isinstance(stop, str) else tuple(stop),
        logprobs,
        frozenset() if options.get("ignore_eos") else defaults.eos,
        bool(options.get("control_tokens", False)),
        options.get("progress"),
    )


def _bias(bias: Mapping[int, float] | None) -> dict[int, float]:
    try:
        return {int(token): float(value) for token, value in (bias or {}).items()}
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"logit_bias: wanted numbers by token id, got {bias!r}") from error
