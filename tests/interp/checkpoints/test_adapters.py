"""Opening one adapter on its base. Several on one model: tests/interp/recording/test_divergence.py."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.checkpoints.adapters import open_adapters
from interp.checkpoints.opening import open_checkpoint
from interp.tables.errors import CheckpointError


def test_an_adapter_changes_its_base_and_can_be_disabled(
    adapter: Path, folder: Path, sha256: Callable[..., Any], logits_of: Callable[..., Any]
) -> None:
    base, adapted = open_checkpoint(folder, device="cpu"), open_checkpoint(adapter, device="cpu")
    assert not any(parameter.requires_grad for parameter in adapted.model.parameters())
    assert not torch.allclose(logits_of(base.model), logits_of(adapted.model), atol=1e-3)
    with adapted.model.disable_adapter():
        torch.testing.assert_close(logits_of(adapted.model), logits_of(base.model))
    assert adapted.position_limit == 256
    about = {"kind": "adapter", "source": str(adapter), "revision": None, "peft_type": "LORA", "rank": 2}
    weights = {"weights_sha256": sha256(adapter / "adapter_model.safetensors")}
    expected = {**base.identity, "name": "lora", "adapter": {**about, **weights}}
    got = {**adapted.identity, "n_parameters": expected["n_parameters"], "architecture": expected["architecture"]}
    assert got == expected


def test_an_adapter_from_the_hub_records_its_source_and_revision(adapter: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda hub_id, **_: str(adapter))
    identity = open_checkpoint("someone/lora", device="cpu").identity
    assert identity["adapter"]["source"] == "someone/lora"
    assert identity["adapter"]["revision"] == adapter.name
    assert (identity["kind"], identity["source"], identity["revision"]) == ("folder", str(folder), None)


def test_base_overrides_the_base_of_the_config(
    adapter: Path, tmp_path: Path, tiny_model: Callable[..., Any], save_tokenizer: Callable[..., Any], logits_of: Callable[..., Any]
) -> None:
    tiny_model("llama", seed=5).save_pretrained(tmp_path / "other")
    save_tokenizer(tmp_path / "other")
    one, other = open_checkpoint(adapter, device="cpu"), open_checkpoint(adapter, base=str(tmp_path / "other"), device="cpu")
    assert other.identity["source"] == str(tmp_path / "other")
    assert other.identity["weights_sha256"] != one.identity["weights_sha256"]
    assert other.identity["adapter"] == one.identity["adapter"]
    assert not torch.allclose(logits_of(one.model), logits_of(other.model), atol=1e-3)


@pytest.mark.parametrize(("named", "place"), [("../base", "base"), ("inside", "lora/inside")])
def test_a_relative_base_is_found_from_the_adapter_folder(
    adapter: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, place: str, change_json: Callable[..., Any]
) -> None:
    lora = Path(shutil.copytree(adapter, tmp_path / "lora"))
    shutil.copytree(folder, tmp_path / place)
    change_json(lora / "adapter_config.json", base_model_name_or_path=named)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # wherever the command runs
    checkpoint = open_checkpoint("../lora", device="cpu")
    assert Path(checkpoint.identity["source"]).resolve() == tmp_path / place


def test_the_tokenizer_of_an_adapter_is_preferred(adapter: Path, tmp_path: Path, save_tokenizer: Callable[..., Any]) -> None:
    assert open_checkpoint(adapter, device="cpu").tokenizer.chat_template is None
    lora = Path(shutil.copytree(adapter, tmp_path / "lora"))
    save_tokenizer(lora, chat_template="{{ messages[0]['content'] }}")
    assert open_checkpoint(lora, device="cpu").tokenizer.chat_template == "{{ messages[0]['content'] }}"


def test_an_adapter_that_changes_nothing_is_refused(adapter: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    lora = Path(shutil.copytree(adapter, tmp_path / "lora"))
    path = lora / "adapter_model.safetensors"
    weights = load_file(path)
    for scale, message in ((1e-3, None), (1e-30, "logits with and without it are equal"), (0.0, "lora_B are zero")):
        scaled = {key: value * scale if "lora_B" in key else value for key, value in weights.items()}
        save_file(scaled, path, metadata={"format": "pt"})
        if message is None:
            open_checkpoint(lora, device="cpu")
        else:
            with pytest.raises(CheckpointError, match=message):
                open_checkpoint(lora, device="cpu")


@pytest.fixture
def train_adapter(folder: Path, logits_of: Callable[..., Any]) -> Callable[..., torch.Tensor]:
    """Save an adapter that PEFT initialized and that training moved; return the logits that it had where it was trained."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    def train(target: Path, start: Any, *, moved: bool = True, **settings: Any) -> torch.Tensor:
        torch.manual_seed(11)
        model: Any = AutoModelForCausalLM.from_pretrained(folder)
        config = LoraConfig(
            r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=start, task_type="CAUSAL_LM", **settings
        )
        adapted: Any = get_peft_model(model, config)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name and moved:
                parameter.data += 0.2 * torch.randn(parameter.shape)
        adapted.save_pretrained(target)
        return logits_of(adapted.eval())

    return train


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"use_dora": True}], ids=["plain", "rslora", "dora"])
@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_an_adapter_that_rewrote_its_base_gives_its_numbers_and_the_true_base(
    start: str,
    settings: dict[str, Any],
    folder: Path,
    tmp_path: Path,
    train_adapter: Callable[..., torch.Tensor],
    logits_of: Callable[..., torch.Tensor],
) -> None:
    wanted = train_adapter(tmp_path / start, start, **settings)
    base = logits_of(open_checkpoint(folder, device="cpu").model)
    opened = open_checkpoint(tmp_path / start, device="cpu").model
    torch.testing.assert_close(logits_of(opened), wanted, rtol=1e-4, atol=1e-4)
    assert (wanted - base).abs().max() > 0.01
    with opened.disable_adapter():
        assert torch.equal(logits_of(opened), base)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_adapters_that_rewrote_their_base_can_share_it(
    order: tuple[int, ...],
    folder: Path,
    tmp_path: Path,
    train_adapter: Callable[..., torch.Tensor],
    logits_of: Callable[..., torch.Tensor],
) -> None:
    starts = ("pissa", True, "olora")
    wanted = [train_adapter(tmp_path / str(start), start) for start in starts]
    base = logits_of(open_checkpoint(folder, device="cpu").model)
    opened = open_adapters([tmp_path / str(starts[at]) for at in order], device="cpu")
    for at, checkpoint in zip(order, opened, strict=True):
        checkpoint.model.set_adapter(checkpoint.adapter)
        torch.testing.assert_close(logits_of(checkpoint.model), wanted[at], rtol=1e-4, atol=1e-4)
        alone = logits_of(open_checkpoint(tmp_path / str(starts[at]), device="cpu").model)
        torch.testing.assert_close(logits_of(checkpoint.model), alone, rtol=1e-5, atol=1e-5)
    with opened[0].model.disable_adapter():
        assert torch.equal(logits_of(opened[0].model), base)


