from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from analyses.grades import run as grades
from analyses.grades.__main__ import main
from analyses.grades.responses import by_model, facts_table, number_problems, read_sources
from analyses.grades.tables import accuracy_table, pairs_table
from distill.problems.grading import GRADERS
from interp.tables.errors import InputError

DATA = os.environ.get("PRIMED_HEADS_DATA")
ROOT = Path(__file__).parents[3]
HEADER = ("question", "answer", "model_answer", "model_output_tokens", "model_max_tokens", "correct")


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """`(*arguments)` runs the command in this process; results go to `tmp_path / "out"` unless said otherwise."""

    def call(*arguments: Any) -> Ran:
        given = [str(argument) for argument in arguments]
        if "--out" not in given:
            given += ["--out", str(tmp_path / "out")]
        capsys.readouterr()
        code = main(given)
        said = capsys.readouterr()
        return Ran(code, said.out, said.err)

    return call


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def write_csv(path: Path, rows: Sequence[Sequence[Any]], header: Sequence[str] = HEADER) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def row(problem: int, said: Any, **more: Any) -> dict[str, Any]:
    """A response that says a number to a problem whose answer is 7."""
    return {"question": f"What is problem {problem}?", "answer": "3 + 4 = <<3+4=7>>7\n#### 7", "response": f"So #### {said}\n", **more}


def verdicts(path: Path, *models: str) -> Path:
    """A file in which model m<i> answers problem j rightly where `models[i][j]` is 1."""
    rows = [row(j, 7 if right == "1" else 8, model=f"m{i}") for i, word in enumerate(models) for j, right in enumerate(word)]
    return write_jsonl(path, rows)


