"""Tiny checkpoints on disk, and the command run in this process. Nothing is downloaded."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROBLEMS = (
    ("Ann has 12 pens and buys 3 packs of 4. How many pens?", "She buys 3*4 = <<3*4=12>>12 pens.\nNow 12+12 = <<12+12=24>>24.\n#### 24"),
    ("A cup costs $2. What do 15 cups cost?", "15 x 2 = $<<15*2=30>>30.\n#### 30"),
    ("Tom reads 20 pages a day for 5 days, then 7 more. How many in all?", "20*5 = <<20*5=100>>100.\n100+7 = <<100+7=107>>107.\n#### 107"),
    ("Half of 48 eggs break. How many are left?", "48/2 = <<48/2=24>>24 break.\nSo 48-24 = <<48-24=24>>24 are left.\n#### 24"),
    ("There are 9 cats with 4 legs each. How many legs?", "9*4 = <<9*4=36>>36 legs.\n#### 36"),
    ("A train goes 60 miles an hour. How far in 2.5 hours?", "60*2.5 = <<60*2.5=150>>150 miles.\n#### 150"),
    ("Mia had 31 beads and lost 6. How many now?", "31-6 = <<31-6=25>>25.\n#### 25"),
)


def make_tokenizer(template: str | None = CHAT_TEMPLATE) -> Any:
    """A byte-level BPE tokenizer with special tokens, trained on the problems above."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    fast.train_from_iterator([text for problem in PROBLEMS for text in problem], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=fast, pad_token=special[0], bos_token=special[1], eos_token=special[2], clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = template
    return tokenizer


class Ran(NamedTuple):
    """How the command ended."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def save_checkpoint(tiny_model: Callable[..., Any]) -> Callable[..., Path]:
    """`(folder, family, template=..., **settings)` saves a tiny random model with its tokenizer."""

    def save(folder: Path, family: str = "llama", *, template: str | None = CHAT_TEMPLATE, **settings: Any) -> Path:
        settings = {"vocab_size": 400, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, **settings}
        tiny_model(family, **settings).save_pretrained(folder)
        make_tokenizer(template).save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, save_checkpoint: Callable[..., Path]) -> Path:
    """A tiny Llama. Read only: a test that damages a checkpoint makes or copies its own."""
    return save_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def save_adapter() -> Callable[..., Path]:
    """`(folder, base)` saves a LoRA adapter that changes its base; `scale=0` leaves every lora_B zero."""

    def save(folder: Path, base: Path, *, scale: float = 0.5) -> Path:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(base)
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        with warnings.catch_warnings():  # peft 0.21 asks transformers 5.23 by an old name
            warnings.simplefilter("ignore", FutureWarning)
            adapted: Any = get_peft_model(model, config)
        random = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=random) * (scale if "lora_B" in name else 0.3))
        adapted.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, save_adapter: Callable[..., Path]) -> Path:
    """A LoRA adapter of `checkpoint`. Read only."""
    return save_adapter(tmp_path_factory.mktemp("adapters") / "lora", checkpoint)


@pytest.fixture(scope="session")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven short problems as a JSONL file."""
    path = tmp_path_factory.mktemp("problems") / "short.jsonl"
    lines = [json.dumps({"question": question, "answer": answer}) for question, answer in PROBLEMS]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def heads(checkpoint: Path, problems: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """`(*arguments)` runs the command in this process: the tiny model, the short problems and no figures unless said otherwise."""
    from analyses.heads import main

    def run(*arguments: Any) -> Ran:
        given = [str(argument) for argument in arguments]
        for option, default in (("--model", checkpoint), ("--problems", problems), ("--device", "cpu")):
            if option not in given:
                given += [option, str(default)]
        if "--figures" not in given:
            given.append("--no-figures")
        capfd.readouterr()
        code = main(given)
        said = capfd.readouterr()
        return Ran(code, said.out, said.err)

    return run


@pytest.fixture(scope="session")
def tables() -> Callable[[Path], dict[str, Any]]:
    """`(folder)` reads and validates the three tables of a run."""
    from interp.table import TABLES, read

    return lambda folder: {name: read(folder / f"{name}.parquet", schema) for name, schema in TABLES.items()}
