"""A study in one TOML file: who teaches whom, on which problems, under which strategies, and how it is measured.

Every section is a frozen dataclass; a wrong key is refused with the nearest right one. `docs/study.md` shows a whole file.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import msgspec

from distill.strategies import NAME, RESERVED

TIERS = ("text", "topk", "hidden", "dense")
DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")


class StudyError(ValueError):
    """A study that cannot be run as it is written; the message says what was seen, what is allowed and what to do."""


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise StudyError(message)


def _need_seed(seed: int, name: str) -> None:
    _need(0 <= seed < 1 << 32, f"{name}: {seed} is no seed; 0 to {(1 << 32) - 1} are")


def _near(word: str, known: Sequence[str]) -> str:
    near = get_close_matches(word, known, 1)
    return f" (did you mean {near[0]}?)" if near else ""


@dataclass(frozen=True)
class ProblemSet:
    """Which problems to take.

    Attributes:
        problems: shipped (our own set), gsm8k (the hub's openai/gsm8k), gsm8k-socratic (the same problems with sub-questions in the
            solutions), or a JSONL file in GSM8K's format.
        split: of gsm8k, train or test.
        first: number of the first problem taken, from 0.
        limit: how many, from there; left out takes the rest.
    """

    problems: str = "shipped"
    split: Literal["train", "test"] = "train"
    first: int = 0
    limit: int | None = None

    def __post_init__(self) -> None:
        """Checks the numbers."""
        _need(self.first >= 0, f"first is {self.first}; 0 or more is needed")
        _need(self.limit is None or self.limit >= 1, f"limit is {self.limit}; at least 1 is needed, or leave it out")


@dataclass(frozen=True)
class DataConfig:
    """The three disjoint sets of problems.

    Attributes:
        train: the students learn on these.
        heldout: never trained on; for the divergence to the teacher, for perplexity and for the search. From the training split.
        test: the students' accuracy is taken on these.
    """

    train: ProblemSet = ProblemSet(limit=40)
    heldout: ProblemSet = ProblemSet(first=40, limit=6)
    test: ProblemSet = ProblemSet(split="test", first=46)

    def __post_init__(self) -> None:
        """Checks that nothing is trained on, or chosen by, what is tested on."""
        for name in ("train", "heldout"):
            own = getattr(self, name)
            _need(own.split != "test", f'data.{name}.split is "test", on which only data.test may be; use split = "train"')


@dataclass(frozen=True)
class TeacherConfig:
    """Who answers, and which signals are kept of it.

    Attributes:
        kind: transformers, vllm, openai, replay or reference (see `distill.teachers.TEACHERS`).
        model: hub id, folder, adapter folder, .gguf file or smollm2; for openai the model's name at the server.
        revision: of a hub id; for openai a label of your own for what the server serves: another label, other records.
        device: auto, cpu, cuda, cuda:N, mps or balanced.
        dtype: auto, float32, bfloat16 or float16.
        chat: use the chat template; left out: where the tokenizer has one.
        signal: text, topk, hidden or dense: what is stored beside the response's tokens.
        top_k: of topk, how many tokens are kept at each position.
        max_new_tokens: cut of an answer.
        temperature: of sampling; 0 is greedy. (The distillation's own temperature is objective.temperature.)
        top_p: of sampling.
        seed: of sampling.
        batch_size: answers at a time.
        shard_rows: answers of a file of records; what a killed run may lose.
        url: of an OpenAI-compatible server, with /v1.
        tokenizer: of the model behind the server, hub id or folder; needed for topk.
        api_key_env: name of the environment variable with the server's key.
        concurrency: requests at a time.
        requests_per_minute: at most; left out: no limit.
        timeout_s: of one request, in seconds.
        retries: of one request, after an error that may pass.
        responses: of replay, a JSONL file with question and response.
        tensor_parallel: of vllm, GPUs of one model.
        trust_remote_code: run the checkpoint's own model code.
    """

    kind: str = "transformers"
    model: str = "smollm2"
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    chat: bool | None = None
    signal: Literal["text", "topk", "hidden", "dense"] = "hidden"
    top_k: int = 64
    max_new_tokens: int = 350
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 16
    shard_rows: int = 64
    url: str | None = None
    tokenizer: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: int = 8
    requests_per_minute: float | None = None
    timeout_s: float = 120.0
    retries: int = 5
    responses: str | None = None
    tensor_parallel: int = 1
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name in ("top_k", "max_new_tokens", "batch_size", "shard_rows", "concurrency", "tensor_parallel"):
            _need(getattr(self, name) >= 1, f"teacher.{name} is {getattr(self, name)}; at least 1 is needed")
        _need(0 <= self.temperature < math.inf, f"teacher.temperature is {self.temperature}; 0 (greedy) or more is needed")
        _need_seed(self.seed, "teacher.seed")
        _need(0 < self.top_p <= 1, f"teacher.top_p is {self.top_p}; it must lie above 0 and at most at 1")
        _need(self.retries >= 0 and self.timeout_s > 0, "teacher.retries must be 0 or more and teacher.timeout_s above 0")
        _need(self.requests_per_minute is None or self.requests_per_minute > 0, "teacher.requests_per_minute must be above 0")


@dataclass(frozen=True)
class StudentConfig:
    """Who learns, and with which adapter.

    Attributes:
        model: hub id, folder, .gguf file or smollm2.
        revision: of a hub id.
        device: auto, cpu, cuda, cuda:N or mps.
        dtype: of the frozen base: auto, float32, bfloat16 or float16. The adapter is always trained in float32.
        chat: use the chat template; left out: where the tokenizer has one.
        instruction: put beside every question, the same for all conditions, in training and evaluation; "" puts nothing.
        place: of the instruction: system, before or after.
        rank: of LoRA.
        lora_alpha: of LoRA; the update is scaled by lora_alpha / rank.
        dropout: of LoRA's input.
        targets: modules that LoRA changes, by the end of their names.
        trust_remote_code: run the checkpoint's own model code.
    """

    model: str = "smollm2"
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    chat: bool | None = None
    instruction: str = ""
    place: Literal["system", "before", "after"] = "after"
    rank: int = 8
    lora_alpha: int = 16
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Checks the ranges."""
        _need(self.rank >= 1, f"student.rank is {self.rank}; at least 1 is needed")
        _need(0 <= self.dropout < 1, f"student.dropout is {self.dropout}; it must lie in [0, 1)")
        _need(self.lora_alpha >= 1, f"student.lora_alpha is {self.lora_alpha}; at least 1 is needed, or the adapter changes nothing")
        _need(bool(self.targets), "student.targets is empty; name at least one module, such as q_proj")


@dataclass(frozen=True)
class ObjectiveConfig:
    """What a student minimises: `alpha * CE + (1 - alpha) * temperature^2 * divergence`, a mean over the scored tokens.

    Attributes:
        name: aligned (the teacher answers; both score the response's tokens, each after its own prompt) or published (arXiv
            2412.17846's code: the teacher scores prompt and question, matched by index to the question and to the answer's tokens).
        divergence: forward_kl is KL(teacher || student), reverse_kl is KL(student || teacher), jsd lies between by beta.
        beta: of jsd: 0 is forward_kl, 1 is reverse_kl.
        temperature: both sides' logits are divided by it for the divergence.
        alpha: weight of the cross-entropy, 0 to 1; at 1 the teacher's signals are not used.
        teacher: records (stored signals) or live (the teacher is held in memory and scores while the student learns).
        topk_at_temperature: what to do where stored top-k signals meet a temperature other than 1: refuse, or truncate (both sides
            restricted to the kept tokens; the mass that is missing is printed).
        order: of published: matched pairs each question with its own signals; lexicographic pairs them as the published code does
            (keys sorted as text: 1, 10, 100, 1000, 1001, ...).
        keep: all answers of the teacher, or only the correct ones.
        cut: answers that ran into teacher.max_new_tokens: keep (without an end) or drop.
        max_tokens: longest text, in tokens; the rest is cut. 256 in the published code.
    """

    name: Literal["aligned", "published"] = "aligned"
    divergence: str = "forward_kl"
    beta: float = 0.5
    temperature: float = 1.0
    alpha: float = 0.5
    teacher: Literal["records", "live"] = "records"
    topk_at_temperature: Literal["refuse", "truncate"] = "refuse"
    order: Literal["matched", "lexicographic"] = "matched"
    keep: Literal["all", "correct"] = "all"
    cut: Literal["keep", "drop"] = "keep"
    max_tokens: int = 1024

    def __post_init__(self) -> None:
        """Checks the ranges."""
        _need(
            self.divergence in DIVERGENCES,
            f"objective.divergence {self.divergence!r}{_near(self.divergence, DIVERGENCES)}; known: {', '.join(DIVERGENCES)}",
        )
        _need(0 <= self.alpha <= 1, f"objective.alpha is {self.alpha}; it must lie in [0, 1]")
        _need(0 <= self.beta <= 1, f"objective.beta is {self.beta}; it must lie in [0, 1]")
        _need(0 < self.temperature < math.inf, f"objective.temperature is {self.temperature}; it must be above 0")
        _need(self.max_tokens >= 2, f"objective.max_tokens is {self.max_tokens}; at least 2 is needed")
        published = self.name == "published"
        _need(not published or self.divergence == "reverse_kl", 'objective published has divergence = "reverse_kl", as its code has it')
        _need(not published or self.keep == "all", 'objective published trains on the reference answers: keep = "all"')
        _need(published or self.order == "matched", 'objective.order = "lexicographic" belongs to name = "published"')

    @property
    def formula(self) -> str:
        """The loss, as cards and tables state it."""
        if self.alpha == 1:
            return "CE"
        names = {"forward_kl": "KL(teacher || student)", "reverse_kl": "KL(student || teacher)", "jsd": f"JSD(beta {self.beta:g})"}
        return f"{self.alpha:g} CE + {1 - self.alpha:g} T^2 {names[self.divergence]} at T = {self.temperature:g}"


@dataclass(frozen=True)
class TrainConfig:
    """The optimiser's side of training, as transformers' `TrainingArguments` name it.

    Attributes:
        epochs: passes over the records.
        batch_size: texts of one forward pass on one device.
        gradient_accumulation: forward passes of one step.
        order: shuffled (by seed and epoch, the same for all conditions), or given (the problems' own order in every epoch).
        learning_rate: at its highest.
        optimizer: a name of transformers' `OptimizerNames`, such as adamw_torch or sgd.
        optimizer_arguments: as text, such as "momentum=0.9".
        schedule: a name of transformers' `SchedulerType`, such as cosine, linear or constant.
        schedule_arguments: such as {num_cycles = 1.0}.
        warmup_steps: steps, or a share of all steps where below 1.
        weight_decay: of the adapter's matrices.
        max_grad_norm: gradients are scaled down to it; 0 leaves them as they are.
        bf16: autocast to bfloat16.
        gradient_checkpointing: compute activations again in the backward pass.
        save_steps: a checkpoint every so many steps, from which a killed run goes on.
        logging_steps: a line of the log every so many steps.
        report_to: trackers, such as tensorboard or wandb.
    """

    epochs: float = 2.0
    batch_size: int = 8
    gradient_accumulation: int = 1
    order: Literal["shuffled", "given"] = "shuffled"
    learning_rate: float = 2e-4
    optimizer: str = "adamw_torch"
    optimizer_arguments: str = ""
    schedule: str = "cosine"
    schedule_arguments: dict[str, Any] = field(default_factory=dict)
    warmup_steps: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    bf16: bool = False
    gradient_checkpointing: bool = False
    save_steps: int = 50
    logging_steps: int = 5
    report_to: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name in ("batch_size", "gradient_accumulation", "save_steps", "logging_steps"):
            _need(getattr(self, name) >= 1, f"train.{name} is {getattr(self, name)}; at least 1 is needed")
        for name in ("epochs", "learning_rate"):
            _need(0 < getattr(self, name) < math.inf, f"train.{name} is {getattr(self, name)}; it must be above 0, and finite")
        for name in ("warmup_steps", "weight_decay", "max_grad_norm"):
            _need(0 <= getattr(self, name) < math.inf, f"train.{name} is {getattr(self, name)}; 0 or more is needed, and finite")


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "epochs": 2.0,
        "batch_size": 1,
        "order": "given",
        "learning_rate": 5e-6,
        "optimizer": "sgd",
        "optimizer_arguments": "momentum=0.9",
        "schedule": "cosine",
        # the published code anneals over one epoch and runs for two: the rate falls to 0, and rises again in the second
        "schedule_arguments": {"num_cycles": 1.0},
        "warmup_steps": 0,
        "weight_decay": 0.01,
        "max_grad_norm": 0.0,
    },
}
"""Named values of `[train]`; `preset = "paper"` takes them, and keys beside it change them."""


