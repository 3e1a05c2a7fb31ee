"""benchmarks/write_gguf.py: blocks say what the affine weights say, and the file is a GGUF."""

import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from flash_moe.errors import ConfigError, FormatError
from flash_moe.synth import synthesise

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import gguf_blocks as blocks
import write_gguf

TINY = {
    "model_type": "qwen3_5_moe_text",
    "hidden_size": 512,
    "vocab_size": 4160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "linear_conv_kernel_dim": 4,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "partial_rotary_factor": 0.25,
    "tie_word_embeddings": False,
}
# Half a step of a 6-bit scale, of which the largest of a super-block has 56 or more, times 15 codes
# and as much for the minimum; and the rounding of the two float16 factors.
STEPS_OFF_MAX = 2 * 15 * 0.5 / 56 + 15 * 2 * 2**-11
HALF_PRECISION = 2.0**-11


def packed(codes):
    return (codes[:, 0::2] | codes[:, 1::2] << 4).astype(np.uint8)


def read_q4_k(rows, columns):
    """Dequantises by the format's description, one weight after the other."""
    out = np.empty((len(rows), columns), dtype=np.float64)
    for r, row in enumerate(rows):
        for c in range(columns):
            block = row[c // 256 * 144 :][:144].tobytes()
            d, d_min = struct.unpack("<2e", block[:4])
            sub, place = c % 256 // 32, c % 32
            s = block[4:16]
            if sub < 4:
                scale, minimum = s[sub] & 63, s[sub + 4] & 63
            else:
                scale = s[sub + 4] & 15 | s[sub - 4] >> 6 << 4
                minimum = s[sub + 4] >> 4 | s[sub] >> 6 << 4
            byte = block[16 + sub // 2 * 32 + place]
            code = byte >> 4 if sub % 2 else byte & 15
            out[r, c] = d * scale * code - d_min * minimum
    return out


def read_q4_1(rows, columns):
    out = np.empty((len(rows), columns), dtype=np.float64)
    for r, row in enumerate(rows):
        for c in range(columns):
            block = row[c // 32 * 20 :][:20].tobytes()
            d, m = struct.unpack("<2e", block[:4])
            byte = block[4 + c % 16]
            out[r, c] = d * (byte >> 4 if c % 32 >= 16 else byte & 15) + m
    return out


def random_affine(group, *, rows=3, columns=512, seed=7):
    """Codes, scales of both signs and biases below all weights, as a conversion makes them."""
    random = np.random.default_rng(seed)
    codes = random.integers(0, 16, (rows, columns), dtype=np.uint8)
    sizes = random.uniform(0.2, 1.0, (rows, columns // group)).astype(np.float32)
    signs = random.choice(np.array([-1, 1], dtype=np.float32), sizes.shape)
    lowest = -sizes * random.uniform(5, 10, sizes.shape).astype(np.float32)
    biases = np.where(signs > 0, lowest, lowest + 15 * sizes)
    return codes, sizes * signs, biases


@pytest.mark.parametrize("group", [32, 64, 128])
def test_q4_k_is_near_the_affine_weights(group):
    codes, scales, biases = random_affine(group)
    wanted = blocks.dequantised(codes, scales, biases)
    got = read_q4_k(blocks.q4_k(packed(codes), scales, biases), codes.shape[1])
    assert np.abs(got - wanted).max() < STEPS_OFF_MAX * np.abs(scales).max()


def test_q4_k_keeps_the_codes_of_scales_that_are_whole_parts():
    # The scales of synth: 6 to 10 eighths of one step, either sign, around a mean of 0.
    random = np.random.default_rng(3)
    codes = random.integers(0, 16, (4, 512), dtype=np.uint8)
    scales = (random.integers(6, 11, (4, 8)) / 8 * random.choice([-1, 1], (4, 8))).astype(
        np.float32
    )
    biases = np.float32(-7.5) * scales
    got = read_q4_k(blocks.q4_k(packed(codes), scales, biases), 512)
    wanted = blocks.dequantised(codes, scales, biases)
    assert np.abs(got - wanted).max() < 2 * 15 * 1.25 * HALF_PRECISION


def test_q4_k_of_weights_above_zero_rounds_their_codes():
    codes, scales, _ = random_affine(64)
    biases = np.abs(scales) * 4 + np.where(scales < 0, -15 * scales, 0)
    wanted = blocks.dequantised(codes, scales, biases)
    assert wanted.min() > 0
    got = read_q4_k(blocks.q4_k(packed(codes), scales, biases), codes.shape[1])
    step = (np.abs(scales) * (15 + 4) / 15).max()  # the codes span 0 to the largest weight
    assert np.abs(got - wanted).max() < (0.5 + STEPS_OFF_MAX) * step


@pytest.mark.parametrize("constant", [2.5, -2.5, 0.0])
def test_q4_k_holds_constants(constant):
    codes = np.random.default_rng(1).integers(0, 16, (2, 256), dtype=np.uint8)
    scales = np.zeros((2, 4), dtype=np.float32)
    biases = np.full((2, 4), constant, dtype=np.float32)
    got = read_q4_k(blocks.q4_k(packed(codes), scales, biases), 256)
    assert got == pytest.approx(constant, rel=2 * HALF_PRECISION)


@pytest.mark.parametrize("group", [32, 64, 128])
def test_q4_1_is_exact_up_to_the_rounding_of_its_factors(group):
    codes, scales, biases = random_affine(group)
    half = [values.astype(np.float16).astype(np.float32) for values in (scales, biases)]
    got = read_q4_1(blocks.q4_1(packed(codes), scales, biases), codes.shape[1])
    assert np.array_equal(got.astype(np.float32), blocks.dequantised(codes, *half))


def test_codes_come_out_as_they_went_in():
    codes = np.random.default_rng(2).integers(0, 16, (3, 64), dtype=np.uint8)
    assert np.array_equal(blocks.codes_of(packed(codes).view(np.uint32), 4), codes)
    words = codes.view(np.uint32)
    assert np.array_equal(blocks.codes_of(words, 8), codes)
    with pytest.raises(ValueError, match="4 or 8 bits, got 3"):
        blocks.codes_of(words, 3)


def test_value_heads_are_dealt_round_the_key_heads():
    # 2 key heads with 3 value heads of 2 channels each.
    assert blocks.tiled(2, 3 * 2, 2).tolist() == [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]


class Reader:
    """Reads a GGUF's header: {name: (numpy shape, type, bytes at)}, and its metadata."""

    def __init__(self, path):
        self.data = path.read_bytes()
        assert self.data[:4] == b"GGUF"
        self.at = 4
        _, tensors, pairs = self.take("<IQQ")
        self.metadata = {self.text(): self.value() for _ in range(pairs)}
        self.tensors = {}
        for _ in range(tensors):
            name, (count,) = self.text(), self.take("<I")
            shape = self.take(f"<{count}Q")[::-1]
            self.tensors[name] = (shape, *self.take("<IQ"))
        self.start = self.at + -self.at % 32

    def take(self, form):
        values = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return values

    def text(self):
        (size,) = self.take("<Q")
        return self.take(f"<{size}s")[0].decode()

    def value(self):
        (kind,) = self.take("<I")
        if kind == 8:
            return self.text()
        if kind == 9:
            kind, size = self.take("<IQ")
            assert kind == 5
            return list(self.take(f"<{size}i"))
        return self.take({4: "<I", 6: "<f"}[kind])[0]

    def bytes(self, name, size):
        begin = self.start + self.tensors[name][2]
        assert begin % 32 == 0
        return np.frombuffer(self.data[begin : begin + size], dtype=np.uint8)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf") / "tiny"
    synthesise(TINY, folder)
    return folder


def test_the_file_has_every_tensor_in_the_order_of_its_channels(tiny, tmp_path):
    out = tmp_path / "tiny.gguf"
    assert write_gguf.write_gguf(tiny, out) == out.stat().st_size
    read = Reader(out)
    own = {k.removeprefix("qwen35moe."): v for k, v in read.metadata.items()}
    assert own["general.architecture"] == "qwen35moe"
    assert own["full_attention_interval"] == 4
    assert own["ssm.inner_size"] == 256
    assert own["rope.dimension_sections"] == [11, 11, 10, 0]
    assert read.tensors["blk.0.ffn_up_exps.weight"][:2] == ((4, 64, 512), 12)  # Q4_K
    assert read.tensors["blk.0.ffn_down_exps.weight"][:2] == ((4, 512, 64), 3)  # Q4_1: 64 columns
    assert read.tensors["blk.0.ffn_gate_inp.weight"][:2] == ((4, 512), 0)
    assert read.tensors["blk.0.ssm_conv1d.weight"][:2] == ((512, 4), 0)
    assert "blk.3.attn_q.weight" in read.tensors
    assert "blk.3.ssm_out.weight" not in read.tensors
    assert read.bytes("blk.0.ssm_a", 16).view(np.float32).tolist() == [-1.0] * 4  # A_log is 0


def test_rows_and_columns_of_value_heads_move_together(tiny, tmp_path):
    out = tmp_path / "tiny.gguf"
    write_gguf.write_gguf(tiny, out)
    read, checkpoint = Reader(out), write_gguf.Checkpoint(tiny)
    prefix = "model.layers.1.linear_attn"

    def affine(name):
        parts = (checkpoint.floats(f"{prefix}.{name}.{leaf}") for leaf in ("scales", "biases"))
        return blocks.dequantised(blocks.codes_of(checkpoint[f"{prefix}.{name}.weight"], 4), *parts)

    heads = [0, 2, 1, 3]  # of the checkpoint, in GGUF's order
    rows = read.bytes("blk.1.attn_qkv.weight", 512 * 288).reshape(512, 288)
    values = affine("in_proj_qkv")
    for place, head in enumerate(heads):
        got = read_q4_k(rows[256 + 64 * place :][:2], 512)
        assert np.abs(got - values[256 + 64 * head :][:2]).max() < 1e-2 * np.abs(values).max()
    columns = read.bytes("blk.1.ssm_out.weight", 512 * 144).reshape(512, 144)
    got, wanted = read_q4_k(columns[:2], 256), affine("out_proj")[:2]
    for place, head in enumerate(heads):
        difference = got[:, 64 * place :][:, :64] - wanted[:, 64 * head :][:, :64]
        assert np.abs(difference).max() < 1e-2 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model_type": "qwen3_next"}, ConfigError, "wanted qwen3_5_moe, got qwen3_next"),
        ({"quantization": {"bits": 3}}, FormatError, "wanted affine weights of 4 or 8 bits"),
        ({"quantization": {"bits": 4, "mode": "mxfp4"}}, FormatError, "wanted affine weights"),
        ({"layer_types": ["full_attention", "linear_attention"] * 2}, ConfigError, "interval"),
        (
            {"tie_word_embeddings": True, "num_hidden_layers": 5},
            FormatError,
            "no tensor .*layers.4",
        ),
    ],
)
def test_what_it_does_not_write_is_said(tiny, tmp_path, change, error, message):
    for path in tiny.glob("*.safetensors"):
        (tmp_path / path.name).symlink_to(path)
    config = json.loads((tiny / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(error, match=message):
        write_gguf.write_gguf(tmp_path, tmp_path / "out.gguf")
    assert not list(tmp_path.glob("out.gguf*"))
