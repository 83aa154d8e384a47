"""What the tests share: tiny random models of every family, and texts made of random tokens. Nothing is downloaded."""

from __future__ import annotations

import functools
import json
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import jaxtyping
import numpy as np
import pytest

# House rule: the shapes that public tensor functions state are executed. The hook has to be in place before the first import.
jaxtyping.install_import_hook(
    ["interp.attention.statistics", "interp.attention.blocked", "interp.attention.flash", "interp.attention.triton"], "beartype.beartype"
)

# Triton decides when it is first imported, which torch does, whether kernels run in its interpreter: on a CPU. With 0, on a GPU.
os.environ.setdefault("TRITON_INTERPRET", "1")

# No test asserts a time, so none fails where the machine has other work.
hypothesis.settings.register_profile("no clock", deadline=None)
hypothesis.settings.load_profile("no clock")

VOCABULARY = 48
"""Ids repeat within a text, so that duplicate and induction measures have something to find."""

FAMILIES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "phi3",
    "olmo2",
    "gpt_oss",
    "deepseek_v3",
)

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
GROUPED = {"num_key_value_heads": 2}
SETTINGS: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "mistral": {**GROUPED, "sliding_window": 16},
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 16},
    "gemma2": {**GROUPED, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8, "attn_logit_softcapping": 3.0},
    "gemma3_text": {
        **GROUPED,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gpt2": {},
    "gpt_neox": {"rotary_pct": 0.5},
    "phi3": {**GROUPED, "sliding_window": 16},
    "olmo2": GROUPED,
    "gpt_oss": {
        **GROUPED,
        "head_dim": 16,
        "sliding_window": 8,
        "num_local_experts": 2,
        "num_experts_per_tok": 2,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "q_lora_rank": 24,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 12,
        "first_k_dense_replace": 2,
    },
}
SHARPENED = ("q_proj", "q_b_proj", "q_norm", "query_key_value", "qkv_proj", "c_attn")
"""Parameters whose scale decides how peaked attention is."""


WITHOUT_SDPA = ("gemma2", "gpt_oss")
"""Families for which transformers has eager attention only: soft caps and sinks."""


def build_model(family: str, *, seed: int = 0, dtype: str = "float32", attention: str = "", peak: float = 2.0, **settings: Any) -> Any:
    """A tiny random model whose attention is peaked and differs between heads (that of an ordinary random init is nearly uniform)."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family, **{**SIZES, **SETTINGS[family], **settings})
    config._attn_implementation = attention or ("eager" if family in WITHOUT_SDPA else "sdpa")
    config._experts_implementation = "eager"  # the only one that runs in float64
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).eval()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=random)
            part = name.split(".")[-2] if "." in name else name
            if parameter.ndim >= 2:
                embedding = "embed" in name or "wte" in name or "wpe" in name
                inputs = parameter.shape[0 if ".c_" in name else -1]  # GPT-2's matrices stand the other way
                parameter.copy_(noise if embedding else noise / inputs**0.5)
            elif name.endswith("sinks"):
                parameter.copy_(noise)
            else:
                parameter.add_(0.1 * noise)
            if part in SHARPENED:
                parameter.mul_(peak if part.startswith("q_") else peak**0.5)
                if part == "q_norm" and family.startswith("gemma3"):
                    parameter.add_(peak - 1)  # the norm multiplies by 1 + weight
    return model.to(getattr(torch, dtype))


@functools.cache
def random_text(length: int, example: int) -> Any:
    """A text of random tokens with a template, a question, a response and roles strewn in, as `annotate` would give."""
    from interp.tables.schema import ROLES, TOKEN_REGIONS
    from interp.tokens import AnnotatedText

    random = np.random.default_rng([length, example])
    cut = int(length * random.uniform(0.3, 0.5))
    regions = np.full(length, TOKEN_REGIONS.index("response"), np.uint8)
    regions[2:cut] = TOKEN_REGIONS.index("question")
    regions[[0, 1, cut]] = TOKEN_REGIONS.index("template")
    roles = np.zeros(length, np.uint8)
    for at in range(2, length):
        if random.random() < 0.4:
            names = ("question_number", "operator") if at < cut else ("operand", "intermediate_result", "operator", "final_answer")
            roles[at] = ROLES.index(str(random.choice(names)))
    roles[[0, cut]] = ROLES.index("special")
    is_query = random.random(length) > 0.05
    ids = random.integers(1, VOCABULARY, length)
    offsets = np.zeros((length, 2), np.int64)
    return AnnotatedText(example, "", ids, offsets, regions, roles, is_query)


def random_tokens(lengths: Sequence[int], padding_side: str = "right") -> Any:
    """A batch of `random_text`, the examples numbered from 0."""
    from interp.tokens import Tokens

    return Tokens(tuple(random_text(length, example) for example, length in enumerate(lengths)), padding_side)


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., Any]:
    """`build_model`."""
    return build_model


@pytest.fixture(scope="session")
def tiny_tokens() -> Callable[..., Any]:
    """`random_tokens`."""
    return random_tokens


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 16 queries and one key head, so that short texts take several."""

    from interp.attention import blocked

    monkeypatch.setattr(blocked, "MIN_ROWS", 16)
    monkeypatch.setattr(blocked, "MAX_ROWS", 16)
    monkeypatch.setattr(blocked, "CPU_BLOCK_ELEMENTS", 256)


# --- checkpoints and problems on disk -------------------------------------------------------------------------------

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
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven short problems as a JSONL file."""
    path = tmp_path_factory.mktemp("problems") / "short.jsonl"
    lines = [json.dumps({"question": question, "answer": answer}) for question, answer in PROBLEMS]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Callable[..., Any]:
    """`(template=...)` builds the tokenizer of the tiny checkpoints; None has no chat template."""
    return make_tokenizer


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
def write_gguf() -> Callable[..., list[Path]]:
    """`tests.gguf_files.write_gguf`."""
    from tests.gguf_files import write_gguf

    return write_gguf
