"""The command from end to end: its files, its results folder, and bad input on one line."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from analyses.grades import run as grades
from analyses.grades import text
from analyses.grades.__main__ import main
from distill.problems.grading import GRADERS
from interp.tables.errors import InputError
from tests.analyses.grades.conftest import DATA, HEADER, Ran, needs_data, read_tables, row, write_csv, write_jsonl, write_verdicts


def test_grades_parquet_has_a_row_per_response_and_grader(tmp_path: Path, run: Callable[..., Ran]) -> None:
    path = write_jsonl(tmp_path / "mine.jsonl", [row(0, "$7.00"), {**row(1, 7), "response": ""}, row(2, "8")])
    assert run(path).code == 0
    table = pq.read_table(tmp_path / "out" / "grades.parquet")
    assert table.schema.names == ["model", "problem", "grader", "extracted", "correct"]
    assert [str(kind) for kind in table.schema.types] == ["string", "int64", "string", "string", "bool"]
    frame = table.to_pandas()
    assert set(frame["model"]) == {"mine"}
    own = frame[frame["grader"] == "first_final"]
    assert own["extracted"].tolist()[0] == "$7.00"
    assert pd.isna(own["extracted"].tolist()[1])
    assert own["correct"].tolist() == [True, False, False]
    assert not frame[frame["problem"] == 1]["correct"].any()
    assert not frame.duplicated(["model", "problem", "grader"]).any()


def test_run_json_records_inputs_and_settings(tmp_path: Path, run: Callable[..., Ran]) -> None:
    path = write_verdicts(tmp_path / "x.jsonl", "10", "01")
    assert run(path, "--graders", "stated,strict").code == 0
    record = read_tables(tmp_path / "out")[3]
    assert record["kind"] == "grades"
    assert record["command"].startswith(f"python -m analyses.grades {path} --graders stated,strict --out ")
    assert {"python", "primed-heads", "math-verify", "scipy", "statsmodels"} <= set(record["versions"])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert record["inputs"] == [{"path": str(path), "kind": "jsonl", "sha256": digest, "models": ["m0", "m1"], "n": 4}]
    assert record["settings"]["graders"] == ["stated", "strict"]


def test_level_resamples_and_seed_reach_the_tables(tmp_path: Path, run: Callable[..., Ran]) -> None:
    path = write_verdicts(tmp_path / "both.jsonl", "1111111100101", "1000000011001")
    assert run(path, "--graders", "stated", "--level", "0.8", "--resamples", "200", "--seed", "3").code == 0
    _, accuracy, pairs, record = read_tables(tmp_path / "out")
    theirs = [proportion_confint(right, 13, alpha=0.2, method="wilson") for right in accuracy["right"]]
    assert accuracy[["low", "high"]].to_numpy() == pytest.approx(np.array(theirs))
    one, other = (np.array([int(c) for c in word]) for word in ("1111111100101", "1000000011001"))
    boot = stats.bootstrap(
        (other - one,), np.mean, n_resamples=200, confidence_level=0.8, method="percentile", rng=np.random.default_rng(3)
    ).confidence_interval
    assert pairs[["difference_low", "difference_high"]].to_numpy()[0] == pytest.approx([boot.low, boot.high])
    assert record["settings"] == {"graders": ["stated"], "baseline": "m0", "level": 0.8, "seed": 3, "resamples": 200}


def test_results_are_replaced_and_other_folders_are_left_alone(tmp_path: Path, run: Callable[..., Ran]) -> None:
    path, out = write_verdicts(tmp_path / "x.jsonl", "10"), tmp_path / "out"
    out.mkdir()
    assert run(path, "--graders", "stated").code == 0
    (tmp_path / "older").hardlink_to(out / "grades.parquet")  # a reader that has the file open
    before = (tmp_path / "older").read_bytes()
    assert run(path, "--graders", "strict").code == 0
    assert (tmp_path / "older").read_bytes() == before
    assert read_tables(out)[1]["grader"].tolist() == ["strict"]
    assert sorted(file.name for file in out.iterdir()) == sorted([*grades.TABLES, "run.json"])
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("text")
    (other / "run.json").write_text('{"kind": "shifts"}')
    done = run(path, "--graders", "stated", "--out", other)
    assert done.code == 2
    assert done.err.startswith(f"error: --out {other} has other content than grades")
    assert (other / "run.json").read_text() == '{"kind": "shifts"}'
    assert run(path, "--graders", "stated", "--out", other, "--force").code == 0
    assert (other / "thesis.txt").read_text() == "text"
    assert read_tables(other)[3]["kind"] == "grades"
    assert run(path, "--graders", "strict", "--out", other).code == 0
    assert (other / "thesis.txt").read_text() == "text"
    assert read_tables(other)[1]["grader"].tolist() == ["strict"]
    assert "is a file; name a folder" in run(path, "--out", other / "thesis.txt").err


def test_a_full_disk_leaves_the_older_results_complete(tmp_path: Path, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = write_verdicts(tmp_path / "x.jsonl", "10"), tmp_path / "out"
    assert run(path, "--graders", "stated").code == 0
    before = {file.name: file.read_bytes() for file in out.iterdir()}

    def full(frame: pd.DataFrame, *_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "accuracy.csv")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    done = run(path, "--graders", "strict")
    line = "error: No space left on device (accuracy.csv); nothing was written; run the same command again"
    assert (done.code, done.err.splitlines()[-1]) == (2, line)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert not out.with_name("out.partial").exists()


def test_an_interruption_leaves_nothing(tmp_path: Path, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(grades, "grade_all", stop)
    done = run(write_verdicts(tmp_path / "x.jsonl", "10"))
    assert (done.code, done.err) == (130, "\ninterrupted; nothing was written; run the same command again\n")
    assert list(tmp_path.glob("out*")) == []


def test_an_interruption_after_the_tables_says_where_they_are(
    tmp_path: Path, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(text, "describe_grades", stop)
    done = run(write_verdicts(tmp_path / "x.jsonl", "10"))
    assert (done.code, done.err.splitlines()[-1]) == (130, f"interrupted; the tables are in {tmp_path / 'out'}")


def test_published_code_is_for_the_published_layout_only(tmp_path: Path, run: Callable[..., Ran]) -> None:
    mine = write_verdicts(tmp_path / "mine.jsonl", "10")
    theirs = write_csv(tmp_path / "theirs.csv", [("What is problem 0?", "7", "\\boxed{7}", 1, 2, "True")])
    assert run(mine, theirs).code == 0
    graded = read_tables(tmp_path / "out")[0]
    assert set(graded[graded["grader"] == "published_code"]["model"]) == {"theirs"}
    done = run(mine, "--graders", "published_code")
    assert done.code == 2
    assert "is for CSV files in the published layout" in done.err


def test_published_layout_with_logged_verdicts(tmp_path: Path, run: Callable[..., Ran]) -> None:
    """In the second response, "the answer is" takes the 1 left over from the first, as the paper's code does."""
    rows = [
        ("q1", "#### 3", "a 1 b 2\nc 3", 350, True, True),
        ("q2", "#### 7", "a 4 b 5\nthe answer is 7", 20, False, False),
        ("q3", "#### 7", "seven,", 20, False, True),
        ("q4", "#### 7", "\\boxed{8}", 350, True, False),
    ]
    write_csv(tmp_path / "in" / "ai.csv", rows)
    write_csv(tmp_path / "in" / "true.csv", [("q1", "#### 3", "3.0")], ("question", "answer", "extracted_answer"))
    done = run(tmp_path / "in", "--graders", "published", "published_code")
    assert done.code == 0
    assert "true.csv is skipped" in done.err
    graded, accuracy, _, record = read_tables(tmp_path / "out")
    assert [n["models"] for n in record["inputs"]] == [["ai"]]
    code = graded[graded["grader"] == "published_code"]
    assert [None if pd.isna(e) else e for e in code["extracted"]] == ["3", "1", None, "8"]
    assert accuracy[["grader", "right", "agrees", "differs"]].fillna(-1).to_numpy().tolist() == [
        ["published", 2, 2, 2],
        ["published_code", 1, 3, 1],
        ["logged", 2, -1, -1],
    ]
    assert accuracy["found"].tolist()[:2] == [0.75, 0.75]
    assert accuracy["truncated"].tolist() == [0.5] * 3
    assert (
        "ai: published_code reads a number in 3 of 4 logged responses, and gives the logged verdict on 3 of them; the other 1 were "
        "graded by hand, 1 of them as right; `published` differs from the log on 2: 1 graded by hand, and 1 on which the code used a "
        "number of an earlier response" in done.out
    )


