"""Checks of what the distillation loss is given, each naming the argument, what was seen and what is allowed."""

from __future__ import annotations

import math

from torch import Tensor

from distill.objectives.divergences import find_divergence
from distill.records.signals import Hidden, Signal, TopK, missing_mass
from interp.checkpoints.unembedding import OutputHead
from interp.tables.errors import InputError, NonFiniteError

_MASS_TOLERANCE = 0.1
"""Log of the largest sum of probabilities: rounding to bfloat16 moves the sum by a few percent."""


def check_numbers(
    divergence: str,
    alpha: float,
    temperature: float,
    beta: float,
    teacher: Signal | None,
    topk_at_temperature: str,
    chunk_tokens: int | None,
) -> None:
    """Raise if an option of the loss is out of range.

    Raises:
        InputError: the message names the option.
    """
    find_divergence(divergence)
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha is {alpha}; it must be from 0 (only the divergence) to 1 (only the cross-entropy)")
    if not 0 < temperature < math.inf:
        raise InputError(f"temperature is {temperature}; it must be above 0 and finite")
    if not 0 <= beta <= 1:
        raise InputError(f"beta is {beta}; it must be from 0 (KL(teacher || student)) to 1 (KL(student || teacher))")
    if teacher is None and alpha != 1:
        raise InputError(f"alpha is {alpha}, but there is no teacher to compare with; give a teacher signal, or set alpha to 1")
    if topk_at_temperature not in ("refuse", "truncate"):
        raise InputError(f"topk_at_temperature is {topk_at_temperature!r}; allowed: refuse, truncate")
    if chunk_tokens is not None and chunk_tokens < 1:
        raise InputError(f"chunk_tokens is {chunk_tokens}; it must be at least 1, or None")


def check_shapes(
    hidden: Tensor, head: OutputHead, targets: Tensor, teacher: Signal | None, weights: Tensor | None, vocabulary: int | None
) -> int:
    """Return the number of ids that teacher and student share, after checking that all shapes fit.

    Raises:
        InputError: the message names the tensor, its shape and the shape that is needed.
    """
    n_tokens, size = len(hidden), len(head.weight)
    _expect("hidden", hidden, n_tokens, head.weight.shape[1])
    if head.bias is not None:
        _expect("the head's bias", head.bias, size)
    _expect("targets", targets, n_tokens)
    if weights is not None:
        _expect("weights", weights, n_tokens)
    shared = size if vocabulary is None else vocabulary
    if not 1 <= shared <= size:
        raise InputError(f"vocabulary is {shared}; it must be from 1 to {size}, the number of rows of the student's head")
    if isinstance(teacher, TopK):
        _check_topk_shapes(teacher, n_tokens, shared)
    elif teacher is not None:
        _check_full_shapes(teacher, n_tokens, size, shared, vocabulary)
    return shared


def _check_topk_shapes(teacher: TopK, n_tokens: int, shared: int) -> None:
    if teacher.ids.ndim != 2 or not 1 <= teacher.ids.shape[1] <= shared:
        raise InputError(f"the teacher's ids have shape {list(teacher.ids.shape)}; needed: [{n_tokens}, k], with k from 1 to {shared}")
    _expect("the teacher's ids", teacher.ids, n_tokens, teacher.ids.shape[1])
    _expect("the teacher's log-probabilities", teacher.log_probs, n_tokens, teacher.ids.shape[1])


def _check_full_shapes(teacher: Signal, n_tokens: int, size: int, shared: int, vocabulary: int | None) -> None:
    if isinstance(teacher, Hidden):
        _expect("the teacher's states", teacher.states, n_tokens, teacher.head.weight.shape[1])
        teacher_size = len(teacher.head.weight)
    else:
        teacher_size = teacher.log_probs.shape[-1]
        _expect("the teacher's log-probabilities", teacher.log_probs, n_tokens, teacher_size)
    if shared > teacher_size or (vocabulary is None and teacher_size != size):
        raise InputError(
            f"the student has {size} tokens, the teacher {teacher_size}, and vocabulary is {vocabulary}; "
            f"if the tokenizers are the same and only the padding differs, set vocabulary to the number of ids that they share"
        )


