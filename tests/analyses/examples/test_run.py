"""The command from end to end: its numbers are those of analyses.heads, what it prints is in its tables, and bad input is told."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analyses.examples.__main__ import main
from interp.tables.example import EXAMPLE_TABLES, FAINT, STRONG
from interp.tables.heads import EXAMPLE_VALUES, INPUTS
from interp.tables.schema import read

SHORT = ("--max-new-tokens", "12")


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def read(self) -> str:
        """What was printed as one line: where it breaks depends on how long the names of folders are."""
        return " ".join(self.out.split())


@pytest.fixture
def look(
    checkpoint: Path, problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Ran]:
    """`(*arguments)` runs the command: the tiny model, the short problems, no figures and results in `out` unless said otherwise."""
    monkeypatch.chdir(tmp_path)  # runs/ of this folder is none of the test's

    def run(*arguments: Any) -> Ran:
        given = [str(argument) for argument in arguments]
        for option, default in (("--model", checkpoint), ("--problems", problems), ("--device", "cpu"), ("--out", "out")):
            if option not in given:
                given += [option, str(default)]
        if "--figures" not in given:
            given.append("--no-figures")
        capfd.readouterr()
        code = main(given)
        said = capfd.readouterr()
        return Ran(code, said.out, said.err)

    return run


def table(name: str, folder: Path | str = "out") -> pd.DataFrame:
    return read(Path(folder) / f"{name}.parquet", EXAMPLE_TABLES[name])


def about(folder: Path | str = "out") -> dict[str, Any]:
    return json.loads((Path(folder) / "run.json").read_text("utf-8"))


@pytest.mark.parametrize("text", ["reference", "generated"])
def test_values_are_those_of_a_head_run(look: Callable[..., Ran], heads: Callable[..., Any], text: str) -> None:
    ran = look("--problem", 2, "--text", text, *SHORT)
    assert ran.code == 0, ran.err
    assert heads("--text", text, *SHORT, "--out", "run").code == 0
    wanted = read(Path("run/examples.parquet"), EXAMPLE_VALUES)
    wanted = wanted[wanted["example"] == 2].sort_values(["layer", "head", "measure", "region"])
    found = table("standing").sort_values(["layer", "head", "measure", "region"])
    assert found["n_queries"].tolist() == wanted["n_queries"].tolist()
    off = np.abs(found["value"].to_numpy() - wanted["value"].to_numpy())
    loose = (found["measure"] == "numeric_z").to_numpy()
    assert np.nanmax(off[~loose]) < 1e-5
    assert np.nanmax(off[loose]) < 1e-3  # a ratio to a small spread
    inputs = read(Path("run/inputs.parquet"), INPUTS)
    inputs = inputs[inputs["example"] == 2]
    tokens = table("tokens")
    for column in ("token_id", "token", "region", "role", "is_query"):
        assert tokens[column].astype(str).tolist() == inputs[column].astype(str).tolist(), column


def test_maps_sum_to_one_and_steps_are_sums_of_maps(look: Callable[..., Ran]) -> None:
    assert look("--text", "reference", "--heads", "0.1", "1").code == 0
    edges, tokens, steps, run = table("edges"), table("tokens"), table("steps"), about()
    assert run["watched"] == [[0, 1], [1, 0], [1, 1], [1, 2], [1, 3]]
    assert run["chosen"][0] == [0, 1]
    watched = edges[(edges["layer"] == 0) & (edges["head"] == 1)]
    sums = watched.groupby("query")["probability"].sum()
    assert sums.index.tolist() == tokens["position"].tolist()
    assert ((sums > 1 - FAINT * len(tokens)) & (sums < 1 + 1e-5)).all()
    others = edges[(edges["layer"] == 0) & (edges["head"] == 2)]
    assert others["probability"].min() >= STRONG
    numbers = set(tokens.loc[tokens["role"] == "question_number", "position"])
    for number in range(tokens["step"].max() + 1):
        queries = tokens.loc[tokens["step"] == number, "position"]
        mine = watched[watched["query"].isin(queries) & watched["key"].isin(numbers)]
        row = steps[(steps["step"] == number) & (steps["layer"] == 0) & (steps["head"] == 1) & (steps["quantity"] == "question_numbers")]
        assert row["value"].item() == pytest.approx(mine["probability"].sum() / len(queries), abs=FAINT * len(numbers))
        assert row["n_queries"].item() == len(queries)


def test_several_models_read_the_same_text(look: Callable[..., Ran], checkpoint: Path, adapter: Path) -> None:
    ran = look("--model", checkpoint, adapter, "--text", "reference", "--problem", 3)
    assert ran.code == 0, ran.err
    run, tokens = about(), table("tokens")
    names = [model["name"] for model in run["models"]]
    assert names == [checkpoint.name, adapter.name]
    assert run["shared_tokens"] == (tokens["model"] == names[0]).sum()
    assert all(model["grade"] is None for model in run["models"])
    values = table("standing").pivot_table(index=["layer", "head", "measure", "region"], columns="model", values="value", observed=True)
    assert (values[names[0]] - values[names[1]]).abs().max() > 1e-3
    assert "reads the reference solution" in ran.read


def test_answers_of_two_models_share_the_prompt_at_least(look: Callable[..., Ran], checkpoint: Path, adapter: Path) -> None:
    assert look("--model", checkpoint, adapter, *SHORT, "--others", 0).code == 0
    run, tokens = about(), table("tokens")
    assert run["shared_tokens"] >= (tokens[tokens["model"] == checkpoint.name]["region"] != "response").sum() - 1
    for model in run["models"]:
        mine = tokens[tokens["model"] == model["name"]]
        assert "".join(mine.loc[(mine["region"] == "response") & (mine["role"] != "special"), "token"]) == model["response"]
        assert model["compared_with"] is None
    assert any("nothing to compare with" in warning for warning in run["warnings"])


def test_standing_out_is_a_test_against_the_other_problems(look: Callable[..., Ran], heads: Callable[..., Any]) -> None:
    assert heads("--text", "reference", "--out", "run", "--name", "measured").code == 0
    ran = look("--model", "run", "--problem", 4)  # text and problems are the run's
    assert ran.code == 0, ran.err
    assert about()["models"][0]["compared_with"] == {"source": "run", "text": "reference", "n_examples": 6}
    assert not Path("out/heads").exists()
    values = read(Path("run/examples.parquet"), EXAMPLE_VALUES)
    rows = values[(values["measure"] == "numeric_mass") & (values["region"] == "response")]
    found = table("standing")
    found = found[(found["measure"] == "numeric_mass") & (found["region"] == "response")]
    t: dict[Any, float] = {(row.layer, row.head): float(str(row.t)) for row in found.itertuples()}
    p = []
    for (layer, head), group in rows.groupby(["layer", "head"]):
        here, others = group.loc[group["example"] == 4, "value"], group.loc[group["example"] != 4, "value"]
        wanted: Any = stats.ttest_ind(here, others, equal_var=True)
        assert t[layer, head] == pytest.approx(wanted.statistic, rel=1e-3)
        p.append(wanted.pvalue)
    np.testing.assert_allclose(found["q"].to_numpy(), stats.false_discovery_control(p), rtol=1e-3)


def test_without_a_run_a_small_one_is_made_and_taken_again(look: Callable[..., Ran], checkpoint: Path) -> None:
    ran = look("--text", "reference", "--others", 4)
    assert ran.code == 0, ran.err
    part = Path("out/heads") / checkpoint.name / "examples.parquet"
    made = part.stat().st_mtime_ns
    assert about()["models"][0]["compared_with"]["n_examples"] == 4
    assert any("4 other problems only" in warning for warning in about()["warnings"])
    assert look("--text", "reference", "--others", 4).code == 0
    assert part.stat().st_mtime_ns == made


def test_wrong_sums_are_told_with_their_right_result(look: Callable[..., Ran], tmp_path: Path) -> None:
    lines = ["3*4 = <<3*4=13>>13 pens.", "Then 13+2 = 15.", "#### 15"]
    others = [{"question": f"What is {n} + 1?", "answer": f"{n}+1={n + 1}\n#### {n + 1}"} for n in range(5)]
    rows = [{"question": "Packs of 4, 3 of them, and 2 more?", "answer": "\n".join(lines)}, *others]
    (tmp_path / "wrong.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran = look("--problems", tmp_path / "wrong.jsonl", "--text", "reference")
    assert ran.code == 0, ran.err
    assert "3*4 is 12, not 13" in ran.read
    assert "1 of 2 calculations found in it are right" in ran.read
    steps = about()["models"][0]["steps"]
    assert [step["text"] for step in steps] == lines
    assert steps[0]["sums"] == [{"written": "3*4", "result": "13", "value": "12", "right": False}]


def test_a_question_typed_by_hand(look: Callable[..., Ran]) -> None:
    question = 'Has </script><script>alert(1)</script> 3 & "4" 🧮 שלום?'
    ran = look("--question", question, *SHORT, "--others", 0)
    assert ran.code == 0, ran.err
    assert question in ran.out.replace("\n  ", " ")
    assert "no reference to grade it by" in ran.read
    page = Path("out/example.html").read_text("utf-8")
    assert "alert(1)</script>" not in page
    assert about()["problem"]["answer"] is None


def test_a_typed_answer_grades(look: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    from distill.problems.grading import GRADERS, Grader

    monkeypatch.setitem(GRADERS, "first_final", Grader(lambda text, truncated: "24", "a constant"))  # what the tiny model writes holds no number
    for answer, verdict in (("24", True), ("two dozen, so #### 24", True), ("25", False)):
        ran = look("--question", "How much is 12 + 12?", "--answer", answer, *SHORT, "--others", 0)
        assert ran.code == 0, ran.err
        assert about()["models"][0]["grade"]["correct"] is verdict
        assert f"the reference is {answer[-2:]}" in ran.read


def test_a_typed_question_is_answered_whatever_the_named_run_read(look: Callable[..., Ran], heads: Callable[..., Any]) -> None:
    assert heads("--text", "reference", "--out", "run", "--limit", 4).code == 0
    ran = look("--model", "run", "--question", "How much is 3 times 4?", *SHORT)
    assert ran.code == 0, ran.err
    assert about()["text"] == "generated"
    assert "it read gold text" in ran.read


def test_only_watched_heads_are_kept(look: Callable[..., Ran]) -> None:
    assert look("--text", "reference", "--watch", "1.2,0", "--others", 0).code == 0
    edges = table("edges")
    kept = {(int(layer), int(head)) for layer, head in edges[["layer", "head"]].drop_duplicates().itertuples(index=False)}
    assert kept == {(1, 2), (0, 0), (0, 1), (0, 2), (0, 3)}
    assert {tuple(head) for head in about()["chosen"]} <= kept
    assert len(table("standing")["head"].unique()) == 4


def test_another_look_replaces_the_first(look: Callable[..., Ran]) -> None:
    assert look("--text", "reference", "--others", 0).code == 0
    assert look("--text", "reference", "--others", 0, "--problem", 5).code == 0
    assert about()["problem"]["index"] == 5


def test_figures_and_page_are_drawn(look: Callable[..., Ran]) -> None:
    ran = look("--text", "reference", "--others", 0, "--heads", "1.1", "--figures")
    assert ran.code == 0, ran.err
    assert {path.suffix for path in Path("out/figures").iterdir()} == {".png", ".pdf"}
    assert Path("out/figures/map_1_1.png").is_file()
    assert "example.html" in ran.out


def test_answers_that_are_cut_are_told(look: Callable[..., Ran]) -> None:
    look(*SHORT, "--others", 0)
    model = about()["models"][0]
    tokens = table("tokens")
    cut = (tokens["region"] == "response").sum() == 12 and tokens["role"].iloc[-1] != "special"
    assert model["finish"] == ("length" if cut else "stop")
    assert any("ran into the cut" in warning for warning in about()["warnings"]) == cut


def test_heads_are_arbitrary_where_there_is_no_number(look: Callable[..., Ran]) -> None:
    ran = look("--question", "How do you do?", "--heads", "auto", "--region", "question", *SHORT, "--others", 0)
    assert ran.code == 0, ran.err
    assert "choose by another measure (--by)" in ran.read


def test_the_foremost_heads_differ_clearly_first_or_are_said_not_to(look: Callable[..., Ran]) -> None:
    assert look("--text", "reference", "--others", 5).code == 0
    found = table("standing")
    found = found[(found["measure"] == "numeric_mass") & (found["region"] == "response")]
    rows = {(int(r["layer"]), int(r["head"])): r for r in found.to_dict("records")}
    foremost = [rows[tuple(head)] for head in about()["foremost"]]
    keys = [(bool(r["p"] <= 0.05), abs(r["value"] - r["mean"])) for r in foremost]
    assert keys == sorted(keys, reverse=True)
    assert about()["chosen"] == about()["foremost"][: len(about()["chosen"])]


def test_a_base_goes_to_the_adapters_alone(look: Callable[..., Ran], checkpoint: Path, adapter: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(adapter, tmp_path / "moved"))
    config = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "elsewhere"}))
    assert look("--model", checkpoint, moved, "--base", checkpoint, "--text", "reference", "--others", 0).code == 0
    ran = look("--model", checkpoint, "--base", checkpoint, "--text", "reference", "--others", 0)
    assert ran.code == 2
    assert "is not an adapter" in ran.err


def test_what_a_killed_call_left_is_begun_anew(look: Callable[..., Ran], checkpoint: Path) -> None:
    assert look("--text", "reference", "--others", 3).code == 0
    shutil.move(Path("out/heads") / checkpoint.name, Path("out/heads") / f"{checkpoint.name}.partial")
    ran = look("--text", "reference", "--others", 4)
    assert ran.code == 0, ran.err
    assert about()["models"][0]["compared_with"]["n_examples"] == 4


def test_nothing_of_another_problem_stays(look: Callable[..., Ran]) -> None:
    assert look("--text", "reference", "--others", 0, "--heads", "1.1", "--figures").code == 0
    assert look("--text", "reference", "--others", 0, "--heads", "0.2", "--problem", 1).code == 0
    assert not Path("out/figures").exists()


def test_every_named_head_is_listed_and_drawn(look: Callable[..., Ran]) -> None:
    ran = look("--text", "reference", "--others", 0, "--heads", "1,0.3", "--figures")
    assert ran.code == 0, ran.err
    for head in ("1.0", "1.1", "1.2", "1.3", "0.3"):
        assert re.search(rf"^\s+{re.escape(head)}\s", ran.out, re.MULTILINE), head
        assert Path(f"out/figures/map_{head.replace('.', '_')}.png").is_file()


def test_a_full_disk_is_told_and_leaves_no_torn_file(look: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:100])
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    ran = look("--text", "reference", "--others", 0)
    assert ran.code == 2
    assert "No space left on device" in ran.err.splitlines()[-1]
    assert [path.name for path in Path("out").iterdir() if "example" in path.name] == []


def test_a_run_counts_wherever_the_adapter_is_named_from(
    look: Callable[..., Ran], heads: Callable[..., Any], adapter: Path, tmp_path: Path
) -> None:
    shutil.copytree(adapter, tmp_path / "lora")
    assert heads("--model", tmp_path / "lora", "--out", "runs/lora").code == 0
    ran = look("--model", "lora", "--text", "reference")
    assert ran.code == 0, ran.err
    assert about()["models"][0]["compared_with"]["source"] == "runs/lora"


def test_a_run_of_another_type_or_seed_is_not_compared_with(look: Callable[..., Ran], heads: Callable[..., Any], checkpoint: Path) -> None:
    assert heads("--out", f"runs/{checkpoint.name}", "--seed", 3).code == 0
    ran = look("--text", "reference", "--dtype", "bfloat16", "--others", 0)
    assert ran.code == 0, ran.err
    assert "dtype float32, here bfloat16 and seed 3, here 0" in ran.read
    (Path("runs") / checkpoint.name / "run.json").write_text("{")
    ran = look("--text", "reference", "--others", 0)
    assert ran.code == 0, ran.err  # a run that nobody named stops nobody
    assert "run.json cannot be read" in ran.read


def test_text_does_not_steer_the_terminal(look: Callable[..., Ran]) -> None:
    ran = look("--question", "Is \x1b[31m3\u202e red?", *SHORT, "--others", 0)
    assert ran.code == 0, ran.err
    assert "\x1b" not in ran.out
    assert "\\u001b[31m3\\u202e red?" in ran.read


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--problem", "7"], ["--problem is 7", "7 problems: 0 to 6"]),
        (["--problem", "-1"], ["--problem is -1", "at least 0"]),
        (["--question", "  "], ["--question is empty"]),
        (["--question", "How?", "--problem", "1"], ["--problem and --question"]),
        (["--question", "How?", "--text", "reference"], ["--answer"]),
        (["--question", "How?", "--answer", "many"], ["--answer", "no number"]),
        (["--answer", "3"], ["--answer goes with --question"]),
        (["--question", "\udcff?"], ["not valid Unicode"]),
        (["--heads", "2.0"], ["no head 2.0", "layers 0 to 1 with heads 0 to 3"]),
        (["--heads", "0.4"], ["no head 0.4", "heads 0 to 3"]),
        (["--heads", "first"], ["--heads 'first'", "12.3", "layers 0 to 1"]),
        (["--heads", "1.-1"], ["--heads '1.-1'"]),
        (["--watch", "9"], ["--watch", "no head 9"]),
        (["--watch", "0.0", "--heads", "1.1"], ["1.1", "--watch"]),
        (["--by", "entropy"], ["--by entropy", "entropy_nats"]),
        (["--grader", "mine"], ["grader is 'mine'", "first_final"]),
        (["--model", "nowhere/at/all"], ["no such model"]),
        (["--problems", "nowhere.jsonl"], ["nowhere.jsonl"]),
        (["--limit", "5"], ["--limit", "--contrast"]),
        (["--force"], ["--force", "--contrast"]),
        (["--contrast", "--text", "reference"], ["--contrast", "own answers"]),
        (["--contrast", "--problem", "2"], ["--contrast", "--problem"]),
        (["--others", "-1"], ["--others is -1"]),
        (["--others", "2"], ["2 other problems", "at least 3"]),
        (["--heads", ","], ["no head is named"]),
        (["--contrast", "--others", "4"], ["--contrast", "--others"]),
        (["--max-new-tokens", "500"], ["the model has 512 positions", "--max-new-tokens"]),
    ],
)
def test_bad_input_is_told_in_a_line(look: Callable[..., Ran], arguments: list[str], told: list[str]) -> None:
    ran = look(*arguments, *(SHORT if not {"--text", "--max-new-tokens"} & {*arguments} else ()))
    assert ran.code == 2
    last = ran.err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    for part in told:
        assert part in last
    assert not Path("out/run.json").exists()


def test_a_folder_of_other_things_is_left_alone(look: Callable[..., Ran], heads: Callable[..., Any]) -> None:
    assert heads("--out", "run", "--limit", 2).code == 0
    before = Path("run/run.json").read_bytes()
    ran = look("--out", "run", "--text", "reference")
    assert ran.code == 2
    assert "no look at a problem wrote" in ran.err
    assert Path("run/run.json").read_bytes() == before
    Path("notes").mkdir()
    Path("notes/mine.txt").write_text("mine")
    assert look("--out", "notes", "--text", "reference").code == 2
    assert look("--out", "notes/mine.txt", "--text", "reference").code == 2


def test_models_of_other_forms_are_refused(
    look: Callable[..., Ran], checkpoint: Path, save_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    deeper = save_checkpoint(tmp_path / "deeper", num_hidden_layers=3)
    ran = look("--model", checkpoint, deeper, "--text", "reference", "--others", 0)
    assert ran.code == 2
    assert "2 layers of 4 heads" in ran.err
    assert "3 of 4" in ran.err


def test_two_models_of_one_name_are_refused(look: Callable[..., Ran], checkpoint: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(checkpoint, tmp_path / "copies" / checkpoint.name)
    ran = look("--model", checkpoint, copy)
    assert ran.code == 2
    assert f"two models are called {checkpoint.name!r}" in ran.err


def test_an_encoder_is_refused(look: Callable[..., Ran], checkpoint: Path, tmp_path: Path) -> None:
    encoder = Path(shutil.copytree(checkpoint, tmp_path / "encoder"))
    config = json.loads((encoder / "config.json").read_text())
    (encoder / "config.json").write_text(json.dumps({**config, "model_type": "bert", "architectures": ["BertModel"]}))
    ran = look("--model", encoder)
    assert ran.code == 2
    assert "encoder-only" in ran.err


def test_the_contrast_takes_the_options(look: Callable[..., Ran], checkpoint: Path) -> None:
    ran = look("--contrast", "--limit", 3, "--measures", "entropy_nats", *SHORT)
    assert ran.code == 2
    assert "0 right, 3 wrong" in ran.err  # a random model: the tests of analyses.contrast.run plant right answers
    assert len(pd.read_parquet("out/answers.parquet")) == 3
    assert json.loads((Path("out/heads") / checkpoint.name / "run.json").read_text())["config"]["max_new_tokens"] == 12


# --- in a notebook ----------------------------------------------------------------------------------------------------


def test_a_notebook_gets_the_same_page(look: Callable[..., Ran], checkpoint: Path, tmp_path: Path) -> None:
    from interp import open_checkpoint, show

    question = "Ann has 12 pens and buys 3 packs of 4. How many pens?"
    page = show(open_checkpoint(checkpoint, device="cpu"), question=question, answer="24", max_new_tokens=12, heads="1.1")
    assert look("--question", question, "--answer", "24", *SHORT, "--heads", "1.1", "--others", 0).code == 0
    theirs = Path("out/example.html").read_text("utf-8")
    command = about()["command"]
    assert page.html.count("\n") == theirs.count("\n")
    assert len(page.html) == pytest.approx(len(theirs), abs=len(command) + 400)  # the command and the versions aside
    framed = page._repr_html_()
    assert framed.startswith("<iframe")
    assert "<script" not in framed  # escaped inside the frame's attribute
    assert page.save(tmp_path / "page.html").read_text("utf-8") == page.html


# --- an end before the end --------------------------------------------------------------------------------------------


def test_an_interruption_while_drawing_says_where_the_tables_are(look: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    import figures.__main__
    import figures.example.draw

    with monkeypatch.context() as patch:
        patch.setattr(figures.example.draw, "draw_figures", stop)
        ran = look("--text", "reference", "--others", 0, "--figures")
    assert (ran.code, ran.err.splitlines()[-1]) == (130, "interrupted; the tables are in out; python -m figures out draws the rest")
    assert not Path("out/example.html").exists()
    monkeypatch.setattr("sys.argv", ["figures", "out"])
    assert figures.__main__.main() == 0
    assert Path("out/example.html").is_file()


def test_an_interruption_before_the_tables_says_what_is_kept(look: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    assert look("--text", "reference", "--others", 0).code == 0
    monkeypatch.setattr("analyses.examples.look.write_example", stop)
    ran = look("--text", "reference", "--others", 0)  # the tables that are there are of the first look
    assert (ran.code, ran.err.splitlines()[-1]) == (130, "interrupted; nothing was finished")
    ran = look("--text", "reference", "--others", 3)
    kept = f"head runs that were finished are kept in {Path('out/heads')}: the same command goes on"
    assert (ran.code, ran.err.splitlines()[-1]) == (130, f"interrupted; {kept}")


def stop(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_a_refused_command_leaves_nothing(look: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    assert look("--max-new-tokens", 500, "--out", "new/far/out").code == 2
    assert not Path("new").exists()
    Path("old/out").mkdir(parents=True)
    Path("file").touch()
    monkeypatch.delattr(AutoModelForCausalLM, "from_pretrained")  # what follows is said before a model is loaded
    for out in ("new/far/out", "old/out", "old/new"):
        assert look("--heads", "99.0", "--out", out).code == 2
    assert [path.name for path in Path("old").iterdir()] == ["out"]
    assert not Path("new").exists()
    ran = look("--out", f"new/{'x' * 300}")
    assert (ran.code, "File name too long" in ran.err) == (2, True)
    assert not Path("new").exists()
    ran = look("--out", "file/out")
    assert (ran.code, "Not a directory (file/out)" in ran.err) == (2, True)


def test_models_of_other_forms_are_refused_before_one_answers(
    look: Callable[..., Ran], checkpoint: Path, save_checkpoint: Callable[..., Path], adapter: Path, tmp_path: Path, monkeypatch
) -> None:
    from transformers import AutoModelForCausalLM

    fewer = save_checkpoint(tmp_path / "fewer", num_attention_heads=2, num_key_value_heads=2)
    monkeypatch.delattr(AutoModelForCausalLM, "from_pretrained")
    ran = look("--model", checkpoint, adapter, fewer, *SHORT)
    assert ran.code == 2
    assert f"{checkpoint.name} has 2 layers of 4 heads, fewer 2 of 2: side by side are models of one form" in ran.err
    assert not Path("out").exists()


@pytest.mark.parametrize("more", [[], ["--contrast"], ["--debug"]])
def test_an_empty_name_is_no_model(look: Callable[..., Ran], more: list[str]) -> None:
    ran = look("--model", "", *more)
    assert ran.code == 2
    assert ran.err.startswith("error: --model is empty; give a hub id, ")


# --- what it prints ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("others", [0, 4])
def test_text_is_as_wide_as_the_terminal(look: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, width: int, others: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    question = f"{'How many are 3 times 4? ' * 9}\x1b\x1b\x1b{'9' * 200}?"
    ran = look(
        "--question", question, "--answer", "3 x 4 = 12 and 12 + 1 = 14\n#### 14", "--text", "reference", "--others", others, "--heads", "1"
    )
    assert ran.code == 0, ran.err
    lines = ran.out[: ran.out.index("tables:")].splitlines()
    assert [line for line in lines if len(line) > width or line != line.rstrip()] == []
    assert "12 + 1 is 13, not 14" in ran.read
    at = next(number for number, line in enumerate(lines) if "  looks at" in line)
    rows = lines[at : lines.index("", at)]
    start = rows[0].index("looks at")
    assert len(rows) > 5  # the header and four heads: some are wrapped
    assert all(row[:start].endswith("  ") and row[start] != " " for row in rows)
    firsts = [row[:start].split() for row in rows if row[:start].strip()]
    assert firsts[0] == ["head", "here", *(["average", "t", "q"] if others else [])]
    assert sorted(first[0] for first in firsts[1:]) == ["1.0", "1.1", "1.2", "1.3"]
    assert {len(first) for first in firsts} == {len(firsts[0])}


def test_unexpected_tokens_are_shown_as_they_stand_and_had_a_likelier_one(look: Callable[..., Ran]) -> None:
    from analyses.examples.text import describe
    from figures.example.read import read_example

    assert look("--text", "reference", "--others", 0).code == 0
    example = read_example(Path("out"))
    response = example.tokens.loc[example.tokens["region"] == "response", "position"]
    positions = [at for at in example.next["position"].unique() if at in set(response)]
    half, first, backslash = positions[:3]

    def row(position: int, rank: int, token: str, probability: float, is_read: bool) -> dict[str, Any]:
        about = {"model": example.models[0], "position": position, "rank": rank, "token_id": rank}
        return {**about, "token": token, "probability": probability, "is_read": is_read}

    rows = [row(half, 1, "\\xe0", 0.25, False), row(half, 7, " \n", 0.0125, True)]
    rows += [row(first, 1, "41", 0.0625, True), row(first, 2, "43", 0.03125, False)]
    rows += [row(backslash, 1, "\\frac", 0.5, False), row(backslash, 3, "42", 0.0625, True)]
    said = " ".join(describe(dataclasses.replace(example, next=pd.DataFrame(rows))).split())
    assert "' \\n' had 1.2% (rank 7); likeliest: '\\xe0' 25%" in said
    assert "'42' had 6.2% (rank 3); likeliest: '\\frac' 50%" in said
    assert "'41'" not in said
    assert said.count("likeliest") == 2
