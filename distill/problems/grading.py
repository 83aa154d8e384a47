r"""From a response to a verdict: rules that find the answer in a text, side by side.

Graders differ more than students do, so every verdict is stored and every table says whose it shows. `first_final` is the default: it
takes the first complete final statement ("#### 18", "\boxed{18}", "the answer is 18"), and whatever a model writes after it, a
repetition, a second thought or a new question, does not count.
"""

from __future__ import annotations

import logging
import re
import threading
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from interp.tables.errors import InputError

DEFAULT_GRADER = "first_final"


NUMBER = r"(?:\d{1,3}(?:[,\u00a0\u2009\u202f]\d{3})+|\d+)(?:\.\d+)?|\.\d+"


_WRITTEN = re.compile(rf"(?P<sign>[-−–]?)\s*[$€£]?\s*(?P<inner>[-−–]?)(?P<number>{NUMBER})(?P<rest>\s+\d+\s*/\s*\d+|\s*/\s*\d+)?")


_VULGAR = re.compile(r"(?:(?<!\d)(\d{1,99})\s{0,3})?([\u00bc-\u00be\u2150-\u215e])")


# Repeats of blanks are bounded: a long run of them would take quadratic time.
_NEXT_QUESTION = re.compile(r"\n[ \t#*]{0,12}(?:Question|Problem|Exercise|Q)[\s\d*]{0,12}[:.]", re.IGNORECASE)


_FINAL = re.compile(
    r"(?<![^\n])[ \t#*]{0,12}final\s{1,4}answer[ \t*]{0,8}\n|####|\\boxed\s{0,4}\{"
    r"|\banswer[\s*]{0,8}is\b|\bfinal\s{1,4}answer[\s*]{0,8}[:=]|\b(?P<label>answer[\s*]{0,8}[:=])",
    re.IGNORECASE,
)


_NO_STATEMENT = re.compile(
    r"\b(?:not|if|sum of|product of|difference (?:of|between)|quotient of|average of)\b|\b(?:step|option|choice|part|question)\W*$",
    re.IGNORECASE,
)
"""Words between a mark and a number that keep it from being the answer: "rounded if not a multiple of 5", "found in Step 4"."""


_FRACTION = re.compile(
    r"(?P<whole>\d)?\s{0,4}\\[dt]?frac\s*(?:\{\s*(?P<sign>[-−–]?)\s*(?P<top>\d[\d,]*(?:\.\d+)?)\s*\}|(?P<t>\d))"
    r"\s*(?:\{\s*(?P<bottom>\d+)\s*\}|(?P<b>\d))"
)
"""\\frac{1}{2}, \\frac{-1}{2}, TeX's short \\frac12, and mixed numbers: 1\\frac12."""


_STEP = re.compile(r"^[ \t#*]*step[ \t]*\d+", re.IGNORECASE | re.MULTILINE)


_LONGEST = 400
"""Characters of a text in which a number must end: people write no longer ones."""


_GAP = 60
"""Characters between a final mark and its number, at most: "the answer is that she pays $18"."""


@dataclass(frozen=True)
class Grade:
    """One grader's verdict.

    Attributes:
        grader: its name.
        extracted: the answer as it found it; None where it found none.
        correct: it equals the reference.
    """

    grader: str
    extracted: str | None
    correct: bool


