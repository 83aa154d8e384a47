"""The command from end to end: values equal those of a head run, results are replaced safely, and bad input is one line."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interp.tables.heads import EXAMPLE_VALUES, INPUTS
from interp.tables.schema import read
from tests.analyses.examples.conftest import SHORT, Ran, interrupt, run_json, table


@pytest.mark.parametrize("text", ["reference", "generated"])
def test_values_equal_those_of_a_head_run(inspect: Callable[..., Ran], heads: Callable[..., Any], text: str) -> None:
    ran = inspect("--problem", 2, "--text", text, *SHORT)
    assert ran.code == 0, ran.err
    assert heads("--text", text, *SHORT, "--out", "run").code == 0
    wanted = read(Path("run/examples.parquet"), EXAMPLE_VALUES)
    wanted = wanted[wanted["example"] == 2].sort_values(["layer", "head", "measure", "region"])
    found = table("standing").sort_values(["layer", "head", "measure", "region"])
    assert found["n_queries"].tolist() == wanted["n_queries"].tolist()
    off = np.abs(found["value"].to_numpy() - wanted["value"].to_numpy())
    loose = (found["measure"] == "numeric_z").to_numpy()
    assert np.nanmax(off[~loose]) < 1e-5
    assert np.nanmax(off[loose]) < 1e-3  # a ratio to a small standard deviation
    inputs = read(Path("run/inputs.parquet"), INPUTS)
    inputs = inputs[inputs["example"] == 2]
    tokens = table("tokens")
    for column in ("token_id", "token", "region", "role", "is_query"):
        assert tokens[column].astype(str).tolist() == inputs[column].astype(str).tolist(), column


def test_several_models_read_the_same_text(inspect: Callable[..., Ran], checkpoint: Path, adapter: Path) -> None:
    ran = inspect("--model", checkpoint, adapter, "--text", "reference", "--problem", 3)
    assert ran.code == 0, ran.err
    run, tokens = run_json(), table("tokens")
    names = [model["name"] for model in run["models"]]
    assert names == [checkpoint.name, adapter.name]
    assert run["shared_tokens"] == (tokens["model"] == names[0]).sum()
    assert all(model["grade"] is None for model in run["models"])
    values = table("standing").pivot_table(index=["layer", "head", "measure", "region"], columns="model", values="value", observed=True)
    assert (values[names[0]] - values[names[1]]).abs().max() > 1e-3
    assert "reads the reference solution" in ran.words


def test_answers_of_two_models_share_the_prompt_at_least(inspect: Callable[..., Ran], checkpoint: Path, adapter: Path) -> None:
    assert inspect("--model", checkpoint, adapter, *SHORT, "--others", 0).code == 0
    run, tokens = run_json(), table("tokens")
    assert run["shared_tokens"] >= (tokens[tokens["model"] == checkpoint.name]["region"] != "response").sum() - 1
    for model in run["models"]:
        mine = tokens[tokens["model"] == model["name"]]
        assert "".join(mine.loc[(mine["region"] == "response") & (mine["role"] != "special"), "token"]) == model["response"]
        assert model["compared_with"] is None
    assert any("nothing to compare with" in warning for warning in run["warnings"])


def test_a_typed_question_is_answered_and_escaped_in_the_page(inspect: Callable[..., Ran]) -> None:
    question = 'Has </script><script>alert(1)</script> 3 & "4" 🧮 שלום?'
    ran = inspect("--question", question, *SHORT, "--others", 0)
    assert ran.code == 0, ran.err
    assert question in ran.out.replace("\n  ", " ")
    assert "no reference to grade it by" in ran.words
    page = Path("out/example.html").read_text("utf-8")
    assert "alert(1)</script>" not in page
    assert run_json()["problem"]["answer"] is None


def test_a_typed_answer_is_the_reference_of_the_grade(inspect: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    from distill.problems.grading import GRADERS, Grader

    # the answer of the tiny model holds no number
    monkeypatch.setitem(GRADERS, "first_final", Grader(lambda text, truncated: "24", "a constant"))
    for answer, verdict in (("24", True), ("two dozen, so #### 24", True), ("25", False)):
        ran = inspect("--question", "How much is 12 + 12?", "--answer", answer, *SHORT, "--others", 0)
        assert ran.code == 0, ran.err
        assert run_json()["models"][0]["grade"]["correct"] is verdict
        assert f"the reference is {answer[-2:]}" in ran.words


def test_another_inspection_replaces_the_first(inspect: Callable[..., Ran]) -> None:
    assert inspect("--text", "reference", "--others", 0).code == 0
    assert inspect("--text", "reference", "--others", 0, "--problem", 5).code == 0
    assert run_json()["problem"]["index"] == 5


def test_nothing_of_an_earlier_problem_is_left(inspect: Callable[..., Ran]) -> None:
    assert inspect("--text", "reference", "--others", 0, "--heads", "1.1", "--figures").code == 0
    assert inspect("--text", "reference", "--others", 0, "--heads", "0.2", "--problem", 1).code == 0
    assert not Path("out/figures").exists()


def test_figures_and_page_are_drawn(inspect: Callable[..., Ran]) -> None:
    ran = inspect("--text", "reference", "--others", 0, "--heads", "1.1", "--figures")
    assert ran.code == 0, ran.err
    assert {path.suffix for path in Path("out/figures").iterdir()} == {".png", ".pdf"}
    assert Path("out/figures/map_1_1.png").is_file()
    assert "example.html" in ran.out


def test_every_named_head_is_listed_and_drawn(inspect: Callable[..., Ran]) -> None:
    ran = inspect("--text", "reference", "--others", 0, "--heads", "1,0.3", "--figures")
    assert ran.code == 0, ran.err
    for head in ("1.0", "1.1", "1.2", "1.3", "0.3"):
        assert re.search(rf"^\s+{re.escape(head)}\s", ran.out, re.MULTILINE), head
        assert Path(f"out/figures/map_{head.replace('.', '_')}.png").is_file()


def test_a_base_is_used_for_adapters_only(inspect: Callable[..., Ran], checkpoint: Path, adapter: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(adapter, tmp_path / "moved"))
    config = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "elsewhere"}))
    assert inspect("--model", checkpoint, moved, "--base", checkpoint, "--text", "reference", "--others", 0).code == 0
    ran = inspect("--model", checkpoint, "--base", checkpoint, "--text", "reference", "--others", 0)
    assert ran.code == 2
    assert "is not an adapter" in ran.err


def test_a_full_disk_is_reported_and_leaves_no_partial_page(inspect: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.write_text

    def full(self: Path, content: str, **options: Any) -> int:
        if "example.html" not in self.name:
            return real(self, content, **options)
        real(self, content[:100], **options)
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    ran = inspect("--text", "reference", "--others", 0)
    assert ran.code == 2
    assert "No space left on device" in ran.err.splitlines()[-1]
    assert ran.err.splitlines()[-1].endswith("the tables are in out; python -m figures out draws the rest")
    assert [path.name for path in Path("out").iterdir() if "example" in path.name] == []


def test_a_full_disk_before_the_tables_is_reported_and_leaves_nothing(inspect: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:100])
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    ran = inspect("--text", "reference", "--others", 0)
    assert ran.code == 2
    assert "No space left on device" in ran.err.splitlines()[-1]
    assert list(Path.cwd().glob("out*")) == []


def test_an_interruption_while_drawing_says_where_the_tables_are(inspect: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    import figures.__main__
    import figures.example.draw

    with monkeypatch.context() as patch:
        patch.setattr(figures.example.draw, "draw_figures", interrupt)
        ran = inspect("--text", "reference", "--others", 0, "--figures")
    assert (ran.code, ran.err.splitlines()[-1]) == (130, "interrupted; the tables are in out; python -m figures out draws the rest")
    assert not Path("out/example.html").exists()
    monkeypatch.setattr("sys.argv", ["figures", "out"])
    assert figures.__main__.main() == 0
    assert Path("out/example.html").is_file()


def test_an_interruption_before_the_tables_says_what_is_kept(inspect: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    assert inspect("--text", "reference", "--others", 0).code == 0
    monkeypatch.setattr("analyses.examples.inspection.write_example_tables", interrupt)
    ran = inspect("--text", "reference", "--others", 0)  # the tables in out are those of the first inspection
    assert (ran.code, ran.err.splitlines()[-1]) == (130, "interrupted; nothing was finished, and nothing is kept")
    assert not Path("out.partial").exists()
    ran = inspect("--text", "reference", "--others", 3)
    kept = f"finished head runs are kept in {Path('out.partial/heads')}: the same command continues"
    assert (ran.code, ran.err.splitlines()[-1]) == (130, f"interrupted; {kept}")


def test_a_refused_command_leaves_nothing(inspect: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    assert inspect("--max-new-tokens", 500, "--out", "new/far/out").code == 2
    assert not Path("new").exists()
    Path("old/out").mkdir(parents=True)
    Path("file").touch()
    monkeypatch.delattr(AutoModelForCausalLM, "from_pretrained")  # no model is loaded before the errors below
    for out in ("new/far/out", "old/out", "old/new"):
        assert inspect("--heads", "99.0", "--out", out).code == 2
    assert [path.name for path in Path("old").iterdir()] == ["out"]
    assert not Path("new").exists()
    ran = inspect("--out", f"new/{'x' * 300}")
    assert (ran.code, "File name too long" in ran.err) == (2, True)
    assert not Path("new").exists()
    ran = inspect("--out", "file/out")
    assert (ran.code, "Not a directory (file/out.partial)" in ran.err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--problem", "7"], ["--problem is 7", "7 problems; allowed: 0 to 6"]),
        (["--problem", "-1"], ["--problem is -1", "at least 0"]),
        (["--question", "  "], ["--question is empty"]),
        (["--question", "How?", "--problem", "1"], ["--problem and --question"]),
        (["--question", "How?", "--text", "reference"], ["--answer"]),
        (["--question", "How?", "--answer", "many"], ["--answer: the reference", "does not end in a number"]),
        (["--answer", "3"], ["--answer needs --question"]),
        (["--question", "\udcff?"], ["not valid Unicode"]),
        (["--heads", "2.0"], ["no head 2.0", "layers 0 to 1 with heads 0 to 3"]),
        (["--heads", "0.4"], ["no head 0.4", "heads 0 to 3"]),
        (["--heads", "first"], ["--heads 'first' is not a head", "12.3", "layers 0 to 1"]),
        (["--heads", "1.-1"], ["--heads '1.-1' is not a head"]),
        (["--watch", "9"], ["--watch", "no head 9"]),
        (["--watch", "0.0", "--heads", "1.1"], ["1.1", "--watch"]),
        (["--by", "entropy"], ["--by entropy is not a measure", "entropy_nats"]),
        (["--grader", "mine"], ["unknown grader 'mine'", "first_final"]),
        (["--model", "nowhere/at/all"], ["no such model"]),
        (["--problems", "nowhere.jsonl"], ["nowhere.jsonl"]),
        (["--limit", "5"], ["--limit", "--contrast"]),
        (["--force"], ["--force", "--contrast"]),
        (["--contrast", "--text", "reference"], ["--contrast", "own answers"]),
        (["--contrast", "--problem", "2"], ["--contrast", "--problem"]),
        (["--others", "-1"], ["--others is -1"]),
        (["--others", "2"], ["--others is 2", "at least 3"]),
        (["--heads", ","], ["--heads names no head"]),
        (["--contrast", "--others", "4"], ["--contrast", "--others"]),
        (["--max-new-tokens", "500"], ["the model has 512 positions", "--max-new-tokens"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(inspect: Callable[..., Ran], arguments: list[str], parts: list[str]) -> None:
    ran = inspect(*arguments, *(SHORT if not {"--text", "--max-new-tokens"} & {*arguments} else ()))
    assert ran.code == 2
    last = ran.err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    for part in parts:
        assert part in last
    assert list(Path.cwd().glob("out*")) == []


def test_a_folder_with_other_content_is_left_alone(inspect: Callable[..., Ran], heads: Callable[..., Any]) -> None:
    assert heads("--out", "run", "--limit", 2).code == 0
    before = Path("run/run.json").read_bytes()
    ran = inspect("--out", "run", "--text", "reference")
    assert ran.code == 2
    assert "holds results of another kind (a head run)" in ran.err
    assert Path("run/run.json").read_bytes() == before
    Path("notes").mkdir()
    Path("notes/mine.txt").write_text("mine")
    ran = inspect("--out", "notes", "--text", "reference")
    assert (ran.code, "holds 'mine.txt'" in ran.err) == (2, True)
    ran = inspect("--out", "notes/mine.txt", "--text", "reference")
    assert (ran.code, "is a file" in ran.err) == (2, True)
    assert Path("notes/mine.txt").read_text() == "mine"


def test_two_models_with_the_same_name_are_refused(inspect: Callable[..., Ran], checkpoint: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(checkpoint, tmp_path / "copies" / checkpoint.name)
    ran = inspect("--model", checkpoint, copy)
    assert ran.code == 2
    assert f"two models are called {checkpoint.name!r}" in ran.err


def test_an_encoder_is_refused(inspect: Callable[..., Ran], checkpoint: Path, tmp_path: Path) -> None:
    encoder = Path(shutil.copytree(checkpoint, tmp_path / "encoder"))
    config = json.loads((encoder / "config.json").read_text())
    (encoder / "config.json").write_text(json.dumps({**config, "model_type": "bert", "architectures": ["BertModel"]}))
    ran = inspect("--model", encoder)
    assert ran.code == 2
    assert "encoder-only" in ran.err
