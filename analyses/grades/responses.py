"""Responses of models, grouped by model and paired by question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import pandas as pd

from distill.problems.grading import is_correct
from distill.problems.numbers import parse_number
from interp.tables.errors import InputError


@dataclass(frozen=True)
class Response:
    """One model's response to one problem.

    Attributes:
        model: name of the model.
        question: the problem.
        answer: its reference, with `#### 18` or only the number.
        text: the response; it may be empty.
        truncated: the response was truncated at a length limit; None if this is not known, which graders treat as False.
        logged: the verdict that was stored with the response; None if there is none.
        place: file and line, for messages.
    """

    model: str
    question: str
    answer: str
    text: str
    truncated: bool | None
    logged: bool | None
    place: str


@dataclass(frozen=True)
class Source:
    """The responses of one file.

    Attributes:
        path: the file, or the folder of an evaluation.
        kind: csv (the published layout), jsonl, or evaluation.
        sha256: SHA-256 of the file's content.
        responses: in the order of the file.
    """

    path: Path
    kind: Literal["csv", "jsonl", "evaluation"]
    sha256: str
    responses: tuple[Response, ...]


def by_model(sources: Sequence[Source]) -> dict[str, list[Response]]:
    """Return the responses of each model.

    Raises:
        InputError: a path is named twice, or a model is in two sources, so that it is unclear which of its responses count.
    """
    repeated = [path for path, n in Counter(source.path.resolve() for source in sources).items() if n > 1]
    if repeated:
        raise InputError(f"{repeated[0]} is named twice; name each path once")
    models: dict[str, list[Response]] = {}
    home: dict[str, Path] = {}
    for source in sources:
        for response in source.responses:
            if home.setdefault(response.model, source.path) != source.path:
                raise InputError(f"model {response.model!r} is in {home[response.model]} and in {source.path}; rename one of them")
            models.setdefault(response.model, []).append(response)
    return models


def number_problems(models: Mapping[str, Sequence[Response]]) -> dict[str, list[int]]:
    """Return the number of each response's problem: 0, 1, ... in the order of the first model that has the question, then the next model's.

    Two questions are the same if their texts are, apart from blanks around them. Repeated questions of a model are paired by occurrence:
    its second response to a question belongs to the second response of the others.

    Raises:
        InputError: a reference holds no number, or the same question has different references.
    """
    found: dict[tuple[str, int], tuple[int, Fraction | None, str]] = {}
    numbers: dict[str, list[int]] = {}
    for model, responses in models.items():
        before: Counter[str] = Counter()
        numbers[model] = []
        for response in responses:
            try:
                is_correct(None, response.answer)  # raises if the reference holds no number
            except InputError as error:
                raise InputError(f"{response.place}: {error}") from None
            question = response.question.strip()
            reference = parse_number(response.answer.rpartition("####")[2])
            number, first, place = found.setdefault((question, before[question]), (len(found), reference, response.place))
            if first != reference:
                raise InputError(f"{response.place}: the reference is {reference}, but {first} for the same question in {place}")
            before[question] += 1
            numbers[model].append(number)
    return numbers


def facts_table(models: Mapping[str, Sequence[Response]], numbers: Mapping[str, Sequence[int]]) -> pd.DataFrame:
    """Return one row per response: model, problem, characters, truncated and logged (both <NA> if not known)."""
    rows = [
        {"model": model, "problem": number, "characters": len(r.text), "truncated": r.truncated, "logged": r.logged}
        for model, responses in models.items()
        for number, r in zip(numbers[model], responses, strict=True)
    ]
    return pd.DataFrame(rows).astype({"truncated": "boolean", "logged": "boolean"})
