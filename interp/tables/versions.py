"""Which software made a result."""

from __future__ import annotations

import importlib.metadata
import platform

PACKAGES = ("torch", "transformers", "peft", "accelerate", "numpy", "pandas", "pyarrow")


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for name in ("primed-heads", *PACKAGES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
