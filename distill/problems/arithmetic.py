r"""A response step by step, and every calculation in it checked by exact arithmetic.

Read are calculator marks (`<<48/2=24>>`) and plain calculations whose left side is numbers and signs alone: "48 / 2 = 24", "$5 x 3 = $15",
"2 + 3 + 4 = 9", "3 \times 4 = 12". A calculation with words, units or unknowns in it ("3 apples * 4 = 12", "2x + 3 = 7") is left alone:
where it is not sure what was calculated, nothing is said of it. Nothing of a text is ever executed.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from distill.problems.grading import NUMBER

LONGEST = 200
"""Characters of one side of a calculation, and twice as many from its beginning to its result: people write no longer ones."""


LONGEST_NUMBER = 60
"""Characters of a number."""


LARGEST_EXPONENT = 64


MOST_BITS = 4096
"""Of a numerator or denominator: "9**9**9" has no value here, rather than a value in a minute."""


MOST_DECIMALS = 12
"""Of a value as text; a longer one is written as a fraction."""


@dataclass(frozen=True)
class Sum:
    """One calculation as it stands in a response.

    Attributes:
        start: first character in the response.
        stop: one past the last, result included.
        written: what is calculated, as written: "48/2".
        result: as written: "24".
        value: the exact value of what is calculated; None where it has none (a division by zero), is too large or cannot be read.
        right: the result is the value, or the value rounded to as many decimals as the result has (from the middle away from zero or to
            the even digit; but never rounded to nothing: 1/3 = 0 is wrong). An integer value therefore needs its own equal. "20 %" and
            "20 cents" may stand for 20 or for 0.2. None without a value or without a result that can be read.
    """

    start: int
    stop: int
    written: str
    result: str
    value: Fraction | None
    right: bool | None

    @property
    def exact(self) -> str | None:
        """The value as text: "24", "2.5", "1/3"."""
        return None if self.value is None else _as_text(self.value)


@dataclass(frozen=True)
class Step:
    """A line of a response, blanks around it left out.

    Attributes:
        start: first character in the response.
        stop: one past the last.
        text: what stands there.
        sums: its calculations, in order.
    """

    start: int
    stop: int
    text: str
    sums: tuple[Sum, ...]


def steps(text: str, *, cut: bool = False) -> list[Step]:
    """Cut a response into steps, and check their sums.

    A step is a line that is not blank; a response of a single such line is cut into its sentences, which end in ".", "!" or "?" before
    blanks and a capital letter. Every character that is not blank is in exactly one step. Time grows with the text's length.

    In a chain each calculation is checked against the next plain number: 2*3+4 = 6+4 = 10 has two right sums. In the run-on style
    3+4 = 7+2 = 9, where the value is not that of the next side but of its first number, that number is the result. Where a line gives a
    calculation and its calculator mark ("48/2 = <<48/2=24>>24"), it counts once.

    Args:
        text: a response.
        cut: it was cut at a limit, so that a result at its very end may lack digits and is left out.
    """
    end = len(text.rstrip().rstrip(".,")) if cut else len(text) + 1
    return [Step(a, b, text[a:b], tuple(each for each in _sums(text, a, b) if each.stop < end)) for a, b in _places(text)]


def value(expression: str) -> Fraction | None:
    r"""The exact value of a calculation as people write it; None where it has none, is too large, or is more than numbers and signs.

    Known are + and -, * x × · \times and / ÷ \div, a sign, ^ and ** (from the right, above a sign), brackets, \frac{1}{2} and 1 1/2.
    """
    side = _Side.of(expression, 0, len(expression))
    return None if side.postfix is None else _computed(side.postfix)


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


# --- what stands in a step --------------------------------------------------------------------------------------------

_MARK = re.compile(r"<<([^<>\n\r]*)>>")


_LABEL = re.compile(
    r"(?:[-*•+–#]+[ \t]+)*(?:(?:step|part|case|day|option|question|problem|q)\s{0,2}\d{1,4}\s{0,2}[-–—:.)])?", re.IGNORECASE
)
"""What may stand before a step's first calculation: "- ", "* ", "Step 1 - "."""


