"""Every way in which a table may not fit its schema; round trips; incomplete files, and files of other tables or earlier versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from interp.tables.contrast import ANSWERS
from interp.tables.errors import InputError
from interp.tables.heads import EXAMPLE_VALUES, HEAD_TABLES, HEADS, INPUTS
from interp.tables.schema import REGIONS, ROLES, TOKEN_REGIONS, TableSchema, read, validate, write


def make(schema: TableSchema) -> pd.DataFrame:
    """Return a small valid table."""
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
def test_a_table_is_read_as_it_was_written(schema: TableSchema, tmp_path: Path) -> None:
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
def test_repeated_keys_are_refused(schema: TableSchema) -> None:
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
def test_a_value_outside_its_choices_is_refused(schema: TableSchema, column: str, allowed: tuple[str, ...]) -> None:
    frame = make(schema)
    frame.loc[1, column] = "nowhere"
    with pytest.raises(InputError, match=rf"column {column} holds \['nowhere'\]; allowed: {', '.join(allowed)}"):
        validate(frame, schema)


@pytest.mark.parametrize(("column", "value"), [("layer", 1 << 20), ("layer", 0.5), ("head", "first"), ("n_queries", 1.5), ("model", 3)])
def test_a_value_of_another_type_is_refused(column: str, value: Any) -> None:
    frame = make(HEADS).astype({column: object})
    frame[column] = value if column != "n_queries" else [value, 0, value]
    with pytest.raises(InputError, match="table heads"):
        validate(frame.assign(head=[0, 1, 2]) if column == "layer" else frame, HEADS)


@pytest.mark.parametrize("schema", [HEADS, EXAMPLE_VALUES], ids=["heads", "examples"])
@pytest.mark.parametrize(("row", "value"), [(0, np.nan), (0, np.inf), (1, 0.5)])
def test_a_value_must_be_finite_exactly_where_it_was_measured(schema: TableSchema, row: int, value: float) -> None:
    frame = make(schema)
    frame.loc[row, "value"] = value
    with pytest.raises(InputError, match=rf"table {schema.name}: 1 rows are measured but not finite, or finite but not measured"):
        validate(frame, schema)


@pytest.mark.parametrize("broken", [{"ci_low": 0.8}, {"ci_low": np.nan}, {"ci_high": np.inf}, {"ci_high": 0.2}])
def test_an_interval_over_several_examples_must_be_finite_and_ordered(broken: dict[str, float]) -> None:
    frame = make(HEADS)
    for name, value in broken.items():
        frame.loc[0, name] = value
    with pytest.raises(InputError, match="table heads: 1 rows with an interval that is not finite and ordered"):
        validate(frame, HEADS)


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "heads.parquet"
    write(make(HEADS), HEADS, path)
    complete = path.read_bytes()
    for kept in (0, 3, len(complete) // 2, len(complete) - 1):
        path.write_bytes(complete[:kept])
        with pytest.raises(InputError, match=r"heads\.parquet: not a readable Parquet file"):
            read(path, HEADS)
    with pytest.raises(InputError, match="not a readable Parquet file"):
        read(tmp_path / "absent.parquet", HEADS)
    path.write_text("layer,head\n0,0\n")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        read(path, HEADS)


def test_a_file_with_other_columns_or_types_is_named(tmp_path: Path) -> None:
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


# --- tables of earlier versions ---------------------------------------------------------------------------------------


def old_answers(**columns: Any) -> pa.Table:
    table = validate(
        pd.DataFrame({"model": ["m"], "problem": [0], "extracted": ["7"], "correct": [True], "n_tokens": [3], "truncated": [True]}), ANSWERS
    )
    return table.rename_columns([columns.get(name, name) for name in table.column_names])


def test_an_old_column_name_is_read_with_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "answers.parquet"
    pq.write_table(old_answers(truncated="cut"), path)
    assert read(path, ANSWERS)["truncated"].tolist() == [True]
    assert capsys.readouterr().err == f"note: {path} was written by an earlier version; cut is read as truncated\n"
    pq.write_table(old_answers(), path)
    read(path, ANSWERS)
    assert capsys.readouterr().err == ""


def test_an_old_column_name_is_not_taken_where_the_schema_has_no_such_column(tmp_path: Path) -> None:
    path = tmp_path / "heads.parquet"
    table = validate(make(HEADS), HEADS)
    pq.write_table(table.append_column("cut", pa.array([True] * 3)), path)
    with pytest.raises(InputError, match=r"unknown columns \['cut'\]"):
        read(path, HEADS)


def test_both_names_of_a_column_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.parquet"
    pq.write_table(old_answers().append_column("cut", pa.array([True])), path)
    with pytest.raises(InputError, match=r"unknown columns \['cut'\]"):
        read(path, ANSWERS)


# --- writing ----------------------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "heads.parquet"
    write(make(HEADS), HEADS, path)
    before = path.read_bytes()

    def fail(table: pa.Table, where: Path, **_: Any) -> None:
        where.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(OSError, match="No space left"):
        write(make(HEADS).assign(model="other"), HEADS, path)
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("heads.parquet", before)]