@dataclass(frozen=True)
class EvaluationConfig:
    """How every student is measured, the same for all.

    Attributes:
        max_new_tokens: cut of an answer.
        batch_size: answers at a time.
        samples: answers to each problem; above 1 they are sampled.
        temperature: of sampling; 0 is greedy.
        top_p: of sampling.
        stop: texts that end an answer, beside the end-of-text tokens.
        grader: whose verdict the accuracy is (see `distill.grading.GRADERS`); all are stored.
        level: of intervals.
        resamples: of the bootstrap.
        seed: of sampling and of the bootstrap.
    """

    max_new_tokens: int = 350
    batch_size: int = 32
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ("Question:",)
    grader: str = "first_final"
    level: float = 0.95
    resamples: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name in ("max_new_tokens", "batch_size", "samples", "resamples"):
            _need(getattr(self, name) >= 1, f"evaluation.{name} is {getattr(self, name)}; at least 1 is needed")
        _need(0 <= self.temperature < math.inf, f"evaluation.temperature is {self.temperature}; 0 (greedy) or more is needed")
        _need_seed(self.seed, "evaluation.seed")
        _need(all(self.stop), 'evaluation.stop holds "", which ends every answer at once; leave it out')
        _need(self.samples == 1 or self.temperature > 0, "evaluation.samples above 1 needs evaluation.temperature above 0")
        _need(0 < self.top_p <= 1, f"evaluation.top_p is {self.top_p}; it must lie above 0 and at most at 1")
        _need(0 < self.level < 1, f"evaluation.level is {self.level}; it must lie between 0 and 1, such as 0.95")


