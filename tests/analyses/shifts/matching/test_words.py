"""The same words are recognized across tokenizers, and texts that differ are refused."""

from __future__ import annotations

import itertools
from typing import Any

import pandas as pd
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from analyses.shifts.matching.words import same_words
from interp.tables.errors import InputError
from interp.tokens import annotate

QUESTIONS = ("Ann's  12 pens cost €3.50 each, 日本 →→ now?", "Is été\n\n10 days?")
ANSWERS = ("12*3.5 = <<12*3.5=42>>42 €\n#### 42", "“No”, 10\tnights 🙂 ever.\n#### 10")


def make_bytes(merges: int, trim: bool) -> Any:
    """Byte-level tokens, short or long; trimmed ones do not cover the space before a word, as Llama 3's."""
    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=257 + merges, special_tokens=["<pad>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    fast.train_from_iterator([*QUESTIONS, *ANSWERS, "Question: Answer:"] * 4, trainer)
    fast.post_processor = processors.ByteLevel(trim_offsets=trim)
    return PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="<pad>", eos_token="<pad>")


def inputs(tokenizer: Any, answers: tuple[str, ...] = ANSWERS, **settings: Any) -> pd.DataFrame:
    return annotate(tokenizer, QUESTIONS, answers, **settings).to_frame()


def test_tokenizers_that_split_differently_read_the_same_words() -> None:
    frames = [inputs(make_bytes(merges, trim)) for merges, trim in ((0, False), (400, False), (60, True), (400, True))]
    counts = [[int((f["example"] == e).sum()) for e in (0, 1)] for f in frames]
    assert len({tuple(c) for c in counts}) > 2
    expected = [len((q + " " + a).split()) for q, a in zip(QUESTIONS, ANSWERS, strict=True)]
    for (a, one), (b, other) in itertools.product(enumerate(frames), repeat=2):
        found = same_words(one, other.sample(frac=1, random_state=0))
        assert found["example"].tolist() == [0, 1]
        regions = (one["region"] != "template", other["region"] != "template")
        assert found["n_tokens_one"].tolist() == one[regions[0]].groupby("example").size().tolist()
        assert found["n_tokens_other"].tolist() == other[regions[1]].groupby("example").size().tolist()
        if min(a, b) < 2:  # one of the two covers white space
            assert found["n_words"].tolist() == expected


def test_the_first_difference_between_texts_is_named() -> None:
    short, long, trimmed = make_bytes(0, False), make_bytes(400, False), make_bytes(400, True)
    changed = (ANSWERS[0], ANSWERS[1].replace("nights", "knights"))
    for one, other, message in (
        (short, long, "example 1, response, word 3: 'nights' against 'knights'"),
        (long, trimmed, "example 1, response, word 3: 'nights' against 'knights🙂ever.'"),
    ):
        with pytest.raises(InputError, match=message):
            same_words(inputs(one), inputs(other, changed))
        same_words(inputs(one), inputs(other, changed), regions=["question"])
    for answers, message in (
        ((ANSWERS[0] + " and", ANSWERS[1]), "example 0, response, word 7: '' against 'and'"),
        ((ANSWERS[0][:-1], ANSWERS[1]), "example 0, response, word 6: '42' against '4'"),
        ((ANSWERS[0].replace("€", "$"), ANSWERS[1]), r"example 0, response, word 4: '€' against '\$'"),
    ):
        with pytest.raises(InputError, match=message + ";"):
            same_words(inputs(short), inputs(long, answers))


def written(*pieces: tuple[int, str, str]) -> pd.DataFrame:
    """An inputs table by hand: example, region, token."""
    frame = pd.DataFrame(pieces, columns=["example", "region", "token"])
    return frame.assign(position=frame.groupby("example").cumcount())


def test_only_common_examples_are_compared() -> None:
    one = written((3, "template", "Q"), (3, "question", "two"), (3, "question", " eggs"), (4, "question", "x"))
    other = written((3, "template", "User"), (3, "question", "tw"), (3, "question", "o"), (3, "question", " eggs"), (5, "question", "y"))
    assert same_words(one, other).to_dict("records") == [{"example": 3, "n_words": 2, "n_tokens_one": 2, "n_tokens_other": 3}]
    with pytest.raises(InputError, match="no example in common: 4 against 5"):
        same_words(one[one["example"] == 4], other[other["example"] == 5])


def test_a_character_split_into_tokens_counts_as_one() -> None:
    cut = written((0, "question", "a"), (0, "question", " é"), (0, "question", " ét"), (0, "question", "té"), (0, "question", "é"))
    found = same_words(cut, written((0, "question", "a étté")))
    assert found["n_words"].tolist() == [2]
    with pytest.raises(InputError, match="word 2: 'étté' against 'été'"):  # a repeated ASCII character is two
        same_words(cut, written((0, "question", "a été")))


def test_texts_with_half_characters_are_compared_by_their_ascii() -> None:
    one = written((0, "question", "a \ufffd"), (0, "question", "\ufffdt b"))
    assert same_words(one, written((0, "question", "a é"), (0, "question", "t b")))["n_words"].tolist() == [3]
    with pytest.raises(InputError, match="example 0, question, word 3: 'b' against 'c'"):
        same_words(one, written((0, "question", "a ét c")))
    whole = written((0, "question", "a ét b"))
    with pytest.raises(InputError, match="word 2: 'ét' against 'èt'"):
        same_words(whole, written((0, "question", "a èt b")))


def test_nothing_to_compare_is_an_error() -> None:
    empty = written((0, "question", ""), (0, "response", " "))
    with pytest.raises(InputError, match="example 0 has no words in question or response"):
        same_words(empty, empty)
    with pytest.raises(InputError, match="word 1: 'a' against ''"):
        same_words(written((0, "question", "a")), empty)
    with pytest.raises(InputError, match="regions all are not regions of tokens: template, question, response"):
        same_words(empty, empty, regions=["all"])
    with pytest.raises(InputError, match=r"table inputs: missing columns \['token'\]"):
        same_words(empty.drop(columns="token"), empty)
