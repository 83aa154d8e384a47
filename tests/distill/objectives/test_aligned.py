"""Texts of the aligned objective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from interp.tables.errors import StudyError
from interp.tokens import annotate
from tests.distill.sources.cases import END, aligned, record


@pytest.fixture
def tokenizer(tiny_tokenizer: Callable[..., Any]) -> Any:
    return tiny_tokenizer()


def test_every_scored_state_predicts_the_next_token_and_the_last_predicts_the_end(tokenizer: Any) -> None:
    text = aligned([record(0)], tokenizer).texts[0]
    whole = [*text.ids, text.targets[-1]]
    assert [whole[text.first + j + 1] for j in range(len(text.targets))] == list(text.targets)
    assert text.targets[-1] == END  # though pad and end may be one token: the mask is by position
    assert tokenizer.decode(text.targets[:-1]) == "2+3 = 5."
    assert tokenizer.decode(text.ids[: text.first + 1]).endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize("chat", [True, False])
def test_the_student_reads_the_text_of_the_head_analysis(tokenizer: Any, chat: bool) -> None:
    text = aligned([record(0)], tokenizer, chat=chat).texts[0]
    read = annotate(tokenizer, "What is 2+3?", "2+3 = 5.", chat=chat).texts[0].ids.tolist()
    assert [*text.ids, *text.targets[-1:]] == [*read, END]


def test_the_teachers_ids_are_kept_without_its_prompt(tokenizer: Any) -> None:
    odd = tuple(tokenizer(c, add_special_tokens=False)["input_ids"][0] for c in "2+3")  # not how the tokenizer would join them
    text = aligned([record(0, text="2+3", prompt_ids=(7, 8, 9), response_ids=(*odd, END))], tokenizer).texts[0]
    assert text.targets == (*odd, END)
    assert (text.teacher_ids, text.teacher_first) == ((7, 8, 9, *odd), 2)
    other = aligned([record(0, text="2+3", prompt_ids=(1,), response_ids=(*odd, END))], tokenizer).texts[0]
    assert (text.ids, text.targets) == (other.ids, other.targets)


def test_a_truncated_answer_has_no_end_and_an_empty_one_is_dropped(tokenizer: Any) -> None:
    records = [record(0), record(1, finish="length"), record(2, text=" \n"), record(3, text="wrong")]
    texts = aligned(records, tokenizer, keep=lambda r: r.text != "wrong")
    assert [t.targets[-1] == END for t in texts.texts] == [True, False]
    assert texts.counts == {"records": 4, "kept": 2, "empty": 1, "wrong": 1, "truncated": 1, "dropped_truncated": 0, "shortened": 0}
    dropped = aligned(records, tokenizer, drop_truncated=True)
    assert (dropped.counts["dropped_truncated"], dropped.counts["kept"]) == (1, 2)


def test_long_answers_are_shortened_and_counted(tokenizer: Any) -> None:
    whole = aligned([record(0, text="7" * 200)], tokenizer)
    length = len(whole.texts[0].ids) + 1
    short = aligned([record(0, text="7" * 200)], tokenizer, max_tokens=length - 3)
    assert len(short.texts[0].ids) + 1 == length - 3
    assert short.counts["shortened"] == 1
    assert short.texts[0].targets == whole.texts[0].targets[:-3]
    with pytest.raises(StudyError, match=r"problem 0.*max_tokens is 4"):
        aligned([record(0)], tokenizer, max_tokens=4)


def test_a_tokenizer_without_an_end_is_refused(tokenizer: Any) -> None:
    tokenizer.eos_token = None
    with pytest.raises(StudyError, match="end-of-text"):
        aligned([record(0)], tokenizer)
