"""The bundled model: transformers' logits, a story, chat, tools, and experts streamed."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import flash_moe

ROOT = Path(__file__).resolve().parents[2]
MASTER = ROOT / "tests" / "data" / "demo_bf16"
# Of the logits' range, as for the tiny checkpoints.
TOLERANCE = 1e-4
SHIPPED_BYTES_MAX = 20_000_000
STORY = (
    ", there was a little girl named Martha. She lived in a little house at the edge of the woods. "
    "She liked to look at the stars.\n\nOne Saturday, Martha and Jerry found a little ribbon under "
    'the apple tree. "It is mine!" said Martha.'
)
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather for a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Name of the city"}},
            "required": ["city"],
        },
    },
}


@pytest.fixture(scope="module")
def exact() -> Iterator[flash_moe.Engine]:
    """The bundled model in the reference precision, in which no text depends on the machine."""
    with flash_moe.Engine(activations="float32") as engine:
        yield engine


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bf16 master, restored from its two halves; `unpack` compares the SHA-256."""
    path = ROOT / "tools" / "demo_model" / "master.py"
    spec = importlib.util.spec_from_file_location("demo_master", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    out = tmp_path_factory.mktemp("master")
    module.unpack(MASTER, out)
    return out


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(ROOT / "tests" / "golden" / f"demo_{name}.npz") as file:
        return dict(file)


def assert_logits(engine: flash_moe.Engine, arrays: dict[str, np.ndarray], prompt: str) -> None:
    wanted = arrays[f"{prompt}_logits"]
    got = engine.logits(arrays[f"{prompt}_tokens"].tolist())[arrays[f"{prompt}_rows"]]
    assert np.abs(got - wanted).max() <= TOLERANCE * np.ptp(wanted)
    assert (got.argmax(1) == wanted.argmax(1)).all()


@pytest.mark.parametrize("prompt", ["story", "sum", "tool"])
def test_logits_and_greedy_tokens_equal_transformers(exact: flash_moe.Engine, prompt: str) -> None:
    arrays = golden("shipped")
    assert_logits(exact, arrays, prompt)
    told = arrays[f"{prompt}_greedy"].tolist()
    tokens = arrays[f"{prompt}_tokens"].tolist()
    answer = exact.generate(tokens, max_tokens=len(told), temperature=0)
    assert answer.token_ids == told


@pytest.mark.parametrize("prompt", ["story", "sum"])
def test_logits_of_the_bf16_master_equal_transformers(master: Path, prompt: str) -> None:
    with flash_moe.Engine(master, activations="float32") as engine:
        assert_logits(engine, golden("bf16"), prompt)


def test_the_goldens_are_of_these_files(master: Path) -> None:
    import hashlib

    for name, folder in (("shipped", flash_moe.demo_model()), ("bf16", master)):
        wanted = json.loads(str(golden(name)["metadata"]))["sha256"]
        assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == wanted


def test_the_folder_is_small_enough_to_ship() -> None:
    assert sum(p.stat().st_size for p in flash_moe.demo_model().iterdir()) <= SHIPPED_BYTES_MAX


def test_it_tells_a_story(exact: flash_moe.Engine) -> None:
    told = exact.generate("Once upon a time", max_tokens=60, temperature=0)
    assert told.text == STORY


def log_probabilities(engine: flash_moe.Engine, text: str) -> np.ndarray:
    logits = engine.logits(engine.tokenizer.encode(text)).astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_integer_activations_are_as_good_as_float32(exact: flash_moe.Engine) -> None:
    """KL divergence from float32 activations, in nats a token: below 1e-5."""
    text = "Once upon a time" + STORY
    want = log_probabilities(exact, text)
    with flash_moe.Engine(activations="auto") as engine:
        got = log_probabilities(engine, text)
    divergence = (np.exp(want) * (want - got)).sum(-1)
    assert len(divergence) > 60
    assert divergence.max() < 1e-5
    assert (want.argmax(-1) == got.argmax(-1)).mean() > 0.95


def test_streamed_experts_tell_the_same_tokens() -> None:
    least = flash_moe.plan_memory().memory_bytes_min
    with flash_moe.Engine() as roomy:
        wanted = roomy.generate("Once upon a time", max_tokens=16, temperature=0).token_ids
    with flash_moe.Engine(memory=least + (8 << 20)) as small:
        plan = small.memory_plan()
        assert plan.slots < plan.slots_all / 2
        got = small.generate("Once upon a time", max_tokens=16, temperature=0).token_ids
        assert small.stats().expert_misses > plan.slots
    assert got == wanted


def test_it_answers_a_sum_with_and_without_thinking(exact: flash_moe.Engine) -> None:
    question = [{"role": "user", "content": "What is 47 + 35?"}]
    plain = exact.chat(question, enable_thinking=False, temperature=0, max_tokens=60)
    assert plain.text == "47 + 35 = 82"
    thought = exact.chat(question, enable_thinking=True, temperature=0, max_tokens=80)
    assert (thought.text, "70 + 12 = 82" in thought.thinking) == ("47 + 35 = 82", True)


def test_it_calls_a_tool_and_reports_what_came_back(exact: flash_moe.Engine) -> None:
    talk = exact.conversation(tools=[WEATHER], enable_thinking=False)
    reply = talk.ask("What is the weather in Paris?", temperature=0, max_tokens=80)
    calls = [(call.name, call.arguments) for call in reply.tool_calls]
    assert calls == [("get_weather", {"city": "Paris"})]
    came = {"role": "tool", "content": '{"temperature": 21, "condition": "sunny"}'}
    answer = talk.ask(came, temperature=0, max_tokens=80)
    assert "21" in answer.text
    assert "sunny" in answer.text
