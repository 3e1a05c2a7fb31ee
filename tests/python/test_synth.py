"""flash-moe synth: what it refuses, what the engine makes of its folders, how experts repeat."""

import json
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from flash_moe import Engine, _core, synth
from flash_moe.cli import main
from flash_moe.errors import CancelledError, ConfigError, IoError
from flash_moe.folder import demo_model
from flash_moe.geometry import geometry_names, geometry_of, load_config, with_layers
from flash_moe.synth import synthesise
from flash_moe.synth_weights import Pools, Routing, bf16, step_of

VOCAB = 4160
COMMON = {
    "hidden_size": 256,
    "vocab_size": VOCAB,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "num_experts": 64,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 64,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
}
HYBRID = {
    "shared_expert_intermediate_size": 64,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "linear_conv_kernel_dim": 4,
    "partial_rotary_factor": 0.25,
}
TINY = {"model_type": "qwen3_5_moe_text", **COMMON, **HYBRID}
CONFIGS = {
    "qwen3_5_moe_text": TINY,
    "qwen3_5_moe": {
        "model_type": "qwen3_5_moe",
        "text_config": {**TINY, "model_type": "qwen3_5_moe_text"},
        "tie_word_embeddings": False,
    },
    "qwen3_next": {"model_type": "qwen3_next", **COMMON, **HYBRID},
    "qwen3_moe": {"model_type": "qwen3_moe", **COMMON, "norm_topk_prob": True},
    "tied": {**TINY, "tie_word_embeddings": True},
}
TOKENS = [7, 4100, 12, 999, 4159, 0, 31, 512, 8, 77, 2048, 3]


def expert_sets(folder, tokens=40):
    """Experts by layer and token, of random tokens."""
    ids = np.random.default_rng(5).integers(0, VOCAB, tokens).tolist()
    with Engine(folder, memory="400MB") as engine, engine.routes() as routes:
        engine.logits(ids)
    layers = max(row[0] for row in routes.rows) + 1
    return [[set(row[1:]) for row in routes.rows if row[0] == layer] for layer in range(layers)]


