"""The rig from Python: images of kernels, guarded buffers as numpy arrays, dispatches.

    image = Image(path)
    y = np.zeros(64, np.float32)
    image.run("matvec", grid=(8,), threads=(64,), constants={0: np.uint32(...)}, data=..., y=y, ...)

Buffers are given by the names that the kernel's parameters have. Each is copied into memory that ends
at an unmapped page, and what the kernel wrote is copied back.
"""

import ctypes as C
import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

BUFFERS = 31
ORDERS = ("forward", "reverse", "shuffled")


class GpuError(Exception):
    """A kernel broke a rule, or a dispatch was refused."""


class _Size(C.Structure):
    _fields_ = [("x", C.c_uint32), ("y", C.c_uint32), ("z", C.c_uint32)]


class _Param(C.Structure):
    _fields_ = [("attribute", C.c_char_p), ("name", C.c_char_p)]


class _Constant(C.Structure):
    _fields_ = [("index", C.c_uint32), ("bytes", C.c_uint32), ("value", C.c_void_p)]


class _DispatchArgs(C.Structure):
    _fields_ = [
        ("kernel", C.c_void_p),
        ("grid", _Size),
        ("grid_is_threads", C.c_int),
        ("threads_per_threadgroup", _Size),
        ("buffers", C.c_void_p * BUFFERS),
        ("buffer_bytes", C.c_uint64 * BUFFERS),
        ("threadgroup_bytes", C.c_uint32 * BUFFERS),
        ("constants", C.POINTER(_Constant)),
        ("constant_count", C.c_uint32),
        ("order", C.c_int),
        ("seed", C.c_uint32),
    ]


class _Result(C.Structure):
    _fields_ = [
        ("simd_operations", C.c_uint64),
        ("barriers", C.c_uint64),
        ("threadgroup_bytes", C.c_uint32),
        ("error", C.c_char * 512),
    ]


_library: C.CDLL | None = None


def load_runtime(path: Path) -> None:
    """Loads the rig's library; once, before the first Image."""
    global _library
    if _library is not None:
        return
    lib = C.CDLL(str(path), mode=C.RTLD_GLOBAL)
    lib.gpu_image_open.restype = C.c_void_p
    lib.gpu_image_open.argtypes = [C.c_char_p, C.c_char_p, C.c_size_t]
    lib.gpu_image_kernel_count.argtypes = [C.c_void_p]
    lib.gpu_image_kernel.restype = C.c_void_p
    lib.gpu_image_kernel.argtypes = [C.c_void_p, C.c_uint32]
    lib.gpu_kernel_name.restype = C.c_char_p
    lib.gpu_kernel_name.argtypes = [C.c_void_p]
    lib.gpu_kernel_param_count.argtypes = [C.c_void_p]
    lib.gpu_kernel_param.restype = _Param
    lib.gpu_kernel_param.argtypes = [C.c_void_p, C.c_uint32]
    lib.gpu_dispatch.argtypes = [C.POINTER(_DispatchArgs), C.POINTER(_Result)]
    lib.gpu_allocate.restype = C.c_void_p
    lib.gpu_allocate.argtypes = [C.c_size_t]
    lib.gpu_free.argtypes = [C.c_void_p, C.c_size_t]
    _library = lib


def runtime() -> C.CDLL:
    assert _library is not None, "load_runtime comes first"
    return _library


@dataclass
class Dispatch:
    """One dispatch, complete: it can be run here or written to a file for a sanitizer's build."""

    kernel: str
    grid: tuple[int, ...]
    threads: tuple[int, ...]
    buffers: dict[int, np.ndarray]
    constants: dict[int, np.ndarray] = field(default_factory=dict)
    grid_is_threads: bool = False

    def write(self, path: Path, order: str = "forward") -> None:
        """The format that rig/replay.cpp reads."""
        name = self.kernel.encode()
        out = [struct.pack("<I", len(name)), name]
        sizes = [*_three(self.grid), *_three(self.threads), int(self.grid_is_threads)]
        out.append(struct.pack("<8I", *sizes, ORDERS.index(order)))
        for table in (self.constants, self.buffers):
            out.append(struct.pack("<I", len(table)))
            for index, array in table.items():
                out.append(struct.pack("<IQ", index, array.nbytes) + array.tobytes())
        path.write_bytes(b"".join(out))


