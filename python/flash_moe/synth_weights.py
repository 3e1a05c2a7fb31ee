"""What the tensors of a synthetic checkpoint hold: random numbers whose routing is chosen.

DESIGN. The residual stream of the written model has three parts of known size:
  anchors  the first `group` channels, constant for every token (the embedding puts them there);
  context  written once, by layer 0's mixer: a moving average of the tokens' embeddings. Its share
           of the router's input, `locality`, and its decay decide which experts come again.
  token    the embedding of the token itself; with what the later blocks add (small: TAIL_SHARE).
A layer's router is a random matrix over that stream, so layers choose independently, and what two
tokens share of their streams is what they share of their experts. `skew` weighs the anchors in the
router's input: a constant preference, different in each layer.

The moving average. A GatedDeltaNet whose key, query, gates and output gate see the anchors only
(all constant) adds BETA of each token's value to a memory that forgets as much: an exponential
average with a time constant of 1 / BETA tokens. In a model without linear layers the first
attention has a constant key and query of such norm that RoPE lets a token's weight fall with its
distance as DECAY_EXPONENT says.

Codes and scales are cut from small pools of random bytes at random places: writing is then bound by
the drive. Constants need no codes: scale 0, bias the constant.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .geometry import Geometry

# An LRU of 16/32/64/128 slots a layer finds 50/62/68/74 % of 512 experts, top 10, when logits are
# a process of this forgetting and a context share of 0.9, by simulation; published for real
# checkpoints of that shape: 49/59/68/71 %.
BETA = 0.1
LOCALITY_DEFAULT, LOCALITY_MAX = 0.9, 0.98
DECAY_EXPONENT = 1.5
TAIL_SHARE = 0.15  # of the stream's variance, what all later blocks add
VALUE_STD = 0.1  # small, where SiLU is nearly linear: a mean would be a skew that nobody asked for
ROUTER_STD, LOGIT_STD = 1.5, 1.5
Z_GATE = 1.278  # silu(Z_GATE) = 1
ROUTER_BITS, ROUTER_GROUP = 8, 64  # of today's MLX conversions
CODE_POOL_BYTES, CODE_CHUNK_BYTES = 8 << 20, 1 << 20
SCALE_POOL_COUNT, SCALE_CHUNK_COUNT = 1 << 17, 1 << 15

Bf16 = npt.NDArray[np.uint16]
Chunk = bytes | memoryview | npt.NDArray[np.uint16] | npt.NDArray[np.float32]


@dataclass(frozen=True)
class Routing:
    """How the routers of a synthetic model behave.

    Attributes:
        skew: standard deviation of a router logit's constant part, the changing part's being 1.
        locality: share of the changing part that is an average over the last tokens, below 1.
        seed: of everything random.
    """

    skew: float = 0.0
    locality: float = LOCALITY_DEFAULT
    seed: int = 1

    @property
    def context_variance(self) -> float:
        """Variance of the stream's context where the token's is 1."""
        return self.locality / (1 - self.locality)


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of a quantised matrix.

    Attributes:
        count: of rows.
        std: of the weights of other channels than anchors.
        anchor: std of the weights of anchors.
        constant: value of the weights of anchors instead, when `anchor` is 0.
        key: rows of one key have the same codes and scales; "" draws new ones.
    """

    count: int
    std: float
    anchor: float = 0.0
    constant: float = 0.0
    key: str = ""

    @property
    def plain(self) -> bool:
        """Whether anchors are like other channels, so that no scale is special."""
        return not self.key and self.std == self.anchor and not self.constant


def bf16(values: npt.ArrayLike) -> Bf16:
    """Returns values as the bits of bfloat16, rounded to nearest even."""
    bits = np.asarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


