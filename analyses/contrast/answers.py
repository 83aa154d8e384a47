"""What a model wrote to each problem, read from its head run, and whether that is right."""

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
    """What a model wrote, from the `inputs` table of its run on generated text.

    The text is that of the answer's tokens in order; special tokens stand in the template's region and are left out. An answer is cut
    where its last token is no special one and `max_new_tokens` were written. The prompt after a question is the same for all, so it is as
    long as the shortest stretch between a question and its answer.

    Args:
        inputs: rows of `interp.tables.heads.INPUTS`.
        max_new_tokens: limit of the run.

    Returns:
        example, text, n_tokens (without special ones), truncated; a row an example, ascending.
    """
    rows = inputs.sort_values(["example", "position"], kind="stable")
    region, special = rows["region"].astype(str), rows["role"].astype(str) == "special"
    begins = rows[region == "response"].groupby("example")["position"].min()
    asked = rows[region == "question"].groupby("example")["position"].max()
    prompt = int((begins - asked).min()) if len(begins) else 1
    found = []
    for example, own in rows.groupby("example", sort=True):
        said = own[(region[own.index] == "response") & ~special[own.index]]
        last, first = int(own["position"].iloc[-1]), int(asked[example]) + prompt
        cut = not special[own.index[-1]] and last - first + 1 >= max_new_tokens
        found.append((example, "".join(said["token"]), len(said), cut))
    return pd.DataFrame(found, columns=["example", "text", "n_tokens", "truncated"])


def graded(run: ModelRun, about: dict[str, Any], problems: Sequence[Problem], grader: str) -> pd.DataFrame:
    """Rows of `interp.tables.contrast.ANSWERS` of one model.

    Args:
        run: its head run on generated text.
        about: that run's run.json.
        problems: of the run, in order.
        grader: one of `distill.problems.grading.GRADERS`.

    Raises:
        InputError: the run has other examples than there are problems.
        InputError: a problem's reference holds no number.
    """
    written = written_answers(run.inputs, about["generated"]["max_new_tokens"])
    if list(written["example"]) != [p.index for p in problems] or tuple(written["example"]) != run.values.examples:
        raise InputError(f"{run.name} has tables of {len(written)} examples, and there are {len(problems)} problems; measure it again")
    verdicts = [
        grade(text, problem.answer, [grader], truncated=cut)[0]
        for text, cut, problem in zip(written["text"], written["truncated"].tolist(), problems, strict=True)
    ]
    table = written.rename(columns={"example": "problem"}).drop(columns="text")
    table.insert(0, "model", run.name)
    return table.assign(extracted=[v.extracted or "" for v in verdicts], correct=[v.correct for v in verdicts])
