r"""Rules that find the answer in a response.

`distill.problems.grading.GRADERS` names them. Every rule takes a response and whether it was truncated, and returns the answer as it is
written in the response, or None.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Sequence
from typing import Any

from distill.problems.numbers import NUMBER_PATTERN, parse_number

# Repetitions of blanks are bounded: unbounded ones take quadratic time on a long run of blanks.
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
"""Words between a final marker and a number that show that it is not the answer: "rounded if not a multiple of 5", "found in Step 4"."""


_FRACTION = re.compile(
    r"(?P<whole>\d)?\s{0,4}\\[dt]?frac\s*(?:\{\s*(?P<sign>[-−–]?)\s*(?P<top>\d[\d,]*(?:\.\d+)?)\s*\}|(?P<t>\d))"
    r"\s*(?:\{\s*(?P<bottom>\d+)\s*\}|(?P<b>\d))"
)
"""Fractions in TeX: \\frac{1}{2}, \\frac{-1}{2}, the short \\frac12, and mixed numbers such as 1\\frac12."""


_STEP = re.compile(r"^[ \t#*]*step[ \t]*\d+", re.IGNORECASE | re.MULTILINE)


_GAP = 60
"""Largest number of characters between a final marker and its number, as in "the answer is that she pays $18"."""


def first_final_answer(text: str, truncated: bool = False) -> str | None:
    """Return the number of the first complete final statement; without one, the last number before a new question.

    Args:
        text: a response.
        truncated: the response was truncated, so a number at its very end may lack digits and does not count as complete.
    """
    text = text.lstrip()  # a "Question:" at the very start restates the question that was asked
    end = _NEXT_QUESTION.search(text)
    text = text[: end.start()] if end else text
    truncated = truncated and not end
    return _stated(text, truncated) or _last_number(text, truncated)


def stated_answer(text: str, truncated: bool = False) -> str | None:
    """Return the number of the first complete final statement in the full text, or None without one."""
    return _stated(text, truncated)


def strict_match(text: str, truncated: bool = False) -> str | None:
    """Return the number of the first `#### n`: "strict-match" of gsm8k in lm-evaluation-harness."""
    found = re.search(r"#### (\-?[0-9\.\,]+)", text)
    return found[1].strip() if found else None


def flexible_extract(text: str, truncated: bool = False) -> str | None:
    """Return the last number in any form: "flexible-extract" of gsm8k in lm-evaluation-harness."""
    found = re.findall(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", text)
    return next((match for match in found[-1] if match), None) if found else None


_PAPERS_NUMBER = re.compile(r"[-+]?[$]?([,\d]+\.?[,\d]*)\%?(\ |$|\n|.){1}")


def published_answer(text: str, truncated: bool = False) -> str | None:
    r"""Return the answer by the rules in the README of arXiv 2412.17846.

    The rules, in order: the first \boxed number; the number on the first line, if all numbers there are equal; the first number after
    "the (final) answer is"; the last number. None if the number so found cannot be read (a lone comma): the paper graded those by hand.
    """
    return _readable(_published(text)[0])


def published_code_answers(texts: Sequence[str]) -> list[str | None]:
    """Return what the code of arXiv 2412.17846 extracts from its responses, given in order.

    It differs from `published_answer` in one rule: after "the answer is" the code reads a variable that an earlier response set, the last
    one that reached the last rule. Its verdict on a response can therefore depend on the responses before it.
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
    boxed = re.findall(r"oxed{ *([,\d]+(?:\.[,\d]*)?) *}", text)  # the paper's [,\d]+\.?[,\d]*, in linear time
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
    """Return the number if Python's `float` can read it, else None; the paper's code left the others to be graded by hand."""
    try:
        float(number or "")
    except ValueError:
        return None
    return number


def _stated(text: str, truncated: bool) -> str | None:
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
        written = _number_at(text, start)
        if written is None or (truncated and start + len(written) >= len(text.rstrip())):
            continue
        between = text[mark.end() : start]
        wordy = re.search(r"\w", between) is not None
        opens = mark["label"] or (re.match(r"[\s*]*[:\n]", between) and wordy)
        if opens and not _alone(text, mark.end(), start, written):  # "Answer:" or "The answer is: She has" may start a complete solution
            continue
        if "=" in written and "=" in re.split(r"\n|[.!?](?!\d)", text[start + len(written) : start + len(written) + 200])[0]:
            continue  # the first of several calculations in a sentence
        if opens and wordy:  # a later statement takes precedence over the first sentence of a solution
            opening = opening or written.strip()
            continue
        return written.strip()
    return opening