class Pools:
    """Random codes and scales. Deterministic by seed."""

    def __init__(self, seed: int) -> None:
        """Draws the pools (about 10 MB)."""
        self._seed = seed
        random = np.random.default_rng(seed)
        self._codes = memoryview(random.bytes(CODE_POOL_BYTES))
        # Eighths keep biases exact at 4 bits; a real checkpoint's scales have both signs, too.
        self._jitter = (random.integers(6, 11, SCALE_POOL_COUNT) / 8).astype(np.float32)
        self._jitter *= random.choice(np.array([-1, 1], dtype=np.float32), SCALE_POOL_COUNT)
        self._scaled: dict[tuple[float, int], tuple[Bf16, Bf16]] = {}

    def random(self, *key: object) -> np.random.Generator:
        """Returns a generator that depends on the seed and the key alone."""
        digest = hashlib.sha256(repr((self._seed, *key)).encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "little"))

    def codes(self, random: np.random.Generator, count: int) -> Iterator[Chunk]:
        """Yields `count` bytes of codes in chunks."""
        while count:
            size = min(count, CODE_CHUNK_BYTES)
            place = int(random.integers(0, (CODE_POOL_BYTES - size) // 64 + 1)) * 64
            yield self._codes[place : place + size]
            count -= size

    def jitter(self, random: np.random.Generator, count: int) -> npt.NDArray[np.float32]:
        """Returns factors of scales; at most SCALE_CHUNK_COUNT."""
        place = int(random.integers(0, SCALE_POOL_COUNT - count + 1))
        return self._jitter[place : place + count]

    def plain_scales(
        self, random: np.random.Generator, count: int, step: float, bits: int, *, biases: bool
    ) -> Iterator[Chunk]:
        """Yields scales (or their biases) of a matrix without special channels."""
        key = (step, bits)
        if key not in self._scaled:
            if len(self._scaled) > 64:  # half a MB each; a model asks for few different ones
                self._scaled.clear()
            self._scaled[key] = _encode(self._jitter * np.float32(step), bits)
        pool = self._scaled[key][1 if biases else 0]
        while count:
            size = min(count, SCALE_CHUNK_COUNT)
            place = int(random.integers(0, SCALE_POOL_COUNT - size + 1))
            yield pool[place : place + size]
            count -= size


def _encode(scales: npt.NDArray[np.float32], bits: int) -> tuple[Bf16, Bf16]:
    """Returns scales and the biases that make codes' mean value 0."""
    return bf16(scales), bf16(scales * np.float32(-((1 << bits) - 1) / 2))


def step_of(std: float, bits: int) -> float:
    """Returns the scale at which uniformly random codes have such a standard deviation."""
    return std / math.sqrt(((1 << bits) ** 2 - 1) / 12) if std else 0.0


@dataclass(frozen=True)
class Matrix:
    """One quantised module: [repeat, rows, columns]."""

    name: str
    rows: tuple[Rows, ...]
    columns: int
    bits: int
    group: int
    repeat: int = 0  # experts; 0 for a matrix of two dimensions

    @property
    def row_count(self) -> int:
        """Rows of one repetition."""
        return sum(part.count for part in self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions before the columns."""
        return (self.repeat, self.row_count) if self.repeat else (self.row_count,)

    def codes(self, pools: Pools) -> Iterator[Chunk]:
        """Yields the bytes of `.weight`."""
        row_bytes = self.columns * self.bits // 8
        for index, part in enumerate(self.rows):
            random = pools.random("codes", part.key or (self.name, index))
            yield from pools.codes(random, max(1, self.repeat) * part.count * row_bytes)

    def scales(self, pools: Pools, *, biases: bool) -> Iterator[Chunk]:
        """Yields the bytes of `.scales` or `.biases`."""
        groups = self.columns // self.group
        for index, part in enumerate(self.rows):
            random = pools.random("scales", part.key or (self.name, index))
            if part.plain or self.repeat:
                count = max(1, self.repeat) * part.count * groups
                step = step_of(part.std, self.bits)
                yield from pools.plain_scales(random, count, step, self.bits, biases=biases)
            else:
                yield from self._special(pools, random, part, biases=biases)

    def _special(
        self, pools: Pools, random: np.random.Generator, part: Rows, *, biases: bool
    ) -> Iterator[Chunk]:
        groups = self.columns // self.group
        steps = np.full(groups, step_of(part.std, self.bits), dtype=np.float32)
        steps[0] = step_of(part.anchor, self.bits)
        chunk = max(1, SCALE_CHUNK_COUNT // groups)
        for start in range(0, part.count, chunk):
            rows = min(chunk, part.count - start)
            jitter = pools.jitter(random, rows * groups).reshape(rows, groups)
            values = _encode(jitter * steps, self.bits)[1 if biases else 0]
            if biases and not part.anchor:
                values[:, 0] = bf16(part.constant)
            yield values


@dataclass(frozen=True)
class Vector:
    """A tensor that is not quantised: `values`, repeated to `shape`."""

    name: str
    shape: tuple[int, ...]
    values: tuple[float, ...]
    float32: bool = False

    def data(self) -> Chunk:
        """Returns its bytes."""
        count = math.prod(self.shape)
        values = np.tile(np.array(self.values, dtype=np.float32), count // len(self.values))
        return values if self.float32 else bf16(values)


class Weights:
    """The modules of one model."""

    def __init__(self, geometry: Geometry, routing: Routing, bits: int, group: int) -> None:
        """Sets up the stream's sizes; see the head of this file."""
        self.geometry = g = geometry
        self.routing = routing
        self.bits, self.group = bits, group
        self.root_hidden = math.sqrt(g.hidden)
        # A tied head multiplies the stream by the embedding: that must not make logits of 100.
        self.unit = 1 / self.root_hidden if g.tied else 1.0
        self.anchor_value = self.unit * math.sqrt(g.hidden / group)
        self.context = routing.context_variance
        self.tail_std = self.unit * math.sqrt(TAIL_SHARE * (1 + self.context) / (2 * g.layers))

    def modules(self) -> Iterator[Matrix | Vector]:
        """Yields every module in the file's order."""
        g, prefix = self.geometry, self.geometry.prefix
        rows = Rows(g.vocab, self.unit, constant=self.anchor_value)
        yield Matrix(f"{prefix}model.embed_tokens", (rows,), g.hidden, self.bits, self.group)
        for layer, full in enumerate(g.full_attention):
            yield from self._layer(layer, full=full)
        yield self._norm(f"{prefix}model.norm", 0.0)
        if not g.tied:
            rows = self._plain(g.vocab, LOGIT_STD / self.root_hidden)
            yield Matrix(f"{prefix}lm_head", (rows,), g.hidden, self.bits, self.group)

    def _layer(self, layer: int, *, full: bool) -> Iterator[Matrix | Vector]:
        name = f"{self.geometry.prefix}model.layers.{layer}"
        yield self._norm(f"{name}.input_layernorm", 1.0)
        # The mixer of layer 0 sees the embedding alone, everything after it the context, too.
        variance = 1.0 if layer == 0 else 1.0 + self.context
        out_std = self.unit * math.sqrt(self.context) if layer == 0 else self.tail_std
        mixer = self._full_attention if full else self._linear_attention
        yield from mixer(name, layer, variance, max(out_std, self.tail_std))
        variance = 1.0 + self.context
        yield self._norm(
            f"{name}.post_attention_layernorm", self.routing.skew * math.sqrt(variance)
        )
        yield from self._moe(f"{name}.mlp", math.sqrt(variance / (1 + variance)))

    def _norm(self, name: str, anchors: float) -> Vector:
        """A norm's factors: 1, and another for the anchors (MLX has the 1 added)."""
        hidden = self.geometry.hidden
        values = (anchors,) * self.group + (1.0,) * (hidden - self.group)
        return Vector(f"{name}.weight", (hidden,), values)

    def _plain(self, count: int, std: float) -> Rows:
        return Rows(count, std, anchor=std)

    def _matrix(self, name: str, *rows: Rows, columns: int = 0) -> Matrix:
        return Matrix(name, rows, columns or self.geometry.hidden, self.bits, self.group)

    def _constant(self, value: float, rms: float) -> float:
        """Weights of the anchors that make a product with the normed stream this value."""
        return value * rms * self.unit / (self.group * self.anchor_value)

    def _linear_attention(
        self, name: str, layer: int, variance: float, out_std: float
    ) -> Iterator[Matrix | Vector]:
        g, name = self.geometry, f"{name}.linear_attn"
        rms = math.sqrt(1 + variance)
        # Query and key of a head are one constant vector, its length is normed away.
        key = f"{name}.key"
        values_std = VALUE_STD * rms / math.sqrt(variance) / self.root_hidden
        z_rows = self._constant(Z_GATE, rms)
        b_rows = self._constant(math.log(BETA / (1 - BETA)), rms)
        ratio = g.linear_value_heads // g.linear_key_heads

        def keys(head: int) -> Rows:
            return Rows(g.linear_key_dim, 0.0, rms / self.root_hidden, key=f"{key}.{head}")

        heads = range(g.linear_key_heads)
        if g.model_type == "qwen3_next":
            wide = ratio * g.linear_value_dim
            parts = [
                rows
                for head in heads
                for rows in (
                    keys(head), keys(head), Rows(wide, values_std), Rows(wide, 0.0, 0.0, z_rows)
                )
            ]  # fmt: skip
            yield self._matrix(f"{name}.in_proj_qkvz", *parts)
            gates = [r for _ in heads for r in (Rows(ratio, 0.0, 0.0, b_rows), Rows(ratio, 0.0))]
            yield self._matrix(f"{name}.in_proj_ba", *gates)
        else:
            both = [keys(head) for head in heads] * 2
            yield self._matrix(f"{name}.in_proj_qkv", *both, Rows(g.value_width, values_std))
            yield self._matrix(f"{name}.in_proj_z", Rows(g.value_width, 0.0, 0.0, z_rows))
            yield self._matrix(f"{name}.in_proj_b", Rows(g.linear_value_heads, 0.0, 0.0, b_rows))
            yield self._matrix(f"{name}.in_proj_a", Rows(g.linear_value_heads, 0.0))
        width = 2 * g.key_width + g.value_width
        taps = (*(0.0,) * (g.conv_kernel - 1), 1.0)
        yield Vector(f"{name}.conv1d.weight", (width, g.conv_kernel, 1), taps)
        # exp(A_log) * softplus(dt_bias) = 3e-4: the gate forgets next to nothing, BETA does.
        yield Vector(f"{name}.A_log", (g.linear_value_heads,), (0.0,), float32=True)
        yield Vector(f"{name}.dt_bias", (g.linear_value_heads,), (-8.0,))
        yield Vector(f"{name}.norm.weight", (g.linear_value_dim,), (1.0,))
        # SiLU halves a small value; the norm of the output is 1 up to its epsilon.
        average = VALUE_STD / 2 * math.sqrt(BETA / (2 - BETA) / g.linear_key_dim)
        out_rms = average / math.sqrt(average**2 + 1e-6)
        std = out_std / out_rms / math.sqrt(g.value_width)
        yield self._matrix(f"{name}.out_proj", self._plain(g.hidden, std), columns=g.value_width)

    def _full_attention(
        self, name: str, layer: int, variance: float, out_std: float
    ) -> Iterator[Matrix | Vector]:
        g, name = self.geometry, f"{name}.self_attn"
        rms = math.sqrt(1 + variance)
        others = rms / math.sqrt(variance) / self.root_hidden
        head, factor = self._plain(g.head_dim, others), 1.0
        if layer == 0:
            head = Rows(g.head_dim, 0.0, rms / self.root_hidden, key=f"{name}.key")
            # A score of factor^2 / sqrt(head_dim) * sum of cos over the rotary pairs falls by
            # factor^2 * rotary_dim / sqrt(head_dim) / ln(theta) with each e-fold of distance.
            slope = g.rotary_dim / math.sqrt(g.head_dim) / math.log(g.rope_theta)
            factor = math.sqrt(DECAY_EXPONENT / slope)
        gate = (Rows(g.head_dim, 0.0),) if g.gated_attention else ()
        yield self._matrix(f"{name}.q_proj", *(head, *gate) * g.heads)
        yield self._matrix(f"{name}.k_proj", *(head,) * g.kv_heads)
        yield self._matrix(f"{name}.v_proj", Rows(g.kv_heads * g.head_dim, others))
        yield Vector(f"{name}.q_norm.weight", (g.head_dim,), (factor,))
        yield Vector(f"{name}.k_norm.weight", (g.head_dim,), (factor,))
        width = g.heads * g.head_dim
        # An average of several tokens is shorter than each of them; the gate is a half.
        shortened = 0.45 * (0.5 if g.gated_attention else 1.0)
        std = out_std / shortened / math.sqrt(width)
        yield self._matrix(f"{name}.o_proj", self._plain(g.hidden, std), columns=width)

    def _moe(self, name: str, input_std: float) -> Iterator[Matrix | Vector]:
        """The router, the experts and the shared expert; `input_std` leaves out the anchors."""
        g = self.geometry
        std = 1 / (input_std * self.root_hidden)
        yield Matrix(
            f"{name}.gate",
            (self._plain(g.experts, ROUTER_STD * std),),
            g.hidden,
            ROUTER_BITS,
            ROUTER_GROUP,
        )
        # silu(gate) * up of two normal numbers has a deviation of 0.6; k experts are averaged.
        spread = math.sqrt(0.54 / g.top_k + (0.09 if g.shared_inner else 0.0))
        down = self.tail_std / spread
        for role in ("gate_proj", "up_proj"):
            rows = (self._plain(g.inner, std),)
            yield Matrix(
                f"{name}.switch_mlp.{role}", rows, g.hidden, self.bits, self.group, g.experts
            )
        rows = (self._plain(g.hidden, down / math.sqrt(g.inner)),)
        yield Matrix(
            f"{name}.switch_mlp.down_proj", rows, g.inner, self.bits, self.group, g.experts
        )
        if g.shared_inner:
            for role in ("gate_proj", "up_proj"):
                yield self._matrix(f"{name}.shared_expert.{role}", self._plain(g.shared_inner, std))
            rows = (self._plain(g.hidden, down / math.sqrt(g.shared_inner)),)
            yield self._matrix(f"{name}.shared_expert.down_proj", *rows, columns=g.shared_inner)
            gate = (self._plain(1, std),)
            yield Matrix(f"{name}.shared_expert_gate", gate, g.hidden, ROUTER_BITS, ROUTER_GROUP)
