"""Training: gradients against independent formulas, and runs that are killed, resumed or refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distill.objectives.aligned import aligned_texts
from distill.objectives.options import ObjectiveConfig
from distill.objectives.published import published_texts
from distill.records.record import Record
from distill.sources.texts import Texts
from distill.strategies import Strategy
from distill.students.lora import new_student
from distill.students.options import StudentConfig
from distill.training.options import TrainConfig
from distill.training.train import train_student
from interp.checkpoints.opening import open_checkpoint
from interp.checkpoints.unembedding import OutputHead, hidden_states, output_head
from interp.tables.errors import NonFiniteError, StudyError
from tests.distill.training.cases import CARD

QUICK = TrainConfig(epochs=1, batch_size=2, learning_rate=1e-2, logging_steps=1, save_steps=100, warmup_steps=0)
ANSWERS = ("3*4 = 12", "15 x 2 = $30", "100", "24 are left.", "#### 36", "60*2.5", "25", "9 + 8 = 17")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, save_checkpoint: Callable[..., Path]) -> Any:
    """Another tiny model with the same tokenizer, wider than the student."""
    torch.manual_seed(5)
    return open_checkpoint(save_checkpoint(tmp_path_factory.mktemp("teacher") / "wide", hidden_size=48), device="cpu")


@pytest.fixture(scope="module")
def records(teacher: Any) -> list[Record]:
    """Answers with hidden states, under a prompt that the student never sees."""
    told = Strategy("told", "Be clear.")
    made = []
    for number, answer in enumerate(ANSWERS):
        question = f"How many are {number} and {number + 3}?"
        asked = told.encode(teacher.tokenizer, question, True)
        said = [*teacher.tokenizer(answer, add_special_tokens=False)["input_ids"], teacher.tokenizer.eos_token_id]
        ids = torch.tensor([[*asked, *said]])
        with torch.no_grad():
            states = hidden_states(teacher.model, ids, torch.ones_like(ids))[0, len(asked) - 1 : -1]
        made.append(Record(number, question, f"#### {number}", tuple(asked), tuple(said), answer, "eos", {"hidden": states}))
    return made


@pytest.fixture
def learn(checkpoint: Path, records: list[Record], teacher: Any) -> Callable[..., dict[str, torch.Tensor]]:
    """`(folder, ...)` trains a student of the tiny checkpoint and gives its adapter."""

    def run(
        folder: Path,
        *,
        train: TrainConfig = QUICK,
        seed: int = 0,
        dropout: float = 0.0,
        rank: int = 2,
        texts: Texts | None = None,
        card: dict[str, Any] = CARD,
        **settings: Any,
    ) -> Any:
        live = settings.get("teacher") == "live"
        objective = ObjectiveConfig(**settings)
        model, base = new_student(StudentConfig(model=str(checkpoint), device="cpu", rank=rank, dropout=dropout), seed)
        texts = texts or aligned_texts(records, base.tokenizer, Strategy("student"), True, max_tokens=500, same_tokenizer=True)
        head = output_head(teacher.model)
        train_student(
            folder,
            model,
            base.tokenizer,
            texts,
            objective=objective,
            config=train,
            seed=seed,
            card=card,
            teacher_head=head,
            teacher=teacher.model if live else None,
        )
        return load_file(folder / "adapter_model.safetensors")

    return run


def same(one: dict[str, Any], two: dict[str, Any], tolerance: float = 0.0) -> bool:
    """Equal names, and values within a tolerance."""
    assert set(one) == set(two)
    return all(torch.allclose(one[name], two[name], rtol=0, atol=tolerance) for name in one)


def test_one_step_of_sgd_is_the_gradient_of_the_formula(
    tmp_path: Path, learn: Callable[..., Any], checkpoint: Path, records: list[Record], teacher: Any
) -> None:
    """Oracle: whole logits in float64, plain autograd, the formula of the losses written out once more."""
    rate, alpha, temperature = 0.5, 0.3, 2.5
    train = replace(QUICK, batch_size=len(ANSWERS), learning_rate=rate, optimizer="sgd", schedule="constant", max_grad_norm=0.0)
    learned = learn(tmp_path / "s", train=train, alpha=alpha, temperature=temperature)

    model, base = new_student(StudentConfig(model=str(checkpoint), device="cpu", rank=2), 0)
    model.double()
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    head = output_head(teacher.model).weight.double()
    for r in records:
        asked = Strategy("student").encode(base.tokenizer, r.question, True)
        logits = model(input_ids=torch.tensor([[*asked, *r.response_ids]])).logits[0, len(asked) - 1 : -1]
        theirs = torch.log_softmax(r.signals["hidden"].double() @ head.T / temperature, -1)
        ours = torch.log_softmax(logits / temperature, -1)
        soft = (theirs.exp() * (theirs - ours)).sum()
        hard = torch.nn.functional.cross_entropy(logits, torch.tensor(r.response_ids), reduction="sum")
        total = total + alpha * hard + (1 - alpha) * temperature**2 * soft
        tokens += len(r.response_ids)
    (total / tokens).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            expected = before[name] - rate * parameter.grad
            torch.testing.assert_close(learned[name.replace(".default", "")].double(), expected, rtol=1e-4, atol=1e-6)


def test_accumulation_and_batch_size_do_not_change_the_adapter(tmp_path: Path, learn: Callable[..., Any]) -> None:
    whole = learn(tmp_path / "a", train=replace(QUICK, batch_size=4))
    parts = learn(tmp_path / "b", train=replace(QUICK, batch_size=1, gradient_accumulation=4))
    assert same(whole, parts, 2e-5)
    assert not same(whole, learn(tmp_path / "c", train=replace(QUICK, batch_size=2)), 2e-5)  # other steps


def test_order_of_records_does_not_change_the_adapter(
    tmp_path: Path, learn: Callable[..., Any], checkpoint: Path, records: list[Record]
) -> None:
    tokenizer = open_checkpoint(checkpoint, device="cpu").tokenizer
    shuffled = [records[i] for i in (3, 0, 6, 7, 2, 5, 1, 4)]
    texts = aligned_texts(shuffled, tokenizer, Strategy("student"), True, max_tokens=500, same_tokenizer=True)
    assert same(learn(tmp_path / "a"), learn(tmp_path / "b", texts=texts))


def test_a_live_teacher_gives_the_adapter_of_its_stored_states(tmp_path: Path, learn: Callable[..., Any]) -> None:
    stored = learn(tmp_path / "a", temperature=5.94, divergence="jsd")
    assert same(stored, learn(tmp_path / "b", temperature=5.94, divergence="jsd", teacher="live"), 1e-5)


def test_signals_agree_at_temperature_1(
    tmp_path: Path, learn: Callable[..., Any], checkpoint: Path, records: list[Record], teacher: Any
) -> None:
    tokenizer, head = open_checkpoint(checkpoint, device="cpu").tokenizer, output_head(teacher.model)

    def with_tier(tier: str) -> Texts:
        made = []
        for r in records:
            log_p = torch.log_softmax(head.logits(r.signals["hidden"]), -1)
            top = log_p.topk(400)
            signals = {"dense": {"dense_log_probs": log_p}, "topk": {"topk_ids": top.indices.int(), "topk_log_probs": top.values}}[tier]
            made.append(replace(r, signals=signals))
        return aligned_texts(made, tokenizer, Strategy("student"), True, max_tokens=500, same_tokenizer=True)

    hidden = learn(tmp_path / "h", alpha=0.0)
    assert same(hidden, learn(tmp_path / "d", alpha=0.0, texts=with_tier("dense")), 1e-5)
    assert same(hidden, learn(tmp_path / "t", alpha=0.0, texts=with_tier("topk")), 1e-5)


def test_seeds_and_objectives_give_different_adapters(tmp_path: Path, learn: Callable[..., Any]) -> None:
    first = learn(tmp_path / "a")
    assert same(first, learn(tmp_path / "b"))
    assert not same(first, learn(tmp_path / "c", seed=1), 1e-4)
    assert not same(first, learn(tmp_path / "d", divergence="reverse_kl"), 1e-6)


def test_a_student_that_overfits_reproduces_its_texts(tmp_path: Path, learn: Callable[..., Any], records: list[Record]) -> None:
    """The end is learnt, too: generation stops by itself, though nothing but the loss says where."""
    train = replace(QUICK, epochs=400, batch_size=8, learning_rate=2e-2, schedule="cosine", logging_steps=50)
    learn(tmp_path / "s", train=train, alpha=1.0, rank=8)
    student = open_checkpoint(tmp_path / "s", device="cpu")
    right = 0
    for r in records:
        asked = torch.tensor([Strategy("student").encode(student.tokenizer, r.question, True)])
        said = student.model.generate(
            input_ids=asked, attention_mask=torch.ones_like(asked), max_new_tokens=30, do_sample=False, pad_token_id=0
        )
        right += said[0, asked.shape[1] :].tolist() == list(r.response_ids)
    assert right == len(records)


def test_the_end_is_learned_if_it_is_also_the_padding(
    tmp_path: Path, checkpoint: Path, records: list[Record], learn: Callable[..., Any]
) -> None:
    """The last row of every text asks for the end-of-text token, whatever pads the batch."""
    whole = learn(tmp_path / "a", alpha=1.0)
    tokenizer = open_checkpoint(checkpoint, device="cpu").tokenizer
    tokenizer.pad_token = tokenizer.eos_token
    model, _ = new_student(StudentConfig(model=str(checkpoint), device="cpu", rank=2), 0)
    texts = aligned_texts(records, tokenizer, Strategy("student"), True, max_tokens=500, same_tokenizer=True)
    train_student(tmp_path / "b", model, tokenizer, texts, objective=ObjectiveConfig(alpha=1.0), config=QUICK, seed=0, card=CARD)
    assert same(whole, load_file(tmp_path / "b" / "adapter_model.safetensors"), 1e-6)


def test_published_objective_gives_the_update_of_the_published_code(
    tmp_path: Path, learn: Callable[..., Any], checkpoint: Path, records: list[Record], teacher: Any
) -> None:
    """Oracle: the published loss, written anew from the paper's notebook: index by index, KL(student || teacher), batchmean over tokens."""
    import torch.nn.functional as F

    alpha, temperature, rate = 0.6093348343631224, 5.942267335064758, 0.5
    prompted, r = [], records[0]
    ids = teacher.tokenizer("Be clear. " + r.question, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        states = hidden_states(teacher.model, torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long))[0]
    prompted.append(
        replace(r, prompt_ids=tuple(ids), response_ids=(), text="", reference="3*4 = 12 so 12+2 = 14\n#### 14", signals={"hidden": states})
    )
    texts = published_texts(prompted, teacher.tokenizer, max_tokens=256, signals=True)
    train = replace(QUICK, batch_size=1, learning_rate=rate, optimizer="sgd", schedule="constant", max_grad_norm=0.0)
    learned = learn(
        tmp_path / "s", train=train, texts=texts, name="published", divergence="reverse_kl", alpha=alpha, temperature=temperature
    )

    model, base = new_student(StudentConfig(model=str(checkpoint), device="cpu", rank=2), 0)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    student_logits = model(**base.tokenizer(r.question, return_tensors="pt", return_token_type_ids=False)).logits
    teacher_logits = teacher.model(input_ids=torch.tensor([ids])).logits
    labels = base.tokenizer(prompted[0].reference, return_tensors="pt")["input_ids"]
    length = min(student_logits.size(1), labels.size(1), teacher_logits.size(1))
    student_logits, teacher_logits, labels = student_logits[0, :length], teacher_logits[0, :length], labels[0, :length]
    soft = F.kl_div(
        F.log_softmax(teacher_logits / temperature, dim=1),
        F.softmax(student_logits / temperature, dim=1),
        reduction="batchmean",
        log_target=False,
    )
    (alpha * F.cross_entropy(student_logits, labels) + (1.0 - alpha) * soft * temperature**2).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            torch.testing.assert_close(learned[name.replace(".default", "")], before[name] - rate * parameter.grad, rtol=2e-3, atol=2e-5)


