"""What the command line puts on standard output: one JSON document, or a table for people."""

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table


def say_json(document: object) -> None:
    """One strict JSON document."""
    print(json.dumps(document, allow_nan=False))


def say_findings(rows: list[dict[str, Any]]) -> None:
    """A line a finding."""
    shown = ("verdict", "effect", "low", "high", "n")
    say_rows(
        [
            {"finding": row["id"], "convention": row["convention"] or ""}
            | {name: row[name] for name in shown}
            for row in rows
        ]
    )


def say_rows(rows: list[dict[str, Any]]) -> None:
    """A table, numbers to four digits."""
    table = Table(box=None, pad_edge=False)
    for column in rows[0] if rows else []:
        table.add_column(column)
    for row in rows:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
