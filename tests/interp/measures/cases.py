"""Float64 attention maps, texts worked by hand, and a measure that reads probabilities, which the tests of measures share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from interp.measures.measure import Measure, ProbabilityBlock
from interp.tables.schema import ROLES, TOKEN_REGIONS, MeasureInfo
from interp.tokens import AnnotatedText


@contextmanager
def softmax_in_its_own_dtype() -> Iterator[None]:
    """Transformers' eager attention computes softmax in float32 even where the model is float64."""
    original = torch.nn.functional.softmax
    torch.nn.functional.softmax = lambda x, dim=None, dtype=None: original(x, dim=dim)
    try:
        yield
    finally:
        torch.nn.functional.softmax = original


def attention_maps(model: Any, ids: np.ndarray) -> list[np.ndarray]:
    """Eager attention of a float64 model over one text that is not padded, [head, query, key] a layer."""
    with torch.no_grad(), softmax_in_its_own_dtype():
        maps = model(torch.from_numpy(ids)[None], output_attentions=True).attentions
    assert all(m.dtype == torch.float64 for m in maps)
    return [m[0].numpy() for m in maps]


def random_annotated(ids: Sequence[int], roles: Sequence[str] | None = None, example: int = 0) -> AnnotatedText:
    codes = np.array([ROLES.index(role) for role in roles] if roles else [0] * len(ids), np.uint8)
    regions = np.full(len(ids), TOKEN_REGIONS.index("response"), np.uint8)
    offsets = np.zeros((len(ids), 2), np.int64)
    return AnnotatedText(example, "", np.asarray(ids), offsets, regions, codes, np.ones(len(ids), bool))


def top_two(block: ProbabilityBlock) -> torch.Tensor:
    return block.probabilities.topk(2, -1).values.sum(-1) if block.probabilities.shape[-1] > 1 else block.probabilities[..., 0]


TOP_TWO = Measure(
    MeasureInfo("top_two", "Two largest", "probability", 0, 1, "sum of the two largest p_ij"), top_two, frozenset({"probabilities"})
)
