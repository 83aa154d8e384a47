"""The tables of one problem under the lens: what models read, where their heads look, what they expected at each number. Knows no torch.

A folder of `analyses.examples` holds them, and everything drawn of it (`figures.example.page`, `figures.example.draw`) comes from them.
Attention is in `EDGES`: of the watched heads every entry that shows in tenths of a per cent (`FAINT` and above), of all other heads
the strong entries alone (`STRONG` and above). A row of a map adds up to 1, so a token has at most 2,000 entries under a watched head and
10 under another: beyond that many tokens a table grows with its text, and not with its square.
"""

from __future__ import annotations

import pyarrow as pa

from interp.tables.schema import REGIONS, ROLES, TOKEN_REGIONS, TableSchema

FAINT = 0.0005
"""Smallest probability that the table has of a watched head: the smallest that does not round to 0.0 %."""


STRONG = 0.1
"""Smallest probability that the table has of a head that is not watched."""


ALTERNATIVES = 5
"""Most likely tokens listed at each number."""


STEP_QUANTITIES = ("question_numbers", "earlier_results")
"""Where a step of the response looks: at the question's numbers, and at earlier steps' results (intermediate_result or final_answer)."""


_TEXT = pa.dictionary(pa.int32(), pa.string())


_PLACE: list[tuple[str, pa.DataType]] = [("model", _TEXT), ("position", pa.int32())]


_HEAD: list[tuple[str, pa.DataType]] = [("layer", pa.int16()), ("head", pa.int16())]


TOKENS = TableSchema(
    name="tokens",
    arrow=pa.schema(
        [
            *_PLACE,
            ("token_id", pa.int32()),
            ("token", pa.string()),
            ("shown", pa.string()),
            ("region", _TEXT),
            ("role", _TEXT),
            ("number", pa.int16()),
            ("step", pa.int16()),
            ("is_query", pa.bool_()),
        ]
    ),
    key=("model", "position"),
    choices={"region": TOKEN_REGIONS, "role": ROLES},
)
"""A row a token. `token` is what it covers, as in `interp.tables.heads.INPUTS`. `shown` are the characters that no earlier token has shown, blanks
before them included, so that `shown` of all tokens joined is the whole text; "" for a token that holds only a further part of a character.
`number` counts the numbers of the text from 0, the same for all tokens of one number ("1,250"); -1 for other tokens. `step` is the step of
the response, counted from 0; -1 elsewhere."""


EDGES = TableSchema(
    name="edges",
    arrow=pa.schema([("model", _TEXT), *_HEAD, ("query", pa.int32()), ("key", pa.int32()), ("probability", pa.float32())]),
    key=("model", "layer", "head", "query", "key"),
    choices={},
)
"""Attention of the token at position `query` to the one at `key`, sorted by its key columns."""


STANDING = TableSchema(
    name="standing",
    arrow=pa.schema(
        [
            ("model", _TEXT),
            *_HEAD,
            ("measure", _TEXT),
            ("region", _TEXT),
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
"""Each head's measures on this problem beside the run's: mean and standard deviation (ddof 1) over the run's other `n_examples` problems,
t = (value - mean) / (sd sqrt(1 + 1 / n)), its two-sided p with n - 1 degrees of freedom, and q over all heads under one measure and region.
NaN, and n_examples 0, without a run to compare with."""


STEPS = TableSchema(
    name="steps",
    arrow=pa.schema(
        [("model", _TEXT), ("step", pa.int16()), *_HEAD, ("quantity", _TEXT), ("value", pa.float64()), ("n_queries", pa.int32())]
    ),
    key=("model", "step", "layer", "head", "quantity"),
    choices={"quantity": STEP_QUANTITIES},
)
"""Mean over a step's tokens of a head's attention to a set of tokens. A step before which there is no result has NaN and n_queries 0."""


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
"""What the model expected at each token of a number (`position`), from the tokens before it: the `ALTERNATIVES` most likely tokens, rank 1
first, and the token that stands there (`is_read`) at its own rank."""


EXAMPLE_TABLES = {schema.name: schema for schema in (TOKENS, EDGES, STANDING, STEPS, NEXT)}
"""Files of the folder: `<name>.parquet`."""
