"""Right against wrong answers, as text for the terminal, and what a difference between them does not show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from analyses.contrast.statistics import top_rows
from interp.tables.contrast import PAIRED

SHOWN = 10
"""Heads of the smallest q listed for each model."""


def summarise(table: pd.DataFrame, about: dict[str, Any], out: Path) -> None:
    """Accuracies, lengths, the foremost heads, and what they do not show, in a few lines."""

    def shown(rows: list[dict[str, Any]] | pd.DataFrame) -> str:
        return pd.DataFrame(rows).to_string(index=False, na_rep="", float_format=lambda value: f"{value:.3g}")

    region, n_heads = about["region"], about["n_layers"] * about["n_heads"]
    for warning in about["warnings"]:
        print(f"warning: {warning}")
    print(f"\nAnswers to {about['n_examples']} problems, graded by {about['grader']}; Wilson's 95 % intervals:\n")
    columns = {"name": "model", "n_right": "right", "n_problems": "of", "n_truncated": "cut", "accuracy": "accuracy"}
    accuracies = [{shown_as: m[key] for key, shown_as in columns.items()} for m in about["models"]]
    for row, model in zip(accuracies, about["models"], strict=True):
        row |= {"low": model["accuracy_low"], "high": model["accuracy_high"]}
    print(shown(accuracies))
    lengths = pd.DataFrame(about["lengths"])[
        ["model", "right_mean", "wrong_mean", "difference", "ci_low", "ci_high", "p", "n_right", "n_wrong"]
    ]
    print("\nLength of the answers in tokens, right minus wrong:\n")
    print(shown(lengths))
    for model in dict.fromkeys(table["model"].astype(str)):
        rows = table[(table["model"] == model) & (table["region"] == region) & table["q"].notna()]
        if rows.empty:
            print(f"\n{model}: no head is tested in region {region}")
            continue
        if model == PAIRED:
            both = f"{about['n_problems_both']} problems that some solve and some do not"
            print(f"\nModels paired by problem: {both}; t test with the variance clustered by problem (CR2)")
        else:
            print(f"\n{model}: right minus wrong answers, which are to different problems; Welch's t test")
        print(f"Benjamini-Hochberg over the {n_heads} heads of a measure, queries in {region}; 95 % intervals. Heads with q <= 0.05:\n")
        clear = [
            {"measure": measure, "q<=0.05": f"{int((group['q'] <= 0.05).sum())} of {len(group)}", "smallest q": group["q"].min()}
            for measure, group in rows.groupby("measure", observed=True, sort=False)
        ]
        print(shown(clear))
        top = top_rows(table, model, region, SHOWN)
        top.insert(0, "layer.head", top["layer"].astype(str) + "." + top["head"].astype(str))
        print(f"\nThe {len(top)} smallest q, of all measures together (q is corrected over heads, not over measures):\n")
        print(shown(top.drop(columns=["model", "layer", "head", "region"])))
    print()
    for caution in cautions(about):
        print(f"note: {caution}")
    print(f"\ntables:  contrast.parquet, answers.parquet, run.json in {out}")
    if (out / "figures").is_dir():
        print(f"figures: {out / 'figures'}")


def cautions(about: dict[str, Any]) -> list[str]:
    """What a difference between right and wrong answers does not show."""
    told = [
        "right answers come from easier, shorter problems: a head that differs within one model may show the problem, not the model",
        "a measure that follows the length of a text differs where the lengths above do",
        "a difference does not say that the head makes answers right",
    ]
    if about["region"] == "question":
        told.append("queries in the question have not seen the answer: within one model they differ by problem alone")
    if len(about["models"]) > 1:
        told.append("pairing takes away what a problem and a model bring along, not the length or the words of each answer")
    return told
