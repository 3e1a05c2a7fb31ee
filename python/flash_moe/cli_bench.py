"""`flash-moe bench`: the machine's bounds, and how near to them a model runs."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import _core
from .bench import (
    Bench,
    Machine,
    Plan,
    Setting,
    append_rows,
    check_has_weights,
    check_results,
    measure_machine,
    plot_title,
    rows_of,
)
from .bench_plot import check_plot, plot
from .cli_options import ENGINE_OPTIONS, add_common, add_engine
from .cli_report import timing_table
from .errors import CancelledError, ConfigError
from .folder import demo_model, resolve_model
from .plan import inspect, plan_memory
from .sizes import format_bytes, parse_bytes
from .terminal import emit, emit_json, say, table

# Those that every setting shares; a Setting has its own, and a bench lets no read fail.
_OPTIONS = tuple(
    name
    for name in ENGINE_OPTIONS
    if name not in ("memory", "isa", "cache", "prefetch", "fail_read")
)


def add_bench(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of bench."""
    parser.description = (
        "Measures memory and drive, then prefill and decoding, and prints every speed as a share "
        "of the machine's bound. --memory, --cache, --isa and --prefetch take lists: 8GB,4GB."
    )
    parser.add_argument(
        "--prompt-tokens", default="128", metavar="LIST", help="prompts to prefill (128)"
    )
    parser.add_argument(
        "--max-tokens", type=int, default=32, metavar="N", help="tokens to decode (32); 0: none"
    )
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument(
        "--cold", action="store_true", help="empty the caches before each measurement"
    )
    parser.add_argument(
        "--drive-seconds", type=float, default=1.0, metavar="S", help="of reading at each depth (1)"
    )
    parser.add_argument("--timing", action="store_true", help="table of the last run's phases")
    parser.add_argument("--results", metavar="FILE", help="append rows to a TSV file")
    parser.add_argument("--note", default="", help="a remark for those rows")
    parser.add_argument("--plot", metavar="FILE", help="draw decoding speed against memory")
    add_common(parser)
    add_engine(parser)


def split(text: str | None) -> list[str]:
    """Returns the parts of "8GB,4GB"; one empty part for None."""
    return [part.strip() for part in text.split(",")] if text is not None else [""]


def plan_of(args: argparse.Namespace) -> Plan:
    """Returns what to measure.

    Raises:
        ConfigError: on numbers that cannot be.
    """
    lengths: list[int] = []
    for part in split(args.prompt_tokens) if args.prompt_tokens else []:
        if not part.isdigit() or int(part) < 1:
            raise ConfigError(
                f'--prompt-tokens: wanted numbers like "128,2048", got {args.prompt_tokens!r}'
            )
        lengths.append(int(part))
    if args.max_tokens < 0 or args.repeats < 1:
        raise ConfigError(
            "wanted --max-tokens of 0 or more and --repeats of 1 or more, "
            f"got {args.max_tokens} and {args.repeats}"
        )
    if not lengths and not args.max_tokens:
        raise ConfigError("nothing to measure: --prompt-tokens is empty and --max-tokens 0")
    if not 0 < args.drive_seconds <= 60:
        raise ConfigError(f"--drive-seconds: wanted 0 to 60, got {args.drive_seconds}")
    return Plan(tuple(lengths), args.max_tokens, args.repeats, args.cold)


def settings_of(args: argparse.Namespace) -> list[Setting]:
    """Returns every combination of --memory, --cache, --isa and --prefetch.

    Raises:
        ConfigError: on a value that is none.
    """
    memories, caches, isas = split(args.memory), split(args.cache), split(args.isa)
    prefetches = split(args.prefetch)
    for memory in memories:
        if memory or args.memory is not None:
            parse_bytes(memory, "--memory")
    known = {
        "--cache": ("auto", "slots", "both", "os"),
        "--isa": ("auto", *_core.cpu_isas()),
        "--prefetch": ("auto", "on", "off"),
    }
    for option, values in (("--cache", caches), ("--isa", isas), ("--prefetch", prefetches)):
        for value in values:
            if value not in known[option]:
                raise ConfigError(
                    f"{option}: known here are {', '.join(known[option])}, got {value!r}"
                )
    return [
        Setting(memory or None, cache, isa, prefetch)
        for memory in memories
        for cache in caches
        for isa in isas
        for prefetch in prefetches
    ]


