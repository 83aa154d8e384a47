"""Results are complete or absent: failures, kills at every step, two writers, and folders that hold other things."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from interp.tables import results
from interp.tables.errors import DamagedError, InputError, OptionError
from interp.tables.files import write_file, write_text
from interp.tables.heads import HEADS
from interp.tables.results import Kind, ResultsFolder, measure_infos, read_run_json
from interp.tables.schema import read

KIND = Kind("comparison", ("shifts", "matches"), r"\w+\.(csv|parquet)|part-\d+|heads", carried=("heads",), temporary=("part-*",))
HEADS_KIND = Kind("head run", (None,), r"\w+\.parquet|part-\d+")


def files(folder: Path) -> dict[str, str]:
    """Every file below a folder by its path, but lock files."""
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def publish(out: Path, text: str, **options: Any) -> None:
    """Write results that say `text` in every file."""
    folder = ResultsFolder(out, KIND, **options)
    folder.begin({"text": text})
    write_text(folder.draft / "a.csv", text)
    write_text(folder.draft / "part-1", text)
    folder.publish({"kind": "shifts", "text": text, "versions": {"python": "3"}})


def is_complete(out: Path, text: str) -> bool:
    """Return whether a folder holds the results that `publish` wrote, apart from what a killed call could not remove."""
    return (
        (out / "run.json").is_file()
        and json.loads((out / "run.json").read_text())["text"] == text
        and (out / "a.csv").read_text() == text
        and names(out) <= {"run.json", "a.csv", "heads", ".lock", "settings.json", "part-1"}
    )


# --- from draft to results --------------------------------------------------------------------------------------------


def test_results_appear_when_they_are_complete(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    folder = ResultsFolder(out, KIND)
    assert folder.fresh
    assert folder.draft == tmp_path / "new" / "out.partial"
    folder.begin({"seed": 1})
    write_text(folder.draft / "a.csv", "1")
    write_text(folder.draft / "part-1", "x")
    assert not out.exists()
    folder.publish({"kind": "shifts"})
    assert names(out.parent) == {"out"}
    assert names(out) == {"a.csv", "run.json"}
    run = json.loads((out / "run.json").read_text())
    assert run["kind"] == "shifts"
    assert "torch" in run["versions"]


def test_finished_results_are_replaced_only_by_force(tmp_path: Path) -> None:
    publish(tmp_path / "out", "old")
    for resume in (False, True):
        with pytest.raises(OptionError, match=r"holds a finished comparison; --force replaces it"):
            ResultsFolder(tmp_path / "out", KIND, resume=resume)
    assert names(tmp_path) == {"out"}
    publish(tmp_path / "out", "new", force=True)
    assert is_complete(tmp_path / "out", "new")
    assert names(tmp_path) == {"out"}
    assert names(tmp_path / "out") == {"a.csv", "run.json"}


def test_the_old_results_stay_until_the_new_ones_are_complete(tmp_path: Path) -> None:
    publish(tmp_path / "out", "old")
    before = files(tmp_path / "out")
    folder = ResultsFolder(tmp_path / "out", KIND, force=True)
    folder.begin({})
    write_text(folder.draft / "a.csv", "new")
    assert files(tmp_path / "out") == before
    folder.abandon(keep=False)
    assert files(tmp_path) == {f"out/{name}": text for name, text in before.items()}


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    publish(tmp_path / "out", "new")
    assert is_complete(tmp_path / "out", "new")


def test_a_table_is_checked_and_written(tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path / "out", HEADS_KIND)
    frame = pd.DataFrame({"model": "m", "layer": [0], "head": [0], "measure": "a", "region": "all", "value": [1.0]})
    frame = frame.assign(ci_low=0.5, ci_high=1.5, n_examples=2, n_queries=3)
    folder.write_table(frame, HEADS)
    assert read(folder.draft / "heads.parquet", HEADS)["value"].tolist() == [1.0]
    with pytest.raises(InputError, match="table heads"):
        folder.write_table(frame.drop(columns="value"), HEADS)
    folder.publish({})
    assert names(tmp_path / "out") == {"heads.parquet", "run.json"}
    assert folder.final(folder.draft / "a" / "b") == tmp_path / "out" / "a" / "b"
    assert folder.final(tmp_path / "c") == tmp_path / "c"


def test_undefined_numbers_of_run_json_are_null(tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path / "out", KIND)
    folder.publish({"kind": "shifts", "p": float("nan"), "paths": [Path("a")]})
    run = json.loads((tmp_path / "out" / "run.json").read_text(), parse_constant=pytest.fail)
    assert (run["p"], run["paths"]) == (None, ["a"])


# --- unfinished drafts ------------------------------------------------------------------------------------------------


def unfinished(out: Path, settings: dict[str, Any] | None = None) -> Path:
    """Leave a draft as a call leaves it that failed after its first part."""
    folder = ResultsFolder(out, KIND)
    folder.begin(settings or {"seed": 1})
    write_text(folder.draft / "part-1", "one")
    folder.abandon(keep=True)
    return folder.draft


def test_an_unfinished_draft_is_resumed_or_discarded_on_request(tmp_path: Path) -> None:
    draft = unfinished(tmp_path / "out")
    with pytest.raises(OptionError, match=r"an unfinished comparison is in .*out\.partial; --resume continues it, --force discards it"):
        ResultsFolder(tmp_path / "out", KIND)
    resumed = ResultsFolder(tmp_path / "out", KIND, resume=True)
    assert not resumed.fresh
    resumed.begin({"seed": 1})
    assert (draft / "part-1").read_text() == "one"
    resumed.abandon(keep=False)  # what an earlier call finished stays
    assert (draft / "part-1").read_text() == "one"
    ResultsFolder(tmp_path / "out", KIND, resume=True, force=True).release()
    assert (draft / "part-1").is_file()
    fresh = ResultsFolder(tmp_path / "out", KIND, force=True)
    assert fresh.fresh
    assert names(draft) == {".lock"}
    fresh.abandon(keep=False)
    assert names(tmp_path) == set()


def test_a_draft_is_resumed_only_with_its_settings(tmp_path: Path) -> None:
    unfinished(tmp_path / "out", {"seed": 1, "models": ("a", "b"), "level": float("nan")})
    resumed = ResultsFolder(tmp_path / "out", KIND, resume=True)
    resumed.begin({"seed": 1, "models": ["a", "b"], "level": float("nan")})
    with pytest.raises(OptionError, match=r"begun with other settings \(seed, more; seed: 1, now 2\)"):
        resumed.begin({"seed": 2, "models": ["a", "b"], "level": None, "more": 1})


def test_settings_of_an_earlier_version_are_compared_under_todays_names(tmp_path: Path) -> None:
    draft = unfinished(tmp_path / "out")
    (draft / "settings.json").write_text('{"way": "flash", "text": "gold"}')
    ResultsFolder(tmp_path / "out", KIND, resume=True).begin({"backend": "flash", "text": "reference"})


@pytest.mark.parametrize("text", ["", "{", "[1]", "3"])
def test_damaged_settings_are_reported(tmp_path: Path, text: str) -> None:
    (unfinished(tmp_path / "out") / "settings.json").write_text(text)
    with pytest.raises(DamagedError, match=r"settings\.json is damaged .*--force starts again"):
        ResultsFolder(tmp_path / "out", KIND, resume=True).begin({"seed": 1})


def test_a_failed_start_leaves_no_folders(tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path / "a" / "b" / "out", KIND)
    folder.begin({"seed": 1})
    folder.abandon(keep=False)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_start_keeps_folders_that_others_use(tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path / "a" / "b" / "out", KIND)
    (tmp_path / "a" / "other").write_text("dear")
    folder.abandon(keep=False)
    assert files(tmp_path) == {"a/other": "dear"}
    assert names(tmp_path / "a") == {"other"}


def test_nothing_is_abandoned_after_publication(tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path / "out", KIND)
    folder.publish({"kind": "shifts"})
    other = ResultsFolder(tmp_path / "out", KIND, force=True)
    write_text(other.draft / "a.csv", "of another call")
    folder.abandon(keep=False)
    assert (other.draft / "a.csv").is_file()


def test_a_complete_draft_is_not_abandoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ResultsFolder(tmp_path / "out", KIND)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace_or_fail("out"))
        with pytest.raises(OSError, match="No space left"):
            folder.publish({"kind": "shifts"})
    folder.abandon(keep=False)
    assert (folder.draft / "run.json").is_file()


# --- kills ------------------------------------------------------------------------------------------------------------

STEPS = {
    "open",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.mkdir",
    "os.link",
    "shutil.rmtree",
    "shutil.copytree",
    "os.listdir",
    "os.scandir",
}
"""Audit events of what changes or reads the file system."""


def kill_at(step: int, work: Callable[[], None]) -> bool:
    """Run `work` in a process that is killed before its n-th step; return whether it was, and did not end by itself before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads of this process do not matter: the child starts none
        child = os.fork()
    if child == 0:
        left = step

        def count(event: str, _: tuple[Any, ...]) -> None:
            nonlocal left
            if event in STEPS:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        code = 1
        try:
            sys.addaudithook(count)
            work()
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the work failed"
    return os.WIFSIGNALED(status)


