"""The tables of graded responses: every verdict, accuracy, models paired by question, and notes on what the tables do not show."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analyses.grades.responses import Response
from distill.evaluation.statistics import holm, mcnemar_exact, mean_interval, wilson_interval

PUBLISHED_CODE = "published_code"
"""A grader for the published layout only: what the paper's code extracts, which depends on the order of the responses."""

LOGGED = "logged"
"""Name under which the verdicts that were stored with the responses are in the tables, like those of a grader."""

_PAIR_COLUMNS = (
    "grader",
    "model",
    "baseline",
    "problems",
    "unpaired",
    "only_this",
    "only_baseline",
    "difference",
    "difference_low",
    "difference_high",
    "p_mcnemar",
    "p_holm",
)


def grade_all(
    models: Mapping[str, Sequence[Response]], numbers: Mapping[str, Sequence[int]], graders: Sequence[str], published: set[str]
) -> pd.DataFrame:
    """Return one row per response and grader: model, problem, grader, extracted (None if it found nothing), correct.

    Args:
        models: responses of each model, in the order of their file.
        numbers: number of each response's problem, as `number_problems` returns it.
        graders: keys of `distill.problems.grading.GRADERS`, and `PUBLISHED_CODE`.
        published: models to use `PUBLISHED_CODE` for: it reads a complete file in order.
    """
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
                for verdict in grade(response.text, response.answer, alone, truncated=bool(response.truncated)):
                    rows.append((model, number, verdict.grader, verdict.extracted, verdict.correct))
                if in_order:
                    rows.append((model, number, PUBLISHED_CODE, in_order[at], is_correct(in_order[at], response.answer)))
                bar.update()
    return pd.DataFrame(rows, columns=["model", "problem", "grader", "extracted", "correct"])


def with_logged(grades: pd.DataFrame, facts: pd.DataFrame) -> pd.DataFrame:
    """Return the verdicts, followed by the logged ones as if they were another grader's."""
    known = facts[facts["logged"].notna()]
    logged = known[["model", "problem"]].assign(grader=LOGGED, correct=known["logged"].astype(bool))
    return pd.concat([grades[["model", "problem", "grader", "correct"]], logged], ignore_index=True) if len(logged) else grades


def accuracy_table(grades: pd.DataFrame, facts: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """Return one row per model and grader, with `logged` last if verdicts were logged.

    Args:
        grades: the table of `grade_all`.
        facts: the table of `facts_table`.
        level: level of the intervals.

    Returns:
        Columns: model, grader, n (number of responses), right, accuracy = right / n, low and high (Wilson score interval, 0 to 1), found
        (fraction of responses in which the grader found an answer), agrees and differs (number of responses whose verdict equals the
        logged one, and does not), characters (mean length of the model's responses), and truncated (fraction of them that were
        truncated; NaN if this is not known).
    """
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
            truncated = lengths[model]["truncated"]
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
                    "truncated": math.nan if truncated.isna().any() else float(truncated.astype(bool).mean()),
                }
            )
    return pd.DataFrame(rows).astype({"agrees": "Int64", "differs": "Int64"})


