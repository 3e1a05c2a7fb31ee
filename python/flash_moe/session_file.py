"""Session files: the core's state in `path`, the last logits beside it in `path`.logits.

The logits only save time. Where they are missing, or belong to another file, the session computes
them again.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .errors import IoError
from .sampling import Logits

if TYPE_CHECKING:
    from ._core import Session as CoreSession

# Magic, CRC-32 of the tokens that led to the logits, CRC-32 of the logits, their count; then f32
# [count].
_MAGIC = b"FMLOGIT1"
_HEADER = struct.Struct("<8sIIQ")


def _logits_path(path: Path) -> Path:
    return path.with_name(path.name + ".logits")


def _token_hash(tokens: Sequence[int]) -> int:
    return zlib.crc32(np.asarray(tokens, dtype="<i4").tobytes())


def save(core: CoreSession, logits: Logits | None, path: Path) -> None:
    """Writes a session; the old file stays until the new one is whole.

    Raises:
        IoError: when the disk fails or is full.
    """
    core.save(str(path))
    beside = _logits_path(path)
    scratch = beside.with_name(beside.name + ".new")
    try:
        if logits is None:
            beside.unlink(missing_ok=True)
            return
        data = np.ascontiguousarray(logits, dtype="<f4").tobytes()
        header = _HEADER.pack(_MAGIC, _token_hash(core.tokens), zlib.crc32(data), logits.shape[0])
        scratch.write_bytes(header + data)
        scratch.replace(beside)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise IoError(f"{beside}: logits cannot be written: {error.strerror}") from error


def read_logits(path: Path, tokens: Sequence[int], vocab: int) -> Logits | None:
    """Returns the logits beside a session file, None unless whole and of these tokens."""
    try:
        content = _logits_path(path).read_bytes()
    except OSError:
        return None
    if len(content) != _HEADER.size + 4 * vocab:
        return None
    magic, token_hash, checksum, count = _HEADER.unpack_from(content)
    data = content[_HEADER.size :]
    if (magic, count) != (_MAGIC, vocab):
        return None
    if token_hash != _token_hash(tokens) or checksum != zlib.crc32(data):
        return None
    return np.frombuffer(data, dtype="<f4").astype(np.float32)
