"""The attention of one head on one problem, token by token: queries down, keys across, one panel per model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from figures.drawing.colors import Scale, color_scale, draw_color_bar, round_ticks
from figures.drawing.layout import axes_inches, equal_panels, titles_inches
from figures.drawing.style import active_style, paper_style
from figures.drawing.text import joined, line_inches, wrapped
from figures.example.read import Example
from figures.example.token_labels import (
    Slot,
    chosen_labels,
    draw_borders,
    draw_labels,
    draw_role_legend,
    label_room,
    labels_left_out,
    left_out_note,
    number_slots,
    role_legend_room,
    token_slots,
)
from figures.example.tokens import MARKED_ROLES, boxed, edges_of, printed_inches, problem_text, require_watched, tokens_of
from interp.tables.errors import InputError
from interp.tables.schema import MeasureInfo

_ATTENTION = MeasureInfo("attention", "attention", "probability", 0.0, None, "p")
"""What a cell shows; the upper end of the color scale is the highest probability drawn."""

_SPANS = ("question", "response", "text", "all", "numbers")
"""Tokens by name: of the question, of the response, of both, all including the template, and numbers as units."""

_NARROWEST = 1.25
"""Width of the narrowest panel, in inches of a paper."""

_LABELED_BAR_ROOM = 0.42
"""Height of a color bar with its label above and its ticks below, in inches of a paper."""

_TALLEST = 3.4
"""Height of the tallest panel, in inches of a paper."""

Span = str | tuple[int, int]


@dataclass(frozen=True)
class TokenMap:
    """The cells of one panel.

    Attributes:
        title: of the panel.
        rows: queries.
        columns: keys.
        values: probability [query, key]: mean over a row's tokens of the sum over a column's; NaN where all keys are later tokens.
    """

    title: str
    rows: list[Slot]
    columns: list[Slot]
    values: np.ndarray


@dataclass(frozen=True)
class _Layout:
    """Sizes of the panels, in inches.

    Attributes:
        columns: panels side by side.
        across: width of a panel.
        margins: room left, right, above and below a panel.
        legend: height of the roles' legend.
        bars: height of the color bars.
        bars_beside: color bars side by side.
    """

    columns: int
    across: float
    margins: tuple[float, float, float, float]
    legend: float
    bars: float
    bars_beside: int


@paper_style()
def token_map(example: Example, head: tuple[int, int], queries: Span = "response", keys: Span = "text") -> Figure:
    """Draw the attention map of one head, one panel per model on one color scale; for two models on one text also their difference.

    Every token has a label where there is room, otherwise only numbers (`figures.example.token_labels.chosen_labels`); the subtitle states
    how many numbers have no label. Where cells are smaller than the PNG's pixels, a pixel shows the value farthest from 0 of its tokens.
    Solid lines separate question and response, dotted ones the response's steps; steps are numbered from 1 on the right. The panel's title
    has the share of attention on keys that are not drawn, mostly the template's first token; it includes probabilities below 0.05 %, which
    the table leaves out.

    Args:
        example: as `figures.example.read.read_example` returns it.
        head: (layer, head) of a watched head.
        queries: rows: "question", "response", "text" (both), "all", "numbers", or the first position and the one after the last. "numbers"
            has a row per number of question and response, the mean over its tokens.
        keys: columns, in the same form; the column of a number is the sum over its tokens.

    Raises:
        InputError: the head was not watched, a span is unknown, or a range of positions has no tokens.
    """
    require_watched(example, head)
    maps = [_model_map(example, head, model, queries, keys) for model in example.models]
    difference = _difference(example, maps)
    shown = [*maps, *([difference] if difference else [])]
    scales = [_attention_scale(maps), *([_signed_scale(difference.values)] if difference else [])]
    slots = [slot for one in shown for slot in (*one.rows, *one.columns)]
    roles = [role for role in MARKED_ROLES if any(slot.role == role for slot in slots)]
    title = f"Attention of head {head[1]} in layer {head[0]} (probability)"
    note = joined(
        problem_text(example),
        f"rows: {_span_text(queries, 'mean over')}",
        f"columns: {_span_text(keys, 'sum over')}",
        "gray: later tokens",
        "elsewhere: share of attention on keys not drawn",
        "dotted: steps, numbered on the right" if any(slot.step >= 0 for slot in slots) else "",
    )
    style = active_style()
    width = style.column("two")
    layout = _layout(shown, len(scales), roles, width)
    subtitle, down = _settled_subtitle(title, note, shown, layout, width)
    left, right, above, bottom = (room / style.zoom for room in layout.margins)
    figure, every = equal_panels(
        title,
        subtitle,
        len(shown),
        layout.columns,
        panel=(layout.across, down / style.zoom),
        margins=(left, right, above, bottom),
        legend_room=(layout.legend + layout.bars) / style.zoom,
        width=width,
    )
    images: list[AxesImage | None] = [None, None]
    for axes, one in zip(every, shown, strict=True):
        which = int(one is difference)
        outside = layout.margins[0], layout.margins[3]
        images[which] = _draw_panel(axes, one, scales[which], outside, (_unit(queries), _unit(keys))) or images[which]
    top = titles_inches(width, title, subtitle)
    _draw_bars(figure, images, scales, layout, top)
    draw_role_legend(figure, roles, top + layout.bars + 0.02)
    return figure


def _layout(shown: Sequence[TokenMap], scales: int, roles: Sequence[str], width: float) -> _Layout:
    style = active_style()
    left = max(label_room(one.rows, _TALLEST * style.zoom) for one in shown) + line_inches() + 0.04
    right = 0.16 * style.zoom
    columns = max(1, min(len(shown), int(width / (left + _NARROWEST * style.zoom + right))))
    across = width / columns - left - right
    bottom = max(label_room(one.columns, across) for one in shown) + line_inches() + 0.08
    bars_beside = 2 if width >= 2 * 2.6 * style.zoom else 1
    return _Layout(
        columns,
        across - 1e-6,  # so that this many panels fit in spite of rounding
        (left, right, 3 * line_inches() + 0.1, bottom),
        role_legend_room(roles, width),
        -(-scales // bars_beside) * _LABELED_BAR_ROOM * style.zoom,
        bars_beside,
    )


def _settled_subtitle(title: str, note: str, shown: Sequence[TokenMap], layout: _Layout, width: float) -> tuple[str, float]:
    """Return the subtitle with the number of labels left out, and the height of a panel in inches.

    That note can take a line of room, and with it labels; more than one further round is rarely needed.
    """
    subtitle, down = note, 0.0
    for _ in range(4):
        down = max(_panel_height(one, layout.across) for one in shown)
        if layout.columns == len(shown):
            room = titles_inches(width, title, subtitle) + layout.legend + layout.bars + layout.margins[2] + layout.margins[3]
            down = active_style().height(down, room, 1.2)
        without = sum(labels_left_out(one.rows, down) + labels_left_out(one.columns, layout.across) for one in shown)
        before, subtitle = subtitle, joined(note, left_out_note(without))
        if subtitle == before:
            break
    return subtitle, down


def _draw_bars(figure: Figure, images: Sequence[AxesImage | None], scales: Sequence[Scale], layout: _Layout, top: float) -> None:
    """Draw the color bars of attention and of its difference, each below its label, `top` inches below the figure's upper edge."""
    width, height = figure.get_size_inches()
    zoom = active_style().zoom
    for place, (image, scale, name) in enumerate(zip(images, scales, ("attention", "difference"), strict=False)):
        if image is None:
            continue
        curve = "" if scale.curve == "linear" else f", {scale.curve} color scale"
        row, column = divmod(place, layout.bars_beside)
        left, upper = column * width / layout.bars_beside, top + row * _LABELED_BAR_ROOM * zoom
        label = f"{name} (probability{curve})"
        figure.text((0.05 + left) / width, 1 - (upper + line_inches() / 2) / height, label, va="center_baseline")
        across = min(2.0 * zoom, width - left - 0.6 * zoom)
        axes = figure.add_axes(((0.2 * zoom + left) / width, 1 - (upper + line_inches() + 0.1) / height, across / width, 0.08 / height))
        draw_color_bar(figure.colorbar(image, cax=axes, orientation="horizontal"), scale)


