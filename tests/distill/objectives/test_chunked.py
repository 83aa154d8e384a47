"""The distillation loss against dense float64 torch, against TRL, against numbers worked by hand, and against the laws that it obeys."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from beartype import beartype
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError, jaxtyped
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import distill.objectives.chunked
from distill.objectives.chunked import LossSums, distillation_loss
from distill.objectives.divergences import DIVERGENCES
from distill.records.signals import Dense, Hidden, Signal, TopK
from interp.checkpoints.unembedding import OutputHead
from tests.distill.objectives.cases import (
    HEADS,
    TEACHER_WIDTH,
    TEMPERATURES,
    TOKENS,
    VOCABULARY,
    WIDTH,
    Case,
    assert_same,
    gradients,
    log_probabilities,
    loss_with_shapes,
    make,
    our_sums,
    plain_distributions,
    plain_divergence,
    plain_kl,
    plain_logits,
    plain_parts,
    select,
    top,
)

# --- values and gradients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("signal", ["hidden", "dense", "top4", "all"])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_value_and_gradients_equal_those_of_dense_logits_in_float64(name: str, signal: str, temperature: float) -> None:
    case = make("bias")
    for alpha in (0.0, 0.3, 1.0):
        options = {"alpha": alpha, "temperature": temperature, "beta": 0.2}
        ours = our_sums(case, signal, divergence=name, **options)
        theirs = plain_parts(case, signal, name, **options)
        assert_same([ours.total, ours.cross_entropy, ours.divergence], list(theirs))
        assert_same(gradients(ours.total, case.leaves()), gradients(theirs[0], case.leaves()))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("signal", ["hidden", "top4"])
def test_scale_bias_and_softcap_of_a_head_are_part_of_value_and_gradient(head: str, signal: str) -> None:
    case = make(head)
    options = {"alpha": 0.4, "temperature": 1.0 if signal == "top4" else 2.5, "beta": 0.5}
    ours, theirs = our_sums(case, signal, divergence="reverse_kl", **options), plain_parts(case, signal, "reverse_kl", **options)
    assert_same([ours.total], [theirs[0]])
    assert_same(gradients(ours.total, case.leaves()), gradients(theirs[0], case.leaves()))
    logits = jaxtyped(typechecker=beartype)(OutputHead.logits)(case.head, case.hidden)
    assert_same([logits], [plain_logits(case.hidden, case.head)])


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd"])
def test_gradcheck_at_a_temperature(name: str) -> None:
    case = make("all", tokens=3, vocabulary=6)

    def total(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        head = replace(case.head, weight=weight, bias=bias)
        return distillation_loss(
            hidden, head, case.targets, case.signal("hidden"), divergence=name, alpha=0.3, temperature=2.5, beta=0.7, chunk_tokens=2
        ).total

    assert torch.autograd.gradcheck(total, case.leaves(), fast_mode=False)


def test_a_case_worked_by_hand() -> None:
    """A vocabulary of two tokens, teacher (3/4, 1/4), student (1/2, 1/2), target 0; at T = 2 the teacher's odds are sqrt(3) to 1."""
    head = OutputHead(torch.eye(2, dtype=torch.float64))
    hidden = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    teacher, target = Dense(torch.tensor([[0.75, 0.25]], dtype=torch.float64).log()), torch.tensor([0])

    def sums(**options: Any) -> LossSums:
        return distillation_loss(hidden, head, target, teacher, alpha=0.0, **options)

    # 3/4 ln(3/2) + 1/4 ln(1/2) and 1/2 ln(2/3) + 1/2 ln 2: the directions differ.
    assert sums(divergence="forward_kl").divergence.item() == pytest.approx(0.130812, abs=1e-6)
    assert sums(divergence="reverse_kl").divergence.item() == pytest.approx(0.143841, abs=1e-6)
    # The middle is (5/8, 3/8): (3/4 ln(6/5) + 1/4 ln(2/3) + 1/2 ln(4/5) + 1/2 ln(4/3)) / 2.
    assert sums(divergence="jsd").divergence.item() == pytest.approx(0.033823, abs=1e-6)
    (gradient,) = gradients(sums(divergence="forward_kl").total, [hidden])
    assert gradient[0].tolist() == pytest.approx([-0.25, 0.25])  # q - p
    # Reverse: q_j (ln(q_j / p_j) - KL) = 1/2 (ln(2/3) - ln(4/3) / 2) = -ln(3) / 4.
    (gradient,) = gradients(sums(divergence="reverse_kl").total, [hidden])
    assert gradient[0].tolist() == pytest.approx([-math.log(3) / 4, math.log(3) / 4])
    # p_2 = sqrt(3) / (1 + sqrt(3)) = 0.633975. Total: 4 KL; gradient: 4 (q - p_2) / 2, four times what it is without T^2.
    at_two = sums(divergence="forward_kl", temperature=2.0)
    p = math.sqrt(3) / (1 + math.sqrt(3))
    kl = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert at_two.total.item() == pytest.approx(4 * kl)
    assert at_two.divergence.item() == pytest.approx(kl)
    (gradient,) = gradients(at_two.total, [hidden])
    assert gradient[0].tolist() == pytest.approx([2 * (0.5 - p), 2 * (p - 0.5)])
    assert at_two.cross_entropy.item() == pytest.approx(math.log(2))
    assert sums().total.requires_grad
    assert not sums().cross_entropy.requires_grad
    assert not sums().divergence.requires_grad


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("signal", ["hidden", "dense", "top4", "all"])
def test_loss_and_gradient_are_zero_for_a_student_equal_to_its_teacher(name: str, signal: str) -> None:
    case = make("all")
    case.hidden, case.head = case.teacher_states.requires_grad_(), case.teacher_head
    for temperature in TEMPERATURES:
        sums = our_sums(case, signal, divergence=name, alpha=0.0, temperature=temperature, beta=0.3)
        assert abs(sums.total.item()) < 1e-12
        for gradient in gradients(sums.total, case.leaves()):
            assert gradient.abs().max() < 1e-12


