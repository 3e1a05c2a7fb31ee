"""Builds the rig and the kernels once for all tests below this folder, and keeps them between runs."""

import os
import sys
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))

from rig import compile as rig_compile  # noqa: E402
from rig import gpu  # noqa: E402

KERNEL_FOLDER = ROOT / "metal"


def cache_folder() -> Path:
    """Emptied by no one: a few MB, files named after the contents of what they were made from."""
    base = Path(os.environ.get("FLASH_MOE_RIG_CACHE", tempfile.gettempdir()))
    folder = base / "flash_moe_rig"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def build_once(output: Path, build) -> Path:
    """`build(path)` unless `output` is there; a build that is cut off leaves nothing behind."""
    if not output.exists():
        unfinished = output.with_suffix(f".{os.getpid()}.tmp")
        build(unfinished)
        unfinished.rename(output)
    return output


@pytest.fixture(scope="session")
def rig_cache() -> Path:
    if reason := rig_compile.missing():
        pytest.skip(reason)
    return cache_folder()


@pytest.fixture(scope="session")
def runtime(rig_cache):
    mark = rig_compile.fingerprint(rig_compile.runtime_sources())
    path = build_once(rig_cache / f"librig_{mark}.so", rig_compile.compile_runtime)
    gpu.load_runtime(path)
    return path


class Images:
    """Opened images of metal/*.metal, compiled when first asked for."""

    def __init__(self, cache: Path):
        self.cache = cache
        self.open: dict[str, gpu.Image] = {}

    def __getitem__(self, stem: str) -> gpu.Image:
        if stem not in self.open:
            source = KERNEL_FOLDER / f"{stem}.metal"
            inputs = [source, *KERNEL_FOLDER.glob("*.h"), *rig_compile.translator_sources()]
            path = self.cache / f"{stem}_{rig_compile.fingerprint(inputs)}.so"
            build_once(path, lambda to: rig_compile.compile_metal(source, to))
            self.open[stem] = gpu.Image(path)
        return self.open[stem]


@pytest.fixture(scope="session")
def images(rig_cache, runtime) -> Images:
    return Images(rig_cache)