_MONEY = r"(?:\\?\$|€|£)"


_DIGITS = rf"\d{{1,3}}(?:(?:,|\{{,\}}|\\,|[\u00a0\u2009\u202f])\d{{3}})+(?:\.\d+)?|{NUMBER}"


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
"""What makes another number of one that it follows: "3x", "5k", "1.2.3", "3,4", "2½"."""


_TOUCHED = re.compile(r"(?:\w|\d[,.:'\u2019])\Z")
"""And of one that follows it: "H2", "3,4". \\Z is the end of what is searched."""


_APART = re.compile(r"\d,[ ]\d{3}(?!\d)")
"""Thousands that may belong to one number: "14, 400"."""


@dataclass(frozen=True)
class _Token:
    r"""A piece of a step.

    Attributes:
        kind: number, sign, ( ) = blank, bad (its side of a calculation cannot be read) or break (no calculation goes across it).
        start: first character.
        stop: one past the last.
        sign: + - * / ^, of a sign.
        number: value of a number; None of a fraction over 0.
        decimals: its digits after the point; None of a fraction, which is exact.
        hundredths: "%" or "cents" follow it.
        divides: it is a calculation by itself, \frac{6}{2}.
    """

    kind: str
    start: int
    stop: int
    sign: str = ""
    number: Fraction | None = None
    decimals: int | None = None
    hundredths: bool = False
    divides: bool = False


def _tokens(text: str, start: int, stop: int) -> Iterator[_Token]:
    before, at = "break", start
    while at < stop:
        found = _TOKEN.match(text, at, stop)
        assert found  # its last alternative is any character
        token = _Token("break", at, found.end())
        if found.end() - at > LONGEST_NUMBER and (found["fraction"] or found["number"]):
            token = _Token("bad", at, found.end())
        elif found["fraction"] or found["number"]:
            token = _number(found)
            touched = _TOUCHES.match(text, token.stop, stop) or (before != "sign" and _TOUCHED.search(text, max(start, at - 2), at))
            apart = _APART.match(text, max(start, at - 3), stop) or _APART.match(text, token.stop - 1, stop)
            if touched or apart:
                token = _Token("bad", at, token.stop)
        elif found["and"]:  # "5 and 2/3", but "7 and 6/2 = 3"
            proper = before == "number" and int(found["part"]) < int(found["parts"])
            token = _Token("bad" if proper else "break", at, found.end())
        elif found["word"] in ("x", "X") and before in ("number", ")"):  # it may still be a sign
            token = _Token("bad", at, found.end())
        elif found.lastgroup in _SIGNS:
            token = _Token("sign", at, found.end(), _SIGNS[found.lastgroup])
        elif found.lastgroup in _KINDS:
            token = _Token(_KINDS[found.lastgroup], at, found.end())
        before = before if token.kind == "blank" and before == "number" else token.kind
        at = token.stop
        yield token


def _number(found: re.Match[str]) -> _Token:
    start, stop = found.span()
    if found["digits"]:
        if re.match(r"0\d", found["digits"]):  # a time, a code
            return _Token("bad", start, stop)
        return _Token("number", start, stop, "", _plain(found["digits"]), len(found["digits"].partition(".")[2]), bool(found["hundredths"]))
    above, below = (_plain(part) for part in ((found["top"], found["bottom"]) if found["top"] else (found["above"], found["below"])))
    if found["whole"] and (above >= below or found.string[start - 1 : start] == "/"):  # "50 50/5" and "1/5 1/5" are no mixed numbers
        return _Token("number", start, found.end("whole"), "", _plain(found["whole"]), 0)
    value = _plain(found["whole"] or "0") + above / below if below else None
    return _Token("number", start, stop, "", value, None, bool(found["hundredths"]), not found["whole"])


def _plain(digits: str) -> Fraction:
    return Fraction(re.sub(r"[^\d.]", "", digits))


