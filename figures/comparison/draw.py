"""Draw the folder of a comparison: its tables, its figures in the order of the story, and its page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from figures.comparison.accuracy import accuracy_against_shift, accuracy_bars, accuracy_heads
from figures.comparison.circuits import adapter_layers, adapter_map
from figures.comparison.divergences import divergence_curves, divergence_map
from figures.comparison.head_shifts import difference_map, volcano
from figures.comparison.matches import match_depths
from figures.comparison.published_curves import published_curves, variance_heads, variance_map
from figures.comparison.rank_plots import agreement_map, rank_plot
from figures.comparison.strategy_curves import strategy_curves
from figures.comparison.trajectories import trajectory_curves, trajectory_heads
from figures.drawing import style
from figures.pictures import Picture, picture
from interp.tables.errors import InputError
from interp.tables.results import measure_infos
from interp.tables.schema import REGIONS, MeasureInfo, read
from interp.tables.shifts import SHIFT_TABLES

HEADLINE = ("entropy_nats", "numeric_mass", "previous_mass", "bos_mass", "induction_mass")
"""Measures that are drawn where none is asked for: how wide heads look, and the four places that most of them look at."""


MOST_MODELS = 6
"""Models (or conditions) with a difference map and a volcano each; `python -m figures --models` draws others."""


LISTED = 12
"""Heads listed for each model and measure."""


Tables = dict[str, pd.DataFrame]


@dataclass(frozen=True)
class Section:
    """A part of the story.

    Attributes:
        title: of the section.
        text: what is asked, and how to read the figures.
        draw: gives the figures with their file names and captions.
    """

    title: str
    text: str
    draw: Callable[[Story], Iterator[tuple[str, Figure | None, str]]]


@dataclass(frozen=True)
class Story:
    """What figures are drawn from.

    Attributes:
        run: the contents of run.json.
        tables: by name.
        measures: those to draw.
        models: those to draw one by one.
        region: where queries stand.
    """

    run: dict[str, Any]
    tables: Tables
    measures: dict[str, MeasureInfo]
    models: tuple[str, ...]
    region: str

    @property
    def subtitle(self) -> str:
        """What was read; figures add models, n and test."""
        return f"{self.run['text']} text" if "text" in self.run else ""

    @property
    def counted(self) -> str:
        """The same with the number of examples, for tables that do not hold it."""
        return style.joined(self.subtitle, f"n = {self.run['n_examples']} examples")


def draw_comparison(
    folder: Path, out: Path | None = None, region: str | None = None, measures: Sequence[str] = (), models: Sequence[str] = ()
) -> list[Path]:
    """Draw every figure of a comparison, and its page, from its tables.

    Args:
        folder: as `analyses.shifts` writes it.
        out: where to write; None: the folder itself.
        region: where the queries stand; None: as the comparison says.
        measures: names to draw; none: `HEADLINE`.
        models: models or conditions with maps of their own; none: the first few.

    Returns:
        The written files, the page last.

    Raises:
        InputError: no comparison there, a table is missing, or an unknown region, measure or model.
        InputError: a table is torn or breaks its schema.
        OSError: `out` cannot be written to.
    """
    run = read_comparison(folder)
    tables = _tables(folder)
    story = Story(run, tables, _measures(run, measures), _models(run, tables, models), _region(run, region))
    out = folder if out is None else out
    figure_folder = out / "figures"
    figure_folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    told: list[tuple[Section, list[Picture]]] = []
    for section in STORIES[run["kind"]]:
        pictures: list[Picture] = []
        for name, figure, caption in section.draw(story):
            if figure is not None:
                written += style.save(figure, figure_folder, name)
                shown = picture(figure_folder, name, caption)
                assert shown is not None
                pictures.append(shown)
        if pictures:
            told.append((section, pictures))
    page = out / "report.html"
    page.write_text(_page(story, told), encoding="utf-8")
    return [*written, page]


def read_comparison(folder: Path) -> dict[str, Any]:
    """What a comparison says of itself.

    Raises:
        InputError: no run.json, or not of a comparison.
    """
    path = folder / "run.json"
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(run, dict) or run.get("kind") not in STORIES:
        kind = run.get("kind") if isinstance(run, dict) else None
        raise InputError(f"{path}: kind is {kind!r}; figures are drawn of {', '.join(STORIES)}")
    missing = [key for key in ("command", "n_examples", "measures", "models", "warnings") if key not in run]
    if missing:
        raise InputError(f"{path}: missing {', '.join(missing)}")
    return run


def is_comparison(folder: Path) -> bool:
    """The folder's run.json names a kind; a head run's names none."""
    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(run, dict) and "kind" in run


def _tables(folder: Path) -> Tables:
    tables = {file.stem: read(file, SHIFT_TABLES[file.stem]) for file in sorted(folder.glob("*.parquet")) if file.stem in SHIFT_TABLES}
    for file in sorted(folder.glob("*.parquet")):
        if file.stem not in SHIFT_TABLES:
            tables[file.stem] = pd.read_parquet(file)
    for file in sorted(folder.glob("*.csv")):
        tables[file.stem] = pd.read_csv(file)
    return tables


def _measures(run: dict[str, Any], wanted: Sequence[str]) -> dict[str, MeasureInfo]:
    if run["kind"] == "match":  # profiles are over many measures at once
        return {}
    infos = measure_infos(run)
    unknown = [name for name in wanted if name not in infos]
    if unknown:
        raise InputError(f"unknown measure {unknown[0]!r}; the comparison has {', '.join(infos)}")
    chosen = list(wanted) or [name for name in HEADLINE if name in infos] or list(infos)[: len(HEADLINE)]
    return {name: infos[name] for name in chosen}


def _models(run: dict[str, Any], tables: Tables, wanted: Sequence[str]) -> tuple[str, ...]:
    if "shifts" not in tables:
        return ()
    known = list(dict.fromkeys(tables["shifts"]["model"].astype(str)))
    conditions = list(dict.fromkeys(tables["conditions"]["condition"].astype(str)))
    unknown = [name for name in wanted if name not in (*known, *conditions)]
    if unknown:
        raise InputError(f"unknown model {unknown[0]!r}; the comparison has {', '.join(dict.fromkeys([*known, *conditions]))}")
    several = int(tables["conditions"]["n_seeds"].to_numpy().max()) > 1
    return tuple(wanted or (conditions if several else known)[:MOST_MODELS])


def _region(run: dict[str, Any], wanted: str | None) -> str:
    region = wanted or str(run.get("region", "response"))
    if region not in REGIONS:
        raise InputError(f"unknown region {region!r}; known: {', '.join(REGIONS)}")
    return region


# --- the story of shifts ------------------------------------------------------------------------------------------------


def _accuracy(story: Story) -> Iterator[tuple[str, Figure | None, str]]:
    models = story.tables["models"]
    if models["accuracy"].notna().any():
        yield "accuracy", accuracy_bars(models), "Accuracy of every student, with its 95 % Wilson interval."


def _curves(story: Story) -> Iterator[tuple[str, Figure | None, str]]:
    conditions = dict(zip(story.tables["models"]["model"], story.tables["models"]["condition"], strict=True))
    for info in story.measures.values():
        figure = strategy_curves(story.tables["layers"], info, conditions, story.subtitle, story.region)
        yield f"layers_{info.name}", figure, f"{info.title} by layer, and its difference from {story.run['baseline']}."


def _shifts_of(story: Story, name: str) -> tuple[pd.DataFrame, bool]:
    """A model's rows of shifts, or a condition's in the same form; and whether seeds are crossed with examples."""
    shifts = story.tables["shifts"]
    rows = shifts[shifts["model"] == name]
    if len(rows):
        return rows, False
    conditions = story.tables["conditions"]
    rows = conditions[conditions["condition"] == name].rename(columns={"condition": "model"})
    of_seed = shifts[shifts["model"].isin(story.tables["models"].loc[story.tables["models"]["condition"] == name, "model"])]
    keys = ["layer", "head", "measure", "region"]
    effect = of_seed.groupby(keys, observed=True, sort=False)["effect"].mean().reset_index()
    return rows.merge(effect, on=keys, how="left"), True


def _differences(story: Story) -> Iterator[tuple[str, Figure | None, str]]:
    for name in story.models:
        rows, crossed = _shifts_of(story, name)
        test = "seeds and examples crossed" if crossed else "paired t test over examples"
        for info in story.measures.values():
            said = f"{name} less {story.run['baseline']}: {info.title}. Grey: not significant ({test}, Benjamini-Hochberg over all heads)."
            yield f"difference_{info.name}_{_file(name)}", difference_map(rows, info, "", story.region, crossed=crossed), said


def _volcanoes(story: Story) -> Iterator[tuple[str, Figure | None, str]]:
    for name in story.models:
        rows, crossed = _shifts_of(story, name)
        for info in story.measures.values():
            said = f"{name} against {story.run['baseline']}: {info.title}. Effect size against p, a point a head."
            yield f"volcano_{info.name}_{_file(name)}", volcano(rows, info, "", story.region, crossed=crossed), said


def _divergences(story: Story) -> Iterator[tuple[str, Figure | None, str]]:
    if "divergences" not in story.tables:
        return
    models = story.tables["models"][["model", "condition"]]
    rows = story.tables["divergences"].astype({"model": str}).merge(models, on="model", how="inner")  # seeds of one condition go together
    yield "divergence_layers", divergence_curves(rows, story.subtitle, story.region), "Divergence of the maps by layer."
    yield "divergence_map", divergence_map(rows, story.subtitle, story.region), "Divergence of every head's maps."


def _ranks(story: Story) -> Iterator[tuple[str, Figure | None, str]]:
    for info in story.measures.values():
        ranks, agreement = story.tables["ranks"], story.tables["agreement"]
        figure = rank_plot(ranks, info, story.counted, story.region, baseline=str(story.run["baseline_models"][0]))
        yield f"ranks_{info.name}", figure, f"Ranks of the first heads by {info.title}."
        yield (
            f"agreement_{info.name}",
            agreement_map(agreement, info, "", story.region),
            f"Do models order their heads alike by {info.title}?",
        )


def _circuits(story: Story) -> Iterator[tuple[str, Figure | None, str]]:
    if "lora" in story.tables:
        yield "circuits_layers", adapter_layers(story.tables["lora"]), "Change of the QK and OV circuits by layer."
        yield "circuits", adapter_map(story.tables["lora"]), "Change of every head's QK and OV circuit, relative to the base's."


def _together(story: Story) -> Iterator[tuple[str, Figure | None, str]]:
    models, accuracy = story.tables["models"], story.tables.get("accuracy")
    if not models["accuracy"].notna().any():
        return
    figure = accuracy_against_shift(models, accuracy, story.measures, story.subtitle, story.region)
    yield "accuracy_against_shift", figure, "Accuracy against how far the heads of a student moved."
    if accuracy is not None:
        for info in story.measures.values():
            figure = accuracy_heads(accuracy, info, "", story.region)
            yield f"accuracy_{info.name}", figure, f"Over students: does a head's shift of {info.title} go with accuracy?"


def _published(story: Story) -> Iterator[tuple[str, Figure | None, str]]:
    yield "published_curves", published_curves(story.tables["curves"], story.tables["heads"]), "The four published curves, by layer."
    if "variance" in story.tables:
        yield "variance_heads", variance_heads(story.tables["variance"]), "The heads whose maps differ most between the models."
        yield "variance_map", variance_map(story.tables["variance"]), "Variance between the models of every head's map."


def _trajectories(story: Story) -> Iterator[tuple[str, Figure | None, str]]:
    rows, training, models = (story.tables.get(name) for name in ("trajectory", "training", "models"))
    assert rows is not None
    assert models is not None
    rows = rows.astype({"model": str}).merge(models[["model", "condition", "seed"]], on="model")
    for info in story.measures.values():
        figure = trajectory_curves(rows, training, models, info, f"{story.counted} each", story.region)
        yield (
            f"trajectory_{info.name}",
            figure,
            f"{info.title}: how far heads are from where they began, by step; loss and accuracy beside it.",
        )
        figure = trajectory_heads(rows, info, story.subtitle, story.region)
        yield f"trajectory_heads_{info.name}", figure, f"{info.title}: the heads that moved most."


def _matches(story: Story) -> Iterator[tuple[str, Figure | None, str]]:
    names = [str(model["name"]) for model in story.run["models"]]
    figure = match_depths(story.tables["matches"], names[0], names[1], f"n = {story.run['n_examples']} examples")
    yield "matches", figure, "Where in the two models matched heads stand, and how alike they are."


STORIES: dict[str, tuple[Section, ...]] = {
    "shifts": (
        Section("How good are they?", "Accuracy on the study's test problems; points are students.", _accuracy),
        Section("Where in the model?", "Means over the heads of each layer, and their differences from the baseline.", _curves),
        Section("Which heads?", "The mean paired difference of every head.", _differences),
        Section(
            "How sure?",
            "Size of the effect against its p value. Two models of other weights do differ: with enough texts nearly every head is "
            "significant, so read the size.",
            _volcanoes,
        ),
        Section("The maps themselves", "How far the same head's attention is from the baseline's, on the same text.", _divergences),
        Section("Does the order of heads stay?", "Ranks of heads within each model, and how far models agree on them.", _ranks),
        Section("What the adapters changed", "Size of the change in each head's circuits, from the LoRA factors.", _circuits),
        Section("Does it go with accuracy?", "Over students; their number stands in each figure.", _together),
    ),
    "match": (Section("Which heads do alike?", "Heads matched one to one by their profile over the same texts.", _matches),),
    "published": (Section("The published curves", "As the published code defines them.", _published),),
    "trajectory": (Section("When did each head move?", "From the heads that were recorded while students learnt.", _trajectories),),
}
"""Sections of each kind of comparison, in order."""


def _file(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)


# --- the page -----------------------------------------------------------------------------------------------------------


def _page(story: Story, told: Sequence[tuple[Section, list[Picture]]]) -> str:
    environment = Environment(
        loader=PackageLoader("figures"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("comparison.html.j2").render(
        run=story.run,
        title=_title(story.run),
        facts=_facts(story),
        sections=told,
        top=_top(story),
        listed=LISTED,
        region=story.region,
    )


def _title(run: dict[str, Any]) -> str:
    names = [m["name"] for m in run["models"]]
    if run["kind"] == "match":
        return f"Heads of {' and '.join(names)}, matched"
    if run["kind"] == "published":
        return f"Published maps of {', '.join(names)}"
    if run["kind"] == "trajectory":
        return f"Heads of {len(names)} students while they learnt"
    return f"Heads of {len(names) - 1} model{'s' * (len(names) > 2)} against {run['baseline']}"


def _facts(story: Story) -> list[tuple[str, str]]:
    run = story.run
    facts = {
        "Models": ", ".join(str(m["name"]) for m in run["models"]),
        "Baseline": run.get("baseline"),
        "Examples": run["n_examples"],
        "Heads": f"{run['n_layers']} layers × {run['n_heads']} heads" if "n_layers" in run else None,
        "Text read": run.get("text"),
        "Queries of the figures": story.region if run["kind"] != "published" else None,
        "Seed": run.get("seed"),
        "Command": run["command"],
        "Versions": ", ".join(f"{name} {version}" for name, version in run.get("versions", {}).items()),
    }
    return [(name, str(value)) for name, value in facts.items() if value not in (None, "")]


def _top(story: Story) -> list[dict[str, Any]]:
    """The heads that moved most, of each model and measure drawn: those with the largest difference among q < 0.05."""
    tables = []
    for name in story.models:
        rows, crossed = _shifts_of(story, name)
        for info in story.measures.values():
            part = rows[(rows["measure"] == info.name) & (rows["region"] == story.region) & (rows["q"] < 0.05)]
            part = part.assign(size=-part["difference"].abs()).sort_values(["size", "layer", "head"], kind="stable").head(LISTED)
            listed = [
                [f"{row['layer']}.{row['head']}", *(f"{row[column]:.3g}" for column in ("difference", "ci_low", "ci_high", "effect", "q"))]
                for row in part.to_dict("records")
            ]
            tables.append({"model": name, "measure": f"{info.title} ({style.unit_label(info)})", "rows": listed, "crossed": crossed})
    return tables
