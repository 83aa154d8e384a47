r"""Grade responses: extract an answer by a rule, and compare it with the reference.

Graders differ more than students do, so every grader's verdict is stored, and every table names the grader whose verdicts it shows.
`first_final` is the default. It takes the first complete final statement ("#### 18", "\boxed{18}", "the answer is 18"); whatever a model
writes after that, such as a repetition, a correction or a new question, does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from distill.problems.extraction import (
    first_final_answer,
    flexible_extract,
    math_verify_agrees,
    math_verify_answer,
    published_answer,
    stated_answer,
    strict_match,
)
from distill.problems.numbers import parse_number
from interp.tables.errors import InputError
from interp.tables.plugins import nearest

DEFAULT_GRADER = "first_final"


@dataclass(frozen=True)
class Grader:
    """One way to grade a response.

    Attributes:
        extract: takes a response and whether it was truncated; returns the answer as written in the response, or None.
        description: one line for people.
        agrees: takes a response and a reference; returns whether the response is correct. None compares the extracted answer with the
            reference as numbers.
    """

    extract: Callable[[str, bool], str | None]
    description: str
    agrees: Callable[[str, str], bool] | None = None


GRADERS: dict[str, Grader] = {
    "first_final": Grader(first_final_answer, "the first complete final statement, else the last number before a new question"),
    "strict": Grader(strict_match, 'the first "#### n" (strict-match of lm-evaluation-harness)'),
    "flexible": Grader(flexible_extract, "the last number in any form (flexible-extract of lm-evaluation-harness)"),
    "stated": Grader(stated_answer, "the first complete final statement, else nothing"),
    "published": Grader(published_answer, "the rules in the README of arXiv 2412.17846"),
    "math_verify": Grader(math_verify_answer, "Hugging Face's math-verify: LaTeX, boxed or plain expressions", math_verify_agrees),
}
"""The graders by name."""


@dataclass(frozen=True)
class Grade:
    """One grader's verdict on a response.

    Attributes:
        grader: the grader's name.
        extracted: the answer that the grader found, or None.
        correct: the answer equals the reference.
    """

    grader: str
    extracted: str | None
    correct: bool


def grader_help() -> str:
    """Return the graders with their descriptions, for help texts."""
    return "; ".join(f"{name}: {grader.description}" for name, grader in GRADERS.items())


def check_grader(name: str) -> None:
    """Raise if a grader is not known.

    Raises:
        InputError: the message has the nearest known name and all of them.
    """
    if name not in GRADERS:
        raise InputError(f"unknown grader {name!r}{nearest(name, GRADERS)}; known: {', '.join(GRADERS)}")


def is_correct(extracted: str | None, reference: str) -> bool:
    """Return whether an answer and a reference are the same number.

    Args:
        extracted: an answer, or None.
        reference: a final answer, or a complete solution that ends in `#### 18`.

    Raises:
        InputError: the reference holds no number.
    """
    wanted = parse_number(reference.rpartition("####")[2])
    if wanted is None:
        raise InputError(f"the reference {reference[-60:]!r} does not end in a number; a solution in GSM8K's format ends in '#### 18'")
    return extracted is not None and parse_number(extracted) == wanted


def grade(response: str, reference: str, graders: Sequence[str] | None = None, *, truncated: bool = False) -> list[Grade]:
    """Return the verdicts of several graders on one response.

    Args:
        response: a model's text.
        reference: a final answer, or a complete solution that ends in `#### 18`.
        graders: names in `GRADERS`; None takes all of them.
        truncated: the response was truncated at a length limit.

    Raises:
        InputError: an unknown grader, or a reference without a number.
    """
    names = list(GRADERS) if graders is None else list(graders)
    for name in names:
        check_grader(name)
    is_correct(None, reference)  # raises if the reference holds no number, whichever grader is used
    verdicts = []
    for name in names:
        grader = GRADERS[name]
        extracted = grader.extract(response, truncated)
        correct = is_correct(extracted, reference) if grader.agrees is None else grader.agrees(response, reference)
        verdicts.append(Grade(name, extracted, correct))
    return verdicts