needs_fork = pytest.mark.skipif(not hasattr(os, "fork") or os.name == "nt", reason="the platform has no fork")


@needs_fork
def test_a_kill_at_any_step_of_publication_loses_no_results(tmp_path: Path) -> None:
    killed_after_all = []
    for step in range(1, 500):
        out = tmp_path / str(step) / "out"
        publish(out, "old")
        folder = ResultsFolder(out, KIND, force=True)
        folder.begin({"text": "new"})
        write_text(folder.draft / "a.csv", "new")
        write_text(folder.draft / "part-1", "new")
        folder.release()

        def work(folder: ResultsFolder = folder) -> None:
            folder.publish({"kind": "shifts", "text": "new", "versions": {"python": "3"}})

        if not kill_at(step, work):
            break
        there = [path for path in out.parent.iterdir() if is_complete(path, "old") or is_complete(path, "new")]
        assert there, f"step {step}: no complete results"
        recovered(out, step)
        killed_after_all.append(step)
    else:
        pytest.fail("publication did not end")
    assert len(killed_after_all) > 8
    assert is_complete(out, "new")
    assert names(out.parent) == {"out"}


def recovered(out: Path, step: int) -> None:
    """The next call finds old or new results in place, and can continue or start again; nothing else is left."""
    with pytest.raises(OptionError, match="finished comparison"):  # or an unfinished one
        ResultsFolder(out, KIND)
    assert is_complete(out, "old") or is_complete(out, "new"), f"step {step}"
    if (out.parent / "out.partial").exists():
        resumed = ResultsFolder(out, KIND, resume=True, force=True)
        resumed.begin({"text": "new"})
        assert (resumed.draft / "a.csv").read_text() == "new"
        resumed.publish({"kind": "shifts", "text": "new", "versions": {"python": "3"}})
        assert is_complete(out, "new"), f"step {step}"
    assert names(out.parent) == {"out"}, f"step {step}"
    assert names(out) == {"a.csv", "run.json"}, f"step {step}"


