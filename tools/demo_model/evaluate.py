"""Perplexity and task accuracy of a checkpoint on held-out data, as stored and at fewer bits.

Held out: another seed; names, towns and invented words, and pairs of numbers in sums and
differences, that the training corpus never shows.

Usage: python evaluate.py --model DIR --tokenizer DIR --out results.json [--bits 16 8 4 3 2 shipped]
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from pathlib import Path
from random import Random
from typing import Any

import chat_format
import corpus
import numpy as np
import stories
import tasks
import tools
import torch
from fake_quant import round_trip
from lexicon import Pools
from tokenizers import Tokenizer
from transformers import AutoConfig, Qwen3_5MoeForCausalLM
from transformers.utils import logging

GROUP = 64
HELD_OUT_SEED = 990_001
CALL = re.compile(r"<tool_call>\n<function=([^>\n]+)>\n(.*?)</function>\n</tool_call>", re.DOTALL)
PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n(.*?)\n</parameter>\n", re.DOTALL)


def quantised(name: str, value: torch.Tensor, bits: str) -> torch.Tensor:
    """A parameter after the quantisation under test.

    ``n`` bits: every matrix at n but router and shared-expert gate at 8. ``shipped``: the main
    layers' experts at 4 and every other matrix at 8.
    """
    keep = ("norm", "conv1d", "A_log", "dt_bias")
    if bits == "16" or any(part in name for part in keep):
        return value
    if bits == "shipped":
        width = 4 if "mlp.experts" in name else 8
    else:
        width = 8 if name.endswith(("mlp.gate.weight", "shared_expert_gate.weight")) else int(bits)
    array = value.float().cpu().numpy()
    return torch.from_numpy(round_trip(array, width, GROUP)).to(value.dtype)


def load(folder: Path, bits: str, device: str) -> Qwen3_5MoeForCausalLM:
    """The model in float32 with weights as stored in bf16, or quantised from them."""
    from safetensors.torch import load_file

    config = AutoConfig.from_pretrained(folder)
    model = Qwen3_5MoeForCausalLM(config).float()
    tensors = load_file(folder / "model.safetensors")
    state = {
        n: quantised(n, v.float(), bits) for n, v in tensors.items() if not n.startswith("mtp.")
    }
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or [m for m in missing if m != "lm_head.weight"]:
        raise ValueError(f"weights do not fit: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    return model.to(device).eval()


@torch.no_grad()
def perplexity(model: Qwen3_5MoeForCausalLM, windows: np.ndarray) -> float:
    """exp of the mean loss over all tokens of held-out windows."""
    total, count = 0.0, 0
    for rows in np.array_split(windows[:, 0], max(1, len(windows) // 8)):
        ids = torch.from_numpy(rows.astype(np.int64)).to(model.device)
        logits = model(ids[:, :-1], use_cache=False).logits.float()
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"
        )
        total, count = total + losses.item(), count + ids[:, 1:].numel()
    return math.exp(total / count)


@torch.no_grad()
def generate(
    model: Qwen3_5MoeForCausalLM, tokenizer: Tokenizer, prompts: list[str], limit: int, batch: int
) -> list[str]:
    """Greedy continuations up to the end of the turn, without it."""
    stop = [tokenizer.token_to_id(t) for t in ("<|im_end|>", "<|endoftext|>")]
    pad = stop[1]
    answers: dict[int, str] = {}
    encoded = [tokenizer.encode(p, add_special_tokens=False).ids for p in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        width = max(len(encoded[i]) for i in chosen)
        ids = torch.full((len(chosen), width), pad)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(chosen):
            ids[row, width - len(encoded[i]) :] = torch.tensor(encoded[i])
            mask[row, width - len(encoded[i]) :] = 1
        out = model.generate(
            ids.to(model.device), attention_mask=mask.to(model.device), max_new_tokens=limit,
            do_sample=False, eos_token_id=stop, pad_token_id=pad,
        )  # fmt: skip
        for row, i in enumerate(chosen):
            new = out[row, width:].tolist()
            end = next((k for k, t in enumerate(new) if t in stop), len(new))
            answers[i] = tokenizer.decode(new[:end], skip_special_tokens=False)
    return [answers[i] for i in range(len(prompts))]


def parse_calls(text: str) -> list[tuple[str, dict[str, str]]] | None:
    """The calls of an answer, or None when anything but whole calls stands in it."""
    found = [(m[1], dict(PARAMETER.findall(m[2]))) for m in CALL.finditer(text)]
    rest = CALL.sub("", text).strip()
    return found if found and not rest else None


def after_thought(text: str, thinking: bool) -> str:
    """The answer behind the think block."""
    return text.split("</think>")[-1].strip() if thinking else text.strip()


def tool_cases(count: int) -> list[tuple[str, Any, bool]]:
    """Prompts that need calls, the right calls, and whether thinking is on."""
    random, pools = Random(HELD_OUT_SEED), Pools(True)
    found = []
    for i in range(count):
        thinking = i % 2 == 1
        case = tools.case(random, pools, thinking, must_call=True)
        calls = [
            (c["function"]["name"], {k: str(chat_format.to_json(v) if isinstance(v, list) else v) for k, v in c["function"]["arguments"].items()})
            for c in case.reply["tool_calls"]
        ]  # fmt: skip
        prompt = chat_format.generation_prompt(case.messages, case.tools, thinking)
        found.append((prompt, calls, thinking))
    return found


def report_cases(count: int) -> list[tuple[str, str, bool]]:
    """Prompts that end with a tool's response, and the results that the answer must name."""
    random, pools = Random(HELD_OUT_SEED + 1), Pools(True)
    found = []
    while len(found) < count:
        case = tools.case(random, pools, False, must_call=True)
        response = json.loads(case.follow[0]["content"])
        needed = [str(v) for v in response.values() if str(v) in case.follow[-1]["content"]]
        if not needed or any(isinstance(v, bool) for v in response.values()):
            continue
        messages = [*case.messages, case.reply, case.follow[0]]
        found.append((chat_format.generation_prompt(messages, case.tools, False), needed[0], False))
    return found


