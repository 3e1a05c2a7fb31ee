"""The container of GGUF version 3: all that stands before the tensors' data."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Any

ALIGNMENT = 32


def padding(size: int) -> bytes:
    """Returns the zeros that follow `size` bytes."""
    return bytes(-size % ALIGNMENT)


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _typed(value: Any) -> tuple[int, bytes]:  # noqa: ANN401 - one of the types below
    """Returns a value's type id and bytes; an int is a uint32, in a list an int32."""
    if isinstance(value, str):
        return 8, _text(value)
    if isinstance(value, bool):
        return 7, struct.pack("<?", value)
    if isinstance(value, float):
        return 6, struct.pack("<f", value)
    if isinstance(value, int):
        return 4, struct.pack("<I", value)
    kind = 5 if type(value[0]) is int else _typed(value[0])[0]
    items = [struct.pack("<i", item) if kind == 5 else _typed(item)[1] for item in value]
    return 9, struct.pack("<IQ", kind, len(value)) + b"".join(items)


def header_of(
    metadata: Mapping[str, Any], tensors: Iterable[tuple[str, tuple[int, ...], int, int]]
) -> bytes:
    """Returns everything before the data, padded.

    Args:
        metadata: key-value pairs: text, numbers, lists of them that are not empty.
        tensors: name, shape as numpy has it, ggml's type id, bytes; data follow in this order.
    """
    places, count, offset = b"", 0, 0
    for name, shape, kind, size in tensors:
        places += _text(name) + struct.pack("<I", len(shape))
        places += struct.pack(f"<{len(shape)}Q", *reversed(shape))
        places += struct.pack("<IQ", kind, offset)
        offset += size + len(padding(size))
        count += 1
    out = b"GGUF" + struct.pack("<IQQ", 3, count, len(metadata))
    for key, value in metadata.items():
        kind, data = _typed(value)
        out += _text(key) + struct.pack("<I", kind) + data
    out += places
    return out + padding(len(out))
