"""Our kernels against the same operations as Apple compiled them for MLX, both run by the rig.

Each must lie within its own bound of float64; so the two lie within twice the bound of each other, and both are asserted.
What is shared by the two sides, and so not shown: the rig's simd_sum and exp.
"""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from kernels import cases_mixers, cases_products, cases_rows
from kernels.case import f32
from kernels.weights import EPS, LANES, affine
from rig import gpu
from rig.cache import build_once
from rig.compile import fingerprint

from . import air, metallib

HERE = Path(__file__).resolve().parent
QMV = "affine_qmv_fast_float_gs_{group}_b_{bits}_batch_0_pr_0_hgs_0_r_4"
UNUSED = np.zeros(4, np.int64)  # shapes and strides of a batch, with none


def find_wheel() -> Path:
    root = HERE.parents[2]
    folder = Path(os.environ.get("FLASH_MOE_METAL_WHEELS", root / "build" / "metal-wheels"))
    wheels = sorted(folder.glob("mlx_metal-*.whl"))
    if not wheels:
        pytest.skip(f"no mlx_metal wheel in {folder}: sh tests/metal/install.sh")
    if shutil.which(air.DISASSEMBLER) is None:
        pytest.skip(f"{air.DISASSEMBLER} is missing: sh tests/metal/install.sh")
    return wheels[-1]


@pytest.fixture(scope="module")
def apple(runtime, rig_cache):
    """Opens an Apple-compiled kernel by its name in MLX's library."""
    library = metallib.from_wheel(find_wheel())
    opened = {}

    def kernel(name: str, constants=None) -> gpu.Image:
        if name not in opened:
            code = library.bitcode(name)
            mark = fingerprint([HERE / "air.py", HERE / "air_library.cpp"])
            path = rig_cache / f"air_{name}_{len(code)}_{mark}.so"
            build_once(path, lambda to: air.build(code, name, constants or {}, to))
            opened[name] = gpu.Image(path)
        return opened[name]

    return kernel


def run_apple(image, name, grid, threads, buffers, grid_is_threads=False):
    image.execute(
        gpu.Dispatch(
            name,
            grid,
            threads,
            {i: np.atleast_1d(a) for i, a in buffers.items()},
            {},
            grid_is_threads,
        )
    )


def agree(ours, theirs, want, bound):
    for name, got in (("ours", ours), ("Apple's", theirs)):
        assert (np.abs(got - want) <= bound).all(), f"{name}: off by {np.abs(got - want).max()}"
    assert (np.abs(ours.astype(np.float64) - theirs) <= 2 * bound).all()


