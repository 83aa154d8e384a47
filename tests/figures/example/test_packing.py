"""figures.example.packing: packed numbers are exactly those that a page must show."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from figures.example.packing import PROBABILITY_STEPS, in_steps, pack_edges, percent
from figures.example.read import Example, read_example

WATCHED = [(0, 1), (2, 3)]


def unplane(packed: bytes, dtype: str, count: int) -> tuple[np.ndarray, bytes]:
    """Unpack byte by byte, independently of the code under test: the numbers and what follows them."""
    size = np.dtype(dtype).itemsize
    joined = b"".join(bytes(packed[plane * count + i] for plane in range(size)) for i in range(count))
    return np.frombuffer(joined, dtype), packed[size * count :]


def unpack_edges(packed: bytes, heads: list, tokens: int, whole: bool) -> tuple[dict[tuple, int], np.ndarray | None]:
    """{(layer, head, query, key): probability in steps of 1 / PROBABILITY_STEPS} and the remainder of each row."""
    counts, packed = unplane(packed, "<u4", len(heads) * tokens)
    gaps, packed = unplane(packed, "<u4", int(counts.sum()))
    values, packed = unplane(packed, "<u4", int(counts.sum()))
    rest, packed = unplane(packed, "<u4", len(heads) * tokens) if whole else (None, packed)
    assert packed == b""
    found, at = {}, 0
    for row, count in enumerate(counts):
        key = 0
        for entry in range(at, at + count):
            key += int(gaps[entry])
            found[(*heads[row // tokens], row % tokens, key)] = int(values[entry])
        at += count
    return found, rest


@pytest.fixture
def example(example_folder) -> Example:
    """Two models, two of twelve heads watched."""
    return read_example(example_folder(watched=WATCHED))


def test_every_percentage_shown_matches_the_table(example):
    random = np.random.default_rng(0)
    middles = (np.arange(1001) + 0.5).astype(np.float32) / np.float32(1000)
    close = np.concatenate([np.nextafter(middles, np.float32(0)), middles, np.nextafter(middles, np.float32(1))])
    for values in (
        example.edges["probability"].to_numpy(),
        random.random(100_000, np.float32) ** 4,
        close[close <= 1],
        np.array([0, 0.0005, 1], np.float32),
    ):
        p = np.asarray(values, np.float64)
        steps = in_steps(p).astype(np.int64)
        assert np.abs(steps - p * PROBABILITY_STEPS).max() <= 1
        by_script = (steps + PROBABILITY_STEPS // 2000) // (PROBABILITY_STEPS // 1000)
        np.testing.assert_array_equal(by_script, np.floor(p * 1000 + 0.5))
        assert [percent(x) for x in p[:50]] == [f"{tenth / 10:.1f} %" for tenth in by_script[:50]]


def test_entries_can_be_packed_in_any_order():
    head, query, key = np.array([1, 0, 1, 0]), np.array([2, 1, 2, 1]), np.array([2, 1, 0, 0])
    p = np.array([0.25, 0.75, 0.5, 0.5 / PROBABILITY_STEPS])
    found, rest = unpack_edges(zlib.decompress(pack_edges(2, 3, head, query, key, p, whole=True)), [(4, 0), (4, 1)], 3, True)
    assert found == {
        (4, 0, 1, 0): 0,
        (4, 0, 1, 1): PROBABILITY_STEPS * 3 // 4,
        (4, 1, 2, 0): PROBABILITY_STEPS // 2,
        (4, 1, 2, 2): PROBABILITY_STEPS // 4,
    }
    assert rest is not None
    np.testing.assert_allclose(
        rest,
        [PROBABILITY_STEPS, PROBABILITY_STEPS // 4, PROBABILITY_STEPS, PROBABILITY_STEPS, PROBABILITY_STEPS, PROBABILITY_STEPS // 4],
        atol=1,
    )


def test_keys_beyond_sixteen_bits_are_kept():
    key = np.array([3, 70_000])
    packed = pack_edges(1, 1, np.zeros(2, int), np.zeros(2, int), key, np.array([0.5, 0.5]), whole=False)
    found, _ = unpack_edges(zlib.decompress(packed), [(0, 0)], 1, False)
    assert sorted(found) == [(0, 0, 0, 3), (0, 0, 0, 70_000)]


def test_percentages_are_rounded_half_up():
    assert [percent(p) for p in (0.0, 0.0004999, 0.0005, 0.1234, 0.1235, 0.125, 1.0)] == [
        "0.0 %", "0.0 %", "0.1 %", "12.3 %", "12.4 %", "12.5 %", "100.0 %",
    ]  # fmt: skip
