"""Whether an answer was cut, from the tokens of a run; the tests of `analyses.contrast.run` compare the text with transformers' own."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from analyses.contrast.answers import written_answers


def tokens(answer: list[tuple[str, str, str]], example: int = 0) -> pd.DataFrame:
    prompt = [("<s>", "template", "special"), ("How", "question", "none"), (" many?", "question", "none"), ("\n", "template", "none")]
    rows = [*prompt, *answer]
    return pd.DataFrame(rows, columns=["token", "region", "role"]).assign(example=example, position=range(len(rows)))


WORD, STOP = ("w", "response", "none"), ("</s>", "template", "special")


@pytest.mark.parametrize(
    ("answer", "cut", "n_tokens"),
    [
        ([WORD] * 4, True, 4),
        ([WORD] * 3 + [STOP], False, 3),  # the stop was the last token that the limit allowed
        ([WORD] * 2 + [STOP], False, 2),
        ([STOP], False, 0),
        ([WORD] * 3, False, 3),  # ended by a stop token that is no special one
        ([STOP, *[WORD] * 3], True, 3),  # a special token at the answer's beginning counts against the limit
    ],
)
def test_an_answer_is_cut_where_nothing_ended_it(answer: list[tuple[str, str, str]], cut: bool, n_tokens: int) -> None:
    table = pd.concat([tokens([WORD, STOP]), tokens(answer, 1)], ignore_index=True)
    found: Any = written_answers(table, 4).set_index("example").loc[1]
    assert (found["truncated"], found["n_tokens"]) == (cut, n_tokens)
    assert found["text"] == "w" * n_tokens
