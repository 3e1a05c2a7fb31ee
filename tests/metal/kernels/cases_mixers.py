"""Cases of attention and GatedDeltaNet."""

import numpy as np
from rig.gpu import bf16, from_bf16

from .case import Case, args, f32, unwritten
from .cases_products import ceil_div, silu
from .cases_rows import EXP_ULPS, norm_bound, normalised, sigmoid
from .weights import EPS

SPLIT = 512  # attention_split of metal/args.h
BF16_HALF_ULP = 2.0**-8


def rope_case(rng, heads, kv_heads, head_dim, rotary_dim, rows, position, gate, is_bf16) -> Case:
    q_head = head_dim * (2 if gate else 1)
    q = f32(rng, rows, heads, q_head)
    k, v = f32(rng, rows, kv_heads, head_dim), f32(rng, rows, kv_heads, head_dim)
    q_norm, k_norm = f32(rng, head_dim), f32(rng, head_dim)
    pairs = rotary_dim // 2
    phase = rng.uniform(0, 6.28, (rows, pairs))
    angles = np.concatenate([np.cos(phase), np.sin(phase)], axis=1).astype(np.float32)

    def turn(x, weight):
        y = normalised(x, 1e-6) * weight
        cos, sin = (a.astype(np.float64)[:, None] for a in np.split(angles, 2, axis=1))
        a, b = y[..., :pairs], y[..., pairs : 2 * pairs]
        size = np.abs(y)
        size[..., :pairs] = size[..., pairs : 2 * pairs] = np.abs(a) + np.abs(b)
        turned = np.concatenate(
            [a * cos - b * sin, b * cos + a * sin, y[..., 2 * pairs :]], axis=-1
        )
        return turned, norm_bound(size, head_dim) + 3 * EPS * size

    want_q, bound_q = np.array(q, np.float64), np.zeros(q.shape)
    want_q[..., :head_dim], bound_q[..., :head_dim] = turn(q[..., :head_dim], q_norm)
    want_k, bound_k = turn(k, k_norm)
    positions = position + rows + 1  # one position behind the rows must stay untouched
    cache = np.full((positions, kv_heads, head_dim), 0xFFFF if is_bf16 else np.nan)
    cache = cache.astype(np.uint16 if is_bf16 else np.float32)
    if is_bf16:  # compared as stored numbers: one unit when the rounding of k falls near a tie
        want_cache = np.full(cache.shape, float(0xFFFF))
        want_cache[position : position + rows] = bf16(want_k.astype(np.float32))
        want_values = np.full(cache.shape, float(0xFFFF))
        want_values[position : position + rows] = bf16(v)
        key_bound = 1.0
    else:
        want_cache, want_values = np.full(cache.shape, np.nan), np.full(cache.shape, np.nan)
        want_cache[position : position + rows], want_values[position : position + rows] = want_k, v
        key_bound = np.zeros(cache.shape)
        key_bound[position : position + rows] = bound_k
    kv_stride = kv_heads * head_dim
    return Case(
        f"qk_norm_rope_append-h{heads}kv{kv_heads}d{head_dim}r{rotary_dim}rows{rows}"
        f"{'-gate' if gate else ''}{'-bf16' if is_bf16 else ''}",
        "attention", "qk_norm_rope_append", (heads + 2 * kv_heads, rows), (32,),
        {
            "q": q, "k": k, "v": v, "q_norm": q_norm, "k_norm": k_norm, "angles": angles,
            "keys": cache, "values": cache.copy(),
            "args": args(heads, kv_heads, head_dim, rotary_dim, heads * q_head, q_head, kv_stride,
                         position, 1e-6),
        },
        {"q": (want_q, bound_q), "keys": (want_cache, key_bound), "values": (want_values, 0.0)},
        {4: np.bool_(is_bf16)},
    )  # fmt: skip