def test_without_a_teacher_the_loss_is_cross_entropy() -> None:
    case = make("bias")
    sums = our_sums(case, None, alpha=1.0, temperature=3.0)
    expected = (
        torch.nn.functional.cross_entropy(plain_logits(case.hidden, case.head), case.targets, reduction="none") * case.weights
    ).sum()
    assert_same([sums.total, sums.cross_entropy], [expected, expected.detach()])
    assert sums.divergence.item() == 0
    assert_same(gradients(sums.total, case.leaves()), gradients(expected, case.leaves()))


# --- against TRL ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "beta"), [("forward_kl", 0.0), ("reverse_kl", 1.0), ("jsd", 0.0), ("jsd", 0.3), ("jsd", 0.5), ("jsd", 1.0)]
)
def test_divergences_equal_those_of_trl(name: str, beta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL 1.16: `GKDTrainer.generalized_jsd_loss`, without T^2."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    gkd = pytest.importorskip("trl.experimental.gkd", reason="needs trl")
    case = make()
    for temperature in TEMPERATURES:
        student = plain_logits(case.hidden, case.head)
        theirs = gkd.GKDTrainer.generalized_jsd_loss(student, case.teacher_logits, beta=beta, temperature=temperature, reduction="sum")
        ours = our_sums(case, "hidden", divergence=name, beta=beta, alpha=0.0, temperature=temperature, weights=None)
        assert_same([ours.divergence], [theirs.detach()])
        their_gradients = [temperature**2 * g for g in gradients(theirs, case.leaves())]
        assert_same(gradients(ours.total, case.leaves()), their_gradients)


@pytest.mark.parametrize(("name", "beta"), [("forward_kl", 0.0), ("reverse_kl", 1.0), ("jsd", 0.3)])
def test_chunked_loss_equals_the_chunked_loss_of_trl(name: str, beta: float) -> None:
    """TRL 1.16: `ChunkedDivergenceFunction`, which has the scale and the cap of heads, in float32."""
    peer = pytest.importorskip("trl.kernels.chunked_divergence", reason="needs trl")
    case = make("all", torch.float32)
    per_token, _ = peer.ChunkedDivergenceFunction.apply(
        *(case.hidden, case.head.weight, case.head.bias),
        *(case.teacher_states, case.teacher_head.weight, case.teacher_head.bias, beta, 2.5),
        *(case.head.scale, case.head.softcap, case.teacher_head.scale, case.teacher_head.softcap),
    )
    theirs = (per_token * case.weights).sum()
    ours = our_sums(case, "hidden", divergence=name, beta=beta, alpha=0.0, temperature=2.5)
    assert_same([ours.divergence], [theirs.detach()], 1e-5, 1e-5)
    assert_same(gradients(ours.total, case.leaves()), [6.25 * g for g in gradients(theirs, case.leaves())], 1e-4, 1e-5)


# --- invariances -------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(log_probabilities(9), log_probabilities(9), st.sampled_from(sorted(DIVERGENCES)), st.floats(0.05, 0.95))
def test_bucket_divergence_grows_with_k_from_above_0_to_the_full_divergence(log_p: Tensor, log_q: Tensor, name: str, beta: float) -> None:
    head, targets = OutputHead(torch.eye(9, dtype=torch.float64)), torch.tensor([0])

    def divergence(teacher: Signal) -> float:
        return distillation_loss(log_q, head, targets, teacher, divergence=name, alpha=0.0, beta=beta).divergence.item()

    whole = plain_divergence(name, log_p.exp(), log_q.exp(), beta).item()
    # 1 - sum(p) has lost digits where it is small, here down to 1e-8.
    by_k = [divergence(top(log_p, k)) for k in range(1, 10)]
    assert by_k[0] >= -1e-12
    assert all(b >= a - 1e-7 for a, b in itertools.pairwise(by_k))
    assert by_k[-1] == pytest.approx(whole, rel=1e-9, abs=1e-12)
    assert divergence(Dense(log_p)) == pytest.approx(whole, rel=1e-9, abs=1e-12)


def test_the_bucket_is_an_outcome_of_its_own() -> None:
    """Teacher (1/2, 1/4, 1/4), student (1/4, 1/2, 1/4), k = 1: 1/2 ln 2 + 1/2 ln(2/3); without the bucket it would be 1/2 ln 2."""
    head, hidden = OutputHead(torch.eye(3)), torch.tensor([[0.25, 0.5, 0.25]]).log()
    teacher = TopK(torch.tensor([[0]]), torch.tensor([[0.5]]).log())
    sums = distillation_loss(hidden, head, torch.tensor([0]), teacher)
    assert sums.divergence.item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), rel=1e-5)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_teacher_that_leaves_nothing_over_gives_finite_numbers(name: str) -> None:
    """Because of rounding, the k probabilities may sum to 1 or more."""
    hidden = torch.tensor([[40.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 9.0]], requires_grad=True)
    ids = torch.tensor([[0, 1], [3, 0]], dtype=torch.int32)
    log_probs = torch.tensor([[0.0, -30.0], [1e-6, -20.0]])
    sums = distillation_loss(hidden, OutputHead(torch.eye(4)), torch.tensor([0, 3]), TopK(ids, log_probs), divergence=name, alpha=0.0)
    assert math.isfinite(sums.total.item())
    assert gradients(sums.total, [hidden])[0].isfinite().all()
    assert abs(sums.divergence.item()) < 0.01


