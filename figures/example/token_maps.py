"""The attention of one head on one problem, token by token: queries down, keys across, a panel a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from figures.drawing import style
from figures.drawing.colors import Scale, colour_scale, draw_colour_bar, round_ticks
from figures.drawing.lines import line_inches
from figures.example import token_labels
from figures.example.read import Example
from figures.example.token_labels import Slot
from interp.tables.errors import InputError
from interp.tables.schema import MeasureInfo

ATTENTION = MeasureInfo("attention", "attention", "probability", 0.0, None, "p")
"""What a cell shows; the colours' upper end is the highest probability drawn."""


SPANS = ("question", "response", "text", "all", "numbers")
"""Tokens by name: of the question, of the response, of both, all with the template, and numbers as wholes."""


LEAST = 1.25
"""Narrowest panel, inches of a paper."""


BAR_ROOM = 0.42
"""Height of a colour bar with label and ticks, inches of a paper."""


TALLEST = 3.4
"""Tallest panel, inches of a paper."""


Span = str | tuple[int, int]


@dataclass(frozen=True)
class TokenMap:
    """The cells of one panel.

    Attributes:
        title: of the panel.
        rows: queries.
        columns: keys.
        values: probability [query, key]: mean over a row's tokens of the sum over a column's; NaN where all keys come later.
    """

    title: str
    rows: list[Slot]
    columns: list[Slot]
    values: np.ndarray


