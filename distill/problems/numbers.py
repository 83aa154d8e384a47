"""Read numbers as people write them, exactly."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

NUMBER_PATTERN = r"(?:\d{1,3}(?:[,\u00a0\u2009\u202f]\d{3})+|\d+)(?:\.\d+)?|\.\d+"
"""Regular expression of an unsigned number: digits, thousands separators (comma or narrow space) and decimals."""

_WRITTEN = re.compile(rf"(?P<sign>[-−–]?)\s*[$€£]?\s*(?P<inner>[-−–]?)(?P<number>{NUMBER_PATTERN})(?P<rest>\s+\d+\s*/\s*\d+|\s*/\s*\d+)?")

_VULGAR = re.compile(r"(?:(?<!\d)(\d{1,99})\s{0,3})?([\u00bc-\u00be\u2150-\u215e])")

_LONGEST = 400
"""A number must end within this many characters, so that matching time stays bounded."""


def parse_number(text: str) -> Fraction | None:
    """Return the exact number at the start of a text, or None if there is none.

    - "1,000" is 1000, "$5.00" is 5, "12." is 12, "-7" and "−$7" are -7, "1e3" is 1000.
    - "3/4" is 3/4; "1 1/2" and "1½" are 3/2; "0/0" is not a number.
    - "50%" is 50, as in GSM8K's references. "18 (i.e. 10 + 8)" is 18.
    - "10-5", "2 + 3" and "2^3" are calculations, not numbers; "2 + 3 = 5" is 5, its result.
    - Thousands are separated by a comma or a narrow space. "1 800" is 1, because people also write "18 100 ml bottles".
    """
    text = text[:_LONGEST]
    text = _VULGAR.sub(
        lambda found: f"{found[1] or 0} {Fraction(unicodedata.numeric(found[2])).limit_denominator(100)}", text.lstrip(" \t\n*:({[\\")
    )
    found = _WRITTEN.match(text)
    if not found:
        return None
    after = text[found.end() :]
    if re.match(rf"\s*[%°]?\s*(?:[+*×x/·÷^−–-]|\\(?:times|cdot|div)\b)\s*[$({{]*(?:{NUMBER_PATTERN})", after):
        return _result(after)
    if (found["rest"] or after.lstrip().startswith("%")) and re.match(
        rf"\s*%?\s+of\s+[$€£]?(?:{NUMBER_PATTERN})", after
    ):  # "1/2 of 10 = 5"
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
    """Return the number after the equals sign of a calculation."""
    equals = re.match(r"[^=\n]{0,80}=", rest)
    return parse_number(rest[equals.end() :]) if equals else None
