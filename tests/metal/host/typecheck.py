"""Compiles host code for the Apple target and lists what it sends.

    python tests/metal/host/typecheck.py out.o file.mm...

ziglang brings clang and the genuine headers of libc, GCD and the Objective-C runtime for aarch64-macos; Metal's come from
metal-cpp (metal_headers.py), Foundation's few from include/. So every message exists with these types, ARC allows every
cast, and the object is Mach-O; nothing is linked against Apple's frameworks and nothing runs.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    __package__ = "host"
from . import build

STRICT = ["-Werror=objc-method-access", "-Werror=incompatible-pointer-types", "-Werror=unguarded-availability"]
# What is sent to Foundation's classes; include/Foundation/Foundation.h declares them.
FOUNDATION = {
    "UTF8String", "localizedDescription", "stringWithUTF8String:", "respondsToSelector:", "new", "alloc", "init", "length",
    "code", "domain", "isEqualToString:",
}  # fmt: skip


def compile_for_apple(host: build.HostBuild, source: Path, output: Path) -> str:
    """Compiles; returns the diagnostics. Raises RuntimeError with them where the compiler refuses."""
    compiler = build.zig()
    if compiler is None:
        raise FileNotFoundError("ziglang is missing: pip install ziglang")
    cache = host.cache / "zig"
    environment = os.environ | {"ZIG_GLOBAL_CACHE_DIR": str(cache), "ZIG_LOCAL_CACHE_DIR": str(cache)}
    command = [
        *compiler, "c++", "-target", "aarch64-macos.14.0", "-std=c++20", "-fobjc-arc", "-fblocks", "-x", "objective-c++",
        "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Wno-nullability-completeness", *STRICT, *host.includes(),
        "-O2", "-c", str(source), "-o", str(output),
    ]  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=build.TIMEOUT_S, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-6000:])
    return done.stderr


def sent_selectors(image: Path) -> set[str]:
    """Every selector that a Mach-O object sends."""
    text = build.call("llvm-objdump-19", "--macho", "--section=__TEXT,__objc_methname", image)
    return {m.group(1) for m in re.finditer(r"^[0-9a-f]{8,}\s+(\S+)\s*$", text, re.M)}


def apple_selectors(host: build.HostBuild) -> set[str]:
    """Those that metal-cpp names, Foundation's included."""
    folder = host.metal_cpp()
    texts = [(folder / "Metal/MTLHeaderBridge.hpp").read_text(), (folder / "Foundation/NSPrivate.hpp").read_text()]
    return {name for text in texts for name in re.findall(r'"([^"]+)"', text)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("source", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    options = parser.parse_args()
    host = build.HostBuild(options.cache)
    print(compile_for_apple(host, options.source, options.output), file=sys.stderr)
    known = apple_selectors(host) | FOUNDATION
    for selector in sorted(sent_selectors(options.output)):
        print(("known   " if selector in known else "UNKNOWN ") + selector)


if __name__ == "__main__":
    main()
