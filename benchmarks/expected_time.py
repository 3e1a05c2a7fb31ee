"""The time a token should take on an Apple laptop, as arithmetic: docs/METAL.md shows what this prints.

    python benchmarks/expected_time.py [--model qwen3.5-397b-a17b] [--drive 17.5] [--memory 400] ...

Nothing here was measured on such a machine. Bytes follow from the model's dimensions; rates, hit rates and the time of
one host wait are arguments. Units: bytes, GB/s (10^9), milliseconds.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from flash_moe.geometry import Geometry, geometry_of, load_config
from flash_moe.synth import tensors_of
from flash_moe.synth_weights import Routing, Weights

HIT_RATES = (0.0, 0.5, 0.71, 0.85)
# Milliseconds of one layer at 4 experts a token and 4 bits on an M3 Max, by the README of danveloper/flash-moe.
ANCESTOR = {
    "projections, delta net": 1.22,
    "out, router, shared expert": 0.55,
    "reads of 4 experts": 2.41,
    "host": 0.05,
}
ANCESTOR_LAYER_MS = 4.28


@dataclass(frozen=True)
class Layer:
    """Bytes that one token moves through the GPU in one layer."""

    before_router: int  # mixer, norms, router, and the mixer's state
    shared_expert: int
    expert: int  # one of the k


def layers_of(geometry: Geometry, bits: int, group: int, context: int) -> tuple[list[Layer], int]:
    """Returns the layers, and the bytes of the head."""
    linear_state = (
        2 * 4 * geometry.linear_value_heads * geometry.linear_key_dim * geometry.linear_value_dim
    )
    keys_and_values = 2 * 2 * geometry.kv_heads * geometry.head_dim * context  # bf16
    before = [keys_and_values if full else linear_state for full in geometry.full_attention]
    shared = [0] * geometry.layers
    experts = [0] * geometry.layers
    head = 0
    for module in Weights(geometry, Routing(), bits, group).modules():
        size = sum(tensor.size for tensor in tensors_of(module))
        name = module.name.split(".")
        if "layers" not in name:
            head += size if "lm_head" in name else 0
            continue
        layer = int(name[name.index("layers") + 1])
        if "switch_mlp" in name:
            experts[layer] += size // geometry.experts
        elif "shared_expert" in name or "shared_expert_gate" in name:
            shared[layer] += size
        else:
            before[layer] += size
    if head == 0:
        raise ValueError("a model with tied weights: count its embedding as the head")
    return [Layer(*sizes) for sizes in zip(before, shared, experts, strict=True)], head


@dataclass(frozen=True)
class Machine:
    """Rates in bytes a millisecond; `wait` in milliseconds."""

    drive: float
    memory: float
    wait: float


def layer_ms(layer: Layer, k: int, hit: float, machine: Machine) -> tuple[float, float, float]:
    """Returns GPU time before the ids are known, reads, and GPU time beside the reads and behind them.

    Hits and the shared expert are computed while the misses are read; misses as they land, so that of
    the reads' time only what is longer than that work is added. The last read's expert is computed behind it.
    """
    read = k * (1 - hit) * layer.expert / machine.drive
    gpu = (layer.shared_expert + k * layer.expert) / machine.memory
    return layer.before_router / machine.memory, read, gpu


def token_ms(layers: list[Layer], head: int, k: int, hit: float, machine: Machine) -> float:
    total = head / machine.memory
    for layer in layers:
        before, read, gpu = layer_ms(layer, k, hit, machine)
        total += (
            before + machine.wait + max(read + (layer.expert / machine.memory if read else 0), gpu)
        )
    return total


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", default="qwen3.5-397b-a17b", help="a name of flash-moe synth, or a config.json"
    )
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--context", type=int, default=4096, help="tokens before this one")
    parser.add_argument("--drive", type=float, default=17.5, help="GB/s")
    parser.add_argument("--memory", type=float, default=400.0, help="GB/s")
    parser.add_argument(
        "--share",
        type=float,
        default=0.6,
        help="of the memory's rate that the kernels reach (assumed)",
    )
    parser.add_argument(
        "--wait", type=float, default=0.1, help="milliseconds of a layer's one host wait (assumed)"
    )
    return parser.parse_args()


def main() -> None:
    args = parse()
    geometry = geometry_of(load_config(args.model))
    layers, head = layers_of(geometry, args.bits, args.group, args.context)
    bound = Machine(args.drive * 1e6, args.memory * 1e6, 0.0)
    assumed = Machine(args.drive * 1e6, args.memory * 1e6 * args.share, args.wait)
    kinds = {
        full: layers[geometry.full_attention.index(full)]
        for full in sorted(set(geometry.full_attention))
    }

    print(f"{args.model}, {args.bits} bits in groups of {args.group}, {args.context} tokens of context, "
          f"drive {args.drive:g} GB/s, memory {args.memory:g} GB/s\n")  # fmt: skip
    print(
        "| a layer with | layers | MB before the router | MB of the shared expert | MB of one expert | ms before the router |"
    )
    print("|---|---|---|---|---|---|")
    for full, layer in kinds.items():
        sizes = [layer.before_router, layer.shared_expert, layer.expert]
        print(f"| {'full attention' if full else 'a delta net'} | {geometry.full_attention.count(full)} | "
              + " | ".join(f"{size / 1e6:.1f}" for size in sizes)
              + f" | {layer.before_router / bound.memory:.2f} |")  # fmt: skip
    print(f"| the head | | {head / 1e6:.1f} | | | {head / bound.memory:.2f} |\n")

    print(f"| experts a token | hit rate | GB read | ms of reads | bound, tokens/s | at {args.share:.0%} of the memory's rate "
          f"and {args.wait:g} ms a wait |")  # fmt: skip
    print("|---|---|---|---|---|---|")
    for k in sorted({4, geometry.top_k}, reverse=True):
        for hit in HIT_RATES:
            read = sum(layer.expert for layer in layers) * k * (1 - hit)
            print(f"| {k} | {hit:.0%} | {read / 1e9:.2f} | {read / bound.drive:.0f} | "
                  f"{1e3 / token_ms(layers, head, k, hit, bound):.1f} | "
                  f"{1e3 / token_ms(layers, head, k, hit, assumed):.1f} |")  # fmt: skip

    if args.model != "qwen3.5-397b-a17b":
        return
    print(
        f"\n| the ancestor's layer, 4 experts | its ms (of {ANCESTOR_LAYER_MS}) | bytes / rate here, ms |"
    )
    print("|---|---|---|")
    n = geometry.layers
    before = sum(layer.before_router for layer in layers) / n / bound.memory
    shared = sum(layer.shared_expert for layer in layers) / n / bound.memory
    four = 4 * sum(layer.expert for layer in layers) / n
    names = list(ANCESTOR)
    print(
        f"| {names[0]}; {names[1]} | {ANCESTOR[names[0]]} + {ANCESTOR[names[1]]} | {before:.2f} + {shared:.2f} |"
    )
    print(
        f"| {names[2]}, 71 % of them in memory | {ANCESTOR[names[2]]} | {four * 0.29 / bound.drive:.2f} |"
    )
    print(f"| {names[3]} | {ANCESTOR[names[3]]} | |")
    print(f"| the experts' arithmetic, deferred | not stated | {four / bound.memory:.2f} |")


if __name__ == "__main__":
    main()
