"""figures.example.token_labels: texts that the font can draw, marks of roles that are the pages', labels that fit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import figures
from figures.drawing import style
from figures.example import token_labels
from figures.example.read import read_example
from figures.example.token_labels import Slot, boxed, chosen_labels, cut, flow, inches
from interp.tables.schema import ROLES


def slots(words: list[tuple[str, str, int]]) -> list[Slot]:
    return [Slot(text, role, "response", 0, number, (at,)) for at, (text, role, number) in enumerate(words)]


@pytest.mark.parametrize(
    ("text", "drawn"),
    [("a\nb\r\nc", "a⏎b⏎c"), ("a\tb", "a b"), ("中文 🙂", "▯▯ ▯"), ("$x_1^2$", "$x_1^2$"), ("شم", "شم"), ("\ud83d", "▯"), ("", "")],
)
def test_what_the_font_lacks_is_a_box(text, drawn):
    assert boxed(text) == drawn


def test_grounds_are_the_pages():
    css = (Path(figures.__file__).parent / "templates" / "page.css").read_text(encoding="utf-8")
    for role in token_labels.MARKED_ROLES:
        light, dark = re.findall(rf"--{role}: (#[0-9a-f]{{6}})", css)
        assert (token_labels.GROUNDS["white"][role], token_labels.GROUNDS["dark"][role]) == (light, dark)


def test_every_role_has_a_mark_of_its_own():
    assert set(token_labels.MARKED_ROLES) | {"none", "special"} == set(ROLES)
    assert set(token_labels.PRIORITY) == set(token_labels.MARKED_ROLES)
    assert len(set(token_labels.MARKERS.values())) == 5
    for name in style.STYLES:
        with style.use(name):
            assert len({token_labels.colour(role) for role in (*token_labels.MARKED_ROLES, "none")}) == 6


def test_widths_count_blanks_and_a_cut_text_fits():
    assert inches("  a") == pytest.approx(2 * inches(" ") + inches("a"), abs=0.01)
    assert inches(" ") > 0.02
    assert cut("short", 2.0) == "short"
    assert cut("W" * 100, 1.0).endswith("…")
    assert inches(cut("W" * 100, 1.0)) <= 1.0


def test_every_slot_has_a_label_where_there_is_room():
    some = slots([("a", "none", -1), ("1", "operand", 0), ("2", "operand", 0)])
    assert [(label.text, label.middle) for label in chosen_labels(some, 2.0)] == [("a", 0.5), ("1", 1.5), ("2", 2.5)]


def test_else_numbers_have_one_each_in_order_of_priority():
    rest = [("a", "none", -1)] * 10
    words = [*rest, ("1", "operand", 0), ("2", "operand", 0), ("+", "operator", -1), *rest, ("7", "question_number", 1), *rest]
    words += [("3", "final_answer", 2)]
    line = token_labels.line_inches()
    assert [(label.text, label.middle) for label in chosen_labels(slots(words), 3.5 * line)] == [("12", 11.0), ("7", 23.5), ("3", 34.5)]
    assert [label.text for label in chosen_labels(slots(words), 2.5 * line)] == ["7", "3"]
    assert chosen_labels([], 1.0) == []


def test_labels_stand_near_their_slots():
    crowd = [("1", "operand", number) for number in range(40)]
    rest = [("a", "none", -1)] * 160
    length = 20 * token_labels.line_inches()
    # The crowd's own room are four lines, at the begin or the end; labels stand there, and no more than a line and a half beyond.
    for words in (crowd + rest, rest + crowd):
        assert 4 <= len(chosen_labels(slots(words), length)) <= 6


def test_a_key_flows_into_lines():
    gap = 0.14
    assert flow([1.0, 1.0, 1.0, 5.0], 2.5) == [(0.0, 0), (1.0 + gap, 0), (0.0, 1), (0.0, 2)]


@pytest.mark.parametrize(
    ("source", "index", "told"),
    [
        ("/data/gsm8k/test.jsonl", 4, "test problem 4"),
        ("C:\\data\\my.set.jsonl.gz", 4, "my.set problem 4"),
        ("gsm8k", 4, "gsm8k problem 4"),
        ("openai/gsm8k", 0, "gsm8k problem 0"),
        ("--question", None, "own question"),
    ],
)
def test_problems_are_named_without_folders_and_options(example_folder, source, index, told):
    example = read_example(example_folder())
    example.run["problem"].update(source=source, index=index)
    assert token_labels.problem_text(example) == f"{told} · {example.run['text']} text"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("מה 5", "right-to-left text is"),
        ("كم 5", "right-to-left"),
        ("e\u0301", "combining"),
        ("तो", "combining"),
        ("مُ", "right-to-left text and combining"),
        ("é 中 ❤\ufe0f", ""),
        ("", ""),
    ],
)
def test_scripts_that_are_drawn_wrongly_are_said(text, said):
    note = token_labels.script_note(["plain", text])
    assert note.startswith(said)
    assert bool(note) == bool(said)


def test_labels_left_out_are_counted():
    words = slots([("a", "none", -1), *(("1", "operand", number) for number in range(40))])
    line = token_labels.line_inches()
    assert token_labels.left_out(words, 41 * line + 1e-6) == 0
    assert token_labels.left_out(words, 10 * line) == 40 - len(chosen_labels(words, 10 * line)) >= 30
    assert token_labels.left_out([], 1.0) == 0
    assert [token_labels.left_out_note(count) for count in (0, 1, 7)] == ["", "1 label left out for room", "7 labels left out for room"]


def test_heads_that_were_not_watched(example_folder):
    example = read_example(example_folder(watched=[(0, 1), (2, 3)]))
    token_labels.need_watched(example, (2, 3))
    with pytest.raises(token_labels.HeadError, match=r"head 1\.1 was not watched.*watched: 0\.1, 2\.3"):
        token_labels.need_watched(example, (1, 1))
    assert token_labels.heads_text([(0, head) for head in range(30)], 2) == "0.0, 0.1 and 28 more"
