from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from distill.evaluation.likelihood import score_texts
from distill.objectives import chunked as losses
from distill.objectives.aligned import aligned_texts
from distill.records.record import Record
from distill.sources.texts import Text
from distill.strategies import Strategy
from interp.checkpoints.opening import open_checkpoint
from interp.checkpoints.unembedding import OutputHead, hidden_states, output_head
from interp.tables.errors import StudyError

CONTEXT = Strategy("student", "Give the number.", "after")


@pytest.fixture(scope="module")
def student(checkpoint: Path) -> Any:
    return open_checkpoint(checkpoint, device="cpu")


ANSWERS = ("3*4 = 12", "15 x 2 = $30 and so on for a while", "100", "24 are left.\n#### 24")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, save_checkpoint: Callable[..., Path]) -> Any:
    """A wider model with the student's tokenizer and more rows in its embedding matrix."""
    settings = {"hidden_size": 48, "vocab_size": 416, "seed": 7}
    return open_checkpoint(save_checkpoint(tmp_path_factory.mktemp("teacher") / "wide", **settings), device="cpu")


@pytest.fixture(scope="module")
def records(teacher: Any) -> list[Record]:
    """Answers with the teacher's hidden states, after a prompt that the student never sees."""
    made = []
    for number, text in enumerate(ANSWERS):
        given = Strategy("told", "Be clear.").encode(teacher.tokenizer, f"What is {number}?", True)
        response = [*teacher.tokenizer(text, add_special_tokens=False)["input_ids"], teacher.tokenizer.eos_token_id]
        ids = torch.tensor([[*given, *response]])
        with torch.no_grad():
            states = hidden_states(teacher.model, ids, torch.ones_like(ids))[0, len(given) - 1 : -1]
        made.append(Record(number, f"What is {number}?", f"#### {number}", tuple(given), tuple(response), text, "eos", {"hidden": states}))
    return made


def texts_of(records: Sequence[Record], tokenizer: Any) -> tuple[Text, ...]:
    return aligned_texts(records, tokenizer, CONTEXT, True, max_tokens=500, same_tokenizer=True).texts


def dense(model: Any, text: Text) -> torch.Tensor:
    """Oracle: the student's log-probabilities at the scored positions, in float64, from the full logits of one text."""
    whole = copy.deepcopy(model).double()
    with torch.no_grad():
        logits = whole(input_ids=torch.tensor([text.ids])).logits[0]
    return torch.log_softmax(logits[text.first : text.first + len(text.targets)], -1)


def kl(log_p: torch.Tensor, log_q: torch.Tensor) -> float:
    return float((log_p.exp() * (log_p - log_q)).sum())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_likelihood_matches_full_logits_for_any_batch_size(
    tiny_model: Callable[..., Any], tiny_tokenizer: Callable[..., Any], records: list[Record], family: str
) -> None:
    model = tiny_model(family, vocab_size=400)
    texts = texts_of([replace(r, signals={}) for r in records], tiny_tokenizer())
    expected = []
    for text in texts:
        log_q = dense(model, text)
        expected.append(-float(log_q.gather(1, torch.tensor(text.targets)[:, None]).sum()))
    for batch_size in (1, 3, 4):
        scores = score_texts(model, texts, 0, batch_size=batch_size)
        assert scores["nll"].tolist() == pytest.approx(expected, rel=1e-4)
        assert scores["tokens"].tolist() == [len(text.targets) for text in texts]
        assert scores["kl"].isna().all()
    assert score_texts(model, texts, 5, batch_size=4)["nll"].tolist() == pytest.approx(expected, rel=1e-4)


