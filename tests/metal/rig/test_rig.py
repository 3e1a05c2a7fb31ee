"""The rig finds mistakes: every class of them is planted once, in sources, at run time and under sanitizers."""

from pathlib import Path

import numpy as np
import pytest

from . import compile as rig_compile
from . import gpu, sanitized
from .tokens import SourceError

HERE = Path(__file__).resolve().parent
PLANTED = HERE / "planted.metal"
X = np.arange(128, dtype=np.float32)
Y = "[[buffer(0)]]"


@pytest.fixture(scope="module")
def planted(rig_cache, runtime, tmp_path_factory):
    path = tmp_path_factory.mktemp("planted") / "planted.so"
    rig_compile.compile_metal(PLANTED, path)
    return gpu.Image(path)


def run(image, kernel, order="forward", grid=(1,), threads=(128,), **more):
    buffers = {"x": X, "y": np.zeros(128, np.float32)} | more
    known = image.buffer_indices(kernel)
    buffers = {name: a for name, a in buffers.items() if name in known}
    image.run(kernel, grid, threads, order=order, **buffers)
    return buffers["y"]


def test_a_right_kernel_is_right_in_every_order(planted):
    for order in gpu.ORDERS:
        assert run(planted, "sum_right", order)[0] == X.sum()


def test_missing_barrier_changes_the_result_with_the_order(planted):
    results = [run(planted, "missing_barrier", order)[0] for order in gpu.ORDERS]
    assert any(r != X.sum() for r in results)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("divergent_simd_sum", "another has returned"),
        ("two_simd_sums", "divergence"),
        ("barrier_in_branch", "not reached by all threads"),
        ("read_beyond", "out of bounds.*buffer\\(0\\) 'x'"),
        ("write_beyond", "out of bounds.*buffer\\(1\\) 'y'"),
        ("too_much_memory", "32768 bytes"),
    ],
)
def test_broken_rule_is_an_error_that_names_it(planted, kernel, message):
    for order in gpu.ORDERS:
        with pytest.raises(gpu.GpuError, match=message):
            run(planted, kernel, order)
    assert run(planted, "sum_right")[0] == X.sum(), "the rig must go on after an error"


def test_threadgroup_memory_starts_as_nan(planted):
    assert np.isnan(run(planted, "uninitialised_memory")).all()


def test_order_of_threadgroups_is_the_callers(planted):
    forward, reverse = (
        run(planted, "threadgroups_race", order, grid=(4,), threads=(32,))[0]
        for order in ("forward", "reverse")
    )
    assert forward != reverse


def test_unbound_buffer_is_refused(planted):
    with pytest.raises(gpu.GpuError, match="buffer\\(0\\) 'x' is not bound"):
        planted.run("sum_right", (1,), (128,), y=np.zeros(128, np.float32))


def test_too_many_threads_are_refused(planted):
    with pytest.raises(gpu.GpuError, match="1025 threads"):
        run(planted, "sum_right", threads=(1025,))


def test_function_constant_has_its_value_or_a_pattern(planted):
    y = np.zeros(128, np.float32)
    planted.run("uses_constant", (1,), (128,), {0: np.uint32(3)}, y=y)
    assert y[2] == 6
    planted.run("uses_constant", (1,), (128,), y=y)
    assert y[1] > 1e9
    with pytest.raises(
        gpu.GpuError, match="function constant 0 'factor' has 4 bytes, 8 were given"
    ):
        planted.run("uses_constant", (1,), (128,), {0: np.uint64(3)}, y=y)


