r"""Parse calculations as people write them, and evaluate them exactly.

A calculation consists of numbers, operators and brackets only. Text is never executed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from distill.problems.numbers import NUMBER_PATTERN

LONGEST_SIDE = 200
"""Largest number of characters of one side of a calculation; from its start to its result there may be twice as many."""


_LONGEST_NUMBER = 60
"""Largest number of characters of a number."""

_LARGEST_EXPONENT = 64

_MOST_BITS = 4096
"""Largest size of a numerator or denominator. It makes "9**9**9" a calculation without a value instead of one that takes minutes."""


def evaluate_expression(expression: str) -> Fraction | None:
    r"""Return the exact value of a calculation, or None if it has no value, is too large, or holds more than numbers and operators.

    Supported are + and -, * x × · \times and / ÷ \div, a sign, ^ and ** (right-associative, before a sign), brackets, \frac{1}{2} and
    mixed numbers such as 1 1/2.
    """
    side = Side.of(expression, 0, len(expression))
    return None if side.postfix is None else compute(side.postfix)


# --- tokens --------------------------------------------------------------------------------------------------

_MONEY = r"(?:\\?\$|€|£)"


_DIGITS = rf"\d{{1,3}}(?:(?:,|\{{,\}}|\\,|[\u00a0\u2009\u202f])\d{{3}})+(?:\.\d+)?|{NUMBER_PATTERN}"


_OPENED = rf"(?:\([-−–]?){{0,9}}{_MONEY}?[\d.]"


_LETTER_TIMES = rf"(?:[xX](?=\s{{0,3}}{_MONEY}?{_OPENED})|(?<=\s)[xX](?=\s{{1,3}}[-−–]{_OPENED}))"


_TOKEN = re.compile(
    rf"""
    (?P<fraction>\\[dt]?frac\s?\{{\s?(?P<top>{_DIGITS})\s?\}}\s?\{{\s?(?P<bottom>{_DIGITS})\s?\}})
    |(?P<number>{_MONEY}?
        (?:(?P<whole>\d{{1,9}})[ ](?P<above>\d{{1,9}})/(?P<below>\d{{1,9}})(?![\d.])|(?P<digits>{_DIGITS}))
        (?P<hundredths>[ ]?(?:\\?%|¢)|[ ](?:percent|cents?)\b)?)
    |(?P<blank>(?:\s|&|{_MONEY}(?!\.?\d)|\\[ ,;:!]|\\(?:left|right|quad|qquad|displaystyle)(?![a-zA-Z])|\*\*(?![\d(])|(?<![\d)])\*\*)+)
    |(?P<power>\*\*|\^)
    |(?P<times>[*×·⋅∙]|\\(?:times|cdot)(?![a-zA-Z])|{_LETTER_TIMES})
    |(?P<over>[/÷]|\\div(?![a-zA-Z]))
    |(?P<plus>\+)
    |(?P<minus>[-−–])
    |(?P<equals>[=≈]|\\approx(?![a-zA-Z]))
    |(?P<open>\()
    |(?P<close>\))
    |(?P<scale>(?:hundred|thousand|million|billion|trillion|dozen|(?:with\ a\ )?remainder|R(?=\s?\d))\b)
    |(?P<and>and(?=\s{{1,3}}\(?(?P<part>\d{{1,4}})/(?P<parts>\d{{1,4}})))
    |(?P<word>\\?[^\W\d]+|\\.)
    |(?P<other>[\s\S])
    """,
    re.VERBOSE,
)


_SIGNS = {"power": "^", "times": "*", "over": "/", "plus": "+", "minus": "-"}


_KINDS = {"blank": "blank", "equals": "=", "open": "(", "close": ")", "scale": "bad"}


_TOUCHES = re.compile(rf"(?!{_LETTER_TIMES})\w|[,.:'\u2019]\d")
"""What changes the meaning of a number right before it: "3x", "5k", "1.2.3", "3,4", "2½"."""


_TOUCHED = re.compile(r"(?:\w|\d[,.:'\u2019])\Z")
"""What changes the meaning of a number right after it: "H2", "3,4". \\Z is the end of the searched range."""


_APART = re.compile(r"\d,[ ]\d{3}(?!\d)")
"""Thousands that may belong to one number: "14, 400"."""


@dataclass(frozen=True)
class ExpressionToken:
    r"""A token of a text with calculations.

    Attributes:
        kind: number, sign, ( ) = blank, bad (its side of a calculation cannot be read) or break (no calculation extends across it).
        start: index of the first character.
        stop: index after the last character.
        sign: one of + - * / ^, for kind sign.
        number: the value, for kind number; None for a fraction with denominator 0.
        decimals: number of digits after the decimal point; None for a fraction, which is exact.
        hundredths: the number is followed by "%" or "cents".
        divides: the number is a calculation by itself: \frac{6}{2}.
    """

    kind: str
    start: int
    stop: int
    sign: str = ""
    number: Fraction | None = None
    decimals: int | None = None
    hundredths: bool = False
    divides: bool = False


def read_tokens(text: str, start: int, stop: int) -> Iterator[ExpressionToken]:
    """Yield the tokens of a part of a text, in order; together they cover it."""
    before, at = "break", start
    while at < stop:
        found = _TOKEN.match(text, at, stop)
        assert found  # the last alternative matches any character
        token = ExpressionToken("break", at, found.end())
        if found.end() - at > _LONGEST_NUMBER and (found["fraction"] or found["number"]):
            token = ExpressionToken("bad", at, found.end())
        elif found["fraction"] or found["number"]:
            token = _number(found)
            touched = _TOUCHES.match(text, token.stop, stop) or (before != "sign" and _TOUCHED.search(text, max(start, at - 2), at))
            apart = _APART.match(text, max(start, at - 3), stop) or _APART.match(text, token.stop - 1, stop)
            if touched or apart:
                token = ExpressionToken("bad", at, token.stop)
        elif found["and"]:  # "5 and 2/3", but "7 and 6/2 = 3"
            proper = before == "number" and int(found["part"]) < int(found["parts"])
            token = ExpressionToken("bad" if proper else "break", at, found.end())
        elif found["word"] in ("x", "X") and before in ("number", ")"):  # it may be a multiplication sign
            token = ExpressionToken("bad", at, found.end())
        elif found.lastgroup in _SIGNS:
            token = ExpressionToken("sign", at, found.end(), _SIGNS[found.lastgroup])
        elif found.lastgroup in _KINDS:
            token = ExpressionToken(_KINDS[found.lastgroup], at, found.end())
        before = before if token.kind == "blank" and before == "number" else token.kind
        at = token.stop
        yield token


def _number(found: re.Match[str]) -> ExpressionToken:
    start, stop = found.span()
    if found["digits"]:
        if re.match(r"0\d", found["digits"]):  # a time, a code
            return ExpressionToken("bad", start, stop)
        return ExpressionToken(
            "number", start, stop, "", _plain(found["digits"]), len(found["digits"].partition(".")[2]), bool(found["hundredths"])
        )
    above, below = (_plain(part) for part in ((found["top"], found["bottom"]) if found["top"] else (found["above"], found["below"])))
    if found["whole"] and (above >= below or found.string[start - 1 : start] == "/"):  # "50 50/5" and "1/5 1/5" are not mixed numbers
        return ExpressionToken("number", start, found.end("whole"), "", _plain(found["whole"]), 0)
    value = _plain(found["whole"] or "0") + above / below if below else None
    return ExpressionToken("number", start, stop, "", value, None, bool(found["hundredths"]), not found["whole"])


def _plain(digits: str) -> Fraction:
    return Fraction(re.sub(r"[^\d.]", "", digits))


# --- sides of a calculation -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WrittenNumber:
    """A result as written. `decimals` is None for a fraction, which is exact."""

    number: Fraction
    decimals: int | None
    hundredths: bool
    start: int
    stop: int


@dataclass(frozen=True)
class Side:
    """The part of a calculation between two equals signs.

    Attributes:
        tokens: its tokens without blanks.
        postfix: numbers and operators in postfix order; None if the side cannot be read.
    """

    tokens: tuple[ExpressionToken, ...]
    postfix: tuple[Fraction | str | None, ...] | None

    @classmethod
    def of(cls, text: str, start: int, stop: int) -> Side:
        """Parse a part of a text as one side."""
        tokens = [token for token in read_tokens(text, start, stop) if token.kind != "blank"]
        return cls(tuple(tokens), to_postfix(tokens, plus=True))

    @property
    def calculates(self) -> bool:
        """Whether the side can be read and is more than a single number."""
        return self.postfix is not None and any(token.sign or token.divides for token in self.tokens[self.tokens[0].sign == "-" :])

    def given(self, *, last: bool = True) -> WrittenNumber | None:
        """Return the number that the side consists of, or None; the last side of a chain may be a fraction of two integers."""
        sign = self.tokens[:1] if self.tokens and self.tokens[0].sign == "-" else ()
        rest = self.tokens[len(sign) :]
        kinds = [token.sign or token.kind for token in rest]
        if not (kinds == ["number"] or (last and kinds == ["number", "/", "number"])) or rest[0].number is None:
            return None
        number, decimals = rest[0].number, rest[0].decimals
        if len(rest) == 3:
            below = rest[2].number
            if not below or (rest[0].decimals, rest[2].decimals) != (0, 0) or rest[0].hundredths or rest[2].hundredths:
                return None
            number, decimals = number / below, None
        return WrittenNumber(-number if sign else number, decimals, rest[0].hundredths, self.tokens[0].start, rest[-1].stop)

    def first(self) -> WrittenNumber | None:
        """Return the number at the start of the side, or None."""
        n = 2 if self.tokens[0].sign else 1
        return Side(self.tokens[:n], None).given(last=False)


_PRIORITY = {"+": 1, "-": 1, "*": 2, "/": 2, "sign": 3, "^": 4}


def to_postfix(tokens: Sequence[ExpressionToken], *, plus: bool = False) -> tuple[Fraction | str | None, ...] | None:
    """Return a side in postfix order, or None if it cannot be read.

    This is the shunting-yard algorithm (Dijkstra 1961), which needs no recursion however deep the brackets are.

    Args:
        tokens: the tokens of a side, without blanks.
        plus: accept a + before a number. In running text, such a + follows something that was not read.
    """
    if not tokens or tokens[-1].stop - tokens[0].start > LONGEST_SIDE or _is_ambiguous(tokens):
        return None
    done: list[Fraction | str | None] = []
    waiting: list[str] = []
    expected = True  # a number comes next
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        if token.kind == "number" and expected and not token.hundredths:
            done.append(token.number)
            expected = False
        elif token.kind == "(" and expected:
            waiting.append("(")
        elif token.kind == ")" and not expected:
            while waiting and waiting[-1] != "(":
                done.append(waiting.pop())
            if not waiting:
                return None
            waiting.pop()
        elif (
            token.sign == "-" and expected and following is not None and following.start == token.stop
        ):  # in "apples - 3" the minus is not a sign
            waiting.append("sign")
        elif token.sign == "+" and expected and plus:
            continue
        elif token.sign and not expected:
            new = _PRIORITY[token.sign]
            while waiting and waiting[-1] != "(" and (_PRIORITY[waiting[-1]] > new or (_PRIORITY[waiting[-1]] == new and new < 4)):
                done.append(waiting.pop())
            waiting.append(token.sign)
            expected = True
        else:
            return None
    if expected or "(" in waiting:
        return None
    return (*done, *reversed(waiting))


def _is_ambiguous(tokens: Sequence[ExpressionToken]) -> bool:
    """Return whether blanks may replace brackets: "60 / 3/4" is 5 or 80."""
    for one, number, other, last in zip(tokens, tokens[1:], tokens[2:], tokens[3:], strict=False):
        glued = number.stop == other.start and other.stop == last.start
        if one.sign == other.sign == "/" and glued and number.start > one.stop:
            return True
    return False


def compute(postfix: Sequence[Fraction | str | None]) -> Fraction | None:
    """Return the value of a calculation in postfix order, or None after a division by 0 or if a number grows too large."""
    stack: list[Fraction] = []
    for item in postfix:
        if item is None:
            return None
        if isinstance(item, Fraction):
            stack.append(item)
            continue
        right = stack.pop()
        if item == "sign":
            stack.append(-right)
            continue
        found = _apply(item, stack.pop(), right)
        if found is None or max(found.numerator.bit_length(), found.denominator.bit_length()) > _MOST_BITS:
            return None
        stack.append(found)
    return stack.pop()


def _apply(sign: str, left: Fraction, right: Fraction) -> Fraction | None:
    if sign == "+":
        return left + right
    if sign == "-":
        return left - right
    if sign == "*":
        return left * right
    if sign == "/":
        return left / right if right else None
    if right.denominator != 1 or abs(right) > _LARGEST_EXPONENT or (left == 0 and right < 0):
        return None  # a root, or too large
    return left ** int(right)