def parse_number(text: str) -> Fraction | None:
    """The number that a text begins with, exactly; None where it begins with none.

    "1,000" is 1000, "$5.00" is 5, "3/4" is 3/4, "1 1/2" and "1½" are 3/2, "12." is 12, "-7" and "−$7" are -7, "18 (i.e. 10 + 8)" is 18, and
    "50%" is 50, as GSM8K's references have it. "10-5", "2 + 3" and "2^3" are no numbers but sums, "0/0" is none; "2 + 3 = 5" is 5.
    "1e3" is 1000. Thousands are parted by a comma or a narrow blank; "1 800" is 1, since "18 100 ml bottles" is written too.
    """
    text = text[:_LONGEST]
    text = _VULGAR.sub(
        lambda found: f"{found[1] or 0} {Fraction(unicodedata.numeric(found[2])).limit_denominator(100)}", text.lstrip(" \t\n*:({[\\")
    )
    found = _WRITTEN.match(text)
    if not found:
        return None
    after = text[found.end() :]
    if re.match(rf"\s*[%°]?\s*(?:[+*×x/·÷^−–-]|\\(?:times|cdot|div)\b)\s*[$({{]*(?:{NUMBER})", after):
        return _result(after)
    if (found["rest"] or after.lstrip().startswith("%")) and re.match(rf"\s*%?\s+of\s+[$€£]?(?:{NUMBER})", after):  # "1/2 of 10 = 5"
        return _result(after)
    if found.end() == _LONGEST:
        return None
    value = Fraction(re.sub(r"[,\s\u00a0\u2009\u202f]", "", found["number"]))
    power = re.match(r"[eE]([+-]?\d{1,2})(?!\d)", after)
    if power and not found["rest"]:
        value *= Fraction(10) ** int(power[1])
    rest = found["rest"]
    if rest:
        parts = re.findall(r"\d+", rest)
        if int(parts[-1]) == 0:
            return None
        value = value / int(parts[0]) if len(parts) == 1 else value + Fraction(int(parts[0]), int(parts[1]))
    return -value if found["sign"] or found["inner"] else value


def _result(rest: str) -> Fraction | None:
    """Of a sum, what stands after its sign of equality."""
    equals = re.match(r"[^=\n]{0,80}=", rest)
    return parse_number(rest[equals.end() :]) if equals else None


def is_correct(extracted: str | None, reference: str) -> bool:
    """Both are the same number.

    Args:
        extracted: an answer.
        reference: a final answer, or a whole solution that ends in `#### 18`.

    Raises:
        InputError: the reference holds no number.
    """
    wanted = parse_number(reference.rpartition("####")[2])
    if wanted is None:
        raise InputError(f"the reference {reference[-60:]!r} ends in no number; GSM8K's format ends in '#### 18'")
    return extracted is not None and parse_number(extracted) == wanted


# --- rules ----------------------------------------------------------------------------------------------------------


def first_final(text: str, cut: bool = False) -> str | None:
    """The number of the first complete final statement; without any, the last number before a next question.

    Args:
        text: a response.
        cut: it was cut at a limit, so that a number at its very end may lack digits and does not count as complete.
    """
    text = text.lstrip()  # a response that begins with "Question:" restates its own
    end = _NEXT_QUESTION.search(text)
    text = text[: end.start()] if end else text
    cut = cut and not end
    return _stated(text, cut) or _last_number(text, cut)


def stated(text: str, cut: bool = False) -> str | None:
    """The number of the first complete final statement of the whole text; None without one."""
    return _stated(text, cut)


def strict(text: str, cut: bool = False) -> str | None:
    """`#### n`, the first: lm-evaluation-harness's "strict-match" of gsm8k."""
    found = re.search(r"#### (\-?[0-9\.\,]+)", text)
    return found[1].strip() if found else None


