from __future__ import annotations

from interp.tables.versions import versions


def test_versions_name_what_decides_the_numbers() -> None:
    import torch

    found = versions()
    assert found["torch"] == torch.__version__
    assert {"python", "primed-heads", "transformers", "peft", "numpy"} <= set(found)
