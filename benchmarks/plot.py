"""Draw the numbers that `python -m benchmarks.heads --save FILE` wrote: `python -m benchmarks.plot FILE --out docs/images`."""

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
    """Time and memory of recording compared with a plain forward pass, as one figure.

    Attributes:
        file: written by `benchmarks.heads --save`.
        out: folder for performance.png and performance.pdf.
    """

    file: Annotated[Path, tyro.conf.Positional] = Path("runs/bench/heads.json")
    out: Path = Path("docs/images")


def why_missing(method: str, shape: str, too_large: str) -> str:
    """Return the text shown instead of a number: `too_large` if the method's maps exceed the limit at this shape, else "not measured"."""
    size = re.fullmatch(r"(\d+)x(\d+)", shape)
    return too_large if size and not fits(method, int(size[1]), int(size[2])) else "not measured"


def bars(axes: Axes, shapes: list[str], values: dict[str, dict[str, float]], too_large: str) -> None:
    """Draw one group of bars per shape and one bar per method, with its number next to it."""
    style = active_style()
    height, colors = 0.26, (style.blue, style.vermillion, style.gray)
    largest = max(value for method in values.values() for value in method.values())
    for number, (method, found) in enumerate(values.items()):
        places = [group + (number - 1) * height for group in range(len(shapes))]
        axes.barh(places, [found.get(shape, 0) for shape in shapes], height * 0.9, color=colors[number], label=LABELS[method])
        for place, shape in zip(places, shapes, strict=True):
            text = f"{found[shape]:{'.2f' if largest < 100 else ',.0f'}}" if shape in found else why_missing(method, shape, too_large)
            axes.text(found.get(shape, 0) + largest * 0.01, place, text, va="center", fontsize=style.small)
    axes.set_yticks(range(len(shapes)), [shape.replace("x", " × ") for shape in shapes])
    axes.invert_yaxis()
    axes.set_xlim(0, largest * 1.16)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


@paper_style()
def draw(saved: dict[str, Any]) -> Figure:
    """Draw ratios of time on the left, and memory above the plain forward pass on the right."""
    times = {row["shape"]: {method: statistics.median(ratios) for method, ratios in row["ratios"].items()} for row in saved["times"]}
    peaks = {row["shape"]: row["peak_mb"] for row in saved["memory"]}
    if "problems" in saved:
        found = saved["problems"].get("methods") or saved["problems"]["ways"]  # "ways" in version 0.1
        times["GSM8K test"] = {method: found[method]["seconds"] / found[method]["plain_seconds"] for method in LABELS if method in found}
    style = active_style()
    figure = Figure(figsize=(style.two, 2.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    bars(left, list(times), {method: {s: t[method] for s, t in times.items() if method in t} for method in LABELS}, "does not fit")
    left.axvline(1, color=style.ink, linewidth=0.8)
    left.set_xlabel("time, relative to a plain forward pass")
    left.set_ylabel("texts × tokens")
    bars(
        right,
        list(peaks),
        {method: {s: p[method] - p["plain"] for s, p in peaks.items() if method in p} for method in LABELS},
        "over 8,000",
    )
    right.set_xlabel("peak memory above the plain forward pass, MB")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=3, columnspacing=1.2, handlelength=1.2)
    return figure


def main() -> int:
    """Write the figure; return the exit code."""
    config = tyro.cli(PlotConfig, prog="python -m benchmarks.plot", description=__doc__)
    try:
        saved = json.loads(config.file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        print(
            f"error: {config.file} cannot be read ({error}); make it with python -m benchmarks.heads --save {config.file}", file=sys.stderr
        )
        return 2
    missing = [part for part in ("times", "memory") if not (isinstance(saved, dict) and saved.get(part))]
    if missing:
        print(
            f"error: {config.file} holds no {' and no '.join(missing)}; python -m benchmarks.heads --save {config.file} adds them",
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
