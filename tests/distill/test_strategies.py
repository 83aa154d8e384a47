from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill.strategies import STRATEGIES, Strategy, load_strategies, require_plain
from distill.study.conditions import CONTROLS
from interp.tables.errors import StudyError
from interp.tokens import annotate

QUESTION = "Ann has 12 pens and buys 3 packs of 4. How many pens?"


def test_presets_include_those_of_the_paper() -> None:
    assert set(STRATEGIES) >= {"none", "teacher", "ground_truth", "confidence", "step_by_step", "socratic", "few_shot"}
    texts = [s.text for s in STRATEGIES.values()]
    assert STRATEGIES["none"].text == ""
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("chat", [True, False])
def test_prompt_without_text_equals_that_of_the_head_analysis(tiny_tokenizer: Callable[..., Any], chat: bool) -> None:
    tokenizer = tiny_tokenizer()
    assert STRATEGIES["none"].encode(tokenizer, QUESTION, chat) == annotate(tokenizer, QUESTION, chat=chat).texts[0].ids.tolist()


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("place", ["system", "before", "after"])
def test_text_is_at_its_place(tiny_tokenizer: Callable[..., Any], place: Any, chat: bool) -> None:
    prompt = Strategy("s", "SAY IT SIMPLY", place).prompt(tiny_tokenizer(), QUESTION, chat)
    assert prompt.count("SAY IT SIMPLY") == prompt.count(QUESTION) == 1
    assert (prompt.index("SAY IT SIMPLY") < prompt.index(QUESTION)) == (place != "after")
    assert ("<|im_start|>system" in prompt) == (place == "system" and chat)
    assert prompt.endswith("<|im_start|>assistant\n" if chat else "\nAnswer:")


def test_template_without_a_system_turn_is_refused(tiny_tokenizer: Callable[..., Any]) -> None:
    refuses = tiny_tokenizer("{{ raise_exception('no system') if messages[0]['role'] == 'system' }}{{ messages[-1]['content'] }}")
    drops = tiny_tokenizer("{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}{% endfor %}")
    for tokenizer in (refuses, drops):
        with pytest.raises(StudyError, match='place = "before"'):
            Strategy("s", "SAY IT SIMPLY", "system").prompt(tokenizer, QUESTION, True)


def test_name_is_not_part_of_the_content() -> None:
    assert Strategy("a", "x").content == Strategy("b", "x", about="other").content != Strategy("a", "x", "after").content
    assert Strategy("a", "", "after").content == STRATEGIES["none"].content


def test_strategies_of_a_file_are_added(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[[strategy]]\nname = "rhyme"\nplace = "after"\ntext = """Answer\nin rhymes."""\n[[strategy]]\nname = "plain"\n')
    known = load_strategies([file])
    assert known["rhyme"] == Strategy("rhyme", "Answer\nin rhymes.", "after")
    assert list(known) == [*STRATEGIES, "rhyme", "plain"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "[[strategy]]"),
        ('name = "x"', "[[strategy]]"),
        ('[strategy]\nname = "x"', "[[strategy]]"),
        ('[[strategy]]\nname = "x"\ntxt = "y"', "did you mean text"),
        ('[[strategy]]\nname = "x"\ntext = 3', "str"),
        ('[[strategy]]\ntext = "y"', "name"),
        ('[[strategy]]\nname = "x"\nplace = "top"', "place"),
        ('[[strategy]]\nname = "../x"', "../x"),
        ('[[strategy]]\nname = "none"', "taken"),
        ('[[strategy]]\nname = "finetune"', "taken"),
        ("[[strategy]\n", "not valid TOML"),
        (None, "cannot be read"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, content: str | None, words: str) -> None:
    file = tmp_path / "mine.toml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(StudyError) as raised:
        load_strategies([file], reserved=CONTROLS)
    assert words in str(raised.value)
    assert "mine.toml" in str(raised.value)


def test_published_objective_needs_the_instruction_before_the_question() -> None:
    for strategy in (Strategy("s", "x"), Strategy("s", "", "after")):
        require_plain(strategy)
    for place in ("system", "after"):
        with pytest.raises(StudyError, match=f'place is "{place}".*needs "before"'):
            require_plain(Strategy("s", "x", place))
