"""Holds the goldens and the generator to one another, so that neither can drift alone."""

import hashlib
import json
import re
from itertools import combinations

import numpy as np
import pytest
from checkpoints import CASES, as_float32, model_hash
from checkpoints.mlx_format import Quantisation, dequantise, pack, quantise, unpack
from checkpoints.mlx_layout import MlxLayout
from checkpoints.number_formats import (
    bf16_decode,
    bf16_encode,
    e2m1_decode,
    e2m1_encode,
    e4m3_decode,
    e4m3_encode,
)
from checkpoints.safetensors_file import read, read_folder
from golden.golden_file import (
    FOLDER,
    GREEDY_MARGIN_MIN,
    GREEDY_TOKENS,
    ROUTER_MARGIN_MIN,
    load,
    log_softmax,
    prompt_of,
    relative_difference,
    tells_logits,
)

GOLDENS = sorted(FOLDER.glob("*.*.npz"))
# One of each structure that llama.cpp has: without these its goldens would prove less.
LLAMA_CASES = (
    "hf_bf16", "hf_f32", "hf_moe", "hf_next", "hf_tied", "hf_full_attention", "hf_linear_attention",
    "hf_heads_ratio_4", "hf_fp8", "hf_long", "mlx_4bit_g64",
)  # fmt: skip
CHECKPOINT_BYTES_MAX = 3_000_000
GOLDEN_BYTES_MAX = 6_000_000
# Two float32 implementations on the same weights; the worst pair recorded is 8e-6.
ORACLE_AGREEMENT = 3e-5


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_generator_still_makes_the_model_that_the_golden_saw(path, checkpoint):
    name = path.name.split(".")[0]
    golden = load(path)
    assert model_hash(checkpoint(name)) == golden.metadata["model_sha256"], (
        f"{name}: the generator changed; remake tests/golden/{path.name} (tests/golden/README.md)"
    )
    assert golden.metadata["seed"] == CASES[name].seed
    np.testing.assert_array_equal(golden.tokens, prompt_of(CASES[name]))


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_golden_is_whole_and_well_conditioned(path):
    golden = load(path)
    vocab = CASES[path.name.split(".")[0]].geometry.vocab
    assert golden.logits.shape == (len(golden.rows), vocab)
    assert golden.logits.dtype == np.float32
    assert np.isfinite(golden.logits).all()
    assert golden.greedy.shape == (GREEDY_TOKENS,)
    assert golden.rows[-1] == len(golden.tokens) - 1
    assert golden.greedy[0] == golden.logits[-1].argmax()
    assert 1.0 < golden.metadata["logit_std"] < 4.0
    if not tells_logits(golden):
        np.testing.assert_allclose(log_softmax(golden.logits), golden.logits, atol=1e-5)
    if golden.metadata["oracle"] == "transformers":
        assert golden.metadata["router_margin_min"] >= ROUTER_MARGIN_MIN
        assert golden.metadata["greedy_margin_min"] >= GREEDY_MARGIN_MIN


def test_every_case_has_its_goldens():
    have = {tuple(path.name.split(".")[:2]) for path in GOLDENS}
    want = {(name, "transformers") for name in CASES}
    want |= {(name, "llama_cpp") for name in LLAMA_CASES}
    want |= {(name, "mlx_lm") for name, case in CASES.items() if isinstance(case.layout, MlxLayout)}
    assert want <= have
    assert {name for name, _ in have} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_oracles_agree_with_one_another(name):
    goldens = [load(path) for path in GOLDENS if path.name.split(".")[0] == name]
    for first, other in combinations(goldens, 2):
        shared, one, two = np.intersect1d(first.rows, other.rows, return_indices=True)
        assert len(shared) >= 20
        a, b = first.logits[one], other.logits[two]
        if not (tells_logits(first) and tells_logits(other)):
            a, b = log_softmax(a), log_softmax(b)
        assert relative_difference(a, b) <= ORACLE_AGREEMENT
        np.testing.assert_array_equal(first.greedy, other.greedy)


def test_goldens_are_small():
    assert (
        sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < GOLDEN_BYTES_MAX
    )


@pytest.mark.parametrize("name", CASES)
def test_checkpoint_is_small_and_its_files_are_sound(name, checkpoint):
    folder = checkpoint(name)
    assert sum(path.stat().st_size for path in folder.iterdir()) < CHECKPOINT_BYTES_MAX
    tensors = read_folder(folder)
    assert tensors
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = json.loads(index.read_text())["weight_map"]
        assert set(weight_map) == set(tensors)
        for file_name in set(weight_map.values()):
            here = {key for key, value in weight_map.items() if value == file_name}
            assert set(read(folder / file_name)) == here