def _unit(span: Span) -> str:
    """Return what a row or a column is."""
    return "number" if span == "numbers" else "token"


def _span_text(span: Span, by: str) -> str:
    if isinstance(span, tuple):
        return f"tokens {span[0]} to {span[1] - 1}"
    names = {"text": "tokens of question and response", "all": "all tokens", "numbers": f"numbers ({by} their tokens)"}
    return names.get(span, f"tokens of the {span}")


def _span_slots(tokens: pd.DataFrame, span: Span, what: str) -> list[Slot]:
    """Return the rows or columns of a span."""
    if isinstance(span, tuple):
        chosen = tokens[(tokens["position"] >= span[0]) & (tokens["position"] < span[1])]
        if chosen.empty:
            last = int(tokens["position"].to_numpy().max())
            raise InputError(f"{what} {span[0]} to {span[1]} have no token; positions are 0 to {last}, the last of a range not included")
        return token_slots(chosen)
    if span not in _SPANS:
        raise InputError(f"unknown {what} {span!r}; known: {', '.join(_SPANS)}, or a pair of positions")
    if span == "numbers":
        return number_slots(tokens)
    regions = {"text": ["question", "response"], "all": ["template", "question", "response"]}.get(span, [span])
    return token_slots(tokens[tokens["region"].isin(regions)])


