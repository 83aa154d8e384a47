"""The run folder: parts whole or absent, a finished run moved to its place, nothing of others' touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analyses.heads.folder import Part, RunFolder, peak_memory_bytes, write_json
from interp.tables.errors import InputError, OptionError


def make_part(*examples: int, role: str = "none") -> Part:
    rows = [
        {"example": e, "position": at, "token_id": 7 + at, "token": "t", "region": "question", "role": role, "is_query": True}
        for e in examples
        for at in range(3)
    ]
    shape = (len(examples), 2, 4, 1, 3)
    values = np.random.default_rng(list(examples)).random(shape)
    return Part(list(examples), values, np.ones(shape, np.int64), pd.DataFrame(rows), n_truncated=1, blocked=tuple(e % 2 for e in examples))


def begin(out: Path, **settings: Any) -> RunFolder:
    folder = RunFolder(out, force=False, resume=False)
    folder.begin({"seed": 0, **settings})
    return folder


def finish(out: Path, content: str = "new", *, force: bool = False) -> None:
    folder = RunFolder(out, force=force, resume=False)
    folder.begin({"seed": 0})
    folder.write_part(0, make_part(0))
    write_json(folder.partial / "run.json", {"content": content})
    folder.publish()


# --- parts ------------------------------------------------------------------------------------------------------------


def test_a_part_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder, part = begin(tmp_path / "run"), make_part(3, 1)
    assert not folder.has(0)
    folder.write_part(0, part)
    assert folder.has(0)
    found = folder.read_part(0)
    assert found.examples == [3, 1]
    assert found.n_truncated == 1
    assert found.blocked == (1, 1)
    np.testing.assert_array_equal(found.values, part.values)
    np.testing.assert_array_equal(found.counts, part.counts)
    pd.testing.assert_frame_equal(found.inputs.astype(str), part.inputs.astype(str))


def test_undefined_values_survive(tmp_path: Path) -> None:
    folder, part = begin(tmp_path / "run"), make_part(0)
    part.values[0, 0, 0] = np.nan
    folder.write_part(0, part)
    np.testing.assert_array_equal(folder.read_part(0).values, part.values)


@pytest.mark.parametrize(
    "stage", ["interp.tables.schema.pq.write_table", "safetensors.numpy.save_file", "os.fsync", "pathlib.Path.replace"]
)
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["no space", "Ctrl-C"])
def test_a_part_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, error: BaseException) -> None:
    folder = begin(tmp_path / "run")
    folder.write_part(0, make_part(0))
    before = {path.name: path.read_bytes() for path in folder.partial.iterdir()}

    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(stage, fail)
        with pytest.raises(OptionError if isinstance(error, OSError) else KeyboardInterrupt):
            folder.write_part(1, make_part(1))
    assert {path.name: path.read_bytes() for path in folder.partial.iterdir()} == before
    assert not folder.has(1)


def test_an_interruption_between_the_two_files_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, moves, replace = begin(tmp_path / "run"), [], Path.replace

    def second_fails(self: Path, target: Path) -> Path:
        moves.append(target)
        if len(moves) == 2:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", second_fails)
        with pytest.raises(KeyboardInterrupt):
            folder.write_part(0, make_part(0))
    assert len(moves) == 2
    assert not folder.has(0)
    folder.write_part(0, make_part(0))
    assert folder.has(0)


def test_a_part_that_breaks_the_schema_is_not_written(tmp_path: Path) -> None:
    folder = begin(tmp_path / "run")
    with pytest.raises(InputError, match="digit"):
        folder.write_part(0, make_part(0, role="digit"))
    assert sorted(path.name for path in folder.partial.iterdir()) == [".lock", "settings.json"]


@pytest.mark.parametrize("kind", ["safetensors", "parquet"])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_torn_part_counts_as_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, share: float) -> None:
    folder = begin(tmp_path / "run")
    folder.write_part(4, make_part(0))
    path = folder.partial / f"part-00004.{kind}"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert not folder.has(4)
    assert "part 4" in capsys.readouterr().err
    with pytest.raises(OptionError, match=r"part 4 of .* is damaged"):
        folder.read_part(4)


def test_a_part_without_its_inputs_counts_as_not_written(tmp_path: Path) -> None:
    folder = begin(tmp_path / "run")
    folder.write_part(0, make_part(0))
    (folder.partial / "part-00000.parquet").unlink()
    assert not folder.has(0)


# --- beginning --------------------------------------------------------------------------------------------------------


def test_a_beginning_makes_its_parents(tmp_path: Path) -> None:
    folder = begin(tmp_path / "a" / "b" / "run")
    assert folder.partial == tmp_path / "a" / "b" / "run.partial"
    assert folder.partial.is_dir()
    assert not folder.out.exists()


def test_an_empty_folder_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    finish(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text()) == {"content": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_other_things_is_refused(tmp_path: Path, force: bool, resume: bool) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("dear")
    with pytest.raises(OptionError, match="other things than a run"):
        RunFolder(tmp_path / "run", force=force, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("dear")
    with pytest.raises(OptionError, match="is a file"):
        RunFolder(tmp_path / "run", force=True, resume=False)


def test_a_place_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("dear")
    with pytest.raises(OptionError, match="cannot be written: Not a directory"):
        RunFolder(tmp_path / "file" / "run", force=False, resume=False)


def test_the_root_is_refused() -> None:
    with pytest.raises(OptionError, match="root of the file system"):
        RunFolder(Path("/"), force=True, resume=False)


def test_an_unfinished_run_waits_for_resume_or_force(tmp_path: Path) -> None:
    begin(tmp_path / "run").write_part(0, make_part(0))
    with pytest.raises(OptionError, match=r"unfinished run .* --resume .* --force"):
        RunFolder(tmp_path / "run", force=False, resume=False)
    assert RunFolder(tmp_path / "run", force=False, resume=True).has(0)
    assert not RunFolder(tmp_path / "run", force=True, resume=False).has(0)


def test_other_settings_are_named(tmp_path: Path) -> None:
    begin(tmp_path / "run", measures=["entropy_nats"], chat=True).write_part(0, make_part(0))
    folder = RunFolder(tmp_path / "run", force=False, resume=True)
    folder.begin({"seed": 0, "measures": ("entropy_nats",), "chat": True})  # a tuple is a list in JSON
    with pytest.raises(OptionError, match=r"other settings \(seed, chat; seed: 0, now 1\)"):
        folder.begin({"seed": 1, "measures": ["entropy_nats"], "chat": False})
    assert folder.has(0)


# --- the end ----------------------------------------------------------------------------------------------------------


def test_publish_drops_the_parts_and_moves_the_folder(tmp_path: Path) -> None:
    folder = begin(tmp_path / "run")
    for number in range(3):
        folder.write_part(number, make_part(number))
    (folder.partial / ".123-part-00007.parquet").write_bytes(b"left by a killed process")
    write_json(folder.partial / "run.json", {"content": "new"})
    folder.publish()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]


def test_publish_replaces_a_run_that_force_allows(tmp_path: Path) -> None:
    finish(tmp_path / "run", "old")
    with pytest.raises(OptionError, match="--force replaces it"):
        RunFolder(tmp_path / "run", force=False, resume=False)
    finish(tmp_path / "run", "new", force=True)
    assert json.loads((tmp_path / "run" / "run.json").read_text()) == {"content": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_old_run_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    finish(tmp_path / "run", "old")
    folder = RunFolder(tmp_path / "run", force=True, resume=False)
    folder.begin({"seed": 1})
    folder.write_part(0, make_part(0))
    assert json.loads((tmp_path / "run" / "run.json").read_text()) == {"content": "old"}


def test_abandon_removes_a_beginning_without_parts(tmp_path: Path) -> None:
    folder = begin(tmp_path / "run")
    folder.abandon()
    assert not list(tmp_path.iterdir())


def test_abandon_keeps_parts(tmp_path: Path) -> None:
    folder = begin(tmp_path / "run")
    folder.write_part(0, make_part(0))
    folder.abandon()
    assert folder.has(0)


def test_abandon_keeps_an_earlier_beginning(tmp_path: Path) -> None:
    begin(tmp_path / "run")
    RunFolder(tmp_path / "run", force=False, resume=True).abandon()
    assert (tmp_path / "run.partial" / "settings.json").is_file()


# --- what is recorded -------------------------------------------------------------------------------------------------


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_json(path, {"name": "Rényi"})
    with pytest.raises(TypeError):
        write_json(path, {"name": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "Rényi"}
    assert [found.name for found in tmp_path.iterdir()] == ["run.json"]


def test_peak_memory_is_in_bytes() -> None:
    block = np.ones(4 << 20)
    assert peak_memory_bytes()["process"] > block.nbytes
