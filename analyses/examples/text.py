"""One problem under the lens, as text for the terminal: everything in it comes from the folder's tables."""

from __future__ import annotations

import re
import shutil
import textwrap
import unicodedata
from typing import Any

from figures.example.read import Example

NUMBERS = 4
"""Numbers listed for each head."""


LINES = 8
"""Unexpected numbers listed for each model."""


LOW = 0.1
"""Below this probability a number that the model read is listed as unexpected, where another token was likelier."""


GAP = "  "
"""Between the columns of a table."""


CLEAR = 0.05
"""False-discovery rate at which a head is said to differ."""


ROLE_WORDS = {
    "question_number": "question",
    "operand": "operand",
    "intermediate_result": "result",
    "final_answer": "answer",
}


def describe(example: Example) -> str:
    """Problem, answers with grades, steps with their sums checked, and the heads that stand out with the numbers they look at."""
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


def visible(text: str) -> str:
    """The text with control and direction characters written out, so that no model's or stranger's text steers the terminal."""
    kept = "\n\u200c\u200d"  # joiners are parts of letters and emoji
    return "".join(f"\\u{ord(c):04x}" if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in kept else c for c in text)


def _wrapped(text: str, width: int, first: str = "", rest: str | None = None) -> list[str]:
    """Lines of at most `width` characters, `first` before the first and `rest` (blanks, if not given) before the others."""
    indent = " " * len(first) if rest is None else rest
    plain = visible(re.sub(r"[\t-\r]", " ", text))  # before it is wrapped: what is written out is longer
    return textwrap.wrap(plain, width, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False) or [first.rstrip()]


def _columns(rows: list[dict[str, str]], width: int) -> list[str]:
    """A table of at most `width` characters a line: the last column is text, left-aligned and wrapped, the others are numbers."""
    *numbers, last = rows[0]
    sizes = {name: max(len(name), *(len(row[name]) for row in rows)) for name in numbers}
    place = "  " + "".join(" " * size + GAP for size in sizes.values())
    lines = []
    for row in ({name: name for name in rows[0]}, *rows):
        lines += _wrapped(row[last], width, "  " + "".join(row[name].rjust(sizes[name]) + GAP for name in numbers), place)
    return lines


def _quoted(text: str) -> str:
    """A token as it stands, in quotes: bytes that are no character are written out already. Its blanks do not break a line."""
    marks = {" ": "\xa0", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    return "'" + "".join(marks.get(c, c) for c in text) + "'"


def _answer(example: Example, model: dict[str, Any], width: int) -> list[str]:
    reference = (example.run["problem"]["answer"] or "").rpartition("####")[2].strip()
    if example.run["text"] == "reference":
        verdict = "reads the reference solution"
    elif model["grade"] is None:
        verdict = "its answer (no reference to grade it by)"
    else:
        said = model["grade"]["extracted"]
        found = "no answer found" if said is None else f"it says {said}"
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
        lines.append(f"      {sum(map(bool, checked))} of {len(checked)} calculations found in it are right")
    if not model["steps"]:
        lines.append("      (it wrote nothing)")
    return lines


def _heads(example: Example, name: str, model: dict[str, Any], width: int) -> list[str]:
    by, region = example.run["by"], example.run["region"]
    standing = example.standing
    rows = standing[(standing["model"] == name) & (standing["measure"] == by) & (standing["region"] == region)]
    rows = rows.set_index(["layer", "head"])
    compared = model["compared_with"]
    against = f"against {compared['n_examples']} other problems ({compared['source']})" if compared else "nothing to compare with"
    title = example.measures[by].title
    lines = ["", *_wrapped(f"Heads: {title.lower()} ({by}), {region} queries; {against}", width, "  ")]
    if compared and not (rows["q"] <= CLEAR).any():
        smallest = f"smallest q over all {len(rows)} heads: {rows['q'].min():.2g}"
        lines += _wrapped(f"No head differs clearly ({smallest}); the furthest are:", width, "  ")
    listed = []
    for layer, head in example.chosen:
        row = rows.loc[(layer, head)]
        entry = {"head": f"{layer}.{head}", "here": f"{row['value']:.3f}"}
        if compared:
            entry |= {"average": f"{row['mean']:.3f}", "t": f"{row['t']:+.1f}", "q": f"{row['q']:.2g}"}
        listed.append({**entry, f"looks at (mean share of attention, {region} queries)": _looks_at(example, name, layer, head)})
    return [*lines, *_columns(listed, width)]


def _looks_at(example: Example, name: str, layer: int, head: int) -> str:
    """The numbers that a watched head's queries look at most: sums over the table's entries, which leave out those below 0.05 %."""
    if (layer, head) not in example.watched:
        return "(its map is not kept)"
    tokens = example.tokens[example.tokens["model"] == name].set_index("position")
    edges = example.edges
    mine = edges[(edges["model"] == name) & (edges["layer"] == layer) & (edges["head"] == head)]
    region = example.run["region"]
    queries = tokens.index[tokens["is_query"] & ((tokens["region"] == region) if region != "all" else True)]
    mine = mine[mine["query"].isin(queries)]
    number = tokens["number"].reindex(mine["key"]).to_numpy()
    shares = (mine.loc[number >= 0, "probability"].groupby(number[number >= 0]).sum() / max(len(queries), 1)).nlargest(NUMBERS)
    found = []
    for at, share in shares.items():
        of = tokens[tokens["number"] == at]
        text = "".join(of["shown"]).strip()
        step = int(of["step"].iloc[0])
        place = f", step {step + 1}" if step >= 0 else ""
        found.append(f"{text} ({ROLE_WORDS.get(str(of['role'].iloc[-1]), 'other')}{place}) {share:.1%}")
    return ", ".join(found) or "no number"


def _unexpected(example: Example, name: str, width: int) -> list[str]:
    """Numbers that the model gave little chance, with what it expected instead."""
    found = example.next[example.next["model"] == name]
    tokens = example.tokens[example.tokens["model"] == name].set_index("position")
    response = tokens.index[tokens["region"] == "response"]
    unlikely = (found["probability"] < LOW) & (found["rank"] > 1)  # nothing was likelier than a token of rank 1
    read = found[found["is_read"] & found["position"].isin(response) & unlikely]
    told = []
    for row in read.to_dict("records"):
        position = int(row["position"])
        first = found[(found["position"] == position) & (found["rank"] == 1)].iloc[0]
        before = "".join(tokens["shown"].loc[max(0, position - 6) : position - 1])
        had = f"after {_quoted(before)}: {_quoted(row['token'])} had {row['probability']:.1%} (rank {row['rank']})"
        told.append(f"{had}; likeliest: {_quoted(first['token'])} {first['probability']:.0%}")
    if not told:
        return []
    lines = [line.replace("\xa0", " ") for each in told[:LINES] for line in _wrapped(each, width, "    ", "      ")]
    more = [f"    and {len(told) - LINES} more (next.parquet)"] if len(told) > LINES else []
    return ["", "  Number tokens that it did not expect:", *lines, *more]