@style.paper_style()
def token_map(example: Example, head: tuple[int, int], queries: Span = "response", keys: Span = "text") -> Figure:
    """The attention map of one head, a panel a model on one colour scale; with two models on one text also their difference.

    Labels stand at every token where there is room, else at numbers only (`figures.example.token_labels.chosen_labels`); the subtitle says how many
    numbers' labels there is no room for, over all panels. Where cells are smaller than the PNG's pixels, a cell shows the value farthest
    from 0 of its tokens. Lines part question and response (whole) and the response's steps (dotted); steps are numbered from 1 on the
    right. The share of attention that falls on keys that are not drawn, mostly the template's first token, stands in the panel's title; the
    table leaves out probabilities under 0.05 %, which count there too.

    Args:
        example: as `figures.example.read.read_example` gives it.
        head: (layer, head), one of the watched.
        queries: rows: one of `SPANS`, or first position and the one past the last. "numbers": a row a number of question and response,
            the mean over its tokens.
        keys: columns, likewise; a number's column is the sum over its tokens.

    Raises:
        InputError: the head was not watched.
        InputError: an unknown span, or a range of positions without tokens.
    """
    token_labels.need_watched(example, head)
    maps = [_model_map(example, head, model, queries, keys) for model in example.models]
    difference = _difference(example, maps)
    high = max((float(np.nanmax(one.values)) for one in maps if np.isfinite(one.values).any()), default=0.0) or 1.0
    scale = colour_scale(ATTENTION, np.array([0.0, high]))
    at = style.look()
    width = at.column("two")
    shown = [*maps, *([difference] if difference else [])]
    slots = [slot for one in shown for slot in (*one.rows, *one.columns)]
    roles = [role for role in token_labels.MARKED_ROLES if any(slot.role == role for slot in slots)]
    title = f"Where head {head[1]} of layer {head[0]} looks: attention (probability)"
    said = style.joined(
        token_labels.problem_text(example),
        f"rows: {_told(queries, 'mean over')}",
        f"columns: {_told(keys, 'sum over')}",
        "grey: later tokens",
        "elsewhere: share of attention on keys not drawn",
        "dotted: steps, numbered on the right" if any(slot.step >= 0 for slot in slots) else "",
    )
    left = max(token_labels.label_room(one.rows, TALLEST * at.zoom) for one in shown) + line_inches() + 0.04
    right = 0.16 * at.zoom
    columns = max(1, min(len(shown), int(width / (left + LEAST * at.zoom + right))))
    across = width / columns - left - right
    bottom = max(token_labels.label_room(one.columns, across) for one in shown) + line_inches() + 0.08
    margins = (left, right, 3 * line_inches() + 0.1, bottom)
    scales = [scale, *([_signed(difference.values)] if difference else [])]
    key = token_labels.role_key_room(roles, width)
    beside = 2 if width >= 2 * 2.6 * at.zoom else 1
    bars = -(-len(scales) // beside) * BAR_ROOM * at.zoom
    legend = key + bars
    across -= 1e-6  # so that as many panels fit
    # A note of labels that are left out may cost a line of room, and with it labels; rarely another round is needed.
    subtitle, down = said, 0.0
    for _ in range(4):
        down = max(_height(one, across) for one in shown)
        if columns == len(shown):
            down = at.height(down, style.titles_inches(width, title, subtitle) + legend + margins[2] + bottom, 1.2)
        without = sum(token_labels.left_out(one.rows, down) + token_labels.left_out(one.columns, across) for one in shown)
        before, subtitle = subtitle, style.joined(said, token_labels.left_out_note(without))
        if subtitle == before:
            break
    room = tuple(inches / at.zoom for inches in margins)
    figure, every = style.panels(
        title,
        subtitle,
        len(shown),
        columns,
        panel=(across, down / at.zoom),
        margins=(room[0], room[1], room[2], room[3]),
        legend_room=legend / at.zoom,
        width=width,
    )
    top = style.titles_inches(width, title, subtitle)
    images: list[AxesImage | None] = [None, None]
    for axes, one in zip(every, shown, strict=True):
        which = int(one is difference)
        images[which] = _draw(axes, one, scales[which], (left, bottom), (_unit(queries), _unit(keys))) or images[which]
    names = ("attention", "difference")
    for place, (image, one, name) in enumerate(zip(images, scales, names, strict=False)):
        if image is not None:
            curve = "" if one.curve == "linear" else f", {one.curve} colours"
            row, column = divmod(place, beside)
            _bar(figure, image, one, f"{name} (probability{curve})", column * width / beside, top + row * BAR_ROOM * at.zoom)
    token_labels.draw_role_key(figure, roles, top + bars + 0.02)
    return figure


def _bar(figure: Figure, image: AxesImage, scale: Scale, label: str, left: float, top: float) -> None:
    """A flat colour bar under its label, its room's corner that many inches from the figure's upper left."""
    width, height = figure.get_size_inches()
    zoom = style.look().zoom
    figure.text((0.05 + left) / width, 1 - (top + line_inches() / 2) / height, label, va="center_baseline")
    across = min(2.0 * zoom, width - left - 0.6 * zoom)
    axes = figure.add_axes(((0.2 * zoom + left) / width, 1 - (top + line_inches() + 0.1) / height, across / width, 0.08 / height))
    draw_colour_bar(figure.colorbar(image, cax=axes, orientation="horizontal"), scale)


def _unit(span: Span) -> str:
    """What a row or a column is."""
    return "number" if span == "numbers" else "token"


def _told(span: Span, by: str) -> str:
    if isinstance(span, tuple):
        return f"tokens {span[0]} to {span[1] - 1}"
    names = {"text": "tokens of question and response", "all": "all tokens", "numbers": f"numbers ({by} their tokens)"}
    return names.get(span, f"tokens of the {span}")


def _slots(tokens: pd.DataFrame, span: Span, what: str) -> list[Slot]:
    """The rows or columns of a span."""
    if isinstance(span, tuple):
        chosen = tokens[(tokens["position"] >= span[0]) & (tokens["position"] < span[1])]
        if chosen.empty:
            last = int(tokens["position"].to_numpy().max())
            raise InputError(f"{what} {span[0]} to {span[1]} hold no token; positions are 0 to {last}, the last of a range not included")
        return token_labels.token_slots(chosen)
    if span not in SPANS:
        raise InputError(f"unknown {what} {span!r}; known: {', '.join(SPANS)}, or a pair of positions")
    if span == "numbers":
        return token_labels.number_slots(tokens)
    regions = {"text": ["question", "response"], "all": ["template", "question", "response"]}.get(span, [span])
    return token_labels.token_slots(tokens[tokens["region"].isin(regions)])


def _model_map(example: Example, head: tuple[int, int], model: str, queries: Span, keys: Span) -> TokenMap:
    tokens = token_labels.tokens_of(example, model)
    rows, columns = _slots(tokens[tokens["is_query"].astype(bool)], queries, "queries"), _slots(tokens, keys, "keys")
    last = int(tokens["position"].to_numpy().max()) + 1
    row_of, column_of, size = np.full(last, -1), np.full(last, -1), np.ones(len(rows))
    for at, slot in enumerate(rows):
        row_of[list(slot.positions)], size[at] = at, len(slot.positions)
    for at, slot in enumerate(columns):
        column_of[list(slot.positions)] = at
    values = np.zeros((len(rows), len(columns)))
    edges = token_labels.edges_of(example, model, head)
    row, column = row_of[edges["query"].to_numpy()], column_of[edges["key"].to_numpy()]
    drawn = (row >= 0) & (column >= 0)
    np.add.at(values, (row[drawn], column[drawn]), edges["probability"].to_numpy(float)[drawn] / size[row[drawn]])
    elsewhere = 1 - float(values.sum(1).mean()) if values.size else float("nan")
    ends = np.array([max(slot.positions) for slot in rows], int)
    begins = np.array([min(slot.positions) for slot in columns], int)
    values[ends[:, None] < begins[None, :]] = np.nan
    told = "" if np.isnan(elsewhere) else f"{max(elsewhere, 0.0):.0%} elsewhere"
    return TokenMap(style.joined(token_labels.boxed(model), told), rows, columns, values)


def _difference(example: Example, maps: Sequence[TokenMap]) -> TokenMap | None:
    """The second less the first, where two models read one text."""
    if len(maps) != 2:
        return None
    lengths = {int((example.tokens["model"].astype(str) == model).sum()) for model in example.models}
    if lengths != {int(example.run.get("shared_tokens", 0))} or maps[0].values.shape != maps[1].values.shape:
        return None
    first, second = (token_labels.boxed(model) for model in example.models)
    return TokenMap(f"{second} − {first}", maps[1].rows, maps[1].columns, maps[1].values - maps[0].values)


def _signed(values: np.ndarray) -> Scale:
    """Diverging colours about 0, as far as the largest difference."""
    most = (float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 0.0) or 1.0
    return round_ticks(colour_scale(MeasureInfo("difference", "difference", "probability", -most, most, ""), values))


def _height(one: TokenMap, across: float) -> float:
    """Height of a panel, inches: cells about square, within what a page takes."""
    zoom = style.look().zoom
    if not one.values.size:
        return 1.2 * zoom
    rows, columns = len(one.rows), len(one.columns)
    return float(np.clip(across * rows / columns, 1.2 * zoom, TALLEST * zoom))


def _thinned(values: np.ndarray, most: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """Values in blocks, so that none is lost between the pixels: at most that many [row, column], each the farthest from 0 of its block."""
    sizes = tuple(-(-count // max(limit, 1)) for count, limit in zip(values.shape, most, strict=True))
    down, across = sizes
    if sizes == (1, 1):
        return values, (1, 1)
    rest = [(0, -count % size) for count, size in zip(values.shape, sizes, strict=True)]
    padded = np.pad(values, rest, constant_values=np.nan)
    blocks = padded.reshape(padded.shape[0] // down, down, padded.shape[1] // across, across).swapaxes(1, 2)
    blocks = blocks.reshape(*blocks.shape[:2], -1)
    far = np.argmax(np.where(np.isnan(blocks), -1.0, np.abs(blocks)), axis=2)
    return np.take_along_axis(blocks, far[..., None], axis=2)[..., 0], (down, across)


def _draw(axes: Axes, one: TokenMap, scale: Scale, outside: tuple[float, float], units: tuple[str, str]) -> AxesImage | None:
    """One panel; None where it has no cell. `outside` is the room left of it and below it, inches; `units` what rows and columns are."""
    at = style.look()
    width, height = style.axes_inches(axes)
    lines = style.wrapped(one.title, width, 2)
    axes.text(0, 1 + (line_inches() + 0.03) / height, lines, transform=axes.transAxes, va="bottom", linespacing=1.25)
    axes.set_facecolor(at.undefined_face)
    rows, columns = len(one.rows), len(one.columns)
    if not one.values.size:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(0.5, 0.5, "nothing to draw:\nno such tokens", transform=axes.transAxes, ha="center", va="center", linespacing=1.25)
        return None
    values, (tall, broad) = _thinned(one.values, (int(height * at.dpi), int(width * at.dpi)))
    image = axes.imshow(
        np.ma.masked_invalid(values),
        norm=scale.norm,
        cmap=scale.colours,
        aspect="auto",
        interpolation="nearest",
        extent=(-0.5, values.shape[1] * broad - 0.5, values.shape[0] * tall - 0.5, -0.5),
    )
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    token_labels.draw_labels(axes, one.rows, token_labels.chosen_labels(one.rows, height), "left")
    token_labels.draw_labels(axes, one.columns, token_labels.chosen_labels(one.columns, width), "bottom")
    left, bottom = outside
    beside = -(left - 0.03 - line_inches() / 2) / width
    axes.text(beside, 0.5, f"query {units[0]}", transform=axes.transAxes, rotation=90, ha="center", va="center", color=at.grey)
    axes.text(0.5, -(bottom - 0.05) / height, f"key {units[1]}", transform=axes.transAxes, ha="center", va="bottom", color=at.grey)
    _borders(axes, one)
    return image


def _borders(axes: Axes, one: TokenMap) -> None:
    """Lines between regions and between steps; the regions' names above the columns, the steps' numbers right of the rows."""
    at = style.look()
    width, height = style.axes_inches(axes)
    token_labels.draw_borders(axes.axhline, one.rows)
    token_labels.draw_borders(axes.axvline, one.columns)
    for region in dict.fromkeys(slot.region for slot in one.columns):
        places = [place for place, slot in enumerate(one.columns) if slot.region == region]
        begin, end = min(places), max(places) + 1
        if token_labels.inches(region) <= (end - begin) / len(one.columns) * width:
            middle = (begin + end) / 2 / len(one.columns)
            axes.text(middle, 1 + 0.02 / height, region, transform=axes.transAxes, ha="center", va="bottom", color=at.grey)
    free = 0.0
    for step in dict.fromkeys(slot.step for slot in one.rows if slot.step >= 0):
        places = [place for place, slot in enumerate(one.rows) if slot.step == step]
        middle = (min(places) + max(places) + 1) / 2 / len(one.rows) * height
        if middle - line_inches() / 2 >= free - 1e-9:
            where = 1 + 0.02 / width, 1 - middle / height
            axes.text(*where, str(step + 1), transform=axes.transAxes, va="center_baseline", color=at.grey)
            free = middle + line_inches() / 2