BODY = "{ y[0] = 1; }"
REFUSED = {
    "device pointer to threadgroup pointer": f"kernel void k(device float* y {Y}) {{ threadgroup float* p = y; p[0] = 1; }}",
    "write through const": f"kernel void k(const device float* y {Y}) {BODY}",
    "no address space": f"inline float f(const float* p) {{ return p[0]; }} kernel void k(device float* y {Y}) {BODY}",
    "device pointer as thread pointer": f"inline float f(const thread float* p) {{ return p[0]; }}"
    f" kernel void k(device float* y {Y}) {{ y[0] = f(y); }}",
    "double": f"kernel void k(device float* y {Y}) {{ double d = 1; y[0] = d; }}",
    "std": f"kernel void k(device float* y {Y}) {{ y[0] = std::max(1.0f, 2.0f); }}",
    "max of float and int": f"kernel void k(device float* y {Y}) {{ y[0] = max(y[1], 1); }}",
    "simd_sum of bfloat": f"kernel void k(device bfloat* y {Y}) {{ y[0] = simd_sum(y[1]); }}",
    "implicit vector conversion": f"kernel void k(device half4* y {Y}) {{ float4 f = y[0]; y[1] = half4(f); }}",
    "components": f"kernel void k(device float4* y {Y}) {{ y[0] = float4(1.0, 2.0, 3.0); }}",
    "C cast to a vector": f"kernel void k(device float4* y {Y}) {{ y[0] = (float4)y[1]; }}",
    "as_type of another size": f"kernel void k(device float* y {Y}) {{ y[0] = as_type<float>(ushort(1)); }}",
    "lambda": f"kernel void k(device float* y {Y}) {{ auto f = [](float a) {{ return a; }}; y[0] = f(1.0); }}",
    "unknown attribute": f"kernel void k(device float* y {Y}, uint i [[thread_id_in_grid]]) {BODY}",
    "index over 30": "kernel void k(device float* y [[buffer(31)]]) { y[0] = 1; }",
    "index twice": f"kernel void k(device float* y {Y}, device float* z {Y}) {{ y[0] = z[0]; }}",
    "no attribute": f"kernel void k(device float* y {Y}, uint i) {BODY}",
    "buffer without an index": "kernel void k(device float* y) { y[0] = 1; }",
    "result of a kernel": f"kernel int k(device float* y {Y}) {{ return 1; }}",
    "threadgroup variable in a function": "inline float f(uint i) { threadgroup float a[32]; a[i] = 1; return a[i]; }"
    f" kernel void k(device float* y {Y}) {{ y[0] = f(0); }}",
    "C++17": f"kernel void k(device float* y {Y}) {{ if constexpr (true) y[0] = 1; }}",
    "goto": f"kernel void k(device float* y {Y}) {{ goto end; end: y[0] = 1; }}",
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_msl_refuses_is_refused(rig_cache, tmp_path, what):
    source = tmp_path / "refused.metal"
    source.write_text(f"#include <metal_stdlib>\nusing namespace metal;\n{REFUSED[what]}\n")
    with pytest.raises(SourceError, match=r"refused\.metal:3"):
        rig_compile.compile_metal(source, tmp_path / "refused.o", flags=["-c", "-fsyntax-only"])


SANITIZERS = ["thread", "address"]


@pytest.fixture(scope="module", params=SANITIZERS)
def program(request, runtime, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "planted"
    sanitized.build(request.param, PLANTED, [], runtime, path)
    return request.param, path


FINDINGS = {
    "thread": ["missing_barrier", "barrier_of_nothing", "threadgroups_race"],
    "address": ["read_beyond", "write_beyond"],
}


def test_sanitizers_find_what_was_planted_and_nothing_else(program, planted, runtime, tmp_path):
    sanitizer, path = program
    clean = [
        "sum_right",
        *(k for other in SANITIZERS if other != sanitizer for k in FINDINGS[other]),
    ]
    clean = [k for k in clean if k == "sum_right" or sanitizer == "address"]
    for kernel in [*clean, *FINDINGS[sanitizer]]:
        buffers = {"x": X, "y": np.zeros(128, np.float32)}
        known = planted.buffer_indices(kernel)
        grid, threads = ((4,), (32,)) if kernel == "threadgroups_race" else ((1,), (128,))
        work = planted.dispatch(
            kernel, grid, threads, **{n: a for n, a in buffers.items() if n in known}
        )
        work.write(tmp_path / "case")
        finding = sanitized.replay(path, [tmp_path / "case"])
        wanted = 0 if kernel in clean else sanitized.FOUND
        assert finding.code == wanted, f"{kernel} under {sanitizer}: {finding.text[-3000:]}"
        assert wanted == 0 or "planted.metal" in finding.text, "the report names the source"
