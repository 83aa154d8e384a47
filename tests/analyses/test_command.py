"""What a command does around its work: options, error lines, and what an unfinished call reports as left."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from analyses.command import guarded, run_command
from interp.tables.errors import OptionError


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device", "map.png")])
@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("wrote", [False, True])
@pytest.mark.parametrize("figures", [False, True])
def test_an_unfinished_call_names_complete_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error: BaseException, there: bool, wrote: bool, figures: bool
) -> None:
    out = tmp_path / "my run"
    out.mkdir()
    left = ["none yet"]
    if there:  # from an earlier call
        (out / "run.json").write_text("{}")

    def work() -> int:
        left[0] = "some parts"
        if wrote:
            (out / "draft").write_text("{}")
            (out / "draft").replace(out / "run.json")
        raise error

    code = guarded(work, debug=False, interrupted=lambda: left[0], out=out, kept=lambda: left[0], figures=figures)
    assert code == (130 if isinstance(error, KeyboardInterrupt) else 2)
    tables = f"the tables are in {out}" + (f"; python -m figures '{out}' draws the rest" if figures else "")
    assert capsys.readouterr().err.endswith(f"; {tables if wrote else 'some parts'}\n")


def test_finished_work_and_defects_are_passed_on(tmp_path: Path) -> None:
    assert guarded(lambda: 0, debug=False, interrupted=str, out=tmp_path, kept="") == 0
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: 1 // 0, debug=False, interrupted=str, out=tmp_path, kept="")


@dataclass(frozen=True)
class Options:
    """Do nothing.

    Attributes:
        out: the folder.
        debug: show the traceback.
    """

    out: Path
    debug: bool = False

    def __post_init__(self) -> None:
        if self.out.name == "refused":
            raise OptionError("--out is refused")

    def folder(self) -> Path:
        return self.out


def test_a_command_gets_its_options_and_the_line_to_record(tmp_path: Path) -> None:
    seen: list[tuple[Options, str]] = []
    out = tmp_path / "a b"
    work = partial(run_command, "some.command", Options, "", lambda *given: seen.append(given), left=lambda _: "nothing")
    assert work(arguments=["--out", str(out)]) == 0
    assert seen == [(Options(out), f"python -m some.command --out '{out}'")]


def test_a_refused_option_is_one_error_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def work(options: Options, command: str) -> None:
        raise AssertionError

    given = ["--out", str(tmp_path / "refused")]
    assert run_command("some.command", Options, "", work, left=lambda _: "nothing", arguments=given) == 2
    assert capsys.readouterr().err == "error: --out is refused\n"


def test_what_is_left_is_asked_after_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left = ["nothing"]

    def work(options: Options, command: str) -> None:
        left[0] = "some parts"
        raise KeyboardInterrupt

    assert run_command("some.command", Options, "", work, left=lambda _: left[0], arguments=["--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "\ninterrupted; some parts\n"
