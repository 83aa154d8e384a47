"""Prompting strategies: what a teacher is told beside the question. The student never sees any of it.

`STRATEGIES` holds the presets; a file of the user's own adds more:

    [[strategy]]
    name = "rhyme"
    place = "before"        # system, before or after the question
    text = "Answer in rhymes."
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import msgspec

from interp.tables.errors import StudyError
from interp.tokens import render_prompt

PLACES = ("system", "before", "after")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
RESERVED = ("untouched", "finetune")
"""The two control conditions: no training at all, and training on the reference solutions."""


@dataclass(frozen=True)
class Strategy:
    """What is put beside a question.

    Attributes:
        name: short, for tables and folders: letters, digits, `_`, `-` and `.`.
        text: the instruction; "" puts nothing.
        place: "system" (a turn of its own in the chat template; before the question where no template is used), "before" or "after"
            the question.
        about: one line for people.
    """

    name: str
    text: str = ""
    place: Literal["system", "before", "after"] = "before"
    about: str = ""

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            StudyError: a name that cannot be a folder's, or an unknown place.
        """
        if not NAME.fullmatch(self.name):
            raise StudyError(f"strategy name {self.name!r}; letters, digits, '_', '-' and '.' are allowed")
        if self.place not in PLACES:
            raise StudyError(f"strategy {self.name}: place {self.place!r}; allowed: {', '.join(PLACES)}")

    @property
    def content(self) -> dict[str, str]:
        """What shapes the prompt; the name does not, so two names of one text are one strategy. No text has no place."""
        return {"place": self.place if self.text else "before", "text": self.text}

    def prompt(self, tokenizer: Any, question: str, chat: bool) -> str:
        """The text before a response, as `interp.tokens.render_prompt` gives it where the strategy has no text.

        Args:
            tokenizer: with a chat template where `chat` is set.
            question: the problem.
            chat: through the chat template, or plainly as "Question: ... Answer:".

        Raises:
            StudyError: a chat template that takes no system turn.
            InputError: a chat template that fails otherwise, or changes the question's text.
        """
        if not self.text:
            return render_prompt(tokenizer, question, chat)[0]
        if self.place == "system" and chat:
            turns = [{"role": "system", "content": self.text}, {"role": "user", "content": question}]
            try:
                prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            except Exception as error:  # a template is a program of the checkpoint's: it may raise anything
                raise StudyError(f'strategy {self.name}: the chat template takes no system turn ({error}); use place = "before"') from error
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
        """Token ids of `prompt`: special tokens are the template's own, or the tokenizer's where no template is used."""
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
    s.name: s
    for s in (
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
            "sub-questions with their answers, as GSM8K's Socratic form has them",
        ),
        Strategy("few_shot", _FEW_SHOT, "before", "three solved problems of our own writing first"),
    )
}
"""The presets, by name."""


def load_strategies(files: Sequence[str | Path] = ()) -> dict[str, Strategy]:
    """The presets, and the strategies of TOML files with `[[strategy]]` tables (name, text, place, about).

    Raises:
        StudyError: a file that cannot be read, a wrong key, a name that is taken.
    """
    known = dict(STRATEGIES)
    for file in files:
        for strategy in _read(Path(file)):
            if strategy.name in known or strategy.name in RESERVED:
                raise StudyError(f"{file}: the name {strategy.name!r} is taken; choose another")
            known[strategy.name] = strategy
    return known


def choose_strategies(names: Iterable[str], known: dict[str, Strategy]) -> dict[str, Strategy]:
    """The strategies of conditions, in their order; the two controls have none.

    Raises:
        StudyError: an unknown name; the message lists the known.
    """
    chosen = {}
    for name in names:
        if name in RESERVED:
            continue
        if name not in known:
            near = get_close_matches(name, [*known, *RESERVED], 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise StudyError(
                f'unknown condition {name!r}{hint}; known: {", ".join([*RESERVED, *known])}; strategies = ["file.toml"] adds your own'
            )
        chosen[name] = known[name]
    return chosen


def _read(file: Path) -> list[Strategy]:
    try:
        content = tomllib.loads(file.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StudyError(f"{file}: no valid TOML ({error})") from error
    except OSError as error:
        raise StudyError(f"{file}: cannot be read ({error.strerror or error})") from error
    keys = list(asdict(Strategy("none")))
    form = f"a file of strategies holds [[strategy]] tables with the keys {', '.join(keys)}"
    tables = content.get("strategy")
    if not isinstance(tables, list) or not tables or len(content) != 1:
        raise StudyError(f"{file}: it holds {', '.join(map(repr, content)) or 'nothing'}; {form}")
    strategies = []
    for number, table in enumerate(tables, 1):
        unknown = [key for key in table if key not in keys] if isinstance(table, dict) else []
        if unknown:
            near = get_close_matches(unknown[0], keys, 1)
            raise StudyError(
                f"{file}: strategy {number} has the unknown key {unknown[0]!r}{f' (did you mean {near[0]!r}?)' if near else ''}; {form}"
            )
        try:
            strategies.append(msgspec.convert(table, Strategy))
        except msgspec.ValidationError as error:
            raise StudyError(f"{file}: strategy {number}: {error}; {form}") from error
    return strategies
