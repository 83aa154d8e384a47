"""The text of one problem, with arcs from the response's numbers to the tokens to which a head attends."""

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

from figures.drawing.layout import set_titles, titles_inches
from figures.drawing.style import active_style, new_figure, paper_style
from figures.drawing.text import joined, line_inches
from figures.example.read import Example
from figures.example.token_labels import flow
from figures.example.tokens import (
    MARKED_ROLES,
    ROLES_OF_NUMBERS,
    boxed,
    edges_of,
    printed_inches,
    problem_text,
    require_watched,
    role_background,
    role_color,
    roles_in,
    script_note,
    tokens_of,
    truncated,
)

SMALLEST_ARC = 0.05
"""Smallest probability with an arc."""

ALL_LINES_UP_TO = 30
"""In a figure with more lines of text than this, over all models, only those that hold the end of an arc are drawn."""

MOST_LINES = 60
"""Largest number of lines of text then; the models share them."""

LEGEND_PROBABILITIES = (0.05, 0.2, 0.5, 1.0)
"""Probabilities in the legend."""

_ARC_ROOM = {"question": 0.07, "response": 0.15}
"""Room for arcs above each line of text, in inches of a paper; arcs within a line occur in the response only."""

_QUERY_ROLES = ("operand", "intermediate_result", "final_answer")
"""Roles of the numbers at which arcs start."""

_Rows = dict[str, list[int]]
"""The lines of each block (question, response) that are drawn."""


@dataclass(frozen=True)
class TokenPlace:
    """Where a token is written.

    Attributes:
        line: of its block, counted from 0.
        left: inches from the start of the line, without the blanks before the token.
        right: its end.
        text: as drawn; "" for a further part of a character.
    """

    line: int
    left: float
    right: float
    text: str


@dataclass(frozen=True)
class _ModelText:
    """The text and the arcs of a model.

    Attributes:
        tokens: of question and response.
        blocks: the same tokens by block.
        places: where each token of a block is written.
        edges: the arcs, the weakest first.
        elsewhere: mean share of attention on keys that are not written, NaN without a query.
    """

    tokens: pd.DataFrame
    blocks: dict[str, pd.DataFrame]
    places: dict[str, list[TokenPlace]]
    edges: pd.DataFrame
    elsewhere: float

    @property
    def line_count(self) -> int:
        """Lines of both blocks."""
        return sum(_count_lines(part) for part in self.places.values())

    def line_of(self) -> dict[int, tuple[str, int]]:
        """Return the block and the line of each position."""
        return {
            int(position): (name, place.line)
            for name, part in self.places.items()
            for position, place in zip(self.blocks[name]["position"], part, strict=True)
        }


def width_of(probability: float) -> float:
    """Return the width of an arc, in points of a paper."""
    return 0.3 + 2.2 * probability


def opacity_of(probability: float) -> float:
    """Return the opacity of an arc, 0 to 1."""
    return 0.3 + 0.65 * min(probability, 1.0)


