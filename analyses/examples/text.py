"""One inspected problem as text for the terminal; everything in it comes from the tables of its folder."""

from __future__ import annotations

import re
import shutil
import textwrap
import unicodedata
from typing import Any

from figures.example.read import Example

_NUMBERS_PER_HEAD = 4
"""Numbers listed for each head."""

_UNEXPECTED_LINES = 8
"""Unexpected numbers listed for each model."""

_UNEXPECTED = 0.1
"""A number that the model read is listed as unexpected if its probability was below this and another token was more likely."""

_GAP = "  "
"""Between the columns of a table."""

_SIGNIFICANT = 0.05
"""False-discovery rate at which a head is said to differ."""

_ROLE_WORDS = {
    "question_number": "question",
    "operand": "operand",
    "intermediate_result": "result",
    "final_answer": "answer",
}


def describe_example(example: Example) -> str:
    """Return problem, graded answers, steps with checked calculations, and the most unusual heads with the numbers they attend to."""
    width = min(max(shutil.get_terminal_size((110, 24)).columns, 60), 140)
    problem = example.run["problem"]
    place = f"Problem {problem['index']} of {problem['n']} ({problem['source']})" if problem["index"] is not None else "The problem"
    lines = [*_wrapped(place, width), *_wrapped(problem["question"], width, "  ")]
    for model in example.run["models"]:
        name = model["name"]
        lines += ["", *_answer(example, model, width), *_heads(example, name, model, width), *_unexpected(example, name, width)]
    for warning in example.run["warnings"]:
        lines += ["", *_wrapped(f"warning: {warning}", width)]
    return "\n".join([*lines, ""])


def _visible(text: str) -> str:
    """Return the text with control and direction characters escaped, so that a model's output cannot control the terminal."""
    kept = "\n\u200c\u200d"  # joiners are parts of letters and emoji
    return "".join(f"\\u{ord(c):04x}" if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in kept else c for c in text)


def _wrapped(text: str, width: int, first: str = "", rest: str | None = None) -> list[str]:
    """Return lines of at most `width` characters, with `first` before the first and `rest` (default: blanks) before the others."""
    indent = " " * len(first) if rest is None else rest
    plain = _visible(re.sub(r"[\t-\r]", " ", text))  # before wrapping: escapes are longer
    return textwrap.wrap(plain, width, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False) or [first.rstrip()]


def _columns(rows: list[dict[str, str]], width: int) -> list[str]:
    """Return a table of at most `width` characters per line: the last column is text, left-aligned and wrapped, the others are numbers."""
    *numbers, last = rows[0]
    sizes = {name: max(len(name), *(len(row[name]) for row in rows)) for name in numbers}
    place = "  " + "".join(" " * size + _GAP for size in sizes.values())
    lines = []
    for row in ({name: name for name in rows[0]}, *rows):
        lines += _wrapped(row[last], width, "  " + "".join(row[name].rjust(sizes[name]) + _GAP for name in numbers), place)
    return lines


