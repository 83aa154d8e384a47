"""The text of one problem, set as text, with arcs from the response's numbers to the tokens that a head looks at from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path as Curve

from figures.drawing import style
from figures.drawing.lines import line_inches
from figures.example import token_labels
from figures.example.read import Example
from figures.example.token_labels import NUMBER_ROLES, boxed, colour, cut, ground, inches

LEAST = 0.05
"""Smallest probability with an arc."""


GAPS = {"question": 0.07, "response": 0.15}
"""Room for arcs above each line of text, inches of a paper: arcs along a line are in the response alone."""


WHOLE = 30
"""A figure with more lines of text than this, over all models, draws only those that hold an arc's end."""


MOST_LINES = 60
"""Most lines of text then; the models share them."""


SAMPLES = (0.05, 0.2, 0.5, 1.0)
"""Probabilities in the key."""


QUERIES = ("operand", "intermediate_result", "final_answer")
"""Roles of the numbers that arcs begin at."""


@dataclass(frozen=True)
class Place:
    """Where a token is set.

    Attributes:
        line: of its block, from 0.
        left: inches from the line's begin, blanks before the token not counted.
        right: its end.
        text: as drawn; "" for a further part of a character.
    """

    line: int
    left: float
    right: float
    text: str


def width_of(probability: float) -> float:
    """Width of an arc, points of a paper."""
    return 0.3 + 2.2 * probability


def opacity_of(probability: float) -> float:
    """Opacity of an arc, 0 to 1."""
    return 0.3 + 0.65 * min(probability, 1.0)


@style.paper_style()
def attention_arcs(example: Example, head: tuple[int, int]) -> Figure:
    """Question and response as wrapped text, a block a model, with an arc for each probability of 0.05 or more.

    Arcs lead from each token of the response's numbers (role operand, intermediate_result or final_answer) upwards, or along the line, to
    the key; they are as wide and as opaque as the probability is high, in the colour of the key's role, grey for other keys. A token's arc
    to itself is a small loop. What falls on keys that are not set here (the template, most of all its first token) stands over the block.
    Numbers have their role's ground and underline, as on the page.

    Of more than 30 lines of text in all only each block's first and those that hold an arc's end are drawn, with "…" where lines are left
    out; where they are more than 60, the strongest arcs come first. The subtitle says how many lines and arcs are left out.

    Tokens are set one by one from left to right, whatever their script: letters of a right-to-left script are in order within a token but
    the tokens of such a line run from left to right, letters are not joined across tokens, and a mark that combines with the token before
    stands beside it; the subtitle says so. Letters that the font (DejaVu Sans) lacks, such as Chinese ones and emoji, are boxes "▯", and a
    line's end is "⏎".

    Args:
        example: as `figures.example.read.read_example` gives it.
        head: (layer, head), one of the watched.

    Raises:
        InputError: the head was not watched.
    """
    token_labels.need_watched(example, head)
    at = style.look()
    width = at.column("two")
    texts = {model: _text(example, model) for model in example.models}
    arcs = {model: _arcs(example, model, head, tokens) for model, tokens in texts.items()}
    roles = token_labels.roles_in(texts)
    title = f"What numbers look at: head {head[1]} of layer {head[0]} (attention as probability)"
    gutter = 0.05 + inches("response") + 0.1 + inches("…")
    parts = {model: {name: tokens[tokens["region"] == name] for name in GAPS} for model, tokens in texts.items()}
    places = {model: {name: _set(tokens, width - gutter - 0.1 - inches("…")) for name, tokens in of.items()} for model, of in parts.items()}
    whole = sum(_lines(part) for of in places.values() for part in of.values()) <= WHOLE
    room = None if whole else MOST_LINES // len(texts)
    rows = {model: _rows(_line_of(parts[model], places[model]), arcs[model][0], room) for model in texts}
    subtitle = style.joined(
        token_labels.problem_text(example),
        f"arcs: from each token of the response's numbers to keys with probability {LEAST:g} or more, coloured by the key's role",
        "elsewhere: mean share of these tokens' attention on the template",
        token_labels.script_note([text for tokens in texts.values() for text in tokens["shown"]]),
        _told_left_out(parts, places, rows, arcs),
    )
    titles = style.titles_inches(width, title, subtitle)
    pitches = {name: line_inches() + gap * at.zoom for name, gap in GAPS.items()}
    heights = {model: line_inches() * 2.1 + sum(len(part) * pitches[name] for name, part in of.items()) for model, of in rows.items()}
    key_room = _key_lines(roles, width) * line_inches() * 1.2 + 0.08
    height = titles + key_room + sum(heights.values())
    figure = style.new_figure(width, height, constrained=False)
    style.set_titles(figure, title, subtitle)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    _draw_key(axes, roles, width, height - titles)
    top = height - titles - key_room
    for model in example.models:
        edges, elsewhere = arcs[model]
        told = "no token of a number in the response" if np.isnan(elsewhere) else f"{max(elsewhere, 0.0):.0%} elsewhere"
        heading = cut(style.joined(boxed(model), told), width - 0.1)
        axes.text(0.05, top - line_inches(), heading, va="center_baseline")
        middles: dict[int, tuple[float, float, float]] = {}
        y = top - line_inches() * 1.65
        for name, part in places[model].items():
            first = 1 - 0.22 * line_inches() / pitches[name]  # a line's foot is under its base line
            if part:
                axes.text(0.05, y - first * pitches[name], name, va="baseline", color=at.grey)
            bases = {line: y - (row + first) * pitches[name] for row, line in enumerate(rows[model][name])}
            _draw_gaps(axes, part, bases, gutter)
            for (position, token), place in zip(parts[model][name].iterrows(), part, strict=True):
                if place.line not in bases:
                    continue
                base = bases[place.line]
                left, right = gutter + place.left, gutter + place.right
                _draw_token(axes, place.text, str(token["role"]), left, right, base)
                middles[int(str(position))] = (left + right) / 2, base, max(right - left, 0.04)
            y -= len(bases) * pitches[name]
        for query, key, probability in zip(*(edges[name] for name in ("query", "key", "probability")), strict=True):
            if int(query) in middles and int(key) in middles:
                _draw_arc(axes, middles[int(query)], middles[int(key)], float(probability), texts[model]["role"][key])
        top -= heights[model]
    return figure