def test_logged_verdicts_are_paired_if_both_models_have_them(tmp_path: Path, run: Callable[..., Ran]) -> None:
    for name, logged in (("a", ["True", "False", "", "1"]), ("b", ["False", "0", "True", "True"])):
        write_csv(tmp_path / "in" / f"{name}.csv", [(f"q{i}", "7", "8", 1, "", v) for i, v in enumerate(logged)])
    assert run(tmp_path / "in", "--graders", "stated").code == 0
    _, accuracy, pairs, _ = read_tables(tmp_path / "out")
    logged = accuracy[accuracy["grader"] == "logged"]
    assert logged[["model", "n", "right"]].to_numpy().tolist() == [["a", 3, 2], ["b", 4, 2]]
    assert accuracy[accuracy["grader"] == "stated"][["agrees", "differs"]].to_numpy().tolist() == [[1, 2], [2, 2]]
    line = pairs[pairs["grader"] == "logged"].iloc[0]
    assert (line["problems"], line["unpaired"], line["only_this"], line["only_baseline"]) == (3, 1, 0, 1)


def test_evaluations_of_distill_are_read(tmp_path: Path, checkpoint: Path, problems: Path, run: Callable[..., Ran]) -> None:
    """Evaluations are written by distill, and the verdicts equal those that it stored."""
    from distill.evaluation.answers import answer_problems
    from distill.evaluation.options import EvaluationConfig
    from distill.problems.sets import load_problems
    from distill.strategies import Strategy
    from interp.checkpoints.opening import open_checkpoint

    student = open_checkpoint(checkpoint, device="cpu")
    folder = tmp_path / "evaluations"
    for seed in (0, 1):
        name = f"none-seed{seed}"
        answer_problems(
            student.model,
            student.tokenizer,
            load_problems(str(problems)),
            EvaluationConfig(max_new_tokens=12, temperature=1.0, top_p=1.0, seed=seed),
            Strategy("student", "Give the number.", "after"),
            True,
            folder=folder / name,
            about={"condition": "none", "seed": seed, "name": name},
        )
    assert run(folder).code == 0
    graded, accuracy, pairs, record = read_tables(tmp_path / "out")
    assert [source["kind"] for source in record["inputs"]] == ["evaluation"] * 2
    assert accuracy["grader"].tolist() == 2 * list(GRADERS)
    assert len(pairs) == len(GRADERS)
    for name, own in graded.groupby("model"):
        stored = pq.read_table(folder / str(name) / "grades.parquet").to_pandas()
        pd.testing.assert_frame_equal(own[stored.columns.drop("sample")].reset_index(drop=True), stored.drop(columns="sample"))
        answers = pq.read_table(folder / str(name) / "responses.parquet").to_pandas()
        assert accuracy[accuracy["model"] == name]["truncated"].iloc[0] == pytest.approx((answers["finish"] == "length").mean())
    alone = run(folder / "none-seed1", "--out", tmp_path / "alone")
    assert alone.code == 0
    assert set(read_tables(tmp_path / "alone")[0]["model"]) == {"none-seed1"}


