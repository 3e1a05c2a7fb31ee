"""Builds what the host tests need, once, and keeps it in the rig's cache: Apple's headers, the fake Metal, programs.

Objective-C on Linux is clang-19 with the gnustep-2.0 ABI and ARC over objc_runtime.cpp. For the Apple target it is the same
sources through ziglang. metal-cpp comes out of the mlx-metal wheel, which is downloaded and never committed.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from rig import compile as rig_compile

from . import metal_headers

HOST = Path(__file__).resolve().parent
ROOT = HOST.parents[2]
CLANG = "clang++-19"
TIMEOUT_S = 1800
FAKE_SOURCES = ["objc_runtime.cpp", "gcd.cpp", "fake_metal_device.cpp", "fake_metal_commands.cpp"]
OBJC_FLAGS = ["-std=c++20", "-fobjc-runtime=gnustep-2.0", "-fobjc-arc", "-fblocks", "-fPIC"]
WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror", "-Wno-nullability-completeness"]
GCD_FLAGS = ["-DFLASH_MOE_GCD"]
BACKEND = ROOT / "csrc/backend/metal"
EMULATOR_COMPILER = f"{sys.executable} {HOST.parent / 'rig/compile.py'}"


def missing() -> str:
    """Why the host tests cannot run here, or an empty string."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return "the fake Metal's message send is written for x86-64 Linux"
    if not Path("/usr/include/Block.h").exists() and not list(Path("/usr/lib").glob("*/libBlocksRuntime.so")):
        return "libblocksruntime-dev is missing: sh tests/metal/install.sh"
    return rig_compile.missing()


def call(*command: object, **options: object) -> str:
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=TIMEOUT_S, check=False, **options
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}:\n{(done.stderr or done.stdout)[-6000:]}")
    return done.stdout


def mark(paths: Iterable[Path], *words: str) -> str:
    """Changes with the contents of any of the files."""
    digest = hashlib.sha256(" ".join(words).encode())
    for path in sorted(paths):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def once(output: Path, build) -> Path:
    """`build(path)` unless `output` is there; a build that is cut off leaves nothing behind."""
    if not output.exists():
        unfinished = output.with_name(f"{output.name}.{os.getpid()}")
        build(unfinished)
        unfinished.rename(output)
    return output


def fnv1a(text: str) -> int:
    """The mark under which the fake device keeps a source's image (fake_metal_device.cpp)."""
    value = 14695981039346656037
    for byte in text.encode():
        value = ((value ^ byte) * 1099511628211) & 0xFFFFFFFFFFFFFFFF
    return value


