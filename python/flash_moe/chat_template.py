"""Conversations to prompts, by the checkpoint's own Jinja template.

DESIGN: text from a user must never become a control token, and the prompt must be what
    transformers' apply_chat_template gives. Both hold because each template is rendered twice: as
    it is, which gives the text, and with the control tokens that the template itself writes
    replaced by private characters. Only those characters become control tokens; all text between
    them is encoded as plain text, whatever it spells. User text that spells a private character
    makes the renderer choose other ones.

A template may also build control tokens from pieces ("<|" + role + "|>"). This is noticed on a
harmless conversation, and such a template is rendered with its users' text marked instead.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2

from .errors import ConfigError, FormatError
from .folder import Json, read_json, read_json_if_present, read_text
from .template_env import environment, map_literals, plain_data
from .tokenizer import Tokenizer

Message = Mapping[str, object]
_VARIABLES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
# Private-use planes of Unicode, from which stand-ins are taken.
_PRIVATE_FIRST, _PRIVATE_END = 0xF0000, 0x10FFFE
_PROBE: tuple[Message, ...] = (
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
)


@dataclass(frozen=True)
class _Inputs:
    """What a template is rendered with: plain data, not yet marked."""

    messages: list[Json]
    tools: list[Json] | None
    variables: Json
    add_generation_prompt: bool

    def map_text(self, change: Callable[[str], str]) -> _Inputs:
        return _Inputs(
            plain_data(self.messages, "messages", change),
            plain_data(self.tools, "tools", change),
            plain_data(self.variables, "variables", change),
            self.add_generation_prompt,
        )

    def all_text(self) -> str:
        return json.dumps([self.messages, self.tools, self.variables], ensure_ascii=False)


def _named_templates(folder: Path) -> dict[str, str]:
    """Returns the templates of a folder by name; the usual one is "default"."""
    found: dict[str, str] = {}
    config = folder / "tokenizer_config.json"
    stored = read_json_if_present(config).get("chat_template")
    for legacy in (folder / "chat_template.json",):
        if stored is None and legacy.exists():
            stored = read_json(legacy).get("chat_template")
    if isinstance(stored, str):
        found["default"] = stored
    elif isinstance(stored, list):
        try:
            found.update({str(entry["name"]): str(entry["template"]) for entry in stored})
        except (KeyError, TypeError) as error:
            raise FormatError(
                f"{config}: chat_template: wanted a list of name and template"
            ) from error
    elif stored is not None:
        raise FormatError(
            f"{config}: chat_template: wanted text or a list, got {type(stored).__name__}"
        )
    for path in sorted(folder.glob("additional_chat_templates/*.jinja")):
        found[path.stem] = read_text(path)
    if (folder / "chat_template.jinja").exists():
        found["default"] = read_text(folder / "chat_template.jinja")
    return found


def _special_variables(folder: Path) -> dict[str, str]:
    """Returns bos_token and the like, which templates may write."""
    config = read_json_if_present(folder / "tokenizer_config.json")
    found = {}
    for name in _VARIABLES:
        value = config.get(name)
        if isinstance(value, Mapping):
            value = value.get("content")
        if isinstance(value, str):
            found[name] = value
    return found


def _clean_message(message: Json) -> Json:
    """Drops None values, which a template would write, and gives reasoning its usual key."""
    kept = {key: value for key, value in message.items() if value is not None}
    for key in _REASONING_KEYS:
        if key in kept:
            return {"thinking": kept[key], **kept, "reasoning_content": kept[key]}
    return kept


def _parse_arguments(message: Json) -> Json:
    """Tool-call arguments as OpenAI clients send them, JSON in a string, become objects."""
    calls = []
    for call in message.get("tool_calls") or []:
        inner = call.get("function", call)
        try:
            arguments = json.loads(inner["arguments"])
        except (KeyError, TypeError, ValueError):
            calls.append(call)
            continue
        changed = {**inner, "arguments": arguments}
        calls.append({**call, "function": changed} if "function" in call else changed)
    return {**message, "tool_calls": calls} if calls else message


class ChatTemplate:
    """One template of a checkpoint. Thread-safe."""

    def __init__(
        self,
        source: str,
        tokenizer: Tokenizer,
        variables: Mapping[str, str] | None = None,
        where: str = "",
    ) -> None:
        """Compiles a template.

        Args:
            source: Jinja text.
            tokenizer: the checkpoint's.
            variables: special tokens by the names under which templates use them.
            where: the file it is from, for messages.

        Raises:
            FormatError: when it is no Jinja.
        """
        self._source = source
        self._tokenizer = tokenizer
        self._special = dict(variables or {})
        self._where = where or "chat template"
        self._tokens = sorted(tokenizer.control_tokens, key=lambda text: (-len(text), text))
        self._plain = self._compile(lambda text: text)
        self._protected: dict[int, jinja2.Template] = {}

    def _compile(self, change: Callable[[str], str]) -> jinja2.Template:
        env = environment()
        try:
            tree = env.parse(self._source)
            map_literals(tree, change)
            return env.from_string(tree)
        except jinja2.TemplateSyntaxError as error:
            raise FormatError(f"{self._where}: line {error.lineno}: {error.message}") from error

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, object]] | None = None,
        *,
        add_generation_prompt: bool = True,
        **variables: object,
    ) -> str:
        """Returns the prompt as text: that of transformers' apply_chat_template(tokenize=False).

        Args:
            messages: role and content; tool_calls, reasoning_content where there are such.
            tools: JSON schemas of functions.
            add_generation_prompt: whether the text ends where the assistant's answer begins.
            **variables: further ones that the template knows, such as enable_thinking.

        Raises:
            ConfigError: when the template refuses the conversation.
        """
        inputs = self._inputs(messages, tools, add_generation_prompt, variables)
        return self._render(self._plain, self._special, self._acceptable(inputs))

    def encode(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, object]] | None = None,
        *,
        add_generation_prompt: bool = True,
        **variables: object,
    ) -> list[int]:
        """Returns the prompt as ids. Takes and raises what `render` does.

        Equal to the encoding of `render`, control tokens included, except that control tokens
        spelled by the caller's strings stay plain text.
        """
        inputs = self._inputs(messages, tools, add_generation_prompt, variables)
        return self._encode(self._acceptable(inputs), by_literals=self._writes_whole_tokens)

    def _inputs(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, object]] | None,
        add_generation_prompt: bool,
        variables: Mapping[str, object],
    ) -> _Inputs:
        if isinstance(messages, str | Mapping) or not messages:
            raise ConfigError("messages: wanted a list of at least one {role, content}")
        plain: list[Any] = plain_data(list(messages), "messages")
        for index, message in enumerate(plain):
            if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                raise ConfigError(
                    f"messages[{index}]: wanted a dict with a role, got {message!r:.80}"
                )
        return _Inputs(
            [_clean_message(message) for message in plain],
            plain_data(list(tools), "tools") if tools else None,
            plain_data(variables, "variables"),
            add_generation_prompt,
        )

    def _acceptable(self, inputs: _Inputs) -> _Inputs:
        """Parses tool-call arguments for templates that take objects only; others print strings."""
        try:
            self._render(self._plain, self._special, inputs)
        except ConfigError:
            parsed = [_parse_arguments(message) for message in inputs.messages]
            if parsed == inputs.messages:
                raise
            return _Inputs(parsed, inputs.tools, inputs.variables, inputs.add_generation_prompt)
        return inputs

    def _render(
        self, template: jinja2.Template, special: Mapping[str, str], inputs: _Inputs
    ) -> str:
        try:
            return template.render(
                messages=inputs.messages,
                tools=inputs.tools,
                documents=None,
                add_generation_prompt=inputs.add_generation_prompt,
                **{**special, **inputs.variables},
            )
        except jinja2.TemplateError as error:
            raise ConfigError(f"{self._where}: {error.message}") from error
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            raise ConfigError(f"{self._where}: does not take this conversation: {error}") from error

    @cached_property
    def _writes_whole_tokens(self) -> bool:
        """False for templates that put control tokens together from pieces."""
        try:
            inputs = self._inputs(_PROBE, None, True, {})
            text = self._render(self._plain, self._special, inputs)
        except ConfigError:
            return True
        wanted = self._tokenizer.encode(text, control_tokens=True)
        return self._encode(inputs, by_literals=True) == wanted

    def _encode(self, inputs: _Inputs, *, by_literals: bool) -> list[int]:
        text = self._render(self._plain, self._special, inputs)
        used = {ord(c) for c in inputs.all_text() + text if ord(c) >= _PRIVATE_FIRST}
        first = self._free_characters(used)
        if by_literals:
            stand_ins = {token: chr(first + i) for i, token in enumerate(self._tokens)}

            def protect(literal: str) -> str:
                for token, stand_in in stand_ins.items():
                    literal = literal.replace(token, stand_in)
                return literal

            if first not in self._protected:
                self._protected[first] = self._compile(protect)
            special = {name: protect(value) for name, value in self._special.items()}
            marked = self._render(self._protected[first], special, inputs)
            back = {ord(stand_in): token for token, stand_in in stand_ins.items()}
            if marked.translate(back) == text:
                return self._encode_stand_ins(marked, first)
        return self._encode_marked_users(inputs, chr(first))

    def _free_characters(self, used: set[int]) -> int:
        """Returns the first of a run of private characters that nobody uses."""
        count = max(1, len(self._tokens))
        for first in range(_PRIVATE_FIRST, _PRIVATE_END - count, count):
            if not any(first <= code < first + count for code in used):
                return first
        raise ConfigError("messages: use every private character of Unicode; remove them")

    def _encode_stand_ins(self, marked: str, first: int) -> list[int]:
        ids: list[int] = []
        last = chr(first + max(1, len(self._tokens)) - 1)
        for index, piece in enumerate(re.split(f"([{chr(first)}-{last}])", marked)):
            if index % 2:
                ids.append(self._tokenizer.control_tokens[self._tokens[ord(piece) - first]].id)
            else:
                ids += self._tokenizer.encode(piece)
        return ids

    def _encode_marked_users(self, inputs: _Inputs, mark: str) -> list[int]:
        """Breaks up what could start a control token in the caller's strings, until the split."""
        starts = {token[0] for token in self._tokens}

        def break_up(text: str) -> str:
            return "".join(c + mark if c in starts else c for c in text)

        marked = self._render(self._plain, self._special, inputs.map_text(break_up))
        ids: list[int] = []
        for piece, control in self._tokenizer.split_control(marked):
            if control is None:
                ids += self._tokenizer.encode(piece.replace(mark, ""))
            else:
                ids.append(control)
        return ids


class ChatTemplates:
    """The templates of a model folder: the usual one, and one for tools where there is such."""

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        """Reads the templates; a folder without any is no error until one is asked for."""
        self._folder = folder
        special = _special_variables(folder)
        self._by_name = {
            name: ChatTemplate(source, tokenizer, special, f"{folder}: chat template {name!r}")
            for name, source in _named_templates(folder).items()
        }

    def choose(self, *, tools: bool) -> ChatTemplate:
        """Returns the template for a conversation with or without tools.

        Raises:
            ConfigError: when the folder has none.
        """
        names = ["tool_use", "default"] if tools else ["default"]
        for name in names:
            if name in self._by_name:
                return self._by_name[name]
        if len(self._by_name) == 1:
            return next(iter(self._by_name.values()))
        raise ConfigError(
            f"{self._folder}: has no chat template (chat_template.jinja, or chat_template in "
            "tokenizer_config.json); use generate with a prompt of your own"
        )
