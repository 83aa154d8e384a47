# pyright: reportGeneralTypeIssues=false
# pyright takes functions of Triton's language, whose Python bodies only raise, for functions that never return.
"""The Triton kernel of `interp.attention.triton`: one flash-attention forward pass that accumulates the heads' statistics.

Imported only when the kernel is launched, because it needs triton. Scores are in units of log2 (exp2 is what the hardware has), relative
to the running maximum m of their row. With p = 2^(s - m), every tile of keys adds to

    norm = sum p    energy = sum p (s - m)    square = sum p^2    distance = sum p (i - j)    acc = sum p v_j    mass = sum p columns_j

When m grows to m', alpha = 2^(m - m') rescales them: energy' = alpha (energy + (m - m') norm), square' = alpha^2 square, and the others by
alpha. norm is kept as two numbers, norm + rest, because many tiles may each add less than the last bit of norm, and the entropy of a nearly
one-hot row is what they add. Then LSE = ln 2 (m + log2 norm); entropy = ln norm - ln 2 energy / norm (two terms >= 0, so nothing cancels,
whatever offset the scores have); sum of squared probabilities = square / norm^2; largest probability = 1 / norm.

Counts above a threshold t need the final norm. A second sweep recomputes scores and counts s - m > log2(t norm), but only in groups of
tiles that could hold such a key according to the m and norm at their first visit: m + log2 norm only grows, so a skipped group holds none.
Query-key pairs are computed while q is in registers and m and norm are final, from a list of keys and sets per query.
"""

from __future__ import annotations

import triton
import triton.language as tl

_LOWEST = tl.constexpr(-1e30)
"""Score of a masked key. It is finite, so that 0 * (score - m) is 0."""

_LN_2 = tl.constexpr(0.6931471805599453)

_PAIR_DIMS = tl.constexpr(16)
"""Number of dimensions of a query and a key that are multiplied at once for a pair. It divides every padded head size."""


@triton.jit
def _dot(a, b, acc, EMULATED: tl.constexpr):
    """Return acc + a @ b in float32, never TF32. The interpreter cannot multiply bfloat16, so there the operands are widened."""
    if EMULATED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def _capped(score, cap_scale, cap):
    """Return cap * tanh(score * cap_scale), from an exponential that cannot overflow."""
    shrunk = tl.exp(-2.0 * tl.abs(score) * cap_scale)
    capped = cap * (1.0 - shrunk) / (1.0 + shrunk)
    return tl.where(score < 0, -capped, capped)


@triton.jit
def _tile_scores(
    q, rows, first, key_at, key_stride, key_start, key_stop, window, cap_scale, cap,
    DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_KEYS: tl.constexpr,
    CAPPED: tl.constexpr, WINDOWED: tl.constexpr, MASKED: tl.constexpr, EMULATED: tl.constexpr,
):  # fmt: skip
    """Return scores of the keys [first, first + BLOCK_KEYS), [query, key], before the factor that converts them to units of log2."""
    keys = first + tl.arange(0, BLOCK_KEYS)
    dims = tl.arange(0, BLOCK_DIM)
    loaded = dims[:, None] < DIM
    if MASKED:
        loaded = loaded & (keys >= key_start)[None, :] & (keys < key_stop)[None, :]
    k = tl.load(key_at + keys[None, :] * key_stride + dims[:, None], mask=loaded, other=0.0)
    score = _dot(q, k, tl.zeros([rows.shape[0], BLOCK_KEYS], dtype=tl.float32), EMULATED)
    if CAPPED:
        score = _capped(score, cap_scale, cap)
    if MASKED:
        seen = (keys[None, :] <= rows[:, None]) & (keys >= key_start)[None, :] & (keys < key_stop)[None, :]
        if WINDOWED:
            seen = seen & (keys[None, :] > rows[:, None] - window)
        score = tl.where(seen, score, _LOWEST)
    return score