def jsonl(text: str) -> Callable[[Path], list[Any]]:
    def make(folder: Path) -> list[Any]:
        path = folder / "x.jsonl"
        path.write_text(text, "utf-8")
        return [path]

    return make


def table(*rows: Sequence[Any], header: Sequence[str] = HEADER) -> Callable[[Path], list[Any]]:
    return lambda folder: [write_csv(folder / "x.csv", rows, header)]


def raw(name: str, data: bytes) -> Callable[[Path], list[Any]]:
    def make(folder: Path) -> list[Any]:
        (folder / name).write_bytes(data)
        return [folder / name]

    return make


GOOD = '{"question": "q", "answer": "#### 7", "response": "7"}\n'


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: [], "error: nothing to grade: name folders"),
        (lambda folder: [folder / "none"], "none does not exist; name a folder"),
        (lambda folder: [folder], " holds no responses; it must have CSV files with the columns question, answer, model_answer"),
        (raw("x.txt", b"text"), "x.txt is neither .csv nor .jsonl"),
        (jsonl(""), "x.jsonl is empty; each line must be"),
        (jsonl(GOOD + GOOD[:30] + "\n"), "x.jsonl, line 2: not JSON (Unterminated string"),
        (jsonl(GOOD + GOOD[:30]), "x.jsonl, line 2: not JSON"),
        (jsonl(GOOD + "\n" + GOOD), "x.jsonl, line 2: not JSON"),
        (jsonl("[1]\n"), "x.jsonl, line 1: a JSON list, not an object"),
        (jsonl('{"question": "q", "answer": "7"}'), "line 1: no field 'response' (fields seen: 'question', 'answer')"),
        (jsonl('{"question": "q", "answer": 7, "response": "7"}'), "line 1: field 'answer' is of type int; it must be a string"),
        (jsonl('{"question": " ", "answer": "7", "response": "7"}'), "line 1: field 'question' is empty"),
        (jsonl('{"question": "q", "answer": "7", "response": null}'), "line 1: field 'response' is of type NoneType"),
        (jsonl('{"question": "q", "answer": "7", "response": "\\ud800"}'), "line 1: field 'response' holds half of a surrogate pair"),
        (jsonl('{"question": "q", "answer": "7", "response": "7", "cut": "no"}'), "line 1: field 'cut' is 'no'; allowed: true, false"),
        (
            jsonl('{"question": "q", "answer": "7", "response": "7", "truncated": 1}'),
            "line 1: field 'truncated' is 1; allowed: true, false",
        ),
        (jsonl('{"question": "q", "answer": "7", "response": "7", "finish": 1}'), "line 1: field 'finish' is 1; allowed: a string"),
        (jsonl('{"question": "q", "answer": "7", "response": "7", "model": ""}'), "line 1: field 'model' is empty"),
        (jsonl(GOOD + GOOD.replace("#### 7", "seven")), "x.jsonl, line 2: the reference 'seven' does not end in a number"),
        (jsonl(GOOD.replace("}", ', "model": "a"}') + GOOD.replace("#### 7", "#### 8")), "line 2: the reference is 8, but 7 for the same"),
        (raw("x.jsonl", GOOD.encode() + b"\xff\n"), "x.jsonl, line 2: not UTF-8 (byte 0xff)"),
        (table(("q", "7"), header=("question", "answer")), "x.csv lacks the columns model_answer; it has question, answer"),
        (table(), "x.csv has a header and no rows"),
        (raw("x.csv", b""), "x.csv is empty; it must have the columns question, answer, model_answer"),
        (raw("x.csv", b"question,answer,model_answer\na,7,7\nb,7\n"), "x.csv, line 3: the row has 2 fields, but the file has 3 columns"),
        (raw("x.csv", b'question,answer,model_answer\na,7,"7\n8'), "x.csv, line 2: cannot be read as CSV"),
        (raw("x.csv", b"question,answer,model_answer\na,7,\xff\n"), "x.csv, line "),
        (table(("q", "a\nb", "7", 1, 2, "True")), "x.csv, line 2: the reference 'a\\nb' does not end in a number"),
        (table(("q\nq", "7", "7", 1, 2, ""), ("r", "7", "7", 1, 2, "perhaps")), "x.csv, line 4: column 'correct' is 'perhaps'"),
        (table(("q", "7", "7", "many", "350", "True")), "x.csv, line 2: model_output_tokens is 'many' and model_max_tokens is '350'"),
        (table((" ", "7", "7", 1, 2, "")), "x.csv, line 2: field 'question' is empty"),
        (
            lambda folder: [*jsonl(GOOD)(folder), "--graders", "stated,best"],
            f"unknown grader 'best'; known: {', '.join(GRADERS)}, published_code",
        ),
        (lambda folder: [*jsonl(GOOD)(folder), "--baseline", "gpt"], "--baseline 'gpt' has no responses; known: x"),
        (lambda folder: [*jsonl(GOOD)(folder), *jsonl(GOOD)(folder)], "is named twice; name each path once"),
        (
            lambda folder: [*jsonl(GOOD)(folder), write_csv(folder / "x.csv", [("q", "7", "7", 1, 2, "")])],
            "model 'x' is in ",
        ),
        (lambda folder: [*jsonl(GOOD)(folder), "--level", "95"], "--level is 95.0; it must be between 0 and 1"),
        (lambda folder: [*jsonl(GOOD)(folder), "--resamples", "0"], "--resamples is 0; at least 1 is needed"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, run: Callable[..., Ran], make: Callable[[Path], list[Any]], message: str
) -> None:
    (tmp_path / "in").mkdir()
    done = run(*make(tmp_path / "in"))
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert message in done.err
    assert done.err.count("\n") == 1
    assert done.out == ""
    assert list(tmp_path.glob("out*")) == []


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        main([str(tmp_path / "none"), "--debug"])