def _model_map(example: Example, head: tuple[int, int], model: str, queries: Span, keys: Span) -> TokenMap:
    tokens = tokens_of(example, model)
    rows = _span_slots(tokens[tokens["is_query"].astype(bool)], queries, "queries")
    columns = _span_slots(tokens, keys, "keys")
    count = int(tokens["position"].to_numpy().max()) + 1
    row_of, column_of, size = np.full(count, -1), np.full(count, -1), np.ones(len(rows))
    for index, slot in enumerate(rows):
        row_of[list(slot.positions)], size[index] = index, len(slot.positions)
    for index, slot in enumerate(columns):
        column_of[list(slot.positions)] = index
    values = np.zeros((len(rows), len(columns)))
    edges = edges_of(example, model, head)
    row, column = row_of[edges["query"].to_numpy()], column_of[edges["key"].to_numpy()]
    drawn = (row >= 0) & (column >= 0)
    np.add.at(values, (row[drawn], column[drawn]), edges["probability"].to_numpy(float)[drawn] / size[row[drawn]])
    elsewhere = 1 - float(values.sum(1).mean()) if values.size else float("nan")
    ends = np.array([max(slot.positions) for slot in rows], int)
    starts = np.array([min(slot.positions) for slot in columns], int)
    values[ends[:, None] < starts[None, :]] = np.nan
    share = "" if np.isnan(elsewhere) else f"{max(elsewhere, 0.0):.0%} elsewhere"
    return TokenMap(joined(boxed(model), share), rows, columns, values)


def _difference(example: Example, maps: Sequence[TokenMap]) -> TokenMap | None:
    """Return the second map minus the first, where two models read one text."""
    if len(maps) != 2:
        return None
    lengths = {int((example.tokens["model"].astype(str) == model).sum()) for model in example.models}
    if lengths != {int(example.run.get("shared_tokens", 0))} or maps[0].values.shape != maps[1].values.shape:
        return None
    first, second = (boxed(model) for model in example.models)
    return TokenMap(f"{second} − {first}", maps[1].rows, maps[1].columns, maps[1].values - maps[0].values)


def _attention_scale(maps: Sequence[TokenMap]) -> Scale:
    high = max((float(np.nanmax(one.values)) for one in maps if np.isfinite(one.values).any()), default=0.0) or 1.0
    return color_scale(_ATTENTION, np.array([0.0, high]))


def _signed_scale(values: np.ndarray) -> Scale:
    """Return diverging colors around 0, up to the largest difference."""
    most = (float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 0.0) or 1.0
    return round_ticks(color_scale(MeasureInfo("difference", "difference", "probability", -most, most, ""), values))


