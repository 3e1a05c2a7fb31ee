"""What this machine is, and two short measurements: memory bandwidth and drive reads."""

from __future__ import annotations

import io
import mmap
import os
import platform
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from .errors import IoError

PROBE_BYTES = 256 << 20
PROBE_READ_BYTES = 4 << 20
PROBE_DEPTH = 8
_ALIGNMENT = 4096
_ISA_FLAGS = (
    "avx2",
    "fma",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "amx_int8",
    "asimd",
    "asimddp",
    "i8mm",
)


def cores() -> int:
    """Returns the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu() -> tuple[str, list[str]]:
    name = platform.processor() or platform.machine()
    flags: list[str] = []
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return name, flags
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        elif key.strip() in ("flags", "Features"):
            known = set(value.split())
            flags = [flag for flag in _ISA_FLAGS if flag in known]
            break
    return name, flags


def memory_bytes() -> tuple[int, int | None]:
    """Returns physical memory and, where the system tells it, what is available of it."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return total, int(line.split()[1]) * 1024
    except OSError:
        pass
    return total, None


def drive(path: Path) -> str:
    """Returns the block device that holds a path and its kind, "" where the system is silent."""
    device = path.stat().st_dev
    link = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    if not link.exists():
        return ""
    block = link.resolve()
    queue = block / "queue" if (block / "queue").exists() else block.parent / "queue"
    try:
        rotates = (queue / "rotational").read_text().strip() == "1"
    except OSError:
        return block.name
    return f"{block.name} ({'disk' if rotates else 'SSD'})"


def describe() -> dict[str, Any]:
    """Returns the machine as JSON data."""
    name, flags = _cpu()
    total, available = memory_bytes()
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": name,
        "isa": flags,
        "cores": cores(),
        "memory_bytes": total,
        "memory_available_bytes": available,
    }


def measure_memory(count: int = PROBE_BYTES) -> float:
    """Returns bytes a second of reading memory with all cores; takes about a tenth of a second."""
    threads = cores()
    data = np.ones(count // 4, dtype=np.float32)
    parts = np.array_split(data, threads)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(3):
            started = time.perf_counter()
            list(pool.map(np.max, parts))
            best = max(best, data.nbytes / (time.perf_counter() - started))
    return best


def largest_file(folder: Path) -> Path:
    """Returns the largest file of a folder: weights.

    Raises:
        IoError: when there is none.
    """
    files = [path for path in folder.iterdir() if path.is_file()]
    if not files:
        raise IoError(f"{folder}: holds no file to read from")
    return max(files, key=lambda path: path.stat().st_size)


def measure_drive(path: Path, *, seconds: float = 1.0) -> dict[str, Any]:
    """Reads pieces of a file at random places, several at a time, past the page cache if possible.

    Args:
        path: a file; the larger, the truer.
        seconds: after it no reader starts another piece; each reads one.

    Returns:
        bytes_per_second, read_bytes (of one piece), depth, direct (whether the page cache was
        passed by).

    Raises:
        IoError: when it cannot be read or is empty.
    """
    try:
        size = path.stat().st_size
        direct = reads_direct(path)
        piece = min(PROBE_READ_BYTES, max(_ALIGNMENT, size // _ALIGNMENT * _ALIGNMENT))
        places = max(1, size // piece)
        rng = random.Random(1)
        order = [rng.randrange(places) * piece for _ in range(4096)]
        started = time.perf_counter()

        def read(worker: int) -> int:
            done = 0
            with _open(path, direct=direct) as file, mmap.mmap(-1, piece) as buffer:
                for offset in order[worker::PROBE_DEPTH]:
                    file.seek(offset)
                    done += file.readinto(buffer)
                    if time.perf_counter() - started > seconds or done * PROBE_DEPTH > 4 * size:
                        break
            return done

        with ThreadPoolExecutor(PROBE_DEPTH) as pool:
            total = sum(pool.map(read, range(PROBE_DEPTH)))
    except OSError as error:
        raise IoError(f"{path}: cannot be read: {error.strerror}") from error
    if total == 0:
        raise IoError(f"{path}: cannot be measured: it is empty")
    return {
        "bytes_per_second": total / (time.perf_counter() - started),
        "read_bytes": piece,
        "depth": PROBE_DEPTH,
        "direct": direct,
    }


def _open(path: Path, *, direct: bool) -> io.FileIO:
    extra = os.O_DIRECT if direct else 0
    return io.FileIO(path, opener=lambda name, flags: os.open(name, flags | extra))


def reads_direct(path: Path) -> bool:
    """True when the system and the file system have reads past the page cache."""
    if not hasattr(os, "O_DIRECT"):
        return False
    try:
        with _open(path, direct=True) as file, mmap.mmap(-1, _ALIGNMENT) as buffer:
            file.readinto(buffer)
    except OSError:
        return False
    return True
