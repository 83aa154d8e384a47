from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from distill.teachers.catalog import TEACHERS, SignalKind
from distill.teachers.options import TeacherConfig
from interp.tables.errors import StudyError

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", TEACHERS)
def test_every_kind_is_a_teacher(name: str) -> None:
    kind = TEACHERS[name]
    opened = pkgutil.resolve_name(kind.path)
    for method in ("answer", "score_prompts", "head", "model_and_head", "close"):
        assert callable(getattr(opened, method)), method
    assert hasattr(opened, "tokenizer")
    assert kind.description
    assert kind.signals
    assert set(kind.signals) <= set(get_args(SignalKind))


def test_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(StudyError, match=r"unknown teacher\.kind 'tranformers' \(did you mean transformers\?\); known: transformers, vllm"):
        TeacherConfig(kind="tranformers")


def test_catalog_and_options_load_no_heavy_packages() -> None:
    code = "import sys, distill.teachers.options; print([m for m in ('torch', 'numpy', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
