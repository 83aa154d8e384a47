"""Right against wrong answers from end to end: real generated runs of tiny models, planted correctness, resumption, and bad input.

A random model solves nothing by itself, and reads no reference. So each problem's reference is written after the models have answered: the
number that one of them wrote. Who is right is then planted, and everything else is the command's own.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from analyses.command import guarded
from analyses.contrast.answers import written_answers
from analyses.contrast.options import ContrastConfig
from analyses.contrast.run import contrast
from interp.tables.contrast import ANSWERS, CONTRAST, PAIRED
from interp.tables.errors import InputError
from interp.tables.heads import EXAMPLE_VALUES, INPUTS
from interp.tables.schema import REGIONS, read, write

N = 24
NEW = 24
MEASURES = ("entropy_nats", "previous_mass")
NO_NUMBER = "#### 987654321"
COMMAND = "python -m analyses.examples --contrast"


def questions() -> list[str]:
    return [f"Ann has {3 * n + 2} pens and buys {n % 5 + 1} packs of {n % 7 + 2}. How many pens?" for n in range(N)]


def write_problems(path: Path, answers: list[str]) -> Path:
    lines = [json.dumps({"question": question, "answer": answer}) for question, answer in zip(questions(), answers, strict=True)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def options(out: Path, problems: Path | None, *models: Path, **changes: Any) -> ContrastConfig:
    given = {"measures": MEASURES, "max_new_tokens": NEW, "figures": False, "device": "cpu", **changes}
    return ContrastConfig(models=tuple(map(str, models)), problems=None if problems is None else str(problems), out=out, **given)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, save_checkpoint: Callable[..., Path]) -> Path:
    """Two tiny models that answered all problems, and a problem file by which each is right where the other is not."""
    place = tmp_path_factory.mktemp("contrast")
    for name, seed in (("one", 1), ("two", 2)):
        save_checkpoint(place / name, num_hidden_layers=2, seed=seed)
    blank = write_problems(place / "blank.jsonl", [NO_NUMBER] * N)
    with pytest.raises(InputError):
        contrast(options(place / "first", blank, place / "one", place / "two"), COMMAND)
    said = pd.read_parquet(place / "first" / "answers.parquet")
    extracted = {name: part.set_index("problem")["extracted"] for name, part in said.groupby("model", observed=True)}
    answers = []
    for n in range(N):
        one, two = extracted["one"][n], extracted["two"][n]
        wanted = one if n % 3 == 0 else two if n % 3 == 1 else ""
        answers.append(f"#### {wanted}" if wanted and one != two else NO_NUMBER)
    write_problems(place / "planted.jsonl", answers)
    return place


@pytest.fixture(scope="module")
def done(place: Path) -> Path:
    """The contrast of the two models on the planted problems, with figures."""
    out = place / "done"
    assert contrast(options(out, place / "planted.jsonl", place / "one", place / "two", figures=True), COMMAND) == 0
    return out


@pytest.fixture
def runs(done: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Copies of the two finished head runs, to be damaged."""
    first, second = (Path(shutil.copytree(done / "heads" / name, tmp_path / "runs" / name)) for name in ("one", "two"))
    return first, second