@needs_fork
def test_a_kill_at_any_step_of_the_start_leaves_a_place_that_can_be_used(tmp_path: Path) -> None:
    step = 0
    while True:
        step += 1
        out = tmp_path / str(step) / "out"
        publish(out, "old")
        (out / "heads" / "base").mkdir(parents=True)
        write_text(out / "heads" / "base" / "run.json", "heads")
        if not kill_at(step, lambda out=out: ResultsFolder(out, KIND, force=True).release()):
            break
        assert is_complete(out, "old"), f"step {step}"
        publish(out, "new", force=True)
        assert is_complete(out, "new"), f"step {step}"
        assert files(out / "heads") == {"base/run.json": "heads"}, f"step {step}"
        assert names(out.parent) == {"out"}, f"step {step}"
        assert names(out) == {"a.csv", "run.json", "heads"}, f"step {step}"
        assert step < 500
    assert step > 8


def test_old_results_are_moved_back_after_a_kill_between_the_renames(tmp_path: Path) -> None:
    out = tmp_path / "out"
    publish(out, "old")
    out.rename(tmp_path / ".out.old-0a1b2c3d")
    with pytest.raises(OptionError, match="finished comparison"):
        ResultsFolder(out, KIND)
    assert is_complete(out, "old")
    assert names(tmp_path) == {"out"}


# --- two writers ------------------------------------------------------------------------------------------------------


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    first = ResultsFolder(tmp_path / "out", KIND)
    write_text(first.draft / "a.csv", "first")
    for options in ({}, {"resume": True}, {"force": True}, {"force": True, "resume": True}):
        with pytest.raises(OptionError, match=r"another process works in .*out\.partial; wait for it, or name another --out"):
            ResultsFolder(tmp_path / "out", KIND, **options)
    assert (first.draft / "a.csv").read_text() == "first"
    first.publish({"kind": "shifts"})
    ResultsFolder(tmp_path / "out", KIND, force=True).abandon(keep=False)


