r"""Split a response into steps, and check every calculation in it with exact arithmetic.

Two forms are read: calculator marks (`<<48/2=24>>`), and plain calculations whose left side holds only numbers and operators, such as
"48 / 2 = 24", "$5 x 3 = $15", "2 + 3 + 4 = 9" or "3 \times 4 = 12". A calculation with words, units or unknowns ("3 apples * 4 = 12",
"2x + 3 = 7") is ignored, because it is not certain what was calculated.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from distill.problems.expressions import (
    LONGEST_SIDE,
    ExpressionToken,
    Side,
    WrittenNumber,
    compute,
    evaluate_expression,
    read_tokens,
    to_postfix,
)

_MOST_DECIMALS = 12
"""Largest number of decimals of a value as text; a value that needs more is written as a fraction."""


@dataclass(frozen=True)
class Calculation:
    """One calculation in a response.

    Attributes:
        start: index of its first character in the response.
        stop: index after its last character, including the result.
        written: the calculation as written: "48/2".
        result: the result as written: "24".
        value: the exact value of the calculation; None if it has no value (a division by zero), is too large or cannot be read.
        right: whether the result equals the value, or the value rounded to as many decimals as the result has. A half may be rounded away
            from zero or to the even digit, but nothing is rounded to zero: 1/3 = 0 is wrong. An integer value must be matched exactly.
            "20 %" and "20 cents" may mean 20 or 0.2. None without a value or without a result that can be read.
    """

    start: int
    stop: int
    written: str
    result: str
    value: Fraction | None
    right: bool | None

    @property
    def exact(self) -> str | None:
        """The value as text, such as "24", "2.5" or "1/3"; None without a value."""
        return None if self.value is None else _as_text(self.value)


@dataclass(frozen=True)
class ResponseStep:
    """One step of a response, without the blanks around it.

    Attributes:
        start: index of its first character in the response.
        stop: index after its last character.
        text: its text.
        calculations: its calculations, in order.
    """

    start: int
    stop: int
    text: str
    calculations: tuple[Calculation, ...]


def split_steps(text: str, *, truncated: bool = False) -> list[ResponseStep]:
    """Split a response into steps, and check the calculations in them. Time is linear in the length of the text.

    Each line that is not blank is a step. A response with a single such line is split into sentences, which end in ".", "!" or "?" before
    blanks and a capital letter. Every character that is not blank is in exactly one step.

    In a chain, each calculation is checked against the next plain number: 2*3+4 = 6+4 = 10 holds two right calculations. In the run-on
    style 3+4 = 7+2 = 9, the first number of the next side is the result if the value equals it and not the side. A calculation that is
    followed by its calculator mark ("48/2 = <<48/2=24>>24") counts once.

    Args:
        text: a response.
        truncated: the response was truncated, so a result at its very end may lack digits and is left out.
    """
    end = len(text.rstrip().rstrip(".,")) if truncated else len(text) + 1
    return [ResponseStep(a, b, text[a:b], tuple(each for each in _calculations(text, a, b) if each.stop < end)) for a, b in _places(text)]


# --- steps ------------------------------------------------------------------------------------------------------------

_LINE = re.compile(r"[^\n\r]+")


_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\bMr\.)(?<!\bMs\.)(?<!\bDr\.)(?<!\bSt\.)(?<!\bMrs\.)[^\S\n\r]+(?=[A-Z])")


def _places(text: str) -> list[tuple[int, int]]:
    lines = [place for line in _LINE.finditer(text) if (place := _stripped(text, *line.span()))]
    if len(lines) != 1:
        return lines
    ((start, stop),) = lines
    cuts = [(found.start(), found.end()) for found in _SENTENCE_END.finditer(text, start, stop)]
    begins, ends = [start, *(after for _, after in cuts)], [*(before for before, _ in cuts), stop]
    return [place for begin, end in zip(begins, ends, strict=True) if (place := _stripped(text, begin, end))]


def _stripped(text: str, start: int, stop: int) -> tuple[int, int] | None:
    part = text[start:stop]
    start += len(part) - len(part.lstrip())
    stop = start + len(part.strip())
    return (start, stop) if stop > start else None


# --- checking results -------------------------------------------------------------------------------------------------

_MARK = re.compile(r"<<([^<>\n\r]*)>>")


_LABEL = re.compile(
    r"(?:[-*•+–#]+[ \t]+)*(?:(?:step|part|case|day|option|question|problem|q)\s{0,2}\d{1,4}\s{0,2}[-–—:.)])?", re.IGNORECASE
)
"""What may precede the first calculation of a step: "- ", "* ", "Step 1 - "."""


def _is_right(exact: Fraction | None, given: WrittenNumber | None) -> bool | None:
    if exact is None or given is None:
        return None
    readings = [(given.number, given.decimals)]
    if given.hundredths:
        readings.append((given.number / 100, None if given.decimals is None else given.decimals + 2))
    return any(_rounds_to(exact, number, decimals) for number, decimals in readings)


def _rounds_to(exact: Fraction, number: Fraction, decimals: int | None) -> bool:
    if decimals is None or exact == number:
        return exact == number
    off = 2 * abs(exact - number) * 10**decimals
    in_the_middle = abs(number) > abs(exact) or number * 10**decimals % 2 == 0  # half away from zero, or half to even
    return number != 0 and (off < 1 or (off == 1 and in_the_middle))


def _as_text(exact: Fraction) -> str:
    rest, twos, fives = exact.denominator, 0, 0
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    decimals = max(twos, fives)
    if rest > 1 or not 0 < decimals <= _MOST_DECIMALS:
        return str(exact)
    digits = str(abs(exact.numerator) * 10**decimals // exact.denominator).zfill(decimals + 1)
    return f"{'-' * (exact < 0)}{digits[:-decimals]}.{digits[-decimals:]}"


# --- calculations -----------------------------------------------------------------------------------------------------


def _calculations(text: str, start: int, stop: int) -> list[Calculation]:
    """Return the calculator marks and plain calculations of one step, in order."""
    found = [mark for mark in _MARK.finditer(text, start, stop) if mark[1].partition("=")[0].strip() and "=" in mark[1]]
    marks = [_of_mark(mark) for mark in found]
    label = _LABEL.match(text, start, stop)
    gaps = zip([label.end() if label else start, *(m.stop for m in marks)], [*(m.start for m in marks), stop], strict=True)
    # marks are skipped: "48/2 = <<48/2=24>>24" is read as "48/2 = 24"
    tokens = (token for a, b in gaps for token in read_tokens(text, a, b) if token.kind != "blank")
    starts = [mark.start for mark in marks]
    plain = [each for chain in _chains(text, tokens) for each in _of_chain(text, chain) if not _repeats(text, each, marks, starts)]
    return sorted([*marks, *plain], key=lambda each: each.start)


def _of_mark(found: re.Match[str]) -> Calculation:
    written, _, rest = found[1].partition("=")
    result = rest.rpartition("=")[2].strip()
    exact = evaluate_expression(written)
    given = Side.of(result, 0, len(result)).given()
    return Calculation(found.start(), found.end(), written.strip(), result, exact, _is_right(exact, given))


def _repeats(text: str, plain: Calculation, marks: Sequence[Calculation], starts: Sequence[int]) -> bool:
    """Return whether a mark inside a plain calculation, or right next to it, holds the same calculation."""
    for mark in marks[max(0, bisect_left(starts, plain.start) - 1) : bisect_left(starts, plain.stop) + 1]:
        a, b = (mark.stop, plain.start) if mark.start < plain.start else (plain.stop, mark.start)
        adjacent = b - a <= LONGEST_SIDE and not text[a:b].strip(" \t$=")
        if adjacent and (mark.value, mark.right) == (plain.value, plain.right):
            return True
    return False


def _chains(text: str, tokens: Iterable[ExpressionToken]) -> Iterator[list[Side]]:
    """Yield chains: lists of sides that equals signs join, in order."""
    chain: list[Side] = []
    side: list[ExpressionToken] = []
    opened: list[int] = []
    after_number = False  # a bracket right after a number may multiply it
    for token in (*tokens, ExpressionToken("break", 0, 0)):
        before = side[-1] if side else None
        follows = before is not None and before.kind in ("number", ")")
        ends = token.kind == "break" or (token.kind == ")" and not opened) or (token.kind == "(" and follows)
        if token.kind == "number" and follows and before is not None:
            if before.kind == ")" or _may_be_one(text, before, token):
                token = replace(token, kind="bad")
            else:
                ends = True
        if ends or token.kind == "=":
            chain.append(_side(text, side, opened, first=not chain, after_number=after_number))
            side, opened, after_number = [], [], False
        if ends:
            yield chain
            chain, after_number = [], token.kind == "("
        if token.kind == "(":
            opened.append(len(side))
        elif token.kind == ")" and opened:
            opened.pop()
        if token.kind not in ("break", "=") and not (ends and token.kind == ")"):
            side.append(token)


def _may_be_one(text: str, before: ExpressionToken, token: ExpressionToken) -> bool:
    r"""Return whether two consecutive numbers may be one: "1 250", or 2 and its \frac{1}{2}."""
    thousands = token.decimals == 0 and token.stop - token.start == 3 and text[before.stop : token.start] == " "
    return thousands or text[token.start : token.start + 2] in ("\\f", "\\d", "\\t")


def _side(text: str, tokens: list[ExpressionToken], opened: list[int], *, first: bool, after_number: bool) -> Side:
    """Return a side without the brackets that are opened in it and closed after it, as in "(3 * 4 = 12)"."""
    n_open = len(opened)
    refused = opened != list(range(n_open))
    tokens = tokens[n_open:]
    if tokens and first:
        refused |= after_number and n_open == 0 and tokens[0].kind == "("
        before = text[max(0, tokens[0].start - 4) : tokens[0].start].rstrip()[-1:]
        refused |= tokens[0].sign == "-" and (before.isalnum() or before in tuple(")]}%_/*"))  # "x - 3 + 5": the sign is a minus
    return Side(tuple(tokens), None if refused else to_postfix(tokens))


def _of_chain(text: str, chain: Sequence[Side]) -> Iterator[Calculation]:
    """Yield each side of a chain that calculates something, with the result that belongs to it."""
    n = len(chain)
    if n < 2:
        return
    given = [side.given(last=at == n - 1) for at, side in enumerate(chain)]
    values = [compute(side.postfix) if side.postfix is not None else None for side in chain]
    following: WrittenNumber | None = None
    results: list[WrittenNumber | None] = [None] * n
    for at in range(n - 1, 0, -1):  # the next plain number, with only calculations in between
        following = given[at] or (following if chain[at].calculates else None)
        results[at - 1] = following
    for at, (side, exact, result) in enumerate(zip(chain, values, results, strict=True)):
        if not side.calculates or result is None:
            continue
        if given[at + 1] is None and exact is not None and values[at + 1] != exact:
            run_on = chain[at + 1].first()
            result = run_on if _is_right(exact, run_on) else result
        start, stop = side.tokens[0].start, side.tokens[-1].stop
        if result is not None and result.stop - start <= 2 * LONGEST_SIDE:
            yield Calculation(start, result.stop, text[start:stop], text[result.start : result.stop], exact, _is_right(exact, result))
