"""Tool calls as the family writes them: XML of Qwen3.5 and Qwen3-Next, JSON of Qwen3.

<tool_call>                              <tool_call>
<function=NAME>                          {"name": "NAME", "arguments": {"P": ...}}
<parameter=P>                            </tool_call>
value
</parameter>
</function>
</tool_call>
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .completion import ToolCall

_FUNCTION = re.compile(r"<function=([^>\n]+)>(.*?)(?:</function>|\Z)", re.DOTALL)
# A value may itself hold "</parameter>": it ends where another parameter, or nothing, follows.
_PARAMETER = re.compile(
    r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>\s*(?=<parameter=|\Z)", re.DOTALL
)
_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
    "null": (type(None),),
}

Schemas = Mapping[str, Mapping[str, Any]]


def parameter_schemas(tools: Sequence[Mapping[str, Any]] | None) -> dict[str, Mapping[str, Any]]:
    """Returns, by function name, the schemas of the parameters by parameter name."""
    found: dict[str, Mapping[str, Any]] = {}
    for tool in tools or ():
        function = tool.get("function", tool)
        parameters = function.get("parameters") if isinstance(function, Mapping) else None
        properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
        if isinstance(properties, Mapping):
            found[str(function.get("name"))] = properties
    return found


def _types(schema: object) -> set[str]:
    if not isinstance(schema, Mapping):
        return {"string"}
    kinds = schema.get("type")
    found = {kinds} if isinstance(kinds, str) else set(kinds) if isinstance(kinds, list) else set()
    for key in ("anyOf", "oneOf"):
        for option in schema.get(key) or ():
            found |= _types(option)
    return found or {"string"}


def typed_value(text: str, schema: object) -> Any:  # noqa: ANN401
    """Returns a value in the type that its schema asks for; text when it does not fit."""
    kinds = _types(schema)
    if kinds == {"string"}:
        return text
    try:
        value = json.loads(
            {"True": "true", "False": "false", "None": "null"}.get(text.strip(), text)
        )
    except ValueError:
        return text
    for kind in kinds:
        wanted = _JSON_TYPES.get(kind, ())
        if isinstance(value, wanted) and (kind == "boolean" or not isinstance(value, bool)):
            return value
    return text


def parse_tool_call(body: str, schemas: Schemas, call_id: str = "") -> ToolCall | None:
    """Returns the call that stands between `<tool_call>` and `</tool_call>`, None when it is none.

    Args:
        body: the text between.
        schemas: of `parameter_schemas`, which give XML values their types.
        call_id: for the result.
    """
    body = body.strip()
    if body.startswith("{"):
        return _parse_json(body, call_id)
    match = _FUNCTION.fullmatch(body)
    if match is None:
        return None
    name, inner = match[1].strip(), match[2].strip("\n")
    known = schemas.get(name, {})
    arguments: dict[str, Any] = {}
    place = 0
    for parameter in _PARAMETER.finditer(inner):
        if inner[place : parameter.start()].strip():
            return None
        key = parameter[1].strip()
        arguments[key] = typed_value(parameter[2], known.get(key))
        place = parameter.end()
    return None if inner[place:].strip() else ToolCall(name, arguments, call_id)


def _parse_json(body: str, call_id: str) -> ToolCall | None:
    try:
        content = json.loads(body)
        name, arguments = content["name"], content.get("arguments", content.get("parameters", {}))
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
    except (ValueError, KeyError, TypeError):
        return None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    return ToolCall(name, arguments, call_id)
