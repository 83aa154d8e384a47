"""The built wheel runs from another folder: data files and templates are in it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content in a folder of its own, as pip would install it."""
    from hatchling.builders.wheel import WheelBuilder

    built = tmp_path_factory.mktemp("wheel")
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(built), versions=["standard"])
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


@pytest.fixture
def run(installed: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`(*arguments)` runs Python in an empty folder with the wheel's content before every other installation of the project."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)

    return call


def test_the_wheel_is_what_runs(run: Callable[..., subprocess.CompletedProcess[str]], installed: Path) -> None:
    done = run(
        "-c", "import interp, distill, analyses, figures; print(interp.__file__, distill.__file__, analyses.__file__, figures.__file__)"
    )
    assert done.returncode == 0, done.stderr
    assert all(path.startswith(str(installed)) for path in done.stdout.split())


def test_the_wheel_has_every_file_of_the_packages(installed: Path) -> None:
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=True).stdout.splitlines()
    wanted = {name for name in tracked if name.split("/")[0] in ("interp", "distill", "analyses", "figures")}
    assert wanted
    assert {name for name in wanted if not (installed / name).is_file()} == set()


@pytest.mark.parametrize("command", ["analyses.heads", "analyses.shifts", "analyses.examples", "analyses.grades", "distill", "figures"])
def test_help_runs_from_another_folder(run: Callable[..., subprocess.CompletedProcess[str]], command: str) -> None:
    done = run("-m", command, "--help")
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


def test_heads_with_its_report_and_one_problem_with_its_page_run_from_another_folder(
    run: Callable[..., subprocess.CompletedProcess[str]], checkpoint: Path, tmp_path: Path
) -> None:
    measures = ("--measures", "entropy_nats", "numeric_mass")
    done = run("-m", "analyses.heads", "--model", checkpoint, "--limit", 3, "--device", "cpu", "--out", "heads", *measures)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "heads" / "report.html").stat().st_size > 10_000
    done = run("-m", "analyses.examples", "--model", "heads", "--text", "reference", "--device", "cpu", "--no-figures", "--out", "one")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "one" / "example.html").stat().st_size > 10_000
