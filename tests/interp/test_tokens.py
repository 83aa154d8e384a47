"""Roles and regions with tokenizers that split numbers in different ways; templates, generated text, and errors."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, Metaspace, PreTokenizer, Sequence, Split
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from interp.tables.errors import InputError
from interp.tables.heads import INPUTS
from interp.tables.schema import ROLES, TOKEN_REGIONS, validate
from interp.tokens import NUMBER_ROLES, AnnotatedText, Tokens, annotate, decoded_offsets, number_roles

CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
SPECIAL = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"]
CORPUS = [
    "Question: Tom has 12 apples and 3 pears, worth $1,250.50 at 15% off.\nAnswer: 12 + 3 = 15, 15 * 4 = $60. #### 60",
    " $1 $12 $125 $7 $30 $99 12% 30% 5% 100% 1,000 2,500 (12 7 30 99 125 1250 365",
    "She pays 2 * 3 = <<2*3=6>>6 dollars, 0.5 of it in cash. The answer is \\boxed{42}.",
] * 4
KINDS = ("single digits", "groups of three", "joined to a space", "byte-level", "metaspace", "bytes only")


@functools.cache
def make_tokenizer(kind: str, chat: bool = False) -> Any:
    alphabet = ByteLevel.alphabet()
    cuts: dict[str, list[PreTokenizer]] = {
        "single digits": [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)],
        "groups of three": [Split(Regex(r"\d{1,3}"), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)],
        "joined to a space": [Split(Regex(r"\s?[$(]?\d+%?"), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)],
        "byte-level": [ByteLevel(add_prefix_space=False)],
        "metaspace": [Metaspace()],
        "bytes only": [ByteLevel(add_prefix_space=False)],
    }
    tokenizer = Tokenizer(BPE(unk_token=None if kind != "metaspace" else "<s>"))
    tokenizer.pre_tokenizer = Sequence(cuts[kind])
    size = 256 + len(SPECIAL) if kind == "bytes only" else 700
    printable = [chr(c) for c in range(32, 127)] + list("\n▁×÷−€é")
    trainer = BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, initial_alphabet=printable if kind == "metaspace" else alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.decoder = MetaspaceDecoder() if kind == "metaspace" else ByteLevelDecoder()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", additional_special_tokens=SPECIAL[2:])
    fast.chat_template = CHAT if chat else None
    return fast


def roles_of(text: AnnotatedText) -> list[str]:
    return [ROLES[role] for role in text.roles]


def regions_of(text: AnnotatedText) -> list[str]:
    return [TOKEN_REGIONS[region] for region in text.regions]


# --- roles by character -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "region", "expected"),
    [
        ("12 apples", "question", "QQ......."),
        ("$1,250.50 at 15%", "question", ".QQQQQQQQ....QQ."),
        ("3, 4", "question", "Q..Q"),
        ("1,25", "question", "Q.QQ"),
        ("a .5 b", "question", "..QQ.."),
        ("2 + 3 = 5", "response", "O.+.O.=.I"),
        ("<<2*3=6>>6 $", "response", "..O+O=I..I.."),
        ("4 x 5 = $20", "response", "O.+.O.=..II"),
        ("x 5", "response", "..O"),
        ("4 - b", "response", "O...."),
        ("9 = -3", "response", "O....I"),
        ("5 left. #### 12 and 3", "response", "O............FF.....O"),
        ("The answer is $1,000. 7", "response", "...............FFFFF..O"),
        (r"so \boxed{42}", "response", "..........FF."),
        ("1 The answer is 7.", "question", "Q...............Q."),
        ("no numbers, two words", "response", "....................."),
        ("(1+2)/3", "response", ".O+O.+O"),
        ("50% * 8", "response", "OO..+.O"),
    ],
)
def test_roles_worked_by_hand(text: str, region: str, expected: str) -> None:
    letters = {"none": ".", "operator": "+", "question_number": "Q", "operand": "O", "intermediate_result": "I", "final_answer": "F"}
    found = "".join(letters[ROLES[role]] for role in number_roles(text, region))
    assert found == expected.replace("=", "+")


NUMBERS = st.one_of(
    st.integers(0, 99_999).map(str),
    st.integers(1_000, 9_999_999).map(lambda n: f"{n:,}"),
    st.tuples(st.integers(0, 9_999), st.integers(0, 99)).map(lambda p: f"{p[0]}.{p[1]:02d}"),
    st.tuples(st.integers(1_000, 99_999), st.integers(0, 99)).map(lambda p: f"{p[0]:,}.{p[1]:02d}"),
)
BEFORE = st.sampled_from(["", "$", "(", "about ", "-", "€"])
AFTER = st.sampled_from(["", "%", ")", " apples", ".", ",", "!"])
WORDS = st.text("abcdefg é", min_size=1, max_size=8).filter(lambda w: w.strip() != "")


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@given(
    asked=st.lists(st.tuples(WORDS, BEFORE, NUMBERS, AFTER), min_size=1, max_size=4),
    answered=st.lists(st.tuples(WORDS, BEFORE, NUMBERS, AFTER), max_size=3),
    final=NUMBERS,
)
@settings(max_examples=12, deadline=None)
def test_tokens_of_a_number_have_its_role(
    kind: str, chat: bool, asked: list[tuple[str, ...]], answered: list[tuple[str, ...]], final: str
) -> None:
    """The expected roles are known by character, whatever the tokenizer does with them."""

    def put(parts: list[tuple[str, ...]], role: str) -> tuple[str, list[str]]:
        text, roles = "", []
        for word, before, number, after in parts:
            for piece, its_role in ((f"{word.strip()} {before}", "none"), (number, role), (f"{after} ", "none")):
                text += piece
                roles += [its_role] * len(piece)
        return text, roles

    question, question_roles = put(asked, "question_number")
    question, question_roles = question.rstrip(), question_roles[: len(question.rstrip())]
    response, response_roles = put(answered, "operand")
    response += f"#### {final}"
    response_roles += ["none"] * 5 + ["final_answer"] * len(final)
    tokens = annotate(make_tokenizer(kind, chat), question, response, chat=chat)
    (text,) = tokens.texts
    expected_roles, expected_regions = ["none"] * len(text.text), ["template"] * len(text.text)
    for at, part, roles, region in (
        (text.text.index(question), question, question_roles, "question"),
        (len(text.text) - len(response), response, response_roles, "response"),
    ):
        assert text.text[at : at + len(part)] == part
        expected_roles[at : at + len(part)] = roles
        expected_regions[at : at + len(part)] = [region] * len(part)
    special = set(make_tokenizer(kind, chat).all_special_ids)
    covered = set()
    for token_id, (a, b), role, region in zip(text.ids.tolist(), text.offsets, roles_of(text), regions_of(text), strict=True):
        if token_id in special:
            assert (role, region) == ("special", "template")
            continue
        covered.update(range(a, b))
        assert role == max((expected_roles[c] for c in range(a, b)), key=ROLES.index, default="none")
        assert region == max((expected_regions[c] for c in range(a, b)), key=TOKEN_REGIONS.index, default="template")
    numeric = {c for c, role in enumerate(expected_roles) if role in NUMBER_ROLES}
    assert numeric <= covered
    marked = {c for (a, b), is_number in zip(text.offsets, text.in_role(*NUMBER_ROLES), strict=True) if is_number for c in range(a, b)}
    assert numeric <= marked


def test_the_tokenizers_split_numbers_as_their_names_say() -> None:
    pieces = {kind: annotate(make_tokenizer(kind), "pay $1250 for 12", "a 365", chat=False).texts[0].pieces for kind in KINDS}
    assert [p for p in pieces["single digits"] if p.strip().isdigit()] == list("125012365")
    assert {"125", "0", "12", "365"} <= set(pieces["groups of three"])
    assert any(p.startswith(" $1") for p in pieces["joined to a space"])
    assert any(p in (" 12", " 365") for p in pieces["byte-level"])
    assert "1" in pieces["bytes only"]


# --- regions and templates --------------------------------------------------------------------------------------------


def test_plain_texts_have_a_prompt_and_the_tokenizers_bos() -> None:
    text = annotate(make_tokenizer("single digits"), "2 pens", "7", chat=False).texts[0]
    assert text.text == "Question: 2 pens\nAnswer: 7"
    assert roles_of(text)[0] == "special"
    joined = {name: "".join(np.asarray(text.pieces)[text.in_region(name)]) for name in TOKEN_REGIONS}
    assert joined["question"].strip() == "2 pens"
    assert joined["response"].strip() == "7"
    assert text.in_region("all").all()
    assert len(text) == len(text.ids)


def test_chat_texts_use_the_template_and_no_second_bos() -> None:
    tokenizer = make_tokenizer("single digits", True)
    text = annotate(tokenizer, "  2 pens ", "7").texts[0]
    assert text.text == "<|user|>\n2 pens<|end|>\n<|assistant|>\n7"
    assert tokenizer.bos_token_id not in text.ids
    special = np.isin(text.ids, tokenizer.all_special_ids)
    assert special.sum() == 3
    assert (np.asarray(roles_of(text))[special] == "special").all()
    assert (np.asarray(regions_of(text))[special] == "template").all()
    plain = annotate(tokenizer, "2 pens", "7", chat=False).texts[0]
    assert plain.text.startswith("Question: ")


def test_a_question_that_also_occurs_in_the_template_is_found_in_the_users_turn() -> None:
    tokenizer = make_tokenizer("single digits", True)
    text = annotate(tokenizer, "user").texts[0]
    question = "".join(np.asarray(text.pieces)[text.in_region("question")])
    assert question == "user"
    assert text.text.index("user") < int(text.offsets[text.in_region("question")][0, 0])


def test_prompts_have_no_response() -> None:
    text = annotate(make_tokenizer("single digits"), "2 pens", chat=False).texts[0]
    assert not text.in_region("response").any()
    assert text.text.endswith("\nAnswer:")


def test_batches_are_padded_on_the_requested_side() -> None:
    tokenizer = make_tokenizer("single digits")
    tokenizer.pad_token = "</s>"
    for side in ("right", "left"):
        tokens = annotate(tokenizer, ["2 pens", "a longer one with 365 days"], ["7", "8"], chat=False, padding_side=side, examples=[5, 3])
        assert [t.example for t in tokens.texts] == [5, 3]
        inputs = tokens.inputs
        assert ("position_ids" in inputs) == (side == "left")
        for row, mask, start, text in zip(inputs["input_ids"], inputs["attention_mask"], tokens.starts, tokens.texts, strict=True):
            assert row[start : start + len(text)].tolist() == text.ids.tolist()
            assert int(mask.sum()) == len(text)
            assert mask[start : start + len(text)].all()
            assert (row[mask == 0] == tokenizer.pad_token_id).all()
        assert tokens.starts == ((0, 0) if side == "right" else (tokens.width - len(tokens.texts[0]), 0))
        picked = tokens.select([1], "left")
        assert picked.texts == (tokens.texts[1],)
        assert picked.padding_side == "left"
        assert picked.width == len(tokens.texts[1])


def test_the_inputs_table_has_every_token() -> None:
    tokens = annotate(make_tokenizer("byte-level"), ["2 pens", "365 days"], ["7", ""], chat=False, padding_side="left")
    frame = tokens.to_frame()
    validate(frame, INPUTS)
    assert len(frame) == sum(len(t) for t in tokens.texts)
    assert "".join(frame[frame["example"] == 1]["token"]) == tokens.texts[1].text
    assert frame.groupby("example")["position"].max().tolist() == [len(t) - 1 for t in tokens.texts]
    assert isinstance(frame, pd.DataFrame)


# --- generated text --------------------------------------------------------------------------------------


@given(text=st.text(st.sampled_from("ab 1é€😀🧮\n"), max_size=12), kind=st.sampled_from(["bytes only", "byte-level"]))
@settings(max_examples=40, deadline=None)
def test_decoded_offsets_cover_the_text_in_order(text: str, kind: str) -> None:
    tokenizer = make_tokenizer(kind)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    decoded, offsets = decoded_offsets(tokenizer, ids)
    assert decoded == text
    assert offsets.shape == (len(ids), 2)
    assert (offsets[:, 0] <= offsets[:, 1]).all()
    assert (offsets[1:, 0] == offsets[:-1, 1]).all()
    if len(ids):
        assert (offsets[0, 0], offsets[-1, 1]) == (0, len(text))


@given(ids=st.lists(st.integers(5, 260), max_size=10))
@settings(max_examples=40, deadline=None)
def test_decoded_offsets_are_in_order_for_any_ids(ids: list[int]) -> None:
    decoded, offsets = decoded_offsets(make_tokenizer("bytes only"), ids)
    assert offsets.shape == (len(ids), 2)
    assert (np.diff(offsets.ravel()) >= 0).all()
    if ids:
        assert (offsets[0, 0], offsets[-1, 1]) == (0, len(decoded))


def test_generated_text_is_annotated_up_to_its_stop_id() -> None:
    tokenizer = make_tokenizer("bytes only")
    prompt = annotate(tokenizer, ["2 pens 😀", "13"], chat=False, padding_side="left")
    written = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in (" 2*3=6 😀 #### 12", " 7")]
    width = max(len(ids) for ids in written) + 2
    new = np.full((2, width), tokenizer.eos_token_id)
    for row, ids in zip(new, written, strict=True):
        row[: len(ids)] = ids
    tokens = prompt.extend(new, [tokenizer.eos_token_id])
    assert tokens.starts == prompt.starts
    assert tokens.width == prompt.width + width
    for before, text, ids in zip(prompt.texts, tokens.texts, written, strict=True):
        assert text.ids.tolist() == [*before.ids.tolist(), *ids, tokenizer.eos_token_id]
        np.testing.assert_array_equal(text.offsets[: len(before)], before.offsets)
        np.testing.assert_array_equal(text.roles[: len(before)], before.roles)
        assert roles_of(text)[-1] == "special"
        assert regions_of(text)[-1] == "template"
        assert set(regions_of(text)[len(before) : -1]) == {"response"}
        assert (np.diff(text.offsets[len(before) :].ravel()) >= 0).all()
    first = tokens.texts[0]
    found = {role: "".join(p for p, r in zip(first.pieces, roles_of(first), strict=True) if r == role) for role in ROLES}
    assert found["operand"] == "23"
    assert found["intermediate_result"] == "6"
    assert found["final_answer"] == "12"
    assert found["operator"] == "*="
    assert found["question_number"] == "2"
    inputs = tokens.inputs
    assert inputs["input_ids"].shape == (2, tokens.width)
    assert inputs["attention_mask"].sum(1).tolist() == [len(t) for t in tokens.texts]


def test_an_empty_generation_does_not_change_annotations() -> None:
    prompt = annotate(make_tokenizer("single digits"), "2 pens", chat=False)
    tokens = prompt.extend(np.zeros((1, 0), np.int64), [1])
    np.testing.assert_array_equal(tokens.texts[0].ids, prompt.texts[0].ids)
    np.testing.assert_array_equal(tokens.texts[0].roles, prompt.texts[0].roles)


def test_texts_that_cannot_be_extended_are_rejected() -> None:
    tokenizer, new = make_tokenizer("single digits"), np.ones((2, 1), np.int64)
    right = annotate(tokenizer, ["2 pens", "a longer question"], chat=False)
    with pytest.raises(InputError, match='padded on the right; generation needs padding_side="left"'):
        right.extend(new, [])
    bare = Tokens(right.texts, "left")
    with pytest.raises(InputError, match="the tokens have no tokenizer"):
        bare.extend(new, [])


# --- errors -----------------------------------------------------------------------------------------------------------


class SlowTokenizer:
    is_fast = False


def test_texts_and_tokenizers_that_cannot_be_annotated_are_rejected() -> None:
    tokenizer = make_tokenizer("single digits")
    for empty in ("", "  \n"):
        with pytest.raises(InputError, match="example 4: the question is empty"):
            annotate(tokenizer, ["2 pens", empty], chat=False, examples=[2, 4])
    with pytest.raises(InputError, match="2 questions but 1 responses"):
        annotate(tokenizer, ["1", "2"], ["3"])
    with pytest.raises(InputError, match="SlowTokenizer gives no offsets; use a fast tokenizer"):
        annotate(SlowTokenizer(), "2 pens")
    with pytest.raises(InputError, match="no chat template"):
        annotate(tokenizer, "2 pens", chat=True)
    with pytest.raises(InputError, match="texts are empty"):
        annotate(tokenizer, [], chat=False)
    with pytest.raises(InputError, match="padding_side is 'middle'; allowed: right, left"):
        annotate(tokenizer, "2 pens", chat=False, padding_side="middle")


def test_templates_that_fail_or_change_the_question_are_rejected() -> None:
    tokenizer = make_tokenizer("groups of three", True)
    original = tokenizer.chat_template
    try:
        tokenizer.chat_template = "{{ messages[0]['content'] | upper }}"
        with pytest.raises(InputError, match="the chat template changes the text of the question"):
            annotate(tokenizer, "2 pens")
        tokenizer.chat_template = "{{ raise_exception('no user turns') }}"
        with pytest.raises(InputError, match=r"the chat template failed \(no user turns\)"):
            annotate(tokenizer, "2 pens")
    finally:
        tokenizer.chat_template = original


def test_wrong_offsets_are_rejected() -> None:
    tokenizer = make_tokenizer("single digits")

    class Shifted:
        is_fast, chat_template, pad_token_id, eos_token_id = True, None, 0, 1
        all_special_ids = tokenizer.all_special_ids
        decode = tokenizer.decode

        def __call__(self, text: str, **settings: Any) -> dict[str, Any]:
            coded = tokenizer(text, **settings)
            offsets = [(max(a - 1, 0), max(b - 1, 0)) for a, b in coded["offset_mapping"]]
            return {"input_ids": coded["input_ids"], "offset_mapping": offsets}

    with pytest.raises(InputError, match=r"offsets are wrong: token .* decodes to '1' but covers"):
        annotate(Shifted(), "pay 1 now", chat=False)


@pytest.mark.parametrize(
    ("text", "roles"),
    [
        ("3 + 4 = **7**", {"3": "operand", "4": "operand", "7": "intermediate_result"}),
        ("3 \\times 4 = 12", {"\\times": "operator", "12": "intermediate_result"}),
        ("3x4", {"x": "operator"}),
        ("12–4 = \\$8", {"–": "operator", "8": "intermediate_result"}),
        ("The answer is not 5. #### 6", {"5": "operand", "6": "final_answer"}),
        ("#### 72\nThe answer is: 72", {"72": "final_answer"}),
    ],
)
def test_roles_in_formats_that_models_write(text: str, roles: dict[str, str]) -> None:
    found = [ROLES[code] for code in number_roles(text, "response")]
    for piece, role in roles.items():
        at = text.index(piece)
        while at >= 0:
            assert set(found[at : at + len(piece)]) == {role}, (piece, at)
            at = text.find(piece, at + 1)
