"""Every figure of a comparison, and the sections of its page.

Add a figure by adding an entry to `COMPARISON_FIGURES`, or from a package of your own by an entry point in the group
`primed_heads.comparison_figures`.
"""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.figure import Figure

from figures.comparison.accuracy import accuracy_against_shift, accuracy_bars, accuracy_heads
from figures.comparison.circuits import adapter_layers, adapter_map
from figures.comparison.divergences import divergence_curves, divergence_map
from figures.comparison.head_shifts import difference_map
from figures.comparison.matches import match_depths
from figures.comparison.published import curves_by_layer, variance_heads, variance_map
from figures.comparison.rank_plots import agreement_map, rank_plot
from figures.comparison.read import Comparison
from figures.comparison.strategy_curves import strategy_curves
from figures.comparison.trajectories import trajectory_curves, trajectory_heads
from figures.comparison.volcano import volcano
from figures.drawing.entry import FigureEntry
from interp.tables.schema import MeasureInfo


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        kind: of the comparisons that have it.
        title: of the section.
        text: how to read its figures.
    """

    kind: str
    title: str
    text: str


SECTIONS: dict[str, Section] = {
    "accuracy": Section("shifts", "Accuracy", "Accuracy on the study's test problems; points are students."),
    "layers": Section("shifts", "Layers", "Means over the heads of each layer, and their differences from the baseline."),
    "heads": Section("shifts", "Heads", "The mean paired difference of every head."),
    "significance": Section(
        "shifts",
        "Effect size and significance",
        "Effect size against p value. Two models with different weights do differ: with enough texts nearly every head is significant, so "
        "read the effect size.",
    ),
    "maps": Section("shifts", "Attention maps", "Divergence of each head's attention from the baseline's, on the same text."),
    "ranks": Section("shifts", "Order of heads", "Ranks of heads within each model, and how far models agree on them."),
    "adapters": Section("shifts", "Adapters", "Size of the change in each head's circuits, computed from the LoRA factors."),
    "correlation": Section("shifts", "Correlation with accuracy", "Over students; each figure states their number."),
    "matches": Section("match", "Heads that behave similarly", "Heads matched one to one by their profiles over the same texts."),
    "published": Section("published", "Published curves", "Computed as the published code defines them."),
    "training": Section("trajectory", "Shift of heads during training", "From heads that were recorded during the training of students."),
}
"""Sections by the key that entries name, in the order of the page."""


def _layers(comparison: Comparison, measure: MeasureInfo) -> Figure | None:
    models = comparison.tables["models"]
    conditions = dict(zip(models["model"], models["condition"], strict=True))
    return strategy_curves(comparison.tables["layers"], measure, conditions, comparison.subtitle, comparison.region)


def _difference(comparison: Comparison, measure: MeasureInfo, model: str) -> Figure | None:
    rows, crossed = comparison.shifts_of(model)
    return difference_map(rows, measure, "", comparison.region, crossed=crossed)


def _volcano(comparison: Comparison, measure: MeasureInfo, model: str) -> Figure | None:
    rows, crossed = comparison.shifts_of(model)
    return volcano(rows, measure, "", comparison.region, crossed=crossed)


def _ranks(comparison: Comparison, measure: MeasureInfo) -> Figure | None:
    baseline = str(comparison.run["baseline_models"][0])
    return rank_plot(comparison.tables["ranks"], measure, comparison.counted, comparison.region, baseline=baseline)


def _accuracy_against_shift(comparison: Comparison) -> Figure | None:
    tables = comparison.tables
    return accuracy_against_shift(
        tables["models"], tables.get("accuracy"), comparison.measures, comparison.subtitle, comparison.region
    )  # fmt: skip


def _trajectory(comparison: Comparison, measure: MeasureInfo) -> Figure | None:
    tables = comparison.tables
    rows = comparison.with_condition("trajectory")
    return trajectory_curves(rows, tables.get("training"), tables["models"], measure, f"{comparison.counted} each", comparison.region)


def _matches(comparison: Comparison) -> Figure | None:
    one, other, *_ = (str(model["name"]) for model in comparison.run["models"])
    return match_depths(comparison.tables["matches"], one, other, f"n = {comparison.run['n_examples']} examples")


COMPARISON_FIGURES: dict[str, FigureEntry] = {
    "accuracy": FigureEntry(
        lambda comparison: accuracy_bars(comparison.tables["models"]),
        "Accuracy of every student with its 95 % Wilson interval.",
        needs=("shifts", "models"),
        section="accuracy",
    ),
    "layers": FigureEntry(
        _layers, "{title} by layer, and its difference from {baseline}.", each=("measure",), needs=("layers",), section="layers"
    ),
    "difference": FigureEntry(
        _difference,
        "{model} minus {baseline}: {title}. Gray: not significant ({test}, Benjamini-Hochberg over all heads).",
        each=("measure", "model"),
        needs=("shifts",),
        section="heads",
    ),
    "volcano": FigureEntry(
        _volcano,
        "{model} minus {baseline}: {title}. Effect size against p, one point per head.",
        each=("measure", "model"),
        needs=("shifts",),
        section="significance",
    ),
    "divergence_layers": FigureEntry(
        lambda comparison: divergence_curves(comparison.with_condition("divergences"), comparison.subtitle, comparison.region),
        "Divergence of attention maps by layer.",
        needs=("divergences",),
        section="maps",
    ),
    "divergence_map": FigureEntry(
        lambda comparison: divergence_map(comparison.with_condition("divergences"), comparison.subtitle, comparison.region),
        "Divergence of every head's attention maps.",
        needs=("divergences",),
        section="maps",
    ),
    "ranks": FigureEntry(_ranks, "Ranks of the baseline's top heads by {title}.", each=("measure",), needs=("ranks",), section="ranks"),
    "agreement": FigureEntry(
        lambda comparison, measure: agreement_map(comparison.tables["agreement"], measure, "", comparison.region),
        "Rank correlation of models' heads by {title}.",
        each=("measure",),
        needs=("agreement",),
        section="ranks",
    ),
    "circuits_layers": FigureEntry(
        lambda comparison: adapter_layers(comparison.tables["lora"]),
        "Change of the QK and OV circuits by layer.",
        needs=("lora",),
        section="adapters",
    ),
    "circuits": FigureEntry(
        lambda comparison: adapter_map(comparison.tables["lora"]),
        "Change of every head's QK and OV circuits, relative to the base model's.",
        needs=("lora",),
        section="adapters",
    ),
    "accuracy_against_shift": FigureEntry(
        _accuracy_against_shift,
        "Accuracy against the mean shift of a student's heads.",
        needs=("shifts", "models"),
        section="correlation",
    ),
    "accuracy_heads": FigureEntry(
        lambda comparison, measure: accuracy_heads(comparison.tables["accuracy"], measure, "", comparison.region),
        "Correlation of each head's shift of {title} with accuracy, over students.",
        each=("measure",),
        needs=("accuracy",),
        section="correlation",
        files="accuracy",
    ),
    "published_curves": FigureEntry(
        lambda comparison: curves_by_layer(comparison.tables["curves"], comparison.tables["heads"]),
        "The four published curves by layer.",
        needs=("curves", "heads"),
        section="published",
    ),
    "variance_heads": FigureEntry(
        lambda comparison: variance_heads(comparison.tables["variance"]),
        "The heads whose attention maps differ most between the models.",
        needs=("variance",),
        section="published",
    ),
    "variance_map": FigureEntry(
        lambda comparison: variance_map(comparison.tables["variance"]),
        "Variance of every head's attention map between the models.",
        needs=("variance",),
        section="published",
    ),
    "trajectory": FigureEntry(
        _trajectory,
        "{title}: mean absolute difference of heads from the first recorded step, by step; next to it the loss and the accuracy.",
        each=("measure",),
        needs=("trajectory", "models"),
        section="training",
    ),
    "trajectory_heads": FigureEntry(
        lambda comparison, measure: trajectory_heads(
            comparison.with_condition("trajectory"), measure, comparison.subtitle, comparison.region
        ),
        "{title}: the heads that moved most.",
        each=("measure",),
        needs=("trajectory", "models"),
        section="training",
    ),
    "matches": FigureEntry(
        _matches, "Depth of matched heads in the two models, and their similarity.", needs=("matches",), section="matches"
    ),
}
"""File name to figure; the measure and the model of a figure are added to its file name."""
