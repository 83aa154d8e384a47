"""A contrast as text for the terminal, with what a difference between right and wrong answers does not show."""

from __future__ import annotations

from typing import Any

import pandas as pd

from analyses.contrast.result import ContrastResult
from analyses.contrast.statistics import top_rows
from interp.tables.contrast import PAIRED

_SHOWN_HEADS = 10
"""Heads listed for each model, those with the smallest q."""

_SIGNIFICANT = 0.05


def describe_contrast(result: ContrastResult) -> str:
    """Return accuracies, lengths, the heads that differ most, and what they do not show, in a few lines."""
    run, table = result.run, result.contrast
    lines = [f"warning: {warning}" for warning in run["warnings"]]
    lines += [f"\nAnswers to {run['n_examples']} problems, graded by {run['grader']}; Wilson 95 % intervals:\n", _accuracies(run)]
    lines += ["\nLength of the answers in tokens, right minus wrong:\n", _lengths(run)]
    for model in dict.fromkeys(table["model"].astype(str)):
        lines += _heads(table, run, model)
    lines += ["", *(f"note: {caution}" for caution in _cautions(run))]
    lines.append(f"\ntables:  contrast.parquet, answers.parquet, run.json in {result.folder}")
    if (result.folder / "figures").is_dir():
        lines.append(f"figures: {result.folder / 'figures'}")
    return "\n".join(lines)


def _accuracies(run: dict[str, Any]) -> str:
    columns = {
        "name": "model",
        "n_right": "right",
        "n_problems": "of",
        "n_truncated": "truncated",
        "accuracy": "accuracy",
        "accuracy_low": "low",
        "accuracy_high": "high",
    }
    return _text([{shown_as: model[key] for key, shown_as in columns.items()} for model in run["models"]])


def _lengths(run: dict[str, Any]) -> str:
    columns = ["model", "right_mean", "wrong_mean", "difference", "ci_low", "ci_high", "p", "n_right", "n_wrong"]
    return _text(pd.DataFrame(run["lengths"])[columns])


def _heads(table: pd.DataFrame, run: dict[str, Any], model: str) -> list[str]:
    """Return lines about the heads of one model, or of all models paired by problem."""
    region, n_heads = run["region"], run["n_layers"] * run["n_heads"]
    rows = table[(table["model"] == model) & (table["region"] == region) & table["q"].notna()]
    if rows.empty:
        return [f"\n{model}: no head is tested in region {region}"]
    if model == PAIRED:
        both = f"{run['n_problems_both']} problems that some solve and some do not"
        title = f"Models paired by problem: {both}; t test with variance clustered by problem (CR2)"
    else:
        title = f"{model}: right minus wrong answers, which are to different problems; Welch's t test"
    significant = f"q<={_SIGNIFICANT}"
    counts = [
        {"measure": measure, significant: f"{int((group['q'] <= _SIGNIFICANT).sum())} of {len(group)}", "smallest q": group["q"].min()}
        for measure, group in rows.groupby("measure", observed=True, sort=False)
    ]
    top = top_rows(table, model, region, _SHOWN_HEADS)
    top.insert(0, "layer.head", top["layer"].astype(str) + "." + top["head"].astype(str))
    return [
        f"\n{title}",
        f"Benjamini-Hochberg over the {n_heads} heads of a measure, queries in {region}; 95 % intervals. Heads with q <= {_SIGNIFICANT}:\n",
        _text(counts),
        f"\nThe {len(top)} smallest q of all measures together (q is corrected over heads, not over measures):\n",
        _text(top.drop(columns=["model", "layer", "head", "region"])),
    ]


def _text(rows: list[dict[str, Any]] | pd.DataFrame) -> str:
    return pd.DataFrame(rows).to_string(index=False, na_rep="", float_format=lambda value: f"{value:.3g}")


def _cautions(run: dict[str, Any]) -> list[str]:
    """Return what a difference between right and wrong answers does not show."""
    found = [
        "right answers come from easier, shorter problems: a head that differs within one model may reflect the problem, not the model",
        "a measure that depends on the length of a text differs where the lengths above differ",
        "a difference does not show that the head makes answers right",
    ]
    if run["region"] == "question":
        found.append("queries in the question precede the answer: within one model they differ by problem alone")
    if len(run["models"]) > 1:
        found.append("pairing removes the effects of problem and model, but not the length or the words of each answer")
    return found