@pytest.mark.parametrize("k", [4, 18])
def test_student_mass_outside_the_k_is_summed_not_subtracted(k: int) -> None:
    """The student's left-over mass is far below float32's epsilon, so 1 - sum(q) would be 0."""
    logits = torch.full((1, 19), -30.0)
    logits[0, :k] = 10.0
    log_p = torch.zeros(1, 19).log_softmax(-1)
    teacher = TopK(torch.arange(k)[None], log_p[:, :k])
    sums = distillation_loss(logits, OutputHead(torch.eye(19)), torch.tensor([0]), teacher, alpha=0.0)
    rest, q_rest = (19 - k) / 19, math.log((19 - k) / k) - 40
    expected = (1 - rest) * math.log((1 - rest) * k / k) + rest * (math.log(rest) - q_rest)
    assert sums.divergence.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("signal", ["hidden", "dense", "top4", None])
def test_chunks_order_and_splitting_do_not_change_values(signal: str | None) -> None:
    def run(case: Case, **options: Any) -> list[Tensor]:
        sums = our_sums(case, signal, alpha=0.3 if signal else 1.0, **options)
        return [sums.total.detach(), sums.cross_entropy, sums.divergence, *gradients(sums.total, case.leaves())]

    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-5)):
        case = make("bias", dtype, tokens=11)
        whole = run(case, chunk_tokens=None)
        for step in (1, 4, 11, 50):
            assert_same(run(case, chunk_tokens=step), whole, tolerance, tolerance)
        for rows in (1, 3):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(distill.objectives.chunked, "_CPU_BLOCK_BYTES", rows * VOCABULARY * dtype.itemsize)
                assert_same(run(case, chunk_tokens=4), whole, tolerance, tolerance)
        order = torch.randperm(11, generator=torch.Generator().manual_seed(1))
        parts = [run(select(case, index)) for index in (order[:4], order[4:5], order[5:])]
        summed = [torch.stack(column).sum(0) for column in zip(*(part[:3] + part[4:] for part in parts), strict=True)]
        assert_same(summed, whole[:3] + whole[4:], tolerance, tolerance)
        assert_same([torch.cat([part[3] for part in parts])], [whole[3][order]], tolerance, tolerance)


