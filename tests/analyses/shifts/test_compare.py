"""The command from end to end: copies, planted changes, a study, different architectures, the published layout, and bad input."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

from analyses.heads import batches
from analyses.shifts.__main__ import main
from interp.tables.schema import read
from interp.tables.shifts import SHIFT_TABLES

DATA = os.environ.get("PRIMED_HEADS_DATA")
MEASURES = ("--measures", "entropy_nats", "numeric_mass", "previous_mass")


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def shifts(problems: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """`(*arguments)` runs the command in this process, on the short problems and without figures unless said otherwise."""

    def run(*arguments: Any, problems: Path | None = problems, figures: bool = False) -> Ran:
        given = [str(argument) for argument in arguments]
        given += ["--problems", str(problems)] if problems is not None else []
        given += ["--device", "cpu"] + ([] if figures else ["--no-figures"])
        capfd.readouterr()
        code = main(given)
        said = capfd.readouterr()
        return Ran(code, said.out, said.err)

    return run


@pytest.fixture
def three_layers(tmp_path: Path, save_checkpoint: Callable[..., Path]) -> Path:
    return save_checkpoint(tmp_path / "models" / "base", num_hidden_layers=3)


def changed(folder: Path, name: str, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a checkpoint with other weights."""
    copy = Path(shutil.copytree(folder, folder.parent / name))
    weights = load_file(copy / "model.safetensors")
    change(weights)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def table(folder: Path, name: str) -> pd.DataFrame:
    return read(folder / f"{name}.parquet", SHIFT_TABLES[name])


def test_two_copies_of_one_model_do_not_differ(three_layers: Path, shifts: Callable[..., Ran], tmp_path: Path) -> None:
    copy = changed(three_layers, "copy", lambda weights: None)
    out = tmp_path / "out"
    ran = shifts(three_layers, copy, "--out", out)
    assert ran.code == 0, ran.err
    found = table(out, "shifts")
    assert (found[["difference", "effect"]].fillna(0) == 0).all(axis=None)
    assert (found["q"].dropna() == 1).all()
    assert "0 of 12" in ran.out
    divergences = table(out, "divergences")
    assert divergences.loc[divergences["measure"] == "js", "mean"].abs().max() < 1e-9
    assert set(json.loads((out / "run.json").read_text())) >= {"kind", "command", "baseline", "versions", "models", "warnings"}


def test_the_planted_head_is_found_first_and_nothing_before_it(three_layers: Path, shifts: Callable[..., Ran], tmp_path: Path) -> None:
    def scale(weights: dict[str, Any]) -> None:
        weights["model.layers.1.self_attn.q_proj.weight"][16:24] *= 1.5  # head 2 of 4, 8 rows each

    ran = shifts(three_layers, changed(three_layers, "planted", scale), "--out", tmp_path / "out", *MEASURES)
    assert ran.code == 0, ran.err
    found = table(tmp_path / "out", "shifts")
    clear = found[(found["q"] < 0.05) & (found["layer"] < 2)]
    assert set(zip(clear["layer"], clear["head"], strict=True)) == {(1, 2)}
    before = found[(found["layer"] < 1) | ((found["layer"] == 1) & (found["head"] != 2))]
    assert (before["difference"].fillna(0) == 0).all()
    entropy = found[(found["measure"] == "entropy_nats") & (found["region"] == "all")]
    first = entropy.iloc[int(entropy["difference"].abs().to_numpy().argmax())]
    assert (first["layer"], first["head"]) == (1, 2)
    maps = table(tmp_path / "out", "divergences")
    js = maps[(maps["measure"] == "js") & (maps["region"] == "all")].sort_values("mean", ascending=False)
    assert (js.iloc[0]["layer"], js.iloc[0]["head"]) == (1, 2)
    assert js.loc[(js["layer"] < 1) | ((js["layer"] == 1) & (js["head"] != 2)), "mean"].max() < 1e-9


def test_finished_head_runs_are_compared_as_they_are(
    heads: Callable[..., Any], shifts: Callable[..., Ran], adapter: Path, tmp_path: Path
) -> None:
    assert heads("--out", tmp_path / "base").code == 0
    assert heads("--model", adapter, "--out", tmp_path / "student", "--name", "student").code == 0
    ran = shifts(tmp_path / "base", tmp_path / "student", "--out", tmp_path / "out", problems=None)
    assert ran.code == 0, ran.err
    found = table(tmp_path / "out", "shifts")
    one, other = (pd.read_parquet(tmp_path / name / "heads.parquet") for name in ("base", "student"))
    np.testing.assert_allclose(found["base_mean"], one["value"])
    np.testing.assert_allclose(found["mean"], other["value"])
    lora = pd.read_csv(tmp_path / "out" / "lora.csv")
    assert set(lora["circuit"]) == {"qk", "ov"}
    assert (lora["model"] == "student").all()