def _expect(name: str, tensor: Tensor, *shape: int) -> None:
    if tuple(tensor.shape) != shape:
        raise InputError(f"{name}: shape {list(tensor.shape)}; needed: {list(shape)} (tokens first, as many as hidden has)")


def check_values(hidden: Tensor, head: OutputHead, targets: Tensor, teacher: Signal | None, vocabulary: int, token: Tensor) -> None:
    """Raise if a number is not finite, an id is outside the vocabulary, or log-probabilities are not normalized.

    Args:
        hidden: the student's states.
        head: the student's output head.
        targets: next-token ids.
        teacher: the teacher's signal.
        vocabulary: number of ids that both models share.
        token: position of each row in the caller's batch, for messages.

    Raises:
        InputError: the message names the tensor and the first token.
        NonFiniteError: the student's states are not finite.
    """
    refuse_tokens(
        ~hidden.isfinite().all(-1), token, "hidden", "is not finite; look for the first layer that gives NaN or infinity", NonFiniteError
    )
    size = len(head.weight)
    refuse_tokens(
        (targets < 0) | (targets >= size),
        token,
        "targets",
        f"is outside the student's vocabulary, 0 to {size - 1}; give a token weight 0 to leave it out",
    )
    if isinstance(teacher, Hidden):
        refuse_tokens(~teacher.states.isfinite().all(-1), token, "the teacher's states", "is not finite; collect them again")
        return
    if teacher is None:
        return
    log_probs = teacher.log_probs
    refuse_tokens(
        ~log_probs.isfinite().all(-1),
        token,
        "the teacher's log-probabilities",
        "is not finite; collect them again, or replace -inf by a finite log-probability",
    )
    if isinstance(teacher, TopK):
        outside = (teacher.ids < 0) | (teacher.ids >= vocabulary)
        refuse_tokens(outside.any(-1), token, "the teacher's ids", f"is outside the shared vocabulary, 0 to {vocabulary - 1}")
        in_order = teacher.ids.sort(-1).values
        refuse_tokens((in_order[:, 1:] == in_order[:, :-1]).any(-1), token, "the teacher's ids", "repeats an id; ids must be distinct")
    refuse_tokens(
        log_probs.float().logsumexp(-1) > _MASS_TOLERANCE,
        token,
        "the teacher's log-probabilities",
        "sums to a mass above 1; give log-probabilities, not logits",
    )


def refuse_tokens(bad: Tensor, token: Tensor, name: str, problem: str, error: type[InputError] = InputError) -> None:
    """Raise if any token is bad.

    Args:
        bad: true where a token is bad, [token].
        token: position of each row in the caller's batch.
        name: the tensor.
        problem: what is wrong with the token, and what to do.
        error: class of the error.

    Raises:
        InputError: the message names the first bad token and counts all.
    """
    if bool(bad.any()):
        first = int(token[int(bad.nonzero()[0, 0])])
        raise error(f"{name}: token {first} {problem} ({int(bad.sum())} of {len(bad)} tokens)")


def refuse_temperature(teacher: TopK, vocabulary: int, temperature: float) -> None:
    """Raise because a stored top k does not give the teacher's distribution at a temperature other than 1.

    Raises:
        InputError: always; the message has the mass that is missing.
    """
    k = teacher.ids.shape[1]
    lower, upper = (float(bound.mean()) for bound in missing_mass(teacher.log_probs, vocabulary, temperature))
    raise InputError(
        f"a stored top {k} of {vocabulary} tokens cannot give temperature {temperature:g}: at that temperature, {lower:.1%} to "
        f"{upper:.1%} of the teacher's mass is outside of it (mean over {len(teacher.ids)} tokens); use hidden states, set temperature "
        f'to 1, or set topk_at_temperature="truncate", which compares only these {k} tokens'
    )
