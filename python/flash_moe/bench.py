"""Measures a model on this machine, every speed beside the bound that the machine sets it.

The bound of a step is the time that its bytes need: max(missed / drive, touched / memory). Missed
bytes are those of experts that had to be read, touched ones all weights that the step multiplies.
State and activations are left out, so that the bound is never above what a perfect engine needs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import statistics
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _core, machine
from ._version import __version__
from .cli_report import timing
from .engine import Engine
from .errors import CancelledError, ConfigError, FormatError, IoError
from .folder import Json
from .sizes import format_bytes

if TYPE_CHECKING:
    from ._core import ModelInfo

DEPTHS = (1, 2, 4, 8, 16, 32)
MIN_RECORD_BYTES = 4096
HASHED_BYTES = 1 << 20  # of each weight file
PROMPT_SEED, DECODE_SEED, WARM_SEED = 11, 12, 13


@dataclass(frozen=True)
class Setting:
    """One way to run the model."""

    memory: str | None = None
    cache: str = "auto"
    isa: str = "auto"
    prefetch: str = "auto"

    def __str__(self) -> str:
        """Returns it as a reader of a table needs it."""
        parts = [f"memory {self.memory or 'auto'}"]
        parts += [f"cache {self.cache}"] if self.cache != "auto" else []
        parts += [f"isa {self.isa}"] if self.isa != "auto" else []
        parts += [f"prefetch {self.prefetch}"] if self.prefetch != "auto" else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        prompt_tokens: lengths of prompts to prefill.
        decode_tokens: to generate; 0 leaves decoding out.
        repeats: of each measurement, interleaved over the settings.
        cold: whether the caches, the system's too, are emptied before each measurement.
    """

    prompt_tokens: tuple[int, ...] = (128,)
    decode_tokens: int = 32
    repeats: int = 3
    cold: bool = False


@dataclass(frozen=True)
class Machine:
    """What the machine gives, in bytes a second.

    Attributes:
        memory: by count of threads.
        direct: reads past the page cache, by count of reads in flight; empty where there are none.
        buffered: reads through it, of bytes that it does not hold.
        record_bytes: of one read.
    """

    memory: dict[int, float]
    direct: dict[int, float]
    buffered: dict[int, float]
    record_bytes: int

    @property
    def memory_rate(self) -> float:
        """The most that memory gives."""
        return max(self.memory.values())

    @property
    def drive_rate(self) -> float:
        """The most that the drive gives, in whichever way."""
        return max([*self.direct.values(), *self.buffered.values()])


@dataclass(frozen=True)
class Run:
    """One measurement of one step kind."""

    tokens: int
    seconds: float
    missed_bytes: int
    touched_bytes: int
    hit_rate: float

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds

    def bound_seconds(self, rates: Machine) -> float:
        """Seconds below which the machine cannot move the bytes."""
        return max(self.missed_bytes / rates.drive_rate, self.touched_bytes / rates.memory_rate)


@dataclass
class Result:
    """The measurements of one step kind in one setting."""

    setting: Setting
    kind: str  # "prefill" or "decode"
    tokens: int
    cold: bool
    cache_mode: str = ""
    slots: int = 0
    experts_per_token: int = 0
    rss_bytes: int = 0
    runs: list[Run] = field(default_factory=list)
    timing: dict[str, Any] = field(default_factory=dict)  # of the last run

    def summary(self, rates: Machine) -> dict[str, Any]:
        """Returns medians, the bound and the share of it as JSON data."""
        speeds = sorted(run.rate for run in self.runs)
        shares = [run.bound_seconds(rates) / run.seconds for run in self.runs]
        middle = statistics.median
        return {
            "setting": asdict(self.setting),
            "kind": self.kind,
            "tokens": self.tokens,
            "cold": self.cold,
            "runs": len(self.runs),
            "tokens_per_second": {
                "min": speeds[0], "median": middle(speeds), "max": speeds[-1]
            },
            "missed_bytes_per_token": middle(r.missed_bytes / r.tokens for r in self.runs),
            "touched_bytes_per_token": middle(r.touched_bytes / r.tokens for r in self.runs),
            "bound_seconds_per_token": middle(r.bound_seconds(rates) / r.tokens for r in self.runs),
            "share_of_bound": middle(shares),
            "hit_rate": middle(r.hit_rate for r in self.runs),
            "cache_mode": self.cache_mode,
            "slots": self.slots,
            "experts_per_token": self.experts_per_token,
            "rss_bytes": self.rss_bytes,
            "timing": self.timing,
        }  # fmt: skip


