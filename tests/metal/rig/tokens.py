"""Tokens of preprocessed Metal source, each with the file and line it came from."""

import re
from dataclasses import dataclass

TOKEN = re.compile(
    r"""(?P<space>\s+)
    |(?P<string>"(?:\\.|[^"\\])*")
    |(?P<number>0[xX][0-9a-fA-F]+[uUlL]*|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?[fFhHuUlL]*)
    |(?P<word>[A-Za-z_]\w*)
    |(?P<mark>::|->|<<=|>>=|<=|>=|==|!=|&&|\|\||\+\+|--|[-+*/%&|^]=|<<|[^\s\w])""",
    re.X,
)
LINE_MARKER = re.compile(r'#\s*(?:line\s+)?(\d+)\s+"([^"]*)"')


@dataclass
class Token:
    """One token; `text` is what is written out, and rewriting changes it in place."""

    kind: str  # space, marker, string, number, word, mark
    text: str
    file: str
    line: int

    @property
    def solid(self) -> bool:
        return self.kind not in ("space", "marker") and self.text != ""


class SourceError(Exception):
    """A mistake in the Metal source, as file:line: error: message."""


def tokenise(source: str) -> list[Token]:
    tokens: list[Token] = []
    at, file, line = 0, "?", 1
    while at < len(source):
        if source[at] == "#" and (at == 0 or source[at - 1] == "\n"):
            end = source.index("\n", at) + 1
            tokens.append(Token("marker", source[at:end], file, line))
            found = LINE_MARKER.match(source, at)
            file, line = (found[2], int(found[1])) if found else (file, line + 1)
            at = end
            continue
        match = TOKEN.match(source, at)
        if match is None:
            raise SourceError(f"{file}:{line}: error: unreadable text {source[at : at + 20]!r}")
        tokens.append(Token(match.lastgroup or "", match.group(), file, line))
        line += match.group().count("\n")
        at = match.end()
    return tokens


class TokenList:
    """Walks over a list of tokens, past white space."""

    def __init__(self, tokens: list[Token]):
        self.tokens = tokens

    def text(self, index: int) -> str:
        return self.tokens[index].text if 0 <= index < len(self.tokens) else ""

    def after(self, index: int) -> int:
        index += 1
        while index < len(self.tokens) and not self.tokens[index].solid:
            index += 1
        return index

    def before(self, index: int) -> int:
        index -= 1
        while index >= 0 and not self.tokens[index].solid:
            index -= 1
        return index

    def closing(self, index: int) -> int:
        """The index of the bracket that closes the one at `index`."""
        opener = self.text(index)
        closer = {"(": ")", "[": "]", "{": "}"}[opener]
        depth = 0
        for i in range(index, len(self.tokens)):
            if self.tokens[i].text == opener:
                depth += 1
            elif self.tokens[i].text == closer:
                depth -= 1
                if depth == 0:
                    return i
        token = self.tokens[index]
        raise SourceError(f"{token.file}:{token.line}: error: {opener} is never closed")

    def join(self, begin: int, end: int) -> str:
        return "".join(t.text for t in self.tokens[begin:end] if t.kind != "marker").strip()

    def blank(self, begin: int, end: int) -> None:
        """Empties tokens [begin, end) but keeps their line breaks."""
        for token in self.tokens[begin:end]:
            if token.kind != "marker":
                token.text = "\n" * token.text.count("\n")
                token.kind = "space"
