from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill.strategies import PLACES, STRATEGIES, Strategy, choose_strategies, load_strategies
from interp.tables.errors import StudyError
from interp.tokens import annotate

QUESTION = "Ann has 12 pens and buys 3 packs of 4. How many pens?"


def test_presets_cover_the_paper_and_more() -> None:
    assert set(STRATEGIES) >= {"none", "teacher", "ground_truth", "confidence", "step_by_step", "socratic", "few_shot"}
    texts = [s.text for s in STRATEGIES.values()]
    assert STRATEGIES["none"].text == ""
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("chat", [True, False])
def test_without_text_the_prompt_is_that_of_the_head_analysis(tiny_tokenizer: Callable[..., Any], chat: bool) -> None:
    tokenizer = tiny_tokenizer()
    assert STRATEGIES["none"].encode(tokenizer, QUESTION, chat) == annotate(tokenizer, QUESTION, chat=chat).texts[0].ids.tolist()


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("place", PLACES)
def test_text_stands_where_it_is_put(tiny_tokenizer: Callable[..., Any], place: Any, chat: bool) -> None:
    prompt = Strategy("s", "SAY IT SIMPLY", place).prompt(tiny_tokenizer(), QUESTION, chat)
    assert prompt.count("SAY IT SIMPLY") == prompt.count(QUESTION) == 1
    assert (prompt.index("SAY IT SIMPLY") < prompt.index(QUESTION)) == (place != "after")
    assert ("<|im_start|>system" in prompt) == (place == "system" and chat)
    assert prompt.endswith("<|im_start|>assistant\n" if chat else "\nAnswer:")


def test_template_without_system_turn(tiny_tokenizer: Callable[..., Any]) -> None:
    refuses = tiny_tokenizer("{{ raise_exception('no system') if messages[0]['role'] == 'system' }}{{ messages[-1]['content'] }}")
    drops = tiny_tokenizer("{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}{% endfor %}")
    for tokenizer in (refuses, drops):
        with pytest.raises(StudyError, match='place = "before"'):
            Strategy("s", "SAY IT SIMPLY", "system").prompt(tokenizer, QUESTION, True)


def test_name_is_no_part_of_the_content() -> None:
    assert Strategy("a", "x").content == Strategy("b", "x", about="other").content != Strategy("a", "x", "after").content
    assert Strategy("a", "", "after").content == STRATEGIES["none"].content


def test_own_strategies(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[[strategy]]\nname = "rhyme"\nplace = "after"\ntext = """Answer\nin rhymes."""\n[[strategy]]\nname = "plain"\n')
    known = load_strategies([file])
    assert known["rhyme"] == Strategy("rhyme", "Answer\nin rhymes.", "after")
    assert list(choose_strategies(["untouched", "rhyme", "finetune", "none"], known)) == ["rhyme", "none"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "[[strategy]]"),
        ('name = "x"', "[[strategy]]"),
        ('[strategy]\nname = "x"', "[[strategy]]"),
        ('[[strategy]]\nname = "x"\ntxt = "y"', "did you mean 'text'"),
        ('[[strategy]]\nname = "x"\ntext = 3', "str"),
        ('[[strategy]]\ntext = "y"', "name"),
        ('[[strategy]]\nname = "x"\nplace = "top"', "place"),
        ('[[strategy]]\nname = "../x"', "../x"),
        ('[[strategy]]\nname = "none"', "taken"),
        ('[[strategy]]\nname = "finetune"', "taken"),
        ("[[strategy]\n", "no valid TOML"),
        (None, "cannot be read"),
    ],
)
def test_bad_files(tmp_path: Path, content: str | None, words: str) -> None:
    file = tmp_path / "mine.toml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(StudyError) as raised:
        load_strategies([file])
    assert words in str(raised.value)
    assert "mine.toml" in str(raised.value)


def test_unknown_condition_lists_the_known() -> None:
    with pytest.raises(StudyError, match=r"did you mean 'socratic'.*untouched, finetune, none, teacher"):
        choose_strategies(["socratik"], STRATEGIES)
