"""Compiles Metal sources to shared objects that the rig runs, and the rig itself.

    python tests/metal/rig/compile.py kernels.metal kernels.so
    python tests/metal/rig/compile.py --runtime librig.so

Needs clang-19 (LLVM's: GCC has no address spaces and no bfloat arithmetic in C++).
"""

import argparse
import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    __package__ = "rig"
from .rewrite import rewrite
from .tokens import SourceError

RIG = Path(__file__).resolve().parent
SHIM = RIG / "shim"
CLANG = "clang++-19"
RUNTIME = ["fibers.cpp", "threadgroup.cpp", "dispatch.cpp", "bfloat.cpp"]
TIMEOUT_S = 900

# fma where the source says fma and nowhere else; half and bfloat are rounded after each operation as on the GPU.
ARITHMETIC = [
    "-ffp-contract=off",
    "-Xclang",
    "-ffloat16-excess-precision=none",
    "-Xclang",
    "-fbfloat16-excess-precision=none",
]
DIALECT = ["-x", "c++", "-std=c++14", "-nostdinc", "-fno-exceptions", "-fno-rtti"]
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-Wno-unused-const-variable"]


def missing() -> str:
    """Why the rig cannot be used here, or an empty string."""
    return "" if shutil.which(CLANG) else f"{CLANG} is missing: sh tests/metal/install.sh"


def machine_flags() -> list[str]:
    return ["-mavx2", "-mfma", "-mf16c"] if platform.machine() == "x86_64" else []


def call(*command: object, cwd: Path | None = None) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S, cwd=cwd)
    if done.returncode:
        raise SourceError((done.stderr or done.stdout)[-6000:])
    return done.stdout


def preprocess(source: Path, include: Sequence[Path] = ()) -> str:
    folders = [f"-I{folder}" for folder in (SHIM / "include", *include)]
    macros = ["-D__METAL_VERSION__=310", "-D__METAL__=1", "-D__METAL_MACOS__=1"]
    dialect = ["-E", "-x", "c++", "-std=c++14", "-undef", "-nostdinc"]
    return call(CLANG, *dialect, *macros, *folders, source)


def to_cpp(source: Path, include: Sequence[Path] = ()) -> str:
    """The C++ of a Metal file. Raises SourceError."""
    return rewrite(preprocess(source, include), str(SHIM))


def compile_metal(
    source: Path, output: Path, include: Sequence[Path] = (), flags: Sequence[str] = ()
) -> None:
    """A shared object (or, with flags, an object) of one Metal file. Raises SourceError."""
    with tempfile.TemporaryDirectory() as folder:
        cpp = Path(folder) / "kernels.cpp"
        cpp.write_text(to_cpp(source, include))
        mode = [] if "-c" in flags else ["-shared", "-O2"]
        call(
            CLANG, *DIALECT, *ARITHMETIC, *machine_flags(), *WARNINGS, "-fPIC", f"-I{SHIM}",
            f"-I{RIG}", *mode, *flags, cpp, "-o", output,
        )  # fmt: skip


def compile_runtime(output: Path) -> None:
    flags = ["-std=c++20", "-O1", "-fPIC", "-shared", "-pthread"]
    call(CLANG, *flags, *(RIG / name for name in RUNTIME), "-o", output, "-ldl")


def fingerprint(paths: Sequence[Path]) -> str:
    """Changes with the contents of any of the files."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def runtime_sources() -> list[Path]:
    return [*(RIG / name for name in RUNTIME), *RIG.glob("*.h")]


def translator_sources() -> list[Path]:
    """What a compiled kernel depends on besides its own source."""
    return [*SHIM.glob("*.h"), RIG / "kernel_abi.h", RIG / "rewrite.py", RIG / "tokens.py"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, nargs="?")
    parser.add_argument("output", type=Path, nargs="?")
    parser.add_argument("-I", dest="include", type=Path, action="append", default=[])
    parser.add_argument("--runtime", type=Path, help="build the rig's own library here")
    args = parser.parse_args()
    try:
        if args.runtime:
            compile_runtime(args.runtime)
        if args.source and args.output:
            compile_metal(args.source, args.output, args.include)
    except SourceError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
