"""TODO_DOC figures/pictures.py."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image


@dataclass(frozen=True)
class Picture:
    """A figure in the page: its pixels as a data address, its size in pixels, its caption and its file's name."""

    name: str
    caption: str
    source: str
    width: int
    height: int


def picture(folder: Path, name: str, caption: str) -> Picture | None:
    """A PNG of the folder as lossless WebP, a third of its bytes and every pixel the same; None where there is none."""
    path = folder / f"{name}.png"
    if not path.is_file():
        return None
    buffer = io.BytesIO()
    with Image.open(path) as image:
        width, height = image.size
        image.convert("RGB").save(buffer, "WEBP", lossless=True, method=2)
    source = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return Picture(name, caption, source, width, height)
