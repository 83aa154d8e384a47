"""Prompting strategies: instructions that a teacher reads in addition to the question. The student never sees them.

`STRATEGIES` holds the presets. A TOML file adds more:

    [[strategy]]
    name = "rhyme"
    place = "before"        # system, before or after the question
    text = "Answer in rhymes."
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import msgspec

from distill.settings import FOLDER_NAME
from interp.tables.errors import StudyError
from interp.tables.plugins import nearest
from interp.tokens import render_prompt

_PLACES = ("system", "before", "after")


@dataclass(frozen=True)
class Strategy:
    """An instruction and its place in the prompt.

    Attributes:
        name: name in tables and folders: letters, digits, `_`, `-` and `.`.
        text: the instruction; "" leaves the question alone.
        place: "before" or "after" the question, or "system": the system turn of the chat template (before the question if no template is
            used).
        about: one line for people.
    """

    name: str
    text: str = ""
    place: Literal["system", "before", "after"] = "before"
    about: str = ""

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            StudyError: the name cannot be a folder's name, or the place is unknown.
        """
        if not FOLDER_NAME.fullmatch(self.name):
            raise StudyError(f"strategy name {self.name!r} is not allowed; use letters, digits, '_', '-' and '.', a letter or digit first")
        if self.place not in _PLACES:
            raise StudyError(f"strategy {self.name}: place is {self.place!r}; allowed: {', '.join(_PLACES)}")

    @property
    def content(self) -> dict[str, str]:
        """What decides the prompt. The name does not, so strategies of equal text are equal; an empty text has no place."""
        return {"place": self.place if self.text else "before", "text": self.text}

    def prompt(self, tokenizer: Any, question: str, chat: bool) -> str:
        """Return the text before a response; without an instruction, it is that of `interp.tokens.render_prompt`.

        Args:
            tokenizer: a tokenizer, with a chat template if `chat` is set.
            question: text of the problem.
            chat: use the chat template; otherwise the plain form "Question: ... Answer:".

        Raises:
            StudyError: the chat template refuses or drops the system turn.
            InputError: the chat template fails for another reason, or changes the question's text.
        """
        if not self.text:
            return render_prompt(tokenizer, question, chat)[0]
        if self.place == "system" and chat:
            turns = [{"role": "system", "content": self.text}, {"role": "user", "content": question}]
            try:
                prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            except Exception as error:  # a template is a program, which may raise anything
                raise StudyError(
                    f'strategy {self.name}: the chat template refuses a system turn ({error}); use place = "before"'
                ) from error
            if self.text.strip() not in prompt:
                raise StudyError(f'strategy {self.name}: the chat template drops the system turn; use place = "before"')
            return prompt
        if chat:
            asked = f"{question}\n\n{self.text}" if self.place == "after" else f"{self.text}\n\n{question}"
            return render_prompt(tokenizer, asked, chat)[0]
        if self.place == "after":
            return render_prompt(tokenizer, f"{question}\n{self.text}", chat)[0]
        return f"{self.text}\n\n{render_prompt(tokenizer, question, chat)[0]}"

    def encode(self, tokenizer: Any, question: str, chat: bool) -> list[int]:
        """Return the token ids of `prompt`; special tokens come from the template, or from the tokenizer if no template is used."""
        return list(tokenizer(self.prompt(tokenizer, question, chat), add_special_tokens=not chat)["input_ids"])


_FEW_SHOT = """Here are solved problems.

Question: A box holds 12 pencils. Mia has 3 full boxes and 5 loose pencils. How many pencils does she have?
Answer: The boxes hold 3 * 12 = 36 pencils. With the loose ones she has 36 + 5 = 41 pencils.
#### 41

Question: A ticket costs $8, and children pay half. What do 2 adults and 3 children pay?
Answer: A child's ticket costs 8 / 2 = $4. The adults pay 2 * 8 = $16 and the children 3 * 4 = $12. Together they pay 16 + 12 = $28.
#### 28

Question: Of 60 pages, Omar read a quarter on Monday and 20 pages on Tuesday. How many pages are left?
Answer: On Monday he read 60 / 4 = 15 pages. Together with Tuesday he read 15 + 20 = 35 pages. So 60 - 35 = 25 pages are left.
#### 25

Solve the next problem in the same way."""

STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        Strategy("none", "", "before", "the question alone"),
        Strategy(
            "teacher",
            "You are a teacher. Guide your student through the problem below, and explain each step simply and clearly, "
            "for someone who is new to such problems.",
            "before",
            "act as a teacher for someone new to the problem (arXiv 2412.17846)",
        ),
        Strategy(
            "ground_truth",
            "Your answer to the problem below is the reference from which smaller language models learn. Answer in detail, "
            "in a way that they can understand and learn from.",
            "before",
            'write an answer that smaller models learn from (arXiv 2412.17846; "ai-to-ai" in its files)',
        ),
        Strategy(
            "confidence",
            "Solve the problem below. Once you are done, briefly double-check your answer.",
            "before",
            'double-check the answer once done (arXiv 2412.17846; "reverse KL" in its files)',
        ),
        Strategy("step_by_step", "Let's think step by step.", "after", "zero-shot chain of thought (arXiv 2205.11916)"),
        Strategy(
            "socratic",
            "Solve the problem below in the Socratic way: before each step, ask the small question that the step answers, then answer it.",
            "before",
            "sub-questions with their answers, as in the socratic config of GSM8K",
        ),
        Strategy("few_shot", _FEW_SHOT, "before", "three solved example problems before the question"),
    )
}
"""The presets by name."""


def load_strategies(files: Sequence[str | Path] = (), *, reserved: Collection[str] = ()) -> dict[str, Strategy]:
    """Return the presets and the strategies of TOML files with `[[strategy]]` tables (name, text, place, about).

    Args:
        files: TOML files.
        reserved: names that a strategy cannot have, such as those of control conditions.

    Raises:
        StudyError: a file cannot be read, has a wrong key, or uses a name that is taken.
    """
    known = dict(STRATEGIES)
    for file in files:
        for strategy in _read_strategies(Path(file)):
            if strategy.name in known or strategy.name in reserved:
                raise StudyError(f"{file}: the name {strategy.name!r} is taken; choose another")
            known[strategy.name] = strategy
    return known


def require_plain(strategy: Strategy) -> None:
    """Raise unless instruction and question can be one plain text, as the published objective needs.

    Raises:
        StudyError: the instruction is not before the question.
    """
    if strategy.text and strategy.place != "before":
        raise StudyError(
            f'strategy {strategy.name}: place is "{strategy.place}", but objective published needs "before", because instruction and '
            "question are one plain text"
        )


def _read_strategies(file: Path) -> list[Strategy]:
    try:
        content = tomllib.loads(file.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StudyError(f"{file} is not valid TOML ({error})") from error
    except OSError as error:
        raise StudyError(f"{file} cannot be read ({error.strerror or error})") from error
    keys = [field.name for field in fields(Strategy)]
    form = f"a strategy file holds [[strategy]] tables with the keys {', '.join(keys)}"
    tables = content.get("strategy")
    if not isinstance(tables, list) or not tables or len(content) != 1:
        raise StudyError(f"{file} holds {', '.join(map(repr, content)) or 'nothing'}; {form}")
    strategies = []
    for number, table in enumerate(tables, 1):
        unknown = [key for key in table if key not in keys] if isinstance(table, dict) else []
        if unknown:
            raise StudyError(f"{file}: strategy {number} has the unknown key {unknown[0]!r}{nearest(unknown[0], keys)}; {form}")
        try:
            strategies.append(msgspec.convert(table, Strategy))
        except msgspec.ValidationError as error:
            raise StudyError(f"{file}: strategy {number}: {error}; {form}") from error
    return strategies