def check_budgets(
    folder: Path, settings: Sequence[Setting], plan: Plan, options: Mapping[str, Any]
) -> None:
    """Raises ConfigError when a memory bound is below what works, before anything is measured."""
    context = max(plan.prompt_tokens, default=16) + plan.decode_tokens + 1
    names = (
        "backend", "experts_per_token", "kv_dtype", "activations", "prefill_chunk", "cache_slots"
    )  # fmt: skip
    for memory in {setting.memory for setting in settings}:
        plan_memory(
            folder,
            memory=memory,
            context_tokens=context,
            **{name: options[name] for name in names},
        )


def run_bench(args: argparse.Namespace) -> int:
    """Measures and prints."""
    plan, settings = plan_of(args), settings_of(args)
    if args.results:
        check_results(Path(args.results))
    if args.plot:
        check_plot(Path(args.plot))
        if not plan.decode_tokens:
            raise ConfigError("--plot draws decoding: wanted --max-tokens above 0")
    folder = demo_model() if args.model is None else resolve_model(args.model)
    check_has_weights(folder)
    options = {name: getattr(args, name) for name in _OPTIONS}
    check_budgets(folder, settings, plan, options)
    info = inspect(folder)
    bench = Bench(folder, plan, options, say)
    say("measuring memory and drive")
    rates = measure_machine(folder, info, seconds=args.drive_seconds)
    if not args.json:
        emit(machine_lines(rates))
    results = bench.run(settings, rates)
    if not results:
        raise CancelledError("bench: stopped before anything was measured")
    done = 0 if bench.finished else 130
    summaries = [result.summary(rates) for result in results]
    if args.results:
        rows = rows_of(summaries, folder, rates, args.threads, args.note)
        append_rows(Path(args.results), rows)
    decoding = [one for one in summaries if one["kind"] == "decode"]
    if args.plot:
        plot(Path(args.plot), plot_title(folder, rates), decoding)
    if args.json:
        emit_json({"model": str(folder), "machine": _machine_json(rates), "results": summaries})
        return done
    emit(result_table(summaries))
    if args.timing:
        for one in decoding or summaries:
            say(f"\n{Setting(**one['setting'])}\n{timing_table(one['timing'])}")
    return done


def _machine_json(rates: Machine) -> dict[str, Any]:
    return {
        "memory_bytes_per_second": rates.memory,
        "drive_direct_bytes_per_second": rates.direct,
        "drive_buffered_bytes_per_second": rates.buffered,
        "record_bytes": rates.record_bytes,
    }


def machine_lines(rates: Machine) -> str:
    """Returns the machine's rates as text."""
    memory = ", ".join(
        f"{rate / 1e9:.1f} GB/s on {count} thread{'s' if count > 1 else ''}"
        for count, rate in rates.memory.items()
    )
    rows = [
        {
            "reads in flight": str(depth),
            "direct GB/s": f"{rates.direct[depth] / 1e9:.2f}" if depth in rates.direct else "-",
            "buffered GB/s": f"{rates.buffered[depth] / 1e9:.2f}",
        }
        for depth in rates.buffered
    ]
    record = f"drive, records of {format_bytes(rates.record_bytes)} at random places, from cold:"
    return f"memory {memory}\n{record}\n{table(rows)}\n"


def result_table(summaries: Sequence[Mapping[str, Any]]) -> str:
    """Returns results as text, one line each."""
    rows = []
    for one in summaries:
        speed = one["tokens_per_second"]
        rows.append(
            {
                "what": f"{one['kind']} {one['tokens']} {'cold' if one['cold'] else 'warm'}",
                "setting": str(Setting(**one["setting"])),
                "cache": one["cache_mode"],
                "slots": str(one["slots"]),
                "tokens/s": f"{speed['median']:.2f}",
                "min": f"{speed['min']:.2f}",
                "max": f"{speed['max']:.2f}",
                "hits": f"{100 * one['hit_rate']:.1f} %",
                "missed": format_bytes(one["missed_bytes_per_token"]),
                "touched": format_bytes(one["touched_bytes_per_token"]),
                "bound s": f"{one['bound_seconds_per_token']:.4f}",
                "of bound": f"{100 * one['share_of_bound']:.0f} %",
                "RSS": format_bytes(one["rss_bytes"]),
            }
        )
    return table(rows, left=("what", "setting", "cache"))
