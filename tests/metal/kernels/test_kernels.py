"""Every kernel against float64 within a stated bound, in three orders of threads that must agree bit for bit."""

import re
from pathlib import Path

import numpy as np
import pytest
from rig import gpu

from . import cases_mixers, cases_products, cases_rows

CASES = [*cases_products.cases(), *cases_rows.cases(), *cases_mixers.cases()]
ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name.replace(" ", ""))
def test_kernel_is_right_in_every_order(images, case):
    image = images[case.image]
    seen = {}
    for order in gpu.ORDERS:
        work = case.dispatch(image)
        image.execute(work, order)
        case.check(image, work)
        indices = image.buffer_indices(case.kernel)
        seen[order] = [work.buffers[indices[name]].tobytes() for name in case.expected]
    assert seen["forward"] == seen["reverse"] == seen["shuffled"], "the result depends on the order"


def declared_buffers() -> dict[str, list[str]]:
    """Kernel -> buffer names in order, as the host-side table of metal/args.h has them."""
    text = (ROOT / "metal" / "args.h").read_text()
    pattern = r"namespace (\w+) \{\s*enum \{([^}]*)\};?\s*\}"
    found = {name: re.findall(r"\w+", body) for name, body in re.findall(pattern, text)}
    for name in ("expert_gate_up", "expert_down"):
        found[f"{name}_tiles"] = found[name]
    return found


def test_every_kernel_has_the_buffers_of_args_h(images):
    stems = sorted(p.stem for p in (ROOT / "metal").glob("*.metal"))
    compiled = {}
    for stem in stems:
        for kernel in images[stem].kernels:
            indices = images[stem].buffer_indices(kernel)
            compiled[kernel] = sorted(indices, key=indices.get)
            assert sorted(indices.values()) == list(range(len(indices))), kernel
    assert compiled == declared_buffers()


def test_every_kernel_has_a_case(images):
    stems = sorted(p.stem for p in (ROOT / "metal").glob("*.metal"))
    kernels = {kernel for stem in stems for kernel in images[stem].kernels}
    assert kernels == {case.kernel for case in CASES}


def test_rows_computed_together_have_the_bits_they_have_alone(images):
    """Contract 1: batch and chunking never change a token, as far as the products go."""
    rng = np.random.default_rng(11)
    for form in ((4, 64), (3, 32), "nvfp4", "bf16"):
        together = cases_products.matvec(rng, form, 12, 384, 7)
        image = images["matvec"]
        work = together.dispatch(image)
        image.execute(work)
        x, y = together.buffers["x"], work.buffers[4]
        for row in range(7):
            alone = together.dispatch(image)
            alone.grid = (*alone.grid[:1], 1)
            alone.buffers[3] = x[row : row + 1].copy()
            alone.buffers[5].view(np.uint32)[2] = 1  # row_count
            image.execute(alone)
            assert alone.buffers[4][0, :12].tobytes() == y[row, :12].tobytes(), (form, row)
