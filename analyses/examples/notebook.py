"""The page of one problem inside a notebook: `from interp import show`."""

from __future__ import annotations

import html
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from analyses.examples.look import look
from analyses.examples.request import Request
from analyses.models.named import NamedModel, find_model
from distill.problems.sets import Problem, load_problems
from figures.example.page import example_page
from figures.example.read import read_example
from interp.checkpoints.loading import Checkpoint
from interp.checkpoints.opening import open_checkpoint, open_config
from interp.tables.errors import InputError


@dataclass(frozen=True)
class Page:
    """A page that a notebook shows inline.

    Attributes:
        html: the whole page, as `example.html` would hold it.
        height: of its frame, in pixels.
    """

    html: str = field(repr=False)
    height: int = 900

    def _repr_html_(self) -> str:
        """The page in a frame of its own, so that neither its style nor the notebook's reaches into the other."""
        page = html.escape(self.html, quote=True)
        return f'<iframe title="One problem" srcdoc="{page}" style="width: 100%; height: {self.height}px; border: 0"></iframe>'

    def save(self, path: str | Path) -> Path:
        """Write the page as a file of its own.

        Raises:
            OSError: its folder is not there, or cannot be written to.
        """
        path = Path(path)
        path.write_text(self.html, encoding="utf-8")
        return path


class _Open:
    """Models that the notebook has open, and others that are opened when they are asked for."""

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
    """The page of `python -m analyses.examples`, inline: tokens, heads and maps of one problem.

        from interp import open_checkpoint, show

        show(open_checkpoint("smollm2"), question="Ana has 3 bags of 12 nuts. How many nuts?", answer="36")

    Args:
        models: open checkpoints, or what `open_checkpoint` takes; none: the embedded default. `Checkpoint(model, tokenizer, "name", {})`
            is a model of your own.
        question: the problem.
        answer: its reference, a number or a whole solution that ends in "#### 36"; None: not known.
        text: the model's own greedy answer, or the reference solution.
        heads: shown first: "12.3", "12" (a layer), "auto".
        watch: the only heads whose maps are kept; by default those shown first are kept whole, and of all others the strong entries.
        by: measure by which "auto" chooses.
        region: where its queries stand.
        max_new_tokens: cut of the answer.
        others: shipped problems measured to compare with, where there is no run of the model in ./runs; 0: none, and then heads are
            chosen by their value alone.
        chat: use the chat template where there is one.
        seed: of the shuffled token sets.
        height: of the frame, in pixels.

    Raises:
        InputError: an empty question, a head that does not exist, gold text without an answer; other errors as `open_checkpoint`.
    """
    if not isinstance(question, str) or not question.strip():
        raise InputError(f"the question is {question!r}; a text is needed (empty ones cannot be looked at)")
    answer = None if answer is None else str(answer).strip()
    if text == "reference" and not answer:
        raise InputError("text='gold' reads a reference solution: give it as answer")
    for model in models:
        if not isinstance(model, (Checkpoint, str, Path)):
            raise InputError(
                f"a model is a {type(model).__name__}; give Checkpoint(model, tokenizer, name, {{}}), or what open_checkpoint takes"
            )
    for given in (question, answer or ""):
        if any("\ud800" <= character <= "\udfff" for character in given):
            raise InputError("question or answer holds half of a surrogate pair; it must be valid Unicode")
    if answer and "####" not in answer and text == "generated":
        answer = f"#### {answer}"
    known = [m if isinstance(m, Checkpoint) else find_model(str(m)) for m in models or ("smollm2",)]
    entries = [NamedModel(m.name, m.name, source=m.identity.get("source")) if isinstance(m, Checkpoint) else m for m in known]
    names = [entry.name for entry in entries]
    repeated = next((name for at, name in enumerate(names) if name in names[:at]), None)
    if repeated is not None:
        raise InputError(f"two models are called {repeated!r}; give one another name: dataclasses.replace(checkpoint, name=...)")
    opened = _Open({m.name: m for m in known if isinstance(m, Checkpoint)}, {e.name: str(e.source) for e in entries})
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
        called=True,
    )
    about = {"command": "interp.show(...)", "problem": {"source": "notebook", "index": None, "n": None}}
    with tempfile.TemporaryDirectory(prefix="primed-heads-") as place:
        folder = look(entries, opened, Problem(0, question, answer or ""), request, Path(place), about, load_problems())
        return Page(example_page(read_example(folder)), height)