def run_json(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def changed(folder: Path, **changes: Any) -> Path:
    (folder / "run.json").write_text(json.dumps({**run_json(folder), **changes}), encoding="utf-8")
    return folder


# --- what the models wrote ------------------------------------------------------------------------------------------


def test_answers_are_the_models_own_text(place: Path) -> None:
    """Against transformers' own greedy generation, one problem at a time, decoded by the tokenizer without special tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(place / "one")
    model: Any = AutoModelForCausalLM.from_pretrained(place / "one")
    folder = place / "first" / "heads" / "one"
    answers: Any = written_answers(read(folder / "inputs.parquet", INPUTS), NEW)
    ends: list[bool] = []
    for question, row in zip(questions(), answers.to_dict("records"), strict=True):
        messages = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]
        with torch.inference_mode():
            new = model.generate(ids, max_new_tokens=NEW, do_sample=False, eos_token_id=2, pad_token_id=0)[0, ids.shape[1] :].tolist()
        assert row["text"] == tokenizer.decode(new, skip_special_tokens=True)
        assert row["n_tokens"] == sum(token not in tokenizer.all_special_ids for token in new)
        assert row["truncated"] == (new[-1] not in tokenizer.all_special_ids)
        ends.append(bool(row["truncated"]))
    assert sum(ends) > 0


# --- from end to end ------------------------------------------------------------------------------------------------


def test_the_planted_verdicts_and_every_table(place: Path, done: Path) -> None:
    answers, table, run = read(done / "answers.parquet", ANSWERS), read(done / "contrast.parquet", CONTRAST), run_json(done)
    references = [json.loads(line)["answer"] for line in (place / "planted.jsonl").read_text().splitlines()]
    for name, turn in (("one", 0), ("two", 1)):
        own = answers[answers["model"] == name]
        planted = [n % 3 == turn and references[n] != NO_NUMBER for n in range(N)]
        assert own["correct"].tolist() == planted
        about = next(m for m in run["models"] if m["name"] == name)
        assert (about["n_right"], about["n_problems"], about["accuracy"]) == (sum(planted), N, sum(planted) / N)
        assert about["accuracy_low"] < about["accuracy"] < about["accuracy_high"]
        assert about["n_truncated"] == own["truncated"].sum()
    assert list(dict.fromkeys(table["model"])) == ["one", "two", PAIRED]
    assert len(table) == 3 * 2 * 4 * len(MEASURES) * len(REGIONS)
    keys = ("kind", "command", "grader", "seed", "region", "n_layers", "n_heads", "n_examples", "max_new_tokens", "text")
    assert [run[key] for key in keys] == ["contrast", COMMAND, "first_final", 0, "response", 2, 4, N, NEW, "generated"]
    assert [info["name"] for info in run["measures"]] == list(MEASURES)
    assert {"name", "title", "unit", "low", "high", "formula"} == set(run["measures"][0])
    assert run["n_problems_both"] == answers["correct"].sum()
    assert [row["model"] for row in run["lengths"]] == ["one", "two", PAIRED]
    assert run["versions"]["torch"]
    assert run["problems"]["source"].endswith("planted.jsonl")


def test_the_numbers_are_those_of_the_head_runs(done: Path) -> None:
    """One head by hand: its values on right less those on wrong answers, from the head run's own table."""
    answers = read(done / "answers.parquet", ANSWERS)
    right = answers[answers["model"] == "two"].set_index("problem")["correct"]
    values = read(done / "heads" / "two" / "examples.parquet", EXAMPLE_VALUES)
    own = values[(values["layer"] == 1) & (values["head"] == 2) & (values["measure"] == "previous_mass") & (values["region"] == "response")]
    by_problem = own.set_index("example")["value"]
    table: Any = read(done / "contrast.parquet", CONTRAST).set_index(["model", "layer", "head", "measure", "region"])
    row = table.loc[("two", 1, 2, "previous_mass", "response")]
    assert row["difference"] == pytest.approx(by_problem[right.to_numpy()].mean() - by_problem[~right.to_numpy()].mean())
    assert row["n_right"] == right.sum()


def test_figures_are_drawn(done: Path) -> None:
    names = {path.name for path in (done / "figures").iterdir()}
    assert {"forest_one.png", "forest_paired.pdf", "contrast_map_paired_entropy_nats.png"} <= names


def test_it_says_how_sure_it_is(place: Path, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert contrast(options(tmp_path, None, done / "heads" / "one", done / "heads" / "two", region="question"), COMMAND) == 0
    said = capsys.readouterr().out
    for text in (
        "Wilson's 95 % intervals",
        "Length of the answers in tokens",
        "Benjamini-Hochberg over the 8 heads of a measure",
        "paired by problem",
        "Welch's t test",
        "right answers come from easier, shorter problems",
        "queries in the question have not seen the answer",
        "rough, take p for a hint",
        "were cut",
    ):
        assert text in said, text


def test_finished_runs_are_taken_as_they_are_with_their_problems(done: Path, tmp_path: Path) -> None:
    """No model is opened: the runs' sources need not be there."""
    config = options(tmp_path / "again", None, done / "heads" / "one", done / "heads" / "two", max_new_tokens=None, measures=())
    assert contrast(config, COMMAND) == 0
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "again" / "contrast.parquet"), pd.read_parquet(done / "contrast.parquet"))
    assert not (tmp_path / "again" / "heads").exists()


