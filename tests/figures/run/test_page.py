"""figures.run.page: one page without network, in which hostile strings are escaped."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser

import numpy as np
import pytest

from figures.run.page import LISTED_HEADS, ranked_heads, run_page
from figures.run.read import HeadRun

HOSTILE = """</script><script>alert("x")</script><img src=x onerror=alert(1)>{{ 7 * 7 }}'&"""


class Page(HTMLParser):
    """Tags with their attributes, and the texts of scripts."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "script":
            self.scripts.append(data)


@pytest.fixture
def html_of(infos, sample_run, small_heads, sample_inputs) -> Callable[..., str]:
    """The page of a head run without figures; a test may change the run and the tables before."""
    return lambda inputs=sample_inputs: run_page(HeadRun(sample_run, small_heads, inputs, infos), [])


def _ranking(page: Page) -> dict:
    return json.loads(page.scripts[0])


def test_hostile_strings_are_escaped(html_of, sample_run, sample_inputs):
    sample_run["model"]["name"] = HOSTILE
    sample_run["model"][HOSTILE] = HOSTILE
    sample_run["command"] = HOSTILE
    sample_run["warnings"] = [HOSTILE]
    for measure in sample_run["measures"]:
        measure.update(title=HOSTILE, unit=HOSTILE, formula=HOSTILE, backend=HOSTILE)
    sample_inputs["token"] = HOSTILE
    page = Page(html_of())
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 2
    assert "img" not in tags
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert _ranking(page)["measures"][0]["title"] == HOSTILE


def test_the_page_loads_nothing(html_of):
    html = html_of()
    for tag, attributes in Page(html).tags:
        for name in ("src", "href", "action", "srcset", "poster", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, name, value)
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttpRequest", html)
    assert "default-src 'none'" in html


def test_the_page_states_what_was_run(html_of):
    html = html_of()
    for text in ("bfloat16", "tiny/model-135M", "question and reference solution", "applied", "left out", "blocked"):
        assert text in html
    assert "python -m analyses.heads --model tiny/model-135M" in html


def test_optional_keys_may_be_absent(html_of, sample_run, sample_inputs):
    for key in ("versions", "seed", "timings", "memory", "warnings", "n_layers", "n_heads"):
        del sample_run[key]
    sample_run["model"] = {"name": "m"}
    for measure in sample_run["measures"]:
        del measure["backend"]
    html = html_of(inputs=sample_inputs.iloc[:0])
    assert "No warnings." in html
    assert "not stated" in html


def test_the_sample_marks_every_role(html_of, sample_inputs):
    page = Page(html_of())
    titles = [attributes.get("title") or "" for _, attributes in page.tags if attributes.get("title")]
    assert len(titles) == len(sample_inputs)
    for role in ("special", "question number", "operand", "intermediate result", "final answer", "operator"):
        assert any(role in title for title in titles)


def test_headers_can_be_used_from_the_keyboard(html_of):
    tags = Page(html_of()).tags
    sortable = [index for index, (tag, attributes) in enumerate(tags) if tag == "th" and "aria-sort" in attributes]
    assert len(sortable) == 7
    assert all(tags[index + 1][0] == "button" for index in sortable)
    assert sum(tags[index][1]["aria-sort"] == "descending" for index in sortable) == 1


def test_ranked_heads_match_the_table(head_table, sample_run):
    heads = head_table(6, 5)
    ranked = {measure["name"]: measure for measure in ranked_heads(heads, sample_run["measures"])}
    rows = heads[(heads["measure"] == "numeric_enrichment") & (heads["region"] == "response")]
    chosen = ranked["numeric_enrichment"]["regions"]["response"]
    assert (chosen["defined"], chosen["undefined"]) == (27, 3)
    assert len(chosen["highest"]) == len(chosen["lowest"]) == LISTED_HEADS
    np.testing.assert_allclose([row[2] for row in chosen["highest"]], rows["value"].nlargest(LISTED_HEADS), rtol=1e-5)
    np.testing.assert_allclose([row[2] for row in chosen["lowest"]], rows["value"].nsmallest(LISTED_HEADS), rtol=1e-5)
    assert ranked["numeric_mass_final"]["regions"]["question"]["highest"] == []


def _luminance(color: str) -> float:
    parts = [int(color[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_texts_have_contrast_in_both_modes(html_of):
    html = html_of()
    blocks = re.findall(r":root \{(.*?)\}", html, re.DOTALL)[:2]
    for block in blocks:
        colors = dict(re.findall(r"--([a-z_-]+): (#[0-9a-f]{6})", block))
        grounds = ["page", "panel", "warn-page", "special", "question_number", "operand", "intermediate_result"]
        pairs = [("ink", ground) for ground in [*grounds, "final_answer", "operator"]]
        pairs += [("soft", "page"), ("soft", "panel"), ("link", "page")]
        for front, back in pairs:
            dark, light = sorted((_luminance(colors[front]), _luminance(colors[back])))
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (front, back)


def test_a_page_without_figures_has_no_images(html_of):
    assert "<img" not in html_of()