@pytest.mark.parametrize("signal", ["hidden", "dense", "top4", None])
def test_weight_0_leaves_out_a_token_even_if_it_is_not_finite(signal: str | None) -> None:
    case, alpha = make("bias"), 0.5 if signal else 1.0
    kept = torch.tensor([0, 2, 3, 6])
    without = our_sums(select(case, kept), signal, alpha=alpha)
    hidden = case.hidden.detach().clone()
    hidden[[1, 4, 5]] = math.nan
    case.hidden = hidden.requires_grad_()
    case.weights = torch.zeros(TOKENS, dtype=torch.float64).index_put((kept,), case.weights[kept])
    sums = our_sums(case, signal, alpha=alpha)
    assert_same([sums.total, sums.cross_entropy, sums.divergence], [without.total, without.cross_entropy, without.divergence])
    (gradient,) = gradients(sums.total, [case.hidden])
    assert (gradient[[1, 4, 5]] == 0).all()
    assert (gradient[kept] != 0).any(-1).all()


@pytest.mark.parametrize("signal", ["hidden", "dense", "top4", None])
def test_a_batch_without_tokens_adds_nothing(signal: str | None) -> None:
    case = select(make("bias"), torch.tensor([], dtype=torch.long))
    sums = our_sums(case, signal, alpha=0.5 if signal else 1.0)
    assert sums.total.item() == sums.cross_entropy.item() == sums.divergence.item() == 0
    gradient, weight_gradient, _ = gradients(sums.total, case.leaves())
    assert gradient.shape == (0, WIDTH)
    assert (weight_gradient == 0).all()


def test_vocabulary_restricts_the_divergence_and_not_the_cross_entropy() -> None:
    case, shared = make("bias"), 16
    padded = replace(
        case.teacher_head,
        weight=torch.cat([case.teacher_head.weight[:shared], torch.randn(9, TEACHER_WIDTH, dtype=torch.float64)]),
        bias=torch.cat([case.teacher_head.bias[:shared], torch.randn(9, dtype=torch.float64)]),  # pyright: ignore[reportOptionalSubscript]
    )
    wide = plain_logits(case.teacher_states, padded).detach()
    inside = wide[:, :shared].log_softmax(-1)
    signals: dict[str, Signal] = {
        "hidden": Hidden(case.teacher_states, padded),
        "dense": Dense(wide.log_softmax(-1)),
        "all": top(inside, shared),
    }
    case.targets[0] = 18
    for name in DIVERGENCES:
        p, q = plain_distributions(case, "dense", 2.5, shared)
        divergence = (case.weights * plain_divergence(name, p, q, 0.5)).sum()
        cross_entropy = plain_parts(case, "dense", name, 0.3, 2.5, 0.5)[1]
        expected = 0.3 * cross_entropy + 0.7 * 6.25 * divergence
        for signal in signals.values():
            sums = loss_with_shapes(
                *(case.hidden, case.head, case.targets, signal),
                **{"divergence": name, "alpha": 0.3, "temperature": 2.5, "weights": case.weights, "vocabulary": shared, "chunk_tokens": 2},
            )
            assert_same([sums.total, sums.cross_entropy, sums.divergence], [expected, cross_entropy, divergence])
            assert_same(gradients(sums.total, case.leaves()), gradients(expected, case.leaves()))


def test_the_bucket_is_restricted_to_the_shared_vocabulary() -> None:
    case, shared = make(), 16
    p = case.teacher_logits[:, :shared].softmax(-1)
    ids = p.topk(4, -1).indices
    q = plain_logits(case.hidden, case.head)[:, :shared].softmax(-1).gather(1, ids)
    p = p.gather(1, ids)
    p, q = (torch.cat([x, 1 - x.sum(-1, keepdim=True)], -1) for x in (p, q))
    expected = plain_kl(p, q).sum()
    sums = distillation_loss(case.hidden, case.head, case.targets, TopK(ids, p[:, :4].log()), alpha=0.0, vocabulary=shared)
    assert_same([sums.total], [expected])
    assert_same(gradients(sums.total, case.leaves()), gradients(expected, case.leaves()))


