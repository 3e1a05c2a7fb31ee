"""Builds the rig and the kernels once for all tests below this folder, and keeps them between runs."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from rig import cache, gpu
from rig import compile as rig_compile


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """With FLASH_MOE_REQUIRE_RIG=1 a test that a missing package skips has failed; a missing GPU may still skip."""
    report = yield
    if report.skipped and os.environ.get("FLASH_MOE_REQUIRE_RIG") == "1" and item.path.parent.name != "device":
        report.outcome = "failed"
        report.longrepr = f"FLASH_MOE_REQUIRE_RIG=1, and {report.longrepr[-1]}"
    return report


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
