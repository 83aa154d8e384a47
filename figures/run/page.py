"""One HTML page for one head run; it needs no network, and nothing in it comes from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from figures.drawing.grid import grid_shape
from figures.pictures import picture
from figures.run.catalog import FIGURES, MEASURE_FIGURES
from interp.tables.schema import REGIONS, ROLES

LISTED = 20
"""Heads listed from each end of a measure."""


TOKENS_SHOWN = 600
"""Tokens shown of the sample example."""


CAPTIONS = {
    "overview": "Every measure over all heads. {n}. Queries: {region}. Limits are fixed except where a star says that "
    "they follow the data; hatched cells are undefined. No interval is drawn; the table of top heads has it.",
    "number_heads": "The heads that look at numbers most. {n}. Queries: {region}. Whiskers are each head's own 95 % "
    "bootstrap interval over examples. They do not allow for having picked the top heads out of all.",
    "entropy_against_numeric_mass": "Entropy against attention on numbers, a point a head. {n}. Queries: {region}. No interval is drawn.",
    "layer_curves": "Every measure by layer, a line a region of queries: the mean over heads. {n}. Dark band: the mean "
    "of the heads' 95 % interval ends, an upper bound for the width of the mean's own interval. Light band: 5th to "
    "95th percentile of heads ({region} queries), a spread and no interval.",
    "distributions": "Every measure's distribution over the heads of each layer. {n}. Queries: {region}. Dots are "
    "heads; boxes and lines are quartiles and medians. No interval is drawn.",
    "head_map": "{title}. {n}. Queries: {region}.",
}
"""What a reader must know of each figure of `figures.run.catalog`."""


def report(run: dict[str, Any], heads: pd.DataFrame, inputs: pd.DataFrame, figure_folder: Path, region: str = "response") -> str:
    """Write the page of a run as one HTML text.

    Args:
        run: the contents of run.json. Needed: `command`, `model` (with `name`), `measures`, `text`, `chat`, `dtype`,
            `device`, `problems`. Optional, left out of the page where absent: `versions`, `seed`, `timings` (seconds),
            `memory`, `warnings`, `way` of a measure, and every other key of `model`.
        heads: the head table of one model.
        inputs: the input table; its first example is shown.
        figure_folder: has the PNGs that `figures.run.catalog` names; one that is missing is left out.
        region: the region that the figures were drawn for.

    Returns:
        HTML, below 6 MB for the built-in measures.

    Raises:
        KeyError: a needed key of `run` is missing.
    """
    environment = Environment(
        loader=PackageLoader("figures"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    titles = {measure["name"]: measure["title"] for measure in run["measures"]}
    counted = examples_and_queries(heads, region)
    figures = [picture(figure_folder, name, CAPTIONS[name].format(n=counted, region=region)) for name in FIGURES]
    maps = [
        picture(figure_folder, f"{kind}_{name}", CAPTIONS[kind].format(n=counted, region=region, title=title))
        for kind in MEASURE_FIGURES
        for name, title in titles.items()
    ]
    return environment.get_template("report.html.j2").render(
        run=run,
        facts=run_facts(run, heads),
        figures=[figure for figure in figures if figure],
        maps=[figure for figure in maps if figure],
        ranking={"region": region, "regions": REGIONS, "measures": ranked_heads(heads, run["measures"])},
        sample=sample_tokens(inputs),
        tokens_shown=TOKENS_SHOWN,
        roles=[role for role in ROLES if role != "none"],
        listed=LISTED,
    )


def examples_and_queries(heads: pd.DataFrame, region: str) -> str:
    """How much the numbers of a region stand on, such as "n = 40 examples, 3,120 queries a head"."""
    rows: pd.DataFrame = heads.loc[heads["region"] == region]
    if rows.empty:
        return "n = 0"
    most = {column: int(rows[column].to_numpy().max()) for column in ("n_examples", "n_queries")}
    return f"n = {most['n_examples']:,} examples, up to {most['n_queries']:,} queries a head"


def run_facts(run: dict[str, Any], heads: pd.DataFrame) -> list[tuple[str, str]]:
    """What was run, as (name, value) in words; keys that the run lacks or that are null are left out."""
    texts = {"reference": "question and reference solution", "generated": "question and the model's own answer"}
    facts = {
        "Model": run["model"]["name"],
        **{f"Model {key.replace('_', ' ')}": value for key, value in run["model"].items() if key != "name"},
        "Heads": "{} layers × {} heads".format(*grid_shape(heads)),
        "Problems": run["problems"],
        "Text read": f"{run['text']}: {texts[run['text']]}" if run["text"] in texts else run["text"],
        "Chat template": "applied" if run["chat"] else "not applied",
        "Data type": run["dtype"],
        "Device": run["device"],
        "Seed": run.get("seed"),
        "Seconds": run.get("timings"),
        "Memory": run.get("memory"),
        "Versions": run.get("versions"),
    }
    return [(name, _in_words(value)) for name, value in facts.items() if value not in (None, {}, [])]


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_in_words(part)}" for key, part in value.items() if part is not None)
    if isinstance(value, list):
        return ", ".join(_in_words(part) for part in value)
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def ranked_heads(heads: pd.DataFrame, measures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The heads with the highest and the lowest values of every measure and region.

    Args:
        heads: the head table of one model.
        measures: as in run.json.

    Returns:
        For each measure its name, title, unit, and for each region `defined` and `undefined` (numbers of heads),
        `highest` and `lowest`: at most `LISTED` rows each of layer, head, value, ci_low, ci_high, n_examples and
        n_queries.
    """
    columns = ["layer", "head", "value", "ci_low", "ci_high", "n_examples", "n_queries"]
    ranked = []
    for measure in measures:
        rows = heads[heads["measure"] == measure["name"]]
        regions = {}
        for region in REGIONS:
            of_region: pd.DataFrame = rows.loc[rows["region"] == region, columns]
            defined = of_region.dropna(subset=["value"]).sort_values(by=["value", "layer", "head"], kind="stable")
            regions[region] = {
                "defined": len(defined),
                "undefined": len(of_region) - len(defined),
                "highest": _rows(defined.iloc[::-1].head(LISTED)),
                "lowest": _rows(defined.head(LISTED)),
            }
        ranked.append({key: measure[key] for key in ("name", "title", "unit")} | {"regions": regions})
    return ranked


def _rows(frame: pd.DataFrame) -> list[list[float]]:
    return [
        [int(layer), int(head), *(float(f"{number:.6g}") for number in numbers), int(examples), int(queries)]
        for layer, head, *numbers, examples, queries in frame.itertuples(index=False)
    ]


def sample_tokens(inputs: pd.DataFrame) -> list[dict[str, Any]]:
    """The first example's tokens in runs of one region.

    Returns:
        For each run its `region` and its `tokens`, each a row of the table. At most `TOKENS_SHOWN` tokens in all; empty
        where the table is.
    """
    if inputs.empty:
        return []
    rows: pd.DataFrame = inputs.loc[inputs["example"] == inputs["example"].min()]
    rows = rows.sort_values(by="position").head(TOKENS_SHOWN)
    runs: list[dict[str, Any]] = []
    for row in rows.to_dict("records"):
        if not runs or runs[-1]["region"] != row["region"]:
            runs.append({"region": row["region"], "tokens": []})
        runs[-1]["tokens"].append(row)
    return runs
