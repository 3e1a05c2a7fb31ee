"""Records logits of the bf16 master from transformers in float32, and the router's choices.

Usage:
  python golden.py logits --master DIR --tokenizer DIR --out tests/golden/demo_logits.npz
  python golden.py trace --master DIR --tokenizer DIR --out tests/data/demo_trace.npz
"""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random

import chat_format
import corpus
import numpy as np
import tools
import torch
from evaluate import HELD_OUT_SEED, load
from lexicon import Pools
from tokenizers import Tokenizer

LONGEST = 60


def prompts() -> list[str]:
    """A story, a chat with thinking, a tool prompt and sums, all held out."""
    random, pools = Random(HELD_OUT_SEED + 50), Pools(True)
    case = tools.case(random, pools, False, must_call=True)
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What is 47 + 35?"},
    ]
    return [
        "Once upon a time, there was a little fox named Pip. She lived beside a deep blue lake.",
        chat_format.generation_prompt(messages, None, True),
        chat_format.generation_prompt(case.messages, case.tools, False),
    ]


@torch.no_grad()
def record_logits(args: argparse.Namespace) -> None:
    """Writes ids and full logits of each prompt; of long prompts the last positions only."""
    tokenizer = Tokenizer.from_file(str(args.tokenizer / "tokenizer.json"))
    model = load(args.master, "16", "cpu")
    arrays: dict[str, np.ndarray] = {}
    for i, prompt in enumerate(prompts()):
        ids = tokenizer.encode(prompt, add_special_tokens=False).ids
        logits = model(torch.tensor([ids]), use_cache=False).logits[0].float().numpy()
        arrays[f"ids_{i}"] = np.array(ids, dtype=np.int32)
        arrays[f"logits_{i}"] = logits[-LONGEST:]
        greedy = model.generate(
            torch.tensor([ids]), max_new_tokens=40, do_sample=False,
            eos_token_id=tokenizer.token_to_id("<|im_end|>"),
        )  # fmt: skip
        arrays[f"greedy_{i}"] = greedy[0, len(ids) :].numpy().astype(np.int32)
        print(f"prompt {i}: {len(ids)} tokens, then {tokenizer.decode(greedy[0, len(ids):].tolist())!r}")
    np.savez_compressed(args.out, **arrays)


@torch.no_grad()
def record_trace(args: argparse.Namespace) -> None:
    """Writes the experts of each token and layer in rank order, documents one after another."""
    tokenizer_windows = corpus.Packer(args.tokenizer, args.tokens)
    random, pools = Random(HELD_OUT_SEED + 51), Pools(True)
    model = load(args.master, "16", "cpu")
    config = model.config
    chosen: list[list[np.ndarray]] = [[] for _ in range(config.num_hidden_layers)]

    def hook(layer: int):  # noqa: ANN202
        def keep(_module: object, _args: object, output: tuple[torch.Tensor, ...]) -> None:
            chosen[layer].append(output[2].numpy().astype(np.uint8))

        return keep

    for i, layer in enumerate(model.model.layers):
        layer.mlp.gate.register_forward_hook(hook(i))
    next_gates: list[float] = []
    ids_all, starts, total = [], [], 0
    while total < args.tokens:
        ids = tokenizer_windows.encode(corpus.document(random, pools))[0].astype(np.int64)
        model(torch.from_numpy(ids)[None], use_cache=False)
        starts.append(total)
        ids_all.append(ids)
        total += len(ids)
    del next_gates
    experts = np.stack([np.concatenate(rows) for rows in chosen], axis=1)
    np.savez_compressed(
        args.out,
        experts=experts,
        ids=np.concatenate(ids_all).astype(np.uint16),
        starts=np.array(starts, dtype=np.int32),
        num_experts=np.int32(config.num_experts),
    )
    print(f"{experts.shape[0]} tokens, {experts.shape[1]} layers, top {experts.shape[2]}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["logits", "trace"])
    parser.add_argument("--master", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=2000)
    args = parser.parse_args()
    (record_logits if args.what == "logits" else record_trace)(args)


if __name__ == "__main__":
    main()
