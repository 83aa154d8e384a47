"""What the loss refuses, and what its messages name."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.objectives.chunked import distillation_loss
from distill.records.signals import Dense, Hidden, TopK, missing_mass
from interp.tables.errors import InputError
from tests.distill.objectives.cases import (
    TEACHER_WIDTH,
    VOCABULARY,
    Case,
    assert_same,
    make,
    our_sums,
)


def test_a_partial_top_k_at_a_temperature_is_refused_with_the_missing_mass() -> None:
    case = make()
    lower, upper = (bound.mean().item() for bound in missing_mass(case.signal("top4").log_probs, VOCABULARY, 5.94))  # pyright: ignore
    with pytest.raises(
        InputError, match=re.escape(f"top 4 of 19 tokens cannot give temperature 5.94: at that temperature, {lower:.1%} to {upper:.1%}")
    ):
        our_sums(case, "top4", temperature=5.94, topk_at_temperature="refuse")
    assert 0.1 < lower < upper
    whole = our_sums(case, "all", temperature=5.94, topk_at_temperature="refuse")
    assert_same([whole.divergence], [our_sums(case, "dense", temperature=5.94).divergence])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divergence": "kl"}, "unknown divergence 'kl'; known: forward_kl, reverse_kl, jsd"),
        ({"alpha": 1.01}, "alpha is 1.01"),
        ({"alpha": math.nan}, "alpha is nan"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be above 0"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"beta": -0.1}, "beta is -0.1"),
        ({"topk_at_temperature": "warn"}, "topk_at_temperature is 'warn'; allowed: refuse, truncate"),
        ({"chunk_tokens": 0}, "chunk_tokens is 0"),
        ({"vocabulary": 0}, "vocabulary is 0; it must be from 1 to 19"),
        ({"vocabulary": 20}, "vocabulary is 20; it must be from 1 to 19"),
        ({"weights": torch.ones(6)}, "weights: shape [6]; needed: [7]"),
        ({"weights": torch.tensor([1.0, -1, 1, 1, 1, 1, 1])}, "weights: token 1 is negative"),
        ({"weights": torch.tensor([1.0, 1, 1, 1, 1, 1, math.nan])}, "weights: token 6 is negative or not finite"),
        ({"teacher": None}, "alpha is 0.5, but there is no teacher"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    case = make()
    arguments: dict[str, Any] = {"teacher": case.signal("hidden")} | options
    with pytest.raises(InputError, match=re.escape(message)):
        distillation_loss(case.hidden, case.head, case.targets, **arguments)


def bad_inputs() -> dict[str, tuple[Callable[[Case], Any], str]]:
    """Return changes of the arguments hidden, head, targets and teacher, and what the message contains."""

    def put(tensor: Tensor, value: float, *place: int) -> Tensor:
        changed = tensor.detach().clone()
        changed[place] = value
        return changed

    def with_topk(change: Callable[[TopK], TopK]) -> Callable[[Case], dict[str, Any]]:
        def build(case: Case) -> dict[str, Any]:
            signal = case.signal("top4")
            assert isinstance(signal, TopK)
            return {"teacher": change(signal)}

        return build

    return {
        "targets too short": (lambda c: {"targets": c.targets[:3]}, "targets: shape [3]; needed: [7]"),
        "hidden too narrow": (lambda c: {"hidden": c.hidden[:, :4]}, "hidden: shape [7, 4]; needed: [7, 5]"),
        "hidden with a batch axis": (lambda c: {"hidden": c.hidden[None]}, "hidden: shape [1, 7, 5]"),
        "bias of another size": (lambda c: {"head": replace(c.head, bias=torch.zeros(3))}, "the head's bias: shape [3]; needed: [19]"),
        "another dtype": (lambda c: {"hidden": c.hidden.float()}, "hidden states are torch.float32, the head's weight torch.float64"),
        "a target too high": (
            lambda c: {"targets": put(c.targets, 19, 2)},
            "targets: token 2 is outside the student's vocabulary, 0 to 18",
        ),
        "the target -100": (lambda c: {"targets": put(c.targets, -100, 5)}, "targets: token 5 is outside"),
        "NaN in hidden": (lambda c: {"hidden": put(c.hidden, math.nan, 3, 1)}, "hidden: token 3 is not finite"),
        "NaN in states": (
            lambda c: {"teacher": Hidden(put(c.teacher_states, math.nan, 4, 0), c.teacher_head)},
            "the teacher's states: token 4 is not finite",
        ),
        "states too narrow": (lambda c: {"teacher": Hidden(c.teacher_states[:, :2], c.teacher_head)}, "the teacher's states: shape [7, 2]"),
        "fewer states": (lambda c: {"teacher": Hidden(c.teacher_states[1:], c.teacher_head)}, "the teacher's states: shape [6, 6]"),
        "a smaller teacher": (
            lambda c: {"teacher": Dense(c.teacher_logits[:, :18].log_softmax(-1))},
            "the student has 19 tokens, the teacher 18, and vocabulary is None",
        ),
        "logits as log-probabilities": (lambda c: {"teacher": Dense(c.teacher_logits + 5)}, "token 0 sums to a mass above 1"),
        "infinite log-probabilities": (
            lambda c: {"teacher": Dense(put(c.teacher_logits.log_softmax(-1), -math.inf, 1, 1))},
            "the teacher's log-probabilities: token 1 is not finite",
        ),
        "fewer ids": (with_topk(lambda t: TopK(t.ids[1:], t.log_probs)), "the teacher's ids: shape [6, 4]; needed: [7, 4]"),
        "ids without k": (with_topk(lambda t: TopK(t.ids[:, :0], t.log_probs[:, :0])), "the teacher's ids have shape [7, 0]"),
        "fewer log-probabilities": (with_topk(lambda t: TopK(t.ids, t.log_probs[:, :3])), "log-probabilities: shape [7, 3]"),
        "an id too high": (with_topk(lambda t: TopK(put(t.ids, 19, 6, 0), t.log_probs)), "the teacher's ids: token 6 is outside"),
        "an id below 0": (with_topk(lambda t: TopK(put(t.ids, -1, 2, 0), t.log_probs)), "the teacher's ids: token 2 is outside"),
        "an id twice": (with_topk(lambda t: TopK(put(t.ids, int(t.ids[2, 1]), 2, 3), t.log_probs)), "token 2 repeats an id"),
        "NaN in a top k": (with_topk(lambda t: TopK(t.ids, put(t.log_probs, math.nan, 0, 0))), "token 0 is not finite"),
    }


@pytest.mark.parametrize("name", bad_inputs())
def test_bad_input_is_named_with_its_token(name: str) -> None:
    change, message = bad_inputs()[name]
    case = make()
    arguments = {"hidden": case.hidden, "head": case.head, "targets": case.targets, "teacher": case.signal("hidden")} | change(case)
    with pytest.raises(InputError, match=re.escape(message)):
        distillation_loss(**arguments)


def test_a_bad_token_is_named_by_its_position_in_the_callers_batch() -> None:
    case = make()
    hidden = case.hidden.detach().clone()
    hidden[5] = math.inf
    with pytest.raises(InputError, match=r"hidden: token 5 is not finite; .* \(1 of 4 tokens\)"):
        distillation_loss(hidden, case.head, case.targets, None, alpha=1.0, weights=torch.tensor([0.0, 0, 1, 1, 0, 1, 1]))


def test_other_padding_without_a_shared_vocabulary_is_refused() -> None:
    case = make()
    wide = replace(case.teacher_head, weight=torch.randn(25, TEACHER_WIDTH, dtype=torch.float64))
    with pytest.raises(InputError, match=r"the student has 19 tokens, the teacher 25, and vocabulary is None.* set vocabulary"):
        distillation_loss(case.hidden, case.head, case.targets, Hidden(case.teacher_states, wide))
