"""How the demo model routes: traces from the engine, and what they say about caches and prefetch.

Usage, from the repository's root:
  python tools/demo_model/routing.py record --kind stories --out stories.npz
  python tools/demo_model/routing.py statistics stories.npz
  python tools/demo_model/routing.py lookahead --master DIR     # needs torch and transformers
`flash-moe cache-sim stories.npz` gives the hit rates of the same traces.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

import flash_moe
from flash_moe import routes

Ids = NDArray[np.int64]

STARTS = (
    "Once upon a time", "One day, a little", "There was once a brave mouse", "In a small village",
    "Long ago,", "This is the story of", "One rainy morning,", "A young girl named",
)  # fmt: skip
QUESTIONS = (
    "What is 47 + 35?", "Tell me a story about a dragon.", "What is the capital of France?",
    "Who are you?", "What is 9 times 7?", "Please tell me a short story about a brave snail.",
    "How many legs does a spider have?", "Calculate 81 - 46.",
)  # fmt: skip


def tool_prompts(count: int) -> list[str]:
    """Held-out questions that need a tool, as `evaluate.py` asks them."""
    import chat_format
    import tools
    from lexicon import Pools

    random, pools = Random(990_060), Pools(True)
    cases = [tools.case(random, pools, False, must_call=True) for _ in range(count)]
    return [chat_format.generation_prompt(case.messages, case.tools, False) for case in cases]


def record(kind: str, out: Path) -> None:
    """Writes a trace in the order of decoding: each prompt is fed token by token.

    Args:
        kind: "stories" (temperature 0.7, seeds 1 to 8), "chat" or "tools" (greedy).
        out: a routes file.
    """
    total = 0
    with flash_moe.Engine(prefill_chunk=1) as engine:
        engine.core.record_routes(True)
        if kind == "stories":
            for seed, start in enumerate(STARTS, 1):
                text = engine.generate(start, max_tokens=250, seed=seed)
                total += text.stats.completion_tokens
        elif kind == "chat":
            for i, question in enumerate(QUESTIONS):
                messages = [{"role": "user", "content": question}]
                reply = engine.chat(
                    messages, max_tokens=200, temperature=0, enable_thinking=i % 2 == 0
                )
                total += reply.stats.completion_tokens
        else:
            for prompt in tool_prompts(4):
                reply = engine.generate(prompt, control_tokens=True, max_tokens=160, temperature=0)
                total += reply.stats.completion_tokens
        trace = routes.Routes(*engine.core.take_routes())
    routes.save_routes(out, trace)
    layers = len({row[0] for row in trace.rows})
    print(f"{kind}: {len(trace.rows) // layers} tokens, {total} of them generated, {layers} layers")


def by_token(path: Path) -> Ids:
    """Expert ids [tokens, layers, k] of a trace that was recorded token by token."""
    rows = np.array(routes.load_routes(path).rows)
    layers = int(rows[:, 0].max()) + 1
    if len(rows) % layers or (rows[:, 0] != np.arange(len(rows)) % layers).any():
        raise ValueError(f"{path}: want whole tokens one after another (record with chunks of 1)")
    return rows[:, 1:].reshape(-1, layers, rows.shape[1] - 1)


def member(ids: Ids, experts: int) -> NDArray[np.float64]:
    """[tokens, layers, experts], 1 where an expert was chosen."""
    out = np.zeros((*ids.shape[:2], experts))
    np.put_along_axis(out, ids, 1.0, axis=2)
    return out


def overlap(chosen: NDArray[np.float64], distance: int) -> float:
    """Mean share of a token's experts that the token `distance` before it chose as well."""
    both = (chosen[distance:] * chosen[:-distance]).sum(-1)
    return float((both / chosen[distance:].sum(-1)).mean())