def _text(example: Example, model: str) -> pd.DataFrame:
    """The tokens of question and response."""
    tokens = token_labels.tokens_of(example, model)
    return tokens[tokens["region"].isin(["question", "response"])]


def _arcs(example: Example, model: str, head: tuple[int, int], tokens: pd.DataFrame) -> tuple[pd.DataFrame, float]:
    """The edges that are drawn, the faintest first; and the mean share of attention on keys that are not set, NaN without a query."""
    queries = tokens[(tokens["region"] == "response") & tokens["role"].isin(QUERIES) & tokens["is_query"].astype(bool)].index
    edges = token_labels.edges_of(example, model, head)
    edges = edges[edges["query"].isin(queries) & edges["key"].isin(tokens.index)]
    elsewhere = 1 - float(edges["probability"].to_numpy(float).sum()) / len(queries) if len(queries) else float("nan")
    return edges[edges["probability"] >= LEAST].sort_values(["probability", "query", "key"]), elsewhere


def _lines(places: Sequence[Place]) -> int:
    return max((place.line for place in places), default=-1) + 1


def _line_of(parts: dict[str, pd.DataFrame], places: dict[str, list[Place]]) -> dict[int, tuple[str, int]]:
    """Block and line of each position of a model."""
    return {
        int(position): (name, place.line)
        for name, part in places.items()
        for position, place in zip(parts[name]["position"], part, strict=True)
    }


