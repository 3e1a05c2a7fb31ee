"""Renders conversations exactly as ``chat_template.jinja`` does, with a loss class per piece.

`check_corpus.py` holds this against the template; the corpus uses this one because it is fast and
knows which text the model has to learn.
"""

from __future__ import annotations

import json
from typing import Any

Message = dict[str, Any]
Segments = list[tuple[str, int]]
PROMPT, PLAIN, ANSWER = 1, 2, 3
CALL_RULES = (
    "If you choose to call a function ONLY reply in the following format with NO suffix:\n\n"
    "<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>\nvalue_1\n"
    "</parameter>\n<parameter=example_parameter_2>\nThis is the value for the second parameter\n"
    "that can span\nmultiple lines\n</parameter>\n</function>\n</tool_call>\n\n<IMPORTANT>\n"
    "Reminder:\n- Function calls MUST follow the specified format: an inner "
    "<function=...></function> block must be nested within <tool_call></tool_call> XML tags\n"
    "- Required parameters MUST be specified\n- You may provide optional reasoning for your "
    "function call in natural language BEFORE the function call, but NOT after\n- If there is no "
    "function call available, answer the question like normal with your current knowledge and do "
    "not tell the user about function calls\n</IMPORTANT>"
)


def to_json(value: Any) -> str:  # noqa: ANN401
    """JSON as the template's tojson writes it."""
    return json.dumps(value, ensure_ascii=False)


def render_call(name: str, arguments: dict[str, Any]) -> str:
    """One tool call in the family's XML."""
    lines = []
    for key, value in arguments.items():
        text = to_json(value) if isinstance(value, (dict, list)) else str(value)
        lines.append(f"<parameter={key}>\n{text}\n</parameter>\n")
    return f"<tool_call>\n<function={name}>\n{''.join(lines)}</function>\n</tool_call>"


def assistant_text(message: Message) -> str:
    """Content followed by its tool calls."""
    text = message.get("content") or ""
    for i, call in enumerate(message.get("tool_calls") or []):
        function = call["function"]
        if i or text:
            text += "\n" if i else "\n\n"
        text += render_call(function["name"], function["arguments"])
    return text


def render(messages: list[Message], tools: list[dict[str, Any]] | None = None) -> Segments:
    """A finished conversation, the last message an assistant's, with loss classes."""
    out: Segments = []
    first = messages[0]
    system = first["content"].strip() if first["role"] == "system" else None
    if tools:
        head = "# Tools\n\nYou have access to the following functions:\n\n<tools>"
        head += "".join("\n" + to_json(tool) for tool in tools) + "\n</tools>\n\n" + CALL_RULES
        head += f"\n\n{system}" if system else ""
        out.append((f"<|im_start|>system\n{head}<|im_end|>\n", PROMPT))
    elif system is not None:
        out.append((f"<|im_start|>system\n{system}<|im_end|>\n", PROMPT))
    last = max(i for i, m in enumerate(messages) if m["role"] == "user")
    for i, message in enumerate(messages):
        role = message["role"]
        if role == "user":
            out.append((f"<|im_start|>user\n{message['content']}<|im_end|>\n", PROMPT))
        elif role == "tool":
            head = "<|im_start|>user" if messages[i - 1]["role"] != "tool" else ""
            ends = i + 1 == len(messages) or messages[i + 1]["role"] != "tool"
            text = f"{head}\n<tool_response>\n{message['content']}\n</tool_response>"
            out.append((text + ("<|im_end|>\n" if ends else ""), PROMPT))
        elif role == "assistant":
            text = assistant_text(message)
            if i > last:
                thought = message.get("reasoning_content") or ""
                if thought:
                    out.append(("<|im_start|>assistant\n<think>\n", PROMPT))
                    out.append((f"{thought}\n</think>\n\n{text}<|im_end|>", ANSWER))
                else:
                    out.append(("<|im_start|>assistant\n<think>\n\n</think>\n\n", PROMPT))
                    out.append((f"{text}<|im_end|>", ANSWER))
            else:
                out.append(("<|im_start|>assistant\n", PROMPT))
                out.append((f"{text}<|im_end|>", PLAIN))
            out.append(("\n", PROMPT))
    return out


def generation_prompt(
    messages: list[Message], tools: list[dict[str, Any]] | None, thinking: bool
) -> str:
    """What stands before the model's answer to the last message."""
    tail = "<think>\n" if thinking else "<think>\n\n</think>\n\n"
    placeholder = [*messages, {"role": "assistant", "content": ""}]
    rendered = "".join(text for text, _ in render(placeholder, tools))
    head = rendered[: rendered.rindex("<|im_start|>assistant\n")]
    return f"{head}<|im_start|>assistant\n{tail}"