@dataclass(frozen=True)
class HeadsConfig:
    """What is recorded of a student's attention heads while it learns. It shapes no student: a finished one is kept when it changes.

    Attributes:
        records: recordings, evenly from before the first step to after the last and at least 10 steps apart; 0 records nothing.
        texts: how many of the held-out problems are read, from the first, each with its reference solution.
        measures: of `interp.measures.MEASURES`.
    """

    records: int = 6
    texts: int = 8
    measures: tuple[str, ...] = ("entropy_nats", "bos_mass", "mean_distance", "numeric_mass", "operator_mass")

    def __post_init__(self) -> None:
        """Checks the ranges."""
        _need(
            self.records == 0 or self.records >= 2,
            f"heads.records is {self.records}; 0 records nothing, 2 or more the first step, the last, and others between",
        )
        _need(self.texts >= 1, f"heads.texts is {self.texts}; at least 1 is needed; heads.records = 0 records nothing")
        _need(
            bool(self.measures) and len(set(self.measures)) == len(self.measures),
            f"heads.measures is {list(self.measures)}; name at least one, each once; heads.records = 0 records nothing",
        )


@dataclass(frozen=True)
class SearchConfig:
    """What `search` varies, and what it asks for.

    Attributes:
        condition: whose student is searched for.
        trials: students to train, in all.
        metric: heldout_nll (mean negative log-likelihood of the teacher's held-out answers, nats a token) or heldout_accuracy.
        split: where the metric is taken; only "heldout", from the training split.
        temperature: lowest and highest; one value fixes it.
        alpha: lowest and highest.
        learning_rate: lowest and highest, on a log scale.
        rank: values to choose from.
        seed: of the sampler and of every trial's student.
    """

    condition: str = "none"
    trials: int = 20
    metric: Literal["heldout_nll", "heldout_accuracy"] = "heldout_nll"
    split: str = "heldout"
    temperature: tuple[float, ...] = (1.0, 8.0)
    alpha: tuple[float, ...] = (0.0, 1.0)
    learning_rate: tuple[float, ...] = (1e-5, 1e-3)
    rank: tuple[int, ...] = (4, 8, 16, 32)
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        _need(
            self.split == "heldout",
            f'search.split is {self.split!r}: a search on it would leak into the results; only "heldout" is allowed',
        )
        _need(self.trials >= 1, f"search.trials is {self.trials}; at least 1 is needed")
        for name in ("temperature", "alpha", "learning_rate"):
            values = getattr(self, name)
            _need(
                len(values) in (1, 2) and list(values) == sorted(values),
                f"search.{name} is {list(values)}; give [lowest, highest] or [value]",
            )
        _need(self.temperature[0] > 0 and self.learning_rate[0] > 0, "search.temperature and search.learning_rate must be above 0")
        _need(self.alpha[0] >= 0 and self.alpha[-1] <= 1, "search.alpha must lie in [0, 1]")
        _need_seed(self.seed, "search.seed")
        _need(bool(self.rank) and min(self.rank) >= 1, "search.rank needs values of at least 1")


