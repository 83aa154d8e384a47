"""Answers are the model's own text, and are known to be truncated from the tokens of a head run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analyses.contrast.answers import written_answers
from interp.tables.heads import INPUTS
from interp.tables.schema import read
from tests.analyses.contrast.conftest import NEW, questions


def tokens(answer: list[tuple[str, str, str]], example: int = 0) -> pd.DataFrame:
    prompt = [("<s>", "template", "special"), ("How", "question", "none"), (" many?", "question", "none"), ("\n", "template", "none")]
    rows = [*prompt, *answer]
    return pd.DataFrame(rows, columns=["token", "region", "role"]).assign(example=example, position=range(len(rows)))


WORD, STOP = ("w", "response", "none"), ("</s>", "template", "special")


@pytest.mark.parametrize(
    ("answer", "truncated", "n_tokens"),
    [
        ([WORD] * 4, True, 4),
        ([WORD] * 3 + [STOP], False, 3),  # the end token was the last one that the limit allowed
        ([WORD] * 2 + [STOP], False, 2),
        ([STOP], False, 0),
        ([WORD] * 3, False, 3),  # ended by a stop token that is not a special token
        ([STOP, *[WORD] * 3], True, 3),  # a special token at the start of the answer counts against the limit
    ],
)
def test_an_answer_is_truncated_if_no_special_token_ends_it_at_the_limit(
    answer: list[tuple[str, str, str]], truncated: bool, n_tokens: int
) -> None:
    table = pd.concat([tokens([WORD, STOP]), tokens(answer, 1)], ignore_index=True)
    found: Any = written_answers(table, 4).set_index("example").loc[1]
    assert (found["truncated"], found["n_tokens"]) == (truncated, n_tokens)
    assert found["text"] == "w" * n_tokens


def test_an_answer_is_what_the_model_generates(place: Path) -> None:
    """The oracle is greedy generation by transformers, one problem at a time, decoded without special tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(place / "one")
    model: Any = AutoModelForCausalLM.from_pretrained(place / "one")
    folder = place / "first.partial" / "heads" / "one"
    answers: Any = written_answers(read(folder / "inputs.parquet", INPUTS), NEW)
    ends: list[bool] = []
    for question, row in zip(questions(), answers.to_dict("records"), strict=True):
        messages = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]
        with torch.inference_mode():
            new = model.generate(ids, max_new_tokens=NEW, do_sample=False, eos_token_id=2, pad_token_id=0)[0, ids.shape[1] :].tolist()
        assert row["text"] == tokenizer.decode(new, skip_special_tokens=True)
        assert row["n_tokens"] == sum(token not in tokenizer.all_special_ids for token in new)
        assert row["truncated"] == (new[-1] not in tokenizer.all_special_ids)
        ends.append(bool(row["truncated"]))
    assert sum(ends) > 0
