"""TODO_DOC analyses/shifts/text.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from analyses.models.named import Named
    from interp.tables.heads import Run


def warnings(runs: Sequence[Run], bases: Sequence[Run], models: Sequence[Named]) -> list[str]:
    """What a reader must know."""
    from analyses.shifts.differences import by_condition
    from interp.tables.shifts import FEWEST_STUDENTS

    told = []
    n = len(runs[0].values.examples)
    if n < 20:
        told.append(f"only {n} examples: intervals and tests over examples are rough")
    based = {base.name for base in bases}
    single = [name for name, group in by_condition([r for r in runs if r.name not in based]).items() if len(group) == 1]
    if single:
        told.append(f"one seed of {', '.join(single)}: tests over examples speak of that student alone, another seed may differ")
    seeds = {base.seed for base in bases}
    unpaired = [r.name for r in runs if r.name not in based and r.seed not in seeds] if len(bases) > 1 else []
    if unpaired:
        told.append(
            f"{', '.join(unpaired)}: {bases[0].condition} has no student of that seed, so shifts and layers are against {bases[0].name}"
        )
    graded = sum(bool(m.accuracy) for m in models if m.name not in based)
    if 0 < graded < FEWEST_STUDENTS:
        told.append(f"{graded} students with a known accuracy: no p value goes with their correlation (from {FEWEST_STUDENTS} on)")
    return told


# --- telling --------------------------------------------------------------------------------------------------------


def summarise(tables: dict[str, pd.DataFrame], about: dict[str, Any], out: Path) -> None:
    """Which heads moved most, in a few lines."""
    import pandas as pd

    region, n_heads = about["region"], about["n_layers"] * about["n_heads"]
    for warning in about["warnings"]:
        print(f"warning: {warning}")
    several = tables["conditions"]["n_seeds"].max() > 1
    table, key = (tables["conditions"], "condition") if several else (tables["shifts"], "model")
    rows = table[(table["region"] == region) & table["q"].notna()]
    lines = []
    for (name, measured), group in rows.groupby([key, "measure"], observed=True, sort=False):
        clear = group[group["q"] < 0.05]
        if clear.empty:
            lines.append({key: name, "measure": measured, "q<0.05": f"0 of {len(group)}"})
            continue
        first = clear.loc[clear["difference"].abs().idxmax()]
        lines.append(
            {
                key: name,
                "measure": measured,
                "q<0.05": f"{len(clear)} of {len(group)}",
                "largest": f"{first['layer']}.{first['head']}",
                "difference": first["difference"],
                "ci_low": first["ci_low"],
                "ci_high": first["ci_high"],
                "q": first["q"],
            }
        )
    test = "seeds and examples crossed, quasi-F" if several else "paired t test over examples"
    print(
        f"\nHeads against {about['baseline']}: {about['n_examples']} examples, queries in {region}; {test}; Benjamini-Hochberg over "
        f"{n_heads} heads; 95 % intervals{'' if several else ' (bootstrap)'}:\n"
    )
    print(pd.DataFrame(lines).to_string(index=False, na_rep="", float_format=lambda value: f"{value:.3g}"))
    print(f"\ntables:  {', '.join(sorted(tables))} in {out}")
    if (out / "report.html").is_file():
        print(f"report:  {out / 'report.html'}")
