"""The tables of one inspected problem: what models read, where their heads attend, and what they predicted at each number.

`analyses.examples` writes them, and everything drawn of a problem (`figures.example.page`, `figures.example.draw`) comes from them.
`EDGES` holds attention: for the watched heads every entry that shows in tenths of a percent (`FAINT` and above), for all other heads only
strong entries (`STRONG` and above). A row of an attention map sums to 1, so a token has at most 2,000 entries in a watched head and 10 in
another; for longer texts the table grows linearly, not quadratically.
"""

from __future__ import annotations

import pyarrow as pa

from interp.tables.schema import REGIONS, ROLES, TEXT_TYPE, TOKEN_REGIONS, TableSchema

FAINT = 0.0005
"""Smallest probability stored for a watched head: the smallest that does not round to 0.0 %."""

STRONG = 0.1
"""Smallest probability stored for a head that is not watched."""

ALTERNATIVES = 5
"""How many of the most likely tokens are listed at each number."""

STEP_QUANTITIES = ("question_numbers", "earlier_results")
"""What a step of the response attends to: the question's numbers, and earlier steps' results (intermediate_result or final_answer)."""

_PLACE: list[tuple[str, pa.DataType]] = [("model", TEXT_TYPE), ("position", pa.int32())]

_HEAD: list[tuple[str, pa.DataType]] = [("layer", pa.int16()), ("head", pa.int16())]

TOKENS = TableSchema(
    name="tokens",
    arrow=pa.schema(
        [
            *_PLACE,
            ("token_id", pa.int32()),
            ("token", pa.string()),
            ("shown", pa.string()),
            ("region", TEXT_TYPE),
            ("role", TEXT_TYPE),
            ("number", pa.int16()),
            ("step", pa.int16()),
            ("is_query", pa.bool_()),
        ]
    ),
    key=("model", "position"),
    choices={"region": TOKEN_REGIONS, "role": ROLES},
)
"""One row per token.

- `token`: the text that it covers, as in `interp.tables.heads.INPUTS`.
- `shown`: the characters that no earlier token has shown, including spaces before them, so that `shown` of all tokens joined is the
  complete text; "" for a token that holds only a further part of a character.
- `number`: index of the number in the text, the same for all tokens of one number ("1,250"); -1 for other tokens.
- `step`: index of the step of the response; -1 elsewhere.
"""

EDGES = TableSchema(
    name="edges",
    arrow=pa.schema([("model", TEXT_TYPE), *_HEAD, ("query", pa.int32()), ("key", pa.int32()), ("probability", pa.float32())]),
    key=("model", "layer", "head", "query", "key"),
    choices={},
)
"""Attention of the token at position `query` to the token at position `key`, sorted by the key columns."""

STANDING = TableSchema(
    name="standing",
    arrow=pa.schema(
        [
            ("model", TEXT_TYPE),
            *_HEAD,
            ("measure", TEXT_TYPE),
            ("region", TEXT_TYPE),
            ("value", pa.float64()),
            ("n_queries", pa.int32()),
            ("mean", pa.float64()),
            ("sd", pa.float64()),
            ("n_examples", pa.int32()),
            ("t", pa.float64()),
            ("p", pa.float64()),
            ("q", pa.float64()),
        ]
    ),
    key=("model", "layer", "head", "measure", "region"),
    choices={"region": REGIONS},
)
"""Each head's measures on this problem, compared with a run's.

`mean` and `sd` (ddof 1) are over the run's other `n_examples` problems, t = (value - mean) / (sd sqrt(1 + 1 / n)), `p` is two-sided with
n - 1 degrees of freedom, and `q` is over all heads of one measure and region. Without a run to compare with they are NaN, and `n_examples`
is 0.
"""

STEPS = TableSchema(
    name="steps",
    arrow=pa.schema(
        [("model", TEXT_TYPE), ("step", pa.int16()), *_HEAD, ("quantity", TEXT_TYPE), ("value", pa.float64()), ("n_queries", pa.int32())]
    ),
    key=("model", "step", "layer", "head", "quantity"),
    choices={"quantity": STEP_QUANTITIES},
)
"""Mean over a step's tokens of a head's attention to a set of tokens; NaN, with n_queries 0, for a step that has no earlier result."""

NEXT = TableSchema(
    name="next",
    arrow=pa.schema(
        [
            *_PLACE,
            ("rank", pa.int32()),
            ("token_id", pa.int32()),
            ("token", pa.string()),
            ("probability", pa.float64()),
            ("is_read", pa.bool_()),
        ]
    ),
    key=("model", "position", "rank"),
    choices={},
)
"""What the model predicted at each token of a number (`position`) from the tokens before it: the `ALTERNATIVES` most likely tokens, rank 1
first, and the token that is there (`is_read`) at its own rank."""

EXAMPLE_TABLES = {schema.name: schema for schema in (TOKENS, EDGES, STANDING, STEPS, NEXT)}
"""Tables of the folder, in files `NAME.parquet`."""
