"""This process among those that accelerate or torchrun started."""

from __future__ import annotations

import os


def is_first_process() -> bool:
    """Return whether this is the process that prints and writes what all processes share."""
    return int(os.environ.get("RANK", "0")) == 0


def has_other_processes() -> bool:
    """Return whether a launcher started more than one process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1
