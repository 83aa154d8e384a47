"""`from interp import ...`: names come from the modules that define them, on first use; paths of version 0.1 name the new ones."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import interp


@pytest.mark.parametrize("name", interp.__all__)
def test_a_name_comes_from_the_module_that_defines_it(name: str) -> None:
    found = getattr(interp, name)
    assert found is getattr(importlib.import_module(interp._HOMES[name]), name)
    assert getattr(found, "__module__", interp._HOMES[name]) == interp._HOMES[name]


def test_every_name_is_listed() -> None:
    assert sorted(interp._HOMES) == sorted(interp.__all__)
    assert set(interp.__all__) <= set(dir(interp))


def test_importing_the_package_needs_neither_torch_nor_an_upper_package() -> None:
    code = (
        "import sys, interp; from interp import MeasureInfo; "
        "heavy = {'torch', 'transformers', 'matplotlib', 'analyses', 'distill', 'figures'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(interp, "nothing")
    with pytest.raises(AttributeError, match=r"module 'interp' has no attribute 'nothing'; it has MEASURES, Checkpoint"):
        _ = interp.nothing
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec("from interp import nothing")


@pytest.mark.parametrize(
    ("statement", "new"),
    [
        ("import interp; interp.show", r"from analyses\.examples import show"),
        ("from interp import show", r"from analyses\.examples import show"),
        ("import interp.table", r"from interp import MeasureInfo.*interp\.tables\.schema"),
        ("from interp.table import MeasureInfo", r"from interp import MeasureInfo.*interp\.tables\.schema"),
        ("from interp import table", r"from interp import MeasureInfo.*interp\.tables\.schema"),
        ("from distill.trajectory import read_trajectory", r"distill\.training\.trajectory"),
    ],
)
def test_an_import_path_of_an_earlier_version_names_the_new_one(statement: str, new: str) -> None:
    with pytest.raises(ImportError, match=rf"has moved; import from .*{new}"):
        exec(statement)


def test_the_new_paths_hold_what_the_old_ones_did() -> None:
    from distill.training import trajectory
    from interp.tables import heads, schema

    assert all(hasattr(schema, name) for name in ("MeasureInfo", "TableSchema", "REGIONS", "ROLES", "read", "write", "validate"))
    assert all(hasattr(heads, name) for name in ("HEADS", "INPUTS", "HeadValues", "read_values"))
    assert all(hasattr(trajectory, name) for name in ("read_trajectory", "checkpoint_folders", "record_checkpoints"))