def pairs_table(verdicts: pd.DataFrame, baseline: str, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """Return one row per grader and model: the model compared with the baseline on the problems that both answered.

    Args:
        verdicts: model, problem, grader, correct; each problem once per model and grader.
        baseline: a model; a grader without verdicts on it has no rows.
        level: level of the interval.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.

    Returns:
        Columns: grader, model, baseline, problems (number answered by both), unpaired (number answered by only one of them, left out),
        only_this and only_baseline (number of problems that only one of them solved), difference = (only_this - only_baseline) / problems
        with its percentile bootstrap interval over problems (NaN if all problems have the same difference), p_mcnemar (McNemar's exact
        test, two-sided), and p_holm (Holm's correction over the models of a grader).
    """
    rows: list[dict[str, Any]] = []
    for grader in verdicts["grader"].unique():
        own = verdicts[verdicts["grader"] == grader]
        right = {str(model): each.set_index("problem")["correct"].astype(bool) for model, each in own.groupby("model", sort=False)}
        if baseline not in right:
            continue
        pairs = [
            {"grader": grader, "model": model, "baseline": baseline, **_pair(each, right[baseline], level, resamples, seed)}
            for model, each in right.items()
            if model != baseline
        ]
        corrected = holm([pair["p_mcnemar"] for pair in pairs])
        rows += [{**pair, "p_holm": p} for pair, p in zip(pairs, corrected, strict=True)]
    return pd.DataFrame(rows, columns=list(_PAIR_COLUMNS))


def _pair(right: pd.Series, baseline: pd.Series, level: float, resamples: int, seed: int) -> dict[str, Any]:
    """Return the comparison of one model with the baseline; both are by problem."""
    this, other = right.align(baseline, join="inner")
    pair: dict[str, Any] = {
        "problems": len(this),
        "unpaired": len(right) + len(baseline) - 2 * len(this),
        **dict.fromkeys(("only_this", "only_baseline"), 0),
        **dict.fromkeys(("difference", "difference_low", "difference_high", "p_mcnemar"), math.nan),
    }
    if len(this):
        pair["only_this"], pair["only_baseline"], pair["p_mcnemar"] = mcnemar_exact(this.to_numpy(), other.to_numpy())
        differences = this.to_numpy(np.float64) - other.to_numpy(np.float64)
        pair["difference"] = float(differences.mean())
        pair["difference_low"], pair["difference_high"] = mean_interval(differences, level, resamples, seed)
    return pair


def notes_on(
    models: Mapping[str, Sequence[Response]], numbers: Mapping[str, Sequence[int]], grades: pd.DataFrame, facts: pd.DataFrame
) -> list[str]:
    """Return what a reader of the tables must know: unpaired and repeated questions, and responses that were graded by hand.

    Args:
        models: responses of each model.
        numbers: number of each response's problem.
        grades: the table of `grade_all`.
        facts: the table of `facts_table`.
    """
    notes = []
    if len(models) == 1:
        notes.append(f"{next(iter(models))} is the only model, so there are no pairs")
    else:
        times = Counter(number for own in numbers.values() for number in own)
        n_single = sum(n == 1 for n in times.values())
        if n_single:
            notes.append(f"{n_single} of {len(times)} questions were answered by only one model and are not paired")
    for model, responses in models.items():
        repeated = len(responses) - len({r.question.strip() for r in responses})
        if repeated:
            notes.append(f"{model}: {repeated} responses are to repeated questions; they are paired by occurrence")
        unknown = sum(r.truncated is None for r in responses)
        if unknown:
            notes.append(
                f"{model}: it is not known whether {unknown} of {len(responses)} responses were truncated; they are graded as complete"
            )
    verdicts = grades.merge(facts[["model", "problem", "logged"]], on=["model", "problem"])
    verdicts = verdicts[verdicts["logged"].notna()]
    for model in models:
        own = verdicts[verdicts["model"] == model].set_index("problem")
        if (own["grader"] == PUBLISHED_CODE).any():
            notes.append(_note_on_logged(model, own))
    return notes


def _note_on_logged(model: str, verdicts: pd.DataFrame) -> str:
    """Return how the logged verdicts of a model relate to those of the paper's code and of its stated rules."""
    code, rules = (verdicts[verdicts["grader"] == name] for name in (PUBLISHED_CODE, "published"))
    logged = code["logged"].astype(bool)
    by_hand, same = code["extracted"].isna(), code["correct"] == logged
    note = (
        f"{model}: {PUBLISHED_CODE} reads a number in {(~by_hand).sum()} of {len(code)} logged responses, and gives the logged verdict on "
        f"{(same & ~by_hand).sum()} of them; the other {by_hand.sum()} were graded by hand, {(logged & by_hand).sum()} of them as right"
    )
    if len(rules):
        apart = rules["correct"] != logged
        note += (
            f"; `published` differs from the log on {apart.sum()}: {(apart & by_hand).sum()} graded by hand, and "
            f"{(apart & same & ~by_hand).sum()} on which the code used a number of an earlier response"
        )
    return note
