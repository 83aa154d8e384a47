"""What pages share: figures embedded as data, and the template environment."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from figures.drawing.entry import DrawnFigure


@dataclass(frozen=True)
class Picture:
    """A figure in a page.

    Attributes:
        name: of its files, without extension.
        caption: below the figure.
        section: of the page.
        source: the pixels, as a data address.
        width: in pixels.
        height: in pixels.
    """

    name: str
    caption: str
    section: str
    source: str
    width: int
    height: int


def pictures(drawn: Iterable[DrawnFigure]) -> list[Picture]:
    """Return figures as lossless WebP, which keeps every pixel and takes a third of the bytes of PNG."""
    found = []
    for figure in drawn:
        buffer = io.BytesIO()
        with Image.open(figure.files[0]) as image:
            width, height = image.size
            image.convert("RGB").save(buffer, "WEBP", lossless=True, method=2)
        source = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
        found.append(Picture(figure.name, figure.caption, figure.section, source, width, height))
    return found


def page_environment() -> Environment:
    """Return the environment of the pages' templates: every value is escaped, and an undefined one is an error."""
    return Environment(loader=PackageLoader("figures"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def plain_value(value: object) -> str:
    """Return a value of run.json as text: parts of lists and dicts are separated by commas, null parts of dicts are left out."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain_value(part)}" for key, part in value.items() if part is not None)
    if isinstance(value, list):
        return ", ".join(plain_value(part) for part in value)
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def listed_facts(facts: dict[str, object]) -> list[tuple[str, str]]:
    """Return the facts that are known as (name, text); null and empty values are left out."""
    return [(name, plain_value(value)) for name, value in facts.items() if value not in (None, "", {}, [])]
