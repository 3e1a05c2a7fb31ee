"""Whole models through the Metal backend on the emulator say what the CPU backend in float32 says.

The same .mm as on a Mac, over the fake Metal: every mixer kind, weights of several formats, experts streamed through a small
cache, prompts in chunks, a device that reorders what it may and runs as late as it may, command buffers and reads that fail.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HOST = Path(__file__).resolve().parent
sys.path.insert(0, str(HOST.parents[1]))

from checkpoints import make  # noqa: E402

PROMPT = [(7 * i * i + 3 * i) % 250 + 1 for i in range(11)]
STEPS = 4
# Largest difference of a logit, against the spread of its row: sums run in another order, and exp has another last bit.
TOLERANCE = 2e-4

MIXERS = ["hf_bf16", "mlx_4bit_g64", "hf_full_attention", "hf_linear_attention", "hf_moe"]
FLOAT_CODES = ["hf_fp8", "mlx_mxfp4", "mlx_mxfp8", "mlx_nvfp4"]


@pytest.fixture(scope="session")
def site(host):
    pytest.importorskip("flash_moe", reason="flash_moe is not installed: pip install .")
    host.seed_images()
    return host.package()


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    made = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = make(name, tmp_path_factory.mktemp("checkpoints") / name)
        return made[name]

    return get


@pytest.fixture
def run(host, site, tmp_path):
    def go(folder: Path, backend: str, settings: dict[str, str] | None = None, prompt=PROMPT, steps=STEPS, **options):
        out = tmp_path / f"{backend}.npy"
        case = {
            "folder": str(folder),
            "options": {"backend": backend, "activations": "float32", "thread_count": 1} | options,
            "prompt": prompt,
            "steps": steps,
            "out": str(out),
        }
        environment = host.environment(**(settings or {})) | {"PYTHONPATH": str(site)}
        environment.pop("PYTEST_CURRENT_TEST", None)
        done = subprocess.run(
            [sys.executable, HOST / "whole_model.py", json.dumps(case)],
            env=environment, capture_output=True, text=True, timeout=1200, check=False, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-1000:]
        return json.loads(done.stdout.splitlines()[-1]), np.load(out)

    return go


def assert_same(metal, cpu) -> None:
    (metal_said, metal_rows), (cpu_said, cpu_rows) = metal, cpu
    assert metal_said["backend"].startswith("metal: fake device")
    assert metal_said["tokens"] == cpu_said["tokens"]
    spread = cpu_rows.max(axis=-1) - cpu_rows.min(axis=-1)
    difference = np.abs(metal_rows - cpu_rows).max(axis=-1) / spread
    assert np.isfinite(metal_rows).all()
    assert difference.max() < TOLERANCE, difference


@pytest.mark.parametrize("name", MIXERS + FLOAT_CODES)
def test_tiny_checkpoints_give_the_cpu_s_tokens_from_a_small_cache(run, folder, name):
    assert_same(run(folder(name), "metal", cache_slots=6), run(folder(name), "cpu"))


def test_auto_leaves_metal_alone(run, folder):
    said, _ = run(folder("hf_bf16"), "auto", steps=1)
    assert said["backend"].startswith("cpu")


@pytest.mark.parametrize(
    "settings",
    [
        {"FAKE_METAL_ORDER": "reverse"},
        {"FAKE_METAL_ORDER": "shuffled", "FAKE_METAL_RUN": "lazy"},
        {"FAKE_METAL_DELAY_US": "3000"},
    ],
    ids=["reverse", "shuffled_lazy", "late"],
)
def test_an_adverse_device_changes_nothing(run, folder, settings):
    path = folder("hf_bf16")
    plain = run(path, "metal", cache_slots=6, steps=2)[1]
    assert np.array_equal(plain, run(path, "metal", settings, cache_slots=6, steps=2)[1])


@pytest.mark.parametrize("activations", ["float32", "auto"])
@pytest.mark.parametrize("options", [{"prefill_chunk": 3}, {"cache_slots": 40}, {"prefetch": "on", "cache_slots": 12}], ids=str)
def test_speed_settings_change_no_bit(run, folder, options, activations):
    path = folder("mlx_4bit_g64")
    same = {"activations": activations, "steps": 2}
    plain = run(path, "metal", cache_slots=6, **same)[1]
    assert np.array_equal(plain, run(path, "metal", **(same | {"cache_slots": 6} | options))[1])


@pytest.mark.parametrize("name", ["hf_bf16", "mlx_4bit_g64"])
def test_prompts_through_simdgroup_matrices_give_the_cpu_s_tokens(run, folder, name):
    fast = run(folder(name), "metal", cache_slots=6, activations="auto", kv_dtype="float32")
    assert fast[0]["backend"].endswith("fast")
    assert_same(fast, run(folder(name), "cpu"))


def test_experts_read_by_gcd_give_the_same_bits(run, folder):
    path = folder("hf_bf16")
    plain = run(path, "metal", cache_slots=6, steps=2)[1]
    said, rows = run(path, "metal", cache_slots=6, steps=2, io="gcd", fail_read=5)
    assert [e.split(":")[0] for e in said["errors"]] == ["IoError"]
    assert np.array_equal(plain, rows)


@pytest.mark.parametrize("number", [1, 3, 9])
def test_a_failed_command_buffer_is_an_error_and_the_next_call_is_right(run, folder, number):
    path = folder("hf_bf16")
    plain = run(path, "metal", cache_slots=6, steps=2)[1]
    said, rows = run(path, "metal", {"FAKE_METAL_FAIL": str(number)}, cache_slots=6, steps=2)
    assert len(said["errors"]) == 1
    assert said["errors"][0].startswith("DeviceError: Metal: a command buffer failed: injected")
    assert np.array_equal(plain, rows)


def test_a_failed_read_is_an_error_and_the_next_call_is_right(run, folder):
    path = folder("hf_bf16")
    plain = run(path, "metal", cache_slots=6, steps=2)[1]
    said, rows = run(path, "metal", cache_slots=6, steps=2, fail_read=5)
    assert [e.split(":")[0] for e in said["errors"]] == ["IoError"]
    assert np.array_equal(plain, rows)


def test_weights_beyond_one_buffer_lie_in_windows(run, folder):
    path = folder("hf_bf16")
    plain = run(path, "metal", cache_slots=6, steps=2)[1]
    small = {"FAKE_METAL_MAX_BUFFER": str(1 << 20)}
    assert np.array_equal(plain, run(path, "metal", small, cache_slots=6, steps=2)[1])


def test_the_bundled_model_tells_the_cpu_s_story(run):
    import flash_moe

    demo = Path(flash_moe.__file__).parent / "models/demo"
    short = {"prompt": PROMPT[:5], "steps": int(os.environ.get("FLASH_MOE_EMULATED_TOKENS", "3"))}
    assert_same(run(demo, "metal", cache_slots=16, **short), run(demo, "cpu", **short))
