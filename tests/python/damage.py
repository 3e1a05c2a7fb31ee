"""Ways in which downloads and conversions break a model folder."""

import json
import shutil
import struct
from pathlib import Path

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123456789\n"


def copy(folder: Path, target: Path) -> Path:
    """Returns a copy that may be damaged."""
    return Path(shutil.copytree(folder, target))


def weights(folder: Path) -> Path:
    """Returns the first weight file."""
    return sorted(folder.glob("*.safetensors"))[0]


def read_header(path: Path) -> tuple[dict, bytes]:
    """Returns a safetensors header and the bytes behind it."""
    blob = path.read_bytes()
    (length,) = struct.unpack_from("<Q", blob)
    return json.loads(blob[8 : 8 + length]), blob[8 + length :]


def write_header(path: Path, header: dict, data: bytes) -> None:
    """Writes a safetensors file whose header says what it is told to."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def edit_header(path: Path, name_part: str, **changes) -> str:
    """Changes the entry of the first tensor whose name holds `name_part`; returns its name."""
    header, data = read_header(path)
    name = next(n for n in header if name_part in n)
    header[name].update(changes)
    write_header(path, header, data)
    return name


def fill(path: Path, name_part: str, pattern: bytes) -> list[str]:
    """Overwrites every tensor whose name holds `name_part`; returns their names."""
    header, data = read_header(path)
    content = bytearray(data)
    names = [n for n in header if name_part in n]
    for name in names:
        start, end = header[name]["data_offsets"]
        content[start:end] = pattern * ((end - start) // len(pattern))
    write_header(path, header, bytes(content))
    return names


def edit_json(path: Path, change) -> None:
    """Applies `change` to the object in a JSON file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
