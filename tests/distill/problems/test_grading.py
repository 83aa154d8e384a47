from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.problems.grading import DEFAULT_GRADER, GRADERS, grade, grader_help, is_correct
from interp.tables.errors import InputError


@given(st.text(max_size=200))
@settings(deadline=None)
def test_graders_accept_any_text(text: str) -> None:
    for name, grader in GRADERS.items():
        if name != "math_verify":  # tested below with fewer examples, because parsing is slow
            found = grader.extract(text, False)
            assert found is None or isinstance(found, str)
            assert is_correct(found, "#### 5") in (True, False)


@given(st.text("0123456789.,$-/#= answeri\\boxed{}", max_size=60))
@settings(deadline=None, max_examples=60)
def test_math_verify_accepts_any_text(text: str) -> None:
    (verdict,) = grade(text, "#### 5", ["math_verify"])
    assert verdict.correct in (True, False)


@pytest.mark.parametrize(
    "piece",
    [
        "1",
        "1,",
        "1/",
        "answer is ",
        "#### ",
        "- ",
        "\\boxed{",
        "1 ",
        "\n",
        "\n#",
        " ",
        "*",
        "#",
        "\\frac{1",
        "the final ",
        "answer is 1-2 ",
        "Answer: " + "9" * 180 + " and 5 ",
    ],
)
@pytest.mark.parametrize("opening", ["", "oxed{1", "answer", "Q"])
def test_graders_take_linear_time(opening: str, piece: str) -> None:
    """A rule that takes quadratic time would not finish on 100,000 characters."""
    text = opening + piece * (100_000 // len(piece))
    for name, grader in GRADERS.items():
        if name != "math_verify":
            is_correct(grader.extract(text, False), "#### 5")


def test_reference_is_a_solution_or_a_number() -> None:
    assert is_correct("$1,250.00", "He pays 5 * 250.\n#### 1,250")
    assert is_correct("18", "18")
    assert not is_correct(None, "18")
    assert not is_correct("-18", "18")
    with pytest.raises(InputError, match="does not end in a number"):
        is_correct("18", "no idea")
    with pytest.raises(InputError, match="does not end in a number"):
        grade("18", "no idea", ["math_verify"])


def test_grade_returns_the_verdict_of_every_grader() -> None:
    verdicts = {g.grader: (g.extracted, g.correct) for g in grade("3*6 = 18.\nThe answer is $18.00. The answer is 20.", "#### 18")}
    assert list(verdicts) == list(GRADERS)
    assert verdicts["first_final"] == ("$18.00", True)
    assert verdicts["strict"] == (None, False)
    assert verdicts["flexible"] == ("20.", False)
    assert DEFAULT_GRADER in GRADERS


def test_unknown_grader_is_refused_with_the_known_names() -> None:
    with pytest.raises(InputError, match="unknown grader 'fist'; known: first_final, strict"):
        grade("18", "#### 18", ["fist"])


def test_math_verify_works_outside_the_main_thread() -> None:
    """Its time limit uses signals, which work in the main thread only."""
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: grade("It is $\\boxed{\\frac{36}{2}}$", "#### 18", ["math_verify"])[0].correct).result()


def test_help_describes_every_grader() -> None:
    assert [part.partition(": ")[0] for part in grader_help().split("; ")] == list(GRADERS)
    assert all(grader.description for grader in GRADERS.values())