@triton.jit
def _sweep(
    acc, mass, m, norm, rest, energy, square, distance, maybe,
    q, rows, low, high, key_at, key_stride, value_at, value_stride, columns_at,
    key_start, key_stop, window, factor, cap_scale, cap, least, origin, group,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK_DIM: tl.constexpr, BLOCK_VALUE: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_KEYS: tl.constexpr,
    CAPPED: tl.constexpr, WINDOWED: tl.constexpr, MASKED: tl.constexpr, COUNTED: tl.constexpr, SPLIT: tl.constexpr,
    EMULATED: tl.constexpr,
):  # fmt: skip
    """Add the keys of [low, high) to every accumulator."""
    local = tl.arange(0, BLOCK_KEYS)
    for first in tl.range(low, high, BLOCK_KEYS):
        keys = first + local
        score = _tile_scores(
            q, rows, first, key_at, key_stride, key_start, key_stop, window, cap_scale, cap,
            DIM, BLOCK_DIM, BLOCK_KEYS, CAPPED, WINDOWED, MASKED, EMULATED,
        )  # fmt: skip
        top = tl.max(score, 1) * factor
        grown = tl.maximum(m, top)
        score = score * factor - grown[:, None]
        p = tl.exp2(score)
        alpha = tl.exp2(m - grown)
        total = tl.sum(p, 1)
        energy = alpha * (energy + (m - grown) * norm) + tl.sum(p * score, 1)
        square = alpha * alpha * square + tl.sum(p * p, 1)
        if MASKED:  # near the query, the distance must not be a difference of large numbers
            moved = tl.sum(p * (rows[:, None] - keys[None, :]).to(tl.float32), 1)
        else:
            moved = (rows - first) * total - tl.sum(p * local[None, :].to(tl.float32), 1)
        distance = alpha * distance + moved
        before = alpha * norm
        added = alpha * rest + total
        norm = before + added
        rest = added - (norm - before)
        m = grown
        if COUNTED:  # with a margin, because the second sweep may round differently
            hit = top - m > tl.log2(least * tl.maximum(norm, 1.0)) - 0.001
            maybe = maybe | tl.where(hit, 1 << ((first - origin) // group), 0)
        if COLUMNS > 0:
            mass = mass * alpha[:, None]
            numbers = tl.arange(0, BLOCK_COLUMNS)
            cells = columns_at + keys[:, None] * BLOCK_COLUMNS + numbers[None, :]
            columns = tl.load(cells, mask=(keys < key_stop)[:, None], other=0.0) if MASKED else tl.load(cells)
            if SPLIT:  # for the tensor cores, p as a sum of two bfloat16 numbers (2^-17 relative); the columns are exact
                upper = p.to(tl.bfloat16)
                lower = (p - upper.to(tl.float32)).to(tl.bfloat16)
                mass = _dot(upper, columns, mass, EMULATED)
                mass = _dot(lower, columns, mass, EMULATED)
            else:
                mass = _dot(p, columns, mass, EMULATED)
        if VALUE_DIM > 0:
            acc = acc * alpha[:, None]
            dims = tl.arange(0, BLOCK_VALUE)
            loaded = dims[None, :] < VALUE_DIM
            if MASKED:
                loaded = loaded & (keys >= key_start)[:, None] & (keys < key_stop)[:, None]
            v = tl.load(value_at + keys[:, None] * value_stride + dims[None, :], mask=loaded, other=0.0)
            acc = _dot(p.to(v.dtype), v, acc, EMULATED)
    return acc, mass, m, norm, rest, energy, square, distance, maybe


@triton.jit
def _sweeps(
    q, rows, low, open_from, open_to, high, key_at, key_row, value_at, value_row, columns_at,
    key_start, key_stop, window, factor, cap_scale, cap, least,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, COLUMNS: tl.constexpr, COUNTED: tl.constexpr,
    BLOCK_DIM: tl.constexpr, BLOCK_VALUE: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr,
    CAPPED: tl.constexpr, WINDOWED: tl.constexpr, SPLIT: tl.constexpr, EMULATED: tl.constexpr,
):  # fmt: skip
    """Return all accumulators after the keys of [low, high), and the number of keys in a group of tiles."""
    acc = tl.zeros([BLOCK_QUERIES, BLOCK_VALUE], dtype=tl.float32)
    mass = tl.zeros([BLOCK_QUERIES, BLOCK_COLUMNS], dtype=tl.float32)
    m = tl.full([BLOCK_QUERIES], _LOWEST, dtype=tl.float32)
    norm = tl.zeros([BLOCK_QUERIES], dtype=tl.float32)
    rest = tl.zeros([BLOCK_QUERIES], dtype=tl.float32)
    energy = tl.zeros([BLOCK_QUERIES], dtype=tl.float32)
    square = tl.zeros([BLOCK_QUERIES], dtype=tl.float32)
    distance = tl.zeros([BLOCK_QUERIES], dtype=tl.float32)
    # one bit for each of 32 groups of tiles: whether it may hold keys above the threshold
    maybe = tl.zeros([BLOCK_QUERIES], dtype=tl.int32)
    group = tl.cdiv(tl.maximum(high - low, 1), 32 * BLOCK_KEYS) * BLOCK_KEYS

    # leading tiles, tiles that need no mask, tiles on the diagonal
    acc, mass, m, norm, rest, energy, square, distance, maybe = _sweep(
        acc, mass, m, norm, rest, energy, square, distance, maybe,
        q, rows, low, open_from, key_at, key_row, value_at, value_row, columns_at,
        key_start, key_stop, window, factor, cap_scale, cap, least, low, group,
        DIM, VALUE_DIM, COLUMNS, BLOCK_DIM, BLOCK_VALUE, BLOCK_COLUMNS, BLOCK_KEYS,
        CAPPED, WINDOWED, True, COUNTED, SPLIT, EMULATED,
    )  # fmt: skip
    acc, mass, m, norm, rest, energy, square, distance, maybe = _sweep(
        acc, mass, m, norm, rest, energy, square, distance, maybe,
        q, rows, open_from, open_to, key_at, key_row, value_at, value_row, columns_at,
        key_start, key_stop, window, factor, cap_scale, cap, least, low, group,
        DIM, VALUE_DIM, COLUMNS, BLOCK_DIM, BLOCK_VALUE, BLOCK_COLUMNS, BLOCK_KEYS,
        CAPPED, WINDOWED, False, COUNTED, SPLIT, EMULATED,
    )  # fmt: skip
    acc, mass, m, norm, rest, energy, square, distance, maybe = _sweep(
        acc, mass, m, norm, rest, energy, square, distance, maybe,
        q, rows, open_to, high, key_at, key_row, value_at, value_row, columns_at,
        key_start, key_stop, window, factor, cap_scale, cap, least, low, group,
        DIM, VALUE_DIM, COLUMNS, BLOCK_DIM, BLOCK_VALUE, BLOCK_COLUMNS, BLOCK_KEYS,
        CAPPED, WINDOWED, True, COUNTED, SPLIT, EMULATED,
    )  # fmt: skip
    return acc, mass, m, norm, rest, energy, square, distance, maybe, group


@triton.jit
def _tile_ranges(
    lowest_row, first_row, last_row, key_start, key_stop, window,
    BLOCK_KEYS: tl.constexpr, WINDOWED: tl.constexpr,
):  # fmt: skip
    """Return the first key of the first tile, first and one-past-last key of the tiles that need no mask, and one past the last key.

    A tile needs no mask if every query may attend to all of its keys and none of them is a query of this block.
    """
    low = key_start
    open_from = key_start
    if WINDOWED:
        low = tl.maximum(low, first_row - window + 1)
        open_from = tl.maximum(open_from, last_row - window + 1)
    low = low // BLOCK_KEYS * BLOCK_KEYS
    high = tl.minimum(key_stop, last_row + 1)
    high = tl.where(last_row >= first_row, high, low)
    open_from = tl.minimum(tl.cdiv(open_from, BLOCK_KEYS) * BLOCK_KEYS, tl.maximum(high, low))
    open_to = tl.maximum(tl.minimum(key_stop, lowest_row), 0) // BLOCK_KEYS * BLOCK_KEYS
    open_to = tl.maximum(open_from, tl.minimum(open_to, high))
    return low, open_from, open_to, high


@triton.jit
def _pair_attention(
    at, rows, counts, earliest, key_stop, m, scale, query_at, query_row, key_at, key_row, starts_at, pair_keys, pair_sets,
    factor, cap_scale, cap,
    DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_QUERIES: tl.constexpr, BLOCK_PAIR_SETS: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """Return the attention to the listed keys of each query, summed over each set of pairs, [query, set]."""
    sets = tl.arange(0, BLOCK_PAIR_SETS)
    chosen = tl.zeros([BLOCK_QUERIES, BLOCK_PAIR_SETS], dtype=tl.float32)
    begin = tl.load(starts_at + at, mask=counts, other=0)
    listed_keys = tl.load(starts_at + at + 1, mask=counts, other=0) - begin
    some_dims = tl.arange(0, _PAIR_DIMS)
    of_query = at.to(tl.int64)[:, None] * query_row + some_dims[None, :]
    for n in tl.range(0, tl.max(listed_keys, 0)):
        listed = n < listed_keys
        at_key = tl.load(pair_keys + begin + n, mask=listed, other=0)
        of_set = tl.load(pair_sets + begin + n, mask=listed, other=-1)
        listed = listed & (at_key >= earliest) & (at_key <= rows) & (at_key < key_stop)
        of_key = at_key.to(tl.int64)[:, None] * key_row + some_dims[None, :]
        score = tl.zeros([BLOCK_QUERIES], dtype=tl.float32)
        for part in tl.static_range(0, BLOCK_DIM, _PAIR_DIMS):  # a few dimensions at a time, because registers are scarce
            loaded = listed[:, None] & (part + some_dims[None, :] < DIM)
            q_part = tl.load(query_at + part + of_query, mask=loaded, other=0.0).to(tl.float32)
            k_part = tl.load(key_at + part + of_key, mask=loaded, other=0.0).to(tl.float32)
            score += tl.sum(q_part * k_part, 1)
        if CAPPED:
            score = _capped(score, cap_scale, cap)
        p = tl.exp2(tl.where(listed, score * factor - m, _LOWEST)) * scale
        chosen += tl.where(sets[None, :] == of_set[:, None], p[:, None], 0.0)
    return chosen


@triton.jit
def _count_above(
    q, rows, counts, maybe, m, norm, share, low, high, group, key_at, key_row, key_start, key_stop, window,
    thresholds, factor, cap_scale, cap,
    DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr,
    THRESHOLDS: tl.constexpr, BLOCK_THRESHOLDS: tl.constexpr,
    CAPPED: tl.constexpr, WINDOWED: tl.constexpr, SINK: tl.constexpr, EMULATED: tl.constexpr,
):  # fmt: skip
    """Return the number of keys above each threshold, [query, threshold]: a second sweep over the groups of tiles that `maybe` marks."""
    places = tl.arange(0, BLOCK_THRESHOLDS)
    larger = tl.zeros([BLOCK_QUERIES, BLOCK_THRESHOLDS], dtype=tl.float32)
    some = tl.reduce_or(tl.where(counts, maybe, 0), 0)
    for first in tl.range(low, high, BLOCK_KEYS):
        if (some >> ((first - low) // group)) & 1:
            score = _tile_scores(
                q, rows, first, key_at, key_row, key_start, key_stop, window, cap_scale, cap,
                DIM, BLOCK_DIM, BLOCK_KEYS, CAPPED, WINDOWED, True, EMULATED,
            )  # fmt: skip
            score = score * factor - m[:, None]
            for number in tl.static_range(THRESHOLDS):
                limit = tl.log2(tl.load(thresholds + number) * norm)
                if SINK:
                    limit = limit - tl.log2(share)
                found = tl.sum((score > limit[:, None]).to(tl.float32), 1)
                larger += tl.where(places[None, :] == number, found[:, None], 0.0)
    return larger


@triton.jit
def _store_row(target, row_at, inside, values, counts):
    """Store values [query], with zeros for queries that do not count."""
    tl.store(target + row_at, tl.where(counts, values, 0.0), mask=inside)


@triton.jit
def _store(target, numbers, n_rows, row_at, inside, values, counts, N: tl.constexpr):
    """Store values [query, number] as [number, row], with zeros for queries that do not count."""
    value_at = numbers[None, :].to(tl.int64) * n_rows + row_at[:, None]
    tl.store(target + value_at, tl.where(counts[:, None], values, 0.0), mask=inside[:, None] & (numbers[None, :] < N))


@triton.jit
def heads_forward(
    query, key, value, columns, sinks, thresholds, bounds, pair_starts, pair_keys, pair_sets,
    output, statistics, masses, above, pair_masses,
    query_batch, query_head, query_row, key_batch, key_head, key_row, value_batch, value_head, value_row,
    n_rows, n_batch, n_heads, groups, n_queries, n_keys, shift, window, factor, cap_scale, cap, least,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, COLUMNS: tl.constexpr, THRESHOLDS: tl.constexpr, PAIR_SETS: tl.constexpr,
    BLOCK_DIM: tl.constexpr, BLOCK_VALUE: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr, BLOCK_THRESHOLDS: tl.constexpr, BLOCK_PAIR_SETS: tl.constexpr,
    CAPPED: tl.constexpr, WINDOWED: tl.constexpr, SINK: tl.constexpr, SPLIT: tl.constexpr, EMULATED: tl.constexpr,
):  # fmt: skip
    """Compute one block of queries of one head: output, LSE, entropy, sum of squares, distance, largest probability, masses, counts, pairs.

    `bounds` is [4, batch]: first and one-past-last query that counts, first and one-past-last key that exists, as positions among the keys
    held. Query i of this call is at position i + shift. Query i of example b is paired with the keys `pair_keys[n]` in the sets
    `pair_sets[n]`, for n from `pair_starts[b, i]` to `pair_starts[b, i + 1]`; keys that it may not attend to add nothing. Rows that do not
    count are zero.
    """
    # the last queries have the most keys, so start with them
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    example = tl.program_id(1) // n_heads
    head = tl.program_id(1) % n_heads
    start = tl.load(bounds + example)
    stop = tl.load(bounds + n_batch + example)
    key_start = tl.load(bounds + 2 * n_batch + example)
    key_stop = tl.load(bounds + 3 * n_batch + example)

    at = block * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    rows = at + shift
    wanted = (rows >= start) & (rows < stop) & (at < n_queries)
    lowest_row = block * BLOCK_QUERIES + shift
    first_row = tl.maximum(lowest_row, start)
    last_row = tl.minimum(tl.minimum(lowest_row + BLOCK_QUERIES, n_queries + shift), stop) - 1

    low, open_from, open_to, high = _tile_ranges(lowest_row, first_row, last_row, key_start, key_stop, window, BLOCK_KEYS, WINDOWED)
    dims = tl.arange(0, BLOCK_DIM)
    query_at = query + example.to(tl.int64) * query_batch + head.to(tl.int64) * query_head
    of_query = at.to(tl.int64)[:, None] * query_row + dims[None, :]
    q = tl.load(query_at + of_query, mask=wanted[:, None] & (dims[None, :] < DIM), other=0.0)
    kv_head = (head // groups).to(tl.int64)
    key_at = key + example.to(tl.int64) * key_batch + kv_head * key_head
    value_at = value + example.to(tl.int64) * value_batch + kv_head * value_head
    columns_at = columns + example.to(tl.int64) * n_keys * BLOCK_COLUMNS

    acc, mass, m, norm, rest, energy, square, distance, maybe, group = _sweeps(
        q, rows, low, open_from, open_to, high, key_at, key_row, value_at, value_row, columns_at,
        key_start, key_stop, window, factor, cap_scale, cap, least,
        DIM, VALUE_DIM, COLUMNS, THRESHOLDS > 0, BLOCK_DIM, BLOCK_VALUE, BLOCK_COLUMNS, BLOCK_QUERIES, BLOCK_KEYS,
        CAPPED, WINDOWED, SPLIT, EMULATED,
    )  # fmt: skip

    earliest = rows * 0 + key_start
    if WINDOWED:
        earliest = tl.maximum(earliest, rows - window + 1)
    counts = wanted & (earliest < tl.minimum(rows + 1, key_stop))
    norm = tl.where(counts, norm + rest, 1.0)
    lse = _LN_2 * (m + tl.log2(norm))
    share = tl.full([BLOCK_QUERIES], 1.0, dtype=tl.float32)
    if SINK:
        sink = tl.load(sinks + head)
        share = 1.0 / (1.0 + tl.exp(tl.minimum(sink - lse, 80.0)))

    inside = at < n_queries
    row_at = (example.to(tl.int64) * n_heads + head) * n_queries + at
    entropy = _LN_2 * (tl.log2(norm) - energy / norm)
    _store_row(statistics, row_at, inside, lse, counts)
    _store_row(statistics + n_rows, row_at, inside, entropy, counts)
    _store_row(statistics + 2 * n_rows, row_at, inside, square / norm / norm, counts)
    _store_row(statistics + 3 * n_rows, row_at, inside, distance / norm, counts)
    _store_row(statistics + 4 * n_rows, row_at, inside, share / norm, counts)
    kept = (share / norm)[:, None]
    if VALUE_DIM > 0:
        value_dims = tl.arange(0, BLOCK_VALUE)
        output_at = ((example.to(tl.int64) * n_queries + at) * n_heads + head) * VALUE_DIM
        result = tl.where(counts[:, None], acc * kept, 0.0).to(output.dtype.element_ty)
        tl.store(output + output_at[:, None] + value_dims[None, :], result, mask=inside[:, None] & (value_dims[None, :] < VALUE_DIM))
    if COLUMNS > 0:
        _store(masses, tl.arange(0, BLOCK_COLUMNS), n_rows, row_at, inside, mass * kept, counts, COLUMNS)
    if PAIR_SETS > 0:
        starts_at = pair_starts + example.to(tl.int64) * (n_queries + 1)
        chosen = _pair_attention(
            at, rows, counts, earliest, key_stop, m, share / norm, query_at, query_row, key_at, key_row, starts_at, pair_keys, pair_sets,
            factor, cap_scale, cap, DIM, BLOCK_DIM, BLOCK_QUERIES, BLOCK_PAIR_SETS, CAPPED,
        )  # fmt: skip
        _store(pair_masses, tl.arange(0, BLOCK_PAIR_SETS), n_rows, row_at, inside, chosen, counts, PAIR_SETS)
    if THRESHOLDS > 0:
        larger = _count_above(
            q, rows, counts, maybe, m, norm, share, low, high, group, key_at, key_row, key_start, key_stop, window,
            thresholds, factor, cap_scale, cap, DIM, BLOCK_DIM, BLOCK_QUERIES, BLOCK_KEYS, THRESHOLDS, BLOCK_THRESHOLDS,
            CAPPED, WINDOWED, SINK, EMULATED,
        )  # fmt: skip
        _store(above, tl.arange(0, BLOCK_THRESHOLDS), n_rows, row_at, inside, larger, counts, THRESHOLDS)
