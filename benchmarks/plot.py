"""Draw what `python -m benchmarks.heads --save FILE` has measured: `python -m benchmarks.plot FILE --out docs/images`."""

from __future__ import annotations

import json
import re
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.heads import fits
from figures.drawing.style import active_style, paper_style, save_figure

LABELS = {
    "heads": "every measure of every head (this project)",
    "eager": "eager attention, three statistics",
    "lens": "TransformerLens, three statistics",
}


@dataclass(frozen=True)
class PlotConfig:
    """Time and memory of recording beside a plain forward, as one figure.

    Attributes:
        file: of `benchmarks.heads --save`.
        out: folder of performance.png and performance.pdf.
    """

    file: Annotated[Path, tyro.conf.Positional] = Path("runs/bench/heads.json")
    out: Path = Path("docs/images")


def why_missing(way: str, shape: str, no_room: str) -> str:
    """What stands in place of a number: a way that holds whole maps has no room for them at a shape, or was left out there."""
    size = re.fullmatch(r"(\d+)x(\d+)", shape)
    return no_room if size and not fits(way, int(size[1]), int(size[2])) else "not measured"


def bars(axes: Axes, shapes: list[str], values: dict[str, dict[str, float]], no_room: str) -> None:
    """One group a shape, one bar a way, its number beside it."""
    style = active_style()
    height, colors = 0.26, (style.blue, style.vermillion, style.gray)
    largest = max(value for way in values.values() for value in way.values())
    for number, (way, found) in enumerate(values.items()):
        places = [group + (number - 1) * height for group in range(len(shapes))]
        axes.barh(places, [found.get(shape, 0) for shape in shapes], height * 0.9, color=colors[number], label=LABELS[way])
        for place, shape in zip(places, shapes, strict=True):
            text = f"{found[shape]:{'.2f' if largest < 100 else ',.0f'}}" if shape in found else why_missing(way, shape, no_room)
            axes.text(found.get(shape, 0) + largest * 0.01, place, text, va="center", fontsize=style.small)
    axes.set_yticks(range(len(shapes)), [shape.replace("x", " × ") for shape in shapes])
    axes.invert_yaxis()
    axes.set_xlim(0, largest * 1.16)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


@paper_style()
def draw(saved: dict[str, Any]) -> Figure:
    """Ratios of time at the left, memory above the plain forward at the right."""
    times = {row["shape"]: {way: statistics.median(ratios) for way, ratios in row["ratios"].items()} for row in saved["times"]}
    peaks = {row["shape"]: row["peak_mb"] for row in saved["memory"]}
    if "problems" in saved:
        found = saved["problems"]["ways"]
        times["GSM8K test"] = {way: found[way]["seconds"] / found[way]["plain_seconds"] for way in LABELS if way in found}
    style = active_style()
    figure = Figure(figsize=(style.two, 2.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    bars(left, list(times), {way: {s: t[way] for s, t in times.items() if way in t} for way in LABELS}, "no room")
    left.axvline(1, color=style.ink, linewidth=0.8)
    left.set_xlabel("time, in plain forwards")
    left.set_ylabel("texts × tokens")
    bars(right, list(peaks), {way: {s: p[way] - p["plain"] for s, p in peaks.items() if way in p} for way in LABELS}, "over 8,000")
    right.set_xlabel("peak memory above the plain forward, MB")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=3, columnspacing=1.2, handlelength=1.2)
    return figure


def main() -> int:
    """Write the figure."""
    config = tyro.cli(PlotConfig, prog="python -m benchmarks.plot", description=__doc__)
    try:
        saved = json.loads(config.file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        print(
            f"error: {config.file} cannot be read ({error}); make it with python -m benchmarks.heads --save {config.file}", file=sys.stderr
        )
        return 2
    lacking = [part for part in ("times", "memory") if not (isinstance(saved, dict) and saved.get(part))]
    if lacking:
        print(
            f"error: {config.file} holds no {' and no '.join(lacking)}; python -m benchmarks.heads --save {config.file} adds them",
            file=sys.stderr,
        )
        return 2
    try:
        config.out.mkdir(parents=True, exist_ok=True)
        written = save_figure(draw(saved), config.out, "performance")
    except OSError as error:
        print(f"error: --out {config.out} cannot be written to: {error.strerror or error}", file=sys.stderr)
        return 2
    print(*written, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
