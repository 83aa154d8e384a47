"""Every divergence: its value by hand, its slope against autograd, and how it reaches options, formulas, errors and the loss."""

from __future__ import annotations

import inspect
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from beartype import beartype
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float, jaxtyped
from torch import Tensor

import distill.objectives.divergences
from distill.objectives.divergences import DIVERGENCES, Divergence, find_divergence, forward_kl, jsd, reverse_kl
from distill.objectives.options import ObjectiveConfig
from distill.study.config import study_from
from interp.tables.errors import InputError, StudyError
from tests.distill.objectives.cases import (
    assert_same,
    gradients,
    log_probabilities,
    make,
    our_sums,
    plain_distributions,
)

BETAS = {name: (0.0, 0.2, 0.5, 1.0) if entry.parameters else (0.5,) for name, entry in DIVERGENCES.items()}
ENTRIES = [(name, beta) for name, betas in BETAS.items() for beta in betas]

BY_HAND = {
    "forward_kl": (0.75 * math.log(3 / 2) + 0.25 * math.log(1 / 2), -1 / 4),  # q - p
    "reverse_kl": (0.5 * math.log(2 / 3) + 0.5 * math.log(2), -math.log(3) / 4),  # q (ln(q / p) - KL)
    # M = (9/16, 7/16); the gradient is 3/4 q (ln(q / m) - KL(q || M)) = 3/8 (ln(8/9) - (ln(8/9) + ln(8/7)) / 2).
    "jsd": (
        (0.75 * math.log(4 / 3) + 0.25 * math.log(4 / 7)) / 4 + 3 / 4 * (0.5 * math.log(8 / 9) + 0.5 * math.log(8 / 7)),
        3 / 16 * math.log(7 / 9),
    ),
}
"""Teacher (3/4, 1/4), student (1/2, 1/2), beta 1/4: the value, and the derivative with respect to the student's first logit."""


def through_softmax(slope: Tensor, log_q: Tensor) -> Tensor:
    """Return the derivative with respect to logits from the one with respect to their log-softmax."""
    return slope - log_q.exp() * slope.sum(-1, keepdim=True)


def outcomes(logits: Tensor, ids: Tensor | None) -> Tensor:
    """Return all logits, or those of k tokens and of one bucket for all other tokens."""
    if ids is None:
        return logits
    rest = logits.scatter(1, ids, -math.inf).logsumexp(-1, keepdim=True)
    return torch.cat([logits.gather(1, ids), rest], -1)


