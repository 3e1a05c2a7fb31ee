"""Bad folders, options, prompts and disks: one clear line and exit code 2."""

import io
import re
import sys

import damage
import pytest

import flash_moe
from flash_moe import cli, errors

BF16_NAN = b"\xc0\x7f"


@pytest.fixture
def model(checkpoint, tmp_path):
    """Returns a function that copies a checkpoint so that it can be damaged."""
    return lambda name="hf_bf16": damage.copy(checkpoint(name), tmp_path / name)


@pytest.fixture
def refused(capsys):
    """Runs a command that must fail with one line on stderr; returns the line."""

    def run(*arguments, code=2):
        assert cli.main([str(a) for a in arguments]) == code
        captured = capsys.readouterr()
        assert captured.out == ""
        assert len(captured.err.splitlines()) == 1, captured.err
        return captured.err

    return run


def generate(folder, *arguments):
    return (
        "generate",
        "Hello",
        "--model",
        folder,
        "--max-tokens",
        4,
        "--temperature",
        0,
        *arguments,
    )


def test_a_missing_folder(refused, tmp_path):
    assert "no such folder" in refused(*generate(tmp_path / "nothing"))
    with pytest.raises(errors.ConfigError, match="no such folder"):
        flash_moe.Engine(tmp_path / "nothing")


def test_a_file_instead_of_a_folder(refused, model):
    assert "name the folder" in refused(*generate(model() / "config.json"))


def test_an_empty_folder(refused, tmp_path):
    assert "missing" in refused(*generate(tmp_path))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_lfs_pointers(refused, model, name):
    folder = model()
    (folder / name).write_bytes(damage.LFS)
    line = refused(*generate(folder))
    assert name in line
    assert re.search(r"git.lfs", line, re.IGNORECASE)
    with pytest.raises(errors.FormatError):
        flash_moe.Engine(folder)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.999])
def test_a_truncated_shard(refused, model, kept):
    folder = model()
    path = damage.weights(folder)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    assert path.name in refused(*generate(folder))


def test_a_missing_shard(refused, model):
    folder = model("hf_sharded")
    path = damage.weights(folder)
    path.unlink()
    assert path.name in refused(*generate(folder))


LIES = {
    "beyond the end": {"data_offsets": [0, 1 << 40]},
    "backwards": {"data_offsets": [100, 10]},
    "shape and size differ": {"shape": [3, 5]},
    "another shape": {"data_offsets": [0, 8], "shape": [2, 2]},
    "negative shape": {"shape": [-1, 5]},
    "no such dtype": {"dtype": "F12"},
}


@pytest.mark.parametrize("lie", LIES, ids=list(LIES))
@pytest.mark.parametrize("tensor", ["embed_tokens", "experts.gate_up_proj", "input_layernorm"])
def test_a_header_that_lies(refused, model, lie, tensor):
    folder = model()
    name = damage.edit_header(damage.weights(folder), tensor, **LIES[lie])
    line = refused(*generate(folder))
    assert "model.safetensors" in line
    assert name in line or "header" in line


@pytest.mark.parametrize(
    "tensor", ["switch_mlp.down_proj.scales", "in_proj_qkv.scales", "mlp.gate.scales"]
)
def test_nan_in_scales(refused, model, tensor):
    folder = model("mlx_4bit_g64")
    assert damage.fill(damage.weights(folder), tensor, BF16_NAN)
    line = refused(*generate(folder))
    assert "NaN" in line
    assert str(folder) in line


@pytest.mark.parametrize("tensor", ["mlp.gate.scales", "lm_head.scales"])
def test_weights_read_in_the_background_fail_the_call_that_needs_them(model, tensor):
    folder = model("mlx_4bit_g64")
    with flash_moe.Engine(folder) as engine:
        want = engine.generate([5, 6], max_tokens=4, temperature=0).token_ids
    weights = damage.weights(folder)
    damage.write_header(weights, *damage.read_header(weights))  # as long as `fill` will make it
    whole = weights.read_bytes()
    assert damage.fill(weights, tensor, BF16_NAN)
    with pytest.raises(errors.FormatError, match="NaN"):
        flash_moe.Engine(folder, load="whole")
    with flash_moe.Engine(folder, load="background") as engine, engine.session() as session:
        for _ in range(2):
            with pytest.raises(errors.FormatError, match="NaN"):
                session.feed([5, 6])
            assert session.position == 0
        with weights.open("r+b") as file:  # the same file, mended
            file.write(whole)
        assert session.generate([5, 6], max_tokens=4, temperature=0).token_ids == want


KEYS = [
    "num_experts",
    "num_experts_per_tok",
    "hidden_size",
    "num_hidden_layers",
    "moe_intermediate_size",
    "num_attention_heads",
    "vocab_size",
    "model_type",
]


@pytest.mark.parametrize("key", KEYS)
def test_a_config_without_a_key(refused, model, key):
    folder = model()
    damage.edit_json(folder / "config.json", lambda config: config.pop(key))
    line = refused(*generate(folder))
    assert key in line
    assert "config.json" in line


@pytest.mark.parametrize("value", ["many", -1, 0, 10**12, None, 1.5])
def test_a_config_with_a_wrong_value(refused, model, value):
    folder = model()
    damage.edit_json(folder / "config.json", lambda config: config.update(num_experts=value))
    line = refused(*generate(folder))
    assert "num_experts" in line or "experts" in line


def test_an_unknown_architecture(refused, model):
    folder = model()
    damage.edit_json(folder / "config.json", lambda config: config.update(model_type="llama"))
    assert "llama" in refused(*generate(folder))


