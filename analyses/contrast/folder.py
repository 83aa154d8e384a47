"""The folder of right against wrong answers: tables as Parquet, and `run.json`; written whole, replaced only on demand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from interp.tables.errors import InputError
from interp.tables.files import write_text
from interp.tables.schema import write

KIND = "contrast"
"""As `kind` in run.json."""


class ContrastFolder:
    """One contrast's output; `run.json` is written last, and says that it is whole."""

    def __init__(self, out: Path, *, force: bool) -> None:
        self.out = out
        if out.exists() and not out.is_dir():
            raise InputError(f"--out {out} is a file; name a folder")
        if (out / "run.json").is_file():
            try:
                kind = json.loads((out / "run.json").read_text(encoding="utf-8")).get("kind")
            except (OSError, ValueError, AttributeError) as error:
                raise InputError(f"{out / 'run.json'} is damaged ({error}); name another --out") from error
            if kind != KIND:
                raise InputError(f"--out {out} holds results of another kind ({kind or 'a head run'}); name another folder")
            if not force:
                raise InputError(f"--out {out} holds a finished contrast; --force replaces it, or name another folder")
        elif out.is_dir():
            ours = {"heads", "figures", "contrast.parquet", "answers.parquet"}
            strange = sorted(path.name for path in out.iterdir() if path.name not in ours and ".draft" not in path.name)
            if strange:
                raise InputError(f"--out {out} holds {strange[0]!r}, which no contrast wrote; name another folder")
        out.mkdir(parents=True, exist_ok=True)

    def begin(self) -> None:
        """Drop what an earlier contrast left: none of it may stand among the new."""
        for name in ("run.json", "contrast.parquet", "answers.parquet"):
            (self.out / name).unlink(missing_ok=True)
        shutil.rmtree(self.out / "figures", ignore_errors=True)

    def write(self, table: pd.DataFrame, schema: Any) -> None:
        """One table, whole or not at all."""
        draft = self.out / f".{schema.name}.draft"
        write(table, schema, draft)
        draft.replace(self.out / f"{schema.name}.parquet")

    def finish(self, about: dict[str, Any]) -> None:
        """Write run.json."""
        from interp.tables.versions import versions

        whole = _plain({**about, "versions": versions()})
        write_text(self.out / "run.json", json.dumps(whole, indent=1, ensure_ascii=False, default=str, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    """For JSON, which knows neither NaN nor infinity: null."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and value - value != 0 else value