def test_every_bit_width_and_group_is_covered():
    affine = {
        (how.bits, how.group)
        for case in CASES.values()
        if isinstance(case.layout, MlxLayout)
        and (how := case.layout.default)
        and how.mode == "affine"
    }
    assert {bits for bits, _ in affine} == {2, 3, 4, 5, 6, 8}
    assert {group for _, group in affine} == {32, 64, 128}


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_packed_codes_are_one_little_endian_stream(bits):
    codes = (np.arange(64, dtype=np.uint32) * 37 % 2**bits).astype(np.uint8)
    words = pack(codes, bits)
    stream = sum(int(code) << (index * bits) for index, code in enumerate(codes))
    assert words.tobytes() == stream.to_bytes(64 * bits // 8, "little")
    np.testing.assert_array_equal(unpack(words, bits), codes)


@pytest.mark.parametrize("mode", ["mxfp4", "mxfp8", "nvfp4", "affine"])
def test_quantised_values_stay_near_their_source(mode):
    how = {
        "mxfp4": Quantisation(4, 32, mode),
        "mxfp8": Quantisation(8, 32, mode),
        "nvfp4": Quantisation(4, 16, mode),
        "affine": Quantisation(4, 32, mode),
    }[mode]
    weight = np.sin(np.arange(4 * 128, dtype=np.float32)).reshape(4, 128)
    values = dequantise(quantise(weight, how, "BF16"), how)
    # Half of the widest step of each format, for values up to 1.
    limit = {"mxfp4": 0.26, "mxfp8": 0.04, "nvfp4": 0.18, "affine": 0.08}[mode]
    assert 0 < np.abs(values - weight).max() < limit


def test_number_formats_survive_a_round_trip():
    e4m3 = np.array([code for code in range(256) if code & 0x7F != 0x7F], np.uint8)
    np.testing.assert_array_equal(e4m3_encode(e4m3_decode(e4m3)), e4m3)
    e2m1 = np.arange(16, dtype=np.uint8)
    np.testing.assert_array_equal(e2m1_encode(e2m1_decode(e2m1)), e2m1)
    bf16 = np.arange(0, 0x7F80, 7, dtype=np.uint16)
    np.testing.assert_array_equal(bf16_encode(bf16_decode(bf16)), bf16)


def test_number_formats_round_to_nearest_even():
    def bits(value):
        return int(bf16_encode(np.array([value], np.float32))[0])

    assert bits(1 + 2**-8) == 0x3F80
    assert bits(1 + 3 * 2**-8) == 0x3F82
    assert bits(1 + 2**-8 + 2**-20) == 0x3F81
    np.testing.assert_array_equal(e2m1_encode(np.array([0.25, 0.75, 5.0, -9.0])), [0, 2, 6, 15])
    np.testing.assert_array_equal(
        e4m3_encode(np.array([448.0, 1e9, 2.0**-10, -1.0])), [126, 126, 0, 0xB8]
    )


@pytest.mark.parametrize("name", ["mlx_mixed", "mlx_moe", "hf_fp8"])
def test_float32_twin_has_the_shapes_of_a_huggingface_folder(name, checkpoint, tmp_path):
    twin = read_folder(as_float32.convert(checkpoint(name), tmp_path))
    assert {stored.dtype for stored in twin.values()} == {"F32"}
    assert all(np.isfinite(stored.data).all() for stored in twin.values())
    assert not any(re.search(r"scales|biases|switch_mlp|_scale_inv", key) for key in twin)
    g = CASES[name].geometry
    fused = [key for key in twin if key.endswith("experts.gate_up_proj")]
    for key in fused:
        assert twin[key].data.shape == (g.experts, 2 * g.inner, g.hidden)
    assert len(fused) == (0 if name == "hf_fp8" else len(g.layer_types))


def test_recorded_conversations_and_texts_are_there():
    chat = json.loads((FOLDER / "chat_template.json").read_text(encoding="utf-8"))
    assert len(chat["entries"]) >= 30
    assert all(("text" in entry) != ("error" in entry) for entry in chat["entries"])
    corpus = json.loads((FOLDER / "tokenizer.json").read_text(encoding="utf-8"))
    assert len(corpus["entries"]) >= 50


def test_tokenizer_files_are_those_that_the_goldens_saw(checkpoint):
    corpus = json.loads((FOLDER / "tokenizer.json").read_text(encoding="utf-8"))
    chat = json.loads((FOLDER / "chat_template.json").read_text(encoding="utf-8"))
    for key, name in corpus["folders"].items():
        data = (checkpoint(name) / "tokenizer.json").read_bytes()
        assert hashlib.sha256(data).hexdigest() == corpus["sha256"][key], (
            f"{name}: run make_tokenizer.py"
        )
    template = (checkpoint(chat["folder"]) / "chat_template.jinja").read_bytes()
    assert hashlib.sha256(template).hexdigest() == chat["sha256"], "run make_chat_template.py"
