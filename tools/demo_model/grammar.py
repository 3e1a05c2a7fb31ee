"""A small template language: ``{a|b|c}`` picks one, ``[slot]`` fills in, nested at will.

Owns parsing and expanding; knows nothing of what is told. Everything random comes from the caller's
`random.Random`, so that a seed gives the same text everywhere.
"""

from __future__ import annotations

from functools import lru_cache
from random import Random
from typing import Any

Node = str | tuple[str, Any]


def _parse(text: str, at: int, inside: bool) -> tuple[list[list[Node]], int]:
    options: list[list[Node]] = [[]]
    plain: list[str] = []

    def flush() -> None:
        if plain:
            options[-1].append("".join(plain))
            plain.clear()

    while at < len(text):
        char = text[at]
        if char == "{":
            flush()
            inner, at = _parse(text, at + 1, True)
            options[-1].append(("choice", inner))
        elif char == "[":
            flush()
            end = text.index("]", at)
            options[-1].append(("slot", text[at + 1 : end]))
            at = end + 1
        elif inside and char == "|":
            flush()
            options.append([])
            at += 1
        elif inside and char == "}":
            flush()
            return options, at + 1
        else:
            plain.append(char)
            at += 1
    flush()
    if inside:
        raise ValueError(f"unclosed choice in template: {text!r}")
    return options, at


@lru_cache(maxsize=None)
def _compiled(text: str) -> list[Node]:
    return _parse(text, 0, False)[0][0]


def _expand(nodes: list[Node], random: Random, slots: dict[str, str], out: list[str]) -> None:
    for node in nodes:
        if isinstance(node, str):
            out.append(node)
        elif node[0] == "slot":
            value = slots[node[1]]
            if "{" in value or "[" in value:
                _expand(_compiled(value), random, slots, out)
            else:
                out.append(value)
        else:
            options = node[1]
            _expand(options[int(random.random() * len(options))], random, slots, out)


def fill(random: Random, template: str, slots: dict[str, str] | None = None) -> str:
    """Expands a template; choices are uniform."""
    out: list[str] = []
    _expand(_compiled(template), random, slots or {}, out)
    return "".join(out)


def capitalised(text: str) -> str:
    """First letter upper case, also behind an opening quote."""
    for i, char in enumerate(text[:2]):
        if char.isalpha():
            return text[:i] + char.upper() + text[i + 1 :]
    return text


def sentence(random: Random, template: str, slots: dict[str, str]) -> str:
    """`fill`, then each sentence starts with a capital and doubled spaces are gone."""
    text = " ".join(fill(random, template, slots).split())
    parts = text.split(". ")
    return ". ".join(capitalised(part) for part in parts)


def article(noun: str) -> str:
    """The noun phrase with a or an."""
    return ("an " if noun[0].lower() in "aeiou" else "a ") + noun


def listing(items: list[str]) -> str:
    """English enumeration: a, b and c."""
    if len(items) == 1:
        return items[0]
    return ", ".join(items[:-1]) + " and " + items[-1]
