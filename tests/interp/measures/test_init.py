"""`interp.measures` names today's import path for whoever imports a name that version 0.1 defined there."""

from __future__ import annotations

import importlib

import pytest

import interp.measures


@pytest.mark.parametrize("name", ["Measure", "MeasureInfo", "MEASURES", "load_measures", "Rows", "Block", "key_sets"])
def test_a_name_of_version_0_1_reports_the_new_import(name: str) -> None:
    message = r"interp\.measures has moved; import from interp \(`from interp import Measure, MeasureInfo`\)"
    with pytest.raises(ImportError, match=message) as caught:
        exec(f"from interp.measures import {name}")
    assert caught.value.name == "interp.measures"
    with pytest.raises(ImportError, match=message):
        getattr(interp.measures, name)


def test_other_names_are_modules_or_missing() -> None:
    from interp.measures import catalog

    assert catalog is importlib.import_module("interp.measures.catalog")
    assert not hasattr(interp.measures, "nothing")
    with pytest.raises(AttributeError, match=r"module 'interp\.measures' has no attribute 'nothing'"):
        _ = interp.measures.nothing