@pytest.mark.parametrize(("bits", "group"), [(2, 64), (3, 32), (4, 64), (5, 128), (6, 64), (8, 32)])
def test_quantised_matvec(apple, images, bits, group):
    rng = np.random.default_rng(bits)
    rows, cols = 16, 1024
    m = affine(rng, rows, cols, bits, group, "f32")
    case = cases_products.matvec(rng, (bits, group, "f32"), rows, cols, 1)
    case.buffers |= {**m.buffers(), "x": f32(rng, 1, cols)}
    x = case.buffers["x"]
    work = case.dispatch(images["matvec"])
    images["matvec"].execute(work)
    theirs = np.full(rows, np.nan, np.float32)
    name = QMV.format(bits=bits, group=group)
    sizes = {5: np.int32(cols), 6: np.int32(rows), 7: np.int32(0), 10: np.int32(0)}
    batch = dict.fromkeys((8, 9, 11, 12, 13, 14), UNUSED)
    buffers = {0: m.data, 1: m.scales, 2: m.biases, 3: x, 4: theirs, **sizes, **batch}
    run_apple(apple(name), name, (1, rows // 8), (32, 2), buffers)
    # MLX sums q x and x of a group apart; its terms are of the same magnitude as ours.
    agree(work.buffers[4][0, :rows], theirs, m.product(x)[0], m.product_bound(x)[0] * 2)


def test_dequantised_rows(apple, images):
    rng = np.random.default_rng(1)
    case = cases_products.embed(rng, (6, 64, "f32"), 4, 128, 4)
    case.buffers["tokens"] = np.arange(4, dtype=np.int32)
    work = case.dispatch(images["ends"])
    images["ends"].execute(work)
    theirs = np.full((4, 128), np.nan, np.float32)
    name = "affine_dequantize_float_gs_64_b_6"
    data = {i: case.buffers[n] for i, n in enumerate(("data", "scales", "biases"))}
    # A thread writes four weights: three bytes of codes.
    run_apple(apple(name), name, (128, 1), (32, 1), {**data, 3: theirs}, grid_is_threads=True)
    assert np.array_equal(work.buffers[4], theirs), "one fma each: equal bits"


def test_rms_norm(apple, images):
    rng = np.random.default_rng(2)
    case = cases_rows.rms_norm(rng, 2048, 3, 256)
    case.buffers["x"] = case.buffers["x"][:3]
    work = case.dispatch(images["norms"])
    images["norms"].execute(work)
    theirs = np.full((3, 2048), np.nan, np.float32)
    x, weight = case.buffers["x"], case.buffers["weight"]
    name = "rmsfloat32"
    sizes = {3: np.float32(1e-6), 4: np.uint32(2048), 5: np.uint32(1)}
    run_apple(apple(name), name, (3,), (512,), {0: x, 1: weight, 2: theirs, **sizes})
    agree(work.buffers[2], theirs, *case.expected["y"])


def test_softmax_of_the_router(apple, images):
    """All 32 experts chosen: their weights, put back in place, are the softmax."""
    rng = np.random.default_rng(3)
    case = cases_rows.router_topk(rng, LANES, LANES, False, 4)
    work = case.dispatch(images["moe"])
    images["moe"].execute(work)
    case.check(images["moe"], work)
    ours = np.zeros((4, LANES), np.float32)
    np.put_along_axis(ours, work.buffers[1].astype(np.int64), work.buffers[2], axis=1)
    theirs = np.full((4, LANES), np.nan, np.float32)
    name = "block_softmax_float32"
    run_apple(
        apple(name),
        name,
        (4,),
        (LANES,),
        {0: case.buffers["logits"], 1: theirs, 2: np.int32(LANES)},
    )
    logits = case.buffers["logits"].astype(np.float64)
    want = np.exp(logits - logits.max(axis=1, keepdims=True))
    want /= want.sum(axis=1, keepdims=True)
    agree(ours, theirs, want, (LANES + 20) * EPS * want + EPS * np.abs(logits).max())


def test_attention_of_one_row(apple, images):
    rng = np.random.default_rng(4)
    heads, kv_heads, dim, length = 4, 2, 128, 700
    attention = cases_mixers.Attention(rng, heads, kv_heads, dim, 1, length - 1, False, False)
    image = images["attention"]
    splits = attention.decode().dispatch(image)
    image.execute(splits)
    merged = attention.merge().dispatch(image)
    merged.buffers[1], merged.buffers[2] = splits.buffers[3], splits.buffers[4]
    image.execute(merged)
    theirs = np.full((heads, dim), np.nan, np.float32)
    keys, values = (
        np.ascontiguousarray(a.transpose(1, 0, 2)) for a in (attention.keys, attention.values)
    )
    name = f"sdpa_vector_float_{dim}_{dim}"
    strides = {
        i: np.uint64(s) for i, s in ((6, length * dim), (7, dim), (8, length * dim), (9, dim))
    }
    sizes = {4: np.int32(heads // kv_heads), 5: np.int32(length), 10: np.float32(attention.scale)}
    optional = dict.fromkeys((11, 12, 13, 14, 15, 16, 17), UNUSED)
    buffers = {0: attention.q, 1: keys, 2: values, 3: theirs, **strides, **sizes, **optional}
    off = dict.fromkeys((20, 21, 22, 23, 24, 25), 0)
    run_apple(apple(name, off), name, (heads, 1), (1024,), buffers)
    agree(merged.buffers[3].reshape(heads, dim), theirs, attention.out[0], attention.bound[0])
