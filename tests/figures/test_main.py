"""python -m figures: exit codes and one-line errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from figures import __main__ as command


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["figures", *arguments])
    return command.main()


def test_figures_are_written_to_out(monkeypatch, capsys, few_measures, tmp_path):
    assert _run(monkeypatch, str(few_measures), "--out", str(tmp_path / "drawn")) == 0
    assert (tmp_path / "drawn" / "report.html").is_file()
    assert "16 figure files" in capsys.readouterr().out


def test_style_and_width_are_applied(monkeypatch, capsys, few_measures, tmp_path):
    from PIL import Image

    assert _run(monkeypatch, str(few_measures), "--out", str(tmp_path), "--style", "dark", "--width", "two") == 0
    with Image.open(tmp_path / "figures" / "head_map_numeric_mass.png") as image:
        assert image.width == int(6.9 * 300)
        assert image.convert("L").getpixel((5, image.height - 5)) < 40  # pyright: ignore[reportOperatorIssue,reportOptionalOperand]


@pytest.mark.parametrize("broken", ["no folder", "no table", "torn table", "file as out"])
def test_an_error_prints_one_line_and_exits_with_2(monkeypatch, capsys, run_folder: Path, broken):
    arguments = [str(run_folder)]
    if broken == "no folder":
        arguments = [str(run_folder / "absent")]
    elif broken == "no table":
        (run_folder / "heads.parquet").unlink()
    elif broken == "torn table":
        (run_folder / "inputs.parquet").write_bytes(b"PAR1")
    else:
        arguments += ["--out", str(run_folder / "run.json")]
    assert _run(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_help_needs_no_matplotlib():
    code = (
        "import sys; sys.argv = ['figures', '--help']\n"
        "from figures.__main__ import main\n"
        "try: main()\n"
        "finally: print([n for n in ('matplotlib', 'pandas', 'torch') if n in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "head run" in result.stdout
    assert result.stderr.strip() == "[]"


def test_a_file_as_out_is_refused_with_the_remedy(monkeypatch, capsys, run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    assert _run(monkeypatch, str(run_folder), "--out", str(tmp_path / "taken")) == 2
    assert capsys.readouterr().err == f"error: --out {tmp_path / 'taken'} is a file; name a folder\n"


def test_an_interruption_is_one_line_and_exit_code_130(monkeypatch, capsys, run_folder: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "draw_folder", interrupt)
    assert _run(monkeypatch, str(run_folder)) == 130
    assert capsys.readouterr().err == "\ninterrupted; the same command draws everything again\n"
