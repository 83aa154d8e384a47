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
    """Transformers' own greedy generation of one prompt."""
    ids = torch.tensor([prompt])
    said = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, pad_token_id=0, **settings
    )
    return said[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "gpt_oss"])
def test_greedy_is_transformers_own_whatever_the_batch(tiny_model: Callable[..., Any], family: str) -> None:
    """Windows of 8 and 16 tokens are passed in these families, with prompts padded on the left."""
    model = tiny_model(family)
    wanted = [plain(model, prompt, 24) for prompt in PROMPTS]
    for size in (4, 1, 3):
        found = generate(model, Letters(), PROMPTS, Sampling(24), batch_size=size)
        assert [list(g.ids) for g in found] == wanted
        assert {g.finish for g in found} == {"length"}


def test_rows_that_end_leave_the_batch(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("llama")
    free = [plain(model, prompt, 12) for prompt in PROMPTS]
    ends = [free[0][2], free[1][6]]  # several tokens end a text
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
def test_rows_that_stay_go_on_as_before(tiny_model: Callable[..., Any], family: str) -> None:
    """Caches of windows, of sinks and of low rank: the rows that stay keep their own."""
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
def test_signals_are_those_of_reading_the_text_again(tiny_model: Callable[..., Any], family: str, dtype: str) -> None:
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


def test_stop_texts_may_straddle_tokens(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("llama")
    free = plain(model, PROMPTS[0], 12)
    said = Letters().decode(free)
    stop = said[3:6]
    first = said.find(stop)
    (given,) = generate(model, Letters(), PROMPTS[:1], Sampling(12, stop=("never here", stop)), batch_size=1, signal="hidden")
    assert (given.text, given.finish) == (said[:first], "stop")
    assert list(given.ids) == free[:first]
    assert len(given.signals["hidden"]) == len(given.log_probs) == first


def test_padding_that_is_the_end(checkpoint: Path) -> None:
    opened = open_checkpoint(checkpoint, device="cpu")
    opened.tokenizer.pad_token = opened.tokenizer.eos_token
    asked = [opened.tokenizer(text)["input_ids"] for text in ("12 pens", "3*4 = 12 pens and 30 cups")]
    both = generate(opened.model, opened.tokenizer, asked, Sampling(8), batch_size=2)
    alone = [generate(opened.model, opened.tokenizer, [ids], Sampling(8), batch_size=1)[0] for ids in asked]
    assert [g.ids for g in both] == [g.ids for g in alone]
    assert end_ids(opened.model, opened.tokenizer) == (2,)


def test_an_adapted_model(adapter: Path) -> None:
    """The head of a PEFT model lies one floor deeper; the states are the adapted ones."""
    opened = open_checkpoint(adapter, device="cpu")
    ids = Strategy("none").encode(opened.tokenizer, "How many pens?", True)
    (given,) = generate(opened.model, opened.tokenizer, [ids], Sampling(6), batch_size=1, signal="hidden")
    assert list(given.ids) == plain(opened.model, ids, 6)
    with torch.no_grad():
        logits = opened.model(input_ids=torch.tensor([[*ids, *given.ids]])).logits[0, len(ids) - 1 : -1]
    torch.testing.assert_close(output_head(opened.model).logits(given.signals["hidden"]), logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("start", "length"), [(5, 1), (5, 2), (6, 3), (7, 4), (0, 1)])
def test_stop_texts_within_tokens(tiny_model: Callable[..., Any], start: int, length: int) -> None:
    """The text is cut at the stop text itself, the ids before the first token that holds a part of it."""

    class Pairs(Letters):
        def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
            return "".join(chr(ord("A") + i) + chr(ord("a") + i % 26) for i in ids)

    model = tiny_model("llama")
    free = plain(model, PROMPTS[2], 12)
    said = Pairs().decode(free)
    stop = said[start : start + length]
    first = said.find(stop)
    (given,) = generate(model, Pairs(), [PROMPTS[2]], Sampling(12, stop=(stop,)), batch_size=1, signal="dense")
    assert (given.text, given.finish) == (said[:first], "stop")
    assert list(given.ids) == free[: first // 2]
    assert len(given.log_probs) == len(given.signals["dense_log_probs"]) == first // 2


def test_stop_texts_of_several_bytes(tiny_tokenizer: Callable[..., Any]) -> None:
    """A letter of three bytes takes three tokens; special tokens are no text, and do not hide a stop text."""
    tokenizer = tiny_tokenizer()
    ids = tokenizer("12 \u20ac.", add_special_tokens=False)["input_ids"]
    row = _Row([1], Sampling(20, stop=("\u20ac",)), "key", tokenizer)
    for token in [*ids[:-2], 0, 0, 0, 0, *ids[-2:]]:
        if row.finish is None:
            row.take(token, 0.0, (2,))
    given = row.result()
    assert (given.text, given.finish) == ("12 ", "stop")
    assert tokenizer.decode(list(given.ids)) == "12 "


def test_every_row_draws_by_itself(tiny_model: Callable[..., Any]) -> None:
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


def test_log_probabilities_know_no_temperature(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("llama")
    (given,) = generate(model, Letters(), PROMPTS[:1], Sampling(12, temperature=3.0, top_p=0.9), batch_size=1, signal="topk", top_k=48)
    with torch.no_grad():
        log_p = torch.log_softmax(model(input_ids=torch.tensor([[*PROMPTS[0], *given.ids]])).logits[0, len(PROMPTS[0]) - 1 : -1], -1)
    assert list(given.ids) != log_p.argmax(-1).tolist()
    np.testing.assert_allclose(given.log_probs, log_p.gather(1, torch.tensor(given.ids)[:, None])[:, 0].numpy(), atol=1e-4)
    torch.testing.assert_close(given.signals["topk_log_probs"], log_p.sort(-1, descending=True).values, atol=1e-4, rtol=0)
    torch.testing.assert_close(given.signals["topk_log_probs"].exp().sum(-1), torch.ones(12))


def test_a_tiny_top_p_is_greedy(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("llama")
    drawn = generate(model, Letters(), PROMPTS, Sampling(12, temperature=5.0, top_p=1e-9), batch_size=4)
    assert [list(g.ids) for g in drawn] == [plain(model, prompt, 12) for prompt in PROMPTS]


@pytest.mark.parametrize("top_p", [1.0, 0.7, 1e-9])
def test_draws_follow_transformers_warpers(top_p: float) -> None:
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


def test_what_cannot_be_answered(tiny_model: Callable[..., Any]) -> None:
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
def test_settings_that_make_no_sense(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Sampling(**{"max_new_tokens": 3, **settings})


def test_the_longest_text_that_fits(tiny_model: Callable[..., Any]) -> None:
    (given,) = generate(tiny_model("gpt2"), Letters(), [[1] * 250], Sampling(6), batch_size=1)
    assert len(given.ids) == 6


def test_one_token(tiny_model: Callable[..., Any]) -> None:
    (given,) = generate(tiny_model("llama"), Letters(), PROMPTS[:1], Sampling(1), batch_size=8, signal="hidden")
    assert len(given.ids) == len(given.signals["hidden"]) == 1
    assert given.finish == "length"
