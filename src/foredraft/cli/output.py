"""What the commands write: progress on standard error, tables and JSON on standard output."""

import json
import sys

import typer
from rich.console import Console

WIDEST = 400
"""Characters a line of a table may have where it goes into a file or a pipe."""

progress = Console(stderr=True, highlight=False)

output = Console(highlight=False, width=None if sys.stdout.isatty() else WIDEST)


def print_json(document: object) -> None:
    """Write a document as JSON."""
    typer.echo(json.dumps(document, indent=1, ensure_ascii=False))
