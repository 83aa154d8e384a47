"""A comparison as text for the terminal."""

from __future__ import annotations

import pandas as pd

from analyses.shifts.comparison import ComparisonResult
from analyses.shifts.trajectories import moved_table

_SHOWN_PAIRS = 15
_SHOWN_VARIANCES = 10
_SIGNIFICANT = 0.05


def describe_comparison(comparison: ComparisonResult) -> str:
    """Return the main results of a comparison, and where the rest is, in a few lines."""
    kinds = {"shifts": _shifts, "match": _match, "published": _published, "trajectory": _trajectory}
    lines = [f"warning: {warning}" for warning in comparison.run["warnings"]]
    lines += ["", kinds[comparison.run["kind"]](comparison), ""]
    lines.append(f"tables:  {', '.join(sorted(comparison.tables))} in {comparison.folder}")
    if (comparison.folder / "report.html").is_file():
        lines.append(f"report:  {comparison.folder / 'report.html'}")
    return "\n".join(lines)


def _shifts(comparison: ComparisonResult) -> str:
    """Return for each model and measure how many heads differ significantly, and the one that differs most."""
    tables, run = comparison.tables, comparison.run
    several = tables["conditions"]["n_seeds"].max() > 1
    table, key = (tables["conditions"], "condition") if several else (tables["shifts"], "model")
    rows = table[(table["region"] == run["region"]) & table["q"].notna()]
    lines = []
    for (name, measure), group in rows.groupby([key, "measure"], observed=True, sort=False):
        significant = group[group["q"] < _SIGNIFICANT]
        line = {key: name, "measure": measure, f"q<{_SIGNIFICANT}": f"{len(significant)} of {len(group)}"}
        if not significant.empty:
            first = significant.loc[significant["difference"].abs().idxmax()]
            line |= {"largest": f"{first['layer']}.{first['head']}", **first[["difference", "ci_low", "ci_high", "q"]].to_dict()}
        lines.append(line)
    test = "seeds and examples crossed, quasi-F" if several else "paired t test over examples"
    return (
        f"Heads compared with {run['baseline']}: {run['n_examples']} examples, queries in {run['region']}; {test}; Benjamini-Hochberg over "
        f"{run['n_layers'] * run['n_heads']} heads; 95 % intervals{'' if several else ' (bootstrap)'}:\n\n"
        + pd.DataFrame(lines).to_string(index=False, na_rep="", float_format=_short)
    )


def _match(comparison: ComparisonResult) -> str:
    """Return how similar the pairs of heads are, and the most similar ones."""
    matches, words = comparison.tables["matches"], comparison.tables["words"]
    one, other = (model["name"] for model in comparison.run["models"])
    summary = pd.DataFrame(
        {
            "matched": [len(matches)],
            "similarity, mean": [matches["similarity"].mean()],
            "margin > 0": [f"{(matches['margin'] > 0).mean():.0%}"],
            "stability, mean": [matches["stability"].mean()],
            "depth difference, mean": [matches["depth_difference"].abs().mean()],
        }
    )
    shown = matches.sort_values(["similarity"], ascending=False, kind="stable").head(_SHOWN_PAIRS)
    return (
        f"Heads of {one} and {other} matched by profile over {len(words)} examples ({words['n_words'].sum():,} words, "
        f"{words['n_tokens_one'].sum():,} and {words['n_tokens_other'].sum():,} tokens); similarity: Pearson's r of standardized profiles; "
        "margin above 0: each head is the most similar one to the other; stability: share of bootstrap samples with the same partner.\n\n"
        + summary.to_string(index=False, float_format=_short)
        + "\n\nThe most similar pairs:\n\n"
        + shown.to_string(index=False, float_format=_short)
    )


def _published(comparison: ComparisonResult) -> str:
    """Return the published curves by layer, and the heads whose maps differ most between models."""
    run, curves = comparison.run, comparison.tables["curves"]
    wide = curves.pivot_table(index="layer", columns=["curve", "model"], values="value", observed=True)
    text = (
        f"Published curves of {len(run['models'])} models ({run['n_layers']} layers x {run['n_heads']} heads, one text of "
        f"{run['n_tokens']} tokens), mean over heads:\n\n" + wide.to_string(float_format="{:.4f}".format)
    )
    if "variance" not in comparison.tables:
        return text
    first = comparison.tables["variance"].head(_SHOWN_VARIANCES)
    return (
        text
        + f"\n\nHeads by variance over the {len(run['models'])} models (mean over all entries of their maps):\n\n"
        + first.to_string(index=False, float_format="{:.4g}".format)
    )


def _trajectory(comparison: ComparisonResult) -> str:
    """Return how far heads moved during training."""
    run = comparison.run
    return (
        "How far heads moved from the first recorded step to the last: mean over heads of |difference| in units of the standard "
        f"deviation over heads at the first step; {run['n_examples']} texts, queries in {run['region']}. There is no test: a trajectory "
        "describes one student.\n\n"
        + moved_table(comparison.tables["trajectory"], run["region"]).to_string(index=False, float_format=_short)
    )


def _short(value: float) -> str:
    return f"{value:.3g}"
