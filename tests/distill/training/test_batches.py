"""Batches of texts, and the order in which a training reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from distill.objectives.published import published_texts
from distill.records.record import Record
from distill.sources.texts import Text, Texts
from distill.training.batches import BLANK, TextStream, collate
from tests.distill.sources.cases import aligned, record


@given(
    lengths=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 5)), min_size=1, max_size=5),
    blanks=st.integers(0, 2),
    side=st.sampled_from(["right", "left"]),
)
def test_scored_positions_are_those_of_the_unpadded_texts(lengths: list[tuple[int, int]], blanks: int, side: str) -> None:
    texts = [BLANK] * blanks
    for number, (asked, answered) in enumerate(lengths):
        ids = tuple(100 * (number + 1) + i for i in range(asked + answered - 1))
        signals = {"hidden": torch.tensor([[float(number), float(j)] for j in range(answered + 1)])}
        texts.append(
            Text(
                ids, asked - 1, tuple(range(answered)), replace(record(number), signals=signals), number, tuple(-i for i in ids), asked - 1
            )
        )
    batch = collate(texts, 0, signals=("hidden",), live=True, padding_side=side)
    assert batch["input_ids"].flatten()[batch["scored"]].tolist() == [t.ids[t.first + j] for t in texts for j in range(len(t.targets))]
    assert batch["teacher_ids"].flatten()[batch["teacher_scored"]].tolist() == [
        -i for i in batch["input_ids"].flatten()[batch["scored"]].tolist()
    ]
    assert batch["targets"].tolist() == [j for t in texts for j in range(len(t.targets))]
    assert batch["hidden"].tolist() == [[number, j] for number, (_, answered) in enumerate(lengths) for j in range(answered)]
    assert batch["attention_mask"].sum(1).tolist() == [len(t.ids) for t in texts]


def test_conditions_that_drop_other_records_share_the_order(tiny_tokenizer: Callable[..., Any]) -> None:
    texts = aligned([record(number) for number in range(8)], tiny_tokenizer())
    fewer = Texts(tuple(t for t in texts.texts if t.record and t.record.index != 2))

    def order(of: Texts, seed: int = 0) -> list[int]:
        return [t.record.index for t in TextStream(of, 2, seed, 4).stream if t.record]

    assert [i for i in order(texts) if i != 2] == order(fewer)
    assert sorted(order(texts)[:8]) == sorted(order(texts)[8:]) == list(range(8))
    assert order(texts)[:8] != order(texts)[8:]
    assert order(texts, 1) != order(texts)
    assert len(TextStream(texts, 2, 0, 4)) == 16
    assert len(TextStream(texts, 0.5, 0, 1)) == 4
    assert [t.index for t in TextStream(texts, 2, 0, 4, shuffled=False).stream] == [*range(8), *range(8)]


def test_order_does_not_depend_on_which_signals_a_question_has(tiny_tokenizer: Callable[..., Any]) -> None:
    records = [Record(i, f"What is {i}?", f"#### {i}", (1, 2, 3), (), "", "eos") for i in range(12)]
    orders = []
    for lexicographic in (False, True):
        texts = published_texts(records, tiny_tokenizer(), max_tokens=50, signals=True, lexicographic=lexicographic)
        orders.append([t.ids for t in TextStream(texts, 1, 0, 1).stream])
    assert orders[0] == orders[1]
