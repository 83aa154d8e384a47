"""Read what a model answered to each problem from its head run, and grade it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from distill.problems.grading import grade
from interp.tables.errors import InputError

if TYPE_CHECKING:
    from distill.problems.sets import Problem
    from interp.tables.heads import ModelRun


def written_answers(inputs: pd.DataFrame, max_new_tokens: int) -> pd.DataFrame:
    """Return what a model wrote, from the `inputs` table of its run on generated text.

    The text joins the tokens of the answer. Special tokens belong to the template's region, so they are left out. An answer is truncated
    if `max_new_tokens` tokens were generated and the last one is not special. The prompt between a question and its answer has the same
    length for all problems, so it is as long as the shortest distance between them.

    Args:
        inputs: rows of `interp.tables.heads.INPUTS`.
        max_new_tokens: limit of the run.

    Returns:
        One row per example, in ascending order: example, text, n_tokens (without special tokens), truncated.
    """
    rows = inputs.sort_values(["example", "position"], kind="stable")
    region, special = rows["region"].astype(str), rows["role"].astype(str) == "special"
    starts = rows[region == "response"].groupby("example")["position"].min()
    question_ends = rows[region == "question"].groupby("example")["position"].max()
    prompt = int((starts - question_ends).min()) if len(starts) else 1
    found = []
    for example, own in rows.groupby("example", sort=True):
        answer = own[(region[own.index] == "response") & ~special[own.index]]
        last, first = int(own["position"].iloc[-1]), int(question_ends[example]) + prompt
        truncated = not special[own.index[-1]] and last - first + 1 >= max_new_tokens
        found.append((example, "".join(answer["token"]), len(answer), truncated))
    return pd.DataFrame(found, columns=["example", "text", "n_tokens", "truncated"])


def graded_answers(head_run: ModelRun, run: dict[str, Any], problems: Sequence[Problem], grader: str) -> pd.DataFrame:
    """Return one model's rows of `interp.tables.contrast.ANSWERS`.

    Args:
        head_run: the model's head run on generated text.
        run: the run.json of that head run.
        problems: the problems that it read, in order.
        grader: a key of `distill.problems.grading.GRADERS`.

    Raises:
        InputError: the run has other examples than there are problems, or the reference of a problem holds no number.
    """
    written = written_answers(head_run.inputs, run["generated"]["max_new_tokens"])
    if list(written["example"]) != [p.index for p in problems] or tuple(written["example"]) != head_run.values.examples:
        raise InputError(
            f"the tables of {head_run.name} have {len(written)} examples, but there are {len(problems)} problems; measure it again"
        )
    verdicts = [
        grade(text, problem.answer, [grader], truncated=truncated)[0]
        for text, truncated, problem in zip(written["text"], written["truncated"].tolist(), problems, strict=True)
    ]
    table = written.rename(columns={"example": "problem"}).drop(columns="text")
    table.insert(0, "model", head_run.name)
    return table.assign(extracted=[v.extracted or "" for v in verdicts], correct=[v.correct for v in verdicts])