class Attention:
    """Inputs of one block of rows, and softmax(q k / sqrt(d)) v in float64."""

    def __init__(self, rng, heads, kv_heads, head_dim, rows, position, gate, is_bf16, sharp=1.0):
        self.heads, self.rows, self.head_dim, self.gate = heads, rows, head_dim, gate
        self.q_head = head_dim * (2 if gate else 1)
        self.q = f32(rng, rows, heads, self.q_head, scale=sharp)
        length = position + rows
        keys, values = f32(rng, length, kv_heads, head_dim), f32(rng, length, kv_heads, head_dim)
        self.keys, self.values = (bf16(keys), bf16(values)) if is_bf16 else (keys, values)
        if is_bf16:
            keys, values = from_bf16(self.keys), from_bf16(self.values)
        self.scale = float(np.float32(head_dim**-0.5))
        self.splits = ceil_div(length, SPLIT)
        self.constants = {3: np.uint32(head_dim), 4: np.bool_(is_bf16), 5: np.bool_(gate)}
        self.args = args(heads, kv_heads, heads * self.q_head, self.q_head, kv_heads * head_dim,
                         position, rows, self.splits, self.scale)  # fmt: skip
        self.name = f"h{heads}kv{kv_heads}d{head_dim}rows{rows}at{position}" + (
            f"{'-gate' if gate else ''}{'-bf16' if is_bf16 else ''}{'-sharp' if sharp > 1 else ''}"
        )
        group = heads // kv_heads
        k = np.repeat(keys.astype(np.float64), group, axis=1)
        v = np.repeat(values.astype(np.float64), group, axis=1)
        q = self.q[..., :head_dim].astype(np.float64)
        scores = np.einsum("rhd,phd->rhp", q, k) * self.scale
        size = np.einsum("rhd,phd->rhp", np.abs(q), np.abs(k)) * self.scale
        after = np.arange(length)[None] > position + np.arange(rows)[:, None]
        self.scores = np.where(after[:, None], -np.inf, scores)
        # Every weight is exp of a score with this error, and is scaled again whenever the maximum moves. A score is
        # a chain of head_dim / 32 sums and a tree, or (prefill) of head_dim sums.
        self.relative = EPS * (head_dim + 2) * size.max() + EPS * (length + EXP_ULPS + 24)
        self.v = v
        weights = np.exp(self.scores - self.scores.max(axis=2, keepdims=True))
        weights /= weights.sum(axis=2, keepdims=True)
        self.out = np.einsum("rhp,phd->rhd", weights, v)
        self.bound = 2 * self.relative * np.einsum("rhp,phd->rhd", weights, np.abs(v))
        if gate:
            opened = sigmoid(self.q[..., head_dim:].astype(np.float64))
            self.out, self.bound = (
                self.out * opened,
                self.bound * opened + 8 * EPS * np.abs(self.out),
            )

    def partials(self):
        """What every split of every head of every row leaves: values, (maximum, sum), and bounds."""
        shape = (self.rows, self.heads, self.splits)
        values, stats = np.zeros((*shape, self.head_dim)), np.zeros((*shape, 2))
        size = np.zeros((*shape, self.head_dim))
        for s in range(self.splits):
            part = self.scores[..., s * SPLIT : (s + 1) * SPLIT]
            top = part.max(axis=2)
            weights = np.exp(part - np.where(np.isinf(top), 0.0, top)[..., None])
            stats[:, :, s, 0], stats[:, :, s, 1] = top, weights.sum(axis=2)
            v = self.v[s * SPLIT : (s + 1) * SPLIT]
            values[:, :, s] = np.einsum("rhp,phd->rhd", weights, v)
            size[:, :, s] = np.einsum("rhp,phd->rhd", weights, np.abs(v))
        finite = np.where(np.isinf(stats[..., 0]), -1e30, stats[..., 0])
        return values, size, stats, finite

    def decode(self) -> Case:
        values, size, stats, _ = self.partials()
        stat_bound = np.empty_like(stats)
        stat_bound[..., 0] = self.relative * 4
        stat_bound[..., 1] = self.relative * 2 * stats[..., 1]
        return Case(
            f"attention_decode-{self.name}", "attention", "attention_decode",
            (self.heads, self.splits, self.rows), (256,),
            {
                "q": self.q, "keys": self.keys, "values": self.values,
                "partials": unwritten(*values.shape), "stats": unwritten(*stats.shape),
                "args": self.args,
            },
            {"partials": (values, 2 * self.relative * size + 1e-30), "stats": (stats, stat_bound)},
            self.constants, large=self.rows * self.splits > 8,
        )  # fmt: skip

    def merge(self) -> Case:
        values, _, stats, _ = self.partials()
        return Case(
            f"attention_merge-{self.name}", "attention", "attention_merge", (self.heads, self.rows), (32,),
            {
                "q": self.q, "partials": values.astype(np.float32), "stats": stats.astype(np.float32),
                "out": unwritten(*self.out.shape), "args": self.args,
            },
            {"out": (self.out, self.bound)}, self.constants,
        )  # fmt: skip

    def prefill(self) -> Case:
        return Case(
            f"attention_prefill-{self.name}", "prefill", "attention_prefill",
            (self.heads, ceil_div(self.rows, 32)), (128,),
            {
                "q": self.q, "keys": self.keys, "values": self.values,
                "out": unwritten(*self.out.shape), "args": self.args,
            },
            {"out": (self.out, self.bound)}, self.constants, large=self.rows > 40,
        )  # fmt: skip