def flexible(text: str, cut: bool = False) -> str | None:
    """The last number, however it stands: lm-evaluation-harness's "flexible-extract" of gsm8k."""
    found = re.findall(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", text)
    return next((match for match in found[-1] if match), None) if found else None


_PAPERS_NUMBER = re.compile(r"[-+]?[$]?([,\d]+\.?[,\d]*)\%?(\ |$|\n|.){1}")


def published(text: str, cut: bool = False) -> str | None:
    r"""The rules that arXiv 2412.17846's README states.

    The first \boxed number; else the numbers of the first line where they are all one; else the first number after "the (final) answer
    is"; else the last number of all. None where the number so found cannot be read (a lone comma): the paper graded those by hand.
    """
    return _readable(_published(text)[0])


def published_column(texts: Sequence[str]) -> list[str | None]:
    """What the paper's code extracts from its responses in order.

    It is `published` but for one rule: after "the answer is" the code reads a variable of an earlier response, the last that came to
    the last rule. So its verdict on a response can depend on the responses before it.
    """
    found: list[str | None] = []
    earlier: str | None = None
    for text in texts:
        number, rule = _published(text)
        if rule == "last":
            every = _PAPERS_NUMBER.findall(text)
            earlier = every[0][0].replace(",", "") if every else earlier
        found.append(_readable(earlier if rule == "phrase" else number))
    return found


def _published(text: str) -> tuple[str | None, str]:
    boxed = re.findall(r"oxed{ *([,\d]+(?:\.[,\d]*)?) *}", text)  # its own [,\d]+\.?[,\d]* in linear time
    if boxed:
        return boxed[0].replace(",", ""), "boxed"
    first = {number for number, _ in _PAPERS_NUMBER.findall(text.split("\n")[0])}
    if len(first) == 1:
        return first.pop().replace(",", ""), "first line"
    phrase = re.search(r"(the ?(final|correct)* ?answer ?is)", text)
    after = _PAPERS_NUMBER.search(text[text.find(phrase[0]) :]) if phrase else None
    if after:
        return after[1].replace(",", ""), "phrase"
    every = _PAPERS_NUMBER.findall(text)
    return (every[-1][0].replace(",", "") if every else None), "last"


def _readable(number: str | None) -> str | None:
    """What Python's float reads, which is how the paper's code tells what to grade by hand."""
    try:
        float(number or "")
    except ValueError:
        return None
    return number


def _stated(text: str, cut: bool) -> str | None:
    text = _FRACTION.sub(_plain_fraction, text).replace("{,}", ",")
    opening: str | None = None
    for mark in _FINAL.finditer(text):
        after = text[mark.end() : mark.end() + 400]
        number = re.match(
            rf"[\s*:=$\\({{\[]*(?:[^\d\n.!?]|\.(?=\d)){{0,{_GAP}}}?(?=[-−–]?[ \t]*[$€£]?[ \t]*(?:\d|\.\d|[\u00bc-\u00be\u2150-\u215e]))",
            after,
        )
        if not number or _NO_STATEMENT.search(number[0]):
            continue
        start = mark.end() + number.end()
        while start > mark.end() and text[start - 1] in "-−–$€£ ":
            start -= 1
        said = _number_at(text, start)
        if said is None or (cut and start + len(said) >= len(text.rstrip())):
            continue
        between = text[mark.end() : start]
        wordy = re.search(r"\w", between) is not None
        opens = mark["label"] or (re.match(r"[\s*]*[:\n]", between) and wordy)
        if opens and not _alone(text, mark.end(), start, said):  # "Answer:", or "The answer is: She has", may open a whole solution
            continue
        if "=" in said and "=" in re.split(r"\n|[.!?](?!\d)", text[start + len(said) : start + len(said) + 200])[0]:
            continue  # the first of several sums in a sentence
        if opens and wordy:  # a later statement goes before a solution's first sentence
            opening = opening or said.strip()
            continue
        return said.strip()
    return opening


def _plain_fraction(found: re.Match[str]) -> str:
    whole = f"{found['whole']} " if found["whole"] else ""
    return f"{whole}{found['sign'] or ''}{found['top'] or found['t']}/{found['bottom'] or found['b']}"


def _alone(text: str, end: int, start: int, said: str) -> bool:
    """After a label: no other number is in the sentence, or in the line where words or a sum came first, so that no solution opens here."""
    between = text[end:start]
    words = re.search(r"\w", between) is not None
    if words and "\n" in between:
        return False
    rest = re.sub(r"\([^()\n]{0,80}\)", "", text[start + len(said) : start + len(said) + 200])
    mark = _FINAL.search(rest)
    rest = rest[: mark.start()] if mark else rest
    return not re.search(r"\d", re.split(r"\n" if words or "=" in said else r"\n|[.!?](?!\d)", rest)[0])


def _number_at(text: str, start: int) -> str | None:
    """As much of a text from a place on as makes a number, a sum with its result included."""
    here = text[start : start + 200]
    value = parse_number(here)
    if value is None:
        return None
    shortest = len(here)
    while shortest > 1 and parse_number(here[: shortest - 1]) == value:  # from the end: "50% of 10 = 5" begins with a 5
        shortest -= 1
    while shortest < len(here) and (here[shortest].isdigit() or (here[shortest] in ".," and here[shortest + 1 : shortest + 2].isdigit())):
        shortest += 1
    return here[:shortest]


def _last_number(text: str, cut: bool) -> str | None:
    text = _STEP.sub("", text)
    numbers = [*re.finditer(rf"(?<![\d.,])(?:[-−–](?=[$€£]?\d))?[$€£]?(?:{NUMBER})(?:/\d+)?", text)]
    if cut and numbers and numbers[-1].end() == len(text):
        numbers.pop()
    if not numbers:
        return None
    said = numbers[-1][0]
    before = text[: numbers[-1].start()]  # "10-5" and "10 - 5": a sign follows no number and touches no word
    minus = said[0] in "-−–" and (before[-1:].isalnum() or before.rstrip()[-1:].isdigit() or before.rstrip()[-1:] == ")")
    return said[1:] if minus else said


def locate(text: str, extracted: str) -> tuple[int, int] | None:
    """Where an extracted answer stands: its first place after the first final mark, or else its last; None where it was rewritten."""
    places = [found.span() for found in re.finditer(rf"(?<![\d.,]){re.escape(extracted)}(?!\d)", text)]
    mark = _FINAL.search(text)
    after = [place for place in places if mark and place[0] >= mark.end()]
    return after[0] if after else places[-1] if places else None


def math_verify(text: str, cut: bool = False) -> str | None:
    """What Hugging Face's math-verify reads out of the text: LaTeX, boxed or plain expressions.

    In the main thread each text has at most five seconds for each of its two steps; in another thread it has no limit, and "10^{10^{10}}"
    does not end there: grade in the main thread.
    """
    parsed = _parsed(text)
    return str(parsed[-1]) if parsed else None


def _parsed(text: str) -> list[Any]:
    from math_verify import parse

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    return parse(text, parsing_timeout=_timeout())  # pyright: ignore[reportArgumentType]: None switches its limit off


def _timeout() -> int | None:
    """Its time limit stands on signals, which only the main thread has."""
    return 5 if threading.current_thread() is threading.main_thread() else None


GRADERS: dict[str, Callable[[str, bool], str | None]] = {
    "first_final": first_final,
    "strict": strict,
    "flexible": flexible,
    "stated": stated,
    "published": published,
    "math_verify": math_verify,
}
"""The rules, by name: response and whether it was cut -> the answer as it stands in the text."""


def grade(response: str, reference: str, graders: Sequence[str] | None = None, *, cut: bool = False) -> list[Grade]:
    """The verdicts of several graders on one response.

    Args:
        response: a model's text.
        reference: a final answer, or a whole solution that ends in `#### 18`.
        graders: names of `GRADERS`; None takes all.
        cut: the response was cut at a limit.

    Raises:
        InputError: an unknown grader, or a reference without a number.
    """
    names = list(GRADERS) if graders is None else list(graders)
    unknown = [name for name in names if name not in GRADERS]
    if unknown:
        raise InputError(f"unknown grader {unknown[0]!r}; known: {', '.join(GRADERS)}")
    is_correct(None, reference)  # raises where the reference holds no number, whichever grader is asked
    verdicts = []
    for name in names:
        extracted = GRADERS[name](response, cut)
        correct = _verified(response, reference) if name == "math_verify" else is_correct(extracted, reference)
        verdicts.append(Grade(name, extracted, correct))
    return verdicts


def _verified(response: str, reference: str) -> bool:
    from math_verify import verify

    wanted = reference.rpartition("####")[2].strip().replace(",", "")
    return bool(verify(_parsed(wanted), _parsed(response), timeout_seconds=_timeout()))  # pyright: ignore[reportArgumentType]
