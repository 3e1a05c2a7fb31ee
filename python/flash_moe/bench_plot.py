"""The picture of `flash-moe bench --plot`: decoding speed against the memory budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import ConfigError, IoError
from .sizes import parse_bytes

ENDINGS = (".png", ".svg", ".pdf")


def check_plot(path: Path) -> None:
    """Raises ConfigError unless a picture can be made, before anything is measured."""
    if path.suffix not in ENDINGS:
        raise ConfigError(f"--plot {path}: wanted a name that ends in {', '.join(ENDINGS)}")
    if not path.parent.is_dir():
        raise ConfigError(f"--plot {path}: there is no folder {path.parent}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "--plot needs matplotlib, which is not installed: pip install 'flash-moe[plot]'"
        ) from error


def plot(path: Path, title: str, summaries: Sequence[Mapping[str, Any]]) -> None:
    """Draws medians with their spread, and the bound of each.

    Args:
        path: the picture.
        title: above it.
        summaries: of decoding (`Result.summary`).

    Raises:
        IoError: when it cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    groups: dict[str, list[tuple[float, Mapping[str, Any]]]] = {}
    for one in summaries:
        setting = one["setting"]
        memory = setting["memory"]
        size = parse_bytes(memory) if memory else one["rss_bytes"]
        label = f"cache {one['cache_mode']}, isa {setting['isa']}, prefetch {setting['prefetch']}"
        groups.setdefault(label, []).append((size / 1e9, one))
    for label, points in groups.items():
        points.sort(key=lambda point: point[0])
        x = [size for size, _ in points]
        speeds = [one["tokens_per_second"] for _, one in points]
        middle = [speed["median"] for speed in speeds]
        spread = [
            [speed["median"] - speed["min"] for speed in speeds],
            [speed["max"] - speed["median"] for speed in speeds],
        ]
        bound = [1 / one["bound_seconds_per_token"] for _, one in points]
        bars = axes.errorbar(x, middle, yerr=spread, marker="o", capsize=3, label=label)
        colour = bars.lines[0].get_color()
        axes.plot(x, bound, linestyle="--", marker="_", color=colour, label=f"bound, {label}")
    axes.set(xlabel="memory budget in GB", ylabel="tokens/s, decoding", title=title)
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    try:
        figure.savefig(path)
    except OSError as error:
        raise IoError(f"{path}: cannot be written: {error.strerror}") from error
