"""The page of one problem inside a notebook: `from analyses.examples import show`."""

from __future__ import annotations

import html
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from analyses.examples.inspection import write_inspection
from analyses.examples.request import Request
from analyses.models.named import NamedModel, find_model
from distill.problems.sets import Problem, load_problems
from figures.example.page import example_page
from figures.example.read import read_example
from interp.checkpoints.loading import Checkpoint
from interp.checkpoints.opening import open_checkpoint, open_config
from interp.tables.errors import InputError
from interp.tables.files import write_text
from interp.tables.versions import current


@dataclass(frozen=True)
class Page:
    """A page that a notebook displays inline.

    Attributes:
        html: the complete page, as in `example.html`.
        height: height of its frame in pixels.
    """

    html: str = field(repr=False)
    height: int = 900

    def _repr_html_(self) -> str:
        """Return the page in a frame, so that its style and the notebook's do not affect each other."""
        page = html.escape(self.html, quote=True)
        return f'<iframe title="One problem" srcdoc="{page}" style="width: 100%; height: {self.height}px; border: 0"></iframe>'

    def save(self, path: str | Path) -> Path:
        """Write the page to a file, and return its path.

        Raises:
            OSError: the folder does not exist or cannot be written to.
        """
        path = Path(path)
        write_text(path, self.html)
        return path


class _Opener:
    """Models that the notebook has open, and others that are opened on demand."""

    def __init__(self, checkpoints: dict[str, Checkpoint], sources: dict[str, str]) -> None:
        self._checkpoints, self._sources = checkpoints, sources

    def config(self, model: NamedModel) -> Any:
        known = self._checkpoints.get(model.name)
        return known.model.config if known is not None else open_config(self._sources[model.name])

    def open(self, model: NamedModel) -> Checkpoint:
        if model.name not in self._checkpoints:
            self._checkpoints[model.name] = open_checkpoint(self._sources[model.name])
        return self._checkpoints[model.name]


def show(
    *models: Checkpoint | str | Path,
    question: str,
    answer: str | float | None = None,
    text: Literal["generated", "reference"] = "generated",
    heads: str | Sequence[str] = "auto",
    watch: str | Sequence[str] = (),
    by: str = "numeric_mass",
    region: Literal["question", "response", "all"] = "response",
    max_new_tokens: int = 256,
    others: int = 0,
    chat: bool = True,
    seed: int = 0,
    height: int = 900,
) -> Page:
    """Return the page of `python -m analyses.examples` for display in a notebook: tokens, heads and attention of one problem.

        from analyses.examples import show
        from interp import open_checkpoint

        show(open_checkpoint("smollm2"), question="Ana has 3 bags of 12 nuts. How many nuts?", answer="36")

    Args:
        models: open checkpoints, or what `open_checkpoint` takes; default the embedded model. `Checkpoint(model, tokenizer, "name", {})`
            wraps a model of your own.
        question: the problem.
        answer: its reference: a number, or a complete solution that ends in "#### 36"; None if it is not known.
        text: generated reads the model's own greedy answer, reference the reference solution.
        heads: heads to show first: "12.3", "12" (a complete layer), "auto" (the most unusual ones).
        watch: the only heads whose maps are kept. By default, complete maps are kept of the heads shown first, and strong entries of all
            others.
        by: measure by which "auto" chooses heads.
        region: region of the queries of that measure.
        max_new_tokens: the answer is truncated at this number of tokens.
        others: number of shipped problems to measure for comparison if there is no run of the model in ./runs; with 0, none is measured,
            and heads are chosen by their value alone.
        chat: use the chat template if the tokenizer has one.
        seed: seed of the shuffled token sets.
        height: height of the frame in pixels.

    Raises:
        InputError: the question is empty, a head does not exist, or reference text has no answer; other errors as `open_checkpoint`.
    """
    text = current({"text": text})["text"]  # version 0.1 called reference text "gold"
    answer = None if answer is None else str(answer).strip()
    _check_texts(question, answer, text)
    if answer and "####" not in answer and text == "generated":
        answer = f"#### {answer}"
    entries, opener = _named(models or ("smollm2",))
    request = Request(
        text=text,
        heads=(heads,) if isinstance(heads, str) else tuple(heads),
        watch=(watch,) if isinstance(watch, str) else tuple(watch),
        by=by,
        region=region,
        chat=chat,
        max_new_tokens=max_new_tokens,
        others=others,
        seed=seed,
        from_call=True,
    )
    about = {"command": "analyses.examples.show(...)", "problem": {"source": "notebook", "index": None, "n": None}}
    with tempfile.TemporaryDirectory(prefix="primed-heads-") as place:
        out = Path(place) / "example"
        folder = write_inspection(entries, opener, Problem(0, question, answer or ""), request, out, about, load_problems())
        return Page(example_page(read_example(folder)), height)


def _check_texts(question: str, answer: str | None, text: str) -> None:
    """Raise if question or answer cannot be read."""
    if not isinstance(question, str) or not question.strip():
        raise InputError(f"question is {question!r}; it must be a text that is not empty")
    if text == "reference" and not answer:
        raise InputError("text='reference' reads a reference solution; give it as answer")
    for name, given in (("question", question), ("answer", answer or "")):
        if any("\ud800" <= character <= "\udfff" for character in given):
            raise InputError(f"{name} holds half of a surrogate pair; it must be valid Unicode")


def _named(models: Sequence[Checkpoint | str | Path]) -> tuple[list[NamedModel], _Opener]:
    """Return the models by name, and what opens them.

    Raises:
        InputError: an argument is not a model, or two models have the same name.
    """
    for model in models:
        if not isinstance(model, (Checkpoint, str, Path)):
            raise InputError(
                f"a model is of type {type(model).__name__}; give Checkpoint(model, tokenizer, name, {{}}), or what open_checkpoint takes"
            )
    known = [m if isinstance(m, Checkpoint) else find_model(str(m)) for m in models]
    entries = [NamedModel(m.name, m.name, source=m.identity.get("source")) if isinstance(m, Checkpoint) else m for m in known]
    names = [entry.name for entry in entries]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise InputError(f"two models are called {repeated!r}; rename one with dataclasses.replace(checkpoint, name=...)")
    return entries, _Opener({m.name: m for m in known if isinstance(m, Checkpoint)}, {e.name: str(e.source) for e in entries})