def task_cases(kind: str, count: int) -> list[tuple[str, tasks.Task, bool]]:
    """Arithmetic, JSON, reading or copying prompts."""
    maker = {"arithmetic": tasks.arithmetic, "json": tasks.json_task, "reading": tasks.reading,
             "copying": tasks.copying}[kind]  # fmt: skip
    random, pools = Random(HELD_OUT_SEED + 2), Pools(True)
    found = []
    for i in range(count):
        task = maker(random, pools)
        messages = [{"role": "system", "content": task.system}] if task.system else []
        messages.append({"role": "user", "content": task.prompt})
        thinking = i % 2 == 1
        found.append((chat_format.generation_prompt(messages, None, thinking), task, thinking))
    return found


def json_right(text: str, expected: Any) -> tuple[bool, bool]:  # noqa: ANN401
    """Whether it parses, and whether every key and value is right."""
    try:
        value = json.loads(text)
    except ValueError:
        return False, False
    return True, value == expected


def number_right(text: str, expected: int) -> bool:
    """Whether the last number of the first equation or of the text is the result."""
    equation = re.search(r"=\s*(-?\d+)", text)
    if equation:
        return int(equation[1]) == expected
    numbers = re.findall(r"-?\d+", text)
    return bool(numbers) and int(numbers[-1]) == expected


