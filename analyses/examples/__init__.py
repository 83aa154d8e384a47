"""Inspect one problem: `python -m analyses.examples`, or `from analyses.examples import show` in a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analyses.examples.notebook import show

__all__ = ["show"]


def __getattr__(name: str) -> object:
    if name == "show":  # imported on first use: the page needs torch, --help does not
        from analyses.examples import notebook

        return notebook.show
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
