# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Sums over queries, per example, region, layer and head: added up block by block, merged across batches and ranks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from torch import Tensor

from interp.inference import bootstrap_interval
from interp.measures.measure import Measure
from interp.tables.schema import REGIONS


class HeadTotals:
    """Streaming sums of every measure, from which the tables are made.

    Attributes:
        measures: in table order.
        examples: numbers of the examples, in order of arrival.
        layers: numbers of the layers, ascending.
        sums: sum over a region's queries for which the part is defined, [part, example, region, layer, head].
        counts: how many queries those are, same shape.
    """

    def __init__(self, measures: Sequence[Measure], examples: Sequence[int], layers: Sequence[int], n_heads: int) -> None:
        self.measures = tuple(measures)
        self.examples = tuple(examples)
        self.layers = tuple(layers)
        shape = (sum(m.parts for m in measures), len(examples), len(REGIONS), len(layers), n_heads)
        self.sums = np.zeros(shape, np.float64)
        self.counts = np.zeros(shape, np.int64)

    def update(self, layer: int, values: Tensor, regions: Tensor) -> None:
        """Add some queries of one layer.

        Args:
            layer: its number.
            values: every part of every measure, [example, part, head, query]; NaN where undefined.
            regions: 1 where a query counts in a region, [example, region, query], float32.
        """
        example, part, head, _ = values.shape
        weights = regions.transpose(1, 2)
        flat = values.flatten(1, 2)
        sums = (flat @ weights).view(example, part, head, -1)
        counted = weights.sum(1)[:, None, None].expand_as(sums)
        # a value that is not finite makes its part's sums NaN: only these parts are looked through
        undefined = (~sums.isfinite()).any(3).any(2).any(0).nonzero()[:, 0]
        if len(undefined):
            defined = values[:, undefined].isfinite()
            chosen = values[:, undefined].where(defined, 0.0)
            sums[:, undefined] = (chosen.flatten(1, 2) @ weights).view(example, len(undefined), head, -1)
            counted = counted.clone()
            counted[:, undefined] = (defined.float().flatten(1, 2) @ weights).view(example, len(undefined), head, -1)
        at = self.layers.index(layer)
        for total, added in ((self.sums, sums), (self.counts, counted)):
            rows = added.permute(1, 0, 3, 2).cpu().double().numpy()
            total[:, :, :, at] += rows.astype(total.dtype)

    def merge(self, other: HeadTotals) -> HeadTotals:
        """Totals of both; examples that both hold are added up, others follow one another.

        Raises:
            ValueError: the two are of different measures, layers or heads.
        """
        mine, theirs = [m.info.name for m in self.measures], [m.info.name for m in other.measures]
        if (mine, self.layers, self.sums.shape[-1]) != (theirs, other.layers, other.sums.shape[-1]):
            raise ValueError(
                f"totals differ: measures {mine} / {theirs}, layers {self.layers} / {other.layers}, "
                f"heads {self.sums.shape[-1]} / {other.sums.shape[-1]}"
            )
        examples = [*self.examples, *(e for e in other.examples if e not in self.examples)]
        merged = HeadTotals(self.measures, examples, self.layers, self.sums.shape[-1])
        for part in (self, other):
            places = [examples.index(e) for e in part.examples]
            merged.sums[:, places] += part.sums
            merged.counts[:, places] += part.counts
        return merged

    def values(self) -> tuple[np.ndarray, np.ndarray]:
        """Each example's values and the number of queries behind them, both [example, layer, head, measure, region].

        A value is the mean over the region's queries for which the measure is defined, NaN where there is none.
        """
        with np.errstate(invalid="ignore"):
            means = self.sums / self.counts
        values, counts, at = [], [], 0
        for measure in self.measures:
            parts = means[at : at + measure.parts]
            value = parts[0] if measure.combine is None else measure.combine(parts)
            values.append(value)
            counts.append(np.where(np.isfinite(value), self.counts[at], 0))
            at += measure.parts
        # [measure, example, region, layer, head] -> [example, layer, head, measure, region]
        order = (1, 3, 4, 0, 2)
        return np.stack(values).transpose(order), np.stack(counts).transpose(order)

    def examples_table(self, model: str) -> pd.DataFrame:
        """Rows of the `examples` table, ordered by example, layer, head, measure, region."""
        values, counts = self.values()
        order = np.argsort(self.examples)
        n_heads = values.shape[2]
        names = [m.info.name for m in self.measures]
        index = pd.MultiIndex.from_product(
            [[self.examples[i] for i in order], self.layers, range(n_heads), names, REGIONS],
            names=["example", "layer", "head", "measure", "region"],
        )
        frame = index.to_frame(index=False)
        frame.insert(0, "model", model)
        frame["value"] = values[order].ravel()
        frame["n_queries"] = counts[order].ravel()
        return frame


def heads_table(
    model: str,
    values: np.ndarray,
    counts: np.ndarray,
    layers: Sequence[int],
    measures: Sequence[str],
    seed: int,
) -> pd.DataFrame:
    """Rows of the `heads` table from all examples' values.

    `value` is the mean over examples, each example counting once whatever its length; the interval is a bootstrap over examples.

    Args:
        model: its name.
        values: [example, layer, head, measure, region], NaN where undefined.
        counts: queries behind each value, same shape.
        layers: numbers of the layers.
        measures: names.
        seed: of the bootstrap.
    """
    n_examples, _, n_heads, _, _ = values.shape
    flat = values.reshape(n_examples, -1)
    mean, low, high = bootstrap_interval(flat, seed)
    index = pd.MultiIndex.from_product([layers, range(n_heads), measures, REGIONS], names=["layer", "head", "measure", "region"])
    frame = index.to_frame(index=False)
    frame.insert(0, "model", model)
    frame["value"], frame["ci_low"], frame["ci_high"] = mean, low, high
    frame["n_examples"] = np.isfinite(flat).sum(0)
    frame["n_queries"] = counts.reshape(n_examples, -1).sum(0)
    return frame
