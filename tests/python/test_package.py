"""What the package ships beside code: types that hold, and a stub that is the core's own."""

import os
import subprocess
import sys
from pathlib import Path

import flash_moe
from flash_moe import _core

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "python" / "flash_moe"


def run(*command):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


def test_the_stub_is_what_nanobind_writes(tmp_path):
    path = tmp_path / "_core.pyi"
    done = run("-m", "nanobind.stubgen", "-q", "-m", "flash_moe._core", "-o", path)
    assert done.returncode == 0, done.stderr
    assert path.read_text() == (SOURCE / "_core.pyi").read_text(), (
        "run: python -m nanobind.stubgen -m flash_moe._core -o python/flash_moe/_core.pyi"
    )


def test_types_are_strict():
    done = run("-m", "mypy")
    assert done.returncode == 0, done.stdout


def test_the_installed_package_is_typed_and_of_one_version():
    folder = Path(flash_moe.__file__).parent
    assert (folder / "py.typed").is_file()
    assert (folder / "_core.pyi").read_text() == (SOURCE / "_core.pyi").read_text()
    assert _core.__version__ == flash_moe.__version__
