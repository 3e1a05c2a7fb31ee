"""`flash-moe info` and `flash-moe plan`: what a folder holds and needs, by its headers."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _core, machine
from .cli_options import add_common, add_engine, add_model
from .engine import vocab_size
from .folder import demo_model, resolve_model
from .plan import Speed, expected_speed, plan_memory
from .sizes import format_bytes
from .terminal import emit, emit_json, say, table
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from ._core import MemoryPlan, ModelInfo

_INFO = [
    "path",
    "architecture",
    "format",
    "quantisation",
    "layers",
    "moe_layers",
    "full_attention_layers",
    "hidden",
    "vocab",
    "context",
    "experts",
    "experts_per_token_trained",
    "skipped_tensors",
    "mtp_tensors",
    "resident_bytes",
    "expert_bytes",
    "experts_bytes",
    "slot_bytes",
]
_PLAN = [
    "memory_bytes",
    "process_bytes",
    "resident_bytes",
    "step_bytes",
    "sequence_bytes",
    "slots_bytes",
    "slots",
    "slots_all",
    "slots_min",
    "memory_bytes_min",
    "prefill_chunk",
    "context_tokens",
]


def fields(source: ModelInfo | MemoryPlan, names: list[str]) -> dict[str, Any]:
    """Returns attributes of a core's object as JSON data."""
    return {name: getattr(source, name) for name in names}


def layer_forms(info: ModelInfo) -> list[dict[str, Any]]:
    """Returns which layers are stored how, equal ones together.

    Returns:
        Entries {layers, mixer, mixer_format, experts, experts_format, expert_bits, bytes}.
    """
    groups: dict[tuple[str, str, int, str, float], dict[str, Any]] = {}
    for index, layer in enumerate(info.layer_info):
        mixer = "full attention" if layer.full_attention else "linear attention"
        key = (mixer, layer.mixer_format, layer.experts, layer.experts_format, layer.expert_bits)
        entry = groups.setdefault(
            key,
            {
                "layers": [],
                "mixer": mixer,
                "mixer_format": layer.mixer_format,
                "experts": layer.experts,
                "experts_format": layer.experts_format,
                "expert_bits": layer.expert_bits,
                "bytes": 0,
            },
        )
        entry["layers"].append(index)
        entry["bytes"] += layer.resident_bytes + layer.experts * layer.expert_bytes
    return list(groups.values())


def _form_lines(forms: list[dict[str, Any]]) -> list[str]:
    lines = []
    for form in forms:
        experts = "dense"
        if form["experts"]:
            bits = f"{form['expert_bits']:.2f} bits a weight"
            experts = f"{form['experts']} experts {form['experts_format']} ({bits})"
        lines.append(
            f"  layers {_ranges(form['layers'])}: {form['mixer']} {form['mixer_format']}, "
            f"{experts}, {format_bytes(form['bytes'])}"
        )
    return lines


def _ranges(numbers: list[int]) -> str:
    """Returns 0, 1, 2, 5 as "0-2, 5"."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def add_info(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of info."""
    add_model(parser)
    add_common(parser)
    parser.add_argument(
        "--measure", action="store_true", help="measure memory and drive (about 2 s)"
    )


def _folder(args: argparse.Namespace) -> Path:
    return demo_model() if args.model is None else resolve_model(args.model)


def run_info(args: argparse.Namespace) -> int:
    """Prints what is in a folder and what the machine is."""
    folder = _folder(args)
    info = _core.inspect(str(folder))
    model = fields(info, _INFO)
    forms = layer_forms(info)
    tokenizer = Tokenizer(folder)
    tokenizer.check_vocab(vocab_size(folder) or model["vocab"])
    this = machine.describe()
    this["drive"] = machine.drive(folder)
    this["backends"] = {name: why or "available" for name, why in _core.backends().items()}
    this["kernels"] = _core.cpu_isas()
    if args.measure:
        this["memory_bytes_per_second"] = machine.measure_memory()
        this["drive_read"] = machine.measure_drive(machine.largest_file(folder))
    if args.json:
        emit_json(
            {"model": {**model, "tokenizer_ids": tokenizer.size, "forms": forms}, "machine": this}
        )
        return 0
    emit("\n".join(_model_lines(model, tokenizer.size) + _form_lines(forms)))
    emit("\n".join(_folder_lines(folder)))
    emit("\n".join(_machine_lines(this)))
    return 0


