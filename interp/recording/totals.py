# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Sums of measures over queries, per example, region, layer and head. They accumulate layer by layer and merge across batches and ranks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from torch import Tensor

from interp.inference import bootstrap_interval
from interp.measures.measure import Measure
from interp.tables.schema import REGIONS


class HeadTotals:
    """Sums of every measure, from which the tables are made.

    Attributes:
        measures: the measures, in table order.
        examples: numbers of the examples, in order of arrival.
        layers: indices of the layers, ascending.
        sums: sum over the queries of a region for which a part of a measure is defined, [part, example, region, layer, head].
        counts: number of those queries, same shape.
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
            layer: index of the layer.
            values: every part of every measure, [example, part, head, query]; NaN where undefined.
            regions: 1.0 for queries that count in a region, else 0.0, [example, region, query] float32.
        """
        example, part, head, _ = values.shape
        weights = regions.transpose(1, 2)
        flat = values.flatten(1, 2)
        sums = (flat @ weights).view(example, part, head, -1)
        counted = weights.sum(1)[:, None, None].expand_as(sums)
        # one value that is not finite makes the sum of its part so; only these parts are searched
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
        """Return the totals of both. Examples in both are added; the others are concatenated.

        Raises:
            ValueError: the two have different measures, layers or heads.
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
        """Return the value of each example and the number of queries it is based on, both [example, layer, head, measure, region].

        A value is the mean over the queries of the region for which the measure is defined; NaN if there is none.
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
        """Return the rows of the `examples` table, ordered by example, layer, head, measure and region."""
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
    """Return the rows of the `heads` table.

    `value` is the mean over examples; every example has the same weight, whatever its length. The interval is a bootstrap over examples.

    Args:
        model: name of the model.
        values: [example, layer, head, measure, region], NaN where undefined.
        counts: number of queries that each value is based on, same shape.
        layers: indices of the layers.
        measures: names of the measures.
        seed: seed of the bootstrap.
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