def test_a_second_process_is_refused_until_the_first_dies(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from interp.tables.results import Kind, ResultsFolder\n"
        f"folder = ResultsFolder(Path({str(tmp_path / 'out')!r}), Kind('comparison', ('shifts',), 'a'))\n"
        "print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(OptionError, match="another process works in"):
            ResultsFolder(tmp_path / "out", KIND, force=True)
        other.kill()
        other.wait()
    ResultsFolder(tmp_path / "out", KIND).abandon(keep=False)  # the killed call had done nothing yet
    assert names(tmp_path) == set()


def test_further_processes_of_a_command_share_the_draft(tmp_path: Path) -> None:
    publish(tmp_path / "out", "old")
    first = ResultsFolder(tmp_path / "out", KIND, force=True)
    write_text(first.draft / "part-1", "one")
    further = ResultsFolder(tmp_path / "out", KIND, force=True, resume=True, lock=False)
    assert further.draft == first.draft
    further.abandon(keep=False)
    assert (first.draft / "part-1").read_text() == "one"
    first.publish({"kind": "shifts"})


# --- disks and permissions --------------------------------------------------------------------------------------------


def replace_or_fail(name: str) -> Callable[[Path, Path], Path]:
    """Return a `Path.replace` that fails where the target has this name."""
    replace = Path.replace

    def fail(self: Path, target: Path) -> Path:
        if Path(target).name == name and self.name.endswith(".partial"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(self, target)

    return fail


def test_a_full_disk_at_the_start_is_an_option_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "probe")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fail)
        with pytest.raises(OptionError, match=r"--out .*out cannot be written: No space left on device \(probe\)"):
            ResultsFolder(tmp_path / "a" / "out", KIND)
    assert names(tmp_path) == set()


def test_a_full_disk_at_publication_keeps_draft_and_old_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path / "out", "old")
    folder = ResultsFolder(tmp_path / "out", KIND, force=True)
    folder.begin({})
    write_text(folder.draft / "a.csv", "new")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            folder.publish({"kind": "shifts"})
    assert is_complete(tmp_path / "out", "old")
    assert not (folder.draft / "run.json").exists()
    folder.publish({"kind": "shifts", "text": "new"})
    assert is_complete(tmp_path / "out", "new")


def test_a_failed_rename_restores_the_old_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path / "out", "old")
    folder = ResultsFolder(tmp_path / "out", KIND, force=True)
    write_text(folder.draft / "a.csv", "new")
    monkeypatch.setattr(Path, "replace", replace_or_fail("out"))
    with pytest.raises(OSError, match="No space left"):
        folder.publish({"kind": "shifts", "text": "new"})
    assert is_complete(tmp_path / "out", "old")
    assert (folder.draft / "a.csv").read_text() == "new"


def test_a_parent_without_permission_is_an_option_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mkdir = Path.mkdir

    def refuse(self: Path, *more: Any, **options: Any) -> None:
        if self.name == "out.partial":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        mkdir(self, *more, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OptionError, match=r"cannot be written: Permission denied \(.*out\.partial\)"):
        ResultsFolder(tmp_path / "out", KIND)


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_parent_is_an_option_error(tmp_path: Path) -> None:
    (tmp_path / "parent").mkdir()
    (tmp_path / "parent").chmod(0o500)
    try:
        with pytest.raises(OptionError, match="cannot be written: Permission denied"):
            ResultsFolder(tmp_path / "parent" / "out", KIND)
    finally:
        (tmp_path / "parent").chmod(0o700)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_a_name_that_no_file_system_takes_is_an_option_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(OptionError, match="cannot be written"):
        ResultsFolder(tmp_path / name, KIND)