def _plain_fraction(found: re.Match[str]) -> str:
    whole = f"{found['whole']} " if found["whole"] else ""
    return f"{whole}{found['sign'] or ''}{found['top'] or found['t']}/{found['bottom'] or found['b']}"


def _alone(text: str, end: int, start: int, written: str) -> bool:
    """Return whether a number after a label stands alone, so that it is an answer and not the start of a solution.

    No other number may follow in the sentence, or in the line if words or a calculation come first.
    """
    between = text[end:start]
    words = re.search(r"\w", between) is not None
    if words and "\n" in between:
        return False
    rest = re.sub(r"\([^()\n]{0,80}\)", "", text[start + len(written) : start + len(written) + 200])
    mark = _FINAL.search(rest)
    rest = rest[: mark.start()] if mark else rest
    return not re.search(r"\d", re.split(r"\n" if words or "=" in written else r"\n|[.!?](?!\d)", rest)[0])


def _number_at(text: str, start: int) -> str | None:
    """Return the text of the number at a position, including the calculation that leads to it."""
    here = text[start : start + 200]
    value = parse_number(here)
    if value is None:
        return None
    shortest = len(here)
    while shortest > 1 and parse_number(here[: shortest - 1]) == value:  # from the end, because "50% of 10 = 5" starts with a 5
        shortest -= 1
    while shortest < len(here) and (here[shortest].isdigit() or (here[shortest] in ".," and here[shortest + 1 : shortest + 2].isdigit())):
        shortest += 1
    return here[:shortest]


def _last_number(text: str, truncated: bool) -> str | None:
    text = _STEP.sub("", text)
    numbers = [*re.finditer(rf"(?<![\d.,])(?:[-−–](?=[$€£]?\d))?[$€£]?(?:{NUMBER_PATTERN})(?:/\d+)?", text)]
    if truncated and numbers and numbers[-1].end() == len(text):
        numbers.pop()
    if not numbers:
        return None
    written = numbers[-1][0]
    before = text[: numbers[-1].start()]  # in "10-5" and "10 - 5" it is not a sign
    minus = written[0] in "-−–" and (before[-1:].isalnum() or before.rstrip()[-1:].isdigit() or before.rstrip()[-1:] == ")")
    return written[1:] if minus else written


def locate_answer(text: str, extracted: str) -> tuple[int, int] | None:
    """Return the span of an extracted answer: its first occurrence after the first final marker, else its last occurrence.

    None if the answer does not occur literally, for example because a fraction was rewritten.
    """
    places = [found.span() for found in re.finditer(rf"(?<![\d.,]){re.escape(extracted)}(?!\d)", text)]
    mark = _FINAL.search(text)
    after = [place for place in places if mark and place[0] >= mark.end()]
    return after[0] if after else places[-1] if places else None


def math_verify_answer(text: str, truncated: bool = False) -> str | None:
    """Return the last expression that Hugging Face's math-verify parses from the text: LaTeX, boxed or plain.

    In the main thread, parsing and verifying may take five seconds each. Other threads have no time limit, and "10^{10^{10}}" never
    finishes there: grade in the main thread.
    """
    parsed = _parsed(text)
    return str(parsed[-1]) if parsed else None


def _parsed(text: str) -> list[Any]:
    from math_verify import parse

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    return parse(text, parsing_timeout=_timeout())  # pyright: ignore[reportArgumentType]: None means no limit


def _timeout() -> int | None:
    """Return the time limit in seconds. math-verify uses signals for it, which work in the main thread only."""
    return 5 if threading.current_thread() is threading.main_thread() else None


def math_verify_agrees(response: str, reference: str) -> bool:
    """Return whether math-verify finds a response equal to the number after `####` in the reference."""
    from math_verify import verify

    wanted = reference.rpartition("####")[2].strip().replace(",", "")
    return bool(verify(_parsed(wanted), _parsed(response), timeout_seconds=_timeout()))  # pyright: ignore[reportArgumentType]