def guess_recall(chosen: NDArray[np.float64], top_k: int) -> dict[str, float]:
    """Share of a layer's experts guessed from frequencies of the trace's first half.

    Returns:
        For guesses as wide as the top-k, on the second half: "frequency", the layer's most used
        experts; "layer before", the sum of log P(expert | expert of the layer before).
    """
    half = len(chosen) // 2
    seen, asked = chosen[:half], chosen[half:]
    usage = seen.mean(0) + 1e-3
    found: dict[str, list[float]] = {"frequency": [], "layer before": []}
    for layer in range(1, chosen.shape[1]):
        together = np.einsum("te,tf->ef", seen[:, layer - 1], seen[:, layer])
        given = (together + 4 * usage[layer]) / (seen[:, layer - 1].sum(0)[:, None] + 4)
        scores = {
            "frequency": np.broadcast_to(usage[layer], asked[:, layer].shape),
            "layer before": asked[:, layer - 1] @ np.log(given),
        }
        for name, score in scores.items():
            guess = np.argsort(-score, axis=1)[:, :top_k]
            hits = np.take_along_axis(asked[:, layer], guess, axis=1).sum(1)
            found[name].append(float((hits / top_k).mean()))
    return {name: float(np.mean(values)) for name, values in found.items()}


def statistics(path: Path) -> dict[str, object]:
    """Overlap in time, evenness of use, and how far a layer's experts can be guessed."""
    ids = by_token(path)
    experts = int(ids.max()) + 1
    chosen = member(ids, experts)
    use = chosen.mean((0,)) / chosen.shape[0]
    share = chosen.mean(0) / chosen.mean(0).sum(1, keepdims=True)
    entropy = -(share * np.log(np.maximum(share, 1e-12))).sum(1)
    return {
        "tokens": len(ids),
        "experts_touched": int((use > 0).sum()),
        "effective_experts_per_layer": [round(float(np.exp(e)), 1) for e in entropy],
        "overlap": {str(d): round(overlap(chosen, d), 4) for d in (1, 2, 4, 8, 16)},
        "overlap_by_layer": [
            round(overlap(chosen[:, layer : layer + 1], 1), 3) for layer in range(ids.shape[1])
        ],
        "overlap_by_chance": round(float((chosen.mean(0) ** 2).sum(1).mean() / ids.shape[2]), 4),
        "recall": {n: round(v, 4) for n, v in guess_recall(chosen, ids.shape[2]).items()},
    }


def lookahead(master: Path, token_count: int) -> dict[str, object]:
    """Recall of the guess that the engine's prefetch makes, on held-out documents.

    The next layer's norm and router are applied to this layer's state before its experts are
    added; that the guess is as wide as the top-k makes recall and precision the same.
    """
    import corpus
    import torch
    from evaluate import load
    from lexicon import Pools

    packer, pools, random = corpus.Packer(master, token_count), Pools(True), Random(990_052)
    model = load(master, "16", "cpu")
    layers = model.model.layers
    states: list[torch.Tensor] = []
    chosen: list[torch.Tensor] = []
    for layer in layers:
        layer.post_attention_layernorm.register_forward_pre_hook(
            lambda _module, args: states.append(args[0][0])
        )
        layer.mlp.gate.register_forward_hook(
            lambda _module, _args, output: chosen.append(output[2])
        )
    hits, total, tokens = np.zeros(len(layers) - 1), 0, 0
    with torch.no_grad():
        while tokens < token_count:
            ids = packer.encode(corpus.document(random, pools))[0].astype(np.int64)
            states.clear(), chosen.clear()
            model(torch.from_numpy(ids)[None], use_cache=False)
            here, wanted = list(states), list(chosen)
            for i, after in enumerate(list(layers)[1:]):
                logits = after.post_attention_layernorm(here[i]) @ after.mlp.gate.weight.T
                guess = logits.topk(wanted[i + 1].shape[-1], dim=-1).indices
                match = (guess[:, :, None] == wanted[i + 1][:, None, :]).any(1)
                hits[i] += float(match.float().mean(-1).sum())
            tokens += len(ids)
            total += len(ids)
    recall = hits / total
    return {
        "tokens": total,
        "recall": round(float(recall.mean()), 4),
        "recall_by_layer": [round(float(r), 3) for r in recall],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("record")
    first.add_argument("--kind", choices=["stories", "chat", "tools"], required=True)
    first.add_argument("--out", type=Path, required=True)
    second = commands.add_parser("statistics")
    second.add_argument("trace", type=Path)
    third = commands.add_parser("lookahead")
    third.add_argument("--master", type=Path, required=True)
    third.add_argument("--tokens", type=int, default=2000)
    args = parser.parse_args()
    if args.command == "record":
        record(args.kind, args.out)
    elif args.command == "statistics":
        print(json.dumps(statistics(args.trace), indent=1))
    else:
        print(json.dumps(lookahead(args.master, args.tokens)))


if __name__ == "__main__":
    main()
