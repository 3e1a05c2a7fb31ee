"""The Jinja environment in which chat templates run, with what their authors rely on.

Templates come with downloads and are not trusted: they run in Jinja's immutable sandbox and see
plain data only. Source of the set-up: the contract documented for `apply_chat_template` of
transformers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from .errors import ConfigError


class GenerationTag(jinja2.ext.Extension):
    """Renders what is inside `{% generation %}` blocks, which mark text for training."""

    tags = {"generation"}  # noqa: RUF012 - the attribute that Jinja declares

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Returns the nodes between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: object) -> None:
    raise jinja2.TemplateError(str(message))


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter would escape HTML characters."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """Returns a new environment for one template."""
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, "jinja2.ext.loopcontrols"]
    )
    env.filters["tojson"] = _tojson
    env.globals["raise_exception"] = _raise_exception
    env.globals["strftime_now"] = _strftime_now
    return env


def plain_data(value: object, where: str, text: Callable[[str], str] = str) -> Any:  # noqa: ANN401
    """Rebuilds a value out of JSON types, so that a template can reach nothing else.

    Args:
        value: dicts, lists, tuples, strings, numbers, booleans, None, nested.
        where: name of the argument, for the error message.
        text: applied to every string that is no key.

    Raises:
        ConfigError: on any other type.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return text(value)
    if isinstance(value, int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain_data(item, f"{where}.{key}", text) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_data(item, f"{where}[{i}]", text) for i, item in enumerate(value)]
    raise ConfigError(
        f"{where}: wanted JSON data (dict, list, str, number), got {type(value).__name__}"
    )


def map_literals(node: jinja2.nodes.Node, change: Callable[[str], str]) -> None:
    """Applies `change` to the literal text that a template writes, in place.

    Literals that are only compared with, searched for or passed to filters, tests and methods stay,
    so that the template takes the same turns as before.
    """
    if isinstance(node, jinja2.nodes.TemplateData):
        node.data = change(node.data)
    elif isinstance(node, jinja2.nodes.Const):
        if isinstance(node.value, str):
            node.value = change(node.value)
    elif isinstance(node, jinja2.nodes.Compare | jinja2.nodes.Test):
        return
    elif isinstance(node, jinja2.nodes.Filter):
        if node.node is not None:
            map_literals(node.node, change)
    elif isinstance(node, jinja2.nodes.Getitem) or (
        isinstance(node, jinja2.nodes.Call) and isinstance(node.node, jinja2.nodes.Getattr)
    ):
        map_literals(node.node, change)
    else:
        for child in node.iter_child_nodes():
            map_literals(child, change)
