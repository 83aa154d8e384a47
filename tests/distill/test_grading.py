from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.grading import (
    DEFAULT_GRADER,
    GRADERS,
    GradingError,
    first_final,
    flexible,
    grade,
    is_correct,
    locate,
    parse_number,
    published,
    published_column,
    stated,
    strict,
)

DATA = os.environ.get("PRIMED_HEADS_DATA")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1,000", 1000),
        ("1,234,567.5", Fraction("1234567.5")),
        ("$5.00", 5),
        ("3/4", Fraction(3, 4)),
        ("1 1/2", Fraction(3, 2)),
        ("1½", Fraction(3, 2)),
        ("½", Fraction(1, 2)),
        ("12.", 12),
        ("-7", -7),
        ("−$7", -7),
        ("$-7", -7),
        ("18 (i.e. 10 + 8)", 18),
        ("50%", 50),
        (".5", Fraction(1, 2)),
        ("10 + 8 = 18", 18),
        ("**18**", 18),
        ("\\$18", 18),
        ("5 apples", 5),
        ("1\u202f000", 1000),
        ("10-5", None),
        ("2 + 3", None),
        ("4 x 3", None),
        ("0/0", None),
        ("3/0", None),
        ("", None),
        ("none", None),
    ],
)
def test_numbers_as_people_write_them(text: str, number: object) -> None:
    assert parse_number(text) == number


INTEGERS = st.integers(-(10**9), 10**9)


def written(number: int, style: str) -> str:
    return {
        "plain": f"{number}",
        "commas": f"{number:,}",
        "dollars": f"${number:,}" if number >= 0 else f"-${-number:,}",
        "cents": f"${number}.00" if number >= 0 else f"-${-number}.00",
        "point": f"{number}.",
        "percent": f"{number}%",
        "explained": f"{number} (i.e. {number - 8} + 8)",
        "bold": f"**{number}**",
        "whole": f"{2 * number}/2",
    }[style]


STYLES = st.sampled_from(["plain", "commas", "dollars", "cents", "point", "percent", "explained", "bold", "whole"])
MARKS = st.sampled_from(
    ["#### {}", "The answer is {}.", "the final answer is: {}\n", "**Answer:** {} pens", "Final answer: {}", "Thus \\boxed{{{}}}"]
)
AFTER = st.sampled_from(
    ["", "\nThe answer is 3.", "\n\nQuestion: Tom has 7 cats.", " #### 99", "\nWait, 5*5 = 25.", "\n" + "The answer is 11. " * 5]
)


@given(INTEGERS, STYLES)
def test_a_number_is_the_same_in_every_style(number: int, style: str) -> None:
    assert parse_number(written(number, style)) == number


@given(INTEGERS, STYLES, MARKS, AFTER, st.sampled_from(["", "2+2 = 4 pens. ", "Step 1: 9 cats.\n"]))
def test_the_first_final_statement_counts_and_nothing_after_it(number: int, style: str, mark: str, after: str, before: str) -> None:
    if "boxed" in mark and style in ("bold", "explained"):
        style = "plain"
    said = before + mark.format(written(number, style)) + after
    found = first_final(said)
    assert found is not None
    assert parse_number(found) == number, said
    assert is_correct(found, f"so\n#### {number:,}")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The answer is that she pays $18.", "$18"),
        ("The answer is not 5. The answer is 6.", "6"),
        ("The answer is\n\n18", "18"),
        ("It is \\boxed{\\frac{3}{4}}", "3/4"),
        ("It is \\boxed{1{,}250}", "1,250"),
        ("She has 5.\n\nQuestion: 7 cats?", "5"),
        ("no final mark, but 12 and 13", "13"),
        ("so 16 left\n## Step 7: think", "16"),
        ("The answer is 10-5", "5"),  # a sum is no answer: the last number stands in
        ("nothing", None),
        ("", None),
    ],
)
def test_first_final_by_hand(text: str, found: str | None) -> None:
    assert first_final(text) == found


def test_a_number_at_the_cut_is_not_complete() -> None:
    assert first_final("5 pens. The answer is 1") == "1"
    assert first_final("5 pens. The answer is 1", cut=True) == "5"
    assert first_final("The answer is 18.", cut=True) == "18"
    assert stated("The answer is 1", cut=True) is None
    assert first_final("The answer is 18\nQuestion: 4", cut=True) == "18"  # the cut came later


@given(st.text(max_size=200))
@settings(deadline=None)
def test_no_rule_fails_on_any_text(text: str) -> None:
    for name, rule in GRADERS.items():
        if name != "math_verify":  # it has a test of its own: parsing is slow
            found = rule(text, False)
            assert found is None or isinstance(found, str)
            assert is_correct(found, "#### 5") in (True, False)


