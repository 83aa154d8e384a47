"""Pack the numbers of one problem for its page, so that a browser unpacks only what it shows.

Attention is in packed blocks, one for each watched head (all its stored entries) and one for each layer's other heads (their strong
entries). A probability is stored in steps of 1 / `PROBABILITY_STEPS`, rounded so that the percentage shown, with one decimal, is exactly
`percent` of the table's value (`in_steps`). A difference of two probabilities is that of the stored ones: within 0.001 percentage points of
the tables'. Values of measures are stored as float32.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pandas as pd

from figures.example.read import Example
from interp.tables.errors import InputError
from interp.tables.example import STEP_QUANTITIES
from interp.tables.schema import REGIONS

PROBABILITY_STEPS = 200_000
"""Steps of a stored probability of 1."""

STANDING_FIELDS = ("value", "mean", "t", "q")
"""Columns of `interp.tables.example.STANDING` in the page."""

PackedBlock = tuple[list[list[int]], bool, bytes]
"""(layer, head) of the heads of a block, whether their maps are complete, and the packed bytes."""


def percent(probability: float) -> str:
    """Return a share as a percentage with one decimal, rounded half up; the page's script rounds in the same way."""
    return f"{np.floor(probability * 1000 + 0.5) / 10:.1f} %"


def in_steps(probability: np.ndarray) -> np.ndarray:
    """Return probabilities in steps of 1 / `PROBABILITY_STEPS`: the nearest step of those that round to the same tenth of a percent.

    A page that shows floor(steps / `PROBABILITY_STEPS` * 1000 + 1/2) / 10 therefore shows what `percent` returns for the table's value.
    """
    p = np.asarray(probability, np.float64)
    tenth, size = np.floor(p * 1000 + 0.5), PROBABILITY_STEPS // 1000
    return np.clip(np.rint(p * PROBABILITY_STEPS), tenth * size - size // 2, tenth * size + size // 2 - 1)


def pack_edges(heads: int, tokens: int, head: np.ndarray, query: np.ndarray, key: np.ndarray, p: np.ndarray, *, whole: bool) -> bytes:
    """Pack the attention of some heads of one model.

    Row r is query r mod `tokens` of head r // `tokens`. The arrays below are little-endian; each is stored with all its lowest bytes first,
    then all its second bytes and so on, one array after the other, compressed together (zlib, level 9):

    - entries of each row, uint32 [heads * tokens];
    - gaps, uint32 [entries]: a row's first key, then each key minus the one before it;
    - probabilities in steps of 1 / `PROBABILITY_STEPS`, uint32 [entries];
    - with `whole`: what each row has beyond its entries, 1 minus their sum, in the same steps, uint32 [heads * tokens].

    Args:
        heads: number of heads in the block.
        tokens: number of tokens of the text.
        head: index of each entry's head in the block, counted from 0, [entries].
        query: position of its query, [entries].
        key: position of its key, [entries].
        p: its probability, [entries].
        whole: whether these are watched heads.

    Returns:
        The packed block.
    """
    row = head.astype(np.int64) * tokens + query
    order = np.lexsort((key, row))
    row, key, p = row[order], key[order].astype(np.int64), p[order].astype(np.float64)
    counts = np.bincount(row, minlength=heads * tokens)
    first = np.ones(len(row), bool)
    first[1:] = row[1:] != row[:-1]
    gaps = np.where(first, key, key - np.concatenate([[0], key[:-1]]))
    packed = _planes(counts, "<u4") + _planes(gaps, "<u4") + _planes(in_steps(p), "<u4")
    if whole:
        packed += _planes(in_steps((1 - np.bincount(row, p, minlength=heads * tokens)).clip(0, 1)), "<u4")
    return zlib.compress(packed, 9)


def pack_blocks(run: dict[str, Any], edges: pd.DataFrame, model: str, tokens: int) -> list[PackedBlock]:
    """Return the blocks of a model: one for each watched head, then one for each layer's other heads.

    Args:
        run: the content of run.json.
        edges: of the model.
        model: its name, for messages.
        tokens: number of tokens of its text.

    Raises:
        InputError: an edge has a head that run.json lacks, or a position outside of the text.
    """
    _head_indices(run, edges, "edges")
    for column in ("query", "key"):
        if len(edges) and not 0 <= edges[column].min() <= edges[column].max() < tokens:
            raise InputError(f"edges: {model} has {column} {edges[column].max()}, but {tokens} tokens; write the tables again")
    watched = [[int(layer), int(head)] for layer, head in run["watched"]]
    groups = [([head], True) for head in watched]
    for layer in run["layers"]:
        others = [[int(layer), head] for head in range(run["n_heads"]) if [layer, head] not in watched]
        groups += [(others, False)] if others else []
    columns = {name: edges[name].to_numpy() for name in ("layer", "head", "query", "key", "probability")}
    blocks = []
    for heads, whole in groups:
        mine = columns["layer"] == heads[0][0]
        mine &= np.isin(columns["head"], [head for _, head in heads])
        place = np.searchsorted([head for _, head in heads], columns["head"][mine])
        entries = (columns[name][mine] for name in ("query", "key", "probability"))
        blocks.append((heads, whole, pack_edges(len(heads), tokens, place, *entries, whole=whole)))
    return blocks


def pack_standing(example: Example, model: str) -> bytes:
    """Pack a model's measures and the run's: float32 [field, measure, region, head], NaN where the table has no row.

    Fields are `STANDING_FIELDS`, measures and heads are in the order of run.json (layer by layer), regions are
    `interp.tables.schema.REGIONS`. The bytes are stored as in `pack_edges`.
    """
    run, rows = example.run, rows_of(example.standing, model)
    measures = [measure["name"] for measure in run["measures"]]
    values = np.full((len(STANDING_FIELDS), len(measures), len(REGIONS), len(run["layers"]) * run["n_heads"]), np.nan)
    rows = rows.loc[rows["measure"].isin(measures)]
    place = codes(rows["measure"], measures), codes(rows["region"], REGIONS), _head_indices(run, rows, "standing")
    for number, field in enumerate(STANDING_FIELDS):
        values[number][place] = rows[field].to_numpy()
    return zlib.compress(_planes(_in_float32(values), "<f4"), 9)


def pack_steps(example: Example, model: str, steps: int) -> bytes:
    """Pack the attention of a model's steps: float32 [step, quantity, head], then the tokens of each mean, uint32 of the same shape.

    Quantities are `interp.tables.example.STEP_QUANTITIES`; what the table lacks is NaN of 0 tokens. The bytes are stored as in
    `pack_edges`.

    Raises:
        InputError: the table has a step or a head that run.json lacks.
    """
    run, rows = example.run, rows_of(example.steps, model)
    if len(rows) and rows["step"].max() >= steps:
        raise InputError(f"steps: {model} has step {rows['step'].max()}, run.json has {steps} steps; write the tables again")
    values = np.full((steps, len(STEP_QUANTITIES), len(run["layers"]) * run["n_heads"]), np.nan)
    counts = np.zeros_like(values)
    place = rows["step"].to_numpy(), codes(rows["quantity"], STEP_QUANTITIES), _head_indices(run, rows, "steps")
    values[place], counts[place] = rows["value"].to_numpy(), rows["n_queries"].to_numpy()
    return zlib.compress(_planes(_in_float32(values), "<f4") + _planes(counts, "<u4"), 9)


def rows_of(table: pd.DataFrame, model: str) -> pd.DataFrame:
    """Return the rows of one model."""
    return table.loc[table["model"].astype(str) == model]


def codes(column: pd.Series, choices: tuple[str, ...] | list[str]) -> np.ndarray:
    """Return the index of each value among the choices."""
    places = {choice: place for place, choice in enumerate(choices)}
    return np.array([places[str(value)] for value in column], dtype=np.int64)


def _planes(values: np.ndarray, dtype: str) -> bytes:
    """Return all lowest bytes, then all second bytes and so on: similar bytes next to each other compress better."""
    numbers = np.ascontiguousarray(values, dtype=dtype).reshape(-1)
    return numbers.view(np.uint8).reshape(-1, numbers.itemsize).T.tobytes()


def _in_float32(values: np.ndarray) -> np.ndarray:
    """Return the nearest float32 of those that round to the same tenth of a percent, as the page shows a share."""
    near = values.astype(np.float32)
    tenth = np.floor(values * 1000 + 0.5)
    other = np.nextafter(near, np.where(near < values, np.float32(np.inf), np.float32(-np.inf)))
    return np.where(np.floor(near.astype(np.float64) * 1000 + 0.5) == tenth, near, np.where(np.isnan(values), near, other))


def _head_indices(run: dict[str, Any], rows: pd.DataFrame, table: str) -> np.ndarray:
    """Return the index of each row's head among all heads, layer by layer."""
    places = {int(layer): place for place, layer in enumerate(run["layers"])}
    layer = rows["layer"].map(places)
    unknown = layer.isna() | (rows["head"] < 0) | (rows["head"] >= run["n_heads"])
    if unknown.any():
        first = rows.loc[unknown].iloc[0]
        raise InputError(
            f"{table}: head {first['layer']}.{first['head']} is not in run.json, which has {run['n_heads']} heads in each of the layers "
            f"{run['layers'][0]} to {run['layers'][-1]}; write the tables again"
        )
    return layer.to_numpy().astype(np.int64) * run["n_heads"] + rows["head"].to_numpy()
