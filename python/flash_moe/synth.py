"""Writes a checkpoint of a real geometry with random weights, in MLX's layout.

For measurements where no real weights can be had. Speed, memory and reads are those of the real
checkpoint of that size; text is noise, and routing is what `synth_weights` makes of it.

A folder is finished when it has a config.json. One that was interrupted keeps its finished shards:
the same call goes on behind them. A shard that is being written ends in ".part".
"""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import CancelledError, ConfigError, IoError
from .folder import demo_model
from .geometry import Geometry, Json, geometry_of, load_config, with_layers
from .options import Progress
from .sizes import format_bytes
from .synth_weights import (
    LOCALITY_MAX,
    ROUTER_BITS,
    ROUTER_GROUP,
    Chunk,
    Matrix,
    Pools,
    Routing,
    Vector,
    Weights,
)

SHARD_BYTES = 4 << 30
RECIPE = "synth.json"
BITS, GROUPS = (2, 3, 4, 5, 6, 8), (32, 64, 128)
_SYNC_BYTES = 256 << 20  # written between two waits for the drive
_SPARE_BYTES = 64 << 20  # left free on the drive


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file: the leaf of a module."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    module: Matrix | Vector
    leaf: str

    @property
    def is_expert(self) -> bool:
        """Whether routed experts are in it."""
        return isinstance(self.module, Matrix) and self.module.repeat > 0

    def chunks(self, pools: Pools) -> Iterator[Chunk]:
        """Yields its bytes."""
        if isinstance(self.module, Vector):
            yield self.module.data()
        elif self.leaf == "weight":
            yield from self.module.codes(pools)
        else:
            yield from self.module.scales(pools, biases=self.leaf == "biases")


@dataclass(frozen=True)
class Report:
    """What `synthesise` wrote."""

    path: str
    bytes: int
    files: int
    layers: int
    resumed: bool

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields."""
        return asdict(self)


def tensors_of(module: Matrix | Vector) -> Iterator[Tensor]:
    """Yields the tensors of a module.

    Raises:
        ConfigError: when its columns do not divide into groups.
    """
    if isinstance(module, Vector):
        size = math.prod(module.shape) * (4 if module.float32 else 2)
        dtype = "F32" if module.float32 else "BF16"
        yield Tensor(module.name, dtype, module.shape, size, module, "")
        return
    if module.columns % module.group:
        raise ConfigError(
            f"{module.name}: {module.columns} columns do not divide into groups of {module.group}; "
            "try a smaller --group"
        )
    words, groups = module.columns * module.bits // 32, module.columns // module.group
    rows = math.prod(module.shape)
    for leaf, dtype, width, unit in (
        ("weight", "U32", words, 4),
        ("scales", "BF16", groups, 2),
        ("biases", "BF16", groups, 2),
    ):
        shape = (*module.shape, width)
        yield Tensor(f"{module.name}.{leaf}", dtype, shape, rows * width * unit, module, leaf)


def shards_of(tensors: list[Tensor], shard_bytes: int = SHARD_BYTES) -> list[list[Tensor]]:
    """Returns the tensors by file: a new one where the next tensor would not fit."""
    shards: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.size > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.size
    return shards


def header_of(tensors: list[Tensor]) -> bytes:
    """Returns what stands before the tensors of a safetensors file."""
    header: Json = {"__metadata__": {"format": "mlx"}}
    offset = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.size],
        }
        offset += tensor.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def config_of(config: Json, geometry: Geometry, bits: int, group: int) -> Json:
    """Returns config.json of the folder: the geometry's with the quantisation stated."""
    settings: Json = {"group_size": group, "bits": bits, "mode": "affine"}
    router = {"group_size": ROUTER_GROUP, "bits": ROUTER_BITS}
    for layer in range(geometry.layers):
        name = f"{geometry.prefix}model.layers.{layer}.mlp"
        settings[f"{name}.gate"] = router
        if geometry.shared_inner:
            settings[f"{name}.shared_expert_gate"] = router
    return {**config, "quantization": settings, "quantization_config": settings}