def overlap(sets):
    """Share of experts that the token before had as well, all layers together."""
    pairs = [(a, b) for layer in sets for a, b in pairwise(layer)]
    return sum(len(a & b) for a, b in pairs) / sum(len(b) for _, b in pairs)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"hidden_size": 0}, {}, "hidden_size: wanted a whole number above 0"),
        ({"hidden_size": "many"}, {}, "hidden_size"),
        ({"model_type": "llama"}, {}, "model_type"),
        ({"vocab_size": 100}, {}, "vocab_size: wanted at least"),
        ({"num_experts_per_tok": 65}, {}, "num_experts_per_tok: 65 of 64"),
        ({"mlp_only_layers": [0]}, {}, "dense layers"),
        ({"moe_intermediate_size": 48}, {}, "48 columns do not divide"),
        ({"linear_num_value_heads": 3}, {}, "multiple of the key heads"),
        ({"layer_types": ["full_attention"]}, {}, "layer_types: wanted 4 entries"),
        ({}, {"layers": 0}, "--layers"),
        ({}, {"bits": 7}, "wanted bits"),
        ({}, {"group": 16}, "a group of"),
        ({}, {"routing": Routing(locality=1.0)}, "locality: wanted 0 to"),
        ({}, {"routing": Routing(skew=-1.0)}, "skew: wanted 0 or more"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(tmp_path, change, options, message):
    with pytest.raises(ConfigError, match=message):
        synthesise({**TINY, **change}, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"qwen3\.5-35b-a3b"):
        load_config("qwen9-1b")


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match="holds other files"):
        synthesise(TINY, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_full_drive_is_said_first(tmp_path, monkeypatch):
    monkeypatch.setattr(synth.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(IoError, match=r"wanted .* more on this drive, 1.00 kB are free"):
        synthesise(TINY, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_hollow_folder_takes_no_room_for_experts_and_runs(tmp_path):
    full, hollow = tmp_path / "full", tmp_path / "hollow"
    synthesise(TINY, full)
    report = synthesise(TINY, hollow, hollow=True)
    for name in full.glob("*.safetensors"):
        assert (hollow / name.name).stat().st_size == name.stat().st_size
    taken = [sum(f.stat().st_blocks for f in d.glob("*.safetensors")) * 512 for d in (full, hollow)]
    experts = 4 * 64 * 3 * 256 * 64 * 9 // 16  # 4 layers of 64 experts of three matrices, 4.5 bits
    assert report.bytes > experts
    assert taken[0] - taken[1] > experts * 0.98
    with Engine(hollow) as engine:
        assert engine.generate(TOKENS, max_tokens=4).token_ids


def test_a_hollow_pack_is_refused(tmp_path, capsys):
    assert main(["synth", "qwen3.5-35b-a3b", str(tmp_path / "p"), "--format", "pack", "--hollow"])
    assert "--hollow: wanted --format mlx, got pack" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()


def test_an_interrupted_folder_is_completed_with_the_same_bytes(tmp_path):
    calls = []

    def stop(done, total):
        calls.append(done)
        return done > total // 2

    with pytest.raises(CancelledError):
        synthesise(TINY, tmp_path / "a", shard_bytes=1 << 20, progress=stop)
    kept = sorted(path.name for path in (tmp_path / "a").glob("*.safetensors"))
    assert kept
    assert not (tmp_path / "a" / "config.json").exists()
    assert not list((tmp_path / "a").glob("*.part"))
    with pytest.raises(ConfigError, match="other settings"):
        synthesise(TINY, tmp_path / "a", shard_bytes=1 << 20, bits=8)
    assert synthesise(TINY, tmp_path / "a", shard_bytes=1 << 20).resumed
    assert not synthesise(TINY, tmp_path / "b", shard_bytes=1 << 20).resumed
    for path in (tmp_path / "b").iterdir():
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("name", CONFIGS)
def test_the_engine_runs_it_with_finite_logits(tmp_path, name):
    synthesise(CONFIGS[name], tmp_path / "out", bits=4, group=64)
    with Engine(tmp_path / "out", memory="400MB") as engine:
        assert engine.tokenizer.size == VOCAB
        logits = engine.logits(TOKENS)
        assert logits.shape == (len(TOKENS), VOCAB)
        assert np.isfinite(logits).all()
        # Neither flat nor one-sided: sampling has something to choose from.
        assert 0.3 < logits.std() < 10
        text = engine.generate("Once upon a time", max_tokens=3, seed=1, ignore_eos=True)
        assert len(text.token_ids) == 3


@pytest.mark.parametrize(("bits", "group"), [(2, 32), (3, 64), (8, 128)])
def test_other_bits_and_groups_run(tmp_path, bits, group):
    config = {**TINY, "moe_intermediate_size": 128, "shared_expert_intermediate_size": 128}
    synthesise(config, tmp_path / "out", layers=1, bits=bits, group=group)
    with Engine(tmp_path / "out", memory="400MB") as engine:
        assert engine.info.layer_info[0].expert_bits == pytest.approx(bits + 32 / group)
        assert np.isfinite(engine.logits(TOKENS)).all()


def test_locality_and_skew_each_repeat_experts(tmp_path):
    found = {}
    for name, routing in {
        "none": Routing(0.0, 0.0),
        "locality": Routing(0.0, 0.9),
        "skew": Routing(3.0, 0.0),
    }.items():
        found[name] = expert_sets(synthesise(TINY, tmp_path / name, layers=2, routing=routing).path)
    chance = 4 / 64
    assert overlap(found["none"]) < chance + 0.12
    assert overlap(found["locality"]) > overlap(found["none"]) + 0.15
    assert overlap(found["skew"]) > overlap(found["none"]) + 0.15
    # What locality repeats passes on, what skew repeats stays.
    distant = {
        name: overlap([[layer[0], layer[-1]] for layer in sets]) for name, sets in found.items()
    }
    assert distant["skew"] > distant["locality"]


def test_a_pack_can_be_asked_for(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    arguments = ["synth", str(tmp_path / "config.json"), str(tmp_path / "out")]
    assert main([*arguments, "--layers", "1", "--format", "pack"]) == 0
    assert not (tmp_path / "out.mlx").exists()
    assert _core.inspect(str(tmp_path / "out")).format != _core.inspect(str(demo_model())).format


@pytest.mark.parametrize(
    ("name", "layers", "expert_bytes"),
    [
        ("qwen3.5-35b-a3b", 40, 3 * 512 * 2048 * 9 // 16),
        ("qwen3-next-80b-a3b", 48, 3 * 512 * 2048 * 9 // 16),
        ("qwen3-235b-a22b", 94, 3 * 1536 * 4096 * 9 // 16),
        ("qwen3.5-397b-a17b", 60, 7077888),
    ],
)
def test_named_geometries_have_the_releases_sizes(name, layers, expert_bytes):
    assert name in geometry_names()
    geometry = geometry_of(load_config(name))
    assert geometry.layers == layers
    weights = synth.Weights(geometry, Routing(), 4, 64)
    tensors = [t for module in weights.modules() for t in synth.tensors_of(module)]
    experts = [t for t in tensors if ".switch_mlp." in t.name]
    assert sum(t.size for t in experts) == layers * geometry.experts * expert_bytes


def test_layers_repeat_the_pattern():
    config = with_layers(load_config("qwen3.5-35b-a3b"), 42)
    assert geometry_of(config).full_attention[:4] == (False, False, False, True)
    assert geometry_of(config).layers == 42


def test_codes_and_scales_have_the_wanted_deviation():
    pools = Pools(1)
    codes = np.frombuffer(b"".join(pools.codes(pools.random("x"), 1 << 16)), np.uint8) & 15
    assert np.std(codes * step_of(0.5, 4)) == pytest.approx(0.5, rel=0.02)
    assert bf16([1.0, -2.0]).tolist() == [0x3F80, 0xC000]
