from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.problems.extraction import (
    _published,
    first_final_answer,
    flexible_extract,
    locate_answer,
    published_answer,
    published_code_answers,
    stated_answer,
    strict_match,
)
from distill.problems.grading import is_correct
from distill.problems.numbers import parse_number
from tests.distill.problems.cases import INTEGERS, STYLES, written

DATA = os.environ.get("PRIMED_HEADS_DATA")


MARKS = st.sampled_from(
    ["#### {}", "The answer is {}.", "the final answer is: {}\n", "**Answer:** {} pens", "Final answer: {}", "Thus \\boxed{{{}}}"]
)


AFTER = st.sampled_from(
    ["", "\nThe answer is 3.", "\n\nQuestion: Tom has 7 cats.", " #### 99", "\nWait, 5*5 = 25.", "\n" + "The answer is 11. " * 5]
)


@given(INTEGERS, STYLES, MARKS, AFTER, st.sampled_from(["", "2+2 = 4 pens. ", "Step 1: 9 cats.\n"]))
def test_first_final_ignores_everything_after_the_first_statement(number: int, style: str, mark: str, after: str, before: str) -> None:
    if "boxed" in mark and style in ("bold", "explained"):
        style = "plain"
    said = before + mark.format(written(number, style)) + after
    found = first_final_answer(said)
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
        ("The answer is 10-5", "5"),  # a calculation is not an answer, so the last number is taken
        ("nothing", None),
        ("", None),
        # a bare label starts a solution as often as it states the answer
        ("Answer: 18 pens. She has 3 more.", "18"),
        ("Answer: She makes $18 a day.\n\nTom has 5 cats.", "$18"),
        ("Answer: Janet has 16 eggs. She sells 9 for 2 each.\n#### 18", "18"),
        ("Answer:\nShe sells 16 - 3 - 4 = 9 eggs. 9 * 2 = 18.\n#### 18", "18"),
        ("Answer: 16 - 3 - 4 = 9. So 9 * 2 = 18. The final answer is 18.", "18"),
        ("**Answer:** 16 eggs minus 7 gives 9. \\boxed{18}", "18"),
        ("The answer is:\nFirst, 3*4 = 12 eggs.\nThen 12 + 5 = 17.", "17"),
        ("The answer is: She has 3 boxes of 4 pens, so 3*4 = 12 pens.", "12"),
        ("The answer is: Janet makes $18.", "$18"),
        ("The answer is 50% of 10 = 5.", "50% of 10 = 5"),
        ("\\boxed{\\frac12}", "1/2"),
        ("\\boxed{2\\frac{3}{4}}", "2 3/4"),
        ("\\boxed{1\\frac12}", "1 1/2"),
        ("\\boxed{\\frac{-1}{2}}", "-1/2"),
        ("\\boxed{\\frac{1,000}{2}}", "1,000/2"),
        ("Answer: Natalia sold 24 clips in May.\nAltogether she sold 48+24 = 72.\n#### 72", "72"),
        ("The answer is: She sells 9 eggs.\nSo she makes 18.\n#### 18", "18"),
        ("#### Total eggs\n16 eggs a day - 7 = 9\n#### 9", "9"),
        ("The answer is the sum of 12 and 3, which is 15.", "15"),
        ("The answer is 3 + 4 = 7, and 7 * 2 = 14.", "14"),
        ("The answer is 3 + 4 = 7. She has 5 more.", "3 + 4 = 7"),
        # headings
        ("### Final Answer\n18 eggs. She had 5 more.", "18"),
        ("#### Step 1: add\n5 + 6 = 11\n#### Step 2: double\n22\nThe answer is 22", "22"),
        ("### Step 6: Summarize the final answer\nOf 124 there are 56.\nThe final answer is 56.", "56"),
        # words that are not a statement
        ("Is the answer rounded if it is no multiple of 5? The answer is 13", "13"),
        ("The answer is rounded if it has 5 places. The answer is 13", "13"),
        ("The answer is found in Step 4. The final answer is: 16", "16"),
        ("The closest answer is option 5, 250.", "250"),
        # a new question, and the question that the response restates
        ("She makes 18.\n\n**Question 2**: 7 cats", "18"),
        ("\n\nQuestion: Tom has 5.\nThe answer is 18", "18"),
        ("(1 hour = 1 class)\n# Problem 2\nThe answer is 18", "18"),
    ],
)
def test_first_final_hand_worked_cases(text: str, found: str | None) -> None:
    assert first_final_answer(text) == found


