"""figures.folder: reading run.json, names that were asked for, parts of file names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from figures.folder import file_parts, folder_kind, known_names, read_about
from interp.tables.errors import InputError


def write(folder: Path, content: object) -> Path:
    (folder / "run.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_names_of_version_0_1_are_translated(tmp_path: Path):
    about = read_about(write(tmp_path, {"text": "gold", "measures": [{"way": "blocked"}]}), ("text",), (None,), "a command")
    assert about == {"text": "reference", "measures": [{"backend": "blocked"}]}


def test_the_kind_of_a_folder_is_read(tmp_path: Path):
    assert folder_kind(write(tmp_path, {"kind": "shifts"})) == "shifts"
    assert folder_kind(write(tmp_path, {})) is None


def test_errors_name_the_cause(tmp_path: Path):
    with pytest.raises(InputError, match="no such folder"):
        folder_kind(tmp_path / "absent")
    with pytest.raises(InputError, match=r"no run\.json"):
        folder_kind(tmp_path)
    with pytest.raises(InputError, match="a JSON object is needed, found list"):
        folder_kind(write(tmp_path, []))
    with pytest.raises(InputError, match="kind is 'grades'; a command writes example, contrast"):
        read_about(write(tmp_path, {"kind": "grades"}), (), ("example", "contrast"), "a command")
    with pytest.raises(InputError, match="missing text, chat; write the folder again with a command"):
        read_about(write(tmp_path, {"kind": "example"}), ("kind", "text", "chat"), ("example",), "a command")
    (tmp_path / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="not readable as JSON"):
        folder_kind(tmp_path)


def test_an_unknown_name_raises_with_the_known_ones():
    assert known_names("measure", ["b"], ["a", "b"]) == ["b"]
    with pytest.raises(InputError, match="unknown measure 'c'; known: a, b"):
        known_names("measure", ["a", "c"], ["a", "b"])


def test_parts_of_file_names_are_distinct_and_safe():
    parts = file_parts(["plain-1.5", "a/b", "a b", "<>", "שלום"])
    assert parts == {"plain-1.5": "plain-1.5", "a/b": "a-b-1", "a b": "a-b-2", "<>": "model", "שלום": "שלום"}
