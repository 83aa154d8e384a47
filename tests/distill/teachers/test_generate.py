from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from distill.strategies import Strategy
from distill.teachers.generate import Sampling, _draw, _Row, end_ids, generate
from interp.checkpoints.opening import open_checkpoint
from interp.checkpoints.unembedding import output_head
from interp.tables.errors import InputError

PROMPTS = [[5, 9, 11, 30, 7], [8, 8, 21], [3, 17, 40, 41, 6, 12, 19, 33], [25]]


class Letters:
    """A tokenizer for the tests: token i is the i-th letter."""

    eos_token_id: int | None = None

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return "".join(chr(ord("A") + i) for i in ids if not (skip_special_tokens and i == self.eos_token_id))


def plain(model: Any, prompt: list[int], new: int, **settings: Any) -> list[int]:
    """Return the tokens of greedy `generate` of transformers for one prompt."""
    ids = torch.tensor([prompt])
    output = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, pad_token_id=0, **settings
    )
    return output[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "gpt_oss"])
def test_greedy_answers_match_transformers_for_any_batch_size(tiny_model: Callable[..., Any], family: str) -> None:
    """Some of these families have attention windows of 8 and 16 tokens, which the left-padded texts exceed."""
    model = tiny_model(family)
    wanted = [plain(model, prompt, 24) for prompt in PROMPTS]
    for size in (4, 1, 3):
        found = generate(model, Letters(), PROMPTS, Sampling(24), batch_size=size)
        assert [list(g.ids) for g in found] == wanted
        assert {g.finish for g in found} == {"length"}


def test_finished_rows_leave_the_batch(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("llama")
    free = [plain(model, prompt, 12) for prompt in PROMPTS]
    ends = [free[0][2], free[1][6]]  # several end tokens
    model.generation_config.eos_token_id = ends
    widths: list[int] = []
    hook = model.get_input_embeddings().register_forward_hook(lambda _, ids, __: widths.append(len(ids[0])))
    found = generate(model, Letters(), PROMPTS, Sampling(12), batch_size=4)
    hook.remove()
    for given, own in zip(found, free, strict=True):
        stop = next((i + 1 for i, token in enumerate(own) if token in ends), 12)
        assert list(given.ids) == own[:stop]
        assert given.finish == ("eos" if stop < 12 or own[11] in ends else "length")
        assert given.text == Letters().decode(own[: stop - (given.finish == "eos")])
    assert widths[0] == 4
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 4


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text", "gpt_oss", "gpt2", "deepseek_v3"])
def test_remaining_rows_are_not_changed_when_others_finish(tiny_model: Callable[..., Any], family: str) -> None:
    """Caches with windows, sinks and low rank: the remaining rows keep their own entries."""
    model = tiny_model(family)
    free = [plain(model, prompt, 24) for prompt in PROMPTS]
    model.generation_config.eos_token_id = [free[0][3], free[2][12]]
    wanted = [plain(model, prompt, 24) for prompt in PROMPTS]
    assert len({*map(len, wanted)}) > 1
    found = generate(model, Letters(), PROMPTS, Sampling(24), batch_size=4, signal="dense")
    assert [list(g.ids) for g in found] == wanted
    for given, own in zip(found, wanted, strict=True):
        assert given.signals["dense_log_probs"].argmax(-1).tolist() == own


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_signals_match_a_forward_pass_over_the_text(tiny_model: Callable[..., Any], family: str, dtype: str) -> None:
    model = tiny_model(family, dtype=dtype)
    tolerance = 1e-4 if dtype == "float32" else 0.3
    head = output_head(model)
    made = {
        tier: generate(model, Letters(), PROMPTS, Sampling(10), batch_size=4, signal=tier, top_k=5) for tier in ("dense", "topk", "hidden")
    }  # pyright: ignore[reportArgumentType]
    for at, prompt in enumerate(PROMPTS):
        ids = list(made["dense"][at].ids)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1].float()
        log_p = torch.log_softmax(logits, -1)
        torch.testing.assert_close(made["dense"][at].signals["dense_log_probs"], log_p, atol=tolerance, rtol=0)
        top = made["topk"][at].signals
        torch.testing.assert_close(log_p.gather(1, top["topk_ids"].long()), top["topk_log_probs"], atol=tolerance, rtol=0)
        torch.testing.assert_close(top["topk_log_probs"], log_p.topk(5).values, atol=tolerance, rtol=0)
        states = made["hidden"][at].signals["hidden"]
        assert states.dtype == getattr(torch, dtype)
        torch.testing.assert_close(torch.log_softmax(head.logits(states), -1), log_p, atol=tolerance, rtol=0)
        expected = log_p.gather(1, torch.tensor(ids)[:, None])[:, 0].numpy()
        np.testing.assert_allclose(made["dense"][at].log_probs, expected, atol=tolerance)