def test_number_at_the_end_of_a_truncated_response_is_ignored() -> None:
    assert first_final_answer("5 pens. The answer is 1") == "1"
    assert first_final_answer("5 pens. The answer is 1", truncated=True) == "5"
    assert first_final_answer("The answer is 18.", truncated=True) == "18"
    assert stated_answer("The answer is 1", truncated=True) is None
    assert first_final_answer("The answer is 18\nQuestion: 4", truncated=True) == "18"  # the response was truncated later


@given(st.text(",.0123456789} ", max_size=30))
def test_published_box_rule_matches_the_papers_expression(text: str) -> None:
    """The linear-time expression finds what the expression in the paper's notebook finds."""
    theirs = re.findall(r"oxed{ *([,\d]+\.?[,\d]*) *}", "oxed{" + text)
    if theirs and re.fullmatch(r"\d+\.?\d*", theirs[0]):
        assert published_answer("oxed{" + text) == theirs[0]
    elif not theirs:
        assert _published("oxed{" + text)[1] != "boxed"


@given(st.text("0123456789.,$- #\nab", max_size=80))
def test_harness_rules_match_its_task_file(text: str) -> None:
    """lm-evaluation-harness, tasks/gsm8k/gsm8k.yaml: the regular expressions, first match (strict) and last (flexible), groups joined."""
    found = re.findall(r"#### (\-?[0-9\.\,]+)", text)
    assert strict_match(text) == (found[0].strip() if found else None)
    every = re.findall(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", text)
    assert flexible_extract(text) == (next(m for m in every[-1] if m) if every else None)


def test_locate_answer_prefers_the_place_after_a_final_marker() -> None:
    text = "18 pens and 2. The answer is 18. So 18."
    assert locate_answer(text, "18") == (29, 31)
    assert locate_answer("4 and 5 and 4", "4") == (12, 13)
    assert locate_answer("4", "7") is None


# --- the published study --------------------------------------------------------------------------------------------


def test_published_rules_hand_worked_cases() -> None:
    assert published_answer("12 or 13\nso \\boxed{1,400} and \\boxed{3}") == "1400"
    assert published_answer("It is 12 yes 12\nthen 5") == "12"
    assert published_answer("It is 12, yes 12\nthen 5") == "5"  # the comma counts as a digit, so "12," and "12" are different numbers
    assert published_answer("a 1 b 2\nthe final answer is 7 of 9") == "7"
    assert published_answer("a 1 b 2\nc 3") == "3"
    assert published_answer("no number") is None
    assert published_answer("only ,") is None


def test_published_code_can_read_an_earlier_response() -> None:
    """After "the answer is", its code reads a variable that the last response to reach the last rule has set."""
    texts = ["a 1 b 2\nc 3", "a 4 b 5\nthe answer is 7"]
    assert [published_answer(t) for t in texts] == ["3", "7"]
    assert published_code_answers(texts) == ["3", "1"]


# fmt: off
BY_HAND = {
    "ai-KD": {
        "a comma alone": [
            2, 12, 25, 26, 64, 65, 70, 78, 85, 86, 93, 107, 125, 128, 141, 143, 153, 165, 172, 174, 184, 198, 206, 230, 244, 263, 269,
            291, 292, 298, 314, 318, 321, 326, 327, 332, 357, 359, 369, 413, 414, 415, 417, 424, 445, 448, 455, 483, 498, 524, 529, 532,
            537, 547, 552, 576, 583, 593, 594, 599, 607, 675, 690, 698, 707, 717, 721, 727, 835, 840, 844, 857, 858, 866, 876, 891, 911,
            918, 920, 928, 953, 960, 964, 984, 1001, 1002, 1022, 1036, 1048, 1052, 1062, 1068, 1075, 1077, 1079, 1082, 1086, 1092, 1097,
            1112, 1118, 1126, 1131, 1133, 1138, 1147, 1157, 1170, 1180, 1183, 1196, 1207, 1217, 1236, 1253, 1256, 1282, 1303, 1306,
        ],
        "no number": [493, 666, 916],
        "nothing left by an earlier response": [268, 741, 1037],
    },
    "base-KD": {
        "a comma alone": [
            8, 16, 21, 28, 44, 65, 82, 97, 98, 102, 122, 129, 144, 174, 183, 184, 192, 193, 204, 209, 221, 223, 229, 237, 257, 273, 275,
            276, 283, 311, 330, 363, 386, 388, 390, 399, 405, 413, 452, 475, 477, 488, 494, 504, 506, 514, 537, 540, 547, 559, 567, 569,
            586, 597, 619, 657, 666, 668, 674, 681, 700, 725, 742, 746, 750, 752, 759, 765, 769, 780, 796, 840, 841, 844, 847, 865, 868,
            876, 880, 883, 886, 898, 904, 909, 933, 934, 938, 940, 951, 965, 968, 971, 980, 998, 1010, 1011, 1026, 1028, 1031, 1047, 1049,
            1057, 1073, 1077, 1087, 1091, 1092, 1097, 1110, 1112, 1119, 1128, 1133, 1145, 1166, 1169, 1171, 1182, 1183, 1186, 1205, 1209,
            1234, 1258, 1262, 1263, 1264, 1279, 1285, 1289,
        ],
        "no number": [220, 729, 993, 994, 1012],
        "nothing left by an earlier response": [714, 1046, 1173],
    },
}
"""Rows that the paper graded by hand, by what its rules found; Python's float reads none of these."""
STALE = {"ai-KD": [268, 289, 379, 385, 478, 490, 499, 606, 652, 697, 741, 881, 914, 981, 983, 1037, 1072, 1141],
 "base-KD": [70, 233, 234, 282, 302, 318, 342, 556, 563, 587, 595, 628, 634, 655, 776, 833, 869, 879, 989, 1023, 1033, 1108, 1125, 1135,
             1144]}
# fmt: on
"""Rows with "the answer is" where the paper's code read the number of an earlier response instead of the one that its rules give."""


@pytest.mark.skipif(DATA is None, reason="PRIMED_HEADS_DATA is not set; it names the folder with published/responses")
@pytest.mark.parametrize("name", ["ai-KD", "base-KD"])
def test_published_rules_reproduce_the_published_extraction(name: str) -> None:
    """Compare every row that was not graded by hand; the rows graded by hand are exactly the listed ones."""
    import pandas as pd

    table = pd.read_csv(Path(DATA or "") / "published" / "responses" / f"{name}.csv")
    texts = ["" if isinstance(text, float) else text for text in table["model_answer"]]
    logged = pd.to_numeric(table["model_ex1"], errors="coerce").tolist()
    found = published_code_answers(texts)
    assert len(found) == 1319
    assert [row for row, number in enumerate(found) if number is None] == sorted(row for rows in BY_HAND[name].values() for row in rows)
    assert [(i, f, e) for i, (f, e) in enumerate(zip(found, logged, strict=True)) if f is not None and float(f) != e] == []
    for row in BY_HAND[name]["no number"]:
        assert not re.search(r"\d", texts[row])
    alone = [published_answer(text) for text in texts]
    assert [i for i, (f, e) in enumerate(zip(alone, logged, strict=True)) if f is not None and float(f) != e] == STALE[name]
    for row in STALE[name]:
        assert re.search(r"the ?(final|correct)* ?answer ?is", texts[row])