def tables(out: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    read = [pd.read_csv(out / f"{name}.csv") for name in ("accuracy", "pairs")]
    return pq.read_table(out / "grades.parquet").to_pandas(), read[0], read[1], json.loads((out / "run.json").read_text("utf-8"))


# --- tables ---------------------------------------------------------------------------------------------------------


def test_accuracy_by_hand(tmp_path: Path, run: Callable[..., Ran]) -> None:
    """m0 has 8 of 10, m1 1 of 10, of which both have one: 7 against 0 discordant, p = 2 / 2^7."""
    path = verdicts(tmp_path / "both.jsonl", "1111111100", "1000000000")
    done = run(path, "--graders", "stated", "flexible")
    assert done.code == 0
    graded, accuracy, pairs, _ = tables(tmp_path / "out")
    assert accuracy[["model", "grader", "n", "right", "accuracy", "found"]].to_numpy().tolist() == [
        ["m0", "stated", 10, 8, 0.8, 1.0],
        ["m0", "flexible", 10, 8, 0.8, 1.0],
        ["m1", "stated", 10, 1, 0.1, 1.0],
        ["m1", "flexible", 10, 1, 0.1, 1.0],
    ]
    for right, low, high in accuracy[["right", "low", "high"]].to_numpy():
        theirs = stats.binomtest(int(right), 10).proportion_ci(0.95, method="wilson")
        assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert pairs[["grader", "model", "baseline", "problems", "unpaired", "only_this", "only_baseline"]].to_numpy().tolist() == [
        ["stated", "m1", "m0", 10, 0, 0, 7],
        ["flexible", "m1", "m0", 10, 0, 0, 7],
    ]
    assert pairs["difference"].tolist() == pytest.approx([-0.7, -0.7])
    assert pairs["p_mcnemar"].tolist() == pytest.approx([2 / 2**7] * 2)
    assert pairs["p_holm"].tolist() == pairs["p_mcnemar"].tolist()
    assert len(graded) == 40


def test_level_resamples_and_seed_reach_the_tables(tmp_path: Path, run: Callable[..., Ran]) -> None:
    path = verdicts(tmp_path / "both.jsonl", "1111111100101", "1000000011001")
    assert run(path, "--graders", "stated", "--level", "0.8", "--resamples", "200", "--seed", "3").code == 0
    _, accuracy, pairs, record = tables(tmp_path / "out")
    theirs = [proportion_confint(right, 13, alpha=0.2, method="wilson") for right in accuracy["right"]]
    assert accuracy[["low", "high"]].to_numpy() == pytest.approx(np.array(theirs))
    one, other = (np.array([int(c) for c in word]) for word in ("1111111100101", "1000000011001"))
    boot = stats.bootstrap(
        (other - one,), np.mean, n_resamples=200, confidence_level=0.8, method="percentile", rng=np.random.default_rng(3)
    ).confidence_interval
    assert pairs[["difference_low", "difference_high"]].to_numpy()[0] == pytest.approx([boot.low, boot.high])
    assert record["settings"] == {"graders": ["stated"], "baseline": "m0", "level": 0.8, "seed": 3, "resamples": 200}


def test_holm_is_within_a_grader(tmp_path: Path, run: Callable[..., Ran]) -> None:
    """Against its definition: the smallest of three p times three, the next times two, never falling; other graders do not count."""
    words = ("0" * 12, "1" * 12, "1" * 6 + "0" * 6, "1" * 2 + "0" * 10)
    assert run(verdicts(tmp_path / "four.jsonl", *words), "--graders", "stated", "flexible", "--baseline", "m0").code == 0
    _, _, pairs, _ = tables(tmp_path / "out")
    for _, given in pairs.groupby("grader"):
        p = [stats.binomtest(n, n).pvalue for n in (12, 6, 2)]
        assert given["p_mcnemar"].tolist() == pytest.approx(p)
        assert given["p_holm"].tolist() == pytest.approx([3 * p[0], max(3 * p[0], 2 * p[1]), max(2 * p[1], p[2])])


def test_pairs_go_by_question_and_not_by_order(tmp_path: Path, run: Callable[..., Ran]) -> None:
    """One model's file is turned round, blanks stand around its questions, and each has a question that the other has not."""
    one = [row(j, 7 if j < 4 else 8) for j in range(6)]
    other = [{**row(j, 7 if j in (0, 5) else 8), "question": f"  What is problem {j}?\n"} for j in (9, 5, 4, 3, 2, 1, 0)]
    write_jsonl(tmp_path / "in" / "one.jsonl", one)
    write_jsonl(tmp_path / "in" / "two.jsonl", other)
    done = run(tmp_path / "in", "--graders", "stated", "--baseline", "one")
    assert done.code == 0
    graded, _, pairs, _ = tables(tmp_path / "out")
    line = pairs.iloc[0]
    assert (line["problems"], line["unpaired"], line["only_this"], line["only_baseline"]) == (6, 1, 1, 3)
    assert line["difference"] == pytest.approx(-2 / 6)
    assert graded["problem"].tolist() == [0, 1, 2, 3, 4, 5, 6, 5, 4, 3, 2, 1, 0]
    assert "1 of 7 questions were answered by one model only: they are in no pair" in done.out


def test_no_question_in_common_gives_no_test(tmp_path: Path, run: Callable[..., Ran]) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [row(0, 7, model="a"), row(1, 7, model="b")])
    assert run(path, "--graders", "stated").code == 0
    _, _, pairs, _ = tables(tmp_path / "out")
    assert pairs[["problems", "unpaired"]].to_numpy().tolist() == [[0, 2]]
    assert pairs[["difference", "difference_low", "p_mcnemar", "p_holm"]].isna().all(axis=None)


def test_repeated_questions_are_told_apart_by_occurrence(tmp_path: Path, run: Callable[..., Ran]) -> None:
    """a: right, wrong; b: wrong, right, right. The third of b has no partner."""
    rows = [row(0, said, model=model) for model, said in (("a", 7), ("b", 8), ("a", 8), ("b", 7), ("b", 7))]
    done = run(write_jsonl(tmp_path / "x.jsonl", rows), "--graders", "stated")
    assert done.code == 0
    graded, _, pairs, _ = tables(tmp_path / "out")
    assert graded[["model", "problem", "correct"]].to_numpy().tolist() == [
        ["a", 0, True],
        ["a", 1, False],
        ["b", 0, False],
        ["b", 1, True],
        ["b", 2, True],
    ]
    assert pairs[["problems", "unpaired", "only_this", "only_baseline"]].to_numpy().tolist() == [[2, 1, 1, 1]]
    assert "b: 2 responses are to a question that it answered before" in done.out