def conv_silu(rng, channels: int, taps: int, rows: int) -> Case:
    qkv, window, weight = (
        f32(rng, rows, channels),
        f32(rng, taps - 1, channels),
        f32(rng, taps, channels),
    )
    full = np.concatenate([window, qkv]).astype(np.float64)
    total = sum(full[j : j + rows] * weight[j] for j in range(taps))
    size = sum(np.abs(full[j : j + rows] * weight[j]) for j in range(taps))
    bound = 1.1 * (taps + 1) * EPS * size + 10 * EPS * np.abs(silu(total))
    return Case(
        f"conv_silu-{channels}-taps{taps}-rows{rows}", "delta_net", "conv_silu", (channels,), (64,),
        {
            "qkv": qkv, "window_in": window, "window_out": unwritten(taps - 1, channels),
            "weight": weight, "y": unwritten(rows, channels), "args": args(channels, taps, rows),
        },
        {"y": (silu(total), bound), "window_out": (full[rows:], 0.0)}, grid_is_threads=True,
    )  # fmt: skip


def delta_args(rows, k_heads, v_heads, k_dim, v_dim, eps) -> tuple[np.ndarray, int]:
    channels = 2 * k_heads * k_dim + v_heads * v_dim
    return args(rows, k_heads, v_heads, k_dim, v_dim, channels, eps), channels


def delta_qk_norm(rng, k_heads: int, v_heads: int, k_dim: int, v_dim: int, rows: int) -> Case:
    packed, channels = delta_args(rows, k_heads, v_heads, k_dim, v_dim, 1e-6)
    qkv = f32(rng, rows, channels)
    want, bound = qkv.astype(np.float64), np.zeros(qkv.shape)
    for head in range(2 * k_heads):
        part = np.s_[:, head * k_dim : (head + 1) * k_dim]
        x = want[part]
        x = x / np.sqrt((x * x).sum(axis=1, keepdims=True) + 1e-6)
        want[part] = x * k_dim**-0.5 if head < k_heads else x
        bound[part] = norm_bound(want[part], k_dim)
    return Case(
        f"delta_qk_norm-{k_heads}x{k_dim}-rows{rows}", "norms", "delta_qk_norm", (2 * k_heads, rows), (32,),
        {"qkv": qkv, "args": packed}, {"qkv": (want, bound)},
    )  # fmt: skip


