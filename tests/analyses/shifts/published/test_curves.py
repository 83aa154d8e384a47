# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Curves and ranking: values by hand, by scipy and by loops, and the published numbers themselves."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import cosine
from scipy.stats import entropy

from analyses.shifts.published.curves import curve_means, curve_values, variance_ranking
from analyses.shifts.published.stored_maps import open_published
from interp.tables.errors import InputError
from interp.tables.published import CURVES
from tests.analyses.shifts.published.test_stored_maps import HEADS, LAYERS, TOKENS, attention, curve, head_file, one, write_folder

DATA = os.environ.get("PRIMED_HEADS_DATA")


def test_curves_of_uniform_and_one_hot_rows_by_hand(tmp_path: Path) -> None:
    n = 12
    uniform = np.tril(np.ones((n, n))) / np.arange(1, n + 1)[:, None]
    maps = {0: np.stack([uniform, np.eye(n)]), 1: np.stack([uniform, np.eye(n)[np.zeros(n, int)]])}
    model = one(write_folder(tmp_path / "raw-M", maps))
    heads = curve_values(model).set_index(["layer", "head", "curve"])["value"]
    assert heads[0, 0, "entropy"] == pytest.approx(sum(math.log(i) for i in range(1, n + 1)) / n)
    assert heads[0, 1, "entropy"] == 0
    assert math.copysign(1, heads[0, 1, "entropy"]) == 1
    assert heads[0, 0, "self_focus"] == pytest.approx(sum(1 / i for i in range(1, n + 1)) / n)
    assert (heads[0, 1, "self_focus"], heads[1, 1, "self_focus"]) == (1, pytest.approx(1 / n))
    assert heads[0, 0, "sparsity"] == pytest.approx(sum(range(1, 10)) / n**2)  # 1/10 itself is not over 0.1
    assert (heads[0, 1, "sparsity"], heads[1, 1, "sparsity"]) == (pytest.approx(1 / n), pytest.approx(1 / n))
    assert heads[1, 0, "layer_cosine"] == pytest.approx(1)
    assert heads[1, 1, "layer_cosine"] == pytest.approx(1 / n)  # one entry in common, both of length sqrt(n)
    assert (0, 0, "layer_cosine") not in heads.index


def test_curves_agree_with_scipy(tmp_path: Path) -> None:
    maps = attention(1, layers=4, heads=3, tokens=9)
    model = one(write_folder(tmp_path / "raw-AI", maps))
    assert (model.name, model.layers, model.n_heads, model.n_tokens) == ("AI", (0, 1, 2, 3), 3, 9)
    frame = curve_means(model)
    assert list(frame.columns) == ["model", "layer", "curve", "unit", "value", "sd", "n_heads"]
    assert len(frame) == 4 * 3 + 3
    assert not frame.isna().any().any()
    assert set(frame["model"]) == {"AI"}
    assert set(frame["n_heads"]) == {3}
    for row in frame.itertuples():
        layer, expected = int(str(row.layer)), []
        for head in range(3):
            a = maps[layer][head].astype(float)
            p = a / a.sum(1, keepdims=True)
            match row.curve:
                case "entropy":
                    expected.append(np.mean([entropy(line) for line in a]))
                case "self_focus":
                    expected.append(np.mean([p[i, i] for i in range(9)]))
                case "sparsity":
                    expected.append(sum(bool(x > 0.1) for x in p.ravel()) / 81)
                case _:
                    expected.append(1 - cosine(maps[layer - 1][head].astype(float).ravel(), a.ravel()))
        assert row.value == pytest.approx(np.mean(expected), abs=1e-12), row
        assert row.sd == pytest.approx(np.std(expected), abs=1e-12), row
        assert row.unit == CURVES[str(row.curve)].unit
    values = curve_values(model)
    assert list(values.columns) == ["model", "layer", "head", "curve", "value"]
    means = values.groupby(["layer", "curve"])["value"].mean()
    for row in frame.itertuples():
        assert means.loc[(int(str(row.layer)), str(row.curve))] == pytest.approx(row.value)


def test_rows_are_renormalized_for_three_curves_only(tmp_path: Path) -> None:
    """Each row scaled: entropy, focus and sparsity stay, cosine and variance move as those of the scaled maps do."""
    maps = attention(2)
    scale = np.linspace(0.5, 2, TOKENS, dtype=np.float32)[:, None]
    plain = one(write_folder(tmp_path / "a" / "raw-M", maps))
    scaled = one(write_folder(tmp_path / "b" / "raw-M", {0: maps[0], 1: maps[1] * scale, 2: maps[2]}))
    before, after = curve_means(plain), curve_means(scaled)
    for name in ("entropy", "self_focus", "sparsity"):
        assert curve(after, name) == pytest.approx(curve(before, name), abs=1e-6)
    moved = [1 - cosine(maps[0][h].ravel(), (maps[1][h] * scale).ravel()) for h in range(HEADS)]
    assert curve(after, "layer_cosine")[0] == pytest.approx(np.mean(moved), abs=1e-6)
    assert abs(curve(before, "layer_cosine")[0] - np.mean(moved)) > 1e-3
    ranked = variance_ranking([plain, scaled])
    assert set(ranked.loc[ranked["variance"] > 0, "layer"]) == {1}