def _panel_height(one: TokenMap, across: float) -> float:
    """Return the height of a panel whose cells are about square, within what a page can hold, in inches."""
    zoom = active_style().zoom
    if not one.values.size:
        return 1.2 * zoom
    rows, columns = len(one.rows), len(one.columns)
    return float(np.clip(across * rows / columns, 1.2 * zoom, _TALLEST * zoom))


def _thinned(values: np.ndarray, most: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """Reduce values to at most that many [row, column], so that no value is lost between pixels; return the size of a block too.

    Each reduced value is the one of its block that is farthest from 0.
    """
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


def _draw_panel(axes: Axes, one: TokenMap, scale: Scale, outside: tuple[float, float], units: tuple[str, str]) -> AxesImage | None:
    """Draw one panel, and return its image; None where it has no cell.

    Args:
        axes: of the panel.
        one: the cells.
        scale: of the colors.
        outside: room left of the axes and below them, in inches.
        units: what rows and columns are.
    """
    style = active_style()
    width, height = axes_inches(axes)
    title = wrapped(one.title, width, 2)
    axes.text(0, 1 + (line_inches() + 0.03) / height, title, transform=axes.transAxes, va="bottom", linespacing=1.25)
    axes.set_facecolor(style.undefined_face)
    rows, columns = len(one.rows), len(one.columns)
    if not one.values.size:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(0.5, 0.5, "nothing to draw:\nno such tokens", transform=axes.transAxes, ha="center", va="center", linespacing=1.25)
        return None
    values, (tall, broad) = _thinned(one.values, (int(height * style.dpi), int(width * style.dpi)))
    image = axes.imshow(
        np.ma.masked_invalid(values),
        norm=scale.norm,
        cmap=scale.colors,
        aspect="auto",
        interpolation="nearest",
        extent=(-0.5, values.shape[1] * broad - 0.5, values.shape[0] * tall - 0.5, -0.5),
    )
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    draw_labels(axes, one.rows, chosen_labels(one.rows, height), "left")
    draw_labels(axes, one.columns, chosen_labels(one.columns, width), "bottom")
    left, bottom = outside
    x = -(left - 0.03 - line_inches() / 2) / width
    axes.text(x, 0.5, f"query {units[0]}", transform=axes.transAxes, rotation=90, ha="center", va="center", color=style.gray)
    axes.text(0.5, -(bottom - 0.05) / height, f"key {units[1]}", transform=axes.transAxes, ha="center", va="bottom", color=style.gray)
    _draw_regions_and_steps(axes, one)
    return image


def _draw_regions_and_steps(axes: Axes, one: TokenMap) -> None:
    """Draw borders, the regions' names above the columns, and the steps' numbers right of the rows."""
    gray = active_style().gray
    width, height = axes_inches(axes)
    draw_borders(axes.axhline, one.rows)
    draw_borders(axes.axvline, one.columns)
    for region in dict.fromkeys(slot.region for slot in one.columns):
        start, end = _extent(one.columns, lambda slot, region=region: slot.region == region)
        if printed_inches(region) <= (end - start) * width:
            axes.text((start + end) / 2, 1 + 0.02 / height, region, transform=axes.transAxes, ha="center", va="bottom", color=gray)
    free = 0.0
    for step in dict.fromkeys(slot.step for slot in one.rows if slot.step >= 0):
        middle = sum(_extent(one.rows, lambda slot, step=step: slot.step == step)) / 2 * height
        if middle - line_inches() / 2 >= free - 1e-9:
            where = 1 + 0.02 / width, 1 - middle / height
            axes.text(*where, str(step + 1), transform=axes.transAxes, va="center_baseline", color=gray)
            free = middle + line_inches() / 2


def _extent(slots: Sequence[Slot], chosen: Callable[[Slot], bool]) -> tuple[float, float]:
    """Return start and end of the chosen slots as fractions of the axis."""
    places = [place for place, slot in enumerate(slots) if chosen(slot)]
    return min(places) / len(slots), (max(places) + 1) / len(slots)
