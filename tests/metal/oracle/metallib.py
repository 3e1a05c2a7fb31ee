"""Reads Apple's .metallib container: names of functions, and the LLVM bitcode (AIR) of each.

A file starts with "MTLB"; eight 64-bit numbers at byte 24 give offset and size of the function list, of public
and private metadata, and of the bitcode. The list is a count, then entries of tags: NAME, MDSZ (bitcode bytes),
OFFT (three offsets, the last one into the bitcode), ending with ENDT.
"""

import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Metallib:
    data: bytes
    functions: dict[str, tuple[int, int]]  # name -> offset and size of its bitcode in `data`

    def bitcode(self, name: str) -> bytes:
        offset, size = self.functions[name]
        return self.data[offset : offset + size]


def parse(data: bytes) -> Metallib:
    assert data[:4] == b"MTLB", "not a metallib"
    list_at, _, _, _, _, _, bitcode_at, _ = struct.unpack_from("<8Q", data, 24)
    (count,) = struct.unpack_from("<I", data, list_at)
    functions, at = {}, list_at + 4
    for _ in range(count):
        (entry_bytes,) = struct.unpack_from("<I", data, at)
        tags, inside = {}, at + 4
        while data[inside : inside + 4] != b"ENDT":
            (length,) = struct.unpack_from("<H", data, inside + 4)
            tags[data[inside : inside + 4]] = data[inside + 6 : inside + 6 + length]
            inside += 6 + length
        name = tags[b"NAME"].rstrip(b"\0").decode()
        offset = struct.unpack("<3Q", tags[b"OFFT"])[2]
        functions[name] = (bitcode_at + offset, struct.unpack("<Q", tags[b"MDSZ"])[0])
        at += entry_bytes
    return Metallib(data, functions)


def from_wheel(wheel: Path) -> Metallib:
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith("mlx.metallib"))
        return parse(archive.read(name))
