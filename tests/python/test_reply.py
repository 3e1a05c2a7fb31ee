"""Answers taken apart: thinking, text, tool calls; in one piece, token by token, cut short."""

import json

import pytest

from flash_moe.completion import ToolCall
from flash_moe.reply import ReplyParser, opens_thinking
from flash_moe.tokenizer import Detokenizer, Tokenizer
from flash_moe.tool_calls import parse_tool_call, typed_value

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "find",
            "parameters": {
                "type": "object",
                "properties": {
                    "text": {"type": "string"},
                    "count": {"type": "integer"},
                    "ratio": {"type": "number"},
                    "deep": {"type": "boolean"},
                    "paths": {"type": "array"},
                    "where": {"type": "object"},
                    "limit": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
                },
            },
        },
    }
]
XML = (
    "<tool_call>\n<function=find>\n<parameter=text>\nline one\nline two\n</parameter>\n"
    "<parameter=count>\n3\n</parameter>\n</function>\n</tool_call>"
)


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return Tokenizer(checkpoint("hf_bf16"))


@pytest.fixture(scope="module")
def spelled(checkpoint, tmp_path_factory):
    """A tokenizer without the markers: they are spelled in characters."""
    folder = tmp_path_factory.mktemp("spelled")
    content = json.loads((checkpoint("hf_bf16") / "tokenizer.json").read_text(encoding="utf-8"))
    content["added_tokens"] = [t for t in content["added_tokens"] if "think" not in t["content"]]
    content["added_tokens"] = [t for t in content["added_tokens"] if "tool" not in t["content"]]
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return Tokenizer(folder)


def parts(tokenizer, ids, *, thinking=False, tools=TOOLS):
    """Returns the joined thinking and text, and the calls."""
    parser = ReplyParser(tokenizer, thinking=thinking, tools=tools)
    detokenizer = Detokenizer(tokenizer)
    pieces = []
    for token in ids:
        text = detokenizer.push(token)
        marker = parser.marker_ids.get(token)
        pieces += parser.push(text.removesuffix(marker) if marker else text, marker)
    pieces += parser.push(detokenizer.finish()) + parser.finish()
    joined = {
        kind: "".join(p.text for p in pieces if p.kind == kind) for kind in ("thinking", "text")
    }
    return joined["thinking"], joined["text"], [p.tool_call for p in pieces if p.tool_call]


CASES = [
    (False, "Hello world", ("", "Hello world", [])),
    (True, "I see.\n</think>\n\nHello", ("I see.", "Hello", [])),
    (True, "\n\n</think>\n\nHello", ("", "Hello", [])),
    (False, "<think>\nwhy\n\nwhy not\n</think>\n\nBecause.", ("why\n\nwhy not", "Because.", [])),
    (True, "never ends", ("never ends", "", [])),
    (False, "  indented\n  twice \n", ("", "  indented\n  twice \n", [])),
    (
        False,
        f"Let me look.\n\n{XML}",
        (
            "",
            "Let me look.",
            [ToolCall("find", {"text": "line one\nline two", "count": 3}, "call_0")],
        ),
    ),
    (
        True,
        f"hm\n</think>\n\n{XML}\n{XML}",
        (
            "hm",
            "",
            [
                ToolCall("find", {"text": "line one\nline two", "count": 3}, "call_0"),
                ToolCall("find", {"text": "line one\nline two", "count": 3}, "call_1"),
            ],
        ),
    ),
    (
        False,
        '<tool_call>\n{"name": "find", "arguments": {"text": "a"}}\n</tool_call>',
        ("", "", [ToolCall("find", {"text": "a"}, "call_0")]),
    ),
    (False, "<tool_call>\nnonsense\n</tool_call>", ("", "<tool_call>\nnonsense\n</tool_call>", [])),
    (False, "<tool_call>\n<function=find>", ("", "<tool_call>\n<function=find>", [])),
    (False, "a</think>b", ("", "a</think>b", [])),
]


