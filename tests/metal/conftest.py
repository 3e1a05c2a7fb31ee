# ruff: noqa: E501 -- tables and sources in strings
"""Builds the rig and the kernels once for all tests below this folder, and keeps them between runs."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from rig import cache, gpu
from rig import compile as rig_compile


@pytest.fixture(scope="session")
def rig_cache() -> Path:
    """Where compiled things are kept; skips without the compiler."""
    if reason := rig_compile.missing():
        pytest.skip(reason)
    return cache.folder()


@pytest.fixture(scope="session")
def runtime(rig_cache):
    path = cache.runtime_library()
    gpu.load_runtime(path)
    return path


class Images:
    """Opened images of metal/*.metal, compiled when first asked for."""

    def __init__(self):
        self.open: dict[str, gpu.Image] = {}

    def __getitem__(self, stem: str) -> gpu.Image:
        if stem not in self.open:
            self.open[stem] = gpu.Image(cache.kernel_image(stem))
        return self.open[stem]


@pytest.fixture(scope="session")
def images(runtime) -> Images:
    return Images()