def test_a_planted_head_is_found_and_pairing_leaves_hard_problems_out(runs: tuple[Path, Path], done: Path, tmp_path: Path) -> None:
    """One head's values are raised where the answer is right; another's on the problems that only `two` solves, for both models alike."""
    answers = read(done / "answers.parquet", ANSWERS)
    hard = answers.loc[(answers["model"] == "two") & answers["correct"], "problem"]
    for folder in runs:
        name = folder.name
        right = answers.loc[(answers["model"] == name) & answers["correct"], "problem"]
        values = read(folder / "examples.parquet", EXAMPLE_VALUES)
        place = (values["measure"] == "previous_mass") & (values["region"] == "response") & (values["layer"] == 1)
        values.loc[place & (values["head"] == 2) & values["example"].isin(right), "value"] += 1.0
        values.loc[place & (values["head"] == 0) & values["example"].isin(hard), "value"] += 1.0
        write(values, EXAMPLE_VALUES, folder / "examples.parquet")
    contrast(options(tmp_path / "out", None, *runs), COMMAND)
    table = read(tmp_path / "out" / "contrast.parquet", CONTRAST)
    rows = table[(table["measure"] == "previous_mass") & (table["region"] == "response") & (table["layer"] == 1)]
    found: Any = rows.set_index(["model", "head"])
    assert (found.loc[[("one", 2), ("two", 2), (PAIRED, 2)], "q"] < 0.01).all()
    assert found.loc[(PAIRED, 2), "ci_low"] < 1 < found.loc[(PAIRED, 2), "ci_high"]
    assert found.loc[("two", 0), "q"] < 0.01
    assert found.loc[("two", 0), "difference"] == pytest.approx(1, abs=0.3)
    assert found.loc[(PAIRED, 0), "q"] > 0.05


# --- what is measured, and what is taken again ----------------------------------------------------------------------