def test_from_a_shell_without_torch(tmp_path: Path) -> None:
    """From a shell, where the module is called __main__, errors are one line too. torch, which takes seconds to load, is not imported."""
    path = write_verdicts(tmp_path / "x.jsonl", "1100", "0110")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    program = (
        "import sys; from analyses.grades.__main__ import main; code = main(sys.argv[1:]); print(*sys.modules, sep='\\n'); sys.exit(code)"
    )
    call = [sys.executable, "-c", program, str(path), "--out", str(tmp_path / "out")]
    done = subprocess.run(call, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = set(done.stdout.split("\n"))
    assert {"pandas", "distill.problems.grading", "scipy.stats"} <= loaded
    assert not loaded & {"torch", "transformers", "peft", "accelerate"}
    bad = subprocess.run(
        [sys.executable, "-m", "analyses.grades", "none.jsonl"], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == "error: none.jsonl does not exist; name a folder of CSV files, a JSONL file, or an evaluation of distill\n"


BY_HAND = {"ai-KD": (125, 30), "base-KD": (138, 29)}
"""Responses in which the paper's code reads no number, and how many of those its authors graded as right."""


@pytest.fixture
def published(tmp_path: Path, run: Callable[..., Ran]) -> tuple[Ran, Path]:
    done = run(Path(DATA or "") / "published" / "responses", "--graders", "published", "published_code")
    return done, tmp_path / "out"


@needs_data
def test_published_responses(published: tuple[Ran, Path]) -> None:
    """The log has 635 and 404 right of 1,319. The paper's code gives every logged verdict except on responses that it cannot read.

    It grades those as wrong, so it misses exactly what was graded by hand as right. The rules in its README give another verdict on 39
    responses of each model: some of those, and those in which the code reads a number of an earlier response.
    """
    done, out = published
    assert done.code == 0
    assert "extracted_true_answers.csv is skipped" in done.err
    graded, accuracy, pairs, record = read_tables(out)
    lines: dict[Any, dict[Any, Any]] = {(line["model"], line["grader"]): line for line in accuracy.to_dict("records")}
    assert record["settings"]["baseline"] == "ai-KD"
    assert [(source["n"], source["kind"]) for source in record["inputs"]] == [(1319, "csv")] * 2
    logged = {name: pd.read_csv(Path(DATA or "") / "published" / "responses" / f"{name}.csv") for name in BY_HAND}
    for name, right in (("ai-KD", 635), ("base-KD", 404)):
        unread, by_hand = BY_HAND[name]
        assert (lines[name, "logged"]["n"], lines[name, "logged"]["right"]) == (1319, right)
        code, rules = lines[name, "published_code"], lines[name, "published"]
        assert (code["right"], code["agrees"], code["differs"]) == (right - by_hand, 1319 - by_hand, by_hand)
        own = graded[(graded["model"] == name) & (graded["grader"] == "published_code")]
        assert own["problem"].tolist() == list(range(1319))
        assert own["extracted"].isna().sum() == unread
        read = own["extracted"].notna().to_numpy()
        assert (own["correct"].to_numpy() == logged[name]["correct"].to_numpy())[read].all()
        assert not own["correct"].to_numpy()[~read].any()
        assert (rules["agrees"], rules["differs"]) == (1280, 39)
        assert rules["truncated"] == logged[name]["model_max_tokens"].mean()
        assert f"the other {unread} were graded by hand, {by_hand} of them as right" in done.out
    line: dict[Any, Any] = pairs[pairs["grader"] == "logged"].to_dict("records")[0]
    here, there = (logged[name]["correct"].to_numpy(bool) for name in ("base-KD", "ai-KD"))
    assert (line["problems"], line["unpaired"]) == (1319, 0)
    assert (line["only_this"], line["only_baseline"]) == ((here & ~there).sum(), (there & ~here).sum())
    assert line["difference"] == pytest.approx((404 - 635) / 1319)
    assert line["p_mcnemar"] == pytest.approx(
        stats.binomtest(int(line["only_this"]), int(line["only_this"] + line["only_baseline"])).pvalue
    )
