"""Teachers' answers and signals on disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class Record:
    """One answer of a teacher to one problem, with its signals.

    Attributes:
        index: the problem's position in its source.
        question: the problem's text.
        reference: the reference solution.
        prompt_ids: the teacher's prompt, in its tokenizer; empty where the teacher does not tell.
        response_ids: the response's tokens with the end-of-text token where the teacher ended it; empty where only text is known.
        text: the response, without end-of-text token.
        finish: "eos" (the teacher ended it) or "length" (cut).
        signals: by name, one row a scored token (see below): {} for text; topk_ids int32 and topk_log_probs float32 [token, k];
            hidden [token, hidden] in the teacher's dtype; dense_log_probs float32 [token, vocab].
            Scored tokens are the response's: row j is the distribution from which response_ids[j] was drawn (aligned objective); or, for
            the published objective, the prompt's: row i is the distribution after prompt_ids[: i + 1], and the response is empty.
    """

    index: int
    question: str
    reference: str
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    text: str
    finish: Literal["eos", "length"]
    signals: dict[str, Tensor] = field(default_factory=dict)