@pytest.mark.parametrize("start", ["gaussian", "orthogonal", "eva"])
def test_starts_that_leave_the_base_alone_are_plain_adapters(
    start: str, adapter: Path, tmp_path: Path, change_json: Callable[..., Any], logits_of: Callable[..., torch.Tensor]
) -> None:
    lora = Path(shutil.copytree(adapter, tmp_path / "lora"))
    change_json(lora / "adapter_config.json", init_lora_weights=start)
    assert torch.equal(logits_of(open_checkpoint(lora, device="cpu").model), logits_of(open_checkpoint(adapter, device="cpu").model))


@pytest.mark.parametrize("start", ["pissa_niter_4", "loftq", "corda", "lora_ga", "from_next_year"])
def test_a_start_that_cannot_be_reproduced_is_refused(start: str, adapter: Path, tmp_path: Path, change_json: Callable[..., Any]) -> None:
    lora = Path(shutil.copytree(adapter, tmp_path / "lora"))
    change_json(lora / "adapter_config.json", init_lora_weights=start, **({"loftq_config": {"loftq_bits": 4}} if start == "loftq" else {}))
    message = f"init_lora_weights='{start}'.*path_initial_model_for_weight_conversion"
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(lora, device="cpu")
    with pytest.raises(CheckpointError, match=message):
        open_adapters([adapter, lora], device="cpu")