@given(st.text("0123456789.,$-/#= answeri\\boxed{}", max_size=60))
@settings(deadline=None, max_examples=60)
def test_math_verify_does_not_fail(text: str) -> None:
    (verdict,) = grade(text, "#### 5", ["math_verify"])
    assert verdict.correct in (True, False)


@pytest.mark.parametrize(
    "text", ["1" * 20_000, "1," * 20_000, "answer is " * 9000, "#### " * 9000, "- " * 20_000 + "5", "\\boxed{" * 9000, "1 " * 20_000]
)
def test_long_nonsense_ends(text: str) -> None:
    for name, rule in GRADERS.items():
        if name != "math_verify":
            is_correct(rule(text, False), "#### 5")


@given(st.text("0123456789.,$- #\nab", max_size=80))
def test_harness_rules_are_those_of_its_task_file(text: str) -> None:
    """lm-evaluation-harness, tasks/gsm8k/gsm8k.yaml: the regular expressions, first match (strict) and last (flexible), groups joined."""
    found = re.findall(r"#### (\-?[0-9\.\,]+)", text)
    assert strict(text) == (found[0].strip() if found else None)
    every = re.findall(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", text)
    assert flexible(text) == (next(m for m in every[-1] if m) if every else None)


def test_references_are_solutions_or_numbers() -> None:
    assert is_correct("$1,250.00", "He pays 5 * 250.\n#### 1,250")
    assert is_correct("18", "18")
    assert not is_correct(None, "18")
    assert not is_correct("-18", "18")
    with pytest.raises(GradingError, match="ends in no number"):
        is_correct("18", "no idea")


def test_all_graders_side_by_side() -> None:
    verdicts = {g.grader: (g.extracted, g.correct) for g in grade("3*6 = 18.\nThe answer is $18.00. The answer is 20.", "#### 18")}
    assert list(verdicts) == list(GRADERS)
    assert verdicts["first_final"] == ("$18.00", True)
    assert verdicts["strict"] == (None, False)
    assert verdicts["flexible"] == ("20.", False)
    assert DEFAULT_GRADER in GRADERS


def test_unknown_grader() -> None:
    with pytest.raises(GradingError, match="unknown grader 'fist'; known: first_final, strict"):
        grade("18", "#### 18", ["fist"])


def test_math_verify_works_beside_the_main_thread() -> None:
    """Its own time limit stands on signals, which other threads have not."""
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: grade("It is $\\boxed{\\frac{36}{2}}$", "#### 18", ["math_verify"])[0].correct).result()


def test_an_extracted_answer_is_found_again() -> None:
    text = "18 pens and 2. The answer is 18. So 18."
    assert locate(text, "18") == (29, 31)
    assert locate("4 and 5 and 4", "4") == (12, 13)
    assert locate("4", "7") is None


# --- the published study --------------------------------------------------------------------------------------------


def test_published_rules_by_hand() -> None:
    assert published("12 or 13\nso \\boxed{1,400} and \\boxed{3}") == "1400"
    assert published("It is 12, yes 12\nthen 5") == "12" or published("It is 12 yes 12\nthen 5") == "12"
    assert published("a 1 b 2\nthe final answer is 7 of 9") == "7"
    assert published("a 1 b 2\nc 3") == "3"
    assert published("no number") is None
    assert published("only ,") is None


def test_the_published_code_reads_an_earlier_response() -> None:
    """After "the answer is" its code takes a variable of the last response that came to its last rule."""
    texts = ["a 1 b 2\nc 3", "a 4 b 5\nthe answer is 7"]
    assert [published(t) for t in texts] == ["3", "7"]
    assert published_column(texts) == ["3", "1"]


@pytest.mark.skipif(DATA is None, reason="PRIMED_HEADS_DATA does not say where the published responses are")
@pytest.mark.parametrize(("name", "by_hand"), [("ai-KD", 125), ("base-KD", 138)])
def test_published_rules_give_the_published_extraction(name: str, by_hand: int) -> None:
    """On every row. The rest are those whose match Python's float does not read (a lone comma, mostly): the paper graded them by hand."""
    import pandas as pd

    table = pd.read_csv(Path(DATA or "") / "published" / "responses" / f"{name}.csv")
    texts = ["" if isinstance(text, float) else text for text in table["model_answer"]]
    logged = pd.to_numeric(table["model_ex1"], errors="coerce").tolist()
    found = published_column(texts)
    assert len(found) == 1319
    assert sum(text is None for text in found) == by_hand
    assert [(i, f, e) for i, (f, e) in enumerate(zip(found, logged, strict=True)) if f is not None and float(f) != e] == []
