"""The C++ tests: built with warnings as errors, run by ctest."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS = Path(sys.executable).parent


def tool(name: str) -> str:
    """The tool beside this Python, else the one on the PATH."""
    found = shutil.which(name, path=f"{TOOLS}{os.pathsep}{os.environ['PATH']}")
    assert found, f"{name} is missing: pip install '.[test]'"
    return found


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("native")
    configure = [
        tool("cmake"), "-S", ROOT, "-B", folder, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
        "-DFLASH_MOE_TESTS=ON", "-DFLASH_MOE_PYTHON=OFF", "-DFLASH_MOE_WERROR=ON",
        "-DCMAKE_UNITY_BUILD=ON", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
    ]  # fmt: skip
    for command in (configure, [tool("cmake"), "--build", folder]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    return folder


def test_every_native_test_passes(build: Path) -> None:
    command = [tool("ctest"), "--test-dir", build, "--output-on-failure", "--no-tests=error"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:]
