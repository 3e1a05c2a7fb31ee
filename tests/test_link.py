"""Other projects link the installed wheel: a C++ program, and an extension beside flash_moe."""

import subprocess
import sys
from pathlib import Path

import pytest
from toolbox import run, tool

import flash_moe

LINK = Path(__file__).parent / "link"
CMAKE_DIR = Path(flash_moe.__file__).parent / "lib" / "cmake" / "flash_moe"

pytestmark = pytest.mark.skipif(
    not CMAKE_DIR.exists(), reason="flash_moe runs from a build folder, not from an installed wheel"
)


def build(project: str, folder: Path, *defines: str) -> Path:
    run(
        tool("cmake"), "-S", LINK / project, "-B", folder, "-G", "Ninja",
        "-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-O0", "-DCMAKE_UNITY_BUILD=ON",
        f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", f"-Dflash_moe_DIR={CMAKE_DIR}", *defines,
    )  # fmt: skip
    run(tool("cmake"), "--build", folder)
    return folder


@pytest.fixture(scope="module")
def greedy(tmp_path_factory) -> Path:
    return build("cpp", tmp_path_factory.mktemp("greedy")) / "greedy"


def test_a_program_generates_the_tokens_that_python_does(greedy: Path):
    model = flash_moe.demo_model()
    with flash_moe.Engine(model, threads=1) as engine:
        prompt = engine.tokenizer.encode("Once upon a time")
        want = engine.generate(prompt, max_tokens=12, temperature=0).token_ids
    out = run(greedy, model, "12", *map(str, prompt))
    assert [int(word) for word in out.split()] == list(want)


def test_a_program_catches_the_library_s_errors(greedy: Path, tmp_path: Path):
    done = subprocess.run(
        [greedy, tmp_path / "none", "1", "1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert str(tmp_path / "none") in done.stderr


def test_an_extension_links_the_library_that_flash_moe_uses(tmp_path: Path):
    nanobind = run(sys.executable, "-m", "nanobind", "--cmake_dir").strip()
    folder = build(
        "nanobind", tmp_path, f"-Dnanobind_DIR={nanobind}", f"-DPython_EXECUTABLE={sys.executable}"
    )
    script = (
        f"import sys; sys.path.insert(0, {str(folder)!r})\n"
        "import flash_moe, vocabulary\n"
        "print(vocabulary.vocabulary(str(flash_moe.demo_model())))\n"
        "print(vocabulary.error_of('/no/such/folder'))\n"
        "maps = open('/proc/self/maps').read() if sys.platform == 'linux' else ''\n"
        "print(len({line.split()[-1] for line in maps.splitlines() if 'libflash_moe' in line}))\n"
    )
    vocabulary, error, copies = run(sys.executable, "-c", script).splitlines()
    with flash_moe.Engine(flash_moe.demo_model(), threads=1) as engine:
        assert int(vocabulary) == engine.info.vocab
    assert "/no/such/folder" in error
    if sys.platform == "linux":
        assert copies == "1"
