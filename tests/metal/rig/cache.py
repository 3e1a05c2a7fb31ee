"""What was compiled once is kept between runs, under a name made from the contents of its sources."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from . import compile as rig_compile

KERNEL_FOLDER = Path(__file__).resolve().parents[3] / "metal"


def folder() -> Path:
    """$FLASH_MOE_RIG_CACHE, or a folder for temporary files; a few MB that nobody empties."""
    base = Path(os.environ.get("FLASH_MOE_RIG_CACHE", tempfile.gettempdir()))
    path = base / "flash_moe_rig"
    path.mkdir(parents=True, exist_ok=True)
    return path


def build_once(output: Path, build: Callable[[Path], None]) -> Path:
    """`build(path)` unless `output` is there; a build that is cut off leaves nothing behind."""
    if not output.exists():
        unfinished = output.with_suffix(f".{os.getpid()}.tmp")
        build(unfinished)
        unfinished.rename(output)
    return output


def runtime_library() -> Path:
    """The rig's own library."""
    mark = rig_compile.fingerprint(rig_compile.runtime_sources())
    return build_once(folder() / f"librig_{mark}.so", rig_compile.compile_runtime)


def kernel_image(stem: str) -> Path:
    """The shared object of metal/`stem`.metal."""
    source = KERNEL_FOLDER / f"{stem}.metal"
    inputs = [source, *KERNEL_FOLDER.glob("*.h"), *rig_compile.translator_sources()]
    path = folder() / f"{stem}_{rig_compile.fingerprint(inputs)}.so"
    return build_once(path, lambda to: rig_compile.compile_metal(source, to))
