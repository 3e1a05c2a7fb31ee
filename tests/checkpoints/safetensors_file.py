"""Writer and reader of safetensors files with every dtype that checkpoints of this family use.

File: u64 little-endian header length, JSON header padded with spaces to 8 bytes, then the tensors'
bytes. bfloat16 and FP8 have no numpy type and travel as uint16 and uint8 with their name beside
them.
"""

import json
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

NUMPY_DTYPE = {
    "BF16": "<u2",
    "F16": "<f2",
    "F32": "<f4",
    "F8_E4M3": "u1",
    "U8": "u1",
    "U32": "<u4",
}


class Stored(NamedTuple):
    """One tensor as a file holds it: safetensors dtype name and the raw array (any shape)."""

    dtype: str
    data: np.ndarray


def write(path: Path, tensors: dict[str, Stored], metadata: dict[str, str] | None = None) -> None:
    """Writes the tensors in the order of the dict."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name, (dtype, data) in tensors.items():
        if data.dtype != np.dtype(NUMPY_DTYPE[dtype]):
            raise TypeError(f"{name}: {dtype} wants {NUMPY_DTYPE[dtype]}, got {data.dtype}")
        header[name] = {
            "dtype": dtype,
            "shape": list(data.shape),
            "data_offsets": [offset, offset + data.nbytes],
        }
        offset += data.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, data in tensors.values():
            file.write(np.ascontiguousarray(data).tobytes())


def read(path: Path) -> dict[str, Stored]:
    """Reads a whole file that `write` or a well-behaved tool wrote (no hostile input here)."""
    blob = path.read_bytes()
    (length,) = struct.unpack_from("<Q", blob)
    header = json.loads(blob[8 : 8 + length])
    header.pop("__metadata__", None)
    out = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        data = np.frombuffer(blob[begin:end], dtype=NUMPY_DTYPE[entry["dtype"]])
        out[name] = Stored(entry["dtype"], data.reshape(entry["shape"]))
    return out


def read_folder(folder: Path) -> dict[str, Stored]:
    """Reads every safetensors file of a folder."""
    out: dict[str, Stored] = {}
    for path in sorted(folder.glob("*.safetensors")):
        out.update(read(path))
    return out