def test_an_unknown_tensor(refused, model):
    folder = model()
    path = damage.weights(folder)
    header, data = damage.read_header(path)
    name = next(n for n in header if n.endswith("input_layernorm.weight"))
    header[name.replace("input_layernorm", "input_layer_norm")] = header.pop(name)
    damage.write_header(path, header, data)
    assert "layernorm" in refused(*generate(folder)).replace("layer_norm", "layernorm")


def test_a_missing_tokenizer(refused, model):
    folder = model()
    (folder / "tokenizer.json").unlink()
    line = refused(*generate(folder))
    assert "tokenizer.json: missing" in line


@pytest.mark.parametrize("vocab", [300, 4000])
def test_a_tokenizer_of_another_vocabulary(refused, model, vocab):
    folder = model()
    damage.edit_json(folder / "config.json", lambda config: config.update(vocab_size=vocab))
    line = refused(*generate(folder))
    assert "tokenizer belongs to another model" in line
    assert str(vocab) in line


def test_a_memory_budget_that_is_too_small_says_the_least_that_works(refused, model):
    folder = model()
    line = refused(*generate(folder, "--memory", "1MB"))
    assert "memory" in line
    least = flash_moe.plan_memory(folder).memory_bytes_min
    with pytest.raises(errors.ConfigError):
        flash_moe.Engine(folder, memory=int(least * 0.8))
    refused("plan", "--model", folder, "--memory", "1MB", "--no-measure")


def test_more_experts_than_the_model_has(refused, model):
    line = refused(*generate(model(), "--experts-per-token", 99))
    assert "99" in line
    assert "experts" in line


OPTIONS = [
    ("--backend", "abacus"),
    ("--cache", "attic"),
    ("--policy", "none-such"),
    ("--io", "pigeon"),
    ("--isa", "z80"),
    ("--activations", "float7"),
    ("--kv-dtype", "float7"),
]


@pytest.mark.parametrize("option", OPTIONS, ids=[o[0] for o in OPTIONS])
def test_options_that_do_not_exist(refused, model, option):
    assert option[1] in refused(*generate(model(), *option))


def test_a_backend_that_is_not_in_this_build(model):
    with pytest.raises(errors.DeviceError, match="metal"):
        flash_moe.Engine(model(), backend="metal" if sys.platform != "darwin" else "cuda")


def test_a_prompt_longer_than_the_context(refused, model):
    folder = model()
    line = refused("generate", "a b " * 5000, "--model", folder)
    assert "context holds 4096" in line


def test_an_empty_prompt(refused, model):
    assert "prompt is empty" in refused("generate", "", "--model", model())


@pytest.mark.parametrize("command", ["generate", "score"])
def test_invalid_utf8(refused, model, monkeypatch, command):
    folder = model()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"abc\xff\xfe")))
    assert "stdin: is not valid UTF-8 at byte 3" in refused(command, "-", "--model", folder)
    assert "not valid UTF-8" in refused(command, "ab\udcff", "--model", folder)


def test_bad_ids_are_refused_by_the_core_too(model):
    with flash_moe.Engine(model()) as engine:
        for ids in ([-1], [engine.info.vocab], []):
            with pytest.raises(errors.ConfigError), engine.session() as session:
                session.core.feed(ids)


def tokens_of(engine):
    return engine.generate([5], max_tokens=3, temperature=0, ignore_eos=True).token_ids


def test_a_disk_that_fails_in_the_middle_of_a_token(checkpoint):
    """The call fails with IoError, and the next one is right; test_contracts fails every read."""
    folder = checkpoint("hf_bf16")
    # A failed hint is nobody's error, so that which of the reads are hints would decide.
    options = {"cache_slots": 12, "cache": "slots", "threads": 1, "prefetch": False}
    with flash_moe.Engine(folder, **options) as engine:
        want = tokens_of(engine)
        reads_least = engine.stats().expert_misses
    assert reads_least > 20
    for number in range(1, reads_least, 5):
        with flash_moe.Engine(folder, fail_read=number, **options) as engine:
            with pytest.raises(errors.IoError, match=r"model\.safetensors at offset"):
                tokens_of(engine)
            assert tokens_of(engine) == want, f"after read {number} failed"


@pytest.mark.parametrize("number", [1, 40])
def test_a_failing_disk_is_one_line_and_exit_code_2(checkpoint, capsys, number):
    command = generate(checkpoint("hf_bf16"), "--fail-read", number, "--cache-slots", 12)
    command += ("--threads", "1", "--ignore-eos", "--prefetch", "off")
    assert cli.main([*map(str, command)]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert re.search(r"model\.safetensors at offset \d+: wanted \d+ bytes, got \d+", err)


def test_after_every_refused_call_the_next_one_is_right(checkpoint):
    with flash_moe.Engine(checkpoint("hf_bf16"), threads=1) as engine:
        want = tokens_of(engine)
        refused = [
            lambda: engine.generate(""),
            lambda: engine.generate("a\udcff"),
            lambda: engine.generate("a b " * 5000),
            lambda: engine.generate([5, engine.info.vocab]),
            lambda: engine.generate(["a", ""]),
            lambda: engine.generate("a", top_p=7),
            lambda: engine.logits([-1]),
            lambda: engine.score("a b " * 5000),
            lambda: engine.set_memory("1MB"),
            lambda: engine.load_session(engine.path / "config.json"),
        ]
        for call in refused:
            with pytest.raises(errors.Error):
                call()
            assert tokens_of(engine) == want
