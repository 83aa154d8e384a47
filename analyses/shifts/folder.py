"""The folder of a comparison: tables as Parquet or CSV, `run.json`, figures and page; written whole, replaced only on demand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from interp.tables.errors import OptionError
from interp.tables.files import write_text
from interp.tables.schema import write
from interp.tables.shifts import SHIFT_TABLES

OTHERS = ("lora", "lora_spectrum", "models", "training", "matches", "layer_matches", "words", "curves", "heads", "variance")
"""Tables beside those of `interp.tables.shifts.SHIFT_TABLES`."""


class ComparisonFolder:
    """One comparison's output.

    Raises:
        OptionError: the place is a file, holds other things, or a finished comparison and `force` is not given.
    """

    def __init__(self, out: Path, *, force: bool) -> None:
        self.out = out
        if out.exists() and not out.is_dir():
            raise OptionError(f"--out {out} is a file; name a folder")
        if (out / "run.json").is_file():
            try:
                kind = json.loads((out / "run.json").read_text(encoding="utf-8")).get("kind")
            except (ValueError, AttributeError) as error:
                raise OptionError(f"{out / 'run.json'} is damaged ({error}); name another --out") from error
            if kind is None:
                raise OptionError(f"--out {out} holds a head run; name another folder")
            if not force:
                raise OptionError(f"--out {out} holds a finished comparison; --force replaces it, or name another folder")
        elif out.is_dir():
            ours = {"heads", "problems.jsonl", "figures", "report.html", *(path.name for path in self._tables())}
            strange = sorted(p.name for p in out.iterdir() if p.name not in ours and ".draft" not in p.name)
            if strange:
                raise OptionError(f"--out {out} holds {strange[0]!r}, which no comparison wrote; name another folder")
        out.mkdir(parents=True, exist_ok=True)

    def write(self, tables: dict[str, pd.DataFrame], about: dict[str, Any]) -> None:
        """Write every table, and last `run.json`: its being there says that the comparison is whole."""
        from interp.tables.versions import versions

        (self.out / "run.json").unlink(missing_ok=True)
        for old in (*self._tables(), self.out / "report.html"):
            old.unlink(missing_ok=True)  # of the comparison that is replaced: none of it may stand among the new
        shutil.rmtree(self.out / "figures", ignore_errors=True)
        for name, table in tables.items():
            assert name in (*SHIFT_TABLES, *OTHERS)
            draft = self.out / f".{name}.draft"
            if name in SHIFT_TABLES:
                write(table, SHIFT_TABLES[name], draft)
                draft.replace(self.out / f"{name}.parquet")
            elif len(table) > 1000:
                table.to_parquet(draft, index=False)
                draft.replace(self.out / f"{name}.parquet")
            else:
                write_text(self.out / f"{name}.csv", table.to_csv(index=False))
        write_text(self.out / "run.json", json.dumps({**about, "versions": versions()}, indent=1, ensure_ascii=False, default=str) + "\n")

    def _tables(self) -> list[Path]:
        """Every file that a comparison's table may have."""
        return [self.out / f"{name}{ending}" for name in (*SHIFT_TABLES, *OTHERS) for ending in (".parquet", ".csv")]

    def draw(self, region: str) -> None:
        """Draw figures and page from the tables."""
        from figures.comparison.draw import draw_comparison

        draw_comparison(self.out, region=region)