def gated_delta(rng, k_heads: int, v_heads: int, k_dim: int, v_dim: int, rows: int) -> Case:
    packed, channels = delta_args(rows, k_heads, v_heads, k_dim, v_dim, 1e-6)
    qkv = f32(rng, rows, channels)
    heads = qkv[:, : 2 * k_heads * k_dim].reshape(rows, 2 * k_heads, k_dim)
    heads /= np.linalg.norm(heads, axis=2, keepdims=True)
    a, b = f32(rng, rows, v_heads, scale=3), f32(rng, rows, v_heads)
    a.flat[0] = 30.0  # softplus beyond its switch
    decay_rate = rng.uniform(0.01, 2, v_heads).astype(np.float32)
    dt_bias, state = f32(rng, v_heads), f32(rng, v_heads, v_dim, k_dim, scale=0.3)
    s, out = state.astype(np.float64), np.zeros((rows, v_heads, v_dim))
    error, out_bound = (
        np.zeros(s.shape),
        np.zeros(out.shape),
    )  # of S: bounds that grow with the steps
    chain = (k_dim / 32 + 10) * EPS
    for t in range(rows):
        g = np.exp(-decay_rate * np.logaddexp(0, a[t].astype(np.float64) + dt_bias))
        beta = sigmoid(b[t].astype(np.float64))
        q = np.repeat(heads[t, :k_heads].astype(np.float64), v_heads // k_heads, axis=0)
        k = np.repeat(heads[t, k_heads:].astype(np.float64), v_heads // k_heads, axis=0)
        v = qkv[t, 2 * k_heads * k_dim :].reshape(v_heads, v_dim).astype(np.float64)
        # exp of a product of rounded numbers: its relative error grows with the exponent
        slack = (20 + 8 * np.abs(np.log(np.maximum(g, 1e-30)))) * EPS
        s, error = s * g[:, None, None], error * g[:, None, None] + slack[:, None, None] * np.abs(s)
        remembered = np.einsum("hvk,hk->hv", s, k)
        delta = (v - remembered) * beta[:, None]
        mistake = np.einsum("hvk,hk->hv", error + chain * np.abs(s), np.abs(k)) + 8 * EPS * np.abs(
            v
        )
        s = s + delta[..., None] * k[:, None]
        error = error + mistake[..., None] * np.abs(k[:, None]) + 4 * EPS * np.abs(s)
        out[t] = np.einsum("hvk,hk->hv", s, q)
        out_bound[t] = np.einsum("hvk,hk->hv", error + chain * np.abs(s), np.abs(q))
    return Case(
        f"gated_delta-k{k_heads}x{k_dim}-v{v_heads}x{v_dim}-rows{rows}", "delta_net", "gated_delta",
        (ceil_div(v_dim, 16), v_heads), (128,),
        {
            "qkv": qkv, "a": a, "b": b, "decay_rate": decay_rate, "dt_bias": dt_bias,
            "state_in": state, "state_out": unwritten(*state.shape),
            "out": unwritten(rows, v_heads, v_dim), "args": packed,
        },
        {"out": (out, out_bound), "state_out": (s, error)}, {2: np.uint32(k_dim)},
    )  # fmt: skip


def gated_norm(rng, v_heads: int, v_dim: int, rows: int) -> Case:
    packed, _ = delta_args(rows, 1, v_heads, 1, v_dim, 1e-6)
    o, z, weight = (
        f32(rng, rows, v_heads, v_dim),
        f32(rng, rows, v_heads, v_dim, scale=3),
        f32(rng, v_dim),
    )
    y = normalised(o, 1e-6) * weight * silu(z.astype(np.float64))
    return Case(
        f"gated_norm-{v_heads}x{v_dim}-rows{rows}", "norms", "gated_norm", (v_heads, rows), (32,),
        {"o": o, "z": z, "weight": weight, "y": unwritten(*y.shape), "args": packed},
        {"y": (y, norm_bound(y, v_dim) + 10 * EPS * np.abs(y))},
    )  # fmt: skip


def attention_shapes(rng) -> list[Attention]:
    shapes = [
        (2, 1, 32, 1, 0, False, False),
        (4, 2, 64, 1, 600, True, True),  # two splits
        (4, 1, 16, 3, 510, True, False),  # rows on both sides of a split's end: an empty split
        (2, 2, 100, 2, 37, False, True),
        (2, 1, 256, 1, 70, True, False),
        (3, 3, 40, 35, 0, False, False),
    ]
    return [
        *(Attention(rng, *s) for s in shapes),
        Attention(rng, 2, 1, 64, 2, 90, False, False, sharp=12.0),
    ]


def cases() -> list[Case]:
    rng = np.random.default_rng(7)
    out = [
        rope_case(rng, 4, 2, 64, 16, 2, 3, True, True),
        rope_case(rng, 2, 1, 32, 32, 1, 0, False, False),
        rope_case(rng, 3, 3, 100, 26, 5, 7, True, False),
        rope_case(rng, 2, 2, 256, 64, 1, 2, True, True),
    ]
    for attention in attention_shapes(rng):
        out += [attention.decode(), attention.merge(), attention.prefill()]
    out += [
        conv_silu(rng, c, taps, rows)
        for c, taps, rows in ((1, 2, 1), (70, 4, 1), (130, 4, 9), (64, 16, 3))
    ]
    out += [delta_qk_norm(rng, 2, 4, 32, 24, 2), delta_qk_norm(rng, 1, 2, 100, 8, 3)]
    for shape in ((1, 1, 16, 5, 1), (2, 4, 128, 128, 1), (1, 3, 100, 17, 6), (2, 2, 256, 32, 3)):
        out.append(gated_delta(rng, *shape))
    out += [gated_norm(rng, 3, 128, 2), gated_norm(rng, 1, 17, 3)]
    return out
