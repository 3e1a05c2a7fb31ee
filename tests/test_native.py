"""The C++ tests and fuzzers: built with warnings as errors, run by ctest."""

from pathlib import Path

import pytest
from toolbox import run, tool

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("native")
    run(
        tool("cmake"), "-S", ROOT, "-B", folder, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
        "-DFLASH_MOE_TESTS=ON", "-DFLASH_MOE_PYTHON=OFF", "-DFLASH_MOE_WERROR=ON",
        "-DCMAKE_CXX_FLAGS_RELEASE=-O1 -DNDEBUG",  # half the time; kernels keep their flags
        "-DCMAKE_UNITY_BUILD=ON", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
    )  # fmt: skip
    run(tool("cmake"), "--build", folder)
    return folder


def test_every_native_test_passes(build: Path) -> None:
    run(tool("ctest"), "--test-dir", build, "--output-on-failure", "--no-tests=error")
