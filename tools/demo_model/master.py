"""Stores the bf16 master in about two thirds of its size, without loss, and restores it.

The low byte of a bfloat16 (exponent's last bit and mantissa) is noise and stays as it is; the high
byte (sign and exponent) takes few values and shrinks with LZMA. So the repository stays small
enough to copy about, and a test restores a plain `model.safetensors` in about a second.

Usage:
  python master.py pack --model model.safetensors --folder tests/data/demo_bf16
  python master.py unpack --folder tests/data/demo_bf16 --out DIR
"""

from __future__ import annotations

import argparse
import hashlib
import lzma
import shutil
from pathlib import Path

import numpy as np

LOW, HIGH, DIGEST = "weights.low", "weights.high.xz", "model.safetensors.sha256"


def pack(model: Path, folder: Path) -> None:
    """Writes the two byte planes of a safetensors file and its SHA-256.

    Args:
        model: A file of even length whose header length is even too.
        folder: Where to write.
    """
    data = model.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    if header % 2 or len(data) % 2:
        raise ValueError(f"want an even header and length in {model}, got {header} and {len(data)}")
    planes = np.frombuffer(data, dtype=np.uint8).reshape(-1, 2)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LOW).write_bytes(planes[:, 0].tobytes())
    (folder / HIGH).write_bytes(lzma.compress(planes[:, 1].tobytes(), preset=2))
    (folder / DIGEST).write_text(hashlib.sha256(data).hexdigest() + "  model.safetensors\n")


def unpack(folder: Path, out: Path) -> Path:
    """Restores ``model.safetensors`` and copies every other file of the folder.

    Args:
        folder: Written by `pack`.
        out: Folder to write.

    Returns:
        Path of the restored file.

    Raises:
        ValueError: The restored bytes differ from the recorded SHA-256.
    """
    low = np.frombuffer((folder / LOW).read_bytes(), dtype=np.uint8)
    high = np.frombuffer(lzma.decompress((folder / HIGH).read_bytes()), dtype=np.uint8)
    data = np.stack([low, high], axis=1).tobytes()
    wanted = (folder / DIGEST).read_text().split()[0]
    got = hashlib.sha256(data).hexdigest()
    if got != wanted:
        raise ValueError(f"{folder}: want SHA-256 {wanted}, got {got} (is the checkout complete?)")
    out.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if file.name not in (LOW, HIGH, DIGEST):
            shutil.copyfile(file, out / file.name)
    target = out / "model.safetensors"
    target.write_bytes(data)
    return target


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("pack")
    first.add_argument("--model", type=Path, required=True)
    first.add_argument("--folder", type=Path, required=True)
    second = commands.add_parser("unpack")
    second.add_argument("--folder", type=Path, required=True)
    second.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.command == "pack":
        pack(args.model, args.folder)
    else:
        unpack(args.folder, args.out)


if __name__ == "__main__":
    main()