def safetensors_headers(folder: Path) -> Iterator[tuple[str, Json]]:
    """Yields (name, entry) of every tensor in a folder.

    Raises:
        FormatError: when a header is damaged.
    """
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(min(length, path.stat().st_size)))
        except (OSError, struct.error, ValueError) as error:
            raise FormatError(f"{path}: header: {error}") from error
        header.pop("__metadata__", None)
        yield from header.items()


def touched_bytes_per_token(folder: Path, info: ModelInfo) -> int:
    """Returns the bytes of weights that decoding a token multiplies.

    Of an embedding that is not the head, too, a token needs one row; that row is not counted.
    """
    embedding, head = 0, False
    for name, entry in safetensors_headers(folder):
        if "embed_tokens." in name:
            begin, end = entry["data_offsets"]
            embedding += end - begin
        head = head or "lm_head." in name
    resident = info.resident_bytes - (embedding if head else 0)
    return resident + info.moe_layers * info.experts_per_token * info.expert_bytes


def model_hash(folder: Path) -> str:
    """Returns 16 hex digits over names, sizes, config.json and the head of each weight file."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.name == "config.json" or path.stat().st_size > HASHED_BYTES:
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                digest.update(file.read(HASHED_BYTES))
    return digest.hexdigest()[:16]


def check_has_weights(folder: Path) -> None:
    """Raises ConfigError for a model of `synth --hollow`, whose reads never meet the drive."""
    recipe = folder / "synth.json"
    if recipe.is_file() and json.loads(recipe.read_text(encoding="utf-8")).get("hollow"):
        raise ConfigError(f"{folder}: its experts are holes, which no drive reads: not for speed")


def drop_page_cache(folder: Path) -> None:
    """Asks the system to forget the folder's files, where it can be asked."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in folder.iterdir():
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure_machine(folder: Path, info: ModelInfo, *, seconds: float = 1.0) -> Machine:
    """Measures memory, and the drive at expert-sized records of the model's largest file.

    Args:
        folder: of the model.
        info: of the model.
        seconds: of reading at each depth.

    Raises:
        IoError: when the file cannot be read.
    """
    threads = sorted({1, machine.cores()})
    memory = {count: _core.measure_memory(count) for count in threads}
    path = machine.largest_file(folder)
    record = max(MIN_RECORD_BYTES, min(info.expert_bytes, path.stat().st_size // 4))

    def drive(*, direct: bool) -> dict[int, float]:
        depths = [d for d in DEPTHS if d * record <= max(path.stat().st_size, record)]
        rates = _core.measure_drive(str(path), depths, record, direct=direct, seconds_max=seconds)
        return dict(zip(depths, rates, strict=True))

    direct = drive(direct=True) if machine.reads_direct(path) else {}
    return Machine(memory, direct, drive(direct=False), record)


def rss_bytes() -> int:
    """Returns the process's memory, 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _drive_bytes() -> int | None:
    """Bytes that this process has had read from drives, None where the system does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/io").read_text(encoding="ascii").splitlines():
            if line.startswith("read_bytes:"):
                return int(line.split()[1])
    return None


class Bench:
    """Runs a plan over settings of one model."""

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        options: Mapping[str, Any],
        say: Callable[[str], None],
    ) -> None:
        """Keeps what every run needs.

        Args:
            folder: of the model.
            plan: what to measure.
            options: of `Engine`, but for those of `Setting`.
            say: told what is being done.
        """
        self._folder, self._plan = folder, plan
        self._options, self._say = dict(options), say
        self._touched = 0  # bytes a token; the same in all settings
        self._results: dict[tuple[Setting, str, int], Result] = {}
        self.finished = False

    def run(self, settings: Sequence[Setting], rates: Machine) -> list[Result]:
        """Returns the results, by setting, prefill first. Repeats go round the settings.

        Ctrl-C ends it early, with what has been measured.
        """
        with contextlib.suppress(KeyboardInterrupt, CancelledError):
            for repeat in range(self._plan.repeats):
                for setting in settings:
                    self._say(f"run {repeat + 1} of {self._plan.repeats}: {setting}")
                    self._once(setting, rates)
            self.finished = True
        return list(self._results.values())

    def _once(self, setting: Setting, rates: Machine) -> None:
        options = {**self._options, **asdict(setting)}
        if options.get("load", "auto") == "auto":
            options["load"] = "whole"  # a run is not to wait for weights
        with Engine(self._folder, **options) as engine:
            self._touched = self._touched or touched_bytes_per_token(self._folder, engine.info)
            if not self._plan.cold:
                self._warm_up(engine)
            for length in self._plan.prompt_tokens:
                self._prefill(engine, setting, length, rates)
            if self._plan.decode_tokens:
                self._decode(engine, setting, rates)

    def _prompt(self, engine: Engine, length: int) -> list[int]:
        # Ids at random: the same for every setting, and no text is asked of a synthetic model.
        chosen = random.Random(PROMPT_SEED + length)
        return [chosen.randrange(engine.tokenizer.size) for _ in range(length)]

    def _warm_up(self, engine: Engine) -> None:
        """Fills the cache: with the run's own experts where all fit, else with those of another."""
        plan = engine.memory_plan()
        seed = DECODE_SEED if plan.slots >= plan.slots_all else WARM_SEED
        lengths = self._plan.prompt_tokens or (16,)
        for length in lengths:
            with engine.session() as session:
                session.feed(self._prompt(engine, length))
                if length == lengths[-1] and self._plan.decode_tokens:
                    self._generate(session, seed)

    def _generate(self, session: Any, seed: int) -> None:  # noqa: ANN401 - Session, or a test's
        # One token more than steps: the first comes from the prompt's logits.
        count = self._plan.decode_tokens + 1
        session.generate(None, max_tokens=count, temperature=1.0, seed=seed, ignore_eos=True)

    def _cool(self, engine: Engine) -> None:
        if self._plan.cold:
            engine.drop_cache()
            drop_page_cache(self._folder)

    def _prefill(self, engine: Engine, setting: Setting, length: int, rates: Machine) -> None:
        prompt = self._prompt(engine, length)
        self._cool(engine)
        with engine.session() as session:
            self._measure(engine, setting, ("prefill", length), rates, lambda: session.feed(prompt))

    def _decode(self, engine: Engine, setting: Setting, rates: Machine) -> None:
        with engine.session() as session:
            session.feed(self._prompt(engine, (self._plan.prompt_tokens or (16,))[-1]))
            self._cool(engine)
            self._measure(
                engine,
                setting,
                ("decode", self._plan.decode_tokens),
                rates,
                lambda: self._generate(session, DECODE_SEED),
            )

    def _measure(
        self,
        engine: Engine,
        setting: Setting,
        kind: tuple[str, int],
        rates: Machine,
        work: Callable[[], object],
    ) -> None:
        engine.reset_stats()
        drive_before = _drive_bytes()
        started = time.perf_counter()
        work()
        seconds = time.perf_counter() - started
        stats, drive_after = engine.stats(), _drive_bytes()
        tokens = stats.decode_tokens if kind[0] == "decode" else stats.prefill_tokens
        # A guess that nobody came for is read, and not missed.
        wrong = stats.prefetched - stats.prefetch_used - stats.prefetch_late
        missed = max(0, stats.read_bytes - wrong * engine.info.expert_bytes)
        if stats.cache_mode != "slots" and drive_before is not None and drive_after is not None:
            missed = drive_after - drive_before  # the rest came from the page cache
        asked = stats.expert_hits + stats.expert_joined + stats.expert_misses
        touched = self._touched * tokens if kind[0] == "decode" else self._touched
        hit_rate = stats.expert_hits / asked if asked else 1.0
        key = (setting, *kind)
        result = self._results.setdefault(key, Result(setting, *kind, self._plan.cold))
        result.runs.append(Run(tokens, seconds, missed, touched, hit_rate))
        result.cache_mode, result.slots = stats.cache_mode, stats.slots
        result.experts_per_token = engine.info.experts_per_token
        result.rss_bytes = max(result.rss_bytes, rss_bytes())
        result.timing = timing(stats, seconds, rates.memory_rate)


# --- Files ------------------------------------------------------------------------------------

COLUMNS = (
    "date", "commit", "dirty", "machine", "model", "model_hash", "synthetic", "kind", "memory",
    "cache", "prefetch", "experts_per_token", "isa", "threads", "state", "tokens", "runs",
    "tokens_per_s_min", "tokens_per_s_median", "tokens_per_s_max", "missed_bytes_per_token",
    "touched_bytes_per_token", "drive_bytes_per_s", "memory_bytes_per_s", "bound_s_per_token",
    "share_of_bound", "hit_rate", "rss_bytes", "note",
)  # fmt: skip


def source_version() -> tuple[str, str]:
    """Returns the commit of the source and whether it was changed since, as far as known."""
    folder = Path(__file__).resolve().parent
    commands = (
        ["git", "-C", str(folder), "rev-parse", "--short=12", "HEAD"],
        ["git", "-C", str(folder), "status", "--porcelain", "-uno", "--", ":/csrc", ":/python"],
    )
    try:
        commit, changes = (
            subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
            for command in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return f"v{__version__}", "unknown"
    return commit, "dirty" if changes else "clean"


def machine_text() -> str:
    """Returns the machine in a few words."""
    this = machine.describe()
    return f"{this['cpu']}, {this['cores']} cores, {this['memory_bytes'] / 2**30:.0f} GiB"


def rows_of(
    summaries: Sequence[Mapping[str, Any]],
    folder: Path,
    rates: Machine,
    threads: int | None,
    note: str,
) -> list[dict[str, str]]:
    """Returns results as rows of COLUMNS."""
    commit, dirty = source_version()
    common = {
        "date": date.today().isoformat(),
        "commit": commit,
        "dirty": dirty,
        "machine": machine_text(),
        "model": folder.name,
        "model_hash": model_hash(folder),
        "synthetic": "yes" if (folder / "synth.json").exists() else "no",
        "threads": str(threads or machine.cores()),
        "drive_bytes_per_s": f"{rates.drive_rate:.3e}",
        "memory_bytes_per_s": f"{rates.memory_rate:.3e}",
        "note": note,
    }
    rows = []
    for one in summaries:
        speed, setting = one["tokens_per_second"], one["setting"]
        row = {
            **common,
            "kind": one["kind"],
            "memory": setting["memory"] or "auto",
            "cache": one["cache_mode"],
            "prefetch": setting["prefetch"],
            "experts_per_token": str(one["experts_per_token"]),
            "isa": setting["isa"],
            "state": "cold" if one["cold"] else "warm",
            "tokens": str(one["tokens"]),
            "runs": str(one["runs"]),
            **{f"tokens_per_s_{name}": f"{speed[name]:.4g}" for name in ("min", "median", "max")},
            "missed_bytes_per_token": f"{one['missed_bytes_per_token']:.0f}",
            "touched_bytes_per_token": f"{one['touched_bytes_per_token']:.0f}",
            "bound_s_per_token": f"{one['bound_seconds_per_token']:.4g}",
            "share_of_bound": f"{one['share_of_bound']:.3f}",
            "hit_rate": f"{one['hit_rate']:.4f}",
            "rss_bytes": str(one["rss_bytes"]),
        }
        rows.append({name: " ".join(row[name].split()) for name in COLUMNS})
    return rows


def append_rows(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Appends rows to a TSV file, which gets its header when it is new.

    Raises:
        FormatError: when the file has other columns.
        IoError: when it cannot be written.
    """
    header = "\t".join(COLUMNS) + "\n"
    check_results(path)
    try:
        new = not path.exists()
        with path.open("a", encoding="utf-8") as file:
            file.write(header if new else "")
            file.writelines("\t".join(row[name] for name in COLUMNS) + "\n" for row in rows)
    except OSError as error:
        raise IoError(f"{path}: cannot be written: {error.strerror}") from error


def check_results(path: Path) -> None:
    """Raises ConfigError or FormatError when rows could not be appended to a file."""
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent}")
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        first = file.readline().rstrip("\n")
    if first.split("\t") != list(COLUMNS):
        raise FormatError(f"{path}: wanted a file of bench with {len(COLUMNS)} columns")


def plot_title(folder: Path, rates: Machine) -> str:
    """Returns what stands above the picture."""
    return (
        f"{folder.name}: drive {rates.drive_rate / 1e9:.2f} GB/s at "
        f"{format_bytes(rates.record_bytes)}, memory {rates.memory_rate / 1e9:.1f} GB/s"
    )