@pytest.mark.parametrize(("thinking", "text", "want"), CASES, ids=[c[1][:20] for c in CASES])
def test_an_answer_is_taken_apart(tokenizer, thinking, text, want):
    ids = tokenizer.encode(text, control_tokens=True)
    assert parts(tokenizer, ids, thinking=thinking) == want


@pytest.mark.parametrize(("thinking", "text", "want"), CASES, ids=[c[1][:20] for c in CASES])
def test_markers_may_be_spelled_where_there_are_no_such_tokens(spelled, thinking, text, want):
    assert parts(spelled, spelled.encode(text), thinking=thinking) == want


def test_quoted_markers_start_nothing(tokenizer):
    """A model that repeats a user's characters does not call the user's tool."""
    text = f"You wrote: {XML} and <think>"
    assert parts(tokenizer, tokenizer.encode(text)) == ("", text, [])


def test_unfinished_markers_are_not_lost(spelled):
    assert parts(spelled, spelled.encode("a <tool_cal")) == ("", "a <tool_cal", [])
    assert parts(spelled, spelled.encode("a < b <t")) == ("", "a < b <t", [])


@pytest.mark.parametrize(
    ("prompt", "want"),
    [
        ("<|im_start|>assistant\n<think>\n", True),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("<|im_start|>assistant\n", False),
        ("<think>a</think><|im_start|>assistant\n", False),
        ("", False),
    ],
)
def test_a_prompt_tells_whether_the_answer_starts_inside_its_thinking(
    tokenizer, spelled, prompt, want
):
    assert opens_thinking(tokenizer, tokenizer.encode(prompt, control_tokens=True)) is want
    assert opens_thinking(spelled, spelled.encode(prompt, control_tokens=True)) is want


@pytest.mark.parametrize(
    ("text", "schema", "want"),
    [
        ("3", {"type": "integer"}, 3),
        ("3.5", {"type": "integer"}, "3.5"),
        ("true", {"type": "integer"}, "true"),
        ("3", {"type": "number"}, 3),
        ("True", {"type": "boolean"}, True),
        ("1", {"type": "boolean"}, "1"),
        ("[1, 2]", {"type": "array"}, [1, 2]),
        ("{", {"type": "object"}, "{"),
        ("None", {"type": ["integer", "null"]}, None),
        ("5", {"anyOf": [{"type": "integer"}, {"type": "null"}]}, 5),
        ("5", {"type": "string"}, "5"),
        ("5", {"type": ["string", "null"]}, "5"),
        ("null", {"type": ["string", "null"]}, None),
        ("5", None, "5"),
        ("5", {}, "5"),
    ],
)
def test_values_take_the_type_of_their_schema(text, schema, want):
    value = typed_value(text, schema)
    assert value == want
    assert type(value) is type(want)


@pytest.mark.parametrize(
    ("body", "want"),
    [
        ("<function=f>\n</function>", ToolCall("f", {})),
        ("<function=f>\n<parameter=a>\n\n</parameter>\n</function>", ToolCall("f", {"a": ""})),
        (
            "<function=f>\n<parameter=a>\n x \n</parameter>\n</function>",
            ToolCall("f", {"a": " x "}),
        ),
        (
            "<function=f>\n<parameter=a>\n</parameter> in text\n</parameter>\n</function>",
            ToolCall("f", {"a": "</parameter> in text"}),
        ),
        ("<function=f>\n<parameter=a>1</parameter></function>", ToolCall("f", {"a": "1"})),
        ('{"name": "f", "arguments": "{\\"a\\": 1}"}', ToolCall("f", {"a": 1})),
        ('{"name": "f"}', ToolCall("f", {})),
        ('{"name": "f", "arguments": [1]}', None),
        ('{"arguments": {}}', None),
        ('{"name": 3}', None),
        ("<function=f>\nstray\n</function>", None),
        ("<function=f>\n<parameter=a>\n1\n</function>", None),
        ("", None),
    ],
)
def test_calls_are_parsed_or_refused(body, want):
    assert parse_tool_call(body, {}) == want