def test_finished_head_runs_are_not_measured_again(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    config = options(out, place / "planted.jsonl", place / "two")
    contrast(config, COMMAND)
    before = (out / "heads" / "two" / "run.json").stat().st_mtime_ns
    capsys.readouterr()
    with pytest.raises(InputError, match="finished contrast; --force replaces it"):
        contrast(config, COMMAND)
    contrast(replace(config, force=True, grader="flexible"), COMMAND)
    assert (out / "heads" / "two" / "run.json").stat().st_mtime_ns == before
    assert "measuring" not in capsys.readouterr().err
    assert run_json(out)["grader"] == "flexible"
    contrast(replace(config, force=True, max_new_tokens=NEW - 1), COMMAND)
    assert "measuring the heads of two" in capsys.readouterr().err
    assert run_json(out / "heads" / "two")["generated"]["max_new_tokens"] == NEW - 1


def test_an_unfinished_head_run_goes_on(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:

    from analyses.heads import batches as heads

    real, calls = heads.record_batch, []

    def interrupted(*arguments: Any) -> Any:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return real(*arguments)

    config = options(tmp_path, place / "planted.jsonl", place / "two", batch_tokens=500)
    monkeypatch.setattr(heads, "record_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        contrast(config, COMMAND)
    monkeypatch.undo()
    assert (tmp_path / "heads" / "two.partial").is_dir()
    contrast(config, COMMAND)
    assert "resuming: 2 of" in capsys.readouterr().err
    assert not (tmp_path / "heads" / "two.partial").exists()
    with pytest.raises(InputError):
        contrast(config, COMMAND)


# --- bad input ------------------------------------------------------------------------------------------------------


def test_nothing_right_is_one_line_and_code_2(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = options(tmp_path, place / "blank.jsonl", place / "one", limit=5)
    code = guarded(lambda: contrast(config, COMMAND), debug=False, interrupted=lambda: "", out=tmp_path, kept="")
    said = capsys.readouterr().err.splitlines()[-1]
    assert code == 2
    assert said.startswith("error: too few answers of one kind (one: 0 right, 5 wrong)")
    assert f"were cut at {NEW} tokens" in said
    assert len(read(tmp_path / "answers.parquet", ANSWERS)) == 5
    assert not (tmp_path / "run.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": "reference", "generated": None}, "measured with --text gold: right and wrong need the model's own answers"),
        ({"generated": {"max_new_tokens": 9, "n_truncated": 0}}, "wrote up to 9 tokens, the others up to 24"),
        ({"chat": False}, "was measured with the chat template True, two .* with False"),
        ({"problems": {"source": "gsm8k", "split": "test", "n": 7, "sha256": "ab" * 32}}, r"read 7 problems of gsm8k \(abababababab…\)"),
    ],
)
def test_runs_of_other_settings_are_refused(runs: tuple[Path, Path], tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    changed(runs[1], **changes)
    with pytest.raises(InputError, match=message):
        contrast(options(tmp_path / "out", None, *runs), COMMAND)


def test_other_problems_than_the_runs_are_refused(runs: tuple[Path, Path], place: Path, tmp_path: Path) -> None:
    for asked in ({"problems": place / "blank.jsonl"}, {"problems": place / "planted.jsonl", "limit": 20}, {"problems": None, "limit": 5}):
        with pytest.raises(InputError, match=rf"one \(.*\) read {N} problems of .*planted.jsonl"):
            contrast(options(tmp_path / "out", asked.pop("problems"), *runs, **asked), COMMAND)
    for folder in runs:
        changed(folder, problems={**run_json(folder)["problems"], "source": "/nowhere/planted.jsonl"})
    with pytest.raises(InputError, match="name them with --problems"):
        contrast(options(tmp_path / "out", None, *runs), COMMAND)
    assert contrast(options(tmp_path / "out", place / "planted.jsonl", *runs), COMMAND) == 0


def test_names_graders_and_folders_are_checked_before_anything_is_measured(place: Path, done: Path, tmp_path: Path) -> None:
    problems = place / "planted.jsonl"
    with pytest.raises(InputError, match="two models are called 'one'"):
        contrast(options(tmp_path, problems, place / "one", place / "one"), COMMAND)
    with pytest.raises(InputError, match="--grader 'mine' is not known; known: first_final"):
        contrast(options(tmp_path, problems, place / "one", grader="mine"), COMMAND)
    with pytest.raises(InputError, match="no model"):
        contrast(options(tmp_path, problems), COMMAND)
    with pytest.raises(InputError, match="another kind"):
        contrast(options(done / "heads" / "one", problems, place / "one"), COMMAND)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds 'mine\.txt', which no contrast wrote"):
        contrast(options(tmp_path, problems, place / "one"), COMMAND)
    with pytest.raises(InputError, match="is a file"):
        contrast(options(tmp_path / "mine.txt", problems, place / "one"), COMMAND)
    with pytest.raises(InputError):
        contrast(options(tmp_path / "out", tmp_path / "absent.jsonl", place / "one"), COMMAND)


def test_damaged_tables_and_references_without_a_number(runs: tuple[Path, Path], place: Path, tmp_path: Path) -> None:
    inputs = read(runs[0] / "inputs.parquet", INPUTS)
    write(inputs[inputs["example"] != 3].reset_index(drop=True), INPUTS, runs[0] / "inputs.parquet")
    with pytest.raises(InputError, match=f"one has tables of {N - 1} examples, and there are {N} problems"):
        contrast(options(tmp_path / "out", None, *runs), COMMAND)
    (runs[1] / "inputs.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"inputs\.parquet.*measure two again"):
        contrast(options(tmp_path / "out", None, runs[1]), COMMAND)
    no_number = write_problems(tmp_path / "words.jsonl", ["#### none"] * N)
    with pytest.raises(InputError, match="ends in no number"):
        contrast(options(tmp_path / "out", no_number, place / "one", limit=2), COMMAND)


def test_tables_are_whole_or_not_there(done: Path) -> None:
    assert not [path for path in done.iterdir() if "draft" in path.name]
    assert pq.read_schema(done / "contrast.parquet").names == CONTRAST.arrow.names
    with pytest.raises(InputError):
        read(done / "answers.parquet", CONTRAST)
    text = (done / "run.json").read_text(encoding="utf-8")
    assert "NaN" not in text
    assert "Infinity" not in text
    assert np.isfinite(json.loads(text)["lengths"][0]["difference"])