def _three(sizes: tuple[int, ...]) -> tuple[int, int, int]:
    return (*sizes, 1, 1)[:3]  # type: ignore[return-value]


class Guarded:
    """A copy of an array before an unmapped page."""

    def __init__(self, array: np.ndarray):
        self.bytes = array.nbytes
        self.address = runtime().gpu_allocate(self.bytes)
        C.memmove(self.address, array.ctypes.data, self.bytes)

    def copy_to(self, array: np.ndarray) -> None:
        C.memmove(array.ctypes.data, self.address, self.bytes)

    def free(self) -> None:
        runtime().gpu_free(self.address, self.bytes)


class Image:
    """The kernels of one shared object."""

    def __init__(self, path: Path):
        error = C.create_string_buffer(512)
        lib = runtime()
        self.handle = lib.gpu_image_open(str(path).encode(), error, 512)
        if not self.handle:
            raise GpuError(error.value.decode())
        self.kernels: dict[str, int] = {}
        self.parameters: dict[str, list[tuple[str, str]]] = {}  # (attribute, name)
        for i in range(lib.gpu_image_kernel_count(self.handle)):
            kernel = lib.gpu_image_kernel(self.handle, i)
            name = lib.gpu_kernel_name(kernel).decode()
            self.kernels[name] = kernel
            params = [
                lib.gpu_kernel_param(kernel, p) for p in range(lib.gpu_kernel_param_count(kernel))
            ]
            self.parameters[name] = [(p.attribute.decode(), p.name.decode()) for p in params]

    def buffer_indices(self, kernel: str) -> dict[str, int]:
        return {
            name: int(attribute[7:-1])
            for attribute, name in self.parameters[kernel]
            if attribute.startswith("buffer(")
        }

    def dispatch(self, kernel, grid, threads, constants=None, grid_is_threads=False, **buffers):
        """A Dispatch whose buffers are given by parameter name; scalars become arrays of one."""
        indices = self.buffer_indices(kernel)
        unknown = set(buffers) - set(indices)
        assert not unknown, f"{kernel} has no buffers {unknown}"
        arrays = {indices[name]: np.atleast_1d(a) for name, a in buffers.items() if a is not None}
        values = {i: np.atleast_1d(v) for i, v in (constants or {}).items()}
        return Dispatch(kernel, tuple(grid), tuple(threads), arrays, values, grid_is_threads)

    def execute(self, work: Dispatch, order: str = "forward", seed: int = 1) -> _Result:
        """Runs it; arrays of `work` that the kernel wrote are changed. Raises GpuError."""
        args, result = _DispatchArgs(), _Result()
        args.kernel = self.kernels[work.kernel]
        args.grid, args.threads_per_threadgroup = (
            _Size(*_three(work.grid)),
            _Size(*_three(work.threads)),
        )
        args.grid_is_threads = int(work.grid_is_threads)
        args.order, args.seed = ORDERS.index(order), seed
        constants = [
            _Constant(i, v.nbytes, v.ctypes.data_as(C.c_void_p)) for i, v in work.constants.items()
        ]
        args.constants = (_Constant * max(len(constants), 1))(*constants)
        args.constant_count = len(constants)
        guarded = {i: Guarded(np.ascontiguousarray(a)) for i, a in work.buffers.items()}
        for i, memory in guarded.items():
            args.buffers[i], args.buffer_bytes[i] = memory.address, memory.bytes
        failed = runtime().gpu_dispatch(C.byref(args), C.byref(result))
        for i, memory in guarded.items():
            if not failed and work.buffers[i].flags.writeable:
                memory.copy_to(work.buffers[i])
            memory.free()
        if failed:
            raise GpuError(result.error.decode())
        return result

    def run(self, kernel, grid, threads, constants=None, order="forward", **more) -> _Result:
        return self.execute(self.dispatch(kernel, grid, threads, constants, **more), order)


def bf16(values: np.ndarray) -> np.ndarray:
    """Nearest bfloat16, ties to even, as uint16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)