@pytest.mark.parametrize("bucket", [False, True])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 5.94])
@pytest.mark.parametrize(("name", "beta"), ENTRIES)
def test_slope_is_the_derivative_of_the_value(name: str, beta: float, temperature: float, bucket: bool) -> None:
    entry, case = DIVERGENCES[name], make()
    parameters = entry.chosen_parameters(beta=beta)
    student = torch.randn(*case.teacher_logits.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    ids = case.teacher_logits.topk(4, -1).indices if bucket else None
    log_p = (outcomes(case.teacher_logits, ids) / temperature).log_softmax(-1)
    logits = outcomes(student, ids).requires_grad_()
    log_q = (logits / temperature).log_softmax(-1)
    value = entry.value(log_p, log_q, **parameters)
    assert value.shape == (len(student),)
    assert (value > 0).all()
    (expected,) = gradients((case.weights * value).sum(), [logits])
    with torch.no_grad():
        slope = entry.slope(log_p, log_q, **parameters)
        found = case.weights[:, None] * through_softmax(slope, log_q) / temperature
    assert slope.data_ptr() not in (log_p.data_ptr(), log_q.data_ptr())  # the loss overwrites it
    assert_same([found], [expected])


@pytest.mark.parametrize("signal", ["dense", "top4"])
@pytest.mark.parametrize(("name", "beta"), ENTRIES)
def test_the_loss_has_the_value_and_gradient_of_the_entry(name: str, beta: float, signal: str) -> None:
    """With token weights, a temperature (dense) and a bucket (top 4 at temperature 1), over several chunks."""
    entry, case = DIVERGENCES[name], make("bias")
    temperature = 2.5 if signal == "dense" else 1.0
    p, q = plain_distributions(case, signal, temperature)
    value = (case.weights * entry.value(p.log(), q.log(), **entry.chosen_parameters(beta=beta))).sum()
    sums = our_sums(case, signal, divergence=name, beta=beta, alpha=0.0, temperature=temperature, chunk_tokens=2)
    assert_same([sums.divergence], [value])
    assert_same(gradients(sums.total, case.leaves()), [temperature**2 * g for g in gradients(value, case.leaves())])


@pytest.mark.parametrize(("name", "beta"), ENTRIES)
def test_value_and_gradient_are_zero_at_equality(name: str, beta: float) -> None:
    entry, log_p = DIVERGENCES[name], make().teacher_logits.log_softmax(-1)
    parameters = entry.chosen_parameters(beta=beta)
    assert entry.value(log_p, log_p, **parameters).abs().max() < 1e-15
    assert through_softmax(entry.slope(log_p, log_p, **parameters), log_p).abs().max() < 1e-15


@pytest.mark.parametrize("name", BY_HAND)
def test_values_and_gradients_by_hand(name: str) -> None:
    entry, (value, gradient) = DIVERGENCES[name], BY_HAND[name]
    log_p, log_q = torch.tensor([[[0.75, 0.25]], [[0.5, 0.5]]], dtype=torch.float64).log()
    parameters = entry.chosen_parameters(beta=0.25)
    assert entry.value(log_p, log_q, **parameters).tolist() == pytest.approx([value], abs=1e-12)
    assert through_softmax(entry.slope(log_p, log_q, **parameters), log_q)[0].tolist() == pytest.approx([gradient, -gradient], abs=1e-12)
    assert abs(entry.value(log_q, log_p, **parameters).item() - value) > 1e-4  # the two directions differ, or the arguments were swapped


@pytest.mark.parametrize("name", DIVERGENCES)
def test_shapes_of_value_and_slope_are_executed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module imports torch and jaxtyping for type checkers only, so the annotations are resolved here."""
    for annotation, found in {"Float": Float, "Tensor": Tensor}.items():
        monkeypatch.setattr(distill.objectives.divergences, annotation, found, raising=False)
    log_p, log_q = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    for function in (DIVERGENCES[name].value, DIVERGENCES[name].slope):
        checked = jaxtyped(typechecker=beartype)(function)
        checked(log_p, log_q)
        with pytest.raises(Exception, match="student_log_q"):
            checked(log_p, log_q[:2])


@given(log_probabilities(6), log_probabilities(6), st.floats(0.001, 0.999))
def test_divergences_are_symmetric_and_bounded_as_defined(log_p: Tensor, log_q: Tensor, beta: float) -> None:
    assert jsd(log_p, log_q, 0.5).item() == pytest.approx(jsd(log_q, log_p, 0.5).item(), rel=1e-9, abs=1e-12)
    assert jsd(log_p, log_q, beta).item() == pytest.approx(jsd(log_q, log_p, 1 - beta).item(), rel=1e-6, abs=1e-12)
    assert forward_kl(log_p, log_q).item() == pytest.approx(reverse_kl(log_q, log_p).item(), rel=1e-9, abs=1e-12)
    assert forward_kl(log_p, log_q).item() >= -1e-12
    entropy = -beta * math.log(beta) - (1 - beta) * math.log1p(-beta)
    assert -1e-12 <= jsd(log_p, log_q, beta).item() <= entropy + 1e-12


def test_jsd_at_beta_0_and_1_is_the_kl_of_one_direction() -> None:
    log_p, log_q = (torch.randn(2, 4, 9, dtype=torch.float64)).log_softmax(-1)
    assert_same([jsd(log_p, log_q, 0.0), jsd(log_p, log_q, 1.0)], [forward_kl(log_p, log_q), reverse_kl(log_p, log_q)])
    assert_same(
        [jsd(log_p, log_q, 1e-7) / 1e-7, jsd(log_p, log_q, 1 - 1e-7) / 1e-7], [forward_kl(log_p, log_q), reverse_kl(log_p, log_q)], 1e-4
    )


# --- adding an entry --------------------------------------------------------------------------------------------------


def symmetric_kl(teacher_log_p: Tensor, student_log_q: Tensor) -> Tensor:
    return ((teacher_log_p.exp() - student_log_q.exp()) * (teacher_log_p - student_log_q)).sum(-1)


def symmetric_kl_slope(teacher_log_p: Tensor, student_log_q: Tensor) -> Tensor:
    return student_log_q.exp() * (student_log_q - teacher_log_p) - teacher_log_p.exp()


SYMMETRIC = Divergence(symmetric_kl, symmetric_kl_slope, "KL(teacher || student) + KL(student || teacher)")


def skew_kl(teacher_log_p: Tensor, student_log_q: Tensor, beta: float) -> Tensor:
    return beta * symmetric_kl(teacher_log_p, student_log_q)


def skew_kl_slope(teacher_log_p: Tensor, student_log_q: Tensor, beta: float) -> Tensor:
    return beta * symmetric_kl_slope(teacher_log_p, student_log_q)


@pytest.mark.parametrize(
    ("entry", "formula"),
    [(SYMMETRIC, "KL(teacher || student) + KL(student || teacher)"), (Divergence(skew_kl, skew_kl_slope, "{beta} J", ("beta",)), "0.2 J")],
)
@pytest.mark.parametrize("signal", ["hidden", "top4"])
def test_adding_an_entry_is_the_whole_job(entry: Divergence, formula: str, signal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DIVERGENCES, "own", entry)
    objective = study_from({"name": "s", "objective": {"divergence": "own", "beta": 0.2, "alpha": 0.25}}).objective
    assert objective.formula == f"0.25 CE + 0.75 T^2 {formula} at T = 1"
    with pytest.raises(StudyError, match=r"unknown divergence 'owm' \(did you mean own\?\); known: .*, own"):
        study_from({"name": "s", "objective": {"divergence": "owm"}})
    case, temperature = make("all"), 1.0 if signal == "top4" else 2.5
    p, q = plain_distributions(case, signal, temperature)
    expected = (case.weights * entry.value(p.log(), q.log(), **entry.chosen_parameters(beta=0.2))).sum()
    sums = our_sums(case, signal, divergence="own", alpha=0.0, temperature=temperature, beta=0.2)
    assert_same([sums.divergence], [expected])
    assert_same(gradients(sums.total, case.leaves()), [temperature**2 * g for g in gradients(expected, case.leaves())])


def test_an_installed_package_adds_a_divergence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "symmetric-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: symmetric\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[primed_heads.divergences]\ninstalled_kl = symmetric:DIVERGENCE\n")
    source = "\n\n".join(inspect.getsource(part) for part in (symmetric_kl, symmetric_kl_slope))
    imports = "from __future__ import annotations\nfrom distill.objectives.divergences import Divergence\n"
    (tmp_path / "symmetric.py").write_text(f'{imports}{source}\nDIVERGENCE = Divergence(symmetric_kl, symmetric_kl_slope, "J")\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(distill.objectives.divergences, "_installed", {})
    case = make()
    assert ObjectiveConfig(divergence="installed_kl").formula == "0.5 CE + 0.5 T^2 J at T = 1"
    monkeypatch.setitem(DIVERGENCES, "symmetric_kl", SYMMETRIC)
    installed, own = (our_sums(case, "hidden", divergence=name) for name in ("installed_kl", "symmetric_kl"))
    assert_same([installed.total], [own.total])


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Divergence(symmetric_kl, formula="J"), TypeError, "slope"),  # type: ignore[call-arg]
        (lambda: Divergence(symmetric_kl, None, "J"), InputError, "slope of a divergence is None"),  # type: ignore[arg-type]
        (lambda: Divergence(symmetric_kl, symmetric_kl_slope, "J({gamma})"), InputError, "names 'gamma'"),
        (lambda: Divergence(symmetric_kl, symmetric_kl_slope, "J({beta})"), InputError, "names 'beta'"),
        (lambda: Divergence(symmetric_kl, symmetric_kl_slope, "J", ("gamma",)), InputError, "parameter 'gamma'; available: beta"),
    ],
)
def test_an_incomplete_divergence_cannot_be_made(build: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    known = ", ".join(DIVERGENCES)
    with pytest.raises(InputError, match=rf"unknown divergence 'reversekl' \(did you mean reverse_kl\?\); known: {known}"):
        find_divergence("reversekl")


def test_names_are_read_without_torch() -> None:
    code = (
        "import sys; from distill.objectives.options import ObjectiveConfig; ObjectiveConfig().formula; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
