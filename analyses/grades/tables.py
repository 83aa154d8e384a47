"""TODO_DOC analyses/grades/tables.py."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from analyses.grades.options import LOGGED, PUBLISHED_CODE
from analyses.grades.responses import Response

if TYPE_CHECKING:
    import pandas as pd


# --- verdicts and tables --------------------------------------------------------------------------------------------


def grade_all(
    models: Mapping[str, Sequence[Response]], numbers: Mapping[str, Sequence[int]], graders: Sequence[str], published: set[str]
) -> pd.DataFrame:
    """A row a response and grader: model, problem, grader, extracted (None where it found nothing), correct.

    Args:
        models: responses, in the order of their file.
        numbers: of `number_problems`.
        graders: names of `distill.problems.grading.GRADERS`, and `PUBLISHED_CODE`.
        published: models on which `PUBLISHED_CODE` is used, for it reads a whole file in order.
    """
    import pandas as pd
    from tqdm import tqdm

    from distill.problems.extraction import published_code_answers
    from distill.problems.grading import grade, is_correct

    alone = [name for name in graders if name != PUBLISHED_CODE]
    rows: list[tuple[str, int, str, str | None, bool]] = []
    with tqdm(total=sum(map(len, models.values())), desc="grading", unit="response", dynamic_ncols=True) as bar:
        for model, responses in models.items():
            in_order: Sequence[str | None] = []
            if PUBLISHED_CODE in graders and model in published:
                in_order = published_code_answers([r.text for r in responses])
            for at, (number, response) in enumerate(zip(numbers[model], responses, strict=True)):
                for verdict in grade(response.text, response.answer, alone, truncated=bool(response.cut)):
                    rows.append((model, number, verdict.grader, verdict.extracted, verdict.correct))
                if in_order:
                    rows.append((model, number, PUBLISHED_CODE, in_order[at], is_correct(in_order[at], response.answer)))
                bar.update()
    return pd.DataFrame(rows, columns=["model", "problem", "grader", "extracted", "correct"])


def with_logged(grades: pd.DataFrame, facts: pd.DataFrame) -> pd.DataFrame:
    """Verdicts with the logged ones behind them, as those of one more grader."""
    import pandas as pd

    known = facts[facts["logged"].notna()]
    logged = known[["model", "problem"]].assign(grader=LOGGED, correct=known["logged"].astype(bool))
    return pd.concat([grades[["model", "problem", "grader", "correct"]], logged], ignore_index=True) if len(logged) else grades


def accuracy_table(grades: pd.DataFrame, facts: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """A row a model and grader, `logged` last where verdicts were logged.

    Returns:
        model, grader, n (responses), right, accuracy = right / n, low and high (Wilson's score interval, 0 to 1), found (share of
        responses in which the grader found an answer), agrees and differs (responses with the logged verdict, and with the other one),
        characters (mean length of the model's responses) and cut (share of them that ran into the limit; NaN where unknown).
    """
    import pandas as pd

    from distill.evaluation.statistics import wilson_interval

    verdicts = with_logged(grades, facts).merge(grades, how="left", on=["model", "problem", "grader"], suffixes=("", "_alone"))
    verdicts = verdicts.merge(facts[["model", "problem", "logged"]], on=["model", "problem"], validate="many_to_one")
    lengths = {str(model): own for model, own in facts.groupby("model", sort=False)}
    rows = []
    for model in lengths:
        own = verdicts[verdicts["model"] == model]
        for grader in own["grader"].unique():
            given = own[own["grader"] == grader]
            right, n = int(given["correct"].sum()), len(given)
            low, high = wilson_interval(right, n, level)
            known = given[given["logged"].notna()]
            same = int((known["correct"] == known["logged"].astype(bool)).sum())
            compared = grader != LOGGED and len(known) > 0
            cut = lengths[model]["cut"]
            rows.append(
                {
                    "model": model,
                    "grader": grader,
                    "n": n,
                    "right": right,
                    "accuracy": right / n,
                    "low": low,
                    "high": high,
                    "found": math.nan if grader == LOGGED else float(given["extracted"].notna().mean()),
                    "agrees": same if compared else None,
                    "differs": len(known) - same if compared else None,
                    "characters": float(lengths[model]["characters"].mean()),
                    "cut": math.nan if cut.isna().any() else float(cut.astype(bool).mean()),
                }
            )
    return pd.DataFrame(rows).astype({"agrees": "Int64", "differs": "Int64"})


def pairs_table(verdicts: pd.DataFrame, baseline: str, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """A row a grader and model: the model against the baseline on the problems that both answered.

    Args:
        verdicts: model, problem, grader, correct; each problem once a model and grader.
        baseline: a model; under graders that it lacks there is no row.
        level: of the interval.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        grader, model, baseline, problems (answered by both), unpaired (by one of them only, left out), only_this and only_baseline
        (problems that only one has right), difference = (only_this - only_baseline) / problems with its percentile bootstrap interval over
        problems (NaN where no two problems differ in it), p_mcnemar (McNemar's exact test, two-sided) and p_holm (Holm's correction over
        the models of a grader).
    """
    import numpy as np
    import pandas as pd

    from distill.evaluation.statistics import holm, mcnemar_exact, mean_interval

    rows = []
    for grader in verdicts["grader"].unique():
        given = verdicts[verdicts["grader"] == grader]
        right = {str(model): own.set_index("problem")["correct"].astype(bool) for model, own in given.groupby("model", sort=False)}
        first = len(rows)
        for model in right:
            if model == baseline or baseline not in right:
                continue
            this, other = right[model].align(right[baseline], join="inner")
            row: dict[str, Any] = {
                "grader": grader,
                "model": model,
                "baseline": baseline,
                "problems": len(this),
                "unpaired": len(right[model]) + len(right[baseline]) - 2 * len(this),
                **dict.fromkeys(("only_this", "only_baseline"), 0),
                **dict.fromkeys(("difference", "difference_low", "difference_high", "p_mcnemar"), math.nan),
            }
            if len(this):
                row["only_this"], row["only_baseline"], row["p_mcnemar"] = mcnemar_exact(this.to_numpy(), other.to_numpy())
                apart = this.to_numpy(np.float64) - other.to_numpy(np.float64)
                row["difference"] = float(apart.mean())
                row["difference_low"], row["difference_high"] = mean_interval(apart, level, resamples, seed)
            rows.append(row)
        for row, p in zip(rows[first:], holm([row["p_mcnemar"] for row in rows[first:]]), strict=True):
            row["p_holm"] = p
    names = "grader model baseline problems unpaired only_this only_baseline difference difference_low difference_high p_mcnemar p_holm"
    return pd.DataFrame(rows, columns=names.split())


def notes_on(
    models: Mapping[str, Sequence[Response]], numbers: Mapping[str, Sequence[int]], grades: pd.DataFrame, facts: pd.DataFrame
) -> list[str]:
    """What a reader of the tables has to know: questions without a pair, repeated ones, and the rows that were graded by hand."""
    notes = []
    if len(models) == 1:
        notes.append(f"{next(iter(models))} is the only model: no paired table")
    else:
        times = Counter(number for own in numbers.values() for number in own)
        lonely = sum(n == 1 for n in times.values())
        if lonely:
            notes.append(f"{lonely} of {len(times)} questions were answered by one model only: they are in no pair")
    for model, responses in models.items():
        repeated = len(responses) - len({r.question.strip() for r in responses})
        if repeated:
            notes.append(f"{model}: {repeated} responses are to a question that it answered before; they are told apart by occurrence")
        unknown = sum(r.cut is None for r in responses)
        if unknown:
            notes.append(
                f"{model}: of {unknown} of {len(responses)} responses nobody noted whether they were cut; they are graded as whole"
            )
    verdicts = grades.merge(facts[["model", "problem", "logged"]], on=["model", "problem"])
    verdicts = verdicts[verdicts["logged"].notna()]
    for model in models:
        own = verdicts[verdicts["model"] == model].set_index("problem")
        code, rules = own[own["grader"] == PUBLISHED_CODE], own[own["grader"] == "published"]
        if not len(code):
            continue
        logged = code["logged"].astype(bool)
        by_hand, same = code["extracted"].isna(), code["correct"] == logged
        note = (
            f"{model}: {PUBLISHED_CODE} reads a number in {(~by_hand).sum()} of {len(code)} logged responses, and gives the logged verdict "
            f"on {(same & ~by_hand).sum()} of them; the other {by_hand.sum()} had to be graded by hand, {(logged & by_hand).sum()} of "
            "them as right"
        )
        if len(rules):
            apart = rules["correct"] != logged
            note += (
                f"; `published` differs from the log on {apart.sum()}: {(apart & by_hand).sum()} graded by hand, and "
                f"{(apart & same & ~by_hand).sum()} on which the code used a number of an earlier response"
            )
        notes.append(note)
    return notes