def tokenizer_files(vocab: int) -> tuple[dict[str, Json], list[int]]:
    """Returns the bundled model's tokenizer, filled up to `vocab` ids.

    Its words keep their ids, filler stands behind them, control tokens stand at the end.

    Returns:
        JSON files by name; and the ids that end an answer.

    Raises:
        ConfigError: when the vocabulary is smaller than the bundled model's.
    """

    def read(name: str) -> Json:
        content: Json = json.loads((demo_model() / name).read_text(encoding="utf-8"))
        return content

    tokenizer = read("tokenizer.json")
    words = tokenizer["model"]["vocab"]
    control = [token["id"] for token in tokenizer["added_tokens"]]
    size = max([*words.values(), *control]) + 1
    if vocab < size:
        raise ConfigError(f"config: vocab_size: wanted at least {size}, got {vocab}")
    first, by = min(control), vocab - size
    words.update({f"\u0120w{number}": number for number in range(first, first + by)})
    ends = read("generation_config.json")["eos_token_id"]
    eos = [token + by for token in (ends if isinstance(ends, list) else [ends])]
    settings = read("tokenizer_config.json")
    settings["added_tokens_decoder"] = {
        str(int(token) + by): entry for token, entry in settings["added_tokens_decoder"].items()
    }
    tokenizer["added_tokens"] = [
        {**token, "id": token["id"] + by} for token in tokenizer["added_tokens"]
    ]
    files = {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": settings,
        "generation_config.json": {"do_sample": True, "temperature": 1.0, "eos_token_id": eos},
    }
    return files, eos


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


class _Writer:
    """Writes the shards of one folder and counts its bytes."""

    def __init__(
        self, folder: Path, pools: Pools, total: int, hollow: bool, progress: Progress | None
    ) -> None:
        self._folder, self._pools, self._hollow = folder, pools, hollow
        self._total, self._progress = total, progress
        self.done = 0
        self._unsynced = 0

    def shard(self, name: str, tensors: list[Tensor]) -> bool:
        """Writes a shard unless it is there. Returns whether it was."""
        path = self._folder / name
        header = header_of(tensors)
        size = len(header) + sum(tensor.size for tensor in tensors)
        if path.exists() and path.stat().st_size == size:
            self._count(size)
            return True
        part = path.with_suffix(".part")
        try:
            with part.open("wb", buffering=0) as file:
                self._put(file.fileno(), header)
                for tensor in tensors:
                    before = self.done
                    if self._hollow and tensor.is_expert:
                        file.truncate(file.seek(tensor.size, os.SEEK_CUR))
                        self._count(tensor.size)
                        continue
                    for chunk in tensor.chunks(self._pools):
                        self._put(file.fileno(), chunk)
                    if self.done - before != tensor.size:
                        raise AssertionError(f"{tensor.name}: {self.done - before} bytes")
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return False

    def _put(self, descriptor: int, chunk: Chunk) -> None:
        view = memoryview(chunk.tobytes() if isinstance(chunk, np.ndarray) else chunk)
        while len(view):
            written = os.write(descriptor, view)
            view = view[written:]
            self._unsynced += written
            self._count(written)
        if self._unsynced >= _SYNC_BYTES:  # dirty pages would take the machine's memory
            self._unsynced = 0
            os.fsync(descriptor)

    def _count(self, size: int) -> None:
        self.done += size
        if self._progress is not None and self._progress(self.done, self._total):
            raise CancelledError(f"{self._folder}: writing was cancelled; the same call goes on")


def _prepare(folder: Path, recipe: Json) -> None:
    """Makes the folder, or checks that what stands there is an unfinished one of this recipe."""
    if folder.exists():
        if not folder.is_dir():
            raise ConfigError(f"{folder}: is a file: name a folder to write")
        found = list(folder.iterdir())
        if found and not (folder / RECIPE).is_file():
            raise ConfigError(f"{folder}: holds other files: name a new or an empty folder")
        if found and json.loads((folder / RECIPE).read_text(encoding="utf-8")) != recipe:
            raise ConfigError(f"{folder}: holds a synthetic model with other settings: remove it")
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / RECIPE, recipe)


