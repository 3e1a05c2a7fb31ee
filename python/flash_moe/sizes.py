"""Sizes of memory as people write them: "12GB" is decimal, "12GiB" binary."""

from __future__ import annotations

import re

from .errors import ConfigError

_UNITS = {
    "": 1,
    "b": 1,
    **{f"{prefix}b": 1000 ** (i + 1) for i, prefix in enumerate("kmgt")},
    **{prefix: 1000 ** (i + 1) for i, prefix in enumerate("kmgt")},
    **{f"{prefix}ib": 1024 ** (i + 1) for i, prefix in enumerate("kmgt")},
}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-zA-Z]*)")


def parse_bytes(size: str | int, what: str = "memory") -> int:
    """Returns a size in bytes.

    Args:
        size: bytes, or text such as "12GB" (decimal), "11.5GiB" (binary), "800 MB".
        what: name of the setting, for the error message.

    Raises:
        ConfigError: when the text is no size, or the size is not above zero.
    """
    if isinstance(size, bool) or not isinstance(size, int | str):
        raise ConfigError(f'{what}: wanted bytes or text like "12GB", got {size!r}')
    if isinstance(size, int):
        count = size
    else:
        match = _SIZE.fullmatch(size.strip())
        unit = _UNITS.get(match[2].lower()) if match else None
        if match is None or unit is None:
            raise ConfigError(
                f'{what}: {size!r} is no size; write "12GB" (decimal), "12GiB" (binary) '
                "or a number of bytes"
            )
        count = round(float(match[1]) * unit)
    if count <= 0:
        raise ConfigError(f"{what}: wanted more than zero bytes, got {size!r}")
    return count


def format_bytes(count: float) -> str:
    """Returns bytes as short decimal text: 1234567 is "1.23 MB"."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= size:
            value = count / size
            digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
            return f"{value:.{digits}f} {unit}"
    return f"{count:.0f} B"
