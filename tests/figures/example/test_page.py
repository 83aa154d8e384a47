"""figures.example.page: every text is escaped, and the packed numbers match the tables."""

from __future__ import annotations

import base64
import json
import re
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import figures
from figures.example.packing import PROBABILITY_STEPS, STANDING_FIELDS, percent
from figures.example.page import escape_formats, example_page, text_blocks
from figures.example.read import Example, read_example
from interp.tables.errors import InputError
from interp.tables.example import STEP_QUANTITIES, STRONG
from interp.tables.schema import REGIONS, ROLES
from tests.figures.example.test_packing import unpack_edges, unplane

HOSTILE = """</script><script>alert("x")</script><img src=x onerror=alert(1)>{{ 7 * 7 }}'&<!--"""
WATCHED = [(0, 1), (2, 3)]


class Page(HTMLParser):
    """Tags with their attributes, the texts of scripts by id, and the text of every token, text by text."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.texts: list[list[str]] = []
        self.script: str | None = None
        self.in_token = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if attributes.get("class") == "text":
            self.texts.append([])
        if tag == "span" and (attributes.get("class") or "").startswith("t "):
            self.texts[-1].append("")
            self.in_token = True
        if tag == "script":
            self.script = attributes.get("id") or ""

    def handle_endtag(self, tag):
        if tag == "span":
            self.in_token = False
        if tag == "script":
            self.script = None

    def handle_data(self, data):
        if self.script is not None:
            self.scripts[self.script] = data
        elif self.in_token:
            self.texts[-1][-1] += data

    @property
    def data(self) -> dict:
        return json.loads(self.scripts["data"])

    def pack(self, name: str) -> bytes:
        return zlib.decompress(base64.b64decode(self.scripts[f"pack-{name}"], validate=True))


@pytest.fixture
def example(example_folder) -> Example:
    """Two models, two of twelve heads watched."""
    return read_example(example_folder(watched=WATCHED))


def test_hostile_texts_are_escaped(example_folder):
    folder = example_folder(question=HOSTILE + " 3 boxes", answers=[HOSTILE + " 3*12=36\n#### 36"] * 2)
    example = read_example(folder)
    run = example.run
    run["command"] = run["problem"]["answer"] = run["problem"]["source"] = HOSTILE
    run["warnings"] = [HOSTILE]
    for measure in run["measures"]:
        measure.update(title=HOSTILE, unit=HOSTILE, formula=HOSTILE)
    for model in run["models"]:
        model["identity"] = {HOSTILE: HOSTILE}
        model["grade"]["extracted"] = model["compared_with"]["source"] = HOSTILE
        for step in model["steps"]:
            step["text"] = HOSTILE
            step["sums"] = [{"written": HOSTILE, "result": HOSTILE, "value": HOSTILE, "right": False}]
    example.next["token"] = HOSTILE
    html = example_page(example)
    page = Page(html)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == len(page.scripts)
    assert "img" not in tags
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.data["measures"][0]["title"] == HOSTILE
    assert "<" not in page.scripts["data"]
    assert ["".join(text) for text in page.texts] == example.tokens.groupby("model", sort=False)["shown"].agg("".join).tolist()


def test_hostile_model_names_are_escaped(example_folder):
    example = read_example(example_folder())
    for table in (example.tokens, example.edges, example.standing, example.steps, example.next):
        table["model"] = table["model"].astype(str).replace("model-0", HOSTILE)
    example.run["models"][0]["name"] = HOSTILE
    page = Page(example_page(example))
    assert [tag for tag, _ in page.tags].count("script") == len(page.scripts)
    assert "img" not in [tag for tag, _ in page.tags]
    assert page.data["models"][0]["name"] == HOSTILE


def test_the_page_loads_nothing(example):
    html = example_page(example)
    for tag, attributes in Page(html).tags:
        for name in ("src", "href", "action", "srcset", "poster", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, name, value)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|WebSocket|sendBeacon", html)
    assert set(re.findall(r"https?://[^\s\"']+", html)) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in html


def test_style_and_script_are_embedded_unchanged(example):
    html = example_page(example)
    folder = Path(figures.__file__).parent / "templates"
    for name in ("page.css", "example.css", "example.js"):
        assert (folder / name).read_text(encoding="utf-8").strip() in html


def test_packed_attention_matches_the_table(example):
    page = Page(example_page(example))
    for number, model in enumerate(page.data["models"]):
        found, seen = {}, []
        for block, (heads, whole) in enumerate(model["blocks"]):
            entries, rest = unpack_edges(page.pack(f"edges-{number}-{block}"), heads, model["n"], whole)
            found |= entries
            seen += [tuple(head) for head in heads]
            assert whole == ([tuple(head) for head in heads] in [[head] for head in WATCHED])
            if rest is not None:
                rows = example.edges[(example.edges["model"] == model["name"]) & (example.edges["layer"] == heads[0][0])]
                rows = rows[rows["head"] == heads[0][1]]
                sums = rows["probability"].astype(float).groupby(rows["query"]).sum().reindex(range(model["n"]), fill_value=0)
                np.testing.assert_allclose(rest / PROBABILITY_STEPS, (1 - sums).clip(0), atol=1 / PROBABILITY_STEPS)
        assert sorted(seen) == [(layer, head) for layer in range(3) for head in range(4)]
        rows = example.edges[example.edges["model"] == model["name"]]
        expected = {
            (int(layer), int(head), int(query), int(key)): round(float(p) * PROBABILITY_STEPS)
            for layer, head, query, key, p in rows[["layer", "head", "query", "key", "probability"]].itertuples(index=False)
        }
        assert found.keys() == expected.keys()
        assert all(abs(found[entry] - expected[entry]) <= 1 for entry in expected)


def test_packed_measures_and_steps_match_the_tables(example):
    page = Page(example_page(example))
    measures = [measure["name"] for measure in example.run["measures"]]
    for number, model in enumerate(page.data["models"]):
        size = len(STANDING_FIELDS) * len(measures) * len(REGIONS) * 12
        values, rest = unplane(page.pack(f"standing-{number}"), "<f4", size)
        assert rest == b""
        values = values.reshape(len(STANDING_FIELDS), len(measures), len(REGIONS), 12)
        rows = example.standing[example.standing["model"] == model["name"]]
        for row in rows.to_dict("records"):
            place = measures.index(row["measure"]), REGIONS.index(row["region"]), row["layer"] * 4 + row["head"]
            mine = [values[(field, *place)] for field in range(4)]
            np.testing.assert_allclose(mine, [row[field] for field in STANDING_FIELDS], rtol=2e-7)
            assert [percent(float(x)) for x in mine[:2]] == [percent(row[field]) for field in STANDING_FIELDS[:2]]
        size = model["steps"] * len(STEP_QUANTITIES) * 12
        means, rest = unplane(page.pack(f"steps-{number}"), "<f4", size)
        counts, rest = unplane(rest, "<u4", size)
        assert rest == b""
        rows = example.steps[example.steps["model"] == model["name"]]
        assert len(rows) == size
        for row in rows.to_dict("records"):
            place = (row["step"] * len(STEP_QUANTITIES) + STEP_QUANTITIES.index(row["quantity"])) * 12 + row["layer"] * 4 + row["head"]
            np.testing.assert_allclose(means[place], row["value"], rtol=2e-7)
            assert np.isnan(row["value"]) or percent(float(means[place])) == percent(row["value"])
            assert counts[place] == row["n_queries"]


def test_expected_tokens_match_the_table(example):
    page = Page(example_page(example))
    for model in page.data["models"]:
        rows = example.next[example.next["model"] == model["name"]]
        assert {int(position) for position in model["expected"]} == set(rows["position"])
        for position, (probability, rank, others) in model["expected"].items():
            mine = rows[rows["position"] == int(position)]
            assert [(probability, rank)] == mine.loc[mine["is_read"], ["probability", "rank"]].apply(tuple, axis=1).tolist()
            assert [tuple(other) for other in others] == mine[mine["rank"] <= 5][["token", "probability"]].apply(tuple, axis=1).tolist()


def test_the_same_example_gives_the_same_page(example_folder):
    folder = example_folder(watched=WATCHED)
    assert example_page(read_example(folder)) == example_page(read_example(folder))


@pytest.mark.parametrize("answers", [("3*12=36\n#### 36",), ("3*12=36\n#### 36", "3*12=35\n#### 35", "#### 7")])
def test_every_model_has_a_text(example_folder, answers):
    example = read_example(example_folder(answers=answers, watched=WATCHED))
    html = example_page(example)
    page = Page(html)
    assert ["".join(text) for text in page.texts] == example.tokens.groupby("model", sort=False)["shown"].agg("".join).tolist()
    assert ('id="difference"' in html) == (len(answers) > 1)
    assert ('id="minus"' in html) == (len(answers) > 1)


def test_a_page_without_comparison_and_watched_heads(example_folder):
    example = read_example(example_folder(compared=False, watched=[]))
    html = example_page(example)
    page = Page(html)
    assert [model["compared"] for model in page.data["models"]] == [False, False]
    assert not any(whole for model in page.data["models"] for _, whole in model["blocks"])
    assert "no run to compare with" in html
    assert ">no run<" in html


def test_a_page_without_numbers_and_steps(example_folder):
    example = read_example(example_folder(question="Why?", answers=("Because.", "So.")))
    for model in example.run["models"]:
        model.update(steps=[], grade=None, compared_with=None)
    example = replace(example, steps=example.steps.iloc[:0], tokens=example.tokens.assign(step=-1))
    assert example.next.empty
    html = example_page(example)
    assert "the text has no numbers" in html
    assert "The text has no steps." in html
    assert html.count("– no reference") == 2
    assert "step 1" not in html


def test_wrong_sums_and_grades_are_written_out(example):
    wrong = {"written": "35+1250", "result": "1285", "value": "1286", "right": False}
    unknown = {"written": "1/0", "result": "7", "value": None, "right": None}
    example.run["models"][1]["steps"][1]["sums"] = [wrong, unknown]
    example.run["models"][0]["steps"][0]["sums"] = [{"written": "3*12", "result": "36", "value": "36", "right": True}]
    example.run["models"][1]["steps"][0]["sums"] = []
    html = re.sub(r"</?bdi>", "", example_page(example))
    assert html.count('class="sum"') == 1
    assert "✗ 35+1250 = 1285 is wrong; the result is 1286" in html
    assert "✓ right" in html
    assert "✗ wrong" in html


def test_every_character_of_a_text_is_shown(example_folder):
    text = "שלוש 3 تفاح 🙂 3*12=36\r\n\tend\x00 \u2028\n#### 36"
    example = read_example(example_folder(question="כמה? كم؟ 👩‍👩‍👧", answers=(text,)))
    html = example_page(example)
    html.encode("utf-8")
    tokens = example.tokens
    assert (tokens["shown"] == "").any()
    assert html.count('title="part of the previous character"') == (tokens["shown"] == "").sum()
    assert html.count('class="t ') == len(tokens)
    shown = "".join(Page(html).texts[0])
    expected = "".join(tokens["shown"]).replace("\r", "\u240d").replace("\x00", "\u2400")
    assert shown == expected
    assert html.count('<i class="nl"></i>\n') == expected.count("\n")
    assert html.count('class="line" dir="auto"') >= 4


def test_half_a_surrogate_pair_is_replaced(example):
    example.run["models"][0]["grade"]["extracted"] = "\ud83d"
    html = example_page(example)
    html.encode("utf-8")
    assert "extracted answer: <bdi>\ufffd</bdi>" in html


def test_a_page_for_two_models_of_512_tokens_is_below_5_mb(example_folder):
    line = "Then she takes {a} boxes and {b} bags, so {a}+{b}=<<{a}+{b}={s}>>{s} things in all."
    answers = ["\n".join(line.format(a=i + 2, b=3 * i + k, s=4 * i + 2 + k) for i in range(15)) + "\n#### 42" for k in (0, 1)]
    watched = [(layer, head) for layer in range(2) for head in range(4)]
    example = read_example(example_folder(answers=answers, layers=2, heads=9, watched=watched))
    # 30 layers: each layer is packed separately, so copies take as much room as different layers.
    example.run["layers"] = list(range(30))
    strong = example.edges[example.edges["probability"] >= STRONG]

    def copies(table: pd.DataFrame, further: pd.DataFrame) -> pd.DataFrame:
        return pd.concat([table, *(further.assign(layer=further["layer"] + 2 * copy) for copy in range(1, 15))], ignore_index=True)

    edges, standing, steps = copies(example.edges, strong), copies(example.standing, example.standing), copies(example.steps, example.steps)
    example = replace(example, edges=edges, standing=standing, steps=steps)
    assert example.tokens.groupby("model").size().min() >= 512
    assert example.edges.groupby(["model", "layer", "head"], observed=True).size().max() > 512 * 60
    assert len(example_page(example).encode()) < 5_000_000


@pytest.mark.parametrize("table", ["edges", "standing", "steps"])
def test_a_head_that_run_json_lacks_raises(example, table):
    frame: pd.DataFrame = getattr(example, table)
    frame.loc[frame.index[0], "head"] = 4
    with pytest.raises(InputError, match=rf"{table}: head 0\.4 .*4 heads in each of the layers 0 to 2"):
        example_page(example)


def test_tables_that_contradict_each_other_raise(example):
    for table, column, value, message in (
        ("edges", "key", 10_000, "edges: model-0 has key 10000"),
        ("steps", "step", 9, "steps: model-0 has step 9"),
        ("next", "is_read", False, "next: position .* has 0 tokens that were read"),
        ("tokens", "position", 500, "tokens: the positions of model-0"),
    ):
        frame: pd.DataFrame = getattr(example, table)
        kept = frame[column].copy()
        frame.loc[frame.index[frame[column] == True] if value is False else frame.index[:1], column] = value  # noqa: E712
        with pytest.raises(InputError, match=message):
            example_page(example)
        frame[column] = kept
    assert example_page(example)


def test_roles_in_the_page_match_the_table(example):
    page = Page(example_page(example))
    for model in page.data["models"]:
        rows = example.tokens[example.tokens["model"] == model["name"]]
        assert [ROLES[code] for code in model["role"]] == rows["role"].astype(str).tolist()
        assert model["step"] == rows["step"].tolist()


def test_line_breaks_between_steps_belong_to_the_previous_step(example):
    tokens = example.tokens[example.tokens["model"] == "model-0"].reset_index(drop=True)
    breaks = tokens["shown"].str.strip().eq("") & tokens["region"].eq("response")
    assert breaks.any()
    blocks = text_blocks(tokens.assign(step=tokens["step"].mask(breaks, -1)), example.run["models"][0]["steps"])
    assert [block.step for block in blocks if block.region == "response"] == [0, 1, 2]


def test_reference_texts_are_not_graded(example_folder):
    example = read_example(example_folder(answers=["3*12=36\n#### 36"] * 2))
    assert example.run["text"] == "reference"
    html = example_page(example)
    assert html.count("reads the reference solution</b>") == 2
    assert "– no reference" not in html


@pytest.mark.parametrize(
    ("source", "index", "title"),
    [
        ("/data/gsm8k/test.jsonl", 4, "Problem 4 of gsm8k test"),
        ("shipped", 0, "Problem 0 of the shipped problems"),
        ("--question", None, "Own question"),
        ("<b>.jsonl", 1, "Problem 1 of &lt;b&gt;"),
    ],
)
def test_the_title_names_the_problem_set(example, source, index, title):
    example.run["problem"].update(source=source, index=index)
    assert f"<title>{title}</title>" in example_page(example)


def test_format_characters_are_escaped(example):
    assert escape_formats("a\u202eb\u200d\U000e0001 é") == "a\\u202eb\\u200d\\U000e0001 é"
    turned = "x\u202eliving"
    example.run["command"] = turned
    example.run["warnings"] = [turned]
    example.run["models"][0]["identity"] = {"name": turned}
    html = example_page(example)
    assert html.count("x\\u202eliving") == 4
    assert turned not in html


def test_invisible_characters_get_a_symbol(example):
    rows = example.tokens.index[example.tokens["model"] == "model-0"][6:10]
    example.tokens.loc[rows, "shown"] = ["\u200d", "\u0323", "\u202ea", "\ufffd"]
    html = example_page(example)
    assert 'data-chip="ZWJ" title="zero width joiner"' in html
    assert 'data-chip="U+0323" title="combining dot below"' in html
    assert re.search('class="t alone [a-z_]+">\u202ea<', html)
    assert re.search('class="t [a-z_]+" title="not a whole character">\ufffd<', html)
    assert Page(html).texts[0][6:10] == ["\u200d", "\u0323", "\u202ea", "\ufffd"]


def test_expected_tokens_are_shown_within_their_number(example):
    html = example_page(example)
    assert "<bdi><b>1</b>2</bdi> <small>step 1</small>" in html
    assert "<bdi>1<b>2</b></bdi> <small>step 1</small>" in html


def test_a_folder_without_foremost_heads_has_a_page(example):
    assert Page(example_page(example)).data["foremost"] == [[0, 1], [2, 3], [0, 0], [0, 2], [0, 3]]
    del example.run["foremost"]
    assert Page(example_page(example)).data["foremost"] is None
