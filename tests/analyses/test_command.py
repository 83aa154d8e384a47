"""What a command that ends before its end says is left: asked when it has ended, and not before its work."""

from __future__ import annotations

from pathlib import Path

import pytest

from analyses.command import guarded


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device", "map.png")])
@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("wrote", [False, True])
@pytest.mark.parametrize("figures", [False, True])
def test_tables_that_are_whole_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error: BaseException, there: bool, wrote: bool, figures: bool
) -> None:
    out = tmp_path / "my run"
    out.mkdir()
    left = ["none yet"]
    if there:  # of an earlier work
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


def test_work_that_is_done_or_has_a_fault_is_let_through(tmp_path: Path) -> None:
    assert guarded(lambda: 0, debug=False, interrupted=str, out=tmp_path, kept="") == 0
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: 1 // 0, debug=False, interrupted=str, out=tmp_path, kept="")
