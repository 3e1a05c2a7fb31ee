"""Programs of kernels under a sanitizer, which replay dispatches written by gpu.Dispatch.write."""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .compile import CLANG, RIG, call, compile_metal

TIMEOUT_S = 300
FOUND = 66  # exit code of a sanitizer's finding


@dataclass
class Finding:
    code: int  # 0 clean, 2 the rig, FOUND the sanitizer
    text: str


def build(
    sanitizer: str, source: Path, include: Sequence[Path], runtime: Path, program: Path
) -> None:
    """`sanitizer`: thread or address. Only the kernels are instrumented: the rig's library `runtime` tells the
    sanitizer of its switches itself."""
    flag = f"-fsanitize={sanitizer}"
    kernels = program.with_suffix(".o")
    flags = ["-c", "-O1", "-gline-tables-only", "-DMSL_ADDRESS_SPACES=0", flag]
    compile_metal(source, kernels, include, flags)
    link = [
        flag,
        "-std=c++20",
        RIG / "replay.cpp",
        kernels,
        runtime,
        f"-Wl,-rpath,{runtime.parent}",
    ]
    call(CLANG, *link, "-o", program)


def replay(program: Path, files: Sequence[Path]) -> Finding:
    options = f"exitcode={FOUND}:halt_on_error=1:abort_on_error=0:detect_leaks=0"
    environment = dict(os.environ, TSAN_OPTIONS=options, ASAN_OPTIONS=options)
    done = subprocess.run(
        [program, *files], capture_output=True, text=True, timeout=TIMEOUT_S, env=environment
    )
    return Finding(done.returncode, done.stdout + done.stderr)
