"""Packs: the same logits, fewer bits when asked for, whole or refused after a kill."""

import json
import subprocess
import sys

import damage
import numpy as np
import pytest

import flash_moe
from flash_moe import cli, errors

TOKENS = [(11 * i * i + 5 * i) % 250 + 1 for i in range(24)]
# About twice what these bits cost a random model whose other matrices have 8 (0.0044, 0.0046,
# 0.046); 2 bits cost 0.57, a wrong code or scale as much or more.
DIVERGENCE_MAX = {8: 0.01, 6: 0.01, 4: 0.1}


def logits_of(folder):
    with flash_moe.Engine(folder, threads=1, activations="float32") as engine:
        return engine.logits(TOKENS)


def divergence(want, got):
    """Returns the median Kullback-Leibler divergence in nats: one near tie in a router may flip."""
    p, q = (
        rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
        for rows in (want.astype(np.float64), got.astype(np.float64))
    )
    return float(np.median((np.exp(p) * (p - q)).sum(axis=1)))


@pytest.fixture
def pack(tmp_path, capsys):
    """Returns a function that packs a folder and returns the pack and what was printed."""

    def run(source, *arguments, code=0, to="pack"):
        target = tmp_path / to
        command = ["pack", "--model", source, "--to", target, "--json", *arguments]
        assert cli.main([str(a) for a in command]) == code
        captured = capsys.readouterr()
        return target, json.loads(captured.out) if code == 0 else captured.err

    return run