# --- dtypes, memory, gradients not asked for --------------------------------------------------------------------------


@pytest.mark.parametrize("signal", ["hidden", "dense", "top4"])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_half_precision_is_close_to_float32(name: str, signal: str) -> None:
    exact = make("bias", torch.float32, tokens=32)
    for dtype, tolerance in ((torch.bfloat16, 0.03), (torch.float16, 0.004)):
        head = OutputHead(exact.head.weight.detach().to(dtype).requires_grad_(), exact.head.bias.detach().to(dtype).requires_grad_())  # pyright: ignore
        low = replace(exact, hidden=exact.hidden.detach().to(dtype).requires_grad_(), head=head)
        ours, expected = (our_sums(case, signal, divergence=name, alpha=0.4) for case in (low, exact))
        assert ours.total.dtype == torch.float32
        assert ours.total.item() == pytest.approx(expected.total.item(), rel=tolerance)
        for one, other in zip(gradients(ours.total, low.leaves()), gradients(expected.total, exact.leaves()), strict=True):
            assert one.dtype == dtype
            assert ((one.float() - other).norm() / other.norm()).item() < tolerance


def test_under_autocast_products_run_in_its_dtype_and_sums_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    case, seen = make("bias", torch.float32), list[torch.dtype]()
    block = distill.objectives.chunked._block

    def watch(logits: Tensor, head: OutputHead, *rest: Any) -> Any:
        seen.extend([logits.dtype, head.weight.dtype])
        return block(logits, head, *rest)

    monkeypatch.setattr(distill.objectives.chunked, "_block", watch)
    low = replace(case, hidden=case.hidden.bfloat16(), head=OutputHead(case.head.weight.bfloat16(), case.head.bias.bfloat16()))  # pyright: ignore
    expected = our_sums(low, "dense")
    with torch.autocast("cpu", torch.bfloat16):
        sums = our_sums(case, "dense")
    assert set(seen) == {torch.float32, torch.bfloat16}
    assert_same([sums.total, sums.divergence], [expected.total, expected.divergence], 0, 0)
    grads = gradients(sums.total, case.leaves())
    assert {g.dtype for g in grads} == {torch.float32}
    assert_same(grads, gradients(expected.total, case.leaves()), 0.01, 0.01)
    # bfloat16 states with a float32 head are what a model under autocast gives.
    with torch.autocast("cpu", torch.bfloat16):
        mixed = our_sums(replace(case, hidden=low.hidden), "dense")
    assert_same([mixed.total], [expected.total], 0, 0)


def test_the_teachers_product_runs_in_its_own_dtype_under_autocast() -> None:
    case = make("plain", torch.float32)
    student = replace(case, hidden=case.hidden.detach() * 0)  # logits 0: only the teacher makes a difference
    with torch.autocast("cpu", torch.bfloat16):
        inside = our_sums(student, "hidden")
    assert_same([inside.divergence], [our_sums(student, "hidden").divergence], 1e-6, 0)


@pytest.mark.parametrize("signal", ["hidden", "dense", "top4"])
def test_no_tensor_of_tokens_times_vocabulary_is_kept_for_backward(signal: str) -> None:
    case = make("all", tokens=40, vocabulary=50)
    kept = list[Tensor]()
    for leaf in (case.head.weight, case.head.bias):
        assert leaf is not None
        leaf.requires_grad_(False)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        total = our_sums(case, signal, chunk_tokens=8).total
    assert total.grad_fn is not None
    assert max(x.numel() for x in kept) == 40 * WIDTH
    (gradient,) = gradients(total, [case.hidden])
    assert gradient.shape == case.hidden.shape


def test_a_frozen_head_gets_no_gradient_and_no_memory_for_one() -> None:
    case = make("bias")
    (whole, *_) = gradients(our_sums(case, "hidden").total, case.leaves())
    case.head = replace(case.head, weight=case.head.weight.detach(), bias=case.head.bias.detach())  # pyright: ignore[reportOptionalMemberAccess]
    total = our_sums(case, "hidden", weights=case.weights).total
    assert [None if g is None else g.shape for g in total.grad_fn.saved_tensors] == [case.hidden.shape, None, None]  # pyright: ignore
    total.backward()
    assert case.head.weight.grad is None
    assert_same([case.hidden.grad], [whole])  # pyright: ignore[reportArgumentType]


