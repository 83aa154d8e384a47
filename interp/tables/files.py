"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(place: Path, text: str) -> None:
    """Writes a text under another name beside its place, and renames it: whoever reads it reads all of it."""
    draft = place.with_name(f".{place.name}.draft-{os.getpid()}")
    try:
        draft.write_text(text, "utf-8")
        draft.replace(place)
    finally:
        draft.unlink(missing_ok=True)
