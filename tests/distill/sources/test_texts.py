from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distill.objectives.aligned import aligned_texts
from distill.objectives.published import published_texts
from distill.records.record import Record
from distill.sources.texts import Text
from distill.strategies import Strategy
from distill.training.batches import BLANK, collate
from interp.tables.errors import StudyError
from interp.tokens import annotate

CONTEXT = Strategy("student")
END = 2


def record(index: int, question: str = "What is 2+3?", text: str = "2+3 = 5.", **fields: Any) -> Record:
    return Record(
        **{
            "index": index,
            "question": question,
            "reference": "#### 5",
            "prompt_ids": (),
            "response_ids": (),
            "text": text,
            "finish": "eos",
            **fields,
        }
    )


@pytest.fixture
def tokenizer(tiny_tokenizer: Callable[..., Any]) -> Any:
    return tiny_tokenizer()


def aligned(records: list[Record], tokenizer: Any, **settings: Any) -> Any:
    return aligned_texts(records, tokenizer, CONTEXT, settings.pop("chat", True), **{"max_tokens": 500, "same_tokenizer": True, **settings})


def test_every_scored_state_predicts_the_next_token_and_the_end(tokenizer: Any) -> None:
    text = aligned([record(0)], tokenizer).texts[0]
    whole = [*text.ids, text.targets[-1]]
    assert [whole[text.first + j + 1] for j in range(len(text.targets))] == list(text.targets)
    assert text.targets[-1] == END  # though pad and end may be one token: the mask is by position
    assert tokenizer.decode(text.targets[:-1]) == "2+3 = 5."
    assert tokenizer.decode(text.ids[: text.first + 1]).endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize("chat", [True, False])
def test_the_student_reads_what_the_head_analysis_reads(tokenizer: Any, chat: bool) -> None:
    text = aligned([record(0)], tokenizer, chat=chat).texts[0]
    read = annotate(tokenizer, "What is 2+3?", "2+3 = 5.", chat=chat).texts[0].ids.tolist()
    assert [*text.ids, *text.targets[-1:]] == [*read, END]


def test_the_teachers_ids_are_kept_and_its_prompt_is_not(tokenizer: Any) -> None:
    odd = tuple(tokenizer(c, add_special_tokens=False)["input_ids"][0] for c in "2+3")  # not how the tokenizer would join them
    text = aligned([record(0, text="2+3", prompt_ids=(7, 8, 9), response_ids=(*odd, END))], tokenizer).texts[0]
    assert text.targets == (*odd, END)
    assert (text.teacher_ids, text.teacher_first) == ((7, 8, 9, *odd), 2)
    other = aligned([record(0, text="2+3", prompt_ids=(1,), response_ids=(*odd, END))], tokenizer).texts[0]
    assert (text.ids, text.targets) == (other.ids, other.targets)


def test_a_cut_answer_has_no_end_and_an_empty_one_is_dropped(tokenizer: Any) -> None:
    records = [record(0), record(1, finish="length"), record(2, text=" \n"), record(3, text="wrong")]
    texts = aligned(records, tokenizer, keep=lambda r: r.text != "wrong")
    assert [t.targets[-1] == END for t in texts.texts] == [True, False]
    assert texts.counts == {"records": 4, "kept": 2, "empty": 1, "wrong": 1, "cut": 1, "dropped_cut": 0, "shortened": 0}
    dropped = aligned(records, tokenizer, drop_cut=True)
    assert (dropped.counts["dropped_cut"], dropped.counts["kept"]) == (1, 2)


def test_long_answers_are_shortened_and_counted(tokenizer: Any) -> None:
    whole = aligned([record(0, text="7" * 200)], tokenizer)
    length = len(whole.texts[0].ids) + 1
    short = aligned([record(0, text="7" * 200)], tokenizer, max_tokens=length - 3)
    assert len(short.texts[0].ids) + 1 == length - 3
    assert short.counts["shortened"] == 1
    assert short.texts[0].targets == whole.texts[0].targets[:-3]
    with pytest.raises(StudyError, match=r"problem 0.*max_tokens is 4"):
        aligned([record(0)], tokenizer, max_tokens=4)


