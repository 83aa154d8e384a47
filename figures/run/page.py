"""The HTML page of one head run; a single file that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from figures.drawing.entry import DrawnFigure
from figures.drawing.grid import grid_shape
from figures.pages import listed_facts, page_environment, pictures
from figures.run.read import HeadRun
from interp.tables.schema import REGIONS, ROLES

LISTED_HEADS = 20
"""Heads listed from each end of a measure."""

TOKENS_SHOWN = 600
"""Tokens shown of the sample example."""


def run_page(content: HeadRun, drawn: Sequence[DrawnFigure]) -> str:
    """Return the page of a head run.

    Args:
        content: the run. Keys of run.json that are optional and absent are left out: `versions`, `seed`, `timings` (seconds), `memory`,
            `warnings`, `backend` of a measure, and every key of `model` other than `name`.
        drawn: the figures; those of one measure each are shown in a section of their own.

    Returns:
        HTML, below 6 MB for the built-in measures.

    Raises:
        KeyError: a needed key of run.json is missing.
    """
    run, region = content.run, content.region
    embedded = pictures(drawn)
    return page_environment().get_template("report.html.j2").render(
        run=run,
        facts=run_facts(run, content.heads),
        figures=[figure for figure in embedded if figure.section != "measures"],
        maps=[figure for figure in embedded if figure.section == "measures"],
        ranking={"region": region, "regions": REGIONS, "measures": ranked_heads(content.heads, run["measures"])},
        sample=sample_tokens(content.inputs),
        tokens_shown=TOKENS_SHOWN,
        roles=[role for role in ROLES if role != "none"],
        listed=LISTED_HEADS,
    )  # fmt: skip


def run_facts(run: dict[str, Any], heads: pd.DataFrame) -> list[tuple[str, str]]:
    """Return what was run as (name, text); keys that are absent or null are left out."""
    texts = {"reference": "question and reference solution", "generated": "question and the model's own answer"}
    return listed_facts(
        {
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
    )


def ranked_heads(heads: pd.DataFrame, measures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the heads with the highest and the lowest values of every measure and region.

    Args:
        heads: the head table of one model.
        measures: as in run.json.

    Returns:
        For each measure its name, title and unit, and for each region `defined` and `undefined` (numbers of heads), `highest` and `lowest`:
        at most `LISTED_HEADS` rows each of layer, head, value, ci_low, ci_high, n_examples and n_queries.
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
                "highest": _rows(defined.iloc[::-1].head(LISTED_HEADS)),
                "lowest": _rows(defined.head(LISTED_HEADS)),
            }
        ranked.append({key: measure[key] for key in ("name", "title", "unit")} | {"regions": regions})
    return ranked


def _rows(frame: pd.DataFrame) -> list[list[float]]:
    return [
        [int(layer), int(head), *(float(f"{number:.6g}") for number in numbers), int(examples), int(queries)]
        for layer, head, *numbers, examples, queries in frame.itertuples(index=False)
    ]


def sample_tokens(inputs: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the tokens of the first example, grouped into runs of one region.

    Returns:
        For each run its `region` and its `tokens`, which are rows of the table; at most `TOKENS_SHOWN` tokens in total. Empty where the
        table is.
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