# --- sides of a calculation -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Given:
    """A result as it stands there: decimals None where it is a fraction, and exact."""

    number: Fraction
    decimals: int | None
    hundredths: bool
    start: int
    stop: int


@dataclass(frozen=True)
class _Side:
    """What stands between two signs of equality.

    Attributes:
        tokens: without blanks.
        postfix: numbers and signs in the order of computing; None where it cannot be read.
    """

    tokens: tuple[_Token, ...]
    postfix: tuple[Fraction | str | None, ...] | None

    @classmethod
    def of(cls, text: str, start: int, stop: int) -> _Side:
        """The side that a text is."""
        tokens = [token for token in _tokens(text, start, stop) if token.kind != "blank"]
        return cls(tuple(tokens), _postfix(tokens, plus=True))

    @property
    def calculates(self) -> bool:
        """It can be read, and is more than a number."""
        return self.postfix is not None and any(token.sign or token.divides for token in self.tokens[self.tokens[0].sign == "-" :])

    def given(self, *, last: bool = True) -> _Given | None:
        """The number that the side is; at a chain's end it may be a fraction of two integers."""
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
        return _Given(-number if sign else number, decimals, rest[0].hundredths, self.tokens[0].start, rest[-1].stop)

    def first(self) -> _Given | None:
        """The number that the side begins with."""
        n = 2 if self.tokens[0].sign else 1
        return _Side(self.tokens[:n], None).given(last=False)


_PRIORITY = {"+": 1, "-": 1, "*": 2, "/": 2, "sign": 3, "^": 4}


def _postfix(tokens: Sequence[_Token], *, plus: bool = False) -> tuple[Fraction | str | None, ...] | None:
    """The shunting-yard algorithm (Dijkstra 1961), which needs no recursion however deep brackets are.

    Args:
        tokens: of a side, without blanks.
        plus: a + may stand before a number; in running text it follows something that was not read.
    """
    if not tokens or tokens[-1].stop - tokens[0].start > LONGEST or _is_ambiguous(tokens):
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
        elif token.sign == "-" and expected and following is not None and following.start == token.stop:  # "apples - 3" has no sign
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


def _is_ambiguous(tokens: Sequence[_Token]) -> bool:
    """Blanks may stand for brackets: "60 / 3/4" is 5 or 80."""
    for one, number, other, last in zip(tokens, tokens[1:], tokens[2:], tokens[3:], strict=False):
        glued = number.stop == other.start and other.stop == last.start
        if one.sign == other.sign == "/" and glued and number.start > one.stop:
            return True
    return False


def _computed(postfix: Sequence[Fraction | str | None]) -> Fraction | None:
    """None where a number is divided by 0 or grows too large."""
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
        if found is None or max(found.numerator.bit_length(), found.denominator.bit_length()) > MOST_BITS:
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
    if right.denominator != 1 or abs(right) > LARGEST_EXPONENT or (left == 0 and right < 0):
        return None  # a root, or too large
    return left ** int(right)