class HostBuild:
    """Everything in one folder, named after what it was made from."""

    def __init__(self, cache: Path):
        self.cache = cache

    def metal_cpp(self) -> Path:
        """The folder with metal-cpp's Metal/ and Foundation/, from FLASH_MOE_METAL_CPP or the wheel."""
        given = os.environ.get("FLASH_MOE_METAL_CPP")
        return Path(given) if given else once(self.cache / "metal_cpp", self._unpack_wheel) / "mlx/include/metal_cpp"

    def _unpack_wheel(self, folder: Path) -> None:
        wheels = folder.with_name("wheels")
        wheels.mkdir(exist_ok=True)
        call(
            sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:",
            "--platform", "macosx_14_0_arm64", "-d", wheels, "mlx-metal",
        )  # fmt: skip
        wheel = sorted(wheels.glob("mlx_metal-*.whl"))[-1]
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [n for n in archive.namelist() if n.startswith("mlx/include/metal_cpp/")])
        wheel.unlink()

    def headers(self) -> Path:
        """An include folder with Metal/Metal.h."""
        source = HOST / "metal_headers.py"

        def write(folder: Path) -> None:
            metal_headers.write_metal_header(self.metal_cpp(), folder)

        return once(self.cache / f"headers_{mark([source])}", write)

    def rig(self) -> Path:
        """The emulator's library."""
        sources = rig_compile.runtime_sources()
        return once(self.cache / f"librig_{rig_compile.fingerprint(sources)}.so", rig_compile.compile_runtime)

    def fake_metal(self) -> Path:
        """The fake device, its Objective-C runtime and libdispatch, as one library."""
        sources = [HOST / name for name in FAKE_SOURCES]
        inputs = [*sources, *HOST.glob("*.h"), HOST.parent / "rig/gpu.h"]
        rig = self.rig()

        def build(output: Path) -> None:
            objects = []
            for source in sources:
                objects.append(output.with_name(f"{source.stem}.{os.getpid()}.o"))
                call(CLANG, "-std=c++20", "-O1", "-fblocks", "-fPIC", "-Wall", "-Wextra", "-Werror", "-c", source,
                     "-o", objects[-1])  # fmt: skip
            call(CLANG, "-shared", "-o", output, *objects, rig, f"-Wl,-rpath,{rig.parent}", "-lBlocksRuntime", "-pthread")
            for path in objects:
                path.unlink()

        return once(self.cache / f"libfakemetal_{mark(inputs, rig.name)}.so", build)

    def includes(self) -> list[str]:
        return [f"-I{folder}" for folder in (HOST / "include", self.headers(), ROOT / "csrc", ROOT / "csrc/include", ROOT)]

    def link_flags(self) -> list[object]:
        fake, rig = self.fake_metal(), self.rig()
        return [fake, rig, f"-Wl,-rpath,{fake.parent}", "-lBlocksRuntime", "-pthread"]

    def program(self, name: str) -> Path:
        """programs/name.mm as an executable."""
        source = HOST / "programs" / f"{name}.mm"
        fake = self.fake_metal()

        def build(output: Path) -> None:
            call(CLANG, *OBJC_FLAGS, *WARNINGS, "-O1", *self.includes(), source, *self.link_flags(), "-o", output)

        return once(self.cache / f"{name}_{mark([source], fake.name)}", build)

    def embedded_kernels(self) -> Path:
        """The C++ file that carries the kernels' texts."""
        script = ROOT / "cmake/embed_metal.cmake"
        inputs = [script, *(ROOT / "metal").glob("*.metal"), *(ROOT / "metal").glob("*.h")]

        def write(output: Path) -> None:
            call("cmake", f"-DSOURCE_DIR={ROOT / 'metal'}", f"-DOUTPUT={output}", "-P", script)

        return once(self.cache / f"metal_kernels_{mark(inputs)}.cpp", write)

    def backend_unit(self) -> tuple[Path, str]:
        """One source that includes every .mm of the backend, and the mark of all it depends on."""
        sources = sorted(BACKEND.glob("*.mm"))
        unit = self.cache / "backend_unit.mm"
        text = "".join(f'#import "backend/metal/{path.name}"\n' for path in sources)
        if not unit.exists() or unit.read_text() != text:
            unit.write_text(text)
        headers = [*BACKEND.glob("*.h"), *(ROOT / "csrc/backend").glob("*.h"), *(ROOT / "csrc/base").glob("*.h")]
        return unit, mark([*sources, *headers, ROOT / "metal/args.h", *HOST.glob("include/*/*.h")])

    def backend_objects(self) -> list[Path]:
        """The Metal backend compiled for this machine, and the kernels' texts."""
        unit, version = self.backend_unit()

        def build(output: Path) -> None:
            call(CLANG, *OBJC_FLAGS, *WARNINGS, "-O1", "-fvisibility=hidden", *self.includes(), "-c", unit, "-o", output)

        texts = self.embedded_kernels()

        def build_texts(output: Path) -> None:
            call(CLANG, "-std=c++20", "-fPIC", *self.includes(), "-c", texts, "-o", output)

        return [
            once(self.cache / f"backend_{version}.o", build),
            once(self.cache / f"{texts.stem}.o", build_texts),
        ]

    def gcd_queue(self) -> Path:
        """The read queue of Apple systems, over the fake libdispatch."""
        folder = ROOT / "csrc/io"
        unit = self.cache / "gcd_unit.cpp"
        text = '#include "io/gcd_queue.cpp"\n#include "io/read_queue.cpp"\n'
        if not unit.exists() or unit.read_text() != text:
            unit.write_text(text)

        def build(output: Path) -> None:
            call(CLANG, "-std=c++20", "-O1", "-fPIC", *WARNINGS, *GCD_FLAGS, *self.includes(), "-c", unit, "-o", output)

        inputs = [folder / "gcd_queue.cpp", folder / "read_queue.cpp", *folder.glob("*.h"), *HOST.glob("include/dispatch/*.h")]
        return once(self.cache / f"gcd_queue_{mark(inputs)}.o", build)

    def native_test(self, name: str) -> Path:
        """tests/cpp/`name` with what Apple systems have in the place of Linux's."""
        folder = ROOT / "tests/cpp"
        source = folder / name
        objects = [self.gcd_queue(), *self.core_objects()]

        def build(output: Path) -> None:
            call(CLANG, "-std=c++20", "-O1", *GCD_FLAGS, *self.includes(), f"-I{folder}", source, "-Wl,-z,muldefs", *objects,
                 *self.link_flags(), "-o", output)  # fmt: skip

        return once(self.cache / f"{source.stem}_{mark([source, *folder.glob('*.h'), *objects], self.fake_metal().name)}", build)

    def library(self, core_objects: Sequence[Path], target: Path) -> None:
        """libflash_moe.so with the Metal backend and the GCD queue in the places of their stubs."""
        call(
            CLANG, "-shared", "-o", target, "-Wl,-z,muldefs", *self.backend_objects(), self.gcd_queue(), *core_objects,
            *self.link_flags(),
        )  # fmt: skip

    def core_objects(self) -> list[Path]:
        """Objects of csrc: of the build folder that FLASH_MOE_BUILD names, else of one made in the cache (minutes)."""
        given = os.environ.get("FLASH_MOE_BUILD")
        folder = Path(given) if given else self.cache / "core"
        if not given:
            options = ["-DFLASH_MOE_PYTHON=OFF", "-DCMAKE_UNITY_BUILD=ON", "-DCMAKE_CXX_FLAGS_RELEASE=-O1"]
            call("cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", *options)
            call("cmake", "--build", folder, "--target", "flash_moe_objects", "flash_moe_cold")
        return sorted((folder / "CMakeFiles").glob("flash_moe_*.dir/**/*.o"))

    def package(self) -> Path:
        """A folder to put on PYTHONPATH: the installed flash_moe with a library that has the Metal backend."""
        import flash_moe

        objects = self.core_objects()
        installed = Path(flash_moe.__file__).parent
        inputs = [*objects, *self.backend_objects(), self.gcd_queue(), installed / "_core.pyi"]

        def build(output: Path) -> None:
            target = output / "flash_moe"
            shutil.copytree(installed, target, ignore=shutil.ignore_patterns("__pycache__"))
            library = target / "lib/libflash_moe.so"
            library.unlink()  # it may be a link to the installed one
            self.library(objects, library)

        return once(self.cache / f"site_{mark(inputs, self.fake_metal().name)}", build)

    def kernel_images(self) -> dict[str, Path]:
        """Each file of metal/ compiled by the rig, under the names that the kernels' own tests use."""
        images = {}
        for source in sorted((ROOT / "metal").glob("*.metal")):
            inputs = [source, *source.parent.glob("*.h"), *rig_compile.translator_sources()]
            output = self.cache / f"{source.stem}_{rig_compile.fingerprint(inputs)}.so"
            images[source.name] = once(output, lambda to, source=source: rig_compile.compile_metal(source, to))
        return images

    def embedded_texts(self) -> dict[str, str]:
        """File name -> the text that the library carries."""
        written = self.embedded_kernels().read_text()
        entries = re.findall(r'^    \{"(\w+\.metal)",(.*?)\},$', written, re.S | re.M)
        return {name: "".join(re.findall(r'R"metal\((.*?)\)metal"', body, re.S)) for name, body in entries}

    def seed_images(self) -> None:
        """Lays the compiled kernels where the fake device looks for images of the texts."""
        folder = self.cache / "images"
        folder.mkdir(exist_ok=True)
        texts = self.embedded_texts()
        for name, image in self.kernel_images().items():
            once(folder / f"{fnv1a(texts[name])}.so", lambda to, image=image: shutil.copy(image, to))

    def environment(self, **settings: str) -> dict[str, str]:
        """What a program over the fake Metal needs in its environment."""
        images = self.cache / "images"
        images.mkdir(exist_ok=True)
        return os.environ | {"FAKE_METAL_COMPILER": EMULATOR_COMPILER, "FAKE_METAL_CACHE": str(images)} | settings


def zig() -> list[str] | None:
    """The command of the compiler for the Apple target, if ziglang is installed."""
    found = subprocess.run([sys.executable, "-c", "import ziglang"], capture_output=True, check=False)
    if found.returncode == 0:
        return [sys.executable, "-m", "ziglang"]
    return ["zig"] if shutil.which("zig") else None
