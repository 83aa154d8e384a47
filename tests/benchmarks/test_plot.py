"""The figure of the benchmark of recording."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path


def test_the_figure_distinguishes_does_not_fit_from_not_measured() -> None:
    from benchmarks.plot import draw

    times = [{"shape": shape, "ratios": {"heads": [1.5]}} for shape in ("2x32", "1x8192")]
    memory = [{"shape": "1x8192", "peak_mb": {"plain": 10.0, "heads": 30.0}}]
    gsm8k = {"methods": {"heads": {"seconds": 3.0, "plain_seconds": 2.0}}}
    left, right = draw({"times": times, "memory": memory, "problems": gsm8k}).axes
    shown = [text.get_text() for text in left.texts]
    assert shown == ["1.50"] * 3 + ["not measured", "does not fit", "not measured"] * 2
    assert [text.get_text() for text in right.texts] == ["20.00", "over 8,000", "over 8,000"]


def test_a_figure_that_cannot_be_drawn_or_written_is_refused(refusal: Callable[..., str], tmp_path: Path) -> None:
    saved, blocked = tmp_path / "heads.json", tmp_path / "file"
    blocked.touch()
    saved.write_text('{"times": [{"shape": "2x32", "ratios": {"heads": [1.5]}}]}', "utf-8")
    assert "holds no memory" in refusal("plot", saved, "--out", tmp_path)
    saved.write_text("[1]", "utf-8")
    assert "holds no times and no memory" in refusal("plot", saved, "--out", tmp_path)
    saved.write_text(
        '{"times": [{"shape": "2x32", "ratios": {"heads": [1.5]}}], "memory": [{"shape": "2x32", "peak_mb": {"plain": 1, "heads": 2}}]}',
        "utf-8",
    )
    assert f"--out {blocked / 'below'} cannot be written to" in refusal("plot", saved, "--out", blocked / "below")


def test_the_saved_numbers_of_the_docs_can_be_drawn() -> None:
    """Version 0.1 wrote docs/images/performance.json, which calls the methods "ways"."""
    from benchmarks.plot import draw

    saved = json.loads((Path(__file__).parent.parent.parent / "docs" / "images" / "performance.json").read_text("utf-8"))
    left, _ = draw(saved).axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["8 × 224", "1 × 2048", "1 × 8192", "GSM8K test"]
    assert "1.03" in [text.get_text() for text in left.texts]
