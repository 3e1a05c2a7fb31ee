"""Compiles host code for the Apple target, lists what it sends, and what the whole library leaves to the system.

    python tests/metal/host/typecheck.py out.o file.mm...

ziglang brings clang and the genuine headers of libc, GCD and the Objective-C runtime for aarch64-macos; Metal's come from
metal-cpp (metal_headers.py), Foundation's few from include/. So every message exists with these types, ARC allows every
cast, and the object is Mach-O. LLVM's linker makes the library of all objects, with libSystem by Apple's list of its
symbols; the frameworks and the C++ runtime stay open, and nothing runs.
"""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Sequence
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


OBJECTIVE_C = ["-O2", "-fobjc-arc", "-fblocks", "-x", "objective-c++", "-Wno-nullability-completeness", *STRICT]
CORE = [
    "-O0", "-fno-sanitize=all", "-Werror", "-ffp-contract=off", "-DFLASH_MOE_GCD", '-DFLASH_MOE_VERSION="0"',
    f"-I{build.ROOT / 'tests/cpp/not_apple'}",
]  # fmt: skip
NOT_FOR_APPLE = re.compile(r"_(avx2|avxvnni|avx512|avx512vnni|amx)\.cpp$|/uring_queue\.cpp$|/(bindings|metal|cuda)/")
COMPILED_ALONE = re.compile(r"_(neon|neon_dot|accelerate)\.cpp$")
# Of the C++ and Objective-C runtimes, and of the frameworks; what else is left over must be in libSystem.
RUNTIMES = re.compile(
    r"__ZT?[A-Za-z]*K?St|__ZT[ITVS]*N?K?St|__ZTVN10__cxxabiv1|__Z(dl|da|nw|na)|___cxa_|___dynamic_cast$|___gxx_personality_v0$"
    r"|__Unwind_|___stack_chk_|__tlv_|___dso_handle$|_objc_|__objc_|_OBJC_CLASS_\$_(NS|MTL)\w+$|_MTLCreateSystemDefaultDevice$"
    r"|___isPlatformVersionAtLeast$|__NSConcrete|___CFConstantStringClassReference$"
)


def compile_for_apple(host: build.HostBuild, source: Path, output: Path, flags: Sequence[str] = OBJECTIVE_C) -> str:
    """Compiles; returns the diagnostics. Raises RuntimeError with them where the compiler refuses."""
    compiler = build.zig()
    if compiler is None:
        raise FileNotFoundError("ziglang is missing: pip install ziglang")
    cache = host.cache / "zig"
    environment = os.environ | {"ZIG_GLOBAL_CACHE_DIR": str(cache), "ZIG_LOCAL_CACHE_DIR": str(cache)}
    command = [
        *compiler, "c++", "-target", "aarch64-macos.14.0", "-std=c++20", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", *flags,
        *host.includes(), "-c", str(source), "-o", str(output),
    ]  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=build.TIMEOUT_S, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-6000:])
    return done.stderr


def backend_object(host: build.HostBuild) -> Path:
    """The Metal backend as a Mach-O object."""
    unit, version = host.backend_unit()
    return build.once(host.cache / f"backend_apple_{version}.o", lambda to: compile_for_apple(host, unit, to))


def sent_selectors(image: Path) -> set[str]:
    """Every selector that a Mach-O object sends."""
    text = build.call("llvm-objdump-19", "--macho", "--section=__TEXT,__objc_methname", image)
    return {m.group(1) for m in re.finditer(r"^[0-9a-f]{8,}\s+(\S+)\s*$", text, re.M)}


def apple_selectors(host: build.HostBuild) -> set[str]:
    """Those that metal-cpp names, Foundation's included."""
    folder = host.metal_cpp()
    texts = [(folder / "Metal/MTLHeaderBridge.hpp").read_text(), (folder / "Foundation/NSPrivate.hpp").read_text()]
    return {name for text in texts for name in re.findall(r'"([^"]+)"', text)}


def core_objects(host: build.HostBuild) -> list[Path]:
    """Every source of csrc that an Apple system compiles, but for the bindings and the Metal backend; a folder is a unit."""
    folder = build.ROOT / "csrc"
    groups: dict[str, list[Path]] = {"cuda_missing": [folder / "backend/cuda/missing.cpp"]}
    for path in sorted(folder.rglob("*.cpp")):
        if not NOT_FOR_APPLE.search(path.as_posix()):
            alone = COMPILED_ALONE.search(path.name)
            groups.setdefault(path.stem if alone else path.parent.name, []).append(path)
    version = build.mark([*folder.rglob("*.cpp"), *folder.rglob("*.h")], *CORE)
    texts = host.embedded_kernels()
    objects = [build.once(texts.with_suffix(".apple.o"), lambda to: compile_for_apple(host, texts, to, CORE))]
    for name, sources in groups.items():
        unit = host.cache / f"apple_{name}.cpp"
        unit.write_text("".join(f'#include "{path.relative_to(folder)}"\n' for path in sources))
        target = host.cache / f"apple_{name}_{version}.o"
        objects.append(build.once(target, lambda to, unit=unit: compile_for_apple(host, unit, to, CORE)))
    return objects


def left_to_the_system(objects: Sequence[Path]) -> set[str]:
    """Symbols that the objects use and none of them defines."""

    def symbols(*which: str) -> set[str]:
        return set(build.call("llvm-nm-19", "--no-sort", "--just-symbol-name", "--quiet", *which, *objects).split())

    return {name for name in symbols("--undefined-only") - symbols("--defined-only", "--extern-only") if name[0] == "_"}


def system_stub() -> str:
    """What libSystem exports: ziglang's copy of Apple's list for linkers."""
    said = build.call(*build.zig(), "env")
    folder = re.search(r'lib_dir"?\s*[=:]\s*"([^"]+)"', said)[1]
    return (Path(folder) / "libc/darwin/libSystem.tbd").read_text()


def system_symbols() -> set[str]:
    return set(re.findall(r"[\w$]+", system_stub()))


def link(objects: Sequence[Path], folder: Path) -> Path:
    """The dynamic library of the objects, by LLVM's Mach-O linker. Symbols of RUNTIMES may stay open, as there is no SDK.

    Raises RuntimeError with the linker's words where any other is neither defined nor libSystem's.
    """
    stub = folder / "libSystem.tbd"
    # Architectures newer than the linker's list of them.
    stub.write_text(re.sub(r",\s*\]", " ]", re.sub(r"arm64e\.x1-\w+\s*,?\s*", "", system_stub())))
    left_open = sorted(name for name in left_to_the_system(objects) if RUNTIMES.match(name))
    library = folder / "libflash_moe.dylib"
    build.call(
        "ld64.lld-19", "-arch", "arm64", "-platform_version", "macos", "14.0", "14.0", "-dylib",
        "-install_name", "@rpath/libflash_moe.dylib", *(word for name in left_open for word in ("-U", name)),
        "-o", library, *objects, stub,
    )  # fmt: skip
    return library


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
