"""The memory bound: what the process really holds, measured by the system."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import flash_moe

ROOT = Path(__file__).resolve().parents[2]
BF16 = ROOT / "tests" / "data" / "demo_bf16"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")

# A process of its own: the peak of this one has other tests in it.
RUN = """
import json, sys
import flash_moe
def held(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))
with flash_moe.Engine(sys.argv[1], memory=sys.argv[2], cache="slots", threads=2) as engine:
    plan = engine.memory_plan()
    text = str(engine.generate("Once upon a time " * 60, max_tokens=24, temperature=0))
    out = {"bound": plan.memory_bytes, "slots": plan.slots, "all": plan.slots_all, "text": text}
    out["peak"] = held("VmHWM")
    smaller = plan.memory_bytes - 12_000_000
    engine.set_memory(smaller)
    engine.generate("Once upon a time", max_tokens=24, temperature=0)
    out["smaller"] = smaller
    out["then"] = held("VmRSS")
print(json.dumps(out))
"""


def measure(model: Path, memory: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(model), memory], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("master")
    tool = ROOT / "tools" / "demo_model" / "master.py"
    subprocess.run(
        [sys.executable, tool, "unpack", "--folder", BF16, "--out", folder],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder


def test_the_process_stays_within_three_percent_of_the_bound(master: Path):
    texts = set()
    for memory in ("90MB", "100MB"):
        got = measure(master, memory)
        assert 64 < got["slots"] < got["all"], "the bound does not bind"
        assert got["peak"] <= 1.03 * got["bound"]
        assert got["peak"] >= 0.9 * got["bound"], "memory that was granted is not used"
        assert got["then"] <= 1.03 * got["smaller"], "set_memory gave nothing back"
        texts.add(got["text"])
    assert len(texts) == 1


def test_a_bound_below_the_least_says_the_least_and_that_works(master: Path):
    with pytest.raises(flash_moe.ConfigError, match="too small") as caught:
        flash_moe.Engine(master, memory="30MB")
    least = re.search(r"least that works is (\S+) (\wB)", str(caught.value))
    assert least, caught.value
    with flash_moe.Engine(master, memory="".join(least.groups())) as engine:
        assert engine.generate("Once", max_tokens=2, temperature=0).token_ids