def file_bytes(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("name", ["hf_bf16", "mlx_4bit_g64", "hf_moe", "hf_fp8", "mlx_nvfp4"])
def test_a_pack_gives_the_logits_of_its_source_bit_for_bit(checkpoint, pack, name):
    folder, report = pack(checkpoint(name))
    assert report["bytes"] == sum(
        path.stat().st_size for path in folder.iterdir() if path.suffix in (".pack", ".safetensors")
    )
    assert np.array_equal(logits_of(folder), logits_of(checkpoint(name)))


def test_fewer_bits_are_smaller_and_further_from_the_source(checkpoint, pack):
    source = checkpoint("hf_bf16")
    want = logits_of(source)
    sizes, distances = [], []
    for bits in (8, 6, 4, 3, 2):
        folder, report = pack(source, "--bits", bits, "--group-size", 32, to=f"pack{bits}")
        info = flash_moe.inspect(folder)
        layers = [layer for layer in info.layer_info if layer.experts]
        # A group of 32 has a scale and a bias of 16 bits each.
        assert {layer.expert_bits for layer in layers} == {bits + 1.0}
        sizes.append(report["bytes"])
        distances.append(divergence(want, logits_of(folder)))
        assert distances[-1] <= DIVERGENCE_MAX.get(bits, np.inf)
    assert sizes == sorted(sizes, reverse=True)
    assert distances == sorted(distances)


def test_modules_may_have_bits_of_their_own(checkpoint, pack):
    options = ("--bits", 4, "--group-size", 32, "--module-bits")
    plain, _ = pack(checkpoint("hf_bf16"), *options, "mlp.gate=8", to="plain")
    mixed, _ = pack(checkpoint("hf_bf16"), *options, "down_proj=8", to="mixed")
    bits = {
        folder: max(layer.expert_bits for layer in flash_moe.inspect(folder).layer_info)
        for folder in (plain, mixed)
    }
    assert bits[plain] == 5
    assert bits[mixed] == pytest.approx(5 + 4 / 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--bits", 4, "--module-bits", "no_such_proj=4"), "no_such_proj"),
        (("--bits", 4, "--module-bits", "mlp.gate=4"), "router"),
        (("--bits", 4, "--module-bits", "down_proj"), "NAME=BITS"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_options_that_cannot_be_are_one_line(checkpoint, pack, arguments, message):
    folder, line = pack(checkpoint("hf_bf16"), *arguments, code=2)
    assert len(line.splitlines()) == 1
    assert message in line
    assert not (folder / "manifest.json").exists()


def test_quantised_sources_are_rounded_again_only_when_told(checkpoint, pack):
    source = checkpoint("mlx_4bit_g64")
    _, line = pack(source, "--bits", 2, code=2)
    assert "requantise" in line
    folder, _ = pack(source, "--bits", 2, "--requantise", to="again")
    assert max(layer.expert_bits for layer in flash_moe.inspect(folder).layer_info) < 3


def test_a_finished_pack_is_kept_and_other_options_are_refused(checkpoint, pack):
    folder, first = pack(checkpoint("hf_moe"))
    before = file_bytes(folder)
    _, again = pack(checkpoint("hf_moe"))
    assert (first["resumed"], again["resumed"]) == (False, True)
    assert file_bytes(folder) == before
    _, line = pack(checkpoint("hf_moe"), "--bits", 4, code=2)
    assert len(line.splitlines()) == 1
    assert file_bytes(folder) == before


def test_a_pack_killed_while_it_wrote_its_first_file_starts_again(checkpoint, pack, tmp_path):
    folder = tmp_path / "pack"
    folder.mkdir()
    (folder / "letter.txt").write_text("dear")
    _, line = pack(checkpoint("hf_moe"), code=2)
    assert "is not empty and holds no pack" in line
    (folder / "letter.txt").rename(folder / "manifest.json.partial")
    pack(checkpoint("hf_moe"))
    assert np.isfinite(logits_of(folder)).all()
    assert not list(folder.glob("*.partial"))


# Packs in children that are killed after part of the time that a pack takes, and looks at what each
# leaves. Forks happen here, in a process with a single thread.
KILLER = """
import json, os, random, shutil, signal, sys, time
from flash_moe import _core
source, target = sys.argv[1:]
options = _core.PackOptions()
options.bits, options.group_size = 4, 32
started = time.perf_counter()
_core.pack_model(source, target + ".whole", options)
whole_s = time.perf_counter() - started
rng = random.Random(7)
loaded = unfinished = 0
for _ in range(12):
    child = os.fork()
    if child == 0:
        _core.pack_model(source, target, options)
        os._exit(0)
    time.sleep(rng.random() * whole_s)
    os.kill(child, signal.SIGKILL)
    finished = os.waitpid(child, 0)[1] == 0
    try:
        _core.inspect(target)
        loaded += 1
        shutil.rmtree(target)
    except _core.Error as error:
        assert not finished, error
        unfinished += 1
report = _core.pack_model(source, target, options)
print(json.dumps({"loaded": loaded, "unfinished": unfinished, "files": report.files}))
"""


def test_a_pack_killed_anywhere_never_loads_and_resumes_to_the_same_bytes(checkpoint, tmp_path):
    target = tmp_path / "pack"
    command = [sys.executable, "-c", KILLER, str(checkpoint("hf_bf16")), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["unfinished"] >= 3, report
    assert file_bytes(target) == file_bytes(tmp_path / "pack.whole")
    assert np.isfinite(logits_of(target)).all()


DAMAGES = {
    "layer missing": lambda folder: next(folder.glob("experts.*.pack")).unlink(),
    "layer cut": lambda folder: next(folder.glob("experts.*.pack")).write_bytes(b"x" * 4096),
    "dense missing": lambda folder: (folder / "dense.safetensors").unlink(),
    "manifest cut": lambda folder: (folder / "manifest.json").write_text('{"format":'),
    "unfinished": lambda folder: damage.edit_json(
        folder / "manifest.json", lambda manifest: manifest.update(complete=False)
    ),
    "other version": lambda folder: damage.edit_json(
        folder / "manifest.json", lambda manifest: manifest.update(version=99)
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_pack_is_one_line(checkpoint, pack, capsys, name):
    folder, _ = pack(checkpoint("hf_moe"))
    DAMAGES[name](folder)
    with pytest.raises(errors.Error):
        flash_moe.Engine(folder)
    assert cli.main(["generate", "Hello", "--model", str(folder)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert str(folder) in captured.err
