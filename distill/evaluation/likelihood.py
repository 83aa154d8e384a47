"""How likely texts are under a student, and how far its distribution is from the teacher's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch

from distill.objectives.chunked import distillation_loss
from distill.records.signals import Dense, Hidden, Signal, TopK
from distill.sources.texts import Text
from distill.training.batches import collate
from interp.checkpoints.unembedding import OutputHead, hidden_states, output_head
from interp.tables.errors import StudyError


@torch.no_grad()
def score_texts(model: Any, texts: Sequence[Text], pad_id: int, *, batch_size: int, teacher_head: OutputHead | None = None) -> pd.DataFrame:
    """Return the negative log-likelihood of texts under a model, and its divergence from the teacher that wrote them.

    Args:
        model: a causal language model in evaluation mode.
        texts: texts from `distill.objectives.aligned.aligned_texts`; the divergence needs their stored signals.
        pad_id: token id for padding.
        batch_size: texts per batch.
        teacher_head: the teacher's output head, if hidden states are stored.

    Returns:
        One row per text. `tokens`: number of scored tokens. `nll`: sum of -log p(token), in nats. `kl`: sum of KL(teacher || student)
        over the tokens at T = 1, in nats; a lower bound for a top k, NaN without signals.

    Raises:
        StudyError: the model is in training mode.
        InputError: the signals do not fit the student, or numbers are not finite.
    """
    if model.training:
        raise StudyError("the model is in training mode, so dropout would change its likelihoods; call model.eval()")
    head, rows = output_head(model), []
    device = head.weight.device
    if teacher_head is not None:
        bias = None if teacher_head.bias is None else teacher_head.bias.to(device)
        teacher_head = replace(teacher_head, weight=teacher_head.weight.to(device), bias=bias)
    for at in range(0, len(texts), batch_size):
        chunk = texts[at : at + batch_size]
        batch = collate(chunk, pad_id)
        states = hidden_states(model, batch["input_ids"].to(device), batch["attention_mask"].to(device))
        states = states.reshape(-1, states.shape[-1])[batch["scored"].to(device)]
        start = 0
        for text in chunk:
            stop = start + len(text.targets)
            signal = _signal(text, teacher_head, device)
            sums = distillation_loss(
                states[start:stop],
                head,
                torch.tensor(text.targets, device=device),
                signal,
                alpha=1.0 if signal is None else 0.0,
                vocabulary=_shared_vocabulary(signal, len(head.weight)),
            )
            kl = math.nan if signal is None else float(sums.divergence)
            rows.append({"tokens": len(text.targets), "nll": float(sums.cross_entropy), "kl": kl})
            start = stop
    return pd.DataFrame(rows)


def _signal(text: Text, teacher_head: OutputHead | None, device: torch.device) -> Signal | None:
    signals = text.record.signals if text.record is not None else {}
    rows = {name: signals[name][: len(text.targets)].to(device) for name in signals}
    if "topk_ids" in rows:
        return TopK(rows["topk_ids"].long(), rows["topk_log_probs"])
    if "dense_log_probs" in rows:
        return Dense(rows["dense_log_probs"])
    if "hidden" in rows and teacher_head is not None:
        return Hidden(rows["hidden"], teacher_head)
    return None


def _shared_vocabulary(signal: Signal | None, own: int) -> int:
    """Return the number of ids that both models have; models of one family pad their matrices differently."""
    if isinstance(signal, Hidden):
        return min(len(signal.head.weight), own)
    return min(signal.log_probs.shape[1], own) if isinstance(signal, Dense) else own
