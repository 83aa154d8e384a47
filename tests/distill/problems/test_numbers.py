from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given

from distill.problems.numbers import parse_number
from tests.distill.problems.cases import INTEGERS, STYLES, written


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
        ("1e3", 1000),
        ("2^3 = 8", 8),
        ("3 \\times 6 = 18", 18),
        ("1/2 of 10 = 5", 5),
        ("50% of 10 = 5", 5),
        ("1/2 of 10", None),
        ("1/2 of the cake", Fraction(1, 2)),
        ("1 800", 1),  # a plain space does not separate thousands
        ("10-5", None),
        ("2^3", None),
        ("3 \\times 6", None),
        ("2 + 3", None),
        ("4 x 3", None),
        ("0/0", None),
        ("3/0", None),
        ("", None),
        ("none", None),
    ],
)
def test_parse_number(text: str, number: object) -> None:
    assert parse_number(text) == number


@given(INTEGERS, STYLES)
def test_every_style_gives_the_same_number(number: int, style: str) -> None:
    assert parse_number(written(number, style)) == number
