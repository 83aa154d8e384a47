"""Runs are compared only if they read the same tokens with the same heads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from analyses.shifts.alignment import align
from interp.tables.errors import InputError
from interp.tables.heads import HeadValues, ModelRun
from tests.analyses.shifts.test_differences import MEASURES, inputs, run, texts


def test_runs_are_restricted_to_common_measures() -> None:
    one, other = run("a", texts(4)), run("b", texts(4))
    fewer = replace(other, values=replace(other.values, measures=MEASURES[1:], values=other.values.values[:, :, :, 1:]))
    first, second = align([one, fewer])
    assert first.values.examples == second.values.examples == (0, 1, 2, 3)
    assert first.values.measures == ("numeric_mass",)
    np.testing.assert_array_equal(first.values.values, one.values.values[:, :, :, 1:])
    with pytest.raises(InputError, match="a has 4 examples, c 6: example 4 is in c and not in a"):
        align([one, run("c", texts(6))])


def test_runs_that_do_not_correspond_are_refused() -> None:
    one = run("a", texts(4))
    other = run("b", texts(4))
    with pytest.raises(InputError, match="1 model to compare \\(a\\)"):
        align([one])
    with pytest.raises(InputError, match="two runs have a model called 'a'"):
        align([one, one])
    moved = replace(other, values=replace(other.values, examples=(10, 11, 12, 13)))
    with pytest.raises(InputError, match="no example is common to a, b"):
        align([one, moved])
    measured = replace(other, values=replace(other.values, measures=("x", "y")))
    with pytest.raises(InputError, match="no measure is common"):
        align([one, measured])
    with pytest.raises(InputError, match=r"example 0, position 0: 't0' \(question\) against 't0'.*--match"):
        align([one, replace(other, inputs=inputs(4, offset=5))])
    shorter = other.inputs[~((other.inputs["example"] == 3) & (other.inputs["position"] == 3))]
    with pytest.raises(InputError, match=r"example 3, position 3: 't3' \(response\) against nothing more"):
        align([one, replace(other, inputs=shorter)])
    wide = HeadValues("w", (0, 1, 2, 3), (0, 1), 4, MEASURES, texts(4)[:, :2])
    with pytest.raises(InputError, match=r"w has 2 layers of 4 heads, a 3 of 4.*--match"):
        align([one, ModelRun(wide, inputs(4), "w")])
