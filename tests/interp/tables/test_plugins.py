"""Families of members: the project's own and those of installed packages."""

from __future__ import annotations

from pathlib import Path

import pytest

from interp.tables.errors import InputError
from interp.tables.plugins import chosen, members, nearest

OWN = {"one": 1, "two": 2}


def install(folder: Path, entries: str) -> None:
    """Write the metadata of a package that offers numbers."""
    info = folder / "numbers_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: numbers-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[primed_heads.numbers]\n{entries}\n")
    (folder / "numbers_plugin.py").write_text("THREE = 3\nWORD = 'three'\n")


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)


def test_an_installed_member_comes_after_the_own_ones(tmp_path: Path) -> None:
    install(tmp_path, "three = numbers_plugin:THREE")
    assert members("numbers", OWN, int) == {"one": 1, "two": 2, "three": 3}


def test_without_plugins_the_own_members_are_all(tmp_path: Path) -> None:
    assert members("numbers", OWN, int) == OWN


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("one = numbers_plugin:THREE", "one is defined twice"),
        ("three = numbers_plugin:MISSING", "cannot be imported"),
        ("three = no_such_module:THREE", "cannot be imported"),
        ("three = numbers_plugin:WORD", "is a str; a int is needed"),
    ],
)
def test_a_member_that_cannot_be_used_is_refused(tmp_path: Path, entry: str, message: str) -> None:
    install(tmp_path, entry)
    with pytest.raises(InputError, match=message):
        members("numbers", OWN, int)


def test_members_are_chosen_in_the_order_named_and_once() -> None:
    assert list(chosen("numbers", OWN, ["two", "one", "two"])) == ["two", "one"]
    assert chosen("numbers", OWN, None) == OWN


def test_an_unknown_name_is_refused_with_the_nearest_and_all_known_names() -> None:
    with pytest.raises(InputError, match=r"'onne' is not known \(did you mean one\?\); known: one, two"):
        chosen("numbers", OWN, ["two", "onne"])
    with pytest.raises(InputError, match="known: one, two"):
        chosen("numbers", OWN, [])


def test_no_name_is_near_to_something_else() -> None:
    assert nearest("xylophone", OWN) == ""
