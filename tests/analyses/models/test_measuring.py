"""A head run that another command needs is reused, continued or measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from analyses.heads import batches
from analyses.models.measuring import head_run, same_weights, write_problems
from analyses.models.named import NamedModel
from analyses.options import ReadingOptions
from distill.problems.sets import load_problems
from interp.checkpoints.opening import open_checkpoint


@pytest.fixture
def options(problems: Path) -> ReadingOptions:
    return ReadingOptions(problems=str(problems), measures=("bos_mass",), device="cpu", limit=3, batch_tokens=130, force=True)


def never() -> Any:
    raise AssertionError("the model was opened")


def test_a_run_of_the_same_settings_is_reused_and_another_one_replaced(
    checkpoint: Path, tmp_path: Path, options: ReadingOptions, problems: Path
) -> None:
    model = NamedModel("m", "m", source=str(checkpoint))
    opened = lambda: open_checkpoint(str(checkpoint), device="cpu")  # noqa: E731
    folder = tmp_path / "heads" / "m"
    assert head_run(model, options, folder, opened) == folder
    before = (folder / "run.json").stat().st_ino
    assert head_run(model, options, folder, never) == folder
    run = json.loads((folder / "run.json").read_text())
    assert (run["model"]["name"], run["config"]["force"], run["config"]["figures"]) == ("m", False, False)
    with pytest.raises(AssertionError, match="the model was opened"):
        head_run(model, options, folder, never, chat=False)
    assert (folder / "run.json").stat().st_ino == before
    head_run(model, options, folder, opened, text="generated", max_new_tokens=2)
    head_run(model, options, folder, never, text="generated", max_new_tokens=2)
    run = json.loads((folder / "run.json").read_text())
    assert (run["text"], run["generated"]["max_new_tokens"], run["problems"]["n"]) == ("generated", 2, 3)


@pytest.mark.parametrize("resume", [True, False])
def test_an_unfinished_run_is_continued_or_discarded(
    checkpoint: Path, tmp_path: Path, options: ReadingOptions, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    model, calls, record_batch = NamedModel("m", "m", source=str(checkpoint)), [], batches.record_batch
    opened = lambda: open_checkpoint(str(checkpoint), device="cpu")  # noqa: E731

    def second_fails(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return record_batch(*given)

    monkeypatch.setattr(batches, "record_batch", second_fails)
    with pytest.raises(KeyboardInterrupt):
        head_run(model, options, tmp_path / "m", opened)
    calls[:] = [None, None]
    head_run(model, options, tmp_path / "m", opened, resume=resume)
    assert len(calls) - 2 == (2 if resume else 3)  # of three batches
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_paths_are_recorded_where_the_caller_will_move_them(checkpoint: Path, tmp_path: Path, options: ReadingOptions) -> None:
    draft, out = tmp_path / "out.partial", tmp_path / "out"
    file = write_problems(load_problems(limit=2), draft / "problems.jsonl")
    head_run(
        NamedModel("m", "m", source=str(checkpoint)),
        options,
        draft / "heads" / "m",
        lambda: open_checkpoint(str(checkpoint), device="cpu"),
        final=lambda path: out / path.relative_to(draft) if path.is_relative_to(draft) else path,
        problems=str(file),
        limit=None,
    )
    run = json.loads((draft / "heads" / "m" / "run.json").read_text())
    assert run["config"]["out"] == str(out / "heads" / "m")
    assert run["config"]["problems"] == run["problems"]["source"] == str(out / "problems.jsonl")
    assert run["problems"]["n"] == 2


def test_weights_are_compared_and_not_their_places() -> None:
    base, lora = {"weights_sha256": "a", "source": "here"}, {"weights_sha256": "b"}
    assert same_weights(base, {"weights_sha256": "a", "source": "there"})
    assert not same_weights(base, lora)
    adapted = {**base, "adapter": lora}
    assert not same_weights(adapted, base)
    assert same_weights(adapted, {**base, "adapter": lora})
    assert same_weights(adapted, {**lora, "base": base})
    assert not same_weights(adapted, {**lora, "base": {"weights_sha256": "c"}})