def test_a_finished_comparison_is_replaced_only_with_force(three_layers: Path, shifts: Callable[..., Ran], tmp_path: Path) -> None:
    copy = changed(three_layers, "copy", lambda weights: None)
    out = tmp_path / "out"
    assert shifts(three_layers, copy, "--out", out, *MEASURES).code == 0
    before = {p.name: p.read_bytes() for p in out.glob("*.parquet")}
    ran = shifts(three_layers, copy, "--out", out, *MEASURES)
    assert ran.code == 2
    assert "--force replaces it" in ran.err
    ran = shifts(three_layers, copy, "--out", out, *MEASURES, "--force")
    assert ran.code == 0, ran.err
    assert "measuring" not in ran.err  # the head runs are those of the same models and problems
    assert {p.name: p.read_bytes() for p in out.glob("*.parquet")} == before
    assert shifts(three_layers, copy, "--out", out, *MEASURES, "--force", "--maps", "no").code == 0
    assert not (out / "divergences.parquet").exists()  # nothing of the replaced comparison is left
    (out / "run.json").unlink()  # as version 0.1 left it when it was killed while writing
    (out / ".ranks.draft").touch()
    assert shifts(three_layers, copy, "--out", out, *MEASURES).code == 0
    shutil.rmtree(copy)
    changed(three_layers, "copy", lambda weights: weights["model.layers.0.self_attn.k_proj.weight"].mul_(2))
    ran = shifts(three_layers, copy, "--out", out, *MEASURES, "--force")
    assert "measuring the heads of copy" in ran.err
    assert (table(out, "shifts")["q"] < 0.05).any()


