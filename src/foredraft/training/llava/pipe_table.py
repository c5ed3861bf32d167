"""A table of plain texts, and GitHub's Markdown for it: writing and reading are inverses."""

import re
from dataclasses import dataclass
from typing import Literal

Alignment = Literal["none", "left", "centre", "right"]

_RULE_CELLS: dict[Alignment, str] = {
    "none": "---",
    "left": ":---",
    "centre": ":---:",
    "right": "---:",
}
_MEANINGS: dict[tuple[bool, bool], Alignment] = {
    (False, False): "none",
    (True, False): "left",
    (True, True): "centre",
    (False, True): "right",
}
"""Alignments by whether a colon stands before and behind the dashes."""


@dataclass(frozen=True, slots=True)
class Table:
    """A header row and body rows, all of one width, with an alignment for each column."""

    cells: tuple[tuple[str, ...], ...]
    alignments: tuple[Alignment, ...]

    def __post_init__(self) -> None:
        if not self.cells or not self.alignments:
            raise ValueError("a table needs a header row of at least one cell")
        for number, row in enumerate(self.cells):
            if len(row) != len(self.alignments):
                raise ValueError(
                    f"row {number} (the header is 0) has {len(row)} cells, the table "
                    f"{len(self.alignments)} columns: give each row one cell a column"
                )
            for cell in row:
                if cell != cell.strip() or len(cell.splitlines()) > 1:
                    raise ValueError(f"cell {cell!r} is not one stripped line: strip and join it")

    def markdown(self) -> str:
        r"""Write it as GitHub does, one space around each cell; `\` and `|` are escaped."""
        header, *body = ([_escaped(cell) for cell in row] for row in self.cells)
        rule = [_RULE_CELLS[alignment] for alignment in self.alignments]
        return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *body))


def parse(markdown: str) -> Table:
    """Read a text that is one pipe table and nothing else; `parse(t.markdown()) == t`.

    Spaces around cells, the number of dashes and outer pipes are free, as on GitHub; rows with too
    few or too many cells, which GitHub would fill up or cut, are refused with a ValueError.
    """
    rows = [split_row(line) for line in markdown.strip().splitlines()]
    if len(rows) < 2:
        raise ValueError(f"{markdown[:40]!r} is no table: it needs a header and a rule row below")
    header, rule, *body = rows
    return Table((header, *body), tuple(alignment(cell) for cell in rule))


def split_row(line: str) -> tuple[str, ...]:
    """Split a line of a pipe table into unescaped cells; ValueError if it has no pipe."""
    cells = [""]
    for token in re.findall(r"\\[\\|]|.", line.strip(), re.DOTALL):
        if token == "|":
            cells.append("")
        else:
            cells[-1] += token[-1]
    if len(cells) == 1:
        raise ValueError(f"{line[:40]!r} is no row of a table: it has no pipe")
    inner = cells[cells[0] == "" : len(cells) - (cells[-1] == "")]
    return tuple(cell.strip() for cell in inner)


def alignment(cell: str) -> Alignment:
    """Read a cell of a rule row such as `:---`; ValueError if it is none."""
    if not re.fullmatch(":?-+:?", cell):
        raise ValueError(f"{cell[:40]!r} is no cell of a rule row: write one such as --- or :---")
    return _MEANINGS[cell[0] == ":", cell[-1] == ":"]


def _escaped(cell: str) -> str:
    return cell.replace("\\", "\\\\").replace("|", "\\|")