def test_one_model_is_graded_and_not_paired(tmp_path: Path, run: Callable[..., Ran]) -> None:
    done = run(verdicts(tmp_path / "x.jsonl", "110"))
    assert done.code == 0
    assert "m0 is the only model: no paired table" in done.out
    assert "Paired with" not in done.out
    _, accuracy, pairs, record = tables(tmp_path / "out")
    assert accuracy["grader"].tolist() == list(GRADERS)
    assert not len(pairs)
    assert record["settings"]["baseline"] == "m0"


# --- files written --------------------------------------------------------------------------------------------------


def test_grades_parquet(tmp_path: Path, run: Callable[..., Ran]) -> None:
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


def test_run_json(tmp_path: Path, run: Callable[..., Ran]) -> None:
    path = verdicts(tmp_path / "x.jsonl", "10", "01")
    assert run(path, "--graders", "stated,strict").code == 0
    record = tables(tmp_path / "out")[3]
    assert record["kind"] == "grades"
    assert record["command"].startswith(f"python -m analyses.grades {path} --graders stated,strict --out ")
    assert {"python", "primed-heads", "math-verify", "scipy", "statsmodels"} <= set(record["versions"])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert record["inputs"] == [{"path": str(path), "kind": "jsonl", "sha256": digest, "models": ["m0", "m1"], "n": 4}]
    assert record["settings"]["graders"] == ["stated", "strict"]


def test_what_is_printed_says_how_it_was_measured(tmp_path: Path, run: Callable[..., Ran]) -> None:
    done = run(verdicts(tmp_path / "x.jsonl", "1100", "0111"), "--graders", "stated", "--level", "0.9")
    for said in (
        "n: responses",
        "Wilson's 90 % score interval",
        "90 % percentile bootstrap interval over problems (10000 resamples, seed 0)",
        "McNemar's exact test, two-sided",
        "Holm's correction over the models within a grader",
        "characters: mean length",
        "ran into the limit",
    ):
        assert said in done.out
    assert [line.split()[:4] for line in done.out.splitlines() if line.strip().startswith(("m0", "m1"))] == [
        ["m0", "stated", "4", "2"],
        ["m1", "stated", "4", "3"],
        ["m0", "4", "10.0000"],
        ["m1", "4", "10.0000"],
    ]


def test_results_are_replaced_and_other_folders_are_left_alone(tmp_path: Path, run: Callable[..., Ran]) -> None:
    path, out = verdicts(tmp_path / "x.jsonl", "10"), tmp_path / "out"
    out.mkdir()
    assert run(path, "--graders", "stated").code == 0
    (tmp_path / "older").hardlink_to(out / "grades.parquet")  # as one who has the file open
    before = (tmp_path / "older").read_bytes()
    assert run(path, "--graders", "strict").code == 0
    assert (tmp_path / "older").read_bytes() == before
    assert tables(out)[1]["grader"].tolist() == ["strict"]
    assert sorted(file.name for file in out.iterdir()) == sorted(grades.FILES)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("text")
    (other / "run.json").write_text('{"kind": "shifts"}')
    done = run(path, "--graders", "stated", "--out", other)
    assert done.code == 2
    assert done.err.startswith(f"error: --out {other} holds other things than grades")
    assert (other / "run.json").read_text() == '{"kind": "shifts"}'
    assert run(path, "--graders", "stated", "--out", other, "--force").code == 0
    assert (other / "thesis.txt").read_text() == "text"
    assert tables(other)[3]["kind"] == "grades"
    assert "is a file; name a folder" in run(path, "--out", other / "thesis.txt").err


