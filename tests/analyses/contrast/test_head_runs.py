"""Head runs of a contrast: finished ones are used as they are, unfinished ones continue, unsuitable ones are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analyses.contrast.run import contrast_answers
from interp.tables.errors import InputError, OptionError
from interp.tables.heads import INPUTS
from interp.tables.schema import read, write
from tests.analyses.contrast.conftest import COMMAND, NEW, N, change, options, run_json, write_jsonl


def test_finished_runs_are_used_with_their_problems(done: Path, tmp_path: Path) -> None:
    """No model is opened, so the models need not be there."""
    config = options(tmp_path / "again", None, done / "heads" / "one", done / "heads" / "two", max_new_tokens=None, measures=())
    contrast_answers(config, command=COMMAND)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "again" / "contrast.parquet"), pd.read_parquet(done / "contrast.parquet"))
    assert not (tmp_path / "again" / "heads").exists()


def test_finished_head_runs_are_not_measured_again(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    config = options(out, place / "planted.jsonl", place / "two")
    contrast_answers(config, command=COMMAND)
    before = (out / "heads" / "two" / "run.json").stat().st_mtime_ns
    capsys.readouterr()
    with pytest.raises(OptionError, match="finished contrast; --force replaces it"):
        contrast_answers(config, command=COMMAND)
    contrast_answers(replace(config, force=True, grader="flexible"), command=COMMAND)
    assert (out / "heads" / "two" / "run.json").stat().st_mtime_ns == before
    assert "measuring" not in capsys.readouterr().err
    assert run_json(out)["grader"] == "flexible"
    contrast_answers(replace(config, force=True, max_new_tokens=NEW - 1), command=COMMAND)
    assert "measuring the heads of two" in capsys.readouterr().err
    assert run_json(out / "heads" / "two")["generated"]["max_new_tokens"] == NEW - 1


def test_an_unfinished_head_run_continues(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    from analyses.heads import batches as heads

    real, calls = heads.record_batch, []

    def interrupted(*arguments: Any) -> Any:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return real(*arguments)

    draft = tmp_path.with_name(tmp_path.name + ".partial")
    config = options(tmp_path, place / "planted.jsonl", place / "two", batch_tokens=500)
    monkeypatch.setattr(heads, "record_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        contrast_answers(config, command=COMMAND)
    monkeypatch.undo()
    assert (draft / "heads" / "two.partial").is_dir()
    contrast_answers(config, command=COMMAND)
    assert "resuming: 2 of" in capsys.readouterr().err
    assert (tmp_path / "heads" / "two" / "run.json").is_file()
    assert not draft.exists()
    with pytest.raises(OptionError, match="finished contrast"):
        contrast_answers(config, command=COMMAND)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": "reference", "generated": None}, "measured with --text reference, but a contrast needs the model's own answers"),
        ({"generated": {"max_new_tokens": 9, "n_truncated": 0}}, "was measured with --max-new-tokens 9, the others with 24"),
        ({"chat": False}, "one was measured with the chat template, but two .* without the chat template"),
        ({"problems": {"source": "gsm8k", "split": "test", "n": 7, "sha256": "ab" * 32}}, r"read 7 problems of gsm8k \(abababababab…\)"),
    ],
)
def test_runs_with_other_settings_are_refused(runs: tuple[Path, Path], tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    change(runs[1], **changes)
    with pytest.raises(InputError, match=message):
        contrast_answers(options(tmp_path / "out", None, *runs), command=COMMAND)


def test_problems_that_the_runs_did_not_read_are_refused(runs: tuple[Path, Path], place: Path, tmp_path: Path) -> None:
    for asked in ({"problems": place / "blank.jsonl"}, {"problems": place / "planted.jsonl", "limit": 20}, {"problems": None, "limit": 5}):
        with pytest.raises(InputError, match=rf"one \(.*\) read {N} problems of .*planted.jsonl"):
            contrast_answers(options(tmp_path / "out", asked.pop("problems"), *runs, **asked), command=COMMAND)
    for folder in runs:
        change(folder, problems={**run_json(folder)["problems"], "source": "/nowhere/planted.jsonl"})
    with pytest.raises(InputError, match="name them with --problems"):
        contrast_answers(options(tmp_path / "out", None, *runs), command=COMMAND)
    contrast_answers(options(tmp_path / "out", place / "planted.jsonl", *runs), command=COMMAND)


def test_damaged_tables_and_references_without_a_number_are_refused(runs: tuple[Path, Path], place: Path, tmp_path: Path) -> None:
    inputs = read(runs[0] / "inputs.parquet", INPUTS)
    write(inputs[inputs["example"] != 3].reset_index(drop=True), INPUTS, runs[0] / "inputs.parquet")
    with pytest.raises(InputError, match=f"the tables of one have {N - 1} examples, but there are {N} problems"):
        contrast_answers(options(tmp_path / "out", None, *runs), command=COMMAND)
    (runs[1] / "inputs.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"inputs\.parquet.*measure two again"):
        contrast_answers(options(tmp_path / "out", None, runs[1]), command=COMMAND)
    no_number = write_jsonl(tmp_path / "words.jsonl", ["#### none"] * N)
    with pytest.raises(InputError, match="does not end in a number"):
        contrast_answers(options(tmp_path / "out", no_number, place / "one", limit=2), command=COMMAND)