@paper_style()
def attention_arcs(example: Example, head: tuple[int, int]) -> Figure:
    """Draw question and response as wrapped text, one block per model, with an arc for each probability of 0.05 or more.

    Arcs lead from each token of the response's numbers (role operand, intermediate_result or final_answer) upward, or along the line, to
    the key. Width and opacity increase with the probability; the color is that of the key's role, gray for other keys. The arc of a token
    to itself is a small loop. The share on keys that are not written (the template, mainly its first token) is above the block.
    Numbers have the background and the underline of their role, as on the page.

    Of more than 30 lines of text in total only each block's first line and those with the end of an arc are drawn, with "…" where lines are
    left out; where these are more than 60, the strongest arcs come first. The subtitle states how many lines and arcs are left out.

    Tokens are written one by one from left to right in every script: letters of a right-to-left script are in order within a token but
    the tokens of such a line run from left to right, letters are not joined across tokens, and a mark that combines with the previous token
    is next to it; the subtitle states this. Letters that the font (DejaVu Sans) lacks, such as Chinese ones and emoji, are boxes "▯", and a
    line break is "⏎".

    Args:
        example: as `figures.example.read.read_example` returns it.
        head: (layer, head) of a watched head.

    Raises:
        InputError: the head was not watched.
    """
    require_watched(example, head)
    style = active_style()
    width = style.column("two")
    gutter = 0.05 + printed_inches("response") + 0.1 + printed_inches("…")
    texts = {model: _model_text(example, model, head, width - gutter - 0.1 - printed_inches("…")) for model in example.models}
    roles = roles_in({model: text.tokens for model, text in texts.items()})
    all_lines = sum(text.line_count for text in texts.values()) <= ALL_LINES_UP_TO
    rows = {model: _drawn_rows(text, None if all_lines else MOST_LINES // len(texts)) for model, text in texts.items()}
    title = f"Attention of numbers: head {head[1]} in layer {head[0]} (probability)"
    subtitle = joined(
        problem_text(example),
        f"arcs: from each token of the response's numbers to keys with probability {SMALLEST_ARC:g} or more, colored by the key's role",
        "elsewhere: mean share of these tokens' attention on the template",
        script_note([shown for text in texts.values() for shown in text.tokens["shown"]]),
        _rows_left_out_note(texts, rows),
    )
    titles = titles_inches(width, title, subtitle)
    pitches = {name: line_inches() + room * style.zoom for name, room in _ARC_ROOM.items()}
    heights = {model: line_inches() * 2.1 + sum(len(part) * pitches[name] for name, part in of.items()) for model, of in rows.items()}
    legend_room = _legend_lines(roles, width) * line_inches() * 1.2 + 0.08
    height = titles + legend_room + sum(heights.values())
    figure = new_figure(width, height, constrained=False)
    set_titles(figure, title, subtitle)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    _draw_legend(axes, roles, width, height - titles)
    top = height - titles - legend_room
    for model in example.models:
        share = texts[model].elsewhere
        about = "no token of a number in the response" if np.isnan(share) else f"{max(share, 0.0):.0%} elsewhere"
        axes.text(0.05, top - line_inches(), truncated(joined(boxed(model), about), width - 0.1), va="center_baseline")
        _draw_model(axes, texts[model], rows[model], top - line_inches() * 1.65, gutter, pitches)
        top -= heights[model]
    return figure


def _model_text(example: Example, model: str, head: tuple[int, int], room: float) -> _ModelText:
    """Return the text of a model on lines of `room` inches, and the arcs of a head."""
    tokens = tokens_of(example, model)
    tokens = tokens[tokens["region"].isin(["question", "response"])]
    blocks = {name: tokens[tokens["region"] == name] for name in _ARC_ROOM}
    queries = tokens[(tokens["region"] == "response") & tokens["role"].isin(_QUERY_ROLES) & tokens["is_query"].astype(bool)].index
    edges = edges_of(example, model, head)
    edges = edges[edges["query"].isin(queries) & edges["key"].isin(tokens.index)]
    elsewhere = 1 - float(edges["probability"].to_numpy(float).sum()) / len(queries) if len(queries) else float("nan")
    arcs = edges[edges["probability"] >= SMALLEST_ARC].sort_values(["probability", "query", "key"])
    return _ModelText(tokens, blocks, {name: place_tokens(part, room) for name, part in blocks.items()}, arcs, elsewhere)


def _count_lines(places: Sequence[TokenPlace]) -> int:
    return max((place.line for place in places), default=-1) + 1


def _drawn_rows(text: _ModelText, room: int | None) -> _Rows:
    """Return the lines that are drawn: all, or at most `room`: the first of each block and those with the ends of the strongest arcs."""
    line_of = text.line_of()
    every = set(line_of.values())
    kept = {line for line in every if line[1] == 0} if room is not None else every
    for query, key in zip(text.edges["query"][::-1], text.edges["key"][::-1], strict=True):  # the strongest is the last
        ends = {line_of[int(query)], line_of[int(key)]}
        if room is None or len(kept | ends) <= room:
            kept = kept | ends
    return {name: sorted(line for block, line in kept if block == name) for name in _ARC_ROOM}


def _rows_left_out_note(texts: dict[str, _ModelText], rows: dict[str, _Rows]) -> str:
    """Return how many lines of text and how many arcs are not drawn, "" where all are."""
    lines = sum(text.line_count for text in texts.values())
    without = lines - sum(len(kept) for of in rows.values() for kept in of.values())
    if not without:
        return ""
    hidden = count = 0
    for model, text in texts.items():
        shown = {position for position, (name, line) in text.line_of().items() if line in rows[model][name]}
        hidden += int((~(text.edges["query"].isin(shown) & text.edges["key"].isin(shown))).sum())
        count += len(text.edges)
    if hidden:
        return f"“…”: {without} of {lines} lines of text and {hidden} of {count} arcs left out for lack of room, the weakest arcs first"
    return f"“…”: {without} of {lines} lines of text left out, which hold no end of an arc"


def place_tokens(tokens: pd.DataFrame, room: float) -> list[TokenPlace]:
    """Place tokens on lines of `room` inches: a word stays on one line if it fits, and a line break in the text ends the line."""
    shown = [str(text) for text in tokens["shown"]]
    words: list[list[int]] = []
    for index, text in enumerate(shown):
        joins = words and not text[:1].isspace() and "\n" not in shown[index - 1]
        if joins:
            words[-1].append(index)
        else:
            words.append([index])
    places: list[TokenPlace] = []
    line, x = 0, 0.0
    for word in words:
        texts = [truncated(boxed(shown[index]), room) for index in word]
        if x and x + sum(map(printed_inches, texts)) > room:
            line, x = line + 1, 0.0
        for index, text in zip(word, texts, strict=True):
            if not text and places:  # a further part of the previous character
                places.append(replace(places[-1], text=""))
                continue
            if x and x + printed_inches(text) > room:
                line, x = line + 1, 0.0
            bare = text.lstrip(" ")
            start = x + printed_inches(text[: len(text) - len(bare)]) if x else 0.0
            end = start + printed_inches(bare) if bare else start
            places.append(TokenPlace(line, start if bare else x, end, bare))
            x = end
            if "\n" in shown[index]:
                line, x = line + 1, 0.0
    return places


def _draw_model(axes: Axes, text: _ModelText, rows: _Rows, y: float, gutter: float, pitches: dict[str, float]) -> None:
    """Draw the blocks of a model and its arcs.

    Args:
        axes: in inches.
        text: the text and the arcs.
        rows: lines that are drawn.
        y: top of the first block.
        gutter: where lines start.
        pitches: from line to line, by block.
    """
    middles: dict[int, tuple[float, float, float]] = {}
    for name, part in text.places.items():
        first = 1 - 0.22 * line_inches() / pitches[name]  # the lower edge of a line is below its baseline
        if part:
            axes.text(0.05, y - first * pitches[name], name, va="baseline", color=active_style().gray)
        baselines = {line: y - (row + first) * pitches[name] for row, line in enumerate(rows[name])}
        _draw_ellipses(axes, part, baselines, gutter)
        for (position, token), place in zip(text.blocks[name].iterrows(), part, strict=True):
            if place.line not in baselines:
                continue
            baseline = baselines[place.line]
            left, right = gutter + place.left, gutter + place.right
            _draw_token(axes, place.text, str(token["role"]), left, right, baseline)
            middles[int(str(position))] = (left + right) / 2, baseline, max(right - left, 0.04)
        y -= len(baselines) * pitches[name]
    for query, key, probability in zip(*(text.edges[name] for name in ("query", "key", "probability")), strict=True):
        if int(query) in middles and int(key) in middles:
            _draw_arc(axes, middles[int(query)], middles[int(key)], float(probability), str(text.tokens["role"][key]))


def _draw_ellipses(axes: Axes, part: Sequence[TokenPlace], baselines: dict[int, float], gutter: float) -> None:
    """Write "…" before each line that does not follow the one above, and after the last line where lines follow that are left out."""
    gray, shown = active_style().gray, list(baselines)
    for before, line in zip([-1, *shown], shown, strict=False):
        if line != before + 1:
            axes.text(gutter - 0.02, baselines[line], "…", ha="right", va="baseline", color=gray)
    if shown and shown[-1] < _count_lines(part) - 1:
        end = max(place.right for place in part if place.line == shown[-1])
        axes.text(gutter + end + 0.02, baselines[shown[-1]], "…", va="baseline", color=gray)


def _draw_token(axes: Axes, text: str, role: str, left: float, right: float, baseline: float) -> None:
    """Write a token between two places on its baseline, with the background and the underline of its role."""
    if not text:
        return
    style, line = active_style(), line_inches()
    if role in MARKED_ROLES:
        box = (left, baseline - 0.19 * line), right - left, 0.95 * line
        axes.add_patch(Rectangle(*box, facecolor=role_background(role), edgecolor="none", zorder=0))
    if role in ROLES_OF_NUMBERS:
        _underline(axes, role, left, right, baseline - 0.2 * line)
    axes.text(left, baseline, text, va="baseline", zorder=4, color=style.gray if set(text) == {"⏎"} else style.ink)


def _underline(axes: Axes, role: str, left: float, right: float, y: float) -> None:
    """Draw the line of a role under its token, as on the page: solid, dotted, double or wavy."""
    zoom = active_style().zoom
    line = {"color": role_color(role), "linewidth": 0.7 * zoom, "solid_capstyle": "butt", "zorder": 2}
    if role == "final_answer":
        x = np.linspace(left, right, max(8, int((right - left) * 300)))
        axes.add_line(Line2D(x, y + 0.006 * zoom * np.sin((x - left) * 2 * np.pi / (0.035 * zoom)), **line))
        return
    axes.add_line(Line2D([left, right], [y, y], linestyle=(0, (1, 1)) if role == "operand" else "-", **line))
    if role == "intermediate_result":
        axes.add_line(Line2D([left, right], [y - 0.018 * zoom] * 2, **line))


def _draw_arc(axes: Axes, query: tuple[float, float, float], key: tuple[float, float, float], probability: float, role: str) -> None:
    """Draw an arc between two tokens: above their line, or from the top of the query to the bottom of the key.

    Args:
        axes: in inches.
        query: middle, baseline and width of the token.
        key: middle, baseline and width of the token.
        probability: decides width and opacity.
        role: of the key, decides the color.
    """
    style = active_style()
    (x0, y0, _), (x1, y1, wide) = query, key
    top = 0.72 * line_inches()
    if abs(y0 - y1) < 1e-9:
        if abs(x0 - x1) < 1e-9:
            x0, x1 = x0 + wide / 3, x1 - wide / 3
        # A curve of this shape rises by 3 / 4 of the height of its control points.
        rise = _ARC_ROOM["response"] * style.zoom * (0.4 + 0.8 * min(1.0, abs(x0 - x1) / 2))
        start, end, bend = y0 + top, y1 + top, (y0 + top + rise, y1 + top + rise)
    else:
        start, end = y0 + top, y1 - 0.35 * line_inches()
        bend = (start + max(0.5 * (end - start), 0.07), end - max(0.5 * (end - start), 0.07))
    curve = Curve([(x0, start), (x0, bend[0]), (x1, bend[1]), (x1, end)], [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4])
    color = role_color(role if role in ROLES_OF_NUMBERS else "none")
    line = {"linewidth": width_of(probability) * style.zoom, "alpha": opacity_of(probability), "capstyle": "butt"}
    axes.add_patch(PathPatch(curve, facecolor="none", edgecolor=color, zorder=1, **line))


def _legend_entries(roles: Sequence[str]) -> list[tuple[str, float]]:
    """Return roles and probabilities with the width of each entry in inches."""
    names = [(role, printed_inches(role.replace("_", " "))) for role in roles]
    zoom = active_style().zoom
    return [*names, *((f"{probability:g}", 0.3 * zoom + printed_inches(f"{probability:g}")) for probability in LEGEND_PROBABILITIES)]


def _legend_lines(roles: Sequence[str], width: float) -> int:
    return flow([wide for _, wide in _legend_entries(roles)], width - 0.2)[-1][1] + 1


def _draw_legend(axes: Axes, roles: Sequence[str], width: float, top: float) -> None:
    """Draw the roles as their tokens appear, and arcs of several probabilities."""
    zoom, line = active_style().zoom, line_inches()
    entries = _legend_entries(roles)
    for (name, wide), (x, row) in zip(entries, flow([wide for _, wide in entries], width - 0.2), strict=True):
        baseline = top - row * 1.2 * line - 0.8 * line
        if name in roles:
            _draw_token(axes, name.replace("_", " "), name, 0.05 + x, 0.05 + x + wide, baseline)
            continue
        y = baseline + 0.3 * line
        sample = {"linewidth": width_of(float(name)) * zoom, "alpha": opacity_of(float(name)), "color": role_color("none")}
        axes.add_line(Line2D([0.05 + x, 0.05 + x + 0.25 * zoom], [y, y], solid_capstyle="butt", **sample))
        axes.text(0.05 + x + 0.29 * zoom, baseline, name, va="baseline")