def _model_lines(model: dict[str, Any], ids: int) -> list[str]:
    linear = model["layers"] - model["full_attention_layers"]
    lines = [
        f"model {model['path']}",
        f"  {model['architecture']}, {model['format']}, experts {model['quantisation']}",
        f"  {model['layers']} layers ({model['full_attention_layers']} full attention, "
        f"{linear} linear), hidden {model['hidden']}",
        f"  {model['moe_layers']} MoE layers of {model['experts']} experts, "
        f"{model['experts_per_token_trained']} a token",
        f"  vocabulary {model['vocab']} ({ids} ids), context {model['context']}",
        f"  resident {format_bytes(model['resident_bytes'])}, "
        f"experts {format_bytes(model['experts_bytes'])} "
        f"({format_bytes(model['expert_bytes'])} each)",
    ]
    if model["skipped_tensors"]:
        lines.append(f"  {model['skipped_tensors']} tensors of a vision tower are skipped")
    if model["mtp_tensors"]:
        lines.append(f"  {model['mtp_tensors']} tensors of a multi-token-prediction head")
    return lines


def _folder_lines(folder: Path) -> list[str]:
    sizes: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for path in folder.iterdir():
        if path.is_file():
            kind = path.suffix or path.name
            sizes[kind] += path.stat().st_size
            counts[kind] += 1
    kinds = sorted(sizes, key=lambda kind: -sizes[kind])
    return ["files", *(f"  {counts[k]} x {k}: {format_bytes(sizes[k])}" for k in kinds)]


def _machine_lines(this: dict[str, Any]) -> list[str]:
    available = this["memory_available_bytes"]
    lines = [
        f"machine {this['system']}",
        f"  {this['cpu']}, {this['cores']} cores",
        f"  {' '.join(this['isa']) or 'no known ISA extensions'}",
        f"  memory {format_bytes(this['memory_bytes'])}"
        + (f", {format_bytes(available)} available" if available else ""),
        f"  drive {this['drive'] or 'unknown'}",
    ]
    lines.append(f"  CPU kernels {', '.join(this['kernels'])}")
    lines += [f"  backend {name}: {state}" for name, state in this["backends"].items()]
    if "drive_read" in this:
        read = this["drive_read"]
        how = "past the page cache" if read["direct"] else "through the page cache"
        lines.append(f"  memory gives {this['memory_bytes_per_second'] / 1e9:.1f} GB/s")
        lines.append(
            f"  drive gives {read['bytes_per_second'] / 1e9:.2f} GB/s "
            f"({format_bytes(read['read_bytes'])} reads, {read['depth']} at a time, {how})"
        )
    return lines


def add_plan(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of plan."""
    parser.add_argument(
        "--context", type=int, default=4096, metavar="N", help="tokens of one sequence (4096)"
    )
    parser.add_argument("--no-measure", action="store_true", help="leave out the expected speed")
    add_common(parser)
    add_engine(parser)


def run_plan(args: argparse.Namespace) -> int:
    """Prints how memory would be divided and what speed to expect."""
    folder = _folder(args)
    plan = plan_memory(
        folder,
        memory=args.memory,
        context_tokens=args.context,
        backend=args.backend,
        experts_per_token=args.experts_per_token,
        kv_dtype=args.kv_dtype,
        activations=args.activations,
        prefill_chunk=args.prefill_chunk,
        cache_slots=args.cache_slots,
    )
    info = _core.inspect(str(folder))
    speed = None
    if not args.no_measure:
        read = machine.measure_drive(machine.largest_file(folder))
        memory_rate = machine.measure_memory()
        top_k = args.experts_per_token or info.experts_per_token_trained
        speed = expected_speed(info, plan, top_k, read["bytes_per_second"], memory_rate)
    if args.json:
        emit_json({"plan": fields(plan, _PLAN), "expected": speed.to_dict() if speed else None})
        return 0
    emit(_plan_table(plan))
    if speed is not None:
        emit(_speed_lines(speed))
        say("A bound, not a promise: reads and arithmetic at the measured rates, nothing else.")
    return 0


def _plan_table(plan: MemoryPlan) -> str:
    rows = [
        ("interpreter, libraries, tokenizer", plan.process_bytes),
        ("resident weights", plan.resident_bytes),
        ("activations of a step", plan.step_bytes),
        (f"one sequence of {plan.context_tokens} tokens", plan.sequence_bytes),
        (f"{plan.slots} expert slots of {plan.slots_all} experts", plan.slots_bytes),
        ("bound", plan.memory_bytes),
        (f"least that works ({plan.slots_min} slots)", plan.memory_bytes_min),
    ]
    lines = [{"what": what, "size": format_bytes(count)} for what, count in rows]
    return table(lines, left=("what",)) + f"\nprefill in chunks of {plan.prefill_chunk} tokens"


def _speed_lines(speed: Speed) -> str:
    return "\n".join(
        [
            f"experts of a token: {format_bytes(speed.expert_bytes_per_token)}; hits expected "
            f"{100 * speed.hit_rate_low:.0f} to {100 * speed.hit_rate_high:.0f} %",
            f"drive {speed.drive_bytes_per_second / 1e9:.2f} GB/s, memory "
            f"{speed.memory_bytes_per_second / 1e9:.1f} GB/s",
            f"decode at most {speed.tokens_per_second_low:.2f} to "
            f"{speed.tokens_per_second_high:.2f} tokens/s",
        ]
    )