def test_nothing_left_says_what_was_dropped(tokenizer: Any) -> None:
    with pytest.raises(StudyError, match=r"records 2, wrong 2.*objective\.keep"):
        aligned([record(0), record(1)], tokenizer, keep=lambda _: False)


def test_a_tokenizer_without_an_end_is_refused(tokenizer: Any) -> None:
    tokenizer.eos_token = None
    with pytest.raises(StudyError, match="end-of-text"):
        aligned([record(0)], tokenizer)


def test_published_pairs_by_index(tokenizer: Any) -> None:
    """Worked by hand from the published code: question, solution and teacher cut to the shortest, all from index 0, unshifted."""
    records = [record(0, "What is 2+3? And then?", prompt_ids=tuple(range(9)))]
    text = published_texts(records, tokenizer, max_tokens=256, signals=True).texts[0]
    asked, answer = tokenizer("What is 2+3? And then?")["input_ids"], tokenizer("#### 5")["input_ids"]
    rows = min(len(asked), len(answer), 9)
    assert text == Text(tuple(asked[:rows]), 0, tuple(answer[:rows]), records[0], 0, tuple(range(rows)))
    assert len(published_texts(records, tokenizer, max_tokens=2, signals=True).texts[0].ids) == 2


def test_published_order_reads_keys_as_text(tokenizer: Any) -> None:
    records = [record(i, prompt_ids=(i, i)) for i in range(12)]
    texts = published_texts(records, tokenizer, max_tokens=256, signals=True, lexicographic=True).texts
    assert [t.record.index for t in texts if t.record] == [0, 9, 10, 11, 1, 2, 3, 4, 5, 6, 7, 8]  # Question 1, 10, 11, 12, 2, 3, ...
    assert [t.ids for t in texts] == [t.ids for t in published_texts(records, tokenizer, max_tokens=256, signals=True).texts]


@given(
    lengths=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 5)), min_size=1, max_size=5),
    blanks=st.integers(0, 2),
    side=st.sampled_from(["right", "left"]),
)
def test_scored_positions_are_those_of_the_unpadded_texts(lengths: list[tuple[int, int]], blanks: int, side: str) -> None:
    texts = [BLANK] * blanks
    for number, (asked, said) in enumerate(lengths):
        ids = tuple(100 * (number + 1) + i for i in range(asked + said - 1))
        signals = {"hidden": torch.tensor([[float(number), float(j)] for j in range(said + 1)])}
        texts.append(
            Text(ids, asked - 1, tuple(range(said)), replace(record(number), signals=signals), number, tuple(-i for i in ids), asked - 1)
        )
    batch = collate(texts, 0, signals=("hidden",), live=True, padding_side=side)
    assert batch["input_ids"].flatten()[batch["scored"]].tolist() == [t.ids[t.first + j] for t in texts for j in range(len(t.targets))]
    assert batch["teacher_ids"].flatten()[batch["teacher_scored"]].tolist() == [
        -i for i in batch["input_ids"].flatten()[batch["scored"]].tolist()
    ]
    assert batch["targets"].tolist() == [j for t in texts for j in range(len(t.targets))]
    assert batch["hidden"].tolist() == [[number, j] for number, (_, said) in enumerate(lengths) for j in range(said)]
    assert batch["attention_mask"].sum(1).tolist() == [len(t.ids) for t in texts]


def test_digest_sees_every_token(tokenizer: Any) -> None:
    one, two = (aligned([record(0, text=text)], tokenizer).digest() for text in ("5", "6"))
    assert one != two
    assert one == aligned([record(3, text="5", prompt_ids=(1, 2))], tokenizer).digest()