def _check_space(folder: Path, needed: int) -> None:
    near = folder if folder.exists() else next(p for p in folder.absolute().parents if p.exists())
    files = folder.iterdir() if folder.exists() else ()
    there = sum(f.stat().st_blocks * 512 for f in files)  # a hollow file is larger than its room
    free = shutil.disk_usage(near).free
    if needed - there + _SPARE_BYTES > free:
        raise IoError(
            f"{folder}: wanted {format_bytes(needed - there)} more on this drive, "
            f"{format_bytes(free)} are free; take fewer --layers"
        )


def _check(bits: int, group: int, routing: Routing, geometry: Geometry) -> None:
    if bits not in BITS or group not in GROUPS:
        raise ConfigError(f"wanted bits of {BITS} and a group of {GROUPS}, got {bits} and {group}")
    if not 0 <= routing.locality <= LOCALITY_MAX:
        raise ConfigError(f"locality: wanted 0 to {LOCALITY_MAX}, got {routing.locality}")
    if not (math.isfinite(routing.skew) and routing.skew >= 0):
        raise ConfigError(f"skew: wanted 0 or more, got {routing.skew}")
    if geometry.hidden < 2 * group:
        raise ConfigError(
            f"config: hidden_size: wanted at least two groups of {group}, got {geometry.hidden}"
        )
    if geometry.linear_value_heads % geometry.linear_key_heads:
        raise ConfigError("config: linear_num_value_heads: wanted a multiple of the key heads")


def synthesise(
    config: str | Json,
    out: str | os.PathLike[str],
    *,
    layers: int | None = None,
    bits: int = 4,
    group: int = 64,
    routing: Routing | None = None,
    hollow: bool = False,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> Report:
    """Writes a synthetic checkpoint.

    Args:
        config: a config.json's path or content, or a name of `geometry_names`.
        out: the folder to write; an unfinished one of the same settings is completed.
        layers: cuts (or repeats) the config's layers.
        bits: of every matrix but the routers, which have 8.
        group: weights that share a scale.
        routing: how experts are chosen.
        hollow: routed experts are holes in the files, which take no room and read as zeros
            without the drive: for start and memory of models that the drive cannot hold.
        shard_bytes: of one file at most, but for a single larger tensor.
        progress: called with bytes written and in all; True cancels.

    Raises:
        ConfigError: when something asked for cannot be; nothing has been written then.
        IoError: when the drive has no room, or a write failed; finished shards stay.
        CancelledError: when cancelled; finished shards stay.
    """
    routing = routing or Routing()
    content = with_layers(load_config(config) if isinstance(config, str) else config, layers)
    geometry = geometry_of(content)
    _check(bits, group, routing, geometry)
    folder = Path(out).expanduser()
    texts, eos = tokenizer_files(geometry.vocab)
    weights = Weights(geometry, routing, bits, group)
    tensors = [tensor for module in weights.modules() for tensor in tensors_of(module)]
    shards = shards_of(tensors, shard_bytes)
    total = sum(len(header_of(part)) + sum(tensor.size for tensor in part) for part in shards)
    recipe = {
        "synthetic": "random weights, for measurements",
        "config": content,
        "bits": bits,
        "group": group,
        "routing": asdict(routing),
        "hollow": hollow,
        "shard_bytes": shard_bytes,
    }
    try:
        _check_space(folder, total - sum(t.size for t in tensors if hollow and t.is_expert))
        _prepare(folder, recipe)
        for name, text in texts.items():
            _write_json(folder / name, text)
        template = "chat_template.jinja"
        shutil.copyfile(demo_model() / template, folder / template)
        writer = _Writer(folder, Pools(routing.seed), total, hollow, progress)
        names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
        kept = [writer.shard(name, part) for name, part in zip(names, shards, strict=True)]
        files = {t.name: name for name, part in zip(names, shards, strict=True) for t in part}
        index = {"metadata": {"total_size": sum(t.size for t in tensors)}, "weight_map": files}
        _write_json(folder / "model.safetensors.index.json", index)
        content.get("text_config", content)["eos_token_id"] = eos[0]
        _write_json(folder / "config.json", config_of(content, geometry, bits, group))
    except OSError as error:
        raise IoError(f"{folder}: cannot be written: {error.strerror or error}") from error
    return Report(str(folder), total, len(shards), geometry.layers, any(kept))