# --- places that are taken --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("inside", ["out", "out.partial"])
@pytest.mark.parametrize("strange", ["notes.txt", "thesis/chapter.tex", ".secret"])
def test_a_folder_with_strange_files_is_never_replaced(tmp_path: Path, force: bool, inside: str, strange: str) -> None:
    publish(tmp_path / "out", "old")
    (tmp_path / inside / strange).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / inside / strange).write_text("dear")
    before = files(tmp_path)
    with pytest.raises(OptionError) as caught:
        ResultsFolder(tmp_path / "out", KIND, force=force, resume=force)
    if force:
        assert f"holds {strange.partition('/')[0]!r}, which no comparison wrote; move it, or name another --out" in str(caught.value)
    assert files(tmp_path) == before


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", ["figures/mine.png", "report.html", "settings.json", "notes.txt"])
def test_a_folder_that_holds_no_results_is_not_taken_for_one(tmp_path: Path, force: bool, name: str) -> None:
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    (tmp_path / "out" / name).write_text("dear")
    with pytest.raises(OptionError, match=r"--out .*out holds '\S+', and is not a finished comparison; name another folder"):
        ResultsFolder(tmp_path / "out", KIND, force=force)
    assert names(tmp_path) == {"out"}


def test_unfinished_results_of_version_01_are_replaced(tmp_path: Path) -> None:
    """It wrote comparisons in place: tables without run.json."""
    (tmp_path / "out" / "figures").mkdir(parents=True)
    (tmp_path / "out" / "shifts.parquet").write_text("half")
    publish(tmp_path / "out", "new")
    assert names(tmp_path / "out") == {"run.json", "a.csv"}


@pytest.mark.parametrize("force", [False, True])
def test_results_of_another_kind_are_refused(tmp_path: Path, force: bool) -> None:
    for name, run in (("heads", "{}"), ("other", '{"kind": "grades"}'), ("matches", '{"kind": "matches"}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(run)
    for name, kind in (("heads", "a head run"), ("other", "grades")):
        with pytest.raises(OptionError, match=rf"holds results of another kind \({kind}\); name another folder"):
            ResultsFolder(tmp_path / name, KIND, force=force)
    with pytest.raises(OptionError, match="another kind"):
        ResultsFolder(tmp_path / "matches", HEADS_KIND, force=force)
    (tmp_path / "heads").rename(tmp_path / "matches.partial")
    with pytest.raises(OptionError, match=r"matches\.partial holds results of another kind \(a head run\); move it"):
        ResultsFolder(tmp_path / "matches", KIND, force=True)
    assert names(tmp_path) == {"other", "matches", "matches.partial"}


@pytest.mark.parametrize("text", ["{", "[]", "3", "[" * 100_000])
def test_a_damaged_run_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text(text)
    with pytest.raises(OptionError, match=r"run\.json is damaged"):
        ResultsFolder(tmp_path / "out", KIND, force=True)


def test_files_in_the_place_of_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("dear")
    with pytest.raises(OptionError, match="is a file; name a folder"):
        ResultsFolder(tmp_path / "out", KIND, force=True)
    (tmp_path / "other.partial").write_text("dear")
    with pytest.raises(OptionError, match=r"other\.partial is a file, and unfinished results go there; move it"):
        ResultsFolder(tmp_path / "other", KIND, force=True)
    with pytest.raises(OptionError, match=r"out.* cannot be written: "):
        ResultsFolder(tmp_path / "out" / "below", KIND)
    assert files(tmp_path) == {"out": "dear", "other.partial": "dear"}


def test_what_appears_during_the_work_is_not_replaced(tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path / "out", KIND)
    write_text(folder.draft / "a.csv", "new")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("dear")
    with pytest.raises(OptionError, match=r"holds 'notes\.txt'.*; the new results are complete in .*out\.partial"):
        folder.publish({"kind": "shifts", "text": "new"})
    folder.abandon(keep=False)
    assert (tmp_path / "out" / "notes.txt").read_text() == "dear"
    (tmp_path / "out" / "notes.txt").unlink()
    ResultsFolder(tmp_path / "out", KIND, resume=True).publish({"kind": "shifts", "text": "new"})
    assert is_complete(tmp_path / "out", "new")


def test_the_root_and_mount_points_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="is the root of the file system"):
        ResultsFolder(Path(tmp_path.anchor), KIND)
    (tmp_path / "volume").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "volume")
    with pytest.raises(OptionError, match="volume is a mount point, which cannot be replaced; name a folder in it"):
        ResultsFolder(tmp_path / "volume", KIND)
    ResultsFolder(tmp_path / "volume" / "out", KIND).abandon(keep=False)