def _rows(line_of: dict[int, tuple[str, int]], edges: pd.DataFrame, room: int | None) -> dict[str, list[int]]:
    """The lines of each block that are drawn: all, or at most `room` of a model, the first and those that hold the strongest arcs' ends."""
    every = set(line_of.values())
    kept = {line for line in every if line[1] == 0} if room is not None else every
    for query, key in zip(edges["query"][::-1], edges["key"][::-1], strict=True):  # the strongest is the last
        ends = {line_of[int(query)], line_of[int(key)]}
        if room is None or len(kept | ends) <= room:
            kept = kept | ends
    return {name: sorted(line for of, line in kept if of == name) for name in GAPS}


def _told_left_out(
    parts: dict[str, dict[str, pd.DataFrame]],
    places: dict[str, dict[str, list[Place]]],
    rows: dict[str, dict[str, list[int]]],
    arcs: dict[str, tuple[pd.DataFrame, float]],
) -> str:
    """How many lines of the text and how many arcs are not drawn, "" where all are."""
    lines = sum(_lines(part) for of in places.values() for part in of.values())
    without = lines - sum(len(kept) for of in rows.values() for kept in of.values())
    if not without:
        return ""
    hidden = count = 0
    for model, (edges, _) in arcs.items():
        line_of = _line_of(parts[model], places[model])
        shown = {position for position, (name, line) in line_of.items() if line in rows[model][name]}
        hidden += int((~(edges["query"].isin(shown) & edges["key"].isin(shown))).sum())
        count += len(edges)
    if hidden:
        return f"“…”: {without} of {lines} lines of text and {hidden} of {count} arcs left out for room, the strongest arcs drawn first"
    return f"“…”: {without} of {lines} lines of text left out, no arc begins or ends there"


def _draw_gaps(axes: Axes, part: Sequence[Place], bases: dict[int, float], gutter: float) -> None:
    """A "…" before each line that does not follow the one above, and after the last where more would come."""
    grey, shown = style.look().grey, list(bases)
    for before, line in zip([-1, *shown], shown, strict=False):
        if line != before + 1:
            axes.text(gutter - 0.02, bases[line], "…", ha="right", va="baseline", color=grey)
    if shown and shown[-1] < _lines(part) - 1:
        end = max(place.right for place in part if place.line == shown[-1])
        axes.text(gutter + end + 0.02, bases[shown[-1]], "…", va="baseline", color=grey)


def _set(tokens: pd.DataFrame, room: float) -> list[Place]:
    """Set tokens on lines of `room` inches: words stay whole where they fit on a line, and a line's end in the text ends the line."""
    shown = [str(text) for text in tokens["shown"]]
    words: list[list[int]] = []
    for at, text in enumerate(shown):
        joins = words and not text[:1].isspace() and "\n" not in shown[at - 1]
        if joins:
            words[-1].append(at)
        else:
            words.append([at])
    places: list[Place] = []
    line, x = 0, 0.0
    for word in words:
        texts = [cut(boxed(shown[at]), room) for at in word]
        whole = sum(map(inches, texts))
        if x and x + whole > room:
            line, x = line + 1, 0.0
        for at, text in zip(word, texts, strict=True):
            if not text and places:  # a further part of the character before
                places.append(replace(places[-1], text=""))
                continue
            if x and x + inches(text) > room:
                line, x = line + 1, 0.0
            bare = text.lstrip(" ")
            begin = x + inches(text[: len(text) - len(bare)]) if x else 0.0
            end = begin + inches(bare) if bare else begin
            places.append(Place(line, begin if bare else x, end, bare))
            x = end
            if "\n" in shown[at]:
                line, x = line + 1, 0.0
    return places


def _draw_token(axes: Axes, text: str, role: str, left: float, right: float, base: float) -> None:
    """A token between two places on its base line, with its role's ground and underline."""
    if not text:
        return
    at, line = style.look(), line_inches()
    if role in token_labels.MARKED_ROLES:
        box = (left, base - 0.19 * line), right - left, 0.95 * line
        axes.add_patch(Rectangle(*box, facecolor=ground(role), edgecolor="none", zorder=0))
    if role in NUMBER_ROLES:
        _underline(axes, role, left, right, base - 0.2 * line)
    axes.text(left, base, text, va="baseline", zorder=4, color=at.grey if set(text) == {"⏎"} else at.ink)


