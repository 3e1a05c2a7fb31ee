"""Traces of which experts were asked for, as files: npz, TSV or JSON lines by the name's ending.

Only npz keeps the router's logits (as float16), which the policy "score" looks at.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError, FormatError, IoError

Rows = list[list[int]]


@dataclass
class Routes:
    """What routers chose.

    Attributes:
        rows: [layer, expert ids in rank order], one for each token and MoE layer, as computed.
        logits: of the router, float32 [rows, experts]; None where they are not known.
    """

    rows: Rows
    logits: NDArray[np.float32] | None = None


_ENDINGS = (".npz", ".tsv", ".jsonl")


def _ending(path: Path) -> str:
    if path.suffix not in _ENDINGS:
        raise ConfigError(f"{path}: routes are kept as {', '.join(_ENDINGS)}, not {path.suffix!r}")
    return path.suffix


def check_routes_path(path: Path) -> None:
    """Raises ConfigError unless the name has an ending that `save_routes` knows."""
    _ending(path)


def save_routes(path: Path, routes: Routes) -> None:
    """Writes a trace; its logits to npz only.

    Raises:
        ConfigError: on another ending than .npz, .tsv or .jsonl.
        IoError: when the file cannot be written.
    """
    ending = _ending(path)
    try:
        if ending == ".npz":
            content: dict[str, NDArray[np.generic]] = {
                "lengths": np.array([len(row) for row in routes.rows], dtype=np.int32),
                "values": np.array([x for row in routes.rows for x in row], dtype=np.int32),
            }
            if routes.logits is not None:
                content["logits"] = routes.logits.astype(np.float16)
            np.savez_compressed(path, **content)  # type: ignore[arg-type]
            return
        if ending == ".tsv":
            lines = ["\t".join(map(str, row)) for row in routes.rows]
        else:
            lines = [json.dumps(row) for row in routes.rows]
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    except OSError as error:
        raise IoError(f"{path}: routes cannot be written: {error.strerror}") from error


def load_routes(path: Path) -> Routes:
    """Reads a trace.

    Raises:
        ConfigError: on another ending, or when there is no such file.
        FormatError: when it is damaged; the message names the row.
    """
    ending = _ending(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    if ending == ".npz":
        return _load_npz(path)
    rows: Rows = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            values = json.loads(line) if ending == ".jsonl" else line.split("\t")
            row = [int(value) for value in values]
        except (ValueError, TypeError) as error:
            raise FormatError(
                f"{path}: line {number}: wanted layer and expert ids, got {line!r:.60}"
            ) from error
        _check(row, f"{path}: line {number}")
        rows.append(row)
    return Routes(rows)


def _load_npz(path: Path) -> Routes:
    try:
        with np.load(path, allow_pickle=False) as content:
            lengths, values = content["lengths"], content["values"]
            logits = content["logits"].astype(np.float32) if "logits" in content else None
    except Exception as error:  # numpy raises many kinds on a damaged zip
        raise FormatError(f"{path}: is no routes file: {error}") from error
    if lengths.sum() != values.shape[0] or (lengths.size and lengths.min() < 0):
        raise FormatError(
            f"{path}: lengths add up to {lengths.sum()}, there are {values.shape[0]} values"
        )
    if logits is not None and (logits.ndim != 2 or len(logits) != len(lengths)):
        raise FormatError(f"{path}: logits {list(logits.shape)} for {len(lengths)} rows")
    rows = (
        [part.tolist() for part in np.split(values, np.cumsum(lengths)[:-1])]
        if lengths.size
        else []
    )
    for number, row in enumerate(rows):
        _check(row, f"{path}: row {number}")
    return Routes(rows, logits)


def _check(row: list[int], where: str) -> None:
    if len(row) < 2 or min(row) < 0:
        raise FormatError(f"{where}: wanted a layer and at least one expert id, got {row!r:.60}")