def test_logits_of_a_batch_are_never_computed(tmp_path: Path, learn: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    whole = OutputHead.logits
    monkeypatch.setattr(OutputHead, "logits", lambda self, hidden: sizes.append(len(hidden)) or whole(self, hidden))
    called: list[torch.Size] = []
    linear = torch.nn.Linear.forward

    def watched(self: Any, given: torch.Tensor) -> torch.Tensor:
        out = linear(self, given)
        if out.shape[-1] == 400 and out.shape[-2] > 8:
            called.append(out.shape)
        return out

    monkeypatch.setattr(torch.nn.Linear, "forward", watched)
    learn(tmp_path / "s")
    assert called == []
    assert max(sizes, default=0) <= 8  # the probe of the output head


def test_text_only_records_need_alpha_one(
    tmp_path: Path, records: list[Record], learn: Callable[..., Any], tiny_tokenizer: Callable[..., Any]
) -> None:
    bare = aligned_texts(
        [replace(r, signals={}) for r in records], tiny_tokenizer(), Strategy("s"), True, max_tokens=500, same_tokenizer=True
    )
    with pytest.raises(StudyError, match="text only"):
        learn(tmp_path / "s", texts=bare)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"optimizer": "adamm"}, "adamm"),
        ({"optimizer": "adamw_bnb_8bit"}, "bitsandbytes"),
        ({"optimizer": "sgd", "optimizer_arguments": "momentum"}, "momentum=0.9"),
        ({"optimizer": "sgd", "optimizer_arguments": "foo=1"}, "does not take the argument 'foo'"),
        ({"optimizer_arguments": "momentum=0.9"}, "does not take the argument 'momentum'"),
        ({"schedule": "cosin"}, "cosin"),
        ({"schedule_arguments": {"foo": 1}}, "foo"),
        ({"report_to": ("foo",)}, "foo"),
        ({"report_to": ("comet_ml",)}, "comet"),
    ],
)
def test_names_that_the_trainer_does_not_know_are_refused(
    tmp_path: Path, learn: Callable[..., Any], change: dict[str, Any], words: str
) -> None:
    with pytest.raises(StudyError, match=words):
        learn(tmp_path / "s", train=replace(QUICK, **change))