@dataclass(frozen=True)
class Study:
    """A whole study.

    Attributes:
        name: short, for the folder of results.
        conditions: untouched, finetune, and names of strategies.
        seeds: one student of each condition and seed.
        strategies: TOML files with strategies of one's own.
        out: folder of the results; left out: runs/NAME.
        baseline: the condition with which the others are compared.
        data: problems.
        teacher: who answers.
        student: who learns.
        objective: what is minimised.
        train: how.
        evaluation: how it is measured.
        heads: what is recorded of its heads while it learns.
        search: what `search` varies.
    """

    name: str
    conditions: tuple[str, ...] = ("untouched", "finetune", "none", "teacher", "ground_truth", "confidence")
    seeds: tuple[int, ...] = (0,)
    strategies: tuple[str, ...] = ()
    out: str | None = None
    baseline: str = "none"
    data: DataConfig = DataConfig()
    teacher: TeacherConfig = TeacherConfig()
    student: StudentConfig = StudentConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = EvaluationConfig()
    heads: HeadsConfig = HeadsConfig()
    search: SearchConfig = SearchConfig()

    def __post_init__(self) -> None:
        """Checks what concerns several sections."""
        _need(bool(NAME.fullmatch(self.name)), f"name is {self.name!r}; letters, digits, '_', '-' and '.' are allowed")
        for key in ("conditions", "seeds"):
            values = getattr(self, key)
            _need(bool(values) and len(set(values)) == len(values), f"{key} is {list(values)}; name at least one, each once")
        for seed in self.seeds:
            _need_seed(seed, "seeds")
        own = self.objective
        _need(
            own.teacher == "records" or self.teacher.kind == "transformers",
            'objective.teacher = "live" needs teacher.kind = "transformers"',
        )
        distilled = any(name not in RESERVED for name in self.conditions) and own.alpha < 1
        if distilled and own.teacher == "records":
            _need(
                self.teacher.signal != "text",
                f'objective.alpha is {own.alpha}, so the teacher\'s distribution is needed, but teacher.signal is "text"; '
                "set alpha = 1, or signal to topk, hidden or dense",
            )
            _need(
                not (self.teacher.signal == "topk" and own.temperature != 1 and own.topk_at_temperature == "refuse"),
                f"objective.temperature is {own.temperature}, but stored top-k signals are sound at temperature 1 only: the mass outside "
                'of them is not known elsewhere; set teacher.signal = "hidden", temperature = 1, or allow it by '
                'objective.topk_at_temperature = "truncate"',
            )

    @property
    def folder(self) -> Path:
        """Where the results go."""
        return Path(self.out) if self.out else Path("runs") / self.name