def test_only_the_head_can_be_trained() -> None:
    case = make("bias")
    _, *expected = gradients(our_sums(case, "hidden").total, case.leaves())
    case.hidden = case.hidden.detach()
    assert_same(gradients(our_sums(case, "hidden").total, case.leaves()[1:]), expected)


@pytest.mark.parametrize("without", ["no_grad", "inference_mode", "frozen"])
def test_evaluation_computes_no_gradient(without: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make("bias")
    expected = our_sums(case, "hidden")
    wanted = list[bool]()
    block = distill.objectives.chunked._block

    def watch(*arguments: Any) -> Any:
        wanted.append(arguments[-1])
        return block(*arguments)

    monkeypatch.setattr(distill.objectives.chunked, "_block", watch)
    if without == "frozen":
        for leaf in case.leaves():
            leaf.requires_grad_(False)
        sums = our_sums(case, "hidden")
    else:
        with torch.no_grad() if without == "no_grad" else torch.inference_mode():
            sums = our_sums(case, "hidden")
    assert wanted
    assert not any(wanted)
    assert not sums.total.requires_grad
    assert_same([sums.total], [expected.total.detach()])


def test_no_gradient_reaches_the_teacher() -> None:
    case = make("bias")
    case.teacher_states.requires_grad_()
    our_sums(case, "hidden").total.backward()
    assert case.teacher_states.grad is None
    assert case.teacher_head.weight.grad is None
    log_probs = case.teacher_logits.requires_grad_().log_softmax(-1)
    distillation_loss(case.hidden, case.head, case.targets, Dense(log_probs)).total.backward()
    assert case.teacher_logits.grad is None


def test_backward_scales_with_the_incoming_gradient_and_can_run_twice() -> None:
    case = make("bias")
    total = our_sums(case, "hidden").total
    once = torch.autograd.grad(total, case.leaves(), retain_graph=True)
    thrice = torch.autograd.grad(3 * total, case.leaves(), retain_graph=True)
    assert_same(list(thrice), [3 * g for g in once])
    assert_same(list(torch.autograd.grad(total, case.leaves())), list(once))


def test_gradient_checkpointing_does_not_change_gradients() -> None:
    case = make("bias")
    body = torch.nn.Linear(WIDTH, WIDTH, dtype=torch.float64)

    def run(checkpointed: bool) -> list[Tensor]:
        states = checkpoint(body, case.hidden, use_reentrant=False) if checkpointed else body(case.hidden)
        return gradients(distillation_loss(states, case.head, case.targets, case.signal("hidden")).total, [body.weight, case.hidden])

    def inside() -> list[Tensor]:
        def loss(hidden: Tensor) -> Tensor:
            return distillation_loss(body(hidden), case.head, case.targets, case.signal("hidden")).total

        return gradients(checkpoint(loss, case.hidden, use_reentrant=False), [body.weight, case.hidden])  # pyright: ignore

    assert_same(run(True), run(False))
    assert_same(inside(), run(False))


def test_default_chunks_stay_within_their_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    case, sizes = make(tokens=10), list[int]()
    block = distill.objectives.chunked._block

    def watch(logits: Tensor, *rest: Any) -> Any:
        sizes.append(logits.nbytes)
        return block(logits, *rest)

    monkeypatch.setattr(distill.objectives.chunked, "_block", watch)
    monkeypatch.setattr(distill.objectives.chunked, "_CHUNK_BYTES", 4 * VOCABULARY * 8)
    our_sums(case, "hidden", chunk_tokens=None)
    assert sizes == [4 * VOCABULARY * 8] * 2 + [2 * VOCABULARY * 8]
    monkeypatch.setattr(distill.objectives.chunked, "_CHUNK_BYTES", 1)
    sizes.clear()
    our_sums(case, "hidden", chunk_tokens=None)
    assert len(sizes) == 10


def test_shapes_of_the_signature_are_executed() -> None:
    case = make()
    with pytest.raises(TypeCheckError, match="targets"):
        loss_with_shapes(case.hidden, case.head, case.targets.double(), None, alpha=1.0)
