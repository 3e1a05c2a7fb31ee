"""Cases of matvec, gated_matvec, the experts and embed: all formats, tails of rows, columns and x rows."""

import numpy as np

from .case import Case, args, f32, unwritten
from .weights import AFFINE, EPS, FLOAT_CODES, Matrix, random_matrix

PLAIN = ["f32", "f16", "bf16"]
GROUP_COLS = {
    32: 96,
    64: 192,
    128: 384,
}  # three groups: no power of two, units that do not fill the lanes


def silu(x):
    return x / (1 + np.exp(-x))


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def padded(y: np.ndarray, stride: int) -> np.ndarray:
    """Rows of y with NaN behind them: must stay as they are."""
    full = np.full((y.shape[0], stride), np.nan)
    full[:, : y.shape[1]] = y
    return full


def matvec(
    rng, form, rows: int, cols: int, row_count: int, add: bool = False, tiles: bool = False
) -> Case:
    m = random_matrix(rng, rows, cols, form)
    x = f32(rng, row_count, cols)
    stride = rows + 3
    before = unwritten(row_count, stride)
    if add:
        before[:, :rows] = f32(rng, row_count, rows)
    want, bound = m.product(x), m.tile_bound(x) if tiles else m.product_bound(x)
    name, out_rows, x_rows, threads = ("matmul", 32, 32, 128) if tiles else ("matvec", 8, 4, 64)
    if add:
        want = want + before[:, :rows]
        bound = bound + EPS * np.abs(want)
    return Case(
        f"{name}-{form}-{rows}x{cols}-rows{row_count}{'-add' if add else ''}",
        name,
        name,
        (ceil_div(rows, out_rows), ceil_div(row_count, x_rows)),
        (threads,),
        {
            **m.buffers(),
            "x": x,
            "y": before,
            "args": args(rows, cols, row_count, cols, stride, int(add)),
        },
        {"y": (padded(want, stride), padded(bound, stride))},
        {0: m.format},
    )


def gated_bound(gate: np.ndarray, up: np.ndarray, gate_bound, up_bound) -> np.ndarray:
    """|d silu| <= 1.1, and 8 roundings for exp, sum, quotient and product."""
    value = np.abs(silu(gate) * up)
    return (
        1.1 * gate_bound * (np.abs(up) + up_bound) + np.abs(silu(gate)) * up_bound + 8 * EPS * value
    )


def gated_matvec(rng, gate_form, up_form, rows: int, cols: int, row_count: int) -> Case:
    gate = random_matrix(rng, rows, cols, gate_form)
    up = random_matrix(rng, rows, cols, up_form)
    x = f32(rng, row_count, cols)
    g, u = gate.product(x), up.product(x)
    bound = gated_bound(g, u, gate.product_bound(x), up.product_bound(x))
    return Case(
        f"gated_matvec-{gate_form}-{up_form}-{rows}x{cols}-rows{row_count}",
        "matvec",
        "gated_matvec",
        (ceil_div(rows, 8), ceil_div(row_count, 4)),
        (64,),
        {
            **gate.buffers("gate_"),
            **up.buffers("up_"),
            "x": x,
            "y": unwritten(row_count, rows),
            "args": args(rows, cols, row_count, cols, rows, 0),
        },
        {"y": (silu(g) * u, bound)},
        {0: gate.format, 1: up.format},
    )


class Arena:
    """Experts behind each other in one buffer, as slots hold them."""

    def __init__(self):
        self.bytes = bytearray(b"\xff" * 64)  # what lies before the first slot

    def put(self, m: Matrix) -> list[int]:
        offsets = []
        for piece in (m.data, m.scales, m.biases):
            self.bytes += b"\xff" * (-len(self.bytes) % 4)
            offsets.append(len(self.bytes))
            self.bytes += piece.tobytes()
        return offsets

    def array(self) -> np.ndarray:
        return np.frombuffer(bytes(self.bytes), np.uint8).copy()


def split_items(counts: list[int], item_rows: int) -> np.ndarray:
    """ExpertItem of every expert with so many assignments."""
    items, first = [], 0
    for place, count in enumerate(counts):
        for begin in range(0, count, item_rows):
            items.append((place, first + begin, min(item_rows, count - begin)))
        first += count
    return np.array(items, np.uint32)


