"""Every way in which a table may break its schema; round trip; torn and foreign files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from interp.tables.errors import InputError
from interp.tables.heads import EXAMPLE_VALUES, HEAD_TABLES, HEADS, INPUTS, read_values
from interp.tables.schema import REGIONS, ROLES, TOKEN_REGIONS, TableSchema, read, validate, write


def make(schema: TableSchema) -> pd.DataFrame:
    """A small table that is right."""
    if schema is INPUTS:
        return pd.DataFrame(
            {
                "example": [0, 0, 1],
                "position": [0, 1, 0],
                "token_id": [5, 6, 5],
                "token": ["<s>", " 12", ""],
                "region": ["template", "question", "response"],
                "role": ["special", "question_number", "none"],
                "is_query": [True, True, False],
            }
        )
    frame = pd.DataFrame({"model": "m", "layer": [0, 0, 1], "head": [0, 1, 0], "measure": "entropy_nats"})
    frame["region"] = ["question", "response", "all"]
    frame["value"] = [0.5, np.nan, 1.5]
    if schema is EXAMPLE_VALUES:
        return frame.assign(example=[0, 1, 1], n_queries=[4, 0, 5])
    return frame.assign(ci_low=[0.25, np.nan, np.nan], ci_high=[0.75, np.nan, np.nan], n_examples=[3, 0, 1], n_queries=[9, 0, 2])


@pytest.mark.parametrize("schema", HEAD_TABLES.values(), ids=HEAD_TABLES)
def test_round_trip(schema: TableSchema, tmp_path: Path) -> None:
    frame, path = make(schema), tmp_path / f"{schema.name}.parquet"
    write(frame.sample(frac=1, axis=1, random_state=0), schema, path)
    found = read(path, schema)
    assert list(found.columns) == schema.arrow.names
    for name in frame.columns:
        assert found[name].astype(frame[name].dtype).equals(frame[name]), name
    assert pq.read_schema(path).remove_metadata().equals(schema.arrow)
    write(found, schema, path)
    pd.testing.assert_frame_equal(read(path, schema), found)


@pytest.mark.parametrize("schema", HEAD_TABLES.values(), ids=HEAD_TABLES)
def test_an_empty_table_is_allowed(schema: TableSchema, tmp_path: Path) -> None:
    write(make(schema).iloc[:0], schema, tmp_path / "t.parquet")
    assert len(read(tmp_path / "t.parquet", schema)) == 0


@pytest.mark.parametrize("schema", HEAD_TABLES.values(), ids=HEAD_TABLES)
def test_columns_must_be_those_of_the_schema(schema: TableSchema) -> None:
    for name in schema.arrow.names:
        with pytest.raises(InputError, match=rf"table {schema.name}: missing columns \['{name}'\], unknown columns \[\]"):
            validate(make(schema).drop(columns=name), schema)
    with pytest.raises(InputError, match=r"unknown columns \['extra'\]"):
        validate(make(schema).assign(extra=1), schema)


@pytest.mark.parametrize("schema", HEAD_TABLES.values(), ids=HEAD_TABLES)
def test_keys_do_not_repeat(schema: TableSchema) -> None:
    frame = make(schema)
    with pytest.raises(InputError, match=rf"table {schema.name}: 1 rows repeat a key, the first is"):
        validate(pd.concat([frame, frame.iloc[:1]]), schema)


@pytest.mark.parametrize("schema", HEAD_TABLES.values(), ids=HEAD_TABLES)
def test_nulls_are_refused_outside_the_values(schema: TableSchema) -> None:
    for name in set(schema.arrow.names) - {"value", "ci_low", "ci_high"}:
        frame = make(schema).astype({name: object})
        frame.loc[1, name] = None
        with pytest.raises(InputError, match=f"table {schema.name}: column {name} holds nulls"):
            validate(frame, schema)


@pytest.mark.parametrize(
    ("schema", "column", "allowed"),
    [(HEADS, "region", REGIONS), (EXAMPLE_VALUES, "region", REGIONS), (INPUTS, "region", TOKEN_REGIONS), (INPUTS, "role", ROLES)],
    ids=["heads", "examples", "inputs-region", "inputs-role"],
)
def test_choices_are_checked(schema: TableSchema, column: str, allowed: tuple[str, ...]) -> None:
    frame = make(schema)
    frame.loc[1, column] = "nowhere"
    with pytest.raises(InputError, match=rf"column {column} holds \['nowhere'\]; allowed: {', '.join(allowed)}"):
        validate(frame, schema)


@pytest.mark.parametrize(("column", "value"), [("layer", 1 << 20), ("layer", 0.5), ("head", "first"), ("n_queries", 1.5), ("model", 3)])
def test_types_are_checked(column: str, value: Any) -> None:
    frame = make(HEADS).astype({column: object})
    frame[column] = value if column != "n_queries" else [value, 0, value]
    with pytest.raises(InputError, match="table heads"):
        validate(frame.assign(head=[0, 1, 2]) if column == "layer" else frame, HEADS)


@pytest.mark.parametrize("schema", [HEADS, EXAMPLE_VALUES], ids=["heads", "examples"])
@pytest.mark.parametrize(("row", "value"), [(0, np.nan), (0, np.inf), (1, 0.5)])
def test_a_value_is_finite_exactly_where_it_was_measured(schema: TableSchema, row: int, value: float) -> None:
    frame = make(schema)
    frame.loc[row, "value"] = value
    with pytest.raises(InputError, match=rf"table {schema.name}: 1 rows are measured but not finite, or finite but not measured"):
        validate(frame, schema)


@pytest.mark.parametrize("broken", [{"ci_low": 0.8}, {"ci_low": np.nan}, {"ci_high": np.inf}, {"ci_high": 0.2}])
def test_intervals_of_several_examples_are_whole(broken: dict[str, float]) -> None:
    frame = make(HEADS)
    for name, value in broken.items():
        frame.loc[0, name] = value
    with pytest.raises(InputError, match="table heads: 1 rows with a broken interval"):
        validate(frame, HEADS)


def test_torn_and_foreign_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "heads.parquet"
    write(make(HEADS), HEADS, path)
    whole = path.read_bytes()
    for kept in (0, 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(InputError, match=r"heads\.parquet: not a readable Parquet file"):
            read(path, HEADS)
    with pytest.raises(InputError, match="not a readable Parquet file"):
        read(tmp_path / "absent.parquet", HEADS)
    path.write_text("layer,head\n0,0\n")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        read(path, HEADS)


def test_files_of_other_columns_and_types_are_named(tmp_path: Path) -> None:
    path = tmp_path / "heads.parquet"
    write(make(EXAMPLE_VALUES), EXAMPLE_VALUES, path)
    with pytest.raises(InputError, match=r"heads\.parquet: (column|table heads: missing columns)"):
        read(path, HEADS)
    table = validate(make(HEADS), HEADS)
    pq.write_table(table.set_column(1, "layer", table["layer"].cast(pa.int64())), path)
    with pytest.raises(InputError, match=r"heads\.parquet: column layer is int64, expected int16"):
        read(path, HEADS)
    frame = make(HEADS)
    frame.loc[0, "value"] = np.nan
    pq.write_table(pa.Table.from_pandas(frame[HEADS.arrow.names], HEADS.arrow, preserve_index=False), path)
    with pytest.raises(InputError, match=r"heads\.parquet: table heads: 1 rows are measured but not finite"):
        read(path, HEADS)


def test_nothing_is_written_where_validation_fails(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        write(make(HEADS).drop(columns="layer"), HEADS, tmp_path / "heads.parquet")
    assert list(tmp_path.iterdir()) == []


# --- values as an array -----------------------------------------------------------------------------------------------


def grid_of_examples() -> pd.DataFrame:
    axes = [[3, 7], [0, 2], range(3), ["a", "b"], REGIONS]
    index = pd.MultiIndex.from_product(axes, names=["example", "layer", "head", "measure", "region"])
    frame = index.to_frame(index=False).assign(model="m", n_queries=1)
    frame["value"] = np.arange(len(frame), dtype=float)
    frame.loc[5, ["value", "n_queries"]] = [np.nan, 0]
    return frame


def test_values_as_an_array(tmp_path: Path) -> None:
    frame = grid_of_examples()
    pq.write_table(validate(frame, EXAMPLE_VALUES), tmp_path / "e.parquet", row_group_size=7)
    found = read_values(tmp_path / "e.parquet")
    assert (found.model, found.examples, found.layers, found.n_heads, found.measures) == ("m", (3, 7), (0, 2), 3, ("a", "b"))
    np.testing.assert_array_equal(found.values.ravel(), frame["value"])
    assert found.values.shape == (2, 2, 3, 2, 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.iloc[::-1], "regions all, response, question"),
        (lambda f: f.sort_values("layer", kind="stable"), "out of order by example"),
        (lambda f: f.iloc[:-1], "71 rows, 2 x 2 x 3 x 2 x 3 were expected"),
        (lambda f: f.assign(model=["m", "n"] * 36), "expected one model, found 2: m, n"),
        (lambda f: f.assign(example=8 - f["example"]), "not in ascending order"),
        (lambda f: f.assign(value=np.inf), "measured but not finite"),
        (
            lambda f: f.assign(value=f["value"].where(f.index != 9)),
            "1 rows are measured but not finite.*'example': 3, 'layer': 0, 'head': 1",
        ),
        (lambda f: f.assign(n_queries=0), "finite but not measured"),
        (lambda f: f.iloc[:0], "expected one model, found 0"),
    ],
)
def test_values_that_are_no_whole_grid(change: Any, words: str, tmp_path: Path) -> None:
    pq.write_table(
        pa.Table.from_pandas(change(grid_of_examples())[EXAMPLE_VALUES.arrow.names], EXAMPLE_VALUES.arrow, preserve_index=False),
        tmp_path / "e",
    )
    with pytest.raises(InputError, match=words):
        read_values(tmp_path / "e")


def test_values_of_another_version_or_torn(tmp_path: Path) -> None:
    pq.write_table(pa.table({"model": ["m"], "mean": [1.0]}), tmp_path / "old")
    with pytest.raises(InputError, match="missing columns"):
        read_values(tmp_path / "old")
    pq.write_table(validate(grid_of_examples(), EXAMPLE_VALUES), tmp_path / "e")
    (tmp_path / "torn").write_bytes((tmp_path / "e").read_bytes()[:100])
    for name in ("torn", "none"):
        with pytest.raises(InputError, match="not a readable Parquet file"):
            read_values(tmp_path / name)