def test_an_untrained_adapter_of_a_rewritten_base_is_refused(tmp_path: Path, train_adapter: Callable[..., torch.Tensor]) -> None:
    train_adapter(tmp_path / "pissa", "pissa", moved=False)
    with pytest.raises(CheckpointError, match="those that it was initialized with"):
        open_checkpoint(tmp_path / "pissa", device="cpu")


def test_a_model_whose_base_was_rewritten_cannot_be_switched(folder: Path) -> None:
    from peft import LoraConfig

    from interp.checkpoints.adapters import check_switchable

    with pytest.raises(CheckpointError, match="init_lora_weights='pissa', which rewrites the base"):
        check_switchable(LoraConfig(init_lora_weights="pissa"), "lora")


ADDED = 3


@pytest.fixture
def train_on_added_tokens(folder: Path, save_tokenizer: Callable[..., None]) -> Callable[..., torch.Tensor]:
    """Save an adapter of `folder` with added tokens, as chat fine-tunes are; return its logits of a text with an added token."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def train(target: Path, *, tied: bool = False, **settings: Any) -> torch.Tensor:
        torch.manual_seed(5)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_special_tokens({"additional_special_tokens": [f"<new{number}>" for number in range(ADDED)]})
        source = folder
        if tied:
            source = target.parent / "tied"
            plain = AutoModelForCausalLM.from_pretrained(folder)
            plain.config.tie_word_embeddings = True
            plain.tie_weights()
            plain.save_pretrained(source)
            save_tokenizer(source)
        model: Any = AutoModelForCausalLM.from_pretrained(source)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        adapted: Any = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", **settings))
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data += 0.2 * torch.randn(parameter.shape)
        adapted.save_pretrained(target)
        tokenizer.save_pretrained(target)
        with torch.no_grad():
            return adapted.eval()(input_ids=TEXT, use_cache=False).logits

    return train


TEXT = torch.tensor([[4, 48, 7, 50, 9, 49]])

TRAINED: dict[str, dict[str, Any]] = {
    "replaced modules": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "replaced modules, tied": {"modules_to_save": ["embed_tokens"], "tied": True},
    "single tokens, tied": {"trainable_token_indices": [48, 49, 50], "tied": True},
    "single tokens": {"trainable_token_indices": {"embed_tokens": [48, 49, 50], "lm_head": [48, 49, 50]}},
}


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`", "ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("case", TRAINED)
def test_an_adapter_with_added_tokens_resizes_its_base(
    case: str, tmp_path: Path, train_on_added_tokens: Callable[..., torch.Tensor]
) -> None:
    wanted = train_on_added_tokens(tmp_path / "lora", **TRAINED[case])
    opened = open_checkpoint(tmp_path / "lora", device="cpu")
    assert len(opened.tokenizer) == 48 + ADDED == opened.model.config.vocab_size
    with torch.no_grad():
        found = opened.model(input_ids=TEXT, use_cache=False).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert opened.tokenizer("w3 <new1>")["input_ids"][-1] == 49
    with pytest.raises(CheckpointError, match="cannot be switched on a shared model"):
        open_adapters([tmp_path / "lora"], device="cpu")


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_added_rows_without_weights_are_refused(tmp_path: Path, train_on_added_tokens: Callable[..., torch.Tensor]) -> None:
    train_on_added_tokens(tmp_path / "lora", trainable_token_indices=[48, 49, 50])
    from safetensors.torch import load_file, save_file

    path = tmp_path / "lora" / "adapter_model.safetensors"
    save_file({key: value for key, value in load_file(path).items() if "lm_head" not in key and not key.endswith("tokens.weight")}, path)
    with pytest.raises(
        CheckpointError, match=r"a base with 51 tokens, and its base has 48; it holds no weights of the added rows of lm_head"
    ):
        open_checkpoint(tmp_path / "lora", device="cpu")


def test_an_activated_adapter_is_refused_with_what_is_missing(adapter: Path, tmp_path: Path, change_json: Callable[..., Any]) -> None:
    lora = Path(shutil.copytree(adapter, tmp_path / "lora"))
    change_json(lora / "adapter_config.json", alora_invocation_tokens=[4, 5])
    with pytest.raises(CheckpointError, match="acts only after its invocation tokens"):
        open_checkpoint(lora, device="cpu")
