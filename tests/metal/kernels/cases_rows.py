"""Cases of norms, element-wise functions, router, combine and argmax."""

import numpy as np

from .case import Case, args, f32, unwritten
from .cases_products import silu
from .weights import EPS

ROUNDINGS = (
    12  # of a normalised element: division, eps, root, reciprocal, two products, and their inputs
)
EXP_ULPS = 4  # exp of any libm or GPU, with the subtraction before it


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def normalised(x: np.ndarray, eps: float) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)


def norm_bound(y: np.ndarray, n: int) -> np.ndarray:
    """The mean of squares is positive, so its chain of n / 32 sums is relative; half of it after the root."""
    return (ROUNDINGS + (n / 32 + 10) / 2) * EPS * np.abs(y)


def rms_norm(rng, n: int, row_count: int, threads: int, rows=None, scale: float = 1.0) -> Case:
    x, weight = f32(rng, row_count + 2, n, scale=scale), f32(rng, n)
    chosen = np.arange(row_count) if rows is None else np.array(rows)
    y = normalised(x[chosen], 1e-6) * weight
    return Case(
        f"rms_norm-{n}-rows{len(chosen)}-threads{threads}-scale{scale}",
        "norms", "rms_norm", (len(chosen),), (threads,),
        {
            "x": x, "weight": weight, "y": unwritten(len(chosen), n),
            "rows": chosen.astype(np.int32), "args": args(n, int(rows is not None), 1e-6),
        },
        {"y": (y, norm_bound(y, n))},
    )  # fmt: skip


def silu_mul(rng, count: int) -> Case:
    gate, up = f32(rng, count, scale=4), f32(rng, count)
    if count > 2:
        gate[:3] = (-80.0, 80.0, 0.0)
    y = silu(gate.astype(np.float64)) * up
    return Case(
        f"silu_mul-{count}", "norms", "silu_mul", (count,), (256,),
        {"gate": gate, "up": up, "y": unwritten(count), "args": args(count)},
        {"y": (y, (EXP_ULPS + 6) * EPS * np.abs(y) + 1e-38)}, grid_is_threads=True,
    )  # fmt: skip


def router_expectation(logits: np.ndarray, k: int, normalise: bool):
    """As csrc/kernels/router.cpp, in float64: ranked by weight, ties to the lower id."""
    e = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    p = e / e.sum(axis=1, keepdims=True)
    ids = np.argsort(-logits.astype(np.float64), axis=1, kind="stable")[:, :k]
    weights = np.take_along_axis(p, ids, axis=1)
    return ids, weights / weights.sum(axis=1, keepdims=True) if normalise else weights


def router_topk(rng, experts: int, k: int, normalise: bool, rows: int, ties: bool = False) -> Case:
    logits = f32(rng, rows, experts, scale=3)
    if ties:
        logits = np.round(logits)  # many experts of equal weight, also across lanes
    ids, weights = router_expectation(logits, k, normalise)
    bound = (experts / 32 + k + 10 + EXP_ULPS) * EPS * weights + EPS * np.abs(logits).max()
    return Case(
        f"router_topk-{experts}-k{k}{'-normalised' if normalise else ''}{'-ties' if ties else ''}",
        "moe", "router_topk", (rows,), (32,),
        {
            "logits": logits, "ids": unwritten(rows, k, dtype=np.int32),
            "weights": unwritten(rows, k), "args": args(experts, k, int(normalise)),
        },
        {"ids": (ids.astype(np.float64), 0.0), "weights": (weights, bound)},
    )  # fmt: skip


def combine(rng, hidden: int, k: int, rows: int, shared: bool, norm: bool) -> Case:
    h, outputs = f32(rng, rows, hidden), f32(rng, rows * k, hidden)
    weights = rng.dirichlet(np.ones(k), rows).astype(np.float32)
    shared_out, gate = f32(rng, rows, hidden), f32(rng, rows, scale=2)
    w, o = weights.astype(np.float64), outputs.astype(np.float64).reshape(rows, k, hidden)
    total = h + np.einsum("rk,rkh->rh", w, o)
    size = np.abs(h) + np.einsum("rk,rkh->rh", w, np.abs(o))
    if shared:
        total = total + sigmoid(gate.astype(np.float64))[:, None] * shared_out
        size = size + np.abs(shared_out)
    bound = (k + 4 + EXP_ULPS) * EPS * size
    buffers = {
        "h": h, "outputs": outputs, "weights": weights, "shared": shared_out, "shared_gate": gate,
        "args": args(hidden, k, int(shared), 1e-6),
    }  # fmt: skip
    expected = {"h": (total, bound)}
    if norm:
        norm_weight = f32(rng, hidden)
        y = normalised(total, 1e-6) * norm_weight
        buffers |= {"norm": norm_weight, "x": unwritten(rows, hidden)}
        spread = (
            bound.max() * np.abs(norm_weight) * 4
        )  # rows of unit size: an error of h is one of x
        expected["x"] = (y, norm_bound(y, hidden) + spread)
    name = "combine_norm" if norm else "combine"
    return Case(
        f"{name}-{hidden}-k{k}-rows{rows}{'-shared' if shared else ''}",
        "moe", name, (rows,), (256,), buffers, expected,
    )  # fmt: skip


def argmax(rng, n: int, rows: int, ties: bool) -> Case:
    logits = f32(rng, rows, n, scale=3)
    if ties:
        logits = np.minimum(np.round(logits), 1.0)
    want = logits.argmax(axis=1).astype(np.float64)
    return Case(
        f"argmax-{n}-rows{rows}{'-ties' if ties else ''}", "ends", "argmax", (rows,), (256,),
        {"logits": logits, "ids": unwritten(rows, dtype=np.int32), "args": args(n)},
        {"ids": (want, 0.0)},
    )  # fmt: skip


def cases() -> list[Case]:
    rng = np.random.default_rng(6)
    out = [rms_norm(rng, n, rows, 256) for n, rows in ((1, 1), (33, 3), (256, 1), (1000, 2))]
    out.append(rms_norm(rng, 96, 2, 32))
    out.append(rms_norm(rng, 2048, 1, 1024))
    out.append(rms_norm(rng, 64, 5, 256, rows=[4, 0, 6]))
    out.append(rms_norm(rng, 64, 1, 256, scale=1e-4))
    out += [silu_mul(rng, n) for n in (1, 255, 257, 1000)]
    for experts, k in ((1, 1), (4, 2), (31, 4), (128, 8), (512, 10), (40, 32)):
        for normalise in (True, False):
            out.append(router_topk(rng, experts, k, normalise, 3))
    out.append(router_topk(rng, 100, 8, True, 4, ties=True))
    for norm in (False, True):
        for hidden, k, rows, shared in ((64, 1, 1, True), (300, 4, 3, True), (257, 10, 2, False)):
            out.append(combine(rng, hidden, k, rows, shared, norm))
    out += [
        argmax(rng, n, rows, ties)
        for n, rows, ties in ((1, 1, False), (255, 2, True), (5000, 3, True))
    ]
    return out
