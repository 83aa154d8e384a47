"""What a store of records holds, for people."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from distill.records.shards import shard_state
from distill.records.store import RecordGroup, RecordStore


def summarize_store(store: RecordStore, correct: Callable[[str, str], bool]) -> pd.DataFrame:
    """Return one row for each group: teacher, strategy, signal, counts, lengths in tokens, size, and the teacher's accuracy.

    Args:
        store: the store.
        correct: returns whether a response is correct, given the response and the reference solution.

    Raises:
        StudyError: the store does not exist.
    """
    lines = []
    for group in store.groups():
        rows, damaged = group.rows()
        lengths = rows["response_ids"].map(len)
        answered = rows["text"] != ""
        right = [correct(text, reference) for text, reference in zip(rows["text"][answered], rows["reference"][answered], strict=True)]
        lines.append(
            {
                "group": group.key,
                "teacher": group.identity.get("teacher", {}).get("name"),
                "strategy": group.identity.get("strategy", {}).get("text", "")[:32] or "(no text)",
                "signal": group.identity.get("signal", {}).get("tier"),
                "k": group.identity.get("signal", {}).get("top_k"),
                "records": len(rows),
                "tokens_mean": lengths.mean() if len(rows) else float("nan"),
                "tokens_max": lengths.max() if len(rows) else float("nan"),
                "truncated": (rows["finish"] == "length").mean() if len(rows) else float("nan"),
                "empty": int((~answered).sum()),
                "accuracy": sum(right) / len(right) if right else float("nan"),
                "megabytes": sum(state[1] for state in map(shard_state, group.folder.iterdir()) if state) / 1e6,
                "damaged": damaged,
            }
        )
    return pd.DataFrame(lines)


def sample_rows(group: RecordGroup, number: int) -> list[str]:
    """Return the first answers of a group's intact shards as text."""
    rows, _ = group.rows()
    return [
        f"\n[{group.key}, problem {row['index']}] {row['question']}\n-> ({len(row['response_ids'])} tokens, {row['finish']}) {row['text']}"
        for row in rows.head(number).to_dict("records")
    ]
