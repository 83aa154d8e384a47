"""figures.example.tokens: texts that the font can draw, and colors of roles that match the pages'."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import figures
from figures.drawing.style import STYLES, use_style
from figures.example.read import read_example
from figures.example.token_labels import LABEL_PRIORITY
from figures.example.tokens import (
    MARKED_ROLES,
    MARKERS,
    ROLE_BACKGROUNDS,
    boxed,
    heads_text,
    printed_inches,
    problem_text,
    require_watched,
    role_color,
    script_note,
    truncated,
)
from interp.tables.errors import InputError
from interp.tables.schema import ROLES


@pytest.mark.parametrize(
    ("text", "drawn"),
    [("a\nb\r\nc", "a⏎b⏎c"), ("a\tb", "a b"), ("中文 🙂", "▯▯ ▯"), ("$x_1^2$", "$x_1^2$"), ("شم", "شم"), ("\ud83d", "▯"), ("", "")],
)
def test_letters_missing_in_the_font_become_boxes(text, drawn):
    assert boxed(text) == drawn


def test_backgrounds_of_roles_match_the_pages():
    css = (Path(figures.__file__).parent / "templates" / "page.css").read_text(encoding="utf-8")
    for role in MARKED_ROLES:
        light, dark = re.findall(rf"--{role}: (#[0-9a-f]{{6}})", css)
        assert (ROLE_BACKGROUNDS["white"][role], ROLE_BACKGROUNDS["dark"][role]) == (light, dark)


def test_every_role_has_a_distinct_marker_and_color():
    assert set(MARKED_ROLES) | {"none", "special"} == set(ROLES)
    assert set(LABEL_PRIORITY) == set(MARKED_ROLES)
    assert len(set(MARKERS.values())) == 5
    for name in STYLES:
        with use_style(name):
            assert len({role_color(role) for role in (*MARKED_ROLES, "none")}) == 6


def test_widths_include_blanks_and_truncated_text_fits():
    assert printed_inches("  a") == pytest.approx(2 * printed_inches(" ") + printed_inches("a"), abs=0.01)
    assert printed_inches(" ") > 0.02
    assert truncated("short", 2.0) == "short"
    assert truncated("W" * 100, 1.0).endswith("…")
    assert printed_inches(truncated("W" * 100, 1.0)) <= 1.0


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
def test_a_problem_is_named_without_folder_and_extension(example_folder, source, index, told):
    example = read_example(example_folder())
    example.run["problem"].update(source=source, index=index)
    assert problem_text(example) == f"{told} · {example.run['text']} text"


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
def test_scripts_that_cannot_be_drawn_correctly_are_noted(text, said):
    note = script_note(["plain", text])
    assert note.startswith(said)
    assert bool(note) == bool(said)


def test_a_head_that_was_not_watched_raises(example_folder):
    example = read_example(example_folder(watched=[(0, 1), (2, 3)]))
    require_watched(example, (2, 3))
    with pytest.raises(InputError, match=r"head 1\.1 was not watched.*watched: 0\.1, 2\.3"):
        require_watched(example, (1, 1))
    assert heads_text([(0, head) for head in range(30)], 2) == "0.0, 0.1 and 28 more"