def read_study(file: str | Path, settings: Sequence[str] = ()) -> Study:
    """Reads and checks a study.

    Args:
        file: TOML.
        settings: changes on top of it, such as "train.epochs=1" or "seeds=[0, 1]", the value in TOML's form; a value that is no TOML
            is taken as text.

    Raises:
        StudyError: a file that cannot be read, a wrong key (the nearest is named), a value out of range.
    """
    try:
        content = tomllib.loads(Path(file).read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StudyError(f"{file}: no valid TOML ({error})") from error
    except OSError as error:
        raise StudyError(f"{file}: cannot be read ({error.strerror or error})") from error
    content.setdefault("name", Path(file).stem)
    for setting in settings:
        _set(content, setting)
    return study_from(content, str(file))


def study_from(content: Mapping[str, Any], place: str = "study") -> Study:
    """A study from the tables of a TOML file, as `read_study`."""
    content = dict(content)
    train = content.get("train")
    if isinstance(train, dict) and "preset" in train:
        preset = train["preset"]
        if not isinstance(preset, str) or preset not in PRESETS:
            raise StudyError(f"{place}: train.preset is {preset!r}; known: {', '.join(PRESETS)}")
        content["train"] = {**PRESETS[preset], **{key: value for key, value in train.items() if key != "preset"}}
    _check_keys(content, Study, "", place)
    try:
        return msgspec.convert(content, Study)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, StudyError):
            raise StudyError(f"{place}: {error.__cause__}") from None
        raise StudyError(f"{place}: {str(error).replace('`$.', '`')}{_allowed(str(error))}") from None