def test_stop_text_may_span_tokens(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("llama")
    free = plain(model, PROMPTS[0], 12)
    text = Letters().decode(free)
    stop = text[3:6]
    first = text.find(stop)
    (given,) = generate(model, Letters(), PROMPTS[:1], Sampling(12, stop=("never here", stop)), batch_size=1, signal="hidden")
    assert (given.text, given.finish) == (text[:first], "stop")
    assert list(given.ids) == free[:first]
    assert len(given.signals["hidden"]) == len(given.log_probs) == first


def test_pad_token_may_be_the_end_token(checkpoint: Path) -> None:
    opened = open_checkpoint(checkpoint, device="cpu")
    opened.tokenizer.pad_token = opened.tokenizer.eos_token
    asked = [opened.tokenizer(text)["input_ids"] for text in ("12 pens", "3*4 = 12 pens and 30 cups")]
    both = generate(opened.model, opened.tokenizer, asked, Sampling(8), batch_size=2)
    alone = [generate(opened.model, opened.tokenizer, [ids], Sampling(8), batch_size=1)[0] for ids in asked]
    assert [g.ids for g in both] == [g.ids for g in alone]


def test_peft_model(adapter: Path) -> None:
    """The output head of a PEFT model is found, and hidden states are those of the adapted model."""
    opened = open_checkpoint(adapter, device="cpu")
    ids = Strategy("none").encode(opened.tokenizer, "How many pens?", True)
    (given,) = generate(opened.model, opened.tokenizer, [ids], Sampling(6), batch_size=1, signal="hidden")
    assert list(given.ids) == plain(opened.model, ids, 6)
    with torch.no_grad():
        logits = opened.model(input_ids=torch.tensor([[*ids, *given.ids]])).logits[0, len(ids) - 1 : -1]
    torch.testing.assert_close(output_head(opened.model).logits(given.signals["hidden"]), logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("start", "length"), [(5, 1), (5, 2), (6, 3), (7, 4), (0, 1)])
def test_stop_text_within_a_token(tiny_model: Callable[..., Any], start: int, length: int) -> None:
    """The text ends at the stop text, the ids before the first token that holds a part of it."""

    class Pairs(Letters):
        def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
            return "".join(chr(ord("A") + i) + chr(ord("a") + i % 26) for i in ids)

    model = tiny_model("llama")
    free = plain(model, PROMPTS[2], 12)
    text = Pairs().decode(free)
    stop = text[start : start + length]
    first = text.find(stop)
    (given,) = generate(model, Pairs(), [PROMPTS[2]], Sampling(12, stop=(stop,)), batch_size=1, signal="dense")
    assert (given.text, given.finish) == (text[:first], "stop")
    assert list(given.ids) == free[: first // 2]
    assert len(given.log_probs) == len(given.signals["dense_log_probs"]) == first // 2


def test_stop_text_of_several_bytes(tiny_tokenizer: Callable[..., Any]) -> None:
    """A character of three bytes takes three tokens; special tokens in between add no text and do not hide it."""
    tokenizer = tiny_tokenizer()
    ids = tokenizer("12 \u20ac.", add_special_tokens=False)["input_ids"]
    row = _Row([1], Sampling(20, stop=("\u20ac",)), "key", tokenizer)
    for token in [*ids[:-2], 0, 0, 0, 0, *ids[-2:]]:
        if row.finish is None:
            row.take(token, 0.0, (2,))
    given = row.result()
    assert (given.text, given.finish) == ("12 ", "stop")
    assert tokenizer.decode(list(given.ids)) == "12 "


def test_sampled_rows_are_independent_of_the_batch(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("llama")
    sampling = Sampling(15, temperature=1.0, seed=3)
    together = generate(model, Letters(), PROMPTS, sampling, batch_size=4)
    assert [g.ids for g in together] == [g.ids for g in generate(model, Letters(), PROMPTS, sampling, batch_size=1)]
    backwards = generate(model, Letters(), PROMPTS[::-1], sampling, batch_size=2)[::-1]
    assert [g.ids for g in together] == [g.ids for g in backwards]
    other = generate(model, Letters(), PROMPTS, Sampling(15, temperature=1.0, seed=4), batch_size=4)
    assert [g.ids for g in together] != [g.ids for g in other]
    twice = generate(model, Letters(), PROMPTS[:1] * 2, sampling, batch_size=2, keys=["a", "b"])
    assert twice[0].ids != twice[1].ids


def test_log_probabilities_ignore_the_temperature(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("llama")
    (given,) = generate(model, Letters(), PROMPTS[:1], Sampling(12, temperature=3.0, top_p=0.9), batch_size=1, signal="topk", top_k=48)
    with torch.no_grad():
        log_p = torch.log_softmax(model(input_ids=torch.tensor([[*PROMPTS[0], *given.ids]])).logits[0, len(PROMPTS[0]) - 1 : -1], -1)
    assert list(given.ids) != log_p.argmax(-1).tolist()
    np.testing.assert_allclose(given.log_probs, log_p.gather(1, torch.tensor(given.ids)[:, None])[:, 0].numpy(), atol=1e-4)
    torch.testing.assert_close(given.signals["topk_log_probs"], log_p.sort(-1, descending=True).values, atol=1e-4, rtol=0)
    torch.testing.assert_close(given.signals["topk_log_probs"].exp().sum(-1), torch.ones(12))


def test_tiny_top_p_is_greedy(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("llama")
    drawn = generate(model, Letters(), PROMPTS, Sampling(12, temperature=5.0, top_p=1e-9), batch_size=4)
    assert [list(g.ids) for g in drawn] == [plain(model, prompt, 12) for prompt in PROMPTS]


@pytest.mark.parametrize("top_p", [1.0, 0.7, 1e-9])
def test_draws_follow_the_distribution_of_transformers(top_p: float) -> None:
    from transformers import TopPLogitsWarper

    warp: Any = TopPLogitsWarper(top_p) if top_p < 1 else lambda _, given: given
    logits = torch.randn(1, 30, generator=torch.Generator().manual_seed(0)) * 2
    kept = warp(torch.zeros(1, 1, dtype=torch.long), logits.clone())
    expected = torch.softmax(kept, -1)[0].double().numpy()
    rows = [_Row([i], Sampling(1, temperature=1.0), str(i), Letters()) for i in range(4000)]
    drawn = _draw(logits.expand(4000, -1), rows, top_p)
    counts = np.bincount(drawn.numpy(), minlength=30)
    assert counts[expected == 0].sum() == 0
    alive = expected > 0
    if alive.sum() > 1:
        assert stats.chisquare(counts[alive], expected[alive] / expected[alive].sum() * 4000).pvalue > 1e-3


def test_prompts_and_models_that_cannot_be_used_are_refused(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("llama")
    with pytest.raises(InputError, match="prompt 1 is empty"):
        generate(model, Letters(), [[1], []], Sampling(3), batch_size=2)
    with pytest.raises(InputError, match=r"prompt 0 has 250 tokens.*256 positions.*to 6 or less"):
        generate(model, Letters(), [[1] * 250], Sampling(10), batch_size=1)
    with pytest.raises(InputError, match="training mode"):
        generate(model.train(), Letters(), [[1]], Sampling(3), batch_size=1)
    assert generate(model.eval(), Letters(), [], Sampling(3), batch_size=1) == []
    with torch.no_grad():
        model.get_output_embeddings().weight[3, 0] = float("nan")
    with pytest.raises(InputError, match=r"NaN.*at token 0"):
        generate(model, Letters(), [[1]], Sampling(3), batch_size=1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"stop": ("Question:", "")}, "stop text is empty"),
    ],
)
def test_invalid_sampling_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Sampling(**{"max_new_tokens": 3, **settings})


def test_longest_text_that_fits_is_generated(tiny_model: Callable[..., Any]) -> None:
    (given,) = generate(tiny_model("gpt2"), Letters(), [[1] * 250], Sampling(6), batch_size=1)
    assert len(given.ids) == 6


def test_single_token(tiny_model: Callable[..., Any]) -> None:
    (given,) = generate(tiny_model("llama"), Letters(), PROMPTS[:1], Sampling(1), batch_size=8, signal="hidden")
    assert len(given.ids) == len(given.signals["hidden"]) == 1
    assert given.finish == "length"


# --- where an answer ends -------------------------------------------------------------------------------------------

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def test_end_tokens_of_a_checkpoint(checkpoint: Path) -> None:
    opened = open_checkpoint(checkpoint, device="cpu")
    assert opened.tokenizer.decode(2) == opened.tokenizer.eos_token == "<|im_end|>"
    assert end_ids(opened.model, opened.tokenizer) == (2,)
    opened.model.generation_config.eos_token_id = [7, 30]
    assert end_ids(opened.model, opened.tokenizer) == (2, 7, 30)
    opened.model.generation_config.eos_token_id = None
    assert end_ids(opened.model, opened.tokenizer) == (2,)


def test_token_that_ends_a_turn_of_the_template_ends_an_answer(tiny_model: Callable[..., Any], tiny_tokenizer: Callable[..., Any]) -> None:
    """Base models often have a chat template whose end token is neither in their config nor their end-of-text token."""
    model, tokenizer = tiny_model("llama", vocab_size=400), tiny_tokenizer(CHATML)
    model.generation_config.eos_token_id = None
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(0)
    turn_end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert turn_end != tokenizer.eos_token_id == 0
    assert end_ids(model, tokenizer) == (0, turn_end)
    free = plain(model, PROMPTS[0], 12)
    with torch.no_grad():  # the model now prefers the end of a turn wherever it preferred its fourth token
        weight = model.get_output_embeddings().weight
        weight[turn_end], weight[free[3]] = weight[free[3]].clone(), weight[turn_end].clone()
    (given,) = generate(model, tokenizer, PROMPTS[:1], Sampling(12), batch_size=1)
    assert given.ended
    assert given.ids[-1] == turn_end


@pytest.mark.parametrize(
    "template",
    [
        None,
        "{% for m in messages %}{{ m.content }}\n{% endfor %}",
        "{{ raise_exception('no assistant') if messages[-1].role == 'assistant' }}{{ messages[0].content }}",
        "{{ messages[0].content }}",
    ],
    ids=["no template", "no end", "refuses", "drops the reply"],
)
def test_template_without_an_end_token_adds_none(
    tiny_model: Callable[..., Any], tiny_tokenizer: Callable[..., Any], template: str | None
) -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer(template)
    model.generation_config.eos_token_id = None
    assert end_ids(model, tokenizer) == (tokenizer.eos_token_id,)


def test_processors_of_the_generation_config_are_not_applied(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("llama")
    free = [plain(model, prompt, 16) for prompt in PROMPTS]
    model.generation_config.repetition_penalty = 3.0
    model.generation_config.suppress_tokens = [free[0][0]]
    assert [plain(model, prompt, 16) for prompt in PROMPTS] != free
    assert [list(g.ids) for g in generate(model, Letters(), PROMPTS, Sampling(16), batch_size=4)] == free


def test_model_without_position_ids() -> None:
    from transformers import BloomConfig, BloomForCausalLM

    torch.manual_seed(0)
    model = BloomForCausalLM(
        BloomConfig(vocab_size=48, hidden_size=32, n_layer=2, n_head=4, eos_token_id=None, initializer_range=0.5)
    ).eval()
    found = generate(model, Letters(), PROMPTS, Sampling(8), batch_size=4)
    assert [list(g.ids) for g in found] == [plain(model, prompt, 8) for prompt in PROMPTS]