def test_a_failing_disk_leaves_the_older_result_whole(tmp_path: Path, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = verdicts(tmp_path / "x.jsonl", "10"), tmp_path / "out"
    assert run(path, "--graders", "stated").code == 0
    before = {file.name: file.read_bytes() for file in out.iterdir()}

    def full(frame: pd.DataFrame, *_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "accuracy.csv")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    done = run(path, "--graders", "strict")
    said = "error: No space left on device (accuracy.csv); nothing was written, the same command begins again"
    assert (done.code, done.err.splitlines()[-1]) == (2, said)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_interrupted(tmp_path: Path, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(grades, "grade_all", stop)
    done = run(verdicts(tmp_path / "x.jsonl", "10"))
    assert (done.code, done.err) == (130, "\ninterrupted; nothing was written, the same command begins again\n")
    assert not (tmp_path / "out").exists()


# --- kinds of input -------------------------------------------------------------------------------------------------


def test_published_layout_with_logged_verdicts(tmp_path: Path, run: Callable[..., Ran]) -> None:
    """The second response is read after the first: "the answer is" takes the 1 that the first left, as the paper's code does."""
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
    assert "true.csv is left out" in done.err
    graded, accuracy, _, record = tables(tmp_path / "out")
    assert [n["models"] for n in record["inputs"]] == [["ai"]]
    code = graded[graded["grader"] == "published_code"]
    assert [None if pd.isna(e) else e for e in code["extracted"]] == ["3", "1", None, "8"]
    assert accuracy[["grader", "right", "agrees", "differs"]].fillna(-1).to_numpy().tolist() == [
        ["published", 2, 2, 2],
        ["published_code", 1, 3, 1],
        ["logged", 2, -1, -1],
    ]
    assert accuracy["found"].tolist()[:2] == [0.75, 0.75]
    assert accuracy["cut"].tolist() == [0.5] * 3
    assert (
        "ai: published_code reads a number in 3 of 4 logged responses, and gives the logged verdict on 3 of them; the other 1 had to be "
        "graded by hand, 1 of them as right; `published` differs from the log on 2: 1 graded by hand, and 1 on which the code used a "
        "number of an earlier response" in done.out
    )


def test_logged_verdicts_are_paired_where_both_have_them(tmp_path: Path, run: Callable[..., Ran]) -> None:
    for name, logged in (("a", ["True", "False", "", "1"]), ("b", ["False", "0", "True", "True"])):
        write_csv(tmp_path / "in" / f"{name}.csv", [(f"q{i}", "7", "8", 1, "", v) for i, v in enumerate(logged)])
    assert run(tmp_path / "in", "--graders", "stated").code == 0
    _, accuracy, pairs, _ = tables(tmp_path / "out")
    logged = accuracy[accuracy["grader"] == "logged"]
    assert logged[["model", "n", "right"]].to_numpy().tolist() == [["a", 3, 2], ["b", 4, 2]]
    assert accuracy[accuracy["grader"] == "stated"][["agrees", "differs"]].to_numpy().tolist() == [[1, 2], [2, 2]]
    line = pairs[pairs["grader"] == "logged"].iloc[0]
    assert (line["problems"], line["unpaired"], line["only_this"], line["only_baseline"]) == (3, 1, 0, 1)


def test_published_code_is_for_the_published_layout_alone(tmp_path: Path, run: Callable[..., Ran]) -> None:
    mine = verdicts(tmp_path / "mine.jsonl", "10")
    theirs = write_csv(tmp_path / "theirs.csv", [("What is problem 0?", "7", "\\boxed{7}", 1, 2, "True")])
    assert run(mine, theirs).code == 0
    graded = tables(tmp_path / "out")[0]
    assert set(graded[graded["grader"] == "published_code"]["model"]) == {"theirs"}
    done = run(mine, "--graders", "published_code")
    assert done.code == 2
    assert "is for CSV files in the published layout" in done.err


@pytest.mark.parametrize(
    ("tokens", "limit", "cut"),
    [("350", "True", True), ("12", "False", False), ("350", "350", True), ("12.0", "350", False), ("", "350", None), ("12", "", None)],
)
def test_cut_in_csv(tmp_path: Path, tokens: str, limit: str, cut: bool | None) -> None:
    path = write_csv(tmp_path / "x.csv", [("q", "7", "", tokens, limit, "True")])
    assert read_sources([path])[0].responses[0].cut is cut


def test_cut_in_jsonl_reaches_the_graders(tmp_path: Path, run: Callable[..., Ran]) -> None:
    """The 7 at the end of a cut response may be the beginning of 75."""
    more: list[dict[str, Any]] = [{}, {"cut": True}, {"cut": False}, {"finish": "length"}, {"finish": "eos"}, {"cut": None, "finish": None}]
    rows = [{**row(j, 0), "response": "the answer is 7", **extra} for j, extra in enumerate(more)]
    path = write_jsonl(tmp_path / "x.jsonl", rows)
    assert [r.cut for r in read_sources([path])[0].responses] == [None, True, False, True, False, None]
    done = run(path, "--graders", "stated")
    graded, accuracy, _, _ = tables(tmp_path / "out")
    assert graded["correct"].tolist() == [True, False, True, False, True, True]
    assert accuracy["cut"].isna().all()
    assert "x: of 2 of 6 responses nobody noted whether they were cut" in done.out
    assert run(write_jsonl(tmp_path / "y.jsonl", rows[1:5]), "--graders", "stated").code == 0
    assert tables(tmp_path / "out")[1]["cut"].tolist() == [0.5]


def test_csv_is_read_as_pandas_reads_it(tmp_path: Path) -> None:
    """Commas, quotes, line breaks, words that stand for nothing, no response at all, and one of 200,000 characters."""
    texts = ['a,b "c"\n\n#### 7', "NA", "", "nan", "line\r\nbreak", "x" * 200_000, "\u2028½"]
    path = write_csv(tmp_path / "x.csv", [(f"q{i}", "7", text, 1, 2, "") for i, text in enumerate(texts)])
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    found = read_sources([path])[0].responses
    assert [r.text for r in found] == frame["model_answer"].tolist() == texts
    assert [r.question for r in found] == frame["question"].tolist()
    assert [r.place.rpartition(" ")[2] for r in found] == ["2", "5", "6", "7", "8", "10", "11"]


def test_evaluations_of_distill_are_read(tmp_path: Path, checkpoint: Path, problems: Path, run: Callable[..., Ran]) -> None:
    """Written by distill itself: the same verdicts come out that it stored."""
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
    graded, accuracy, pairs, record = tables(tmp_path / "out")
    assert [source["kind"] for source in record["inputs"]] == ["evaluation"] * 2
    assert accuracy["grader"].tolist() == 2 * list(GRADERS)
    assert len(pairs) == len(GRADERS)
    for name, own in graded.groupby("model"):
        stored = pq.read_table(folder / str(name) / "grades.parquet").to_pandas()
        pd.testing.assert_frame_equal(own[stored.columns.drop("sample")].reset_index(drop=True), stored.drop(columns="sample"))
        answers = pq.read_table(folder / str(name) / "responses.parquet").to_pandas()
        assert accuracy[accuracy["model"] == name]["cut"].iloc[0] == pytest.approx((answers["finish"] == "length").mean())
    alone = run(folder / "none-seed1", "--out", tmp_path / "alone")
    assert alone.code == 0
    assert set(tables(tmp_path / "alone")[0]["model"]) == {"none-seed1"}


def test_several_samples_a_problem_are_refused(tmp_path: Path, run: Callable[..., Ran]) -> None:
    rows = [
        {"problem": 0, "sample": s, "question": "q", "reference": "#### 7", "response": "7", "tokens": 1, "finish": "eos"} for s in (0, 1)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "responses.parquet")
    (tmp_path / "evaluation.json").write_text('{"settings": {"about": {"name": "x"}}}')
    done = run(tmp_path)
    assert done.code == 2
    assert "has several samples a problem" in done.err
    (tmp_path / "evaluation.json").write_text("{")
    assert "holds no whole evaluation" in run(tmp_path).err


# --- bad input ------------------------------------------------------------------------------------------------------


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
    ("make", "said"),
    [
        (lambda folder: [], "error: nothing to grade: name folders"),
        (lambda folder: [folder / "none"], "none does not exist; name a folder"),
        (lambda folder: [folder], " holds no responses; needed are CSV files with the columns question, answer, model_answer"),
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
        (jsonl('{"question": "q", "answer": "7", "response": "7", "finish": 1}'), "line 1: field 'finish' is 1; allowed: a text"),
        (jsonl('{"question": "q", "answer": "7", "response": "7", "model": ""}'), "line 1: field 'model' is empty"),
        (jsonl(GOOD + GOOD.replace("#### 7", "seven")), "x.jsonl, line 2: the reference 'seven' ends in no number"),
        (jsonl(GOOD.replace("}", ', "model": "a"}') + GOOD.replace("#### 7", "#### 8")), "line 2: the reference is 8, and 7 for the same"),
        (raw("x.jsonl", GOOD.encode() + b"\xff\n"), "x.jsonl, line 2: not UTF-8 (byte 0xff)"),
        (table(("q", "7"), header=("question", "answer")), "x.csv lacks the columns model_answer; it has question, answer"),
        (table(), "x.csv has a header and no rows"),
        (raw("x.csv", b""), "x.csv is empty; needed are the columns question, answer, model_answer"),
        (raw("x.csv", b"question,answer,model_answer\na,7,7\nb,7\n"), "x.csv, line 3: a row of 2 fields under 3 columns"),
        (raw("x.csv", b'question,answer,model_answer\na,7,"7\n8'), "x.csv, line 2: cannot be read as CSV"),
        (raw("x.csv", b"question,answer,model_answer\na,7,\xff\n"), "x.csv, line "),
        (table(("q", "a\nb", "7", 1, 2, "True")), "x.csv, line 2: the reference 'a\\nb' ends in no number"),
        (table(("q\nq", "7", "7", 1, 2, ""), ("r", "7", "7", 1, 2, "perhaps")), "x.csv, line 4: column 'correct' holds 'perhaps'"),
        (table(("q", "7", "7", "many", "350", "True")), "x.csv, line 2: model_output_tokens is 'many' and model_max_tokens '350'"),
        (table((" ", "7", "7", 1, 2, "")), "x.csv, line 2: field 'question' is empty"),
        (
            lambda folder: [*jsonl(GOOD)(folder), "--graders", "stated,best"],
            "unknown grader 'best'; known: first_final, strict, flexible, stated, published, math_verify, published_code",
        ),
        (lambda folder: [*jsonl(GOOD)(folder), "--baseline", "gpt"], "--baseline 'gpt' has no responses; there are those of x"),
        (lambda folder: [*jsonl(GOOD)(folder), *jsonl(GOOD)(folder)], "is named twice; name each path once"),
        (
            lambda folder: [*jsonl(GOOD)(folder), write_csv(folder / "x.csv", [("q", "7", "7", 1, 2, "")])],
            "model 'x' is in ",
        ),
        (lambda folder: [*jsonl(GOOD)(folder), "--level", "95"], "--level is 95.0; it must lie between 0 and 1"),
        (lambda folder: [*jsonl(GOOD)(folder), "--resamples", "0"], "--resamples 0; at least 0 and 1 are needed"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, run: Callable[..., Ran], make: Callable[[Path], list[Any]], said: str
) -> None:
    (tmp_path / "in").mkdir()
    done = run(*make(tmp_path / "in"))
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert said in done.err
    assert done.err.count("\n") == 1
    assert done.out == ""
    assert not (tmp_path / "out").exists()


def test_a_folder_of_tables_without_responses_names_them(tmp_path: Path, run: Callable[..., Ran]) -> None:
    write_csv(tmp_path / "in" / "true.csv", [("q", "7")], ("question", "answer"))
    done = run(tmp_path / "in")
    assert done.code == 2
    assert "in holds no responses; true.csv lack the column model_answer; needed are CSV files" in done.err


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        main([str(tmp_path / "none"), "--debug"])


def test_from_a_shell_without_torch(tmp_path: Path) -> None:
    """Errors are one line there too, where the module is called __main__; and nothing loads torch, which takes seconds."""
    path = verdicts(tmp_path / "x.jsonl", "1100", "0110")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = "import sys; from analyses.grades import main; code = main(sys.argv[1:]); print(*sys.modules, sep='\\n'); sys.exit(code)"
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


# --- the published responses ----------------------------------------------------------------------------------------

needs_data = pytest.mark.skipif(DATA is None, reason="PRIMED_HEADS_DATA does not say where the published responses are")
BY_HAND = {"ai-KD": (125, 30), "base-KD": (138, 29)}
"""Responses in which the paper's code reads no number, and how many of those its authors took as right."""


@pytest.fixture
def published(tmp_path: Path, run: Callable[..., Ran]) -> tuple[Ran, Path]:
    done = run(Path(DATA or "") / "published" / "responses", "--graders", "published", "published_code")
    return done, tmp_path / "out"


@needs_data
def test_published_responses(published: tuple[Ran, Path]) -> None:
    """The log says 635 and 404 of 1,319. The paper's code gives each logged verdict but those on responses that it cannot read.

    It takes those as wrong, so what it misses is just what was graded by hand as right. The rules that its README states give another
    verdict on 39 responses of each model: those of that kind, and those where the code reads a number of an earlier response.
    """
    done, out = published
    assert done.code == 0
    assert "extracted_true_answers.csv is left out" in done.err
    graded, accuracy, pairs, record = tables(out)
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
        assert rules["cut"] == logged[name]["model_max_tokens"].mean()
        assert f"the other {unread} had to be graded by hand, {by_hand} of them as right" in done.out
    line: dict[Any, Any] = pairs[pairs["grader"] == "logged"].to_dict("records")[0]
    here, there = (logged[name]["correct"].to_numpy(bool) for name in ("base-KD", "ai-KD"))
    assert (line["problems"], line["unpaired"]) == (1319, 0)
    assert (line["only_this"], line["only_baseline"]) == ((here & ~there).sum(), (there & ~here).sum())
    assert line["difference"] == pytest.approx((404 - 635) / 1319)
    assert line["p_mcnemar"] == pytest.approx(
        stats.binomtest(int(line["only_this"]), int(line["only_this"] + line["only_baseline"])).pvalue
    )


@needs_data
def test_published_files_are_read_as_pandas_reads_them() -> None:
    folder = Path(DATA or "") / "published" / "responses"
    for source in read_sources([folder]):
        frame = pd.read_csv(source.path, dtype=str, keep_default_na=False)
        assert [r.text for r in source.responses] == frame["model_answer"].tolist()
        assert [r.question for r in source.responses] == frame["question"].tolist()
        assert [r.cut for r in source.responses] == (frame["model_max_tokens"] == "True").tolist()


def test_tables_without_a_command(tmp_path: Path) -> None:
    """The functions alone, as a notebook uses them."""
    models = by_model(read_sources([verdicts(tmp_path / "x.jsonl", "110", "011")]))
    numbers = number_problems(models)
    graded = grades.grade_all(models, numbers, ["strict"], set())
    accuracy = accuracy_table(graded, facts_table(models, numbers))
    assert accuracy[["model", "right"]].to_numpy().tolist() == [["m0", 2], ["m1", 2]]
    assert pairs_table(graded, "m1")["model"].tolist() == ["m0"]
    assert not len(pairs_table(graded, "nobody"))


def test_interrupted_when_the_tables_are_there(tmp_path: Path, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(grades, "show", stop)
    done = run(verdicts(tmp_path / "x.jsonl", "10"))
    assert (done.code, done.err.splitlines()[-1]) == (130, f"interrupted; the tables are in {tmp_path / 'out'}")
