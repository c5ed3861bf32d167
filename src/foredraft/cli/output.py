"""What the commands write: progress on standard error, tables and JSON on standard output."""

import json
import sys
from collections.abc import Hashable, Mapping
from typing import Any

import typer
from rich.console import Console

WIDEST = 400
"""Characters a line of a table may have where it goes into a file or a pipe."""

progress = Console(stderr=True, highlight=False)

output = Console(highlight=False, width=None if sys.stdout.isatty() else WIDEST)


def print_json(document: object) -> None:
    """Write a document as JSON."""
    typer.echo(json.dumps(document, indent=1, ensure_ascii=False))


def cell(row: Mapping[Hashable, Any], name: str) -> str:
    """Write a value of a row of a table; of a measurement its median, least and greatest."""
    if f"{name}_max" in row:
        middle, least, most = (row[f"{name}_{end}"] for end in ("median", "min", "max"))
        if middle != middle:
            return "–"
        return f"{middle:.3g} ({least:.3g}–{most:.3g})"
    value = row.get(name, row.get(f"{name}_median"))
    if isinstance(value, float):
        return "–" if value != value else f"{value:.4g}"
    return str(value)