def test_an_interrupted_comparison_keeps_its_head_runs(
    three_layers: Path, shifts: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, out = changed(three_layers, "copy", lambda weights: None), tmp_path / "out"
    record_batch, calls = batches.record_batch, []

    def second_fails(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return record_batch(*given)

    with monkeypatch.context() as patch:
        patch.setattr(batches, "record_batch", second_fails)
        ran = shifts(three_layers, copy, "--out", out, *MEASURES)
    assert ran.code == 130
    assert f"finished head runs are kept in {out}.partial/heads: the same command continues" in ran.err
    assert not out.exists()
    assert (tmp_path / "out.partial" / "heads" / "base" / "run.json").is_file()
    (tmp_path / "out.partial" / "ranks.parquet").touch()  # a table of a call that was killed while writing
    ran = shifts(three_layers, copy, "--out", out, *MEASURES, "--maps", "no")
    assert ran.code == 0, ran.err
    assert "measuring the heads of base" not in ran.err
    assert "measuring the heads of copy" in ran.err
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("out")) == ["out"]
    run = json.loads((out / "run.json").read_text())
    assert [model["folder"] for model in run["models"]] == [str(out / "heads" / name) for name in ("base", "copy")]
    head_run = json.loads((out / "heads" / "base" / "run.json").read_text())
    assert head_run["config"]["out"] == str(out / "heads" / "base")
    assert table(out, "ranks")["model"].nunique() == 2


def test_a_failed_comparison_leaves_nothing(three_layers: Path, shifts: Callable[..., Ran], tmp_path: Path) -> None:
    ran = shifts(three_layers, "--out", tmp_path / "a" / "out")
    assert ran.code == 2
    assert not (tmp_path / "a").exists()


def test_the_library_function_returns_the_tables(
    heads: Callable[..., Any], adapter: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from analyses.shifts.compare import compare_models
    from analyses.shifts.options import ShiftsConfig

    assert heads("--out", tmp_path / "base", *MEASURES).code == 0
    assert heads("--model", adapter, "--out", tmp_path / "student", *MEASURES).code == 0
    given = ShiftsConfig(runs=(str(tmp_path / "base"), str(tmp_path / "student")), out=tmp_path / "out", device="cpu", figures=False)
    capfd.readouterr()
    comparison = compare_models(given)
    assert capfd.readouterr().out == ""
    assert comparison.folder == tmp_path / "out"
    assert {"shifts", "ranks", "models", "lora"} <= set(comparison.tables)
    assert comparison.run["baseline"] == "tiny"
    written = table(tmp_path / "out", "shifts").drop(columns=["model", "baseline", "measure", "region"])
    pd.testing.assert_frame_equal(written, comparison.tables["shifts"][written.columns], check_dtype=False)


def test_accuracies_are_read_from_a_file(three_layers: Path, shifts: Callable[..., Ran], tmp_path: Path) -> None:
    models = [
        changed(three_layers, f"m{k}", lambda w, k=k: w["model.layers.0.self_attn.q_proj.weight"].mul_(1 + k / 5)) for k in range(1, 7)
    ]
    scores = tmp_path / "scores.csv"
    scores.write_text("model,accuracy\n" + "".join(f"{m.name},{k / 10}\n" for k, m in enumerate(models)))
    ran = shifts(three_layers, *models, "--accuracy", scores, "--out", tmp_path / "out", "--maps", "no", *MEASURES)
    assert ran.code == 0, ran.err
    found = table(tmp_path / "out", "accuracy")
    assert (found["n_students"] == 6).all()
    assert found["p"].min() == pytest.approx(2 / 720)  # only the observed order and its reverse are as extreme
    scores.write_text("model,accuracy\nother,0.5\n")
    ran = shifts(three_layers, *models, "--accuracy", scores, "--out", tmp_path / "o2")
    assert ran.code == 2
    assert "has the models other; none of base, m1" in ran.err
    for content, words in (
        ("m1,0.1\nm1,0.2", "has the model 'm1' twice"),
        ("m1,abc", "accuracy of m1 is 'abc'"),
        ("m1,50", "a fraction from 0 to 1"),
    ):
        scores.write_text(f"model,accuracy\n{content}\n")
        ran = shifts(three_layers, *models, "--accuracy", scores, "--out", tmp_path / "o2")
        assert ran.code == 2
        assert words in ran.err


def test_models_of_different_architectures_are_matched(
    three_layers: Path, save_checkpoint: Callable[..., Path], shifts: Callable[..., Ran], tmp_path: Path
) -> None:
    other = save_checkpoint(tmp_path / "models" / "small", num_hidden_layers=2, seed=4)
    ran = shifts(three_layers, other, "--out", tmp_path / "out")
    assert ran.code == 2
    assert "small has 2 layers of 4 heads, base 3 of 4" in ran.err
    ran = shifts(three_layers, other, "--out", tmp_path / "out", "--match", figures=True)
    assert ran.code == 0, ran.err
    assert (tmp_path / "out" / "figures" / "matches.png").is_file()
    assert "matched" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    found = pd.read_csv(tmp_path / "out" / "matches.csv")
    assert len(found) == 8
    assert not found.duplicated(["layer_other", "head_other"]).any()


# --- a study ---------------------------------------------------------------------------------------------------------

STUDY = """
conditions = ["untouched", "none", "told"]
seeds = [0, 1]
strategies = ["{tmp}/mine.toml"]
out = "{tmp}/study"
data.train = {{ problems = "{problems}", first = 0, limit = 4 }}
data.heldout = {{ problems = "{problems}", first = 4, limit = 1 }}
data.test = {{ problems = "{problems}", first = 5, limit = 2 }}
teacher = {{ model = "{model}", device = "cpu", max_new_tokens = 8 }}
student = {{ model = "{model}", device = "cpu", rank = 2 }}
train = {{ epochs = 6, batch_size = 2, learning_rate = 1e-2, logging_steps = 1, save_steps = 5 }}
evaluation = {{ max_new_tokens = 8, resamples = 50 }}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, problems: Path) -> Path:
    from distill.__main__ import main as distill

    tmp = tmp_path_factory.mktemp("study")
    (tmp / "mine.toml").write_text('[[strategy]]\nname = "told"\ntext = "Be clear."\n')
    (tmp / "s.toml").write_text(STUDY.format(tmp=tmp, problems=problems, model=checkpoint))
    assert distill(["run", str(tmp / "s.toml"), "--quiet"]) == 0
    return tmp / "study"


def test_a_study_is_compared_with_seeds_accuracy_and_circuits(study: Path, shifts: Callable[..., Ran], tmp_path: Path) -> None:
    ran = shifts("--study", study, "--out", tmp_path / "out", *MEASURES[:2], problems=None, figures=True)  # a figure per measure
    assert ran.code == 0, ran.err
    assert "seeds and examples crossed" in ran.out
    conditions = table(tmp_path / "out", "conditions")
    assert set(conditions["condition"]) == {"none", "told"}
    assert set(conditions["baseline"]) == {"untouched"}
    assert (conditions["n_seeds"] == 2).all()
    models = pd.read_csv(tmp_path / "out" / "models.csv")
    assert models["model"].tolist() == ["untouched", "none-seed0", "none-seed1", "told-seed0", "told-seed1"]
    assert models["accuracy"].notna().all()
    assert (models["n_problems"] == 2).all()
    assert (table(tmp_path / "out", "accuracy")["n_students"] == 4).all()
    assert "their correlation has no p value" in ran.out
    divergences = table(tmp_path / "out", "divergences")
    assert {"(all)", "told-seed1"} <= set(divergences["model"])
    assert len(json.loads((tmp_path / "out" / "run.json").read_text())["models"]) == 5
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert ">Adapters</h2>" in page
    read = json.loads((tmp_path / "out" / "heads" / "none-seed0" / "run.json").read_text())
    assert read["problems"]["source"] == read["config"]["problems"] == str(tmp_path / "out" / "problems.jsonl")
    assert Path(read["problems"]["source"]).is_file()
    ran = shifts("--study", study, "--baseline", "none", "--out", tmp_path / "prompted", *MEASURES, problems=None)
    assert ran.code == 0, ran.err
    assert "untouched: none has no student with that seed, so shifts and layers are relative to none-seed0" in ran.out
    told = table(tmp_path / "prompted", "shifts")
    assert set(told["model"]) == {"told-seed0", "told-seed1", "untouched"}
    assert set(told.loc[told["model"] == "told-seed1", "baseline"]) == {"none-seed1"}  # seed by seed


def test_recorded_trajectories_are_compared(study: Path, shifts: Callable[..., Ran], tmp_path: Path) -> None:
    students = [study / "students" / name for name in ("none-seed0", "none-seed1", "told-seed0")]
    ran = shifts("--trajectory", *students, "--out", tmp_path / "out", problems=None, figures=True)
    assert ran.code == 0, ran.err
    assert "0 to 12" in ran.out
    found = table(tmp_path / "out", "trajectory")
    assert set(found["model"]) == {s.name for s in students}
    assert set(found["step"]) == {0, 12}
    training = pd.read_csv(tmp_path / "out" / "training.csv")
    assert training.groupby("model")["step"].max().tolist() == [12, 12, 12]
    assert (tmp_path / "out" / "figures" / "trajectory_entropy_nats.png").is_file()


def test_checkpoints_on_disk_are_measured(
    study: Path, shifts: Callable[..., Ran], tmp_path: Path, checkpoint: Path, problems: Path
) -> None:
    last = study / "students" / "none-seed0"
    for step in (5, 12):
        shutil.copytree(last, tmp_path / "old" / f"checkpoint-{step}")
    ran = shifts(
        "--trajectory", tmp_path / "old", "--measures", "entropy_nats", "--out", tmp_path / "out", "--limit", "3", "--base", checkpoint
    )
    assert ran.code == 0, ran.err
    found = table(tmp_path / "out", "trajectory")
    assert sorted(set(found["step"])) == [0, 5, 12]
    assert set(found["n_examples"]) == {3}
    wide = found.pivot(index=["layer", "head", "region"], columns="step", values="mean")
    np.testing.assert_array_equal(wide[5], wide[12])
    assert (wide[0] != wide[5]).any()
    ran = shifts("--trajectory", tmp_path, "--out", tmp_path / "o2")
    assert ran.code == 2
    assert "neither a trajectory.parquet nor checkpoint-N folders" in ran.err


# --- the published layout -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(DATA is None, reason="PRIMED_HEADS_DATA does not say where the published maps are")
def test_the_published_curves_are_reproduced(shifts: Callable[..., Ran], tmp_path: Path) -> None:
    ran = shifts("--published", Path(DATA or "") / "published" / "attention", "--out", tmp_path / "out", problems=None)
    assert ran.code == 0, ran.err
    curves = pd.read_csv(tmp_path / "out" / "curves.csv")
    entropy = curves[(curves["model"] == "AI") & (curves["curve"] == "entropy")].set_index("layer")["value"]
    assert [round(float(entropy[layer]), 4) for layer in (0, 2, 12, 25, 30)] == [1.5435, 0.5268, 1.8647, 0.6068, 1.3261]
    assert "1.8647" in ran.out


def test_a_damaged_published_layout_is_refused(shifts: Callable[..., Ran], tmp_path: Path) -> None:
    for layer in range(2):
        for head in range(2):
            place = tmp_path / "maps" / "raw-one" / f"layer{layer}" / f"layer_{layer}_raw_attention"
            place.mkdir(parents=True, exist_ok=True)
            np.save(place / f"layer_{layer}_head_{head}.npy", np.tril(np.ones((3, 3), np.float32)))
    ran = shifts("--published", tmp_path / "maps", "--out", tmp_path / "out", problems=None)
    assert ran.code == 0, ran.err
    assert "one model: there is no variance" in ran.out
    last = tmp_path / "maps" / "raw-one" / "layer1" / "layer_1_raw_attention" / "layer_1_head_1.npy"
    last.write_bytes(b"\x93NUMPY torn")
    ran = shifts("--published", tmp_path / "maps", "--out", tmp_path / "o2", problems=None)
    assert ran.code == 2
    assert "layer_1_head_1.npy" in ran.err
    assert not (tmp_path / "o2").exists()


# --- bad input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "nothing to compare"),
        (("{base}",), "1 model to compare (base)"),
        (("{base}", "{base}"), "two models are called 'base'"),
        (("{base}", "{empty}"), "empty holds nothing"),
        (("{base}", "{tmp}/none"), "no such model"),
        (("{base}", "{copy}", "--baseline", "nobody"), "known: base, copy"),
        (("{base}", "{copy}", "--limit", "0"), "--limit is 0"),
        (("--study", "{tmp}"), "no study.json"),
        (("{base}", "--published", "{tmp}"), "are different comparisons"),
        (("--published", "{empty}"), "empty"),
        (("{base}", "--match"), "--match compares two models, but 1 are named"),
        (("{base}", "{copy}", "--out", "{file}"), "is a file"),
        (("{base}", "{copy}", "--out", "{base}"), "and is not a finished comparison"),
    ],
)
def test_bad_input_is_one_error_line_and_exit_code_2(
    arguments: tuple[str, ...], words: str, three_layers: Path, shifts: Callable[..., Ran], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    copy = changed(three_layers, "copy", lambda weights: None)
    places = {"base": three_layers, "copy": copy, "empty": tmp_path / "empty", "tmp": tmp_path, "file": tmp_path / "file"}
    given = [argument.format(**places) for argument in arguments]
    ran = shifts(*given, *(() if "--out" in given else ("--out", tmp_path / "out")), problems=None)
    assert ran.code == 2
    assert words in ran.err
    assert "Traceback" not in ran.err


def test_runs_that_do_not_correspond_are_refused(
    heads: Callable[..., Any], shifts: Callable[..., Ran], tmp_path: Path, problems: Path
) -> None:
    assert heads("--out", tmp_path / "one", "--name", "one").code == 0
    assert heads("--out", tmp_path / "two", "--name", "two", "--no-chat").code == 0
    lines = problems.read_text().splitlines()
    (tmp_path / "others.jsonl").write_text("\n".join(lines[::-1]) + "\n")
    assert heads("--out", tmp_path / "three", "--name", "three", "--problems", tmp_path / "others.jsonl").code == 0

    def compare(*names: str) -> str:
        ran = shifts(*(tmp_path / name for name in names), "--out", tmp_path / "out", problems=None)
        assert ran.code == 2, ran
        assert "Traceback" not in ran.err
        return ran.err

    assert "one was measured with the chat template True, two with False" in compare("one", "two")
    assert "did not read the same tokens: example 0" in compare("one", "three")
    old = Path(shutil.copytree(tmp_path / "one", tmp_path / "old"))
    run = json.loads((old / "run.json").read_text())
    (old / "run.json").write_text(json.dumps({key: value for key, value in run.items() if key != "chat"}))
    assert "has no chat: it is of another version" in compare("one", "old")
    (old / "run.json").write_text(json.dumps({**run, "model": {**run["model"], "name": "old"}}))
    for key in ("model", "config", "measures"):
        good = (old / "run.json").read_text()
        (old / "run.json").write_text(json.dumps({**run, key: None}))
        assert "it is of another version" in compare("one", "old")
        (old / "run.json").write_text(good)
    frame = pd.read_parquet(old / "examples.parquet")
    frame.drop(columns="n_queries").to_parquet(old / "examples.parquet")
    assert "missing columns ['n_queries']" in compare("one", "old")
    frame.assign(value=np.inf).to_parquet(old / "examples.parquet")
    assert "measured but not finite" in compare("one", "old")
    frame.assign(value=np.nan).to_parquet(old / "examples.parquet")
    assert "measured but not finite" in compare("one", "old")
    (old / "examples.parquet").write_bytes(b"PAR1")
    assert "not a readable Parquet file" in compare("one", "old")