def _underline(axes: Axes, role: str, left: float, right: float, y: float) -> None:
    """The line of a role under its token, as on the page: whole, dotted, double or wavy."""
    zoom = style.look().zoom
    look = {"color": colour(role), "linewidth": 0.7 * zoom, "solid_capstyle": "butt", "zorder": 2}
    if role == "final_answer":
        x = np.linspace(left, right, max(8, int((right - left) * 300)))
        axes.add_line(Line2D(x, y + 0.006 * zoom * np.sin((x - left) * 2 * np.pi / (0.035 * zoom)), **look))
        return
    axes.add_line(Line2D([left, right], [y, y], linestyle=(0, (1, 1)) if role == "operand" else "-", **look))
    if role == "intermediate_result":
        axes.add_line(Line2D([left, right], [y - 0.018 * zoom] * 2, **look))


def _draw_arc(axes: Axes, query: tuple[float, float, float], key: tuple[float, float, float], probability: float, role: str) -> None:
    """An arc between two tokens, given by middle, base line and width: over the line, or from the query's top to the key's foot."""
    at = style.look()
    (x0, y0, _), (x1, y1, wide) = query, key
    top = 0.72 * line_inches()
    if abs(y0 - y1) < 1e-9:
        if abs(x0 - x1) < 1e-9:
            x0, x1 = x0 + wide / 3, x1 - wide / 3
        rise = GAPS["response"] * at.zoom * (0.4 + 0.8 * min(1.0, abs(x0 - x1) / 2))  # a curve of this shape rises by 3 / 4 of it
        begin, end, bend = y0 + top, y1 + top, (y0 + top + rise, y1 + top + rise)
    else:
        begin, end = y0 + top, y1 - 0.35 * line_inches()
        bend = (begin + max(0.5 * (end - begin), 0.07), end - max(0.5 * (end - begin), 0.07))
    curve = Curve([(x0, begin), (x0, bend[0]), (x1, bend[1]), (x1, end)], [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4])
    shade = colour(role if role in NUMBER_ROLES else "none")
    look = {"linewidth": width_of(probability) * at.zoom, "alpha": opacity_of(probability), "capstyle": "butt"}
    axes.add_patch(PathPatch(curve, facecolor="none", edgecolor=shade, zorder=1, **look))


def _key_entries(roles: Sequence[str]) -> list[tuple[str, float]]:
    """Roles, "other key", and probabilities, with the width that each takes."""
    names = [*((role, inches(role.replace("_", " "))) for role in roles)]
    return [*names, *((f"{sample:g}", 0.3 * style.look().zoom + inches(f"{sample:g}")) for sample in SAMPLES)]


def _key_lines(roles: Sequence[str], width: float) -> int:
    return token_labels.flow([wide for _, wide in _key_entries(roles)], width - 0.2)[-1][1] + 1


def _draw_key(axes: Axes, roles: Sequence[str], width: float, top: float) -> None:
    """The roles as their tokens look, and arcs' widths."""
    zoom, line = style.look().zoom, line_inches()
    entries = _key_entries(roles)
    for (name, wide), (x, row) in zip(entries, token_labels.flow([wide for _, wide in entries], width - 0.2), strict=True):
        base = top - row * 1.2 * line - 0.8 * line
        if name in roles:
            _draw_token(axes, name.replace("_", " "), name, 0.05 + x, 0.05 + x + wide, base)
            continue
        y = base + 0.3 * line
        look = {"linewidth": width_of(float(name)) * zoom, "alpha": opacity_of(float(name)), "color": colour("none")}
        axes.add_line(Line2D([0.05 + x, 0.05 + x + 0.25 * zoom], [y, y], solid_capstyle="butt", **look))
        axes.text(0.05 + x + 0.29 * zoom, base, name, va="baseline")
