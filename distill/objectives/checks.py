"""TODO_DOC distill/objectives/checks.py."""

from __future__ import annotations

import math

from torch import Tensor

from distill.objectives.divergences import LOSSES
from distill.records.signals import Hidden, Signal, TopK, missing_mass
from interp.checkpoints.unembedding import OutputHead
from interp.tables.errors import InputError, NonFiniteError

# --- checks -----------------------------------------------------------------------------------------------------------


def check_numbers(
    divergence: str,
    alpha: float,
    temperature: float,
    beta: float,
    teacher: Signal | None,
    topk_at_temperature: str,
    chunk_tokens: int | None,
) -> None:
    if divergence not in LOSSES:
        raise InputError(f"unknown divergence {divergence!r}; known: {', '.join(LOSSES)}")
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha is {alpha}; it must be from 0 (divergence alone) to 1 (cross-entropy alone)")
    if not 0 < temperature < math.inf:
        raise InputError(f"temperature is {temperature}; it must be above 0 and finite")
    if not 0 <= beta <= 1:
        raise InputError(f"beta is {beta}; it must be from 0 (KL(teacher || student)) to 1 (KL(student || teacher))")
    if teacher is None and alpha != 1:
        raise InputError(f"alpha is {alpha}, but there is no teacher to diverge from; give its signal, or set alpha to 1")
    if topk_at_temperature not in ("refuse", "truncate"):
        raise InputError(f"topk_at_temperature is {topk_at_temperature!r}; allowed: refuse, truncate")
    if chunk_tokens is not None and chunk_tokens < 1:
        raise InputError(f"chunk_tokens is {chunk_tokens}; it must be at least 1, or left out")


def check_shapes(
    hidden: Tensor, head: OutputHead, targets: Tensor, teacher: Signal | None, weights: Tensor | None, vocabulary: int | None
) -> int:
    """The number of shared ids."""
    n_tokens, size = len(hidden), len(head.weight)
    _expect("hidden", hidden, n_tokens, head.weight.shape[1])
    if head.bias is not None:
        _expect("the head's bias", head.bias, size)
    _expect("targets", targets, n_tokens)
    if weights is not None:
        _expect("weights", weights, n_tokens)
    shared = size if vocabulary is None else vocabulary
    if not 1 <= shared <= size:
        raise InputError(f"vocabulary is {shared}; it must be from 1 to {size}, the rows of the student's head")
    if isinstance(teacher, TopK):
        if teacher.ids.ndim != 2 or not 1 <= teacher.ids.shape[1] <= shared:
            raise InputError(f"the teacher's ids have shape {list(teacher.ids.shape)}; needed: [{n_tokens}, k], with k from 1 to {shared}")
        _expect("the teacher's ids", teacher.ids, n_tokens, teacher.ids.shape[1])
        _expect("the teacher's log-probabilities", teacher.log_probs, n_tokens, teacher.ids.shape[1])
    elif teacher is not None:
        if isinstance(teacher, Hidden):
            _expect("the teacher's states", teacher.states, n_tokens, teacher.head.weight.shape[1])
            theirs = len(teacher.head.weight)
        else:
            theirs = teacher.log_probs.shape[-1]
            _expect("the teacher's log-probabilities", teacher.log_probs, n_tokens, theirs)
        if shared > theirs or (vocabulary is None and theirs != size):
            raise InputError(
                f"the student has {size} tokens, the teacher {theirs}, and vocabulary is {vocabulary}; "
                f"where the tokenizers are the same and only the padding differs, set vocabulary to the number of ids that they share"
            )
    return shared


def _expect(name: str, tensor: Tensor, *shape: int) -> None:
    if tuple(tensor.shape) != shape:
        raise InputError(f"{name}: shape {list(tensor.shape)}; needed: {list(shape)} (tokens first, as many as hidden has)")


def check_values(hidden: Tensor, head: OutputHead, targets: Tensor, teacher: Signal | None, vocabulary: int, token: Tensor) -> None:
    refuse_tokens(
        ~hidden.isfinite().all(-1), token, "hidden", "is not finite; look for the first layer that gives NaN or infinity", NonFiniteError
    )
    size = len(head.weight)
    refuse_tokens(
        (targets < 0) | (targets >= size),
        token,
        "targets",
        f"is outside the student's vocabulary, 0 to {size - 1}; leave a token out by weight 0",
    )
    if isinstance(teacher, Hidden):
        refuse_tokens(~teacher.states.isfinite().all(-1), token, "the teacher's states", "is not finite; collect them again")
        return
    if teacher is None:
        return
    log_probs = teacher.log_probs
    refuse_tokens(
        ~log_probs.isfinite().all(-1), token, "the teacher's log-probabilities", "is not finite; collect them again, or floor them"
    )
    if isinstance(teacher, TopK):
        outside = (teacher.ids < 0) | (teacher.ids >= vocabulary)
        refuse_tokens(outside.any(-1), token, "the teacher's ids", f"is outside the shared vocabulary, 0 to {vocabulary - 1}")
        in_order = teacher.ids.sort(-1).values
        refuse_tokens((in_order[:, 1:] == in_order[:, :-1]).any(-1), token, "the teacher's ids", "repeats an id; each may stand once")
    # Rounding to bfloat16 moves the sum of probabilities by a few per cent at most.
    refuse_tokens(
        log_probs.float().logsumexp(-1) > 0.1,
        token,
        "the teacher's log-probabilities",
        "sums to a mass above 1; give log-probabilities, no logits",
    )


def refuse_tokens(bad: Tensor, token: Tensor, name: str, problem: str, error: type[InputError] = InputError) -> None:
    if bool(bad.any()):
        first = int(token[int(bad.nonzero()[0, 0])])
        raise error(f"{name}: token {first} {problem} ({int(bad.sum())} of {len(bad)} tokens)")


def refuse_temperature(teacher: TopK, vocabulary: int, temperature: float) -> None:
    k = teacher.ids.shape[1]
    lower, upper = (float(bound.mean()) for bound in missing_mass(teacher.log_probs, vocabulary, temperature))
    raise InputError(
        f"a stored top {k} of {vocabulary} tokens cannot give temperature {temperature:g}: there, {lower:.1%} to {upper:.1%} of the "
        f"teacher's mass lies outside it (mean over {len(teacher.ids)} tokens); take hidden states, set temperature to 1, or ask for "
        f'topk_at_temperature="truncate", which compares these {k} tokens alone'
    )