def _is_right(exact: Fraction | None, given: _Given | None) -> bool | None:
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
    if rest > 1 or not 0 < decimals <= MOST_DECIMALS:
        return str(exact)
    digits = str(abs(exact.numerator) * 10**decimals // exact.denominator).zfill(decimals + 1)
    return f"{'-' * (exact < 0)}{digits[:-decimals]}.{digits[-decimals:]}"


# --- calculations -----------------------------------------------------------------------------------------------------


def _sums(text: str, start: int, stop: int) -> list[Sum]:
    """Calculator marks and plain calculations of one step, in order."""
    found = [mark for mark in _MARK.finditer(text, start, stop) if mark[1].partition("=")[0].strip() and "=" in mark[1]]
    marks = [_of_mark(mark) for mark in found]
    label = _LABEL.match(text, start, stop)
    gaps = zip([label.end() if label else start, *(m.stop for m in marks)], [*(m.start for m in marks), stop], strict=True)
    # marks are passed over: "48/2 = <<48/2=24>>24" is read as "48/2 = 24"
    tokens = (token for a, b in gaps for token in _tokens(text, a, b) if token.kind != "blank")
    starts = [mark.start for mark in marks]
    plain = [each for chain in _chains(text, tokens) for each in _of_chain(text, chain) if not _repeats(text, each, marks, starts)]
    return sorted([*marks, *plain], key=lambda each: each.start)


def _of_mark(found: re.Match[str]) -> Sum:
    written, _, rest = found[1].partition("=")
    result = rest.rpartition("=")[2].strip()
    exact = value(written)
    given = _Side.of(result, 0, len(result)).given()
    return Sum(found.start(), found.end(), written.strip(), result, exact, _is_right(exact, given))


def _repeats(text: str, plain: Sum, marks: Sequence[Sum], starts: Sequence[int]) -> bool:
    """A mark inside the calculation, or right beside it, says the same."""
    for mark in marks[max(0, bisect_left(starts, plain.start) - 1) : bisect_left(starts, plain.stop) + 1]:
        a, b = (mark.stop, plain.start) if mark.start < plain.start else (plain.stop, mark.start)
        beside = b - a <= LONGEST and not text[a:b].strip(" \t$=")
        if beside and (mark.value, mark.right) == (plain.value, plain.right):
            return True
    return False


def _chains(text: str, tokens: Iterable[_Token]) -> Iterator[list[_Side]]:
    """Sides that signs of equality join, in order."""
    chain: list[_Side] = []
    side: list[_Token] = []
    opened: list[int] = []
    after_number = False  # a bracket right after a number may multiply it
    for token in (*tokens, _Token("break", 0, 0)):
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


def _may_be_one(text: str, before: _Token, token: _Token) -> bool:
    r"""Two numbers one after the other that may be one: "1 250", or 2 and its \frac{1}{2}."""
    thousands = token.decimals == 0 and token.stop - token.start == 3 and text[before.stop : token.start] == " "
    return thousands or text[token.start : token.start + 2] in ("\\f", "\\d", "\\t")


def _side(text: str, tokens: list[_Token], opened: list[int], *, first: bool, after_number: bool) -> _Side:
    """A side without the brackets that open before it and close after it, as in "(3 * 4 = 12)"."""
    n_open = len(opened)
    refused = opened != list(range(n_open))
    tokens = tokens[n_open:]
    if tokens and first:
        refused |= after_number and n_open == 0 and tokens[0].kind == "("
        before = text[max(0, tokens[0].start - 4) : tokens[0].start].rstrip()[-1:]
        refused |= tokens[0].sign == "-" and (before.isalnum() or before in tuple(")]}%_/*"))  # "x - 3 + 5": the sign is a minus
    return _Side(tuple(tokens), None if refused else _postfix(tokens))


def _of_chain(text: str, chain: Sequence[_Side]) -> Iterator[Sum]:
    """Each side that calculates something, with the result that belongs to it."""
    n = len(chain)
    if n < 2:
        return
    given = [side.given(last=at == n - 1) for at, side in enumerate(chain)]
    values = [_computed(side.postfix) if side.postfix is not None else None for side in chain]
    following: _Given | None = None
    results: list[_Given | None] = [None] * n
    for at in range(n - 1, 0, -1):  # the next plain number, across calculations alone
        following = given[at] or (following if chain[at].calculates else None)
        results[at - 1] = following
    for at, (side, exact, result) in enumerate(zip(chain, values, results, strict=True)):
        if not side.calculates or result is None:
            continue
        if given[at + 1] is None and exact is not None and values[at + 1] != exact:
            run_on = chain[at + 1].first()
            result = run_on if _is_right(exact, run_on) else result
        start, stop = side.tokens[0].start, side.tokens[-1].stop
        if result is not None and result.stop - start <= 2 * LONGEST:
            yield Sum(start, result.stop, text[start:stop], text[result.start : result.stop], exact, _is_right(exact, result))
