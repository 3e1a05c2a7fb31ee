"""What the command line says: data on stdout, talk on stderr, colour where a person looks."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TextIO

from .errors import ConfigError
from .sizes import format_bytes

BOLD, DIM, CYAN, RESET = "\x1b[1m", "\x1b[2m", "\x1b[36m", "\x1b[0m"


def has_colour(stream: TextIO) -> bool:
    """True for a terminal whose user has not asked for none (NO_COLOR, TERM=dumb)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return stream.isatty()


def styled(text: str, style: str, stream: TextIO) -> str:
    """Returns the text in a style where the stream shows styles."""
    return f"{style}{text}{RESET}" if text and has_colour(stream) else text


def say(text: str) -> None:
    """Writes a line of talk."""
    print(text, file=sys.stderr, flush=True)


def emit(text: str, end: str = "\n") -> None:
    """Writes data."""
    print(text, end=end, flush=True)


def emit_json(content: object) -> None:
    """Writes data as one line of JSON."""
    emit(json.dumps(content, ensure_ascii=False))


def read_stdin() -> str:
    """Returns all of stdin.

    Raises:
        ConfigError: when it is not UTF-8.
    """
    return decode_utf8(sys.stdin.buffer.read(), "stdin")


def decode_utf8(data: bytes, where: str) -> str:
    """Returns the text of bytes.

    Raises:
        ConfigError: when they are not UTF-8; the message says where.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: is not valid UTF-8 at byte {error.start}") from error


class ProgressLine:
    """A line on stderr that is rewritten in place; silent where nobody looks."""

    def __init__(self, what: str, *, unit_bytes: bool = False) -> None:
        """Starts without writing anything."""
        self._what = what
        self._unit_bytes = unit_bytes
        self._shown = sys.stderr.isatty()
        self._written = False

    def __call__(self, done: int, total: int) -> bool:
        """Shows how far it is. Returns False: never cancels (Ctrl-C does)."""
        if self._shown and total > 0:
            amounts = (
                f"{format_bytes(done)} of {format_bytes(total)}"
                if self._unit_bytes
                else f"{done} of {total}"
            )
            sys.stderr.write(f"\r\x1b[K{self._what}: {amounts} ({100 * done // total} %)")
            sys.stderr.flush()
            self._written = True
        return False

    def clear(self) -> None:
        """Takes the line away."""
        if self._written:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._written = False


def table(rows: Sequence[Mapping[str, str]], left: Sequence[str] = ()) -> str:
    """Returns rows as text under their keys; the columns of `left` are left-aligned."""
    if not rows:
        return ""
    columns = list(rows[0])
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in columns}

    def line(cells: Mapping[str, str]) -> str:
        aligned = (
            cells[name].ljust(widths[name]) if name in left else cells[name].rjust(widths[name])
            for name in columns
        )
        return "  ".join(aligned).rstrip()

    return "\n".join([line({name: name for name in columns}), *(line(row) for row in rows)])
