"""The settings of a sweep: a grid of values, the rows of a CSV file, or both."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import yaml

Setting = Mapping[str, Any]
"""Parameters by name, as `foredraft run -p` takes them."""


def grid(axes: Iterable[str], rows: Sequence[Setting] = ({},)) -> list[Setting]:
    """Every combination of the values of some axes, each written `name=1,2,4`, with every row.

    ValueError for an axis that is ill-formed, or whose name another axis or a row has too.

    >>> grid(["length=1,2", "kinds=[table]"])
    [{'length': 1, 'kinds': ['table']}, {'length': 2, 'kinds': ['table']}]
    """
    values: dict[str, list[Any]] = {}
    for name, given in map(_axis, axes):
        if name in values or any(name in row for row in rows):
            raise ValueError(f"parameter {name!r} is given twice: write its values in one place")
        values[name] = given
    points = [dict(zip(values, each, strict=True)) for each in product(*values.values())]
    return [{**row, **point} for row in rows for point in points]


def rows(path: Path) -> list[Setting]:
    """The rows of a CSV file with a line of names; cells are YAML, an empty one says nothing.

    ValueError for a file without rows, and for a row of another length than the names.
    """
    if not path.is_file():
        raise ValueError(f"{path} is no file; --csv takes a table with a line of parameter names")
    with path.open(encoding="utf-8", newline="") as file:
        names, *lines = [line for line in csv.reader(file) if line] or [[]]
    if not lines:
        raise ValueError(f"{path} has no rows; a line of parameter names, then one row a point")
    return [_row(path, names, line) for line in lines]


def _row(path: Path, names: list[str], cells: list[str]) -> Setting:
    if len(cells) != len(names):
        raise ValueError(f"{path}: {len(cells)} cells for {len(names)} names in {cells}; quote ','")
    read = {name: _yaml(f"{name}={cell}", cell) for name, cell in zip(names, cells, strict=True)}
    return {name: value for name, value in read.items() if value is not None}


def _axis(text: str) -> tuple[str, list[Any]]:
    """A name and its values, which are read as the inside of a YAML list."""
    name, _, values = text.partition("=")
    if not name.strip() or not values.strip():
        raise ValueError(f"parameter {text!r} is not name=value,value; write -p seed=1,2, say")
    return name.strip(), _yaml(text, f"[{values}]")


def _yaml(text: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"parameter {text!r}: the value is not YAML ({error})") from None
