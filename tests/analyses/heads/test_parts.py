"""Parts of a head run are complete or absent, and its results folder resumes, replaces and keeps them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analyses.heads.parts import HEAD_RUN, Part, Parts
from interp.tables.errors import DamagedError, InputError, OptionError
from interp.tables.results import ResultsFolder


def make_part(*examples: int, role: str = "none") -> Part:
    rows = [
        {"example": e, "position": at, "token_id": 7 + at, "token": "t", "region": "question", "role": role, "is_query": True}
        for e in examples
        for at in range(3)
    ]
    shape = (len(examples), 2, 4, 1, 3)
    values = np.random.default_rng(list(examples)).random(shape)
    return Part(list(examples), values, np.ones(shape, np.int64), pd.DataFrame(rows), n_truncated=1, blocked=tuple(e % 2 for e in examples))


def begin(out: Path, **settings: Any) -> tuple[ResultsFolder, Parts]:
    results = ResultsFolder(out, HEAD_RUN)
    results.begin({"seed": 0, **settings})
    return results, Parts(results)


def finish(out: Path, content: str = "new", *, force: bool = False) -> None:
    results = ResultsFolder(out, HEAD_RUN, force=force)
    results.begin({"seed": 0})
    Parts(results).write(0, make_part(0))
    results.publish({"content": content})


def content_of(folder: Path) -> str:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))["content"]


# --- parts ------------------------------------------------------------------------------------------------------------


def test_a_part_is_read_as_it_was_written(tmp_path: Path) -> None:
    _, parts = begin(tmp_path / "run")
    part = make_part(3, 1)
    assert not parts.has(0)
    assert not parts.any()
    parts.write(0, part)
    assert parts.has(0)
    assert parts.any()
    found = parts.read(0)
    assert found.examples == [3, 1]
    assert found.n_truncated == 1
    assert found.blocked == (1, 1)
    np.testing.assert_array_equal(found.values, part.values)
    np.testing.assert_array_equal(found.counts, part.counts)
    pd.testing.assert_frame_equal(found.inputs.astype(str), part.inputs.astype(str))


def test_undefined_values_are_kept(tmp_path: Path) -> None:
    _, parts = begin(tmp_path / "run")
    part = make_part(0)
    part.values[0, 0, 0] = np.nan
    parts.write(0, part)
    np.testing.assert_array_equal(parts.read(0).values, part.values)


def test_a_part_of_version_0_1_is_read(tmp_path: Path) -> None:
    """Its count of truncated answers had another name."""
    from safetensors.numpy import load_file, save_file

    results, parts = begin(tmp_path / "run")
    parts.write(0, make_part(0))
    path = results.draft / "part-00000.safetensors"
    tensors = load_file(path)
    tensors["n_cut"] = tensors.pop("n_truncated")
    save_file(tensors, path)
    assert parts.has(0)
    assert parts.read(0).n_truncated == 1


@pytest.mark.parametrize(
    "stage", ["interp.tables.schema.pq.write_table", "safetensors.numpy.save_file", "os.fsync", "pathlib.Path.replace"]
)
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["no space", "Ctrl-C"])
def test_a_part_is_complete_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, error: BaseException) -> None:
    results, parts = begin(tmp_path / "run")
    parts.write(0, make_part(0))
    before = {path.name: path.read_bytes() for path in results.draft.iterdir()}

    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(stage, fail)
        with pytest.raises(OptionError if isinstance(error, OSError) else KeyboardInterrupt):
            parts.write(1, make_part(1))
    assert {path.name: path.read_bytes() for path in results.draft.iterdir()} == before
    assert not parts.has(1)


def test_an_interruption_between_the_two_files_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, parts = begin(tmp_path / "run")
    moves, replace = [], Path.replace

    def second_fails(self: Path, target: Path) -> Path:
        moves.append(target)
        if len(moves) == 2:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", second_fails)
        with pytest.raises(KeyboardInterrupt):
            parts.write(0, make_part(0))
    assert len(moves) == 2
    assert not parts.has(0)
    parts.write(0, make_part(0))
    assert parts.has(0)


def test_a_part_that_does_not_fit_the_schema_is_not_written(tmp_path: Path) -> None:
    results, parts = begin(tmp_path / "run")
    with pytest.raises(InputError, match="digit"):
        parts.write(0, make_part(0, role="digit"))
    assert sorted(path.name for path in results.draft.iterdir()) == [".lock", "settings.json"]


@pytest.mark.parametrize("kind", ["safetensors", "parquet"])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_damaged_part_counts_as_absent(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, share: float) -> None:
    results, parts = begin(tmp_path / "run")
    parts.write(4, make_part(0))
    path = results.draft / f"part-00004.{kind}"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert not parts.has(4)
    assert "part 4" in capsys.readouterr().err
    with pytest.raises(DamagedError, match=r"part 4 of .* is damaged"):
        parts.read(4)


def test_a_part_without_its_inputs_counts_as_absent(tmp_path: Path) -> None:
    results, parts = begin(tmp_path / "run")
    parts.write(0, make_part(0))
    (results.draft / "part-00000.parquet").unlink()
    assert not parts.has(0)


# --- starting ---------------------------------------------------------------------------------------------------------


def test_the_draft_is_made_with_its_parents(tmp_path: Path) -> None:
    results, _ = begin(tmp_path / "a" / "b" / "run")
    assert results.draft == tmp_path / "a" / "b" / "run.partial"
    assert results.draft.is_dir()
    assert not results.out.exists()


def test_an_empty_folder_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    finish(tmp_path / "run")
    assert content_of(tmp_path / "run") == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_with_other_files_is_refused(tmp_path: Path, force: bool, resume: bool) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("text")
    with pytest.raises(OptionError, match=r"holds 'thesis\.tex', and is not a finished head run"):
        ResultsFolder(tmp_path / "run", HEAD_RUN, force=force, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("text")
    with pytest.raises(OptionError, match="is a file"):
        ResultsFolder(tmp_path / "run", HEAD_RUN, force=True)


def test_a_place_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(OptionError, match="cannot be written: Not a directory"):
        ResultsFolder(tmp_path / "file" / "run", HEAD_RUN)


def test_the_root_is_refused() -> None:
    with pytest.raises(OptionError, match="root of the file system"):
        ResultsFolder(Path("/"), HEAD_RUN, force=True)


def test_an_unfinished_run_needs_resume_or_force(tmp_path: Path) -> None:
    results, parts = begin(tmp_path / "run")
    parts.write(0, make_part(0))
    results.release()
    with pytest.raises(OptionError, match=r"unfinished head run .* --resume .* --force"):
        ResultsFolder(tmp_path / "run", HEAD_RUN)
    resumed = ResultsFolder(tmp_path / "run", HEAD_RUN, resume=True)
    assert Parts(resumed).has(0)
    resumed.release()
    assert not Parts(ResultsFolder(tmp_path / "run", HEAD_RUN, force=True)).has(0)


def test_other_settings_are_named(tmp_path: Path) -> None:
    first, parts = begin(tmp_path / "run", measures=["entropy_nats"], chat=True)
    parts.write(0, make_part(0))
    first.release()
    results = ResultsFolder(tmp_path / "run", HEAD_RUN, resume=True)
    results.begin({"seed": 0, "measures": ("entropy_nats",), "chat": True})  # a tuple is a list in JSON
    with pytest.raises(OptionError, match=r"other settings \(seed, chat; seed: 0, now 1\)"):
        results.begin({"seed": 1, "measures": ["entropy_nats"], "chat": False})
    assert parts.has(0)


# --- finishing ----------------------------------------------------------------------------------------------------------


def test_publishing_removes_the_parts_and_moves_the_folder(tmp_path: Path) -> None:
    results, parts = begin(tmp_path / "run")
    for number in range(3):
        parts.write(number, make_part(number))
    (results.draft / ".123-part-00007.parquet").write_bytes(b"left by a killed process of version 0.1")
    results.publish({"content": "new"})
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]


def test_publishing_replaces_a_run_only_with_force(tmp_path: Path) -> None:
    finish(tmp_path / "run", "old")
    with pytest.raises(OptionError, match="--force replaces it"):
        ResultsFolder(tmp_path / "run", HEAD_RUN)
    finish(tmp_path / "run", "new", force=True)
    assert content_of(tmp_path / "run") == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_old_run_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    finish(tmp_path / "run", "old")
    results = ResultsFolder(tmp_path / "run", HEAD_RUN, force=True)
    results.begin({"seed": 1})
    Parts(results).write(0, make_part(0))
    assert content_of(tmp_path / "run") == "old"


def test_a_draft_without_parts_is_removed(tmp_path: Path) -> None:
    results, parts = begin(tmp_path / "run")
    results.abandon(keep=parts.any())
    assert not list(tmp_path.iterdir())


def test_a_draft_with_parts_is_kept(tmp_path: Path) -> None:
    results, parts = begin(tmp_path / "run")
    parts.write(0, make_part(0))
    results.abandon(keep=parts.any())
    assert parts.has(0)


def test_an_earlier_draft_is_kept(tmp_path: Path) -> None:
    begin(tmp_path / "run")[0].release()
    ResultsFolder(tmp_path / "run", HEAD_RUN, resume=True).abandon(keep=False)
    assert (tmp_path / "run.partial" / "settings.json").is_file()
