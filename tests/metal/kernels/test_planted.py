"""Mistakes planted in copies of the kernels: the cases must find each of them."""

import shutil

import pytest
from rig import compile as rig_compile
from rig import gpu
from rig.cache import KERNEL_FOLDER

from .test_kernels import CASES

# file, kernel whose cases must fail, text, what it becomes
MISTAKES = {
    "a barrier is missing in a reduction": (
        "norms", "rms_norm", "  metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);\n", "",
    ),
    "a barrier is missing in a tree": (
        "ends", "argmax", "    metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);\n", "",
    ),
    "a tie goes to the higher id": ("moe", "router_topk", "a.id < b.id", "a.id > b.id"),
    "the last element is left out": ("norms", "silu_mul", "if (i < args.count) ", "if (i + 1 < args.count) "),
    "a simdgroup function in divergent code": (
        "norms", "gated_norm", "const float scale = 1.0f", "if (lane > 20) return;\n  const float scale = 1.0f",
    ),
    "a row has one scale": (
        "matmul", "matmul", "float_scale(weights, format, cols, row, col)", "float_scale(weights, format, cols, row, 0)",
    ),
    "an empty split is not empty": ("attention", "attention_decode", "a == -INFINITY ? 0.0f : ", ""),
    "the window of the convolution is one row off": (
        "delta_net", "conv_silu", "window[j + 1];\n  }\n", "window[j + 1];\n    window[0] = 0.0f;\n  }\n",
    ),
    "the state decays after it is read": (
        "delta_net", "gated_delta",
        "        state[r][j] *= decay;\n        remembered = metal::fma(state[r][j], k[j], remembered);\n",
        "        remembered = metal::fma(state[r][j], k[j], remembered);\n        state[r][j] *= decay;\n",
    ),
}  # fmt: skip


@pytest.fixture
def broken(request, runtime, tmp_path):
    stem, kernel, text, instead = MISTAKES[request.param]
    for header in KERNEL_FOLDER.glob("*.h"):
        shutil.copy(header, tmp_path)
    source = (KERNEL_FOLDER / f"{stem}.metal").read_text()
    assert text in source, f"{stem}.metal has changed: plant the mistake anew"
    (tmp_path / f"{stem}.metal").write_text(source.replace(text, instead))
    rig_compile.compile_metal(tmp_path / f"{stem}.metal", tmp_path / f"{stem}.so")
    return gpu.Image(tmp_path / f"{stem}.so"), kernel


def finds(image, case) -> bool:
    outputs = set()
    for order in gpu.ORDERS:
        work = case.dispatch(image)
        try:
            image.execute(work, order)
            case.check(image, work)
        except (gpu.GpuError, AssertionError):
            return True
        outputs.add(b"".join(array.tobytes() for array in work.buffers.values()))
    return len(outputs) > 1


@pytest.mark.parametrize("broken", MISTAKES, indirect=True)
def test_mistake_is_found(broken):
    image, kernel = broken
    cases = [case for case in CASES if case.kernel == kernel]
    assert any(finds(image, case) for case in cases)