def _allowed(message: str) -> str:
    """The values that a key takes, where it takes a few names."""
    found = re.fullmatch(r"Invalid enum value '?(?P<seen>.*?)'? - at `\$\.(?P<path>[\w.]+)`", message)
    if not found:
        return ""
    kind: Any = Study
    for key in found["path"].split("."):
        kind = get_type_hints(kind).get(key)
    known = [str(value) for value in get_args(kind)]
    return f"{_near(found['seen'], known)}; known: {', '.join(known)}" if known else ""


def as_tables(config: Any) -> dict[str, Any]:
    """A section, or a whole study, as plain tables of JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))  # msgspec leaves out what it set to a default


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The keys whose values differ between two trees of tables, as lines "train.epochs: was 2.0, is 1.0"."""
    lines = []
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: was {old!r}, is {new!r}")
    return lines


def _check_keys(content: Mapping[str, Any], cls: type, prefix: str, place: str) -> None:
    hints = get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]
    for key, value in content.items():
        if key not in known:
            extra = ["preset"] if cls is TrainConfig else []
            near = _near(key, [*known, *extra]) or _near_elsewhere(key)
            section = f" of [{prefix.rstrip('.')}]" if prefix else ""
            raise StudyError(f"{place}: unknown key {prefix}{key}{near}; known keys{section}: {', '.join([*known, *extra])}")
        if dataclasses.is_dataclass(hints[key]) and isinstance(value, Mapping):
            _check_keys(value, hints[key], f"{prefix}{key}.", place)  # pyright: ignore[reportArgumentType]


def _near_elsewhere(word: str) -> str:
    """A key that stands in another section."""
    hints = get_type_hints(Study)
    for section, cls in hints.items():
        if dataclasses.is_dataclass(cls) and word in [f.name for f in dataclasses.fields(cls)]:
            return f" (did you mean {section}.{word}?)"
    return ""


def _set(content: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise StudyError(f"--set {setting!r}: it must be KEY=VALUE, such as train.epochs=1")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    *sections, last = key.strip().split(".")
    table = content
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise StudyError(f"--set {setting!r}: {section} is no section")
    table[last] = value