def test_relative_names_and_links_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk" / "place").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "disk" / "place")
    folder = ResultsFolder(Path(), KIND)
    assert (folder.out, folder.draft) == (tmp_path / "disk" / "place", tmp_path / "disk" / "place.partial")
    folder.abandon(keep=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "place", target_is_directory=True)
    publish(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert is_complete(tmp_path / "disk" / "place", "new")
    assert names(tmp_path / "disk") == {"place"}


# --- what stays valid -------------------------------------------------------------------------------------------------


def carrying(out: Path) -> Path:
    """Publish results with a head run in them; return a file of it."""
    folder = ResultsFolder(out, KIND)
    (folder.draft / "heads" / "base").mkdir(parents=True)
    write_text(folder.draft / "heads" / "base" / "run.json", "old")
    write_text(folder.draft / "a.csv", "old")
    folder.publish({"kind": "shifts", "text": "old"})
    return out / "heads" / "base" / "run.json"


@pytest.mark.parametrize("links", [True, False])
def test_carried_folders_survive_a_replacement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    original = carrying(tmp_path / "out")
    folder = ResultsFolder(tmp_path / "out", KIND, force=True)
    carried = folder.draft / "heads" / "base" / "run.json"
    assert carried.read_text() == "old"
    assert carried.samefile(original) == links
    assert not (folder.draft / "a.csv").exists()
    assert folder.fresh
    write_text(carried, "new")
    write_file(folder.draft / "heads" / "base" / "more", lambda draft: draft.write_text("new"))
    shutil.rmtree(folder.draft / "heads" / "base")
    assert files(original.parent) == {"run.json": "old"}
    folder.abandon(keep=False)
    again = ResultsFolder(tmp_path / "out", KIND, force=True)
    again.publish({"kind": "shifts", "text": "new"})
    assert files(tmp_path / "out" / "heads") == {"base/run.json": "old"}
    assert names(tmp_path) == {"out"}


def test_a_carried_file_that_is_replaced_leaves_the_original(tmp_path: Path) -> None:
    original = carrying(tmp_path / "out")
    folder = ResultsFolder(tmp_path / "out", KIND, force=True)
    write_text(folder.draft / "heads" / "base" / "run.json", "new")
    assert original.read_text() == "old"
    folder.publish({"kind": "shifts", "text": "new"})
    assert original.read_text() == "new"


def test_a_draft_with_a_new_carried_part_is_not_abandoned(tmp_path: Path) -> None:
    carrying(tmp_path / "out")
    folder = ResultsFolder(tmp_path / "out", KIND, force=True)
    (folder.draft / "heads" / "student").mkdir()
    folder.abandon(keep=False)
    assert (folder.draft / "heads" / "student").is_dir()


def test_clearing_keeps_what_is_named(tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path / "out", KIND)
    for name in ("heads/a", "a.csv", "figures/b"):
        (folder.draft / name).parent.mkdir(exist_ok=True)
        (folder.draft / name).write_text("x")
    folder.clear(keep=("heads",))
    assert names(folder.draft) == {"heads", ".lock"}


# --- Windows ----------------------------------------------------------------------------------------------------------


def test_windows_releases_the_lock_before_a_folder_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There a folder with an open file cannot be renamed."""
    monkeypatch.setattr(results, "WINDOWS", True)
    folder = ResultsFolder(tmp_path / "out", KIND)
    lock, replace = folder._lock, Path.replace
    assert lock is not None

    def checked(self: Path, target: Path) -> Path:
        assert not (self.is_dir() and lock.is_locked)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", checked)
    folder.publish({"kind": "shifts", "text": "new"})
    assert names(tmp_path / "out") == {"run.json"}


def test_windows_releases_the_lock_before_a_folder_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "WINDOWS", True)
    folder = ResultsFolder(tmp_path / "out", KIND)
    lock, rmtree = folder._lock, shutil.rmtree
    assert lock is not None

    def checked(*given: Any, **options: Any) -> None:
        assert not lock.is_locked
        rmtree(*given, **options)

    monkeypatch.setattr(shutil, "rmtree", checked)
    folder.abandon(keep=False)
    assert names(tmp_path) == set()


# --- reading run.json -------------------------------------------------------------------------------------------------

INFO = {"name": "a", "title": "A", "unit": "nats", "low": 0, "high": None, "formula": "f"}
RUN: dict[str, Any] = {
    "model": {"name": "m", "way": 1},
    "config": {},
    "measures": [INFO],
    "problems": {},
    "text": "reference",
    "chat": True,
}


def stored(folder: Path, run: Any) -> Path:
    (folder / "run.json").write_text(json.dumps(run))
    return folder


def test_a_head_run_is_read(tmp_path: Path) -> None:
    assert read_run_json(stored(tmp_path, RUN)) == RUN


def test_a_head_run_of_version_01_is_read_under_todays_names(tmp_path: Path) -> None:
    old = {
        **RUN,
        "text": "gold",
        "config": {"text": "gold", "way": "auto"},
        "measures": [{**INFO, "way": "flash"}],
        "generated": {"n_cut": 1},
    }
    found = read_run_json(stored(tmp_path, old))
    assert (found["text"], found["config"]) == ("reference", {"text": "reference", "backend": "auto"})
    assert found["measures"] == [{**INFO, "backend": "flash"}]
    assert found["generated"] == {"n_truncated": 1}
    assert found["model"] == RUN["model"]
    assert measure_infos(found)["a"].title == "A"


@pytest.mark.parametrize("missing", sorted(RUN))
def test_a_run_of_another_form_is_refused(tmp_path: Path, missing: str) -> None:
    run = {key: value for key, value in RUN.items() if key != missing}
    with pytest.raises(InputError, match=rf"has no {missing}: it is of another version; measure the model again"):
        read_run_json(stored(tmp_path, run))


@pytest.mark.parametrize("change", [{"model": "m"}, {"model": {}}, {"config": []}, {"measures": {}}])
def test_a_run_with_parts_of_another_form_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="no usable model, config or measures"):
        read_run_json(stored(tmp_path, {**RUN, **change}))


@pytest.mark.parametrize("text", [None, "", "{", "[" * 100_000])
def test_a_run_json_that_cannot_be_read_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(InputError, match=r"run\.json cannot be read .*measure the model again"):
        read_run_json(tmp_path)


def test_a_run_json_that_is_no_object_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no model, config"):
        read_run_json(stored(tmp_path, [1]))


def test_measures_of_another_form_are_refused() -> None:
    with pytest.raises(InputError, match="a measure lacks 'formula'"):
        measure_infos({"measures": [{key: value for key, value in INFO.items() if key != "formula"}]})
    with pytest.raises(InputError, match=r"measure name '\.\./a' is not made of letters, digits and underscores"):
        measure_infos({"measures": [{**INFO, "name": "../a"}]})


@pytest.mark.parametrize("name", [".out.old-backup", ".out.old-notes", ".out.old-0a1b2c3d", ".out.old-0a1b2c3de"])
def test_a_folder_of_somebody_else_is_neither_removed_nor_taken_for_old_results(tmp_path: Path, name: str) -> None:
    other = tmp_path / name
    other.mkdir()
    (other / "data.txt").write_text("precious")
    publish(tmp_path / "out", "new")
    publish(tmp_path / "out", "newer", force=True)
    assert is_complete(tmp_path / "out", "newer")
    assert names(tmp_path) == {"out", name}
    assert (other / "data.txt").read_text() == "precious"


def test_what_a_kill_left_of_removed_results_does_not_come_back(tmp_path: Path) -> None:
    publish(tmp_path / "out", "old")
    (tmp_path / "out" / "run.json").unlink()  # removed first
    (tmp_path / "out").rename(tmp_path / ".out.old-0a1b2c3d")
    publish(tmp_path / "out", "new")
    assert is_complete(tmp_path / "out", "new")
    assert names(tmp_path) == {"out"}


@pytest.mark.parametrize("call", [1, 2])
def test_an_interruption_while_results_are_replaced_leaves_the_old_ones_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    from interp.tables import results

    publish(tmp_path / "out", "old")
    folder = ResultsFolder(tmp_path / "out", KIND, force=True)
    write_text(folder.draft / "a.csv", "new")
    calls, rename = [], results.rename

    def interrupted(old: Path, new: Path) -> None:
        calls.append(old)
        if len(calls) == call:
            raise KeyboardInterrupt
        rename(old, new)

    monkeypatch.setattr(results, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        folder.publish({"kind": "shifts"})
    folder.release()
    assert is_complete(tmp_path / "out", "old")
    assert names(tmp_path) == {"out", "out.partial"}