@pytest.mark.parametrize("n_models", [2, 3, 7])
def test_variance_agrees_with_loops(tmp_path: Path, n_models: int) -> None:
    sets = [attention(seed) for seed in range(n_models)]
    for number, maps in enumerate(sets):
        write_folder(tmp_path / f"raw-{number}", maps)
    models = open_published(tmp_path)
    assert [m.name for m in models] == [str(n) for n in range(n_models)]
    found = variance_ranking(models)
    assert list(found.columns) == ["layer", "head", "variance", "rank", "n_models"]
    assert found["rank"].tolist() == list(range(1, LAYERS * HEADS + 1))
    assert found["variance"].is_monotonic_decreasing
    assert set(found["n_models"]) == {n_models}
    assert not found.duplicated(["layer", "head"]).any()
    for row in found.itertuples():
        total = 0.0
        for i in range(TOKENS):
            for j in range(TOKENS):
                seen = [float(maps[int(str(row.layer))][int(str(row.head)), i, j]) for maps in sets]
                total += sum((x - sum(seen) / n_models) ** 2 for x in seen) / n_models
        assert row.variance == pytest.approx(total / TOKENS**2, rel=1e-9)


def test_equal_variances_rank_by_layer_and_head(tmp_path: Path) -> None:
    maps = attention(4)
    changed = {**maps, 2: maps[2].copy()}
    changed[2][1] = changed[2][1] * 0.5
    found = variance_ranking([one(write_folder(tmp_path / "raw-a", maps)), one(write_folder(tmp_path / "raw-b", changed))])
    assert list(zip(found["layer"], found["head"], strict=True)) == [(2, 1), (0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    assert (found["variance"][1:] == 0).all()


def test_a_variance_needs_two_models(tmp_path: Path) -> None:
    model = one(write_folder(tmp_path / "raw-AI", attention(0)))
    for models in ([], [model]):
        with pytest.raises(InputError, match="needs two or more"):
            variance_ranking(models)


def as_published(root: Path) -> dict[int, list[np.ndarray]]:
    """Return the maps as the published code reads them, in float32."""
    layers = sorted(int(p.name.removeprefix("layer")) for p in root.glob("layer*"))
    return {n: [np.load(head_file(root, n, h)) for h in range(len(list((root / f"layer{n}").glob("*/*.npy"))))] for n in layers}


@pytest.mark.skipif(DATA is None, reason="PRIMED_HEADS_DATA does not say where the published maps are")
def test_published_numbers() -> None:
    """Compare with the published definitions, reimplemented with the published code's functions (scipy) and precision."""
    folder = Path(DATA or "") / "published" / "attention"
    models = open_published(folder)
    assert [(m.name, len(m.layers), m.n_heads, m.n_tokens) for m in models] == [("AI", 31, 32, 65), ("base", 31, 32, 65)]
    read = {m.name: as_published(folder / f"raw-{m.name}") for m in models}
    for model in models:
        found = curve_means(model).set_index(["curve", "layer"])["value"]
        for layer, maps in read[model.name].items():
            p = [a / a.sum(axis=-1, keepdims=True) for a in maps]
            assert found["entropy", layer] == pytest.approx(np.mean([np.mean(entropy(x, axis=-1)) for x in p]), abs=1e-5)
            assert found["self_focus", layer] == pytest.approx(np.mean([np.mean(np.diag(x)) for x in p]), abs=1e-5)
            assert found["sparsity", layer] == pytest.approx(np.mean([np.mean(x > 0.1) for x in p]), abs=1e-5)
            if layer > 0:
                pairs = zip(read[model.name][layer - 1], maps, strict=True)
                cosines = [1 - cosine((b / b.sum()).ravel(), (a / a.sum()).ravel()) for b, a in pairs]
                assert found["layer_cosine", layer] == pytest.approx(np.mean(cosines), abs=1e-5)
        if model.name == "AI":
            stated = {0: 1.5435, 2: 0.5268, 12: 1.8647, 25: 0.6068, 30: 1.3261}
            assert {layer: round(found["entropy", layer], 4) for layer in stated} == stated
    ranked = variance_ranking(models)
    expected = {
        (layer, head): float(np.mean(np.var(np.stack([read["AI"][layer][head], read["base"][layer][head]]), axis=0)))
        for layer in range(31)
        for head in range(32)
    }
    for row in ranked.itertuples():
        assert row.variance == pytest.approx(expected[int(str(row.layer)), int(str(row.head))], rel=1e-4, abs=1e-9)
    top = sorted(expected, key=lambda key: -expected[key])[:10]
    assert list(zip(ranked["layer"], ranked["head"], strict=True))[:10] == top