def expert_cases(
    rng, form, counts: list[int], hidden: int, inner: int, tiles: bool = False
) -> list[Case]:
    """gate_up and down of len(counts) experts, the i-th chosen by counts[i] assignments."""
    error_of = Matrix.tile_bound if tiles else Matrix.product_bound
    per_row, total = 3, sum(counts)
    row_count = ceil_div(total, per_row)
    chosen = rng.permutation(row_count * per_row)[:total].astype(np.int32)
    ends = np.cumsum(counts)
    assignments = np.concatenate(
        [np.sort(chosen[e - c : e]) for c, e in zip(counts, ends, strict=True)]
    )
    x = f32(rng, row_count, hidden)
    arena, places, gates, ups, downs = Arena(), [], [], [], []
    for _ in counts:
        gates.append(random_matrix(rng, inner, hidden, form))
        ups.append(random_matrix(rng, inner, hidden, form))
        downs.append(random_matrix(rng, hidden, inner, form))
        places.append([o for m in (gates[-1], ups[-1], downs[-1]) for o in arena.put(m)])
    expert = np.repeat(np.arange(len(counts)), counts)
    inner_rows = f32(rng, total, inner)
    want, bound = np.zeros((total, inner)), np.zeros((total, inner))
    outputs = np.full((row_count * per_row, hidden), np.nan)
    outputs_bound = np.zeros_like(outputs)
    for i, (e, a) in enumerate(zip(expert, assignments, strict=True)):
        row = x[a // per_row][None]
        g, u = gates[e].product(row), ups[e].product(row)
        want[i] = (silu(g) * u)[0]
        bound[i] = gated_bound(g, u, error_of(gates[e], row), error_of(ups[e], row))[0]
        outputs[a] = downs[e].product(inner_rows[i][None])[0]
        outputs_bound[a] = error_of(downs[e], inner_rows[i][None])[0]
    tile, threads, suffix, image = (
        (32, 128, "_tiles", "matmul") if tiles else (8, 64, "", "experts")
    )
    items = split_items(counts, 32 if tiles else 4)
    common = {
        "arena": arena.array(),
        "places": np.array(places, np.uint64),
        "items": items,
        "assignments": assignments,
        "args": args(hidden, inner, per_row),
    }
    name = f"{form}-{counts}-{hidden}x{inner}{suffix}"
    return [
        Case(
            f"expert_gate_up-{name}", image, f"expert_gate_up{suffix}",
            (ceil_div(inner, tile), len(items)), (threads,),
            {**common, "x": x, "inner": unwritten(total, inner)},
            {"inner": (want, bound)}, {0: gates[0].format, 1: ups[0].format},
        ),
        Case(
            f"expert_down-{name}", image, f"expert_down{suffix}",
            (ceil_div(hidden, tile), len(items)), (threads,),
            {**common, "inner": inner_rows, "outputs": unwritten(row_count * per_row, hidden)},
            {"outputs": (outputs, outputs_bound)}, {0: downs[0].format},
        ),
    ]  # fmt: skip


def embed(rng, form, vocab: int, cols: int, row_count: int) -> Case:
    m = random_matrix(rng, vocab, cols, form)
    tokens = rng.integers(0, vocab, row_count).astype(np.int32)
    tokens[0], tokens[-1] = vocab - 1, 0
    want = m.values[tokens]
    return Case(
        f"embed-{form}-{vocab}x{cols}", "ends", "embed", (cols, row_count), (32, 1),
        {**m.buffers(), "tokens": tokens, "y": unwritten(row_count, cols), "args": args(cols, row_count)},
        {"y": (want, EPS * np.abs(want))}, {0: m.format}, grid_is_threads=True,
    )  # fmt: skip


def cases() -> list[Case]:
    rng = np.random.default_rng(5)
    out = []
    for i, (bits, group) in enumerate(AFFINE):
        cols = GROUP_COLS[group]
        scale_kind = ("bf16", "f16", "f32")[i % 3]
        form = (bits, group, scale_kind)
        out.append(matvec(rng, form, 13, cols, 1))
        out.append(matvec(rng, form, 8, cols + 10 * group, 5, add=True))
        out.append(embed(rng, form, 11, cols, 3))
    for kind in PLAIN:
        out += [
            matvec(rng, kind, rows, cols, n)
            for rows, cols, n in ((1, 1, 1), (9, 133, 2), (5, 260, 4))
        ]
        out.append(embed(rng, kind, 7, 45, 2))
    for form in FLOAT_CODES:
        out.append(matvec(rng, form, 13, 288, 1))
        out.append(matvec(rng, form, 133, 160, 5, add=True))
        out.append(embed(rng, form, 131, 288, 4))
    out.append(matvec(rng, (4, 64), 16, 2048, 1))
    out.append(matvec(rng, (4, 64), 3, 64, 9))
    out.append(gated_matvec(rng, (4, 64), (4, 64), 20, 128, 1))
    out.append(gated_matvec(rng, (4, 64), (8, 32), 7, 192, 6))
    out.append(gated_matvec(rng, "bf16", "bf16", 9, 70, 2))
    for form in ((4, 64), (3, 32), (2, 64, "f16"), "bf16"):
        out += expert_cases(rng, form, [1, 1, 1, 1], 128, 64)
    out += expert_cases(rng, (4, 32), [1, 9, 4, 2], 96, 160)
    out += expert_cases(rng, (6, 64, "f32"), [3], 64, 192)
    for form in ("mxfp4", "nvfp4", "fp8-f32"):
        out += expert_cases(rng, form, [1, 2], 160, 32)
    return out + tile_cases(rng)


def tile_cases(rng) -> list[Case]:
    out = []
    for i, (bits, group) in enumerate(AFFINE):
        form = (bits, group, ("f16", "f32", "bf16")[i % 3])
        out.append(matvec(rng, form, 37, GROUP_COLS[group], 5, tiles=True))
    out += [matvec(rng, form, 131, 160, 3, tiles=True) for form in FLOAT_CODES]
    out.append(matvec(rng, (4, 64), 32, 64, 33, add=True, tiles=True))
    out += [matvec(rng, kind, 33, 45, 2, tiles=True) for kind in PLAIN]
    out.append(matvec(rng, "f32", 1, 1, 1, tiles=True))
    out += expert_cases(rng, (4, 32), [1, 40, 3], 96, 64, tiles=True)
    out += expert_cases(rng, (3, 64, "f16"), [5], 64, 128, tiles=True)
    out += expert_cases(rng, "bf16", [2, 1], 40, 70, tiles=True)
    out += expert_cases(rng, "mxfp8", [2, 1], 96, 64, tiles=True)
    return out