def _quoted(text: str) -> str:
    """Return a token in quotes, with blanks that do not break a line; bytes that are not a character are escaped already."""
    marks = {" ": "\xa0", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    return "'" + "".join(marks.get(c, c) for c in text) + "'"


def _answer(example: Example, model: dict[str, Any], width: int) -> list[str]:
    """Return lines about a model's answer: its verdict, its steps, and what is wrong in them."""
    reference = (example.run["problem"]["answer"] or "").rpartition("####")[2].strip()
    if example.run["text"] == "reference":
        verdict = "reads the reference solution"
    elif model["grade"] is None:
        verdict = "its answer (no reference to grade it by)"
    else:
        extracted = model["grade"]["extracted"]
        found = "no answer found" if extracted is None else f"its answer is {extracted}"
        right = "right" if model["grade"]["correct"] else "wrong"
        verdict = f"{right}: {found}, the reference is {reference} (grader {model['grade']['grader']})"
    lines = _wrapped(f"{model['name']}: {verdict}", width)
    for number, step in enumerate(model["steps"]):
        lines += _wrapped(step["text"], width, f"  {number + 1:2}  ")
        for check in step["sums"]:
            if check["right"] is False:
                lines += _wrapped(f"{check['written']} is {check['value']}, not {check['result']}", width, "      ✗ ")
            elif check["right"] is None:
                lines += _wrapped(f"{check['written']} = {check['result']} cannot be checked", width, "      ? ")
    checked = [check["right"] for step in model["steps"] for check in step["sums"]]
    if checked:
        lines.append(f"      {sum(map(bool, checked))} of {len(checked)} calculations in it are right")
    if not model["steps"]:
        lines.append("      (empty answer)")
    return lines


def _heads(example: Example, name: str, model: dict[str, Any], width: int) -> list[str]:
    """Return lines about the heads that are shown first: how unusual they are, and which numbers they attend to."""
    by, region = example.run["by"], example.run["region"]
    standing = example.standing
    rows = standing[(standing["model"] == name) & (standing["measure"] == by) & (standing["region"] == region)]
    rows = rows.set_index(["layer", "head"])
    compared = model["compared_with"]
    against = f"compared with {compared['n_examples']} other problems ({compared['source']})" if compared else "nothing to compare with"
    title = example.measures[by].title
    lines = ["", *_wrapped(f"Heads: {title.lower()} ({by}), {region} queries; {against}", width, "  ")]
    if compared and not (rows["q"] <= _SIGNIFICANT).any():
        smallest = f"smallest q over all {len(rows)} heads: {rows['q'].min():.2g}"
        lines += _wrapped(f"No head differs significantly ({smallest}); the most different are:", width, "  ")
    listed = []
    for layer, head in example.chosen:
        row = rows.loc[(layer, head)]
        entry = {"head": f"{layer}.{head}", "here": f"{row['value']:.3f}"}
        if compared:
            entry |= {"average": f"{row['mean']:.3f}", "t": f"{row['t']:+.1f}", "q": f"{row['q']:.2g}"}
        listed.append({**entry, f"attends to (mean share of attention, {region} queries)": _attended_numbers(example, name, layer, head)})
    return [*lines, *_columns(listed, width)]


def _attended_numbers(example: Example, name: str, layer: int, head: int) -> str:
    """Return the numbers that a watched head attends to most, as sums over the table's entries, which omit those below 0.05 %."""
    if (layer, head) not in example.watched:
        return "(its map was not kept)"
    tokens = example.tokens[example.tokens["model"] == name].set_index("position")
    edges = example.edges
    mine = edges[(edges["model"] == name) & (edges["layer"] == layer) & (edges["head"] == head)]
    region = example.run["region"]
    queries = tokens.index[tokens["is_query"] & ((tokens["region"] == region) if region != "all" else True)]
    mine = mine[mine["query"].isin(queries)]
    number = tokens["number"].reindex(mine["key"]).to_numpy()
    shares = (mine.loc[number >= 0, "probability"].groupby(number[number >= 0]).sum() / max(len(queries), 1)).nlargest(_NUMBERS_PER_HEAD)
    found = []
    for at, share in shares.items():
        of = tokens[tokens["number"] == at]
        text = "".join(of["shown"]).strip()
        step = int(of["step"].iloc[0])
        place = f", step {step + 1}" if step >= 0 else ""
        found.append(f"{text} ({_ROLE_WORDS.get(str(of['role'].iloc[-1]), 'other')}{place}) {share:.1%}")
    return ", ".join(found) or "no number"


def _unexpected(example: Example, name: str, width: int) -> list[str]:
    """Return lines about the numbers that the model considered unlikely, with what it expected instead."""
    found = example.next[example.next["model"] == name]
    tokens = example.tokens[example.tokens["model"] == name].set_index("position")
    response = tokens.index[tokens["region"] == "response"]
    unlikely = (found["probability"] < _UNEXPECTED) & (found["rank"] > 1)  # a token of rank 1 was the most likely one
    read = found[found["is_read"] & found["position"].isin(response) & unlikely]
    listed = []
    for row in read.to_dict("records"):
        position = int(row["position"])
        first = found[(found["position"] == position) & (found["rank"] == 1)].iloc[0]
        before = "".join(tokens["shown"].loc[max(0, position - 6) : position - 1])
        had = f"after {_quoted(before)}: {_quoted(row['token'])} had {row['probability']:.1%} (rank {row['rank']})"
        listed.append(f"{had}; most likely: {_quoted(first['token'])} {first['probability']:.0%}")
    if not listed:
        return []
    lines = [line.replace("\xa0", " ") for each in listed[:_UNEXPECTED_LINES] for line in _wrapped(each, width, "    ", "      ")]
    more = [f"    and {len(listed) - _UNEXPECTED_LINES} more (next.parquet)"] if len(listed) > _UNEXPECTED_LINES else []
    return ["", "  Number tokens that it did not expect:", *lines, *more]