def test_a_run_with_other_settings_is_not_resumed(tmp_path: Path, learn: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    partial = tmp_path / "s.partial"
    partial.mkdir()
    (partial / "settings.json").write_text(json.dumps({**{k: CARD[k] for k in ("settings", "parents", "seed")}, "seed": 4}))
    with pytest.raises(StudyError, match="seed: was 4, is 0"):
        learn(tmp_path / "s")
    (partial / "settings.json").write_text("{")
    with pytest.raises(StudyError, match="damaged"):
        learn(tmp_path / "s")


def test_a_run_that_version_0_1_started_is_resumed(tmp_path: Path, learn: Callable[..., Any]) -> None:
    """The objective's key `cut` is `truncated` today."""

    def card(objective: dict[str, Any]) -> dict[str, Any]:
        return {**CARD, "settings": {**CARD["settings"], "objective": {"name": "aligned", **objective}}}

    partial = tmp_path / "s.partial"
    partial.mkdir()
    (partial / "settings.json").write_text(json.dumps({k: card({"cut": "keep"})[k] for k in ("settings", "parents", "seed")}))
    learn(tmp_path / "s", card=card({"truncated": "keep"}))
    (tmp_path / "t.partial").mkdir()
    (tmp_path / "t.partial" / "settings.json").write_text(
        json.dumps({k: card({"cut": "drop"})[k] for k in ("settings", "parents", "seed")})
    )
    with pytest.raises(StudyError, match=r"settings.objective.truncated: was 'drop', is 'keep'"):
        learn(tmp_path / "t", card=card({"truncated": "keep"}))


def test_a_loss_that_is_not_finite_is_an_error(tmp_path: Path, learn: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"not finite|the loss is"):
        learn(tmp_path / "s", train=replace(QUICK, epochs=20, learning_rate=1e30, max_grad_norm=0.0, optimizer="sgd"))


def test_an_adapter_that_is_not_finite_is_not_saved(tmp_path: Path, learn: Callable[..., Any]) -> None:
    """The last update is seen by no loss."""
    one_step = replace(QUICK, batch_size=8, learning_rate=3e38, max_grad_norm=0.0, optimizer="sgd", schedule="constant")
    with pytest.raises(NonFiniteError, match="the adapter has values that are not finite after step 1"):
        learn(tmp_path / "s", train=replace(one_step, optimizer_arguments="momentum=0.9", weight_decay=3e38))
    assert not (tmp_path / "s").exists()


def test_a_checkpoint_that_cannot_be_written_is_one_error(
    tmp_path: Path, learn: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(StudyError, match="If the disk is full"):
        learn(tmp_path / "s", train=replace(QUICK, save_steps=1))


SCRIPT = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
import torch
torch.set_num_threads(1)
from distill.objectives.aligned import aligned_texts
from distill.objectives.options import ObjectiveConfig
from distill.students.options import StudentConfig
from distill.training.options import TrainConfig
from distill.records.record import Record
from distill.strategies import Strategy
from distill.students.lora import new_student
from distill.training.train import train_student

model, checkpoint = new_student(StudentConfig(model=sys.argv[1], device="cpu", rank=2, dropout=0.3), 0)
records = [Record(i, f"How many are {{i}} and 3?", "#### 1", (), (), "5" * (i + 1) + " so 7", "eos") for i in range(13)]
texts = aligned_texts(records, checkpoint.tokenizer, Strategy("s"), True, max_tokens=300, same_tokenizer=False)

for place, moment in (line.split(":") for line in sys.argv[2:]):
    partial = Path(place + ".partial")
    if moment == "torn":
        (partial / "checkpoint-999").mkdir()  # as torn as can be
    child = os.fork()
    if child == 0:
        train_student(Path(place), model, checkpoint.tokenizer, texts, objective=ObjectiveConfig(alpha=1.0), seed=0, card={card!r},
                      config=TrainConfig(epochs=4, batch_size=2, learning_rate=1e-2, save_steps=2, logging_steps=1))
        os._exit(0)
    if moment.isdigit():
        while not (partial / f"checkpoint-{{moment}}").exists() and not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
    print(moment, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), partial.exists(), sep=",")
"""


def test_a_training_killed_at_any_moment_resumes_to_the_same_adapter(tmp_path: Path, checkpoint: Path) -> None:
    """With dropout, so that the state of the random numbers counts; killed several times, also while a checkpoint is written.

    Each training is a process of its own, forked so that what they need is loaded once.
    """
    (tmp_path / "learn.py").write_text(SCRIPT.format(root=str(Path(__file__).parents[3]), card=CARD))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "learn.py", str(checkpoint), "whole:never", "killed:2", "killed:10", "killed:torn"]
    told = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout.splitlines()
    # the moment, the exit code or the signal, whether an unfinished student is left behind
    assert told == ["never,0,False", "2,-9,True", "10,-9,True", "torn,0,False"]
    whole, killed = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "killed"))
    assert whole == killed
