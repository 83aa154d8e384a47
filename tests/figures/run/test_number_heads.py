"""figures.run.number_heads: the top heads, sorted."""

# A drawing function may return None; the test then fails, as it should.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

from figures.run.number_heads import number_heads


def _labels(figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def test_heads_are_sorted_by_value(infos, head_table):
    heads = head_table(6, 5)
    rows = heads[(heads["measure"] == "numeric_mass_without_bos") & (heads["region"] == "response")]
    best = rows.sort_values("value", ascending=False).head(15)
    assert _labels(number_heads(heads, infos)) == [f"{r.layer}.{r.head}" for r in best.itertuples()]


def test_numeric_mass_ranks_if_the_other_was_not_taken(infos, head_table):
    heads = head_table(6, 5)
    heads = heads[~heads["measure"].isin(["numeric_mass_without_bos", "numeric_enrichment"])]
    best = heads[(heads["measure"] == "numeric_mass") & (heads["region"] == "all")].nlargest(15, "value")
    figure = number_heads(heads, infos, region="all")
    assert _labels(figure)[0] == f"{best.iloc[0]['layer']}.{best.iloc[0]['head']}"
    assert len(figure.axes) == 1


def test_without_its_measures_there_is_no_figure(infos, small_heads):
    heads = small_heads[small_heads["measure"] == "entropy_nats"]
    assert number_heads(heads, infos) is None


def test_fewer_than_fifteen_heads_can_be_drawn(infos, head_table):
    assert len(_labels(number_heads(head_table(2, 2), infos))) == 4
