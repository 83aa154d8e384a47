"""Runs of several models brought to common ground: the same heads, examples and measures, and texts of the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from interp.tables.errors import InputError
from interp.tables.heads import HeadValues, ModelRun


def align(runs: Sequence[ModelRun]) -> list[ModelRun]:
    """Return the runs, restricted to the measures and examples that all of them have.

    Raises:
        InputError: fewer than two runs, repeated names, no common measure, different layers or heads, different examples, or an example
            whose tokens differ; the message has the first difference.
    """
    if len(runs) < 2:
        raise InputError(f"{len(runs)} model to compare ({', '.join(r.name for r in runs) or 'none'}); name at least two")
    first = runs[0]
    names = [r.name for r in runs]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"two runs have a model called {repeated[0]!r}; measure one of them again with --name")
    for run in runs[1:]:
        mine, theirs = (first.values.layers, first.values.n_heads), (run.values.layers, run.values.n_heads)
        if mine != theirs:
            raise InputError(
                f"{run.name} has {len(theirs[0])} layers of {theirs[1]} heads, {first.name} {len(mine[0])} of {mine[1]}, so their heads do "
                "not correspond; --match pairs heads that behave similarly"
            )
    examples = [e for e in first.values.examples if all(e in set(r.values.examples) for r in runs)]
    for run in runs[1:]:
        alone = sorted(set(run.values.examples) ^ set(first.values.examples))
        if examples and alone:
            has, lacks = (run, first) if alone[0] in run.values.examples else (first, run)
            raise InputError(
                f"{first.name} has {len(first.values.examples)} examples, {run.name} {len(run.values.examples)}: example {alone[0]} is in "
                f"{has.name} and not in {lacks.name}; measure both on the same problems (--problems, --limit)"
            )
    measures = [m for m in first.values.measures if all(m in r.values.measures for r in runs)]
    if not examples:
        raise InputError(f"no example is common to {', '.join(names)}: they were measured on different problems")
    if not measures:
        raise InputError(f"no measure is common to {', '.join(names)}; measure them again with the same --measures")
    reference = _tokens(first, examples)
    for run in runs[1:]:
        _same_tokens(first.name, reference, run.name, _tokens(run, examples))
    return [replace(r, values=_restricted(r.values, examples, measures)) for r in runs]


def _tokens(run: ModelRun, examples: Sequence[int]) -> pd.DataFrame:
    rows = run.inputs[run.inputs["example"].isin(list(examples))]
    rows = rows.sort_values(["example", "position"], kind="stable").reset_index(drop=True)
    return rows.assign(region=rows["region"].astype(str))


def _same_tokens(name: str, one: pd.DataFrame, other_name: str, other: pd.DataFrame) -> None:
    n = min(len(one), len(other))
    columns = ["example", "position", "token_id", "region", "is_query"]
    differs = (one.loc[: n - 1, columns].to_numpy() != other.loc[: n - 1, columns].to_numpy()).any(1)
    if not differs.any() and len(one) == len(other):
        return
    at = int(differs.argmax()) if differs.any() else n
    seen = [frame.iloc[at] if at < len(frame) else None for frame in (one, other)]
    place = next(row for row in seen if row is not None)
    shown = [f"{row['token']!r} ({row['region']})" if row is not None else "nothing more" for row in seen]
    raise InputError(
        f"{name} and {other_name} did not read the same tokens: example {place['example']}, position {place['position']}: {shown[0]} "
        f"against {shown[1]}. Measure both on the same problems with --text reference and the same chat template; --match compares models "
        "with different tokenizers"
    )


def _restricted(values: HeadValues, examples: Sequence[int], measures: Sequence[str]) -> HeadValues:
    if tuple(examples) == values.examples and tuple(measures) == values.measures:
        return values
    rows, columns = [values.examples.index(e) for e in examples], [values.measures.index(m) for m in measures]
    return replace(values, examples=tuple(examples), measures=tuple(measures), values=values.values[rows][:, :, :, columns])
