"""Numbers in the styles in which answers write them."""

from __future__ import annotations

from hypothesis import strategies as st

INTEGERS = st.integers(-(10**9), 10**9)


def written(number: int, style: str) -> str:
    return {
        "plain": f"{number}",
        "commas": f"{number:,}",
        "dollars": f"${number:,}" if number >= 0 else f"-${-number:,}",
        "cents": f"${number}.00" if number >= 0 else f"-${-number}.00",
        "point": f"{number}.",
        "percent": f"{number}%",
        "explained": f"{number} (i.e. {number - 8} + 8)",
        "bold": f"**{number}**",
        "whole": f"{2 * number}/2",
    }[style]


STYLES = st.sampled_from(["plain", "commas", "dollars", "cents", "point", "percent", "explained", "bold", "whole"])