def test_chunk_size_does_not_change_scores(student: Any, records: list[Record], teacher: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, head = texts_of(records, student.tokenizer), output_head(teacher.model)
    whole = score_texts(student.model, texts, 0, batch_size=4, teacher_head=head)
    monkeypatch.setattr(losses, "_CHUNK_BYTES", 3 * 400 * 4)
    seen: list[int] = []
    product = losses.head_product
    monkeypatch.setattr(losses, "head_product", lambda head, hidden: seen.append(len(hidden)) or product(head, hidden))
    pd.testing.assert_frame_equal(whole, score_texts(student.model, texts, 0, batch_size=4, teacher_head=head), rtol=1e-4)
    assert max(seen) == 3


def test_divergence_from_hidden_states_matches_full_logits(student: Any, records: list[Record], teacher: Any) -> None:
    """KL(teacher || student), not the reverse, over the ids that both have, with both distributions normalized over them."""
    texts = texts_of(records, student.tokenizer)
    scores = score_texts(student.model, texts, 0, batch_size=3, teacher_head=output_head(teacher.model))
    weight = output_head(teacher.model).weight.detach().double()
    forward, reverse = [], []
    for text, r in zip(texts, records, strict=True):
        log_p = torch.log_softmax((r.signals["hidden"].double() @ weight.T)[:, :400], -1)
        forward.append(kl(log_p, dense(student.model, text)))
        reverse.append(kl(dense(student.model, text), log_p))
    assert scores["kl"].tolist() == pytest.approx(forward, rel=1e-4)
    assert scores["kl"].tolist() != pytest.approx(reverse, rel=1e-3)
    assert scores["nll"].tolist() == pytest.approx(score_texts(student.model, texts, 0, batch_size=1)["nll"].tolist(), rel=1e-4)


def test_signals_agree_and_a_top_k_is_a_lower_bound(student: Any, records: list[Record], teacher: Any) -> None:
    head = OutputHead(output_head(teacher.model).weight.detach()[:400])
    whole = [torch.log_softmax(head.logits(r.signals["hidden"]), -1) for r in records]

    def measured(signals: list[dict[str, torch.Tensor]]) -> np.ndarray:
        made = [replace(r, signals=s) for r, s in zip(records, signals, strict=True)]
        return score_texts(student.model, texts_of(made, student.tokenizer), 0, batch_size=4)["kl"].to_numpy()

    def top(k: int) -> list[dict[str, torch.Tensor]]:
        best = [log_p.topk(k) for log_p in whole]
        return [{"topk_ids": b.indices.int(), "topk_log_probs": b.values} for b in best]

    exact = measured([{"dense_log_probs": log_p} for log_p in whole])
    assert measured(top(400)) == pytest.approx(exact, rel=1e-4)
    few, more = measured(top(4)), measured(top(100))
    assert (few >= 0).all()
    assert (few < more).all()
    assert (more < exact).all()
    padded = [{"dense_log_probs": torch.cat([log_p, torch.full((len(log_p), 16), -30.0)], 1)} for log_p in whole]
    assert measured(padded) == pytest.approx(exact, rel=1e-4)


def test_divergence_from_itself_is_zero(student: Any, records: list[Record]) -> None:
    """The student's own states after its own prompt, used as a teacher's."""
    records_of_self = []
    for text, r in zip(texts_of(records, student.tokenizer), records, strict=True):
        ids = torch.tensor([text.ids])
        with torch.no_grad():
            states = hidden_states(student.model, ids, torch.ones_like(ids))[0, text.first :]
        records_of_self.append(replace(r, signals={"hidden": states}))
    own = output_head(student.model)
    scores = score_texts(student.model, texts_of(records_of_self, student.tokenizer), 0, batch_size=2, teacher_head=own)
    assert scores["kl"].tolist() == pytest.approx([0.0] * len(records_of_self), abs=1e-4)


def test_model_in_training_mode_is_refused(student: Any, records: list[Record]) -> None:
    model = copy.deepcopy(student.model).train()
    with pytest.raises(StudyError, match=r"training mode.*model.eval"):
        score_texts(model, texts_of(records, student.tokenizer), 0, batch_size=2)