def accuracies(
    model: Qwen3_5MoeForCausalLM, tokenizer: Tokenizer, count: int, batch: int, failures: list[str]
) -> dict[str, float]:
    """Shares of right answers for each kind of task; appends some wrong ones to `failures`."""
    result: dict[str, float] = {}

    def run(kind: str, cases: list[tuple[str, Any, bool]], limit: int) -> list[tuple[str, Any]]:
        answers = generate(model, tokenizer, [c[0] for c in cases], limit, batch)
        return [(after_thought(a, c[2]), c) for a, c in zip(answers, cases, strict=True)]

    def score(kind: str, rows: list[tuple[bool, str, Any]]) -> None:
        result[kind] = sum(ok for ok, _, _ in rows) / len(rows)
        for _, answer, want in [r for r in rows if not r[0]][:6]:
            failures.append(f"[{kind}] want {want!r}\n   got {answer!r}")

    score("tool_call_exact", [(parse_calls(a) == c[1], a, c[1]) for a, c in run("tools", tool_cases(count), 160)])
    score("tool_report", [(c[1] in a, a, c[1]) for a, c in run("reports", report_cases(count // 2), 80)])
    rows = [(json_right(a, c[1].expected), a, c[1].answer) for a, c in run("json", task_cases("json", count), 160)]
    result["json_valid"] = sum(v for (v, _), _, _ in rows) / len(rows)
    score("json_right", [(r, a, w) for (_, r), a, w in rows])
    score("arithmetic", [(number_right(a, c[1].expected), a, c[1].plain) for a, c in run("sums", task_cases("arithmetic", count), 110)])
    for kind in ("reading", "copying"):
        score(kind, [(a == c[1].answer, a, c[1].answer) for a, c in run(kind, task_cases(kind, count // 2), 110)])
    return result


def samples(model: Qwen3_5MoeForCausalLM, tokenizer: Tokenizer) -> list[str]:
    """Sampled stories (temperature 0.7, top-k 20, top-p 0.95, seed 1)."""
    starts = (
        "Once upon a time", "One day, a little", "There was once a brave mouse", "In a small village",
        "Long ago,", "This is the story of",
    )  # fmt: skip
    torch.manual_seed(1)
    stop = tokenizer.token_to_id("<|endoftext|>")
    texts = []
    for start in starts:
        ids = torch.tensor([tokenizer.encode(start, add_special_tokens=False).ids], device=model.device)
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=320, do_sample=True,
            temperature=0.7, top_k=20, top_p=0.95, eos_token_id=stop, pad_token_id=stop,
        )  # fmt: skip
        texts.append(tokenizer.decode(out[0].tolist(), skip_special_tokens=True))
    return texts


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bits", nargs="+", default=["16", "shipped"])
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--samples", action="store_true")
    args = parser.parse_args()
    logging.set_verbosity_error()
    tokenizer = Tokenizer.from_file(str(args.tokenizer / "tokenizer.json"))
    packer = corpus.Packer(args.tokenizer, 510)
    windows = packer.windows(Random(HELD_OUT_SEED + 3), args.windows, Pools(True))
    story_ids = [
        packer.encode([(stories.tell(Random(HELD_OUT_SEED + 10 + i), Pools(True)).text, 2)])
        for i in range(4 * args.windows)
    ]
    stream = np.concatenate(story_ids, axis=1)
    rows = stream.shape[1] // 512
    story_windows = stream[:, : rows * 512].reshape(2, rows, 512).transpose(1, 0, 2)
    results: dict[str, Any] = {}
    for bits in args.bits:
        start = time.monotonic()
        model = load(args.model, bits, args.device)
        failures: list[str] = []
        entry: dict[str, Any] = {
            "perplexity": round(perplexity(model, windows), 4),
            "perplexity_stories": round(perplexity(model, story_windows), 4),
        }
        if args.count:
            entry |= accuracies(model, tokenizer, args.count, args.batch, failures)
        if args.samples and bits == args.bits[0]:
            results["samples"] = samples(model, tokenizer)
        entry["seconds"] = round(time.monotonic() - start, 1)
        entry["failures"] = failures
        results[bits] = entry
        shown = {k: v for k, v in entry.items() if k != "failures"}
        print(json.dumps({"bits": bits} | shown), flush=True)
        print("\n".join(failures[:24]), flush=True)
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
